"""`casemate infer --receipt`, `receipt verify`, `receipt strip`, `inspect` of a receipt."""

from __future__ import annotations

import json
import stat
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from casemate.receipts import StoredReceipt
from tests.support import evidence as ev
from tests.support import receipts as rc
from tests.support.cli import refusal, run, run_json
from tests.support.nitro_pki import NOW
from tests.support.service import Service

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

AT_NOW = "2027-01-15T08:00:01Z"


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    monkeypatch.setattr("casemate.client.sessions._now", lambda: NOW)
    with Service() as running:
        yield running


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    path = tmp_path / "trust.toml"
    path.write_text(ev.policy().to_toml())
    return path


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    path = tmp_path / "answer.receipt"
    path.write_bytes(rc.stored().encode())
    return path


def test_what_infer_keeps_is_verified_offline(
    service: Service, policy: Path, tmp_path: Path
) -> None:
    np.save(tmp_path / "x.npy", np.array([1.5, -2.0], np.float32))
    kept = tmp_path / "kept.receipt"
    ask = ("infer", service.target, "wdbc", "--policy", policy, "--input", f"x={tmp_path}/x.npy")
    answer = run_json(*ask, "--receipt", kept)
    assert answer["outputs"]["x"]["data"] == [3.0, -4.0]
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    result = run("receipt", "verify", kept, "--policy", policy)
    assert "receipt verified as of" in result.stdout
    assert "answered     2027-01-15T08:00:01Z" in result.stdout
    assert "own time" in result.stderr
    assert refusal(*ask, "--receipt", kept).startswith("Error: INVALID_ARGUMENT")
    assert len(service.requests) == 1  # it was not even asked


def test_every_step_is_printed_with_what_it_found(kept: Path, policy: Path) -> None:
    result = run("receipt", "verify", kept, "--policy", policy)
    lines = [line.split() for line in result.stdout.splitlines()]
    marks = [line[:3] for line in lines if line and line[0] in "✓✗-"]
    assert marks[0] == ["✓", "1", "layout"]
    assert marks[1:19] == [
        ["✓", str(n), marks[n][2]] if n != 10 else ["-", "10", "nonce"] for n in range(1, 19)
    ]
    assert [mark[2] for mark in marks[19:]] == [
        *("evidence", "instance", "signature", "time", "request", "model", "question", "answer")
    ]
    verdict = run_json("receipt", "verify", kept, "--policy", policy, "--json", "--at", AT_NOW)
    assert verdict["verified"] is True
    assert [step["number"] for step in verdict["steps"]] == list(range(1, 10))
    assert [step["number"] for step in verdict["evidence_steps"]] == list(range(1, 19))
    assert all(step["detail"] for step in verdict["steps"])


def test_a_refusal_names_its_step(kept: Path, policy: Path) -> None:
    spoilt = replace(rc.stored(), answer=replace(rc.ANSWER, messages=(b"another",)))
    kept.write_bytes(spoilt.encode())
    result = run("receipt", "verify", kept, "--policy", policy, "--at", AT_NOW, code=1)
    assert "✗  9 answer" in result.stdout
    assert result.stderr == "Error: RECEIPT_ANSWER: the receipt is for another answer\n"
    verdict = run_json(
        "receipt", "verify", kept, "--policy", policy, "--at", AT_NOW, "--json", code=1
    )
    assert (verdict["verified"], verdict["code"]) == (False, "RECEIPT_ANSWER")


def test_the_present_is_too_late_for_old_evidence(kept: Path, policy: Path) -> None:
    result = run("receipt", "verify", kept, "--policy", policy, "--at", "now", code=1)
    assert "Error: EVIDENCE_" in result.stderr


def test_a_copy_shows_less_and_verifies_as_before(kept: Path, policy: Path, tmp_path: Path) -> None:
    less = tmp_path / "less.receipt"
    run("receipt", "strip", kept, less, "--question")
    stored = StoredReceipt.parse(less.read_bytes())
    assert (stored.question, stored.answer) == (None, rc.ANSWER)
    result = run("receipt", "verify", less, "--policy", policy, "--at", AT_NOW)
    assert "-  8 question       the question is not shown" in result.stdout
    assert refusal("receipt", "strip", kept, less, "--answer").startswith("Error: INVALID_ARGUMENT")
    run("receipt", "strip", kept, tmp_path / "same", code=2)


def test_inspect_shows_a_receipt_and_none_of_its_content(kept: Path) -> None:
    facts = json.loads(run("inspect", kept, "--json").stdout)
    assert facts["kind"] == "receipt"
    assert "UNVERIFIED" in facts["note"]
    assert (facts["model"], facts["version"]) == ("wdbc", 2)
    assert facts["question"] == "shown, 10 bytes"
    assert facts["header"]["sequence"] == 3
    assert facts["evidence"]["instance"]["receipt_key"] == ev.RECEIPT_KEY.hex()
    text = run("inspect", kept).stdout
    assert "a question" not in text
    assert (b"q" * 32).hex() not in text
    kept.write_bytes(replace(rc.stored(), header=b"\x01", evidence=b"\xff").encode())
    assert "unreadable" in run("inspect", kept).stdout


@pytest.mark.parametrize("content", [b"", b"CASERCT1", b"CASERCT1\xa0", b"not one"])
def test_what_is_no_receipt(content: bytes, kept: Path, policy: Path) -> None:
    kept.write_bytes(content)
    assert refusal("receipt", "verify", kept, "--policy", policy).startswith(
        "Error: RECEIPT_MALFORMED"
    )
