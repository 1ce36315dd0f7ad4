"""The engine's columnar face: a million spans priced with no loop over them.

In: instants, selectors and quantities as arrays of length n. Out: the ledger's cost columns. Rows that name the same
selectors are one combination; the instants of a batch are cut wherever a price of its combinations begins or ends; a
combination between two cuts, while the same schedules hold, is a cell, in which every price is constant. Rows of a cell
that give the same meters, and are at the same steps of their prices, have one shape: their charges differ in nothing
but quantity and cost. For each shape that occurs, `resolve` is asked once for each meter, with one row's instant: the
same code, so the same answer, as for a single call. The rest is gathering by the numbers of shapes and of their
charges.

Loops here run over selectors, combinations, cells, shapes and meters. Rows are touched one by one only where a cost
does not fit in 64 bits or its price is graduated.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tollspan.pricing.arrays import Bools, Int64s, decimals, integers, put_exact, validity
from tollspan.pricing.cost_columns import (
    CHARGE_STATUS,
    COST,
    REASON_BIT,
    SCHEMA,
    ChargeLists,
    Entries,
    Groups,
    Template,
    Templates,
    coded,
    named,
)
from tollspan.pricing.meters import METERS, Axis
from tollspan.pricing.names import nearest
from tollspan.pricing.resolve import INPUT_TOKENS, REASONS, TIER_ASSUMED, USAGE_MISSING, Card, Quote, Situation, has_fee
from tollspan.pricing.selectors import SELECTOR_NAMES, Selectors

if TYPE_CHECKING:
    from tollspan.pricing.engine import PriceEngine

_ROW_STATUSES: Final = ("priced", "free", "included", "partial", "unpriced", "invalid")
_PRICED, _FREE, _INCLUDED, _PARTIAL, _UNPRICED, _INVALID = range(6)


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
        quantities: Mapping[str, pa.Array | tuple[Int64s, Bools]],
        invalid: pa.Array | None,
        of: Int64s | None = None,
    ) -> pa.Table:
        """See `PriceEngine.price_columns`."""
        at = np.ascontiguousarray(at, dtype=np.int64)
        _check(len(at), selectors, quantities, invalid, of)
        with self._lock:
            return _Batch(self._engine, self._entries, at, selectors, quantities, invalid, of).table()


class _Shape(NamedTuple):
    """What rows have in common.

    Attributes:
        charges: of each of them, in the order of `METERS`.
        invalid: code of the reason for which they are invalid; 0 = they are not.
    """

    charges: list[Template]
    invalid: int


class _Batch:
    """One call of `price_columns`, step by step."""

    def __init__(
        self,
        engine: PriceEngine,
        entries: Entries,
        at: Int64s,
        selectors: Mapping[str, pa.Array],
        quantities: Mapping[str, pa.Array | tuple[Int64s, Bools]],
        invalid: pa.Array | None,
        of: Int64s | None,
    ) -> None:
        self.engine = engine
        self.entries = entries
        self.at = at
        self.n = len(at)
        self.invalid = _invalid_codes(invalid, self.n)
        given = {meter: _values(quantities[meter]) for meter in quantities}
        given = {meter: given[meter] for meter in METERS if meter in given}
        self.given: dict[str, tuple[Int64s, Bools]] = {m: column for m, column in given.items() if column[1].any()}
        """Quantities by meter, and which rows have them; where none is given, anything stands under it."""
        self._refuse_negative()
        self.combinations, self.combination_of = _combinations(selectors, self.n, of)
        self.implied: dict[str, Bools] = {}
        """Rows by meter that are charged one without having counted it."""
        self._situations: dict[Axis, list[Situation]] = {}

    def table(self) -> pa.Table:
        n, (names, _) = self.n, self.invalid
        one_row, cell_of = self._cells()
        self._add_implied(one_row, cell_of)
        input_tokens = self._input_tokens()
        self._drop_zeros()

        shapes, shape_of = self._shapes(Groups(cell_of, len(one_row)), input_tokens)
        templates = Templates(self.entries, [charge for shape in shapes for charge in shape.charges])
        sizes = np.array([len(shape.charges) for shape in shapes], dtype=np.int64)
        counts = sizes.take(shape_of)
        offsets = np.zeros(n + 1, dtype=np.int32)
        np.cumsum(counts, out=offsets[1:])
        total = int(offsets[-1])
        # The charges of all rows one after another: the row of each, and its template.
        row_of = np.repeat(np.arange(n), counts)
        first = np.cumsum(sizes) - sizes
        template = np.repeat(first.take(shape_of) - offsets[:-1], counts)
        template += np.arange(total)
        lists = ChargeLists(templates, template, self._quantities(templates, template, row_of))

        sums = np.zeros(total + 1, dtype=np.int64)
        np.cumsum(lists.cost, out=sums[1:])  # where it wraps round, differences are right all the same
        starts = sums.take(offsets)
        cost = starts[1:] - starts[:-1]
        high = None
        if lists.exact:
            high = cost >> 63
            unsafe_rows = {int(row_of[k]) for k in lists.exact}
            put_exact(cost, high, {row: lists.sum(int(offsets[row]), int(offsets[row + 1])) for row in unsafe_rows})
        status = np.array([_row_status(shape) for shape in shapes], dtype=np.int32)
        costed = status < _UNPRICED
        columns = [
            decimals(cost, COST, None if costed.all() else costed.take(shape_of), high),
            named(status.take(shape_of), _ROW_STATUSES),
            coded(shape_of, [_reasons(shape, names) for shape in shapes]),
            *lists.columns(offsets),
            named(np.zeros(n, dtype=np.int32), (self.engine.book_version,)),
        ]
        return pa.Table.from_arrays(columns, schema=SCHEMA)

    def _refuse_negative(self) -> None:
        """Rows with a negative quantity are invalid, whatever else they hold."""
        from tollspan.pricing.engine import USAGE_NEGATIVE

        names, codes = self.invalid
        for values, valid in self.given.values():
            if values.min() >= 0:
                continue
            negative = valid & (values < 0) & (codes == 0)
            if negative.any():
                if USAGE_NEGATIVE not in names:
                    names = [*names, USAGE_NEGATIVE]
                codes[negative] = names.index(USAGE_NEGATIVE)
        self.invalid = names, codes

    def _situation(self, axis: Axis) -> list[Situation]:
        """Situations of an axis by combination."""
        found = self._situations.get(axis)
        if found is None:
            found = [self.engine.situation(axis, selectors) for selectors in self.combinations]
            self._situations[axis] = found
        return found

    def _card(self, axis: Axis, row: int) -> Card:
        """Prices of an axis for a row, and for all rows of its cell."""
        situation = self._situation(axis)[int(self.combination_of[row])]
        return situation.card(int(self.at[row]))

    def _cells(self) -> tuple[Int64s, Int64s]:
        """One row of each cell that occurs, and each row's cell number."""
        axes = dict.fromkeys(METERS[meter].axis for meter in self.given)
        situations = [self._situation(axis) for axis in axes]
        first, last = (int(self.at.min()), int(self.at.max())) if self.n else (0, 0)
        cuts = sorted({cut for some in situations for each in some for cut in each.cuts if first < cut <= last})
        cells = Groups(self.combination_of, len(self.combinations))
        if cuts:
            after = np.searchsorted(np.array(cuts, dtype=np.int64), self.at, side="right")
            cells.split(after, len(cuts) + 1)
        for schedule in {s: None for some in situations for each in some for s in each.schedules}:
            keeps = np.logical_or.reduce([[schedule in each.schedules for each in some] for some in situations])
            rows = np.flatnonzero(keeps.take(self.combination_of))
            holds = np.zeros(self.n, dtype=bool)
            holds[rows] = schedule.holds_many(self.at[rows])
            cells.split(holds, 2)
        return cells.numbered()

    def _add_implied(self, one_row: Int64s, cell_of: Int64s) -> None:
        """One request, and one share of overhead, where a model with a fee for it was called and none was counted."""
        from tollspan.pricing.charges import CALL_METERS
        from tollspan.pricing.engine import IMPLIED

        called = np.zeros(self.n, dtype=bool)
        for meter, (_, valid) in self.given.items():
            if meter in CALL_METERS:
                called |= valid
        called &= self.invalid[1] == 0
        if not called.any():
            return
        cards = [self._card("model", row) for row in one_row.tolist()]
        for meter in IMPLIED:
            fee = np.array([has_fee(card[meter]) for card in cards], dtype=bool)
            if not fee.any():
                continue
            implied = called & fee.take(cell_of)
            if meter in self.given:
                implied &= ~self.given[meter][1]
            if not implied.any():
                continue
            zeros = np.zeros(self.n, dtype=np.int64), np.zeros(self.n, dtype=bool)
            values, valid = self.given.get(meter, zeros)
            self.given[meter] = np.where(implied, 1, values), valid | implied
            self.implied[meter] = implied
        self.given = {meter: self.given[meter] for meter in METERS if meter in self.given}

    def _drop_zeros(self) -> None:
        """A quantity of 0 is charged only in rows that give nothing else."""
        zero = {meter: valid & (values == 0) for meter, (values, valid) in self.given.items()}
        if not any(some.any() for some in zero.values()):
            return
        keep_all = self.invalid[1] > 0  # of an invalid row everything is shown
        something = keep_all.copy()
        for meter, (_, valid) in self.given.items():
            something |= valid & ~zero[meter]
        keep_all |= ~something
        self.given = {m: (values, valid & (~zero[m] | keep_all)) for m, (values, valid) in self.given.items()}

    def _input_tokens(self) -> tuple[Int64s, Bools] | None:
        """Input tokens of each row, and whether it gives any; a sum past int64 is held at its end."""
        total: tuple[Int64s, Bools] | None = None
        for meter in INPUT_TOKENS:
            if meter not in self.given:
                continue
            values, valid = self.given[meter]
            counted = values * valid
            if total is not None:
                counted += total[0]
                counted[counted < 0] = 2**63 - 1  # wrapped round: beyond any cliff either way
                valid = total[1] | valid
            total = counted, valid
        return total

    def _shapes(self, groups: Groups, input_tokens: tuple[Int64s, Bools] | None) -> tuple[list[_Shape], Int64s]:
        """The shapes that occur, and each row's number among them."""
        names, invalid_code = self.invalid
        if len(names) > 1:
            groups.split(invalid_code, len(names))
        columns = [valid for _, valid in self.given.values()] + list(self.implied.values())
        for begin in range(0, len(columns), 8):
            byte = np.zeros(self.n, dtype=np.uint8)
            some = columns[begin : begin + 8]
            for bit, column in enumerate(some):
                byte |= column.view(np.uint8) << np.uint8(bit)
            groups.split(byte, 1 << len(some))
        one_row, number_of = groups.numbered()
        found = [self._quotes(row) for row in one_row.tolist()]

        ladders = {
            each.bounds for quotes in found for _, quote, _ in quotes for each in _levels(quote) if _climbs(each)
        }
        places: dict[tuple[int, ...], Int64s] = {}
        if ladders:
            for bounds in sorted(ladders):
                place = np.zeros(self.n, dtype=np.int64)
                if input_tokens is not None:
                    tokens, known = input_tokens
                    place = np.searchsorted(np.array(bounds, dtype=np.int64), tokens, side="left") + 1
                    place[~known] = 0
                groups.split(place, len(bounds) + 2)
                places[bounds] = place
            base, (one_row, number_of) = number_of, groups.numbered()
            found = [found[base[row]] for row in one_row.tolist()]

        shapes = []
        for row, quotes in zip(one_row.tolist(), found, strict=True):
            invalid = int(invalid_code[row])
            charges = []
            for meter, quote, implied in quotes:
                levels = [self._entry(each, places, row) for each in _levels(quote)]
                entry = self.entries.items[levels[0]]
                status, reasons = entry.status, entry.reasons
                if _climbs(quote) and not places[quote.bounds][row]:
                    reasons |= REASON_BIT[TIER_ASSUMED]
                if invalid:
                    status, reasons = CHARGE_STATUS["invalid"], 0
                charges.append(Template(meter, levels[0], levels[1], levels[2], status, reasons, implied))
            shapes.append(_Shape(charges, invalid))
        return shapes, number_of

    def _quotes(self, row: int) -> list[tuple[str, Quote, bool]]:
        """Meters that a row is charged, with their prices, and whether it did not count them."""
        return [
            (
                meter,
                self._card(METERS[meter].axis, row)[meter],
                meter in self.implied and bool(self.implied[meter][row]),
            )
            for meter, (_, valid) in self.given.items()
            if valid[row]
        ]

    def _entry(self, quote: Quote, places: Mapping[tuple[int, ...], Int64s], row: int) -> int:
        """Number of the step that a row is at; the first where it does not tell."""
        first = self.entries.number(quote)
        return first + max(0, int(places[quote.bounds][row]) - 1) if _climbs(quote) else first

    def _quantities(self, templates: Templates, template: Int64s, row_of: Int64s) -> Int64s:
        """Quantity of each charge."""
        if not len(template):
            return np.zeros(0, dtype=np.int64)
        place = {meter: number * self.n for number, meter in enumerate(self.given)}
        begins = np.array([place[meter] for meter in templates.meters], dtype=np.int64)
        return np.concatenate([values for values, _ in self.given.values()]).take(begins.take(template) + row_of)


