"""What bounds framed connections and the requests on them (SPEC 9.6.1, 9.6.3; THREATS C3)."""

from __future__ import annotations

import contextlib
import hashlib
import socket
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from casemate import limits
from casemate.framed import Kind
from casemate.frames import encode_frame, encode_head
from tests.support.framed import EndedError, RawFramed, connect, framed_bench, page
from tests.support.host_bench import eventually, reason

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.fake_enclave import FakeEnclave
    from tests.support.host_bench import Bench
    from tests.support.nitro_pki import Chain

pytestmark = pytest.mark.integration
ALICE, BOB = "Bearer alice-0123456789abcdef", "Bearer bob-0123456789abcdef"
LARGE = b"x" * limits.MIB


def callers(*bounds: str) -> str:
    return "\n".join(
        f'[[caller]]\nname = "{name}"\n'
        f'token_sha256 = ["{hashlib.sha256(token[7:].encode()).hexdigest()}"]\n' + "\n".join(bounds)
        for name, token in (("alice", ALICE), ("bob", BOB))
    )


def refused_connection(bench: Bench, authorization: str = "") -> str | None:
    with pytest.raises(EndedError) as raised:
        connect(bench, authorization)
    return raised.value.reason


def test_c3_connections_beyond_the_bound_are_closed_at_once_and_calls_go_on(
    short_path: Path, chain: Chain, enclave: FakeEnclave, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "FRAMED_MAX", 3)
    with framed_bench(short_path, chain) as bench:
        held = [connect(bench) for _ in range(3)]
        assert refused_connection(bench) is None
        assert b'casemate_calls_total{code="OVERLOADED",method="Frames"} 1.0' in page(bench)
        assert bench.infer(b"a call") == b"a call"
        assert held[0].exchange(b"x") == b"x"
        held.pop().close()
        eventually(lambda: b"casemate_framed_connections 2.0" in page(bench))
        held.append(connect(bench))
        for connection in held:
            connection.close()


def test_c3_who_says_nothing_gives_way_to_who_comes(
    short_path: Path, chain: Chain, enclave: FakeEnclave, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "FRAMED_MAX", 4)
    monkeypatch.setattr(limits, "FRAMED_HELLO_S", 600.0)
    with framed_bench(short_path, chain, front="receive_seconds = 600") as bench:
        silent = [connect(bench, None) for _ in range(4)]

        def comes_in() -> bool:
            try:
                with connect(bench) as connection:
                    return connection.exchange(b"x") == b"x"
            except EndedError:
                return False

        eventually(comes_in)
        for connection in silent:
            connection.close()


def test_c3_a_caller_has_its_share_of_connections_and_the_unknown_have_none(
    short_path: Path, chain: Chain, enclave: FakeEnclave, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "FRAMED_SHARE", 2)
    with framed_bench(short_path, chain, enclave=callers()) as bench:
        with connect(bench, ALICE) as first, connect(bench, ALICE) as second:
            first.ask(b"x")
            assert first.take_many(1) == [(1, b"x")]
            assert second.exchange(b"x") == b"x"
            assert refused_connection(bench, ALICE) == "OVERLOADED"
            with connect(bench, BOB) as other:
                assert other.exchange(b"bob") == b"bob"
        for nobody in ("", "Bearer x", ALICE + "x", "\x00"):
            assert refused_connection(bench, nobody) == "UNAUTHENTICATED"
        eventually(lambda: b"casemate_framed_connections 0.0" in page(bench))
        with connect(bench, ALICE):
            pass
    assert enclave.requests == [b"x", b"x", b"bob"]


