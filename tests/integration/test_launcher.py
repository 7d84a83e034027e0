"""The launcher for real: a staged tree, measured and run behind namespaces, with a probe in it."""

import contextlib
import importlib.util
import itertools
import json
import os
import py_compile
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from casemate import cbor
from casemate.channel import UnixAddress, listen
from casemate.client import doctor
from casemate_devkit import cmdline, enclave_process, namespaces
from casemate_devkit.enclave_process import EnclaveProcess
from casemate_devkit.errors import DevkitError
from casemate_devkit.spawner import Plan
from casemate_devkit.staging import runtime
from tests.support.onnx_bytes import linear

pytestmark = [
    pytest.mark.integration,
    pytest.mark.process_form("casemate-sim, which starts processes, is what they try"),
]

PROBE = Path(__file__).parents[1] / "support" / "launcher_probe.py"
PRIVILEGED = enclave_process._is_privileged()
HOSTILE = {
    "LD_PRELOAD": "/tmp/evil.so",
    "PYTHONPATH": "/tmp/evil",
    "PYTHONHOME": "/tmp/evil",
    "AWS_ENDPOINT_URL": "http://evil.example",
    "SSL_CERT_FILE": "/tmp/evil.pem",
}


def link_or_copy(source: str, target: str) -> None:
    """Share unchanged files with the staged tree where the file system can."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


@pytest.fixture
def probe(tree: Path, short_path: Path) -> Path:
    """A copy of the staged tree without packages, whose application is the probe."""
    root = short_path / "tree"
    for part in tree.iterdir():
        if part.name not in {"app", "packages"}:
            shutil.copytree(part, root / part.name, symlinks=True, copy_function=link_or_copy)
    (root / "packages").mkdir()
    (root / "app").mkdir()
    shutil.copyfile(PROBE, root / "app" / "boot.py")
    (root / "app" / "marker.py").write_text("VALUE = 'source'\n")
    return root


def start(probe: Path, *, debug: bool = False, unsafe: bool = False) -> EnclaveProcess:
    base = probe.parent
    return EnclaveProcess(
        probe, base / "pki", base / "run", debug=debug, unsafe_no_namespaces=unsafe
    )


def say(run: Path, word: bytes) -> bytes:
    """Connect as soon as the probe listens, say a word of four letters, return the answer."""
    deadline = time.monotonic() + 90
    while True:
        with socket.socket(socket.AF_UNIX) as channel:
            channel.settimeout(60)
            try:
                channel.connect(str(run / "enclave.sock"))
            except OSError:
                assert time.monotonic() < deadline, "the probe does not listen"
                time.sleep(0.01)
                continue
            channel.sendall(word)
            return b"".join(iter(lambda: channel.recv(65536), b""))


def facts(run: Path) -> dict[str, Any]:
    found = json.loads(say(run, b"look"))
    assert isinstance(found, dict)
    return found


def gone(pid: int) -> bool:
    """Whether the process ended, within a minute."""
    deadline = time.monotonic() + 60
    while Path(f"/proc/{pid}").exists():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


# --- isolation


@pytest.fixture(params=["as root", "user namespace"])
def user(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The two ways in: a privileged start, and one that needs a user namespace."""
    if request.param == "as root" and not PRIVILEGED:
        pytest.skip("needs root")
    if request.param == "user namespace":
        monkeypatch.setattr(enclave_process, "_is_privileged", lambda: False)
    return str(request.param)


@pytest.fixture
def isolated(
    probe: Path, user: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[EnclaveProcess, dict[str, Any]]]:
    for name, value in HOSTILE.items():
        monkeypatch.setenv(name, value)
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as outside:
        outside.bind("\0casemate-test-outside")
        outside.listen()
        with start(probe) as enclave:
            yield enclave, facts(enclave.run_dir)


