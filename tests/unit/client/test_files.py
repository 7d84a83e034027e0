"""Keys, tensors and answers in files."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)

from casemate.client import Inference
from casemate.client.files import (
    answer_as_json,
    parse_public_key,
    read_private_key,
    read_tensor,
    write_private_key,
)
from casemate.client.recognise import Kind, recognise
from casemate.errors import CasemateError, Code
from tests.support import eif_builder as eb
from tests.support import evidence as ev
from tests.support.documents import DEBUG, GENUINE, TPM, genuine

if TYPE_CHECKING:
    from collections.abc import Callable

KEY = Ed25519PrivateKey.generate()


def refused(act: Callable[[], object]) -> str:
    with pytest.raises(CasemateError) as caught:
        act()
    assert caught.value.code == Code.INVALID_ARGUMENT
    return caught.value.detail


# Keys


def test_a_key_survives_its_file(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    write_private_key(path, KEY)
    assert read_private_key(path).private_bytes_raw() == KEY.private_bytes_raw()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_key_is_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    path.write_text("precious")
    refused(lambda: write_private_key(path, KEY))
    assert path.read_text() == "precious"


def test_a_dangling_link_is_not_written_through(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    refused(lambda: write_private_key(tmp_path / "link", KEY))
    assert not (tmp_path / "elsewhere").exists()


def test_files_that_hold_no_key(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    encrypted = BestAvailableEncryption(b"secret")
    for content in (
        b"",
        b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
        KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encrypted),
        ec.generate_private_key(ec.SECP256R1()).private_bytes(
            Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
        ),
    ):
        path.write_bytes(content)
        refused(lambda: read_private_key(path))
    refused(lambda: read_private_key(tmp_path / "absent"))
    refused(lambda: read_private_key(tmp_path))


def test_no_error_quotes_a_key(tmp_path: Path) -> None:
    pem = KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    secret = pem.splitlines()[1].decode()
    path = tmp_path / "key.pem"
    path.write_bytes(pem.replace(b"PRIVATE KEY", b"WRONG KEY"))
    assert secret not in refused(lambda: read_private_key(path))


@pytest.mark.parametrize("text", ["", "00", "0" * 63, "0" * 66, "g" * 64, "\u0660" * 64])
def test_public_keys_in_hex(text: str) -> None:
    assert "64 hex digits" in refused(lambda: parse_public_key(text))
    assert parse_public_key("AB" * 32) == b"\xab" * 32


# Tensors


def written(path: Path, content: str) -> Path:
    path.write_text(content)
    return path


def test_npy(tmp_path: Path) -> None:
    value = np.arange(6, dtype=np.int64).reshape(2, 3).T
    np.save(tmp_path / "x.npy", value)
    read = read_tensor(tmp_path / "x.npy")
    assert np.array_equal(read, value)
    assert read.flags.c_contiguous


def test_npy_never_unpickles(tmp_path: Path) -> None:
    planted = tmp_path / "planted"

    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (planted,))

    np.save(tmp_path / "x.npy", np.array([Evil()], dtype=object), allow_pickle=True)
    refused(lambda: read_tensor(tmp_path / "x.npy"))
    assert not planted.exists()


@pytest.mark.parametrize("head", ["", "a,b\n"])
def test_csv_with_and_without_a_header(tmp_path: Path, head: str) -> None:
    read = read_tensor(written(tmp_path / "x.CSV", f"{head}1,2\n3,4.5\n"))
    assert read.dtype == np.float32
    assert read.tolist() == [[1, 2], [3, 4.5]]


def test_json(tmp_path: Path) -> None:
    document = {"datatype": "int16", "data": [[1, -2]]}
    read = read_tensor(written(tmp_path / "x.json", json.dumps(document)))
    assert read.dtype == np.int16
    assert read.tolist() == [[1, -2]]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("x.npy", "no array"),
        ("x.npy", ""),
        ("x.csv", "1,2\n3\n"),
        ("x.csv", "a,b\nc,d\n"),
        ("x.json", "{"),
        ("x.json", "[]"),
        ("x.json", '{"data": [1]}'),
        ("x.json", '{"datatype": "no", "data": [1]}'),
        ("x.json", '{"datatype": "int8", "data": [[1], [2, 3]]}'),
        ("x.json", '{"datatype": "int8", "data": [1e9]}'),
        ("x.json", "[" * 100_000),
        ("x.txt", "1"),
    ],
)
def test_files_that_hold_no_tensor(tmp_path: Path, name: str, content: str) -> None:
    refused(lambda: read_tensor(written(tmp_path / name, content)))


def test_an_archive_of_arrays_is_no_tensor(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", a=np.zeros(1))
    refused(lambda: read_tensor((tmp_path / "x.npz").rename(tmp_path / "x.npy")))


def test_answers_are_plain_json() -> None:
    outputs = {
        "p": np.array([[0.5, 1.5]], np.float32),
        "label": np.array([b"benign", b"\xff"], dtype=object),
        "none": np.array([], dtype=object),
    }
    result = Inference(outputs, "wdbc", 2, b"\xaa" * 48, ev.judge(ev.good()).evidence)
    answer = json.loads(json.dumps(answer_as_json(result)))
    assert answer["digest"] == "aa" * 48
    assert answer["outputs"]["p"] == {"datatype": "float32", "shape": [1, 2], "data": [[0.5, 1.5]]}
    assert answer["outputs"]["label"]["data"] == ["benign", "\ufffd"]
    assert answer["outputs"]["none"]["data"] == []


# What a file is


def test_files_are_recognised_by_content() -> None:
    for name in (GENUINE, DEBUG, TPM):
        assert recognise(genuine(name)) is Kind.DOCUMENT
        assert recognise(b"\xd2" + genuine(name)) is Kind.DOCUMENT
    assert recognise(ev.good().serialize()) is Kind.EVIDENCE
    assert recognise(ev.CONFIGURATION.encode()) is Kind.CONFIGURATION
    assert recognise(ev.policy().to_toml().encode()) is Kind.POLICY
    assert recognise(b"\n" + ev.policy().to_toml().encode()) is Kind.POLICY
    assert recognise(eb.Eif().encode()) is Kind.IMAGE
    assert recognise(b"CASEMDL2") is Kind.MODEL


@pytest.mark.parametrize("data", [b"", b"\x00", b"hello", b"\xff\xff", b"-----BEGIN PRIVATE KEY"])
def test_other_files_are_not(data: bytes) -> None:
    assert recognise(data) is None
