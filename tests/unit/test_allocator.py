from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

from casemate import allocator

if TYPE_CHECKING:
    import pytest

_MESSAGES = """
import resource, threading
{keep}
def serve():
    for _ in range({times}):
        parts = [bytearray(600_000) for _ in range({alive})]
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    threads = [threading.Thread(target=serve) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


_EXPECT = "from casemate.allocator import expect_large_messages; expect_large_messages()"


def _faults(keep: str, alive: int, times: int = 20) -> int:
    """Pages that the kernel had to give while messages came and went, so many at a time."""
    code = _MESSAGES.format(keep=keep, alive=alive, times=times)
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    return int(found.stdout)


def test_messages_find_the_memory_of_those_before_them() -> None:
    kept = _faults("from casemate.allocator import keep_freed_memory; keep_freed_memory()", 8)

    # 3,200 messages of 147 pages each; without it half of them come anew.
    assert kept < 3200 * 147 / 20


def test_a_client_finds_the_memory_of_its_messages_before() -> None:
    """Three are alive at a time: the message, gRPC's copy, and what the caller makes of arrays."""
    expected = _faults(_EXPECT, 3, 100)

    assert expected < 6000 * 147 / 20  # without it half of them come anew


def test_bounds_that_somebody_has_set_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "131072")

    assert _faults(_EXPECT, 3) > 1200 * 147 / 4


def test_a_c_library_without_the_call_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allocator, "_LIBRARY", object())

    allocator.keep_freed_memory()