def test_isolation(isolated: tuple[EnclaveProcess, dict[str, Any]]) -> None:
    enclave, seen = isolated
    # What runs is what was measured.
    assert ["/usr/bin/python3", *seen["argv"]] == [
        part
        for part in cmdline.enclave_cmdline("process")
        if part not in {"-I", "-S", "-B", "-X", "pycache_prefix=/nonexistent"}
    ]
    line = Path(f"/proc/{enclave.pid}/cmdline").read_bytes()
    assert line == "\0".join((*cmdline.enclave_cmdline("process"), "")).encode()
    # Nothing of ours reaches it.
    assert seen["environ"] == ""
    assert Path(f"/proc/{enclave.pid}/environ").read_bytes() == b""
    assert seen["descriptors"][:2] == ["/dev/null", "/dev/null"]
    assert len(seen["descriptors"]) <= 3
    assert seen["hostname"] == "enclave"
    # It is nobody, for good.
    assert set(seen["ids"]) == {65534}
    assert all(int(value, 16) == 0 for key, value in seen["status"].items() if key != "NoNewPrivs")
    assert seen["status"]["NoNewPrivs"] == "1"
    assert not seen["become_root"].startswith("allowed")
    assert seen["chroot"] == "Operation not permitted"
    assert seen["core"] == [0, 0]
    # It has no network, and no way to the host but its two directories.
    assert seen["interfaces"] == ["lo"]
    assert not seen["tcp4"].startswith("allowed")
    assert not seen["tcp6"].startswith("allowed")
    assert seen["abstract"] == "Connection refused"
    # It sees the staged tree, itself and the processor.
    assert seen["pid"] == 1
    assert seen["processes"] == seen["devices"] == []
    assert seen["passwd"] == "No such file or directory"
    assert set(seen["root"]) == {path.name for path in enclave.tree.iterdir()}
    assert seen["processors"] == os.cpu_count()
    assert seen["writable"] == [cmdline.RUN]
    view = ["nodev", "noexec", "nosuid", "ro"]
    assert seen["mounts"] == {
        "/": ["nodev", "nosuid", "ro"],
        os.path.realpath(enclave.tree / "usr/bin/python3").removeprefix(str(enclave.tree)): [
            *("nodev", "nosuid", "ro")
        ],
        cmdline.RUN: ["nodev", "noexec", "nosuid", "rw"],
        cmdline.NSM: view,
        "/proc/cpuinfo": view,
        "/proc/meminfo": view,
        "/proc/self": view,
        "/sys/devices/system/cpu": view,
    }


def test_the_hosts_sockets_can_be_reached_whoever_makes_them_and_when(
    probe: Path, user: str
) -> None:
    run = probe.parent / "run"
    run.mkdir(mode=0o700)
    address = UnixAddress(str(run / "egress.sock"))
    with listen(address), start(probe):
        assert facts(run)["egress"] == "allowed: None"
    with start(probe), listen(address):
        assert facts(run)["egress"] == "allowed: None"


def test_the_libraries_run_inside(tree: Path, probe: Path, user: str) -> None:
    shutil.copytree(
        tree / "packages",
        probe / "packages",
        symlinks=True,
        copy_function=link_or_copy,
        dirs_exist_ok=True,
    )
    (probe / "app" / "model.onnx").write_bytes(linear())
    with start(probe) as enclave:
        # Only itself: neither telemetry nor a pool.
        assert facts(enclave.run_dir)["threads"] == 1


# --- measurement and the security module


def documented(seen: dict[str, Any]) -> cbor.Value:
    document = cbor.decode_nsm(bytes.fromhex(seen["attestation"]))["Attestation"]["document"]
    length = int.from_bytes(document[8:10], "big")
    return cbor.decode_nsm(document[10 : 10 + length])


def test_the_enclave_attests_what_was_measured(probe: Path) -> None:
    with start(probe) as enclave:
        document = documented(facts(enclave.run_dir))
        measured = enclave_process.measure(probe, "process")
        assert enclave.measurement == measured
        pcrs = document["pcrs"]
        assert (pcrs[0], pcrs[1], pcrs[2]) == (measured.pcr0, measured.pcr1, measured.pcr2)
        assert document["cabundle"][0] == enclave.pki.root_der
        assert document["module_id"] == enclave.nsm.module_id


def test_debug_zeroes_three_registers(probe: Path) -> None:
    with start(probe, debug=True) as enclave:
        pcrs = documented(facts(enclave.run_dir))["pcrs"]
    assert pcrs[0] == pcrs[1] == pcrs[2] == bytes(48)
    assert pcrs[4] != bytes(48)


def forge_bytecode(application: Path) -> None:
    """Plant bytecode beside ``marker.py`` that claims to need no check against its source."""
    cache = Path(importlib.util.cache_from_source(str(application / "marker.py")))
    cache.parent.mkdir()
    forged = application / "forged.py"
    forged.write_text("VALUE = 'forged'\n")
    mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
    py_compile.compile(str(forged), str(cache), doraise=True, invalidation_mode=mode)
    forged.unlink()


def test_planted_bytecode_and_site_hooks_are_measured_and_do_not_run(probe: Path) -> None:
    before = enclave_process.measure(probe, "process")
    forge_bytecode(probe / "app")
    (probe / "packages" / "evil.pth").write_text("import marker; marker.VALUE = 'hook'\n")
    (probe / "app" / "sitecustomize.py").write_text("import marker; marker.VALUE = 'hook'\n")
    with start(probe) as enclave:
        assert facts(enclave.run_dir)["marker"] == "source"
    after = enclave.measurement
    assert after.pcr0 != before.pcr0
    assert after.pcr1 != before.pcr1
    assert after.pcr2 != before.pcr2


