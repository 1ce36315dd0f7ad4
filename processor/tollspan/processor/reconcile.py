"""Reconcile: journal = accounts = ledger = what is derived from it, row by row and to the last digit.

    report = reconcile(reader, journal=Path("…/journal"))     # reader: a Store, or connect_for_query(url)
    assert report.agrees, str(report)
    report.totals["spans"], report.totals["ledger_rows"], report.totals["cost"]        # cost: Decimal
    json.dumps(report.as_dict())

In: a store, and the journal's directory where there is one (only read; the service may run). Out: a `Report`: totals,
and a `Difference` for everything that does not agree. Nothing is written.

What is compared
----------------
* ``gap``: batches lie in the journal one behind the other. Bytes between two that have no account were lost.
* ``account``: rows of the ledger that no account tells of.
* ``rows``, ``cost``: the rows of each batch against its account: how many, how many with a cost, and Σ of what they
  cost on arrival (``first_cost``), which neither repricing nor a late roll-up changes. A span that ended before
  everything that was remembered when it came, or that came again from the journal after a crash, may have been in the
  ledger before, and stands there as it came first (``late_rows``); that is taken into account.
* ``charges``: each row's cost is the sum of its charges.
* ``trace_costs``: Σ over traces = Σ over rows. ``traces``: each trace of the ledger has its summary (only where the
  journal is given and empty, for summaries are written when a trace is decided).
* ``telemetry``: the spans of each batch, as accounted, and those whose bytes are counted when all are decided.
* ``same_id``: one span in two rows, which a sender made by giving one id to two spans with different start times, at a
  distance that the filter does not reach.
* ``rollup``: a row that is billed though a span beneath it is (`missing_rollups`).

What cannot be told: whether rows that a batch lacks were sent to another processor of the same store before, or were
taken over by a roll-up that came again with its child after both were forgotten; whether bytes behind the last batch of
a segment that is gone were processed; rows from before accounts were kept (counted in the totals as
``rows_without_batch``); and the cost of batches of which two attempts with different price books each wrote a part.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, Final, Protocol

import pyarrow as pa

from tollspan.processor.accounts import batch_number
from tollspan.processor.journal import Range
from tollspan.processor.journal.inspection import inspect
from tollspan.processor.missing import missing_rollups
from tollspan.processor.queries.window import EARLIEST, LATEST, bound

SHOWN: Final = 1000
"""Differences of one kind that are listed."""

AT_ONCE: Final = 20_000_000
"""Rows that one query groups by span."""


class Reads(Protocol):
    """The part of a store or reader that is used for reading."""

    def query(self, sql: str, parameters: Mapping[str, Any] | None = None) -> pa.Table:
        """Rows of a SELECT as Arrow."""

    def rows(self, sql: str, parameters: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
        """Rows of a SELECT."""


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing that does not agree.

    Attributes:
        kind: what was compared, see above.
        where: the batch's token, the trace and span, or the table.
        expected, found: counts, or Decimals in USD.
        text: a sentence for people.
    """

    kind: str
    where: str
    expected: Any
    found: Any
    text: str


@dataclass(slots=True)
class Report:
    """What was compared and what differs.

    Attributes:
        totals: figures by name: batches, requests, spans, rejected, duplicates, conflicts, set_aside, corrections as
            accounted; rows, first_cost as accounted (Σ on arrival); ledger_rows, cost (Σ now), revised_rows,
            rows_without_batch of the ledger; waiting_requests of the journal, None where it was not given.
        differences: empty when everything agrees.
        notes: what could not be compared, and why; no differences.
    """

    totals: dict[str, Any] = field(default_factory=dict)
    differences: list[Difference] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def agrees(self) -> bool:
        """Whether nothing differs."""
        return not self.differences

    def __str__(self) -> str:
        return "\n".join(difference.text for difference in self.differences) or "everything agrees"

    def as_dict(self) -> dict[str, Any]:
        """For JSON: money as strings."""

        def plain(value: Any) -> Any:
            return format(value, "f") if isinstance(value, Decimal) else value

        return {
            "agrees": self.agrees,
            "totals": {name: plain(value) for name, value in self.totals.items()},
            "differences": [{k: plain(v) for k, v in asdict(each).items()} for each in self.differences],
            "notes": self.notes,
        }

    def add(self, kind: str, where: str, expected: Any, found: Any, text: str) -> None:
        """Put a difference in."""
        self.differences.append(Difference(kind, where, expected, found, text))


