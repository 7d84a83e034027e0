"""The simulated module's answers, and its documents against a genuine one, byte by byte."""

import contextlib
import hashlib
import os
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from hypothesis import given
from hypothesis import strategies as st

from casemate import cbor
from casemate.attestation.measurement import Measurement
from casemate_devkit.nsm import SimulatedNsm, boot_registers
from casemate_devkit.nsm_server import NsmServer
from casemate_devkit.pki import NitroPki

NOW = 1_790_000_000.25
MEASUREMENT = Measurement(b"\x01" * 48, b"\x02" * 48, b"\x03" * 48)
ZERO = bytes(48)
VECTORS = Path(__file__).parents[2] / "vectors" / "nitro"
PKI = NitroPki.create(clock=lambda: NOW)


@pytest.fixture
def nsm() -> SimulatedNsm:
    return SimulatedNsm(PKI, boot_registers(MEASUREMENT, PKI.instance_id), clock=lambda: NOW)


def ask(nsm: SimulatedNsm, operation: str, **arguments: cbor.Value) -> cbor.Value:
    request = {operation: arguments} if arguments else operation
    answer = cbor.decode_nsm(nsm.handle(cbor.encode(request)))
    return answer if isinstance(answer, str) else answer.get(operation, answer)


def attest(nsm: SimulatedNsm, **fields: bytes | None) -> bytes:
    document = ask(
        nsm, "Attestation", **{"user_data": None, "nonce": None, "public_key": None, **fields}
    )
    assert isinstance(document["document"], bytes)
    return document["document"]


def payload(document: bytes) -> bytes:
    assert document[:8] == bytes.fromhex("8444a1013822a059")
    length = int.from_bytes(document[8:10], "big")
    assert document[10 + length : 12 + length] == b"\x58\x60"
    assert len(document) == 12 + length + 96
    return document[10 : 10 + length]


# --- documents


def skeleton(data: bytes) -> list[str]:
    """Every head of a payload in order; contents and their lengths left out, keys kept."""
    found: list[str] = []
    at = 0

    def item(depth: int, *, key: bool) -> None:
        nonlocal at
        first = data[at]
        major, info = first >> 5, first & 31
        width = {24: 1, 25: 2, 26: 4, 27: 8}.get(info, 0)
        argument = int.from_bytes(data[at + 1 : at + 1 + width], "big") if width else info
        at += 1 + width
        if major in {2, 3}:
            text = data[at : at + argument].decode() if major == 3 and key else ""
            found.append(f"{depth} {'text' if major == 3 else 'bytes'}+{width} {text}".rstrip())
            at += argument
        elif major in {0, 7}:
            found.append(f"{depth} uint+{width}" if major == 0 else f"{depth} simple {info}")
        elif info == 31:
            found.append(f"{depth} indefinite {major}")
            while data[at] != 0xFF:
                item(depth + 1, key=True)
                item(depth + 1, key=False)
            at += 1
        else:
            found.append(f"{depth} {'map' if major == 5 else 'array'} {argument}")
            for _ in range(argument):
                if major == 5:
                    item(depth + 1, key=True)
                item(depth + 1, key=False)

    item(0, key=False)
    assert at == len(data)
    return found


GENUINE = {
    "20260803_world-chain_13a44c64.cbor": {},
    "20251110_fastcrypto_8e5652f3.cbor": {"lock": True},
    "20250829_bedrock_7743a3dd.cbor": {},
}


@pytest.mark.parametrize("name", GENUINE)
def test_documents_have_the_structure_of_genuine_ones(nsm: SimulatedNsm, name: str) -> None:
    genuine = payload((VECTORS / name).read_bytes())
    values = cbor.decode_nsm(genuine)
    if GENUINE[name]:
        ask(nsm, "LockPCR", index=16)
    made = payload(
        attest(nsm, **{key: values[key] for key in ("public_key", "user_data", "nonce")})
    )
    assert skeleton(made) == skeleton(genuine)
    assert len(cbor.decode_nsm(made)["module_id"]) == len(values["module_id"])


def test_the_payload_is_an_indefinite_map_in_the_real_order(nsm: SimulatedNsm) -> None:
    made = payload(attest(nsm))
    assert made[:1] == b"\xbf"
    assert made.endswith(b"\x6apublic_key\xf6\x69user_data\xf6\x65nonce\xf6\xff")
    assert b"\x69timestamp\x1b" + int(NOW * 1000).to_bytes(8, "big") in made
    assert list(cbor.decode_nsm(made)) == [
        *("module_id", "digest", "timestamp", "pcrs", "certificate", "cabundle"),
        *("public_key", "user_data", "nonce"),
    ]


def test_the_signature_verifies_with_the_leaf(nsm: SimulatedNsm) -> None:
    document = attest(nsm, nonce=b"n" * 32)
    content = payload(document)
    leaf = x509.load_der_x509_certificate(cbor.decode_nsm(content)["certificate"])
    key = leaf.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    r, s = (int.from_bytes(document[-96:][part], "big") for part in (slice(48), slice(48, 96)))
    signed = b"\x84\x6aSignature1\x44\xa1\x01\x38\x22\x40" + cbor.encode(content)
    key.verify(encode_dss_signature(r, s), signed, ec.ECDSA(hashes.SHA384()))


