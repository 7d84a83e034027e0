"""The table of mutants fits the code of today; `make mutants` tries them."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import pytest

from casemate.attestation import STEPS
from tests.mutants import verifier
from tests.mutants.mutant import ROOT
from tests.mutants.tables import MUTANTS

if TYPE_CHECKING:
    from tests.mutants.mutant import Mutant


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_each_changes_one_place_to_code_that_compiles(mutant: Mutant) -> None:
    source = (ROOT / mutant.path).read_text()
    changed = mutant.applied(source)
    assert changed != source
    compile(changed, mutant.path, "exec")


def test_the_tests_that_are_named_exist() -> None:
    assert all((ROOT / test).is_file() for mutant in MUTANTS for test in mutant.tests)


def test_names_are_distinct() -> None:
    assert [name for name, count in Counter(m.name for m in MUTANTS).items() if count > 1] == []


def test_every_step_of_the_verifier_has_mutants() -> None:
    assert {int(mutant.name.split()[0]) for mutant in verifier.STEPS} == set(STEPS)
