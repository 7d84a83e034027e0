"""What every object that holds a key refuses to do."""

from __future__ import annotations

from typing import NoReturn


class Guarded:
    """Base of classes that hold keys: redacted repr, no pickling, no copying, no equality."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: redacted>"

    def __reduce_ex__(self, _protocol: object) -> NoReturn:
        raise TypeError(f"{type(self).__name__} holds keys and cannot be pickled or copied")

    def __getstate__(self) -> NoReturn:
        raise TypeError(f"{type(self).__name__} holds keys and has no exportable state")
