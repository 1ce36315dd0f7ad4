"""The price engine: usage and a price book to charges, for one call (here) or for columns (`columnar`).

In: quantities by meter, an instant, selectors. Out: a charge for each meter and their sum, or the reason why there is
none. The instant is the span's, never the clock's. Unknown is never zero: a meter without a price has no cost, and the
sum says that it leaves something out.

Two rules beside prices. A quantity of 0 is charged only where the span gives nothing else. A call is one request, and
carries one share of the overhead: where a book asks a fee for either and the usage counts none, one is charged
(`IMPLIED`).

A call of a known model takes about two microseconds: everything that its selectors and its instant decide is found once
and kept (`charges.Line`), and the charges are made into objects when somebody reads them.
"""

from __future__ import annotations

import threading
from bisect import bisect_left, bisect_right
from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final

from tollspan.pricing import money
from tollspan.pricing.book import PriceBook
from tollspan.pricing.charges import CALL, Charges, Line, Raw, overall
from tollspan.pricing.conventions import INVALID_REASONS
from tollspan.pricing.meters import METERS, Axis
from tollspan.pricing.names import nearest
from tollspan.pricing.resolve import (
    USAGE_MISSING,
    Considered,
    Quote,
    Situation,
    has_fee,
    resolve,
)
from tollspan.pricing.schedule import Schedule
from tollspan.pricing.selectors import SKU_SELECTORS, Selectors

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

    from tollspan.pricing.counted import Counted

USAGE_NEGATIVE: Final = INVALID_REASONS[1] or ""
USAGE_TOO_LARGE: Final = INVALID_REASONS[2] or ""
REQUESTS: Final = "requests"
OVERHEAD: Final = "overhead.calls"
IMPLIED: Final = (REQUESTS, OVERHEAD)
"""Meters of which one is charged for a call of a model that counts none, where a book has a fee for it."""

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_LARGEST: Final = money.LARGEST_QUANTITY
_KEPT_DESKS: Final = 50_000
"""Sets of selectors remembered before all are forgotten: they come from spans, so their number has no bound."""