def test_the_chain_starts_at_the_root_and_the_leaf_names_the_module(nsm: SimulatedNsm) -> None:
    values = cbor.decode_nsm(payload(attest(nsm)))
    assert hashlib.sha256(values["cabundle"][0]).digest() == PKI.root_sha256
    assert len(values["cabundle"]) == 4
    leaf = x509.load_der_x509_certificate(values["certificate"])
    assert values["module_id"] in leaf.subject.rfc4514_string()


# --- registers


def pcrs(nsm: SimulatedNsm) -> dict[int, bytes]:
    values = cbor.decode_nsm(payload(attest(nsm)))["pcrs"]
    assert isinstance(values, dict)
    return values


def test_boot_registers(nsm: SimulatedNsm) -> None:
    bank = pcrs(nsm)
    assert list(bank) == list(range(16))
    assert [bank[index] for index in (0, 1, 2)] == [b"\x01" * 48, b"\x02" * 48, b"\x03" * 48]
    assert bank[3] == ZERO
    assert bank[4] == hashlib.sha384(ZERO + PKI.instance_id.encode()).digest()
    assert all(bank[index] == ZERO for index in range(5, 16))


def test_debug_zeroes_the_image_registers_and_not_the_others() -> None:
    plain = boot_registers(MEASUREMENT, PKI.instance_id)
    debug = SimulatedNsm(
        PKI, boot_registers(MEASUREMENT, PKI.instance_id, debug=True), clock=lambda: NOW
    )
    bank = pcrs(debug)
    assert all(bank[index] == ZERO for index in (0, 1, 2, 8))
    assert bank[4] == plain[4] != ZERO


def test_the_hypervisors_registers_are_locked_at_boot(nsm: SimulatedNsm) -> None:
    for index in range(16):
        assert ask(nsm, "DescribePCR", index=index)["lock"] is True
        assert ask(nsm, "ExtendPCR", index=index, data=b"x") == {"Error": "ReadOnlyIndex"}
        assert ask(nsm, "LockPCR", index=index) == {"Error": "ReadOnlyIndex"}
    assert ask(nsm, "DescribePCR", index=16) == {"lock": False, "data": ZERO}


def test_extending_and_locking_register_16(nsm: SimulatedNsm) -> None:
    first = hashlib.sha384(ZERO + b"one").digest()
    second = hashlib.sha384(first + b"two").digest()
    assert ask(nsm, "ExtendPCR", index=16, data=b"one") == {"data": first}
    assert ask(nsm, "ExtendPCR", index=16, data=b"two") == {"data": second}
    assert 16 not in pcrs(nsm)  # it could still change
    assert ask(nsm, "LockPCR", index=16) == "LockPCR"
    assert pcrs(nsm)[16] == second
    assert ask(nsm, "ExtendPCR", index=16, data=b"three") == {"Error": "ReadOnlyIndex"}


def test_locking_a_range(nsm: SimulatedNsm) -> None:
    assert ask(nsm, "LockPCRs", range=18) == "LockPCRs"
    assert list(pcrs(nsm)) == list(range(18))
    assert ask(nsm, "LockPCRs", range=32) == "LockPCRs"
    assert len(pcrs(nsm)) == 32
    assert ask(nsm, "LockPCRs", range=33) == {"Error": "InvalidIndex"}


def test_every_start_has_its_own_bank_and_identity() -> None:
    banks = [SimulatedNsm(PKI, boot_registers(MEASUREMENT, PKI.instance_id)) for _ in range(2)]
    ask(banks[0], "ExtendPCR", index=16, data=b"x")
    assert ask(banks[1], "DescribePCR", index=16)["data"] == ZERO
    assert banks[0].module_id != banks[1].module_id


# --- requests


def test_describe_nsm_in_field_order(nsm: SimulatedNsm) -> None:
    answer = ask(nsm, "DescribeNSM")
    assert answer == {
        "version_major": 1,
        "version_minor": 0,
        "version_patch": 0,
        "module_id": nsm.module_id,
        "max_pcrs": 32,
        "locked_pcrs": list(range(16)),
        "digest": "SHA384",
    }
    assert next(iter(answer)) == "version_major"


def test_answers_without_a_result_are_their_name(nsm: SimulatedNsm) -> None:
    assert nsm.handle(cbor.encode({"LockPCR": {"index": 20}})) == b"\x67LockPCR"
    assert nsm.handle(b"\x69GetRandom").startswith(b"\xa1\x69GetRandom\xa1\x66random\x59\x01\x00")


