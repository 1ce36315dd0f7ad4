"""The walker: OTLP request bytes to columns of integers, one pass, compiled by numba.

In: the bytes of a batch and where each payload ends. Out: for every span its fields, and for every attribute its key's
number, its kind, and where its value stands; text stays where it is and is copied later, by `gather`, if anybody asks.

**What it reads and what it leaves.** A payload is taken only where the walker reads it exactly as protobuf would: each
known field in its own wire type, no message said in two parts, no groups, every attribute value one field in its
shortest form. Everything else (broken bytes are among it) is `ODD`: nothing of that payload is kept, and the caller
hands it to protobuf's own parser, which says what it means or that it means nothing. So the walker decides no question
of validity by itself.

**Safety.** Positions are signed 64-bit integers that never leave ``[0, end]``: a length is compared with what is left
before it is added, and lengths of 2**31 and more are odd. There is no recursion (nested values are skipped whole). All
arrays are indexed under numba's bounds checks; `_load`, `_store` and what `_comparing` makes, which move several bytes
at once, are reached only where the stretch they are in was checked. What does not fit into the given arrays ends the
walk with `FULL`, and the caller comes again with larger ones: memory is a small multiple of the input, for an attribute
has at least two bytes.

**Keys** are numbered through a hash table under a strongly universal hash (multilinear over 32-bit words; Lemire and
Kaser, "Strongly universal string hashing is fast", 2014) with keys that are drawn at random in each process, so nobody
can prepare keys that collide. A key is first compared with the one that followed last time.

Importing this module and using it costs seconds where nothing is cached yet; `fused` does it, on a thread of its own.
What else is compiled (what asks the walker's columns, at the end) stands in here too, because numba takes what is
cached for current as long as the one file that a function stands in is unchanged, whatever it calls.
"""

from __future__ import annotations

import secrets
from typing import Any, Final

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np import arrayobj

DONE, ODD, FULL = range(3)
"""How a walk ends."""

EMPTY, STRING, BOOL, INT, DOUBLE, ARRAY, KVLIST, BYTES = range(8)
"""Kinds of values, as in `anyvalue`."""
_BROKEN: Final = 255

SPANS, ATTRIBUTES, EVENTS, LINKS, RESOURCES, RESOURCE_ATTRIBUTES, SCOPES, SCOPE_ATTRIBUTES, KEYS = range(9)
BAD_TRACE, BAD_SPAN, BAD_PARENT, SEEN = range(9, 13)
ENTRIES, CURSOR = range(13, 15)
COUNTERS: Final = 15
"""Positions in ``counts``: rows written by table, spans left out by reason, spans seen, attributes of spans of which
none (or few) is like another, and the row that stood behind the one that was found last."""

(
    RESOURCE,
    SCOPE,
    KIND,
    STATUS,
    FLAGS,
    DROPPED_ATTRIBUTES,
    DROPPED_EVENTS,
    DROPPED_LINKS,
    NAME,
    NAME_SIZE,
    STATE,
    STATE_SIZE,
    MESSAGE,
    MESSAGE_SIZE,
    ATTRIBUTES_END,
    EVENTS_END,
    LINKS_END,
    AT,
    SIZE,
) = range(19)
SPAN_FIELDS: Final = 19
"""Rows of ``fields``: a column for each span."""

CODE, VALUE, VALUE_SIZE, PLACE = range(4)
ENTRY_FIELDS: Final = 4
"""Rows of a table of attributes: number of the key, the value, and (of spans' attributes) where the field begins."""

_RECENT_BITS: Final = 13
RECENT: Final = 1 << _RECENT_BITS
"""Slots in which attributes are looked for by what they look like."""

ENDS, URL, URL_SIZE, DROPPED, LABEL, LABEL_SIZE, VERSION, VERSION_SIZE = range(8)
"""Rows of ``resources`` and ``scopes``; the last four are a scope's name and version."""

_MULTIPLIERS: Final = 68
MULTIPLIERS: Final = np.frombuffer(secrets.token_bytes(8 * _MULTIPLIERS), np.uint64).copy()
"""The hash's random keys. An argument of the kernels, or they would be compiled into what is cached on disk."""
_LOW: Final = 0xFFFFFFFF
_HIGH: Final = np.uint64(0x8080808080808080)
_BLOCK: Final = 256
"""Bytes of a key that are hashed under one set of random keys; longer ones in blocks, each carrying the last's hash."""


def _jit(function: Any, forceinline: bool = False, nogil: bool = True) -> Any:
    """Compiled, with bounds checks, without the GIL; cached on disk where numba finds a folder that it can write."""
    # No runtime: nothing in here allocates, and counting references to the arguments took most of the time.
    options = {"nogil": nogil, "boundscheck": True, "_nrt": False, "forceinline": forceinline}
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:  # no folder for a cache: compiled in every process
        return numba.njit(**options)(function)


def _inlined(function: Any) -> Any:
    """The same, for what is called for every attribute."""
    return _jit(function, forceinline=True)


def _brief(function: Any) -> Any:
    """The same for work of less than a few hundred µs, with the GIL: to get it back would take longer."""
    return _jit(function, nogil=False)


@intrinsic  # type: ignore[untyped-decorator]
def _load(_: Any, data: Any, at: Any) -> Any:
    """Eight bytes at any alignment, unchecked."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array = arrayobj.make_array(signature.args[0])(context, builder, arguments[0])
        pointer = builder.gep(array.data, [arguments[1]])
        pointer = builder.bitcast(pointer, ir.IntType(64).as_pointer())
        loaded = builder.load(pointer)
        loaded.align = 1
        return loaded

    return types.uint64(data, types.int64), build


@intrinsic  # type: ignore[untyped-decorator]
def _store(_: Any, data: Any, at: Any, value: Any) -> Any:
    """Write eight bytes at any alignment, unchecked."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array = arrayobj.make_array(signature.args[0])(context, builder, arguments[0])
        pointer = builder.gep(array.data, [arguments[1]])
        pointer = builder.bitcast(pointer, ir.IntType(64).as_pointer())
        stored = builder.store(arguments[2], pointer)
        stored.align = 1
        return context.get_dummy_value()

    return types.void(data, types.int64, types.uint64), build


@intrinsic  # type: ignore[untyped-decorator]
def _expect(_: Any, data: Any, at: Any) -> Any:
    """Say that an item will be written soon; nothing is read, so ``at`` may be anywhere."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array = arrayobj.make_array(signature.args[0])(context, builder, arguments[0])
        byte, number = ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [byte, number, number, number])
        prefetch = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8")
        # To be written, into every cache, and it is data.
        how = [ir.Constant(number, value) for value in (1, 3, 1)]
        builder.call(prefetch, [builder.bitcast(builder.gep(array.data, [arguments[1]]), byte), *how])
        return context.get_dummy_value()

    return types.void(data, types.int64), build


def _comparing(size: int) -> Any:
    """A function of an array and two places: whether ``size`` bytes there are the same, unchecked."""
    wide, bits = ir.VectorType(ir.IntType(8), size), ir.IntType(size)

    @intrinsic  # type: ignore[untyped-decorator]
    def alike(_: Any, data: Any, one: Any, other: Any) -> Any:
        def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            array = arrayobj.make_array(signature.args[0])(context, builder, arguments[0])
            found = []
            for at in arguments[1:]:
                loaded = builder.load(builder.bitcast(builder.gep(array.data, [at]), wide.as_pointer()))
                loaded.align = 1
                found.append(loaded)
            differ = builder.bitcast(builder.icmp_unsigned("!=", *found), bits)
            return builder.icmp_unsigned("==", differ, ir.Constant(bits, 0))

        return types.boolean(data, types.int64, types.int64), build

    return alike


_alike_16, _alike_32 = _comparing(16), _comparing(32)


@_inlined
def word(data: Any, at: int) -> Any:
    """Eight bytes from ``at`` as one integer, little-endian."""
    if at < 0 or at > data.size - 8:
        raise IndexError("a word outside of its array")
    return _load(data, at)


@_inlined
def put(data: Any, at: int, value: Any) -> None:
    """Write eight bytes at ``at``."""
    if at < 0 or at > data.size - 8:
        raise IndexError("a word outside of its array")
    _store(data, at, value)


@_inlined
def _varint(data: Any, p: int, end: int) -> Any:
    """A varint of at most 64 bits, and the position after it, -1 where there is none."""
    value = np.uint64(0)
    for number in range(10):
        if p >= end:
            return value, -1
        byte = data[p]
        p += 1
        if number == 9 and byte > 1:
            return value, -1
        value |= np.uint64(byte & 0x7F) << np.uint64(7 * number)
        if byte < 0x80:
            return value, p
    return value, -1


@_inlined
def _length(data: Any, p: int, end: int) -> Any:
    """The length of what stands in a frame, and where it begins, -1 where it does not end before ``end``."""
    if p >= end:
        return 0, -1
    size = np.int64(data[p])
    p += 1
    if size >= 0x80:
        size &= 0x7F
        for number in range(1, 5):
            if p >= end:
                return 0, -1
            byte = np.int64(data[p])
            p += 1
            size |= (byte & 0x7F) << (7 * number)
            if byte < 0x80:
                break
        else:
            return 0, -1
    if size > 0x7FFFFFFF or size > end - p:
        return 0, -1
    return size, p


@_jit
def _tag(data: Any, p: int, end: int) -> Any:
    """A field's tag, and the position after it, -1 where it is none that protobuf takes."""
    start = p
    tag, p = _varint(data, p, end)
    if p < 0 or p - start > 5 or tag > np.uint64(0xFFFFFFFF) or tag < np.uint64(8):
        return 0, -1
    return np.int64(tag), p


