"""Reading a TOML table key by key; what nobody took is refused.

Errors are CasemateError(INVALID_ARGUMENT) and name the key.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from casemate import limits
from casemate.channel import Address, parse_address
from casemate.errors import CasemateError, Code

if TYPE_CHECKING:
    from pathlib import Path

_ENDPOINT = re.compile(r"(?:\[[0-9a-f:.]{2,45}\]|[A-Za-z0-9._-]{1,253}):(\d{1,5})", re.ASCII)
_PORT_MAX = 65_535


def parse_endpoint(text: str, where: str) -> tuple[str, int]:
    """Parse ``host:port`` (``[v6]:port``); raises CasemateError(INVALID_ARGUMENT)."""
    match = _ENDPOINT.fullmatch(text)
    if match is None or int(match[1]) > _PORT_MAX:
        raise refused(f"{where}: not host:port: {text[:80]!r}")
    return text.rsplit(":", 1)[0].strip("[]"), int(match[1])


def refused(detail: str) -> CasemateError:
    """Return the error of a configuration that cannot be used."""
    return CasemateError(
        Code.INVALID_ARGUMENT, f"host configuration: {detail}"[: limits.DETAIL_MAX]
    )


class Table:
    """One TOML table whose keys are taken one by one; what nobody took is refused at the end."""

    def __init__(self, name: str, values: dict[str, Any], folder: Path) -> None:
        self._name = name
        self._values = dict(values)
        self._folder = folder

    def has(self, key: str) -> bool:
        """Whether there is a key that nobody took."""
        return key in self._values

    def end(self) -> None:
        """Refuse what is left."""
        if self._values:
            raise refused(f"unknown key {self._where(min(self._values))[:120]}")

    def table(self, key: str) -> Table:
        """Take a table."""
        return Table(self._where(key), self._take(key, dict, "table"), self._folder)

    def tables(self, key: str, most: int) -> list[Table]:
        """Take an array of at most ``most`` tables, empty if there is none."""
        values = self._take(key, list, "array of tables", [])
        if len(values) > most or not all(type(value) is dict for value in values):
            raise refused(f"{self._where(key)}: not an array of at most {most} tables")
        where = self._where(key)
        return [Table(f"{where}[{at}]", value, self._folder) for at, value in enumerate(values)]

    def text(self, key: str, default: str | None = None) -> str:
        """Take a string."""
        value: str = self._take(key, str, "string", default)
        return value

    def texts(self, key: str, most: int) -> tuple[str, ...]:
        """Take an array of at most ``most`` different strings, empty if there is none."""
        values = self._take(key, list, "array of strings", [])
        if not all(isinstance(value, str) for value in values):
            raise refused(f"{self._where(key)}: not an array of strings")
        if len(set(values)) != len(values) or len(values) > most:
            raise refused(f"{self._where(key)}: duplicate, or more than {most}")
        return tuple(values)

    def optional_integer(self, key: str, low: int, high: int) -> int | None:
        """Take an integer if there is one."""
        return self.integer(key, low, high) if self.has(key) else None

    def integer(self, key: str, low: int, high: int, default: int | None = None) -> int:
        """Take an integer within the bounds."""
        value: int = self._take(key, int, "integer", default)
        if not low <= value <= high:
            raise refused(f"{self._where(key)}: not within {low} and {high}")
        return value

    def seconds(self, key: str, high: int, default: float, low: int = 1) -> float:
        """Take whole seconds."""
        return float(self.integer(key, low, high)) if self.has(key) else default

    def path(self, key: str) -> Path:
        """Take a path."""
        return self._folder / self.text(key)

    def optional_path(self, key: str) -> Path | None:
        """Take a path if there is one."""
        return self.path(key) if self.has(key) else None

    def paths(self, key: str, most: int) -> tuple[Path, ...]:
        """Take an array of at most ``most`` different paths."""
        return tuple(self._folder / text for text in self.texts(key, most))

    def address(self, key: str) -> Address:
        """Take a ``unix:`` or ``vsock:`` address."""
        try:
            return parse_address(self.text(key))
        except CasemateError as error:
            raise refused(f"{self._where(key)}: {error.detail}") from None

    def endpoints(self) -> dict[str, tuple[str, int]]:
        """Take every key: ``host:port`` to ``host:port``."""
        result = {}
        for name in sorted(self._values):
            parse_endpoint(name, self._name)
            if len(name) > limits.EGRESS_NAME_MAX:
                raise refused(f"{self._name}: name too long")
            result[name] = parse_endpoint(self.text(name), self._where(name))
        return result

    def _where(self, key: str) -> str:
        return f"{self._name}.{key}" if self._name else key

    def _take(self, key: str, kind: type, expected: str, default: object = None) -> Any:  # noqa: ANN401 - TOML
        value = self._values.pop(key, default)
        if value is None:
            raise refused(f"{self._where(key)} is missing")
        if type(value) is not kind:
            raise refused(f"{self._where(key)}: not a {expected}")
        return value
