"""A man in the middle of framed connections (SPEC 9.6.3), and services that no offer means."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

import grpc

from casemate.errors import CasemateError
from casemate.framed import METADATA, Offer
from casemate.frames import COUNTED, HEAD_BYTES, parse_head
from casemate.v1.confidential_inference_pb2 import GetEvidenceRequest
from tests.support.aio import LoopedClient
from tests.support.blocking_connection import keep_company

if TYPE_CHECKING:
    from collections.abc import Iterable

    from casemate_devkit.local import LocalDeployment

_EVIDENCE = "/casemate.v1.ConfidentialInference/GetEvidence"
_PIECE = 1 << 16


def offer_of(target: str, token: str = "") -> Offer:
    """What the host at ``target`` offers with its evidence; fails if that is nothing."""
    metadata = (("authorization", f"Bearer {token}"),) if token else None
    with grpc.insecure_channel(target) as channel:
        ask: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(_EVIDENCE)
        _, call = ask.with_call(
            GetEvidenceRequest().SerializeToString(), timeout=60, metadata=metadata
        )
    trailing = dict(call.trailing_metadata() or ())
    offer = Offer.parse(trailing.get(METADATA))
    assert offer is not None, trailing
    return offer


def client_of(kind: str, deployment: LocalDeployment, target: str) -> Any:  # noqa: ANN401 - of two classes with the same methods
    """The clinic's client, blocking or on a loop, for the host at ``target``.

    Its small calls travel as those do that meet others; ``alone``: as each does by itself.
    """
    if kind in {"blocking", "alone"}:
        client = deployment.client(target=target)
        if kind == "blocking":
            for connection in client._parts.get().targets.in_order():
                keep_company(connection)
        return client
    return LoopedClient(target, deployment.trust_policy(), caller_key=deployment.clinic.signing_key)


@dataclass(slots=True)
class Passing:
    """One frame that passes: its ``head`` and ``payload``, and where it was seen."""

    connection: int
    to_host: bool
    index: int  # of its direction: 0 is the hello
    head: bytes
    payload: bytes

    @property
    def kind(self) -> int:
        return self.head[4]

    @property
    def whole(self) -> bytes:
        return self.head + self.payload


FramedLie = Callable[[Passing], "Iterable[bytes] | None"]


def honest_frames(passing: Passing) -> Iterable[bytes]:
    """Pass a frame on unchanged."""
    return (passing.whole,)


@dataclass
class Middleman:
    """Stands before a host's framed port and passes on what ``lie`` makes of each frame.

    A lie returns the bytes that go on in a frame's place; None cuts the connection there. With
    ``cut``, (whether to the host, bytes), so many of a direction pass on each connection, and then
    it is cut. Everything that arrived is in ``seen``.
    """

    back: int
    lie: FramedLie = honest_frames
    cut: tuple[bool, int] | None = None
    seen: list[Passing] = field(default_factory=list)
    connections: int = 0
    accepted: int = 0  # connections, whatever was forgotten

    def __post_init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._thread = threading.Thread(target=self._accept, name="middleman", daemon=True)
        self._thread.start()

    def offers(self, host_id: bytes) -> tuple[str]:
        """What a lying host says so that clients come here."""
        return (Offer(self.port, host_id).text,)

    def kinds(self, *, to_host: bool) -> list[int]:
        """The types of the frames that came from one side so far."""
        with self._lock:
            return [passing.kind for passing in self.seen if passing.to_host == to_host]

    def forget(self) -> None:
        """Drop what was seen, and cut the connections that are open."""
        with self._lock:
            self.seen.clear()
            self.connections = 0
            for end in self._open:
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                try:
                    far = socket.create_connection(("127.0.0.1", self.back), 10)
                except OSError:
                    near.close()
                    continue
                far.settimeout(None)
                with self._lock:
                    number, self.accepted = self.accepted, self.accepted + 1
                    self.connections += 1
                    self._open |= {near, far}
                for source, sink, to_host in ((near, far, True), (far, near, False)):
                    source.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    threading.Thread(
                        target=self._pump, args=(number, source, sink, to_host), daemon=True
                    ).start()

    def _pump(self, number: int, source: socket.socket, sink: socket.socket, to_host: bool) -> None:
        with contextlib.suppress(OSError, EOFError, CasemateError):
            if self.cut is not None and self.cut[0] == to_host:
                self._pass_bytes(source, sink, self.cut[1])
            else:
                self._pass_frames(number, source, sink, to_host=to_host)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    @staticmethod
    def _pass_bytes(source: socket.socket, sink: socket.socket, count: int) -> None:
        while count and (piece := source.recv(min(count, _PIECE))):
            sink.sendall(piece)
            count -= len(piece)

    def _pass_frames(
        self, number: int, source: socket.socket, sink: socket.socket, *, to_host: bool
    ) -> None:
        index = 0
        while True:
            head = _exactly(source, HEAD_BYTES)
            payload = _exactly(source, parse_head(head)[0] - COUNTED)
            passing = Passing(number, to_host, index, head, payload)
            with self._lock:
                self.seen.append(passing)
            pieces = self.lie(passing)
            if pieces is None:
                return
            for piece in pieces:
                sink.sendall(piece)
            index += 1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join(30)
        self._listener.close()
        self.forget()
        for end in self._open:
            end.close()


def _exactly(source: socket.socket, count: int) -> bytes:
    parts = []
    while count:
        piece = source.recv(min(count, _PIECE))
        if not piece:
            raise EOFError
        parts.append(piece)
        count -= len(piece)
    return b"".join(parts)


class Bystander:
    """A service on the client's machine that has nothing to do with any host.

    It says ``banner`` to whoever comes and keeps what it is told.
    """

    def __init__(self, banner: bytes = b"") -> None:
        self._banner = banner
        self.told = b""
        self.visits = 0
        self._open: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, name="bystander", daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                self.visits += 1
                self._open.append(near)
                threading.Thread(target=self._serve, args=(near,), daemon=True).start()

    def _serve(self, near: socket.socket) -> None:
        with contextlib.suppress(OSError):
            near.sendall(self._banner)
            while piece := near.recv(_PIECE):
                self.told += piece

    @property
    def left(self) -> int:
        """Visitors that are still connected."""
        return self.visits - sum(_gone(end) for end in self._open)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for end in self._open:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()


def _gone(end: socket.socket) -> bool:
    """Whether the other side has closed its end."""
    state = end.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]
    return state != 1  # ESTABLISHED