@dataclass(frozen=True, slots=True)
class _Journal:
    """What the journal's directory says.

    Attributes:
        id: hexadecimal.
        tokens: batches that were handed out and are not released.
        cursor: place before which everything is released.
        waiting: requests that are not released.
    """

    id: str
    tokens: list[str]
    cursor: tuple[int, int]
    waiting: int


def reconcile(
    reader: Reads,
    journal: Path | None = None,
    *,
    since: datetime | None = None,
    until: datetime | None = None,
    settle_s: float = 0.0,
) -> Report:
    """Compare everything with everything.

    Args:
        reader: a store or reader.
        journal: directory of the journal that feeds it; None: what is still on the way is not known.
        since, until: only batches that were received from then on and before then.
        settle_s: leave out batches received within so many seconds, of which a running service may have written only
            a part; 0 when it stands still.

    Raises:
        StoreError, ConfigError: the store or the journal cannot be read.
    """
    seen = None if journal is None else _inspected(journal)
    if settle_s:
        until = min(until or LATEST, datetime.now(UTC) - timedelta(seconds=settle_s))
    window = {"since": bound(since, EARLIEST), "until": bound(until, LATEST)}
    report = Report()
    if settle_s:
        report.notes.append(f"a service is at work: what it received in the last {settle_s:g} s is left out")
    _totals(reader, window, report)
    report.totals["waiting_requests"] = None if seen is None else seen.waiting
    _gaps(reader, window, seen, report)
    _batches(reader, window, seen, report)
    _strays(reader, window, seen, report)
    _telemetry(reader, window, seen, report)
    _rows(reader, window, report)
    _same_ids(reader, window, report)
    if seen is None:
        report.notes.append("no journal was given: summaries of traces, and what is on the way, are not looked at")
    elif seen.waiting:
        report.notes.append(f"{seen.waiting} requests are in the journal and not released: traces are not looked at")
    else:
        _summaries(reader, window, report)
    (journals,) = reader.rows("SELECT uniqExact(journal) AS n FROM batches")
    if journals["n"] > 1 and any(each.kind == "rows" for each in report.differences):
        report.notes.append(
            f"{journals['n']} processors or journals write here; each knows its own spans only, so rows that one of"
            " them lacks may be spans that were sent to another before"
        )
    missing = missing_rollups(reader, since, until)
    for place in missing.places[:SHOWN].tolist():
        span = f"{place[1]:016x}{place[2]:016x}/{place[3]:016x}"
        report.add("rollup", span, "rollup", "billed", f"{span} is billed, and so is a span beneath it")
    report.notes += missing.notes
    return report


_IN_WINDOW: Final = "received_at >= {since:DateTime64(9, 'UTC')} AND received_at < {until:DateTime64(9, 'UTC')}"
_ARRIVED: Final = (
    "ifNull(arrived_at, toDateTime64('1970-01-01', 3, 'UTC')) >= {since:DateTime64(9, 'UTC')}"
    " AND ifNull(arrived_at, toDateTime64('1970-01-01', 3, 'UTC')) < {until:DateTime64(9, 'UTC')}"
)
_ACCOUNTS: Final = f"""
    SELECT token, any(batch) AS batch, max(attempt) AS last_attempt,
        argMax(rows_, attempt) AS rows, argMax(costed_, attempt) AS costed, argMax(cost_, attempt) AS cost,
        argMax(late_, attempt) AS late, groupUniqArray((costed_, cost_)) AS attempts,
        min(first_) AS first, max(last_) AS last
    FROM
    (
        SELECT token, attempt, any(batch) AS batch, sum(rows) AS rows_, sum(costed) AS costed_, sum(cost) AS cost_,
            sum(late) AS late_, minIf(first_start, rows > 0) AS first_, maxIf(last_start, rows > 0) AS last_
        FROM batches FINAL WHERE {_IN_WINDOW} GROUP BY token, attempt
    )
    GROUP BY token
"""


