"""Summaries: one row of the ``traces`` table for each trace that a round decided.

In: the decisions of a round over held spans. Out: idempotent states (min, max), never sums over deliveries, so that a
resend or a replay cannot count a span twice (ARCHITECTURE.md, "traces").
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tollspan.pricing import PriceEngine
from tollspan.processor.charge import given, plain
from tollspan.processor.decode import Decoded, Waiting
from tollspan.processor.decode.tables import with_columns
from tollspan.processor.identity import U64, Mask, Rows
from tollspan.processor.sample import DROPPED, REASONS, Decision, encode_threshold
from tollspan.processor.tracestate import stamp_column

DAY_NS: Final = 86_400 * 10**9
LAST_DAY: Final = 65_535
"""The last day of ClickHouse's Date, in 2149; a span dated later is `invalid`, but has a row like any other."""


@dataclass(slots=True)
class Held:
    """Span bodies that wait for a decision, with what a summary and a kept row need of them.

    Attributes:
        decoded: the spans, in as little memory as they need.
        facts: one row a span: trace_id, start_ns, end_ns, root (bool), error (bool), name, service, tenant,
            cost (decimal, null), cost_status.
        span_bytes: telemetry bytes of one span: its share of the request's payload.
        costs: `tollspan.processor.forward.costs.Costs` of the spans, where kept ones are sent on.
    """

    decoded: Waiting
    facts: pa.Table
    span_bytes: int
    costs: Any = None

    def select(self, rows: Rows) -> Held:
        """A compact copy of some rows."""
        facts = self.facts.take(pa.array(rows)).combine_chunks()
        costs = self.costs.select(rows) if self.costs is not None else None
        return Held(self.decoded.select(rows).waiting(), facts, self.span_bytes, costs)

    @property
    def nbytes(self) -> int:
        """Approximate memory."""
        costs = self.costs.nbytes if self.costs is not None else 0
        return int(self.decoded.nbytes) + int(self.facts.nbytes) + int(costs)


class Kept(NamedTuple):
    """Kept spans of one batch, k of them.

    Attributes:
        spans: read once for all that is made of them, with the threshold in their trace states.
        held, rows: where they come from, and which of its rows they are.
        reason, threshold: why and at which, see `Decision`.
    """

    spans: Decoded
    held: Held
    rows: Rows
    reason: npt.NDArray[np.int8]
    threshold: U64


def kept_of(decision: Decision) -> Kept | None:
    """The spans of a decision that are kept; None where there are none."""
    keep = (decision.reason != DROPPED) & ~decision.duplicate
    rows = decision.rows[keep]
    if not len(rows):
        return None
    held: Held = decision.bodies
    thresholds = decision.threshold[keep]
    chosen = held.decoded.select(rows)
    stamped = stamp_column(chosen.spans["trace_state"], thresholds)
    spans = replace(chosen, spans=with_columns(chosen.spans, trace_state=stamped))
    return Kept(spans, held, rows, decision.reason[keep], thresholds)


def summarize(decisions: Sequence[Decision], traces: int, engine: PriceEngine) -> pa.Table:
    """Rows for the ``traces`` table.

    Args:
        decisions: what the round decided; their ``group`` numbers the traces 0 … traces-1.
        traces: number of decided traces.
        engine: prices ``telemetry.bytes``; NULL cost when the book has no price for it.
    """
    group = np.concatenate([d.group for d in decisions])
    reason = np.concatenate([d.reason for d in decisions])
    thresholds = np.concatenate([d.threshold for d in decisions])
    single = ~np.concatenate([d.duplicate for d in decisions])
    size = np.concatenate([np.full(len(d.rows), d.bodies.span_bytes, np.int64) for d in decisions])
    start, end, root, error = (_gathered(decisions, name) for name in ("start_ns", "end_ns", "root", "error"))

    first = np.full(traces, np.iinfo(np.int64).max)
    np.minimum.at(first, group, start)
    last = np.zeros(traces, np.int64)
    np.maximum.at(last, group, end)
    failed = np.zeros(traces, np.uint8)
    failed[group[error]] = 1
    spans = np.bincount(group[single], minlength=traces)
    received = np.bincount(group[single], weights=size[single], minlength=traces).astype(np.int64)
    any_row = np.zeros(traces, np.int64)
    any_row[group] = np.arange(len(group))
    kept = reason[any_row] != DROPPED
    # Text is taken for the one row of a trace that is shown, not for all.
    roots = _facts(decisions, root, ["name", "service", "tenant"])
    root_row = np.full(traces, -1, np.int64)
    root_row[group[root]] = np.arange(roots.num_rows)
    at_root = pa.array(root_row, mask=root_row < 0)
    shown = np.zeros(len(group), np.bool_)
    shown[any_row] = True
    of_shown = np.cumsum(shown) - 1

    def of_root(name: str) -> Any:
        return given(plain(roots[name]).take(at_root))

    levels, level = np.unique(thresholds[any_row], return_inverse=True)
    names = pa.array([encode_threshold(int(v)) for v in levels])
    priced = engine.price_columns(first, {}, {"telemetry.bytes": pa.array(received)})
    return pa.table(
        {
            "trace_id": plain(_facts(decisions, shown, ["trace_id"])["trace_id"]).take(pa.array(of_shown[any_row])),
            "day": pa.array(np.minimum(first // DAY_NS, LAST_DAY).astype(np.int32)).cast(pa.date32()),
            "start_time": pc.cast(pa.array(first), pa.timestamp("ns", "UTC")),
            "end_time": pc.cast(pa.array(last), pa.timestamp("ns", "UTC")),
            "root_name": of_root("name"),
            "root_service": of_root("service"),
            "tenant": of_root("tenant"),
            "error": pa.array(failed),
            "spans": pa.array(spans.astype(np.uint64)),
            "telemetry_bytes": pa.array(received.astype(np.uint64)),
            "telemetry_cost": plain(priced["cost"]),
            "kept": pa.array(kept.astype(np.uint8)),
            "kept_spans": pa.array(np.where(kept, spans, 0).astype(np.uint64)),
            "keep_reason": pa.array(list(REASONS)).take(pa.array(reason[any_row].astype(np.int64))),
            "threshold": pc.if_else(pa.array(kept), names.take(pa.array(level)), ""),
        }
    )


def _gathered(decisions: Sequence[Decision], name: str) -> Any:
    """A column of facts without nulls for all decided rows, decision after decision."""
    return np.concatenate([np.asarray(d.bodies.facts[name])[d.rows] for d in decisions])


def _facts(decisions: Sequence[Decision], chosen: Mask, names: list[str]) -> pa.Table:
    """Facts of the chosen ones of all decided rows, in their order."""
    parts, start = [], 0
    for decision in decisions:
        mine = decision.rows[chosen[start : start + len(decision.rows)]]
        start += len(decision.rows)
        parts.append(decision.bodies.facts.select(names).take(pa.array(mine)))
    return pa.concat_tables(parts).combine_chunks()
