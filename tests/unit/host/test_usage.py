"""What callers used of their day outlasts the host (SPEC 9.6.1)."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import pytest

from casemate import limits
from casemate.errors import CasemateError, Code
from casemate_host.callers import DailyQuota
from casemate_host.usage import UsageFile, Used
from tests.support.attacker import eventually

if TYPE_CHECKING:
    from pathlib import Path

DAY = 86_400.0


class Clock:
    def __init__(self, days: float = 100.5) -> None:
        self.now = days * DAY

    def __call__(self) -> float:
        return self.now


def quota(clock: Clock, calls: int = 3) -> DailyQuota:
    return DailyQuota(calls, 1000, clock)


def used_up(counted: DailyQuota) -> bool:
    try:
        counted.call()
    except CasemateError as error:
        return error.code is Code.QUOTA_EXCEEDED
    return False


def test_a_restart_goes_on_where_the_day_was(tmp_path: Path) -> None:
    clock = Clock()
    path = tmp_path / "usage.json"
    first, other = quota(clock), quota(clock)
    usage = UsageFile(path, {"clinic": first, "lab": other})
    first.call()
    first.call()
    first.spend(17)
    usage.stop()
    again, fresh = quota(clock), quota(clock)
    UsageFile(path, {"clinic": again, "new": fresh})
    assert again.used() == Used(100, 2, 17)
    assert not used_up(again)
    assert used_up(again)
    assert fresh.used() == Used(100, 0, 0)


def test_another_day_begins_anew(tmp_path: Path) -> None:
    path, clock = tmp_path / "usage.json", Clock()
    counted = quota(clock)
    usage = UsageFile(path, {"clinic": counted})
    counted.call()
    usage.stop()
    clock.now += DAY
    later = quota(clock)
    UsageFile(path, {"clinic": later})
    assert later.used() == Used(101, 0, 0)


def test_it_is_saved_while_the_host_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "USAGE_SAVE_S", 0.05)
    path, counted = tmp_path / "usage.json", quota(Clock())
    usage = UsageFile(path, {"clinic": counted})
    usage.start()
    counted.call()
    assert eventually(lambda: json.loads(path.read_text())["callers"]["clinic"] == [100, 1, 0])
    usage.stop()


def test_what_was_there_is_replaced_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that fails or is full leaves what was saved before, and the host goes on."""
    path, counted = tmp_path / "usage.json", quota(Clock())
    usage = UsageFile(path, {"clinic": counted})
    before = path.read_bytes()
    counted.call()

    def fail(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as full:
        full.setattr(os, "fsync", fail)
        usage.stop()
    assert path.read_bytes() == before
    usage.stop()
    assert json.loads(path.read_text())["callers"]["clinic"] == [100, 1, 0]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"{}",
        b"\xff",
        b'{"version": 2, "callers": {}}',
        b'{"version": 1, "callers": []}',
        b'{"version": 1, "callers": {"clinic": [100, 1]}}',
        b'{"version": 1, "callers": {"clinic": [100, -1, 0]}}',
        b'{"version": 1, "callers": {"clinic": [100, true, 0]}}',
        b'{"version": 1, "callers": {"clinic": 5}}',
        b"[" * 100_000,
    ],
)
def test_a_file_that_is_none_is_said_and_not_overwritten(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "usage.json"
    path.write_bytes(content)
    with pytest.raises(CasemateError) as refused:
        UsageFile(path, {"clinic": quota(Clock())})
    assert refused.value.code is Code.INVALID_ARGUMENT
    assert "usage.json" in refused.value.detail
    assert path.read_bytes() == content


def test_a_folder_that_is_not_there_is_said(tmp_path: Path) -> None:
    quotas: dict[str, Any] = {"clinic": quota(Clock())}
    with pytest.raises(CasemateError) as refused:
        UsageFile(tmp_path / "none" / "usage.json", quotas)
    assert refused.value.code is Code.INVALID_ARGUMENT
