"""The contents of a model while they are opened: put where they stay, verified, released."""

from __future__ import annotations

import hmac
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import TYPE_CHECKING, Final

from casemate import limits
from casemate.envelope.guard import Guarded
from casemate.errors import Code, ModelError
from casemate.sealed_model.memory_file import (
    ModelContents,
    memory_file,
    places_of,
    seal,
    supply,
    write_at,
)
from casemate.sealed_model.parts import content_digest, part_digest

if TYPE_CHECKING:
    from collections.abc import Sequence
    from concurrent.futures import Future

    from casemate.sealed_model.header import ModelEntry

_AHEAD: Final = 2  # parts that are being opened, or wait, while every thread has one


def open_failed() -> ModelError:
    """Return the single error of a model that does not open: commitment, chunk, length, digest."""
    return ModelError(Code.MODEL_OPEN_FAILED, "the model does not open")


class Contents(Guarded):
    """Takes memory for all entries at once; the caller has checked their sum against its limit.

    Parts are hashed and put into the memory file on threads of their own, while the next ones
    arrive and are opened: that is most of what opening costs. Until the first part is there, a
    thread has the kernel find memory for them. Memory: the contents, and a part for each thread and
    two more.
    """

    def __init__(self, entries: Sequence[ModelEntry]) -> None:
        """Raises OSError if there is no memory."""
        self._entries = entries
        self._parts: list[list[Future[bytes]]] = [[]]  # of each entry so far
        lengths = {entry.path: entry.length for entry in entries}
        self._places, end = places_of(lengths)
        self._missing = sum(lengths.values())
        self._made = ModelContents(memory_file(end), lengths)
        self._begun = threading.Event()
        self._supplier = threading.Thread(target=self._supply, args=(end,), name="memory")
        self._supplier.start()
        threads = min(os.cpu_count() or 1, limits.DIGEST_THREADS_MAX)
        self._workers = ThreadPoolExecutor(threads, thread_name_prefix="digest")
        self._rooms: SimpleQueue[bytearray] = SimpleQueue()
        for _ in range(threads + _AHEAD):
            self._rooms.put(bytearray(min(limits.CHUNK, self._missing)))
        self._skip()

    @property
    def wanted(self) -> int:
        """The length of the next part; 0 when all are there."""
        entry = self._entries[len(self._parts) - 1]
        return max(0, min(limits.CHUNK, entry.length - limits.CHUNK * len(self._parts[-1])))

    @property
    def last(self) -> bool:
        """Whether the part that is wanted next is the last one."""
        return self.wanted == self._missing

    def room(self) -> bytearray:
        """Return room for the next part, to be filled from its beginning and given to ``add``."""
        self._begun.set()
        return self._rooms.get()

    def add(self, room: bytearray) -> None:
        """Take the next part, which the caller has put into ``room``."""
        size, parts = self.wanted, self._parts[-1]
        at = self._places[self._entries[len(self._parts) - 1].path] + limits.CHUNK * len(parts)
        parts.append(self._workers.submit(self._keep, room, size, at))
        self._missing -= size
        self._skip()

    def release(self) -> ModelContents:
        """Return everything; raises ModelError (MODEL_OPEN_FAILED) if a digest differs."""
        self._end()
        for entry, parts in zip(self._entries, self._parts, strict=True):
            digest = content_digest(entry.length, [part.result() for part in parts])
            if not hmac.compare_digest(digest, entry.digest):
                raise open_failed()
        seal(self._made.descriptor)
        return self._made

    def drop(self) -> None:
        """Give up what has not been released."""
        self._end(cancel=True)
        self._made.close()

    def _end(self, *, cancel: bool = False) -> None:
        self._begun.set()
        self._supplier.join()
        self._workers.shutdown(wait=True, cancel_futures=cancel)

    def _supply(self, end: int) -> None:
        """Once parts are written the kernel would make both wait for each other."""
        for start in range(0, end, limits.CHUNK):
            if self._begun.is_set():
                return
            supply(self._made.descriptor, start, min(limits.CHUNK, end - start))

    def _keep(self, room: bytearray, size: int, at: int) -> bytes:
        try:
            with memoryview(room)[:size] as part:
                write_at(self._made.descriptor, part, at)
                return part_digest(part)
        finally:
            self._rooms.put(room)

    def _skip(self) -> None:
        """Go on to the next entry that has a part missing, if there is one."""
        while not self.wanted and len(self._parts) < len(self._entries):
            self._parts.append([])
