"""The client's side: seal requests under one data key, open their answers (SPEC 5, 6)."""

from __future__ import annotations

import functools
import os
import secrets
import threading
from typing import TYPE_CHECKING, Any, NamedTuple

from casemate import limits, wire
from casemate.attestation.structures import KeyConfig, audience_hash, key_id
from casemate.envelope import hpke
from casemate.envelope.chunks import open_content
from casemate.envelope.failure import answer_open_failed
from casemate.envelope.guard import Guarded
from casemate.envelope.header import (
    KEY_MODE_HPKE,
    KEY_MODE_KMS,
    RequestHeader,
    ResponseHeader,
    encode_request_header,
)
from casemate.envelope.message_sealing import seal_message
from casemate.envelope.messages import INFER, Preamble, Trailer, caller_statement
from casemate.envelope.sealed_message import parse_sealed
from casemate.envelope.streaming import SealedStream
from casemate.envelope.units import request_unit, split_response
from casemate.errors import Code, EnvelopeError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

_UNSET = b""


class OpenedAnswer(NamedTuple):
    """An authenticated answer.

    Unless the session was pinned to an instance, the caller compares ``instance_digest`` with
    evidence that it verified before it releases the messages (SPEC 5.7): one, or where several
    questions were asked what became of each (SPEC 5.10), or none unless the status is OK.
    """

    instance_digest: bytes
    trailer: Trailer
    messages: list[memoryview]

    @property
    def message(self) -> memoryview | None:
        """The only message, if there is one."""
        return self.messages[0] if self.messages else None

    def __repr__(self) -> str:
        return f"<OpenedAnswer: {self.trailer.status}>"


class SealedCall(Guarded):
    """One sealed request, and the only thing that opens its answer."""

    __slots__ = ("_instance_digest", "_prk", "_questions", "_receipt", "_th", "header", "request")

    def __init__(
        self,
        header: bytes,
        request: wire.Buffer,
        prk: bytes,
        instance_digest: bytes | None,
        *,
        receipt: bool = False,
        th: bytes | None = None,
        questions: int = 1,
    ) -> None:
        """``request``: the header with its ciphertext as they are sent (SPEC 9.3)."""
        self.header = header
        self.request = request
        self._prk = prk
        self._th = th or wire.digest(header)
        self._instance_digest = instance_digest
        self._receipt = receipt
        self._questions = questions

    @property
    def ciphertext(self) -> memoryview:
        """What ``request`` carries beside the header."""
        return parse_sealed(self.request)[1]

    def open(self, header: bytes, ciphertext: wire.Buffer) -> OpenedAnswer:
        """Open the answer to this very request.

        Raises EnvelopeError: ANSWER_OPEN_FAILED with one text, whatever failed, or
        ANSWER_INSTANCE_UNKNOWN if another instance answered than the one the session is for.
        """
        try:
            parsed = ResponseHeader.parse(header)
            rh = wire.digest(header)
            key = wire.expand(self._prk, "response", self._th, rh)
            messages, trailer_bytes = split_response(
                open_content(key, rh, ciphertext), self._questions
            )
        except ValueError:
            raise answer_open_failed() from None
        trailer = Trailer.parse(trailer_bytes)
        good = trailer.status == Code.OK
        if len(messages) != (self._questions if good else 0):
            raise answer_open_failed()
        if (trailer.receipt is not None) != (good and self._receipt):
            raise answer_open_failed()
        if self._instance_digest not in (None, parsed.instance_digest):
            raise EnvelopeError(Code.ANSWER_INSTANCE_UNKNOWN, "another instance answered")
        return OpenedAnswer(parsed.instance_digest, trailer, messages)


