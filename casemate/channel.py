"""Addresses and byte channels between host and enclave: AF_VSOCK and AF_UNIX (SPEC 9.1)."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from casemate.errors import Code, FrameError

_VSOCK = re.compile(r"vsock:(\d{1,10}):(\d{1,10})", re.ASCII)
_U32 = 1 << 32
_BACKLOG = 128
ANYONE: Final = 0o666


@dataclass(frozen=True, slots=True)
class UnixAddress:
    """A path in the file system."""

    path: str

    def __str__(self) -> str:
        return f"unix:{self.path}"


@dataclass(frozen=True, slots=True)
class VsockAddress:
    """A vsock context id and port."""

    cid: int
    port: int

    def __str__(self) -> str:
        return f"vsock:{self.cid}:{self.port}"


Address = UnixAddress | VsockAddress


def parse_address(text: str) -> Address:
    """Parse ``unix:PATH`` or ``vsock:CID:PORT``; raises FrameError(INVALID_ARGUMENT)."""
    if text.startswith("unix:/"):
        return UnixAddress(text.removeprefix("unix:"))
    match = _VSOCK.fullmatch(text)
    if match and int(match[1]) < _U32 and int(match[2]) < _U32:
        return VsockAddress(int(match[1]), int(match[2]))
    raise FrameError(Code.INVALID_ARGUMENT, f"not unix:/PATH or vsock:CID:PORT: {text[:80]!r}")


def _socket(address: Address) -> tuple[socket.socket, str | tuple[int, int]]:
    if isinstance(address, UnixAddress):
        return socket.socket(socket.AF_UNIX, socket.SOCK_STREAM), address.path
    return socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM), (address.cid, address.port)


def connect(address: Address, timeout_s: float) -> socket.socket:
    """Connect within ``timeout_s``; raises FrameError(UNAVAILABLE)."""
    channel, target = _socket(address)
    channel.settimeout(timeout_s)
    try:
        channel.connect(target)
    except OSError as error:
        channel.close()
        reason = error.strerror or "timed out"
        raise FrameError(Code.UNAVAILABLE, f"cannot connect to {address}: {reason}") from None
    return channel


def listen(address: Address) -> socket.socket:
    """Bind and listen; a stale unix socket at the path is replaced, any other file is refused.

    A unix socket has the mode ``ANYONE`` from when it listens on.
    Who may connect to a unix socket is decided by its directory, which its owner keeps private:
    host and enclave run as different users.
    """
    channel, target = _socket(address)
    try:
        if isinstance(address, UnixAddress):
            with contextlib.suppress(FileNotFoundError):
                if stat.S_ISSOCK(os.lstat(address.path).st_mode):
                    Path(address.path).unlink()
        channel.bind(target)
        channel.listen(_BACKLOG)
        if isinstance(address, UnixAddress):
            Path(address.path).chmod(ANYONE)
    except OSError as error:
        channel.close()
        detail = f"cannot listen on {address}: {error.strerror}"
        raise FrameError(Code.UNAVAILABLE, detail) from None
    return channel
