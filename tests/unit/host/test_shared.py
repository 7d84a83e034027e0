"""The connection that small messages share: each call's fate is its own (SPEC 9.2.1)."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from casemate import frames, limits, numbered
from casemate.channel import UnixAddress, listen
from casemate.errors import Code, FrameError
from casemate.frames import ANSWER, ERROR, FrameType
from casemate_host.call import Call
from casemate_host.relay import Relay
from tests.support.attacker import eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from casemate.numbered import Numbered

    Script = Callable[[socket.socket, Iterator[Numbered]], None]
    Start = Callable[..., tuple[Relay, "Enclave"]]

ANSWERED = FrameType.REQUEST | ANSWER


class Enclave:
    """Plays one script for each connection, the last one for all that follow."""

    def __init__(self, path: Path, *scripts: Script) -> None:
        self.asked: list[bytes] = []
        self.numbers: dict[bytes, int] = {}
        self.given_up: list[int] = []
        self.accepted = 0
        self._scripts = scripts
        self._listener = listen(UnixAddress(str(path)))
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                channel, _ = self._listener.accept()
                script = self._scripts[min(self.accepted, len(self._scripts) - 1)]
                self.accepted += 1
                thread = threading.Thread(target=self._play, args=(channel, script), daemon=True)
                self._threads.append(thread)
                thread.start()

    def _play(self, channel: socket.socket, script: Script) -> None:
        with channel, contextlib.suppress(OSError, FrameError):
            script(channel, self._questions(channel))

    def _questions(self, channel: socket.socket) -> Iterator[Numbered]:
        while (frame := frames.receive_frame(channel)) is not None:
            question = numbered.first(frame)
            if question.type == FrameType.CANCEL:
                self.given_up.append(question.number)
                continue
            self.numbers[question.payload] = question.number
            self.asked.append(question.payload)
            yield question

    def stop(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(60)


def send(channel: socket.socket, question: Numbered, payload: bytes, kind: int = ANSWERED) -> None:
    channel.sendall(b"".join(numbered.answer(question.number, kind, (payload,))))


def echo(channel: socket.socket, questions: Iterator[Numbered]) -> None:
    for question in questions:
        send(channel, question, question.payload)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., tuple[Relay, Enclave]]]:
    with contextlib.ExitStack() as stack:

        def begin(*scripts: Script) -> tuple[Relay, Enclave]:
            enclave = Enclave(tmp_path / "s", *scripts)
            stack.callback(enclave.stop)
            relay = Relay(UnixAddress(str(tmp_path / "s")), 32, lambda: None)
            stack.callback(relay.close)
            return relay, enclave

        yield begin


def ask(relay: Relay, payload: bytes, budget_s: float = 60) -> bytes:
    return relay.exchange(FrameType.REQUEST, payload, Call(budget_s))


def code_of(relay: Relay, payload: bytes, budget_s: float = 60) -> Code:
    with pytest.raises(FrameError) as raised:
        ask(relay, payload, budget_s)
    return raised.value.code


def late(relay: Relay, enclave: Enclave, payload: bytes) -> int:
    """Ask with time enough for the question to arrive and for no more; returns its number."""
    for budget_s in (0.1, 1, 10):
        assert code_of(relay, payload, budget_s) is Code.DEADLINE_EXCEEDED
        if eventually(lambda: payload in enclave.asked, timeout_s=1):
            break
    return enclave.numbers[payload]


def together(relay: Relay, payloads: list[bytes]) -> list[bytes | Code]:
    """Ask all at the same time; answers or codes in the order of ``payloads``."""

    def one(payload: bytes) -> bytes | Code:
        try:
            return ask(relay, payload)
        except FrameError as error:
            return error.code

    with ThreadPoolExecutor(len(payloads)) as pool:
        return list(pool.map(one, payloads))


def test_a_storm_of_calls_shares_one_connection(start: Start) -> None:
    relay, enclave = start(echo)
    with ThreadPoolExecutor(32) as pool:
        payloads = [b"%d " % number * (number % 50 + 1) for number in range(2000)]
        assert list(pool.map(lambda payload: ask(relay, payload), payloads)) == payloads
    assert enclave.accepted == 1


def test_answers_in_another_order_reach_their_calls(start: Start) -> None:
    def backwards(channel: socket.socket, questions: Iterator[Numbered]) -> None:
        held = [next(questions) for _ in range(8)]
        for question in reversed(held):
            send(channel, question, question.payload)

    relay, _ = start(backwards)
    payloads = [b"%d" % number for number in range(8)]
    assert together(relay, payloads) == payloads


def test_one_refusal_is_one_calls(start: Start) -> None:
    def refuse_some(channel: socket.socket, questions: Iterator[Numbered]) -> None:
        for question in questions:
            if question.payload.startswith(b"bad"):
                send(channel, question, frames.encode_error(Code.OPEN_FAILED, "no"), ERROR)
            else:
                send(channel, question, question.payload)

    relay, enclave = start(refuse_some)
    payloads = [b"bad%d" % n if n % 2 else b"%d" % n for n in range(16)]
    expected = [Code.OPEN_FAILED if n % 2 else b"%d" % n for n in range(16)]
    assert together(relay, payloads) == expected
    assert enclave.accepted == 1


def test_a_lost_connection_fails_all_that_it_may_have_carried_and_repeats_none(
    start: Start,
) -> None:
    def die(_: socket.socket, questions: Iterator[Numbered]) -> None:
        for _unused in range(8):
            next(questions)

    relay, enclave = start(die, echo)
    payloads = [b"%d" % number for number in range(8)]
    assert together(relay, payloads) == [Code.UNAVAILABLE] * 8
    assert sorted(enclave.asked) == payloads
    assert ask(relay, b"after") == b"after"


def test_a_late_answer_reaches_nobody(start: Start) -> None:
    go = threading.Event()

    def slow(channel: socket.socket, questions: Iterator[Numbered]) -> None:
        question = next(questions)
        go.wait(60)
        send(channel, question, b"late")
        echo(channel, questions)

    relay, enclave = start(slow)
    late(relay, enclave, b"slow")
    go.set()
    assert [ask(relay, b"%d" % n) for n in range(5)] == [b"%d" % n for n in range(5)]
    assert enclave.accepted == 1


def test_whoever_reads_and_leaves_hands_the_reading_on(start: Start) -> None:
    """Calls with short deadlines leave in the middle of it; the patient get their answers."""
    go = threading.Event()

    def hold(channel: socket.socket, questions: Iterator[Numbered]) -> None:
        patient = (question for question in questions if question.payload == b"patient")
        held = [next(patient) for _ in range(5)]
        go.wait(60)
        for question in held:
            send(channel, question, question.payload)

    relay, _ = start(hold)
    with ThreadPoolExecutor(10) as pool:
        hasty = [pool.submit(code_of, relay, b"hasty", 0.2 + 0.05 * n) for n in range(1, 6)]
        time.sleep(0.02)
        patient = [pool.submit(ask, relay, b"patient") for _ in range(5)]
        assert {future.result() for future in hasty} == {Code.DEADLINE_EXCEEDED}
        go.set()
        assert [future.result() for future in patient] == [b"patient"] * 5


def test_whoever_sends_for_others_is_not_whom_reading_is_left_to(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be unable to go on before somebody has read: the enclave waits to be read."""
    monkeypatch.setattr("casemate_host.shared._SEND_S", 60.0)
    begun, queued, left = (threading.Event() for _ in range(3))

    def stubborn(channel: socket.socket, questions: Iterator[Numbered]) -> None:
        begun.wait(60)
        queued.wait(60)
        first, second, third = (next(questions) for _ in range(3))
        send(channel, first, first.payload)
        send(channel, second, second.payload)
        left.wait(60)  # the second, and with it who read
        channel.settimeout(20)
        send(channel, third, bytes(1 << 23))  # before anything more is read
        send(channel, next(questions), b"last")

    relay, _ = start(stubborn)
    relay._share(Call(60))
    shared = relay._shared
    assert shared is not None
    shared._channel.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    with ThreadPoolExecutor(4) as pool:
        sender = pool.submit(ask, relay, b"0" * limits.NUMBERED_MAX)  # then it sends for the rest
        assert eventually(lambda: shared._sender is not None)
        begun.set()
        others = []
        for payload in (b"1", b"2", b"3" * limits.NUMBERED_MAX):
            others.append(pool.submit(ask, relay, payload))
            assert eventually(lambda: len(shared._outbox) == len(others))
            time.sleep(0.05)
        queued.set()
        others[0].result(60)
        left.set()
        assert len(sender.result(60)) == limits.NUMBERED_MAX
        answers = [future.result(60) for future in others]
    assert [len(answer) for answer in answers] == [1, 1 << 23, 4]


