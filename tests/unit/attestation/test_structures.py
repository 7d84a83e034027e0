"""The layouts of SPEC 3.2 to 3.6: each bound on both sides, each key, each derived value."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from casemate import cbor
from casemate.attestation import (
    Configuration,
    EvidenceBundle,
    InstanceConfig,
    KeyConfig,
    KmsConfiguration,
    LogEntry,
    audience_hash,
    callers_digest,
    configuration_event,
    encode_log,
    key_id,
    kms_user_data,
    parse_log,
    pcr16,
)
from casemate.errors import Code, EvidenceError
from tests.support import evidence as ev
from tests.support import nitro_pki as pki
from tests.support.nitro_pki import NOW

if TYPE_CHECKING:
    from collections.abc import Callable

KMS = KmsConfiguration("aws", ("eu-central-1", "us-gov-west-1"), (b"\x30\x00", b"\x30\x01"))
FULL = replace(ev.CONFIGURATION, kms=KMS)
KEYS = [bytes([number]) * 32 for number in range(18)]


def refused(parse: Callable[[bytes], object], value: object, code: Code) -> None:
    with pytest.raises(EvidenceError) as caught:
        parse(value if isinstance(value, bytes) else cbor.encode(value))
    assert caught.value.code == code


def test_round_trips() -> None:
    for configuration in (ev.CONFIGURATION, FULL):
        assert Configuration.parse(configuration.encode()) == configuration
    assert KeyConfig.parse(ev.KEY.encode()) == ev.KEY
    assert InstanceConfig.parse(ev.INSTANCE.encode()) == ev.INSTANCE
    for log in ((), (ev.LOADED,), (ev.LOADED, replace(ev.LOADED, op="unload"))):
        assert parse_log(encode_log(log)) == log


CONFIGURATION_CHANGES: list[dict[str, object]] = [
    {"v": 2},
    {"v": True},
    {"audience": ""},
    {"audience": "x" * 256},
    {"audience": "ä" * 128},
    {"audience": "clinic/${aws:username}"},
    {"audience": b"bytes"},
    {"publishers": []},
    {"publishers": KEYS[:17]},
    {"publishers": [KEYS[1], KEYS[0]]},
    {"publishers": [KEYS[1], KEYS[1]]},
    {"publishers": [bytes(31)]},
    {"publishers": ["x" * 32]},
    {"minimum_versions": {"wdbc": 1}},
    {"minimum_versions": {f"{'A' * 64}/wdbc": 1}},
    {"minimum_versions": {f"{'a' * 64}/": 1}},
    {"minimum_versions": {f"{'a' * 64}/x\n": 1}},
    {"minimum_versions": {f"{'a' * 64}/wdbc": 0}},
    {"minimum_versions": {f"{'a' * 64}/wdbc": 1 << 32}},
    {"minimum_versions": {f"{'a' * 64}/wdbc": "1"}},
    {"minimum_versions": {7: 1}},
    {"minimum_versions": {f"{'a' * 64}/m{number}": 1 for number in range(257)}},
    {"kms": {}},
    {"kms": False},
    {"limits": {}},
    {"providers": []},
    {"providers": ["AzureExecutionProvider", "CPUExecutionProvider"]},
    {"providers": ["CUDAExecutionProvider"]},
    {"providers": ["CPUExecutionProvider", "CUDAExecutionProvider"]},
    {"providers": ["CPUExecutionProvider", "CPUExecutionProvider"]},
    {"providers": ["CPUExecutionProvider"] * 2},
    {"providers": [["CPUExecutionProvider"]]},
    {"unknown": None},
]


@pytest.mark.parametrize("changes", CONFIGURATION_CHANGES, ids=repr)
def test_configuration_bounds(changes: dict[str, object]) -> None:
    value = cbor.decode(FULL.encode()) | changes
    refused(Configuration.parse, value, Code.EVIDENCE_CONFIGURATION)


@pytest.mark.parametrize(
    "changes",
    [
        {"partition": "aws-iso"},
        {"regions": []},
        {"regions": ["eu-central-1", "eu-central-1"]},
        {"regions": ["eu.central.1"]},
        {"regions": ["eu-central-1\n"]},
        {"regions": ["eu-central-11"]},
        {"regions": [[]]},
        {"regions": [{}]},
        {"regions": [f"eu-west-{number}" for number in range(9)]},
        {"tls_roots": []},
        {"tls_roots": [b""]},
        {"tls_roots": [bytes(4097)]},
        {"tls_roots": ["text"]},
        {"tls_roots": [b"x"] * 17},
        {"endpoint": "kms.example"},
    ],
    ids=repr,
)
def test_kms_bounds(changes: dict[str, object]) -> None:
    value = cbor.decode(FULL.encode())
    value["kms"] |= changes
    refused(Configuration.parse, value, Code.EVIDENCE_CONFIGURATION)


@pytest.mark.parametrize(
    ("name", "highest"),
    [
        *[("sessions", 1 << 20), ("models", 64), ("model_bytes", 1 << 40)],
        *[("request_bytes", 1 << 26), ("drain", 3_600_000), ("memory_bytes", 1 << 40)],
        *[("run_bytes", 1 << 40), ("run_ms", 600_000), ("model_requests", 64), ("threads", 64)],
    ],
)
def test_limit_bounds(name: str, highest: int) -> None:
    value = cbor.decode(FULL.encode())
    for right in (1, highest):
        value["limits"][name] = right
        Configuration.parse(cbor.encode(value))
    for wrong in (0, highest + 1, True, "1", None):
        value["limits"][name] = wrong
        refused(Configuration.parse, value, Code.EVIDENCE_CONFIGURATION)


def test_the_largest_configuration_fits_its_bound() -> None:
    versions = {f"{KEYS[0].hex()}/{number:0128d}": (1 << 32) - 1 for number in range(256)}
    roots = tuple(bytes([n]) * 4096 for n in range(16))
    regions = tuple(f"us-gov-central-{number}" for number in range(8))
    largest = replace(
        FULL,
        audience="x" * 255,
        publishers=tuple(KEYS[:16]),
        minimum_versions=versions,
        kms=KmsConfiguration("aws-us-gov", regions, roots),
    )
    assert Configuration.parse(largest.encode()) == largest
    refused(Configuration.parse, bytes(128 * 1024 + 1), Code.EVIDENCE_CONFIGURATION)


def test_construction_is_checked_too() -> None:
    with pytest.raises(EvidenceError, match="EVIDENCE_CONFIGURATION"):
        replace(ev.CONFIGURATION, audience="")
    with pytest.raises(EvidenceError, match="EVIDENCE_KEYS"):
        replace(ev.KEY, public_key=b"")


def test_kms_endpoints() -> None:
    assert KMS.endpoints["eu-central-1"] == "kms.eu-central-1.amazonaws.com"
    china = replace(KMS, partition="aws-cn", regions=("cn-north-1",))
    assert china.endpoints == {"cn-north-1": "kms.cn-north-1.amazonaws.com.cn"}


@pytest.mark.parametrize(
    "changes",
    [
        {"v": 2},
        {"kem": 0x0020},
        {"kdf": 2},
        {"aead": 1},
        {"public_key": bytes(1215)},
        {"public_key": bytes(1217)},
        {"public_key": None},
        {"not_before": NOW, "not_after": NOW},
        {"not_before": NOW, "not_after": NOW - 1},
        {"not_before": NOW, "not_after": NOW + 24 * ev.HOUR + 1},
        {"not_before": True},
        {"key_id": bytes(16)},
    ],
    ids=repr,
)
def test_key_config_bounds(changes: dict[str, object]) -> None:
    value = cbor.decode(ev.KEY.encode()) | changes
    refused(KeyConfig.parse, value, Code.EVIDENCE_KEYS)


def test_a_key_is_valid_from_its_first_to_before_its_last_moment() -> None:
    key = replace(ev.KEY, not_before=10, not_after=10 + 24 * ev.HOUR)
    assert [key.valid_at(t) for t in (9, 10, key.not_after - 1, key.not_after)] == [
        False,
        True,
        True,
        False,
    ]


@pytest.mark.parametrize(
    "changes",
    [
        {"v": 0},
        {"instance_id": bytes(16)},
        {"instance_id": b"\x01" * 15},
        {"instance_id": "text"},
        {"boot_time": None},
        {"form": "metal"},
        {"receipt_key": bytes(31)},
        {"receipt_key": None},
        {"form": ""},
        {"debug": True},
    ],
    ids=repr,
)
def test_instance_config_bounds(changes: dict[str, object]) -> None:
    value = cbor.decode(ev.INSTANCE.encode()) | changes
    refused(InstanceConfig.parse, value, Code.EVIDENCE_INSTANCE)


@pytest.mark.parametrize(
    "changes",
    [
        {"op": "reload"},
        {"name": ""},
        {"name": "../x"},
        {"name": "x" * 129},
        {"version": 0},
        {"version": 1 << 32},
        {"digest": bytes(47)},
        {"publisher": bytes(33)},
        {"callers": bytes(32)},
        {"time": None},
        {"why": "x"},
    ],
    ids=repr,
)
def test_log_bounds(changes: dict[str, object]) -> None:
    entry = cbor.decode(encode_log([ev.LOADED]))[0] | changes
    refused(parse_log, [entry], Code.EVIDENCE_MODELS)


def test_log_length_and_shape() -> None:
    longest: list[LogEntry] = [replace(ev.LOADED, name="x" * 128)] * 1024
    assert len(parse_log(encode_log(longest))) == 1024
    assert len(encode_log(longest)) < 512 * 1024
    refused(parse_log, encode_log([ev.LOADED] * 1025), Code.EVIDENCE_MODELS)
    refused(parse_log, {}, Code.EVIDENCE_MODELS)
    refused(parse_log, [[]], Code.EVIDENCE_MODELS)
    refused(parse_log, b"", Code.EVIDENCE_MODELS)


def test_non_canonical_encodings_are_refused() -> None:
    encoded = ev.INSTANCE.encode()
    for wrong in (encoded + b"\x00", encoded[:-1], b"\xbf" + encoded[1:] + b"\xff"):
        refused(InstanceConfig.parse, wrong, Code.EVIDENCE_INSTANCE)
    long_head = encoded.replace(b"\x61v\x01", b"\x61v\x18\x01")
    unsorted = pki.cbor(dict(reversed(cbor.decode(encoded).items())))
    assert len({encoded, long_head, unsorted}) == 3
    for wrong in (long_head, unsorted):
        refused(InstanceConfig.parse, wrong, Code.EVIDENCE_INSTANCE)


def u32(data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + data


def sha(data: bytes) -> bytes:
    return hashlib.sha384(data).digest()


def test_derived_values() -> None:
    configuration, key = FULL.encode(), ev.KEY.encode()
    event = sha(b"casemate/v1 config\x00" + u32(configuration))
    assert configuration_event(configuration) == event
    assert pcr16(configuration) == sha(bytes(48) + event)
    assert key_id(key) == sha(key)[:16]
    assert audience_hash("ä") == sha(b"casemate/v1 audience\x00\xc3\xa4")[:32]
    assert kms_user_data() == sha(b"casemate/v1 kms\x00")
    assert callers_digest("any") == sha(b"casemate/v1 callers\x00\x63any")
    assert callers_digest(KEYS[:1]) == sha(b"casemate/v1 callers\x00\x81\x58\x20" + KEYS[0])


def test_user_data() -> None:
    bundle = EvidenceBundle("p", b"d", b"C", (b"K1", b"K2"), b"I", b"L", (b"A",))
    keys, accelerator = u32(b"K1") + u32(b"K2"), u32(b"A")
    parts = u32(b"C") + u32(keys) + u32(b"I") + u32(b"L") + u32(accelerator)
    assert bundle.user_data() == sha(b"casemate/v1 evidence\x00" + parts)


def test_bundle_round_trip() -> None:
    for bundle in (ev.good(), replace(ev.good(), key_configs=(b"", b"x"), accelerator=(b"",))):
        assert EvidenceBundle.parse(bundle.serialize()) == bundle


def test_bundles_that_do_not_parse() -> None:
    refused(EvidenceBundle.parse, b"\xff\xff", Code.MALFORMED)
    refused(EvidenceBundle.parse, bytes(1024 * 1024 + 1), Code.EVIDENCE_SIZE)


@pytest.mark.parametrize(
    ("part", "bound"),
    [
        ("attestation_document", 20_480),
        ("configuration", 128 * 1024),
        ("instance_config", 1024),
        ("measurement_log", 512 * 1024),
    ],
)
def test_bundle_sizes(part: str, bound: int) -> None:
    ev.with_part(ev.good(), part, bytes(bound)).check_sizes()
    with pytest.raises(EvidenceError, match="EVIDENCE_SIZE"):
        ev.with_part(ev.good(), part, bytes(bound + 1)).check_sizes()
    with pytest.raises(EvidenceError, match="EVIDENCE_SIZE"):
        replace(ev.good(), key_configs=(bytes(2049),)).check_sizes()
