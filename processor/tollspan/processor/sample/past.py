"""Past: spans of traces that were decided, made again from the store, so that another policy can be asked about them.

In: a reader and a window of start times. Out: `Past`, slice by slice: what a `Policy` would be shown if the spans
arrived now, with what became of their traces. The ledger has every billable span whether its body was kept or not; the
bodies have the rest of kept traces; and a trace of which the root is in neither gets one from its summary. What cannot
be made again is listed in `UNKNOWN`, in words for people.

Values of a body's attributes are texts in the store; one that looks like a number or a boolean is taken for one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tollspan.pricing.meters import METERS
from tollspan.processor.charge import Charged, plain
from tollspan.processor.dialects import TEXT
from tollspan.processor.identity import U64, Mask, Rows, find, member, span_keys, trace_keys, words
from tollspan.processor.normalize import Normalized, normalize
from tollspan.processor.queries.window import bound
from tollspan.processor.recall import Identities
from tollspan.processor.sample.past_spans import body_spans, ids, ledger_spans, summary_spans, together
from tollspan.processor.sample.types import Arrived
from tollspan.processor.schema import LEDGER
from tollspan.processor.tracestate import randomness

SLICE_ROWS: Final = 100_000
"""Ledger rows and kept spans in one slice, about."""
_SHORTEST: Final = timedelta(seconds=1)

UNKNOWN: Final = (
    "spans that are not billed and were not kept (a condition on them finds nothing; how many spans their traces have "
    "is known)",
    "attributes of spans that were not kept, beyond those that the ledger has (tags, model, service, tokens, errors)",
    "events and links, and whether an attribute's value was a text or a number",
    "what a sampler before this one did to traces that were not kept (tracestate rv and th; spans that came slim, "
    "because their trace was not sampled at its head, have no bodies to keep and are counted as if they had)",
)
"""What the store does not have, and a dry run therefore cannot know."""

_LEDGER_COLUMNS: Final = [
    field
    for field in LEDGER
    if not field.name.startswith("charges.") or field.name in ("charges.meter", "charges.quantity")
]
_WINDOW: Final = "{since:DateTime64(9, 'UTC')} AND %(column)s < {until:DateTime64(9, 'UTC')}"
_LEDGER: Final = (
    "SELECT "
    + ", ".join(f"`{field.name}`" for field in _LEDGER_COLUMNS)
    + " FROM ledger FINAL WHERE start_time >= "
    + _WINDOW % {"column": "start_time"}
)
_BODIES: Final = (
    "SELECT toFixedString(unhex(TraceId), 16) AS trace_id, toFixedString(unhex(SpanId), 8) AS span_id,"
    " toFixedString(unhex(ParentSpanId), 8) AS parent_span_id, TraceState, SpanName, SpanKind, ResourceAttributes,"
    " ScopeName, ScopeVersion, SpanAttributes, toUnixTimestamp64Nano(Timestamp) AS start_ns, Duration, StatusCode,"
    " StatusMessage FROM spans FINAL WHERE Timestamp >= " + _WINDOW % {"column": "Timestamp"}
)
_TRACES: Final = (
    "SELECT trace_id, toUnixTimestamp64Nano(start_time) AS start_ns, toUnixTimestamp64Nano(end_time) AS end_ns,"
    " traces.root_name AS root_name, traces.root_service AS root_service, traces.tenant AS tenant,"
    " traces.error AS error, traces.spans AS spans, traces.telemetry_bytes AS telemetry_bytes, traces.kept AS kept,"
    " traces.kept_spans AS kept_spans, traces.keep_reason AS keep_reason, traces.keep_rule AS keep_rule,"
    " traces.stored_bytes AS stored_bytes FROM traces FINAL WHERE start_time >= " + _WINDOW % {"column": "start_time"}
)
_COUNT: Final = (
    "SELECT (SELECT count() FROM ledger WHERE start_time >= "
    + _WINDOW % {"column": "start_time"}
    + ") + (SELECT count() FROM spans WHERE Timestamp >= "
    + _WINDOW % {"column": "Timestamp"}
    + ") AS n"
)
_ENDS: Final = (
    "SELECT count() AS n, min(start_time) AS first, max(start_time) AS last FROM traces WHERE start_time >= "
    + _WINDOW % {"column": "start_time"}
)


class Reads(Protocol):
    """The part of a store or reader that is used."""

    def query(self, sql: str, parameters: Mapping[str, Any] | None = None) -> pa.Table:
        """Rows of a SELECT as Arrow."""

    def rows(self, sql: str, parameters: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
        """Rows of a SELECT."""


@dataclass(frozen=True, slots=True)
class Past:
    """A slice of the window.

    Attributes:
        arrived: its n spans, kept bodies first, then ledger rows without a body, then roots made from summaries.
        traces: trace key of each span; randomness: 56 bits of its trace. Both of shape (n,).
        bodies: how many of the first spans are kept bodies.
        made_up: which spans are roots that only a summary tells of.
        summaries: one row a trace that started in the slice: ``key`` (as in ``traces``), trace_id, start_ns, end_ns,
            root_name, root_service, tenant, error, spans, telemetry_bytes, kept, kept_spans, keep_reason, keep_rule,
            stored_bytes (0 where it is not known).
        cost: one row a billed span: ``key`` of its trace and ``cost`` (decimal, null), ``unpriced`` (bool).
    """

    arrived: Arrived
    traces: U64
    randomness: U64
    bodies: int
    made_up: Mask
    summaries: pa.Table
    cost: pa.Table


def past(reader: Reads, since: datetime, until: datetime, received_ns: int) -> Iterator[Past]:
    """The spans that started in a window, in slices by time.

    Args:
        since, until: aware instants.
        received_ns: now, ns since the epoch; spans dated later count as invalid, as they do on arrival.
    """
    for start, end in _slices(reader, since, until):
        parameters = {"since": bound(start, start), "until": bound(end, end)}
        ledger = _typed(reader.query(_LEDGER, parameters), pa.schema(_LEDGER_COLUMNS))
        bodies = reader.query(_BODIES, parameters)
        summaries = reader.query(_TRACES, parameters)
        if ledger.num_rows + bodies.num_rows + summaries.num_rows:
            yield _slice(ledger, bodies, summaries, received_ns)


def first_and_last(reader: Reads, since: datetime, until: datetime) -> tuple[datetime, datetime]:
    """The part of a window in which traces began; the window's end twice where none did."""
    window = {"since": bound(since, since), "until": bound(until, until)}
    (row,) = reader.rows(_ENDS, window)
    return (row["first"], row["last"]) if row["n"] else (until, until)


