"""Who may call the double: access keys and the principals behind them."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

_ARN = re.compile(
    r"(arn:aws(?:-cn|-us-gov)?):(iam|sts)::([0-9]{12}):"
    r"(root|user/[\w+=,.@/-]+|role/[\w+=,.@/-]+|assumed-role/[\w+=,.@-]+/[\w+=,.@-]+)",
    re.ASCII,
)
_FIELDS = {"access_key_id", "secret_access_key", "arn", "session_token"}


@dataclass(frozen=True, slots=True, eq=False)
class Principal:
    """One access key of one principal; ``session_token`` makes it a temporary credential.

    Raises ValueError if ``arn`` is not that of a root, user, role or assumed role.
    """

    access_key_id: str
    secret_access_key: str = field(repr=False)
    arn: str
    session_token: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if _ARN.fullmatch(self.arn) is None:
            msg = f"not the ARN of a principal: {self.arn[:128]!r}"
            raise ValueError(msg)

    @property
    def account(self) -> str:
        """The 12-digit account id."""
        return self.arn.split(":")[4]

    @property
    def partition(self) -> str:
        """The partition, as ``aws``."""
        return self.arn.split(":")[1]

    @property
    def policy_arn(self) -> str:
        """What ``aws:PrincipalArn`` says: for an assumed role the role, else the principal."""
        kind, _, rest = self.arn.split(":", 5)[5].partition("/")
        if kind != "assumed-role":
            return self.arn
        return f"arn:{self.partition}:iam::{self.account}:role/{rest.split('/')[0]}"

    def __reduce__(self) -> NoReturn:
        msg = "a principal holds a secret key and is not serialised"
        raise TypeError(msg)


def is_named(text: str, caller: Principal) -> bool:
    """Whether the ARN ``text`` means ``caller``: its own, its role's, or its account's root."""
    accounts = {f"arn:{caller.partition}:iam::{caller.account}:root", caller.account}
    return text in {caller.arn, caller.policy_arn} | accounts


def load_principals(path: Path) -> list[Principal]:
    """Read a JSON list of objects with the fields of Principal; raises ValueError."""
    records = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(records, list) or not records:
        msg = "the principals file is not a list of principals"
        raise ValueError(msg)
    for record in records:
        known = isinstance(record, dict) and record.keys() <= _FIELDS
        if not known or not all(isinstance(value, str) for value in record.values()):
            msg = f"a principal has the fields {', '.join(sorted(_FIELDS))}, all text"
            raise ValueError(msg)
    return [Principal(**record) for record in records]


def save_principals(path: Path, principals: Iterable[Principal]) -> None:
    """Write ``principals`` for ``load_principals``, readable by the owner only."""
    records = []
    for item in principals:
        record = {
            "access_key_id": item.access_key_id,
            "secret_access_key": item.secret_access_key,
            "arn": item.arn,
        }
        if item.session_token is not None:
            record["session_token"] = item.session_token
        records.append(record)
    path.touch(mode=0o600)
    path.chmod(0o600)
    path.write_text(json.dumps(records), encoding="utf-8")
