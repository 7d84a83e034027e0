"""The relay against an enclave that answers, hangs, dies and lies (SPEC 9.1 to 9.3)."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from casemate import frames, limits
from casemate.channel import UnixAddress, listen
from casemate.errors import Code, FrameError
from casemate.frames import FrameType
from casemate_host.call import Call
from casemate_host.places import Places
from casemate_host.relay import Relay
from tests.support.attacker import eventually
from tests.support.fake_enclave import FakeEnclave, new_chain

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture
def enclave(tmp_path: Path) -> Iterator[FakeEnclave]:
    started = FakeEnclave(tmp_path / "enclave.sock", new_chain(), configuration=b"any").start()
    yield started
    started.stop()


@pytest.fixture
def lost() -> list[str]:
    return []


@pytest.fixture
def relay(enclave: FakeEnclave, lost: list[str]) -> Iterator[Relay]:
    made = Relay(UnixAddress(str(enclave.path)), 4, lambda: lost.append("lost"))
    yield made
    made.close()


# More than may be numbered: it travels over a connection of its own.
LARGE = b" " + bytes(limits.NUMBERED_MAX)


def ask(relay: Relay, payload: bytes, budget_s: float = 60) -> bytes:
    return relay.exchange(FrameType.REQUEST, payload, Call(budget_s))


def refused(ask: Callable[[], object]) -> FrameError:
    with pytest.raises(FrameError) as raised:
        ask()
    return raised.value


@pytest.mark.parametrize("size", [0, 1, 4096, 600_000, 9_000_000])
def test_bytes_come_back_as_they_were_sent(relay: Relay, size: int) -> None:
    payload = bytes(range(256)) * (size // 256 + 1)
    assert ask(relay, payload[:size]) == payload[:size]


def test_connections_are_kept(relay: Relay, enclave: FakeEnclave) -> None:
    for _ in range(20):
        ask(relay, b"hello")
    assert enclave.accepted == 1


def test_connections_that_a_burst_left_are_closed(relay: Relay, enclave: FakeEnclave) -> None:
    with ThreadPoolExecutor(4) as pool:
        burst = [pool.submit(ask, relay, b"sleep:60" + LARGE) for _ in range(4)]
        assert eventually(lambda: len(enclave.requests) == 4)
        enclave.released.set()
        for future in burst:
            future.result()
    relay.tidy()
    assert len(relay._idle) == 4
    for connection in relay._idle:
        connection._used -= 2 * limits.RELAY_IDLE_S
    assert ask(relay, LARGE) == LARGE
    relay.tidy()
    assert len(relay._idle) == 1  # the one that was used
    accepted = enclave.accepted
    assert ask(relay, LARGE) == LARGE
    assert enclave.accepted == accepted


def test_no_more_connections_than_allowed(relay: Relay, enclave: FakeEnclave) -> None:
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda _: ask(relay, b"sleep:0.02"), range(32)))
    assert set(answers) == {b"sleep:0.02"}
    assert 1 <= enclave.accepted <= 4


def test_answers_go_to_their_requests(relay: Relay) -> None:
    payloads = [b"%d " % number * (number + 1) for number in range(64)]
    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(lambda payload: ask(relay, payload), payloads)) == payloads


def test_the_budget_is_what_remains(relay: Relay, enclave: FakeEnclave) -> None:
    ask(relay, b"x", budget_s=500)
    assert 400_000 < enclave.budgets[-1] <= 500_000


def test_an_error_answer_keeps_its_code_and_the_connection(
    relay: Relay, enclave: FakeEnclave, lost: list[str]
) -> None:
    assert refused(lambda: ask(relay, b"refuse:REPLAYED")).code is Code.REPLAYED
    ask(relay, b"x")
    assert enclave.accepted == 1
    assert lost == []


@pytest.mark.parametrize("verb", [b"die", b"cut"])
def test_a_lost_answer_is_unavailable_and_never_sent_again(
    relay: Relay, enclave: FakeEnclave, lost: list[str], verb: bytes
) -> None:
    ask(relay, b"warm")
    assert refused(lambda: ask(relay, verb)).code is Code.UNAVAILABLE
    assert enclave.requests.count(verb) == 1
    assert lost == ["lost"]
    assert ask(relay, b"after") == b"after"


def test_an_answer_of_another_type_ends_the_connection(relay: Relay, enclave: FakeEnclave) -> None:
    assert refused(lambda: ask(relay, b"odd")).code is Code.INTERNAL
    ask(relay, b"x")
    assert enclave.accepted == 2


@pytest.mark.parametrize(("rest", "connections"), [(b"", 0), (LARGE, 1)], ids=["kept", "left"])
def test_no_answer_before_the_deadline(
    relay: Relay, enclave: FakeEnclave, rest: bytes, connections: int
) -> None:
    for budget_s in (0.1, 1, 10):  # until it is enough for the request to reach the enclave
        error = refused(partial(ask, relay, b"sleep:60" + rest, budget_s))
        assert error.code is Code.DEADLINE_EXCEEDED  # before the answer, which comes only now
        if eventually(lambda: bool(enclave.requests), timeout_s=1):
            break
    accepted = enclave.accepted
    enclave.released.set()
    for number in range(3):  # a late answer must not reach the next request
        assert ask(relay, b"%d" % number + rest) == b"%d" % number + rest
    assert enclave.accepted == accepted + connections


def test_waiting_for_a_connection_ends_at_the_deadline(relay: Relay, enclave: FakeEnclave) -> None:
    with ThreadPoolExecutor(4) as pool:
        busy = [pool.submit(ask, relay, b"sleep:60") for _ in range(4)]
        assert eventually(lambda: len(enclave.requests) == 4)
        assert refused(lambda: ask(relay, b"x", budget_s=0.1)).code is Code.DEADLINE_EXCEEDED
        enclave.released.set()
        assert [future.result() for future in busy] == [b"sleep:60"] * 4
    assert b"x" not in enclave.requests


def test_cancelling_frees_the_worker(relay: Relay, enclave: FakeEnclave, lost: list[str]) -> None:
    call = Call(90)
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(relay.exchange, FrameType.REQUEST, b"silent", call)
        assert eventually(lambda: bool(enclave.requests))
        assert call.cancel()
        assert refused(lambda: future.result(20)).code is Code.DEADLINE_EXCEEDED
    assert lost == []


def test_cancelling_a_call_that_waits_for_a_connection(relay: Relay, enclave: FakeEnclave) -> None:
    call = Call(90)
    with ThreadPoolExecutor(5) as pool:
        busy = [pool.submit(ask, relay, b"sleep:60") for _ in range(4)]
        assert eventually(lambda: len(enclave.requests) == 4)
        waiting = pool.submit(relay.exchange, FrameType.REQUEST, b"x", call)
        assert eventually(lambda: relay.waiting == 1)
        call.cancel()
        relay.wake()
        assert refused(lambda: waiting.result(20)).code is Code.DEADLINE_EXCEEDED
        enclave.released.set()
        for future in busy:
            future.result()


def test_a_cancelled_call_hands_its_turn_on(enclave: FakeEnclave) -> None:
    """Whoever is woken for a free connection and does not want it wakes the next."""
    relay = Relay(UnixAddress(str(enclave.path)), 1, lambda: None)
    cancelled, patient = Call(90), Call(90)
    with ThreadPoolExecutor(3) as pool:
        busy = pool.submit(ask, relay, b"sleep:60")
        assert eventually(lambda: bool(enclave.requests))
        first = pool.submit(relay.exchange, FrameType.REQUEST, b"x", cancelled)
        assert eventually(lambda: relay.waiting == 1)
        second = pool.submit(relay.exchange, FrameType.REQUEST, b"y", patient)
        assert eventually(lambda: relay.waiting == 2)
        cancelled.cancel()
        enclave.released.set()
        busy.result()
        assert second.result(20) == b"y"
        assert refused(first.result).code is Code.DEADLINE_EXCEEDED
    relay.close()


def test_a_finished_call_cannot_cut_the_connection_of_another(
    relay: Relay, enclave: FakeEnclave
) -> None:
    call = Call(60)
    relay.exchange(FrameType.REQUEST, b"x", call)
    call.finish()
    assert not call.cancel()
    ask(relay, b"y")
    assert enclave.accepted == 1


def test_an_idle_connection_that_died_is_replaced(relay: Relay, enclave: FakeEnclave) -> None:
    ask(relay, b"x")
    enclave.drop_connections()
    time.sleep(0.05)
    assert ask(relay, b"y") == b"y"
    assert enclave.requests == [b"x", b"y"]


def test_unasked_bytes_end_an_idle_connection(tmp_path: Path) -> None:
    """An enclave that answers twice must not have its second answer taken for the next one's."""
    address = UnixAddress(str(tmp_path / "s"))
    taken, strayed = threading.Semaphore(0), threading.Semaphore(0)
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(listen(address))

        def serve() -> None:
            for _ in range(2):
                channel = stack.enter_context(listener.accept()[0])
                frames.receive_frame(channel)
                kind = FrameType.REQUEST | frames.ANSWER
                frames.send_frame(channel, kind, b"first")
                taken.acquire()
                frames.send_frame(channel, kind, b"stray")
                strayed.release()

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        relay = Relay(address, 1, lambda: None)
        for _ in range(2):
            assert ask(relay, LARGE) == b"first"
            taken.release()
            strayed.acquire()
            time.sleep(0.1)  # longer than a connection is taken to be fresh
        thread.join()
        relay.close()


