"""``InferMany``: calls of `Infer` that share one stream to this host (SPEC 9.6.2).

Each is let in, relayed, answered, counted and refused as if it came by itself; the stream only
carries them. Two threads serve it: one takes questions and passes them on, the other takes what the
enclave answers and gives it to the client, all that is there at a time.
"""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING, Final

from casemate.errors import CasemateError, Code
from casemate_host.call_stream import CallStream

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    import grpc

    from casemate_host.admission import Patience
    from casemate_host.call import Call
    from casemate_host.callers import Caller
    from casemate_host.desk import Desk
    from casemate_host.infer_admission import InferAdmission
    from casemate_host.relay import Relay
    from casemate_host.tracing import Metadata

METHOD: Final = "InferMany"


class OpenStreams:
    """The streams of calls that are open, whatever carries them; thread-safe."""

    def __init__(self, relay: Relay, admission: InferAdmission) -> None:
        self._relay = relay
        self._admission = admission
        self._lock = threading.Lock()
        self._streams: set[CallStream] = set()
        self._draining = False

    @contextlib.contextmanager
    def open(
        self,
        caller: Caller,
        call: Call,
        metadata: Metadata,
        deaf: Callable[[], AbstractContextManager[object]] = contextlib.nullcontext,
    ) -> Iterator[CallStream]:
        """Hold a stream (see there) within the block.

        Raises CasemateError(UNAVAILABLE) while draining.
        """
        stream = CallStream(self._relay, self._admission, caller, call, metadata, deaf=deaf)
        with self._lock:
            if self._draining:
                raise CasemateError(Code.UNAVAILABLE, "the host is stopping")
            self._streams.add(stream)
        try:
            call.attach(stream)
            yield stream
        finally:
            call.detach()
            with self._lock:
                self._streams.discard(stream)
            stream.end()

    def drain(self) -> None:
        """Ask every client to end its stream, and refuse new ones."""
        with self._lock:
            self._draining = True
            streams = list(self._streams)
        for stream in streams:
            stream.retire()


class CallStreamService:
    """``InferMany`` over gRPC: serves the streams, each in a worker of its own."""

    def __init__(self, desk: Desk, streams: OpenStreams, patience: Patience) -> None:
        self._desk = desk
        self._streams = streams
        self._patience = patience

    def serve(
        self, caller: Caller | None, messages: Iterator[bytes], context: grpc.ServicerContext
    ) -> Iterator[bytes]:
        """Answer one stream."""

        def answer(call: Call) -> Iterator[bytes]:
            who = self._desk.known(caller, context)
            call.of(who.name)
            metadata = tuple(context.invocation_metadata() or ())
            with who.call_stream(), self._streams.open(who, call, metadata) as stream:
                thread = threading.Thread(
                    target=stream.take, args=(messages,), name="call-stream-in", daemon=True
                )
                thread.start()
                for message in stream.answers():
                    with self._patience.waiting(context):
                        yield message

        return self._desk.serve_stream(METHOD, context, answer)