def test_the_forged_bytecode_would_run_without_the_measured_option(probe: Path) -> None:
    """The control for the test above."""
    forge_bytecode(probe / "app")
    code = "import sys; sys.path[:0] = sys.argv[1:]; import marker; print(marker.VALUE)"
    ran = subprocess.run(
        [sys.executable, "-I", "-S", "-B", "-c", code, str(probe / "app")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert ran.stdout == "forged\n"


def test_another_process_cannot_ask_the_module(probe: Path) -> None:
    with start(probe) as enclave:
        facts(enclave.run_dir)
        assert enclave.nsm_dir
        path = str(enclave.nsm_dir / "nsm.sock")
        with socket.socket(socket.AF_UNIX) as channel:
            channel.settimeout(60)
            channel.connect(path)
            with contextlib.suppress(ConnectionError):
                channel.sendall(b"\0\0\0\x0a\x69GetRandom")
                assert channel.recv(1) == b""
        assert enclave.running()
    assert not Path(path).exists()


# --- life and death


def test_stopping_ends_the_enclave_and_leaves_nothing(probe: Path) -> None:
    with start(probe) as enclave:
        facts(enclave.run_dir)
        with pytest.raises(TimeoutError):
            enclave.wait(0.01)
    assert gone(enclave.pid)
    assert enclave.wait() == -signal.SIGKILL
    assert enclave.stop() == -signal.SIGKILL
    assert not (enclave.run_dir / "enclave.sock").exists()


def test_each_start_has_a_bank_of_its_own(probe: Path) -> None:
    enclaves = [start(probe) for _ in range(2)]
    for enclave in enclaves:
        enclave.nsm.handle(cbor.encode({"ExtendPCR": {"index": 16, "data": b"x"}}))
    assert enclaves[0].nsm.module_id != enclaves[1].nsm.module_id
    values = [
        enclave.nsm.handle(cbor.encode({"DescribePCR": {"index": 16}})) for enclave in enclaves
    ]
    assert values[0] == values[1]


def launcher(probe: Path, *options: str) -> subprocess.Popen[str]:
    base = probe.parent
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "casemate_devkit.launcher", "--tree", str(probe)),
            *("--pki", str(base / "pki"), "--run", str(base / "run"), *options),
        ],
        # What a killed launcher leaves behind goes with the test's directory.
        env={**os.environ, "TMPDIR": str(base)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def started(process: subprocess.Popen[str]) -> dict[str, Any]:
    assert process.stdout
    line = json.loads(process.stdout.readline())
    assert isinstance(line, dict)
    return line


def test_the_command_reports_and_stops_upon_sigterm(probe: Path) -> None:
    with launcher(probe) as process:
        line = started(process)
        measured = enclave_process.measure(probe, "process")
        assert (line["pcr0"], line["pcr1"]) == (measured.pcr0.hex(), measured.pcr1.hex())
        assert line["pcr2"] == measured.pcr2.hex()
        assert len(line["root_sha256"]) == 64
        assert facts(probe.parent / "run")["pid"] == 1
        process.terminate()
        assert process.wait(60) == 0
    assert gone(line["pid"])


def test_the_enclave_does_not_outlive_a_killed_launcher(probe: Path) -> None:
    with launcher(probe) as process:
        line = started(process)
        facts(probe.parent / "run")
        process.kill()
        assert process.wait(60) == -signal.SIGKILL
    assert gone(line["pid"])


def test_the_enclave_does_not_outlive_a_killed_spawner(probe: Path) -> None:
    with start(probe) as enclave:
        facts(enclave.run_dir)
        enclave._started().kill()
        assert gone(enclave.pid)


def test_the_command_says_when_the_enclave_ended_by_itself(probe: Path) -> None:
    with launcher(probe) as process:
        started(process)
        say(probe.parent / "run", b"exit")
        assert process.wait(60) == 3
        assert process.stderr
        said = process.stderr.read()
    assert "ended by itself, status 7" in said
    assert "last event none" in said


def test_restarting_measures_again_and_takes_a_fresh_bank(probe: Path) -> None:
    with launcher(probe, "--restart") as process:
        first = started(process)
        facts(probe.parent / "run")
        (probe / "app" / "added.py").touch()
        say(probe.parent / "run", b"exit")
        second = started(process)
        process.terminate()
        assert process.wait(60) == 0
    assert first["module_id"] != second["module_id"]
    assert first["pcr2"] != second["pcr2"]
    assert first["root_sha256"] == second["root_sha256"]


@pytest.mark.slow
def test_crashes_are_named_never_quoted_and_each_start_waits_longer(probe: Path) -> None:
    base, starts, times = probe.parent, [], []
    with launcher(probe, "--restart") as process:
        for end in ("segv", "kill", ""):
            starts.append(started(process))
            times.append(time.monotonic())
            facts(base / "run")
            if end == "segv":
                say(base / "run", b"segv")
            elif end == "kill":
                os.kill(starts[-1]["pid"], signal.SIGKILL)
        process.terminate()
        assert process.wait(60) == 0
        assert process.stderr
        said = process.stderr.read()
    assert all(gone(start["pid"]) for start in starts)
    assert len({start["module_id"] for start in starts}) == len(starts)
    assert said.count("signal SIGSEGV") == 1
    assert said.count("signal SIGKILL") == 1
    assert "last event FAILED (INTERNAL); 1 lines that were no events withheld" in said
    assert "planted-secret" not in said
    pauses = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert all(pause >= least for pause, least in zip(pauses, (1, 2), strict=True))
    # No core where the kernel would put one: the enclave's directory, the shared one, ours.
    for folder in (probe, base / "run", base, Path.cwd()):
        assert not [path for path in folder.glob("core*") if path.is_file()]


# --- refusals, and the unsafe form


def test_a_run_directory_open_to_others_is_refused(probe: Path) -> None:
    (probe.parent / "run").mkdir(mode=0o755)
    with pytest.raises(DevkitError, match="open to other users"):
        start(probe).start()


def test_no_staged_tree(short_path: Path) -> None:
    with pytest.raises(DevkitError, match="no staged tree"):
        EnclaveProcess(short_path, short_path / "pki", short_path / "run")


def test_missing_mount_points_are_named(probe: Path) -> None:
    shutil.rmtree(probe / "proc")
    with pytest.raises(DevkitError, match="proc/cpuinfo"):
        start(probe).start()


def test_a_machine_without_namespaces_is_told_what_to_do(
    probe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def impossible(tree: Path, run: Path, nsm: Path, *, user_namespace: bool, gpu: bool) -> Plan:
        assert not gpu
        walls = namespaces.Walls(
            tree=str(tree / "absent"),
            run=str(run),
            nsm=str(nsm),
            private=str(nsm.parent),
            user_namespace=user_namespace,
        )
        return Plan(executable="/usr/bin/python3", arguments=("x",), walls=walls)

    monkeypatch.setattr(enclave_process, "_plan", impossible)
    monkeypatch.setattr(doctor, "obstacles", lambda: ["user namespaces: off"])
    with pytest.raises(DevkitError) as raised:
        start(probe).start()
    assert "step 'file system': mount" in str(raised.value)
    assert "user namespaces: off" in str(raised.value)
    assert "casemate doctor" in str(raised.value)
    assert "--unsafe-no-namespaces" in str(raised.value)


def test_the_unsafe_form_is_measured_differently_and_says_so(probe: Path) -> None:
    with launcher(probe, "--unsafe-no-namespaces") as process:
        line = started(process)
        seen = facts(probe.parent / "run")
        process.terminate()
        assert process.wait(60) == 0
        assert process.stderr
        assert process.stderr.read().startswith("UNSAFE")
    assert line["form"] == seen["argv"][-1] == "unsafe-process"
    assert line["pcr0"] == enclave_process.measure(probe, "unsafe-process").pcr0.hex()
    assert line["pcr0"] != enclave_process.measure(probe, "process").pcr0.hex()
    assert seen["environ"] == ""
    assert seen["executable"] == str(probe / "usr/bin/python3")
    assert seen["marker"] == "source"
    assert documented(seen)["pcrs"][0].hex() == line["pcr0"]
    assert gone(line["pid"])


def test_the_unsafe_form_runs_the_trees_own_libraries(probe: Path) -> None:
    with start(probe, unsafe=True) as enclave:
        facts(enclave.run_dir)
        mapped = Path(f"/proc/{enclave.pid}/maps").read_text().split()
    loaded = {path for path in mapped if path.startswith("/") and ".so" in path}
    assert loaded
    assert all(path.startswith(f"{probe}/") for path in loaded)


def test_the_tree_of_this_interpreter_is_complete(tree: Path) -> None:
    assert (tree / runtime.interpreter().name).name.startswith("python3")
    assert not list(tree.rglob("__pycache__"))
    assert not list(tree.rglob("*.pth"))
    assert not list(tree.rglob("RECORD"))
    assert not any((tree / name).exists() for name in ("etc", "home", "root", "tmp", "var"))
    assert sorted(path.name for path in (tree / "packages/botocore/data").iterdir()) == [
        "_retry.json",
        "endpoints.json",
        "kms",
        "partitions.json",
        "sdk-default-configuration.json",
    ]
