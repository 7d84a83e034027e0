"""Streams through client, host and enclave as they are deployed (SPEC 5.9, 8.9)."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from casemate.channel import connect
from casemate.client import AsyncClient, Client
from casemate.errors import CasemateError, Code, RequestError
from casemate.limits import MIB
from casemate.receipts import StoredReceipt, VerifiedReceipt, verify_receipt
from casemate.sealed_model import LoopState, ModelLoop, Serving
from casemate.tensors import TensorSpec, from_response, to_request
from casemate_devkit.local import MODEL
from tests.support import cli, onnx_bytes
from tests.support.aio import LoopedClient
from tests.support.attacker import (
    GOOD,
    ROWS,
    TIMEOUT_S,
    EnclaveSocket,
    Session,
    eventually,
    genuine,
    refusal,
    resident_kib,
    start_session,
)
from tests.support.deployment import DATA
from tests.support.patience import patiently
from tests.support.resident import Peak
from tests.support.streams import speak
from tests.support.vendor_models import seal
from tests.support.workers import ticks_of_family

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from casemate_devkit.local import LocalDeployment

pytestmark = pytest.mark.integration

ENDLESS, COUNTING, LARGEST, ZEROS, SHARED, REPEATING, JOINING = range(21, 28)
FLOATS = {name: TensorSpec(name, "FP32", (1,)) for name in ("n", "limit", "next", "square")}


@pytest.fixture(scope="module")
def enclave(
    deployment: LocalDeployment, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[EnclaveSocket]:
    """The deployment's enclave with some more versions of its model, none like the others."""
    folder = tmp_path_factory.mktemp("models")
    socket = genuine(deployment)
    scalar = TensorSpec("x", "FP32", ()), TensorSpec("y", "FP32", ())
    counting = ModelLoop((LoopState("next", "n"),), "done", steps=50, interval=20)
    for version, onnx, facts in (
        (ENDLESS, onnx_bytes.endless(), {"inputs": scalar[:1], "outputs": scalar[1:]}),
        (
            COUNTING,
            onnx_bytes.counting(),
            {
                "inputs": (FLOATS["n"], FLOATS["limit"]),
                "outputs": (FLOATS["square"],),
                "loop": counting,
                "answer_bucket": 4096,
            },
        ),
        (
            LARGEST,
            onnx_bytes.largest(),
            {"inputs": (TensorSpec("x", "FP32", (0,)),), "outputs": scalar[1:]},
        ),
        (
            ZEROS,
            onnx_bytes.zeros(),
            {
                "inputs": (TensorSpec("n", "INT64", (1,)),),
                "outputs": (TensorSpec("y", "FP32", (0,)),),
            },
        ),
        (
            REPEATING,
            onnx_bytes.repeating(),
            {
                "inputs": (TensorSpec("x", "FP32", (0,)), TensorSpec("n", "INT64", (1,))),
                "outputs": (TensorSpec("y", "FP32", (0,)),),
            },
        ),
    ):
        socket.load(seal(deployment, folder, onnx, version=version, **facts))
    yield socket
    for version in (ENDLESS, COUNTING, LARGEST, ZEROS, REPEATING):
        socket.unload(MODEL, version)


@pytest.fixture(params=[Client, LoopedClient], ids=["threads", "asyncio"])
def client(
    deployment: LocalDeployment, enclave: EnclaveSocket, request: pytest.FixtureRequest
) -> Iterator[Client]:
    """Each kind of client: what the tests expect of streams, both do."""
    policy, key = deployment.trust_policy(), deployment.clinic.signing_key
    with request.param(deployment.target, policy, caller_key=key) as connected:
        yield connected


def pid_of(world: LocalDeployment) -> int:
    assert world.enclave is not None
    return int(world.enclave.ready["pid"])


def batches(count: int) -> list[dict[str, np.ndarray]]:
    return [
        {"features": np.ascontiguousarray(DATA.features[at % 500 : at % 500 + 1 + at % 3])}
        for at in range(count)
    ]


def scalar(value: float = 1.0) -> dict[str, np.ndarray]:
    return {"x": np.full((), value, np.float32)}


def count_to(limit: int) -> dict[str, np.ndarray]:
    return {"n": np.zeros(1, np.float32), "limit": np.full(1, limit, np.float32)}


