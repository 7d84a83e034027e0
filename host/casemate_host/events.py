"""Events of the host: JSON lines on standard error.

Promise: an event carries names from closed sets, reason codes, counts, and sizes rounded up to
powers of two. Never a payload, a header, a credential, nor the text of a foreign exception.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections import Counter
from typing import TYPE_CHECKING, TextIO

import structlog

if TYPE_CHECKING:
    from casemate.errors import Code

log: structlog.typing.FilteringBoundLogger = structlog.get_logger("casemate_host")


class _Forward(logging.Handler):
    """Records of libraries, without their texts, which may quote what they choke on."""

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage() if record.name.split(".")[0] == "casemate" else ""
        log.warning("library_warning", logger=record.name, detail=text)


def configure_logging(stream: TextIO | None = None) -> None:
    """Send this process' events to ``stream`` (default: standard error), one JSON object a line."""
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.ExceptionRenderer(
                structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
            ),
            structlog.processors.JSONRenderer(sort_keys=True),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(stream or sys.stderr),
        cache_logger_on_first_use=False,
    )
    logging.basicConfig(handlers=[_Forward()], level=logging.WARNING, force=True)


def describe(error: BaseException) -> dict[str, str]:
    """Name an unexpected exception by type and place, without its text and without locals."""
    place = error.__traceback__
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    at = f"{place.tb_frame.f_globals.get('__name__')}:{place.tb_lineno}" if place else "?"
    return {"error": type(error).__name__, "at": at}


def size_bucket(size: int) -> int:
    """Round ``size`` in bytes up to a power of two, at least 1,024."""
    return 1 << max(10, (size - 1).bit_length())


class Traffic:
    """Counts of calls between two reports, thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._calls: Counter[str] = Counter()
        self._refused: Counter[str] = Counter()
        self._sizes: Counter[int] = Counter()

    def answered(self, method: str, *sizes: int) -> None:
        """Count answered calls with requests of ``sizes`` bytes."""
        with self._lock:
            self._calls[method] += len(sizes)
            for size in sizes:
                self._sizes[size_bucket(size)] += 1

    def refused(self, method: str, code: Code) -> None:
        """Count a call that ended with ``code``."""
        with self._lock:
            self._refused[f"{method} {code}"] += 1

    def report(self) -> None:
        """Log what happened since the last report, if anything did."""
        with self._lock:
            calls, refused = dict(self._calls), dict(self._refused)
            sizes = {str(size): count for size, count in self._sizes.items()}
            self._calls.clear()
            self._refused.clear()
            self._sizes.clear()
        if calls or refused:
            log.info("traffic", answered=calls, refused=refused, request_bytes=sizes)
