"""The fuzzer's entry with a fixed seed: a few thousand damaged inputs in every run of the tests."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest

from casemate.errors import EvidenceError
from tests.fuzz import documents

ROUNDS = 8_000


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.filterwarnings("ignore::cryptography.utils.CryptographyDeprecationWarning")
@pytest.mark.filterwarnings("ignore:Parsed a serial number which wasn't positive")
def test_damaged_inputs_are_refused_by_domain_errors(seed: int) -> None:
    source, seeds = random.Random(seed), documents.corpus()
    for _ in range(ROUNDS // 4):
        documents.check(documents.damaged(source, seeds))


def test_the_corpus_is_good() -> None:
    """Each target takes its seeds, or fuzzing would begin behind a closed door."""
    seeds = documents.corpus()
    accepted = [0] * len(documents.TARGETS)
    for seed in seeds:
        try:
            documents.TARGETS[seed[0]](seed[1:])
        except EvidenceError:
            continue
        accepted[seed[0]] += 1
    assert accepted[:5] == [24, 25, 25, 100, 25]  # one genuine document was tampered with
    assert accepted[5] >= 1
    assert all(first != second for first, second in pairwise(seeds))


def test_what_is_no_domain_error_escapes(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(data: bytes) -> None:
        raise KeyError

    monkeypatch.setattr(documents, "TARGETS", (broken,))
    with pytest.raises(KeyError):
        documents.check(b"\x00")
