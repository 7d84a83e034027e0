"""`casemate models` and what `seal-model` says about serving, as a person types them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest

from casemate_devkit.local import MODEL
from casemate_devkit.parties import run_tool
from tests.support import onnx_bytes
from tests.support.attacker import genuine

if TYPE_CHECKING:
    from pathlib import Path

    from casemate_devkit.local import LocalDeployment

pytestmark = pytest.mark.integration


def casemate(world: LocalDeployment, *arguments: str) -> tuple[int, str, str]:
    sealer = world.aws.environment(world.vendor.principals["sealer"])
    done = run_tool("casemate.client.cli", *arguments, environment=sealer)
    return done.returncode, done.stdout, done.stderr


def sealed(world: LocalDeployment, model: Path, version: int, *options: str) -> Path:
    output = model.with_suffix(f".{version}.sealed")
    code, _, error = casemate(
        world,
        *("seal-model", str(model), str(output), "--name", MODEL, "--version", str(version)),
        *("--publisher-key", str(world.vendor.directory / "key.pem")),
        *("--kms-key", world.vendor_key, "--caller", world.clinic.public_key.hex(), *options),
    )
    assert code == 0, error
    return output


def test_models_are_listed_and_described(deployment: LocalDeployment, tmp_path: Path) -> None:
    policy = str(deployment.write_trust_policy(tmp_path / "trust.toml"))
    key = str(deployment.clinic.directory / "key.pem")
    code, out, _ = casemate(deployment, "models", deployment.target, "--policy", policy)
    assert code == 0
    assert MODEL in out
    code, out, _ = casemate(
        deployment,
        *("models", deployment.target, f"{MODEL}:1", "--policy", policy),
        *("--caller-key", key, "--json"),
    )
    assert code == 0
    described = json.loads(out)
    assert described["inputs"] == [{"name": "features", "datatype": "FP32", "shape": "[any, 30]"}]
    code, _, error = casemate(deployment, "models", deployment.target, MODEL, "--policy", policy)
    assert (code, "CALLER_REFUSED" in error) == (1, True)


def test_what_a_publisher_says_of_serving_reaches_the_enclave(
    deployment: LocalDeployment, tmp_path: Path
) -> None:
    model = tmp_path / "linear.onnx"
    model.write_bytes(onnx_bytes.linear())
    limits = ("--batch-rows", "16", "--concurrency", "2", "--queue", "5", "--run-ms", "900")
    file = sealed(deployment, model, 400, *limits)
    code, out, _ = casemate(deployment, "inspect", str(file), "--json")
    stated = {
        "batch_dimension": 0,
        "batch_rows": 16,
        "request_rows": None,
        "concurrency": 2,
        "queue": 5,
        "run_ms": 900,
    }
    assert (code, json.loads(out)["serving"]) == (0, stated)
    enclave = genuine(deployment)
    enclave.load(file.read_bytes())
    try:
        [loaded] = [model for model in enclave.models()["models"] if model["version"] == 400]
        assert loaded["serving"] == stated
    finally:
        enclave.unload(MODEL, 400)


def test_a_model_optimised_before_sealing_answers_the_same(
    deployment: LocalDeployment, tmp_path: Path
) -> None:
    """A chain of constants is folded away: the sealed model is smaller and says the same."""
    nodes = [onnx_bytes.node("Identity", ("w",), ("w0",))]
    nodes += [onnx_bytes.node("Neg", (f"w{n}",), (f"w{n + 1}",)) for n in range(100)]
    nodes += [onnx_bytes.node("MatMul", ("x", "w100"), ("y",))]
    weights = onnx_bytes.tensor("w", onnx_bytes.FLOAT, (3, 2), onnx_bytes.floats(1, 2, 3, 4, 5, 6))
    model = tmp_path / "chain.onnx"
    graph = onnx_bytes.graph(tuple(nodes), (onnx_bytes.X,), (onnx_bytes.Y,), (weights,))
    model.write_bytes(onnx_bytes.model(graph))
    plain = sealed(deployment, model, 401)
    small = sealed(deployment, model, 402, "--optimise")
    assert small.stat().st_size < plain.stat().st_size - 1000
    enclave = genuine(deployment)
    x = {"x": np.array([[1, 2, 3], [0.5, 0, -7]], np.float32)}
    with deployment.client() as client:
        answers = []
        for version, file in ((401, plain), (402, small)):
            enclave.load(file.read_bytes())
            try:
                answers.append(client.infer(f"{MODEL}:{version}", x).outputs["y"].tobytes())
            finally:
                enclave.unload(MODEL, version)
    assert answers[0] == answers[1]


def test_a_file_that_is_no_model_cannot_be_optimised(
    deployment: LocalDeployment, tmp_path: Path
) -> None:
    model = tmp_path / "no.onnx"
    model.write_bytes(b"no model")
    code, _, error = casemate(
        deployment,
        *("seal-model", str(model), str(tmp_path / "out"), "--name", "m", "--version", "1"),
        *("--publisher-key", str(deployment.vendor.directory / "key.pem")),
        *("--kms-key", deployment.vendor_key, "--caller", "any", "--optimise"),
    )
    assert code == 1
    assert "onnxruntime refuses it" in error
    assert "Traceback" not in error
