"""Charges: what a call cost, meter by meter, and the lines that they are worked out from.

In: quotes of a set of selectors at an instant, as `Line`s. Out: `Charges`, which hold lines and integers until somebody
reads them; only then are there Decimals and a `Charge` for each meter. Between `resolve` and `engine`.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from decimal import Decimal
from functools import cache
from typing import Final, Literal, NamedTuple, TypeAlias

from tollspan.pricing import money
from tollspan.pricing.meters import METERS
from tollspan.pricing.resolve import (
    IMPLIED_MARK,
    INPUT_TOKENS,
    REASON_ORDER,
    REASONS,
    TIER_ASSUMED,
    Quote,
)
from tollspan.pricing.rows import ALWAYS, Interval

CostStatus = Literal["priced", "free", "included", "partial", "unpriced", "invalid"]
ChargeStatus = Literal["priced", "free", "included", "unpriced", "ambiguous", "invalid"]

CURRENCY: Final = "USD"
CALL_METERS: Final = frozenset(name for name, meter in METERS.items() if meter.component == "model")
"""Meters of which any one shows that a model was called."""

_ORDER: Final = {name: position for position, name in enumerate(METERS)}
_INPUT: Final = frozenset(INPUT_TOKENS)
_FREE, _INCLUDED, _UNPRICED, _PRICED = 1, 2, 4, 8
_STATUSES: Final = 15
CALL: Final = 16
"""What a charge adds to its call, as bits: its status, whether a model was called, and from `_REASON_SHIFT` on its
reasons."""
_REASON_SHIFT: Final = 5
_STATUS_BITS: Final = {"priced": _PRICED, "free": _FREE, "included": _INCLUDED, "unpriced": _UNPRICED}


class Charge(NamedTuple):
    """What one meter cost.

    Attributes:
        meter: name from `METERS`.
        component: part of the bill it belongs to.
        quantity: in ``unit``, nine decimals.
        unit: the meter's unit.
        unit_price: USD for ``per`` in effect, to eighteen decimals (of a graduated price the first step's); None when
            unpriced.
        per: pricing unit, ``1000000 token``, ``1 hour``; empty when unpriced.
        cost: effective cost in USD, twelve decimals; None when unpriced or invalid.
        price_id: the price row; empty when unpriced.
        matched_by: how it was found, and what it was multiplied by.
        status: ``priced`` | ``free`` (an explicit zero price) | ``included`` (paid for elsewhere) | ``unpriced`` |
            ``ambiguous`` (several providers could be meant) | ``invalid``.
        reasons: why it is unpriced, or what was assumed.
        list_unit_price, contracted_unit_price: likewise, what anybody pays and what was agreed; None = there is none.
        list_cost, contracted_cost: likewise.
        effective: instants in which the price row holds.
        kind: of the row: ``list``, ``contract`` ...; empty when unpriced.
        layer: book that the row is from; empty when unpriced.
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
    list_unit_price: Decimal | None = None
    contracted_unit_price: Decimal | None = None
    list_cost: Decimal | None = None
    contracted_cost: Decimal | None = None
    effective: Interval = ALWAYS
    kind: str = ""
    layer: str = ""


class Line:
    """Everything about a meter that a set of selectors and an instant decide.

    Args:
        meter: a name from `METERS`.
        quote: its price.
        implied: the call did not count it.

    Attributes:
        bits: what the charge adds to its call; without its status where it is not plain (below).
        told: what `PriceEngine.price` needs at once: whether the quantity is part of the request's input tokens; the
            bits; whether it is plain, that is costs quantity × numerator / denominator whatever else the call holds;
            numerator; denominator.
        order: place among the meters.
        bounds: cliffs, in input tokens of the request.
        cliffs: numerator, denominator and status bit of each step, where that and the bounds are all there is to it.
    """

    __slots__ = (*("_exact", "_steps", "bits", "bounds", "cliffs", "implied", "meter", "order", "quote", "told"),)

    def __init__(self, meter: str, quote: Quote, *, implied: bool = False) -> None:
        self.meter = meter
        self.quote = quote
        self.implied = implied
        self.order = _ORDER[meter]
        status, _, rate = quote.steps[0]
        plain = not quote.bounds and not quote.minimum and rate is not None
        self.bits = (CALL if meter in CALL_METERS else 0) | _bits_of(quote.reasons)
        if plain:
            self.bits |= _STATUS_BITS[status]
        num, den = (rate.num, rate.den) if rate is not None else (0, 1)
        self.told = meter in _INPUT, self.bits, plain, num, den
        # For what is not plain: the rates and status bits of the steps.
        self._exact = quote.graduated or quote.minimum > 0
        self.bounds = () if quote.graduated else quote.bounds
        self._steps = tuple((rate, _STATUS_BITS.get(of_step, _UNPRICED)) for of_step, _, rate in quote.steps)
        self.cliffs: tuple[tuple[int, int, int], ...] = ()
        if self.bounds and not self._exact:
            self.cliffs = tuple((rate.num, rate.den, bit) for rate, bit in self._steps if rate is not None)

    def cost(self, steps: int, input_tokens: int | None) -> tuple[int | None, int, tuple[str, ...]]:
        """Pico-dollars for so many base steps (None = unpriced) in a call with so many input tokens (None = not told);
        the bits that it adds; and what was assumed besides the quote's own reasons."""
        step, bits = 0, 0
        why: tuple[str, ...] = ()
        if self.bounds:
            if input_tokens is not None:
                step = bisect_left(self.bounds, input_tokens)
            elif TIER_ASSUMED not in self.quote.reasons:
                bits, why = _ASSUMED
        rate, status = self._steps[step]
        if rate is None or self._exact:
            return self.quote.cost(steps, step), bits | status, why
        return rate.cost(steps), bits | status, why


Raw: TypeAlias = tuple[Line | str, int, int | None, tuple[str, ...]]
"""Line (or a meter of invalid usage), base steps, cost, reasons beyond the line's."""


class Charges:
    """What one call cost. Two are equal when everything about them is.

    Attributes:
        status: ``priced`` | ``free`` | ``included`` | ``partial`` (``cost`` is a lower bound) | ``unpriced`` |
            ``invalid``.
        reasons: of all charges, each once, in the order of `resolve.REASONS`.
        book_version: of the book that priced it.
        currency: always USD.
    """

    __slots__ = ("_charges", "_input_tokens", "_pico", "_raw", "book_version", "reasons", "status")
    currency = CURRENCY

    def __init__(
        self,
        status: CostStatus,
        reasons: tuple[str, ...],
        pico: int | None,
        raw: list[Raw],
        book_version: str,
        input_tokens: int | None = None,
    ) -> None:
        self.status = status
        self.reasons = reasons
        self.book_version = book_version
        self._pico = pico
        self._raw = raw
        self._input_tokens = input_tokens
        self._charges: list[Charge] | None = None

    @property
    def cost(self) -> Decimal | None:
        """Sum of the charges that have a cost, USD, twelve decimals; None when none has."""
        return None if self._pico is None else money.usd(self._pico)

    @property
    def list_cost(self) -> Decimal | None:
        """What it costs at list prices; None when some charge has no list price."""
        return _whole_sum(charge.list_cost for charge in self.charges)

    @property
    def contracted_cost(self) -> Decimal | None:
        """What it costs at the contract's prices, before commitments; None when some charge has none."""
        return _whole_sum(charge.contracted_cost for charge in self.charges)

    @property
    def charges(self) -> list[Charge]:
        """In the order of `METERS`."""
        if self._charges is None:
            self._raw.sort(key=_order_of)
            self._charges = [_charge(*raw, self._input_tokens) for raw in self._raw]
        return self._charges

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Charges) and self._all() == other._all()

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Charges(cost={self.cost!r}, status={self.status!r}, reasons={self.reasons!r})"

    def _all(self) -> tuple[object, ...]:
        return self.cost, self.status, self.reasons, self.charges, self.book_version


