"""The host against requests and answers that pass through it (THREATS.md: H2, H4, H5, H10, H14-16).

Client, host, enclave and KMS double are the real processes; the attacker sits between them.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import random
import threading
import time
from typing import TYPE_CHECKING

import grpc
import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from casemate import limits
from casemate.client.transport import HostConnection
from casemate.envelope.sealed_message import encode_sealed, parse_sealed
from casemate.errors import CasemateError, Code
from casemate.frames import ANSWER, ERROR, FrameType
from casemate.tensors import from_response, to_request
from casemate_devkit.local import MODEL
from tests.support.attacker import (
    GOOD,
    ROWS,
    genuine,
    now_ms,
    refusal,
    start_session,
)
from tests.support.damage import flip
from tests.support.patience import patiently

if TYPE_CHECKING:
    from collections.abc import Callable

    from casemate.client import Client
    from casemate_devkit.local import LocalDeployment
    from tests.support.lying import Answer, Forward, LyingHost, LyingRelay

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("still_serves")]
WANTED = {"features": ROWS}

# Where each field of the request header begins (SPEC 5.1), and some places within the wrapped key.
HEADER_FIELDS = {
    "version": 0,
    "key mode": 1,
    "request id": 2,
    "sequence": 21,
    "not before": 29,
    "not after": 37,
    "audience": 38,
    "instance": 70,
    "commitment": 86,
    "length": 121,
    "key id": 122,
    "encapsulation": 138,
    "wrapped": 1305,
}


def positions(length: int, sample: int) -> list[int]:
    """Both ends, and a sample of the rest that is the same in every run."""
    ends = {0, 1, length - 17, length - 16, length - 1}
    return sorted(ends | set(random.Random(length).sample(range(length), sample)))


class Counted:
    """Delivers sealed bytes through the honest host behind the lying relay."""

    def __init__(self, target: str) -> None:
        self.host = HostConnection(target)

    def code(self, header: bytes, ciphertext: bytes) -> Code:
        return refusal(lambda: self.host.infer(header, ciphertext, 10))


@pytest.fixture
def counted(relayed_target: str) -> Counted:
    return Counted(relayed_target)


# H2: flipped, cut, longer


def test_h2_a_flipped_bit_of_a_request_is_refused_and_moves_nothing(
    deployment: LocalDeployment, lying_relay: LyingRelay, counted: Counted
) -> None:
    call = start_session(deployment).seal()
    ciphertext = bytes(call.ciphertext)
    prefix = len(b"".join(encode_sealed(call.header, b"x"))) - len(call.header) - 1
    header_positions = {*HEADER_FIELDS.values(), *positions(len(call.header), 20)}
    spots = [("header", at) for at in sorted(header_positions)]
    spots += [("ciphertext", at) for at in positions(len(ciphertext), 30)]
    assert prefix > 0
    for part, at in spots:

        def lie(
            kind: int,
            payload: bytes,
            forward: Callable[[bytes], Answer],
            part: str = part,
            at: int = at,
        ) -> Answer:
            if kind != FrameType.REQUEST:
                return forward(payload)
            head, body = parse_sealed(memoryview(payload))
            changed = (flip(head, at), body) if part == "header" else (head, flip(bytes(body), at))
            return forward(b"".join(encode_sealed(*changed)))

        lying_relay.lie = lie
        code = counted.code(call.header, ciphertext)
        assert code in REFUSED_OUTSIDE, (part, at, code)
        if part == "ciphertext":
            assert code is Code.OPEN_FAILED
    lying_relay.lie = lambda kind, payload, forward: forward(payload)
    answer = call.open(*counted.host.infer(call.header, ciphertext, 10))
    assert answer.trailer.status is Code.OK  # not one of them used its sequence up


REFUSED_OUTSIDE = {
    *(Code.MALFORMED, Code.UNSUPPORTED_VERSION, Code.WRONG_AUDIENCE, Code.UNKNOWN_KEY),
    *(Code.STALE_SESSION, Code.EXPIRED, Code.OPEN_FAILED),
}


def test_h2_a_request_that_is_cut_or_grown_is_refused_and_moves_nothing(
    deployment: LocalDeployment,
) -> None:
    enclave = genuine(deployment)
    call = start_session(deployment).seal()
    body = bytes(call.ciphertext)
    for cut in (1, 16, 17, 500, len(body) - 1):
        assert refusal(lambda n=cut: enclave.request(call.header, body[:-n])) is Code.OPEN_FAILED  # type: ignore[misc]
        assert refusal(lambda n=cut: enclave.request(call.header, body[n:])) is Code.OPEN_FAILED  # type: ignore[misc]
    for more in (b"\0", bytes(16), body, bytes(1 << 20)):
        assert refusal(lambda m=more: enclave.request(call.header, body + m)) is Code.OPEN_FAILED  # type: ignore[misc]
        assert refusal(lambda m=more: enclave.request(call.header + m, body)) is Code.MALFORMED  # type: ignore[misc]
    assert refusal(lambda: enclave.request(call.header[:-1], body)) is Code.MALFORMED
    assert call.open(*enclave.request(call.header, body)).trailer.status is Code.OK


def test_h2_two_chunks_in_another_order_are_refused(deployment: LocalDeployment) -> None:
    enclave = genuine(deployment)
    session = start_session(deployment)
    wide = to_request({"features": np.ones((12_000, 30), np.float32)})  # 1.4 MB: two chunks
    call = session.seal(wide)
    body, chunk = bytes(call.ciphertext), (1 << 20) + 16
    assert len(body) > chunk
    first, second = body[:chunk], body[chunk:]
    for changed in (second + first, first + first, second, first, second + second, body + second):
        assert refusal(lambda c=changed: enclave.request(call.header, c)) is Code.OPEN_FAILED  # type: ignore[misc]
    assert call.open(*enclave.request(call.header, body)).trailer.status is Code.OK


def test_h2_a_flipped_bit_of_an_answer_is_refused(
    deployment: LocalDeployment, clinic: Client, lying_host: LyingHost
) -> None:
    at = 0

    def lie(request: bytes, forward: Forward) -> bytes:
        return flip(forward(request), at)

    lying_host.infer = lie
    length = len(b"".join(encode_sealed(b"h" * 81, b"c" * (4096 + 16))))
    with deployment.client(target=lying_host.target) as client:
        for at in [*range(0, 86, 6), *positions(length, 20)]:
            code = refusal(lambda: client.infer(MODEL, WANTED))
            assert code in {Code.ANSWER_OPEN_FAILED, Code.MALFORMED}, at


def test_h2_an_answer_that_is_cut_or_grown_is_refused(
    deployment: LocalDeployment, lying_host: LyingHost
) -> None:
    lies: list[Callable[[bytes], bytes]] = [
        lambda answer: b"",
        lambda answer: answer[:-1],
        lambda answer: answer[:90],
        lambda answer: answer + b"\0",
        lambda answer: answer + answer,
        lambda answer: b"".join(
            encode_sealed(parse_sealed(memoryview(answer))[0], bytes(4112)),
        ),
    ]
    with deployment.client(target=lying_host.target) as client:
        for lie in lies:
            lying_host.infer = lambda request, forward, lie=lie: lie(forward(request))  # type: ignore[misc]
            code = refusal(lambda: client.infer(MODEL, WANTED))
            assert code in {Code.ANSWER_OPEN_FAILED, Code.MALFORMED}
        lying_host.infer = lambda request, forward: forward(request)
        assert client.infer(MODEL, WANTED).model == MODEL


def test_h2_a_duplicated_request_runs_once(
    deployment: LocalDeployment, lying_relay: LyingRelay, relayed_target: str
) -> None:
    answers: list[Answer] = []

    def lie(kind: int, payload: bytes, forward: Callable[[bytes], Answer]) -> Answer:
        if kind == FrameType.REQUEST:
            answers.extend(forward(payload) for _ in range(3))
            return answers[0]
        return forward(payload)

    lying_relay.lie = lie
    with deployment.client(target=relayed_target) as client:
        assert client.infer(MODEL, WANTED).outputs["label"].shape == (len(ROWS),)
    assert [kind for kind, _ in answers] == [FrameType.REQUEST | ANSWER, ERROR, ERROR]
    assert all(Code.REPLAYED.encode() in payload for _, payload in answers[1:])


def test_h2_a_dropped_request_is_the_clients_own_deadline(
    deployment: LocalDeployment, lying_host: LyingHost
) -> None:
    dropped = threading.Event()

    def lie(request: bytes, forward: Forward) -> bytes:
        dropped.wait(100)
        return forward(request)

    lying_host.infer = lie
    with deployment.client(target=lying_host.target) as client:
        begun = time.monotonic()
        code = refusal(lambda: client.infer(MODEL, WANTED, timeout_s=1))
        assert code is Code.DEADLINE_EXCEEDED
        assert time.monotonic() - begun < 60
    dropped.set()


# H4: answers of other requests


def test_h4_swapped_answers_of_concurrent_requests_are_refused(
    deployment: LocalDeployment, lying_host: LyingHost
) -> None:
    both = threading.Barrier(2)
    answers: dict[int, bytes] = {}
    order = threading.Lock()

    def lie(request: bytes, forward: Forward) -> bytes:
        answer = forward(request)
        with order:
            mine = len(answers)
            answers[mine] = answer
        both.wait(60)
        return answers[1 - mine]

    codes: list[Code] = []
    with deployment.client(target=lying_host.target) as client:
        assert client.infer(MODEL, WANTED).model == MODEL  # one session for both
        lying_host.infer = lie
        threads = [
            threading.Thread(
                target=lambda: codes.append(refusal(lambda: client.infer(MODEL, WANTED)))
            )
            for _ in range(2)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert codes == [Code.ANSWER_OPEN_FAILED] * 2


def test_h4_an_older_answer_to_the_same_question_is_refused(
    deployment: LocalDeployment, lying_host: LyingHost
) -> None:
    kept: list[bytes] = []

    def lie(request: bytes, forward: Forward) -> bytes:
        kept.append(forward(request))
        return kept[0]

    lying_host.infer = lie
    with deployment.client(target=lying_host.target) as client:
        assert client.infer(MODEL, WANTED).model == MODEL
        for _ in range(3):
            assert refusal(lambda: client.infer(MODEL, WANTED)) is Code.ANSWER_OPEN_FAILED


def test_h4_a_request_that_is_sent_back_is_no_answer(
    deployment: LocalDeployment, lying_host: LyingHost
) -> None:
    lying_host.infer = lambda request, forward: request
    with deployment.client(target=lying_host.target) as client:
        assert refusal(lambda: client.infer(MODEL, WANTED)) is Code.ANSWER_OPEN_FAILED


# H5: nothing outside the seal names a model


def test_h5_outer_metadata_redirects_nothing(deployment: LocalDeployment) -> None:
    call = start_session(deployment).seal()
    request = b"".join(encode_sealed(call.header, call.ciphertext))
    labels = (
        ("model", "echo"),
        ("x-model-name", "echo"),
        ("enginetarget", "echo"),
        ("x-model-version", "9"),
        ("casemate-audience", "somebody.example/else"),
        ("x-caller", deployment.operator.public_key.hex()),
    )
    with grpc.insecure_channel(deployment.target) as channel:
        infer: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(
            "/casemate.v1.ConfidentialInference/Infer"
        )
        answer = call.open(*parse_sealed(memoryview(infer(request, timeout=60, metadata=labels))))
    assert (answer.trailer.status, answer.trailer.model) == (Code.OK, MODEL)
    assert answer.trailer.version == 1


def test_h5_the_name_in_the_message_does_not_decide_the_preamble_does(
    deployment: LocalDeployment,
) -> None:
    session, enclave = start_session(deployment), genuine(deployment)
    other = b"\x0a\x04echo" + b"\x12\x019" + GOOD  # model_name, model_version of the inner message
    assert session.ask(enclave, other).trailer.model == MODEL
    assert session.ask(enclave, other, model="echo").trailer.status is Code.UNKNOWN_MODEL
    assert session.ask(enclave, GOOD, version=9).trailer.status is Code.UNKNOWN_MODEL
    pinned = session.ask(enclave, GOOD, digest=b"d" * 48)
    assert pinned.trailer.status is Code.DIGEST_MISMATCH
    assert pinned.message is None


def test_h5_a_request_for_another_audience_is_refused(deployment: LocalDeployment) -> None:
    call = start_session(deployment, audience="clinic.example/research").seal()
    assert (
        refusal(lambda: genuine(deployment).request(call.header, call.ciphertext))
        is Code.WRONG_AUDIENCE
    )


# H10, time


@pytest.mark.parametrize("mode", ["hpke", "kms"])
def test_h10_a_request_held_back_past_its_end_is_refused(
    deployment: LocalDeployment, mode: str
) -> None:
    enclave = genuine(deployment)

    def in_time(life_s: float) -> bool:
        """Whether a session of so many seconds was served before its end; nothing is after it."""
        session = start_session(deployment, mode=mode, lifetime_ms=round(life_s * 1000))
        held = session.seal()
        served = False
        with contextlib.suppress(CasemateError):
            served = session.ask(enclave).trailer.status is Code.OK
        time.sleep(life_s + 0.2)
        assert refusal(lambda: enclave.request(held.header, held.ciphertext)) is Code.EXPIRED
        return served

    assert patiently(in_time, bool, (1.5, 10, 40))


def test_h10_sessions_of_another_time_are_refused(deployment: LocalDeployment) -> None:
    enclave = genuine(deployment)
    hour, now = 3_600_000, now_ms()
    boot = start_session(deployment).evidence.instance.boot_time
    table = {
        (boot - 1, 60_000): Code.STALE_SESSION,  # before the boot
        (0, 60_000): Code.STALE_SESSION,
        (now + 60_000, 60_000): Code.STALE_SESSION,  # of the future
        (2**63, 1): Code.STALE_SESSION,
        (boot, hour + 1): Code.MALFORMED,  # longer than an hour
        (boot, 1): Code.EXPIRED,
        (boot, 0): Code.EXPIRED,  # ends before it begins
    }
    for (begin, lifetime), code in table.items():
        call = start_session(deployment, not_before=begin, lifetime_ms=lifetime).seal()
        got = refusal(lambda c=call: enclave.request(c.header, c.ciphertext))  # type: ignore[misc]
        assert got is code, (begin, lifetime)


# H14, sizes


def test_h14_requests_and_answers_of_one_bucket_look_alike(
    deployment: LocalDeployment, lying_host: LyingHost
) -> None:
    sizes: list[tuple[int, int]] = []

    def lie(request: bytes, forward: Forward) -> bytes:
        answer = forward(request)
        sizes.append((len(request), len(answer)))
        return answer

    lying_host.infer = lie
    with deployment.client(target=lying_host.target) as client:
        for rows in (1, 2, 5):
            client.infer(MODEL, {"features": np.repeat(ROWS[:1], rows, axis=0)})
        client.infer(MODEL, {"features": ROWS}, outputs=["label"])
        refusal(lambda: client.infer(MODEL, {"features": ROWS[:, :3]}))  # sealed INVALID_INPUT
        assert len(set(sizes)) == 1
        # Above the smallest bucket of all, the model's own hides the length of its answers.
        client.infer(MODEL, {"features": np.repeat(ROWS[:1], 120, axis=0)})
    assert len({answer for _, answer in sizes}) == 1


# H15: the operator as a client of the model it hosts


def test_h15_the_operators_own_requests_run_no_model(deployment: LocalDeployment) -> None:
    enclave = genuine(deployment)
    before = enclave.counters()
    for caller in (None, deployment.operator.signing_key, Ed25519PrivateKey.generate()):
        for mode in ("hpke", "kms"):
            answer = start_session(deployment, caller=caller, mode=mode).ask(enclave)
            assert (answer.trailer.status, answer.message) == (Code.CALLER_REFUSED, None)
    after = enclave.counters()
    assert after["requests"] == before["requests"] + 6
    assert after["requests_refused"] == before["requests_refused"]  # the refusal is sealed


def test_h15_the_operator_cannot_borrow_the_clinics_key_or_signature(
    deployment: LocalDeployment,
) -> None:
    enclave = genuine(deployment)
    genuine_session = start_session(deployment)
    mine = start_session(deployment, caller=deployment.operator.signing_key)
    # A signature by the clinic for its own session, moved to a session of the operator's.
    mine.keys._caller = genuine_session.keys._caller
    call = mine.seal()
    assert refusal(lambda: enclave.request(call.header, call.ciphertext)) is Code.OPEN_FAILED
    public, _ = genuine_session.keys._caller or (b"", b"")
    mine.keys._caller = (public, deployment.operator.signing_key.sign(b"mine"))
    call = mine.seal()
    assert refusal(lambda: enclave.request(call.header, call.ciphertext)) is Code.OPEN_FAILED


# H16: what health, reflection, errors and logs say

PLANTED = b"PLANTED-5417-SECRET"


def test_h16_health_and_reflection_are_closed_sets(deployment: LocalDeployment) -> None:
    with grpc.insecure_channel(deployment.target) as channel:
        check: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(
            "/grpc.health.v1.Health/Check"
        )
        for name in ("", f"model/{MODEL}"):
            request = health_pb2.HealthCheckRequest(service=name).SerializeToString()
            assert len(check(request, timeout=60)) <= 2
        for name in ("../../etc/passwd", PLANTED.decode(), "model/other"):
            request = health_pb2.HealthCheckRequest(service=name).SerializeToString()
            with pytest.raises(grpc.RpcError) as caught:
                check(request, timeout=60)
            assert caught.value.code() is grpc.StatusCode.NOT_FOUND
            assert name not in (caught.value.details() or "")
        reflect: grpc.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream(
            "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
        )
        ask = reflection_pb2.ServerReflectionRequest(list_services="").SerializeToString()
        (answer,) = reflect(iter([ask]), timeout=60)
        listed = reflection_pb2.ServerReflectionResponse.FromString(answer).list_services_response
        assert {service.name for service in listed.service} == {
            "casemate.v1.ConfidentialInference",
            "grpc.health.v1.Health",
            "grpc.reflection.v1alpha.ServerReflection",
        }


def test_h16_errors_in_the_clear_are_codes_and_quote_nothing(deployment: LocalDeployment) -> None:
    call = start_session(deployment).seal()
    body = bytes(call.ciphertext)
    planted = [
        (PLANTED, body),
        (b"\x01" + PLANTED * 10, body),
        (call.header[:86] + (PLANTED * 2)[:32] + call.header[118:], body),
        (call.header[:38] + (PLANTED * 2)[:32] + call.header[70:], body),
        (call.header, PLANTED * 40),
    ]
    texts = set()
    with grpc.insecure_channel(deployment.target) as channel:
        infer: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(
            "/casemate.v1.ConfidentialInference/Infer"
        )
        for header, ciphertext in planted:
            with pytest.raises(grpc.RpcError) as caught:
                infer(b"".join(encode_sealed(header, ciphertext)), timeout=10)
            said = repr((caught.value.details(), list(caught.value.trailing_metadata() or ())))
            assert PLANTED.decode()[:8] not in said
            texts.add((caught.value.details() or "").partition(":")[0])
    assert texts <= {str(code) for code in REFUSED_OUTSIDE}


def test_c6_whatever_fails_while_opening_is_one_code_and_one_text(
    deployment: LocalDeployment,
) -> None:
    enclave = genuine(deployment)
    call = start_session(deployment).seal()
    header, body = call.header, bytes(call.ciphertext)
    said = set()
    for changed in (
        (flip(header, 86), body),  # commitment
        (flip(header, 140), body),  # encapsulated key
        (flip(header, 1305), body),  # wrapped data key
        (flip(header, 2), body),  # request id: another request key
        (header, flip(body, 0)),
        (header, flip(body, len(body) - 1)),  # tag
        (header, body[:-16]),
        (header, b"x"),
    ):
        with pytest.raises(Exception, match="OPEN_FAILED") as caught:
            enclave.request(*changed)
        said.add(str(caught.value))
    assert len(said) == 1


def test_h16_logs_are_json_of_closed_sets(deployment: LocalDeployment) -> None:
    session, enclave = start_session(deployment), genuine(deployment)
    bad = session.ask(enclave, to_request({PLANTED.decode(): ROWS}))
    assert bad.trailer.status is Code.INVALID_INPUT
    assert session.ask(enclave, GOOD, model=PLANTED.decode()).trailer.status is Code.UNKNOWN_MODEL
    operator = deployment.operator.directory
    enclave_log = (operator / "enclave.log").read_text()
    for line in enclave_log.splitlines():
        if line.startswith("{"):
            assert json.loads(line).keys() <= {"event", "code", "count"}
        else:
            assert line.startswith(("casemate-sim:", "DEBUG:")), line
    for log in operator.glob("host*.log"):
        for line in log.read_text().splitlines():
            assert json.loads(line).keys() <= HOST_LOG_KEYS, line
        assert PLANTED.decode() not in log.read_text()
    assert PLANTED.decode() not in enclave_log


HOST_LOG_KEYS = {
    *("timestamp", "level", "event", "code", "detail", "file", "retry_seconds", "expires"),
    *("model", "version", "digest", "models", "form", "pcr16", "release", "instance"),
    *("answered", "refused", "request_bytes", "address", "name", "error", "at", "logger", "tls"),
    "frames",
}


def test_h16_counters_do_not_tell_a_sealed_status(deployment: LocalDeployment) -> None:
    session, enclave = start_session(deployment), genuine(deployment)

    def moved(message: bytes, **named: object) -> dict[str, int]:
        before = enclave.counters()
        session.ask(enclave, message, **named)
        after = enclave.counters()
        # What the honest host does meanwhile is no trace of this request.
        own = {"connections_accepted", "evidence"}
        return {name: after[name] - before[name] for name in after if name not in own}

    changes = [
        moved(GOOD),
        moved(GOOD, model="other"),
        moved(b"\xff\xff"),
        moved(to_request({"features": ROWS[:, :2]})),
    ]
    assert all(change == changes[0] for change in changes)


def test_h16_step_durations_do_not_tell_a_sealed_status(deployment: LocalDeployment) -> None:
    """Published in groups, and with every answer in every step that a model's run has."""
    session, enclave = start_session(deployment), genuine(deployment)
    seen, asked = [enclave.histograms()], [GOOD, b"\xff\xff", GOOD, GOOD]
    for number in range(3 * limits.STEP_GROUP):
        session.ask(enclave, asked[number % len(asked)])
        if enclave.histograms() != seen[-1]:
            seen.append(enclave.histograms())
    # The durations of whole groups, and never of one request alone. What was published first may
    # be of requests that were asked side by side.
    del seen[0]
    assert 2 <= len(seen) <= 3
    counts = [
        {step: sum(item["counts"]) for step, item in each.items() if step in {"run", "queue"}}
        for each in seen
    ]
    # The enclave has served others before: what the host cut short has run and was never sealed.
    for step in ("run", "queue"):
        moved = [after[step] - before[step] for before, after in itertools.pairwise(counts)]
        assert moved == [limits.STEP_GROUP] * len(moved), step


def test_answers_are_the_models_own(
    deployment: LocalDeployment, expected: dict[str, bytes]
) -> None:
    """The attacks above compare with an answer that is right to the last bit."""
    answer = start_session(deployment).ask(genuine(deployment))
    assert answer.message is not None
    outputs = from_response(answer.message)
    assert {name: array.tobytes() for name, array in outputs.items()} == expected
