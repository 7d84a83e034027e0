"""The end of an enclave's life, and what sessions and clients see of it (SPEC 9.7)."""

from __future__ import annotations

import contextlib
import json
import secrets
import subprocess
import sys
import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Self

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2

from casemate import cbor, limits
from casemate.client import Client
from casemate.client.transport import HostConnection
from casemate.errors import CasemateError, Code, FrameError, RequestError
from casemate.frames import FrameType
from casemate.sealed_model import LoopState, ModelLoop
from casemate.tensors import TensorSpec, to_request
from casemate.wire import digest
from casemate_devkit.local import LIMITS as LOCAL_LIMITS
from casemate_devkit.local import MODEL
from casemate_devkit.pki import NitroPki
from tests.support import onnx_bytes
from tests.support.attacker import eventually
from tests.support.deployment import DATA, chosen_form, prepared
from tests.support.enclave_bench import ANSWER, HOUR, Bench, rows_of
from tests.support.patience import slowness
from tests.support.replicas import Replica
from tests.support.streams import speak

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from casemate_devkit.local import LocalDeployment
    from casemate_enclave.server import Server

pytestmark = pytest.mark.integration
SCALAR = {"inputs": (TensorSpec("x", "FP32", ()),), "outputs": (TensorSpec("y", "FP32", ()),)}


class Clock:
    """The device's time, which jumps."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def served(clock: Clock) -> Iterator[Bench]:
    with Bench(clock=clock, pki=NitroPki.create(clock=clock)) as bench:
        bench.serve()
        yield bench


def drain(bench: Bench, within: int = HOUR) -> int:
    answer = cbor.decode(bench.ask(FrameType.DRAIN, cbor.encode({"within": within})))
    assert isinstance(answer, dict)
    return int(answer["until"])


def refusal(ask: Callable[[], object]) -> Code:
    with pytest.raises(FrameError) as refused:
        ask()
    return refused.value.code


def test_live_sessions_go_on_and_new_ones_are_refused(served: Bench) -> None:
    live, idle = served.session(), served.session()
    assert rows_of(served.infer(live)) == ANSWER
    now = time.time() * 1000
    assert now + HOUR - 60_000 < drain(served) < now + HOUR + 60_000
    assert served.health()["state"] == "draining"
    assert rows_of(served.infer(live)) == ANSWER
    assert refusal(lambda: served.infer(idle)) is Code.UNAVAILABLE
    assert refusal(lambda: served.infer(served.kms_session())) is Code.UNAVAILABLE
    assert served.kms.calls == 1  # the model's: no key is asked for
    assert rows_of(served.infer(live)) == ANSWER
    assert '{"event": "DRAINING"}' in served.stderr.getvalue()


def test_evidence_is_made_and_models_stay_as_they_are(served: Bench) -> None:
    drain(served)
    nonce = secrets.token_bytes(32)
    assert served.verify(nonce).document.nonce == nonce
    sealed, header = served.sealed(version=3)
    assert refusal(lambda: served.load(sealed)) is Code.UNAVAILABLE
    unload = cbor.encode({"name": "linear", "version": header.version - 1})
    assert refusal(lambda: served.ask(FrameType.UNLOAD, unload)) is Code.UNAVAILABLE
    again = served.configuration
    assert refusal(lambda: served.ask(FrameType.CONFIGURE, again)) is Code.ALREADY_CONFIGURED
    assert served.counters()["models_loaded"] == 1


def test_no_drain_before_configuration() -> None:
    with Bench() as bench:
        assert refusal(lambda: drain(bench)) is Code.NOT_CONFIGURED
        assert not bench.assembly.over()


@pytest.mark.parametrize("payload", [b"", b"\x00", cbor.encode({}), cbor.encode({"within": "1"})])
def test_an_unreadable_drain_changes_nothing(served: Bench, payload: bytes) -> None:
    assert refusal(lambda: served.ask(FrameType.DRAIN, payload)) is Code.MALFORMED
    assert served.health()["state"] == "ready"


def test_over_when_the_last_session_ends(served: Bench, clock: Clock) -> None:
    served.infer(served.session())
    drain(served)
    assert not served.assembly.over()
    clock.ahead += 3599 - 1
    served.assembly.maintain_once()
    assert not served.assembly.over()
    clock.ahead += 2
    served.assembly.maintain_once()
    assert served.assembly.over()


def test_over_at_its_bound_whoever_is_live(served: Bench, clock: Clock) -> None:
    live = served.session()
    served.infer(live)
    drain(served, within=5_000)
    clock.ahead += 6
    served.assembly.maintain_once()
    assert rows_of(served.infer(live)) == ANSWER  # until the process ends
    assert served.assembly.over()


def test_nobody_lives_longer_than_a_day(clock: Clock) -> None:
    with Bench(clock=clock, pki=NitroPki.create(clock=clock)) as bench:
        bench.serve()
        states = []
        for _ in range(25):
            clock.ahead += 3600
            bench.assembly.maintain_once()
            states.append((bench.assembly.over(), bench.health()["state"]))
        begun = states.index((True, "draining"))  # nobody is live, so it is over at once
        assert 19 <= begun <= 22
        assert set(states[:begun]) == {(False, "ready")}
        assert set(states[begun:]) == {(True, "draining")}


def test_what_is_under_way_at_the_end_is_answered(served: Bench) -> None:
    served.serve(name="endless", files={"m": onnx_bytes.endless()}, **SCALAR)
    outcomes: list[object] = []
    session = served.session()
    idle = served.connect()
    row = np.ones((), np.float32)

    def long_call() -> None:
        outcomes.append(served.infer(session, row, model="endless", budget=1500))

    before = served.counters()["requests"]
    thread = threading.Thread(target=long_call)
    thread.start()
    assert eventually(lambda: served.counters()["requests"] > before)
    time.sleep(0.2)
    served.server.finish()
    served.server.stop()
    thread.join(60)
    assert len(outcomes) == 1  # sealed, whatever it says
    with idle:
        assert idle.recv(1) == b""
    with pytest.raises(CasemateError):
        served.health()


@contextlib.contextmanager
def ending(server: Server) -> Iterator[None]:
    """End an enclave's life while the block runs."""

    def end() -> None:
        server.finish()
        server.stop()

    thread = threading.Thread(target=end)
    thread.start()
    try:
        yield
    finally:
        thread.join(60)
        assert not thread.is_alive()


