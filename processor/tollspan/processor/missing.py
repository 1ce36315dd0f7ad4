"""Missing roll-ups: rows that are billed beside the ones beneath them, because those came too late to be noticed.

In: the store. Out: where such rows stand, and with `roll_up` the rows that take their bill away. The tree of a trace is
put together from the ledger (every billable span, with its parent) and from ``spans`` (whatever else was kept); so a
call is found beneath an agent unless a span that costs nothing stands between them and its trace was not kept.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tollspan.pricing.meters import METERS
from tollspan.processor.assemble import Assembler
from tollspan.processor.charge import plain
from tollspan.processor.identity import U64, span_keys, trace_keys, words
from tollspan.processor.periods import closed
from tollspan.processor.queries.window import EARLIEST, LATEST, bound
from tollspan.processor.rollups import corrected

if TYPE_CHECKING:
    from tollspan.processor.reconcile import Reads
    from tollspan.processor.store import Store

AT_ONCE: Final = 2_000_000
"""Rows of the ledger that are put together at once."""

APART: Final = timedelta(days=1)
"""How far outside of a window a span of a trace that is in it is looked for."""

_NETWORK: Final = ", ".join(f"'{name}'" for name, meter in METERS.items() if meter.component == "network")
_TIME: Final = "start_time >= {since:DateTime64(9, 'UTC')} AND start_time < {until:DateTime64(9, 'UTC')}"
_CANDIDATES: Final = f"""
    SELECT trace_id FROM ledger FINAL
    WHERE {_TIME} AND cityHash64(trace_id) % {{parts:UInt32}} = {{part:UInt32}}
    GROUP BY trace_id HAVING count() > 1
"""
_AROUND: Final = "BETWEEN {earliest:DateTime64(9, 'UTC')} AND {latest:DateTime64(9, 'UTC')}"
_TREE: Final = f"""
    SELECT toUnixTimestamp64Nano(start_time) AS start, trace_id, span_id, parent_span_id,
        operation = 'embeddings' AS embedding,
        arrayExists(m -> startsWith(m, 'tokens.'), charges.meter)
            OR kind = 'inference' AND arrayAll(m -> m IN ({_NETWORK}), charges.meter) AS tokens,
        arrayExists((m, q) -> startsWith(m, 'tokens.') AND q > 0, charges.meter, charges.quantity)
            AND cost_status != 'invalid' AND NOT rolled_up AS used,
        NOT rolled_up AND cost_status NOT IN ('invalid', 'not_billed') AS billed, 0 AS elsewhere
    FROM ledger FINAL WHERE start_time {_AROUND} AND trace_id IN ({_CANDIDATES})
    UNION ALL
    SELECT toInt64(0), toFixedString(unhex(TraceId), 16), toFixedString(unhex(SpanId), 8),
        toFixedString(unhex(ParentSpanId), 8), 0, 0, 0, 0, 1
    FROM spans FINAL
    WHERE Timestamp {_AROUND} AND toFixedString(unhex(TraceId), 16) IN ({_CANDIDATES})
"""


@dataclass(slots=True)
class Missing:
    """What was found.

    Attributes:
        places: where the rows stand, shape (m, 4): start time in ns, both words of the trace id, span id.
        notes: what could not be looked at.
    """

    places: U64
    notes: list[str] = field(default_factory=list)


def missing_rollups(reader: Reads, since: datetime | None = None, until: datetime | None = None) -> Missing:
    """Rows that are billed beside a span beneath them.

    Args:
        reader: a store or reader.
        since, until: start times.
    """
    window = {
        "since": bound(since, EARLIEST),
        "until": bound(until, LATEST),
        "earliest": bound(None if since is None else since - APART, EARLIEST),
        "latest": bound(None if until is None else until + APART, LATEST),
    }
    (row,) = reader.rows(f"SELECT count() AS n FROM ledger WHERE {_TIME}", window)
    parts = row["n"] // AT_ONCE + 1
    found = [_found(reader.query(_TREE, {**window, "parts": parts, "part": part})) for part in range(parts)]
    return Missing(np.concatenate(found))


def roll_up(store: Store, missing: Missing) -> tuple[int, int]:
    """Write the rows again as roll-ups; rows of closed periods stay as they are.

    Returns:
        (rows written, rows left in closed periods).

    Raises:
        StoreUnavailable: the store went away; the same again writes the rest.
    """
    places = missing.places
    start = places[:, 0]
    shut = np.zeros(len(places), np.bool_)
    for period in closed(store):
        since, until = (np.uint64(max(0, int(each.timestamp()) * 10**9)) for each in (period.since, period.until))
        shut |= (start >= since) & (start < until)
    rows = corrected(store.query, places[~shut])
    if rows.num_rows:
        store.insert("ledger", rows, f"reconcile-{uuid.uuid4().hex}")
    return rows.num_rows, int(np.count_nonzero(shut))


def _found(rows: pa.Table) -> U64:
    """Places of the rows of a part of the traces."""
    if not rows.num_rows:
        return np.zeros((0, 4), np.uint64)
    trace = words(_fixed(rows["trace_id"], 16), 2)
    span = words(_fixed(rows["span_id"], 8), 1)[:, 0]
    parent = words(_fixed(rows["parent_span_id"], 8), 1)[:, 0]
    traces = trace_keys(trace)
    keys = span_keys(traces, span)
    # Of a kept span that is in the ledger too, the ledger's row.
    order = np.lexsort((np.asarray(rows["elsewhere"]), keys))
    mask = np.zeros(len(keys), np.bool_)
    mask[order[np.unique(keys[order], return_index=True)[1]]] = True

    def flag(name: str) -> Any:
        return np.asarray(rows[name]).astype(np.bool_)[mask]

    rollups, _ = Assembler().mark(
        keys[mask],
        span_keys(traces, parent)[mask],
        parent[mask] == 0,
        flag("tokens"),
        used=flag("used"),
        embeddings=flag("embedding"),
    )
    wrong = rollups & flag("billed")
    starts = np.asarray(rows["start"]).astype(np.uint64)
    found: U64 = np.column_stack([starts, trace, span])[mask][wrong]
    return found


def _fixed(column: Any, size: int) -> Any:
    return pc.cast(plain(column), pa.binary(size))
