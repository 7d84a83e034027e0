"""Notices peers that hang up on a question under way, by one thread for all (SPEC 9.2.1, 9.6.3)."""

from __future__ import annotations

import select
import threading
from typing import TYPE_CHECKING, Final, Protocol

from casemate import limits

if TYPE_CHECKING:
    import socket
    from types import TracebackType

_GONE: Final = select.POLLHUP | select.POLLERR | select.POLLNVAL | select.POLLRDHUP


class Cancellable(Protocol):
    """What nobody waits for when its peer has gone."""

    def cancel(self) -> object:
        """End it; neither blocks nor raises."""
        ...


class HangUps:
    """Cancels what runs for a connection that its peer has ended; thread-safe.

    It looks now and then, while there is something to look at: a question costs it no wake-up.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._watched: dict[int, Cancellable] = {}
        self._asleep = False
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="hang-ups", daemon=True)

    def start(self) -> None:
        """Begin to watch."""
        self._thread.start()

    def watching(self, channel: socket.socket, cancellable: Cancellable) -> Watched:
        """Return a context manager that cancels if ``channel`` is hung up on meanwhile."""
        return Watched(self, channel.fileno(), cancellable)

    def stop(self) -> None:
        """Notice nothing from now on: it is this side that ends the connections."""
        self._stopped.set()
        with self._changed:
            self._changed.notify()

    def join(self) -> None:
        """Wait for the thread's end, after ``stop``."""
        if self._thread.ident is not None:
            self._thread.join()

    def add(self, descriptor: int, cancellable: Cancellable) -> None:
        """Look at ``descriptor`` from now on."""
        self._watched[descriptor] = cancellable
        if self._asleep:
            with self._changed:
                self._changed.notify()

    def remove(self, descriptor: int) -> None:
        """Look at it no longer; the descriptor must still be open."""
        self._watched.pop(descriptor, None)

    def _watch(self) -> None:
        while not self._stopped.is_set():
            self._await_work()
            if not self._stopped.wait(limits.HANG_UP_LOOK_S):
                self._look()

    def _await_work(self) -> None:
        with self._changed:
            self._asleep = True
            self._changed.wait_for(lambda: self._watched or self._stopped.is_set())
            self._asleep = False

    def _look(self) -> None:
        watched = dict(self._watched)
        poll = select.poll()
        for descriptor in watched:
            poll.register(descriptor, select.POLLRDHUP)
        for descriptor, event in poll.poll(0):
            cancellable = watched[descriptor]
            # A descriptor may by now be another connection's, whose question is another one.
            if event & _GONE and self._watched.get(descriptor) is cancellable:
                cancellable.cancel()


class Watched:
    """What ``HangUps.watching`` returns."""

    __slots__ = ("_cancellable", "_descriptor", "_hang_ups")

    def __init__(self, hang_ups: HangUps, descriptor: int, cancellable: Cancellable) -> None:
        self._hang_ups = hang_ups
        self._descriptor = descriptor
        self._cancellable = cancellable

    def __enter__(self) -> None:
        self._hang_ups.add(self._descriptor, self._cancellable)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._hang_ups.remove(self._descriptor)
