"""How the host cuts a sealed model into frames: as it is sealed, whatever the file says."""

from __future__ import annotations

import socket
import threading
from typing import TYPE_CHECKING

import pytest

from casemate import cbor, limits
from casemate.channel import UnixAddress
from casemate.frames import ANSWER, FrameType, receive_frame, send_frame
from casemate_host.control import Control

if TYPE_CHECKING:
    from pathlib import Path

SEALED_CHUNK = limits.CHUNK + 16
NAMED = {"name": "wdbc", "version": 1, "digest": bytes(48)}


class Receiver:
    """An enclave that takes what it is sent and notes the frames."""

    def __init__(self, path: Path) -> None:
        self.frames: list[bytes] = []
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._thread = threading.Thread(target=self._take)
        self._thread.start()

    def _take(self) -> None:
        with self._listener, self._listener.accept()[0] as channel:
            first = receive_frame(channel)
            assert first is not None
            left = cbor.decode(bytes(first.payload))["size"]
            while left:
                frame = receive_frame(channel)
                assert frame is not None
                assert frame.type == FrameType.MODEL_DATA
                self.frames.append(bytes(frame.payload))
                left -= len(frame.payload)
            send_frame(channel, FrameType.LOAD | ANSWER, cbor.encode(NAMED))

    def join(self) -> list[bytes]:
        self._thread.join()
        return self.frames


def sent(short_path: Path, content: bytes) -> list[int]:
    file, address = short_path / "m.sealed", short_path / "s"
    file.write_bytes(content)
    receiver = Receiver(address)
    assert Control(UnixAddress(str(address))).load(file).name == "wdbc"
    frames = receiver.join()
    assert b"".join(frames) == content
    return [len(frame) for frame in frames]


def test_each_chunk_is_a_frame_of_its_own(short_path: Path) -> None:
    head = b"CASEMDL2" + (100).to_bytes(4, "big") + bytes(100 + 68)
    content = head + bytes(2 * SEALED_CHUNK + 21)
    assert sent(short_path, content) == [len(head), SEALED_CHUNK, SEALED_CHUNK, 21]


@pytest.mark.parametrize(
    ("content", "frames"),
    [
        (b"x", [1]),
        (b"CASEMDL2" + b"\xff" * 4 + bytes(70_000), [12 + 65_536 + 68, 70_000 - 65_536 - 68]),
        (bytes(SEALED_CHUNK + 81), [80, SEALED_CHUNK, 1]),
    ],
)
def test_files_that_are_no_models_are_sent_too(
    short_path: Path, content: bytes, frames: list[int]
) -> None:
    """The enclave refuses them, and says why."""
    assert sent(short_path, content) == frames
