"""The opened contents of a model: memory taken once, filled in place, verified, released."""

from __future__ import annotations

import hmac
import io
from typing import TYPE_CHECKING

from cryptography.hazmat.primitives import hashes

from casemate.envelope.guard import Guarded
from casemate.errors import Code, ModelError

if TYPE_CHECKING:
    from collections.abc import Iterable

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

    def fill(self, piece: memoryview) -> None:
        self._view[self._at : self._at + len(piece)] = piece
        self._hash.update(piece)
        self._at += len(piece)

    def release(self) -> bytes:
        self._view.release()
        if self.missing or not hmac.compare_digest(self._hash.finalize(), self.entry.digest):
            raise open_failed()
        return self._store.getvalue()


class Contents(Guarded):
    """Takes memory for all entries at once; the caller has checked their sum against its limit."""

    def __init__(self, entries: Iterable[ModelEntry]) -> None:
        self._slots = [_Slot(entry) for entry in entries]
        self._current = 0

    def write(self, plain: memoryview) -> None:
        """Append the next opened bytes, which may span entries."""
        while plain:
            slot = self._slots[self._current]
            if not slot.missing:
                self._current += 1
                continue
            piece = plain[: slot.missing]
            slot.fill(piece)
            plain = plain[len(piece) :]

    def release(self) -> dict[str, bytes]:
        """Return path -> content; raises ModelError (MODEL_OPEN_FAILED) if a digest differs."""
        return {slot.entry.path: slot.release() for slot in self._slots}
