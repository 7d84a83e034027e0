"""What happens to framed connections on their way (SPEC 9.6.3; THREATS H1, H2, H3, H4, H13, H14).

Client, host, enclave and KMS double are the real ones; the attacker passes on what they send.
"""

from __future__ import annotations

import functools
import itertools
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime
import pytest

from casemate import framed, limits
from casemate.client import RetryPolicy
from casemate.envelope.sealed_message import encode_sealed, parse_sealed
from casemate.errors import CasemateError, Code
from casemate.framed import Kind
from casemate.frames import ANSWER, ERROR, HEAD_BYTES, encode_frame, receive_frame
from casemate.v1.confidential_inference_pb2 import (
    NumberedRequest,
    NumberedResponse,
    Refusal,
    SealedRequests,
    SealedResponses,
)
from casemate_devkit.local import MODEL
from tests.support.attacker import GOOD, ROWS, eventually, genuine, start_session
from tests.support.damage import flip
from tests.support.deployment import DATA
from tests.support.framed_middle import Middleman, Passing, client_of, honest_frames, offer_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from casemate_devkit.local import LocalDeployment
    from tests.support.lying import LyingHost

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("still_serves")]

SMALL = {"features": ROWS}
LARGE = {"features": np.tile(DATA.features, (8, 1))}  # more than travels with others
WANTED = {"many": SMALL, "one": LARGE}
KINDS = {"many": Kind.MANY, "one": Kind.REQUEST}
# What may become of a call on whose connection somebody laid hands; never a wrong answer.
ENDS = {
    *(Code.OK, Code.OPEN_FAILED, Code.ANSWER_OPEN_FAILED, Code.MALFORMED, Code.TOO_LARGE),
    *(Code.UNAVAILABLE, Code.HOST_UNREACHABLE, Code.DEADLINE_EXCEEDED, Code.REPLAYED),
    *(Code.UNSUPPORTED_VERSION, Code.UNKNOWN_KEY, Code.EXPIRED),
    *(Code.UNKNOWN_INSTANCE, Code.WRONG_AUDIENCE, Code.STALE_SESSION, Code.OVERLOADED),
}


def begin(client: Any, between: Middleman, way: str) -> None:  # noqa: ANN401
    """Ask until frames of this kind pass ``between``."""

    def passes() -> bool:
        client.infer(MODEL, WANTED[way])
        return KINDS[way] in between.kinds(to_host=True)

    assert eventually(passes)


def end_of(client: Any, way: str, timeout_s: float = 60) -> Code:  # noqa: ANN401
    """What becomes of one call; a wrong answer fails the test."""
    try:
        result = client.infer(MODEL, WANTED[way], timeout_s=timeout_s)
    except CasemateError as error:
        return error.code
    assert np.array_equal(result.outputs["label"], labels_of(way))
    return Code.OK


@functools.cache
def labels_of(way: str) -> Any:  # noqa: ANN401 - an array
    """What plain onnxruntime says."""
    plain = onnxruntime.InferenceSession(DATA.onnx, providers=["CPUExecutionProvider"])
    return plain.run(["label"], WANTED[way])[0]


class Once:
    """A lie about the next frame of a kind."""

    def __init__(self, kind: int, act: Callable[[bytes], Iterable[bytes] | None]) -> None:
        self._kind = kind
        self._act = act
        self.done = threading.Event()

    def __call__(self, passing: Passing) -> Iterable[bytes] | None:
        if passing.kind != self._kind or self.done.is_set():
            return honest_frames(passing)
        self.done.set()
        return self._act(passing.whole)


def flipped(position: int, bit: int, whole: bytes) -> tuple[bytes]:
    return (flip(whole, position, bit),)


def cut_after(lie: Once, between: Middleman, ended: threading.Event, within_s: float) -> None:
    """Cut the connections some time after the lie: who waits for more hears of it."""
    lie.done.wait(30)
    ended.wait(within_s)
    between.forget()


# H2: touched on the way

HEAD_BITS = [(position, bit) for position in range(HEAD_BYTES) for bit in (0, 7)]
# The first bytes are protobuf's; then follow number, budget and the header of SPEC 5.1; the last
# are the sealed chunk's.
BODY_BITS = [(position, 1) for position in (9, 10, 11, 12, 13, 14, 17, 21, 30, 60, 150, -1, -17)]


