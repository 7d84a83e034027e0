"""The order in which the enclave's process becomes what it is (SPEC 4.5, THREATS H10, H12)."""

from __future__ import annotations

import io
import os
import select
import signal
import socket
import threading
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from casemate.attestation.cmdline import image_cmdline
from casemate_enclave import __main__ as enclave
from casemate_enclave import assembly, clock, dispatch, nsm, server
from casemate_enclave.events import Event, Journal
from casemate_enclave.workers import spawning

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

STATED = 1_700_000_000_000  # milliseconds, as the device says
SERVER = server.Server
OWN_MACHINE = [
    *("workers", "files", "nsm", "randomness", "greeted", "assembly", f"clock {STATED}", "listen"),
    *("not root", "calls"),
]


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was done, in order; nothing of this process is changed."""
    steps: list[str] = []

    def step(said: str, result: object = None) -> Callable[..., Any]:
        def take(*_: object, **__: object) -> object:
            steps.append(said)
            return result

        return take

    made = SimpleNamespace(
        clock=SimpleNamespace(stated=STATED), enclave=None, maintain=lambda *_: None
    )
    monkeypatch.setattr(enclave, "confine_files", step("files", 7))
    monkeypatch.setattr(nsm, "open_nsm", step("nsm"))
    monkeypatch.setattr(nsm, "seed_kernel", step("randomness"))
    monkeypatch.setattr(assembly, "Assembly", step("assembly", made))
    monkeypatch.setattr(clock, "set_wall_clock", lambda ms: steps.append(f"clock {ms}"))
    monkeypatch.setattr(enclave, "listen", step("listen"))
    monkeypatch.setattr(enclave, "give_up_root", step("not root"))
    full = SimpleNamespace(enough_for=lambda _: True)
    greeted = SimpleNamespace(greeting=SimpleNamespace(confinement=full))
    monkeypatch.setattr(enclave, "fork_spawner", step("workers"))
    monkeypatch.setattr(spawning, "Spawner", step("greeted", greeted))
    monkeypatch.setattr(enclave, "confine_calls", step("calls"))
    monkeypatch.setattr(enclave, "Confinement", lambda *_: full)
    monkeypatch.setattr(dispatch, "Dispatcher", lambda *_: None)
    monkeypatch.setattr(signal, "signal", lambda *_: None)

    class Serving:
        def __init__(self, *arguments: object) -> None:
            steps.append(f"serves {arguments[3]}")

        def serve(self) -> None: ...

        def stop(self) -> None: ...

        def end(self) -> None: ...

        def finish(self) -> None: ...

    monkeypatch.setattr(server, "Server", Serving)
    return steps


@pytest.mark.parametrize(("form", "parent"), [("vm", 2), ("nitro-enclave", 3)])
def test_a_machine_of_its_own_is_confined_seeded_set_and_no_longer_root_before_it_serves(
    done: list[str], form: str, parent: int
) -> None:
    arguments = enclave.parse_arguments(image_cmdline(form)[7:])
    assert enclave.run(arguments, Journal())
    assert done == [*OWN_MACHINE, f"serves {parent}"]


def test_a_process_leaves_the_machines_clock_and_randomness_alone(done: list[str]) -> None:
    words = ("--listen", "unix:/r/e", "--egress", "unix:/r/g", "--nsm", "unix:/r/n")
    assert enclave.run(enclave.parse_arguments([*words, "--form", "process"]), Journal())
    assert done == [
        *("workers", "files", "nsm", "greeted", "assembly", "listen", "calls", "serves None"),
    ]


@pytest.mark.parametrize("whose", ["its own", "its workers"])
def test_too_little_confinement_serves_nobody(
    done: list[str], whose: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether it is the process itself that is confined too little, or what its workers come of."""
    lacking = SimpleNamespace(enough_for=lambda _: False)
    if whose == "its own":
        monkeypatch.setattr(enclave, "Confinement", lambda *_: lacking)
    else:
        greeted = SimpleNamespace(greeting=SimpleNamespace(confinement=lacking))
        monkeypatch.setattr(spawning, "Spawner", lambda *_: greeted)
    assert not enclave.run(enclave.parse_arguments(image_cmdline("vm")[7:]), Journal())
    assert not [step for step in done if step.startswith("serves")]


