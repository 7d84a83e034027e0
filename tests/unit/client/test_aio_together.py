"""Questions that tasks ask at the same time share requests (SPEC 5.10)."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from casemate.client import AsyncClient, RetryPolicy
from casemate.envelope import questions
from casemate.errors import CasemateError, Code, EnvelopeError, RequestError, SealedStatusError
from casemate.tensors import to_response
from tests.support import evidence as made
from tests.support.nitro_pki import NOW
from tests.support.service import Service

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from casemate.client import Inference

QUICK = RetryPolicy(first_s=0.001, longest_s=0.01)


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    monkeypatch.setattr("casemate.client.sessions._now", lambda: NOW)
    with Service() as running:
        running.trailer = running.trailer._replace(questions=32)
        yield running


def row(number: float, length: int = 3) -> dict[str, np.ndarray]:
    return {"x": np.full(length, number, np.float32)}


async def ask(client: AsyncClient, number: float, **how: Any) -> bool:  # noqa: ANN401 - infer's
    answer = await client.infer("wdbc", row(number), **how)
    return bool(np.array_equal(answer.outputs["x"], row(number * 2)["x"]))


def run(
    service: Service,
    work: Callable[[AsyncClient], Awaitable[None]],
    **changes: Any,  # noqa: ANN401 - the client's
) -> list[int]:
    """Return how many questions each request held, once the client had its first answer."""

    async def all_of_it() -> None:
        async with AsyncClient(service.target, made.policy(), retry=QUICK, **changes) as client:
            assert await ask(client, 0)
            service.questions.clear()
            await work(client)

    asyncio.run(all_of_it())
    return service.questions


def many(count: int, **how: Any) -> Callable[[AsyncClient], Awaitable[None]]:  # noqa: ANN401 - as above
    async def work(client: AsyncClient) -> None:
        assert all(await asyncio.gather(*(ask(client, number, **how) for number in range(count))))

    return work


def test_what_is_asked_at_once_shares_requests_of_at_most_half(service: Service) -> None:
    asked = run(service, many(33))
    assert sorted(asked) == [1, 16, 16]


def test_two_are_asked_each_by_itself(service: Service) -> None:
    """One is under way while the other is made."""
    assert run(service, many(2)) == [1, 1]


def test_one_alone_is_asked_by_itself(service: Service) -> None:
    async def work(client: AsyncClient) -> None:
        for number in range(3):
            assert await ask(client, number)

    assert run(service, work) == [1, 1, 1]


@pytest.mark.parametrize(("takes", "most"), [(1, 1), (None, 1), (4, 4)])
def test_the_enclave_says_how_many(service: Service, takes: int | None, most: int) -> None:
    service.trailer = service.trailer._replace(questions=takes)
    asked = run(service, many(20))
    assert max(asked) == most
    assert sum(asked) == 20


def test_before_an_answer_has_said_so_each_is_asked_by_itself(service: Service) -> None:
    async def work() -> None:
        async with AsyncClient(service.target, made.policy()) as client:
            assert all(await asyncio.gather(*(ask(client, number) for number in range(5))))

    asyncio.run(work())
    assert service.questions == [1] * 5


def test_it_can_be_turned_off(service: Service) -> None:
    assert run(service, many(10), together=False) == [1] * 10


def test_receipts_are_for_one_question_each(service: Service) -> None:
    assert run(service, many(10, receipt=True)) == [1] * 10


def test_long_questions_are_asked_each_by_itself(service: Service) -> None:
    async def work(client: AsyncClient) -> None:
        long = [row(number, 8000) for number in range(6)]
        answers = await asyncio.gather(*(client.infer("wdbc", inputs) for inputs in long))
        for inputs, answer in zip(long, answers, strict=True):
            assert np.array_equal(answer.outputs["x"], inputs["x"] * 2)

    assert run(service, work) == [1] * 6


def test_questions_with_long_answers_are_asked_each_by_itself(service: Service) -> None:
    """Whatever the enclave says: its answer could be too long for anybody's."""
    service.message = lambda _: to_response({"x": np.zeros(20_000, np.float32)}, "wdbc", 2)

    async def work(client: AsyncClient) -> None:
        await asyncio.gather(*(client.infer("wdbc", row(number)) for number in range(6)))

    async def all_of_it() -> None:
        async with AsyncClient(service.target, made.policy()) as client:
            await client.infer("wdbc", row(0))
            await work(client)

    asyncio.run(all_of_it())
    assert service.questions == [1] * 7


