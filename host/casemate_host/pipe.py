"""Large requests on their way through, without being copied: what a host never looks at.

The kernel moves the pages of a client's connection into a pipe, and on into the enclave's
(splice(2)); for an image that is half of what a relay costs the host. What a pipe does not take is
received as other bytes are.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from typing import TYPE_CHECKING, Final, Self

from casemate import limits

if TYPE_CHECKING:
    import socket

_SET_SIZE: Final = 1031  # F_SETPIPE_SZ
# What a kernel says that cannot splice into a socket of this family.
_NO_SPLICE: Final = frozenset({errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP})


class Pipe:
    """Holds one message; one thread at a time. Its length is the bytes that it holds."""

    __slots__ = ("_held", "_into", "_out_of")

    def __init__(self, out_of: int, into: int) -> None:
        """Take over the two ends of an empty pipe."""
        self._out_of, self._into = out_of, into
        self._held = 0

    @classmethod
    def open(cls) -> Self:
        """Return an empty one; raises OSError if the system spares none of the size."""
        pipe = cls(*os.pipe())
        try:
            fcntl.fcntl(pipe._into, _SET_SIZE, limits.PIPE_BYTES)
        except OSError:
            pipe.close()
            raise
        return pipe

    def __len__(self) -> int:
        return self._held

    def fill(self, channel: socket.socket, size: int, until: float) -> bool:
        """Move ``size`` bytes in, from a blocking ``channel``; False if it has not got them all.

        Because they do not fit, or do not come before the time-out of ``channel`` or ``until``, in
        seconds of ``time.monotonic``: reading on tells.
        """
        while self._held < size and time.monotonic() < until:
            left = size - self._held
            try:
                got = os.splice(channel.fileno(), self._into, left, flags=os.SPLICE_F_NONBLOCK)
            except OSError:
                return False
            if not got:
                return False
            self._held += got
        return self._held == size

    def pour(self, channel: socket.socket) -> None:
        """Move all that it holds out into ``channel``, a blocking socket.

        Raises OSError, BlockingIOError for the time-out of ``channel``: it holds the rest then.
        """
        while self._held:
            try:
                self._held -= os.splice(self._out_of, channel.fileno(), self._held)
            except OSError as error:
                if error.errno not in _NO_SPLICE:
                    raise
                channel.sendall(self.drain())

    def drain(self) -> bytes:
        """Return all that it holds, which is copied."""
        pieces: list[bytes] = []
        while self._held:
            pieces.append(os.read(self._out_of, self._held))
            self._held -= len(pieces[-1])
        return b"".join(pieces)

    def close(self) -> None:
        """Give up what it holds, and itself."""
        os.close(self._out_of)
        os.close(self._into)
