"""Notices hosts that hang up on a question under way, by one thread for all (SPEC 9.2.1)."""

from __future__ import annotations

import select
import threading
from typing import TYPE_CHECKING, Final

from casemate import limits

if TYPE_CHECKING:
    import socket
    from types import TracebackType

    from casemate_enclave.cancellation import Cancellation

_GONE: Final = select.POLLHUP | select.POLLERR | select.POLLNVAL | select.POLLRDHUP


class HangUps:
    """Cancels what runs for a connection that the host has ended; thread-safe.

    It looks now and then, while there is something to look at: a question costs it no wake-up.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._watched: dict[int, Cancellation] = {}
        self._asleep = False
        self._stopped = False
        threading.Thread(target=self._watch, name="hang-ups", daemon=True).start()

    def watching(self, channel: socket.socket, cancellation: Cancellation) -> Watched:
        """Return a context manager that cancels if ``channel`` is hung up on meanwhile."""
        return Watched(self, channel.fileno(), cancellation)

    def stop(self) -> None:
        """Notice nothing from now on: it is this side that ends the connections."""
        self._stopped = True

    def add(self, descriptor: int, cancellation: Cancellation) -> None:
        """Look at ``descriptor`` from now on."""
        self._watched[descriptor] = cancellation
        if self._asleep:
            with self._changed:
                self._changed.notify()

    def remove(self, descriptor: int) -> None:
        """Look at it no longer; the descriptor must still be open."""
        self._watched.pop(descriptor, None)

    def _watch(self) -> None:
        pause = threading.Event()
        while True:
            self._await_work()
            pause.wait(limits.HANG_UP_LOOK_S)
            if not self._stopped:
                self._look()

    def _await_work(self) -> None:
        with self._changed:
            self._asleep = True
            self._changed.wait_for(lambda: self._watched)
            self._asleep = False

    def _look(self) -> None:
        watched = dict(self._watched)
        poll = select.poll()
        for descriptor in watched:
            poll.register(descriptor, select.POLLRDHUP)
        for descriptor, event in poll.poll(0):
            cancellation = watched[descriptor]
            # A descriptor may by now be another connection's, whose question is another one.
            if event & _GONE and self._watched.get(descriptor) is cancellation:
                cancellation.cancel()


class Watched:
    """What ``HangUps.watching`` returns."""

    __slots__ = ("_cancellation", "_descriptor", "_hang_ups")

    def __init__(self, hang_ups: HangUps, descriptor: int, cancellation: Cancellation) -> None:
        self._hang_ups = hang_ups
        self._descriptor = descriptor
        self._cancellation = cancellation

    def __enter__(self) -> None:
        self._hang_ups.add(self._descriptor, self._cancellation)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._hang_ups.remove(self._descriptor)