@cache
def overall(bits: int) -> tuple[CostStatus, bool, tuple[str, ...]]:
    """Status of a call from the bits of its charges, whether it has a cost, and its reasons."""
    status, known = _OVERALL[bits & _STATUSES]
    reasons = bits >> _REASON_SHIFT
    return status, known, tuple(reason for position, reason in enumerate(REASONS) if reasons >> position & 1)


def _overall(seen: int) -> tuple[CostStatus, bool]:
    if seen & _UNPRICED:
        return ("partial", True) if seen & ~_UNPRICED else ("unpriced", False)
    if seen & _PRICED:
        return "priced", True
    return ("included" if seen & _INCLUDED else "free"), True


_OVERALL: Final = {seen: _overall(seen) for seen in range(_STATUSES + 1)}


def _bits_of(reasons: tuple[str, ...]) -> int:
    return sum(1 << (REASON_ORDER[reason] + _REASON_SHIFT) for reason in reasons)


_ASSUMED: Final = _bits_of((TIER_ASSUMED,)), (TIER_ASSUMED,)


def _order_of(raw: Raw) -> int:
    line = raw[0]
    return _ORDER[line] if isinstance(line, str) else line.order


def _whole_sum(costs: Iterable[Decimal | None]) -> Decimal | None:
    total = 0
    some = False
    for cost in costs:
        if cost is None:
            return None
        some = True
        total += money.digits_of(cost, money.PICO)
    return money.usd(total) if some else None


def _charge(line: Line | str, steps: int, cost: int | None, why: tuple[str, ...], input_tokens: int | None) -> Charge:
    name = line if isinstance(line, str) else line.meter
    about = METERS[name]
    quantity = money.quantity(name, steps)
    if isinstance(line, str):
        return Charge(name, about.component, quantity, about.unit, None, "", None, "", "", "invalid", why)
    quote = line.quote
    status, amount, _ = quote.steps[quote.step(input_tokens)]
    row = quote.row
    if row is None:
        reasons = (*quote.reasons, *why)
        return Charge(name, about.component, quantity, about.unit, None, "", None, "", "", status, reasons)
    list_price, list_cost = (amount, cost) if quote.listed is None else _level(quote.listed, steps, input_tokens)
    agreed_price, agreed_cost = (
        (amount, cost) if quote.contracted is None else _level(quote.contracted, steps, input_tokens)
    )
    return Charge(
        meter=name,
        component=about.component,
        quantity=quantity,
        unit=about.unit,
        unit_price=amount,
        per=row.per_unit,
        cost=_usd(cost),
        price_id=row.id,
        matched_by=quote.matched_by + (IMPLIED_MARK if line.implied else ""),
        status=status,
        reasons=(*quote.reasons, *why),
        list_unit_price=list_price,
        contracted_unit_price=agreed_price,
        list_cost=_usd(list_cost),
        contracted_cost=_usd(agreed_cost),
        effective=row.effective,
        kind=row.kind,
        layer=quote.layer,
    )


def _level(quote: Quote, steps: int, input_tokens: int | None) -> tuple[Decimal | None, int | None]:
    """Unit price and cost at a level other than the effective one."""
    step = quote.step(input_tokens)
    return quote.steps[step][1], quote.cost(steps, step)


def _usd(pico: int | None) -> Decimal | None:
    return None if pico is None else money.usd(pico)
