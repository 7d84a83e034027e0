"""The least that a sealed answer costs through a host: what code of ours is measured against.

A relay that moves bytes in the kernel, and a process that opens, runs the model and seals: two
AES-256-GCM of each message under one fixed key, a TCP connection, a unix socket, ``session.run``.
There is no session, no attestation, no check, no bound, no batcher and no process for a model, so
nobody could serve by it. ``python -m bench.peers.bare FOLDER`` prints one JSON line.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import struct
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from bench.peers.models import MODELS
from casemate import limits

if TYPE_CHECKING:
    from collections.abc import Callable

    import onnxruntime

AEAD: Final = AESGCM(bytes(32))
NONCE: Final = bytes(12)
NAMES: Final = sorted(MODELS)
_HEAD: Final = struct.Struct("<BI")  # which model, how many sealed bytes
_TAG: Final = 16
_ANSWER: Final = 1 << 16  # more than any answer, each of which is sent, and so arrives, whole


class Caller:
    """The client's side of one connection."""

    def __init__(self, target: str, model: str) -> None:
        host, _, port = target.rpartition(":")
        self._channel = socket.create_connection((host, int(port)))
        self._channel.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._number = NAMES.index(model)

    def ask(self, row: np.ndarray) -> bytes:
        """Return the bytes of all outputs."""
        message = bytearray(_HEAD.size + row.nbytes + _TAG)
        _HEAD.pack_into(message, 0, self._number, row.nbytes + _TAG)
        AEAD.encrypt_into(NONCE, row.data.cast("B"), None, memoryview(message)[_HEAD.size :])
        self._channel.sendall(message)
        return AEAD.decrypt(NONCE, self._channel.recv(_ANSWER), None)

    def close(self) -> None:
        """End the connection."""
        self._channel.close()


def received(channel: socket.socket, into: memoryview) -> None:
    """Fill ``into``; raises EOFError."""
    while into:
        got = channel.recv_into(into)
        if not got:
            raise EOFError
        into = into[got:]


def relay(near: socket.socket, far: socket.socket) -> None:
    """Move what callers ask to the enclave, and its answers to them; ends with either."""
    near.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    out_of, into = os.pipe()
    fcntl.fcntl(into, fcntl.F_SETPIPE_SZ, limits.PIPE_BYTES)
    with near, far:
        while head := near.recv(_HEAD.size, socket.MSG_PEEK | socket.MSG_WAITALL):
            left = _HEAD.size + _HEAD.unpack(head)[1]
            while left:
                got = os.splice(near.fileno(), into, left)
                moved = 0
                while moved < got:
                    moved += os.splice(out_of, far.fileno(), got - moved)
                left -= got
            near.sendall(far.recv(_ANSWER))


def answer(channel: socket.socket, models: list[onnxruntime.InferenceSession]) -> None:
    """Open, run and seal, until the relay ends."""
    memory = memoryview(bytearray(1 << 20))
    rows = memoryview(bytearray(1 << 20))
    with channel, contextlib.suppress(EOFError):
        while True:
            received(channel, memory[: _HEAD.size])
            number, size = _HEAD.unpack_from(memory)
            sealed = memory[_HEAD.size : _HEAD.size + size]
            received(channel, sealed)
            row = rows[: size - _TAG]
            AEAD.decrypt_into(NONCE, sealed, None, row)
            (name, shape), *_ = MODELS[NAMES[number]].inputs.items()
            tensor = np.frombuffer(row, np.float32).reshape(1, *shape)
            outputs = models[number].run(None, {name: tensor})
            channel.sendall(AEAD.encrypt(NONCE, b"".join(o.tobytes() for o in outputs), None))


def in_threads(listener: socket.socket, serve: Callable[[socket.socket], Any]) -> None:
    """Serve each connection in a thread of its own, for ever."""
    while True:
        channel, _ = listener.accept()
        threading.Thread(target=serve, args=(channel,), daemon=True).start()


def enclave(listener: socket.socket, folder: Path, parent: int) -> None:
    """The process that has the key; ends when nobody holds the other end of the pipe ``parent``."""

    def follow() -> None:
        os.read(parent, 1)
        os._exit(0)

    threading.Thread(target=follow, daemon=True).start()
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    import onnxruntime  # noqa: PLC0415 - here alone: the client's side is imported from here, too

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    models = [
        onnxruntime.InferenceSession((folder / f"{name}.onnx").read_bytes(), options)
        for name in NAMES
    ]
    in_threads(listener, lambda channel: answer(channel, models))


def main() -> int:
    """Serve until the standard input ends."""
    address = f"\0casemate-bare-{os.getpid()}"  # in no file system
    listener = socket.create_server(address, family=socket.AF_UNIX)
    parent, held = os.pipe()
    if not os.fork():
        os.close(held)
        enclave(listener, Path(sys.argv[1]), parent)
    front = socket.create_server(("127.0.0.1", 0))

    def passed_on(near: socket.socket) -> None:
        far = socket.socket(socket.AF_UNIX)
        far.connect(address)
        relay(near, far)

    threading.Thread(target=in_threads, args=(front, passed_on), daemon=True).start()
    host, port = front.getsockname()
    print(json.dumps({"target": f"{host}:{port}"}), flush=True)
    sys.stdin.read()
    return 0


if __name__ == "__main__":
    sys.exit(main())
