"""TLS, egress and time between the enclave and KMS (SPEC 9.4, 10.1)."""

from __future__ import annotations

import socket
import threading
import time

import pytest

from casemate import limits
from casemate.attestation.structures import KmsConfiguration
from casemate.errors import Code, KeyReleaseError
from casemate_kms.client import AttestedKms
from tests.support.attacker import eventually
from tests.support.kms_bench import AUTHORITY, Bench
from tests.support.kms_endpoint import (
    DATA_KEY,
    HOST,
    REGION,
    Authority,
    FakeAttester,
    held,
)


def test_a_connection_that_kms_closed_is_replaced(bench: Bench) -> None:
    bench.kms.keep_alive = False
    bench.decrypt()
    bench.decrypt()
    assert len({seen.peer for seen in bench.kms.seen}) == 2
    assert len(bench.attester.asked) == 2


def test_a_connection_that_kms_closed_unannounced_is_replaced(bench: Bench) -> None:
    bench.kms.idle = 1.0
    bench.decrypt()
    assert eventually(lambda: bench.egress.ended == 1)  # so the enclave can tell
    bench.kms.idle = None  # the next request may be long in coming
    bench.decrypt()
    assert len({seen.peer for seen in bench.kms.seen}) == 2
    assert len(bench.attester.asked) == 2


def test_an_old_idle_connection_is_replaced(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.decrypt()
    monkeypatch.setattr(limits, "KMS_IDLE_S", 0.0)
    bench.decrypt()
    assert len({seen.peer for seen in bench.kms.seen}) == 2


def test_another_authority_is_not_trusted(bench: Bench) -> None:
    bench.trusting(Authority().der)
    error = bench.failing()
    assert error.code is Code.KEY_RELEASE_UNAVAILABLE
    assert "TLS" in error.detail
    assert bench.kms.seen == []
    assert len(bench.egress.names) == 1


def test_another_host_name_is_not_accepted(misnamed: Bench) -> None:
    error = misnamed.failing()
    assert error.code is Code.KEY_RELEASE_UNAVAILABLE
    assert "mismatch" in error.detail
    assert misnamed.kms.seen == []


def test_a_root_that_is_no_certificate_is_refused() -> None:
    configuration = KmsConfiguration("aws", (REGION,), (AUTHORITY.der, b"junk"))
    with pytest.raises(KeyReleaseError) as caught:
        AttestedKms(configuration, FakeAttester(), lambda *_: socket.socket())
    assert caught.value.code is Code.MALFORMED


def test_every_configured_root_is_trusted(bench: Bench) -> None:
    bench.trusting(Authority("first").der, AUTHORITY.der)
    assert bench.decrypt() == DATA_KEY


def test_a_destination_off_the_list_is_not_asked_for_again(bench: Bench) -> None:
    bench.egress.ports = {}
    error = bench.failing()
    assert error.code is Code.KEY_RELEASE_UNAVAILABLE
    assert "list" in error.detail
    assert len(bench.egress.names) == 1


@pytest.mark.parametrize("verdict", [b"\x02", b"\x03", b""])
def test_an_unreachable_destination_is_asked_for_again(bench: Bench, verdict: bytes) -> None:
    bench.egress.verdict = verdict
    assert bench.failing().code is Code.KEY_RELEASE_UNAVAILABLE
    assert len(bench.egress.names) == limits.KMS_ATTEMPTS


def test_a_dead_proxy(bench: Bench) -> None:
    bench.egress.path += ".gone"
    bench.trusting(AUTHORITY.der)
    start = time.monotonic()
    error = bench.failing(200)
    assert error.code is Code.KEY_RELEASE_UNAVAILABLE
    assert "egress" in error.detail
    assert time.monotonic() - start < 60  # no attempt waits for its time-out


def test_a_proxy_that_connects_and_hangs_up(bench: Bench) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        bench.egress.ports = {f"{HOST}:443": closed.getsockname()[1]}
        assert bench.failing().code is Code.KEY_RELEASE_UNAVAILABLE


@pytest.mark.parametrize("trouble", ["slow", "silent", "drip", "dribble"])
def test_the_deadline_holds(bench: Bench, trouble: str) -> None:
    bench.decrypt()  # makes key and client, which takes a busy machine its time
    bench.client.close()
    if trouble == "slow":
        bench.kms.answers = [held(threading.Event())]
    elif trouble == "silent":
        bench.egress.swallow = True
    elif trouble == "drip":
        bench.egress.drip = 0.02
    else:
        bench.kms.dribble = 0.02
    start = time.monotonic()
    error = bench.failing(0.6)
    assert error.code is Code.KEY_RELEASE_UNAVAILABLE
    assert time.monotonic() - start < 60


def test_no_time_left(bench: Bench) -> None:
    assert bench.failing(-1).code is Code.KEY_RELEASE_UNAVAILABLE
    assert bench.egress.names == []


def test_garbage_instead_of_tls(bench: Bench) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            stream, _ = server.accept()
            with stream:
                stream.recv(4096)
                stream.sendall(b"HTTP/1.1 200 OK\r\n\r\n")

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        bench.egress.ports = {f"{HOST}:443": server.getsockname()[1]}
        assert bench.failing().code is Code.KEY_RELEASE_UNAVAILABLE
        thread.join()
