"""Judging a stored receipt, offline: the steps of SPEC 14.5, in their order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeVar

from casemate import limits
from casemate.attestation import EvidenceBundle, Step, audience_hash
from casemate.attestation.archive import verify_kept
from casemate.attestation.details import moment
from casemate.envelope.header import ANY_INSTANCE, RequestHeader, parse_request_header
from casemate.errors import CasemateError, Code, ReceiptError
from casemate.wire import digest

if TYPE_CHECKING:
    from collections.abc import Callable

    from casemate.attestation import TrustPolicy, VerifiedEvidence
    from casemate.envelope.receipt import ReceiptStatement, UnverifiedReceipt
    from casemate.receipts.stored import Shown, StoredReceipt

T = TypeVar("T")

STEPS: Final = {
    1: ("layout", Code.RECEIPT_MALFORMED),
    2: ("evidence", Code.RECEIPT_EVIDENCE),
    3: ("instance", Code.RECEIPT_INSTANCE),
    4: ("signature", Code.RECEIPT_SIGNATURE),
    5: ("time", Code.RECEIPT_TIME),
    6: ("request", Code.RECEIPT_REQUEST),
    7: ("model", Code.RECEIPT_MODEL),
    8: ("question", Code.RECEIPT_QUESTION),
    9: ("answer", Code.RECEIPT_ANSWER),
}

# What is under way at the end of an enclave's life is still answered (SPEC 9.7).
_GRACE: Final = int(limits.FINISH_TIMEOUT_S * 1000)


@dataclass(frozen=True, slots=True)
class VerifiedReceipt:
    """A receipt that passed every step of SPEC 14.5.

    ``question`` and ``answer`` are what the receipt was shown to be about; None if the file does
    not show them. ``judged_at`` (ms) is the time as of which the evidence was judged.
    """

    statement: ReceiptStatement
    evidence: VerifiedEvidence
    question: Shown | None
    answer: Shown | None
    judged_at: int


def verify_receipt(
    stored: StoredReceipt,
    policy: TrustPolicy,
    *,
    at: int,
    observe: Callable[[Step], None] | None = None,
    observe_evidence: Callable[[Step], None] | None = None,
) -> VerifiedReceipt:
    """Return the verified receipt, or raise with the code of the first failed step.

    ``at`` (ms) is the time as of which its evidence is judged: one at which the verifier knows
    that the receipt existed, or the receipt's own, ``stored.unverified.statement.time``: that
    believes that no key of the enclave's or of its certificates has leaked since. ``observe`` gets
    the report of each of the nine steps, ``observe_evidence`` those of step 2's eighteen.

    Raises ReceiptError, EvidenceError.
    """
    run = _Run(observe)
    receipt, header, bundle = run(1, lambda: _layout(stored))
    said = receipt.statement
    evidence = run(2, lambda: verify_kept(bundle, policy, now=at, observe=observe_evidence))
    run(3, lambda: _check_instance(said, evidence))
    run(4, lambda: receipt.check_signature(evidence.instance.receipt_key))
    run(5, lambda: _check_time(said, evidence))
    run(6, lambda: _check_request(said, stored.header, header, evidence))
    run(7, lambda: _check_model(said, evidence))
    run.shown(8, stored.question, said.question_hash)
    run.shown(9, stored.answer, said.answer_hash)
    return VerifiedReceipt(said, evidence, stored.question, stored.answer, at)


class _Run:
    """Runs the steps and reports each; the first failure ends it."""

    def __init__(self, observe: Callable[[Step], None] | None) -> None:
        self._observe = observe or (lambda _step: None)

    def __call__(self, number: int, check: Callable[[], T]) -> T:
        name, code = STEPS[number]
        try:
            result = check()
        except CasemateError as error:
            self._observe(Step(number, name, error.code, "failed", error.detail))
            raise
        self._observe(Step(number, name, code, "passed", _DETAILS[number](result)))
        return result

    def shown(self, number: int, part: Shown | None, stated: bytes) -> None:
        """Run step 8 or 9, or report that its part is not shown."""
        name, code = STEPS[number]
        if part is None:
            self._observe(Step(number, name, code, "skipped", f"the {name} is not shown"))
            return

        def check() -> str:
            _require(part.hash(name) == stated, code, f"the receipt is for another {name}")
            return f"the {name} that is shown: {sum(map(len, part.messages)):,} bytes"

        self(number, check)


def _require(holds: bool, code: Code, detail: str) -> None:  # noqa: FBT001 - the condition itself
    if not holds:
        raise ReceiptError(code, detail)


def _layout(stored: StoredReceipt) -> tuple[UnverifiedReceipt, RequestHeader, EvidenceBundle]:
    receipt = stored.unverified
    try:
        header = parse_request_header(stored.header)
        return receipt, header, EvidenceBundle.parse(stored.evidence)
    except CasemateError as error:
        raise ReceiptError(Code.RECEIPT_MALFORMED, f"receipt: {error.detail}") from None


def _check_instance(said: ReceiptStatement, evidence: VerifiedEvidence) -> str:
    same = said.instance_digest == evidence.instance_digest
    _require(same, Code.RECEIPT_INSTANCE, "the evidence is of another instance")
    return f"instance {evidence.instance.instance_id.hex()}"


def _check_time(said: ReceiptStatement, evidence: VerifiedEvidence) -> str:
    begin = evidence.instance.boot_time
    end = begin + evidence.configuration.limits.lifetime + _GRACE
    lived = begin <= said.time <= end
    detail = f"{moment(said.time)} is outside the instance's life, which began at {moment(begin)}"
    _require(lived, Code.RECEIPT_TIME, detail)
    return f"answered at {moment(said.time)}"


def _check_request(
    said: ReceiptStatement, raw: bytes, header: RequestHeader, evidence: VerifiedEvidence
) -> str:
    code = Code.RECEIPT_REQUEST
    _require(digest(raw) == said.request_digest, code, "the receipt is for another request")
    audience = audience_hash(evidence.configuration.audience)
    _require(header.audience == audience, code, "the request was for another audience")
    meant = header.instance_id in (evidence.instance.instance_id, ANY_INSTANCE)
    _require(meant, code, "the request was for another instance")
    return f"request {header.request_id.hex()}, sequence {header.sequence}"


def _check_model(said: ReceiptStatement, evidence: VerifiedEvidence) -> str:
    named = said.model, said.version, said.digest
    loaded = any(
        (entry.name, entry.version, entry.digest) == named
        for entry in evidence.log
        if entry.op == "load" and entry.time <= said.time
    )
    detail = f"the evidence lists no load of {said.model}:{said.version} with this digest"
    _require(loaded, Code.RECEIPT_MODEL, detail)
    return f"{said.model}:{said.version}, digest {said.digest.hex()[:16]}..."


_DETAILS: Final[dict[int, Callable[..., str]]] = {
    1: lambda _parts: "receipt, request header and evidence can be read",
    2: lambda evidence: f"18 steps passed as of {moment(evidence.verified_at)}",
    4: lambda _none: "by the receipt key that the evidence binds",
    **dict.fromkeys((3, 5, 6, 7, 8, 9), str),
}
