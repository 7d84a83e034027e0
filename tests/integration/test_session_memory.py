"""A thousand sessions cost less than ten megabytes, in the enclave and in the host together."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from casemate.client.transport import HostConnection
from casemate.errors import Code
from tests.support.attacker import resident_kib, start_session
from tests.support.deployment import DATA, prepared

if TYPE_CHECKING:
    from pathlib import Path

    from casemate.attestation import VerifiedEvidence
    from casemate_devkit.local import LocalDeployment

pytestmark = [
    pytest.mark.integration,
    pytest.mark.slow,
    pytest.mark.process_form("a machine never gives memory back: its process is no measure"),
]

SESSIONS, MOST_KIB = 1000, 10_000_000 // 1024
WARM = 400  # what libraries and allocators take once is not the sessions'


def test_a_thousand_sessions_cost_less_than_ten_megabytes(tree: Path, short_path: Path) -> None:
    with prepared(short_path, tree) as world:
        sealed = world.seal_model(DATA.onnx)
        enclave = world.start_enclave()
        host = world.start_host([sealed], tapped=False)
        world.wait_until_serving()
        with HostConnection(world.target) as connection, world.client() as client:
            evidence = client.verify()
            use_sessions(world, connection, evidence, WARM)
            before = resident_kib(enclave.ready["pid"]) + resident_kib(host.pid)
            use_sessions(world, connection, evidence, SESSIONS)
            after = resident_kib(enclave.ready["pid"]) + resident_kib(host.pid)
    print(f"{SESSIONS} sessions: {after - before} KiB")  # noqa: T201 - the figure is the point
    assert after - before < MOST_KIB


def use_sessions(
    world: LocalDeployment, connection: HostConnection, evidence: VerifiedEvidence, count: int
) -> None:
    """Use ``count`` new sessions once each; all of them live to the end of the test.

    They are strangers', to whom no model answers: no listed caller may hold so many.
    """
    for _ in range(count):
        session = start_session(world, evidence=evidence, lifetime_ms=3_600_000, caller=None)
        call = session.seal()
        answer = call.open(*connection.infer(call.header, call.ciphertext, 20))
        assert answer.trailer.status is Code.CALLER_REFUSED
