"""Threads that a test is about, among those of everybody in its process."""

from __future__ import annotations

import threading


class Newcomers:
    """The threads that began after this was made.

    Other tests' clients live on in the process, for its whole run.
    """

    def __init__(self) -> None:
        self._before = set(threading.enumerate())

    def names(self) -> set[str]:
        """The names of those that still run."""
        return {each.name for each in set(threading.enumerate()) - self._before}
