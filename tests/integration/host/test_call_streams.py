"""`InferMany`: each call on a stream ends once, by itself (SPEC 9.6.2; THREATS C3, H11, H13)."""

from __future__ import annotations

import hashlib
import threading
import time
from collections import Counter
from typing import TYPE_CHECKING

import grpc
import pytest

from casemate import limits
from casemate.client.transport import HostConnection
from casemate.errors import Code, RequestError
from casemate.v1.confidential_inference_pb2 import NumberedRequest, SealedRequests
from tests.support.call_streams import RawStream
from tests.support.host_bench import eventually, reason_in, refused, running, serving

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.support.fake_enclave import FakeEnclave
    from tests.support.host_bench import Bench
    from tests.support.nitro_pki import Chain

pytestmark = pytest.mark.integration

TOKENS = {"alice": "alice-0123456789abcdef", "bob": "bob-0123456789abcdef"}


def by_token(who: str) -> list[tuple[str, str]]:
    return [("authorization", f"Bearer {TOKENS[who]}")]


def callers(*limits_of: str) -> str:
    return "\n".join(
        f'[[caller]]\nname = "{name}"\n'
        f'token_sha256 = ["{hashlib.sha256(token.encode()).hexdigest()}"]\n' + "\n".join(limits_of)
        for name, token in TOKENS.items()
    )


def ended_with(stream: RawStream) -> str | None:
    with pytest.raises(grpc.RpcError) as raised:
        stream.ended()
    return reason_in(raised.value)


def test_answers_come_as_they_are_ready_each_by_its_number(
    bench: Bench, enclave: FakeEnclave
) -> None:
    with RawStream(bench.channel) as stream:
        stream.ask(b"sleep:100 slow", b"quick", b"refuse:OPEN_FAILED x", first=7)
        assert dict(stream.take(2)) == {8: b"quick", 9: "OPEN_FAILED"}
        enclave.released.set()
        assert stream.take(1) == [(7, b"sleep:100 slow")]
        stream.end()
        assert stream.ended() == []


def test_questions_of_a_message_reach_the_enclave_together_and_answers_share_messages(
    bench: Bench, enclave: FakeEnclave
) -> None:
    with RawStream(bench.channel) as stream:
        payloads = [b"%d" % number for number in range(50)]

        def shared(asked: int) -> bool:
            """Ask all once more; whether any answers have shared a message by now."""
            stream.ask(*payloads, first=asked + 1)
            assert dict(stream.take(50)) == dict(enumerate(payloads, asked + 1))
            return stream.messages < asked + 50

        assert any(shared(asked) for asked in range(0, 5000, 50))
    assert enclave.shared == 1


def test_what_is_too_large_is_refused_by_itself(bench: Bench) -> None:
    with RawStream(bench.channel) as stream:
        stream.ask(b"x" * (limits.CALL_STREAM_REQUEST_MAX + 1), b"small")
        assert dict(stream.take(2)) == {1: "TOO_LARGE", 2: b"small"}


def test_a_refusal_is_told_at_once_where_nothing_is_under_way(
    short_path: Path, chain: Chain
) -> None:
    with (
        running(short_path, chain) as enclave,
        serving(short_path, chain) as bench,
        RawStream(bench.channel) as stream,
    ):
        stream.ask(b"x")
        stream.take(1)
        enclave.stop()
        eventually(lambda: not bench.host.board.standing.serving)
        for number in range(2, 5):
            time.sleep(0.2)
            begun = time.monotonic()
            stream.ask(b"x", first=number)
            assert stream.take(1) == [(number, "UNAVAILABLE")]
            assert time.monotonic() - begun < 60


def test_a_question_given_up_is_answered_at_once_and_its_place_is_free(
    bench: Bench, enclave: FakeEnclave
) -> None:
    with RawStream(bench.channel) as stream:
        stream.ask(*[b"silent x"] * 32)
        for number in range(1, 33):
            stream.give_up(number)
        begun = time.monotonic()
        assert {end for _, end in stream.take(32)} == {"DEADLINE_EXCEEDED"}
        assert time.monotonic() - begun < 60
        eventually(lambda: len(enclave.given_up) == 32)
        stream.give_up(999)  # never asked: ignored
        stream.ask(b"after", first=33)
        assert stream.take(1) == [(33, b"after")]


def test_a_question_that_the_enclave_forgets_ends_at_its_deadline(bench: Bench) -> None:
    with RawStream(bench.channel) as stream:
        begun = time.monotonic()
        stream.ask(b"silent x", budget=200)
        assert stream.take(1) == [(1, "DEADLINE_EXCEEDED")]
        assert 0.2 < time.monotonic() - begun < 25  # it forgets for 30


