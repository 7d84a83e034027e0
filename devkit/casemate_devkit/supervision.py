"""What the launcher learns from an enclave that ends, and how soon it starts the next one.

The launcher stands outside. An enclave's standard error may carry its enumerated events and nothing
else: a library that writes to it while it dies may quote memory. So each line is read strictly, and
what is no event is counted and dropped.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
import time
from typing import TYPE_CHECKING, Any, Final, NoReturn, Self, TextIO

from casemate.errors import CasemateError, Code
from casemate_devkit.errors import DevkitError
from casemate_enclave.events import Event

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import BinaryIO

# Exit statuses of launchers
CANNOT_START: Final = 1
ENCLAVE_ENDED: Final = 3

DEBUG_WARNING: Final = "DEBUG: PCR0, PCR1 and PCR2 are zero; no sane policy accepts this evidence"

_LINE_MAX: Final = 512  # bytes; an event takes a hundred
_KEPT_MAX: Final = 1 << 20  # bytes; a kernel's last words take a few thousand
_COUNT_MASK: Final = 0xFFFFFFFF
_FIRST_S: Final = 1.0  # an enclave that ends at once must not keep a processor busy
_LONGEST_S: Final = 30.0
_HEALTHY_S: Final = 60.0  # a life this long says that the cause before is over


class RestartPause:
    """Pauses before the next start: doubled each time, short again after a minute of life."""

    def __init__(self) -> None:
        self._next_s = _FIRST_S

    def after(self, lived_s: float, status: int) -> float:
        """Return the pause in seconds, after an enclave that lived for ``lived_s``.

        None after status 0: it came to the end of its life in order (SPEC 9.7).
        """
        if status == 0:
            return 0.0
        pause = _FIRST_S if lived_s >= _HEALTHY_S else self._next_s
        self._next_s = min(_LONGEST_S, pause * 2)
        return pause


class EventRelay:
    """Takes an enclave's standard error and passes its events on; a context manager.

    ``stream`` is what the enclave writes to. What is no event is dropped, or with ``keep`` kept as
    long as the enclave does not serve. After ``finish``: ``last`` is the last event, with its
    reason code if it had one, and ``withheld`` how many lines were none. ``started`` is set once
    the enclave says that it serves.
    """

    def __init__(self, sink: TextIO | None = None) -> None:
        self.started = threading.Event()
        self._sink = sink or sys.stderr
        reader, writer = os.pipe()
        self._reader: BinaryIO = os.fdopen(reader, "rb")
        self.stream: BinaryIO = os.fdopen(writer, "wb")
        self.last = ""
        self.withheld = 0
        self._kept: BinaryIO | None = None
        self._room = _KEPT_MAX
        self._thread = threading.Thread(target=self._pass_on, name="events", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.finish()

    def keep(self, file: BinaryIO) -> None:
        """Write to ``file`` what is no event, until the enclave serves: no key is in it before."""
        self._kept = file

    def _keep(self, line: bytes) -> None:
        self.withheld += 1
        if self._kept is not None and not self.started.is_set() and len(line) <= self._room:
            self._room -= len(line)
            with contextlib.suppress(OSError, ValueError):
                self._kept.write(line)

    def finish(self) -> None:
        """Read what is left; call it when whoever wrote has ended. Idempotent."""
        self.stream.close()
        self._thread.join()

    def _pass_on(self) -> None:
        with self._reader:
            while line := self._reader.readline(_LINE_MAX):
                event = read_event(line)
                if event is None:
                    self._keep(line)
                    continue
                name, code = event["event"], event.get("code")
                self.last = f"{name} ({code})" if code else str(name)
                if name == Event.STARTED:
                    self.started.set()
                with contextlib.suppress(OSError, ValueError):  # whoever reads it may be gone
                    print(json.dumps(event), file=self._sink, flush=True)


def read_event(line: bytes) -> dict[str, str | int] | None:
    """Return the event in a line of an enclave's, rebuilt from known names; None if it is none."""
    try:
        fields: Any = json.loads(line)
        known: dict[str, str | int] = {"event": Event(fields["event"]).value}
        if "code" in fields:
            known["code"] = Code(fields["code"]).value
        if "count" in fields:
            known["count"] = int(fields["count"]) & _COUNT_MASK
    except (ArithmeticError, ValueError, TypeError, KeyError, RecursionError):
        return None
    return known if known == fields else None


def describe_end(status: int) -> str:
    """Say how a process ended; ``status`` is its exit status, negative for a signal."""
    if status >= 0:
        return f"status {status}"
    try:
        return f"signal {signal.Signals(-status).name}"
    except ValueError:
        return f"signal {-status}"


def keep_running(name: str, run: Callable[[EventRelay], int], *, restart: bool) -> int:
    """Do a launcher's work: ``run`` an enclave to its end, and with ``restart`` the next one.

    ``name`` is the launcher's, in front of what it says. Returns the exit status.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _stop)
    pause = RestartPause()
    while True:
        try:
            lived, status = _live(name, run)
        except (DevkitError, CasemateError) as error:
            warn(f"{name}: {error}")
            return CANNOT_START
        if not restart:
            return ENCLAVE_ENDED
        wait = pause.after(lived, status)
        warn(f"{name}: the next enclave starts in {wait:.0f} s")
        time.sleep(wait)


def _live(name: str, run: Callable[[EventRelay], int]) -> tuple[float, int]:
    """Run one enclave, report its end; return how many seconds it lived, and its exit status."""
    started = time.monotonic()
    with EventRelay() as events:
        status = run(events)
    lived = time.monotonic() - started
    facts = [f"last event {events.last or 'none'}"]
    if events.withheld:
        facts.append(f"{events.withheld} lines that were no events withheld")
    warn(
        f"{name}: the enclave ended by itself, {describe_end(status)}, after {lived:.1f} s; "
        + "; ".join(facts)
    )
    return lived, status


def announce(text: str) -> None:
    """Print on standard output; whoever read the first line may have gone since."""
    with contextlib.suppress(BrokenPipeError):
        print(text, flush=True)


def warn(text: str) -> None:
    """Print on standard error, likewise."""
    with contextlib.suppress(BrokenPipeError):
        print(text, file=sys.stderr, flush=True)


def _stop(*_: object) -> NoReturn:
    raise SystemExit(0)
