"""Faults on demand: what a client must survive or refuse, and what AWS will not do when asked.

A fault is written ``KIND[=VALUE][*TIMES][@OPERATION]``: ``throttle*3@Decrypt``, ``slow=2.5``.
Without ``*TIMES`` it lasts until it is cleared.
"""

from __future__ import annotations

import logging
import re
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from casemate_devkit.kms.errors import KmsError, Reason

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

FAULTS_FILE: Final = "faults"
ENVIRONMENT: Final = "CASEMATE_KMS_DOUBLE_FAULTS"

# What each kind does, and the value it takes where it takes none by default.
KINDS: Final[dict[str, tuple[str, float]]] = {
    "disconnect": ("end the connection instead of answering", 0),
    "error": ("answer with an HTTP error of the 500 range; VALUE is the status", 500),
    "forged-envelope": ("seal other content to the attested key, as a host could", 0),
    "plaintext-leak": ("add the plaintext to an attested answer", 0),
    "plaintext-only": ("answer an attested request in plaintext", 0),
    "slow": ("wait VALUE seconds before answering", 1),
    "stale-documents": ("accept attestation documents up to VALUE seconds old", 0),
    "tampered-envelope": ("flip one bit of the envelope's initialisation vector", 0),
    "throttle": ("answer ThrottlingException", 0),
    "wrong-key-id": ("name another key in the answer", 0),
}
_SPEC: Final = re.compile(
    r"([a-z-]{1,32})(?:=([0-9]{1,9}(?:\.[0-9]{1,3})?))?(?:\*([0-9]{1,6}))?(?:@([A-Za-z]{1,64}))?"
)
_LOG = logging.getLogger("casemate_devkit.kms")


@dataclass(slots=True)
class _Fault:
    kind: str
    value: float
    times: int | None
    operation: str | None


class Faults:
    """The faults in force; thread-safe. A file named ``faults``, one on each line, replaces them.

    Raises ValueError for a fault that is not understood; one in the file stops every request until
    it is mended, so that no test passes because of a misspelt fault.
    """

    def __init__(self, specs: Iterable[str] = (), file: Path | None = None) -> None:
        self._lock = threading.Lock()
        self._faults = _parse(specs)
        self._file = file
        self._seen: tuple[int, int, int] | None = None

    def take(self, kind: str, operation: str) -> float | None:
        """Return the value of a fault that strikes ``operation`` now, and count it; else None."""
        with self._lock:
            self._refresh()
            for fault in self._faults:
                if fault.kind == kind and fault.operation in {None, operation}:
                    return self._strike(fault, operation)
        return None

    def _strike(self, fault: _Fault, operation: str) -> float | None:
        if fault.times is not None:
            fault.times -= 1
            self._faults = [item for item in self._faults if item.times != 0]
        _LOG.warning("FAULT %s strikes %s", fault.kind, operation)
        return fault.value

    def _refresh(self) -> None:
        """Read the file if it changed since; without a file what was armed before stays."""
        if self._file is None:
            return
        try:
            stat = self._file.stat()
        except FileNotFoundError:
            if self._seen is not None:
                self._faults, self._seen = [], None
            return
        seen = (stat.st_ino, stat.st_mtime_ns, stat.st_size)
        if seen != self._seen:
            try:
                self._faults = _parse(self._file.read_text(encoding="utf-8").splitlines())
            except ValueError as error:
                reason = Reason("fault", str(error))
                text = f"{FAULTS_FILE}: {error}"
                raise KmsError("KMSInternalException", text, reason, status=500) from None
            self._seen = seen


def _parse(specs: Iterable[str]) -> list[_Fault]:
    return [_read(text.strip()) for text in specs if text.strip()]


def _read(text: str) -> _Fault:
    match = _SPEC.fullmatch(text)
    if match is None or match[1] not in KINDS:
        msg = f"not a fault: {text[:64]!r}; there are {', '.join(KINDS)}"
        raise ValueError(msg)
    kind, value, times, operation = match.groups()
    if times is not None and int(times) == 0:
        msg = f"a fault that strikes no times: {text[:64]!r}"
        raise ValueError(msg)
    number = float(value) if value is not None else KINDS[kind][1]
    return _Fault(kind, number, int(times) if times is not None else None, operation)


def write_faults(path: Path, specs: Iterable[str]) -> None:
    """Arm these faults in a running double by its file; none at all clears them."""
    lines = [text for text in specs if _parse([text])]
    partial = path.with_suffix(".partial")
    partial.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    partial.replace(path)
