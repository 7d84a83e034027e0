"""How a process that serves learns that it is to end."""

from __future__ import annotations

import os
import signal
from typing import Final

_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)


class Termination:
    """SIGTERM and SIGINT as something to wait for; made once, by the main thread.

    The system may give a signal to any thread, and Python runs a handler in the main one, when that
    next runs Python: amid whatever it holds then, and not at all while it waits for a lock. So the
    handlers do nothing, and what is awaited is the byte that the interpreter writes at once.
    """

    def __init__(self) -> None:
        self._told, teller = os.pipe()
        os.set_blocking(teller, False)
        signal.set_wakeup_fd(teller, warn_on_full_buffer=False)
        for number in _SIGNALS:
            signal.signal(number, lambda *_: None)

    def wait(self) -> None:
        """Return when the process has been told to end, also if that was before."""
        os.read(self._told, 1)
