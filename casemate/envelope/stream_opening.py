"""The enclave's side of a stream: open questions, seal answers (SPEC 5.9).

No host may import it.
"""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Final

from casemate import limits, wire
from casemate.envelope.chunks import BrokenSealError, Flag
from casemate.envelope.failure import open_failed
from casemate.envelope.guard import Guarded
from casemate.envelope.header import ResponseHeader
from casemate.envelope.padding import padded_answer, padded_length
from casemate.envelope.stream_units import PREFIX_BYTES, UnitReader, UnitWriter, framed
from casemate.errors import Code

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from casemate.envelope.messages import Trailer
    from casemate.envelope.stream_units import Unit
    from casemate.wire import Buffer

_RESPONSE_NONCE_BYTES: Final = 32


class OpenedStream(Guarded):
    """The content of one stream, opened chunk by chunk under the ``prk`` of its session."""

    def __init__(
        self,
        header: bytes,
        prk: bytes,
        *,
        take: Callable[[int], None],
        lead: Callable[[memoryview], int],
        memory: Callable[[int], memoryview] = lambda size: memoryview(bytearray(size)),
    ) -> None:
        """``header`` is used as received; the functions are those of UnitReader."""
        self._prk = prk
        self.th = wire.digest(header)
        self._reader = UnitReader(
            wire.expand(prk, "request", self.th),
            self.th,
            most_parts=limits.QUESTIONS_MAX,
            rest_max=lambda: 0,  # several messages have one chunk together
            take=take,
            lead=lead,
            memory=memory,
        )
        self._ended = False

    @property
    def ended(self) -> bool:
        """Whether the client has said that there are no more questions."""
        return self._ended

    def open(self, chunk: memoryview) -> memoryview:
        """Open the first chunk; returns the preamble. Raises EnvelopeError (OPEN_FAILED)."""
        parts = self.questions(chunk)
        if len(parts) != 1:
            raise open_failed()
        return parts[0]

    def questions(self, chunk: memoryview) -> list[memoryview]:
        """Open the next chunk; returns the messages of the unit that it ends, if it ends one.

        Raises EnvelopeError (OPEN_FAILED) with one text, whatever failed.
        """
        if self._ended:
            raise open_failed()
        try:
            unit = self._reader.read(chunk)
            return [] if unit is None else self._messages(unit)
        except BrokenSealError:
            raise open_failed() from None

    def _messages(self, unit: Unit) -> list[memoryview]:
        self._ended = unit.flag is Flag.LAST
        if bool(unit.parts) == self._ended or unit.length != padded_length(unit.filled):
            raise BrokenSealError
        return unit.parts

    def answer(self, instance_digest: bytes) -> StreamAnswer:
        """Begin an answer to this stream, under a key of its own."""
        nonce = secrets.token_bytes(_RESPONSE_NONCE_BYTES)
        header = ResponseHeader(nonce, instance_digest).encode()
        rh = wire.digest(header)
        return StreamAnswer(header, wire.expand(self._prk, "response", self.th, rh), rh)


class StreamAnswer(Guarded):
    """Seals the units of one stream's answer, one after the other."""

    def __init__(self, header: bytes, key: bytes, rh: bytes) -> None:
        self.header = header
        self._writer = UnitWriter(key, rh)

    def unit(
        self, messages: Sequence[Sequence[Buffer]], trailer: Trailer, floor: int
    ) -> Iterable[bytes | bytearray]:
        """Return the chunks of an answer to one message, or to several of one unit.

        Each of ``messages``, of which there are none unless the status is OK, in pieces; ``floor``:
        the bucket of all of them. Raises ValueError or struct.error for what no unit can hold.
        """
        if bool(messages) != (trailer.status is Code.OK):
            raise ValueError("messages go with the status OK, and only with it")
        pieces: list[Buffer] = []
        size = 0
        for message in messages:
            length = sum(map(len, message))
            pieces += framed(message, length)
            size += PREFIX_BYTES + length
        return self._seal(pieces, size, trailer, floor, Flag.UNIT_ENDS)

    def end(self, trailer: Trailer, floor: int) -> Iterable[bytes | bytearray]:
        """Return the last unit, whose trailer says how the stream as a whole ended."""
        return self._seal([], 0, trailer, floor, Flag.LAST)

    def _seal(
        self, pieces: list[Buffer], size: int, trailer: Trailer, floor: int, flag: Flag
    ) -> Iterable[bytes | bytearray]:
        encoded = trailer.encode()
        pieces += framed((encoded,), len(encoded))
        return self._writer.seal(pieces, padded_answer(size, floor), flag)
