"""A strict reader of TOML tables, and the few values a policy writes (SPEC 12)."""

from __future__ import annotations

import re
import tomllib
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeVar

from casemate.errors import Code, PolicyError

if TYPE_CHECKING:
    from collections.abc import Iterable

T = TypeVar("T")

_HEX: Final = re.compile(r"([0-9a-f]{2})+")


def refuse(detail: str) -> NoReturn:
    """Raise PolicyError (POLICY_INVALID)."""
    raise PolicyError(Code.POLICY_INVALID, detail)


class Table:
    """One table, read key by key; what nobody has taken by ``close`` is unknown and refused."""

    def __init__(self, value: object, name: str) -> None:
        if not isinstance(value, dict):
            refuse(f"{name}: not a table")
        self._left: dict[str, Any] = dict(value)
        self._name = name

    @classmethod
    def loads(cls, text: str, name: str) -> Table:
        """Parse a whole TOML text."""
        try:
            return cls(tomllib.loads(text), name)
        except (ValueError, RecursionError) as error:
            refuse(f"not TOML: {str(error)[:200]}")

    def has(self, key: str) -> bool:
        """Whether ``key`` is there and not yet taken."""
        return key in self._left

    def take(self, key: str, kind: type[T]) -> T:
        """Take the value of a mandatory key; ``bool`` never passes for ``int``."""
        if key not in self._left:
            refuse(f"{self._name}: {key} is missing")
        value = self._left.pop(key)
        if type(value) is not kind:
            refuse(f"{self._name}: {key} has the wrong type")
        return value

    def optional(self, key: str, kind: type[T]) -> T | None:
        """Take the value of a key that may be missing."""
        return self.take(key, kind) if key in self._left else None

    def hex(self, key: str) -> bytes:
        """Take lower-case hex digits."""
        return self._bytes(key, self.take(key, str))

    def hex_set(self, key: str) -> frozenset[bytes]:
        """Take an array of lower-case hex digits in which nothing occurs twice."""
        values = [self._bytes(key, item) for item in self.take(key, list)]
        if len(set(values)) != len(values):
            refuse(f"{self._name}: {key} lists a value twice")
        return frozenset(values)

    def tables(self, key: str) -> list[Table]:
        """Take an array of tables."""
        return [Table(item, f"{key} {n}") for n, item in enumerate(self.take(key, list), 1)]

    def close(self) -> None:
        """Refuse what is left."""
        if self._left:
            refuse(f"{self._name}: unknown key {ascii(min(self._left))[:80]}")

    def _bytes(self, key: str, value: object) -> bytes:
        if not isinstance(value, str) or not _HEX.fullmatch(value):
            refuse(f"{self._name}: {key} is not lower-case hex")
        return bytes.fromhex(value)


def text(value: str) -> str:
    """Return a TOML basic string."""
    special = {'"': '\\"', "\\": "\\\\"}
    control = (f"\\u{ord(c):04x}" if c < " " or c == "\x7f" else special.get(c, c) for c in value)
    return f'"{"".join(control)}"'


def hex_list(values: Iterable[bytes]) -> str:
    """Return a TOML array of hex strings, sorted."""
    return "[" + ", ".join(f'"{value.hex()}"' for value in sorted(values)) + "]"
