"""Part A of the attack catalogue, A29 to A39: policy, nonce, binding, platform."""

from __future__ import annotations

import hashlib
from dataclasses import fields, replace

import pytest

from casemate.attestation import EvidenceBundle, TrustPolicy, parse_document, verify_document
from casemate.errors import Code, EvidenceError, PolicyError
from tests.support import evidence as ev
from tests.support import nitro_pki as pki
from tests.support.documents import AWS_ROOTS, DEBUG, TPM, genuine, refused, verify_aws
from tests.support.nitro_pki import ES384, NOW, cbor


def judged_code(
    bundle: EvidenceBundle,
    trusted: TrustPolicy | None = None,
    nonce: bytes | None = ev.NONCE,
    now: int = NOW,
) -> Code:
    with pytest.raises(EvidenceError) as caught:
        ev.judge(bundle, trusted, nonce=nonce, now=now)
    return caught.value.code


def under_aws(name: str, **changes: object) -> Code:
    """The code that refuses a genuine document under AWS's root at its own time."""
    data = genuine(name)
    document = parse_document(data)
    bundle = replace(ev.unsigned(), attestation_document=data)
    trusted = ev.policy(roots=AWS_ROOTS, evidence="stapled", **changes)
    return judged_code(bundle, trusted, document.nonce, document.timestamp)


def test_a29_a_genuine_debug_document() -> None:
    assert any(parse_document(genuine(DEBUG)).pcrs[4])
    assert under_aws(DEBUG) == Code.EVIDENCE_DEBUG


@pytest.mark.parametrize("index", [0, 1, 2])
def test_a29_a_single_zero_register(index: int) -> None:
    bundle = ev.good(pcrs=ev.pcrs() | {index: bytes(48)})
    for allow in (False, True):
        assert judged_code(bundle, ev.policy(allow_debug=allow)) == Code.EVIDENCE_DEBUG


@pytest.mark.parametrize("index", [0, 1, 2, 16])
def test_a30_a_missing_register_never_matches(index: int) -> None:
    pcrs = {key: value for key, value in ev.pcrs().items() if key != index}
    code = Code.EVIDENCE_CONFIGURATION if index == 16 else Code.EVIDENCE_DEBUG
    for allow in (False, True):
        assert judged_code(ev.good(pcrs=pcrs), ev.policy(allow_debug=allow)) == code


def test_a30_an_enclave_that_has_no_configuration_yet() -> None:
    pcrs = {key: value for key, value in ev.pcrs().items() if key != 16}
    with pytest.raises(EvidenceError, match="EVIDENCE_CONFIGURATION: PCR16 missing"):
        ev.judge(ev.good(pcrs=pcrs))


