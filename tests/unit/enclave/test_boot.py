"""enclave/boot.py in a process of its own: what it refuses, and what it leaves (THREATS H12)."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

BOOT = Path(__file__).parents[3] / "enclave" / "boot.py"
ISOLATED = ("-I", "-S", "-X", "pycache_prefix=/nonexistent")
MAIN = """
import json, os, sys
def main():
    import only_package
    origin = only_package.__file__
    print(json.dumps({"path": sys.path, "environ": dict(os.environ), "package": origin}))
    return 0
"""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A staged tree whose enclave prints what it sees."""
    package = tmp_path / "app" / "casemate_enclave"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text(MAIN)
    (tmp_path / "packages").mkdir()
    (tmp_path / "packages" / "only_package.py").touch()
    shutil.copy(BOOT, tmp_path / "app" / "boot.py")
    return tmp_path


def boot(
    tree: Path, *flags: str, environ: dict[str, str] | None = None, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *flags, str(tree / "app" / "boot.py")]
    return subprocess.run(
        command,
        check=False,
        capture_output=True,
        text=True,
        env=environ or {},
        cwd=cwd or tree,
        timeout=300,
    )


@pytest.mark.parametrize("missing", ["-I", "-S", "-X"])
def test_runs_only_in_an_interpreter_that_ignores_what_is_not_measured(
    tree: Path, missing: str
) -> None:
    flags = ISOLATED[:2] if missing == "-X" else [flag for flag in ISOLATED if flag != missing]
    done = boot(tree, *flags)
    assert (done.returncode, done.stdout) == (2, "")
    assert json.loads(done.stderr)["event"] == "BOOT_REFUSED"


def test_a_bytecode_cache_that_exists_is_refused(tree: Path) -> None:
    done = boot(tree, "-I", "-S", "-X", f"pycache_prefix={tree}")
    assert done.returncode == 2


def test_imports_come_from_the_interpreter_and_the_tree_only(tree: Path) -> None:
    elsewhere = tree / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "only_package.py").write_text("raise SystemExit('imported from the host')")
    done = boot(tree, *ISOLATED, environ={"PYTHONPATH": str(elsewhere)}, cwd=elsewhere)
    seen = json.loads(done.stdout)
    *library, packages, app = seen["path"]
    assert (packages, app) == (f"{tree}/packages", f"{tree}/app")
    assert library
    assert all(path.startswith(sys.base_prefix) for path in library)
    assert not any("site-packages" in path for path in library)
    assert seen["package"] == f"{tree}/packages/only_package.py"


def test_no_variable_of_the_host_is_left(tree: Path) -> None:
    hostile = {
        "OPENSSL_CONF": "/tmp/evil.cnf",
        "SSLKEYLOGFILE": "/tmp/keys",
        "ORT_DISABLE_TELEMETRY": "0",
        "AWS_ENDPOINT_URL": "https://evil.example",
    }
    seen = json.loads(boot(tree, *ISOLATED, environ=hostile).stdout)
    assert seen["environ"] == {"ORT_DISABLE_TELEMETRY": "1", "OPENBLAS_NUM_THREADS": "1"}


def test_a_forged_bytecode_file_is_not_run(tree: Path) -> None:
    source = tree / "packages" / "only_package.py"
    forged = tree / "forged.py"
    forged.write_text("raise SystemExit('forged')")
    script = (
        "import importlib.util, py_compile, sys;"
        "py_compile.compile(sys.argv[1], importlib.util.cache_from_source(sys.argv[2]),"
        "invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)"
    )
    subprocess.run([sys.executable, "-I", "-c", script, str(forged), str(source)], check=True)
    assert list((tree / "packages" / "__pycache__").iterdir())
    assert boot(tree, *ISOLATED).returncode == 0
