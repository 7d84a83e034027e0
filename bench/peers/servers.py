"""The servers under test: each starts, says where it listens, and stops."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from bench.peers.models import MODELS, SERVING
from casemate.attestation import AllowedModel, TrustPolicy
from casemate.client.kms import generate_data_key
from casemate.kms_context import model_context
from casemate.sealed_model import seal_model
from casemate_devkit.enclave_process import measure
from casemate_devkit.local import LocalDeployment
from casemate_devkit.stage import stage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager

ROOT: Final = Path(__file__).resolve().parents[2]
TREE: Final = ROOT / ".stage/tree"
VENVS: Final = ROOT / ".bench"
_START_S: Final = 120.0
_STOP_S: Final = 30.0
_PORT_MAX: Final = 65_534
_TRITON_STARTS: Final = 3  # now and then one of its models and its front miss each other


UNARY: Final = {"unary": ""}


class Running:
    """A server that serves; ``roots`` are the processes whose time counts, with their children."""

    def __init__(
        self,
        target: str,
        roots: Sequence[int],
        driver: Sequence[str],
        modes: Mapping[str, str] = UNARY,
    ) -> None:
        """``modes``: what the driver calls unary calls, by threads and by a loop, and streams."""
        self.target = target
        self.modes = modes
        self.roots = tuple(roots)
        self._driver = tuple(driver)

    def command(
        self, mode: str, model: str, in_flight: int, seconds: float, warm_up: float
    ) -> list[str]:
        """Return the command line of the load generator that suits this server."""
        values = {"target": self.target, "model": model, "in_flight": str(in_flight)}
        values["kind"] = self.modes[mode]
        values |= {"seconds": str(seconds), "warm_up": str(warm_up)}
        return [word.format(**values) for word in self._driver]


_OURS: Final = (
    *(sys.executable, "-m", "bench.peers.drive", "{kind}", "{target}", "{model}"),
    *("--in-flight", "{in_flight}", "--seconds", "{seconds}", "--warm-up", "{warm_up}"),
)


def _oip(folder: Path) -> list[str]:
    python, script = VENVS / "client/bin/python", ROOT / "bench/peers/foreign/drive_oip.py"
    numbers = ("{in_flight}", "{seconds}", "{warm_up}")
    return [str(python), str(script), "{target}", str(folder / "models.json"), "{model}", *numbers]


class World(LocalDeployment):
    """The demonstration's deployment with the bench's models in place of its own."""

    def trust_policy(self, **changes: Any) -> TrustPolicy:  # noqa: ANN401 - as its base
        """As its base, for the bench's models."""
        key = self.vendor.public_key
        models = tuple(AllowedModel(name, key, None) for name in sorted(MODELS))
        return super().trust_policy(**{"models": models, **changes})

    def seal(self, name: str, folder: Path) -> Path:
        """Seal one of the bench's models under a key of its own; callers: the clinic."""
        arn = self._create_key(
            self.vendor, "sealer", "model", f"{self.vendor.public_key.hex()}/{name}"
        )
        kms = self.aws.kms(self.vendor.principals["sealer"])
        data_key = generate_data_key(kms, arn, model_context(self.vendor.public_key, name))
        output = self.vendor.directory / f"{name}.sealed"
        with output.open("wb") as stream:
            seal_model(
                stream,
                files={f"{name}.onnx": folder / f"{name}.onnx"},
                data_key=data_key.key,
                wrapped_key=data_key.ciphertext_blob,
                kms_key=arn,
                publisher=self.vendor.signing_key,
                name=name,
                version=1,
                inputs=MODELS[name].input_specs,
                outputs=MODELS[name].output_specs,
                answer_bucket=1024,
                callers=(self.clinic.public_key,),
                serving=SERVING,
            )
        return output


