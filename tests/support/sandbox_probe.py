"""Stands in for ``app/boot.py`` in a copy of the staged tree: confined, then it tries to break out.

It takes the enclave's own command line and its confinement, in the enclave's order, and then serves
commands where the enclave would serve frames: one JSON line in, one out. ``probe.json`` beside it
names the defences to leave out, so that tests can show that each attempt succeeds without them.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import errno
import functools
import importlib
import json
import mmap
import os
import platform
import resource
import socket
import struct
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).resolve().parent.parent
DONE = "done"
ATTEMPTS: dict[str, Callable[[dict[str, Any]], object]] = {}

# Calls that Python has no function for, by number: x86_64, aarch64.
NUMBERS = {
    "init_module": (175, 105),
    "process_vm_readv": (310, 270),
    "keyctl": (250, 219),
    "io_uring_setup": (425, 425),
    "seccomp": (317, 277),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
}


def attempt(function: Callable[[dict[str, Any]], object]) -> Callable[[dict[str, Any]], object]:
    """Register an attempt: it returns when it succeeded and raises OSError when it was refused."""
    ATTEMPTS[function.__name__] = function
    return function


def outcome(function: Callable[[], object]) -> str:
    """``done``, or the errno's name."""
    try:
        function()
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, str(error))
    return DONE


def libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def checked(result: int) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), "refused")
    return result


def syscall(name: str, *arguments: object) -> int:
    number = NUMBERS[name][platform.machine() == "aarch64"]
    words = [ctypes.c_long(word) if isinstance(word, int) else word for word in arguments]
    return checked(libc().syscall(ctypes.c_long(number), *words))


def in_child(function: Callable[[], object]) -> None:
    """Run what would harm this process in a child, or, where no child can be made, here."""
    try:
        pid = os.fork()
    except OSError:
        function()
        return
    if pid == 0:
        code = 255
        try:
            function()
            code = 0
        except OSError as error:
            code = error.errno or 255
        finally:
            os._exit(code)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if status:
        raise OSError(status, "refused in the child")


# -- the network -----------------------------------------------------------------------------------


@attempt
def socket_inet(_: dict[str, Any]) -> None:
    socket.socket(socket.AF_INET, socket.SOCK_STREAM).close()


@attempt
def socket_inet_datagram(_: dict[str, Any]) -> None:
    socket.socket(socket.AF_INET, socket.SOCK_DGRAM).close()


@attempt
def socket_inet6(_: dict[str, Any]) -> None:
    socket.socket(socket.AF_INET6, socket.SOCK_STREAM).close()


@attempt
def socket_netlink(_: dict[str, Any]) -> None:
    socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0).close()


@attempt
def socket_packet(_: dict[str, Any]) -> None:
    socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0).close()


@attempt
def socket_vsock(_: dict[str, Any]) -> None:
    socket.socket(40, socket.SOCK_STREAM).close()


@attempt
def connect_tcp(given: dict[str, Any]) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as channel:
        channel.settimeout(2)
        channel.connect(("127.0.0.1", given["tcp_port"]))


@attempt
def connect_abstract_socket(given: dict[str, Any]) -> None:
    connect_unix("\0" + given["abstract"])


@attempt
def connect_foreign_socket(given: dict[str, Any]) -> None:
    connect_unix(given["socket"])


def connect_unix(address: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as channel:
        channel.connect(address)


@attempt
def make_listener(given: dict[str, Any]) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as channel:
        channel.bind(f"{given['run']}/another.sock")
        channel.listen()


# -- processes -------------------------------------------------------------------------------------


@attempt
def fork(_: dict[str, Any]) -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)


@attempt
def spawn(_: dict[str, Any]) -> None:
    """As subprocess does: glibc's posix_spawn, a vfork and an exec."""
    pid = os.posix_spawn(interpreter(), [interpreter(), "-I", "-S", "-V"], {})
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if status:
        raise OSError(errno.EACCES, "the child could not exec")


