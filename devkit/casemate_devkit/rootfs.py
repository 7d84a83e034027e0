"""``python -m casemate_devkit.rootfs``: the file system of an image that is no enclave.

Interpreter, shared libraries, hash-locked packages and wheels of this repository, and nothing else:
no shell, no package manager, no compiler. Unlike the enclave's staged tree it is not measured.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from casemate_devkit import sbom
from casemate_devkit.errors import DevkitError
from casemate_devkit.staging import packages, runtime
from casemate_devkit.staging.files import normalise, prune

if TYPE_CHECKING:
    from collections.abc import Sequence

PACKAGES: Final = "packages"
SBOM: Final = f"usr/share/doc/casemate/{sbom.FILE}"


def build(output: Path, lock: Path, wheels: Sequence[Path]) -> None:
    """Build the file system in the new folder ``output``; raises DevkitError."""
    runtime.check_platform()
    output.mkdir(parents=True)
    packages.install(lock, output / PACKAGES, keep=packages.belongs_outside)
    _install(wheels, output / PACKAGES)
    prune(output / PACKAGES, packages.belongs_outside)  # of our wheels, pip notes where they lay
    runtime.stage(output)
    for folder in ("run", "dev"):  # mount points of enclaves
        shutil.rmtree(output / folder)
    _compile(output)
    bill = output / SBOM
    bill.parent.mkdir(parents=True)
    bill.write_bytes(sbom.of_tree(f"casemate-{output.name}", output))
    normalise(output)


def _compile(output: Path) -> None:
    """Write bytecode that names no time and is never checked: the files do not change."""
    command = [sys.executable, "-m", "compileall", "-q", "-j", "0"]
    command += ["--invalidation-mode", "unchecked-hash", "-s", str(output), "-p", "/"]
    ran = subprocess.run([*command, str(output)], capture_output=True, text=True, check=False)
    if ran.returncode != 0:
        raise DevkitError(f"cannot compile:\n{ran.stdout.strip()[-2000:]}")


def _install(wheels: Sequence[Path], target: Path) -> None:
    command = [
        *(sys.executable, "-m", "pip", "install", "--quiet", "--no-input", "--no-index"),
        *("--disable-pip-version-check", "--no-warn-script-location", "--no-compile", "--no-deps"),
        *("--target", str(target), *map(str, wheels)),
    ]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    if ran.returncode != 0:
        raise DevkitError(f"pip could not install our wheels:\n{ran.stderr.strip()}")
    shutil.rmtree(target / "bin", ignore_errors=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m casemate_devkit.rootfs")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--lock", type=Path, required=True)
    parser.add_argument("wheels", type=Path, nargs="+")
    options = parser.parse_args(arguments)
    try:
        build(options.output, options.lock, options.wheels)
    except (DevkitError, OSError) as error:
        print(f"rootfs: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
