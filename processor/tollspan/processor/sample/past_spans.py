"""Spans made again from rows of the store: kept bodies, ledger rows without a body, and roots that summaries tell of.

In: tables as `past` reads them. Out: one `Decoded`, as if the spans had come over the wire. Beside `past`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from opentelemetry.proto.common.v1.common_pb2 import AnyValue

from tollspan.pricing import attributes as names
from tollspan.processor.charge import plain
from tollspan.processor.decode import Attributes, Decoded
from tollspan.processor.decode.anyvalue import BOOL, DOUBLE, INT, STRING
from tollspan.processor.dialects import TEXT
from tollspan.processor.identity import U64, Rows, words

_RESOURCE: Final = {
    "service": names.SERVICE_NAME,
    "environment": names.ENVIRONMENT,
    "region": names.CLOUD_REGION,
    "cloud_provider": names.CLOUD_PROVIDER,
    "host_type": names.HOST_TYPE,
}
_SPAN_TEXTS: Final = {
    name: TEXT[name].keys[0]
    for name in (
        "tenant",
        "team",
        "feature",
        "workflow",
        "variant",
        "provider",
        "model",
        "request_model",
        "operation",
        "error_type",
        "device",
    )
} | {"operation": names.OPERATION_NAME}
_SPAN_VALUES: Final = {"retries": names.RETRIES, "cold_start": names.COLD_START, "batch_size": names.BATCH_SIZE}
IN_THE_LEDGER: Final = frozenset((*_RESOURCE.values(), *_SPAN_TEXTS.values(), *_SPAN_VALUES.values()))
"""Attributes that every billed span has here, kept or not."""
_KINDS: Final = pa.array(["Unspecified", "Internal", "Server", "Client", "Producer", "Consumer"])
_STATUSES: Final = pa.array(["Unset", "Ok", "Error"])
_LEDGER_STATUSES: Final = pa.array(["unset", "ok", "error"])
_NUMBER: Final = re.compile(r"-?(0|[1-9][0-9]{0,17})(\.[0-9]+)?([eE][-+]?[0-9]{1,3})?")


@dataclass(frozen=True, slots=True)
class Part:
    """Some of the spans, before they are put together.

    Attributes:
        columns: of `Decoded.spans` but for resource, scope, events and links.
        attributes, resources: (owner, key, AnyValue, kind) columns of the spans' and resources' attributes.
        resource: of each span; scopes: (name, version) of each span.
    """

    columns: dict[str, Any]
    attributes: pa.Table
    resources: pa.Table
    resource: Rows
    resource_count: int
    scope: Any
    version: Any


def body_spans(bodies: pa.Table) -> Part:
    """Spans that were kept: rows of ``spans``."""
    count = bodies.num_rows
    start = np.asarray(plain(bodies["start_ns"])).astype(np.uint64)
    resources = plain(bodies["ResourceAttributes"])
    if isinstance(resources, pa.Array) and count:
        # Equal attributes are one resource.
        sides = (pc.binary_join(_as_lists(resources, side), "\x00") for side in (resources.keys, resources.items))
        text = pc.binary_join_element_wise(*sides, "\x01").dictionary_encode()
        resource = np.asarray(text.indices).astype(np.int64)
        _, first = np.unique(resource, return_index=True)
        resources = resources.take(pa.array(first))
    else:
        resource = np.zeros(0, np.int64)
    return Part(
        {
            "trace_id": ids(bodies, "trace_id", 16),
            "span_id": ids(bodies, "span_id", 8),
            "parent_span_id": ids(bodies, "parent_span_id", 8),
            "trace_state": _text(bodies["TraceState"]),
            "name": _text(bodies["SpanName"]),
            "kind": pc.cast(pc.fill_null(pc.index_in(_text(bodies["SpanKind"]), _KINDS), 0), pa.int32()),
            "start_ns": pa.array(start),
            "end_ns": pa.array(start + np.asarray(plain(bodies["Duration"])).astype(np.uint64)),
            "status_code": pc.cast(pc.fill_null(pc.index_in(_text(bodies["StatusCode"]), _STATUSES), 0), pa.int32()),
            "status_message": _text(bodies["StatusMessage"]),
        },
        _of_maps(plain(bodies["SpanAttributes"])),
        _of_maps(resources),
        resource,
        len(resources),
        _text(bodies["ScopeName"]),
        _text(bodies["ScopeVersion"]),
    )


def ledger_spans(rows: pa.Table) -> Part:
    """Spans of which only rows of ``ledger`` are left: tags, model, usage, status and times."""
    count = rows.num_rows
    start = np.asarray(pc.cast(plain(rows["start_time"]), pa.int64())).astype(np.uint64)
    parts = [_said(plain(rows[name]), key) for name, key in _SPAN_TEXTS.items()]
    parts += [_said(plain(rows[name]), key) for name, key in _SPAN_VALUES.items()]
    own = pc.binary_join_element_wise(*(plain(rows[name]) for name in _RESOURCE), "\x00").dictionary_encode()
    resource = np.asarray(own.indices).astype(np.int64)
    _, first = np.unique(resource, return_index=True)
    distinct = rows.select(list(_RESOURCE)).take(pa.array(first))
    operation = plain(rows["operation"])
    return Part(
        {
            "trace_id": plain(rows["trace_id"]),
            "span_id": plain(rows["span_id"]),
            "parent_span_id": plain(rows["parent_span_id"]),
            "trace_state": _constant("", count),
            "name": pc.binary_join_element_wise(operation, plain(rows["request_model"]), " "),
            "kind": pa.array(np.zeros(count, np.int32)),
            "start_ns": pa.array(start),
            "end_ns": pa.array(start + np.asarray(plain(rows["duration_ns"]))),
            "status_code": pc.cast(
                pc.fill_null(pc.index_in(plain(rows["span_status"]), _LEDGER_STATUSES), 0), pa.int32()
            ),
            "status_message": _constant("", count),
        },
        pa.concat_tables(parts),
        pa.concat_tables([_said(plain(distinct[name]), key) for name, key in _RESOURCE.items()]),
        resource,
        len(first),
        _constant("", count),
        _constant("", count),
    )


def summary_spans(roots: pa.Table) -> Part:
    """A root for each row of ``traces``, with the trace's own times and error; no root where none had come."""
    count = roots.num_rows
    trace = ids(roots, "trace_id", 16)
    name, service = _text(roots["root_name"]), _text(roots["root_service"])
    # A span id that no other span of the trace has but by one chance in 2^64.
    own = (words(trace, 2)[:, 0] ^ words(trace, 2)[:, 1]) | np.uint64(1)
    rooted = np.asarray(pc.not_equal(name, ""))
    parent = np.where(rooted, 0, own ^ np.uint64(2)).astype(np.uint64)
    encoded = service.dictionary_encode()
    failed = np.asarray(plain(roots["error"])).astype(np.int32) > 0
    return Part(
        {
            "trace_id": trace,
            "span_id": _words_to_ids(own),
            "parent_span_id": _words_to_ids(parent),
            "trace_state": _constant("", count),
            "name": name,
            "kind": pa.array(np.zeros(count, np.int32)),
            "start_ns": pa.array(np.asarray(plain(roots["start_ns"])).astype(np.uint64)),
            "end_ns": pa.array(np.asarray(plain(roots["end_ns"])).astype(np.uint64)),
            "status_code": pa.array(np.where(failed, 2, 0).astype(np.int32)),
            "status_message": _constant("", count),
        },
        _said(_text(roots["tenant"]), names.TENANT),
        _said(encoded.dictionary, names.SERVICE_NAME),
        np.asarray(encoded.indices).astype(np.int64),
        len(encoded.dictionary),
        _constant("", count),
        _constant("", count),
    )