def test_a_cancelled_call_leaves_and_the_others_stay(start: Start) -> None:
    go = threading.Event()

    def hold(channel: socket.socket, questions: Iterator[Numbered]) -> None:
        held = [next(questions) for _ in range(2)]
        go.wait(60)
        for question in held:
            send(channel, question, question.payload)

    relay, enclave = start(hold)
    call = Call(90)
    with ThreadPoolExecutor(2) as pool:
        gone = pool.submit(relay.exchange, FrameType.REQUEST, b"gone", call)
        stays = pool.submit(ask, relay, b"stays")
        assert eventually(lambda: len(enclave.asked) == 2)
        assert call.cancel()
        with pytest.raises(FrameError) as raised:
            gone.result(20)
        assert raised.value.code is Code.DEADLINE_EXCEEDED
        go.set()
        assert stays.result(20) == b"stays"


def hold_until(go: threading.Event, count: int, sent: threading.Event | None = None) -> Script:
    """Answer the first ``count`` questions when ``go`` is set, the others at once."""

    def play(channel: socket.socket, questions: Iterator[Numbered]) -> None:
        held = [next(questions) for _ in range(count)]

        def answer() -> None:
            go.wait(60)
            with contextlib.suppress(OSError):  # the test may be over
                for question in held:
                    send(channel, question, b"late")
            if sent is not None:
                sent.set()

        threading.Thread(target=answer, daemon=True).start()
        echo(channel, questions)

    return play


