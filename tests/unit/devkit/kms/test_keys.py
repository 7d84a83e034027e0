"""Keys in the double: moto keeps them; what lasts, what ends, and what is not shown."""

from __future__ import annotations

import datetime as dt
import json
import pickle
from typing import TYPE_CHECKING

import pytest
from moto.core.utils import utcnow
from moto.kms.models import Key, KmsBackend, kms_backends

from casemate_devkit.kms.errors import KmsError
from casemate_devkit.kms.grants import Grant
from casemate_devkit.kms.keys import AGREEMENT, ENCRYPTION, SYMMETRIC, KeyStore, metadata

if TYPE_CHECKING:
    from pathlib import Path

ACCOUNT, REGION = "111122223333", "eu-central-1"
GRANTED = {"grantee": "x", "operations": ["Decrypt"], "issuer": "y", "token": "secret-token"}
SPECS = [
    (SYMMETRIC, ENCRYPTION),
    ("ECC_NIST_P256", AGREEMENT),
    ("ECC_SECG_P256K1", "SIGN_VERIFY"),
    ("RSA_3072", "SIGN_VERIFY"),
    ("HMAC_384", "GENERATE_VERIFY_MAC"),
]


def new(
    store: KeyStore, region: str = REGION, spec: str = SYMMETRIC, usage: str = ENCRYPTION
) -> Key:
    with store.changing():
        tags = [{"TagKey": "a", "TagValue": "b"}]
        return store.backend(ACCOUNT, region).create_key(None, usage, spec, "text", tags)


def shown(store: KeyStore, key: Key) -> dict[str, object]:
    """All that moto says of a key."""
    return {
        "metadata": metadata(key),
        "policy": key.policy,
        "tags": store.home(key).list_resource_tags(key.arn),
        "rotations": store.home(key).list_key_rotations(key_id=key.id, limit=10, next_marker=None),
        "rotates": key.key_rotation_status,
        "grants": [grant.to_json() for grant in key.grants.values()],
        "aliases": [alias.alias_arn for alias in store.home(key).list_aliases(key.id)],
    }


@pytest.mark.parametrize(("spec", "usage"), SPECS)
def test_keys_come_back_from_the_file_into_moto(tmp_path: Path, spec: str, usage: str) -> None:
    store = KeyStore(tmp_path / "state.json")
    key = new(store, spec=spec, usage=usage)
    store.rotate(key)
    blob = store.encrypt(key, b"text", {"a": "b"})
    with store.changing():
        backend = store.home(key)
        backend.create_alias(key.id, "alias/x")
        backend.enable_key_rotation(key.id)
        grant = Grant(key.arn, GRANTED)
        key.grants[grant.id] = grant
        backend.schedule_key_deletion(key.id, 7)
        store.beside(key).rotation_days = 90
    again = KeyStore(tmp_path / "state.json")
    backend = again.backend(ACCOUNT, REGION)
    assert isinstance(backend, KmsBackend)
    assert list(backend.keys) == [key.id]
    found = backend.keys[key.id]
    assert shown(again, found) == shown(store, key)
    assert found.key_material == key.key_material
    assert again.beside(found).rotation_days == 90
    assert again.decrypt(found, blob, {"a": "b"}) == b"text"


@pytest.mark.parametrize("spec", ["ECC_NIST_P256", "RSA_2048"])
def test_private_keys_come_back(tmp_path: Path, spec: str) -> None:
    store = KeyStore(tmp_path / "state.json")
    key = new(store, spec=spec, usage="SIGN_VERIFY")
    found = KeyStore(tmp_path / "state.json").find(ACCOUNT, REGION, key.id)
    assert found is not None
    assert found.private_key.public_key() == key.private_key.public_key()
    algorithm = key.signing_algorithms[0]
    assert key.private_key.verify(b"m", found.private_key.sign(b"m", algorithm), algorithm)


def test_a_key_ends_with_its_waiting_period(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    store = KeyStore(path)
    key = new(store)
    blob = store.encrypt(key, b"text", {})
    with store.changing():
        store.home(key).create_alias(key.id, "alias/x")
        store.home(key).schedule_key_deletion(key.id, 7)
    assert store.aliased(ACCOUNT, REGION, "alias/x") is key
    key.deletion_date = utcnow() - dt.timedelta(seconds=1)
    assert store.owner(REGION, blob) is None
    assert store.aliased(ACCOUNT, REGION, "alias/x") is None
    assert store.backend(ACCOUNT, REGION).keys == {}
    assert json.loads(path.read_text())["keys"] == []


def test_keys_are_of_one_account_and_region() -> None:
    store = KeyStore()
    key = new(store)
    blob = store.encrypt(key, b"text", {})
    assert store.find("999988887777", REGION, key.id) is None
    assert store.find(ACCOUNT, "us-east-1", key.id) is None
    assert store.owner("us-east-1", blob) is None
    assert store.listed(ACCOUNT, "us-east-1") == []


def test_motos_other_services_do_not_reach_the_keys() -> None:
    key = new(KeyStore())
    assert key.id not in kms_backends[ACCOUNT][REGION].keys


@pytest.mark.parametrize(
    ("region", "partition"),
    [("eu-central-1", "aws"), ("cn-north-1", "aws-cn"), ("us-gov-west-1", "aws-us-gov")],
)
def test_the_region_says_the_partition(region: str, partition: str) -> None:
    start = f"arn:{partition}:kms:{region}:{ACCOUNT}:key/"
    assert new(KeyStore(), region).arn.startswith(start)


@pytest.mark.parametrize("cut", [0, 35, 36, 39, 40, 51, 52, 67])
def test_short_blobs_are_no_ciphertexts(cut: int) -> None:
    store = KeyStore()
    key = new(store)
    blob = store.encrypt(key, b"text", {})
    with pytest.raises(KmsError) as caught:
        store.decrypt(key, blob[:cut], {})
    assert caught.value.kind == "InvalidCiphertextException"


def test_material_is_neither_shown_nor_pickled() -> None:
    store = KeyStore()
    key = new(store)
    store.rotate(key)
    for item in (key, store, store.beside(key)):
        assert repr(key.key_material) not in repr(item)
        assert repr(store.beside(key).older[0]) not in repr(item)
    with pytest.raises(TypeError):
        pickle.dumps(store)
    given = Grant(key.arn, GRANTED)
    assert "secret-token" not in repr(given)
    assert "secret-token" not in json.dumps(given.to_json())
