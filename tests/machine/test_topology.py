"""Two machines as on Nitro: the enclave at context id 16, its parent at 3, and the whole service.

Host, KMS and clinic are on this machine; all that they say to the enclave, and all that it asks of
them, leads through the parent. ``--form nitro-enclave`` runs any other test so.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnxruntime
import pytest

from casemate.errors import Code, FrameError
from casemate_devkit.local import MODEL
from tests.support.attacker import EnclaveSocket, genuine, verified
from tests.support.deployment import DATA, FORMS, running

if TYPE_CHECKING:
    from collections.abc import Iterator

    from casemate_devkit.local import LocalDeployment

pytestmark = [pytest.mark.integration, pytest.mark.slow]
PACKET = 3732  # bytes: the longest that goes from one machine to another in one piece


@pytest.fixture(scope="module")
def nitro(tree: Path) -> Iterator[LocalDeployment]:
    """Everything, serving, with the enclave in the form that it has on Nitro."""
    with (
        tempfile.TemporaryDirectory(prefix="cm-") as folder,
        running(Path(folder), tree, FORMS["nitro-enclave"]) as world,
    ):
        yield world


def test_evidence_comes_whole_and_says_what_was_measured(nitro: LocalDeployment) -> None:
    """The enclave serves only after its heartbeat came back, from context id 3, port 9000."""
    assert genuine(nitro).health()["form"] == "nitro-enclave"
    evidence = verified(nitro)
    assert evidence.instance.form == "nitro-enclave"
    assert evidence.release == nitro.release.name
    assert len(genuine(nitro).evidence(b"n" * 32).serialize()) > PACKET


def test_keys_are_released_and_sealed_answers_are_plain_onnxruntimes(
    nitro: LocalDeployment,
) -> None:
    """The model's key and the clinic's both came from KMS, out through the parent."""
    rows = np.tile(DATA.features, (20, 1))
    assert rows.nbytes > 100 * PACKET
    plain = onnxruntime.InferenceSession(DATA.onnx, providers=["CPUExecutionProvider"])
    label, probabilities = plain.run(["label", "probabilities"], {"features": rows})
    assert label.nbytes + probabilities.nbytes > 10 * PACKET
    with nitro.client(kms=True) as client:
        answer = client.infer(MODEL, {"features": rows}, timeout_s=120, repeatable=True).outputs
    assert answer["label"].tobytes() == label.tobytes()
    assert answer["probabilities"].tobytes() == probabilities.tobytes()


def test_nobody_else_is_served(nitro: LocalDeployment) -> None:
    """The host under both machines, context id 2, is not the parent."""
    past = EnclaveSocket(nitro.run / "past.sock")
    with pytest.raises(FrameError) as caught:
        past.health()
    assert caught.value.code is Code.UNAVAILABLE
    assert "only the parent" in caught.value.detail
