"""KEM keys rotate under load, and no repeatable call fails (SPEC 3.3).

The enclave is real; its security module's clock is the test's, and so is the client's.
"""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from operator import ge
from typing import TYPE_CHECKING

import pytest

from casemate.client import Client
from casemate.errors import CasemateError
from casemate_devkit.pki import NitroPki
from tests.support.attacker import eventually
from tests.support.enclave_bench import ANSWER, ROWS, Bench, rows_of
from tests.support.front import Front

if TYPE_CHECKING:
    from collections.abc import Iterator

CLIENTS = 3


class Clock:
    """Time that jumps, but never during a call."""

    def __init__(self) -> None:
        self._ahead = 0.0
        self._gate = threading.Lock()
        self._calls = threading.Semaphore(CLIENTS)

    def __call__(self) -> float:
        return time.time() + self._ahead

    def milliseconds(self) -> int:
        return int(self() * 1000)

    @contextmanager
    def call(self) -> Iterator[None]:
        with self._gate:
            pass  # a jump that waits goes first
        with self._calls:
            yield

    def jump(self, hours: float) -> None:
        with self._gate:
            for _ in range(CLIENTS):
                self._calls.acquire()
            self._ahead += hours * 3600
            self._calls.release(CLIENTS)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    moving = Clock()
    monkeypatch.setattr("casemate.client.sessions._now", moving.milliseconds)
    return moving


def test_a_session_to_the_previous_key_goes_on_after_rotation(clock: Clock) -> None:
    with Bench(clock=clock, pki=NitroPki.create(clock=clock)) as bench:
        bench.serve()
        clock.jump(11.9)
        bench.assembly.maintain_once()
        session = bench.session()
        clock.jump(0.2)
        bench.assembly.maintain_once()
        verified = bench.verify(b"n" * 32)
        assert len(verified.key_configs) == 2
        assert rows_of(bench.infer(session)) == ANSWER
        assert rows_of(bench.infer(bench.session())) == ANSWER


def test_no_repeatable_call_fails_while_keys_rotate_for_two_days(clock: Clock) -> None:
    stop = threading.Event()
    failures: list[str] = []
    keys: set[bytes] = set()
    listed: set[int] = set()
    counts = [0] * CLIENTS

    def load(number: int, target: str) -> None:
        with Client(target, bench.policy) as client:
            while not stop.is_set():
                try:
                    with clock.call():
                        answer = client.infer("linear", {"x": ROWS}, repeatable=True)
                except CasemateError as error:
                    failures.append(str(error))
                    continue
                assert answer.outputs["y"].tolist() == ANSWER
                keys.add(answer.evidence.current_key[0])
                listed.add(len(answer.evidence.key_configs))
                counts[number] += 1

    def go_on() -> None:
        """Wait until each client was answered a few times more."""
        wanted = [count + 3 for count in counts]
        assert eventually(lambda: all(map(ge, counts, wanted)))

    with Bench(clock=clock, pki=NitroPki.create(clock=clock)) as bench:
        bench.serve()
        with Front(bench) as front:
            threads = [
                threading.Thread(target=load, args=(number, front.target))
                for number in range(CLIENTS)
            ]
            for thread in threads:
                thread.start()
            try:
                for _ in range(8):
                    go_on()
                    clock.jump(6.5)
                    bench.assembly.maintain_once()  # while calls go on
                go_on()
            finally:
                stop.set()
                for thread in threads:
                    thread.join()
    assert failures == []
    assert len(keys) >= 3
    assert listed == {1, 2}
