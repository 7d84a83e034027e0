"""An allow-list of system calls, assembled for the kernel's filter and loaded for all threads."""

from __future__ import annotations

import ctypes
import errno
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from casemate_enclave.sandbox import syscalls

if TYPE_CHECKING:
    from collections.abc import Mapping

    from casemate_enclave.sandbox.syscalls import Machine

# linux/seccomp.h, linux/filter.h
_SET_MODE_FILTER: Final = 1
_FLAG_TSYNC: Final = 1
_RET_KILL_PROCESS: Final = 0x80000000
_RET_ERRNO: Final = 0x00050000
_RET_ALLOW: Final = 0x7FFF0000
_LOAD: Final = 0x20  # BPF_LD | BPF_W | BPF_ABS
_AND: Final = 0x54  # BPF_ALU | BPF_AND | BPF_K
_IF_EQUAL: Final = 0x15  # BPF_JMP | BPF_JEQ | BPF_K
_IF_AT_LEAST: Final = 0x35  # BPF_JMP | BPF_JGE | BPF_K
_RETURN: Final = 0x06  # BPF_RET | BPF_K
_INSTRUCTION: Final = struct.Struct("=HBBI")
_INSTRUCTIONS_MAX: Final = 4096  # BPF_MAXINSNS
_PROGRAM: Final = struct.Struct("=H6xQ")  # struct sock_fprog with its padding

# Offsets in struct seccomp_data
_NUMBER: Final = 0
_ARCHITECTURE: Final = 4
_ARGUMENTS: Final = 16
_X32_BIT: Final = 0x40000000

Instruction = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class Among:
    """True when argument ``index``, masked, is one of ``values``.

    Only the low 32 bits are read: of the arguments in question the kernel itself looks at no more,
    or (mmap, mprotect) the bit that matters is there.
    """

    index: int
    values: tuple[int, ...]
    mask: int = 0xFFFFFFFF


def assemble(
    rules: Mapping[str, tuple[Among, ...]], missing: tuple[str, ...], machine: Machine
) -> bytes:
    """The filter that lets a call through when all its tests hold, and refuses every other call.

    A refused call fails with EPERM and the process lives: libraries try calls that they can do
    without, and an attempt that gets nowhere need not take the service down. ``missing`` fail with
    ENOSYS, so that the C library uses what came before them. A call in the numbering of another
    processor ends the process: nothing here makes one.
    """
    program = _prologue(machine)
    for name in missing:
        program += _block(machine.numbers[name], [_give(_RET_ERRNO | errno.ENOSYS)])
    for name, tests in rules.items():
        if name in machine.numbers:  # the other processor's older calls
            program += _block(machine.numbers[name], _conjunction(tests))
    program.append(_give(_RET_ERRNO | errno.EPERM))
    if len(program) > _INSTRUCTIONS_MAX:
        raise ValueError("filter too long")
    return b"".join(_INSTRUCTION.pack(*instruction) for instruction in program)


def load(program: bytes) -> None:
    """Apply ``program`` to all threads of this process, for good; the kernel demands no_new_privs.

    Raises OSError, also when a thread has a filter that this one does not follow from.
    """
    code = ctypes.create_string_buffer(program, len(program))
    head = _PROGRAM.pack(len(program) // _INSTRUCTION.size, ctypes.addressof(code))
    pointer = ctypes.create_string_buffer(head, len(head))
    if syscalls.call("seccomp", _SET_MODE_FILTER, _FLAG_TSYNC, pointer) != 0:
        raise OSError(errno.ESRCH, "seccomp: a thread has another filter")


def _prologue(machine: Machine) -> list[Instruction]:
    program = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_IF_EQUAL, 1, 0, machine.audit),
        _give(_RET_KILL_PROCESS),
        (_LOAD, 0, 0, _NUMBER),
    ]
    if machine.has_x32:
        program += [(_IF_AT_LEAST, 0, 1, _X32_BIT), _give(_RET_KILL_PROCESS)]
    return program


def _block(number: int, body: list[Instruction]) -> list[Instruction]:
    """Run ``body`` for call ``number``; it ends in a verdict, so the number is loaded elsewhere."""
    return [(_IF_EQUAL, 0, len(body), number), *body]


def _conjunction(tests: tuple[Among, ...]) -> list[Instruction]:
    """Allow if every test holds, else refuse; built from the back, where the refusal stands."""
    body = [_give(_RET_ALLOW), _give(_RET_ERRNO | errno.EPERM)]
    for test in reversed(tests):
        body = _test(test, to_refusal=len(body) - 1) + body
    return body


def _test(test: Among, to_refusal: int) -> list[Instruction]:
    load = [(_LOAD, 0, 0, _ARGUMENTS + 8 * test.index), (_AND, 0, 0, test.mask)]
    last = len(test.values) - 1
    compare = [
        (_IF_EQUAL, last - place, to_refusal if place == last else 0, value)
        for place, value in enumerate(test.values)
    ]
    return load + compare


def _give(verdict: int) -> Instruction:
    return (_RETURN, 0, 0, verdict)