def _totals(reader: Reads, window: Mapping[str, Any], report: Report) -> None:
    named = ("requests", "spans", "rejected", "duplicates", "conflicts", "set_aside", "corrections", "rows", "costed")
    sums = ", ".join(f"sum({name}) AS {name}_" for name in named)
    (accounts,) = reader.rows(
        f"SELECT uniqExact(token) AS batches, {sums}, sum(cost) AS first_cost FROM batches FINAL"
        f" WHERE {_IN_WINDOW} AND (token, attempt) IN"
        f" (SELECT token, max(attempt) FROM batches WHERE {_IN_WINDOW} GROUP BY token)",
        window,
    )
    (ledger,) = reader.rows(
        f"SELECT count() AS ledger_rows, sum(cost) AS cost, countIf(revised) AS revised_rows,"
        f" countIf(batch = 0) AS rows_without_batch FROM ledger FINAL WHERE {_ARRIVED}",
        window,
    )
    report.totals = {name.removesuffix("_"): value for name, value in {**accounts, **ledger}.items()}
    report.totals["cost"] = report.totals["cost"] or Decimal(0)


def _inspected(directory: Path) -> _Journal:
    seen = inspect(directory)
    cursor = (0, 0) if seen.cursor is None else (seen.cursor.position.segment, seen.cursor.position.offset)
    left = [each for each in seen.batches if (each.segment, each.start) >= cursor]
    tokens = [f"{seen.journal}-{each.segment}-{each.start}-{each.end}" for each in left]
    return _Journal(seen.journal, tokens, cursor, sum(each.waiting_records for each in seen.segments))


def _gaps(reader: Reads, window: Mapping[str, Any], seen: _Journal | None, report: Report) -> None:
    rows = reader.rows(
        f"""
        SELECT journal, segment, previous, first_byte FROM
        (
            SELECT journal, segment, first_byte, lagInFrame(furthest, 1, first_byte) OVER
                (PARTITION BY journal, segment ORDER BY first_byte ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW)
                AS previous
            FROM
            (
                SELECT journal, segment, first_byte, max(end_byte) OVER
                    (PARTITION BY journal, segment ORDER BY first_byte, end_byte
                     ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW) AS furthest
                FROM (SELECT DISTINCT journal, segment, first_byte, end_byte FROM batches WHERE {_IN_WINDOW})
            )
        )
        WHERE first_byte > previous ORDER BY journal, segment, first_byte LIMIT {SHOWN}
        """,
        window,
    )
    for row in rows:
        if seen is not None and row["journal"] == seen.id and (row["segment"], row["previous"]) >= seen.cursor:
            continue  # on the way
        place = Range(row["segment"], row["previous"], row["first_byte"])
        size = place.end - place.start
        where = f"{row['journal']}-{place.segment}-{place.start}-{place.end}"
        report.add("gap", where, size, 0, f"journal {where}: {size} bytes between two batches that no account tells of")


