"""Many models in one enclave: loaded, replaced, unloaded, within a budget (SPEC 8.8)."""

from __future__ import annotations

import contextlib
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from casemate import cbor
from casemate.errors import CasemateError, Code, FrameError
from casemate.frames import FrameType
from casemate.limits import MIB
from casemate.sealed_model import Serving
from casemate.tensors import TensorSpec
from casemate_enclave.memory import cost_of_loading, cost_of_serving
from tests.support import onnx_bytes
from tests.support.attacker import eventually
from tests.support.enclave_bench import ANSWER, LIMITS, Bench, rows_of
from tests.support.patience import patiently

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

WIDE = (TensorSpec("y", "FP32", (0, 3)),)
ROW = (TensorSpec("x", "FP32", (0, 1)),), (TensorSpec("y", "FP32", (0, 0)),)


@pytest.fixture
def bench() -> Iterator[Bench]:
    with Bench() as running:
        yield running.configure()


def refusal(call: Callable[[], object]) -> FrameError:
    with pytest.raises(FrameError) as refused:
        call()
    return refused.value


def stated(bench: Bench) -> dict[str, Any]:
    return dict(cbor.decode(bench.ask(FrameType.MODELS)))


def named(bench: Bench) -> list[tuple[str, int]]:
    return [(model["name"], model["version"]) for model in stated(bench)["models"]]


def log_of(bench: Bench) -> list[tuple[str, int]]:
    return [(entry.op, entry.version) for entry in bench.verify(b"n" * 16).log]


def test_a_version_takes_the_place_of_another_in_one_step(bench: Bench) -> None:
    bench.serve()
    session = bench.session()
    answer = bench.load(bench.sealed(version=3)[0], replaces=2)
    assert (answer["name"], answer["version"]) == ("linear", 3)
    assert named(bench) == [("linear", 3)]
    assert log_of(bench) == [("load", 2), ("unload", 2), ("load", 3)]
    assert bench.infer(session).trailer.version == 3
    assert bench.infer(session, version=2).trailer.status is Code.UNKNOWN_MODEL


def test_a_version_can_be_replaced_by_other_contents(bench: Bench) -> None:
    old = bench.serve()
    session = bench.session()
    other = onnx_bytes.linear() + onnx_bytes.field(2, "another producer")
    new = bench.load(bench.sealed(files={"m.onnx": other})[0], replaces=2)
    assert new["digest"] != old.digest
    assert log_of(bench) == [("load", 2), ("unload", 2), ("load", 2)]
    pinned = bench.infer(session, version=2, digest=old.digest)
    assert pinned.trailer.status is Code.DIGEST_MISMATCH
    assert rows_of(bench.infer(session)) == ANSWER


def test_nothing_is_replaced_by_what_cannot_be_served(bench: Bench) -> None:
    bench.serve()
    bench.load(bench.sealed(version=4)[0])
    before = bench.ask(FrameType.MODELS), log_of(bench)
    sealed, _ = bench.sealed(version=3, files={"m.onnx": b"garbage"})
    assert refusal(lambda: bench.load(sealed, replaces=2)).code is Code.MODEL_REJECTED
    good, _ = bench.sealed(version=3)
    assert refusal(lambda: bench.load(good, replaces=9)).code is Code.UNKNOWN_MODEL
    loaded, _ = bench.sealed(version=4)
    assert refusal(lambda: bench.load(loaded, replaces=2)).code is Code.MODEL_REJECTED
    other, _ = bench.sealed(name="endless", version=3)
    assert refusal(lambda: bench.load(other, replaces=2)).code is Code.UNKNOWN_MODEL
    assert (bench.ask(FrameType.MODELS), log_of(bench)) == before


def test_a_full_enclave_can_still_replace() -> None:
    with Bench(limits=replace(LIMITS, models=1)) as bench:
        bench.serve()
        sealed, _ = bench.sealed(version=3)
        assert refusal(lambda: bench.load(sealed)).code is Code.OVERLOADED
        bench.load(sealed, replaces=2)
        assert named(bench) == [("linear", 3)]


def test_what_is_loaded_is_stated_and_nothing_of_its_use(bench: Bench) -> None:
    serving = Serving(0, batch_rows=8, run_ms=500)
    header = bench.serve(serving=serving)
    before = stated(bench)
    assert before["most"] == LIMITS.memory_bytes
    assert before["held"] == cost_of_serving(header.total_bytes)
    assert before["models"] == [
        {
            "name": "linear",
            "version": 2,
            "digest": header.digest,
            "publisher": header.publisher,
            "bytes": before["held"],
            "serving": serving.as_map(),
        }
    ]
    session = bench.session()
    for _ in range(3):
        bench.infer(session)
    assert stated(bench) == before


# Memory


