"""kill -9 under load: each call has one end, and the service comes back by itself (THREATS H13)."""

from __future__ import annotations

import os
import signal
import tempfile
import threading
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from casemate.errors import Code
from casemate_devkit.processes import Service
from tests.support.attacker import eventually
from tests.support.deployment import DATA, prepared
from tests.support.framed_middle import offer_of
from tests.support.ports import lasting_port
from tests.support.traffic import Traffic

if TYPE_CHECKING:
    from collections.abc import Iterator

    from casemate_devkit.local import LocalDeployment

pytestmark = [pytest.mark.integration, pytest.mark.slow]

# After these a caller may seal its question anew: it got no answer, and knows it. REPLAYED is what
# the client hears when it sent identical bytes again and the first ones had arrived (SPEC 11.5).
RETRYABLE = {
    Code.REPLAYED,
    *(Code.UNAVAILABLE, Code.HOST_UNREACHABLE, Code.UNKNOWN_KEY, Code.UNKNOWN_INSTANCE),
    *(Code.STALE_SESSION, Code.NOT_CONFIGURED, Code.OVERLOADED, Code.UNKNOWN_MODEL),
}


@pytest.fixture(scope="module")
def world(tree: Path) -> Iterator[LocalDeployment]:
    with tempfile.TemporaryDirectory(prefix="cm-") as folder, prepared(Path(folder), tree) as ready:
        sealed = ready.seal_model(DATA.onnx)
        ready.start_enclave(None, "--restart")
        ready.start_host([sealed], tapped=False)
        ready.wait_until_serving()
        yield ready


def test_h13_every_call_ends_once_when_the_enclave_is_killed_under_load(
    world: LocalDeployment,
) -> None:
    launcher = world.enclave
    assert launcher is not None
    with world.client() as client:
        traffic = Traffic(client)
        assert eventually(partial(in_frames, offer_of(world.target).port))
        for _ in until_felt(traffic):
            assert eventually(partial(traffic.flows, 0))
            former = launcher.latest["pid"]
            killed = time.monotonic()
            os.kill(former, signal.SIGKILL)
            assert eventually(partial(replaced, launcher, former), world.form.start_s)
            assert eventually(partial(traffic.flows, killed + 1), 100)
        ends = traffic.end()
    assert ends[Code.OK] > 100
    assert ends.total() > ends[Code.OK]  # the kills were felt
    assert set(ends) <= RETRYABLE | {Code.OK}


def in_frames(port: int) -> bool:
    """Whether this process has a connection to a host's port for frames."""
    lines = Path("/proc/self/net/tcp").read_text().splitlines()[1:]
    fields = [line.split() for line in lines]
    return any(
        remote.endswith(f":{port:04X}") and state == "01" for _, _, remote, state, *_ in fields
    )


def until_felt(traffic: Traffic) -> Iterator[int]:
    """Twice, and on until some call was under way when its server was killed."""
    for count in range(20):
        if count >= 2 and any(end != Code.OK for _, end in traffic.ends):
            return
        yield count


def replaced(launcher: Service, former: int) -> bool:
    return bool(launcher.latest["pid"] != former)


class Keeper:
    """What an init system does: starts the host again, on the same port, whenever it ends."""

    def __init__(self, world: LocalDeployment) -> None:
        assert world.host is not None
        world.host.stop()
        folder = world.operator.directory
        config = folder / "host.toml"
        world.target = f"127.0.0.1:{lasting_port()}"
        text = config.read_text().replace('listen = "127.0.0.1:0"', f'listen = "{world.target}"')
        config.write_text(text)
        self._arguments = ("--config", str(config))
        self._log = folder / "host.log"
        self._stopping = threading.Event()
        self.host = self._start()
        self._thread = threading.Thread(target=self._keep)
        self._thread.start()

    def _start(self) -> Service:
        return Service("casemate_host", *self._arguments, log=self._log)

    def _keep(self) -> None:
        while not self._stopping.wait(0.1):
            if not self.host.running():
                self.host.stop()
                self.host = self._start()

    def end(self) -> None:
        self._stopping.set()
        self._thread.join()
        self.host.stop()


def test_h13_every_call_ends_once_when_the_host_is_killed_under_load(
    world: LocalDeployment,
) -> None:
    keeper = Keeper(world)
    try:
        world.wait_until_serving()
        with world.client() as client:
            traffic = Traffic(client)
            assert eventually(partial(in_frames, offer_of(world.target).port))
            for _ in until_felt(traffic):
                assert eventually(partial(traffic.flows, 0))
                killed = time.monotonic()
                os.kill(keeper.host.pid, signal.SIGKILL)
                assert eventually(partial(traffic.flows, killed + 1), 100)
            ends = traffic.end()
    finally:
        keeper.end()
    assert ends[Code.OK] > 100
    assert ends.total() > ends[Code.OK]
    assert set(ends) <= RETRYABLE | {Code.OK}
