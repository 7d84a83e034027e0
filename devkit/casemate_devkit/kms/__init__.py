"""A KMS that enforces what AWS KMS enforces for attested key release, for tests and demonstrations.

It is moto behind a loopback TLS server. moto alone answers ``Decrypt`` with ``Recipient`` by
handing out the plaintext; here the signature of every request is checked, the key's policy and
grants are judged, the attestation document is verified with the production verifier and the answer
is sealed to the attested key. moto keeps the keys and answers what is not emulated here. It is not
AWS KMS: it has no IAM, and README.md says what it refuses to do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from casemate_devkit.kms.principals import Principal

if TYPE_CHECKING:
    from casemate_devkit.kms.double import KmsDouble

__all__ = ["KmsDouble", "Principal"]


def __getattr__(name: str) -> Any:  # noqa: ANN401 - a module's attributes are of any type
    """Import the double when it is asked for: boto3 takes a second, and plugins load always."""
    if name == "KmsDouble":
        from casemate_devkit.kms.double import KmsDouble  # noqa: PLC0415

        return KmsDouble
    msg = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(msg)
