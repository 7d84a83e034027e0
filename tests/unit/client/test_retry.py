"""Which failures a client answers by asking again (SPEC 11.5), against a service over gRPC."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from casemate import limits
from casemate.client import Client, RetryPolicy
from casemate.client.kms import DataKey
from casemate.client.retry import NOTHING_RAN, SESSION_GONE, TRANSIENT, Again, Attempts
from casemate.envelope.messages import SEALED_STATUSES, Trailer
from casemate.errors import CLEAR_CODES, CasemateError, Code, RequestError, SealedStatusError
from tests.support import evidence as made
from tests.support.aio import LoopedClient
from tests.support.nitro_pki import NOW
from tests.support.service import Service

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from casemate.attestation import EvidenceBundle, TrustPolicy

X = np.array([1.5, -2.0], np.float32)
QUICK = RetryPolicy(first_s=0.001)


@pytest.fixture(params=[Client, LoopedClient], ids=["threads", "asyncio"])
def kind(request: pytest.FixtureRequest) -> type[Client]:
    chosen: type[Client] = request.param
    return chosen


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    monkeypatch.setattr("casemate.client.sessions._now", lambda: NOW)
    with Service() as running:
        yield running


def refusal(act: Callable[[], object]) -> CasemateError:
    with pytest.raises(CasemateError) as caught:
        act()
    return caught.value


def failing(service: Service, code: Code, times: int, hint_s: float | None = None) -> None:
    """Let the host fail the next ``times`` requests; it runs the following ones."""
    left = [times]

    def answer(request: bytes) -> bytes:
        if left[0]:
            left[0] -= 1
            raise RequestError(code, "says the host", hint_s)
        return service.answer(request)

    service.on_request = answer


@pytest.mark.parametrize("code", sorted(TRANSIENT - {Code.HOST_UNREACHABLE}))
def test_what_may_pass_is_sent_again_as_it_was(
    kind: type[Client], service: Service, code: Code
) -> None:
    failing(service, code, times=3)
    with kind(service.target, made.policy(), retry=QUICK) as client:
        assert np.array_equal(client.infer("wdbc", {"x": X}).outputs["x"], X * 2)
    assert len(service.requests) == 4
    assert len(set(service.requests)) == 1
    assert service.evidence_calls == 1


@pytest.mark.parametrize(
    "code", sorted(CLEAR_CODES - TRANSIENT - SESSION_GONE - {Code.UNAVAILABLE})
)
def test_what_will_not_pass_is_not_sent_again(
    kind: type[Client], service: Service, code: Code
) -> None:
    failing(service, code, times=9)
    with kind(service.target, made.policy(), retry=QUICK) as client:
        assert refusal(lambda: client.infer("wdbc", {"x": X})).code is code
    assert len(service.requests) == 1


def test_patience_ends(kind: type[Client], service: Service) -> None:
    failing(service, Code.OVERLOADED, times=99)
    with kind(service.target, made.policy(), retry=QUICK) as client:
        assert refusal(lambda: client.infer("wdbc", {"x": X})).code is Code.OVERLOADED
    assert len(service.requests) == 1 + QUICK.attempts


def test_without_patience_nothing_is_sent_twice(kind: type[Client], service: Service) -> None:
    failing(service, Code.OVERLOADED, times=1)
    with kind(service.target, made.policy(), retry=RetryPolicy(attempts=0)) as client:
        assert refusal(lambda: client.infer("wdbc", {"x": X})).code is Code.OVERLOADED
    assert len(service.requests) == 1


def test_no_wait_passes_the_deadline(
    kind: type[Client], service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "RETRY_HINT_MAX_S", 600.0)
    failing(service, Code.OVERLOADED, times=9, hint_s=600)
    with kind(service.target, made.policy(), retry=QUICK) as client:
        client.verify()
        started = time.monotonic()
        error = refusal(lambda: client.infer("wdbc", {"x": X}, timeout_s=80))
    assert error.code is Code.OVERLOADED
    assert time.monotonic() - started < 60


def test_a_hosts_wish_is_heard_up_to_a_bound(kind: type[Client], service: Service) -> None:
    failing(service, Code.OVERLOADED, times=1, hint_s=0.4)
    with kind(service.target, made.policy(), retry=QUICK) as client:
        client.verify()
        started = time.monotonic()
        client.infer("wdbc", {"x": X})
    assert time.monotonic() - started >= 0.4
    assert RetryPolicy().pause(0, 1e9) == 5.0


@pytest.mark.parametrize("ran", [True, False], ids=["it ran", "it did not"])
def test_an_answer_that_was_lost_is_not_computed_twice(
    kind: type[Client], service: Service, ran: bool
) -> None:
    """The host loses an answer. The identical bytes are a replay; the outcome is unknown."""

    def lose(request: bytes) -> bytes:
        if ran:
            service.answer(request)
        service.on_request = replayed if ran else service.answer
        raise RequestError(Code.UNAVAILABLE, "says the host")

    def replayed(_: bytes) -> bytes:
        raise RequestError(Code.REPLAYED, "seen before")

    service.on_request = lose
    with kind(service.target, made.policy(), retry=QUICK) as client:
        if ran:
            error = refusal(lambda: client.infer("wdbc", {"x": X}))
            assert error.code is Code.REPLAYED
            assert "whether it ran is unknown" in error.detail
        else:
            client.infer("wdbc", {"x": X})
    assert len(set(service.requests)) == 1


def test_a_repeatable_call_goes_on_after_a_lost_answer(
    kind: type[Client], service: Service
) -> None:
    codes = iter([Code.UNAVAILABLE, Code.REPLAYED])

    def lose(request: bytes) -> bytes:
        for code in codes:
            raise RequestError(code, "says the host")
        return service.answer(request)

    service.on_request = lose
    with kind(service.target, made.policy(), retry=QUICK) as client:
        client.infer("wdbc", {"x": X}, repeatable=True)
    first, second, third = service.requests
    assert first == second != third


@pytest.mark.parametrize("code", sorted(NOTHING_RAN))
def test_what_the_enclave_says_did_not_run_is_sealed_anew(
    kind: type[Client], service: Service, code: Code
) -> None:
    good = service.trailer

    def busy(request: bytes) -> bytes:
        service.trailer = Trailer(code)
        try:
            return service.answer(request)
        finally:
            service.trailer, service.on_request = good, service.answer

    service.on_request = busy
    with kind(service.target, made.policy(), retry=QUICK) as client:
        assert np.array_equal(client.infer("wdbc", {"x": X}).outputs["x"], X * 2)
    assert len(set(service.requests)) == 2
    assert service.evidence_calls == (2 if code is Code.UNKNOWN_MODEL else 1)


@pytest.mark.parametrize("code", sorted(SEALED_STATUSES - NOTHING_RAN - {Code.OK}))
def test_what_the_enclave_refuses_is_final(
    kind: type[Client], service: Service, code: Code
) -> None:
    service.trailer = Trailer(code)
    with kind(service.target, made.policy(), retry=QUICK) as client:
        error = refusal(lambda: client.infer("wdbc", {"x": X}, repeatable=True))
    assert isinstance(error, SealedStatusError)
    assert error.code is code
    assert len(service.requests) == 1


class OneKey:
    def generate(self, policy: TrustPolicy) -> DataKey:
        arn = "arn:aws:kms:eu-central-1:111122223333:key/01234567-89ab-cdef-0123-456789abcdef"
        return DataKey(arn, b"blob", b"k" * 32)


@pytest.mark.parametrize("repeatable", [True, False])
def test_where_any_replica_may_run_it_only_what_may_run_twice_is_sent_twice(
    kind: type[Client], service: Service, repeatable: bool
) -> None:
    service.data_key = b"k" * 32
    failing(service, Code.OVERLOADED, times=1)
    options: dict[str, Any] = {"data_keys": OneKey(), "any_replica": True, "retry": QUICK}
    with kind(service.target, made.policy(), **options) as client:
        if repeatable:
            client.infer("wdbc", {"x": X}, repeatable=True)
        else:
            assert refusal(lambda: client.infer("wdbc", {"x": X})).code is Code.OVERLOADED
    assert len(service.requests) == 1 + repeatable


def evidence_failing(service: Service, code: Code, times: int) -> None:
    """Let the host fail the next ``times`` calls for evidence."""
    make, left = service.on_evidence, [times]

    def busy(bundle: EvidenceBundle) -> EvidenceBundle:
        if left[0]:
            left[0] -= 1
            raise RequestError(code, "says the host")
        return make(bundle)

    service.on_evidence = busy


def test_evidence_is_asked_for_again(kind: type[Client], service: Service) -> None:
    evidence_failing(service, Code.OVERLOADED, times=2)
    with kind(service.target, made.policy(), retry=QUICK) as client:
        client.infer("wdbc", {"x": X})
    assert service.evidence_calls == 3
    assert len(service.requests) == 1


def test_verifying_takes_its_turn(kind: type[Client], service: Service) -> None:
    evidence_failing(service, Code.OVERLOADED, times=QUICK.attempts + 2)
    with kind(service.target, made.policy(), retry=QUICK) as client:
        client.verify()
    assert service.evidence_calls == QUICK.attempts + 3


def test_verifying_takes_turns_no_longer_than_asked(kind: type[Client], service: Service) -> None:
    def busy(_: EvidenceBundle) -> EvidenceBundle:
        hint_s = limits.RETRY_HINT_MAX_S if service.evidence_calls > 1 else None
        raise RequestError(Code.OVERLOADED, "says the host", hint_s)

    service.on_evidence = busy
    with kind(service.target, made.policy(), retry=QUICK) as client:
        patience_s = limits.RETRY_HINT_MAX_S - 0.5
        assert refusal(lambda: client.verify(timeout_s=patience_s)).code is Code.OVERLOADED
    assert service.evidence_calls == 2


@pytest.mark.parametrize(
    ("code", "attempts"),
    [(Code.UNAVAILABLE, 4), (Code.NOT_CONFIGURED, 4), (Code.OVERLOADED, 0)],
)
def test_verifying_says_at_once_what_else_is_wrong(
    kind: type[Client], service: Service, code: Code, attempts: int
) -> None:
    evidence_failing(service, code, times=1)
    with kind(service.target, made.policy(), retry=RetryPolicy(attempts=attempts)) as client:
        assert refusal(client.verify).code is code
    assert service.evidence_calls == 1


def test_waits_grow_and_are_spread() -> None:
    policy = RetryPolicy(attempts=9, first_s=0.1, longest_s=1.0)
    for repetition in range(9):
        bound = min(1.0, 0.1 * 2**repetition)
        waits = [policy.pause(repetition, None) for _ in range(50)]
        assert bound / 2 <= min(waits) < max(waits) <= bound


def test_the_table_names_every_clear_code() -> None:
    """SPEC 11.5: what is in neither row is final."""
    outcomes: dict[tuple[Again | None, bool], set[Code]] = {}
    for repeatable in (False, True):
        for code in CLEAR_CODES | {Code.HOST_UNREACHABLE}:
            attempts = Attempts(QUICK, repeatable=repeatable, bound=True, targets=1)
            try:
                again: Again | None = attempts.after(RequestError(code, ""), sent=True)[0]
            except RequestError:
                again = None
            outcomes.setdefault((again, repeatable), set()).add(code)
    assert outcomes[Again.SAME, False] == outcomes[Again.SAME, True] == TRANSIENT
    assert (Again.RESEALED, False) not in outcomes
    assert outcomes[Again.RESEALED, True] == SESSION_GONE | {Code.REPLAYED}
