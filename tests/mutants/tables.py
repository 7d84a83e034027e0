"""All mutants, table by table."""

from __future__ import annotations

from tests.mutants import (
    carried,
    data,
    envelope,
    framed,
    machine,
    questions,
    receipts,
    serving,
    sharing,
    stream_units,
    together,
    verifier,
    workers,
)

TABLES = (
    *(
        verifier,
        envelope,
        questions,
        stream_units,
        receipts,
        data,
        serving,
        sharing,
        carried,
        machine,
        workers,
        together,
        framed,
    ),
)
MUTANTS = [mutant for table in TABLES for mutant in table.MUTANTS]
