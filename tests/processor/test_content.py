"""Bodies without content: what was said is gone in every dialect, and everything else is there."""

from __future__ import annotations

import functools

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tollspan.pricing.attributes import CONTENT
from tollspan.processor.bodies import bodies
from tollspan.processor.decode import decode
from tollspan.processor.encode import encode
from tollspan.processor.normalize import normalize
from tollspan.processor.sample.content import (
    REMOVED,
    content_bytes,
    is_content,
    is_content_event,
    strip,
    without_content,
)
from tollspan.processor.sample.content_names import ATTRIBUTES, EVENTS, STRUCTURE

from .dialect_bill import cases
from .dialect_bill import request as case_request
from .otlp_factory import any_value, attributes, request, span
from .test_decode import actual, reading, requests

__all__ = ["reading"]  # everything here holds for both readings of the wire

# What real programs send, content and not: the names were seen on spans of the dialect's libraries.
SAID = {
    "opentelemetry": ["gen_ai.input.messages", "gen_ai.output.messages", "gen_ai.system_instructions"],
    "openllmetry": ["gen_ai.prompt.0.content", "gen_ai.completion.12.tool_calls.0.arguments", "traceloop.entity.input"],
    "openinference": [
        "input.value",
        "llm.input_messages.3.message.content",
        "llm.input_messages.0.message.contents.1.message_content.image.image.url",
        "retrieval.documents.0.document.content",
        "embedding.embeddings.0.embedding.vector",
    ],
    "vercel": ["ai.prompt", "ai.prompt.messages", "ai.response.text", "ai.toolCall.args"],
    "litellm": ["llm.openai.messages", "llm.anthropic.content", "llm.None.input"],
    "logfire": ["request_data", "pydantic_ai.all_messages", "tool_response"],
    "mlflow": ["mlflow.spanInputs"],
    "braintrust": ["braintrust.input_json"],
    "google-adk": ["gcp.vertex.agent.llm_request"],
    "spring-ai": ["spring.ai.tool.call.arguments"],
    "sentry": ["gen_ai.request.messages"],
}
KEPT = [
    "gen_ai.request.model",
    "gen_ai.usage.input_tokens",
    "gen_ai.prompt.name",
    "gen_ai.prompt.0.role",
    "gen_ai.completion.0.finish_reason",
    "llm.input_messages.0.message.role",
    "llm.token_count.prompt",
    "llm.model_name",
    "llm.system",
    "llm.openai.model",
    "ai.usage.promptTokens",
    "ai.model.id",
    "ai.response.finishReason",
    "ai.prompt.toolChoice",
    "gen_ai.tool.call.id",
    "gen_ai.tool.name",
    "openinference.span.kind",
    "input.mime_type",
    "message.type",
    "message.id",
    "exception.message",
    "exception.stacktrace",
    "http.route",
    "url.full",
    "db.query.text",
    "tollspan.tenant",
    "tollspan.usage.tokens.output",
    "langfuse.observation.usage_details",
    "braintrust.metrics",
    "mlflow.chat.tokenUsage",
]


def matches(name: str, pattern: str) -> bool:
    """Another way to read a pattern, letter by letter."""
    if not pattern:
        return not name
    head, rest = pattern[0], pattern[1:]
    if head == "*":
        return any(matches(name[cut:], rest) for cut in range(len(name) + 1))
    if head == "#":
        return any(name[:cut].isdecimal() and matches(name[cut:], rest) for cut in range(1, len(name) + 1))
    return name[:1] == head and matches(name[1:], rest)


@functools.cache
def is_said(name: str) -> bool:
    taken = any(matches(name, pattern) for patterns in ATTRIBUTES.values() for pattern in patterns)
    return taken and not any(matches(name, pattern) for pattern in STRUCTURE)


@pytest.mark.parametrize("dialect", sorted(ATTRIBUTES))
def test_every_pattern_takes_what_it_names(dialect: str) -> None:
    names = [pattern.replace("*", "x").replace("#", "7") for pattern in ATTRIBUTES[dialect]]
    taken = is_content(pa.array(names))
    assert [name for name, gone in zip(names, taken, strict=True) if not gone] == []


def test_names_that_were_seen() -> None:
    said = [name for names in SAID.values() for name in names]
    assert [name for name, gone in zip(said, is_content(pa.array(said)), strict=True) if not gone] == []
    assert [name for name, gone in zip(KEPT, is_content(pa.array(KEPT)), strict=True) if gone] == []


@given(
    st.sampled_from(sorted({*KEPT, *(name for names in SAID.values() for name in names)})),
    st.sampled_from(["", "x", ".0", ".x"]),
)
def test_patterns_are_read_as_they_are_written(name: str, more: str) -> None:
    assert bool(is_content(pa.array([name + more]))[0]) == is_said(name + more)


def test_events_that_are_content() -> None:
    names = [pattern.replace("*", "x") for patterns in EVENTS.values() for pattern in patterns]
    assert is_content_event(pa.array(names)).all()
    assert not is_content_event(pa.array(["exception", "message", "retry", "gen_ai.other", "First Token"])).any()
    assert len(is_content(pa.array([], pa.string()))) == 0


contents = st.sampled_from(["gen_ai.input.messages", "llm.prompts.0", "input.value", "gen_ai.tool.call.arguments"])
others = st.sampled_from(["gen_ai.request.model", "gen_ai.usage.input_tokens", "app.x", "tollspan.tenant", CONTENT])
values = st.one_of(
    st.text(max_size=200), st.integers(-(2**63), 2**63 - 1), st.booleans(), st.lists(st.text(max_size=9))
)
given_attributes = st.dictionaries(st.one_of(contents, others), values, max_size=5)
given_events = st.tuples(
    st.sampled_from(["gen_ai.user.message", "gen_ai.choice", "exception", "step", "gen_ai.content.prompt"]),
    given_attributes,
)


