"""The ledger's cost columns: their schema, and how charges become list columns.

In: what charges are made of besides their quantities (`Template`), and for each charge its template and its quantity.
Out: its cost, and the ``charges.*`` columns, dictionary strings and decimals, built without an object for each charge.
`columnar` decides what the charges are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import lru_cache
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tollspan.pricing import faster, money
from tollspan.pricing.arrays import (
    SAFE_COST,
    Bools,
    Int64s,
    costs,
    decimals_of,
    limbs_of,
    put_exact,
    safe_quantity,
    scaled,
    zeros,
)
from tollspan.pricing.meters import METERS, NANO
from tollspan.pricing.resolve import IMPLIED_MARK, REASONS, Quote

COST: Final = pa.decimal128(38, money.PICO)
QUANTITY: Final = pa.decimal128(38, money.QUANTITY_DECIMALS)
UNIT_PRICE: Final = pa.decimal128(38, money.UNIT_PRICE_DECIMALS)
NAME: Final = pa.dictionary(pa.int32(), pa.string())

SCHEMA: Final = pa.schema(
    [
        pa.field("cost", COST),
        pa.field("cost_status", NAME, nullable=False),
        pa.field("cost_reasons", NAME, nullable=False),
        pa.field("charges.meter", pa.list_(NAME), nullable=False),
        pa.field("charges.component", pa.list_(NAME), nullable=False),
        pa.field("charges.quantity", pa.list_(QUANTITY), nullable=False),
        pa.field("charges.unit", pa.list_(NAME), nullable=False),
        pa.field("charges.unit_price", pa.list_(UNIT_PRICE), nullable=False),
        pa.field("charges.per", pa.list_(NAME), nullable=False),
        pa.field("charges.cost", pa.list_(COST), nullable=False),
        pa.field("charges.negotiated", pa.list_(COST), nullable=False),
        pa.field("charges.committed", pa.list_(COST), nullable=False),
        pa.field("charges.price_id", pa.list_(NAME), nullable=False),
        pa.field("charges.matched_by", pa.list_(NAME), nullable=False),
        pa.field("charges.status", pa.list_(NAME), nullable=False),
        pa.field("book_version", NAME, nullable=False),
    ]
)
"""The ledger's cost columns. ``charges.cost`` is the effective cost. The other two are kept as differences, which are
mostly 0 and then cost nothing to store: the contracted cost is ``cost + committed``, the list cost ``cost + committed +
negotiated``; null where there is no such price. Reasons are joined by commas, empty when there is none; empty strings
stand for what an unpriced charge has not; decimals are null there. The numbers of dictionaries are as narrow as their
size allows: int8, int16 or int32."""

CHARGE_STATUSES: Final = ("priced", "free", "included", "unpriced", "ambiguous", "invalid")
CHARGE_STATUS: Final = {name: code for code, name in enumerate(CHARGE_STATUSES)}
CHARGED: Final = CHARGE_STATUS["unpriced"]
"""Statuses below this one have a cost."""
REASON_BIT: Final = {reason: 1 << position for position, reason in enumerate(REASONS)}
METER_ORDER: Final = {name: position for position, name in enumerate(METERS)}
_FEW_FLAGS: Final = 1 << 12
_LARGEST_SCALED: Final = (2**63 - 1) // NANO


@dataclass(frozen=True, slots=True)
class Entry:
    """One step of one quote: what a charge is made of besides its quantity."""

    quote: Quote
    status: int
    amount: Decimal | None
    num: int
    den: int
    safe: int
    reasons: int


class Entries:
    """Steps of quotes by number, with what the arithmetic needs of them as arrays.

    The arrays grow in steps and are replaced, never changed under a reader.
    """

    def __init__(self) -> None:
        self.items: list[Entry] = []
        self._numbers: dict[tuple[int, str, tuple[str, ...]], int] = {}
        self._arrays: tuple[Int64s, ...] | None = None

    def number(self, quote: Quote) -> int:
        """Number of the quote's first step; its further ones follow. Quotes that say the same share their numbers, so
        that there are no more of them than prices and ways to find them. A graduated price is worked out exactly."""
        key = (id(quote.row), quote.matched_by, quote.reasons)  # the row lives as long as the entry made from it
        first = self._numbers.get(key)
        if first is None:
            first = self._numbers[key] = len(self.items)
            for status, amount, rate in quote.steps:
                num, den = (rate.num, rate.den) if rate is not None else (0, 1)
                safe = -1 if quote.graduated else safe_quantity(num, den)
                fits = safe >= 0
                reasons = sum(REASON_BIT[reason] for reason in quote.reasons)
                entry = Entry(
                    quote, CHARGE_STATUS[status], amount, num if fits else 0, den if fits else 1, safe, reasons
                )
                self.items.append(entry)
            self._arrays = None
        return first

    def step(self, number: int) -> tuple[Quote, int]:
        """The quote of an entry, and which of its steps it is."""
        quote = self.items[number].quote
        return quote, number - self.number(quote)

    def arrays(self) -> tuple[Int64s, ...]:
        """num, den, largest safe quantity, least quantity charged, status, reasons by entry number."""
        if self._arrays is None:
            columns = [(e.num, e.den, e.safe, e.quote.minimum, e.status, e.reasons) for e in self.items]
            self._arrays = tuple(np.array(columns, dtype=np.int64).reshape(-1, 6).T.copy())
        return self._arrays


class Template(NamedTuple):
    """A charge without its quantity.

    Attributes:
        meter: name from `METERS`.
        effective, contracted, listed: numbers of the prices' steps, see `Entries`.
        status: code, see `CHARGE_STATUSES`.
        reasons: bits, see `REASON_BIT`.
        implied: the row did not count it.
    """

    meter: str
    effective: int
    contracted: int
    listed: int
    status: int
    reasons: int
    implied: bool


class Templates:
    """Templates of charges by number, as columns.

    Args:
        entries: what their steps are numbers of.
        counted: the meters of which quantities are given, in the order in which they are.
        templates: as many as are needed.

    Attributes:
        column: of each one the place of its meter among ``counted``; -1: nobody counted it, and it is 1.
        off: which cost nothing because their rows are invalid.
    """

    def __init__(self, entries: Entries, counted: Sequence[str], templates: Sequence[Template]) -> None:
        self.entries, self.rows = entries, templates
        place = {meter: number for number, meter in enumerate(counted)}
        self.column = np.array([-1 if each.implied else place[each.meter] for each in templates], dtype=np.int64)
        self.status = np.array([each.status for each in templates], dtype=np.int64)
        self.effective, self.contracted, self.listed = (
            np.array([each[level] for each in templates], dtype=np.int64) for level in (1, 2, 3)
        )
        self.factor = np.array([NANO // METERS[each.meter].scale for each in templates], dtype=np.int64)
        self.off: Bools = self.status == CHARGE_STATUS["invalid"]
        refused = zip(templates, self.effective.tolist(), self.off.tolist(), strict=True)
        self._found = [(each, None if off else entries.items[entry]) for each, entry, off in refused]

    def rates(self, level: Int64s) -> tuple[Int64s, Int64s, Int64s, Int64s, Bools]:
        """Numerator, denominator, largest quantity that 64 bits are enough for, and least quantity of each one, by the
        numbers of its steps at a level; and whether it has a cost there."""
        num, den, safe, minimum, status, _ = (column[level] for column in self.entries.arrays())
        charged = (status < CHARGED) & ~self.off
        most = np.iinfo(np.int64).max
        return np.where(charged, num, 0), np.where(charged, den, 1), np.where(charged, safe, most), minimum, charged

    def prices(self) -> tuple[Int64s, Bools]:
        """Unit price of each as limbs, shape (n, 2), and whether it has one."""
        amounts = [None if found is None else found.amount for _, found in self._found]
        limbs = [
            limbs_of(money.digits_of(amount, money.UNIT_PRICE_DECIMALS)) if amount else (0, 0) for amount in amounts
        ]
        return np.array(limbs, dtype=np.int64).reshape(-1, 2), np.array([a is not None for a in amounts], dtype=bool)

    def texts(self) -> dict[str, list[str]]:
        """What is said of each, by the name of its column without ``charges.``."""
        meters = [METERS[each.meter] for each in self.rows]
        rows = [None if found is None else found.quote.row for _, found in self._found]
        return {
            "meter": [meter.name for meter in meters],
            "component": [meter.component for meter in meters],
            "unit": [meter.unit for meter in meters],
            "per": [row.per_unit if row is not None else "" for row in rows],
            "price_id": [row.id if row is not None else "" for row in rows],
            "matched_by": [
                "" if found is None else f"{found.quote.matched_by}{IMPLIED_MARK if each.implied else ''}"
                for each, found in self._found
            ],
            "status": [CHARGE_STATUSES[each.status] for each in self.rows],
        }


class _Costs(NamedTuple):
    """Costs of m charges at one level of their prices.

    Attributes:
        cost: pico-dollars, int64; 0 where there is none and where it is in ``exact``.
        charged: whether there is one, by template.
        exact: costs that 64 bits do not hold, by position.
    """

    cost: Int64s
    charged: Bools
    exact: dict[int, int]


class ChargeLists:
    """Charges of all rows, one after another: what the list columns hold.

    Args:
        templates: of the charges, those of a shape one after another.
        sizes: how many each shape has.
        of: the shape of each row.
        total: charges in all.
        values: quantities by meter and row, base steps.
    """

    def __init__(self, templates: Templates, sizes: Int64s, of: Int64s, total: int, values: Int64s) -> None:
        self._templates, self._sizes, self._of, self._total, self._values = templates, sizes, of, total, values
        self._first = np.cumsum(sizes) - sizes
        self._template: Int64s | None = None
        walk = faster.kernels()
        if walk is None:
            self._gather()
        else:
            self._emit(walk)

    def _flat(self) -> tuple[Int64s, Int64s, Int64s]:
        """Template, row and quantity of each charge."""
        sizes = self._sizes.take(self._of)
        row = np.repeat(np.arange(len(self._of)), sizes)
        template = np.repeat(self._first.take(self._of) - (np.cumsum(sizes) - sizes), sizes)
        template += np.arange(self._total)
        if not self._total or not len(self._values):
            return template, row, np.ones(self._total, dtype=np.int64)
        column = self._templates.column.take(template)
        quantity = self._values.reshape(-1).take(np.maximum(column, 0) * len(self._of) + row)
        return template, row, np.where(column < 0, 1, quantity)

    def _gather(self) -> None:
        """Make the columns with NumPy."""
        templates, total = self._templates, self._total
        template, row, quantity = self._flat()
        self._template = template
        self._offsets = np.zeros(len(self._of) + 1, dtype=np.int32)
        np.cumsum(self._sizes.take(self._of), out=self._offsets[1:])
        cost, charged, exact = _costs(templates, templates.effective, template, quantity)
        sums = np.zeros(total + 1, dtype=np.int64)
        np.cumsum(cost, out=sums[1:])  # where it wraps round, differences are right all the same
        starts = sums.take(self._offsets)
        limbs, high = starts[1:] - starts[:-1], None
        if exact:
            high = limbs >> 63
            whole = {int(row[k]): int(limbs[row[k]]) for k in exact}
            for k, amount in exact.items():
                whole[int(row[k])] += amount
            put_exact(limbs, high, whole)
        self._sums = pair(limbs, high)
        high = None
        if exact:
            high = cost >> 63
            put_exact(cost, high, exact)
        prices, priced = templates.prices()
        self._charged = None if charged.all() else bitmap(charged.take(template))
        self._cost = pair(cost, high)
        self._quantity = pair(*self._quantities(template, quantity))
        self._priced = None if priced.all() else bitmap(priced.take(template))
        self._price = prices.take(template, axis=0)

    def _emit(self, walk: Any) -> None:
        """Make the columns with a kernel."""
        templates, total, n = self._templates, self._total, len(self._of)
        rates = np.zeros((len(templates.rows), 9), dtype=np.int64)
        *columns, charged = templates.rates(templates.effective)
        for place, values in zip((walk.NUM, walk.DEN, walk.SAFE, walk.MINIMUM), columns, strict=True):
            rates[:, place] = values
        prices, priced = templates.prices()
        rates[:, walk.FACTOR], rates[:, walk.COLUMN] = templates.factor, templates.column
        rates[:, walk.LOW], rates[:, walk.HIGH] = prices[:, 0], prices[:, 1]
        rates[:, walk.FLAGS] = charged * walk.CHARGED + priced * walk.PRICED
        some = (total + 7) // 8
        bits = [np.zeros(0 if flags.all() else some, dtype=np.uint8) for flags in (charged, priced)]
        quantity, price, cost, exact = (np.empty((total, 2), dtype=np.int64) for _ in range(4))
        self._offsets, self._sums = np.empty(n + 1, dtype=np.int32), np.empty((n, 2), dtype=np.int64)
        shapes = faster.read(self._of), faster.read(self._first), faster.read(self._sizes)
        made = self._offsets, quantity, price, cost, *bits, self._sums, exact
        left = walk.emit(*shapes, faster.read(rates), faster.read(self._values), *made)
        if left:
            self._put_exact(cost, exact[:left])
        self._quantity, self._price, self._cost = quantity, price, cost
        self._charged, self._priced = (each if flags.size else None for each, flags in zip(bits, bits, strict=True))

    def _put_exact(self, cost: Int64s, exact: Int64s) -> None:
        """Work out the costs that the kernel left out.

        Args:
            exact: of each its charge and its row.
        """
        templates, known, whole = self._templates, dict[tuple[int, int], int](), dict[int, int]()
        for at, row in exact.tolist():
            template = int(self._first[self._of[row]]) + at - int(self._offsets[row])
            column = int(templates.column[template])
            key = int(templates.effective[template]), int(self._values[column, row]) if column >= 0 else 1
            if key not in known:
                quote, step = templates.entries.step(key[0])
                known[key] = quote.cost(key[1], step) or 0
            cost[at] = limbs_of(known[key])
            whole[row] = whole.get(row, int(self._sums[row, 0])) + known[key]
        for row, amount in whole.items():
            self._sums[row] = limbs_of(amount)

    def sums(self, costed: Bools | None) -> pa.Array:
        """Cost of each row.

        Args:
            costed: which have one; None: all.
        """
        return decimals_of(self._sums, COST, costed)

    def columns(self) -> list[pa.Array]:
        """The ``charges.*`` columns in the order of `SCHEMA`."""
        texts = self._texts()
        negotiated, committed = self._differences()
        values = {
            "quantity": limbs_column(self._quantity, QUANTITY, None),
            "unit_price": limbs_column(self._price, UNIT_PRICE, self._priced),
            "cost": limbs_column(self._cost, COST, self._charged),
            "negotiated": negotiated.column(self._charged),
            "committed": committed.column(self._charged),
            **texts,
        }
        starts = pa.py_buffer(self._offsets)
        return [
            pa.Array.from_buffers(pa.list_(column.type), len(self._of), [None, starts], children=[column])
            for column in (values[name.removeprefix("charges.")] for name in SCHEMA.names if "." in name)
        ]

    def _texts(self) -> dict[str, pa.Array]:
        """What is said of each charge, by the name of its column without ``charges.``."""
        texts = self._templates.texts()
        if self._template is not None:
            return dict(zip(texts, coded(self._template, *texts.values()), strict=True))
        numbered = {name: numbers_of(each) for name, each in texts.items()}
        several = {name: found for name, found in numbered.items() if len(found[1]) > 1}
        spread = faster.spread_lists(
            self._of,
            self._first,
            self._sizes,
            self._total,
            [numbers for numbers, _ in several.values()],
            [faster.width(len(words)) for _, words in several.values()],
        )
        codes = dict(zip(several, spread, strict=True))
        return {
            name: named(codes[name], words) if name in codes else same(words[0] if words else "", self._total)
            for name, (_, words) in numbered.items()
        }

    def _quantities(self, template: Int64s, quantity: Int64s) -> tuple[Int64s, Int64s | None]:
        """Quantities in the meters' units with nine decimals, as limbs."""
        factors = self._templates.factor
        if (factors == NANO).all():
            return scaled(quantity, NANO)
        if not len(quantity) or (quantity.max() <= _LARGEST_SCALED and quantity.min() >= 0):
            return quantity * factors.take(template), None
        low, high = scaled(quantity, NANO)
        fine = (factors == 1).take(template)
        if high is None:
            high = low >> 63
        return np.where(fine, quantity, low), np.where(fine, quantity >> 63, high)

    def _differences(self) -> tuple[Differences, Differences]:
        """List prices less contracted ones, and contracted ones less effective ones."""
        templates, size = self._templates, self._total
        negotiated, committed = Differences(size), Differences(size)
        differ = (templates.contracted != templates.effective) | (templates.listed != templates.effective)
        if differ.any():
            template, _, quantity = self._flat()
            where = np.flatnonzero(differ.take(template))
            template, quantity = template[where], quantity[where]
            listed, contracted, effective = (
                _costs(templates, level, template, quantity)
                for level in (templates.listed, templates.contracted, templates.effective)
            )
            negotiated.put(where, template, listed, contracted)
            committed.put(where, template, contracted, effective)
        return negotiated, committed


