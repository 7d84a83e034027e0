"""The contents of a model while they are opened: put where they stay, verified, released."""

from __future__ import annotations

import hmac
import threading
from functools import partial
from typing import TYPE_CHECKING

from casemate import limits
from casemate.envelope.chunks import BrokenSealError
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
    from collections.abc import Callable, Sequence

    from casemate.envelope.chunks import ChunkCipher
    from casemate.sealed_model.header import ModelEntry


def open_failed() -> ModelError:
    """Return the single error of a model that does not open: commitment, chunk, length, digest."""
    return ModelError(Code.MODEL_OPEN_FAILED, "the model does not open")


class Contents(Guarded):
    """Takes memory for all entries at once; the caller has checked their sum against its limit.

    Until the first part is there, a thread has the kernel find memory for them.
    """

    def __init__(self, entries: Sequence[ModelEntry]) -> None:
        """Raises OSError if there is no memory."""
        self._entries = entries
        self._digests: list[list[bytes]] = [[]]  # of the parts of each entry so far
        lengths = {entry.path: entry.length for entry in entries}
        self._places, end = places_of(lengths)
        self._missing = sum(lengths.values())
        self._count = 0
        self._made = ModelContents(memory_file(end), lengths)
        self._begun = threading.Event()
        self._supplier = threading.Thread(target=self._supply, args=(end,), name="memory")
        self._supplier.start()
        self._skip()

    @property
    def wanted(self) -> int:
        """The length of the next part; 0 when all are there."""
        entry = self._entries[len(self._digests) - 1]
        return max(0, min(limits.CHUNK, entry.length - limits.CHUNK * len(self._digests[-1])))

    @property
    def last(self) -> bool:
        """Whether the part that is wanted next is the last one."""
        return self.wanted == self._missing

    def add(self, sealed: memoryview, cipher: ChunkCipher) -> Callable[[], None]:
        """Count the next part, sealed, and return what opens it where it lies, keeps and hashes it.

        That may be called on any thread; it raises ModelError (MODEL_OPEN_FAILED), OSError.
        """
        self._begun.set()
        digests = self._digests[-1]
        at = self._places[self._entries[len(self._digests) - 1].path] + limits.CHUNK * len(digests)
        opening = partial(cipher.open_in_place, sealed, self._count, last=self.last)
        keeping = partial(self._keep, opening, at, digests, len(digests))
        self._count += 1
        self._missing -= self.wanted
        digests.append(b"")
        self._skip()
        return keeping

    def release(self) -> ModelContents:
        """Return everything; raises ModelError (MODEL_OPEN_FAILED) if a digest differs."""
        self._end()
        for entry, digests in zip(self._entries, self._digests, strict=True):
            digest = content_digest(entry.length, digests)
            if not hmac.compare_digest(digest, entry.digest):
                raise open_failed()
        seal(self._made.descriptor)
        return self._made

    def drop(self) -> None:
        """Give up what has not been released."""
        self._end()
        self._made.close()

    def _end(self) -> None:
        self._begun.set()
        self._supplier.join()

    def _supply(self, end: int) -> None:
        """Once parts are written the kernel would make both wait for each other."""
        for start in range(0, end, limits.CHUNK):
            if self._begun.is_set():
                return
            supply(self._made.descriptor, start, min(limits.CHUNK, end - start))

    def _keep(
        self, opening: Callable[[], memoryview], at: int, digests: list[bytes], number: int
    ) -> None:
        try:
            part = opening()
        except BrokenSealError:
            raise open_failed() from None
        write_at(self._made.descriptor, part, at)
        digests[number] = part_digest(part)

    def _skip(self) -> None:
        """Go on to the next entry that has a part missing, if there is one."""
        while not self.wanted and len(self._digests) < len(self._entries):
            self._digests.append([])