def test_answers_are_those_of_unary_calls_and_in_order(client: Client) -> None:
    asked = batches(150)
    with client.stream(MODEL, version=1) as stream:
        answers = [*stream.map(asked)]
    assert len(answers) == len(asked)
    for batch, answer in zip(asked[:20], answers, strict=False):
        alone = client.infer(MODEL, batch, version=1)
        assert {name: array.tobytes() for name, array in answer.outputs.items()} == {
            name: array.tobytes() for name, array in alone.outputs.items()
        }
        assert (answer.model, answer.version, answer.digest) == (MODEL, 1, alone.digest)
    rows = [len(answer.outputs["label"]) for answer in answers]
    assert rows == [len(batch["features"]) for batch in asked]


def test_answers_as_they_finish_say_to_what(client: Client) -> None:
    asked = batches(60)
    with client.stream(MODEL, version=1, outputs=["label"]) as stream:
        answers = dict(stream.as_finished(iter(asked)))
    assert sorted(answers) == [*range(60)]
    for index, answer in answers.items():
        assert list(answer.outputs) == ["label"]
        assert len(answer.outputs["label"]) == len(asked[index]["features"])


def test_a_question_that_is_refused_does_not_end_the_stream(client: Client) -> None:
    with client.stream(MODEL, version=1) as stream:
        good = stream.submit({"features": ROWS})
        bad = stream.submit({"features": ROWS[:, :3]})
        strange = stream.submit({"pixels": ROWS})
        after = stream.submit({"features": ROWS})
        for future in (bad, strange):
            with pytest.raises(RequestError) as caught:
                future.result(60)
            assert caught.value.code is Code.INVALID_INPUT
        assert (
            good.result(60).outputs["label"].tobytes()
            == after.result(60).outputs["label"].tobytes()
        )


def test_an_empty_stream_and_a_closed_one(client: Client) -> None:
    with client.stream(MODEL, version=1) as stream:
        pass
    assert refusal(lambda: stream.submit({"features": ROWS})) is Code.INVALID_ARGUMENT
    stream.close()  # once more does nothing
    with client.stream(MODEL, version=1) as stream:
        assert [*stream.map([])] == []
        assert refusal(lambda: stream.submit({})) is Code.INVALID_ARGUMENT
    assert refusal(lambda: client.stream(MODEL, in_flight=0)) is Code.INVALID_ARGUMENT
    assert refusal(lambda: client.stream(MODEL, in_flight=65)) is Code.INVALID_ARGUMENT
    assert refusal(lambda: client.stream("nobody")) is Code.UNKNOWN_MODEL


def test_streams_are_thread_safe(client: Client) -> None:
    asked = batches(40)
    labels: list[list[bytes]] = [[] for _ in range(4)]
    with client.stream(MODEL, version=1) as stream:

        def ask(number: int) -> None:
            for batch in asked:
                answer = stream.submit(batch).result(60)
                labels[number].append(answer.outputs["label"].tobytes())

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(labels[0]) == 40
    assert labels[1:] == labels[:1] * 3


def test_a_slow_question_holds_up_no_other(client: Client) -> None:
    """Two runs that never end are under way while others of the stream are answered."""
    stream = client.stream(MODEL, version=ENDLESS, timeout_s=100)
    slow = [stream.submit(scalar()) for _ in range(2)]
    with client.stream(MODEL, version=1) as other:
        assert len([*other.map(batches(20))]) == 20
    refused = stream.submit({"x": np.ones(3, np.float32)})
    with pytest.raises(RequestError):
        refused.result(60)
    assert not any(future.done() for future in slow)
    stream.cancel()
    for future in slow:
        with pytest.raises(CasemateError):
            future.result(60)
    with pytest.raises(CasemateError):
        stream.close()
    assert refusal(lambda: stream.submit(scalar())) is Code.UNAVAILABLE


def times(count: int) -> dict[str, np.ndarray]:
    return {"x": np.zeros(1, np.float32), "n": np.array([count], np.int64)}


