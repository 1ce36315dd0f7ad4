"""Decode: equal to protobuf's own reading of the same bytes, and stopped by nothing that a client can send."""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span, Status

from tollspan.processor.decode import Decoded, anyvalue, by_ptars, decode, fused, validate
from tollspan.processor.decode.anyvalue import DEEPEST

from .otlp_factory import any_value, attributes, chat_payload, request, resource_spans, span

pytestmark = pytest.mark.timeout(600)  # where nothing is cached, the first test waits for the compiler


@pytest.fixture(params=["ptars", "fused"], scope="module", autouse=True)
def reading(request: pytest.FixtureRequest) -> Iterator[str]:
    """Everything here holds for both readings."""
    walk = fused._walk
    if request.param == "fused":
        fused.prepare(wait=True)
        assert fused.ready()
    else:
        fused._walk = None
    yield request.param
    fused._walk = walk or fused._walk


# -- the oracle: protobuf's own parser, read span by span --------------------------------------------------------------


def plain(value: AnyValue) -> Any:
    """What an AnyValue says, with its type, NaN made comparable."""
    kind = value.WhichOneof("value")
    if kind is None:
        return None
    if kind == "array_value":
        return kind, [plain(item) for item in value.array_value.values]
    if kind == "kvlist_value":
        return kind, [(pair.key, plain(pair.value)) for pair in value.kvlist_value.values]
    return kind, repr(getattr(value, kind))


def pairs(items: Any) -> list[Any]:
    return [(item.key, plain(item.value)) for item in items]


def expected(payloads: list[bytes]) -> list[dict[str, Any]]:
    """All acceptable spans of all payloads."""
    out = []
    for payload in payloads:
        for resource in ExportTraceServiceRequest.FromString(payload).resource_spans:
            for scope in resource.scope_spans:
                out += [
                    {
                        "trace_id": item.trace_id,
                        "span_id": item.span_id,
                        "parent_span_id": item.parent_span_id or bytes(8),
                        "trace_state": item.trace_state,
                        "name": item.name,
                        "kind": item.kind,
                        "start_ns": item.start_time_unix_nano,
                        "end_ns": item.end_time_unix_nano,
                        "status_code": item.status.code,
                        "status_message": item.status.message,
                        "scope": (
                            scope.scope.name,
                            scope.scope.version,
                            scope.schema_url,
                            scope.scope.dropped_attributes_count,
                            pairs(scope.scope.attributes),
                        ),
                        "resource_facts": (resource.schema_url, resource.resource.dropped_attributes_count),
                        "flags": item.flags,
                        "dropped": (
                            item.dropped_attributes_count,
                            item.dropped_events_count,
                            item.dropped_links_count,
                        ),
                        "attributes": pairs(item.attributes),
                        "resource": pairs(resource.resource.attributes),
                        "events": [(e.time_unix_nano, e.name, pairs(e.attributes)) for e in item.events],
                        "links": [(k.trace_id, k.span_id, k.trace_state, pairs(k.attributes)) for k in item.links],
                    }
                    for item in scope.spans
                    if len(item.trace_id) == 16
                    and any(item.trace_id)
                    and len(item.span_id) == 8
                    and any(item.span_id)
                    and len(item.parent_span_id) in (0, 8)
                ]
    return out


def actual(decoded: Decoded) -> list[dict[str, Any]]:
    """The same from our columns. Values are read back through the oracle's classes, so types are compared too."""

    def values(table: Any, owner: int) -> list[Any]:
        part = table.select(np.array([owner]))
        return [
            (part.keys[int(code)].as_py(), plain(AnyValue.FromString(raw.as_py())))
            for code, raw in zip(part.codes, part.raw, strict=True)
        ]

    out = []
    for number, row in enumerate(decoded.spans.to_pylist()):
        row["attributes"] = values(decoded.attributes, number)
        row["resource_facts"] = tuple(decoded.resource_facts.slice(row["resource"], 1).to_pylist()[0].values())
        row["resource"] = values(decoded.resources, row["resource"])
        scope = decoded.scopes.slice(row["scope"], 1).to_pylist()[0].values()
        row["scope"] = (*scope, values(decoded.scope_attributes, row["scope"]))
        row["dropped"] = tuple(row.pop(f"dropped_{what}") for what in ("attributes", "events", "links"))
        events = [Span.Event.FromString(raw) for raw in row["events"]]
        row["events"] = [(e.time_unix_nano, e.name, pairs(e.attributes)) for e in events]
        links = [Span.Link.FromString(raw) for raw in row["links"]]
        row["links"] = [(k.trace_id, k.span_id, k.trace_state, pairs(k.attributes)) for k in links]
        out.append(row)
    return out


