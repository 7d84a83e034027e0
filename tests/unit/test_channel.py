"""Listening at an address, and connecting to one (SPEC 9.1)."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

import pytest

from casemate.channel import ANYONE, UnixAddress, connect, listen
from casemate.errors import Code, FrameError


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_socket_with_its_mode_takes_connections(
    short_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that who waits for the mode is not refused: the file is there before anybody listens."""
    path = short_path / "socket"
    chmod = Path.chmod

    def chmod_of_a_listener(which: Path, permissions: int) -> None:
        with socket.socket(socket.AF_UNIX) as early:
            early.connect(str(which))
        chmod(which, permissions)

    monkeypatch.setattr(Path, "chmod", chmod_of_a_listener)
    old = os.umask(0o022)
    try:
        with listen(UnixAddress(str(path))):
            assert mode(path) == ANYONE
            connect(UnixAddress(str(path)), 5).close()
    finally:
        os.umask(old)


def test_a_socket_that_was_left_is_replaced(short_path: Path) -> None:
    address = UnixAddress(str(short_path / "socket"))
    listen(address).close()
    with pytest.raises(FrameError, match="refused") as refused:
        connect(address, 5)
    assert refused.value.code is Code.UNAVAILABLE
    with listen(address):
        connect(address, 5).close()


def test_another_file_is_left_alone(short_path: Path) -> None:
    path = short_path / "socket"
    path.write_text("kept")
    with pytest.raises(FrameError, match="cannot listen on") as refused:
        listen(UnixAddress(str(path)))
    assert refused.value.code is Code.UNAVAILABLE
    assert path.read_text() == "kept"
