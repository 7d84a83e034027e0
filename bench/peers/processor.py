"""Processor time and energy of servers, as Linux accounts them."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Final

_TICKS: Final = os.sysconf("SC_CLK_TCK")
_ENERGY: Final = Path("/sys/class/powercap/intel-rapl:0/energy_uj")
_PARENT, _USER, _SYSTEM, _CHILDREN_USER, _CHILDREN_SYSTEM = 1, 11, 12, 13, 14


def _stat(pid: int) -> list[str] | None:
    """The fields of /proc/PID/stat after the name, which may hold anything (proc(5))."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None


def family(*roots: int) -> set[int]:
    """``roots`` and all their descendants, whatever session or namespace they are in."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (fields := _stat(int(entry.name))) is not None:
            parents[int(entry.name)] = int(fields[_PARENT])
    found = set(roots)
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return found


def seconds(pids: set[int]) -> float:
    """Processor seconds of these processes and of those of their children that have ended."""
    columns = (_USER, _SYSTEM, _CHILDREN_USER, _CHILDREN_SYSTEM)
    stats = [fields for pid in pids if (fields := _stat(pid)) is not None]
    return sum(int(fields[column]) for fields in stats for column in columns) / _TICKS


def energy() -> float:
    """Joules of the whole package so far; not a number where the machine does not say."""
    try:
        return int(_ENERGY.read_text()) / 1e6
    except (OSError, ValueError):
        return math.nan