def test_told_to_end_while_it_takes_a_connection_it_ends(
    done: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What a handler raises there is lost: the lock that start() uses raises another error."""
    monkeypatch.setattr(server, "Server", SERVER)
    handlers: dict[int, Callable[[], object]] = {}
    monkeypatch.setattr(signal, "signal", handlers.__setitem__)
    listener = socket.create_server(str(tmp_path / "e"), family=socket.AF_UNIX)
    monkeypatch.setattr(enclave, "listen", lambda _: listener)
    restore = threading.Condition._acquire_restore  # type: ignore[attr-defined]
    told: list[int] = []

    def told_meanwhile(condition: threading.Condition, state: object) -> None:
        here = threading.current_thread() is threading.main_thread()
        if here and signal.SIGTERM in handlers and not told:
            told.append(signal.SIGTERM)
            handlers[signal.SIGTERM]()
        restore(condition, state)

    class Slow(threading.Thread):
        def _bootstrap(self) -> None:
            time.sleep(0.1)  # so that whoever starts it does wait
            super()._bootstrap()  # type: ignore[misc]

    monkeypatch.setattr(threading, "Thread", Slow)
    monkeypatch.setattr(threading.Condition, "_acquire_restore", told_meanwhile)
    sink = io.StringIO()
    words = ("--listen", "unix:/r/e", "--egress", "unix:/r/g", "--nsm", "unix:/r/n")
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(tmp_path / "e"))
        parsed = enclave.parse_arguments([*words, "--form", "process"])
        assert enclave.run(parsed, Journal(sink))
    assert told
    assert Event.CONNECTION_REFUSED not in sink.getvalue()
    exits: list[int] = []
    monkeypatch.setattr(os, "_exit", exits.append)
    handlers[signal.SIGTERM]()  # told again, while it waits for what is under way
    assert exits == [0]


# Who may connect: a channel of vsock knows the peer's context id, which nobody can choose but the
# hypervisor. There is no vsock on most machines: the channel's family is the one thing pretended.


class Channel:
    family = socket.AF_VSOCK

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - the channel's own
        return getattr(self._channel, name)

    def __enter__(self) -> socket.socket:
        return self._channel

    def __exit__(self, *_: object) -> None:
        self._channel.close()


def answer(peer: tuple[int, int], parent: int | None) -> tuple[bool, bytes]:
    """Whether a connection from ``peer`` is served, and what it was told if not."""
    near, far = socket.socketpair()
    served = threading.Event()
    listening = server.Server(near, None, Journal(), parent)  # type: ignore[arg-type]
    listening._serve = lambda channel: served.set()  # type: ignore[method-assign]
    with far:
        listening._admit(Channel(near), peer)  # type: ignore[arg-type]
        refused = select.poll()
        refused.register(far, select.POLLIN)
        while not served.wait(0.01):
            if refused.poll(0):
                return False, far.recv(1000)
        near.close()
        return True, b""


@pytest.mark.parametrize("parent", [2, 3])
def test_the_parent_is_served_whatever_its_port(parent: int) -> None:
    for port in (1, 1023, 5000, 0xFFFFFFFF):
        assert answer((parent, port), parent) == (True, b"")


@pytest.mark.parametrize("cid", [0, 1, 2, 4, 16, 17, 0xFFFFFFFF])
def test_nobody_else_is_served(cid: int) -> None:
    """Neither a neighbour, nor the enclave itself, nor the host below a parent."""
    served, told = answer((cid, 5000), 3)
    assert not served
    assert b"only the parent is served" in told


def test_without_a_parent_vsock_serves_nobody() -> None:
    assert not answer((3, 5000), None)[0]


def test_a_refused_connection_is_an_event_and_counted() -> None:
    sink = io.StringIO()
    journal = Journal(sink)
    near, far = socket.socketpair()
    with far:
        listening = server.Server(near, None, journal, 3)  # type: ignore[arg-type]
        listening._admit(Channel(near), (16, 1))  # type: ignore[arg-type]
    assert Event.CONNECTION_REFUSED in sink.getvalue()
    assert journal.counters()["connections_refused"] == 1
