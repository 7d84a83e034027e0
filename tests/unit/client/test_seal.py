"""Sealing a model again: under another key it stays the model that clients pin."""

from __future__ import annotations

import secrets
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from casemate.client.cli import progress as bar
from casemate.client.cli.loops import loop_of
from casemate.client.seal import seal_onnx
from casemate.errors import CasemateError, Code
from casemate.sealed_model import LoopState, ModelHeader, ModelLoop, ModelReader
from tests.support import onnx_bytes
from tests.support.model_contents import read_all

ONNX = Path(__file__).resolve().parents[3] / "examples/wdbc/wdbc.onnx"
OLD = "arn:aws:kms:eu-central-1:111122223333:key/01234567-89ab-cdef-0123-456789abcdef"
NEW = OLD.replace("eu-central-1", "eu-west-1").replace("0123-", "3210-")
PUBLISHER = Ed25519PrivateKey.from_private_bytes(b"\x01" * 32)


class Kms:
    """Makes data keys, each a new one."""

    def __init__(self) -> None:
        self.keys: dict[bytes, bytes] = {}

    def generate_data_key(self, **asked: str) -> dict[str, str | bytes]:
        blob, key = secrets.token_bytes(64), secrets.token_bytes(32)
        self.keys[blob] = key
        return {"KeyId": asked["KeyId"], "Plaintext": key, "CiphertextBlob": blob}


def seal(kms: Kms, output: Path, kms_key: str, done: list[int]) -> ModelHeader:
    return seal_onnx(
        ONNX,
        output,
        name="wdbc",
        version=1,
        publisher=PUBLISHER,
        kms_key=kms_key,
        callers="any",
        kms=kms,
        progress=done.append,
    )


def opened(path: Path, key: bytes) -> dict[str, bytes]:
    reader = ModelReader()
    reader.feed(path.read_bytes())
    reader.verify_publisher({PUBLISHER.public_key().public_bytes_raw()}, {})
    reader.unlock(key)
    return read_all(reader.finish())


def test_a_model_sealed_again_under_another_key_keeps_its_digest(tmp_path: Path) -> None:
    kms, done = Kms(), list[int]()
    old = seal(kms, tmp_path / "old", OLD, done)
    new = seal(kms, tmp_path / "new", NEW, done)
    assert old.digest == new.digest
    assert (old.kms_key, new.kms_key) == (OLD, NEW)
    assert sum(done) == 2 * ONNX.stat().st_size
    old_key, new_key = kms.keys[old.wrapped_key], kms.keys[new.wrapped_key]
    assert opened(tmp_path / "new", new_key) == opened(tmp_path / "old", old_key)
    with pytest.raises(CasemateError) as refused:
        opened(tmp_path / "new", old_key)
    assert refused.value.code is Code.MODEL_OPEN_FAILED


def test_external_data_is_sealed_beside_the_model(tmp_path: Path) -> None:
    model, weights = tmp_path / "m.onnx", tmp_path / "data/w.bin"
    weights.parent.mkdir()
    model.write_bytes(ONNX.read_bytes())
    weights.write_bytes(b"weights" * 1000)
    kms = Kms()
    facts = {"name": "m", "version": 1, "publisher": PUBLISHER, "kms_key": OLD, "callers": "any"}
    header = seal_onnx(model, tmp_path / "sealed", external=[weights], kms=kms, **facts)  # type: ignore[arg-type]
    assert [entry.path for entry in header.entries] == ["m.onnx", "data/w.bin"]
    contents = opened(tmp_path / "sealed", kms.keys[header.wrapped_key])
    assert contents["data/w.bin"] == weights.read_bytes()
    with pytest.raises(CasemateError) as refused:
        seal_onnx(model, tmp_path / "sealed", external=[ONNX], kms=kms, **facts)  # type: ignore[arg-type]
    assert refused.value.code is Code.INVALID_ARGUMENT


def test_large_weights_are_sealed_aligned(tmp_path: Path) -> None:
    raw = bytes(range(256)) * 100
    weight = onnx_bytes.tensor("w", onnx_bytes.FLOAT, (64, 100), raw)
    node = onnx_bytes.node("Identity", ("x",), ("y",))
    graph = onnx_bytes.graph((node,), (onnx_bytes.X,), (onnx_bytes.Y,), (weight,))
    (model := tmp_path / "m.onnx").write_bytes(plain := onnx_bytes.model(graph))
    kms = Kms()
    facts = {"name": "m", "version": 1, "publisher": PUBLISHER, "kms_key": OLD, "callers": "any"}
    header = seal_onnx(model, tmp_path / "sealed", kms=kms, **facts)  # type: ignore[arg-type]
    contents = opened(tmp_path / "sealed", kms.keys[header.wrapped_key])
    assert plain.index(raw) % 64
    assert contents["m.onnx"].index(raw) % 64 == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.onnx", "sealed"]


def test_the_bar_is_for_terminals(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with bar.progress_bar(10, "sealing") as advance:
        advance(10)
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with bar.progress_bar(10, "sealing") as advance:
        advance(10)
    out, err = capsys.readouterr()
    assert out == ""
    assert "sealing" in err
    assert "100%" in err


def test_a_step_is_sealed_with_its_loop(tmp_path: Path) -> None:
    model = tmp_path / "step.onnx"
    model.write_bytes(onnx_bytes.counting())
    loop = loop_of(("next=n",), "done", 12, 40)
    facts = {"name": "m", "version": 1, "publisher": PUBLISHER, "kms_key": OLD, "callers": "any"}
    header = seal_onnx(model, tmp_path / "sealed", loop=loop, kms=Kms(), **facts)  # type: ignore[arg-type]
    assert header.loop == ModelLoop((LoopState("next", "n"),), "done", 12, 40)
    assert ModelHeader.parse(header.encode()) == header
    assert [spec.name for spec in header.outputs] == ["square"]  # what the loop needs is no answer


@pytest.mark.parametrize(
    "options",
    [
        ((), "done", None, 0),
        ((), None, 5, 0),
        ((), None, None, 40),
        (("next=n",), "done", None, 0),
        (("next",), None, 5, 0),
        (("=n",), None, 5, 0),
    ],
)
def test_loops_that_are_none(options: tuple[tuple[str, ...], str | None, int | None, int]) -> None:
    with pytest.raises(CasemateError) as refused:
        loop_of(*options)
    assert refused.value.code is Code.INVALID_ARGUMENT
    assert loop_of((), None, None, 0) is None
