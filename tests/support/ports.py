"""Ports that one server leaves and another takes: nobody else may have them in between."""

from __future__ import annotations

import contextlib
import random
import socket
from pathlib import Path


def lasting_port() -> int:
    """Return a free port of loopback that the kernel gives to nobody who names none.

    Not to the ten thousand connections of another test, for a minute after their end.
    """
    given = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text(encoding="ascii")
    first, last = map(int, given.split())
    others = [port for port in range(10_000, 65_536) if not first <= port <= last]
    while True:
        port = random.choice(others)
        if is_free(port):
            return port


def is_free(port: int) -> bool:
    """Whether a server may listen there."""
    with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
        return True
    return False
