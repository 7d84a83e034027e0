"""The sealed models that the host is to load, each with its own attempts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from casemate import limits
from casemate.errors import CasemateError, Code, ModelError
from casemate.sealed_model.header import MAGIC, PREFIX_BYTES, ModelHeader
from casemate_host.backoff import Backoff
from casemate_host.control import LoadedModel
from casemate_host.events import log

if TYPE_CHECKING:
    from pathlib import Path

    from casemate_host.control import Control

# What may pass without anybody changing the file. KEY_RELEASE_DENIED is among them: key policies
# take effect minutes after they are mended, and no host should have to be restarted for that.
_PASSING: Final = frozenset(
    {
        Code.UNAVAILABLE,
        Code.OVERLOADED,
        Code.DEADLINE_EXCEEDED,
        Code.CLOCK_UNAVAILABLE,
        Code.KEY_RELEASE_UNAVAILABLE,
        Code.KEY_RELEASE_DENIED,
    }
)
_KEY_RELEASE: Final = frozenset(
    {Code.KEY_RELEASE_UNAVAILABLE, Code.KEY_RELEASE_DENIED, Code.KEY_RELEASE_INVALID}
)


def identify(path: Path) -> LoadedModel:
    """Read which model a sealed file says it holds; only the enclave verifies it.

    Raises ModelError(MODEL_MALFORMED); OSError if the file cannot be read.
    """
    with path.open("rb") as file:
        start = file.read(PREFIX_BYTES + limits.MODEL_HEADER_MAX)
    length = int.from_bytes(start[len(MAGIC) : PREFIX_BYTES], "big")
    if not start.startswith(MAGIC) or not 0 < length <= len(start) - PREFIX_BYTES:
        raise ModelError(Code.MODEL_MALFORMED, "not a sealed model")
    header = ModelHeader.parse(start[PREFIX_BYTES : PREFIX_BYTES + length])
    return LoadedModel(header.name, header.version, header.digest)


class ModelSlot:
    """One sealed file: loaded, due for an attempt at a time, or refused until the file changes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._backoff = Backoff(1.0, limits.RELOAD_MAX_S)
        self._due: float | None = 0.0
        self._stamp: tuple[int, int] | None = None
        self.failure: Code | None = None
        self.model: LoadedModel | None = None

    def retry(self) -> None:
        """Let the next round try, whatever failed before."""
        self._due = 0.0
        self._backoff.reset()

    def load(self, control: Control, replaces: int | None = None) -> LoadedModel:
        """Load the file at once; raises CasemateError, OSError."""
        self._changed()
        self.model = control.load(self.path, replaces)
        self._succeeded(self.model)
        return self.model

    def credentials_changed(self) -> None:
        """Let the next round try if key release was what failed."""
        if self.failure in _KEY_RELEASE:
            self.retry()

    def round(self, control: Control, present: frozenset[LoadedModel], now: float) -> bool:
        """Load the model if it is not among ``present`` and due at ``now``; True if it was loaded.

        ``now``: seconds of a monotonic clock. Never raises CasemateError or OSError.
        """
        if self._changed():
            self.retry()
            self.model = None
        if self._due is None or now < self._due:
            return False
        try:
            self.model = self.model or identify(self.path)
            if self.model in present:
                return False
            self.model = control.load(self.path)
        except CasemateError as error:
            self._failed(error, now)
        except OSError as error:
            detail = f"the file cannot be read: {error.strerror}"
            self._failed(CasemateError(Code.INVALID_ARGUMENT, detail), now)
        else:
            self._succeeded(self.model)
            return True
        return False

    def _succeeded(self, model: LoadedModel) -> None:
        self.failure = None
        self._backoff.reset()
        log.info("model_loaded", model=model.name, version=model.version, digest=model.digest.hex())

    def _failed(self, error: CasemateError, now: float) -> None:
        self.failure = error.code
        pause = self._backoff.next() if error.code in _PASSING else None
        self._due = None if pause is None else now + pause
        log.error(
            "model_failed",
            file=self.path.name,
            code=error.code,
            detail=error.detail,
            retry_seconds=pause,
        )

    def _changed(self) -> bool:
        """Whether the file is another one than in the round before; a missing one may come."""
        try:
            status = self.path.stat()
        except OSError:
            current = None
        else:
            current = (status.st_mtime_ns, status.st_size)
        previous, self._stamp = self._stamp, current
        return current is not None and current != previous
