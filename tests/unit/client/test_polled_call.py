"""A call whose events the caller takes itself: all of them, and none after its end."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from casemate.client.carrier import Event, Kind
from casemate.client.polled_call import EndedError, NotOfferedError, PolledCall

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Answer = Callable[[Iterator[bytes], grpc.ServicerContext], Iterator[bytes]]

METHOD = "/casemate.v1.ConfidentialInference/InferMany"


def echo(messages: Iterator[bytes], _: grpc.ServicerContext) -> Iterator[bytes]:
    for message in messages:
        yield b"re:" + message


def refuse(_: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
    context.set_trailing_metadata((("reason", "full"),))
    context.set_code(grpc.StatusCode.RESOURCE_EXHAUSTED)
    context.set_details("no room")
    yield from ()


def quit_(_: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
    yield b"only"


@pytest.fixture
def begin() -> Iterator[Callable[[Answer], PolledCall]]:
    """Begins a call that a server answers as it is told."""
    answer: list[Answer] = []

    def answered(messages: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        return answer[-1](messages, context)

    handler: grpc.RpcMethodHandler[bytes, bytes] = grpc.stream_stream_rpc_method_handler(answered)
    service, _, name = METHOD[1:].partition("/")
    server = grpc.server(ThreadPoolExecutor(4))
    server.add_generic_rpc_handlers(
        [grpc.method_handlers_generic_handler(service, {name: handler})]
    )
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:

        def made(how: Answer) -> PolledCall:
            answer.append(how)
            return PolledCall(channel, METHOD, ())

        yield made
    server.stop(None).wait()


def polled(call: PolledCall, *kinds: Kind) -> Event:
    """Poll until there was an event of each of ``kinds``, and return that of the last of them."""
    events: dict[Kind, Event] = {}
    while not events.keys() >= set(kinds):
        assert not call.over
        event = call.poll()
        events[event.kind] = event
    return events[kinds[-1]]


def to_the_end(call: PolledCall) -> list[Event]:
    """All events that are left. Polling beyond them would never return."""
    events = []
    while not call.over:
        events.append(call.poll())
    return events


def test_messages_are_answered_and_each_event_comes_once(
    begin: Callable[[Answer], PolledCall],
) -> None:
    call = begin(echo)
    for number in range(5):
        call.send(b"%d" % number)
        assert polled(call, Kind.SENT, Kind.MESSAGE).message == b"re:%d" % number
    call.end_sending()
    kinds = [event.kind for event in to_the_end(call)]
    assert kinds.count(Kind.ENDED) == 1
    assert Kind.MESSAGE not in kinds


def test_the_end_says_what_the_host_said(begin: Callable[[Answer], PolledCall]) -> None:
    end = polled(begin(refuse), Kind.ENDED).end
    assert isinstance(end, EndedError)
    assert (end.code(), end.details()) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "no room")
    assert [tuple(entry)[:2] for entry in end.trailing_metadata()] == [("reason", "full")]


def test_where_the_host_ends_its_side_the_status_follows(
    begin: Callable[[Answer], PolledCall],
) -> None:
    events = to_the_end(begin(quit_))
    assert [event.message for event in events if event.kind is Kind.MESSAGE] == [b"only"]
    (end,) = (event.end for event in events if event.kind is Kind.ENDED)
    assert end is not None
    assert end.code() is grpc.StatusCode.OK


def test_nothing_is_begun_after_the_end(begin: Callable[[Answer], PolledCall]) -> None:
    call = begin(refuse)
    to_the_end(call)
    call.send(b"late")
    call.end_sending()
    call.cancel()
    assert call.over


def test_a_cancelled_call_still_has_its_last_events(begin: Callable[[Answer], PolledCall]) -> None:
    call = begin(echo)
    call.cancel()
    (end,) = (event.end for event in to_the_end(call) if event.kind is Kind.ENDED)
    assert end is not None
    assert end.code() is grpc.StatusCode.CANCELLED


def test_an_interrupted_wait_is_the_end(
    begin: Callable[[Answer], PolledCall], monkeypatch: pytest.MonkeyPatch
) -> None:
    call = begin(echo)

    class Interrupted:
        def __init__(self, inner: Any) -> None:  # noqa: ANN401 - gRPC's
            self.operate = inner.operate
            self.cancel = inner.cancel

        def next_event(self) -> None:
            raise KeyboardInterrupt

    monkeypatch.setattr(call, "_call", Interrupted(call._call))
    with pytest.raises(KeyboardInterrupt):
        call.poll()
    assert call.over
    call.send(b"late")
    assert call.over


@pytest.mark.parametrize("lack", ["no module", "no channel", "no such call"])
def test_a_grpc_that_is_another_does_not_offer_it(
    monkeypatch: pytest.MonkeyPatch, lack: str
) -> None:
    def missing(_: str) -> None:
        raise ImportError

    class Other:
        def __init__(self) -> None:
            if lack == "no such call":
                self._channel = threading.Lock()

    if lack == "no module":
        monkeypatch.setattr("casemate.client.polled_call.importlib.import_module", missing)
    with pytest.raises(NotOfferedError):
        PolledCall(Other(), METHOD, ())  # type: ignore[arg-type]
