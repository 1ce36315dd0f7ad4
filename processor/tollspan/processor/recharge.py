"""Recharge: ledger rows priced again from what they say themselves.

In: rows of the ``ledger`` table and a price engine. Out: the same rows with the engine's charges, and which of them
that changes. Quantities come from the charges, selectors from the columns they were kept in. Charges that only follow
from the book (a fee for a request that nobody counted) are dropped first, as the other book may know no such thing.

A 0 that a call told is on record only where the call told nothing else. What follows from such zeros is worked out from
what is on record (`_zeros`); under the book that a row was priced with, it stays as it is to the last digit. Under
another, a call that told 0 requests beside other usage cannot be told from one that told none, and gets the fee.

What no price can change stays as it is: calls that were not billed or whose usage is invalid or missing, roll-ups
without a charge of their own, and rows with a meter that this version does not know.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tollspan.pricing import PriceEngine, Selectors
from tollspan.pricing.engine import IMPLIED
from tollspan.pricing.meters import METERS
from tollspan.pricing.resolve import IMPLIED_MARK, INPUT_TOKENS, TIER_ASSUMED
from tollspan.processor import revisions
from tollspan.processor.assemble import USAGE_ESTIMATED, USAGE_INCOMPLETE
from tollspan.processor.charge import PROVIDER_ASSUMED, SELECTORS, plain, settled
from tollspan.processor.dialects import TWO_SIDED
from tollspan.processor.identity import Mask, Rows
from tollspan.processor.schema import LEDGER

INPUT: Final = "tokens.input.uncached"
OUTPUT: Final = "tokens.output"

_FIXED: Final = ("not_billed", "invalid", "rollup")
_LISTS: Final = tuple(name for name in LEDGER.names if name.startswith("charges."))
_EXPLANATIONS: Final = ("charges.matched_by", "charges.component", "charges.unit")
"""Not looked at to tell whether a row changed: other words for the same price are no other price."""


@dataclass(frozen=True, slots=True)
class Recharged:
    """Rows priced again.

    Attributes:
        rows: n rows of the ledger, as they were.
        at: positions of the m rows that were priced again, int64, ascending.
        again: those m rows with their new charges, of the types of `LEDGER`; the revision is the old one.
        changed: shape (n,), rows that are not as they were.
    """

    rows: pa.Table
    at: Rows
    again: pa.Table
    changed: Mask

    def column(self, name: str) -> Any:
        """A column of all n rows, with the new values where there are some."""
        place = np.full(self.rows.num_rows, -1, np.int64)
        place[self.at] = np.arange(len(self.at))
        old, new = plain(self.rows[name]), plain(self.again[name])
        return pc.if_else(pa.array(place >= 0), new.take(pa.array(place, mask=place < 0)), old)

    def revised(self, number: int) -> pa.Table:
        """The changed rows as repricing ``number`` writes them."""
        rows = self.again.filter(pa.array(self.changed[self.at]))
        revision = revisions.repriced(np.asarray(plain(rows["revision"])), number)
        before = self.rows.take(pa.array(self.at[self.changed[self.at]]))
        first = pc.if_else(before["revised"], before["arrival_cost"], before["cost"])
        for name, column in (
            ("revision", pa.array(revision, pa.uint64())),
            ("revised", pa.array(np.ones(rows.num_rows, np.bool_))),
            ("arrival_cost", plain(first)),
        ):
            rows = rows.set_column(rows.column_names.index(name), name, column)
        return pa.table({name: _coded(plain(rows[name])) for name in rows.column_names})


def recharge(rows: pa.Table, engine: PriceEngine) -> Recharged:
    """Price ledger rows again.

    Args:
        rows: all columns of the ledger (not the ALIAS ones).
        engine: prices as of its book's version.
    """
    rows = _decoded(rows)
    at = np.flatnonzero(_open(rows))
    old = rows.take(pa.array(at))
    quantities = _quantities(old, engine.book_version)
    selectors = {name: _given(plain(old[name])) for name in SELECTORS}
    costs = engine.price_columns(np.asarray(pc.cast(plain(old["start_time"]), pa.int64())), selectors, quantities)
    incomplete, estimated, assumed = (
        np.asarray(pc.match_substring(plain(old["cost_reasons"]), reason))
        for reason in (USAGE_INCOMPLETE, USAGE_ESTIMATED, PROVIDER_ASSUMED)
    )
    rolled = _rolled(old)
    status, reasons = settled(costs, incomplete, estimated, rolled, assumed)
    again = old
    for name in costs.column_names:
        again = again.set_column(again.column_names.index(name), name, costs[name])
    for name, column in (("cost_status", status), ("cost_reasons", reasons)):
        again = again.set_column(again.column_names.index(name), name, column)
    again = _decoded(again)
    changed = np.zeros(rows.num_rows, np.bool_)
    changed[at] = _differs(old, again, rolled)
    return Recharged(rows, at, again, changed)


def told(row: pa.Table, engine: PriceEngine) -> tuple[dict[str, int], Selectors]:
    """What one row says it used, and what its price is chosen by, as the scalar face takes them.

    Args:
        row: all columns of the ledger, one row.
        engine: with whose prices it is to be explained.

    Returns:
        Base steps by meter, empty where there is nothing to price; selectors.
    """
    row = _decoded(row)
    selectors = Selectors(**{name: _given(plain(row[name]))[0].as_py() for name in SELECTORS})
    if not _open(row)[0]:
        return {}, selectors
    steps = {meter: values[0].as_py() for meter, values in _quantities(row, engine.book_version).items()}
    return {meter: value for meter, value in steps.items() if value is not None}, selectors


def _open(rows: pa.Table) -> Mask:
    """Rows that have something to price."""
    status, meters = plain(rows["cost_status"]), plain(rows["charges.meter"])
    fixed = np.asarray(pc.is_in(status, pa.array(_FIXED)))
    unknown = np.asarray(pc.invert(pc.is_in(meters.flatten(), pa.array(list(METERS)))))
    strange = np.zeros(len(meters), np.bool_)
    strange[np.asarray(pc.list_parent_indices(meters))[unknown]] = True
    found: Mask = (np.asarray(pc.list_value_length(meters)) > 0) & ~fixed & ~strange
    return found


def _quantities(rows: pa.Table, book_version: str) -> dict[str, pa.Array]:
    """Base steps by meter, int64 with nulls, one value a row: those on record, and zeros that must have been told.

    Args:
        rows: of the ledger.
        book_version: of the book that they are to be priced with.
    """
    lists = plain(rows["charges.meter"])
    parent = np.asarray(pc.list_parent_indices(lists))
    meters = plain(pc.dictionary_encode(lists.flatten()))
    counted = plain(rows["charges.quantity"]).flatten()
    own = ~np.asarray(pc.ends_with(plain(rows["charges.matched_by"]).flatten(), IMPLIED_MARK))
    codes = np.asarray(meters.indices)
    quantities = {}
    for code, meter in enumerate(meters.dictionary.to_pylist()):
        mine = np.flatnonzero((codes == code) & own)
        steps = np.zeros(rows.num_rows, np.int64)
        absent = np.ones(rows.num_rows, np.bool_)
        np.add.at(steps, parent[mine], _steps(counted.take(pa.array(mine)), METERS[meter].scale))
        absent[parent[mine]] = False
        quantities[meter] = pa.array(steps, mask=absent)
    fees = np.zeros(rows.num_rows, np.bool_)
    fees[parent[~own]] = True
    fee_meters = {meter: np.zeros(rows.num_rows, np.bool_) for meter in IMPLIED}
    for meter, there in fee_meters.items():
        there[parent[pc.equal(lists.flatten(), meter)]] = True
    for meter, zero in _zeros(rows, quantities, fees, fee_meters, book_version).items():
        values = quantities.get(meter, pa.nulls(rows.num_rows, pa.int64()))
        quantities[meter] = pc.if_else(pa.array(zero), 0, values)
    return quantities


def _zeros(
    rows: pa.Table,
    quantities: dict[str, pa.Array],
    fees: Mask,
    fee_meters: dict[str, Mask],
    book_version: str,
) -> dict[str, Mask]:
    """Which rows told a 0 that is not on record, by meter. They cost nothing; what follows from them does.

    * Output: where a fee was implied, or tokens were counted by a convention, and none are on record, the call told
      nothing but zeros of them. A model was called.
    * Input: a whole count has both sides, and a cliff price then knows its step. Under the same book it was told
      wherever no step was assumed.
    * What a fee is for: under the same book it was told wherever the fee was not charged.

    Args:
        rows: n rows of the ledger.
        quantities: what is on record as told.
        fees: shape (n,), rows with a charge that nothing was counted for.
        fee_meters: meter → shape (n,), rows with a charge for it, told or not.
        book_version: of the book that they are to be priced with.
    """
    tokens, entered, something = (np.zeros(rows.num_rows, np.bool_) for _ in range(3))
    for meter, values in quantities.items():
        valid = np.asarray(pc.is_valid(values))
        something |= valid & (np.asarray(pc.fill_null(values, 0)) != 0)
        tokens |= valid & meter.startswith("tokens.")
        entered |= valid & (meter in INPUT_TOKENS)
    something |= fees  # else every 0 is on record
    billed = ~_rolled(rows)
    same = np.asarray(pc.equal(plain(rows["book_version"]), book_version)) & billed & something
    reasons = plain(rows["cost_reasons"])
    counted = np.asarray(pc.not_equal(plain(rows["convention"]), "")) & billed
    two_sided = np.asarray(pc.is_in(pc.utf8_lower(plain(rows["operation"])), pa.array(sorted(TWO_SIDED))))
    whole = counted & two_sided & ~np.asarray(pc.match_substring(reasons, USAGE_INCOMPLETE))
    stepped = same & ~np.asarray(pc.match_substring(reasons, TIER_ASSUMED))
    return {
        OUTPUT: (counted | fees) & ~tokens,
        INPUT: (whole & something | stepped) & ~entered,
        **{meter: same & ~there for meter, there in fee_meters.items()},
    }


def _rolled(rows: pa.Table) -> Mask:
    return revisions.is_rolled_up(np.asarray(plain(rows["revision"])))


def _steps(quantity: Any, scale: int) -> Any:
    """decimal128(38, 9) in a meter's unit to int64 in its base steps, exactly.

    Raises:
        ArrowInvalid: a quantity is not a whole number of steps, or too large; the pipeline writes no such row.
    """
    if scale == 1:
        return np.asarray(pc.cast(quantity, pa.int64()))
    scaled = pc.multiply(pc.cast(quantity, pa.decimal256(60, 9)), pa.scalar(scale, pa.decimal256(12, 0)))
    return np.asarray(pc.cast(scaled, pa.int64()))


def _given(column: Any) -> Any:
    """A ledger's string column with null for not given."""
    text = pc.cast(column, pa.string())
    return pc.if_else(pc.equal(text, ""), pa.scalar(None, pa.string()), text)


