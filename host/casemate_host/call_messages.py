"""The messages of a stream of calls: questions read, answers written (SPEC 9.6.2).

An answer is written by hand around the enclave's bytes, which protobuf would copy twice more.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from google.protobuf.message import DecodeError

from casemate import limits, protowire
from casemate.errors import CasemateError, Code
from casemate.v1.confidential_inference_pb2 import (
    NumberedResponse,
    SealedRequests,
    SealedResponses,
)
from casemate_host.status import to_refusal

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from casemate.v1.confidential_inference_pb2 import NumberedRequest

_RESPONSES: Final = 1
_NUMBER: Final = b"\x08"  # the tag of field 1, a varint
_RESPONSE: Final = 2
LAST: Final = SealedResponses(last=True).SerializeToString()  # asks the client to end its side


Entry = tuple[bytes, bytes]  # of ``SealedResponses``: what precedes the answer, and the answer


def read_requests(message: bytes) -> Sequence[NumberedRequest]:
    """Return the entries of ``SealedRequests``; raises CasemateError: MALFORMED, TOO_LARGE."""
    if len(message) > limits.CALL_STREAM_MESSAGE_MAX:
        raise CasemateError(Code.TOO_LARGE, f"a message of {len(message)} bytes")
    try:
        entries = SealedRequests.FromString(message).requests
    except DecodeError:
        raise CasemateError(Code.MALFORMED, "a message that cannot be read") from None
    if len(entries) > limits.CALL_STREAM_ENTRIES_MAX:
        raise CasemateError(Code.TOO_LARGE, f"{len(entries)} requests in one message")
    return entries


def answered(number: int, answer: bytes) -> Entry:
    """Return the entry that answers question ``number``."""
    size = len(answer)
    inner = _NUMBER + protowire.encode_varint(number) + protowire.bytes_head(_RESPONSE, size)
    return protowire.bytes_head(_RESPONSES, len(inner) + size) + inner, answer


def refused(number: int, error: CasemateError) -> Entry:
    """Return the entry that refuses question ``number``."""
    entry = NumberedResponse(number=number, refusal=to_refusal(error))
    return SealedResponses(responses=(entry,)).SerializeToString(), b""


def write_responses(entries: Iterable[Entry]) -> bytes:
    """Return the message of ``entries``."""
    return b"".join([piece for entry in entries for piece in entry])
