"""Evidence that was kept, and the command lines that are measured."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from casemate.attestation.archive import verify_kept
from casemate.attestation.cmdline import PARENT_CID, enclave_cmdline, image_cmdline
from casemate.errors import Code, EvidenceError
from tests.support import evidence as ev
from tests.support.nitro_pki import NOW

if TYPE_CHECKING:
    from casemate.attestation import Step


def test_kept_evidence_passes_at_its_time_and_its_nonce_is_reported_as_skipped() -> None:
    steps: list[Step] = []
    kept = ev.good()
    verified = verify_kept(kept, ev.policy(), now=NOW, observe=steps.append)
    assert verified == verify_kept(kept, ev.policy(), now=NOW)
    outcomes = {step.number: step.outcome for step in steps}
    assert outcomes == dict.fromkeys(range(1, 19), "passed") | {10: "skipped"}


def test_kept_evidence_that_is_spoilt_is_refused_by_its_step() -> None:
    for document, code in ((b"", Code.EVIDENCE_SIZE), (b"\x84", Code.EVIDENCE_COSE)):
        spoilt = replace(ev.good(), attestation_document=document)
        with pytest.raises(EvidenceError) as caught:
            verify_kept(spoilt, ev.policy(), now=NOW)
        assert caught.value.code is code


def test_each_kind_of_form_has_its_own_command_line() -> None:
    for form, parent in PARENT_CID.items():
        assert f"vsock:{parent}:5001" in image_cmdline(form)
        with pytest.raises(ValueError, match="no staged tree"):
            enclave_cmdline(form)
    with pytest.raises(ValueError, match="no enclave image"):
        image_cmdline("process")
