"""Credentials: the format of a credential_process, strictly; never shown."""

from __future__ import annotations

import copy
import json
import pickle
from typing import TYPE_CHECKING

import pytest

from casemate import cbor
from casemate.errors import CasemateError, Code
from casemate_host.credentials import Credentials

if TYPE_CHECKING:
    from pathlib import Path

SECRET = "planted-secret-key"
FIELDS = {"Version": 1, "AccessKeyId": "AKIATEST", "SecretAccessKey": SECRET}


def parse(**changes: object) -> Credentials:
    return Credentials.parse(json.dumps(FIELDS | changes).encode())


def test_long_lived_ones() -> None:
    assert cbor.decode(parse().reveal()) == {
        "access_key_id": "AKIATEST",
        "secret_access_key": SECRET,
        "session_token": None,
        "expires": None,
    }


def test_temporary_ones() -> None:
    credentials = parse(SessionToken="token", Expiration="2027-01-15T08:00:00Z")
    assert credentials.expires == 1_800_000_000_000
    fields = cbor.decode(credentials.reveal())
    assert (fields["session_token"], fields["expires"]) == ("token", 1_800_000_000_000)


@pytest.mark.parametrize(
    "changes",
    [
        {"Version": 2},
        {"Version": "1"},
        {"AccessKeyId": ""},
        {"SecretAccessKey": 1},
        {"SecretAccessKey": "\ud800"},
        {"SecretAccessKey": None},
        {"Expiration": "tomorrow"},
        {"Expiration": "2027-01-15T08:00:00"},
        {"Expiration": 1_800_000_000},
        {"Profile": "default"},
    ],
)
def test_anything_else_is_refused_without_being_quoted(changes: dict[str, object]) -> None:
    with pytest.raises(CasemateError) as raised:
        parse(**changes)
    assert raised.value.code is Code.INVALID_ARGUMENT
    assert SECRET not in str(raised.value)


@pytest.mark.parametrize(
    "data", [b"", b"[]", b"\xff", b"{}", b"[" * 100_000, b'{"a": "' + b"x" * 20_000 + b'"}']
)
def test_what_is_no_such_object_is_refused(data: bytes) -> None:
    with pytest.raises(CasemateError):
        Credentials.parse(data)


def test_an_unreadable_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CasemateError, match="cannot be read"):
        Credentials.load(tmp_path / "none.json")


def test_bodyguards() -> None:
    credentials = parse()
    assert SECRET not in repr(credentials) + str(credentials)
    for leak in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError):
            leak(credentials)
    assert credentials.same_as(parse())
    assert not credentials.same_as(parse(SecretAccessKey="another"))
    assert not credentials.same_as(None)
