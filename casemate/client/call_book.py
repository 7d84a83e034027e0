"""What a client keeps of the calls that share one stream (SPEC 9.6.2), without input or output."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Generic, NamedTuple, Protocol, TypeVar

from google.protobuf.message import DecodeError

from casemate import limits
from casemate.client.host_words import printable
from casemate.errors import CLEAR_CODES, Code, RequestError
from casemate.v1.confidential_inference_pb2 import NumberedRequest, SealedRequests, SealedResponses

if TYPE_CHECKING:
    from collections.abc import Iterable

    from casemate.v1.confidential_inference_pb2 import Refusal

_NUMBERS: Final = 1 << 32


class Failure(NamedTuple):
    """Why a question has no answer; each call that hears of it raises an error of its own."""

    code: Code
    detail: str
    retry_after_s: float | None = None

    @classmethod
    def of(cls, error: RequestError) -> Failure:
        """Keep what ``error`` says."""
        return cls(error.code, error.detail, error.retry_after_s)

    @classmethod
    def refused(cls, refusal: Refusal) -> Failure:
        """Read what a host says in place of an answer; it may say anything."""
        known = refusal.reason in CLEAR_CODES
        code = Code(refusal.reason) if known else Code.HOST_UNREACHABLE
        hint_s = refusal.retry_delay / 1000 if refusal.retry_delay else None
        return cls(code, printable(refusal.detail), hint_s)

    def error(self) -> RequestError:
        """Return it as an exception."""
        return RequestError(self.code, self.detail, self.retry_after_s)


class Asked(Protocol):
    """One call that waits."""

    def settle(self, outcome: bytes | Failure) -> None:
        """Take the answer, or the reason why there is none; once."""
        ...


A = TypeVar("A", bound=Asked)


class BrokenError(Exception):
    """The host broke the rules of the stream: nothing that it says on it can be told apart."""


class CallBook(Generic[A]):
    """Questions under way on one stream, and what is to be sent; not thread-safe."""

    def __init__(self) -> None:
        self._asked: dict[int, A] = {}
        self._given_up: set[int] = set()
        self._outbox: list[NumberedRequest] = []
        self._number = 0

    @property
    def waiting(self) -> bool:
        """Whether something is to be sent."""
        return bool(self._outbox)

    @property
    def empty(self) -> bool:
        """Whether no question is under way."""
        return not self._asked

    def ask(self, asked: A, request: bytes, timeout_s: float) -> int:
        """Put a question into the outbox; return its number."""
        number = self._next_number()
        self._asked[number] = asked
        budget = min(int(timeout_s * 1000) or 1, limits.FRAME_BUDGET_MAX)
        self._outbox.append(NumberedRequest(number=number, budget=budget, request=request))
        return number

    def give_up(self, number: int) -> bool:
        """Wait no longer for the answer to ``number``; return whether the host is to be told."""
        if self._asked.pop(number, None) is None:
            return False
        for index, entry in enumerate(self._outbox):
            if entry.number == number:  # the host never heard of it
                del self._outbox[index]
                return False
        self._given_up.add(number)
        self._outbox.append(NumberedRequest(number=number))
        return True

    def under_way(self) -> Iterable[A]:
        """Return those who wait, whoever has waited longest first."""
        return self._asked.values()

    def next_message(self) -> bytes | None:
        """Return what is to be sent now; None if nothing is."""
        if not self._outbox:
            return None
        count = 1 if len(self._outbox) == 1 else self._fitting()
        entries, self._outbox = self._outbox[:count], self._outbox[count:]
        return SealedRequests(requests=entries).SerializeToString()

    def _fitting(self) -> int:
        """Return how many of the entries that wait make one message."""
        size = 0
        for index, entry in enumerate(self._outbox[: limits.CALL_STREAM_ENTRIES_MAX]):
            if size >= limits.CALL_STREAM_MESSAGE:
                return index
            size += len(entry.request)
        return min(len(self._outbox), limits.CALL_STREAM_ENTRIES_MAX)

    def answered(self, message: bytes) -> bool:
        """Hand out what the host answered; return whether it wants the stream to end.

        Raises BrokenError.
        """
        try:
            responses = SealedResponses.FromString(message)
        except DecodeError:
            raise BrokenError("a message that cannot be read") from None
        for entry in responses.responses:
            asked = self._asked.pop(entry.number, None)
            if asked is not None:
                refused = entry.HasField("refusal")
                asked.settle(Failure.refused(entry.refusal) if refused else entry.response)
            elif entry.number in self._given_up:
                self._given_up.discard(entry.number)
            else:
                raise BrokenError(f"answered {entry.number}, which nobody waits for")
        if len(self._given_up) > limits.CALL_STREAM_GIVEN_UP_MAX:
            raise BrokenError("left questions unanswered that were given up")
        return responses.last

    def fail(self, failure: Failure) -> None:
        """End every question under way with ``failure``."""
        asked, self._asked = self._asked, {}
        self._outbox.clear()
        for each in asked.values():
            each.settle(failure)

    def _next_number(self) -> int:
        while True:
            self._number = (self._number + 1) % _NUMBERS or 1
            if self._number not in self._asked and self._number not in self._given_up:
                return self._number
