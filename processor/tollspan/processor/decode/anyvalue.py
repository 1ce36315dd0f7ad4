"""Attribute values: columns of undecoded ``AnyValue`` messages, read by NumPy when their type is asked for.

In: a binary array, one ``AnyValue`` in wire form a value (a tag byte, then a varint, eight bytes, or a length and that
many bytes). Out: its kind, and integers, doubles, booleans or text of whole columns at once. `classify` is the gate:
what it calls `ODD` (not in canonical form, or broken) never reaches the readers, who then need no checks of their own.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Callable
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from google.protobuf.message import DecodeError

from tollspan.processor.decode.arrow_bytes import Bytes, Mask, Offsets, Rows, layout, replace, text, without_prefix
from tollspan.processor.decode.otlp_slim import shallow

Kinds: TypeAlias = npt.NDArray[np.uint8]

EMPTY, STRING, BOOL, INT, DOUBLE, ARRAY, KVLIST, BYTES = range(8)
"""Kinds of a value; the numbers are those of the fields of ``AnyValue``, 0 = none of them is set."""
ODD: Final = 255
"""Not canonical: has to be written out again by protobuf before it can be read here."""

DEEPEST: Final = 64
"""Levels of nesting that are written as JSON; what lies deeper stands there as base64 of its wire form."""

_KIND_OF_TAG: Final[Kinds] = np.full(256, ODD, np.uint8)
for _kind, _tag in enumerate((0x0A, 0x10, 0x18, 0x21, 0x2A, 0x32, 0x3A), start=1):
    _KIND_OF_TAG[_tag] = _kind

_FRAMED: Final = np.zeros(256, np.bool_)
_FRAMED[[STRING, ARRAY, KVLIST, BYTES]] = True


def classify(raw: Any) -> Kinds:
    """The kind of each value, uint8 of length n; `ODD` where it is not exactly one field in its shortest form.

    Args:
        raw: binary array without nulls, hostile bytes allowed.
    """
    offsets, data = layout(raw)
    if offsets[-1] == offsets[0]:
        return np.zeros(len(raw), np.uint8)
    starts, sizes = offsets[:-1], np.diff(offsets)
    # `take` is twice as fast as indexing; "clip" because an empty value may stand behind the last byte.
    kinds = _KIND_OF_TAG.take(data.take(starts, mode="clip"))
    second = data.take(starts + 1, mode="clip")
    framed = _FRAMED.take(kinds)
    wrong = framed & ((second != sizes - 2) | (second > 127))
    wrong |= (kinds == BOOL) & ((sizes != 2) | (second > 1))
    wrong |= (kinds == DOUBLE) & (sizes != 9)
    long = np.flatnonzero(wrong & framed & (sizes > 129))
    if len(long):
        wrong[long] = ~_long_frames(data, starts[long], sizes[long])
    integers = np.flatnonzero(kinds == INT)
    if len(integers):
        wrong[integers] = ~_whole_varints(data, starts[integers] + 1, sizes[integers] - 1)
    kinds[wrong] = ODD
    kinds[sizes == 0] = EMPTY
    return kinds


def _long_frames(data: Bytes, starts: Offsets, sizes: Offsets) -> Mask:
    """Whether values of more than 129 bytes are a tag, the shortest length, and exactly that many bytes."""
    header = _header(sizes)
    payload = (sizes - header).astype(np.int64)
    stated = np.zeros(len(starts), np.int64)
    fine = np.ones(len(starts), np.bool_)
    for position in range(5):
        inside = position < header - 1
        byte = data[np.where(inside, starts + 1 + position, starts)].astype(np.int64)
        stated += np.where(inside, (byte & 0x7F) << (7 * position), 0)
        # Every byte of the length but its last has the high bit.
        fine &= ~inside | ((byte >= 0x80) == (position < header - 2))
    fine &= stated == payload
    return fine


def _header(sizes: Offsets) -> Offsets:
    """Bytes before the content of a canonical framed value of the given whole size: its tag and its length."""
    header = np.full(len(sizes), 2, np.int32)
    for extra, limit in enumerate((0x7F, 0x3FFF, 0x1FFFFF, 0xFFFFFFF), start=3):
        header[sizes > limit + extra - 1] = extra
    return header


def _whole_varints(data: Bytes, starts: Offsets, sizes: Offsets) -> Mask:
    """Whether ``sizes`` bytes from ``starts`` are one 64-bit varint each, and nothing else."""
    fine = (sizes >= 1) & (sizes <= 10)
    for position in range(int(min(sizes.max(initial=0), 10))):
        inside = position < sizes
        byte = data[np.where(inside, starts + position, 0)]
        fine &= ~inside | ((byte >= 0x80) == (position < sizes - 1))
        if position == 9:
            fine &= ~inside | (byte <= 1)
    return fine


def integers(raw: Any, rows: Rows) -> npt.NDArray[np.int64]:
    """Integers at ``rows``, which must be of kind `INT`: int64 of the same length."""
    offsets, data = layout(raw)
    starts, sizes = offsets[rows] + 1, offsets[rows + 1] - offsets[rows] - 1
    out = np.zeros(len(rows), np.uint64)
    for position in range(int(sizes.max(initial=0))):
        inside = position < sizes
        byte = data[np.where(inside, starts + position, 0)].astype(np.uint64)
        out |= np.where(inside, (byte & np.uint64(0x7F)) << np.uint64(7 * position), np.uint64(0))
    return out.view(np.int64)


def doubles(raw: Any, rows: Rows) -> npt.NDArray[np.float64]:
    """Doubles at ``rows``, which must be of kind `DOUBLE`: float64 of the same length."""
    offsets, data = layout(raw)
    if not len(rows):
        return np.zeros(0, np.float64)
    where = offsets[rows][:, None].astype(np.int64) + np.arange(1, 9)
    return np.ascontiguousarray(data[where]).view("<f8").reshape(-1)


def booleans(raw: Any, rows: Rows) -> Mask:
    """Booleans at ``rows``, which must be of kind `BOOL`."""
    offsets, data = layout(raw)
    return data[offsets[rows] + 1] != 0 if len(rows) else np.zeros(0, np.bool_)


def content(raw: Any, rows: Rows) -> Any:
    """What stands in the frame of values of kind `STRING`, `BYTES`, `ARRAY` or `KVLIST`, as a binary array."""
    taken = raw.take(pa.array(rows))
    return without_prefix(taken, _header(np.diff(layout(taken)[0])))


def strings(raw: Any, rows: Rows) -> Any:
    """Text at ``rows``, which must be of kind `STRING`: a string array, bad UTF-8 replaced by U+FFFD."""
    return text(content(raw, rows))


def as_text(raw: Any, kinds: Kinds) -> Any:
    """Every value as text, the way the Collector writes attribute values into a map of strings.

    ``true``/``false``; integers in decimal; doubles shortest, with an exponent below 10⁻⁶ and from 10²¹ on; bytes in
    base64; arrays and key-value lists as JSON with sorted keys (NaN and infinities in there as null); empty as ``''``.

    Args:
        raw: binary array of n canonical values.
        kinds: their kinds, from `classify`.

    Returns:
        string array of length n.
    """
    return by_kind(kinds, lambda kind, rows: kind_as_text(raw, kind, rows))


def by_kind(kinds: Kinds, write: Callable[[int, Rows], Any]) -> Any:
    """A string array from what ``write`` makes of all values of one kind: it is given the kind and their rows."""
    present = np.flatnonzero(np.bincount(kinds, minlength=8)[:8])
    parts, order = [], []
    for kind in present:
        rows = np.flatnonzero(kinds == kind)
        parts.append(write(int(kind), rows))
        order.append(rows)
    if len(parts) == 1:
        return parts[0]
    if not parts:
        return pa.array([], pa.string())
    back = np.empty(len(kinds), np.int64)
    back[np.concatenate(order)] = np.arange(len(kinds), dtype=np.int64)
    return pa.concat_arrays(parts).take(pa.array(back))


def kind_as_text(raw: Any, kind: int, rows: Rows) -> Any:
    """Values of one kind as `as_text` writes them."""
    if kind == STRING:
        return strings(raw, rows)
    if kind == INT:
        return pc.cast(pa.array(integers(raw, rows)), pa.string())
    if kind == BOOL:
        return pa.array(["false", "true"]).take(pa.array(booleans(raw, rows).astype(np.int8)))
    if kind == DOUBLE:
        return _doubles_as_text(doubles(raw, rows))
    if kind == EMPTY:
        return pa.array([""]).take(pa.array(np.zeros(len(rows), np.int8)))
    # Rare kinds, and the same few values over and over (finish reasons): a loop over the distinct ones.
    distinct = raw.take(pa.array(rows)).dictionary_encode()
    every = np.arange(len(distinct.dictionary), dtype=np.int64)
    values = content(distinct.dictionary, every).to_pylist()
    if kind == BYTES:
        written = [base64.b64encode(value).decode() for value in values]
    else:
        written = [_json(kind, value) for value in values]
    return pa.array(written, pa.string()).take(distinct.indices)


def _doubles_as_text(values: npt.NDArray[np.float64]) -> Any:
    out = pc.cast(pa.array(values), pa.string())
    size = np.abs(values)
    # Arrow agrees with ECMAScript's form but for its exponent from 10¹⁰ on, and for what is not a number.
    differ = np.flatnonzero(~(size < 1e10) & ~((size >= 1e21) & np.isfinite(values)))
    if not len(differ):
        return out
    whole = (values[differ] == np.rint(values[differ])) & (size[differ] < 2**53)
    out = replace(out, differ[whole], pc.cast(pa.array(values[differ[whole]].astype(np.int64)), pa.string()))
    return replace(out, differ[~whole], pa.array([_double(float(v)) for v in values[differ[~whole]]], pa.string()))


def _double(value: float) -> str:
    if math.isnan(value) or math.isinf(value):
        name = "NaN" if math.isnan(value) else "+Inf" if value > 0 else "-Inf"
        return f"json: unsupported value: {name}"
    return np.format_float_positional(value, unique=True, trim="-")


def _json(kind: int, frame: bytes) -> str:
    return json.dumps(_plain(kind, frame, 0), ensure_ascii=False, separators=(",", ":"), sort_keys=True)


def _plain(kind: int, frame: bytes, depth: int) -> Any:
    """A nested value as JSON types."""
    if depth >= DEEPEST:
        return base64.b64encode(frame).decode()
    try:
        if kind == ARRAY:
            return [_any(value, depth + 1) for value in _message("ArrayValue", frame).values]
        return {_utf8(pair.key): _any(pair.value, depth + 1) for pair in _message("KeyValueList", frame).values}
    except DecodeError:
        return base64.b64encode(frame).decode()


def _any(raw: bytes, depth: int) -> Any:
    value = _message("AnyValue", raw)
    field = value.WhichOneof("value")
    if field is None:
        return None
    given = getattr(value, field)
    if field == "string_value":
        return _utf8(given)
    if field == "bytes_value":
        return base64.b64encode(given).decode()
    if field == "array_value":
        return _plain(ARRAY, given, depth)
    if field == "kvlist_value":
        return _plain(KVLIST, given, depth)
    if field == "double_value":
        if not math.isfinite(given):
            return None
        return int(given) if given == int(given) and abs(given) < 1e21 else given
    return given


def _message(name: str, raw: bytes) -> Any:
    return shallow(name).FromString(raw)


def _utf8(value: bytes) -> str:
    return value.decode("utf-8", "replace")
