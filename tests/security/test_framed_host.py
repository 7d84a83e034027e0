"""Attempts to exhaust or confuse a host at its port for frames (SPEC 9.6.3; THREATS H11, C3).

The attacker is anybody who reaches the port. The host is a process of its own, or stands in this
one before a fake enclave, where its bounds in time are to be seen within a test.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import random
import socket
import struct
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from casemate import framed, limits
from casemate.client import HostAccess
from casemate.errors import CasemateError, Code
from casemate.framed import GREETING_BYTES, Kind
from casemate.frames import ANSWER, COUNTED, ERROR, encode_frame, receive_frame
from casemate.limits import FRAME_MAX, FRAMED_MAX, MIB
from casemate.v1.confidential_inference_pb2 import NumberedRequest, Refusal, SealedRequests
from casemate_devkit.local import MODEL
from tests.support.attacker import ROWS, eventually, resident_kib, second_host
from tests.support.fake_enclave import new_chain
from tests.support.framed_middle import offer_of
from tests.support.host_bench import running, serving

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from casemate_devkit.local import LocalDeployment
    from tests.support.host_bench import Bench
    from tests.support.nitro_pki import Chain

    Starts = Callable[..., contextlib.AbstractContextManager[Bench]]

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("still_serves")]

HEAD = struct.Struct(">IBI")
GROWTH_KIB = 48 * 1024


@pytest.fixture
def port(deployment: LocalDeployment) -> int:
    return offer_of(deployment.target).port


@pytest.fixture(scope="module")
def few_threads(deployment: LocalDeployment) -> Iterator[None]:
    """After all tests the host has as many threads as before; each outlives its use a while."""
    assert deployment.host is not None
    pid = deployment.host.pid
    before = threads(pid)
    yield
    assert eventually(lambda: threads(pid) <= before + 8)


@pytest.fixture
def bounded(deployment: LocalDeployment, few_threads: None) -> Iterator[None]:
    """The host's memory and descriptors are afterwards what they were before, and its threads."""
    assert deployment.host is not None
    pid = deployment.host.pid
    before = memory(pid), descriptors(pid)
    yield
    assert eventually(lambda: descriptors(pid) <= before[1] + 8)
    assert memory(pid) - before[0] < GROWTH_KIB


def memory(pid: int) -> int:
    return resident_kib(pid)


def threads(pid: int) -> int:
    return resident_kib(pid, "Threads")


def descriptors(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def dial(port: int) -> socket.socket:
    """A connection on which the host has spoken and the client has not."""
    channel = socket.create_connection(("127.0.0.1", port), 60)
    greeting = channel.recv(GREETING_BYTES, socket.MSG_WAITALL)
    assert greeting[4] == Kind.HELLO, greeting
    return channel


def welcomed(port: int, authorization: str = "") -> socket.socket:
    """A connection on which requests may come."""
    channel = dial(port)
    channel.sendall(framed.hello(authorization))
    answer = receive_frame(channel)
    assert answer is not None
    assert answer.type == Kind.HELLO | ANSWER, Refusal.FromString(bytes(answer.payload))
    return channel


def last_words(channel: socket.socket) -> str | None:
    """Read until the host ends the connection; the reason of its refusal, if it gave one."""
    reason = None
    with contextlib.suppress(ConnectionError, CasemateError):
        while (frame := receive_frame(channel)) is not None:
            assert frame.type == ERROR
            reason = str(Refusal.FromString(bytes(frame.payload)).reason)
    return reason


GARBAGE = {
    "http": b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
    "http2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9),
    "tls": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500),
    "zeros": bytes(64),
    "ones": b"\xff" * 64,
    "noise": random.Random(9).randbytes(5000),
    "question": encode_frame(Kind.REQUEST, b"x" * 100),
    "many": encode_frame(Kind.MANY, b""),
    "answer": encode_frame(Kind.HELLO | ANSWER, b""),
    "long hello": encode_frame(Kind.HELLO, b"x" * (limits.FRAMED_HELLO_MAX + 1)),
    "huge hello": HEAD.pack(FRAME_MAX, Kind.HELLO, 0),
}


@pytest.mark.usefixtures("bounded")
@pytest.mark.parametrize("sent", GARBAGE)
def test_h11_whoever_begins_with_no_hello_is_refused_at_once(port: int, sent: str) -> None:
    with dial(port) as channel:
        channel.settimeout(0.9 * limits.FRAMED_HELLO_S)  # nobody waits for more of it
        with contextlib.suppress(ConnectionError):
            channel.sendall(GARBAGE[sent])
        assert last_words(channel) in {Code.MALFORMED, Code.TOO_LARGE, None}


