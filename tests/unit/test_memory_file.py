"""Memory files that hold a model: nobody changes one, and none is left behind."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

import pytest

from casemate.sealed_model import ModelContents
from casemate.sealed_model.memory_file import memory_file, places_of, supply
from tests.support.model_contents import MemoryFiles, read_all

FILES = {"model.onnx": b"onnx" * 100, "empty": b"", "data/weights.bin": b"w" * 77}


def test_contents_lie_one_after_the_other_and_begin_aligned() -> None:
    contents = ModelContents.of(FILES)
    assert read_all(contents) == FILES
    assert contents.lengths == {path: len(content) for path, content in FILES.items()}
    whole = os.pread(contents.descriptor, 1000, 0)
    assert whole == b"onnx" * 100 + bytes(48) + b"w" * 77
    assert places_of(contents.lengths) == (
        {"model.onnx": 0, "empty": 448, "data/weights.bin": 448},
        448 + 77,
    )


def test_memory_is_supplied_before_it_is_written() -> None:
    descriptor = memory_file(10 << 20)
    try:
        supply(descriptor, 1 << 20, 3 << 20)
        assert os.fstat(descriptor).st_blocks * 512 == 3 << 20
        assert os.fstat(descriptor).st_size == 10 << 20
        supply(-1, 0, 1)  # what cannot be had shows when it is written
    finally:
        os.close(descriptor)


def test_nobody_changes_contents() -> None:
    """Whoever is given the descriptor: a worker that was taken over reads, and no more."""
    contents = ModelContents.of(FILES)
    descriptor = contents.descriptor
    for change in (
        lambda: os.pwrite(descriptor, b"x", 0),
        lambda: os.ftruncate(descriptor, 1),
        lambda: os.ftruncate(descriptor, 10_000),
        lambda: mmap.mmap(descriptor, 400),
        lambda: Path(f"/proc/self/fd/{descriptor}").write_bytes(b""),
    ):
        with pytest.raises(PermissionError):
            change()
    assert read_all(contents) == FILES


def test_contents_are_shown_where_they_lie() -> None:
    views = ModelContents.of(FILES).views()
    assert {path: bytes(view) for path, view in views.items()} == FILES
    assert all(view.readonly for view in views.values())
    empty = ModelContents.of({"empty": b"", "more": b"x"}).views()
    assert [bytes(view) for view in empty.values()] == [b"", b"x"]
    assert not ModelContents.of({"empty": b""}).views()["empty"]


def test_a_single_content_can_be_opened_by_a_path() -> None:
    alone = ModelContents.of({"model.onnx": b"content"})
    assert alone.location is not None
    assert Path(alone.location).read_bytes() == b"content"
    assert ModelContents.of(FILES).location is None


@pytest.mark.slow
def test_what_is_dropped_or_closed_leaves_no_descriptor() -> None:
    files = MemoryFiles()
    contents = ModelContents.of(FILES)
    assert len(files) == 1
    del contents
    assert len(files) == 0
    contents = ModelContents.of(FILES)
    contents.close()
    contents.close()
    assert len(files) == 0
