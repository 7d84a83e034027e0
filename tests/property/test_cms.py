"""Whatever the bytes, an envelope opens or is refused in the one way (SPEC 10.4).

CMS does not authenticate: a mutation may open, even to other content. What must not happen is any
other exception. The commitment of the key that comes out is what is checked (A49, A50).
"""

from __future__ import annotations

from cryptography.hazmat.primitives.asymmetric import rsa
from hypothesis import given
from hypothesis import strategies as st

from casemate.errors import Code, KeyReleaseError
from casemate_kms.cms import open_enveloped
from tests.support.cms_builder import Envelope, spki

KEY = rsa.generate_private_key(65537, 2048)
GENUINE = [
    Envelope(bytes(32), spki(KEY.public_key()), chunk=chunk, definite=definite).encode()
    for chunk in (None, 16)
    for definite in (False, True)
]
edits = st.lists(
    st.tuples(st.integers(0, 600), st.integers(0, 3), st.binary(max_size=4)), min_size=1, max_size=4
)


def opens_or_is_refused(ber: bytes) -> None:
    try:
        content = open_enveloped(ber, KEY)
    except KeyReleaseError as error:
        assert error.code is Code.KEY_RELEASE_INVALID  # noqa: PT017 - either outcome is right
        assert error.detail == "the key's envelope does not open"  # noqa: PT017
    else:
        assert len(content) < len(ber)


@given(st.binary(max_size=700))
def test_random_bytes(data: bytes) -> None:
    opens_or_is_refused(data)


@given(st.sampled_from(GENUINE), edits)
def test_mutations(ber: bytes, changes: list[tuple[int, int, bytes]]) -> None:
    for at, removed, inserted in changes:
        ber = ber[:at] + inserted + ber[at + removed :]
    opens_or_is_refused(ber)


@given(st.sampled_from(GENUINE), st.integers(0, 600), st.integers(1, 255))
def test_flips(ber: bytes, at: int, mask: int) -> None:
    at %= len(ber)
    opens_or_is_refused(ber[:at] + bytes([ber[at] ^ mask]) + ber[at + 1 :])


@given(st.sampled_from(GENUINE), st.integers(0, 15), st.integers(1, 255))
def test_a_flip_in_the_iv_opens_to_other_content(ber: bytes, at: int, mask: int) -> None:
    """The reason why nothing may trust a key because its envelope opened."""
    start = ber.index(b"\x5a" * 16)
    flipped = bytearray(ber)
    flipped[start + at] ^= mask
    content = open_enveloped(bytes(flipped), KEY)
    assert content == bytes(at) + bytes([mask]) + bytes(31 - at)
