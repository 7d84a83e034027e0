"""THREATS S1 to S3, H12 and A40 in the form `container`: real attempts in the container.

The last tests put other programs in the enclave's place, with exactly the settings of its service.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from casemate.errors import CasemateError
from tests.support import sandbox_attempts, sandbox_neighbour
from tests.support.compose import PROJECT
from tests.support.deployment import DATA
from tests.support.sandbox_attempts import DONE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from casemate.client import Client
    from tests.support.compose import Stack

SUPPORT = Path(sandbox_attempts.__file__).parent
ENCLAVE_USER = "65534"
RUN = "/run/casemate"
# What the enclave's own confinement refuses and its container alone would not: starting programs
# and listening is what a container is for, and a process may look at itself.
INNER = {
    *("fork", "spawn", "execute", "make_listener", "load_library", "read_own_maps"),
    *("make_memory_executable", "map_executable_memory", "become_dumpable", "replace_filter"),
    *("create_file", "create_directory", "create_link", "truncate_file", "write_file"),
    *("rename_file", "remove_file"),
    "make_memory_file",  # the enclave shares tensors with its workers in sealed ones alone
}


def as_root(stack: Stack, script: str, *options: str) -> str:
    """Run a script with the machine's own eyes: what the operator could look at."""
    done = stack.docker(
        *("run", "--rm", "--pid", "host", "--network", "none", "--user", "0", *options),
        *("--entrypoint", "/usr/bin/python3", "casemate-devkit", "-ISBc", script),
    )
    return done.stdout


def clear_run(stack: Stack) -> None:
    """Remove what a test left in the directory that enclave and host share, whoever made it."""
    script = f"""
import os, shutil
for name in set(os.listdir("{RUN}")) - {{"enclave.sock", "egress.sock"}}:
    path = os.path.join("{RUN}", name)
    shutil.rmtree(path) if os.path.isdir(path) and not os.path.islink(path) else os.unlink(path)
"""
    as_root(stack, script, "--volume", f"{PROJECT}_run:{RUN}")


def pid_of(stack: Stack, service: str) -> int:
    pid: int = stack.inspect(service)["State"]["Pid"]
    return pid


def status_of(stack: Stack, service: str) -> dict[str, str]:
    pid = pid_of(stack, service)
    text = as_root(stack, f"print(open('/proc/{pid}/status').read())")
    return {k: v.strip() for k, _, v in (line.partition(":") for line in text.splitlines())}


def await_answer(connect: Callable[[], Client]) -> None:
    """Wait for a sealed answer: an enclave that was put in place has to be configured first."""
    deadline = time.monotonic() + 180
    while True:
        try:
            with connect() as client:
                assert client.infer("wdbc", {"features": DATA.features[:4]}).outputs
        except CasemateError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)
        else:
            return


# -- the walls as the engine and the kernel state them ---------------------------------------------


@pytest.mark.parametrize("service", ["nsm", "kms", "enclave", "host"])
def test_s1_no_container_is_privileged_in_any_way(stack: Stack, service: str) -> None:
    settings = stack.inspect(service)["HostConfig"]
    assert settings["ReadonlyRootfs"]
    assert not settings["Privileged"]
    assert settings["CapDrop"] == ["ALL"]
    assert not settings["CapAdd"]
    assert settings["Memory"] == settings["MemorySwap"] > 0
    assert settings["PidsLimit"] > 0
    status = status_of(stack, service)
    assert status["NoNewPrivs"] == "1"
    assert status["Seccomp"] == "2"
    assert "0" not in status["Uid"].split()
    for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(status[name], 16) == 0


def test_s1_the_enclave_has_no_network_and_two_filters(stack: Stack) -> None:
    assert stack.inspect("enclave")["HostConfig"]["NetworkMode"] == "none"
    script = "import socket; print([name for _, name in socket.if_nameindex()])"
    pid = pid_of(stack, "enclave")
    devices = as_root(stack, f"print(open('/proc/{pid}/net/dev').read())", "--cap-add=SYS_PTRACE")
    names = [line.partition(":")[0].strip() for line in devices.splitlines() if ":" in line]
    assert names == ["lo"], script
    assert int(status_of(stack, "enclave")["Seccomp_filters"]) == 2