def test_a_stream_under_way_at_the_end_is_asked_and_answered_to_its_own(served: Bench) -> None:
    session = served.session()
    floats = {name: TensorSpec(name, "FP32", (1,)) for name in ("n", "limit", "square")}
    served.serve(
        name="counting",
        files={"m": onnx_bytes.counting()},
        inputs=(floats["n"], floats["limit"]),
        outputs=(floats["square"],),
        loop=ModelLoop((LoopState("next", "n"),), "done", steps=50, interval=20),
    )
    question = to_request({"n": np.zeros(1, np.float32), "limit": np.full(1, 30, np.float32)})
    with served.connect() as channel:
        spoken = speak(channel, session, model="counting")
        spoken.begin(question)
        assert spoken.receive()
        with ending(served.server):
            spoken.ask(question)
            spoken.end()
            units = spoken.receive_all()
    assert spoken.complete
    assert {unit.trailer.status for unit in units} == {Code.OK}
    assert units[-1].trailer.unit == 2
    assert sum(unit.trailer.final for unit in units) == 3  # two answers and the end


@pytest.mark.parametrize("busy", [False, True], ids=["waits for questions", "runs"])
def test_a_stream_that_outlives_the_end_is_told_so(
    served: Bench, monkeypatch: pytest.MonkeyPatch, busy: bool
) -> None:
    """By a code upon which a client goes elsewhere, and not by a connection that is cut."""
    monkeypatch.setattr(limits, "FINISH_TIMEOUT_S", 1.0)
    session = served.session()
    served.serve(name="endless", files={"m": onnx_bytes.endless()}, **SCALAR)
    question = to_request({"x": np.ones((), np.float32)})
    with served.connect() as channel:
        spoken = speak(channel, session, model="endless")
        spoken.begin(*[question] if busy else [])
        assert eventually(lambda: served.counters()["streams"] == 1)
        time.sleep(0.2)
        begun = time.monotonic()
        with ending(served.server):
            with pytest.raises(FrameError) as told:
                spoken.receive_all()
            assert time.monotonic() - begun > 0.9
    assert told.value.code is Code.UNAVAILABLE


# Real processes

LIFE_S, DRAIN_S = 26, 6  # of processes on a quick machine; see pace()


@pytest.fixture
def world(tree: Path, short_path: Path) -> Iterator[LocalDeployment]:
    with living(tree, short_path, LIFE_S, DRAIN_S) as ready:
        yield ready


def pace() -> float:
    """How many times longer lives and drains must be, in this form on this machine."""
    return chosen_form().pace * slowness()


@contextlib.contextmanager
def living(tree: Path, folder: Path, life_s: int, drain_s: int) -> Iterator[LocalDeployment]:
    life, drain = round(1000 * life_s * pace()), round(1000 * drain_s * pace())
    short = replace(LOCAL_LIMITS, lifetime=life, drain=drain)
    with prepared(folder, tree, short) as ready:
        yield ready


