"""The enclave's side: open requests, seal answers (SPEC 5, 6.4). No host may import it."""

from __future__ import annotations

import hmac
import secrets
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from casemate import limits, wire
from casemate.envelope.chunks import BrokenSealError, ChunkCipher, open_content
from casemate.envelope.failure import open_failed
from casemate.envelope.guard import Guarded
from casemate.envelope.header import RequestHeader, parse_request_header, response_header
from casemate.envelope.messages import Preamble, Trailer, caller_statement
from casemate.envelope.sealed_message import encode_sealed, parse_sealed
from casemate.envelope.units import response_unit, split_request
from casemate.errors import Code, EnvelopeError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "Asker",
    "OpenedRequest",
    "check_commitment",
    "encode_sealed",
    "identify",
    "open_request",
    "parse_sealed",
    "seal_response",
    "verify_caller",
]

_RESPONSE_NONCE_BYTES: Final = 32


class OpenedRequest(Guarded):
    """An authenticated request: it came from a holder of the data key, unchanged.

    Whether it was seen before and who the caller is are separate checks (SPEC 6.4).
    """

    __slots__ = ("_ahead", "_prk", "messages", "preamble_bytes", "th")

    def __init__(self, preamble: memoryview, *messages: memoryview, prk: bytes, th: bytes) -> None:
        """``messages``: one, or several questions (SPEC 5.10)."""
        self.messages = messages
        self.preamble_bytes = preamble
        self._prk = prk
        self._ahead: tuple[bytes, ChunkCipher] | None = None
        self.th = th

    @property
    def message(self) -> memoryview:
        """The only message, or the first."""
        return self.messages[0]

    @property
    def preamble(self) -> Preamble:
        """The preamble; raises EnvelopeError (INVALID_REQUEST), which is a **sealed** status."""
        return Preamble.parse(self.preamble_bytes)

    def response_key(self, rh: bytes) -> bytes:
        """Return the key of the answer whose header has the hash ``rh`` (SPEC 5.4)."""
        return wire.expand(self._prk, "response", self.th, rh)

    def prepare(self, instance_digest: bytes) -> None:
        """Do ahead what of the next answer's sealing does not depend on the answer."""
        self._ahead = self._drawn(instance_digest)

    def take_cipher(self, instance_digest: bytes) -> tuple[bytes, ChunkCipher]:
        """Return the header of **one** answer and what seals that under its key.

        Each call draws a response nonce or takes the prepared one, which nobody else gets.
        """
        ahead, self._ahead = self._ahead, None
        return ahead or self._drawn(instance_digest)

    def _drawn(self, instance_digest: bytes) -> tuple[bytes, ChunkCipher]:
        nonce = secrets.token_bytes(_RESPONSE_NONCE_BYTES)
        header = response_header(nonce, instance_digest)
        rh = wire.digest(header)
        return header, ChunkCipher(self.response_key(rh), rh)


def check_commitment(header: RequestHeader, data_key: bytes) -> bytes:
    """Return ``prk(data_key)`` if the header commits to the key; else EnvelopeError (OPEN_FAILED).

    AES-GCM alone does not commit to its key: without this, one ciphertext could open to two
    contents under two keys.
    """
    if len(data_key) != wire.KEY_BYTES:
        raise open_failed()
    prk = wire.extract(data_key)
    if not hmac.compare_digest(wire.expand(prk, "commit"), header.key_commitment):
        raise open_failed()
    return prk


def open_request(
    header: bytes, ciphertext: wire.Buffer, prk: bytes, place: memoryview | None = None
) -> OpenedRequest:
    """Open a request under the ``prk`` that ``check_commitment`` returned.

    ``header`` is used as received. Raises EnvelopeError (OPEN_FAILED) with one text, whatever
    failed. Takes memory once, less than ``ciphertext``, whose size the caller has bounded, or none
    where the content fits into ``place`` (see ``open_content``).
    """
    th = wire.digest(header)
    try:
        unit = open_content(wire.expand(prk, "request", th), th, ciphertext, place)
        parts = split_request(unit)
    except BrokenSealError:
        raise open_failed() from None
    return OpenedRequest(*parts, prk=prk, th=th)


@dataclass(frozen=True, slots=True)
class Asker:
    """What a request's preamble says, with the caller that was verified (SPEC 5.6, 7).

    ``preamble`` is None for one that cannot be read, which is a sealed status (SPEC 11.2).
    """

    encoded: bytes = field(repr=False)
    preamble: Preamble | None
    caller: bytes | None


def identify(raw_header: bytes, preamble: memoryview, known: Asker | None) -> Asker:
    """Return who asks for what; a caller's signature is checked once for a session.

    ``known`` is an earlier result for a header with the same ``session_part``, which is all that
    the signature is over, or None. Raises EnvelopeError (OPEN_FAILED) as ``verify_caller``.
    """
    # As bytes, and not before it is known to be short: views are compared item by item.
    if known is not None and known.encoded == bytes(preamble[: limits.PREAMBLE_MAX + 1]):
        return known
    try:
        parsed = Preamble.parse(preamble)
    except EnvelopeError:
        return Asker(b"", None, None)  # it may be long, and what is returned is kept
    encoded = bytes(preamble)
    if known is not None and known.preamble is not None:
        signed = known.preamble.caller, known.preamble.signature
        if signed == (parsed.caller, parsed.signature):
            return Asker(encoded, parsed, known.caller)
    return Asker(encoded, parsed, verify_caller(parse_request_header(raw_header), parsed))


def verify_caller(header: RequestHeader, preamble: Preamble) -> bytes | None:
    """Return the caller's public key, None for an anonymous one.

    Raises EnvelopeError (OPEN_FAILED) if the signature is not the caller's over this session.
    """
    if preamble.caller is None or preamble.signature is None:
        return None
    try:
        key = Ed25519PublicKey.from_public_bytes(preamble.caller)
        key.verify(preamble.signature, caller_statement(header))
    except (InvalidSignature, ValueError):
        raise open_failed() from None
    return preamble.caller


def seal_response(
    opened: OpenedRequest,
    *,
    instance_digest: bytes,
    messages: Sequence[wire.Buffer | wire.Pieces],
    trailer: Trailer,
    floor: int,
) -> tuple[bytes, memoryview]:
    """Seal the answer to ``opened``; returns (header, ciphertext).

    No two answers ever share a key, those to one request included. ``floor``: the bucket in bytes
    of all ``messages``, or 0. Raises EnvelopeError (TOO_LARGE), and ValueError unless there are as
    many messages as the request has if the status is OK, and else none.
    """
    if len(messages) != (len(opened.messages) if trailer.status == Code.OK else 0):
        raise ValueError("messages go with the status OK, and only with it")
    unit = response_unit(messages, trailer.encode(), floor)
    header, cipher = opened.take_cipher(instance_digest)
    if unit.length <= limits.CHUNK:
        return header, cipher.seal_alone(unit.whole())
    return header, cipher.seal_all(unit.chunks(), unit.length)