def test_c3_requests_count_against_their_callers_places_on_whatever_they_come(
    short_path: Path, chain: Chain, enclave: FakeEnclave
) -> None:
    with (
        framed_bench(short_path, chain, enclave=callers("concurrent = 2")) as bench,
        connect(bench, ALICE) as first,
        connect(bench, ALICE) as stream,
        connect(bench, ALICE) as third,
        connect(bench, BOB) as other,
    ):
        first.send(Kind.REQUEST, b"sleep:100 " + LARGE)
        stream.ask(b"sleep:100 x")
        eventually(lambda: len(enclave.requests) == 2)
        assert third.exchange(LARGE) == "OVERLOADED"
        assert third.exchange(b"small") == "OVERLOADED"
        stream.ask(b"x", first=2)
        assert stream.take_many(1) == [(2, "OVERLOADED")]
        assert other.exchange(LARGE) == LARGE
        enclave.released.set()
        assert first.take().kind == Kind.REQUEST | 0x80
        assert stream.take_many(1) == [(1, b"sleep:100 x")]
        assert third.exchange(LARGE) == LARGE
    counted = (
        b'casemate_caller_calls_total{caller="alice",code="OVERLOADED"} 3.0',
        b'casemate_caller_calls_total{caller="bob",code="OK"} 1.0',
    )
    eventually(lambda: all(each in page(bench) for each in counted))


def test_one_call_at_a_time_may_follow_the_other_at_once(
    short_path: Path, chain: Chain, enclave: FakeEnclave
) -> None:
    """On another connection as well: the place is free before the answer is given."""
    with (
        framed_bench(short_path, chain, enclave=callers("concurrent = 1")) as bench,
        connect(bench, ALICE) as one,
        connect(bench, ALICE) as another,
    ):
        for _ in range(300):
            assert one.exchange(b"x") == b"x"
            assert another.exchange(b"y") == b"y"


def test_c3_a_days_share_and_a_rate_are_told_with_when_to_come_again(
    short_path: Path, chain: Chain, enclave: FakeEnclave
) -> None:
    bounds = callers("daily_calls = 2", "rate = 1", "burst = 3")
    with (
        framed_bench(short_path, chain, enclave=bounds) as bench,
        connect(bench, ALICE) as connection,
    ):
        assert connection.exchange(b"x") == b"x"
        assert connection.exchange(LARGE) == LARGE
        connection.send(Kind.REQUEST, LARGE)
        refusal = connection.take().refusal
        assert refusal.reason == "QUOTA_EXCEEDED"
        assert refusal.retry_delay > 1000
        while refusal.reason == "QUOTA_EXCEEDED":  # until more came than one a second
            connection.send(Kind.REQUEST, LARGE)
            refusal = connection.take().refusal
        assert refusal.reason == "OVERLOADED"
        assert 0 < refusal.retry_delay <= 1000


def test_c3_a_full_house_refuses_reads_what_it_refused_and_goes_on(
    short_path: Path, chain: Chain, enclave: FakeEnclave
) -> None:
    with (
        framed_bench(short_path, chain, front="unary = 2") as bench,
        connect(bench) as first,
        connect(bench) as stream,
        connect(bench) as third,
    ):
        first.send(Kind.REQUEST, b"sleep:100 " + LARGE)
        stream.ask(b"sleep:100 x")
        eventually(lambda: len(enclave.requests) == 2)
        for size in (0, 1, limits.MIB, 8 * limits.MIB):
            third.send(Kind.REQUEST, b"x" * size)
            refusal = third.take().refusal
            assert refusal.reason == "OVERLOADED"
            assert refusal.retry_delay > 0
        assert reason(lambda: bench.infer(b"over gRPC")) == "OVERLOADED"
        enclave.released.set()
        first.take()
        stream.take_many(1)
        assert third.exchange(LARGE) == LARGE
        assert len(enclave.requests) == 3


def test_c3_a_flood_is_shed_and_every_request_ends_once(
    short_path: Path, chain: Chain, enclave: FakeEnclave
) -> None:
    def ask(connection: RawFramed) -> list[bytes | str]:
        return [connection.exchange(b"sleep:0.01 " + b"x" * 100_000) for _ in range(20)]

    with framed_bench(short_path, chain, front="unary = 8") as bench:
        connections = [connect(bench) for _ in range(32)]
        with ThreadPoolExecutor(32) as pool:
            ends = [end for ended in pool.map(ask, connections) for end in ended]
        for connection in connections:
            connection.close()
    counts = Counter("OK" if isinstance(end, bytes) else end for end in ends)
    assert set(counts) == {"OK", "OVERLOADED"}
    assert len(enclave.requests) == counts["OK"] >= 20


