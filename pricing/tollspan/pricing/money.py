"""Exact money: integers of 10⁻¹² USD, rational rates, one half-even rounding per charge.

In: an exact decimal price ("2.50 per 1000000 token"). Out: a `Rate` in pico-dollars per base step of the meter, which
turns a quantity into a whole number of pico-dollars. No float takes part. `tollspan.pricing.arrays` does the same
on NumPy arrays; pricing's two faces both stand on these definitions.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Context, Decimal
from math import gcd
from typing import Final

from tollspan.pricing.meters import METERS, NANO

PICO: Final = 12
"""Money has this many decimals: 1 USD = 10¹² pico-dollars."""

QUANTITY_DECIMALS: Final = 9
UNIT_PRICE_DECIMALS: Final = 18

_EXACT: Final = Context(prec=100)
"""Wide enough that moving a decimal point never rounds, whatever the thread's own context."""
_exactly: Final = _EXACT.multiply
_PICO_DOLLAR: Final = Decimal(1).scaleb(-PICO)

LARGEST_RATE: Final = 10**16
"""Pico-dollars per base step ($10,000 a token): what keeps any int64 quantity of any number of meters inside
Decimal(38, 12)."""

LARGEST_QUANTITY: Final = 2**63 - 1
"""Base steps; quantities are int64."""

MONTH_S: Final = 730 * 3600
"""A month in prices by the month: 730 hours, as the clouds count it."""

PRICING_UNITS: Final[dict[str, dict[str, int]]] = {
    "second": {"second": 1, "minute": 60, "hour": 3600},
    "token-second": {"token-second": 1, "token-hour": 3600},
    "unit-second": {"unit-second": 1, "unit-hour": 3600},
    "byte-second": {
        "byte-second": 1,
        "GB-second": 10**9,
        "GiB-second": 2**30,
        "GB-hour": 10**9 * 3600,
        "GiB-hour": 2**30 * 3600,
        "GB-month": 10**9 * MONTH_S,
        "GiB-month": 2**30 * MONTH_S,
    },
    "byte": {
        "byte": 1,
        "KB": 10**3,
        "MB": 10**6,
        "GB": 10**9,
        "TB": 10**12,
        "KiB": 2**10,
        "MiB": 2**20,
        "GiB": 2**30,
        "TiB": 2**40,
    },
}
"""Unit of a meter → units that a price may be stated in → how many of the meter's units one of them is. A meter whose
unit is not here is priced in its own unit."""


@dataclass(frozen=True, slots=True)
class Rate:
    """Pico-dollars per base step as a fraction in lowest terms.

    Attributes:
        num: numerator, 0 or more.
        den: denominator, 1 or more.
    """

    num: int
    den: int

    def cost(self, steps: int) -> int:
        """Whole pico-dollars for ``steps`` base steps (0 or more), a half rounded to even."""
        return divide_half_even(steps * self.num, self.den)


def divide_half_even(num: int, den: int) -> int:
    """``num / den`` for ``num >= 0 < den``, rounded to the nearest integer, a half to the even one."""
    quotient, remainder = divmod(num, den)
    twice = 2 * remainder
    return quotient + (twice > den or (twice == den and quotient & 1))


def units_of(meter: str) -> dict[str, int]:
    """Units that a price of ``meter`` may be stated in, with how many of the meter's units one of them is."""
    unit = METERS[meter].unit
    return PRICING_UNITS.get(unit, {unit: 1})


def rate(meter: str, amount: Decimal, per: int, unit: str) -> Rate:
    """Rate of ``amount`` USD for ``per`` ``unit`` of ``meter``.

    Args:
        meter: a name from `METERS`.
        amount: USD, finite, 0 or more.
        per: how many ``unit`` the amount buys, 1 or more.
        unit: one of `units_of` the meter.

    Raises:
        OverflowError: above `LARGEST_RATE`.
    """
    num, den = amount.as_integer_ratio()
    num *= 10**PICO
    den *= per * units_of(meter)[unit] * METERS[meter].scale
    common = gcd(num, den)
    num, den = num // common, den // common
    if num > LARGEST_RATE * den:
        raise OverflowError(f"{amount} USD per {per} {unit} is more than any meter of {METERS[meter].name} can cost")
    return Rate(num, den)


def decimal_of(digits: int, decimals: int) -> Decimal:
    """``digits × 10^-decimals`` with exactly ``decimals`` decimals, independent of the decimal context."""
    return _EXACT.scaleb(Decimal(digits), -decimals)


def digits_of(value: Decimal, decimals: int) -> int:
    """``value × 10^decimals`` for a value with no more decimals than that: the inverse of `decimal_of`."""
    num, den = value.as_integer_ratio()
    scale: int = 10**decimals
    return num * scale // den


def usd(pico: int) -> Decimal:
    """Pico-dollars as a Decimal of USD with twelve decimals."""
    return _exactly(pico, _PICO_DOLLAR)  # twice as fast as `decimal_of`, and every cost that is read comes here


def quantity(meter: str, steps: int) -> Decimal:
    """Base steps as a Decimal in the meter's unit with nine decimals, as the ledger holds it."""
    return decimal_of(steps * (NANO // METERS[meter].scale), QUANTITY_DECIMALS)


def steps_of(meter: str, units: Decimal) -> int:
    """Base steps of an exact number of the meter's units.

    Raises:
        ValueError: not finite, or finer than the meter's base step.
    """
    if not units.is_finite():
        raise ValueError(f"{units} is not a quantity of {meter}")
    num, den = units.as_integer_ratio()
    steps, rest = divmod(num * METERS[meter].scale, den)
    if rest:
        scale = METERS[meter].scale
        finest = "whole numbers" if scale == 1 else f"steps of 1/{scale} {METERS[meter].unit}"
        raise ValueError(f"{units} is finer than {meter} is measured, in {finest}")
    return steps
