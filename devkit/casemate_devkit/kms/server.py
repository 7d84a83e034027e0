"""The HTTPS server of the double: loopback only, one thread a connection, keep-alive."""

from __future__ import annotations

import datetime as dt
import logging
import re
import socket
import threading
import time
import uuid
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

from casemate_devkit.kms.access import Call
from casemate_devkit.kms.audit import AuditTrail
from casemate_devkit.kms.errors import KmsError, Reason
from casemate_devkit.kms.faults import FAULTS_FILE, Faults
from casemate_devkit.kms.parameters import decode_parameters, encode_answer, operation_name
from casemate_devkit.kms.service import KmsService
from casemate_devkit.kms.sigv4 import HttpRequest, authenticate
from casemate_devkit.kms.state import STATE_FILE
from casemate_devkit.kms.tls import endpoint_host, server_context

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from casemate_devkit.kms.principals import Principal

Connection = Any  # socketserver's types are wider than what reaches a TCP server
Address = Any

REASON_HEADER = "x-casemate-kms-double-reason"
BODY_MAX = 384 * 1024  # the API's attestation document of 262,144 bytes in base64, and the rest
_CONNECTIONS_MAX = 64  # a demonstration has a handful of clients
_IDLE_S = 30.0
_LOG = logging.getLogger("casemate_devkit.kms")


def _milliseconds() -> int:
    return time.time_ns() // 1_000_000


class KmsServer(ThreadingHTTPServer):
    """The double on 127.0.0.1; ``roots`` are SHA-256 digests of accepted Nitro root certificates.

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
        super().__init__(("127.0.0.1", port), KmsHandler)

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
    """One connection: POST requests of AWS JSON 1.1."""

    protocol_version = "HTTP/1.1"
    timeout = _IDLE_S
    server: KmsServer

    def do_POST(self) -> None:
        """Answer one operation."""
        body = self._body()
        if body is None:
            self.close_connection = True
            fault = KmsError("RequestEntityTooLargeException", "The body is missing or too large.")
            self._send(413, fault.body(), fault.reason)
            return
        headers: dict[str, tuple[str, ...]] = {}
        for name, value in self.headers.items():
            headers[name.lower()] = (*headers.get(name.lower(), ()), value.strip())
        request = HttpRequest("POST", self.path, headers, body)
        try:
            status, answer, reason = respond(self.server, request)
        except ConnectionAbortedError:
            self.close_connection = True
            return
        self._send(status, answer, reason)

    def _body(self) -> bytes | None:
        lengths = self.headers.get_all("Content-Length", [])
        if "Transfer-Encoding" in self.headers or len(lengths) != 1:
            return None
        if re.fullmatch(r"[0-9]{1,7}", lengths[0], re.ASCII) is None or int(lengths[0]) > BODY_MAX:
            return None
        return self.rfile.read(int(lengths[0]))

    def _send(self, status: int, body: bytes, reason: Reason | None) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/x-amz-json-1.1")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("x-amzn-RequestId", str(uuid.uuid4()))
        if reason is not None:
            self.send_header(REASON_HEADER, reason.header())
        self.end_headers()
        self.wfile.write(body)

    def version_string(self) -> str:
        """Name no versions."""
        return "casemate-kms-double"

    def log_message(self, *_: object) -> None:
        """Say nothing: the audit trail has every request."""


def respond(server: KmsServer, request: HttpRequest) -> tuple[int, bytes, Reason | None]:
    """Return status, body and, for an error, the reason; writes the audit trail."""
    event: dict[str, Any] = {"eventSource": "kms.amazonaws.com"}
    event["eventTime"] = dt.datetime.now(dt.UTC).isoformat(timespec="milliseconds")
    try:
        answer = _serve(server, request, event)
    except KmsError as fault:
        refused = {"decision": "refused", "errorCode": fault.kind, "reason": fault.reason.text}
        server.audit.write(event | refused)
        return fault.status, fault.body(), fault.reason
    except ConnectionAbortedError:
        server.audit.write(event | {"decision": "failed", "reason": "fault: disconnect"})
        raise
    except Exception as error:  # noqa: BLE001 - a bug must not end as a traceback of secrets
        # The class only: a message could quote what was decrypted.
        _LOG.error("internal failure: %s", type(error).__name__)
        server.audit.write(event | {"decision": "failed", "reason": type(error).__name__})
        failed = KmsError("KMSInternalException", "The double failed.")
        return 500, failed.body(), failed.reason
    return 200, answer, None


def _serve(server: KmsServer, request: HttpRequest, event: dict[str, Any]) -> bytes:
    if request.target != "/":
        raise KmsError("UnknownOperationException", "Operations are sent to /.")
    operation = operation_name(request.header("x-amz-target"))
    event["eventName"] = operation
    principal, region = authenticate(
        request,
        server.principals,
        region=_host_region(server, request),
        now=dt.datetime.now(dt.UTC),
    )
    event |= {"principal": principal.arn, "awsRegion": region}
    if region not in server.regions.values():
        raise KmsError("InvalidSignatureException", "The double does not serve this region.")
    _strike(server.faults, operation)
    parameters = decode_parameters(operation, request.body)
    call = Call(principal, region, operation, parameters, server.faults)
    try:
        answer = encode_answer(server.service.answer(call))
    finally:
        event |= _observed(call)
    server.audit.write(event | {"decision": "allowed", "reason": call.reason.text})
    return answer


def _strike(faults: Faults, operation: str) -> None:
    """Let faults take the place of the answer."""
    seconds = faults.take("slow", operation)
    if seconds is not None:
        time.sleep(seconds)
    if faults.take("disconnect", operation) is not None:
        raise ConnectionAbortedError
    if faults.take("throttle", operation) is not None:
        text = "You have exceeded the rate at which you may call KMS."
        raise KmsError("ThrottlingException", text, Reason("fault", "throttle"))
    status = faults.take("error", operation)
    if status is not None:
        reason = Reason("fault", "error")
        raise KmsError("KMSInternalException", "Fault.", reason, status=int(status))


def _host_region(server: KmsServer, request: HttpRequest) -> str | None:
    """Return the region of the endpoint that Host names; None on a loopback name."""
    host = (request.header("host") or "").rpartition(":")[0] or request.header("host") or ""
    if host in {"localhost", "127.0.0.1"}:
        return None
    if host not in server.regions:
        raise KmsError("UnknownOperationException", "The double does not serve this host name.")
    return server.regions[host]


def _observed(call: Call) -> dict[str, Any]:
    """Return what the audit trail may say: names, contexts and registers, never content."""
    shown = ("KeyId", "SourceKeyId", "DestinationKeyId", "EncryptionContext")
    observed: dict[str, Any] = {
        "requestParameters": {
            name: call.parameters[name] for name in shown if name in call.parameters
        },
        "resources": call.keys,
    }
    if call.recipient is not None:
        observed["additionalEventData"] = {"recipient": call.recipient.record()}
    if call.unknown:
        observed["notUnderstood"] = call.unknown
    return observed
