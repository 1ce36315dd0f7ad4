"""Trace and span identities as 64-bit keys, so that joins between spans are NumPy sorts and searches.

Keys are mixed with a seed that is nobody else's: nobody can craft ids that collide with somebody else's, and within a
window of two million spans an accidental collision has a probability of about 10⁻⁷.
"""

from __future__ import annotations

import secrets
from typing import Any, Final, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

T = TypeVar("T", np.uint64, np.int32, np.int64, np.int16)
U64: TypeAlias = npt.NDArray[np.uint64]
Rows: TypeAlias = npt.NDArray[np.int64]
Mask: TypeAlias = npt.NDArray[np.bool_]

_SEED: Final = np.uint64(secrets.randbits(63) | 1)
"""Of this process, for keys that are not kept."""

_A: Final = np.uint64(0x9E3779B97F4A7C15)
_B: Final = np.uint64(0xBF58476D1CE4E5B9)
_C: Final = np.uint64(0x94D049BB133111EB)
MULTIPLIERS: Final = np.array([_A, _B, _C])
"""What keys are mixed with, for a kernel that makes the same ones."""


def words(column: Any, count: int) -> U64:
    """The bytes of a fixed_size_binary column without nulls as an array of shape (n, count), dtype uint64 (big endian).

    Args:
        column: fixed_size_binary(8 × count) Array or ChunkedArray.
        count: words in one value: 2 for a trace id, 1 for a span id.
    """
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if isinstance(array, pa.ChunkedArray):
        array = array.chunk(0) if array.num_chunks else pa.array([], array.type)
    size = 8 * count
    buffer = array.buffers()[1]
    if len(array) == 0 or buffer is None:
        return np.zeros((0, count), np.uint64)
    raw = np.frombuffer(buffer, dtype=">u8", count=len(array) * count, offset=array.offset * size)
    return raw.astype(np.uint64).reshape(len(array), count)


def _finish(h: U64) -> U64:
    h = (h ^ (h >> np.uint64(30))) * _B
    h = (h ^ (h >> np.uint64(27))) * _C
    return h ^ (h >> np.uint64(31))


def new_seed() -> np.uint64:
    """A seed for keys that outlive the process."""
    return np.uint64(secrets.randbits(63) | 1)


def trace_keys(trace: U64, seed: np.uint64 = _SEED) -> U64:
    """One key per trace id; ``trace`` is (n, 2) as `words` gives it."""
    with np.errstate(over="ignore"):
        return _finish(_finish(trace[:, 0] * _A + seed) + trace[:, 1])


def span_keys(traces: U64, span: U64, seed: np.uint64 = _SEED) -> U64:
    """One key per span within its trace: ``traces`` from `trace_keys`, ``span`` of shape (n,)."""
    with np.errstate(over="ignore"):
        return _finish((traces ^ seed) + _finish(span * _A + seed))


def find(keys: U64, sorted_keys: U64) -> Rows:
    """Position of each of ``keys`` in the ascending ``sorted_keys``, -1 where absent."""
    if len(sorted_keys) == 0:
        return np.full(len(keys), -1, np.int64)
    at = np.searchsorted(sorted_keys, keys)
    at[at == len(sorted_keys)] = 0
    return np.where(sorted_keys[at] == keys, at, -1).astype(np.int64)


def distinct(keys: U64) -> tuple[U64, Rows, Rows]:
    """The distinct keys ascending, the first row of each, and each row's number among them.

    Equal keys mostly stand next to each other (spans of a trace come together), so runs are sorted and not rows.
    """
    starts = np.ones(len(keys), np.bool_)
    np.not_equal(keys[1:], keys[:-1], out=starts[1:])
    heads = np.flatnonzero(starts)
    unique, first, number = np.unique(keys[heads], return_index=True, return_inverse=True)
    lengths = np.diff(heads, append=len(keys))
    return unique, heads[first], np.repeat(number.reshape(-1), lengths)


def ascending(keys: npt.NDArray[T]) -> npt.NDArray[T]:
    """The distinct keys in ascending order; for some ten thousand keys ten times as fast as hashing them."""
    in_order = np.sort(keys)
    if len(in_order) < 2:
        return in_order
    new = np.ones(len(in_order), np.bool_)
    np.not_equal(in_order[1:], in_order[:-1], out=new[1:])
    return in_order[new]


def repeated(keys: U64) -> Mask:
    """Which keys stood further ahead already."""
    in_order = np.sort(keys)
    again = np.zeros(len(keys), np.bool_)
    if (in_order[1:] == in_order[:-1]).any():
        again[:] = True
        again[np.unique(keys, return_index=True)[1]] = False
    return again


def member(keys: U64, sorted_keys: U64) -> Mask:
    """Whether each of ``keys`` stands in the ascending ``sorted_keys``."""
    return find(keys, sorted_keys) >= 0
