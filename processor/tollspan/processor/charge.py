"""Charge: canonical columns to ledger rows, one for each billable span.

In: `Normalized` of a batch and the roll-up mask. Out: the ledger table, and which span each row is. Pricing itself is
`tollspan.pricing`; this stage hands it columns and adds the two statuses that only the processor can know: ``rollup``
(billed on a descendant) and ``not_billed`` (the provider refused the call before it used anything).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tollspan.pricing import PriceEngine
from tollspan.pricing.arrays import booleans, validity
from tollspan.pricing.cost_columns import coded, dense, same, worded
from tollspan.pricing.counted import Counted, counted
from tollspan.pricing.faster import kernels, nothing, prepare, read, spread, width
from tollspan.pricing.meters import METERS
from tollspan.processor import revisions
from tollspan.processor.assemble import USAGE_ESTIMATED, USAGE_INCOMPLETE, is_model
from tollspan.processor.decode import fused
from tollspan.processor.identity import U64, Mask, Rows
from tollspan.processor.normalize import Normalized
from tollspan.processor.pivot import codes_of, dictionary, nullable, says

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

_MOVED: Final = ("span_id", "parent_span_id", "start_ns", "duration_ns")
"""Columns of eight bytes that come into the ledger as they are, like ``trace_id``, which has sixteen."""


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
    rows = np.flatnonzero(_true(plain(normalized.columns["billable"])))
    pick = _Picked(normalized, rows)
    columns: dict[str, Any] = pick.moved()
    start_ns = columns.pop("start_ns")
    rolled = rollups[rows]
    used = _beside_usage(counted(normalized.quantities, rows, len(rows)), lambda: says(pick("kind"), "inference"))
    if rolled.any():
        used = used.without(used.mask(is_model), rolled)
    invalid = pick("invalid")
    costs = engine.price_columns(
        np.asarray(start_ns),
        {name: normalized.said[name] if name in normalized.said else pick(name) for name in SELECTORS},
        used,
        invalid=invalid,
        of=pick.shapes,
    )

    empty, valid = used.bits == 0, ~validity(invalid)
    told = ~rolled & ~empty & valid
    instead: list[tuple[Mask, str, str]] = []
    if empty.any():
        http_status = np.asarray(pc.fill_null(pick("http_status"), 0))
        refused = empty & (http_status >= 400) & says(pick("span_status"), "error")
        instead = [
            (empty & valid, "unpriced", "usage_missing"),
            (refused & valid, "not_billed", "refused_by_provider"),
            (empty & valid & ~pick.true("sent", null=True), "not_billed", "not_sent"),
            (empty & valid & pick.true("deferred"), "not_billed", "usage_deferred"),
            (empty & rolled, "rollup", "rollup"),
        ]
    status, reasons = settled(
        costs,
        pick.true("incomplete") & told,
        pick.true("estimated") & told,
        rolled,
        pick.true("provider_assumed") & told,
        instead,
    )

    columns["start_time"] = start_ns.view(pa.timestamp("ns", "UTC"))
    columns.update(pick.texts(_TEXT))
    columns["retries"] = whole(pick("retries"))
    columns["cold_start"] = pick("cold_start")
    columns["batch_size"] = whole(pick("batch_size"))
    columns["cost_status"] = status
    columns["cost_reasons"] = reasons
    columns.update({name: costs[name] for name in costs.column_names if name not in ("cost_status", "cost_reasons")})
    columns["reported_cost"] = pick("reported_cost")
    revision = revisions.arrived()
    revised = np.full(len(rows), revision, np.uint64)
    revised[rolled] = revisions.rolled_up(revision)
    columns["revision"] = pa.array(revised)
    columns["revised"] = pa.Array.from_buffers(
        pa.bool_(), len(rows), [None, pa.py_buffer(nothing(len(rows), np.uint8))]
    )
    columns["arrival_cost"] = pa.nulls(len(rows), pa.decimal128(38, 12))
    columns["batch"] = pa.array(np.full(len(rows), batch, np.uint64))
    return Charged(pa.Table.from_arrays(list(columns.values()), names=list(columns)), rows)


class _Picked:
    """Columns of some spans of a batch.

    Args:
        normalized: of all of them.
        rows: which, ascending.

    Attributes:
        shapes: the shape of each; None where columns are not known by shape.
    """

    def __init__(self, normalized: Normalized, rows: Rows) -> None:
        self._normalized, self._rows = normalized, rows
        self._all = len(rows) == len(normalized)
        shapes = normalized.shapes
        self.shapes = None if shapes is None else rows if shapes.of is None else shapes.of.take(rows)

    def __call__(self, name: str) -> Any:
        """A column; most columns of most batches say nothing, and those are made and not taken."""
        column = plain(self._normalized.columns[name])
        if self._all:
            return column
        if column.null_count == len(column):
            return pa.nulls(len(self._rows), column.type)
        if pa.types.is_dictionary(column.type):
            codes, said = codes_of(column)
            return dictionary(
                codes.take(self._rows), None if said is None else said.take(self._rows), column.dictionary
            )
        kind = _NUMBERS.get(column.type)
        if kind is None:
            return column.take(pa.array(self._rows))
        values = np.frombuffer(column.buffers()[1], kind, len(column), column.offset * kind().itemsize)
        return nullable(values.take(self._rows), validity(column).take(self._rows), column.type)

    def true(self, name: str, *, null: bool = False) -> Mask:
        """Where a boolean column is true, or null and ``null``."""
        column = plain(self._normalized.columns[name])
        if column.null_count == len(column):
            return np.full(len(self._rows), null, np.bool_)
        return _true(column, null=null).take(self._rows)

    def moved(self) -> dict[str, Any]:
        """Identifiers and times, which are only moved."""
        columns = {name: plain(self._normalized.columns[name]) for name in ("trace_id", *_MOVED)}
        walk = kernels()
        if self._all or not len(self._rows):
            return {name: self(name) for name in columns}
        if walk is None or any(column.null_count for column in columns.values()):
            index = pa.array(self._rows)
            return {name: column.take(index) for name, column in columns.items()}
        pairs, words = np.empty((len(self._rows), 2), np.uint64), np.empty((len(_MOVED), len(self._rows)), np.uint64)
        first, *others = (_words(column) for column in columns.values())
        walk.pick(
            read(self._rows), read(first.reshape(-1, 2), np.uint64), tuple(map(_read_words, others)), pairs, words
        )
        return {
            name: pa.Array.from_buffers(column.type, len(self._rows), [None, pa.py_buffer(values)])
            for (name, column), values in zip(columns.items(), (pairs, *words), strict=True)
        }

    def texts(self, names: Iterable[str]) -> dict[str, Any]:
        """Text columns, with '' for null; those that are known by shape are made together, and so are the others."""
        out: dict[str, Any] = {}
        by_shape: dict[str, tuple[Any, Any]] = {}
        by_span: dict[str, tuple[Any, Any]] = {}
        for name in names:
            column = self._normalized.said.get(name)
            group = by_span if column is None else by_shape
            if column is None:
                column = plain(self._normalized.columns[name])
                if not pa.types.is_dictionary(column.type) or column.type.index_type != pa.int32():
                    out[name] = given(self(name))
                    continue
            if column.null_count == len(column):
                out[name] = same("", len(self._rows))
                continue
            codes, said = codes_of(column)
            words = column.dictionary
            if said is not None:
                codes = np.where(said, codes, np.int32(len(words)))
                words = pa.concat_arrays([words, _NOTHING_SAID])
            if len(words) == 1:
                out[name] = same(words[0].as_py(), len(self._rows))
            else:
                out[name] = None
                group[name] = codes, words
        for of, group in ((self.shapes, by_shape), (self._rows, by_span)):
            if not group:
                continue
            widths = [width(len(words)) for _, words in group.values()]
            made = spread(self._rows if of is None else of, [codes for codes, _ in group.values()], widths)
            for (name, (_, words)), codes in zip(group.items(), made, strict=True):
                out[name] = worded(codes, words)
        return out


_NOTHING_SAID: Final = pa.array([""], pa.string())
_NUMBERS: Final[dict[Any, Any]] = {pa.int32(): np.int32, pa.int64(): np.int64}
"""Types of columns that Arrow's own ``take`` needs several times as long for."""


