"""What calls used, as arrays: the quantities of a batch by meter, and which calls give which.

In: Arrow columns by meter, of the calls themselves or of rows that hold more than them. Out: `Counted`, which
`PriceEngine.price_columns` takes as it takes such columns. Which meters a call gives is one word of bits, so that
rules about meters are arithmetic on that word.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tollspan.pricing import faster
from tollspan.pricing.arrays import Bools, Int64s, integers, validity
from tollspan.pricing.meters import METERS

Words = NDArray[np.uint64]


class Counted(NamedTuple):
    """Quantities of n calls.

    Attributes:
        meters: names, in the order of `METERS`.
        values: base steps, shape (meters, n); anything where none is given.
        bits: of each call, uint64: 2^i where it gives the i-th meter.
    """

    meters: tuple[str, ...]
    values: Int64s
    bits: Words

    def mask(self, of: Callable[[str], bool]) -> np.uint64:
        """Bits of the meters for which a function is true."""
        return np.uint64(sum(1 << place for place, meter in enumerate(self.meters) if of(meter)))

    def has(self, mask: np.uint64) -> Bools:
        """Which calls give any of the meters of a mask, shape (n,)."""
        found: Bools = (self.bits & mask) != 0
        return found

    def without(self, mask: np.uint64, where: Bools) -> Counted:
        """The same, but for some meters of some calls."""
        return self._replace(bits=np.where(where, self.bits & ~mask, self.bits))


def counted(quantities: Mapping[str, Any], rows: Int64s | None, n: int) -> Counted:
    """Quantities of n calls from columns by meter.

    Args:
        quantities: int64 arrays of base steps by meter, null = not given; or such values (anything where none is given)
            and which rows have them, as NumPy arrays.
        rows: of them the ones that the calls are; None: all.
        n: how many calls there are.
    """
    meters = tuple(meter for meter in METERS if meter in quantities and _any(quantities[meter]))
    values = np.empty((len(meters), n), dtype=np.int64)
    bits = np.zeros(n, dtype=np.uint64)
    walk = faster.kernels()
    everything = np.arange(n, dtype=np.int64) if rows is None and walk is not None and meters else rows
    for place, meter in enumerate(meters):
        column = quantities[meter]
        if walk is not None and not isinstance(column, tuple):
            column = whole(column)
            nulls = np.frombuffer(column.buffers()[0], dtype=np.uint8) if column.null_count else _ALL
            arguments = faster.read(integers(column)), faster.read(nulls, np.uint8), column.offset
            walk.collect(*arguments, faster.read(everything), place, values[place], bits)
            continue
        steps, valid = column if isinstance(column, tuple) else (integers(whole(column)), validity(whole(column)))
        values[place] = steps if rows is None else steps.take(rows)
        valid = valid if rows is None else valid.take(rows)
        bits |= valid.astype(np.uint64) << np.uint64(place)
    return Counted(meters, values, bits)


_ALL = np.zeros(0, np.uint8)


def whole(array: Any) -> Any:
    """One int64 Array of a column."""
    if isinstance(array, pa.ChunkedArray):
        array = array.chunk(0) if array.num_chunks == 1 else array.combine_chunks()
    return array if pa.types.is_int64(array.type) else array.cast(pa.int64())


def _any(column: Any) -> bool:
    """Whether some row gives the quantity."""
    return bool(column[1].any()) if isinstance(column, tuple) else column.null_count < len(column)
