"""The numbered steps of SPEC 3.8: their table, their order, their codes, their texts."""

from __future__ import annotations

import ast
import logging
import re
from dataclasses import replace
from pathlib import Path

import pytest

from casemate.attestation import (
    DEBUG_RELEASE,
    STEPS,
    AllowedModel,
    EvidenceBundle,
    KeyConfig,
    TrustPolicy,
    encode_log,
    verify_evidence,
)
from casemate.errors import Code, EvidenceError
from tests.support import evidence as ev
from tests.support import nitro_pki
from tests.support.nitro_pki import NOW

REPOSITORY = Path(__file__).parents[3]
DEBUG_PCRS = ev.pcrs(pcr0=bytes(48), pcr1=bytes(48), pcr2=bytes(48), pcr4=b"\x04" * 48)


def refused(
    bundle: EvidenceBundle, trusted: TrustPolicy | None = None, nonce: bytes | None = ev.NONCE
) -> EvidenceError:
    with pytest.raises(EvidenceError) as caught:
        ev.judge(bundle, trusted, nonce=nonce)
    return caught.value


def test_the_table_is_that_of_the_spec() -> None:
    text = (REPOSITORY / "docs" / "SPEC.md").read_text()
    rows = re.findall(r"^\| (\d+) \| (\w+) \| `(EVIDENCE_\w+)` \|", text, re.MULTILINE)
    assert rows == [(str(number), name, code) for number, (name, code) in STEPS.items()]


def test_good_evidence_passes_every_step_in_order() -> None:
    judged = ev.judge(ev.good())
    assert [(step.number, step.outcome) for step in judged.steps] == [
        (number, "passed") for number in range(1, 19)
    ]
    assert [(step.name, step.code) for step in judged.steps] == list(STEPS.values())
    evidence = judged.evidence
    assert evidence.release == "0.1.0"
    assert evidence.configuration == ev.CONFIGURATION
    assert evidence.instance == ev.INSTANCE
    assert evidence.log == (ev.LOADED,)
    assert evidence.current_key == (ev.KEY.encode(), ev.KEY)
    assert evidence.verified_at == NOW
    assert len(evidence.instance_digest) == 48


def _spoilt() -> dict[int, tuple[EvidenceBundle, dict[str, object]]]:
    """For each step a bundle, and what else to change, that passes all steps before it."""
    good, unsigned = ev.good(), ev.unsigned()
    document = good.attestation_document
    key = replace(ev.KEY, not_before=NOW + 1, not_after=NOW + 2)
    young = replace(ev.INSTANCE, boot_time=NOW + 1)
    other = replace(ev.LOADED, name="other")
    foreign = replace(ev.CONFIGURATION, audience="else").encode()
    foreign_release = replace(ev.RELEASE, pcr16=ev.pcr16(foreign))
    return {
        1: (replace(good, attestation_document=b""), {}),
        2: (replace(good, attestation_document=document + b"\x00"), {}),
        3: (replace(good, attestation_document=document.replace(b"\x38\x22", b"\x38\x23", 1)), {}),
        4: (ev.good(digest="SHA512"), {}),
        5: (replace(good, platform="nitro-tpm"), {}),
        6: (good, {"roots": frozenset([bytes(32)])}),
        7: (ev.good(cabundle=ev.chain().certificates[:-2]), {}),
        8: (replace(good, attestation_document=document[:-1] + bytes([document[-1] ^ 1])), {}),
        9: (ev.good(timestamp=NOW - 300_001), {}),
        10: (ev.good(nonce=ev.NONCE[:-1]), {}),
        11: (ev.good(pcrs=DEBUG_PCRS), {}),
        12: (ev.good(pcrs=ev.pcrs(pcr2=b"\x99" * 48)), {}),
        13: (replace(good, configuration=ev.CONFIGURATION.encode() + b"\x00"), {}),
        14: (replace(good, measurement_log=encode_log([])), {}),
        15: (ev.attested(replace(unsigned, key_configs=(key.encode(),))), {}),
        16: (ev.attested(replace(unsigned, instance_config=young.encode())), {}),
        17: (
            ev.attested(replace(unsigned, configuration=foreign)),
            {"releases": (foreign_release,)},
        ),
        18: (ev.attested(replace(unsigned, measurement_log=encode_log([other]))), {}),
    }


