"""The fused reading: `walk` over a batch, and Arrow columns from what it found.

In: payloads. Out: `Decoded`, `Checked`; None while the walker is not at hand, and for the rare batch that it leaves
altogether. Values of attributes stay where they stand in the batch's bytes; what is asked for is copied.

**When it is at hand.** Compiling takes seconds and numba a hundred megabytes, which neither a user's program that only
exports spans nor a service that gets few must pay. So nothing is imported until a process calls `prepare`, or
`prepare_from` and large batches come: a thread of low priority compiles, and `check` and `decode` move over when it is
done. What was compiled is cached beside the module, or where
``NUMBA_CACHE_DIR`` says, or in the user's cache folder; where none of these can be written to, each process compiles
for itself.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import itertools
import logging
import os
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tollspan.processor.decode.anyvalue import EMPTY, INT, STRING, by_kind, kind_as_text
from tollspan.processor.decode.arrow_bytes import Bytes, Mask, Rows, from_layout, layout
from tollspan.processor.decode.arrow_bytes import text as checked_text
from tollspan.processor.decode.otlp_slim import rewritten
from tollspan.processor.decode.tables import (
    BAD_PARENT_SPAN_ID,
    BAD_SPAN_ID,
    BAD_TRACE_ID,
    COLUMNS,
    RESOURCE_COLUMNS,
    SCOPE_COLUMNS,
    Attributes,
    Checked,
    Decoded,
    Said,
    Stored,
    attributes_together,
    rows_together,
)

log = logging.getLogger(__name__)

SLACK: Final = 8
"""Bytes after the last payload, so that the walker can move eight at once."""
_KEYS: Final = 512
_MOST_PREFERENCES: Final = 255
_BRIEF: Final = 256 << 10
"""Bytes of a request that are checked in less time than it takes to get the GIL back from a busy worker."""
_REASONS: Final = (BAD_TRACE_ID, BAD_SPAN_ID, BAD_PARENT_SPAN_ID)

_USED: Final = (
    "walk",
    "walk_spans",
    "examine",
    "examine_brief",
    "gather",
    "messages",
    "texts_room",
    "texts",
    "by_key",
    "encode",
    "content",
    "said_values",
    "said_shapes",
    "said",
    "shapes",
    "place_codes",
    "add_ranges",
    "identify",
    "index_find",
    "index_add",
    "index_drop",
    "index_move",
    "order",
    "parent_rows",
    "rows_of",
    "climb",
    "well_formed",
)
"""What is called from outside of `walk`."""

_walk: Any = None
"""The module `walk` once it is compiled and tried."""
_preparing = threading.Lock()
_thread: threading.Thread | None = None


def ready() -> bool:
    """Whether the walker does the work in this process."""
    return _walk is not None


def kernels() -> Any:
    """The compiled module, None while there is none."""
    return _walk


COMPILE_S: Final = 60.0
"""Seconds that the end of a process waits for its compilation at the most."""


def prepare(then: Callable[[], object] | None = None, *, wait: bool = False) -> None:
    """Compile the walker in this process, on a thread of low priority, unless that was done.

    Args:
        then: called on that thread when it is done.
        wait: come back when it is done (or cannot be).
    """
    with _preparing:
        if _thread is None:
            _start(lambda: _prepare(then))
    if wait:
        assert _thread is not None
        _thread.join()


class _Awaited(NamedTuple):
    """For what batches compiling is worth it; see `prepare_from`."""

    size: int
    then: Callable[[], object] | None


_awaited: _Awaited | None = None


def prepare_from(size: int, then: Callable[[], object] | None = None) -> None:
    """`prepare` as soon as a batch of so many bytes or more is decoded; at once where that is 0.

    Args:
        size: payload bytes.
        then: as in `prepare`.
    """
    global _awaited
    _awaited = _Awaited(size, then)
    if size <= 0:
        prepare(then)


def also(compile_: Callable[[], None]) -> None:
    """Have something else compiled once the walker is, in processes that have it compiled. A failure is logged."""
    with _preparing:
        _others.append(compile_)
        if _thread is not None and _others_done:
            _start(_prepare_others)


_others: list[Callable[[], None]] = []
_others_done = False


def _start(work: Callable[[], None]) -> None:
    global _thread, _others_done
    _others_done = False
    _thread = threading.Thread(target=work, name="tollspan-compile", daemon=True)
    _thread.start()
    # LLVM aborts the process that ends while it compiles.
    atexit.register(_thread.join, COMPILE_S)


def _prepare_others() -> None:
    global _others_done
    while True:
        with _preparing:
            if not _others:
                _others_done = True
                return
            compile_ = _others.pop(0)
        if _walk is None:
            continue
        try:
            compile_()
        except Exception:
            log.warning("%s: its kernels cannot be compiled here", compile_.__module__, exc_info=True)


def leave() -> None:
    """End the process with exit code 0 at once. For a program that has done everything but what is registered with
    `atexit`: the interpreter would take all modules and LLVM's apart, a tenth of a second of CPU time, and LLVM aborts
    a process that ends while it compiles."""
    if _thread is not None:
        atexit.unregister(_thread.join)
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        # Who read them may be gone.
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(0)


def _prepare(then: Callable[[], object] | None) -> None:
    global _walk
    with contextlib.suppress(OSError, AttributeError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)  # of this thread, on Linux
    try:
        from tollspan.processor.decode import walk

        _try(walk)
    except ImportError as error:
        log.info("spans are decoded by ptars: numba is not installed (%s)", error)
    except Exception:
        log.warning("spans are decoded by ptars: the faster decoder cannot be compiled here", exc_info=True)
    else:
        for name in _USED:
            getattr(walk, name).disable_compile()  # seconds, in the middle of a batch, for arguments of another type
        _walk = walk
        log.info("the decoder is compiled")
    _prepare_others()
    if then is not None:
        then()


def _try(walk: ModuleType) -> None:
    """Compile by using: a request of one span with one attribute, through everything."""
    # ResourceSpans > ScopeSpans > Span with ids and the attribute k = "v".
    span = b"\x0a\x10" + b"t" * 16 + b"\x12\x08" + b"s" * 8 + b"\x4a\x08\x0a\x01k\x12\x03\x0a\x01v"
    scope = b"\x12" + bytes([len(span)]) + span
    resource = b"\x12" + bytes([len(scope)]) + scope
    request = b"\x0a" + bytes([len(resource)]) + resource
    longer = request + b"\xfa\x3e\x80\x80\x14" + bytes(20 << 14)  # a field that nobody knows
    if _check(walk, request) != Checked(None, 1) or _check(walk, longer) != Checked(None, 1):
        raise RuntimeError("the compiled decoder does not count what it is given")
    _try_index(walk)
    decoded = _decode(walk, [request], [])
    assert decoded is not None
    assert decoded.wire is not None
    # Bytes of length, twice; not text.
    table = np.array([[0, walk.MESSAGE_FIELD + 1], [0, walk.BYTES_FIELD]], np.uint8)
    if not _well_formed(walk, b"\x0a\x03\x0a\x01\xff", table) or _well_formed(walk, b"\x0a\x01\x0a", table):
        raise RuntimeError("the compiled decoder does not check what it is given")
    if decoded.wire.messages() != pa.array([span], pa.binary()):
        raise RuntimeError("the compiled decoder does not copy what it is given")
    for found in (decoded, decoded.wire.select(np.zeros(1, np.int64))):
        (rows,) = found.attributes.by_key(np.zeros(1, np.int64))
        codes, values = found.attributes.encode(rows)
        found.attributes.content(np.ones(1, np.uint64), 1, np.ones(3, np.uint64))
        numbers = found.attributes.first_said([], np.zeros(1, np.int64))
        if numbers is None or (numbers.given.tolist(), numbers.kinds.tolist()) != ([[STRING]], [1 << STRING]):
            raise RuntimeError("the compiled decoder does not tell what it is given")
        said = found.attributes.first_said([["k"], ["x"]], np.zeros(0, np.int64))
        if said is None or said.places != {0: 0} or said.said.tolist() != [[0]] or said.values != values:
            raise RuntimeError("the compiled decoder does not find what it is given")
        if [each.tolist() for each in (said.heads, said.of, *numbered_rows(walk, said.said))] != 4 * [[0]]:
            raise RuntimeError("the compiled decoder does not number what it is given")
        placed(walk, said.said[:, 0].copy(), np.zeros(1, np.int32), None, None, 1)
        if found.attributes.maps().to_pylist() != [[("k", "v")]] or values.take(codes) != found.attributes.raw:
            raise RuntimeError("the compiled decoder does not read what it is given")


def _try_index(walk: ModuleType) -> None:
    """What `tollspan.processor.recent` uses: one key is put in twice and found again."""
    one, given = np.ones(1, np.uint64), np.ones(1, np.int32)
    for array in (ids := np.ones(2, np.uint64), told := one.copy(), given, text_ := np.ones(1, np.uint8)):
        array.flags.writeable = False
    (ends := np.arange(2, dtype=np.int32)).flags.writeable = False
    trace, made, out = np.empty((1, 2), np.uint64), np.empty((5, 1), np.uint64), one.copy()
    seed, three = np.uint64(1), np.ones(3, np.uint64)
    walk.identify(ids.reshape(1, 2), told, told, told, told, given, given, seed, three, trace, made, out)
    walk.add_ranges(text_, ends, 1, three, seed, out)
    slots, known, beside = np.zeros(4, np.uint64), np.zeros(2, np.uint64), np.zeros((2, 1), np.uint64)
    state, place = np.zeros(2, np.int64), np.zeros(1, np.int64)
    for value in (4, 5):
        walk.index_add(one, one[:, None] * np.uint64(value), slots, known, beside, state)
    walk.index_drop(1, slots, known, state)
    old, slots = slots, np.zeros(4, np.uint64)
    walk.index_move(old, known, beside, slots, known.copy(), beside.copy(), state)
    if walk.index_find(one, slots, known, place) != 1 or beside[place[0], 0] != 5:
        raise RuntimeError("the compiled index does not find what it is given")
    counts, order = np.zeros((walk.SORTED_BY, walk.DIGITS), np.int64), np.empty((2, 2), np.int64)
    if not walk.order(np.array([9, 5], np.uint64), counts, *order) or order[1].tolist() != [1, 0]:
        raise RuntimeError("the compiled sort does not put in order what it is given")
    two, flags, up = np.arange(2, dtype=np.uint64), np.zeros(2, np.bool_), np.empty(2, np.int64)
    walk.parent_rows(two, two[::-1].copy(), ~flags, table := np.zeros(4, np.int32), up)
    walk.rows_of(two, two, table, rows := np.empty(2, np.int64))
    if walk.climb(rows, up, two, flags, marked := flags.copy(), two.copy()) or not marked.all():
        raise RuntimeError("the compiled search for parents does not find what it is given")


def _empty(*shape: int, kind: Any = np.int32) -> npt.NDArray[Any]:
    return np.empty(shape, kind)


class _Table:
    """Arrays for attributes."""

    def __init__(self, rows: int) -> None:
        self.fields, self.kinds, self.contents = (
            _empty(4, rows),
            _empty(rows, kind=np.uint8),
            _empty(rows, kind=np.int64),
        )

    def arguments(self) -> tuple[Any, ...]:
        return self.fields, self.kinds, self.contents


class _Keys:
    """A table of texts that are numbered."""

    def __init__(self, room: int) -> None:
        # At most a quarter of the slots is taken: chains stay short.
        self.slots = np.zeros(1 << (4 * room - 1).bit_length(), np.int32)
        self.known, self.follow = _empty(2, room), np.full(room + 1, -1, np.int32)

    def arguments(self) -> tuple[Any, ...]:
        return self.slots, self.known, self.follow


class _Arrays:
    """What the walker writes into.

    Args:
        spans, attributes, events, links, resources, resource_attributes, scopes, scope_attributes, entries, keys: for
            how many of each there is room; entries are distinct attributes of spans.
    """

    def __init__(self, walk: Any, room: list[int]) -> None:
        spans, attributes, events, links, resources, resource_attributes, scopes, scope_attributes, entries, keys = room
        self.walk = walk
        self.counts = np.zeros((2, walk.COUNTERS), np.int64)
        self.traces, self.ids = _empty(spans, 2, kind=np.uint64), _empty(2, spans, kind=np.uint64)
        self.times, self.fields = _empty(2, spans, kind=np.uint64), _empty(walk.SPAN_FIELDS, spans)
        self.rows, self.attributes = _empty(attributes), _Table(entries)
        self.recent = np.zeros(walk.RECENT, np.uint64)
        self.events, self.links = _empty(2, events), _empty(2, links)
        self.resources, self.resource_attributes = _empty(8, resources), _Table(resource_attributes)
        self.scopes, self.scope_attributes = _empty(8, scopes), _Table(scope_attributes)
        self.keys = _Keys(keys)

    def of_spans(self) -> tuple[Any, ...]:
        return (
            self.counts,
            self.traces,
            self.ids,
            self.times,
            self.fields,
            self.rows,
            *self.attributes.arguments(),
            self.recent,
            self.events,
            self.links,
        )

    def of_origins(self) -> tuple[Any, ...]:
        return (
            self.resources,
            *self.resource_attributes.arguments(),
            self.scopes,
            *self.scope_attributes.arguments(),
        )

    def of_keys(self) -> tuple[Any, ...]:
        return *self.keys.arguments(), self.walk.MULTIPLIERS


def check(payload: bytes) -> Checked | None:
    """As `decode.check`; None where protobuf's parser has to be asked."""
    if _walk is None:
        return None
    try:
        return _check(_walk, payload)
    except Exception:  # noqa: BLE001  (logged there)
        _fault()
        return None