@attempt
def execute(_: dict[str, Any]) -> None:
    in_child(lambda: os.execve(interpreter(), [interpreter(), "-I", "-S", "-V"], {}))


def interpreter() -> str:
    return str(ROOT / "usr/bin/python3")


@attempt
def trace(_: dict[str, Any]) -> None:
    in_child(lambda: checked(libc().ptrace(0, 0, 0, 0)))  # PTRACE_TRACEME


@attempt
def read_memory_of_another(given: dict[str, Any]) -> None:
    size = 16
    target = ctypes.create_string_buffer(size)
    local = struct.pack("QQ", ctypes.addressof(target), size)
    remote = struct.pack("QQ", given["address"], size)
    syscall("process_vm_readv", given["pid"], local, 1, remote, 1, 0)


@attempt
def signal_another(given: dict[str, Any]) -> None:
    os.kill(given["pid"], 0)


# -- files -----------------------------------------------------------------------------------------


@attempt
def read_passwd(_: dict[str, Any]) -> None:
    Path("/etc/passwd").read_bytes()


@attempt
def read_environment_of_another(given: dict[str, Any]) -> None:
    Path(f"/proc/{given['pid']}/environ").read_bytes()


@attempt
def read_file_of_another(given: dict[str, Any]) -> None:
    Path(given["file"]).read_bytes()


@attempt
def read_own_maps(_: dict[str, Any]) -> None:
    Path("/proc/self/maps").read_bytes()


@attempt
def write_own_code(_: dict[str, Any]) -> None:
    with (ROOT / "app/probe.json").open("ab") as file:
        file.write(b"\n")


@attempt
def create_file(given: dict[str, Any]) -> None:
    Path(given["run"], "created").write_bytes(b"x")


@attempt
def create_file_elsewhere(_: dict[str, Any]) -> None:
    (ROOT / "created").write_bytes(b"x")


@attempt
def create_directory(given: dict[str, Any]) -> None:
    Path(given["run"], "directory").mkdir()


@attempt
def create_link(given: dict[str, Any]) -> None:
    Path(given["run"], "link").symlink_to("/")


@attempt
def truncate_file(given: dict[str, Any]) -> None:
    os.truncate(f"{given['run']}/host-file", 0)


@attempt
def write_file(given: dict[str, Any]) -> None:
    with Path(given["run"], "host-file").open("r+b") as file:
        file.write(b"x")


@attempt
def remove_file(given: dict[str, Any]) -> None:
    Path(given["run"], "host-socket").unlink()


@attempt
def rename_file(given: dict[str, Any]) -> None:
    Path(given["run"], "host-file").rename(Path(given["run"], "renamed"))


@attempt
def raise_core_limit(_: dict[str, Any]) -> None:
    try:
        resource.setrlimit(resource.RLIMIT_CORE, (1 << 20, 1 << 20))
    except ValueError:
        raise OSError(errno.EPERM, "refused") from None


# -- the kernel ------------------------------------------------------------------------------------


@attempt
def make_memory_executable(_: dict[str, Any]) -> None:
    with mmap.mmap(-1, mmap.PAGESIZE) as page:
        address = ctypes.c_char.from_buffer(page)
        location = ctypes.c_void_p(ctypes.addressof(address))
        del address
        function = libc().mprotect
        checked(function(location, ctypes.c_size_t(mmap.PAGESIZE), 5))


@attempt
def map_executable_memory(_: dict[str, Any]) -> None:
    mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_EXEC).close()


@attempt
def make_memory_file(_: dict[str, Any]) -> None:
    os.close(os.memfd_create("code"))


@attempt
def load_library(_: dict[str, Any]) -> None:
    """Machine code from its own tree, which nothing had loaded."""
    found = next((ROOT / "usr").rglob("_asyncio*.so"))
    ctypes.CDLL(str(found))


@attempt
def load_module(_: dict[str, Any]) -> None:
    syscall("init_module", b"\x7fELF", 4, b"")


