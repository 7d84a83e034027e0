"""``python -m casemate_devkit.compose.agree``: what the parties agree on, and the sealed model.

Vendor and clinic measure the enclave's file system themselves, create their KMS keys with policies
for exactly that release, and write configuration and trust policy; the vendor seals the model. A
second run changes nothing unless the enclave or the authority of KMS changed: then the policies
name the new release, while keys and sealed model stay.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from botocore.exceptions import BotoCoreError, ClientError

from casemate.attestation import (
    AllowedModel,
    Configuration,
    KmsConfiguration,
    Release,
    TrustPolicy,
    pcr16,
)
from casemate.client.seal import seal_onnx
from casemate.errors import CasemateError
from casemate.kms_policy import attested_key_policy
from casemate_devkit.compose import parties
from casemate_devkit.compose.nsm import FORM
from casemate_devkit.enclave_process import measure
from casemate_devkit.errors import DevkitError
from casemate_devkit.local import AUDIENCE, LIMITS, MODEL
from casemate_devkit.parties import REGION, Aws, Party, write_credentials

if TYPE_CHECKING:
    from collections.abc import Sequence

    from casemate.kms_policy import Purpose

VERSION: Final = 1
_ANSWER_BUCKET: Final = 4096
_TRUST: Final = "trust.toml"
_KEY: Final = "key-arn"
_CA: Final = "kms-ca.pem"
_ROWS: Final = "example.csv"


@dataclass(frozen=True, slots=True)
class Places:
    """What the job is given: directories, and files that others made."""

    base: Path
    tree: Path
    nitro_root: Path
    kms_ca: Path
    endpoint: str
    examples: Path


@dataclass(frozen=True, slots=True)
class _Use:
    """One KMS key: whose, who encrypts with it, and what for (SPEC 5.3, 8.2)."""

    owner: Party
    role: str
    purpose: Purpose
    scope: str


class Agreement:
    """The three parties around one release of the enclave."""

    def __init__(self, places: Places) -> None:
        """Read the parties and measure the tree; raises DevkitError, CasemateError or OSError."""
        self._places = places
        self.vendor, self.clinic, self.operator = (
            parties.load(places.base, name) for name in ("vendor", "clinic", "operator")
        )
        self._aws = Aws(places.endpoint, places.kms_ca)
        self.configuration = Configuration(
            audience=AUDIENCE,
            publishers=(self.vendor.public_key,),
            minimum_versions={f"{self.vendor.public_key.hex()}/{MODEL}": VERSION},
            kms=KmsConfiguration("aws", (REGION,), (self._authority(),)),
            limits=LIMITS,
            providers=("CPUExecutionProvider",),
        ).encode()

    def _authority(self) -> bytes:
        return self._places.kms_ca.with_suffix(".der").read_bytes()

    def release(self) -> Release:
        """Return what the enclave is now, numbered one higher than the last if it changed."""
        image = measure(self._places.tree, FORM)
        registers = (image.pcr0, image.pcr1, image.pcr2, pcr16(self.configuration))
        last = self._last_release()
        if last is not None and tuple(last.registers.values()) == registers:
            return last
        number = last.number + 1 if last is not None and last.number else 1
        return Release(f"compose-{number}", *registers, number=number)

    def _last_release(self) -> Release | None:
        try:
            return TrustPolicy.load(self.clinic.directory / _TRUST).releases[-1]
        except CasemateError:
            return None

    def key(self, use: _Use, now: Release) -> str:
        """Return the ARN of the owner's KMS key, whose policy names the release ``now``."""
        policy = json.dumps(
            attested_key_policy(
                account_admin=use.owner.principals["admin"].arn,
                decrypt_principal=self.operator.principals["host"].arn,
                releases=[now],
                purpose=use.purpose,
                scope=use.scope,
                encrypt_principals=[use.owner.principals[use.role].arn],
            ),
            indent=2,
        )
        (use.owner.directory / "key-policy.json").write_text(f"{policy}\n")
        client, known = self._aws.kms(use.owner.principals["admin"]), use.owner.directory / _KEY
        if known.exists():
            arn = known.read_text().strip()
            client.put_key_policy(KeyId=arn, PolicyName="default", Policy=policy)
            return arn
        created = client.create_key(Policy=policy, Description=f"{use.owner.name}: {use.purpose}")
        arn = str(created["KeyMetadata"]["Arn"])
        known.write_text(f"{arn}\n")
        return arn

    def model_key(self, now: Release) -> str:
        """Return the vendor's key, for this model alone."""
        scope = f"{self.vendor.public_key.hex()}/{MODEL}"
        return self.key(_Use(self.vendor, "sealer", "model", scope), now)

    def data_key(self, now: Release) -> str:
        """Return the clinic's key, for requests to this service alone."""
        return self.key(_Use(self.clinic, "app", "data", AUDIENCE), now)

    def seal(self, key_arn: str) -> Path:
        """Return the sealed model, sealed now if it was not before."""
        sealed = self.vendor.directory / f"{MODEL}-{VERSION}.sealed"
        if not sealed.exists():
            seal_onnx(
                self._places.examples / f"{MODEL}.onnx",
                sealed,
                name=MODEL,
                version=VERSION,
                publisher=self.vendor.signing_key,
                kms_key=key_arn,
                callers=(self.clinic.public_key,),
                answer_bucket=_ANSWER_BUCKET,
                kms=self._aws.kms(self.vendor.principals["sealer"]),
            )
        return sealed

    def publish(self, release: Release, sealed: Path) -> None:
        """Give the operator what it runs, and the clinic what it trusts."""
        policy = TrustPolicy(
            platform="nitro-enclave",
            audience=AUDIENCE,
            roots=frozenset([hashlib.sha256(self._places.nitro_root.read_bytes()).digest()]),
            evidence="fresh",
            maximum_age_seconds=300,
            allow_debug=False,
            releases=(release,),
            models=(AllowedModel(MODEL, self.vendor.public_key, None),),
        ).to_toml()
        operator, clinic = self.operator.directory, self.clinic.directory
        (operator / "models").mkdir(exist_ok=True)
        _replace(operator / "models" / sealed.name, sealed.read_bytes())
        _replace(operator / "configuration.cbor", self.configuration)
        _replace(operator / _TRUST, policy.encode())
        write_credentials(operator / "credentials.json", self.operator.principals["host"])
        _replace(clinic / _ROWS, (self._places.examples / _ROWS).read_bytes())
        _replace(clinic / _CA, self._places.kms_ca.read_bytes())
        parties.write_environment(
            clinic / "aws.env", self.clinic.principals["app"], str(clinic / _CA)
        )
        # Last, as it is what says that all the rest is there.
        _replace(clinic / _TRUST, policy.encode())