def _check(walk: Any, payload: bytes) -> Checked | None:
    if not payload:
        return Checked(None)
    counts, odd = np.zeros((2, walk.COUNTERS), np.int64), np.zeros(1, np.bool_)
    examine = walk.examine_brief if len(payload) <= _BRIEF else walk.examine
    examine(np.frombuffer(payload, np.uint8), np.array([len(payload)]), odd, counts, *_DUMMIES, walk.MULTIPLIERS)
    return None if odd[0] else Checked(None, int(counts[0, walk.SEEN]), _rejected(walk, counts[0]))


_DUMMIES: Final = (
    _empty(0, 2, kind=np.uint64),
    _empty(2, 0),
    _empty(0),
    _empty(0, kind=np.uint8),
    _empty(0, kind=np.int64),
    _empty(0, kind=np.uint64),
)
"""Arrays of every type that a walk takes, for one that writes nothing."""


def _rejected(walk: Any, counts: Any) -> dict[str, int]:
    found = counts[walk.BAD_TRACE : walk.BAD_TRACE + 3].tolist()
    return {reason: count for reason, count in zip(_REASONS, found, strict=True) if count}


def _fault() -> None:
    """A kernel raised: none is known to. Nothing was read out of bounds, for the bounds checks are what raises."""
    log.exception("the compiled decoder met a fault of its own; the other one is asked")