@attempt
def leave_namespaces(_: dict[str, Any]) -> None:
    in_child(
        lambda: checked(libc().unshare(0x10000000 | 0x40000000))
    )  # CLONE_NEWUSER, CLONE_NEWNET


@attempt
def mount(given: dict[str, Any]) -> None:
    def steps() -> None:
        # In a user namespace of its own anyone is privileged enough to mount.
        outcome(lambda: checked(libc().unshare(0x10000000 | 0x00020000)))
        checked(libc().mount(b"none", os.fsencode(given["run"]), b"tmpfs", 0, None))

    in_child(steps)


@attempt
def use_keyring(_: dict[str, Any]) -> None:
    syscall("keyctl", 0, -3, 1)  # KEYCTL_GET_KEYRING_ID, session, create


@attempt
def make_ring(_: dict[str, Any]) -> None:
    os.close(syscall("io_uring_setup", 4, ctypes.create_string_buffer(120)))


@attempt
def load_bpf(_: dict[str, Any]) -> None:
    syscall("bpf", 0, ctypes.create_string_buffer(struct.pack("IIII", 2, 4, 4, 1), 128), 128)


@attempt
def replace_filter(_: dict[str, Any]) -> None:
    code = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0x7FFF0000))  # allow all
    program = struct.pack("H6xQ", 1, ctypes.addressof(code))
    in_child(lambda: syscall("seccomp", 1, 0, program))


@attempt
def become_dumpable(_: dict[str, Any]) -> None:
    before = checked(libc().prctl(3, 0, 0, 0, 0))  # PR_GET_DUMPABLE
    checked(libc().prctl(4, 1, 0, 0, 0))
    checked(libc().prctl(4, before, 0, 0, 0))


@attempt
def trap_page_faults(_: dict[str, Any]) -> None:
    os.close(syscall("userfaultfd", 1))  # UFFD_USER_MODE_ONLY


@attempt
def count_events(_: dict[str, Any]) -> None:
    """Performance counters: a clock for side channels."""
    settings = bytearray(128)
    struct.pack_into("IIQ", settings, 0, 1, 128, 1)  # PERF_TYPE_SOFTWARE, its size, TASK_CLOCK
    struct.pack_into("Q", settings, 40, 0x60)  # exclude_kernel, exclude_hv
    buffer = ctypes.create_string_buffer(bytes(settings), 128)
    os.close(syscall("perf_event_open", buffer, 0, -1, -1, 0))


# -- the process under trial -----------------------------------------------------------------------


