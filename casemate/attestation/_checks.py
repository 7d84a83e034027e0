"""Small refusals shared by the parsers of this package."""

from __future__ import annotations

import re
from contextlib import contextmanager
from itertools import pairwise
from typing import TYPE_CHECKING, Final, TypeVar

from casemate import cbor
from casemate.errors import Code, EvidenceError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

Ordered = TypeVar("Ordered", bytes, int)

MODEL_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
VERSION_MAX: Final = (1 << 32) - 1


def require(holds: bool, code: Code, detail: str) -> None:  # noqa: FBT001 - the condition itself
    """Raise EvidenceError with ``code`` unless ``holds``."""
    if not holds:
        raise EvidenceError(code, detail)


def between(value: object, low: int, high: int, code: Code, name: str) -> None:
    """Require an integer (``bool`` is none) in ``low..high``."""
    if type(value) is not int or not low <= value <= high:
        raise EvidenceError(code, f"{name}: not a number from {low} to {high}")


def sized(value: object, low: int, high: int, code: Code, name: str) -> None:
    """Require bytes with a length in ``low..high``."""
    if type(value) is not bytes or not low <= len(value) <= high:
        size = f"{low}" if low == high else f"{low} to {high}"
        raise EvidenceError(code, f"{name}: not {size} bytes")


def matching(value: object, pattern: re.Pattern[str], code: Code, name: str) -> None:
    """Require text that ``pattern`` matches as a whole."""
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise EvidenceError(code, f"{name}: not of the form {pattern.pattern}")


def ascending(values: Sequence[Ordered]) -> bool:
    """Whether each value is greater than the one before it, so that none occurs twice."""
    return all(first < second for first, second in pairwise(values))


@contextmanager
def parsed(code: Code) -> Iterator[None]:
    """Translate the CBOR reader's refusals to EvidenceError with ``code``."""
    try:
        yield
    except cbor.CborError as error:
        raise EvidenceError(code, str(error)) from None