def test_random(nsm: SimulatedNsm) -> None:
    first, second = (ask(nsm, "GetRandom")["random"] for _ in range(2))
    assert len(first) == len(second) == 256
    assert first != second


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        (b"", "InvalidOperation"),
        (b"\xff", "InvalidOperation"),
        (b"\x69GetRandom\x00", "InvalidOperation"),
        (cbor.encode("Attest"), "InvalidOperation"),
        (cbor.encode(7), "InvalidOperation"),
        (cbor.encode({}), "InvalidOperation"),
        (cbor.encode({"DescribePCR": {"index": 1}, "DescribeNSM": {}}), "InvalidOperation"),
        (cbor.encode({"DescribePCR": {}}), "InvalidOperation"),
        (cbor.encode({"DescribePCR": {"index": True}}), "InvalidOperation"),
        (cbor.encode({"DescribePCR": {"index": "1"}}), "InvalidOperation"),
        (cbor.encode({"DescribePCR": {"index": 32}}), "InvalidIndex"),
        (cbor.encode({"ExtendPCR": {"index": 32, "data": b""}}), "InvalidIndex"),
        (cbor.encode({"ExtendPCR": {"index": 16, "data": "x"}}), "InvalidOperation"),
        (cbor.encode({"ExtendPCR": {"index": 16}}), "InvalidOperation"),
        (cbor.encode({"LockPCR": {"index": 2**40}}), "InvalidIndex"),
        (cbor.encode({"Attestation": {"user_data": b"x" * 1025}}), "InputTooLarge"),
        (cbor.encode({"Attestation": {"nonce": b"x" * 1025}}), "InputTooLarge"),
        (cbor.encode({"Attestation": {"public_key": b"x" * 1025}}), "InputTooLarge"),
        (cbor.encode({"Attestation": {"nonce": "x"}}), "InvalidOperation"),
        (cbor.encode({"Attestation": {"role": b"x"}}), "InvalidOperation"),
        (cbor.encode({"ExtendPCR": {"index": 16, "data": b"x" * 0x1000}}), "InputTooLarge"),
    ],
)
def test_refusals(nsm: SimulatedNsm, request_: bytes, code: str) -> None:
    assert cbor.decode(nsm.handle(request_)) == {"Error": code}


def test_fields_may_be_missing_empty_or_at_their_limit(nsm: SimulatedNsm) -> None:
    assert "document" in ask(nsm, "Attestation", nonce=b"")
    full = attest(nsm, nonce=b"n" * 1024, user_data=b"u" * 1024, public_key=b"p" * 1024)
    assert len(full) < 0x3000
    values = cbor.decode_nsm(payload(attest(nsm, public_key=b"")))
    assert (values["public_key"], values["nonce"]) == (b"", None)


@given(st.binary(max_size=200))
def test_no_request_breaks_it(request_: bytes) -> None:
    nsm = SimulatedNsm(PKI, {}, clock=lambda: NOW)
    cbor.decode_nsm(nsm.handle(request_))


# --- the socket


@pytest.fixture
def server(nsm: SimulatedNsm) -> Iterator[NsmServer]:
    with NsmServer(nsm) as running:
        yield running


def connected(server: NsmServer) -> socket.socket:
    channel = socket.socket(socket.AF_UNIX)
    channel.settimeout(60)
    channel.connect(str(server.directory / "nsm.sock"))
    return channel


def exchange(channel: socket.socket, request: bytes) -> bytes:
    channel.sendall(struct.pack(">I", len(request)) + request)
    (length,) = struct.unpack(">I", channel.recv(4, socket.MSG_WAITALL))
    return channel.recv(length, socket.MSG_WAITALL)


def test_the_admitted_process_is_answered(server: NsmServer) -> None:
    server.admit(os.getpid())
    with connected(server) as channel:
        for _ in range(2):
            assert cbor.decode_nsm(exchange(channel, cbor.encode("DescribeNSM")))["DescribeNSM"]
        assert cbor.decode(exchange(channel, b"")) == {"Error": "InvalidOperation"}


def test_a_connection_waits_until_the_process_is_named(server: NsmServer) -> None:
    with connected(server) as channel:
        threading.Timer(0.2, server.admit, [os.getpid()]).start()
        assert exchange(channel, cbor.encode("GetRandom"))


def test_another_process_is_not_answered(server: NsmServer) -> None:
    server.admit(os.getppid())
    with connected(server) as channel, contextlib.suppress(ConnectionError):
        channel.sendall(struct.pack(">I", 10) + cbor.encode("GetRandom"))
        assert channel.recv(1) == b""


def test_an_oversized_request_ends_the_connection(server: NsmServer) -> None:
    server.admit(os.getpid())
    with connected(server) as channel:
        channel.sendall(struct.pack(">I", 0x1001))
        assert channel.recv(1) == b""


def test_the_socket_is_closed_to_other_users_and_leaves_nothing(nsm: SimulatedNsm) -> None:
    with NsmServer(nsm) as server:
        private = server.directory.parent
        assert private.stat().st_mode & 0o777 == 0o700
    assert not private.exists()


def test_a_pid_that_now_names_another_process_is_not_the_enclave(
    nsm: SimulatedNsm, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = iter([7, 8])
    monkeypatch.setattr("casemate_devkit.nsm_server._started", lambda _: next(started))
    with NsmServer(nsm) as server:
        server.admit(os.getpid())
        with socket.socket(socket.AF_UNIX) as channel:
            channel.settimeout(60)
            channel.connect(str(server.directory / "nsm.sock"))
            assert channel.recv(1) == b""
