"""Attempts to exhaust or confuse the two listeners (THREATS.md: H11, C3).

Against the enclave's socket the attacker is the host; against the host's port it is anybody.
"""

from __future__ import annotations

import contextlib
import random
import resource
import socket
import struct
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from casemate import cbor, wire
from casemate.channel import connect
from casemate.envelope.message_sealing import seal_message
from casemate.envelope.sealed_message import encode_sealed, parse_sealed
from casemate.envelope.sealing import SealedCall
from casemate.envelope.units import request_unit
from casemate.errors import CasemateError, Code, FrameError
from casemate.frames import ANSWER, ERROR, FrameType, exchange, receive_frame, send_frame
from casemate.limits import CONNECTIONS_MAX, FRAME_HEAD_TIMEOUT_S, FRAME_MAX, MIB
from casemate.numbered import FrameBuffer, question
from tests.support.attacker import (
    EnclaveSocket,
    eventually,
    genuine,
    refusal,
    resident_kib,
    start_session,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from casemate_devkit.local import LocalDeployment

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("still_serves")]

# What one attack may add to the enclave's resident memory, beside the frames that it has announced
# within the bound: memory for those is taken when their length is known (SPEC 9.2).
GROWTH_KIB = 48 * 1024
ANNOUNCED = 4 << 20
HEAD = struct.Struct(">IBI")


@pytest.fixture
def enclave(deployment: LocalDeployment) -> EnclaveSocket:
    return genuine(deployment)


@pytest.fixture
def bounded_memory(deployment: LocalDeployment) -> Iterator[Callable[[], None]]:
    """Fails if the enclave grew by more than ``GROWTH_KIB``, at a call or at the end."""
    assert deployment.enclave is not None
    pid = int(deployment.enclave.ready["pid"])
    before = resident_kib(pid)

    def check() -> None:
        assert resident_kib(pid) - before < GROWTH_KIB

    yield check
    check()


def dial(enclave: EnclaveSocket) -> socket.socket:
    return connect(enclave.address, 10)


def closes(channel: socket.socket) -> bool:
    """Whether the other side ends the connection, whatever it says before."""
    with contextlib.suppress(ConnectionError):
        while channel.recv(1 << 16):
            pass
    return True


@pytest.mark.usefixtures("bounded_memory")
def test_h11_impossible_lengths_are_refused_before_memory_is_taken(enclave: EnclaveSocket) -> None:
    for length in (0, 1, 4, FRAME_MAX + 1, 2**31 - 1, 2**32 - 1):
        for kind in (0, FrameType.REQUEST, FrameType.LOAD, 0x83, ERROR):
            with dial(enclave) as channel:
                channel.sendall(HEAD.pack(length, kind, 0))
                answer = receive_frame(channel)
                assert answer is not None
                assert answer.type == ERROR
                said = cbor.decode_map(bytes(answer.payload), {"code": str, "detail": str})
                assert said["code"] in {Code.MALFORMED, Code.TOO_LARGE}
                assert closes(channel)


@pytest.mark.usefixtures("bounded_memory")
def test_h11_frames_longer_than_any_request_are_dropped_as_they_arrive(
    enclave: EnclaveSocket,
) -> None:
    with dial(enclave) as channel:
        channel.settimeout(60)
        channel.sendall(HEAD.pack(FRAME_MAX, FrameType.REQUEST, 0))
        piece = bytes(1 << 20)
        left = FRAME_MAX - 5
        while left:
            left -= channel.send(piece[: min(left, len(piece))])
        answer = receive_frame(channel)
        assert answer is not None
        assert answer.type == ERROR
        assert Code.TOO_LARGE.encode() in bytes(answer.payload)


