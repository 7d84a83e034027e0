"""Stands in for ``app/boot.py`` in a copy of the staged tree: confined, then it tries to break out.

It takes the enclave's own command line and its confinement, in the enclave's order, and then serves
commands where the enclave would serve frames: one JSON line in, one out. ``probe.json`` beside it
names the defences to leave out, so that tests can show that each attempt succeeds without them.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib
import json
import os
import socket
import sys
import threading
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SETTINGS = json.loads((ROOT / "app/probe.json").read_text())
LIBRARY = [path for path in sys.path if path.startswith(f"{sys.base_prefix.rstrip('/')}/")]
sys.path[:] = [*LIBRARY, str(ROOT / "packages"), str(ROOT / "app")]
os.environ.clear()
os.environ["OPENBLAS_NUM_THREADS"] = "1"
if not SETTINGS.get("telemetry"):
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"

from sandbox_attempts import (  # type: ignore[import-not-found]  # noqa: E402 - staged beside this file
    ATTEMPTS,
    checked,
    libc,
    outcome,
    socket_inet,
    watch,
)


class Probe:
    """The enclave's start with the server replaced by attempts."""

    def __init__(self, skip: set[str]) -> None:
        self.skip = skip
        self.early = threading.Event()
        self.early_outcome = ""

    def start(self, arguments: argparse.Namespace) -> socket.socket:
        """Confine this process as casemate_enclave.__main__ does, less what is to be skipped."""
        from casemate_enclave import hardening, sandbox  # noqa: PLC0415 - not where tests run

        if "harden" in self.skip:
            checked(libc().prctl(4, 1, 0, 0, 0))  # dumpable, whatever the launcher did about it
        else:
            hardening.harden_process()
        self.places = {  # opened while there is a way to them
            name: os.open(f"/proc/self/{place}", os.O_RDONLY | os.O_DIRECTORY)
            for name, place in {"threads": "task", "descriptors": "fd"}.items()
        }
        run = Path(arguments.listen.removeprefix("unix:")).parent
        if "files" not in self.skip:
            sandbox.confine_files(sandbox.tree_paths(str(ROOT)), [str(run)])
        before = self.possessions()
        if "watch" in SETTINGS:
            watch()
        self.load_runtime()
        self.acquired = {name: self.possessions()[name] - had for name, had in before.items()}
        for place in self.places.values():
            os.close(place)
        if "watch" in SETTINGS:
            os._exit(0)  # what comes now makes a thread and a socket
        self.thread = threading.Thread(target=self.started_early, daemon=True)
        self.thread.start()
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        with contextlib.suppress(FileNotFoundError):
            (run / "enclave.sock").unlink()
        listener.bind(str(run / "enclave.sock"))
        listener.listen()
        if "tsync" in self.skip:
            vars(sandbox.seccomp)["_FLAG_TSYNC"] = 0
        if "calls" not in self.skip:
            sandbox.confine_calls(arguments.form)
        return listener

    def possessions(self) -> dict[str, int]:
        """What onnxruntime's telemetry would add to: threads, descriptors."""
        return {name: len(os.listdir(place)) for name, place in self.places.items()}  # noqa: PTH208

    def load_runtime(self) -> None:
        self.onnxruntime = importlib.import_module("onnxruntime")
        self.numpy = importlib.import_module("numpy")
        self.model = (ROOT / "app/probe.onnx").read_bytes()
        self.session = self.new_session(1)
        self.rows = self.numpy.random.default_rng(7).random((64, 30), dtype="float32")
        self.before = self.run(self.session)

    def new_session(self, threads: int) -> Any:  # noqa: ANN401 - onnxruntime has no types
        options = self.onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        return self.onnxruntime.InferenceSession(
            self.model, options, providers=["CPUExecutionProvider"]
        )

    def run(self, session: Any) -> list[bytes]:  # noqa: ANN401 - as above
        name = session.get_inputs()[0].name
        return [value.tobytes() for value in session.run(None, {name: self.rows})]

    def started_early(self) -> None:
        self.early.wait()
        self.early_outcome = outcome(lambda: socket_inet({}))

    # Commands

    def attempts(self, given: dict[str, Any]) -> dict[str, str]:
        return {name: outcome(functools.partial(f, given)) for name, f in ATTEMPTS.items()}

    def threads(self, _: dict[str, Any]) -> dict[str, str]:
        self.early.set()
        self.thread.join()
        later: list[str] = []
        thread = threading.Thread(target=lambda: later.append(outcome(lambda: socket_inet({}))))
        thread.start()
        thread.join()
        return {"early": self.early_outcome, "late": later[0]}

    def inference(self, _: dict[str, Any]) -> dict[str, Any]:
        """Run the first model, a second one with its own thread, and both from many threads."""
        second = self.second = self.new_session(2)  # kept, with its thread
        results = [self.run(self.session), self.run(second)]
        workers = [
            threading.Thread(target=lambda s=s: results.append(self.run(s)))
            for s in (self.session, second) * 8
        ]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        return {"runs": len(results), "identical": all(r == self.before for r in results)}

    def facts(self, _: dict[str, Any]) -> dict[str, Any]:
        return {
            "environment": dict(os.environ),
            "locked": self.lock(),
            "acquired": self.acquired,
        }

    def lock(self) -> bool:
        from casemate_enclave.sandbox import lock_memory  # noqa: PLC0415 - as above

        self.key = bytearray(4096)
        return lock_memory(self.key)

    def serve(self, listener: socket.socket) -> None:
        commands = (self.attempts, self.threads, self.inference, self.facts)
        table = {command.__name__: command for command in commands}
        while True:
            channel, _ = listener.accept()
            with channel, channel.makefile("rb") as reader:
                request = json.loads(reader.readline())
                answer = table[request.pop("do")](request)
                channel.sendall(json.dumps(answer).encode() + b"\n")


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("--listen", "--egress", "--nsm", "--form"):
        parser.add_argument(name)
    probe = Probe(set(SETTINGS["skip"]))
    probe.serve(probe.start(parser.parse_args()))


main()
