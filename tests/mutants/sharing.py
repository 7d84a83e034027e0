"""What the enclave gives to each (SPEC 6.9, 8.8.4, 9.2): each bound and each ending of work off."""

from __future__ import annotations

from functools import partial

from tests.mutants.mutant import Mutant

_ENCLAVE = "enclave/casemate_enclave"
_shares = partial(
    Mutant,
    file="shares.py",
    tests=("tests/unit/enclave/test_shares.py",),
    package=_ENCLAVE,
)
_queue = partial(Mutant, tests=("tests/unit/enclave/test_scheduling.py",), package=_ENCLAVE)
_turns = partial(Mutant, tests=("tests/unit/enclave/test_turns.py",), package=_ENCLAVE)
_groups = partial(Mutant, tests=("tests/unit/enclave/test_stream_groups.py",), package=_ENCLAVE)
_streams = partial(Mutant, tests=("tests/unit/enclave/test_stream_parts.py",), package=_ENCLAVE)

_QUEUE = "fair_queue.py"
_CONTEXT = "context.py"
_CANCELLATION = "cancellation.py"
_LINK = "stream_link.py"
_DESK = "stream_desk.py"
_GROUPS = "stream_groups.py"
_MEMORY = "stream_memory.py"
_PLACES = "stream_places.py"

# fmt: off
MUTANTS = (
    _shares("shares: the capacity", old="if used > self.capacity + room:", new="if False:"),
    _shares("shares: the reserve", old="if used <= self._common + room or not self._used:", new="if True:"),
    _shares("shares: what is large, alone", old=" or not self._used:", new=":"),
    _shares("shares: for the listed", old="return not reserved and", new="return"),
    _shares("shares: an eighth each", old="and self._held.get(owner.key, 0) + size <= self._share", new=""),
    _shares("shares: who holds least first", old="min(fitting, key=lambda w: self._held.get(w.owner.key, 0))", new="fitting[0]"),
    _shares("shares: given back by who leaves", old="        self.free(waiter.owner, waiter.size)\n", new=""),
    _shares("shares: waiting ends", old="                give_up()\n", new="                pass\n"),
    _shares("shares: forgotten", old="                del self._held[owner.key]\n", new="                self._held[owner.key] = 0\n"),
    _queue("queue: the share", _QUEUE, old="len(self._owners.get(owner, ())) < self._share", new="True"),
    _queue("queue: in turn", _QUEUE, old="            self._owners.move_to_end(owner)\n", new="            pass\n"),
    _queue("queue: back in front", _QUEUE, old="        self._owners.move_to_end(job.owner, last=False)\n", new=""),
    _queue("unsent: runs wait", _CONTEXT, "return self._size >= limits.UNSENT_BYTES", "return False"),
    _turns("unsent: counted", _CONTEXT, "            self._unsent.add(size)\n", "            pass\n"),
    _turns("unsent: released", _CONTEXT, "            self._unsent.free(held)\n", "            pass\n"),
    _queue("unsent: released once", _CONTEXT, "held, self._held = self._held, 0", "held = self._held"),
    _streams("cancelled: what runs", _CANCELLATION, "            for run in self._runs:\n                run.terminate = True\n", ""),
    _streams("cancelled: what will run", _CANCELLATION, "            if self._cancelled:\n                run.terminate = True\n            else:", "            if True:"),
    _streams("cancelled: whoever waits", _CANCELLATION, "                self._event.set()\n", "                pass\n"),
    _streams("stream: bounded frames", _LINK, "receive_frame(self.channel, _LIMIT)", "receive_frame(self.channel, 1 << 31)"),
    _streams("stream: its frames alone", _LINK, "if frame.type != FrameType.STREAM:", "if False:"),
    _streams("stream: the host is gone", _LINK, "if any(event & _GONE for _, event in self._poll.poll(0)):", "if False:"),
    _streams("stream: its deadline", _LINK, "if not self._poll.poll(max(self._deadline - time.monotonic(), 0) * 1000):", "if not self._poll.poll(None):"),
    _streams("stream: expires", _LINK, "        self._expired = True\n", ""),
    _streams("stream: what is left has its runs waited for", _DESK, "            if self._left:  # although", "            if self._left and not self._closed:  # although"),
    _streams("stream: what nobody carried on with", _DESK, "            self._left.popleft().close()\n", "            self._left.popleft()\n"),
    _streams("stream: what the reader answers counts", _DESK, "            self._under_way += count\n", "            pass\n"),
    _groups("stream groups: the rest", _GROUPS, "for at, asked in enumerate(waiting) if at not in taken]", "for at, asked in enumerate(waiting) if False]"),
    _groups("stream places: what was not taken", _PLACES, "            give_back()\n        return taken", "            pass\n        return taken"),
    _groups("stream places: what is settled", _PLACES, "        self._give_back()\n        self._asker.settle(", "        self._asker.settle("),
    _streams("stream memory: the capacity", _MEMORY, "if size > self._shares.capacity:", "if False:"),
    _streams("stream memory: short units pass", _MEMORY, "limits.STREAM_SHORT if size <= limits.CHUNK else 0", "0"),
    _streams("stream places: given back", _PLACES, "                self._places.free(self._owner)\n", "                pass\n"),
    _streams("stream places: nobody waits", _PLACES, "if cancellation.cancelled or time.monotonic() >= deadline:", "if time.monotonic() >= deadline:"),
)
