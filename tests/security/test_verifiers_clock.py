"""A28: a verifier inside an enclave, whose machine's clock is the host's to set.

The verifier has no clock of its own: whoever calls it says what time it is. Inside an enclave the
only time there is comes from the security module, and when that is silent there is none.
"""

from __future__ import annotations

import ast
import secrets
import time
from pathlib import Path
from typing import TYPE_CHECKING

from casemate.attestation import verify_evidence
from casemate.attestation.evidence import EvidenceBundle
from casemate.errors import CasemateError, Code
from casemate.frames import FrameType
from casemate_devkit.pki import NitroPki
from casemate_enclave.clock import AttestedClock, device_time
from casemate_enclave.nsm import Nsm
from tests.support.enclave_bench import Bench

if TYPE_CHECKING:
    import pytest

ROOT = Path(__file__).resolve().parents[2]
# The machine's wall clock; what counts from boot may be read, it says nothing of the date.
WALL = {"time", "time_ns", "now", "utcnow", "today", "gmtime", "localtime", "ctime", "strftime"}
MODULES = {"time", "datetime", "date"}
HOUR = 3_600_000


def wall_clock_reads(folder: Path) -> set[str]:
    """Every place that asks the machine what time it is."""
    found = set()
    for path in sorted(folder.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module in MODULES:
                names = {alias.name for alias in node.names} & WALL
                found |= {f"{path.name}: {name}" for name in names}
            if not isinstance(node, ast.Attribute) or node.attr not in WALL:
                continue
            if isinstance(node.value, ast.Name) and node.value.id in MODULES:
                found.add(f"{path.name}: {node.value.id}.{node.attr}")
            if node.attr == "CLOCK_REALTIME":
                found.add(f"{path.name}: CLOCK_REALTIME")
    return found


def test_a28_neither_the_verifier_nor_the_enclave_reads_the_machines_clock() -> None:
    assert wall_clock_reads(ROOT / "casemate/attestation") == set()
    assert wall_clock_reads(ROOT / "casemate/envelope") == set()
    assert wall_clock_reads(ROOT / "enclave") == set()


def test_a28_the_search_would_find_it(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("import time\ntime.time_ns()\n")
    (tmp_path / "b.py").write_text("from datetime import datetime\ndatetime.now()\n")
    (tmp_path / "c.py").write_text("from time import time\n")
    assert len(wall_clock_reads(tmp_path)) == 3


class Device:
    """The peer's evidence and the verifying enclave's own security module, in one world."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch = monkeypatch
        self.ahead = 0.0

    def __call__(self) -> float:
        return self._true() + self.ahead

    _true = staticmethod(time.time)

    def host_sets_the_clock(self, ahead_s: float) -> None:
        now = self._true
        self._monkeypatch.setattr(time, "time", lambda: now() + ahead_s)
        self._monkeypatch.setattr(time, "time_ns", lambda: int((now() + ahead_s) * 1e9))


def refusal(
    bench: Bench, bundle: EvidenceBundle, nonce: bytes, clock: AttestedClock
) -> Code | None:
    """What the verifier inside says of a peer's evidence."""
    try:
        verify_evidence(bundle, bench.policy, nonce=nonce, now=clock.now())
    except CasemateError as refused:
        return refused.code
    return None


def test_a28_the_hosts_clock_makes_no_old_evidence_fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device(monkeypatch)
    with Bench(clock=device, pki=NitroPki.create(clock=device)) as peer:
        peer.configure()
        nonce = secrets.token_bytes(32)
        bundle = EvidenceBundle.parse(peer.ask(FrameType.EVIDENCE, nonce))
        clock = AttestedClock(lambda: device_time(Nsm(peer.nsm.handle)))
        clock.refresh()
        assert refusal(peer, bundle, nonce, clock) is None
        # Ten minutes pass, and the host turns its clock back to when the evidence was made.
        device.ahead = 600
        device.host_sets_the_clock(0)
        clock.refresh()
        assert refusal(peer, bundle, nonce, clock) is Code.EVIDENCE_AGE
        # Nor does a clock set ahead make fresh evidence old, or another day's certificates valid.
        fresh = EvidenceBundle.parse(peer.ask(FrameType.EVIDENCE, nonce))
        device.host_sets_the_clock(86_400)
        assert refusal(peer, fresh, nonce, clock) is None


def test_a28_without_the_device_there_is_no_time_and_no_verdict(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    device, carried = Device(monkeypatch), [0]
    with Bench(clock=device, pki=NitroPki.create(clock=device)) as peer:
        peer.configure()
        nonce = secrets.token_bytes(32)
        bundle = EvidenceBundle.parse(peer.ask(FrameType.EVIDENCE, nonce))
        clock = AttestedClock(lambda: device_time(Nsm(peer.nsm.handle)), lambda: carried[0])
        assert refusal(peer, bundle, nonce, clock) is Code.CLOCK_UNAVAILABLE  # never asked yet
        clock.refresh()
        assert refusal(peer, bundle, nonce, clock) is None
        carried[0] += 300_001  # the host withholds the module for five minutes
        assert refusal(peer, bundle, nonce, clock) is Code.CLOCK_UNAVAILABLE
