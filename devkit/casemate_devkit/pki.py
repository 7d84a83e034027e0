"""A throw-away Nitro PKI of the real shape: five levels, P-384, AWS's lifetimes and names.

Parties of a trial pin this PKI's root exactly as production pins AWS's, so the verifier that runs
is the production one. Only the root persists; everything below it is made anew by each process and
renewed while it runs, so that no document is ever signed by an expired certificate.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import os
import re
import secrets
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn, Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from casemate_devkit import certificates
from casemate_devkit.errors import DevkitError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_HOUR = 3600.0
_DAY = 24 * _HOUR
_PRIVATE = 0o600
_MODULE_ID = re.compile(r"i-[0-9a-f]{17}-enc[0-9a-f]{16}")
_AUTHORITY = "root.pem"
_ROOT = "root.der"

# A certificate is replaced while it has this long to live, so that whatever it issues ends before
# it.
_RENEWAL = {
    certificates.Level.REGIONAL: 8 * _DAY,
    certificates.Level.ZONAL: 30 * _HOUR,
    certificates.Level.INSTANCE: 5 * _HOUR,
    certificates.Level.LEAF: 0.5 * _HOUR,
}


@dataclass(frozen=True, slots=True, repr=False)
class Issued:
    """A certificate with its private key; ``cabundle`` holds its issuers as DER, root first."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate
    cabundle: tuple[bytes, ...]

    @property
    def der(self) -> bytes:
        """The certificate's DER."""
        return self.certificate.public_bytes(serialization.Encoding.DER)

    def __repr__(self) -> str:
        return f"Issued({self.certificate.subject.rfc4514_string()}, key redacted)"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a private key does not leave its process")


class NitroPki:
    """The certificate authorities of one simulated region, and its one simulated instance.

    ``region`` names it in every certificate; ``clock`` gives seconds since the epoch. Thread-safe.
    """

    def __init__(
        self,
        root: Issued,
        *,
        region: str = "us-east-1",
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._root = root
        self._region = region
        self._clock = clock
        self._lock = threading.Lock()
        self._made: dict[tuple[certificates.Level, str], Issued] = {}

    @classmethod
    def create(
        cls,
        directory: Path | None = None,
        *,
        region: str = "us-east-1",
        clock: Callable[[], float] = time.time,
    ) -> Self:
        """Make a PKI, or open the one in ``directory``; without one it lives in memory only.

        The directory gets ``root.pem`` (key and certificate, mode 0600) and ``root.der``, what
        verifiers pin. Raises DevkitError if the key there is readable by others, or not a PKI's.
        """
        root = _new_root(clock()) if directory is None else _stored_root(directory, clock())
        return cls(root, region=region, clock=clock)

    @property
    def root_der(self) -> bytes:
        """The root certificate's DER."""
        return self._root.der

    @property
    def root_sha256(self) -> bytes:
        """What trust policies list in ``roots`` (SPEC 12.1): SHA-256 of ``root_der``, 32 bytes."""
        return hashlib.sha256(self.root_der).digest()

    @property
    def instance_id(self) -> str:
        """``i-`` and 17 hex digits; stable for one root, as it is for one real parent instance."""
        return f"i-0{hashlib.sha256(b'instance' + self.root_der).hexdigest()[:16]}"

    def new_module_id(self) -> str:
        """A new enclave's ``<instance id>-enc<16 hex>``: the time and 16 random bits."""
        milliseconds = int(self._clock() * 1000)
        return f"{self.instance_id}-enc{milliseconds:012x}{secrets.randbits(16):04x}"

    def leaf(self, module_id: str) -> Issued:
        """What signs the documents of ``module_id``, valid for half an hour at least.

        Raises ValueError for an identity that no enclave has.
        """
        if not _MODULE_ID.fullmatch(module_id):
            raise ValueError("not i-<17 hex>-enc<16 hex>")
        with self._lock:
            return self._issued(certificates.Level.LEAF, module_id)

    def _issued(self, level: certificates.Level, module_id: str) -> Issued:
        if level is certificates.Level.ROOT:
            return self._root
        subject = (
            module_id.partition("-enc")[0] if level is certificates.Level.INSTANCE else module_id
        )
        shared = level in {certificates.Level.REGIONAL, certificates.Level.ZONAL}
        slot = (level, "" if shared else subject)
        held = self._made.get(slot)
        remaining = (
            held.certificate.not_valid_after_utc.timestamp() - self._clock() if held else 0.0
        )
        if held is None or remaining < _RENEWAL[level]:
            issuer = self._issued(certificates.Level(level - 1), module_id)
            held = self._made[slot] = self._issue(level, subject, issuer)
        return held

    def _issue(self, level: certificates.Level, subject: str, issuer: Issued) -> Issued:
        key = ec.generate_private_key(ec.SECP384R1())
        builder = certificates.template(
            level,
            subject=certificates.name(level, self._region, subject),
            issuer=issuer.certificate,
            public_key=key.public_key(),
            now=dt.datetime.fromtimestamp(int(self._clock()), dt.UTC),
        )
        made = builder.sign(issuer.key, hashes.SHA384())
        return Issued(key, made, (*issuer.cabundle, issuer.der))


def _new_root(now: float) -> Issued:
    key = ec.generate_private_key(ec.SECP384R1())
    builder = certificates.template(
        certificates.Level.ROOT,
        subject=certificates.name(certificates.Level.ROOT, "", ""),
        issuer=None,
        public_key=key.public_key(),
        now=dt.datetime.fromtimestamp(int(now), dt.UTC),
    )
    return Issued(key, builder.sign(key, hashes.SHA384()), ())


def _stored_root(directory: Path, now: float) -> Issued:
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    stored = directory / _AUTHORITY
    if not stored.exists():
        _store(directory, _new_root(now))
    root = _load(stored)
    if not (directory / _ROOT).exists():
        _write(directory / _ROOT, root.der, 0o644)
    return root


def _store(directory: Path, root: Issued) -> None:
    pem = root.key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    ) + root.certificate.public_bytes(serialization.Encoding.PEM)
    _write(directory / _AUTHORITY, pem, _PRIVATE)


def _write(path: Path, content: bytes, mode: int) -> None:
    """Write a whole file or none; the first of several writers wins."""
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            file.write(content)
        os.link(draft, path)
    except FileExistsError:
        return
    finally:
        draft.unlink(missing_ok=True)


def _load(path: Path) -> Issued:
    if path.stat().st_mode & 0o077:
        raise DevkitError(
            f"{path} is a private key that others may read: chmod 600 it, or make a new PKI"
        )
    try:
        pem = path.read_bytes()
        key = serialization.load_pem_private_key(pem, None)
        certificate = x509.load_pem_x509_certificate(pem)
    except ValueError:
        raise DevkitError(f"{path} does not hold a root key and its certificate") from None
    if (
        not isinstance(key, ec.EllipticCurvePrivateKey)
        or key.public_key() != certificate.public_key()
    ):
        raise DevkitError(f"{path} does not hold a root key and its certificate")
    return Issued(key, certificate, ())
