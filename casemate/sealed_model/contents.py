"""The opened contents of a model: memory taken once, filled in place, verified, released."""

from __future__ import annotations

import hmac
import io
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from cryptography.hazmat.primitives import hashes

from casemate.envelope.guard import Guarded
from casemate.errors import Code, ModelError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

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
        self._hash = hashes.Hash(hashes.SHA384())
        self._at = 0

    @property
    def missing(self) -> int:
        return self.entry.length - self._at

    def next(self, size: int) -> memoryview:
        return self._view[self._at : self._at + size]

    def advance(self, size: int) -> Callable[[], None]:
        """Note that ``next(size)`` is filled; what is returned takes it into the digest."""
        piece = self.next(size)
        self._at += size

        def digest() -> None:
            with piece:
                self._hash.update(piece)

        return digest

    def release(self) -> bytes:
        self._view.release()
        if self.missing or not hmac.compare_digest(self._hash.finalize(), self.entry.digest):
            raise open_failed()
        return self._store.getvalue()


class Contents(Guarded):
    """Takes memory for all entries at once; the caller has checked their sum against its limit.

    Digests are computed on a thread of its own, while the next chunk arrives and is opened: they
    are most of what opening costs.
    """

    def __init__(self, entries: Iterable[ModelEntry]) -> None:
        self._slots = [_Slot(entry) for entry in entries]
        self._current = 0
        self._across = memoryview(b"")
        self._digests = ThreadPoolExecutor(1, thread_name_prefix="digest")

    def place(self, size: int) -> memoryview:
        """Return where to put the next ``size`` opened bytes, before ``filled`` says they are."""
        slot = self._slots[self._skip_full()]
        if slot.missing >= size:
            return slot.next(size)
        if len(self._across) < size:
            self._across = memoryview(bytearray(size))
        return self._across[:size]

    def filled(self, place: memoryview) -> None:
        """Take what ``place`` returned and its caller has filled."""
        slot = self._slots[self._current]
        if slot.missing >= len(place):
            self._digest(slot, len(place))
            return
        while place:  # it spans entries
            slot = self._slots[self._skip_full()]
            size = min(slot.missing, len(place))
            slot.next(size)[:] = place[:size]
            self._digest(slot, size)
            place = place[size:]

    def release(self) -> dict[str, bytes]:
        """Return path -> content; raises ModelError (MODEL_OPEN_FAILED) if a digest differs."""
        self._digests.shutdown(wait=True)
        return {slot.entry.path: slot.release() for slot in self._slots}

    def drop(self) -> None:
        """Give up what has not been released."""
        self._digests.shutdown(wait=False, cancel_futures=True)

    def _digest(self, slot: _Slot, size: int) -> None:
        self._digests.submit(slot.advance(size))  # one thread: in order

    def _skip_full(self) -> int:
        while not self._slots[self._current].missing and self._current + 1 < len(self._slots):
            self._current += 1
        return self._current
