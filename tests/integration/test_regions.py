"""Key release in several measured regions, against key policies that the KMS double enforces."""

from __future__ import annotations

import json
import socket
import time
from typing import TYPE_CHECKING

import pytest

from casemate.attestation import KmsConfiguration, Release, pcr16
from casemate.attestation.structures import PCR_CONFIGURATION, configuration_event
from casemate.errors import CasemateError, Code
from casemate.kms_context import data_context, model_context
from casemate.kms_policy import attested_key_policy
from casemate_devkit.kms import KmsDouble, Principal
from casemate_devkit.nsm import SimulatedNsm, boot_registers
from casemate_devkit.pki import NitroPki
from casemate_enclave.nsm import Nsm
from casemate_kms.client import AttestedKms
from tests.support.enclave_bench import IMAGE

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FRANKFURT, IRELAND, VIRGINIA = "eu-central-1", "eu-west-1", "us-east-1"
AUDIENCE = "clinic.example/screening"
CONFIGURATION = b"whatever the enclave was configured with"
CONTEXT = data_context(AUDIENCE)
ACCOUNT = "arn:aws:iam::111111111111:"
ADMIN = Principal("AKIAADMIN0000000", "admin-secret", f"{ACCOUNT}user/admin")
OWNER = Principal("AKIAOWNER0000000", "owner-secret", f"{ACCOUNT}role/app")
HOST = Principal("AKIAHOST00000000", "host-secret", f"{ACCOUNT}role/host")


class World:
    """A KMS in three regions, and an enclave's key release that is configured for two."""

    def __init__(self, folder: Path) -> None:
        pki = NitroPki.create()
        self.double = KmsDouble(
            folder / "kms",
            roots=frozenset([pki.root_sha256]),
            principals=[ADMIN, OWNER, HOST],
            regions=[FRANKFURT, IRELAND, VIRGINIA],
        ).start()
        nsm = Nsm(SimulatedNsm(pki, boot_registers(IMAGE, pki.instance_id)).handle)
        nsm.extend_pcr(PCR_CONFIGURATION, configuration_event(CONFIGURATION))
        nsm.lock_pcr(PCR_CONFIGURATION)
        self.dialled: list[str] = []
        configured = KmsConfiguration("aws", (FRANKFURT, IRELAND), (self.double.ca_der,))
        self.kms = AttestedKms(configured, nsm, self.dial)
        self.kms.set_credentials(HOST.access_key_id, HOST.secret_access_key, None, None)

    def dial(self, host: str, _port: int) -> socket.socket:
        self.dialled.append(host)
        return socket.create_connection(("127.0.0.1", self.double.port))

    def key(self, region: str) -> str:
        """A key of the owner in ``region`` that releases to this enclave, and to no other."""
        release = Release("r", IMAGE.pcr0, IMAGE.pcr1, IMAGE.pcr2, pcr16(CONFIGURATION))
        policy = attested_key_policy(
            account_admin=ADMIN.arn,
            decrypt_principal=HOST.arn,
            releases=[release],
            purpose="data",
            scope=AUDIENCE,
            encrypt_principals=[OWNER.arn, HOST.arn],
        )
        created = self.double.client(ADMIN, region).create_key(Policy=json.dumps(policy))
        arn: str = created["KeyMetadata"]["Arn"]
        return arn

    def sealed(self, arn: str, region: str) -> tuple[bytes, bytes]:
        made = self.double.client(OWNER, region).generate_data_key(
            KeyId=arn, NumberOfBytes=32, EncryptionContext=CONTEXT
        )
        return made["Plaintext"], made["CiphertextBlob"]

    def release(self, arn: str, blob: bytes) -> bytes:
        return self.kms.decrypt(
            key_arn=arn, ciphertext_blob=blob, context=CONTEXT, deadline=time.monotonic() + 60
        )


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    made = World(tmp_path_factory.mktemp("regions"))
    yield made
    made.kms.close()
    made.double.stop()


@pytest.mark.slow
def test_keys_of_every_configured_region_are_released(world: World) -> None:
    for region in (FRANKFURT, IRELAND):
        arn = world.key(region)
        assert f":{region}:" in arn
        key, blob = world.sealed(arn, region)
        assert world.release(arn, blob) == key
    assert set(world.dialled) == {f"kms.{region}.amazonaws.com" for region in (FRANKFURT, IRELAND)}


def test_h18_a_region_that_was_not_measured_is_never_dialled(world: World) -> None:
    arn = world.key(VIRGINIA)
    _, blob = world.sealed(arn, VIRGINIA)
    before = list(world.dialled)
    with pytest.raises(CasemateError) as refused:
        world.release(arn, blob)
    assert refused.value.code is Code.MALFORMED
    assert world.dialled == before


def test_a_key_of_one_region_does_not_open_by_the_name_of_another(world: World) -> None:
    arn = world.key(FRANKFURT)
    _, blob = world.sealed(arn, FRANKFURT)
    elsewhere = arn.replace(FRANKFURT, IRELAND)
    with pytest.raises(CasemateError) as refused:
        world.release(elsewhere, blob)
    assert refused.value.code in {Code.KEY_RELEASE_DENIED, Code.KEY_RELEASE_INVALID}


@pytest.mark.parametrize("region", [FRANKFURT, IRELAND])
def test_a_data_key_made_by_attested_request_is_released_again(world: World, region: str) -> None:
    arn = world.key(region)
    made = world.kms.generate_data_key(key_arn=arn, context=CONTEXT, deadline=time.monotonic() + 60)
    assert len(made.key) == 32
    assert world.release(arn, made.ciphertext_blob) == made.key
    with pytest.raises(CasemateError) as refused:  # the context is the policy's
        world.kms.generate_data_key(
            key_arn=arn, context=model_context(b"p" * 32, "m"), deadline=time.monotonic() + 60
        )
    assert refused.value.code is Code.KEY_RELEASE_DENIED


def test_random_bytes_differ(world: World) -> None:
    first, second = (
        world.kms.generate_random(64, region=IRELAND, deadline=time.monotonic() + 60)
        for _ in range(2)
    )
    assert len(first) == len(second) == 64
    assert first != second
