"""The spawner: forks a worker for each model, and buries it. It reads no foreign byte.

It is forked from the enclave before that opens a device or listens, has nothing of it but one
connection, and is confined before it imports onnxruntime, which it does once for all workers.
"""

from __future__ import annotations

import ctypes
import gc
import os
import resource
import select
import signal
import socket
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from casemate import cbor, limits
from casemate_enclave import accelerators
from casemate_enclave.accelerators import Needs
from casemate_enclave.hardening import give_up_root
from casemate_enclave.sandbox import (
    confine_files,
    confine_spawner,
    confine_worker,
    confine_worker_files,
    tree_paths,
)
from casemate_enclave.workers import packets

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_PR_SET_PDEATHSIG = 1
_FIRST_FREE = 3  # descriptors: after the standard ones
_DESCRIPTORS = 1 << 16


def fork_spawner(root: str | None, *, owns_machine: bool) -> socket.socket:
    """Fork the spawner and return the connection to it, once its files are confined.

    ``root``: where the staged tree lies, None for a checkout. The caller has a single thread and
    nothing open that a worker must not have, but what is closed here. Raises OSError.
    """
    ours, theirs = packets.pair()
    if os.fork() == 0:
        try:
            _become_spawner(theirs, root, owns_machine=owns_machine)
        finally:
            os._exit(1)
    theirs.close()
    # Its /proc may be this process's: no thread may start here before it has counted its own.
    if not ours.recv(1):
        raise OSError(0, "no spawner")
    return ours


def _become_spawner(channel: socket.socket, root: str | None, *, owns_machine: bool) -> NoReturn:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # it ends with the enclave
    channel = _keep_only(channel)
    _offer_to_be_killed_first()
    most = accelerators.needs_of(accelerators.offered())
    devices = accelerators.gpu_devices() if most.gpu else []
    readable = [] if root is None else tree_paths(root)
    landlock_abi = 0 if root is None else confine_files(readable, [], devices, gpu=most.gpu)
    channel.send(b"\0")
    if owns_machine:
        give_up_root()
    serve(channel, landlock_abi, (readable, devices), most)


def _keep_only(channel: socket.socket) -> socket.socket:
    """Close all other descriptors; the standard ones lead nowhere."""
    descriptor = os.dup2(channel.detach(), _FIRST_FREE, inheritable=False)
    os.closerange(_FIRST_FREE + 1, _DESCRIPTORS)
    reader, writer = os.pipe()
    os.close(reader)
    for standard in range(_FIRST_FREE):
        os.dup2(writer, standard, inheritable=False)
    os.close(writer)
    return socket.socket(fileno=descriptor)


def _offer_to_be_killed_first() -> None:
    """Where memory runs out, rather a worker than every session; not everywhere possible."""
    try:
        Path("/proc/self/oom_score_adj").write_text("1000")
    except OSError:
        return


def serve(
    channel: socket.socket,
    landlock_abi: int,
    files: tuple[Sequence[str], Sequence[str]] = ((), ()),
    most: Needs = accelerators.NONE,
) -> NoReturn:
    """Import, confine, say what there is, and do as told until the enclave ends.

    ``files`` are what is readable, and devices; ``most`` is what a worker can be given: what this
    onnxruntime has needs for.
    """
    import onnxruntime  # noqa: PLC0415 - confined before

    from casemate_enclave.runtime import warm_up  # noqa: PLC0415
    from casemate_enclave.workers.worker import serve_model  # noqa: PLC0415

    warm_up()
    providers = accelerators.usable(onnxruntime.get_available_providers())
    accelerators.prepare(onnxruntime, providers)
    waker, woken = _child_ends()
    gc.collect()
    gc.freeze()  # or the collector would write to, and so copy, every page in every worker
    confined = confine_spawner(most)
    channel.send(cbor.encode([landlock_abi, confined, providers]))
    try:
        _Spawner(channel, (waker, woken), serve_model, files, most).work()
    finally:
        os._exit(0)  # the enclave is gone, which may show as an error first


def _child_ends() -> tuple[int, int]:
    """Return a pipe that becomes readable when a worker ends: its writing and its reading end."""
    woken, waker = os.pipe()
    os.set_blocking(waker, False)
    os.set_blocking(woken, False)
    signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    return waker, woken


class _Spawner:
    def __init__(
        self,
        channel: socket.socket,
        pipe: tuple[int, int],
        serve_model: Callable[[socket.socket], NoReturn],
        files: tuple[Sequence[str], Sequence[str]],
        most: Needs,
    ) -> None:
        self._channel = channel
        self._pipe = pipe
        self._serve_model = serve_model
        self._files = files
        self._most = most
        self._workers: dict[int, int] = {}  # process -> number
        self._memory = bytearray(packets.ORDER.size)

    def work(self) -> None:
        """Return when the enclave is gone; the kernel ends the workers then."""
        poller = select.poll()
        for descriptor in (self._channel.fileno(), self._pipe[1]):
            poller.register(descriptor, select.POLLIN)
        while True:
            ready = {descriptor for descriptor, _ in poller.poll()}
            if self._pipe[1] in ready:
                self._bury()
            if self._channel.fileno() in ready and not self._obey():
                return

    def _obey(self) -> bool:
        size, descriptor = packets.receive(self._channel, self._memory)
        if size != packets.ORDER.size:
            return False
        order, number, bits, data_bytes = packets.ORDER.unpack(self._memory)
        if order == packets.START and descriptor is not None:
            code, gpu = (bool(bits & bit) for bit in (packets.NEEDS_CODE, packets.NEEDS_GPU))
            self._start(number, data_bytes, Needs(code, gpu), socket.socket(fileno=descriptor))
        elif order == packets.KILL:
            for process, known in self._workers.items():
                if known == number:  # not buried yet, so the process is still that worker
                    os.kill(process, signal.SIGKILL)
        return True

    def _start(self, number: int, data_bytes: int, needs: Needs, control: socket.socket) -> None:
        spawner = os.getpid()
        try:
            process = os.fork()
        except OSError as error:
            control.close()
            self._channel.send(packets.ENDED.pack(number, error.errno or 1))
            return
        if process == 0:
            try:
                self._become_worker(spawner, data_bytes, needs, control)
            finally:
                os._exit(1)
        control.close()
        self._workers[process] = number

    def _become_worker(
        self, spawner: int, data_bytes: int, needs: Needs, control: socket.socket
    ) -> NoReturn:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != spawner:
            os._exit(1)
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        self._channel.close()
        for descriptor in self._pipe:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_DATA, (data_bytes, data_bytes))
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
        resource.setrlimit(resource.RLIMIT_NOFILE, (limits.WORKER_DESCRIPTORS,) * 2)
        if self._most.gpu:
            confine_worker_files(*self._files, gpu=needs.gpu)
        confine_worker(needs)
        self._serve_model(control)

    def _bury(self) -> None:
        try:
            while os.read(self._pipe[1], 4096):
                pass
        except BlockingIOError:
            pass
        while self._workers:
            process, status = os.waitpid(-1, os.WNOHANG)
            if not process:
                return
            number = self._workers.pop(process)
            ended = packets.ENDED.pack(number, os.waitstatus_to_exitcode(status))
            self._channel.send(ended)
