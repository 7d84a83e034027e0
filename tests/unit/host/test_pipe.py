"""Large requests in a pipe: none is lost, mixed up or sent twice, whatever the pipe takes."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import socket
import threading
import time
from typing import TYPE_CHECKING

import pytest

from casemate import frames, limits
from casemate.channel import UnixAddress, listen
from casemate.errors import Code, FrameError
from casemate.frames import FrameType
from casemate_host.call import Call
from casemate_host.framed_channel import FramedChannel, GoneError
from casemate_host.pipe import Pipe
from casemate_host.relay import Relay
from tests.support.fake_enclave import FakeEnclave, new_chain

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

IMAGE = secrets.token_bytes(600_000)
_GET_SIZE = 1032  # F_GETPIPE_SZ


Pair = tuple[socket.socket, socket.socket]


def connected() -> Pair:
    """Two ends of a TCP connection."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        far = socket.create_connection(server.getsockname())
        return server.accept()[0], far


@pytest.fixture
def pair() -> Iterator[Pair]:
    near, far = connected()
    with near, far:
        yield near, far


@pytest.fixture
def channel(pair: Pair) -> Iterator[FramedChannel]:
    made = FramedChannel(pair[0], 1.0)
    made._wait_at_most(1.0)
    yield made
    made._close_pipe()


@contextlib.contextmanager
def sending(data: bytes, send: Callable[[bytes], None]) -> Iterator[None]:
    thread = threading.Thread(target=send, args=(data,))
    thread.start()
    yield
    thread.join()


def received(message: bytes | Pipe) -> bytes:
    return message.drain() if isinstance(message, Pipe) else message


def soon() -> float:
    return time.monotonic() + 10


def filled(data: bytes) -> Pipe:
    """A pipe that holds ``data``."""
    pipe = Pipe.open()
    near, far = connected()
    with near, far, sending(data, far.sendall):
        assert pipe.fill(near, len(data), soon())
    return pipe


def test_what_goes_in_comes_out(pair: Pair) -> None:
    pipe = filled(IMAGE)
    assert len(pipe) == len(IMAGE)
    with sending(b"", lambda _: pipe.pour(pair[0])):
        assert pair[1].recv(len(IMAGE), socket.MSG_WAITALL) == IMAGE
    assert len(pipe) == 0
    pipe.close()


def test_a_large_message_comes_in_a_pipe_and_the_next_one_after_it(
    channel: FramedChannel, pair: Pair
) -> None:
    with sending(IMAGE + b"and" + IMAGE, pair[1].sendall):
        first = channel.message(len(IMAGE))
        assert isinstance(first, Pipe)
        assert first.drain() == IMAGE
        assert channel.message(3) == b"and"
        assert received(channel.message(len(IMAGE))) == IMAGE


def test_a_message_that_nobody_took_is_not_in_the_way_of_the_next(
    channel: FramedChannel, pair: Pair
) -> None:
    other = IMAGE[::-1]
    with sending(IMAGE + other, pair[1].sendall):
        first = channel.message(len(IMAGE))
        assert isinstance(first, Pipe)
        second = channel.message(len(other))
        assert isinstance(second, Pipe)
        assert second.drain() == other


