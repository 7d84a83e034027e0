"""Framed connections: offered, greeted, and requests of both kinds answered (SPEC 9.6.3)."""

from __future__ import annotations

import threading
import time
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from casemate import limits
from casemate.errors import CasemateError, Code
from casemate.framed import Kind
from casemate.frames import encode_frame
from tests.support.framed import (
    EndedError,
    RawFramed,
    connect,
    framed_bench,
    offer_of,
    page,
    questions,
)
from tests.support.host_bench import eventually, running

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.fake_enclave import FakeEnclave
    from tests.support.host_bench import Bench
    from tests.support.nitro_pki import Chain

pytestmark = pytest.mark.integration


@pytest.fixture
def framed(short_path: Path, chain: Chain, enclave: FakeEnclave) -> Iterator[Bench]:
    with framed_bench(short_path, chain) as made:
        yield made


# Offer and hellos


def test_the_offer_comes_with_answers_and_the_host_says_it_first(framed: Bench) -> None:
    offer = offer_of(framed)
    assert offer is not None
    assert offer_of(framed, "Infer", b"question") == offer
    assert framed.host.frames_address == f"127.0.0.1:{offer.port}"
    with connect(framed) as connection:
        assert connection.greeting == offer.greeting


def test_a_host_that_takes_no_frames_offers_none(bench: Bench) -> None:
    assert bench.host.frames_address is None
    assert offer_of(bench) is None


def test_a_second_host_at_the_same_port_does_not_start(
    short_path: Path, chain: Chain, framed: Bench
) -> None:
    with (
        pytest.raises(CasemateError) as raised,
        framed_bench(short_path, chain, frames=str(framed.host.frames_address)),
    ):
        pass
    assert raised.value.code is Code.UNAVAILABLE
    assert str(framed.host.frames_address) in raised.value.detail


@pytest.mark.parametrize(
    ("kind", "payload", "reason"),
    [
        (Kind.REQUEST, b"x", "MALFORMED"),
        (Kind.HELLO, b"x" * (limits.FRAMED_HELLO_MAX + 1), "TOO_LARGE"),
        (Kind.HELLO, b"Bearer nobody-0123456789", "UNAUTHENTICATED"),
    ],
)
def test_a_hello_that_is_none_is_refused(
    framed: Bench, kind: Kind, payload: bytes, reason: str
) -> None:
    with connect(framed, None) as connection:
        connection.send(kind, payload)
        assert connection.ended() == reason
    refused = f'casemate_calls_total{{code="{reason}",method="Frames"}} 1.0'.encode()
    eventually(lambda: refused in page(framed))


def test_a_hello_has_its_time(framed: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "FRAMED_HELLO_S", 2.0)
    with connect(framed, None) as silent, connect(framed, None) as slow:
        slow.socket.sendall(b"\x00\x00\x00\x05")
        assert silent.ended() == "DEADLINE_EXCEEDED"
        assert slow.ended() == "DEADLINE_EXCEEDED"


# One exchange at a time


