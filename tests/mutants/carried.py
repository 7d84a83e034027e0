"""Calls that share a stream (SPEC 9.6.2), and what a host gives to each caller: each check off."""

from __future__ import annotations

from functools import partial

from tests.mutants.mutant import Mutant

_HOST = "host/casemate_host"
_client = partial(
    Mutant, tests=("tests/unit/client/test_call_stream.py",), package="casemate/client"
)
_stream = partial(
    Mutant,
    file="call_stream.py",
    tests=("tests/integration/host/test_call_streams.py",),
    package=_HOST,
)
_posting = partial(
    Mutant,
    file="posting.py",
    tests=("tests/integration/host/test_call_streams.py", "tests/unit/host/test_shared.py"),
    package=_HOST,
)
_shared = partial(
    Mutant, file="shared.py", tests=("tests/unit/host/test_shared.py",), package=_HOST
)
_supervisor = partial(
    Mutant,
    file="supervisor.py",
    tests=("tests/integration/host/test_enclave_life.py",),
    package=_HOST,
)
_unread = partial(
    Mutant,
    file="unread.py",
    tests=("tests/integration/host/test_unread.py", "tests/integration/host/test_call_streams.py"),
    package=_HOST,
)
_caller = partial(
    Mutant, file="callers.py", tests=("tests/unit/host/test_callers.py",), package=_HOST
)
_usage = partial(Mutant, file="usage.py", tests=("tests/unit/host/test_usage.py",), package=_HOST)
_egress = partial(
    Mutant, file="egress.py", tests=("tests/unit/host/test_egress.py",), package=_HOST
)
_workers = partial(
    Mutant, file="workers.py", tests=("tests/unit/host/test_workers.py",), package=_HOST
)
_pipe = partial(Mutant, tests=("tests/unit/host/test_pipe.py",), package=_HOST)

_BOOK = "call_book.py"
_CALLS = "call_stream.py"
_MESSAGES = "call_messages.py"
_BOOK_TESTS = ("tests/unit/client/test_call_book.py",)

