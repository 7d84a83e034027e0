"""What happens to a stream on a framed connection (SPEC 9.6.3; THREATS H1, H2, H4, H13, H14, H24).

Client, host, enclave and KMS double are the real ones; the attacker passes on what they send.
"""

from __future__ import annotations

import functools
import itertools
import operator
import secrets
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from casemate import framed, limits
from casemate.errors import CasemateError, Code
from casemate.framed import Kind, Offer
from casemate.frames import ANSWER, COUNTED, encode_frame, encode_head
from casemate_devkit.local import MODEL
from tests.support.attacker import ROWS, eventually
from tests.support.damage import flip
from tests.support.framed_middle import (
    Bystander,
    Middleman,
    Passing,
    client_of,
    honest_frames,
)
from tests.support.patience import patiently
from tests.support.threads import Newcomers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from casemate_devkit.local import LocalDeployment
    from tests.support.lying import ForwardStream, LyingHost

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("still_serves")]

STREAM, ANSWERED = Kind.STREAM, Kind.STREAM | ANSWER
COUNT = 3
# What may become of a stream on whose connection somebody laid hands; never a wrong answer.
ENDS = {
    *(Code.OK, Code.OPEN_FAILED, Code.ANSWER_OPEN_FAILED, Code.MALFORMED, Code.TOO_LARGE),
    *(Code.UNAVAILABLE, Code.HOST_UNREACHABLE, Code.DEADLINE_EXCEEDED, Code.REPLAYED),
    *(Code.UNSUPPORTED_VERSION, Code.UNKNOWN_KEY, Code.EXPIRED, Code.UNKNOWN_INSTANCE),
    *(Code.WRONG_AUDIENCE, Code.STALE_SESSION, Code.ANSWER_INSTANCE_UNKNOWN),
}


