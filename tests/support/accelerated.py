"""Deployments whose configuration names an accelerator, and models that are worth one."""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from casemate.attestation.configuration import CPU
from casemate_devkit.local import LIMITS, LocalDeployment
from tests.support import onnx_bytes as onnx
from tests.support.deployment import ROOT
from tests.support.workers import children

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

PROVIDERS = {"openvino": "OpenVINOExecutionProvider", "cuda": "CUDAExecutionProvider"}
WIDTH = 2048


@dataclass(frozen=True)
class Accelerator:
    """An accelerator, the staged tree that has its provider, and what its launcher is told."""

    name: str

    @property
    def tree(self) -> Path:
        return ROOT / f".stage/tree-{self.name}"

    @property
    def provider(self) -> str:
        return PROVIDERS[self.name]

    @property
    def options(self) -> tuple[str, ...]:
        return ("--gpu",) if self.name == "cuda" else ()


@contextlib.contextmanager
def serving(
    base: Path,
    accelerator: Accelerator,
    models: Sequence[bytes],
    providers: tuple[str, ...] | None = None,
    **limits: int,
) -> Iterator[LocalDeployment]:
    """Serve ``models`` as versions 1, 2 and so on; with the accelerator, unless said otherwise."""
    tree = accelerator.tree
    assert (tree / "app/boot.py").is_file(), f"no {tree}: make accelerator"
    with LocalDeployment(base, tree) as world:
        world.start_kms()
        wanted = providers or (accelerator.provider, CPU)
        world.agree(world.form.measure(tree), replace(LIMITS, **limits), wanted)
        sealed = []
        for version, content in enumerate(models, 1):
            path = base / f"{version}.onnx"
            path.write_bytes(content)
            sealed.append(world.seal_model(path, version=version))
        world.start_enclave(None, *accelerator.options)
        world.start_host(sealed, tapped=False)
        try:
            world.wait_until_serving()
        except Exception as error:
            logs = (world.operator.directory / f"{name}.log" for name in ("enclave", "host"))
            raise AssertionError("\n".join(log.read_text()[-2000:] for log in logs)) from error
        yield world


def events(world: LocalDeployment, name: str) -> list[dict[str, Any]]:
    """What the enclave has said so far of one kind."""
    log = (world.operator.directory / "enclave.log").read_text().splitlines()
    said = [json.loads(line) for line in log if line.startswith("{")]
    return [event for event in said if event["event"] == name]


def workers_of(world: LocalDeployment) -> set[int]:
    """The processes of the models."""
    assert world.enclave is not None
    [spawner] = children(world.enclave.latest["pid"])
    return children(spawner)


def deep(rows: int | str, width: int, layers: int) -> bytes:
    """Return ``layers`` of MatMul and Relu, and only two weights: a small file, much work."""
    distinct = 2
    generator = np.random.default_rng(5)
    scale = (2 / width) ** 0.5
    weights = [
        (generator.standard_normal((width, width)) * scale).astype(np.float32)
        for _ in range(distinct)
    ]
    names = ["x", *(f"h{layer}" for layer in range(1, layers)), "y"]
    nodes: tuple[bytes, ...] = ()
    for layer in range(layers):
        nodes += (
            onnx.node("MatMul", (names[layer], f"w{layer % distinct}"), (f"m{layer}",)),
            onnx.node("Relu", (f"m{layer}",), (names[layer + 1],)),
        )
    ends = tuple(onnx.value_info(name, onnx.FLOAT, (rows, width)) for name in "xy")
    tensors = tuple(
        onnx.tensor(f"w{index}", onnx.FLOAT, (width, width), weight.tobytes())
        for index, weight in enumerate(weights)
    )
    return onnx.model(onnx.graph(nodes, ends[:1], ends[1:], tensors))


def products(rows: int | str) -> bytes:
    """Return a model of all products of two elements of ``x``: an output that is its square."""
    x = onnx.value_info("x", onnx.FLOAT, (rows, 1))
    y = onnx.value_info("y", onnx.FLOAT, (rows, rows))
    nodes = onnx.node("Transpose", ("x",), ("t",)), onnx.node("Mul", ("x", "t"), ("y",))
    return onnx.model(onnx.graph(nodes, (x,), (y,)))


def convolving(images: int | str, channels: int = 16, side: int = 32) -> bytes:
    """Return two convolutions of 3 by 3 with a Relu between, over an image of three colours."""
    generator = np.random.default_rng(6)
    first = generator.standard_normal((channels, 3, 3, 3)).astype(np.float32) / 5
    second = generator.standard_normal((channels, channels, 3, 3)).astype(np.float32) / 12
    same = (onnx.ints("kernel_shape", 3, 3), onnx.ints("pads", 1, 1, 1, 1))
    nodes = (
        onnx.node("Conv", ("x", "a"), ("h",), *same),
        onnx.node("Relu", ("h",), ("r",)),
        onnx.node("Conv", ("r", "b"), ("y",), *same),
    )
    x = onnx.value_info("x", onnx.FLOAT, (images, 3, side, side))
    y = onnx.value_info("y", onnx.FLOAT, (images, channels, side, side))
    weights = (
        onnx.tensor("a", onnx.FLOAT, first.shape, first.tobytes()),
        onnx.tensor("b", onnx.FLOAT, second.shape, second.tobytes()),
    )
    return onnx.model(onnx.graph(nodes, (x,), (y,), weights))
