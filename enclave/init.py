"""Process 1 of an enclave image: makes a machine out of what the kernel leaves, then becomes boot.

Started by the kernel as ``python3 -I -S -B -X pycache_prefix=/nonexistent /app/init.py ARGUMENTS``,
which the measured kernel command line says (SPEC 4.4). There is no other program in the image and
so no shell: whatever fails here ends process 1, and with it the machine. Nothing is printed but an
event. The clock is set and the kernel's randomness stirred by the enclave itself, from the security
module that becomes reachable here.
"""

import ctypes
import os
import platform
import socket
import sys
import time

_MODULES = "/modules"
_DEVICE = "/dev/nsm"
_DEVICE_S = 10.0  # the driver has found the module by then, or there is none

# linux/mount.h
_RDONLY, _NOSUID, _NODEV, _NOEXEC, _REMOUNT, _BIND = 1, 2, 4, 8, 32, 4096
_DATA = _NOSUID | _NODEV | _NOEXEC
_MOUNTS = (
    ("proc", "/proc", _DATA),
    ("sysfs", "/sys", _DATA | _RDONLY),
    ("devtmpfs", "/dev", _NOSUID | _NOEXEC),
)
# Read-only from here on: the drivers have made their devices, and no file changes in an enclave.
_SEALED = (("/dev", _NOSUID | _NOEXEC), ("/", _NOSUID | _NODEV))

_FINIT_MODULE = {"x86_64": 313, "aarch64": 273}

# A Nitro enclave tells its parent that it has booted, and is ended unless it does
# (aws-nitro-enclaves-sdk-bootstrap, init/init.c).
_NITRO = "nitro-enclave"
_HEARTBEAT_AT = (3, 9000)
_HEARTBEAT = b"\xb7"
_HEARTBEAT_TRIES = 60  # seconds: a parent that has just started may not listen yet

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def mount(kind: str | None, target: str, flags: int) -> None:
    """Mount a file system of ``kind`` over ``target``, or change what is mounted there."""
    name = None if kind is None else kind.encode()
    _check(_libc.mount(name, target.encode(), name, ctypes.c_ulong(flags), None))


def load_modules(folder: str = _MODULES) -> None:
    """Load the drivers that the image brings, in the order of their names."""
    number = _FINIT_MODULE[platform.machine()]
    for name in sorted(os.listdir(folder)) if os.path.isdir(folder) else ():  # noqa: PTH112, PTH208 - pathlib is an import
        driver = os.open(f"{folder}/{name}", os.O_RDONLY | os.O_CLOEXEC)
        _check(_libc.syscall(ctypes.c_long(number), driver, b"", 0))
        os.close(driver)


def await_device(path: str = _DEVICE, patience_s: float = _DEVICE_S) -> None:
    """Wait until the security module's device exists; raises OSError."""
    deadline = time.monotonic() + patience_s
    while not os.path.exists(path):  # noqa: PTH110 - as above
        if time.monotonic() > deadline:
            raise FileNotFoundError(2, "no security module")
        time.sleep(0.05)


def beat(tries: int = _HEARTBEAT_TRIES) -> None:
    """Tell the parent that the enclave has booted; raises OSError."""
    for left in reversed(range(tries)):
        try:
            with socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM) as channel:
                channel.settimeout(10.0)
                channel.connect(_HEARTBEAT_AT)
                channel.sendall(_HEARTBEAT)
                if channel.recv(1) == _HEARTBEAT:
                    return
        except OSError:
            if not left:
                raise
        time.sleep(1.0)
    raise ConnectionRefusedError(111, "no heartbeat")


def prepare(arguments: list[str]) -> None:
    """Do all of it; raises OSError."""
    for kind, target, flags in _MOUNTS:
        mount(kind, target, flags)
    load_modules()
    await_device()
    for target, flags in _SEALED:
        mount(None, target, _REMOUNT | _BIND | _RDONLY | flags)
    if _NITRO in arguments:
        beat()


def become(arguments: list[str]) -> None:
    """Replace this program by the enclave's first code, with an empty environment."""
    flags = ("-I", "-S", "-B", "-X", "pycache_prefix=/nonexistent")
    command = (sys.executable, *flags, "/app/boot.py", *arguments)
    os.execve(sys.executable, command, {})  # noqa: S606 - no shell, on purpose


def main() -> int:
    """Run as process 1; returns only if the machine cannot be made, which ends it."""
    try:
        prepare(sys.argv[1:])
        become(sys.argv[1:])
    except OSError as error:
        sys.stderr.write(f'{{"event":"FAILED","count":{error.errno or 0}}}\n')
    return 1


if __name__ == "__main__":
    raise SystemExit(main())
