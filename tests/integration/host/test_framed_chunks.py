"""Framed connections that carry a stream (SPEC 9.6.3), before an enclave that does what it says."""

from __future__ import annotations

import contextlib
import hashlib
import socket
import struct
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import pytest

from casemate import limits
from casemate.errors import Code
from casemate.framed import Kind
from casemate.frames import ANSWER, ERROR, encode_frame, encode_head
from tests.support.framed import EndedError, RawFramed, connect, framed_bench, page
from tests.support.host_bench import SERVICE, eventually, reason, running
from tests.support.patience import patiently

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.fake_enclave import FakeEnclave
    from tests.support.host_bench import Bench
    from tests.support.nitro_pki import Chain

pytestmark = pytest.mark.integration
LARGE = bytes(range(256)) * (limits.STREAM_MESSAGE_MAX // 256)


@pytest.fixture
def framed(short_path: Path, chain: Chain, enclave: FakeEnclave) -> Iterator[Bench]:
    with framed_bench(short_path, chain) as made:
        yield made


def counted(bench: Bench, code: str) -> bool:
    return f'casemate_calls_total{{code="{code}",method="InferStream"}} 1.0'.encode() in page(bench)


def streaming(bench: Bench, count: int) -> None:
    """Wait until so many streams are under way."""
    eventually(lambda: f"casemate_streams_under_way {count}.0".encode() in page(bench))


def test_messages_pass_both_ways_to_the_end(framed: Bench, enclave: FakeEnclave) -> None:
    messages = [b"first", *(b"%d " % number * 500 for number in range(200)), LARGE, b"x"]
    with connect(framed) as connection:
        sending = threading.Thread(target=connection.stream, args=(*messages, b""))
        sending.start()
        assert connection.take_stream() == messages
        assert connection.ended() is None
        sending.join(60)
    eventually(lambda: enclave.streams.ends == [True])
    assert counted(framed, "OK")
    streaming(framed, 0)


def test_each_answer_comes_without_waiting_for_more(framed: Bench) -> None:
    with connect(framed) as connection:
        for number in range(50):
            connection.stream(b"%d" % number)
            assert connection.take().payload == b"%d" % number
        connection.stream(b"")
        assert connection.take_stream() == []


@pytest.mark.parametrize("size", [1, 7, 4096])
def test_frames_are_read_wherever_their_bytes_are_cut(framed: Bench, size: int) -> None:
    messages = [b"a", b"bc" * 40, b"d" * 300] * (1 if size == 1 else 30)
    data = b"".join(encode_frame(Kind.STREAM, each, 60_000) for each in (*messages, b""))
    with connect(framed) as connection:
        for at in range(0, len(data), size):
            connection.socket.sendall(data[at : at + size])
            if size < 10:
                time.sleep(0.0005)
        assert connection.take_stream() == messages


@pytest.mark.parametrize(("budget", "least", "most"), [(5000, 0, 5000), (0, 20_000, 30_000)])
def test_the_first_frames_budget_is_passed_on_as_what_is_left(
    framed: Bench, enclave: FakeEnclave, budget: int, least: int, most: int
) -> None:
    with connect(framed) as connection:
        connection.stream(b"x", b"", budget=budget)
        connection.take_stream()
    assert least < enclave.streams.budgets[0] <= most
    with connect(framed) as connection:
        connection.stream(b"x", b"", budget=700_000)
        connection.take_stream()
    assert 590_000 < enclave.streams.budgets[1] <= 600_000


@pytest.mark.parametrize("first", [b"hold x", b"flood"])
def test_c3_the_budget_ends_a_stream_whoever_keeps_it_waiting(
    framed: Bench, enclave: FakeEnclave, first: bytes
) -> None:
    """An enclave that says nothing, a client that takes nothing."""
    with connect(framed) as connection:
        begun = time.monotonic()
        connection.stream(first, budget=300)
        eventually(lambda: counted(framed, "DEADLINE_EXCEEDED"))
        assert 0.3 < time.monotonic() - begun < 30
        if first != b"flood":
            assert connection.ended() == "DEADLINE_EXCEEDED"
    eventually(lambda: enclave.streams.ends == [False])
    streaming(framed, 0)


def test_the_enclaves_error_is_a_refusal_behind_what_it_answered(framed: Bench) -> None:
    with connect(framed) as connection:
        connection.stream(b"refuse:OPEN_FAILED x")
        assert connection.take().payload == b"refuse:OPEN_FAILED x"
        refusal = connection.take().refusal
        assert (refusal.reason, refusal.detail) == ("OPEN_FAILED", "scripted")
        assert connection.ended() is None
    assert counted(framed, "OPEN_FAILED")


@pytest.mark.parametrize(
    "first",
    [
        b"drop x",
        b"lie:" + encode_frame(Kind.REQUEST | ANSWER, b"x").hex().encode(),
        b"lie:" + encode_head(Kind.STREAM | ANSWER, limits.STREAM_MESSAGE_MAX + 1).hex().encode(),
        b"lie:0000000084",
        b"stall:" + encode_head(ERROR, 1 << 20).hex().encode(),
        b"lie:" + encode_head(ERROR, 10).hex().encode() + b"00",
    ],
)
def test_h13_an_enclave_that_goes_away_or_lies_ends_the_stream(framed: Bench, first: bytes) -> None:
    with connect(framed) as connection:
        connection.stream(first)
        assert connection.ended() == "UNAVAILABLE"
    assert counted(framed, "UNAVAILABLE")
    assert framed.infer(b"and on") == b"and on"


def test_h13_an_enclave_that_is_cut_within_a_frame_leaves_no_refusal_in_its_place(
    framed: Bench,
) -> None:
    """What follows half a frame would be read as the rest of it."""
    first = b"lie:" + (encode_head(Kind.STREAM | ANSWER, 100) + b"half").hex().encode()
    with connect(framed) as connection:
        connection.stream(first)
        connection.take()
        assert connection.receive_exactly(13)[9:] == b"half"
        with pytest.raises(EndedError) as raised:
            connection.receive_exactly(1)
        assert raised.value.refusal is None
    eventually(lambda: counted(framed, "UNAVAILABLE"))


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        (encode_frame(Kind.REQUEST, b"x"), "MALFORMED"),
        (encode_frame(Kind.MANY, b"x"), "MALFORMED"),
        (encode_frame(Kind.HELLO, b""), "MALFORMED"),
        (encode_frame(Kind.STREAM | ANSWER, b"x"), "MALFORMED"),
        (encode_frame(ERROR, b"x"), "MALFORMED"),
        (b"\x00\x00\x00\x04\x04\x00\x00\x00\x00", "MALFORMED"),
        (b"\x00\x00\x00\x00\x04\x00\x00\x00\x00", "MALFORMED"),
        (encode_head(Kind.STREAM, limits.STREAM_MESSAGE_MAX + 1), "TOO_LARGE"),
        (b"\xff\xff\xff\xff\x04\x00\x00\x00\x00", "TOO_LARGE"),
        (encode_frame(Kind.STREAM, b"") * 2, "MALFORMED"),
        (encode_frame(Kind.STREAM, b"") + b"\x00", "MALFORMED"),
    ],
)
@pytest.mark.parametrize("together", [False, True])
def test_h11_what_is_not_allowed_within_a_stream_ends_it(
    framed: Bench, enclave: FakeEnclave, sent: bytes, expected: str, together: bool
) -> None:
    first = encode_frame(Kind.STREAM, b"hold x", 60_000)
    with connect(framed) as connection:
        connection.socket.sendall(first)
        if not together:
            eventually(lambda: bool(enclave.streams.questions))
        connection.socket.sendall(sent)
        assert connection.ended() == expected
    assert counted(framed, expected)
    eventually(lambda: enclave.streams.ends == [False])


