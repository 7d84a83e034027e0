"""Writes the API reference beside this script from the docstrings of the public modules.

`python docs/reference/generate.py` writes it; with `--check` it writes nothing and fails if what is
committed differs. What is public is what a module's `__all__` names, and the exceptions.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import inspect
import sys
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType

FOLDER: Final = Path(__file__).resolve().parent
MODULES: Final = (
    "casemate.client",
    "casemate.receipts",
    "casemate.attestation",
    "casemate.errors",
)
WIDTH: Final = 96


def page(name: str) -> str:
    """Return the page of one module."""
    module = importlib.import_module(name)
    lines = [f"# `{name}`", "", _doc(module), ""]
    for public in sorted(_public(module), key=str.lower):
        lines += _described(public, getattr(module, public))
    return "\n".join(lines).rstrip() + "\n"


def _public(module: ModuleType) -> list[str]:
    listed = getattr(module, "__all__", None)
    if listed is not None:
        return list(listed)
    return [
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and inspect.isclass(value)
        and value.__module__ == module.__name__
    ]


def _described(name: str, value: Any) -> Iterator[str]:  # noqa: ANN401 - anything is exported
    if inspect.isclass(value):
        yield from _class(name, value)
    elif callable(value):
        yield from (f"## `{name}`", "", *_signature(name, value), _doc(value), "")
    else:
        yield from (f"## `{name}`", "", f"Data of type `{type(value).__name__}`.", "")


def _class(name: str, cls: type) -> Iterator[str]:
    bases = [base.__name__ for base in cls.__bases__ if base is not object]
    yield from (f"## class `{name}`" + (f" ({', '.join(bases)})" if bases else ""), "")
    if not issubclass(cls, Enum):
        yield from _signature(name, cls)
    yield from (_doc(cls), "")
    own = cls.__dict__.get("__init__")
    if own is not None and own.__doc__ and not dataclasses.is_dataclass(cls):
        yield from (_doc(own), "")
    for member, value in vars(cls).items():
        if member.startswith("_") or (dataclasses.is_dataclass(cls) and member in _fields(cls)):
            continue
        if isinstance(value, property) and value.__doc__:
            yield from (f"### `{name}.{member}`", "", _doc(value), "")
        elif isinstance(value, classmethod | staticmethod) or inspect.isfunction(value):
            function = getattr(value, "__func__", value)
            if function.__doc__:
                head = _signature(f"{name}.{member}", function, bound=True)
                yield from (f"### `{name}.{member}`", "", *head, _doc(function), "")


def _fields(cls: Any) -> set[str]:  # noqa: ANN401 - a dataclass
    return {field.name for field in dataclasses.fields(cls)}


def _signature(name: str, value: Any, *, bound: bool = False) -> list[str]:  # noqa: ANN401 - callables
    try:
        signature = inspect.signature(value)
    except (TypeError, ValueError):
        return []
    parameters = list(signature.parameters.values())[1 if bound else 0 :]
    written, keyword = [], False
    for parameter in parameters:
        if parameter.kind is parameter.KEYWORD_ONLY and not keyword:
            written.append("*")
            keyword = True
        written.append(_parameter(parameter))
    result = signature.return_annotation
    returns = "" if result is signature.empty or inspect.isclass(value) else f" -> {_type(result)}"
    line = f"{name}({', '.join(written)}){returns}"
    if len(line) > WIDTH:
        inner = "".join(f"    {item},\n" for item in written)
        line = f"{name}(\n{inner}){returns}"
    return ["```python", line, "```", ""]


def _parameter(parameter: inspect.Parameter) -> str:
    text = parameter.name
    if parameter.kind is parameter.VAR_POSITIONAL:
        text = f"*{text}"
    elif parameter.kind is parameter.VAR_KEYWORD:
        text = f"**{text}"
    annotated = parameter.annotation is not parameter.empty
    if annotated:
        text += f": {_type(parameter.annotation)}"
    if parameter.default is not parameter.empty:
        value = repr(parameter.default)
        equals = " = " if annotated else "="
        text += equals + ("..." if value.startswith("<") else value)
    return text


def _type(annotation: object) -> str:
    return (
        annotation if isinstance(annotation, str) else str(getattr(annotation, "__name__", "Any"))
    )


def _doc(value: object) -> str:
    """Return a docstring; sections of arguments as lists, code blocks as they are."""
    lines, listed = [], False
    for line in (inspect.getdoc(value) or "").splitlines():
        if line == "Args:":
            listed = True
            lines.append("Arguments:\n")
        elif listed and line.startswith("    ") and not line.startswith("     "):
            name, _, said = line.strip().partition(": ")
            lines.append(f"- `{name}`: {said}")
        elif listed and line.startswith("     "):
            lines.append(f"  {line.strip()}")
        else:
            listed = listed and not line
            lines.append(line)
    return "\n".join(lines)


def main() -> None:
    """Write the pages, or compare."""
    parser = argparse.ArgumentParser(description="Write the API reference from docstrings.")
    parser.add_argument("--check", action="store_true", help="write nothing; fail on a difference")
    check: bool = parser.parse_args().check
    drifted = []
    for name in MODULES:
        path, text = FOLDER / f"{name}.md", page(name)
        if not check:
            path.write_text(text)
        elif not path.is_file() or path.read_text() != text:
            drifted.append(path.name)
    if drifted:
        sys.exit(f"the API reference differs from the docstrings (run `make docs`): {drifted}")


if __name__ == "__main__":
    main()
