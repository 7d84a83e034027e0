"""What a file is, by its content: names and suffixes are whoever's who sent it."""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from casemate.attestation.eif import MAGIC as EIF_MAGIC
from casemate.receipts.stored import MAGIC as RECEIPT_MAGIC
from casemate.sealed_data import MAGIC as DATA_MAGIC
from casemate.sealed_model.header import MAGIC as MODEL_MAGIC

_COSE_SIGN1: Final = frozenset({0x84, 0xD2})  # an array of four, or tag 18
_CBOR_MAPS: Final = range(0xA0, 0xBC)
_EVIDENCE_FIELDS: Final = frozenset({0x0A, 0x12})  # platform, or attestation_document


class Kind(StrEnum):
    """What Casemate reads and writes."""

    DOCUMENT = "attestation document"
    EVIDENCE = "evidence bundle"
    MODEL = "sealed model"
    DATA = "sealed data"
    IMAGE = "enclave image"
    RECEIPT = "receipt"
    CONFIGURATION = "configuration"
    POLICY = "trust policy"


_MAGICS: Final = {
    EIF_MAGIC: Kind.IMAGE,
    MODEL_MAGIC: Kind.MODEL,
    DATA_MAGIC: Kind.DATA,
    RECEIPT_MAGIC: Kind.RECEIPT,
}


def recognise(head: bytes) -> Kind | None:
    """Return what a file that begins with ``head`` claims to be; None for anything else.

    ``head`` is at least the whole of a policy, if it is one. Parsing decides whether it is true.
    """
    for magic, kind in _MAGICS.items():
        if head.startswith(magic):
            return kind
    first = head[0] if head else -1
    if first in _COSE_SIGN1:
        return Kind.DOCUMENT
    if first in _CBOR_MAPS:
        return Kind.CONFIGURATION
    if _is_policy(head):
        return Kind.POLICY
    return Kind.EVIDENCE if first in _EVIDENCE_FIELDS else None


def _is_policy(head: bytes) -> bool:
    """A policy is text; evidence may begin with a line feed too, but holds certificates."""
    try:
        text = head.decode()
    except UnicodeDecodeError:
        return False
    return "\x00" not in text and "platform" in text and "roots" in text
