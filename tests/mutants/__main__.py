"""`make mutants`: disable each check in turn, in a copy, and have a named test notice.

Usage: `python -m tests.mutants [TEXT]`; with TEXT only mutants whose name or file contains it.
Exit status 0 if every mutant was killed by a failed test, 1 if one survived or none could tell.
"""

from __future__ import annotations

import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING

from tests.mutants.scratch import Scratch, Verdict
from tests.mutants.tables import MUTANTS

if TYPE_CHECKING:
    from tests.mutants.mutant import Mutant

WORKERS = 2


def main(arguments: list[str]) -> int:
    """Try the mutants; print a line for each and return the exit status."""
    wanted = " ".join(arguments)
    chosen = [mutant for mutant in MUTANTS if wanted in f"{mutant.name} {mutant.file}"]
    if not chosen:
        print(f"no mutant is named so: {wanted}")
        return 1
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="casemate-mutants-") as folder:
        free: SimpleQueue[Scratch] = SimpleQueue()
        for number in range(WORKERS):
            free.put(Scratch(Path(folder) / str(number)))
        files = sorted({test for mutant in chosen for test in mutant.tests})
        first = free.get()
        unchanged = first.run(files)
        free.put(first)
        if not unchanged.survived:
            print(f"the tests fail without any mutant: {unchanged.by}")
            return 1

        def attempt(index: int) -> Verdict:
            scratch = free.get()
            try:
                return scratch.judge(chosen[index])
            finally:
                free.put(scratch)

        with ThreadPoolExecutor(WORKERS) as pool:
            verdicts = list(map(_print, chosen, pool.map(attempt, range(len(chosen)))))
    killed = sum(verdict.killed for verdict in verdicts)
    seconds = time.monotonic() - started
    print(f"{killed} of {len(chosen)} mutants killed in {seconds:.0f} s")
    return 0 if chosen and killed == len(chosen) else 1


def _print(mutant: Mutant, verdict: Verdict) -> Verdict:
    state = "killed" if verdict.killed else "SURVIVED" if verdict.survived else "UNCLEAR"
    print(f"{state:<9}{mutant.name:<30}{mutant.file:<34}{verdict.by}", flush=True)
    return verdict


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
