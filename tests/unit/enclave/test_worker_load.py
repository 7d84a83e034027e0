"""What a worker says of a load is heard, however soon it ends after it (SPEC 8.10)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import pytest

from casemate_enclave.accelerators import NONE
from casemate_enclave.refusals import Refusal, RefusedError
from casemate_enclave.watchdog import Watchdog
from casemate_enclave.workers import packets
from casemate_enclave.workers.process import Worker

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable
    from pathlib import Path


class Ending:
    """A spawner whose workers give an answer to everything and have ended before it is read."""

    def __init__(self, answer: bytes) -> None:
        self._answer = answer
        self.ended: Callable[[int], None] = lambda _: None

    def start(
        self, data_bytes: int, needs: object, ended: Callable[[int], None]
    ) -> tuple[int, socket.socket]:
        del data_bytes, needs
        ours, theirs = packets.pair()
        theirs.send(self._answer)
        self.theirs, self.ended = theirs, ended
        return 1, ours

    def kill(self, number: int, *, wait: bool = True) -> None:
        """It has ended."""


def worker_that_said(*answer: int) -> tuple[Ending, Worker, list[int]]:
    spawner = Ending(packets.LOADED.pack(*answer))
    ends: list[int] = []
    worker = Worker(
        cast("Any", spawner),
        Watchdog(),
        data_bytes=1,
        needs=NONE,
        answer_max=1,
        ended=lambda _, status: ends.append(status),
    )
    return spawner, worker, ends


def test_the_reason_of_a_refusal_is_heard_though_the_worker_has_ended(tmp_path: Path) -> None:
    spawner, worker, ends = worker_that_said(0, Refusal.INPUT.number, 3)
    spawner.ended(0)
    with (tmp_path / "contents").open("wb") as file, pytest.raises(RefusedError) as refusal:
        worker.load(b"settings", file.fileno(), 60)
    assert refusal.value.detail == RefusedError.numbered(Refusal.INPUT.number, 3).detail
    worker.dismiss()
    assert worker._control.fileno() == -1
    assert ends == [0]
    spawner.theirs.close()


def test_a_worker_that_has_loaded_and_ended_gives_its_descriptor_back(tmp_path: Path) -> None:
    spawner, worker, ends = worker_that_said(1, 0, 0)
    spawner.ended(-9)
    with (tmp_path / "contents").open("wb") as file:
        worker.load(b"settings", file.fileno(), 60)
    assert worker._control.fileno() == -1
    assert ends == [-9]
    spawner.theirs.close()
