"""What the parent instance does for its enclave, in a machine of its own at context id 3.

It runs as ``/app/boot.py`` of an image whose other parts are the enclave's, so it uses the
interpreter's own library only. It answers the heartbeat of a Nitro enclave and leads connections
from this machine's host to the enclave.
"""

import contextlib
import socket
import sys
import threading

_ANY = 0xFFFFFFFF
_HEARTBEAT_PORT = 9000
_ENCLAVE = (16, 5000)
_PIECE = 1 << 16


def _listen(port: int) -> socket.socket:
    listener = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
    listener.bind((_ANY, port))
    listener.listen(128)
    return listener


def _heartbeats(listener: socket.socket) -> None:
    while True:
        channel, _ = listener.accept()
        with channel, contextlib.suppress(OSError):
            channel.sendall(channel.recv(1))


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while piece := source.recv(_PIECE):
            sink.sendall(piece)
    for end, how in ((sink, socket.SHUT_WR), (source, socket.SHUT_RD)):
        with contextlib.suppress(OSError):
            end.shutdown(how)


def _pass_on(near: socket.socket) -> None:
    far = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
    with near, far, contextlib.suppress(OSError):
        far.connect(_ENCLAVE)
        back = threading.Thread(target=_pump, args=(far, near), daemon=True)
        back.start()
        _pump(near, far)
        back.join()


def main() -> None:
    """Serve for as long as the machine lives."""
    threading.Thread(target=_heartbeats, args=(_listen(_HEARTBEAT_PORT),), daemon=True).start()
    door = _listen(_ENCLAVE[1])
    sys.stderr.write('{"event": "STARTED", "count": 0}\n')
    while True:
        near, _ = door.accept()
        threading.Thread(target=_pass_on, args=(near,), daemon=True).start()


if __name__ == "__main__":
    main()
