"""THREATS O2 to O4 on the images themselves: what is in them, and that they can be built again."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import pytest

from tests.support.cli import refusal, run
from tests.support.compose import ROOT, Stack

if TYPE_CHECKING:
    from pathlib import Path

# SHA-256 of the DER of AWS's root of Nitro Enclaves (tests/vectors/nitro/aws_nitro_root_g1.pem).
AWS_ROOT = "641a0321a3e244efe456463195d606317ed7cdcc3c1756e09893f3c68f79bb5b"
LOCKS = {"enclave": "enclave", "host": "host", "client": "client", "devkit": "devkit"}
PRODUCTION = ("enclave", "host", "client")
_DISTRIBUTION = re.compile(r"packages/([^/]+)-([^/-]+)\.dist-info/")


@pytest.fixture(scope="module")
def files(stack: Stack) -> dict[str, list[str]]:
    return {name: stack.image_files(f"casemate-{name}") for name in LOCKS}


@pytest.mark.parametrize("name", PRODUCTION)
def test_o2_nothing_simulated_is_in_a_production_image(
    files: dict[str, list[str]], name: str
) -> None:
    simulated = ("casemate_devkit", "/moto/", "nsm_server", "kms_double")
    assert not [path for path in files[name] if any(word in path for word in simulated)]


@pytest.mark.parametrize("name", LOCKS)
def test_o2_no_shell_no_installer_no_compiler(files: dict[str, list[str]], name: str) -> None:
    programs = {
        path.rpartition("/")[2]
        for path in files[name]
        if re.match(r"(tree/)?(usr/)?(local/)?s?bin/[^/]+$", path)
    }
    assert programs == {"python3", "python3.11"}
    assert not [path for path in files[name] if re.search(r"packages/(pip|setuptools)/", path)]


def test_o2_a_policy_that_pins_awss_root_refuses_this_enclave(
    stack: Stack, clinic: Path, tmp_path: Path
) -> None:
    policy = re.sub(r"roots = .*", f'roots = ["{AWS_ROOT}"]', (clinic / "trust.toml").read_text())
    (tmp_path / "aws.toml").write_text(policy)
    done = stack.compose(
        *("run", "--rm", "--no-deps", "--volume", f"{tmp_path}/aws.toml:/aws.toml:ro", "client"),
        *("verify", "host:8443", "--policy", "/aws.toml"),
        check=False,
    )
    assert done.returncode == 1
    assert "EVIDENCE_ROOT" in done.stderr


@pytest.mark.parametrize("name", LOCKS)
def test_o4_no_file_says_where_its_image_was_built(files: dict[str, list[str]], name: str) -> None:
    notes = ("/direct_url.json", "/RECORD", "/INSTALLER")
    assert not [path for path in files[name] if path.endswith(notes)]


@pytest.mark.parametrize("name", LOCKS)
def test_o3_the_packages_of_an_image_are_those_of_its_lock(
    files: dict[str, list[str]], name: str
) -> None:
    found = {
        match[1].lower().replace("_", "-"): match[2]
        for path in files[name]
        if (match := _DISTRIBUTION.match(path))
    }
    ours = {package: found[package] for package in found if package.startswith("casemate")}
    lock = (ROOT / f"requirements/{LOCKS[name]}.txt").read_text()
    locked = dict(re.findall(r"^([a-z0-9-]+)==([^ ;\\]+)", lock, re.MULTILINE))
    elsewhere = set(
        re.findall(r"^([a-z0-9-]+)==[^ ]+ ; .*(?:win32|emscripten)", lock, re.MULTILINE)
    )
    third = {package: found[package] for package in found.keys() - ours.keys()}
    assert third == {name: locked[name] for name in locked.keys() - elsewhere}
    assert ("casemate" in ours) == (name != "enclave")


def test_o4_built_again_from_nothing_every_layer_is_the_same(stack: Stack, tmp_path: Path) -> None:
    def layers(tag: str) -> list[str]:
        found: list[str] = json.loads(
            stack.docker("image", "inspect", "--format", "{{json .RootFS.Layers}}", tag).stdout
        )
        return found

    names = ("enclave", "host", "client")
    again = stack.changed(
        tmp_path / "again.json", {name: {"image": f"casemate-{name}-again"} for name in names}
    )
    again.compose("build", "--quiet", "--no-cache", names[0])
    again.compose("--profile", "client", "build", "--quiet", *names[1:])  # of the same second build
    for name in names:
        found = layers(f"casemate-{name}-again")
        stack.docker("image", "rm", f"casemate-{name}-again")
        assert found == layers(f"casemate-{name}"), name


def test_o4_a_client_goes_by_the_release_log_of_the_image(
    stack: Stack, clinic: Path, tmp_path: Path
) -> None:
    """docs/releasing.md for the form `container`, with a key that is thrown away."""
    tree = stack.unpack("casemate-enclave:latest", tmp_path / "tree")
    key, log = tmp_path / "release.pem", tmp_path / "releases.json"
    signer = run("keygen", key).stdout.strip()
    for name in ("0.1.0", "0.1.1"):
        run(
            *("releases", "append", log, tree, "--form", "container", "--name", name),
            *("--revision", "f" * 40, "--key", key),
        )
        (tree / "app/boot.py").write_text("mended")
    stack.copy("seal", "/operator/configuration.cbor", tmp_path)
    policy = tmp_path / "log.toml"
    run(
        *("releases", "accept", log, "--signer", signer, "--form", "container"),
        *("--policy", clinic / "trust.toml", "--configuration", tmp_path / "configuration.cbor"),
        *("--output", policy),
    )
    assert "0.1.0" in run("verify", stack.address(), "--policy", policy).stdout
    raised = tmp_path / "raised.toml"
    raised.write_text(policy.read_text().replace("minimum_release = 1", "minimum_release = 2"))
    assert "EVIDENCE_MEASUREMENTS" in refusal("verify", stack.address(), "--policy", raised)
