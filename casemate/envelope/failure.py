"""The single errors of a failed opening: one code and one text, whatever failed (SPEC 11.1)."""

from __future__ import annotations

from casemate.errors import Code, EnvelopeError


def open_failed() -> EnvelopeError:
    """Return the enclave's error: unwrap, commitment, tag, framing, padding or signature."""
    return EnvelopeError(Code.OPEN_FAILED, "the request does not open")


def answer_open_failed() -> EnvelopeError:
    """Return the client's error: header, tag, framing, padding or trailer of an answer."""
    return EnvelopeError(Code.ANSWER_OPEN_FAILED, "the answer does not open")
