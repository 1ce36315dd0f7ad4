"""Legacy completions of the openai client, and asking for the usage of streams."""

from __future__ import annotations

import gc
import json
from decimal import Decimal
from typing import Any

import pytest
from openai import AsyncStream, Stream
from openai.types import Completion
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF

from tollspan.instrumentation import stream_usage
from tollspan.instrumentation.openai import OpenAIInstrumentor
from tollspan.pricing import attributes as names

from .openai_bill import bill

MODEL = "gpt-3.5-turbo-instruct"
ASK: dict[str, Any] = {"model": MODEL, "prompt": "hello", "max_tokens": 7}
CHAT: dict[str, Any] = {"model": "gpt-5-mini", "messages": [{"role": "user", "content": "hello"}], "stream": True}
WHOLE = {"id": "cmpl-7", "object": "text_completion", "created": 1, "model": MODEL}
USAGE = {"prompt_tokens": 1000, "completion_tokens": 500, "total_tokens": 1500}
COMPLETED = {**WHOLE, "choices": [{"index": 0, "text": "Hello.", "finish_reason": "stop"}], "usage": USAGE}
BILL = ({"tokens.input.uncached": 1000, "tokens.output": 500}, Decimal("0.0025"), "priced")
"""1,000 × $1.50 / 1,000,000 + 500 × $2 / 1,000,000."""


def chunks(usage: bool = True) -> list[dict[str, Any]]:
    made = [{**WHOLE, "choices": [{"index": 0, "text": word, "finish_reason": None}]} for word in ("Hel", "lo.")]
    made.append({**WHOLE, "choices": [{"index": 0, "text": "", "finish_reason": "stop"}]})
    return [*made, {**WHOLE, "choices": [], "usage": USAGE}] if usage else made


def test_completion(openai_spans: Any, wire: Any) -> None:
    assert type(wire.json(COMPLETED).client().completions.create(**ASK)) is Completion
    assert openai_spans.only().name == f"text_completion {MODEL}"
    attributes = openai_spans.attributes()
    assert attributes[names.REQUEST_MAX_TOKENS] == 7
    assert attributes[names.RESPONSE_FINISH_REASONS] == ("stop",)
    assert attributes[names.RESPONSE_ID] == "cmpl-7"
    assert bill(openai_spans.spans()) == BILL


async def test_completion_async_raw(openai_spans: Any, wire: Any) -> None:
    raw = await wire.json(COMPLETED).async_client().completions.with_raw_response.create(**ASK)
    assert raw.parse().usage.total_tokens == 1500
    assert bill(openai_spans.spans()) == BILL


def test_completion_stream(openai_spans: Any, wire: Any) -> None:
    stream = wire.stream(chunks()).client().completions.create(**ASK, stream=True)
    assert isinstance(stream, Stream)
    assert len(list(stream)) == 4
    assert bill(openai_spans.spans()) == BILL


async def test_completion_stream_async(openai_spans: Any, wire: Any) -> None:
    stream = await wire.stream(chunks()).async_client().completions.create(**ASK, stream=True)
    assert isinstance(stream, AsyncStream)
    async with stream:
        assert len([chunk async for chunk in stream]) == 4
    assert bill(openai_spans.spans()) == BILL


def test_a_stream_that_is_left_early_tells_no_usage(openai_spans: Any, wire: Any) -> None:
    stream = wire.stream(chunks()).client().completions.create(**ASK, stream=True)
    for _ in stream:
        break
    del stream
    gc.collect()
    assert openai_spans.attributes()[names.STREAM_ABANDONED] is True
    assert bill(openai_spans.spans()) == ({}, None, "unpriced")


# -- asking for the usage of streams -----------------------------------------------------------------------------------


