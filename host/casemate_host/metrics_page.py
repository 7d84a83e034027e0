"""The metrics page: HTTP on an address of the operator's own, ``GET /metrics`` and nothing else."""

from __future__ import annotations

import socketserver
import threading
from http.server import HTTPServer
from typing import TYPE_CHECKING, Any

from prometheus_client.exposition import MetricsHandler

from casemate import limits
from casemate.errors import CasemateError, Code
from casemate_host.admission import Slots

if TYPE_CHECKING:
    import socket

    from prometheus_client import CollectorRegistry


class _Handler(MetricsHandler):
    timeout = limits.METRICS_TIMEOUT_S

    def do_GET(self) -> None:  # noqa: N802 - the name is http.server's
        """Answer for ``/metrics`` alone."""
        if self.path.partition("?")[0] != "/metrics":
            self.send_error(404)
            return
        super().do_GET()


class _Server(socketserver.ThreadingMixIn, HTTPServer):
    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, address: tuple[str, int], registry: CollectorRegistry) -> None:
        self._slots = Slots(limits.METRICS_READERS_MAX)
        super().__init__(address, type("Handler", (_Handler,), {"registry": registry}))

    def process_request(self, request: socket.socket, client_address: Any) -> None:  # type: ignore[override]  # noqa: ANN401 - as the base class
        try:
            self._slots.take()
        except CasemateError:
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: socket.socket, client_address: Any) -> None:  # type: ignore[override]  # noqa: ANN401 - as the base class
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._slots.free()

    def handle_error(self, request: object, client_address: object) -> None:
        """Nothing: a reader that went away is no event."""


class MetricsPage:
    """Serves one registry until it is stopped."""

    def __init__(self, listen: tuple[str, int], registry: CollectorRegistry) -> None:
        """Bind ``listen``, (host, port); raises CasemateError(UNAVAILABLE)."""
        try:
            self._server = _Server(listen, registry)
        except OSError as error:
            detail = f"cannot listen on {listen[0]}:{listen[1]}: {error.strerror}"
            raise CasemateError(Code.UNAVAILABLE, detail) from None
        self.address = f"{listen[0]}:{self._server.server_port}"
        self._thread = threading.Thread(
            target=self._server.serve_forever, name="metrics", daemon=True
        )

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def stop(self) -> None:
        """Close the port."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
