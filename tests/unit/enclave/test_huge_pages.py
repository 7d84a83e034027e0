"""What a worker allocates while it loads lies in huge pages, where the kernel has them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

MIB = 1 << 20
SIZE = 64 * MIB
SHARED = f"""
import json, re, resource, threading, time
from pathlib import Path
from casemate_enclave import huge_pages as module
from casemate_enclave.huge_pages import huge_pages

SIZE = {SIZE}

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

def in_huge_pages():
    maps = Path("/proc/self/smaps_rollup").read_text()
    return int(re.search(r"AnonHugePages: *(\\d+)", maps)[1]) << 10

def faults(act):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    kept = act()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before, kept

def awaited(least):
    end = time.monotonic() + 20
    while resident() - start < least and time.monotonic() < end:
        time.sleep(0.01)
    return resident() - start
"""
TOUCHED = """
small, _ = faults(lambda: b"x" * SIZE)
_ = None
start = resident()
with huge_pages(2 * SIZE, 0):
    huge, kept = faults(lambda: b"y" * SIZE)
    more = [b"z" * SIZE for _ in range(3)]  # beyond the promised size, too
    good = kept[0] == kept[-1] == ord("y") and all(each[-1] == ord("z") for each in more)
    del kept, more
given_back = resident() - start
again, kept = faults(lambda: b"x" * SIZE)
del kept
print(json.dumps([small, huge, again, given_back, resident() - start, good]))
"""
FOUND = """
start = resident()
with huge_pages(4 * SIZE, SIZE):
    found = awaited(SIZE - (4 << 20))
    huge = in_huge_pages()
    touched, kept = faults(lambda: b"y" * (SIZE - (4 << 20)))
    taken = resident() - start
    del kept
print(json.dumps([found, huge, touched, taken, resident() - start, threading.active_count()]))
"""
SLOW = "module._SMALL_S = -1e9\n"
QUICK = "module._SMALL_S = 1e9\n"
LATER = """
def small_for_good():
    maps = Path("/proc/self/smaps").read_text()
    return " nh" in "".join(re.findall(r"\\[heap\\]\\n(?:.*\\n)*?VmFlags:(.*)", maps))

start = resident()
with huge_pages(4 * SIZE, SIZE):
    awaited(SIZE - (4 << 20))
    kept, meanwhile = b"y" * (SIZE // 2), small_for_good()
print(json.dumps([meanwhile, small_for_good(), resident() - start]))
"""
ENDED = """
start = resident()
with huge_pages(64 * SIZE, 32 * SIZE):
    pass
print(json.dumps([resident() - start, threading.active_count()]))
"""
ASKED = """
import mmap

private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
with mmap.mmap(-1, SIZE + (2 << 20), private) as asked:
    asked.madvise(mmap.MADV_HUGEPAGE)
    for place in range(0, len(asked), 4096):
        asked[place] = 1
    print(json.dumps([in_huge_pages()]))
"""


def measured(*parts: str) -> list[Any]:
    child = subprocess.run(
        [sys.executable, "-c", SHARED + "".join(parts)],
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    facts: list[Any] = json.loads(child.stdout)
    return facts


def kernel_has_enough() -> bool:
    """Whether who asks for them gets them, now: memory may be in pieces, or they switched off."""
    [got] = measured(ASKED)
    return bool(got > SIZE - 8 * MIB)


def kernel_has_some() -> bool:
    chosen = Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text()
    return "[never]" not in chosen


def test_a_loads_memory_takes_few_faults_and_is_given_back() -> None:
    small, huge, again, given_back, left, good = measured(TOUCHED)
    assert good
    assert small > SIZE // 4096 // 2
    chosen = Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text()
    if "[always]" not in chosen and kernel_has_enough():
        assert huge < small / 10
        assert again > SIZE // 4096 // 2  # it was for the load alone
    assert max(given_back, left) < SIZE // 8


def test_memory_that_will_be_needed_is_there_before_it_is_touched() -> None:
    found, huge, touched, taken, left, threads = measured(QUICK, FOUND)
    assert found >= SIZE - 4 * MIB
    assert taken < SIZE + 8 * MIB  # what was found is what the allocation lay in
    assert touched < SIZE // 4096 // 10
    if kernel_has_enough():
        assert huge > SIZE - 8 * MIB
    assert left < SIZE // 8
    assert threads == 1


def test_where_huge_pages_are_slow_the_rest_is_small() -> None:
    found, huge, touched, taken, left, threads = measured(SLOW, FOUND)
    assert found >= SIZE - 4 * MIB
    assert huge <= 8 * MIB  # those that showed it, and what else the process has
    assert touched < SIZE // 4096 // 10
    assert taken < SIZE + 8 * MIB
    assert left < SIZE // 8
    assert threads == 1


def test_small_pages_may_become_huge_when_the_load_has_ended() -> None:
    meanwhile, later, kept = measured(SLOW, LATER)
    if kernel_has_some():
        assert meanwhile
    assert not later
    assert kept >= SIZE // 2 - 4 * MIB  # so there was something to tell of


def test_nothing_is_found_any_more_when_a_load_has_ended() -> None:
    left, threads = measured(ENDED)
    assert left < SIZE
    assert threads == 1