def _words(column: Any) -> U64:
    """Values of a column without nulls, eight bytes at a time."""
    size = column.type.bit_width // 64
    return np.frombuffer(column.buffers()[1], np.uint64, size * len(column), 8 * size * column.offset)


def _read_words(words: U64) -> Any:
    return read(words, np.uint64)


def _true(column: Any, *, null: bool = False) -> Mask:
    """Where a boolean Array is true, or null and ``null``."""
    values = booleans(column)
    if column.null_count:
        values = np.where(validity(column), values, null)
    return values


def true(column: Any, *, null: bool = False) -> Mask:
    """Where a boolean column is true, or null and ``null``."""
    if column.null_count == len(column):
        return np.full(len(column), null, np.bool_)
    return _true(plain(column), null=null)


def _beside_usage(used: Counted, inference: Callable[[], Mask]) -> Counted:
    """Quantities without the network bytes of calls of models that tell nothing else.

    Such a call was refused, asked for work that is billed elsewhere, or lost its usage: priced by its bytes alone it
    would look as if it had cost next to nothing, and is what a call without usage is.
    """
    network = used.mask(lambda meter: METERS[meter].component == "network")
    if not network:
        return used
    return used.without(network, inference() & ~used.has(~network))


def settled(
    costs: pa.Table,
    incomplete: Mask,
    estimated: Mask,
    rolled: Mask,
    assumed: Mask,
    instead: Iterable[tuple[Mask, str, str]] = (),
) -> tuple[Any, Any]:
    """Status and reasons of priced rows, with what only the processor knows about them.

    Args:
        costs: from `PriceEngine.price_columns`, n rows.
        incomplete: shape (n,), calls that tell one side of their tokens only: at best priced in part.
        estimated: shape (n,), calls whose usage is an estimate, and not counted or measured.
        rolled: shape (n,), roll-ups, whose remaining charges are priced.
        assumed: shape (n,), calls whose provider only the name of their model tells.
        instead: which rows, shape (n,), have another status and another reason whatever their prices say; of several
            the last.

    Returns:
        ``cost_status`` and ``cost_reasons``, dictionary arrays.
    """
    status, reasons = plain(costs["cost_status"]), plain(costs["cost_reasons"])
    instead = list(instead)
    masks = [
        (mask, reason)
        for mask, reason in (
            (incomplete, USAGE_INCOMPLETE),
            (estimated, USAGE_ESTIMATED),
            (assumed, PROVIDER_ASSUMED),
            (rolled, "rollup"),
        )
        if mask.any()
    ]
    others = [("", ""), *((state, reason) for _, state, reason in instead)]
    other = np.zeros(len(status), np.int64)
    for place, (mask, _, _) in enumerate(instead, 1):
        other[mask] = place
    if not masks and not other.any():
        return status, reasons
    # What rows say differently is said once for each combination.
    statuses, known = (column.dictionary.to_pylist() for column in (status, reasons))
    key = np.asarray(status.indices) * np.int64(len(known)) + np.asarray(reasons.indices)
    for mask, _ in masks:
        key = key * 2 + mask
    rows, number = dense(key * len(others) + other, len(statuses) * len(known) * len(others) << len(masks))
    says_status, says_reasons = [], []
    for row in rows.tolist():
        if other[row]:
            state, said = others[other[row]]
        else:
            state, said = statuses[status.indices[row].as_py()], known[reasons.indices[row].as_py()]
            more = [reason for mask, reason in masks if mask[row]]
            if USAGE_INCOMPLETE in more and state in ("priced", "free", "included"):
                state = "partial"
            said = ",".join(filter(None, (said, *more)))
        says_status.append(state)
        says_reasons.append(said)
    made = coded(number, says_status, says_reasons)
    return made[0], made[1]


def whole(column: Any) -> Any:
    """A count as uint32, null where it cannot be one: an odd number on one span must not stop its whole batch."""
    if column.null_count == len(column):
        return pa.nulls(len(column), pa.uint32())
    column = plain(column)
    kind = _NUMBERS[column.type]
    values = np.frombuffer(column.buffers()[1], kind, len(column), column.offset * kind().itemsize)
    return nullable(values.astype(np.uint32), validity(column) & (values >= 0) & (values <= 2**32 - 1), pa.uint32())


def given(column: Any) -> Any:
    """A string column with '' for null; a dictionary stays one, which is the cheapest form on the way to the store."""
    if not column.null_count:
        return column
    if not pa.types.is_dictionary(column.type):
        return pc.fill_null(column, "")
    values = column.dictionary
    if column.null_count == len(column):
        return same("", len(column))
    indices = pc.fill_null(column.indices, pa.scalar(len(values), column.indices.type))
    return pa.DictionaryArray.from_arrays(indices, pa.concat_arrays([values, pa.array([""], values.type)]))


fused.also(prepare)
