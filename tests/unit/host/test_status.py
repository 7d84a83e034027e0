"""Codes as gRPC statuses (SPEC 9.5, 11.4)."""

from __future__ import annotations

import re
from pathlib import Path

import grpc
import pytest

from casemate.errors import Code
from casemate_host.status import status_code

SPEC = Path(__file__).parents[3] / "docs" / "SPEC.md"


def documented() -> dict[str, str]:
    """The table of SPEC 11.4 as the document words it."""
    text = SPEC.read_text().split("\n11.4 ")[1].split("\n\n")[0].replace("\n", " ")
    table: dict[str, str] = {}
    for part in text.removeprefix("gRPC status by code:").split(";"):
        match = re.match(r"\s*`(\w+)` for ([A-Z_, ]+)", part)
        if match:
            table |= {code.strip(): match[1] for code in match[2].split(",")}
        elif match := re.match(r"\s*`(\w+)`\s*$", part):
            table[match[1]] = match[1]
    return table


def test_the_document_was_understood() -> None:
    assert len(documented()) == 20


@pytest.mark.parametrize("code", list(Code))
def test_every_code_has_the_documented_status(code: Code) -> None:
    assert status_code(code) is grpc.StatusCode[documented().get(code, "INTERNAL")]
