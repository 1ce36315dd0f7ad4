"""OTLP trace messages in a slim, wire-compatible form, built as descriptors in code so that no protoc is needed.

Four readings of the same bytes, all without recursion and without text (every ``string`` is ``bytes``, because one bad
UTF-8 sequence must not refuse a batch):

* **columns**: for ptars. ``AnyValue``, ``Event`` and ``Link`` stay undecoded bytes: an attribute value is two Arrow
  columns instead of nine, and what only kept spans need is read only for kept spans.
* **strict**: for protobuf's own parser (upb). Everything down to the fields of ``AnyValue`` is declared, only the
  inside of arrays and key-value lists is not, so that nesting 10,000 deep is no deeper than nesting once. Written out
  again, a message in this reading is canonical: each value one field, shortest lengths, no unknown fields.
* **resources**: protobuf's, down to the attributes of resources; spans stay undecoded bytes, and what is not declared
  is written out again as it came.
* **identifiers**: for ptars, of spans only what a span can be rejected for.

Field numbers: opentelemetry-proto 1.x, ``trace/v1/trace.proto`` and ``common/v1/common.proto``.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Final

import ptars
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError, Message

_Field = descriptor_pb2.FieldDescriptorProto
_BYTES: Final = "bytes"
_TYPES: Final = {
    _BYTES: _Field.TYPE_BYTES,
    "bool": _Field.TYPE_BOOL,
    "int32": _Field.TYPE_INT32,  # for enums: an unknown number is kept, not dropped
    "int64": _Field.TYPE_INT64,
    "double": _Field.TYPE_DOUBLE,
    "fixed64": _Field.TYPE_FIXED64,
    "uint32": _Field.TYPE_UINT32,
    "fixed32": _Field.TYPE_FIXED32,
}

_ANY_VALUE: Final = (
    ("string_value", 1, _BYTES),
    ("bool_value", 2, "bool"),
    ("int_value", 3, "int64"),
    ("double_value", 4, "double"),
    ("array_value", 5, _BYTES),
    ("kvlist_value", 6, _BYTES),
    ("bytes_value", 7, _BYTES),
)

# Message → (field, number, type), "*" = repeated. Types that are not in _TYPES are messages; in the columns reading
# those in _OPAQUE are bytes.
_OPAQUE: Final = frozenset({"AnyValue", "Event", "Link"})
_MESSAGES: Final[dict[str, tuple[tuple[str, int, str], ...]]] = {
    "KeyValue": (("key", 1, _BYTES), ("value", 2, "AnyValue")),
    "ArrayValue": (("values", 1, "*AnyValue"),),
    "KeyValueList": (("values", 1, "*KeyValue"),),
    "Event": (
        ("time_unix_nano", 1, "fixed64"),
        ("name", 2, _BYTES),
        ("attributes", 3, "*KeyValue"),
        ("dropped_attributes_count", 4, "uint32"),
    ),
    "Link": (
        ("trace_id", 1, _BYTES),
        ("span_id", 2, _BYTES),
        ("trace_state", 3, _BYTES),
        ("attributes", 4, "*KeyValue"),
        ("dropped_attributes_count", 5, "uint32"),
        ("flags", 6, "fixed32"),
    ),
    "Status": (("message", 2, _BYTES), ("code", 3, "int32")),
    "Span": (
        ("trace_id", 1, _BYTES),
        ("span_id", 2, _BYTES),
        ("trace_state", 3, _BYTES),
        ("parent_span_id", 4, _BYTES),
        ("name", 5, _BYTES),
        ("kind", 6, "int32"),
        ("start_time_unix_nano", 7, "fixed64"),
        ("end_time_unix_nano", 8, "fixed64"),
        ("attributes", 9, "*KeyValue"),
        ("dropped_attributes_count", 10, "uint32"),
        ("events", 11, "*Event"),
        ("dropped_events_count", 12, "uint32"),
        ("links", 13, "*Link"),
        ("dropped_links_count", 14, "uint32"),
        ("status", 15, "Status"),
        ("flags", 16, "fixed32"),
    ),
    "Scope": (
        ("name", 1, _BYTES),
        ("version", 2, _BYTES),
        ("attributes", 3, "*KeyValue"),
        ("dropped_attributes_count", 4, "uint32"),
    ),
    "ScopeSpans": (("scope", 1, "Scope"), ("spans", 2, "*Span"), ("schema_url", 3, _BYTES)),
    "Resource": (("attributes", 1, "*KeyValue"), ("dropped_attributes_count", 2, "uint32")),
    "ResourceSpans": (("resource", 1, "Resource"), ("scope_spans", 2, "*ScopeSpans"), ("schema_url", 3, _BYTES)),
    "Request": (("resource_spans", 1, "*ResourceSpans"),),
}


_IDENTIFIERS: Final = "tollspan.identifiers"
_NO_IDENTIFIERS: Final = {
    "resource",
    "scope",
    "schema_url",
    *(name for name, _, _ in _MESSAGES["Span"] if not name.endswith("_id")),
}


def _file(package: str, opaque: frozenset[str]) -> descriptor_pb2.FileDescriptorProto:
    """Descriptor of all messages; those in ``opaque`` are bytes wherever another message refers to them."""
    file = descriptor_pb2.FileDescriptorProto(name=f"{package}.proto", package=package, syntax="proto3")
    any_value = file.message_type.add(name="AnyValue")
    any_value.oneof_decl.add(name="value")
    for name, number, kind in _ANY_VALUE:
        any_value.field.add(name=name, number=number, type=_TYPES[kind], label=_Field.LABEL_OPTIONAL, oneof_index=0)
    for message_name, fields in _MESSAGES.items():
        message = file.message_type.add(name=message_name)
        for name, number, declared in fields:
            if package == _IDENTIFIERS and name in _NO_IDENTIFIERS:
                continue
            kind = declared.removeprefix("*")
            field = message.field.add(name=name, number=number)
            field.label = _Field.LABEL_REPEATED if declared != kind else _Field.LABEL_OPTIONAL
            if kind in _TYPES or kind in opaque:
                field.type = _TYPES.get(kind, _Field.TYPE_BYTES)
            else:
                field.type = _Field.TYPE_MESSAGE
                field.type_name = f".{package}.{kind}"
    return file


@cache
def _descriptors(package: str, opaque: frozenset[str]) -> Any:
    pool = descriptor_pool.DescriptorPool()
    pool.Add(_file(package, opaque))
    return pool.FindFileByName(f"{package}.proto")


@cache
def _handlers() -> ptars.HandlerPool:
    return ptars.HandlerPool([_columns()])


@cache
def identifiers() -> Any:
    """ptars handler of ``Request`` in the identifiers reading."""
    file = _descriptors(_IDENTIFIERS, frozenset())
    return ptars.HandlerPool([file]).get_for_message(file.message_types_by_name["Request"])


def _columns() -> Any:
    return _descriptors("tollspan.columns", _OPAQUE)


@cache
def columns(message: str) -> Any:
    """ptars handler of a message in the columns reading: ``Request``, ``Event`` or ``Link``."""
    return _handlers().get_for_message(_columns().message_types_by_name[message])


@cache
def shallow(message: str) -> type[Message]:
    """Message class of one level of a nested value: ``AnyValue``, ``ArrayValue`` or ``KeyValueList``, inner values
    undecoded."""
    return message_factory.GetMessageClass(_columns().message_types_by_name[message])


@cache
def strict(message: str) -> type[Message]:
    """Message class of the strict reading: ``Request``, ``Event`` or ``Link``."""
    file = _descriptors("tollspan.strict", frozenset())
    return message_factory.GetMessageClass(file.message_types_by_name[message])


@cache
def resources() -> type[Message]:
    """Message class of ``Request`` in the resources reading."""
    file = _descriptors("tollspan.resources", frozenset({"AnyValue", "ScopeSpans"}))
    return message_factory.GetMessageClass(file.message_types_by_name["Request"])


def canonical(message: str, payload: bytes) -> bytes:
    """The same message written out again by protobuf: merged, shortest, without what this table does not name.

    Raises:
        google.protobuf.message.DecodeError: not a well-formed message.
    """
    parsed = strict(message).FromString(payload)
    # upb's own name; the reflection API has no other way to drop fields that a newer OTLP added.
    parsed.DiscardUnknownFields()  # type: ignore[attr-defined]
    return parsed.SerializeToString()


def rewritten(message: str, payload: bytes) -> bytes | None:
    """`canonical`, None where protobuf refuses the message."""
    try:
        return canonical(message, payload)
    except DecodeError:
        return None
