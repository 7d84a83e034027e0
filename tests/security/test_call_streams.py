"""What a host can do to questions that share a stream (SPEC 9.6.2; THREATS H2, H3, H4)."""

from __future__ import annotations

import itertools
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from casemate.errors import CasemateError, Code
from casemate.v1.confidential_inference_pb2 import (
    NumberedRequest,
    NumberedResponse,
    SealedRequests,
    SealedResponses,
)
from casemate_devkit.local import MODEL
from tests.support.attacker import ROWS, eventually

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from casemate.client import Client
    from casemate_devkit.local import LocalDeployment
    from tests.support.lying import ForwardStream, LyingHost

pytestmark = [pytest.mark.integration]

WANTED = {"features": ROWS}


class Lie:
    """Passes a stream on and keeps what passed; from ``begin`` on each kind of lie differs."""

    def __init__(self) -> None:
        self.lies = False
        self.asked: list[NumberedRequest] = []
        self.answered: list[NumberedResponse] = []

    def __call__(self, messages: Iterator[bytes], forward: ForwardStream) -> Iterator[bytes]:
        for message in forward(self._requests(messages)):
            entries = list(SealedResponses.FromString(message).responses)
            self.answered += entries
            answers = list(self.answers(entries) if self.lies else entries)
            if answers or not message:
                yield SealedResponses(responses=answers).SerializeToString()

    def _requests(self, messages: Iterator[bytes]) -> Iterator[bytes]:
        for message in messages:
            entries = list(SealedRequests.FromString(message).requests)
            self.asked += entries
            requests = list(self.requests(entries) if self.lies else entries)
            yield SealedRequests(requests=requests).SerializeToString()

    def requests(self, entries: list[NumberedRequest]) -> Iterable[NumberedRequest]:
        return entries

    def answers(self, entries: list[NumberedResponse]) -> Iterable[NumberedResponse]:
        return entries


def begin(client: Client, host: LyingHost, lie: Lie) -> None:
    """Have the client use a stream of ``host``, on which the lying begins."""
    host.many = lie
    until = time.monotonic() + 60
    while not lie.answered:
        client.infer(MODEL, WANTED)
        assert time.monotonic() < until
    lie.asked.clear()
    lie.answered.clear()
    lie.lies = True


def together(client: Client, count: int) -> list[Code]:
    def one(_: int) -> Code:
        try:
            client.infer(MODEL, WANTED)
        except CasemateError as error:
            return error.code
        return Code.OK

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(one, range(count)))


def test_h4_swapped_answers_on_one_stream_are_refused(
    deployment: LocalDeployment, lying_host: LyingHost
) -> None:
    class Swap(Lie):
        def __init__(self) -> None:
            super().__init__()
            self._held: list[NumberedResponse] = []

        def answers(self, entries: list[NumberedResponse]) -> Iterable[NumberedResponse]:
            self._held += entries
            if len(self._held) == 2:
                one, other = self._held
                yield NumberedResponse(number=one.number, response=other.response)
                yield NumberedResponse(number=other.number, response=one.response)

    with deployment.client(target=lying_host.target) as client:
        begin(client, lying_host, Swap())
        assert together(client, 2) == [Code.ANSWER_OPEN_FAILED] * 2


@pytest.mark.parametrize("side", ["request", "answer"])
def test_h2_a_flipped_bit_of_one_question_on_a_stream_is_its_own_failure(
    deployment: LocalDeployment, lying_host: LyingHost, side: str
) -> None:
    class Flip(Lie):
        def requests(self, entries: list[NumberedRequest]) -> Iterable[NumberedRequest]:
            for entry in entries:
                if side == "request" and self.asked[0].number == entry.number:
                    entry.request = flipped(entry.request)
                yield entry

        def answers(self, entries: list[NumberedResponse]) -> Iterable[NumberedResponse]:
            for entry in entries:
                if side == "answer" and self.asked[0].number == entry.number:
                    entry.response = flipped(entry.response)
                yield entry

    with deployment.client(target=lying_host.target) as client:
        begin(client, lying_host, Flip())
        ends = together(client, 8)
    wrong = Code.OPEN_FAILED if side == "request" else Code.ANSWER_OPEN_FAILED
    assert sorted(ends) == sorted([Code.OK] * 7 + [wrong])


def flipped(message: bytes) -> bytes:
    return message[:-20] + bytes([message[-20] ^ 1]) + message[-19:]


def test_h3_a_question_repeated_on_the_stream_runs_once(
    deployment: LocalDeployment, lying_host: LyingHost
) -> None:
    class Repeat(Lie):
        def __init__(self) -> None:
            super().__init__()
            self._numbers = itertools.count(1 << 31)

        def requests(self, entries: list[NumberedRequest]) -> Iterable[NumberedRequest]:
            for entry in entries:
                yield entry
                yield NumberedRequest(number=next(self._numbers), request=entry.request)

        def answers(self, entries: list[NumberedResponse]) -> Iterable[NumberedResponse]:
            return (entry for entry in entries if entry.number < 1 << 31)

    lie = Repeat()
    with deployment.client(target=lying_host.target) as client:
        begin(client, lying_host, lie)
        ends = together(client, 8)
    # Of each pair one ran, whichever the enclave began with.
    assert set(ends) <= {Code.OK, Code.REPLAYED}
    assert eventually(lambda: len(lie.answered) >= 16)
    reasons = sorted(entry.refusal.reason for entry in lie.answered)
    assert reasons == [""] * 8 + ["REPLAYED"] * 8