# fmt: off
MUTANTS = (
    _client("book: whom nobody waits for", _BOOK, """                raise BrokenError(f"answered {entry.number}, which nobody waits for")\n""", "                pass\n"),
    _client("book: what cannot be read", _BOOK, """            raise BrokenError("a message that cannot be read") from None\n""", "            return False\n"),
    _client("book: given up is bounded", _BOOK, "if len(self._given_up) > limits.CALL_STREAM_GIVEN_UP_MAX:", "if False:", tests=_BOOK_TESTS),
    _client("book: given up is known", _BOOK, "        self._given_up.add(number)\n", "", tests=_BOOK_TESTS),
    _client("book: given up is dropped once", _BOOK, "                self._given_up.discard(entry.number)\n", "                pass\n", tests=_BOOK_TESTS),
    _client("book: the host is told", _BOOK, "        self._outbox.append(NumberedRequest(number=number))\n", ""),
    _client("book: reasons are a closed set", _BOOK, "known = refusal.reason in CLEAR_CODES", "known = True"),
    _client("book: the host's text", _BOOK, "printable(refusal.detail)", "refusal.detail"),
    _client("book: all fail with the stream", _BOOK, "            each.settle(failure)\n", "            pass\n"),
    _client("calls: reading is handed on", _CALLS, "            if not self._reading.locked():\n                self._have_one_read()\n", ""),
    _client("calls: nothing before the host's word", _CALLS, "            if not self._taking:\n                return None\n            self._used = now\n", "            self._used = now\n"),
    _client("calls: large ones by themselves", "transport.py", "            if len(request) > limits.CALL_STREAM_REQUEST_MAX:\n", "            if False:\n"),
    _client("calls: not again at once", _CALLS, "and time.monotonic() >= self._not_before", ""),
    _client("calls: ended when the host wants it", _CALLS, "            if last and not self._retired:", "            if False:"),
    _stream("carried: numbers", old="if not question.asked or question.asked in self._under_way:", new="if False:"),
    _stream("carried: numbers together: none", old="            or 0 in numbered\n", new=""),
    _stream("carried: numbers together: twice", old="            len(numbered) < len(questions)\n            or 0", new="            0"),
    _stream("carried: numbers together: under way", old="            or not self._under_way.keys().isdisjoint(numbered)\n", new=""),
    _stream("carried: a flood together", old="            or len(numbered) + len(self._under_way) > limits.CALL_STREAM_UNDER_WAY\n", new=""),
    _stream("carried: large ones together", file="infer_admission.py", old="            or max(sizes) > most\n", new=""),
    _stream("carried: a flood is shed", old="if len(self._under_way) >= limits.CALL_STREAM_UNDER_WAY:", new="if False:"),
    _stream("carried: read no further", old="            self._room.wait_for(lambda: self._over or self._has_room())\n", new="            pass\n"),
    _stream("carried: messages are bounded", old="    if len(message) > limits.CALL_STREAM_MESSAGE_MAX:", new="    if False:", file=_MESSAGES),
    _stream("carried: entries are bounded", old="    if len(entries) > limits.CALL_STREAM_ENTRIES_MAX:", new="    if False:", file=_MESSAGES),
    _stream("carried: what cannot be read", old="""        raise CasemateError(Code.MALFORMED, "a message that cannot be read") from None\n""", new="        return ()\n", file=_MESSAGES),
    _stream("carried: given up", old="            question.connection.give_up(question)\n", new="            pass\n"),
    _stream("carried: place is given back", old="        self._admission.leave(self._caller)\n        self._refuse(question, error)\n", new="        self._refuse(question, error)\n"),
    _stream("carried: forgotten by the enclave", old="            self._drop(question, FrameError(Code.DEADLINE_EXCEEDED, detail))\n", new="            pass\n"),
    _stream("carried: old streams end", old="return self._retiring or old or idle", new="return self._retiring"),
    _stream("carried: who does not end is cut", old="now - self._retired_at > limits.CALL_STREAM_CLOSE_S", new="False"),
    _stream("carried: with the stream all ends", old="""            self._drop(question, FrameError(Code.DEADLINE_EXCEEDED, "the caller went away"))\n        self._ready.drop()""", new="            pass\n        self._ready.drop()"),
    _posting("posted: somebody reads", old="            if self._questions and self._reading.acquire(blocking=False):", new="            if False:"),
    _shared("shared: the enclave is told", old="        self._outbox.append(word)\n", new=""),
    _shared("shared: reading is handed on", old="            self._used = time.monotonic()\n            self._close_unused()\n            self._have_one_read()\n", new="            self._used = time.monotonic()\n            self._close_unused()\n"),
    _shared("shared: silent between exchanges", old="        self._over = True\n        self._close_unused()\n        return False\n", new="        return True\n"),
    _unread("unread: calls", old="if self.count >= self._most or", new="if"),
    _unread("unread: bytes", old=" or self._size >= limits.UNREAD_BYTES:", new=":"),
    _unread("unread: in time", old="if answer.until <= now]", new="if False]"),
    _unread("unread: ended", old="                self._size -= answer.size\n", new="                pass\n"),
    _unread("unread: on streams", old="            self.count += count\n            self._size += size\n", new="            pass\n", tests=("tests/unit/host/test_unread.py",)),
    _caller("caller: unread answers", old="        self.unread.check()\n        if self._slots", new="        if self._slots", tests=("tests/integration/host/test_unread.py",)),
    _caller("caller: places come back", old="        except ShedError:\n            self.leave()\n            raise\n", new="        except ShedError:\n            raise\n"),
    _caller("caller: one by one", old="        if self._bucket is not None or self.quota is not None:\n            return False\n", new=""),
    _caller("caller: unread answers, together", old="        try:\n            self.unread.check()\n", new="        try:\n"),
    _workers("workers: room for all", old="            if self._held + count > self.count:\n                return False\n", new=""),
    _caller("caller: a day's calls", old="self._calls is not None and self._used_calls >= self._calls", new="False"),
    _caller("caller: a day's bytes", old="self._bytes is not None and self._used_bytes >= self._bytes", new="False"),
    _usage("usage: the present day", old="if used.day == self._day:", new="if True:", file="callers.py"),
    _usage("usage: numbers", old="type(n) is int and n >= 0", new="True"),
    _usage("usage: whole or not at all", old='fresh = path.with_name(path.name + ".new")', new="fresh = path"),
    _usage("usage: not over what is none", old="""        raise _unusable(path, "it is no record of usage") from None\n""", new="        return {}\n"),
    _egress("egress: places come back", old="        self._slots.free()\n", new=""),
    _egress("egress: the excess", old="            self._slots.take()\n", new="            pass\n"),
    _egress("egress: the list", old="self._config.allow.get(name) if name is not None else None", new='("127.0.0.1", 9)'),
    _egress("egress: the enclave alone", old="if self._cid is not None and", new="if False and"),
    _pipe("pipe: not sent again in part", "relay.py", "if len(payload) < size:", "if False:"),
    _pipe("pipe: without what nobody took", "framed_channel.py", " or len(self._pipe):", ":"),
    _pipe("pipe: what does not fit", "framed_channel.py", "return self._pipe.drain()", 'return b""'),
    _pipe("pipe: ends with its connection", "framed_channel.py", "        self._channel.close()\n        self._close_pipe()\n", "        self._channel.close()\n"),
    _pipe("pipe: full", "pipe.py", ", flags=os.SPLICE_F_NONBLOCK)", ")"),
    _workers("workers: bounded", old="elif self._alive < self.count:", new="elif True:"),
    _workers("workers: end when idle", old="free.wake.acquire(timeout=limits.THREAD_IDLE_S)", new="free.wake.acquire()"),
    _workers("workers: keep nothing", old="            task = None  # nor what it answered: the next call may be long in coming\n", new=""),
    _workers("workers: nor of the first", old="task, first.task = first.task, None", new="task = first.task"),
    _workers("workers: none after the end", old="            if self._over:\n                raise", new="            if False:\n                raise"),
    _supervisor("evidence: for now the held one", old="old or error.code not in _CANNOT_ATTEST", new="True"),
    _supervisor("evidence: until it is too old", old="old or error.code not in _CANNOT_ATTEST", new="error.code not in _CANNOT_ATTEST"),
    _supervisor("evidence: one that fails ends service", old="old or error.code not in _CANNOT_ATTEST", new="old"),
    _supervisor("evidence: no credentials without", old=" or self._evidence_problem", new=""),
    _supervisor("evidence: asked for again", old="            self._due = 0.0  # the next round tries again\n", new=""),
)