@pytest.mark.usefixtures("bounded")
@pytest.mark.parametrize("kind", [0, 3, 4, 8, 32, 33, 34, 0x83, 0xA1, 0xA2, 0xFF])
def test_h11_impossible_lengths_and_types_are_refused_before_memory_is_taken(
    port: int, kind: int
) -> None:
    for length in (0, 1, 4, FRAME_MAX + 1, 2**31 - 1, 2**32 - 1):
        with welcomed(port) as channel:
            channel.sendall(HEAD.pack(length, kind, 0))
            assert last_words(channel) in {Code.MALFORMED, Code.TOO_LARGE}
    if kind not in {Kind.REQUEST, Kind.MANY}:
        with welcomed(port) as channel:
            channel.sendall(HEAD.pack(COUNTED, kind, 0))
            assert last_words(channel) == Code.MALFORMED


@pytest.mark.usefixtures("bounded")
def test_h11_a_message_of_many_that_is_too_long_or_no_message_ends_its_connection(
    port: int,
) -> None:
    one = NumberedRequest(number=1, request=b"x")
    for payload, code in (
        (b"\xff" * 100, Code.MALFORMED),
        (SealedRequests(requests=[NumberedRequest(request=b"x")]).SerializeToString(), "MALFORMED"),
        (SealedRequests(requests=[one, one]).SerializeToString(), Code.MALFORMED),
        (SealedRequests(requests=[one] * 257).SerializeToString(), Code.TOO_LARGE),
        (bytes(limits.CALL_STREAM_MESSAGE_MAX + 1), Code.TOO_LARGE),
    ):
        with welcomed(port) as channel:
            with contextlib.suppress(ConnectionError):
                channel.sendall(encode_frame(Kind.MANY, payload))
            reasons = reasons_until_end(channel)
            assert reasons[-1:] in ([code], []), reasons
    with welcomed(port) as channel:
        channel.sendall(HEAD.pack(COUNTED + limits.CALL_STREAM_MESSAGE_MAX + 1, Kind.MANY, 0))
        assert last_words(channel) == Code.TOO_LARGE


def reasons_until_end(channel: socket.socket) -> list[str]:
    """The reasons of refused frames until the host ends, whatever else it answers."""
    reasons = []
    with contextlib.suppress(ConnectionError, CasemateError):
        while (frame := receive_frame(channel)) is not None:
            if frame.type == ERROR:
                reasons.append(str(Refusal.FromString(bytes(frame.payload)).reason))
    return reasons


@pytest.mark.usefixtures("bounded")
def test_h11_the_ways_of_a_connection_do_not_mix(port: int) -> None:
    """What the first frame was for, the connection is for (SPEC 9.6.3)."""
    many = SealedRequests(requests=[NumberedRequest(number=1, request=b"x")]).SerializeToString()
    for first, second in (
        (encode_frame(Kind.REQUEST, b"x"), encode_frame(Kind.MANY, many)),
        (encode_frame(Kind.MANY, many), encode_frame(Kind.REQUEST, b"x")),
        (encode_frame(Kind.MANY, many), framed.hello()),
        (encode_frame(Kind.REQUEST, b"x"), framed.hello()),
    ):
        with welcomed(port) as channel:
            channel.sendall(first)
            answer = receive_frame(channel)  # the enclave's refusal, of whichever kind
            assert answer is not None
            channel.sendall(second)
            assert last_words(channel) == Code.MALFORMED


