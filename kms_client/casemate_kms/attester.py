"""The seam to the attestation device (SPEC 3.7)."""

from __future__ import annotations

from typing import Protocol


class Attester(Protocol):
    """Makes attestation documents about the enclave that this code runs in."""

    def attest(
        self, *, public_key: bytes | None, user_data: bytes | None, nonce: bytes | None
    ) -> bytes:
        """Return a fresh document with these fields; raises CasemateError if the device fails."""
        ...
