"""Inside a worker: a run that is cancelled ends, whether that was said before it began or later."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any, cast

import pytest

from casemate_enclave.workers import packets
from casemate_enclave.workers.tensors import Layout
from casemate_enclave.workers.worker import _CANCELLED_KEPT, _Worker

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator

LAYOUT = Layout((), (), 0)


class Run:
    terminate = False


class Model:
    """Tells of each run whether it was ended before ``meanwhile`` was called, and after."""

    def __init__(self) -> None:
        self.meanwhile: Callable[[], object] = lambda: None
        self.ended: list[tuple[bool, bool]] = []

    def run(self, _inputs: object, _outputs: object, _deadline: float, stop: Any) -> dict[str, Any]:  # noqa: ANN401 - the worker's own
        run = Run()
        stop.begin(run)
        before = run.terminate
        self.meanwhile()
        self.ended.append((before, run.terminate))
        stop.end(run)
        return {}


@pytest.fixture
def control() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = packets.pair()
    with ours, theirs:
        yield ours, theirs


def cancel(worker: _Worker, ours: socket.socket, *numbers: int) -> None:
    for number in numbers:
        ours.send(packets.COMMAND.pack(packets.CANCEL, number))
    ours.send(struct.pack("<I", 0))  # of another size: it returns
    worker.work(packets.packet_memory())


def test_a_run_ends_when_it_is_cancelled_before_or_while_it_runs(
    control: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = control
    model = Model()
    worker = _Worker(theirs, cast("Any", model))
    worker.run(1, LAYOUT, {}, 0)
    cancel(worker, ours, 1, 2)
    worker.run(2, LAYOUT, {}, 0)
    model.meanwhile = lambda: cancel(worker, ours, 3)
    worker.run(3, LAYOUT, {}, 0)
    model.meanwhile = lambda: cancel(worker, ours, 3)
    worker.run(4, LAYOUT, {}, 0)
    assert model.ended == [(False, False), (True, True), (False, True), (False, False)]


def test_nothing_is_kept_of_runs_that_are_over(
    control: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = control
    model = Model()
    worker = _Worker(theirs, cast("Any", model))
    for number in range(2 * _CANCELLED_KEPT):
        cancel(worker, ours, number)
    assert len(worker._cancelled) == _CANCELLED_KEPT
    for number in range(2 * _CANCELLED_KEPT):
        worker.run(number, LAYOUT, {}, 0)
    assert not worker._cancelled
    assert not worker._running
    assert sum(before for before, _ in model.ended) == _CANCELLED_KEPT
