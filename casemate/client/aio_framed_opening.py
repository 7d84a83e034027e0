"""How a framed connection begins on an event loop (SPEC 9.6.3): greeted first, then introduced."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import TYPE_CHECKING, Any

from casemate.client.framed import WELCOME
from casemate.client.framed_dial import NowhereError, nowhere, prepare

if TYPE_CHECKING:
    from casemate.client.framed import FramedHost


async def opened(host: FramedHost, hello: bytes, within_s: float) -> socket.socket:
    """Return a connection to the host that made the offer, on which anything may be asked.

    It does not block. Raises NowhereError, after at most ``within_s``.
    """
    loop = asyncio.get_running_loop()
    until = loop.time() + within_s
    try:
        async with asyncio.timeout_at(until):
            found = await loop.getaddrinfo(*host.address, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise NowhereError(type(error).__name__) from None
    why: NowhereError | OSError = NowhereError("no address")
    for left, (family, _, _, _, address) in zip(range(len(found), 0, -1), found, strict=True):
        try:
            async with asyncio.timeout((until - loop.time()) / left):  # a silent one's share
                return await _reached(family, address, (host.offer.greeting, hello))
        except (OSError, NowhereError) as error:
            why = error
    raise nowhere(why)


async def _reached(
    family: socket.AddressFamily,
    address: Any,  # noqa: ANN401 - each family has its own
    words: tuple[bytes, bytes],
) -> socket.socket:
    """Connect, hear the greeting and say hello: ``words``. Raises OSError, NowhereError."""
    greeting, hello = words
    loop = asyncio.get_running_loop()
    with contextlib.ExitStack() as stack:
        channel = stack.enter_context(socket.socket(family, socket.SOCK_STREAM))
        channel.setblocking(False)
        prepare(channel)
        await loop.sock_connect(channel, address)
        await _expect(channel, greeting)
        await loop.sock_sendall(channel, hello)
        await _expect(channel, WELCOME)
        stack.pop_all()
        return channel


async def _expect(channel: socket.socket, words: bytes) -> None:
    """Read ``words``, and not a byte more; raises NowhereError at the first that is another."""
    heard = b""
    while heard != words:
        piece = await asyncio.get_running_loop().sock_recv(channel, len(words) - len(heard))
        heard += piece
        if not piece or not words.startswith(heard):
            raise NowhereError("the host did not say what was expected")