def _costs(templates: Templates, level: Int64s, template: Int64s, quantity: Int64s) -> _Costs:
    """What quantities cost.

    Args:
        level: number of the price's step of each template.
        template, quantity: of each charge.
    """
    num, den, safe, minimum, charged = templates.rates(level)
    if not len(template):
        return _Costs(np.zeros(0, dtype=np.int64), charged, {})
    billed = quantity
    if minimum.any():
        billed = np.where(quantity > 0, np.maximum(quantity, minimum.take(template)), quantity)
    unsafe: Int64s = np.zeros(0, dtype=np.int64)
    if billed.max() > safe.min():
        unsafe = np.flatnonzero(billed > safe.take(template))
        if len(unsafe):
            billed = billed.copy()
            billed[unsafe] = 0
    cost = billed * num.take(template)
    if (den != 1).any():
        some = np.flatnonzero((den != 1).take(template))
        of_some = template[some]
        cost[some] = costs(billed[some], num.take(of_some), den.take(of_some))
    exact: dict[int, int] = {}
    known: dict[tuple[int, int], int] = {}
    for k in unsafe.tolist():
        key = int(level[template[k]]), int(quantity[k])
        if key not in known:
            quote, step = templates.entries.step(key[0])
            known[key] = quote.cost(key[1], step) or 0
        if known[key] <= SAFE_COST:  # a graduated price
            cost[k] = known[key]
        else:
            exact[k] = known[key]
    return _Costs(cost, charged, exact)