def decode(wire: list[bytes], malformed: list[int]) -> Decoded | None:
    """As `decode.decode`; None where the other reading has to be asked.

    Args:
        wire: the payloads; those that have to be are written out again in here, or emptied.
        malformed: indices of those that were emptied are added.
    """
    if _walk is None:
        if _awaited is not None and _thread is None and sum(map(len, wire)) >= _awaited.size:
            prepare(_awaited.then)
        return None
    try:
        return _decode(_walk, wire, malformed)
    except Exception:  # noqa: BLE001  (logged there)
        _fault()
        return None


def _decode(walk: Any, wire: list[bytes], malformed: list[int]) -> Decoded | None:
    data, odd, arrays = _walked(walk, wire)
    as_sent = not odd.any()
    if not as_sent:
        for index in np.flatnonzero(odd).tolist():
            again = rewritten("Request", wire[index])
            if again is None:
                malformed.append(index)
            wire[index] = again or b""
        data, odd, arrays = _walked(walk, wire)
        if odd.any():  # bytes that protobuf itself wrote: none is known
            return None
    return _Reading(walk, data, arrays, as_sent).decoded(malformed)


_dense: list[float] = [1 / 256, 1 / 24, 1 / 256, 1 / 256, 1 / 4096, 1 / 1024, 1 / 4096, 1 / 4096, 1 / 64]
"""Rows of each table in a byte, as seen lately: a guess at how much room a batch needs."""


