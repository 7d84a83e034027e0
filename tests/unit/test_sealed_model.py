from __future__ import annotations

import hashlib
import io
import struct
import threading
import time
import tracemalloc
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from casemate import cbor, limits, wire
from casemate.envelope.chunks import ChunkCipher
from casemate.errors import Code, ModelError
from casemate.sealed_model import (
    ANY_CALLER,
    ModelEntry,
    ModelHeader,
    ModelReader,
    Serving,
    seal_model,
)
from casemate.sealed_model.contents import open_failed
from casemate.sealed_model.parts import content_digest, digest_of, part_digest
from casemate.tensors import TensorSpec
from tests.support.envelope import KEY_ARN
from tests.support.model_contents import MemoryFiles, read_all
from tests.support.threads import Newcomers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

PUBLISHER = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
PUBLIC = PUBLISHER.public_key().public_bytes_raw()
DATA_KEY = b"k" * 32
CHUNK = limits.CHUNK
SMALL = {"model.onnx": b"onnx" * 100, "empty": b"", "data/weights.bin": b"w" * 77}
LARGE = {"model.onnx": b"m" * (CHUNK + 100), "weights.bin": b"w" * (CHUNK + 100)}


def make(
    folder: Path,
    contents: Mapping[str, bytes],
    changes: Mapping[str, object] | None = None,
    output: Any = None,  # noqa: ANN401 - a file, or what stands for one
) -> bytes:
    files = {}
    for index, (path, content) in enumerate(contents.items()):
        files[path] = folder / str(index)
        files[path].write_bytes(content)
    statement: dict[str, Any] = {
        "files": files,
        "data_key": DATA_KEY,
        "wrapped_key": b"blob",
        "kms_key": KEY_ARN,
        "publisher": PUBLISHER,
        "name": "wdbc",
        "version": 7,
        "inputs": [TensorSpec("x", "FP32", (0, 30))],
        "outputs": [TensorSpec("label", "INT64", (0,))],
        "answer_bucket": 2048,
        "callers": ANY_CALLER,
    }
    sink = io.BytesIO() if output is None else output
    header = seal_model(sink, **(statement | dict(changes or {})))
    assert header.total_bytes == sum(map(len, contents.values()))
    return b"" if output else sink.getvalue()


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return make(tmp_path_factory.mktemp("small"), SMALL)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return make(tmp_path_factory.mktemp("large"), LARGE)


def open_model(
    file: bytes,
    *,
    key: bytes = DATA_KEY,
    piece: int = CHUNK,
    minimum: Mapping[str, int] | None = None,
    max_bytes: int = 1 << 30,
) -> dict[str, bytes]:
    """What the enclave does; pieces as they come in frames."""
    reader = ModelReader(max_bytes)
    pieces = (bytearray(file[at : at + piece]) for at in range(0, len(file), piece))
    for each in pieces:
        reader.feed(each)
        if reader.header:
            reader.verify_publisher({PUBLIC}, minimum or {})
            reader.unlock(key)
            reader.feed_all(pieces)
    return read_all(reader.finish())


def unlocked(file: bytes) -> ModelReader:
    reader = ModelReader()
    reader.feed(file[: head_length(file)])
    reader.verify_publisher({PUBLIC}, {})
    reader.unlock(DATA_KEY)
    return reader


def chunks_of(file: bytes) -> list[bytearray]:
    """The sealed chunks of a file whose entries but the last are whole chunks."""
    rest = file[head_length(file) :]
    return [bytearray(rest[at : at + CHUNK + 16]) for at in range(0, len(rest), CHUNK + 16)]


def refused(file: bytes, **how: Any) -> Code:  # noqa: ANN401 - as `open_model`
    with pytest.raises(ModelError) as caught:
        open_model(file, **how)
    if caught.value.code == Code.MODEL_OPEN_FAILED:
        assert str(caught.value) == str(open_failed())
    return caught.value.code


def head_length(file: bytes) -> int:
    return 12 + int.from_bytes(file[8:12], "big") + 4 + 64


def resigned(file: bytes, signer: Ed25519PrivateKey = PUBLISHER, **changes: object) -> bytes:
    """The same chunks under a header with other fields, properly signed."""
    fields = cbor.decode(file[12 : head_length(file) - 68])
    return signed(cbor.encode(fields | changes), file, signer)


