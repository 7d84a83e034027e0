"""A document without its bundle (SPEC 3.9): what it says of the release, and what it never says."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from casemate.attestation import parse_document
from casemate.attestation.cmdline import FORMS, enclave_cmdline
from casemate.attestation.details import moment
from casemate.attestation.measured import MeasuredDocument, verify_measured
from casemate.attestation.tpm_policy import TpmPolicy, TpmRelease
from casemate.errors import Code, EvidenceError
from tests.support import evidence as ev
from tests.support.documents import AWS_ROOTS, TPM, genuine
from tests.support.nitro_pki import NOW

if TYPE_CHECKING:
    from casemate.attestation import Step, TrustPolicy

DOCUMENT = ev.good().attestation_document
DEBUG = ev.good(pcrs=ev.pcrs() | {index: bytes(48) for index in (0, 1, 2)}).attestation_document


def measured(
    data: bytes, policy: TrustPolicy, nonce: bytes | None = ev.NONCE
) -> tuple[MeasuredDocument, list[Step]]:
    steps: list[Step] = []
    found = verify_measured(data, policy, nonce=nonce, now=NOW, observe=steps.append)
    return found, steps


def test_a_document_of_a_known_release() -> None:
    found, steps = measured(DOCUMENT, ev.policy())
    assert (found.release, found.issued) == ("0.1.0", True)
    assert [step.outcome for step in steps] == ["passed"] * 12 + ["skipped"] * 6


def test_a_document_for_a_nonce_of_somebody_else() -> None:
    found, steps = measured(DOCUMENT, ev.policy(), None)
    assert not found.issued
    assert [step.number for step in steps if step.outcome == "skipped"] == [10, *range(13, 19)]


def test_debug_mode_says_nothing_of_the_release(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(EvidenceError) as caught:
        measured(DEBUG, ev.policy())
    assert caught.value.code == Code.EVIDENCE_DEBUG
    found, steps = measured(DEBUG, ev.policy(allow_debug=True))
    assert found.release == "(debug)"
    assert steps[11].outcome == "skipped"
    assert "debug mode" in caplog.text


@pytest.mark.parametrize(
    ("changes", "nonce", "code"),
    [
        ({"pcrs": ev.pcrs(pcr2=b"\x66" * 48)}, ev.NONCE, Code.EVIDENCE_MEASUREMENTS),
        ({"timestamp": NOW - 301_000}, ev.NONCE, Code.EVIDENCE_AGE),
        ({}, bytes(32), Code.EVIDENCE_NONCE),
        ({"pcrs": ..., "nitrotpm_pcrs": ev.pcrs()}, ev.NONCE, Code.EVIDENCE_PLATFORM),
    ],
)
def test_what_is_refused(changes: dict[str, object], nonce: bytes, code: Code) -> None:
    with pytest.raises(EvidenceError) as caught:
        measured(ev.good(**changes).attestation_document, ev.policy(), nonce)
    assert caught.value.code == code


def test_a_genuine_nitrotpm_document() -> None:
    data = genuine(TPM)
    document = parse_document(data)
    boot = TpmRelease("ami", {index: document.pcrs[index] for index in (4, 7, 12)})
    other = TpmRelease("other", {7: b"\x66" * 48})
    steps: list[Step] = []
    policy = TpmPolicy(AWS_ROOTS, 60, (other, boot))
    found = verify_measured(
        data, policy, nonce=document.nonce, now=document.timestamp, observe=steps.append
    )
    assert found.release == "ami"
    assert "PCR12" in steps[11].detail
    with pytest.raises(EvidenceError, match="MEASUREMENTS: PCR7 not as in release other"):
        verify_measured(
            data, TpmPolicy(AWS_ROOTS, 60, (other,)), nonce=None, now=document.timestamp
        )
    with pytest.raises(EvidenceError, match="EVIDENCE_PLATFORM"):
        verify_measured(data, ev.policy(), nonce=None, now=document.timestamp)


def test_times_for_people() -> None:
    assert moment(0) == "1970-01-01T00:00:00Z"
    assert moment(253_402_300_799_999) == "9999-12-31T23:59:59Z"
    assert moment(253_402_300_800_000) == "253402300800000 ms after 1970"


def test_a_command_line_for_each_form_with_a_tree() -> None:
    for form in FORMS:
        assert enclave_cmdline(form)[-2:] == ("--form", form)
    with pytest.raises(ValueError, match="nitro-enclave"):
        enclave_cmdline("nitro-enclave")