def test_a30_no_expectation_is_no_policy() -> None:
    nothing: dict[str, object] = {
        "releases": (),
        "roots": frozenset(),
        "models": (),
        "audience": "",
    }
    for name, empty in nothing.items():
        with pytest.raises(PolicyError, match="POLICY_INVALID"):
            ev.policy(**{name: empty})
    for register in ("pcr0", "pcr1", "pcr2", "pcr16"):
        for value in (b"", bytes(48), b"\x01" * 47):
            with pytest.raises(PolicyError, match="POLICY_INVALID"):
                replace(ev.RELEASE, **{register: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("index", [0, 1, 2])
def test_a31_each_image_register_counts(index: int) -> None:
    bundle = ev.good(pcrs=ev.pcrs() | {index: b"\x66" * 48})
    assert judged_code(bundle) == Code.EVIDENCE_MEASUREMENTS


def test_a31_registers_of_different_releases_do_not_mix() -> None:
    other = replace(ev.RELEASE, name="0.2.0", pcr0=b"\x20" * 48, pcr2=b"\x22" * 48)
    mixed = ev.good(pcrs=ev.pcrs() | {2: b"\x22" * 48})
    trusted = ev.policy(releases=(ev.RELEASE, other))
    assert judged_code(mixed, trusted) == Code.EVIDENCE_MEASUREMENTS


def test_a32_the_signer_and_the_role_do_not_vouch() -> None:
    signed = {3: b"\x03" * 48, 4: b"\x04" * 48, 8: b"\x08" * 48}
    bundle = ev.good(pcrs=ev.pcrs(pcr0=b"\x66" * 48) | signed)
    assert judged_code(bundle) == Code.EVIDENCE_MEASUREMENTS
    for register in ("pcr3", "pcr4", "pcr8"):  # nor can a policy name one in place of the image
        with pytest.raises(PolicyError):
            TrustPolicy.parse(ev.policy().to_toml().replace("pcr0 =", f"{register} ="))


def test_a32_a_named_signer_counts_beside_the_image() -> None:
    signed = replace(ev.RELEASE, pcr8=b"\x08" * 48)
    trusted = ev.policy(releases=(signed,))
    ev.judge(ev.good(pcrs=ev.pcrs(pcr8=b"\x08" * 48)), trusted)
    without = {index: value for index, value in ev.pcrs().items() if index != 8}
    for pcrs in (ev.pcrs(), ev.pcrs(pcr8=b"\x09" * 48), without):
        with pytest.raises(EvidenceError, match="EVIDENCE_MEASUREMENTS: PCR8 differs"):
            ev.judge(ev.good(pcrs=pcrs), trusted)
    other = ev.good(pcrs=ev.pcrs(pcr0=b"\x66" * 48, pcr8=b"\x08" * 48))
    assert judged_code(other, trusted) == Code.EVIDENCE_MEASUREMENTS


def test_a32_a_release_below_the_minimum() -> None:
    """The old image is genuine, signed and well known: that is what the floor is against."""
    old = replace(ev.RELEASE, number=1)
    new = replace(ev.RELEASE, name="0.2.0", pcr0=b"\x20" * 48, number=2)
    ev.judge(ev.good(), ev.policy(releases=(old, new)))
    ev.judge(ev.good(), ev.policy(releases=(old, new), minimum_release=1))
    floor = ev.policy(releases=(old, new), minimum_release=2)
    with pytest.raises(EvidenceError, match=r"MEASUREMENTS: release 0\.1\.0 is below the minimum"):
        ev.judge(ev.good(), floor)
    ev.judge(ev.good(pcrs=ev.pcrs(pcr0=b"\x20" * 48)), floor)


def test_a32_an_old_configuration_of_the_same_image() -> None:
    """Where only PCR16 tells two releases apart, the floor still holds, in debug mode too."""
    old = replace(ev.RELEASE, number=1)
    new = replace(ev.RELEASE, name="0.2.0", pcr16=b"\x26" * 48, number=2)
    floor = ev.policy(releases=(old, new), minimum_release=2, allow_debug=True)
    assert judged_code(ev.good(), floor) == Code.EVIDENCE_CONFIGURATION
    debug = ev.good(pcrs=ev.pcrs() | {index: bytes(48) for index in (0, 1, 2)})
    assert judged_code(debug, floor) == Code.EVIDENCE_CONFIGURATION
    ev.judge(debug, ev.policy(releases=(old, new), allow_debug=True))


def test_a33_the_bundle_has_no_registers_of_its_own() -> None:
    names = {field.name for field in fields(EvidenceBundle)}
    assert not {name for name in names if "pcr" in name or "image" in name}


@pytest.mark.parametrize(
    "nonce",
    [None, ..., b"", ev.NONCE[:16], ev.NONCE[:-1], ev.NONCE + b"\x00", bytes(32), ev.NONCE[::-1]],
)
def test_a34_nonces_that_are_not_the_one_issued(nonce: object) -> None:
    assert judged_code(ev.good(nonce=nonce)) == Code.EVIDENCE_NONCE


@pytest.mark.parametrize("nonce", [b"", bytes(15), bytes(65)])
def test_a34_nonces_that_nobody_should_issue(nonce: bytes) -> None:
    assert judged_code(ev.good(nonce=nonce), nonce=nonce) == Code.EVIDENCE_NONCE


def test_a35_right_nonce_an_hour_old() -> None:
    hour = 3_600_000
    assert judged_code(ev.good(timestamp=NOW - hour)) == Code.EVIDENCE_AGE
    assert judged_code(ev.good(), now=NOW + hour) == Code.EVIDENCE_AGE


def test_a36_a_key_that_the_document_does_not_bind() -> None:
    mine = replace(ev.KEY, public_key=b"\x66" * 1216).encode()
    honest = ev.good()
    for keys in ((mine,), (*honest.key_configs, mine), (mine, *honest.key_configs), ()):
        assert judged_code(replace(honest, key_configs=keys)) == Code.EVIDENCE_BINDING


def test_a36_parts_of_another_enclave() -> None:
    honest = ev.good()
    instance = replace(ev.INSTANCE, instance_id=b"\x08" * 16).encode()
    assert judged_code(replace(honest, instance_config=instance)) == Code.EVIDENCE_BINDING
    assert judged_code(replace(honest, measurement_log=b"\x80")) == Code.EVIDENCE_BINDING
    other = replace(ev.CONFIGURATION, minimum_versions={}).encode()
    assert judged_code(replace(honest, configuration=other)) == Code.EVIDENCE_CONFIGURATION


def test_a37_user_data_of_another_protocol() -> None:
    bundle = ev.unsigned()
    parts = (bundle.configuration, *bundle.key_configs)
    parts = (*parts, bundle.instance_config, bundle.measurement_log)
    kms = hashlib.sha384(b"casemate/v1 kms\x00").digest()
    for said in (kms, hashlib.sha384(b"".join(parts)).digest(), None, b"", bytes(48)):
        assert judged_code(ev.good(user_data=said)) == Code.EVIDENCE_BINDING
    longer = bundle.user_data() + b"\x00"
    assert judged_code(ev.good(user_data=longer)) == Code.EVIDENCE_BINDING


@pytest.mark.parametrize("public_key", [b"", b"\x30\x82"])
def test_a37_a_document_made_for_kms(public_key: bytes) -> None:
    assert judged_code(ev.good(public_key=public_key)) == Code.EVIDENCE_BINDING


def test_a37_bytes_cannot_move_between_parts() -> None:
    bundle = ev.unsigned()
    first, rest = bundle.configuration, bundle.key_configs[0]
    moved = replace(bundle, configuration=first + rest[:1], key_configs=(rest[1:],))
    assert moved.user_data() != bundle.user_data()
    split = replace(bundle, key_configs=(rest[:7], rest[7:]))
    swapped = replace(bundle, key_configs=(), accelerator=bundle.key_configs)
    assert len({b.user_data() for b in (bundle, moved, split, swapped)}) == 4


def test_a38_a_genuine_nitrotpm_document() -> None:
    verify_aws(genuine(TPM))
    assert under_aws(TPM) == Code.EVIDENCE_PLATFORM


def test_a38_right_registers_under_the_other_name() -> None:
    bundle = ev.good(pcrs=..., nitrotpm_pcrs=ev.pcrs())
    assert judged_code(bundle) == Code.EVIDENCE_PLATFORM


def test_a39_documents_of_emulators() -> None:
    emulated = pki.payload(ev.chain(), certificate=bytes(64), cabundle=[bytes(64)])
    data = cbor([ES384, {}, cbor(emulated), bytes(96)])
    refused(data, Code.EVIDENCE_ROOT)
    anything = frozenset([hashlib.sha256(bytes(64)).digest()])
    with pytest.raises(EvidenceError, match="EVIDENCE_CHAIN"):
        verify_document(data, roots=anything, now=NOW)


def test_a39_a_simulated_root_is_no_root_of_aws() -> None:
    with pytest.raises(EvidenceError, match="EVIDENCE_ROOT"):
        verify_document(pki.document(ev.chain()), roots=AWS_ROOTS, now=NOW)
