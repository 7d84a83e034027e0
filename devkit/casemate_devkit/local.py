"""A whole deployment on this machine: KMS double, simulated enclave, host, three parties.

The demonstration narrates its steps; the integration and security tests start from it. Every
process is the real one; what is simulated is named: the Nitro root, and KMS behind its real name.
"""

from __future__ import annotations

import contextlib
import json
import time
from typing import TYPE_CHECKING, Any, Final, Self

import grpc
from grpc_health.v1 import health_pb2

from casemate.attestation import (
    AllowedModel,
    Configuration,
    KmsConfiguration,
    Measurement,
    Release,
    ServiceLimits,
    TrustPolicy,
    pcr16,
)
from casemate.attestation.configuration import CPU
from casemate.client import Client, KmsDataKeys
from casemate.errors import CasemateError
from casemate.kms_policy import attested_key_policy
from casemate_devkit.errors import DevkitError
from casemate_devkit.forms import ProcessForm
from casemate_devkit.kms import KmsDouble
from casemate_devkit.parties import REGION, Aws, Party, run_tool, write_credentials
from casemate_devkit.pki import NitroPki
from casemate_devkit.processes import Service
from casemate_devkit.tap import Tap

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path
    from types import TracebackType

    from casemate_devkit.forms import Form
    from casemate_devkit.kms import Principal

AUDIENCE = "clinic.example/screening"
RELEASE = "0.1.0"
MODEL = "wdbc"
ENDPOINT = f"kms.{REGION}.amazonaws.com"
_MIB = 1 << 20
LIMITS: Final = ServiceLimits(
    sessions=4096, models=8, model_bytes=64 * _MIB, request_bytes=8 * _MIB
)


