"""Objects that hold keys give nothing away."""

from __future__ import annotations

import copy
import pickle
from typing import TYPE_CHECKING

import pytest

from casemate.envelope.chunks import ChunkCipher
from casemate.sealed_model import ModelReader
from tests.support import envelope as env

if TYPE_CHECKING:
    from collections.abc import Callable

SECRET = b"planted-secret-planted-secret-00"


def holders() -> list[object]:
    session = env.kms_session()
    call = env.seal(session, SECRET)
    opened = env.open_sealed(call.header, call.ciphertext)
    return [env.KEM, session, call, opened, ChunkCipher(SECRET, b""), ModelReader()]


@pytest.mark.parametrize("escape", [pickle.dumps, copy.copy, copy.deepcopy])
def test_keys_are_neither_pickled_nor_copied(escape: Callable[[object], object]) -> None:
    for holder in holders():
        with pytest.raises(TypeError, match="keys"):
            escape(holder)


def test_keys_are_not_shown() -> None:
    for holder in holders():
        assert repr(holder) == str(holder) == f"<{type(holder).__name__}: redacted>"


def test_answers_do_not_show_their_message() -> None:
    call = env.seal(env.kms_session())
    answer = env.answer(env.open_sealed(call.header, call.ciphertext), SECRET)
    assert repr(call.open(answer.header, answer.ciphertext)) == "<OpenedAnswer: OK>"