class Probe:
    """The enclave's start with the server replaced by attempts."""

    def __init__(self, skip: set[str]) -> None:
        self.skip = skip
        self.milliseconds: dict[str, float] = {}
        self.early = threading.Event()
        self.early_outcome = ""

    def start(self, arguments: argparse.Namespace) -> socket.socket:
        """Confine this process as casemate_enclave.__main__ does, less what is to be skipped."""
        from casemate_enclave import hardening, sandbox  # noqa: PLC0415 - not where tests run

        if "harden" in self.skip:
            checked(libc().prctl(4, 1, 0, 0, 0))  # dumpable, whatever the launcher did about it
        else:
            hardening.harden_process()
        run = Path(arguments.listen.removeprefix("unix:")).parent
        if "files" not in self.skip:
            self.timed(
                "files", lambda: sandbox.confine_files(sandbox.tree_paths(str(ROOT)), [str(run)])
            )
        self.timed("imports", self.load_runtime)
        self.thread = threading.Thread(target=self.started_early, daemon=True)
        self.thread.start()
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        with contextlib.suppress(FileNotFoundError):
            (run / "enclave.sock").unlink()
        listener.bind(str(run / "enclave.sock"))
        listener.listen()
        if "tsync" in self.skip:
            vars(sandbox.seccomp)["_FLAG_TSYNC"] = 0
        if "calls" not in self.skip:
            self.timed("calls", lambda: sandbox.confine_calls(arguments.form))
        return listener

    def timed(self, name: str, function: Callable[[], object]) -> None:
        before = time.perf_counter()
        function()
        self.milliseconds[name] = (time.perf_counter() - before) * 1000

    def load_runtime(self) -> None:
        self.onnxruntime = importlib.import_module("onnxruntime")
        self.numpy = importlib.import_module("numpy")
        self.model = (ROOT / "app/probe.onnx").read_bytes()
        self.session = self.new_session(1)
        self.rows = self.numpy.random.default_rng(7).random((64, 30), dtype="float32")
        self.before = self.run(self.session)

    def new_session(self, threads: int) -> Any:  # noqa: ANN401 - onnxruntime has no types
        options = self.onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        return self.onnxruntime.InferenceSession(
            self.model, options, providers=["CPUExecutionProvider"]
        )

    def run(self, session: Any) -> list[bytes]:  # noqa: ANN401 - as above
        name = session.get_inputs()[0].name
        return [value.tobytes() for value in session.run(None, {name: self.rows})]

    def started_early(self) -> None:
        self.early.wait()
        self.early_outcome = outcome(lambda: socket_inet({}))

    # Commands

    def attempts(self, given: dict[str, Any]) -> dict[str, str]:
        return {name: outcome(functools.partial(f, given)) for name, f in ATTEMPTS.items()}

    def threads(self, _: dict[str, Any]) -> dict[str, str]:
        self.early.set()
        self.thread.join()
        later: list[str] = []
        thread = threading.Thread(target=lambda: later.append(outcome(lambda: socket_inet({}))))
        thread.start()
        thread.join()
        return {"early": self.early_outcome, "late": later[0]}

    def inference(self, _: dict[str, Any]) -> dict[str, Any]:
        """Run the first model, a second one with its own thread, and both from many threads."""
        second = self.second = self.new_session(2)  # kept, with its thread
        results = [self.run(self.session), self.run(second)]
        workers = [
            threading.Thread(target=lambda s=s: results.append(self.run(s)))
            for s in (self.session, second) * 8
        ]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        return {"runs": len(results), "identical": all(r == self.before for r in results)}

    def throughput(self, given: dict[str, Any]) -> dict[str, float]:
        count, before = given["count"], time.perf_counter()
        for _ in range(count):
            self.run(self.session)
        return {"per_second": count / (time.perf_counter() - before)}

    def facts(self, _: dict[str, Any]) -> dict[str, Any]:
        return {
            "environment": dict(os.environ),
            "milliseconds": self.milliseconds,
            "locked": self.lock(),
        }

    def lock(self) -> bool:
        from casemate_enclave.sandbox import lock_memory  # noqa: PLC0415 - as above

        self.key = bytearray(4096)
        return lock_memory(self.key)

    def serve(self, listener: socket.socket) -> None:
        commands = (self.attempts, self.threads, self.inference, self.throughput, self.facts)
        table = {command.__name__: command for command in commands}
        while True:
            channel, _ = listener.accept()
            with channel, channel.makefile("rb") as reader:
                request = json.loads(reader.readline())
                answer = table[request.pop("do")](request)
                channel.sendall(json.dumps(answer).encode() + b"\n")


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("--listen", "--egress", "--nsm", "--form"):
        parser.add_argument(name)
    probe = Probe(set(json.loads((ROOT / "app/probe.json").read_text())["skip"]))
    probe.serve(probe.start(parser.parse_args()))


if __name__ == "__main__":
    library = [path for path in sys.path if path.startswith(f"{sys.base_prefix.rstrip('/')}/")]
    sys.path[:] = [*library, str(ROOT / "packages"), str(ROOT / "app")]
    os.environ.clear()
    os.environ.update({"ORT_DISABLE_TELEMETRY": "1", "OPENBLAS_NUM_THREADS": "1"})
    main()
