"""KMS dies while it is asked for a model's key, and comes back: nobody has to do anything."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from casemate_devkit.kms import KmsDouble
from casemate_devkit.local import MODEL
from casemate_devkit.parties import REGION
from tests.support.attacker import ROWS, eventually
from tests.support.deployment import DATA, prepared
from tests.support.ports import is_free

if TYPE_CHECKING:
    from pathlib import Path

    from casemate_devkit.local import LocalDeployment

pytestmark = [pytest.mark.integration, pytest.mark.slow]


def another_double(world: LocalDeployment) -> KmsDouble:
    """The same KMS, from what the killed one had stored, at the same port."""
    parties = (world.vendor, world.clinic, world.operator)
    return KmsDouble(
        world.base / "kms",
        roots=frozenset([world.nitro_root]),
        principals=[who for party in parties for who in party.principals.values()],
        regions=[REGION],
        mode="process",
        port=world.kms.port,
    )


def test_a_model_whose_release_was_cut_off_is_served_once_kms_is_back(
    tree: Path, short_path: Path
) -> None:
    with prepared(short_path, tree) as world:
        sealed = world.seal_model(DATA.onnx)
        world.start_enclave()
        world.kms.inject("slow=30")
        host = world.start_host([sealed], tapped=False)
        assert eventually(lambda: "credentials_sent" in host.log.read_text())
        assert not eventually(lambda: "model_loaded" in host.log.read_text(), 1.5)
        world.kms.kill()  # in mid-release
        assert eventually(lambda: "model_failed" in host.log.read_text())
        assert "KEY_RELEASE_UNAVAILABLE" in host.log.read_text()
        world.kms.inject()
        assert eventually(lambda: is_free(world.kms.port), 100)
        with another_double(world):
            world.wait_until_serving()
            with world.client() as client:
                answer = client.infer(MODEL, {"features": ROWS})
        assert len(answer.outputs["label"]) == len(ROWS)
        assert host.log.read_text().count("model_loaded") == 1