def test_a_call_that_leaves_tells_the_enclave_its_number(start: Start) -> None:
    """Because its caller went away, or because its time is over; who got an answer says nothing."""
    go = threading.Event()
    relay, enclave = start(hold_until(go, 2))
    call = Call(90)
    with ThreadPoolExecutor(1) as pool:
        gone = pool.submit(relay.exchange, FrameType.REQUEST, b"gone", call)
        assert eventually(lambda: len(enclave.asked) == 1)
        number = late(relay, enclave, b"late")
        assert eventually(lambda: enclave.given_up == [number])
        assert call.cancel()
        assert isinstance(gone.exception(20), FrameError)
    assert eventually(lambda: enclave.given_up == [number, 0])
    assert ask(relay, b"next") == b"next"
    go.set()
    assert ask(relay, b"after") == b"after"
    assert enclave.given_up == [number, 0]
    assert enclave.accepted == 1


def test_a_number_rests_until_its_answer_has_come(start: Start) -> None:
    go = threading.Event()
    relay, enclave = start(hold_until(go, 1))
    held = late(relay, enclave, b"held")
    shared = relay._shared
    assert shared is not None
    assert shared._given_up == {held}
    shared._number = held  # as after four thousand million questions
    assert ask(relay, b"other") == b"other"
    assert shared._number == held + 2
    go.set()
    assert eventually(lambda: ask(relay, b"read") == b"read" and not shared._given_up)
    shared._number = held
    assert ask(relay, b"again") == b"again"
    assert shared._number == held + 1
    assert enclave.accepted == 1


def test_a_late_answer_to_an_idle_connection_does_not_cost_it(start: Start) -> None:
    go, sent = threading.Event(), threading.Event()
    relay, enclave = start(hold_until(go, 1, sent))
    late(relay, enclave, b"held")
    go.set()
    assert sent.wait(60)
    time.sleep(0.1)  # longer than a connection is taken to be fresh
    assert ask(relay, b"x") == b"x"
    shared = relay._shared
    assert shared is not None
    assert not shared._given_up
    assert enclave.accepted == 1


def test_an_idle_connection_that_died_over_a_question_given_up_is_replaced(start: Start) -> None:
    ended = threading.Event()

    def die(_: socket.socket, questions: Iterator[Numbered]) -> None:
        next(questions)
        ended.wait(60)

    relay, enclave = start(die, echo)
    late(relay, enclave, b"held")
    ended.set()
    enclave._threads[1].join(60)  # who served the connection has closed it
    time.sleep(0.1)  # longer than a connection is taken to be fresh
    assert ask(relay, b"x") == b"x"
    assert enclave.accepted == 2


