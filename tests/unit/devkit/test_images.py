"""The image runs what is measured."""

from __future__ import annotations

import json
from pathlib import Path

from casemate.attestation.cmdline import enclave_cmdline

DOCKERFILE = Path(__file__).resolve().parents[3] / "docker/enclave.Dockerfile"


def instructions() -> dict[str, str]:
    text = DOCKERFILE.read_text().replace("\\\n", "")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return dict(line.split(" ", 1) for line in lines)


def test_the_entry_point_is_the_measured_command_line() -> None:
    assert tuple(json.loads(instructions()["ENTRYPOINT"])) == enclave_cmdline("container")


def test_the_image_holds_the_staged_tree_alone_and_runs_as_nobody() -> None:
    found = instructions()
    assert (found["FROM"], found["COPY"], found["USER"]) == ("scratch", ". /", "65534:65534")
    assert found.keys() == {"FROM", "COPY", "USER", "ENTRYPOINT"}
