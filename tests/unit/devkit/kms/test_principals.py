"""Principals keep their secrets to themselves."""

from __future__ import annotations

import json
import pickle
import stat
from typing import TYPE_CHECKING

import pytest

from casemate_devkit.kms.principals import Principal, load_principals, save_principals

if TYPE_CHECKING:
    from pathlib import Path

PRINCIPAL = Principal(
    "AKIA1", "planted-secret", "arn:aws:sts::111122223333:assumed-role/enclave/i-1", "planted-token"
)


def test_secrets_are_neither_shown_nor_serialised() -> None:
    assert "planted" not in repr(PRINCIPAL)
    with pytest.raises(TypeError):
        pickle.dumps(PRINCIPAL)


def test_parts_of_the_arn() -> None:
    assert PRINCIPAL.account == "111122223333"
    assert PRINCIPAL.partition == "aws"
    assert PRINCIPAL.policy_arn == "arn:aws:iam::111122223333:role/enclave"


def test_file_round_trip_is_private(tmp_path: Path) -> None:
    path = tmp_path / "principals.json"
    save_principals(path, [PRINCIPAL])
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    (loaded,) = load_principals(path)
    assert loaded.secret_access_key == PRINCIPAL.secret_access_key
    assert loaded.session_token == PRINCIPAL.session_token


@pytest.mark.parametrize(
    "records",
    [
        {},
        [],
        [1],
        [{"access_key_id": "a", "secret_access_key": 1, "arn": PRINCIPAL.arn}],
        [{"access_key_id": "a", "secret_access_key": "b", "arn": "arn:aws:iam::1:user/x"}],
        [{"access_key_id": "a", "secret_access_key": "b", "arn": PRINCIPAL.arn, "more": "c"}],
    ],
)
def test_bad_files_are_refused(tmp_path: Path, records: object) -> None:
    path = tmp_path / "principals.json"
    path.write_text(json.dumps(records))
    with pytest.raises(ValueError, match=r"principal"):
        load_principals(path)
