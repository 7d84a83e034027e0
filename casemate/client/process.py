"""What must not cross a fork: connections, locks and, above all, data keys (SPEC 6.2)."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


class OfThisProcess(Generic[T]):
    """A value that each process makes for itself.

    Two processes under one data key would use each sequence twice, and the enclave would take one
    of the two requests for a replay. The parent's value stays referenced in the child and is never
    used there: closing it would close the parent's connections.
    """

    def __init__(self, make: Callable[[], T]) -> None:
        """``make`` the value for this process now."""
        self._make = make
        self._of: dict[int, T] = {os.getpid(): make()}

    def get(self) -> T:
        """Return this process's value, made anew in a process that was forked."""
        process = os.getpid()
        if process not in self._of:
            self._of[process] = self._make()
        return self._of[process]
