"""Messages that differ in nothing but the raw contents of their tensors: read all at once.

Questions that are asked together mostly are like that (SPEC 5.10). Promise: what is read is what
`MessageReader.read` would read in each of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from casemate import protowire

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from casemate.wire import Buffer

    Table: TypeAlias = npt.NDArray[Any]


def stack(
    messages: Sequence[Buffer], raws: Sequence[memoryview], raw_number: int
) -> list[Table] | None:
    """Return of each tensor its raw contents in every message, as rows of bytes.

    ``raws``: the contents in the first message, which ends with them, each in a field
    ``raw_number``. None unless all other bytes are the same in every message.
    """
    size = len(messages[0])
    if {*map(len, messages)} != {size}:
        return None
    table = np.frombuffer(b"".join(messages), np.uint8).reshape(len(messages), size)
    tables: list[Table] = []
    end = size
    for raw in reversed(raws):
        begin = end - len(raw)
        tables.append(table[:, begin:end])
        end = begin - len(protowire.bytes_head(raw_number, len(raw)))
        if not _one_row(table[:, end:begin]):
            return None
    return tables[::-1] if _one_row(table[:, :end]) else None


def _one_row(table: Table) -> bool:
    row: bytes = table[0].tobytes()
    return bool(table.tobytes() == row * len(table))  # numpy's own ways take several times as long
