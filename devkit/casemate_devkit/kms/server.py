"""The HTTPS server of the double: one thread a connection, keep-alive, loopback by default."""

from __future__ import annotations

import dataclasses
import logging
import re
import socket
import threading
import time
import uuid
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

from casemate_devkit.kms.audit import AuditTrail
from casemate_devkit.kms.dispatch import respond
from casemate_devkit.kms.errors import HttpAnswer, KmsError
from casemate_devkit.kms.faults import FAULTS_FILE, Faults
from casemate_devkit.kms.service import KmsService
from casemate_devkit.kms.sigv4 import KMS, HttpRequest, claimed_service
from casemate_devkit.kms.state import STATE_FILE
from casemate_devkit.kms.tls import endpoint_host, server_context

if TYPE_CHECKING:
    from collections.abc import Sequence
    from io import BufferedIOBase
    from pathlib import Path

    from casemate_devkit.kms.principals import Principal

Connection = Any  # socketserver's types are wider than what reaches a TCP server
Address = Any

BODY_MAX = 384 * 1024  # the API's attestation document of 262,144 bytes in base64, and the rest
OBJECT_MAX = 64 * 1024 * 1024  # for other services: a sealed model of a test, not of a product
_LENGTH = re.compile(r"[0-9]{1,9}", re.ASCII)
_CHUNK = re.compile(rb"([0-9A-Fa-f]{1,8})(?:;[^\r\n]*)?\r\n")
_LINE_MAX = 1024
_TRAILERS_MAX = 16
_OWN_HEADERS = {"connection", "content-length", "date", "server", "transfer-encoding"}
_CONNECTIONS_MAX = 64  # a demonstration has a handful of clients
_IDLE_S = 30.0
_LOG = logging.getLogger("casemate_devkit.kms")


def _milliseconds() -> int:
    return time.time_ns() // 1_000_000


class KmsServer(ThreadingHTTPServer):
    """The double; ``roots`` are SHA-256 digests of accepted Nitro root certificates.

    Raises OSError if the port is taken, ValueError if no root, principal or region is given.
    """

    daemon_threads = True
    allow_reuse_address = True

    def __init__(
        self,
        directory: Path,
        *,
        roots: frozenset[bytes],
        principals: Sequence[Principal],
        regions: Sequence[str],
        address: str = "127.0.0.1",
        port: int = 0,
        faults: Sequence[str] = (),
    ) -> None:
        if not roots or not principals or not regions:
            msg = "the double needs a Nitro root, a principal and a region"
            raise ValueError(msg)
        self.regions = {endpoint_host(region): region for region in regions}
        self.principals = {item.access_key_id: item for item in principals}
        if len(self.principals) != len(principals):
            msg = "two principals have the same access key id"
            raise ValueError(msg)
        self.audit = AuditTrail(directory / "audit.jsonl")
        self.faults = Faults(faults, directory / FAULTS_FILE)
        self.service = KmsService(roots, _milliseconds, directory / STATE_FILE)
        self._tls = server_context(directory, regions)
        self._slots = threading.BoundedSemaphore(_CONNECTIONS_MAX)
        self._open: set[socket.socket] = set()
        super().__init__((address, port), KmsHandler)

    def process_request_thread(self, request: Connection, client_address: Address) -> None:
        """Serve one connection; TLS starts here, so that a slow peer holds up only itself."""
        if not self._slots.acquire(blocking=False):
            self.shutdown_request(request)
            return
        try:
            request.settimeout(_IDLE_S)
            secured = self._tls.wrap_socket(request, server_side=True)
        except (OSError, ValueError):
            self.shutdown_request(request)
        else:
            self._open.add(secured)
            super().process_request_thread(secured, client_address)
            self._open.discard(secured)
        finally:
            self._slots.release()

    def serve_forever(self, poll_interval: float = 0.05) -> None:
        """Serve until ``stop``, which takes ``poll_interval`` seconds at most."""
        super().serve_forever(poll_interval)

    def stop(self) -> None:
        """Stop serving, free the port and end the connections that are open."""
        self.shutdown()
        self.server_close()
        for connection in list(self._open):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, *_: object) -> None:
        """Log that a connection failed, without a traceback and without its content."""
        _LOG.info("a connection ended early")


class KmsHandler(BaseHTTPRequestHandler):
    """One connection: requests of AWS JSON 1.1 for KMS, and whatever moto's services take."""

    protocol_version = "HTTP/1.1"
    timeout = _IDLE_S
    disable_nagle_algorithm = True  # head and body go apart: the body would wait up to 40 ms
    server: KmsServer

    def do_POST(self) -> None:
        """Answer one operation."""
        body = self._body()
        if body is None:
            self.close_connection = True
            fault = KmsError("RequestEntityTooLargeException", "The body is missing or too large.")
            self._send(dataclasses.replace(fault.answer(), status=413))
            return
        headers: dict[str, tuple[str, ...]] = {}
        for name, value in self.headers.items():
            headers[name.lower()] = (*headers.get(name.lower(), ()), value.strip())
        request = HttpRequest(self.command, self.path, headers, body)
        try:
            self._send(respond(self.server, request))
        except ConnectionAbortedError:
            self.close_connection = True

    do_DELETE = do_GET = do_HEAD = do_PUT = do_POST  # noqa: N815 - names of http.server

    def _body(self) -> bytes | None:
        """Return the body, None if it is too large or its length is not stated as AWS does."""
        lengths = self.headers.get_all("Content-Length", [])
        codings = self.headers.get_all("Transfer-Encoding", [])
        maximum = BODY_MAX
        if claimed_service(self.headers.get("Authorization")) != KMS:
            maximum = OBJECT_MAX
            if codings == ["chunked"] and not lengths:
                return read_chunked(self.rfile, maximum)
            lengths = lengths or ["0"]
        if codings or len(lengths) != 1 or _LENGTH.fullmatch(lengths[0]) is None:
            return None
        return self.rfile.read(int(lengths[0])) if int(lengths[0]) <= maximum else None

    def _send(self, answer: HttpAnswer) -> None:
        self.send_response(answer.status)
        length = str(len(answer.body))
        for name, value in answer.headers.items():
            if name.lower() == "content-length" and self.command == "HEAD":
                length = value
            elif name.lower() not in _OWN_HEADERS:
                self.send_header(name, value)
        self.send_header("Content-Length", length)
        self.send_header("x-amzn-RequestId", str(uuid.uuid4()))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body)

    def version_string(self) -> str:
        """Name no versions."""
        return "casemate-kms-double"

    def log_message(self, *_: object) -> None:
        """Say nothing: the audit trail has every request."""


def read_chunked(stream: BufferedIOBase, maximum: int) -> bytes | None:
    """Return a body in chunks (RFC 9112 7.1); None if it is malformed or too large."""
    body = bytearray()
    while match := _CHUNK.fullmatch(stream.readline(_LINE_MAX)):
        size = int(match[1], 16)
        if size == 0:
            return bytes(body) if _skip_trailers(stream) else None
        if len(body) + size > maximum:
            return None
        body += stream.read(size)
        if stream.read(2) != b"\r\n":
            return None
    return None


def _skip_trailers(stream: BufferedIOBase) -> bool:
    lines = (stream.readline(_LINE_MAX) for _ in range(_TRAILERS_MAX))
    return any(line == b"\r\n" for line in lines)
