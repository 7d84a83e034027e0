"""A client of several replicas: the next target, another instance's answer."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import pytest

from casemate.attestation import InstanceConfig
from casemate.client import Client, RetryPolicy
from casemate.client.kms import DataKey
from casemate.client.targets import Targets
from casemate.client.transport import HostConnection
from casemate.envelope.messages import Trailer
from casemate.errors import CasemateError, Code, RequestError
from tests.support import evidence as made
from tests.support.aio import LoopedClient
from tests.support.nitro_pki import NOW
from tests.support.service import Service

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from casemate.attestation import EvidenceBundle, TrustPolicy

X = np.array([1.5, -2.0], np.float32)
DEAD = "127.0.0.1:1"


@pytest.fixture(params=[Client, LoopedClient], ids=["threads", "asyncio"], autouse=True)
def both_kinds(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test here tries the blocking client, then the asynchronous one."""
    monkeypatch.setitem(globals(), "Client", request.param)


@pytest.fixture
def services(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Service, Service]]:
    monkeypatch.setattr("casemate.client.sessions._now", lambda: NOW)
    with Service() as one, Service() as other:
        other.instance = InstanceConfig(b"\x08" * 16, NOW - made.HOUR, "process", made.RECEIPT_KEY)
        yield one, other


def refusal(act: Callable[[], object]) -> Code:
    with pytest.raises(CasemateError) as caught:
        act()
    return caught.value.code


def failing(code: Code) -> Callable[[object], Any]:
    def answer(_: object) -> NoReturn:
        raise RequestError(code, "says the host")

    return answer


def test_no_target_is_refused() -> None:
    assert refusal(lambda: Client([], made.policy())) is Code.INVALID_ARGUMENT


def test_a_dead_target_is_passed_over_and_not_tried_again(
    services: tuple[Service, Service],
) -> None:
    with Client([DEAD, services[0].target], made.policy()) as client:
        assert np.array_equal(client.infer("wdbc", {"x": X}).outputs["x"], X * 2)
        assert [c.target for c in client._parts.get().targets.in_order()] == [
            services[0].target,
            DEAD,
        ]


def test_when_all_are_dead_the_last_one_says_so() -> None:
    with Client([DEAD, "127.0.0.1:2"], made.policy()) as client:
        assert refusal(lambda: client.verify(timeout_s=60)) is Code.HOST_UNREACHABLE


def test_a_model_that_is_out_of_service_at_one_enclave_may_be_asked_at_another(
    services: tuple[Service, Service],
) -> None:
    """SPEC 8.10.4: nothing ran, whatever the call. Where nobody else has it, that is final."""
    one, other = services
    one.trailer = Trailer(Code.UNAVAILABLE)
    with Client([one.target, other.target], made.policy()) as client:
        assert np.array_equal(client.infer("wdbc", {"x": X}).outputs["x"], X * 2)
        other.trailer = Trailer(Code.UNAVAILABLE)
        asked = len(one.requests) + len(other.requests)
        assert refusal(lambda: client.infer("wdbc", {"x": X})) is Code.UNAVAILABLE
        assert len(one.requests) + len(other.requests) <= asked + 3
    with Client(one.target, made.policy()) as client:
        asked = len(one.requests)
        assert refusal(lambda: client.infer("wdbc", {"x": X})) is Code.UNAVAILABLE
        assert len(one.requests) == asked + 1


def test_while_all_begin_or_end_a_call_waits_as_for_a_lone_one(
    services: tuple[Service, Service],
) -> None:
    """One drains, the other is being started: both are asked at once, then after each pause."""
    asked = 0
    make = services[0].on_evidence

    def begins(bundle: EvidenceBundle) -> EvidenceBundle:
        nonlocal asked
        asked += 1
        if asked <= serves_after:
            raise RequestError(Code.UNAVAILABLE, "says the host")
        return make(bundle)

    services[0].on_evidence = begins
    services[1].on_evidence = failing(Code.UNAVAILABLE)
    targets = [service.target for service in services]
    at_once, waits = 3, RetryPolicy().attempts
    retry = RetryPolicy(first_s=0.01)
    serves_after = at_once + waits - 1
    with Client(targets, made.policy(), retry=retry) as client:
        assert np.array_equal(client.infer("wdbc", {"x": X}).outputs["x"], X * 2)
    asked, serves_after = 0, 1000
    with Client(targets, made.policy(), retry=retry) as client:
        assert refusal(lambda: client.infer("wdbc", {"x": X})) is Code.UNAVAILABLE
    assert asked == at_once + waits
    asked = 0
    with Client(targets, made.policy(), retry=RetryPolicy(attempts=0)) as client:
        assert refusal(lambda: client.infer("wdbc", {"x": X})) is Code.UNAVAILABLE
    assert asked == 1


