"""Replays, restarts and death in the middle (THREATS.md: H3, H10, H13, H19, H21, M5, S3).

These attacks end enclaves, so they have a deployment of their own.
"""

from __future__ import annotations

import contextlib
import os
import signal
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from casemate.client.seal import seal_onnx
from casemate.errors import CasemateError, Code
from casemate.frames import FrameType
from casemate_devkit.local import MODEL
from tests.support.attacker import (
    ROWS,
    EnclaveSocket,
    eventually,
    genuine,
    now_ms,
    refusal,
    start_session,
)
from tests.support.deployment import DATA, running

if TYPE_CHECKING:
    from collections.abc import Iterator

    from casemate.client import Client
    from casemate.envelope.sealing import SealedCall
    from casemate_devkit.local import LocalDeployment

pytestmark = pytest.mark.integration
WANTED = {"features": ROWS}


@pytest.fixture(scope="module")
def world(tree: Path) -> Iterator[LocalDeployment]:
    with tempfile.TemporaryDirectory(prefix="cm-") as folder, running(Path(folder), tree) as made:
        yield made


@pytest.fixture
def client(world: LocalDeployment) -> Iterator[Client]:
    with world.client() as connected:
        yield connected


def deliver(world: LocalDeployment, call: SealedCall) -> Code:
    """Deliver a sealed call to the enclave that runs now."""
    try:
        answer = call.open(*genuine(world).request(call.header, call.ciphertext))
    except CasemateError as error:
        return error.code
    return answer.trailer.status


def restart(world: LocalDeployment) -> None:
    """End the enclave as a crash would and start another one; wait until it serves."""
    assert world.enclave is not None
    world.enclave.stop()
    world.start_enclave()
    world.wait_until_serving()


def test_h3_a_replayed_request_is_refused_on_every_way_in(
    world: LocalDeployment, client: Client
) -> None:
    for mode in ("hpke", "kms"):
        call = start_session(world, mode=mode).seal()
        assert deliver(world, call) is Code.OK
        assert [deliver(world, call) for _ in range(3)] == [Code.REPLAYED] * 3
        with pytest.raises(CasemateError, match="REPLAYED"):
            client._targets.in_order()[0].infer(call.header, call.ciphertext, 10)
    assert client.infer(MODEL, WANTED).model == MODEL


def test_h3_a_replay_after_the_sessions_end_is_refused(world: LocalDeployment) -> None:
    for mode in ("hpke", "kms"):
        session = start_session(world, mode=mode, lifetime_ms=1500)
        calls = [session.seal() for _ in range(2)]
        assert deliver(world, calls[0]) is Code.OK
        time.sleep(1.6)
        # The table has forgotten the session by now: its end is what refuses.
        assert [deliver(world, call) for call in calls] == [Code.EXPIRED] * 2


def test_h3_h19_h21_nothing_of_before_a_restart_is_taken_after_it(
    world: LocalDeployment, client: Client
) -> None:
    """Answered and unanswered requests of both key modes, delivered to the next enclave."""
    assert client.infer(MODEL, WANTED).model == MODEL
    named = {mode: start_session(world, mode=mode) for mode in ("hpke", "kms")}
    anywhere = start_session(world, mode="kms", any_instance=True)
    spent = [session.seal() for session in (*named.values(), anywhere)]
    unspent = [session.seal() for session in (*named.values(), anywhere)]
    assert [deliver(world, call) for call in spent] == [Code.OK] * 3
    begun = now_ms()

    restart(world)

    refused = [Code.UNKNOWN_KEY, Code.UNKNOWN_KEY, Code.STALE_SESSION]
    assert [deliver(world, call) for call in spent] == refused
    assert [deliver(world, call) for call in unspent] == refused
    # A session that names no instance, and begins after the boot, is taken: once.
    late = start_session(world, mode="kms", any_instance=True, not_before=now_ms())
    assert late.evidence.instance.boot_time >= begun
    call = late.seal()
    assert [deliver(world, call) for _ in range(2)] == [Code.OK, Code.REPLAYED]
    # The client's own session died with the enclave: it says so, and the next call is resealed.
    assert refusal(lambda: client.infer(MODEL, WANTED)) in {Code.UNKNOWN_KEY, Code.UNAVAILABLE}
    assert client.infer(MODEL, WANTED).model == MODEL


def test_h19_a_repeatable_call_is_resealed_to_newly_verified_evidence(
    world: LocalDeployment, client: Client
) -> None:
    before = client.infer(MODEL, WANTED).evidence.instance.instance_id
    restart(world)
    after = client.infer(MODEL, WANTED, repeatable=True).evidence.instance.instance_id
    assert before != after


