"""The module of a container: one enclave at a time, a fresh bank for each, kept while it runs."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from casemate import cbor
from casemate.attestation import Measurement
from casemate_devkit.compose.bank import Boot
from casemate_devkit.compose.nsm import ContainerModule
from casemate_devkit.compose.peers import Peer
from casemate_devkit.nsm import SimulatedNsm, boot_registers
from casemate_devkit.pki import NitroPki

if TYPE_CHECKING:
    from collections.abc import Iterator

MEASURED = Measurement(b"\1" * 48, b"\2" * 48, b"\3" * 48)


class Container(Peer):
    """A process that passes for the first of its container."""

    def is_first(self) -> bool:
        return True


@pytest.fixture
def running() -> Iterator[Container]:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield Container(process.pid, started(process.pid))
        process.kill()


def started(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])


def gone() -> Container:
    process = subprocess.Popen([sys.executable, "-c", ""])
    pid, start = process.pid, started(process.pid)
    process.wait()
    return Container(pid, start)


def module(folder: Path) -> ContainerModule:
    return ContainerModule(NitroPki.create(folder / "pki"), MEASURED, folder / "bank.json")


def call(nsm: SimulatedNsm, request: object) -> object:
    return cbor.decode_nsm(nsm.handle(cbor.encode(request)))


def test_a_process_is_known_by_pid_and_start() -> None:
    first, second = socket.socketpair()
    with first, second:
        peer = Peer.of(first)
    assert peer == Peer(os.getpid(), started(os.getpid()))
    assert peer.runs()
    assert not peer.is_first()
    assert not Peer(peer.pid, peer.started + 1).runs()
    assert not gone().runs()


def test_what_is_not_the_first_process_of_a_container_gets_no_bank(tmp_path: Path) -> None:
    with pytest.raises(EOFError):
        module(tmp_path).admit(Peer(os.getpid(), started(os.getpid())))


def test_each_enclave_gets_a_fresh_bank_and_only_after_the_one_before_ended(
    tmp_path: Path, running: Container
) -> None:
    served = module(tmp_path)
    first = served.admit(gone())
    call(first.nsm, {"ExtendPCR": {"index": 16, "data": b"x"}})
    second = served.admit(running)
    assert second.nsm.module_id != first.nsm.module_id
    assert second.nsm.registers().values[16] == bytes(48)
    assert second.nsm.registers().values[:3] == (MEASURED.pcr0, MEASURED.pcr1, MEASURED.pcr2)
    assert served.admit(running) is second
    with pytest.raises(EOFError):
        served.admit(Container(os.getpid(), started(os.getpid())))


def test_the_bank_of_a_running_enclave_outlives_the_module(
    tmp_path: Path, running: Container
) -> None:
    before = module(tmp_path).admit(running)
    call(before.nsm, {"ExtendPCR": {"index": 16, "data": b"x"}})
    call(before.nsm, {"LockPCR": {"index": 16}})
    before.save(tmp_path / "bank.json")
    after = module(tmp_path).admit(Peer(running.pid, running.started))
    assert after.nsm.registers() == before.nsm.registers()
    assert after.nsm.module_id == before.nsm.module_id
    refused = call(after.nsm, {"ExtendPCR": {"index": 16, "data": b"y"}})
    assert refused == {"Error": "ReadOnlyIndex"}


def test_the_bank_of_an_ended_enclave_is_not_taken_up(tmp_path: Path) -> None:
    pki = NitroPki.create(tmp_path / "pki")
    registers = boot_registers(MEASURED, pki.instance_id)
    Boot(gone(), SimulatedNsm(pki, registers)).save(tmp_path / "bank.json")
    assert Boot.load(tmp_path / "bank.json", pki) is None
    (tmp_path / "bank.json").write_text("{}")
    assert Boot.load(tmp_path / "bank.json", pki) is None


def test_over_a_socket_a_neighbour_is_cut_off_without_an_answer(tmp_path: Path) -> None:
    served = module(tmp_path)
    path = str(tmp_path / "nsm.sock")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        thread = threading.Thread(target=served.serve, args=(listener,))
        thread.start()
        with socket.socket(socket.AF_UNIX) as channel:
            channel.connect(path)
            request = cbor.encode("GetRandom")
            channel.sendall(struct.pack(">I", len(request)) + request)
            assert channel.recv(1) == b""
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()
