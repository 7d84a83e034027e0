"""Every vector of tests/vectors/attestation through the command line (SPEC 13.2)."""

from __future__ import annotations

import base64
import copy
import json
from pathlib import Path
from typing import Any

import pytest

from casemate.attestation import STEPS
from casemate.attestation.conformance import judge
from casemate.errors import CasemateError, Code
from tests.support.cli import run, run_json

FOLDER = Path(__file__).parents[2] / "vectors" / "attestation"
FILES = sorted(FOLDER.glob("*.json"))


def cases(path: Path) -> list[dict[str, Any]]:
    content = json.loads(path.read_text())
    assert content["format"] == 1
    found: list[dict[str, Any]] = content["cases"]
    return found


GOOD = {case["name"]: case["input"] for case in cases(FOLDER / "encoding.json")}["good"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_vectors(path: Path) -> None:
    listed = cases(path)
    stdin = json.dumps([case["input"] for case in listed]).encode()
    verdicts = run_json("conformance", "verify", stdin=stdin)
    wrong = [
        (case["name"], case["expected"], verdict)
        for case, verdict in zip(listed, verdicts, strict=True)
        if case["expected"] != verdict
    ]
    assert wrong == []


def test_the_vectors_have_names_of_their_own_and_fail_at_every_step() -> None:
    listed = [case for path in FILES for case in cases(path)]
    for path in FILES:
        names = [case["name"] for case in cases(path)]
        assert len(set(names)) == len(names)
    assert {case["expected"]["step"] for case in listed} == {None, *STEPS}
    for case in listed:
        expected = case["expected"]
        if expected["step"] is not None:
            assert expected["code"] == STEPS[expected["step"]][1]
        assert (expected["verdict"] == "verified") is (expected["code"] is None)


def test_one_case_gives_one_verdict() -> None:
    verdict = run_json("conformance", "verify", stdin=json.dumps(GOOD).encode())
    assert verdict == {"verdict": "verified", "code": None, "step": None}


def test_base64_stands_for_hex() -> None:
    case = copy.deepcopy(GOOD)
    data = bytes.fromhex(case.pop("document"))
    case["document_base64"] = base64.b64encode(data).decode()
    assert judge(case) == judge(GOOD)


@pytest.mark.parametrize(
    "changes",
    [
        {"document": None},
        {"document": "AB"},
        {"document": "abc"},
        {"document": 1},
        {"document_base64": "AA=="},
        {"evidence": "00"},
        {"policy": "x"},
        {"policy": 1, "roots": None},
        {"roots": None},
        {"roots": []},
        {"roots": ["zz"]},
        {"roots": "00"},
        {"time": None},
        {"time": -1},
        {"time": 1.5},
        {"time": True},
        {"nonce": 1},
        {"nonce": "0"},
        {"unknown": 1},
    ],
)
def test_cases_that_are_none(changes: dict[str, Any]) -> None:
    case = {**GOOD, **changes}
    with pytest.raises(CasemateError) as caught:
        judge({name: value for name, value in case.items() if value is not None})
    assert caught.value.code == Code.INVALID_ARGUMENT


@pytest.mark.parametrize("case", [None, 1, "x", [], {}, {"evidence_base64": "!", "policy": ""}])
def test_other_json(case: object) -> None:
    with pytest.raises(CasemateError):
        judge(case)


@pytest.mark.parametrize("stdin", [b"", b"{", b"\xff", b"[" * 100_000, b"NaN"])
def test_input_that_is_no_json(stdin: bytes) -> None:
    assert "INVALID_ARGUMENT" in run("conformance", "verify", stdin=stdin, code=1).stderr
