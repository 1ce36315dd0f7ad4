"""Bodies: kept spans look as the Collector's ClickHouse exporter would have written them."""

from __future__ import annotations

import base64
import json
import math
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from tollspan.processor import bodies as module
from tollspan.processor.bodies import LEFT_OUT, bodies
from tollspan.processor.decode import decode
from tollspan.processor.decode.arrow_bytes import LONGEST_NAME
from tollspan.processor.normalize import normalize

from .otlp_factory import START, attributes, chat_payload, request, resource_spans, span

MAP = pa.map_(pa.string(), pa.string())
COLUMNS = {
    "Timestamp": pa.timestamp("ns", "UTC"),
    "TraceId": pa.string(),
    "SpanId": pa.string(),
    "ParentSpanId": pa.string(),
    "TraceState": pa.string(),
    "SpanName": pa.string(),
    "SpanKind": pa.string(),
    "ServiceName": pa.string(),
    "ResourceAttributes": MAP,
    "ScopeName": pa.string(),
    "ScopeVersion": pa.string(),
    "SpanAttributes": MAP,
    "Duration": pa.uint64(),
    "StatusCode": pa.string(),
    "StatusMessage": pa.string(),
    "Events.Timestamp": pa.list_(pa.timestamp("ns", "UTC")),
    "Events.Name": pa.list_(pa.string()),
    "Events.Attributes": pa.list_(MAP),
    "Links.TraceId": pa.list_(pa.string()),
    "Links.SpanId": pa.list_(pa.string()),
    "Links.TraceState": pa.list_(pa.string()),
    "Links.Attributes": pa.list_(MAP),
}
"""Columns of ``otel_traces`` (Collector contrib, exporter/clickhouseexporter)."""


def plain(kind: pa.DataType) -> pa.DataType:
    """A type without its dictionaries."""
    if pa.types.is_map(kind):
        return pa.map_(plain(kind.key_type), plain(kind.item_type))
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def every(payload: bytes, extra: dict[str, Any] | None = None) -> pa.Table:
    decoded = decode([payload])
    return bodies(decoded, extra or {})


def written(value: object) -> str:
    """A value as text on a kept span."""
    (shown,) = every(request([span({"key": value})]))["SpanAttributes"].to_pylist()
    return dict(shown)["key"]


@pytest.mark.parametrize("rows", [[], [2, 0]])
def test_the_columns_are_those_of_the_exporter_and_then_the_extra_ones(rows: list[int]) -> None:
    table = bodies(
        decode([chat_payload(4)]).select(np.array(rows, np.int64)),
        {"KeepReason": pa.array(["x"] * len(rows), pa.string())},
    )
    assert {item.name: plain(item.type) for item in table.schema} == {**COLUMNS, "KeepReason": pa.string()}
    assert table.num_rows == len(rows)


def test_a_span_with_everything() -> None:
    full = span(
        {"gen_ai.request.model": "m", "n": 3},
        trace_id=bytes(range(16)),
        span_id=b"\xab" * 8,
        parent_span_id=b"\x01" * 8,
        trace_state="ot=th:8",
        name="chat m",
        kind=Span.SPAN_KIND_SERVER,
        start_time_unix_nano=START + 7,
        end_time_unix_nano=START + 107,
        status=Status(code=Status.STATUS_CODE_ERROR, message="boom"),
        events=[
            Span.Event(time_unix_nano=START + 9, name="exception", attributes=attributes({"exception.type": "E"})),
            Span.Event(name="bare"),
        ],
        links=[
            Span.Link(trace_id=b"\xcd" * 16, span_id=b"\xef" * 8, trace_state="a=b", attributes=attributes({"k": True}))
        ],
    )
    payload = ExportTraceServiceRequest(
        resource_spans=[resource_spans([full, span()], {"service.name": "support", "n": 1.5}, ("scope", "2.0"))]
    ).SerializeToString()
    row = {name: column[0] for name, column in zip(COLUMNS, every(payload).columns, strict=True)}
    assert row["Timestamp"].value == START + 7
    assert [stamp.value for stamp in row["Events.Timestamp"].values] == [START + 9, 0]
    del row["Timestamp"], row["Events.Timestamp"]
    assert {name: value.as_py() for name, value in row.items()} == {
        "TraceId": "000102030405060708090a0b0c0d0e0f",
        "SpanId": "abababababababab",
        "ParentSpanId": "0101010101010101",
        "TraceState": "ot=th:8",
        "SpanName": "chat m",
        "SpanKind": "Server",
        "ServiceName": "support",
        "ResourceAttributes": [("service.name", "support"), ("n", "1.5")],
        "ScopeName": "scope",
        "ScopeVersion": "2.0",
        "SpanAttributes": [("gen_ai.request.model", "m"), ("n", "3")],
        "Duration": 100,
        "StatusCode": "Error",
        "StatusMessage": "boom",
        "Events.Name": ["exception", "bare"],
        "Events.Attributes": [[("exception.type", "E")], []],
        "Links.TraceId": ["cd" * 16],
        "Links.SpanId": ["ef" * 8],
        "Links.TraceState": ["a=b"],
        "Links.Attributes": [[("k", "true")]],
    }


