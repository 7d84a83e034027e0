"""An enclave's outside without its inside: it speaks SPEC 9 and attests under a throw-away PKI.

What it does with a request is written in the request, so that tests of the host need no sealing:
``sleep:SECONDS``, ``die``, ``cut``, ``refuse:CODE``, ``odd``, ``silent``, up to the first space;
anything else is echoed.
"""

from __future__ import annotations

import contextlib
import secrets
import socket
import threading
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from casemate import cbor, frames, numbered
from casemate.attestation import InstanceConfig, KeyConfig, LogEntry, callers_digest, encode_log
from casemate.channel import UnixAddress, listen
from casemate.errors import Code, FrameError
from casemate.frames import FrameType
from casemate.sealed_model import ModelHeader, seal_model
from casemate.tensors import TensorSpec
from tests.support import evidence, nitro_pki
from tests.support.fake_streams import FakeStreams

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from casemate.attestation import TrustPolicy
    from tests.support.nitro_pki import Chain

KMS_KEY = "arn:aws:kms:eu-central-1:111122223333:key/00000000-0000-4000-8000-000000000000"


def now() -> int:
    return time.time_ns() // 1_000_000


def new_chain() -> Chain:
    return nitro_pki.issue(nitro_pki.real_shape(), now=now())


def seal(path: Path, *, name: str = "wdbc", version: int = 2, size: int = 5000) -> Path:
    """Write a sealed model of ``size`` bytes to ``path``."""
    content = path.with_suffix(".onnx")
    content.write_bytes(secrets.token_bytes(size))
    tensors = [TensorSpec("x", "FP32", (0, 30))]
    with path.open("wb") as output:
        seal_model(
            output,
            files={"model.onnx": content},
            data_key=secrets.token_bytes(32),
            wrapped_key=b"wrapped",
            kms_key=KMS_KEY,
            publisher=Ed25519PrivateKey.generate(),
            name=name,
            version=version,
            inputs=tensors,
            outputs=tensors,
            answer_bucket=0,
            callers="any",
        )
    return path


