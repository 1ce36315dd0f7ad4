"""Encode: decoded spans back to OTLP request bytes, a whole batch at a time; the reverse of `decode`.

In: `Decoded`, with attributes to add. Out: ``ExportTraceServiceRequest`` messages in protobuf form. Between `sample`
and `forward`. Spans whose bytes are at hand are copied, and what is added stands behind them. Where something has to be
left out of one in a batch, all are written anew: attribute values, events and links are still the bytes that came,
tags, lengths and numbers around them are made by columns.

What is kept: everything that OTLP 1.x names (flags, dropped counts, schema URLs, scope attributes, entity references
excepted), in the order in which it came but for two things: spans of equal resources and scopes stand together, and
fields that are written anew are in the order of their numbers. What is not kept: fields that this OTLP does not name.

Whatever protobuf's own parser would refuse never leaves: text that is not UTF-8 is repaired as in `decode.text`, and a
value that is nested deeper than parsers go (about 45 levels) becomes its JSON as text. One such span would cost
everybody else in its request. Every request is looked at before it leaves: by the walker, which is sure of what is
usual, else by protobuf itself.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tollspan.processor.decode import Attributes, Decoded, anyvalue, fused, read_messages
from tollspan.processor.decode.anyvalue import ARRAY, KVLIST, STRING
from tollspan.processor.decode.arrow_bytes import fixed_bytes, from_layout, text
from tollspan.processor.decode.arrow_bytes import replace as replace_rows
from tollspan.processor.identity import Mask, Rows

REQUEST_BYTES: Final = 2 << 20
"""Where a request is cut. Receivers take at least 4 MiB by default (gRPC's own limit)."""

_SMALL: Final = 1 << 14
"""Lengths below this are looked up."""
_SHORT: Final = 128
"""Values shorter than this are many and have few lengths."""
_SHIFTS: Final = np.arange(10, dtype=np.uint64) * np.uint64(7)
_BINARY: Final = pa.binary()
_NOTHING: Final = pa.scalar(b"", _BINARY)

# Tags: number of the field << 3 | wire type (0 varint, 1 eight bytes, 2 length and bytes, 5 four bytes).
RESOURCE_SPANS: Final = 0x0A  # of the request
RESOURCE: Final = 0x0A  # of ResourceSpans
SCOPE_SPANS: Final = 0x12
RESOURCE_SCHEMA: Final = 0x1A
SCOPE: Final = 0x0A  # of ScopeSpans
SPANS: Final = 0x12
SCOPE_SCHEMA: Final = 0x1A
SPAN_ATTRIBUTES: Final = 0x4A
KEY: Final = 0x0A  # of KeyValue
VALUE: Final = 0x12


VARINT_FIELD, EIGHT_BYTES, FOUR_BYTES, BYTES_FIELD, TEXT_FIELD, MESSAGE_FIELD = range(1, 7)
"""As in `decode.walk`, which costs numba to import."""
_KINDS: Final = {
    **dict.fromkeys(
        (
            FieldDescriptor.TYPE_BOOL,
            FieldDescriptor.TYPE_ENUM,
            FieldDescriptor.TYPE_INT32,
            FieldDescriptor.TYPE_INT64,
            FieldDescriptor.TYPE_UINT32,
            FieldDescriptor.TYPE_UINT64,
        ),
        VARINT_FIELD,
    ),
    FieldDescriptor.TYPE_FIXED64: EIGHT_BYTES,
    FieldDescriptor.TYPE_DOUBLE: EIGHT_BYTES,
    FieldDescriptor.TYPE_FIXED32: FOUR_BYTES,
    FieldDescriptor.TYPE_BYTES: BYTES_FIELD,
    FieldDescriptor.TYPE_STRING: TEXT_FIELD,
}
"""Of a field by its type; the others are left to protobuf."""


@dataclass(frozen=True, slots=True)
class Request:
    """One OTLP request: ``payload`` in protobuf form, with so many ``spans``."""

    payload: bytes
    spans: int


class Unencodable(ValueError):
    """Spans that protobuf's parser refuses even when repaired: a fault of ours."""


def encode(
    decoded: Decoded,
    *,
    extra: Any = None,
    without: Collection[str] = (),
    limit: int = REQUEST_BYTES,
) -> list[Request]:
    """Write spans as OTLP requests.

    Args:
        decoded: n spans.
        extra: binary array of n, more attributes: each a run of whole ``attributes`` fields of a span, as
            `attribute` makes them.
        without: keys of attributes that are left out; one that ends in a dot stands for all that begin with it.
        limit: bytes from which on a request is cut; one span more, with its resource, may be in it.

    Raises:
        Unencodable: see there.
    """
    if not len(decoded):
        return []
    try:
        return list(_requests(decoded, extra, without, limit))
    except DecodeError:
        # Somebody's text is no UTF-8, or somebody's value too deep: rare enough to look at all of them.
        try:
            return list(_requests(_mended(decoded), extra, without, limit))
        except DecodeError as error:
            raise Unencodable(str(error)) from error


def attribute(key: str, values: Any) -> Any:
    """A span's attribute of n spans as fields for `encode`'s ``extra``; null where a value is null.

    Args:
        values: string or float64 array of n.
    """
    if pa.types.is_floating(values.type):
        numbers = np.asarray(pc.fill_null(values, 0.0)).astype("<f8").view(np.uint8).reshape(-1, 8)
        fields = _constant(_before(key, b"\x21", 8), numbers)
    else:
        # All that stands before a text depends on its length alone.
        texts = pc.fill_null(values, "").cast(_BINARY)
        lengths, place = np.unique(_lengths(texts), return_inverse=True)
        heads = [_before(key, b"\x0a" + _varint(length), length) for length in lengths.tolist()]
        fields = _joined(pa.array(heads, _BINARY).take(pa.array(place)), texts)
    return fields if not values.null_count else pc.if_else(pc.is_valid(values), fields, pa.scalar(None, _BINARY))


def _before(key: str, head: bytes, length: int) -> bytes:
    """All of an attribute but its value's last ``length`` bytes; ``head`` is what stands in the value before these."""
    name = key.encode()
    value = bytes([VALUE]) + _varint(len(head) + length) + head
    pair = bytes([KEY]) + _varint(len(name)) + name + value
    return bytes([SPAN_ATTRIBUTES]) + _varint(len(pair) + length) + pair


def together(*fields: Any) -> Any:
    """Fields side by side, row by row; a null is nothing."""
    return pc.binary_join_element_wise(*fields, _NOTHING, null_handling="replace", null_replacement=b"")


def _requests(decoded: Decoded, extra: Any, without: Collection[str], limit: int) -> Iterator[Request]:
    resources, scopes = _resources(decoded).dictionary_encode(), _scopes(decoded).dictionary_encode()
    resource, scope = _groups(decoded, resources, scopes)
    group = resource * len(scopes.dictionary) + scope
    columns = _as_they_came(decoded, extra, without)
    if (np.diff(group) < 0).any():
        order = np.argsort(group, kind="stable")
        group, resource, scope = group[order], resource[order], scope[order]
        if columns is None:
            decoded = decoded.select(order)
            extra = None if extra is None else extra.take(pa.array(order))
        else:
            columns = [column.take(pa.array(order)) for column in columns]
    if columns is None:
        columns = _span(decoded, extra, without)
    length: Rows = np.sum([_lengths(column) for column in columns], axis=0, dtype=np.int64)
    frame = _head(SPANS, length)
    length += _lengths(frame)
    # A request begins where the bytes before a span, with the heads of its group, pass another multiple of the limit.
    new = np.diff(group, prepend=-1) != 0
    resource_length, scope_length = _lengths(resources.dictionary), _lengths(scopes.dictionary)
    size = length + np.where(new, resource_length[resource] + scope_length[scope], 0)
    request = (np.cumsum(size) - size) // limit

    # Lengths from inside to outside, so that the bytes of spans are copied once for all levels.
    of_scope = np.flatnonzero(new | (np.diff(request, prepend=-1) != 0))
    inside = scope_length[scope[of_scope]] + np.add.reduceat(length, of_scope)
    before = _joined(_head(SCOPE_SPANS, inside), scopes.dictionary.take(pa.array(scope[of_scope])))
    inside += _lengths(before) - scope_length[scope[of_scope]]
    runs, run_request = resource[of_scope], request[of_scope]
    of_resource = np.flatnonzero((np.diff(runs, prepend=-1) != 0) | (np.diff(run_request, prepend=-1) != 0))
    outside = resource_length[runs[of_resource]] + np.add.reduceat(inside, of_resource)
    above = _joined(_head(RESOURCE_SPANS, outside), resources.dictionary.take(pa.array(runs[of_resource])))
    before = _joined(_spread(above, of_resource, len(before)), before)
    whole = _joined(_spread(before, of_scope, len(length)), frame, *columns)
    starts = np.flatnonzero(np.diff(request, prepend=-1) != 0)
    for payload, count in zip(_runs(whole, starts).to_pylist(), np.diff(starts, append=len(length)), strict=True):
        if not fused.well_formed(payload, _fields()):
            ExportTraceServiceRequest.FromString(payload)
        yield Request(payload, int(count))


@cache
def _fields() -> npt.NDArray[np.uint8]:
    """What each field of an OTLP request and of the messages in it is, for `fused.well_formed`."""
    messages = [ExportTraceServiceRequest.DESCRIPTOR]
    found: list[tuple[int, int, int]] = []
    for number, message in enumerate(messages):  # which grows meanwhile
        for field in message.fields:
            inside = field.message_type
            if inside is not None and inside not in messages:
                messages.append(inside)
            what = _KINDS.get(field.type, 0) if inside is None else MESSAGE_FIELD + messages.index(inside)
            found.append((number, field.number, what))
    table = np.zeros((len(messages), 1 + max(field for _, field, _ in found)), np.uint8)
    for message_number, field_number, what in found:
        table[message_number, field_number] = what
    return table


def _groups(decoded: Decoded, resources: Any, scopes: Any) -> tuple[Rows, Rows]:
    """For each span which of the distinct resources and scopes are its own."""
    resource = np.asarray(resources.indices)[np.asarray(decoded.spans["resource"])]
    scope = np.asarray(scopes.indices)[np.asarray(decoded.spans["scope"])]
    return resource.astype(np.int64), scope.astype(np.int64)


def _spread(values: Any, rows: Rows, length: int) -> Any:
    """Values at the given rows of a column, null elsewhere."""
    place = np.full(length, -1, np.int64)
    place[rows] = np.arange(len(rows))
    return values.take(pa.array(place, mask=place < 0))


# -- messages -----------------------------------------------------------------------------------------------------


def _as_they_came(decoded: Decoded, extra: Any, without: Collection[str]) -> list[Any] | None:
    """`_span` where next to nothing has to be written: the bytes that came, with another trace state behind them."""
    if _gone(decoded.attributes.keys, without).any():
        return None
    messages = decoded.messages()
    if messages is None:
        return None
    columns = [
        messages,
        _optional(0x1A, decoded.spans["trace_state"]),
        None if extra is None else pc.fill_null(extra, b""),
    ]
    return [column for column in columns if column is not None]


def _span(decoded: Decoded, extra: Any, without: Collection[str]) -> list[Any]:
    """``Span`` messages, n of them, in parts to be joined row by row."""
    spans = decoded.spans
    parent = fixed_bytes(spans["parent_span_id"])
    child: Mask = np.any(parent, axis=1)
    times = np.stack([np.asarray(spans["start_ns"]), np.asarray(spans["end_ns"])], axis=1)
    ids = np.concatenate(
        [
            _bytes(b"\x0a\x10", len(spans)),
            fixed_bytes(spans["trace_id"]),
            _bytes(b"\x12\x08", len(spans)),
            fixed_bytes(spans["span_id"]),
        ],
        axis=1,
    )
    moments = times.astype("<u8").view(np.uint8).reshape(-1, 16)
    at = np.concatenate(
        [_bytes(b"\x39", len(spans)), moments[:, :8], _bytes(b"\x41", len(spans)), moments[:, 8:]], axis=1
    )
    status = _joined(_optional(0x12, spans["status_message"]), _number(0x18, np.asarray(spans["status_code"])))
    columns = [
        _rows(ids),
        _optional(0x1A, spans["trace_state"]),
        _where(child, _constant(b"\x22\x08", parent)),
        _optional(0x2A, spans["name"]),
        _number(0x30, np.asarray(spans["kind"])),
        _rows(at),
        _attributes(SPAN_ATTRIBUTES, decoded.attributes, without),
        None if extra is None else pc.fill_null(extra, b""),
        _number(0x50, np.asarray(spans["dropped_attributes"])),
        _messages(0x5A, spans["events"]),
        _number(0x60, np.asarray(spans["dropped_events"])),
        _messages(0x6A, spans["links"]),
        _number(0x70, np.asarray(spans["dropped_links"])),
        _optional(0x7A, status),
        _word(b"\x85\x01", np.asarray(spans["flags"])),
    ]
    return [column for column in columns if column is not None]


def _resources(decoded: Decoded) -> Any:
    """All of a ``ResourceSpans`` but its spans, one for each resource."""
    facts = decoded.resource_facts
    message = _joined(
        _attributes(0x0A, decoded.resources), _number(0x10, np.asarray(facts["dropped_attributes"])), size=len(facts)
    )
    return _joined(_optional(RESOURCE, message), _optional(RESOURCE_SCHEMA, facts["schema_url"]), size=len(facts))


def _scopes(decoded: Decoded) -> Any:
    """All of a ``ScopeSpans`` but its spans, one for each scope."""
    scopes = decoded.scopes
    message = _joined(
        _optional(0x0A, scopes["name"]),
        _optional(0x12, scopes["version"]),
        _attributes(0x1A, decoded.scope_attributes),
        _number(0x20, np.asarray(scopes["dropped_attributes"])),
        size=len(scopes),
    )
    return _joined(_optional(SCOPE, message), _optional(SCOPE_SCHEMA, scopes["schema_url"]), size=len(scopes))


def _attributes(tag: int, attributes: Attributes, without: Collection[str] = ()) -> Any:
    """All attributes of each owner, as fields of it; None where nobody has any."""
    offsets, codes, raw = attributes.offsets, attributes.codes, attributes.raw
    if without:
        gone = _gone(attributes.keys, without)
        if gone.any():
            stay = ~gone[codes]
            offsets = np.concatenate(([0], np.cumsum(stay, dtype=np.int64)))[offsets]
            codes, raw = codes[stay], raw.filter(pa.array(stay))
    if not len(codes):
        return None
    lengths = _lengths(raw)
    # All that stands before a value depends on its key and its length alone, of which there are few.
    pairs, before = _distinct(codes * np.int64(_SHORT) + np.minimum(lengths, _SHORT - 1), len(attributes.keys) * _SHORT)
    codes_of, lengths_of = pairs // _SHORT, pairs % _SHORT
    long = np.flatnonzero(lengths >= _SHORT - 1)
    if len(long):
        before[long] = len(pairs) + np.arange(len(long))
        codes_of, lengths_of = np.append(codes_of, codes[long]), np.append(lengths_of, lengths[long])
    keys = _framed(KEY, attributes.keys.cast(_BINARY))
    value = _head(VALUE, lengths_of)
    size = _lengths(keys)[codes_of] + _lengths(value) + lengths_of
    heads = _joined(_head(tag, size), keys.take(pa.array(codes_of)), value)
    return _lists(offsets, _joined(heads.take(pa.array(before)), raw))


def _gone(keys: Any, without: Collection[str]) -> Mask:
    """Which keys are left out."""
    gone: Mask = np.asarray(pc.is_in(keys, pa.array(sorted(without), pa.string())))
    for prefix in without:
        if prefix.endswith("."):
            gone = gone | np.asarray(pc.starts_with(keys, prefix))
    return gone


def _distinct(numbers: Rows, end: int) -> tuple[Rows, Rows]:
    """The distinct ones of numbers from 0 to ``end``, ascending, and where each number stands among them."""
    if end > 1 << 20:
        pairs, place = np.unique(numbers, return_inverse=True)
        return pairs, place
    used = np.zeros(end, np.bool_)
    used[numbers] = True
    return np.flatnonzero(used), (np.cumsum(used) - 1)[numbers]


def _messages(tag: int, lists: Any) -> Any:
    """A list column of undecoded messages, as fields of the owner; None where nobody has any."""
    offsets = np.asarray(lists.offsets).astype(np.int64)
    values = lists.values.slice(int(offsets[0]), int(offsets[-1] - offsets[0]))
    return _lists(offsets - offsets[0], _framed(tag, values)) if len(values) else None


# -- fields; None stands for a column of nothing ------------------------------------------------------------------


def _joined(*columns: Any, size: int = 0) -> Any:
    """Columns side by side, row by row; ``size`` empty rows where all of them are nothing."""
    some = [column for column in columns if column is not None]
    if not some:
        return pa.array([b""] * size, _BINARY)
    if len(some) == 1:
        return pc.fill_null(some[0], b"")
    return pc.binary_join_element_wise(*some, _NOTHING, null_handling="replace", null_replacement=b"")


def _framed(tag: int, content: Any) -> Any:
    """Each value as a field: tag, length, bytes."""
    return _joined(_head(tag, _lengths(content)), content)


def _optional(tag: int, content: Any) -> Any:
    """`_framed`, and nothing where a value is empty; None where all are."""
    if content is None:
        return None
    lengths = _lengths(content)
    if not lengths.any():
        return None
    content = content.cast(_BINARY)
    head = _head(tag, lengths)
    return _joined(head if lengths.all() else pc.if_else(pa.array(lengths > 0), head, _NOTHING), content)


def _number(tag: int, values: npt.NDArray[np.integer[Any]]) -> Any:
    """Numbers as varints, nothing where 0; None where all are."""
    return _where(values != 0, _head(tag, values.astype(np.int64)) if values.any() else None)


def _word(tag: bytes, values: npt.NDArray[np.uint32]) -> Any:
    """Four bytes each, nothing where 0; None where all are."""
    if not values.any():
        return None
    return _where(values != 0, _constant(tag, values.astype("<u4").view(np.uint8).reshape(-1, 4)))


def _where(mask: Mask, column: Any) -> Any:
    """A column where ``mask`` is set, nothing elsewhere; None where it is nowhere set."""
    if column is None or not mask.any():
        return None
    return column if mask.all() else pc.if_else(pa.array(mask), column, _NOTHING)


def _lists(offsets: Rows, values: Any) -> Any:
    """The values of each owner joined."""
    return pc.binary_join(pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), values), _NOTHING)


