"""Large calls of an event loop: framed connections of their own, kept for the next (SPEC 9.6.3)."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from casemate import limits
from casemate.client.aio_framed_exchange import Exchange

if TYPE_CHECKING:
    import socket

    from casemate.wire import Buffer


class Pool:
    """Connections to one host, of which each carries one call at a time; for one loop."""

    def __init__(self, target: str) -> None:
        self._target = target
        self._loop = asyncio.get_running_loop()
        self._all: set[Exchange] = set()
        self._idle: list[tuple[Exchange, float]] = []  # since when, by the loop's clock
        self._look: asyncio.TimerHandle | None = None
        self._retired = False

    def __len__(self) -> int:
        return len(self._all)

    def add(self, sock: socket.socket) -> None:
        """Use a connection that was greeted."""
        exchange = Exchange(sock, self._target, self._all.discard)
        self._all.add(exchange)
        self._put_back(exchange)

    async def call(self, request: Buffer, timeout_s: float) -> bytes | None:
        """Return the answer; None if there is no idle connection. Raises RequestError."""
        while self._idle and timeout_s > 0:
            exchange, since = self._idle.pop()
            if self._loop.time() - since > limits.FRAMED_POOL_IDLE_S:
                exchange.close()
                continue
            try:
                answer = await exchange.call(request, timeout_s)
            finally:
                self._put_back(exchange)
            if answer is not None:
                return answer
        return None

    def retire(self) -> None:
        """Take no further call; connections end with the answers that they wait for."""
        self._retired = True
        self._drop_idle(0.0)

    def close(self) -> None:
        """End all connections; calls under way fail."""
        self.retire()
        for exchange in list(self._all):
            exchange.close()

    def _put_back(self, exchange: Exchange) -> None:
        if exchange not in self._all:
            return
        if self._retired:
            exchange.close()
            return
        self._idle.append((exchange, self._loop.time()))
        if self._look is None:
            self._look = self._loop.call_later(limits.FRAMED_POOL_IDLE_S, self._drop_old)

    def _drop_old(self) -> None:
        self._look = None
        self._drop_idle(limits.FRAMED_POOL_IDLE_S)
        if self._idle:
            first = self._idle[0][1] + limits.FRAMED_POOL_IDLE_S
            self._look = self._loop.call_at(first, self._drop_old)

    def _drop_idle(self, longer_s: float) -> None:
        now = self._loop.time()
        idle, self._idle = self._idle, []
        for exchange, since in idle:
            if now - since >= longer_s or exchange not in self._all:
                exchange.close()
            else:
                self._idle.append((exchange, since))