def test_s1_only_the_host_is_published_and_on_loopback_alone(stack: Stack) -> None:
    for service in ("nsm", "kms", "enclave"):
        assert not stack.inspect(service)["HostConfig"]["PortBindings"]
    bindings = stack.inspect("host")["HostConfig"]["PortBindings"]
    assert set(bindings) == {"8443/tcp", f"{stack.environment['CASEMATE_FRAMES_PORT']}/tcp"}
    assert all([at["HostIp"] for at in each] == ["127.0.0.1"] for each in bindings.values())


# -- another process in the enclave's container ----------------------------------------------------

INTRUDER = f"""
import os, socket, subprocess
def attempt(name, function):
    try:
        function()
        print(name, "done")
    except (OSError, EOFError) as error:
        print(name, type(error).__name__)
def ask_module():
    channel = socket.socket(socket.AF_UNIX)
    channel.connect("/run/nsm/nsm.sock")
    channel.sendall(bytes([0, 0, 0, 10]) + b"\\x69GetRandom")
    if not channel.recv(1):
        raise EOFError
attempt("module", ask_module)
attempt("memory", lambda: open("/proc/1/mem", "rb").read(1))
attempt("environment", lambda: open("/proc/1/environ", "rb").read())
attempt("maps", lambda: open("/proc/1/maps").read())
attempt("network", lambda: socket.socket(socket.AF_INET))
attempt("shell", lambda: subprocess.run(["/bin/sh"]))
attempt("root", lambda: open("/created", "wb"))
attempt("code", lambda: open("/app/boot.py", "ab"))
attempt("module socket", lambda: os.unlink("/run/nsm/nsm.sock"))
for path in ("/tmp/x", "/dev/shm/x", "/var/x", "/etc/x", "{RUN}/../x"):
    attempt(path, lambda: open(path, "wb"))
"""


def test_s1_a40_another_process_in_the_enclaves_container_gets_nothing(stack: Stack) -> None:
    done = stack.python("enclave", INTRUDER)
    outcomes = dict(line.rsplit(" ", 1) for line in done.stdout.splitlines())
    assert len(outcomes) == 14, done.stderr
    assert DONE not in outcomes.values(), outcomes
    assert '"refused"' in stack.logs("nsm")


# -- S2, S3: from the machine, as the enclave's user -----------------------------------------------


def neighbour(stack: Stack, *arguments: str) -> list[str]:
    """The command of another process of the enclave's user, whom no filter holds back."""
    stack.docker("version")
    return [
        *("docker", "run", "--rm", "--interactive", "--pid", "host", "--network", "none"),
        *("--user", ENCLAVE_USER, "--cap-drop", "ALL", "--security-opt", "seccomp=unconfined"),
        *("--entrypoint", "/usr/bin/python3", "casemate-devkit"),
        *("-c", Path(sandbox_neighbour.__file__).read_text(), *arguments, ENCLAVE_USER),
    ]


def attacked(stack: Stack, pid: int) -> dict[str, str]:
    done = stack.docker(*neighbour(stack, "attack", str(pid))[1:])
    found: dict[str, str] = json.loads(done.stdout.splitlines()[0])
    return found


def test_s2_another_process_of_the_same_user_sees_nothing_of_the_enclave(stack: Stack) -> None:
    outcomes = attacked(stack, pid_of(stack, "enclave"))
    assert len(outcomes) > 5
    assert DONE not in outcomes.values(), outcomes


def test_s2_the_same_process_sees_all_of_one_that_is_not_confined(stack: Stack) -> None:
    command = neighbour(stack, "victim")
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        victim: dict[str, Any] = json.loads(process.stdout.readline())
        try:
            outcomes = attacked(stack, victim["pid"])
        finally:
            as_root(stack, f"import os; os.kill({victim['pid']}, 9)")
    assert outcomes["read_memory"] == outcomes["read_environment"] == DONE, outcomes


def test_s3_no_core_no_swap_and_locked_keys(stack: Stack) -> None:
    pid = pid_of(stack, "enclave")
    limits = as_root(stack, f"print(open('/proc/{pid}/limits').read())")
    core = next(line for line in limits.splitlines() if line.startswith("Max core file size"))
    assert core.split()[4:6] == ["0", "0"]
    status = status_of(stack, "enclave")
    assert status["VmSwap"] == "0 kB"
    assert int(status["VmLck"].split()[0]) > 0
    assert "KEYS_NOT_LOCKED" not in stack.logs("enclave")


