"""One question of a stream of calls: what the client asked, and what became of it (SPEC 9.6.2)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from casemate import frames, limits
from casemate.errors import CasemateError, Code, FrameError
from casemate.frames import ANSWER, ERROR, FrameType
from casemate_host.posting import Posted
from casemate_host.tracing import NO_TRACE

if TYPE_CHECKING:
    from casemate.v1.confidential_inference_pb2 import NumberedRequest
    from casemate_host.posting import Poster
    from casemate_host.tracing import Trace

_ANSWERED: Final = FrameType.REQUEST | ANSWER
_GRACE_S: Final = 0.5  # the enclave ends what exceeds its budget itself; this is for its answer


class Question(Posted):
    """One call of the client, by the client's number."""

    __slots__ = ("again", "asked", "begun", "length", "trace")

    def __init__(self, entry: NumberedRequest, request: bytes, stream: Poster, now: float) -> None:
        """``request``: the entry's, which protobuf would copy again."""
        budget = min(entry.budget or limits.FRAME_BUDGET_DEFAULT, limits.FRAME_BUDGET_MAX)
        super().__init__(FrameType.REQUEST, request, budget, stream)
        self.asked = entry.number
        self.length = len(request)
        self.begun = now
        self.again = False
        self.trace: Trace = NO_TRACE

    @property
    def until(self) -> float:
        """When the enclave should have ended it, with some time for its answer."""
        return self.begun + self.budget_ms / 1000 + _GRACE_S

    def outcome(self) -> bytes | CasemateError:
        """Return the answer, or why there is none, when it is ``done``."""
        if self.lost is not None:
            return self.lost
        answer = self.answer
        if answer is None:
            raise AssertionError
        if answer.type == _ANSWERED:
            return answer.payload
        if answer.type == ERROR:
            return frames.remote_error(answer.payload)
        return FrameError(Code.INTERNAL, f"answer of type {answer.type} to a request")
