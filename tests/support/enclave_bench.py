"""A whole enclave in this process, behind a real unix socket.

Real: keys, sealing, evidence and its verification, model files, onnxruntime. Stand-ins: the
security module (the devkit's, under a throw-away PKI) and KMS, which here is a dictionary.
"""

from __future__ import annotations

import contextlib
import io
import os
import secrets
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

# As enclave/boot.py does, and before anything imports onnxruntime.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

from casemate import cbor
from casemate.attestation.evidence import EvidenceBundle
from casemate.attestation.measurement import Measurement
from casemate.attestation.policy import AllowedModel, Release, TrustPolicy
from casemate.attestation.structures import (
    Configuration,
    KmsConfiguration,
    ServiceLimits,
    configuration_event,
    pcr16,
)
from casemate.attestation.verify import VerifiedEvidence, verify_evidence
from casemate.channel import UnixAddress, connect, listen
from casemate.envelope.sealed_message import encode_sealed, parse_sealed
from casemate.envelope.sealing import DataKeySession, OpenedAnswer, SealedCall
from casemate.errors import Code, KeyReleaseError
from casemate.frames import FrameType, exchange, expect_answer, send_frame
from casemate.kms_context import data_context, model_context
from casemate.sealed_model import ModelHeader, seal_model
from casemate.tensors import TensorSpec, from_response, to_request
from casemate_devkit.nsm import SimulatedNsm, boot_registers
from casemate_devkit.pki import NitroPki
from casemate_enclave.assembly import Assembly
from casemate_enclave.dispatch import Dispatcher
from casemate_enclave.events import Journal
from casemate_enclave.nsm import Nsm
from casemate_enclave.server import Server
from tests.support import onnx_bytes
from tests.support.workers import spawner

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Mapping

    from casemate.sealed_model.header import Callers

AUDIENCE = "clinic.example/screening"
KEY_ARN = "arn:aws:kms:eu-central-1:111122223333:key/00000000-0000-4000-8000-000000000001"
IMAGE = Measurement(b"\x01" * 48, b"\x02" * 48, b"\x03" * 48)
LIMITS = ServiceLimits(sessions=64, models=4, model_bytes=1 << 20, request_bytes=1 << 20)
INPUTS = (TensorSpec("x", "FP32", (0, 3)),)
OUTPUTS = (TensorSpec("y", "FP32", (0, 2)),)
ROWS = np.array([[1, 1, 1], [1, 0, 0]], np.float32)
ANSWER = [[9.0, 12.0], [1.0, 2.0]]
HOUR = 3_600_000

PKI = NitroPki.create()


class FakeKms:
    """Attested key release as a dictionary; releases nothing it was not taught."""

    def __init__(self) -> None:
        self.keys: dict[tuple[str, bytes, tuple[tuple[str, str], ...]], bytes] = {}
        self.calls = 0
        self.credentials: tuple[object, ...] = ()

    def teach(self, blob: bytes, context: Mapping[str, str], data_key: bytes) -> None:
        self.keys[KEY_ARN, blob, tuple(sorted(context.items()))] = data_key

    def decrypt(
        self, *, key_arn: str, ciphertext_blob: bytes, context: Mapping[str, str], deadline: float
    ) -> bytes:
        self.calls += 1
        try:
            return self.keys[key_arn, ciphertext_blob, tuple(sorted(context.items()))]
        except KeyError:
            raise KeyReleaseError(Code.KEY_RELEASE_DENIED, "not released") from None

    def set_credentials(
        self,
        access_key_id: str,
        secret_access_key: str,
        session_token: str | None,
        expires: int | None,
    ) -> None:
        self.credentials = access_key_id, secret_access_key, session_token, expires