@pytest.mark.parametrize("payload", [LARGE, b"x" * 5_000_000])
def test_sent_again_only_where_the_kernel_refused(tmp_path: Path, payload: bytes) -> None:
    """The pooled connection dies between the look at it and the first byte."""
    address = UnixAddress(str(tmp_path / "s"))
    executed: list[int] = []
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(listen(address))

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    channel = stack.enter_context(listener.accept()[0])
                    frame = frames.receive_frame(channel)
                    assert frame is not None
                    executed.append(len(frame.payload))
                    frames.send_frame(channel, FrameType.REQUEST | frames.ANSWER, b"done")

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        relay = Relay(address, 1, lambda: None)
        assert ask(relay, LARGE) == b"done"

        class Dies(socket.socket):
            def sendmsg(self, *buffers: Any) -> int:  # noqa: ANN401 - as the class it extends
                self.shutdown(socket.SHUT_RDWR)
                return super().sendmsg(*buffers)

        idle = relay._idle[0].channel
        relay._idle[0].channel = Dies(fileno=idle.detach())
        assert ask(relay, payload) == b"done"
        assert executed == [len(LARGE), len(payload)]
        relay.close()
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


def test_an_early_refusal_of_a_large_request_is_heard(tmp_path: Path) -> None:
    address = UnixAddress(str(tmp_path / "s"))
    with listen(address) as listener:

        def serve() -> None:
            channel, _ = listener.accept()
            channel.recv(9)
            frames.send_error(channel, Code.TOO_LARGE, "not so much")
            channel.close()

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        relay = Relay(address, 1, lambda: None)
        assert refused(lambda: ask(relay, bytes(8_000_000))).code is Code.TOO_LARGE
        thread.join()
        relay.close()