def _runs(values: Any, starts: Rows) -> Any:
    """Values joined from each start to the next."""
    return _lists(np.append(starts, len(values)), values)


def _lengths(values: Any) -> Rows:
    return np.asarray(pc.binary_length(values)).astype(np.int64)


def _bytes(constant: bytes, rows: int) -> npt.NDArray[np.uint8]:
    return np.broadcast_to(np.frombuffer(constant, np.uint8), (rows, len(constant)))


def _constant(before: bytes, matrix: npt.NDArray[np.uint8]) -> Any:
    """Each row of bytes with the same bytes before it."""
    return _rows(np.concatenate([_bytes(before, len(matrix)), matrix], axis=1))


def _rows(matrix: npt.NDArray[np.uint8]) -> Any:
    """Rows of bytes, shape (n, width), as a binary array."""
    return from_layout(np.arange(len(matrix) + 1, dtype=np.int64) * matrix.shape[1], matrix.reshape(-1))


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


@cache
def _heads(tag: int) -> Any:
    """A tag with each small length behind it."""
    first = bytes([tag])
    return pa.array([first + _varint(length) for length in range(_SMALL)], _BINARY)


def _head(tag: int, values: npt.NDArray[np.int64]) -> Any:
    """A tag and a number behind it as varint, for each number; negative ones take ten bytes, as protobuf has them."""
    large = (values < 0) | (values >= _SMALL)
    if not large.any():
        return _heads(tag).take(pa.array(values))
    rows = np.flatnonzero(large)
    small = _heads(tag).take(pa.array(np.where(large, 0, values)))
    return replace_rows(small, rows, _large(tag, values[rows].view(np.uint64)))


