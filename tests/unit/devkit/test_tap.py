"""The wire tap forwards and records both ways, and keeps nothing of a connection that is over."""

from __future__ import annotations

import socket
import threading
from typing import TYPE_CHECKING

import pytest

from casemate.channel import UnixAddress, connect, listen
from casemate_devkit.tap import Tap
from tests.support.attacker import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def everything(channel: socket.socket) -> bytes:
    return b"".join(iter(lambda: channel.recv(100), b""))


@pytest.fixture
def tap(short_path: Path) -> Iterator[Tap]:
    """In front of a server that answers with what it was sent, twice, when all of it is there."""
    back = listen(UnixAddress(str(short_path / "back")))

    def serve() -> None:
        while True:
            try:
                channel, _ = back.accept()
            except OSError:
                return
            with channel:
                channel.sendall(everything(channel) * 2)

    server = threading.Thread(target=serve)
    server.start()
    with Tap(short_path / "front", short_path / "back") as tap:
        yield tap
    back.shutdown(socket.SHUT_RDWR)
    server.join()
    back.close()


def ask(folder: Path, said: bytes) -> bytes:
    with connect(UnixAddress(str(folder / "front")), 60.0) as channel:
        channel.sendall(said)
        channel.shutdown(socket.SHUT_WR)
        return everything(channel)


def test_both_ways_are_forwarded_and_recorded(tap: Tap, short_path: Path) -> None:
    assert ask(short_path, b"question") == b"questionquestion"
    assert tap.recorded() == b"questionquestionquestion"


def test_a_connection_that_is_over_holds_no_descriptor(tap: Tap, short_path: Path) -> None:
    for _ in range(20):
        ask(short_path, b"question")
    assert eventually(lambda: not tap._open)


def test_a_side_that_is_gone_ends_the_other(tap: Tap, short_path: Path) -> None:
    with connect(UnixAddress(str(short_path / "front")), 60.0) as channel:
        channel.sendall(b"a question without an end")
        assert eventually(lambda: bool(tap._open))
    assert eventually(lambda: not tap._open)