class _Card(dict[str, Line]):
    """Lines by meter, found when first asked for, and the fees that are implied in every call.

    Attributes:
        fees: lines of the implied meters that have a fee.
        first, last: the instants between which the card holds, if there are no schedules; ``last`` is not in it.
    """

    __slots__ = ("at", "desk", "fees", "first", "last")

    def __init__(self, desk: _Desk, at: int) -> None:
        super().__init__()
        self.desk = desk
        self.at = at
        model = desk.situation("model")
        quotes = [(meter, model.quote(meter, at)) for meter in IMPLIED]
        self.fees = [Line(meter, quote, implied=True) for meter, quote in quotes if has_fee(quote)]

    def __missing__(self, meter: str) -> Line:
        line = self[meter] = Line(_known(meter), self.desk.situation(METERS[meter].axis).quote(meter, self.at))
        return line


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
        if invalid is not None:
            return self._invalid(usage, invalid)
        desk = self._desks.get(selectors) or self._desk(selectors)
        first, last, card = desk.latest
        if card is None or not first <= instant < last:
            card = desk.card(instant)
        raw: list[Raw] = []
        later: list[tuple[Line, int]] = []  # what takes more than a multiplication
        total = bits = 0
        input_tokens: int | None = None
        for meter, steps in usage.items():
            line = card[meter]
            is_input, adds, plain, num, den = line.told
            if type(steps) is not int:
                steps = _steps(meter, steps)
            if steps < 0 or steps > _LARGEST:
                return self._invalid(usage, USAGE_NEGATIVE if steps < 0 else USAGE_TOO_LARGE)
            if is_input:
                input_tokens = steps if input_tokens is None else input_tokens + steps
            if not steps:
                bits |= adds & CALL
                continue
            bits |= adds
            if plain:
                cost = steps * num
                if den != 1:
                    cost = money.divide_half_even(cost, den)
                total += cost
                raw.append((line, steps, cost, ()))
            else:
                later.append((line, steps))
        if card.fees and bits & CALL:
            for line in card.fees:
                if line.meter not in usage:
                    bits |= line.bits
                    later.append((line, 1))
        if not raw and not later:  # zeros alone are charged, at zero
            if not usage:
                return Charges("unpriced", (USAGE_MISSING,), None, raw, self.book_version)
            later.extend((card[meter], 0) for meter in usage)
            bits = 0
            for line, _ in later:
                bits |= line.bits
        for line, steps in later:
            if line.cliffs and input_tokens is not None:
                num, den, added = line.cliffs[bisect_left(line.bounds, input_tokens)]
                cost = steps * num
                if den != 1:
                    cost = money.divide_half_even(cost, den)
                total += cost
                raw.append((line, steps, cost, ()))
            else:
                charged, added, why = line.cost(steps, input_tokens)
                total += charged or 0
                raw.append((line, steps, charged, why))
            bits |= added
        status, known, reasons = overall(bits)
        return Charges(status, reasons, total if known else None, raw, self.book_version, input_tokens)

    def _invalid(self, usage: Mapping[str, int | Decimal], reason: str) -> Charges:
        """Nothing is priced, everything is shown."""
        given = {_known(meter): _steps(meter, value) for meter, value in usage.items()}
        # Of several reasons that the quantities give themselves, the same one whatever their order.
        if reason == USAGE_TOO_LARGE and min(given.values(), default=0) < 0:
            reason = USAGE_NEGATIVE
        raw: list[Raw] = [(meter, steps, None, (reason,)) for meter, steps in given.items()]
        return Charges("invalid", (reason,), None, raw, self.book_version)

    def price_columns(
        self,
        at: NDArray[np.int64],
        selectors: Mapping[str, pa.Array],
        quantities: Mapping[str, pa.Array | tuple[NDArray[np.int64], NDArray[np.bool_]]] | Counted,
        invalid: pa.Array | None = None,
        of: NDArray[np.int64] | None = None,
    ) -> pa.Table:
        """Price n calls at once; row by row equal to `price`. Needs NumPy and pyarrow.

        Args:
            at: int64 ns since the epoch, length n.
            selectors: by name of a field of `Selectors`: string or dictionary arrays of length n, nulls allowed; a name
                that is absent is null for every row.
            quantities: int64 array of base steps by meter, length n; null = not given. Or such values (anything where
                none is given) and which rows have them, as NumPy arrays; or all of it as `Counted`.
            invalid: string array of length n or None; a row with a value is ``invalid`` for that reason.
            of: for each call the row of the selectors that is its own, where calls share them and the selectors have
                another length; None: its own number.

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
        return self._columnar.price_columns(at, selectors, quantities, invalid, of)

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
        resolve(meter, instant, desk.situation(METERS[meter].axis), trace)
        return trace

    def quote(self, meter: str, *, at: datetime | int, selectors: Selectors) -> Quote:
        """The price that applies to a meter, or the reason why none does."""
        instant = at if isinstance(at, int) else instant_of(at)
        return self.situation(METERS[meter].axis, selectors).quote(meter, instant)


class _Desk:
    """Prices of one set of normalized selectors.

    Args:
        book: where prices come from.
        selectors: normalized.
    """

    __slots__ = ("_book", "_cards", "_cuts", "_schedules", "_situations", "latest", "selectors")

    def __init__(self, book: PriceBook, selectors: Selectors) -> None:
        self._book = book
        self.selectors = selectors
        self._situations: dict[Axis, Situation] = {}
        self._cards: dict[tuple[int, int], _Card] = {}
        self._cuts: list[int] | None = None
        self._schedules: tuple[Schedule, ...] = ()
        self.latest: tuple[int, int, _Card | None] = (0, 0, None)
        """The card last asked for, with the instants between which it holds; none at first, and where hours matter."""

    def situation(self, axis: Axis) -> Situation:
        found = self._situations.get(axis)
        if found is None:
            found = self._situations[axis] = Situation(self._book, axis, self.selectors)
        return found

    def card(self, at: int) -> _Card:
        """Lines of all axes at an instant."""
        if self._cuts is None:
            situations = [self.situation(axis) for axis in SKU_SELECTORS]
            self._schedules = tuple(dict.fromkeys(s for situation in situations for s in situation.schedules))
            self._cuts = sorted({cut for situation in situations for cut in situation.cuts})
        cuts = self._cuts
        position = bisect_right(cuts, at)
        open_hours = 0
        for bit, schedule in enumerate(self._schedules):
            open_hours |= schedule.holds(at) << bit
        card = self._cards.get((position, open_hours))
        if card is None:
            card = self._cards[position, open_hours] = _Card(self, at)
        if not self._schedules:
            first = cuts[position - 1] if position else _BEFORE
            self.latest = first, cuts[position] if position < len(cuts) else _AFTER, card
        return card


_BEFORE: Final = -(2**200)
_AFTER: Final = 2**200


def instant_of(at: datetime) -> int:
    """ns since the epoch of an aware datetime.

    Raises:
        ValueError: no time zone: it names no instant.
    """
    if at.tzinfo is None:
        raise ValueError(f"{at.isoformat()} has no time zone, so it names no instant")
    since = at - _EPOCH
    return (since.days * 86_400 + since.seconds) * 1_000_000_000 + since.microseconds * 1000


def _known(meter: str) -> str:
    if meter not in METERS:
        raise ValueError(f"{meter!r} is not a meter. {nearest(meter, METERS)}".strip())
    return meter


def _steps(meter: str, value: int | Decimal) -> int:
    """Base steps of a quantity."""
    if type(value) is int:
        return value
    if isinstance(value, Decimal):
        return money.steps_of(meter, value)
    raise TypeError(f"{meter} is {value!r}: quantities are int (base steps) or Decimal (units)")