@dataclass
class Bench:
    """One enclave from boot to stop."""

    limits: ServiceLimits = LIMITS
    key_release: bool = True
    providers: tuple[str, ...] = ("CPUExecutionProvider",)
    clock: Callable[[], float] = time.time
    pki: NitroPki = PKI
    form: str = "unsafe-process"
    kms: FakeKms = field(default_factory=FakeKms)
    publisher: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate)
    stderr: io.StringIO = field(default_factory=io.StringIO)

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as resources:
            folder = resources.enter_context(tempfile.TemporaryDirectory())
            self._boot(Path(folder) / "enclave.sock")
            self._resources = resources.pop_all()
        return self

    def _boot(self, path: Path) -> None:
        self.path = path
        self.nsm = SimulatedNsm(
            self.pki, boot_registers(IMAGE, self.pki.instance_id), clock=self.clock
        )
        self.journal = Journal(self.stderr)
        self.assembly = Assembly(
            Nsm(self.nsm.handle), self.form, self.journal, lambda *_: self.kms, spawner()
        )
        dispatcher = Dispatcher(self.assembly.enclave, self.journal)
        self.server = Server(
            listen(UnixAddress(str(self.path))), dispatcher, self.journal, parent=3
        )
        self._thread = threading.Thread(target=self.server.serve)
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self.server.stop()
        self._thread.join(60)
        assert not self._thread.is_alive()
        self._resources.close()

    # Frames

    def connect(self) -> socket.socket:
        return connect(UnixAddress(str(self.path)), 200)

    def ask(self, kind: int, payload: bytes = b"", budget: int = 0) -> bytes:
        """One exchange on a connection of its own; raises FrameError."""
        with self.connect() as channel:
            return bytes(exchange(channel, kind, payload, budget))

    def health(self) -> dict[str, object]:
        return dict(cbor.decode(self.ask(FrameType.HEALTH)))

    def counters(self) -> dict[str, int]:
        return dict(cbor.decode(self.ask(FrameType.COUNTERS))["counters"])

    # Configuration and evidence

    @property
    def configuration(self) -> bytes:
        kms = KmsConfiguration("aws", ("eu-central-1",), (self.pki.root_der,))
        publisher = self.publisher.public_key().public_bytes_raw()
        return Configuration(
            audience=AUDIENCE,
            publishers=(publisher,),
            minimum_versions={f"{publisher.hex()}/linear": 2},
            kms=kms if self.key_release else None,
            limits=self.limits,
            providers=self.providers,
        ).encode()

    def configure(self) -> Self:
        answer = cbor.decode(self.ask(FrameType.CONFIGURE, self.configuration))
        assert answer == {"pcr16": pcr16(self.configuration)}
        return self

    def extend_first(self) -> None:
        """Touch PCR16 before the enclave does."""
        Nsm(self.nsm.handle).extend_pcr(16, configuration_event(b"another"))

    @property
    def policy(self) -> TrustPolicy:
        register = pcr16(self.configuration)
        names = ("linear", "endless", "failing")
        publisher = self.publisher.public_key().public_bytes_raw()
        return TrustPolicy(
            platform="nitro-enclave",
            audience=AUDIENCE,
            roots=frozenset({self.pki.root_sha256}),
            evidence="fresh",
            maximum_age_seconds=300,
            allow_debug=False,
            releases=(Release("r", IMAGE.pcr0, IMAGE.pcr1, IMAGE.pcr2, register),),
            models=tuple(AllowedModel(name, publisher) for name in names),
        )

    def verify(self, nonce: bytes | None = None) -> VerifiedEvidence:
        """Evidence as a client sees it: through the whole production verifier."""
        bundle = EvidenceBundle.parse(self.ask(FrameType.EVIDENCE, nonce or b""))
        now = int(self.clock() * 1000)
        return verify_evidence(bundle, self.policy, nonce=nonce, now=now)

    # Models

    def sealed(
        self,
        *,
        name: str = "linear",
        version: int = 2,
        files: Mapping[str, bytes] | None = None,
        publisher: Ed25519PrivateKey | None = None,
        callers: Callers = "any",
        **changes: object,
    ) -> tuple[bytes, ModelHeader]:
        """A sealed model file whose key this bench's KMS releases."""
        publisher = publisher or self.publisher
        data_key, blob = secrets.token_bytes(32), secrets.token_bytes(64)
        context = model_context(publisher.public_key().public_bytes_raw(), name)
        self.kms.teach(blob, context, data_key)
        paths = {}
        with tempfile.TemporaryDirectory() as folder:
            for index, (path, content) in enumerate(
                (files or {"model.onnx": onnx_bytes.linear()}).items()
            ):
                paths[path] = Path(folder) / str(index)
                paths[path].write_bytes(content)
            output = io.BytesIO()
            statement: dict[str, object] = {
                "inputs": INPUTS,
                "outputs": OUTPUTS,
                "answer_bucket": 4096,
                **changes,
            }
            header = seal_model(
                output,
                files=paths,
                data_key=data_key,
                wrapped_key=blob,
                kms_key=KEY_ARN,
                publisher=publisher,
                name=name,
                version=version,
                callers=callers,
                **statement,  # type: ignore[arg-type]
            )
        return output.getvalue(), header

    def load(
        self, sealed: bytes, piece: int = 1 << 20, replaces: int | None = None
    ) -> dict[str, object]:
        """Stream a sealed file as the host does; raises FrameError."""
        kind = FrameType.LOAD if replaces is None else FrameType.REPLACE
        fields = {} if replaces is None else {"replaces": replaces}
        with self.connect() as channel:
            send_frame(channel, kind, cbor.encode({"size": len(sealed), **fields}))
            for at in range(0, len(sealed), piece):
                send_frame(channel, FrameType.MODEL_DATA, sealed[at : at + piece])
            return dict(cbor.decode(bytes(expect_answer(channel, kind))))

    def serve(self, **statement: object) -> ModelHeader:
        """Configure unless configured, seal and load."""
        if self.health()["state"] == "unconfigured":
            self.configure()
        sealed, header = self.sealed(**statement)  # type: ignore[arg-type]
        self.load(sealed)
        return header

    # Requests

    def session(self, caller: Ed25519PrivateKey | None = None) -> DataKeySession:
        """A session in key mode hpke, begun from verified evidence."""
        verified = self.verify(secrets.token_bytes(32))
        raw, _ = verified.current_key
        start = verified.document.timestamp
        return DataKeySession.hpke(
            raw,
            verified.instance.instance_id,
            verified.instance_digest,
            AUDIENCE,
            start,
            start + HOUR,
            caller,
        )

    def kms_session(self, instance_id: bytes = bytes(16)) -> DataKeySession:
        """A session in key mode kms, for any replica unless named."""
        data_key, blob = secrets.token_bytes(32), secrets.token_bytes(64)
        self.kms.teach(blob, data_context(AUDIENCE), data_key)
        start = self.verify(secrets.token_bytes(32)).document.timestamp
        return DataKeySession.kms(
            KEY_ARN, blob, data_key, instance_id, AUDIENCE, start, start + HOUR, None
        )

    def send(self, call: SealedCall, budget: int = 0) -> OpenedAnswer:
        """Relay a sealed request and open its answer; raises FrameError."""
        request = b"".join(encode_sealed(call.header, call.ciphertext))
        answer = self.ask(FrameType.REQUEST, request, budget)
        return call.open(*parse_sealed(memoryview(answer)))

    def infer(
        self,
        session: DataKeySession,
        rows: np.ndarray = ROWS,
        *,
        model: str = "linear",
        version: int | None = None,
        digest: bytes | None = None,
        budget: int = 0,
    ) -> OpenedAnswer:
        message = to_request({"x": rows})
        call = session.seal(model=model, version=version, digest=digest, message=message)
        return self.send(call, budget)


def rows_of(answer: OpenedAnswer) -> list[list[float]]:
    assert answer.trailer.status == Code.OK, answer.trailer
    assert answer.message is not None
    rows: list[list[float]] = from_response(answer.message)["y"].tolist()
    return rows
