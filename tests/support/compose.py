"""The compose stack, as a person starts it; every call is the command that a person would type."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import tempfile
import time
import weakref
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
FILE = ROOT / "docker/compose.yaml"
CONFIGURATION = ROOT / "docker/host.toml"
PROJECT = "casemate-trial"
_HEALTHY_S = 300


class Stack:
    """One project, beside any that runs already; its ports are free ones."""

    def __init__(self, *more: Path) -> None:
        """Add ``more`` compose files to the first."""
        self._files = [item for path in (FILE, *more) for item in ("--file", str(path))]
        frames = _free_port()
        descriptor, configuration = tempfile.mkstemp(suffix=".toml")
        with open(descriptor, "w") as file:  # noqa: PTH123 - Path opens no descriptors
            file.write(CONFIGURATION.read_text().replace(":8444", f":{frames}"))
        Path(configuration).chmod(0o644)  # the container's user reads it
        weakref.finalize(self, os.unlink, configuration)
        self.environment = {
            **os.environ,
            "CASEMATE_PORT": _free_port(),
            "CASEMATE_FRAMES_PORT": frames,
            "CASEMATE_HOST_CONFIG": configuration,
            "CASEMATE_PROMETHEUS_PORT": _free_port(),
        }

    def changed(self, override: Path, services: dict[str, Any]) -> Stack:
        """Return the same project with ``override`` as a further file, which is written here."""
        override.write_text(json.dumps({"services": services}))
        stack = Stack(override)
        stack.environment = self.environment
        return stack

    def compose(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return _run(
            *("docker", "compose", "--project-name", PROJECT, *self._files, *arguments),
            environment=self.environment,
            check=check,
        )

    def up(self, *services: str) -> None:
        """Start all that serves and watches, or ``services``, and wait until it is healthy."""
        self.compose("--profile", "observe", "up", "--detach", "--wait", "--no-build", *services)

    def docker(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return _run("docker", *arguments, environment=self.environment, check=check)

    def container(self, service: str) -> str:
        return self.compose("ps", "--all", "--quiet", service).stdout.split()[0]

    def inspect(self, service: str) -> dict[str, Any]:
        found: list[dict[str, Any]] = json.loads(
            self.docker("inspect", self.container(service)).stdout
        )
        return found[0]

    def python(self, service: str, script: str, *options: str) -> subprocess.CompletedProcess[str]:
        """Run a script inside a service's container, as the operator can at any time."""
        interpreter = ("/usr/bin/python3", "-ISBc")
        return self.docker(
            "exec", *options, self.container(service), *interpreter, script, check=False
        )

    def client(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self.compose("run", "--rm", "--no-deps", "client", *arguments, check=False)

    def address(self) -> str:
        """Where the host is published on this machine."""
        return self.compose("port", "host", "8443").stdout.strip()

    def prometheus(self) -> str:
        """Where Prometheus is published."""
        return self.compose("--profile", "observe", "port", "prometheus", "9090").stdout.strip()

    def copy(self, service: str, path: str, target: Path) -> Path:
        """Copy out of a service's container, as ``docker cp`` does."""
        self.docker("cp", f"{self.container(service)}:{path}", str(target))
        return target / Path(path).name

    def crash(self, service: str) -> None:
        """End a service's process as the kernel would; what follows is its restart policy's."""
        pid = self.inspect(service)["State"]["Pid"]
        as_root = ("--rm", "--pid", "host", "--network", "none", "--user", "0")
        script = f"import os; os.kill({pid}, 9)"
        interpreter = ("--entrypoint", "/usr/bin/python3", "casemate-devkit", "-ISBc")
        self.docker("run", *as_root, *interpreter, script)

    def wait_healthy(self, service: str) -> None:
        deadline = time.monotonic() + _HEALTHY_S
        while self.inspect(service)["State"].get("Health", {}).get("Status") != "healthy":
            assert time.monotonic() < deadline, self.logs(service)
            time.sleep(0.2)

    def logs(self, service: str) -> str:
        done = self.compose("logs", "--no-color", "--no-log-prefix", service)
        return done.stdout + done.stderr

    def unpack(self, image: str, target: Path) -> Path:
        """Unpack the layers of an image, as they are and not as a container sees them."""
        with tempfile.TemporaryDirectory() as folder:
            self.docker("save", "--output", f"{folder}/image.tar", image)
            tar = ("tar", "--extract", "--same-permissions", "--file")
            _run(*tar, f"{folder}/image.tar", "-C", folder, environment=self.environment)
            manifest = json.loads(Path(folder, "manifest.json").read_text())
            target.mkdir()
            for layer in manifest[0]["Layers"]:
                _run(*tar, f"{folder}/{layer}", "-C", str(target), environment=self.environment)
        return target

    def image_files(self, image: str) -> list[str]:
        """Every path in an image, as a stranger would list it."""
        made = self.docker("create", image).stdout.strip()
        try:
            with tempfile.TemporaryFile() as archive:
                subprocess.run(
                    ["docker", "export", made], check=True, stdout=archive, env=self.environment
                )
                archive.seek(0)
                listing = subprocess.run(
                    ["tar", "-t"], check=True, stdin=archive, capture_output=True, text=True
                )
        finally:
            self.docker("rm", made)
        return [line.removeprefix("./") for line in listing.stdout.splitlines()]


def _free_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return str(free.getsockname()[1])


def _run(
    *command: str, environment: dict[str, str], check: bool = True
) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, env=environment, timeout=900
    )
    if check:
        assert done.returncode == 0, f"{' '.join(command)}:\n{done.stdout}{done.stderr}"
    return done