class Differences:
    """How much less one level of a price comes to than another, by charge: mostly nothing.

    Args:
        size: charges in all.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.low: Int64s | None = None
        self.unknown: Bools | None = None
        self.exact: dict[int, int] = {}

    def put(self, where: NDArray[np.integer[Any]], template: Int64s, more: _Costs, less: _Costs) -> None:
        """Differences of some charges with their templates; unknown where one of the two prices is."""
        self.low = np.zeros(self.size, dtype=np.int64)
        known = (more.charged & less.charged).take(template)
        self.low[where] = np.where(known, more.cost - less.cost, 0)
        if not known.all():
            self.unknown = np.zeros(self.size, dtype=bool)
            self.unknown[where] = ~known
        for k in more.exact.keys() | less.exact.keys():
            difference = more.exact.get(k, int(more.cost[k])) - less.exact.get(k, int(less.cost[k]))
            self.exact[int(where[k])] = difference

    def column(self, charged: NDArray[np.uint8] | None) -> pa.Array:
        """The differences as decimals, null where nothing is charged or they are unknown.

        Args:
            charged: bitmap by charge; None: all are.
        """
        if self.low is None:  # zeros that nobody has to write
            return limbs_column(zeros(self.size), COST, charged)
        high = self.low >> 63
        put_exact(self.low, high, self.exact)
        if self.unknown is not None:
            known = bitmap(~self.unknown)
            charged = known if charged is None else charged & known
        return limbs_column(pair(self.low, high), COST, charged)


class Groups:
    """Rows by what they have in common, numbered.

    Args:
        key: number of each row so far.
        size: numbers are below it.
    """

    def __init__(self, key: Int64s, size: int) -> None:
        self._key, self._size = key, size

    def split(self, codes: NDArray[Any], size: int) -> None:
        """Tell rows apart by one more column of numbers, which are below ``size``."""
        if self._size * size > most_flags(len(codes)):  # keep the numbers small by numbering what occurs
            one_row, self._key = dense(self._key, self._size)
            self._size = len(one_row)
        self._key = self._key * size + codes
        self._size *= size

    def numbered(self) -> tuple[Int64s, Int64s]:
        """One row of each group, and each row's group, numbered without gaps."""
        one_row, self._key = dense(self._key, self._size)
        self._size = len(one_row)
        return one_row, self._key


