"""A `HostConnection` as tests use one: answers or codes, from many threads."""

from __future__ import annotations

import contextlib
import itertools
import signal
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Self

from casemate import limits
from casemate.client.transport import HostConnection
from casemate.errors import RequestError
from tests.support.attacker import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

    from casemate.client.access import HostAccess
    from casemate.errors import Code

SMALL = b"small"
_SIGNALS_MAX = 1000
LARGE = b"large".ljust(limits.CALL_STREAM_REQUEST_MAX + 1, b".")


def keep_company(connection: HostConnection) -> None:
    """Have no call be alone from now on, as if another one were always under way."""
    connection._asking += 1


@contextlib.contextmanager
def signals_every(seconds: float) -> Iterator[None]:
    """Have a signal come again and again, and none ever end a wait by itself but the thousandth."""
    count = itertools.count()

    def handler(*_: object) -> None:
        assert next(count) < _SIGNALS_MAX, "the wait does not end"

    before = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, seconds, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class BlockingConnection:
    """One connection that has fetched evidence, and so knows of an offer."""

    def __init__(
        self, target: str, access: HostAccess | None = None, *, alone: bool = False
    ) -> None:
        """``alone``: small calls may be, else they go as those that meet others."""
        self.connection = HostConnection(target, access)
        if not alone:
            keep_company(self.connection)
        self.fetch_evidence()

    def fetch_evidence(self) -> None:
        """Have the host make its offer."""
        self.connection.call("GetEvidence", b"", 60)

    def call(self, request: bytes, timeout_s: float = 60) -> bytes:
        return self.connection.call("Infer", request, timeout_s)

    def outcome(self, request: bytes, timeout_s: float = 60) -> bytes | Code:
        try:
            return self.call(request, timeout_s)
        except RequestError as error:
            return error.code

    def together(self, requests: list[bytes], timeout_s: float = 60) -> list[bytes | Code]:
        with ThreadPoolExecutor(len(requests)) as pool:
            return list(pool.map(lambda each: self.outcome(each, timeout_s), requests))

    def warm(self, request: bytes) -> None:
        """Call until requests of this size travel in frames."""
        assert eventually(lambda: self.call(request) == b"framed:" + request)

    def close(self) -> None:
        self.connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
