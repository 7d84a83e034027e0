"""What an attacker on the host holds: the enclave's socket, the host's files, other enclaves.

Nothing here is a stand-in: every frame goes to a real enclave, every key comes from the KMS double.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import secrets
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from casemate import cbor
from casemate.attestation import Configuration, EvidenceBundle, verify_evidence
from casemate.channel import UnixAddress, connect
from casemate.client.kms import generate_data_key
from casemate.client.transport import HostConnection
from casemate.envelope.sealed_message import encode_sealed, parse_sealed
from casemate.envelope.sealing import DataKeySession
from casemate.errors import CasemateError, Code
from casemate.frames import FrameType, exchange, expect_answer, send_frame
from casemate.kms_context import data_context
from casemate.limits import MIB
from casemate.tensors import to_request
from casemate_devkit.demo.attacks import wait_for_socket
from casemate_devkit.local import AUDIENCE, ENDPOINT, MODEL
from casemate_devkit.processes import Service
from casemate_host.config import EgressConfig
from casemate_host.credentials import Credentials
from casemate_host.egress import Egress
from tests.support.deployment import DATA

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from casemate.attestation import VerifiedEvidence
    from casemate.client import HostAccess
    from casemate.envelope.sealing import OpenedAnswer, SealedCall
    from casemate_devkit.local import LocalDeployment

ROWS = DATA.features[:4]
GOOD = to_request({"features": ROWS})
TIMEOUT_S = 30.0
_UNSET: Any = object()
_number = itertools.count(1)


def refusal(act: Callable[[], object]) -> Code:
    """Return the code with which ``act`` is refused; the test fails if it is not."""
    with pytest.raises(CasemateError) as caught:
        act()
    return caught.value.code


def now_ms() -> int:
    """The present, in milliseconds since 1970."""
    return time.time_ns() // 1_000_000


class EnclaveSocket:
    """The enclave's own socket, each exchange over a new connection, as a hostile host uses it."""

    def __init__(self, path: Path) -> None:
        self.address = UnixAddress(str(path))

    def ask(self, kind: FrameType, payload: bytes = b"", budget: int = 0) -> bytes:
        """Send one frame and return its answer; an error answer is raised as FrameError."""
        with connect(self.address, TIMEOUT_S) as channel:
            return bytes(exchange(channel, kind, payload, budget))

    def evidence(self, nonce: bytes = b"") -> EvidenceBundle:
        """Evidence as this enclave makes it, with ``nonce`` if there is one."""
        return EvidenceBundle.parse(self.ask(FrameType.EVIDENCE, nonce))

    def request(self, header: bytes, ciphertext: Any, budget: int = 0) -> tuple[bytes, memoryview]:  # noqa: ANN401 - any buffer
        """Deliver one sealed request; return the sealed answer's header and ciphertext."""
        sealed = b"".join(encode_sealed(header, ciphertext))
        return parse_sealed(memoryview(self.ask(FrameType.REQUEST, sealed, budget)))

    def load(self, content: bytes, replaces: int | None = None) -> dict[str, Any]:
        """Load a sealed model as the host would; return what the enclave calls it."""
        kind = FrameType.LOAD if replaces is None else FrameType.REPLACE
        fields = {} if replaces is None else {"replaces": replaces}
        with connect(self.address, TIMEOUT_S) as channel:
            send_frame(channel, kind, cbor.encode({"size": len(content), **fields}))
            for start in range(0, len(content), MIB):
                send_frame(channel, FrameType.MODEL_DATA, content[start : start + MIB])
            answer = expect_answer(channel, kind)
        kinds: dict[str, Any] = {"name": str, "version": int, "digest": bytes}
        return cbor.decode_map(bytes(answer), kinds)

    def unload(self, name: str, version: int) -> None:
        """Unload one version."""
        self.ask(FrameType.UNLOAD, cbor.encode({"name": name, "version": version}))

    def models(self) -> Any:  # noqa: ANN401 - CBOR
        """The answer to a models frame, decoded."""
        return cbor.decode(self.ask(FrameType.MODELS))

    def health(self) -> Any:  # noqa: ANN401 - CBOR
        """The answer to a health frame, decoded."""
        return cbor.decode(self.ask(FrameType.HEALTH))

    def counters(self) -> Any:  # noqa: ANN401 - CBOR
        """The counters of a counters frame's answer."""
        return cbor.decode(self.ask(FrameType.COUNTERS))["counters"]

    def histograms(self) -> Any:  # noqa: ANN401 - CBOR
        """The histograms of a counters frame's answer."""
        return cbor.decode(self.ask(FrameType.COUNTERS))["histograms"]


def genuine(world: LocalDeployment) -> EnclaveSocket:
    """The deployment's own enclave."""
    return EnclaveSocket(world.run / "enclave.sock")


@dataclass(frozen=True, slots=True)
class Session:
    """One data key with the evidence that it was made for."""

    evidence: VerifiedEvidence
    keys: DataKeySession

    def seal(
        self,
        message: bytes = GOOD,
        *,
        model: str = MODEL,
        version: int | None = 1,
        digest: bytes | None = None,
    ) -> SealedCall:
        """Seal one request under the session's next header."""
        return self.keys.seal(model=model, version=version, digest=digest, message=message)

    def ask(self, enclave: EnclaveSocket, message: bytes = GOOD, **named: Any) -> OpenedAnswer:  # noqa: ANN401 - seal's
        """Seal one request, deliver it, open its answer."""
        call = self.seal(message, **named)
        return call.open(*enclave.request(call.header, call.ciphertext))


