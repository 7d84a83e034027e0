"""Questions of one connection whose runs are left to their models (SPEC 8.8.2.1)."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

    from casemate_enclave.runs import Outcome, Run, SharedModel


class Question(Protocol):
    """What waits for a run."""

    need: Run | None


Q = TypeVar("Q", bound=Question)


class LeftToModels(Generic[Q]):
    """Counts them, so that the connection can wait for all; an ``Asker``, and thread-safe."""

    def __init__(
        self,
        resume: Callable[[Q, Outcome], None],
        flush: Callable[[], None],
        fail: Callable[[], None],
    ) -> None:
        """``fail`` ends the connection when ``resume`` or ``flush`` raises."""
        self._resume = resume
        self._flush = flush
        self._fail = fail
        self._changed = threading.Condition()
        self._left = 0

    def offer(self, model: SharedModel, questions: list[Q]) -> list[Q]:
        """Leave to ``model`` what it takes on of runs that it needs, and return the rest."""
        if not questions:
            return questions
        self._add(len(questions))  # before any of them comes back
        taken = model.offer([(q.need, q) for q in questions if q.need is not None], self)
        rest = [question for question in questions if question not in taken]
        self._add(-len(rest))
        return rest

    def settle(self, ticket: Q, outcome: Outcome) -> None:
        """As ``Asker``."""
        try:
            self._resume(ticket, outcome)
        except Exception:  # noqa: BLE001 - the thread is not the connection's
            self._fail()
        finally:
            self._add(-1)

    def settled(self) -> None:
        """As ``Asker``."""
        try:
            self._flush()
        except Exception:  # noqa: BLE001 - as above
            self._fail()

    def wait(self) -> None:
        """Return when all have come back."""
        with self._changed:
            self._changed.wait_for(lambda: not self._left)

    def _add(self, count: int) -> None:
        with self._changed:
            self._left += count
            if not self._left:
                self._changed.notify_all()