# -- requests ----------------------------------------------------------------------------------------------------------

texts = st.text(max_size=12) | st.text("ab", min_size=120, max_size=140) | st.just("x" * 20_000)
integers = st.integers(-(2**63), 2**63 - 1) | st.integers(0, 300)
scalars = st.none() | st.booleans() | integers | st.floats() | texts | st.binary(max_size=140)
nested = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3), max_leaves=6
)
attribute_maps = st.dictionaries(st.sampled_from(["a", "b", "gen_ai.usage.input_tokens"]) | texts, nested, max_size=5)
identifiers = st.binary(min_size=16, max_size=16) | st.sampled_from([b"", bytes(16), b"short"])
span_identifiers = st.binary(min_size=8, max_size=8) | st.sampled_from([b"", bytes(8), b"nine byte"])
instants = st.integers(0, 2**64 - 1)


@st.composite
def events(draw: st.DrawFn) -> Span.Event:
    return Span.Event(time_unix_nano=draw(instants), name=draw(texts), attributes=attributes(draw(attribute_maps)))


@st.composite
def links(draw: st.DrawFn) -> Span.Link:
    return Span.Link(
        trace_id=draw(identifiers),
        span_id=draw(span_identifiers),
        trace_state=draw(texts),
        attributes=attributes(draw(attribute_maps)),
        flags=draw(st.integers(0, 2**32 - 1)),
    )


@st.composite
def spans(draw: st.DrawFn) -> Span:
    made = Span(
        trace_id=draw(identifiers),
        span_id=draw(span_identifiers),
        parent_span_id=draw(span_identifiers),
        trace_state=draw(texts),
        flags=draw(st.integers(0, 2**32 - 1)),
        name=draw(texts),
        kind=draw(st.integers(-3, 9)),
        start_time_unix_nano=draw(instants),
        end_time_unix_nano=draw(instants),
        attributes=attributes(draw(attribute_maps)),
        dropped_attributes_count=draw(st.integers(0, 2**32 - 1)),
        dropped_events_count=draw(st.integers(0, 2**32 - 1)),
        dropped_links_count=draw(st.integers(0, 2**32 - 1)),
        events=draw(st.lists(events(), max_size=2)),
        links=draw(st.lists(links(), max_size=2)),
    )
    if draw(st.booleans()):
        made.status.CopyFrom(Status(code=draw(st.integers(0, 5)), message=draw(texts)))
    return made


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    made = ExportTraceServiceRequest()
    for _ in range(draw(st.integers(0, 3))):
        resource = ResourceSpans(schema_url=draw(texts))
        if draw(st.booleans()):
            resource.resource.attributes.extend(attributes(draw(attribute_maps)))
            resource.resource.dropped_attributes_count = draw(st.integers(0, 9))
        for _ in range(draw(st.integers(0, 2))):
            scope = ScopeSpans(schema_url=draw(texts), spans=draw(st.lists(spans(), max_size=3)))
            if draw(st.booleans()):
                scope.scope.name, scope.scope.version = draw(texts), draw(texts)
                scope.scope.attributes.extend(attributes(draw(attribute_maps)))
                scope.scope.dropped_attributes_count = draw(st.integers(0, 9))
            resource.scope_spans.append(scope)
        made.resource_spans.append(resource)
    return made.SerializeToString()


