"""What it costs that a model is sealed, when it is loaded: opened and verified, then made runnable.

Both from a file: plain bytes handed to the enclave's runtime, and the sealed file opened as it
arrives - signature, chunks, digests - and then the same. Run by `make bench`:
`python -m bench.model_load [--json]`.
"""

from __future__ import annotations

import os
import secrets
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # before anything imports onnxruntime

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from bench.peers.models import MODELS, write_models
from bench.rounds import measure, ratio, report
from casemate import limits
from casemate.attestation import Configuration, KmsConfiguration, ServiceLimits
from casemate.sealed_model import seal_model
from casemate_enclave.runtime import OnnxRuntime
from casemate_kms.models import open_sealed_model

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from casemate.sealed_model import ModelHeader

ROUNDS: Final = 15
TARGET: Final = 1.3
NAME: Final = "mlp"  # 24 MiB of weights
KMS_KEY: Final = "arn:aws:kms:eu-central-1:111122223333:key/00000000-0000-4000-8000-000000000001"


class _Kms:
    """Releases one key at once: the way to KMS is no cost of the seal's."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def decrypt(
        self, *, key_arn: str, ciphertext_blob: bytes, context: Mapping[str, str], deadline: float
    ) -> bytes:
        """Return the key, whoever asks."""
        del key_arn, ciphertext_blob, context, deadline
        return self._key


class Loads:
    """One model, plain and sealed, and what loads each."""

    def __init__(self, folder: Path) -> None:
        write_models(folder)
        self._plain, self._sealed = folder / f"{NAME}.onnx", folder / f"{NAME}.sealed"
        key, publisher = secrets.token_bytes(32), Ed25519PrivateKey.generate()
        facts = MODELS[NAME]
        with self._sealed.open("wb") as stream:
            self._header: ModelHeader = seal_model(
                stream,
                files={f"{NAME}.onnx": self._plain},
                data_key=key,
                wrapped_key=b"wrapped",
                kms_key=KMS_KEY,
                publisher=publisher,
                name=NAME,
                version=1,
                inputs=facts.input_specs,
                outputs=facts.output_specs,
                answer_bucket=1024,
                callers="any",
            )
        self._kms = _Kms(key)
        self._configuration = Configuration(
            audience="bench",
            publishers=(publisher.public_key().public_bytes_raw(),),
            minimum_versions={},
            kms=KmsConfiguration("aws", ("eu-central-1",), (b"root",)),
            limits=ServiceLimits(1, 1, 64 * limits.MIB, 1),
        )
        self._runtime = OnnxRuntime(["CPUExecutionProvider"], run_bytes=limits.GIB, threads=1)

    def plain(self) -> None:
        """Read the file and make it runnable."""
        self._runtime.load({f"{NAME}.onnx": self._plain.read_bytes()}, self._header)

    def sealed(self) -> None:
        """Open the sealed file piece by piece and make it runnable."""
        opened = open_sealed_model(
            self._pieces(),
            configuration=self._configuration,
            kms=self._kms,
            deadline=time.monotonic() + 60,
        )
        self._runtime.load(opened.files, opened.header)

    def _pieces(self) -> Iterator[bytes]:
        with self._sealed.open("rb") as file:
            while piece := file.read(limits.CHUNK):
                yield piece


def main() -> int:
    """Measure, print, and return 1 if the target is missed."""
    with tempfile.TemporaryDirectory(prefix="cm-") as folder:
        loads = Loads(Path(folder))
        times = measure({"plain": loads.plain, "sealed": loads.sealed}, ROUNDS)
    return report("model load", times, [ratio(times, "sealed", "plain", TARGET)])


if __name__ == "__main__":
    sys.exit(main())
