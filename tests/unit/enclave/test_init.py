"""enclave/init.py: the order of its steps, and what it says when one fails (SPEC 4.5)."""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Self

import pytest

from casemate.attestation.cmdline import PARENT_CID, image_cmdline
from casemate_devkit.supervision import read_event

if TYPE_CHECKING:
    from types import ModuleType

INIT = Path(__file__).parents[3] / "enclave" / "init.py"


@pytest.fixture
def init() -> ModuleType:
    """The module, not run."""
    spec = importlib.util.spec_from_file_location("enclave_init", INIT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def done(init: ModuleType, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What init did, in order; nothing reaches the kernel."""
    steps: list[Any] = []
    monkeypatch.setattr(init, "mount", lambda kind, target, flags: steps.append((target, flags)))
    monkeypatch.setattr(init, "load_modules", lambda: steps.append("drivers"))
    monkeypatch.setattr(init, "await_device", lambda: steps.append("device"))
    monkeypatch.setattr(init, "beat", lambda: steps.append("beat"))
    return steps


def test_the_order_and_that_everything_ends_read_only(init: ModuleType, done: list[Any]) -> None:
    init.prepare(list(image_cmdline("vm")[7:]))
    names = [step if isinstance(step, str) else step[0] for step in done]
    assert names == ["/proc", "/sys", "/dev", "drivers", "device", "/dev", "/"]
    read_only = 1
    for target, flags in done[-2:]:
        assert flags & read_only, target
    sysfs = dict(step for step in done if not isinstance(step, str))["/sys"]
    assert sysfs & read_only


def test_a_nitro_enclave_tells_its_parent_once_all_is_ready(
    init: ModuleType, done: list[Any]
) -> None:
    init.prepare(list(image_cmdline("nitro-enclave")[7:]))
    assert done[-1] == "beat"
    assert (PARENT_CID["nitro-enclave"], 9000) == init._HEARTBEAT_AT
    assert init._HEARTBEAT == b"\xb7"


def test_it_becomes_boot_with_the_same_arguments_and_no_environment(
    init: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(os, "execve", lambda *arguments: seen.append(arguments))
    monkeypatch.setattr(sys, "executable", "/usr/bin/python3")
    line = image_cmdline("vm")
    init.become(list(line[7:]))
    assert line[6] == "/app/init.py"
    assert seen == [("/usr/bin/python3", image_cmdline("vm", "boot"), {})]


def test_a_failure_is_one_event_and_the_end(
    init: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(init, "_libc", Broken())
    monkeypatch.setattr(sys, "argv", ["init.py", "--form", "vm"])
    assert init.main() == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert read_event(said.err.encode()) == {"event": "FAILED", "count": 1}
    assert json.loads(said.err)["count"] == 1


class Broken:
    """A C library whose calls are all refused."""

    @staticmethod
    def mount(*_: object) -> int:
        import ctypes  # noqa: PLC0415

        ctypes.set_errno(1)
        return -1


def test_drivers_are_loaded_in_the_order_of_their_names(
    init: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    loaded: list[str] = []

    class Library:
        @staticmethod
        def syscall(number: object, driver: int, options: bytes, flags: int) -> int:
            loaded.append(Path(f"/proc/self/fd/{driver}").readlink().name)
            assert (options, flags) == (b"", 0)
            return 0

    for name in ("01-nsm.ko", "00-vsock.ko", "02-last.ko"):
        (tmp_path / name).touch()
    monkeypatch.setattr(init, "_libc", Library())
    init.load_modules(str(tmp_path))
    assert loaded == ["00-vsock.ko", "01-nsm.ko", "02-last.ko"]
    init.load_modules(str(tmp_path / "none"))


def test_a_machine_without_a_module_is_given_up(init: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        init.await_device(str(tmp_path / "nsm"), patience_s=0.1)
    (tmp_path / "nsm").touch()
    init.await_device(str(tmp_path / "nsm"), patience_s=0.1)


@pytest.mark.parametrize("answer", [b"\xb7", b"\xb8", b""])
def test_the_heartbeat_wants_its_own_byte_back(
    init: ModuleType, monkeypatch: pytest.MonkeyPatch, answer: bytes
) -> None:
    calls: list[object] = []

    class Parent:
        def __init__(self, *_: object) -> None:
            calls.clear()

        def __enter__(self) -> Self:
            return self

        def __exit__(self, *_: object) -> None:
            calls.append("closed")

        def settimeout(self, seconds: float) -> None:
            assert 0 < seconds <= 30

        def connect(self, address: tuple[int, int]) -> None:
            calls.append(address)

        def sendall(self, data: bytes) -> None:
            calls.append(data)

        def recv(self, count: int) -> bytes:
            assert count == 1
            return answer

    # In its own name space alone: other threads of this process make sockets, too.
    vsock = {"AF_VSOCK": socket.AF_VSOCK, "SOCK_STREAM": socket.SOCK_STREAM}
    monkeypatch.setattr(init, "socket", SimpleNamespace(socket=Parent, **vsock))
    monkeypatch.setattr(init, "time", SimpleNamespace(sleep=lambda _: None))
    if answer == b"\xb7":
        init.beat(1)
        assert calls == [(3, 9000), b"\xb7", "closed"]
        return
    with pytest.raises(ConnectionRefusedError):
        init.beat(2)
