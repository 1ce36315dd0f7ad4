"""Histograms of minutes, from the ledger and the summaries of traces: what levels are made of.

In: a reader of the store, a metric, a dimension and a stretch of minutes. Out: a `figures.State` for each of them. All
queries ask for a bounded stretch of time, in the order that their tables have. The ledger has every billable span
and ``sampling_traces`` every trace that was decided, kept or not, so nothing here depends on what was sampled.

A trace belongs to the minute that its first row starts in; what it costs after `AFTER_S` is not in the figure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final, Protocol

import pyarrow as pa

from tollspan.processor.queries.window import bound
from tollspan.processor.sample.conditions import KEYS
from tollspan.processor.sample.figures import BUCKET_SQL, State
from tollspan.processor.sample.spans_seen import ROUTE

AFTER_S: Final = 120
"""Seconds after the end of a minute until which its traces are followed."""
BEFORE_S: Final = 60
"""Seconds before it in which a trace that has rows began earlier."""

MOST_KEYS: Final = 10_000
"""Keys of a minute; the most frequent ones."""

MOST_SEEN: Final = 100
"""Traces of a key and minute that are counted."""

ENOUGH_ROWS: Final = 200_000
"""Rows that a query for costs or durations looks at; of more a share of the traces is taken, by their ids, and one
stands for several."""

_LEDGER: Final = ("feature", "model", "tenant", "service", "workflow", "variant", "team", "environment")
_MODEL: Final = "if(model != '', model, request_model)"
_MINUTE: Final = "toInt64(intDiv(toUnixTimestamp(begun), 60))"
_AROUND: Final = "start_time >= {first:DateTime64(9, 'UTC')} AND start_time < {last:DateTime64(9, 'UTC')}"
_INSIDE: Final = "start_time >= {begin:DateTime64(9, 'UTC')} AND start_time < {end:DateTime64(9, 'UTC')}"
_MINE: Final = "minute >= {since:Int64} AND minute < {until:Int64}"

_ROWS: Final = f"SELECT count() AS n FROM <table> WHERE {_AROUND}"
_SOME: Final = "({every:UInt64} = 1 OR cityHash64(trace_id) % {every:UInt64} = 0)"
_TIMES: Final = "count() * {every:UInt64} AS traces"

_TRACE_COST: Final = f"""
SELECT
    {_MINUTE} AS minute,
    tupleElement(named, 1) AS dimension,
    tupleElement(named, 2) AS key,
    {BUCKET_SQL} AS bucket,
    {_TIMES}
FROM
(
    SELECT min(start_time) AS begun, toInt128(sum(cost) * 1000000000000) AS x, <keys> AS names
    FROM ledger FINAL
    WHERE {_AROUND} AND {_SOME}
    GROUP BY trace_id
    HAVING count(cost) > 0
)
ARRAY JOIN names AS named
WHERE {_MINE}
GROUP BY minute, dimension, key, bucket"""

_CALL_COST: Final = f"""
SELECT {_MINUTE} AS minute, '<dimension>' AS dimension, key, {BUCKET_SQL} AS bucket, {_TIMES}
FROM
(
    SELECT start_time AS begun, <key> AS key, toInt128(assumeNotNull(cost) * 1000000000000) AS x
    FROM ledger FINAL
    WHERE {_INSIDE} AND {_SOME} AND isNotNull(cost) AND kind = 'inference' AND cost_status != 'rollup'
)
WHERE {_MINE} AND key != ''
GROUP BY minute, key, bucket"""

_DURATION: Final = f"""
SELECT {_MINUTE} AS minute, '<dimension>' AS dimension, key, {BUCKET_SQL} AS bucket, {_TIMES}
FROM
(
    SELECT
        min(start_time) AS begun,
        max(<key>) AS key,
        toInt128(toUnixTimestamp64Nano(max(end_time))) - toUnixTimestamp64Nano(min(start_time)) AS x
    FROM sampling_traces
    WHERE {_AROUND} AND {_SOME}
    GROUP BY trace_id
)
WHERE {_MINE} AND (key != '' OR '<dimension>' = '')
GROUP BY minute, key, bucket"""

# A trace counts in each minute that it has rows in. Rows that came twice are of the same trace, so FINAL is not needed.
_SEEN: Final = f"""
SELECT
    toInt64(intDiv(toUnixTimestamp(start_time), 60)) AS minute,
    '<dimension>' AS dimension,
    <key> AS key,
    toInt32(0) AS bucket,
    least(uniqUpTo({MOST_SEEN})(trace_id), {MOST_SEEN}) AS traces
