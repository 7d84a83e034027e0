"""What files say, taken apart for people: nothing here is verified.

Each function returns a mapping of JSON values, which the command line prints as JSON or as tables.
Byte strings are lower-case hex.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

from casemate import limits
from casemate.attestation.details import moment
from casemate.attestation.eif import measure_eif
from casemate.attestation.tpm_policy import TpmPolicy, parse_any_policy
from casemate.client.inspection_evidence import configuration, document, evidence, hex_or_none
from casemate.client.inspection_receipt import receipt
from casemate.client.recognise import Kind, recognise
from casemate.errors import CasemateError, Code
from casemate.sealed_data import SealedData
from casemate.sealed_model import ModelReader

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from casemate.attestation import Release, TrustPolicy
    from casemate.attestation.eif import EifImage
    from casemate.attestation.tpm_policy import TpmRelease
    from casemate.tensors import TensorSpec

Facts = dict[str, Any]

_HEAD: Final = limits.EVIDENCE_MAX + 1  # more than any kind that is parsed whole
_UNVERIFIED: Final = "UNVERIFIED: anyone can write this. `casemate verify` judges evidence."
_NOTES: Final = {
    Kind.DOCUMENT: _UNVERIFIED,
    Kind.EVIDENCE: _UNVERIFIED,
    Kind.MODEL: "UNVERIFIED: the signature is not checked. The enclave checks it.",
    Kind.DATA: "UNVERIFIED: only the data key proves who sealed it. The enclave checks it.",
    Kind.RECEIPT: "UNVERIFIED: anyone can write this. `casemate receipt verify` judges it.",
    Kind.IMAGE: "Measured from the file. Its metadata is neither measured nor signed: not shown.",
    Kind.CONFIGURATION: "UNVERIFIED: PCR16 in evidence says which configuration is in force.",
    Kind.POLICY: "What whoever uses this file accepts.",
}


def inspect_file(path: Path) -> Facts:
    """Return what a file says, by its content; raises CasemateError if it is of no known kind."""
    with path.open("rb") as file:
        head = file.read(_HEAD)
        kind = recognise(head)
        if kind is None:
            raise CasemateError(Code.INVALID_ARGUMENT, "not a file of Casemate's")
        if kind is Kind.IMAGE:
            file.seek(0)
            facts = image(measure_eif(file, now=time.time_ns() // 1_000_000))
        elif kind is Kind.RECEIPT:
            facts = receipt(head + file.read(limits.RECEIPT_FILE_MAX))
        else:
            facts = _PARSERS[kind](head)
    return {"kind": str(kind), "note": _NOTES[kind], **facts}


def model(data: bytes) -> Facts:
    """Take a sealed model's header apart (SPEC 8.2)."""
    reader = ModelReader()
    reader.feed(data)
    header = reader.header
    if header is None:
        raise CasemateError(Code.MODEL_MALFORMED, "the file ends within the header")
    callers = header.callers
    return {
        "name": header.name,
        "version": header.version,
        "digest": header.digest.hex(),
        "publisher": header.publisher.hex(),
        "callers": callers if isinstance(callers, str) else [caller.hex() for caller in callers],
        "kms_key": header.kms_key,
        "answer_bucket": header.answer_bucket,
        "runtime": header.runtime,
        "serving": header.serving.as_map(),
        "inputs": [_tensor(spec) for spec in header.inputs],
        "outputs": [_tensor(spec) for spec in header.outputs],
        "files": [
            {"path": entry.path, "bytes": entry.length, "digest": entry.digest.hex()}
            for entry in header.entries
        ],
    }


def data(head: bytes) -> Facts:
    """Take the header of sealed data apart (SPEC 8.6)."""
    sealed = SealedData.parse(head)
    header = sealed.header
    return {
        "digest": sealed.digest.hex(),
        "audience": header.audience,
        "kms_key": header.kms_key,
        "readers": [reader.hex() for reader in header.readers],
        "models": [digest.hex() for digest in header.models],
    }


def _tensor(spec: TensorSpec) -> Facts:
    shape = ", ".join(str(length) if length else "any" for length in spec.shape)
    return {"name": spec.name, "datatype": spec.datatype, "shape": f"[{shape}]"}


def image(measured: EifImage) -> Facts:
    """Show what an enclave image gives when it boots (SPEC 4.4)."""
    signature = measured.signature
    return {
        "architecture": measured.architecture,
        "pcr0": measured.pcr0.hex(),
        "pcr1": measured.pcr1.hex(),
        "pcr2": measured.pcr2.hex(),
        "pcr8": hex_or_none(measured.pcr8),
        "signature": None
        if signature is None
        else {
            "signed_pcr0": signature.holds,
            "signer": signature.subject,
            "not_before": moment(signature.not_before),
            "not_after": moment(signature.not_after),
            "problems": list(signature.problems),
        },
        "sections": [{"section": name, "bytes": size} for name, size in measured.sections],
    }


def policy(data: bytes) -> Facts:
    """Show a policy of either kind (SPEC 12)."""
    parsed = parse_any_policy(data.decode())
    common: Facts = {
        "platform": parsed.platform,
        "maximum_age_seconds": parsed.maximum_age_seconds,
        "roots": [root.hex() for root in sorted(parsed.roots)],
    }
    if isinstance(parsed, TpmPolicy):
        return {**common, "releases": [_release(item) for item in parsed.releases]}
    return {**common, **_trust(parsed)}


def _trust(parsed: TrustPolicy) -> Facts:
    return {
        "audience": parsed.audience,
        "evidence": parsed.evidence,
        "allow_debug": parsed.allow_debug,
        "minimum_release": parsed.minimum_release,
        "releases": [_release(item) for item in parsed.releases],
        "models": [
            {
                "name": item.name,
                "publisher": item.publisher.hex(),
                "digests": "any" if item.digests is None else _joined(sorted(item.digests)),
            }
            for item in parsed.models
        ],
    }


def _release(release: Release | TpmRelease) -> Facts:
    registers = {**release.registers, **release.image}
    named = {f"pcr{index}": registers[index].hex() for index in sorted(registers)}
    number = getattr(release, "number", None)
    return {"name": release.name, **({} if number is None else {"number": number}), **named}


def _joined(values: Sequence[bytes]) -> str:
    return ", ".join(value.hex() for value in values)


_PARSERS: Final[Mapping[Kind, Callable[[bytes], Facts]]] = {
    Kind.DOCUMENT: document,
    Kind.EVIDENCE: evidence,
    Kind.MODEL: model,
    Kind.DATA: data,
    Kind.CONFIGURATION: configuration,
    Kind.POLICY: policy,
}
