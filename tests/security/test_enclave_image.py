"""Images that this repository builds, as an attacker would build or change one.

THREATS: A54, A55, O4, H12.
"""

from __future__ import annotations

import datetime as dt
import json
import os
import shutil
import struct
import time
import zlib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from botocore.exceptions import ClientError
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from casemate.attestation.measurement import Measurement
from casemate.attestation.policy import Release
from casemate.errors import EvidenceError
from casemate.kms_context import data_context
from casemate.kms_policy import attested_key_policy
from casemate_devkit.eif.__main__ import main
from casemate_devkit.eif.build import build, measured
from casemate_devkit.eif.profile import Profile
from casemate_devkit.kms import KmsDouble
from casemate_devkit.nsm import SimulatedNsm, boot_registers
from casemate_devkit.parties import principal
from casemate_devkit.pki import NitroPki
from casemate_enclave.nsm import Nsm
from tests.support import eif_builder as eb
from tests.support.nitro_pki import NOW
from tests.support.small_tree import FILES, PROFILE, VERSION, make_parts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from casemate.attestation.eif import EifImage
    from casemate_devkit.eif.build import Parts

ROOT = Path(__file__).resolve().parents[2]
REGION = "eu-central-1"
CONTEXT = data_context("clinic.example/screening")
EARLIER = 946_684_800  # 2000-01-01


def registers(image: EifImage) -> Measurement:
    return Measurement(image.pcr0, image.pcr1, image.pcr2)


# O4: anybody can build the same image


