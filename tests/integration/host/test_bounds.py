"""What loss, overload and rude callers do, and to whom (THREATS C3, H11, H13)."""

from __future__ import annotations

import contextlib
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import grpc
import pytest

from casemate import limits
from casemate.errors import Code
from casemate_host.front import MESSAGE_MAX
from tests.support.host_bench import (
    HEALTH,
    REFLECTION,
    SERVICE,
    SERVING,
    Bench,
    eventually,
    reason,
    refused,
    serving,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.fake_enclave import FakeEnclave
    from tests.support.nitro_pki import Chain

pytestmark = pytest.mark.integration


@pytest.mark.parametrize("verb", [b"die", b"cut"])
def test_an_enclave_that_dies_within_a_request(
    bench: Bench, enclave: FakeEnclave, verb: bytes
) -> None:
    outcome = refused(lambda: bench.infer(verb))
    assert outcome == (grpc.StatusCode.UNAVAILABLE, Code.UNAVAILABLE)
    assert enclave.requests.count(verb) == 1
    eventually(lambda: bench.host.board.standing.serving)
    assert bench.infer(b"x") == b"x"


def test_a_cancelled_call_frees_its_worker(
    short_path: Path, chain: Chain, enclave: FakeEnclave
) -> None:
    with serving(short_path, chain, "unary = 1") as bench:
        for _ in range(5):
            call = bench.channel.unary_unary(SERVICE + "Infer").future(b"silent", timeout=100)
            eventually(lambda: enclave.requests == [b"silent"])
            call.cancel()
            eventually(lambda: bench.host._front.unary.taken == 0)
            enclave.requests.clear()
        assert bench.infer(b"x") == b"x"


def _answers(bench: Bench) -> bool:
    with contextlib.suppress(grpc.RpcError):
        return bench.infer(b"x") == b"x"
    return False


def test_a_deadline_frees_its_worker(short_path: Path, chain: Chain, enclave: FakeEnclave) -> None:
    with serving(short_path, chain, "unary = 1") as bench:
        code, _ = refused(lambda: bench.infer(b"silent", timeout=0.2))
        assert code is grpc.StatusCode.DEADLINE_EXCEEDED
        eventually(lambda: _answers(bench))


def test_overload_is_refused_with_its_code(
    short_path: Path, chain: Chain, enclave: FakeEnclave
) -> None:
    with serving(short_path, chain, "unary = 2") as bench, ThreadPoolExecutor(2) as pool:
        busy = [pool.submit(bench.infer, b"sleep:60") for _ in range(2)]
        eventually(lambda: len(enclave.requests) == 2)
        outcome = refused(lambda: bench.infer(b"x"))
        assert outcome == (grpc.StatusCode.RESOURCE_EXHAUSTED, Code.OVERLOADED)
        assert bench.health() == SERVING
        bench.evidence()
        enclave.released.set()
        assert [future.result() for future in busy] == [b"sleep:60"] * 2


def test_oversized_messages_are_refused(bench: Bench, enclave: FakeEnclave) -> None:
    outcome = refused(lambda: bench.infer(bytes(MESSAGE_MAX + 1)))
    assert outcome == (grpc.StatusCode.RESOURCE_EXHAUSTED, Code.TOO_LARGE)
    code, _ = refused(lambda: bench.infer(bytes(MESSAGE_MAX + 10 * limits.MIB)))
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert enclave.requests == []
    assert bench.infer(b"x") == b"x"


def test_callers_who_send_nothing_cannot_keep_the_workers(
    short_path: Path, chain: Chain, enclave: FakeEnclave
) -> None:
    with serving(short_path, chain, "unary = 2\nreceive_seconds = 600") as bench:
        ended = threading.Event()
        infer = bench.channel.stream_unary(SERVICE + "Infer")

        def nothing() -> Iterator[bytes]:
            ended.wait(100)
            yield from ()

        calls = [infer.future(nothing(), timeout=100) for _ in range(2)]
        eventually(lambda: bench.host._front.unary.taken == 2)
        assert reason(lambda: bench.infer(b"x")) == Code.OVERLOADED
        bench.host._front._patience.timeout_s = 1.0
        for call in calls:
            assert refused(call.result)[0] is grpc.StatusCode.CANCELLED
        eventually(lambda: _answers(bench))
        ended.set()


def test_c3_calls_without_a_message_give_way_when_all_workers_are_taken(
    short_path: Path, chain: Chain, enclave: FakeEnclave
) -> None:
    """Half of the workers may wait for slow senders; those beyond it keep nobody out for long."""
    with serving(short_path, chain, "unary = 8\nreceive_seconds = 600") as bench:
        ended = threading.Event()
        infer = bench.channel.stream_unary(SERVICE + "Infer")

        def nothing() -> Iterator[bytes]:
            ended.wait(100)
            yield from ()

        calls = [infer.future(nothing(), timeout=100) for _ in range(8)]
        eventually(lambda: bench.host._front.unary.taken == 8)
        eventually(lambda: _answers(bench))  # the messages may take ten minutes
        for _ in range(20):
            assert bench.infer(b"x") == b"x"
        assert sum(not call.done() for call in calls) >= 4
        ended.set()


def test_a_call_without_a_message_is_malformed(bench: Bench) -> None:
    infer = bench.channel.stream_unary(SERVICE + "Infer")
    assert refused(lambda: infer(iter([]), timeout=60))[1] == Code.MALFORMED


def test_held_open_streams_cannot_keep_the_workers(bench: Bench) -> None:
    ended = threading.Event()

    def silence() -> Iterator[bytes]:
        ended.wait(100)
        yield from ()

    reflect = bench.channel.stream_stream(REFLECTION)
    open_ones = [reflect(silence(), timeout=100) for _ in range(3 * limits.STREAMS_MAX)]
    watch = bench.channel.unary_stream(HEALTH + "Watch")
    eventually(lambda: bench.host._front.health._streams._taken == limits.STREAMS_MAX)
    assert reason(lambda: next(watch(b"", timeout=60))) == Code.OVERLOADED
    with ThreadPoolExecutor(32) as pool:
        assert list(pool.map(bench.infer, [b"sleep:0.02"] * 64)) == [b"sleep:0.02"] * 64
    assert bench.health() == SERVING
    ended.set()
    for call in open_ones:
        call.cancel()
    eventually(lambda: reason(lambda: next(watch(b"", timeout=60))) is None)


def closed_by_the_host(bench: Bench, said: bytes, within_s: float = 60) -> bool:
    host, _, port = bench.address.rpartition(":")
    with socket.create_connection((host, int(port)), 60) as channel:
        channel.sendall(said)
        channel.settimeout(within_s)
        with contextlib.suppress(ConnectionError):
            while channel.recv(4096):
                pass
        return True


PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS = b"\0\0\0\4\0\0\0\0\0"


@pytest.mark.parametrize(
    ("said", "bound"),
    [
        (b"", "HANDSHAKE_S"),
        (PREFACE[:9], "HANDSHAKE_S"),
        (PREFACE, "HANDSHAKE_S"),
        (PREFACE + SETTINGS, "CONNECTION_IDLE_S"),
    ],
)
def test_h11_connections_without_calls_are_closed_after_a_while(
    short_path: Path,
    chain: Chain,
    enclave: FakeEnclave,
    monkeypatch: pytest.MonkeyPatch,
    said: bytes,
    bound: str,
) -> None:
    monkeypatch.setattr(limits, bound, 1.0)
    with serving(short_path, chain) as bench:
        assert closed_by_the_host(bench, said)
        eventually(lambda: _answers(bench))
