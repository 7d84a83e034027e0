"""Headers of requests and responses: fixed layouts, used as received (SPEC 5.1, 5.7)."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final, NamedTuple

from casemate import limits
from casemate.errors import Code, EnvelopeError, KeyReleaseError
from casemate.kms_context import parse_key_arn

VERSION: Final = 1
KEY_MODE_HPKE: Final = 1
KEY_MODE_KMS: Final = 2
KEY_ID_BYTES: Final = 16
WRAPPED_BYTES: Final = 1168  # enc (1,120) || ct (48), SPEC 5.2
INSTANCE_ID_BYTES: Final = 16
ANY_INSTANCE: Final = bytes(INSTANCE_ID_BYTES)  # any replica; key mode 2 only
RESPONSE_HEADER_BYTES: Final = 81

_FIXED: Final = struct.Struct(">BB16sIQQ32s16s32sI")  # up to the length of wrapped_key, included
_BEFORE: Final = struct.Struct(">BB")  # in it, before request_id and sequence, and after them
_AFTER: Final = struct.Struct(">QQ32s16s32sI")
_RESPONSE: Final = struct.Struct(">B32s48s")
_U32: Final = struct.Struct(">I")
# Between them lie the request_id and the sequence; all else is the session's.
_MODE_END: Final = 2
_SEQUENCE: Final = 18
_TIMES: Final = 22


def _malformed(detail: str) -> EnvelopeError:
    return EnvelopeError(Code.MALFORMED, f"request header: {detail}")


@dataclass(frozen=True, slots=True)
class RequestHeader:
    """The header of one sealed request; times in milliseconds since 1970."""

    key_mode: int
    request_id: bytes
    sequence: int
    not_before: int
    not_after: int
    audience: bytes
    instance_id: bytes
    key_commitment: bytes
    wrapped_key: bytes

    def encode(self) -> bytes:
        """Return the layout of SPEC 5.1."""
        return encode_request_header(self.session_parts(), self.request_id, self.sequence)

    def session_parts(self) -> tuple[bytes, bytes]:
        """Return what the session's headers share: before request_id and sequence, and after."""
        after = _AFTER.pack(
            self.not_before,
            self.not_after,
            self.audience,
            self.instance_id,
            self.key_commitment,
            len(self.wrapped_key),
        )
        return _BEFORE.pack(VERSION, self.key_mode), after + self.wrapped_key

    @property
    def key_id(self) -> bytes:
        """The key configuration that the data key is wrapped to; key mode 1 (SPEC 5.2)."""
        return self.wrapped_key[:KEY_ID_BYTES]

    @property
    def encapsulation(self) -> bytes:
        """``enc || ct``, 1,168 bytes; key mode 1 (SPEC 5.2)."""
        return self.wrapped_key[KEY_ID_BYTES:]

    @property
    def key_arn(self) -> str:
        """The KMS key that wraps the data key; key mode 2 (SPEC 5.3)."""
        (length,) = _U32.unpack_from(self.wrapped_key)
        return self.wrapped_key[_U32.size : _U32.size + length].decode("ascii")

    @property
    def ciphertext_blob(self) -> bytes:
        """The data key as wrapped by KMS; key mode 2 (SPEC 5.3)."""
        (length,) = _U32.unpack_from(self.wrapped_key)
        return self.wrapped_key[_U32.size + length :]


def encode_request_header(
    session_parts: tuple[bytes, bytes], request_id: bytes, sequence: int
) -> bytes:
    """Return the layout of SPEC 5.1 for one request of a session."""
    before, after = session_parts
    return before + request_id + _U32.pack(sequence) + after


def parse_request_header(data: bytes) -> RequestHeader:
    """Parse a request header; raises EnvelopeError: MALFORMED or UNSUPPORTED_VERSION."""
    if data[:1] != bytes([VERSION]):
        code = Code.UNSUPPORTED_VERSION if data else Code.MALFORMED
        raise EnvelopeError(code, "request header is not of version 1")
    if not _FIXED.size < len(data) <= limits.HEADER_MAX:
        raise _malformed("length out of bounds")
    fields = _FIXED.unpack_from(data)
    if fields[-1] != len(data) - _FIXED.size:
        raise _malformed("wrapped key does not end the header")
    header = RequestHeader(*(*fields[1:-1], data[_FIXED.size :]))
    _check_sequence(header.sequence)
    _check_key_mode(header)
    return header


def session_part(data: bytes) -> bytes:
    """Return what all request headers of a session share, in which nothing was checked.

    Two that are equal are of headers of the same length, good or bad but for their sequences.
    """
    return data[:_MODE_END] + data[_TIMES:]


def sequence_of(data: bytes) -> int:
    """Return the sequence of a header whose session part is a good one's; raises MALFORMED."""
    (sequence,) = _U32.unpack_from(data, _SEQUENCE)
    _check_sequence(sequence)
    return int(sequence)


def _check_sequence(sequence: int) -> None:
    if sequence >= limits.SEQUENCE_MAX:
        raise _malformed("sequence out of bounds")


def _check_key_mode(header: RequestHeader) -> None:
    if header.key_mode == KEY_MODE_HPKE:
        if len(header.wrapped_key) != KEY_ID_BYTES + WRAPPED_BYTES:
            raise _malformed("wrapped key of key mode 1 has a wrong length")
        if header.instance_id == ANY_INSTANCE:
            raise _malformed("key mode 1 names its instance")
    elif header.key_mode == KEY_MODE_KMS:
        _check_kms(header.wrapped_key)
    else:
        raise _malformed("unknown key mode")


def _check_kms(wrapped_key: bytes) -> None:
    if len(wrapped_key) < _U32.size:
        raise _malformed("wrapped key of key mode 2 is cut")
    (arn_length,) = _U32.unpack_from(wrapped_key)
    blob_length = len(wrapped_key) - _U32.size - arn_length
    if not 1 <= arn_length <= limits.KEY_ARN_MAX:
        raise _malformed("key ARN out of bounds")
    if not 1 <= blob_length <= limits.CIPHERTEXT_BLOB_MAX:
        raise _malformed("ciphertext blob out of bounds")
    try:
        parse_key_arn(wrapped_key[_U32.size : _U32.size + arn_length].decode("ascii"))
    except (KeyReleaseError, UnicodeDecodeError):
        raise _malformed("not the ARN of a single-Region KMS key") from None


def response_header(response_nonce: bytes, instance_digest: bytes) -> bytes:
    """Return a response header in the layout of SPEC 5.7, 81 bytes."""
    return _RESPONSE.pack(VERSION, response_nonce, instance_digest)


class ResponseHeader(NamedTuple):
    """The header of one sealed response (SPEC 5.7)."""

    response_nonce: bytes
    instance_digest: bytes

    def encode(self) -> bytes:
        """Return the layout of SPEC 5.7, 81 bytes."""
        return response_header(self.response_nonce, self.instance_digest)

    @classmethod
    def parse(cls, data: bytes) -> ResponseHeader:
        """Parse a response header; raises ValueError, which the caller turns into its one error."""
        if len(data) != _RESPONSE.size or data[0] != VERSION:
            raise ValueError("not a response header of version 1")
        _, response_nonce, instance_digest = _RESPONSE.unpack(data)
        return cls(response_nonce, instance_digest)
