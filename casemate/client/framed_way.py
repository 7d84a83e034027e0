"""The framed connections of one client to one host (SPEC 9.6.3), from the offer to the end."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

from casemate import limits
from casemate.client.framed import FramedHost, hello_of, name_of, offered
from casemate.client.framed_call import FramedCall
from casemate.client.framed_pool import FramedPool

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

    def led_nowhere(self, host: FramedHost) -> None:
        """Note that ``host`` did not take up a stream that was begun."""
        with self._lock:
            if host == self._host:
                self._not_before = time.monotonic() + limits.CALL_STREAM_AGAIN_S

    def call(self, request: Buffer, until: float) -> bytes | None:
        """Ask on a connection of its own; None if nothing was asked. Raises RequestError.

        ``until`` in seconds of time.monotonic.
        """
        return self._pool.call(request, until)

    def close(self) -> None:
        """End all connections for large requests; calls under way fail."""
        self._pool.close()