def test_only_what_is_asked_alike_shares_a_request(service: Service) -> None:
    async def work(client: AsyncClient) -> None:
        different: tuple[dict[str, Any], ...] = (
            {},
            {"timeout_s": 33},
            {"repeatable": True},
            {"version": 2},
        )
        asking = [ask(client, n, **how) for how in different for n in range(4)]
        assert all(await asyncio.gather(*asking))

    assert sorted(run(service, work)) == [1, 3, 4, 4, 4]


def spoilt(parts: list[bytes], *, at: int, part: bytes) -> list[bytes]:
    parts[at] = part
    return parts


def refusal(code: Code) -> bytes:
    return b"".join(questions.refused(code, "said the enclave"))


async def outcomes(client: AsyncClient, count: int) -> list[bool | BaseException]:
    asking = (ask(client, number) for number in range(count))
    return await asyncio.gather(*asking, return_exceptions=True)


@pytest.mark.parametrize(
    ("part", "kind", "code"),
    [
        (refusal(Code.INVALID_INPUT), SealedStatusError, Code.INVALID_INPUT),
        (refusal(Code.MODEL_FAILED), SealedStatusError, Code.MODEL_FAILED),
        (b"\2", EnvelopeError, Code.ANSWER_OPEN_FAILED),
    ],
)
def test_a_refused_question_fails_alone(
    service: Service, part: bytes, kind: type[CasemateError], code: Code
) -> None:
    async def work(client: AsyncClient) -> None:
        service.parts = lambda parts: spoilt(parts, at=1, part=part)
        came = await outcomes(client, 8)
        failed = [error for error in came if isinstance(error, BaseException)]
        assert [type(error) for error in failed] == [kind] * len(failed)
        assert [error.code for error in failed if isinstance(error, CasemateError)] == [code] * 2
        assert came.count(True) == 6

    assert sorted(run(service, work)) == [1, 3, 4]


def test_one_that_did_not_run_is_asked_again_by_itself(service: Service) -> None:
    async def work(client: AsyncClient) -> None:
        service.parts = lambda parts: spoilt(parts, at=0, part=refusal(Code.OVERLOADED))
        assert await outcomes(client, 8) == [True] * 8

    assert sorted(run(service, work)) == [1, 1, 1, 3, 4]


def test_it_is_asked_again_as_often_as_any_other(service: Service) -> None:
    async def work(client: AsyncClient) -> None:
        service.trailer = service.trailer._replace(status=Code.OVERLOADED)
        came = await outcomes(client, 4)
        assert {type(error) for error in came} == {SealedStatusError}
        assert len({id(error) for error in came}) == 4

    attempts = 1 + QUICK.attempts
    assert sum(run(service, work)) == 4 * attempts


def test_a_host_that_fails_fails_all_and_each_has_an_error_of_its_own(service: Service) -> None:
    def failing(_request: bytes) -> bytes:
        raise CasemateError(Code.INTERNAL, "no")

    async def work(client: AsyncClient) -> None:
        service.on_request = failing
        came = await outcomes(client, 8)
        assert [(type(e), getattr(e, "code", None)) for e in came] == [
            (RequestError, Code.INTERNAL)
        ] * 8
        assert len({id(error) for error in came}) == 8

    run(service, work)


def test_identical_bytes_are_sent_again_for_all(service: Service) -> None:
    """Sent again, each question of a request runs at most once, as its request does."""
    failures = threading.Semaphore(1)

    def once(request: bytes) -> bytes:
        if failures.acquire(blocking=False):
            raise CasemateError(Code.UNAVAILABLE, "later")
        return service.answer(request)

    async def work(client: AsyncClient) -> None:
        service.requests.clear()
        service.on_request = once
        assert await outcomes(client, 8) == [True] * 8

    run(service, work)
    assert len(service.requests) == 4
    assert len(set(service.requests)) == 3


