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
from tollspan.pricing.arrays import integers, validity
from tollspan.pricing.meters import METERS
from tollspan.processor import revisions
from tollspan.processor.assemble import USAGE_ESTIMATED, USAGE_INCOMPLETE, is_model
from tollspan.processor.identity import Mask, Rows
from tollspan.processor.normalize import Normalized
from tollspan.processor.pivot import says

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
    billable = np.asarray(normalized.columns["billable"])
    rows = np.flatnonzero(billable)
    pick = _Picked(normalized, rows)
    table = {name: pick(name) for name in _USED if name not in normalized.said}
    rolled = rollups[rows]
    quantities = {
        meter: (integers(values).take(rows), validity(values).take(rows))
        for meter, values in normalized.quantities.items()
    }
    quantities = _beside_usage(quantities, table["kind"])
    if rolled.any():
        for meter, (values, valid) in quantities.items():
            if is_model(meter):
                quantities[meter] = values, valid & ~rolled
    shapes = normalized.shapes
    costs = engine.price_columns(
        np.asarray(table["start_ns"]),
        {name: normalized.said[name] if name in normalized.said else table[name] for name in SELECTORS},
        quantities,
        invalid=table["invalid"],
        of=None if shapes is None else rows if shapes.of is None else shapes.of.take(rows),
    )

    empty = np.ones(len(rows), np.bool_)
    for _, given_here in quantities.values():
        empty &= ~given_here
    valid = ~validity(table["invalid"])
    status, reasons = settled(
        costs,
        np.asarray(table["incomplete"]) & ~rolled & ~empty & valid,
        true(table["estimated"]) & ~rolled & ~empty & valid,
        rolled,
        np.asarray(table["provider_assumed"]) & ~rolled & ~empty & valid,
    )
    if empty.any():
        refused = (
            empty & (np.asarray(pc.fill_null(table["http_status"], 0)) >= 400) & says(table["span_status"], "error")
        )
        unsent = empty & ~true(table["sent"], null=True)
        deferred = empty & true(table["deferred"])
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
        "start_time": pc.cast(table["start_ns"], pa.timestamp("ns", "UTC")),
        "trace_id": table["trace_id"],
        "span_id": table["span_id"],
        "parent_span_id": table["parent_span_id"],
        "duration_ns": table["duration_ns"],
    }
    columns.update({name: pick.text(name) if name in normalized.said else given(table[name]) for name in _TEXT})
    columns["retries"] = counted(table["retries"])
    columns["cold_start"] = table["cold_start"]
    columns["batch_size"] = counted(table["batch_size"])
    columns["cost_status"] = status
    columns["cost_reasons"] = reasons
    columns.update({name: costs[name] for name in costs.column_names if name not in ("cost_status", "cost_reasons")})
    columns["reported_cost"] = table["reported_cost"]
    revision = revisions.arrived()
    columns["revision"] = pa.array(np.where(rolled, revisions.rolled_up(revision), revision).astype(np.uint64))
    columns["revised"] = pa.array(np.zeros(len(rows), np.bool_))
    columns["arrival_cost"] = pa.nulls(len(rows), pa.decimal128(38, 12))
    columns["batch"] = pa.array(np.full(len(rows), batch, np.uint64))
    return Charged(pa.table(columns), rows)


class _Picked:
    """Columns of some spans of a batch.

    Args:
        normalized: of all of them.
        rows: which, ascending.
    """

    def __init__(self, normalized: Normalized, rows: Rows) -> None:
        self._normalized, self._rows = normalized, rows
        self._all = len(rows) == len(normalized)
        self._index = pa.array(rows)
        self._nowhere: Any = None

    def __call__(self, name: str) -> Any:
        """A column; most columns of most batches say nothing, and those are made and not taken."""
        column = plain(self._normalized.columns[name])
        if self._all:
            return column
        if column.null_count == len(column):
            return pa.nulls(len(self._rows), column.type)
        width = _WIDE.get(column.type)
        if width is None or column.null_count:
            return column.take(self._index)
        values = np.frombuffer(column.buffers()[1], width, len(column), column.offset * width().itemsize)
        return pa.Array.from_buffers(column.type, len(self._rows), [None, pa.py_buffer(values.take(self._rows))])

    def text(self, name: str) -> Any:
        """A text column known by shape, with '' for null."""
        shapes, column = self._normalized.shapes, self._normalized.said[name]
        assert shapes is not None
        if column.null_count == len(column):
            if self._nowhere is None:
                self._nowhere = given(pa.nulls(len(self._rows), column.type))
            return self._nowhere
        return shapes.column(column, self._rows, null="")


_WIDE: Final[dict[Any, Any]] = {
    pa.binary(16): np.complex128,  # sixteen bytes that are only moved
    pa.binary(8): np.uint64,
    pa.int64(): np.uint64,
    pa.uint64(): np.uint64,
}
"""Types of columns whose values are taken as words: Arrow's own ``take`` needs several times as long."""


def true(column: Any, *, null: bool = False) -> Mask:
    """Where a boolean column is true, or null and ``null``."""
    if column.null_count == len(column):
        return np.full(len(column), null, np.bool_)
    found: Mask = np.asarray(pc.fill_null(column, null))
    return found


def _beside_usage(quantities: dict[str, tuple[Rows, Mask]], kind: Any) -> dict[str, tuple[Rows, Mask]]:
    """Quantities without the network bytes of calls of models that tell nothing else.

    Such a call was refused, asked for work that is billed elsewhere, or lost its usage: priced by its bytes alone it
    would look as if it had cost next to nothing, and is what a call without usage is.
    """
    network = {meter for meter in quantities if METERS[meter].component == "network"}
    if not network:
        return quantities
    bare = says(plain(kind), "inference")
    for meter in quantities.keys() - network:
        bare = bare & ~quantities[meter][1]
    return {
        meter: (values, valid & ~bare) if meter in network else (values, valid)
        for meter, (values, valid) in quantities.items()
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
    if column.null_count == len(column):
        return pa.nulls(len(column), pa.uint32())
    right = pc.and_(pc.greater_equal(column, 0), pc.less_equal(pc.cast(column, pa.int64()), 2**32 - 1))
    return pc.cast(pc.if_else(right, pc.cast(column, pa.int64()), None), pa.uint32())


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
