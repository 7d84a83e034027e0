"""What costs no cryptography comes first, also for sessions that are known by sight (SPEC 6.4)."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from casemate import limits, wire
from casemate.envelope.header import parse_request_header, session_part
from casemate.envelope.opening import Asker
from casemate.envelope.replay import ReplayTable
from casemate.envelope.sealing import DataKeySession
from casemate.errors import Code, EnvelopeError
from casemate_enclave.admission import Admission
from casemate_enclave.clock import AttestedClock
from casemate_enclave.keys import KeyRing

AUDIENCE = "clinic.example/screening"
INSTANCE = bytes(range(16))
ASKER = Asker(b"", None, None)
HOUR = 3_600_000
BOOT = 1_000_000_000


class Door:
    """An admission with a clock that the test moves."""

    def __init__(self) -> None:
        self.passed = 0
        clock = AttestedClock(lambda: BOOT + self.passed, lambda: self.passed)
        clock.refresh()
        self._clock = clock
        self.lifetime = SimpleNamespace(draining=False)
        self.keys = KeyRing(clock)
        (self._config,) = self.keys.published()
        self._others: dict[str, Any] = {
            "identity": SimpleNamespace(instance_id=INSTANCE),
            "unwraps": SimpleNamespace(releases=False),
            "lifetime": self.lifetime,
        }
        replay = ReplayTable(BOOT, 8)
        self.admission = Admission(AUDIENCE, 4096, keys=self.keys, replay=replay, **self._others)

    def at(self, milliseconds: int) -> None:
        self.passed = milliseconds
        self._clock.refresh()

    def headers(self, count: int) -> list[bytes]:
        """Headers of one session that begins now."""
        now = self._clock.now()
        session = DataKeySession.hpke(self._config, INSTANCE, bytes(48), AUDIENCE, now, now + HOUR)
        return [
            session.seal(model="m", version=None, digest=None, message=b"?").header
            for _ in range(count)
        ]

    def refusal(self, header: bytes, size: int = 1) -> Code:
        try:
            self.admission.admit(header, size, self._clock.now())
        except EnvelopeError as error:
            return error.code
        return Code.OK

    def know(self, header: bytes) -> None:
        session, _ = self.admission.admit(header, 1, self._clock.now())
        self.admission.remember(header, session, ASKER)


@pytest.fixture
def door() -> Door:
    return Door()


def test_a_known_session_is_what_its_headers_say_and_who_asked_last(door: Door) -> None:
    first, second = door.headers(2)
    unknown, _ = door.admission.admit(second, 1, BOOT)
    door.know(first)
    known, sequence = door.admission.admit(second, 1, BOOT)
    assert (sequence, unknown.asker, known.asker) == (1, None, ASKER)
    header = parse_request_header(first)
    assert known[:3] == (header.key_commitment, header.not_before, header.not_after)
    assert known.wrapped == wire.digest(header.wrapped_key)
    assert known._replace(asker=None) == unknown


def test_one_changed_bit_of_a_known_session_is_another_header(door: Door) -> None:
    first, second = door.headers(2)
    door.know(first)
    for at in (0, 1, 22, 30, 38, 70, 118, 122):  # each field but the id and the sequence
        changed = bytearray(second)
        changed[at] ^= 0x80
        assert door.refusal(bytes(changed)) is not Code.OK
    for wrong in (second[:-1], second + b"\0", second[:2], second[:21], b""):
        assert door.refusal(wrong) in {Code.MALFORMED, Code.UNSUPPORTED_VERSION}


@pytest.mark.parametrize("known", [False, True])
def test_every_request_has_to_pass_what_may_change(door: Door, known: bool) -> None:
    first, second = door.headers(2)
    if known:
        door.know(first)
    assert door.refusal(second, 4096) is Code.OK
    assert door.refusal(second, 4097) is Code.TOO_LARGE
    too_late = second[:18] + limits.SEQUENCE_MAX.to_bytes(4, "big") + second[22:]
    assert door.refusal(too_late) is Code.MALFORMED
    door.lifetime.draining = True
    assert door.refusal(second) is Code.UNAVAILABLE
    door.at(HOUR)
    assert door.refusal(second) is Code.EXPIRED


def test_a_known_session_ends_with_the_key_that_it_was_wrapped_to(door: Door) -> None:
    door.at(25 * HOUR - 2)
    first, second = door.headers(2)
    door.know(first)
    assert door.refusal(second) is Code.OK
    door.at(25 * HOUR)
    assert door.refusal(second) is Code.UNKNOWN_KEY


@pytest.mark.parametrize(("field", "later"), [("not_before", 1), ("not_after", -1)])
def test_who_asked_in_a_session_says_nothing_of_one_with_other_times(
    door: Door, field: str, later: int
) -> None:
    """A caller signs the times too, so for the same key under others it is verified (SPEC 5.6)."""
    first, second = door.headers(2)
    door.know(first)
    header = parse_request_header(second)
    moved = replace(header, **{field: getattr(header, field) + later}).encode()
    asked = [door.admission.admit(raw, 1, BOOT + 1)[0].asker for raw in (second, moved)]
    assert asked == [ASKER, None]


def test_sessions_are_known_up_to_a_bound(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever is one too many costs one other its place, and not all of them theirs."""
    monkeypatch.setattr(limits, "SESSIONS_KNOWN", 2)
    headers = [door.headers(1)[0] for _ in range(3)]
    for header in headers:
        door.know(header)
    assert list(door.admission._known) == [session_part(header) for header in headers[1:]]
    door.know(headers[1])  # as often as it likes
    assert set(door.admission._known) == {session_part(header) for header in headers[1:]}
    assert [door.refusal(header) for header in headers] == [Code.OK] * 3


def test_as_many_sessions_are_known_as_keys_are_kept() -> None:
    """Or each request of the others would be judged anew, however quickly its key is found."""
    assert limits.SESSIONS_KNOWN >= limits.KEY_CACHE_MAX


def test_sessions_that_are_over_are_forgotten(door: Door) -> None:
    (first,) = door.headers(1)
    door.know(first)
    door.at(1)
    (second,) = door.headers(1)
    door.know(second)
    door.admission.expire(BOOT + HOUR - 1)
    assert len(door.admission._known) == 2
    door.admission.expire(BOOT + HOUR)
    assert set(door.admission._known) == {session_part(second)}


def test_what_was_not_authenticated_is_not_known(door: Door) -> None:
    (header,) = door.headers(1)
    assert door.refusal(header) is Code.OK
    assert not door.admission._known
