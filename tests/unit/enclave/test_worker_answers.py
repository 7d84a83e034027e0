"""What a worker says is a stranger's word (THREATS C5, SPEC 8.10.2): the enclave meets liars."""

from __future__ import annotations

import mmap
import os
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from casemate import cbor, limits
from casemate.sealed_model import ModelContents
from casemate_enclave.refusals import RefusedError, RunError
from casemate_enclave.runs import Left, Run
from casemate_enclave.workers import packets, shared
from casemate_enclave.workers.line import Line, WorkerLostError
from casemate_enclave.workers.pace import Pace
from casemate_enclave.workers.pipeline import Pipeline
from casemate_enclave.workers.tensors import (
    PacketError,
    aligned,
    pack,
    place,
    read_description,
    scatter,
    take,
)
from tests.support.model_contents import MemoryFiles

if TYPE_CHECKING:
    from collections.abc import Callable

NUMBER = 7
X = {"x": np.arange(6, dtype=np.float32).reshape(2, 3)}
GOOD = pack({"y": np.arange(4, dtype=np.int64)})


def answer(
    status: int = packets.DONE_INLINE,
    description: bytes = GOOD.description,
    *,
    number: int = NUMBER,
    total: int = 64,
    length: int | None = None,
    body: bytes | None = None,
) -> bytes:
    said = len(description) if length is None else length
    head = packets.ANSWER.pack(status, said, number, total, 1000) + description
    data = b"".join(map(bytes, scatter(GOOD))) if body is None else body
    return head + bytes(-len(head) % 64) + data


def described(*parts: object, wanted: object = ()) -> bytes:
    return cbor.encode([list(wanted), [*parts]])  # type: ignore[call-overload]


def told(*packets_: bytes) -> dict[str, Any]:
    """What the enclave makes of a worker that answers its question with ``packets_``."""
    ours, theirs = packets.pair()

    def lie() -> None:
        memory = packets.packet_memory()
        with theirs:
            for packet in packets_:
                _, descriptor = packets.receive(theirs, memory)
                if descriptor is not None:
                    os.close(descriptor)
                theirs.send(packet)

    liar = threading.Thread(target=lie)
    liar.start()
    line = Line(ours, limits.MIB, Pace())
    try:
        return line.ask(NUMBER, pack(X, ["y"]), 0.0)
    finally:
        line.close()
        liar.join()


def test_an_answer_is_taken() -> None:
    assert told(answer())["y"].tolist() == [0, 1, 2, 3]


PART = ["y", "INT64", [4], 32]
LIES: dict[str, bytes] = {
    "nothing": b"\0",
    "no head": answer()[: packets.ANSWER.size - 1],
    "another run": answer(number=NUMBER + 1),
    "unknown status": answer(99),
    "a description past the end": answer(length=1 << 31),
    "half a description": answer(length=len(GOOD.description) - 1),
    "no description": answer(description=b""),
    "no cbor": answer(description=b"\xff\xff"),
    "another shape of cbor": answer(description=cbor.encode({"y": 1})),
    "a size that is not the shape's": answer(description=described(["y", "INT64", [5], 32])),
    "a shape without a place": answer(description=described(["y", "INT64", [1 << 60], 1 << 63])),
    "tensors past the end": answer(description=described(["y", "INT64", [400], 3200])),
    "all tensors past the end": answer(body=b""),
    "no datatype": answer(description=described(["y", "INT65", [4], 32])),
    "no name": answer(description=described([7, "INT64", [4], 32])),
    "outputs that are none": answer(description=cbor.encode([None, [PART]])),
    "tensors that are none": answer(description=cbor.encode([[], True])),
    "a shape that is none": answer(description=described(["y", "INT64", {}, 8])),
    "a name twice": answer(description=described(PART, PART)),
    "too many dimensions": answer(description=described(["y", "INT64", [1] * 40, 8])),
    "too many tensors": answer(
        description=described(*([str(n), "INT64", [0], 0] for n in range(999)))
    ),
    "a flag for a size": answer(description=described(["y", "BOOL", [True], 1])),
    "dimensions that no array has": answer(
        description=described(["y", "INT64", [0, 1 << 62, 1 << 62], 0])
    ),
    "text that is not its shape's": answer(
        description=described(["y", "BYTES", [2], 5]), body=b"\1\0\0\0a" + bytes(59)
    ),
    "text that is not UTF-8": answer(
        description=described(["y", "BYTES", [1], 5]), body=b"\1\0\0\0\xff" + bytes(59)
    ),
    "text of more elements than bytes": answer(
        description=described(["y", "BYTES", [1 << 62], 5]), body=b"\1\0\0\0a" + bytes(59)
    ),
    "shared memory that nobody gave": answer(packets.DONE_SHARED),
    "more room than runs may take": answer(packets.NEEDS_ROOM, total=limits.MIB + 1),
    "room beyond all numbers": answer(packets.NEEDS_ROOM, total=(1 << 64) - 1),
}


