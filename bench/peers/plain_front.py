"""The plain twin behind the host's own front: unary calls and streams of calls, as the sealed path.

`plain_server.py` has bare gRPC handlers; here the host's gRPC server admits, counts and carries
requests (SPEC 9.6.2) as it does for an enclave, and the relay runs the model in this process. What
is missing is the seal and the enclave's hop. ``python -m bench.peers.plain_front FOLDER [frames]``
prints one JSON line; with ``frames`` it takes framed connections, too (SPEC 9.6.3).
"""

from __future__ import annotations

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Final

from bench.peers.models import asked
from bench.peers.plain_server import registry, run
from casemate import limits
from casemate.channel import UnixAddress
from casemate.errors import Code
from casemate.frames import ANSWER, FrameType
from casemate.numbered import Numbered
from casemate_host.callers import CallerLimits, Callers
from casemate_host.config import FrontConfig
from casemate_host.front import Front
from casemate_host.metrics import Metrics
from casemate_host.pipe import Pipe
from casemate_host.relay import Relay
from casemate_host.standing import Board, HeldEvidence, Standing

if TYPE_CHECKING:
    from collections.abc import Sequence

    from casemate.wire import Buffer
    from casemate_enclave.registry import ModelRegistry
    from casemate_host.call import Call
    from casemate_host.posting import Posted

# Many of these end within the time that waking a thread takes: those of one message share one.
SHORT: Final = frozenset({"small"})


class InProcess(Relay):
    """Answers by itself what a relay would pass on."""

    def __init__(self, models: ModelRegistry) -> None:
        super().__init__(UnixAddress("/nonexistent"), limits.RELAY_CONNECTIONS, lambda: None)
        self._models = models
        self._pool = ThreadPoolExecutor(limits.UNARY_DEFAULT)

    def exchange(self, kind: FrameType, payload: Buffer | Pipe, call: Call) -> bytes:  # noqa: ARG002 - the relay's
        """Run the model."""
        request = payload.drain() if isinstance(payload, Pipe) else bytes(payload)
        return self._answer(request, call.remaining_s())

    def post(self, posts: Sequence[Posted], call: Call) -> None:  # noqa: ARG002 - the relay's
        """Run the models of all, in threads of their own where they take long."""
        short = [post for post in posts if asked(bytes(post.payload))[0] in SHORT]
        if short:
            self._pool.submit(self._settle, short)
        for post in posts:
            if post not in short:
                self._pool.submit(self._settle, [post])

    def _settle(self, posts: Sequence[Posted]) -> None:
        for post in posts:
            answer = self._answer(bytes(post.payload), post.budget_ms / 1000)
            post.answer = Numbered(0, FrameType.REQUEST | ANSWER, answer, 0)
            post.rouse()

    def _answer(self, payload: bytes, remaining_s: float) -> bytes:
        return run(self._models, *asked(payload), remaining_s)


def main() -> int:
    """Serve until the standard input ends."""
    models = registry(Path(sys.argv[1]))
    board = Board()
    board.post(Standing(HeldEvidence(b"", bytes(48), 0), code=Code.OK, detail=""))
    config = FrontConfig(
        listen="127.0.0.1:0",
        tls=None,
        unary=limits.UNARY_DEFAULT,
        streams=limits.INFER_STREAMS_DEFAULT,
        drain_s=1.0,
        receive_s=limits.RECEIVE_TIMEOUT_S,
        frames="127.0.0.1:0" if "frames" in sys.argv[2:] else None,
    )
    callers = Callers((), CallerLimits())
    front = Front(config, InProcess(models), board, callers=callers, metrics=Metrics())
    print(json.dumps({"target": front.start()}), flush=True)
    sys.stdin.read()
    front.stop(1.0)
    return 0


if __name__ == "__main__":
    sys.exit(main())
