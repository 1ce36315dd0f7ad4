"""Amounts with many decimals to money: the nearest 10⁻¹², ties to the even one.

Arrow's own rounding of 256-bit decimals divides by 10²⁶ at once, and is wrong for some values where a divisor has more
than 32 bits (26.0: 18446744.072319669588 comes out as 18446744.065673529610). Divisors below that are right, so digits
are taken off in steps, and what was cut off is remembered by one digit behind those that stay.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

EXACT: Final = pa.decimal256(76, 38)
"""What amounts are read as."""
MONEY: Final = pa.decimal128(38, 12)

_STEPS: Final = (30, 22, 14)
"""Decimals that stay; each step divides by 10⁸ at the most."""
_TOLD: Final = pa.decimal256(60, 15)
_NUDGE: Final = pa.scalar(Decimal("1e-15"), pa.decimal256(15, 15))


def to_money(exact: Any) -> Any:
    """Round amounts.

    Args:
        exact: array or chunked array of `EXACT`.

    Returns:
        The same of `MONEY`; null stays null.

    Raises:
        pa.ArrowInvalid: one has more digits than `MONEY` has.
    """
    cut: Any = False
    left = exact
    for places in _STEPS:
        shorter = pc.round(left, places, "towards_zero")
        cut = pc.or_(cut, pc.not_equal(shorter, left))
        left = shorter.cast(pa.decimal256(76, places))
    # A digit that says on which side of a tie it lies.
    nudge = pc.multiply(pc.cast(pc.if_else(cut, pc.sign(left), 0), pa.decimal256(19, 0)), _NUDGE)
    told = pc.add(pc.cast(left, _TOLD), pc.cast(nudge, _TOLD))
    return pc.round(told, 12, "half_to_even").cast(MONEY)