def test_the_deadline_travels_as_the_budget(bench: Bench, enclave: FakeEnclave) -> None:
    with RawStream(bench.channel) as stream:
        stream.ask(b"x", budget=5000)
        stream.take(1)
    assert enclave.budgets[-1] == 5000


def test_h13_when_the_enclave_dies_every_question_ends_and_the_stream_goes_on(
    short_path: Path, chain: Chain
) -> None:
    with (
        running(short_path, chain) as enclave,
        serving(short_path, chain) as bench,
        RawStream(bench.channel) as stream,
    ):
        stream.ask(*[b"sleep:100 x"] * 8)
        eventually(lambda: len(enclave.requests) == 8)
        enclave.drop_connections()
        assert {end for _, end in stream.take(8)} == {"UNAVAILABLE"}
        eventually(lambda: bench.host.board.standing.serving)
        stream.ask(b"after", first=9)
        assert stream.take(1) == [(9, b"after")]


def message(*entries: NumberedRequest) -> bytes:
    return SealedRequests(requests=entries).SerializeToString()


HOSTILE = {
    "not a message": (b"\xff\xff\xff", "MALFORMED"),
    "no number": (message(NumberedRequest(number=0, request=b"x")), "MALFORMED"),
    "a number twice": (
        message(*[NumberedRequest(number=3, request=b"silent x")] * 2),
        "MALFORMED",
    ),
    "a number under way": (message(NumberedRequest(number=100, request=b"x")), "MALFORMED"),
    "too long": (
        message(*[NumberedRequest(number=n, request=b"x" * 60_000) for n in range(1, 8)]),
        "TOO_LARGE",
    ),
    "too many": (
        message(*[NumberedRequest(number=n) for n in range(1, limits.CALL_STREAM_ENTRIES_MAX + 2)]),
        "TOO_LARGE",
    ),
}


@pytest.mark.parametrize("what", list(HOSTILE))
def test_h11_a_client_that_breaks_the_rules_loses_its_own_stream_alone(
    bench: Bench, what: str
) -> None:
    data, expected = HOSTILE[what]
    with RawStream(bench.channel) as good, RawStream(bench.channel) as bad:
        bad.ask(b"silent x", first=100)
        bad.send(data)
        assert ended_with(bad) == expected
        good.ask(b"on it goes")
        assert good.take(1) == [(1, b"on it goes")]
    eventually(lambda: b"casemate_calls_under_way 0.0" in page(bench))


def page(bench: Bench) -> bytes:
    from prometheus_client import generate_latest  # noqa: PLC0415 - of this test alone

    return generate_latest(bench.host.metrics.registry)


def test_c3_a_flood_on_one_stream_is_shed_with_hints_and_every_question_ends_once(
    bench: Bench,
) -> None:
    with RawStream(bench.channel) as stream:
        for first in range(1, 1000, 100):
            stream.ask(*[b"sleep:0.02 x"] * 100, first=first)
        ends = stream.take(1000)
    assert sorted(number for number, _ in ends) == list(range(1, 1001))
    counts = Counter("OK" if isinstance(end, bytes) else end for _, end in ends)
    assert set(counts) == {"OK", "OVERLOADED"}
    assert counts["OK"] >= 64
    assert all(refusal.retry_delay > 0 for refusal in stream.refusals.values())


def test_c3_one_stream_has_so_many_under_way_however_many_the_host_takes(
    short_path: Path, chain: Chain, enclave: FakeEnclave
) -> None:
    with (
        serving(short_path, chain, front="unary = 256") as bench,
        RawStream(bench.channel) as stream,
    ):
        stream.ask(*[b"silent x"] * (limits.CALL_STREAM_UNDER_WAY + 40))
        assert {end for _, end in stream.take(40)} == {"OVERLOADED"}
        assert len(enclave.requests) <= limits.CALL_STREAM_UNDER_WAY


def test_c3_a_flood_on_a_stream_leaves_another_caller_its_share(
    short_path: Path, chain: Chain, enclave: FakeEnclave
) -> None:
    with (
        serving(short_path, chain, enclave=callers("concurrent = 8")) as bench,
        RawStream(bench.channel, by_token("alice")) as flood,
        RawStream(bench.channel, by_token("bob")) as quiet,
    ):
        flood.ask(*[b"sleep:100 x"] * 100)
        ends = Counter(str(end) for _, end in flood.take(92))
        assert ends == {"OVERLOADED": 92}
        for number in range(1, 20):
            quiet.ask(b"bob", first=number)
            assert quiet.take(1) == [(number, b"bob")]
        enclave.released.set()


