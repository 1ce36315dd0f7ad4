"""The ledger's cost columns: their schema, and how charges become list columns.

In: what charges are made of besides their quantities (`Template`), and for each charge its template and its quantity.
Out: its cost, and the ``charges.*`` columns, dictionary strings and decimals, built without an object for each charge.
`columnar` decides what the charges are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tollspan.pricing import money
from tollspan.pricing.arrays import (
    SAFE_COST,
    Bools,
    Int64s,
    costs,
    decimals,
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
stand for what an unpriced charge has not; decimals are null there."""

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
        templates: as many as are needed.
    """

    def __init__(self, entries: Entries, templates: Sequence[Template]) -> None:
        self.entries, self.rows = entries, templates
        self.status = np.array([each.status for each in templates], dtype=np.int64)
        self.effective, self.contracted, self.listed = (
            np.array([each[level] for each in templates], dtype=np.int64) for level in (1, 2, 3)
        )

    @property
    def meters(self) -> list[str]:
        """Name of each one's meter."""
        return [each.meter for each in self.rows]

    @property
    def off(self) -> Bools:
        """Which cost nothing because their rows are invalid."""
        found: Bools = self.status == CHARGE_STATUS["invalid"]
        return found


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
        templates: of the charges.
        template: number of each charge's template.
        quantity: of each charge, base steps.

    Attributes:
        cost: pico-dollars, 0 where there is none.
        exact: costs that 64 bits do not hold, by position.
    """

    def __init__(self, templates: Templates, template: Int64s, quantity: Int64s) -> None:
        self.templates, self.template, self.quantity = templates, template, quantity
        self.cost, self._charged, self.exact = self._costs(templates.effective, template, quantity)

    def _costs(self, entry: Int64s, template: Int64s, quantity: Int64s) -> _Costs:
        """What quantities cost, by number of the price's step of each template."""
        templates = self.templates
        num, den, safe, minimum, status, _ = (column[entry] for column in templates.entries.arrays())
        charged = (status < CHARGED) & ~templates.off
        num, den = np.where(charged, num, 0), np.where(charged, den, 1)
        safe = np.where(charged, safe, np.iinfo(np.int64).max)
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
            key = int(entry[template[k]]), int(quantity[k])
            if key not in known:
                quote, step = templates.entries.step(key[0])
                known[key] = quote.cost(key[1], step) or 0
            if known[key] <= SAFE_COST:  # a graduated price
                cost[k] = known[key]
            else:
                exact[k] = known[key]
        return _Costs(cost, charged, exact)

    def sum(self, start: int, end: int) -> int:
        """Cost of the charges from one position to another, in Python integers."""
        return sum(self.exact.get(k, int(self.cost[k])) for k in range(start, end))

    def columns(self, offsets: NDArray[np.int32]) -> list[pa.Array]:
        """The ``charges.*`` columns in the order of `SCHEMA`."""
        templates, template = self.templates, self.template
        meters = [METERS[name] for name in templates.meters]
        items = [templates.entries.items[number] for number in templates.effective.tolist()]
        refused = templates.off.tolist()  # an invalid charge has no price
        rows = [None if off else item.quote.row for item, off in zip(items, refused, strict=True)]
        amounts = [None if off else item.amount for item, off in zip(items, refused, strict=True)]
        matched_by = [
            "" if off else f"{item.quote.matched_by}{IMPLIED_MARK if each.implied else ''}"
            for each, item, off in zip(templates.rows, items, refused, strict=True)
        ]
        limbs = np.array(
            [
                limbs_of(money.digits_of(amount, money.UNIT_PRICE_DECIMALS)) if amount else (0, 0)
                for amount in (*amounts, None)
            ],
            dtype=np.int64,
        )
        priced = np.array([amount is not None for amount in amounts], dtype=bool)
        charged = None if self._charged.all() else self._charged.take(template)
        cost, high = self.cost, None
        if self.exact:
            cost, high = cost.copy(), cost >> 63
            put_exact(cost, high, self.exact)
        quantity_low, quantity_high = self._quantities()
        negotiated, committed = self._differences()
        lists = [
            coded(template, [meter.name for meter in meters]),
            coded(template, [meter.component for meter in meters]),
            decimals(quantity_low, QUANTITY, None, quantity_high),
            coded(template, [meter.unit for meter in meters]),
            decimals_of(limbs.take(template, axis=0), UNIT_PRICE, None if priced.all() else priced.take(template)),
            coded(template, [row.per_unit if row is not None else "" for row in rows]),
            decimals(cost, COST, charged, high),
            negotiated.column(charged),
            committed.column(charged),
            coded(template, [row.id if row is not None else "" for row in rows]),
            coded(template, matched_by),
            named(templates.status.astype(np.int32).take(template), CHARGE_STATUSES),
        ]
        starts = pa.array(offsets, type=pa.int32())
        return [pa.ListArray.from_arrays(starts, values) for values in lists]

    def _quantities(self) -> tuple[Int64s, Int64s | None]:
        """Quantities in the meters' units with nine decimals, as limbs."""
        factors = np.array([NANO // METERS[name].scale for name in self.templates.meters], dtype=np.int64)
        if (factors == NANO).all():
            return scaled(self.quantity, NANO)
        if not len(self.quantity) or (self.quantity.max() <= _LARGEST_SCALED and self.quantity.min() >= 0):
            return self.quantity * factors.take(self.template), None
        low, high = scaled(self.quantity, NANO)
        fine = (factors == 1).take(self.template)
        if high is None:
            high = low >> 63
        return np.where(fine, self.quantity, low), np.where(fine, self.quantity >> 63, high)

    def _differences(self) -> tuple[Differences, Differences]:
        """List prices less contracted ones, and contracted ones less effective ones."""
        templates, size = self.templates, len(self.template)
        negotiated, committed = Differences(size), Differences(size)
        differ = (templates.contracted != templates.effective) | (templates.listed != templates.effective)
        if differ.any():
            where = np.flatnonzero(differ.take(self.template))
            template, quantity = self.template[where], self.quantity[where]
            listed, contracted, effective = (
                self._costs(entry, template, quantity)
                for entry in (templates.listed, templates.contracted, templates.effective)
            )
            negotiated.put(where, template, listed, contracted)
            committed.put(where, template, contracted, effective)
        return negotiated, committed


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

    def column(self, charged: Bools | None) -> pa.Array:
        """The differences as decimals, null where nothing is charged or they are unknown.

        Args:
            charged: by charge; None: all are.
        """
        if self.low is None:  # zeros that nobody has to write
            return decimals_of(zeros(self.size), COST, charged)
        high = self.low >> 63
        put_exact(self.low, high, self.exact)
        if self.unknown is not None:
            charged = ~self.unknown if charged is None else charged & ~self.unknown
        return decimals(self.low, COST, charged, high)


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
    return pa.DictionaryArray.from_arrays(pa.array(codes.astype(np.int32, copy=False)), pa.array(names, pa.string()))


def coded(codes: NDArray[Any], texts: Sequence[str]) -> pa.Array:
    """Dictionary array from texts that may repeat: a dictionary holds each once."""
    if len(set(texts)) == len(texts):
        return named(codes, texts)
    distinct: dict[str, int] = {}
    to = np.array([distinct.setdefault(text, len(distinct)) for text in texts], dtype=np.int32)
    return named(to.take(codes) if len(texts) else codes, list(distinct))