def _large(tag: int, values: npt.NDArray[np.uint64]) -> Any:
    digits = ((values[:, None] >> _SHIFTS) & np.uint64(0x7F)).astype(np.uint8)
    count = np.maximum((values[:, None] >> _SHIFTS != 0).sum(axis=1), 1)
    position = np.arange(10)
    digits |= np.where(position < count[:, None] - 1, 0x80, 0).astype(np.uint8)
    matrix = np.concatenate([_bytes(bytes([tag]), len(values)), digits], axis=1)
    inside = np.concatenate([np.ones((len(values), 1), np.bool_), position < count[:, None]], axis=1)
    return from_layout(np.concatenate(([0], np.cumsum(count + 1))), matrix[inside])


# -- what parsers would refuse ------------------------------------------------------------------------------------


def _mended(decoded: Decoded) -> Decoded:
    """The same spans with all text in UTF-8 and no value deeper than parsers go."""
    spans = decoded.spans
    for name, message, made in (("events", "Event", event), ("links", "Link", _link)):
        offsets = np.asarray(spans[name].offsets).astype(np.int32)
        values = spans[name].values.slice(int(offsets[0]), int(offsets[-1] - offsets[0]))
        if len(values):
            batch, attributes = read_messages(message, values)
            lists = pa.ListArray.from_arrays(pa.array(offsets - offsets[0]), made(batch, _mended_values(attributes)))
            spans = spans.set_column(spans.schema.get_field_index(name), name, lists)
    return replace(
        decoded,
        spans=spans,
        attributes=_mended_values(decoded.attributes),
        resources=_mended_values(decoded.resources),
        scope_attributes=_mended_values(decoded.scope_attributes),
        wire=None,
    )


