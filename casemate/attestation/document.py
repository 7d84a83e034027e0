"""The payload of an attestation document (SPEC 3.7): parsed, not believed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from casemate import cbor, limits
from casemate.attestation._checks import between, parsed, require, sized
from casemate.attestation.cose import CoseSign1, check_algorithm, check_document_size, parse_cose
from casemate.errors import Code, EvidenceError

if TYPE_CHECKING:
    from collections.abc import Mapping

ENCLAVE_PCRS: Final = "pcrs"
TPM_PCRS: Final = "nitrotpm_pcrs"

_CODE: Final = Code.EVIDENCE_PAYLOAD
_MODULE_ID_MAX: Final = 255
_OPTIONAL: Final = ("public_key", "user_data", "nonce")
_KEYS: Final[dict[str, type | tuple[type, ...]]] = {
    "module_id": str,
    "digest": str,
    "timestamp": int,
    "certificate": bytes,
    "cabundle": list,
    **dict.fromkeys(_OPTIONAL, (bytes, type(None))),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class DocumentFields:
    """What a document says. Whether to believe it is what its two subclasses differ in.

    ``timestamp`` is in milliseconds, ``certificate`` and ``cabundle`` (root first) are DER,
    ``pcrs`` maps a register's index to its 48 bytes and need not be contiguous. ``pcr_field`` is
    the name the registers came under: ``pcrs`` from an enclave; ``nitrotpm_pcrs`` from an instance,
    whose registers have other meanings.
    """

    module_id: str
    digest: str
    timestamp: int
    pcr_field: str
    pcrs: Mapping[int, bytes]
    certificate: bytes
    cabundle: tuple[bytes, ...]
    public_key: bytes | None
    user_data: bytes | None
    nonce: bytes | None
    protected: bytes
    payload: bytes
    signature: bytes

    @property
    def chain(self) -> tuple[bytes, ...]:
        """All certificates as DER, root first, leaf last."""
        return (*self.cabundle, self.certificate)


@dataclass(frozen=True, slots=True, kw_only=True)
class UnverifiedDocument(DocumentFields):
    """A document that parsed. Anyone can write one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedDocument(DocumentFields):
    """A document whose signature and chain hold. Only ``verify`` beside this module makes one."""


def parse_document(data: bytes) -> UnverifiedDocument:
    """Steps 1 to 4 of SPEC 3.8 over a whole document; raises EvidenceError with the step's code."""
    check_document_size(data)
    cose = parse_cose(data)
    check_algorithm(cose)
    return parse_payload(cose)


def parse_payload(cose: CoseSign1) -> UnverifiedDocument:
    """Step 4: parse the payload; raises EvidenceError (EVIDENCE_PAYLOAD).

    Takes either name of the registers, but not both: step 5 decides which one is wanted.
    """
    with parsed(_CODE):
        value = cbor.decode_nsm(cose.payload)
        require(isinstance(value, dict), _CODE, "the payload is not a map")
        pcr_field = TPM_PCRS if TPM_PCRS in value else ENCLAVE_PCRS
        value = cbor.fields(dict.fromkeys(_OPTIONAL) | value, {**_KEYS, pcr_field: dict})
    _check_scalars(value)
    _check_pcrs(value[pcr_field])
    _check_certificates(value)
    return UnverifiedDocument(
        **{name: value[name] for name in _KEYS if name != "cabundle"},
        cabundle=tuple(value["cabundle"]),
        pcr_field=pcr_field,
        pcrs=value[pcr_field],
        protected=cose.protected,
        payload=cose.payload,
        signature=cose.signature,
    )


def _check_scalars(value: dict[str, cbor.Value]) -> None:
    between(len(value["module_id"].encode()), 1, _MODULE_ID_MAX, _CODE, "bytes of module_id")
    require(value["digest"] == "SHA384", _CODE, "digest is not SHA384")
    require(value["timestamp"] > 0, _CODE, "timestamp is zero")
    for name in _OPTIONAL:
        if value[name] is not None:
            sized(value[name], 0, limits.DOCUMENT_FIELD_MAX, _CODE, name)


def _check_pcrs(pcrs: dict[cbor.Value, cbor.Value]) -> None:
    between(len(pcrs), 1, limits.PCR_MAX, _CODE, "registers")
    for index, register in pcrs.items():
        between(index, 0, limits.PCR_MAX - 1, _CODE, "index of a register")
        sized(register, limits.PCR_BYTES, limits.PCR_BYTES, _CODE, f"PCR{index}")


def _check_certificates(value: dict[str, cbor.Value]) -> None:
    if not 1 <= len(value["cabundle"]) <= limits.CABUNDLE_MAX:
        raise EvidenceError(_CODE, f"cabundle: not 1 to {limits.CABUNDLE_MAX} certificates")
    for certificate in (value["certificate"], *value["cabundle"]):
        sized(certificate, 1, limits.DOCUMENT_FIELD_MAX, _CODE, "certificate")