def verified(
    world: LocalDeployment, enclave: EnclaveSocket | None = None, **policy: object
) -> VerifiedEvidence:
    """Evidence straight from the enclave, verified by the clinic's policy."""
    nonce = secrets.token_bytes(32)
    bundle = (enclave or genuine(world)).evidence(nonce)
    return verify_evidence(bundle, world.trust_policy(**policy), nonce=nonce, now=now_ms())


def start_session(
    world: LocalDeployment,
    *,
    enclave: EnclaveSocket | None = None,
    mode: str = "hpke",
    caller: Ed25519PrivateKey | None = _UNSET,
    not_before: int | None = None,
    lifetime_ms: int = 60_000,
    evidence: VerifiedEvidence | None = None,
    any_instance: bool = False,
    audience: str = AUDIENCE,
) -> Session:
    """Start a session as the clinic would, but with any of its facts replaced."""
    evidence = evidence or verified(world, enclave)
    begin = evidence.document.timestamp if not_before is None else not_before
    facts: dict[str, Any] = {
        "audience": audience,
        "not_before": begin,
        "not_after": begin + lifetime_ms,
        "caller": world.clinic.signing_key if caller is _UNSET else caller,
    }
    if mode == "hpke":
        keys = DataKeySession.hpke(
            evidence_key_config=evidence.current_key[0],
            instance_id=evidence.instance.instance_id,
            instance_digest=evidence.instance_digest,
            **facts,
        )
    else:
        app = world.clinic.principals["app"]
        made = generate_data_key(world.aws.kms(app), world.clinic_key, data_context(AUDIENCE))
        keys = DataKeySession.kms(
            key_arn=made.key_arn,
            ciphertext_blob=made.ciphertext_blob,
            data_key=made.key,
            instance_id=bytes(16) if any_instance else evidence.instance.instance_id,
            **facts,
        )
    return Session(evidence, keys)


@contextlib.contextmanager
def side_enclave(
    world: LocalDeployment,
    tree: Path | None = None,
    *options: str,
    configuration: bytes | None = None,
    kms_port: int | None = None,
) -> Iterator[EnclaveSocket]:
    """Run another enclave beside the genuine one: same Nitro root, credentials, way to KMS."""
    run = world.operator.directory / f"side-{next(_number)}"
    egress = Egress(
        EgressConfig(
            address=UnixAddress(str(run / "egress.sock")),
            allow={f"{ENDPOINT}:443": ("127.0.0.1", kms_port or world.kms.port)},
            connections=4,
            idle_s=TIMEOUT_S,
        ),
        UnixAddress(str(run / "enclave.sock")),
    )
    with world.launch(tree or world.tree, run, *options):
        egress.start()
        try:
            wait_for_socket(run / "enclave.sock")
            enclave = EnclaveSocket(run / "enclave.sock")
            configuration = configuration or world.configuration
            enclave.ask(FrameType.CONFIGURE, configuration)
            if Configuration.parse(configuration).kms is not None:
                credentials = Credentials.load(world.operator.directory / "credentials.json")
                enclave.ask(FrameType.CREDENTIALS, credentials.reveal())
            yield enclave
        finally:
            egress.stop()


@contextlib.contextmanager
def second_host(
    world: LocalDeployment,
    enclave: Path | None = None,
    models: Sequence[Path] = (),
    *,
    more: str = "",
    access: HostAccess | None = None,
) -> Iterator[Service]:
    """Run another honest host over the socket ``enclave``; its log is ``host.log``.

    ``more`` tables go into its configuration; ``access`` is how it is asked whether it serves.
    """
    directory = world.operator.directory
    name = f"host-{next(_number)}"
    config = directory / f"{name}.toml"
    config.write_text(
        world.host_config(
            enclave or world.run / "enclave.sock", directory / f"{name}.egress", models
        )
        + more
    )
    log = directory / f"{name}.log"
    with Service("casemate_host", "--config", str(config), log=log) as host:
        wait_for_host(host.ready["address"], access)
        yield host


def wait_for_host(target: str, access: HostAccess | None = None) -> None:
    """Wait until a host has checked its enclave; until then everything is UNAVAILABLE."""
    with HostConnection(target, access) as connection:

        def checked() -> bool:
            code = refusal(lambda: connection.infer(b"?", b"?", TIMEOUT_S))
            return code is Code.UNSUPPORTED_VERSION

        assert eventually(checked)


def resident_kib(pid: int, field: str = "VmRSS") -> int:
    """A memory figure of a process in KiB, from ``/proc/PID/status``."""
    with open(f"/proc/{pid}/status", encoding="ascii") as status:  # noqa: PTH123 - no file of ours
        line = next(line for line in status if line.startswith(f"{field}:"))
    return int(line.split()[1])


def freeze(pid: int) -> None:
    """Stop a process, and return when none of its threads runs any more."""
    os.kill(pid, signal.SIGSTOP)
    stats = Path(f"/proc/{pid}/task")

    def stopped() -> bool:
        try:
            lines = [stat.read_text("utf-8") for stat in stats.glob("*/stat")]
        except (FileNotFoundError, ProcessLookupError):  # a thread ended, so not all were stopped
            return False
        return {line.rpartition(")")[2].split()[0] for line in lines} == {"T"}

    assert eventually(stopped)


def eventually(holds: Callable[[], bool], timeout_s: float = 180) -> bool:
    """Whether ``holds`` becomes true within ``timeout_s`` seconds."""
    deadline = time.monotonic() + timeout_s
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True