def most_flags(rows: int) -> int:
    """Number ranges up to this size are made dense with a table of flags, larger ones by sorting.

    A few for each row: a table of millions for some thousand rows took longer to clear than everything else did.
    """
    return max(_FEW_FLAGS, 2 * rows)


def dense(key: NDArray[np.signedinteger[Any]], size: int) -> tuple[Int64s, Int64s]:
    """Numbers without gaps for the keys that occur (keys are below ``size``): one row that has each, and each row's
    number."""
    if size > most_flags(len(key)):
        _, one_row, numbers = np.unique(key, return_index=True, return_inverse=True)
        return one_row.astype(np.int64), numbers.reshape(-1).astype(np.int64)
    row_of = np.full(size, -1, dtype=np.int64)
    row_of[key] = np.arange(len(key), dtype=np.int64)
    occurring = np.flatnonzero(row_of >= 0)
    number_of = np.empty(size, dtype=np.int64)
    number_of[occurring] = np.arange(len(occurring), dtype=np.int64)
    return row_of[occurring], number_of.take(key)


def named(codes: NDArray[Any], names: Sequence[str]) -> pa.Array:
    """Dictionary array of distinct names."""
    return worded(codes, _words(tuple(names)))


@lru_cache(maxsize=4096)
def _words(names: tuple[str, ...]) -> pa.Array:
    return pa.array(names, pa.string())


