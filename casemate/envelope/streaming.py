"""The client's side of a stream: seal its questions, open their answers (SPEC 5.9)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from casemate import limits, wire
from casemate.envelope.chunks import BrokenSealError, Flag
from casemate.envelope.failure import answer_open_failed
from casemate.envelope.guard import Guarded
from casemate.envelope.header import ResponseHeader
from casemate.envelope.messages import Trailer
from casemate.envelope.padding import padded_answer, padded_length, padme
from casemate.envelope.stream_units import PREFIX_BYTES, UnitReader, UnitWriter, framed
from casemate.errors import Code, EnvelopeError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from casemate.envelope.stream_units import Unit
    from casemate.wire import Buffer

_LAST: Final = Flag.LAST  # a member costs as much to find as some of the steps below
_OK: Final = Code.OK


class AnswerUnit(NamedTuple):
    """One authenticated unit of a stream's answer.

    ``messages``: one, or what became of each message of a unit with several (SPEC 5.10.2), or none
    unless the status is OK. ``last``: it ends the stream, answers no question, and its trailer
    speaks of the stream.
    """

    trailer: Trailer
    messages: list[memoryview]
    last: bool

    @property
    def message(self) -> memoryview | None:
        """The only message, if there is one."""
        return self.messages[0] if self.messages else None

    def __repr__(self) -> str:
        return f"<AnswerUnit: {self.trailer.status}>"


class SealedStream(Guarded):
    """One stream: one thread may seal while another opens, and each does so in order.

    Before anything of the answer is released the caller compares the instance with evidence that
    it verified, as for a ``SealedCall``.
    """

    def __init__(
        self,
        header: bytes,
        preamble: bytes,
        prk: bytes,
        *,
        receipt: bool,
        lead: Callable[[memoryview], int],
    ) -> None:
        self.header = header
        self._preamble = preamble
        self._prk = prk
        self._th = wire.digest(header)
        self._writer = UnitWriter(wire.expand(prk, "request", self._th), self._th)
        self._reader: UnitReader | None = None
        self._receipt = receipt
        self._lead = lead
        self._asked = 0
        self._several: dict[int, int] = {}  # by their first one, how many a unit has
        self._rest_max = limits.TRAILER_ROOM
        self._ended = False

    @property
    def ended(self) -> bool:
        """Whether the answer's last unit has been opened: only then it is complete."""
        return self._ended

    def opening(self) -> Iterable[bytes | bytearray]:
        """Return the chunk of the first unit, the preamble."""
        length = len(self._preamble)
        return self._seal(framed((self._preamble,), length), PREFIX_BYTES + length)

    def question(
        self, message: Sequence[Buffer], *others: Sequence[Buffer]
    ) -> Iterable[bytes | bytearray]:
        """Return the chunks of one ``ModelInferRequest``, given in pieces that are not copied.

        ``others`` are asked in the same unit, which has one chunk then (SPEC 5.9.3). Raises
        EnvelopeError: TOO_LARGE, INVALID_ARGUMENT if one is empty.
        """
        if not others:
            length = _checked(message)
            self._asked += 1
            return self._seal(framed(message, length), PREFIX_BYTES + length)
        pieces: list[Buffer] = []
        filled = 0
        for each in (message, *others):
            length = _checked(each)
            pieces += framed(each, length)
            filled += PREFIX_BYTES + length
        count = 1 + len(others)
        if count > limits.QUESTIONS_MAX or padded_length(filled) > limits.CHUNK:
            raise EnvelopeError(Code.TOO_LARGE, "too much for one unit of several messages")
        self._several[self._asked] = count
        self._rest_max = limits.STREAM_PART_MAX
        self._asked += count
        return self._seal(pieces, filled)

    def end(self) -> Iterable[bytes | bytearray]:
        """Return the chunk that says that there are no more questions."""
        return self._writer.seal((), limits.UNIT_MIN, Flag.LAST)

    def _seal(self, pieces: Sequence[Buffer], filled: int) -> Iterable[bytes | bytearray]:
        return self._writer.seal(pieces, padded_length(filled))

    def begin_answer(self, header: bytes) -> bytes:
        """Take the response header; returns the H(instance_config) that the answer is bound to.

        Raises EnvelopeError (ANSWER_OPEN_FAILED).
        """
        try:
            parsed = ResponseHeader.parse(header)
        except ValueError:
            raise answer_open_failed() from None
        if self._reader is not None:
            raise answer_open_failed()
        rh = wire.digest(header)
        self._reader = UnitReader(
            wire.expand(self._prk, "response", self._th, rh),
            rh,
            most_parts=1 + limits.QUESTIONS_MAX,
            rest_max=lambda: self._rest_max,
            take=lambda _size: None,
            lead=self._lead,
        )
        return parsed.instance_digest

    def answer(self, chunk: memoryview) -> AnswerUnit | None:
        """Open the next chunk of the answer; returns the unit that it ends.

        Raises EnvelopeError (ANSWER_OPEN_FAILED) with one text, whatever failed.
        """
        if self._reader is None or self._ended:
            raise answer_open_failed()
        try:
            unit = self._reader.read(chunk)
            return None if unit is None else self._opened(unit)
        except BrokenSealError:
            raise answer_open_failed() from None

    def _opened(self, unit: Unit) -> AnswerUnit:
        flag, parts, filled, length = unit
        # The reader does not know the floor, so any bucket that is large enough passes.
        if not parts or length != padme(length):
            raise BrokenSealError
        trailer_bytes = parts[-1]
        if length < padded_answer(filled - PREFIX_BYTES - len(trailer_bytes)):
            raise BrokenSealError
        trailer = Trailer.parse(trailer_bytes)
        messages = parts[:-1]
        self._ended = flag is _LAST
        if len(messages) != self._due(trailer):
            raise BrokenSealError
        receipt_due = bool(messages) and trailer.final and self._receipt
        if (trailer.receipt is not None) != receipt_due:
            raise BrokenSealError
        return AnswerUnit(trailer, messages, self._ended)

    def _due(self, trailer: Trailer) -> int:
        """Return how many parts there are before the trailer; raises BrokenSealError."""
        if self._ended:
            return 0
        asked = self._several.pop(trailer.unit, 1)
        if asked > 1 and not trailer.final:
            raise BrokenSealError
        return asked if trailer.status is _OK else 0


def _checked(message: Sequence[Buffer]) -> int:
    """Return the length of a message; raises EnvelopeError."""
    length = sum(map(len, message))
    if not 0 < length <= limits.STREAM_PART_MAX:
        code = Code.TOO_LARGE if length else Code.INVALID_ARGUMENT
        bounds = f"1 to {limits.STREAM_PART_MAX}"
        raise EnvelopeError(code, f"message of {length} bytes, not {bounds}")
    return length