@contextlib.contextmanager
def sealed_world(folder: Path, *, framed: bool = True) -> Iterator[World]:
    """A deployment that serves the bench's models; ``framed``: over framed connections, too.

    Its enclave runs the sources as they are, on the Python that runs this: the tree may be an older
    one, or of another Python, which would be measured in its place.
    """
    stage(TREE)
    with tempfile.TemporaryDirectory(prefix="cm-") as base, World(Path(base), TREE) as world:
        world.start_kms()
        world.agree(measure(TREE, "process"))
        models = [world.seal(name, folder) for name in MODELS]
        world.start_enclave()
        world.start_host(models, tapped=False, framed=framed)
        with world.client() as client:
            _until(lambda: len(client.verify(timeout_s=5).log) == len(MODELS))
        yield world


@contextlib.contextmanager
def sealed(folder: Path, *, framed: bool = True) -> Iterator[Running]:
    """(a) Casemate: enclave in its walls, host, sealed models, verified and sealed requests."""
    with sealed_world(folder, framed=framed) as world:
        policy = world.write_trust_policy(world.base / "client.toml")
        more = ("--policy", str(policy), "--caller-key", str(world.clinic.directory / "key.pem"))
        roots = [service.pid for service in (world.enclave, world.host) if service is not None]
        yield Running(
            world.target,
            roots,
            (*_OURS, *more),
            {
                "unary": "sealed",
                "looped": "sealed-looped",
                "together": "sealed-together",
                "stream": "stream",
            },
        )


