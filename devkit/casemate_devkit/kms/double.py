"""The double as an object: for tests in a thread, for demonstrations as a process."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any, Literal, Self

import boto3
from botocore.config import Config

from casemate_devkit.kms.audit import AuditTrail
from casemate_devkit.kms.faults import FAULTS_FILE, write_faults
from casemate_devkit.kms.principals import Principal, save_principals
from casemate_devkit.kms.server import KmsServer

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path
    from types import TracebackType

Client = Any  # boto3 carries no types

_CONFIG = Config(
    retries={"total_max_attempts": 1},
    connect_timeout=60,
    read_timeout=120,
    proxies={},  # whatever the environment says: the double is on loopback
)
_START_S = 180.0  # boto3 takes seconds to import on a busy machine
_STOP_S = 10.0


class KmsDouble:
    """A running KMS double.

    Args:
        directory: takes the CA, the keys, the audit trail and, as a process, the principals; made
            if missing. A double that starts there again has the same keys.
        roots: SHA-256 digests (32 bytes) of the Nitro root certificates to trust.
        principals: who may call.
        regions: the regions it serves; its certificate names their KMS endpoints and localhost.
        mode: ``thread``: in this process; ``process``: in one of its own.
        port: 0 picks a free one.
        faults: in force from the start; see ``casemate_devkit.kms.faults``.
    """

    def __init__(
        self,
        directory: Path,
        *,
        roots: frozenset[bytes],
        principals: Sequence[Principal],
        regions: Sequence[str] = ("eu-central-1",),
        mode: Literal["process", "thread"] = "thread",
        port: int = 0,
        faults: Sequence[str] = (),
    ) -> None:
        self.directory = directory
        self.ca_pem = directory / "ca.pem"
        self.regions = tuple(regions)
        self.port = port
        self._roots = roots
        self._principals = tuple(principals)
        self._mode = mode
        self._faults = tuple(faults)
        self._server: KmsServer | None = None
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> Self:
        """Start serving; returns when the port is open.

        Raises OSError or ValueError, as a process RuntimeError.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        if self._mode == "thread":
            self._start_thread()
        else:
            self._start_process()
        return self

    def stop(self) -> None:
        """Stop serving."""
        if self._server is not None:
            self._server.stop()
            self._server = None
        if self._process is not None:
            _end(self._process)
            self._process = None

    def kill(self) -> None:
        """End the process at once, as a crash would; raises ValueError without one."""
        if self._process is None:
            raise ValueError("the double runs in this process")
        self._process.kill()
        self._process.wait()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def ca_der(self) -> bytes:
        """The CA certificate, as ``tls_roots`` of a configuration takes it (SPEC 3.2)."""
        return (self.directory / "ca.der").read_bytes()

    @property
    def audit(self) -> AuditTrail:
        """The audit trail, one event for each request."""
        return AuditTrail(self.directory / "audit.jsonl")

    @property
    def pid(self) -> int:
        """The process id of a double that runs as a process."""
        if self._process is None:
            raise ValueError("the double runs in this process")
        return self._process.pid

    def inject(self, *faults: str) -> None:
        """Replace the faults in force, from the next request on; none at all clears them.

        Raises ValueError for a fault that is not understood.
        """
        write_faults(self.directory / FAULTS_FILE, faults)

    def endpoint(self, region: str) -> str:
        """Return the endpoint URL for ``region``; raises ValueError if it is not served."""
        if region not in self.regions:
            msg = f"the double does not serve {region}"
            raise ValueError(msg)
        return f"https://localhost:{self.port}"

    def client(self, principal: Principal, region: str | None = None) -> Client:
        """Return a boto3 KMS client of ``principal``, without retries."""
        place = region or self.regions[0]
        return boto3.client(
            "kms",
            region_name=place,
            endpoint_url=self.endpoint(place),
            verify=str(self.ca_pem),
            aws_access_key_id=principal.access_key_id,
            aws_secret_access_key=principal.secret_access_key,
            aws_session_token=principal.session_token,
            config=_CONFIG,
        )

    def _start_thread(self) -> None:
        self._server = KmsServer(
            self.directory,
            roots=self._roots,
            principals=self._principals,
            regions=self.regions,
            port=self.port,
            faults=self._faults,
        )
        self.port = int(self._server.server_address[1])
        threading.Thread(target=self._server.serve_forever, name="kms", daemon=True).start()

    def _start_process(self) -> None:
        principals = self.directory / "principals.json"
        save_principals(principals, self._principals)
        command = [sys.executable, "-m", "casemate_devkit.kms", "--port", str(self.port)]
        command += ["--directory", str(self.directory), "--principals", str(principals)]
        command += [part for root in self._roots for part in ("--nitro-root", root.hex())]
        command += [part for region in self.regions for part in ("--region", region)]
        command += [part for fault in self._faults for part in ("--fault", fault)]
        with (self.directory / "double.log").open("ab") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, text=True
            )
        ready = _first_line(self._process)
        if not ready:
            self.stop()
            msg = f"the KMS double did not start; see {self.directory / 'double.log'}"
            raise RuntimeError(msg)
        self.port = int(json.loads(ready)["port"])


def _first_line(process: subprocess.Popen[str]) -> str:
    """Return the first line of stdout, or nothing if the process ends or takes too long."""
    timer = threading.Timer(_START_S, process.kill)
    timer.start()
    try:
        return process.stdout.readline() if process.stdout else ""
    finally:
        timer.cancel()


def _end(process: subprocess.Popen[str]) -> None:
    process.terminate()
    try:
        process.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.stdout:
        process.stdout.close()