def worded(codes: NDArray[Any], words: pa.Array) -> pa.Array:
    """Dictionary array from numbers of distinct words, none of which is past them."""
    # Not `pa.array`, which looks for all that an array could be, nor a look at every number again.
    codes = np.ascontiguousarray(codes)
    indices = pa.Array.from_buffers(_TYPES[codes.dtype], len(codes), [None, pa.py_buffer(codes)])
    return pa.DictionaryArray.from_arrays(indices, words, safe=False)


_TYPES: Final = {np.dtype(kind): pa.from_numpy_dtype(kind) for kind in faster.WIDTHS}


def numbers_of(texts: Sequence[str]) -> tuple[Int64s, list[str]]:
    """Texts that may repeat as numbers, and what these stand for: a dictionary holds each once."""
    distinct: dict[str, int] = {}
    return np.array([distinct.setdefault(text, len(distinct)) for text in texts], dtype=np.int64), list(distinct)


def coded(of: Int64s, *texts: Sequence[str]) -> list[pa.Array]:
    """Dictionary arrays from texts by number.

    Args:
        of: the number of each row.
        texts: what each number stands for, of several columns.
    """
    numbered = [numbers_of(each) for each in texts]
    several = [found for found in numbered if len(found[1]) > 1]
    spread = faster.spread(of, [each for each, _ in several], [faster.width(len(words)) for _, words in several])
    codes = iter(spread)
    return [
        named(next(codes), words) if len(words) > 1 else same(words[0] if words else "", len(of))
        for _, words in numbered
    ]


def same(text: str, count: int) -> pa.Array:
    """Dictionary array of one text, so many times."""
    return named(faster.nothing(count, np.int8), [text])


def pair(low: Int64s, high: Int64s | None) -> Int64s:
    """Limbs side by side, shape (n, 2); the upper ones are the sign where they are left out."""
    limbs = np.empty((len(low), 2), dtype=np.int64)
    limbs[:, 0] = low
    limbs[:, 1] = (low >> 63) if high is None else high
    return limbs


def bitmap(flags: Bools) -> NDArray[np.uint8]:
    """Flags as Arrow holds them."""
    return np.packbits(flags, bitorder="little")


def limbs_column(limbs: Int64s, type_: pa.DataType, valid: NDArray[np.uint8] | None) -> pa.Array:
    """decimal128 array from limbs side by side and a bitmap of those that are not null; None: none is."""
    nulls = None if valid is None else pa.py_buffer(valid)
    return pa.Array.from_buffers(type_, len(limbs), [nulls, pa.py_buffer(limbs)])