@pytest.mark.parametrize("size", [0, 1, 60_000, 600_000, limits.REQUEST_MAX])
def test_requests_of_any_size_are_exchanged_one_after_the_other(framed: Bench, size: int) -> None:
    payload = (bytes(range(256)) * (size // 256 + 1))[:size]
    with connect(framed) as connection:
        for _ in range(2):
            assert connection.exchange(payload) == payload
        assert connection.exchange(b"refuse:OPEN_FAILED x") == "OPEN_FAILED"
        assert connection.exchange(b"and on") == b"and on"


def test_a_request_that_comes_in_pieces_is_one(framed: Bench) -> None:
    data = encode_frame(Kind.REQUEST, b"in pieces" * 3, 5000)
    with connect(framed) as connection:
        for at in range(0, len(data), 5):
            connection.socket.sendall(data[at : at + 5])
            time.sleep(0.01)
        assert connection.take().payload == b"in pieces" * 3


@pytest.mark.parametrize("size", [10, 100_000])
def test_the_budget_is_the_clients_and_bounds_the_exchange(
    framed: Bench, enclave: FakeEnclave, size: int
) -> None:
    with connect(framed) as connection:
        connection.exchange(b"x" * size, budget=5000)
        assert 0 < enclave.budgets[-1] <= 5000
        begun = time.monotonic()
        assert connection.exchange(b"silent " + b"x" * size, budget=300) == "DEADLINE_EXCEEDED"
        assert 0.3 < time.monotonic() - begun < 25  # it is silent for 30
        assert connection.exchange(b"and on") == b"and on"


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("size", [10, 100_000])
def test_h13_who_hangs_up_ends_its_exchange_in_the_enclave(
    framed: Bench, enclave: FakeEnclave, size: int, half: bool
) -> None:
    with connect(framed) as connection:
        connection.send(Kind.REQUEST, b"sleep:100 " + b"x" * size)
        eventually(lambda: len(enclave.requests) == 1)
        connection.end_sending() if half else connection.close()
        eventually(lambda: b"casemate_calls_under_way 0.0" in page(framed))
        eventually(lambda: b"casemate_relay_busy 0.0" in page(framed))
        if size < limits.NUMBERED_MAX:
            eventually(lambda: len(enclave.given_up) == 1)
    eventually(lambda: b"casemate_framed_connections 0.0" in page(framed))
    assert b'casemate_calls_total{code="DEADLINE_EXCEEDED",method="Infer"} 1.0' in page(framed)


def test_h13_who_hangs_up_while_it_waits_for_the_enclave_waits_no_more(
    short_path: Path, chain: Chain, enclave: FakeEnclave
) -> None:
    with (
        framed_bench(short_path, chain, enclave="connections = 1") as bench,
        connect(bench) as first,
        connect(bench) as second,
    ):
        first.send(Kind.REQUEST, b"sleep:100 " + b"x" * 100_000)
        eventually(lambda: len(enclave.requests) == 1)
        second.send(Kind.REQUEST, b"x" * 100_000)
        eventually(lambda: b"casemate_relay_waiting 1.0" in page(bench))
        second.close()
        eventually(lambda: b"casemate_relay_waiting 0.0" in page(bench))
        enclave.released.set()
        assert first.take().kind == Kind.REQUEST | 0x80


def test_h13_when_the_enclave_dies_the_request_ends_and_the_connection_goes_on(
    short_path: Path, chain: Chain
) -> None:
    with (
        running(short_path, chain) as enclave,
        framed_bench(short_path, chain) as bench,
        connect(bench) as connection,
    ):
        connection.send(Kind.REQUEST, b"sleep:100 " + b"x" * 100_000)
        eventually(lambda: len(enclave.requests) == 1)
        enclave.drop_connections()
        assert connection.take().refusal.reason == "UNAVAILABLE"
        eventually(lambda: bench.host.board.standing.serving)
        assert connection.exchange(b"after") == b"after"


# Streams


def test_many_requests_share_a_stream(framed: Bench, enclave: FakeEnclave) -> None:
    with connect(framed) as connection:
        connection.ask(b"sleep:100 slow", b"quick", b"refuse:OPEN_FAILED x", first=7)
        assert dict(connection.take_many(2)) == {8: b"quick", 9: "OPEN_FAILED"}
        enclave.released.set()
        assert connection.take_many(1) == [(7, b"sleep:100 slow")]
        connection.ask(*[b"%d" % number for number in range(100)])
        assert len(dict(connection.take_many(100))) == 100
        connection.ask(b"x" * (limits.CALL_STREAM_REQUEST_MAX + 1), b"small")
        assert dict(connection.take_many(2)) == {1: "TOO_LARGE", 2: b"small"}
        connection.ask(b"silent x", first=5)
        connection.give_up(5)
        assert connection.take_many(1) == [(5, "DEADLINE_EXCEEDED")]


def test_messages_that_come_in_pieces_or_together_are_read_as_they_were_sent(
    framed: Bench,
) -> None:
    data = b"".join(
        encode_frame(Kind.MANY, questions(b"%d" % number * 50, first=number))
        for number in range(1, 30)
    )
    with connect(framed) as connection:
        for at in range(0, len(data), 97):
            connection.socket.sendall(data[at : at + 97])
            time.sleep(0.002)
        expected = {number: b"%d" % number * 50 for number in range(1, 30)}
        assert dict(connection.take_many(29)) == expected
        connection.socket.sendall(data)
        assert dict(connection.take_many(29)) == expected


@pytest.mark.parametrize("half", [False, True])
def test_h13_who_ends_a_stream_ends_what_is_under_way_on_it(
    framed: Bench, enclave: FakeEnclave, half: bool
) -> None:
    with connect(framed) as connection:
        connection.ask(*[b"sleep:100 x"] * 5)
        eventually(lambda: len(enclave.requests) == 5)
        connection.end_sending() if half else connection.close()
        eventually(lambda: len(enclave.given_up) == 5)
        eventually(lambda: b"casemate_framed_connections 0.0" in page(framed))
        eventually(lambda: b"casemate_calls_under_way 0.0" in page(framed))


def test_h13_who_ends_a_stream_that_is_read_no_further_is_heard_as_well(
    short_path: Path, chain: Chain, enclave: FakeEnclave
) -> None:
    with (
        framed_bench(short_path, chain, front="unary = 256") as bench,
        connect(bench) as connection,
    ):
        connection.ask(*[b"sleep:100 x"] * limits.CALL_STREAM_UNDER_WAY)
        eventually(lambda: len(enclave.requests) == limits.CALL_STREAM_UNDER_WAY)
        connection.close()
        eventually(lambda: len(enclave.given_up) == limits.CALL_STREAM_UNDER_WAY)
        eventually(lambda: b"casemate_framed_connections 0.0" in page(bench))


def test_a_stream_is_asked_to_end_and_ends(framed: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "CALL_STREAM_IDLE_S", 2.0)
    monkeypatch.setattr(limits, "CALL_STREAM_CLOSE_S", 2.0)
    with connect(framed) as connection:
        connection.ask(b"x")
        connection.take_many(1)
        assert connection.take_message() == []
        assert connection.asked_to_end
        connection.end_sending()
        assert connection.ended() is None
    with connect(framed) as stays:
        stays.ask(b"x")
        stays.take_many(1)
        assert stays.ended() == "UNAVAILABLE"
    eventually(lambda: b'{code="OK",method="InferMany"} 1.0' in page(framed))
    eventually(lambda: b'{code="UNAVAILABLE",method="InferMany"} 1.0' in page(framed))


# Frames that are not allowed


@pytest.mark.parametrize("begun", [None, Kind.REQUEST, Kind.MANY])
@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\x00\x00\x00\x05\x04\x00\x00\x00\x00", "MALFORMED"),  # a type of another place
        (b"\x00\x00\x00\x05\x21\x00\x00\x00\x00", "MALFORMED"),  # a second hello
        (b"\x00\x00\x00\x04\x03\x00\x00\x00\x00", "MALFORMED"),
        (b"\xff\xff\xff\xff\x03\x00\x00\x00\x00", "TOO_LARGE"),
        (b"\x00\x10\x00\x00\x22\x00\x00\x00\x00", "TOO_LARGE"),  # 1 MiB of questions
    ],
)
def test_h11_what_is_not_allowed_ends_its_own_connection(
    framed: Bench, begun: Kind | None, data: bytes, reason: str
) -> None:
    if begun is Kind.REQUEST and data[4] == Kind.MANY:
        reason = "MALFORMED"  # whatever its length
    with connect(framed) as good, connect(framed) as bad:
        if begun is Kind.REQUEST:
            assert bad.exchange(b"x") == b"x"
        elif begun is Kind.MANY:
            bad.ask(b"silent x")
        bad.socket.sendall(data)
        assert bad.ended() == reason
        assert good.exchange(b"on it goes") == b"on it goes"
    eventually(lambda: b"casemate_framed_connections 0.0" in page(framed))
    eventually(lambda: b"casemate_calls_under_way 0.0" in page(framed))