def test_h11_what_follows_the_clients_end_ends_the_stream_as_well(
    framed: Bench, enclave: FakeEnclave
) -> None:
    with connect(framed) as connection:
        connection.stream(b"hold x", b"")
        eventually(lambda: bool(enclave.streams.questions))
        connection.stream(b"more")
        assert connection.ended() == "MALFORMED"
    eventually(lambda: enclave.streams.ends == [False])


@pytest.mark.parametrize(
    ("first", "expected"),
    [
        (encode_head(Kind.STREAM, limits.STREAM_MESSAGE_MAX + 1), "TOO_LARGE"),
        (encode_frame(Kind.STREAM, b""), "MALFORMED"),
    ],
)
def test_h11_a_stream_that_begins_with_no_message_asks_the_enclave_nothing(
    framed: Bench, enclave: FakeEnclave, first: bytes, expected: str
) -> None:
    with connect(framed) as connection:
        connection.socket.sendall(first)
        assert connection.ended() == expected
    assert counted(framed, expected)
    assert enclave.streams.questions == []


def test_the_ways_of_a_connection_do_not_mix(framed: Bench) -> None:
    with connect(framed) as connection:
        assert connection.exchange(b"x") == b"x"
        connection.stream(b"x")
        assert connection.ended() == "MALFORMED"


