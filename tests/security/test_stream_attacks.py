"""Attacks of the host on streams (THREATS.md: H2, H3, H4, H13, H14, C3, C5, C9)."""

from __future__ import annotations

import os
import signal
import tempfile
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from casemate import limits
from casemate.channel import connect
from casemate.envelope.chunks import SEALED_CHUNK, Flag
from casemate.envelope.sealed_chunks import encode_chunk, encode_header, parse_chunks
from casemate.errors import CasemateError, Code
from casemate.sealed_model import LoopState, ModelLoop
from casemate.tensors import TensorSpec, to_request
from casemate_devkit.local import MODEL
from tests.support import onnx_bytes
from tests.support.attacker import (
    GOOD,
    ROWS,
    TIMEOUT_S,
    EnclaveSocket,
    eventually,
    freeze,
    genuine,
    refusal,
    start_session,
    wait_for_host,
)
from tests.support.damage import flip
from tests.support.deployment import running
from tests.support.streams import Spoken, speak
from tests.support.vendor_models import seal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from casemate_devkit.local import LocalDeployment
    from tests.support.attacker import Session
    from tests.support.lying import ForwardStream, LyingHost

pytestmark = pytest.mark.integration
WANTED = {"features": ROWS}
Chunks = list[bytes]


@pytest.fixture
def enclave(deployment: LocalDeployment, still_serves: Callable[[], None]) -> EnclaveSocket:
    """The genuine enclave, which answers correctly after each attack."""
    return genuine(deployment)


@contextmanager
def spoken_to(enclave: EnclaveSocket, session: Session) -> Iterator[Spoken]:
    with connect(enclave.address, TIMEOUT_S) as channel:
        yield speak(channel, session.keys, version=1)


def question_of(spoken: Spoken, count: int = 3) -> Chunks:
    """All chunks of a question with ``count`` messages, the opening and the end included."""
    chunks = [*spoken.call.opening()]
    for _ in range(count):
        chunks += spoken.call.question([GOOD])
    return [bytes(chunk) for chunk in (*chunks, *spoken.call.end())]


DAMAGE: dict[str, Callable[[Chunks, Chunks], Sequence[bytes]]] = {
    "a bit of the first chunk": lambda ours, _: [flip(ours[0], 700), *ours[1:]],
    "a bit of a message": lambda ours, _: [*ours[:2], flip(ours[2], 20), *ours[3:]],
    "a bit of a tag": lambda ours, _: [*ours[:2], flip(ours[2], -1), *ours[3:]],
    "the flag of a message": lambda ours, _: [*ours[:2], b"\2" + ours[2][1:], *ours[3:]],
    "the flag of the end": lambda ours, _: [*ours[:-1], b"\1" + ours[-1][1:]],
    "a cut chunk": lambda ours, _: [*ours[:2], ours[2][:-1], *ours[3:]],
    "a chunk dropped": lambda ours, _: [*ours[:2], *ours[3:]],
    "a chunk doubled": lambda ours, _: [*ours[:2], ours[1], *ours[2:]],
    "two chunks swapped": lambda ours, _: [ours[0], ours[2], ours[1], *ours[3:]],
    "no opening": lambda ours, _: ours[1:],
    "a chunk of another stream": lambda ours, twin: [*ours[:2], twin[2], *ours[3:]],
    "the end of another stream": lambda ours, twin: [*ours[:-1], twin[-1]],
    "more after the end": lambda ours, _: [*ours, ours[1]],
    "cut between two messages": lambda ours, _: ours[:2],
    "cut before the end": lambda ours, _: ours[:-1],
}


@pytest.mark.parametrize("how", DAMAGE)
def test_h2_a_streams_question_that_was_touched_is_refused(
    deployment: LocalDeployment, enclave: EnclaveSocket, how: str
) -> None:
    """Dropped, doubled, swapped, cut at a unit's boundary, spliced: one code, and no good end."""
    session = start_session(deployment)
    with spoken_to(enclave, session) as other:
        twin = question_of(other)
    with spoken_to(enclave, session) as spoken:
        damaged = DAMAGE[how](question_of(spoken), twin)
        spoken.send(damaged, spoken.call.header)
        spoken.send_raw(b"")
        assert refusal(spoken.receive_all) is Code.OPEN_FAILED
    assert not spoken.complete
    # What was answered before the damage was reached, was answered rightly.
    assert {unit.trailer.status for unit in spoken.units} <= {Code.OK}


