"""`casemate releases`: append, verify, withdraw, and a trust policy from a log (SPEC 15)."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from casemate.attestation import TrustPolicy, measure_tree, pcr16
from casemate.attestation.cmdline import enclave_cmdline
from casemate.client.files import write_private_key
from tests.support import evidence as ev
from tests.support.cli import refusal, run, run_json

if TYPE_CHECKING:
    from pathlib import Path

CONFIGURATION = ev.CONFIGURATION.encode()


class Project:
    """Who publishes: a key, a staged tree that changes, the log."""

    def __init__(self, folder: Path) -> None:
        key = Ed25519PrivateKey.generate()
        self.folder = folder
        self.key, self.log, self.tree = (folder / name for name in ("key", "releases.json", "tree"))
        self.signer = key.public_key().public_bytes_raw().hex()
        write_private_key(self.key, key)
        for name in ("usr/bin/python3", "app/boot.py", "packages/numpy/__init__.py"):
            (self.tree / name).parent.mkdir(parents=True, exist_ok=True)
            (self.tree / name).write_text(name)
        (folder / "trust.toml").write_text(ev.policy().to_toml())
        (folder / "configuration.cbor").write_bytes(CONFIGURATION)

    def append(self, name: str, *more: str | Path) -> str:
        """Change the code and publish it; returns the head."""
        (self.tree / "app/boot.py").write_text(name)
        terms = ("--name", name, "--revision", "f" * 40, "--key", self.key)
        return run("releases", "append", self.log, self.tree, *terms, *more).stdout.strip()

    def verify(self, *more: str) -> dict[str, object]:
        found: dict[str, object] = run_json(
            "releases", "verify", self.log, "--signer", self.signer, "--json", *more
        )
        return found

    def accept(self, *more: str | Path) -> tuple[str | Path, ...]:
        return (
            *("releases", "accept", self.log, "--signer", self.signer, "--form", "process"),
            *("--policy", self.folder / "trust.toml", "--output", self.folder / "new.toml"),
            *("--configuration", self.folder / "configuration.cbor", *more),
        )


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


def test_what_was_appended_is_measured_numbered_and_signed(project: Project) -> None:
    first = project.append("0.1.0")
    second = project.append("0.2.0", "--number", "7")
    found = project.verify("--since", first)
    assert found["head"] == second
    releases = json.loads(json.dumps(found["releases"]))
    assert [release["number"] for release in releases] == [1, 7]
    measured = measure_tree(project.tree, enclave_cmdline("process"))
    assert releases[1]["pcr0"] == measured.pcr0.hex()
    text = run("releases", "verify", project.log, "--signer", project.signer).stdout
    assert text.startswith("2 entries verified")
    assert "7  0.2.0" in text
    assert second in text


def test_a_policy_takes_the_logs_numbers_and_leaves_out_what_was_withdrawn(
    project: Project,
) -> None:
    for name in ("0.1.0", "0.2.0", "0.3.0"):
        project.append(name)
    project.append("0.3.0-container", "--form", "container")
    withdraw = ("releases", "withdraw", project.log, "2", "--reason", "leaks", "--key", project.key)
    run(*withdraw)
    run(*project.accept("--minimum", "2"))
    policy = TrustPolicy.load(project.folder / "new.toml")
    assert [(release.number, release.name) for release in policy.releases] == [(3, "0.3.0")]
    assert policy.minimum_release == 2
    assert policy.releases[0].pcr16 == pcr16(CONFIGURATION)
    assert policy.roots == ev.policy().roots
    assert "File exists" in refusal(*project.accept())
    assert (
        "withdrawn: leaks"
        in run("releases", "verify", project.log, "--signer", project.signer).stdout
    )


def test_what_is_refused(project: Project) -> None:
    head = project.append("0.1.0")
    old = project.log.read_bytes()
    project.append("0.2.0")
    verify = ("releases", "verify", project.log, "--signer")
    assert "RELEASES_INVALID" in refusal(*verify, "00" * 32)
    newer = project.verify()["head"]
    project.log.write_bytes(old)
    assert "was rewritten" in refusal(*verify, project.signer, "--since", str(newer))
    project.log.write_bytes(old.replace(b'"0.1.0"', b'"0.1.1"'))
    assert "RELEASES_INVALID: entry 1" in refusal(*verify, project.signer, "--since", head)
    project.log.write_bytes(old)
    assert "not hex" in refusal(*verify, project.signer, "--since", "xyz")
    assert "no such release" in refusal(*project.accept("--minimum", "2"))
    assert not (project.folder / "new.toml").exists()


def test_a_refused_entry_leaves_the_log_as_it_was(project: Project) -> None:
    project.append("0.1.0")
    before = project.log.read_bytes()
    again = ("releases", "append", project.log, project.tree, "--name", "0.1.0")
    assert "already" in refusal(*again, "--revision", "x", "--key", project.key)
    assert project.log.read_bytes() == before
    assert sorted(path.name for path in project.folder.iterdir() if "releases" in path.name) == [
        "releases.json"
    ]
