"""The enclave behind a real unix socket: real keys, sealing, evidence, models and onnxruntime.

Only the security module (the devkit's) and KMS (a dictionary) are stand-ins.
"""

from __future__ import annotations

import socket
import struct
import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from casemate import cbor, limits
from casemate.attestation.structures import LogEntry, audience_hash, callers_digest, parse_log
from casemate.envelope.header import parse_request_header
from casemate.envelope.sealed_message import encode_sealed
from casemate.envelope.sealing import DataKeySession
from casemate.errors import CasemateError, Code, EvidenceError, FrameError
from casemate.frames import ERROR, FrameType, exchange, receive_frame, send_frame
from casemate.tensors import TensorSpec, to_request
from casemate_devkit.pki import NitroPki
from tests.support import onnx_bytes
from tests.support.attacker import eventually
from tests.support.damage import flip
from tests.support.enclave_bench import (
    ANSWER,
    AUDIENCE,
    HOUR,
    LIMITS,
    ROWS,
    Bench,
    rows_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from casemate.envelope.sealing import SealedCall

SCALAR = {"inputs": (TensorSpec("x", "FP32", ()),), "outputs": (TensorSpec("y", "FP32", ()),)}
SECRET_ROWS = np.array([[5417.25, 5418.25, 5419.25]], np.float32)


@pytest.fixture
def bench() -> Iterator[Bench]:
    """An enclave that has booted and nothing more."""
    with Bench() as running:
        yield running


@pytest.fixture
def served(bench: Bench) -> Bench:
    """An enclave that serves `linear`, version 2."""
    bench.serve()
    return bench


def refusal(call: Callable[..., object], *arguments: object) -> Code:
    with pytest.raises(FrameError) as refused:
        call(*arguments)
    return refused.value.code


def seal(
    session: DataKeySession,
    *,
    model: str = "linear",
    version: int | None = None,
    digest: bytes | None = None,
    message: bytes = b"",
) -> SealedCall:
    message = message or to_request({"x": ROWS})
    return session.seal(model=model, version=version, digest=digest, message=message)


def relay(bench: Bench, header: bytes, ciphertext: bytes | memoryview) -> bytes:
    return bench.ask(FrameType.REQUEST, b"".join(encode_sealed(header, ciphertext)))


# Configuration and evidence


def test_before_configuration_only_configure_and_health_are_answered(bench: Bench) -> None:
    assert bench.health() == {"state": "unconfigured", "form": "unsafe-process", "models": []}
    for kind in FrameType:
        if kind in {FrameType.CONFIGURE, FrameType.HEALTH, FrameType.MODEL_DATA}:
            continue
        if kind in {FrameType.NUMBERED, FrameType.CANCEL}:
            continue  # one carries another frame, one ends a numbered one
        assert refusal(bench.ask, kind) == Code.NOT_CONFIGURED


def test_there_is_one_configuration(bench: Bench) -> None:
    bench.configure()
    assert bench.health()["state"] == "ready"
    assert refusal(bench.ask, FrameType.CONFIGURE, bench.configuration) == Code.ALREADY_CONFIGURED
    bench.verify(b"n" * 32)


def test_a_configuration_that_lost_a_race_does_no_harm(bench: Bench) -> None:
    bench.configure()
    with pytest.raises(CasemateError) as refused:
        bench.assembly.enclave.configure(bench.configuration)  # past the table of states
    assert refused.value.code == Code.ALREADY_CONFIGURED
    assert bench.health()["state"] == "ready"


def test_two_configurations_at_once_leave_one(bench: Bench) -> None:
    outcomes: list[object] = []

    def configure() -> None:
        try:
            outcomes.append(bench.ask(FrameType.CONFIGURE, bench.configuration))
        except FrameError as error:
            outcomes.append(error.code)

    threads = [threading.Thread(target=configure) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes.count(Code.ALREADY_CONFIGURED) == 3


def test_a_bad_configuration_changes_nothing(bench: Bench) -> None:
    for bad in (b"", b"\xa0", bench.configuration + b"\0", bench.configuration[:-1]):
        assert refusal(bench.ask, FrameType.CONFIGURE, bad) == Code.MALFORMED
    bench.configure().verify(b"n" * 32)


def test_a_register_that_someone_else_touched_ends_the_enclave(bench: Bench) -> None:
    bench.extend_first()
    assert refusal(bench.ask, FrameType.CONFIGURE, bench.configuration) == Code.INTERNAL
    assert bench.health()["state"] == "failed"
    for kind in (FrameType.CONFIGURE, FrameType.EVIDENCE, FrameType.REQUEST):
        assert refusal(bench.ask, kind, bench.configuration) == Code.UNAVAILABLE


def test_evidence_verifies_with_the_production_verifier(served: Bench) -> None:
    verified = served.verify(b"n" * 16)
    assert verified.release == "r"
    assert verified.configuration.audience == AUDIENCE
    assert [entry.op for entry in verified.log] == ["load"]
    assert verified.instance.boot_time <= verified.document.timestamp
    assert served.verify(b"m" * 64).instance == verified.instance


def test_evidence_without_a_nonce_has_none(served: Bench) -> None:
    with pytest.raises(EvidenceError) as refused:
        served.verify()
    assert refused.value.code == Code.EVIDENCE_NONCE
    for length in (1, 15, 65):
        assert refusal(served.ask, FrameType.EVIDENCE, bytes(length)) == Code.MALFORMED


def test_a_frame_longer_than_the_state_needs_is_dropped_and_the_connection_goes_on(
    bench: Bench,
) -> None:
    with bench.connect() as channel:
        for length in (limits.CONFIGURATION_MAX + 1, LIMITS.request_bytes):
            arguments = channel, FrameType.CONFIGURE, bytes(length)
            assert refusal(exchange, *arguments) == Code.TOO_LARGE
        assert exchange(channel, FrameType.CONFIGURE, bench.configuration)
        long = bytes(LIMITS.request_bytes + limits.HEADER_MAX + 65)
        assert refusal(exchange, channel, FrameType.REQUEST, long) == Code.TOO_LARGE
        assert exchange(channel, FrameType.HEALTH)


# Requests


def test_a_request_is_answered_in_both_key_modes(served: Bench) -> None:
    assert rows_of(served.infer(served.session())) == ANSWER
    instance = served.verify(b"n" * 16).instance.instance_id
    for session in (served.kms_session(), served.kms_session(instance)):
        assert rows_of(served.infer(session)) == ANSWER


def test_a_data_key_is_unwrapped_once_a_session(served: Bench) -> None:
    session, before = served.kms_session(), served.kms.calls
    for _ in range(3):
        served.infer(session)
    assert served.kms.calls == before + 1


def test_no_request_runs_twice(served: Bench) -> None:
    session = served.session()
    call = seal(session)
    assert rows_of(served.send(call)) == ANSWER
    assert refusal(served.send, call) == Code.REPLAYED
    assert rows_of(served.infer(session)) == ANSWER
    assert refusal(served.send, call) == Code.REPLAYED


def test_the_same_request_at_once_runs_once(served: Bench) -> None:
    call = seal(served.session())
    outcomes: list[object] = []

    def send() -> None:
        try:
            outcomes.append(rows_of(served.send(call)))
        except FrameError as error:
            outcomes.append(error.code)

    threads = [threading.Thread(target=send) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(map(str, outcomes)) == sorted([str(ANSWER), *["REPLAYED"] * 7])


def test_every_flipped_bit_is_refused_and_moves_nothing(served: Bench) -> None:
    session = served.session()
    call = seal(session)
    for at in (0, 1, 2, 20, 25, 33, 40, 75, 90, 121, 125, 200, 1200, len(call.header) - 1):
        header = bytearray(call.header)
        header[at] ^= 1
        with pytest.raises(FrameError):
            relay(served, bytes(header), call.ciphertext)
    for at in (0, len(call.ciphertext) // 2, -1):
        ciphertext = bytearray(call.ciphertext)
        ciphertext[at] ^= 1
        assert refusal(relay, served, call.header, ciphertext) == Code.OPEN_FAILED
    for cut in (call.ciphertext[:-1], call.ciphertext[:16]):
        assert refusal(relay, served, call.header, cut) == Code.OPEN_FAILED
    # None of them was taken for the request itself.
    assert rows_of(served.send(call)) == ANSWER


@pytest.mark.parametrize("known", [False, True])
def test_refusals_come_in_the_order_of_the_specification(served: Bench, known: bool) -> None:
    session = served.session()
    if known:
        assert rows_of(served.infer(session)) == ANSWER
    good = seal(session)
    header = parse_request_header(good.header)
    now = header.not_before
    changes: tuple[tuple[dict[str, Any], Code], ...] = (
        ({"sequence": limits.SEQUENCE_MAX}, Code.MALFORMED),
        ({"audience": audience_hash("elsewhere")}, Code.WRONG_AUDIENCE),
        ({"instance_id": b"i" * 16}, Code.UNKNOWN_KEY),
        ({"wrapped_key": bytes(16) + header.wrapped_key[16:]}, Code.UNKNOWN_KEY),
        ({"not_before": now + HOUR, "not_after": now + 2 * HOUR}, Code.STALE_SESSION),
        ({"not_before": now, "not_after": now}, Code.EXPIRED),
        ({"wrapped_key": flip(header.wrapped_key, -1)}, Code.OPEN_FAILED),
        ({"key_commitment": bytes(32)}, Code.OPEN_FAILED),
        ({"request_id": bytes(16)}, Code.OPEN_FAILED),
    )
    # Whatever else is wrong after it, the first failure decides.
    for index, (change, code) in enumerate(changes):
        later: dict[str, Any] = {"not_before": 0, "key_commitment": bytes(32)} if index < 4 else {}
        damaged = replace(header, **{**later, **change})
        assert refusal(relay, served, damaged.encode(), b"x" * 1040) == code, change
    assert refusal(relay, served, b"\2" + good.header[1:], b"x") == Code.UNSUPPORTED_VERSION
    assert refusal(relay, served, good.header[:-1], b"x") == Code.MALFORMED
    oversized = bytes(LIMITS.request_bytes + 1)
    header = replace(header, audience=bytes(32))
    assert refusal(relay, served, header.encode(), oversized) == Code.TOO_LARGE


def test_a_session_from_before_the_boot_is_stale(served: Bench) -> None:
    boot = served.verify(b"n" * 16).instance.boot_time
    header = replace(parse_request_header(seal(served.session()).header), not_before=boot - 1)
    assert refusal(relay, served, header.encode(), b"x" * 1040) == Code.STALE_SESSION


def test_a_restarted_enclave_takes_nothing_of_its_former_life(served: Bench) -> None:
    call, any_replica = seal(served.session()), seal(served.kms_session())
    time.sleep(0.002)  # a boot is later than the documents of the one before
    with Bench(kms=served.kms, publisher=served.publisher) as restarted:
        restarted.serve()
        assert refusal(restarted.send, call) == Code.UNKNOWN_KEY
        assert refusal(restarted.send, any_replica) == Code.STALE_SESSION


def test_sessions_end_by_the_devices_time_alone() -> None:
    shift = [0.0]
    with Bench(clock=lambda: time.time() + shift[0]) as bench:
        bench.serve()
        session = bench.session()
        assert rows_of(bench.infer(session)) == ANSWER
        shift[0] = 3600.0
        bench.assembly.maintain_once()
        assert refusal(bench.infer, session) == Code.EXPIRED
        shift[0] = 0.0  # setting it back revives nothing
        bench.assembly.maintain_once()
        assert refusal(bench.infer, session) == Code.EXPIRED


def test_of_a_session_that_is_over_neither_key_nor_asker_is_kept() -> None:
    shift = [0.0]
    with Bench(clock=lambda: time.time() + shift[0]) as bench:
        bench.serve()
        assert rows_of(bench.infer(bench.session())) == ANSWER
        service = bench.assembly.enclave.parts.service
        for kept in (1, 0):
            bench.assembly.maintain_once()
            known = len(service._cache._entries), len(service._admission._known)
            assert known == (kept, kept)
            shift[0] = 3600.0


def test_without_a_clock_nothing_is_answered(
    served: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = served.session()
    monkeypatch.setattr(limits, "CLOCK_SILENCE_MAX", -1)
    assert refusal(served.infer, session) == Code.CLOCK_UNAVAILABLE


def test_a_key_goes_on_opening_after_rotation() -> None:
    shift = [0.0]
    pki = NitroPki.create(clock=lambda: time.time() + shift[0])
    with Bench(clock=lambda: time.time() + shift[0], pki=pki) as bench:
        bench.serve()
        raw, _ = bench.verify(b"n" * 16).current_key
        shift[0] = 12 * 3600.0
        bench.assembly.maintain_once()
        verified = bench.verify(b"n" * 16)
        assert verified.bundle.key_configs[0] == raw != verified.current_key[0]
        start = verified.document.timestamp
        instance = verified.instance.instance_id, verified.instance_digest
        for key in verified.bundle.key_configs:
            session = DataKeySession.hpke(key, *instance, AUDIENCE, start, start + HOUR)
            assert rows_of(bench.infer(session)) == ANSWER


def test_new_sessions_are_refused_when_the_table_is_full() -> None:
    with Bench(limits=replace(LIMITS, sessions=4)) as bench:
        bench.serve()
        live = [bench.session() for _ in range(3)]
        for session in live[:2]:
            assert rows_of(bench.infer(session)) == ANSWER
        assert refusal(bench.infer, live[2]) == Code.OVERLOADED
        for session in live[:2]:
            assert rows_of(bench.infer(session)) == ANSWER


def test_kms_decides_over_data_keys(served: Bench) -> None:
    session = served.kms_session()
    served.kms.keys.clear()
    assert refusal(served.infer, session) == Code.KEY_RELEASE_DENIED
    assert refusal(served.infer, served.kms_session(b"i" * 16)) == Code.UNKNOWN_KEY


def test_a_wrong_key_from_kms_opens_nothing(served: Bench) -> None:
    session = served.kms_session()
    served.kms.keys = dict.fromkeys(served.kms.keys, bytes(32))
    assert refusal(served.infer, session) == Code.OPEN_FAILED
    # A wrong answer is not remembered: KMS is asked again.
    calls = served.kms.calls
    assert refusal(served.infer, session) == Code.OPEN_FAILED
    assert served.kms.calls == calls + 1


def test_without_key_release_there_is_only_hpke() -> None:
    with Bench(key_release=False) as bench:
        bench.configure()
        sealed, _ = bench.sealed()
        assert refusal(bench.load, sealed) == Code.KEY_RELEASE_UNAVAILABLE
        assert refusal(bench.infer, bench.kms_session()) == Code.UNKNOWN_KEY
        credentials = {"access_key_id": "a", "secret_access_key": "s", "session_token": None}
        payload = cbor.encode({**credentials, "expires": None})
        assert refusal(bench.ask, FrameType.CREDENTIALS, payload) == Code.KEY_RELEASE_UNAVAILABLE
        answer = bench.infer(bench.session())
        assert answer.trailer.status == Code.UNKNOWN_MODEL


def test_a_ciphertext_opens_under_the_committed_key_only(
    served: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One header and ciphertext, a second key that opens them: equivocation (THREATS H20)."""
    session, other = served.kms_session(), served.kms_session()
    headers = [parse_request_header(keys._next_header()) for keys in (session, other)]
    forged = replace(headers[0], key_commitment=headers[1].key_commitment)
    monkeypatch.setattr(session, "_header_parts", forged.session_parts())
    assert refusal(served.infer, session) == Code.OPEN_FAILED


def test_a_session_may_start_at_a_document_that_is_ahead_of_the_carried_time() -> None:
    shift = [0.0]
    with Bench(clock=lambda: time.time() + shift[0]) as bench:
        bench.serve()
        shift[0] = 5.0  # the device's clock runs faster than the one that carries it
        assert rows_of(bench.infer(bench.session())) == ANSWER


# Sealed statuses


def test_what_goes_wrong_after_opening_is_sealed(served: Bench) -> None:
    session = served.session()
    cases: list[tuple[dict[str, Any], Code]] = [
        ({"model": "other"}, Code.UNKNOWN_MODEL),
        ({"version": 3}, Code.UNKNOWN_MODEL),
        ({"digest": bytes(48)}, Code.DIGEST_MISMATCH),
        ({"message": b"\xff"}, Code.INVALID_REQUEST),
        ({"message": to_request({"z": ROWS})}, Code.INVALID_INPUT),
        ({"message": to_request({"x": ROWS.astype(np.float64)})}, Code.INVALID_INPUT),
        ({"message": to_request({"x": ROWS[:, :2]})}, Code.INVALID_INPUT),
        ({"message": to_request({"x": ROWS}, ["z"])}, Code.INVALID_INPUT),
    ]
    for request, status in cases:
        answer = served.send(seal(session, **request))
        assert (answer.trailer.status, answer.message) == (status, None), request
    # The host cannot tell them from answers: neither by an error nor by a counter.
    assert served.counters()["requests_refused"] == 0
    assert "INVALID" not in served.stderr.getvalue()


def test_a_preamble_that_cannot_be_read_is_sealed_and_spends_its_sequence(
    served: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = served.session()
    with monkeypatch.context() as patch:
        patch.setattr("casemate.envelope.sealing._encoded_preamble", lambda *_: b"\xa0")
        call = seal(session)
    assert served.send(call).trailer.status == Code.INVALID_REQUEST
    assert refusal(served.send, call) == Code.REPLAYED


def test_answers_are_padded_to_the_models_bucket(served: Bench) -> None:
    session = served.session()
    digest = served.health()["models"][0]["digest"]  # type: ignore[index]
    sizes = set()
    for request in (
        {"digest": digest},
        {"version": 2},
        {"message": to_request({"z": ROWS})},
        {"digest": bytes(48)},
    ):
        call = seal(session, **request)
        sizes.add(len(relay(served, call.header, call.ciphertext)))
    assert len(sizes) == 1
    assert sizes.pop() > 4096


def test_the_highest_version_is_the_latest_and_a_pin_is_exact(served: Bench) -> None:
    header = served.serve(version=3)
    answer = served.infer(served.session())
    assert (answer.trailer.version, answer.trailer.digest) == (3, header.digest)
    answer = served.infer(served.session(), version=2, digest=header.digest)
    assert answer.trailer.status == Code.OK
    assert answer.trailer.version == 2


def test_a_models_publisher_decides_who_asks(bench: Bench) -> None:
    known, other = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    bench.serve(callers=(known.public_key().public_bytes_raw(),))
    assert rows_of(bench.infer(bench.session(known))) == ANSWER
    for stranger in (other, None):
        answer = bench.infer(bench.session(stranger))
        assert (answer.trailer.status, answer.message) == (Code.CALLER_REFUSED, None)


def test_a_callers_signature_is_checked_before_the_window_moves(
    served: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = served.session(Ed25519PrivateKey.generate())
    key, _ = session._caller or (b"", b"")
    with monkeypatch.context() as patch:
        patch.setattr(session, "_caller", (key, bytes(64)))
        forged = seal(session)
    assert refusal(served.send, forged) == Code.OPEN_FAILED
    assert refusal(served.send, forged) == Code.OPEN_FAILED
    assert rows_of(served.infer(session)) == ANSWER


def test_an_endless_model_ends_at_the_frames_budget_and_others_are_served(served: Bench) -> None:
    served.serve(name="endless", files={"m": onnx_bytes.endless()}, **SCALAR)
    session, answers = served.session(), []

    def endless() -> None:
        row = np.array(0, np.float32)
        answers.append(served.infer(session, row, model="endless", budget=2000))

    thread = threading.Thread(target=endless)
    thread.start()
    assert rows_of(served.infer(served.session())) == ANSWER
    thread.join(60)
    assert answers[0].trailer.status == Code.DEADLINE_EXCEEDED


def test_a_failing_model_is_a_sealed_status_without_content(served: Bench) -> None:
    outputs = (TensorSpec("y", "FP32", (0, 0)),)
    served.serve(name="failing", files={"m": onnx_bytes.failing()}, outputs=outputs)
    answer = served.infer(served.session(), SECRET_ROWS, model="failing")
    assert answer.trailer.status == Code.MODEL_FAILED
    assert "5417" not in answer.trailer.detail


def test_a_fault_of_the_enclave_itself_is_sealed_too(
    served: Bench, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def fault(*_: object) -> None:
        raise ZeroDivisionError(str(SECRET_ROWS))

    session = served.session()
    monkeypatch.setattr("casemate.tensors.RequestReader.read", fault)
    answer = served.infer(session)
    assert (answer.trailer.status, answer.message) == (Code.MODEL_FAILED, None)
    assert capfd.readouterr() == ("", "")
    assert served.counters()["internal_errors"] == 0


def test_an_answer_that_fits_no_frame_is_a_sealed_status(bench: Bench) -> None:
    tile = onnx_bytes.node("Tile", ("x", "r"), ("y",))
    repeats = onnx_bytes.tensor("r", onnx_bytes.INT64, (2,), struct.pack("<2q", 9_000_000, 1))
    y = onnx_bytes.value_info("y", onnx_bytes.FLOAT, ("m", 3))
    graph = onnx_bytes.graph((tile,), (onnx_bytes.X,), (y,), (repeats,))
    outputs = (TensorSpec("y", "FP32", (0, 3)),)
    bench.serve(files={"m": onnx_bytes.model(graph)}, outputs=outputs)
    answer = bench.infer(bench.session(), ROWS[:1])
    assert answer.trailer.status == Code.MODEL_FAILED


# Models


def test_loading_and_unloading_are_in_the_log(served: Bench) -> None:
    health = served.health()["models"]
    payload = cbor.encode({"name": "linear", "version": 2})
    assert served.ask(FrameType.UNLOAD, payload) == b""
    assert refusal(served.ask, FrameType.UNLOAD, payload) == Code.UNKNOWN_MODEL
    assert served.health()["models"] == []
    load, unload = served.verify(b"n" * 16).log
    publisher = served.publisher.public_key().public_bytes_raw()
    assert load == LogEntry(
        "load", "linear", 2, load.digest, publisher, callers_digest("any"), load.time
    )
    assert unload == replace(load, op="unload", time=unload.time)
    assert health == [{"name": "linear", "version": 2, "digest": load.digest, "ready": True}]
    assert served.infer(served.session()).trailer.status == Code.UNKNOWN_MODEL


def test_what_is_no_model_of_a_publisher_is_refused(bench: Bench) -> None:
    bench.configure()
    sealed, _ = bench.sealed()
    foreign, _ = bench.sealed(publisher=Ed25519PrivateKey.generate())
    revoked, _ = bench.sealed(version=1)
    header_length = struct.unpack(">I", sealed[8:12])[0]
    signature = bytearray(sealed)
    signature[12 + header_length + 4] ^= 1
    chunk = bytearray(sealed)
    chunk[-1] ^= 1
    large, _ = bench.sealed(files={"m": bytes(LIMITS.model_bytes + 1)})
    cases = [
        (b"GARBAGE!" + sealed[8:], Code.MODEL_MALFORMED),
        (sealed[:100], Code.MODEL_MALFORMED),
        (foreign, Code.MODEL_PUBLISHER_UNKNOWN),
        (bytes(signature), Code.MODEL_SIGNATURE_INVALID),
        (revoked, Code.MODEL_VERSION_REVOKED),
        (large, Code.TOO_LARGE),
        (bytes(chunk), Code.MODEL_OPEN_FAILED),
        (sealed[:-1], Code.MODEL_OPEN_FAILED),
        (sealed + b"x", Code.MODEL_OPEN_FAILED),
        (bench.sealed(files={"m": b"no onnx"})[0], Code.MODEL_REJECTED),
    ]
    for file, code in cases:
        assert refusal(bench.load, file) == code
    assert bench.health()["models"] == []
    assert parse_log(bench.assembly.enclave.parts.identity._log.encode()) == ()
    assert bench.counters()["models_refused"] == len(cases)


def test_kms_decides_over_models(bench: Bench) -> None:
    bench.configure()
    sealed, _ = bench.sealed()
    keys, bench.kms.keys = bench.kms.keys, {}
    assert refusal(bench.load, sealed) == Code.KEY_RELEASE_DENIED
    bench.kms.keys = dict.fromkeys(keys, bytes(32))
    assert refusal(bench.load, sealed) == Code.MODEL_OPEN_FAILED
    bench.kms.keys = keys
    bench.load(sealed, piece=1000)


def test_no_key_is_asked_for_a_model_that_nobody_vouches_for(bench: Bench) -> None:
    bench.configure()
    foreign, _ = bench.sealed(publisher=Ed25519PrivateKey.generate())
    refusal(bench.load, foreign)
    assert bench.kms.calls == 0


def test_a_loaded_version_is_not_replaced(served: Bench) -> None:
    sealed, _ = served.sealed()
    assert refusal(served.load, sealed) == Code.MODEL_REJECTED
    assert len(served.verify(b"n" * 16).log) == 1


def test_the_number_of_models_is_bounded() -> None:
    with Bench(limits=replace(LIMITS, models=1)) as bench:
        bench.serve()
        assert refusal(bench.load, bench.sealed(version=3)[0]) == Code.OVERLOADED


def test_the_connection_of_a_refused_load_goes_on(bench: Bench) -> None:
    bench.configure()
    foreign, _ = bench.sealed(publisher=Ed25519PrivateKey.generate())
    with bench.connect() as channel:
        send_frame(channel, FrameType.LOAD, cbor.encode({"size": len(foreign)}))
        for at in range(0, len(foreign), 64):
            send_frame(channel, FrameType.MODEL_DATA, foreign[at : at + 64])
        frame = receive_frame(channel)
        assert frame is not None
        assert frame.type == ERROR
        assert exchange(channel, FrameType.HEALTH)


@pytest.mark.parametrize(
    "frames",
    [
        [(FrameType.HEALTH, b"")],
        [(FrameType.MODEL_DATA, b"")],
        [(FrameType.MODEL_DATA, b"x" * 101)],
        [(FrameType.MODEL_DATA, b"x" * 99), (FrameType.MODEL_DATA, b"xx")],
    ],
)
def test_a_broken_stream_of_a_model_ends_the_connection(
    bench: Bench, frames: list[tuple[int, bytes]]
) -> None:
    bench.configure()
    with bench.connect() as channel:
        send_frame(channel, FrameType.LOAD, cbor.encode({"size": 100}))
        for kind, payload in frames:
            send_frame(channel, kind, payload)
        frame = receive_frame(channel)
        assert frame is not None
        assert frame.type == ERROR
        assert ended(channel)


@pytest.mark.parametrize("size", [0, 1 << 40])
def test_an_impossible_size_ends_the_connection(bench: Bench, size: int) -> None:
    bench.configure()
    with bench.connect() as channel:
        assert (
            refusal(exchange, channel, FrameType.LOAD, cbor.encode({"size": size}))
            == Code.TOO_LARGE
        )
        assert ended(channel)


# Connections


def ended(channel: socket.socket) -> bool:
    channel.settimeout(60)
    try:
        return channel.recv(1) == b""
    except ConnectionResetError:
        return True


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"\xff\xff\xff\xff\x03\0\0\0\0", Code.TOO_LARGE),
        (b"\0\0\0\x04\x08\0\0\0\0", Code.MALFORMED),
        (b"\0\0\0\0\x08\0\0\0\0", Code.MALFORMED),
        (b"\0\0\0\x05\x63\0\0\0\0", Code.MALFORMED),
        (b"\0\0\0\x05\x07\0\0\0\0", Code.MALFORMED),
        (b"\0\0\0\x05\x00\0\0\0\0", Code.MALFORMED),
        (b"\0\0\0\x05\x88\0\0\0\0", Code.MALFORMED),
        (b"\0\0\0\x05\xff\0\0\0\0", Code.MALFORMED),
        (b"GET / HTTP/1.1\r\n\r\n", Code.TOO_LARGE),
    ],
)
def test_a_bad_frame_is_answered_and_ends_its_connection(
    bench: Bench, data: bytes, code: Code
) -> None:
    with bench.connect() as channel:
        channel.sendall(data)
        frame = receive_frame(channel)
        assert frame is not None
        assert (frame.type, cbor.decode(bytes(frame.payload))["code"]) == (ERROR, code)
        assert ended(channel)
    assert bench.health()["state"] == "unconfigured"


def test_a_half_sent_frame_holds_a_connection_only_so_long(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "FRAME_HEAD_TIMEOUT_S", 0.4)
    with bench.connect() as idle, bench.connect() as channel:

        def dribble() -> None:
            for byte in b"\0\0\x20\0\x08\0\0\0\0" + bytes(800):  # one now and then
                channel.send(bytes([byte]))
                time.sleep(0.1)

        with pytest.raises(OSError, match=r"Broken pipe|reset"):  # long before the last
            dribble()
        assert ended(channel)
        # Waiting between frames costs nothing.
        assert exchange(idle, FrameType.HEALTH)


def test_an_enclave_ends_when_it_is_told_and_not_when_it_looks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(limits, "LIFE_LOOK_S", 1000.0)
    with Bench() as running:
        assert running.health()
    with Bench() as running:
        running.server.finish()


def test_connections_are_bounded_and_the_others_are_served(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "CONNECTIONS_MAX", 4)
    open_ones = [bench.connect() for _ in range(4)]
    for channel in open_ones:
        exchange(channel, FrameType.HEALTH)
    with bench.connect() as excess:
        frame = receive_frame(excess)
        assert frame is not None
        assert cbor.decode(bytes(frame.payload))["code"] == Code.OVERLOADED
        assert ended(excess)
    for channel in open_ones:
        assert exchange(channel, FrameType.HEALTH)
    open_ones.pop().close()
    assert eventually(lambda: len(bench.server._connections) <= 3)
    assert bench.health()["state"] == "unconfigured"
    for channel in open_ones:
        channel.close()


def test_a_connection_that_dies_anywhere_takes_nothing_with_it(served: Bench) -> None:
    call = seal(served.session())
    request = b"".join(encode_sealed(call.header, call.ciphertext))
    for cut in (1, 8, 9, 100, len(request)):
        with served.connect() as channel:
            head = struct.pack(">IBI", 5 + len(request), FrameType.REQUEST, 0)
            channel.sendall((head + request)[:cut])
    assert rows_of(served.infer(served.session())) == ANSWER


def test_a_fault_in_a_handler_is_one_internal_error(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def fault(_: object) -> bytes:
        raise OSError(f"content {SECRET_ROWS}")

    monkeypatch.setattr(type(bench.assembly.enclave), "health", fault)
    with bench.connect() as channel:
        with pytest.raises(FrameError) as refused:
            exchange(channel, FrameType.HEALTH)
        assert (refused.value.code, refused.value.detail) == (Code.INTERNAL, "internal error")
    assert capfd.readouterr() == ("", "")


def test_a_code_that_only_the_seal_may_carry_never_leaves_in_the_clear(
    served: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def leak(*_: object) -> bytes:
        raise EvidenceError(Code.CALLER_REFUSED, "who")

    monkeypatch.setattr(served.assembly.enclave.parts.service, "answering", leak)
    assert refusal(served.ask, FrameType.REQUEST, b"x") == Code.INTERNAL


def test_only_the_parent_is_served_over_vsock(bench: Bench) -> None:
    def admitted(cid: int) -> bool:
        mine, theirs = socket.socketpair()

        class Vsock(socket.socket):
            family = socket.AF_VSOCK

        with mine:
            bench.server._admit(Vsock(fileno=theirs.detach()), (cid, 1234))
            try:
                return bool(exchange(mine, FrameType.HEALTH))
            except (FrameError, OSError):
                return False

    assert admitted(3)
    for cid in (0, 1, 2, 4, 16):
        assert not admitted(cid)


def test_credentials_reach_kms_and_nothing_else(served: Bench) -> None:
    fields = {"access_key_id": "AKIA", "secret_access_key": "s3cr3t", "session_token": "t0k3n"}
    payload = cbor.encode({**fields, "expires": 7})
    assert served.ask(FrameType.CREDENTIALS, payload) == b""
    assert served.kms.credentials == ("AKIA", "s3cr3t", "t0k3n", 7)
    for bad in (b"\xa0", payload[:-1], cbor.encode({**fields, "s3cr3t": 1})):
        with pytest.raises(FrameError) as refused:
            served.ask(FrameType.CREDENTIALS, bad)
        assert refused.value.code == Code.MALFORMED
        assert "s3cr3t" not in refused.value.detail
    assert "s3cr3t" not in served.stderr.getvalue()


def test_a_large_control_frame_is_refused_before_it_is_decoded(served: Bench) -> None:
    nested = b"\x81" * (limits.CONTROL_FRAME_MAX + 1)
    for kind in (FrameType.CREDENTIALS, FrameType.LOAD, FrameType.UNLOAD):
        assert refusal(served.ask, kind, nested) == Code.TOO_LARGE


def test_a_connection_from_before_the_configuration_takes_full_requests_after_it(
    bench: Bench,
) -> None:
    with bench.connect() as early:
        exchange(early, FrameType.HEALTH)
        bench.configure()
        long = bytes(limits.CONFIGURATION_MAX + 100)
        assert refusal(exchange, early, FrameType.REQUEST, long) == Code.MALFORMED


def test_refused_configurations_leave_no_threads(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise CasemateError(Code.MALFORMED, "no root")

    monkeypatch.setattr(bench.assembly, "_kms_factory", refuse)
    before = threading.active_count()
    for _ in range(5):
        assert refusal(bench.ask, FrameType.CONFIGURE, bench.configuration) == Code.MALFORMED
    # Connections may still be closing.
    assert eventually(lambda: threading.active_count() <= before)


def test_maintenance_outlives_a_clock_that_fell_silent(
    served: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def silent() -> int:
        raise CasemateError(Code.CLOCK_UNAVAILABLE, "too long")

    monkeypatch.setattr(served.assembly.clock, "now", silent)
    served.assembly.maintain_once()
    monkeypatch.undo()
    served.assembly.maintain_once()
    served.verify(b"n" * 16)


def test_health_and_counters_take_no_payload(served: Bench) -> None:
    for kind in (FrameType.HEALTH, FrameType.COUNTERS):
        assert refusal(served.ask, kind, b"x") == Code.MALFORMED


def test_a_stop_ends_idle_connections_at_once(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "STOP_TIMEOUT_S", 100.0)
    with bench.connect() as idle:
        exchange(idle, FrameType.HEALTH)
        started = time.monotonic()
        bench.server.stop()
        assert ended(idle)
        assert time.monotonic() - started < limits.STOP_TIMEOUT_S


def test_what_is_said_in_the_clear_holds_no_content(served: Bench) -> None:
    session = served.session()
    served.infer(session, SECRET_ROWS)
    served.infer(session, SECRET_ROWS, model="no-such-model")
    said = served.stderr.getvalue() + repr(served.counters()) + repr(served.health())
    for secret in ("5417", "no-such-model"):
        assert secret not in said