def test_s3_signals_that_would_dump_core_do_nothing_and_leave_nothing(
    stack: Stack, connect: Callable[[], Client]
) -> None:
    """The kernel gives them to no first process of a container that has no handler for them."""
    before = stack.inspect("enclave")["State"]["StartedAt"]
    pid = pid_of(stack, "enclave")
    as_root(stack, f"import os; [os.kill({pid}, number) for number in (3, 6, 7, 8, 11)]")
    with connect() as client:
        assert client.infer("wdbc", {"features": DATA.features[:4]}).outputs
    assert stack.inspect("enclave")["State"]["StartedAt"] == before
    listing = stack.python("host", f"import os; print(sorted(os.listdir('{RUN}')))").stdout
    assert listing.strip() == "['egress.sock', 'enclave.sock']"
    assert "core" not in stack.docker("diff", stack.container("enclave")).stdout


# -- in the enclave's place ------------------------------------------------------------------------


class Place:
    """The enclave's service with something else about it, until the end of the test."""

    def __init__(self, stack: Stack, folder: Path) -> None:
        self._stack = stack
        self._folder = folder

    def take(self, **services: dict[str, Any]) -> Stack:
        """Start services anew, each with what is said of it; one with a ``build`` is built."""
        changed = self._stack.changed(self._folder / "override.json", services)
        built = [name for name, service in services.items() if "build" in service]
        if built:
            changed.compose("build", "--quiet", *built)
        for service in services:
            changed.compose("up", "--detach", "--no-deps", "--force-recreate", service)
        return changed

    def image(self, base: str, files: dict[str, bytes]) -> dict[str, Any]:
        """Describe an image that is ``base`` with some files more, or others."""
        context = self._folder / base
        for name, content in files.items():
            path = context / "files" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        target = base.removeprefix("casemate-")
        (context / "Dockerfile").write_text(f"FROM {base} AS {target}\nCOPY files /\n")
        build = {"context": str(context), "dockerfile": "Dockerfile"}
        return {"image": f"{base}-changed", "build": build}


@pytest.fixture
def place(stack: Stack, tmp_path: Path, connect: Callable[[], Client]) -> Iterator[Place]:
    yield Place(stack, tmp_path)
    for service in ("nsm", "enclave"):
        stack.compose("up", "--detach", "--no-deps", "--force-recreate", service)
        stack.wait_healthy(service)
    await_answer(connect)
    stack.wait_healthy("host")
    for image in ("casemate-enclave-changed", "casemate-devkit-changed"):
        stack.docker("image", "rm", "--force", image, check=False)


def ask(stack: Stack, request: dict[str, Any]) -> dict[str, str]:
    """Send a command to the probe; its socket is its own user's, so only root can."""
    script = f"""
import json, socket, time
for _ in range(1800):
    try:
        channel = socket.socket(socket.AF_UNIX)
        channel.connect("{RUN}/enclave.sock")
        break
    except OSError:
        time.sleep(0.1)
channel.sendall(json.dumps({request!r}).encode() + b"\\n")
print(channel.makefile().readline())
"""
    answer: dict[str, str] = json.loads(as_root(stack, script, "--volume", f"{PROJECT}_run:{RUN}"))
    return answer