@_jit
def _skip(data: Any, p: int, end: int, tag: int) -> Any:
    """The position after an unknown field's content, -1 for broken ones and for groups."""
    wire = tag & 7
    if wire == 0:
        _, p = _varint(data, p, end)
        return p
    if wire == 2:
        size, p = _length(data, p, end)
        return p + size if p >= 0 else -1
    size = 8 if wire == 1 else 4 if wire == 5 else -1
    return p + size if 0 < size <= end - p else -1


@_inlined
def _value(data: Any, p: int, end: int) -> Any:
    """An ``AnyValue``: its kind, `_BROKEN` where it is not one field in its shortest form, and its content.

    The content is the integer, the bits of the double, 0 or 1, or the position where a framed value's bytes begin.
    """
    size = end - p
    if size == 0:
        return EMPTY, p
    tag = data[p]
    if tag == 0x0A or tag == 0x2A or tag == 0x32 or tag == 0x3A:
        length, at = _length(data, p + 1, end)
        if at < 0 or length != end - at or (at - p > 2 and data[at - 1] == 0):
            return _BROKEN, 0
        return np.int64(tag) >> 3, at
    if tag == 0x18:
        number, at = _varint(data, p + 1, end)
        return (INT, np.int64(number)) if at == end else (_BROKEN, 0)
    if tag == 0x21:
        return (DOUBLE, np.int64(word(data, p + 1))) if size == 9 else (_BROKEN, 0)
    if tag == 0x10:
        return (BOOL, np.int64(data[p + 1])) if size == 2 and data[p + 1] <= 1 else (_BROKEN, 0)
    return _BROKEN, 0


@_inlined
def _pair(data: Any, p: int, end: int) -> Any:
    """A ``KeyValue``: position and size of its key, then of its value; the first is -1 where it is odd."""
    key, key_size, value, value_size = p, 0, -1, 0
    while p < end:
        tag = data[p]
        if tag == 0x0A:
            key_size, key = _length(data, p + 1, end)
            if key < 0:
                return -1, 0, 0, 0
            p = key + key_size
        elif tag == 0x12:
            if value >= 0:
                return -1, 0, 0, 0
            value_size, value = _length(data, p + 1, end)
            if value < 0:
                return -1, 0, 0, 0
            p = value + value_size
        else:
            number, p = _tag(data, p, end)
            if p < 0 or number >> 3 <= 2:
                return -1, 0, 0, 0
            p = _skip(data, p, end, number)
            if p < 0:
                return -1, 0, 0, 0
    return key, key_size, value if value >= 0 else end, value_size


@_inlined
def same(data: Any, one: int, other: int, size: int) -> Any:
    """Whether two stretches of ``size`` bytes are equal; eight bytes after each must exist."""
    while size >= 8:
        if word(data, one) != word(data, other):
            return False
        one, other, size = one + 8, other + 8, size - 8
    if size == 0:
        return True
    return (word(data, one) ^ word(data, other)) << np.uint64(64 - 8 * size) == 0


@_inlined
def _equal(data: Any, one: int, other: int, size: int) -> Any:
    """Whether two stretches of ``size`` >= 8 bytes are equal."""
    if size < 8 or one < 0 or other < 0 or one > data.size - size or other > data.size - size:
        raise IndexError("a stretch outside of its array")
    if size < 32:
        if size < 16:
            last = size - 8
            return _load(data, one) == _load(data, other) and _load(data, one + last) == _load(data, other + last)
        last = size - 16
        return _alike_16(data, one, other) and _alike_16(data, one + last, other + last)
    last = size - 32
    at = np.int64(0)
    while at < last:
        if not _alike_32(data, one + at, other + at):
            return False
        at += 32
    return _alike_32(data, one + last, other + last)


@_jit
def hashed(data: Any, at: int, size: int, multipliers: Any) -> Any:
    """A hash below 2**32 of ``size`` bytes; eight bytes after them must exist."""
    low = np.uint64(0xFFFFFFFF)
    total = multipliers[0] + multipliers[1] * np.uint64(size)
    place = 2
    while size > 0:
        if place > _BLOCK // 4:
            total = multipliers[0] + multipliers[1] * (total >> np.uint64(32))
            place = 2
        bits = word(data, at)
        if size < 8:
            bits &= (np.uint64(1) << np.uint64(8 * size)) - np.uint64(1)
        total += multipliers[place] * (bits & low) + multipliers[place + 1] * (bits >> np.uint64(32))
        at, size, place = at + 8, size - 8, place + 2
    return np.int64(total >> np.uint64(32))


@_jit
def number_of(data: Any, at: int, size: int, slots: Any, known: Any, count: int, multipliers: Any) -> Any:
    """The number of a text among those known; ``count`` when it is new and there is room for it, then it is known.

    Args:
        slots: int32, a power of two of them, 0 = free, else a number + 1; more than ``known`` has columns.
        known: int32 (2, k), positions and sizes of the first ``count`` texts.

    Returns:
        -1 when it is new and there is no room.
    """
    mask = slots.size - 1
    slot = hashed(data, at, size, multipliers) & mask
    while slots[slot] != 0:
        number = np.int64(slots[slot]) - 1
        if known[1, number] == size and same(data, np.int64(known[0, number]), at, size):
            return number
        slot = (slot + 1) & mask
    if count >= known.shape[1]:
        return -1
    slots[slot] = count + 1
    known[0, count], known[1, count] = at, size
    return count


@_inlined
def _attribute(
    data: Any,
    p: int,
    end: int,
    store: bool,
    before: int,
    rows: int,
    table: Any,
    kinds: Any,
    contents: Any,
    counts: Any,
    slots: Any,
    known: Any,
    follow: Any,
    multipliers: Any,
) -> Any:
    """Read a ``KeyValue`` into column ``counts[rows]`` of a table: the number of its key, or -1 (odd) or -2 (full).

    ``before`` is the key of the attribute before, -1 for an owner's first.
    """
    key, key_size, value, value_size = _pair(data, p, end)
    if key < 0:
        return -1
    kind, content = _value(data, value, value + value_size)
    if kind == _BROKEN:
        return -1
    row = counts[rows]
    if not store:
        counts[rows] = row + 1
        return 0
    if row >= kinds.size:
        return -2
    code = np.int64(follow[before + 1])
    if code < 0 or known[1, code] != key_size or not same(data, np.int64(known[0, code]), key, key_size):
        count = counts[KEYS]
        code = number_of(data, key, key_size, slots, known, count, multipliers)
        if code < 0:
            return -2
        if code == count:
            counts[KEYS] = count + 1
        follow[before + 1] = code
    table[CODE, row] = code
    table[VALUE, row], table[VALUE_SIZE, row] = value, value_size
    kinds[row], contents[row] = kind, content
    counts[rows] = row + 1
    return code


@_inlined
def _looks_like(data: Any, place: int, whole: int, multipliers: Any) -> Any:
    """A hash of a field of ``whole`` >= 8 bytes at ``place`` by its size, and its middle and last bytes."""
    if place < 0 or whole < 8 or whole > data.size - place:
        raise IndexError("a field outside of its array")
    middle, last = _load(data, place + (whole >> 1) - 4), _load(data, place + whole - 8)
    return np.uint64(whole) * multipliers[0] + middle * multipliers[1] + last * multipliers[2]


@_inlined
def _repeats(data: Any, table: Any, entry: int, place: int, whole: int) -> Any:
    """Whether the field of ``whole`` >= 8 bytes at ``place`` has the bytes of one that was read before."""
    other = np.int64(table[PLACE, entry])
    return other < place and _equal(data, other, place, whole)


@_inlined
def _attributes(
    data: Any,
    place: int,
    end: int,
    before: Any,
    rows: Any,
    table: Any,
    kinds: Any,
    contents: Any,
    recent: Any,
    counts: Any,
    slots: Any,
    known: Any,
    follow: Any,
    multipliers: Any,
) -> Any:
    """Read the attributes of a span that stand behind each other from ``place`` on, one at least.

    Spans repeat what others said. So an attribute is first compared with the one that stood behind the one before it
    the last time, and then with one that looks like it; those of the same bytes have one number, and every other one is
    read. In ``rows``, a number stands inverted where it was given first: such an attribute may be like no other, and to
    look at it again would be in vain.

    Returns:
        The position after them, -1 (odd) or -2 (full); and the key of the last.
    """
    at, cursor = np.int64(counts[ATTRIBUTES]), np.int64(counts[CURSOR])
    while True:
        if at >= rows.size:
            return np.int64(-2), before
        size, p = _length(data, place + 1, end)
        if p < 0:
            return np.int64(-1), before
        after = p + size
        whole = after - place
        entry = np.int64(-1)
        if whole >= 8:
            if cursor < at:
                entry = np.int64(rows[cursor])
                if entry >= 0 and not _repeats(data, table, entry, place, whole):
                    entry = np.int64(-1)
            cursor += 1
            if entry < 0:
                looks = _looks_like(data, place, whole, multipliers)
                slot = looks >> np.uint64(64 - _RECENT_BITS)
                lately = recent[slot]
                recent[slot] = (looks >> np.uint64(32) << np.uint64(32)) | np.uint64(at)
                seen = np.int64(lately & np.uint64(_LOW))
                if lately >> np.uint64(32) == looks >> np.uint64(32) and seen < at:
                    entry = np.int64(rows[seen])
                    entry = entry if entry >= 0 else ~entry
                    if _repeats(data, table, entry, place, whole):
                        cursor = seen + 1
                    else:
                        entry = np.int64(-1)
        if entry >= 0:
            before = np.int64(table[CODE, entry])
            rows[at] = entry
        else:
            entry = np.int64(counts[ENTRIES])
            code = _attribute(
                data,
                p,
                after,
                True,
                before,
                ENTRIES,
                table,
                kinds,
                contents,
                counts,
                slots,
                known,
                follow,
                multipliers,
            )
            if code < 0:
                return np.int64(code), before
            before = np.int64(code)
            table[PLACE, entry] = place
            rows[at] = ~entry
        at += 1
        place = after
        if place >= end or data[place] != 0x4A:
            break
    counts[ATTRIBUTES], counts[CURSOR] = at, cursor
    return place, before


