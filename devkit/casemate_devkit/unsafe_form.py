"""The unsafe form: the staged tree run in place, without namespaces, on machines that have none.

What is measured is the canonical command line of the form ``unsafe-process``. What is executed is
that line with each path moved to where it lies on this machine, so measurement promises little
here, and a trust policy cannot mistake this form for another: its registers differ.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from casemate_devkit import cmdline
from casemate_devkit.errors import DevkitError
from casemate_devkit.spawner import Plan

if TYPE_CHECKING:
    from pathlib import Path

WARNING: Final = (
    "UNSAFE: the enclave runs without namespaces, as the user who started it. It can read that "
    "user's files and use the network. Its evidence says so (form unsafe-process)."
)


def plan(tree: Path, run_dir: Path, nsm: Path) -> Plan:
    """Run the tree's interpreter with the tree's own loader and libraries; raises DevkitError."""
    loader = _single(tree, "lib*/ld-linux*.so*")
    libraries = _single(tree, "**/libc.so.6").parent
    interpreter, *arguments = cmdline.enclave_cmdline(cmdline.UNSAFE_PROCESS)
    moved = [_moved(argument, tree, run_dir, nsm) for argument in arguments]
    line = (
        *(str(loader), "--inhibit-cache", "--library-path", str(libraries)),
        *(str(tree / interpreter[1:]), *moved),
    )
    return Plan(executable=str(loader), arguments=line, walls=None)


def _single(tree: Path, pattern: str) -> Path:
    found = sorted(tree.glob(pattern))
    if len(found) != 1:
        raise DevkitError(f"{tree} is no staged tree: {len(found)} files match {pattern}")
    return found[0]


def _moved(argument: str, tree: Path, run_dir: Path, nsm: Path) -> str:
    for prefix, place in ((f"unix:{cmdline.RUN}/", run_dir), (f"unix:{cmdline.NSM}/", nsm)):
        if argument.startswith(prefix):
            return f"unix:{place}/{argument.removeprefix(prefix)}"
    return f"{tree}{argument}" if argument.startswith("/app/") else argument
