"""Load on Casemate, sealed or plain: ``python -m bench.peers.drive KIND TARGET MODEL ...``.

In a process of its own, as each client is. Prints ``begin`` and ``end`` when the measurement does,
then one JSON object, as ``drive_oip.py`` does for the other servers.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc

from bench.peers.models import MODELS
from casemate import tensors
from casemate.attestation import TrustPolicy
from casemate.client import Client
from casemate.client.files import read_private_key
from casemate.client.load import run_load

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_OPTIONS = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


@contextlib.contextmanager
def sealed(options: argparse.Namespace, row: dict[str, Any]) -> Iterator[Callable[[], object]]:
    """One verified session, used by all threads."""
    with Client(
        options.target,
        TrustPolicy.load(options.policy),
        caller_key=read_private_key(options.caller_key),
    ) as client:
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


def main() -> int:
    """Drive and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("kind", choices=["sealed", "plain"])
    parser.add_argument("target")
    parser.add_argument("model", choices=sorted(MODELS))
    parser.add_argument("--in-flight", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--warm-up", type=float, default=1)
    parser.add_argument("--policy", type=Path)
    parser.add_argument("--caller-key", type=Path)
    options = parser.parse_args()
    words = iter(["begin", "end"])
    with {"sealed": sealed, "plain": plain}[options.kind](
        options, MODELS[options.model].row()
    ) as call:
        call()
        load = run_load(
            [call] * options.in_flight,
            seconds=options.seconds,
            warm_up_s=options.warm_up,
            measuring=lambda: print(next(words), flush=True),
        )
    found = {"seconds": load.seconds, "latencies": list(load.latencies)}
    print(json.dumps({**found, "refused": dict(load.refused)}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
