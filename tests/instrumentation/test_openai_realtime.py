"""Realtime connections of the openai client: one span for each response, and for each transcription of the input."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any

import openai
import pytest
from opentelemetry.context import _SUPPRESS_INSTRUMENTATION_KEY
from opentelemetry.instrumentation.utils import _suppress_instrumentation
from opentelemetry.trace import StatusCode

from tollspan.instrumentation import faults, tag
from tollspan.instrumentation.openai import OpenAIInstrumentor, realtime
from tollspan.pricing import attributes as names

from .openai_bill import ledger

server = pytest.importorskip("websockets.sync.server")

USAGE = {
    "total_tokens": 1500,
    "input_tokens": 1000,
    "output_tokens": 500,
    "input_token_details": {
        "text_tokens": 400,
        "audio_tokens": 600,
        "image_tokens": 0,
        "cached_tokens": 300,
        "cached_tokens_details": {"text_tokens": 100, "audio_tokens": 200, "image_tokens": 0},
    },
    "output_token_details": {"text_tokens": 100, "audio_tokens": 400},
}
METERS = {
    "tokens.input.uncached": 300,
    "tokens.input.cache_read": 100,
    "tokens.input.audio": 400,
    "tokens.input.audio.cache_read": 200,
    "tokens.output": 100,
    "tokens.output.audio": 400,
}
COST = Decimal("0.04132")
"""300 × $4 + 100 × $0.40 + 400 × $32 + 200 × $0.40 + 100 × $16 + 400 × $64, by the million."""

SESSION = {
    "type": "session.created",
    "event_id": "event_1",
    "session": {
        "id": "sess_1",
        "type": "realtime",
        "model": "gpt-realtime",
        "audio": {"input": {"transcription": {"model": "gpt-4o-transcribe"}}},
    },
}
TRANSCRIBED = {
    "type": "conversation.item.input_audio_transcription.completed",
    "event_id": "event_2",
    "item_id": "item_1",
    "content_index": 0,
    "transcript": "hello",
    "usage": {
        "type": "tokens",
        "total_tokens": 130,
        "input_tokens": 120,
        "input_token_details": {"text_tokens": 20, "audio_tokens": 100},
        "output_tokens": 10,
    },
}


def answered(response_id: str = "resp_1", status: str = "completed", **changed: Any) -> list[dict[str, Any]]:
    """The events of one response."""
    response = {"id": response_id, "object": "realtime.response", "conversation_id": "conv_1", "output": []}
    delta = {"response_id": response_id, "item_id": "item_2", "output_index": 0, "content_index": 0, "delta": "aGk="}
    return [
        {"type": "response.created", "event_id": "e1", "response": {**response, "status": "in_progress"}},
        *[{"type": "response.output_audio.delta", "event_id": "e2", **delta}] * 3,
        {
            "type": "response.done",
            "event_id": "e3",
            "response": {**response, "status": status, "usage": USAGE, **changed},
        },
    ]


@pytest.fixture
def serving() -> Iterator[Callable[[list[dict[str, Any]]], str]]:
    """Starts services that send these events to whoever connects and then hang up; gives their base URL."""
    servers = []

    def serve(events: list[dict[str, Any]]) -> str:
        def handle(connection: Any) -> None:
            for event in events:
                connection.send(json.dumps(event))

        made = server.serve(handle, "127.0.0.1", 0)
        servers.append(made)
        threading.Thread(target=made.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{made.socket.getsockname()[1]}/v1"

    yield serve
    for made in servers:
        made.shutdown()


def check(telemetry: Any) -> None:
    """The one span says what the events above tell."""
    span = telemetry.only()
    assert span.name == "chat gpt-realtime"
    attributes = telemetry.attributes()
    assert attributes[names.OPENAI_API_TYPE] == "realtime"
    assert attributes[names.RESPONSE_ID] == "resp_1"
    assert attributes[names.CONVERSATION_ID] == "conv_1"
    assert attributes[names.RESPONSE_FINISH_REASONS] == ("completed",)
    assert attributes[names.SERVER_ADDRESS] == "127.0.0.1"
    assert attributes[names.USAGE_INPUT_TOKENS] == 1000
    assert attributes[names.USAGE_OUTPUT_TOKENS] == 500
    (row,) = ledger(telemetry.spans())
    assert (row["meters"], row["cost"]) == (METERS, COST)


def test_responses_of_a_connection(openai_spans: Any, serving: Any) -> None:
    events = [SESSION, *answered()]
    client = openai.OpenAI(api_key="none", base_url=serving(events))
    with client.realtime.connect(model="gpt-realtime") as connection:
        assert [event.type for event in connection] == [event["type"] for event in events]
    check(openai_spans)


async def test_responses_of_an_asynchronous_connection(openai_spans: Any, serving: Any) -> None:
    events = [SESSION, *answered()]
    client = openai.AsyncOpenAI(api_key="none", base_url=serving(events))
    async with client.realtime.connect(model="gpt-realtime") as connection:
        assert [(await connection.recv()).type for _ in events] == [event["type"] for event in events]
    check(openai_spans)


def test_the_model_of_the_address_serves_where_no_session_tells_it(openai_spans: Any, serving: Any) -> None:
    client = openai.OpenAI(api_key="none", base_url=serving(answered()))
    with client.realtime.connect(model="gpt-realtime") as connection:
        list(connection)
    check(openai_spans)


def test_each_response_once_and_in_the_programs_trace(openai_spans: Any, serving: Any) -> None:
    client = openai.OpenAI(api_key="none", base_url=serving([SESSION, *answered("resp_1"), *answered("resp_2")]))
    tracer = openai_spans.provider.get_tracer("program")
    connecting = client.realtime.connect(model="gpt-realtime")
    with tracer.start_as_current_span("talk") as talk, tag(tenant="acme"), connecting as connection:
        for event in connection:
            connection.parse_event(json.dumps(event.to_dict()))  # seen twice
    spans = [span for span in openai_spans.spans() if span.name.startswith("chat")]
    assert [span.attributes[names.RESPONSE_ID] for span in spans] == ["resp_1", "resp_2"]
    assert {span.parent.span_id for span in spans} == {talk.get_span_context().span_id}
    assert {span.attributes[names.TENANT] for span in spans} == {"acme"}


def test_transcriptions_are_another_models(openai_spans: Any, serving: Any) -> None:
    client = openai.OpenAI(api_key="none", base_url=serving([SESSION, TRANSCRIBED, *answered()]))
    with client.realtime.connect(model="gpt-realtime") as connection:
        list(connection)
    rows = {row["operation"]: row for row in ledger(openai_spans.spans())}
    # 20 × $2.50 + 100 × $6 + 10 × $10, by the million.
    assert rows["transcription"]["cost"] == Decimal("0.00075")
    assert rows["transcription"]["request_model"] == "gpt-4o-transcribe"
    assert rows["chat"]["cost"] == COST


def test_transcriptions_by_seconds(openai_spans: Any, serving: Any) -> None:
    session = json.loads(json.dumps(SESSION).replace("gpt-4o-transcribe", "whisper-1"))
    transcribed = {**TRANSCRIBED, "usage": {"type": "duration", "seconds": 90.5}}
    client = openai.OpenAI(api_key="none", base_url=serving([session, transcribed]))
    with client.realtime.connect(model="gpt-realtime") as connection:
        list(connection)
    (row,) = ledger(openai_spans.spans())
    assert (row["meters"], row["cost"]) == ({"audio.seconds": Decimal("90.5")}, Decimal("0.00905"))


def test_a_response_that_is_cancelled_is_billed_by_what_it_used(openai_spans: Any, serving: Any) -> None:
    details = {"type": "cancelled", "reason": "turn_detected"}
    events = [SESSION, *answered(status="cancelled", status_details=details)]
    client = openai.OpenAI(api_key="none", base_url=serving(events))
    with client.realtime.connect(model="gpt-realtime") as connection:
        list(connection)
    assert openai_spans.attributes()[names.RESPONSE_FINISH_REASONS] == ("cancelled",)
    assert ledger(openai_spans.spans())[0]["cost"] == COST


def test_a_response_that_fails(openai_spans: Any, serving: Any) -> None:
    details = {"type": "failed", "error": {"type": "server_error", "code": "overloaded"}}
    events = [SESSION, *answered(status="failed", status_details=details, usage=None)]
    client = openai.OpenAI(api_key="none", base_url=serving(events))
    with client.realtime.connect(model="gpt-realtime") as connection:
        list(connection)
    assert openai_spans.only().status.status_code is StatusCode.ERROR
    assert openai_spans.attributes()[names.ERROR_TYPE] == "overloaded"


def test_bytes_that_the_program_parses_itself(openai_spans: Any, serving: Any) -> None:
    client = openai.OpenAI(api_key="none", base_url=serving([SESSION, *answered()]))
    with client.realtime.connect(model="gpt-realtime") as connection:
        for _ in range(6):
            connection.parse_event(connection.recv_bytes())
    check(openai_spans)


def test_responses_over_a_websocket(openai_spans: Any, serving: Any, wire: Any) -> None:
    client = openai.OpenAI(api_key="none", base_url=serving(wire.response_events()))
    if not hasattr(client.responses, "connect"):
        pytest.skip("this version has no such connections")
    with client.responses.connect() as connection:
        for _ in range(6):
            connection.recv()
    span = openai_spans.only()
    assert span.name == "chat gpt-5-mini-2025-08-07"
    assert span.attributes[names.OPENAI_API_TYPE] == "responses"
    assert span.attributes[names.OPENAI_RESPONSE_SERVICE_TIER] == "priority"
    assert ledger(openai_spans.spans())[0]["meters"]["tokens.output.reasoning"] == 7


@pytest.mark.parametrize("key", [_SUPPRESS_INSTRUMENTATION_KEY, "suppress_instrumentation"])
def test_suppressed_and_uninstrumented_connections_are_left_alone(telemetry: Any, serving: Any, key: str) -> None:
    OpenAIInstrumentor().instrument(tracer_provider=telemetry.provider)
    client = openai.OpenAI(api_key="none", base_url=serving([SESSION, *answered(), *answered("resp_2")]))
    with client.realtime.connect(model="gpt-realtime") as connection:
        with _suppress_instrumentation(key):
            for _ in range(6):
                connection.recv()
        OpenAIInstrumentor().uninstrument()
        assert len(list(connection)) == 5
    assert telemetry.spans() == []


@pytest.mark.parametrize("broken", ["_fields", "put_usage", "_Connection"])
def test_a_fault_of_ours_never_reaches_the_program(
    faulty_telemetry: Any, serving: Any, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    def fault(*_: Any, **__: Any) -> Any:
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr(realtime, broken, fault)
    counted = sum(faults().values())
    OpenAIInstrumentor().instrument(tracer_provider=faulty_telemetry.provider)
    try:
        client = openai.OpenAI(api_key="none", base_url=serving([SESSION, *answered()]))
        with client.realtime.connect(model="gpt-realtime") as connection:
            assert len(list(connection)) == 6
    finally:
        OpenAIInstrumentor().uninstrument()
    assert sum(faults().values()) > counted
