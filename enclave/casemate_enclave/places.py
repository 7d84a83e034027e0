"""The places of one model, and who waits for one (SPEC 8.8.1).

No thread of its own: who finishes hands its place to whoever's turn it is.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from casemate.errors import Code, RequestError
from casemate_enclave.batching import Group, Job, State
from casemate_enclave.fair_queue import FairQueue

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from casemate_enclave.batching import Tensors

_WAITING = frozenset({State.QUEUED, State.JOINED})


class Places:
    """Thread-safe; what a method says of a job's state holds under ``lock``."""

    def __init__(self, count: int, queue: int, may_begin: Callable[[Job], bool]) -> None:
        """``count`` runs at a time, ``queue`` jobs that wait.

        ``may_begin``: whether one whose turn it is may take a free place now; who says no has
        ``grant`` called later.
        """
        self.lock = threading.Lock()
        self.free = count
        self.queue = FairQueue(queue)
        self._may_begin = may_begin

    def enter(self) -> bool:
        """Take a place if one is free and nobody waits for it."""
        with self.lock:
            if not self.free or self.queue:
                return False
            self.free -= 1
            return True

    def leave(self) -> None:
        """Give a place up, to whoever waits for it."""
        with self.lock:
            self.free += 1
            self.grant()

    def enqueue(self, job: Job) -> bool:
        """Let the job wait; False if a place became free meanwhile, which it then holds.

        Raises RequestError(OVERLOADED).
        """
        with self.lock:
            if not self.free and not self.queue.has_room(job.owner):
                raise RequestError(Code.OVERLOADED, "too many requests wait for the model")
            self.queue.append(job)
            self.grant()
            return job.state is State.QUEUED

    def grant(self) -> None:
        """Give free places to those that wait; the caller holds the lock."""
        while self.free and self.queue and self._may_begin(self.queue.first):
            self.free -= 1
            job = self.queue.pop()
            job.state = State.GRANTED
            job.rouse()

    def await_turn(self, job: Job) -> None:
        """Return when the job is granted a place or done; raises DEADLINE_EXCEEDED."""
        job.wake.acquire(timeout=max(0.0, job.deadline - time.monotonic()))
        if self.give_up(job):
            raise RequestError(Code.DEADLINE_EXCEEDED, "the deadline passed before the model ran")

    def give_up(self, job: Job) -> bool:
        """Have a job wait no longer; False if it is granted a place or done."""
        group = None
        with self.lock:
            if job.state is State.QUEUED:
                self.queue.remove(job)
            if job.state in _WAITING:
                group = job.group if job.state is State.JOINED else None
                job.state = State.LEFT
                job.wake.release()
            left = job.state is State.LEFT
        if group is not None:
            group.leave()
        return left

    # Jobs that another one runs; all wait with threads of their own

    def take(self, members: Sequence[Job], group: Group) -> None:
        """Have jobs run by another one; the caller holds the lock."""
        for member in members:
            self.queue.remove(member)
            member.state = State.JOINED
            member.group = group

    def hand_out(self, members: Sequence[Job], answers: Sequence[Tensors]) -> None:
        """Give each its answer, unless it has left."""
        with self.lock:
            for member, answer in zip(members, answers, strict=True):
                if member.state is State.JOINED:
                    member.answer = answer
                    member.state = State.DONE
                    member.wake.release()

    def put_back(self, members: Sequence[Job]) -> None:
        """Put jobs back, in front and each to run alone: one of them spoilt the run."""
        with self.lock:
            for member in reversed(members):
                if member.state is State.JOINED:
                    member.alone = True
                    member.state = State.QUEUED
                    self.queue.put_back(member)
            self.grant()
