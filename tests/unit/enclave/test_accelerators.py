"""What a provider is given, and which models one of them must not run (SPEC 8.11)."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest

from casemate import limits
from casemate_enclave import accelerators
from casemate_enclave.accelerators import CUDA, NONE, OPENVINO, TENSORRT, Needs

CPU = "CPUExecutionProvider"


@pytest.mark.parametrize(
    ("providers", "expected"),
    [
        ((), NONE),
        ((CPU,), NONE),
        (("AzureExecutionProvider", CPU), NONE),
        ((OPENVINO, CPU), Needs(code=True)),
        ((CUDA, CPU), Needs(code=True, gpu=True)),
        ((TENSORRT, CPU), Needs(code=True, gpu=True)),
        ((CUDA, OPENVINO, CPU), Needs(code=True, gpu=True)),
    ],
)
def test_a_worker_is_given_what_its_providers_need(
    providers: tuple[str, ...], expected: Needs
) -> None:
    assert accelerators.needs_of(providers) == expected


def test_the_processors_onnxruntime_offers_no_accelerator() -> None:
    assert accelerators.offered() == frozenset()
    assert accelerators.usable(["AzureExecutionProvider", CPU, CUDA]) == [
        "AzureExecutionProvider",
        CPU,
    ]


def test_a_provider_is_offered_whose_library_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "onnxruntime/capi").mkdir(parents=True)
    (tmp_path / "onnxruntime/__init__.py").touch()
    (tmp_path / "onnxruntime/capi/libonnxruntime_providers_cuda.so").touch()
    spec = importlib.util.spec_from_file_location(
        "onnxruntime", tmp_path / "onnxruntime/__init__.py"
    )
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: spec)
    assert accelerators.offered() == {CUDA}
    # The wheel names TensorRT, too; its part is not staged.
    assert accelerators.usable([TENSORRT, CUDA, CPU]) == [CUDA, CPU]


def test_devices_of_gpus_and_no_others(tmp_path: Path) -> None:
    for name in ("nvidia0", "nvidia12", "nvidiactl", "nvidia-uvm", "nvidia-uvm-tools", "null"):
        (tmp_path / name).touch()
    found = [Path(path).name for path in accelerators.gpu_devices(str(tmp_path))]
    assert found == ["nvidia-uvm", "nvidia0", "nvidia12", "nvidiactl"]
    assert accelerators.gpu_devices(str(tmp_path / "absent")) == []


@pytest.mark.parametrize(
    ("shapes", "operators", "expected"),
    [
        ([[8, 256], [8, 256]], ["MatMul", "Relu"], True),
        ([["n", 256], [8, 256]], ["MatMul"], False),
        ([[8, 256], [8, None]], ["MatMul"], False),
        ([[8, 256], []], ["MatMul"], False),  # how a rank that is not known looks
        ([[1], [1]], ["ConstantOfShape", "ReduceSum"], False),
        ([[8, 8], [8]], ["MatMul", "Loop"], False),
    ],
)
def test_c2_openvino_runs_models_whose_memory_is_known_alone(
    shapes: list[list[object]], operators: list[str], expected: bool
) -> None:
    assert accelerators.fixed(shapes, operators) is expected


def test_the_tensors_of_a_gpu_are_bounded() -> None:
    settings = accelerators.settings_of([CUDA, CPU], threads=2, run_bytes=1000, contents=10)
    [(name, options), (last, nothing)] = settings
    assert (name, last, nothing) == (CUDA, CPU, {})
    assert options["gpu_mem_limit"] == "1040"


def test_a_gpus_numbers_are_as_long_as_the_models() -> None:
    [(_, options)] = accelerators.settings_of([CUDA], threads=2, run_bytes=1000, contents=10)
    assert options["use_tf32"] == "0"


def test_openvino_runs_on_the_processor_as_accurately_as_the_model_says() -> None:
    [(name, options), _] = accelerators.settings_of(
        [OPENVINO, CPU], threads=3, run_bytes=1000, contents=10
    )
    assert name == OPENVINO
    assert options == {"device_type": "CPU", "precision": "ACCURACY", "num_of_threads": "3"}


class Loaded:
    """What of onnxruntime loads libraries."""

    def __init__(self) -> None:
        self.loads = 0

    def preload_dlls(self) -> None:
        self.loads += 1


@pytest.mark.parametrize(("providers", "loads"), [((CUDA, CPU), 1), ((OPENVINO, CPU), 0)])
def test_libraries_of_a_gpu_are_loaded_for_all_workers_and_write_no_files(
    monkeypatch: pytest.MonkeyPatch, providers: tuple[str, ...], loads: int
) -> None:
    monkeypatch.setattr("os.environ", {})
    onnxruntime = Loaded()
    accelerators.prepare(onnxruntime, providers)
    assert onnxruntime.loads == loads
    assert os.environ == ({"CUDA_CACHE_DISABLE": "1"} if loads else {})


def test_workers_beside_others_have_memory_for_what_they_load() -> None:
    assert NONE.data_bytes == 0
    assert Needs(code=True).data_bytes == limits.WORKER_CODE_DATA
    assert Needs(code=True, gpu=True).data_bytes == limits.WORKER_GPU_DATA
