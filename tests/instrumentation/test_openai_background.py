"""Background responses: asked for by one call, told by another, billed once, whoever polls and however often."""

from __future__ import annotations

import subprocess
import sys
from decimal import Decimal
from typing import Any

import openai
import pytest
from openai import Stream
from openai.types.responses import Response
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from tollspan.instrumentation import faults, once, tag
from tollspan.instrumentation.openai import OpenAIInstrumentor, background
from tollspan.pricing import attributes as names

from .openai_bill import ledger

ASK: dict[str, Any] = {"model": "gpt-5-mini", "input": "hello", "background": True}
ONCE = once.of("openai")
CREATED = 1_795_200_000
METERS = {
    "tokens.input.uncached": 10,
    "tokens.input.cache_read": 80,
    "tokens.input.cache_write": 10,
    "tokens.output": 13,
    "tokens.output.reasoning": 7,
    "web_searches": 2,
}
IDENTITY = ("248b81e36a3627dc4333391a01e6081c", "ccacc04a46776a64")
HEADERS = {"created_at": CREATED, "background": True}


@pytest.fixture(autouse=True)
def another_process() -> None:
    """Nothing is known of any response."""
    ONCE.forget()


def queued(wire: Any, status: str = "queued") -> dict[str, Any]:
    return wire.response(**HEADERS, status=status, usage=None, output=[], tool_usage=None)


def completed(wire: Any, **changed: Any) -> dict[str, Any]:
    return wire.response(**HEADERS, **{"completed_at": CREATED + 30, **changed})


def billed(telemetry: Any) -> list[dict[str, Any]]:
    """Rows that say what was used."""
    return [row for row in ledger(telemetry.spans()) if row["meters"]]


def test_polling_bills_once(openai_spans: Any, wire: Any) -> None:
    wire.json(queued(wire)).json(queued(wire, "in_progress")).json(completed(wire))
    client = wire.client()
    with tag(tenant="acme"):
        asked = client.responses.create(**ASK)
    assert type(asked) is Response
    created = openai_spans.only()
    assert created.attributes[names.USAGE_DEFERRED] is True
    for _ in range(5):
        client.responses.retrieve("resp_7")
    (row,) = billed(openai_spans)
    assert (row["meters"], row["tenant"], row["service_tier"]) == (METERS, "acme", "priority")
    (made,) = [span for span in openai_spans.spans() if span.name.startswith("chat") and span is not created]
    assert made.parent is None
    assert [link.context for link in made.links] == [created.context]
    assert (made.start_time, made.end_time) == (CREATED * 10**9, (CREATED + 30) * 10**9)
    fetches = [span for span in openai_spans.spans() if span.name == "fetch_response"]
    assert len(fetches) == 5
    assert not [name for span in fetches for name in span.attributes if ".usage" in name]


def test_the_price_of_a_background_response(openai_spans: Any, wire: Any) -> None:
    wire.json(completed(wire, service_tier="default", tool_usage=None)).client().responses.retrieve("resp_7")
    (row,) = billed(openai_spans)
    # 10 × $0.25 + 80 × $0.025 + 20 × $2, by the million, and 10 written to the cache, which cost as much as any input.
    written = row["charges.cost"][row["charges.meter"].index("tokens.input.cache_write")]
    assert row["cost"] == Decimal("0.0000445") + (written or 0)


def test_every_process_makes_the_same_span(openai_spans: Any, wire: Any) -> None:
    client = wire.json(completed(wire)).client()
    client.responses.retrieve("resp_7")
    ONCE.forget()
    client.responses.with_raw_response.retrieve("resp_7")
    made = [span for span in openai_spans.spans() if span.name.startswith("chat")]
    assert len({(span.context.trace_id, span.context.span_id, span.start_time) for span in made}) == 1
    assert len(made) == 2
    assert len(billed(openai_spans)) == 1


def test_its_ids_are_those_of_any_time() -> None:
    """What other processes, and later versions, have to find as well."""
    trace_id, span_id = once.identity_of("resp_7")
    assert (f"{trace_id:032x}", f"{span_id:016x}") == IDENTITY


def test_an_ordinary_response_that_is_retrieved_was_billed_before(openai_spans: Any, wire: Any) -> None:
    client = wire.json(wire.response()).client()
    client.responses.create(model="gpt-5-mini", input="hello")
    client.responses.retrieve("resp_7")
    assert len(billed(openai_spans)) == 1
    assert [span.name for span in openai_spans.spans()] == ["chat gpt-5-mini", "fetch_response"]


def test_a_background_stream_and_a_later_poll_bill_once(openai_spans: Any, wire: Any) -> None:
    events = [{**event} for event in wire.response_events()]
    for event in events:
        if "response" in event:
            event["response"] = {**event["response"], **HEADERS}
    client = wire.stream(events).json(completed(wire)).client()
    stream = client.responses.create(**ASK, stream=True)
    assert isinstance(stream, Stream)
    assert len(list(stream)) == len(events)
    client.responses.retrieve("resp_7")
    (row,) = billed(openai_spans)
    assert row["meters"] == METERS


