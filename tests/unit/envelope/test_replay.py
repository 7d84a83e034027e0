from __future__ import annotations

import threading
from typing import Any

import pytest

from casemate.envelope.replay import ReplayTable
from casemate.errors import Code, EnvelopeError

BOOT = 1_000_000
HOUR = 3_600_000
A, B, C = b"a" * 32, b"b" * 32, b"c" * 32


def refused(
    table: ReplayTable,
    commitment: bytes,
    not_before: int,
    not_after: int,
    sequence: int,
    now: int,
    owner: bytes | None = None,
) -> Code:
    with pytest.raises(EnvelopeError) as caught:
        table.accept(commitment, not_before, not_after, sequence, now, owner=owner)
    return caught.value.code


@pytest.mark.parametrize(
    ("not_before", "not_after", "now", "code"),
    [
        (BOOT, BOOT + HOUR, BOOT, None),
        (BOOT, BOOT + HOUR, BOOT + HOUR - 1, None),
        (BOOT - 1, BOOT + 10, BOOT, Code.STALE_SESSION),
        (BOOT + 1, BOOT + 10, BOOT, Code.STALE_SESSION),
        (BOOT, BOOT + HOUR + 1, BOOT, Code.MALFORMED),
        (BOOT, BOOT + 10, BOOT + 10, Code.EXPIRED),
        (BOOT, BOOT, BOOT, Code.EXPIRED),
        (BOOT + 5, BOOT + 1, BOOT + 6, Code.EXPIRED),
        (0, (1 << 64) - 1, BOOT, Code.STALE_SESSION),
        ((1 << 64) - 1, (1 << 64) - 1, BOOT, Code.STALE_SESSION),
    ],
)
def test_times(not_before: int, not_after: int, now: int, code: Code | None) -> None:
    table = ReplayTable(BOOT, 4)
    if code is None:
        table.check_times(not_before, not_after, now)
        table.accept(A, not_before, not_after, 0, now)
        return
    with pytest.raises(EnvelopeError) as caught:
        table.check_times(not_before, not_after, now)
    assert caught.value.code == code
    assert refused(table, A, not_before, not_after, 0, now) == code
    assert len(table) == 0


def test_the_window() -> None:
    table = ReplayTable(BOOT, 4)

    def seen(sequence: int) -> bool:
        try:
            table.accept(A, BOOT, BOOT + HOUR, sequence, BOOT)
        except EnvelopeError as error:
            assert error.code == Code.REPLAYED  # noqa: PT017 - either way
            return True
        return False

    assert not seen(2000)
    assert seen(2000)
    assert not seen(976)  # 1,024 below
    assert seen(975)
    assert not seen(1999)
    assert seen(1999)
    assert seen(976)
    assert not seen(2001)
    assert seen(976)  # now 1,025 below
    assert not seen(977)
    assert seen(2000)
    assert not seen(1_048_575)
    assert seen(2001)
    assert not seen(1_048_575 - 1024)


@pytest.mark.parametrize("step", [1, 2, 3, 63, 64, 65, 1000, 1023, 1024, 1025, 2000])
def test_the_window_slides_by_any_step(step: int) -> None:
    """What was seen stays seen, wherever in the window it has moved to; what was not, is not."""
    table = ReplayTable(BOOT, 4)
    for sequence in (7, 9, 9 + step):
        table.accept(A, BOOT, BOOT + HOUR, sequence, BOOT)
    for sequence in (7, 9, 9 + step):
        assert refused(table, A, BOOT, BOOT + HOUR, sequence, BOOT) == Code.REPLAYED
    if step <= 1023:  # 8 is at most 1,024 below
        table.accept(A, BOOT, BOOT + HOUR, 8, BOOT)
        assert refused(table, A, BOOT, BOOT + HOUR, 8, BOOT) == Code.REPLAYED


def test_the_same_key_with_other_times_is_stale() -> None:
    table = ReplayTable(BOOT, 4)
    table.accept(A, BOOT, BOOT + HOUR, 0, BOOT)
    assert refused(table, A, BOOT, BOOT + HOUR - 1, 1, BOOT) == Code.STALE_SESSION
    assert refused(table, A, BOOT + 1, BOOT + HOUR, 1, BOOT + 1) == Code.STALE_SESSION


