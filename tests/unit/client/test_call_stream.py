"""Calls that share one stream, against hosts that keep and break its rules (SPEC 9.6.2)."""

# ruff: noqa: ASYNC110 - a test waits for what nobody tells it of

from __future__ import annotations

import asyncio
import contextlib
import itertools
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest

from casemate import limits
from casemate.client.transport import AsyncHostConnection, HostConnection
from casemate.errors import Code, RequestError
from casemate.framed import Kind as Type
from casemate.frames import ANSWER, Frame
from casemate.v1.confidential_inference_pb2 import (
    NumberedRequest,
    NumberedResponse,
    Refusal,
    SealedRequests,
    SealedResponses,
)
from tests.support.attacker import eventually
from tests.support.blocking_connection import keep_company
from tests.support.framed_host import FramedDouble, Peer, listening
from tests.support.threads import Newcomers

Script = Callable[["Host", Iterator[SealedRequests]], Iterator[SealedResponses | bytes]]


@dataclass
class Host:
    """Answers unary calls with ``unary:`` before the request, streams as ``script`` says."""

    script: Script
    target: str = ""
    asked: list[NumberedRequest] = field(default_factory=list)
    messages: int = 0
    streams: int = 0
    unary: int = 0
    context: Any = None
    go: threading.Event = field(default_factory=threading.Event)

    def framed(self, _: FramedDouble, peer: Peer) -> None:
        """Play the script on a framed connection."""
        peer.begin()
        first = peer.take()
        if first is None:
            return
        if first.type == Type.REQUEST:
            peer.send(Type.REQUEST | ANSWER, b"unary:" + first.payload)
            return
        self.streams += 1
        self.context = _Context()
        with contextlib.suppress(_Context.AbortedError):
            for message in self.script(self, self._requests(_payloads(first, peer))):
                body = message if isinstance(message, bytes) else message.SerializeToString()
                if body:
                    peer.send(Type.MANY | ANSWER, body)

    def _infer(self, request: bytes, _: grpc.ServicerContext) -> bytes:
        self.unary += 1
        return b"unary:" + request

    def _infer_many(
        self, messages: Iterator[bytes], context: grpc.ServicerContext
    ) -> Iterator[bytes]:
        self.streams += 1
        self.context = context
        for message in self.script(self, self._requests(messages)):
            yield message if isinstance(message, bytes) else message.SerializeToString()

    def _requests(self, messages: Iterator[bytes]) -> Iterator[SealedRequests]:
        for message in messages:
            requests = SealedRequests.FromString(message)
            self.messages += 1
            self.asked += requests.requests
            yield requests


class _Context:
    """What a script uses of gRPC's context, on a framed connection: it ends there."""

    class AbortedError(Exception): ...

    def abort(self, _code: grpc.StatusCode, _detail: str) -> None:
        raise self.AbortedError


def _payloads(first: Frame, peer: Peer) -> Iterator[bytes]:
    frame: Frame | None = first
    while frame is not None:
        yield bytes(frame.payload)
        frame = peer.take()


@contextlib.contextmanager
def playing(script: Script, *, streams: bool = True) -> Iterator[Host]:
    host = Host(script)
    handlers: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {
        "Infer": grpc.unary_unary_rpc_method_handler(host._infer)
    }
    if streams:
        handlers["InferMany"] = grpc.stream_stream_rpc_method_handler(host._infer_many)
    double = FramedDouble(host.framed)
    handlers["GetEvidence"] = double.handlers()["GetEvidence"]
    service = "casemate.v1.ConfidentialInference"
    server = grpc.server(ThreadPoolExecutor(16))
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(service, handlers)])
    host.target = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    with listening(double):
        server.start()
        try:
            yield host
        finally:
            host.go.set()
            server.stop(None).wait()


class Blocking:
    """A `HostConnection`."""

    def __init__(self, target: str) -> None:
        self._connection = HostConnection(target)
        keep_company(self._connection)

    def call(self, request: bytes, timeout_s: float = 60) -> bytes:
        return self._connection.call("Infer", request, timeout_s)

    def together(self, requests: list[bytes], timeout_s: float = 60) -> list[bytes | Code]:
        def one(request: bytes) -> bytes | Code:
            try:
                return self.call(request, timeout_s)
            except RequestError as error:
                return error.code

        with ThreadPoolExecutor(len(requests)) as pool:
            return list(pool.map(one, requests))

    def hang_up(self) -> None:
        self._connection.close()

    def close(self) -> None:
        self.hang_up()


class Framed(Blocking):
    """A `HostConnection` that was offered framed connections."""

    def __init__(self, target: str) -> None:
        super().__init__(target)
        self._connection.call("GetEvidence", b"", 60)


