"""The framed connections of one client to one host (SPEC 9.6.3), from the offer to the end."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

from casemate import limits
from casemate.client.framed import FramedHost, hello_of, name_of, offered
from casemate.client.framed_call import FramedCall
from casemate.client.framed_dial import Dial
from casemate.client.framed_pool import FramedPool
from casemate.client.framed_stream import FramedStream

if TYPE_CHECKING:
    from collections.abc import Iterable

    from casemate.client.access import HostAccess
    from casemate.wire import Buffer


class FramedWay:
    """What the host offers, and whether it is used; thread-safe."""

    def __init__(self, target: str, access: HostAccess) -> None:
        """Nothing is offered yet."""
        self._name = name_of(target, access)
        self._hello = hello_of(access)
        self._lock = threading.Lock()
        self._host: FramedHost | None = None
        self._not_before = 0.0
        self._pool = FramedPool(self._hello, target)
        self._target = target
        self._streams: set[FramedStream] = set()
        self._closed = False

    @property
    def reached(self) -> bool:
        """Whether a connection for one request at a time was had at the address of the offer."""
        return self._pool.reached

    def heard(self, metadata: Iterable[tuple[Any, ...]] | None) -> bool:
        """Note what came with the answer to a call; tell whether it is a new offer.

        Connections that were made by the last one take no further call then.
        """
        offer = offered(metadata)
        if self._name is None or offer is None:
            return False
        with self._lock:
            host = FramedHost(self._name, offer)
            if host == self._host:
                return False
            self._host, self._not_before = host, 0.0
            self._pool.renew(host)
        return True

    def begin(self) -> FramedCall | None:
        """Begin a stream of calls; None if there is no offer that may lead somewhere."""
        with self._lock:
            if self._host is None or time.monotonic() < self._not_before:
                return None
            return FramedCall(self._host, self._hello)

    def stream(self, until: float) -> FramedStream | None:
        """Return a stream that is to be begun; None likewise. ``until`` as for `call`."""
        with self._lock:
            if self._host is None or self._closed or time.monotonic() < self._not_before:
                return None
            dial = Dial(self._host, self._hello)
            stream = FramedStream(dial, self._target, until, self)
            self._streams.add(stream)
        return stream

    def ended(self, stream: FramedStream) -> None:
        """Note that nothing of ``stream`` is open any more."""
        with self._lock:
            self._streams.discard(stream)

    def led_nowhere(self, host: FramedHost) -> None:
        """Note that ``host`` was not reached, or took up nothing."""
        with self._lock:
            if host == self._host:
                self._not_before = time.monotonic() + limits.CALL_STREAM_AGAIN_S

    def call(self, request: Buffer, until: float, *, patient: bool = True) -> bytes | None:
        """Ask on a connection of its own, as ``FramedPool.call``."""
        return self._pool.call(request, until, patient=patient)

    def close(self) -> None:
        """End all connections for large requests and streams; what is under way fails."""
        self._pool.close()
        with self._lock:
            self._closed = True
            streams = [*self._streams]
        for stream in streams:
            stream.cancel()
