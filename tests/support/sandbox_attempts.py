"""What a hostile enclave would try; staged beside the probe, whose process makes the attempts."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import platform
import resource
import socket
import struct
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


# -- what a library does by itself -----------------------------------------------------------------

# Threads are let be, and what they do is watched, too: where a processor's cores may differ
# onnxruntime visits each of them with a thread that ends at once.
WATCHED = {"socket": (41, 198), "connect": (42, 203)}
MAKING = {"mkdir": (83, 34), "mkdirat": (258, 34), "unlinkat": (263, 35), "renameat2": (316, 276)}
LOAD, EQUAL, SET, RETURN = 0x20, 0x15, 0x45, 0x06
KILL, ALLOW = 0x80000000, 0x7FFF0000


def watch() -> None:
    """From here on a socket, or a file opened for writing, ends the process by SIGSYS."""
    aarch64 = platform.machine() == "aarch64"
    code = [struct.pack("HBBI", LOAD, 0, 0, 0)]
    for numbers in (*WATCHED.values(), *MAKING.values()):
        code.append(struct.pack("HBBI", EQUAL, 0, 1, numbers[aarch64]))
        code.append(struct.pack("HBBI", RETURN, 0, 0, KILL))
    code += [
        struct.pack("HBBI", EQUAL, 0, 3, (257, 56)[aarch64]),  # openat
        struct.pack("HBBI", LOAD, 0, 0, 16 + 8 * 2),
        struct.pack("HBBI", SET, 0, 1, os.O_WRONLY | os.O_RDWR | os.O_CREAT),
        struct.pack("HBBI", RETURN, 0, 0, KILL),
        struct.pack("HBBI", RETURN, 0, 0, ALLOW),
    ]
    filters = ctypes.create_string_buffer(b"".join(code))
    checked(libc().prctl(38, 1, 0, 0, 0))  # PR_SET_NO_NEW_PRIVS
    syscall("seccomp", 1, 0, struct.pack("H6xQ", len(code), ctypes.addressof(filters)))
