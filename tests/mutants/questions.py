"""Several questions in one request (SPEC 5.10): each check and each bound off."""

from __future__ import annotations

from functools import partial

from tests.mutants.mutant import Mutant

_parts = partial(
    Mutant, file="envelope/questions.py", tests=("tests/unit/envelope/test_questions.py",)
)
_sealing = partial(
    Mutant, file="envelope/sealing.py", tests=("tests/unit/envelope/test_questions.py",)
)
_opening = partial(
    Mutant, file="envelope/opening.py", tests=("tests/unit/envelope/test_questions.py",)
)
_messages = partial(
    Mutant, file="envelope/messages.py", tests=("tests/unit/envelope/test_questions.py",)
)
_inside = partial(
    Mutant,
    file="questions.py",
    tests=("tests/integration/test_questions.py",),
    package="enclave/casemate_enclave",
)
_service = partial(_inside, file="service.py")
_client = partial(
    Mutant,
    file="client/aio_together.py",
    tests=("tests/unit/client/test_aio_together.py",),
)
_core = partial(_client, file="client/core.py")

# fmt: off
MUTANTS = (
    _parts("question: answered", old="if part[0] == _ANSWERED and len(part) > 1:", new="if len(part) > 1:"),
    _parts("question: an answer's message", old="if part[0] == _ANSWERED and len(part) > 1:", new="if part[0] == _ANSWERED:"),
    _parts("question: refused", old="if part[0] != _REFUSED or len(part) > limits.TRAILER_MAX:", new="if len(part) > limits.TRAILER_MAX:"),
    _parts("question: a refusal's status", old="if code is Code.OK or code not in SEALED_STATUSES or len(", new="if len("),
    _parts("question: a refusal's detail", old=" or len(detail.encode()) > limits.DETAIL_MAX:", new=":"),
    _parts("question: a refusal that is made", old="if code is Code.OK or code not in SEALED_STATUSES:\n        raise ValueError", new="if False:\n        raise ValueError"),
    _parts("question: a detail that is made", old="detail.encode()[: limits.DETAIL_MAX]", new="detail.encode()"),
    _sealing("questions: an answer to each", old="if len(messages) != (self._questions if good else 0):", new="if not messages and good:"),
    _sealing("questions: none with a refusal", old="if len(messages) != (self._questions if good else 0):", new="if good and len(messages) != self._questions:"),
    _opening("questions: an answer to each is made", old="len(opened.messages) if trailer.status == Code.OK else 0", new="len(messages)"),
    _messages("trailer: questions", old='_require(within, "questions out of bounds")', new="pass"),
    _inside("questions: rows that run together", old="        return 1\n", new="        return 2\n"),
    _inside("questions: rows of a request", old="rows = min(serving.batch_rows, serving.request_rows or serving.batch_rows)", new="rows = serving.batch_rows"),
    _inside("questions: room for answers", old=", limits.QUESTIONS_ANSWERS // bucket))", new="))"),
    _inside("questions: a failure is one's", old="if error.code not in _SOMEBODYS:", new="if True:"),
    _inside("questions: their places", old="return [self._answers[place] for place in range(len(self._answers))]", new="return [*self._answers.values()]"),
    _inside("questions: a bad message alone", old="                self._answers[place] = _refused(error)\n            else:", new="                raise\n            else:"),
    _service("questions: of tensors", old="if preamble.operation != INFER or preamble.sealed_data is not None or preamble.receipt:", new="if False:"),
    _service("questions: as many as the model takes", old="    if count > most:\n", new="    if False:\n"),
    _service("questions: one length", old="floor=outcome.floor * len(opened.messages),", new="floor=outcome.floor,"),
    _client("together: alike", old="_Alike(question.model, question.version, timeout_s, repeatable)", new="_Alike(question.model, None, 30.0, False)"),
    _client("together: at most half", old="_evenly(members, self._under_way // 2)", new="_evenly(members, self._under_way)"),
    _client("together: as many as each may be with", old="most = max(1, min(most, *(member.most for member in members)))", new="most = max(1, most)"),
    _client("together: who left is not asked", old=" if not m.outcome.done()]", new="]"),
    _client("together: ended when all left", old="                member.outcome.add_done_callback(leaving)\n", new="                pass\n"),
    _client("together: only when all left", old="if not self._left and outcome.cancelled():", new="if outcome.cancelled():"),
    _client("together: an error each", old="raise _anew(outcome)", new="raise outcome"),
    _client("together: asked again", old="repeatable=repeatable, timeout_s=timeout_s, failed=failed", new="repeatable=repeatable, timeout_s=timeout_s"),
    _client("together: a time", old="                deadline_after(timeout_s)  # refuses what is no time\n", new=""),
    _core("together: receipts", old="if session is None or question.receipt:", new="if session is None:"),
    _core("together: as the enclave says", old="session.together.get((entry.name, entry.version), 1)", new="32"),
    _core("together: long answers", old=", limits.QUESTIONS_ANSWERS // length))", new=", 32))"),
    _core("together: long questions", old="limits.QUESTIONS_REQUEST // max(1, question.size())", new="32"),
)
