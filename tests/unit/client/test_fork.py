"""A data key serves one process: a forked child makes its own (SPEC 6.2)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from casemate.client.process import OfThisProcess
from casemate.envelope.header import parse_request_header
from casemate.envelope.sealed_message import parse_sealed
from casemate.errors import Code, EnvelopeError
from tests.support import envelope as env
from tests.support import evidence as made
from tests.support.service import Service

ROOT = Path(__file__).parents[3]


def test_a_forked_client_verifies_anew_and_has_a_data_key_of_its_own() -> None:
    with Service() as service:
        (root,) = made.chain().roots
        command = [sys.executable, "-m", "tests.support.forking", service.target, root.hex()]
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300
        )
        assert done.returncode == 0, done.stderr
        headers = [
            parse_request_header(parse_sealed(memoryview(request))[0])
            for request in service.requests
        ]
    assert service.evidence_calls == 2
    before, child, after = headers
    assert before.key_commitment == after.key_commitment != child.key_commitment
    assert (before.sequence, child.sequence, after.sequence) == (0, 0, 1)


def test_a_session_refuses_to_seal_in_another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    session = env.hpke_session()
    env.seal(session)
    monkeypatch.setattr(os, "getpid", lambda: -1)
    with pytest.raises(EnvelopeError) as refused:
        env.seal(session)
    assert refused.value.code is Code.INVALID_ARGUMENT


def test_each_process_makes_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    made_here: OfThisProcess[object] = OfThisProcess(object)
    first = made_here.get()
    assert made_here.get() is first
    monkeypatch.setattr(os, "getpid", lambda: -1)
    assert made_here.get() is not first
    assert made_here.get() is made_here.get()