def together(parts: list[Part]) -> Decoded:
    """All parts behind each other."""
    counts = [len(part.resource) for part in parts]
    total = sum(counts)
    before = np.concatenate(([0], np.cumsum([part.resource_count for part in parts])))
    resource = np.concatenate([part.resource + b for part, b in zip(parts, before, strict=False)]).astype(np.int32)
    scope = pc.binary_join_element_wise(_joined(p.scope for p in parts), _joined(p.version for p in parts), "\x00")
    scopes = scope.dictionary_encode()
    _, first = np.unique(np.asarray(scopes.indices), return_index=True)
    columns: dict[str, Any] = {name: _joined(part.columns[name] for part in parts) for name in parts[0].columns} | {
        "resource": pa.array(resource),
        "scope": pa.array(np.asarray(scopes.indices).astype(np.int32)),
        "events": _no_lists(total),
        "links": _no_lists(total),
        **{
            n: pa.array(np.zeros(total, np.uint32))
            for n in ("flags", "dropped_attributes", "dropped_events", "dropped_links")
        },
    }
    starts = np.concatenate(([0], np.cumsum(counts)))
    resources = int(before[-1])
    chosen = pa.array(first)
    none = np.zeros(len(first), np.uint32)
    return Decoded(
        pa.RecordBatch.from_pydict(columns),
        _attributes([part.attributes for part in parts], starts, total),
        _attributes([part.resources for part in parts], before, resources),
        pa.RecordBatch.from_pydict(
            {
                "name": _joined(p.scope for p in parts).take(chosen),
                "version": _joined(p.version for p in parts).take(chosen),
                "schema_url": _constant("", len(first)),
                "dropped_attributes": pa.array(none),
            }
        ),
        _attributes([], np.zeros(1, np.int64), len(first)),
        pa.RecordBatch.from_pydict(
            {"schema_url": _constant("", resources), "dropped_attributes": pa.array(np.zeros(resources, np.uint32))}
        ),
    )


