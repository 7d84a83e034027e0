"""The administration service of a real host: models come, go and are replaced while it serves."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from casemate.errors import Code
from casemate_devkit.local import MODEL
from tests.support.attacker import ROWS, eventually
from tests.support.deployment import DATA, prepared
from tests.support.traffic import Traffic

if TYPE_CHECKING:
    from collections.abc import Iterator

    from casemate_devkit.local import LocalDeployment

pytestmark = [pytest.mark.integration, pytest.mark.slow]


@pytest.fixture(scope="module")
def world(tree: Path) -> Iterator[LocalDeployment]:
    with tempfile.TemporaryDirectory(prefix="cm-") as folder, prepared(Path(folder), tree) as ready:
        sealed = [ready.seal_model(DATA.onnx, version=version) for version in (1, 2, 3)]
        ready.start_enclave(None, "--restart")
        ready.start_host(sealed[:1], more='\n[administration]\nsocket = "admin.sock"\n')
        ready.wait_until_serving()
        yield ready


def socket(world: LocalDeployment) -> Path:
    return world.operator.directory / "admin.sock"


def sealed(world: LocalDeployment, version: int) -> Path:
    return world.vendor.directory / f"{MODEL}-{version}.sealed"


def admin(world: LocalDeployment, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "casemate_host.admin", "--socket", str(socket(world))]
    return subprocess.run(
        [*command, *arguments], capture_output=True, text=True, timeout=300, check=False
    )


def told(world: LocalDeployment, *arguments: str) -> dict[str, Any]:
    result = admin(world, *arguments)
    assert result.returncode == 0, result.stderr
    answer: dict[str, Any] = json.loads(result.stdout)
    return answer


def versions(world: LocalDeployment) -> list[int]:
    return sorted(model["version"] for model in told(world, "models").get("models", []))


def refused(world: LocalDeployment, *arguments: str) -> str:
    result = admin(world, *arguments)
    assert (result.returncode, result.stdout) == (1, "")
    return result.stderr.partition(":")[0]


@pytest.fixture
def only_the_first(world: LocalDeployment) -> None:
    """Every test begins with version 1 alone."""
    assert eventually(lambda: bool(versions(world)), 60)
    if 1 not in versions(world):
        told(world, "load", str(sealed(world, 1)))
    for version in versions(world):
        if version != 1:
            told(world, "unload", MODEL, str(version))


def test_the_status_says_whether_it_serves(world: LocalDeployment) -> None:
    status = told(world, "status")
    assert status["serving"] is True
    assert len(status["instance_digest"]) == 96
    assert abs(status["evidence_verified_at"] / 1000 - time.time()) < 300


@pytest.mark.usefixtures("only_the_first")
def test_a_loaded_model_serves_at_once_and_an_unloaded_one_no_more(world: LocalDeployment) -> None:
    loaded = told(world, "load", str(sealed(world, 2)))
    assert (loaded["name"], loaded["version"]) == (MODEL, 2)
    assert versions(world) == [1, 2]
    with world.client() as client:
        assert client.infer(MODEL, {"features": ROWS}).version == 2
        told(world, "unload", MODEL, "2")
        assert versions(world) == [1]
        assert client.infer(MODEL, {"features": ROWS}, repeatable=True).version == 1


@pytest.mark.usefixtures("only_the_first")
def test_a_replacement_under_load_fails_nobody(world: LocalDeployment) -> None:
    with world.client() as client:
        traffic = Traffic(client, repeatable=True)
        assert eventually(partial(traffic.flows, 0))
        for old, new in ((1, 2), (2, 3), (3, 1)):
            told(world, "replace", str(sealed(world, new)), str(old))
            assert versions(world) == [new]
            assert eventually(partial(traffic.flows, time.monotonic()))
        ends = traffic.end()
    assert set(ends) == {Code.OK}


@pytest.mark.usefixtures("only_the_first")
def test_what_administration_changed_survives_the_enclaves_restart(world: LocalDeployment) -> None:
    told(world, "replace", str(sealed(world, 2)), "1")
    assert world.enclave is not None
    former = world.enclave.latest["pid"]
    os.kill(former, signal.SIGKILL)
    launcher = world.enclave
    assert eventually(lambda: launcher.latest["pid"] != former, world.form.start_s)
    assert eventually(lambda: admin(world, "models").returncode == 0 and versions(world) == [2], 60)
    told(world, "replace", str(sealed(world, 1)), "2")


@pytest.mark.usefixtures("only_the_first")
def test_what_cannot_be_done_is_refused_with_its_code(
    world: LocalDeployment, tmp_path: Path
) -> None:
    garbage = tmp_path / "garbage.sealed"
    garbage.write_bytes(b"no sealed model" * 100)
    assert refused(world, "load", str(garbage)) == "MODEL_MALFORMED"
    assert refused(world, "load", str(tmp_path / "absent")) == "INVALID_ARGUMENT"
    assert refused(world, "load", str(sealed(world, 1))) == "INVALID_ARGUMENT"
    assert refused(world, "unload", MODEL, "9") == "UNKNOWN_MODEL"
    assert refused(world, "replace", str(sealed(world, 2)), "9") == "UNKNOWN_MODEL"
    assert versions(world) == [1]


def test_the_service_is_its_owners_alone(world: LocalDeployment) -> None:
    mode = socket(world).stat().st_mode
    assert stat.S_ISSOCK(mode)
    assert stat.S_IMODE(mode) == 0o600
    with grpc.insecure_channel(world.target) as channel:
        call: Any = channel.unary_unary("/casemate.v1.Administration/ListModels")
        with pytest.raises(grpc.RpcError) as raised:
            call(b"", timeout=60)
    assert raised.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_nobody_there_is_another_exit_code(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "casemate_host.admin", "--socket", str(tmp_path / "none")]
    ended = subprocess.run(
        [*command, "status"], capture_output=True, text=True, timeout=300, check=False
    )
    assert ended.returncode == 3
    assert "does not answer" in ended.stderr
