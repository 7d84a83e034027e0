"""Durations of steps: grouped, bounded, and equal in number whatever became of a request."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from casemate import limits
from casemate_enclave.steps import Step, Steps


def total(steps: Steps, step: Step) -> int:
    counts = steps.histograms()[step]["counts"]
    assert isinstance(counts, list)
    return sum(counts)


def test_every_step_is_there_from_the_start() -> None:
    histograms = Steps().histograms()
    assert set(histograms) == {"unwrap", "open", "queue", "run", "seal"}
    zeros = [0] * (len(limits.STEP_BOUNDS_US) + 1)
    assert all(each == {"counts": zeros, "sum_us": 0} for each in histograms.values())


@pytest.mark.parametrize(
    ("microseconds", "bucket"), [(0, 0), (50, 0), (51, 1), (60_000_000, 17), (60_000_001, 18)]
)
def test_a_duration_is_in_the_first_bucket_that_holds_it(microseconds: int, bucket: int) -> None:
    steps = Steps(group=1)
    steps.add(Step.OPEN, microseconds)
    steps.add(Step.SEAL, 1)
    opened = steps.histograms()["open"]
    counts = [0] * 19
    counts[bucket] = 1
    assert opened == {"counts": counts, "sum_us": microseconds}


def test_nothing_shows_before_a_group_is_full() -> None:
    steps = Steps(group=3)
    before = steps.histograms()
    for _ in range(2):
        with steps.timed(Step.RUN):
            pass
        steps.add(Step.SEAL, 1)
    assert steps.histograms() == before
    steps.add(Step.SEAL, 1)
    assert total(steps, Step.SEAL) == 3


def test_answers_that_reached_no_model_count_like_those_that_did() -> None:
    steps = Steps(group=2)
    steps.add(Step.QUEUE, 7)
    steps.add(Step.RUN, 9)
    for _ in range(2):
        steps.add(Step.SEAL, 1)
    assert (total(steps, Step.QUEUE), total(steps, Step.RUN)) == (2, 2)
    assert steps.histograms()["run"]["sum_us"] == 9


def test_h16_what_is_under_way_moves_run_and_queue_together_or_not_at_all() -> None:
    """Another request waits, or runs, or has run and is not sealed, when a group is published."""
    steps = Steps(group=1)

    def elsewhere(*others: Step) -> None:
        def work() -> None:
            for step in others:
                steps.add(step, 100)

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()

    for others in ([Step.QUEUE], [Step.QUEUE, Step.QUEUE], [Step.QUEUE, Step.RUN], [Step.RUN]):
        elsewhere(*others)
        steps.add(Step.RUN, 9)
        steps.add(Step.SEAL, 1)
        assert total(steps, Step.QUEUE) == total(steps, Step.RUN)


def test_h16_a_request_that_waited_several_times_counts_once() -> None:
    steps = Steps(group=1)
    for _ in range(3):
        steps.add(Step.QUEUE, 7)
    steps.add(Step.RUN, 9)
    steps.add(Step.SEAL, 1)
    assert (total(steps, Step.QUEUE), total(steps, Step.RUN)) == (1, 1)
    assert steps.histograms()["queue"]["sum_us"] == 21


def test_what_is_done_together_counts_for_each() -> None:
    steps = Steps(group=3)
    with steps.timed(Step.OPEN, 2):
        time.sleep(0.01)
    steps.add(Step.SEAL, 7, 2)
    unpublished = steps.histograms()["open"]  # two answers are not three
    steps.add(Step.SEAL, 7, 2)
    found: Any = steps.histograms()
    assert unpublished["sum_us"] == 0
    assert sum(found["open"]["counts"]) == 2
    assert found["open"]["sum_us"] >= 10_000
    assert found["seal"]["counts"][0] == sum(found["run"]["counts"]) == 4
    assert found["seal"]["sum_us"] == 28


def test_a_block_that_raises_is_timed() -> None:
    steps = Steps(group=1)
    with pytest.raises(KeyError), steps.timed(Step.RUN):
        raise KeyError
    steps.add(Step.SEAL, 1)
    assert total(steps, Step.RUN) == 1


def test_runs_done_together_move_the_queue_as_often() -> None:
    steps = Steps(group=1)
    steps.add(Step.QUEUE, 8)
    steps.add(Step.RUN, 9, 4)
    steps.add(Step.SEAL, 1)  # of one of them: more have run than are sealed
    assert (total(steps, Step.QUEUE), total(steps, Step.RUN)) == (4, 4)
    assert steps.histograms()["queue"]["sum_us"] == 8
    assert steps.histograms()["run"]["sum_us"] == 36