# -- columns -----------------------------------------------------------------------------------------------------------


def ids(table: pa.Table, name: str, width: int) -> Any:
    """Identifiers of a column, each of so many bytes."""
    return pc.cast(plain(table[name]), pa.binary(width))


def _text(column: Any) -> Any:
    return pc.cast(plain(column), pa.string())


def _constant(value: str, count: int) -> Any:
    return pa.array([value], pa.string()).take(pa.array(np.zeros(count, np.int64)))


def _no_lists(count: int) -> Any:
    return pa.ListArray.from_arrays(pa.array(np.zeros(count + 1, np.int32)), pa.array([], pa.binary()))


def _joined(columns: Any) -> Any:
    return pa.chunked_array(list(columns)).combine_chunks()


def _words_to_ids(values: U64) -> Any:
    raw = np.ascontiguousarray(values.astype(">u8"))
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(8), len(values), [None, pa.py_buffer(raw.tobytes())])


def _as_lists(maps: Any, values: Any) -> Any:
    """Keys or values of maps as lists."""
    return pa.ListArray.from_arrays(maps.offsets, _text(values))


_SCHEMA: Final = pa.schema([("owner", pa.int64()), ("key", pa.string()), ("value", pa.binary()), ("kind", pa.uint8())])


def _of_maps(maps: Any) -> pa.Table:
    """Attributes out of ``map<string, string>``."""
    if not len(maps):
        return _SCHEMA.empty_table()
    offsets = np.asarray(maps.offsets).astype(np.int64)
    chosen = slice(int(offsets[0]), int(offsets[-1]))
    keys, texts = _text(maps.keys)[chosen], _text(maps.items)[chosen]
    owners = np.repeat(np.arange(len(maps), dtype=np.int64), np.diff(offsets))
    return _valued(owners, keys, texts, typed=True)


def _said(column: Any, key: str) -> pa.Table:
    """Attributes out of a column: what is neither null nor empty."""
    texts = pc.cast(column, pa.string())
    owners = np.flatnonzero(np.asarray(pc.fill_null(pc.not_equal(texts, ""), False)))
    chosen = texts.take(pa.array(owners))
    return _valued(owners, _constant(key, len(owners)), chosen, typed=not pa.types.is_string(column.type))


def _valued(owners: Rows, keys: Any, texts: Any, *, typed: bool) -> pa.Table:
    distinct = texts.dictionary_encode()
    made = [_value(text, typed) for text in distinct.dictionary.to_pylist()]
    at = distinct.indices
    return pa.table(
        {
            "owner": pa.array(owners),
            "key": keys,
            "value": pa.array([raw for _, raw in made], pa.binary()).take(at),
            "kind": pa.array([kind for kind, _ in made], pa.uint8()).take(at),
        },
        schema=_SCHEMA,
    )


def _value(text: str, typed: bool) -> tuple[int, bytes]:
    """A text as kind and ``AnyValue``; where ``typed``, as the number or boolean that it looks like."""
    if typed and text in ("true", "false"):
        return BOOL, AnyValue(bool_value=text == "true").SerializeToString()
    if typed and len(text) <= 40 and (match := _NUMBER.fullmatch(text)):
        if match[2] or match[3]:
            return DOUBLE, AnyValue(double_value=float(text)).SerializeToString()
        return INT, AnyValue(int_value=int(text)).SerializeToString()
    return STRING, AnyValue(string_value=text).SerializeToString()


def _attributes(parts: list[pa.Table], starts: Rows, owners: int) -> Attributes:
    """One table of attributes, in the order of their owners."""
    tables = [
        part.set_column(0, "owner", pa.array(np.asarray(plain(part["owner"])) + start))
        for part, start in zip(parts, starts, strict=False)
    ]
    whole = pa.concat_tables(tables).combine_chunks() if tables else _SCHEMA.empty_table()
    owner = np.asarray(plain(whole["owner"])) if whole.num_rows else np.zeros(0, np.int64)
    order = pa.array(np.argsort(owner, kind="stable"))
    keys = plain(whole["key"]).dictionary_encode() if whole.num_rows else pa.array([], pa.string()).dictionary_encode()
    offsets = np.concatenate(([0], np.cumsum(np.bincount(owner, minlength=owners)[:owners]))).astype(np.int64)
    return Attributes(
        offsets,
        keys.dictionary,
        np.asarray(keys.indices.take(order)).astype(np.int32),
        plain(whole["value"]).take(order) if whole.num_rows else pa.array([], pa.binary()),
        np.asarray(plain(whole["kind"]).take(order)) if whole.num_rows else np.zeros(0, np.uint8),
    )