@pytest.mark.parametrize("lie", LIES)
def test_c5_a_worker_that_lies_is_ended_and_not_believed(lie: str) -> None:
    with pytest.raises(WorkerLostError):
        told(LIES[lie])


def test_c5_an_answer_is_not_completed_from_the_one_before() -> None:
    """The bytes of another caller's answer still lie behind a short one."""
    head = packets.ANSWER.pack(packets.DONE_INLINE, len(GOOD.description), NUMBER + 1, 64, 1)
    ours, theirs = packets.pair()
    line = Line(ours, limits.MIB, Pace())
    with ours, theirs:
        theirs.send(answer())
        assert line.ask(NUMBER, pack(X, ["y"]), 0.0)["y"].tolist() == [0, 1, 2, 3]
        theirs.send(head)
        with pytest.raises(WorkerLostError):
            line.ask(NUMBER + 1, pack(X, ["y"]), 0.0)


def test_the_time_of_a_run_is_used_before_its_answer_is_waited_for() -> None:
    ours, theirs = packets.pair()
    line = Line(ours, limits.MIB, Pace())
    memory = packets.packet_memory()

    def meanwhile() -> None:
        assert packets.receive(theirs, memory)[0]  # the question has left
        theirs.send(answer())

    with ours, theirs:
        ours.settimeout(10)
        y = line.ask(NUMBER, pack(X, ["y"]), 0.0, meanwhile)["y"]
    assert y.tolist() == [0, 1, 2, 3]


def test_c5_a_worker_that_asks_for_room_twice_is_ended() -> None:
    asks = answer(packets.NEEDS_ROOM, total=100_000)
    with pytest.raises(WorkerLostError):
        told(asks, asks)


def test_c5_an_answer_in_shared_memory_ends_where_the_memory_does() -> None:
    huge = described(["y", "INT64", [1 << 20], 1 << 23])
    with pytest.raises(WorkerLostError):
        told(answer(packets.NEEDS_ROOM, total=100_000), answer(packets.DONE_SHARED, huge))


@pytest.mark.parametrize("failure", range(4))
def test_a_failure_is_one_of_a_closed_set(failure: int) -> None:
    with pytest.raises(RunError):
        told(answer(packets.FAILED + failure))
    with pytest.raises(WorkerLostError):
        told(answer(packets.FAILED + 4 + failure))


# -- several runs on one line ----------------------------------------------------------------------


def told_together(*packets_: bytes, runs: int = 2) -> dict[int, Any]:
    """What the enclave makes of a worker that answers ``runs`` questions with ``packets_``."""
    ours, theirs = packets.pair()
    line = Line(ours, limits.MIB, Pace())
    back: dict[int, Any] = {}
    with ours, theirs:
        packed = pack(X, ["y"])
        line.begin([(NUMBER + at, packed, 0.0) for at in range(runs)])
        theirs.recv(limits.WORKER_MESSAGE_MAX)
        for packet in packets_:
            theirs.send(packet)
            back |= dict(line.receive(1))
    return back


