"""The engine's columnar face: a million spans priced with no loop over them.

In: instants, selectors and quantities as arrays of length n. Out: the ledger's cost columns. Rows that name the same
selectors are one combination; the instants of a batch are cut wherever a price of its combinations begins or ends; a
combination between two cuts, while the same schedules hold, is a cell, in which every price is constant. For each cell
that occurs, `resolve` is asked once for each meter, with one row's instant: the same code, so the same answer, as for a
single call. The rest is gathering by cell number.

Loops here run over selectors, combinations, cells and meters. Rows are touched one by one only where a cost does not
fit in 64 bits or its price is graduated.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, TypeAlias

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tollspan.pricing.arrays import SAFE_COST, Bools, Int64s, costs, decimals, put_exact
from tollspan.pricing.cost_columns import (
    CHARGE_STATUS,
    CHARGE_STATUSES,
    CHARGED,
    COST,
    METER_ORDER,
    REASON_BIT,
    SCHEMA,
    ChargeLists,
    Differences,
    Entries,
    coded,
    dense,
    most_flags,
    named,
)
from tollspan.pricing.meters import METERS, Axis
from tollspan.pricing.names import nearest
from tollspan.pricing.resolve import INPUT_TOKENS, REASONS, TIER_ASSUMED, USAGE_MISSING, Card, has_fee
from tollspan.pricing.selectors import SELECTOR_NAMES, Selectors

if TYPE_CHECKING:
    from tollspan.pricing.engine import PriceEngine

_ROW_STATUSES: Final = ("priced", "free", "included", "partial", "unpriced", "invalid")
_PRICED, _FREE, _INCLUDED, _PARTIAL, _UNPRICED, _INVALID = range(6)

_Level: TypeAlias = Literal["contracted", "listed"]


class ColumnarEngine:
    """Prices columns by the situations of a `PriceEngine`. One batch at a time.

    Args:
        engine: whose book and found prices are used.
    """

    def __init__(self, engine: PriceEngine) -> None:
        self._engine = engine
        self._lock = threading.Lock()
        self._entries = Entries()

    def price_columns(
        self,
        at: Int64s,
        selectors: Mapping[str, pa.Array],
        quantities: Mapping[str, pa.Array],
        invalid: pa.Array | None,
    ) -> pa.Table:
        """See `PriceEngine.price_columns`."""
        at = np.ascontiguousarray(at, dtype=np.int64)
        _check(len(at), selectors, quantities, invalid)
        with self._lock:
            return _Batch(self._engine, self._entries, at, selectors, quantities, invalid).table()


class _Costs(NamedTuple):
    """Costs of m charges at one level of their prices.

    Attributes:
        cost: pico-dollars, int64; 0 where there is none and where it is in ``exact``.
        charged: whether there is one.
        status, reasons: of the entries.
        exact: costs that 64 bits do not hold, by position.
    """

    cost: Int64s
    charged: Bools
    status: Int64s
    reasons: Int64s
    exact: dict[int, int]


def _put_difference(into: Differences, where: NDArray[np.integer[Any]], more: _Costs, less: _Costs) -> None:
    """``more - less`` of the same charges."""
    into.put(where, more.cost - less.cost, more.charged & less.charged)
    for k in more.exact.keys() | less.exact.keys():
        difference = more.exact.get(k, int(more.cost[k])) - less.exact.get(k, int(less.cost[k]))
        into.exact[int(where[k])] = difference


class _Batch:
    """One call of `price_columns`, step by step."""

    def __init__(
        self,
        engine: PriceEngine,
        entries: Entries,
        at: Int64s,
        selectors: Mapping[str, pa.Array],
        quantities: Mapping[str, pa.Array],
        invalid: pa.Array | None,
    ) -> None:
        self.engine = engine
        self.entries = entries
        self.at = at
        self.n = len(at)
        self.invalid = _invalid_codes(invalid, self.n)
        given = {meter: _values(quantities[meter]) for meter in METERS if meter in quantities}
        self.given: dict[str, tuple[Int64s, Bools]] = {m: column for m, column in given.items() if column[1].any()}
        self._refuse_negative()
        self.combinations, self.combination_of = _combinations(selectors, self.n)
        self.implied: dict[str, Bools] = {}
        """Rows by meter that are charged one without having counted it."""
        self._cells: dict[Axis, tuple[list[Card], Int64s]] = {}

    def table(self) -> pa.Table:
        reasons_of_invalid, invalid_code = self.invalid
        self._add_implied()
        input_tokens, input_given = self._input_tokens()
        self._drop_zeros()

        n = self.n
        refused = invalid_code > 0
        counts = np.zeros(n, dtype=np.int32)
        for _, valid in self.given.values():
            counts += valid
        offsets = np.zeros(n + 1, dtype=np.int32)
        np.cumsum(counts, out=offsets[1:])
        flat = ChargeLists(int(offsets[-1]))
        position = offsets[:-1].copy()

        total = np.zeros(n, dtype=np.int64)
        seen = np.zeros(n, dtype=np.int64)  # bit by charge status
        reasons = np.zeros(n, dtype=np.int64)
        unsafe_rows: set[int] = set()
        for meter, (values, valid) in self.given.items():
            rows = np.flatnonzero(valid)
            quantity = values[rows]
            where = position[rows]
            position[rows] += 1
            entry, assumed = self._entry(meter, rows, input_tokens, input_given)
            off = refused[rows]
            effective = self._costs(entry, quantity, off)
            status = np.where(off, CHARGE_STATUS["invalid"], effective.status)
            why = effective.reasons
            if assumed is not None:
                why = why | np.where(assumed, REASON_BIT[TIER_ASSUMED], 0)
            total[rows] += effective.cost
            seen[rows] |= 1 << status
            reasons[rows] |= np.where(off, 0, why)
            flat.put(where, METER_ORDER[meter], quantity, entry, effective.cost, status)
            for k, cost in effective.exact.items():
                flat.exact[int(where[k])] = cost
                unsafe_rows.add(int(rows[k]))
            if meter in self.implied:
                flat.mark_implied(where[self.implied[meter][rows]])
            levels = self._levels(meter, rows, input_tokens, input_given)
            if levels is not None:
                contracted, listed = (self._costs(level, quantity, off) for level in levels)
                _put_difference(flat.negotiated, where, listed, contracted)
                _put_difference(flat.committed, where, contracted, effective)

        exact_totals = {row: flat.sum(int(offsets[row]), int(offsets[row + 1])) for row in unsafe_rows}
        row_status = _row_status(seen, refused)
        reasons[counts == 0] = REASON_BIT[USAGE_MISSING]
        high = total >> 63
        put_exact(total, high, exact_totals)
        columns = [
            decimals(total, COST, row_status < _UNPRICED, high),
            named(row_status, _ROW_STATUSES),
            _reasons(reasons, invalid_code, reasons_of_invalid),
            *flat.columns(offsets, self.entries.items),
            named(np.zeros(n, dtype=np.int32), (self.engine.book_version,)),
        ]
        return pa.Table.from_arrays(columns, schema=SCHEMA)

    def _refuse_negative(self) -> None:
        """Rows with a negative quantity are invalid, whatever else they hold."""
        from tollspan.pricing.engine import USAGE_NEGATIVE

        names, codes = self.invalid
        for values, valid in self.given.values():
            negative = valid & (values < 0) & (codes == 0)
            if negative.any():
                if USAGE_NEGATIVE not in names:
                    names = [*names, USAGE_NEGATIVE]
                codes[negative] = names.index(USAGE_NEGATIVE)
        self.invalid = names, codes

    def _cell_of(self, axis: Axis) -> tuple[list[Card], Int64s]:
        """Cells of an axis that occur, as their cards, and each row's cell number."""
        if axis not in self._cells:
            situations = [self.engine.situation(axis, selectors) for selectors in self.combinations]
            key = self.combination_of
            size = len(situations)
            first, last = (int(self.at.min()), int(self.at.max())) if self.n else (0, 0)
            cuts = sorted({cut for situation in situations for cut in situation.cuts if first < cut <= last})
            if cuts:
                key = key * (len(cuts) + 1) + np.searchsorted(np.array(cuts, dtype=np.int64), self.at, side="right")
                size *= len(cuts) + 1
            for schedule in {s: None for situation in situations for s in situation.schedules}:
                keeps = np.array([schedule in situation.schedules for situation in situations])[self.combination_of]
                holds = np.zeros(self.n, dtype=bool)
                holds[keeps] = schedule.holds_many(self.at[keeps])
                if size > most_flags(self.n):  # keep the numbers small by numbering what occurs
                    one_row, key = dense(key, size)
                    size = len(one_row)
                key = key * 2 + holds
                size *= 2
            one_row, cell = dense(key, size)
            cells = [situations[self.combination_of[row]].card(int(self.at[row])) for row in one_row.tolist()]
            self._cells[axis] = cells, cell
        return self._cells[axis]

    def _entry(
        self,
        meter: str,
        rows: Int64s,
        input_tokens: Int64s | None,
        input_given: Bools | None,
        level: _Level | None = None,
    ) -> tuple[Int64s, Bools | None]:
        """Entry number of a meter's charge in each of the rows, and where the step was only assumed. Of the effective
        price, or of another level."""
        cells, cell_of = self._cell_of(METERS[meter].axis)
        cell = cell_of[rows]
        used = np.zeros(len(cells), dtype=bool)
        used[cell] = True
        first = np.zeros(len(cells), dtype=np.int64)
        ladder = np.zeros(len(cells), dtype=np.int64)  # which set of cliffs a cell has, 0 = none
        ladders: dict[tuple[int, ...], int] = {}
        for number in np.flatnonzero(used).tolist():
            quote = cells[number][meter]
            if level is not None:
                quote = getattr(quote, level) or quote
            first[number] = self.entries.number(quote)
            if quote.bounds and not quote.graduated:
                ladder[number] = ladders.setdefault(quote.bounds, len(ladders) + 1)
        entry = first[cell]
        if not ladders:
            return entry, None
        which = ladder[cell]
        known = input_given[rows] if input_given is not None else np.zeros(len(rows), dtype=bool)
        if input_tokens is not None:
            tokens = input_tokens[rows]
            for bounds, number in ladders.items():
                on = (which == number) & known
                entry[on] += np.searchsorted(np.array(bounds, dtype=np.int64), tokens[on], side="left")
        return entry, (which > 0) & ~known

    def _levels(
        self, meter: str, rows: Int64s, input_tokens: Int64s | None, input_given: Bools | None
    ) -> tuple[Int64s, Int64s] | None:
        """Entry numbers of the contracted and the list price in each of the rows; None where all are the effective."""
        cells, cell_of = self._cell_of(METERS[meter].axis)
        used = np.zeros(len(cells), dtype=bool)
        used[cell_of[rows]] = True
        quotes = (cells[number][meter] for number in np.flatnonzero(used).tolist())
        if all(quote.contracted is None and quote.listed is None for quote in quotes):
            return None
        contracted, _ = self._entry(meter, rows, input_tokens, input_given, "contracted")
        listed, _ = self._entry(meter, rows, input_tokens, input_given, "listed")
        return contracted, listed

    def _costs(self, entry: Int64s, quantity: Int64s, off: Bools) -> _Costs:
        """What quantities cost at entries; nothing where ``off``."""
        num, den, safe, minimum, status, reasons = (column[entry] for column in self.entries.arrays())
        billed = quantity
        if minimum.any():
            billed = np.where(quantity > 0, np.maximum(quantity, minimum), quantity)
        charged = (status < CHARGED) & ~off
        unsafe = charged & (billed > safe)
        cost = costs(np.where(charged & ~unsafe, billed, 0), num, den)
        exact: dict[int, int] = {}
        known: dict[tuple[int, int], int] = {}
        for k in np.flatnonzero(unsafe).tolist():
            key = int(entry[k]), int(quantity[k])
            if key not in known:
                quote, step = self.entries.step(key[0])
                known[key] = quote.cost(key[1], step) or 0
            exact[k] = known[key]
        small = [k for k, value in exact.items() if value <= SAFE_COST]
        for k in small:  # a graduated price
            cost[k] = exact.pop(k)
        return _Costs(cost, charged, status, reasons, exact)

    def _add_implied(self) -> None:
        """One request, and one share of overhead, where a model with a fee for it was called and none was counted."""
        from tollspan.pricing.charges import CALL_METERS
        from tollspan.pricing.engine import IMPLIED

        called = np.zeros(self.n, dtype=bool)
        for meter, (_, valid) in self.given.items():
            if meter in CALL_METERS:
                called |= valid
        called &= self.invalid[1] == 0
        for meter in IMPLIED:
            uncounted = called & ~self.given[meter][1] if meter in self.given else called
            if not uncounted.any():
                continue
            cells, cell_of = self._cell_of("model")
            fee = np.array([has_fee(card[meter]) for card in cells], dtype=bool)
            if not fee.any():
                continue
            implied = uncounted & fee[cell_of]
            zeros = np.zeros(self.n, dtype=np.int64), np.zeros(self.n, dtype=bool)
            values, valid = self.given.get(meter, zeros)
            self.given[meter] = np.where(implied, 1, values), valid | implied
            self.implied[meter] = implied
        self.given = {meter: self.given[meter] for meter in METERS if meter in self.given}

    def _drop_zeros(self) -> None:
        """A quantity of 0 is charged only in rows that give nothing else."""
        something = self.invalid[1] > 0  # of an invalid row everything is shown
        zeros = False
        for values, valid in self.given.values():
            nonzero = valid & (values != 0)
            zeros |= bool((valid & ~nonzero).any())
            something = something | nonzero
        if zeros:
            keep_all = ~something | (self.invalid[1] > 0)
            self.given = {m: (values, valid & ((values != 0) | keep_all)) for m, (values, valid) in self.given.items()}

    def _input_tokens(self) -> tuple[Int64s | None, Bools | None]:
        """Input tokens of each row, and whether it gives any; a sum past int64 is held at its end."""
        total: Int64s | None = None
        given: Bools | None = None
        for meter in INPUT_TOKENS:
            if meter not in self.given:
                continue
            values, valid = self.given[meter]
            counted = np.where(valid, values, 0)
            if total is None or given is None:
                total, given = counted, valid
                continue
            total = total + counted
            total[total < 0] = 2**63 - 1  # wrapped round: beyond any cliff either way
            given = given | valid
        return total, given


