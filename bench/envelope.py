"""What the envelope costs beside the cryptography that it cannot do without (SPEC 5).

Opened and sealed as an enclave does it for a session that it knows: header, request and preamble,
the caller looked up and not verified again, the answer. The bare calls are two HKDF-Expands, one
AES-GCM decryption and one encryption into fresh buffers; at 8 MiB the AES-GCM calls alone, chunk by
chunk. Run by `make bench`: `python -m bench.envelope [--json]`.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Final

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from bench.rounds import measure, ratio, report
from casemate import limits, wire
from casemate.envelope import opening
from casemate.envelope.header import parse_request_header
from tests.support import envelope as env

if TYPE_CHECKING:
    from collections.abc import Callable

SMALL: Final = 1024 - 400  # with its preamble a request of 1 KiB, the smallest there is
LARGE: Final = 8 * limits.MIB - 4096  # with preamble and padding 8 MiB
TARGET_SMALL: Final = 3.0
TARGET_LARGE: Final = 1.6
_NONCE: Final = bytes(12)


def served(size: int) -> tuple[Callable[[], object], int]:
    """Return what an enclave does with a request of ``size`` bytes, and the ciphertext's length."""
    call = env.hpke_session(Ed25519PrivateKey.generate()).seal(
        model="wdbc", version=7, digest=bytes(48), message=bytes(size)
    )
    raw, ciphertext, answer = call.header, call.ciphertext, bytes(size)
    header = parse_request_header(raw)
    prk = opening.check_commitment(header, env.unwrap(header))
    opened = opening.open_request(raw, ciphertext, prk)
    known = opening.identify(raw, opened.preamble_bytes, None)

    def serve() -> object:
        parse_request_header(raw)
        opened = opening.open_request(raw, ciphertext, prk)
        opening.identify(raw, opened.preamble_bytes, known)
        return opening.seal_response(
            opened,
            instance_digest=env.INSTANCE_DIGEST,
            messages=[answer],
            trailer=env.ANSWERED,
            floor=0,
        )

    return serve, len(ciphertext)


def bare(sealed_length: int, *, derive: bool) -> Callable[[], object]:
    """Return the calls of `cryptography` alone, for a ciphertext and an answer of that length."""
    prk, aad, key = bytes(range(48)), bytes(48), bytes(32)
    info = wire.label("request") + wire.lp(aad)
    chunk = limits.CHUNK + 16
    sizes = [min(chunk, sealed_length - at) for at in range(0, sealed_length, chunk)]
    sealed = [AESGCM(key).encrypt(_NONCE, bytes(size - 16), aad) for size in sizes]
    plain = [bytes(size - 16) for size in sizes]

    def work() -> None:
        for _ in range(2 if derive else 0):
            HKDFExpand(algorithm=hashes.SHA384(), length=32, info=info).derive(prk)
        out = memoryview(bytearray(sum(map(len, plain))))
        cipher, at = AESGCM(key), 0
        for piece in sealed:
            cipher.decrypt_into(_NONCE, piece, aad, out[at : at + len(piece) - 16])
            at += len(piece) - 16
        out = memoryview(bytearray(sealed_length))
        cipher, at = AESGCM(key), 0
        for piece in plain:
            cipher.encrypt_into(_NONCE, piece, aad, out[at : at + len(piece) + 16])
            at += len(piece) + 16

    return work


def main() -> int:
    """Measure, print, and return 1 if a target is missed."""
    small, small_length = served(SMALL)
    large, large_length = served(LARGE)
    times = measure({"1 KiB bare": bare(small_length, derive=True), "1 KiB": small}, 3000)
    times |= measure({"8 MiB bare": bare(large_length, derive=False), "8 MiB": large}, 40)
    targets = [
        ratio(times, "1 KiB", "1 KiB bare", TARGET_SMALL),
        ratio(times, "8 MiB", "8 MiB bare", TARGET_LARGE),
    ]
    return report("envelope", times, targets)


if __name__ == "__main__":
    sys.exit(main())
