"""The bytes of an attestation document as today's Nitro Security Module writes them.

Not deterministic CBOR: the payload is a map of indefinite length in a fixed field order. Readers
that were written from AWS's text alone break on exactly that, which is why the simulator does the
same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from casemate import cbor
from casemate.limits import PCR_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from casemate_devkit.pki import Issued

PROTECTED: Final = bytes.fromhex("a1013822")  # {1: -35}: ES384
_EMPTY_MAP: Final = b"\xa0"
_ARRAY_OF_4: Final = b"\x84"
_BREAK: Final = b"\xff"
_INDEFINITE_MAP: Final = b"\xbf"


@dataclass(frozen=True, slots=True, kw_only=True)
class Statement:
    """What a document says but for its signer; registers are 48 bytes, ``timestamp`` ms."""

    module_id: str
    timestamp: int
    pcrs: Mapping[int, bytes]
    public_key: bytes | None = None
    user_data: bytes | None = None
    nonce: bytes | None = None


def ordered_map(items: Iterable[tuple[cbor.Value, bytes]]) -> bytes:
    """A definite map of already encoded values, in the given order; at most 255 items."""
    pairs = [cbor.encode(key) + value for key, value in items]
    # An array's head differs from a map's in the major type alone.
    head = cbor.encode([None] * len(pairs))[: -len(pairs) or None]
    return bytes([head[0] | 0x20]) + head[1:] + b"".join(pairs)


def payload(statement: Statement, signer: Issued) -> bytes:
    """The payload with today's field order, absent fields as null."""
    encode = cbor.encode
    pcrs = [(index, encode(value)) for index, value in sorted(statement.pcrs.items())]
    fields: list[tuple[str, bytes]] = [
        ("module_id", encode(statement.module_id)),
        ("digest", encode("SHA384")),
        ("timestamp", encode(statement.timestamp)),
        ("pcrs", ordered_map(pcrs)),
        ("certificate", encode(signer.der)),
        ("cabundle", encode(list(signer.cabundle))),
        ("public_key", encode(statement.public_key)),
        ("user_data", encode(statement.user_data)),
        ("nonce", encode(statement.nonce)),
    ]
    return _INDEFINITE_MAP + b"".join(encode(key) + value for key, value in fields) + _BREAK


def sign(content: bytes, key: ec.EllipticCurvePrivateKey) -> bytes:
    """An untagged COSE_Sign1 over ``content`` (RFC 9052 section 4.4), 96 bytes of signature."""
    signed = cbor.encode(["Signature1", PROTECTED, b"", content])
    r, s = decode_dss_signature(key.sign(signed, ec.ECDSA(hashes.SHA384())))
    signature = r.to_bytes(PCR_BYTES, "big") + s.to_bytes(PCR_BYTES, "big")
    parts = [cbor.encode(part) for part in (content, signature)]
    return b"".join([_ARRAY_OF_4, cbor.encode(PROTECTED), _EMPTY_MAP, *parts])


def document(statement: Statement, signer: Issued) -> bytes:
    """A signed attestation document."""
    return sign(payload(statement, signer), signer.key)