@settings(max_examples=100, deadline=None)
@given(st.lists(requests(), max_size=4))
def test_a_batch_says_what_protobuf_says(payloads: list[bytes]) -> None:
    decoded = decode(payloads)
    assert actual(decoded) == expected(payloads)
    assert decoded.malformed == []
    total = sum(
        len(scope.spans)
        for payload in payloads
        for resource in ExportTraceServiceRequest.FromString(payload).resource_spans
        for scope in resource.scope_spans
    )
    assert len(decoded) + sum(decoded.rejected.values()) == total


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.data_too_large])
@given(st.lists(requests(), min_size=2, max_size=3))
def test_concatenated_payloads_are_one_request(payloads: list[bytes]) -> None:
    assert actual(decode([b"".join(payloads)])) == expected(payloads)


class Elsewhere(NamedTuple):
    """A payload that is not in memory."""

    payload: bytes
    nbytes: int = 0

    def read(self, starts: Any, sizes: Any) -> Any:
        assert not len(starts) or (starts + sizes).max() <= len(self.payload)
        return np.frombuffer(self.payload + bytes(8), np.uint8), starts


@settings(max_examples=50, deadline=None)
@given(requests(), st.data())
def test_selected_spans_are_the_same_spans(payload: bytes, data: st.DataObject) -> None:
    decoded = decode([payload])
    everything = actual(decoded)
    chosen = data.draw(st.lists(st.integers(0, max(len(decoded) - 1, 0)), max_size=5 if len(decoded) else 0))
    part = decoded.select(np.array(chosen, np.int64))
    assert actual(part) == [everything[index] for index in chosen]
    assert set(part.attributes.keys.to_pylist()) == {
        key for index in chosen for key, _ in everything[index]["attributes"]
    }
    waited = decoded.waiting().select(np.array(chosen, np.int64))
    assert actual(waited) == [everything[index] for index in chosen]
    backwards = np.arange(len(chosen))[::-1]
    for waiting in (
        waited.waiting(),
        decoded.waiting().some(np.array(chosen, np.int64)),
        decoded.waiting(Elsewhere(payload)).some(np.array(chosen, np.int64)),
    ):
        assert actual(waiting.select(backwards)) == [everything[index] for index in chosen[::-1]]


@settings(max_examples=100, deadline=None)
@given(requests())
def test_what_protobuf_accepts_is_acknowledged(payload: bytes) -> None:
    assert validate(payload) is None


def test_selected_spans_do_not_hold_the_batch() -> None:
    decoded = decode([chat_payload(512, seed) for seed in range(4)])
    one = np.array([7], np.int64)
    assert decoded.select(one).nbytes < decoded.nbytes / 400
    assert decoded.waiting().select(one).waiting().nbytes < decoded.waiting().nbytes / 400


def test_spans_that_wait_take_little_more_than_they_took_on_the_wire(reading: str) -> None:
    payloads = [chat_payload(512, seed) for seed in range(4)]
    waiting = decode(payloads).waiting()
    assert reading == "ptars" or waiting.nbytes < 1.05 * sum(map(len, payloads))
    elsewhere = decode(payloads).waiting(Elsewhere(b"".join(payloads)))
    assert reading == "ptars" or elsewhere.nbytes == 2048 * 16
    if reading == "fused":
        some = np.arange(100, 300)
        assert actual(elsewhere.some(some).select(np.arange(200))) == actual(waiting.select(some))


def test_spans_of_a_request_that_was_written_anew_wait_in_memory() -> None:
    good, twice = chat_payload(4), chat_payload(4, 1)
    # A field that nobody knows in front of the spans: the walker reads what protobuf makes of it.
    odd = b"\xfb\x3e\xfc\x3e" + twice
    decoded = decode([good, odd])
    waiting = decoded.waiting(Elsewhere(good + odd))
    assert waiting.nbytes > 1000
    assert actual(waiting.select(np.arange(8))) == actual(decoded)


# -- unusual encodings of the same message -----------------------------------------------------------------------------


def varint(value: int, padding: int = 0) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    if padding:
        return bytes(out) + bytes([value | 0x80]) + b"\x80" * (padding - 1) + b"\x00"
    return bytes(out) + bytes([value])


