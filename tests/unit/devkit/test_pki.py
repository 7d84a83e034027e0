"""The simulated PKI against the shape of genuine chains."""

import datetime as dt
import itertools
import pickle
import stat
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from casemate_devkit.errors import DevkitError
from casemate_devkit.pki import Issued, NitroPki

NOW = 1_790_000_000.25
MODULE = "i-0123456789abcdef0-enc0123456789abcdef"


class Clock:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> float:
        return self.now


def chain(issued: Issued) -> list[x509.Certificate]:
    return [x509.load_der_x509_certificate(der) for der in (*issued.cabundle, issued.der)]


@pytest.fixture(scope="module")
def certificates() -> list[x509.Certificate]:
    return chain(NitroPki.create(clock=lambda: NOW).leaf(MODULE))


def test_five_levels_each_signed_by_the_one_above(certificates: list[x509.Certificate]) -> None:
    assert len(certificates) == 5
    certificates[0].verify_directly_issued_by(certificates[0])
    for issuer, subject in itertools.pairwise(certificates):
        subject.verify_directly_issued_by(issuer)


def test_p384_and_sha384_throughout(certificates: list[x509.Certificate]) -> None:
    for certificate in certificates:
        key = certificate.public_key()
        assert isinstance(key, ec.EllipticCurvePublicKey)
        assert isinstance(key.curve, ec.SECP384R1)
        assert isinstance(certificate.signature_hash_algorithm, hashes.SHA384)


def test_lifetimes(certificates: list[x509.Certificate]) -> None:
    spans = [item.not_valid_after_utc - item.not_valid_before_utc for item in certificates]
    assert spans == [
        dt.timedelta(days=10958, hours=1),
        dt.timedelta(days=20, hours=1),
        dt.timedelta(days=6),
        dt.timedelta(hours=24),
        dt.timedelta(hours=3, seconds=3),
    ]


def test_names_as_real_ones(certificates: list[x509.Certificate]) -> None:
    common = [
        item.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value for item in certificates
    ]
    assert common[0] == "aws.nitro-enclaves"
    assert str(common[1]).endswith(".us-east-1.aws.nitro-enclaves")
    assert str(common[2]).endswith(".zonal.us-east-1.aws.nitro-enclaves")
    assert common[3] == "i-0123456789abcdef0.us-east-1.aws.nitro-enclaves"
    assert common[4] == f"{MODULE}.us-east-1.aws"


def extensions(certificate: x509.Certificate) -> list[tuple[str, bool]]:
    return [(type(item.value).__name__, item.critical) for item in certificate.extensions]


def test_extensions_in_the_real_order_and_criticality(certificates: list[x509.Certificate]) -> None:
    constraints = ("BasicConstraints", True)
    own, above = ("SubjectKeyIdentifier", False), ("AuthorityKeyIdentifier", False)
    usage, crl = ("KeyUsage", True), ("CRLDistributionPoints", False)
    assert [extensions(item) for item in certificates] == [
        [constraints, own, usage],
        [constraints, above, own, usage, crl],
        [constraints, above, own, usage, crl],
        [constraints, usage, own, above],
        [constraints, ("KeyUsage", False)],
    ]


def test_constraints_and_usages(certificates: list[x509.Certificate]) -> None:
    constraints = [
        item.extensions.get_extension_for_class(x509.BasicConstraints).value
        for item in certificates
    ]
    assert [item.ca for item in constraints] == [True, True, True, True, False]
    assert [item.path_length for item in constraints] == [None, 2, 1, 0, None]
    usages = [item.extensions.get_extension_for_class(x509.KeyUsage).value for item in certificates]
    assert [item.key_cert_sign for item in usages] == [True, True, True, True, False]
    assert [item.digital_signature for item in usages] == [True, True, True, False, True]
    assert [item.content_commitment for item in usages] == [False, False, False, False, True]


def test_sizes_as_real_ones() -> None:
    issued = NitroPki.create(clock=lambda: NOW).leaf(MODULE)
    sizes = [len(der) for der in (*issued.cabundle, issued.der)]
    # An ECDSA signature's DER varies by a few bytes.
    for size, (low, high) in zip(
        sizes, [(533, 533), (705, 711), (790, 815), (640, 716), (627, 650)], strict=True
    ):
        assert low - 4 <= size <= high + 4


def test_the_leaf_is_reused_and_renewed_before_it_expires() -> None:
    clock = Clock()
    pki = NitroPki.create(clock=clock)
    first = pki.leaf(MODULE)
    clock.now += 8_900
    assert pki.leaf(MODULE) is first
    clock.now += 1_000
    assert pki.leaf(MODULE).der != first.der


def test_every_certificate_is_valid_at_any_time_of_a_month() -> None:
    clock = Clock()
    pki = NitroPki.create(clock=clock)
    for _ in range(30 * 24 // 5):
        clock.now += 5 * 3600
        when = dt.datetime.fromtimestamp(clock.now, dt.UTC)
        certificates = chain(pki.leaf(MODULE))
        for certificate in certificates:
            assert certificate.not_valid_before_utc <= when <= certificate.not_valid_after_utc
        # No certificate outlives its issuer.
        ends = [item.not_valid_after_utc for item in certificates]
        assert ends == sorted(ends, reverse=True)
        assert certificates[0].public_bytes(Encoding.DER) == pki.root_der


def test_a_stored_root_is_private_and_opened_again(tmp_path: Path) -> None:
    directory = tmp_path / "pki"
    first = NitroPki.create(directory)
    assert NitroPki.create(directory).root_sha256 == first.root_sha256
    assert stat.S_IMODE((directory / "root.pem").stat().st_mode) == 0o600
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert (directory / "root.der").read_bytes() == first.root_der
    assert sorted(path.name for path in directory.iterdir()) == ["root.der", "root.pem"]


def test_two_processes_of_one_directory_sign_under_one_root(tmp_path: Path) -> None:
    one, other = NitroPki.create(tmp_path / "pki"), NitroPki.create(tmp_path / "pki")
    assert one.leaf(MODULE).cabundle[0] == other.leaf(MODULE).cabundle[0]
    assert one.instance_id == other.instance_id


def test_a_root_key_that_others_may_read_is_refused(tmp_path: Path) -> None:
    NitroPki.create(tmp_path)
    (tmp_path / "root.pem").chmod(0o640)
    with pytest.raises(DevkitError, match="others may read"):
        NitroPki.create(tmp_path)


@pytest.mark.parametrize("content", [b"", b"-----BEGIN CERTIFICATE-----\n"])
def test_a_damaged_root_is_refused(tmp_path: Path, content: bytes) -> None:
    NitroPki.create(tmp_path)
    (tmp_path / "root.pem").write_bytes(content)
    with pytest.raises(DevkitError, match="does not hold"):
        NitroPki.create(tmp_path)


def test_two_pkis_share_nothing() -> None:
    one, other = NitroPki.create(), NitroPki.create()
    assert one.root_sha256 != other.root_sha256
    assert one.instance_id != other.instance_id


def test_module_ids() -> None:
    pki = NitroPki.create()
    first, second = pki.new_module_id(), pki.new_module_id()
    assert first != second
    assert first.startswith(f"{pki.instance_id}-enc")
    assert len(first) == 39


def test_keys_are_neither_shown_nor_pickled() -> None:
    issued = NitroPki.create().leaf(MODULE)
    assert "redacted" in repr(issued)
    with pytest.raises(TypeError):
        pickle.dumps(issued)