@contextlib.contextmanager
def plain(folder: Path) -> Iterator[Running]:
    """(b) The same runtime, batcher and gRPC front, without seal and without the enclave's hop."""
    command = [sys.executable, "-m", "bench.peers.plain_server", str(folder)]
    with _process(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        target = json.loads(_line(process))["target"]
        yield Running(target, [process.pid], _OURS, {"unary": "plain", "looped": "plain-looped"})


@contextlib.contextmanager
def plain_front(folder: Path, *words: str) -> Iterator[Running]:
    """(b) The same with the host's own front in place of bare handlers, and its client."""
    command = [sys.executable, "-m", "bench.peers.plain_front", str(folder), *words]
    with _process(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        target = json.loads(_line(process))["target"]
        modes = {"unary": "plain-front", "looped": "plain-front-looped"}
        yield Running(target, [process.pid], _OURS, modes)


@contextlib.contextmanager
def bare(folder: Path) -> Iterator[Running]:
    """What a seal and a relay cost whoever writes the code."""
    command = [sys.executable, "-m", "bench.peers.bare", str(folder)]
    with _process(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        target = json.loads(_line(process))["target"]
        yield Running(target, [process.pid], _OURS, {"unary": "bare"})


@contextlib.contextmanager
def triton(folder: Path) -> Iterator[Running]:
    """(c) Triton through PyTriton."""
    for left in reversed(range(_TRITON_STARTS)):
        port = _free_port()
        with _process(_foreign("triton", folder, port), stdout=subprocess.PIPE) as process:
            try:
                with _ended_after(_START_S, process):
                    while not _line(process).startswith(b'{"pid"'):
                        pass
            except ChildProcessError:
                if left:
                    continue
                raise
            yield Running(f"127.0.0.1:{port}", [process.pid], _oip(folder))
            return


@contextlib.contextmanager
def kserve(folder: Path) -> Iterator[Running]:
    """(d) KServe's Python server."""
    port = _free_port()
    command = _foreign("kserve", folder, port)
    with _process(command) as process:
        _until(lambda: _listens(port))
        yield Running(f"127.0.0.1:{port}", [process.pid], _oip(folder))


@contextlib.contextmanager
def mlserver(folder: Path) -> Iterator[Running]:
    """(d) MLServer, adaptive batching."""
    port = _free_port()
    with tempfile.TemporaryDirectory(prefix="cm-mlserver-") as base:
        settings = {
            "host": "127.0.0.1",
            "grpc_port": port,
            "http_port": port + 1,
            "metrics_endpoint": None,
            "debug": False,
            "parallel_workers": 0,
            "grpc_max_message_length": -1,
        }
        (Path(base) / "settings.json").write_text(json.dumps(settings))
        for name in MODELS:
            (Path(base) / name).mkdir()
            stated = {
                "name": name,
                "implementation": "mlserver_onnx.OnnxModel",
                "max_batch_size": 32,
                "max_batch_time": 0.001,
                "parameters": {"uri": str(folder)},
            }
            (Path(base) / name / "model-settings.json").write_text(json.dumps(stated))
        command = [str(VENVS / "mlserver/bin/mlserver"), "start", base]
        path = os.pathsep.join([str(VENVS / "mlserver/bin"), os.defpath])
        environment = {"PATH": path, "PYTHONPATH": str(ROOT / "bench/peers/foreign")}
        with _process(command, env=environment) as process:
            _until(lambda: _listens(port))
            time.sleep(1)  # it listens before its models are loaded
            yield Running(f"127.0.0.1:{port}", [process.pid], _oip(folder))


SERVERS: Final[dict[str, Callable[[Path], AbstractContextManager[Running]]]] = {
    "sealed": sealed,
    "sealed-grpc": partial(sealed, framed=False),
    "plain": plain,
    "plain-front": plain_front,
    "plain-framed": lambda folder: plain_front(folder, "frames"),
    "bare": bare,
    "triton": triton,
    "kserve": kserve,
    "mlserver": mlserver,
}
PACKAGES: Final = {"triton": "nvidia-pytriton", "kserve": "kserve", "mlserver": "mlserver"}


def not_installed(names: Sequence[str]) -> list[str]:
    """Name the environments that ``names`` need and that are not there."""
    foreign = [name for name in PACKAGES if name in names]
    needed = ["client", *foreign] if foreign else []
    return [name for name in needed if not (VENVS / name / ".installed").exists()]


def versions(names: Sequence[str]) -> dict[str, str]:
    """Version of each named server's package, of the onnxruntime it uses, and of its Python."""
    ask = (
        "import importlib.metadata as m, platform as p, sys; "
        "print(*(f'{n} {m.version(n)}' for n in sys.argv[1:]), 'python', p.python_version())"
    )
    found = {}
    for name, packages in {
        "casemate": ["casemate"],
        **{k: [v] for k, v in PACKAGES.items() if k in names},
    }.items():
        python = sys.executable if name == "casemate" else _python(name)
        command = [python, "-c", ask, *packages, "onnxruntime"]
        found[name] = subprocess.run(
            command, capture_output=True, text=True, check=True
        ).stdout.strip()
    return found


def _foreign(name: str, folder: Path, port: int) -> list[str]:
    script = ROOT / f"bench/peers/foreign/serve_{name}.py"
    return [_python(name), str(script), str(folder), str(port)]


def _line(process: subprocess.Popen[bytes]) -> bytes:
    if process.stdout is None:
        raise ValueError("its output is not read")
    line: bytes = process.stdout.readline()
    if not line:
        raise ChildProcessError(f"{process.args!r} ended before it served: see {VENVS}")
    return line


def _python(name: str) -> str:
    return str(VENVS / name / "bin/python")


@contextlib.contextmanager
def _process(command: Sequence[str], **options: Any) -> Iterator[subprocess.Popen[bytes]]:  # noqa: ANN401
    """Run a server in a session of its own; its log is kept for whoever looks into a failure."""
    VENVS.mkdir(exist_ok=True)
    with (VENVS / f"{Path(command[-2]).stem}.log").open("ab") as log:
        process = subprocess.Popen(
            command,
            **{"stdout": log, "stderr": log, "cwd": ROOT, **options},
            start_new_session=True,
        )
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@contextlib.contextmanager
def _ended_after(seconds: float, process: subprocess.Popen[bytes]) -> Iterator[None]:
    """End ``process`` and its children if what is done meanwhile takes longer."""
    timer = threading.Timer(seconds, os.killpg, (process.pid, signal.SIGKILL))
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _free_port() -> int:
    """A port that is free now, with another above it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    return port if port < _PORT_MAX else _free_port()


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


def _until(holds: Any) -> None:  # noqa: ANN401 - a question
    deadline = time.monotonic() + _START_S
    while True:
        with contextlib.suppress(Exception):
            if holds():
                return
        if time.monotonic() > deadline:
            raise TimeoutError("the server does not serve")
        time.sleep(0.2)
