"""KMS as an enclave meets it: TLS with a private CA, behind an egress proxy on a unix socket.

What the server answers is each test's choice; it checks nothing (that is the KMS double's part).
"""

from __future__ import annotations

import base64
import contextlib
import datetime as dt
import json
import socket
import ssl
import struct
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from tests.support.cms_builder import Envelope

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

REGION = "eu-central-1"
HOST = f"kms.{REGION}.amazonaws.com"
ARN = f"arn:aws:kms:{REGION}:111122223333:key/01234567-89ab-cdef-0123-456789abcdef"
OTHER_ARN = ARN.replace("0123-", "3210-")
DATA_KEY = bytes(range(32))
DOCUMENT = b"attestation document "
ERROR_TYPE = "__type"

Answer = tuple[int, bytes]


class Authority:
    """A private CA; ``leaf`` writes a server's chain and key for ``ssl``."""

    def __init__(self, name: str = "Casemate test CA") -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        builder = self._builder(self._name, self._key.public_key())
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), True)
        self.der = builder.sign(self._key, hashes.SHA256()).public_bytes(Encoding.DER)

    def _builder(
        self, subject: x509.Name, public_key: ec.EllipticCurvePublicKey
    ) -> x509.CertificateBuilder:
        now = dt.datetime.now(dt.UTC)
        builder = x509.CertificateBuilder().subject_name(subject).issuer_name(self._name)
        builder = builder.public_key(public_key).serial_number(x509.random_serial_number())
        return builder.not_valid_before(now - dt.timedelta(hours=1)).not_valid_after(
            now + dt.timedelta(days=1)  # longer than all tests take on any machine
        )

    def server_context(self, folder: Path, host: str) -> ssl.SSLContext:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host)])
        builder = self._builder(subject, key.public_key())
        names = x509.SubjectAlternativeName([x509.DNSName(host)])
        certificate = builder.add_extension(names, False).sign(self._key, hashes.SHA256())
        path = folder / f"{host}.pem"
        path.write_bytes(
            certificate.public_bytes(Encoding.PEM)
            + key.private_bytes(
                Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(path)
        return context


@dataclass
class Seen:
    """One request as the server received it."""

    headers: dict[str, str]
    body: dict[str, Any]
    peer: int

    @property
    def document(self) -> bytes:
        return base64.b64decode(self.body["Recipient"]["AttestationDocument"])


@dataclass
class Kms:
    """The server's side: ``answers`` are used up one for each request, the last one for ever."""

    answers: list[Callable[[Seen], Answer]]
    seen: list[Seen] = field(default_factory=list)
    keep_alive: bool = True
    idle: float | None = None  # seconds until the server closes a silent connection, unannounced
    extra: bytes = b""  # follows each body in the same TLS record
    dribble: float = 0  # seconds between the bytes of a body, each a TLS record of its own
    closed: int = 0  # connections

    def answer(self, request: Seen) -> Answer:
        self.seen.append(request)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        return answer(request)


def sealed_to(document: bytes, content: bytes = DATA_KEY) -> bytes:
    """Return the envelope for the key in ``document``, made by ``FakeAttester``."""
    return Envelope(content, document.removeprefix(DOCUMENT)[8:]).encode()


def granted(content: bytes = DATA_KEY, **changes: object) -> Callable[[Seen], Answer]:
    """Answer as KMS does; ``changes`` replace members, None removes one."""

    def answer(request: Seen) -> Answer:
        members: dict[str, object] = {
            "CiphertextForRecipient": b64(sealed_to(request.document, content)),
            "EncryptionAlgorithm": "SYMMETRIC_DEFAULT",
            "KeyId": request.body["KeyId"],
        }
        members = {k: v for k, v in (members | changes).items() if v is not None}
        return 200, json.dumps(members).encode()

    return answer


def refused(code: str, status: int = 400) -> Callable[[Seen], Answer]:
    """Answer with an error as KMS words it."""
    body = {ERROR_TYPE: code, "message": "User: arn:aws:iam::1:role/secret-role may not"}
    return lambda _request: (status, json.dumps(body).encode())


def raw(body: bytes, status: int = 200) -> Callable[[Seen], Answer]:
    return lambda _request: (status, body)


def held(go: threading.Event) -> Callable[[Seen], Answer]:
    """Answer once ``go`` is set."""

    def answer(request: Seen) -> Answer:
        go.wait(100)
        return granted()(request)

    return answer


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


class FakeAttester:
    """Makes "documents" that hold a counter and the public key, and remembers what was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[bytes | None, bytes | None]] = []

    def attest(
        self, *, public_key: bytes | None, user_data: bytes | None, nonce: bytes | None
    ) -> bytes:
        self.asked.append((user_data, nonce))
        return DOCUMENT + struct.pack(">Q", len(self.asked)) + (public_key or b"")


@contextlib.contextmanager
def serving(kms: Kms, context: ssl.SSLContext) -> Iterator[int]:
    """Serve ``kms`` over TLS on a loopback port."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            peer = self.client_address[1]
            status, answer = kms.answer(Seen(dict(self.headers), body, peer))
            self.send_response(status)
            self.send_header("Content-Type", "application/x-amz-json-1.1")
            self.send_header("Content-Length", str(len(answer)))
            if not kms.keep_alive:
                self.send_header("Connection", "close")
            self.end_headers()
            answer += kms.extra
            step = 1 if kms.dribble else len(answer)
            for at in range(0, len(answer), step or 1):
                self.wfile.write(answer[at : at + step])
                time.sleep(kms.dribble)
            self.connection.settimeout(kms.idle)

        def log_message(self, *_args: object) -> None:
            """Keep quiet."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        block_on_close = False

        def finish_request(self, request: Any, client_address: Any) -> None:  # noqa: ANN401
            with contextlib.suppress(OSError):  # a client that refuses our certificate
                wrapped = context.wrap_socket(request, server_side=True)
                try:
                    super().finish_request(wrapped, client_address)
                finally:
                    wrapped.close()
                    kms.closed += 1

        def handle_error(self, *_args: object) -> None:
            """Keep quiet."""

    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


@dataclass
class Egress:
    """The host's proxy: maps each name to a loopback port, and may misbehave."""

    path: str
    ports: dict[str, int]
    verdict: bytes | None = None  # replaces the honest one; b"": closes without a word
    drip: float = 0  # seconds between the bytes that go back to the enclave
    swallow: bool = False  # connects, then never answers
    names: list[str] = field(default_factory=list)
    ended: int = 0  # streams that were connected, and of which the enclave's end is shut, too

    def serve(self, stream: socket.socket) -> None:
        with stream, contextlib.suppress(OSError):
            head = stream.recv(4, socket.MSG_WAITALL)
            if len(head) < 4:
                return  # whoever connected had no time left to ask
            (size,) = struct.unpack(">I", head)
            name = stream.recv(size, socket.MSG_WAITALL).decode()
            self.names.append(name)
            verdict = self.verdict
            if verdict is None:
                verdict = b"\x00" if name in self.ports else b"\x01"
            stream.sendall(verdict)
            if verdict != b"\x00":
                return
            if self.swallow:
                while stream.recv(4096):
                    pass
                return
            self._relay(stream, self.ports[name])
            self.ended += 1

    def _relay(self, stream: socket.socket, port: int) -> None:
        with socket.create_connection(("127.0.0.1", port)) as server:
            onward = threading.Thread(target=self._copy, args=(stream, server), daemon=True)
            onward.start()
            self._copy(server, stream, self.drip)
            onward.join()

    @staticmethod
    def _copy(source: socket.socket, target: socket.socket, drip: float = 0) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 if drip else 65536):
                time.sleep(drip)
                target.sendall(data)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def proxying(egress: Egress) -> Iterator[None]:
    """Serve ``egress`` on its unix socket."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(egress.path)
        listener.listen()
        thread = threading.Thread(target=_accept, args=(listener, egress), daemon=True)
        thread.start()
        try:
            yield
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def _accept(listener: socket.socket, egress: Egress) -> None:
    with contextlib.suppress(OSError):
        while True:
            stream, _ = listener.accept()
            threading.Thread(target=egress.serve, args=(stream,), daemon=True).start()
