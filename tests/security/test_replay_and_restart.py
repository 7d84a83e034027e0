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

from casemate.client.seal import seal_onnx
from casemate.errors import CasemateError, Code
from casemate.frames import FrameType
from casemate_devkit.local import MODEL
from tests.support import onnx_bytes
from tests.support.attacker import (
    ROWS,
    eventually,
    freeze,
    genuine,
    now_ms,
    refusal,
    start_session,
    wait_for_host,
)
from tests.support.deployment import DATA, running
from tests.support.patience import patiently

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
    wait_for_host(world.target)


def test_h3_a_replayed_request_is_refused_on_every_way_in(
    world: LocalDeployment, client: Client
) -> None:
    for mode in ("hpke", "kms"):
        call = start_session(world, mode=mode).seal()
        assert deliver(world, call) is Code.OK
        assert [deliver(world, call) for _ in range(3)] == [Code.REPLAYED] * 3
        with pytest.raises(CasemateError, match="REPLAYED"):
            client._parts.get().targets.in_order()[0].infer(call.header, call.ciphertext, 60)
    assert client.infer(MODEL, WANTED).model == MODEL


def test_h3_a_replay_after_the_sessions_end_is_refused(world: LocalDeployment) -> None:
    for mode in ("hpke", "kms"):

        def in_time(life_s: float, mode: str = mode) -> bool:
            """Whether a session of so many seconds was served before its end."""
            session = start_session(world, mode=mode, lifetime_ms=round(life_s * 1000))
            calls = [session.seal() for _ in range(2)]
            served = deliver(world, calls[0]) is Code.OK
            time.sleep(life_s + 0.1)
            # The table has forgotten the session by now: its end is what refuses.
            assert [deliver(world, call) for call in calls] == [Code.EXPIRED] * 2
            return served

        assert patiently(in_time, bool, (1.5, 10, 40))


def test_h3_h19_h21_nothing_of_before_a_restart_is_taken_after_it(
    world: LocalDeployment, client: Client
) -> None:
    """Answered and unanswered requests of both key modes, delivered to the next enclave."""
    with world.client() as patient:
        before = patient.infer(MODEL, WANTED).evidence.instance.instance_id
        refused_after_restart(world, client)
        # A call that may be repeated is sealed once more, to newly verified evidence.
        after = patient.infer(MODEL, WANTED, repeatable=True).evidence.instance.instance_id
    assert before != after


def refused_after_restart(world: LocalDeployment, client: Client) -> None:
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


def test_h13_an_enclave_killed_within_a_request_is_unavailable_and_no_answer(
    world: LocalDeployment, client: Client
) -> None:
    """It is stopped with the request inside, then killed: nobody ever learns a wrong answer."""
    assert client.infer(MODEL, WANTED).model == MODEL
    assert world.enclave is not None
    pid = int(world.enclave.ready["pid"])
    outcomes: list[Code] = []
    freeze(pid)
    threads = [
        threading.Thread(
            target=lambda: outcomes.append(
                refusal(lambda: client.infer(MODEL, WANTED, timeout_s=80))
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
    wait_for_host(world.target)
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
    wait_for_host(world.target)
    with world.client() as client:
        assert client.infer(MODEL, WANTED).model == MODEL


def test_h10_a_frozen_enclave_ends_sessions_by_the_devices_time(world: LocalDeployment) -> None:
    """The host freezes the enclave with a request inside until the session is over."""
    assert world.enclave is not None
    pid = int(world.enclave.ready["pid"])
    session = start_session(world, lifetime_ms=2000)
    held = session.seal()
    outcome: list[Code] = []
    freeze(pid)
    try:
        thread = threading.Thread(target=lambda: outcome.append(deliver(world, held)))
        thread.start()
        time.sleep(2.5)
    finally:
        os.kill(pid, signal.SIGCONT)
    thread.join()
    assert outcome == [Code.EXPIRED]
    assert start_session(world).ask(genuine(world)).trailer.status is Code.OK


def swap(world: LocalDeployment, content: bytes) -> None:
    """Replace version 1 by ``content``, faster than the honest host loads its file again."""
    enclave = genuine(world)
    for _ in range(5):
        with contextlib.suppress(CasemateError):
            enclave.unload(MODEL, 1)
            enclave.load(content)
            return
    pytest.fail("the host was faster every time")


def test_m5_another_model_under_the_same_name_and_version_meets_the_clients_pin(
    world: LocalDeployment, client: Client, tmp_path: Path
) -> None:
    """The publisher sealed two files as version 1; the operator swaps them within a session."""
    pinned = client.infer(MODEL, WANTED)
    variant = tmp_path / "wdbc.onnx"
    variant.write_bytes(DATA.onnx.read_bytes() + onnx_bytes.field(2, "another producer"))
    other = tmp_path / "other.sealed"
    seal(world, variant, other)
    session = start_session(world)
    swap(world, other.read_bytes())
    answer = session.ask(genuine(world), digest=pinned.digest)
    assert (answer.trailer.status, answer.message) == (Code.DIGEST_MISMATCH, None)
    assert refusal(lambda: client.infer(MODEL, WANTED)) is Code.DIGEST_MISMATCH
    log = start_session(world).evidence.log
    assert [entry.op for entry in log][-2:] == ["unload", "load"]  # visible to whoever verifies
    swap(world, (world.vendor.directory / f"{MODEL}-1.sealed").read_bytes())
    assert client.infer(MODEL, WANTED).digest == pinned.digest


def seal(
    world: LocalDeployment,
    onnx: Path,
    output: Path,
) -> None:
    seal_onnx(
        onnx,
        output,
        name=MODEL,
        version=1,
        publisher=world.vendor.signing_key,
        kms_key=world.vendor_key,
        callers=(world.clinic.public_key,),
        kms=world.aws.kms(world.vendor.principals["sealer"]),
    )


def test_s3_signals_that_would_dump_core_do_nothing_and_leave_nothing(
    world: LocalDeployment,
) -> None:
    assert world.enclave is not None
    pid = int(world.enclave.ready["pid"])
    session = start_session(world)
    for number in (signal.SIGSEGV, signal.SIGABRT, signal.SIGQUIT, signal.SIGTRAP):
        os.kill(pid, number)
    assert session.ask(genuine(world)).trailer.status is Code.OK
    limits = Path(f"/proc/{pid}/limits").read_text(encoding="ascii")
    assert limits.partition("Max core file size")[2].split()[:2] == ["0", "0"]
    found = [*world.base.rglob("core*"), *world.tree.glob("core*"), *Path.cwd().glob("core*")]
    assert not [path for path in found if path.is_file() and head(path) == b"\x7fELF"]


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
    moved -= {"connections_accepted", "evidence"}  # the honest host's own
    assert moved == {"requests", "requests_refused", "frames_refused"}
    assert enclave.ask(FrameType.HEALTH)
