"""The genuine documents of tests/vectors/nitro, and shorthands to have a document refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from casemate.attestation import parse_document, verify_document
from casemate.errors import Code, EvidenceError
from tests.support import evidence as ev
from tests.support import nitro_pki as pki

VECTORS = Path(__file__).parents[1] / "vectors" / "nitro"
AWS_ROOTS = frozenset(
    [bytes.fromhex("641a0321a3e244efe456463195d606317ed7cdcc3c1756e09893f3c68f79bb5b")]
)
GENUINE = "20250829_bedrock_7743a3dd"
DEBUG = "20260803_world-chain_13a44c64"
TPM = "20260325_attestation-server_8d02c24a"
TAMPERED = "20221109_go-nitro-enclave-attesta_7df2cdc0"


def genuine(name: str) -> bytes:
    return (VECTORS / f"{name}.cbor").read_bytes()


def verify_aws(data: bytes) -> None:
    """Verify under AWS's root at the document's own time."""
    verify_document(data, roots=AWS_ROOTS, now=parse_document(data).timestamp)


def verify(data: bytes, chain: pki.Chain | None = None) -> None:
    """Verify under the throw-away root."""
    verify_document(data, roots=(chain or ev.chain()).roots, now=pki.NOW)


def refused(data: bytes, code: Code | None = None, chain: pki.Chain | None = None) -> None:
    with pytest.raises(EvidenceError) as caught:
        verify(data, chain)
    assert code is None or caught.value.code == code