class OnLoop:
    """An `AsyncHostConnection`, on a loop of its own thread."""

    def __init__(self, target: str) -> None:
        self._connection = AsyncHostConnection(target)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def _run(self, work: Any) -> Any:  # noqa: ANN401 - a coroutine, and its result
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(100)

    def call(self, request: bytes, timeout_s: float = 60) -> bytes:
        answer: bytes = self._run(self._connection.call("Infer", request, timeout_s))
        return answer

    def together(self, requests: list[bytes], timeout_s: float = 60) -> list[bytes | Code]:
        async def one(request: bytes) -> bytes | Code:
            try:
                return await self._connection.call("Infer", request, timeout_s)
            except RequestError as error:
                return error.code

        async def work() -> list[bytes | Code]:
            return list(await asyncio.gather(*map(one, requests)))

        ends: list[bytes | Code] = self._run(work())
        return ends

    def hang_up(self) -> None:
        self._run(self._connection.close())

    def close(self) -> None:
        self.hang_up()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(60)
        self._loop.close()


Connection = Blocking | OnLoop
Connect = Callable[[str], Connection]


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """No stream ends, and none is begun anew, because the machine is slow."""
    monkeypatch.setattr("casemate.client.call_stream._STUCK_S", 600.0)
    monkeypatch.setattr(limits, "CALL_STREAM_AGAIN_S", 600.0)


@contextlib.contextmanager
def _connecting(kind: type[Connection]) -> Iterator[Connect]:
    with contextlib.ExitStack() as stack:

        def made(target: str) -> Connection:
            connection = kind(target)
            stack.callback(connection.close)
            return connection

        yield made


@pytest.fixture(params=[Blocking, Framed, OnLoop], ids=["threads", "frames", "loop"])
def connect(request: pytest.FixtureRequest) -> Iterator[Connect]:
    with _connecting(request.param) as made:
        yield made


@pytest.fixture(params=[Blocking, OnLoop], ids=["threads", "loop"])
def connect_by_grpc(request: pytest.FixtureRequest) -> Iterator[Connect]:
    with _connecting(request.param) as made:
        yield made


def ready(connect: Connect, host: Host) -> Connection:
    """A connection whose stream has begun."""
    connection = connect(host.target)
    assert eventually(lambda: not connection.call(b"warm").startswith(b"unary:"))
    host.asked.clear()
    host.messages = 0
    return connection


def answer(*requests: NumberedRequest, last: bool = False) -> SealedResponses:
    return SealedResponses(
        responses=[
            NumberedResponse(number=each.number, response=b"joined:" + each.request)
            for each in requests
        ],
        last=last,
    )


def warm(messages: Iterator[SealedRequests]) -> Iterator[SealedResponses | bytes]:
    """What every script begins with: the first message, and the answer that `ready` waits for."""
    yield b""
    yield answer(*next(messages).requests)


def echo(_: Host, messages: Iterator[SealedRequests]) -> Iterator[SealedResponses | bytes]:
    yield b""
    for message in messages:
        yield answer(*(each for each in message.requests if each.request))


def test_the_first_calls_are_made_by_themselves(connect: Connect) -> None:
    with playing(echo) as host:
        connection = connect(host.target)
        for number in range(limits.CALL_STREAM_AFTER):
            assert connection.call(b"%d" % number) == b"unary:%d" % number
        assert host.streams == 0


def test_calls_share_messages_and_get_their_own_answers(connect: Connect) -> None:
    with playing(echo) as host:
        connection = ready(connect, host)
        requests = [b"%d" % number for number in range(32)]
        rounds = 0
        while rounds < 20 or host.messages == len(host.asked):
            assert connection.together(requests) == [b"joined:" + each for each in requests]
            rounds += 1
            assert rounds < 1000
        assert host.streams == 1
        assert len({each.number for each in host.asked}) == 32 * rounds


def test_answers_in_another_order_reach_their_calls(connect: Connect) -> None:
    def backwards(_: Host, messages: Iterator[SealedRequests]) -> Iterator[SealedResponses | bytes]:
        yield from warm(messages)
        held = list(itertools.islice(_each(messages), 8))
        for each in reversed(held):
            yield answer(each)

    with playing(backwards) as host:
        connection = ready(connect, host)
        requests = [b"%d" % number for number in range(8)]
        assert connection.together(requests) == [b"joined:" + each for each in requests]


def _each(messages: Iterator[SealedRequests]) -> Iterator[NumberedRequest]:
    for message in messages:
        yield from message.requests


def test_a_large_request_is_a_call_of_its_own(connect: Connect) -> None:
    with playing(echo) as host:
        connection = ready(connect, host)
        large = b"x" * (limits.CALL_STREAM_REQUEST_MAX + 1)
        assert connection.call(large) == b"unary:" + large
        assert connection.call(large[:-1]) == b"joined:" + large[:-1]