def _walked(walk: Any, wire: list[bytes]) -> tuple[Bytes, Mask, _Arrays]:
    blob = b"".join([*wire, bytes(SLACK)])
    data = np.frombuffer(blob, np.uint8)
    ends = np.cumsum(np.array([len(payload) for payload in wire], np.int64))
    odd = np.zeros(len(wire), np.bool_)
    room = [int(len(blob) * share * 1.1) + 64 for share in _dense]
    keys = _KEYS
    while True:
        arrays = _Arrays(walk, [*room, keys])
        ended = walk.walk(data, ends, odd, True, False, *arrays.of_spans(), *arrays.of_origins(), *arrays.of_keys())
        if ended != walk.FULL:
            break
        # Counted without writing; then only the keys can be too many.
        counts = np.zeros((2, walk.COUNTERS), np.int64)
        walk.examine(data, ends, odd, counts, *_DUMMIES, walk.MULTIPLIERS)
        exact = [int(count) + 1 for count in counts[0, : walk.KEYS]]
        exact.append(exact[walk.ATTRIBUTES])  # none of them like another
        if all(have >= need for have, need in zip(room, exact, strict=True)):
            keys *= 8
        room = [max(have, need) for have, need in zip(room, exact, strict=True)]
    found = arrays.counts[0]
    for table, count in enumerate([*found[: walk.KEYS].tolist(), int(found[walk.ENTRIES])]):
        share = count / max(len(blob), 1)
        _dense[table] = max(share, 0.9 * _dense[table])
    return data, odd, arrays


class _Reading:
    """Columns from the walker's arrays.

    Args:
        data: what was walked.
        as_sent: it is the payloads as they came.
    """

    def __init__(self, walk: Any, data: Bytes, arrays: _Arrays, as_sent: bool = False) -> None:
        self.walk, self.data, self.arrays, self.as_sent = walk, data, arrays, as_sent
        self.counts = arrays.counts[0].tolist()
        self.length = self.counts[walk.SPANS]
        known = arrays.keys.known[:, : self.counts[walk.KEYS]]
        self.keys = text(walk, data, known[0], known[1])

    def decoded(self, malformed: list[int]) -> Decoded:
        walk, arrays = self.walk, self.arrays
        scopes = arrays.scopes[:, : self.counts[walk.SCOPES]]
        resources = arrays.resources[:, : self.counts[walk.RESOURCES]]
        made = Decoded(
            self.spans(),
            self.of_spans(),
            self.attributes(arrays.resource_attributes, resources[walk.ENDS]),
            pa.RecordBatch.from_arrays(
                [
                    self.text(scopes, walk.LABEL),
                    self.text(scopes, walk.VERSION),
                    self.text(scopes, walk.URL),
                    pa.array(scopes[walk.DROPPED].view(np.uint32)),
                ],
                names=SCOPE_COLUMNS,
            ),
            self.attributes(arrays.scope_attributes, scopes[walk.ENDS]),
            pa.RecordBatch.from_arrays(
                [self.text(resources, walk.URL), pa.array(resources[walk.DROPPED].view(np.uint32))],
                names=RESOURCE_COLUMNS,
            ),
            _rejected(walk, arrays.counts[0]),
            sorted(malformed),
        )
        object.__setattr__(made, "wire", OnTheWire.of(self, made))
        return made

    def field(self, number: int) -> npt.NDArray[np.int32]:
        found: npt.NDArray[np.int32] = self.arrays.fields[number, : self.length]
        return found

    def text(self, fields: Any, number: int) -> Any:
        return text(self.walk, self.data, fields[number], fields[number + 1])

    def spans(self) -> Any:
        walk, arrays, length = self.walk, self.arrays, self.length
        fields = arrays.fields[:, :length]
        return pa.RecordBatch.from_arrays(
            [
                _identifiers(arrays.traces[:length], 16),
                _identifiers(arrays.ids[0, :length], 8),
                _identifiers(arrays.ids[1, :length], 8),
                self.text(fields, walk.STATE),
                self.text(fields, walk.NAME),
                pa.array(fields[walk.KIND]),
                pa.array(arrays.times[0, :length]),
                pa.array(arrays.times[1, :length]),
                pa.array(fields[walk.STATUS]),
                self.text(fields, walk.MESSAGE),
                pa.array(fields[walk.RESOURCE]),
                pa.array(fields[walk.SCOPE]),
                self.lists(arrays.events[:, : self.counts[walk.EVENTS]], fields[walk.EVENTS_END]),
                self.lists(arrays.links[:, : self.counts[walk.LINKS]], fields[walk.LINKS_END]),
                *(
                    pa.array(fields[number].view(np.uint32))
                    for number in (walk.FLAGS, walk.DROPPED_ATTRIBUTES, walk.DROPPED_EVENTS, walk.DROPPED_LINKS)
                ),
            ],
            names=COLUMNS,
        )

    def lists(self, refs: Any, ends: Any) -> Any:
        offsets = np.zeros(len(ends) + 1, np.int32)
        offsets[1:] = ends
        return pa.ListArray.from_arrays(pa.array(offsets), gathered(self.walk, self.data, refs[0], refs[1])[0])

    def of_spans(self) -> Attributes:
        """The spans' attributes."""
        walk, arrays = self.walk, self.arrays
        offsets = np.zeros(self.length + 1, np.int64)
        offsets[1:] = self.field(walk.ATTRIBUTES_END)
        rows, entries = arrays.rows[: self.counts[walk.ATTRIBUTES]], self.counts[walk.ENTRIES]
        return WireAttributes.of(walk, self.data, offsets, self.keys, rows, arrays.attributes, entries)

    def attributes(self, table: _Table, ends: Any) -> Attributes:
        """Attributes of others: all of them are in the table."""
        offsets = np.zeros(len(ends) + 1, np.int64)
        offsets[1:] = ends
        rows = np.arange(offsets[-1], dtype=np.int32)
        return WireAttributes.of(self.walk, self.data, offsets, self.keys, rows, table, len(rows))