def test_a_question_that_takes_long_among_quick_ones_holds_up_no_other(
    client: Client, deployment: LocalDeployment, enclave: EnclaveSocket
) -> None:
    """Neither those that it came with nor those that come later; and it ends with its stream."""
    pid, early = pid_of(deployment), ended_early(enclave)
    stream = client.stream(MODEL, version=REPEATING, timeout_s=60)
    assert len([*stream.map(times(1) for _ in range(200))]) == 200  # runs are known to be quick
    before = [stream.submit(times(2)) for _ in range(5)]
    endless = [stream.submit(times(1 << 62)) for _ in range(2)]
    after = [stream.submit(times(3)) for _ in range(20)]
    assert [future.result(TIMEOUT_S).outputs["y"].tolist() for future in before] == [[2]] * 5
    assert [future.result(TIMEOUT_S).outputs["y"].tolist() for future in after] == [[3]] * 20
    for answer in stream.map(times(4) for _ in range(50)):
        assert answer.outputs["y"].tolist() == [4]
    assert not any(future.done() for future in endless)
    stream.cancel()
    for future in endless:
        with pytest.raises(CasemateError):
            future.result(TIMEOUT_S)
    assert eventually(lambda: ended_early(enclave) > early)
    assert rests(pid)
    with client.stream(MODEL, version=REPEATING) as again:
        assert again.submit(times(1)).result(TIMEOUT_S).outputs["y"].tolist() == [1]


def test_rows_that_were_joined_come_back_to_their_own_question(
    client: Client, deployment: LocalDeployment, enclave: EnclaveSocket, tmp_path: Path
) -> None:
    """Of one stream, and of two at a time."""
    serving = Serving(batch_dimension=0, batch_rows=24)
    enclave.load(seal(deployment, tmp_path, onnx_bytes.linear(), version=JOINING, serving=serving))
    weights = np.array([[1, 2], [3, 4], [5, 6]], np.float32)

    def asked(first: int) -> list[dict[str, np.ndarray]]:
        return [
            {"x": np.arange(3 * rows, dtype=np.float32).reshape(rows, 3) + first + at}
            for at in range(120)
            for rows in (1 + at % 3,)
        ]

    def ask(first: int) -> list[bool]:
        with client.stream(MODEL, version=JOINING) as stream:
            answers = stream.map(asked(first))
            return [
                np.array_equal(answer.outputs["y"], batch["x"] @ weights)
                for batch, answer in zip(asked(first), answers, strict=True)
            ]

    try:
        with ThreadPoolExecutor(2) as pool:
            assert [*pool.map(ask, (0, 1000))] == [[True] * 120] * 2
    finally:
        enclave.unload(MODEL, JOINING)


def begins(pid: int) -> bool:
    """Whether an enclave and its workers come to compute: more than requests alone would take."""
    before = ticks_of_family(pid)
    return eventually(lambda: ticks_of_family(pid) > before + 20)


def rests(pid: int) -> bool:
    """Whether they compute no longer, and that long before a run's own time is over."""

    def idle() -> bool:
        before = ticks_of_family(pid)
        time.sleep(0.5)
        return ticks_of_family(pid) - before < 5

    return eventually(idle, 20)


def ended_early(enclave: EnclaveSocket) -> int:
    """Streams that ended without their end: hung up on, or by gRPC's word closed without it."""
    counters = enclave.counters()
    return int(counters["streams_cut"] + counters["streams_refused"])


def test_a_cancelled_stream_frees_its_workers_and_stops_the_model(
    deployment: LocalDeployment, enclave: EnclaveSocket, client: Client
) -> None:
    pid = pid_of(deployment)
    early = ended_early(enclave)
    stream = client.stream(MODEL, version=ENDLESS, timeout_s=60)
    futures = [stream.submit(scalar()) for _ in range(2)]
    assert begins(pid)
    stream.cancel()
    assert all(future.done() for future in futures)
    assert eventually(lambda: ended_early(enclave) > early, 20)
    assert rests(pid)


def test_a_cancelled_task_frees_its_workers_and_stops_the_model(
    deployment: LocalDeployment, enclave: EnclaveSocket
) -> None:
    pid, early = pid_of(deployment), ended_early(enclave)
    policy, key = deployment.trust_policy(), deployment.clinic.signing_key

    asked = asyncio.Event()

    async def ask() -> None:
        async with (
            AsyncClient(deployment.target, policy, caller_key=key) as client,
            client.stream(MODEL, version=ENDLESS, timeout_s=60) as stream,
        ):
            answer = await stream.submit(scalar())
            asked.set()
            await answer

    async def work() -> None:
        task = asyncio.create_task(ask())
        async with asyncio.timeout(TIMEOUT_S):
            await asked.wait()  # what computes before is the proof that the client asks for
        assert await asyncio.to_thread(begins, pid)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(work())
    assert eventually(lambda: ended_early(enclave) > early, 20)
    assert rests(pid)


