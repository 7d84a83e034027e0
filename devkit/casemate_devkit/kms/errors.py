"""The faults the double answers with, and its own diagnosis beside them."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

REASON_HEADER = "x-casemate-kms-double-reason"
_JSON = "application/x-amz-json-1.1"
_HEADER_MAX = 6 * 1024  # below http.client's 64 KiB a line, above 4 registers of 16 releases
_ELLIPSIS = 12  # enough hex digits to recognise a register in a sentence


@dataclass(frozen=True, slots=True)
class RegisterDifference:
    """A register that a policy names and the document does not match; values in lower-case hex."""

    pcr: int
    policy: tuple[str, ...]
    document: str | None

    def __str__(self) -> str:
        expected = " or ".join(f"{value[:_ELLIPSIS]}..." for value in self.policy) or "absent"
        actual = f"{self.document[:_ELLIPSIS]}..." if self.document else "absent"
        return f"PCR{self.pcr}: policy {expected}, document {actual}"


@dataclass(frozen=True, slots=True)
class Reason:
    """Why the double refused or allowed: for its log, its audit and one response header.

    ``code`` is ``signature``, ``request``, ``recipient``, ``policy``, ``state``, ``unsupported``,
    ``fault`` or ``allowed``; ``statement`` is the policy statement that decided or came nearest.
    """

    code: str
    text: str
    statement: str | None = None
    registers: tuple[RegisterDifference, ...] = ()

    def header(self) -> str:
        """Return the reason as one line of ASCII JSON, bounded."""
        record = {
            "code": self.code,
            "text": self.text[:512],
            "statement": self.statement,
            "pcrs": [
                {"pcr": item.pcr, "policy": list(item.policy), "document": item.document}
                for item in self.registers
            ],
        }
        line = json.dumps(record)
        if len(line) > _HEADER_MAX:
            line = json.dumps(record | {"statement": None, "pcrs": []})
        return line


@dataclass(frozen=True, slots=True)
class HttpAnswer:
    """One HTTP answer; without headers of its own it is KMS's JSON."""

    status: int
    body: bytes = field(repr=False)
    headers: Mapping[str, str] = field(default_factory=lambda: {"Content-Type": _JSON})


class KmsError(Exception):
    """One error answer: an AWS error type, its message, and the double's reason."""

    def __init__(
        self, kind: str, message: str, reason: Reason | None = None, *, status: int = 400
    ) -> None:
        super().__init__(f"{kind}: {message}")
        self.status = status
        self.kind = kind
        self.message = message
        self.reason = reason or Reason("request", message)

    def body(self) -> bytes:
        """Return the JSON 1.1 error body as AWS shapes it."""
        name = "Message" if self.kind == "AccessDeniedException" else "message"
        return json.dumps({"__type": self.kind, name: self.message}).encode()

    def answer(self) -> HttpAnswer:
        """Return the error as KMS answers it, with the reason in a header."""
        headers = {"Content-Type": _JSON, REASON_HEADER: self.reason.header()}
        return HttpAnswer(self.status, self.body(), headers)


def invalid(message: str) -> KmsError:
    """Return a ValidationException about the request itself."""
    return KmsError("ValidationException", message)


def unsupported(message: str) -> KmsError:
    """Return the answer to what the double does not implement."""
    reason = Reason("unsupported", message)
    return KmsError("UnsupportedOperationException", message, reason)


def bad_recipient(message: str) -> KmsError:
    """Return the refusal of a Recipient; its type is the double's choice, AWS documents none."""
    return KmsError("ValidationException", message, Reason("recipient", message))