def test_c3_slow_senders_give_way_to_who_is_refused_for_them(
    short_path: Path, chain: Chain, enclave: FakeEnclave
) -> None:
    with framed_bench(short_path, chain, front="unary = 4\nreceive_seconds = 600") as bench:
        slow = [connect(bench) for _ in range(4)]
        for connection in slow:
            connection.socket.sendall(encode_frame(Kind.REQUEST, LARGE)[:1000])
        eventually(lambda: b"casemate_calls_under_way 4.0" in page(bench))
        with connect(bench) as other:
            eventually(lambda: other.exchange(LARGE) == LARGE)
        for connection in slow:
            connection.close()
        eventually(lambda: b"casemate_calls_under_way 0.0" in page(bench))


def test_c3_a_request_has_a_time_in_which_to_come(
    short_path: Path, chain: Chain, enclave: FakeEnclave
) -> None:
    with (
        framed_bench(short_path, chain, front="receive_seconds = 1") as bench,
        connect(bench) as stalls,
        connect(bench) as drips,
        connect(bench) as stream,
    ):
        stalls.socket.sendall(encode_frame(Kind.REQUEST, LARGE)[:1000])
        stream.socket.sendall(b"\x00\x00")
        stopped = threading.Event()
        dripping = threading.Thread(target=_drip, args=(drips.socket, stopped))
        dripping.start()
        for connection in (stalls, drips, stream):
            # Whoever watches or whoever reads may be the first to see it.
            assert connection.ended() in {"DEADLINE_EXCEEDED", None}
        stopped.set()
        dripping.join()
        eventually(lambda: b"casemate_framed_connections 0.0" in page(bench))
        assert b"casemate_calls_under_way 0.0" in page(bench)
    assert enclave.requests == []


def _drip(channel: socket.socket, stopped: threading.Event) -> None:
    try:
        for at in range(1 << 20):
            channel.sendall(encode_frame(Kind.REQUEST, LARGE)[at : at + 1])
            if stopped.wait(0.05):
                return
    except OSError:
        return


def small_window(bench: Bench) -> RawFramed:
    """A connection whose client's side takes little that it does not read."""
    connection = connect(bench)
    connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    return connection


def test_c3_unread_answers_keep_their_caller_out_and_nobody_else(
    short_path: Path, chain: Chain, enclave: FakeEnclave, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "UNREAD_BYTES", 16 * limits.MIB)
    payload = b"x" * (16 * limits.MIB)
    with (
        framed_bench(short_path, chain, enclave=callers("concurrent = 3")) as bench,
        connect(bench, ALICE) as deaf,
        connect(bench, ALICE) as same,
    ):
        deaf.send(Kind.REQUEST, payload)
        eventually(lambda: b"casemate_answers_unread 1.0" in page(bench))
        assert same.exchange(b"x") == "OVERLOADED"
        with connect(bench, BOB) as other:
            assert other.exchange(b"x") == b"x"
        assert deaf.take().payload == payload
        eventually(lambda: b"casemate_answers_unread 0.0" in page(bench))
        assert same.exchange(b"x") == b"x"


