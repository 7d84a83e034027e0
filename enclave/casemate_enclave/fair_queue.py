"""Requests that wait for one model: each asker's in order, the askers in turn (SPEC 8.8.1)."""

from __future__ import annotations

from collections import OrderedDict, deque
from itertools import zip_longest
from typing import TYPE_CHECKING

from casemate import limits

if TYPE_CHECKING:
    from collections.abc import Iterator

    from casemate_enclave.batching import Job


class FairQueue:
    """A queue of jobs; not thread-safe. Costs the same however many wait."""

    def __init__(self, most: int) -> None:
        """``most``: how many may wait."""
        self._most = most
        self._share = max(1, most // limits.SHARE_DIVISOR)
        self._common = most - most // limits.RESERVE_DIVISOR
        self._count = 0
        self._owners: OrderedDict[bytes | None, deque[Job]] = OrderedDict()

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Job]:
        """All jobs in the order in which they would be taken."""
        for jobs in zip_longest(*self._owners.values()):
            yield from (job for job in jobs if job is not None)

    def has_room(self, owner: bytes | None) -> bool:
        """Whether one more job of ``owner`` may wait."""
        if self._count < self._common:
            return True
        return self._count < self._most and len(self._owners.get(owner, ())) < self._share

    def append(self, job: Job) -> None:
        """Add a job behind those of its owner."""
        self._owners.setdefault(job.owner, deque()).append(job)
        self._count += 1

    def put_back(self, job: Job) -> None:
        """Add a job before all others."""
        self._owners.setdefault(job.owner, deque()).appendleft(job)
        self._owners.move_to_end(job.owner, last=False)
        self._count += 1

    @property
    def first(self) -> Job:
        """The next job, of which there has to be one."""
        return next(iter(self._owners.values()))[0]

    def pop(self) -> Job:
        """Remove the next job; its owner's others come after those of all other owners."""
        owner, jobs = next(iter(self._owners.items()))
        job = jobs.popleft()
        self._count -= 1
        if jobs:
            self._owners.move_to_end(owner)
        else:
            del self._owners[owner]
        return job

    def remove(self, job: Job) -> None:
        """Remove this job."""
        jobs = self._owners[job.owner]
        jobs.remove(job)
        self._count -= 1
        if not jobs:
            del self._owners[job.owner]