@dataclass
class FakeEnclave:
    """One instance from start to stop; starting another on the same path is a restart."""

    path: Path
    chain: Chain
    number: int = 1
    load_failures: list[Code] = field(default_factory=list)
    evidence_failures: list[Code] = field(default_factory=list)
    configuration: bytes = b""
    credentials: list[dict[str, object]] = field(default_factory=list)
    requests: list[bytes] = field(default_factory=list)
    budgets: list[int] = field(default_factory=list)
    models: list[tuple[str, int, bytes]] = field(default_factory=list)
    loads: int = 0
    accepted: int = 0
    shared: int = 0  # connections that have carried numbered frames
    given_up: list[int] = field(default_factory=list)
    pcr0: bytes = evidence.IMAGE[0]
    counters: dict[str, int] = field(default_factory=lambda: {"requests": 7})
    histograms: dict[str, object] = field(
        default_factory=lambda: {"run": {"counts": [2, *[0] * 17, 1], "sum_us": 70_000_090}}
    )
    released: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.streams = FakeStreams(self.released)

    def start(self) -> FakeEnclave:
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._boot = now()
        self._listener = listen(UnixAddress(str(self.path)))
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()
        return self

    def stop(self) -> None:
        self.released.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()
        self.drop_connections()

    def drop_connections(self) -> None:
        with self._lock:
            for channel in self._open:
                with contextlib.suppress(OSError):
                    channel.shutdown(socket.SHUT_RDWR)

    def policy(self, **changes: object) -> TrustPolicy:
        return evidence.policy(roots=self.chain.roots, **changes)

    def make_evidence(self, nonce: bytes | None) -> bytes:
        moment = now()
        key = KeyConfig(evidence.KEY.public_key, moment - 1000, moment + evidence.HOUR)
        entries = [
            LogEntry(
                "load", name, version, digest, evidence.PUBLISHER, callers_digest("any"), moment
            )
            for name, version, digest in self.models
        ]
        bundle = replace(
            evidence.unsigned(),
            configuration=self.configuration,
            key_configs=(key.encode(),),
            instance_config=self.instance_config(),
            measurement_log=encode_log(entries),
        )
        document = nitro_pki.document(
            self.chain,
            timestamp=moment,
            pcrs=evidence.pcrs(self.configuration) | {0: self.pcr0},
            user_data=bundle.user_data(),
            nonce=nonce,
        )
        return replace(bundle, attestation_document=document).serialize()

    def instance_config(self) -> bytes:
        return InstanceConfig(bytes([self.number]) * 16, self._boot, "process", bytes(32)).encode()

    def _accept(self) -> None:
        while True:
            try:
                channel, _ = self._listener.accept()
            except OSError:
                return
            with self._lock:
                self._open.add(channel)
                self.accepted += 1
            threading.Thread(target=self._serve, args=(channel,), daemon=True).start()

    def _serve(self, channel: socket.socket) -> None:
        with channel, contextlib.suppress(OSError, FrameError):
            shared, whole = False, threading.Lock()
            while (frame := frames.receive_frame(channel)) is not None:
                if frame.type == FrameType.REQUEST:
                    self.budgets.append(frame.budget)
                if frame.type == FrameType.STREAM:
                    self.streams.serve(channel, frame)
                    break
                if frame.type == FrameType.NUMBERED:
                    with self._lock:
                        self.shared += not shared
                    shared = True
                    asked = numbered.first(frame)
                    if asked.type == FrameType.CANCEL:
                        self.given_up.append(asked.number)
                        continue
                    self.budgets.append(frame.budget)
                    threading.Thread(
                        target=self._number, args=(channel, asked, whole), daemon=True
                    ).start()
                else:
                    self._answer(channel, frame)
        with self._lock:
            self._open.discard(channel)

    def _number(
        self, channel: socket.socket, asked: numbered.Numbered, whole: threading.Lock
    ) -> None:
        def reply(kind: int, payload: bytes) -> None:
            with whole:  # long answers would mix
                channel.sendall(b"".join(numbered.answer(asked.number, kind, (payload,))))

        with contextlib.suppress(OSError):
            if asked.type == FrameType.REQUEST and self.configuration:
                self._request(channel, asked.payload, reply)
            else:
                reply(frames.ERROR, frames.encode_error(Code.NOT_CONFIGURED, "no configuration"))

    def _answer(self, channel: socket.socket, frame: frames.Frame) -> None:
        kind, payload = FrameType(frame.type), bytes(frame.payload)
        if not self.configuration and kind not in {FrameType.CONFIGURE, FrameType.HEALTH}:
            frames.send_error(channel, Code.NOT_CONFIGURED, "no configuration yet")
        elif kind is FrameType.REQUEST:
            self._request(channel, payload, lambda *answer: frames.send_frame(channel, *answer))
        elif kind is FrameType.LOAD:
            self._load(channel, cbor.decode(payload)["size"])
        elif kind is FrameType.EVIDENCE and self.evidence_failures:
            frames.send_error(channel, self.evidence_failures.pop(0), "scripted")
        else:
            frames.send_frame(channel, kind | frames.ANSWER, self._control(kind, payload))

    def _control(self, kind: FrameType, payload: bytes) -> bytes:
        if kind is FrameType.EVIDENCE:
            return self.make_evidence(payload or None)
        if kind is FrameType.CONFIGURE:
            self.configuration = payload
            return cbor.encode({"pcr16": evidence.pcr16(payload)})
        if kind is FrameType.CREDENTIALS:
            self.credentials.append(cbor.decode(payload))
            return b""
        if kind is FrameType.COUNTERS:
            return cbor.encode({"counters": self.counters, "histograms": self.histograms})
        models = [
            {"name": name, "version": version, "digest": digest, "ready": True}
            for name, version, digest in self.models
        ]
        state = "ready" if self.configuration else "unconfigured"
        return cbor.encode({"state": state, "form": "process", "models": models})

    def _request(
        self, channel: socket.socket, payload: bytes, reply: Callable[[int, bytes], None]
    ) -> None:
        with self._lock:
            self.requests.append(payload[:64])
        verb, _, argument = payload[:64].split(b" ")[0].partition(b":")
        if verb == b"die":
            self.drop_connections()
            return
        if verb == b"sleep":
            self.released.wait(float(argument))
        if verb == b"silent":
            self.released.wait(30)
            return
        if verb == b"refuse":
            reply(frames.ERROR, frames.encode_error(Code(argument.decode()), "scripted"))
        elif verb == b"cut":
            channel.sendall(b"\x00\x00\x10\x00\x83\x00\x00\x00\x00partial")
            channel.shutdown(socket.SHUT_RDWR)
        else:
            kind = FrameType.EVIDENCE if verb == b"odd" else FrameType.REQUEST
            reply(kind | frames.ANSWER, payload)

    def _load(self, channel: socket.socket, size: int) -> None:
        self.loads += 1
        if self.load_failures:
            frames.send_error(channel, self.load_failures.pop(0), "scripted")
            channel.shutdown(socket.SHUT_RDWR)
            return
        data = b""
        while len(data) < size:
            frame = frames.receive_frame(channel)
            assert frame is not None
            data += bytes(frame.payload)
        header = ModelHeader.parse(data[12 : 12 + int.from_bytes(data[8:12], "big")])
        model = (header.name, header.version, header.digest)
        self.models.append(model)
        answer = dict(zip(("name", "version", "digest"), model, strict=True))
        frames.send_frame(channel, FrameType.LOAD | frames.ANSWER, cbor.encode(answer))
