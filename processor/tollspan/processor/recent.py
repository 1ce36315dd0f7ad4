"""Recent: which spans came lately, so that one that comes again is counted once and billed once.

In: keys and content of a batch's spans. Out: which of them are new. A span whose key is known with the same content is
a duplicate; one whose key is known with other content is a conflict. Neither is priced or written again: **the first
stays**. That holds within bounds of time and number (`RecentSettings`); beyond them the ledger's own key and revision
hold the same rule for the bill (`revisions`): a row that comes again lands on the first, which outranks it.

`Generations` is what holds it, for `assemble` too: sorted keys with columns beside them; an `Index` where the decoder's
kernels are at hand (`faster`), which takes a fifth of the time. `recent_log` puts it on disk.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt

from tollspan.processor.decode import Decoded
from tollspan.processor.decode.fused import kernels
from tollspan.processor.identity import MULTIPLIERS, U64, Mask, Rows, find, repeated, span_keys, trace_keys, words

log = logging.getLogger(__name__)

MOST_HASHED: Final = 1 << 20
"""Bytes of a span's values, of each, that its content is told by; beyond them, by their length alone."""

UNKNOWN: Final = 2**64 - 1
"""Content of a span whose content nobody knows any more: one that comes again is a duplicate."""

NAMED: Final = 5
"""Conflicts that one line of the log names."""

QUIET_S: Final = 60.0
"""Least time between two such lines."""

_A: Final = np.uint64(0x9E3779B97F4A7C15)
_B: Final = np.uint64(0xBF58476D1CE4E5B9)
_C: Final = np.uint64(0x94D049BB133111EB)
_BASE: Final = 0xD1342543DE82EF95
_INVERSE: Final = pow(_BASE, -1, 1 << 64)
_CONSTANTS: Final = np.array([_BASE, _C, _A], np.uint64)
"""What the kernels hash contents with."""


@dataclass(frozen=True, slots=True)
class RecentSettings:
    """How much is known of recent spans: to tell spans that come again, and parents of children that come late.

    Attributes:
        window_s: how long a span is remembered.
        max_spans: spans remembered at the most, about 100 bytes of memory each; the oldest are forgotten first.
        max_bytes: disk space for what has to be known again after a crash; the oldest is removed first.
    """

    window_s: float = 900.0
    max_spans: int = 2_000_000
    max_bytes: int = 512 << 20


class Known(Protocol):
    """Keys with values beside them, that grow by batches and are forgotten by age and number.

    Attributes:
        width: values beside a key; 0 for a mere set.
        forgotten: nothing that came after this was forgotten.
    """

    width: int
    forgotten: float

    def __len__(self) -> int: ...

    def add(self, keys: U64, values: U64, now: float) -> None:
        """Put keys in.

        Args:
            keys: ascending, shape (n,).
            values: shape (n, width), dtype uint64.
            now: seconds, never less than before.
        """

    def find(self, keys: U64) -> tuple[Rows, U64]:
        """Rows of ``keys`` that are known, ascending, and the values beside each of them, shape (found, width)."""

    def member(self, keys: U64) -> Mask:
        """Whether each of ``keys`` is known."""

    def expire(self, horizon: float, most: int) -> None:
        """Forget what came before ``horizon``, and the oldest beyond ``most`` keys; what came last stays."""

    def batches(self) -> list[tuple[float, U64, U64]]:
        """Everything: when it came, keys, and values, the oldest first."""


@dataclass(slots=True)
class _Generation:
    """Keys, ascending, and beside each a row of values, that came until ``born``."""

    born: float
    keys: U64
    values: U64


