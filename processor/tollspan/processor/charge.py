"""Charge: canonical columns to ledger rows, one for each billable span.

In: `Normalized` of a batch and the roll-up mask. Out: the ledger table, and which span each row is. Pricing itself is
`tollspan.pricing`; this stage hands it columns and adds the two statuses that only the processor can know: ``rollup``
(billed on a descendant) and ``not_billed`` (the provider refused the call before it used anything).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tollspan.pricing import PriceEngine
from tollspan.pricing.meters import METERS
from tollspan.processor import revisions
from tollspan.processor.assemble import USAGE_ESTIMATED, USAGE_INCOMPLETE, is_model
from tollspan.processor.identity import Mask, Rows
from tollspan.processor.normalize import Normalized

PROVIDER_ASSUMED: Final = "provider_assumed"
"""Reason of a row whose provider nothing but the name of its model told, see `tollspan.processor.providers`."""

SELECTORS: Final = (
    "provider",
    "model",
    "request_model",
    "service_tier",
    "processing",
    "region",
    "cloud_provider",
    "host_type",
    "device",
    "purchase",
    "residency",
)
"""What a price is chosen by, as columns of `Normalized.table` and of the ledger: a row can be priced again."""

_TEXT: Final = (
    "service",
    "environment",
    "tenant",
    "team",
    "feature",
    "workflow",
    "variant",
    "agent",
    "route",
    "version",
    "operation",
    "kind",
    "span_status",
    "error_type",
    "convention",
    *SELECTORS,
)

_USED: Final = sorted(
    {"start_ns", "trace_id", "span_id", "parent_span_id", "duration_ns", "http_status", "retries", "cold_start"}
    | {
        "batch_size",
        "invalid",
        "incomplete",
        "sent",
        "deferred",
        "estimated",
        "provider_assumed",
        "reported_cost",
        *_TEXT,
    }
)


@dataclass(frozen=True, slots=True)
class Charged:
    """Ledger rows of a batch.

    Attributes:
        ledger: m rows with the columns of the ``ledger`` table.
        rows: for each of them the index of its span in the batch, int64, ascending.
    """

    ledger: pa.Table
    rows: Rows


def plain(column: Any) -> pa.Array:
    """One contiguous Array of a column."""
    if isinstance(column, pa.ChunkedArray):
        return column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)
    return column


def charge(normalized: Normalized, rollups: Mask, engine: PriceEngine, batch: int = 0) -> Charged:
    """Price the billable spans of a batch.

    Args:
        normalized: canonical columns and quantities of n spans.
        rollups: shape (n,), spans whose tokens are billed on their descendants.
        engine: prices as of its book's version.
        batch: what the rows call it, see `accounts`.

    The rows' revision says that they arrived now: the first price of a span is the one that stays.
    """
    rows = np.flatnonzero(np.asarray(normalized.table["billable"]))
    index = pa.array(rows)
    table = {name: _taken(plain(normalized.table[name]), index) for name in _USED}
    rolled = rollups[rows]

    taken = {meter: _taken(plain(values), index) for meter, values in normalized.quantities.items()}
    quantities = {}
    for meter, mine in _beside_usage(taken, table["kind"]).items():
        if is_model(meter) and rolled.any():
            mine = pc.if_else(pa.array(rolled), pa.scalar(None, mine.type), mine)
        quantities[meter] = mine
    costs = engine.price_columns(
        np.asarray(table["start_ns"]),
        {name: plain(table[name]) for name in SELECTORS},
        quantities,
        invalid=plain(table["invalid"]),
    )

    empty = np.ones(len(rows), np.bool_)
    for values in quantities.values():
        empty &= ~np.asarray(pc.is_valid(values))
    refused = (
        empty
        & (np.asarray(pc.fill_null(table["http_status"], 0)) >= 400)
        & np.asarray(pc.equal(table["span_status"], "error"))
    )
    valid = np.asarray(pc.is_null(table["invalid"]))
    unsent = empty & ~np.asarray(pc.fill_null(plain(table["sent"]), True))
    deferred = empty & np.asarray(pc.fill_null(plain(table["deferred"]), False))
    counted_here = ~rolled & ~empty & valid
    status, reasons = settled(
        costs,
        np.asarray(table["incomplete"]) & counted_here,
        np.asarray(pc.fill_null(plain(table["estimated"]), False)) & counted_here,
        rolled,
        np.asarray(table["provider_assumed"]) & counted_here,
    )
    for mask, state, reason in (
        (empty & valid, "unpriced", "usage_missing"),
        (refused & valid, "not_billed", "refused_by_provider"),
        (unsent & valid, "not_billed", "not_sent"),
        (deferred & valid, "not_billed", "usage_deferred"),
        (rolled & empty, "rollup", "rollup"),
    ):
        if mask.any():
            chosen = pa.array(mask)
            status = pc.if_else(chosen, state, _text(status))
            reasons = pc.if_else(chosen, reason, _text(reasons))

    columns: dict[str, Any] = {
        "start_time": pc.cast(plain(table["start_ns"]), pa.timestamp("ns", "UTC")),
        "trace_id": plain(table["trace_id"]),
        "span_id": plain(table["span_id"]),
        "parent_span_id": plain(table["parent_span_id"]),
        "duration_ns": plain(table["duration_ns"]),
    }
    columns.update({name: given(plain(table[name])) for name in _TEXT})
    columns["retries"] = counted(plain(table["retries"]))
    columns["cold_start"] = plain(table["cold_start"])
    columns["batch_size"] = counted(plain(table["batch_size"]))
    columns["cost_status"] = status
    columns["cost_reasons"] = reasons
    columns.update({name: costs[name] for name in costs.column_names if name not in ("cost_status", "cost_reasons")})
    columns["reported_cost"] = plain(table["reported_cost"])
    revision = revisions.arrived()
    columns["revision"] = pa.array(np.where(rolled, revisions.rolled_up(revision), revision).astype(np.uint64))
    columns["revised"] = pa.array(np.zeros(len(rows), np.bool_))
    columns["arrival_cost"] = pa.nulls(len(rows), pa.decimal128(38, 12))
    columns["batch"] = pa.array(np.full(len(rows), batch, np.uint64))
    return Charged(pa.table(columns), rows)


def _beside_usage(quantities: dict[str, Any], kind: Any) -> dict[str, Any]:
    """Quantities without the network bytes of calls of models that tell nothing else.

    Such a call was refused, asked for work that is billed elsewhere, or lost its usage: priced by its bytes alone it
    would look as if it had cost next to nothing, and is what a call without usage is.
    """
    network = {meter for meter in quantities if METERS[meter].component == "network"}
    if not network:
        return quantities
    bare = np.asarray(pc.equal(pc.cast(plain(kind), pa.string()), "inference"))
    for meter in quantities.keys() - network:
        bare = bare & ~np.asarray(pc.is_valid(quantities[meter]))
    alone = pa.array(bare)
    return {
        meter: pc.if_else(alone, pa.scalar(None, values.type), values) if meter in network else values
        for meter, values in quantities.items()
    }


def settled(costs: pa.Table, incomplete: Mask, estimated: Mask, rolled: Mask, assumed: Mask) -> tuple[Any, Any]:
    """Status and reasons of priced rows, with what only the processor knows about them.

    Args:
        costs: from `PriceEngine.price_columns`, n rows.
        incomplete: shape (n,), calls that tell one side of their tokens only: at best priced in part.
        estimated: shape (n,), calls whose usage is an estimate, and not counted or measured.
        rolled: shape (n,), roll-ups, whose remaining charges are priced.
        assumed: shape (n,), calls whose provider only the name of their model tells.

    Returns:
        ``cost_status`` and ``cost_reasons``, string or dictionary arrays.
    """
    status, reasons = plain(costs["cost_status"]), plain(costs["cost_reasons"])
    if incomplete.any():
        whole = np.asarray(pc.is_in(_text(status), pa.array(["priced", "free", "included"])))
        status = pc.if_else(pa.array(incomplete & whole), "partial", _text(status))
    for mask, reason in (
        (incomplete, USAGE_INCOMPLETE),
        (estimated, USAGE_ESTIMATED),
        (assumed, PROVIDER_ASSUMED),
        (rolled, "rollup"),
    ):
        if mask.any():
            known = _text(reasons)
            joined = pc.if_else(pc.equal(known, ""), reason, pc.binary_join_element_wise(known, reason, ","))
            reasons = pc.if_else(pa.array(mask), joined, known)
    return status, reasons


def counted(column: Any) -> Any:
    """A count as uint32, null where it cannot be one: an odd number on one span must not stop its whole batch."""
    right = pc.and_(pc.greater_equal(column, 0), pc.less_equal(pc.cast(column, pa.int64()), 2**32 - 1))
    return pc.cast(pc.if_else(right, pc.cast(column, pa.int64()), None), pa.uint32())


def _taken(column: Any, index: Any) -> Any:
    """``column.take(index)``; most columns of most batches say nothing, and those are made and not taken."""
    return pa.nulls(len(index), column.type) if column.null_count == len(column) else column.take(index)


def given(column: Any) -> Any:
    """A string column with '' for null; a dictionary stays one, which is the cheapest form on the way to the store."""
    if not column.null_count:
        return column
    if not pa.types.is_dictionary(column.type):
        return pc.fill_null(column, "")
    values = column.dictionary
    if column.null_count == len(column):
        nowhere = pa.array(np.zeros(len(column), np.int32))
        return pa.DictionaryArray.from_arrays(nowhere, pa.array([""], values.type))
    indices = pc.fill_null(column.indices, pa.scalar(len(values), column.indices.type))
    return pa.DictionaryArray.from_arrays(indices, pa.concat_arrays([values, pa.array([""], values.type)]))


def _text(column: Any) -> Any:
    """A string column, dictionaries decoded."""
    return pc.cast(column, pa.string()) if pa.types.is_dictionary(column.type) else column
