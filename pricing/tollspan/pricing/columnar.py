"""The engine's columnar face: a million spans priced with no loop over them.

In: instants, selectors and quantities as arrays of length n. Out: the ledger's cost columns. Rows that name the same
selectors are one combination; the instants of a batch are cut wherever a price of its combinations begins or ends; a
combination between two cuts is a cell, in which every price is constant. For each cell that occurs, `resolve` is asked
once for each meter, with one row's instant: the same code, so the same answer, as for a single call. The rest is
gathering by cell number.

Loops here run over selectors, combinations, cells and meters. Rows are touched one by one only where a cost does not
fit in 64 bits.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tollspan.pricing import money
from tollspan.pricing.arrays import Bools, Int64s, costs, decimals, put_exact
from tollspan.pricing.book import WEEK, week_time
from tollspan.pricing.cost_columns import (
    CHARGE_STATUS,
    CHARGE_STATUSES,
    COST,
    MAX_FLAGS,
    METER_ORDER,
    REASON_BIT,
    SCHEMA,
    ChargeLists,
    Entries,
    coded,
    dense,
    named,
)
from tollspan.pricing.meters import METERS, Axis
from tollspan.pricing.names import nearest
from tollspan.pricing.resolve import INPUT_TOKENS, REASONS, TIER_ASSUMED, USAGE_MISSING, Situation, has_fee
from tollspan.pricing.selectors import SELECTOR_NAMES, Selectors

if TYPE_CHECKING:
    from tollspan.pricing.engine import PriceEngine

_ROW_STATUSES: Final = ("priced", "free", "partial", "unpriced", "invalid")
_PRICED, _FREE, _PARTIAL, _UNPRICED, _INVALID = range(5)


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
        self._cells: dict[Axis, tuple[list[tuple[Situation, int]], Int64s]] = {}

    def table(self) -> pa.Table:
        reasons_of_invalid, invalid_code = self.invalid
        self._add_requests()
        self._drop_zeros()
        input_tokens, input_given = self._input_tokens()

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
            num, den, safe, minimum, status, why = (column[entry] for column in self.entries.arrays())
            if assumed is not None:
                why |= np.where(assumed, REASON_BIT[TIER_ASSUMED], 0)
            billed = quantity
            if minimum.any():
                billed = np.where(quantity > 0, np.maximum(quantity, minimum), quantity)
            charged = status < CHARGE_STATUS["unpriced"]
            off = refused[rows]
            if off.any():
                charged &= ~off
                status = np.where(off, CHARGE_STATUS["invalid"], status)
                why = np.where(off, 0, why)
            unsafe = charged & (billed > safe)
            cost = costs(np.where(charged & ~unsafe, billed, 0), num, den)
            total[rows] += cost
            seen[rows] |= 1 << status
            reasons[rows] |= why
            flat.put(where, METER_ORDER[meter], quantity, entry, cost, charged, status)
            for k in np.flatnonzero(unsafe).tolist():
                rate = self._rate(int(entry[k]))
                flat.exact[int(where[k])] = rate.cost(int(billed[k]))
                unsafe_rows.add(int(rows[k]))

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

    def _cell_of(self, axis: Axis) -> tuple[list[tuple[Situation, int]], Int64s]:
        """Cells of an axis that occur, as a situation and an instant in it, and each row's cell number."""
        if axis not in self._cells:
            situations = [self.engine.situation(axis, selectors) for selectors in self.combinations]
            key = self.combination_of
            size = len(situations)
            first, last = (int(self.at.min()), int(self.at.max())) if self.n else (0, 0)
            cuts = sorted({cut for situation in situations for cut in situation.cuts if first < cut <= last})
            if cuts:
                key = key * (len(cuts) + 1) + np.searchsorted(np.array(cuts, dtype=np.int64), self.at, side="right")
                size *= len(cuts) + 1
            week_cuts = sorted({cut for situation in situations for cut in situation.week_cuts})
            if week_cuts:
                phase = np.searchsorted(np.array(week_cuts, dtype=np.int64), _week_times(self.at), side="right")
                changing = np.array([bool(situation.week_cuts) for situation in situations])
                phase = np.where(changing[self.combination_of], phase, 0)
                key = key * (len(week_cuts) + 1) + phase
                size *= len(week_cuts) + 1
            one_row, cell = dense(key, size)
            cells = [(situations[self.combination_of[row]], int(self.at[row])) for row in one_row.tolist()]
            self._cells[axis] = cells, cell
        return self._cells[axis]

    def _entry(
        self, meter: str, rows: Int64s, input_tokens: Int64s | None, input_given: Bools | None
    ) -> tuple[Int64s, Bools | None]:
        """Entry number of a meter's charge in each of the rows, and where the step was only assumed."""
        cells, cell_of = self._cell_of(METERS[meter].axis)
        cell = cell_of[rows]
        used = np.zeros(len(cells), dtype=bool)
        used[cell] = True
        first = np.zeros(len(cells), dtype=np.int64)
        ladder = np.zeros(len(cells), dtype=np.int64)  # which set of cliffs a cell has, 0 = none
        ladders: dict[tuple[int, ...], int] = {}
        for number in np.flatnonzero(used).tolist():
            situation, instant = cells[number]
            quote = situation.quote(meter, instant)
            first[number] = self.entries.number(quote)
            if quote.bounds:
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

    def _rate(self, entry: int) -> money.Rate:
        """The exact rate behind an entry, which its arrays may not hold."""
        item = self.entries.items[entry]
        step = entry - self.entries.number(item.quote)
        rate = item.quote.steps[step][2]
        assert rate is not None  # only charged entries are asked for
        return rate

    def _add_requests(self) -> None:
        """One request where a model with a fee for each request was called and none was counted."""
        from tollspan.pricing.engine import CALL_METERS, REQUESTS

        called = np.zeros(self.n, dtype=bool)
        for meter, (_, valid) in self.given.items():
            if meter in CALL_METERS:
                called |= valid
        if REQUESTS in self.given:
            called &= ~self.given[REQUESTS][1]
        if not called.any():
            return
        cells, cell_of = self._cell_of("model")
        fee = np.array([has_fee(situation.quote(REQUESTS, instant)) for situation, instant in cells], dtype=bool)
        if not fee.any():
            return
        implied = called & fee[cell_of] & (self.invalid[1] == 0)
        values, valid = self.given.get(REQUESTS, (np.zeros(self.n, dtype=np.int64), np.zeros(self.n, dtype=bool)))
        self.given[REQUESTS] = np.where(implied, 1, values), valid | implied
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
        if size * len(values) > MAX_FLAGS:  # keep the numbers small by numbering what occurs
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


def _week_times(at: Int64s) -> Int64s:
    """`book.week_time` of many instants."""
    return (at % WEEK + week_time(0)) % WEEK


def _row_status(seen: Int64s, refused: Bools) -> NDArray[np.int32]:
    """Status of a row from the statuses of its charges (bits)."""
    table = np.full(1 << len(CHARGE_STATUSES), _PARTIAL, dtype=np.int32)
    priced, free, unpriced = (1 << CHARGE_STATUS[name] for name in ("priced", "free", "unpriced"))
    table[0] = _UNPRICED
    table[unpriced] = _UNPRICED
    table[free] = _FREE
    table[priced] = table[priced | free] = _PRICED
    return np.where(refused, np.int32(_INVALID), table[seen & (priced | free | unpriced)])


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
