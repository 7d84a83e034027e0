"""What callers have used of their day, kept in a file so that a restart does not forget it."""

from __future__ import annotations

import json
import os
import threading
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from casemate import limits
from casemate.errors import CasemateError, Code
from casemate_host.events import describe, log

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_VERSION: Final = 1


class Used(NamedTuple):
    """Calls and bytes of one day; ``day``: days of UTC since 1970."""

    day: int
    calls: int
    size: int


class Counted(Protocol):
    """A quota that counts."""

    def used(self) -> Used:
        """Return what was used."""
        ...

    def resume(self, used: Used) -> None:
        """Go on from what was used before."""
        ...


class UsageFile:
    """Saves quotas every few seconds, whole and at once: a crash forgets the last seconds.

    The file holds names of callers and numbers. One host writes it.
    """

    def __init__(self, path: Path, quotas: Mapping[str, Counted]) -> None:
        """Take up what ``path`` says; raises CasemateError(INVALID_ARGUMENT) if it cannot be."""
        self._path = path
        self._quotas = quotas
        self._saved: dict[str, Used] = {}
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="usage", daemon=True)
        for name, used in _read(path).items():
            if name in quotas:
                quotas[name].resume(used)
        self._save()

    def start(self) -> None:
        """Begin to save."""
        self._thread.start()

    def stop(self) -> None:
        """Save once more, and no longer."""
        self._stopped.set()
        if self._thread.ident is not None:
            self._thread.join()
        self._try_save()

    def _run(self) -> None:
        while not self._stopped.wait(limits.USAGE_SAVE_S):
            self._try_save()

    def _try_save(self) -> None:
        try:
            self._save()
        except CasemateError as error:
            log.warning("usage_not_saved", code=error.code)

    def _save(self) -> None:
        used = {name: quota.used() for name, quota in self._quotas.items()}
        if used == self._saved and self._saved:
            return
        try:
            _write(self._path, used)
        except OSError as error:
            log.warning("usage_broken", **describe(error))
            raise _unusable(self._path, "it cannot be written") from None
        self._saved = used


def _read(path: Path) -> dict[str, Used]:
    try:
        with path.open("rb") as file:
            data = file.read(limits.USAGE_FILE_MAX + 1)
    except FileNotFoundError:
        return {}
    except OSError:
        raise _unusable(path, "it cannot be read") from None
    try:
        return _parse(data)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise _unusable(path, "it is no record of usage") from None


def _parse(data: bytes) -> dict[str, Used]:
    content = json.loads(data)
    if content["version"] != _VERSION or len(data) > limits.USAGE_FILE_MAX:
        raise ValueError
    used = {name: Used(*numbers) for name, numbers in content["callers"].items()}
    if not all(type(n) is int and n >= 0 for numbers in used.values() for n in numbers):
        raise ValueError
    return used


def _write(path: Path, used: Mapping[str, Used]) -> None:
    """Replace the file in one step that also outlasts a loss of power."""
    content = json.dumps({"version": _VERSION, "callers": used}, sort_keys=True)
    fresh = path.with_name(path.name + ".new")
    with fresh.open("w", encoding="utf-8") as file:
        file.write(content + "\n")
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _unusable(path: Path, why: str) -> CasemateError:
    return CasemateError(Code.INVALID_ARGUMENT, f"quotas.file {path}: {why}")
