"""Durations are counted once each, in one histogram and in what it is part of."""

from __future__ import annotations

from casemate_host.histogram import Histogram


def test_what_a_part_counts_counts_in_the_whole_as_well() -> None:
    part = Histogram()
    whole = Histogram(part)
    part.add(0.001, 0.002)
    whole.add(0.001)
    assert sum(part.read().counts) == 2
    assert part.read().sum_us == 3000
    assert sum(whole.read().counts) == 3
    assert whole.read().sum_us == 4000


def test_durations_added_together_count_as_if_one_by_one() -> None:
    together, single = Histogram(), Histogram()
    durations = [0.0, 0.00005, 0.003, 0.2, 1e6]
    together.add(*durations)
    for each in durations:
        single.add(each)
    assert together.read() == single.read()
