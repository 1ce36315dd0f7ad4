"""OTLP/JSON to OTLP/protobuf: the form that browsers, scripts and some SDKs send.

The OTLP specification ("JSON Protobuf Encoding", read 2026-11-21) differs from protobuf's own JSON in that trace and
span ids are hexadecimal, enums are numbers, and unknown fields are to be ignored.
"""

from __future__ import annotations

import base64
import json
from typing import Any, Final

from google.protobuf import json_format
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

_IDS: Final = ("traceId", "spanId", "parentSpanId", "trace_id", "span_id", "parent_span_id")


def to_protobuf(body: bytes) -> bytes:
    """The request in protobuf form.

    Args:
        body: an ``ExportTraceServiceRequest`` in OTLP/JSON, UTF-8.

    Raises:
        ValueError: it is none; says where.
    """
    try:
        request = json.loads(body, parse_constant=_no_number)
    except RecursionError:
        raise ValueError("the JSON is nested too deeply") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"the JSON is not UTF-8: {error.reason} at byte {error.start}") from None
    if not isinstance(request, dict):
        raise ValueError("the JSON is not an object with resourceSpans")  # noqa: TRY004
    for number, resource in enumerate(_list(request, "resourceSpans", "resource_spans", where="")):
        place = f"resourceSpans[{number}]"
        for scope_number, scope in enumerate(_list(resource, "scopeSpans", "scope_spans", where=place)):
            below = f"{place}.scopeSpans[{scope_number}]"
            for span_number, span in enumerate(_list(scope, "spans", where=below)):
                at = f"{below}.spans[{span_number}]"
                _ids(span, at)
                for link_number, link in enumerate(_list(span, "links", where=at)):
                    _ids(link, f"{at}.links[{link_number}]")
    try:
        message = json_format.ParseDict(request, ExportTraceServiceRequest(), ignore_unknown_fields=True)
    except (json_format.ParseError, RecursionError, UnicodeEncodeError) as error:
        raise ValueError(str(error)) from None
    return bytes(message.SerializeToString())


def _list(owner: Any, *names: str, where: str) -> list[Any]:
    """A repeated field of messages, empty where it is not given.

    Raises:
        ValueError: it is no list, or ``owner`` no object.
    """
    if not isinstance(owner, dict):
        raise ValueError(f"{where} is not an object")  # noqa: TRY004
    for name in names:
        value = owner.get(name)
        if value is not None:
            if not isinstance(value, list):
                raise ValueError(f"{f'{where}.' if where else ''}{name} is not a list")
            return value
    return []


def _ids(owner: Any, where: str) -> None:
    """Write the ids of a span or link as protobuf's JSON has them, in place."""
    if not isinstance(owner, dict):
        raise ValueError(f"{where} is not an object")  # noqa: TRY004
    for name in _IDS:
        value = owner.get(name)
        if value is None:
            continue
        try:
            owner[name] = base64.b64encode(bytes.fromhex(value)).decode()
        except (TypeError, ValueError):
            raise ValueError(f"{where}.{name} is not hexadecimal") from None


def _no_number(word: str) -> Any:
    # Python's parser takes what JSON has not; protobuf's form for a double that is no number is a string.
    raise ValueError(f"{word} is not JSON")
