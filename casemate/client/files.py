"""What the command line reads and writes: keys, tensors, answers."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import numpy as np
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from casemate.errors import CasemateError, Code

if TYPE_CHECKING:
    from pathlib import Path

    from casemate.client.client import Inference

_PUBLIC_KEY_BYTES = 32
# All that numpy and json raise on files that are not what they seem to be.
_UNREADABLE = (
    *(OSError, EOFError, ValueError, TypeError, KeyError),
    *(OverflowError, RecursionError, MemoryError),
)


def write_private_key(path: Path, key: Ed25519PrivateKey) -> None:
    """Write ``key`` as PKCS#8 PEM, readable by its owner only; never overwrites."""
    pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    write_private(path, pem)


def write_private(path: Path, content: bytes) -> None:
    """Write a new file that its owner alone can read; never overwrites."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as error:
        raise CasemateError(Code.INVALID_ARGUMENT, f"{path}: {error.strerror}") from None
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(content)


def read_private_key(path: Path) -> Ed25519PrivateKey:
    """Read an Ed25519 private key (PKCS#8 PEM, unencrypted)."""
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm):
        raise CasemateError(
            Code.INVALID_ARGUMENT, f"{path}: not a readable Ed25519 private key (PEM)"
        ) from None
    if not isinstance(key, Ed25519PrivateKey):
        raise CasemateError(Code.INVALID_ARGUMENT, f"{path}: the key is not Ed25519")
    return key


def parse_public_key(text: str) -> bytes:
    """Parse 64 hex digits into the 32 bytes of an Ed25519 public key."""
    try:
        key = bytes.fromhex(text)
    except ValueError:
        key = b""
    if len(key) != _PUBLIC_KEY_BYTES:
        raise CasemateError(Code.INVALID_ARGUMENT, f"not a public key (64 hex digits): {text!r}")
    return key


def read_tensor(path: Path) -> np.ndarray:
    """Read a tensor from ``.npy``, ``.json`` or ``.csv`` (numbers as float32, a header is skipped).

    A JSON file holds ``{"datatype": "float32", "data": [[...]]}``, datatype being numpy's name.
    """
    tensor: np.ndarray | None
    try:
        match path.suffix.lower():
            case ".npy":
                tensor = _read_npy(path)
            case ".csv":
                tensor = _read_csv(path)
            case ".json":
                document = json.loads(path.read_text())
                tensor = np.array(document["data"], dtype=np.dtype(document["datatype"]))
            case _:
                tensor = None
    except _UNREADABLE as error:
        raise CasemateError(Code.INVALID_ARGUMENT, f"{path}: cannot be read: {error}") from None
    if tensor is None:
        raise CasemateError(Code.INVALID_ARGUMENT, f"{path}: known formats: .npy, .csv, .json")
    return np.ascontiguousarray(tensor)


def _read_npy(path: Path) -> np.ndarray:
    """Unlike ``np.load``, take one array and no archive of several."""
    with path.open("rb") as stream:
        tensor: np.ndarray = np.lib.format.read_array(stream, allow_pickle=False)
    return tensor


def _read_csv(path: Path) -> np.ndarray:
    with path.open() as stream:
        first = stream.readline()
    try:
        [float(cell) for cell in first.split(",")]
        header = 0
    except ValueError:
        header = 1
    return np.loadtxt(path, delimiter=",", skiprows=header, dtype=np.float32, ndmin=2)


def answer_as_json(result: Inference) -> dict[str, Any]:
    """Return an answer as plain JSON values."""
    return {
        "model": result.model,
        "version": result.version,
        "digest": result.digest.hex(),
        "outputs": {
            name: {
                "datatype": str(tensor.dtype),
                "shape": list(tensor.shape),
                "data": _plain(tensor),
            }
            for name, tensor in result.outputs.items()
        },
    }


def _plain(tensor: np.ndarray) -> Any:  # noqa: ANN401 - nested lists of JSON scalars
    values = tensor.tolist()
    if tensor.dtype != object:
        return values
    return np.vectorize(lambda item: item.decode(errors="replace"), otypes=[object])(
        tensor
    ).tolist()
