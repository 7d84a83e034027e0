"""A client's session and an enclave's opening side, joined without a network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from casemate import wire
from casemate.attestation import InstanceConfig, KeyConfig
from casemate.envelope import hpke, opening
from casemate.envelope.header import KEY_MODE_HPKE, RequestHeader, parse_request_header
from casemate.envelope.messages import Trailer
from casemate.envelope.sealing import DataKeySession
from casemate.errors import Code

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from casemate.envelope.opening import OpenedRequest
    from casemate.envelope.sealing import SealedCall

AUDIENCE = "clinic.example/screening"
INSTANCE_ID = bytes(range(16))
NOT_BEFORE = 1_790_000_000_000
HOUR = 3_600_000
KEY_ARN = "arn:aws:kms:eu-central-1:111122223333:key/01234567-89ab-cdef-0123-456789abcdef"
BLOB = b"\x5a" * 184
KMS_DATA_KEY = bytes(range(32))
ANSWERED = Trailer(Code.OK, "", "wdbc", 7, b"\xdd" * 48)
REFUSED = Trailer(Code.UNKNOWN_MODEL, "no such model")

KEM = hpke.KemKey.generate()
KEY_CONFIG = KeyConfig(KEM.public_bytes, NOT_BEFORE, NOT_BEFORE + HOUR).encode()
INSTANCE_CONFIG = InstanceConfig(INSTANCE_ID, NOT_BEFORE - 1, "process", bytes(32)).encode()
INSTANCE_DIGEST = wire.digest(INSTANCE_CONFIG)


def hpke_session(caller: Ed25519PrivateKey | None = None) -> DataKeySession:
    return DataKeySession.hpke(
        KEY_CONFIG,
        INSTANCE_ID,
        INSTANCE_DIGEST,
        AUDIENCE,
        NOT_BEFORE,
        NOT_BEFORE + HOUR,
        caller,
    )


def kms_session(
    caller: Ed25519PrivateKey | None = None, instance_id: bytes = bytes(16)
) -> DataKeySession:
    return DataKeySession.kms(
        KEY_ARN,
        BLOB,
        KMS_DATA_KEY,
        instance_id,
        AUDIENCE,
        NOT_BEFORE,
        NOT_BEFORE + HOUR,
        caller,
    )


SESSIONS = {"hpke": hpke_session, "kms": kms_session}


def seal(session: DataKeySession, message: bytes = b"a question") -> SealedCall:
    return session.seal(model="wdbc", version=7, digest=None, message=message)


def unwrap(header: RequestHeader) -> bytes:
    """What an enclave does before it opens anything: the data key, by exact key id."""
    if header.key_mode == KEY_MODE_HPKE:
        return KEM.unwrap(header.encapsulation, KEY_CONFIG)
    return KMS_DATA_KEY


def open_sealed(header: bytes, ciphertext: wire.Buffer) -> OpenedRequest:
    """Open as an enclave does, up to the caller."""
    parsed = parse_request_header(header)
    prk = opening.check_commitment(parsed, unwrap(parsed))
    opened = opening.open_request(header, ciphertext, prk)
    opening.verify_caller(parsed, opened.preamble)
    return opened


@dataclass(frozen=True)
class Answer:
    header: bytes
    ciphertext: memoryview


def answer(
    opened: OpenedRequest,
    message: bytes | None = b"an answer",
    trailer: Trailer = ANSWERED,
    floor: int = 0,
) -> Answer:
    return Answer(
        *opening.seal_response(
            opened,
            instance_digest=INSTANCE_DIGEST,
            messages=[] if message is None else [message],
            trailer=trailer,
            floor=floor,
        )
    )


def round_trip(session: DataKeySession) -> tuple[SealedCall, Answer]:
    call = seal(session)
    return call, answer(open_sealed(call.header, call.ciphertext))
