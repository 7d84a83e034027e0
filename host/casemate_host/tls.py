"""TLS of the front: certificates are read anew when their files change, without a restart."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import grpc

from casemate_host.events import log

if TYPE_CHECKING:
    from casemate_host.config import TlsConfig


class _Files:
    """The present content of the files, as gRPC asks for it before each handshake."""

    def __init__(self, config: TlsConfig) -> None:
        self._config = config
        self._lock = threading.Lock()
        self._stamps = self._look()
        self.current = self._read()

    def renewed(self) -> grpc.ServerCertificateConfiguration | None:
        """Return the new content if a file changed; a pair that cannot be read is not taken."""
        with self._lock:
            try:
                stamps = self._look()
                if stamps == self._stamps:
                    return None
                renewed = self._read()
            except OSError as error:
                log.warning("tls_not_renewed", detail=str(error.strerror))
                return None
            self._stamps = stamps
        log.info("tls_renewed")
        return renewed

    def _look(self) -> tuple[tuple[int, int], ...]:
        paths = (self._config.certificate, self._config.key, self._config.client_ca)
        states = [path.stat() for path in paths if path is not None]
        return tuple((state.st_mtime_ns, state.st_size) for state in states)

    def _read(self) -> grpc.ServerCertificateConfiguration:
        pair = self._config.key.read_bytes(), self._config.certificate.read_bytes()
        authority = self._config.client_ca
        return grpc.ssl_server_certificate_configuration(
            [pair], root_certificates=authority.read_bytes() if authority else None
        )


def server_credentials(config: TlsConfig) -> grpc.ServerCredentials:
    """Return the front's credentials; with a client CA every connection needs a certificate.

    Raises OSError if a file cannot be read.
    """
    files = _Files(config)
    return grpc.dynamic_ssl_server_credentials(
        files.current,
        files.renewed,  # type: ignore[arg-type]  # None: as before; the stubs do not know it
        require_client_authentication=config.client_ca is not None,
    )