def test_answers_to_several_are_told_apart_by_their_numbers() -> None:
    failed = packets.ANSWER.pack(packets.FAILED, 0, NUMBER + 1, 0, 1)
    alone = packets.ANSWER.pack(packets.ALONE, 0, NUMBER + 2, 0, 1)
    padded = (piece + bytes(-len(piece) % 64) for piece in (failed, alone, answer()))
    back = told_together(b"".join(padded), runs=3)
    assert back[NUMBER]["y"].tolist() == [0, 1, 2, 3]
    assert isinstance(back[NUMBER + 1], RunError)
    assert back[NUMBER + 2] is None


@pytest.mark.parametrize("lie", sorted(LIES.keys() - {"another run"}))
def test_c5_a_worker_that_lies_of_one_of_several_is_not_believed(lie: str) -> None:
    good = answer()
    with pytest.raises(WorkerLostError):
        told_together(good + LIES[lie])


# -- one run that no thread of its own waits for ---------------------------------------------------


def told_later(*packets_: bytes, x: Any = X) -> dict[int, Any]:  # noqa: ANN401 - tensors
    """What the enclave makes of a worker that answers one question with ``packets_``, in time."""
    ours, theirs = packets.pair()
    line = Line(ours, limits.MIB, Pace())
    back: dict[int, Any] = {}
    memory = packets.packet_memory()
    with ours, theirs:
        line.begin_one(NUMBER, pack(x, ["y"]), 0.0)
        for packet in packets_:
            _, descriptor = packets.receive(theirs, memory)
            if descriptor is not None:
                os.close(descriptor)
            theirs.send(packet)
            back |= dict(line.receive(1))
        assert dict(line.receive(0)) == {}
    return back


def test_an_answer_to_one_may_lie_in_shared_memory() -> None:
    large = {"x": np.zeros(limits.WORKER_INLINE_MAX, np.int64)}
    assert told_later(answer(), x=large)[NUMBER]["y"].tolist() == [0, 1, 2, 3]
    shared = answer(packets.DONE_SHARED, total=64)
    back = told_later(answer(packets.NEEDS_ROOM, total=100_000), shared)
    assert back[NUMBER]["y"].tolist() == [0, 0, 0, 0]  # as nobody wrote to it
    (failed,) = told_later(answer(packets.FAILED)).values()
    assert isinstance(failed, RunError)
    assert failed.__traceback__ is None  # which keeps whoever received it alive


@pytest.mark.parametrize("lie", LIES)
def test_c5_a_worker_that_lies_of_one_is_not_believed(lie: str) -> None:
    with pytest.raises(WorkerLostError):
        told_later(LIES[lie])


def test_c5_a_worker_that_asks_for_room_twice_for_one_is_ended() -> None:
    asks = answer(packets.NEEDS_ROOM, total=100_000)
    with pytest.raises(WorkerLostError):
        told_later(asks, asks)


@pytest.mark.parametrize("number", [NUMBER + 2, 0, 1 << 63])
def test_c5_an_answer_to_a_run_that_is_not_under_way_ends_the_worker(number: int) -> None:
    """Nor may one answer be given twice, or to other outputs than were asked for."""
    killed: list[str] = []

    class Fake:
        def kill(self) -> None:
            killed.append("killed")

    for wanted, packet in (
        ("y", answer(number=number)),
        ("y", answer() + answer()),
        ("z", answer()),
    ):
        ours, theirs = packets.pair()
        runs = [Run(None, X, [wanted], 0.0)] * 2  # type: ignore[arg-type]
        ended: list[bool] = []
        numbers = {NUMBER: 0, NUMBER + 1: 1}
        line = Line(ours, limits.MIB, Pace())
        pipeline = Pipeline(Fake(), line, runs, numbers, ended.append)  # type: ignore[arg-type]
        with ours, theirs:
            theirs.send(packet)
            back = dict(pipeline.receive(1))
        assert Left.LOST in back.values()
        assert ended == [True]
    assert killed == ["killed"] * 3


