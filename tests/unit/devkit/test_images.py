"""The images run what is measured, and nobody runs as root."""

from __future__ import annotations

import json
import re
from pathlib import Path

from casemate.attestation.cmdline import enclave_cmdline
from casemate_devkit.compose.seccomp import profile
from casemate_enclave.sandbox.allowed import calls_of

DOCKER = Path(__file__).resolve().parents[3] / "docker"


def stages() -> dict[str, list[tuple[str, str]]]:
    """The instructions of each stage of the Dockerfile, by its name."""
    text = (DOCKER / "Dockerfile").read_text().replace("\\\n", "")
    found: dict[str, list[tuple[str, str]]] = {}
    name = ""
    for line in text.splitlines():
        if not line or line.startswith("#"):
            continue
        word, _, rest = line.partition(" ")
        if word == "FROM":
            name = rest.rpartition(" ")[2]
        found.setdefault(name, []).append((word, rest))
    return found


def test_the_entry_point_is_the_measured_command_line() -> None:
    found = dict(stages()["enclave"])
    assert tuple(json.loads(found["ENTRYPOINT"])) == enclave_cmdline("container")


def test_the_enclaves_image_holds_the_staged_tree_alone_and_runs_as_nobody() -> None:
    found = stages()["enclave"]
    assert found[0] == ("FROM", "scratch AS enclave")
    assert [rest for word, rest in found if word in {"COPY", "ADD", "RUN"}] == [
        "--from=build /out/enclave /"
    ]
    assert ("USER", "65534:65534") in found


def test_every_image_starts_from_nothing_and_no_image_runs_as_root() -> None:
    found = stages()
    assert found.keys() - {""} == {"build", "enclave", "service", "host", "client", "devkit"}
    assert found["service"][0] == ("FROM", "scratch AS service")
    for name in ("host", "client", "devkit"):
        assert found[name][0] == ("FROM", f"service AS {name}")
    users = [rest for steps in found.values() for word, rest in steps if word == "USER"]
    assert users == ["65534:65534", "65532:65532"]


def test_the_base_is_pinned_and_an_argument() -> None:
    text = (DOCKER / "Dockerfile").read_text()
    assert re.search(r"^ARG BASE=\S+:\S*\d{8}\S*$", text, re.MULTILINE)


def test_the_outer_filter_is_the_committed_one_and_lets_the_inner_list_pass() -> None:
    committed = json.loads((DOCKER / "seccomp-enclave.json").read_text())
    assert committed == profile(), "run: python -m casemate_devkit.compose.seccomp"
    allowed = {name for rule in committed["syscalls"] for name in rule["names"]}
    assert set(calls_of("container")) <= allowed
    assert not allowed & {"ptrace", "mount", "unshare", "setns", "bpf", "keyctl", "init_module"}
