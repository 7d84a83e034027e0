"""What becomes of each of several questions in one request (SPEC 5.10), as a part of the answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from casemate import cbor, limits
from casemate.envelope.failure import answer_open_failed
from casemate.envelope.messages import SEALED_STATUSES
from casemate.errors import Code, SealedStatusError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from casemate.wire import Pieces

_ANSWERED: Final = 0
_REFUSED: Final = 1


def answered(message: Pieces) -> Pieces:
    """Return the part of a question that was answered with ``message``."""
    return [bytes((_ANSWERED,)), *message]


def refused(code: Code, detail: str) -> Pieces:
    """Return the part of a question that was refused; ``code`` is a sealed status."""
    if code is Code.OK or code not in SEALED_STATUSES:
        raise ValueError("not the status of a refusal")
    short = detail.encode()[: limits.DETAIL_MAX].decode(errors="ignore")
    return [bytes((_REFUSED,)), cbor.encode({"status": str(code), "detail": short})]


def read(part: memoryview) -> memoryview:
    """Return the message in ``part``, as a view.

    Raises SealedStatusError for a refusal, EnvelopeError (ANSWER_OPEN_FAILED) for what is neither.
    """
    if part[0] == _ANSWERED and len(part) > 1:
        return part[1:]
    raise _refusal(part)


def read_good(parts: Sequence[memoryview]) -> list[memoryview] | None:
    """Return the message in each of ``parts``, as views, empty or not; None if one was refused."""
    if any([part[0] != _ANSWERED for part in parts]):  # noqa: C419 - half the time
        return None
    return [part[1:] for part in parts]


def _refusal(part: memoryview) -> SealedStatusError:
    try:
        if part[0] != _REFUSED or len(part) > limits.TRAILER_MAX:
            raise answer_open_failed()
        fields = cbor.decode_map(bytes(part[1:]), {"status": str, "detail": str})
        code, detail = Code(fields["status"]), fields["detail"]
    except ValueError:
        raise answer_open_failed() from None
    if code is Code.OK or code not in SEALED_STATUSES or len(detail.encode()) > limits.DETAIL_MAX:
        raise answer_open_failed()
    return SealedStatusError(code, detail)