@pytest.mark.slow
@pytest.mark.usefixtures("bounded")
def test_h11_half_a_hello_and_bytes_that_drip_end_in_time_and_hold_nobody_else(
    port: int, still_serves: Callable[[], None]
) -> None:
    """A hello has ten seconds, however it drips in; an announced one keeps nobody waiting."""
    hello = framed.hello("Bearer " + "t" * 400)
    begun = time.monotonic()
    with contextlib.ExitStack() as held:
        silent = [held.enter_context(dial(port)) for _ in range(20)]
        half = [held.enter_context(dial(port)) for _ in range(20)]
        dripping = [held.enter_context(dial(port)) for _ in range(20)]
        for channel in half:
            channel.sendall(hello[: len(hello) // 2])
        alive = set(dripping)
        for byte in hello[:-1]:
            for channel in list(alive):
                try:
                    channel.sendall(bytes([byte]))
                except OSError:
                    alive.discard(channel)
            if not alive or time.monotonic() - begun > 3 * limits.FRAMED_HELLO_S:
                break
            if byte == hello[0]:
                still_serves()
            time.sleep(0.2)
        assert not alive
        for channel in (*silent, *half):
            channel.settimeout(60)
            last_words(channel)


@pytest.mark.usefixtures("bounded")
def test_h11_a_request_that_is_announced_and_does_not_come_holds_its_own_connection(
    deployment: LocalDeployment, port: int, still_serves: Callable[[], None]
) -> None:
    """More of them than there are places: others are served all the same, with frames and calls."""
    assert deployment.host is not None
    pid = deployment.host.pid
    before = memory(pid)
    with contextlib.ExitStack() as held:
        for index in range(limits.UNARY_DEFAULT + 20):
            channel = held.enter_context(welcomed(port))
            channel.sendall(HEAD.pack(FRAME_MAX, Kind.REQUEST, 30_000) + bytes(index % 100))
        for _ in range(5):
            still_serves()
        with deployment.client() as another:
            for _ in range(limits.CALL_STREAM_AFTER + 6):
                another.infer(MODEL, {"features": ROWS}, version=1)
        assert memory(pid) - before < GROWTH_KIB


@pytest.mark.slow
@pytest.mark.usefixtures("few_threads")
def test_c3_connections_beyond_the_bound_are_refused_and_calls_go_on(
    deployment: LocalDeployment, port: int, still_serves: Callable[[], None]
) -> None:
    """When they leave, their places are free."""
    assert deployment.host is not None
    pid = deployment.host.pid
    with contextlib.ExitStack() as held:
        kept, refused = 0, []
        for _ in range(FRAMED_MAX + 40):
            channel = held.enter_context(socket.create_connection(("127.0.0.1", port), 60))
            reason = held_or_refused(channel)
            kept += reason is None
            if reason is not None:
                refused.append(reason)
        assert FRAMED_MAX - 40 <= kept <= FRAMED_MAX
        assert set(refused) <= {Code.OVERLOADED, "ended"}
        assert threads(pid) < 2 * FRAMED_MAX + 200
        with deployment.client() as another:
            for _ in range(limits.CALL_STREAM_AFTER + 6):
                another.infer(MODEL, {"features": ROWS}, version=1)
        still_serves()
    assert eventually(lambda: is_welcomed(port))


def held_or_refused(channel: socket.socket) -> str | None:
    """None if the host keeps the connection; else how it ended it."""
    try:
        first = receive_frame(channel)
        if first is None:
            return "ended"
        if first.type == Kind.HELLO:
            channel.sendall(framed.hello())
            first = receive_frame(channel)
    except (OSError, CasemateError):
        return "ended"
    if first is None:
        return "ended"
    if first.type == ERROR:
        return str(Refusal.FromString(bytes(first.payload)).reason)
    return None


def is_welcomed(port: int) -> bool:
    with socket.create_connection(("127.0.0.1", port), 60) as channel:
        return held_or_refused(channel) is None


@pytest.mark.usefixtures("bounded")
def test_c3_a_flood_of_hellos_that_leave_at_once_costs_nobody_a_place(
    port: int, still_serves: Callable[[], None]
) -> None:
    def flood(_: int) -> None:
        for index in range(100):
            with socket.create_connection(("127.0.0.1", port), 60) as channel:
                if index % 3:
                    channel.sendall(framed.hello())
                if index % 3 == 1:
                    channel.recv(1)

    with ThreadPoolExecutor(4) as pool:
        working = [pool.submit(flood, each) for each in range(4)]
        still_serves()
        for each in working:
            each.result()
    assert eventually(lambda: is_welcomed(port))


# Who asks

TOKEN = "planted-framed-token-0123456789abcdef"
UNKNOWN = "unknown-framed-token-0123456789abcdef"


def caller(name: str, token: str, more: str = "") -> str:
    digest = hashlib.sha256(token.encode()).hexdigest()
    return f'\n[[caller]]\nname = "{name}"\ntoken_sha256 = ["{digest}"]\n{more}\n'


def test_c3_who_needs_a_token_and_shows_none_asks_nothing_and_no_log_has_any(
    deployment: LocalDeployment,
) -> None:
    """Neither one that is known nor one that is not; the metrics page has names alone."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        page = free.getsockname()[1]
    more = caller("clinic", TOKEN) + f'\n[metrics]\nlisten = "127.0.0.1:{page}"\n'
    access = HostAccess(token=TOKEN)
    with second_host(deployment, more=more, access=access) as host:
        offered = offer_of(host.ready["address"], TOKEN)
        refused = ("", f"Bearer {UNKNOWN}", f"bearer {TOKEN}", f"Bearer {TOKEN} ", "Bearer ")
        for shown in refused:
            with dial(offered.port) as channel:
                channel.sendall(framed.hello(shown) + encode_frame(Kind.REQUEST, b"x"))
                assert last_words(channel) == Code.UNAUTHENTICATED
        with dial(offered.port) as channel:
            channel.sendall(encode_frame(Kind.HELLO, b"Bearer \xff\xfe" + TOKEN.encode()))
            assert last_words(channel) in {Code.UNAUTHENTICATED, Code.MALFORMED}
        with welcomed(offered.port, f"Bearer {TOKEN}") as channel:
            channel.sendall(encode_frame(Kind.REQUEST, b"x"))
            answer = receive_frame(channel)
            assert answer is not None
        with urllib.request.urlopen(f"http://127.0.0.1:{page}/metrics", timeout=60) as answer:
            said = answer.read()
    said += b"".join(log.read_bytes() for log in deployment.operator.directory.glob("*.log"))
    assert b'caller="clinic"' in said
    for token in (TOKEN, UNKNOWN):
        assert token.encode() not in said
        assert token[:16].encode() not in said


# What has its bounds in time, with a host in this process


@pytest.fixture(scope="module")
def chain() -> Chain:
    return new_chain()


@pytest.fixture
def bench(short_path: Path, chain: Chain, monkeypatch: pytest.MonkeyPatch) -> Iterator[Starts]:
    """Starts a host with short bounds, and ``more`` in its configuration."""
    monkeypatch.setattr(limits, "HEALTH_PERIOD_S", 0.2)
    with running(short_path, chain):
        yield lambda more="": serving(short_path, chain, 'frames = "127.0.0.1:0"', more)


def test_c3_one_caller_with_a_bound_does_not_take_all_connections(bench: Starts) -> None:
    more = caller("flooder", UNKNOWN, "concurrent = 4") + caller("clinic", TOKEN, "concurrent = 4")
    with bench(more) as host, contextlib.ExitStack() as held:
        port = offer_of(host.address, TOKEN).port
        reasons = []
        for _ in range(limits.FRAMED_SHARE + 10):
            channel = held.enter_context(dial(port))
            channel.sendall(framed.hello(f"Bearer {UNKNOWN}"))
            answer = receive_frame(channel)
            assert answer is not None
            if answer.type == ERROR:
                reasons.append(Refusal.FromString(bytes(answer.payload)).reason)
        assert reasons == [Code.OVERLOADED] * 10
        with welcomed(port, f"Bearer {TOKEN}") as channel:
            channel.sendall(encode_frame(Kind.REQUEST, b"echo"))
            answer = receive_frame(channel)
            assert answer is not None
            assert bytes(answer.payload) == b"echo"


@pytest.mark.parametrize("way", [None, Kind.REQUEST, Kind.MANY])
def test_h11_connections_without_requests_end_after_a_while(
    bench: Starts, monkeypatch: pytest.MonkeyPatch, way: Kind | None
) -> None:
    """And each tells its client so that nothing is asked too late."""
    monkeypatch.setattr(limits, "FRAMED_IDLE_S", 2.0)
    monkeypatch.setattr(limits, "CALL_STREAM_IDLE_S", 2.0)
    monkeypatch.setattr(limits, "CALL_STREAM_CLOSE_S", 2.0)
    with bench() as host, welcomed(offer_of(host.address).port) as channel:
        if way is not None:
            payload = b"x" if way is Kind.REQUEST else question(b"x")
            channel.sendall(encode_frame(way, payload))
            assert receive_frame(channel) is not None
        channel.settimeout(30)
        reasons_until_end(channel)


def question(request: bytes, number: int = 1) -> bytes:
    """A message of one request."""
    entry = NumberedRequest(number=number, budget=30_000, request=request)
    return SealedRequests(requests=[entry]).SerializeToString()


@pytest.mark.parametrize("way", [Kind.REQUEST, Kind.MANY])
def test_h11_a_client_that_takes_no_answers_is_cut_off_and_its_places_are_free(
    bench: Starts, monkeypatch: pytest.MonkeyPatch, way: Kind
) -> None:
    monkeypatch.setattr(limits, "FRAMED_READ_S", 0.5)
    large, small = b"x" * (4 * MIB), b"x" * 60_000
    with bench() as host, contextlib.ExitStack() as held:
        port = offer_of(host.address).port
        for _ in range(4):
            channel = held.enter_context(welcomed(port))
            channel.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            channel.settimeout(3)
            # Until the host reads no further.
            with contextlib.suppress(OSError):
                for number in itertools.count(1):
                    payload = large if way is Kind.REQUEST else question(small, number)
                    channel.sendall(encode_frame(way, payload))
        # Nothing was closed on this side.
        assert eventually(lambda: not host.host._front._framed.connections)
        assert eventually(lambda: host.host._front.unary.taken == 0)
        assert host.infer(b"still") == b"still"
