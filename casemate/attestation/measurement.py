"""Measurement of a staged tree, where no EIF exists (SPEC 4)."""

from __future__ import annotations

import hashlib
import os
import stat
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from casemate import limits
from casemate.errors import Code, EvidenceError
from casemate.wire import digest, label, lp

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

_RUNTIME: Final = "runtime"
_PARTS: Final = {b"packages": "packages", b"app": "application"}
_FILE, _LINK, _DIRECTORY = range(3)
_WORKERS: Final = 4  # hashing leaves the interpreter's lock; more only contend for the disk
_BUFFER: Final = 1 * limits.MIB
_REGISTER_AT_BOOT: Final = bytes(limits.PCR_BYTES)


@dataclass(frozen=True, slots=True)
class Measurement:
    """The registers that a staged tree and its command line give, 48 bytes each (SPEC 4.3)."""

    pcr0: bytes
    pcr1: bytes
    pcr2: bytes


@dataclass(frozen=True, slots=True)
class _Entry:
    path: bytes  # relative to the root, separated by "/"
    kind: int
    executable: bool
    value: bytes  # a link's target; of a file nothing yet


def measure_tree(root: Path, cmdline: Sequence[str]) -> Measurement:
    """Measure the tree at ``root`` as run with the argument vector ``cmdline``.

    Nobody may change the tree meanwhile: whoever measures it owns it. Raises EvidenceError
    (EVIDENCE_MEASUREMENTS) for what cannot be measured: devices, sockets, FIFOs, names that are
    not UTF-8, unreadable files, and arguments with a zero byte.
    """
    try:
        manifests = _manifests(root)
    except OSError as error:
        raise _refused(error.filename or b"", f"cannot be read: {type(error).__name__}") from None
    runtime, packages = manifests[_RUNTIME], manifests["packages"]
    application = manifests["application"]
    command = _command(cmdline)
    return Measurement(
        pcr0=_extended(lp(runtime, command, packages, application)),
        pcr1=_extended(lp(runtime, command, packages)),
        pcr2=_extended(lp(application)),
    )


def _extended(event: bytes) -> bytes:
    return digest(_REGISTER_AT_BOOT, digest(event))


def _command(cmdline: Sequence[str]) -> bytes:
    if any("\x00" in argument for argument in cmdline):
        raise EvidenceError(Code.EVIDENCE_MEASUREMENTS, "an argument holds a zero byte")
    try:
        return "\x00".join(cmdline).encode()
    except UnicodeEncodeError:
        raise EvidenceError(Code.EVIDENCE_MEASUREMENTS, "an argument is not UTF-8") from None


def _manifests(root: Path) -> Mapping[str, bytes]:
    """Return the manifest of each part (SPEC 4.2)."""
    base = os.fsencode(root)
    entries = sorted(_walk(base, b""), key=lambda entry: entry.path)
    files = [entry.path for entry in entries if entry.kind == _FILE]
    hashes = _hash_files(base, files)
    manifests: defaultdict[str, bytearray] = defaultdict(lambda: bytearray(label("manifest")))
    for entry in entries:
        value = hashes[entry.path] if entry.kind == _FILE else entry.value
        manifest = manifests[_part(entry.path)]
        manifest += lp(entry.path) + bytes([entry.kind, entry.executable]) + lp(value)
    return {part: bytes(manifests[part]) for part in (_RUNTIME, *_PARTS.values())}


def _part(path: bytes) -> str:
    """The part that ``path`` belongs to; the two top folders themselves are of the runtime."""
    top, below, _ = path.partition(b"/")
    return _PARTS.get(top, _RUNTIME) if below else _RUNTIME


def _walk(base: bytes, folder: bytes) -> Iterator[_Entry]:
    with os.scandir(os.path.join(base, folder)) as found:  # noqa: PTH118 - paths are bytes
        for item in found:
            path = folder + item.name
            yield _entry(item, path)
            if item.is_dir(follow_symlinks=False):
                yield from _walk(base, path + b"/")


def _entry(item: os.DirEntry[bytes], path: bytes) -> _Entry:
    try:
        item.name.decode()
    except UnicodeDecodeError:
        raise _refused(path, "the name is not UTF-8") from None
    mode = item.stat(follow_symlinks=False).st_mode
    if stat.S_ISREG(mode):
        return _Entry(path, _FILE, bool(mode & stat.S_IXUSR), b"")
    if stat.S_ISLNK(mode):
        return _Entry(path, _LINK, False, os.readlink(item.path))  # noqa: PTH115 - bytes
    if stat.S_ISDIR(mode):
        return _Entry(path, _DIRECTORY, False, b"")
    raise _refused(path, "neither a file, nor a link, nor a directory")


def _hash_files(base: bytes, paths: Sequence[bytes]) -> dict[bytes, bytes]:
    shares = [paths[start::_WORKERS] for start in range(_WORKERS)]
    with ThreadPoolExecutor(_WORKERS) as pool:
        hashed = pool.map(lambda share: _hash_share(base, share), shares)
        return {path: value for share in hashed for path, value in share}


def _hash_share(base: bytes, paths: Sequence[bytes]) -> list[tuple[bytes, bytes]]:
    """Hash one worker's files, all through one buffer."""
    buffer = memoryview(bytearray(_BUFFER))
    return [(path, _hash_file(base + b"/" + path, buffer)) for path in paths]


def _hash_file(path: bytes, buffer: memoryview) -> bytes:
    state = hashlib.sha384()
    with open(path, "rb", buffering=0) as file:  # noqa: PTH123 - paths are bytes
        while count := file.readinto(buffer):
            state.update(buffer[:count])
    return state.digest()


def _refused(path: bytes | str, detail: str) -> EvidenceError:
    name = ascii(os.fsdecode(path))
    return EvidenceError(Code.EVIDENCE_MEASUREMENTS, f"{name}: {detail}")
