"""The application part: Casemate's own modules that run inside, and no others."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Final

from casemate_devkit.errors import DevkitError
from casemate_devkit.staging.files import copy_file, copy_tree

PACKAGES: Final = ("casemate", "casemate_enclave", "casemate_kms")

# Modules of `casemate` that stay out, with what they are for. A test checks both ways: what is staged is
# imported by the enclave, and what the enclave imports is staged.
LEFT_OUT: Final = {
    "client": "what data owners run",
}


def source(package: str) -> Path:
    """The folder of an importable package; raises DevkitError if it is not installed as source."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise DevkitError(f"{package} is not installed: make venv")
    return Path(spec.origin).parent


def checkout() -> Path:
    """The root of the repository that this package runs from; raises DevkitError outside of one."""
    root = source("casemate").parent
    if not (root / "requirements" / "enclave.txt").is_file():
        raise DevkitError("staging needs a checkout of the repository, with its packages editable")
    return root


def boot_module() -> Path:
    """The first code that runs in the enclave."""
    return source("casemate_enclave").parent / "boot.py"


def sources() -> list[Path]:
    """Every file of the application part, for seeing whether one changed."""
    found = [boot_module()]
    for package in PACKAGES:
        folder = source(package)
        found += [path for path in folder.rglob("*.py") if belongs(path.relative_to(folder.parent))]
    return sorted(found)


def stage(folder: Path) -> None:
    """Build the application part in ``folder``."""
    for package in PACKAGES:
        parent = source(package).parent
        copy_tree(
            source(package), folder / package, lambda path, name=package: belongs(name / path)
        )
        del parent
    copy_file(boot_module(), folder / "boot.py")


def belongs(path: Path) -> bool:
    """Whether a file or folder of ours is staged; ``path`` begins with the package's name."""
    name = path.name
    if name == "__pycache__" or name.endswith("_grpc.py"):
        return False
    if path.suffix not in {"", ".py"}:
        return False
    inner = path.relative_to("casemate").with_suffix("") if path.parts[0] == "casemate" else None
    return inner is None or not any(
        inner.as_posix() == left or inner.is_relative_to(left) for left in LEFT_OUT
    )
