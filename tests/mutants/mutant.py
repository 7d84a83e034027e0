"""One change to one line of Casemate that a test must notice."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, slots=True)
class Mutant:
    """``old`` occurs exactly once in ``file`` (below ``package``); ``new`` takes its place.

    ``tests`` are the files of which one must fail: a failed assertion, not an error of import.
    """

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]
    package: str = "casemate"

    @property
    def path(self) -> str:
        """The changed file, relative to the repository."""
        return f"{self.package}/{self.file}"

    def applied(self, source: str) -> str:
        """Return ``source`` with the change; raises ValueError if it does not fit."""
        if source.count(self.old) != 1:
            raise ValueError(f"{self.name}: occurs {source.count(self.old)} times, not once")
        return source.replace(self.old, self.new)