def test_what_does_not_fit_is_received_all_the_same(
    channel: FramedChannel,
    pair: Pair,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    opened = Pipe.open

    def small() -> Pipe:
        pipe = opened()
        fcntl.fcntl(pipe._into, 1031, 4096)  # one page, and so one fragment
        return pipe

    monkeypatch.setattr(Pipe, "open", small)
    with sending(IMAGE * 2, pair[1].sendall):
        for _ in range(2):
            message = channel.message(len(IMAGE))
            assert message == IMAGE
    assert channel._piped_most < len(IMAGE)


def test_without_pipes_messages_are_received_all_the_same(
    channel: FramedChannel,
    pair: Pair,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse() -> Pipe:
        raise PermissionError("more pipes than this user may have")

    monkeypatch.setattr(Pipe, "open", refuse)
    with sending(IMAGE, pair[1].sendall):
        assert channel.message(len(IMAGE)) == IMAGE


def test_what_cannot_be_spliced_into_is_sent_a_copy(pair: Pair, tmp_path: Path) -> None:
    """Linux splices into no file that is opened for appending, and says so as of some sockets."""
    near, far = pair
    with (tmp_path / "sent").open("ab") as file:

        class Unspliced:
            fileno = file.fileno
            sendall = file.write

        pipe = Pipe.open()
        with sending(IMAGE, far.sendall):
            assert pipe.fill(near, len(IMAGE), time.monotonic() + 10)
        pipe.pour(Unspliced())  # type: ignore[arg-type]
        pipe.close()
    assert (tmp_path / "sent").read_bytes() == IMAGE


def test_a_message_that_drips_is_late_and_one_that_is_cut_is_over(
    channel: FramedChannel, pair: Pair
) -> None:
    pair[1].sendall(IMAGE[:1000])
    with pytest.raises(FrameError) as raised:
        channel.message(len(IMAGE))
    assert raised.value.code is Code.DEADLINE_EXCEEDED
    pair[1].close()
    channel._piped_most = limits.PIPE_BYTES
    with pytest.raises(GoneError):
        channel.message(len(IMAGE))


def test_a_pipe_takes_what_linux_gives_everybody() -> None:
    pipe = Pipe.open()
    assert fcntl.fcntl(pipe._into, _GET_SIZE) == limits.PIPE_BYTES
    ends = pipe._out_of, pipe._into
    pipe.close()
    for descriptor in ends:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(descriptor)


def test_a_pipe_ends_with_its_connection(channel: FramedChannel, pair: Pair) -> None:
    with sending(IMAGE, pair[1].sendall):
        pipe = channel.message(len(IMAGE))
    assert isinstance(pipe, Pipe)
    channel.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(pipe._out_of)


# Over the relay


def test_an_answer_to_a_pipe_is_awaited_until_the_deadline(tmp_path: Path) -> None:
    enclave = FakeEnclave(tmp_path / "s", new_chain(), configuration=b"any").start()
    relay = Relay(UnixAddress(str(enclave.path)), 1, lambda: None)
    pipe = filled(b"sleep:60 " + IMAGE)
    began = time.monotonic()
    with pytest.raises(FrameError) as raised:
        relay.exchange(FrameType.REQUEST, pipe, Call(0.2))
    assert raised.value.code is Code.DEADLINE_EXCEEDED
    assert time.monotonic() - began < 10
    enclave.released.set()
    pipe.close()
    relay.close()
    enclave.stop()


def test_a_pipe_is_relayed_as_its_bytes_would_be(tmp_path: Path) -> None:
    enclave = FakeEnclave(tmp_path / "s", new_chain(), configuration=b"any").start()
    relay = Relay(UnixAddress(str(enclave.path)), 1, lambda: None)
    for data in (IMAGE, IMAGE[::-1], b"short"):
        pipe = filled(data)
        assert relay.exchange(FrameType.REQUEST, pipe, Call(60)) == data
        pipe.close()
    assert enclave.accepted == 1
    relay.close()
    enclave.stop()


@pytest.mark.parametrize("read", [0, 300_000])
def test_a_pipe_is_sent_again_only_if_nothing_of_it_has_left(tmp_path: Path, read: int) -> None:
    """The pooled connection dies before the request, and amid it."""
    address = UnixAddress(str(tmp_path / "s"))
    executed: list[bytes] = []
    dying = threading.Event()
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(listen(address))

        def serve() -> None:
            with contextlib.suppress(OSError, FrameError):
                while True:
                    channel = listener.accept()[0]
                    with channel:
                        while (frame := frames.receive_frame(channel)) is not None:
                            executed.append(bytes(frame.payload))
                            answer = FrameType.REQUEST | frames.ANSWER
                            frames.send_frame(channel, answer, b"done")
                            if len(executed) == 1:
                                if read:
                                    channel.recv(read, socket.MSG_WAITALL)
                                break
                    dying.set()

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        relay = Relay(address, 1, lambda: None)
        assert (
            relay.exchange(FrameType.REQUEST, bytes(limits.NUMBERED_MAX + 1), Call(60)) == b"done"
        )
        if not read:
            assert dying.wait(10)
        pipe = filled(IMAGE)
        # More than the socket holds: what is sent waits for the enclave to read it, or to be gone.
        relay._idle[0].channel.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 64 * 1024)
        if read:
            with pytest.raises(FrameError) as raised:
                relay.exchange(FrameType.REQUEST, pipe, Call(60))
            assert raised.value.code is Code.UNAVAILABLE
            assert len(executed) == 1
        else:
            assert relay.exchange(FrameType.REQUEST, pipe, Call(60)) == b"done"
            assert executed[1:] == [IMAGE]
        pipe.close()
        relay.close()
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(10)
