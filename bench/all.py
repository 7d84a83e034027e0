"""Every bench in turn, whatever the ones before it found; missed targets are listed at the end.

`make bench`, or `python -m bench.all [--json] [NAME...]`. A bench is a process of its own, so that
none finds another's leftovers; one that ends with an error counts as missed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from typing import Final

BENCHES: Final = (
    *("verifier", "envelope", "binding", "hop", "sandbox", "key_modes", "serving", "flat"),
    *("overload", "stream", "request_path", "model_load"),
)


def run(name: str, options: list[str]) -> list[str]:
    """Run one bench and show what it prints; return what it missed."""
    command = [sys.executable, "-u", "-m", f"bench.{name}", *options]
    missed: list[str] = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:  # noqa: S603 - our own benches
        for line in child.stdout or ():
            print(line, end="", flush=True)
            missed += misses(line)
    if child.returncode and not missed:
        missed.append(f"ended with {child.returncode}, see what it printed")
    return [f"{name}: {what}" for what in missed]


def misses(line: str) -> list[str]:
    """Return the targets that a printed line says were missed."""
    if line.startswith("{"):
        ratios = json.loads(line).get("ratios", ())
        return [f"{r['name']} {r['value']}, target {r['target']}" for r in ratios if not r["met"]]
    return [" ".join(line.split())] if "MISSED" in line else []


def main() -> int:
    """Run them; return 1 if a target is missed."""
    parser = argparse.ArgumentParser(prog="bench.all")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("names", nargs="*", default=BENCHES, metavar="NAME")
    arguments = parser.parse_args()
    options = ["--json"] if arguments.json else []
    missed = [what for name in arguments.names for what in run(name, options)]
    for what in missed:
        print(f"missed: {what}", file=sys.stderr)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