def _check(
    n: int, selectors: Mapping[str, pa.Array], quantities: Mapping[str, pa.Array], invalid: pa.Array | None
) -> None:
    for kind, known, given in (("selector", SELECTOR_NAMES, selectors), ("meter", tuple(METERS), quantities)):
        for name, array in given.items():
            if name not in known:
                raise ValueError(f"{name!r} is not a {kind}. {nearest(name, known)}".strip())
            if len(array) != n:
                raise ValueError(f"{kind} {name} has {len(array)} rows, the instants are {n}")
    if invalid is not None and len(invalid) != n:
        raise ValueError(f"'invalid' has {len(invalid)} rows, the instants are {n}")


def _values(array: pa.Array) -> tuple[Int64s, Bools]:
    """An int64 array as values (0 under nulls) and validity."""
    if isinstance(array, pa.ChunkedArray):
        array = array.combine_chunks()
    if not array.null_count:
        return array.to_numpy(zero_copy_only=False).astype(np.int64, copy=False), np.ones(len(array), dtype=bool)
    valid = array.is_valid().to_numpy(zero_copy_only=False)
    return array.fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64, copy=False), valid


def _codes(array: pa.Array) -> tuple[list[str | None], Int64s]:
    """A string or dictionary array as distinct values, the first of them None, and each row's number."""
    if isinstance(array, pa.ChunkedArray):
        array = array.unify_dictionaries().combine_chunks()
    if pa.types.is_null(array.type):
        return [None], np.zeros(len(array), dtype=np.int64)
    if not pa.types.is_dictionary(array.type):
        array = array.dictionary_encode()
    codes = array.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64) + 1
    return [None, *array.dictionary.to_pylist()], codes


