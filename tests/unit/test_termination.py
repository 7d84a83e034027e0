"""A process that serves ends whenever it is told to."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

TOLD = """
import signal, sys, threading, time
from casemate.termination import Termination

number = int(sys.argv[2])

def tell(thread):
    time.sleep(0.2)
    signal.pthread_kill(thread, number)

termination = Termination()
if sys.argv[1] == "before":
    signal.raise_signal(number)
else:
    main = threading.get_ident()
    whom = (lambda: main) if sys.argv[1] == "main" else threading.get_ident
    threading.Thread(target=lambda: tell(whom())).start()
termination.wait()
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("when", ["before", "main", "another thread"])
def test_whichever_thread_a_signal_reaches_and_when(when: str, number: signal.Signals) -> None:
    """Another thread is how the system may choose; the main one then waits for what is no lock."""
    command = [sys.executable, "-c", TOLD, when, str(int(number))]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")