def test_a_refusal_says_what_a_status_says(connect: Connect) -> None:
    def refuse(_: Host, messages: Iterator[SealedRequests]) -> Iterator[SealedResponses | bytes]:
        yield from warm(messages)
        for each in _each(messages):
            refusal = Refusal(reason=each.request.decode(), detail="no\x1b[2J", retry_delay=1500)
            yield SealedResponses(responses=[NumberedResponse(number=each.number, refusal=refusal)])

    with playing(refuse) as host:
        connection = ready(connect, host)
        with pytest.raises(RequestError) as raised:
            connection.call(b"OVERLOADED")
        assert raised.value.code is Code.OVERLOADED
        assert raised.value.retry_after_s == 1.5
        assert "\x1b" not in str(raised.value)
        for unknown in (b"OK", b"EVIDENCE_AGE", b"nonsense"):
            with pytest.raises(RequestError) as raised:
                connection.call(unknown)
            assert raised.value.code is Code.HOST_UNREACHABLE


def silent(host: Host, messages: Iterator[SealedRequests]) -> Iterator[SealedResponses | bytes]:
    yield from warm(messages)
    for each in _each(messages):
        if each.request == b"speak":
            yield answer(each)


def test_a_call_ends_at_its_deadline_and_the_host_is_told(connect: Connect) -> None:
    with playing(silent) as host:
        connection = ready(connect, host)
        asked: set[int] = set()
        for within_s in (0.3, 3):  # until it is enough for a question to reach the host
            begun = time.monotonic()
            ends = connection.together([b"a", b"b", b"c"], within_s)
            assert ends == [Code.DEADLINE_EXCEEDED] * 3
            assert within_s * 0.8 < time.monotonic() - begun < 60
            assert connection.call(b"speak") == b"joined:speak"
            asked = {each.number for each in host.asked if each.request in {b"a", b"b", b"c"}}
            given_up = {each.number for each in host.asked if not each.request}
            assert asked == given_up
            assert all(
                each.budget <= within_s * 1000 for each in host.asked if each.number in asked
            )
            if asked:
                break
        assert asked


def test_whoever_reads_and_leaves_hands_the_reading_on(connect: Connect) -> None:
    def hold(host: Host, messages: Iterator[SealedRequests]) -> Iterator[SealedResponses | bytes]:
        yield from warm(messages)
        held = next(each for each in _each(messages) if each.request == b"patient")
        host.go.wait(60)
        yield answer(held)

    with playing(hold) as host:
        connection = ready(connect, host)
        with ThreadPoolExecutor(2) as pool:
            hasty = pool.submit(connection.together, [b"hasty"], 0.3)
            time.sleep(0.05)
            patient = pool.submit(connection.call, b"patient")
            assert hasty.result() == [Code.DEADLINE_EXCEEDED]
            host.go.set()
            assert patient.result() == b"joined:patient"


def test_a_host_without_such_streams_gets_calls(connect_by_grpc: Connect) -> None:
    with playing(echo, streams=False) as host:
        connection = connect_by_grpc(host.target)
        for number in range(20):
            assert connection.call(b"%d" % number) == b"unary:%d" % number
            time.sleep(0.01)


def test_a_host_that_refuses_the_stream_is_not_asked_again_at_once(
    connect_by_grpc: Connect,
) -> None:
    def refuse(host: Host, _: Iterator[SealedRequests]) -> Iterator[SealedResponses | bytes]:
        host.context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "no room")
        yield b""

    with playing(refuse) as host:
        connection = connect_by_grpc(host.target)
        for number in range(40):
            assert connection.call(b"%d" % number) == b"unary:%d" % number
            time.sleep(0.005)
        assert host.streams == 1


def test_a_host_that_never_begins_is_no_obstacle(connect_by_grpc: Connect) -> None:
    def mute(host: Host, _: Iterator[SealedRequests]) -> Iterator[SealedResponses | bytes]:
        host.go.wait(110)
        yield b""

    with playing(mute) as host:
        connection = connect_by_grpc(host.target)
        for number in range(20):
            assert connection.call(b"%d" % number) == b"unary:%d" % number
        assert host.asked == []


BREAKS: dict[str, Callable[[NumberedRequest], SealedResponses | bytes]] = {
    "unreadable": lambda _: b"\xff\xff",
    "a number never asked": lambda each: answer(NumberedRequest(number=each.number + 1000)),
    "number none": lambda _: answer(NumberedRequest(number=0)),
    "twice": lambda each: answer(each, each),
}


