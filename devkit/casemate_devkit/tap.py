"""A wire tap: forwards one unix or loopback address to another and records every byte.

It stands where the untrusted host stands, so that the demonstration and the security tests can
search everything that the host could see.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import TYPE_CHECKING, Self

from casemate.channel import UnixAddress, connect, listen

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

_PIECE = 1 << 16
_DIAL_TIMEOUT_S = 10.0


class Tap:
    """Records all connections made to ``front`` and forwards them to ``back`` (unix paths)."""

    def __init__(self, front: Path, back: Path) -> None:
        self._back = UnixAddress(str(back))
        self._listener = listen(UnixAddress(str(front)))
        self._lock = threading.Lock()
        self._seen = bytearray()
        self._open: set[socket.socket] = set()
        threading.Thread(target=self._accept, name="tap", daemon=True).start()

    def recorded(self) -> bytes:
        """Return every byte that passed so far, both directions, in order of arrival."""
        with self._lock:
            return bytes(self._seen)

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            try:
                far = connect(self._back, _DIAL_TIMEOUT_S)
            except Exception:  # noqa: BLE001 - as a dead peer: the caller sees its connection close
                near.close()
                continue
            far.settimeout(None)
            with self._lock:
                self._open |= {near, far}
            threading.Thread(
                target=self._carry, args=(near, far), name="tap-carry", daemon=True
            ).start()

    def _carry(self, near: socket.socket, far: socket.socket) -> None:
        """Forward one connection, both ways, until each side has said that it is done."""
        answers = threading.Thread(
            target=self._pump, args=(far, near), name="tap-pump", daemon=True
        )
        answers.start()
        self._pump(near, far)
        answers.join()
        with self._lock:
            self._open -= {near, far}
        near.close()
        far.close()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while piece := source.recv(_PIECE):
                with self._lock:
                    self._seen += piece
                sink.sendall(piece)
        for end, how in ((sink, socket.SHUT_WR), (source, socket.SHUT_RD)):
            with contextlib.suppress(OSError):
                end.shutdown(how)

    def close(self) -> None:
        """Stop listening and cut every connection."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            for end in self._open:
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
                end.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
