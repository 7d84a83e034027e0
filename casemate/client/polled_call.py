"""A gRPC call in both directions whose events the calling threads take themselves.

gRPC's public streams have two threads of their own, and each message wakes both: three changes of
threads on the way of one answer. The calls beneath gRPC's blocking unary methods ("segregated")
have none. They are not public, so whoever begins one must be ready for `NotOfferedError`.
"""

from __future__ import annotations

import importlib
import threading
from typing import TYPE_CHECKING, Any, Final

import grpc

from casemate.client.call_book import Failure
from casemate.client.carrier import Event, Kind
from casemate.client.host_words import translated
from casemate.errors import Code

if TYPE_CHECKING:
    from collections.abc import Sequence

_STATUS: Final = {code.value[0]: code for code in grpc.StatusCode}
_NO_FLAGS: Final = 0


class NotOfferedError(Exception):
    """This gRPC does not have what is needed here."""


class EndedError(grpc.RpcError):
    """How a call ended; as the errors of gRPC's own calls, OK included."""

    def __init__(self, code: grpc.StatusCode, details: str, metadata: tuple[Any, ...]) -> None:
        super().__init__()
        self._of = code, details, metadata

    def code(self) -> grpc.StatusCode:
        """Return the status."""
        return self._of[0]

    def details(self) -> str:
        """Return the host's text."""
        return self._of[1]

    def trailing_metadata(self) -> tuple[Any, ...]:
        """Return what came with the status."""
        return self._of[2]

    def failure(self, target: str) -> Failure:
        """Return what becomes of a question that has no answer."""
        if self.code() is grpc.StatusCode.OK:
            return Failure(Code.UNAVAILABLE, f"{target}: the stream ended before the answer")
        return Failure.of(translated(self, target))


class PolledCall:
    """One call under way, a `Carrier`."""

    def __init__(
        self, channel: grpc.Channel, method: str, metadata: Sequence[tuple[str, str]]
    ) -> None:
        """Begin ``method`` on ``channel``; raises NotOfferedError."""
        try:
            self._grpc: Any = importlib.import_module("grpc._cython.cygrpc")
            inner: Any = vars(channel)["_channel"]
            operations = (
                self._grpc.SendInitialMetadataOperation(tuple(metadata), _NO_FLAGS),
                self._grpc.ReceiveStatusOnClientOperation(_NO_FLAGS),
                self._grpc.ReceiveInitialMetadataOperation(_NO_FLAGS),
            )
            self._call: Any = inner.segregated_call(
                self._grpc.PropagationConstants.GRPC_PROPAGATE_DEFAULTS,
                method.encode(),
                None,  # the channel's own authority
                None,  # no deadline: each question has its own
                tuple(metadata),
                None,
                tuple(((operation,), None) for operation in operations),
                None,
            )
            self._kinds = {
                int(self._grpc.OperationType.receive_initial_metadata): Kind.BEGAN,
                int(self._grpc.OperationType.send_message): Kind.SENT,
                int(self._grpc.OperationType.receive_message): Kind.MESSAGE,
                int(self._grpc.OperationType.receive_status_on_client): Kind.ENDED,
            }
        except (ImportError, AttributeError, KeyError, TypeError) as error:
            raise NotOfferedError from error
        # Events to come. Whoever polls beyond them polls a queue that no longer exists, so they are
        # counted with the operations, and none is begun after the end was seen.
        self._lock = threading.Lock()
        self._due = len(operations)
        self._ended = False
        self._receive()

    @property
    def over(self) -> bool:
        """Whether there will be no further event."""
        return not self._due

    def send(self, message: bytes) -> bool:
        """Send a message; its SENT comes unless the call has ended."""
        self._operate(self._grpc.SendMessageOperation(message, _NO_FLAGS))
        return True

    def end_sending(self) -> None:
        """Say that no message follows."""
        self._operate(self._grpc.SendCloseFromClientOperation(_NO_FLAGS))

    def cancel(self) -> None:
        """End the call; its last events still come."""
        self._call.cancel(self._grpc.StatusCode.cancelled, "cancelled by this client")

    def rouse(self) -> bool:
        """Have something happen: a message of no requests is sent."""
        return self.send(b"")

    def poll(self) -> Event:
        """Wait for the next event; an exception ends the call without further ones."""
        try:
            event = self._call.next_event()
        except BaseException:
            with self._lock:
                self._due, self._ended = 0, True
            raise
        (operation,) = event.batch_operations
        kind = self._kinds.get(int(operation.type()), Kind.OTHER)
        with self._lock:
            self._due -= 1
            self._ended |= kind is Kind.ENDED
        if kind is Kind.MESSAGE:
            message = operation.message()
            if message is None:  # the host has ended its side: ENDED says how
                return Event(Kind.OTHER)
            self._receive()
            return Event(kind, message)
        if kind is Kind.ENDED:
            status = _STATUS.get(operation.code(), grpc.StatusCode.UNKNOWN)
            metadata = tuple(operation.trailing_metadata() or ())
            return Event(kind, end=EndedError(status, str(operation.details() or ""), metadata))
        return Event(kind)

    def _receive(self) -> None:
        self._operate(self._grpc.ReceiveMessageOperation(_NO_FLAGS))

    def _operate(self, operation: Any) -> None:  # noqa: ANN401 - gRPC's
        with self._lock:
            if not self._ended and self._call.operate((operation,), None):
                self._due += 1