@pytest.fixture
def asking(telemetry: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The client instrumented with the option on."""
    monkeypatch.setenv(stream_usage.VARIABLE, "true")
    OpenAIInstrumentor().instrument(tracer_provider=telemetry.provider)
    yield telemetry
    OpenAIInstrumentor().uninstrument()


def asked(wire: Any) -> Any:
    """The stream options of the last request."""
    return json.loads(wire.requests[-1].content).get("stream_options")


def test_off_by_default(openai_spans: Any, wire: Any) -> None:
    list(wire.stream(chunks(usage=False)).client().completions.create(**ASK, stream=True))
    assert asked(wire) is None


def test_usage_is_asked_for_and_its_chunk_hidden(asking: Any, wire: Any) -> None:
    stream = wire.stream(chunks()).client().completions.create(**ASK, stream=True)
    assert isinstance(stream, Stream)
    assert [chunk.choices[0].text for chunk in stream] == ["Hel", "lo.", ""]
    assert asked(wire) == {"include_usage": True}
    assert bill(asking.spans()) == BILL


async def test_usage_of_chat_is_asked_for_and_its_chunk_hidden(asking: Any, wire: Any) -> None:
    client = wire.stream(wire.completion_chunks()).async_client()
    async with await client.chat.completions.create(**CHAT) as stream:
        assert len([chunk.choices[0] async for chunk in stream]) == 4
    assert asked(wire) == {"include_usage": True}
    assert asking.attributes()[names.USAGE_INPUT_TOKENS] == 100
    assert asking.attributes()[names.OPENAI_RESPONSE_SERVICE_TIER] == "flex"


def test_the_rest_of_the_options_stay_and_are_not_changed(asking: Any, wire: Any) -> None:
    options = {"include_obfuscation": False}
    list(wire.stream(wire.completion_chunks()).client().chat.completions.create(**CHAT, stream_options=options))
    assert asked(wire) == {"include_obfuscation": False, "include_usage": True}
    assert options == {"include_obfuscation": False}


@pytest.mark.parametrize("include", [True, False])
def test_an_explicit_choice_is_respected(asking: Any, wire: Any, include: bool) -> None:
    options = {"include_usage": include}
    stream = (
        wire.stream(wire.completion_chunks(usage=include))
        .client()
        .chat.completions.create(**CHAT, stream_options=options)
    )
    assert len(list(stream)) == 4 + include
    assert asked(wire) == options
    assert (names.USAGE_INPUT_TOKENS in asking.attributes()) is include


@pytest.mark.parametrize(
    "more", [{"stream_options": None}, {"extra_body": {"stream_options": {"include_usage": False}}}]
)
def test_another_word_in_it_is_respected_too(asking: Any, wire: Any, more: Any) -> None:
    list(wire.stream(wire.completion_chunks(usage=False)).client().chat.completions.create(**CHAT, **more))
    assert not (asked(wire) or {}).get("include_usage")


def test_raw_responses_are_left_alone(asking: Any, wire: Any) -> None:
    client = wire.stream(wire.completion_chunks(usage=False)).client()
    list(client.chat.completions.with_raw_response.create(**CHAT).parse())
    assert asked(wire) is None
    with client.chat.completions.with_streaming_response.create(**CHAT) as response:
        list(response.iter_lines())
    assert asked(wire) is None


def test_the_helper_that_gathers_a_stream_sees_none_of_it(asking: Any, wire: Any) -> None:
    ask = {key: value for key, value in CHAT.items() if key != "stream"}
    with wire.stream(wire.completion_chunks()).client().chat.completions.stream(**ask) as stream:
        assert "chunk" in [event.type for event in stream]
        assert stream.get_final_completion().choices[0].finish_reason == "stop"
    assert asking.attributes()[names.USAGE_OUTPUT_TOKENS] == 20


def test_calls_that_are_not_streamed_are_left_alone(asking: Any, wire: Any) -> None:
    wire.json(COMPLETED).client().completions.create(**ASK)
    assert asked(wire) is None


def test_a_span_that_nobody_sees_asks_for_nothing(wire: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(stream_usage.VARIABLE, "true")
    monkeypatch.setenv("TOLLSPAN_PEERS", "beside")  # below a peer's nobody knows yet whether it will be seen
    OpenAIInstrumentor().instrument(tracer_provider=TracerProvider(sampler=ALWAYS_OFF))
    try:
        stream = wire.stream(wire.completion_chunks(usage=False)).client().chat.completions.create(**CHAT)
        assert len(list(stream)) == 4
    finally:
        OpenAIInstrumentor().uninstrument()
    assert asked(wire) is None


def test_usage_beside_content_is_not_hidden(asking: Any, wire: Any) -> None:
    events = wire.completion_chunks(usage=False)
    events[-1]["usage"] = wire.completion()["usage"]
    assert len(list(wire.stream(events).client().chat.completions.create(**CHAT))) == 4
    assert asking.attributes()[names.USAGE_INPUT_TOKENS] == 100