@given(packet=st.binary(min_size=1, max_size=300), head=st.booleans())
def test_c5_no_bytes_do_more_than_end_the_worker(packet: bytes, head: bool) -> None:
    said = packets.ANSWER.pack(0, len(packet) // 2, NUMBER, 0, 0) + packet if head else packet
    try:
        told(said)
    except (WorkerLostError, RunError):
        return


def test_refusals_have_numbers_and_no_texts_of_a_workers_own() -> None:
    assert (
        RefusedError.numbered(7, 63).detail == "the model: input 63 differs from the declared one"
    )
    with pytest.raises(IndexError):
        RefusedError.numbered(1000, 0)


# -- memory that two processes map -----------------------------------------------------------------


def refused(attempt: Callable[[], object]) -> None:
    with pytest.raises((PermissionError, OSError)):
        attempt()


def test_c5_contents_never_change() -> None:
    contents = ModelContents.of({"model": b"weights", "more": memoryview(b" and more")})
    descriptor = contents.descriptor
    for attempt in (
        lambda: os.pwrite(descriptor, b"x", 0),
        lambda: os.ftruncate(descriptor, 0),
        lambda: os.ftruncate(descriptor, 999),
        lambda: mmap.mmap(descriptor, 7, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE),
    ):
        refused(attempt)
    assert os.pread(descriptor, 99, 0) == b"weights" + bytes(57) + b" and more"


@pytest.mark.parametrize("answers", [True, False])
def test_c5_shared_memory_keeps_its_size_and_only_answers_are_written(answers: bool) -> None:
    room, descriptor = shared.make_room(10_000, answers=answers)
    try:
        assert room.size % mmap.PAGESIZE == 0
        refused(lambda: os.ftruncate(descriptor, 0))
        refused(lambda: os.ftruncate(descriptor, 1 << 20))
        if answers:
            assert room.memory.readonly
            shared.Room(descriptor, room.size, writable=True).memory[0] = 1
            assert room.memory[0] == 1
        else:
            room.memory[0] = 1
            assert shared.Room(descriptor, room.size, writable=False).memory[0] == 1
            refused(lambda: shared.Room(descriptor, room.size, writable=True))
            refused(lambda: os.pwrite(descriptor, b"x", 0))
    finally:
        os.close(descriptor)


def test_what_is_lent_is_found_by_its_address_and_given_back() -> None:
    files = MemoryFiles()
    memory = shared.lendable_memory(8 * limits.MIB)
    array = np.frombuffer(memory, np.float32, 1 << 20, 16)
    lent = shared.loan(array)
    assert lent is not None
    assert lent.start == 16
    assert shared.loan(array[::2]) is None  # not as it lies
    assert shared.loan(np.frombuffer(memory, np.float32, 1 << 20, 17)) is None  # not aligned
    assert shared.loan(np.zeros(1 << 21, np.float32)) is None  # not there
    assert not isinstance(shared.lendable_memory(100).obj, np.ndarray)  # small: memory like any
    refused(lambda: shared.Room(lent.descriptor, lent.size, writable=True))
    del memory
    assert shared.loan(array) == lent
    del array
    assert len(files) == 0
    assert not shared._lendable


# -- descriptions ----------------------------------------------------------------------------------


def test_tensors_lie_where_the_description_says() -> None:
    tensors = {
        "a": np.arange(5, dtype=np.int8),
        "b": np.array(["grüße", ""], np.object_),
        "c": np.arange(12, dtype=np.float64).reshape(3, 4)[:, ::2],
        "d": np.empty((0, 7), np.float16),
    }
    packed = pack(tensors, ["y"])
    layout = read_description(packed.description)
    assert layout == packed.layout
    assert layout.wanted == ("y",)
    sent = b"".join(map(bytes, scatter(packed)))
    placed = bytearray(len(sent))
    place(packed, memoryview(placed))
    assert len(sent) == layout.total == aligned(layout.total)
    for memory in (sent, bytes(placed)):
        for name, array in take(layout, memoryview(memory), 0, copy=True).items():
            assert array.tolist() == tensors[name].tolist()
            assert array.dtype == tensors[name].dtype


def test_more_names_than_a_message_takes_are_refused() -> None:
    with pytest.raises(PacketError):
        pack({"x" * limits.WORKER_DESCRIPTION_MAX: np.zeros(1, np.float32)})
