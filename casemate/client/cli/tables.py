"""Aligned text for people. Whatever comes from elsewhere is escaped before a terminal sees it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

_GAP = "  "
_WIDE = 132


def printable(text: str) -> str:
    """Escape what could steer a terminal or reorder a line: controls, bidirectional marks."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def table(rows: Sequence[Sequence[str]], indent: int = 1) -> list[str]:
    """Return rows as lines whose columns are aligned; all rows have as many cells."""
    cells = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        _GAP * indent
        + _GAP.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in cells
    ]


def tree(value: Mapping[str, Any], indent: int = 1) -> Iterator[str]:
    """Yield the lines of nested mappings, lists and scalars, as JSON would hold them.

    Scalars come first, under each other; then each part under its name.
    """
    plain = {name: item for name, item in value.items() if _is_plain(item)}
    yield from table([(_title(name), _scalar(item)) for name, item in plain.items()], indent)
    for name, item in value.items():
        if name in plain:
            continue
        yield ""
        yield _GAP * indent + printable(_title(name))
        yield from tree(item, indent + 1) if isinstance(item, dict) else _items(item, indent + 1)


def _items(items: Sequence[Any], indent: int) -> Iterator[str]:
    """A table, or a block for each item where a table would be too wide to read."""
    if not all(isinstance(item, dict) for item in items):
        yield from table([(_scalar(item),) for item in items], indent)
        return
    names = list(dict.fromkeys(name for item in items for name in item))
    head = [_title(name) for name in names]
    lines = table([head, *([_scalar(item.get(name)) for name in names] for item in items)], indent)
    if max(map(len, lines)) <= _WIDE:
        yield from lines
        return
    for number, item in enumerate(items):
        yield from [""] if number else []
        yield from tree(item, indent)


def _is_plain(item: object) -> bool:
    return not isinstance(item, dict | list) or not item


def _title(name: str) -> str:
    return name.replace("_", " ")


def _scalar(item: object) -> str:
    match item:
        case None | [] | {}:
            return "none"
        case bool():
            return "yes" if item else "no"
        case int():
            return f"{item:,}"
        case list():
            return ", ".join(map(_scalar, item))
        case dict():
            return ", ".join(f"{name} {_scalar(part)}" for name, part in item.items())
    return str(item)
