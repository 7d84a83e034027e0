"""What a stream sends: its questions, in units and in messages to the host (SPEC 5.9.3)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from casemate import limits
from casemate.envelope.sealed_chunks import encode_chunk, encode_header

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from casemate.client.stream_answers import Asked
    from casemate.envelope.streaming import SealedStream
    from casemate.wire import Buffer


class Sending:
    """Seals what is asked and joins it to messages; in one thread at a time."""

    def __init__(
        self,
        sealed: SealedStream,
        register: Callable[[Sequence[Asked]], Sequence[Sequence[Asked]]],
        in_flight: int,
        *,
        keep: bool,
    ) -> None:
        """``register`` numbers questions, and makes units of them; ``keep`` them, for receipts.

        Half of ``in_flight`` questions go into a message, so that there are two on the way: while
        the enclave works on one, this side works on the other.
        """
        self._sealed = sealed
        self._most = max(1, in_flight // 2)
        self._register = register
        self._keep = keep
        self._pieces: list[Buffer] = [*encode_header(sealed.header)]
        self._size = 0
        for chunk in sealed.opening():
            self._add(chunk)

    def seal(self, waiting: Sequence[Asked]) -> Iterator[bytes]:
        """Yield messages that ask all that waits."""
        for together in _parcels(waiting, self._most):
            for unit in self._register(together):
                for chunk in self._sealed.question(*[asked.message for asked in unit]):
                    self._add(chunk)
                    if self._size >= limits.STREAM_MESSAGE:
                        yield from self.rest()
                for asked in unit:
                    asked.sent(keep=self._keep)
            yield from self.rest()

    def rest(self) -> Iterator[bytes]:
        """Yield what waits to be sent, if anything does."""
        if self._pieces:
            message = b"".join(self._pieces)
            self._pieces, self._size = [], 0
            yield message

    def end(self) -> Iterator[bytes]:
        """Yield the last message."""
        for chunk in self._sealed.end():
            self._add(chunk)
        yield from self.rest()

    def _add(self, chunk: Buffer) -> None:
        self._pieces += encode_chunk(chunk)
        self._size += len(chunk)


def _parcels(waiting: Sequence[Asked], most: int) -> Iterator[Sequence[Asked]]:
    """Yield what goes into a message: about ``most``, and until it goes it can be given up."""
    parts = max(1, round(len(waiting) / most))
    count = -(-len(waiting) // parts)
    together: list[Asked] = []
    size = 0
    for asked in waiting:
        together.append(asked)
        size += asked.size
        if len(together) == count or size >= limits.STREAM_MESSAGE:
            yield together
            together, size = [], 0
    if together:
        yield together


def units_of(wanted: Sequence[Asked], most: int) -> list[list[Asked]]:
    """Return ``wanted`` in units of at most ``most`` questions, and so many bytes together.

    They are together because all of them wait already: none waits for another (SPEC 5.9.8). Nor
    for runs: a model runs at least ``most`` rows together, and there are no more in a unit.
    """
    if most == 1:
        return [[asked] for asked in wanted]
    units: list[list[Asked]] = []
    rows = size = 0
    for asked in wanted:
        rows += asked.rows
        size += asked.size
        if not units or rows > most or size > limits.QUESTIONS_REQUEST:
            units.append([])
            rows, size = asked.rows, asked.size
        units[-1].append(asked)
    return units
