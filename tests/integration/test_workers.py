"""Models in processes of their own: what ends one ends nothing else (THREATS C5, SPEC 8.10)."""

from __future__ import annotations

import contextlib
import gc
import io
import json
import operator
import os
import signal
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pytest

from casemate import limits
from casemate.errors import Code, ModelError, RequestError
from casemate.sealed_model import ModelContents
from casemate.tensors import NUMERIC
from casemate_enclave.cancellation import Cancellation
from casemate_enclave.events import Counter, Journal
from tests.support import onnx_bytes as onnx
from tests.support import workers
from tests.support.own_process import in_own_process
from tests.support.patience import patiently
from tests.support.workers import header, processes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from casemate_enclave.runtime import LastingModel, Tensors
    from casemate_enclave.workers.runtime import WorkerRuntime

pytestmark = pytest.mark.integration

QUOTIENT = header({"x": ("INT32", (0,)), "d": ("INT32", (0,))}, {"y": ("INT32", (0,))})
LINEAR = header({"x": ("FP32", (0, 3))}, {"y": ("FP32", (0, 2))})
BOXES = header({"b": ("FP32", (1, 0, 4)), "s": ("FP32", (1, 1, 0))}, {"y": ("INT64", (0, 3))})
ROWS = np.array([[1, 1, 1], [1, 0, 0]], np.float32)
TRAP = signal.SIGFPE


@pytest.fixture
def journal() -> Journal:
    return Journal(io.StringIO())


@pytest.fixture
def runtime(journal: Journal) -> WorkerRuntime:
    return workers.runtime(journal)


@pytest.fixture(autouse=True)
def leaves_nothing() -> Iterator[None]:
    """Every test gives back all descriptors and processes that it took."""
    workers.spawner()
    gc.collect()
    held, alive = descriptors(), len(processes())
    yield
    gc.collect()
    eventually(lambda: descriptors() <= held and len(processes()) <= alive)


def descriptors() -> int:
    """How many memory files and connections to workers this process has.

    No other kinds: what earlier tests left in it opens and closes its own.
    """
    sockets = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()[1:]]
    packets = {f"socket:[{fields[6]}]" for fields in sockets if fields[4] == "0005"}
    count = 0
    for descriptor in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            name = str(descriptor.readlink())
            count += name.startswith("/memfd:") or name in packets
    return count


def eventually(holds: Callable[[], bool], patience_s: float = 60.0) -> None:
    deadline = time.monotonic() + patience_s
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def events(journal: Journal) -> list[dict[str, Any]]:
    stream = journal._stream
    assert isinstance(stream, io.StringIO)
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def soon(seconds: float = 90) -> float:
    return time.monotonic() + seconds


def integers(*values: int) -> np.ndarray[Any, Any]:
    return np.array(values, np.int32)


def quotient(model: LastingModel, x: int, d: int, seconds: float = 90) -> list[int]:
    given = {"x": integers(x), "d": integers(d)}
    return list(model.run(given, ["y"], soon(seconds))["y"])


def crash(model: LastingModel) -> RequestError:
    """The quotient that has no place in 32 bits: the processor traps inside onnxruntime."""
    with pytest.raises(RequestError) as refusal:
        quotient(model, -(2**31), -1)
    return refusal.value


def boxes(count: int) -> Tensors:
    corners = np.zeros((1, count, 4), np.float32)
    corners[0, :, 0] = 2 * np.arange(count)
    corners[0, :, 2] = corners[0, :, 0] + 1
    corners[0, :, 3] = 1
    return {"b": corners, "s": np.ones((1, 1, count), np.float32)}


class Load:
    """Asks a model from several threads; every call must be answered, and rightly."""

    def __init__(self, ask: Callable[[], object], expected: object, threads: int = 3) -> None:
        self._ask = ask
        self._expected = expected
        self._stopped = threading.Event()
        self.answered = 0
        self.failures: list[BaseException] = []
        self._threads = [threading.Thread(target=self._work) for _ in range(threads)]

    def _work(self) -> None:
        while not self._stopped.is_set():
            try:
                assert self._ask() == self._expected
                self.answered += 1
            except BaseException as error:  # noqa: BLE001 - shown by the assertion at the end
                self.failures.append(error)
                return

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join(60)
        assert not self.failures
        assert self.answered


def linear(model: LastingModel) -> Callable[[], object]:
    def ask() -> object:
        return model.run({"x": ROWS}, ["y"], soon())["y"].tolist()

    return ask


SUMS = [[9, 12], [1, 2]]


# -- an input that crashes onnxruntime -------------------------------------------------------------