@pytest.mark.parametrize("number", STEPS)
def test_each_step_fails_with_its_code_after_all_before_it_passed(number: int) -> None:
    bundle, changes = _spoilt()[number]
    steps: list[tuple[int, str]] = []
    with pytest.raises(EvidenceError) as caught:
        verify_evidence(
            bundle,
            ev.policy(**changes),
            nonce=ev.NONCE,
            now=NOW,
            observe=lambda step: steps.append((step.number, step.outcome)),
        )
    assert caught.value.code == STEPS[number][1]
    assert steps == [*((n, "passed") for n in range(1, number)), (number, "failed")]


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"pcr2": b"\x99" * 48}, "PCR2 differs from release 0.1.0"),
        ({"pcr0": b"\x99" * 48, "pcr1": b"\x98" * 48}, "PCR0 and PCR1 differ from release 0.1.0"),
    ],
)
def test_a_refusal_names_the_registers_that_differ(changes: dict[str, bytes], text: str) -> None:
    far = replace(ev.RELEASE, name="9.9", pcr0=b"\x01" * 48, pcr1=b"\x01" * 48, pcr2=b"\x01" * 48)
    error = refused(ev.good(pcrs=ev.pcrs(**changes)), ev.policy(releases=(far, ev.RELEASE)))
    assert error.detail == text


def test_two_releases_of_the_same_code_differ_by_configuration() -> None:
    other = replace(ev.CONFIGURATION, minimum_versions={}).encode()
    second = replace(ev.RELEASE, name="0.1.0-b", pcr16=ev.pcr16(other))
    bundle = ev.attested(replace(ev.unsigned(), configuration=other))
    trusted = ev.policy(releases=(ev.RELEASE, second))
    assert ev.judge(bundle, trusted).evidence.release == "0.1.0-b"
    assert ev.judge(ev.good(), trusted).evidence.release == "0.1.0"
    assert refused(bundle).detail == "PCR16 differs from release 0.1.0"


def test_a_configuration_of_another_release_does_not_pass_for_this_one() -> None:
    other = replace(ev.CONFIGURATION, minimum_versions={}).encode()
    elsewhere = replace(ev.RELEASE, name="2", pcr2=b"\x77" * 48, pcr16=ev.pcr16(other))
    bundle = ev.attested(replace(ev.unsigned(), configuration=other))
    error = refused(bundle, ev.policy(releases=(ev.RELEASE, elsewhere)))
    assert error.code == Code.EVIDENCE_CONFIGURATION


@pytest.mark.parametrize(
    ("age", "passes"), [(-60_000, 1), (-60_001, 0), (300_000, 1), (300_001, 0)]
)
def test_age_is_bounded_on_both_sides(age: int, passes: int) -> None:
    bundle = ev.good(timestamp=NOW - age)
    if passes:
        ev.judge(bundle)
    else:
        assert refused(bundle).code == Code.EVIDENCE_AGE


def test_debug_mode_needs_permission_and_warns_each_time(caplog: pytest.LogCaptureFixture) -> None:
    bundle = ev.good(pcrs=DEBUG_PCRS)
    assert refused(bundle).code == Code.EVIDENCE_DEBUG
    for expected in (1, 2):
        with caplog.at_level(logging.WARNING):
            judged = ev.judge(bundle, ev.policy(allow_debug=True))
        assert judged.evidence.release == DEBUG_RELEASE
        assert [step.number for step in judged.steps if step.outcome == "skipped"] == [12]
        assert len(caplog.records) == expected


def test_allow_debug_leaves_other_enclaves_to_the_measurements() -> None:
    trusted = ev.policy(allow_debug=True)
    assert ev.judge(ev.good(), trusted).evidence.release == "0.1.0"
    error = refused(ev.good(pcrs=ev.pcrs(pcr1=b"\x99" * 48)), trusted)
    assert error.code == Code.EVIDENCE_MEASUREMENTS


def test_allow_debug_still_binds_the_configuration() -> None:
    other = replace(ev.CONFIGURATION, minimum_versions={}).encode()
    bundle = replace(ev.unsigned(), configuration=other)
    error = refused(
        ev.attested(bundle, pcrs=DEBUG_PCRS | {16: ev.pcr16(other)}), ev.policy(allow_debug=True)
    )
    assert error.code == Code.EVIDENCE_CONFIGURATION


