"""Load on Casemate, sealed or plain: ``python -m bench.peers.drive KIND TARGET MODEL ...``.

In a process of its own, as each client is. Prints ``begin`` and ``end`` when the measurement does,
then one JSON object, as ``drive_oip.py`` does for the other servers.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import sys
import threading
import time
from collections import Counter, deque
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import grpc

from bench.peers import looped
from bench.peers.bare import Caller
from bench.peers.models import MODELS, asking
from casemate import tensors
from casemate.attestation import TrustPolicy
from casemate.client import Client
from casemate.client.files import read_private_key
from casemate.client.load import Load, run_load
from casemate.client.retry import RetryPolicy
from casemate.client.transport import HostConnection

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_OPTIONS = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


def stream(options: argparse.Namespace, row: dict[str, Any], tell: Callable[[], None]) -> Load:
    """One stream with so many questions unanswered; latency from question to answer, in order."""
    asked: deque[int] = deque()
    took: list[float] = []
    begin = time.perf_counter_ns() + int(options.warm_up * 1e9)
    end = begin + int(options.seconds * 1e9)

    def questions() -> Iterator[dict[str, Any]]:
        while (now := time.perf_counter_ns()) < end:
            asked.append(now)
            yield row

    moments = [begin, end]
    with (
        client_of(options) as client,
        client.stream(options.model, in_flight=options.in_flight) as running,
    ):
        for _ in running.map(questions()):
            now = time.perf_counter_ns()
            if moments and now >= moments[0]:
                moments.pop(0)
                tell()
            since = now - asked.popleft()
            if begin <= now < end:
                took.append(since / 1e6)
    for _ in moments:
        tell()
    return Load(options.in_flight, options.seconds, sorted(took), Counter())


def client_of(options: argparse.Namespace) -> Client:
    """A client that verifies what the bench started, and repeats nothing."""
    return Client(
        options.target,
        TrustPolicy.load(options.policy),
        caller_key=read_private_key(options.caller_key),
        retry=RetryPolicy(attempts=0),
    )


@contextlib.contextmanager
def sealed(options: argparse.Namespace, row: dict[str, Any]) -> Iterator[Callable[[], object]]:
    """One verified session, used by all threads."""
    with client_of(options) as client:
        yield partial(client.infer, options.model, row)


@contextlib.contextmanager
def plain(options: argparse.Namespace, row: dict[str, Any]) -> Iterator[Callable[[], object]]:
    """One channel, used by all threads; tensors encoded and decoded as the client does it."""
    with grpc.insecure_channel(options.target, options=_OPTIONS) as channel:
        method: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(
            f"/casemate.bench.Plain/{options.model}"
        )

        def call() -> object:
            return tensors.from_response(method(tensors.to_request(row), timeout=30))

        yield call


@contextlib.contextmanager
def plain_front(options: argparse.Namespace, row: dict[str, Any]) -> Iterator[Callable[[], object]]:
    """One connection of the client's own, used by all threads, without the seal."""
    with HostConnection(options.target) as connection:
        connection.call("GetEvidence", b"", 30)  # empty here; with it comes the offer of frames

        def call() -> object:
            request = asking(options.model, tensors.to_request(row))
            return tensors.from_response(connection.call("Infer", request, 30))

        yield call


@contextlib.contextmanager
def bare(options: argparse.Namespace, row: dict[str, Any]) -> Iterator[Callable[[], object]]:
    """A connection for each thread; the one input's bytes, sealed and nothing else."""
    (tensor,) = row.values()
    mine = threading.local()
    callers: list[Caller] = []

    def call() -> object:
        caller = getattr(mine, "caller", None)
        if caller is None:
            caller = mine.caller = Caller(options.target, options.model)
            callers.append(caller)
        return caller.ask(tensor)

    try:
        yield call
    finally:
        for caller in callers:
            caller.close()


_THREADED: Final = {"sealed": sealed, "plain": plain, "plain-front": plain_front, "bare": bare}


def main() -> int:
    """Drive and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("kind", choices=["stream", *_THREADED, *looped.KINDS])
    parser.add_argument("target")
    parser.add_argument("model", choices=sorted(MODELS))
    parser.add_argument("--in-flight", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--warm-up", type=float, default=1)
    parser.add_argument("--policy", type=Path)
    parser.add_argument("--caller-key", type=Path)
    options = parser.parse_args()
    words = iter(["begin", "end"])
    row = MODELS[options.model].row()

    def tell() -> None:
        print(next(words), flush=True)

    if options.kind == "stream":
        load = stream(options, row, tell)
    elif options.kind in looped.KINDS:
        load = asyncio.run(looped.load(options, row, tell))
    else:
        with _THREADED[options.kind](options, row) as call:
            call()
            load = run_load(
                [call] * options.in_flight,
                seconds=options.seconds,
                warm_up_s=options.warm_up,
                measuring=tell,
            )
    found = {"seconds": load.seconds, "latencies": list(load.latencies)}
    print(json.dumps({**found, "refused": dict(load.refused)}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
