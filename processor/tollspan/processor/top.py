"""What happens now: rates over the last minutes, and who causes them.

In: a read-only handle and an instant. Out: a `Frame`, plain data with money as Decimal; `tollspan top` draws it. All of
it is read from the ledger (FINAL, a narrow window of start times), so that it is the same for a running service, a
server and a store that nobody writes to.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, Final, Protocol

from tollspan.processor.errors import ConfigError
from tollspan.processor.queries.window import bound

DIMENSIONS: Final[dict[str, str]] = {
    **{
        name: name for name in ("tenant", "feature", "team", "workflow", "service", "provider", "environment", "region")
    },
    "model": "if(model != '', model, request_model)",
    "variant": "variant",
    "error": "error_type",
}
"""What the top is shown by → the ledger's expression."""

SHOWN: Final = ("tenant", "feature", "model")

BUCKETS: Final = 60
"""Parts of the window that a line of the past is drawn with."""

_WINDOW: Final = "start_time >= {since:DateTime64(9, 'UTC')} AND start_time < {until:DateTime64(9, 'UTC')}"
_CALL: Final = "kind = 'inference' AND cost_status NOT IN ('rollup', 'not_billed')"
_UNPRICED: Final = "kind = 'inference' AND cost_status IN ('unpriced', 'invalid')"
_COST: Final = (
    "if(countIf(isNotNull(ledger.cost)) = 0 AND countIf(cost_status IN ('unpriced', 'invalid')) > 0,"
    " NULL, ifNull(sum(ledger.cost), toDecimal128(0, 12)))"
)

TOTAL_SQL: Final = f"""
SELECT
    countIf({_CALL}) AS inferences,
    {_COST} AS cost,
    countIf({_UNPRICED}) AS unpriced,
    countIf(kind = 'inference' AND cost_status = 'partial') AS partial,
    countIf(kind = 'inference' AND cost_status != 'rollup') AS calls,
    countIf(kind = 'inference' AND cost_status != 'rollup' AND span_status = 'error') AS errors,
    sum(ledger.retries) AS retries,
    countIf(ledger.cold_start) AS cold_starts,
    quantileIf(0.95)(duration_ns, {_CALL}) / 1e9 AS p95_s,
    quantileIf(0.95)(
        dateDiff('millisecond', addNanoseconds(start_time, toInt64(duration_ns)), assumeNotNull(arrived_at)),
        isNotNull(arrived_at)) / 1e3 AS arrival_s
FROM ledger FINAL
WHERE {_WINDOW}
"""

TOP_SQL: Final = f"""
SELECT
    nullIf(toString(<dimension>), '') AS name,
    {_COST} AS cost,
    countIf({_CALL}) AS inferences,
    countIf({_UNPRICED}) AS unpriced,
    countIf(kind = 'inference' AND cost_status != 'rollup' AND span_status = 'error') AS errors
FROM ledger FINAL
WHERE {_WINDOW}
GROUP BY name
ORDER BY cost DESC NULLS LAST, inferences DESC, name NULLS LAST
LIMIT {{limit:UInt64}}
"""

PAST_SQL: Final = f"""
SELECT
    toUInt32(dateDiff('nanosecond', {{since:DateTime64(9, 'UTC')}}, start_time) * {{buckets:UInt32}} / {{span:Int64}})
        AS bucket,
    countIf({_CALL}) AS inferences,
    ifNull(sum(ledger.cost), toDecimal128(0, 12)) AS cost
FROM ledger FINAL
WHERE {_WINDOW}
GROUP BY bucket
ORDER BY bucket
"""

LAST_SQL: Final = "SELECT max(start_time) AS last, count() AS n FROM ledger"


class Rows(Protocol):
    """What can be asked: a store or a reader."""

    def rows(self, sql: str, parameters: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
        """Rows of a SELECT."""


@dataclass(frozen=True, slots=True)
class Frame:
    """One look.

    Attributes:
        since, until: the window.
        total: one row of `TOTAL_SQL`: ``cost`` is NULL where nothing of it has a price; ``unpriced`` calls are in no
            cost; ``arrival_s`` is the 95th percentile from a span's end to its arrival.
        tops: dimension → rows, dearest first; ``name`` is None where it was not given.
        inferences, cost: by `BUCKETS` parts of the window, oldest first.
        last: start of the newest span of all, None of an empty ledger; only looked for when the window is empty.
        lag_s: age of the oldest batch that is not all written, of a service that tells it; else None.
    """

    since: datetime
    until: datetime
    total: Mapping[str, Any]
    tops: Mapping[str, list[dict[str, Any]]]
    inferences: list[int]
    cost: list[Decimal]
    last: datetime | None
    lag_s: float | None

    @property
    def seconds(self) -> Decimal:
        """Length of the window."""
        return Decimal((self.until - self.since) // timedelta(microseconds=1)) / 10**6

    def rate(self, amount: Decimal | int | None, per_s: int) -> Decimal | None:
        """An amount of the window for so many seconds; None of an unknown one."""
        return None if amount is None else amount * per_s / self.seconds


def dimensions(names: str) -> list[str]:
    """Dimensions as people type them, with commas between.

    Raises:
        ConfigError: there is no such dimension; says which there are.
    """
    asked = [name.strip() for name in names.split(",") if name.strip()]
    for name in asked:
        if name not in DIMENSIONS:
            raise ConfigError(f"--by {name!r} is no dimension.", f"Any of: {', '.join(DIMENSIONS)}.")
    return asked


def look(
    reader: Rows,
    window: timedelta,
    by: list[str] | None = None,
    limit: int = 5,
    at: datetime | None = None,
    lag_s: float | None = None,
) -> Frame:
    """Look once.

    Args:
        reader: a store or reader.
        window: how far back.
        by: dimensions, names of `DIMENSIONS`; None for `SHOWN`.
        limit: rows of each.
        at: end of the window; None for now.
        lag_s: what a service tells, passed on.

    Raises:
        StoreError: see `Reader.query`.
    """
    until = at or datetime.now(UTC)
    since = until - window
    parameters: dict[str, Any] = {"since": bound(since, since), "until": bound(until, until)}
    (total,) = reader.rows(TOTAL_SQL, parameters)
    tops = {
        name: reader.rows(TOP_SQL.replace("<dimension>", DIMENSIONS[name]), {**parameters, "limit": limit})
        for name in (SHOWN if by is None else by)
    }
    inferences, cost = [0] * BUCKETS, [Decimal(0)] * BUCKETS
    span = window // timedelta(microseconds=1) * 1000
    for row in reader.rows(PAST_SQL, {**parameters, "buckets": BUCKETS, "span": span}):
        bucket = min(row["bucket"], BUCKETS - 1)
        inferences[bucket] += row["inferences"]
        cost[bucket] += row["cost"]
    last = None
    if not any(tops.values()) and not total["calls"]:
        (newest,) = reader.rows(LAST_SQL)
        last = newest["last"] if newest["n"] else None
    # Percentiles of nothing are no numbers.
    told = {k: None if isinstance(v, float) and v != v else v for k, v in total.items()}
    return Frame(since, until, told, tops, inferences, cost, last, lag_s)
