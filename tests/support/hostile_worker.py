"""Workers that an attacker runs: forked and confined by the production spawner, then hostile.

What one does is the name of the model that it is given: a function of this module.
"""

from __future__ import annotations

import array
import contextlib
import os
import socket
import threading
import time
from typing import TYPE_CHECKING, NoReturn

from casemate import cbor, limits
from casemate.sealed_model import ModelHeader
from casemate_enclave.workers import packets
from casemate_enclave.workers.tensors import aligned

if TYPE_CHECKING:
    from collections.abc import Iterator

# The spawner as the enclave starts it, with this module for its workers.
SPAWNER = """
import socket, sys, types
from casemate_enclave.hardening import harden_process
from casemate_enclave.workers import spawner
from tests.support import hostile_worker

harden_process()
worker = types.ModuleType("casemate_enclave.workers.worker")
worker.serve_model = hostile_worker.serve
sys.modules[worker.__name__] = worker
spawner.serve(socket.socket(fileno=int(sys.argv[1])), 0)
"""
_MANY = 1000


def serve(control: socket.socket) -> NoReturn:
    """Say that the model is loaded, and do what its name says."""
    memory = packets.packet_memory()
    size, _ = packets.receive(control, memory)
    header = ModelHeader.parse(cbor.decode(bytes(memory[packets.COMMAND.size : size]))[0])
    control.send(packets.LOADED.pack(1, 0, 0))
    with contextlib.suppress(OSError):
        globals()[header.name](control)
    os._exit(0)


def _lines(control: socket.socket) -> Iterator[socket.socket]:
    """Yield each line as it is opened; everything else on ``control`` is not heard."""
    memory = packets.packet_memory()
    while True:
        size, descriptor = packets.receive(control, memory)
        if not size:
            return
        if descriptor is not None:
            yield socket.socket(fileno=descriptor)


def _linger() -> None:
    while True:
        time.sleep(1)


def _echo(line: socket.socket, hurried_s: float = 0.0) -> None:
    """Answer every run honestly, with its input as its output; a hurried one a little later."""
    memory = packets.packet_memory()
    while size := line.recv_into(memory):
        _, length, deadline, number, _, _ = packets.QUESTION.unpack_from(memory)
        if deadline - time.monotonic() < hurried_s:
            time.sleep(0.3)
        begin = packets.QUESTION.size
        description = bytes(memory[begin : begin + length]).replace(b"ax", b"ay")
        head = packets.ANSWER.pack(packets.DONE_INLINE, length, number, 64, 1)
        gap = bytes(aligned(len(head) + length) - len(head) - length)
        line.send(head + description + gap + bytes(memory[aligned(begin + length) : size]))


def _serve_in_threads(control: socket.socket) -> None:
    for line in _lines(control):
        threading.Thread(target=_echo, args=(line,), daemon=True).start()


# What they do


def echoes(control: socket.socket) -> None:
    """Nothing but its work."""
    _serve_in_threads(control)


def never_answers(control: socket.socket) -> None:
    """Take questions and keep them."""
    kept = list(_lines(control))
    _linger()
    del kept


def takes_no_commands(control: socket.socket) -> None:
    """Work on the first line, slowly in the end, and never read what else the enclave says."""
    _echo(next(_lines(control)), hurried_s=5)
    _linger()


def answers_before_it_reads(control: socket.socket) -> None:
    """Say the same a thousand times over, whatever the questions are, and read none."""
    for line in _lines(control):
        for number in range(_MANY):
            line.send(packets.ANSWER.pack(packets.FAILED, 0, number, 0, 1))


def answers_ahead(control: socket.socket) -> None:
    """Read one question, and answer those to come."""
    for line in _lines(control):
        memory = packets.packet_memory()
        line.recv_into(memory)
        number = packets.QUESTION.unpack_from(memory)[3]
        for answered in range(number, number + 2 * _MANY):
            line.send(packets.ANSWER.pack(packets.FAILED, 0, answered, 0, 1))


def asks_for_all_memory(control: socket.socket) -> None:
    """Ask for room, again and again, on every line."""
    for line in _lines(control):
        memory = packets.packet_memory()
        while line.recv_into(memory):
            number = packets.QUESTION.unpack_from(memory)[3]
            line.send(packets.ANSWER.pack(packets.NEEDS_ROOM, 0, number, limits.MIB, 0))


def hides_its_end_of_a_line(control: socket.socket) -> None:
    """Put the line into a message that nobody reads: its end then outlives this process."""
    for line in _lines(control):
        for channel in (control, line):
            rights = array.array("i", [line.fileno(), control.fileno()])
            channel.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])


def floods_descriptors(control: socket.socket) -> None:
    """Have as many descriptors on their way as the kernel lets this user have."""
    rights = array.array("i", [control.fileno()] * 250)
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)]
    with contextlib.suppress(OSError):
        for _ in range(_MANY):
            control.sendmsg([b"x"], ancillary, socket.MSG_DONTWAIT)
    _serve_in_threads(control)


def hangs_up_on_runs(control: socket.socket) -> None:
    """Close every line that a question comes on, and live."""
    for line in _lines(control):
        line.recv(1)
        line.close()


def outlives_its_dismissal(control: socket.socket) -> None:
    """Hear of the end of its control, and stay."""
    for line in _lines(control):
        threading.Thread(target=_echo, args=(line,), daemon=True).start()
    _linger()


def sends_more_than_fits(control: socket.socket) -> None:
    """Answer in packets larger than any that the enclave reads."""
    for line in _lines(control):
        memory = packets.packet_memory()
        line.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        while line.recv_into(memory):
            number = packets.QUESTION.unpack_from(memory)[3]
            head = packets.ANSWER.pack(packets.DONE_INLINE, (1 << 32) - 1, number, 1 << 63, 1)
            line.send(head + bytes(limits.WORKER_MESSAGE_MAX + 4096))
