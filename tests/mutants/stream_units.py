"""Several messages in one unit of a stream (SPEC 5.9.8), and what is read at once: each check off."""

from __future__ import annotations

from functools import partial

from tests.mutants.mutant import Mutant

_sealing = partial(
    Mutant, file="envelope/streaming.py", tests=("tests/unit/envelope/test_streams.py",)
)
_opening = partial(_sealing, file="envelope/stream_opening.py")
_inside = partial(
    Mutant,
    file="streams.py",
    tests=("tests/integration/test_stream_messages.py",),
    package="enclave/casemate_enclave",
)
_answers = partial(_inside, file="stream_answers.py")
_desk = partial(_inside, file="stream_desk.py", tests=("tests/unit/enclave/test_stream_parts.py",))
_groups = partial(
    _inside, file="stream_groups.py", tests=("tests/unit/enclave/test_stream_groups.py",)
)
_alike_inside = partial(
    _inside, file="questions.py", tests=("tests/unit/enclave/test_questions.py",)
)
_client = partial(
    Mutant,
    file="client/stream_sending.py",
    tests=("tests/unit/client/test_aio_streams.py",),
)
_core = partial(_client, file="client/stream_core.py")
_released = partial(_client, file="client/stream_answers.py")
_parts = partial(_client, file="envelope/questions.py")
_alike = partial(Mutant, file="oip/alike.py", tests=("tests/unit/test_alike.py",))
_arrays = partial(_alike, file="oip/layouts.py")
_shares = partial(_alike, file="tensors.py")

# fmt: off
MUTANTS = (
    _sealing("unit: as many answers as messages", old="return asked if trailer.status is _OK else 0", new="return min(asked, 1) if trailer.status is _OK else 0"),
    _sealing("unit: counted", old="        self._several[self._asked] = count\n", new=""),
    _sealing("unit: numbered", old="        self._asked += count\n", new="        self._asked += 1\n"),
    _sealing("unit: numbered alone", old="            self._asked += 1\n", new=""),
    _sealing("unit: final", old="        if asked > 1 and not trailer.final:\n", new="        if False:\n"),
    _sealing("unit: not too many", old="count > limits.QUESTIONS_MAX or padded_length", new="padded_length"),
    _sealing("unit: one chunk", old="count > limits.QUESTIONS_MAX or padded_length(filled) > limits.CHUNK:", new="count > limits.QUESTIONS_MAX:"),
    _sealing("unit: long answers", old="        self._rest_max = limits.STREAM_PART_MAX\n", new=""),
    _opening("unit: parts of a question", old="most_parts=limits.QUESTIONS_MAX,", new="most_parts=1000,"),
    _opening("unit: one chunk of messages", old="rest_max=lambda: 0,", new="rest_max=lambda: 1 << 30,"),
    _inside("unit: as many as the model takes", old="        if len(messages) > most:\n", new="        if False:\n"),
    _inside("unit: numbers", old="self._asked += len(messages)", new="self._asked += 1"),
    _answers("unit: none with receipts", old="return 1 if self._receipts else self._model.trailer.questions or 1", new="return self._model.trailer.questions or 1"),
    _answers("unit: a refusal for each", old="self.trailer(code, detail, question.unit), question.count)", new="self.trailer(code, detail, question.unit))"),
    _inside("unit: one length", old="floor = answering.floor * answered.count", new="floor = answering.floor"),
    _desk("unit: each counts", old="sum([question.count for question in questions])", new="len(questions)"),
    _desk("unit: each counts until it is answered", old="sum([one.count for one in answers if one.trailer.final])", new="sum([one.trailer.final for one in answers])"),
    _groups("groups: alone without a place", old="for at, outcome in outcomes:\n                (alone if isinstance(outcome, Left) else back)", new="for at, outcome in outcomes:\n                back"),
    _groups("groups: says so before", old="    if alone:\n        yield []\n", new=""),
    Mutant("streams: hands", file="streams.py", old=" and self._desk.has_hand(self._unhired)", new="", tests=("tests/unit/enclave/test_stream_parts.py",), package="enclave/casemate_enclave"),
    Mutant("streams: a slow reader's place", file="streams.py", old="                    self._hand_over(held)\n", new="                    self._give(held)\n", tests=("tests/unit/enclave/test_stream_parts.py",), package="enclave/casemate_enclave"),
    _desk("desk: short ones do not wait", old="if not placed or any(one.size > _SHORT for one in answered):", new="if True:"),
    _desk("desk: long ones wait", old="if not placed or any(one.size > _SHORT for one in answered):", new="if not placed:"),
    _desk("desk: hands for questions", old="self._idle + spare > len(self._questions) + len(self._left)", new="self._idle + spare > len(self._left)"),
    _desk("desk: hands for what is left", old="self._idle + spare > len(self._questions) + len(self._left)", new="self._idle + spare > len(self._questions)"),
    _groups("unit: another run", old="    again += more\n", new=""),
    _alike_inside("alike: rows that run together", old="fit = 0 < count * rows <= most and size <= limits.BATCH_BYTES_MAX", new="fit = 0 < count * rows"),
    _alike_inside("alike: a failure is one's", old="            self._apart = error.code in _SOMEBODYS\n            return None if self._apart else", new="            return"),
    _client("unit: half", old="self._most = max(1, in_flight // 2)", new="self._most = in_flight"),
    _client("unit: rows", old="if not units or rows > most or size", new="if not units or size"),
    _client("unit: bytes", old=" or rows > most or size > limits.QUESTIONS_REQUEST:", new=" or rows > most:"),
    _core("unit: whose answer", old="                self._numbered += len(unit)\n", new="                self._numbered += 1\n"),
    _core("unit: a refusal each", old="            if isinstance(inference, CasemateError):\n                asked.answers.failed(inference)\n", new="            if isinstance(inference, CasemateError):\n                pass\n"),
    _core("unit: a broken part ends all", old="            except RequestError as error:\n                for asked in several:", new="            except CasemateError as error:\n                for asked in several[:1]:"),
    _released("unit: receipts", old="return 1 if self.receipt else self._together", new="return self._together"),
    _released("unit: as answers say", old="        self._together[self._model] = together_next(messages, trailer.questions)\n", new=""),
    _parts("alike: all were answered", old="if any([part[0] != _ANSWERED for part in parts]):", new="if False:"),
    _alike("alike: one length", old="    if {*map(len, messages)} != {size}:\n        return None\n", new=""),
    _alike("alike: heads of contents", old="        if not _one_row(table[:, end:begin]):\n            return None\n", new=""),
    _alike("alike: descriptions", old="return tables[::-1] if _one_row(table[:, :end]) else None", new="return tables[::-1]"),
    _alike("alike: every byte", old="table.tobytes() == row * len(table)", new="table.tobytes().startswith(row)"),
    _arrays("alike: nothing to look at", old="if dtype is None or datatype in _CHECKED or not size or", new="if dtype is None or not size or"),
    _arrays("alike: sizes", old=" or not size or table.shape[1] != size:", new=" or not size:"),
    _arrays("alike: nobody changes them", old="        array.flags.writeable = False\n        arrays[name] = array\n", new="        arrays[name] = array\n"),
    _shares("shares: as many rows as went in", old="array.shape[:1] != (rows,):", new="not array.ndim:"),
)
