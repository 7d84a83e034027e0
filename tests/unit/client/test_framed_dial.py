"""A client gives a host that greets it slowly no more time than it has (SPEC 9.6.3)."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from typing import TYPE_CHECKING

import pytest

from casemate.client.framed import WELCOME, FramedHost
from casemate.client.framed_dial import Dial, NowhereError
from casemate.framed import Offer, hello

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextlib.contextmanager
def greeting(pause_s: float) -> Iterator[FramedHost]:
    """A host that greets byte by byte, with a pause before each, and welcomes everybody."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        offer = Offer.new(server.getsockname()[1])

        def serve() -> None:
            with contextlib.suppress(OSError):
                channel, _ = server.accept()
                with channel:
                    for byte in offer.greeting:
                        time.sleep(pause_s)
                        channel.sendall(bytes([byte]))
                    channel.sendall(WELCOME)
                    channel.recv(1024)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield FramedHost("127.0.0.1", offer)
        thread.join()


@pytest.mark.parametrize(("pause_s", "within_s", "reached"), [(0, 60, True), (0.1, 0.5, False)])
def test_a_greeting_has_its_time_as_a_whole(
    *, pause_s: float, within_s: float, reached: bool
) -> None:
    """Each byte comes in time, and all of them do not."""
    with greeting(pause_s) as host:
        dial = Dial(host, hello())
        with contextlib.nullcontext() if reached else pytest.raises(NowhereError):
            dial.connect(within_s)
        dial.close()
