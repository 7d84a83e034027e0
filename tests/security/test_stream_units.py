"""Several messages in one unit of a stream (SPEC 5.9.8), played against the real processes."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import pytest

from casemate import limits
from casemate.channel import connect
from casemate.envelope.padding import padded_length
from casemate.envelope.sealed_chunks import encode_chunk, encode_header, parse_chunks
from casemate.errors import CasemateError, Code, RequestError
from casemate.tensors import to_request
from casemate_devkit.local import MODEL
from tests.support.attacker import TIMEOUT_S, genuine, refusal, start_session
from tests.support.damage import flip
from tests.support.picking import POISON, TABLE, WIDTH, became, loaded, message, picking
from tests.support.streams import Spoken, speak

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from casemate_devkit.local import LocalDeployment
    from tests.support.attacker import Session
    from tests.support.lying import ForwardStream, LyingHost

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("still_serves")]
VERSION = 511
Chunks = list[bytes]


@pytest.fixture(scope="module")
def world(
    deployment: LocalDeployment, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LocalDeployment]:
    with loaded(deployment, tmp_path_factory.mktemp("picking"), VERSION):
        yield deployment


@contextmanager
def spoken_to(world: LocalDeployment, session: Session) -> Iterator[Spoken]:
    with connect(genuine(world).address, TIMEOUT_S) as channel:
        yield speak(channel, session.keys, version=VERSION)


def all_chunks(spoken: Spoken) -> Chunks:
    """Three units of three messages, the opening and the end included."""
    chunks = [*spoken.call.opening()]
    for first in range(3):
        chunks += spoken.call.question(*[[message((first + at) % 3)] for at in range(3)])
    return [bytes(chunk) for chunk in (*chunks, *spoken.call.end())]


def test_c2_a_poisoned_message_spoils_none_that_share_its_unit(world: LocalDeployment) -> None:
    """Of one stream, whose questions travel and run together."""
    wrong = []
    with world.client() as client:
        client.infer(MODEL, picking(0), version=VERSION)
        with client.stream(MODEL, version=VERSION, outputs=["picked"]) as stream:
            asked = [POISON if at % 9 == 4 else at % 3 for at in range(200)]
            futures = [stream.submit(picking(index)) for index in asked]
            for at, (index, future) in enumerate(zip(asked, futures, strict=True)):
                try:
                    answer = future.result(TIMEOUT_S).outputs["picked"].tolist()
                    right = index != POISON and answer == [TABLE[index]]
                except RequestError as error:
                    right = index == POISON and error.code is Code.MODEL_FAILED
                if not right:
                    wrong.append(at)
    assert wrong == []


def test_c3_more_messages_than_a_unit_may_have_are_not_run(world: LocalDeployment) -> None:
    """More parts than there may be are not even looked at; more than the model takes, refused."""
    session = start_session(world)
    part = len(message(0)).to_bytes(4, "big") + message(0)
    for count in (33, 2000):
        with spoken_to(world, session) as spoken:
            spoken.begin()
            length = padded_length(count * len(part))
            spoken.send(spoken.call._writer.seal([part] * count, length))
            assert refusal(spoken.receive_all) is Code.OPEN_FAILED
    for count, status in ((24, Code.OK), (25, Code.INVALID_REQUEST)):
        with spoken_to(world, session) as spoken:
            spoken.begin().ask(*[message(1)] * count)
            spoken.end()
            *answers, last = spoken.receive_all()
        assert last.trailer.status is status
        assert len(answers) == (status is Code.OK)


def test_c3_several_messages_in_many_chunks_break_the_stream(world: LocalDeployment) -> None:
    """The second part would be memory that nobody counted before it was there."""
    one = bytes(limits.CHUNK)
    part = len(one).to_bytes(4, "big") + one
    with spoken_to(world, start_session(world)) as spoken:
        spoken.begin()
        spoken.send(spoken.call._writer.seal([part] * 2, padded_length(2 * len(part))))
        assert refusal(spoken.receive_all) is Code.OPEN_FAILED


def test_c3_messages_of_units_are_counted_one_by_one(world: LocalDeployment) -> None:
    """However many a stream asks at once, all are answered, and its memory is given back."""
    session = start_session(world)
    for _ in range(3):
        with spoken_to(world, session) as spoken:
            chunks = [*spoken.call.opening()]
            for _ in range(50):
                chunks += spoken.call.question(*[[message(at % 3)] for at in range(24)])
            spoken.send([*chunks, *spoken.call.end()], spoken.call.header)
            spoken.send_raw(b"")
            *answers, last = spoken.receive_all()
        assert [[*map(became, unit.messages)] for unit in answers] == [TABLE * 8] * 50
        assert last.trailer.unit == 50 * 24


DAMAGE: dict[str, Callable[[Chunks, Chunks], Sequence[bytes]]] = {
    "a bit": lambda ours, _: [*ours[:2], flip(ours[2], 20), *ours[3:]],
    "dropped": lambda ours, _: [*ours[:2], *ours[3:]],
    "doubled": lambda ours, _: [*ours[:2], ours[1], *ours[2:]],
    "swapped": lambda ours, _: [ours[0], ours[2], ours[1], *ours[3:]],
    "another stream's": lambda ours, twin: [*ours[:2], twin[2], *ours[3:]],
}


@pytest.mark.parametrize("how", DAMAGE)
def test_h2_a_unit_of_several_messages_that_was_touched_is_refused(
    world: LocalDeployment, how: str
) -> None:
    session = start_session(world)
    with spoken_to(world, session) as other:
        twin = all_chunks(other)
    with spoken_to(world, session) as spoken:
        spoken.send(DAMAGE[how](all_chunks(spoken), twin), spoken.call.header)
        spoken.send_raw(b"")
        assert refusal(spoken.receive_all) is Code.OPEN_FAILED
    assert not spoken.complete
    for unit in spoken.units:  # what was answered before the damage, was answered rightly
        first = unit.trailer.unit // 3
        assert [*map(became, unit.messages)] == [TABLE[(first + at) % 3] for at in range(3)]


LIES: dict[str, Callable[[Chunks], Sequence[bytes]]] = {
    "a bit": lambda chunks: [*chunks[:-2], flip(chunks[-2], 30), chunks[-1]],
    "dropped": lambda chunks: [*chunks[:-2], chunks[-1]],
    "doubled": lambda chunks: [*chunks[:-1], chunks[-2], chunks[-1]],
    "swapped": lambda chunks: [*chunks[:-3], chunks[-2], chunks[-3], chunks[-1]],
    "without the end": lambda chunks: chunks[:-1],
}


@pytest.mark.parametrize("how", LIES)
def test_h2_an_answer_to_several_messages_that_was_touched_is_refused(
    world: LocalDeployment, lying_host: LyingHost, how: str
) -> None:
    def lie(messages: Iterator[bytes], forward: ForwardStream) -> Iterator[bytes]:
        header, chunks = b"", []
        for answer in forward(messages):
            found, more = parse_chunks(answer, first=not header)
            header = header or found
            chunks += [bytes(chunk) for chunk in more]
        told = [encode_header(header), *map(encode_chunk, LIES[how](chunks))]
        yield b"".join(b"".join(each) for each in told)

    with world.client(target=lying_host.target) as client:
        client.infer(MODEL, picking(0), version=VERSION)
        lying_host.stream = lie
        stream = client.stream(MODEL, version=VERSION, outputs=["picked"])
        futures = [stream.submit(picking(at % 3)) for at in range(30)]
        assert refusal(stream.close) is Code.ANSWER_OPEN_FAILED
        for at, future in enumerate(futures):
            error = future.exception(TIMEOUT_S)
            if error is None:  # what was released before the lie was the truth
                assert future.result().outputs["picked"].tolist() == [TABLE[at % 3]]
            else:
                assert isinstance(error, CasemateError)
                assert error.code is Code.ANSWER_OPEN_FAILED


def test_h3_c9_a_stream_of_units_of_several_messages_runs_once(world: LocalDeployment) -> None:
    session = start_session(world)
    with spoken_to(world, session) as spoken:
        chunks = all_chunks(spoken)
        spoken.send(chunks, spoken.call.header)
        spoken.send_raw(b"")
        assert len(spoken.receive_all()) == 4
    with connect(genuine(world).address, TIMEOUT_S) as channel:
        again = Spoken(channel, spoken.call)
        again.send(chunks, spoken.call.header)
        again.send_raw(b"")
        assert refusal(again.receive_all) is Code.REPLAYED


def test_h14_answers_to_as_many_messages_have_one_length(world: LocalDeployment) -> None:
    """Whatever became of which; and a unit of one bucket does not show how many it has."""
    good, bad = message(1), to_request({"x": np.ones((1, WIDTH), np.float32)})
    asked = [
        [good] * 8,
        [message(POISON), *[good] * 7],
        [*[good] * 7, bad],
        [bad] * 8,
        [b"no message"] * 8,
    ]
    with spoken_to(world, start_session(world)) as spoken:
        spoken.begin()
        for messages in asked:
            spoken.ask(*messages)
        spoken.end()
        units = spoken.receive_all()
    assert [len(unit.messages) for unit in units] == [8] * 5 + [0]
    lengths = set()
    for at, frame in enumerate(spoken.frames):
        _, chunks = parse_chunks(frame, first=not at)
        lengths |= {len(chunk) for chunk in chunks}
    assert len(lengths) == 2  # and the end's
    with spoken_to(world, start_session(world)) as spoken:
        sizes = {
            len(*spoken.call.question(*[[b"a short message"]] * count)) for count in range(1, 33)
        }
    assert len(sizes) == 1