def _identifiers(words: Any, width: int) -> Any:
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(width), len(words), [None, pa.py_buffer(words)])


def gathered(walk: Any, data: Bytes, starts: Any, sizes: Any) -> tuple[Any, bool]:
    """Stretches of ``data`` as a binary array, and whether all of it is ASCII."""
    offsets = np.zeros(len(starts) + 1, np.int32)
    total = int(sizes.sum(dtype=np.int64)) if len(sizes) else 0
    if not total:
        return from_layout(offsets, _NO_BYTES), True
    if total > np.iinfo(np.int32).max:
        raise ValueError("more than two gigabytes in one column")
    out = np.empty(total + SLACK, np.uint8)
    wide = walk.gather(
        data, np.ascontiguousarray(starts, np.int64), np.ascontiguousarray(sizes, np.int64), offsets, out
    )
    out.flags.writeable = False
    return from_layout(offsets, out), not wide


_NO_BYTES: Final[Bytes] = np.zeros(0, np.uint8)
_SLACK: Final[Bytes] = np.zeros(SLACK, np.uint8)


def text(walk: Any, data: Bytes, starts: Any, sizes: Any) -> Any:
    """Stretches of ``data`` as a string array; what is not UTF-8 becomes U+FFFD."""
    found, ascii_only = gathered(walk, data, starts, sizes)
    return found.view(pa.string()) if ascii_only else checked_text(found)