def ask(client: Client) -> bytes:
    answer = client.infer(MODEL, {"features": DATA.features[:4]}, repeatable=True)
    assert len(answer.outputs["label"]) == 4
    return answer.evidence.instance_digest


def healthy(target: str) -> bool:
    """What the host's health service says."""
    with grpc.insecure_channel(target) as channel:
        check: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(
            "/grpc.health.v1.Health/Check"
        )
        try:
            answer = health_pb2.HealthCheckResponse.FromString(check(b"", timeout=20))
        except grpc.RpcError:
            return False
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def serving(replicas: list[Replica]) -> set[tuple[str, int]]:
    """Which of the replicas serve, each with the number of its life: none begins to serve twice."""
    found = set()
    for replica in replicas:
        life = replica.lives()
        if healthy(replica.target) and replica.lives() == life:
            found.add((replica.target, life))
    return found


class Watch:
    """Which of the replicas serve, looked at five times a second."""

    def __init__(self, replicas: list[Replica]) -> None:
        self._replicas = replicas
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look)
        self.latest: set[tuple[str, int]] = set()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._stop.wait(0.2):
            self.latest = serving(self._replicas)


@pytest.mark.slow
def test_no_repeatable_call_fails_while_lives_end_by_themselves(world: LocalDeployment) -> None:
    """Two replicas whose lives are 26 seconds (times ``pace``) by their measured configuration.

    A busy machine may take longer to start one than the other has left to live: a failed call
    counts if one and the same life served before it and after.
    """
    stop = threading.Event()
    failures: list[str] = []
    instances: set[bytes] = set()
    counts = [0, 0, 0]
    # Sessions of one client end before a drain does; those of another are cut at its bound.
    ages = [round((DRAIN_S - 2) * pace()), 300, 300]

    def load(number: int, replicas: list[Replica], watch: Watch) -> None:
        targets = [replica.target for replica in replicas[:: -1 if number else 1]]
        policy = world.trust_policy(maximum_age_seconds=ages[number])
        with Client(targets, policy, caller_key=world.clinic.signing_key) as client:
            while not stop.is_set():
                before = watch.latest
                try:
                    instances.add(ask(client))
                except CasemateError as error:
                    if before & serving(replicas):
                        failures.append(str(error))
                else:
                    counts[number] += 1
                time.sleep(0.01)

    sealed = [world.seal_model(DATA.onnx)]
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(Replica(world, sealed, options=["--restart"]))
        time.sleep(8)  # their ends are seconds apart, whatever each draws
        second = stack.enter_context(Replica(world, sealed, options=["--restart"]))
        replicas = [first, second]
        watch = stack.enter_context(Watch(replicas))
        threads = [threading.Thread(target=load, args=(n, replicas, watch)) for n in range(3)]
        for thread in threads:
            thread.start()
        until = time.monotonic() + 200 * slowness() + world.form.start_s
        try:
            while not all([first.lives() >= 2, second.lives() >= 2, min(counts) > 100]):
                assert time.monotonic() < until, f"not replaced, or not asked: {counts}"
                time.sleep(0.5)
        finally:
            stop.set()
            for thread in threads:
                thread.join()
    assert failures == []
    assert len(instances) >= 2
    log = (world.operator.directory / "enclave.log").read_text()
    assert log.count("status 0") >= 2
    assert log.count("DRAINING") >= 2
    assert "signal" not in log


@pytest.mark.slow
def test_the_operator_drains_an_enclave_and_its_sessions_go_on(
    tree: Path, short_path: Path
) -> None:
    with (
        living(tree, short_path, 600, 60) as world,
        Replica(world, [world.seal_model(DATA.onnx)], options=["--restart"]) as replica,
        world.client(target=replica.target) as live,
        world.client(target=replica.target) as late,
        HostConnection(replica.target) as host,
    ):
        former, within = ask(live), round(15 * pace())
        admin = [sys.executable, "-m", "casemate_host.admin", "--socket", str(replica.admin_socket)]
        told = subprocess.run(
            [*admin, "drain", str(within)], capture_output=True, timeout=60, check=True
        )
        assert json.loads(told.stdout)["until"] <= (time.time() + within + 1) * 1000
        assert eventually(lambda: not healthy(replica.target))
        assert ask(live) == former
        with pytest.raises(RequestError) as refused:
            late.infer(MODEL, {"features": DATA.features[:4]})
        assert refused.value.code is Code.UNAVAILABLE
        assert "draining" in refused.value.detail
        # Whoever has an answer already may still verify who gave it.
        assert digest(host.get_evidence(None, 60, former).instance_config) == former
        assert eventually(lambda: healthy(replica.target), 60 + world.form.start_s)
        assert ask(live) != former
        assert ask(late) != former