def _replace(path: Path, content: bytes) -> None:
    """Write the whole file or none; what has this content already stays untouched."""
    if path.exists() and path.read_bytes() == content:
        return
    draft = path.with_name(f".{path.name}.draft")
    draft.write_bytes(content)
    draft.replace(path)


def main(arguments: Sequence[str] | None = None) -> int:
    """Agree and seal; prints one JSON line; 1 if something is missing or refused."""
    parser = argparse.ArgumentParser(prog="python -m casemate_devkit.compose.agree")
    parser.add_argument("--base", type=Path, required=True, help="holds vendor, clinic, operator")
    parser.add_argument("--tree", type=Path, required=True, help="the enclave image's file system")
    parser.add_argument("--nitro-root", type=Path, required=True, help="root certificate, DER")
    parser.add_argument("--kms-ca", type=Path, required=True, help="ca.pem of KMS, ca.der beside")
    parser.add_argument("--endpoint", required=True, help="URL of KMS")
    parser.add_argument("--examples", type=Path, required=True, help="the model, and rows for it")
    try:
        agreement = Agreement(Places(**vars(parser.parse_args(arguments))))
        release = agreement.release()
        sealed = agreement.seal(agreement.model_key(release))
        data_key = agreement.data_key(release)
        agreement.publish(release, sealed)
    except (CasemateError, DevkitError, OSError, ValueError, BotoCoreError, ClientError) as error:
        print(f"agree: {error}", file=sys.stderr)
        return 1
    facts = {"release": release.name, "pcr0": release.pcr0.hex(), "pcr16": release.pcr16.hex()}
    print(json.dumps({"event": "agreed", "model": sealed.name, "data_key": data_key, **facts}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