async def test_a_stream_that_is_taken_up_again(openai_spans: Any, wire: Any) -> None:
    events = wire.response_events()
    events[-1]["response"] |= HEADERS
    client = wire.stream(events[3:]).async_client()
    stream = await client.responses.retrieve("resp_7", stream=True, starting_after=3)
    assert [event.type async for event in stream][-1] == "response.completed"
    assert [row["meters"] for row in billed(openai_spans)] == [METERS]
    fetch = next(span for span in openai_spans.spans() if span.name == "fetch_response")
    assert fetch.attributes[names.REQUEST_STREAM] is True


def test_a_response_that_is_cancelled_is_billed_by_what_it_used(openai_spans: Any, wire: Any) -> None:
    client = wire.json(queued(wire)).json(completed(wire, status="cancelled")).client()
    client.responses.create(**ASK)
    assert client.responses.cancel("resp_7").status == "cancelled"
    (row,) = billed(openai_spans)
    assert row["meters"] == METERS


def test_a_response_that_fails_before_it_used_anything(openai_spans: Any, wire: Any) -> None:
    failed = wire.response(**HEADERS, status="failed", usage=None, error={"code": "server_error", "message": "no"})
    client = wire.json(queued(wire)).json({**failed, "tool_usage": None}).client()
    client.responses.create(**ASK)
    client.responses.retrieve("resp_7")
    assert billed(openai_spans) == []


def test_polling_that_fails_is_the_clients_own(openai_spans: Any, wire: Any) -> None:
    with pytest.raises(openai.NotFoundError):
        wire.error(404).client().responses.retrieve("resp_7")
    assert openai_spans.only().name == "fetch_response"
    assert ledger(openai_spans.spans()) == []


def test_compaction_is_a_call(openai_spans: Any, wire: Any) -> None:
    body = {"id": "resp_8", "object": "response.compaction", "created_at": 1, "output": []}
    client = wire.json({**body, "usage": wire.response()["usage"]}).client()
    if not hasattr(client.responses, "compact"):
        pytest.skip("this version cannot compact")
    client.responses.compact(model="gpt-5-mini", input="hello")
    (row,) = ledger(openai_spans.spans())
    assert row["meters"] == {meter: count for meter, count in METERS.items() if meter != "web_searches"}
    assert row["request_model"] == "gpt-5-mini"


def test_a_tracer_of_the_users_own_ids_keeps_them(wire: Any) -> None:
    """Only our own spans of results have derived ids."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    OpenAIInstrumentor().instrument(tracer_provider=provider)
    try:
        client = wire.json(completed(wire)).client()
        client.responses.retrieve("resp_7")
        with provider.get_tracer("theirs").start_as_current_span("theirs"):
            pass
    finally:
        OpenAIInstrumentor().uninstrument()
    of_result = [span for span in exporter.get_finished_spans() if span.name.startswith("chat")]
    assert (of_result[0].context.trace_id, of_result[0].context.span_id) == once.identity_of("resp_7")
    others = [span for span in exporter.get_finished_spans() if span is not of_result[0]]
    assert not {span.context.trace_id for span in others} & {of_result[0].context.trace_id}


@pytest.mark.parametrize("broken", ["_fields", "put_usage", "client_attributes", "_bill"])
def test_a_fault_of_ours_never_reaches_the_program(
    faulty_telemetry: Any, wire: Any, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    def fault(*_: Any, **__: Any) -> Any:
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr(background, broken, fault)
    counted = sum(faults().values())
    OpenAIInstrumentor().instrument(tracer_provider=faulty_telemetry.provider)
    try:
        client = wire.json(queued(wire)).json(completed(wire)).client()
        assert client.responses.create(**ASK).status == "queued"
        assert client.responses.retrieve("resp_7").status == "completed"
        assert client.responses.with_raw_response.retrieve("resp_7").parse().status == "completed"
    finally:
        OpenAIInstrumentor().uninstrument()
    assert sum(faults().values()) > counted


def test_what_is_remembered_is_bounded() -> None:
    known = once.Remembered(3)
    assert [known.add(key) for key in "aabcd"] == [True, False, True, True, True]
    assert [known.get(key) for key in "abcd"] == [None, None, None, None]
    assert known.add("a", 1)
    assert (known.get("a"), known.add("d")) == (1, False)


@pytest.mark.parametrize("seconds", [CREATED, float(CREATED)])
def test_whole_seconds_are_the_same_instant_in_both_forms(seconds: Any) -> None:
    assert once.instant(seconds) == CREATED * 10**9


@pytest.mark.parametrize("seconds", [None, 0, -1, 2**40, "1795200000", True, float("inf"), float("nan")])
def test_what_is_no_time_is_none(seconds: Any) -> None:
    assert once.instant(seconds) is None


def test_the_span_of_a_result_goes_to_the_provider_that_was_set_later(wire: Any) -> None:
    """In another process, because a process can set its global provider once."""
    program = """
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from tollspan.instrumentation import once
from tollspan.instrumentation.openai import OpenAIInstrumentor
OpenAIInstrumentor().instrument()
once.of("openai").emit("a", "a", {}, lambda call: None, start_ns=1)
exporter, provider = InMemorySpanExporter(), TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(exporter))
trace.set_tracer_provider(provider)
once.of("openai").emit("b", "b", {}, lambda call: None, start_ns=1)
(span,) = exporter.get_finished_spans()
assert (span.name, span.context.trace_id) == ("b", once.identity_of("b")[0])
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