def test_h11_large_frames_that_never_end_keep_no_other_waiting(enclave: EnclaveSocket) -> None:
    """Few large frames are received at once; those that stall soon do not count (SPEC 9.3)."""
    with contextlib.ExitStack() as held:
        for _ in range(40):
            channel = held.enter_context(dial(enclave))
            channel.sendall(HEAD.pack(MIB, FrameType.REQUEST, 0) + bytes(1000))
        begun = time.monotonic()
        with dial(enclave) as honest:
            request = bytes(MIB // 2)
            said = refusal(lambda: exchange(honest, FrameType.REQUEST, request))
        assert said is Code.MALFORMED
        assert time.monotonic() - begun < FRAME_HEAD_TIMEOUT_S / 2


@pytest.mark.usefixtures("bounded_memory")
def test_h11_garbage_is_answered_or_ignored_and_the_connection_ends(enclave: EnclaveSocket) -> None:
    chance = random.Random(11)
    for size in (1, 8, 9, 64, 5000):
        for _ in range(6):
            with dial(enclave) as channel, contextlib.suppress(ConnectionError):
                channel.sendall(chance.randbytes(size))
                channel.shutdown(socket.SHUT_WR)
                assert closes(channel)
    for text in (b"GET / HTTP/1.1\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"\x16\x03\x01"):
        with dial(enclave) as channel, contextlib.suppress(ConnectionError):
            channel.sendall(text)
            channel.shutdown(socket.SHUT_WR)
            assert closes(channel)


def test_h11_types_that_do_not_exist_end_the_connection(enclave: EnclaveSocket) -> None:
    for kind in (0, 4, 7, 0x3F, 0x7F, 0x80, 0x83, 0xFE, 0xFF):
        with dial(enclave) as channel:
            send_frame(channel, kind, b"x")
            answer = receive_frame(channel)
            assert answer is not None
            assert answer.type == ERROR
            assert Code.MALFORMED.encode() in bytes(answer.payload)
            assert closes(channel)


def test_h11_frames_of_the_hosts_with_broken_payloads_change_nothing(
    enclave: EnclaveSocket,
) -> None:
    before = enclave.health()
    for kind in FrameType:
        if kind is FrameType.MODEL_DATA:
            continue
        for payload in (b"\xff" * 100, b"\xa0", cbor.encode({"size": 2**63}), b"n" * 65):
            with contextlib.suppress(FrameError):
                enclave.ask(kind, payload)
    assert refusal(lambda: enclave.ask(FrameType.CONFIGURE, b"c" * 100)) is Code.ALREADY_CONFIGURED
    assert enclave.health() == before


def test_h11_what_is_wrong_on_a_shared_connection_harms_no_other_question(
    deployment: LocalDeployment, enclave: EnclaveSocket
) -> None:
    """Broken, replayed and misdirected questions between honest ones (SPEC 9.2.1)."""
    session = start_session(deployment)
    calls = [session.seal() for _ in range(8)]
    answers = FrameBuffer(FrameType.NUMBERED | ANSWER, FRAME_MAX)
    pieces: list[bytes] = []
    for number, call in enumerate(calls):
        sealed = b"".join(encode_sealed(call.header, call.ciphertext))
        bent = sealed[:-1] + bytes([sealed[-1] ^ 1])
        for kind, payload in (
            (3, bent),
            (3, b""),
            (3, sealed),
            (3, sealed),
            (8, b""),
            (32, sealed),
        ):
            pieces += (bytes(piece) for piece in question(number, kind, payload, 0))  # type: ignore[arg-type]
    codes: dict[int, list[str]] = {number: [] for number in range(len(calls))}
    with dial(enclave) as channel:
        channel.sendall(b"".join(pieces))
        while sum(map(len, codes.values())) < 6 * len(calls):
            while (answer := answers.take()) is None:
                answers.add(channel.recv(1 << 16))
            if answer.type == ERROR:
                codes[answer.number].append(cbor.decode(answer.payload)["code"])
            else:
                opened = calls[answer.number].open(*parse_sealed(memoryview(answer.payload)))
                codes[answer.number].append(str(opened.trailer.status))
    expected = sorted(["OPEN_FAILED", "MALFORMED", "OK", "REPLAYED", "MALFORMED", "MALFORMED"])
    assert all(sorted(told) == expected for told in codes.values())


def test_h11_a_shared_connection_that_breaks_its_framing_ends_alone(enclave: EnclaveSocket) -> None:
    start = b"".join(question(1, FrameType.REQUEST, b"x", 0))
    for rest in (
        HEAD.pack(5, FrameType.HEALTH, 0),  # a plain frame after a numbered one
        HEAD.pack(9, FrameType.NUMBERED, 0) + bytes(5),
        HEAD.pack(FRAME_MAX, FrameType.NUMBERED, 0) + bytes(5),
        b"\xff" * 64,
    ):
        with dial(enclave) as channel, contextlib.suppress(ConnectionError):
            channel.sendall(start + rest)
            assert closes(channel)
    assert enclave.health()["state"] == "ready"


def test_h11_half_open_frames_and_slow_bytes_hold_only_their_own_connections(
    deployment: LocalDeployment,
    enclave: EnclaveSocket,
    still_serves: Callable[[], None],
) -> None:
    """A third of the connections are held by senders who never finish; the host has the rest."""
    assert deployment.enclave is not None
    pid = int(deployment.enclave.ready["pid"])
    before = resident_kib(pid)
    with contextlib.ExitStack() as held:
        slow = [held.enter_context(dial(enclave)) for _ in range(20)]
        for channel in slow[:10]:
            channel.sendall(HEAD.pack(ANNOUNCED, FrameType.REQUEST, 0))  # and it does not come
        for channel in slow[10:15]:
            channel.sendall(b"\0")
        end = time.monotonic() + 3
        head = HEAD.pack(100, FrameType.REQUEST, 0) + bytes(95)
        for byte in head:  # one byte at a time
            for channel in slow[15:]:
                channel.sendall(bytes([byte]))
            if time.monotonic() > end - 0.5:
                break
            time.sleep(0.05)
            if byte == head[0]:
                still_serves()
        begun = time.monotonic()
        session = start_session(deployment)
        for _ in range(5):
            assert session.ask(enclave).trailer.status is Code.OK
            still_serves()
        assert time.monotonic() - begun < 25  # a frame may be on its way for 30
        assert resident_kib(pid) - before < 10 * ANNOUNCED // 1024 + GROWTH_KIB
    assert eventually(lambda: resident_kib(pid) - before < GROWTH_KIB)


def test_h11_connections_beyond_the_bound_are_refused_and_the_others_served(
    enclave: EnclaveSocket,
    still_serves: Callable[[], None],
    bounded_memory: Callable[[], None],
) -> None:
    """The honest host keeps the connections it has; an excess is refused with its code."""
    still_serves()  # the host has a connection of its own in its pool
    with contextlib.ExitStack() as held:
        answered, refused = 0, 0
        codes: set[Code] = set()
        for _ in range(CONNECTIONS_MAX + 10):
            channel = held.enter_context(dial(enclave))
            try:
                exchange(channel, FrameType.HEALTH)
                answered += 1
            except FrameError as error:
                codes.add(error.code)
                refused += 1
            except OSError:
                refused += 1  # refused and closed before the frame was written
        assert codes <= {Code.OVERLOADED}
        assert refused >= 10
        assert answered >= 20
        still_serves()
        bounded_memory()
    assert eventually(lambda: answers(enclave))


def answers(enclave: EnclaveSocket) -> bool:
    try:
        return bool(enclave.health()["state"] == "ready")
    except (CasemateError, OSError):
        return False


@pytest.mark.usefixtures("bounded_memory")
def test_h11_connections_that_die_anywhere_take_nothing_with_them(
    deployment: LocalDeployment, enclave: EnclaveSocket
) -> None:
    call = start_session(deployment).seal()
    body = bytes(call.ciphertext)
    sealed = HEAD.pack(5 + 8 + len(call.header) + len(body), FrameType.REQUEST, 0)
    frame = sealed + call.header + body
    assert deployment.enclave is not None
    tasks = Path(f"/proc/{deployment.enclave.ready['pid']}/task")
    before = len(list(tasks.iterdir()))
    for cut in range(0, len(frame), 97):
        with dial(enclave) as channel:
            channel.sendall(frame[:cut])
    assert eventually(lambda: len(list(tasks.iterdir())) <= before + 2)


# The host's own port


def at_port(deployment: LocalDeployment) -> socket.socket:
    host, _, port = deployment.target.rpartition(":")
    return socket.create_connection((host, int(port)), timeout=60)


def test_h11_garbage_at_the_hosts_port_is_shed(
    deployment: LocalDeployment, still_serves: Callable[[], None]
) -> None:
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    chance = random.Random(12)
    for sent in (
        b"GET / HTTP/1.0\r\n\r\n",
        chance.randbytes(4000),
        preface + b"\xff\xff\xff" + chance.randbytes(100),  # a frame of 16 MiB
        preface + chance.randbytes(4000),
        b"\x16\x03\x01\x02\x00",
    ):
        with at_port(deployment) as channel, contextlib.suppress(OSError):
            channel.sendall(sent)
            channel.shutdown(socket.SHUT_WR)
            channel.settimeout(5)
            closes(channel)
        still_serves()


@pytest.mark.slow
def test_h11_ten_thousand_connections_at_the_hosts_port_harm_nobody(
    deployment: LocalDeployment, still_serves: Callable[[], None]
) -> None:
    """As many as the kernel gives this process descriptors for, if those are fewer."""
    assert deployment.host is not None
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    count = min(10_000, hard - 500)
    assert count >= 1000
    pid = deployment.host.pid
    memory, threads = resident_kib(pid), resident_kib(pid, "Threads")
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    try:
        with contextlib.ExitStack() as held:
            for index in range(count):
                channel = held.enter_context(at_port(deployment))
                channel.sendall((b"", preface[:5], preface)[index % 3])
            begun = time.monotonic()
            for _ in range(5):
                still_serves()
            assert time.monotonic() - begun < 60
            assert resident_kib(pid) - memory < 20 * count  # KiB: 14 a connection, with room
            assert resident_kib(pid, "Threads") < threads + 16
        assert eventually(lambda: len(list(Path(f"/proc/{pid}/fd").iterdir())) < 200)
        still_serves()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_c3_a_flood_is_refused_with_its_code_and_the_next_request_is_served(
    deployment: LocalDeployment, still_serves: Callable[[], None]
) -> None:
    """Eight clients at once, far beyond what two processors can run; nobody gets a wrong answer."""
    codes: list[Code] = []

    def flood() -> None:
        session, enclave = start_session(deployment), genuine(deployment)
        for _ in range(15):
            try:
                codes.append(session.ask(enclave).trailer.status)
            except CasemateError as error:
                codes.append(error.code)

    threads = [threading.Thread(target=flood) for _ in range(8)]
    for thread in threads:
        thread.start()
    still_serves()
    for thread in threads:
        thread.join()
    assert len(codes) == 120
    assert set(codes) <= {Code.OK, Code.OVERLOADED}
    assert codes.count(Code.OK) > 60


def test_c3_a_preamble_that_cannot_be_read_is_not_kept(
    deployment: LocalDeployment, enclave: EnclaveSocket, bounded_memory: Callable[[], None]
) -> None:
    """Who asked in a session is remembered for its life: not whatever stands in its place."""
    for _ in range(10):
        keys = start_session(deployment).keys
        header = keys._next_header()
        th = wire.digest(header)
        unit = request_unit((bytes(7 * MIB), b"message"))
        key = wire.expand(keys._prk, "request", th)
        request = seal_message(header, key, th, unit)
        call = SealedCall(header, request, keys._prk, keys._instance_digest, receipt=False, th=th)
        assert call.open(*enclave.request(header, call.ciphertext)).trailer.status is (
            Code.INVALID_REQUEST
        )
    bounded_memory()