@pytest.mark.slow
@pytest.mark.parametrize("side", ["to host", "to client"])
@pytest.mark.parametrize("way", KINDS)
def test_h2_a_flipped_bit_on_a_framed_connection_gives_no_wrong_answer(
    deployment: LocalDeployment, lying_host: LyingHost, between: Middleman, way: str, side: str
) -> None:
    kind = KINDS[way] if side == "to host" else KINDS[way] | ANSWER
    ends = []
    for (position, bit), which in zip(
        HEAD_BITS + BODY_BITS, itertools.cycle(["blocking", "loop"]), strict=False
    ):
        between.lie = honest_frames
        with client_of(which, deployment, lying_host.target) as client:
            begin(client, between, way)
            lie = Once(kind, functools.partial(flipped, position, bit))
            between.lie = lie
            ended = threading.Event()
            moment = 60.0 if position < 0 else 0.3  # what is sealed is always answered
            cutter = threading.Thread(target=cut_after, args=(lie, between, ended, moment))
            cutter.start()
            ends.append(end_of(client, way))
            ended.set()
            cutter.join()
            assert lie.done.is_set()
            between.lie = honest_frames
            assert end_of(client, "many") is Code.OK
        between.forget()
    assert set(ends) <= ENDS
    tail = {Code.OPEN_FAILED} if side == "to host" else {Code.ANSWER_OPEN_FAILED}
    assert set(ends[-2:]) == tail


@pytest.mark.parametrize("way", KINDS)
def test_h2_a_frame_that_is_dropped_is_the_clients_own_deadline(
    between: Middleman,
    client: Any,  # noqa: ANN401
    way: str,
) -> None:
    for kind in (KINDS[way], KINDS[way] | ANSWER):
        begin(client, between, way)
        between.lie = Once(kind, lambda _: ())
        assert end_of(client, way, timeout_s=1) is Code.DEADLINE_EXCEEDED
        between.lie = honest_frames
        assert end_of(client, way) is Code.OK
        between.forget()


@pytest.mark.parametrize("way", KINDS)
def test_h2_a_frame_that_is_doubled_runs_once(
    deployment: LocalDeployment,
    between: Middleman,
    client: Any,  # noqa: ANN401
    way: str,
) -> None:
    """The host ends a connection on which a number is under way twice; identical bytes run once."""
    for kind in (KINDS[way], KINDS[way] | ANSWER):
        begin(client, between, way)
        between.lie = Once(kind, lambda whole: (whole, whole))
        assert end_of(client, way) in ENDS
        assert end_of(client, way) in ENDS  # on a connection that is ending
        between.lie = honest_frames
        assert eventually(functools.partial(fine, client, way))
        between.forget()


def fine(client: Any, way: str) -> bool:  # noqa: ANN401
    return end_of(client, way) is Code.OK


def test_h2_frames_in_another_order_are_answered_each_by_its_number(
    between: Middleman,
    client: Any,  # noqa: ANN401
) -> None:
    begin(client, between, "many")
    held: list[bytes] = []

    def backwards(passing: Passing) -> Iterable[bytes]:
        if passing.kind != Kind.MANY:
            return honest_frames(passing)
        held.append(passing.whole)
        if len(held) < 2:
            return ()
        late, held[:] = held[::-1], []
        return late

    between.lie = backwards
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(end_of, client, "many")
        assert eventually(lambda: bool(held))
        second = pool.submit(end_of, client, "many")
        assert (first.result(), second.result()) == (Code.OK, Code.OK)
    between.lie = honest_frames


# H3, H4: repeated and swapped


def test_h3_what_crossed_a_framed_connection_runs_once_whatever_is_replayed(
    deployment: LocalDeployment,
    between: Middleman,
    client: Any,  # noqa: ANN401
) -> None:
    """Whole requests of both kinds, on connections of the attacker's own and as calls."""
    for way in KINDS:
        begin(client, between, way)
    sealed = []
    for passing in list(between.seen):
        if passing.to_host and passing.kind == Kind.REQUEST:
            sealed.append(passing.payload)
        if passing.to_host and passing.kind == Kind.MANY:
            entries = SealedRequests.FromString(passing.payload).requests
            sealed += [entry.request for entry in entries]
    assert len(sealed) >= 2
    before = genuine(deployment).counters()["requests"]
    for request in sealed:
        with dial(deployment) as channel:
            assert ask_one(channel, request) == "REPLAYED"
        if len(request) <= limits.CALL_STREAM_REQUEST_MAX:
            with dial(deployment) as channel:
                assert ask_many(channel, request, request) == ["REPLAYED", "REPLAYED"]
    after = genuine(deployment).counters()
    assert after["requests"] > before  # they did arrive


