"""What a client keeps of the calls on one stream, whatever a host says (SPEC 9.6.2; THREATS H4)."""

from __future__ import annotations

import pytest

from casemate import limits
from casemate.client.call_book import BrokenError, CallBook, Failure
from casemate.v1.confidential_inference_pb2 import NumberedResponse, SealedResponses


class Asked:
    def __init__(self) -> None:
        self.outcomes: list[bytes | Failure] = []

    def settle(self, outcome: bytes | Failure) -> None:
        self.outcomes.append(outcome)


def answers(*numbers: int) -> bytes:
    entries = [NumberedResponse(number=number, response=b"%d" % number) for number in numbers]
    return SealedResponses(responses=entries).SerializeToString()


def given_up(book: CallBook[Asked]) -> int:
    number = book.ask(Asked(), b"question", 1.0)
    assert book.next_message()
    assert book.give_up(number)
    assert book.next_message()
    return number


def test_a_late_answer_to_a_question_that_was_given_up_is_dropped_once() -> None:
    book, other = CallBook[Asked](), Asked()
    late = given_up(book)
    number = book.ask(other, b"another", 1.0)
    book.answered(answers(late, number))
    assert other.outcomes == [b"%d" % number]
    with pytest.raises(BrokenError):
        book.answered(answers(late))


def test_a_host_that_answers_nothing_that_was_given_up_loses_the_stream() -> None:
    book = CallBook[Asked]()
    for _ in range(limits.CALL_STREAM_GIVEN_UP_MAX):
        given_up(book)
    book.answered(answers())
    given_up(book)
    with pytest.raises(BrokenError):
        book.answered(answers())


def test_nobody_is_answered_twice() -> None:
    book, asked = CallBook[Asked](), Asked()
    number = book.ask(asked, b"question", 1.0)
    with pytest.raises(BrokenError):
        book.answered(answers(number, number))
    assert asked.outcomes == [b"%d" % number]