def test_no_enclave_is_unavailable_and_tells_no_path(tmp_path: Path, lost: list[str]) -> None:
    relay = Relay(UnixAddress(str(tmp_path / "none")), 1, lambda: lost.append("lost"))
    error = refused(lambda: ask(relay, b"x"))
    assert error.code is Code.UNAVAILABLE
    assert str(tmp_path) not in str(error)
    assert lost == ["lost"]


def test_a_closed_relay_refuses(relay: Relay) -> None:
    relay.close()
    assert refused(lambda: ask(relay, b"x")).code is Code.UNAVAILABLE


def test_places_go_to_whoever_has_waited_longest() -> None:
    places, order = Places(1), list[int]()
    places.claim(Call(60))

    def wait(number: int) -> None:
        places.claim(Call(60))
        order.append(number)
        places.release()

    def waits(count: int) -> bool:
        return places.waiting == count

    threads = [threading.Thread(target=wait, args=(number,)) for number in range(8)]
    for number, thread in enumerate(threads):
        thread.start()
        assert eventually(partial(waits, number + 1))
    places.release()
    for thread in threads:
        thread.join()
    assert order == list(range(8))
    assert (places.busy, places.waiting) == (0, 0)


def test_whoever_gives_up_leaves_no_gap_in_the_queue() -> None:
    places = Places(1)
    places.claim(Call(60))
    with pytest.raises(FrameError) as raised:
        places.claim(Call(0.05))
    assert raised.value.code is Code.DEADLINE_EXCEEDED
    gone = Call(60)
    with ThreadPoolExecutor(2) as pool:
        cancelled = pool.submit(places.claim, gone)
        assert eventually(lambda: places.waiting == 1)
        patient = pool.submit(places.claim, Call(60))
        assert eventually(lambda: places.waiting == 2)
        gone.cancel()
        places.wake()
        assert isinstance(cancelled.exception(), FrameError)
        places.release()
        assert patient.exception() is None
    places.release()
    assert (places.busy, places.waiting) == (0, 0)


def test_closed_places_let_nobody_in() -> None:
    places = Places(1)
    places.claim(Call(60))
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(places.claim, Call(60))
        assert eventually(lambda: places.waiting == 1)
        places.close()
        error = waiting.exception()
    assert isinstance(error, FrameError)
    assert error.code is Code.UNAVAILABLE
    with pytest.raises(FrameError):
        places.claim(Call(60))
