"""Stored receipts, taken apart for people: nothing here is verified."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from casemate.attestation import EvidenceBundle
from casemate.attestation.details import moment
from casemate.client.inspection_evidence import evidence
from casemate.envelope.header import KEY_MODE_KMS, parse_request_header
from casemate.errors import CasemateError
from casemate.receipts import StoredReceipt
from casemate.wire import digest

if TYPE_CHECKING:
    from casemate.receipts import Shown

Facts = dict[str, Any]


def receipt(data: bytes) -> Facts:
    """Take a stored receipt apart (SPEC 14); question and answer by their sizes alone."""
    stored = StoredReceipt.parse(data)
    parsed = stored.unverified
    said = parsed.statement
    return {
        "time": moment(said.time),
        "model": said.model,
        "version": said.version,
        "digest": said.digest.hex(),
        "instance": said.instance_digest.hex(),
        "request": said.request_digest.hex(),
        "question_hash": said.question_hash.hex(),
        "answer_hash": said.answer_hash.hex(),
        "question": _shown(stored.question),
        "answer": _shown(stored.answer),
        "signature": parsed.signature.hex(),
        "header": _header(stored.header),
        "evidence": _evidence(stored.evidence),
    }


def _shown(part: Shown | None) -> str:
    return "not shown" if part is None else f"shown, {sum(map(len, part.messages)):,} bytes"


def _header(data: bytes) -> Facts:
    try:
        header = parse_request_header(data)
    except CasemateError as error:
        return {"unreadable": f"{error.code}: {error.detail}"}
    return {
        "digest": digest(data).hex(),
        "key_mode": "kms" if header.key_mode == KEY_MODE_KMS else "hpke",
        "request_id": header.request_id.hex(),
        "sequence": header.sequence,
        "not_before": moment(header.not_before),
        "not_after": moment(header.not_after),
        "instance_id": header.instance_id.hex(),
        "key_commitment": header.key_commitment.hex(),
    }


def _evidence(data: bytes) -> Facts:
    try:
        bundle = EvidenceBundle.parse(data)
    except CasemateError as error:
        return {"unreadable": f"{error.code}: {error.detail}"}
    named = {"instance_digest": digest(bundle.instance_config).hex()}
    facts = evidence(data)
    return named | {name: facts[name] for name in ("platform", "document", "instance", "models")}