def test_a_task_that_leaves_takes_nobody_with_it(service: Service) -> None:
    entered, go_on = threading.Event(), threading.Event()

    def held(request: bytes) -> bytes:
        entered.set()
        go_on.wait(60)
        return service.answer(request)

    async def work(client: AsyncClient) -> None:
        service.on_request = held
        tasks = [asyncio.ensure_future(ask(client, number)) for number in range(8)]
        await asyncio.to_thread(entered.wait, 60)
        for task in tasks[1:4]:
            task.cancel()
        await asyncio.sleep(0.05)
        go_on.set()
        came = await asyncio.gather(*tasks, return_exceptions=True)
        assert [outcome is True for outcome in came] == [True] + [False] * 3 + [True] * 4
        assert all(isinstance(outcome, asyncio.CancelledError) for outcome in came[1:4])

    run(service, work)


def test_what_all_have_left_is_cancelled(service: Service) -> None:
    async def work(client: AsyncClient) -> None:
        entered = threading.Semaphore(0)
        go_on = threading.Event()

        def held(request: bytes) -> bytes:
            entered.release()
            go_on.wait(60)
            return service.answer(request)

        service.on_request = held
        before = asyncio.all_tasks()
        tasks = [asyncio.ensure_future(ask(client, number, timeout_s=500)) for number in range(7)]
        for _ in range(3):
            await asyncio.to_thread(entered.acquire, timeout=60)
        requests = asyncio.all_tasks() - before - {*tasks}
        assert len(requests) >= 2
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        _, waiting = await asyncio.wait(requests, timeout=60)
        assert not waiting
        go_on.set()

    run(service, work)


def test_one_that_left_before_it_was_sent_is_not_asked(service: Service) -> None:
    async def work(client: AsyncClient) -> None:
        tasks = [asyncio.ensure_future(ask(client, number)) for number in range(9)]
        await asyncio.sleep(0)  # now each has asked, and nothing was sent
        for task in tasks[1:4]:
            task.cancel()
        came = await asyncio.gather(*tasks, return_exceptions=True)
        assert [outcome is True for outcome in came] == [True] + [False] * 3 + [True] * 5

    assert sum(run(service, work)) == 6


@pytest.mark.parametrize("timeout_s", [float("nan"), -1, "soon", []])
def test_a_time_out_that_is_none_is_refused_by_name(service: Service, timeout_s: object) -> None:
    async def work(client: AsyncClient) -> None:
        asking = (ask(client, number, timeout_s=timeout_s) for number in range(4))
        good, *came = await asyncio.gather(ask(client, 9), *asking, return_exceptions=True)
        assert good is True
        assert [getattr(error, "code", error) for error in came] == [Code.INVALID_ARGUMENT] * 4

    assert run(service, work) == [1]


def test_another_model_than_was_verified_answers_nobody(service: Service) -> None:
    async def work(client: AsyncClient) -> None:
        service.trailer = service.trailer._replace(digest=b"\xbb" * 48)
        came = await outcomes(client, 8)
        assert {getattr(error, "code", None) for error in came} == {Code.DIGEST_MISMATCH}

    run(service, work)


def test_answers_are_for_whom_they_were_asked(service: Service) -> None:
    """Over many turns of the loop, with tasks that come and go."""

    async def work(client: AsyncClient) -> None:
        async def one(number: int) -> list[Inference]:
            return [await client.infer("wdbc", row(number * 100 + turn)) for turn in range(5)]

        came = await asyncio.gather(*map(one, range(12)))
        for number, answers in enumerate(came):
            first = [float(answer.outputs["x"][0]) for answer in answers]
            assert first == [2.0 * (number * 100 + turn) for turn in range(5)]

    assert sum(run(service, work)) == 60
