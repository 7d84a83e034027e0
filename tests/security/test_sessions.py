"""The session table under pressure (THREATS.md: C10), with a real enclave of a small table."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from casemate.errors import CasemateError, Code
from casemate_devkit.local import LIMITS
from tests.support.attacker import genuine, start_session, verified
from tests.support.deployment import DATA, prepared

if TYPE_CHECKING:
    from collections.abc import Iterator

    from casemate_devkit.local import LocalDeployment
    from tests.support.attacker import Session

pytestmark = pytest.mark.integration
SESSIONS = 64  # of which strangers may have 32, and the clinic 8


@pytest.fixture(scope="module")
def world(tree: Path) -> Iterator[LocalDeployment]:
    with (
        tempfile.TemporaryDirectory(prefix="cm-") as folder,
        prepared(Path(folder), tree, replace(LIMITS, sessions=SESSIONS)) as made,
    ):
        sealed = made.seal_model(DATA.onnx)
        made.start_enclave()
        made.start_host([sealed])
        made.wait_until_serving()
        yield made


def status(session: Session, world: LocalDeployment) -> Code:
    try:
        return session.ask(genuine(world)).trailer.status
    except CasemateError as error:
        return error.code


def taken(world: LocalDeployment, caller: Ed25519PrivateKey | None, tries: int) -> list[Session]:
    """Begin sessions of an hour until one is refused; return those that were begun."""
    evidence = verified(world)
    begun: list[Session] = []
    for _ in range(tries):
        session = start_session(world, caller=caller, lifetime_ms=3_600_000, evidence=evidence)
        if status(session, world) is Code.OVERLOADED:
            return begun
        begun.append(session)
    return begun


def test_c10_strangers_fill_their_share_and_listed_callers_keep_a_reserve(
    world: LocalDeployment,
) -> None:
    anonymous = taken(world, None, SESSIONS)
    assert len(anonymous) == SESSIONS // 2
    # A key that no loaded model lists is as good as none, and there is no end of them.
    for _ in range(3):
        assert not taken(world, Ed25519PrivateKey.generate(), 1)
    # The clinic, whom the model lists, begins sessions all the same, and is answered.
    evidence = verified(world)
    clinics = [start_session(world, evidence=evidence) for _ in range(3)]
    assert [status(session, world) for session in clinics] == [Code.OK] * 3
    with world.client() as client:
        assert client.infer("wdbc", {"features": DATA.features[:1]}).outputs
    # Nobody who is in is thrown out.
    refused = {status(session, world) for session in anonymous}
    assert refused == {Code.CALLER_REFUSED}  # sealed by the enclave: its session lives


def test_c10_one_listed_caller_does_not_fill_the_reserve(world: LocalDeployment) -> None:
    mine = taken(world, world.clinic.signing_key, SESSIONS)
    assert len(mine) < SESSIONS // 8 + 1
    assert status(mine[0], world) is Code.OK
    assert not taken(world, world.clinic.signing_key, 1)
