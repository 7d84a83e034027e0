"""Data sealed at rest, over real processes and a key policy that the KMS double enforces."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest
from botocore.exceptions import ClientError

from casemate.client import Client
from casemate.client.files import write_private_key
from casemate.errors import CasemateError, Code
from casemate.kms_context import object_context
from casemate.sealed_data import SealedData
from casemate_devkit.local import AUDIENCE, MODEL
from casemate_devkit.parties import run_tool
from tests.support.deployment import DATA

if TYPE_CHECKING:
    from pathlib import Path

    from casemate_devkit.local import LocalDeployment

pytestmark = pytest.mark.integration
ROWS = DATA.features[:4]


@pytest.fixture(scope="module")
def sealed(deployment: LocalDeployment, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four patients, sealed with the command line by the clinic for its own key."""
    folder = tmp_path_factory.mktemp("sealed")
    np.save(folder / "rows.npy", ROWS)
    clinic = deployment.clinic
    done = run_tool(
        "casemate.client.cli",
        *("seal-data", str(folder / "rows.sealed")),
        *("--policy", str(deployment.write_trust_policy(folder / "trust.toml"))),
        *("--input", f"features={folder / 'rows.npy'}"),
        *("--kms-key", deployment._create_key(clinic, "app", "object", AUDIENCE)),
        *("--reader", clinic.public_key.hex()),
        *("--model-digest", deployment.sealed_summary["digest"]),
        environment=deployment.aws.environment(clinic.principals["app"]),
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["audience"] == AUDIENCE
    return folder / "rows.sealed"


def test_a_reader_gets_what_the_data_itself_would_get(
    deployment: LocalDeployment, sealed: Path, tmp_path: Path
) -> None:
    with deployment.client() as client:
        plain = client.infer(MODEL, {"features": ROWS})
        result = client.infer_sealed(MODEL, sealed.read_bytes())
    assert result.outputs["label"].tolist() == plain.outputs["label"].tolist()
    write_private_key(tmp_path / "reader.pem", deployment.clinic.signing_key)
    trust = deployment.write_trust_policy(tmp_path / "trust.toml")
    done = run_tool(
        "casemate.client.cli",
        *("infer-sealed", deployment.target, MODEL, str(sealed)),
        *("--policy", str(trust), "--caller-key", str(tmp_path / "reader.pem")),
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)["outputs"]["label"]["data"]
    assert answer == plain.outputs["label"].tolist()


def test_not_even_the_owners_own_people_get_the_key(
    deployment: LocalDeployment, sealed: Path
) -> None:
    header = SealedData.parse(sealed.read_bytes()).header
    people = [
        *deployment.clinic.principals.values(),
        *deployment.operator.principals.values(),
    ]
    for who in people:
        with pytest.raises(ClientError, match="AccessDenied"):
            deployment.aws.kms(who).decrypt(
                KeyId=header.kms_key,
                CiphertextBlob=header.wrapped_key,
                EncryptionContext=object_context(AUDIENCE),
            )


def test_c8_an_anonymous_caller_is_refused(deployment: LocalDeployment, sealed: Path) -> None:
    with (
        Client(deployment.target, deployment.trust_policy()) as client,
        pytest.raises(CasemateError) as refused,
    ):
        client.infer_sealed(MODEL, sealed.read_bytes())
    assert refused.value.code is Code.CALLER_REFUSED


def test_damaged_data_are_refused_inside(deployment: LocalDeployment, sealed: Path) -> None:
    damaged = bytearray(sealed.read_bytes())
    damaged[-1] ^= 1
    with deployment.client() as client, pytest.raises(CasemateError) as refused:
        client.infer_sealed(MODEL, bytes(damaged))
    assert refused.value.code is Code.OBJECT_OPEN_FAILED