def event(batch: Any, attributes: Attributes) -> Any:
    """``Event`` messages from columns as `read_messages` gives them, n of them as a binary array."""
    time = np.asarray(batch["time_unix_nano"])
    return _joined(
        _constant(b"\x09", time.astype("<u8").view(np.uint8).reshape(-1, 8)),
        _optional(0x12, text(batch["name"])),
        _attributes(0x1A, attributes),
        _number(0x20, np.asarray(batch["dropped_attributes_count"])),
    )


def _link(batch: Any, attributes: Attributes) -> Any:
    return _joined(
        _optional(0x0A, batch["trace_id"]),
        _optional(0x12, batch["span_id"]),
        _optional(0x1A, text(batch["trace_state"])),
        _attributes(0x22, attributes),
        _number(0x28, np.asarray(batch["dropped_attributes_count"])),
        _word(b"\x35", np.asarray(batch["flags"])),
        size=len(batch),
    )


def _mended_values(attributes: Attributes) -> Attributes:
    raw, kinds = attributes.raw, attributes.kinds.copy()
    deep = np.flatnonzero((kinds == ARRAY) | (kinds == KVLIST))
    if len(deep):
        values = raw.take(pa.array(deep)).dictionary_encode()
        wrong = ~np.array([_parses(value) for value in values.dictionary.to_pylist()], np.bool_)
        bad = deep[wrong[np.asarray(values.indices)]]
        if len(bad):
            said = anyvalue.as_text(raw.take(pa.array(bad)), kinds[bad])
            raw = replace_rows(raw, bad, _framed(STRING << 3 | 2, said.cast(_BINARY)))
            kinds[bad] = STRING
    strings = np.flatnonzero(kinds == STRING)
    if len(strings):
        said = anyvalue.strings(raw, strings)
        raw = replace_rows(raw, strings, _framed(STRING << 3 | 2, said.cast(_BINARY)))
    return replace(attributes, raw=raw, kinds=kinds)


def _parses(value: bytes) -> bool:
    """Whether protobuf takes an ``AnyValue`` where it stands deepest: in an attribute of an event of a span."""
    for tag in (VALUE, 0x1A, 0x5A, SPANS, SCOPE_SPANS, RESOURCE_SPANS):
        value = bytes([tag]) + _varint(len(value)) + value
    try:
        ExportTraceServiceRequest.FromString(value)
    except DecodeError:
        return False
    return True
