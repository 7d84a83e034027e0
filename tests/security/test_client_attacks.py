"""A client against the service and other clients (THREATS.md: C1, C3, C4, C7, C9, C11, C13, H20).

Everything is sealed correctly unless the attack is the sealing: what is hostile is the content.
"""

from __future__ import annotations

import dataclasses
import struct
import threading
import time
from typing import TYPE_CHECKING

import grpc
import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from casemate import cbor, wire
from casemate.attestation import Configuration, pcr16
from casemate.envelope.chunks import seal_content
from casemate.envelope.header import parse_request_header
from casemate.envelope.messages import Preamble
from casemate.envelope.sealed_message import encode_sealed, parse_sealed
from casemate.envelope.sealing import SealedCall
from casemate.envelope.units import pack_unit
from casemate.errors import CasemateError, Code
from casemate.limits import REPLAY_WINDOW, SEQUENCE_MAX
from casemate.oip.v2 import inference_pb2 as oip
from casemate.protowire import bytes_head, encode_varint
from casemate_devkit.local import MODEL
from tests.support.attacker import (
    GOOD,
    ROWS,
    EnclaveSocket,
    Session,
    genuine,
    refusal,
    resident_kib,
    side_enclave,
    start_session,
    verified,
)
from tests.support.damage import flip
from tests.support.patience import patiently

if TYPE_CHECKING:
    from casemate.envelope.sealing import OpenedAnswer
    from casemate_devkit.local import LocalDeployment

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("still_serves")]
_MIB_IN_KIB = 1024
RAW = ROWS.tobytes()
ANONYMOUS = Preamble(MODEL, 1).encode()


@pytest.fixture
def enclave(deployment: LocalDeployment) -> EnclaveSocket:
    return genuine(deployment)


@pytest.fixture(scope="module")
def session(deployment: LocalDeployment) -> Session:
    return start_session(deployment, lifetime_ms=600_000)


# C1: hostile tensors, correctly sealed


def message(
    *,
    name: str = "features",
    datatype: str = "FP32",
    shape: tuple[int, ...] = ROWS.shape,
    raw: tuple[bytes, ...] = (RAW,),
    outputs: tuple[str, ...] = (),
    times: int = 1,
) -> bytes:
    request = oip.ModelInferRequest(raw_input_contents=raw)
    for _ in range(times):
        request.inputs.add(name=name, datatype=datatype, shape=shape)
    for output in outputs:
        request.outputs.add(name=output)
    return request.SerializeToString()


def with_contents() -> bytes:
    request = oip.ModelInferRequest()
    tensor = request.inputs.add(name="features", datatype="FP32", shape=ROWS.shape)
    tensor.contents.fp32_contents.extend(ROWS.reshape(-1).tolist())
    return request.SerializeToString()