def _decoded(rows: pa.Table) -> pa.Table:
    """Rows with the very types of `LEDGER`, dictionaries decoded."""
    return pa.table([pc.cast(plain(rows[field.name]), field.type) for field in LEDGER], schema=LEDGER)


def _coded(column: Any) -> Any:
    """Strings, alone or in lists, as dictionaries: the cheapest form on the way to the store."""
    if pa.types.is_string(column.type):
        return pc.dictionary_encode(column)
    if pa.types.is_list(column.type) and pa.types.is_string(column.type.value_type):
        lengths = np.asarray(pc.list_value_length(column))
        starts = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())
        return pa.ListArray.from_arrays(starts, pc.dictionary_encode(column.flatten()))
    return column


def _differs(old: pa.Table, new: pa.Table, rolled: Mask) -> Mask:
    """Rows whose cost, status, reasons or charges are not the same, shape (n,)."""
    # Reasons of a roll-up that was found late may be of charges that it has no more.
    changed = ~_same(plain(old["cost_reasons"]), plain(new["cost_reasons"])) & ~rolled
    for name in ("cost", "cost_status"):
        changed |= ~_same(plain(old[name]), plain(new[name]))
    length = [np.asarray(pc.list_value_length(plain(table["charges.meter"]))) for table in (old, new)]
    changed |= length[0] != length[1]
    alike = pa.array(np.flatnonzero(~changed))
    left, right = old.take(alike), new.take(alike)
    parent = np.asarray(pc.list_parent_indices(plain(left["charges.meter"])))
    for name in _LISTS:
        if name not in _EXPLANATIONS:
            other = ~_same(plain(left[name]).flatten(), plain(right[name]).flatten())
            changed[np.asarray(alike)[parent[other]]] = True
    return changed


def _same(left: Any, right: Any) -> Mask:
    """Equal values, two nulls among them."""
    equal = np.asarray(pc.fill_null(pc.equal(left, right), False))
    same: Mask = equal | np.asarray(pc.and_(pc.is_null(left), pc.is_null(right)))
    return same