def _levels(quote: Quote) -> tuple[Quote, Quote, Quote]:
    """The effective, the contracted and the list price."""
    return quote, quote.contracted or quote, quote.listed or quote


def _climbs(quote: Quote) -> bool:
    """Whether its step depends on the input tokens of the request."""
    return bool(quote.bounds) and not quote.graduated


def _check(
    n: int,
    selectors: Mapping[str, pa.Array],
    quantities: Mapping[str, pa.Array | tuple[Int64s, Bools]],
    invalid: pa.Array | None,
    of: Int64s | None,
) -> None:
    lengths = {len(array) for array in selectors.values()}
    if of is not None and (len(of) != n or len(lengths) > 1 or (n and lengths and int(of.max()) >= min(lengths))):
        raise ValueError(f"'of' is {len(of)} rows of selectors that have {sorted(lengths)}, the instants are {n}")
    for kind, known, given in (("selector", SELECTOR_NAMES, selectors), ("meter", tuple(METERS), quantities)):
        for name, array in given.items():
            if name not in known:
                raise ValueError(f"{name!r} is not a {kind}. {nearest(name, known)}".strip())
            rows = min(map(len, array)) if isinstance(array, tuple) else len(array)
            if rows != n and (of is None or kind == "meter"):
                raise ValueError(f"{kind} {name} has {rows} rows, the instants are {n}")
    if invalid is not None and len(invalid) != n:
        raise ValueError(f"'invalid' has {len(invalid)} rows, the instants are {n}")


