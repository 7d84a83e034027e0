"""Genuine documents under AWS's root: they parse, and verify at their own time only."""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from casemate.attestation import parse_document, verify_document
from casemate.errors import EvidenceError

VECTORS = Path(__file__).parents[2] / "vectors" / "nitro"
ORIGIN: dict[str, Any] = json.loads((VECTORS / "ORIGIN.json").read_text())
ROOTS = frozenset([bytes.fromhex(ORIGIN["root"]["der_sha256"])])
DOCUMENTS: list[dict[str, Any]] = ORIGIN["documents"]
GENUINE = [entry for entry in DOCUMENTS if entry["refused_at_step"] is None]
TAMPERED = [entry for entry in DOCUMENTS if entry["refused_at_step"] is not None]


def named(entry: dict[str, Any]) -> str:
    return str(entry["file"]).removesuffix(".cbor")


def read(entry: dict[str, Any]) -> bytes:
    return (VECTORS / str(entry["file"])).read_bytes()


def size(value: bytes | None) -> int | None:
    return None if value is None else len(value)


def test_the_files_are_those_that_the_origin_names() -> None:
    listed = {entry["file"]: entry["sha256"] for entry in [*DOCUMENTS, ORIGIN["root"]]}
    found = {path.name: path.read_bytes() for path in VECTORS.iterdir() if path.suffix != ".json"}
    assert listed == {name: hashlib.sha256(data).hexdigest() for name, data in found.items()}


def test_the_root_is_pinned_by_its_der() -> None:
    pem = (VECTORS / ORIGIN["root"]["file"]).read_bytes()
    der = x509.load_pem_x509_certificate(pem).public_bytes(Encoding.DER)
    assert frozenset([hashlib.sha256(der).digest()]) == ROOTS


def test_the_selection_covers_what_differs_in_the_field() -> None:
    assert {entry["payload_map"] for entry in GENUINE} == {"definite", "indefinite"}
    assert {entry["debug_mode"] for entry in GENUINE} >= {True, False}
    assert {entry["kind"] for entry in GENUINE} == {"nitro-enclave", "nitrotpm"}
    assert {746, 0, None} <= {entry["user_data_len"] for entry in GENUINE}
    assert {0, None} <= {entry["public_key_len"] for entry in GENUINE}
    assert max(entry["pcr_count"] for entry in GENUINE) > 16
    assert len(TAMPERED) == 1


@pytest.mark.parametrize("entry", DOCUMENTS, ids=named)
def test_parses(entry: dict[str, Any]) -> None:
    document = parse_document(read(entry))
    assert document.timestamp == entry["timestamp_ms"]
    assert len(document.pcrs) == entry["pcr_count"]
    lengths = [entry[f"{name}_len"] for name in ("public_key", "user_data", "nonce")]
    assert [size(document.public_key), size(document.user_data), size(document.nonce)] == lengths
    field = "nitrotpm_pcrs" if entry["kind"] == "nitrotpm" else "pcrs"
    assert document.pcr_field == field


@pytest.mark.parametrize("entry", GENUINE, ids=named)
def test_verifies_at_its_own_time(entry: dict[str, Any]) -> None:
    document = verify_document(read(entry), roots=ROOTS, now=entry["timestamp_ms"])
    assert document.timestamp == entry["timestamp_ms"]


@pytest.mark.parametrize("entry", DOCUMENTS, ids=named)
def test_is_refused_at_the_present(entry: dict[str, Any]) -> None:
    with pytest.raises(EvidenceError, match=r"EVIDENCE_CHAIN: .*expired"):
        verify_document(read(entry), roots=ROOTS, now=time.time_ns() // 1_000_000)


@pytest.mark.parametrize("entry", TAMPERED, ids=named)
def test_tampered_is_refused_at_its_own_time(entry: dict[str, Any]) -> None:
    with pytest.raises(EvidenceError, match=f"EVIDENCE_{entry['refused_at_step'].upper()}"):
        verify_document(read(entry), roots=ROOTS, now=entry["timestamp_ms"])


@pytest.mark.parametrize("entry", GENUINE, ids=named)
def test_any_flipped_byte_is_refused(entry: dict[str, Any]) -> None:
    data = read(entry)
    for at in range(0, len(data), 97):
        spoilt = data[:at] + bytes([data[at] ^ 0x40]) + data[at + 1 :]
        with pytest.raises(EvidenceError):
            verify_document(spoilt, roots=ROOTS, now=entry["timestamp_ms"])