def test_h4_swapped_answers_on_framed_connections_are_refused(
    between: Middleman,
    client: Any,  # noqa: ANN401
) -> None:
    for way, kind in KINDS.items():
        begin(client, between, way)
        if way == "one":
            assert eventually(functools.partial(on_two_connections, client, between))
        between.lie = Swap(kind | ANSWER)
        with ThreadPoolExecutor(2) as pool:
            ends = list(pool.map(lambda _, w=way: end_of(client, w), range(2)))
        assert ends == [Code.ANSWER_OPEN_FAILED] * 2
        between.lie = honest_frames
        between.forget()


def on_two_connections(client: Any, between: Middleman) -> bool:  # noqa: ANN401
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda _: end_of(client, "one"), range(2)))
    asked = [passing for passing in list(between.seen) if passing.kind == Kind.REQUEST]
    return len({passing.connection for passing in asked}) > 1


class Swap:
    """Gives two questions each other's answers, whichever connections they are on."""

    def __init__(self, kind: int) -> None:
        self._kind = kind
        self._both = threading.Barrier(2)
        self._answers: list[bytes] = []
        self._lock = threading.Lock()
        self._held: list[NumberedResponse] = []

    def __call__(self, passing: Passing) -> Iterable[bytes]:
        if passing.kind != self._kind:
            return honest_frames(passing)
        if passing.kind == Kind.MANY | ANSWER:
            return self._many(passing)
        with self._lock:
            mine = len(self._answers)
            self._answers.append(passing.whole)
        if mine > 1:
            return honest_frames(passing)
        self._both.wait(30)
        return (self._answers[1 - mine],)

    def _many(self, passing: Passing) -> Iterable[bytes]:
        self._held += SealedResponses.FromString(passing.payload).responses
        if len(self._held) < 2:
            return ()
        one, other = self._held
        swapped = [
            NumberedResponse(number=one.number, response=other.response),
            NumberedResponse(number=other.number, response=one.response),
        ]
        message = SealedResponses(responses=swapped).SerializeToString()
        return (encode_frame(self._kind, message),)


# H13: cut anywhere


def dial(deployment: LocalDeployment) -> socket.socket:
    """A framed connection to the genuine host, past the hellos."""
    offer = offer_of(deployment.target)
    channel = socket.create_connection(("127.0.0.1", offer.port), 60)
    greeting = receive_frame(channel)
    assert greeting is not None
    assert encode_frame(greeting.type, greeting.payload) == offer.greeting
    channel.sendall(framed.hello())
    welcome = receive_frame(channel)
    assert welcome is not None
    assert (welcome.type, bytes(welcome.payload)) == (Kind.HELLO | ANSWER, b"")
    return channel


def ask_one(channel: socket.socket, request: bytes) -> str | bytes:
    """One exchange: the sealed answer, or the reason of a refusal."""
    channel.sendall(encode_frame(Kind.REQUEST, request, 30_000))
    answer = receive_frame(channel)
    assert answer is not None
    if answer.type == ERROR:
        return str(Refusal.FromString(bytes(answer.payload)).reason)
    assert answer.type == Kind.REQUEST | ANSWER
    return bytes(answer.payload)


def ask_many(channel: socket.socket, *requests: bytes) -> list[str | bytes]:
    """Ask all in one frame; answers in the order of the questions."""
    entries = [
        NumberedRequest(number=number, budget=30_000, request=request)
        for number, request in enumerate(requests, 1)
    ]
    channel.sendall(encode_frame(Kind.MANY, SealedRequests(requests=entries).SerializeToString()))
    answers: dict[int, str | bytes] = {}
    while len(answers) < len(requests):
        frame = receive_frame(channel)
        assert frame is not None
        assert frame.type == Kind.MANY | ANSWER
        for entry in SealedResponses.FromString(bytes(frame.payload)).responses:
            refused = entry.HasField("refusal")
            answers[entry.number] = entry.refusal.reason if refused else entry.response
    return [answers[number] for number in sorted(answers)]


def request_of(session: Any) -> tuple[Any, bytes]:  # noqa: ANN401
    call = session.seal(GOOD)
    return call, b"".join(encode_sealed(call.header, call.ciphertext))


