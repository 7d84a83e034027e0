"""Load on Casemate from one event loop, as the peers' asyncio client puts it on them.

Many calls in flight cost less so than with a thread for each, whichever of our servers answers.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Final

import grpc

from bench.peers.models import asking
from casemate import tensors
from casemate.attestation import TrustPolicy
from casemate.client import AsyncClient
from casemate.client.files import read_private_key
from casemate.client.load import Load
from casemate.client.retry import RetryPolicy
from casemate.client.transport import AsyncHostConnection
from casemate.errors import CasemateError

if TYPE_CHECKING:
    import argparse
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
    from contextlib import AbstractAsyncContextManager

    import numpy as np

    Row = dict[str, np.ndarray]
    Call = Callable[[], Awaitable[object]]

_OPTIONS: Final = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
]


@contextlib.asynccontextmanager
async def sealed(
    options: argparse.Namespace, row: Row, *, together: bool = False
) -> AsyncIterator[Call]:
    """One verified session, used by all tasks; ``together``: whose questions share requests."""
    async with AsyncClient(
        options.target,
        TrustPolicy.load(options.policy),
        caller_key=read_private_key(options.caller_key),
        retry=RetryPolicy(attempts=0),
        together=together,
    ) as client:
        yield partial(client.infer, options.model, row)


@contextlib.asynccontextmanager
async def plain(options: argparse.Namespace, row: Row) -> AsyncIterator[Call]:
    """One channel, used by all tasks; tensors encoded and decoded as the client does it."""
    async with grpc.aio.insecure_channel(options.target, options=_OPTIONS) as channel:
        method: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(
            f"/casemate.bench.Plain/{options.model}"
        )

        async def call() -> object:
            return tensors.from_response(await method(tensors.to_request(row), timeout=30))

        yield call


@contextlib.asynccontextmanager
async def plain_front(options: argparse.Namespace, row: Row) -> AsyncIterator[Call]:
    """One connection of the client's own, used by all tasks, without the seal."""
    connection = AsyncHostConnection(options.target)
    await connection.call("GetEvidence", b"", 30)  # as in `drive`

    async def call() -> object:
        request = asking(options.model, tensors.to_request(row))
        return tensors.from_response(await connection.call("Infer", request, 30))

    try:
        yield call
    finally:
        await connection.close()


KINDS: Final[Mapping[str, Callable[..., AbstractAsyncContextManager[Call]]]] = {
    "sealed-looped": sealed,
    "sealed-together": partial(sealed, together=True),
    "plain-looped": plain,
    "plain-front-looped": plain_front,
}


async def load(options: argparse.Namespace, row: Row, tell: Callable[[], None]) -> Load:
    """Keep so many calls in flight and return what was answered within the time."""
    async with KINDS[options.kind](options, row) as call:
        await call()
        begin = time.perf_counter_ns() + int(options.warm_up * 1e9)
        end = begin + int(options.seconds * 1e9)
        ended: list[tuple[int, int]] = []
        refused: Counter[str] = Counter()

        async def work() -> None:
            while (start := time.perf_counter_ns()) < end:
                try:
                    await call()
                except CasemateError as error:
                    refused[str(error.code)] += 1
                else:
                    now = time.perf_counter_ns()
                    ended.append((now, now - start))

        async def watch() -> None:
            for moment in (begin, end):
                await asyncio.sleep(max(0.0, (moment - time.perf_counter_ns()) / 1e9))
                tell()

        await asyncio.gather(watch(), *(work() for _ in range(options.in_flight)))
    took = sorted(ns / 1e6 for at, ns in ended if begin <= at < end)
    return Load(options.in_flight, options.seconds, took, refused)
