"""Sealing a model for publication, in bounded memory (SPEC 8)."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, BinaryIO

from casemate import limits, wire
from casemate.envelope.chunks import TAG_BYTES, ChunkCipher
from casemate.errors import Code, ModelError
from casemate.sealed_model.header import (
    FILE_ID_BYTES,
    MAGIC,
    RUNTIME,
    Callers,
    ModelEntry,
    ModelHeader,
)
from casemate.sealed_model.parts import content_digest, part_digest
from casemate.sealed_model.serving import Serving

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from casemate.sealed_model.loop import ModelLoop
    from casemate.tensors import TensorSpec


def seal_model(
    output: BinaryIO,
    *,
    files: Mapping[str, Path],
    data_key: bytes,
    wrapped_key: bytes,
    kms_key: str,
    publisher: Ed25519PrivateKey,
    name: str,
    version: int,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    answer_bucket: int,
    callers: Callers,
    serving: Serving | None = None,
    loop: ModelLoop | None = None,
    progress: Callable[[int], None] = lambda _sealed: None,
) -> ModelHeader:
    """Write the sealed model of ``files`` (path in the model -> file, the ONNX model first).

    ``wrapped_key`` is the 32-byte ``data_key`` under ``kms_key``, with the encryption context of
    SPEC 8.2; a data key seals one file. The files are read twice, the second time to seal them;
    ``progress`` gets the number of bytes after each chunk.
    Raises ModelError: MODEL_MALFORMED for a statement that SPEC 8.2 does not allow,
    INVALID_ARGUMENT if a file changed meanwhile; then what was written is of no use. OSError
    passes through.
    """
    prk = wire.extract(data_key)
    header = ModelHeader(
        file_id=secrets.token_bytes(FILE_ID_BYTES),
        key_commitment=wire.expand(prk, "commit"),
        publisher=publisher.public_key().public_bytes_raw(),
        name=name,
        version=version,
        inputs=tuple(inputs),
        outputs=tuple(outputs),
        answer_bucket=answer_bucket,
        callers=callers,
        runtime=RUNTIME,
        kms_key=kms_key,
        wrapped_key=wrapped_key,
        entries=tuple(_entry(path, file) for path, file in files.items()),
        serving=serving or Serving(),
        loop=loop,
    )
    signed = MAGIC + wire.lp(header.encode())
    file_hash = wire.digest(signed)
    output.write(signed + wire.lp(publisher.sign(wire.label("model") + file_hash)))
    cipher = ChunkCipher(wire.expand(prk, "model", file_hash), file_hash)
    _write_chunks(output, cipher, files, header, progress)
    return header


def _parts(file: Path) -> Iterator[bytes]:
    with file.open("rb") as stream:
        while part := stream.read(limits.CHUNK):
            yield part


def _entry(path: str, file: Path) -> ModelEntry:
    length, digests = 0, []
    for part in _parts(file):
        digests.append(part_digest(part))
        length += len(part)
    return ModelEntry(path, length, content_digest(length, digests))


def _unchanged(entry: ModelEntry, file: Path) -> Iterator[bytes]:
    """Yield the parts of a content; what differs from the first reading is refused."""
    left, digests = entry.length, []
    for part in _parts(file):
        left -= len(part)
        if left < 0:
            break
        digests.append(part_digest(part))
        yield part
    if left or content_digest(entry.length, digests) != entry.digest:
        raise ModelError(Code.INVALID_ARGUMENT, f"{entry.path} changed while it was sealed")


def _write_chunks(
    output: BinaryIO,
    cipher: ChunkCipher,
    files: Mapping[str, Path],
    header: ModelHeader,
    progress: Callable[[int], None],
) -> None:
    remaining = header.total_bytes
    sealed = memoryview(bytearray(limits.CHUNK + TAG_BYTES))
    for entry in header.entries:
        for part in _unchanged(entry, files[entry.path]):
            remaining -= len(part)
            out = sealed[: len(part) + TAG_BYTES]
            cipher.seal_into(part, out, last=not remaining)
            output.write(out)
            progress(len(part))
