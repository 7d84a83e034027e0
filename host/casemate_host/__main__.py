"""``casemate-host``: run one host until SIGTERM or SIGINT."""

from __future__ import annotations

import argparse
import json
import resource
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from casemate import limits
from casemate.allocator import keep_freed_memory
from casemate.errors import CasemateError
from casemate.termination import Termination
from casemate_host.config import HostConfig
from casemate_host.events import configure_logging, log
from casemate_host.host import Host

if TYPE_CHECKING:
    from collections.abc import Sequence

_REFUSED = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the host; 0 after an orderly stop, 2 when it cannot start.

    Prints one JSON line on standard output once it listens:
    ``{"event": "ready", "address": "host:port", "tls": bool}``, with ``metrics`` as well where that
    page is configured, and ``frames`` where framed connections are. Whether it serves is for
    ``grpc.health.v1`` to say. Everything else is on standard error.
    """
    parser = argparse.ArgumentParser(prog="casemate-host", description="Relay to one enclave.")
    parser.add_argument("--config", type=Path, required=True, help="the host's TOML file")
    path: Path = parser.parse_args(arguments).config
    keep_freed_memory()
    configure_logging()
    termination = Termination()
    _ask_for_descriptors()
    try:
        config = HostConfig.load(path)
        host = Host(config)
        address = host.start()
    except CasemateError as error:
        log.error("refused", code=error.code, detail=error.detail)
        return _REFUSED
    ready = {"event": "ready", "address": address, "tls": config.front.tls is not None}
    if host.metrics_address is not None:
        ready["metrics"] = host.metrics_address
    if host.frames_address is not None:
        ready["frames"] = host.frames_address
    sys.stdout.write(json.dumps(ready) + "\n")
    sys.stdout.flush()
    termination.wait()
    host.stop()
    return 0


def _ask_for_descriptors() -> None:
    """Raise the soft limit: each connection of a caller is a descriptor."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = limits.DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, limits.DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


if __name__ == "__main__":
    sys.exit(main())
