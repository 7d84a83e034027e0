"""The commands of the guides, run as they are written there."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from casemate.attestation import TrustPolicy, parse_document
from tests.support import eif_builder as eb
from tests.support import evidence as ev
from tests.support.cli import refusal, run
from tests.support.nitro_pki import NOW
from tests.support.service import Service

if TYPE_CHECKING:
    from collections.abc import Iterator

    from casemate.attestation import EvidenceBundle

GUIDE = Path(__file__).parents[3] / "docs" / "guides" / "rolling-upgrade.md"
AWS_ROOT = "641a0321a3e244efe456463195d606317ed7cdcc3c1756e09893f3c68f79bb5b"
HOST = "inference.example:8443"


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    monkeypatch.setattr("casemate.client.sessions._now", lambda: NOW)
    with Service() as running:
        yield running


def upgraded(bundle: EvidenceBundle) -> EvidenceBundle:
    """The same answer by an enclave of the new release."""
    image = dict(enumerate(eb.registers(eb.standard())))
    nonce = parse_document(bundle.attestation_document).nonce
    unsigned = replace(bundle, attestation_document=b"")
    return ev.attested(unsigned, nonce=nonce, pcrs=ev.pcrs() | image)


def blocks(service: Service) -> list[list[list[str]]]:
    """The commands of each block, with this test's host and root."""
    text = GUIDE.read_text().replace(HOST, service.target)
    text = text.replace(AWS_ROOT, ev.chain().root_sha256.hex())
    found = re.findall(r"```console\n(.*?)```", text, re.DOTALL)
    return [
        [shlex.split(line.removeprefix("$ casemate ")) for line in block.splitlines()]
        for block in found
    ]


def test_rolling_upgrade(service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("trust.toml").write_text(ev.policy().to_toml())
    Path("release-0.2.0.eif").write_bytes(eb.Eif().encode())
    Path("configuration-0.2.0.cbor").write_bytes(ev.CONFIGURATION.encode())
    widen, old_serves, keys, both_serve, narrow = blocks(service)

    for command in (*widen, *old_serves, *keys):
        run(*command)
    assert "of release 0.1.0" in run(*old_serves[0]).stdout
    document = json.loads(Path("key-policy-both.json").read_text())
    both = TrustPolicy.load(Path("trust-both.toml"))
    assert [release.name for release in both.releases] == ["0.1.0", "0.2.0"]
    for release in both.releases:
        assert release.pcr0.hex() in json.dumps(document)

    assert "of release 0.1.0" in run(*both_serve[0]).stdout
    service.on_evidence = upgraded
    assert "of release 0.2.0" in run(*both_serve[0]).stdout

    shown = [run(*command).stdout for command in narrow]
    assert "of release 0.2.0" in shown[-1]
    assert ev.RELEASE.pcr0.hex() not in Path("key-policy-new.json").read_text()
    service.on_evidence = lambda bundle: bundle
    assert "EVIDENCE_MEASUREMENTS" in refusal(*narrow[-1])


def test_a_withdrawn_release_is_named(
    service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    numbered = ev.policy(releases=(replace(ev.RELEASE, number=1),))
    Path("trust.toml").write_text(numbered.to_toml())
    Path("release-0.2.0.eif").write_bytes(eb.Eif().encode())
    Path("configuration-0.2.0.cbor").write_bytes(ev.CONFIGURATION.encode())
    for command in blocks(service)[0]:
        run(*command)
    text = Path("trust-both.toml").read_text()
    Path("trust-both.toml").write_text(text.replace("[[", "minimum_release = 2\n\n[[", 1))
    verify = ("verify", service.target, "--policy", "trust-both.toml")
    assert "release 0.1.0 is below the minimum" in refusal(*verify)
    service.on_evidence = upgraded
    assert "of release 0.2.0" in run(*verify).stdout
