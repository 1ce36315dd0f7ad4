"""A large window of the ledger, read in slices of time.

In: a window. Out: borders within it, and the text of a source with the same rows. Slices are disjoint and all versions
of a row have one start time, so what FINAL makes of each is together what it makes of the whole.

Why: FINAL merges only where parts overlap, and reads the columns of the key only there. Parts of the ledger overlap by
some seconds at both ends, as spans do not arrive in the order of their starts; and of a part that others overlap at
both ends ClickHouse (26.9, `splitPartsRanges`) finds no range that is free, and merges all of it. A slice cuts parts so
that few are overlapped at both ends. Over 20 million rows in nine parts that takes a fifth off a question's CPU time
(tests/benchmarks/clickhouse.py).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from tollspan.processor.queries.window import EARLIEST, LATEST, bound

if TYPE_CHECKING:
    from tollspan.processor.queries import Rows

SLICES: Final = 4
"""More find more free ranges; but each aggregates for itself, so that questions with many groups take longer."""

ENOUGH_ROWS: Final = 2_000_000
"""Of which slices save more than they cost."""

_COLUMNS: Final = (
    "*, cost.null AS costless, compute_cost, network_cost, storage_cost, telemetry_cost, overhead_cost, priced_parts,"
    " open_parts, machines.meter, machines.quantity, machines.cost"
)
"""What the queries ask for; ``*`` leaves out what is computed. Those that nobody asks for are not read."""


def borders(reader: Rows, since: datetime | None, until: datetime | None) -> tuple[datetime, ...]:
    """Where a window is to be cut; empty where it is not worth while.

    A ledger on a cluster is not cut: each shard answers for itself, which a source of slices would prevent.
    """
    (held,) = reader.rows("SELECT count() AS n, min(start_time) AS first, max(start_time) AS last FROM ledger")
    if held["n"] < ENOUGH_ROWS:
        return ()
    first, last = max(_aware(since or EARLIEST), held["first"]), min(_aware(until or LATEST), held["last"])
    if first >= last or held["n"] * ((last - first) / (held["last"] - held["first"])) < ENOUGH_ROWS:
        return ()
    if not reader.rows(
        "SELECT 1 FROM system.tables"
        " WHERE database = currentDatabase() AND name = 'ledger' AND engine LIKE '%MergeTree'"
    ):
        return ()
    return tuple(first + (last - first) * nth / SLICES for nth in range(1, SLICES))


def source(cuts: Sequence[datetime], start: str = "since", end: str = "until") -> tuple[str, dict[str, str]]:
    """SQL that can stand behind FROM: the rows of a window, as a table ``ledger``; and the values it needs bound.

    Args:
        cuts: where the window is cut, ascending, within it.
        start, end: names of the parameters that are its ends.
    """
    names = [start, *(f"slice_{nth}" for nth in range(len(cuts))), end]
    parts = [
        f"SELECT {_COLUMNS} FROM ledger FINAL"
        f" WHERE start_time >= {{{each}:DateTime64(9, 'UTC')}} AND start_time < {{{after}:DateTime64(9, 'UTC')}}"
        for each, after in itertools.pairwise(names)
    ]
    return f"({' UNION ALL '.join(parts)}) AS ledger", {
        name: bound(at, at) for name, at in zip(names[1:-1], cuts, strict=True)
    }


def _aware(at: datetime) -> datetime:
    return at.replace(tzinfo=UTC) if at.tzinfo is None else at