def test_a_client_closed_under_a_stream_of_an_event_loop_fails_what_waits(
    deployment: LocalDeployment, enclave: EnclaveSocket
) -> None:
    policy, key = deployment.trust_policy(), deployment.clinic.signing_key

    async def work() -> None:
        client = AsyncClient(deployment.target, policy, caller_key=key)
        async with client.stream(MODEL, version=ENDLESS, timeout_s=60) as stream:
            future = await stream.submit(scalar())
            await asyncio.sleep(0.2)
            await client.aclose()
            with pytest.raises(RequestError) as caught:
                await asyncio.wait_for(future, 60)
            assert caught.value.code is Code.UNAVAILABLE
            with pytest.raises(RequestError):
                await stream.aclose()
            await stream.cancel()

    with pytest.raises(RequestError):
        asyncio.run(work())


def test_a_caller_that_vanishes_is_a_cancellation_however_full_the_stream_is(
    deployment: LocalDeployment, enclave: EnclaveSocket
) -> None:
    """The enclave no longer reads, so that it cannot find the end by reading."""
    early = ended_early(enclave)
    session = start_session(deployment)
    with connect(enclave.address, TIMEOUT_S) as channel:
        spoken = speak(channel, session.keys, version=ENDLESS, budget=60_000).begin()
        message = to_request(scalar())
        for _ in range(75):  # above what the enclave reads ahead
            spoken.ask(message)
        time.sleep(0.3)
    assert eventually(lambda: ended_early(enclave) > early, 20)
    assert session.ask(enclave).trailer.status is Code.OK


def test_the_deadline_reaches_the_enclave(
    deployment: LocalDeployment, enclave: EnclaveSocket
) -> None:
    session = start_session(deployment)
    begun = time.monotonic()
    with connect(enclave.address, TIMEOUT_S) as channel:
        spoken = speak(channel, session.keys, version=ENDLESS, budget=1200).begin()
        for _ in range(3):
            spoken.ask(to_request(scalar()))
        units = spoken.receive_all()
    assert 1 < time.monotonic() - begun < 20
    assert spoken.complete
    assert units[-1].last
    assert {unit.trailer.status for unit in units} == {Code.DEADLINE_EXCEEDED}


