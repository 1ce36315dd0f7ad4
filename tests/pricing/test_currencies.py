"""Prices in other currencies become exact prices in USD, and a time without a rate is never passed over."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tollspan.pricing.currencies import ExchangeRate, UncoveredError, in_usd
from tollspan.pricing.rows import ALWAYS, Interval, PriceRow, Step
from tollspan.pricing.schedule import DAY

from .books import OUTPUT, at, book_of, price

JULY = 20635 * DAY
"""2026-07-01"""
RATES = (
    ExchangeRate("EUR", Decimal("1.0832"), Interval(None, JULY)),
    ExchangeRate("GBP", Decimal("1.31"), ALWAYS),
    ExchangeRate("EUR", Decimal("1.0911"), Interval(JULY, None)),
)


def row(effective: Interval = ALWAYS, amount: str = "1.20", **more: object) -> PriceRow:
    return PriceRow("x", OUTPUT, "m", Decimal(amount), unit="token", effective=effective, **more)  # type: ignore[arg-type]


def test_a_row_is_cut_where_the_rate_changes_and_says_what_the_book_said() -> None:
    before, after = in_usd(row(steps=(Step(5, Decimal("0.10")),)), "EUR", RATES)
    assert (before.id, before.amount, before.effective, before.stated) == (
        "x",
        Decimal("1.29984"),
        Interval(None, JULY),
        "1.20 EUR",
    )
    assert (after.id, after.amount, after.effective, after.stated) == (
        "x@2026-07-01",
        Decimal("1.30932"),
        Interval(JULY, None),
        "1.20 EUR",
    )
    assert [piece.steps[0].amount for piece in (before, after)] == [Decimal("0.10832"), Decimal("0.10911")]


def test_a_row_within_one_rate_stays_one_row() -> None:
    (piece,) = in_usd(row(Interval(JULY, JULY + DAY)), "EUR", RATES)
    assert (piece.id, piece.amount, piece.effective) == ("x", Decimal("1.30932"), Interval(JULY, JULY + DAY))


def test_usd_is_left_as_it_is() -> None:
    assert in_usd(row(), "USD", RATES) == [row()]


@pytest.mark.parametrize(
    ("rates", "gap"),
    [
        ([], ALWAYS),
        ([Interval(5, None)], Interval(None, 5)),
        ([Interval(None, 5)], Interval(5, None)),
        ([Interval(7, None), Interval(None, 5)], Interval(5, 7)),
    ],
)
def test_a_time_without_a_rate_is_an_error_that_names_it(rates: list[Interval], gap: Interval) -> None:
    with pytest.raises(UncoveredError) as raised:
        in_usd(row(), "EUR", [ExchangeRate("EUR", Decimal("1.1"), interval) for interval in rates])
    assert raised.value.gap == gap


def test_amounts_that_no_price_can_hold_are_an_error_and_never_rounded() -> None:
    rates = (ExchangeRate("EUR", Decimal("1.1"), ALWAYS),)
    assert in_usd(row(amount="0.00000000000000001"), "EUR", rates)[0].amount == Decimal("1.1E-17")
    with pytest.raises(ValueError, match=r"0\.0000000000000000011 USD, which has more than 18 decimals"):
        in_usd(row(amount="0.000000000000000001"), "EUR", rates)
    (piece,) = in_usd(row(amount="0.00000000000000001"), "EUR", (ExchangeRate("EUR", Decimal("10.00"), ALWAYS),))
    assert piece.amount.as_tuple() == Decimal("1E-16").as_tuple()


amounts = st.decimals(0, 10**6, places=8)


@given(amounts, st.decimals("0.000001", 1000, places=9))
def test_amounts_are_exact_whatever_their_digits(amount: Decimal, usd: Decimal) -> None:
    (piece,) = in_usd(row(amount=str(amount)), "EUR", (ExchangeRate("EUR", usd, ALWAYS),))
    num, den = piece.amount.as_integer_ratio()
    (a, b), (c, d) = amount.as_integer_ratio(), usd.as_integer_ratio()
    assert num * b * d == a * c * den


def test_a_span_is_priced_at_the_rate_of_its_own_instant() -> None:
    book = book_of("""\
        price_book: {currency: EUR}
        exchange_rates:
          - {currency: EUR, usd: "1.0832", effective: [2026-01-01, 2026-07-01]}
          - {currency: EUR, usd: "1.0911", effective: [2026-07-01, null]}
        prices:
          - {provider: p, sku: m, meter: tokens.output, amount: "1.20", effective: [2026-01-01, null]}
        """)

    def cost(instant: str) -> Decimal | None:
        return price(book, {OUTPUT: 10}, at=at(instant), provider="p", model="m").cost

    assert cost("2026-06-30T23:59:59.999999Z") == Decimal("12.9984")
    assert cost("2026-07-01T00:00:00Z") == Decimal("13.0932")
    assert cost("2025-12-31T23:59:59Z") is None
