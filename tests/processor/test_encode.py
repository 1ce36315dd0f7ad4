"""Spans that are written as OTLP again are the spans that came: decode(encode(x)) == x, and protobuf agrees."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span

from tollspan.processor import encode as module
from tollspan.processor.decode import decode, fused
from tollspan.processor.decode.tables import with_columns
from tollspan.processor.encode import Request, attribute, encode, together

from .otlp_factory import attributes, chat_payload, request, resource_spans, span
from .test_decode import actual, reading, requests

__all__ = ["reading"]  # everything here holds for both readings of the wire


def spans_of(made: list[Request]) -> list[Any]:
    return actual(decode([each.payload for each in made]))


def key(row: dict[str, Any]) -> str:
    return repr(row)


def taken(payload: bytes) -> bool:
    """Whether protobuf takes it."""
    try:
        ExportTraceServiceRequest.FromString(payload)
    except DecodeError:
        return False
    return True


@settings(max_examples=200, deadline=None)
@given(requests(), st.randoms(use_true_random=False), st.integers(0, 4))
def test_what_is_well_formed_without_asking_protobuf_is_what_it_takes(payload: bytes, at: Any, changes: int) -> None:
    data = bytearray(payload)
    for _ in range(changes if data else 0):
        data[at.randrange(len(data))] = at.randrange(256)
    if fused.well_formed(bytes(data), module._fields()):
        assert taken(bytes(data))


@pytest.mark.parametrize("values", [["é", "日本", "🙂", "plain"], [7, True, 1.5, b"\xff"], [["a", "b"], {"k": [1]}]])
def test_usual_spans_need_no_second_opinion(values: list[object], reading: str) -> None:
    events = [Span.Event(name="e", attributes=attributes({"n": 1}))]
    links = [Span.Link(trace_id=b"t" * 16, span_id=b"s" * 8, flags=1)]
    one = span({f"k{n}": value for n, value in enumerate(values)}, events=events, links=links, flags=256)
    found = fused.well_formed(request([one], {"service.name": "s"}), module._fields())
    assert found == (reading == "fused")  # without the walker protobuf is asked


@pytest.mark.parametrize(
    "text", [b"\x80", b"\xc1\x81", b"\xe0\x80\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xf5aaa", b"ok \xe2\x82"]
)
def test_text_that_is_no_utf8_is_not_well_formed(text: bytes) -> None:
    payload = request([span({"key": "#" * len(text)})]).replace(b"#" * len(text), text)
    assert not taken(payload)
    assert not fused.well_formed(payload, module._fields())


@settings(max_examples=150, deadline=None)
@given(st.lists(requests(), max_size=4), st.sampled_from([1, 300, 1 << 20]))
def test_what_is_written_says_what_was_read(payloads: list[bytes], limit: int) -> None:
    decoded = decode(payloads)
    made = encode(decoded, limit=limit)
    # Spans of equal resources and scopes are brought together, so the order between groups is another.
    assert sorted(spans_of(made), key=key) == sorted(actual(decoded), key=key)
    assert sum(each.spans for each in made) == len(decoded)
    for each in made:
        parsed = ExportTraceServiceRequest.FromString(each.payload)
        assert sum(len(s.spans) for r in parsed.resource_spans for s in r.scope_spans) == each.spans
        again = ExportTraceServiceRequest.FromString(parsed.SerializeToString())
        assert again == parsed


def sorted_request(payload: bytes) -> list[tuple[bytes, bytes, bytes]]:
    """Each span with its resource and scope as protobuf writes them."""
    parsed = ExportTraceServiceRequest.FromString(payload)
    out = []
    for resource in parsed.resource_spans:
        for scope in resource.scope_spans:
            head = ResourceSpans(resource=resource.resource, schema_url=resource.schema_url)
            below = ScopeSpans(scope=scope.scope, schema_url=scope.schema_url)
            out += [(head.SerializeToString(), below.SerializeToString(), s.SerializeToString()) for s in scope.spans]
    return sorted(out)


def test_every_field_of_otlp_is_there_to_the_last_bit() -> None:
    made = ExportTraceServiceRequest()
    resource = made.resource_spans.add(schema_url="https://opentelemetry.io/schemas/1.38.0")
    resource.resource.attributes.extend(attributes({"service.name": "shop", "n": 3}))
    resource.resource.dropped_attributes_count = 7
    scope = resource.scope_spans.add(schema_url="https://example.org/scope")
    scope.scope.name, scope.scope.version = "library", "1.2"
    scope.scope.attributes.extend(attributes({"short": True, "deep": {"a": [1, 2.5, None, b"x"]}}))
    scope.scope.dropped_attributes_count = 300
    scope.spans.append(
        span(
            {"text": "ä" * 200, "none": None, "list": [1, "two", {"three": 3}], "minus": -1, "bytes": b"\xff\x00"},
            flags=0x301,
            trace_state="ot=th:8,vendor=x",
            parent_span_id=b"parentid",
            dropped_attributes_count=1,
            dropped_events_count=20_000,
            dropped_links_count=2**32 - 1,
            events=[
                Span.Event(
                    time_unix_nano=5, name="exception", attributes=attributes({"k": "v"}), dropped_attributes_count=9
                )
            ],
            links=[
                Span.Link(trace_id=b"t" * 16, span_id=b"s" * 8, trace_state="a=b", flags=1, dropped_attributes_count=2)
            ],
        )
    )
    scope.spans[0].status.code, scope.spans[0].status.message = 2, "no"
    scope.spans.append(span({}, number=2, kind=-3))
    payload = made.SerializeToString()
    (written,) = encode(decode([payload]))
    assert sorted_request(written.payload) == sorted_request(payload)


def test_equal_resources_and_scopes_are_written_once() -> None:
    payloads = [chat_payload(64, seed) for seed in range(5)]
    (made,) = encode(decode(payloads))
    parsed = ExportTraceServiceRequest.FromString(made.payload)
    assert len(parsed.resource_spans) == 1
    assert [len(scope.spans) for scope in parsed.resource_spans[0].scope_spans] == [320]


def test_a_request_is_cut_at_its_limit_and_loses_nothing() -> None:
    decoded = decode([chat_payload(500, 1)])
    made = encode(decoded, limit=20_000)
    assert len(made) > 5
    assert all(len(each.payload) < 22_000 for each in made)
    assert sum(each.spans for each in made) == 500
    assert spans_of(made) == actual(decoded)


def test_attributes_are_added_and_replaced() -> None:
    decoded = decode([request([span({"old.part.a": 1, "keep": "x", "old": 2}), span({}, number=2)])])
    extra = together(
        attribute("added.text", pa.array(["ü" * 100, None])),
        attribute("added.number", pa.array([0.5, None])),
        attribute("added.word", pa.array(["w", "w"])),
    )
    (made,) = encode(decoded, extra=extra, without={"old", "old.part."}, limit=1 << 20)
    first, second = ExportTraceServiceRequest.FromString(made.payload).resource_spans[0].scope_spans[0].spans
    assert list(first.attributes) == attributes(
        {"keep": "x", "added.text": "ü" * 100, "added.number": 0.5, "added.word": "w"}
    )
    assert list(second.attributes) == attributes({"added.word": "w"})


def bad_utf8(good: bytes) -> bytes:
    assert b"caf\xc3\xa9" in good
    return good.replace(b"caf\xc3\xa9", b"caf\xff\xfe")


def test_text_that_is_no_utf8_is_repaired_everywhere_and_takes_nobody_with_it() -> None:
    """A strict receiver would refuse the whole request."""
    event = Span.Event(name="café", attributes=attributes({"café": "café"}), dropped_attributes_count=3)
    link = Span.Link(trace_id=b"t" * 16, span_id=b"s" * 8, trace_state="café", flags=5)
    odd = span({"a": "café", "café": ["café"], "fine": 1.5}, events=[event], links=[link], number=1)
    payload = bad_utf8(request([odd], {"where": "café"}))
    (made,) = encode(decode([payload, chat_payload(8, 3)]))
    assert made.spans == 9
    parsed = ExportTraceServiceRequest.FromString(made.payload)
    mended = parsed.resource_spans[0].scope_spans[0].spans[0]
    values = {pair.key: pair.value for pair in mended.attributes}
    assert values["a"].string_value == "caf��"
    assert values["fine"].double_value == 1.5
    # What is inside of a list cannot be mended in place: it is text now.
    assert values["caf��"].string_value == '["caf��"]'
    assert (mended.events[0].name, mended.events[0].dropped_attributes_count) == ("caf��", 3)
    assert (mended.links[0].trace_state, mended.links[0].flags) == ("caf��", 5)
    assert parsed.resource_spans[0].resource.attributes[0].value.string_value == "caf��"


@pytest.mark.parametrize(("levels", "kept"), [(30, True), (200, False), (10_000, False)])
def test_values_too_deep_for_parsers_become_text(levels: int, kept: bool) -> None:
    raw = AnyValue(string_value="end").SerializeToString()
    for _ in range(levels):
        inner = b"\x0a" + module._varint(len(raw)) + raw
        raw = b"\x2a" + module._varint(len(inner)) + inner
    pair = b"\x0a\x04deep\x12" + module._varint(len(raw)) + raw
    body = span({}, number=1).SerializeToString() + b"\x4a" + module._varint(len(pair)) + pair
    scope = b"\x12" + module._varint(len(body)) + body
    resource = b"\x12" + module._varint(len(scope)) + scope
    payload = b"\x0a" + module._varint(len(resource)) + resource
    made = encode(decode([payload, request([span({"b": 1}, number=2)])]))
    parsed = ExportTraceServiceRequest.FromString(b"".join(each.payload for each in made))
    spans = [s for r in parsed.resource_spans for c in r.scope_spans for s in c.spans]
    assert len(spans) == 2
    value = spans[0].attributes[0].value
    assert value.WhichOneof("value") == ("array_value" if kept else "string_value")


def test_fields_that_this_otlp_does_not_name_are_not_kept() -> None:
    newer = ResourceSpans()
    newer.scope_spans.add().spans.append(span({"a": 1}))
    body = newer.scope_spans[0].spans[0].SerializeToString() + b"\xfa\x3f\x03new"
    scope = b"\x12" + module._varint(len(body)) + body
    payload = b"\x12" + module._varint(len(scope)) + scope
    (made,) = encode(decode([b"\x0a" + module._varint(len(payload)) + payload]))
    assert made.spans == 1
    assert b"new" not in made.payload


def test_lengths_of_every_size_are_written_as_protobuf_writes_them() -> None:
    for value in (0, 1, 127, 128, 16_383, 16_384, 2**21 - 1, 2**21, 2**32, 2**63 - 1, -1, -(2**63)):
        written = module._head(0x18, np.array([5, value], np.int64)).to_pylist()
        # `int_value` of AnyValue is a varint of the same tag.
        assert AnyValue.FromString(written[1]).int_value == value
        assert written[1] == (AnyValue(int_value=value).SerializeToString())
    large = ArrayValue(values=[AnyValue(string_value="x" * 70_000)])
    decoded = decode([request([span({"list": ["x" * 70_000], "text": "y" * 3_000_000})])])
    (made,) = encode(decoded)
    parsed = ExportTraceServiceRequest.FromString(made.payload)
    assert parsed.resource_spans[0].scope_spans[0].spans[0].attributes[0].value.array_value == large


def test_nothing_is_nothing() -> None:
    assert encode(decode([])) == []


def test_groups_that_come_in_turns_each_stay_with_their_own() -> None:
    parts = [
        resource_spans([span({"i": i}, number=i)], {"service.name": f"s{i % 3}"}, (f"scope{i % 2}", "1"))
        for i in range(12)
    ]
    payload = ExportTraceServiceRequest(resource_spans=parts).SerializeToString()
    (made,) = encode(decode([payload]))
    assert sorted_request(made.payload) == sorted_request(payload)
    parsed = ExportTraceServiceRequest.FromString(made.payload)
    assert len(parsed.resource_spans) == 3


def payload_of(body: bytes) -> bytes:
    """A request of one span that is given in protobuf form."""
    for tag in (b"\x12", b"\x12", b"\x0a"):
        body = tag + module._varint(len(body)) + body
    return body


@settings(max_examples=100, deadline=None)
@given(st.lists(requests(), max_size=4), st.sampled_from(["", "ot=th:8", "ot=th:c;p=ä" * 30]), st.booleans())
def test_another_trace_state_stands_in_the_place_of_the_first(payloads: list[bytes], state: str, add: bool) -> None:
    """As kept spans are sent on, which are the bytes that came where the walker read them."""
    decoded = decode(payloads)
    states = pa.array([state] * len(decoded), pa.string())
    stamped = replace(decoded, spans=with_columns(decoded.spans, trace_state=states))
    extra = attribute("added", pa.array(["x"] * len(decoded), pa.string())) if add else None
    made = encode(stamped, extra=extra, without={"removed."}, limit=300)
    wanted = [{**row, "trace_state": state} for row in actual(decoded)]
    for row in wanted if add else ():
        row["attributes"] = [*row["attributes"], ("added", ("string_value", "'x'"))]
    assert sorted(spans_of(made), key=key) == sorted(wanted, key=key)


def test_spans_that_are_written_as_usual_are_copied(reading: str) -> None:
    decoded = decode([chat_payload(20, 4), request([span({"a": 1}, number=3, trace_state="ot=th:8,x=y")])])
    if reading == "ptars":
        assert decoded.messages() is None
        return
    rows = np.array([20, 3, 3, 0])
    messages = decoded.waiting().select(rows).messages()
    for message, row in zip(messages.to_pylist(), [actual(decoded)[row] for row in rows], strict=True):
        (copied,) = actual(decode([payload_of(message)]))
        same = ("trace_id", "span_id", "name", "attributes", "start_ns", "end_ns")
        assert [copied[name] for name in same] == [row[name] for name in same]
        assert copied["trace_state"] == ""


@pytest.mark.parametrize(
    "field",
    [
        b"\xfa\x3f\x03new",  # nobody knows it
        b"\x4a\x08\x12\x03\x0a\x01v\x0a\x01k",  # the value before the key
        b"\x4a\x03\x0a\x01k",  # no value
        b"\x4a\x05\x12\x03\x0a\x01v",  # no key
        b"\x4a\x0c\x0a\x01k\x12\x03\x0a\x01v\x22\x02no",  # more than a key and a value
        b"\x7a\x06\x18\x01\x22\x02no",  # more than a status
    ],
)
def test_spans_that_are_written_oddly_are_written_anew(field: bytes) -> None:
    body = span({"a": 1, "b": "two"}, number=1).SerializeToString()
    usual, odd = payload_of(body), payload_of(body + field)
    decoded = decode([usual, odd])
    assert decoded.messages() is None
    made = encode(decoded)
    assert sorted(spans_of(made), key=key) == sorted(actual(decoded), key=key)
    assert not any(b"no" in each.payload or b"new" in each.payload for each in made)
