"""The security module's client: requests, answers, both ways to it."""

import ctypes
import fcntl
import struct
import threading
from pathlib import Path

import pytest

from casemate import cbor, limits
from casemate.attestation.document import parse_document
from casemate.channel import UnixAddress, listen
from casemate.errors import CasemateError, Code
from casemate_devkit.nsm import SimulatedNsm
from casemate_devkit.pki import NitroPki
from casemate_enclave.nsm import DeviceTransport, Nsm, SocketTransport, open_nsm, seed_kernel


@pytest.fixture(scope="module")
def pki() -> NitroPki:
    return NitroPki.create()


@pytest.fixture
def nsm(pki: NitroPki) -> Nsm:
    return Nsm(SimulatedNsm(pki, {}).handle)


def answering(value: object) -> Nsm:
    return Nsm(lambda _: cbor.encode(value))


def test_the_operations_against_the_modules_own_dialect(nsm: Nsm) -> None:
    document = parse_document(nsm.attest(public_key=b"k", user_data=b"u", nonce=None))
    assert (document.public_key, document.user_data, document.nonce) == (b"k", b"u", None)
    assert nsm.describe_pcr(16) == (False, bytes(48))
    value = nsm.extend_pcr(16, b"event")
    nsm.lock_pcr(16)
    assert nsm.describe_pcr(16) == (True, value)
    assert 1 <= len(nsm.random()) <= 256


def test_requests_are_what_the_device_takes() -> None:
    seen: list[bytes] = []

    def record(request: bytes) -> bytes:
        seen.append(request)
        return cbor.encode({"Error": "InternalError"})

    nsm = Nsm(record)
    for call in (
        nsm.random,
        lambda: nsm.lock_pcr(16),
        lambda: nsm.attest(public_key=None, user_data=b"\x01", nonce=None),
    ):
        with pytest.raises(CasemateError):
            call()
    assert seen[0] == b"\x69GetRandom"
    assert seen[1] == b"\xa1\x67LockPCR\xa1\x65index\x10"
    assert cbor.decode(seen[2]) == {
        "Attestation": {"nonce": None, "public_key": None, "user_data": b"\x01"}
    }


@pytest.mark.parametrize(
    "answer",
    [
        {"Error": "ReadOnlyIndex"},
        {"Error": "made up by the host"},
        {"Error": 1},
        "LockPCR",
        {"DescribePCR": {"lock": 1, "data": bytes(48)}},
        {"DescribePCR": {"lock": False, "data": b""}},
        {"DescribePCR": {"lock": False}},
        {"DescribePCR": "x"},
        {"DescribePCR": {"lock": False, "data": bytes(48)}, "Error": "InvalidIndex"},
        [],
        7,
    ],
)
def test_a_strange_answer_is_one_refusal(answer: object) -> None:
    with pytest.raises(CasemateError) as refusal:
        answering(answer).describe_pcr(16)
    assert refusal.value.code == Code.UNAVAILABLE
    assert "made up" not in str(refusal.value)


def test_what_is_no_cbor_and_a_dead_device_are_refusals_too() -> None:
    def dead(request: bytes) -> bytes:
        raise OSError("gone")

    def babbling(request: bytes) -> bytes:
        return b"\xff"

    for transport in (dead, babbling):
        with pytest.raises(CasemateError) as refusal:
            Nsm(transport).random()
        assert refusal.value.code == Code.UNAVAILABLE


def test_a_request_that_the_device_cannot_take_is_not_sent(nsm: Nsm) -> None:
    with pytest.raises(CasemateError):
        nsm.attest(public_key=None, user_data=bytes(limits.NSM_REQUEST_MAX), nonce=None)


def test_the_device_is_asked_through_its_ioctl(
    nsm: Nsm, monkeypatch: pytest.MonkeyPatch, pki: NitroPki
) -> None:
    module = SimulatedNsm(pki, {})

    def ioctl(_device: int, number: int, raw: bytearray) -> int:
        assert number == 0xC0200A00
        question, length, answer, room = struct.unpack("=QQQQ", raw)
        assert room == 0x3000
        data = module.handle(ctypes.string_at(question, length))
        ctypes.memmove(answer, data, len(data))
        raw[:] = struct.pack("=QQQQ", question, length, answer, len(data))
        return 0

    monkeypatch.setattr(fcntl, "ioctl", ioctl)
    device = Nsm(DeviceTransport("/dev/null"))
    assert device.describe_pcr(16) == (False, bytes(48))
    document = parse_document(device.attest(public_key=None, user_data=None, nonce=bytes(64)))
    assert document.nonce == bytes(64)


def serve(path: Path, answer: bytes) -> threading.Thread:
    listener = listen(UnixAddress(str(path)))

    def work() -> None:
        with listener:
            channel, _ = listener.accept()
            with channel:
                channel.recv(4096)
                channel.sendall(answer)

    thread = threading.Thread(target=work)
    thread.start()
    return thread


@pytest.mark.parametrize(
    ("answer", "accepted"),
    [
        (struct.pack(">I", 21) + cbor.encode({"GetRandom": {"random": b"r"}}), True),
        (struct.pack(">I", 22) + cbor.encode({"GetRandom": {"random": b"r"}}), False),
        (struct.pack(">I", 0x3001) + bytes(0x3001), False),
        (struct.pack(">I", (1 << 32) - 1), False),
        (b"\0", False),
    ],
)
def test_the_socket_carries_a_length_and_the_same_bytes(
    tmp_path: Path, answer: bytes, accepted: bool
) -> None:
    path = tmp_path / "nsm.sock"
    thread = serve(path, answer)
    nsm = open_nsm(f"unix:{path}")
    if accepted:
        assert nsm.random() == b"r"
    else:
        with pytest.raises(CasemateError):
            nsm.random()
    thread.join(60)


def test_an_address_that_is_no_device_is_refused() -> None:
    for name in ("vsock:3:5000", "nsm", ""):
        with pytest.raises(CasemateError):
            open_nsm(name)
    with pytest.raises(OSError, match="No such file"):
        open_nsm("/nonexistent")


def test_the_kernels_randomness_is_stirred(nsm: Nsm, tmp_path: Path) -> None:
    pool = tmp_path / "urandom"
    pool.touch()
    seed_kernel(nsm, str(pool))
    assert len(pool.read_bytes()) == 256
    with pytest.raises(CasemateError):
        seed_kernel(answering({"GetRandom": {"random": b""}}), str(pool))


def test_nobody_listens(tmp_path: Path) -> None:
    with pytest.raises(CasemateError):
        Nsm(SocketTransport(UnixAddress(str(tmp_path / "nsm.sock")))).random()
