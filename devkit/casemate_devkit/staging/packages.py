"""The packages part: the enclave's hash-locked dependencies, less what never runs there."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING, Final

from casemate_devkit.errors import DevkitError
from casemate_devkit.staging.files import prune

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

# What pip notes about the installation itself: it differs between machines and says nothing about
# the code.
_NOTES: Final = frozenset({"RECORD", "INSTALLER", "REQUESTED", "direct_url.json"})
# Tests, build inputs and type information.
_FOLDERS: Final = frozenset({"__pycache__", "bin", "include", "test", "tests"})
_SUFFIXES: Final = (".a", ".h", ".hpp", ".pxd", ".pyc", ".pyi", ".pyx")

# Parts of packages that nothing in the enclave imports, by their path.
_LEFT_OUT: Final = {
    "botocore/cacert.pem": "TLS trusts the configuration's roots and no others (SPEC 3.2)",
    "numpy/distutils": "builds packages",
    "numpy/f2py": "builds packages",
    "numpy/random/_examples": "examples",
    "onnxruntime/capi/libonnxruntime_providers_tensorrt.so": "its own libraries are in no lock",
    "onnxruntime/capi/libopenvino.so": "the same file as libopenvino.so.2541",
    "onnxruntime/capi/libopenvino.so.2025.4.1": "the same",
    "onnxruntime/capi/libopenvino_auto_plugin.so": "chooses between devices",
    "onnxruntime/capi/libopenvino_c.so": "another interface to the same library",
    "onnxruntime/capi/libopenvino_c.so.2025.4.1": "the same",
    "onnxruntime/capi/libopenvino_c.so.2541": "the same",
    "onnxruntime/capi/libopenvino_hetero_plugin.so": "splits a model between devices",
    "onnxruntime/capi/libopenvino_intel_gpu_plugin.so": "a device that no enclave has",
    "onnxruntime/capi/libopenvino_intel_npu_plugin.so": "a device that no enclave has",
    "onnxruntime/capi/libopenvino_onnx_frontend.so": "the same file as its .2541",
    "onnxruntime/capi/libopenvino_onnx_frontend.so.2025.4.1": "the same",
    "onnxruntime/capi/libtbb.so": "the same file as libtbb.so.12",
    "onnxruntime/backend": "another interface to the same runtime",
    "onnxruntime/datasets": "example models",
    "onnxruntime/quantization": "changes models",
    "onnxruntime/tools": "changes models",
    "onnxruntime/transformers": "changes models",
}

# botocore describes some 400 services; the enclave calls one.
_BOTOCORE_DATA: Final = "botocore/data/"
_BOTOCORE_KEPT: Final = (
    *("_retry.json", "endpoints.json", "kms/", "partitions.json", "sdk-default-configuration.json"),
)


def install(lock: Path, target: Path, keep: Callable[[Path], bool] | None = None) -> None:
    """Install exactly what ``lock`` pins, from wheels, into ``target``; raises DevkitError.

    ``keep`` is asked for each file, by its path in ``target``; ``belongs`` by default.
    """
    command = [
        *(sys.executable, "-m", "pip", "install", "--quiet", "--no-input"),
        *("--disable-pip-version-check", "--no-warn-script-location", "--no-compile", "--no-deps"),
        *("--require-hashes", "--only-binary", ":all:"),
        *("--target", str(target), "--requirement", str(lock)),
    ]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    if ran.returncode != 0:
        raise DevkitError(f"pip could not install {lock.name}:\n{ran.stderr.strip()}")
    prune(target, keep or belongs)


def belongs(path: Path) -> bool:
    """Whether a file of an installed package is staged; ``path`` is relative to ``packages``."""
    if not belongs_outside(path):
        return False
    text = path.as_posix()
    if text.startswith(_BOTOCORE_DATA):
        return text.removeprefix(_BOTOCORE_DATA).startswith(_BOTOCORE_KEPT)
    return not any(text == left or text.startswith(f"{left}/") for left in _LEFT_OUT)


def belongs_outside(path: Path) -> bool:
    """Whether a file is kept where no enclave is.

    All but tests, build inputs, type information, and notes about the installation.
    """
    if path.name in _NOTES and path.parent.name.endswith(".dist-info"):
        return False
    return not (_FOLDERS.intersection(path.parts) or path.name.endswith(_SUFFIXES))