def _values(array: pa.Array | tuple[Int64s, Bools]) -> tuple[Int64s, Bools]:
    """An int64 array as values (anything under nulls) and validity."""
    if isinstance(array, tuple):
        return array
    array = _whole(array)
    if not pa.types.is_int64(array.type):
        array = array.cast(pa.int64())
    return integers(array), validity(array)


def _whole(array: pa.Array) -> pa.Array:
    """One Array of a column."""
    if not isinstance(array, pa.ChunkedArray):
        return array
    return array.chunk(0) if array.num_chunks == 1 else array.combine_chunks()


def _codes(array: pa.Array) -> tuple[list[str | None], NDArray[np.int32]]:
    """A string or dictionary array as distinct values, the first of them None, and each row's number."""
    if isinstance(array, pa.ChunkedArray):
        array = _whole(array.unify_dictionaries())
    if array.null_count == len(array):
        return [None], np.zeros(len(array), dtype=np.int32)
    if not pa.types.is_dictionary(array.type):
        array = array.dictionary_encode()
    indices = array.indices.cast(pa.int32())
    codes = np.frombuffer(indices.buffers()[1], dtype=np.int32, count=len(indices), offset=4 * indices.offset) + 1
    if indices.null_count:
        codes *= validity(indices)
    return [None, *array.dictionary.to_pylist()], codes