def _slices(reader: Reads, since: datetime, until: datetime) -> Iterator[tuple[datetime, datetime]]:
    """Halves of halves of the window, until each has few enough rows."""
    count = int(reader.rows(_COUNT, {"since": bound(since, since), "until": bound(until, until)})[0]["n"])
    if count <= SLICE_ROWS or until - since <= _SHORTEST:
        yield since, until
        return
    middle = since + (until - since) / 2
    yield from _slices(reader, since, middle)
    yield from _slices(reader, middle, until)


def _typed(rows: pa.Table, schema: pa.Schema) -> pa.Table:
    return pa.table([pc.cast(plain(rows[field.name]), field.type) for field in schema], schema=schema)


def _keys(table: pa.Table) -> tuple[U64, U64]:
    """(keys of traces, keys of spans) of rows with ``trace_id`` and ``span_id``."""
    traces = trace_keys(words(ids(table, "trace_id", 16), 2))
    return traces, span_keys(traces, words(ids(table, "span_id", 8), 1)[:, 0])


def _slice(ledger: pa.Table, bodies: pa.Table, summaries: pa.Table, received_ns: int) -> Past:
    of_ledger, spans_of_ledger = _keys(ledger)
    of_bodies, spans_of_bodies = _keys(bodies)
    order = np.argsort(spans_of_bodies, kind="stable")
    place = find(spans_of_ledger, spans_of_bodies[order])
    body = np.where(place >= 0, order[place], -1) if len(order) else np.full(len(place), -1, np.int64)
    bare = np.flatnonzero(body < 0)
    rest = ledger.take(pa.array(bare))

    keys = trace_keys(words(ids(summaries, "trace_id", 16), 2))
    rootless = np.concatenate(
        (
            of_bodies[~_parents(bodies).any(axis=1)] if bodies.num_rows else np.zeros(0, np.uint64),
            of_ledger[bare][~_parents(rest).any(axis=1)] if rest.num_rows else np.zeros(0, np.uint64),
        )
    )
    made = np.flatnonzero(~member(keys, np.unique(rootless)))
    roots = summaries.take(pa.array(made))

    decoded = together([body_spans(bodies), ledger_spans(rest), summary_spans(roots)])
    traces = np.concatenate((of_bodies, of_ledger[bare], keys[made]))
    # Where each ledger row's span stands, and the rows in the order of the spans.
    row_of = body.copy()
    row_of[bare] = bodies.num_rows + np.arange(len(bare))
    ascending = np.argsort(row_of, kind="stable")
    charged = Charged(ledger.take(pa.array(ascending)), row_of[ascending])
    normalized = _with_ledger(normalize(decoded, received_ns=received_ns), charged, len(decoded))
    spans = decoded.spans
    trace = words(spans["trace_id"], 2)
    span = words(spans["span_id"], 1)[:, 0]
    parent = words(spans["parent_span_id"], 1)[:, 0]
    own = span_keys(traces, span)
    who = Identities(
        trace, span, traces, own, span_keys(traces, parent), parent == 0, np.zeros(len(decoded), np.uint64),
        np.argsort(own),
    )  # fmt: skip
    chance, _ = randomness(spans["trace_state"], trace)
    made_up = np.zeros(len(decoded), np.bool_)
    made_up[len(decoded) - len(made) :] = True
    status = plain(ledger["cost_status"])
    return Past(
        Arrived(decoded, normalized, charged, who),
        traces,
        chance,
        bodies.num_rows,
        made_up,
        summaries.append_column("key", pa.array(keys)),
        pa.table(
            {
                "key": pa.array(of_ledger),
                "cost": plain(ledger["cost"]),
                "unpriced": pc.is_in(status, pa.array(["unpriced", "invalid"])),
            }
        ),
    )


