"""Hypothesis for mutants: the same examples each time, so that a failure is the mutant's."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("mutants", deadline=None, derandomize=True, database=None)
settings.load_profile("mutants")
