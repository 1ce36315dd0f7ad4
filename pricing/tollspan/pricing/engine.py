"""The price engine: usage and a price book to charges, for one call (here) or for columns (`columnar`).

In: quantities by meter, an instant, selectors. Out: a charge for each meter and their sum, or the reason why there is
none. The instant is the span's, never the clock's. Unknown is never zero: a meter without a price has no cost, and the
sum says that it leaves something out.

Two rules beside prices. A quantity of 0 is charged only where the span gives nothing else. A call is one request: where
a book has a fee for each request of the model and the usage counts none, one is charged.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

from tollspan.pricing import money
from tollspan.pricing.book import PriceBook
from tollspan.pricing.conventions import INVALID_REASONS
from tollspan.pricing.meters import METERS, Axis
from tollspan.pricing.names import nearest
from tollspan.pricing.resolve import (
    INPUT_TOKENS,
    REASON_ORDER,
    TIER_ASSUMED,
    USAGE_MISSING,
    Considered,
    Quote,
    Situation,
    has_fee,
    resolve,
)
from tollspan.pricing.selectors import Selectors

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

CostStatus = Literal["priced", "free", "partial", "unpriced", "invalid"]
ChargeStatus = Literal["priced", "free", "unpriced", "invalid"]

CURRENCY: Final = "USD"
USAGE_NEGATIVE: Final = INVALID_REASONS[1] or ""
USAGE_TOO_LARGE: Final = INVALID_REASONS[2] or ""
REQUESTS: Final = "requests"
CALL_METERS: Final = frozenset(name for name, meter in METERS.items() if meter.component == "model")
"""Meters of which any one shows that a model was called."""

_INPUT: Final = frozenset(INPUT_TOKENS)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_KEPT_DESKS: Final = 50_000
"""Sets of selectors remembered before all are forgotten: they come from spans, so their number has no bound."""

_ORDER: Final = {name: position for position, name in enumerate(METERS)}


class Charge(NamedTuple):
    """What one meter cost.

    Attributes:
        meter: name from `METERS`.
        component: part of the bill it belongs to.
        quantity: in ``unit``, nine decimals.
        unit: the meter's unit.
        unit_price: USD for ``per``; None when unpriced.
        per: pricing unit, ``1000000 token``, ``1 hour``; empty when unpriced.
        cost: USD, twelve decimals; None when unpriced or invalid.
        price_id: the price row; empty when unpriced.
        matched_by: how it was found.
        status: ``priced`` | ``free`` (an explicit zero price) | ``unpriced`` | ``invalid``.
        reasons: why it is unpriced, or what was assumed.
    """

    meter: str
    component: str
    quantity: Decimal
    unit: str
    unit_price: Decimal | None
    per: str
    cost: Decimal | None
    price_id: str
    matched_by: str
    status: ChargeStatus
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Charges:
    """What one call cost.

    Attributes:
        cost: sum of the charges that have a cost, USD, twelve decimals; None when none has.
        status: ``priced`` | ``free`` | ``partial`` (``cost`` is a lower bound) | ``unpriced`` | ``invalid``.
        reasons: of all charges, each once, in the order of `resolve.REASONS`.
        charges: in the order of `METERS`.
        book_version: of the book that priced it.
        currency: always USD.
    """

    cost: Decimal | None
    status: CostStatus
    reasons: tuple[str, ...]
    charges: list[Charge] = field(default_factory=list)
    book_version: str = ""
    currency: str = CURRENCY


class PriceEngine:
    """Prices usage by a book; safe to share between threads.

    Args:
        book: layers of prices, as `load_book` or `shipped_book` give them.
    """

    def __init__(self, book: PriceBook) -> None:
        self.book = book
        self.book_version = book.version
        self._desks: dict[Selectors, _Desk] = {}
        self._columnar: Any = None
        self._columnar_lock = threading.Lock()

    def price(
        self,
        usage: Mapping[str, int | Decimal],
        *,
        at: datetime | int,
        selectors: Selectors,
        invalid: str | None = None,
    ) -> Charges:
        """Price one call.

        Args:
            usage: quantity by meter: an int counts base steps (tokens, nanoseconds), a Decimal the meter's units.
            at: when the call started: an aware datetime, or ns since the epoch.
            selectors: what the price is chosen by.
            invalid: why the usage cannot be right, if it is known not to be: nothing is priced then.

        Raises:
            ValueError: unknown meter, a Decimal finer than the meter's base step or not finite, a naive datetime.
            TypeError: a quantity that is neither int nor Decimal (a float does not say exactly how much).
        """
        instant = at if isinstance(at, int) else instant_of(at)
        desk = self._desk(selectors)
        given = _ordered(usage)
        if invalid is None:
            invalid = _impossible(given)
        if invalid is not None:
            refused = [_charge(meter, steps, None, 0, None, "invalid", (invalid,)) for meter, steps in given.items()]
            return Charges(None, "invalid", (invalid,), refused, self.book_version)
        if REQUESTS not in given and not CALL_METERS.isdisjoint(given):
            fee = desk.situation("model").quote(REQUESTS, instant)
            if has_fee(fee):
                given = _ordered({**given, REQUESTS: 1})
        if not given:
            return Charges(None, "unpriced", (USAGE_MISSING,), [], self.book_version)
        if any(given.values()):
            given = {meter: steps for meter, steps in given.items() if steps}
        counted = [steps for meter, steps in given.items() if meter in _INPUT]
        input_tokens = sum(counted) if counted else None

        charges: list[Charge] = []
        total = unpriced = free = 0
        reasons: tuple[str, ...] = ()
        for meter, steps in given.items():
            quote = desk.situation(METERS[meter].axis).quote(meter, instant)
            step = quote.step(input_tokens) if quote.bounds else 0
            status, _, rate = quote.steps[step]
            why = quote.reasons
            if quote.bounds and input_tokens is None and TIER_ASSUMED not in why:
                why = (*why, TIER_ASSUMED)
            reasons += why
            cost = None
            if rate is not None:
                cost = rate.cost(max(steps, quote.minimum) if steps else 0)
                total += cost
                free += status == "free"
            else:
                unpriced += 1
            charges.append(_charge(meter, steps, quote, step, cost, status, why))
        overall: CostStatus = "priced"
        if unpriced:
            overall = "unpriced" if unpriced == len(charges) else "partial"
        elif free == len(charges):
            overall = "free"
        return Charges(
            None if overall == "unpriced" else money.usd(total),
            overall,
            tuple(sorted(set(reasons), key=REASON_ORDER.__getitem__)),
            charges,
            self.book_version,
        )

    def price_columns(
        self,
        at: NDArray[np.int64],
        selectors: Mapping[str, pa.Array],
        quantities: Mapping[str, pa.Array],
        invalid: pa.Array | None = None,
    ) -> pa.Table:
        """Price n calls at once; row by row equal to `price`. Needs NumPy and pyarrow.

        Args:
            at: int64 ns since the epoch, length n.
            selectors: by name of a field of `Selectors`: string or dictionary arrays of length n, nulls allowed; a name
                that is absent is null for every row.
            quantities: int64 array of base steps by meter, length n; null = not given.
            invalid: string array of length n or None; a row with a value is ``invalid`` for that reason.

        Returns:
            n rows with the ledger's cost columns: see `cost_columns.SCHEMA`.

        Raises:
            ValueError: unknown meter or selector, or lengths that differ.
        """
        if self._columnar is None:
            with self._columnar_lock:
                if self._columnar is None:
                    from tollspan.pricing.columnar import ColumnarEngine

                    self._columnar = ColumnarEngine(self)
        return self._columnar.price_columns(at, selectors, quantities, invalid)

    def situation(self, axis: Axis, selectors: Selectors) -> Situation:
        """Prices on an axis for selectors, found once."""
        return self._desk(selectors).situation(axis)

    def _desk(self, selectors: Selectors) -> _Desk:
        desk = self._desks.get(selectors)
        if desk is None:
            if len(self._desks) >= _KEPT_DESKS:
                self._desks.clear()
            normalized = selectors.normalized()
            desk = self._desks.get(normalized) or _Desk(self.book, normalized)
            self._desks[selectors] = self._desks[normalized] = desk
        return desk

    def explain(self, meter: str, *, at: datetime | int, selectors: Selectors) -> list[Considered]:
        """Every price that was looked at for a meter, in order, and why it was or was not chosen."""
        desk = self._desk(selectors)
        trace: list[Considered] = []
        instant = at if isinstance(at, int) else instant_of(at)
        resolve(meter, instant, desk.selectors, desk.situation(METERS[meter].axis).matches, trace)
        return trace


class _Desk:
    """Situations of one set of normalized selectors, by axis.

    Args:
        book: where prices come from.
        selectors: normalized.
    """

    __slots__ = ("_book", "_situations", "selectors")

    def __init__(self, book: PriceBook, selectors: Selectors) -> None:
        self._book = book
        self.selectors = selectors
        self._situations: dict[Axis, Situation] = {}

    def situation(self, axis: Axis) -> Situation:
        found = self._situations.get(axis)
        if found is None:
            found = self._situations[axis] = Situation(self._book, axis, self.selectors)
        return found


def instant_of(at: datetime) -> int:
    """ns since the epoch of an aware datetime.

    Raises:
        ValueError: no time zone: it names no instant.
    """
    if at.tzinfo is None:
        raise ValueError(f"{at.isoformat()} has no time zone, so it names no instant")
    return (at - _EPOCH) // timedelta(microseconds=1) * 1000


def _ordered(usage: Mapping[str, int | Decimal]) -> dict[str, int]:
    """Base steps by meter in the order of `METERS`."""
    for meter in usage:
        if meter not in METERS:
            raise ValueError(f"{meter!r} is not a meter. {nearest(meter, METERS)}".strip())
    steps: dict[str, int] = {}
    for meter in sorted(usage, key=_ORDER.__getitem__):
        value = usage[meter]
        if type(value) is int:
            steps[meter] = value
        elif isinstance(value, Decimal):
            steps[meter] = money.steps_of(meter, value)
        else:
            raise TypeError(f"{meter} is {value!r}: quantities are int (base steps) or Decimal (units)")
    return steps


def _impossible(given: Mapping[str, int]) -> str | None:
    """Why the quantities cannot be right, None when they can."""
    if not given:
        return None
    quantities = given.values()
    if min(quantities) < 0:
        return USAGE_NEGATIVE
    return USAGE_TOO_LARGE if max(quantities) > money.LARGEST_QUANTITY else None


def _charge(
    meter: str, steps: int, quote: Quote | None, step: int, cost: int | None, status: ChargeStatus, why: tuple[str, ...]
) -> Charge:
    about = METERS[meter]
    row = quote.row if quote is not None else None
    amount = quote.steps[step][1] if quote is not None else None
    return Charge(
        meter=meter,
        component=about.component,
        quantity=money.quantity(meter, steps),
        unit=about.unit,
        unit_price=amount,
        per=row.per_unit if row is not None else "",
        cost=None if cost is None else money.usd(cost),
        price_id=row.id if row is not None else "",
        matched_by=quote.matched_by if quote is not None else "",
        status=status,
        reasons=why,
    )