@pytest.mark.process_form(
    "once both ways are full, vhost-device-vsock 0.3 never goes on (docs/decisions/0015)"
)
def test_what_a_slow_reader_leaves_is_bounded_and_not_lost(
    deployment: LocalDeployment, enclave: EnclaveSocket
) -> None:
    """Nobody reads the answers: the enclave stops reading questions, and forgets none."""
    session = start_session(deployment)
    count, answer = 400, 1 << 20
    message = to_request({"n": np.array([answer // 4], np.int64)})
    sent = 0
    with connect(enclave.address, TIMEOUT_S) as channel:
        channel.settimeout(60)
        spoken = speak(channel, session.keys, version=ZEROS, budget=600_000).begin()

        def ask() -> None:
            nonlocal sent
            for _ in range(count):
                spoken.ask(message)
                sent += 1
            spoken.end()

        thread = threading.Thread(target=ask)
        thread.start()

        def still() -> bool:
            before = sent
            time.sleep(1)
            return 0 < before == sent

        assert eventually(still)
        stuck = sent
        resident = resident_kib(pid_of(deployment))
        time.sleep(0.5)
        assert sent == stuck < count
        assert resident_kib(pid_of(deployment)) - resident < 16 * 1024
        units = spoken.receive_all()
        thread.join()
    assert spoken.complete
    assert sorted(unit.trailer.unit for unit in units[:-1]) == [*range(count)]
    assert {len(unit.message or b"") > answer for unit in units[:-1]} == {True}


def test_too_many_streams_are_refused_and_the_others_go_on(
    deployment: LocalDeployment, client: Client
) -> None:
    """Host and enclave have room for 32, of one caller 24; unary calls have their own workers."""
    with client.stream(MODEL, version=1) as first:
        open_streams = [client.stream(MODEL, version=1) for _ in range(28)]
        codes = []
        for stream in open_streams:
            try:
                stream.submit({"features": ROWS}).result(60)
            except CasemateError as error:
                codes.append(error.code)
        assert codes == [Code.OVERLOADED] * 5
        assert client.infer(MODEL, {"features": ROWS}, version=1).model == MODEL
        assert first.submit({"features": ROWS}).result(60).model == MODEL
        for stream in open_streams:
            stream.cancel()
    assert eventually(lambda: _opens(client))


def first_status(stack: contextlib.ExitStack, enclave: EnclaveSocket, session: Session) -> Code:
    """Begin a stream that stays open, and return what its first question comes to."""
    channel = stack.enter_context(connect(enclave.address, TIMEOUT_S))
    spoken = speak(channel, session.keys, version=SHARED)
    question = to_request({"x": np.ones(3, np.float32)})
    spoken.begin(question)
    while not spoken.units:
        assert spoken.receive()
    return spoken.units[0].trailer.status


def test_c3_one_caller_does_not_hold_all_streams(
    deployment: LocalDeployment, enclave: EnclaveSocket, tmp_path: Path
) -> None:
    """Whoever comes first may hold three quarters of them; others find their share of the rest."""
    lab = Ed25519PrivateKey.generate()
    callers = sorted([deployment.clinic.public_key, lab.public_key().public_bytes_raw()])
    tensors = {
        "inputs": (TensorSpec("x", "FP32", (0,)),),
        "outputs": (TensorSpec("y", "FP32", ()),),
    }
    enclave.load(
        seal(
            deployment,
            tmp_path,
            onnx_bytes.largest(),
            version=SHARED,
            callers=tuple(callers),
            **tensors,
        )
    )
    hog, other = start_session(deployment), start_session(deployment, caller=lab)
    try:
        with contextlib.ExitStack() as stack:
            codes = [first_status(stack, enclave, hog) for _ in range(26)]
            assert codes == [Code.OK] * 24 + [Code.OVERLOADED] * 2
            codes = [first_status(stack, enclave, other) for _ in range(5)]
            assert codes == [Code.OK] * 4 + [Code.OVERLOADED]
    finally:
        enclave.unload(MODEL, SHARED)


def _opens(client: Client) -> bool:
    try:
        with client.stream(MODEL, version=1) as stream:
            return stream.submit({"features": ROWS}).result(60).model == MODEL
    except CasemateError:
        return False


# Pieces


def test_a_model_answers_piece_by_piece(client: Client) -> None:
    with client.stream(MODEL, version=COUNTING) as stream:

        def one_by_one() -> bool:
            """Ask; whether the pieces came apart, which this process may be too slow to see."""
            begun = time.monotonic()
            arrived = []
            squares = []
            for piece in stream.pieces(count_to(6)):
                arrived.append(time.monotonic() - begun)
                squares.append(float(piece.outputs["square"][0]))
            assert squares == [1, 4, 9, 16, 25, 36]
            # Paced: the n-th leaves no earlier than n intervals after the question was begun.
            assert all(at >= 0.018 * number for number, at in enumerate(arrived, 1))
            return arrived[0] < arrived[-1] - 0.05

        assert eventually(one_by_one, 20)
        assert len([*stream.pieces(count_to(1))]) == 1
        last = stream.submit(count_to(5)).result(60)
        assert last.outputs["square"].tolist() == [25]
        assert len([*stream.pieces(count_to(1000))]) == 50  # the most that the publisher allows


def test_in_unary_the_answer_is_the_last_piece(client: Client) -> None:
    answer = client.infer(MODEL, count_to(4), version=COUNTING)
    assert answer.outputs["square"].tolist() == [16]


def test_pieces_that_nobody_wants_any_more_hold_up_nothing(client: Client) -> None:
    with client.stream(MODEL, version=COUNTING) as stream:
        pieces = stream.pieces(count_to(40))
        assert len([*itertools.islice(pieces, 2)]) == 2
        pieces.close()  # type: ignore[attr-defined]
        assert stream.submit(count_to(2)).result(60).outputs["square"].tolist() == [4]


def test_pieces_that_nobody_takes_hinder_no_cancellation(client: Client) -> None:
    """The receiving side waits for room when the stream is cancelled."""
    stream = client.stream(MODEL, version=COUNTING)
    pieces = stream.pieces(count_to(40))
    assert next(pieces).outputs["square"].tolist() == [1]
    time.sleep(0.5)  # more pieces have come than wait for whoever takes them
    begun = time.monotonic()
    stream.cancel()
    assert time.monotonic() - begun < 20
    assert refusal(lambda: [*pieces]) is Code.UNAVAILABLE


def test_pieces_that_nobody_takes_end_with_the_stream(client: Client) -> None:
    def first(seconds: float) -> list[float]:
        """What came of the first piece, if there was time for it."""
        taken: list[float] = []
        stream = client.stream(MODEL, version=COUNTING, timeout_s=seconds)
        pieces = stream.pieces(count_to(40))
        with contextlib.suppress(CasemateError):
            taken += next(pieces).outputs["square"].tolist()
        assert refusal(stream.close) is Code.DEADLINE_EXCEEDED
        assert not taken or refusal(lambda: [*pieces]) is Code.DEADLINE_EXCEEDED
        return taken

    assert patiently(first, bool, (1.5, 10, 40)) == [1]


def test_pieces_wait_for_whoever_takes_them(client: Client) -> None:
    with client.stream(MODEL, version=COUNTING) as stream:
        squares = []
        for piece in stream.pieces(count_to(45)):
            squares.append(float(piece.outputs["square"][0]))
            if len(squares) == 1:
                time.sleep(1.5)  # while the model could have made all of them
    assert squares == [float(n * n) for n in range(1, 46)]


@pytest.mark.parametrize(
    "loop",
    [
        ModelLoop((LoopState("nothing", "n"),), None, 5),
        ModelLoop((LoopState("done", "n"),), None, 5),
        ModelLoop((LoopState("next", "n"),), "square", 5),
        ModelLoop((LoopState("next", "n"),), "nothing", 5),
    ],
    ids=["no such output", "another datatype", "stop is no BOOL", "no such stop"],
)
def test_a_loop_that_the_model_does_not_bear_out_is_rejected(
    deployment: LocalDeployment, enclave: EnclaveSocket, tmp_path: Path, loop: ModelLoop
) -> None:
    facts = {"inputs": (FLOATS["n"], FLOATS["limit"]), "outputs": (FLOATS["square"],)}
    sealed = seal(deployment, tmp_path, onnx_bytes.counting(), version=30, loop=loop, **facts)
    assert refusal(lambda: enclave.load(sealed)) is Code.MODEL_REJECTED


# Large tensors


def test_a_message_far_above_the_unary_bound(
    deployment: LocalDeployment, enclave: EnclaveSocket, client: Client
) -> None:
    """64 MiB each way, eight times what a unary request may have; the enclave holds it once.

    The worker looks at a question where it lies, and has an answer of its own beside it.
    """
    size = 64 * MIB
    x = np.arange(size // 4, dtype=np.float32)
    assert refusal(lambda: client.infer(MODEL, {"x": x}, version=LARGEST)) is Code.TOO_LARGE
    with Peak(pid_of(deployment)) as asked, client.stream(MODEL, version=LARGEST) as stream:
        answer = stream.submit({"x": x}).result(60)
    assert answer.outputs["y"] == x[-1]
    assert asked.growth < size + 24 * MIB
    with Peak(pid_of(deployment)) as made, client.stream(MODEL, version=ZEROS) as stream:
        answer = stream.submit({"n": np.array([size // 4], np.int64)}).result(60)
    assert answer.outputs["y"].shape == (size // 4,)
    assert made.growth < size + 24 * MIB


def test_a_message_above_the_measured_bound_ends_the_stream_after_those_before_it(
    client: Client,
) -> None:
    stream = client.stream(MODEL, version=LARGEST)
    first = stream.submit({"x": np.ones(3, np.float32)})
    large = stream.submit({"x": np.zeros(65 * MIB, np.float32)})  # 260 MiB; 256 are measured
    assert first.result(60).outputs["y"] == 1
    with pytest.raises(RequestError) as caught:
        large.result(60)
    assert caught.value.code is Code.TOO_LARGE
    with pytest.raises(RequestError):
        stream.close()


@pytest.mark.slow
def test_two_large_messages_share_the_measured_memory(client: Client) -> None:
    """Each takes most of it: one waits for the other, and both are answered."""
    x = np.ones(40 * MIB, np.float32)  # 160 MiB of 256
    with client.stream(MODEL, version=LARGEST) as one, client.stream(MODEL, version=LARGEST) as two:
        answers = [one.submit({"x": x}), two.submit({"x": x * 2})]
        assert [float(future.result(100).outputs["y"]) for future in answers] == [1, 2]


def test_an_unloaded_model_answers_no_further_question(
    deployment: LocalDeployment, enclave: EnclaveSocket, tmp_path: Path
) -> None:
    enclave.load(seal(deployment, tmp_path, onnx_bytes.linear(), version=31))
    with deployment.client() as client:
        stream = client.stream(MODEL, version=31)
        x = {"x": np.ones((1, 3), np.float32)}
        assert stream.submit(x).result(60).outputs["y"].tolist() == [[9, 12]]
        enclave.unload(MODEL, 31)
        with pytest.raises(RequestError) as caught:
            stream.submit(x).result(60)
        assert caught.value.code is Code.UNKNOWN_MODEL
        stream.close()


def test_what_is_no_stream_is_malformed(
    deployment: LocalDeployment, enclave: EnclaveSocket
) -> None:
    session = start_session(deployment)
    for payload in (b"", b"x", GOOD):
        with connect(enclave.address, TIMEOUT_S) as channel:
            spoken = speak(channel, session.keys, version=1)
            spoken.send_raw(payload)
            assert refusal(spoken.receive_all) is Code.MALFORMED
    with connect(enclave.address, TIMEOUT_S) as channel:  # a header and nothing more
        spoken = speak(channel, session.keys, version=1)
        spoken.send((), spoken.call.header)
        assert refusal(spoken.receive_all) is Code.MALFORMED


def test_the_command_line_asks_in_one_stream(
    deployment: LocalDeployment, enclave: EnclaveSocket, tmp_path: Path
) -> None:
    np.save(tmp_path / "rows.npy", np.ascontiguousarray(DATA.features[:7]))
    for name, value in count_to(3).items():
        np.save(tmp_path / f"{name}.npy", value)
    policy = deployment.write_trust_policy(tmp_path / "trust.toml")
    key = deployment.clinic.directory / "key.pem"
    common = (deployment.target, f"{MODEL}:1", "--policy", str(policy), "--caller-key", str(key))
    features = ("--input", f"features={tmp_path / 'rows.npy'}")
    whole = json.loads(cli.run("infer", *common, *features).stdout)
    lines = cli.run("infer", *common, *features, "--rows", "3").stdout.splitlines()
    answers = [json.loads(line)["outputs"]["label"]["data"] for line in lines]
    assert [len(labels) for labels in answers] == [3, 3, 1]
    assert [label for labels in answers for label in labels] == whole["outputs"]["label"]["data"]
    inputs = [f"{name}={tmp_path / name}.npy" for name in ("n", "limit")]
    pieces = cli.run(
        *("infer", deployment.target, f"{MODEL}:{COUNTING}", "--pieces", *common[2:]),
        *(argument for one in inputs for argument in ("--input", one)),
    ).stdout.splitlines()
    assert [json.loads(line)["outputs"]["square"]["data"] for line in pieces] == [[1], [4], [9]]
    both = cli.refusal("infer", *common, *features, "--rows", "3", "--pieces", code=2)
    assert "choose one" in both
    uneven = ("--input", f"other={tmp_path / 'n.npy'}", "--rows", "3")
    said = cli.refusal("infer", *common, *features, *uneven)
    assert "INVALID_ARGUMENT" in said


def test_each_answer_of_a_stream_has_its_receipt(
    deployment: LocalDeployment, client: Client
) -> None:
    """One for a plain answer, and one over all pieces, with the last of them."""
    policy = deployment.trust_policy()

    def verified(stored: StoredReceipt | None) -> VerifiedReceipt:
        assert stored is not None
        kept = StoredReceipt.parse(stored.encode())
        return verify_receipt(kept, policy, at=kept.unverified.statement.time)

    with client.stream(MODEL, version=1, receipts=True) as stream:
        results = [*stream.map([{"features": ROWS}, {"features": ROWS[:1]}])]
    said = [verified(result.receipt) for result in results]
    assert said[0].statement.request_digest == said[1].statement.request_digest  # one stream
    assert said[0].statement.question_hash != said[1].statement.question_hash
    assert {one.statement.model for one in said} == {MODEL}
    for result, one in zip(results, said, strict=True):
        assert one.answer is not None
        (message,) = one.answer.messages
        assert from_response(message)["label"].tobytes() == result.outputs["label"].tobytes()
    with client.stream(MODEL, version=COUNTING, receipts=True) as stream:
        pieces = [*stream.pieces(count_to(3))]
    assert [piece.receipt is None for piece in pieces] == [True, True, False]
    last = verified(pieces[-1].receipt)
    assert last.answer is not None
    squares = [float(from_response(one)["square"][0]) for one in last.answer.messages]
    assert squares == [1, 4, 9]