@pytest.mark.parametrize("skip", [[], ["calls", "files"]], ids=["all", "outer-walls-alone"])
def test_s1_an_attempt_from_inside_the_enclaves_process_is_refused(
    stack: Stack, place: Place, skip: list[str]
) -> None:
    probe = {
        "app/boot.py": (SUPPORT / "sandbox_probe.py").read_bytes(),
        "app/sandbox_attempts.py": (SUPPORT / "sandbox_attempts.py").read_bytes(),
        "app/probe.onnx": DATA.onnx.read_bytes(),
        "app/probe.json": json.dumps({"skip": skip}).encode(),
    }
    image = place.image("casemate-enclave", probe)
    place.take(enclave={**image, "restart": "no", "healthcheck": {"disable": True}})
    stack.python("host", f"open('{RUN}/host-file', 'w'); open('{RUN}/host-socket', 'w')")
    request = {
        "do": "attempts",
        "run": RUN,
        "tcp_port": 443,
        "abstract": "casemate",
        "socket": "/var/run/docker.sock",
        "file": "/operator/credentials.json",
        "pid": pid_of(stack, "host"),
        "address": 4096,
    }
    outcomes = ask(stack, request)
    clear_run(stack)
    succeeded = {name for name, outcome in outcomes.items() if outcome == DONE}
    assert outcomes.keys() == sandbox_attempts.ATTEMPTS.keys()
    assert succeeded <= (INNER if skip else set()), succeeded
    if skip:
        assert "fork" in succeeded  # the inner defences were indeed left out


# Of every process of the container: keys are in one, models run in others.
MAPS = """
import os
inside = os.readlink('/proc/{pid}/ns/pid')
for name in filter(str.isdigit, os.listdir('/proc')):
    try:
        if os.readlink(f'/proc/{{name}}/ns/pid') == inside:
            print(open(f'/proc/{{name}}/maps').read())
    except OSError:  # gone, or of the machine itself
        pass
"""


def test_h12_a_hostile_environment_and_planted_files_reach_no_enclave(
    stack: Stack, place: Place, connect: Callable[[], Client]
) -> None:
    """Variables that Python and the loader read, pointing at files that the host planted."""
    plant = f"""
import os, pathlib, sysconfig
for name in ("sitecustomize.py", "usercustomize.py", "onnxruntime.py", "startup.py"):
    open("{RUN}/" + name, "w").write("open('{RUN}/executed', 'w')")
modules = pathlib.Path(sysconfig.get_path("stdlib"), "lib-dynload").glob("*.so")
smallest = min(modules, key=lambda path: path.stat().st_size)
pathlib.Path("{RUN}/evil.so").write_bytes(smallest.read_bytes())
"""
    done = stack.python("host", plant)
    assert done.returncode == 0, done.stderr
    hostile = {
        "PYTHONPATH": RUN,
        "PYTHONHOME": RUN,
        "PYTHONSTARTUP": f"{RUN}/startup.py",
        "PYTHONINSPECT": "1",
        "LD_PRELOAD": f"{RUN}/evil.so",
        "SSLKEYLOGFILE": f"{RUN}/keys",
        "ORT_DISABLE_TELEMETRY": "0",
        "AWS_ENDPOINT_URL_KMS": "https://127.0.0.1:1",
    }
    changed = place.take(enclave={"environment": hostile})
    changed.wait_healthy("enclave")
    await_answer(connect)
    maps = as_root(changed, MAPS.format(pid=pid_of(changed, "enclave")), "--cap-add=SYS_PTRACE")
    assert "libonnx" in maps or "onnxruntime" in maps
    executable = [line for line in maps.splitlines() if "x" in line.partition(" ")[2][:4]]
    assert executable
    assert not [line for line in executable if RUN in line]
    listing = stack.python("host", f"import os; print(os.listdir('{RUN}'))").stdout
    assert "executed" not in listing
    assert "'keys'" not in listing
    clear_run(stack)


def test_h12_k2_a_file_more_in_the_image_and_nobody_seals(
    stack: Stack, place: Place, clinic: Path
) -> None:
    """The module measures what was added; the host's check and the client's refuse it."""
    planted = {"app/planted.py": b"# harmless\n"}
    enclave = place.image("casemate-enclave", planted)
    devkit = place.image("casemate-devkit", {f"tree/{n}": data for n, data in planted.items()})
    changed = place.take(nsm=devkit, enclave=enclave)
    changed.wait_healthy("enclave")
    deadline = time.monotonic() + 180
    while "EVIDENCE_MEASUREMENTS" not in stack.logs("host"):
        assert time.monotonic() < deadline, stack.logs("host")
        time.sleep(0.5)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "casemate.client.cli", "verify", stack.address()),
            *("--policy", str(clinic / "trust.toml")),
        ],
        capture_output=True,
        text=True,
        check=False,
        env=dict(os.environ),
    )
    assert done.returncode in {1, 3}, done.stdout
    assert "evidence verified" not in done.stdout
