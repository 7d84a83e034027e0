"""Workers (SPEC 8.10): each check of what they say, and each wall around them, off."""

from __future__ import annotations

from functools import partial

from tests.mutants.mutant import Mutant

_made = partial(
    Mutant,
    tests=("tests/unit/enclave/test_worker_answers.py",),
    package="enclave/casemate_enclave/workers",
)
_listed = partial(
    Mutant,
    tests=("tests/unit/enclave/test_sandbox_filters.py",),
    package="enclave/casemate_enclave/sandbox",
)

_hostile = partial(
    Mutant,
    tests=("tests/security/test_hostile_workers.py",),
    package="enclave/casemate_enclave/workers",
)
_ends = partial(
    Mutant,
    file="model.py",
    tests=("tests/integration/test_workers.py",),
    package="enclave/casemate_enclave/workers",
)

_TENSORS = "tensors.py"
_LINE = "line.py"
_SHARED = "shared.py"

_cancelled = partial(
    Mutant,
    file="worker.py",
    tests=("tests/unit/enclave/test_worker_cancel.py",),
    package="enclave/casemate_enclave/workers",
)

# fmt: off
MUTANTS = (
    _cancelled("worker: cancelled before it begins", old="if number in self._cancelled:", new="if False:"),
    _cancelled("worker: cancelled while it runs", old="if (run := self._running.get(number)) is not None:", new="if (run := None) is not None:"),
    _cancelled("worker: cancelled numbers, bounded", old="if len(self._cancelled) > _CANCELLED_KEPT:", new="if False:"),
    _cancelled("worker: cancelled numbers, forgotten", old="        self._cancelled.pop(number, None)\n", new=""),
    _made("worker, question: its time is used", _LINE, "                meanwhile()\n", "                pass\n"),
    _made("worker, answer: the run's number", _LINE, "if answered != number:", "if False:"),
    _made("worker, answer: room is bounded", _LINE, "if total > self._most:", "if False:"),
    _made("worker, tensors: dimensions", _TENSORS, "if len(shape) > _RANK_MAX:", "if False:"),
    _made("worker, tensors: a set", _TENSORS, "if len(set(names)) != len(names) or len(names) > _TENSORS_MAX:", "if False:"),
    _made("worker, tensors: numbers", _TENSORS, "return type(value) is int", "return True"),
    _made("worker, text: fits", _TENSORS, "if not strings.fit(memoryview(raw), count):", "if False:"),
    Mutant("worker, contents: never change", "sealed_model/memory_file.py", "_ALL_SEALS: Final = 0xF", "_ALL_SEALS: Final = 0x7", ("tests/unit/test_memory_file.py",)),
    _made("worker, shared memory: its size", _SHARED, "_SIZE = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL", "_SIZE = 0"),
    _made("worker, shared memory: questions are read", _SHARED, "        if not answers:\n            _forbid_writing(descriptor)\n", ""),
    _hostile("worker, ends in any case", "spawning.py", "                _thread.start_new_thread(self.kill, (number,))\n", "                pass\n"),
    _ends("worker, ends: whose", old="            self._blame.add(cancellation.owner)\n", new="            pass\n"),
    _ends("worker, ends: explained by a crash", old="            self._ends.explain(2)\n", new="            pass\n"),
    _ends("worker, ends: explained by its time", old="                self._ends.explain(1)\n", new="                pass\n"),
    _ends("worker, ends: too many", old="        if self._ends.too_many:\n            self._journal", new="        if False:\n            self._journal"),
    _ends("worker, ends: nobody at fault waits", file="../scheduling.py", old="        self._model.admit(owner)\n", new="", tests=("tests/unit/enclave/test_scheduling.py",)),
    _listed("worker, workers: no socket", "allowed.py", '_WORKER: Final = ("recvmsg",', '_WORKER: Final = ("socket", "recvmsg",'),
    _listed("worker, workers: no process", "allowed.py", "**_tested(_NEW_THREAD, files=(*_FILE_CONTROL, _DUPLICATE)),", "**_tested(_NEW_THREAD, _NEW_PROCESS, files=(*_FILE_CONTROL, _DUPLICATE)),"),
    _listed("worker, spawner: one signal", "allowed.py", '"kill": (Among(1, (int(signal.SIGKILL),)),),', '"kill": (),'),
)
