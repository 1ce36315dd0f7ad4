"""Roll-ups that are found late: their rows as they stand in the ledger, and as they have to.

In: where rows stand (`Assembler.billed`). Out: the same rows without what their descendants are billed for, for the
ledger. They are read from the store, whoever priced them last.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from tollspan.processor.assemble import correct
from tollspan.processor.charge import plain
from tollspan.processor.identity import U64
from tollspan.processor.schema import LEDGER

AT_ONCE: Final = 500
"""Rows that one query asks for."""

_COLUMNS: Final = ", ".join(f"`{name}`" for name in LEDGER.names)
_CHANGING: Final = [
    name
    for name in LEDGER.names
    if name.startswith("charges.")
    or name in ("cost", "cost_status", "cost_reasons", "revision", "revised", "arrival_cost")
]


def corrected(read: Callable[[str], Any], places: U64) -> pa.Table:
    """Rows that are billed and should not be, as roll-ups; those that are roll-ups by now, or gone, are left out.

    Args:
        read: runs a SELECT.
        places: shape (m, 4): start time in ns, trace id, span id.
    """
    parts = [_rows(read, places[start : start + AT_ONCE]) for start in range(0, len(places), AT_ONCE)]
    return pa.concat_tables([rolled_up(rows) for rows in parts]) if parts else LEDGER.empty_table()


def rolled_up(rows: pa.Table) -> pa.Table:
    """Billed ledger rows as roll-ups. Late ones are rare, so this one place works row by row.

    Args:
        rows: with the types of `LEDGER`.
    """
    fixed = pa.Table.from_pylist(
        [correct(row) for row in rows.select(_CHANGING).to_pylist()],
        schema=pa.schema([LEDGER.field(name) for name in _CHANGING]),
    )
    return pa.table({name: (fixed if name in _CHANGING else rows)[name] for name in LEDGER.names}, schema=LEDGER)


def typed(rows: pa.Table) -> pa.Table:
    """Ledger rows from the store with the very types of `LEDGER`."""
    return pa.table([pc.cast(plain(rows[field.name]), field.type) for field in LEDGER], schema=LEDGER)


def _rows(read: Callable[[str], Any], places: U64) -> pa.Table:
    asked = ", ".join(
        f"(fromUnixTimestamp64Nano(toInt64({start}), 'UTC'), unhex('{high:016x}{low:016x}'), unhex('{span:016x}'))"
        for start, high, low, span in places.tolist()
    )
    sql = f"SELECT {_COLUMNS} FROM ledger FINAL WHERE (start_time, trace_id, span_id) IN ({asked}) AND NOT rolled_up"
    return typed(read(sql))
