"""How a call of `Infer` is let in that gRPC's gate does not see, and how it is counted.

Those on streams of calls (SPEC 9.6.2) and on framed connections (9.6.3): each is let in, shed,
refused and counted as if it came as a call of gRPC.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from casemate.errors import CasemateError, Code
from casemate_host.admission import ShedError
from casemate_host.tracing import NO_TRACE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from casemate_host.admission import Patience
    from casemate_host.callers import Caller
    from casemate_host.desk import Desk
    from casemate_host.gate import Pace
    from casemate_host.metrics import Metrics
    from casemate_host.standing import Board
    from casemate_host.tracing import Metadata, Trace, Tracer
    from casemate_host.workers import Workers

METHOD: Final = "Infer"


class InferAdmission:
    """Lets questions in as the gate lets in calls, and counts them as `Infer`."""

    def __init__(
        self,
        desk: Desk,
        board: Board,
        metrics: Metrics,
        workers: Workers,
        pace: Pace,
        *,
        patience: Patience,
        tracer: Tracer,
        method: str = METHOD,
    ) -> None:
        """``workers``: those of ``method``, whose number bounds all kinds together."""
        self.patience = patience
        self.workers = workers
        self._method = method
        self._tracer = tracer
        self._desk = desk
        self._board = board
        self._metrics = metrics
        self._pace = pace

    def enter(self, caller: Caller, size: int, most: int, metadata: Metadata) -> Trace:
        """Begin a question of ``size`` bytes, to be ended with ``leave``; return its trace.

        What it counts against the caller's day is for when it has come: announcing costs nothing.
        Raises CasemateError: ShedError, TOO_LARGE above ``most``.
        """
        if self.workers.full:
            self.patience.press(self.workers)
            raise ShedError("too many calls at a time", self._pace.wait_s())
        self._board.require()
        if size > most:
            raise CasemateError(Code.TOO_LARGE, f"{size} bytes, limit {most}")
        caller.enter()
        self.workers.hold()
        trace = self._tracer.begin(self._method, metadata)
        trace.caller(caller.name)
        return trace

    def enter_all(self, caller: Caller, sizes: Sequence[int], most: int) -> bool:
        """Begin questions of ``sizes`` bytes at once, which have no traces, as ``enter`` does each.

        False if one of them may be refused or is to be counted or traced by itself: none has begun.
        """
        count = len(sizes)
        if (
            self._tracer is not NO_TRACE
            or max(sizes) > most
            or self._board.standing.evidence is None
            or not self.workers.hold_all(count)
        ):
            return False
        if not caller.enter_all(count):
            self.workers.let_go(count)
            return False
        return True

    def leave(self, caller: Caller, count: int = 1) -> None:
        """End ``count`` questions that were let in."""
        self.workers.let_go(count)
        caller.leave(count)

    def answered(
        self,
        caller: Caller,
        sizes: Sequence[int],
        took_s: Sequence[float],
        received_s: float | None = None,
    ) -> None:
        """Count questions that were answered together, of ``sizes`` bytes and in ``took_s`` each.

        ``received_s``: how much of that their arrival took; None where they came on a stream.
        """
        self._pace.ended(len(sizes))
        self._metrics.answered(caller.name, took_s, received_s)
        self._desk.traffic.answered(METHOD, *sizes)

    def carried(self, caller: Caller, size: int) -> None:
        """Count a stream that came to its end, with ``size`` bytes of answers."""
        self._desk.answered(self._method, size, caller.name)

    def refused(self, caller: Caller, code: Code) -> None:
        """Count a question that ended with ``code``, let in or not."""
        self._desk.refused(self._method, code, caller.name)