def _parents(table: pa.Table) -> npt.NDArray[np.uint64]:
    return words(ids(table, "parent_span_id", 8), 1)


def _with_ledger(normalized: Normalized, charged: Charged, count: int) -> Normalized:
    """What the ledger says of a span, in the place of what is read from the little that is left of it."""
    table, ledger, rows = normalized.table, charged.ledger, charged.rows
    at = np.full(count, -1, np.int64)
    at[rows] = np.arange(len(rows))
    from_ledger = pa.array(at, mask=at < 0)
    for name in ("kind", *TEXT):
        if name not in ledger.column_names:
            continue
        said = plain(ledger[name]).take(from_ledger)
        said = pc.if_else(pc.equal(said, ""), None, said)
        now = plain(table[name])
        whole = pc.if_else(pa.array(at >= 0), said, pc.cast(now, pa.string()))
        coded = pc.dictionary_encode(whole)
        table = table.set_column(
            table.column_names.index(name), name, coded.cast(now.type) if pa.types.is_dictionary(now.type) else whole
        )
    return Normalized(table, {**normalized.quantities, **_quantities(ledger, rows, count)})


def _quantities(ledger: pa.Table, rows: Rows, count: int) -> dict[str, Any]:
    """Base steps by meter, int64 of n, from the charges."""
    lists = plain(ledger["charges.meter"])
    span = rows[np.asarray(pc.list_parent_indices(lists)).astype(np.int64)]
    meters = lists.flatten().dictionary_encode()
    told = np.asarray(pc.cast(plain(ledger["charges.quantity"]).flatten(), pa.float64()))
    codes = np.asarray(meters.indices)
    found = {}
    for code, meter in enumerate(meters.dictionary.to_pylist()):
        if meter not in METERS:
            continue
        mine = codes == code
        values, absent = np.zeros(count, np.int64), np.ones(count, np.bool_)
        # A call may have several charges for one meter (steps of a price).
        np.add.at(values, span[mine], np.rint(told[mine] * METERS[meter].scale).astype(np.int64))
        absent[span[mine]] = False
        found[meter] = pa.array(values, mask=absent)
    return found
