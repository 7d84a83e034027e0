"""Keys in the double: what lasts, what ends, and what is not shown."""

from __future__ import annotations

import json
import pickle
import time
from typing import TYPE_CHECKING

import pytest

from casemate_devkit.kms.errors import KmsError
from casemate_devkit.kms.grants import Grant
from casemate_devkit.kms.keys import KeyStore, KmsKey

if TYPE_CHECKING:
    from pathlib import Path

ACCOUNT, REGION = "111122223333", "eu-central-1"


def new(region: str = REGION, spec: str = "SYMMETRIC_DEFAULT") -> KmsKey:
    return KmsKey(ACCOUNT, region, "{}", spec)


@pytest.mark.parametrize("spec", ["SYMMETRIC_DEFAULT", "ECC_NIST_P256"])
def test_keys_come_back_from_the_file(tmp_path: Path, spec: str) -> None:
    store, key = KeyStore(tmp_path / "state.json"), new(spec=spec)
    store.add(key)
    store.rotate(key)
    blob = store.encrypt(key, b"text", {"a": "b"})
    again = KeyStore(tmp_path / "state.json")
    found = again.find(ACCOUNT, REGION, key.id)
    assert found is not None
    assert found.record() == key.record()
    assert again.decrypt(found, blob, {"a": "b"}) == b"text"


def test_a_key_ends_with_its_waiting_period(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    store, key = KeyStore(path), new()
    store.add(key)
    blob = store.encrypt(key, b"text", {})
    given = Grant("g", "t", key.id, "x", None, ["Decrypt"], None, None, None, "x", 0.0)
    with store.changing():
        store.aliases["arn:alias/x"] = key.id
        store.grants["g"] = given
        key.state, key.deletion = "PendingDeletion", time.time() + 60
    assert store.find(ACCOUNT, REGION, key.id) is key
    key.deletion = time.time() - 1
    assert store.owner(REGION, blob) is None
    assert store.find(ACCOUNT, REGION, key.id) is None
    assert (store.aliases, store.grants) == ({}, {})
    assert json.loads(path.read_text())["keys"] == []


def test_keys_are_of_one_account_and_region() -> None:
    store, key = KeyStore(), new()
    store.add(key)
    blob = store.encrypt(key, b"text", {})
    assert store.find("999988887777", REGION, key.id) is None
    assert store.find(ACCOUNT, "us-east-1", key.id) is None
    assert store.owner("us-east-1", blob) is None
    assert store.listed(ACCOUNT, "us-east-1") == []


@pytest.mark.parametrize(
    ("region", "partition"),
    [("eu-central-1", "aws"), ("cn-north-1", "aws-cn"), ("us-gov-west-1", "aws-us-gov")],
)
def test_the_region_says_the_partition(region: str, partition: str) -> None:
    assert new(region).arn.startswith(f"arn:{partition}:kms:{region}:{ACCOUNT}:key/")


@pytest.mark.parametrize("cut", [0, 35, 36, 39, 40, 51, 52, 67])
def test_short_blobs_are_no_ciphertexts(cut: int) -> None:
    store, key = KeyStore(), new()
    store.add(key)
    blob = store.encrypt(key, b"text", {})
    with pytest.raises(KmsError) as caught:
        store.decrypt(key, blob[:cut], {})
    assert caught.value.kind == "InvalidCiphertextException"


def test_material_is_neither_shown_nor_pickled() -> None:
    key = new()
    assert repr(key.materials[0]) not in repr(key)
    assert key.materials[0].hex() not in repr(key)
    with pytest.raises(TypeError):
        pickle.dumps(key)
    given = Grant("g", "secret-token", key.id, "x", None, [], None, None, None, "x", 0.0)
    assert "secret-token" not in repr(given)
    assert "secret-token" not in json.dumps(given.shown(key.arn))
