"""Further replicas of a deployment: each an enclave and a host of its own, same configuration."""

from __future__ import annotations

import contextlib
import itertools
import time
from typing import TYPE_CHECKING, Self

from casemate.client import Client
from casemate.client.transport import HostConnection
from casemate.errors import CasemateError
from casemate_devkit.demo.attacks import wait_for_socket
from casemate_devkit.parties import write_credentials
from casemate_devkit.processes import Service

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from casemate.attestation import TrustPolicy
    from casemate_devkit.local import LocalDeployment

_number = itertools.count(1)


class Replica:
    """An enclave and its host; the enclave can be restarted while the host stays."""

    def __init__(
        self,
        world: LocalDeployment,
        models: Sequence[Path],
        *,
        policy: TrustPolicy | None = None,
        tree: Path | None = None,
        options: Sequence[str] = (),
    ) -> None:
        """Prepare a replica that loads the sealed ``models``, from ``tree`` or the world's own.

        ``options`` are the launcher's.
        """
        self._world = world
        self._policy = policy or world.trust_policy()
        self._tree = tree or world.tree
        self._exit = contextlib.ExitStack()
        self._directory = world.operator.directory / f"r{next(_number)}"
        self._directory.mkdir()
        self._run = self._directory / "run"
        self._models = models
        self._options = options
        self._pids: set[int] = set()
        self.config = self._directory / "host.toml"
        self.admin_socket = self._directory / "admin.sock"
        self.target = ""

    def __enter__(self) -> Self:
        directory = self._directory
        (directory / "configuration.cbor").write_bytes(self._world.configuration)
        write_credentials(directory / "credentials.json", self._world.operator.principals["host"])
        (directory / "trust.toml").write_text(self._policy.to_toml())
        config = self._world.host_config(
            self._run / "enclave.sock", self._run / "egress.sock", self._models
        )
        self.config.write_text(f'{config}\n[administration]\nsocket = "admin.sock"\n')
        self._start_enclave()
        host = self._exit.enter_context(
            Service(
                "casemate_host",
                *("--config", str(self.config)),
                log=directory / "host.log",
            )
        )
        self.target = host.ready["address"]
        self.wait_until_serving()
        return self

    def __exit__(self, *_: object) -> None:
        self._exit.close()

    def _start_enclave(self) -> None:
        self._enclave = self._exit.enter_context(
            self._world.launch(self._tree, self._run, *self._options)
        )
        wait_for_socket(self._run / "enclave.sock")

    def lives(self) -> int:
        """How many enclaves the launcher has started, by what was seen of them in these calls."""
        self._pids.add(self._enclave.latest["pid"])
        return len(self._pids)

    def restart(self) -> None:
        """End the enclave, start another, and wait until it serves: what a day's end demands."""
        self._enclave.stop()
        self._start_enclave()
        self.wait_until_serving()

    def wait_until_serving(self) -> None:
        """Wait until a client can verify the enclave and sees every model in its log."""
        deadline = time.monotonic() + self._world.form.start_s
        with Client(self.target, self._policy) as client:
            while True:
                with contextlib.suppress(CasemateError), HostConnection(self.target) as host:
                    host.get_evidence(None, 20)  # answered only once the host has checked it
                    if len(client.verify(timeout_s=20).log) >= len(self._models):
                        return
                assert time.monotonic() < deadline, "the replica does not serve"
                time.sleep(0.1)
