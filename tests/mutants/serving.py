"""Joined runs (SPEC 8.8): each defence against mixing callers' rows off."""

from __future__ import annotations

from functools import partial

from tests.mutants.mutant import Mutant

TESTS = ("tests/unit/enclave/test_scheduling.py",)
_made = partial(Mutant, tests=TESTS, package="enclave/casemate_enclave")

_BATCHING = "batching.py"
_SCHEDULING = "scheduling.py"
_PLACES = "places.py"
_offered = partial(
    Mutant,
    file="offers.py",
    tests=("tests/unit/enclave/test_offers.py",),
    package="enclave/casemate_enclave",
)

# fmt: off
MUTANTS = (
    _made("split: rows of all", _BATCHING, "array.ndim <= axis or array.shape[axis] != total", "False"),
    _made("split: where it starts", _BATCHING, "        start = end\n", ""),
    _made("split: where it ends", _BATCHING, "slice(start, end)", "slice(start, None)"),
    _made("gather: shapes", _BATCHING, "or job.shape != leader.shape", ""),
    _made("gather: alone", _BATCHING, "if job.alone or", "if"),
    _made("gather: rows", _BATCHING, "rows + job.rows > most_rows or", ""),
    _made("gather: bytes", _BATCHING, "or size + job.size > limits.BATCH_BYTES_MAX", ""),
    _made("gather: time", _BATCHING, "job.deadline <= cut or", ""),
    _made("rows: differ", _BATCHING, "if len(counts) != 1:", "if False:"),
    _made("rows: bound", _SCHEDULING, "if most is not None and rows > most:", "if False:"),
    _made("joined: its time", _SCHEDULING, "until = min(cut, time.monotonic() + self._bounds.run_s)", "until = members[0].deadline"),
    _made("joined: spoilt members run alone", _PLACES, "                    member.alone = True\n", ""),
    _made("run: its time", _SCHEDULING, "until = min(deadline, time.monotonic() + self._bounds.run_s)", "until = deadline"),
    _made("queue: bound", _PLACES, "if not self.free and not self.queue.has_room(job.owner):", "if False:"),
    _made("place: given up", _PLACES, "            self.free += 1\n", ""),
    _offered("offered: its time", old="deadline=min(cut, now + self._bounds.run_s),", new="deadline=leader.deadline,"),
    _offered("offered: the queue", old="if places.queue.has_room(offer.owner):", new="if True:"),
    _offered("offered: somebody looks after it", old="if not (places.free or self._leaders):", new="if False:"),
    _offered("offered: to the last", old="over = not self._pacing.waiting or self._leaders > 1", new="over = True"),
    _offered("offered: unsent answers", old="self._begin(members) if leader.has_room else None", new="self._begin(members)"),
    _offered("offered: places", old="            places.free += 1\n", new=""),
    _offered("offered: others go on", file="pacing.py", old="late = time.monotonic() > min(self._begun.values()) + limits.LATE_S", new="late = False"),
    _offered("offered: waits for a moment", old="lambda: self._pacing.waiting + 1 >= before", new="lambda: True"),
    _offered("offered: shares", file="pacing.py", old="if not self._take_long:\n            return self._most", new="if True:\n            return self._most"),
    _offered("offered: begun here, alone", old="if len(offers) == self._pacing.waiting == 1:", new="if True:"),
    _offered("offered: begun here, at once", old="offers[0].lead = here.append", new="pass"),
    _offered("offered: led by threads from then on", old="            offers[0].lead = self._lead\n", new=""),
    _offered("offered: begun here, counted", old="            for _ in here:\n                self._note_lead()\n", new=""),
    _offered("offered: begun here, paced", old="            self._pacing.begin(id(leader), leader.begun)\n        try:", new="            pass\n        try:"),
    _offered("offered: begun here, without waiting", old="self._begin([leader], patient=False)", new="self._begin([leader], patient=True)"),
    _offered("offered: begun here, once", old="members = [leader] if together else self._members(leader)", new="members = self._members(leader)"),
    _offered("offered: the time is used", old="            _use_the_time(members)\n", new=""),
    _offered("offered: the time is used, whatever comes of it", old="with contextlib.suppress(Exception):\n                member.run.meanwhile()", new="member.run.meanwhile()"),
    _offered("offered: ends in the queue", old="and not o.is_waited_for]", new="and False]"),
)
