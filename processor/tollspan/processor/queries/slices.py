"""A large window of the ledger, read in slices of time.

In: a window. Out: whole hours of it in which rows of one part stand alone, and the text of a source with the window's
rows. Slices are disjoint and all versions of a row have one start time, so what FINAL makes of each is together what
it makes of the whole, whatever has become of the parts meanwhile.

Why: FINAL merges only where parts overlap, and reads the columns of the key only there. Parts of the ledger overlap by
some seconds at both ends, as spans do not arrive in the order of their starts; and of a part that others overlap at
both ends ClickHouse (26.9, `splitPartsRanges`) finds no range that is free, and merges all of it. So hours in which a
part is alone are asked for apart from those in which parts meet, and hours of neighbours apart from each other, as
marks of the index reach from one into the next. Of whole hours the start time itself need not be read either, which is
a fifth of what most questions take: their narrow column passes rows, and the index finds them. Over 20 million rows in
nine parts both together take a third off (tests/benchmarks/clickhouse.py).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from tollspan.processor.queries.window import EARLIEST, LATEST

if TYPE_CHECKING:
    from tollspan.processor.queries import Rows

Hours = tuple[int, int]
"""From one hour on and before another, in hours since 1970."""

ENOUGH_ROWS: Final = 2_000_000
"""Of which slices save more than they cost."""

ENOUGH_FREE: Final = 100_000
"""Rows of a part that stand alone for which it is worth while to ask for them apart: a dozen granules."""

MOST: Final = 32
"""Stretches of hours at the most, as each is a condition on every row."""

_COLUMNS: Final = (
    "*, start_hour, counted, cost.null AS costless, model_cost, compute_cost, network_cost, storage_cost,"
    " telemetry_cost, overhead_cost, priced_parts, open_parts, machines.meter, machines.quantity, machines.cost,"
    " arrived_at"
)
"""What the queries ask for; ``*`` leaves out what is computed. Those that nobody asks for are not read."""

# Answered from what is kept of each part, without a look at rows.
_PARTS: Final = (
    "SELECT _part AS part, count() AS n, min(start_time) AS first, max(start_time) AS last FROM ledger GROUP BY part"
)
_NS: Final = 3_600_000_000_000


def alone(reader: Rows, since: datetime | None, until: datetime | None) -> tuple[Hours, ...]:
    """Hours of a window in which rows of one part stand alone, ascending; empty where it is not worth while.

    A ledger on a cluster is not cut: each shard answers for itself, which a source of slices would prevent.
    """
    if not reader.rows(
        "SELECT 1 FROM system.tables"
        " WHERE database = currentDatabase() AND name = 'ledger' AND engine LIKE '%MergeTree'"
    ):
        return ()
    parts = reader.rows(_PARTS)
    lowest = max(1, math.ceil(_hour(_aware(since or EARLIEST))))
    highest = math.floor(_hour(_aware(until or LATEST)))
    if sum(_rows_within(part, lowest, highest) for part in parts) < ENOUGH_ROWS:
        return ()
    found = []
    for part, begins, ends in _free(parts):
        hours = max(lowest, math.ceil(begins)), min(highest, math.floor(ends))
        many = _rows_within(part, *hours)
        if many >= ENOUGH_FREE:
            found.append((many, hours))
    return tuple(sorted(hours for _, hours in sorted(found, reverse=True)[:MOST]))


def source(free: Sequence[Hours], start: str = "since", end: str = "until") -> tuple[str, dict[str, Any]]:
    """SQL that can stand behind FROM: the rows of a window, as a table ``ledger``; and the values it needs bound.

    Args:
        free: hours that are asked for apart, ascending, within the window; at least one pair.
        start, end: names of the parameters that are the window's ends.
    """
    values: dict[str, int] = {}
    ends_of: list[tuple[str, str]] = []
    for nth, (first, after) in enumerate(free):
        values |= {f"hour_{nth}": first, f"hour_after_{nth}": after}
        ends_of.append((f"{{hour_{nth}:Int64}}", f"{{hour_after_{nth}:Int64}}"))
    # The index knows start times alone; only in a condition of its own a hint spares reading what it names.
    conditions = [
        f"({_within('start_hour', some)})"
        f" AND indexHint({_within('start_time', [(_started(first), _started(after)) for first, after in some])})"
        for some in (ends_of[::2], ends_of[1::2])
        if some
    ]
    borders = [_instant(start), *(_started(each) for ends in ends_of for each in ends), _instant(end)]
    conditions.append(_within("start_time", zip(borders[::2], borders[1::2], strict=True)))
    selects = " UNION ALL ".join(f"SELECT {_COLUMNS} FROM ledger FINAL WHERE {each}" for each in conditions)
    return f"({selects}) AS ledger", values


def _within(column: str, ends: Iterable[tuple[str, str]]) -> str:
    return " OR ".join(f"({column} >= {first} AND {column} < {after})" for first, after in ends)


def _instant(name: str) -> str:
    return f"{{{name}:DateTime64(9, 'UTC')}}"


def _started(hour: str) -> str:
    return f"fromUnixTimestamp64Nano({hour} * {_NS}, 'UTC')"


def _free(parts: Iterable[dict[str, Any]]) -> list[tuple[dict[str, Any], float, float]]:
    """Stretches in which one part has rows and no other: the part, and both ends in hours."""
    found: list[tuple[dict[str, Any], float, float]] = []
    there: dict[int, dict[str, Any]] = {}
    last = 0.0
    for at, ends, nth, part in sorted(
        ((_hour(part[end]), end == "last", nth, part) for nth, part in enumerate(parts) for end in ("first", "last")),
        key=lambda each: each[:3],
    ):
        if len(there) == 1 and at > last:
            found += [(each, last, at) for each in there.values()]
        if ends:
            del there[nth]
        else:
            there[nth] = part
        last = at
    return found


def _rows_within(part: dict[str, Any], first: float, after: float) -> float:
    """About how many rows of a part start in some hours."""
    begins, ends = _hour(part["first"]), _hour(part["last"])
    within: float = part["n"] * max(0.0, min(after, ends) - max(first, begins))
    return within / max(ends - begins, 1e-9)


def _hour(at: datetime) -> float:
    return (at - datetime(1970, 1, 1, tzinfo=UTC)) / timedelta(hours=1)


def _aware(at: datetime) -> datetime:
    return at.replace(tzinfo=UTC) if at.tzinfo is None else at