@pytest.mark.parametrize("code", [Code.UNAVAILABLE, Code.UNKNOWN_KEY, Code.STALE_SESSION])
def test_a_repeatable_call_goes_on_elsewhere(services: tuple[Service, Service], code: Code) -> None:
    one, other = services
    one.on_request = failing(code)
    with Client([one.target, other.target], made.policy()) as client:
        if code is Code.UNAVAILABLE:
            result = client.infer("wdbc", {"x": X}, repeatable=True)
            assert result.evidence.instance.instance_id == b"\x08" * 16
            assert len(one.requests) == 1
        else:  # the session is gone, not the target
            assert refusal(lambda: client.infer("wdbc", {"x": X}, repeatable=True)) is code
            assert len(one.requests) == 3


def test_a_call_that_is_not_repeatable_is_sealed_once(services: tuple[Service, Service]) -> None:
    one, other = services
    one.on_request = failing(Code.UNAVAILABLE)
    with Client([one.target, other.target], made.policy()) as client:
        assert refusal(lambda: client.infer("wdbc", {"x": X})) is Code.UNAVAILABLE
        assert (len(set(one.requests)), len(other.requests)) == (1, 0)
        client.infer("wdbc", {"x": X})  # the next one goes elsewhere
    assert (len(set(one.requests)), len(other.requests)) == (1, 1)


def test_a_refused_request_is_not_tried_elsewhere(services: tuple[Service, Service]) -> None:
    one, other = services
    one.on_request = failing(Code.TOO_LARGE)
    with Client([one.target, other.target], made.policy()) as client:
        assert refusal(lambda: client.infer("wdbc", {"x": X}, repeatable=True)) is Code.TOO_LARGE
    assert other.requests == []


def test_leaving_is_not_counted_twice() -> None:
    names = ["127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:2", "127.0.0.1:3"]
    targets = Targets(names, HostConnection)
    first = targets.in_order()[0]
    threads = [threading.Thread(target=targets.leave, args=(first,)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [c.target[-1] for c in targets.in_order()] == ["2", "3", "1"]
    for connection in targets.in_order():
        connection.close()


class OneKey:
    def generate(self, policy: TrustPolicy) -> DataKey:
        arn = "arn:aws:kms:eu-central-1:111122223333:key/01234567-89ab-cdef-0123-456789abcdef"
        return DataKey(arn, b"blob", b"k" * 32)


def test_any_replica_needs_keys_that_every_replica_can_get() -> None:
    refused = refusal(lambda: Client(DEAD, made.policy(), any_replica=True))
    assert refused is Code.INVALID_ARGUMENT


def swapped(one: Service, other: Service) -> None:
    """Let ``one`` pass requests on to ``other`` and still show its own evidence."""
    for service in (one, other):
        service.data_key = b"k" * 32
    one.on_request = other.answer


def test_the_answer_of_a_replica_is_released_once_its_evidence_passed(
    services: tuple[Service, Service],
) -> None:
    one, other = services
    swapped(one, other)
    targets = [one.target, other.target]
    with Client(targets, made.policy(), data_keys=OneKey(), any_replica=True) as client:
        for _ in range(3):
            result = client.infer("wdbc", {"x": X})
            assert result.evidence.instance.instance_id == b"\x08" * 16
    assert other.evidence_calls == 1


def test_an_answer_without_evidence_is_not_released(services: tuple[Service, Service]) -> None:
    one, other = services
    swapped(one, other)
    with Client(one.target, made.policy(), data_keys=OneKey(), any_replica=True) as client:
        assert refusal(lambda: client.infer("wdbc", {"x": X})) is Code.ANSWER_INSTANCE_UNKNOWN


def test_an_answer_with_evidence_that_fails_is_not_released(
    services: tuple[Service, Service],
) -> None:
    one, other = services
    swapped(one, other)
    other.on_evidence = lambda _: other.bundle(b"n" * 32)
    targets = [one.target, other.target]
    with Client(targets, made.policy(), data_keys=OneKey(), any_replica=True) as client:
        assert refusal(lambda: client.infer("wdbc", {"x": X})) is Code.EVIDENCE_NONCE


def test_without_any_replica_another_instance_is_refused(
    services: tuple[Service, Service],
) -> None:
    one, other = services
    swapped(one, other)
    with Client([one.target, other.target], made.policy(), data_keys=OneKey()) as client:
        assert refusal(lambda: client.infer("wdbc", {"x": X})) is Code.ANSWER_INSTANCE_UNKNOWN


def test_evidence_of_another_genuine_instance_releases_nothing(
    services: tuple[Service, Service],
) -> None:
    one, other = services
    swapped(one, other)
    one.checks_instance = False  # it shows its own, whatever it is asked for
    with Client(one.target, made.policy(), data_keys=OneKey(), any_replica=True) as client:
        assert refusal(lambda: client.infer("wdbc", {"x": X})) is Code.ANSWER_INSTANCE_UNKNOWN
