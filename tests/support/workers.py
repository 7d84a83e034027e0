"""A spawner of workers for tests that put an enclave's parts together in their own process.

It is the production one, in a process of its own: a test process has threads, which no fork takes
along.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from casemate.sealed_model import ModelEntry, ModelHeader
from casemate.tensors import TensorSpec
from casemate_enclave.events import Journal
from casemate_enclave.workers import packets
from casemate_enclave.workers.runtime import WorkerRuntime
from casemate_enclave.workers.spawning import Spawner

Specs = Mapping[str, tuple[str, tuple[int, ...]]]
ROOT = Path(__file__).resolve().parents[2]
SERVE = """
import socket, sys
from casemate_enclave.hardening import harden_process
from casemate_enclave.workers.spawner import serve
harden_process()
serve(socket.socket(fileno=int(sys.argv[1])), 0)
"""


@functools.cache
def spawner() -> Spawner:
    """Return the one of this test process; it ends with it."""
    return Spawner(_started()[0], lambda: None)


@functools.cache
def _started() -> tuple[socket.socket, subprocess.Popen[bytes]]:
    channel, process = start(SERVE)
    atexit.register(_end, channel, process)
    return channel, process


def start(program: str, *arguments: str) -> tuple[socket.socket, subprocess.Popen[bytes]]:
    """Run ``program`` as a spawner: its first argument is the descriptor of its connection."""
    ours, theirs = packets.pair()
    with theirs:
        descriptor = theirs.fileno()
        process = subprocess.Popen(
            [sys.executable, "-c", program, str(descriptor), *arguments],
            pass_fds=[descriptor],
            env={**os.environ, "ORT_DISABLE_TELEMETRY": "1", "OPENBLAS_NUM_THREADS": "1"},
            cwd=ROOT,
        )
    return ours, process


def _end(channel: socket.socket, process: subprocess.Popen[bytes]) -> None:
    channel.shutdown(socket.SHUT_RDWR)
    channel.close()
    process.wait(10)


def runtime(journal: Journal | None = None, **bounds: int) -> WorkerRuntime:
    """Return a runtime as an enclave has it, with this process's spawner."""
    settings = {"run_bytes": 64 << 20, "threads": 1, **bounds}
    return WorkerRuntime(spawner(), ["CPUExecutionProvider"], journal or Journal(), **settings)


def header(inputs: Specs, outputs: Specs, **more: Any) -> ModelHeader:  # noqa: ANN401 - as the header takes them
    """Return what a publisher says of a model with these inputs and outputs."""
    facts: dict[str, Any] = {
        "file_id": bytes(32),
        "key_commitment": bytes(32),
        "publisher": bytes(32),
        "name": "m",
        "version": 1,
        "answer_bucket": 0,
        "callers": "any",
        "runtime": "onnx",
        "kms_key": "arn:aws:kms:eu-central-1:111122223333:key/00000000-0000-4000-8000-000000000000",
        "wrapped_key": b"w",
        "entries": (ModelEntry("m", 1, bytes(48)),),
    }
    return ModelHeader(inputs=specs(inputs), outputs=specs(outputs), **{**facts, **more})


def specs(tensors: Specs) -> tuple[TensorSpec, ...]:
    """Return ``{"x": ("FP32", (0, 3))}`` as a header has it."""
    return tuple(TensorSpec(name, *fields) for name, fields in tensors.items())


def processes() -> set[int]:
    """Return every process of this test's spawner that has not been buried."""
    return children(_started()[1].pid)


def private_bytes(process: int) -> int:
    """Return what ``process`` has of memory for itself; 0 if it ended."""
    try:
        rollup = Path(f"/proc/{process}/smaps_rollup").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    fields = dict(line.split(":") for line in rollup.splitlines()[1:])
    return sum(int(fields[name].split()[0]) for name in ("Private_Clean", "Private_Dirty")) * 1024


def descendants(process: int) -> set[int]:
    """Return its children, and theirs."""
    direct = children(process)
    return direct.union(*map(descendants, direct))


def children(process: int) -> set[int]:
    """Return the processes that ``process`` has forked and not waited for; none if it ended."""
    found: set[int] = set()
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for task in Path(f"/proc/{process}/task").iterdir():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # a thread that ended
                found.update(map(int, (task / "children").read_text().split()))
    return found


def ticks_of_family(process: int) -> int:
    """Clock ticks of processor time, a hundredth of a second each, of ``process`` and all below."""
    return sum(map(_ticks, [process, *descendants(process)]))


def _ticks(process: int) -> int:
    try:
        fields = Path(f"/proc/{process}/stat").read_text(encoding="ascii").rsplit(")", 1)[1].split()
    except OSError:  # it has just ended
        return 0
    return int(fields[11]) + int(fields[12])