@_jit
def _upright(rows: Any, count: int) -> None:
    """Turn the numbers that stand inverted in the first ``count`` rows."""
    for row in range(count):
        rows[row] ^= rows[row] >> 31


@_inlined
def _ordinary(data: Any, place: int, end: int) -> Any:
    """The position after an attribute of a span, field and all, that is short and a text or a small number; -1 for
    every other one."""
    if place < 0 or place > data.size - 8:
        return np.int64(-1)
    bits = _load(data, place)
    if bits & np.uint64(0x80FF80FF) != np.uint64(0x000A004A):  # a field, its length, a key, its length
        return np.int64(-1)
    after = place + 2 + np.int64((bits >> np.uint64(8)) & np.uint64(0x7F))
    value = place + 4 + np.int64((bits >> np.uint64(24)) & np.uint64(0x7F))
    if after > end or value > after - 4 or value > data.size - 8:
        return np.int64(-1)
    bits = _load(data, value)
    size = np.int64((bits >> np.uint64(8)) & np.uint64(0xFF))
    if bits & np.uint64(0xFF) != np.uint64(0x12) or value + 2 + size != after:
        return np.int64(-1)
    tag, rest = (bits >> np.uint64(16)) & np.uint64(0xFF), bits >> np.uint64(24)
    if tag == np.uint64(0x0A) and rest & np.uint64(0xFF) == np.uint64(size - 2):
        return after
    if tag == np.uint64(0x18) and size <= 6:
        # The first byte without the uppermost bit is the last.
        last = np.uint64(8 * (size - 2))
        if (rest >> last) & np.uint64(0x80) == 0 and ~rest & (_HIGH & ((np.uint64(1) << last) - np.uint64(1))) == 0:
            return after
    return np.int64(-1)


@_jit
def _event_or_link(data: Any, p: int, end: int, link: bool) -> Any:
    """Whether an ``Event`` or a ``Link`` is one that protobuf takes and reads as it stands."""
    while p < end:
        tag, p = _tag(data, p, end)
        if p < 0:
            return False
        field, wire = tag >> 3, tag & 7
        if link:
            expected = 2 if field <= 4 else 0 if field == 5 else 5 if field == 6 else wire
        else:
            expected = 1 if field == 1 else 2 if field <= 3 else 0 if field == 4 else wire
        if wire != expected:
            return False
        if field == (4 if link else 3):
            size, p = _length(data, p, end)
            if p < 0:
                return False
            key, _, value, value_size = _pair(data, p, p + size)
            if key < 0 or _value(data, value, value + value_size)[0] == _BROKEN:
                return False
            p += size
        else:
            p = _skip(data, p, end, tag)
            if p < 0:
                return False
    return True


@_jit
def _span(
    data: Any,
    p: int,
    end: int,
    resource: int,
    scope: int,
    store: bool,
    deep: bool,
    counts: Any,
    traces: Any,
    ids: Any,
    times: Any,
    fields: Any,
    rows: Any,
    attributes: Any,
    kinds: Any,
    contents: Any,
    recent: Any,
    events: Any,
    links: Any,
    slots: Any,
    known: Any,
    follow: Any,
    multipliers: Any,
) -> Any:
    """Read a ``Span``; one with an impossible identifier is counted and leaves nothing."""
    row = counts[SPANS]
    first, first_event, first_link, first_entry = counts[ATTRIBUTES], counts[EVENTS], counts[LINKS], counts[ENTRIES]
    if store:
        if row >= ids.shape[1]:
            return FULL
        fields[AT, row], fields[SIZE, row] = p, end - p
        fields[RESOURCE, row], fields[SCOPE, row] = resource, scope
        for number in range(KIND, ATTRIBUTES_END):
            fields[number, row] = 0
        times[0, row] = times[1, row] = 0
    trace, trace_size, span, span_size, parent, parent_size = p, 0, p, 0, p, 0
    told_status = False
    before = -1
    while p < end:
        tag = np.int64(data[p])
        p += 1
        if tag == 0x4A:
            if store:
                p, before = _attributes(
                    data,
                    p - 1,
                    end,
                    before,
                    rows,
                    attributes,
                    kinds,
                    contents,
                    recent,
                    counts,
                    slots,
                    known,
                    follow,
                    multipliers,
                )
                if p < 0:
                    return ODD if p == -1 else FULL
                continue
            counts[ATTRIBUTES] += 1
            after = _ordinary(data, p - 1, end)
            if after >= 0:
                p = after
                continue
            size, p = _length(data, p, end)
            if p < 0:
                return ODD
            key, _, place, size_ = _pair(data, p, p + size)
            if key < 0 or _value(data, place, place + size_)[0] == _BROKEN:
                return ODD
            p += size
            continue
        if tag >= 0x80:
            tag, p = _tag(data, p - 1, end)
            if p < 0:
                return ODD
        if tag < 8:
            return ODD
        field, wire = tag >> 3, tag & 7
        if wire == 2:
            size, at = _length(data, p, end)
            if at < 0:
                return ODD
            p = at + size
            if field == 1:
                trace, trace_size = at, size
            elif field == 2:
                span, span_size = at, size
            elif field == 4:
                parent, parent_size = at, size
            elif field == 3:
                if store:
                    fields[STATE, row], fields[STATE_SIZE, row] = at, size
            elif field == 5:
                if store:
                    fields[NAME, row], fields[NAME_SIZE, row] = at, size
            elif field == 11 or field == 13:
                if deep and not _event_or_link(data, at, p, field == 13):
                    return ODD
                which = EVENTS if field == 11 else LINKS
                place = counts[which]
                counts[which] = place + 1
                if store:
                    refs = events if field == 11 else links
                    if place >= refs.shape[1]:
                        return FULL
                    refs[0, place], refs[1, place] = at, size
            elif field == 15:
                if told_status:
                    return ODD
                told_status = True
                while at < p:
                    tag, at = _tag(data, at, p)
                    if at < 0:
                        return ODD
                    if tag == 0x12:
                        size, at = _length(data, at, p)
                        if at < 0:
                            return ODD
                        if store:
                            fields[MESSAGE, row], fields[MESSAGE_SIZE, row] = at, size
                        at += size
                    elif tag == 0x18:
                        value, at = _varint(data, at, p)
                        if at < 0:
                            return ODD
                        if store:
                            fields[STATUS, row] = np.int32(value & np.uint64(0xFFFFFFFF))
                    elif tag >> 3 == 2 or tag >> 3 == 3:
                        return ODD
                    else:
                        at = _skip(data, at, p, tag)
                        if at < 0:
                            return ODD
            elif field <= 16:
                return ODD  # a number where this has a frame
        elif wire == 1:
            if end - p < 8:
                return ODD
            if field == 7 or field == 8:
                if store:
                    times[field - 7, row] = word(data, p)
            elif field <= 16:
                return ODD
            p += 8
        elif wire == 0:
            value, p = _varint(data, p, end)
            if p < 0:
                return ODD
            if field == 6 or field == 10 or field == 12 or field == 14:
                if store:
                    place = KIND if field == 6 else DROPPED_ATTRIBUTES + (field - 10) // 2
                    fields[place, row] = np.int32(value & np.uint64(0xFFFFFFFF))
            elif field <= 16:
                return ODD
        elif wire == 5:
            if end - p < 4:
                return ODD
            if field == 16:
                if store:
                    value = np.uint64(0)
                    for number in range(4):
                        value |= np.uint64(data[p + number]) << np.uint64(8 * number)
                    fields[FLAGS, row] = np.int32(value)
            elif field <= 16:
                return ODD
            p += 4
        else:
            return ODD
    counts[SEEN] += 1
    wrong = 0
    high = low = own = above = np.uint64(0)
    if trace_size == 16:
        high, low = word(data, trace), word(data, trace + 8)
    if span_size == 8:
        own = word(data, span)
    if parent_size == 8:
        above = word(data, parent)
    if high | low == 0:
        wrong = BAD_TRACE
    elif own == 0:
        wrong = BAD_SPAN
    elif parent_size != 8 and parent_size != 0:
        wrong = BAD_PARENT
    if wrong:
        counts[wrong] += 1
        if store:
            counts[ATTRIBUTES], counts[EVENTS], counts[LINKS] = first, first_event, first_link
            counts[ENTRIES] = first_entry
        return DONE
    if store:
        traces[row, 0], traces[row, 1], ids[0, row], ids[1, row] = high, low, own, above
        fields[ATTRIBUTES_END, row] = counts[ATTRIBUTES]
        fields[EVENTS_END, row] = counts[EVENTS]
        fields[LINKS_END, row] = counts[LINKS]
    counts[SPANS] = row + 1
    return DONE


