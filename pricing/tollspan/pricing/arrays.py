"""Exact money on NumPy arrays, and decimal128 columns made from it without a Python object for each value.

In: int64 quantities and rates. Out: int64 pico-dollars, or Arrow decimal128 arrays. Every function here gives what the
scalar one in `money` gives. Where 64 bits are not enough the caller is told which rows, and works those out with Python
integers; nothing wraps around and nothing is a float.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

Int64s = NDArray[np.int64]
Bools = NDArray[np.bool_]

SAFE_COST: Final = 2**56
"""Pico-dollars ($72,057) up to which a charge is worked out in 64 bits: 64 such charges still add up without wrapping
round, and there are fewer meters than that."""

_LOW: Final = np.uint64(0xFFFFFFFF)
_HALF: Final = np.uint64(32)


def safe_quantity(num: int, den: int) -> int:
    """Largest quantity whose cost at ``num / den`` is worked out in 64 bits; -1 = none."""
    if num > SAFE_COST or den > SAFE_COST:
        return -1
    return SAFE_COST // num if num else 2**63 - 1


def costs(quantities: Int64s, num: Int64s, den: Int64s) -> Int64s:
    """Pico-dollars, a half rounded to even: `money.divide_half_even` of ``quantities × num / den``.

    Args:
        quantities: 0 or more, each at most `safe_quantity` of its rate; others give nonsense, not an error.
        num: numerators, one for each quantity.
        den: denominators, likewise.
    """
    product = quantities * num
    if not np.any(den != 1):
        return product
    quotient = product // den
    twice = 2 * (product - quotient * den)
    quotient += (twice > den) | ((twice == den) & ((quotient & 1) == 1))
    return quotient


def validity(array: pa.Array) -> Bools:
    """Which values of an array are not null."""
    if not array.null_count:
        return np.ones(len(array), dtype=bool)
    if array.null_count == len(array):
        return np.zeros(len(array), dtype=bool)
    bits = np.frombuffer(array.buffers()[0], dtype=np.uint8)
    begin = array.offset
    return np.unpackbits(bits, count=begin + len(array), bitorder="little")[begin:].view(bool)


def integers(array: pa.Array) -> Int64s:
    """Values of an int64 array without a copy; anything where they are null."""
    if not len(array):
        return np.zeros(0, dtype=np.int64)
    return np.frombuffer(array.buffers()[1], dtype=np.int64, count=len(array), offset=8 * array.offset)


def booleans(array: pa.Array) -> Bools:
    """Values of a boolean array; anything where they are null. Arrow's own conversion takes ten times as long."""
    if not len(array):
        return np.zeros(0, dtype=bool)
    bits = np.frombuffer(array.buffers()[1], dtype=np.uint8)
    begin = array.offset
    return np.unpackbits(bits, count=begin + len(array), bitorder="little")[begin:].view(bool)


def decimals(low: Int64s, type_: pa.DataType, valid: Bools | None = None, high: Int64s | None = None) -> pa.Array:
    """decimal128 array from two's complement limbs.

    Args:
        low: lower 64 bits (as int64); the whole value where ``high`` is not given.
        type_: decimal128 type; values are its unscaled integers.
        valid: False = null.
        high: upper 64 bits; left out = the sign of ``low``.
    """
    limbs = np.empty((len(low), 2), dtype=np.int64)
    limbs[:, 0] = low
    limbs[:, 1] = (low >> 63) if high is None else high
    return decimals_of(limbs, type_, valid)


def decimals_of(limbs: Int64s, type_: pa.DataType, valid: Bools | None = None) -> pa.Array:
    """`decimals` of limbs that already stand side by side, shape (n, 2), lower one first."""
    nulls = None if valid is None or valid.all() else pa.py_buffer(np.packbits(valid, bitorder="little"))
    return pa.Array.from_buffers(type_, len(limbs), [nulls, pa.py_buffer(limbs)])


_nothing: Int64s = np.zeros((0, 2), dtype=np.int64)


def zeros(count: int) -> Int64s:
    """Limbs of as many zeros, shape (n, 2), not to be written to. They are kept: memory that the kernel has to clear
    first costs more than everything else about them."""
    global _nothing
    nothing = _nothing
    if len(nothing) < count:
        nothing = np.zeros((2 * count, 2), dtype=np.int64)
        nothing.flags.writeable = False
        _nothing = nothing
    return nothing[:count]


def limbs_of(value: int) -> tuple[int, int]:
    """Lower and upper limb of a Python integer, each as an int64."""
    low = value & (2**64 - 1)
    return low - 2**64 if low >= 2**63 else low, value >> 64


def put_exact(low: Int64s, high: Int64s, values: Mapping[int, int]) -> None:
    """Write Python integers of up to 128 bits over positions of a column of limbs."""
    for position, value in values.items():
        low[position], high[position] = limbs_of(value)


def scaled(quantities: Int64s, factor: int) -> tuple[Int64s, Int64s | None]:
    """``quantities × factor`` as limbs (upper ones None where 64 bits are enough).

    Args:
        quantities: any int64.
        factor: 1 ... 2³¹.
    """
    if factor == 1:
        return quantities, None
    limit = (2**63 - 1) // factor
    if not len(quantities) or (quantities.max() <= limit and quantities.min() >= -limit):
        return quantities * factor, None
    # Schoolbook multiplication on 32-bit halves; the upper half carries the sign.
    bits = quantities.view(np.uint64)
    lower = (bits & _LOW) * np.uint64(factor)
    upper = (quantities >> 32) * factor + (lower >> _HALF).view(np.int64)
    low = ((upper.view(np.uint64) << _HALF) | (lower & _LOW)).view(np.int64)
    return low, upper >> 32
