"""The enclave's side of a stream: open questions, seal answers (SPEC 5.9).

No host may import it.
"""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Final

from casemate import wire
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
            most_parts=1,
            rest_max=0,
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
        preamble = self.question(chunk)
        if preamble is None:
            raise open_failed()
        return preamble

    def question(self, chunk: memoryview) -> memoryview | None:
        """Open the next chunk; returns the message of the unit that it ends, if it is one.

        Raises EnvelopeError (OPEN_FAILED) with one text, whatever failed.
        """
        if self._ended:
            raise open_failed()
        try:
            unit = self._reader.read(chunk)
            return None if unit is None else self._message(unit)
        except BrokenSealError:
            raise open_failed() from None

    def _message(self, unit: Unit) -> memoryview | None:
        self._ended = unit.flag is Flag.LAST
        if bool(unit.parts) == self._ended or unit.length != padded_length(unit.filled):
            raise BrokenSealError
        return None if self._ended else unit.parts[0]

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
        self, message: Sequence[Buffer], trailer: Trailer, floor: int
    ) -> Iterable[bytes | bytearray]:
        """Return the chunks of an answer; ``message`` in pieces, none unless the status is OK.

        Raises ValueError or struct.error for what no unit can hold.
        """
        if bool(message) != (trailer.status is Code.OK):
            raise ValueError("a message goes with the status OK, and only with it")
        if not message:
            return self._seal((), 0, trailer, floor, Flag.UNIT_ENDS)
        size = sum(map(len, message))
        pieces = framed(message, size)
        return self._seal(pieces, PREFIX_BYTES + size, trailer, floor, Flag.UNIT_ENDS)

    def end(self, trailer: Trailer, floor: int) -> Iterable[bytes | bytearray]:
        """Return the last unit, whose trailer says how the stream as a whole ended."""
        return self._seal((), 0, trailer, floor, Flag.LAST)

    def _seal(
        self, message: tuple[Buffer, ...], size: int, trailer: Trailer, floor: int, flag: Flag
    ) -> Iterable[bytes | bytearray]:
        encoded = trailer.encode()
        pieces = message + framed((encoded,), len(encoded))
        return self._writer.seal(pieces, padded_answer(size, floor), flag)