class Generations:
    """`Known` in a few sorted arrays, searched one after another.

    Merging only the younger half when there are too many keeps the
    cost of a batch near that of sorting it. Most keys that are asked for are in none, and a bitmap says so at once.

    Args:
        width: values beside a key.
        slots: of the bitmap, a byte each, a power of two.
    """

    MOST: Final = 12

    def __init__(self, width: int, slots: int = 1 << 24) -> None:
        self.width = width
        self.forgotten = -np.inf
        self._generations: list[_Generation] = []
        self._maybe = np.zeros(slots, np.bool_)

    def __len__(self) -> int:
        return sum(len(each.keys) for each in self._generations)

    def add(self, keys: U64, values: U64, now: float) -> None:
        """See `Known`."""
        if not len(keys):
            return
        self._generations.append(_Generation(now, keys, values))
        self._mark(keys)
        if len(self._generations) > self.MOST:
            half = len(self._generations) // 2
            younger = self._generations[half:]
            merged = np.concatenate([each.keys for each in younger])
            # Stable is what finds the runs that are sorted already.
            order = np.argsort(merged, kind="stable")
            beside = np.concatenate([each.values for each in younger])[order]
            self._generations[half:] = [_Generation(younger[-1].born, merged[order], beside)]

    def find(self, keys: U64) -> tuple[Rows, U64]:
        """See `Known`."""
        open_ = np.flatnonzero(self._maybe[keys & np.uint64(len(self._maybe) - 1)])
        rows, values = [], []
        for each in reversed(self._generations):
            if not len(open_):
                break
            at = find(keys[open_], each.keys)
            hit = at >= 0
            if hit.any():
                rows.append(open_[hit])
                values.append(each.values[at[hit]])
                open_ = open_[~hit]
        if not rows:
            return np.zeros(0, np.int64), np.zeros((0, self.width), np.uint64)
        found = np.concatenate(rows)
        order = np.argsort(found)
        return found[order], np.concatenate(values)[order]

    def member(self, keys: U64) -> Mask:
        """See `Known`."""
        found = np.zeros(len(keys), np.bool_)
        found[self.find(keys)[0]] = True
        return found

    def expire(self, horizon: float, most: int) -> None:
        """See `Known`."""
        before = len(self._generations)
        while len(self._generations) > 1 and (self._generations[0].born < horizon or len(self) > most):
            self.forgotten = self._generations.pop(0).born
        if len(self._generations) < before:
            self._maybe[:] = False
            for each in self._generations:
                self._mark(each.keys)

    def batches(self) -> list[tuple[float, U64, U64]]:
        """See `Known`."""
        return [(each.born, each.keys, each.values) for each in self._generations]

    def _mark(self, keys: U64) -> None:
        self._maybe[keys & np.uint64(len(self._maybe) - 1)] = True


class Index:
    """`Known` in a hash table over a ring of entries, by kernels: what a key costs does not depend on how many there
    are. The keys are seeded hashes already, so nobody can choose ones that collide.

    Args:
        width: values beside a key.
        walk: `tollspan.processor.decode.fused.kernels`.
        room: entries for which there is room at first.
    """

    def __init__(self, width: int, walk: Any, room: int = 1 << 16) -> None:
        self.width = width
        self.forgotten = -np.inf
        self._walk = walk
        self._state = np.zeros(2, np.int64)
        self._batches: deque[tuple[float, int]] = deque()
        self._allot(room)

    def _allot(self, room: int) -> None:
        """Empty arrays for so many entries, a power of two; half of the slots are taken at the most."""
        self._keys, self._values = np.empty(room, np.uint64), np.empty((room, self.width), np.uint64)
        self._slots = np.zeros(2 * room, np.uint64)

    def __len__(self) -> int:
        return int(self._state[self._walk.LENGTH])

    def add(self, keys: U64, values: U64, now: float) -> None:
        """See `Known`."""
        if not len(keys):
            return
        self._make_room(len(keys))
        self._walk.index_add(_own(keys), _own(values), self._slots, self._keys, self._values, self._state)
        self._batches.append((now, len(keys)))

    def find(self, keys: U64) -> tuple[Rows, U64]:
        """See `Known`."""
        places = self._places_of(keys)
        rows = np.flatnonzero(places >= 0)
        return rows, self._values[places[rows]]

    def member(self, keys: U64) -> Mask:
        """See `Known`."""
        found: Mask = self._places_of(keys) >= 0
        return found

    def expire(self, horizon: float, most: int) -> None:
        """See `Known`."""
        while len(self._batches) > 1 and (self._batches[0][0] < horizon or len(self) > most):
            self.forgotten, count = self._batches.popleft()
            self._walk.index_drop(count, self._slots, self._keys, self._state)

    def batches(self) -> list[tuple[float, U64, U64]]:
        """See `Known`."""
        made, at = [], 0
        places = self._places()
        for now, count in self._batches:
            mine = places[at : at + count]
            made.append((now, self._keys[mine], self._values[mine]))
            at += count
        return made

    def _places_of(self, keys: U64) -> Rows:
        """Places of keys, -1 where they are not here."""
        places = np.empty(len(keys), np.int64)
        self._walk.index_find(_own(keys), self._slots, self._keys, places)
        return places

    def _places(self) -> Rows:
        """Places of the entries, the oldest first."""
        first = int(self._state[self._walk.HEAD])
        return np.arange(first, first + len(self), dtype=np.int64) & _LAST_NUMBER & (len(self._keys) - 1)

    def _make_room(self, more: int) -> None:
        if len(self) + more <= len(self._keys):
            return
        old = self._slots, self._keys, self._values
        self._allot(1 << (len(self) + more - 1).bit_length())
        self._walk.index_move(*old, self._slots, self._keys, self._values, self._state)


