"""The egress stream of SPEC 9.4, from the enclave's side."""

from __future__ import annotations

import socket
import struct
import threading
import time
from typing import TYPE_CHECKING

import pytest

from casemate.channel import UnixAddress
from casemate.errors import Code, KeyReleaseError
from casemate_kms.deadline import remaining, until
from casemate_kms.egress import EgressRefusedError, dial_egress, dialer
from tests.support.patience import patiently

if TYPE_CHECKING:
    from pathlib import Path


class Proxy:
    """Accepts one stream, takes the question and gives a prepared answer."""

    def __init__(self, folder: Path, answer: bytes | None) -> None:
        self.address = UnixAddress(str(folder / "e.sock"))
        self.question = b""
        self.closed = threading.Event()
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(self.address.path)
        self._listener.listen()
        self._thread = threading.Thread(target=self._serve, args=(answer,), daemon=True)
        self._thread.start()

    def _serve(self, answer: bytes | None) -> None:
        with self._listener, self._listener.accept()[0] as stream:
            (size,) = struct.unpack(">I", stream.recv(4, socket.MSG_WAITALL))
            self.question = stream.recv(size, socket.MSG_WAITALL)
            if answer is not None:
                stream.sendall(answer)
                stream.shutdown(socket.SHUT_WR)
            if stream.recv(1) == b"":
                self.closed.set()


def test_connected_leaves_a_transparent_stream(tmp_path: Path) -> None:
    proxy = Proxy(tmp_path, b"\x00hello")
    with dial_egress(proxy.address, "kms.eu-central-1.amazonaws.com", 443, 60) as stream:
        assert stream.recv(16) == b"hello"
    assert proxy.question == b"kms.eu-central-1.amazonaws.com:443"


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (b"\x01", EgressRefusedError),
        (b"\x02", KeyReleaseError),
        (b"\x7f", KeyReleaseError),
        (b"", KeyReleaseError),
    ],
)
def test_any_other_answer_is_unavailable_and_closes_the_stream(
    tmp_path: Path, answer: bytes, kind: type[KeyReleaseError]
) -> None:
    proxy = Proxy(tmp_path, answer)
    with pytest.raises(KeyReleaseError) as caught:
        dial_egress(proxy.address, "host", 443, 60)
    assert type(caught.value) is kind
    assert caught.value.code is Code.KEY_RELEASE_UNAVAILABLE
    assert proxy.closed.wait(60)


def test_a_silent_proxy_is_given_up_in_time(tmp_path: Path) -> None:
    def asked(seconds: float) -> Proxy:
        folder = tmp_path / str(seconds)
        folder.mkdir()
        proxy = Proxy(folder, None)
        with pytest.raises(KeyReleaseError) as caught, until(time.monotonic() + seconds):
            dialer(proxy.address)("host", 443)
        assert caught.value.code is Code.KEY_RELEASE_UNAVAILABLE
        return proxy

    assert patiently(asked, lambda proxy: proxy.closed.wait(1), (0.2, 2, 20)).closed.wait(60)


@pytest.mark.parametrize(
    ("host", "port"), [("h" * 256, 443), ("höst", 443), ("host", 0), ("host", 65536)]
)
def test_what_cannot_be_named_is_not_dialled(tmp_path: Path, host: str, port: int) -> None:
    with pytest.raises(KeyReleaseError) as caught:
        dial_egress(UnixAddress(str(tmp_path / "none")), host, port, 1)
    assert "destination" in caught.value.detail


def test_no_proxy(tmp_path: Path) -> None:
    with pytest.raises(KeyReleaseError) as caught:
        dial_egress(UnixAddress(str(tmp_path / "none")), "host", 443, 1)
    assert caught.value.code is Code.KEY_RELEASE_UNAVAILABLE


def test_a_deadline_ends_with_its_block() -> None:
    with until(time.monotonic() - 1), pytest.raises(TimeoutError):
        remaining()
    assert remaining() > 1