@_jit
def _origin(
    data: Any,
    p: int,
    end: int,
    row: int,
    scope: bool,
    store: bool,
    counts: Any,
    table: Any,
    attributes: Any,
    kinds: Any,
    contents: Any,
    slots: Any,
    known: Any,
    follow: Any,
    multipliers: Any,
) -> Any:
    """Read a ``Resource`` or an ``InstrumentationScope``."""
    shift = 2 if scope else 0
    before = -1
    while p < end:
        tag, p = _tag(data, p, end)
        if p < 0:
            return ODD
        field, wire = tag >> 3, tag & 7
        if field == 1 + shift and wire == 2:
            size, p = _length(data, p, end)
            if p < 0:
                return ODD
            before = _attribute(
                data,
                p,
                p + size,
                store,
                before,
                SCOPE_ATTRIBUTES if scope else RESOURCE_ATTRIBUTES,
                attributes,
                kinds,
                contents,
                counts,
                slots,
                known,
                follow,
                multipliers,
            )
            if before < 0:
                return ODD if before == -1 else FULL
            p += size
        elif field == 2 + shift and wire == 0:
            value, p = _varint(data, p, end)
            if p < 0:
                return ODD
            if store:
                table[DROPPED, row] = np.int32(value & np.uint64(0xFFFFFFFF))
        elif scope and field <= 2 and wire == 2:
            size, p = _length(data, p, end)
            if p < 0:
                return ODD
            if store:
                which = LABEL if field == 1 else VERSION
                table[which, row], table[which + 1, row] = p, size
            p += size
        elif field <= 2 + shift:
            return ODD
        else:
            p = _skip(data, p, end, tag)
            if p < 0:
                return ODD
    return DONE


@_jit
def _payload(
    data: Any,
    p: int,
    end: int,
    store: bool,
    deep: bool,
    counts: Any,
    traces: Any,
    ids: Any,
    times: Any,
    fields: Any,
    rows: Any,
    attributes: Any,
    kinds: Any,
    contents: Any,
    recent: Any,
    events: Any,
    links: Any,
    resources: Any,
    resource_attributes: Any,
    resource_kinds: Any,
    resource_contents: Any,
    scopes: Any,
    scope_attributes: Any,
    scope_kinds: Any,
    scope_contents: Any,
    slots: Any,
    known: Any,
    follow: Any,
    multipliers: Any,
) -> Any:
    """Read an ``ExportTraceServiceRequest``."""
    while p < end:
        tag, p = _tag(data, p, end)
        if p < 0:
            return ODD
        if tag != 0x0A:
            if tag >> 3 == 1:
                return ODD
            p = _skip(data, p, end, tag)
            if p < 0:
                return ODD
            continue
        size, p = _length(data, p, end)
        if p < 0:
            return ODD
        after = p + size
        resource = counts[RESOURCES]
        if store:
            if resource >= resources.shape[1]:
                return FULL
            for number in range(8):
                resources[number, resource] = 0
        counts[RESOURCES] = resource + 1
        told = False
        while p < after:
            tag, p = _tag(data, p, after)
            if p < 0:
                return ODD
            if tag >> 3 > 3:
                p = _skip(data, p, after, tag)
                if p < 0:
                    return ODD
                continue
            if tag & 7 != 2:
                return ODD
            size, p = _length(data, p, after)
            if p < 0:
                return ODD
            inner = p + size
            if tag >> 3 == 1:
                if told:
                    return ODD
                told = True
                ended = _origin(
                    data,
                    p,
                    inner,
                    resource,
                    False,
                    store,
                    counts,
                    resources,
                    resource_attributes,
                    resource_kinds,
                    resource_contents,
                    slots,
                    known,
                    follow,
                    multipliers,
                )
                if ended != DONE:
                    return ended
                p = inner
                continue
            if tag >> 3 == 3:
                if store:
                    resources[URL, resource], resources[URL_SIZE, resource] = p, size
                p = inner
                continue
            scope = counts[SCOPES]
            if store:
                if scope >= scopes.shape[1]:
                    return FULL
                for number in range(8):
                    scopes[number, scope] = 0
            counts[SCOPES] = scope + 1
            told_scope = False
            while p < inner:
                tag, p = _tag(data, p, inner)
                if p < 0:
                    return ODD
                if tag >> 3 > 3:
                    p = _skip(data, p, inner, tag)
                    if p < 0:
                        return ODD
                    continue
                if tag & 7 != 2:
                    return ODD
                size, p = _length(data, p, inner)
                if p < 0:
                    return ODD
                if tag >> 3 == 2:
                    ended = _span(
                        data,
                        p,
                        p + size,
                        resource,
                        scope,
                        store,
                        deep,
                        counts,
                        traces,
                        ids,
                        times,
                        fields,
                        rows,
                        attributes,
                        kinds,
                        contents,
                        recent,
                        events,
                        links,
                        slots,
                        known,
                        follow,
                        multipliers,
                    )
                    if ended != DONE:
                        return ended
                elif tag >> 3 == 1:
                    if told_scope:
                        return ODD
                    told_scope = True
                    ended = _origin(
                        data,
                        p,
                        p + size,
                        scope,
                        True,
                        store,
                        counts,
                        scopes,
                        scope_attributes,
                        scope_kinds,
                        scope_contents,
                        slots,
                        known,
                        follow,
                        multipliers,
                    )
                    if ended != DONE:
                        return ended
                elif store:
                    scopes[URL, scope], scopes[URL_SIZE, scope] = p, size
                p += size
            if store:
                scopes[ENDS, scope] = counts[SCOPE_ATTRIBUTES]
        if store:
            resources[ENDS, resource] = counts[RESOURCE_ATTRIBUTES]
    return DONE


@_jit
def walk(
    data: Any,
    ends: Any,
    odd: Any,
    store: bool,
    deep: bool,
    counts: Any,
    traces: Any,
    ids: Any,
    times: Any,
    fields: Any,
    rows: Any,
    attributes: Any,
    kinds: Any,
    contents: Any,
    recent: Any,
    events: Any,
    links: Any,
    resources: Any,
    resource_attributes: Any,
    resource_kinds: Any,
    resource_contents: Any,
    scopes: Any,
    scope_attributes: Any,
    scope_kinds: Any,
    scope_contents: Any,
    slots: Any,
    known: Any,
    follow: Any,
    multipliers: Any,
) -> Any:
    """Read payloads.

    Args:
        data: uint8, the payloads one after the other; with ``store``, eight more bytes.
        ends: int64, where each payload ends.
        odd: bool, one for each payload: set where it is, and then nothing of it is in the arrays but its keys.
        store: write into the arrays; else only ``counts`` and ``odd`` are written, and the others may be empty.
        deep: look into events and links, too.
        counts: int64 (2, `COUNTERS`), zeros; the second row is for the walker's own use. Without ``store`` the rows
            counted are those for which there has to be room.
        traces, ids: uint64 (n, 2) and (2, n): trace ids; span ids and parents; as they stand in memory.
        times: uint64 (2, n): start and end, ns.
        fields: int32 (`SPAN_FIELDS`, n).
        rows: int32, m: for each attribute of a span the number of one with the same bytes, or of itself.
        attributes, kinds, contents: int32 (`ENTRY_FIELDS`, e), uint8 e, int64 e (see `_value`): the attributes that are
            numbered so; those of resources and scopes are all here.
        recent: uint64, `RECENT`, zeros: the upper half of what an attribute looks like, and the row where it stood.
        events, links: int32 (2, e): position and size.
        resources, scopes: int32 (8, r).
        slots, known, follow: the table of keys (`number_of`), and the key that follows each; -1 = none yet.
        multipliers: `MULTIPLIERS`.

    Returns:
        `DONE`; or `FULL`, and then the arrays are too small.
    """
    start = np.int64(0)
    now = counts[0]
    for payload in range(ends.size):
        end = ends[payload]
        for number in range(COUNTERS):
            counts[1, number] = counts[0, number]
        ended = _payload(
            data,
            start,
            end,
            store,
            deep,
            now,
            traces,
            ids,
            times,
            fields,
            rows,
            attributes,
            kinds,
            contents,
            recent,
            events,
            links,
            resources,
            resource_attributes,
            resource_kinds,
            resource_contents,
            scopes,
            scope_attributes,
            scope_kinds,
            scope_contents,
            slots,
            known,
            follow,
            multipliers,
        )
        if ended == FULL:
            return FULL
        odd[payload] = ended == ODD
        if ended == ODD:
            # What is only counted says how much room is needed, also for what is then taken back.
            for number in range(SPANS if store else BAD_TRACE, COUNTERS):
                if number != KEYS:
                    counts[0, number] = counts[1, number]
        start = end
    if store:
        _upright(rows, now[ATTRIBUTES])
    return DONE


@_jit
def examine(
    data: Any,
    ends: Any,
    odd: Any,
    counts: Any,
    words: Any,
    integers: Any,
    codes: Any,
    kinds: Any,
    contents: Any,
    recent: Any,
    multipliers: Any,
) -> Any:
    """`walk` that writes nothing but ``counts`` and ``odd``, and looks into events and links."""
    return walk(
        data,
        ends,
        odd,
        False,
        True,
        counts,
        words,
        words,
        words,
        integers,
        codes,
        integers,
        kinds,
        contents,
        recent,
        integers,
        integers,
        integers,
        integers,
        kinds,
        contents,
        integers,
        integers,
        kinds,
        contents,
        codes,
        integers,
        codes,
        multipliers,
    )