def test_h2_damage_to_the_first_chunk_moves_no_window(
    deployment: LocalDeployment, enclave: EnclaveSocket
) -> None:
    """The host cannot spend a client's sequence: the same header is good afterwards."""
    session = start_session(deployment)
    with spoken_to(enclave, session) as spoken:
        chunks = question_of(spoken)
        spoken.send([flip(chunks[0], 99), *chunks[1:]], spoken.call.header)
        assert refusal(spoken.receive_all) is Code.OPEN_FAILED
    with connect(enclave.address, TIMEOUT_S) as channel:
        again = Spoken(channel, spoken.call)
        again.send(chunks, spoken.call.header)
        again.send_raw(b"")
        assert [unit.trailer.status for unit in again.receive_all()] == [Code.OK] * 4
    assert again.complete


def test_c3_streams_that_do_not_open_hold_no_memory(
    deployment: LocalDeployment, enclave: EnclaveSocket
) -> None:
    """As many as would fill the streams' memory, each refused: the next good one has all of it."""
    session = start_session(deployment)
    forged = bytes([Flag.UNIT_ENDS]) + bytes(SEALED_CHUNK)
    with spoken_to(enclave, session) as spoken:
        header = spoken.call.header
    for _ in range(limits.STREAM_BYTES_DEFAULT // limits.CHUNK):
        with connect(enclave.address, TIMEOUT_S) as channel:
            attacker = Spoken(channel, spoken.call)
            attacker.send([forged], header)
            assert refusal(attacker.receive_all) is Code.OPEN_FAILED
    with spoken_to(enclave, session) as honest:
        honest.budget = 60_000
        honest.send(question_of(honest), honest.call.header)
        honest.send_raw(b"")
        assert [unit.trailer.status for unit in honest.receive_all()] == [Code.OK] * 4


def test_c3_a_long_message_that_never_comes_keeps_nobody_else_waiting(
    deployment: LocalDeployment, enclave: EnclaveSocket
) -> None:
    """Its first chunk says how long it is, and takes all memory of streams for it."""
    session = start_session(deployment)
    length = limits.STREAM_BYTES_DEFAULT - limits.UNIT_MIN
    with spoken_to(enclave, session) as stalled, spoken_to(enclave, session) as honest:
        opening = [*stalled.call.opening()]
        first = next(iter(stalled.call.question([np.zeros(length, np.uint8).data])))
        stalled.budget = 200_000
        stalled.send([*opening, first], stalled.call.header)
        time.sleep(0.5)
        honest.budget = 60_000
        honest.send(question_of(honest), honest.call.header)
        honest.send_raw(b"")
        assert [unit.trailer.status for unit in honest.receive_all()] == [Code.OK] * 4


def test_h3_c9_a_stream_runs_once_whatever_is_replayed(
    deployment: LocalDeployment, enclave: EnclaveSocket
) -> None:
    """Whole, its opening alone, as a unary request, and a unary request as a stream."""
    session = start_session(deployment)
    with spoken_to(enclave, session) as spoken:
        chunks = question_of(spoken)
        spoken.send(chunks, spoken.call.header)
        spoken.send_raw(b"")
        assert len(spoken.receive_all()) == 4
    for replayed in (chunks, chunks[:1]):
        with connect(enclave.address, TIMEOUT_S) as channel:
            again = Spoken(channel, spoken.call)
            again.send(replayed, spoken.call.header)
            again.send_raw(b"")
            assert refusal(again.receive_all) is Code.REPLAYED
    fresh = session.keys.seal_stream(model=MODEL, version=1, digest=None, lead=lambda _: 0)
    opening = bytes(*fresh.opening())[1:]
    assert refusal(lambda: enclave.request(fresh.header, opening)) is Code.OPEN_FAILED
    call = session.seal()
    for flag in (b"\0", b"\1", b"\2"):
        with connect(enclave.address, TIMEOUT_S) as channel:
            other = Spoken(channel, fresh)
            other.send([flag + bytes(call.ciphertext)], call.header)
            other.send_raw(b"")
            assert refusal(other.receive_all) is Code.OPEN_FAILED
    answer = call.open(*enclave.request(call.header, call.ciphertext))  # nothing was spent
    assert answer.trailer.status is Code.OK


# The answer, between host and client


Answers = list[Chunks]


def messages_of(stream: Iterator[bytes]) -> tuple[bytes, Chunks]:
    """Header and chunks of an answer."""
    header, chunks = b"", []
    for message in stream:
        found, more = parse_chunks(message, first=not header)
        header = header or found
        chunks += [bytes(chunk) for chunk in more]
    return header, chunks


def joined(header: bytes, chunks: Sequence[bytes]) -> bytes:
    parts = [encode_header(header), *map(encode_chunk, chunks)]
    return b"".join(b"".join(part) for part in parts)


LIES: dict[str, Callable[[Chunks], Sequence[bytes]]] = {
    "a bit": lambda chunks: [*chunks[:1], flip(chunks[1], 30), *chunks[2:]],
    "a flag": lambda chunks: [*chunks[:1], b"\2" + chunks[1][1:], *chunks[2:]],
    "a cut chunk": lambda chunks: [*chunks[:1], chunks[1][:-16], *chunks[2:]],
    "an answer dropped": lambda chunks: [*chunks[:1], *chunks[2:]],
    "an answer doubled": lambda chunks: [*chunks[:2], *chunks[1:]],
    "two answers swapped": lambda chunks: [chunks[1], chunks[0], *chunks[2:]],
    "cut between two answers": lambda chunks: chunks[:2],
    "cut before the end": lambda chunks: chunks[:-1],
    "more after the end": lambda chunks: [*chunks, chunks[0]],
}


@pytest.mark.parametrize("how", LIES)
def test_h2_a_streams_answer_that_was_touched_is_refused(
    deployment: LocalDeployment, lying_host: LyingHost, expected: dict[str, bytes], how: str
) -> None:
    def lie(messages: Iterator[bytes], forward: ForwardStream) -> Iterator[bytes]:
        header, chunks = messages_of(forward(messages))
        yield joined(header, LIES[how](chunks))

    lying_host.stream = lie
    with deployment.client(target=lying_host.target) as client:
        stream = client.stream(MODEL, version=1)
        futures = [stream.submit(WANTED) for _ in range(4)]
        code = refusal(stream.close)
        right = [future.result() for future in futures if future.exception(60) is None]
    assert code is Code.ANSWER_OPEN_FAILED
    for result in right:  # what was released before the lie was the truth
        assert {name: array.tobytes() for name, array in result.outputs.items()} == expected


def test_h4_swapped_answers_of_two_streams_are_refused(
    deployment: LocalDeployment, lying_host: LyingHost
) -> None:
    """Two streams of one client at once, each given the other's answer; then an older one."""
    met = threading.Barrier(2, timeout=60)
    answers: dict[int, tuple[bytes, Chunks]] = {}
    order = threading.Lock()
    older: list[bytes] = []

    def lie(messages: Iterator[bytes], forward: ForwardStream) -> Iterator[bytes]:
        with order:
            mine = len(answers)
            answers[mine] = (b"", [])
        answers[mine] = messages_of(forward(messages))
        met.wait()
        older.append(joined(*answers[mine]))
        yield joined(*answers[1 - mine])

    def repeat(messages: Iterator[bytes], forward: ForwardStream) -> Iterator[bytes]:
        messages_of(forward(messages))
        yield older[0]

    lying_host.stream = lie
    with deployment.client(target=lying_host.target) as client:
        streams = [client.stream(MODEL, version=1) for _ in range(2)]
        futures = [stream.submit(WANTED) for stream in streams]
        closing = [threading.Thread(target=_quietly, args=(stream.close,)) for stream in streams]
        for thread in closing:
            thread.start()
        for future in futures:
            assert _code_of(future.exception(60)) is Code.ANSWER_OPEN_FAILED
        for thread in closing:
            thread.join()
        lying_host.stream = repeat
        stream = client.stream(MODEL, version=1)
        future = stream.submit(WANTED)
        assert refusal(stream.close) is Code.ANSWER_OPEN_FAILED
        assert _code_of(future.exception(60)) is Code.ANSWER_OPEN_FAILED


def _quietly(act: Callable[[], object]) -> None:
    try:
        act()
    except CasemateError:
        return


def _code_of(error: BaseException | None) -> Code | None:
    return error.code if isinstance(error, CasemateError) else None


# H13: death within a stream


@pytest.fixture(scope="module")
def mortal(tree: Path) -> Iterator[LocalDeployment]:
    with tempfile.TemporaryDirectory(prefix="cm-") as folder, running(Path(folder), tree) as made:
        yield made


@pytest.mark.slow
def test_h13_an_enclave_killed_within_a_stream_gives_no_wrong_and_no_second_answer(
    mortal: LocalDeployment, expected: dict[str, bytes]
) -> None:
    assert mortal.enclave is not None
    pid = int(mortal.enclave.ready["pid"])
    with mortal.client() as client:
        stream = client.stream(MODEL, version=1, timeout_s=110)
        before = [stream.submit(WANTED) for _ in range(10)]
        assert all(future.result(60) for future in before)
        freeze(pid)
        during = [stream.submit(WANTED) for _ in range(10)]
        time.sleep(0.3)
        os.kill(pid, signal.SIGKILL)
        assert {_code_of(future.exception(60)) for future in during} == {Code.UNAVAILABLE}
        assert refusal(stream.close) is Code.UNAVAILABLE
        for future in before:
            outputs = future.result().outputs
            assert {name: array.tobytes() for name, array in outputs.items()} == expected
        assert eventually(lambda: mortal.enclave is not None and not mortal.enclave.running())
        mortal.start_enclave()
        mortal.wait_until_serving()
        wait_for_host(mortal.target)
        # Nothing was sent again by itself; a new stream starts from new evidence.
        assert genuine(mortal).counters()["streams"] == 0
        with client.stream(MODEL, version=1) as again:
            assert again.submit(WANTED).result(60).model == MODEL


def test_h13_a_host_killed_within_a_stream_ends_it_in_the_enclave_too(
    mortal: LocalDeployment, tmp_path: Path
) -> None:
    enclave = genuine(mortal)
    scalar = TensorSpec("x", "FP32", ()), TensorSpec("y", "FP32", ())
    facts = {"inputs": scalar[:1], "outputs": scalar[1:]}
    enclave.load(seal(mortal, tmp_path, onnx_bytes.endless(), version=40, **facts))
    assert mortal.host is not None
    before = enclave.counters()
    with mortal.client() as client:
        stream = client.stream(MODEL, version=40, timeout_s=110)
        future = stream.submit({"x": np.ones((), np.float32)})
        assert eventually(lambda: enclave.counters()["streams"] > before["streams"])
        mortal.host.kill()
        error = future.exception(60)
        assert _code_of(error) in {Code.HOST_UNREACHABLE, Code.UNAVAILABLE}
        assert refusal(stream.close) is _code_of(error)
    assert eventually(lambda: enclave.counters()["streams_cut"] > before["streams_cut"])
    assert start_session(mortal).ask(enclave).trailer.status is Code.OK


# H14: what sizes and times tell


def test_h14_questions_and_answers_of_a_stream_look_alike(
    deployment: LocalDeployment, enclave: EnclaveSocket
) -> None:
    """Another number of rows, fewer outputs, refusals: one length of chunk in each direction."""
    session = start_session(deployment)
    asked = [to_request({"features": np.repeat(ROWS[:1], rows, axis=0)}) for rows in (1, 2, 5)]
    asked += [to_request({"features": ROWS}, ["label"]), to_request({"features": ROWS[:, :3]})]
    asked += [b"not a message", to_request({"pixels": ROWS})]
    with spoken_to(enclave, session) as spoken:
        questions = [bytes(chunk) for one in asked for chunk in spoken.call.question([one])]
        assert len({len(chunk) for chunk in questions}) == 1
    with spoken_to(enclave, session) as spoken:
        spoken.begin()
        for message in asked:
            spoken.ask(message)
        spoken.end()
        units = spoken.receive_all()
    assert {Code.OK, Code.INVALID_INPUT, Code.INVALID_REQUEST} == {
        unit.trailer.status for unit in units
    }
    chunks = [chunk for frame in spoken.frames for chunk in _chunks(frame)]
    assert len(chunks) == len(asked) + 1
    assert len({len(chunk) for chunk in chunks}) == 1


def _chunks(frame: bytes) -> Chunks:
    try:
        _, chunks = parse_chunks(frame, first=False)
    except CasemateError:
        _, chunks = parse_chunks(frame, first=True)
    return [bytes(chunk) for chunk in chunks]


def test_h14_pieces_are_padded_and_paced(
    deployment: LocalDeployment, enclave: EnclaveSocket, tmp_path: Path
) -> None:
    """Of a model that answers piece by piece the host sees a number of like pieces at a pace."""
    floats = {name: TensorSpec(name, "FP32", (1,)) for name in ("n", "limit", "square")}
    loop = ModelLoop((LoopState("next", "n"),), "done", steps=50, interval=50)
    facts: dict[str, Any] = {
        "inputs": (floats["n"], floats["limit"]),
        "outputs": (floats["square"],),
    }
    onnx = onnx_bytes.counting()
    enclave.load(
        seal(deployment, tmp_path, onnx, version=41, loop=loop, answer_bucket=9000, **facts)
    )
    try:
        session = start_session(deployment)
        with connect(enclave.address, TIMEOUT_S) as channel:
            spoken = speak(channel, session.keys, version=41).begin()
            begun = time.monotonic()
            spoken.ask(
                to_request({"n": np.zeros(1, np.float32), "limit": np.full(1, 8, np.float32)})
            )
            times: list[float] = []
            while len(times) < 8:
                assert spoken.receive()
                # Pieces that wait for a sender that was held up come together.
                times += [time.monotonic() - begun] * (len(spoken.units) - len(times))
            spoken.end()
            spoken.receive_all()
        [size] = {len(chunk) for frame in spoken.frames[:-1] for chunk in _chunks(frame)}
        assert size > 9000
        for number, at in enumerate(times, 1):  # never early, and late by the scheduler alone
            assert at >= 0.05 * number - 0.005
        assert times[-1] < 0.05 * 8 + 60
    finally:
        enclave.unload(MODEL, 41)