def framed(number: int, content: bytes, padding: int = 0) -> bytes:
    return varint(number << 3 | 2) + varint(len(content), padding) + content


def wire_request(wire_span: bytes) -> bytes:
    return framed(1, framed(2, framed(2, wire_span)))


IDS = framed(1, b"t" * 16) + framed(2, b"s" * 8)

UNUSUAL = {
    "length in more bytes than needed": framed(9, framed(1, b"k") + framed(2, framed(1, b"abc", padding=2))),
    "long text, length in more bytes than needed": framed(
        9, framed(1, b"k") + framed(2, framed(1, b"x" * 200, padding=1))
    ),
    "long text, then another field": framed(9, framed(1, b"k") + framed(2, framed(1, b"x" * 200) + b"\x18\x07")),
    "integer with more than 64 bits": framed(9, framed(1, b"k") + framed(2, b"\x18" + b"\xff" * 9 + b"\x7f")),
    "integer in more bytes than needed": framed(9, framed(1, b"k") + framed(2, b"\x18" + varint(5, padding=3))),
    "boolean that is not 0 or 1": framed(9, framed(1, b"k") + framed(2, b"\x10" + varint(300))),
    "value set twice, the last counts": framed(9, framed(1, b"k") + framed(2, framed(1, b"abc") + b"\x18\x07")),
    "field of a newer OTLP in a value": framed(9, framed(1, b"k") + framed(2, framed(1, b"abc") + framed(90, b"new"))),
    "fields in reverse order": framed(9, framed(2, framed(1, b"abc")) + framed(1, b"k")),
    "key without a value": framed(9, framed(1, b"k")),
    "field of a newer OTLP in the span": framed(9, framed(1, b"k") + framed(2, b"\x18\x07")) + framed(99, b"new"),
    "group, a form older than OTLP": b"\xa3\x06\x08\x01\xa4\x06" + framed(5, b"name"),
    "known field of another wire type": b"\x28\x05" + framed(5, b"name"),
    "status said in two parts": framed(15, framed(2, b"message")) + framed(15, b"\x18\x02"),
    "unusual event": framed(11, framed(2, b"e") + framed(3, framed(1, b"k") + framed(2, b"\x18" + varint(5, 3)))),
}


@pytest.mark.parametrize("wire", UNUSUAL.values(), ids=UNUSUAL.keys())
def test_unusual_encodings_are_read_like_protobuf_reads_them(wire: bytes) -> None:
    payload = wire_request(IDS + wire)
    ordinary = chat_payload(3)
    assert validate(payload) is None
    decoded = decode([ordinary, payload, ordinary])
    assert actual(decoded) == expected([ordinary, payload, ordinary])
    assert len(decoded) == 7
    assert (decoded.attributes.kinds != anyvalue.ODD).all()


# -- hostile bytes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "payload",
    [b"\xff", b"\x0a\xff\xff\xff\xff\x0f", b"not OTLP at all", chat_payload(5)[:-3], wire_request(framed(9, b"\x0a"))],
)
def test_a_malformed_payload_is_refused_and_does_not_take_others_with_it(payload: bytes) -> None:
    reason = validate(payload)
    assert reason is not None
    assert "ExportTraceServiceRequest" in reason
    decoded = decode([chat_payload(4), payload, chat_payload(3, seed=1)])
    assert decoded.malformed == [1]
    assert actual(decoded) == expected([chat_payload(4), chat_payload(3, seed=1)])


@pytest.mark.parametrize(
    "value",
    [
        b"\x0a\x05abc",
        b"\x18\xff",
        b"\x18" + b"\xff" * 10 + b"\x01",
        b"\x21\x00",
        b"\x10",
        b"\x10\x80",
        b"\x0a",
        b"\x0a" + varint(200) + b"x" * 199,
        b"\x0a" + varint(200) + b"x" * 201,
        b"\x2a\x80",
        b"\xff",
    ],
)
def test_a_broken_attribute_value_makes_its_payload_malformed(value: bytes) -> None:
    payload = wire_request(IDS + framed(9, framed(1, b"k") + framed(2, value)))
    with pytest.raises(DecodeError):
        ExportTraceServiceRequest.FromString(payload)
    assert validate(payload) is not None
    decoded = decode([payload, chat_payload(2)])
    assert decoded.malformed == [0]
    assert len(decoded) == 2


