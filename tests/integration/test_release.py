"""A release, rehearsed from a clone to a client's policy, with a key that is thrown away.

docs/releasing.md in its order: two builders, each with a clone, a folder, a day, a time zone, a
umask and hash seeds of its own; then the log; then clients. `make rehearsal` shows every command.

THREATS: O4.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from casemate.errors import Code
from tests.support import bills
from tests.support.deployment import ROOT, running

if TYPE_CHECKING:
    from collections.abc import Iterator

    from casemate_devkit.local import LocalDeployment

pytestmark = [pytest.mark.integration, pytest.mark.slow]

PACKAGES = ("", "kms_client", "enclave", "host", "devkit")
FORMS = ("process", "container")
FIRST, SECOND = "0.1.0", "0.1.1"
# An image for which nobody needs a kernel: nothing boots here, and `make qemu` boots real ones.
PROFILE = """form = "nitro-enclave"
architecture = "x86_64"
kernel_arguments = "reboot=k panic=30"
modules = []
"""


def execute(*command: str | Path, code: int = 0, **environment: str) -> str:
    """Run a command, show it, and return what it prints; ``code`` is how it has to end."""
    words = [str(word) for word in command]
    print(f"$ {shlex.join(words)}", flush=True)  # noqa: T201 - what `make rehearsal` shows
    done = subprocess.run(
        words, check=False, capture_output=True, text=True, env={**os.environ, **environment}
    )
    assert done.returncode == code, f"{shlex.join(words)}:\n{done.stdout}{done.stderr}"
    return done.stdout + (done.stderr if code else "")


def casemate(*arguments: str | Path, code: int = 0) -> str:
    return execute(sys.executable, "-m", "casemate.client.cli", *arguments, code=code)


@dataclass(frozen=True)
class Builder:
    """One of the two who build: a clone, and what `make` puts into it."""

    clone: Path
    commit: str
    seed: str
    zone: str

    @classmethod
    def create(cls, folder: Path, *, days: int, umask: str, seed: str, zone: str) -> Builder:
        """Clone, turn back the clock of every file by ``days``, build."""
        clone = folder / "casemate"
        execute("git", "clone", "--quiet", ROOT, clone)
        then = time.time() - days * 86400
        for path in clone.rglob("*"):
            os.utime(path, (then, then), follow_symlinks=False)
        virtual = Path(sys.executable).parent.parent
        make = f"make -C {clone} VENV={virtual} -o {virtual}/.installed wheels sbom"
        sources = ":".join(str(clone / package) for package in PACKAGES)
        command = "sh", "-c", f"umask {umask} && {make}"
        execute(*command, PYTHONPATH=sources, PYTHONHASHSEED=seed, TZ=zone)
        commit = execute("git", "-C", clone, "rev-parse", "HEAD").strip()
        return cls(clone, commit, seed, zone)

    @property
    def tree(self) -> Path:
        return self.clone / ".stage/tree"

    def files(self, pattern: str) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in sorted(self.clone.glob(pattern))}

    def image(self) -> Path:
        """Build the enclave image (EIF) of this clone's tree."""
        output = self.clone / "dist/casemate.eif"
        if output.exists():
            return output
        profile, kernel = self.clone / "profile.toml", self.clone / "kernel"
        profile.write_text(PROFILE)
        kernel.write_bytes(b"no kernel: a rehearsal" * 1000)
        execute(
            *(sys.executable, "-m", "casemate_devkit.eif", "--profile", profile),
            *("--tree", self.tree, "--kernel", kernel, "--output", output),
            PYTHONHASHSEED=self.seed,
            TZ=self.zone,
        )
        return output


@pytest.fixture(scope="module")
def builders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Builder, Builder]]:
    here, there = tmp_path_factory.mktemp("here"), tmp_path_factory.mktemp("there")
    (there / "deeper/down").mkdir(parents=True)
    yield (
        Builder.create(here, days=0, umask="022", seed="1", zone="UTC"),
        Builder.create(
            there / "deeper/down", days=400, umask="077", seed="2", zone="Pacific/Auckland"
        ),
    )
    for folder in (here, there):
        shutil.rmtree(folder)


