"""Compiles a tree's Python modules, to the same bytes each time.

Compiling is most of what an enclave does when it starts. In a directory that may change, the file
compiled beforehand could be forged, so a staged tree has none (docs/decisions/0001); in an image
every byte is measured, compiled or not. The sources are left out, so that a module is one file.
"""

from __future__ import annotations

import importlib.util
import marshal
import re
import sys
import warnings
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from casemate_devkit.errors import DevkitError

if TYPE_CHECKING:
    from casemate_devkit.eif.cpio import Entry

# Format 2 knows no references between objects, whose use depends on what else the compiling process
# has in memory.
_FORMAT: Final = 2
_UNCHECKED: Final = (1).to_bytes(4, "little")  # PEP 552: by hash, never compared with a source
_NO_HASH: Final = bytes(8)
_MODULE: Final = re.compile(r"(app|packages|usr/lib(64)?/python3\.[0-9]+)/.*\.py")
# Started by their paths, not imported.
_STARTED: Final = frozenset({"app/boot.py", "app/init.py"})


def compiled(entries: list[Entry]) -> list[Entry]:
    """The tree's entries with each module in place of its source; raises DevkitError.

    What this interpreter cannot compile, templates and the like, stays as it is.
    """
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    if not any(entry.path == f"usr/bin/{version}" for entry in entries):
        raise DevkitError(f"the tree was staged by another interpreter than {version}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of other people's sources
        return [_compiled(entry) for entry in entries]


def _compiled(entry: Entry) -> Entry:
    if entry.at is None or entry.path in _STARTED or not _MODULE.fullmatch(entry.path):
        return entry
    try:
        content = module(entry.at.read_bytes(), f"/{entry.path}")
    except (SyntaxError, ValueError):
        return entry
    return replace(entry, path=f"{entry.path}c", content=content, at=None)


def module(source: bytes, path: str) -> bytes:
    """The compiled file of a module that lies at ``path`` in the enclave; raises SyntaxError."""
    code = compile(source, path, "exec", dont_inherit=True, optimize=0)
    head = importlib.util.MAGIC_NUMBER + _UNCHECKED + _NO_HASH
    return head + marshal.dumps(code, _FORMAT)
