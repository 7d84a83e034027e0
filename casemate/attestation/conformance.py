"""Conformance of a verifier: one case in, one verdict out (SPEC 13.2).

Cases and verdicts are JSON, so that a verifier in another language can be run on the same vectors.
"""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NoReturn

from casemate.attestation.evidence import EvidenceBundle
from casemate.attestation.measured import verify_measured
from casemate.attestation.steps import STEPS
from casemate.attestation.tpm_policy import evidence_policy, parse_any_policy
from casemate.attestation.verify import verify_document, verify_evidence
from casemate.errors import CasemateError, Code

if TYPE_CHECKING:
    from collections.abc import Mapping

_HEX: Final = re.compile(r"([0-9a-f]{2})*")
_SUBJECTS: Final = ("evidence", "document")
_KEYS: Final = frozenset(
    {*_SUBJECTS, *(f"{name}_base64" for name in _SUBJECTS), "policy", "roots", "time", "nonce"}
)
_STEP_OF: Final = {code: number for number, (_, code) in STEPS.items()}


@dataclass(frozen=True, slots=True)
class _Case:
    evidence: bytes | None
    document: bytes | None
    policy: str | None
    roots: frozenset[bytes] | None
    time: int
    nonce: bytes | None


def judge(case: object) -> dict[str, Any]:
    """Return ``verdict``, ``code`` and ``step`` for one case, a parsed JSON object.

    Raises CasemateError (INVALID_ARGUMENT) if the case itself is not as SPEC 13.2 says.
    """
    parsed = _parse(case)
    try:
        _verify(parsed)
    except CasemateError as error:
        return {"verdict": "refused", "code": str(error.code), "step": _STEP_OF.get(error.code)}
    return {"verdict": "verified", "code": None, "step": None}


def _verify(case: _Case) -> None:
    if case.document is not None and case.roots is not None:
        verify_document(case.document, roots=case.roots, now=case.time)
        return
    policy = parse_any_policy(case.policy or "")
    if case.document is not None:
        verify_measured(case.document, policy, nonce=case.nonce, now=case.time)
        return
    bundle = EvidenceBundle.parse(case.evidence or b"")
    verify_evidence(bundle, evidence_policy(policy), nonce=case.nonce, now=case.time)


def _parse(case: object) -> _Case:
    if not isinstance(case, dict) or not _KEYS.issuperset(case):
        _refuse(f"a case is an object with some of {', '.join(sorted(_KEYS))}")
    evidence, document = (_subject(case, name) for name in _SUBJECTS)
    policy, time = case.get("policy"), case.get("time")
    roots = _roots(case.get("roots"))
    if (evidence is None) == (document is None):
        _refuse("either evidence or document")
    if (policy is None) == (roots is None) or (roots is not None and document is None):
        _refuse("either a policy or, for a document, roots")
    if policy is not None and not isinstance(policy, str):
        _refuse("policy: not text")
    if type(time) is not int or time < 0:
        _refuse("time: not milliseconds")
    nonce = None if case.get("nonce") is None else _hex("nonce", case["nonce"])
    return _Case(evidence, document, policy, roots, time, nonce)


def _subject(case: Mapping[str, Any], name: str) -> bytes | None:
    encoded = f"{name}_base64"
    if name in case and encoded in case:
        _refuse(f"{name} twice")
    if name in case:
        return _hex(name, case[name])
    return _base64(encoded, case[encoded]) if encoded in case else None


def _hex(name: str, value: object) -> bytes:
    if not isinstance(value, str) or not _HEX.fullmatch(value):
        _refuse(f"{name}: not lower-case hex")
    return bytes.fromhex(value)


def _base64(name: str, value: object) -> bytes:
    try:
        return base64.b64decode(value if isinstance(value, str) else "!", validate=True)
    except (binascii.Error, ValueError):
        _refuse(f"{name}: not base64")


def _roots(value: object) -> frozenset[bytes] | None:
    if value is None:
        return None
    if not isinstance(value, list) or not value:
        _refuse("roots: not a list of SHA-256 digests")
    return frozenset(_hex("roots", root) for root in value)


def _refuse(detail: str) -> NoReturn:
    raise CasemateError(Code.INVALID_ARGUMENT, detail)
