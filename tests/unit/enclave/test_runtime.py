"""onnxruntime behind the seam: what it is given, what it says (THREATS C1, C5, M3)."""

import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from casemate.errors import Code, ModelError, RequestError
from casemate.sealed_model import ModelContents, ModelEntry, ModelHeader
from casemate.tensors import TensorSpec
from casemate_enclave.runtime import _SMALLEST, LoadedModel, OnnxRuntime, warm_up
from tests.support import onnx_bytes as onnx
from tests.support.patience import patiently

X = TensorSpec("x", "FP32", (0, 3))
Y = TensorSpec("y", "FP32", (0, 2))
SCALAR = (TensorSpec("x", "FP32", ()),), (TensorSpec("y", "FP32", ()),)
HEADER = ModelHeader(
    file_id=bytes(32),
    key_commitment=bytes(32),
    publisher=bytes(32),
    name="m",
    version=1,
    inputs=(X,),
    outputs=(Y,),
    answer_bucket=0,
    callers="any",
    runtime="onnx",
    kms_key="arn:aws:kms:eu-central-1:111122223333:key/00000000-0000-4000-8000-000000000000",
    wrapped_key=b"w",
    entries=(ModelEntry("m", 1, bytes(48)),),
)
RUN_BYTES = 64 << 20
ROWS = np.array([[1, 1, 1], [1, 0, 0]], np.float32)
WEIGHTS = onnx.floats(1, 2, 3, 4, 5, 6)
SECRET = "5417.25"  # a value that must not be quoted


@pytest.fixture(scope="module")
def runtime() -> OnnxRuntime:
    return OnnxRuntime(("CPUExecutionProvider",), run_bytes=RUN_BYTES, threads=1)


def soon(seconds: float = 60) -> float:
    return time.monotonic() + seconds


def load(runtime: OnnxRuntime, content: bytes, **header: Any) -> LoadedModel:  # noqa: ANN401 - as replace takes them
    return runtime.load(ModelContents.of({"m.onnx": content}), replace(HEADER, **header))


def rejected(runtime: OnnxRuntime, files: Mapping[str, bytes], **header: Any) -> str:  # noqa: ANN401 - as above
    with pytest.raises(ModelError) as refusal:
        runtime.load(ModelContents.of(files), replace(HEADER, **header))
    assert refusal.value.code == Code.MODEL_REJECTED
    return refusal.value.detail


@pytest.mark.parametrize("location", [True, False])
def test_a_model_runs_where_it_lies_and_from_bytes(
    runtime: OnnxRuntime, monkeypatch: pytest.MonkeyPatch, *, location: bool
) -> None:
    assert ModelContents.of({"m.onnx": b"x"}).location
    if not location:  # as in the process form, whose /proc shows another process
        monkeypatch.setattr(ModelContents, "location", None)
    model = load(runtime, onnx.linear())
    assert model.run({"x": ROWS}, ["y"], soon())["y"].tolist() == [[9, 12], [1, 2]]


@pytest.mark.parametrize("shift", [1, 2, 3])
def test_inputs_need_not_be_aligned(runtime: OnnxRuntime, shift: int) -> None:
    rows = np.frombuffer(bytes(shift) + ROWS.tobytes(), np.float32, offset=shift).reshape(2, 3)
    assert not rows.flags.aligned

    outputs = load(runtime, onnx.linear()).run({"x": rows}, ["y"], soon())

    assert outputs["y"].tolist() == [[9, 12], [1, 2]]