class DataKeySession(Guarded):
    """One data key with its time span; seals from any number of threads.

    Its sequence never repeats: that is what the enclave's replay window relies on, so a session
    can be neither copied nor pickled, and each process makes its own: after a fork it refuses.
    """

    def __init__(
        self,
        template: RequestHeader,
        prk: bytes,
        *,
        instance_digest: bytes | None,
        caller: Ed25519PrivateKey | None,
    ) -> None:
        self._header_parts = template.session_parts()
        self._not_after = template.not_after
        self._prk = prk
        self._instance_digest = instance_digest
        self._caller: tuple[bytes, bytes] | None = None
        if caller is not None:
            self._caller = (
                caller.public_key().public_bytes_raw(),
                caller.sign(caller_statement(template)),
            )
        self._sequence = 0
        self._process = os.getpid()
        self._lock = threading.Lock()

    @classmethod
    def hpke(  # noqa: PLR0917 - the parts of a session, each from another source
        cls,
        evidence_key_config: bytes,
        instance_id: bytes,
        instance_digest: bytes,
        audience: str,
        not_before: int,
        not_after: int,
        caller: Ed25519PrivateKey | None = None,
    ) -> DataKeySession:
        """Start a session with a fresh data key, sealed to a **verified** key configuration.

        Answers of any instance but the one with ``instance_digest`` are refused.
        """
        data_key = secrets.token_bytes(wire.KEY_BYTES)
        public_key = KeyConfig.parse(evidence_key_config).public_key
        wrapped = hpke.wrap(public_key, data_key, evidence_key_config)
        prk = wire.extract(data_key)
        template = RequestHeader(
            key_mode=KEY_MODE_HPKE,
            request_id=_UNSET,
            sequence=0,
            not_before=not_before,
            not_after=not_after,
            audience=audience_hash(audience),
            instance_id=instance_id,
            key_commitment=wire.expand(prk, "commit"),
            wrapped_key=key_id(evidence_key_config) + wrapped,
        )
        return cls(template, prk, instance_digest=instance_digest, caller=caller)

    @classmethod
    def kms(  # noqa: PLR0917 - as above
        cls,
        key_arn: str,
        ciphertext_blob: bytes,
        data_key: bytes,
        instance_id: bytes,
        audience: str,
        not_before: int,
        not_after: int,
        caller: Ed25519PrivateKey | None = None,
    ) -> DataKeySession:
        """Start a session with a data key made by KMS under the data owner's own key.

        ``instance_id`` of zeros lets any replica answer. The caller compares each answer's
        ``instance_digest`` with evidence that it verified.
        """
        prk = wire.extract(data_key)
        template = RequestHeader(
            key_mode=KEY_MODE_KMS,
            request_id=_UNSET,
            sequence=0,
            not_before=not_before,
            not_after=not_after,
            audience=audience_hash(audience),
            instance_id=instance_id,
            key_commitment=wire.expand(prk, "commit"),
            wrapped_key=wire.lp(key_arn.encode("ascii")) + ciphertext_blob,
        )
        return cls(template, prk, instance_digest=None, caller=caller)

    @property
    def not_after(self) -> int:
        """The end of the session, in milliseconds of attested time."""
        return self._not_after

    def _next_header(self) -> bytes:
        if os.getpid() != self._process:
            raise EnvelopeError(Code.INVALID_ARGUMENT, "the session belongs to another process")
        with self._lock:
            sequence = self._sequence
            if sequence >= limits.SEQUENCE_MAX:
                raise EnvelopeError(Code.EXPIRED, "the session has sealed all it may seal")
            self._sequence += 1
        return encode_request_header(self._header_parts, secrets.token_bytes(16), sequence)

    def seal(
        self,
        *,
        model: str,
        version: int | None,
        digest: bytes | None,
        message: wire.Buffer | wire.Pieces,
        sealed_data: bytes | None = None,
        receipt: bool = False,
        operation: str = INFER,
        others: Sequence[wire.Pieces] = (),
    ) -> SealedCall:
        """Seal one ``ModelInferRequest``, which may lie in pieces, under a header of its own.

        Of another ``operation`` than ``infer`` the message is what SPEC 5.6.1 says. With
        ``sealed_data``, its ``H(m)``, the message is sealed data instead (SPEC 8.7);
        ``receipt`` asks for a receipt of the answer (SPEC 14). ``others`` are further questions
        to the same model, asked in the same request (SPEC 5.10).

        Raises EnvelopeError: INVALID_ARGUMENT for a name, version or digest out of bounds,
        TOO_LARGE, or EXPIRED when the sequence is exhausted.
        """
        preamble = self._preamble(
            model, version, digest, sealed_data, receipt=receipt, operation=operation
        )
        try:
            unit = request_unit((preamble, message, *others))
        except ValueError:
            raise EnvelopeError(Code.INVALID_ARGUMENT, "the message is empty") from None
        header = self._next_header()
        th = wire.digest(header)
        key = wire.expand(self._prk, "request", th)
        request = seal_message(header, key, th, unit)
        return SealedCall(
            *(header, request, self._prk, self._instance_digest),
            receipt=receipt,
            th=th,
            questions=1 + len(others),
        )

    def seal_stream(
        self,
        *,
        model: str,
        version: int | None,
        digest: bytes | None,
        receipt: bool = False,
        lead: Callable[[memoryview], int],
    ) -> SealedStream:
        """Begin a stream of questions to one model under a header of its own (SPEC 5.9).

        ``lead`` says where in the beginning of a long answer something should lie aligned. Raises
        EnvelopeError as ``seal``.
        """
        preamble = self._preamble(model, version, digest, None, receipt=receipt)
        header = self._next_header()
        return SealedStream(header, preamble, self._prk, receipt=receipt, lead=lead)

    def _preamble(
        self,
        model: str,
        version: int | None,
        digest: bytes | None,
        sealed_data: bytes | None,
        *,
        receipt: bool,
        operation: str = INFER,
    ) -> bytes:
        caller, signature = self._caller or (None, None)
        return _encoded_preamble(
            model, version, digest, caller, signature, sealed_data, receipt, operation
        )


@functools.lru_cache(maxsize=64)
def _encoded_preamble(*fields: Any) -> bytes:  # noqa: ANN401 - those of Preamble, in its order
    """A session's preambles are nearly all alike; none is a secret to who sends it."""
    return Preamble(*fields).encode()