HOSTILE: dict[str, bytes] = {
    "overflowing product": message(shape=(2**32, 2**32)),
    "overflow to the right length": message(shape=(2**62 + 1, 4)),
    "overflow to zero": message(shape=(2**63 - 1, 2), raw=(b"",)),
    "2^31 elements, few bytes": message(shape=(2**31, 30)),
    "2^31 elements, no bytes": message(shape=(2**31 // 30, 30), raw=(b"",)),
    "absurd but empty": message(shape=(0, 2**62), raw=(b"",)),
    "negative": message(shape=(-1, 30)),
    "two negatives": message(shape=(-4, -30)),
    "least integer": message(shape=(-(2**63), 30)),
    "rank 0": message(shape=()),
    "rank 9": message(shape=(4, 30, *(1,) * 7)),
    "rank 10,000": message(shape=(1,) * 10_000),
    "raw too short": message(raw=(RAW[:-1],)),
    "raw too long": message(raw=(RAW + b"\0",)),
    "no raw": message(raw=()),
    "two raws": message(raw=(RAW, RAW)),
    "no input": message(times=0, raw=(), outputs=("label",)),
    "duplicate input": message(times=2, raw=(RAW, RAW)),
    "65 inputs": message(times=65, raw=(RAW,) * 65),
    "unknown input": message(name="other"),
    "empty name": message(name=""),
    "name of 100,000": message(name="x" * 100_000),
    "other datatype": message(datatype="FP64", raw=(RAW + RAW,)),
    "no datatype": message(datatype=""),
    "strings for numbers": message(datatype="BYTES", shape=(4, 30)),
    "string that passes the end": message(datatype="BYTES", raw=(struct.pack("<I", 2**31),)),
    "unknown output": message(outputs=("secret",)),
    "duplicate output": message(outputs=("label", "label")),
    "contents instead of raw": with_contents(),
    "no protobuf": b"\xff" * 100,
    "cut protobuf": GOOD[:-1],
    "trailing byte": GOOD + b"\0",
    "unknown field": GOOD + bytes_head(99, 1) + b"x",
    "group": GOOD + b"\x0b\x0c",
    "declares 4 GiB": bytes_head(7, 2**32),
    "long varint": b"\x3a" + b"\x80" * 20,
    "zeros": bytes(4096),
}


@pytest.mark.parametrize("hostile", HOSTILE.values(), ids=HOSTILE.keys())
def test_c1_a_hostile_message_is_one_sealed_clear_error(
    deployment: LocalDeployment, enclave: EnclaveSocket, session: Session, hostile: bytes
) -> None:
    pid = enclave_pid(deployment)
    before = resident_kib(pid, "VmPeak"), resident_kib(pid)
    answer = session.ask(enclave, hostile)
    assert answer.trailer.status in {Code.INVALID_REQUEST, Code.INVALID_INPUT}
    assert answer.message is None
    assert 0 < len(answer.trailer.detail.encode()) <= 512
    assert resident_kib(pid, "VmPeak") - before[0] < 160 * _MIB_IN_KIB  # threads' arenas: 64 each
    assert resident_kib(pid) - before[1] < 16 * _MIB_IN_KIB


def test_c1_numbers_that_are_none_are_answered_like_any_others(
    enclave: EnclaveSocket, session: Session
) -> None:
    odd = np.full((3, 30), np.nan, np.float32)
    odd[1], odd[2] = np.inf, -np.inf
    raw = odd.tobytes()
    assert session.ask(enclave, message(shape=(3, 30), raw=(raw,))).trailer.status in {
        Code.OK,
        Code.MODEL_FAILED,
    }


def enclave_pid(deployment: LocalDeployment) -> int:
    assert deployment.enclave is not None
    return int(deployment.enclave.ready["pid"])


@pytest.mark.parametrize(
    "preamble",
    [
        b"\xff",
        cbor.encode({"v": 1}),
        cbor.encode({"v": 2, "model": MODEL, "version": 1, "digest": None}),
        cbor.encode({"v": 1, "model": "x" * 300}),
        b"\xa1" * 500,
        cbor.encode({"v": 1, "model": MODEL}) + b"\0",
    ],
    ids=["no CBOR", "keys missing", "version", "long name", "nested", "trailing"],
)
def test_c1_a_preamble_that_cannot_be_read_is_a_sealed_error(
    enclave: EnclaveSocket, session: Session, preamble: bytes
) -> None:
    answer = ask_raw(session, enclave, preamble, GOOD)
    assert answer.trailer.status is Code.INVALID_REQUEST


def ask_raw(
    session: Session, enclave: EnclaveSocket, preamble: bytes, content: bytes
) -> OpenedAnswer:
    """Seal any two parts under the session's next header."""
    header = session.keys._next_header()
    call = sealed_under(session, header, pack_unit((preamble, content)))
    return call.open(*enclave.request(call.header, call.ciphertext))


def sealed_under(session: Session, header: bytes, unit: bytes | bytearray) -> SealedCall:
    th = wire.digest(header)
    prk = session.keys._prk
    ciphertext = seal_content(wire.expand(prk, "request", th), th, unit)
    return SealedCall(header, b"".join(encode_sealed(header, ciphertext)), prk, None)


@pytest.mark.parametrize(
    "unit",
    [
        bytes(1024),
        pack_unit((b"a" * 10,)),
        pack_unit((b"a", *[b"b"] * 33)),
        bytes(pack_unit((b"a", b"b")))[:-1] + b"\1",
        bytes(pack_unit((b"a", b"b"))) + bytes(1024),
        struct.pack(">I", 2**32 - 1) + bytes(1020),
        b"x",
    ],
    ids=["no part", "one part", "34 parts", "padding", "long padding", "4 GiB part", "one byte"],
)
def test_c1_a_unit_with_another_reading_opens_nothing(
    enclave: EnclaveSocket, session: Session, unit: bytes
) -> None:
    call = sealed_under(session, session.keys._next_header(), unit)
    assert refusal(lambda: enclave.request(call.header, call.ciphertext)) is Code.OPEN_FAILED


# C4, C13: another client's key


def test_c4_a_copied_wrapped_key_opens_nothing_and_harms_nobody(
    deployment: LocalDeployment, enclave: EnclaveSocket
) -> None:
    for mode in ("hpke", "kms"):
        owner, thief = start_session(deployment, mode=mode), start_session(deployment, caller=None)
        first = owner.seal()
        theirs = parse_request_header(first.header)
        # The thief saw the owner's header: it names the owner's key, commitment and sequences.
        for sequence in (0, 1, 5, SEQUENCE_MAX - 1):
            for commitment in (theirs.key_commitment, b"\1" * 32):
                stolen = dataclasses.replace(
                    theirs, sequence=sequence, key_commitment=commitment, request_id=b"t" * 16
                ).encode()
                call = sealed_under(thief, stolen, pack_unit((b"p", GOOD)))
                code = refusal(lambda c=call: enclave.request(c.header, c.ciphertext))  # type: ignore[misc]
                assert code is Code.OPEN_FAILED, mode
        answer = first.open(*enclave.request(first.header, first.ciphertext))
        assert answer.trailer.status is Code.OK
        assert owner.ask(enclave).trailer.status is Code.OK


def test_c4_equal_request_ids_and_sequences_of_two_clients_do_not_meet(
    deployment: LocalDeployment, enclave: EnclaveSocket
) -> None:
    one, two = start_session(deployment), start_session(deployment)
    for _ in range(3):
        assert one.ask(enclave).trailer.status is Code.OK
        assert two.ask(enclave).trailer.status is Code.OK  # the same sequence, another session


# C7: KMS keys as a caller names them


@pytest.mark.parametrize(
    ("key", "codes"),
    [
        ("alias/clinic", {Code.MALFORMED}),
        ("arn:aws:kms:eu-central-1:222222222222:alias/clinic", {Code.MALFORMED}),
        ("arn:aws:kms:eu-central-1:222222222222:key/mrk-" + "0" * 32, {Code.MALFORMED}),
        ("arn:aws:kms:attacker.example/:222222222222:key/" + "0" * 36, {Code.MALFORMED}),
        ("{id}", {Code.MALFORMED}),
        ("arn:aws:kms:us-east-1:222222222222:key/{id}", {Code.MALFORMED}),
        ("arn:aws-cn:kms:eu-central-1:222222222222:key/{id}", {Code.MALFORMED}),
        (
            "arn:aws:kms:eu-central-1:222222222222:key/00000000-0000-4000-8000-000000000000",
            {Code.KEY_RELEASE_INVALID, Code.KEY_RELEASE_DENIED},
        ),
        ("{model key}", {Code.KEY_RELEASE_INVALID, Code.KEY_RELEASE_DENIED}),
    ],
)
def test_c7_a_key_that_is_not_the_callers_own_is_refused(
    deployment: LocalDeployment, enclave: EnclaveSocket, key: str, codes: set[Code]
) -> None:
    call = start_session(deployment, mode="kms").seal()
    header = parse_request_header(call.header)
    key_id = deployment.clinic_key.rpartition("/")[2]
    arn = key.replace("{id}", key_id).replace("{model key}", deployment.vendor_key)
    wrapped = wire.lp(arn.encode()) + header.ciphertext_blob
    changed = dataclasses.replace(header, wrapped_key=wrapped).encode()
    assert refusal(lambda: enclave.request(changed, call.ciphertext)) in codes


# C9: identical requests at once, sequences


@pytest.mark.parametrize("mode", ["hpke", "kms"])
def test_c9_of_identical_requests_at_once_exactly_one_runs(
    deployment: LocalDeployment, enclave: EnclaveSocket, mode: str
) -> None:
    session = start_session(deployment, mode=mode)
    for _ in range(3):
        outcomes = at_once(enclave, session.seal())
        assert sorted(outcomes) == [Code.OK] + [Code.REPLAYED] * 11


def at_once(enclave: EnclaveSocket, call: SealedCall) -> list[Code]:
    outcomes: list[Code] = []
    start = threading.Barrier(12)

    def send() -> None:
        start.wait(60)
        try:
            answer = call.open(*enclave.request(call.header, call.ciphertext))
            outcomes.append(answer.trailer.status)
        except CasemateError as error:
            outcomes.append(error.code)

    threads = [threading.Thread(target=send) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outcomes


def at_sequence(session: Session, sequence: int, content: bytes = GOOD) -> SealedCall:
    session.keys._sequence = sequence
    return session.seal(content)


def test_c9_only_an_authenticated_request_moves_the_window(
    deployment: LocalDeployment, enclave: EnclaveSocket
) -> None:
    owner = start_session(deployment)
    jump = at_sequence(owner, SEQUENCE_MAX - 1)
    broken = flip(jump.ciphertext, -1)
    assert refusal(lambda: enclave.request(jump.header, broken)) is Code.OPEN_FAILED
    owner.keys._sequence = 0
    assert owner.ask(enclave).trailer.status is Code.OK  # nobody was locked out
    # The owner's own jump shuts out what lies below its window, for the owner alone.
    jump = at_sequence(owner, 5000)
    assert jump.open(*enclave.request(jump.header, jump.ciphertext)).trailer.status is Code.OK
    late = at_sequence(owner, 5000 - REPLAY_WINDOW - 1)
    assert refusal(lambda: enclave.request(late.header, late.ciphertext)) is Code.REPLAYED
    inside = at_sequence(owner, 5000 - REPLAY_WINDOW)
    assert inside.open(*enclave.request(inside.header, inside.ciphertext)).trailer.status is Code.OK


def test_c9_sequences_end_at_2_to_the_20(
    deployment: LocalDeployment, enclave: EnclaveSocket
) -> None:
    session = start_session(deployment)
    header = parse_request_header(session.seal().header)
    for beyond in (SEQUENCE_MAX, 2**32 - 1):
        call = sealed_under(
            session,
            dataclasses.replace(header, sequence=beyond).encode(),
            pack_unit((b"p", GOOD)),
        )
        assert refusal(lambda c=call: enclave.request(c.header, c.ciphertext)) is Code.MALFORMED  # type: ignore[misc]


def test_c9_a_header_seals_one_plaintext_only(
    deployment: LocalDeployment, enclave: EnclaveSocket
) -> None:
    session = start_session(deployment)
    first = at_sequence(session, 0)
    other = sealed_under(session, first.header, pack_unit((ANONYMOUS, GOOD)))
    assert first.open(*enclave.request(first.header, first.ciphertext)).trailer.status is Code.OK
    assert refusal(lambda: enclave.request(other.header, other.ciphertext)) is Code.REPLAYED


# H20: one ciphertext, two keys


def test_h20_bare_aes_gcm_would_open_one_ciphertext_under_two_keys() -> None:
    """The attack is real: both keys authenticate these bytes."""
    one, two, nonce = b"1" * 32, b"2" * 32, b"n" * 12
    ciphertext = colliding_ciphertext(one, two, nonce)
    first, second = (AESGCM(key).decrypt(nonce, ciphertext, None) for key in (one, two))
    assert first != second


@pytest.mark.parametrize("mode", ["hpke", "kms"])
def test_h20_a_ciphertext_under_another_key_than_the_committed_one_is_refused(
    deployment: LocalDeployment, enclave: EnclaveSocket, mode: str
) -> None:
    """The header carries the first key's commitment and the second key, which seals the content."""
    committed, sealing = (start_session(deployment, mode=mode) for _ in range(2))
    header = parse_request_header(committed.seal().header)
    other = parse_request_header(sealing.seal().header)
    for changed in (
        dataclasses.replace(header, wrapped_key=other.wrapped_key),
        dataclasses.replace(other, key_commitment=header.key_commitment),
        dataclasses.replace(header, key_commitment=other.key_commitment),
    ):
        for session in (committed, sealing):
            call = sealed_under(session, changed.encode(), pack_unit((ANONYMOUS, GOOD)))
            code = refusal(lambda c=call: enclave.request(c.header, c.ciphertext))  # type: ignore[misc]
            assert code is Code.OPEN_FAILED


def colliding_ciphertext(one: bytes, two: bytes, nonce: bytes) -> bytes:
    """One block and its tag that authenticate under both AES-256-GCM keys (no associated data)."""

    def encrypt(key: bytes, block: bytes) -> int:
        run = Cipher(algorithms.AES(key), modes.ECB()).encryptor()
        return int.from_bytes(run.update(block), "big")

    # tag = C h^2 + L h + E(nonce || 1): equal for both keys where C (h1^2 + h2^2) = the rest.
    lengths = (128).to_bytes(16, "big")
    h1, h2 = encrypt(one, bytes(16)), encrypt(two, bytes(16))
    m1, m2 = (encrypt(key, nonce + b"\0\0\0\1") for key in (one, two))
    size = int.from_bytes(lengths, "big")
    rest = multiply(size, h1 ^ h2) ^ m1 ^ m2
    block = multiply(rest, inverse(multiply(h1, h1) ^ multiply(h2, h2)))
    tag = multiply(block, multiply(h1, h1)) ^ multiply(size, h1) ^ m1
    return block.to_bytes(16, "big") + tag.to_bytes(16, "big")


def multiply(x: int, y: int) -> int:
    """Multiply in GCM's field of 2^128 elements; the leftmost bit is the constant term."""
    product = 0
    for bit in range(127, -1, -1):
        if y >> bit & 1:
            product ^= x
        x = x >> 1 ^ (0xE1 << 120 if x & 1 else 0)
    return product


def inverse(x: int) -> int:
    result, power = 1 << 127, x
    for _ in range(127):
        power = multiply(power, power)
        result = multiply(result, power)
    return result


# C11: one encoding outside the seal


def test_c11_a_second_encoding_of_the_same_request_is_malformed(
    deployment: LocalDeployment, enclave: EnclaveSocket
) -> None:
    call = start_session(deployment).seal()
    header, body = call.header, bytes(call.ciphertext)
    one = bytes_head(1, len(header)) + header
    two = bytes_head(2, len(body)) + body
    long_length = b"\x12" + encode_varint(len(body))[:-1]
    long_length += bytes([encode_varint(len(body))[-1] | 0x80, 0]) + body
    variants = {
        "other order": two + one,
        "header twice": one + one + two,
        "ciphertext twice": one + two + two,
        "other header first": bytes_head(1, 3) + b"abc" + one + two,
        "unknown field": one + two + bytes_head(3, 1) + b"x",
        "unknown varint": one + b"\x18\x01" + two,
        "long varint": one + long_length,
        "long tag": b"\x8a\x00" + one[1:] + two,
        "group": one + two + b"\x1b\x1c",
        "fixed": one + two + b"\x1d\0\0\0\0",
        "trailing": one + two + b"\0",
        "header missing": two,
        "ciphertext missing": one,
        "nothing": b"",
    }
    with grpc.insecure_channel(deployment.target) as channel:
        infer: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(
            "/casemate.v1.ConfidentialInference/Infer"
        )
        for name, variant in variants.items():
            with pytest.raises(grpc.RpcError) as caught:
                infer(variant, timeout=60)
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT, name
            assert "MALFORMED" in (caught.value.details() or ""), name
        answer = call.open(*parse_sealed(memoryview(infer(one + two, timeout=60))))
    assert answer.trailer.status is Code.OK


def both_arms() -> bytes:
    """Raw contents, and typed contents of the same tensor that say something else."""
    request = oip.ModelInferRequest.FromString(GOOD)
    request.inputs[0].contents.fp32_contents.extend([9.0] * ROWS.size)
    return request.SerializeToString()


def repeated_field() -> bytes:
    """A tensor's datatype twice: the last one wins with most readers, the first with some."""
    tensor = oip.ModelInferRequest.FromString(GOOD).inputs[0].SerializeToString()
    tensor += b"\x12\x04FP32"  # field 2, datatype, once more
    raw = bytes_head(7, len(RAW)) + RAW
    return bytes_head(5, len(tensor)) + tensor + raw


@pytest.mark.parametrize(
    "content", [both_arms(), repeated_field()], ids=["both arms of a choice", "a field twice"]
)
def test_c11_a_message_with_two_readings_is_refused_inside_the_seal(
    enclave: EnclaveSocket, session: Session, content: bytes
) -> None:
    answer = session.ask(enclave, content)
    assert answer.trailer.status in {Code.INVALID_REQUEST, Code.INVALID_INPUT}
    assert answer.message is None


def test_c11_a_preamble_has_one_encoding(enclave: EnclaveSocket, session: Session) -> None:
    keys = cbor.decode(ANONYMOUS)
    pairs = [(cbor.encode(key), cbor.encode(value)) for key, value in keys.items()]
    assert bytes([0xA0 | len(pairs)]) + b"".join(k + v for k, v in sorted(pairs)) == ANONYMOUS
    head, ordered = bytes([0xA0 | len(pairs)]), sorted(pairs)
    (version,) = (pair for pair in ordered if pair[0] == cbor.encode("v"))
    variants = {
        "unsorted": head + b"".join(k + v for k, v in reversed(ordered)),
        "a key twice": bytes([head[0] + 1]) + ANONYMOUS[1:] + version[0] + version[1],
        "indefinite": b"\xbf" + ANONYMOUS[1:] + b"\xff",
        "long head": b"\xb8" + bytes([len(pairs)]) + ANONYMOUS[1:],
        "long integer": ANONYMOUS.replace(b"".join(version), version[0] + b"\x18\x01"),
        "unknown key": bytes([head[0] + 1]) + ANONYMOUS[1:] + cbor.encode("zzzzzzzzzzzz") + b"\x00",
    }
    for name, variant in variants.items():
        assert variant != ANONYMOUS
        status = ask_raw(session, enclave, variant, GOOD).trailer.status
        assert status is Code.INVALID_REQUEST, name


# C3: a full session table


def test_c3_a_full_session_table_refuses_new_sessions_and_keeps_the_live_ones(
    deployment: LocalDeployment,
) -> None:
    configuration = Configuration.parse(deployment.configuration)
    small = dataclasses.replace(
        configuration, limits=dataclasses.replace(configuration.limits, sessions=8)
    ).encode()
    release = dataclasses.replace(deployment.release, pcr16=pcr16(small))

    def full(life_s: float) -> list[Code]:
        """What sessions of so many seconds and one more come to, and that one when they are over.

        Slow machines may take longer than they live.
        """
        with side_enclave(deployment, configuration=small) as enclave:
            evidence = verified(deployment, enclave, releases=(release,))
            life_ms = round(life_s * 1000)
            short = [
                start_session(deployment, evidence=evidence, lifetime_ms=life_ms) for _ in range(4)
            ]
            over = time.monotonic() + life_s + 0.5
            codes = [code_of(enclave, session.seal()) for session in short]
            late = start_session(deployment, evidence=evidence).seal()
            codes += [code_of(enclave, late) for _ in range(20)]
            codes += [code_of(enclave, session.seal()) for session in short]
            time.sleep(max(0, over - time.monotonic()))
            return [*codes, code_of(enclave, late)]

    served = Code.UNKNOWN_MODEL
    expected = [served] * 4 + [Code.OVERLOADED] * 20 + [served] * 5
    assert patiently(full, expected.__eq__, (3, 10, 40)) == expected


def code_of(enclave: EnclaveSocket, call: SealedCall) -> Code:
    try:
        return call.open(*enclave.request(call.header, call.ciphertext)).trailer.status
    except CasemateError as refused:
        return refused.code
