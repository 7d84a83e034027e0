"""An `AsyncHostConnection` for tests that do not run on its loop."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any, Self

from casemate.client.transport import AsyncHostConnection
from casemate.errors import Code, RequestError
from tests.support.attacker import eventually

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from concurrent.futures import Future

    from casemate.client.access import HostAccess


class LoopedConnection:
    """One connection on a loop that runs in a thread; what the loop complains of fails `close`."""

    def __init__(self, target: str, access: HostAccess | None = None) -> None:
        self.connection = AsyncHostConnection(target, access)
        self.loop = asyncio.new_event_loop()
        self.complaints: list[Any] = []
        self.loop.set_exception_handler(self._complain)
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()

    def _complain(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Keep what is said of this loop.

        All loops of a process share gRPC's poller: what comes late for one that was closed, as
        after a cancelled call, is told to the next one.
        """
        poller = "PollerCompletionQueue" in context["message"]
        if not (poller and "Event loop is closed" in str(context.get("exception"))):
            self.complaints.append(context)

    def submit(self, work: Coroutine[Any, Any, Any]) -> Future[Any]:
        return asyncio.run_coroutine_threadsafe(work, self.loop)

    def fetch_evidence(self) -> None:
        """Have the host make its offer."""
        self.submit(self.connection.call("GetEvidence", b"evidence", 60)).result(100)

    def begin(self, request: bytes, timeout_s: float = 60) -> Future[bytes | Code]:
        """Call; the outcome is the answer, or the code of the error."""

        async def work() -> bytes | Code:
            try:
                return bytes(await self.connection.call("Infer", request, timeout_s))
            except RequestError as error:
                return error.code

        return self.submit(work())

    def call(self, request: bytes, timeout_s: float = 60) -> bytes:
        """Call and return the answer; raises RequestError."""
        answer = self.submit(self.connection.call("Infer", request, timeout_s)).result(100)
        return bytes(answer)

    def together(self, requests: list[bytes], timeout_s: float = 60) -> list[bytes | Code]:
        """Begin all calls in one turn of the loop."""

        async def one(request: bytes) -> bytes | Code:
            try:
                return bytes(await self.connection.call("Infer", request, timeout_s))
            except RequestError as error:
                return error.code

        async def work() -> list[bytes | Code]:
            return list(await asyncio.gather(*map(one, requests)))

        ends: list[bytes | Code] = self.submit(work()).result(100)
        return ends

    def hang_up(self) -> None:
        self.submit(self.connection.close()).result(60)

    def tasks(self) -> list[str]:
        """Names of the tasks that run on the loop."""

        async def work() -> list[str]:
            current = asyncio.current_task()
            return [task.get_name() for task in asyncio.all_tasks() if task is not current]

        names: list[str] = self.submit(work()).result(60)
        return names

    def close(self) -> None:
        self.hang_up()
        ended = eventually(lambda: not self.tasks())  # gRPC's own take a turn or two
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(60)
        self.loop.close()
        assert ended
        assert self.complaints == [], self.complaints

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