@pytest.mark.parametrize("how", list(BREAKS))
def test_a_host_that_breaks_the_rules_loses_the_stream(connect: Connect, how: str) -> None:
    def break_(_: Host, messages: Iterator[SealedRequests]) -> Iterator[SealedResponses | bytes]:
        yield from warm(messages)
        held = list(itertools.islice(_each(messages), 4))
        yield BREAKS[how](held[0])
        yield from echo(_, messages)

    with playing(break_) as host:
        connection = ready(connect, host)
        ends = connection.together([b"0", b"1", b"2", b"3"])
        assert ends.count(Code.UNAVAILABLE) >= 3
        assert set(ends) <= {Code.UNAVAILABLE, *(b"joined:%d" % n for n in range(4))}
        assert connection.call(b"after") in {b"unary:after", b"joined:after"}


def test_that_a_host_broke_the_rules_is_said(connect: Connect) -> None:
    def break_(_: Host, messages: Iterator[SealedRequests]) -> Iterator[SealedResponses | bytes]:
        yield from warm(messages)
        next(_each(messages))
        yield b"\xff\xff"

    with playing(break_) as host:
        connection = ready(connect, host)
        with pytest.raises(RequestError, match="broke the rules of a stream") as raised:
            connection.call(b"x")
        assert raised.value.code is Code.UNAVAILABLE


def test_when_the_stream_breaks_every_call_under_way_fails_and_later_ones_find_another(
    connect: Connect,
) -> None:
    def die(host: Host, messages: Iterator[SealedRequests]) -> Iterator[SealedResponses | bytes]:
        yield from warm(messages)
        if host.streams == 1:
            list(itertools.islice(_each(messages), 4))
            host.context.abort(grpc.StatusCode.UNAVAILABLE, "gone")
        yield from echo(host, messages)

    with playing(die) as host:
        connection = ready(connect, host)
        framed = isinstance(connection, Framed)
        gone = Code.UNAVAILABLE if framed else Code.HOST_UNREACHABLE
        assert connection.together([b"0", b"1", b"2", b"3"]) == [gone] * 4
        assert eventually(lambda: connection.call(b"x") == b"joined:x")
        assert host.streams == 2


def test_a_stream_that_the_host_wants_ended_ends_without_a_failed_call(connect: Connect) -> None:
    def retire(host: Host, messages: Iterator[SealedRequests]) -> Iterator[SealedResponses | bytes]:
        yield b""
        for count, each in enumerate(_each(messages)):
            yield answer(each, last=count == 50)

    with playing(retire) as host:
        connection = ready(connect, host)

        def another() -> bool:
            ends = connection.together([b"%d" % number for number in range(16)])
            assert not any(isinstance(end, Code) for end in ends)
            return host.streams > 2

        assert eventually(another)


def test_an_idle_stream_that_the_host_ended_fails_no_call(
    connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("casemate.client.call_stream._LOOK_S", 0.1)
    over = threading.Event()

    def idle(host: Host, messages: Iterator[SealedRequests]) -> Iterator[SealedResponses | bytes]:
        yield from warm(messages)
        host.go.wait(60)
        yield SealedResponses(last=True)
        host.asked += _each(messages)  # until the client has ended its side
        over.set()

    with playing(idle) as host:
        connection = ready(connect, host)
        time.sleep(0.3)  # longer than without calls the watch reads itself
        host.go.set()
        assert over.wait(60)
        assert connection.call(b"x") == b"unary:x"
        assert host.asked == []


def test_closing_fails_what_is_under_way_and_leaves_no_thread(connect: Connect) -> None:
    threads = Newcomers()
    with playing(silent) as host:
        connection = ready(connect, host)
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(connection.together, [b"a", b"b"])
            assert eventually(lambda: len(host.asked) == 2)
            connection.hang_up()
            assert waiting.result() == [Code.UNAVAILABLE] * 2
    assert eventually(lambda: "call-stream" not in threads.names())


def test_a_grpc_without_the_inner_calls_makes_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("casemate.client.polled_call.importlib.import_module", _missing)
    with playing(echo) as host:
        connection = Blocking(host.target)
        for number in range(20):
            assert connection.call(b"%d" % number) == b"unary:%d" % number
        assert host.streams == 0
        connection.close()


def _missing(name: str) -> None:
    raise ImportError(name)


def test_a_task_that_is_cancelled_gives_its_question_up() -> None:
    async def work(host: Host) -> None:
        connection = AsyncHostConnection(host.target)
        while (await connection.call("Infer", b"warm", 60)).startswith(b"unary:"):
            await asyncio.sleep(0.01)
        task = asyncio.create_task(connection.call("Infer", b"dropped", 60))
        while not any(each.request == b"dropped" for each in host.asked):
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await connection.call("Infer", b"speak", 60) == b"joined:speak"
        await connection.close()

    with playing(silent) as host:
        asyncio.run(asyncio.wait_for(work(host), 100))
        dropped = next(each.number for each in host.asked if each.request == b"dropped")
        assert [each.request for each in host.asked if each.number == dropped] == [b"dropped", b""]
