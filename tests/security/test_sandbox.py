"""THREATS S1 to S3: real attempts inside the real sandbox, and from a neighbour of the same user.

Each attempt is made twice: where all defences stand it must be refused, and where those that the
table names are left out it must succeed, so that no test passes because its attempt was a bad one.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import pytest

from casemate_devkit.enclave_process import EnclaveProcess
from casemate_devkit.staging.files import link_tree
from casemate_enclave.sandbox import landlock
from tests.support import sandbox_attempts, sandbox_neighbour
from tests.support.sandbox_attempts import DONE

pytestmark = pytest.mark.integration

MODEL = Path(__file__).resolve().parents[2] / "examples/wdbc/wdbc.onnx"

Skip = frozenset[str]
Attempts = Callable[[Skip], dict[str, str]]
ALL: Skip = frozenset()
NO_CALLS: Skip = frozenset({"calls"})
NO_FILES: Skip = frozenset({"files"})
NEITHER: Skip = frozenset({"calls", "files"})
NO_TSYNC: Skip = frozenset({"tsync"})
NO_HARDENING: Skip = frozenset({"harden"})
NO_NAMESPACES: Skip = frozenset({"unsafe"})
NOTHING: Skip = frozenset({"unsafe", "calls", "files", "harden"})

# What has to be left out for an attempt to succeed: proof that nothing else stops it.
SUCCEEDS_WITHOUT: dict[str, Skip] = {
    "socket_inet": NO_CALLS,
    "socket_inet_datagram": NO_CALLS,
    "socket_inet6": NO_CALLS,
    "socket_netlink": NO_CALLS,
    "socket_vsock": NO_CALLS,
    "connect_tcp": NOTHING,
    "connect_abstract_socket": NOTHING,
    "connect_foreign_socket": NO_NAMESPACES,
    "make_listener": NO_CALLS,
    "fork": NO_CALLS,
    "spawn": NEITHER,
    "execute": NEITHER,
    "trace": NO_CALLS,
    "read_memory_of_another": NOTHING,
    "signal_another": NOTHING,
    "read_passwd": NOTHING,
    "read_environment_of_another": NOTHING,
    "read_file_of_another": NOTHING,
    "read_own_maps": NO_FILES,
    "write_own_code": NOTHING,
    "create_file": NEITHER,
    "create_file_elsewhere": NOTHING,
    "create_directory": NEITHER,
    "create_link": NEITHER,
    "truncate_file": NEITHER,
    "write_file": NEITHER,
    "remove_file": NO_CALLS,
    "rename_file": NEITHER,
    "make_memory_executable": NO_CALLS,
    "map_executable_memory": NO_CALLS,
    "make_memory_file": NO_CALLS,
    "load_library": NO_CALLS,
    "leave_namespaces": NO_CALLS,
    "mount": NEITHER,
    "use_keyring": NO_CALLS,
    "make_ring": NO_CALLS,
    "replace_filter": NO_CALLS,
    "become_dumpable": NO_CALLS,
    "trap_page_faults": NO_CALLS,
    "count_events": NO_CALLS,
}
# These need a capability as well, which the process has in no variant.
NEEDS_PRIVILEGE = {"socket_packet", "raise_core_limit", "load_module", "load_bpf"}
# A kernel may lack these, or keep them from users.
OPTIONAL = {
    *("socket_inet6", "socket_vsock", "leave_namespaces", "mount", "use_keyring", "make_ring"),
    *("trap_page_faults", "count_events"),
}


@dataclass(frozen=True)
class Outside:
    """What lies around the enclave and is none of its business."""

    facts: dict[str, Any]
    directory: Path

    def prepare(self, run: Path) -> None:
        """Put into the shared directory what a host may keep there."""
        (run / "host-file").write_bytes(b"host")
        (run / "host-file").chmod(0o666)
        (run / "host-socket").write_bytes(b"")


class Trial:
    """A probe that runs in the sandbox, less what is to be skipped."""

    def __init__(self, tree: Path, outside: Outside, skip: Skip, **more: bool) -> None:
        self._outside = outside
        self._base = Path(tempfile.mkdtemp(prefix="casemate-trial-"))
        self.run = self._base / "run"
        self.run.mkdir(mode=0o700)
        outside.prepare(self.run)
        (tree / "app/probe.json").write_text(json.dumps({"skip": sorted(skip), **more}))
        unsafe = "unsafe" in skip
        self.enclave = EnclaveProcess(
            tree, outside.directory / "pki", self.run, unsafe_no_namespaces=unsafe
        )
        self.facts = {**outside.facts, "run": str(self.run) if unsafe else "/run/casemate"}

    def __enter__(self) -> Self:
        self.enclave.start()
        deadline = time.monotonic() + 90
        while not self._answers():
            assert self.enclave.running(), "the probe ended"
            assert time.monotonic() < deadline, "the probe does not listen"
            time.sleep(0.02)
        return self

    def __exit__(self, *_: object) -> None:
        self.enclave.stop()
        shutil.rmtree(self._base)

    def _answers(self) -> bool:
        try:
            self.ask("facts")
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        return True

    def ask(self, command: str, **more: object) -> dict[str, Any]:
        with socket.socket(socket.AF_UNIX) as channel:
            channel.settimeout(60)
            channel.connect(str(self.run / "enclave.sock"))
            channel.sendall(json.dumps({"do": command, **self.facts, **more}).encode() + b"\n")
            with channel.makefile("rb") as reader:
                answer: dict[str, Any] = json.loads(reader.readline())
                return answer


@contextlib.contextmanager
def changed(tree: Path, changes: dict[str, bytes]) -> Iterator[Path]:
    """A copy of the staged tree in which some files are others."""
    # Beside it: links do not cross file systems.
    with tempfile.TemporaryDirectory(prefix="trial-", dir=tree.parent) as scratch:
        copy = Path(scratch) / "tree"
        link_tree(tree, copy)
        for name, content in changes.items():
            (copy / name).unlink(missing_ok=True)  # a link: the staged tree's own must not change
            (copy / name).write_bytes(content)
        yield copy


@pytest.fixture(scope="module")
def probe_tree(tree: Path) -> Iterator[Path]:
    """A tree whose first code is the probe."""
    support = Path(sandbox_attempts.__file__).parent
    staged = {
        "app/boot.py": (support / "sandbox_probe.py").read_bytes(),
        "app/sandbox_attempts.py": (support / "sandbox_attempts.py").read_bytes(),
        "app/probe.onnx": MODEL.read_bytes(),
    }
    with changed(tree, staged) as copy:
        yield copy


@pytest.fixture(scope="module")
def outside(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Outside]:
    base = Path(tempfile.mkdtemp(prefix="casemate-outside-"))
    base.chmod(0o755)
    (base / "file").write_text("not the enclave's")
    name = f"casemate-{os.getpid()}"
    with contextlib.ExitStack() as opened:
        opened.callback(shutil.rmtree, base)
        tcp = opened.enter_context(socket.create_server(("127.0.0.1", 0)))
        for address in (f"\0{name}", str(base / "other.sock")):
            listener = opened.enter_context(socket.socket(socket.AF_UNIX))
            listener.bind(address)
            listener.listen()
        (base / "other.sock").chmod(0o777)
        # In the form without namespaces the enclave's user is the one who starts it.
        victim = opened.enter_context(neighbour("victim", os.geteuid()))
        facts = {
            "tcp_port": tcp.getsockname()[1],
            "abstract": name,
            "socket": str(base / "other.sock"),
            "file": str(base / "file"),
            **victim,
        }
        yield Outside(facts, tmp_path_factory.mktemp("pki"))


@contextlib.contextmanager
def neighbour(*arguments: object) -> Iterator[dict[str, Any]]:
    """Run a neighbour until the block ends; yields what it says."""
    command = [sys.executable, sandbox_neighbour.__file__, *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            yield json.loads(process.stdout.readline())
        finally:
            process.kill()


@pytest.fixture(scope="module")
def confined(probe_tree: Path, outside: Outside) -> Iterator[Trial]:
    """The probe with every defence; the tests that read its state share it."""
    with Trial(probe_tree, outside, ALL) as trial:
        yield trial


@pytest.fixture(scope="module")
def attempts(probe_tree: Path, outside: Outside) -> Attempts:
    """Outcomes of all attempts in each variant, each variant started once."""

    @functools.cache
    def outcomes(skip: Skip) -> dict[str, str]:
        with Trial(probe_tree, outside, skip) as trial:
            return trial.ask("attempts")

    return outcomes


# -- S1: from inside -------------------------------------------------------------------------------


def test_every_attempt_is_in_the_table() -> None:
    assert sandbox_attempts.ATTEMPTS.keys() == SUCCEEDS_WITHOUT.keys() | NEEDS_PRIVILEGE


@pytest.mark.parametrize("name", sandbox_attempts.ATTEMPTS)
def test_an_attempt_from_inside_is_refused(name: str, attempts: Attempts) -> None:
    assert attempts(ALL)[name] != DONE


@pytest.mark.parametrize("name", SUCCEEDS_WITHOUT)
def test_it_succeeds_without_its_defence(name: str, attempts: Attempts) -> None:
    result = attempts(SUCCEEDS_WITHOUT[name])[name]
    if result != DONE and name in OPTIONAL:
        pytest.skip(f"not on this kernel: {result}")
    assert result == DONE


@pytest.mark.parametrize("name", ["read_passwd", "read_file_of_another", "connect_abstract_socket"])
def test_landlock_holds_where_there_are_no_namespaces(name: str, attempts: Attempts) -> None:
    assert attempts(NO_NAMESPACES)[name] != DONE


def test_the_filter_covers_threads_that_ran_before_it(confined: Trial) -> None:
    assert confined.ask("threads") == {"early": "EPERM", "late": "EPERM"}


def test_without_tsync_an_earlier_thread_stays_free(probe_tree: Path, outside: Outside) -> None:
    with Trial(probe_tree, outside, NO_TSYNC) as trial:
        assert trial.ask("threads") == {"early": DONE, "late": "EPERM"}


def test_models_load_and_run_in_confinement_with_identical_results(confined: Trial) -> None:
    assert confined.ask("inference") == {"runs": 18, "identical": True}


def test_the_environment_is_the_enclaves_own(confined: Trial) -> None:
    environment = confined.ask("facts")["environment"]
    assert environment == {"ORT_DISABLE_TELEMETRY": "1", "OPENBLAS_NUM_THREADS": "1"}


# -- onnxruntime sends nothing home ----------------------------------------------------------------


def test_importing_and_running_onnxruntime_adds_no_thread_and_no_descriptor(
    confined: Trial,
) -> None:
    assert confined.ask("facts")["acquired"] == {"threads": 0, "descriptors": 0}


def test_with_its_telemetry_there_would_be_a_thread(probe_tree: Path, outside: Outside) -> None:
    with Trial(probe_tree, outside, ALL, telemetry=True) as trial:
        assert trial.ask("facts")["acquired"]["threads"] > 0


@pytest.mark.parametrize(
    ("telemetry", "end"),
    [(False, 0), (True, -signal.SIGSYS)],
    ids=["as the enclave does it", "with its telemetry"],
)
def test_it_makes_no_socket_or_file(
    telemetry: bool, end: int, probe_tree: Path, outside: Outside
) -> None:
    """A filter ends the process at the first attempt of any thread: none comes and goes unseen."""
    trial = Trial(probe_tree, outside, ALL, telemetry=telemetry, watch=True)
    with trial.enclave as process:
        assert process.wait(90) == end
    shutil.rmtree(trial._base)


# -- the enclave itself ----------------------------------------------------------------------------


def events_of(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.read_text().splitlines()]


@contextlib.contextmanager
def enclave(tree: Path, base: Path) -> Iterator[tuple[EnclaveProcess, Path]]:
    """The real enclave of ``tree``, and the file that takes its events."""
    with (base / "events").open("wb") as log:
        process = EnclaveProcess(tree, base / "pki", base / "run", stderr=log)
        with process:
            yield process, base / "events"


def test_the_enclave_is_confined_before_it_serves(tree: Path, short_path: Path) -> None:
    with enclave(tree, short_path) as (process, log):
        deadline = time.monotonic() + 90
        while not events_of(log):
            assert process.running()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert events_of(log) == [{"event": "STARTED", "count": landlock.version()}]
        assert landlock.version() > 0
        assert_confined(process.pid)
        with neighbour("attack", process.pid, user_of(process)) as outcomes:
            assert DONE not in outcomes.values()


def test_the_unsafe_form_says_so_and_is_confined_as_far_as_can_be(
    tree: Path, short_path: Path
) -> None:
    with (short_path / "events").open("wb") as stream:
        process = EnclaveProcess(
            tree, short_path / "pki", short_path / "run", unsafe_no_namespaces=True, stderr=stream
        )
        with process:
            deadline = time.monotonic() + 90
            while len(events_of(short_path / "events")) < 2:
                assert process.running()
                assert time.monotonic() < deadline
                time.sleep(0.02)
            assert events_of(short_path / "events") == [
                {"event": "UNSAFE_FORM"},
                {"event": "STARTED", "count": landlock.version()},
            ]
            assert_confined(process.pid)


def test_o1_what_libraries_write_to_standard_error_reaches_nobody(
    tree: Path, short_path: Path
) -> None:
    """As onnxruntime does for some models, and the C library when it gives up."""
    name = "app/casemate_enclave/assembly.py"
    talk = b"\nimport ctypes\nctypes.CDLL(None).dprintf(2, b'planted-secret\\n')\n"
    with (
        changed(tree, {name: (tree / name).read_bytes() + talk}) as copy,
        enclave(copy, short_path) as (process, log),
    ):
        deadline = time.monotonic() + 90
        while not log.read_bytes():
            assert process.running()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert events_of(log) == [{"event": "STARTED", "count": landlock.version()}]


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("landlock", b"\ndef version() -> int:\n    return 0\n"),
        ("seccomp", b"\ndef load(program: bytes) -> None:\n    raise OSError(errno.ENOSYS, '')\n"),
    ],
    ids=["landlock", "seccomp"],
)
def test_the_enclave_does_not_start_unconfined(
    module: str, absent: bytes, tree: Path, short_path: Path
) -> None:
    name = f"app/casemate_enclave/sandbox/{module}.py"
    source = (tree / name).read_bytes()
    with (
        changed(tree, {name: source + absent}) as copy,
        enclave(copy, short_path) as (process, log),
    ):
        assert process.wait(90) == 1
        assert events_of(log) == [{"event": "NOT_CONFINED"}]


# -- what the kernel says of the process -----------------------------------------------------------


def status_of(task: Path) -> dict[str, str]:
    lines = (task / "status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def user_of(process: EnclaveProcess) -> int:
    return int(status_of(Path(f"/proc/{process.pid}"))["Uid"].split()[0])


def assert_confined(pid: int) -> None:
    """No thread has a capability or a way to one, and each has the filter."""
    seen = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it ended meanwhile
            seen.append(status_of(task))
    assert str(pid) in {status["Pid"] for status in seen}
    assert len(seen) > 1
    for status in seen:
        assert {status[f"Cap{kind}"] for kind in ("Inh", "Prm", "Eff", "Bnd", "Amb")} == {"0" * 16}
        assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")


def test_every_thread_is_confined(confined: Trial) -> None:
    confined.ask("inference")
    assert_confined(confined.enclave.pid)


def test_it_dumps_no_core_and_its_key_buffer_is_locked(confined: Trial) -> None:
    assert confined.ask("facts")["locked"]
    process = Path(f"/proc/{confined.enclave.pid}")
    limits = (process / "limits").read_text()
    assert [line.split()[4:6] for line in limits.splitlines() if "core" in line] == [["0", "0"]]
    assert int(status_of(process)["VmLck"].split()[0]) >= 4
    assert (process / "mem").stat().st_uid == 0  # not dumpable: not its user's, but root's


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can see more of it")
def test_it_has_namespaces_of_its_own_and_no_inherited_descriptor(confined: Trial) -> None:
    process = Path(f"/proc/{confined.enclave.pid}")
    for name in ("mnt", "pid", "net", "ipc", "uts"):
        assert (process / "ns" / name).readlink() != Path("/proc/self/ns", name).readlink()
    targets = {int(path.name): str(path.readlink()) for path in (process / "fd").iterdir()}
    assert targets.pop(0) == targets.pop(1) == "/dev/null"
    targets.pop(2)  # standard error: events
    assert {target.split(":")[0] for target in targets.values()} <= {"socket"}
    assert not (process / "environ").read_bytes().strip(b"\0")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can see its memory map")
def test_none_of_its_memory_is_writable_and_executable(confined: Trial) -> None:
    confined.ask("inference")
    maps = Path(f"/proc/{confined.enclave.pid}/maps").read_text()
    assert "r-xp" in maps
    assert "wxp" not in maps


# -- S2: from beside -------------------------------------------------------------------------------

ATTACKS = [function.__name__ for function in sandbox_neighbour.ATTACKS]


@pytest.fixture(scope="module")
def attacks(confined: Trial) -> dict[str, str]:
    with neighbour("attack", confined.enclave.pid, user_of(confined.enclave)) as outcomes:
        return outcomes


@pytest.fixture(scope="module")
def attacks_unhardened(probe_tree: Path, outside: Outside) -> dict[str, str]:
    with (
        Trial(probe_tree, outside, NO_HARDENING) as trial,
        neighbour("attack", trial.enclave.pid, user_of(trial.enclave)) as outcomes,
    ):
        return outcomes


@pytest.mark.parametrize("name", ATTACKS)
def test_a_neighbour_of_the_same_user_sees_nothing(name: str, attacks: dict[str, str]) -> None:
    assert attacks[name] != DONE


@pytest.mark.parametrize("name", ATTACKS)
def test_it_would_see_all_of_a_dumpable_process(
    name: str, attacks_unhardened: dict[str, str]
) -> None:
    assert attacks_unhardened[name] == DONE