@pytest.fixture(scope="module")
def fixed(builders: tuple[Builder, Builder], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tree of the release after: one file of it changed."""
    tree = tmp_path_factory.mktemp("fixed") / "tree"
    shutil.copytree(builders[0].tree, tree, symlinks=True)
    boot = tree / "app/boot.py"
    boot.chmod(0o644)
    boot.write_bytes(boot.read_bytes() + b"# mended\n")
    return tree


@dataclass(frozen=True)
class Publisher:
    """Who holds the release key and the log."""

    key: Path
    signer: str
    log: Path

    def append(self, what: Path, name: str, commit: str, *more: str) -> str:
        terms = ("--name", name, "--revision", commit, "--key", self.key)
        return casemate("releases", "append", self.log, what, *terms, *more).strip()

    def verify(self, *more: str, signer: str = "", code: int = 0) -> str:
        terms = ("--signer", signer or self.signer)
        return casemate("releases", "verify", self.log, *terms, *more, code=code)


@pytest.fixture(scope="module")
def published(
    builders: tuple[Builder, Builder], fixed: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Publisher, list[str]]:
    """The log of two releases in every form, and its head after each entry."""
    folder = tmp_path_factory.mktemp("publisher")
    key = folder / "release.pem"
    signer = casemate("keygen", key).strip()
    publisher = Publisher(key, signer, folder / "releases.json")
    first = builders[0]
    heads = [publisher.append(first.image(), f"{FIRST}-x86_64", first.commit)]
    for name, tree in ((FIRST, first.tree), (SECOND, fixed)):
        heads += [
            publisher.append(tree, f"{name}-{form}-x86_64", first.commit, "--form", form)
            for form in FORMS
        ]
    return publisher, heads


def test_o4_two_builders_make_the_same_wheels(builders: tuple[Builder, Builder]) -> None:
    first, second = (builder.files("dist/*.whl") for builder in builders)
    assert len(first) == len(PACKAGES)
    assert first == second


def test_two_builders_write_the_same_valid_bills_of_materials(
    builders: tuple[Builder, Builder],
) -> None:
    first, second = (builder.files("dist/sbom/*.json") for builder in builders)
    assert set(first) == {f"{name}.cdx.json" for name in ("enclave", "host", "client", "devkit")}
    assert first == second
    for text in first.values():
        assert bills.valid(text)


@pytest.mark.parametrize("form", FORMS)
def test_two_builders_measure_the_same_tree(builders: tuple[Builder, Builder], form: str) -> None:
    first, second = (
        casemate("measure", builder.tree, "--form", form, "--json") for builder in builders
    )
    assert json.loads(first) == json.loads(second)


def test_o4_two_builders_make_the_same_enclave_image(
    builders: tuple[Builder, Builder],
) -> None:
    first, second = (builder.image().read_bytes() for builder in builders)
    assert first == second


def test_the_log_names_what_was_built_and_goes_on_from_each_head(
    published: tuple[Publisher, list[str]], builders: tuple[Builder, Builder]
) -> None:
    publisher, heads = published
    for head in heads[:-1]:
        publisher.verify("--since", head)
    found = json.loads(publisher.verify("--json", "--since", heads[-1]))
    assert found["head"] == heads[-1]
    assert [release["number"] for release in found["releases"]] == [1, 2, 3, 4, 5]
    measured = json.loads(casemate("measure", builders[1].tree, "--form", "container", "--json"))
    for name in ("pcr0", "pcr1", "pcr2"):
        assert found["releases"][2][name] == measured[name]
    assert found["releases"][2]["revision"] == builders[1].commit


def test_another_key_or_a_changed_register_is_refused(
    published: tuple[Publisher, list[str]], tmp_path: Path
) -> None:
    publisher, _ = published
    other = casemate("keygen", tmp_path / "other.pem").strip()
    assert Code.RELEASES_INVALID in publisher.verify(signer=other, code=1)
    document = json.loads(publisher.log.read_text())
    document["entries"][2]["pcr0"] = "ab" * 48
    changed = Publisher(publisher.key, publisher.signer, tmp_path / "releases.json")
    changed.log.write_text(json.dumps(document))
    assert Code.RELEASES_INVALID in changed.verify(code=1)


def policy(world: LocalDeployment, publisher: Publisher, minimum: int, *, code: int = 0) -> Path:
    """What a user's `casemate releases accept` writes for the form that runs here."""
    folder = world.clinic.directory
    (folder / "configuration.cbor").write_bytes(world.configuration)
    output = folder / f"trust-{minimum}-{time.monotonic_ns()}.toml"
    casemate(
        *("releases", "accept", publisher.log, "--signer", publisher.signer, "--form", "process"),
        *("--policy", world.write_trust_policy(folder / "before.toml"), "--output", output),
        *("--configuration", folder / "configuration.cbor", "--minimum", str(minimum)),
        code=code,
    )
    return output


@pytest.mark.process_form("it rehearses releases of processes; its image has no kernel")
def test_clients_go_by_the_log_and_its_minimum(
    published: tuple[Publisher, list[str]],
    builders: tuple[Builder, Builder],
    fixed: Path,
    short_path: Path,
) -> None:
    publisher, _ = published
    (short_path / "old").mkdir()
    (short_path / "new").mkdir()
    with running(short_path / "old", builders[1].tree) as world:
        both = policy(world, publisher, 1)
        assert f"{FIRST}-process-x86_64" in casemate("verify", world.target, "--policy", both)
        raised = both.with_name("raised.toml")
        raised.write_text(both.read_text().replace("minimum_release = 1", "minimum_release = 4"))
        refused = casemate("verify", world.target, "--policy", raised, code=1)
        assert Code.EVIDENCE_MEASUREMENTS in refused
        assert f"release {FIRST}-process-x86_64 is below the minimum" in refused
        only = policy(world, publisher, 4)
        refused = casemate("verify", world.target, "--policy", only, code=1)
        assert Code.EVIDENCE_MEASUREMENTS in refused
    with running(short_path / "new", fixed) as world:
        only = policy(world, publisher, 4)
        assert f"{SECOND}-process-x86_64" in casemate("verify", world.target, "--policy", only)
        casemate(
            *("releases", "withdraw", publisher.log, "4", "--reason", "a rehearsal"),
            *("--key", publisher.key),
        )
        policy(world, publisher, 4, code=1)
