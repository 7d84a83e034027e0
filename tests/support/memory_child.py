"""Seals, opens or serves a model in a process of its own and says how much memory that took."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from casemate.attestation import Configuration, KmsConfiguration, ServiceLimits
from casemate.client.seal import seal_onnx
from casemate.sealed_model import ModelContents
from casemate_kms.models import open_sealed_model
from tests.support import onnx_bytes as onnx
from tests.support import workers

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from casemate_kms.models import OpenedModel

KEY = b"\x02" * 32
ARN = "arn:aws:kms:eu-central-1:111122223333:key/01234567-89ab-cdef-0123-456789abcdef"
PUBLISHER = Ed25519PrivateKey.from_private_bytes(b"\x01" * 32)


class Kms:
    """Both sides of a KMS that knows one key."""

    def generate_data_key(self, **asked: str) -> dict[str, str | bytes]:
        return {"KeyId": asked["KeyId"], "Plaintext": KEY, "CiphertextBlob": b"wrapped"}

    def decrypt(
        self, *, key_arn: str, ciphertext_blob: bytes, context: Mapping[str, str], deadline: float
    ) -> bytes:
        assert (key_arn, ciphertext_blob, deadline > 0) == (ARN, b"wrapped", True)
        assert context["casemate:purpose"] == "model"
        return KEY


def peak(process: int | str = "self") -> int:
    """The most that was ever resident, in bytes."""
    status = Path(f"/proc/{process}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def seal(model: Path, sealed: Path) -> dict[str, int]:
    done: list[int] = []
    seal_onnx(
        model,
        sealed,
        name="large",
        version=1,
        publisher=PUBLISHER,
        kms_key=ARN,
        callers="any",
        kms=Kms(),
        progress=done.append,
    )
    return {"reported": sum(done), "steps": len(done)}


def pieces(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            yield piece


def opened(_model: Path, sealed: Path) -> dict[str, int]:
    model_ = _open(sealed)
    held = os.fstat(model_.contents.descriptor).st_blocks * 512
    return {"opened": sum(model_.contents.lengths.values()), "file": held}


def served(_model: Path, sealed: Path) -> dict[str, int]:
    """What the process with the contents and the worker that runs them have together."""
    runtime = workers.runtime()
    tiny = {"x": ("FP32", (0, 3))}, {"y": ("FP32", (0, 2))}
    first = runtime.load(ModelContents.of({"m": onnx.linear()}), workers.header(*tiny))
    [empty] = workers.processes()
    base, base_peak = workers.private_bytes(empty), peak(empty)
    opened = _open(sealed)
    loaded = runtime.load(opened.contents, opened.header)
    [worker] = workers.processes() - {empty}
    file = os.fstat(opened.contents.descriptor).st_blocks * 512
    assert loaded.ready
    assert first.ready
    return {
        "file": file,
        "worker": workers.private_bytes(worker) - base,
        # Contents that it maps count for it, too.
        "worker_peak": peak(worker) - base_peak,
    }


def _open(sealed: Path) -> OpenedModel:
    configuration = Configuration(
        audience="memory",
        publishers=(PUBLISHER.public_key().public_bytes_raw(),),
        minimum_versions={},
        kms=KmsConfiguration("aws", ("eu-central-1",), (b"root",)),
        limits=ServiceLimits(1, 1, sealed.stat().st_size, 1),
    )
    return open_sealed_model(
        pieces(sealed), configuration=configuration, kms=Kms(), deadline=time.monotonic() + 600
    )


if __name__ == "__main__":
    work = {"seal": seal, "open": opened, "serve": served}[sys.argv[1]]
    before = peak()
    facts = work(Path(sys.argv[2]), Path(sys.argv[3]))
    sys.stdout.write(json.dumps({**facts, "grown": peak() - before}))
