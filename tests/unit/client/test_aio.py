"""What is `AsyncClient`'s alone: tasks that share a session, cancellation, a loop that goes on."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from casemate.client import AsyncClient
from casemate.errors import CasemateError, Code, RequestError
from tests.support import evidence as made
from tests.support.nitro_pki import NOW
from tests.support.service import Service

if TYPE_CHECKING:
    from collections.abc import Iterator

    from casemate.attestation import EvidenceBundle

X = np.array([1.5, -2.0], np.float32)


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    monkeypatch.setattr("casemate.client.sessions._now", lambda: NOW)
    with Service() as running:
        yield running


def test_tasks_share_one_session(service: Service) -> None:
    async def work() -> None:
        async with AsyncClient(service.target, made.policy()) as client:

            async def ask(number: int) -> bool:
                x = np.full(3, number, np.float32)
                answer = await client.infer("wdbc", {"x": x})
                return bool(np.array_equal(answer.outputs["x"], x * 2))

            assert all(await asyncio.gather(*map(ask, range(20))))

    asyncio.run(work())
    assert service.evidence_calls == 1
    assert len(set(service.requests)) == 20


def test_a_cancelled_task_cancels_its_call_and_holds_up_nobody(service: Service) -> None:
    entered, released = threading.Event(), threading.Event()

    def slow(bundle: EvidenceBundle) -> EvidenceBundle:
        entered.set()
        released.wait(60)
        service.on_evidence = lambda same: same
        return bundle

    service.on_evidence = slow

    async def work() -> None:
        async with AsyncClient(service.target, made.policy()) as client:
            first = asyncio.create_task(client.infer("wdbc", {"x": X}))
            await asyncio.to_thread(entered.wait, 60)
            first.cancel()
            with pytest.raises(asyncio.CancelledError):
                await first
            released.set()
            # The lock that it held while it verified is free again.
            answer = await client.infer("wdbc", {"x": X}, timeout_s=60)
            assert np.array_equal(answer.outputs["x"], X * 2)

    asyncio.run(work())


def test_the_loop_goes_on_while_a_call_waits(service: Service) -> None:
    turned = threading.Event()

    def slow(request: bytes) -> bytes:
        turned.wait(60)
        return service.answer(request)

    service.on_request = slow

    async def work() -> int:
        async with AsyncClient(service.target, made.policy()) as client:
            call = asyncio.create_task(client.infer("wdbc", {"x": X}))
            turns = 0
            while not call.done():
                await asyncio.sleep(0.01)
                turns += 1
                if turns == 10:
                    turned.set()
            await call
        return turns

    assert asyncio.run(work()) >= 10


def test_a_call_waits_for_anothers_verification_no_longer_than_its_deadline(
    service: Service,
) -> None:
    entered, released = threading.Event(), threading.Event()

    def slow(bundle: EvidenceBundle) -> EvidenceBundle:
        entered.set()
        released.wait(60)
        return bundle

    service.on_evidence = slow

    async def work() -> None:
        async with AsyncClient(service.target, made.policy()) as client:
            other = asyncio.create_task(client.infer("wdbc", {"x": X}, timeout_s=90))
            await asyncio.to_thread(entered.wait, 60)
            with pytest.raises(RequestError) as late:
                await client.infer("wdbc", {"x": X}, timeout_s=0.2)
            assert late.value.code is Code.DEADLINE_EXCEEDED
            released.set()
            await other

    asyncio.run(work())


def test_receipts_come_with_answers(service: Service) -> None:
    async def work() -> None:
        async with AsyncClient(service.target, made.policy()) as client:
            assert (await client.infer("wdbc", {"x": X})).receipt is None
            kept = (await client.infer("wdbc", {"x": X}, receipt=True)).receipt
            assert kept is not None
            assert kept.unverified.statement.model == "wdbc"

    asyncio.run(work())


def test_only_large_requests_and_text_need_a_thread(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = 0
    to_thread = asyncio.to_thread

    async def counted(*arguments: Any, **options: Any) -> Any:  # noqa: ANN401 - passed on
        nonlocal threads
        threads += 1
        return await to_thread(*arguments, **options)

    async def work() -> list[int]:
        async with AsyncClient(service.target, made.policy()) as client:
            await client.infer("wdbc", {"x": X})
            monkeypatch.setattr(asyncio, "to_thread", counted)
            seen = []
            for x in (X, np.array(["a"], np.object_), np.zeros(1 << 16, np.float32)):
                with contextlib.suppress(CasemateError):  # the service answers numbers alone
                    await client.infer("wdbc", {"x": x})
                seen.append(threads)
            return seen

    none, text, large = asyncio.run(work())

    assert none == 0
    assert 0 < text < large
