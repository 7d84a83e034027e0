"""The client's end of a stream of calls (SPEC 9.6.2) without a client: it sends what it is told."""

from __future__ import annotations

import queue
from typing import TYPE_CHECKING, Any, Self

from casemate.v1.confidential_inference_pb2 import (
    NumberedRequest,
    SealedRequests,
    SealedResponses,
)
from tests.support.host_bench import SERVICE

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from casemate.v1.confidential_inference_pb2 import Refusal


class RawStream:
    """One stream, begun."""

    def __init__(self, channel: Any, metadata: Sequence[tuple[str, str]] = ()) -> None:  # noqa: ANN401 - calls in bytes have no types in grpc's stubs
        self._outbox: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._call = channel.stream_stream(SERVICE + "InferMany")(
            self._messages(), timeout=110, metadata=tuple(metadata)
        )
        self.refusals: dict[int, Refusal] = {}
        self.asked_to_end = False
        self.messages = 0
        assert next(self._call) == b""

    def _messages(self) -> Iterator[bytes]:
        while (message := self._outbox.get()) is not None:
            yield message

    @property
    def unsent(self) -> int:
        """Messages that gRPC has not taken, as the host reads none."""
        return self._outbox.qsize()

    def send(self, message: bytes) -> None:
        self._outbox.put(message)

    def ask(self, *payloads: bytes, first: int = 1, budget: int = 100_000) -> None:
        """Ask all in one message, numbered from ``first``."""
        entries = [
            NumberedRequest(number=first + index, budget=budget, request=payload)
            for index, payload in enumerate(payloads)
        ]
        self.send(SealedRequests(requests=entries).SerializeToString())

    def give_up(self, number: int) -> None:
        self.ask(b"", first=number, budget=0)

    def take(self, count: int) -> list[tuple[int, bytes | str]]:
        """The next ``count`` answers as they come: bytes, or the reason of a refusal."""
        taken: list[tuple[int, bytes | str]] = []
        while len(taken) < count:
            taken += self.take_message()
        assert len(taken) == count, taken
        return taken

    def take_message(self) -> list[tuple[int, bytes | str]]:
        responses = SealedResponses.FromString(next(self._call))
        self.messages += 1
        self.asked_to_end |= responses.last
        taken: list[tuple[int, bytes | str]] = []
        for entry in responses.responses:
            if entry.HasField("refusal"):
                self.refusals[entry.number] = entry.refusal
                taken.append((entry.number, entry.refusal.reason))
            else:
                taken.append((entry.number, entry.response))
        return taken

    def end(self) -> None:
        """End this side."""
        self._outbox.put(None)

    def ended(self) -> list[tuple[int, bytes | str]]:
        """What still comes until the host ends the call; raises grpc.RpcError."""
        taken: list[tuple[int, bytes | str]] = []
        while True:
            try:
                taken += self.take_message()
            except StopIteration:
                return taken

    def cancel(self) -> None:
        self._call.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()
        self._call.cancel()