examine_brief = _brief(examine.py_func)


@_jit
def walk_spans(
    data: Any,
    offsets: Any,
    resource: Any,
    scope: Any,
    counts: Any,
    traces: Any,
    ids: Any,
    times: Any,
    fields: Any,
    rows: Any,
    attributes: Any,
    kinds: Any,
    contents: Any,
    recent: Any,
    events: Any,
    links: Any,
    slots: Any,
    known: Any,
    follow: Any,
    multipliers: Any,
) -> Any:
    """Read spans alone; as `walk`, with where each span begins (and the last ends), its resource and its scope."""
    now = counts[0]
    for row in range(offsets.size - 1):
        ended = _span(
            data,
            offsets[row],
            offsets[row + 1],
            np.int64(resource[row]),
            np.int64(scope[row]),
            True,
            False,
            now,
            traces,
            ids,
            times,
            fields,
            rows,
            attributes,
            kinds,
            contents,
            recent,
            events,
            links,
            slots,
            known,
            follow,
            multipliers,
        )
        if ended != DONE:
            return ended
    _upright(rows, now[ATTRIBUTES])
    return DONE


@_jit
def gather(data: Any, starts: Any, sizes: Any, offsets: Any, out: Any) -> Any:
    """Copy stretches of bytes behind each other.

    Args:
        data: uint8; eight bytes after each stretch must exist.
        starts, sizes: int64, length n.
        offsets: int32, length n + 1, is written: where each begins in ``out``.
        out: uint8, of their sizes' sum and eight more.

    Returns:
        0 when all bytes are ASCII.
    """
    at = np.int64(0)
    high = np.uint64(0)
    offsets[0] = 0
    for number in range(starts.size):
        start, left = starts[number], sizes[number]
        end = at + left
        while left > 0:
            bits = word(data, start)
            put(out, at, bits)
            if left < 8:
                bits <<= np.uint64(64 - 8 * left)
            high |= bits
            start, at, left = start + 8, at + 8, left - 8
        at = end
        offsets[number + 1] = at
    return 1 if high & np.uint64(0x8080808080808080) else 0


@_inlined
def _moved(data: Any, start: int, end: int, out: Any, at: int) -> Any:
    """Copy bytes, as `gather` does; the position behind them."""
    after = at + end - start
    while start < end:
        put(out, at, word(data, start))
        start, at = start + 8, at + 8
    return after


@_jit
def messages(data: Any, starts: Any, sizes: Any, offsets: Any, out: Any) -> Any:
    """Copy spans behind each other, without their trace states.

    Args:
        data, starts, sizes, offsets, out: as of `gather`; each stretch is a span that `walk` has read.

    Returns:
        False where one holds what OTLP does not name, or an attribute that is written in another way than usual.
    """
    at = np.int64(0)
    offsets[0] = 0
    for number in range(starts.size):
        p = starts[number]
        end = p + sizes[number]
        run = p
        while p < end:
            before = p
            tag, p = _tag(data, p, end)
            field = tag >> 3
            if p < 0 or field > 16:
                return False
            if tag & 7 != 2:
                p = _skip(data, p, end, tag)
                if p < 0:
                    return False
                continue
            size, p = _length(data, p, end)
            if p < 0:
                return False
            inside, p = p, p + size
            if field == 9:
                # A key and a value, and nothing else.
                for own in (0x0A, 0x12):
                    if inside >= p or data[inside] != own:
                        return False
                    size, inside = _length(data, inside + 1, p)
                    if inside < 0:
                        return False
                    inside += size
                if inside != p:
                    return False
            elif field == 15:
                while inside < p:
                    own, inside = _tag(data, inside, p)
                    if inside < 0 or own >> 3 > 3:
                        return False
                    inside = _skip(data, inside, p, own)
                    if inside < 0:
                        return False
            elif field == 3:
                at = _moved(data, run, before, out, at)
                run = p
        at = _moved(data, run, end, out, at)
        offsets[number + 1] = at
    return True


@_jit
def texts_room(rows: Any, table: Any, kinds: Any, contents: Any, ends: Any) -> Any:
    """Bytes that `texts` writes at the most; -1 where a text ends before it begins, which none does that was walked.

    Args:
        rows, table, kinds, contents, ends: as for `texts`.
    """
    total = np.int64(ends[ends.size - 1])
    for row in range(rows.size):
        entry = rows[row]
        kind = kinds[entry]
        if kind == STRING:
            size = np.int64(table[VALUE, entry]) + np.int64(table[VALUE_SIZE, entry]) - contents[entry]
            if size < 0:
                return -1
            total += size
        elif kind == INT:
            total += 20
        elif kind == BOOL:
            total += 5
    return total


@_jit
def texts(
    data: Any, rows: Any, table: Any, kinds: Any, contents: Any, ends: Any, others: Any, offsets: Any, out: Any
) -> Any:
    """Write values of attributes as text: strings as they are, integers and booleans as JSON has them.

    Args:
        data: uint8; eight bytes after each value must exist.
        rows: int32, m: the number of each attribute.
        table, kinds, contents: int32 (`ENTRY_FIELDS`, e), uint8 and int64 of the attributes that are numbered.
        ends, others: int32 of k + 1 and uint8: the texts of the k values of other kinds that are not empty, behind each
            other; eight bytes after them must exist.
        offsets: int32, length m + 1, is written: where each text begins in ``out``.
        out: uint8, of `texts_room` and eight more.

    Returns:
        0 when all bytes of strings are ASCII.
    """
    at = np.int64(0)
    high = np.uint64(0)
    other = np.int64(0)
    offsets[0] = 0
    for row in range(rows.size):
        entry = rows[row]
        kind = kinds[entry]
        if kind == STRING:
            start = contents[entry]
            left = np.int64(table[VALUE, entry]) + np.int64(table[VALUE_SIZE, entry]) - start
            end = at + left
            while left > 0:
                bits = word(data, start)
                put(out, at, bits)
                if left < 8:
                    bits <<= np.uint64(64 - 8 * left)
                high |= bits
                start, at, left = start + 8, at + 8, left - 8
            at = end
        elif kind == INT:
            value = contents[entry]
            rest = np.uint64(value)
            if value < 0:
                out[at] = 45
                at += 1
                rest = np.uint64(0) - rest
            digits, above = 1, np.uint64(10)
            while digits < 20 and rest >= above:
                digits += 1
                if digits < 20:
                    above *= np.uint64(10)
            for place in range(at + digits - 1, at - 1, -1):
                tenth = rest // np.uint64(10)
                out[place] = np.uint8(np.uint64(48) + rest - tenth * np.uint64(10))
                rest = tenth
            at += digits
        elif kind == BOOL:
            if contents[entry] != 0:
                put(out, at, np.uint64(0x65757274))  # true
                at += 4
            else:
                put(out, at, np.uint64(0x65736C6166))  # false
                at += 5
        elif kind != EMPTY:
            start = np.int64(ends[other])
            end = at + np.int64(ends[other + 1]) - start
            other += 1
            while at < end:
                put(out, at, word(others, start))
                start, at = start + 8, at + 8
            at = end
        offsets[row + 1] = at
    return 1 if high & np.uint64(0x8080808080808080) else 0


@_inlined
def _placed(table: Any, kinds: Any, place: Any, where: Any) -> None:
    """Write for each of the numbered attributes the place of its key, -1 where it is not wanted or has no value."""
    for entry in range(kinds.size):
        where[entry] = place[table[CODE, entry]] if kinds[entry] != EMPTY else -1


@_jit
def by_key(rows: Any, table: Any, kinds: Any, place: Any, where: Any, starts: Any, out: Any) -> None:
    """Rows of attributes by key, those without a value left out.

    Args:
        rows, table, kinds: int32, int32 (`ENTRY_FIELDS`, e) and uint8 e, as of `walk`.
        place: int32, for each key its place among the wanted ones, -1 = not wanted.
        where: int32, e, for the kernel's own use.
        starts: int64, one more than there are places, zeros; is written: where the rows of each place begin.
        out: int64, room for all rows, is written: rows in ascending order, place after place.
    """
    _placed(table, kinds, place, where)
    for row in range(rows.size):
        at = where[rows[row]]
        if at >= 0:
            starts[at + 1] += 1
    for at in range(1, starts.size):
        starts[at] += starts[at - 1]
    for row in range(rows.size):
        at = where[rows[row]]
        if at >= 0:
            out[starts[at]] = row
            starts[at] += 1
    for at in range(starts.size - 1, 0, -1):
        starts[at] = starts[at - 1]
    starts[0] = 0


@_jit
def encode(data: Any, table: Any, rows: Any, codes: Any, slots: Any, known: Any, follow: Any, multipliers: Any) -> Any:
    """Number the values of some attributes, equal ones alike, in the order in which they first occur.

    Args:
        data: uint8; eight bytes after each value must exist.
        table: int32 (`ENTRY_FIELDS`, e).
        rows: int32, length n: their columns in ``table``.
        codes: int32, length n, is written.
        slots, known, follow, multipliers: as in `walk`, for values instead of keys.

    Returns:
        How many are distinct; -1 when ``known`` has no room for them.
    """
    count = np.int64(0)
    before = np.int64(-1)
    for number in range(rows.size):
        at, size = np.int64(table[VALUE, rows[number]]), np.int64(table[VALUE_SIZE, rows[number]])
        code = np.int64(follow[before + 1])
        if code < 0 or known[1, code] != size or not same(data, np.int64(known[0, code]), at, size):
            code = number_of(data, at, size, slots, known, count, multipliers)
            if code < 0:
                return -1
            if code == count:
                count += 1
            follow[before + 1] = code
        codes[number] = code
        before = code
    return count