def _batches(reader: Reads, window: Mapping[str, Any], seen: _Journal | None, report: Report) -> None:
    """Each batch's rows against its account."""
    (span,) = reader.rows(f"SELECT min(first) AS first, max(last) AS last FROM ({_ACCOUNTS}) WHERE rows > 0", window)
    ends = {
        "first": bound(span["first"], EARLIEST),
        "last": bound(span["last"] + timedelta(seconds=1), LATEST),
    }
    differing = reader.rows(
        f"""
        SELECT a.token AS token, a.batch AS batch, a.rows AS rows, a.costed AS costed, a.cost AS cost, a.late AS late,
            a.attempts AS attempts, l.rows AS found, l.costed AS found_costed, l.cost AS found_cost
        FROM ({_ACCOUNTS}) AS a
        LEFT JOIN
        (
            SELECT batch, count() AS rows, countIf(isNotNull(first_cost)) AS costed,
                ifNull(sum(first_cost), toDecimal128(0, 12)) AS cost
            FROM ledger FINAL
            WHERE batch != 0 AND start_time >= {{first:DateTime64(9, 'UTC')}}
                AND start_time <= {{last:DateTime64(9, 'UTC')}}
            GROUP BY batch
        ) AS l USING (batch)
        WHERE found != rows OR NOT has(attempts, (found_costed, found_cost))
        ORDER BY token LIMIT {SHOWN}
        """,
        {**window, **ends},
    )
    before = _there_before(reader, [row["batch"] for row in differing if row["late"]])
    on_the_way = set() if seen is None else set(seen.tokens)
    for row in differing:
        if row["token"] in on_the_way:
            continue
        known, costed, cost = before.get(row["batch"], (0, 0, Decimal(0)))
        expected = row["rows"] - known
        where = row["token"]
        if row["found"] != expected:
            text = f"batch {where}: {expected} rows are due in the ledger, {row['found']} are there"
            report.add("rows", where, expected, row["found"], text)
        elif (row["found_costed"] + costed, row["found_cost"] + cost) not in _pairs(row["attempts"]):
            due = row["cost"] - cost
            text = f"batch {where}: its rows cost {due:f} USD on arrival, and {row['found_cost']:f} in the ledger"
            report.add("cost", where, due, row["found_cost"], text)


def _pairs(attempts: Any) -> list[tuple[int, Decimal]]:
    """(rows with a cost, Σ) of each attempt; Arrow gives a tuple as a dictionary."""
    return [tuple(each.values()) if isinstance(each, dict) else tuple(each) for each in attempts]


def _there_before(reader: Reads, batches: list[int]) -> dict[int, tuple[int, int, Decimal]]:
    """By batch: how many of its rows stand in the ledger as an earlier batch's, how many of these would have had a
    cost, and Σ of it."""
    if not batches:
        return {}
    rows = reader.rows(
        f"""
        SELECT late.batch AS batch, count() AS n, countIf(isNotNull(late.cost)) AS costed,
            ifNull(sum(late.cost), toDecimal128(0, 12)) AS cost
        FROM (SELECT * FROM late_rows FINAL WHERE batch IN ({", ".join(map(str, batches))})) AS late
        INNER JOIN
        (
            SELECT start_time, trace_id, span_id, batch FROM ledger FINAL
            WHERE (start_time, trace_id, span_id) IN
                (SELECT start_time, trace_id, span_id FROM late_rows WHERE batch IN ({", ".join(map(str, batches))}))
        ) AS entry USING (start_time, trace_id, span_id)
        WHERE entry.batch != late.batch
        GROUP BY late.batch
        """
    )
    return {row["batch"]: (row["n"], row["costed"], row["cost"]) for row in rows}


def _strays(reader: Reads, window: Mapping[str, Any], seen: _Journal | None, report: Report) -> None:
    """Rows of batches that have no account."""
    on_the_way = set() if seen is None else {batch_number(token) for token in seen.tokens}
    for row in reader.rows(
        f"SELECT batch, count() AS n, ifNull(sum(first_cost), toDecimal128(0, 12)) AS total FROM ledger FINAL"
        f" WHERE batch != 0 AND {_ARRIVED} AND batch NOT IN (SELECT batch FROM batches)"
        f" GROUP BY batch ORDER BY n DESC LIMIT {SHOWN}",
        window,
    ):
        if row["batch"] not in on_the_way:
            text = f"batch {row['batch']}: {row['n']} rows ({row['total']:f} USD) that no account tells of"
            report.add("account", str(row["batch"]), 0, row["n"], text)


