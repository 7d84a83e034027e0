"""Sealed models open in the order of SPEC 8.3: no key is asked for before the signature holds."""

from __future__ import annotations

import copy
import io
import pickle
import secrets
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from casemate.attestation.structures import Configuration, ServiceLimits
from casemate.errors import CasemateError, Code, KeyReleaseError
from casemate.sealed_model import ModelHeader, model_digest, seal_model
from casemate.tensors import TensorSpec
from casemate_kms.models import open_sealed_model
from tests.support.kms_endpoint import ARN, REGION
from tests.support.model_contents import MemoryFiles, read_all

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

KEY = bytes(range(32))
PUBLISHER = Ed25519PrivateKey.generate()
PUBLIC = PUBLISHER.public_key().public_bytes_raw()
CONTENTS = {"model.onnx": secrets.token_bytes(2_500_000), "weights/a.bin": b"weights"}
TOTAL = sum(map(len, CONTENTS.values()))


@dataclass
class Releaser:
    """Stands for KMS: gives ``answer`` and remembers what it was asked."""

    answer: bytes | KeyReleaseError = KEY
    asked: list[tuple[str, bytes, dict[str, str]]] = field(default_factory=list)

    def decrypt(
        self, *, key_arn: str, ciphertext_blob: bytes, context: Mapping[str, str], deadline: float
    ) -> bytes:
        assert deadline > time.monotonic()
        self.asked.append((key_arn, ciphertext_blob, dict(context)))
        if isinstance(self.answer, KeyReleaseError):
            raise self.answer
        return self.answer