def in_order(keys: U64) -> Rows:
    """Rows of well-mixed keys by ascending key, shape (n,); those of equal keys in any order."""
    walk = kernels()
    if walk is not None:
        counts, rows = np.zeros((walk.SORTED_BY, walk.DIGITS), np.int64), np.empty((2, len(keys)), np.int64)
        if walk.order(_own(keys), counts, *rows):
            found: Rows = rows[1]
            return found
    return np.argsort(keys)


def _own(array: U64) -> U64:
    """As a kernel takes it: contiguous, and not read-only, which is another type to numba."""
    return np.require(array, requirements=["C", "W"])


_LAST_NUMBER: Final = (1 << 31) - 1


def faster(known: Known) -> Known:
    """The same as an `Index`, once the kernels are at hand in this process."""
    walk = kernels()
    if walk is None or isinstance(known, Index):
        return known
    made = Index(known.width, walk)
    made.forgotten = known.forgotten
    for now, keys, values in known.batches():
        made.add(keys, values, now)
    return made


class Keys:
    """Who spans are and what they say, arrays of shape (n,) unless it says otherwise.

    Attributes:
        trace: both words of the trace id, shape (n, 2); span: the span id; parent: the parent's, 0 where there is none.
        traces, keys, parents: keys of trace, span and parent (see `identity`); a root's parent key says nothing.
        content: see `contents`.
    """

    __slots__ = ("content", "keys", "parent", "parents", "span", "trace", "traces")

    def __init__(self, decoded: Decoded, seed: np.uint64) -> None:
        spans = decoded.spans
        walk = kernels()
        if walk is None:
            self.trace, self.span = words(spans["trace_id"], 2), words(spans["span_id"], 1)[:, 0]
            self.parent = words(spans["parent_span_id"], 1)[:, 0]
            self.traces = trace_keys(self.trace, seed)
            self.keys = span_keys(self.traces, self.span, seed)
            self.parents = span_keys(self.traces, self.parent, seed)
            self.content = contents(decoded)
            return
        n = len(decoded)
        self.trace, content, made = np.empty((n, 2), np.uint64), np.empty(n, np.uint64), np.empty((5, n), np.uint64)
        ids = [_stored(spans[name]) for name in ("trace_id", "span_id", "parent_span_id")]
        numbers = [_read_only(np.asarray(spans[name])) for name in ("start_ns", "end_ns", "kind", "status_code")]
        walk.identify(ids[0].reshape(n, 2), *ids[1:], *numbers, np.uint64(seed), MULTIPLIERS, self.trace, made, content)
        self.traces, self.keys, self.parents, self.span, self.parent = made
        self.content = _rest_of_contents(decoded, content)

    def select(self, rows: Rows) -> None:
        """Let only some rows be here."""
        for name in self.__slots__:
            setattr(self, name, getattr(self, name)[rows])


def _read_only(array: Any) -> Any:
    """Arrays that a kernel is given are all of this kind, for to numba it is another type."""
    array = array.view()
    array.flags.writeable = False
    return array


