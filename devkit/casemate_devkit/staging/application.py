"""The application part: Casemate's own modules that run inside, and no others."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Final

from casemate_devkit.errors import DevkitError
from casemate_devkit.staging.files import copy_file

PACKAGES: Final = ("casemate", "casemate_enclave", "casemate_kms")

# Modules and packages that stay out, with what they are for. A test checks both ways: what is
# staged is imported by the enclave, and what the enclave imports is staged.
LEFT_OUT: Final = {
    "casemate/attestation/archive": "judges evidence that was kept",
    "casemate/attestation/cmdline": "for those who start or measure an enclave",
    "casemate/attestation/conformance": "runs test vectors through the verifier",
    "casemate/attestation/eif": "measures enclave images",
    "casemate/attestation/eif_signature": "reads their signatures",
    "casemate/attestation/measured": "judges documents without a bundle",
    "casemate/attestation/tpm_policy": "what is accepted of NitroTPM documents",
    "casemate/client": "what data owners run",
    "casemate/envelope/message_sealing": "seals a client's message in its place",
    "casemate/envelope/sealing": "the client's side of the envelope",
    "casemate/envelope/streaming": "the client's side of a stream",
    "casemate/framed": "connections between client and host",
    "casemate/kms_policy": "writes key policies, for those who own the keys",
    "casemate/kms_policy_check": "checks them",
    "casemate/kms_policy_lint": "names their weaknesses",
    "casemate/onnx": "reads a model's signature for the publisher who seals it",
    "casemate/receipts": "judges receipts, for those who hold them",
    "casemate/releases": "reads and writes release logs",
    "casemate/termination": "how a host, or a double of KMS, is told to end",
    "casemate/v1/administration_pb2": "the host's administration service",
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


def init_module() -> Path:
    """What runs before it where the enclave is a machine of its own (SPEC 4.4)."""
    return boot_module().with_name("init.py")


def notes() -> list[Path]:
    """What is staged beside the code, to be read and measured: the list of all that runs inside."""
    return [boot_module().with_name("TCB.md")]


def sources() -> list[Path]:
    """Every file of the application part, for seeing whether one changed."""
    found = [source(package).parent / path for package in PACKAGES for path in _modules(package)]
    return [boot_module(), init_module(), *found]


def _modules(package: str) -> list[Path]:
    """The staged files of a package, relative to the folder that holds it."""
    parent = source(package).parent
    names = (path.relative_to(parent) for path in source(package).rglob("*.py"))
    return sorted(name for name in names if belongs(name))


def stage(folder: Path) -> None:
    """Build the application part in ``folder``."""
    for package in PACKAGES:
        for path in _modules(package):
            copy_file(source(package).parent / path, folder / path)
    for path in (boot_module(), init_module(), *notes()):
        copy_file(path, folder / path.name)


def belongs(path: Path) -> bool:
    """Whether a module is staged; ``path`` begins with its package's name."""
    if path.name.endswith("_grpc.py"):
        return False
    return not any(path.with_suffix("").is_relative_to(left) for left in LEFT_OUT)