class LocalDeployment:
    """Starts a deployment step by step below ``base``; stops it in reverse order."""

    def __init__(self, base: Path, tree: Path, form: Form | None = None) -> None:
        """Make the three parties; ``tree`` is the staged tree that the operator runs in ``form``.

        Without ``form`` the enclave is a process.
        """
        self.base = base
        self.tree = tree
        self.form = form or ProcessForm()
        self.vendor = Party.create(
            base, "vendor", {"admin": "user/vendor-admin", "sealer": "role/model-sealing"}
        )
        self.clinic = Party.create(
            base, "clinic", {"admin": "user/clinic-admin", "app": "role/screening-app"}
        )
        self.operator = Party.create(
            base, "operator", {"admin": "user/operator-admin", "host": "role/casemate-host"}
        )
        self._exit = contextlib.ExitStack()
        self.vendor_key = ""
        self.clinic_key = ""
        self.target = ""
        self.host: Service | None = None
        self.enclave: Service | None = None

    # -- 1. what stands in for AWS ----------------------------------------------------------------

    def start_kms(self) -> None:
        """Make the simulated Nitro root and start the KMS double that trusts it."""
        self.pki_directory = self.base / "nitro"
        self.pki_directory.mkdir(mode=0o700)
        self.nitro_root = NitroPki.create(self.pki_directory).root_sha256
        everyone = [
            who
            for party in (self.vendor, self.clinic, self.operator)
            for who in party.principals.values()
        ]
        self.kms = self._exit.enter_context(
            KmsDouble(
                self.base / "kms",
                roots=frozenset([self.nitro_root]),
                principals=everyone,
                regions=[REGION],
                mode="process",
            )
        )
        self.aws = Aws(self.kms.endpoint(REGION), self.kms.ca_pem)

    # -- 2. what the parties agree on -------------------------------------------------------------

    def agree(
        self,
        measurement: Measurement,
        limits: ServiceLimits = LIMITS,
        providers: tuple[str, ...] = (CPU,),
    ) -> None:
        """Write the configuration and create both KMS keys, for the enclave of ``measurement``."""
        self.configuration = Configuration(
            audience=AUDIENCE,
            publishers=(self.vendor.public_key,),
            minimum_versions={f"{self.vendor.public_key.hex()}/{MODEL}": 1},
            kms=KmsConfiguration("aws", (REGION,), (self.kms.ca_der,)),
            limits=limits,
            providers=providers,
        ).encode()
        self.release = Release(
            RELEASE,
            measurement.pcr0,
            measurement.pcr1,
            measurement.pcr2,
            pcr16(self.configuration),
        )
        self.vendor_key = self._create_key(
            self.vendor, "sealer", "model", f"{self.vendor.public_key.hex()}/{MODEL}"
        )
        self.clinic_key = self._create_key(self.clinic, "app", "data", AUDIENCE)

    def _create_key(self, owner: Party, encryptor: str, purpose: Any, scope: str) -> str:  # noqa: ANN401
        policy = attested_key_policy(
            account_admin=owner.principals["admin"].arn,
            decrypt_principal=self.operator.principals["host"].arn,
            releases=[self.release],
            purpose=purpose,
            scope=scope,
            encrypt_principals=[owner.principals[encryptor].arn],
        )
        (owner.directory / "key-policy.json").write_text(json.dumps(policy, indent=2) + "\n")
        created = self.aws.kms(owner.principals["admin"]).create_key(
            Policy=json.dumps(policy), Description=f"{owner.name}: {purpose} for {scope}"
        )
        arn: str = created["KeyMetadata"]["Arn"]
        return arn

    def trust_policy(self, **changes: Any) -> TrustPolicy:  # noqa: ANN401 - the policy's fields
        """Return the clinic's trust policy, with ``changes`` to its fields."""
        fields: dict[str, Any] = {
            "platform": "nitro-enclave",
            "audience": AUDIENCE,
            "roots": frozenset([self.nitro_root]),
            "evidence": "fresh",
            "maximum_age_seconds": 300,
            "allow_debug": False,
            "releases": (self.release,),
            "models": (AllowedModel(MODEL, self.vendor.public_key, None),),
        }
        return TrustPolicy(**{**fields, **changes})

    def write_trust_policy(self, path: Path, **changes: Any) -> Path:  # noqa: ANN401
        """Write ``trust_policy(**changes)`` to ``path`` and return the path."""
        path.write_text(self.trust_policy(**changes).to_toml())
        return path

    # -- 3. the vendor ----------------------------------------------------------------------------

    def seal_model(self, onnx: Path, *, version: int = 1, callers: str | None = None) -> Path:
        """Seal ``onnx`` with the command line, as the vendor; only the clinic may call it."""
        output = self.vendor.directory / f"{MODEL}-{version}.sealed"
        result = run_tool(
            "casemate.client.cli",
            *("seal-model", str(onnx), str(output)),
            *("--name", MODEL, "--version", str(version)),
            *("--publisher-key", str(self.vendor.directory / "key.pem")),
            *("--kms-key", self.vendor_key),
            *("--caller", callers or self.clinic.public_key.hex()),
            *("--answer-bucket", "4096"),
            environment=self.aws.environment(self.vendor.principals["sealer"]),
        )
        if result.returncode != 0:
            raise DevkitError(f"seal-model failed: {result.stderr.strip()}")
        self.sealed_summary: dict[str, Any] = json.loads(result.stdout)
        return output

    # -- 4. the operator --------------------------------------------------------------------------

    def start_enclave(self, tree: Path | None = None, *options: str) -> Service:
        """Start the enclave from a staged tree, under a simulated NSM of its own.

        ``options`` are the launcher's; with ``--restart`` it replaces an enclave that ends by
        itself, and the host brings the new one back into service.
        """
        self.run = self.operator.directory / "run"
        self.enclave = self._exit.enter_context(self.launch(tree or self.tree, self.run, *options))
        return self.enclave

    def launch(self, tree: Path, run: Path, *options: str) -> Service:
        """Start an enclave whose sockets are in ``run``; stopping it is the caller's."""
        return Service(
            *self.form.launcher(tree),
            *("--pki", str(self.pki_directory), "--run", str(run)),
            *options,
            log=self.operator.directory / "enclave.log",
            start_s=self.form.start_s,
        )

    def start_host(
        self,
        sealed_models: Sequence[Path],
        *,
        tapped: bool = True,
        more: str = "",
        framed: bool = True,
    ) -> Service:
        """Start the host; ``more`` tables go into its configuration.

        With ``tapped``, every byte between it and the enclave is recorded. With ``framed`` it takes
        framed connections (SPEC 9.6.3).
        """
        directory = self.operator.directory
        enclave_socket, egress_socket = self.run / "enclave.sock", self.run / "egress.sock"
        if tapped:
            relay, egress = directory / "relay.sock", directory / "egress.sock"
            self.relay_tap = self._exit.enter_context(Tap(relay, enclave_socket))
            self.egress_tap = self._exit.enter_context(Tap(egress_socket, egress))
            enclave_socket, egress_socket = relay, egress
        configuration = directory / "configuration.cbor"
        configuration.write_bytes(self.configuration)
        write_credentials(directory / "credentials.json", self.operator.principals["host"])
        self.write_trust_policy(directory / "trust.toml")
        config = directory / "host.toml"
        text = self.host_config(enclave_socket, egress_socket, sealed_models, framed=framed)
        config.write_text(text + more)
        self.host = self._exit.enter_context(
            Service("casemate_host", "--config", str(config), log=directory / "host.log")
        )
        self.target = self.host.ready["address"]
        return self.host

    def host_config(
        self, enclave: Path, egress: Path, models: Sequence[Path], *, framed: bool = True
    ) -> str:
        """Return the host's configuration file; its other files lie beside it."""
        return f"""version = 1

[front]
listen = "127.0.0.1:0"
{'frames = "127.0.0.1:0"' if framed else ""}

[enclave]
address = "unix:{enclave}"
configuration = "configuration.cbor"
trust_policy = "trust.toml"
credentials = "credentials.json"
models = {json.dumps([str(path) for path in models])}

[egress]
address = "unix:{egress}"

[egress.allow]
"{ENDPOINT}:443" = "127.0.0.1:{self.kms.port}"
"""

    def restart_host_untapped(self, sealed_models: Sequence[Path]) -> None:
        """Replace a tapped host by one that stands alone."""
        if self.host is not None:
            self.host.stop()
        self.relay_tap.close()
        self.egress_tap.close()
        self.start_host(sealed_models, tapped=False)
        self.wait_until_serving()

    def wait_until_serving(self, timeout_s: float | None = None) -> None:
        """Wait until the host says SERVING and the clinic verifies a model in the log.

        If not said otherwise, as long as a start may take.
        """
        timeout_s = self.form.start_s if timeout_s is None else timeout_s
        deadline = time.monotonic() + timeout_s
        with self.client() as client:
            while (failure := self._unready(client)) is not None:
                if time.monotonic() > deadline:
                    raise DevkitError(f"not serving after {timeout_s} s: {failure}")
                time.sleep(0.1)

    def _unready(self, client: Client) -> str | None:
        try:
            if not client.verify(timeout_s=20).log:
                return "no model is loaded"
        except CasemateError as error:
            return str(error)
        return None if self.serving() else "the host does not say SERVING"

    def serving(self) -> bool:
        """Whether the host's health service says SERVING."""
        with grpc.insecure_channel(self.target) as channel:
            check: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(
                "/grpc.health.v1.Health/Check"
            )
            try:
                answer = health_pb2.HealthCheckResponse.FromString(check(b"", timeout=20))
            except grpc.RpcError:
                return False
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

    # -- 5. the clinic ----------------------------------------------------------------------------

    def client(self, *, kms: bool = False, target: str | None = None, **policy: Any) -> Client:  # noqa: ANN401
        """Return the clinic's client, with keys made locally or taken from the clinic's KMS."""
        keys = None
        if kms:
            app: Principal = self.clinic.principals["app"]
            keys = KmsDataKeys(self.clinic_key, kms=self.aws.kms(app))
        return Client(
            target or self.target,
            self.trust_policy(**policy),
            caller_key=self.clinic.signing_key,
            data_keys=keys,
        )

    # -- the end ----------------------------------------------------------------------------------

    def leave_running(self) -> None:
        """Let go of the processes, so that leaving the context does not stop them."""
        self._exit.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._exit.close()
