"""Arrow binary columns as NumPy arrays, and bytes as text.

In: arrays as ptars gives them. Out: views on their buffers without a copy, text with U+FFFD where bytes are not UTF-8,
identifiers as fixed-size binary or lowercase hex. Everything here is bounded by Arrow's own offsets.
"""

from __future__ import annotations

from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

Bytes: TypeAlias = npt.NDArray[np.uint8]
Offsets: TypeAlias = npt.NDArray[np.int32]
Rows: TypeAlias = npt.NDArray[np.int64]
Mask: TypeAlias = npt.NDArray[np.bool_]

LONGEST_NAME: Final = 1024
"""Characters of a name that are kept."""

_NO_BYTES: Final[Bytes] = np.zeros(0, np.uint8)


def layout(array: Any) -> tuple[Offsets, Bytes]:
    """Offsets (int32, length n + 1) and data of a binary or string array, both views."""
    buffers = array.buffers()
    if len(array) == 0 or buffers[1] is None:
        return np.zeros(1, np.int32), _NO_BYTES
    offsets = np.frombuffer(buffers[1], np.int32, len(array) + 1, array.offset * 4)
    return offsets, (np.frombuffer(buffers[2], np.uint8) if buffers[2] is not None else _NO_BYTES)


def from_layout(offsets: npt.NDArray[np.signedinteger[Any]], data: Bytes, kind: Any = None) -> Any:
    """The reverse of `layout`, without a copy of ``data``; ``kind`` is ``pa.binary()`` unless told.

    Text must be ASCII when ``kind`` is ``pa.string()``: nothing is checked here.
    """
    offsets = np.ascontiguousarray(offsets, np.int32)
    return pa.Array.from_buffers(
        kind or pa.binary(), len(offsets) - 1, [None, pa.py_buffer(offsets), pa.py_buffer(np.ascontiguousarray(data))]
    )


def text(array: Any) -> Any:
    """A binary array as a string array; what is not UTF-8 becomes U+FFFD, as in Python's ``errors="replace"``."""
    try:
        return array.cast(pa.string())
    except pa.ArrowInvalid:
        pass
    # Only values that hold a byte above 127 can be wrong: those alone are looked at one by one.
    offsets, data = layout(array)
    first = int(offsets[0])
    high = np.concatenate(([0], np.cumsum(data[first : offsets[-1]] >= 0x80, dtype=np.int64)))
    suspects = np.flatnonzero(np.diff(high[offsets - first]))
    repaired = [value.as_py().decode("utf-8", "replace").encode() for value in array.take(pa.array(suspects))]
    return replace(array, suspects, pa.array(repaired, pa.binary())).cast(pa.string())


def cut(strings: Any) -> Any:
    """Strings of at most `LONGEST_NAME` characters; the last of one that was longer is ``…``.

    For what names things (a model, a tenant, a scope): OTLP says it once for many spans and columns repeat it, so a
    name of megabytes would be multiplied by thousands.
    """
    long = pc.greater(pc.utf8_length(strings), LONGEST_NAME)
    if not pc.any(long).as_py():
        return strings
    shorter = pc.binary_join_element_wise(pc.utf8_slice_codeunits(strings, 0, LONGEST_NAME - 1), "…", "")
    return pc.if_else(long, shorter, strings)


def replace(array: Any, rows: Rows, values: Any) -> Any:
    """``array`` with ``values`` at ``rows``."""
    index = np.arange(len(array), dtype=np.int64)
    index[rows] = len(array) + np.arange(len(rows), dtype=np.int64)
    return pa.concat_arrays([array, values]).take(pa.array(index))


def without_prefix(array: Any, prefix: npt.NDArray[np.signedinteger[Any]]) -> Any:
    """A binary array whose value i lost its first ``prefix[i]`` bytes; no value may be shorter than that."""
    offsets, data = layout(array)
    base = int(offsets[0])
    starts = offsets[:-1].astype(np.int64) - base
    kept = np.ones(int(offsets[-1]) - base, np.bool_)
    for position in range(int(prefix.max(initial=0))):
        kept[starts[prefix > position] + position] = False
    shorter = offsets.astype(np.int64) - base
    shorter[1:] -= np.cumsum(prefix, dtype=np.int64)
    return from_layout(shorter, data[base : offsets[-1]][kept])


def fixed(array: Any, width: int) -> tuple[Any, Mask]:
    """A binary array as ``fixed_size_binary(width)`` and which values had that width; the others are zero bytes."""
    offsets, data = layout(array)
    fits = np.diff(offsets) == width
    used = data[offsets[0] : offsets[-1]]
    if not fits.all():
        lengths = np.diff(offsets)
        out = np.zeros((len(array), width), np.uint8)
        out[fits] = used[np.repeat(fits, lengths)].reshape(-1, width)
        used = out.reshape(-1)
    values = pa.FixedSizeBinaryArray.from_buffers(
        pa.binary(width), len(array), [None, pa.py_buffer(np.ascontiguousarray(used))]
    )
    return values, fits


def fixed_bytes(array: Any) -> Bytes:
    """Bytes of a fixed-size binary array without nulls, shape (n, width), a view."""
    width = array.type.byte_width
    if len(array) == 0:
        return np.zeros((0, width), np.uint8)
    return np.frombuffer(array.buffers()[1], np.uint8, len(array) * width, array.offset * width).reshape(-1, width)


def hexadecimal(array: Any, *, zero_is_empty: bool = False) -> Any:
    """Lowercase hex of a binary or fixed-size binary array, as strings.

    Args:
        array: n identifiers without nulls.
        zero_is_empty: an identifier of zero bytes only is written as ``''`` (a span without a parent).
    """
    if pa.types.is_fixed_size_binary(array.type):
        matrix = fixed_bytes(array)
        ends = np.arange(0, 2 * matrix.size + 1, max(2 * matrix.shape[1], 1))
        if zero_is_empty and not (given := _any(matrix)).all():
            matrix = matrix[given]
            ends = np.concatenate(([0], np.cumsum(np.where(given, 2 * matrix.shape[1], 0))))
        data = matrix
    else:
        offsets, data = layout(array)
        ends, data = 2 * (offsets.astype(np.int64) - offsets[0]), data[offsets[0] : offsets[-1]]
    return from_layout(ends, np.frombuffer(data.tobytes().hex().encode(), np.uint8), pa.string())


def _any(matrix: Bytes) -> Mask:
    """Which rows have a byte that is not zero."""
    if matrix.shape[1] == 8 and matrix.flags.c_contiguous:
        found: Mask = matrix.view(np.uint64)[:, 0] != 0
        return found
    return np.asarray(matrix.any(axis=1))


def row_indices(offsets: npt.NDArray[np.signedinteger[Any]], owners: Rows) -> tuple[Rows, Rows]:
    """Child rows of the given owners of a list column.

    Args:
        offsets: int, length m + 1; children of owner i are ``offsets[i]`` to ``offsets[i + 1]``.
        owners: int64, any order, repeats allowed.

    Returns:
        The children's rows, owner after owner, and new offsets of length ``len(owners) + 1``, both int64.
    """
    starts = offsets[owners].astype(np.int64)
    lengths = offsets[owners + 1].astype(np.int64) - starts
    ends = np.concatenate((np.zeros(1, np.int64), np.cumsum(lengths)))
    return np.arange(ends[-1], dtype=np.int64) + np.repeat(starts - ends[:-1], lengths), ends