def test_c5_an_input_that_crashes_its_model_fails_alone_and_no_other_model_loses_a_request(
    runtime: WorkerRuntime, journal: Journal
) -> None:
    model, other = (
        runtime.load(ModelContents.of({"m": onnx.dividing()}), QUOTIENT),
        runtime.load(ModelContents.of({"m": onnx.linear()}), LINEAR),
    )
    with Load(linear(other), SUMS):
        error = crash(model)
        assert quotient(model, 6, 3) == [2]
    assert (error.code, error.detail) == (
        Code.MODEL_FAILED,
        "the model's process ended on these inputs, twice",
    )
    ends = [event for event in events(journal) if event["event"] == "WORKER_ENDED"]
    assert ends == [{"event": "WORKER_ENDED", "count": TRAP}] * 2
    assert journal.counters()[Counter.WORKERS_ENDED] == 2


def test_c5_requests_beside_a_crashing_one_are_answered(runtime: WorkerRuntime) -> None:
    model = runtime.load(ModelContents.of({"m": onnx.dividing()}), QUOTIENT)
    with Load(lambda: quotient(model, 6, 3), [2]) as load:
        for _ in range(3):
            before = load.answered
            assert crash(model).code is Code.MODEL_FAILED
            eventually(lambda before=before: load.answered > before)  # type: ignore[misc]
    assert model.ready


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT])
def test_c5_a_worker_that_is_killed_under_load_loses_no_request(
    runtime: WorkerRuntime, number: signal.Signals
) -> None:
    former = processes()
    model = runtime.load(ModelContents.of({"m": onnx.linear()}), LINEAR)
    with Load(linear(model), SUMS) as load:
        for _ in range(2):
            [worker] = processes() - former
            os.kill(worker, number)
            eventually(lambda worker=worker: processes() - former - {worker} != set())  # type: ignore[misc]
            before = load.answered + 20  # whatever was to be repeated has been
            eventually(lambda before=before: load.answered > before)  # type: ignore[misc]


def test_c5_an_idle_worker_that_ends_is_started_again_before_anybody_asks(
    runtime: WorkerRuntime,
) -> None:
    former = processes()
    model = runtime.load(ModelContents.of({"m": onnx.linear()}), LINEAR)
    [worker] = processes() - former
    os.kill(worker, signal.SIGKILL)
    eventually(lambda: len(processes() - former - {worker}) == 1)
    assert linear(model)() == SUMS


