"""Other currencies: a price stated in one of them, as dated prices in USD.

In: a price row with its amounts in a currency, and that currency's exchange rates. Out: one row for each rate that is
in force while the price is, with exact amounts in USD. Spans are then priced in USD alone, at the rate of their own
instant, and no rate is asked for at run time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from decimal import Context, Decimal, Inexact
from typing import Final

from tollspan.pricing.money import UNIT_PRICE_DECIMALS
from tollspan.pricing.overlaps import common, uncovered
from tollspan.pricing.rows import Interval, PriceRow, Source
from tollspan.pricing.schedule import instant_text

USD: Final = "USD"
_EXACT: Final = Context(prec=100, traps=[Inexact])


@dataclass(frozen=True, slots=True)
class ExchangeRate:
    """What one unit of a currency is worth for a time.

    Attributes:
        currency: ISO 4217 code, in capitals.
        usd: USD for one unit, exact, above 0.
        effective: instants in which it holds.
        source: where it was read.
    """

    currency: str
    usd: Decimal
    effective: Interval
    source: Source = field(default_factory=Source)


class UncoveredError(ValueError):
    """A price holds at a time for which its currency has no rate.

    Args:
        gap: the first such time.
    """

    def __init__(self, gap: Interval) -> None:
        super().__init__(gap)
        self.gap = gap


def in_usd(row: PriceRow, currency: str, rates: Sequence[ExchangeRate]) -> list[PriceRow]:
    """The row in USD, cut where the rate changes.

    The piece that begins with the row keeps its id; one that begins with a rate has the rate's beginning behind it, so
    that ids stay when a rate is added at the end.

    Args:
        row: its amounts in ``currency``.
        currency: of the row; USD leaves it as it is.
        rates: of the book, of any currency; those of one currency do not overlap.

    Raises:
        UncoveredError: a part of the row's time has no rate.
        ValueError: an amount in USD has more decimals than a price can have.
    """
    if currency == USD:
        return [row]
    own = [rate for rate in rates if rate.currency == currency and rate.effective.meets(row.effective)]
    for gap in uncovered(row.effective, [rate.effective for rate in own]):
        raise UncoveredError(gap)
    return [_piece(row, rate) for rate in own]


def _piece(row: PriceRow, rate: ExchangeRate) -> PriceRow:
    effective = common(row.effective, rate.effective)
    begins = effective.start if effective.start != row.effective.start else None
    return replace(
        row,
        id=row.id if begins is None else f"{row.id}@{instant_text(begins)}",
        amount=_converted(row.amount, rate),
        steps=tuple(replace(step, amount=_converted(step.amount, rate)) for step in row.steps),
        effective=effective,
        stated=f"{row.amount:f} {rate.currency}",
    )


def _converted(amount: Decimal, rate: ExchangeRate) -> Decimal:
    usd = _EXACT.multiply(amount, rate.usd)
    plain = _EXACT.normalize(usd)
    if -int(plain.as_tuple().exponent) > UNIT_PRICE_DECIMALS:
        raise ValueError(
            f"{amount:f} {rate.currency} is {plain:f} {USD}, which has more than {UNIT_PRICE_DECIMALS} decimals"
        )
    return usd if -int(usd.as_tuple().exponent) <= UNIT_PRICE_DECIMALS else plain
