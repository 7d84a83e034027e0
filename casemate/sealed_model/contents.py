"""The opened contents of a model: memory taken once, filled in place, verified, released."""

from __future__ import annotations

import hmac
import io
import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from casemate import limits
from casemate.envelope.guard import Guarded
from casemate.errors import Code, ModelError
from casemate.sealed_model.parts import content_digest, part_digest

if TYPE_CHECKING:
    from collections.abc import Iterable
    from concurrent.futures import Future

    from casemate.sealed_model.header import ModelEntry


def open_failed() -> ModelError:
    """Return the single error of a model that does not open: commitment, chunk, length, digest."""
    return ModelError(Code.MODEL_OPEN_FAILED, "the model does not open")


class _Slot:
    """The content of one entry."""

    def __init__(self, entry: ModelEntry) -> None:
        self.entry = entry
        self._store = io.BytesIO()
        if entry.length:
            # BytesIO gives its memory up as bytes without a copy: the model exists once.
            self._store.seek(entry.length - 1)
            self._store.write(b"\0")
        self._view = self._store.getbuffer()
        self._parts: list[Future[bytes]] = []

    @property
    def wanted(self) -> int:
        """The length of the next part; 0 if there is none."""
        return len(self.next())

    def next(self) -> memoryview:
        at = limits.CHUNK * len(self._parts)
        return self._view[at : at + limits.CHUNK]

    def filled(self, digests: ThreadPoolExecutor) -> None:
        self._parts.append(digests.submit(_digest_and_leave, self.next()))

    def release(self) -> bytes:
        parts = [part.result() for part in self._parts]
        self._view.release()
        if not hmac.compare_digest(content_digest(self.entry.length, parts), self.entry.digest):
            raise open_failed()
        return self._store.getvalue()


class Contents(Guarded):
    """Takes memory for all entries at once; the caller has checked their sum against its limit.

    Digests are computed on threads of their own, while the next parts arrive and are opened: they
    are most of what opening costs.
    """

    def __init__(self, entries: Iterable[ModelEntry]) -> None:
        self._slots = [_Slot(entry) for entry in entries]
        self._missing = [slot for slot in reversed(self._slots) if slot.wanted]
        self._left = sum(slot.entry.length for slot in self._slots)
        threads = min(os.cpu_count() or 1, limits.DIGEST_THREADS_MAX)
        self._digests = ThreadPoolExecutor(threads, thread_name_prefix="digest")

    @property
    def wanted(self) -> int:
        """The length of the next part; 0 when all are there."""
        return self._missing[-1].wanted if self._missing else 0

    @property
    def last(self) -> bool:
        """Whether the part that is wanted next is the last one."""
        return self._left == self.wanted

    def place(self) -> memoryview:
        """Return where to put the next part, before ``filled`` says that it is there."""
        return self._missing[-1].next()

    def filled(self) -> None:
        """Take the part that the caller has put into ``place``."""
        self._left -= self.wanted
        self._missing[-1].filled(self._digests)
        if not self._missing[-1].wanted:
            self._missing.pop()

    def release(self) -> dict[str, bytes]:
        """Return path -> content; raises ModelError (MODEL_OPEN_FAILED) if a digest differs."""
        self._digests.shutdown(wait=True)
        return {slot.entry.path: slot.release() for slot in self._slots}

    def drop(self) -> None:
        """Give up what has not been released."""
        self._digests.shutdown(wait=False, cancel_futures=True)


def _digest_and_leave(part: memoryview) -> bytes:
    with part:  # what is looked at cannot be released
        return part_digest(part)