@pytest.fixture(scope="module")
def sealed(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return seal(tmp_path_factory.mktemp("model"))


def seal(folder: Path) -> bytes:
    files = {}
    for index, (path, content) in enumerate(CONTENTS.items()):
        files[path] = folder / str(index)
        files[path].write_bytes(content)
    output = io.BytesIO()
    spec = TensorSpec("x", "FP32", (0, 4))
    seal_model(
        output,
        files=files,
        data_key=KEY,
        wrapped_key=b"wrapped",
        kms_key=ARN,
        publisher=PUBLISHER,
        name="wdbc",
        version=3,
        inputs=[spec],
        outputs=[spec],
        answer_bucket=0,
        callers="any",
    )
    return output.getvalue()


def configuration(
    publishers: tuple[bytes, ...] = (PUBLIC,), minimum: int = 1, model_bytes: int = TOTAL
) -> Configuration:
    return Configuration(
        audience="clinic.example",
        publishers=publishers,
        minimum_versions={f"{PUBLIC.hex()}/wdbc": minimum},
        kms=None,
        limits=ServiceLimits(10, 1, model_bytes, 1024),
    )


def cut(data: bytes, size: int) -> Iterable[bytes]:
    return (data[at : at + size] for at in range(0, len(data), size))


def refusal(data: bytes, kms: Releaser, settings: Configuration | None = None) -> CasemateError:
    with pytest.raises(CasemateError) as caught:
        open_sealed_model(
            cut(data, 65536),
            configuration=settings or configuration(),
            kms=kms,
            deadline=time.monotonic() + 60,
        )
    return caught.value


@pytest.mark.parametrize("size", [997, 1 << 20, 1 << 30])
def test_a_model_opens_in_pieces_of_any_size(sealed: bytes, size: int) -> None:
    kms = Releaser()
    opened = open_sealed_model(
        cut(sealed, size), configuration=configuration(), kms=kms, deadline=time.monotonic() + 60
    )
    assert read_all(opened.contents) == CONTENTS
    assert list(opened.contents.lengths) == list(CONTENTS)
    assert isinstance(opened.header, ModelHeader)
    assert opened.digest == model_digest(opened.header.entries)
    context = {
        "casemate:v": "1",
        "casemate:purpose": "model",
        "casemate:scope": f"{PUBLIC.hex()}/wdbc",
    }
    assert kms.asked == [(ARN, b"wrapped", context)]


def test_no_key_is_asked_for_before_the_publisher_vouched(sealed: bytes) -> None:
    other = Ed25519PrivateKey.generate().public_key().public_bytes_raw()
    flipped = bytearray(sealed)
    flipped[12 + 40] ^= 1  # within the header: its signature no longer fits
    small = configuration(model_bytes=TOTAL - 1)
    refusals: list[tuple[bytes, Configuration, set[Code]]] = [
        (b"junk" * 10, configuration(), {Code.MODEL_MALFORMED}),
        (sealed[:100], configuration(), {Code.MODEL_MALFORMED}),
        (b"", configuration(), {Code.MODEL_MALFORMED}),
        (sealed, configuration(publishers=(other,)), {Code.MODEL_PUBLISHER_UNKNOWN}),
        (bytes(flipped), configuration(), {Code.MODEL_SIGNATURE_INVALID, Code.MODEL_MALFORMED}),
        (sealed, configuration(minimum=4), {Code.MODEL_VERSION_REVOKED}),
        (sealed, small, {Code.TOO_LARGE}),
    ]
    for data, settings, codes in refusals:
        kms = Releaser()
        assert refusal(data, kms, settings).code in codes
        assert kms.asked == []


def test_a_wrong_key_opens_nothing(sealed: bytes) -> None:
    assert refusal(sealed, Releaser(bytes(32))).code is Code.MODEL_OPEN_FAILED


@pytest.mark.parametrize("change", ["truncated", "extended", "flipped"])
def test_nothing_is_released_before_the_end(sealed: bytes, change: str) -> None:
    data = {
        "truncated": sealed[:-1],
        "extended": sealed + b"\0",
        "flipped": sealed[:-1] + bytes([sealed[-1] ^ 1]),
    }[change]
    assert refusal(data, Releaser()).code is Code.MODEL_OPEN_FAILED


@pytest.mark.parametrize(
    "code", [Code.KEY_RELEASE_DENIED, Code.KEY_RELEASE_UNAVAILABLE, Code.KEY_RELEASE_INVALID]
)
def test_what_kms_says_reaches_the_host(sealed: bytes, code: Code) -> None:
    assert refusal(sealed, Releaser(KeyReleaseError(code, "no"))).code is code


def test_memory_is_taken_while_the_key_is_asked_for(sealed: bytes) -> None:
    files = MemoryFiles()

    class Waiting(Releaser):
        """Answers once there is memory for the contents."""

        def decrypt(self, *, deadline: float, **asked: Any) -> bytes:  # noqa: ANN401 - passed on
            while not any(taken >= TOTAL for taken in files.bytes()):
                assert time.monotonic() < deadline
                time.sleep(0.01)
            return super().decrypt(deadline=deadline, **asked)

    opened = open_sealed_model(
        [sealed], configuration=configuration(), kms=Waiting(), deadline=time.monotonic() + 90
    )
    assert read_all(opened.contents) == CONTENTS
    assert len(files) == 1


def test_without_a_key_no_memory_stays_taken(sealed: bytes) -> None:
    files = MemoryFiles()
    error = refusal(sealed, Releaser(KeyReleaseError(Code.KEY_RELEASE_DENIED, "no")))
    assert len(files) == 0, error  # though the error holds its frames
    assert not any(thread.name == "memory" for thread in threading.enumerate())


def test_a_key_of_another_region_is_the_models_fault(sealed: bytes) -> None:
    assert REGION in ARN
    error = refusal(sealed, Releaser(KeyReleaseError(Code.MALFORMED, "elsewhere")))
    assert error.code is Code.MODEL_MALFORMED


def test_an_opened_model_shows_nothing(sealed: bytes) -> None:
    opened = open_sealed_model(
        [sealed], configuration=configuration(), kms=Releaser(), deadline=time.monotonic() + 60
    )
    assert "weights" not in repr(opened)
    for leak in (pickle.dumps, copy.copy):
        with pytest.raises(TypeError):
            leak(opened)