class WireAttributes(Attributes):
    """Attributes whose values stand in the bytes of their batch, those of the same bytes numbered alike.

    What `Attributes` has for each row is made when it is asked for.

    Attributes:
        rows: int32, m: number of each attribute in
        fields, kinds_of, contents: see `walk`; e attributes.
    """

    __slots__ = ("_codes", "_kinds", "contents", "data", "fields", "kinds_of", "rows", "walk")

    walk: Any
    data: Bytes
    rows: npt.NDArray[np.int32]
    fields: npt.NDArray[np.int32]
    kinds_of: npt.NDArray[np.uint8]
    contents: npt.NDArray[np.int64]
    _codes: npt.NDArray[np.int32] | None
    _kinds: npt.NDArray[np.uint8] | None

    def __new__(cls, *arguments: Any, **named: Any) -> Any:
        # `dataclasses.replace` calls the class with columns, and what it gets has them.
        return Attributes(*arguments, **named) if arguments or named else object.__new__(cls)

    def __init__(self) -> None:
        """See `of`."""

    @classmethod
    def of(
        cls,
        walk: Any,
        data: Bytes,
        offsets: npt.NDArray[np.int64],
        keys: Any,
        rows: npt.NDArray[np.int32],
        table: _Table,
        entries: int,
    ) -> WireAttributes:
        made: WireAttributes = cls()
        for name, value in (
            ("walk", walk),
            ("data", data),
            ("offsets", offsets),
            ("keys", keys),
            ("rows", rows),
            ("fields", table.fields),  # the kernels take it whole: another layout would be another type
            ("kinds_of", table.kinds[:entries]),
            ("contents", table.contents[:entries]),
            ("_codes", None),
            ("_kinds", None),
        ):
            object.__setattr__(made, name, value)
        return made

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def codes(self) -> npt.NDArray[np.int32]:  # type: ignore[override]
        if self._codes is None:
            object.__setattr__(self, "_codes", self.fields[self.walk.CODE].take(self.rows))
        assert self._codes is not None
        return self._codes

    @property
    def kinds(self) -> npt.NDArray[np.uint8]:  # type: ignore[override]
        if self._kinds is None:
            object.__setattr__(self, "_kinds", self.kinds_of.take(self.rows))
        assert self._kinds is not None
        return self._kinds

    @property
    def raw(self) -> Any:  # type: ignore[override]
        return self._gathered(self.rows)

    @property
    def nbytes(self) -> int:
        held = (self.offsets, self.keys, self.rows, self.fields, self.kinds_of, self.contents)
        return sum(int(each.nbytes) for each in held)

    def _gathered(self, entries: Any) -> Any:
        walk, fields = self.walk, self.fields
        return gathered(walk, self.data, fields[walk.VALUE].take(entries), fields[walk.VALUE_SIZE].take(entries))[0]

    def take(self, rows: Rows) -> Any:
        return self._gathered(self.rows.take(rows))

    def owners_of(self, rows: Rows) -> Rows:
        return np.searchsorted(self.offsets, rows, side="right") - 1

    def _places(self, codes: Rows) -> npt.NDArray[np.int32]:
        """For each key its place in ``codes``, -1 = none."""
        place = np.full(len(self.keys), -1, np.int32)
        place[codes] = np.arange(len(codes), dtype=np.int32)
        return place

    def by_key(self, codes: Rows) -> list[Rows]:
        starts, rows = np.zeros(len(codes) + 1, np.int64), np.empty(len(self), np.int64)
        where = _empty(len(self.kinds_of))
        self.walk.by_key(self.rows, self.fields, self.kinds_of, self._places(codes), where, starts, rows)
        ends = starts.tolist()
        return [rows[start:end] for start, end in itertools.pairwise(ends)]

    def encode(self, rows: Rows) -> tuple[npt.NDArray[np.int32], Any]:
        codes, entries = np.empty(len(rows), np.int32), self.rows.take(rows)
        return codes, self.numbered(lambda *keys: self.walk.encode(self.data, self.fields, entries, codes, *keys))

    def first_said(self, columns: Sequence[Sequence[str]], codes: Rows) -> Said | None:
        walk, wanted = self.walk, _preferences(tuple(map(tuple, columns)))
        counts = np.zeros(len(self.keys) + 1, np.int32)
        found: list[tuple[int, int]] = []
        for code, key in enumerate(self.keys.to_pylist()):
            if (entries := wanted.get(key)) is not None:
                found += entries
                counts[code + 1] = len(entries)
        first = np.cumsum(counts, dtype=np.int32)
        places = {number: place for place, number in enumerate(sorted({number for number, _ in found}))}
        column, ranks = (
            np.array([places[number] for number, _ in found], np.int32),
            np.array([preference for _, preference in found], np.uint8),
        )
        ids, seen = np.empty(len(self.kinds_of), np.int64), np.zeros(len(codes), np.int64)
        place = self._places(codes)

        def number_them(*keys: Any) -> Any:
            last = np.full(len(self.keys), -1, np.int32)
            return walk.said_values(self.data, self.fields, self.kinds_of, first, place, last, ids, seen, *keys)

        values = self.numbered(number_them)
        shape = (len(codes), len(self.offsets) - 1)
        given, numbers = np.zeros(shape, np.uint8), np.zeros(shape, np.int64)
        heads, of = self._shapes(ids, given, numbers)
        best, said = np.empty(len(places), np.uint8), _empty(len(heads), len(places))
        walk.said(heads, self.rows, self.offsets, ids, first, column, ranks, best, said)
        return Said(places, said, values, heads, of, given, numbers, seen)

    def _shapes(self, ids: Any, given: Any, numbers: Any) -> tuple[Rows, Rows]:
        """Owners by what they say, as `numbered_rows` gives them; ``ids`` and the others as in the kernel
        `said_shapes`."""
        of, words = np.empty(len(self.offsets) - 1, np.int64), np.empty(len(self), np.int64)
        table = ids, self.kinds_of, self.contents
        room = _KEYS
        while True:
            heads, bounds = np.empty(room, np.int64), np.empty(room + 1, np.int64)
            slots, follow = np.zeros(1 << (4 * room - 1).bit_length(), np.int32), np.full(room + 1, -1, np.int32)
            mine = slots, heads, bounds, follow, words, self.walk.MULTIPLIERS
            count = self.walk.said_shapes(self.rows, self.offsets, *table, *mine, of, given, numbers)
            if count >= 0:
                return heads[:count], of
            room *= 16

    def numbered(self, number: Callable[..., int]) -> Any:
        """Distinct values that a kernel numbers, with as much room as it needs."""
        room = _KEYS
        while True:
            keys = _Keys(room)
            count = number(*keys.arguments(), self.walk.MULTIPLIERS)
            if count >= 0:
                known = keys.known[:, :count]
                return gathered(self.walk, self.data, known[0], known[1])[0]
            room *= 16

    def content(self, keys: npt.NDArray[np.uint64], most: int, constants: npt.NDArray[np.uint64]) -> Any:
        out, sums = np.empty(len(self.offsets) - 1, np.uint64), np.empty(len(self.kinds_of), np.uint64)
        self.walk.content(self.data, self.rows, self.offsets, self.fields, keys, most, constants, sums, out)
        return out

    def integers(self, rows: Rows) -> npt.NDArray[np.int64]:
        found: npt.NDArray[np.int64] = self.contents.take(self.rows.take(rows))
        return found

    def doubles(self, rows: Rows) -> npt.NDArray[np.float64]:
        return self.contents.take(self.rows.take(rows)).view(np.float64)

    def booleans(self, rows: Rows) -> Mask:
        found: Mask = self.contents.take(self.rows.take(rows)) != 0
        return found

    def strings(self, rows: Rows) -> Any:
        walk, entries = self.walk, self.rows.take(rows)
        starts = self.contents.take(entries)
        ends = self.fields[walk.VALUE].take(entries).astype(np.int64) + self.fields[walk.VALUE_SIZE].take(entries)
        return text(walk, self.data, starts, ends - starts)

    def texts(self) -> Any:
        walk, table = self.walk, (self.rows, self.fields, self.kinds_of, self.contents)
        rest = np.flatnonzero((self.kinds > INT) & (self.kinds != EMPTY))

        def write(kind: int, rows: Rows) -> Any:
            return kind_as_text(self.take(rest[rows]), kind, np.arange(len(rows)))

        others = by_kind(self.kinds[rest], write)
        ends, known = layout(others)
        first, last = int(ends[0]), int(ends[-1])
        ends, known = ends - np.int32(first), np.concatenate((known[first:last], _SLACK))
        room = walk.texts_room(*table, ends)
        if not 0 <= room <= np.iinfo(np.int32).max:
            raise ValueError("more than two gigabytes in one column")
        offsets, out = np.empty(len(self) + 1, np.int32), np.empty(room + SLACK, np.uint8)
        wide = walk.texts(self.data, *table, ends, known, offsets, out)
        return from_layout(offsets, out, pa.string()) if not wide else checked_text(from_layout(offsets, out))


