"""Egress: the handshake of SPEC 9.4, the list, the bounds, half-close."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from typing import TYPE_CHECKING

import pytest

from casemate import limits
from casemate.channel import UnixAddress, VsockAddress, connect
from casemate.wire import lp
from casemate_host.config import EgressConfig
from casemate_host.egress import Egress

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

NAME = "kms.eu-central-1.amazonaws.com:443"


@pytest.fixture
def upstream() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(60)
        yield listener


@pytest.fixture
def start(tmp_path: Path, upstream: socket.socket) -> Iterator[Callable[..., UnixAddress]]:
    with contextlib.ExitStack() as stack:

        def run(connections: int = 4, idle_s: float = 60) -> UnixAddress:
            address = UnixAddress(str(tmp_path / "egress.sock"))
            allow = {NAME: upstream.getsockname(), "dead.example:443": ("127.0.0.1", 1)}
            egress = Egress(EgressConfig(address, allow, connections, idle_s), UnixAddress("/e"))
            egress.start()
            stack.callback(egress.stop)
            return address

        yield run


def ask(address: UnixAddress, handshake: bytes) -> tuple[socket.socket, bytes]:
    channel = connect(address, 60)
    with contextlib.suppress(BrokenPipeError):  # refused before it was asked: the verdict is there
        channel.sendall(handshake)
    try:
        return channel, channel.recv(1)
    except ConnectionResetError:
        return channel, b""


def read_all(channel: socket.socket) -> bytes:
    data = b""
    while piece := channel.recv(65536):
        data += piece
    return data


def test_a_listed_name_is_connected(
    start: Callable[..., UnixAddress], upstream: socket.socket
) -> None:
    channel, verdict = ask(start(), lp(NAME.encode()))
    assert verdict == b"\x00"
    server, _ = upstream.accept()
    with channel, server:
        channel.sendall(b"request")
        assert server.recv(7) == b"request"
        server.sendall(b"answer")
        assert channel.recv(6) == b"answer"


@pytest.mark.parametrize(
    "handshake",
    [
        lp(b"evil.example:443"),
        lp(NAME.upper().encode()),
        lp(NAME.encode() + b"\x00"),
        lp(NAME.removesuffix(":443").encode() + b":80"),
        lp("kms.eu\u2011central:443".encode()),
        lp(b""),
        lp(b"x" * 260),
        b"\xff\xff\xff\xff",
    ],
)
def test_nothing_else_is_reachable(
    start: Callable[..., UnixAddress], upstream: socket.socket, handshake: bytes
) -> None:
    channel, verdict = ask(start(), handshake)
    with channel:
        assert verdict == b"\x01"
        with contextlib.suppress(ConnectionResetError):  # what it had not read
            assert channel.recv(1) == b""
    upstream.settimeout(0.05)
    with pytest.raises(TimeoutError):
        upstream.accept()


def test_an_unreachable_name_is_told(start: Callable[..., UnixAddress]) -> None:
    channel, verdict = ask(start(), lp(b"dead.example:443"))
    with channel:
        assert verdict == b"\x02"


def test_half_close_lets_the_other_direction_go_on(
    start: Callable[..., UnixAddress], upstream: socket.socket
) -> None:
    channel, _ = ask(start(), lp(NAME.encode()))
    server, _ = upstream.accept()
    with channel, server:
        channel.sendall(b"all of it")
        channel.shutdown(socket.SHUT_WR)
        assert read_all(server) == b"all of it"
        server.sendall(b"then the answer")
        server.close()
        assert read_all(channel) == b"then the answer"


def test_large_streams_both_ways_at_once(
    start: Callable[..., UnixAddress], upstream: socket.socket
) -> None:
    """Neither side reads before it has written all: only buffering both ways gets through."""
    channel, _ = ask(start(), lp(NAME.encode()))
    server, _ = upstream.accept()
    data = bytes(range(256)) * 16384
    received: list[bytes] = []

    def write(end: socket.socket) -> None:
        end.sendall(data)
        end.shutdown(socket.SHUT_WR)

    with channel, server:
        ends = (channel, server)
        threads = [threading.Thread(target=write, args=(end,)) for end in ends]
        threads += [
            threading.Thread(target=lambda end=end: received.append(read_all(end))) for end in ends
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert received == [data, data]


def test_idle_streams_end(start: Callable[..., UnixAddress], upstream: socket.socket) -> None:
    channel, _ = ask(start(idle_s=0.1), lp(NAME.encode()))
    server, _ = upstream.accept()
    with channel, server:
        assert channel.recv(1) == b""
        assert server.recv(1) == b""


def test_the_excess_is_refused_and_others_are_served(
    start: Callable[..., UnixAddress], upstream: socket.socket
) -> None:
    address = start(connections=2)
    with contextlib.ExitStack() as stack:
        for _ in range(2):
            channel, verdict = ask(address, lp(NAME.encode()))
            stack.enter_context(channel)
            stack.enter_context(upstream.accept()[0])
            assert verdict == b"\x00"
        third, verdict = ask(address, b"")
        stack.enter_context(third)
        assert verdict == b"\x02"
    until = time.monotonic() + 60
    while not _connects(address, upstream):
        assert time.monotonic() < until
        time.sleep(0.05)


def _connects(address: UnixAddress, upstream: socket.socket) -> bool:
    channel, verdict = ask(address, lp(NAME.encode()))
    channel.close()
    if verdict == b"\x00":
        upstream.accept()[0].close()
    return verdict == b"\x00"


def test_a_half_sent_handshake_ends_in_time(
    start: Callable[..., UnixAddress], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "EGRESS_HANDSHAKE_S", 0.1)
    channel, verdict = ask(start(), lp(NAME.encode())[:9])
    with channel:
        assert verdict == b""


def test_stopping_cuts_what_is_open(tmp_path: Path, upstream: socket.socket) -> None:
    address = UnixAddress(str(tmp_path / "egress.sock"))
    config = EgressConfig(address, {NAME: upstream.getsockname()}, 4, 600)
    egress = Egress(config, UnixAddress("/e"))
    egress.start()
    channel, _ = ask(address, lp(NAME.encode()))
    half = connect(address, 60)
    server, _ = upstream.accept()
    with channel, server, half:
        before = time.monotonic()
        egress.stop()
        assert time.monotonic() - before < 60  # long before they are idle
        assert channel.recv(1) == b""
        assert server.recv(1) == b""
    assert not [thread for thread in threading.enumerate() if thread.name in {"splice", "egress"}]


def test_another_context_id_is_not_served(tmp_path: Path, upstream: socket.socket) -> None:
    """Over vsock only the enclave's own id counts; a unix peer has none."""
    address = UnixAddress(str(tmp_path / "egress.sock"))
    config = EgressConfig(address, {NAME: upstream.getsockname()}, 4, 60)
    egress = Egress(config, VsockAddress(16, 5005))
    egress.start()
    channel = connect(address, 60)
    with channel:
        assert channel.recv(1) == b""
    egress.stop()


def test_without_a_thread_the_enclave_hears_it_and_the_place_is_free(
    start: Callable[..., UnixAddress], upstream: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = start(connections=1)
    begin = threading.Thread.start
    failures = iter([True, True])

    def fail(thread: threading.Thread) -> None:
        if thread.name == "splice" and next(failures, False):
            raise RuntimeError("can't start new thread")
        begin(thread)

    monkeypatch.setattr(threading.Thread, "start", fail)
    for _ in range(2):
        channel, verdict = ask(address, lp(NAME.encode()))
        channel.close()
        assert verdict == b"\x02"
    channel, verdict = ask(address, lp(NAME.encode()))
    assert verdict == b"\x00"
    channel.close()
