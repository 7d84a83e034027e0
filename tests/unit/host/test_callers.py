"""Who a call is from, and what share each caller has."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, cast

import pytest

from casemate import limits
from casemate.errors import CasemateError, Code
from casemate_host.admission import ShedError
from casemate_host.callers import CallerConfig, CallerLimits, Callers, DailyQuota

if TYPE_CHECKING:
    import grpc

    from casemate_host.callers import Caller

DAY = 86_400
ONE, TWO = "token-of-the-clinic-1", "token-of-the-clinic-2"


def digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()


def clinic(**bounds: int) -> CallerConfig:
    tokens = (digest(ONE), digest(TWO))
    return CallerConfig("clinic", CallerLimits(**bounds), tokens, ("clinic.example",))


def bearer(token: str) -> list[tuple[str, str | bytes]]:
    return [("user-agent", "x"), ("authorization", f"Bearer {token}")]


class Peer:
    def __init__(self, *names: bytes) -> None:
        self._names = names

    def peer_identities(self) -> tuple[bytes, ...] | None:
        return self._names or None


def peer(*names: bytes) -> grpc.ServicerContext:
    return cast("grpc.ServicerContext", Peer(*names))


def only(**bounds: int) -> Caller:
    caller = Callers([clinic(**bounds)]).claimed(bearer(ONE))
    assert caller is not None
    return caller


def test_each_token_of_a_caller_names_it() -> None:
    callers = Callers([clinic()])
    assert callers.claimed(bearer(ONE)) is callers.claimed(bearer(TWO))
    assert only().name == "clinic"


@pytest.mark.parametrize(
    "value",
    ["", "Bearer ", "Bearer x", f"Basic {ONE}", f"Bearer {ONE} ", f"bearer {ONE}", b"\xff\xfe"],
)
def test_any_other_token_is_refused_even_where_the_unknown_are_served(value: str | bytes) -> None:
    callers = Callers([clinic()], CallerLimits())
    with pytest.raises(CasemateError) as raised:
        callers.claimed([("authorization", value)])
    assert raised.value.code is Code.UNAUTHENTICATED


def test_a_digest_at_rest_is_no_token() -> None:
    """Whoever reads the host's configuration cannot call with it."""
    for stolen in (digest(ONE).hex(), digest(ONE).decode("latin-1")):
        with pytest.raises(CasemateError) as raised:
            Callers([clinic()]).claimed(bearer(stolen))
        assert raised.value.code is Code.UNAUTHENTICATED
    assert ONE not in repr(clinic())


def test_a_certificate_names_its_caller_and_no_other() -> None:
    callers = Callers([clinic()])
    assert callers.claimed([]) is None
    assert callers.certified(peer(b"other", b"clinic.example")).name == "clinic"
    for names in ((), (b"other",), (b"clinic.example.evil",), (b"\xff",)):
        with pytest.raises(CasemateError) as raised:
            callers.certified(peer(*names))
        assert raised.value.code is Code.UNAUTHENTICATED


def test_the_unknown_share_one_share() -> None:
    callers = Callers([], CallerLimits(concurrent=1))
    first, second = callers.claimed([]), callers.claimed([])
    assert first is second is not None
    assert first is not None
    with first.call(), pytest.raises(ShedError):
        first.enter()
    first.enter()


def test_places_are_given_back_when_a_later_check_refuses() -> None:
    caller = only(concurrent=1, rate=1, burst=1)
    with caller.call():
        pass
    for _ in range(3):
        with pytest.raises(ShedError, match="short time") as raised:
            caller.enter()
        assert 0 < raised.value.retry_s <= 1


def test_places_are_taken_together_or_not_at_all() -> None:
    caller = only(concurrent=3)
    assert caller.enter_all(2)
    assert not caller.enter_all(2)
    caller.enter()
    caller.leave(3)
    assert caller.enter_all(3)


@pytest.mark.parametrize("bounds", [{"rate": 9}, {"daily_calls": 9}, {"daily_bytes": 9}])
def test_what_is_counted_one_by_one_is_not_taken_together(bounds: dict[str, int]) -> None:
    caller = only(concurrent=1, **bounds)
    assert not caller.enter_all(1)
    caller.enter()


def test_whoever_leaves_too_much_unread_is_not_let_in_together() -> None:
    caller = only(concurrent=9)
    caller.unread.on_stream(1, limits.UNREAD_BYTES)
    assert not caller.enter_all(1)
    caller.unread.on_stream(-1, -limits.UNREAD_BYTES)
    assert caller.enter_all(1)


def test_a_callers_places_are_its_own() -> None:
    other = CallerConfig("other", CallerLimits(concurrent=1), (digest("x" * 20),))
    callers = Callers([clinic(concurrent=1), other])
    mine, theirs = callers.claimed(bearer(ONE)), callers.claimed(bearer("x" * 20))
    assert mine is not None
    assert theirs is not None
    with mine.call(), theirs.call():
        pass


def test_a_callers_streams_are_fewer_than_its_calls() -> None:
    caller = only(concurrent=3, streams=1)
    with caller.call(), caller.stream():
        with caller.call(), pytest.raises(ShedError), caller.stream():
            pass
        caller.enter()
    with caller.stream():
        pass


def test_a_day_has_so_many_calls_and_bytes() -> None:
    now = [DAY * 20_000.0 + 100]
    quota = DailyQuota(3, 1000, lambda: now[0])
    for _ in range(3):
        quota.call()
    with pytest.raises(ShedError) as raised:
        quota.call()
    assert raised.value.code is Code.QUOTA_EXCEEDED
    assert raised.value.retry_s == pytest.approx(DAY - 100)
    now[0] += raised.value.retry_s
    quota.call()
    quota.spend(1000)
    with pytest.raises(ShedError):
        quota.call()
    now[0] += DAY
    quota.call()
