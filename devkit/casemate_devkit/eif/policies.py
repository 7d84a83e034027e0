"""The policies that accept one image: the clients' trust policy, and a key policy for each KMS key.

Written from a file of terms, which says who is who; the registers are the image's own. Everybody
can write the same ones from the same image with ``casemate measure`` and ``casemate policy kms``.
"""

from __future__ import annotations

import json
import tomllib
from typing import TYPE_CHECKING, Any, Final

from casemate.attestation.measurement import Measurement
from casemate.client.release import Measured, PolicyTerms, new_policy
from casemate.kms_policy import attested_key_policy
from casemate_devkit.errors import DevkitError

if TYPE_CHECKING:
    from pathlib import Path

    from casemate.attestation import TrustPolicy
    from casemate.attestation.eif import EifImage

_TERMS: Final = {"release", "configuration", "audience", "roots", "models", "pin_signer", "key"}
_KEY: Final = {"name", "purpose", "scope", "admin", "enclave", "encrypt"}


def write(image: EifImage, terms: Path, folder: Path) -> list[Path]:
    """Write ``trust.toml`` and ``key-NAME.json`` for each key of ``terms``; return what was made.

    Raises DevkitError for terms that cannot be read or lack something, CasemateError for values
    that no policy takes.
    """
    values = _read(terms)
    policy = _trust_policy(image, values, terms.parent)
    made = {"trust.toml": policy.to_toml()}
    for key in values.get("key", []):
        text = json.dumps(_key_policy(policy, key), indent=2) + "\n"
        made[f"key-{key['name']}.json"] = text
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in made.items():
        (folder / name).write_text(text)
    return [folder / name for name in made]


def _read(terms: Path) -> dict[str, Any]:
    try:
        values = tomllib.loads(terms.read_text())
        keys = values.get("key", [])
        unknown = set(values) - _TERMS | {name for key in keys for name in set(key) - _KEY}
    except (OSError, tomllib.TOMLDecodeError, TypeError, AttributeError) as error:
        raise DevkitError(f"{terms}: {error}") from None
    if unknown:
        raise DevkitError(f"{terms}: unknown: {', '.join(sorted(unknown))}")
    missing = _TERMS - {"pin_signer", "key"} - set(values)
    missing |= {name for key in keys for name in _KEY - {"scope"} - set(key)}
    if missing:
        raise DevkitError(f"{terms}: missing: {', '.join(sorted(missing))}")
    return values


def _trust_policy(image: EifImage, values: dict[str, Any], beside: Path) -> TrustPolicy:
    if values.get("pin_signer") and image.pcr8 is None:
        raise DevkitError("pin_signer: this image is not signed")
    models = [f"{name}={publisher}" for name, publisher in values["models"].items()]
    measured = Measured(
        values["release"],
        Measurement(image.pcr0, image.pcr1, image.pcr2),
        (beside / values["configuration"]).read_bytes(),
        image.pcr8 if values.get("pin_signer") else None,
    )
    return new_policy(PolicyTerms.parse(values["audience"], values["roots"], models), measured)


def _key_policy(policy: TrustPolicy, key: dict[str, Any]) -> dict[str, Any]:
    if key["purpose"] == "model" and "scope" not in key:
        raise DevkitError(f"key {key['name']}: the scope of a model's key is PUBLISHERHEX/NAME")
    return dict(
        attested_key_policy(
            account_admin=key["admin"],
            decrypt_principal=key["enclave"],
            releases=policy.accepted,
            purpose=key["purpose"],
            scope=key.get("scope", policy.audience),
            encrypt_principals=key["encrypt"],
        )
    )
