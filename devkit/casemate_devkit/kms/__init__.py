"""A KMS that enforces what AWS KMS enforces for attested key release, for tests and demonstrations.

moto answers ``Decrypt`` with ``Recipient`` by handing out the plaintext. This double checks the
signature of every request, judges it by the key's policy, verifies the attestation document with
the production verifier and seals the answer to the attested key. It is not AWS KMS: it has no IAM,
no grants and no aliases, and nothing is kept when it stops.
"""

from __future__ import annotations

from casemate_devkit.kms.double import KmsDouble
from casemate_devkit.kms.principals import Principal

__all__ = ["KmsDouble", "Principal"]