def _invalid_codes(invalid: pa.Array | None, n: int) -> tuple[list[str], NDArray[np.int32]]:
    """Reasons by code, the first of them empty, and each row's code; 0 = not invalid."""
    if invalid is None:
        return [""], np.zeros(n, dtype=np.int32)
    names, codes = _codes(invalid)
    return [name or "" for name in names], codes


def _combinations(selectors: Mapping[str, pa.Array], n: int, of: Int64s | None) -> tuple[list[Selectors], Int64s]:
    """Distinct normalized selectors, and each row's number among them."""
    length = n if of is None else max(map(len, selectors.values()), default=1)
    groups = Groups(np.zeros(length, dtype=np.int64), 1)
    columns: dict[str, tuple[list[str | None], NDArray[np.int32]]] = {}
    for name, array in selectors.items():
        values, codes = _codes(array)
        if len(values) > 1:
            columns[name] = values, codes
            groups.split(codes, len(values))
    one_row, combination_of = groups.numbered()
    distinct: dict[Selectors, int] = {}
    numbers = np.empty(len(one_row), dtype=np.int64)
    for position, row in enumerate(one_row.tolist()):
        said = {name: values[codes[row]] for name, (values, codes) in columns.items()}
        numbers[position] = distinct.setdefault(Selectors(**said).normalized(), len(distinct))
    found = numbers.take(combination_of)
    return list(distinct), found if of is None else found.take(of)


def _row_status(shape: _Shape) -> int:
    """Status of rows from the statuses of their charges."""
    if shape.invalid:
        return _INVALID
    seen = {charge.status for charge in shape.charges}
    charged = seen & {CHARGE_STATUS[name] for name in ("priced", "free", "included")}
    if not charged:
        return _UNPRICED
    if len(charged) < len(seen):
        return _PARTIAL
    return _PRICED if CHARGE_STATUS["priced"] in seen else _INCLUDED if CHARGE_STATUS["included"] in seen else _FREE


def _reasons(shape: _Shape, names: Sequence[str]) -> str:
    """Reasons of rows, joined by commas; of invalid ones why they are."""
    if shape.invalid:
        return names[shape.invalid]
    if not shape.charges:
        return USAGE_MISSING
    bits = 0
    for charge in shape.charges:
        bits |= charge.reasons
    return ",".join(reason for reason in REASONS if bits & REASON_BIT[reason])