def test_what_was_never_sent_is_not_given_up_but_taken_back(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The enclave takes nothing; who waits to be sent and leaves is sent by nobody."""
    monkeypatch.setattr("casemate_host.shared._SEND_S", 60.0)
    go = threading.Event()

    def stubborn(channel: socket.socket, questions: Iterator[Numbered]) -> None:
        go.wait(60)
        echo(channel, questions)

    relay, enclave = start(stubborn)
    relay._share(Call(60))
    shared = relay._shared
    assert shared is not None
    shared._channel.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    with ThreadPoolExecutor(2) as pool:
        sender = pool.submit(ask, relay, b"0" * limits.NUMBERED_MAX)
        assert eventually(lambda: shared._sender is not None)
        assert pool.submit(code_of, relay, b"1", 0.1).result(60) is Code.DEADLINE_EXCEEDED
        assert not shared._outbox
        go.set()
        assert len(sender.result(60)) == limits.NUMBERED_MAX
    assert ask(relay, b"2") == b"2"
    assert b"1" not in enclave.asked
    assert not enclave.given_up


def test_an_idle_connection_that_spoke_unasked_is_replaced(start: Start) -> None:
    taken, strayed, over = (threading.Event() for _ in range(3))

    def babble(channel: socket.socket, questions: Iterator[Numbered]) -> None:
        question = next(questions)
        send(channel, question, b"first")
        taken.wait(60)
        send(channel, question, b"stray")
        strayed.set()
        over.wait(60)

    relay, enclave = start(babble, echo)
    assert ask(relay, b"x") == b"first"
    taken.set()
    assert strayed.wait(60)
    time.sleep(0.1)  # longer than a connection is taken to be fresh
    assert ask(relay, b"y") == b"y"
    assert enclave.accepted == 2
    over.set()


def test_what_the_kernel_refused_is_sent_again_and_only_that(start: Start) -> None:
    relay, enclave = start(echo)
    ask(relay, b"warm")

    class Dies(socket.socket):
        def sendmsg(self, *buffers: Any) -> int:  # noqa: ANN401 - as the class it extends
            raise BrokenPipeError  # and whoever reads sees the end only after that

    shared = relay._shared
    assert shared is not None
    shared._channel = Dies(fileno=shared._channel.detach())
    payloads = [b"%d" % number for number in range(8)]
    assert together(relay, payloads) == payloads
    assert sorted(enclave.asked) == [*payloads, b"warm"]
    assert enclave.accepted == 2


def test_a_refused_connection_says_why(start: Start) -> None:
    def full(channel: socket.socket, _: Iterator[Numbered]) -> None:
        frames.send_error(channel, Code.OVERLOADED, "too many connections")
        channel.recv(1 << 16)

    relay, _ = start(full)
    assert code_of(relay, b"x") is Code.OVERLOADED


@pytest.mark.parametrize(
    "answer",
    [
        b"".join(numbered.answer(0, FrameType.EVIDENCE | ANSWER, (b"odd",))),
        b"\x00\x00\x00\x09\xa0" + bytes(9),  # shorter than its own head
        b"\x00\x00\x00\x05\x83\x00\x00\x00\x00",
        frames._HEAD.pack(limits.FRAME_MAX + 1, 0xA0, 0) + bytes(5),
    ],
)
def test_an_answer_that_is_none_ends_the_connection(start: Start, answer: bytes) -> None:
    def odd(channel: socket.socket, questions: Iterator[Numbered]) -> None:
        next(questions)
        channel.sendall(answer)
        channel.recv(1)

    relay, enclave = start(odd, echo)
    assert code_of(relay, b"x") in {Code.INTERNAL, Code.UNAVAILABLE}
    assert ask(relay, b"y") == b"y"
    assert enclave.accepted == 2


def test_a_large_answer_comes_whole(start: Start) -> None:
    def large(channel: socket.socket, questions: Iterator[Numbered]) -> None:
        for question in questions:
            send(channel, question, question.payload * 2_000_000)

    relay, _ = start(large)
    assert ask(relay, b"abc") == b"abc" * 2_000_000
    assert together(relay, [b"a", b"b"]) == [b"a" * 2_000_000, b"b" * 2_000_000]


def test_closing_ends_an_idle_connection(start: Start) -> None:
    ended = threading.Event()

    def watch(channel: socket.socket, questions: Iterator[Numbered]) -> None:
        echo(channel, questions)
        ended.set()

    relay, _ = start(watch)
    ask(relay, b"x")
    relay.close()
    assert ended.wait(60)
