"""OTLP/JSON to OTLP/protobuf: the form that browsers, scripts and some SDKs send.

The OTLP specification ("JSON Protobuf Encoding", read 2026-11-21) differs from protobuf's own JSON in that trace and
span ids are hexadecimal, enums are numbers, and unknown fields are to be ignored. A span that is wrong is left out and
the rest of its request is taken; what is wrong above the spans leaves nothing to take.
"""

from __future__ import annotations

import base64
import json
from typing import Any, Final, NamedTuple

from google.protobuf import json_format
from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

_IDS: Final = frozenset({"traceId", "spanId", "parentSpanId", "trace_id", "span_id", "parent_span_id"})

_OTHERS: Final = {"logs": ExportLogsServiceRequest, "metrics": ExportMetricsServiceRequest}


class Converted(NamedTuple):
    """A request in protobuf form.

    Attributes:
        payload: its bytes.
        left_out: spans that are not in it.
        why: what is wrong with the first of these, and where it stood; '' where none is left out.
    """

    payload: bytes
    left_out: int = 0
    why: str = ""


def to_protobuf(body: bytes) -> Converted:
    """A trace request in protobuf form.

    Args:
        body: an ``ExportTraceServiceRequest`` in OTLP/JSON, UTF-8.

    Raises:
        ValueError: it is none; says where.
    """
    request = _read(body, "resourceSpans")
    whys: list[str] = []
    lists = []
    for number, resource in enumerate(_list(request, "resourceSpans", "resource_spans", where="")):
        place = f"resourceSpans[{number}]"
        for scope_number, scope in enumerate(_list(resource, "scopeSpans", "scope_spans", where=place)):
            below = f"{place}.scopeSpans[{scope_number}]"
            spans = _list(scope, "spans", where=below)
            lists.append((below, spans))
            _each(spans, below, whys, _identified)
    message = ExportTraceServiceRequest()
    try:
        _parse(request, message)
    except ValueError:
        # Which of them is it? Found out one by one, and what is then still wrong is none of the spans.
        for below, spans in lists:
            _each(spans, below, whys, _parsed)
        message.Clear()
        _parse(request, message)
    return Converted(bytes(message.SerializeToString()), len(whys), whys[0] if whys else "")


def other_to_protobuf(signal: str, body: bytes) -> bytes:
    """A request of ``logs`` or ``metrics`` in protobuf form.

    Raises:
        ValueError: it is none.
    """
    request = _read(body, f"resource{signal.capitalize()}")
    _identify(request)
    message = _OTHERS[signal]()
    _parse(request, message)
    return bytes(message.SerializeToString())


def _read(body: bytes, wanted: str) -> dict[str, Any]:
    try:
        request = json.loads(body, parse_constant=_no_number)
    except RecursionError:
        raise ValueError("the JSON is nested too deeply") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"the JSON is not UTF-8: {error.reason} at byte {error.start}") from None
    if not isinstance(request, dict):
        raise ValueError(f"the JSON is not an object with {wanted}")  # noqa: TRY004
    return request


def _parse(document: dict[str, Any], message: Any) -> None:
    try:
        json_format.ParseDict(document, message, ignore_unknown_fields=True)
    except (json_format.ParseError, RecursionError, UnicodeEncodeError, OverflowError) as error:
        raise ValueError(str(error) or "nested too deeply") from None


def _each(spans: list[Any], below: str, whys: list[str], change: Any) -> None:
    """Keep the spans that ``change`` takes, in place; why not the others goes to ``whys``."""
    kept = []
    for number, span in enumerate(spans):
        try:
            change(span, f"{below}.spans[{number}]")
        except ValueError as error:
            whys.append(str(error))
        else:
            kept.append(span)
    spans[:] = kept


def _identified(span: Any, at: str) -> None:
    _ids(span, at)
    for number, link in enumerate(_list(span, "links", where=at)):
        _ids(link, f"{at}.links[{number}]")


def _parsed(span: Any, at: str) -> None:
    try:
        _parse(span, Span())
    except ValueError as error:
        raise ValueError(f"{at}: {error}") from None


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
    """Write the ids of a span, link, record or exemplar as protobuf's JSON has them, in place."""
    if not isinstance(owner, dict):
        raise ValueError(f"{where} is not an object")  # noqa: TRY004
    for name in _IDS & owner.keys():
        value = owner[name]
        if value is None:
            continue
        try:
            owner[name] = base64.b64encode(bytes.fromhex(value)).decode()
        except (TypeError, ValueError):
            raise ValueError(f"{f'{where}.' if where else ''}{name} is not hexadecimal") from None


def _identify(document: Any) -> None:
    """`_ids` wherever some stand; names of attributes are values in OTLP/JSON, so that none of them looks like one."""
    waiting = [document]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            _ids(value, "")
            waiting.extend(value.values())
        elif isinstance(value, list):
            waiting.extend(value)


def _no_number(word: str) -> Any:
    # Python's parser takes what JSON has not; protobuf's form for a double that is no number is a string.
    raise ValueError(f"{word} is not JSON")


def from_protobuf(payload: bytes) -> dict[str, Any]:
    """A request of traces in protobuf form as OTLP/JSON.

    Raises:
        ValueError: it is none.
    """
    try:
        request = ExportTraceServiceRequest.FromString(payload)
    except DecodeError as error:
        raise ValueError(f"not an OTLP ExportTraceServiceRequest: {error}") from None
    document: dict[str, Any] = json_format.MessageToDict(request, use_integers_for_enums=True)
    for group in document.get("resourceSpans", ()):
        for scope in group.get("scopeSpans", ()):
            for span in scope.get("spans", ()):
                for owner in (span, *span.get("links", ())):
                    for name in ("traceId", "spanId", "parentSpanId"):
                        if name in owner:
                            owner[name] = base64.b64decode(owner[name]).hex()
    return document