@_inlined
def _tail(data: Any, at: int, left: int) -> Any:
    """The next bytes of a stretch as one integer, zeros behind its end; ``left`` > 0 of them are its own."""
    if left >= 8:
        return word(data, at)
    if at <= data.size - 8:
        return word(data, at) & ((np.uint64(1) << np.uint64(8 * left)) - np.uint64(1))
    bits = np.uint64(0)
    for number in range(left):
        bits |= np.uint64(data[at + number]) << np.uint64(8 * number)
    return bits


@_inlined
def _mixed(h: Any, multiplier: Any) -> Any:
    h = (h ^ (h >> np.uint64(32))) * multiplier
    return h ^ (h >> np.uint64(29))


@_inlined
def _polynomial(data: Any, at: int, left: int, base: Any) -> Any:
    """A hash of ``left`` > 0 bytes: a polynomial over their 64-bit words, the last one filled up with zeros."""
    total, power = np.uint64(0), np.uint64(1)
    while left > 0:
        bits = _tail(data, at, left)
        total += (bits ^ (bits >> np.uint64(29))) * power
        power *= base
        at, left = at + 8, left - 8
    return total


@_jit
def content(
    data: Any, rows: Any, offsets: Any, table: Any, keys: Any, most: int, constants: Any, sums: Any, out: Any
) -> None:
    """Hash the attributes of each owner: `tollspan.processor.recent` says how, and does the same with NumPy.

    Args:
        data: uint8; eight bytes after each value must exist.
        rows: int32, m.
        offsets: int64, n + 1: the rows of each owner.
        table: int32 (`ENTRY_FIELDS`, e or more).
        keys: uint64, a hash of each key.
        most: bytes of a value that are looked at.
        constants: uint64: the polynomials' base, what lengths are multiplied with, and what is mixed with.
        sums: uint64, e, for the kernel's own use.
        out: uint64, n, is written.
    """
    base = constants[0]
    for entry in range(sums.size):
        at, size = np.int64(table[VALUE, entry]), np.int64(table[VALUE_SIZE, entry])
        total = np.uint64(size) * constants[1]
        if size > 0:
            total += _polynomial(data, at, min(size, np.int64(most)), base)
        sums[entry] = _mixed(total + keys[table[CODE, entry]], constants[2])
    for owner in range(out.size):
        total = np.uint64(0)
        power = np.uint64(1)
        for row in range(offsets[owner], offsets[owner + 1]):
            total += sums[rows[row]] * power
            power *= base
        out[owner] = total


@_jit
def said_values(
    data: Any,
    table: Any,
    kinds: Any,
    first: Any,
    place: Any,
    last: Any,
    ids: Any,
    seen: Any,
    slots: Any,
    known: Any,
    follow: Any,
    multipliers: Any,
) -> Any:
    """Number the values of the attributes that say something under a key that is asked for.

    Texts that are not empty, numbers and booleans say something.

    Args:
        data: uint8; eight bytes after each value must exist.
        table, kinds: int32 (`ENTRY_FIELDS`, e or more) and uint8 e.
        first: int32, one more than there are keys: where a key's entries begin, see `said`.
        place: int32, one for each key: its place among those of which numbers are wanted, -1 = not wanted. Keys with
            entries have none.
        last: int32, one for each key, -1; for the kernel's own use.
        ids: int64, e, is written: the key's number and, in the lower 32 bits, the value's; -1 = says nothing; and
            ``-2 - place`` of what is wanted as a number.
        seen: int64, zeros; is written: the kinds that occur at each place, as bits.
        slots, known, follow, multipliers: as in `encode`.

    Returns:
        How many are distinct; -1 when ``known`` has no room for them.
    """
    count = np.int64(0)
    for entry in range(kinds.size):
        ids[entry] = -1
        key = np.int64(table[CODE, entry])
        kind = kinds[entry]
        if first[key] == first[key + 1]:
            wanted = np.int64(place[key])
            if wanted >= 0 and kind != EMPTY:
                ids[entry] = -2 - wanted
                seen[wanted] |= 1 << kind
            continue
        if kind == EMPTY or kind > DOUBLE:
            continue
        at, size = np.int64(table[VALUE, entry]), np.int64(table[VALUE_SIZE, entry])
        if kind == STRING and size == 2:
            continue
        before = np.int64(last[key])
        code = np.int64(follow[before + 1])
        if code < 0 or known[1, code] != size or not same(data, np.int64(known[0, code]), at, size):
            code = number_of(data, at, size, slots, known, count, multipliers)
            if code < 0:
                return -1
            if code == count:
                count += 1
            follow[before + 1] = code
        last[key] = code
        ids[entry] = (key << 32) | code
    return count


@_inlined
def _alike(words: Any, begin: int, end: int, other: int, stop: int) -> Any:
    """Whether the words from ``begin`` to ``end`` are those from ``other`` to ``stop``."""
    if end - begin != stop - other:
        return False
    while begin < end and words[begin] == words[other]:
        begin += 1
        other += 1
    return begin == end


@_jit
def said_shapes(
    rows: Any,
    offsets: Any,
    ids: Any,
    kinds: Any,
    contents: Any,
    slots: Any,
    heads: Any,
    bounds: Any,
    follow: Any,
    words: Any,
    multipliers: Any,
    shape: Any,
    given: Any,
    values: Any,
) -> Any:
    """Number owners by what their attributes say, in the order in which they first occur; and their numbers by key, of
    two values of one key the later.

    Args:
        rows: int32, m.
        offsets: int64, n + 1: the rows of each owner.
        ids: int64, e, see `said_values`.
        kinds, contents: uint8 e and int64 e, as of `walk`.
        slots: int32, a power of two of them, 0 = free, else a number + 1; more than there are ``heads``.
        heads: int64, is written: the first owner of each number.
        bounds: int64, one more than there are ``heads``, for the kernel's own use; as are
        follow: int32, one more than there are ``heads``, -1: which number came after which the last time; and
        words: int64, m.
        multipliers: random keys, as in `walk`.
        shape: int64, n, is written.
        given: uint8 (places, n), zeros; is written: the kind of each value.
        values: int64 (places, n), zeros; is written: their contents, see `_value`.

    Returns:
        How many are distinct; -1 when ``heads`` has no room for them.
    """
    count = before = np.int64(0)  # the number before, + 1
    low, mask = np.uint64(0xFFFFFFFF), np.int64(slots.size - 1)
    bounds[0] = 0
    for owner in range(shape.size):
        begin = end = np.int64(bounds[count])
        for row in range(offsets[owner], offsets[owner + 1]):
            entry = rows[row]
            said_ = ids[entry]
            if said_ >= 0:
                words[end] = said_
                end += 1
            elif said_ < -1:
                given[-2 - said_, owner] = kinds[entry]
                values[-2 - said_, owner] = contents[entry]
        number = np.int64(follow[before])
        if number < 0 or not _alike(words, begin, end, bounds[number], bounds[number + 1]):
            total = multipliers[0]
            place = 1
            for at in range(begin, end):
                bits = np.uint64(words[at])
                total += multipliers[place] * (bits & low) + multipliers[place + 1] * (bits >> np.uint64(32))
                place += 2
                if place > 60:
                    total = multipliers[61] + multipliers[62] * (total >> np.uint64(32))
                    place = 1
            slot = np.int64(total >> np.uint64(32)) & mask
            number = np.int64(-1)
            while slots[slot] != 0:
                known = np.int64(slots[slot]) - 1
                if _alike(words, begin, end, bounds[known], bounds[known + 1]):
                    number = known
                    break
                slot = (slot + 1) & mask
            if number < 0:
                if count >= heads.size:
                    return -1
                number = count
                slots[slot] = count + 1
                heads[count] = owner
                count += 1
                bounds[count] = end
            follow[before] = number
        shape[owner] = number
        before = number + 1
    return count


@_jit
def said(
    owners: Any,
    rows: Any,
    offsets: Any,
    ids: Any,
    first: Any,
    column: Any,
    rank: Any,
    best: Any,
    out: Any,
) -> None:
    """For some owners and each column the value of the most preferred key that says something.

    Of two values of one key the later counts.

    Args:
        owners: int64, k.
        rows: int32, m.
        offsets: int64, n + 1: the rows of each owner.
        ids: int64, e, see `said_values`.
        first: int32, one more than there are keys: where a key's entries in ``column`` and ``rank`` begin.
        column, rank: int32 and uint8: a column that is read from the key, and how much others are preferred to it.
        best: uint8, a byte for each column, for the kernel's own use.
        out: int32 (k, columns), is written; -1 = nothing.
    """
    for place in range(owners.size):
        owner = owners[place]
        for number in range(best.size):
            best[number] = 255
            out[place, number] = -1
        for row in range(offsets[owner], offsets[owner + 1]):
            said_ = ids[rows[row]]
            if said_ < 0:
                continue
            key = said_ >> 32
            for entry in range(first[key], first[key + 1]):
                number = column[entry]
                if rank[entry] <= best[number]:
                    best[number] = rank[entry]
                    out[place, number] = said_ & _LOW


