"""An AttestedKms beside the server that it talks to."""

from __future__ import annotations

import contextlib
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from casemate.attestation.structures import KmsConfiguration
from casemate.channel import UnixAddress
from casemate.errors import KeyReleaseError
from casemate.kms_context import data_context
from casemate_kms.client import AttestedKms
from casemate_kms.egress import dialer
from tests.support.kms_endpoint import (
    ARN,
    HOST,
    REGION,
    Authority,
    Egress,
    FakeAttester,
    Kms,
    granted,
    proxying,
    serving,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

AUTHORITY = Authority()
SECRETS = ("AKIDSENTINEL", "secret-sentinel", "token-sentinel")


@dataclass
class Bench:
    """One of everything, running."""

    folder: Path
    kms: Kms
    egress: Egress
    attester: FakeAttester
    client: AttestedKms
    roots: tuple[bytes, ...] = field(default_factory=lambda: (AUTHORITY.der,))

    def decrypt(self, arn: str = ARN, seconds: float = 60, blob: bytes = b"wrapped") -> bytes:
        return self.client.decrypt(
            key_arn=arn,
            ciphertext_blob=blob,
            context=data_context("clinic.example"),
            deadline=time.monotonic() + seconds,
        )

    def failing(self, seconds: float = 60, arn: str = ARN) -> KeyReleaseError:
        """Return the refusal, which quotes neither the credentials nor what KMS said."""
        with pytest.raises(KeyReleaseError) as caught:
            self.decrypt(arn, seconds)
        assert not any(secret in str(caught.value) for secret in (*SECRETS, "secret-role"))
        return caught.value

    def trusting(self, *roots: bytes, credentials: bool = True) -> AttestedKms:
        self.client.close()
        configuration = KmsConfiguration("aws", (REGION, "eu-west-1"), roots)
        self.client = AttestedKms(
            configuration, self.attester, dialer(UnixAddress(self.egress.path))
        )
        if credentials:
            self.client.set_credentials(*SECRETS, None)
        return self.client


@contextlib.contextmanager
def bench_for(host: str) -> Iterator[Bench]:
    with tempfile.TemporaryDirectory(prefix="cm-kms-") as name:
        folder = Path(name)
        kms = Kms([granted()])
        with serving(kms, AUTHORITY.server_context(folder, host)) as port:
            egress = Egress(str(folder / "egress.sock"), {f"{HOST}:443": port})
            attester = FakeAttester()
            configuration = KmsConfiguration("aws", (REGION, "eu-west-1"), (AUTHORITY.der,))
            client = AttestedKms(configuration, attester, dialer(UnixAddress(egress.path)))
            client.set_credentials(*SECRETS, None)
            bench = Bench(folder, kms, egress, attester, client)
            with proxying(egress):
                try:
                    yield bench
                finally:
                    bench.client.close()
