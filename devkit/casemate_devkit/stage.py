"""``python -m casemate_devkit.stage --output DIR``: build the staged tree (SPEC 4.1).

A build is deterministic: the same lock, sources, interpreter and system libraries give the same
manifest. It is skipped when none of them changed and the tree still measures as it did; parts that
did not change are taken over from the tree before. The stamp that remembers this lies beside the
tree.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import json
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from casemate.attestation.measurement import measure_tree
from casemate.errors import CasemateError
from casemate_devkit import cmdline, sbom
from casemate_devkit.errors import DevkitError
from casemate_devkit.staging import application, packages, runtime
from casemate_devkit.staging.files import fingerprint, link_tree, normalise

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_PACKAGES: Final = "packages"
_APPLICATION: Final = "app"
ACCELERATORS: Final = ("openvino", "cuda")


@dataclass(frozen=True, slots=True)
class Stamp:
    """What a tree was made of: digests of the inputs, and PCR0 and PCR1 of the result."""

    dependencies: str  # inputs of packages and runtime
    application: str
    pcr0: str = ""
    pcr1: str = ""


def lock_of(accelerator: str | None) -> Path:
    """The packages of the enclave: with another onnxruntime for an accelerator."""
    name = f"enclave-{accelerator}.txt" if accelerator else "enclave.txt"
    return application.checkout() / "requirements" / name


def current_inputs(accelerator: str | None = None) -> Stamp:
    """Describe this machine's inputs; registers are empty."""
    lock = lock_of(accelerator)
    rules = [Path(__file__), *sorted(Path(packages.__file__).parent.glob("*.py"))]
    dependencies = [lock.read_text(), *runtime.identity(), *(rule.read_text() for rule in rules)]
    files = [*application.sources(), *application.notes(), Path(sbom.__file__)]
    return Stamp(_hash(dependencies), _hash(fingerprint(files)))


def _hash(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def _stamped(output: Path) -> Stamp | None:
    try:
        return Stamp(**json.loads(_stamp_path(output).read_text()))
    except (OSError, TypeError, ValueError):
        return None


def _stamp_path(output: Path) -> Path:
    return output.with_name(f"{output.name}.stamp")


def _measured(tree: Path, inputs: Stamp) -> Stamp:
    registers = measure_tree(tree, cmdline.enclave_cmdline(cmdline.PROCESS))
    return Stamp(
        inputs.dependencies, inputs.application, registers.pcr0.hex(), registers.pcr1.hex()
    )


@contextlib.contextmanager
def _alone(output: Path) -> Iterator[None]:
    """Keep a second build of the same tree waiting."""
    output.parent.mkdir(parents=True, exist_ok=True)
    with output.with_name(f"{output.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def stage(output: Path, *, force: bool = False, accelerator: str | None = None) -> bool:
    """Build the tree at ``output`` unless it is current; return whether it was built.

    Raises DevkitError where it cannot be built; a tree that was there before then stays as it was.
    """
    runtime.check_platform()
    output = output.absolute()
    with _alone(output):
        inputs = current_inputs(accelerator)
        before = None if force else _intact(output)
        if before and (before.dependencies, before.application) == (
            inputs.dependencies,
            inputs.application,
        ):
            return False
        reusable = before is not None and before.dependencies == inputs.dependencies
        with tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent) as scratch:
            tree = Path(scratch) / "new"
            _build(tree, output if reusable else None, accelerator)
            stamp = _measured(tree, inputs)
            if output.exists():
                output.rename(Path(scratch) / "old")
            tree.rename(output)
        _stamp_path(output).write_text(json.dumps(asdict(stamp)))
    return True


def _intact(output: Path) -> Stamp | None:
    """The stamp of a tree whose packages and runtime still measure as stamped."""
    stamp = _stamped(output)
    if stamp is None or not output.is_dir():
        return None
    with contextlib.suppress(CasemateError):
        now = _measured(output, stamp)
        if now == stamp:
            return stamp
        if now.pcr1 == stamp.pcr1:
            return Stamp(stamp.dependencies, "changed")
    return None


def _build(tree: Path, before: Path | None, accelerator: str | None) -> None:
    tree.mkdir()
    if before is None:
        packages.install(lock_of(accelerator), tree / _PACKAGES)
        runtime.stage(tree)
    else:
        for part in sorted(before.iterdir()):
            if part.name != _APPLICATION:
                link_tree(part, tree / part.name)
    application.stage(tree / _APPLICATION)
    (tree / _APPLICATION / sbom.FILE).write_bytes(sbom.of_tree("casemate-enclave", tree))
    normalise(tree)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m casemate_devkit.stage")
    parser.add_argument(
        "--output", type=Path, required=True, help="the tree; its parent must be writable"
    )
    parser.add_argument("--force", action="store_true", help="build even if nothing changed")
    parser.add_argument(
        "--accelerator", choices=ACCELERATORS, help="with the onnxruntime that has its provider"
    )
    options = parser.parse_args(arguments)
    try:
        built = stage(options.output, force=options.force, accelerator=options.accelerator)
    except (DevkitError, CasemateError) as error:
        print(f"stage: {error}", file=sys.stderr)
        return 1
    print(f"{'staged' if built else 'unchanged:'} {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