@pytest.mark.parametrize("field", [11, 13])
def test_a_broken_event_or_link_is_refused_at_the_door(field: int) -> None:
    assert validate(wire_request(IDS + framed(field, b"\x0a\x7f"))) is not None


@pytest.mark.parametrize("error", [ValueError("no"), type("PanicException", (BaseException,), {})("rust")])
def test_a_payload_that_only_the_column_decoder_refuses_is_left_out_alone(
    monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    real = by_ptars.columns("Request")

    class Refusing:
        def list_to_record_batch(self, payloads: list[bytes]) -> Any:
            if any(b"REFUSED" in payload for payload in payloads):
                raise error
            return real.list_to_record_batch(payloads)

    monkeypatch.setattr(by_ptars, "columns", lambda message: Refusing())
    monkeypatch.setattr(fused, "_walk", None)
    decoded = decode([chat_payload(2), request([span(name="REFUSED")]), chat_payload(3)])
    assert decoded.malformed == [1]
    assert len(decoded) == 5


def test_mutated_bytes_stop_nothing() -> None:
    rng = random.Random(20261120)
    rich = span(
        {"a": ["x", {"y": b"z"}], "n": -5, "b": True, "d": 0.5, "long": "y" * 300},
        events=[Span.Event(name="e", attributes=attributes({"k": 1}))],
    )
    base, good = request([rich, span(number=2)], {"service.name": "s"}), chat_payload(2)
    seen = set()
    for _ in range(800):
        mutated = bytearray(base)
        for _ in range(rng.choice((1, 1, 2, 5))):
            at = rng.randrange(len(mutated))
            change = rng.random()
            if change < 0.6:
                mutated[at] = rng.randrange(256)
            elif change < 0.8:
                del mutated[at : at + rng.randrange(1, 4)]
            else:
                mutated[at:at] = rng.randbytes(rng.randrange(1, 4))
        payload = bytes(mutated)
        decoded = decode([good, payload, good])
        oracle = None
        try:
            oracle = expected([good, payload, good])
        except DecodeError:
            assert len(decoded) >= 4
        if oracle is not None:
            assert validate(payload) is None
            assert actual(decoded) == oracle
        if validate(payload) is None:
            assert decoded.malformed == []
        seen.add((oracle is None, bool(decoded.malformed)))
    assert seen == {(True, True), (True, False), (False, False)}


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"trace_id": b""}, "bad_trace_id"),
        ({"trace_id": bytes(16)}, "bad_trace_id"),
        ({"trace_id": b"x" * 17}, "bad_trace_id"),
        ({"span_id": b"x" * 7}, "bad_span_id"),
        ({"span_id": bytes(8)}, "bad_span_id"),
        ({"parent_span_id": b"x" * 16}, "bad_parent_span_id"),
    ],
)
def test_a_span_with_an_impossible_identifier_is_rejected_alone(fields: dict[str, bytes], reason: str) -> None:
    others = [span({"k": number}, number=number) for number in (1, 2)]
    payload = request([others[0], span({"k": "bad"}, **fields), others[1]])
    decoded = decode([payload])
    assert decoded.rejected == {reason: 1}
    assert actual(decoded) == expected([request(others)])


def test_an_absent_parent_and_a_zero_parent_are_both_a_root() -> None:
    decoded = decode([request([span(number=1), span(number=2, parent_span_id=bytes(8))])])
    assert decoded.spans["parent_span_id"].to_pylist() == [bytes(8), bytes(8)]


