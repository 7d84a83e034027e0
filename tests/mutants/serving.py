"""Joined runs (SPEC 8.8): each defence against mixing callers' rows off."""

from __future__ import annotations

from functools import partial

from tests.mutants.mutant import Mutant

TESTS = ("tests/unit/enclave/test_scheduling.py",)
_made = partial(Mutant, tests=TESTS, package="enclave/casemate_enclave")

_BATCHING = "batching.py"
_SCHEDULING = "scheduling.py"

# fmt: off
MUTANTS = (
    _made("split: rows of all", _BATCHING, "array.ndim <= axis or array.shape[axis] != total", "False"),
    _made("split: where it starts", _BATCHING, "        start = end\n", ""),
    _made("split: where it ends", _BATCHING, "slice(start, end)", "slice(start, None)"),
    _made("gather: shapes", _BATCHING, "or job.shape != leader.shape", ""),
    _made("gather: alone", _BATCHING, "if job.alone or", "if"),
    _made("gather: rows", _BATCHING, "rows + job.rows > most_rows or", ""),
    _made("gather: bytes", _BATCHING, "or size + job.size > limits.BATCH_BYTES_MAX", ""),
    _made("gather: time", _BATCHING, "job.deadline <= cut or", ""),
    _made("rows: differ", _BATCHING, "if len(counts) != 1:", "if False:"),
    _made("rows: bound", _SCHEDULING, "if most is not None and rows > most:", "if False:"),
    _made("joined: its time", _SCHEDULING, "until = min(cut, time.monotonic() + self._bounds.run_s)", "until = members[0].deadline"),
    _made("joined: spoilt members run alone", _SCHEDULING, "                    member.alone = True\n", ""),
    _made("run: its time", _SCHEDULING, "until = min(deadline, time.monotonic() + self._bounds.run_s)", "until = deadline"),
    _made("queue: bound", _SCHEDULING, "if not self._free and not self._queue.has_room(job.owner):", "if False:"),
    _made("place: given up", _SCHEDULING, "            self._free += 1\n", ""),
)
