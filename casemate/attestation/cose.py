"""COSE_Sign1 as the Nitro Security Module makes it (SPEC 3.7)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from casemate import cbor, limits
from casemate.attestation._checks import parsed, require, sized
from casemate.errors import Code, EvidenceError

ES384: Final = bytes.fromhex("a1013822")  # {1: -35}, the only protected header there is
SIGNATURE_BYTES: Final = 96

_TAG_18: Final = 0xD2
_ITEMS: Final = 4


@dataclass(frozen=True, slots=True)
class CoseSign1:
    """The four members, byte for byte as received; nothing is verified."""

    protected: bytes
    unprotected: dict[int | str, cbor.Value]
    payload: bytes
    signature: bytes

    def signed_bytes(self) -> bytes:
        """Return the Sig_structure of RFC 9052 section 4.4 over the received bytes."""
        return cbor.encode(["Signature1", self.protected, b"", self.payload])


def check_document_size(data: bytes) -> None:
    """Step 1 for the document alone; raises EvidenceError (EVIDENCE_SIZE)."""
    sized(data, 1, limits.DOCUMENT_MAX, Code.EVIDENCE_SIZE, "attestation document")


def parse_cose(data: bytes) -> CoseSign1:
    """Step 2: parse an untagged or once-tagged COSE_Sign1; raises EvidenceError (EVIDENCE_COSE)."""
    code = Code.EVIDENCE_COSE
    with parsed(code):
        value = cbor.decode(data[1:] if data[:1] == bytes([_TAG_18]) else data)
    if not isinstance(value, list) or len(value) != _ITEMS:
        raise EvidenceError(code, "not an array of four")
    protected, unprotected, payload, signature = value
    sized(protected, 0, limits.DOCUMENT_MAX, code, "protected header")
    require(isinstance(unprotected, dict), code, "the unprotected header is not a map")
    sized(payload, 1, limits.DOCUMENT_PAYLOAD_MAX, code, "payload")
    sized(signature, SIGNATURE_BYTES, SIGNATURE_BYTES, code, "signature")
    return CoseSign1(protected, unprotected, payload, signature)


def check_algorithm(cose: CoseSign1) -> None:
    """Step 3: ES384, stated where it is signed; raises EvidenceError (EVIDENCE_ALGORITHM)."""
    code = Code.EVIDENCE_ALGORITHM
    require(cose.protected == ES384, code, "the protected header is not ES384 alone")
    require(not cose.unprotected, code, "the unprotected header is not empty")