def test_a_bare_root_is_empty_strings_not_nulls() -> None:
    table = every(request([span(number=1)]))
    assert all(column.null_count == 0 for column in table.columns)
    row = table.to_pylist()[0]
    assert (row["ParentSpanId"], row["ServiceName"], row["StatusCode"], row["StatusMessage"]) == ("", "", "Unset", "")
    assert (row["ResourceAttributes"], row["Events.Name"], row["Links.TraceId"]) == ([], [], [])


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        *enumerate(("Unspecified", "Internal", "Server", "Client", "Producer", "Consumer")),
        (6, "Unspecified"),
        (-1, "Unspecified"),
    ],
)
def test_span_kinds_by_name(kind: int, name: str) -> None:
    assert every(request([span(kind=kind)]))["SpanKind"].to_pylist() == [name]


@pytest.mark.parametrize(("code", "name"), [(0, "Unset"), (1, "Ok"), (2, "Error"), (3, "Unset"), (-1, "Unset")])
def test_status_codes_by_name(code: int, name: str) -> None:
    assert every(request([span(status=Status(code=code))]))["StatusCode"].to_pylist() == [name]


def test_only_the_given_rows_in_the_given_order() -> None:
    payloads = [
        request(
            [span({"n": n}, number=n, events=[Span.Event(name=f"e{n}")] * (n % 3)) for n in range(base, base + 20)],
            {"service.name": f"s{base}"},
        )
        for base in (20, 40)
    ]
    rows = np.array([35, 3, 3, 12], np.int64)
    table = bodies(decode(payloads).select(rows), {"Row": pa.array(rows)})
    assert table["SpanName"].to_pylist() == [f"span {row + 20}" for row in rows]
    assert table["ServiceName"].to_pylist() == ["s40", "s20", "s20", "s20"]
    assert table["SpanAttributes"].to_pylist() == [[("n", str(row + 20))] for row in rows]
    assert table["Events.Name"].to_pylist() == [[f"e{row + 20}"] * ((row + 20) % 3) for row in rows]
    assert table["Row"].to_pylist() == rows.tolist()


def test_of_a_key_said_twice_the_last_counts_here_and_in_the_ledger() -> None:
    twice = resource_spans([span()], {"service.name": "first"})
    twice.resource.attributes.extend(attributes({"service.name": "last"}))
    payload = ExportTraceServiceRequest(resource_spans=[twice]).SerializeToString()
    assert every(payload)["ServiceName"].to_pylist() == ["last"]
    assert normalize(decode([payload]), received_ns=START).table["service"].to_pylist() == ["last"]


# -- values as text ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("text", "text"),
        ("", ""),
        (None, ""),
        (True, "true"),
        (False, "false"),
        (-(2**63), "-9223372036854775808"),
        (2.0, "2"),
        (-0.0, "-0"),
        (0.7, "0.7"),
        (1e-6, "0.000001"),
        (1e-7, "1e-7"),
        (12345678901.25, "12345678901.25"),
        (1e20, "100000000000000000000"),
        (1e21, "1e+21"),
        (math.nan, "json: unsupported value: NaN"),
        (math.inf, "json: unsupported value: +Inf"),
        (-math.inf, "json: unsupported value: -Inf"),
        (b"\x00\x01", "AAE="),
        (["stop", 1, 2.5, True, None], '["stop",1,2.5,true,null]'),
        ([], "[]"),
        ({}, "{}"),
        ({"b": 2.0, "a": ["<ü>"]}, '{"a":["<ü>"],"b":2}'),
        ([math.nan, b"\x00"], '[null,"AA=="]'),
    ],
)
def test_values_as_the_collector_writes_them(value: object, shown: str) -> None:
    assert written(value) == shown