def test_bad_utf8_is_replaced_and_refuses_nothing() -> None:
    bad = b"a\xff\xc3"
    wire = IDS + framed(5, bad) + framed(3, bad) + framed(15, framed(2, bad))
    wire += framed(9, framed(1, bad) + framed(2, framed(1, bad)))
    payload = wire_request(wire)
    assert validate(payload) is None
    decoded = decode([chat_payload(2), payload, request([span(name="größe")])])
    shown = bad.decode("utf-8", "replace")
    row = decoded.spans.to_pylist()[2]
    assert [row["name"], row["trace_state"], row["status_message"]] == [shown] * 3
    assert decoded.attributes.select(np.array([2])).maps().to_pylist() == [[(shown, shown)]]
    assert decoded.spans["name"].to_pylist()[3] == "größe"


def test_values_nested_ten_thousand_deep_are_kept_and_readable() -> None:
    value = framed(1, b"bottom")
    for _ in range(10_000):
        value = framed(5, framed(1, value))
    payload = wire_request(IDS + framed(9, framed(1, b"deep") + framed(2, value)))
    assert validate(payload) is None
    decoded = decode([payload, chat_payload(1)])
    assert len(decoded) == 2
    shown = json.loads(decoded.attributes.select(np.array([0])).maps().to_pylist()[0][0][1])
    for _ in range(DEEPEST - 1):
        (shown,) = shown
    assert b"bottom" in base64.b64decode(shown[0] if isinstance(shown, list) else shown)


def test_an_attribute_of_ten_mebibytes_is_kept() -> None:
    large = "ä" * (5 << 20)
    decoded = decode([request([span({"large": large, "small": 1})]), chat_payload(1)])
    assert dict(decoded.attributes.select(np.array([0])).maps().to_pylist()[0]) == {"large": large, "small": "1"}


def test_a_hundred_thousand_attributes_on_one_span_are_kept() -> None:
    many = {f"key.{number}": number for number in range(100_000)}
    decoded = decode([request([span(many)]), chat_payload(1)])
    assert decoded.attributes.select(np.array([0])).maps().to_pylist()[0][-1] == ("key.99999", "99999")
    assert len(decoded) == 2


def test_nothing_decodes_to_nothing() -> None:
    for payloads in ([], [b""], [b"", b""]):
        decoded = decode(payloads)
        assert len(decoded) == 0
        assert len(decoded.attributes) == 0
        assert decoded.spans.schema == decode([chat_payload(1)]).spans.schema


def test_many_resources_and_scopes_each_keep_their_own() -> None:
    made = ExportTraceServiceRequest(
        resource_spans=[
            resource_spans([span(number=n)], {"service.name": f"s{n}"}, (f"scope{n}", str(n))) for n in range(1, 30)
        ]
    ).SerializeToString()
    assert actual(decode([made, made])) == expected([made, made])


# -- values ------------------------------------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(-(2**63), 2**63 - 1)), st.lists(st.floats()), st.lists(st.booleans()))
def test_columns_of_values_are_read_exactly(ints: list[int], floats: list[float], flags: list[bool]) -> None:
    values = {f"k{n}": value for n, value in enumerate([*ints, *floats, *flags])}
    table = decode([request([span(values)])]).attributes
    rows = {kind: np.flatnonzero(table.kinds == kind) for kind in (anyvalue.INT, anyvalue.DOUBLE, anyvalue.BOOL)}
    assert anyvalue.integers(table.raw, rows[anyvalue.INT]).tolist() == ints
    assert list(map(repr, anyvalue.doubles(table.raw, rows[anyvalue.DOUBLE]).tolist())) == list(map(repr, floats))
    assert anyvalue.booleans(table.raw, rows[anyvalue.BOOL]).tolist() == flags


@pytest.mark.parametrize("size", [0, 1, 127, 128, 129, 16_383, 16_384, 16_387, 2_097_151, 2_097_152])
def test_strings_of_every_header_size_are_read_whole(size: int) -> None:
    values = {"s": "x" * size, "b": b"y" * size}
    table = decode([request([span(values)])]).attributes
    assert (table.kinds != anyvalue.ODD).all()
    assert anyvalue.strings(table.raw, np.array([0])).to_pylist() == ["x" * size]
    assert anyvalue.content(table.raw, np.array([1])).to_pylist() == [b"y" * size]
    assert any_value("x" * size).SerializeToString() == table.raw[0].as_py()
