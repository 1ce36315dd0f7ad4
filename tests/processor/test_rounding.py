"""Amounts are rounded as Python's decimals are, also near the multiples of 2⁶⁴ where Arrow's own rounding is not."""

from __future__ import annotations

from decimal import ROUND_HALF_EVEN, Context, Decimal

import pyarrow as pa
from hypothesis import example, given
from hypothesis import strategies as st

from tollspan.processor.rounding import EXACT, MONEY, to_money

CONTEXT = Context(prec=80, rounding=ROUND_HALF_EVEN)
HALF = 5 * 10**25
"""Half of the last place of money, in steps of 10⁻³⁸."""


def rounded(amount: Decimal) -> Decimal:
    return amount.quantize(Decimal("1e-12"), context=CONTEXT)


steps = st.integers(-(10**37), 10**37) | st.builds(
    lambda power, factor, beside: 2**power * factor + beside,
    st.integers(30, 118),
    st.integers(-9, 9),
    st.integers(-3, 3),
)
behind = st.sampled_from([0, 1, HALF - 1, HALF, HALF + 1, 10**26 - 1]) | st.integers(0, 10**26 - 1)


@given(st.lists(st.tuples(steps, behind), min_size=1, max_size=30))
@example([(18446744072319669588, 0)])
@example([(0, HALF), (1, HALF), (-1, -HALF), (-2, -HALF), (0, 1), (0, -1), (3, HALF - 1), (3, HALF + 1)])
def test_law_amounts_round_as_decimals_do(amounts: list[tuple[int, int]]) -> None:
    exact = [Decimal(at * 10**26 + more).scaleb(-38, CONTEXT) for at, more in amounts]
    assert to_money(pa.array(exact, EXACT)).to_pylist() == [rounded(each) for each in exact]


def test_nothing_stays_nothing_in_any_array() -> None:
    made = to_money(pa.chunked_array([pa.array([None, Decimal("1e-38")], EXACT), pa.array([], EXACT)]))
    assert (made.to_pylist(), made.type) == ([None, Decimal("0E-12")], MONEY)
    assert to_money(pa.nulls(2, EXACT)).to_pylist() == [None, None]