def _invalid_codes(invalid: pa.Array | None, n: int) -> tuple[list[str], Int64s]:
    """Reasons by code, the first of them empty, and each row's code; 0 = not invalid."""
    if invalid is None:
        return [""], np.zeros(n, dtype=np.int64)
    names, codes = _codes(invalid)
    return [name or "" for name in names], codes


def _combinations(selectors: Mapping[str, pa.Array], n: int) -> tuple[list[Selectors], Int64s]:
    """Distinct normalized selectors, and each row's number among them."""
    key = np.zeros(n, dtype=np.int64)
    size = 1
    columns: dict[str, tuple[list[str | None], Int64s]] = {}
    for name, array in selectors.items():
        values, codes = _codes(array)
        if len(values) == 1:
            continue
        columns[name] = values, codes
        if size * len(values) > most_flags(n):  # keep the numbers small by numbering what occurs
            one_row, key = dense(key, size)
            size = len(one_row)
        key = key * len(values) + codes
        size *= len(values)
    one_row, combination_of = dense(key, size)
    distinct: dict[Selectors, int] = {}
    numbers = np.empty(len(one_row), dtype=np.int64)
    for position, row in enumerate(one_row.tolist()):
        found = {name: values[codes[row]] for name, (values, codes) in columns.items()}
        numbers[position] = distinct.setdefault(Selectors(**found).normalized(), len(distinct))
    return list(distinct), numbers[combination_of]


