"""How the host takes a stream's frames off the enclave's socket (SPEC 9.3.2)."""

from __future__ import annotations

import socket
import struct
import threading
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casemate import limits
from casemate.errors import Code, FrameError
from casemate.frames import ANSWER, ERROR, FrameType, send_error
from casemate_host.streams import _answers, _EnclaveError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

KIND = FrameType.STREAM | ANSWER


def frame(payload: bytes, kind: int = KIND) -> bytes:
    return struct.pack(">IBI", len(payload) + 5, kind, 0) + payload


def relayed(pieces: Sequence[bytes]) -> Iterator[bytes]:
    """What the host yields of an enclave that sends ``pieces``, one call each, and hangs up."""
    near, far = socket.socketpair()

    def send() -> None:
        with far:
            for piece in pieces:
                far.sendall(piece)

    sender = threading.Thread(target=send)
    sender.start()
    with near:
        near.settimeout(60)
        yield from _answers(near)
    sender.join()


def test_messages_pass_and_the_last_frame_ends_them() -> None:
    large = bytes(limits.STREAM_MESSAGE_MAX)
    sent = [frame(b"one"), frame(large), frame(b"two"), frame(b"")]
    assert b"".join(relayed(sent)) == b"one" + large + b"two"
    assert [*relayed([frame(b"")])] == []


@given(
    st.lists(st.binary(min_size=1, max_size=300), max_size=8),
    st.lists(st.integers(1, 900), max_size=8),
)
def test_whatever_comes_together_is_joined_and_nothing_is_lost(
    payloads: list[bytes], cuts: list[int]
) -> None:
    data = b"".join(map(frame, payloads)) + frame(b"")
    pieces = []
    for cut in cuts:
        pieces.append(data[:cut])
        data = data[cut:]
    messages = [*relayed([piece for piece in (*pieces, data) if piece])]
    assert b"".join(messages) == b"".join(payloads)
    assert all(messages)


def test_frames_that_are_there_together_are_one_message() -> None:
    payloads = [bytes([number]) * 1000 for number in range(40)]
    (message,) = relayed([b"".join(map(frame, payloads)) + frame(b"")])
    assert message == b"".join(payloads)


def refused(pieces: Sequence[bytes]) -> FrameError:
    with pytest.raises(FrameError) as caught:
        list(relayed(pieces))
    return caught.value


def test_what_the_enclave_may_not_send() -> None:
    assert refused([frame(b"one"), frame(b"x", FrameType.REQUEST | ANSWER)]).code is Code.INTERNAL
    too_large = struct.pack(">IBI", limits.STREAM_MESSAGE_MAX + 6, KIND, 0)
    assert refused([too_large]).code is Code.TOO_LARGE
    for cut in ([frame(b"one")], [frame(b"one")[:-1]], [frame(b"one")[:5]], []):
        assert refused(cut).code is Code.UNAVAILABLE


def test_an_error_comes_after_the_answers_before_it() -> None:
    near, far = socket.socketpair()
    with near, far:
        far.sendall(frame(b"one") + frame(b"two"))
        send_error(far, Code.OPEN_FAILED, "the request does not open")
        answers = _answers(near)
        assert next(answers) == b"onetwo"
        with pytest.raises(_EnclaveError) as caught:
            next(answers)
    assert caught.value.code is Code.OPEN_FAILED
    assert refused([frame(b"not CBOR", ERROR)]).code is Code.MALFORMED