def test_a_connection_without_requests_is_told_so_and_ends(
    framed: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "FRAMED_IDLE_S", 2.0)
    with connect(framed) as new, connect(framed) as used:
        assert used.exchange(b"x") == b"x"
        # What the client would read in the place of an answer, had it asked in this moment.
        assert new.ended() == "UNAVAILABLE"
        assert used.ended() == "UNAVAILABLE"
    eventually(lambda: b"casemate_framed_connections 0.0" in page(framed))


# The host's end


def test_a_drain_answers_what_is_under_way_and_tells_who_is_idle(
    short_path: Path, chain: Chain, enclave: FakeEnclave
) -> None:
    before = set(threading.enumerate())
    with (
        framed_bench(short_path, chain) as bench,
        connect(bench) as idle,
        connect(bench) as fresh,
        connect(bench) as busy,
        connect(bench) as stream,
    ):
        assert idle.exchange(b"x") == b"x"
        busy.send(Kind.REQUEST, b"sleep:100 " + b"x" * 100_000)
        stream.ask(b"sleep:100 first")
        eventually(lambda: len(enclave.requests) == 3)
        stopping = threading.Thread(target=bench.host.stop)
        stopping.start()
        assert idle.ended() == "UNAVAILABLE"
        assert fresh.ended() == "UNAVAILABLE"
        assert stream.take_message() == []
        assert stream.asked_to_end
        with pytest.raises((OSError, EndedError)):
            connect(bench)
        enclave.released.set()
        assert busy.take().payload == b"sleep:100 " + b"x" * 100_000
        assert busy.ended() == "UNAVAILABLE"
        assert stream.take_many(1) == [(1, b"sleep:100 first")]
        stream.end_sending()
        assert stream.ended() is None
        stopping.join(60)
        assert not stopping.is_alive()
    eventually(lambda: not _left(before))


