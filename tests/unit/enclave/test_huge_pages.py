"""What a worker allocates while it loads lies in huge pages, where the kernel has them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SIZE = 64 << 20
CHILD = f"""
import json, resource
from pathlib import Path
from casemate_enclave.memory import huge_pages

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

def faults(act):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    kept = act()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before, kept

small, _ = faults(lambda: b"x" * {SIZE})
_ = None
start = resident()
with huge_pages(2 * {SIZE}):
    huge, kept = faults(lambda: b"y" * {SIZE})
    more = [b"z" * {SIZE} for _ in range(3)]  # beyond the promised size, too
    good = kept[0] == kept[-1] == ord("y") and all(each[-1] == ord("z") for each in more)
    del kept, more
given_back = resident() - start
again, kept = faults(lambda: b"x" * {SIZE})
del kept
print(json.dumps([small, huge, again, given_back, resident() - start, good]))
"""


def test_a_loads_memory_takes_few_faults_and_is_given_back() -> None:
    child = subprocess.run(
        [sys.executable, "-c", CHILD], capture_output=True, text=True, timeout=60, check=True
    )
    small, huge, again, given_back, left, good = json.loads(child.stdout)
    assert good
    assert small > SIZE // 4096 // 2
    chosen = Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text()
    if "[never]" not in chosen and "[always]" not in chosen:
        assert huge < small / 10
        assert again > SIZE // 4096 // 2  # it was for the load alone
    assert max(given_back, left) < SIZE // 8
