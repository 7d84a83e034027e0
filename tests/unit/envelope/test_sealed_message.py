"""`SealedRequest` and `SealedResponse`: two fields, once each, in order (SPEC 9.3)."""

from __future__ import annotations

import pytest

from casemate import limits
from casemate.envelope.sealed_message import encode_sealed, parse_sealed
from casemate.errors import Code, EnvelopeError

HEADER, CIPHERTEXT = b"\x0a\x02hh", b"\x12\x03ccc"


def test_what_is_encoded_is_parsed() -> None:
    assert b"".join(encode_sealed(b"hh", b"ccc")) == HEADER + CIPHERTEXT
    header, ciphertext = parse_sealed(HEADER + CIPHERTEXT)
    assert (header, bytes(ciphertext)) == (b"hh", b"ccc")
    longest = b"".join(encode_sealed(b"h" * limits.HEADER_MAX, b"c"))
    assert len(parse_sealed(longest)[0]) == limits.HEADER_MAX


@pytest.mark.parametrize(
    "data",
    [
        b"",
        HEADER,
        CIPHERTEXT,
        CIPHERTEXT + HEADER,
        HEADER + HEADER,
        CIPHERTEXT + CIPHERTEXT,
        HEADER + HEADER + CIPHERTEXT,
        HEADER + CIPHERTEXT + CIPHERTEXT,
        HEADER + CIPHERTEXT + b"\x1a\x00",
        HEADER + b"\x1a\x03ccc",
        b"\x1a\x02hh" + CIPHERTEXT,
        b"\x08\x02" + CIPHERTEXT,
        HEADER + b"\x10\x03",
        b"\x0a\x00" + CIPHERTEXT,
        HEADER + b"\x12\x00",
        b"\x0a\x82\x00hh" + CIPHERTEXT,
        HEADER + CIPHERTEXT[:-1],
        b"".join(encode_sealed(b"h" * (limits.HEADER_MAX + 1), b"c")),
    ],
)
def test_anything_else_is_malformed(data: bytes) -> None:
    with pytest.raises(EnvelopeError) as caught:
        parse_sealed(data)
    assert caught.value.code == Code.MALFORMED
