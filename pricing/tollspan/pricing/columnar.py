"""The engine's columnar face: a million spans priced with no loop over them.

In: instants, selectors and quantities as arrays of length n. Out: the ledger's cost columns. Rows that name the same
selectors are one combination; the instants of a batch are cut wherever a price of its combinations begins or ends; a
combination between two cuts, while the same schedules hold, is a cell, in which every price is constant. Rows of a cell
that give the same meters, and are at the same steps of their prices, have one shape: their charges differ in nothing
but quantity and cost. For each shape that occurs, `resolve` is asked once for each meter, with one row's instant: the
same code, so the same answer, as for a single call. The rest is one pass by the numbers of shapes and of their charges,
by kernels (`compiled`) where they are compiled and by NumPy elsewhere.

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

from tollspan.pricing import faster
from tollspan.pricing.arrays import Bools, Int64s, validity
from tollspan.pricing.cost_columns import (
    CHARGE_STATUS,
    METER_ORDER,
    REASON_BIT,
    SCHEMA,
    ChargeLists,
    Entries,
    Groups,
    Template,
    Templates,
    coded,
    same,
)
from tollspan.pricing.counted import Counted, Words, counted
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
        quantities: Mapping[str, pa.Array | tuple[Int64s, Bools]] | Counted,
        invalid: pa.Array | None,
        of: Int64s | None = None,
    ) -> pa.Table:
        """See `PriceEngine.price_columns`."""
        at = np.ascontiguousarray(at, dtype=np.int64)
        _check(len(at), selectors, quantities, invalid, of)
        used = quantities if isinstance(quantities, Counted) else counted(quantities, None, len(at))
        with self._lock:
            return _Batch(self._engine, self._entries, at, selectors, used, invalid, of).table()


class _Shape(NamedTuple):
    """What rows have in common.

    Attributes:
        charges: of each of them, in the order of `METERS`.
        invalid: code of the reason for which they are invalid; 0 = they are not.
    """

    charges: list[Template]
    invalid: int


class _Cells(NamedTuple):
    """Cells of a batch.

    Attributes:
        combination, at: of each an index and an instant.
        of: the cell of each row.
    """

    combination: list[int]
    at: list[int]
    of: Int64s


class Classes(NamedTuple):
    """Rows by cell, by the meters that they are charged, and by why they are invalid.

    Attributes:
        rows: one of each class.
        bits: the meters that its rows are charged, as in `Counted`.
        implied: which of `IMPLIED` they are charged without having counted them, as bits.
        of: the class of each row.
        counts: rows of each.
    """

    rows: Int64s
    bits: Words
    implied: NDArray[np.uint8]
    of: Int64s
    counts: Int64s


class _Batch:
    """One call of `price_columns`, step by step."""

    def __init__(
        self,
        engine: PriceEngine,
        entries: Entries,
        at: Int64s,
        selectors: Mapping[str, pa.Array],
        counted: Counted,
        invalid: pa.Array | None,
        of: Int64s | None,
    ) -> None:
        self.engine = engine
        self.entries = entries
        self.at = at
        self.n = len(at)
        self.counted = counted
        self.reasons, self.invalid = _invalid_codes(invalid, self.n)
        self.combinations, self.combination_of = _combinations(selectors, self.n, of)
        self._situations: dict[Axis, list[Situation]] = {}

    def table(self) -> pa.Table:
        cells = self._cells()
        shapes, classes = self._shapes(cells, self._classes(cells))
        templates = Templates(self.entries, self.counted.meters, [each for shape in shapes for each in shape.charges])
        sizes = np.array([len(shape.charges) for shape in shapes], dtype=np.int64)
        lists = ChargeLists(templates, sizes, classes.of, int(sizes @ classes.counts), self.counted.values)
        status = [_row_status(shape) for shape in shapes]
        costed = np.array(status, dtype=np.int64) < _UNPRICED
        columns = [
            lists.sums(None if costed.all() else costed.take(classes.of)),
            *coded(
                classes.of,
                [_ROW_STATUSES[each] for each in status],
                [_reasons(shape, self.reasons) for shape in shapes],
            ),
            *lists.columns(),
            same(self.engine.book_version, self.n),
        ]
        return pa.Table.from_arrays(columns, names=SCHEMA.names)

    def _situation(self, axis: Axis) -> list[Situation]:
        """Situations of an axis by combination."""
        found = self._situations.get(axis)
        if found is None:
            found = [self.engine.situation(axis, selectors) for selectors in self.combinations]
            self._situations[axis] = found
        return found

    def _cells(self) -> _Cells:
        """The cells, and each row's."""
        axes = dict.fromkeys(METERS[meter].axis for meter in self.counted.meters)
        situations = [self._situation(axis) for axis in axes]
        first, last = (int(self.at.min()), int(self.at.max())) if self.n else (0, 0)
        cuts = sorted({cut for some in situations for each in some for cut in each.cuts if first < cut <= last})
        schedules = {s: None for some in situations for each in some for s in each.schedules}
        if not cuts and not schedules:
            some = len(self.combinations)
            return _Cells(list(range(some)), [first] * some, self.combination_of)
        cells = Groups(self.combination_of, len(self.combinations))
        if cuts:
            after = np.searchsorted(np.array(cuts, dtype=np.int64), self.at, side="right")
            cells.split(after, len(cuts) + 1)
        for schedule in schedules:
            keeps = np.logical_or.reduce([[schedule in each.schedules for each in some] for some in situations])
            rows = np.flatnonzero(keeps.take(self.combination_of))
            holds = np.zeros(self.n, dtype=bool)
            holds[rows] = schedule.holds_many(self.at[rows])
            cells.split(holds, 2)
        one_row, of = cells.numbered()
        return _Cells(self.combination_of.take(one_row).tolist(), self.at.take(one_row).tolist(), of)

    def _card(self, axis: Axis, cells: _Cells, cell: int) -> Card:
        """Prices of an axis for a cell."""
        return self._situation(axis)[cells.combination[cell]].card(cells.at[cell])

    def _classes(self, cells: _Cells) -> Classes:
        """Rows by what they are charged for.

        A row with a negative quantity is invalid, whatever else it holds, and of an invalid one everything is shown. A
        quantity of 0 is charged only in rows that give nothing else. One request, and one share of overhead, is charged
        where a model with a fee for it was called and none was counted.
        """
        from tollspan.pricing.charges import CALL_METERS
        from tollspan.pricing.engine import IMPLIED, USAGE_NEGATIVE

        meters = self.counted.meters
        if USAGE_NEGATIVE not in self.reasons:
            self.reasons = [*self.reasons, USAGE_NEGATIVE]
        calls = self.counted.mask(CALL_METERS.__contains__)
        fees = [0] * len(cells.combination)
        if calls:
            cards = [self._card("model", cells, cell) for cell in range(len(fees))]
            fees = [sum(has_fee(card[meter]) << place for place, meter in enumerate(IMPLIED)) for card in cards]
        own = [1 << meters.index(meter) if meter in meters else 0 for meter in IMPLIED]
        return classified(
            cells.of,
            self.counted,
            self.invalid,
            (self.reasons.index(USAGE_NEGATIVE), len(self.reasons)),
            calls,
            np.array(own, dtype=np.uint64),
            np.array(fees, dtype=np.uint8),
        )

    def _input_tokens(self) -> tuple[Int64s, Bools]:
        """Input tokens of each row, and whether it gives any; a sum past int64 is held at its end."""
        total, known = np.zeros(self.n, dtype=np.int64), np.zeros(self.n, dtype=bool)
        for place, meter in enumerate(self.counted.meters):
            if meter not in INPUT_TOKENS:
                continue
            valid = self.counted.has(np.uint64(1 << place))
            total += self.counted.values[place] * valid
            total[total < 0] = 2**63 - 1  # wrapped round: beyond any cliff either way
            known |= valid
        return total, known

    def _shapes(self, cells: _Cells, classes: Classes) -> tuple[list[_Shape], Classes]:
        """The shapes that occur, and the rows by shape: by class, and by the steps of their prices."""
        from tollspan.pricing.engine import IMPLIED

        codes = self.invalid.take(classes.rows).tolist()
        found = [
            self._quotes(cells, cell, bits, [meter for place, meter in enumerate(IMPLIED) if implied >> place & 1])
            for cell, bits, implied in zip(
                cells.of.take(classes.rows).tolist(), classes.bits.tolist(), classes.implied.tolist(), strict=True
            )
        ]
        ladders = {
            each.bounds for quotes in found for _, quote, _ in quotes for each in _levels(quote) if _climbs(each)
        }
        places: dict[tuple[int, ...], Int64s] = {}
        if ladders:
            groups = Groups(classes.of, len(found))
            tokens, known = self._input_tokens()
            for bounds in sorted(ladders):
                place = np.searchsorted(np.array(bounds, dtype=np.int64), tokens, side="left") + 1
                place[~known] = 0
                groups.split(place, len(bounds) + 2)
                places[bounds] = place
            base = classes.of
            rows, of = groups.numbered()
            classes = classes._replace(rows=rows, of=of, counts=np.bincount(of, minlength=len(rows)))
            found = [found[base[row]] for row in rows.tolist()]
            codes = self.invalid.take(rows).tolist()

        shapes = []
        for row, quotes, invalid in zip(classes.rows.tolist(), found, codes, strict=True):
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
        return shapes, classes

    def _quotes(self, cells: _Cells, cell: int, bits: int, implied: Sequence[str]) -> list[tuple[str, Quote, bool]]:
        """Meters that rows of a class are charged, with their prices, and whether they did not count them."""
        meters = [meter for place, meter in enumerate(self.counted.meters) if bits >> place & 1]
        if implied:
            meters = sorted([*meters, *implied], key=METER_ORDER.__getitem__)
        return [(meter, self._card(METERS[meter].axis, cells, cell)[meter], meter in implied) for meter in meters]

    def _entry(self, quote: Quote, places: Mapping[tuple[int, ...], Int64s], row: int) -> int:
        """Number of the step that a row is at; the first where it does not tell."""
        first = self.entries.number(quote)
        return first + max(0, int(places[quote.bounds][row]) - 1) if _climbs(quote) else first