def test_h13_a_request_that_is_cut_anywhere_does_not_run_and_leaves_nothing(
    deployment: LocalDeployment,
) -> None:
    """At every byte of heads and of protobuf's own, and at many of the sealed ones."""
    assert deployment.host is not None
    pid = deployment.host.pid
    fds = open_files(pid)
    session = start_session(deployment)
    _, request = request_of(session)
    entry = NumberedRequest(number=1, budget=30_000, request=request)
    many = encode_frame(Kind.MANY, SealedRequests(requests=[entry]).SerializeToString())
    one = encode_frame(Kind.REQUEST, request, 30_000)
    before = genuine(deployment).counters()["requests"]
    for whole in (many, one):
        for cut in {*range(24), *range(24, len(whole), 61), len(whole) - 1}:
            with dial(deployment) as channel:
                channel.sendall(whole[:cut])
    for cut in range(len(framed.hello("Bearer " + "t" * 20))):
        with socket.create_connection(("127.0.0.1", offer_of(deployment.target).port)) as channel:
            channel.sendall(framed.hello("Bearer " + "t" * 20)[:cut])
    assert eventually(lambda: open_files(pid) <= fds + 8)
    assert genuine(deployment).counters()["requests"] == before
    call, request = request_of(session)
    with dial(deployment) as channel:
        answer = ask_one(channel, request)
    assert isinstance(answer, bytes)
    assert call.open(*parse_sealed(memoryview(answer))).trailer.status is Code.OK


def open_files(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


@pytest.mark.slow
@pytest.mark.parametrize("side", ["to host", "to client"])
def test_h13_a_connection_that_is_cut_anywhere_ends_each_call_once(
    deployment: LocalDeployment,
    lying_host: LyingHost,
    between: Middleman,
    monkeypatch: pytest.MonkeyPatch,
    side: str,
) -> None:
    """In the hellos, too; what was sent may be sent again as identical bytes, and runs once."""
    monkeypatch.setattr(RetryPolicy, "pause", lambda *_: 0.02)
    to_host = side == "to host"
    cuts = [0, 1, 4, 8, 9, 10, 17, 18, 19, 25, 26, 27, 30, 34, 35, 36, 44, 45, 60, 100, 1000, 3000]
    for index, cut in enumerate(cuts):
        between.cut = to_host, cut
        kind = ("blocking", "loop")[index % 2]
        with client_of(kind, deployment, lying_host.target) as client:
            ends: list[Code] = []
            assert eventually(functools.partial(reaches, between, client, ends))
            ends += [end_of(client, way) for way in (*["many"] * 12, "one", "one")]
            assert set(ends) <= {Code.OK, Code.UNAVAILABLE, Code.HOST_UNREACHABLE, Code.REPLAYED}
            assert ends.count(Code.OK) >= len(ends) - 5  # three of many, and both that go alone
        between.cut = None
        between.forget()


def reaches(between: Middleman, client: Any, ends: list[Code]) -> bool:  # noqa: ANN401
    """Whether ``client``, which makes a call, has begun a connection to ``between``."""
    ends.append(end_of(client, "many"))
    return between.connections > 0


# H1, H14: what the wire shows


@pytest.mark.parametrize("way", KINDS)
def test_h14_the_wire_of_frames_shows_the_sizes_of_calls(
    lying_host: LyingHost,
    deployment: LocalDeployment,
    between: Middleman,
    way: str,
) -> None:
    """Questions of one bucket look alike, and as long as gRPC's; so do their answers."""
    sizes: set[tuple[int, int]] = set()

    def note(request: bytes, forward: Callable[[bytes], bytes]) -> bytes:
        answer = forward(request)
        sizes.add((len(request), len(answer)))
        return answer

    def ask(client: Any) -> None:  # noqa: ANN401
        counts = (1, 2, 5) if way == "many" else (1000, 1001, 1002)
        for rows in counts:
            client.infer(MODEL, {"features": np.repeat(ROWS[:1], rows, axis=0)})

    lying_host.infer = note
    offers, lying_host.offers = lying_host.offers, tuple
    with deployment.client(target=lying_host.target) as plain:
        ask(plain)
    calls = set(sizes)
    lying_host.offers = offers
    with client_of("blocking", deployment, lying_host.target) as client:
        begin(client, between, way)
        asked = len(between.seen)
        ask(client)
        passed = between.seen[asked:]
    lengths = [sealed_length(passing) for passing in passed]
    assert set(zip(lengths[::2], lengths[1::2], strict=True)) == calls
    assert len(calls) == 1


def sealed_length(passing: Passing) -> int:
    if passing.kind & ~ANSWER == Kind.REQUEST:
        return len(passing.payload)
    if passing.to_host:
        (question,) = SealedRequests.FromString(passing.payload).requests
        return len(question.request)
    (answer,) = SealedResponses.FromString(passing.payload).responses
    return len(answer.response)


def test_h1_no_piece_of_a_tensor_or_name_crosses_a_framed_connection(
    between: Middleman,
    client: Any,  # noqa: ANN401
) -> None:
    for way in KINDS:
        begin(client, between, way)
    record = b"".join(passing.whole for passing in list(between.seen))
    assert len(record) > 100_000
    for secret in (ROWS.tobytes()[:16], LARGE["features"][7].tobytes()[:16], b"features", b"wdbc"):
        assert secret not in record
