"""How to reach a host and who asks: TLS, a client certificate, a bearer token (SPEC 9.6.1).

They serve the operator's accounting and keep third parties from the sizes. Nothing inside the seal
rests on them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NoReturn

import grpc

from casemate import limits
from casemate.errors import Code, RequestError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_TOKEN: Final = re.compile(r"[A-Za-z0-9._~+/=-]{16,512}", re.ASCII)  # RFC 6750, not guessable
_LOOPBACK: Final = re.compile(r"(localhost|127(\.\d{1,3}){3}|\[::1\]):\d{1,5}|unix:.*", re.ASCII)


@dataclass(frozen=True, slots=True, repr=False)
class HostAccess:
    """PEM roots turn TLS on; certificate chain and key (PEM) are the caller's; so is the token.

    Raises RequestError(INVALID_ARGUMENT) for what does not go together.
    """

    tls_roots: bytes | None = None
    tls_certificate: bytes | None = None
    tls_key: bytes | None = None
    token: str | None = None

    def __post_init__(self) -> None:
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise _refused("a client certificate and its key go together")
        if self.tls_certificate is not None and self.tls_roots is None:
            raise _refused("a client certificate needs TLS roots")
        if self.token is not None and not _TOKEN.fullmatch(self.token):
            raise _refused("a token has 16 to 512 letters, digits and . _ ~ + / = -")

    @classmethod
    def read(
        cls,
        *,
        tls_roots: Path | None = None,
        tls_certificate: Path | None = None,
        tls_key: Path | None = None,
        token: Path | None = None,
    ) -> HostAccess:
        """Read each part from its file; raises RequestError(INVALID_ARGUMENT), OSError."""
        roots, certificate, key = (
            path.read_bytes() if path else None for path in (tls_roots, tls_certificate, tls_key)
        )
        return cls(roots, certificate, key, _read_token(token) if token else None)

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What each call carries."""
        return () if self.token is None else (("authorization", f"Bearer {self.token}"),)

    def channel(self, target: str, options: Sequence[tuple[str, Any]]) -> grpc.Channel:
        """Open a channel to ``target`` (``host:port``), lazily.

        Raises RequestError(INVALID_ARGUMENT) where the token would cross a network in the clear.
        """
        credentials = self.credentials_for(target)
        if credentials is None:
            return grpc.insecure_channel(target, options=options)
        return grpc.secure_channel(target, credentials, options=options)

    def credentials_for(self, target: str) -> grpc.ChannelCredentials | None:
        """Return TLS credentials, or None for a plain channel; raises as ``channel``."""
        if self.tls_roots is not None:
            key, certificate = self.tls_key, self.tls_certificate
            return grpc.ssl_channel_credentials(self.tls_roots, key, certificate)
        if self.token is not None and not _LOOPBACK.fullmatch(target):
            raise _refused(f"a token goes to {target[:80]} with TLS only")
        return None

    def __repr__(self) -> str:
        return f"HostAccess(tls={self.tls_roots is not None}, ...)"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a token and a private key are not pickled")


def _read_token(path: Path) -> str:
    with path.open("rb") as file:
        data = file.read(limits.TOKEN_FILE_MAX + 1)
    try:
        return data.decode("ascii").strip()
    except UnicodeDecodeError:
        raise _refused("the token's file is not ASCII text") from None


def _refused(detail: str) -> RequestError:
    return RequestError(Code.INVALID_ARGUMENT, detail)