def test_h13_an_enclave_killed_within_a_request_is_unavailable_and_no_answer(
    world: LocalDeployment, client: Client
) -> None:
    """It is stopped with the request inside, then killed: nobody ever learns a wrong answer."""
    assert client.infer(MODEL, WANTED).model == MODEL
    assert world.enclave is not None
    pid = int(world.enclave.ready["pid"])
    outcomes: list[Code] = []
    os.kill(pid, signal.SIGSTOP)
    threads = [
        threading.Thread(
            target=lambda: outcomes.append(
                refusal(lambda: client.infer(MODEL, WANTED, timeout_s=20))
            )
        )
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    time.sleep(0.5)
    os.kill(pid, signal.SIGKILL)
    for thread in threads:
        thread.join()
    assert set(outcomes) <= {Code.UNAVAILABLE, Code.UNKNOWN_KEY}
    assert len(outcomes) == 4
    assert eventually(lambda: world.enclave is not None and not world.enclave.running())
    world.start_enclave()
    world.wait_until_serving()
    assert client.infer(MODEL, WANTED, repeatable=True).model == MODEL


def test_h13_a_host_killed_within_a_request_leaves_the_enclave_serving(
    world: LocalDeployment,
) -> None:
    assert world.host is not None
    sealed = world.vendor.directory / f"{MODEL}-1.sealed"
    world.host.kill()
    assert start_session(world).ask(genuine(world)).trailer.status is Code.OK
    world.relay_tap.close()
    world.egress_tap.close()
    world.start_host([sealed], tapped=False)
    world.wait_until_serving()
    with world.client() as client:
        assert client.infer(MODEL, WANTED).model == MODEL


def test_h10_a_frozen_enclave_ends_sessions_by_the_devices_time(world: LocalDeployment) -> None:
    """The host freezes the enclave with a request inside until the session is over."""
    assert world.enclave is not None
    pid = int(world.enclave.ready["pid"])
    session = start_session(world, lifetime_ms=2000)
    held = session.seal()
    outcome: list[Code] = []
    os.kill(pid, signal.SIGSTOP)
    try:
        thread = threading.Thread(target=lambda: outcome.append(deliver(world, held)))
        thread.start()
        time.sleep(2.5)
    finally:
        os.kill(pid, signal.SIGCONT)
    thread.join()
    assert outcome == [Code.EXPIRED]
    assert start_session(world).ask(genuine(world)).trailer.status is Code.OK


@contextlib.contextmanager
def host_stopped(world: LocalDeployment) -> Iterator[EnclaveSocket]:
    """Keep the honest host from interfering, as its operator would."""
    assert world.host is not None
    os.kill(world.host.pid, signal.SIGSTOP)
    try:
        yield genuine(world)
    finally:
        os.kill(world.host.pid, signal.SIGCONT)


def test_m5_another_model_under_the_same_name_and_version_meets_the_clients_pin(
    world: LocalDeployment, client: Client, tmp_path: Path
) -> None:
    """The publisher sealed two files as version 1; the operator swaps them within a session."""
    pinned = client.infer(MODEL, WANTED)
    variant = tmp_path / "wdbc.onnx"
    weights = bytearray(DATA.onnx.read_bytes())
    weights[len(weights) // 2] ^= 1
    variant.write_bytes(bytes(weights))
    other = tmp_path / "other.sealed"
    seal(world, variant, other)
    session = start_session(world)
    with host_stopped(world) as enclave:
        enclave.unload(MODEL, 1)
        enclave.load(other.read_bytes())
        answer = session.ask(enclave, digest=pinned.digest)
        assert (answer.trailer.status, answer.message) == (Code.DIGEST_MISMATCH, None)
        log = start_session(world).evidence.log
        assert [entry.op for entry in log][-2:] == ["unload", "load"]  # visible to whoever verifies
        enclave.unload(MODEL, 1)
        enclave.load((world.vendor.directory / f"{MODEL}-1.sealed").read_bytes())
    assert client.infer(MODEL, WANTED).digest == pinned.digest


def seal(
    world: LocalDeployment,
    onnx: Path,
    output: Path,
    *,
    publisher: Ed25519PrivateKey | None = None,
    version: int = 1,
) -> None:
    seal_onnx(
        onnx,
        output,
        name=MODEL,
        version=version,
        publisher=publisher or world.vendor.signing_key,
        kms_key=world.vendor_key,
        callers=(world.clinic.public_key,),
        kms=world.aws.kms(world.vendor.principals["sealer"]),
    )


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT])
def test_s3_an_enclave_that_crashes_leaves_no_core_behind(
    world: LocalDeployment, number: signal.Signals
) -> None:
    assert world.enclave is not None
    session = start_session(world)
    assert session.ask(genuine(world)).trailer.status is Code.OK
    os.kill(int(world.enclave.ready["pid"]), number)
    assert eventually(lambda: world.enclave is not None and not world.enclave.running())
    roots = [world.base, world.tree, Path.cwd(), Path(tempfile.gettempdir())]
    pattern = Path("/proc/sys/kernel/core_pattern").read_text(encoding="ascii").strip()
    name = "core" if pattern.startswith("|") else Path(pattern).name.partition("%")[0] or "core"
    cores = [
        path
        for root in roots
        for path in (root.rglob(f"{name}*") if root == world.base else root.glob(f"{name}*"))
        if path.is_file() and path.stat().st_mtime > time.time() - 60 and b"\x7fELF" == head(path)
    ]
    assert cores == []
    world.start_enclave()
    world.wait_until_serving()
    assert start_session(world).ask(genuine(world)).trailer.status is Code.OK


def head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(4)


def test_h3_counters_show_replays_as_refused_and_nothing_else(world: LocalDeployment) -> None:
    session, enclave = start_session(world), genuine(world)
    call = session.seal()
    assert deliver(world, call) is Code.OK
    before = enclave.counters()
    assert deliver(world, call) is Code.REPLAYED
    after = enclave.counters()
    moved = {name for name in after if after[name] != before[name]}
    assert moved <= {"connections_accepted", "requests", "requests_refused", "frames_refused"}
    assert enclave.ask(FrameType.HEALTH)

