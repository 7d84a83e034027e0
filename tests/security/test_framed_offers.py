"""A host that sends its clients elsewhere for frames (SPEC 9.6.3; THREATS H24)."""

from __future__ import annotations

import itertools
import secrets
import threading
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
import pytest

from casemate import framed, limits
from casemate.client import Client, HostAccess
from casemate.framed import Offer
from casemate_devkit.local import MODEL
from tests.support.aio import LoopedClient
from tests.support.attacker import ROWS, eventually, second_host
from tests.support.deployment import DATA
from tests.support.framed_middle import Bystander, Middleman, offer_of
from tests.support.front_pki import FrontPki
from tests.support.lying import LyingHost

if TYPE_CHECKING:
    from pathlib import Path

    from casemate_devkit.local import LocalDeployment

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("still_serves")]

CALLS = limits.CALL_STREAM_AFTER + 8
LARGE = np.tile(DATA.features, (8, 1))  # more than travels with others
ID = bytes(range(framed.ID_BYTES))
KINDS = {"blocking": Client, "loop": LoopedClient}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Any:  # noqa: ANN401 - of two classes with the same methods
    return KINDS[request.param]


def client_of(kind: Any, deployment: LocalDeployment, target: str, **more: Any) -> Any:  # noqa: ANN401
    key = deployment.clinic.signing_key
    return kind(target, deployment.trust_policy(), caller_key=key, **more)


def ask(client: Any, expected: dict[str, bytes]) -> None:  # noqa: ANN401
    """Ask often enough for a client to go elsewhere; every answer is right."""
    for _ in range(CALLS):
        outputs = client.infer(MODEL, {"features": ROWS}, timeout_s=60).outputs
        assert {name: array.tobytes() for name, array in outputs.items()} == expected
    outputs = client.infer(MODEL, {"features": LARGE}, timeout_s=60).outputs
    assert len(outputs["label"]) == len(LARGE)


BANNERS = {
    "silent": b"",
    "mail": b"220 mail.clinic.example ESMTP\r\n",
    "another host": Offer(1, secrets.token_bytes(framed.ID_BYTES)).greeting,
    "another version": Offer(1, ID).greeting.replace(b"\x01" + ID, b"\x02" + ID),
    "one byte short": Offer(1, ID).greeting[:-1],
    "http2": bytes([0, 0, 18, 4, 0, 0, 0, 0, 0]) + bytes(18),
    "endless": secrets.token_bytes(1 << 20),
}


@pytest.mark.parametrize("banner", BANNERS)
def test_h24_a_service_that_is_not_the_host_hears_not_one_byte(
    deployment: LocalDeployment,
    lying_host: LyingHost,
    expected: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
    kind: Any,  # noqa: ANN401
    banner: str,
) -> None:
    """Nor is a call held up by one that never speaks: none of these could wait so long."""
    monkeypatch.setattr(limits, "FRAMED_CONNECT_S", 1000.0)
    with Bystander(BANNERS[banner]) as bystander:
        lying_host.offers = lambda: (Offer(bystander.port, ID).text,)
        with client_of(kind, deployment, lying_host.target) as client:
            ask(client, expected)
            assert eventually(lambda: bystander.visits > 0)
            ask(client, expected)
        assert eventually(lambda: bystander.left == 0)
        assert bystander.told == b""


def test_h24_another_host_of_the_service_hears_not_one_byte(
    deployment: LocalDeployment,
    lying_host: LyingHost,
    expected: dict[str, bytes],
    kind: Any,  # noqa: ANN401
) -> None:
    """What a balancer does by chance: the port is a genuine host's, and not this one's."""
    with second_host(deployment) as other:
        offer = offer_of(other.ready["address"])
        with Middleman(offer.port) as between:
            lying_host.offers = lambda: between.offers(offer_of(deployment.target).host_id)
            with client_of(kind, deployment, lying_host.target) as client:
                ask(client, expected)
                assert eventually(lambda: between.connections > 0)
                ask(client, expected)
            assert between.kinds(to_host=True) == []


def test_h24_nobody_at_the_port_costs_no_answer(
    deployment: LocalDeployment,
    lying_host: LyingHost,
    expected: dict[str, bytes],
    kind: Any,  # noqa: ANN401
) -> None:
    with Bystander() as bystander:
        gone = bystander.port
    lying_host.offers = lambda: (Offer(gone, ID).text,)
    with client_of(kind, deployment, lying_host.target) as client:
        ask(client, expected)


@pytest.mark.parametrize(
    "shape",
    [
        *(
            "{port} {id}00",
            "0{port} {id}",
            "{port}  {id}",
            " {port} {id}",
            "{port} {id} ",
            "{port}",
        ),
        *("{port} {upper}", "+{port} {id}", "127.0.0.1:{port} {id}", "{port},{id}", ""),
        *("{port} {id}" + "0" * 6000, "9" * 7000),
    ],
)
def test_h24_what_is_no_offer_leads_nowhere(
    deployment: LocalDeployment, lying_host: LyingHost, expected: dict[str, bytes], shape: str
) -> None:
    host_id = bytes([0xAB]) * framed.ID_BYTES
    with Bystander() as bystander:
        text = shape.format(port=bystander.port, id=host_id.hex(), upper=host_id.hex().upper())
        lying_host.offers = lambda: (text,)
        with deployment.client(target=lying_host.target) as client:
            ask(client, expected)
        assert bystander.visits == 0


def test_h24_an_offer_through_tls_is_not_taken(
    deployment: LocalDeployment,
    expected: dict[str, bytes],
    tmp_path: Path,
    kind: Any,  # noqa: ANN401
) -> None:
    """Whoever asked for TLS sends nothing beside it (SPEC 9.6.3)."""
    pki = FrontPki(tmp_path)
    pem, key = pki.issue("localhost")
    access = HostAccess(tls_roots=pki.root.read_bytes())
    tls = grpc.ssl_server_credentials([(key, pem)])
    with LyingHost(deployment.target, tls) as host, Bystander(Offer(1, ID).greeting) as bystander:
        host.offers = lambda: (Offer(bystander.port, ID).text,)
        target = host.target.replace("127.0.0.1", "localhost")
        with client_of(kind, deployment, target, access=access) as client:
            ask(client, expected)
        assert bystander.visits == 0


def test_h24_an_offer_that_changes_with_every_evidence_gathers_nothing(
    deployment: LocalDeployment,
    lying_host: LyingHost,
    expected: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
    kind: Any,  # noqa: ANN401
) -> None:
    """Neither threads nor sockets: at most the last attempt is under way."""
    monkeypatch.setattr(limits, "FRAMED_CONNECT_S", 1000.0)
    bystanders = [Bystander() for _ in range(24)]
    turns = itertools.cycle(bystanders)
    lying_host.offers = lambda: (Offer(next(turns).port, ID).text,)
    before = threading.active_count()
    with client_of(kind, deployment, lying_host.target) as client:
        for _ in range(8):
            client.verify(timeout_s=60)
            ask(client, expected)
        assert sum(each.visits for each in bystanders) > 0
        assert eventually(lambda: sum(each.left for each in bystanders) <= 2)
        assert eventually(lambda: threading.active_count() - before < 12)
    assert eventually(lambda: sum(each.left for each in bystanders) == 0)
    assert b"".join(each.told for each in bystanders) == b""
    for each in bystanders:
        with each:
            pass