def test_c3_an_answer_has_a_time_in_which_to_be_taken(
    short_path: Path, chain: Chain, enclave: FakeEnclave, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "FRAMED_READ_S", 1.0)
    with (
        framed_bench(short_path, chain) as bench,
        small_window(bench) as deaf,
        small_window(bench) as stream,
    ):
        deaf.send(Kind.REQUEST, b"x" * (16 * limits.MIB))
        eventually(lambda: b"casemate_answers_unread 1.0" in page(bench))
        stream.socket.settimeout(5)
        with contextlib.suppress(OSError):  # the host's end, or none of it for a while
            for first in range(1, 40_000, 8):
                stream.ask(*[b"x" * 30_000] * 8, first=first)
        assert len(enclave.requests) < 2000  # it was read no further
        assert bench.infer(b"another") == b"another"
        eventually(lambda: b"casemate_framed_connections 0.0" in page(bench))
        eventually(lambda: b"casemate_answers_unread 0.0" in page(bench))
        # Counted, though it was not taken.
        assert b'casemate_step_duration_seconds_count{step="admission"} 2.0' in page(bench)


def test_requests_are_counted_as_calls(
    short_path: Path, chain: Chain, enclave: FakeEnclave
) -> None:
    with framed_bench(short_path, chain) as bench:
        with connect(bench) as single, connect(bench) as stream:
            assert single.exchange(LARGE) == LARGE
            assert single.exchange(b"refuse:OPEN_FAILED x") == "OPEN_FAILED"
            stream.ask(b"one", b"refuse:OPEN_FAILED two")
            stream.take_many(2)
            stream.end_sending()
            assert stream.ended() is None
            eventually(lambda: b'{code="OK",method="InferMany"} 1.0' in page(bench))
            eventually(lambda: b"casemate_framed_connections 1.0" in page(bench))
            text = page(bench)
        assert b'casemate_calls_total{code="OK",method="Infer"} 2.0' in text
        assert b'casemate_calls_total{code="OPEN_FAILED",method="Infer"} 2.0' in text
        assert b"casemate_call_duration_seconds_count 2.0" in text
        assert b'casemate_step_duration_seconds_count{step="admission"} 1.0' in text
        assert b'casemate_step_duration_seconds_count{step="relay"} 2.0' in text


def test_c3_announcing_requests_uses_up_nobodys_day(
    short_path: Path, chain: Chain, enclave: FakeEnclave
) -> None:
    """What strangers share is not spent by heads of frames that nothing follows."""
    more = "[anonymous]\ndaily_bytes = 1000000"
    with framed_bench(short_path, chain, enclave=more) as bench:
        for _ in range(8):
            with connect(bench) as connection:
                connection.socket.sendall(encode_head(Kind.REQUEST, limits.REQUEST_MAX) + b"x")
        with connect(bench) as connection:
            for _ in range(2):
                assert connection.exchange(bytes(600_000)) == bytes(600_000)
            assert connection.exchange(b"x") == "QUOTA_EXCEEDED"


def test_c3_a_system_without_threads_to_spare_costs_single_connections(
    short_path: Path, chain: Chain, enclave: FakeEnclave, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The port takes connections again as soon as there are some."""
    start = threading.Thread.start

    def none_left(thread: threading.Thread) -> None:
        if thread.name == "framed":
            raise RuntimeError("can't start new thread")
        start(thread)

    with framed_bench(short_path, chain) as bench:
        monkeypatch.setattr(threading.Thread, "start", none_left)
        for _ in range(3):
            assert refused_connection(bench) is None
        monkeypatch.undo()
        with connect(bench) as connection:
            assert connection.exchange(b"x") == b"x"


def test_h13_a_request_whose_client_goes_away_is_counted_and_gives_its_place_back(
    short_path: Path, chain: Chain, enclave: FakeEnclave
) -> None:
    sent = (encode_head(Kind.REQUEST, 5000), encode_frame(Kind.REQUEST, b"sleep:60 x"))
    counted = b'casemate_calls_total{code="DEADLINE_EXCEEDED",method="Infer"} 2.0'
    with framed_bench(short_path, chain) as bench:
        for part in sent:
            with connect(bench) as connection:
                connection.socket.sendall(part)
                eventually(lambda: b"casemate_calls_under_way 1.0" in page(bench))
        eventually(lambda: b"casemate_calls_under_way 0.0" in page(bench))
        eventually(lambda: counted in page(bench))
