"""The kernels of the columnar face (`compiled`), once they are compiled in this process.

A program that prices many batches calls `prepare`, which takes seconds the first time and needs numba; nothing else
imports it. The functions here are `compiled`'s with arguments of the very types that were compiled.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from types import ModuleType

    from tollspan.pricing.arrays import Int64s

_USED: Final = ("collect", "pick", "spread", "spread_lists", "classify", "emit")
WIDTHS: Final = (np.int8, np.int16, np.int32)
"""Types of numbers of words: `narrow` chooses the first that holds them."""

_compiled: ModuleType | None = None


def kernels() -> Any:
    """The compiled module, None while there is none."""
    return _compiled


def prepare() -> None:
    """Compile the kernels in this process, by using them.

    Raises:
        ImportError: there is no numba.
        RuntimeError: they do not do what they should.
    """
    global _compiled
    from tollspan.pricing import compiled

    rows, bits, out = np.zeros(1, np.int64), np.zeros(1, np.uint64), np.zeros((1, 1), np.int64)
    for nulls in (np.ones(1, np.uint8), np.zeros(0, np.uint8)):
        compiled.collect(read(np.full(1, 7)), read(nulls, np.uint8), 0, read(rows), 0, out[0], bits)
    words = np.arange(4, dtype=np.uint64)
    pairs, picked = np.zeros((1, 2), np.uint64), np.zeros((4, 1), np.uint64)
    compiled.pick(
        read(rows), read(pairs + 5, np.uint64), tuple(read(words[i:], np.uint64) for i in range(4)), pairs, picked
    )
    ones = read(np.ones(1))
    for kind in WIDTHS:
        tables, numbers = np.full((1, 1), 3, kind), np.zeros((2, 1), kind)
        compiled.spread(read(rows), read(tables, kind), numbers[:1])
        compiled.spread_lists(read(rows), read(rows), ones, read(tables, kind), numbers[1:])
        if numbers.tolist() != [[3], [3]]:
            raise RuntimeError("the compiled kernels of pricing do not spread what they are given")
    slots, made = np.zeros(4, np.int32), (np.zeros(1, np.uint64), np.zeros(1, np.uint8), np.zeros(1, np.int64))
    shapes = compiled.classify(
        *(read(rows), read(out), read(bits, np.uint64), 1, np.uint64(1), read(np.zeros(2), np.uint64)),
        *(read(np.ones(1), np.uint8), np.zeros(1, np.int32), slots, rows.copy(), *made, rows.copy()),
    )
    rates = np.zeros((1, 9), np.int64)
    rates[0, compiled.NUM], rates[0, compiled.DEN], rates[0, compiled.SAFE] = 3, 2, 100
    rates[0, compiled.FACTOR], rates[0, compiled.FLAGS] = 10, compiled.CHARGED | compiled.PRICED
    lists, flags, sums = np.zeros((3, 1, 2), np.int64), np.zeros((2, 1), np.uint8), np.zeros((1, 2), np.int64)
    left = compiled.emit(
        *(read(rows), read(rows), ones, read(rates), read(out), np.zeros(2, np.int32)),
        *(*lists, *flags, sums, np.zeros((1, 2), np.int64)),
    )
    told = out[0, 0], bits[0], pairs[0, 0], picked[3, 0], shapes, made[1][0], left, lists[0, 0, 0], sums[0, 0]
    if told != (7, 1, 5, 3, 1, 1, 0, 70, 10) or flags.tolist() != [[1], [1]]:
        raise RuntimeError("the compiled kernels of pricing do not count what they are given")
    for name in _USED:
        getattr(compiled, name).disable_compile()  # seconds, in the middle of a batch, for arguments of another type
    _compiled = compiled


def read(array: Any, kind: Any = np.int64) -> NDArray[Any]:
    """An array as the kernels take what they only read: of a type, in one piece, not to be written."""
    view: NDArray[Any] = np.ascontiguousarray(array, kind).view()
    view.flags.writeable = False
    return view


def width(words: int) -> Any:
    """The narrowest type for the numbers of as many words: fewer bytes to write, to pack and to send."""
    return next(kind for kind in WIDTHS if words <= np.iinfo(kind).max + 1)


_nothing: dict[Any, NDArray[Any]] = {}


def nothing(count: int, kind: Any) -> NDArray[Any]:
    """As many zeros, not to be written to, kept from call to call."""
    found = _nothing.get(kind)
    if found is None or len(found) < count:
        found = np.zeros(2 * count, kind)
        found.flags.writeable = False
        _nothing[kind] = found
    return found[:count]


def spread(of: Int64s, tables: list[NDArray[np.integer[Any]]], widths: list[Any]) -> list[NDArray[Any]]:
    """Numbers by row from numbers by shape, of several columns.

    Args:
        of: the shape of each row.
        tables: of each column the numbers by shape.
        widths: of each column the type of what comes out; see `width`.
    """
    if _compiled is None:
        return [table.astype(kind).take(of) for table, kind in zip(tables, widths, strict=True)]
    return _grouped(tables, widths, len(of), lambda some, out: _compiled.spread(read(of), some, out))


def spread_lists(
    of: Int64s, first: Int64s, sizes: Int64s, total: int, tables: list[NDArray[np.integer[Any]]], widths: list[Any]
) -> list[NDArray[Any]]:
    """Numbers by charge from numbers by template, with the compiled kernels.

    Args:
        of: the shape of each row; first, sizes: its first template, and how many follow each other.
        total: charges in all.
        tables, widths: as for `spread`.
    """
    assert _compiled is not None
    arguments = read(of), read(first), read(sizes)
    return _grouped(tables, widths, total, lambda some, out: _compiled.spread_lists(*arguments, some, out))


def _grouped(tables: list[NDArray[Any]], widths: list[Any], length: int, fill: Any) -> list[NDArray[Any]]:
    """Columns of one type are filled together."""
    out: list[Any] = [None] * len(tables)
    for kind in dict.fromkeys(widths):
        mine = [number for number, each in enumerate(widths) if each is kind]
        made = np.empty((len(mine), length), kind)
        fill(read(np.stack([tables[number] for number in mine]), kind), made)
        for number, column in zip(mine, made, strict=True):
            out[number] = column
    return out
