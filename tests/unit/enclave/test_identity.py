"""PCR16 and the measurement log (SPEC 3.2, 3.5)."""

import pytest

from casemate.attestation.structures import LogEntry, configuration_event, parse_log, pcr16
from casemate.errors import CasemateError, Code
from casemate_devkit.nsm import SimulatedNsm
from casemate_devkit.pki import NitroPki
from casemate_enclave.identity import MeasurementLog, bind_configuration
from casemate_enclave.nsm import Nsm


@pytest.fixture(scope="module")
def pki() -> NitroPki:
    return NitroPki.create()


@pytest.fixture
def nsm(pki: NitroPki) -> Nsm:
    return Nsm(SimulatedNsm(pki, {}).handle)


def entry(op: str, version: int = 1) -> LogEntry:
    return LogEntry(op, "m", version, bytes(48), bytes(32), bytes(48), 1)


def test_the_configuration_is_measured_once_and_locked(nsm: Nsm) -> None:
    assert bind_configuration(nsm, b"configuration") == pcr16(b"configuration")
    assert nsm.describe_pcr(16) == (True, pcr16(b"configuration"))
    with pytest.raises(CasemateError):
        bind_configuration(nsm, b"configuration")


def test_a_register_that_was_extended_before_is_refused(nsm: Nsm) -> None:
    nsm.extend_pcr(16, configuration_event(b"another"))
    with pytest.raises(CasemateError) as refusal:
        bind_configuration(nsm, b"configuration")
    assert refusal.value.code == Code.INTERNAL
    assert nsm.describe_pcr(16)[0] is False


def test_a_register_that_was_locked_before_is_refused(nsm: Nsm) -> None:
    nsm.lock_pcr(16)
    with pytest.raises(CasemateError):
        bind_configuration(nsm, b"configuration")


def test_a_lock_that_does_not_hold_is_noticed(nsm: Nsm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nsm, "lock_pcr", lambda _: None)
    with pytest.raises(CasemateError):
        bind_configuration(nsm, b"configuration")


def test_the_log_lists_everything_in_order() -> None:
    log = MeasurementLog()
    for item in (entry("load"), entry("load", 2), entry("unload")):
        log.append(item)
    assert parse_log(log.encode()) == (entry("load"), entry("load", 2), entry("unload"))


def test_a_full_log_refuses_loads_but_never_an_unload() -> None:
    log = MeasurementLog(capacity=5)
    log.append(entry("load", 1))
    log.append(entry("load", 2))
    with pytest.raises(CasemateError) as refusal:
        log.append(entry("load", 3))
    assert refusal.value.code == Code.OVERLOADED
    log.append(entry("unload", 1))
    log.append(entry("unload", 2))
    assert len(parse_log(log.encode())) == 4
    with pytest.raises(CasemateError):
        log.append(entry("load", 3))
