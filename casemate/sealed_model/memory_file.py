"""A model's contents in memory that has no name, never changes and may be given to a process."""

from __future__ import annotations

import ctypes
import mmap
import os
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Final

from casemate.envelope.guard import Guarded

if TYPE_CHECKING:
    from collections.abc import Mapping

    from casemate.wire import Buffer

_LIBRARY: Final = ctypes.CDLL(None)
_ADD_SEALS: Final = 1033  # fcntl(2), as fcntl.F_ADD_SEALS, which not every system's module has
_ALL_SEALS: Final = 0xF  # neither size nor content changes, nor which seals there are
_ALIGNMENT: Final = 64  # at least what any element type and vector instruction wants


def memory_file(size: int) -> int:
    """Return the descriptor of a memory file of ``size`` bytes; Linux only. Raises OSError."""
    descriptor = os.memfd_create("", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(descriptor, size)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def write_at(descriptor: int, data: Buffer, at: int) -> None:
    """Write all of ``data``; other threads run meanwhile. Raises OSError."""
    with memoryview(data) as view:
        done = 0
        while done < len(view):
            done += os.pwrite(descriptor, view[done:], at + done)


def supply(descriptor: int, start: int, length: int) -> None:
    """Have the kernel find memory for ``length`` bytes now and not when they are written.

    Other threads run meanwhile. What cannot be had shows when it is written.
    """
    # Not os.posix_fallocate: where the call is refused, the C library would write instead.
    _LIBRARY.fallocate(descriptor, 0, ctypes.c_int64(start), ctypes.c_int64(length))


def seal(descriptor: int) -> None:
    """Have a memory file never change again; no writable mapping of it may exist."""
    import fcntl  # noqa: PLC0415 - clients on systems without it import this module

    fcntl.fcntl(descriptor, _ADD_SEALS, _ALL_SEALS)


def places_of(lengths: Mapping[str, int]) -> tuple[dict[str, int], int]:
    """Return where contents of these lengths begin in their memory file, and its length.

    Each begins aligned: what a publisher aligned within a file is aligned in memory.
    """
    places, end = {}, 0
    for path, length in lengths.items():
        places[path] = -(-end // _ALIGNMENT) * _ALIGNMENT
        end = places[path] + length
    return places, end


class ModelContents(Guarded):
    """The contents of a model, entry after entry in one sealed memory file; thread-safe.

    ``lengths`` maps paths to lengths in bytes, the ONNX model first. ``descriptor`` may be given to
    another process; it is closed when this object is dropped, or ``close`` called.
    """

    def __init__(self, descriptor: int, lengths: Mapping[str, int]) -> None:
        """Take over ``descriptor``: a memory file with each content in its place, sealed."""
        self.descriptor = descriptor
        self.lengths = dict(lengths)
        self._places, self._end = places_of(lengths)
        self.close = weakref.finalize(self, os.close, descriptor)

    @classmethod
    def of(cls, contents: Mapping[str, Buffer]) -> ModelContents:
        """Take contents that nobody sealed; raises OSError."""
        lengths = {path: len(content) for path, content in contents.items()}
        places, end = places_of(lengths)
        made = cls(memory_file(end), lengths)
        for path, content in contents.items():
            write_at(made.descriptor, content, places[path])
        seal(made.descriptor)
        return made

    def views(self) -> dict[str, memoryview]:
        """Show each content where it lies, for reading; unmapped with the last view."""
        # A shared mapping of a sealed file is refused by Linux before 6.7, even one for reading.
        kind = {"flags": mmap.MAP_PRIVATE, "prot": mmap.PROT_READ}
        memory = memoryview(mmap.mmap(self.descriptor, self._end, **kind) if self._end else b"")
        return {
            path: memory[start : start + self.lengths[path]] for path, start in self._places.items()
        }

    @property
    def location(self) -> str | None:
        """A path under which this process can open the ONNX model, if it is the only entry.

        None too where /proc is missing or shows another process, as in the process form.
        """
        path = f"/proc/self/fd/{self.descriptor}"
        if len(self.lengths) > 1:
            return None
        try:
            same = os.path.samestat(Path(path).stat(), os.fstat(self.descriptor))
        except OSError:
            return None
        return path if same else None
