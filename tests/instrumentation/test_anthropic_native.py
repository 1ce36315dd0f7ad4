"""The client's own spans and ours: exactly one with usage, however things are switched; the choice is the program's."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from tollspan.instrumentation.anthropic import NATIVE_SPANS, AnthropicInstrumentor
from tollspan.pricing import attributes as names

from .anthropic_stub import MODEL, Stub, batch_results, events, message, serve

pytest.importorskip("anthropic._tracing", reason="this version of the client makes no spans")

ASK: dict[str, Any] = {"model": MODEL, "max_tokens": 64, "messages": [{"role": "user", "content": "hello"}]}
NATIVE = "com.anthropic.sdk.python"
OURS = "tollspan.instrumentation.anthropic"


@pytest.fixture
def stub() -> Iterator[Stub]:
    with serve() as stub:
        yield stub


@pytest.fixture(autouse=True)
def one_global_provider(telemetry: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The test's provider is the global one, which is where the client's own spans go."""
    monkeypatch.setattr("opentelemetry.trace._TRACER_PROVIDER", telemetry.provider)
    monkeypatch.delenv(NATIVE_SPANS, raising=False)
    yield
    AnthropicInstrumentor().uninstrument()


def scopes(telemetry: Any) -> list[str]:
    return [span.instrumentation_scope.name for span in telemetry.spans()]


def with_usage(telemetry: Any) -> list[str]:
    """Scopes of the spans that tell tokens."""
    return [
        span.instrumentation_scope.name for span in telemetry.spans() if names.USAGE_INPUT_TOKENS in span.attributes
    ]


def create(stub: Stub, client: Any) -> None:
    stub.json(message())
    client.messages.create(**ASK)


def stream(stub: Stub, client: Any) -> None:
    stub.stream(events())
    list(client.messages.create(**ASK, stream=True))


def helper(stub: Stub, client: Any) -> None:
    stub.stream(events())
    with client.beta.messages.stream(**ASK) as stream:
        stream.until_done()


def raw_stream(stub: Stub, client: Any) -> None:
    stub.stream(events())
    list(client.messages.with_raw_response.create(**ASK, stream=True).parse())


def left_early(stub: Stub, client: Any) -> None:
    stub.stream(events())
    with client.messages.create(**ASK, stream=True) as stream:
        next(stream)


WAYS = [create, stream, helper, raw_stream, left_early]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@pytest.mark.parametrize("native", [None, False, {"traces": {"content_mode": "content"}}])
def test_one_span_with_usage_whatever_the_clients_switch(
    telemetry: Any, stub: Stub, way: Callable[[Stub, Any], None], native: Any
) -> None:
    AnthropicInstrumentor().instrument()
    way(stub, stub.client(**({} if native is None else {"open_telemetry": native})))
    assert with_usage(telemetry) == [OURS]
    assert scopes(telemetry) == [OURS]


@pytest.mark.parametrize("way", [create, stream, helper], ids=lambda way: way.__name__)
@pytest.mark.parametrize("by", ["option", "environment"])
def test_the_clients_own_are_kept_where_they_are_preferred(
    telemetry: Any, stub: Stub, monkeypatch: pytest.MonkeyPatch, way: Callable[[Stub, Any], None], by: str
) -> None:
    if by == "environment":
        monkeypatch.setenv(NATIVE_SPANS, "true")
    AnthropicInstrumentor().instrument(**({"native_spans": True} if by == "option" else {}))
    way(stub, stub.client())
    assert with_usage(telemetry) == scopes(telemetry) == [NATIVE]
    # A client without spans of its own has ours all the same.
    telemetry.exporter.clear()
    way(stub, stub.client(open_telemetry=False))
    assert with_usage(telemetry) == scopes(telemetry) == [OURS]


def test_without_us_the_client_makes_its_own_again(telemetry: Any, stub: Stub) -> None:
    client = stub.json(message()).client()
    client.messages.create(**ASK)
    AnthropicInstrumentor().instrument()
    client.messages.create(**ASK)
    AnthropicInstrumentor().uninstrument()
    client.messages.create(**ASK)
    assert scopes(telemetry) == [NATIVE, OURS, NATIVE]


def test_a_client_with_a_tracer_provider_of_its_own_keeps_its_spans_there(telemetry: Any, stub: Stub) -> None:
    elsewhere = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(elsewhere))
    AnthropicInstrumentor().instrument()
    create(stub, stub.client(open_telemetry={"tracer_provider": provider}))
    assert scopes(telemetry) == [OURS]
    assert [span.name for span in elsewhere.get_finished_spans()] == ["anthropic.messages.create"]


def test_the_request_carries_the_trace_context_as_it_would_have(telemetry: Any, stub: Stub) -> None:
    AnthropicInstrumentor().instrument()
    create(stub, stub.client())
    context = telemetry.only().get_span_context()
    assert stub.requests[0][2]["traceparent"].startswith(f"00-{context.trace_id:032x}-{context.span_id:016x}-")


def test_the_program_that_switched_propagation_off_sends_none(telemetry: Any, stub: Stub) -> None:
    AnthropicInstrumentor().instrument()
    create(stub, stub.client(open_telemetry={"propagation": False}))
    assert "traceparent" not in stub.requests[0][2]


def test_other_spans_of_the_client_stay(telemetry: Any, stub: Stub) -> None:
    AnthropicInstrumentor().instrument()
    client = stub.json({"input_tokens": 5}).client()
    client.messages.count_tokens(model=MODEL, messages=ASK["messages"])
    assert [(span.name, span.instrumentation_scope.name) for span in telemetry.spans()] == [
        ("anthropic.messages.count_tokens", NATIVE)
    ]
    telemetry.exporter.clear()
    stub.replies.clear()
    list(stub.batch().lines(batch_results()).client().messages.batches.results("msgbatch_1"))
    assert with_usage(telemetry) == [OURS, OURS]


def test_the_decision_is_logged_once_with_the_way_to_change_it(
    telemetry: Any, stub: Stub, caplog: pytest.LogCaptureFixture
) -> None:
    AnthropicInstrumentor().instrument()
    with caplog.at_level(logging.INFO, "tollspan"):
        for _ in range(3):
            create(stub, stub.client())
    (line,) = [record.getMessage() for record in caplog.records if record.name.startswith("tollspan")]
    assert NATIVE_SPANS in line
    assert "ANTHROPIC_OPEN_TELEMETRY" in line


def test_nothing_is_logged_of_a_client_that_makes_no_spans(
    telemetry: Any, stub: Stub, caplog: pytest.LogCaptureFixture
) -> None:
    AnthropicInstrumentor().instrument()
    with caplog.at_level(logging.INFO, "tollspan"):
        create(stub, stub.client(open_telemetry=False))
    assert [record for record in caplog.records if record.name.startswith("tollspan")] == []
