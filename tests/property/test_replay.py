"""The replay table against the simplest thing that is right: every sequence ever seen, in sets."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule

from casemate.envelope.replay import ReplayTable
from casemate.errors import Code, EnvelopeError

BOOT = 1_000_000
SPAN_MAX = 3_600_000
WINDOW = 1024
CAPACITY = 8
STRANGERS, OWNERS = 4, 1  # half of them for all strangers, an eighth for each owner

sequences = st.one_of(
    st.integers(0, 40),
    st.integers(1000, 1050),
    st.integers(2000, 2100),
    st.integers(0, (1 << 20) - 1),
)


class ReplayMachine(RuleBasedStateMachine):
    """Sessions by (commitment, times); the oracle forgets a session only when it has ended."""

    sessions = Bundle("sessions")

    def __init__(self) -> None:
        super().__init__()
        self.table = ReplayTable(BOOT, CAPACITY)
        self.now = BOOT
        self.seen: dict[bytes, set[int]] = {}
        self.times: dict[bytes, tuple[int, int]] = {}
        self.charged: dict[bytes, bytes | None] = {}
        self.executed: set[tuple[bytes, int, int, int]] = set()

    def room(self, owner: bytes | None) -> bool:
        held = sum(charged == owner for charged in self.charged.values())
        share = STRANGERS if owner is None else OWNERS
        return len(self.charged) < CAPACITY and held < share

    def expected(
        self, commitment: bytes, start: int, end: int, sequence: int, owner: bytes | None
    ) -> Code:
        if start < BOOT or start > self.now:
            return Code.STALE_SESSION
        if end <= self.now:
            return Code.EXPIRED
        if end - start > SPAN_MAX:
            return Code.MALFORMED
        if commitment not in self.seen:
            return Code.OK if self.room(owner) else Code.OVERLOADED
        if self.times[commitment] != (start, end):
            return Code.STALE_SESSION
        seen = self.seen[commitment]
        late = sequence < max(seen) - WINDOW
        return Code.REPLAYED if sequence in seen or late else Code.OK

    @rule(
        target=sessions,
        commitment=st.sampled_from([bytes([number]) for number in range(14)]),
        start=st.integers(-5, 50),
        span=st.one_of(st.integers(0, 200), st.just(SPAN_MAX), st.just(SPAN_MAX + 1)),
    )
    def make(self, commitment: bytes, start: int, span: int) -> tuple[bytes, int, int]:
        return (commitment, self.now + start - 25, self.now + start - 25 + span)

    @rule(
        session=sessions,
        sequence=sequences,
        lag=st.integers(0, 300),
        owner=st.none() | st.sampled_from([bytes([letter]) for letter in b"ABCDEF"]),
    )
    def send(
        self, session: tuple[bytes, int, int], sequence: int, lag: int, owner: bytes | None
    ) -> None:
        """``lag``: the thread read the clock earlier than others that came before it."""
        commitment, start, end = session
        expected = self.expected(commitment, start, end, sequence, owner)
        now = max(BOOT, self.now - lag)
        try:
            self.table.accept(commitment, start, end, sequence, now, owner=owner)
            outcome = Code.OK
        except EnvelopeError as error:
            outcome = error.code
        assert outcome == expected
        if outcome == Code.OK:
            assert (*session, sequence) not in self.executed
            self.executed.add((*session, sequence))
            self.seen.setdefault(commitment, set()).add(sequence)
            self.times[commitment] = (start, end)
            self.charged.setdefault(commitment, owner)

    @rule(step=st.one_of(st.integers(0, 30), st.integers(0, SPAN_MAX)))
    def wait(self, step: int) -> None:
        self.now += step
        # A request that is refused in any case tells the table the time.
        try:
            self.table.accept(b"", 0, 0, 0, self.now)
        except EnvelopeError as error:
            assert error.code == Code.STALE_SESSION  # noqa: PT017 - always refused
        for commitment, (_, end) in list(self.times.items()):
            if end <= self.now:
                del self.times[commitment], self.seen[commitment], self.charged[commitment]

    @invariant()
    def bounded(self) -> None:
        assert len(self.table) <= CAPACITY
        assert self.table.live(self.now) == len(self.seen)


TestReplay = ReplayMachine.TestCase
TestReplay.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)