@pytest.mark.parametrize(
    "location",
    [
        *("/etc/passwd", "etc/passwd", "../../etc/passwd", "w.bin/../../etc/passwd", ""),
        *("proc/self/environ", "m.onnx", "*/_ORT_MEM_ADDR_/*", "W.BIN", "./w.bin"),
    ],
)
def test_no_model_reads_outside_its_sealed_file(
    runtime: OnnxRuntime, location: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir("/")
    tensor = onnx.external_tensor("w", (3, 2), location=location, offset="0", length="24")
    files = {"m.onnx": onnx.linear(tensor), "w.bin": WEIGHTS}
    assert "outside" in rejected(runtime, files)
    assert "outside" in rejected(runtime, {"m.onnx": onnx.linear(tensor)})


def test_a_path_of_the_sealed_file_with_a_meaning_is_refused(runtime: OnnxRuntime) -> None:
    path = "*/_ORT_MEM_ADDR_/*"
    tensor = onnx.external_tensor("w", (3, 2), location=path, offset="4096", length="24")
    files = {"m.onnx": onnx.linear(tensor), path: WEIGHTS}
    assert "outside" in rejected(runtime, files)


def test_external_data_comes_from_the_sealed_file(runtime: OnnxRuntime) -> None:
    tensor = onnx.external_tensor("w", (3, 2), location="d/w.bin", offset="4", length="24")
    weights = bytearray(b"\0\0\0\0" + WEIGHTS)
    files: dict[str, Any] = {"m.onnx": onnx.linear(tensor), "d/w.bin": weights}
    model = runtime.load(ModelContents.of(files), HEADER)
    weights[:] = bytes(28)  # nothing refers to it any longer
    assert model.run({"x": ROWS}, ["y"], soon())["y"].tolist() == [[9, 12], [1, 2]]


@pytest.mark.parametrize(
    ("offset", "length"), [("8", "24"), ("0", "48"), ("99", "24"), ("x", "24")]
)
def test_external_data_past_the_end_is_refused(
    runtime: OnnxRuntime, offset: str, length: str
) -> None:
    tensor = onnx.external_tensor("w", (3, 2), location="w", offset=offset, length=length)
    rejected(runtime, {"m.onnx": onnx.linear(tensor), "w": WEIGHTS})


@pytest.mark.parametrize(
    "content",
    [
        b"garbage",
        b"",
        b"\x1c\0\0\0ORTM" + bytes(64),
        onnx.model(onnx.graph((onnx.node("MatMul", ("x", "y"), ("y",)),), (onnx.X,), (onnx.Y,))),
        onnx.model(
            onnx.graph((onnx.node("Own", ("x",), ("y",), domain="com.evil"),), (onnx.X,), (onnx.Y,))
        ),
    ],
    ids=["garbage", "empty", "flatbuffers", "cycle", "custom operator"],
)
def test_what_is_no_plain_onnx_model_is_rejected(
    runtime: OnnxRuntime, content: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    rejected(runtime, {"m.onnx": content})
    assert capfd.readouterr() == ("", "")


def test_onnxruntimes_own_format_is_rejected(
    runtime: OnnxRuntime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "model.ort")
    options.add_session_config_entry("session.save_model_format", "ORT")
    onnxruntime.InferenceSession(onnx.linear(), options, providers=["CPUExecutionProvider"])
    content = (tmp_path / "model.ort").read_bytes()
    rejected(runtime, {"m.onnx": content})
    # Were it to pass the scan, which reads protobuf, onnxruntime would still not take it.
    monkeypatch.setattr("casemate_enclave.runtime.external_locations", lambda _: set())
    assert "onnxruntime" in rejected(runtime, {"m.onnx": content})


@pytest.mark.parametrize(
    "header",
    [
        {"inputs": (replace(X, name="z"),)},
        {"inputs": (replace(X, datatype="FP64"),)},
        {"inputs": (replace(X, shape=(0, 4)),)},
        {"inputs": (replace(X, shape=(3,)),)},
        {"inputs": (X, replace(X, name="z"))},
        {"outputs": (replace(Y, name="z"),)},
        {"outputs": (replace(Y, datatype="INT64"),)},
        {"outputs": (replace(Y, shape=(0, 3)),)},
        {"outputs": (Y, replace(Y, name="w"))},
    ],
)
def test_a_header_that_misstates_the_model_is_rejected(
    runtime: OnnxRuntime, header: dict[str, object]
) -> None:
    rejected(runtime, {"m.onnx": onnx.linear()}, **header)


def test_an_input_that_the_header_leaves_out_is_rejected(runtime: OnnxRuntime) -> None:
    add = onnx.node("Add", ("x", "x2"), ("y",))
    x2 = onnx.value_info("x2", onnx.FLOAT, ("n", 3))
    y = onnx.value_info("y", onnx.FLOAT, ("n", 3))
    content = onnx.model(onnx.graph((add,), (onnx.X, x2), (y,)))
    rejected(runtime, {"m.onnx": content}, outputs=(replace(Y, shape=(0, 3)),))


def test_a_header_may_fix_what_the_model_leaves_open(runtime: OnnxRuntime) -> None:
    load(runtime, onnx.linear(), inputs=(replace(X, shape=(2, 3)),))
    load(runtime, onnx.linear(), inputs=(replace(X, shape=(0, 0)),))


def test_an_undeclared_output_is_not_computed(runtime: OnnxRuntime) -> None:
    z = onnx.value_info("z", onnx.FLOAT, ("n", 3))
    nodes = (onnx.MATMUL, onnx.node("Identity", ("x",), ("z",)))
    w = onnx.tensor("w", onnx.FLOAT, (3, 2), WEIGHTS)
    model = load(runtime, onnx.model(onnx.graph(nodes, (onnx.X,), (onnx.Y, z), (w,))))
    assert list(model.run({"x": ROWS}, ["y"], soon())) == ["y"]


def test_an_endless_model_ends_at_its_deadline_and_others_go_on(runtime: OnnxRuntime) -> None:
    endless = load(runtime, onnx.endless(), inputs=SCALAR[0], outputs=SCALAR[1])
    model = load(runtime, onnx.linear())

    def others(until: float, runs: list[float]) -> None:
        while time.monotonic() < until:
            model.run({"x": ROWS}, ["y"], soon())
            runs.append(time.monotonic())

    def meanwhile(seconds: float) -> int:
        """How many runs end while the endless one is under way."""
        until, runs = soon(seconds), list[float]()
        thread = threading.Thread(target=others, args=(until, runs))
        thread.start()
        with pytest.raises(RequestError) as refusal:
            endless.run({"x": np.array(0, np.float32)}, ["y"], until)
        assert refusal.value.code == Code.DEADLINE_EXCEEDED
        thread.join()
        return sum(ended < until for ended in runs)

    assert patiently(meanwhile, bool) > 0


def test_a_failing_model_quotes_nothing(
    runtime: OnnxRuntime, capfd: pytest.CaptureFixture[str]
) -> None:
    model = load(runtime, onnx.failing(), outputs=(replace(Y, shape=(0, 0)),))
    with pytest.raises(RequestError) as refusal:
        model.run({"x": np.full((2, 3), float(SECRET), np.float32)}, ["y"], soon())
    assert refusal.value.code == Code.MODEL_FAILED
    assert refusal.value.__cause__ is None
    assert SECRET not in str(refusal.value)
    assert "shape" not in str(refusal.value)
    assert capfd.readouterr() == ("", "")


def test_text_goes_in_and_out(runtime: OnnxRuntime) -> None:
    text = onnx.value_info("x", 8, ("n",))
    echo = onnx.node("Identity", ("x",), ("y",))
    specs = (TensorSpec("x", "BYTES", (0,)),), (TensorSpec("y", "BYTES", (0,)),)
    content = onnx.model(onnx.graph((echo,), (text,), (onnx.value_info("y", 8, ("n",)),)))
    model = load(runtime, content, inputs=specs[0], outputs=specs[1])
    words = np.array(["one", "two"], object)
    assert model.run({"x": words}, ["y"], soon())["y"].tolist() == ["one", "two"]


def python(script: str, tmp_path: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    paths = [str(Path(__file__).parents[3] / name) for name in (".", "enclave", "kms_client")]
    code = f"import sys; sys.path[:0] = {paths!r}\n{script}"
    return subprocess.run(
        [sys.executable, "-c", code],
        check=False,
        capture_output=True,
        text=True,
        env={"HOME": str(tmp_path), **environ},
        timeout=300,
    )


def test_onnxruntime_is_not_imported_with_its_telemetry_on(tmp_path: Path) -> None:
    script = """
try:
    import casemate_enclave.runtime
except ImportError:
    print("onnxruntime" in sys.modules)
"""
    for environ in ({}, {"ORT_DISABLE_TELEMETRY": "0"}):
        assert python(script, tmp_path, **environ).stdout == "False\n"


def test_onnxruntime_phones_nobody(tmp_path: Path) -> None:
    """No thread of its own, no file, no socket: the switch works in this version too."""
    script = f"""
import os
import onnxruntime
from casemate_enclave.runtime import session_options
onnxruntime.InferenceSession({onnx.linear()!r}, session_options([], 1))
links = [os.readlink(f"/proc/self/fd/{{fd}}") for fd in os.listdir("/proc/self/fd") if
         os.path.lexists(f"/proc/self/fd/{{fd}}")]
print(any(link.startswith("socket:") for link in links), len(os.listdir("/proc/self/task")))
"""
    quiet = {"ORT_DISABLE_TELEMETRY": "1", "OPENBLAS_NUM_THREADS": "1"}
    done = python(script, tmp_path, **quiet)
    assert done.stdout == "False 1\n", done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_process_that_is_warm_has_no_more_threads() -> None:
    """It forks: a thread would be missing in its children."""
    tasks = Path("/proc/self/task")
    before = len(list(tasks.iterdir()))
    warm_up()
    assert len(list(tasks.iterdir())) <= before
    ends = (onnx.value_info(name, onnx.FLOAT, (1,)) for name in "xy")
    x, y = ((end,) for end in ends)
    assert onnx.model(onnx.graph((onnx.node("Identity", ("x",), ("y",)),), x, y)) == _SMALLEST


def test_a_run_starts_no_threads_of_its_own(runtime: OnnxRuntime) -> None:
    tasks = Path("/proc/self/task")
    before = set(tasks.iterdir())
    load(runtime, onnx.linear()).run({"x": ROWS}, ["y"], soon())
    assert set(tasks.iterdir()) <= before  # one that has ended may still be listed