@functools.lru_cache(maxsize=16)
def _preferences(columns: tuple[tuple[str, ...], ...]) -> dict[str, list[tuple[int, int]]]:
    """For each key the columns that are read from it, and how many others of each are preferred to it."""
    wanted: dict[str, list[tuple[int, int]]] = {}
    for number, keys in enumerate(columns):
        for rank, key in enumerate(keys[:_MOST_PREFERENCES]):
            wanted.setdefault(key, []).append((number, rank))
    return wanted


@dataclass(frozen=True, slots=True)
class InMemory:
    """Bytes of a batch, with eight more behind them: `Stored`."""

    data: Bytes

    @property
    def nbytes(self) -> int:
        """Memory that they take."""
        return int(self.data.nbytes)

    def read(self, starts: Rows, sizes: Rows) -> tuple[Bytes, Rows]:
        """See `Stored`."""
        return self.data, starts


@dataclass(frozen=True, slots=True)
class OnTheWire:
    """Spans as they came, for those that wait: where their bytes stand, and their resources and scopes.

    Attributes:
        stored: the batch's bytes.
        places: int32 (4, n): position, size, resource and scope of each span.
        as_sent: the bytes are the payloads as they came, one behind the other.
    """

    walk: Any
    stored: Stored
    places: npt.NDArray[np.int32]
    resources: Attributes
    scopes: Any
    scope_attributes: Attributes
    resource_facts: Any
    as_sent: bool = False

    @classmethod
    def of(cls, reading: _Reading, decoded: Decoded) -> OnTheWire:
        walk = reading.walk
        numbers = [walk.AT, walk.SIZE, walk.RESOURCE, walk.SCOPE]
        return cls(
            walk,
            InMemory(reading.data),
            reading.arrays.fields[numbers, : reading.length],
            decoded.resources,
            decoded.scopes,
            decoded.scope_attributes,
            decoded.resource_facts,
            reading.as_sent,
        )

    @property
    def nbytes(self) -> int:
        return int(self.stored.nbytes + self.places.nbytes)

    def messages(self) -> Any:
        sizes = self.places[1].astype(np.int64)
        data, starts = self.stored.read(self.places[0].astype(np.int64), sizes)
        offsets, out = np.empty(len(starts) + 1, np.int32), np.empty(int(sizes.sum()) + SLACK, np.uint8)
        if not self.walk.messages(data, starts, sizes, offsets, out):
            return None
        out.flags.writeable = False
        return from_layout(offsets, out)

    def resting(self, stored: Stored) -> OnTheWire:
        if not self.as_sent:
            return self
        # Nothing may be left here that holds the bytes.
        own = [each.select(np.arange(len(each.offsets) - 1)) for each in (self.resources, self.scope_attributes)]
        return OnTheWire(self.walk, stored, self.places, own[0], self.scopes, own[1], self.resource_facts, as_sent=True)

    def some(self, rows: Rows) -> OnTheWire:
        starts, sizes, *numbers = self.places.take(rows, axis=1)
        stored, as_sent = self.stored, self.as_sent
        if stored.nbytes:
            found, at = stored.read(starts.astype(np.int64), sizes.astype(np.int64))
            offsets, found = layout(gathered(self.walk, found, at, sizes)[0])
            starts, stored, as_sent = offsets[:-1], InMemory(found), False
        origins = _Origins(), _Origins()
        for each, of_row in zip(origins, numbers, strict=True):
            each.add(of_row)
        (resources,), (scopes,) = (each.used for each in origins)
        return OnTheWire(
            self.walk,
            stored,
            np.stack([starts, sizes, *(each.numbers for each in origins)]),
            self.resources.select(resources),
            self.scopes.take(pa.array(scopes)),
            self.scope_attributes.select(scopes),
            self.resource_facts.take(pa.array(resources)),
            as_sent,
        )

    def select(self, rows: Rows) -> Decoded:
        return joined([(self, rows)])


def joined(some: Sequence[tuple[OnTheWire, Rows]]) -> Decoded:
    """Spans of several batches, at least one, read together: those of the first, then those of the next.

    Args:
        some: spans that wait, and which of them (int64, in that order; repeats allowed).
    """
    walk = some[0][0].walk
    places = [wire.places.take(rows, axis=1) for wire, rows in some]
    ends = np.concatenate(([0], np.cumsum(np.concatenate([each[1] for each in places]), dtype=np.int64)))
    data, offsets, start = np.empty(int(ends[-1]) + SLACK, np.uint8), np.empty(len(ends), np.int32), 0
    origins = _Origins(), _Origins()
    for (wire, _), (starts, sizes, *numbers) in zip(some, places, strict=True):
        end = start + len(starts)
        sizes = sizes.astype(np.int64)
        found, at = wire.stored.read(starts.astype(np.int64), sizes)
        walk.gather(found, at, sizes, offsets[start : end + 1], data[ends[start] :])
        start = end
        for each, of_row in zip(origins, numbers, strict=True):
            each.add(of_row)
    data.flags.writeable = False
    resource, scope = (each.numbers for each in origins)
    reading = _read_spans(walk, data, ends, resource, scope)
    resources, scopes = ([(wire, used) for (wire, _), used in zip(some, each.used, strict=True)] for each in origins)
    made = Decoded(
        reading.spans(),
        reading.of_spans(),
        attributes_together([wire.resources.select(used) for wire, used in resources]),
        rows_together([wire.scopes.take(pa.array(used)) for wire, used in scopes]),
        attributes_together([wire.scope_attributes.select(used) for wire, used in scopes]),
        rows_together([wire.resource_facts.take(pa.array(used)) for wire, used in resources]),
    )
    object.__setattr__(made, "wire", OnTheWire.of(reading, made))
    return made