def _rotating(*keys: KeyConfig) -> EvidenceBundle:
    encoded = tuple(key.encode() for key in keys)
    return ev.attested(replace(ev.unsigned(), key_configs=encoded))


def test_the_current_key_is_the_last_that_is_valid() -> None:
    old = replace(ev.KEY, not_before=NOW - 2 * ev.HOUR)
    ahead = replace(ev.KEY, not_before=NOW + 1)
    pair = ev.judge(_rotating(old, ev.KEY)).evidence
    assert pair.current_key == (ev.KEY.encode(), ev.KEY)
    early = ev.judge(_rotating(ev.KEY, ahead)).evidence
    assert early.current_key == (ev.KEY.encode(), ev.KEY)


def test_no_key_and_three_keys_are_refused() -> None:
    for keys in ((), (ev.KEY,) * 3):
        assert refused(_rotating(*keys)).code == Code.EVIDENCE_KEYS


def test_pinned_digests_and_unloads() -> None:
    pinned = AllowedModel("wdbc", ev.PUBLISHER, frozenset([ev.MODEL_DIGEST]))
    ev.judge(ev.good(), ev.policy(models=(pinned,)))
    elsewhere = replace(pinned, digests=frozenset([bytes(47) + b"\x01"]))
    assert refused(ev.good(), ev.policy(models=(elsewhere,))).code == Code.EVIDENCE_MODELS
    gone = replace(ev.LOADED, name="other", op="unload")
    ev.judge(ev.attested(replace(ev.unsigned(), measurement_log=encode_log([ev.LOADED, gone]))))


def test_every_load_counts_also_one_of_the_past() -> None:
    echo = replace(ev.LOADED, name="echo")
    gone = replace(echo, op="unload")
    for log in ([echo, gone, ev.LOADED], [ev.LOADED, echo, gone], [gone, echo, ev.LOADED]):
        bundle = ev.attested(replace(ev.unsigned(), measurement_log=encode_log(log)))
        assert refused(bundle).code == Code.EVIDENCE_MODELS


def test_a_model_by_another_publisher_is_refused() -> None:
    forged = encode_log([replace(ev.LOADED, publisher=bytes(32))])
    error = refused(ev.attested(replace(ev.unsigned(), measurement_log=forged)))
    assert error.code == Code.EVIDENCE_MODELS


def test_stapled_evidence_has_no_nonce() -> None:
    trusted = ev.policy(evidence="stapled")
    ev.judge(ev.good(nonce=None), trusted, nonce=None)
    assert refused(ev.good(), trusted, nonce=None).code == Code.EVIDENCE_NONCE
    assert refused(ev.good(nonce=b""), trusted, nonce=None).code == Code.EVIDENCE_NONCE


def test_a_policy_for_fresh_evidence_does_not_go_without_a_nonce() -> None:
    error = refused(ev.good(nonce=None), ev.policy(evidence="fresh"), nonce=None)
    assert error.code == Code.EVIDENCE_NONCE


def test_accelerator_evidence_is_refused_in_version_1() -> None:
    bundle = ev.attested(replace(ev.unsigned(), accelerator=(b"x",)))
    assert refused(bundle).code == Code.EVIDENCE_SIZE


def test_only_the_verifier_makes_verified_things() -> None:
    """Types record trust: a constructor called elsewhere would forge it."""
    makers: dict[str, set[str]] = {"VerifiedDocument": set(), "VerifiedEvidence": set()}
    shipped = ("casemate", "enclave", "host", "kms_client", "devkit")
    for path in (file for top in shipped for file in (REPOSITORY / top).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.Attribute):
                name = node.func.id if isinstance(node.func, ast.Name) else node.func.attr
                if name in makers:
                    makers[name].add(path.relative_to(REPOSITORY).as_posix())
    here = {"casemate/attestation/verify.py"}
    assert makers == {"VerifiedDocument": here, "VerifiedEvidence": here}


def test_registers_are_found_by_index() -> None:
    backwards = dict(reversed(ev.pcrs().items()))
    ev.judge(ev.good(pcrs=backwards))
    ev.judge(ev.good(pcrs=nitro_pki.indefinite(backwards)))
