"""A parent instance as docs/guides/nitro.md sets it up, serving; started once."""

from __future__ import annotations

import json
import socket
import tempfile
import threading
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from casemate_devkit.eif.build import build
from casemate_devkit.errors import DevkitError
from casemate_devkit.forms import MachineForm
from casemate_devkit.parties import write_credentials
from casemate_devkit.tap import Tap
from tests.support.deployment import DATA, prepared
from tests.support.small_tree import PROFILE, make_parts
from tests.systemd.hypervisor import Hypervisor
from tests.systemd.machine import Instance, missing

if TYPE_CHECKING:
    from collections.abc import Iterator

    from casemate_devkit.local import LocalDeployment

# In place of vsock, which has no loopback here; the host's own sockets lie where it may write.
_DROP_IN = "[Service]\nReadWritePaths=/run/vsock\n"


class Gate(Tap):
    """A tap that holds back what passes while it is ``shut``."""

    def __init__(self, front: Path, back: Path) -> None:
        self.open = threading.Event()
        self.open.set()
        self.held = 0  # bytes of the largest piece that waits
        super().__init__(front, back)

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        super()._pump(_Held(source, self), sink)  # type: ignore[arg-type]


@dataclass
class _Held:
    """A socket whose bytes are handed out while the gate is open."""

    source: socket.socket
    gate: Gate

    def recv(self, size: int) -> bytes:
        piece = self.source.recv(size)
        if not self.gate.open.is_set():
            self.gate.held = max(self.gate.held, len(piece))
        self.gate.open.wait()
        return piece

    def shutdown(self, how: int) -> None:
        self.source.shutdown(how)


@dataclass
class Parent:
    """The instance, what is under it, and the parties to whom it serves."""

    world: LocalDeployment
    hypervisor: Hypervisor
    instance: Instance
    gate: Gate
    resources: ExitStack = field(default_factory=ExitStack)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _image(world: LocalDeployment, base: Path) -> bytes:
    """What nitro-cli is given: in form vm the very image, else one that stands for the tree."""
    if isinstance(world.form, MachineForm):
        return world.form.image(world.tree).read_bytes()
    (base / "parts").mkdir()
    build(make_parts(base / "parts"), PROFILE, base / "small.eif")
    return (base / "small.eif").read_bytes()


def _write_files(world: LocalDeployment, files: Path, sealed: Path, image: bytes) -> None:
    """What the operator brings to the instance (docs/guides/nitro.md, step 5)."""
    files.mkdir()
    (files / "casemate.eif").write_bytes(image)
    (files / sealed.name).write_bytes(sealed.read_bytes())
    (files / "configuration.cbor").write_bytes(world.configuration)
    world.write_trust_policy(files / "trust.toml")
    write_credentials(files / "role.json", world.operator.principals["host"])
    (files / "role.json").chmod(0o644)
    port = _free_port()
    text = world.host_config(
        Path("/run/vsock/relay.sock"), Path("/run/vsock/egress.sock"), [Path(sealed.name)]
    )
    text = text.replace('"127.0.0.1:0"', f'"127.0.0.1:{port}"', 1)
    text = text.replace('"credentials.json"', '"/var/lib/casemate/credentials.json"')
    (files / "host.toml").write_text(text)
    world.target = f"127.0.0.1:{port}"


@pytest.fixture(scope="session")
def parent(tree: Path) -> Iterator[Parent]:
    lacking = missing()
    assert not lacking, "; ".join(lacking)
    with tempfile.TemporaryDirectory(prefix="cm-") as folder, ExitStack() as resources:
        base = Path(folder)
        (base / "world").mkdir()
        world = resources.enter_context(prepared(base / "world", tree))
        image = _image(world, base)
        _write_files(world, base / "files", world.seal_model(DATA.onnx), image)
        for name in ("hypervisor", "vsock"):
            (base / "shared" / name).mkdir(parents=True)
        run, vsock = world.operator.directory / "run", base / "shared/vsock"
        run.mkdir(mode=0o700)
        gate = Gate(vsock / "relay.sock", run / "enclave.sock")
        resources.callback(gate.close)
        resources.enter_context(Tap(run / "egress.sock", vsock / "egress.sock"))
        hypervisor = Hypervisor(
            base / "shared/hypervisor/hypervisor.sock", image, lambda: world.launch(tree, run)
        )
        resources.enter_context(hypervisor)
        instance = resources.enter_context(Instance(base / "shared", base / "files"))
        drop_in = "/etc/systemd/system/casemate-host.service.d"
        instance.run("mkdir", drop_in)
        instance.run("sh", "-c", f"printf '%s' '{_DROP_IN}' > {drop_in}/vsock.conf")
        yield Parent(world, hypervisor, instance, gate)


@pytest.fixture(scope="session")
def serving(parent: Parent) -> Parent:
    """Everything enabled and started by the guide's own line."""
    parent.instance.enable()
    try:
        parent.world.wait_until_serving(parent.world.form.start_s)
    except DevkitError as error:
        journal = parent.instance.run(
            "journalctl", "--no-pager", "-n", "60", "-o", "short-monotonic"
        )
        journal += parent.instance.run("systemctl", "--no-pager", "--failed", "--all", check=False)
        raise AssertionError(f"{error}\n{parent.hypervisor.refused}\n{journal}") from error
    return parent


def role(parent: Parent) -> dict[str, str]:
    loaded: dict[str, str] = json.loads(
        parent.instance.run("cat", "/var/lib/casemate/credentials.json")
    )
    return loaded
