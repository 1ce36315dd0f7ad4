"""Money is exact: rational rates, one half-even rounding a charge, the same on integers and on arrays."""

from __future__ import annotations

from decimal import Decimal, localcontext
from fractions import Fraction

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tollspan.pricing import money
from tollspan.pricing.arrays import SAFE_COST, costs, decimals, limbs_of, put_exact, safe_quantity, scaled

quantities = st.integers(0, 2**63 - 1)
amounts = st.decimals(min_value=0, max_value=1000, places=9, allow_nan=False, allow_infinity=False)


@given(st.integers(0, 10**30), st.integers(1, 10**20))
def test_division_rounds_a_half_to_even(num: int, den: int) -> None:
    assert money.divide_half_even(num, den) == round(Fraction(num, den))  # Fraction rounds half to even, exactly


def test_halves_go_to_the_even_neighbour() -> None:
    assert [money.divide_half_even(n, 2) for n in (1, 3, 5, 7)] == [0, 2, 2, 4]


def test_a_rate_is_in_lowest_terms() -> None:
    assert money.rate("tokens.output", Decimal("2.50"), 1_000_000, "token") == money.Rate(2_500_000, 1)
    # 55.04 USD for 8 GPU-hours, in pico-dollars a nanosecond.
    gpu = money.rate("gpu.seconds", Decimal("55.04"), 8, "hour")
    assert Fraction(gpu.num, gpu.den) == Fraction(5504 * 10**12, 100 * 8 * 3600 * 10**9)


def test_an_hour_costs_what_the_hour_costs() -> None:
    for amount, per in (("55.04", 8), ("0.0504", 1), ("21.957642", 8)):
        rate = money.rate("gpu.seconds", Decimal(amount), per, "hour")
        assert money.usd(rate.cost(per * 3600 * 10**9)) == Decimal(amount)


def test_a_rate_that_no_ledger_could_hold_is_refused() -> None:
    with pytest.raises(OverflowError):
        money.rate("tokens.output", Decimal(10001), 1, "token")


def test_decimals_do_not_depend_on_the_context_of_the_thread() -> None:
    with localcontext() as context:
        context.prec = 3
        assert str(money.usd(123_456_789_012_345_678)) == "123456.789012345678"
        assert money.digits_of(Decimal("123456.789012345678"), 12) == 123_456_789_012_345_678


@pytest.mark.parametrize("units", ["NaN", "Infinity", "1.5"])
def test_a_quantity_that_is_no_number_of_steps_is_refused(units: str) -> None:
    with pytest.raises(ValueError, match=r"tokens\.output"):
        money.steps_of("tokens.output", Decimal(units))


@given(st.lists(st.tuples(quantities, amounts, st.sampled_from([1, 8, 1000, 1_000_000])), min_size=1, max_size=30))
def test_arrays_give_what_integers_give(rows: list[tuple[int, Decimal, int]]) -> None:
    rates = [money.rate("gpu.seconds", amount, per, "hour") for _, amount, per in rows]
    safe = [
        min(quantity, safe_quantity(rate.num, rate.den)) for (quantity, _, _), rate in zip(rows, rates, strict=True)
    ]
    fitting = [(q, r) for q, r in zip(safe, rates, strict=True) if q >= 0]
    got = costs(
        *(np.array(column, dtype=np.int64) for column in zip(*((q, r.num, r.den) for q, r in fitting), strict=True))
    )
    assert got.tolist() == [rate.cost(quantity) for quantity, rate in fitting]
    assert all(cost <= SAFE_COST for cost in got.tolist())


@given(st.lists(st.integers(-(2**127), 2**127 - 1).filter(lambda v: abs(v) < 10**38), min_size=1, max_size=20))
def test_limbs_make_the_decimal(values: list[int]) -> None:
    low, high = np.zeros(len(values), dtype=np.int64), np.zeros(len(values), dtype=np.int64)
    put_exact(low, high, dict(enumerate(values)))
    array = decimals(low, pa.decimal128(38, 12), None, high)
    assert array.to_pylist() == [money.decimal_of(value, 12) for value in values]


def test_nulls_stand_where_values_are_not_valid() -> None:
    valid = np.array([True, False, True])
    array = decimals(np.array([1, 2, -3]), pa.decimal128(38, 12), valid)
    assert array.to_pylist() == [Decimal("0.000000000001"), None, Decimal("-0.000000000003")]
    array.validate(full=True)


@given(st.lists(st.integers(-(2**63), 2**63 - 1), max_size=20), st.sampled_from([1, 10**9, 2**31]))
def test_scaling_is_exact_beyond_64_bits(values: list[int], factor: int) -> None:
    low, high = scaled(np.array(values, dtype=np.int64), factor)
    upper = low >> 63 if high is None else high
    assert [(int(lo), int(hi)) for lo, hi in zip(low, upper, strict=True)] == [limbs_of(v * factor) for v in values]
