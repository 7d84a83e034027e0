"""Fixtures for any project that calls KMS from an enclave: a running double, documents it accepts.

Installed with this distribution, pytest loads it by itself; README.md has an example.
"""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Final, Protocol

import pytest

from casemate_devkit.kms.principals import Principal

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from casemate_devkit.kms.double import KmsDouble
    from casemate_devkit.pki import NitroPki

REGION: Final = "eu-central-1"
ADMIN: Final = Principal(
    "AKIAIOSFODNN7ADMIN", "admin-secret", "arn:aws:iam::111122223333:role/kms-admin"
)
ENCLAVE: Final = Principal(
    "ASIAIOSFODNN7ENCLAVE",
    "enclave-secret",
    "arn:aws:sts::444455556666:assumed-role/enclave/i-0123456789abcdef0",
    "session-token",
)
_REGISTER_BYTES: Final = 48
_LOCKED: Final = 17  # a document shows registers 0 to 15, and here 16


class StartDouble(Protocol):
    """Starts a double for the duration of one test."""

    def __call__(
        self,
        *,
        principals: Sequence[Principal] = (ADMIN, ENCLAVE),
        regions: Sequence[str] = (REGION,),
        roots: frozenset[bytes] | None = None,
        faults: Sequence[str] = (),
    ) -> KmsDouble:
        """Return a running double; by default it trusts ``attestation_document``'s root."""


class MakeDocument(Protocol):
    """Makes attestation documents as a Nitro Security Module would."""

    def __call__(
        self,
        *,
        pcrs: Mapping[int, bytes],
        public_key: bytes | None,
        user_data: bytes | None = None,
        nonce: bytes | None = None,
        age_s: float = 0,
    ) -> bytes:
        """Return a signed document; registers are 48 bytes, those not given are zero."""


@pytest.fixture(scope="session")
def _kms_double_pki() -> NitroPki:
    from casemate_devkit.pki import NitroPki  # noqa: PLC0415 - only tests that ask pay for it

    return NitroPki.create()


@pytest.fixture
def kms_double(
    _kms_double_pki: NitroPki, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[StartDouble]:
    """Start KMS doubles on loopback; they stop when the test ends."""
    from casemate_devkit.kms.double import KmsDouble  # noqa: PLC0415 - as above

    with contextlib.ExitStack() as stack:

        def start(
            *,
            principals: Sequence[Principal] = (ADMIN, ENCLAVE),
            regions: Sequence[str] = (REGION,),
            roots: frozenset[bytes] | None = None,
            faults: Sequence[str] = (),
        ) -> KmsDouble:
            double = KmsDouble(
                tmp_path_factory.mktemp("kms"),
                roots=roots or frozenset({_kms_double_pki.root_sha256}),
                principals=principals,
                regions=regions,
                faults=faults,
            )
            return stack.enter_context(double)

        yield start


@pytest.fixture
def attestation_document(_kms_double_pki: NitroPki) -> MakeDocument:
    """Make attestation documents that the doubles of ``kms_double`` verify."""
    from casemate_devkit.documents import Statement, document  # noqa: PLC0415 - as above

    def make(
        *,
        pcrs: Mapping[int, bytes],
        public_key: bytes | None,
        user_data: bytes | None = None,
        nonce: bytes | None = None,
        age_s: float = 0,
    ) -> bytes:
        module_id = _kms_double_pki.new_module_id()
        statement = Statement(
            module_id=module_id,
            timestamp=int((time.time() - age_s) * 1000),
            pcrs={index: bytes(_REGISTER_BYTES) for index in range(_LOCKED)} | dict(pcrs),
            public_key=public_key,
            user_data=user_data,
            nonce=nonce,
        )
        return document(statement, _kms_double_pki.leaf(module_id))

    return make
