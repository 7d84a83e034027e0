"""enclave/TCB.md lists what is inside: nothing more, nothing less (THREATS O3)."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
TCB = (ROOT / "enclave" / "TCB.md").read_text(encoding="utf-8")


def section(title: str) -> str:
    return TCB.split(f"## {title}", 1)[1].split("\n## ", 1)[0]


def rows(text: str) -> set[str]:
    """The names in the first column of every table."""
    cells = re.findall(r"^\| (`[^|]*) \|(?! *\|?$)", text, re.MULTILINE)
    return {name for cell in cells for name in re.findall(r"`([^`]+)`", cell)}


def table(package: str) -> set[str]:
    """The rows below the heading of ``package``."""
    text = section("Our modules").split(f"| `{package}`", 1)[1]
    return rows(text.split("\n\n", 1)[0])


def modules(folder: Path) -> set[str]:
    files = {path.stem for path in folder.glob("*.py")}
    packages = {path.parent.name for path in folder.glob("*/__init__.py")}
    return (files | packages) - {"__init__"}


def test_every_locked_package_has_its_reason() -> None:
    lock = (ROOT / "requirements" / "enclave.txt").read_text(encoding="utf-8")
    locked = set(re.findall(r"^([a-z0-9-]+)==", lock, re.MULTILINE))
    assert rows(section("Third-party packages")) == locked


def test_every_module_has_its_line() -> None:
    assert table("casemate_enclave") == modules(ROOT / "enclave" / "casemate_enclave")
    assert table("casemate_kms") == modules(ROOT / "kms_client" / "casemate_kms")


def test_what_is_imported_inside_is_listed_and_the_rest_is_not_imported() -> None:
    script = (
        "import casemate_enclave.__main__, casemate_enclave.assembly, casemate_enclave.server, sys;"
        "print(*sorted({'.'.join(name.split('.')[:2]) for name in sys.modules}))"
    )
    environ = {"ORT_DISABLE_TELEMETRY": "1"}
    command = [sys.executable, "-c", script]
    done = subprocess.run(
        command, check=True, capture_output=True, text=True, env=environ, timeout=300
    )
    imported = set(done.stdout.split())
    ours = {name.split(".")[1] for name in imported if name.startswith("casemate.")}
    assert ours == table("casemate")
    assert "onnxruntime" not in imported  # workers alone have it
    for line in section("Third-party packages").splitlines():
        if "not imported" in line:
            assert re.findall(r"`([^`]+)`", line)[0] not in imported