@settings(max_examples=200, deadline=None)
@given(st.floats(allow_nan=False, allow_infinity=False))
def test_doubles_are_written_shortest_and_read_back_exactly(value: float) -> None:
    shown = written(value)
    assert float(shown) == value
    plain = value == 0 or 1e-6 <= abs(value) < 1e21
    assert ("e" in shown) is not plain
    digits = shown.lower().split("e")[0].replace(".", "").replace("-", "").strip("0")
    assert digits == repr(abs(value)).split("e")[0].replace(".", "").strip("0")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=150, deadline=None)
@given(st.lists(json_values, max_size=4) | st.dictionaries(st.text(max_size=3), json_values, max_size=4))
def test_nested_values_are_json(value: Any) -> None:
    assert json.loads(written(value)) == value


mixed_values = (
    st.none()
    | st.booleans()
    | st.integers(0, 9)
    | st.text(max_size=3)
    | st.binary(max_size=3)
    | st.lists(st.integers(0, 3), max_size=2)
)


@settings(max_examples=100, deadline=None)
@given(st.lists(mixed_values, max_size=8))
def test_values_of_mixed_kinds_stay_in_their_places(values: list[Any]) -> None:
    def alone(value: Any) -> str:
        if isinstance(value, bytes):
            return base64.b64encode(value).decode()
        if value is None or isinstance(value, str):
            return value or ""
        return json.dumps(value, separators=(",", ":"))

    (shown,) = every(request([span({f"k{n}": value for n, value in enumerate(values)})]))["SpanAttributes"].to_pylist()
    assert shown == [(f"k{n}", alone(value)) for n, value in enumerate(values)]


# -- hostile -----------------------------------------------------------------------------------------------------------


def test_impossible_times_are_written_in_range() -> None:
    table = every(
        request(
            [
                span(start_time_unix_nano=2**64 - 1, end_time_unix_nano=5, events=[Span.Event(time_unix_nano=2**63)]),
                span(number=2),
            ]
        )
    )
    epoch = datetime(1970, 1, 1, tzinfo=UTC)
    assert table["Timestamp"].to_pylist()[0] == epoch
    assert table["Events.Timestamp"].to_pylist()[0] == [epoch]
    assert table["Duration"].to_pylist() == [0, 1_000_000]


def test_identifiers_of_links_may_have_any_length() -> None:
    links = [Span.Link(trace_id=b"\x01\x02", span_id=b""), Span.Link(trace_id=b"\xff" * 16, span_id=b"\x00" * 8)]
    table = every(request([span(links=links), span(number=2)]))
    assert table["Links.TraceId"].to_pylist() == [["0102", "ff" * 16], []]
    assert table["Links.SpanId"].to_pylist() == [["", "00" * 8], []]


def test_a_broken_event_that_passed_no_door_is_an_empty_event() -> None:
    payload = request([span(number=1, events=[Span.Event(name="whole"), Span.Event(name="brkn")]), span(number=2)])
    broken = payload.replace(b"\x12\x04brkn", b"\x12\x7fbrkn")
    assert broken != payload
    assert every(broken)["Events.Name"].to_pylist() == [["whole", ""], []]


def test_a_large_resource_is_not_multiplied_without_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_RESOURCE_BYTES", 10_000)
    spans = [span(number=n) for n in range(1, 101)]
    small = resource_spans(spans[:50], {"service.name": "small"})
    large = resource_spans(spans[50:], {"service.name": "large", "blob": "x" * 5_000})
    table = every(ExportTraceServiceRequest(resource_spans=[small, large]).SerializeToString())
    assert table["ServiceName"].to_pylist() == ["small"] * 50 + ["large"] * 50
    assert table["ResourceAttributes"].to_pylist() == (
        [[("service.name", "small")]] * 50 + [[(LEFT_OUT, "5021 bytes")]] * 50
    )


def test_names_of_megabytes_are_cut_visibly() -> None:
    payload = ExportTraceServiceRequest(
        resource_spans=[resource_spans([span()], {"service.name": "s" * 2_000_000}, ("n" * 2_000_000, "v"))]
    ).SerializeToString()
    row = every(payload).to_pylist()[0]
    assert row["ServiceName"] == "s" * (LONGEST_NAME - 1) + "…"
    assert row["ScopeName"] == "n" * (LONGEST_NAME - 1) + "…"
    assert dict(row["ResourceAttributes"])["service.name"] == "s" * 2_000_000