@_jit
def shapes(codes: Any, slots: Any, heads: Any, follow: Any, multipliers: Any, shape: Any) -> Any:
    """Number rows by the codes that stand in them, in the order in which they first occur.

    Args:
        codes: int32 (n, columns).
        slots: int32, a power of two of them, 0 = free, else a number + 1; more than there are ``heads``.
        heads: int64, is written: the first row of each number.
        follow: int32, one more than there are ``heads``, -1: which number came after which the last time.
        multipliers: random keys, as in `walk`.
        shape: int64, n, is written.

    Returns:
        How many are distinct; -1 when ``heads`` has no room for them.
    """
    count = before = np.int64(0)  # the number before, + 1
    mask = np.int64(slots.size - 1)
    columns = codes.shape[1]
    for row in range(shape.size):
        number = np.int64(follow[before])
        if number >= 0:
            head = heads[number]
            for column in range(columns):
                if codes[row, column] != codes[head, column]:
                    number = np.int64(-1)
                    break
        if number < 0:
            total = multipliers[0]
            for column in range(columns):
                place = 1 + (column & 31)
                total += multipliers[place] * np.uint64(np.uint32(codes[row, column]))
                if place == 32:
                    total = multipliers[33] + multipliers[34] * (total >> np.uint64(32))
            slot = np.int64(total >> np.uint64(32)) & mask
            while slots[slot] != 0:
                known = np.int64(slots[slot]) - 1
                head = heads[known]
                number = known
                for column in range(columns):
                    if codes[row, column] != codes[head, column]:
                        number = np.int64(-1)
                        break
                if number >= 0:
                    break
                slot = (slot + 1) & mask
            if number < 0:
                if count >= heads.size:
                    return -1
                number = count
                slots[slot] = count + 1
                heads[count] = row
                count += 1
            follow[before] = number
        shape[row] = number
        before = number + 1
    return count


@_brief
def place_codes(codes: Any, table: Any, other: Any, of_row: Any, out: Any, bits: Any, used: Any, words: Any) -> Any:
    """Codes through a table, others in their place where that says nothing, numbered without gaps.

    Args:
        codes: int32, length n; -1 = nothing.
        table: int32, for each code what it stands for, -1 = nothing.
        other, of_row: int32: what is taken where nothing is said, by number, and each row's number; may be empty.
        out: int32, length n, is written; 0 where nothing is said.
        bits: uint8, a bitmap of zeros, is written: where something is said.
        used: int32, zeros, as many as the table has words; for the kernel's own use.
        words: int64, as many; is written: what the numbers stand for, ascending.

    Returns:
        In how many rows nothing is said, and how many words there are.
    """
    silent = count = np.int64(0)
    for row in range(codes.size):
        code = codes[row]
        value = np.int64(table[code]) if code >= 0 else np.int64(-1)
        if value < 0 and other.size > 0:
            value = np.int64(other[of_row[row]])
        out[row] = value
        if value >= 0:
            used[value] = 1
            bits[row >> 3] |= np.uint8(1 << (row & 7))
        else:
            silent += 1
    for word_ in range(used.size):
        if used[word_] != 0:
            used[word_] = count
            words[count] = word_
            count += 1
    for row in range(out.size):
        out[row] = used[out[row]] if out[row] >= 0 else 0
    return silent, count


@_jit
def add_ranges(data: Any, offsets: Any, most: int, constants: Any, factor: Any, out: Any) -> None:
    """Add a hash of each stretch of bytes, times ``factor``, to ``out``; `tollspan.processor.recent` does the same.

    Args:
        data: uint8.
        offsets: int32, n + 1: where each stretch begins and the last ends.
        most: bytes of a stretch that are looked at.
        constants: as in `content`.
        factor: uint64.
        out: uint64, n.
    """
    base = constants[0]
    for row in range(out.size):
        at = np.int64(offsets[row])
        size = np.int64(offsets[row + 1]) - at
        if size > 0:
            total = np.uint64(size) * constants[1] + _polynomial(data, at, min(size, np.int64(most)), base)
            out[row] += total * factor


@_inlined
def _swapped(value: Any) -> Any:
    """The eight bytes of an integer in the other order."""
    low, all_ = np.uint64(0x00FF00FF00FF00FF), np.uint64(0x0000FFFF0000FFFF)
    value = ((value >> np.uint64(8)) & low) | ((value & low) << np.uint64(8))
    value = ((value >> np.uint64(16)) & all_) | ((value & all_) << np.uint64(16))
    return (value >> np.uint64(32)) | (value << np.uint64(32))


@_inlined
def _finished(h: Any, multipliers: Any) -> Any:
    h = (h ^ (h >> np.uint64(30))) * multipliers[1]
    h = (h ^ (h >> np.uint64(27))) * multipliers[2]
    return h ^ (h >> np.uint64(31))


@_jit
def identify(
    traces: Any,
    spans: Any,
    parents: Any,
    starts: Any,
    stops: Any,
    kinds: Any,
    statuses: Any,
    seed: Any,
    multipliers: Any,
    trace: Any,
    keys: Any,
    contents: Any,
) -> None:
    """Keys of spans, as `tollspan.processor.identity` makes them, and the first part of `recent.contents`.

    Args:
        traces, spans, parents: uint64 (n, 2), n and n: ids as they stand in memory.
        starts, stops: uint64, n.
        kinds, statuses: int32, n.
        seed: uint64.
        multipliers: uint64, three, those of `identity`.
        trace: uint64 (n, 2), is written: the words of the trace ids.
        keys: uint64 (5, n), is written: keys of trace, span and parent, and the words of span and parent id.
        contents: uint64, n, is written.
    """
    for row in range(spans.size):
        high, low = _swapped(traces[row, 0]), _swapped(traces[row, 1])
        own, above = _swapped(spans[row]), _swapped(parents[row])
        trace[row, 0], trace[row, 1] = high, low
        key = _finished(_finished(high * multipliers[0] + seed, multipliers) + low, multipliers)
        keys[0, row] = key
        keys[1, row] = _finished((key ^ seed) + _finished(own * multipliers[0] + seed, multipliers), multipliers)
        keys[2, row] = _finished((key ^ seed) + _finished(above * multipliers[0] + seed, multipliers), multipliers)
        keys[3, row], keys[4, row] = own, above
        h = _mixed(starts[row], multipliers[0])
        h = _mixed(h + stops[row], multipliers[0])
        h = _mixed(h + above, multipliers[0])
        codes = np.uint64(np.int64(kinds[row])) << np.uint64(32)
        contents[row] = h + _mixed(codes ^ np.uint64(np.int64(statuses[row])), multipliers[0])


HEAD, LENGTH = range(2)
"""Of an index: number of the oldest entry, and how many there are."""
_NUMBERS: Final = 0x7FFFFFFF
_AHEAD: Final = 16
"""Keys from one whose slot is fetched to the one that is looked for: each slot stands in a line of memory of its own,
and waiting for one after the other took most of the time."""


@_inlined
def _own_slot(key: Any, slots: Any) -> Any:
    return (np.int64(key >> np.uint64(32)) * slots.size) >> 32


@_inlined
def _find_slot(key: Any, slots: Any, known: Any) -> Any:
    """The slot of a key, and its place; or the slot where it can be put, and -1."""
    mask, room = slots.size - 1, known.size
    above = key >> np.uint64(32)
    slot = _own_slot(key, slots)
    while slots[slot] != 0:
        if slots[slot] >> np.uint64(32) == above:
            place = (np.int64(slots[slot] & np.uint64(_LOW)) - 1) & (room - 1)
            if known[place] == key:
                return slot, place
        slot = (slot + 1) & mask
    return slot, np.int64(-1)


@_jit
def index_find(keys: Any, slots: Any, known: Any, places: Any) -> Any:
    """Where keys stand in an index.

    Args:
        keys: uint64, n.
        slots: uint64, a power of two of them, at most half of them taken: the upper half of a key and the number of its
            entry + 1; 0 = free. A key's own slot is that of its upper bits, so ascending keys pass through in order.
        known: uint64, a power of two: the keys of the entries, that of number i at i modulo their count.
        places: int64, n, is written: place of each key in ``known``, -1 where it is not there.

    Returns:
        How many are there.
    """
    found = np.int64(0)
    for row in range(keys.size):
        if row + _AHEAD < keys.size:
            _expect(slots, _own_slot(keys[row + _AHEAD], slots))
        _, place = _find_slot(keys[row], slots, known)
        places[row] = place
        found += place >= 0
    return found


@_jit
def index_add(keys: Any, values: Any, slots: Any, known: Any, beside: Any, state: Any) -> None:
    """Put keys into an index that has room for them; of one that is there already the later entry is found.

    Args:
        keys: uint64, n.
        values: uint64 (n, width): what stands beside them.
        slots, known: as in `index_find`.
        beside: uint64 (room, width).
        state: int64: see `HEAD`. Numbers are below 2**31 and begin again at 0.
    """
    for row in range(keys.size):
        if row + _AHEAD < keys.size:
            _expect(slots, _own_slot(keys[row + _AHEAD], slots))
        key = keys[row]
        slot, _ = _find_slot(key, slots, known)
        number = (state[HEAD] + state[LENGTH]) & _NUMBERS
        place = number & (known.size - 1)
        slots[slot] = (key >> np.uint64(32) << np.uint64(32)) | np.uint64(number + 1)
        known[place] = key
        for column in range(values.shape[1]):
            beside[place, column] = values[row, column]
        state[LENGTH] += 1