def _rows(reader: Reads, window: Mapping[str, Any], report: Report) -> None:
    """What follows from the rows themselves."""
    for row in reader.rows(
        f"SELECT trace_id_hex, span_id_hex, ifNull(cost, 0) AS cost,"
        f" arraySum(x -> ifNull(x, toDecimal128(0, 12)), charges.cost) AS charged FROM ledger FINAL"
        f" WHERE {_ARRIVED} AND ifNull(cost, toDecimal128(0, 12)) != charged LIMIT {SHOWN}",
        window,
    ):
        where = f"{row['trace_id_hex']}/{row['span_id_hex']}"
        text = f"{where} costs {row['cost']:f} USD, and its charges {row['charged']:f}"
        report.add("charges", where, row["charged"], row["cost"], text)
    (sums,) = reader.rows(
        "SELECT (SELECT ifNull(sum(cost), toDecimal128(0, 12)) FROM ledger FINAL) AS by_row,"
        " (SELECT ifNull(sum(total_cost), toDecimal128(0, 12)) FROM trace_costs) AS by_trace"
    )
    if sums["by_row"] != sums["by_trace"]:
        text = f"traces cost {sums['by_trace']:f} USD together, and their rows {sums['by_row']:f}"
        report.add("trace_costs", "trace_costs", sums["by_row"], sums["by_trace"], text)


def _telemetry(reader: Reads, window: Mapping[str, Any], seen: _Journal | None, report: Report) -> None:
    """Each batch's spans against those in ``telemetry``. That none are there says nothing: they may be waiting, or have
    come again in another batch."""
    on_the_way = set() if seen is None else set(seen.tokens)
    for row in reader.rows(
        f"""
        SELECT a.token AS token, a.spans AS spans, t.spans AS found
        FROM
        (
            SELECT token, groupArray(fresh) AS spans FROM
            (
                SELECT token, attempt, sum(spans) - sum(rejected + duplicates + conflicts + set_aside) AS fresh
                FROM batches FINAL WHERE {_IN_WINDOW} GROUP BY token, attempt
            )
            GROUP BY token
        ) AS a
        INNER JOIN
        (
            SELECT token, sum(spans) AS spans FROM telemetry FINAL WHERE {_IN_WINDOW} GROUP BY token
        ) AS t USING (token)
        WHERE NOT has(spans, found)
        ORDER BY token LIMIT {SHOWN}
        """,
        window,
    ):
        if row["token"] in on_the_way:
            continue
        where, due = row["token"], max(row["spans"])
        text = f"batch {where}: it brought {due} new spans, and the bytes of {row['found']} are in telemetry"
        report.add("telemetry", where, due, row["found"], text)


def _same_ids(reader: Reads, window: Mapping[str, Any], report: Report) -> None:
    parts = report.totals["ledger_rows"] // AT_ONCE + 1
    for part in range(parts):
        for row in reader.rows(
            f"SELECT trace_id_hex, span_id_hex, count() AS n FROM ledger FINAL"
            f" WHERE {_ARRIVED} AND cityHash64(trace_id) % {parts} = {part}"
            f" GROUP BY trace_id_hex, span_id_hex HAVING n > 1 LIMIT {SHOWN}",
            window,
        ):
            where = f"{row['trace_id_hex']}/{row['span_id_hex']}"
            report.add("same_id", where, 1, row["n"], f"{where} has {row['n']} rows: one id was given to several spans")


def _summaries(reader: Reads, window: Mapping[str, Any], report: Report) -> None:
    (row,) = reader.rows(
        f"SELECT uniqExact(trace_id) AS n FROM ledger FINAL WHERE batch != 0 AND {_ARRIVED}"
        " AND trace_id NOT IN (SELECT trace_id FROM traces)",
        window,
    )
    if row["n"]:
        report.add("traces", "traces", 0, row["n"], f"{row['n']} traces of the ledger have no summary in traces")