def signed(header: bytes, file: bytes, signer: Ed25519PrivateKey = PUBLISHER) -> bytes:
    m = b"CASEMDL2" + wire.lp(header)
    signature = signer.sign(wire.label("model") + wire.digest(m))
    return m + wire.lp(signature) + file[head_length(file) :]


def test_how_to_serve_a_model_is_in_its_signed_header(tmp_path: Path) -> None:
    wanted = Serving(0, batch_rows=64, request_rows=16, concurrency=2, queue=0, run_ms=1500)
    reader = ModelReader()
    reader.feed(make(tmp_path, SMALL, {"serving": wanted}))
    assert reader.verify_publisher({PUBLIC}, {}).serving == wanted


@pytest.mark.parametrize("piece", [1, 7, 1000, CHUNK])
def test_a_small_model_in_any_pieces(small: bytes, piece: int) -> None:
    opened = open_model(small, piece=piece)
    assert opened == SMALL
    assert list(opened) == list(SMALL)


@pytest.mark.parametrize("piece", [CHUNK, CHUNK // 3, 65_536])
def test_a_model_of_three_chunks(large: bytes, piece: int) -> None:
    assert open_model(large, piece=piece) == LARGE


@pytest.mark.parametrize("size", [1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK])
def test_sizes_around_chunks(tmp_path: Path, size: int) -> None:
    contents = {"model.onnx": b"m" * size}
    assert open_model(make(tmp_path, contents)) == contents


# SPEC 8.3, step by step


@pytest.mark.parametrize("length", [0, 1, 7, 8, 11, 12, 100])
def test_a_file_that_ends_within_its_header_is_malformed(small: bytes, length: int) -> None:
    assert refused(small[:length]) == Code.MODEL_MALFORMED
    assert refused(small[: head_length(small) - 1]) == Code.MODEL_MALFORMED


def test_a_bad_layout_is_malformed(small: bytes) -> None:
    head = head_length(small)
    assert refused(b"CASEMDL1" + small[8:]) == Code.MODEL_MALFORMED
    assert refused(b"X") == Code.MODEL_MALFORMED
    for length in (0, limits.MODEL_HEADER_MAX + 1, 0xFFFFFFFF):
        assert refused(small[:8] + struct.pack(">I", length) + small[12:]) == Code.MODEL_MALFORMED
    wrong = small[: head - 68] + struct.pack(">I", 63) + small[head - 64 :]
    assert refused(wrong) == Code.MODEL_MALFORMED


SPEC = {"name": "x", "datatype": "FP32", "shape": [1]}
ENTRY = {"path": "model.onnx", "length": 1, "digest": bytes(48)}
SERVING = dict.fromkeys(
    ("batch_dimension", "batch_rows", "request_rows", "concurrency", "queue", "run_ms")
)


@pytest.mark.parametrize(
    "change",
    [
        {"v": 1},
        {"more": 1},
        {"file_id": bytes(31)},
        {"key_commitment": bytes(33)},
        {"publisher": bytes(31)},
        {"name": ""},
        {"name": "-x"},
        {"name": "a/b"},
        {"name": "a\n"},
        {"name": "x" * 129},
        {"version": 0},
        {"version": 1 << 32},
        {"version": True},
        {"inputs": []},
        {"inputs": [SPEC] * 2},
        {"inputs": [SPEC | {"name": str(n)} for n in range(65)]},
        {"outputs": [SPEC | {"name": ""}]},
        {"outputs": [SPEC | {"name": "x" * 256}]},
        {"outputs": [SPEC | {"datatype": "FP8"}]},
        {"outputs": [SPEC | {"shape": [1] * 9}]},
        {"outputs": [SPEC | {"shape": ["a"]}]},
        {"outputs": [SPEC | {"shape": [True]}]},
        {"outputs": [SPEC | {"more": 1}]},
        {"outputs": ["x"]},
        {"answer_bucket": 66_060_289},
        {"callers": "all"},
        {"callers": []},
        {"callers": [bytes(31)]},
        {"callers": ["a" * 32]},
        {"callers": [b"b" * 32, b"a" * 32]},
        {"callers": [b"a" * 32, b"a" * 32]},
        {"callers": [n.to_bytes(32, "big") for n in range(1025)]},
        {"runtime": "pickle"},
        {"kms_key": "alias/model"},
        {"kms_key": KEY_ARN + "\n"},
        {"wrapped_key": b""},
        {"wrapped_key": bytes(6145)},
        {"entries": []},
        {"entries": [ENTRY, ENTRY]},
        {"serving": {}},
        {"serving": SERVING | {"more": None}},
        *[
            {"serving": SERVING | change}
            for change in (
                {"batch_dimension": 8},
                {"batch_dimension": True},
                {"batch_dimension": 1},  # `label` has no such dimension
                {"batch_dimension": 0, "batch_rows": 1},
                {"batch_dimension": 0, "batch_rows": 4097},
                {"batch_dimension": 0, "request_rows": 0},
                {"batch_rows": 2},
                {"request_rows": 2},
                {"concurrency": 0},
                {"concurrency": 65},
                {"queue": 65},
                {"run_ms": 0},
                {"run_ms": 600_001},
                {"run_ms": "1"},
            )
        ],
        {"serving": SERVING | {"batch_dimension": 0}, "outputs": [SPEC]},  # its length is fixed
        {"entries": [ENTRY | {"length": 0}]},
        {"entries": [ENTRY | {"digest": bytes(47)}]},
        {"entries": [ENTRY | {"path": f"{n}"} for n in range(65)]},
        *[
            {"entries": [ENTRY | {"path": path}]}
            for path in ("", "/etc/passwd", "../x", "a/../b", "a//b", "a/", ".", "./a", "x" * 256)
        ],
        *[
            {"entries": [ENTRY | {"path": path}]}
            for path in ("a b", "a\\b", "a:b", "a\n", "a\0b", "\u00e4", "\u0661", "~", "a%2fb")
        ],
    ],
)
def test_a_header_that_breaks_its_rules_is_malformed(small: bytes, change: dict[str, Any]) -> None:
    assert refused(resigned(small, **change)) == Code.MODEL_MALFORMED


@pytest.mark.parametrize("length", [0, 64 * 1024 + 1, (1 << 32) - 1])
def test_a_header_of_no_possible_length_is_refused_at_once(length: int) -> None:
    with pytest.raises(ModelError) as caught:
        ModelReader().feed(b"CASEMDL2" + struct.pack(">I", length))
    assert caught.value.code == Code.MODEL_MALFORMED


def test_a_header_with_two_readings_is_malformed(small: bytes) -> None:
    header = small[12 : head_length(small) - 68]
    assert refused(signed(header + b"\0", small)) == Code.MODEL_MALFORMED
    assert refused(signed(header[:-1], small)) == Code.MODEL_MALFORMED


def test_an_unknown_publisher_is_refused(small: bytes) -> None:
    stranger = Ed25519PrivateKey.generate()
    other = resigned(small, stranger, publisher=stranger.public_key().public_bytes_raw())
    assert refused(other) == Code.MODEL_PUBLISHER_UNKNOWN


def test_a_signature_by_another_or_over_another_header_is_refused(small: bytes) -> None:
    stranger = Ed25519PrivateKey.generate()
    assert refused(resigned(small, stranger)) == Code.MODEL_SIGNATURE_INVALID
    at = head_length(small) - 1
    flipped = small[:at] + bytes([small[at] ^ 1]) + small[at + 1 :]
    assert refused(flipped) == Code.MODEL_SIGNATURE_INVALID
    other = resigned(small, callers=[bytes(32)])
    stripped = other[: head_length(other) - 64] + small[at - 63 :]
    assert refused(stripped) == Code.MODEL_SIGNATURE_INVALID


def test_an_old_version_is_refused(small: bytes) -> None:
    assert open_model(small, minimum={f"{PUBLIC.hex()}/wdbc": 7})
    assert refused(small, minimum={f"{PUBLIC.hex()}/wdbc": 8}) == Code.MODEL_VERSION_REVOKED
    assert open_model(small, minimum={f"{PUBLIC.hex()}/other": 8})


def test_a_model_above_the_limit_is_refused_before_memory_is_taken(small: bytes) -> None:
    total = sum(map(len, SMALL.values()))
    assert open_model(small, max_bytes=total) == SMALL
    assert refused(small, max_bytes=total - 1) == Code.TOO_LARGE
    tracemalloc.start()
    assert refused(resigned(small, entries=[ENTRY | {"length": 1 << 63}])) == Code.TOO_LARGE
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < CHUNK


def test_the_steps_come_in_their_order(small: bytes) -> None:
    stranger = Ed25519PrivateKey.generate()
    public = stranger.public_key().public_bytes_raw()
    everything = {f"{PUBLIC.hex()}/wdbc": 8, f"{public.hex()}/wdbc": 8}
    unknown = resigned(small, PUBLISHER, publisher=public)
    how: dict[str, Any] = {"minimum": everything, "max_bytes": 1, "key": bytes(32)}
    assert refused(unknown, **how) == Code.MODEL_PUBLISHER_UNKNOWN
    assert refused(resigned(small, stranger), **how) == Code.MODEL_SIGNATURE_INVALID
    assert refused(small, **how) == Code.MODEL_VERSION_REVOKED
    assert refused(small, max_bytes=1, key=bytes(32)) == Code.TOO_LARGE
    assert refused(small, key=bytes(32)) == Code.MODEL_OPEN_FAILED


@pytest.mark.parametrize("key", [bytes(32), b"", DATA_KEY + b"\0"])
def test_another_key_is_refused_by_the_commitment(small: bytes, key: bytes) -> None:
    assert refused(small, key=key) == Code.MODEL_OPEN_FAILED


def test_truncation_anywhere_is_refused(large: bytes) -> None:
    head = head_length(large)
    ends = [head, head + 1, head + 16, head + CHUNK + 16, head + 2 * (CHUNK + 16), len(large) - 1]
    for end in ends:
        assert refused(large[:end]) == Code.MODEL_OPEN_FAILED


def test_bytes_after_the_last_chunk_are_refused(small: bytes, large: bytes) -> None:
    for file in (small, large):
        assert refused(file + b"\0") == Code.MODEL_OPEN_FAILED
        assert refused(file + bytes(CHUNK)) == Code.MODEL_OPEN_FAILED


def test_chunks_swapped_within_or_between_files_are_refused(tmp_path: Path, large: bytes) -> None:
    other = make(tmp_path, LARGE)
    head, size = head_length(large), CHUNK + 16
    first, second = large[head : head + size], large[head + size : head + 2 * size]
    third = large[head + 2 * size :]
    assert refused(large[:head] + second + first + third) == Code.MODEL_OPEN_FAILED
    assert refused(large[:head] + first + first + third) == Code.MODEL_OPEN_FAILED
    assert refused(large[:head] + first + third) == Code.MODEL_OPEN_FAILED
    foreign = other[head_length(other) :]
    assert refused(large[:head] + foreign[:size] + second + third) == Code.MODEL_OPEN_FAILED
    assert refused(other[: head_length(other)] + large[head:]) == Code.MODEL_OPEN_FAILED


def sealed_under(header: bytes, parts: Sequence[bytes]) -> bytes:
    """A file that everything fits but what its entries say."""
    m_hash = wire.digest(b"CASEMDL2" + wire.lp(header))
    key = wire.expand(wire.extract(DATA_KEY), "model", m_hash)
    head = signed(header, bytes(80))[: 12 + len(header) + 68]
    cipher = ChunkCipher(key, m_hash)
    chunks = [bytearray(len(part) + 16) for part in parts]
    for index, part in enumerate(parts):
        cipher.seal_into(part, chunks[index], last=index == len(parts) - 1)
    return head + b"".join(chunks)


def parts_of(contents: Mapping[str, bytes]) -> list[bytes]:
    """Every content cut by itself."""
    return [
        content[at : at + CHUNK]
        for content in contents.values()
        for at in range(0, len(content), CHUNK)
    ]


def test_a_wrong_commitment_is_refused_though_all_chunks_open(small: bytes) -> None:
    """Else one file could open to two models under two keys."""
    fields = cbor.decode(small[12 : head_length(small) - 68])
    for commitment in (bytes(32), fields["key_commitment"][::-1]):
        header = cbor.encode(fields | {"key_commitment": commitment})
        file = sealed_under(header, parts_of(SMALL))
        assert refused(file) == Code.MODEL_OPEN_FAILED


def test_a_wrong_digest_is_refused_though_all_chunks_open(small: bytes) -> None:
    header = small[12 : head_length(small) - 68]
    first, second = parts_of(SMALL)
    assert open_model(sealed_under(header, [first, second])) == SMALL
    for parts in ([first, second[:-1] + b"x"], [b"x" + first[1:], second]):
        assert refused(sealed_under(header, parts)) == Code.MODEL_OPEN_FAILED
    fields = cbor.decode(header)
    fields["entries"][1]["digest"] = bytes(48)  # the empty one
    assert refused(sealed_under(cbor.encode(fields), [first, second])) == Code.MODEL_OPEN_FAILED


def test_a_publisher_cannot_vouch_for_parts_that_are_not_there(small: bytes) -> None:
    """Else zeros would stand in their place: the length is of the content, the digest of none."""
    fields = cbor.decode(small[12 : head_length(small) - 68])
    first, second = parts_of(SMALL)
    for entry in fields["entries"]:
        entry["digest"] = content_digest(entry["length"], [])
    assert refused(sealed_under(cbor.encode(fields), [])) == Code.MODEL_OPEN_FAILED
    fields["entries"][0]["digest"] = digest_of(first)
    assert refused(sealed_under(cbor.encode(fields), [first])) == Code.MODEL_OPEN_FAILED
    fields["entries"][2]["digest"] = digest_of(second)
    assert open_model(sealed_under(cbor.encode(fields), [first, second])) == SMALL


def test_every_part_counts_where_it_stands(tmp_path: Path) -> None:
    """The key's owner seals whatever they like: the signed digests alone hold them to it."""
    contents = {"a": b"1" * CHUNK + b"2" * CHUNK + b"3", "b": b"1" * CHUNK}
    file = make(tmp_path, contents)
    header = file[12 : head_length(file) - 68]
    one, two, end, other = parts_of(contents)
    assert open_model(sealed_under(header, [one, two, end, other])) == contents
    for parts in (
        [two, one, end, other],
        [one, one, end, other],
        [one, two, b"4", other],
        [one, two, end, two],
        [one, b"x" + two[1:], end, other],
    ):
        assert refused(sealed_under(header, parts)) == Code.MODEL_OPEN_FAILED


def test_contents_cut_elsewhere_are_refused_though_their_bytes_are_the_same(tmp_path: Path) -> None:
    contents = {"a": b"x" * (CHUNK + 1), "b": b"x" * (CHUNK + 1)}
    file = make(tmp_path, contents)
    header = file[12 : head_length(file) - 68]
    across = [b"x" * CHUNK, b"x" * CHUNK, b"xx"]
    assert refused(sealed_under(header, across)) == Code.MODEL_OPEN_FAILED
    assert open_model(sealed_under(header, parts_of(contents))) == contents


@pytest.mark.parametrize("size", [0, 1, CHUNK, CHUNK + 1, 3 * CHUNK])
def test_a_content_has_the_digest_that_the_spec_states(tmp_path: Path, size: int) -> None:
    """With the hash functions alone, as anybody can compute it."""
    content = bytes(size)
    hashes = [hashlib.sha256(content[at : at + CHUNK]).digest() for at in range(0, size, CHUNK)]
    whole = b"casemate/v1 content\0" + size.to_bytes(8, "big") + b"".join(hashes)
    file = make(tmp_path, {"model": content, "more": b"1"})
    entry = ModelHeader.parse(file[12 : head_length(file) - 68]).entries[0]
    assert entry.digest == hashlib.sha384(whole).digest() == digest_of(content)


@given(bit=st.integers(0, 1 << 20))
def test_any_flipped_bit_is_refused(small: bytes, bit: int) -> None:
    at = (bit // 8) % len(small)
    flipped = small[:at] + bytes([small[at] ^ 1 << bit % 8]) + small[at + 1 :]
    code = refused(flipped)
    before = {Code.MODEL_MALFORMED, Code.MODEL_PUBLISHER_UNKNOWN, Code.MODEL_SIGNATURE_INVALID}
    assert code in before if at < head_length(small) else code == Code.MODEL_OPEN_FAILED


def test_nothing_is_released_before_the_end(large: bytes) -> None:
    reader = ModelReader()
    head = head_length(large)
    reader.feed(large[:head])
    with pytest.raises(RuntimeError):
        reader.unlock(DATA_KEY)  # nobody vouched for it
    with pytest.raises(RuntimeError):
        reader.finish()
    reader.verify_publisher({PUBLIC}, {})
    reader.unlock(DATA_KEY)
    reader.feed(large[head:-1])
    with pytest.raises(ModelError):
        reader.finish()
    with pytest.raises(RuntimeError):
        reader.feed(large[-1:])
    with pytest.raises(RuntimeError):
        reader.finish()


def test_memory_is_taken_only_for_what_a_publisher_signed(large: bytes) -> None:
    files = MemoryFiles()
    with ModelReader() as reader:
        reader.feed(large[:CHUNK])
        with pytest.raises(RuntimeError):
            reader.expect()
        assert len(files) == 0
        reader.verify_publisher({PUBLIC}, {})
        reader.expect()
        reader.expect()
        assert len(files) == 1
    assert len(files) == 0


def test_a_refused_file_is_not_continued(small: bytes) -> None:
    reader = ModelReader()
    with pytest.raises(ModelError):
        reader.feed(b"nothing of the kind")
    with pytest.raises(RuntimeError):
        reader.feed(small)


def test_chunks_are_not_collected_before_they_can_be_opened(large: bytes) -> None:
    reader = ModelReader()
    reader.feed(large[:CHUNK])
    reader.feed(large[CHUNK : 2 * CHUNK])
    with pytest.raises(RuntimeError, match="before unlock"):
        reader.feed(large[2 * CHUNK :] + bytes(CHUNK))


def test_opening_takes_the_memory_of_the_model_and_little_more(tmp_path: Path) -> None:
    size = 24 * limits.MIB
    file = make(tmp_path, {"model.onnx": bytes(size - 5), "weights.bin": bytes(5)})
    tracemalloc.start()
    opened = open_model(file)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert sum(map(len, opened.values())) == size
    assert peak < 1.3 * size


@pytest.mark.parametrize("kind", [bytes, bytearray])
def test_a_file_may_be_fed_piece_by_piece(large: bytes, kind: type[bytes | bytearray]) -> None:
    """What cannot be written to is left as it is."""
    reader, fed = unlocked(large), kind(large[head_length(large) :])
    for at in range(0, len(fed), CHUNK):
        reader.feed(memoryview(fed)[at : at + CHUNK])
    assert read_all(reader.finish()) == LARGE
    assert (bytes(fed) == large[head_length(large) :]) == (kind is bytes)


def test_a_part_is_opened_while_the_next_one_arrives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = b"1" * CHUNK + b"2" * CHUNK
    file = make(tmp_path, {"model.onnx": content})
    asked = threading.Event()

    def arriving() -> Iterator[bytearray]:
        first, second = chunks_of(file)
        yield first
        asked.set()
        yield second

    def hashed(part: memoryview) -> bytes:
        assert asked.wait(60)
        return part_digest(part)

    monkeypatch.setattr("os.cpu_count", lambda: 2)
    monkeypatch.setattr("casemate.sealed_model.contents.part_digest", hashed)
    reader = unlocked(file)
    reader.feed_all(arriving())
    assert read_all(reader.finish()) == {"model.onnx": content}


def test_pieces_are_taken_one_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = b"".join(bytes([number]) * CHUNK for number in range(8))
    file = make(tmp_path, {"model.onnx": content})
    taking = threading.Lock()

    class Arriving:
        def __init__(self) -> None:
            self._chunks = iter(chunks_of(file))

        def __iter__(self) -> Self:
            return self

        def __next__(self) -> bytearray:
            assert taking.acquire(blocking=False), "two at a time"
            time.sleep(0.05)  # for whoever would not wait
            taking.release()
            return next(self._chunks)

    monkeypatch.setattr("os.cpu_count", lambda: 2)
    reader = unlocked(file)
    reader.feed_all(Arriving())
    assert read_all(reader.finish()) == {"model.onnx": content}


def test_nothing_more_is_taken_once_a_part_does_not_open(tmp_path: Path) -> None:
    chunks = chunks_of(file := make(tmp_path, {"model.onnx": bytes(40 * CHUNK)}))
    chunks[1][5] ^= 1
    left, reader = iter(chunks), unlocked(file)
    with pytest.raises(ModelError) as caught:
        reader.feed_all(left)
    assert caught.value.code == Code.MODEL_OPEN_FAILED
    assert len(list(left)) > 20
    with pytest.raises(RuntimeError):
        reader.finish()


def test_a_file_that_stops_arriving_is_told_as_it_was(tmp_path: Path) -> None:
    file = make(tmp_path, {"model.onnx": bytes(4 * CHUNK)})

    def arriving() -> Iterator[bytearray]:
        yield chunks_of(file)[0]
        raise TimeoutError("later")

    with unlocked(file) as reader, pytest.raises(TimeoutError, match="later"):
        reader.feed_all(arriving())


def test_a_model_that_does_not_open_leaves_nothing_behind(tmp_path: Path, large: bytes) -> None:
    files, threads = MemoryFiles(), Newcomers()

    def left() -> tuple[int, set[str]]:
        return len(files), threads.names()

    assert refused(large[:-1]) == Code.MODEL_OPEN_FAILED
    assert refused(large[:-1] + bytes([large[-1] ^ 1])) == Code.MODEL_OPEN_FAILED
    header = large[12 : head_length(large) - 68]
    wrong = [b"x" + part[1:] for part in parts_of(LARGE)]
    assert refused(sealed_under(header, wrong)) == Code.MODEL_OPEN_FAILED
    assert left() == (0, set())
    assert open_model(large) == LARGE
    assert left() == (0, set())


# Sealing


class Sink(io.RawIOBase):
    """Forgets what is written, and does ``then`` after the first time: between the two readings."""

    def __init__(self, then: Callable[[], object] = lambda: None) -> None:
        super().__init__()
        self.then: Callable[[], object] | None = then

    def write(self, data: Any) -> int:  # noqa: ANN401 - any buffer
        if self.then:
            self.then()
            self.then = None
        return len(data)


def test_sealing_takes_little_memory(tmp_path: Path) -> None:
    content = {"model.onnx": bytes(24 * limits.MIB)}
    tracemalloc.start()
    make(tmp_path, content, output=Sink())
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8 * limits.MIB


def test_each_file_has_its_own_id_and_key(tmp_path: Path, small: bytes) -> None:
    again = make(tmp_path, SMALL)
    assert again[head_length(again) :] != small[head_length(small) :]


@pytest.mark.parametrize("later", [b"changed!", b"short", b"longer than before", b""])
def test_a_file_that_changes_between_its_readings_is_refused(tmp_path: Path, later: bytes) -> None:
    sink = Sink(lambda: (tmp_path / "0").write_bytes(later))
    with pytest.raises(ModelError) as caught:
        make(tmp_path, {"model.onnx": b"original"}, output=sink)
    assert caught.value.code == Code.INVALID_ARGUMENT


@pytest.mark.parametrize(
    "change",
    [
        {"name": "no good"},
        {"version": 0},
        {"inputs": []},
        {"callers": (b"b" * 32, b"a" * 32)},
        {"kms_key": "alias/x"},
        {"wrapped_key": b""},
    ],
)
def test_a_statement_that_the_format_does_not_allow_is_not_sealed(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    with pytest.raises(ModelError) as caught:
        make(tmp_path, SMALL, change)
    assert caught.value.code == Code.MODEL_MALFORMED


def test_the_digest_names_the_contents_only(small: bytes) -> None:
    header = ModelHeader.parse(small[12 : head_length(small) - 68])
    assert replace(header, version=8, callers=(bytes(32),)).digest == header.digest
    entries = (*header.entries[:2], ModelEntry("data/weights.bin", 77, bytes(48)))
    assert replace(header, entries=entries).digest != header.digest
