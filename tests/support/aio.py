"""`AsyncClient` as a blocking client on a loop of its own, so that one test tries both kinds."""

# ruff: noqa: ANN401 - everything is passed on as it came

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any, Self

from casemate.client import AsyncClient

if TYPE_CHECKING:
    from collections.abc import Coroutine


class LoopedClient:
    """The methods of `Client`; each is a task of one event loop that runs in a thread."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self._client = AsyncClient(*arguments, **options)
        self._parts = self._client._parts
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def _wait(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(60)

    def verify(self, **options: Any) -> Any:
        return self._wait(self._client.verify(**options))

    def infer(self, *arguments: Any, **options: Any) -> Any:
        return self._wait(self._client.infer(*arguments, **options))

    def infer_sealed(self, *arguments: Any, **options: Any) -> Any:
        return self._wait(self._client.infer_sealed(*arguments, **options))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._wait(self._client.aclose())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()
