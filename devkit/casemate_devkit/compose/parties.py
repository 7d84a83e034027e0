"""``python -m casemate_devkit.compose.parties``: make the three parties, once.

Each gets a directory with an Ed25519 key and its AWS access keys; the KMS double gets the list of
who may call it. What exists already stays as it is, so that a stack that starts again has the same
parties.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from casemate.client.files import read_private_key, write_private_key
from casemate.errors import CasemateError
from casemate_devkit.kms.principals import Principal, load_principals, save_principals
from casemate_devkit.parties import Party, principal

if TYPE_CHECKING:
    from collections.abc import Sequence

ROLES: Final = {
    "vendor": {"admin": "user/vendor-admin", "sealer": "role/model-sealing"},
    "clinic": {"admin": "user/clinic-admin", "app": "role/screening-app"},
    "operator": {"admin": "user/operator-admin", "host": "role/casemate-host"},
}
_PRINCIPALS: Final = "principals.json"
_GROUP_READS: Final = 0o640


def load(base: Path, name: str) -> Party:
    """Return the party whose directory is ``base / name``, complete or made now."""
    directory = base / name
    key = directory / "key.pem"
    if not key.exists():
        write_private_key(key, Ed25519PrivateKey.generate())
    stored = directory / _PRINCIPALS
    if not stored.exists():
        save_principals(stored, [principal(name, arn) for arn in ROLES[name].values()])
    known = {item.arn.split(":", 5)[5]: item for item in load_principals(stored)}
    principals = {role: known[arn] for role, arn in ROLES[name].items()}
    return Party(name, directory, read_private_key(key), principals)


def everyone(base: Path) -> list[Principal]:
    """Return the access keys of all parties."""
    return [who for name in ROLES for who in load(base, name).principals.values()]


def write_environment(path: Path, who: Principal, ca_file: str) -> None:
    """Write what an AWS tool needs to sign as ``who``, as ``NAME=value`` lines."""
    lines = {
        "AWS_ACCESS_KEY_ID": who.access_key_id,
        "AWS_SECRET_ACCESS_KEY": who.secret_access_key,
        "AWS_CA_BUNDLE": ca_file,
    }
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.writelines(f"{name}={value}\n" for name, value in lines.items())


def main(arguments: Sequence[str] | None = None) -> int:
    """Make what is missing; 1 if a party's files cannot be read or written."""
    parser = argparse.ArgumentParser(prog="python -m casemate_devkit.compose.parties")
    parser.add_argument("--base", type=Path, required=True, help="holds vendor, clinic, operator")
    parser.add_argument("--kms", type=Path, required=True, help="the KMS double's directory")
    options = parser.parse_args(arguments)
    try:
        callers = everyone(options.base)
        save_principals(options.kms / _PRINCIPALS, callers)
        (options.kms / _PRINCIPALS).chmod(_GROUP_READS)
    except (CasemateError, OSError, ValueError) as error:
        print(f"parties: {error}", file=sys.stderr)
        return 1
    print(json.dumps({"event": "parties", "principals": [item.arn for item in callers]}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
