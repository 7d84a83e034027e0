from __future__ import annotations

import pytest

from casemate.envelope import hpke
from casemate.envelope.failure import open_failed
from casemate.errors import Code, EnvelopeError

KEY = hpke.KemKey.generate()
OTHER = hpke.KemKey.generate()
DATA_KEY = bytes(range(32))
CONFIG = b"a key configuration"
WRAPPED = hpke.wrap(KEY.public_bytes, DATA_KEY, CONFIG)


def test_the_wrapped_key_is_enc_and_ct() -> None:
    assert len(KEY.public_bytes) == 1184 + 32
    assert len(WRAPPED) == 1120 + 48
    assert KEY.unwrap(WRAPPED, CONFIG) == DATA_KEY


def test_each_wrap_is_another() -> None:
    assert hpke.wrap(KEY.public_bytes, DATA_KEY, CONFIG) != WRAPPED


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


@pytest.mark.parametrize(
    ("key", "wrapped", "config"),
    [
        (OTHER, WRAPPED, CONFIG),
        (KEY, WRAPPED, CONFIG + b"\0"),
        (KEY, b"", CONFIG),
        (KEY, bytes(1168), CONFIG),
        (KEY, WRAPPED[:-1], CONFIG),
        (KEY, WRAPPED + b"\0", CONFIG),
        *[(KEY, flipped(WRAPPED, at), CONFIG) for at in (0, 1087, 1088, 1119, 1120, 1167)],
        (KEY, WRAPPED[:1088] + bytes(32) + WRAPPED[1120:], CONFIG),
        (KEY, hpke._SUITE.encrypt(b"short", KEY._private.public_key(), b""), CONFIG),
    ],
)
def test_whatever_fails_is_one_error(key: hpke.KemKey, wrapped: bytes, config: bytes) -> None:
    with pytest.raises(EnvelopeError) as caught:
        key.unwrap(wrapped, config)
    assert str(caught.value) == str(open_failed())
    assert caught.value.__cause__ is None


@pytest.mark.parametrize(
    "public", [b"", KEY.public_bytes[:-1], b"\xff" * 1216, KEY.public_bytes[:1184] + bytes(32)]
)
def test_an_unusable_public_key_is_refused(public: bytes) -> None:
    with pytest.raises(EnvelopeError) as caught:
        hpke.wrap(public, DATA_KEY, CONFIG)
    assert caught.value.code == Code.INVALID_ARGUMENT


def test_only_whole_data_keys_are_wrapped() -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        hpke.wrap(KEY.public_bytes, b"short", CONFIG)