class ByGrpc:
    """An honest host's `InferStream`, and how often it was called."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, messages: Iterator[bytes], forward: ForwardStream) -> Iterator[bytes]:
        self.calls += 1
        return forward(messages)


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """No stream goes by gRPC because the machine is slow."""
    monkeypatch.setattr(limits, "FRAMED_CONNECT_S", 60.0)


@pytest.fixture
def by_grpc(lying_host: LyingHost) -> ByGrpc:
    lying_host.stream = counting = ByGrpc()
    return counting


@pytest.fixture
def ends(expected: dict[str, bytes]) -> Callable[..., Code]:
    """What becomes of one stream of ``COUNT`` questions; a wrong answer fails the test."""

    def end_of(client: Any, timeout_s: float = 60) -> Code:  # noqa: ANN401
        while (code := once(client, timeout_s)) is Code.OVERLOADED:
            time.sleep(0.2)  # the genuine host was asked for evidence too often
        return code

    def once(client: Any, timeout_s: float) -> Code:  # noqa: ANN401
        try:
            with client.stream(MODEL, version=1, timeout_s=timeout_s) as stream:
                for result in stream.map([{"features": ROWS}] * COUNT):
                    outputs = {name: array.tobytes() for name, array in result.outputs.items()}
                    assert outputs == expected
        except CasemateError as error:
            return error.code
        return Code.OK

    return end_of


class Once:
    """A lie about the next frame of a kind, on a connection that is made later.

    The end of an earlier stream may still be on its way. With ``cut``, a moment later, all is cut.

    If ``mute``, no further one passes, nor that the host has ended, until it is ``over``.
    """

    def __init__(
        self,
        between: Middleman,
        kind: int,
        act: Callable[[bytes], Iterable[bytes] | None],
        *,
        cut: bool = False,
        mute: bool = False,
    ) -> None:
        self._kind = kind
        self._since = between.accepted
        self._act = act
        self._mute = mute
        self.done = threading.Event()
        self.over = threading.Event()
        self.cut = threading.Timer(0.2, between.forget) if cut else None

    def __call__(self, passing: Passing) -> Iterable[bytes] | None:
        if passing.kind != self._kind or passing.connection < self._since:
            return honest_frames(passing)
        if self.done.is_set():
            if self._mute:
                self.over.wait(60)
            return honest_frames(passing)
        self.done.set()
        if self.cut is not None:
            self.cut.start()
        return self._act(passing.whole)


# H2: touched on the way

# The head; protobuf's own bytes and the header of SPEC 5.1 or 5.7; the last are a sealed chunk's.
BITS = [(0, 7), (3, 0), (4, 0), (4, 7), (8, 0), (9, 1), (10, 1), (13, 1), (60, 1), (-1, 1)]


def flipped(position: int, bit: int, whole: bytes) -> tuple[bytes]:
    return (flip(whole, position, bit),)


@pytest.mark.slow
@pytest.mark.parametrize("side", ["to host", "to client"])
def test_h2_a_flipped_bit_in_a_framed_stream_gives_no_wrong_answer(
    deployment: LocalDeployment,
    lying_host: LyingHost,
    between: Middleman,
    ends: Callable[..., Code],
    side: str,
) -> None:
    kind = STREAM if side == "to host" else ANSWERED
    codes = []
    for (position, bit), which in zip(BITS, itertools.cycle(["blocking", "loop"]), strict=False):
        lie = Once(between, kind, functools.partial(flipped, position, bit), cut=True)
        between.lie = lie
        with client_of(which, deployment, lying_host.target) as client:
            codes.append(ends(client))
            assert lie.done.is_set()
            assert lie.cut is not None
            lie.cut.join()
            between.lie = honest_frames
            assert ends(client) is Code.OK
    assert set(codes) <= ENDS
    assert codes[-1] is (Code.OPEN_FAILED if side == "to host" else Code.ANSWER_OPEN_FAILED)


LIES: dict[str, tuple[Callable[[bytes], Iterable[bytes] | None], Code]] = {
    "nothing": (lambda _: (), Code.DEADLINE_EXCEEDED),
    "the end": (lambda _: None, Code.UNAVAILABLE),
    "half of it": (lambda whole: (whole[: len(whole) // 2],), Code.DEADLINE_EXCEEDED),
    "another kind": (lambda whole: (whole[:4] + b"\x83" + whole[5:],), Code.UNAVAILABLE),
    "a kind of the client's": (lambda whole: (whole[:4] + b"\x04" + whole[5:],), Code.UNAVAILABLE),
    "too long": (
        lambda _: (encode_head(ANSWERED, limits.STREAM_MESSAGE_MAX + 1),),
        Code.UNAVAILABLE,
    ),
    "garbage": (lambda _: (secrets.token_bytes(9) * 1000,), Code.UNAVAILABLE),
    "a message of garbage": (
        lambda _: (encode_frame(ANSWERED, b"\xff" * 500),),
        Code.ANSWER_OPEN_FAILED,
    ),
    "twice": (lambda whole: (whole, whole), Code.ANSWER_OPEN_FAILED),
    "only the end": (lambda _: (encode_frame(ANSWERED, b""),), Code.ANSWER_OPEN_FAILED),
    "a refusal that is none": (lambda _: (encode_frame(0xFF, b"\xff"),), Code.UNAVAILABLE),
}


@pytest.mark.parametrize("how", LIES)
def test_h2_h13_a_host_that_lies_on_a_framed_stream_ends_it_once(
    between: Middleman,
    by_grpc: ByGrpc,
    client: Any,  # noqa: ANN401
    ends: Callable[..., Code],
    how: str,
) -> None:
    """In time, with one code, without a second attempt: its questions may have been answered."""
    lie, code = LIES[how]
    assert ends(client) is Code.OK
    late = code is Code.DEADLINE_EXCEEDED

    def lied_to(timeout_s: float) -> tuple[Code, bool]:
        """The end of a stream, and whether it came this way: half its time is for connecting."""
        between.forget()
        by_grpc.calls = 0
        between.lie = once = Once(between, ANSWERED, lie, mute=late)
        end = ends(client, timeout_s=timeout_s)
        once.over.set()
        return end, once.done.is_set()

    assert patiently(lied_to, operator.itemgetter(1), (3, 30) if late else (60,)) == (code, True)
    assert (between.connections, by_grpc.calls) == (1, 0)
    between.lie = honest_frames
    assert ends(client) is Code.OK
    assert (between.connections, by_grpc.calls) == (2, 0)


# H4: answers of one stream in the other


def test_h4_swapped_answers_of_framed_streams_are_refused(
    between: Middleman,
    client: Any,  # noqa: ANN401
    ends: Callable[..., Code],
) -> None:
    both, lock, answers = threading.Barrier(2), threading.Lock(), dict[int, bytes]()

    def swap(passing: Passing) -> Iterable[bytes]:
        if passing.kind != ANSWERED or passing.connection in answers:
            return honest_frames(passing)
        with lock:
            answers[passing.connection] = passing.whole
        both.wait(30)
        (other,) = (whole for number, whole in answers.items() if number != passing.connection)
        return (other,)

    between.lie = swap
    with ThreadPoolExecutor(2) as pool:
        codes = list(pool.map(lambda _: ends(client), range(2)))
    assert codes == [Code.ANSWER_OPEN_FAILED] * 2


# H13: cut anywhere

CUTS = [0, 1, 8, 9, 17, 25, 26, 27, 30, 34, 35, 36, 44, 45, 100, 1000]
HELLOS = {"to host": len(framed.hello()), "to client": framed.GREETING_BYTES + COUNTED + 4}


@pytest.mark.slow
@pytest.mark.parametrize("side", HELLOS)
def test_h13_a_stream_that_is_cut_anywhere_ends_once(
    deployment: LocalDeployment,
    lying_host: LyingHost,
    between: Middleman,
    by_grpc: ByGrpc,
    ends: Callable[..., Code],
    side: str,
) -> None:
    """Cut within the hellos it was not asked, and goes by gRPC; later it is not repeated."""
    for cut, which in zip(CUTS, itertools.cycle(["blocking", "loop"]), strict=False):
        between.cut = side == "to host", cut
        before = by_grpc.calls
        with client_of(which, deployment, lying_host.target) as client:
            code = ends(client)
        # At the hello's last byte either may have happened: the host answers it before it is cut.
        if cut < HELLOS[side]:
            assert (code, by_grpc.calls - before) == (Code.OK, 1)
        elif cut > HELLOS[side]:
            assert (code, by_grpc.calls - before) == (Code.UNAVAILABLE, 0)
        between.forget()


# H1, H14: what the wire shows


def kept(messages: Iterator[bytes], record: list[bytes]) -> Iterator[bytes]:
    for message in messages:
        record.append(message)
        yield message


def test_h1_h14_a_framed_stream_shows_what_grpc_shows(
    deployment: LocalDeployment,
    lying_host: LyingHost,
    between: Middleman,
    ends: Callable[..., Code],
) -> None:
    """Questions of one bucket look alike, and as long as by gRPC; so do their answers."""
    calls: list[tuple[int, int]] = []

    def note(messages: Iterator[bytes], forward: ForwardStream) -> Iterator[bytes]:
        asked: list[bytes] = []
        answered: list[bytes] = []
        yield from kept(forward(kept(messages, asked)), answered)
        calls.append((sum(map(len, asked)), sum(map(len, answered))))

    def ask(client: Any) -> None:  # noqa: ANN401
        assert ends(client) is Code.OK
        between.forget()
        calls.clear()
        for rows in (1, 2, 5):
            with client.stream(MODEL, version=1) as stream:
                for _ in stream.map([{"features": np.repeat(ROWS[:1], rows, axis=0)}] * COUNT):
                    pass

    offers, lying_host.offers, lying_host.stream = lying_host.offers, tuple, note
    with deployment.client(target=lying_host.target) as plain:
        ask(plain)
    by_grpc = set(calls)
    lying_host.offers = offers
    with client_of("blocking", deployment, lying_host.target) as client:
        ask(client)
    assert calls == []
    for connection in range(between.accepted - 3, between.accepted):
        sizes = [
            sum(len(each.payload) for each in between.seen if (each.connection, each.kind) == which)
            for which in ((connection, STREAM), (connection, ANSWERED))
        ]
        assert {tuple(sizes)} == by_grpc
    record = b"".join(passing.whole for passing in between.seen)
    for secret in (ROWS[:1].tobytes()[:16], b"features", b"wdbc"):
        assert secret not in record


# H24: sent elsewhere

ID = bytes(range(framed.ID_BYTES))
BANNERS = {
    "silent": b"",
    "mail": b"220 mail.clinic.example ESMTP\r\n",
    "another host": Offer(1, secrets.token_bytes(framed.ID_BYTES)).greeting,
    "endless": secrets.token_bytes(1 << 20),
}


@pytest.mark.parametrize("banner", BANNERS)
def test_h24_a_service_that_is_not_the_host_hears_nothing_of_a_stream(
    lying_host: LyingHost,
    by_grpc: ByGrpc,
    client: Any,  # noqa: ANN401
    ends: Callable[..., Code],
    monkeypatch: pytest.MonkeyPatch,
    banner: str,
) -> None:
    """It goes by gRPC, after a bounded time where there is silence; the next one goes at once."""
    monkeypatch.setattr(limits, "FRAMED_CONNECT_S", 1.0)
    with Bystander(BANNERS[banner]) as bystander:
        lying_host.offers = lambda: (Offer(bystander.port, ID).text,)
        for _ in range(2):
            assert ends(client) is Code.OK
        assert eventually(lambda: bystander.visits > 0)
        assert (bystander.visits, by_grpc.calls) == (1, 2)
        assert eventually(lambda: bystander.left == 0)
        assert bystander.told == b""


def test_h24_an_offer_that_changes_under_streams_gathers_nothing(
    lying_host: LyingHost,
    client: Any,  # noqa: ANN401
    ends: Callable[..., Code],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each stream tries the last offer once, and nothing of an attempt outlives it."""
    monkeypatch.setattr(limits, "FRAMED_CONNECT_S", 0.2)
    newcomers = Newcomers()
    bystanders = [Bystander() for _ in range(6)]
    turns = itertools.cycle(bystanders)
    lying_host.offers = lambda: (Offer(next(turns).port, ID).text,)
    for _ in range(4):
        client.verify(timeout_s=60)
        assert ends(client) is Code.OK
    assert eventually(functools.partial(_all_left, bystanders))
    assert sum(each.visits for each in bystanders) <= 5
    assert eventually(lambda: "framed-stream" not in newcomers.names())
    assert b"".join(each.told for each in bystanders) == b""
    for each in bystanders:
        with each:
            pass


def _all_left(bystanders: list[Bystander]) -> bool:
    return not any(each.left for each in bystanders)
