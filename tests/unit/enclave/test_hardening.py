"""What the process does for itself, seen from outside and inside (THREATS S2, S3, O1)."""

import json
import subprocess
import sys
from pathlib import Path

from tests.support.as_user import require_root

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
        timeout=300,
    )
    assert done.stdout.splitlines() == ["0 (0, 0) False", "['1']", "2"]
    assert done.stderr.splitlines() == ['{"event": "INTERNAL_ERROR"}'] * 3
    assert done.returncode == 1


DROP = """
import json, os, socket, threading
from pathlib import Path
from casemate_enclave.hardening import give_up_root

def status(task):
    lines = dict(line.split(":", 1) for line in (task / "status").read_text().splitlines())
    return {name: lines[name].split() for name in ("Uid", "Gid", "Groups", "CapEff", "CapPrm")}

def refused(what, *arguments):
    try:
        what(*arguments)
    except PermissionError:
        return True
    return False

os.setgroups([4, 5])
over = threading.Event()
threading.Thread(target=over.wait).start()  # numpy's and onnxruntime's are there before, too
give_up_root()
tasks = [status(task) for task in sorted(Path("/proc/self/task").iterdir())]
again = [refused(os.setuid, 0), refused(os.setgroups, [0]), refused(os.chroot, "/")]
again += [refused(os.open, "/etc/shadow", os.O_RDONLY), refused(os.open, "/etc/hosts", os.O_WRONLY)]
over.set()
print(json.dumps([tasks, again]))
"""


def test_root_is_given_up_in_every_thread_and_does_not_come_back() -> None:
    require_root()
    root = Path(__file__).parents[3]
    script = f"import sys; sys.path[:0] = [{str(root)!r}, {str(root / 'enclave')!r}]\n{DROP}"
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)
    tasks, again = json.loads(done.stdout)
    nobody, nothing = ["65534"] * 4, ["0" * 16]
    facts = {"Uid": nobody, "Gid": nobody, "Groups": [], "CapEff": nothing, "CapPrm": nothing}
    assert tasks == [facts] * 2
    assert again == [True] * 5
