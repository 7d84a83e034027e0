"""The Recipient parameter: verify the attestation document, seal the answer to its key."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_der_public_key,
)

from casemate import limits
from casemate.attestation.document import ENCLAVE_PCRS
from casemate.attestation.verify import verify_document
from casemate.errors import EvidenceError
from casemate_devkit.kms.cms import initialisation_vector, seal_enveloped
from casemate_devkit.kms.errors import bad_recipient

if TYPE_CHECKING:
    from collections.abc import Mapping

# AWS documents no limit. Enclaves ask for a fresh document for each call (SPEC 10.2).
DOCUMENT_AGE_MAX = 300_000
_ALGORITHM = "RSAES_OAEP_SHA_256"
_RSA_BITS_MIN = 2048
_RSA_BITS_MAX = 4096  # the document's public_key field holds at most 1,024 bytes
_EXPONENT_MIN = 65537


@dataclass(frozen=True, slots=True)
class Recipient:
    """A verified attestation document and its RSA key; the only way to an attested answer."""

    module_id: str
    registers: Mapping[int, bytes]
    public_key: rsa.RSAPublicKey

    def seal(self, plaintext: bytes) -> bytes:
        """Return ``CiphertextForRecipient``."""
        return seal_enveloped(self.public_key, plaintext)

    def record(self) -> dict[str, str]:
        """Return what CloudTrail shows of a recipient, registers in lower-case hex."""
        shown = {
            "attestationDocumentModuleId": self.module_id,
            "attestationDocumentEnclaveImageDigest": self.registers.get(0, b"").hex(),
        }
        for index, value in sorted(self.registers.items()):
            if any(value):
                shown[f"attestationDocumentEnclavePCR{index}"] = value.hex()
        return shown


def verify_recipient(
    parameter: Mapping[str, Any],
    roots: frozenset[bytes],
    now: int,
    maximum_age: int = DOCUMENT_AGE_MAX,
) -> Recipient:
    """Verify the Recipient of a request at ``now`` (ms); raises KmsError, never returns less.

    Steps: the key encryption algorithm; the document by the production verifier (SPEC 3.8 steps 1
    to 4 and 6 to 8); its kind; its age; its public key.
    """
    if parameter.get("KeyEncryptionAlgorithm") != _ALGORITHM:
        raise bad_recipient(f"Recipient: KeyEncryptionAlgorithm is not {_ALGORITHM}.")
    data = parameter.get("AttestationDocument")
    if not isinstance(data, bytes) or not data:
        raise bad_recipient("Recipient: there is no AttestationDocument.")
    try:
        document = verify_document(data, roots=roots, now=now)
    except EvidenceError as error:
        raise bad_recipient(f"Recipient: the attestation document is refused: {error}") from None
    if document.pcr_field != ENCLAVE_PCRS:
        # An instance's registers answer to other condition keys and mean other things.
        raise bad_recipient("Recipient: the attestation document is not that of an enclave.")
    if not now - maximum_age <= document.timestamp <= now + limits.CLOCK_SKEW:
        raise bad_recipient("Recipient: the attestation document is too old or of the future.")
    return Recipient(document.module_id, document.pcrs, _public_key(document.public_key))


def tampered(envelope: bytes) -> bytes:
    """Return an envelope with one bit of its initialisation vector flipped: it still opens."""
    changed = bytearray(envelope)
    changed[initialisation_vector(envelope)] ^= 1
    return bytes(changed)


def _public_key(spki: bytes | None) -> rsa.RSAPublicKey:
    """Return the document's RSA key; strict DER: it must encode to the same bytes again."""
    if not spki:
        raise bad_recipient("Recipient: the attestation document has no public_key.")
    try:
        key = load_der_public_key(spki)
    except (ValueError, UnsupportedAlgorithm):
        raise bad_recipient("Recipient: public_key is not a SubjectPublicKeyInfo.") from None
    if not isinstance(key, rsa.RSAPublicKey):
        raise bad_recipient("Recipient: public_key is not an RSA key.")
    exponent = key.public_numbers().e
    strong = exponent >= _EXPONENT_MIN and exponent % 2 == 1
    if not strong or not _RSA_BITS_MIN <= key.key_size <= _RSA_BITS_MAX:
        raise bad_recipient("Recipient: public_key is not RSA of 2048 to 4096 bits, e >= 65537.")
    if key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo) != spki:
        raise bad_recipient("Recipient: public_key is not strict DER.")
    return key
