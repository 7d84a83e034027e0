"""Stands in for ``app/boot.py`` in a copy of the staged tree: looks around, reports, then obeys.

It answers each connection to the enclave's socket with its report, one JSON object; a connection
that first sends ``exit`` ends it with status 7, one that sends ``segv`` by a fault. It may import
only what the staged tree holds.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).resolve().parent.parent
ARGUMENTS = dict(zip(sys.argv[1::2], sys.argv[2::2], strict=True))


def address(option: str) -> str:
    return ARGUMENTS[option].removeprefix("unix:")


def attempt(action: Callable[[], object]) -> str:
    """``allowed: ...``, or why the system refused."""
    try:
        return f"allowed: {action()}"[:200]
    except OSError as error:
        return str(error.strerror)


def status() -> dict[str, str]:
    lines = Path("/proc/self/status").read_text().splitlines()
    return dict(line.split(":\t", 1) for line in lines if line.startswith(("Cap", "NoNewPrivs")))


def descriptors() -> list[str]:
    links = (Path(f"/proc/self/fd/{number}") for number in range(64))
    return [str(link.readlink()) for link in links if link.is_symlink()]


def connect(family: socket.AddressFamily, target: object) -> None:
    with socket.socket(family, socket.SOCK_STREAM) as channel:
        channel.settimeout(2)
        channel.connect(target)  # type: ignore[arg-type]


def writable() -> list[str]:
    """Every folder in reach in which a file can be made."""
    skipped = ("/proc", "/sys")  # the kernel's, and mounted read-only
    folders = [folder for folder, _, _ in os.walk("/") if not folder.startswith(skipped)]
    return [
        folder for folder in folders if attempt((Path(folder) / "x").touch).startswith("allowed")
    ]


def mounts() -> dict[str, list[str]]:
    """Each mount point with the flags that restrict it."""
    restricting = {"ro", "rw", "nosuid", "nodev", "noexec"}
    lines = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    return {line[1]: sorted(restricting.intersection(line[3].split(","))) for line in lines}


def look() -> dict[str, Any]:
    return {
        "argv": sys.argv,
        "executable": sys.executable,
        "path": sys.path,
        "environ": Path("/proc/self/environ").read_text(),
        "ids": [*os.getresuid(), *os.getresgid(), *os.getgroups()],
        "pid": os.getpid(),
        "descriptors": descriptors(),
        "core": resource.getrlimit(resource.RLIMIT_CORE),
        "status": status(),
        "hostname": socket.gethostname(),
        "interfaces": [name for _, name in socket.if_nameindex()],
        "processors": os.cpu_count(),
        "tcp4": attempt(lambda: connect(socket.AF_INET, ("127.0.0.1", 22))),
        "tcp6": attempt(lambda: connect(socket.AF_INET6, ("::1", 22))),
        "abstract": attempt(lambda: connect(socket.AF_UNIX, "\0casemate-test-outside")),
        "egress": egress(),
        "passwd": attempt(lambda: Path("/etc/passwd").read_text()),
        "chroot": attempt(lambda: os.chroot("/app")),
        "become_root": attempt(lambda: os.setuid(0)),
    }


def egress() -> str:
    return attempt(lambda: connect(socket.AF_UNIX, address("--egress")))


def look_around() -> dict[str, Any]:
    """What is a question only where the staged tree is the root."""
    return {
        "processes": [path.name for path in Path("/proc").iterdir() if path.name.isdigit()],
        "root": sorted(path.name for path in Path("/").iterdir()),
        "devices": [path.name for path in Path("/dev").iterdir()],
        "writable": writable(),
        "mounts": mounts(),
    }


def attest() -> str:
    request = b"\xa1\x6bAttestation\xa0"
    with socket.socket(socket.AF_UNIX) as channel:
        channel.connect(address("--nsm"))
        channel.sendall(len(request).to_bytes(4, "big") + request)
        length = int.from_bytes(channel.recv(4, socket.MSG_WAITALL), "big")
        return channel.recv(length, socket.MSG_WAITALL).hex()


def marker() -> str:
    """Import a module beside this one that the test may have forged bytecode for."""
    import marker  # type: ignore[import-not-found]  # noqa: PLC0415

    return str(marker.VALUE)


def libraries() -> int:
    """Import and use what the enclave uses; return the number of threads that this started."""
    os.environ.update({"ORT_DISABLE_TELEMETRY": "1", "OPENBLAS_NUM_THREADS": "1"})
    import botocore.session  # noqa: PLC0415
    import google.protobuf.message  # noqa: PLC0415, F401
    import numpy as np  # noqa: PLC0415
    import onnxruntime  # noqa: PLC0415
    from cryptography.hazmat.primitives.asymmetric import ec  # noqa: PLC0415

    ec.generate_private_key(ec.SECP384R1())
    botocore.session.get_session().create_client(
        "kms", region_name="eu-west-1", aws_access_key_id="a", aws_secret_access_key="b"
    )
    threads = len(list(Path("/proc/self/task").iterdir()))
    model = onnxruntime.InferenceSession(str(ROOT / "app/model.onnx"))
    (answer,) = model.run(None, {"x": np.zeros((2, 3), "float32")})
    assert len(answer) == 2
    return threads


def main() -> None:
    ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)  # PR_SET_DUMPABLE: it looks at itself through /proc
    facts = look() | (look_around() if os.getpid() == 1 else {})
    sys.path[:] = [path for path in sys.path if path.startswith(sys.base_prefix)]
    sys.path += [str(ROOT / "packages"), str(ROOT / "app")]
    facts["marker"] = marker()
    facts["attestation"] = attest()
    if (ROOT / "app/model.onnx").exists():
        facts["threads"] = libraries()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address("--listen"))
        listener.listen()
        while True:
            channel, _ = listener.accept()
            with channel:
                word = channel.recv(4)
                if word == b"exit":
                    os._exit(7)
                if word == b"segv":
                    sys.stderr.write("planted-secret-of-memory\n")
                    sys.stderr.write('{"event": "FAILED", "code": "INTERNAL"}\n')
                    sys.stderr.flush()
                    ctypes.CDLL(None).prctl(4, 0, 0, 0, 0)  # as the enclave is: not dumpable
                    ctypes.string_at(8)
                # The host may have come only after this began to look around.
                channel.sendall(json.dumps(facts | {"egress": egress()}).encode())


main()