class _Origins:
    """Resources or scopes of spans that come batch by batch, numbered through.

    Attributes:
        used: of each batch, which it has, int64, ascending.
    """

    def __init__(self) -> None:
        self.used: list[Rows] = []
        self._numbers: list[npt.NDArray[np.int32]] = []
        self._count = 0

    def add(self, of_row: npt.NDArray[np.int32]) -> None:
        """The next batch.

        Args:
            of_row: which of its own each span has.
        """
        used = np.zeros(int(of_row.max(initial=-1)) + 1, np.bool_)
        used[of_row] = True
        self.used.append(np.flatnonzero(used))
        self._numbers.append((np.cumsum(used, dtype=np.int32) + np.int32(self._count - 1))[of_row])
        self._count += len(self.used[-1])

    @property
    def numbers(self) -> npt.NDArray[np.int32]:
        """Which each span has of all that are used, batch after batch."""
        return np.concatenate(self._numbers)


def _read_spans(walk: Any, data: Bytes, offsets: Rows, resource: Any, scope: Any) -> _Reading:
    """Spans that were read before, from their bytes behind each other."""
    spans = len(offsets) - 1
    room = [spans, *(int(len(data) * share * 1.1) + 64 for share in _dense[1:4])]
    entries = room[1]
    keys = _KEYS
    while True:
        arrays = _Arrays(walk, [*room, 0, 0, 0, 0, entries, keys])
        if walk.walk_spans(data, offsets, resource, scope, *arrays.of_spans(), *arrays.of_keys()) != walk.FULL:
            return _Reading(walk, data, arrays)
        # At most one for every two bytes.
        room = [spans, *(4 * count for count in room[1:])]
        entries = room[1]
        keys *= 4


def numbered_rows(walk: Any, codes: npt.NDArray[np.int32]) -> tuple[Rows, Rows]:
    """Rows numbered by the codes that stand in them, in the order in which they first occur.

    Args:
        walk: `kernels`.
        codes: int32 (n, columns), contiguous.

    Returns:
        The first row of each number, and each row's number.
    """
    numbers, room = np.empty(len(codes), np.int64), _KEYS
    while True:
        heads, follow = np.empty(room, np.int64), np.full(room + 1, -1, np.int32)
        slots = np.zeros(1 << (4 * room - 1).bit_length(), np.int32)
        count = walk.shapes(codes, slots, heads, follow, walk.MULTIPLIERS, numbers)
        if count >= 0:
            return heads[:count], numbers
        room *= 16


def placed(
    walk: Any,
    codes: npt.NDArray[np.int32],
    table: npt.NDArray[np.int32],
    other: npt.NDArray[np.int32] | None,
    of_row: npt.NDArray[np.int32] | None,
    size: int,
) -> tuple[Any, Rows]:
    """Codes through a table, others in their place where that says nothing, numbered without gaps.

    Args:
        walk: `kernels`.
        codes: int32, length n; -1 = nothing.
        table: for each code what it stands for, below ``size``; -1 = nothing.
        other, of_row: what is taken where nothing is said, by number, and each row's number; None: nothing.

    Returns:
        int32 array of length n, null = nothing; and what its numbers stand for, ascending.
    """
    out, bits = np.empty(len(codes), np.int32), np.zeros((len(codes) + 7) // 8, np.uint8)
    if other is None or of_row is None:
        other = of_row = _NO_CODES
    of_row = of_row.view()
    of_row.flags.writeable = False  # as Arrow's are: to numba it is another type
    words = np.empty(size, np.int64)
    silent, count = walk.place_codes(codes, table, other, of_row, out, bits, np.zeros(size, np.int32), words)
    nulls = pa.py_buffer(bits) if silent else None
    return pa.Array.from_buffers(pa.int32(), len(out), [nulls, pa.py_buffer(out)]), words[:count]


_NO_CODES: Final = np.zeros(0, np.int32)

DEEPEST: Final = 32
"""Messages within each other that `well_formed` goes down."""


def well_formed(payload: bytes, table: npt.NDArray[np.uint8]) -> bool:
    """Whether protobuf surely takes a message; False also where it has to be asked.

    Args:
        payload: the message.
        table: uint8, what each field of each message is, see `walk.well_formed`.
    """
    return _walk is not None and _well_formed(_walk, payload, table)


def _well_formed(walk: Any, payload: bytes, table: npt.NDArray[np.uint8]) -> bool:
    levels = np.empty(DEEPEST, np.int64), np.empty(DEEPEST, np.uint8)
    return bool(walk.well_formed(np.frombuffer(payload, np.uint8), table, *levels))