@_jit
def index_drop(count: int, slots: Any, known: Any, state: Any) -> None:
    """Take the oldest ``count`` entries out of an index."""
    mask = slots.size - 1
    for _ in range(count):
        number = np.int64(state[HEAD])
        _expect(slots, _own_slot(known[(number + _AHEAD) & (known.size - 1)], slots))
        key = known[number & (known.size - 1)]
        state[HEAD] = (number + 1) & _NUMBERS
        state[LENGTH] -= 1
        entry = (key >> np.uint64(32) << np.uint64(32)) | np.uint64(number + 1)
        slot = _own_slot(key, slots)
        while slots[slot] != entry and slots[slot] != 0:
            slot = (slot + 1) & mask
        if slots[slot] == 0:
            continue  # a later entry has its key
        # What stands behind it moves up, as far as it does not come before its own slot.
        after = (slot + 1) & mask
        while slots[after] != 0:
            own = _own_slot(slots[after], slots)
            if (after - own) & mask >= (after - slot) & mask:
                slots[slot] = slots[after]
                slot = after
            after = (after + 1) & mask
        slots[slot] = 0


@_jit
def index_move(
    old_slots: Any, old_known: Any, old_beside: Any, slots: Any, known: Any, beside: Any, state: Any
) -> None:
    """Move an index into larger arrays; ``slots`` are zeros. Both are passed through in order."""
    for entry in range(state[LENGTH]):
        number = (state[HEAD] + entry) & _NUMBERS
        old, new = number & (old_known.size - 1), number & (known.size - 1)
        known[new] = old_known[old]
        for column in range(beside.shape[1]):
            beside[new, column] = old_beside[old, column]
    for before in range(old_slots.size):
        entry = old_slots[before]
        if entry != 0:
            slot = _own_slot(entry, slots)
            while slots[slot] != 0:
                slot = (slot + 1) & (slots.size - 1)
            slots[slot] = entry


_DIGIT: Final = 11
DIGITS: Final = 1 << _DIGIT
SORTED_BY: Final = 3
"""Digits of `_DIGIT` bits by which keys are sorted, the uppermost; hashes that agree in all of them are few."""


@_jit
def order(keys: Any, counts: Any, other: Any, rows: Any) -> Any:
    """Rows by ascending key, those of equal keys as they come: a sort by digits, in half the time of one that compares.

    Args:
        keys: uint64, n, well mixed.
        counts: int64 (`SORTED_BY`, `DIGITS`), zeros; for the kernel's own use.
        other: int64, n, for the kernel's own use.
        rows: int64, n, is written.

    Returns:
        Whether they are; not where far too many keys begin alike, which keys that are mixed do not.
    """
    mask = np.uint64(DIGITS - 1)
    lowest = np.uint64(64 - SORTED_BY * _DIGIT)
    for row in range(keys.size):
        rest = keys[row] >> lowest
        for digit in range(SORTED_BY):
            counts[digit, np.int64(rest & mask)] += 1
            rest >>= np.uint64(_DIGIT)
    for digit in range(SORTED_BY):
        before = np.int64(0)
        for value in range(counts.shape[1]):
            count = counts[digit, value]
            counts[digit, value] = before
            before += count
    for row in range(keys.size):
        here = np.int64((keys[row] >> lowest) & mask)
        rows[counts[0, here]] = row
        counts[0, here] += 1
    for digit in range(1, SORTED_BY):
        shift = lowest + np.uint64(digit * _DIGIT)
        for at in range(keys.size):
            row = rows[at] if digit & 1 else other[at]
            here = np.int64((keys[row] >> shift) & mask)
            if digit & 1:
                other[counts[digit, here]] = row
            else:
                rows[counts[digit, here]] = row
            counts[digit, here] += 1
    left = 4 * keys.size
    for at in range(1, keys.size):
        row = rows[at]
        place = at
        while place > 0 and keys[rows[place - 1]] > keys[row]:
            rows[place] = rows[place - 1]
            place -= 1
            left -= 1
            if left < 0:
                return False
        rows[place] = row
    return True


@_jit
def parent_rows(keys: Any, parents: Any, above: Any, slots: Any, up: Any) -> None:
    """Where the parents of a batch's spans stand in it.

    Args:
        keys, parents: uint64, n: keys that are mixed with a seed, no two of ``keys`` equal.
        above: bool, n: which spans have a parent.
        slots: int32, zeros, a power of two of them, at most half of them taken; is written: row + 1 by key.
        up: int64, n, is written: row of each span's parent, -1 where it is not in the batch, -2 where there is none.
    """
    mask = np.int64(slots.size - 1)
    for row in range(keys.size):
        slot = np.int64(keys[row] >> np.uint64(32)) & mask
        while slots[slot] != 0:
            slot = (slot + 1) & mask
        slots[slot] = row + 1
    for row in range(keys.size):
        if not above[row]:
            up[row] = -2
        elif row > 0 and above[row - 1] and parents[row - 1] == parents[row]:
            up[row] = up[row - 1]
        else:
            up[row] = _row_of(parents[row], keys, slots)


@_inlined
def _row_of(key: Any, keys: Any, slots: Any) -> Any:
    mask = np.int64(slots.size - 1)
    slot = np.int64(key >> np.uint64(32)) & mask
    while slots[slot] != 0:
        row = np.int64(slots[slot]) - 1
        if keys[row] == key:
            return row
        slot = (slot + 1) & mask
    return np.int64(-1)


@_jit
def rows_of(asked: Any, keys: Any, slots: Any, rows: Any) -> None:
    """Rows (int64, is written) of the ``asked`` keys in a batch, -1 where they are not there; see `parent_rows`."""
    for number in range(asked.size):
        rows[number] = _row_of(asked[number], keys, slots)


@_jit
def climb(begin: Any, up: Any, parents: Any, known: Any, marked: Any, outside: Any) -> Any:
    """Mark all that stands above some rows of a batch, up to what is marked or known already.

    Args:
        begin: int64, rows.
        up, parents: see `parent_rows`.
        known: bool, n: rows that are not marked, and above which nothing is.
        marked: bool, n; is written.
        outside: uint64, as long as ``begin``, is written: keys of parents that are not in the batch.

    Returns:
        How many of those there are; they may repeat.
    """
    count = np.int64(0)
    for number in range(begin.size):
        row = begin[number]
        while up[row] >= 0:
            above = up[row]
            if marked[above] or known[above]:
                break
            marked[above] = True
            row = above
        if up[row] == -1:
            outside[count] = parents[row]
            count += 1
    return count


VARINT_FIELD, EIGHT_BYTES, FOUR_BYTES, BYTES_FIELD, TEXT_FIELD, MESSAGE_FIELD = range(1, 7)
"""What a field is, for `well_formed`; from ``MESSAGE_FIELD`` on a message, whose number is added."""


@_inlined
def _utf8(data: Any, p: int, end: int) -> Any:
    """Whether bytes are UTF-8 as protobuf wants it: nothing written longer than needed, no surrogates."""
    while p < end:
        if end - p >= 8 and word(data, p) & np.uint64(0x8080808080808080) == 0:
            p += 8
            continue
        first = data[p]
        p += 1
        if first < 0x80:
            continue
        more = 1 if first < 0xE0 else 2 if first < 0xF0 else 3
        if first < 0xC2 or first > 0xF4 or p + more > end:
            return False
        low = 0xA0 if first == 0xE0 else 0x90 if first == 0xF0 else 0x80
        high = 0x9F if first == 0xED else 0x8F if first == 0xF4 else 0xBF
        if data[p] < low or data[p] > high:
            return False
        for number in range(1, more):
            if data[p + number] & 0xC0 != 0x80:
                return False
        p += more
    return True


@_jit
def well_formed(data: Any, table: Any, ends: Any, inside: Any) -> Any:
    """Whether a message is surely one that protobuf takes.

    Args:
        data: uint8, the message.
        table: uint8 (messages, fields): what each field of each message is, 0 = nothing that is named; message 0 is the
            outermost.
        ends, inside: int64 and uint8, as many as there may be levels; they are written.

    Returns:
        False also where it is deeper than that, or holds what is not named: then protobuf has to be asked.
    """
    level, p = 0, 0
    end, message = np.int64(data.size), np.int64(0)
    while True:
        if p == end:
            if level == 0:
                return True
            level -= 1
            end, message = ends[level], np.int64(inside[level])
            continue
        tag = np.int64(data[p])
        p += 1
        if tag >= 0x80:
            tag, p = _tag(data, p - 1, end)
            if p < 0:
                return False
        field, wire = tag >> 3, tag & 7
        if field >= table.shape[1]:
            return False
        what = np.int64(table[message, field])
        if what >= BYTES_FIELD:
            if wire != 2:
                return False
            size, p = _length(data, p, end)
            if p < 0:
                return False
            if what >= MESSAGE_FIELD:
                if level == ends.size:
                    return False
                ends[level], inside[level] = end, message
                level += 1
                end, message = p + size, what - MESSAGE_FIELD
                continue
            if what == TEXT_FIELD and not _utf8(data, p, p + size):
                return False
            p += size
        elif what == VARINT_FIELD:
            if wire != 0:
                return False
            _, p = _varint(data, p, end)
            if p < 0:
                return False
        elif what:
            size = 8 if what == EIGHT_BYTES else 4
            if wire != (1 if what == EIGHT_BYTES else 5) or size > end - p:
                return False
            p += size
        else:
            return False