def _row_status(seen: Int64s, refused: Bools) -> NDArray[np.int32]:
    """Status of a row from the statuses of its charges (bits)."""
    table = np.full(1 << len(CHARGE_STATUSES), _PARTIAL, dtype=np.int32)
    priced, free, included = (1 << CHARGE_STATUS[name] for name in ("priced", "free", "included"))
    missing = (1 << CHARGE_STATUS["unpriced"]) | (1 << CHARGE_STATUS["ambiguous"])
    for bits in range(len(table)):
        if not bits & (priced | free | included):
            table[bits] = _UNPRICED
        elif not bits & missing:
            table[bits] = _PRICED if bits & priced else _INCLUDED if bits & included else _FREE
    return np.where(refused, np.int32(_INVALID), table[seen])


def _reasons(bits: Int64s, invalid_code: Int64s, names: Sequence[str]) -> pa.Array:
    """Reasons of each row, joined by commas; of an invalid row why it is."""
    size = 1 << len(REASONS)
    one_row, code = dense(np.where(invalid_code > 0, size + invalid_code, bits), size + len(names))
    texts = [
        names[invalid_code[row]]
        if invalid_code[row]
        else ",".join(reason for reason in REASONS if int(bits[row]) & REASON_BIT[reason])
        for row in one_row.tolist()
    ]
    return coded(code, texts)