def test_c5_a_model_that_crashes_while_it_loads_is_rejected(
    runtime: WorkerRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Constant folding runs the same instruction while onnxruntime loads the model."""
    with pytest.raises(ModelError) as refusal:
        runtime.load(ModelContents.of({"m": onnx.dividing_constants()}), LINEAR)
    assert refusal.value.code is Code.MODEL_REJECTED
    assert refusal.value.detail == "the model: the process that loads it ended"


# -- bounds ----------------------------------------------------------------------------------------


def test_c5_a_model_that_ends_its_worker_too_often_is_out_of_service_and_returns(
    runtime: WorkerRuntime, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "WORKER_ENDS_MAX", 4)
    other = runtime.load(ModelContents.of({"m": onnx.linear()}), LINEAR)
    former = processes()
    model = runtime.load(ModelContents.of({"m": onnx.dividing()}), QUOTIENT)
    killed: set[int] = set()
    for _ in range(4):
        eventually(lambda: bool(processes() - former - killed))
        [worker] = processes() - former - killed
        os.kill(worker, signal.SIGKILL)
        killed.add(worker)
    eventually(lambda: not model.ready)
    before = processes()
    with pytest.raises(RequestError) as refusal:
        quotient(model, 6, 3)
    assert refusal.value.code is Code.UNAVAILABLE
    assert processes() <= before  # nothing is started for it
    assert events(journal).count({"event": "MODEL_OUT_OF_SERVICE"}) == 1
    assert linear(other)() == SUMS
    monkeypatch.setattr(limits, "WORKER_WINDOW_S", 0.01)  # as if the window had passed
    eventually(lambda: model.ready)
    assert quotient(model, 6, 3) == [2]


def asker(owner: bytes) -> Cancellation:
    cancellation = Cancellation()
    cancellation.owner = owner
    return cancellation


def test_c5_an_asker_whose_inputs_crash_a_model_loses_it_alone(
    runtime: WorkerRuntime, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "WORKER_BACKOFF_MAX_S", 0.0)
    model = runtime.load(ModelContents.of({"m": onnx.dividing()}), QUOTIENT)
    trap, fine = ({"x": integers(x), "d": integers(d)} for x, d in ((-(2**31), -1), (6, 3)))

    def ask(owner: bytes, given: Tensors) -> Code:
        try:
            model.admit(owner)
            assert model.run(given, ["y"], soon(), asker(owner))["y"].tolist() == [2]
        except RequestError as error:
            return error.code
        return Code.OK

    crashes = [ask(b"me", trap) for _ in range(limits.WORKER_BLAME_MAX)]
    assert crashes == [Code.MODEL_FAILED] * limits.WORKER_BLAME_MAX
    assert ask(b"me", trap) == ask(b"me", fine) == Code.UNAVAILABLE
    assert ask(b"you", fine) is Code.OK
    # More ends than put a model out of service: each was somebody's.
    for number in range(limits.WORKER_ENDS_MAX):
        assert ask(b"%d" % number, trap) is Code.MODEL_FAILED
        assert ask(b"you", fine) is Code.OK
    assert model.ready
    assert {"event": "MODEL_OUT_OF_SERVICE"} not in events(journal)
    monkeypatch.setattr(limits, "WORKER_WINDOW_S", 0.01)  # as if the window had passed
    assert ask(b"me", fine) is Code.OK


def test_c5_endless_runs_put_no_model_out_of_service(
    runtime: WorkerRuntime, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each ends its worker, one second late; nobody else's runs are refused for it."""
    monkeypatch.setattr(limits, "WORKER_ENDS_MAX", 2)
    monkeypatch.setattr(limits, "WORKER_GRACE_S", 0.2)
    monkeypatch.setattr(limits, "WORKER_BACKOFF_MAX_S", 0.0)
    model = runtime.load(ModelContents.of({"m": onnx.selecting()}), BOXES)

    def overdue(seconds: float) -> int:
        """How many workers have ended, in all, for runs that took longer than they may."""
        with pytest.raises(RequestError) as refusal:
            model.run(boxes(2_000_000), ["y"], soon(seconds), asker(b"me"))
        assert refusal.value.code is Code.DEADLINE_EXCEEDED
        return journal.counters()[Counter.WORKERS_ENDED]

    for ended in range(1, 4):
        assert patiently(overdue, ended.__eq__) == ended
        assert model.run(boxes(10), ["y"], soon(), asker(b"me"))["y"].shape == (10, 3)
    assert journal.counters()[Counter.WORKERS_ENDED] == 3
    assert model.ready


def test_c5_a_run_that_no_deadline_stops_ends_with_its_process(runtime: WorkerRuntime) -> None:
    model = runtime.load(ModelContents.of({"m": onnx.selecting()}), BOXES)
    small = boxes(10)

    def chosen() -> object:
        return model.run(small, ["y"], soon())["y"].tolist()

    begun = time.monotonic()
    with Load(chosen, chosen(), threads=1), pytest.raises(RequestError) as refusal:
        model.run(boxes(2_000_000), ["y"], soon(0.5))
    assert refusal.value.code is Code.DEADLINE_EXCEEDED
    assert time.monotonic() - begun < 0.5 + limits.WORKER_GRACE_S + 60


def test_a_run_that_nobody_waits_for_ends_and_its_worker_stays(
    runtime: WorkerRuntime, journal: Journal
) -> None:
    scalar = header({"x": ("FP32", ())}, {"y": ("FP32", ())})
    model = runtime.load(ModelContents.of({"m": onnx.endless()}), scalar)
    cancellation = Cancellation()
    threading.Timer(0.3, cancellation.cancel).start()
    begun = time.monotonic()
    with pytest.raises(RequestError) as refusal:
        model.run({"x": np.zeros((), np.float32)}, ["y"], soon(600), cancellation)
    assert refusal.value.code is Code.DEADLINE_EXCEEDED
    assert time.monotonic() - begun < 60
    assert not events(journal)


def test_a_run_that_needs_too_much_memory_fails_and_its_worker_stays(
    runtime: WorkerRuntime, journal: Journal
) -> None:
    model = runtime.load(
        ModelContents.of({"m": onnx.zeros()}), header({"n": ("INT64", (1,))}, {"y": ("FP32", (0,))})
    )
    for count in (1 << 28, 1 << 50):
        with pytest.raises(RequestError) as refusal:
            model.run({"n": np.array([count])}, ["y"], soon())
        assert refusal.value.code is Code.MODEL_FAILED
    assert model.run({"n": np.array([3])}, ["y"], soon())["y"].tolist() == [0, 0, 0]
    assert not events(journal)


@pytest.mark.slow
def test_c5_a_hundred_crashes_leave_memory_descriptors_and_processes_as_they_were() -> None:
    grown, before, after = in_own_process(hundred_crashes)
    assert grown < 4 * limits.MIB
    assert all(now <= then for now, then in zip(after, before, strict=True)), (before, after)


def hundred_crashes() -> tuple[int, list[int], list[int]]:
    """Return the bytes by which memory grew, and what is held before and after."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(limits, "WORKER_ENDS_MAX", 1000)
        patch.setattr(limits, "WORKER_BACKOFF_MAX_S", 0.0)
        model = workers.runtime().load(ModelContents.of({"m": onnx.dividing()}), QUOTIENT)
        crash_often(model, 5)
        memory, before = resident(), held()
        crash_often(model, 50)  # each ends two workers
        more = resident()
        with contextlib.suppress(AssertionError):  # who started the last worker may still be ending
            eventually(lambda: all(map(operator.le, held(), before)), 20)
        return more - memory, before, held()


def crash_often(model: LastingModel, times: int) -> None:
    """It has its worker again at the end."""
    for _ in range(times):
        crash(model)
    assert quotient(model, 6, 3) == [2]
    eventually(lambda: len(processes()) == 1)


def held() -> list[int]:
    return [descriptors(), len(processes()), threading.active_count()]


def resident() -> int:
    gc.collect()
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) * 1024


# -- what goes over and comes back -----------------------------------------------------------------


@pytest.mark.parametrize("rows", [1, 0, 3, 1000, 300_000], ids=str)
@pytest.mark.parametrize("datatype", ["BOOL", "INT8", "UINT64", "FP16", "BF16", "FP32", "BYTES"])
def test_tensors_of_any_type_and_size_come_back_as_they_went(
    runtime: WorkerRuntime, datatype: str, rows: int
) -> None:
    if datatype == "BYTES":
        rows = min(rows, 1000)
        x = np.array([["", "grüße"]] * rows, np.object_).reshape(rows, 2)
    else:
        raw = np.random.default_rng(1).integers(
            0, 2, rows * 2 * NUMERIC[datatype].itemsize, np.uint8
        )
        x = raw.view(NUMERIC[datatype]).reshape(rows, 2)
    ends = {"x": (datatype, (0, 2))}, {"y": (datatype, (0, 2))}
    model = runtime.load(ModelContents.of({"m": onnx.identity(datatype)}), header(*ends))
    for _ in range(3):
        y = model.run({"x": x}, ["y"], soon())["y"]
        assert (y.shape, y.dtype) == (x.shape, x.dtype)
        assert same(y, x)


def same(one: np.ndarray[Any, Any], other: np.ndarray[Any, Any]) -> bool:
    """Whether every element is the same: every bit of one that is a number."""
    if one.dtype == np.object_:
        return bool(one.tolist() == other.tolist())
    return one.tobytes() == other.tobytes()


def test_many_runs_at_a_time_keep_their_answers_apart(runtime: WorkerRuntime) -> None:
    model = runtime.load(
        ModelContents.of({"m": onnx.identity("FP32")}),
        header({"x": ("FP32", (0, 2))}, {"y": ("FP32", (0, 2))}),
    )

    def ask(number: int) -> None:
        for rows in (1, 60_000, 1, 5000):
            x = np.full((rows, 2), number, np.float32)
            assert np.array_equal(model.run({"x": x}, ["y"], soon())["y"], x)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    failed: list[object] = []
    hook, threading.excepthook = threading.excepthook, failed.append
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    finally:
        threading.excepthook = hook
    assert not failed


def test_a_model_is_rejected_for_its_reason(runtime: WorkerRuntime) -> None:
    for content, declared, reason in [
        (b"garbage", LINEAR, "ONNX model: unknown wire type"),
        (onnx.linear(), QUOTIENT, "the model: it has not every declared input"),
        (
            onnx.linear(),
            header({"x": ("FP64", (0, 3))}, {"y": ("FP32", (0, 2))}),
            "the model: input 0 differs from the declared one",
        ),
    ]:
        with pytest.raises(ModelError) as refusal:
            runtime.load(ModelContents.of({"m": content}), declared)
        assert (refusal.value.code, refusal.value.detail) == (Code.MODEL_REJECTED, reason)


def test_external_data_comes_along(runtime: WorkerRuntime) -> None:
    outside = onnx.external_tensor("w", (3, 2), location="d/w", offset="4", length="24")
    files = {"m": onnx.linear(outside), "d/w": bytes(4) + onnx.floats(1, 2, 3, 4, 5, 6)}
    former = processes()
    model = runtime.load(ModelContents.of(files), LINEAR)
    [worker] = processes() - former
    os.kill(worker, signal.SIGKILL)
    assert linear(model)() == SUMS  # and outlive the worker


def test_a_model_that_is_dropped_while_it_runs_runs_to_the_end(runtime: WorkerRuntime) -> None:
    former = processes()
    model = runtime.load(ModelContents.of({"m": onnx.linear()}), LINEAR)
    ask = linear(model)
    del model
    assert ask() == SUMS
    del ask
    eventually(lambda: processes() <= former)