def test_c3_a_caller_has_its_share_of_streams_and_the_unknown_have_none(
    short_path: Path, chain: Chain, enclave: FakeEnclave
) -> None:
    with serving(short_path, chain, enclave=callers()) as bench:
        held = [
            RawStream(bench.channel, by_token("alice")) for _ in range(limits.CALL_STREAMS_SHARE)
        ]
        one_more: Callable[[], object] = lambda: RawStream(bench.channel, by_token("alice"))  # noqa: E731
        assert refused(one_more) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED")
        with RawStream(bench.channel, by_token("bob")) as stream:
            stream.ask(b"bob")
            assert stream.take(1) == [(1, b"bob")]
        nobody: Callable[[], object] = lambda: RawStream(bench.channel)  # noqa: E731
        assert refused(nobody) == (grpc.StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED")
        for stream in held:
            stream.cancel()
        eventually(lambda: b"casemate_call_streams 0.0" in page(bench))


@pytest.mark.slow
def test_c3_a_client_that_takes_no_answers_is_read_no_further_and_cut_off(
    short_path: Path, chain: Chain, enclave: FakeEnclave
) -> None:
    with (
        serving(short_path, chain, front="receive_seconds = 600") as bench,
        RawStream(bench.channel) as deaf,
    ):
        for first in range(1, 20_000, 8):
            deaf.ask(*[b"x" * 30_000] * 8, first=first)
        eventually(lambda: _still(lambda: len(enclave.requests)))
        assert len(enclave.requests) < 2000
        assert deaf.unsent > 2300  # of 2500
        assert bench.infer(b"another") == b"another"
        bench.host._front._patience.timeout_s = 1.0
        eventually(lambda: b"casemate_call_streams 0.0" in page(bench))
        with pytest.raises(grpc.RpcError):
            deaf.ended()


def _still(read: Callable[[], int]) -> bool:
    before = read()
    time.sleep(0.3)
    return 0 < before == read()


def test_a_drain_answers_what_was_asked_and_asks_the_client_to_end(
    short_path: Path, chain: Chain, enclave: FakeEnclave
) -> None:
    with serving(short_path, chain) as bench, RawStream(bench.channel) as stream:
        stream.ask(b"sleep:100 first")
        eventually(lambda: len(enclave.requests) == 1)
        stopping = threading.Thread(target=bench.host.stop)
        stopping.start()
        assert stream.take_message() == []
        assert stream.asked_to_end
        enclave.released.set()
        stream.ask(b"it crossed the wish", first=2)  # and is answered
        stream.end()
        assert dict(stream.ended()) == {1: b"sleep:100 first", 2: b"it crossed the wish"}
        stopping.join(60)
        assert not stopping.is_alive()


def test_an_idle_stream_and_one_that_is_not_ended_have_their_bounds(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "CALL_STREAM_IDLE_S", 2.0)
    monkeypatch.setattr(limits, "CALL_STREAM_CLOSE_S", 600.0)
    with RawStream(bench.channel) as ends, RawStream(bench.channel) as stays:
        ends.ask(b"x")
        ends.take(1)
        assert ends.take_message() == []
        assert ends.asked_to_end
        ends.end()
        assert ends.ended() == []
        assert stays.take_message() == []
        assert stays.asked_to_end
        monkeypatch.setattr(limits, "CALL_STREAM_CLOSE_S", 0.5)
        assert ended_with(stays) == Code.UNAVAILABLE


def test_questions_are_counted_as_calls(bench: Bench) -> None:
    with RawStream(bench.channel) as stream:
        stream.ask(b"one", b"refuse:OPEN_FAILED two")
        stream.take(2)
        stream.end()
        assert stream.ended() == []
    eventually(lambda: b'casemate_calls_total{code="OK",method="InferMany"} 1.0' in page(bench))
    text = page(bench)
    assert b'casemate_calls_total{code="OK",method="Infer"} 1.0' in text
    assert b'casemate_calls_total{code="OPEN_FAILED",method="Infer"} 1.0' in text


def test_a_drain_under_load_loses_no_answer(
    short_path: Path, chain: Chain, enclave: FakeEnclave
) -> None:
    """Whatever the enclave was asked is answered; what comes too late was never asked."""
    ends: list[str] = []
    stop = threading.Event()

    def work(connection: HostConnection) -> None:
        while not stop.is_set():
            try:
                connection.call("Infer", b"sleep:0.01 x", 100)
                ends.append("OK")
            except RequestError as error:
                ends.append(error.code)
                return

    with serving(short_path, chain) as bench:
        connection = HostConnection(bench.address)
        threads = [threading.Thread(target=work, args=(connection,)) for _ in range(16)]
        for thread in threads:
            thread.start()
        eventually(lambda: b"casemate_call_streams 1.0" in page(bench))
        eventually(lambda: len(ends) > 300)
        bench.host.stop()
        stop.set()
        for thread in threads:
            thread.join(60)
        connection.close()
    assert set(ends) <= {"OK", Code.UNAVAILABLE, Code.HOST_UNREACHABLE}
    assert len(enclave.requests) == ends.count("OK")
