"""What is inside the enclave's tree, and what reaches it from outside (THREATS.md: H12, O2)."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from casemate_devkit.enclave_process import EnclaveProcess, measure
from tests.support.attacker import eventually

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.integration


def test_o2_nothing_simulated_is_in_the_staged_tree(tree: Path) -> None:
    names = [path.relative_to(tree).as_posix().lower() for path in tree.rglob("*")]
    for word in ("devkit", "simulat", "hypothesis", "moto/", "boto3", "grpc", "casemate_host"):
        assert not [name for name in names if word in name], word
    sources = b"".join(path.read_bytes() for path in (tree / "app").rglob("*.py"))
    for name in (b"casemate_devkit", b"SimulatedNsm", b"NitroPki", b"KmsDouble"):
        assert name not in sources, name


def test_o2_nothing_in_the_tree_runs_or_loads_another_program(tree: Path) -> None:
    """No shell, no package manager, no compiler, no set-user-id file."""
    for path in tree.rglob("*"):
        mode = path.lstat().st_mode
        assert not mode & 0o6000, path
        if path.is_file() and path.parent.name in {"bin", "sbin"}:
            assert path.name.startswith("python"), path


HOSTILE = {
    "LD_PRELOAD": "/run/casemate/evil.so",
    "LD_LIBRARY_PATH": "/run/casemate",
    "PYTHONPATH": "/run/casemate",
    "PYTHONHOME": "/run/casemate",
    "PYTHONSTARTUP": "/run/casemate/evil.py",
    "PYTHONINSPECT": "1",
    "AWS_ENDPOINT_URL": "https://attacker.example",
    "AWS_ENDPOINT_URL_KMS": "https://attacker.example",
    "AWS_ACCESS_KEY_ID": "AKIAEVIL",
    "HTTPS_PROXY": "http://attacker.example:3128",
    "SSL_CERT_FILE": "/run/casemate/evil.pem",
    "SSLKEYLOGFILE": "/run/casemate/keys.log",
    "OPENSSL_CONF": "/run/casemate/openssl.cnf",
    "ORT_LOGGING_LEVEL": "0",
}


def test_h12_a_hostile_environment_and_run_directory_do_not_reach_the_enclave(
    tree: Path, short_path: Path
) -> None:
    """The launcher is started with every variable set, the files they name lie where it looks."""
    run = short_path / "run"
    run.mkdir(mode=0o700)
    for name in ("evil.py", "sitecustomize.py", "usercustomize.py", "casemate.py", "numpy.py"):
        (run / name).write_text("raise SystemExit('evil code ran')\n")
    (run / "evil.pth").write_text("import os; os.abort()\n")
    program = (
        "import sys, json; from pathlib import Path;"
        "from casemate_devkit.enclave_process import EnclaveProcess;"
        "e = EnclaveProcess(*map(Path, sys.argv[1:])).start();"
        "print(json.dumps(e.pid), flush=True); sys.stdin.read(); e.stop()"
    )
    # The launcher itself needs an interpreter that starts; the libraries that it names are absent.
    hostile = {k: v for k, v in HOSTILE.items() if k not in {"PYTHONHOME", "OPENSSL_CONF"}}
    launcher = subprocess.Popen(
        [sys.executable, "-I", "-c", program, tree, short_path / "pki", run],
        env={"PATH": os.defpath, **hostile},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    with launcher:
        assert launcher.stdout is not None
        assert launcher.stdin is not None
        pid = int(launcher.stdout.readline())
        assert eventually((run / "enclave.sock").exists)
        with open(f"/proc/{pid}/environ", "rb") as file:  # noqa: PTH123
            environment = file.read()
        with open(f"/proc/{pid}/maps", encoding="utf-8") as file:  # noqa: PTH123
            mapped = file.read()
        launcher.stdin.close()
    for name, value in HOSTILE.items():
        assert f"{name}={value}".encode() not in environment
    assert "evil" not in mapped
    assert "/run/casemate" not in mapped
    assert not (run / "keys.log").exists()


def test_h12_files_planted_in_the_tree_change_the_registers(tree: Path, short_path: Path) -> None:
    """Whatever is added where Python or the loader would look is measured."""
    before = measure(tree, "process")
    copy = short_path / "tree"
    subprocess.run(["cp", "-al", tree, copy], check=True)
    assert measure(copy, "process") == before
    for planted in (
        "packages/evil.pth",
        "packages/sitecustomize.py",
        "packages/numpy/__pycache__/__init__.cpython-311.pyc",
        "app/casemate/__pycache__/wire.cpython-311.pyc",
        "app/sitecustomize.py",
        "etc/ld.so.preload",
        "usr/lib/evil.so",
    ):
        path = copy / planted
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"evil")
        after = measure(copy, "process")
        assert after.pcr0 != before.pcr0, planted
        path.unlink()
    assert EnclaveProcess.__doc__  # the same function measures what is then run