# Who leaves


@pytest.mark.parametrize("half", [False, True])
def test_h13_who_leaves_ends_its_stream_in_the_enclave_at_once(
    framed: Bench, enclave: FakeEnclave, half: bool
) -> None:
    with connect(framed) as connection:
        connection.stream(b"hold x")
        eventually(lambda: bool(enclave.streams.questions))
        if half:
            connection.end_sending()
        else:
            connection.close()
        eventually(lambda: enclave.streams.ends == [False], 20)  # long before its budget is over
        eventually(lambda: counted(framed, "DEADLINE_EXCEEDED"))
        streaming(framed, 0)


def test_h13_who_leaves_is_heard_while_the_enclave_takes_nothing(
    framed: Bench, enclave: FakeEnclave, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ended in order behind a little more than it takes; reset behind whatever was sent."""
    monkeypatch.setattr(limits, "RELAY_SEND_BUFFER", 64 * limits.KIB)
    with connect(framed) as ends, connect(framed) as resets:
        ends.stream(b"hold x")
        while unread(ends) < 16 * limits.KIB:
            ends.stream(bytes(8 * limits.KIB))
            time.sleep(0.002)
        ends.end_sending()
        eventually(lambda: enclave.streams.ends == [False], 20)
        resets.stream(b"hold x")
        resets.socket.settimeout(0.3)
        with pytest.raises(TimeoutError):
            resets.stream(*[LARGE] * 16)
        resets.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        resets.socket.close()
        eventually(lambda: enclave.streams.ends == [False, False], 20)
    streaming(framed, 0)


def unread(connection: RawFramed) -> int:
    """Bytes that the host's kernel has of it and the host has not read."""
    near, far = connection.socket.getsockname()[1], connection.socket.getpeername()[1]
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, local, remote, _, queues, *_ = line.split()
        if local.endswith(f":{far:04X}") and remote.endswith(f":{near:04X}"):
            return int(queues.split(":")[1], 16)
    raise AssertionError


def test_h13_who_leaves_after_its_last_frame_is_heard_too(
    framed: Bench, enclave: FakeEnclave
) -> None:
    with connect(framed) as connection:
        connection.stream(b"hold x", b"")
        eventually(lambda: bool(enclave.streams.questions))
    eventually(lambda: enclave.streams.ends == [False])


def test_h13_who_leaves_without_reading_ends_a_flood(framed: Bench, enclave: FakeEnclave) -> None:
    with connect(framed) as connection:
        connection.stream(b"flood")
        connection.take()
        time.sleep(0.2)  # the host has more than the client takes
        assert enclave.streams.ends == []
    eventually(lambda: enclave.streams.ends == [False])
    streaming(framed, 0)


def test_h13_an_enclave_that_dies_while_the_client_takes_nothing_costs_no_processor(
    framed: Bench, enclave: FakeEnclave
) -> None:
    """The client has what was on its way; until it takes that the host sleeps."""
    with connect(framed) as connection:
        connection.stream(b"flood")
        connection.take()
        time.sleep(0.2)
        enclave.drop_connections()
        eventually(lambda: enclave.streams.ends == [False])
        assert patiently(spent_in, lambda spent: spent < 0.25, [0.5] * 5) < 0.25
        streaming(framed, 1)
    streaming(framed, 0)


def spent_in(seconds: float) -> float:
    """Processor time of this process, in which others may have something to do now and then."""
    before = time.process_time()
    time.sleep(seconds)
    return time.process_time() - before


def test_a_slow_reader_holds_back_its_enclave(framed: Bench, enclave: FakeEnclave) -> None:
    """What it does not take stays where it is: nothing is lost, little is kept."""
    messages = [bytes([number]) * limits.MIB for number in range(32)]
    with connect(framed) as connection:
        sending = threading.Thread(target=connection.stream, args=(*messages, b""))
        sending.start()
        eventually(lambda: len(enclave.streams.questions) > 2)
        time.sleep(0.3)
        assert len(enclave.streams.questions) < 24  # the rest is in the kernel's buffers
        assert connection.take_stream() == messages
        sending.join(60)


# Time


def test_c3_a_frame_has_a_time_in_which_to_come_and_a_silence_has_none(
    short_path: Path, chain: Chain, enclave: FakeEnclave
) -> None:
    with framed_bench(short_path, chain, front="receive_seconds = 1") as bench:
        dripping, quiet = connect(bench), connect(bench)
        quiet.stream(b"x")
        assert quiet.take().payload == b"x"
        dripping.stream(b"x")
        assert dripping.take().payload == b"x"
        begun = time.monotonic()
        dripping.socket.sendall(encode_frame(Kind.STREAM, b"whole") + encode_head(4, 1000))
        with contextlib.suppress(OSError):
            while not counted(bench, "DEADLINE_EXCEEDED"):
                dripping.socket.sendall(b"x")
                time.sleep(0.05)
                assert time.monotonic() - begun < 20
        assert time.monotonic() - begun > 0.7
        quiet.stream(b"y", b"")
        assert quiet.take_stream() == [b"y"]
        for each in (dripping, quiet):
            each.close()


def test_c3_a_first_message_that_does_not_come_gives_way(
    short_path: Path, chain: Chain, enclave: FakeEnclave, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "RECEIVE_GRACE_S", 0.1)
    with framed_bench(short_path, chain, front="streams = 2") as bench:
        held = [connect(bench) for _ in range(2)]
        for each in held:
            each.socket.sendall(encode_head(Kind.STREAM, 1000, 60_000) + b"x")
        streaming(bench, 2)
        eventually(lambda: try_stream(bench) == "OK", 20)
        for each in held:
            each.close()


def try_stream(bench: Bench, authorization: str = "", first: bytes = b"x") -> str:
    """How a stream ends that is begun now."""
    with connect(bench, authorization) as connection:
        try:
            connection.stream(first, b"")
            connection.take_stream()
        except EndedError as error:
            return str(error.reason)
        except OSError:  # refused while it was sending
            return "cut"
        return "OK"


# Shares and counts


ALICE, BOB = "Bearer alice-token-0123456789", "Bearer bob-token-0123456789"


def known(bounds: str) -> str:
    return "".join(
        f'[[caller]]\nname = "{name}"\n'
        f'token_sha256 = ["{hashlib.sha256(token[7:].encode()).hexdigest()}"]\n{bounds}\n'
        for name, token in (("alice", ALICE), ("bob", BOB))
    )


def test_c3_streams_count_together_with_those_of_grpc(
    short_path: Path, chain: Chain, enclave: FakeEnclave
) -> None:
    """Places of the host, and shares of one caller."""
    with framed_bench(
        short_path, chain, front="streams = 3", enclave=known("streams = 2\nconcurrent = 8")
    ) as bench:
        held = [connect(bench, ALICE) for _ in range(2)]
        for each in held:
            each.stream(b"hold x")
        streaming(bench, 2)
        assert try_stream(bench, ALICE) == "OVERLOADED"
        assert by_grpc(bench, ALICE) == Code.OVERLOADED
        streaming(bench, 2)  # a call of gRPC gives its place back after its caller hears
        assert try_stream(bench, BOB) == "OK"
        last = connect(bench, BOB)
        last.stream(b"hold x")
        streaming(bench, 3)
        assert try_stream(bench, BOB) == "OVERLOADED"
        assert by_grpc(bench, BOB) == Code.OVERLOADED
        for each in (*held, last):
            each.close()
        streaming(bench, 0)
        assert by_grpc(bench, ALICE) is None


def by_grpc(bench: Bench, token: str) -> str | None:
    call = bench.channel.stream_stream(SERVICE + "InferStream")
    metadata = [("authorization", token)]
    return reason(lambda: list(call(iter([b"x"]), timeout=60, metadata=metadata)))


@pytest.mark.parametrize(
    ("bounds", "expected"),
    [
        ("daily_calls = 2", ["OK", "OK", "QUOTA_EXCEEDED"]),
        ("daily_bytes = 1500", ["OK", "OK", "QUOTA_EXCEEDED"]),
        ("rate = 1\nburst = 1", ["OK", "OVERLOADED"]),
        ("concurrent = 1", ["OK", "OK", "OK"]),
    ],
)
def test_c3_a_stream_is_a_call_of_its_caller(
    short_path: Path, chain: Chain, enclave: FakeEnclave, bounds: str, expected: list[str]
) -> None:
    with framed_bench(short_path, chain, enclave=known(bounds)) as bench:
        ends = [try_stream(bench, ALICE, bytes(1000)) for _ in expected]
        assert ends == expected
        assert try_stream(bench, BOB) == "OK"


def test_c3_every_message_is_spent(short_path: Path, chain: Chain, enclave: FakeEnclave) -> None:
    with framed_bench(short_path, chain, enclave=known("daily_bytes = 3000")) as bench:
        with connect(bench, ALICE) as connection:
            connection.stream(b"x", bytes(1500), bytes(1500), b"")
            connection.take_stream()
        assert try_stream(bench, ALICE) == "QUOTA_EXCEEDED"


# The host's end


def test_a_drain_lets_a_stream_go_on_and_takes_no_new_one(
    short_path: Path, chain: Chain, enclave: FakeEnclave
) -> None:
    with (
        framed_bench(short_path, chain) as bench,
        connect(bench) as busy,
        connect(bench) as fresh,
    ):
        busy.stream(b"x")
        assert busy.take().payload == b"x"
        stopping = threading.Thread(target=bench.host.stop)
        stopping.start()
        assert fresh.ended() == "UNAVAILABLE"
        for number in range(20):
            busy.stream(b"%d" % number)
            assert busy.take().payload == b"%d" % number
        assert stopping.is_alive()
        busy.stream(b"")
        assert busy.take_stream() == []
        stopping.join(60)
        assert not stopping.is_alive()


def test_a_drain_cuts_a_stream_that_does_not_end_in_its_time(
    short_path: Path, chain: Chain, enclave: FakeEnclave
) -> None:
    with framed_bench(short_path, chain, front="drain_seconds = 1") as bench:
        with connect(bench) as busy, connect(bench) as flooded, connect(bench) as half:
            busy.stream(b"hold x")
            flooded.stream(b"flood")
            half.socket.sendall(encode_head(Kind.STREAM, 1000, 60_000) + b"x")
            streaming(bench, 3)
            begun = time.monotonic()
            bench.host.stop()
            assert time.monotonic() - begun < 20
        eventually(lambda: enclave.streams.ends == [False, False])


def test_without_an_enclave_a_stream_is_unavailable(
    short_path: Path, chain: Chain, enclave: FakeEnclave
) -> None:
    with framed_bench(short_path, chain) as bench:
        enclave.stop()
        eventually(lambda: try_stream(bench) == "UNAVAILABLE")
        with running(short_path, chain, 2):
            eventually(lambda: try_stream(bench) == "OK")


def test_calls_of_grpc_see_the_same_end(framed: Bench) -> None:
    call = framed.channel.stream_stream(SERVICE + "InferStream")
    assert b"".join(call(iter([b"one", b"two"]), timeout=60)) == b"onetwo"
    with pytest.raises(grpc.RpcError):
        list(call(iter([b"drop x"]), timeout=60))