def classified(
    cell_of: Int64s,
    counted: Counted,
    invalid: NDArray[np.int32],
    negative: tuple[int, int],
    calls: np.uint64,
    own: Words,
    fees: NDArray[np.uint8],
) -> Classes:
    """Rows by cell, by the meters that they are charged, and by why they are invalid; see `_Batch._classes`.

    Args:
        cell_of: of each of n rows.
        counted: what they used.
        invalid: codes of why they are invalid, is written.
        negative: code for those with a negative quantity, and how many codes there are.
        calls: bits of the meters that only a call of a model has.
        own: bits of the meters that may be implied; 0: nobody counted any.
        fees: by cell which of these have a fee, as bits.
    """
    n, walk = len(cell_of), faster.kernels()
    if walk is not None:
        rows, counts, of = np.empty(n, np.int64), np.empty(n, np.int64), np.empty(n, np.int64)
        bits, implied = np.empty(n, np.uint64), np.empty(n, np.uint8)
        slots = np.zeros(1 << (2 * n).bit_length(), np.int32)
        given = faster.read(cell_of), faster.read(counted.values), faster.read(counted.bits, np.uint64)
        rules = negative[0], calls, faster.read(own, np.uint64), faster.read(fees, np.uint8)
        found = walk.classify(*given, *rules, invalid, slots, rows, bits, implied, counts, of)
        return Classes(rows[:found], bits[:found], implied[:found], of, counts[:found])
    given_bits = counted.bits
    zero, below = np.zeros(n, dtype=np.uint64), np.zeros(n, dtype=bool)
    for place, values in enumerate(counted.values):
        bit = np.uint64(1 << place)
        valid = counted.has(bit)
        zero[valid & (values == 0)] |= bit
        below |= valid & (values < 0)
    invalid[below & (invalid == 0)] = negative[0]
    right = invalid == 0
    implied = np.zeros(n, dtype=np.uint8)
    if calls and fees.any():
        called = right & counted.has(calls)
        for place, bit in enumerate(own):
            fee = (fees >> np.uint8(place) & 1).astype(bool)
            implied[called & fee.take(cell_of) & ~counted.has(bit)] |= np.uint8(1 << place)
    something = given_bits & ~zero
    bits = np.where(right & ((something != 0) | (implied > 0)), something, given_bits)
    groups = Groups(cell_of, max(1, len(fees)))
    groups.split(invalid, negative[1])
    groups.split(implied, 1 << len(own))
    for begin in range(0, len(counted.meters), 8):
        groups.split((bits >> np.uint64(begin) & np.uint64(255)).astype(np.int64), 256)
    rows, of = groups.numbered()
    return Classes(rows, bits.take(rows), implied.take(rows), of, np.bincount(of, minlength=len(rows)))


def _levels(quote: Quote) -> tuple[Quote, Quote, Quote]:
    """The effective, the contracted and the list price."""
    return quote, quote.contracted or quote, quote.listed or quote


def _climbs(quote: Quote) -> bool:
    """Whether its step depends on the input tokens of the request."""
    return bool(quote.bounds) and not quote.graduated


def _check(
    n: int,
    selectors: Mapping[str, pa.Array],
    quantities: Mapping[str, pa.Array | tuple[Int64s, Bools]] | Counted,
    invalid: pa.Array | None,
    of: Int64s | None,
) -> None:
    if isinstance(quantities, Counted):
        if len(quantities.bits) != n:
            raise ValueError(f"quantities have {len(quantities.bits)} rows, the instants are {n}")
        quantities = {}
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
    if invalid is None or invalid.null_count == n:
        return [""], np.zeros(n, dtype=np.int32)
    names, codes = _codes(invalid)
    return [name or "" for name in names], codes.astype(np.int32)


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
