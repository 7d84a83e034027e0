"""Where the time of one sealed request goes, beside what the machine itself needs for it.

One request at a time. Of the whole: the time a caller waits, and the processor time of client, host
and enclave. Of the steps within client and enclave: processor time, each step in turn with the
production code. Below them the floors that no code can pass: AEAD, HKDF, a signature check, a frame
over a unix socket, a gRPC echo, ``session.run``. Run by `make bench`, with a staged tree:
`python -m bench.request_path [--json]`.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import statistics
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Final

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # before anything imports onnxruntime

import grpc
import onnxruntime
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from bench.peers import processor
from bench.peers.models import MODELS, SERVING, BenchModel, write_models
from bench.peers.servers import World, sealed_world
from bench.rounds import measure
from casemate import frames, tensors, wire
from casemate.attestation import ServiceLimits
from casemate.envelope.sealed_message import encode_sealed, parse_sealed
from casemate.frames import FrameType
from tests.support.enclave_bench import Bench

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROUNDS: Final = 600
_MIB: Final = 1 << 20
_LIMITS: Final = ServiceLimits(sessions=64, models=4, model_bytes=64 * _MIB, request_bytes=8 * _MIB)
_OPTIONS: Final = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
_HKDFS: Final = 4  # commitment is checked once a session; two keys on each side of a request
_SIDES: Final = 2


@contextlib.contextmanager
def grpc_echo(answer: bytes) -> Iterator[Callable[[bytes], bytes]]:
    """A gRPC server in this process that answers everything with ``answer``."""
    server = grpc.server(ThreadPoolExecutor(2), options=_OPTIONS)
    handler: grpc.RpcMethodHandler[bytes, bytes] = grpc.unary_unary_rpc_method_handler(
        lambda _request, _context: answer
    )
    service = grpc.method_handlers_generic_handler("bench", {"Echo": handler})
    server.add_generic_rpc_handlers([service])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with grpc.insecure_channel(f"127.0.0.1:{port}", options=_OPTIONS) as channel:
        method: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary("/bench/Echo")
        yield method
    server.stop(None).wait()


@contextlib.contextmanager
def frame_echo(answer: bytes) -> Iterator[Callable[[bytes], object]]:
    """A frame to the other end of a unix socket and one back."""
    near, far = socket.socketpair()

    def serve() -> None:
        with contextlib.suppress(OSError):
            while (frame := frames.receive_frame(far)) is not None:
                frames.send_frame(far, frame.type | frames.ANSWER, answer)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    with near, far:
        yield lambda request: frames.exchange(near, FrameType.REQUEST, request)


class Sides:
    """Client and enclave of one session, with the last request and answer between them."""

    def __init__(self, bench: Bench, model: BenchModel, content: bytes) -> None:
        sealed, self._header = bench.sealed(
            files={"m.onnx": content},
            inputs=model.input_specs,
            outputs=model.output_specs,
            serving=SERVING,
        )
        bench.load(sealed, piece=_MIB)
        self._session = bench.session()
        self._service = bench.assembly.enclave.parts.service
        self._row = model.row()
        self.message = self.encode()
        self.seal()
        self.enclave()
        self.opened = self.open()

    def encode(self) -> bytes:
        """Client: tensors to a message."""
        self.message = tensors.to_request(self._row)
        return self.message

    def seal(self) -> None:
        """Client: a message to a sealed request."""
        self.call = self._session.seal(
            model="linear", version=2, digest=self._header.digest, message=self.message
        )
        self.request = b"".join(encode_sealed(self.call.header, self.call.ciphertext))

    def enclave(self) -> None:
        """Enclave: a sealed request to a sealed answer, the model run within."""
        # A request runs once, so each is sealed anew, outside of what is timed.
        deadline = time.monotonic() + 30
        self.answer = b"".join(self._service.answer(memoryview(self.request), deadline))

    def open(self) -> bytes:
        """Client: a sealed answer to a message."""
        opened = self.call.open(*parse_sealed(memoryview(self.answer)))
        if opened.message is None:
            raise ValueError(opened.trailer.detail)
        self.opened = bytes(opened.message)
        return self.opened

    def decode(self) -> object:
        """Client: a message to tensors."""
        return tensors.from_response(self.opened)


def floors(
    sides: Sides, session: onnxruntime.InferenceSession, model: BenchModel
) -> dict[str, Callable[[], object]]:
    """What the machine needs for the same bytes, whoever writes the code."""
    aead, row, outputs = AESGCM(bytes(32)), model.row(), list(model.outputs)
    sealed = aead.encrypt(bytes(12), sides.request, None)
    key = Ed25519PrivateKey.generate()
    signature = key.sign(bytes(300))
    public = key.public_key()

    def aeads() -> None:
        for _ in range(_SIDES):  # of the answer, which is shorter, as of the request
            aead.encrypt(bytes(12), sides.request, None)
            aead.decrypt(bytes(12), sealed, None)

    def hkdfs() -> None:
        for _ in range(_HKDFS):
            wire.expand(bytes(48), "request", bytes(48))

    return {
        "floor: AEAD, both ways, both sides": aeads,
        "floor: HKDF, four keys": hkdfs,
        "floor: one Ed25519 check": lambda: public.verify(signature, bytes(300)),
        "floor: session.run": lambda: session.run(outputs, row),
    }


def measured(name: str, folder: Path, world: World) -> dict[str, float]:
    """Median microseconds of each step for one model."""
    model, content = MODELS[name], (folder / f"{name}.onnx").read_bytes()
    rounds = ROUNDS if name != "slow" else ROUNDS // 10
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(content, options)
    with Bench(limits=_LIMITS) as bench:
        bench.configure()
        sides = Sides(bench, model, content)
        with grpc_echo(sides.answer) as echo, frame_echo(sides.answer) as frame:
            steps: dict[str, Callable[[], object]] = {
                "client: tensors to message": sides.encode,
                "client: seal": sides.seal,
                "enclave: open, run, seal": sides.enclave,
                "client: open": sides.open,
                "client: message to tensors": sides.decode,
                **floors(sides, session, model),
            }
            worked = measure(steps, rounds, time.thread_time_ns)
            waited = measure(
                {
                    "waited: gRPC echo": lambda: echo(sides.request),
                    "waited: frame over a unix socket": lambda: frame(sides.request),
                },
                rounds,
            )
    found = {case: statistics.median(values) for case, values in (worked | waited).items()}
    return {**whole(world, name, model, rounds), **found}


def whole(world: World, name: str, model: BenchModel, rounds: int) -> dict[str, float]:
    """What a caller waits for, and what each process works meanwhile."""
    processes = {
        "client": {os.getpid()},
        "host": processor.family(world.host.pid) if world.host else set(),
        "enclave": processor.family(world.enclave.pid) if world.enclave else set(),
    }
    row = model.row()
    with world.client() as client:
        client.infer(name, row)
        before = {who: processor.seconds(pids) for who, pids in processes.items()}
        times = measure({"whole": lambda: client.infer(name, row)}, rounds)["whole"]
    calls = rounds + max(rounds // 20, 3)  # with the warm-up
    spent = {who: processor.seconds(pids) - before[who] for who, pids in processes.items()}
    return {
        "waited: whole call": statistics.median(times),
        **{f"worked: {who}": 1e6 * seconds / calls for who, seconds in spent.items()},
    }


def main() -> int:
    """Measure and print."""
    with tempfile.TemporaryDirectory(prefix="cm-models-") as base:
        folder = Path(base)
        write_models(folder)
        with sealed_world(folder) as world:
            found = {name: measured(name, folder, world) for name in MODELS}
    if "--json" in sys.argv[1:]:
        print(json.dumps({"bench": "request path", "median_us": found}))
        return 0
    print(f"{'median microseconds, one in flight':40}" + "".join(f"{name:>10}" for name in found))
    for case in found["small"]:
        print(f"{case:40}" + "".join(f"{figures[case]:>10.0f}" for figures in found.values()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
