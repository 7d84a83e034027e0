"""Answers of a stream count against their caller until its client has taken them (THREATS C3)."""

from __future__ import annotations

import pytest

from casemate import limits
from casemate_host import call_messages
from casemate_host.admission import ShedError
from casemate_host.ready import ReadyAnswers
from casemate_host.unread import Unread


def answer(size: int) -> list[call_messages.Entry]:
    return [call_messages.answered(1, bytes(size))]


def test_c3_what_a_stream_holds_keeps_its_caller_out_until_it_is_taken() -> None:
    unread = Unread(concurrent=1)
    ready = ReadyAnswers(unread)
    while unread.count < limits.UNREAD_LEAST:
        unread.check()
        ready.add(answer(1))
    with pytest.raises(ShedError):
        unread.check()
    entries = ready.take()
    with pytest.raises(ShedError):
        unread.check()  # gRPC has them, the client has not
    ready.taken(entries)
    unread.check()
    assert unread.count == 0


def test_c3_a_few_large_answers_keep_it_out_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "UNREAD_BYTES", 1000)
    unread = Unread()
    ready = ReadyAnswers(unread)
    ready.add(answer(999))
    unread.check()
    ready.add(answer(1))
    with pytest.raises(ShedError):
        unread.check()
    ready.drop()
    unread.check()