def test_a_drain_cuts_what_does_not_end_in_its_time(
    short_path: Path, chain: Chain, enclave: FakeEnclave
) -> None:
    before = set(threading.enumerate())
    with (
        framed_bench(short_path, chain, front="drain_seconds = 1") as bench,
        connect(bench) as busy,
        connect(bench) as stream,
        connect(bench) as half,
    ):
        busy.send(Kind.REQUEST, b"sleep:100 " + b"x" * 100_000)
        half.socket.sendall(b"\x00\x01\x00\x05\x03\x00\x00\x00\x00half a request")
        stream.ask(b"sleep:100 x")
        eventually(lambda: len(enclave.requests) == 2)
        begun = time.monotonic()
        bench.host.stop()
        assert time.monotonic() - begun < 30
        for connection in (busy, stream, half):
            connection.ended()
    enclave.released.set()
    eventually(lambda: not _left(before))


def _left(before: set[threading.Thread]) -> set[str]:
    """Threads of a host that are still there."""
    now = set(threading.enumerate()) - before
    return {thread.name for thread in now if thread.name.split("-")[0] in {"framed", "hang"}}


def test_a_drain_under_load_loses_no_request(
    short_path: Path, chain: Chain, enclave: FakeEnclave
) -> None:
    """Whatever the enclave was asked is answered; what comes too late is told so."""
    ends: list[str] = []
    payload = b"sleep:0.01 " + b"x" * 100_000

    def work(connection: RawFramed) -> None:
        try:
            while True:
                answer = connection.exchange(payload)
                if answer != payload:
                    ends.append(str(answer))
                    return
                ends.append("OK")
        except EndedError as error:
            ends.append(error.reason or "CUT")
        except OSError:
            ends.append("CUT")

    with framed_bench(short_path, chain) as bench:
        connections = [connect(bench) for _ in range(16)]
        threads = [threading.Thread(target=work, args=(each,)) for each in connections]
        for thread in threads:
            thread.start()
        eventually(lambda: len(ends) > 200)
        bench.host.stop()
        for thread in threads:
            thread.join(60)
        for connection in connections:
            connection.close()
    counts = Counter(ends)
    assert set(counts) <= {"OK", "UNAVAILABLE", "CUT"}
    assert len(enclave.requests) == counts["OK"]
    assert counts["UNAVAILABLE"] + counts["CUT"] == 16
