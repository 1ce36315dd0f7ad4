"""The ledger's cost columns: their schema, and how charges become list columns.

In: for each charge the number of its quote's step (`Entries`), its quantity, cost and status as arrays, put down meter
by meter. Out: the ``charges.*`` columns, dictionary strings and decimals, built without an object for each charge.
`columnar` decides what the charges are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tollspan.pricing import money
from tollspan.pricing.arrays import Bools, Int64s, decimals, decimals_of, limbs_of, put_exact, safe_quantity, scaled
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


class ChargeLists:
    """Charges of all rows, one after another: what the list columns hold."""

    def __init__(self, size: int) -> None:
        self.meter = np.zeros(size, dtype=np.int32)
        self.quantity = np.zeros(size, dtype=np.int64)
        self.entry = np.zeros(size, dtype=np.int32)
        self.cost = np.zeros(size, dtype=np.int64)
        self.status = np.zeros(size, dtype=np.int32)
        self.exact: dict[int, int] = {}
        """Costs that 64 bits do not hold, by position."""
        self.negotiated = Differences(size)
        self.committed = Differences(size)
        self.implied_at: list[NDArray[np.integer[Any]]] = []

    def put(
        self,
        where: NDArray[np.integer[Any]],
        meter: int,
        quantity: Int64s,
        entry: Int64s,
        cost: Int64s,
        status: Int64s,
    ) -> None:
        """Charges of one meter, at their positions."""
        self.meter[where] = meter
        self.quantity[where] = quantity
        self.entry[where] = entry
        self.cost[where] = cost
        self.status[where] = status

    def mark_implied(self, where: NDArray[np.integer[Any]]) -> None:
        """These charges are for what the rows did not count."""
        self.implied_at.append(where)

    def sum(self, start: int, end: int) -> int:
        """Cost of the charges from one position to another, in Python integers."""
        return sum(self.exact.get(k, int(self.cost[k])) for k in range(start, end))

    def columns(self, offsets: NDArray[np.int32], entries: Sequence[Entry]) -> list[pa.Array]:
        """The ``charges.*`` columns in the order of `SCHEMA`."""
        charged = self.status < CHARGED
        meters = [METERS[name] for name in METERS]
        one_each, code = dense(self.entry, len(entries))
        quotes = [entries[number] for number in self.entry[one_each].tolist()]
        refused = self.status == CHARGE_STATUS["invalid"]
        if refused.any():  # an invalid charge has no price: one more entry without any
            code = np.where(refused, len(quotes), code)
        rows = [item.quote.row for item in quotes]
        amounts = [item.amount for item in quotes]
        limbs = np.array(
            [
                limbs_of(money.digits_of(amount, money.UNIT_PRICE_DECIMALS)) if amount else (0, 0)
                for amount in (*amounts, None)
            ],
            dtype=np.int64,
        )
        priced = np.array([*(amount is not None for amount in amounts), False], dtype=bool)
        high = self.cost >> 63
        put_exact(self.cost, high, self.exact)
        quantity_low, quantity_high = self._quantities()
        matched_by = coded(code, [*(item.quote.matched_by for item in quotes), ""])
        if self.implied_at:
            matched_by = self._implied(matched_by)
        lists = [
            coded(self.meter, [meter.name for meter in meters]),
            coded(self.meter, [meter.component for meter in meters]),
            decimals(quantity_low, QUANTITY, None, quantity_high),
            coded(self.meter, [meter.unit for meter in meters]),
            decimals_of(
                limbs.take(code, axis=0), UNIT_PRICE, None if priced[:-1].all() and not refused.any() else priced[code]
            ),
            coded(code, [*(row.per_unit if row is not None else "" for row in rows), ""]),
            decimals(self.cost, COST, charged, high),
            self.negotiated.column(charged),
            self.committed.column(charged),
            coded(code, [*(row.id if row is not None else "" for row in rows), ""]),
            matched_by,
            named(self.status, CHARGE_STATUSES),
        ]
        starts = pa.array(offsets, type=pa.int32())
        return [pa.ListArray.from_arrays(starts, values) for values in lists]

    def _implied(self, matched_by: pa.Array) -> pa.Array:
        """``matched_by`` with the mark of implied charges."""
        names = matched_by.dictionary.to_pylist()
        codes = matched_by.indices.to_numpy().copy()
        where = np.concatenate(self.implied_at)
        codes[where] += len(names)
        return coded(codes, [*names, *(f"{name}{IMPLIED_MARK}" for name in names)])

    def _quantities(self) -> tuple[Int64s, Int64s | None]:
        """Quantities in the meters' units with nine decimals, as limbs."""
        factors = np.array([NANO // meter.scale for meter in METERS.values()], dtype=np.int64)
        if (factors[self.meter] == NANO).all():
            return scaled(self.quantity, NANO)
        low, high = scaled(self.quantity, NANO)
        fine = factors[self.meter] == 1
        if high is None:
            high = low >> 63
        return np.where(fine, self.quantity, low), np.where(fine, self.quantity >> 63, high)


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

    def put(self, where: NDArray[np.integer[Any]], amounts: Int64s, known: Bools) -> None:
        """Differences at positions; unknown where one of the two prices is."""
        if self.low is None:
            self.low = np.zeros(self.size, dtype=np.int64)
        self.low[where] = np.where(known, amounts, 0)
        if not known.all():
            if self.unknown is None:
                self.unknown = np.zeros(self.size, dtype=bool)
            self.unknown[where] = ~known

    def column(self, charged: Bools) -> pa.Array:
        """The differences as decimals, null where nothing is charged or they are unknown."""
        if self.low is None:  # zeros that nobody has to write
            return decimals_of(np.zeros((self.size, 2), dtype=np.int64), COST, charged)
        high = self.low >> 63
        put_exact(self.low, high, self.exact)
        return decimals(self.low, COST, charged if self.unknown is None else charged & ~self.unknown, high)


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
    return row_of[occurring], number_of[key]


def named(codes: NDArray[Any], names: Sequence[str]) -> pa.Array:
    """Dictionary array of distinct names."""
    return pa.DictionaryArray.from_arrays(pa.array(codes.astype(np.int32, copy=False)), pa.array(names, pa.string()))


def coded(codes: NDArray[Any], texts: Sequence[str]) -> pa.Array:
    """Dictionary array from texts that may repeat: a dictionary holds each once."""
    if len(set(texts)) == len(texts):
        return named(codes, texts)
    distinct: dict[str, int] = {}
    to = np.array([distinct.setdefault(text, len(distinct)) for text in texts], dtype=np.int32)
    return named(to[codes] if len(texts) else codes, list(distinct))
