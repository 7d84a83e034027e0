"""A real deployment whose enclave is killed again and again: the launcher replaces it."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import pytest

from casemate.errors import CasemateError
from casemate_devkit.local import MODEL
from tests.support.attacker import ROWS, eventually, genuine
from tests.support.deployment import DATA, prepared

if TYPE_CHECKING:
    from pathlib import Path

    from casemate.client import Client
    from casemate_devkit.local import LocalDeployment
    from casemate_devkit.processes import Service

pytestmark = [pytest.mark.integration, pytest.mark.slow]


def answers(client: Client) -> bool:
    try:
        result = client.infer(MODEL, {"features": ROWS}, timeout_s=30, repeatable=True)
    except CasemateError:
        return False
    return len(result.outputs["label"]) == len(ROWS)


def replaced(world: LocalDeployment, launcher: Service, former: int) -> bool:
    return eventually(lambda: launcher.latest["pid"] != former, world.form.start_s)


def test_a_killed_enclave_is_replaced_and_the_same_client_goes_on(
    tree: Path, short_path: Path
) -> None:
    with prepared(short_path, tree) as world:
        sealed = world.seal_model(DATA.onnx)
        launcher = world.start_enclave(None, "--restart")
        world.start_host([sealed])
        world.wait_until_serving()
        assert genuine(world).health()["form"] == world.form.name
        instances = {launcher.latest["module_id"]}
        with world.client() as client:
            assert answers(client)
            for _ in range(2):
                former = launcher.latest["pid"]
                os.kill(former, signal.SIGKILL)
                assert replaced(world, launcher, former)
                instances.add(launcher.latest["module_id"])
                assert eventually(lambda: answers(client), 100)
        assert len(instances) == 3  # each with a module, and so a bank, of its own
        log = launcher.log.read_text()
        assert log.count("signal SIGKILL") == 2
        assert "last event MODEL_LOADED" in log
        assert launcher.running()