FROM <table>
WHERE {_INSIDE} AND key != ''
GROUP BY minute, key
ORDER BY traces DESC, key
LIMIT {MOST_KEYS} BY minute"""

_ROUTE: Final = f"if(root_name = '', '', concat(root_service, '{ROUTE}', root_name))"
_OF_TRACES: Final = {"route": _ROUTE, "service": "root_service", "tenant": "tenant", "": "''"}


class Reads(Protocol):
    """The part of a store's reader that is used here."""

    def query(self, sql: str, parameters: Mapping[str, Any] | None = None) -> pa.Table:
        """Rows of a SELECT."""


def query_of(metric: str, dimensions: Sequence[str]) -> str | None:
    """The query of a metric by some dimensions (several only of ``trace_cost``); None where the store does not know."""
    dimension = dimensions[0]
    assert not dimension or dimension in KEYS
    of_ledger = _MODEL if dimension == "model" else dimension if dimension in _LEDGER else "''"
    if metric == "trace_cost":
        pairs = (f"('{each}', {f'toString(max({each}))' if each else EMPTY})" for each in dimensions)
        return _TRACE_COST.replace("<keys>", f"[{', '.join(pairs)}]")
    sql = {"call_cost": _CALL_COST, "duration": _DURATION, "seen": _SEEN}[metric].replace("<dimension>", dimension)
    if metric == "call_cost":
        return sql.replace("<key>", of_ledger)
    if metric == "duration":
        return sql.replace("<key>", _OF_TRACES[dimension])
    if dimension in _LEDGER:
        return sql.replace("<key>", of_ledger).replace("<table>", "ledger")
    if dimension == "route":
        return sql.replace("<key>", _ROUTE).replace("<table>", "sampling_traces")
    return None


EMPTY: Final = "''"


def states(reader: Reads, metric: str, dimension: str, since: int, until: int) -> dict[int, State]:
    """Histograms of the minutes from ``since`` until before ``until``; one for each, also where nothing was.

    Raises:
        StoreError, StoreUnavailable: as the reader.
    """
    return states_by(reader, metric, [dimension], since, until)[dimension]


def states_by(
    reader: Reads, metric: str, dimensions: Sequence[str], since: int, until: int
) -> dict[str, dict[int, State]]:
    """`states` by several dimensions; of costs of traces with one look at the ledger for all."""
    found: dict[str, dict[int, State]] = {each: {minute: {} for minute in range(since, until)} for each in dimensions}
    around: dict[str, Any] = {"first": instant(since * 60 - BEFORE_S), "last": instant(until * 60 + AFTER_S)}
    parameters = {
        **around, "begin": instant(since * 60), "end": instant(until * 60), "since": since, "until": until,
    }  # fmt: skip
    if metric != "seen":
        table = "sampling_traces" if metric == "duration" else "ledger"
        rows = int(reader.query(_ROWS.replace("<table>", table), around)["n"][0].as_py())
        parameters["every"] = 1 + rows // ENOUGH_ROWS
    for some in [dimensions] if metric == "trace_cost" else [[each] for each in dimensions]:
        sql = query_of(metric, some)
        if sql is None:
            continue
        answer = reader.query(sql, parameters)
        columns = (answer[name].to_pylist() for name in ("dimension", "minute", "key", "bucket", "traces"))
        for dimension, minute, key, number, count in zip(*columns, strict=True):
            found[dimension][minute].setdefault(key, {})[number] = count
    return found


def instant(seconds: int) -> str:
    """Seconds since 1970 as a parameter of a query."""
    return bound(datetime.fromtimestamp(seconds, UTC), datetime.fromtimestamp(0, UTC))