@st.composite
def wordy(draw: st.DrawFn) -> bytes:
    """A request of spans with content here and there."""
    spans = []
    for number in range(draw(st.integers(0, 4))):
        made = span(draw(given_attributes), number=number, dropped_attributes_count=draw(st.integers(0, 2)))
        for name, found in draw(st.lists(given_events, max_size=3)):
            made.events.append(Span.Event(name=name, time_unix_nano=number, attributes=attributes(found)))
        spans.append(made)
    return request(spans, {"service.name": "app"})


def expected(payload: bytes) -> ExportTraceServiceRequest:
    """The same by protobuf, span by span."""
    parsed = ExportTraceServiceRequest.FromString(payload)
    for resource in parsed.resource_spans:
        for one in resource.scope_spans[0].spans:
            gone = [each for each in one.attributes if is_said(each.key)]
            events = [each for each in one.events if each.name.startswith("gen_ai.")]
            inside = sum(is_said(a.key) for e in one.events if e not in events for a in e.attributes)
            if not (gone or events or inside):
                continue
            stay = [each for each in one.attributes if each not in gone and each.key != CONTENT]
            del one.attributes[:]
            one.attributes.extend(stay)
            one.attributes.add(key=CONTENT, value=any_value(REMOVED))
            one.dropped_attributes_count += len(gone)
            left = [each for each in one.events if each not in events]
            del one.events[:]
            one.events.extend(left)
            one.dropped_events_count += len(events)
            for event in one.events:
                lost = [each for each in event.attributes if is_said(each.key)]
                for each in lost:
                    event.attributes.remove(each)
                event.dropped_attributes_count += len(lost)
    return parsed


@settings(max_examples=200, deadline=None)
@given(st.lists(wordy(), min_size=1, max_size=3))
def test_what_remains_is_what_protobuf_would_leave(payloads: list[bytes]) -> None:
    before = [ExportTraceServiceRequest.FromString(payload) for payload in payloads]
    decoded = decode(payloads)
    told = content_bytes(decoded)
    found = strip(decoded)
    wanted = decode([expected(payload).SerializeToString() for payload in payloads])
    assert actual(found.decoded) == actual(wanted)
    assert [ExportTraceServiceRequest.FromString(payload) for payload in payloads] == before
    # Something went where the mark stands, and nowhere else; a second time there is nothing to take.
    assert (strip(found.decoded).removed == 0).all()
    assert (content_bytes(found.decoded) == 0).all()
    assert ((told > 0) == (found.removed > 0)).all()
    # Both are estimates of the same bytes; an event that is written again has a length of its own.
    assert (np.abs(told - found.removed) <= 8 * np.diff(np.asarray(decoded.spans["events"].offsets)) + 60).all()


# Requests are as large as they are: what is drawn too large is drawn again, which is no fault.
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.data_too_large])
@given(st.lists(requests(), max_size=4))
def test_spans_that_say_nothing_are_as_they_were(payloads: list[bytes]) -> None:
    decoded = decode(payloads)
    if not content_bytes(decoded).any():
        assert strip(decoded).decoded is decoded


@settings(max_examples=50, deadline=None)
@given(st.lists(wordy(), min_size=1, max_size=3))
def test_bodies_and_forwarding_take_what_remains(payloads: list[bytes]) -> None:
    decoded = decode(payloads)
    bare = without_content(decoded)
    table = bodies(bare, {})
    assert table.num_rows == len(decoded)
    for row in table.to_pylist():
        assert not any(is_said(key) for key, _ in row["SpanAttributes"])
        assert not any(is_said(key) for event in row["Events.Attributes"] for key, _ in event)
    again = decode([each.payload for each in encode(bare)])
    assert sorted(map(repr, actual(again))) == sorted(map(repr, actual(bare)))
    # Selected as what waits is.
    rows = np.arange(len(bare), dtype=np.int64)[::-1]
    assert [each["span_id"] for each in actual(bare.select(rows))] == [each["span_id"] for each in actual(bare)][::-1]


def test_a_span_that_is_selected_from_what_waits_can_be_stripped() -> None:
    payload = request([span({"gen_ai.input.messages": "hello " * 50, "app.x": n}, number=n) for n in range(4)])
    chosen = decode([payload]).waiting().select(np.array([1, 3]))
    found = strip(chosen)
    assert (found.removed > 300).all()
    assert [[key for key, _ in row["attributes"]] for row in actual(found.decoded)] == [["app.x", CONTENT]] * 2
    assert [row["dropped"][0] for row in actual(found.decoded)] == [1, 1]


def test_a_bill_does_not_need_content() -> None:
    """Spans of every library, sent on without content, cost at the next processor what they cost here."""
    # Logfire tells some usage only within the answer itself: there it goes with the content.
    given = [case["spans"] for name, case in cases().items() if not name.startswith("logfire-4.")]
    payloads = [case_request(number, spans) for number, spans in enumerate(given)]
    decoded = decode(payloads)
    full, bare = normalize(decoded, received_ns=0), normalize(without_content(decoded), received_ns=0)
    differ = {name for name in full.quantities if full.quantities[name] != bare.quantities.get(name)}
    assert differ == set()
    for column in ("provider", "model", "operation", "kind", "token_bearing"):
        assert full.table[column].to_pylist() == bare.table[column].to_pylist(), column


def test_statistics_of_a_batch_without_spans() -> None:
    empty = decode([])
    assert strip(empty).decoded is empty
    assert len(content_bytes(empty)) == 0
