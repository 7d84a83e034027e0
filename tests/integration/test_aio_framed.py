"""The event loop's client and a real host over framed connections (SPEC 9.6.3)."""

from __future__ import annotations

import asyncio
import os
import signal
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import numpy as np
import pytest

from casemate import limits
from casemate.client import AsyncClient, RetryPolicy
from casemate.errors import CasemateError, Code
from casemate_devkit.local import MODEL
from tests.support.aio import is_framed, until_framed
from tests.support.attacker import second_host
from tests.support.deployment import DATA

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from casemate_devkit.local import LocalDeployment

pytestmark = pytest.mark.integration
SMALL = 1
LARGE = 1 + limits.CALL_STREAM_REQUEST_MAX // DATA.features[:1].nbytes  # rows


def rows(at: int, count: int) -> dict[str, np.ndarray]:
    """Rows of the data set, from its row ``at`` on and round."""
    order = (at + np.arange(count)) % len(DATA.features)
    return {"features": np.ascontiguousarray(DATA.features[order])}


@asynccontextmanager
async def client_of(
    deployment: LocalDeployment, target: str | None = None
) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(
        target or deployment.target,
        deployment.trust_policy(),
        caller_key=deployment.clinic.signing_key,
        retry=RetryPolicy(attempts=0),
    ) as client:
        yield client


async def expected(client: AsyncClient) -> np.ndarray:
    """What the model says of each row, asked in one call."""
    result = await client.infer(MODEL, {"features": np.ascontiguousarray(DATA.features)})
    return result.outputs["probabilities"]


async def right(client: AsyncClient, said: np.ndarray, at: int, count: int) -> None:
    result = await client.infer(MODEL, rows(at, count))
    order = (at + np.arange(count)) % len(DATA.features)
    np.testing.assert_allclose(result.outputs["probabilities"], said[order], atol=1e-5)


def test_each_of_many_calls_of_both_kinds_gets_its_own_answer(deployment: LocalDeployment) -> None:
    async def work() -> None:
        async with client_of(deployment) as client:
            said = await expected(client)
            await until_framed(client, MODEL)

            async def one(first: int) -> None:
                for at in range(first, first + 20):
                    await right(client, said, at, LARGE + at if at % 4 == 0 else SMALL)

            await asyncio.gather(*(one(20 * task) for task in range(16)))
            assert is_framed(client)

    asyncio.run(work())


def test_calls_that_are_cancelled_at_any_moment_disturb_no_other(
    deployment: LocalDeployment,
) -> None:
    async def work() -> None:
        async with client_of(deployment) as client:
            said = await expected(client)
            await until_framed(client, MODEL)
            for turns in range(40):
                count = LARGE if turns % 2 else SMALL
                tasks = [
                    asyncio.create_task(right(client, said, turns + n, count)) for n in range(6)
                ]
                for _ in range(turns):
                    await asyncio.sleep(0)
                for task in tasks[:3]:
                    task.cancel()
                ends = await asyncio.gather(*tasks, return_exceptions=True)
                assert ends[3:] == [None] * 3
                assert {type(end) for end in ends[:3]} <= {asyncio.CancelledError, type(None)}

    asyncio.run(work())


def test_when_the_host_is_killed_every_call_ends_and_later_ones_find_the_next(
    deployment: LocalDeployment,
) -> None:
    async def work() -> None:
        with second_host(deployment) as host:
            async with client_of(deployment, host.ready["address"]) as client:
                said = await expected(client)
                await until_framed(client, MODEL)
                calls = [
                    asyncio.create_task(right(client, said, at, LARGE if at % 2 else SMALL))
                    for at in range(32)
                ]
                await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
                os.kill(host.pid, signal.SIGKILL)
                ends = await asyncio.gather(*calls, return_exceptions=True)
                codes = {end.code for end in ends if isinstance(end, CasemateError)}
                assert codes <= {Code.UNAVAILABLE, Code.HOST_UNREACHABLE}
                assert all(end is None or isinstance(end, CasemateError) for end in ends)
                with pytest.raises(CasemateError) as caught:
                    await client.infer(MODEL, rows(0, SMALL), timeout_s=60)
                assert caught.value.code in {Code.UNAVAILABLE, Code.HOST_UNREACHABLE}
                assert not is_framed(client)

    asyncio.run(work())
