"""The three parties of a local deployment: own directories, own keys, own AWS principals.

Nobody reads another's directory; what they exchange is what they would publish or hand over: public
keys, the configuration, the sealed model, ciphertext.
"""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

import boto3
from botocore.config import Config
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from casemate.client.files import write_private_key
from casemate_devkit.kms import Principal

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path
    from typing import Any

REGION = "eu-central-1"
ACCOUNTS = {"vendor": "111111111111", "clinic": "222222222222", "operator": "333333333333"}


def principal(party: str, name: str) -> Principal:
    """Make an AWS principal with a new access key in the party's account."""
    return Principal(
        access_key_id="AKIA" + secrets.token_hex(8).upper(),
        secret_access_key=secrets.token_urlsafe(30),
        arn=f"arn:aws:iam::{ACCOUNTS[party]}:{name}",
    )


@dataclass(frozen=True, slots=True)
class Party:
    """One party: its directory, its signing key, its principals by role."""

    name: str
    directory: Path
    signing_key: Ed25519PrivateKey
    principals: Mapping[str, Principal]

    @classmethod
    def create(cls, base: Path, name: str, principals: Mapping[str, str]) -> Party:
        """Make the party's directory (mode 0700) with a new Ed25519 key in ``key.pem``."""
        directory = base / name
        directory.mkdir(mode=0o700)
        key = Ed25519PrivateKey.generate()
        write_private_key(directory / "key.pem", key)
        return cls(
            name, directory, key, {role: principal(name, arn) for role, arn in principals.items()}
        )

    @property
    def public_key(self) -> bytes:
        """The raw Ed25519 public key, 32 bytes."""
        return self.signing_key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)

    @property
    def account(self) -> str:
        """The AWS account id."""
        return ACCOUNTS[self.name]


@dataclass(frozen=True, slots=True)
class Aws:
    """Where KMS answers on this machine: the double's endpoint and its CA."""

    endpoint: str
    ca_file: Path

    def kms(self, who: Principal) -> Any:  # noqa: ANN401 - boto3 is untyped
        """Return a boto3 KMS client that signs as ``who``."""
        return boto3.client(
            "kms",
            region_name=REGION,
            endpoint_url=self.endpoint,
            verify=str(self.ca_file),
            aws_access_key_id=who.access_key_id,
            aws_secret_access_key=who.secret_access_key,
            config=Config(retries={"max_attempts": 1}, proxies={}),
        )

    def environment(self, who: Principal) -> dict[str, str]:
        """Return the environment in which any AWS tool signs as ``who`` and finds the double."""
        return {
            "AWS_ACCESS_KEY_ID": who.access_key_id,
            "AWS_SECRET_ACCESS_KEY": who.secret_access_key,
            "AWS_ENDPOINT_URL_KMS": self.endpoint,
            "AWS_CA_BUNDLE": str(self.ca_file),
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        }


def run_tool(
    module: str,
    *arguments: str,
    environment: Mapping[str, str] | None = None,
    timeout_s: float = 300,
) -> subprocess.CompletedProcess[str]:
    """Run ``python -m module`` as a party would, in its own process; its output is captured."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        env={**kept, "PYTHONUTF8": "1", **(environment or {})},
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


def write_credentials(path: Path, who: Principal) -> None:
    """Write what the host hands to the enclave, in the form of AWS's credential_process."""
    document = {
        "Version": 1,
        "AccessKeyId": who.access_key_id,
        "SecretAccessKey": who.secret_access_key,
    }
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as stream:
        json.dump(document, stream)
