"""The numbered steps of SPEC 3.8, and the report that each of them makes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, ParamSpec, TypeVar

from casemate.attestation.details import detail as passed_detail
from casemate.errors import Code, EvidenceError

if TYPE_CHECKING:
    from collections.abc import Callable

P = ParamSpec("P")
T = TypeVar("T")

Outcome = Literal["passed", "failed", "skipped"]

STEPS: Final = {
    1: ("size", Code.EVIDENCE_SIZE),
    2: ("cose", Code.EVIDENCE_COSE),
    3: ("algorithm", Code.EVIDENCE_ALGORITHM),
    4: ("payload", Code.EVIDENCE_PAYLOAD),
    5: ("platform", Code.EVIDENCE_PLATFORM),
    6: ("root", Code.EVIDENCE_ROOT),
    7: ("chain", Code.EVIDENCE_CHAIN),
    8: ("signature", Code.EVIDENCE_SIGNATURE),
    9: ("age", Code.EVIDENCE_AGE),
    10: ("nonce", Code.EVIDENCE_NONCE),
    11: ("debug", Code.EVIDENCE_DEBUG),
    12: ("measurements", Code.EVIDENCE_MEASUREMENTS),
    13: ("configuration", Code.EVIDENCE_CONFIGURATION),
    14: ("binding", Code.EVIDENCE_BINDING),
    15: ("keys", Code.EVIDENCE_KEYS),
    16: ("instance", Code.EVIDENCE_INSTANCE),
    17: ("audience", Code.EVIDENCE_AUDIENCE),
    18: ("models", Code.EVIDENCE_MODELS),
}


@dataclass(frozen=True, slots=True)
class Step:
    """The report of one step; ``detail`` says in a line what was found, what differs, or why not.

    It may quote the evidence: whoever prints it escapes it.
    """

    number: int
    name: str
    code: Code
    outcome: Outcome
    detail: str = ""


class Run:
    """Runs the steps in their order and reports each; the first failure ends it."""

    def __init__(self, observe: Callable[[Step], None] | None = None) -> None:
        self._observe = observe

    def __call__(self, number: int, check: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run one check; raises its EvidenceError with the code of this step."""
        try:
            result = check(*args, **kwargs)
        except EvidenceError as error:
            self._report(number, "failed", error.detail)
            raise
        if self._observe is not None:
            self._report(number, "passed", passed_detail(number, result, args))
        return result

    def skip(self, number: int, detail: str) -> None:
        """Report a step that the policy leaves out."""
        self._report(number, "skipped", detail)

    def _report(self, number: int, outcome: Outcome, detail: str = "") -> None:
        if self._observe is not None:
            name, code = STEPS[number]
            self._observe(Step(number, name, code, outcome, detail))
