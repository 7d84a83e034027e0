"""A process of the local deployment: started, ready when it says so, stopped by its process id."""

from __future__ import annotations

import collections
import json
import os
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any, Self

from casemate_devkit.errors import DevkitError

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

_START_TIMEOUT_S = 180.0
_STOP_TIMEOUT_S = 30.0


class Service:
    """``python -m module arguments``, which prints one JSON line when it is ready.

    It runs in a session of its own, so that an interrupt at the terminal reaches it through its
    owner; its environment holds nothing of ours but the search path. Its standard error is ``log``.
    ``start_s``: how long it may take to be ready.
    """

    def __init__(
        self, module: str, *arguments: str, log: Path, start_s: float = _START_TIMEOUT_S
    ) -> None:
        self.log = log
        self._follower = threading.Thread(target=self._follow, name="follow", daemon=True)
        with log.open("a") as stream:
            self._process = subprocess.Popen(
                [sys.executable, "-m", module, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=stream,
                env={"PATH": os.defpath, "PYTHONUTF8": "1"},
                start_new_session=True,
                text=True,
            )
        try:
            self.ready = self._await_ready(module, start_s)
        except BaseException:
            self.stop()
            raise
        self._said = collections.deque([self.ready], maxlen=1)
        self._follower.start()

    def _await_ready(self, module: str, start_s: float) -> dict[str, Any]:
        timer = threading.Timer(start_s, self._process.kill)
        timer.start()
        try:
            line = self._process.stdout.readline() if self._process.stdout else ""
        finally:
            timer.cancel()
        if not line:
            raise DevkitError(f"{module} did not start:\n{self.log.read_text()[-2000:]}")
        ready: dict[str, Any] = json.loads(line)
        return ready

    def _follow(self) -> None:
        """Read on, so that a service that says more than one line never waits for us."""
        for line in self._process.stdout or ():
            self._said.append(json.loads(line))

    @property
    def latest(self) -> dict[str, Any]:
        """What it said last: ``ready``, or of a launcher that restarts, its present enclave."""
        return self._said[0]

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def running(self) -> bool:
        """Whether it still runs."""
        return self._process.poll() is None

    def kill(self) -> None:
        """End it at once, as a crash would."""
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        """Ask it to stop, insist after a while; idempotent."""
        self._process.terminate()
        try:
            self._process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.kill()
        if self._follower.ident is not None:
            self._follower.join(_STOP_TIMEOUT_S)
        if self._process.stdout is not None:
            self._process.stdout.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()
