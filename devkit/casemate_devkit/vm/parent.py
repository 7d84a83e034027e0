"""What the parent instance does for its enclave, in a machine of its own at context id 3.

It runs as ``/app/boot.py`` of an image whose other parts are the enclave's, so it uses the
interpreter's own library only. It answers the heartbeat of a Nitro enclave, and leads connections
on to where they belong: from this machine's host to the enclave, from the enclave to the host.
"""

import contextlib
import socket
import sys
import threading

_ANY, _HOST, _ENCLAVE = 0xFFFFFFFF, 2, 16

# Between two machines vhost-device-vsock 0.3 puts each packet into one receive buffer, whatever its
# length, and loses one that does not fit; between a machine and the host it splits. Linux's buffer
# is a page without its own header and the packet's: 3732 bytes. So nothing longer is sent; and the
# enclave, whose packets are never longer than its peer's receive window, is told one of that size.
# The host is not: Linux holds back what it sends by its own window, too, until the device says that
# it has taken it, and that it says seldom.
_PACKET = 3732
_WINDOW = 0  # SO_VM_SOCKETS_BUFFER_SIZE


def _socket(peer: int) -> socket.socket:
    made = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
    if peer == _ENCLAVE:
        made.setsockopt(socket.AF_VSOCK, _WINDOW, _PACKET)
    return made


def _listen(port: int, peer: int) -> socket.socket:
    listener = _socket(peer)  # what it accepts has its window
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
        while piece := source.recv(_PACKET):
            sink.sendall(piece)
    for end, how in ((sink, socket.SHUT_WR), (source, socket.SHUT_RD)):
        with contextlib.suppress(OSError):
            end.shutdown(how)


def _lead(near: socket.socket, target: tuple[int, int]) -> None:
    far = _socket(target[0])
    with near, far, contextlib.suppress(OSError):
        far.connect(target)
        back = threading.Thread(target=_pump, args=(far, near), name="pump", daemon=True)
        back.start()
        _pump(near, far)
        back.join()


def _serve(listener: socket.socket, target: tuple[int, int]) -> None:
    while True:
        near, _ = listener.accept()
        threading.Thread(target=_lead, args=(near, target), name="lead", daemon=True).start()


def main() -> None:
    """Serve for as long as the machine lives."""
    for port, near, far in ((5000, _HOST, _ENCLAVE), (5001, _ENCLAVE, _HOST)):
        arguments = (_listen(port, near), (far, port))
        threading.Thread(target=_serve, args=arguments, name="serve", daemon=True).start()
    beats = _listen(9000, _ENCLAVE)
    sys.stderr.write('{"event": "STARTED", "count": 0}\n')
    _heartbeats(beats)


if __name__ == "__main__":
    main()
