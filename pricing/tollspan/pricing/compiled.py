"""Kernels of the columnar face, compiled by numba: what is done with every call and every charge, in one pass.

Each does what functions of NumPy in `columnar` and `cost_columns` do, to the last digit. `faster` compiles them in
programs that ask for it, and tells their arguments; until then and everywhere else NumPy does the work.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

NUM, DEN, SAFE, MINIMUM, FACTOR, COLUMN, LOW, HIGH, FLAGS = range(9)
"""Columns of ``rates``: a row for each template of a charge."""
CHARGED, PRICED = 1, 2
"""Bits of ``FLAGS``: the charge has a cost, a unit price."""

_HALF = np.int64(32)
_LOWER = np.uint64(0xFFFFFFFF)
_LARGEST = np.int64(2**63 - 1)


def _jit(function: Any, nogil: bool = True) -> Any:
    """Compiled, with bounds checks; cached on disk where numba finds a folder that it can write."""
    options = {"nogil": nogil, "boundscheck": True, "_nrt": False}
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:  # no folder for a cache: compiled in every process
        return numba.njit(**options)(function)


def _brief(function: Any) -> Any:
    """The same for work of a few µs, with the GIL: to get it back would take longer."""
    return _jit(function, nogil=False)


@_brief
def collect(values: Any, nulls: Any, begin: Any, rows: Any, place: Any, out: Any, bits: Any) -> None:
    """A meter's quantities of some rows.

    Args:
        values: int64 of all rows.
        nulls: uint8, a bitmap of those that are given, from bit ``begin``; empty: all are.
        rows: int64, length n.
        place: of the meter among the bits.
        out: int64, length n, is written.
        bits: uint64, length n: the meter's bit is set where it is given.
    """
    if nulls.size:
        for at in range(rows.size):
            # Without a sign, so that no index counts from the end; without a branch, which nobody could foretell.
            row = np.uint64(rows[at])
            out[at] = values[row]
            bit_at = row + np.uint64(begin)
            flag = np.uint64(nulls[bit_at >> np.uint64(3)]) >> (bit_at & np.uint64(7))
            bits[at] |= (flag & np.uint64(1)) << np.uint64(place)
    else:
        for at in range(rows.size):
            out[at] = values[np.uint64(rows[at])]
            bits[at] |= np.uint64(1) << np.uint64(place)


@_brief
def pick(rows: Any, pairs: Any, words: Any, out_pairs: Any, out_words: Any) -> None:
    """Some rows of columns that are only moved.

    Args:
        rows: int64, length n.
        pairs: uint64, a pair for each row.
        words: four arrays of uint64.
        out_pairs: of n pairs, out_words: four of n; are written.
    """
    first, second, third, fourth = words
    for at in range(rows.size):
        row = np.uint64(rows[at])
        out_pairs[at, 0] = pairs[row, 0]
        out_pairs[at, 1] = pairs[row, 1]
        out_words[0, at] = first[row]
        out_words[1, at] = second[row]
        out_words[2, at] = third[row]
        out_words[3, at] = fourth[row]


@_brief
def spread(of: Any, tables: Any, out: Any) -> None:
    """Numbers by row from numbers by shape.

    Args:
        of: int64, the shape of each of n rows.
        tables: a column's numbers by shape in each row.
        out: of the same type, n in each row, is written.
    """
    for column in range(tables.shape[0]):
        for row in range(of.size):
            out[column, row] = tables[column, np.uint64(of[row])]


@_brief
def spread_lists(of: Any, first: Any, sizes: Any, tables: Any, out: Any) -> None:
    """Numbers by charge from numbers by template.

    Args:
        of: int64, the shape of each of n rows.
        first, sizes: int64, the first template of each shape, and how many follow each other.
        tables: a column's numbers by template in each row.
        out: of the same type, as many as there are charges in each row, is written.
    """
    at = 0
    for row in range(of.size):
        begin = first[of[row]]
        for template in range(begin, begin + sizes[of[row]]):
            for column in range(tables.shape[0]):
                out[column, at] = tables[column, template]
            at += 1


@_jit
def classify(
    cell_of: Any,
    values: Any,
    given: Any,
    negative: Any,
    calls: Any,
    own: Any,
    fee: Any,
    codes: Any,
    slots: Any,
    one_row: Any,
    bits: Any,
    implied: Any,
    counts: Any,
    shape_of: Any,
) -> Any:
    """Numbers calls by what they are charged for; how many such shapes there are. See `columnar.Classes`.

    Args:
        cell_of: int64, length n.
        values: int64, a row for each meter, n in each; given: uint64, which of them each call gives.
        negative: code of the reason of calls with a quantity below zero.
        calls: bits of the meters that only a call of a model has.
        own: uint64, of the meters that may be implied the bits among the given ones; 0 = not given by any.
        fee: uint8 by cell, bits of the meters that may be implied and have a fee.
        codes: int32, why calls are invalid, 0 = they are not; is written.
        slots: int32, zeros, a power of two, more than n.
        one_row, bits, implied, counts: int64, uint64, uint8 and int64 of n, are written for each shape: the first of
            its calls, the meters that are charged, those of them that nobody counted, and how many calls it has.
        shape_of: int64, length n, is written.
    """
    mask = np.uint64(slots.size - 1)
    shapes = np.int64(0)
    for row in range(cell_of.size):
        there, zero, below, place = given[row], np.uint64(0), False, 0
        rest = there
        while rest != 0:
            if rest & np.uint64(1) != 0:
                value = values[place, row]
                if value == 0:
                    zero |= np.uint64(1) << np.uint64(place)
                elif value < 0:
                    below = True
            rest >>= np.uint64(1)
            place += 1
        if below and codes[row] == 0:
            codes[row] = negative
        cell, code, more = cell_of[row], codes[row], np.uint8(0)
        if code == 0:
            if fee[cell] != 0 and there & calls != 0:
                for which in range(own.size):
                    if (fee[cell] >> np.uint8(which)) & np.uint8(1) != 0 and there & own[which] == 0:
                        more |= np.uint8(1 << which)
            if more != 0 or there & ~zero != 0:
                there &= ~zero
        key = there * np.uint64(0x9E3779B97F4A7C15) ^ np.uint64(cell) * np.uint64(0xC2B2AE3D27D4EB4F)
        key ^= (np.uint64(code) * np.uint64(4) + np.uint64(more)) * np.uint64(0x165667B19E3779F9)
        key ^= key >> np.uint64(29)
        at = key & mask
        while True:
            shape = np.int64(slots[at]) - 1
            if shape < 0:
                shape = shapes
                shapes += 1
                slots[at] = shapes
                one_row[shape], bits[shape], implied[shape], counts[shape] = row, there, more, 0
                break
            first = one_row[shape]
            if bits[shape] == there and cell_of[first] == cell and codes[first] == code and implied[shape] == more:
                break
            at = (at + np.uint64(1)) & mask
        counts[shape] += 1
        shape_of[row] = shape
    return shapes


@_jit
def emit(
    shape_of: Any,
    first: Any,
    sizes: Any,
    rates: Any,
    values: Any,
    offsets: Any,
    quantity: Any,
    price: Any,
    cost: Any,
    charged: Any,
    priced: Any,
    sums: Any,
    exact: Any,
) -> Any:
    """Writes the charges of all calls, one after the other; how many costs 64 bits do not hold.

    Args:
        shape_of: int64, length n; first, sizes: int64, its first template and how many follow each other.
        rates: int64, a row for each template.
        values: int64, quantities as for `classify`.
        offsets: int32 of n + 1, is written: where each call's charges begin.
        quantity, price, cost: int64, pairs of limbs of each charge, are written.
        charged, priced: uint8, bitmaps of zeros, are written: charges with a cost, a unit price. Empty: all have one.
        sums: int64, pairs of limbs of each call's cost, are written.
        exact: int64, room for a pair for each charge, is written: charge and call of each cost that is left out.
    """
    at = left = 0
    for row in range(shape_of.size):
        offsets[row] = at
        begin, total = first[shape_of[row]], np.int64(0)
        for template in range(begin, begin + sizes[shape_of[row]]):
            column, factor, flags = rates[template, COLUMN], rates[template, FACTOR], rates[template, FLAGS]
            steps = values[column, row] if column >= 0 else np.int64(1)
            if -(1 << 33) < steps < (1 << 33) or factor == 1:  # a factor has 30 bits
                quantity[at, 0] = steps * factor
                quantity[at, 1] = (steps * factor) >> np.int64(63)
            else:
                lower = (np.uint64(steps) & _LOWER) * np.uint64(factor)
                upper = (steps >> _HALF) * factor + np.int64(lower >> np.uint64(32))
                quantity[at, 0] = np.int64((np.uint64(upper) << np.uint64(32)) | (lower & _LOWER))
                quantity[at, 1] = upper >> _HALF
            price[at, 0], price[at, 1] = rates[template, LOW], rates[template, HIGH]
            amount = np.int64(0)
            if flags & CHARGED:
                billed = rates[template, MINIMUM] if 0 < steps < rates[template, MINIMUM] else steps
                if billed > rates[template, SAFE]:
                    exact[left, 0], exact[left, 1] = at, row
                    left += 1
                else:
                    amount = billed * rates[template, NUM]
                    den = rates[template, DEN]
                    if den != 1:
                        quotient = amount // den
                        twice = 2 * (amount - quotient * den)
                        if twice > den or (twice == den and quotient & 1):
                            quotient += 1
                        amount = quotient
                if charged.size:
                    charged[at >> 3] |= np.uint8(1 << (at & 7))
            if flags & PRICED and priced.size:
                priced[at >> 3] |= np.uint8(1 << (at & 7))
            cost[at, 0], cost[at, 1] = amount, 0
            total += amount
            at += 1
        sums[row, 0], sums[row, 1] = total, 0
    offsets[shape_of.size] = at
    return left
