"""How long a client tries to reach a host, and how soon it tries again, blocking or on a loop."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING

import grpc
import pytest

from casemate.client.transport import AsyncHostConnection, HostConnection
from casemate.errors import Code, RequestError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Ask = Callable[[str, Callable[[], bool]], bytes | Code]

LATE_S = 2.5
SOON_S = 0.75


def blocking(target: str, until: Callable[[], bool]) -> bytes | Code:
    """Ask for evidence again and again, and return the last outcome."""
    connection = HostConnection(target)
    try:
        while True:
            try:
                outcome: bytes | Code = connection.call("GetEvidence", b"", 60)
            except RequestError as error:
                outcome = error.code
            if until():
                return outcome
            time.sleep(0.02)
    finally:
        connection.close()


def looped(target: str, until: Callable[[], bool]) -> bytes | Code:
    """As ``blocking``, on an event loop."""

    async def work() -> bytes | Code:
        connection = AsyncHostConnection(target)
        try:
            while True:
                try:
                    outcome: bytes | Code = await connection.call("GetEvidence", b"", 60)
                except RequestError as error:
                    outcome = error.code
                if until():
                    return outcome
                await asyncio.sleep(0.02)
        finally:
            await connection.close()

    return asyncio.run(work())


@pytest.fixture(params=[blocking, looped])
def ask(request: pytest.FixtureRequest) -> Ask:
    chosen: Ask = request.param
    return chosen


@dataclass
class Door:
    """Listens; ``serve`` sees to each connection, on a thread of its own, and closes it."""

    serve: Callable[[socket.socket], None]
    opened: list[float] = field(default_factory=list)

    def __enter__(self) -> str:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._serving: list[threading.Thread] = []
        self._accepting = threading.Thread(target=self._accept, name="door", daemon=True)
        self._accepting.start()
        return f"127.0.0.1:{self._listener.getsockname()[1]}"

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._accepting.join(60)
        self._listener.close()
        for thread in self._serving:
            thread.join(60)
            assert not thread.is_alive()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self.opened.append(time.monotonic())
                thread = threading.Thread(target=self.serve, args=(connection,), daemon=True)
                thread.start()
                self._serving.append(thread)


@pytest.fixture
def host() -> Iterator[tuple[str, int]]:
    """The address of a host that answers every question for evidence."""
    server = grpc.server(ThreadPoolExecutor(4))
    handlers: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {
        "GetEvidence": grpc.unary_unary_rpc_method_handler(lambda *_: b"evidence")
    }
    service = "casemate.v1.ConfidentialInference"
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(service, handlers)])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield "127.0.0.1", port
    server.stop(None).wait()


def test_a_host_that_greets_late_is_waited_for(ask: Ask, host: tuple[str, int]) -> None:
    """As one is that is far away behind TLS, or busy."""

    def pump(source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while piece := source.recv(1 << 16):
                sink.sendall(piece)
            sink.shutdown(socket.SHUT_WR)

    def late(near: socket.socket) -> None:
        time.sleep(LATE_S)
        with near, socket.create_connection(host) as far:
            threading.Thread(target=pump, args=(near, far), daemon=True).start()
            pump(far, near)

    door = Door(late)
    with door as target:
        assert ask(target, lambda: True) == b"evidence"
    assert len(door.opened) == 1


def test_a_host_that_hangs_up_is_dialled_again_soon(ask: Ask) -> None:
    """Soon enough that a call which waits and asks again finds one that has just restarted."""
    door = Door(socket.socket.close)
    begun = time.monotonic()

    def enough() -> bool:
        gaps = [later - earlier for earlier, later in pairwise(door.opened)]
        return min(gaps, default=SOON_S) < SOON_S or time.monotonic() - begun > 30

    with door as target:
        assert ask(target, enough) is Code.HOST_UNREACHABLE
    assert min(later - earlier for earlier, later in pairwise(door.opened)) < SOON_S


def test_a_host_that_says_nothing_is_given_up(ask: Ask) -> None:
    """Long before the call's deadline, so that another host can be asked."""

    def silent(near: socket.socket) -> None:
        with near, contextlib.suppress(OSError):
            while near.recv(1 << 16):
                pass

    begun = time.monotonic()
    with Door(silent) as target:
        assert ask(target, lambda: True) is Code.HOST_UNREACHABLE
    assert time.monotonic() - begun < 50
