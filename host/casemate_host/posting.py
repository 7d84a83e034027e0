"""Questions that no thread of their own waits for, on the connection that all share (SPEC 9.2.1).

Whoever posts many of them listens for all; see ``casemate_host.shared`` for the calls beside them.
While it does something else instead, and nobody reads, a thread of the connection's own looks now
and then: a client that takes no answers must not keep the places of those it asked for.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from typing import TYPE_CHECKING, Final, Protocol

from casemate import numbered
from casemate_host.shared import SharedConnection, UnsentError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from casemate.errors import FrameError
    from casemate.frames import FrameType
    from casemate.numbered import Numbered
    from casemate.wire import Buffer
    from casemate_host.shared import Asking


_LOOK_S: Final = 0.05


class Listener:
    """The thread that listens for the questions of one poster."""

    def __init__(self) -> None:
        self._wake = threading.Lock()
        self._wake.acquire()
        self.listening = False

    def rouse(self) -> None:
        """Wake it, or keep it from going to sleep once."""
        if self._wake.locked():  # else it was roused before
            with contextlib.suppress(RuntimeError):  # or just now
                self._wake.release()

    def sleep(self, timeout_s: float) -> None:
        """Wait until roused."""
        self._wake.acquire(timeout=timeout_s)


class Poster(Protocol):
    """Who posts questions."""

    listener: Listener

    def settled(self, posts: Sequence[Posted]) -> None:
        """Hear what became of some of them; neither blocks nor raises."""
        ...


class Posted:
    """One question of ``kind``."""

    __slots__ = (
        *("_kind", "answer", "budget_ms", "connection", "frame", "lost", "number", "payload"),
        *("poster", "size", "unsent"),
    )

    def __init__(self, kind: FrameType, payload: Buffer, budget_ms: int, poster: Poster) -> None:
        self._kind = kind
        self.payload = payload
        self.poster = poster
        self.budget_ms = budget_ms
        self.connection: PostingConnection | None = None
        self.number = 0
        self.frame: tuple[Buffer, ...] = ()
        self.size = 0
        self.answer: Numbered | None = None
        self.lost: FrameError | None = None
        self.unsent = False

    @property
    def done(self) -> bool:
        """Whether there is an answer, or will be none."""
        return self.answer is not None or self.lost is not None

    @property
    def reads(self) -> bool:
        """Whether somebody who listens for it would read if roused."""
        return not self.done and self.poster.listener.listening

    def rouse(self) -> None:
        """Pass on what became of it, and wake who listens."""
        if self.done:
            self.poster.settled((self,))
        self.poster.listener.rouse()

    def on(self, connection: PostingConnection, number: int) -> None:
        """Note where it is asked."""
        self.connection, self.number = connection, number
        self.frame = numbered.question(number, self._kind, self.payload, self.budget_ms)
        self.size = len(self.frame[0]) + len(self.payload)
        self.lost, self.unsent = None, False


class PostingConnection(SharedConnection):
    """The shared connection, with posted questions beside the calls that wait."""

    def __init__(self, channel: socket.socket) -> None:
        super().__init__(channel)
        self._posted = threading.Event()
        self._watch: threading.Thread | None = None

    def post(self, posts: Sequence[Posted]) -> None:
        """Ask all of ``posts`` at once; each is settled later. Raises UnsentError if none was."""
        self._take_late()
        with self._lock:
            if self._over or not self._is_quiet():
                raise UnsentError
            for post in posts:
                post.on(self, self._next_number())
                self._questions[post.number] = post
            self._outbox.extend(posts)
            if self._watch is None:
                self._watch = threading.Thread(target=self._look, name="relay-look", daemon=True)
                self._watch.start()
        if not self._posted.is_set():
            self._posted.set()
        self._send_out(posts[0])

    def give_up(self, post: Posted) -> None:
        """Drop the answer of ``post`` when it comes; the enclave is told."""
        with self._lock:
            if self._questions.get(post.number) is not post:
                return
            self._drop(post)
            word = None if self._over else self._give_up(post)
            self._close_unused()
            self._have_one_read()
        if word is not None:
            self._send_out(word)

    def listen(self, listener: Listener, wanted: Callable[[], bool], until: float) -> None:
        """Read for all, or wait for who does, until ``wanted`` or ``until`` (time.monotonic)."""
        listener.listening = True
        try:
            while not wanted() and (left := until - time.monotonic()) > 0:
                if self._over and not self._questions:
                    return
                if not self._reading.acquire(blocking=False):
                    listener.sleep(left)
                    continue
                try:
                    self._read_once(0)
                finally:
                    self._reading.release()
        finally:
            with self._lock:
                listener.listening = False
                self._have_one_read()

    def _pass_on(self, answered: Sequence[Asking]) -> None:
        """Tell each poster of all its questions at once."""
        posts: dict[Poster, list[Posted]] = {}
        for question in answered:
            if isinstance(question, Posted):
                posts.setdefault(question.poster, []).append(question)
            else:
                question.rouse()
        for poster, theirs in posts.items():
            poster.settled(theirs)
            poster.listener.rouse()

    def _lost(self, error: FrameError) -> None:
        super()._lost(error)
        with self._lock:
            for question in list(self._questions.values()):
                if isinstance(question, Posted):
                    self._drop(question)
            self._close_unused()

    def _drop(self, post: Posted) -> None:
        del self._questions[post.number]
        self._used = time.monotonic()

    def _close_unused(self) -> None:
        if self._sender is None:  # who posts is not among the questions for as long as it sends
            super()._close_unused()
        if self._over:
            self._posted.set()

    def _look(self) -> None:
        """Read what nobody reads, until the connection is over."""
        while not self._over or self._questions:
            if not self._questions:
                self._posted.wait()
                self._posted.clear()
            time.sleep(_LOOK_S)
            if self._questions and self._reading.acquire(blocking=False):
                try:
                    while self._read_once(socket.MSG_DONTWAIT):
                        pass
                finally:
                    self._reading.release()
                    with self._lock:
                        self._have_one_read()
