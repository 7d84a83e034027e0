"""A51: envelopes for the enclave's key tell their sender nothing about why they do not open.

Work is counted, not timed: RSA operations, decrypted bytes, compared paddings.
"""

from __future__ import annotations

import contextlib
import hmac
from collections import Counter
from typing import TYPE_CHECKING

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from casemate import limits
from casemate.errors import Code, KeyReleaseError
from casemate_kms.cms import open_enveloped
from tests.support.cms_builder import Envelope, pkcs7, spki
from tests.support.kms_bench import Bench, bench_for
from tests.support.kms_endpoint import DATA_KEY, DOCUMENT, HOST, Seen, b64, granted

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cryptography.hazmat.primitives.asymmetric.padding import AsymmetricPadding

KEY = rsa.generate_private_key(65537, 2048)
GOOD = pkcs7(DATA_KEY)

# What a sender can change and only the holder of the private key can notice.
ATTEMPTS: dict[str, dict[str, object]] = {
    "a key that is no OAEP": {"encrypted_key": b"\x01" * 256},
    "a key of zeros": {"encrypted_key": bytes(255) + b"\x02"},
    "a key of 16 bytes": {"cek_bytes": 16},
    "a key of 24 bytes": {"cek_bytes": 24},
    "no padding": {"padded": GOOD[:-1] + b"\x00"},
    "padding beyond a block": {"padded": GOOD[:-1] + b"\x11"},
    "padding beyond the content": {"padded": GOOD[:-1] + b"\xff"},
    "padding that differs at its start": {"padded": GOOD[:32] + b"\x00" + GOOD[33:]},
    "padding that differs at its end": {"padded": GOOD[:-2] + b"\x0f\x10"},
    "content of 47 bytes": {"padded": DATA_KEY + b"\x01" * 16},
    "content of 33 bytes": {"padded": DATA_KEY + b"k" + bytes([15]) * 15},
}


class Work:
    """Counts what opening one envelope does."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.done: Counter[str] = Counter()
        module = open_enveloped.__globals__
        monkeypatch.setitem(module, "Cipher", self._cipher)
        monkeypatch.setitem(module, "hmac", self)

    def compare_digest(self, one: bytes, other: bytes) -> bool:
        self.done[f"compared {len(one)}"] += 1
        return hmac.compare_digest(one, other)

    def _cipher(self, algorithm: algorithms.AES256, mode: modes.CBC) -> _CountedCipher:
        return _CountedCipher(Cipher(algorithm, mode), self.done)

    def of(self, ber: bytes) -> Counter[str]:
        self.done.clear()
        with contextlib.suppress(KeyReleaseError):
            open_enveloped(ber, _CountedKey(self.done))  # type: ignore[arg-type]
        return Counter(self.done)


class _CountedKey:
    key_size = 2048

    def __init__(self, done: Counter[str]) -> None:
        self._done = done

    def public_key(self) -> rsa.RSAPublicKey:
        return KEY.public_key()

    def decrypt(self, ciphertext: bytes, padding: AsymmetricPadding) -> bytes:
        self._done["RSA"] += 1
        return KEY.decrypt(ciphertext, padding)


class _CountedCipher:
    def __init__(self, cipher: Cipher[modes.CBC], done: Counter[str]) -> None:
        self._context = cipher.decryptor()
        self._done = done

    def decryptor(self) -> _CountedCipher:
        return self

    def update(self, data: bytes) -> bytes:
        self._done["decrypted"] += len(data)
        opened: bytes = self._context.update(data)
        return opened

    def finalize(self) -> bytes:
        opened: bytes = self._context.finalize()
        return opened


@pytest.mark.parametrize("changes", ATTEMPTS.values(), ids=ATTEMPTS)
def test_a51_every_attempt_costs_what_a_good_envelope_costs(
    monkeypatch: pytest.MonkeyPatch, changes: dict[str, object]
) -> None:
    good = Envelope(DATA_KEY, spki(KEY.public_key()))
    work = Work(monkeypatch)
    expected = work.of(good.encode())
    assert expected["RSA"] == 1
    assert expected["decrypted"] == len(GOOD)
    assert [expected[f"compared {size}"] for size in range(1, 17)] == [1] * 16
    assert work.of(good.but(**changes).encode()) == expected


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    with bench_for(HOST) as made:
        yield made


def test_a51_whoever_could_feed_envelopes_gets_one_answer_from_each_key(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through botocore and TLS: one text, no second try, and the key is given up."""
    monkeypatch.setattr(limits, "KMS_TIMEOUT_S", 60.0)  # no try is in vain on a slow machine
    texts, keys = set(), []
    for changes in ATTEMPTS.values():

        def answer(request: Seen, changes: dict[str, object] = changes) -> tuple[int, bytes]:
            public = request.document.removeprefix(DOCUMENT)[8:]
            keys.append(public)
            envelope = Envelope(DATA_KEY, public).but(**changes).encode()
            return granted(CiphertextForRecipient=b64(envelope))(request)

        bench.kms.answers = [answer]
        before = len(bench.kms.seen)
        refused = bench.failing()
        assert len(bench.kms.seen) == before + 1
        texts.add((refused.code, refused.detail))
    assert texts == {(Code.KEY_RELEASE_INVALID, "the key's envelope does not open")}
    assert len(set(keys)) == len(ATTEMPTS)
    bench.kms.answers = [granted()]
    assert bench.decrypt() == DATA_KEY
    last = bench.kms.seen[-1].document.removeprefix(DOCUMENT)[8:]
    assert last not in keys
    assert bench.decrypt() == DATA_KEY
    assert bench.kms.seen[-1].document.removeprefix(DOCUMENT)[8:] == last  # a good one is kept
