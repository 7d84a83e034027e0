"""Stands in for ``app/boot.py`` in a copy of the staged tree: looks around, reports, then obeys.

It serves its report on the enclave's socket, one JSON object a connection; a connection that first
sends ``exit`` ends it with status 7.
"""

# ruff: noqa: T201, PTH, BLE001 - runs without this repository's rules, packages or paths

import json
import os
import resource
import socket
import sys


def attempt(action):
    try:
        return f"allowed: {action()!r}"[:200]
    except Exception as error:
        return type(error).__name__ if not isinstance(error, OSError) else str(error.strerror)


def status(*names):
    with open("/proc/self/status") as file:
        pairs = [line.rstrip("\n").split(":\t") for line in file]
    return {key: value for key, value in pairs if key in names}


def descriptors():
    found = {}
    for number in range(64):
        try:
            found[number] = os.readlink(f"/proc/self/fd/{number}")
        except OSError:
            continue
    return found


def writable(paths):
    return [path for path in paths if attempt(lambda: open(f"{path}/x", "w").close())[:7] == "allowed"]


def tcp(family, address):
    with socket.socket(family, socket.SOCK_STREAM) as channel:
        channel.settimeout(2)
        channel.connect((address, 22))


def folders():
    return [folder for folder, _, _ in os.walk("/") if not folder.startswith(("/proc", "/sys"))]


def look(arguments):
    capabilities = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")
    facts = {
        "argv": sys.argv,
        "executable": sys.executable,
        "path": sys.path,
        "environ": open("/proc/self/environ").read() + "".join(os.environ),
        "ids": [*os.getresuid(), *os.getresgid(), *os.getgroups()],
        "pid": os.getpid(),
        "descriptors": descriptors(),
        "core": resource.getrlimit(resource.RLIMIT_CORE),
        "umask": os.umask(0o077),
        "status": status(*capabilities, "NoNewPrivs"),
        "hostname": socket.gethostname(),
        "interfaces": [name for _, name in socket.if_nameindex()],
        "tcp4": attempt(lambda: tcp(socket.AF_INET, "127.0.0.1")),
        "tcp6": attempt(lambda: tcp(socket.AF_INET6, "::1")),
        "abstract": attempt(lambda: socket.socket(socket.AF_UNIX).connect("\0casemate-outside")),
        "passwd": attempt(lambda: open("/etc/passwd").read()),
        "preload": attempt(lambda: open("/etc/ld.so.preload").read()),
        "mount": attempt(lambda: os.listdir("/mnt")),
        "chroot": attempt(lambda: os.chroot("/app")),
        "become_root": attempt(lambda: os.setuid(0)),
        "processors": os.cpu_count(),
        "processes": [name for name in os.listdir("/proc") if name.isdigit()],
        "roots": sorted(os.listdir("/")),
        "devices": os.listdir("/dev"),
    }
    facts["egress"] = attempt(lambda: socket.socket(socket.AF_UNIX).connect(arguments["--egress"][5:]))
    if facts["pid"] == 1:
        facts["writable"] = writable(folders())
    return facts


def attest(path):
    request = b"\xa1\x6bAttestation\xa0"
    with socket.socket(socket.AF_UNIX) as channel:
        channel.connect(path)
        channel.sendall(len(request).to_bytes(4, "big") + request)
        length = int.from_bytes(channel.recv(4, socket.MSG_WAITALL), "big")
        return channel.recv(length, socket.MSG_WAITALL).hex()


def marker():
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    sys.path[:] = [path for path in sys.path if path.startswith(sys.base_prefix)]
    sys.path += [os.path.join(root, "packages"), os.path.join(root, "app")]
    import marker  # the test's own module

    return marker.VALUE


def main():
    arguments = dict(zip(sys.argv[1::2], sys.argv[2::2]))
    facts = look(arguments)
    facts["marker"] = attempt(marker)
    facts["attestation"] = attest(arguments["--nsm"][5:])
    facts["libraries"] = attempt(lambda: __import__("libraries_probe").run())
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(arguments["--listen"][5:])
    listener.listen()
    while True:
        channel, _ = listener.accept()
        if channel.recv(4) == b"exit":
            os._exit(7)
        channel.sendall(json.dumps(facts).encode())
        channel.close()


main()
