#!/usr/bin/python3
"""Stands in for ``nitro-cli``: run-enclave, describe-enclaves, terminate-enclave.

As AWS's: run-enclave returns once the enclave runs and leaves a process behind that holds it (the
enclave ends with that process), listens in /run/nitro_enclaves, and ends when the enclave ends.
What stands for the Nitro hypervisor behind /dev/nitro_enclaves is a socket on which the test starts
simulated enclaves. Runs on the machine under test, so it imports nothing but the standard library.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import select
import signal
import socket
import sys
from pathlib import Path

RUN = Path("/run/nitro_enclaves")
POOL = Path("/run/nitro_enclaves_pool.json")  # what the allocator set apart
HYPERVISOR = "/run/hypervisor/hypervisor.sock"
MIB = 1 << 20


def main() -> int:
    parser = argparse.ArgumentParser(prog="nitro-cli")
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run-enclave")
    run.add_argument("--enclave-name", required=True)
    run.add_argument("--enclave-cid", type=int, required=True)
    run.add_argument("--eif-path", type=Path, required=True)
    run.add_argument("--cpu-count", type=int, required=True)
    run.add_argument("--memory", type=int, required=True)
    run.add_argument("--debug-mode", action="store_true")
    commands.add_parser("describe-enclaves")
    end = commands.add_parser("terminate-enclave")
    end.add_argument("--enclave-name", required=True)
    options = parser.parse_args()
    return {"run-enclave": start, "describe-enclaves": describe, "terminate-enclave": terminate}[
        options.command
    ](options)


def start(options: argparse.Namespace) -> int:
    image = options.eif_path.read_bytes()
    try:
        pool = json.loads(POOL.read_text())
    except FileNotFoundError:
        return fail("E39", "no processors are set apart: nitro-enclaves-allocator")
    if options.cpu_count > pool["cpu_count"] or options.memory > pool["memory_mib"]:
        return fail("E22", "more than the allocator set apart")
    if options.memory * MIB < 4 * len(image):
        return fail("E26", "an enclave has at least four times its image as memory")
    reader, writer = os.pipe()
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.close(reader)
            hold(options, image, writer)
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as answer:
        said = answer.read()
    if not said:
        return fail("E36", "the enclave did not start")
    print(said)
    return 0


def hold(options: argparse.Namespace, image: bytes, writer: int) -> None:
    """Be the enclave's process: the enclave lives as long as this connection."""
    facts = {
        "EnclaveName": options.enclave_name,
        "EnclaveID": f"i-00000000000000000-enc{os.getpid():016x}",
        "ProcessID": os.getpid(),
        "EnclaveCID": options.enclave_cid,
        "NumberOfCPUs": options.cpu_count,
        "CPUIDs": list(range(1, options.cpu_count + 1)),
        "MemoryMiB": options.memory,
    }
    with socket.socket(socket.AF_UNIX) as hypervisor, socket.socket(socket.AF_UNIX) as listener:
        hypervisor.connect(HYPERVISOR)
        wanted = {"size": len(image), "debug": options.debug_mode}
        hypervisor.sendall(json.dumps(wanted).encode() + b"\n" + image)
        if hypervisor.recv(1) != b"+":
            os._exit(1)
        at = RUN / f"{facts['EnclaveID']}.sock"
        listener.bind(str(at))
        listener.listen()
        signal.signal(signal.SIGTERM, lambda *_: leave(at))
        os.write(writer, json.dumps(facts, indent=2).encode())
        for descriptor in (writer, 0, 1, 2):
            os.close(descriptor)
        serve(listener, hypervisor, facts)
    leave(at)


def serve(listener: socket.socket, hypervisor: socket.socket, facts: dict[str, object]) -> None:
    more = {"State": "RUNNING", "Flags": "NONE"}
    while True:
        ready, _, _ = select.select([listener, hypervisor], [], [])
        if hypervisor in ready:  # the enclave has ended
            return
        channel, _ = listener.accept()
        with channel:
            command = channel.recv(64)
            channel.sendall(json.dumps({**facts, **more}).encode())
            if command == b"terminate":
                return


def leave(at: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        at.unlink()
    os._exit(0)


def ask(at: Path, command: bytes) -> dict[str, object] | None:
    try:
        with socket.socket(socket.AF_UNIX) as channel:
            channel.connect(str(at))
            channel.sendall(command)
            facts: dict[str, object] = json.loads(channel.makefile().read())
            return facts
    except (OSError, ValueError):
        return None


def describe(_: argparse.Namespace) -> int:
    answers = [ask(at, b"describe") for at in sorted(RUN.glob("*.sock"))]
    print(json.dumps([answer for answer in answers if answer], indent=2))
    return 0


def terminate(options: argparse.Namespace) -> int:
    for at in sorted(RUN.glob("*.sock")):
        facts = ask(at, b"describe")
        if facts and facts["EnclaveName"] == options.enclave_name:
            ask(at, b"terminate")
            told = {name: facts[name] for name in ("EnclaveName", "EnclaveID")}
            print(json.dumps({**told, "Terminated": True}, indent=2))
            return 0
    return fail("E39", f"no enclave is named {options.enclave_name}")


def fail(code: str, detail: str) -> int:
    print(f"[ {code} ] {detail}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
