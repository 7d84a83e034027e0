"""KMS key ARNs and encryption contexts, for both sides of a release (SPEC 5.3, 8.2)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from casemate import limits
from casemate.errors import Code, KeyReleaseError

_HEX: Final = "0-9a-f"
# No alias and no multi-Region key: neither says which key, in which region, will answer.
_ARN: Final = re.compile(
    r"arn:(aws|aws-cn|aws-us-gov):kms:([a-z]{2}(?:-[a-z]+)+-[0-9]):([0-9]{12}):key/"
    rf"([{_HEX}]{{8}}-[{_HEX}]{{4}}-[{_HEX}]{{4}}-[{_HEX}]{{4}}-[{_HEX}]{{12}})"
)
_VERSION: Final = "1"


@dataclass(frozen=True, slots=True)
class KeyArn:
    """A full KMS key ARN, taken apart; every field has passed the pattern of SPEC 5.3."""

    partition: str
    region: str
    account: str
    key_id: str

    def __str__(self) -> str:
        return f"arn:{self.partition}:kms:{self.region}:{self.account}:key/{self.key_id}"


def parse_key_arn(arn: str) -> KeyArn:
    """Parse a key ARN by the strict pattern of SPEC 5.3; raises KeyReleaseError(MALFORMED)."""
    match = _ARN.fullmatch(arn) if len(arn) <= limits.KEY_ARN_MAX else None
    if match is None:
        raise KeyReleaseError(Code.MALFORMED, "not the ARN of a single-Region KMS key")
    return KeyArn(*match.groups())


def data_context(audience: str) -> dict[str, str]:
    """Return the encryption context of a session's data key (SPEC 5.3)."""
    return _context("data", audience)


def model_context(publisher: bytes, name: str) -> dict[str, str]:
    """Return the encryption context of a sealed model's data key (SPEC 8.2).

    ``publisher`` is the 32-byte Ed25519 public key, ``name`` the model's name.
    """
    return _context("model", f"{publisher.hex()}/{name}")


def object_context(audience: str) -> dict[str, str]:
    """Return the encryption context of the data key of sealed data (SPEC 8.6)."""
    return _context("object", audience)


def _context(purpose: str, scope: str) -> dict[str, str]:
    return {"casemate:v": _VERSION, "casemate:purpose": purpose, "casemate:scope": scope}