def _stored(column: Any) -> Any:
    """The bytes of a fixed_size_binary array as 64-bit integers, as they stand in memory."""
    array = _array(column)
    size = array.type.byte_width
    if not len(array):
        return _read_only(np.zeros(0, np.uint64))
    return _read_only(np.frombuffer(array.buffers()[1], np.uint64, len(array) * size // 8, array.offset * size))


@dataclass(frozen=True, slots=True)
class Sifted:
    """Which spans of a batch are new.

    Attributes:
        fresh: their rows, ascending.
        duplicates: how many came before with the same content.
        conflicts: rows of those that came before with other content.
    """

    fresh: Rows
    duplicates: int
    conflicts: Rows


def sift(known: Known, column: int, keys: U64, contents: U64, order: Rows | None = None) -> Sifted:
    """Tell new spans from those that came before, in the batch itself or among ``known``.

    Args:
        known: earlier spans.
        column: of its values, the one with their content.
        keys, contents: of the batch, shape (n,).
        order: what sorts the keys, where that is known.
    """
    order = in_order(keys) if order is None else order
    ascending = keys.take(order)
    # Asked for in order, keys pass through an index's slots as they stand in memory.
    rows, values = known.find(ascending)
    rows = order.take(rows)
    again = np.zeros(len(keys), np.bool_)
    other = np.zeros(len(keys), np.bool_)
    again[rows] = True
    before = values[:, column]
    other[rows] = (before != contents[rows]) & (before != UNKNOWN)
    if (ascending[1:] == ascending[:-1]).any() and (within := repeated(keys) & ~again).any():
        _, first, number = np.unique(keys, return_index=True, return_inverse=True)
        again |= within
        other |= within & (contents != contents[first[number.reshape(-1)]])
    return Sifted(np.flatnonzero(~again), int(np.count_nonzero(again & ~other)), np.flatnonzero(other))


def contents(decoded: Decoded) -> U64:
    """A hash of each span as it was sent, shape (n,): the same for a span that is sent again, whatever is around it.

    Of all that the span says itself and of its resource (which also says who sent it); not of its scope. The order of
    attributes counts: senders that send again do not change it.
    """
    spans = decoded.spans
    with np.errstate(over="ignore"):
        h = _mixed(np.asarray(spans["start_ns"]).astype(np.uint64))
        h = _mixed(h + np.asarray(spans["end_ns"]).astype(np.uint64))
        h = _mixed(h + words(spans["parent_span_id"], 1)[:, 0])
        codes = np.asarray(spans["kind"]).astype(np.uint64) << np.uint64(32)
        h += _mixed(codes ^ np.asarray(spans["status_code"]).astype(np.uint64))
    return _rest_of_contents(decoded, h)


def _rest_of_contents(decoded: Decoded, h: U64) -> U64:
    """`contents`, from what times, parent, kind and status make of it; ``h`` is overwritten."""
    spans = decoded.spans
    with np.errstate(over="ignore"):
        for number, name in enumerate(("name", "status_message", "trace_state")):
            _add_texts(spans[name], _C + np.uint64(2 * number), h)
        for number, name in enumerate(("events", "links")):
            lists = _array(spans[name])
            if len(lists.values):
                h += _ranges(_array(lists.values), np.asarray(lists.offsets)) * (_B + np.uint64(2 * number))
        h += _attributes(decoded.attributes, len(decoded))
        resources = _attributes(decoded.resources, len(decoded.resources.offsets) - 1)
        if len(resources):
            h += _mixed(resources)[np.asarray(spans["resource"])]
        return _mixed(h)


def _attributes(attributes: Any, owners: int) -> U64:
    """A hash of the attributes of each owner."""
    if not owners:
        return np.zeros(0, np.uint64)
    offsets = np.asarray(attributes.offsets)
    keys = _mixed(_texts(attributes.keys))
    made: U64 | None = attributes.content(keys, MOST_HASHED, _CONSTANTS)
    if made is not None:
        return made
    with np.errstate(over="ignore"):
        each = _mixed(_ranges(attributes.raw, None) + keys[attributes.codes])
    # Each in its place, so that attributes that changed places are other content.
    return _sums(each, offsets)


def _add_texts(column: Any, factor: np.uint64, out: U64) -> None:
    """Add a hash of each value of a string or binary column, times ``factor``, to ``out``."""
    walk, array = kernels(), _array(column)
    if walk is None:
        out += _ranges(array, None) * factor
    elif len(array) and array.buffers()[2] is not None:
        ends = np.frombuffer(array.buffers()[1], np.int32, len(array) + 1, 4 * array.offset)
        data = np.frombuffer(array.buffers()[2], np.uint8)
        walk.add_ranges(_read_only(data), _read_only(ends), MOST_HASHED, _CONSTANTS, factor, out)


def _texts(column: Any) -> U64:
    """A hash of each value of a string or binary column."""
    made = np.zeros(len(column), np.uint64)
    _add_texts(column, np.uint64(1), made)
    return made


def _ranges(array: Any, bounds: Any) -> U64:
    """A hash of the bytes of several neighbouring values of a binary array together.

    Args:
        array: string or binary array, 32-bit offsets, no nulls.
        bounds: shape (m + 1,); owner i has the values ``bounds[i]`` to ``bounds[i + 1]``. None: each value is alone.
    """
    owners = len(array) if bounds is None else len(bounds) - 1
    if not len(array) or array.buffers()[2] is None:
        return np.zeros(owners, np.uint64)
    ends = np.frombuffer(array.buffers()[1], np.int32, len(array) + 1, 4 * array.offset)
    at = (ends if bounds is None else ends[np.asarray(bounds)]).astype(np.int64)
    if at[0] == at[-1]:
        return np.zeros(owners, np.uint64)
    data = np.frombuffer(array.buffers()[2], np.uint8)
    starts, lengths = at[:-1], np.diff(at)
    made: U64 = lengths.astype(np.uint64) * _C
    # In parts of some megabytes, so that what is made beside the bytes stays in proportion.
    sizes = (np.minimum(lengths, MOST_HASHED) + 7) >> 3
    part = np.cumsum(sizes) // (MOST_HASHED >> 2)
    cuts = [0, *(np.flatnonzero(np.diff(part)) + 1), owners]
    for first, last in itertools.pairwise(cuts):
        made[first:last] += _words(data, starts[first:last], np.minimum(lengths[first:last], MOST_HASHED))
    return made


def _words(data: npt.NDArray[np.uint8], starts: Rows, lengths: Rows) -> U64:
    """A hash of each byte range: a polynomial over its 64-bit words, the last one filled up with zeros."""
    if len(data) < 16 or int(starts[-1] + lengths[-1]) + 8 > len(data):
        # A word is read as a whole, also where only a part of it belongs to the last range.
        first = int(starts[0])
        data = np.concatenate([data[first : int(starts[-1] + lengths[-1])], np.zeros(16, np.uint8)])
        starts = starts - first
    view: U64 = np.ndarray((len(data) - 7,), "<u8", data.data, strides=(1,))
    counts = (lengths + 7) >> 3
    ends = np.cumsum(counts)
    firsts = ends - counts
    at = np.arange(0, 8 * int(ends[-1]), 8)
    at += np.repeat(starts - 8 * firsts, counts)
    found = view[at]
    odd = np.flatnonzero(lengths & 7)
    found[ends[odd] - 1] &= (np.uint64(1) << ((lengths[odd] & 7) << 3).astype(np.uint64)) - np.uint64(1)
    found ^= found >> np.uint64(29)
    return _sums(found, np.concatenate([firsts, ends[-1:]]))


def _sums(values: U64, bounds: Any) -> U64:
    """Σ value × base^place of each owner's values, modulo 2⁶⁴; overwrites ``values``."""
    powers, inverses = _powers(len(values) + 1)
    values *= powers[: len(values)]
    sums = np.zeros(len(values) + 1, np.uint64)
    np.cumsum(values, out=sums[1:])
    made: U64 = (sums[bounds[1:]] - sums[bounds[:-1]]) * inverses[bounds[:-1]]
    return made


_tables: list[U64] = [np.ones(1, np.uint64), np.ones(1, np.uint64)]


def _powers(count: int) -> tuple[U64, U64]:
    """Powers of the base and of its inverse."""
    if len(_tables[0]) < count:
        size = max(1 << (count - 1).bit_length(), 1 << 16)
        for number, base in enumerate((_BASE, _INVERSE)):
            table = np.full(size, base, np.uint64)
            table[0] = 1
            _tables[number] = np.cumprod(table, dtype=np.uint64)
    return _tables[0], _tables[1]


def _mixed(h: U64) -> U64:
    h = (h ^ (h >> np.uint64(32))) * _A
    return h ^ (h >> np.uint64(29))


def _array(column: Any) -> Any:
    return column.combine_chunks() if hasattr(column, "combine_chunks") else column


@dataclass(slots=True)
class ConflictLog:
    """Tells of conflicts in the log, at most once in `QUIET_S`; the counter has them all."""

    _next: float = -np.inf
    _untold: int = field(default=0)

    def tell(self, trace_ids: Any, span_ids: Any) -> None:
        """Name some of them.

        Args:
            trace_ids, span_ids: binary columns of the conflicting spans.
        """
        self._untold += len(span_ids)
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + QUIET_S
        named = ", ".join(
            f"{trace.hex()}/{span.hex()}"
            for trace, span in zip(trace_ids[:NAMED].to_pylist(), span_ids[:NAMED].to_pylist(), strict=True)
        )
        log.warning(
            "%d spans came again under their ids with other content; the first of each stays: %s%s",
            self._untold,
            named,
            " …" if self._untold > NAMED else "",
        )
        self._untold = 0