def test_o4_names_and_places_of_the_build_leave_no_trace(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b/c").mkdir(parents=True)
    first = make_parts(tmp_path / "a")
    second = make_parts(tmp_path / "b/c", umask=0o077)
    for path in (tmp_path / "b").rglob("*"):
        os.utime(path, (EARLIER, EARLIER), follow_symlinks=False)
    build(first, PROFILE, tmp_path / "a.eif")
    build(second, PROFILE, tmp_path / "b.eif")
    one, two = ((tmp_path / name).read_bytes() for name in ("a.eif", "b.eif"))
    assert one == two
    for word in (str(tmp_path), time.strftime("%Y-%m"), str(Path.home())):
        assert word.encode() not in one


# H12: there is no file in the image that is not measured, and KMS knows the difference


def change(path: Path) -> None:
    data = path.read_bytes()
    if path.suffix == ".py":
        path.write_bytes(data + b"extra = 1\n")
    else:
        path.write_bytes(bytes([data[0] ^ 1]) + data[1:])


CHANGES: dict[str, Callable[[Parts], object]] = {
    **{name: lambda parts, name=name: change(parts.tree / name) for name in FILES},  # type: ignore[misc]
    "kernel": lambda parts: change(parts.kernel),
    "driver": lambda parts: change(parts.drivers / "deep/nsm.ko"),  # type: ignore[operator]
    "link": lambda parts: relink(parts.tree / "usr/bin/python3"),
    "executable": lambda parts: (parts.tree / "packages/numpy/data.json").chmod(0o755),
    "planted source": lambda parts: (parts.tree / "app/sitecustomize.py").write_text("x = 1\n"),
    "planted bytecode": lambda parts: plant(parts.tree / "app/casemate/__pycache__/wire.pyc"),
    "planted library": lambda parts: plant(parts.tree / "etc/ld.so.preload"),
    "planted folder": lambda parts: (parts.tree / "app/casemate/numpy").mkdir(),
}


def relink(path: Path) -> None:
    path.unlink()
    path.symlink_to(f"../bin/{VERSION}")


def plant(path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"planted")


def refused(error: ClientError) -> bool:
    """False, the answer to whether it was released; any other error fails the test."""
    assert error.response["Error"]["Code"] == "AccessDeniedException"
    return False


class Kms:
    """A data key of the clinic's that is released to one image."""

    def __init__(self, folder: Path, image: EifImage) -> None:
        self.pki = NitroPki.create()
        self.enclave = principal("operator", "role/enclave")
        owner, sealer = principal("clinic", "user/admin"), principal("clinic", "role/app")
        release = Release("1", image.pcr0, image.pcr1, image.pcr2, b"\x10" * 48)
        policy = attested_key_policy(
            account_admin=owner.arn,
            decrypt_principal=self.enclave.arn,
            releases=[release],
            purpose="data",
            scope="clinic.example/screening",
            encrypt_principals=[sealer.arn],
        )
        self.double = KmsDouble(
            folder,
            roots=frozenset([self.pki.root_sha256]),
            principals=(owner, sealer, self.enclave),
            regions=(REGION,),
        )
        self.double.__enter__()
        created = self.double.client(owner).create_key(Policy=json.dumps(policy))
        self.arn = created["KeyMetadata"]["Arn"]
        self.blob = self.double.client(sealer).encrypt(
            KeyId=self.arn, Plaintext=bytes(32), EncryptionContext=CONTEXT
        )["CiphertextBlob"]
        self.recipient = (
            rsa.generate_private_key(65537, 2048)
            .public_key()
            .public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        )

    def releases_to(self, image: EifImage) -> bool:
        """Whether the enclave of ``image`` gets the key."""
        bank = boot_registers(registers(image), self.pki.instance_id) | {16: b"\x10" * 48}
        nsm = SimulatedNsm(self.pki, bank)
        nsm._locked.add(16)
        document = Nsm(nsm.handle).attest(public_key=self.recipient, user_data=None, nonce=None)
        try:
            answer = self.double.client(self.enclave).decrypt(
                KeyId=self.arn,
                CiphertextBlob=self.blob,
                EncryptionContext=CONTEXT,
                Recipient={
                    "KeyEncryptionAlgorithm": "RSAES_OAEP_SHA_256",
                    "AttestationDocument": document,
                },
            )
        except ClientError as error:
            return refused(error)
        return "CiphertextForRecipient" in answer


@pytest.fixture(scope="module")
def kms(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kms]:
    folder = tmp_path_factory.mktemp("image")
    genuine = build(make_parts(folder), PROFILE, folder / "genuine.eif")
    running = Kms(folder / "kms", genuine)
    try:
        assert running.releases_to(genuine)
        yield running
    finally:
        running.double.__exit__(None, None, None)


@pytest.mark.parametrize("name", CHANGES)
def test_h12_one_changed_byte_of_any_file_changes_the_registers_and_kms_refuses(
    kms: Kms, tmp_path: Path, name: str
) -> None:
    parts = make_parts(tmp_path)
    before = build(parts, PROFILE, tmp_path / "before.eif")
    assert kms.releases_to(before)
    CHANGES[name](parts)
    after = build(parts, PROFILE, tmp_path / "after.eif")
    assert after.pcr0 != before.pcr0
    # Casemate's code is PCR2's, everything else is PCR1's.
    ours = name.startswith("app/") or name in {
        *("planted source", "planted bytecode", "planted folder"),
    }
    assert (after.pcr1 != before.pcr1, after.pcr2 != before.pcr2) == (not ours, ours)
    assert not kms.releases_to(after)


@pytest.mark.parametrize("word", ["quiet", "init_on_alloc=1"])
def test_h12_another_kernel_command_line_is_another_image(
    kms: Kms, tmp_path: Path, word: str
) -> None:
    other = replace(PROFILE, kernel_arguments=f"{PROFILE.kernel_arguments} {word}")
    image = build(make_parts(tmp_path), other, tmp_path / "a.eif")
    assert not kms.releases_to(image)


def test_h12_another_form_is_another_image(kms: Kms, tmp_path: Path) -> None:
    image = build(make_parts(tmp_path), replace(PROFILE, form="nitro-enclave"), tmp_path / "a.eif")
    assert not kms.releases_to(image)


# A54: what is done to a whole image afterwards


def spoilt(path: Path, at: int, data: bytes) -> bytes:
    content = bytearray(path.read_bytes())
    content[at : at + len(data)] = data
    return bytes(content)


def test_a54_a_built_image_that_is_changed_is_refused_or_measures_differently(
    kms: Kms, tmp_path: Path
) -> None:
    path = tmp_path / "a.eif"
    build(make_parts(tmp_path), PROFILE, path)
    whole = path.read_bytes()
    for position in (0, 5, 30, 300, 546, 548, 552, eb.HEAD + 40, len(whole) - 1):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        with pytest.raises(EvidenceError):
            measured(path)
    for cut in (whole[:-1], whole + b"\x00", whole[:548], b""):
        path.write_bytes(cut)
        with pytest.raises(EvidenceError):
            measured(path)
    # With the checksum mended it is an image again: another one.
    changed = bytearray(whole)
    changed[-200] ^= 1
    changed[544:548] = struct.pack(">I", zlib.crc32(changed[548:], zlib.crc32(changed[:544])))
    path.write_bytes(changed)
    assert not kms.releases_to(measured(path))


def test_a54_bytes_that_move_between_sections_change_pcr1_or_pcr2(kms: Kms, tmp_path: Path) -> None:
    """PCR0 alone does not see it; the policies name all three."""
    path = tmp_path / "a.eif"
    before = build(make_parts(tmp_path), PROFILE, path)
    with path.open("rb") as file:
        data = file.read()
    *others, (_, runtime), (_, application) = _sections(data)
    moved = [(eb.RAMDISK, runtime + application[:512]), (eb.RAMDISK, application[512:])]
    path.write_bytes(eb.Eif([*others, *moved]).encode())
    after = measured(path)
    assert after.pcr0 == before.pcr0
    assert (after.pcr1, after.pcr2) != (before.pcr1, before.pcr2)
    assert not kms.releases_to(after)


def _sections(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = eb.HEAD
    while at < len(data):
        kind, size = int.from_bytes(data[at : at + 2]), int.from_bytes(data[at + 4 : at + 12])
        yield kind, data[at + 12 : at + 12 + size]
        at += 12 + size


# A55: who signed, and what for


@pytest.fixture
def inputs(tmp_path: Path) -> list[str]:
    parts = make_parts(tmp_path)
    (tmp_path / "p.toml").write_text(
        'form = "vm"\narchitecture = "x86_64"\nkernel_arguments = "a"\nmodules = []\n'
    )
    return [
        *("--tree", str(parts.tree), "--kernel", str(parts.kernel)),
        *("--profile", str(tmp_path / "p.toml"), "--output", str(tmp_path / "a.eif")),
    ]


def signer_files(folder: Path, signer: eb.Signer) -> list[str]:
    from cryptography.hazmat.primitives import serialization as ser  # noqa: PLC0415

    key = signer.key.private_bytes(ser.Encoding.PEM, ser.PrivateFormat.PKCS8, ser.NoEncryption())
    (folder / "key.pem").write_bytes(key)
    (folder / "certificate.pem").write_bytes(signer.pem)
    names = ("--signing-key", "key.pem"), ("--certificate", "certificate.pem")
    return [word for option, name in names for word in (option, str(folder / name))]


def test_a55_a_signed_image_names_its_signer_and_keeps_its_registers(
    inputs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(inputs) == 0
    plain = json.loads(capsys.readouterr().out)
    signer = eb.Signer(days=365 * 200)
    assert main([*inputs, *signer_files(tmp_path, signer)]) == 0
    signed = json.loads(capsys.readouterr().out)
    assert signed["pcr8"] == signer.pcr8.hex()
    for name in ("pcr0", "pcr1", "pcr2"):
        assert signed[name] == plain[name]


def test_a55_a_signature_does_not_move_to_another_image(
    inputs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Cut from one image and put onto another by the same builder, it says nothing."""
    assert main([*inputs, *signer_files(tmp_path, eb.Signer(days=365 * 200))]) == 0
    signature = dict(_sections((tmp_path / "a.eif").read_bytes()))[eb.SIGNATURE]
    change(tmp_path / "tree/app/casemate/wire.py")
    assert main(inputs) == 0
    other = list(_sections((tmp_path / "a.eif").read_bytes()))
    (tmp_path / "a.eif").write_bytes(eb.Eif([*other, (eb.SIGNATURE, signature)]).encode())
    image = measured(tmp_path / "a.eif")
    assert image.pcr8 is None
    assert image.signature is not None
    assert image.signature.problems[0].startswith("the signature is not this certificate's")


def test_a55_the_wrong_key_and_the_expired_certificate_are_said(
    inputs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = signer_files(tmp_path, eb.Signer())
    (tmp_path / "certificate.pem").write_bytes(eb.Signer().pem)
    assert main([*inputs, *options]) == 1
    assert "another key's" in capsys.readouterr().err
    assert not (tmp_path / "a.eif").exists()
    today = dt.datetime.now(dt.UTC).timestamp()
    expired = eb.Signer(days=int((today - NOW / 1000) / 86_400) - 2)
    assert main([*inputs, *signer_files(tmp_path, expired)]) == 0
    assert json.loads(capsys.readouterr().out)["problems"] == ["the certificate has expired"]


def test_a55_what_is_no_signer_is_refused(
    inputs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = signer_files(tmp_path, eb.Signer())
    for broken in ("key.pem", "certificate.pem"):
        kept = (tmp_path / broken).read_bytes()
        (tmp_path / broken).write_bytes(b"x")
        assert main([*inputs, *options]) == 1
        (tmp_path / broken).write_bytes(kept)
    assert main([*inputs, *options[:2]]) == 1
    assert "needs the certificate and its key" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "tree")
    assert main(inputs) == 1
    assert "make stage" in capsys.readouterr().err


def test_the_profiles_build_for_the_form_that_they_name(tmp_path: Path) -> None:
    parts = make_parts(tmp_path)
    profile = replace(Profile.load(ROOT / "docker/eif/nitro.toml"), modules=("nsm",))
    assert build(parts, profile, tmp_path / "n.eif").architecture == "x86_64"