def test_a_full_table_refuses_new_sessions_and_forgets_no_live_one() -> None:
    table = ReplayTable(BOOT, 4)  # of which strangers may have two
    table.accept(A, BOOT, BOOT + 100, 0, BOOT)
    table.accept(B, BOOT, BOOT + 200, 0, BOOT)
    assert refused(table, C, BOOT, BOOT + 300, 0, BOOT) == Code.OVERLOADED
    table.accept(A, BOOT, BOOT + 100, 1, BOOT)
    assert refused(table, A, BOOT, BOOT + 100, 0, BOOT) == Code.REPLAYED
    table.accept(C, BOOT, BOOT + 300, 0, BOOT + 100)  # A has ended
    assert len(table) == 2
    assert refused(table, B, BOOT, BOOT + 200, 0, BOOT + 100) == Code.REPLAYED


def test_strangers_share_half_and_each_owner_has_an_eighth() -> None:
    table = ReplayTable(BOOT, 16)

    def taken(name: str, owner: bytes | None, most: int = 99) -> int:
        for number in range(most):
            commitment = f"{name} {number}".encode()
            try:
                table.accept(commitment, BOOT, BOOT + HOUR, 0, BOOT, owner=owner)
            except EnvelopeError as error:
                assert error.code == Code.OVERLOADED  # noqa: PT017 - ends the loop
                return number
        return most

    assert taken("stranger", None) == 8
    assert taken("a", b"a") == 2
    assert taken("b", b"b") == 2
    assert [taken(name, name.encode()) for name in "cdefg"] == [2, 2, 0, 0, 0]
    assert len(table) == 16
    # Whoever has a session keeps it, whatever its share.
    table.accept(b"stranger 7", BOOT, BOOT + HOUR, 1, BOOT)
    table.accept(b"a 1", BOOT, BOOT + HOUR, 1, BOOT, owner=b"a")


def test_a_session_is_charged_to_whoever_began_it_until_it_ends() -> None:
    table = ReplayTable(BOOT, 8)
    table.accept(A, BOOT, BOOT + 100, 0, BOOT, owner=b"o")
    table.accept(A, BOOT, BOOT + 100, 1, BOOT, owner=None)
    assert refused(table, B, BOOT, BOOT + 200, 0, BOOT, b"o") == Code.OVERLOADED
    table.accept(B, BOOT, BOOT + 200, 0, BOOT + 100, owner=b"o")
    assert refused(table, A, BOOT + 101, BOOT + 200, 0, BOOT + 101, b"o") == Code.OVERLOADED


def test_the_smallest_table_serves_everybody() -> None:
    table = ReplayTable(BOOT, 1)
    table.accept(A, BOOT, BOOT + 100, 0, BOOT)
    table.accept(B, BOOT, BOOT + 200, 0, BOOT + 100, owner=b"o")


def test_a_request_held_up_cannot_outlive_its_window() -> None:
    """Its thread read the clock before the session ended and its window was given up."""
    table = ReplayTable(BOOT, 2)
    table.accept(A, BOOT, BOOT + 100, 0, BOOT + 50)
    table.accept(B, BOOT, BOOT + 200, 0, BOOT + 150)
    assert refused(table, A, BOOT, BOOT + 100, 0, BOOT + 60) == Code.EXPIRED


def test_state_moves_only_under_the_lock() -> None:
    """A race is too rare to wait for: look at the lock instead."""
    table = ReplayTable(BOOT, 4)
    lock = table._lock
    held: list[bool] = []

    class Watched(dict[bytes, Any]):
        def get(self, *args: Any) -> Any:  # noqa: ANN401 - as dict's
            held.append(lock.locked())
            return super().get(*args)

        def __setitem__(self, key: bytes, value: object) -> None:
            held.append(lock.locked())
            super().__setitem__(key, value)

    table._sessions = Watched()
    table.accept(A, BOOT, BOOT + HOUR, 0, BOOT)
    table.accept(A, BOOT, BOOT + HOUR, 1, BOOT)
    assert held == [True, True, True]
    assert not lock.locked()
    assert refused(table, A, BOOT, BOOT + HOUR, 1, BOOT) == Code.REPLAYED
    assert not lock.locked()


def test_of_identical_requests_exactly_one_is_accepted() -> None:
    table = ReplayTable(BOOT, 4)
    start = threading.Barrier(8)
    accepted: list[int] = []

    def worker() -> None:
        start.wait()
        for sequence in range(200):
            try:
                table.accept(A, BOOT, BOOT + HOUR, sequence, BOOT)
            except EnvelopeError:
                continue
            accepted.append(sequence)

    threads = [threading.Thread(target=worker) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(accepted) == list(range(200))
