"""Policies written beside an image accept that image and no other."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from casemate.attestation import TrustPolicy, pcr16
from casemate.kms_policy_lint import lint_key_policy
from casemate_devkit.eif.__main__ import main
from casemate_devkit.eif.build import measured
from tests.support import evidence as ev
from tests.support.small_tree import make_parts

if TYPE_CHECKING:
    from pathlib import Path

TERMS = f"""
release = "0.1.0"
configuration = "configuration.cbor"
audience = "{ev.CONFIGURATION.audience}"
roots = ["{"ab" * 32}"]

[models]
wdbc = "{ev.CONFIGURATION.publishers[0].hex()}"

[[key]]
name = "data"
purpose = "data"
admin = "arn:aws:iam::222222222222:role/key-admin"
enclave = "arn:aws:iam::333333333333:role/casemate-host"
encrypt = ["arn:aws:iam::222222222222:role/app"]
"""
PROFILE = 'form = "vm"\narchitecture = "x86_64"\nkernel_arguments = "a"\nmodules = ["nsm"]\n'


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    parts = make_parts(tmp_path)
    (tmp_path / "configuration.cbor").write_bytes(ev.CONFIGURATION.encode())
    (tmp_path / "terms.toml").write_text(TERMS)
    (tmp_path / "profile.toml").write_text(PROFILE)
    return [
        *("--tree", str(parts.tree), "--kernel", str(parts.kernel)),
        *("--drivers", str(parts.drivers), "--profile", str(tmp_path / "profile.toml")),
        *("--output", str(tmp_path / "a.eif")),
        *("--terms", str(tmp_path / "terms.toml"), "--policies", str(tmp_path / "policies")),
    ]


def test_trust_policy_and_key_policies_name_the_images_registers(
    command: list[str], tmp_path: Path
) -> None:
    assert main(command) == 0
    image = measured(tmp_path / "a.eif")
    policy = TrustPolicy.load(tmp_path / "policies/trust.toml")
    (release,) = policy.releases
    assert (release.pcr0, release.pcr1, release.pcr2) == (image.pcr0, image.pcr1, image.pcr2)
    assert release.pcr16 == pcr16(ev.CONFIGURATION.encode())
    document = json.loads((tmp_path / "policies/key-data.json").read_text())
    findings = lint_key_policy(document, trust=policy, purpose="data", scope=policy.audience)
    assert findings == []


@pytest.mark.parametrize(
    ("old", "new", "text"),
    [
        ("audience", "audienz", "unknown: audienz"),
        ('release = "0.1.0"', "", "missing: release"),
        ('purpose = "data"', 'purpose = "model"', "PUBLISHERHEX/NAME"),
        ("[models]", "pin_signer = true\n[models]", "not signed"),
        ("role/app", "nonsense/app", "ARN"),
        ('release = "0.1.0"', "]", "terms.toml"),
    ],
)
def test_terms_that_do_not_do_are_refused(
    command: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    old: str,
    new: str,
    text: str,
) -> None:
    assert old in TERMS
    (tmp_path / "terms.toml").write_text(TERMS.replace(old, new))
    assert main(command) == 1
    assert text in capsys.readouterr().err
    assert not (tmp_path / "policies").exists()