def test_a_model_beyond_the_budget_is_refused_with_the_numbers() -> None:
    budget = cost_of_loading(0) + cost_of_serving(0) + 4000
    with Bench(limits=replace(LIMITS, memory_bytes=budget)) as bench:
        bench.serve()  # some 200 bytes of contents
        asked = bench.kms.calls
        big = onnx_bytes.linear() + onnx_bytes.field(6, "x" * 4000)
        sealed, header = bench.sealed(version=3, files={"m.onnx": big})
        refused = refusal(lambda: bench.load(sealed))
        assert refused.code is Code.OVERLOADED
        need = -(-cost_of_loading(header.total_bytes) // MIB)
        assert refused.detail.startswith(f"the model needs {need} MiB of memory and ")
        assert bench.kms.calls == asked  # no key was asked for
        bench.load(bench.sealed(version=3)[0])  # a small one still fits
        assert len(named(bench)) == 2


def test_memory_is_held_until_the_last_run_has_ended() -> None:
    scalar = {"inputs": (TensorSpec("x", "FP32", ()),), "outputs": (TensorSpec("y", "FP32", ()),)}
    files = {"m.onnx": onnx_bytes.endless()}

    def held(run_s: float) -> bool:
        """Unload it while it runs so long; whether its memory was still held."""
        with Bench() as bench, ThreadPoolExecutor(1) as pool:
            header = bench.serve(name="endless", version=1, files=files, **scalar)
            before = bench.counters()["requests"]
            one, budget = np.ones((), np.float32), round(run_s * 1000)
            run = pool.submit(bench.infer, bench.session(), one, model="endless", budget=budget)
            assert eventually(lambda: bench.counters()["requests"] > before)
            time.sleep(run_s / 3)  # from when it is counted to when it runs
            bench.ask(FrameType.UNLOAD, cbor.encode({"name": "endless", "version": 1}))
            assert named(bench) == []
            left = stated(bench)["held"]
            assert left in {0, cost_of_serving(header.total_bytes)}
            with contextlib.suppress(CasemateError):
                assert run.result().trailer.status is Code.DEADLINE_EXCEEDED
            assert eventually(lambda: stated(bench)["held"] == 0)
            return bool(left)

    assert patiently(held, bool, (1.5, 10, 30))


def test_a_refused_load_holds_nothing(bench: Bench) -> None:
    sealed, _ = bench.sealed(files={"m.onnx": b"garbage"})
    assert refusal(lambda: bench.load(sealed)).code is Code.MODEL_REJECTED
    assert stated(bench)["held"] == 0


def test_c3_an_input_that_needs_too_much_memory_fails_and_others_go_on() -> None:
    with Bench(limits=replace(LIMITS, run_bytes=32 * MIB)) as bench:
        bench.serve()
        inputs, outputs = ROW
        files = {"m.onnx": onnx_bytes.pairs()}
        bench.serve(name="failing", version=1, files=files, inputs=inputs, outputs=outputs)
        session = bench.session()
        ask: dict[str, Any] = {"model": "failing", "budget": 20_000}
        assert rows_of(bench.infer(session, np.ones((1000, 1), np.float32), **ask)) == [[1e6]]
        refused = bench.infer(session, np.ones((20_000, 1), np.float32), **ask).trailer
        assert refused.status is Code.MODEL_FAILED
        assert refused.detail == ("the model needs more memory for these inputs than runs may take")
        assert rows_of(bench.infer(session)) == ANSWER
        assert rows_of(bench.infer(session, np.ones((1000, 1), np.float32), **ask)) == [[1e6]]


# Joined runs


def test_c2_requests_of_several_callers_run_together_and_never_mix(bench: Bench) -> None:
    bench.serve(serving=Serving(0, batch_rows=64, concurrency=1))
    sessions = [bench.session() for _ in range(8)]
    wrong: list[object] = []

    def ask(number: int) -> None:
        for turn in range(40):
            x = np.full((1 + (number + turn) % 5, 3), number * 100 + turn, np.float32)
            answer = rows_of(bench.infer(sessions[number], x))
            expected = (x @ np.array([[1, 2], [3, 4], [5, 6]], np.float32)).tolist()
            if answer != expected:
                wrong.append((number, turn))

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_c2_a_model_that_mixes_rows_is_not_joined(bench: Bench) -> None:
    files = {"m.onnx": onnx_bytes.mixing()}
    joined, _ = bench.sealed(files=files, outputs=WIDE, serving=Serving(0, batch_rows=8))
    refused = refusal(lambda: bench.load(joined))
    assert refused.code is Code.MODEL_REJECTED
    assert "rows beside it" in refused.detail
    bench.load(bench.sealed(files=files, outputs=WIDE)[0])  # alone it may do as it likes


def test_a_model_of_a_fixed_number_of_rows_is_not_joined(bench: Bench) -> None:
    x = onnx_bytes.value_info("x", onnx_bytes.FLOAT, (2, 3))
    fixed = onnx_bytes.model(
        onnx_bytes.graph(
            (onnx_bytes.MATMUL,),
            (x,),
            (onnx_bytes.Y,),
            (onnx_bytes.tensor("w", onnx_bytes.FLOAT, (3, 2), onnx_bytes.floats(*range(6))),),
        )
    )
    sealed, _ = bench.sealed(files={"m.onnx": fixed}, serving=Serving(0, batch_rows=8))
    refused = refusal(lambda: bench.load(sealed))
    assert (refused.code, "fixed length" in refused.detail) == (Code.MODEL_REJECTED, True)


# The runtime


def test_a_provider_that_the_wheel_lacks_is_refused_and_changes_nothing() -> None:
    with Bench(providers=("CUDAExecutionProvider", "CPUExecutionProvider")) as bench:
        refused = refusal(bench.configure)
        assert refused.code is Code.MALFORMED
        assert refused.detail == (
            "providers: this enclave's onnxruntime has no CUDAExecutionProvider"
        )
        assert bench.health()["state"] == "unconfigured"
        bench.providers = ("CPUExecutionProvider",)
        bench.serve()
        assert rows_of(bench.infer(bench.session())) == ANSWER
