"""botocore's requests over egress streams, in TLS that trusts the configured roots only.

It answers botocore's ``before-send`` event, so botocore signs and parses, and never opens a
connection of its own: signing is its business, the network is this module's (SPEC 10.1).
"""

from __future__ import annotations

import http.client
import io
import select
import ssl
import threading
import time
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from botocore.awsrequest import AWSResponse
from botocore.exceptions import (
    ConnectionClosedError,
    EndpointConnectionError,
    ProxyConnectionError,
    ReadTimeoutError,
    SSLError,
)

from casemate import limits
from casemate.errors import Code, KeyReleaseError
from casemate_kms.deadline import remaining
from casemate_kms.egress import EgressRefusedError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from botocore.awsrequest import AWSPreparedRequest
    from typing_extensions import Buffer

    from casemate_kms.egress import Dial

_PORT: Final = 443


def trusting(roots: Iterable[bytes]) -> ssl.SSLContext:
    """Return a client context that trusts exactly ``roots`` (DER certificates).

    Raises KeyReleaseError(MALFORMED). It reads no file and no environment variable: neither the
    system's roots nor SSL_CERT_FILE nor SSLKEYLOGFILE.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # checks chain and host name
    context.hostname_checks_common_name = False  # only what the certificate states as its names
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    context.sslsocket_class = _DeadlineSocket
    for root in roots:
        try:
            context.load_verify_locations(cadata=root)
        except (ssl.SSLError, ValueError):
            raise KeyReleaseError(Code.MALFORMED, "a TLS root is not a certificate") from None
    return context


class _DeadlineSocket(ssl.SSLSocket):
    """Gives every read the time that is left, so that dripped records cannot add up."""

    def recv_into(self, buffer: Buffer, nbytes: int | None = None, flags: int = 0) -> int:
        self.settimeout(remaining())
        return super().recv_into(buffer, nbytes, flags)


class _Connection(http.client.HTTPSConnection):
    def __init__(self, host: str, context: ssl.SSLContext, dial: Dial) -> None:
        super().__init__(host, _PORT, context=context)
        self._tls = context
        self._dial = dial
        self._tls_socket: ssl.SSLSocket | None = None
        self.idle_since = 0.0

    def connect(self) -> None:
        raw = self._dial(self.host, self.port)
        try:
            raw.settimeout(remaining())
            self.sock = self._tls_socket = self._tls.wrap_socket(
                raw, server_hostname=self.host, suppress_ragged_eofs=False
            )
        except BaseException:
            raw.close()
            raise

    @property
    def reusable(self) -> bool:
        """Whether the idle connection is young and silent.

        One with something to read was closed by KMS, or holds what nobody asked for.
        """
        sock = self._tls_socket
        if sock is None or sock.pending() or time.monotonic() - self.idle_since > limits.KMS_IDLE_S:
            return False
        poll = select.poll()
        poll.register(sock, select.POLLIN)
        return not poll.poll(0)


class _Body(io.BytesIO):
    """A body already received, with the one method of urllib3's responses that botocore calls."""

    def stream(self) -> Iterator[bytes]:
        yield self.read()


class RegionTransport:
    """Sends requests to one KMS endpoint; safe to share between threads."""

    def __init__(self, host: str, context: ssl.SSLContext, dial: Dial) -> None:
        self._host = host
        self._context = context
        self._dial = dial
        self._lock = threading.Lock()
        self._idle: list[_Connection] = []

    @property
    def endpoint_url(self) -> str:
        """The only endpoint that requests may name."""
        return f"https://{self._host}"

    def send(self, request: AWSPreparedRequest, **_event: object) -> AWSResponse:
        """Handle ``before-send``: always an answer or one of botocore's errors, never None.

        None would let botocore send the request itself.
        """
        url = self.endpoint_url
        try:
            return self._send(request)
        except EgressRefusedError as error:
            raise ProxyConnectionError(proxy_url=url, error=error.detail) from None
        except KeyReleaseError as error:
            raise EndpointConnectionError(endpoint_url=url, error=error.detail) from None
        except TimeoutError:
            raise ReadTimeoutError(endpoint_url=url) from None
        except ssl.SSLCertVerificationError as error:
            raise SSLError(endpoint_url=url, error=error.verify_message) from None
        except (http.client.IncompleteRead, ssl.SSLEOFError, ssl.SSLZeroReturnError):
            raise ConnectionClosedError(endpoint_url=url) from None
        except ssl.SSLError:
            raise SSLError(endpoint_url=url, error="handshake or record refused") from None
        except OSError:
            raise ConnectionClosedError(endpoint_url=url) from None

    def close(self) -> None:
        """Close idle connections."""
        with self._lock:
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def _send(self, request: AWSPreparedRequest) -> AWSResponse:
        parts = urlsplit(request.url)
        if (parts.scheme, parts.netloc) != ("https", self._host):
            raise KeyReleaseError(Code.KEY_RELEASE_UNAVAILABLE, "not the configured endpoint")
        connection = self._take()
        try:
            answer = _exchange(connection, request, parts.path or "/")
        except BaseException:
            connection.close()
            raise
        self._give(connection)
        return answer

    def _take(self) -> _Connection:
        while True:
            with self._lock:
                connection = self._idle.pop() if self._idle else None
            if connection is None:
                return _Connection(self._host, self._context, self._dial)
            if connection.reusable:
                return connection
            connection.close()

    def _give(self, connection: _Connection) -> None:
        connection.idle_since = time.monotonic()
        with self._lock:
            if connection.sock is not None and len(self._idle) < limits.KMS_IDLE_CONNECTIONS:
                self._idle.append(connection)
                return
        connection.close()


def _exchange(connection: _Connection, request: AWSPreparedRequest, path: str) -> AWSResponse:
    if connection.sock is not None:
        connection.sock.settimeout(remaining())
    headers = {name: _text(value) for name, value in request.headers.items()}
    connection.request(request.method, path, body=request.body, headers=headers)
    answer = connection.getresponse()
    try:
        body = answer.read(limits.KMS_ANSWER_MAX + 1)
        ended, missing = answer.isclosed(), answer.length
    finally:
        answer.close()
    if len(body) > limits.KMS_ANSWER_MAX:
        raise http.client.HTTPException("answer too long")
    if not ended:  # by its framing; what follows on the connection would be read as its rest
        connection.close()
        if missing:
            raise ConnectionError("answer cut short")
    return AWSResponse(request.url, answer.status, dict(answer.getheaders()), _Body(body))


def _text(value: str | bytes) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else value
