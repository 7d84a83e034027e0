"""What the process does for itself, seen from outside and inside (THREATS S2, S3, O1)."""

import subprocess
import sys
from pathlib import Path

SECRET = "planted-5417"
SCRIPT = """
import faulthandler, resource, sys, threading, ctypes
from casemate_enclave.events import Journal
from casemate_enclave.hardening import harden_process, silence_tracebacks
journal = Journal()
silence_tracebacks(journal)
harden_process()
libc = ctypes.CDLL(None)
core = resource.getrlimit(resource.RLIMIT_CORE)
print(libc.prctl(3, 0, 0, 0, 0), core, faulthandler.is_enabled())
print([line.split()[1] for line in open("/proc/self/status") if line.startswith("NoNewPrivs")])

def fail():
    raise ValueError(SECRET)

class Unraisable:
    def __del__(self):
        raise ValueError(SECRET)

thread = threading.Thread(target=fail)
thread.start()
thread.join()
Unraisable()
print(journal.counters()["internal_errors"])
fail()
"""


def test_the_process_hides_itself_and_its_errors() -> None:
    root = Path(__file__).parents[3]
    script = f"import sys; sys.path[:0] = [{str(root)!r}, {str(root / 'enclave')!r}]\n{SCRIPT}"
    script = script.replace("SECRET", repr(SECRET))
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", script],
        check=False,
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.stdout.splitlines() == ["0 (0, 0) False", "['1']", "2"]
    assert done.stderr.splitlines() == ['{"event": "INTERNAL_ERROR"}'] * 3
    assert done.returncode == 1
