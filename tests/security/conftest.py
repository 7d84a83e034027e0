"""What the attacks on the running deployment share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import onnxruntime
import pytest

from casemate_devkit.local import MODEL
from tests.support.attacker import ROWS, second_host
from tests.support.deployment import DATA
from tests.support.framed_middle import Middleman, client_of, offer_of
from tests.support.lying import LyingHost, LyingRelay, honest, honest_frame, honest_stream

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from casemate.client import Client
    from casemate_devkit.local import LocalDeployment


@pytest.fixture(scope="session")
def clinic(deployment: LocalDeployment) -> Iterator[Client]:
    """The clinic's client, connected before every attack and after."""
    with deployment.client() as client:
        yield client


@pytest.fixture(scope="session")
def expected() -> dict[str, bytes]:
    """What plain onnxruntime says of the rows that everybody sends."""
    plain = onnxruntime.InferenceSession(DATA.onnx, providers=["CPUExecutionProvider"])
    names = ["label", "probabilities"]
    outputs = plain.run(names, {"features": ROWS})
    return {name: array.tobytes() for name, array in zip(names, outputs, strict=True)}


@pytest.fixture
def still_serves(clinic: Client, expected: dict[str, bytes]) -> Iterator[Callable[[], None]]:
    """Whether the next good request is answered correctly; checked after the test in any case."""

    def check() -> None:
        result = clinic.infer(MODEL, {"features": ROWS}, version=1, repeatable=True)
        assert {name: array.tobytes() for name, array in result.outputs.items()} == expected

    yield check
    check()


@pytest.fixture(scope="session")
def _lying_host(deployment: LocalDeployment) -> Iterator[LyingHost]:
    with LyingHost(deployment.target) as host:
        yield host


@pytest.fixture
def lying_host(_lying_host: LyingHost) -> Iterator[LyingHost]:
    """A host that lies to clients, in front of the genuine one; honest again after each test."""
    yield _lying_host
    _lying_host.evidence = _lying_host.infer = honest
    _lying_host.stream = honest_stream
    _lying_host.many = None
    _lying_host.offers = tuple


@pytest.fixture(scope="session")
def _relay(deployment: LocalDeployment) -> Iterator[tuple[LyingRelay, str]]:
    front = deployment.operator.directory / "lying.sock"
    with (
        LyingRelay(front, deployment.run / "enclave.sock") as relay,
        second_host(deployment, front) as host,
    ):
        yield relay, host.ready["address"]


@pytest.fixture
def lying_relay(_relay: tuple[LyingRelay, str]) -> Iterator[LyingRelay]:
    """What lies between an honest host and the enclave; honest again after each test."""
    yield _relay[0]
    _relay[0].lie = honest_frame


@pytest.fixture
def relayed_target(_relay: tuple[LyingRelay, str]) -> str:
    """The address of the honest host behind which ``lying_relay`` stands."""
    return _relay[1]


@pytest.fixture
def between(deployment: LocalDeployment, lying_host: LyingHost) -> Iterator[Middleman]:
    """Stands between clients of ``lying_host`` and the genuine host's port for frames."""
    offer = offer_of(deployment.target)
    with Middleman(offer.port) as made:
        lying_host.offers = lambda: made.offers(offer.host_id)
        yield made


@pytest.fixture(params=["blocking", "loop"])
def client(
    request: pytest.FixtureRequest, deployment: LocalDeployment, lying_host: LyingHost
) -> Iterator[Any]:
    """The clinic's client, of either kind, for the host that offers the way through ``between``."""
    with client_of(request.param, deployment, lying_host.target) as made:
        yield made
