"""Content: captured only by the standard switch, in the conventions' form, on the span, in the event, or both."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from typing import Any

import openai
import pytest
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter, SimpleLogRecordProcessor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF

from tollspan.instrumentation import faults
from tollspan.instrumentation.content import EVENT
from tollspan.instrumentation.openai import OpenAIInstrumentor, content
from tollspan.pricing import attributes as names

VARIABLE = "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"
KEYS = (names.INPUT_MESSAGES, names.OUTPUT_MESSAGES, names.SYSTEM_INSTRUCTIONS, names.TOOL_DEFINITIONS)
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}
ASK: Any = {"model": "gpt-5-mini", "messages": [{"role": "user", "content": "hello"}]}
TALK: Any = {
    "model": "gpt-5-mini",
    "messages": [
        {"role": "system", "content": "Be brief."},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "What is it?"},
                {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}},
                {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
                {"type": "input_audio", "input_audio": {"data": "BBBB", "format": "wav"}},
                {"type": "file", "file": {"file_id": "file-7"}},
            ],
        },
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Bern"}'}}
            ],
        },
        {"role": "tool", "tool_call_id": "call_1", "content": "Rain."},
    ],
    "tools": [TOOL],
}
TALKED = [
    {"role": "system", "parts": [{"type": "text", "content": "Be brief."}]},
    {
        "role": "user",
        "parts": [
            {"type": "text", "content": "What is it?"},
            {"type": "uri", "modality": "image", "uri": "https://example.org/a.png"},
            {"type": "blob", "modality": "image", "mime_type": "image/png", "content": "AAAA"},
            {"type": "blob", "modality": "audio", "mime_type": "audio/wav", "content": "BBBB"},
            {"type": "file", "modality": "document", "file_id": "file-7"},
        ],
    },
    {
        "role": "assistant",
        "parts": [{"type": "tool_call", "id": "call_1", "name": "weather", "arguments": {"city": "Bern"}}],
    },
    {"role": "tool", "parts": [{"type": "tool_call_response", "id": "call_1", "response": "Rain."}]},
]
HELLO = [{"role": "user", "parts": [{"type": "text", "content": "hello"}]}]


def answer(text: str = "Hello.", reason: str | None = "stop") -> list[dict[str, Any]]:
    message: dict[str, Any] = {"role": "assistant", "parts": [{"type": "text", "content": text}]}
    return [message if reason is None else {**message, "finish_reason": reason}]


class Logs:
    def __init__(self) -> None:
        self.exporter = InMemoryLogRecordExporter()
        self.provider = LoggerProvider()
        self.provider.add_log_record_processor(SimpleLogRecordProcessor(self.exporter))

    def events(self) -> list[Any]:
        return [each.log_record for each in self.exporter.get_finished_logs()]


@pytest.fixture
def logs() -> Logs:
    return Logs()


@pytest.fixture
def capture(monkeypatch: pytest.MonkeyPatch, telemetry: Any, logs: Logs) -> Iterator[Callable[[str], Any]]:
    def switch(mode: str, provider: Any = None) -> Any:
        monkeypatch.setenv(VARIABLE, mode)
        monkeypatch.setenv("TOLLSPAN_PEERS", "beside")  # another test may have imported one
        OpenAIInstrumentor().instrument(tracer_provider=provider or telemetry.provider, logger_provider=logs.provider)
        return telemetry

    yield switch
    OpenAIInstrumentor().uninstrument()


def said(telemetry: Any) -> dict[str, Any]:
    """Content of the one span, as structures."""
    return {key: json.loads(value) for key, value in telemetry.attributes().items() if key in KEYS}


# -- where it goes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "on_span", "in_event"),
    [
        ("", False, False),
        ("NO_CONTENT", False, False),
        ("true", False, False),
        ("SPAN_ONLY", True, False),
        ("event_only", False, True),
        ("span_and_event", True, True),
    ],
)
def test_content_goes_where_the_switch_says(
    capture: Any, logs: Logs, wire: Any, mode: str, on_span: bool, in_event: bool
) -> None:
    telemetry = capture(mode)
    wire.json(wire.completion()).client().chat.completions.create(**ASK)
    expected = {names.INPUT_MESSAGES: HELLO, names.OUTPUT_MESSAGES: answer()}
    assert said(telemetry) == (expected if on_span else {})
    assert len(logs.events()) == int(in_event)
    if in_event:
        (event,) = logs.events()
        assert event.event_name == EVENT
        assert event.span_id == telemetry.only().context.span_id
        assert event.attributes[names.USAGE_INPUT_TOKENS] == 100
        assert event.attributes[names.REQUEST_MODEL] == "gpt-5-mini"
        for name, value in expected.items():
            assert json.loads(json.dumps(event.attributes[name], default=list)) == value


def test_a_call_that_nobody_samples_is_not_listened_to(
    monkeypatch: pytest.MonkeyPatch, capture: Any, logs: Logs, wire: Any
) -> None:
    monkeypatch.setattr(content.Chat, "__init__", lambda *_: pytest.fail("listened to"))
    counted = faults()
    capture("span_and_event", TracerProvider(sampler=ALWAYS_OFF))
    wire.json(wire.completion()).client().chat.completions.create(**ASK)
    assert logs.events() == []
    assert faults() == counted


def test_what_nobody_samples_is_put_nowhere_though_its_metrics_are_wanted(
    monkeypatch: pytest.MonkeyPatch, logs: Logs, wire: Any
) -> None:
    monkeypatch.setenv(VARIABLE, "span_and_event")
    reader = InMemoryMetricReader()
    OpenAIInstrumentor().instrument(
        tracer_provider=TracerProvider(sampler=ALWAYS_OFF),
        logger_provider=logs.provider,
        meter_provider=MeterProvider([reader]),
    )
    try:
        wire.json(wire.completion()).client().chat.completions.create(**ASK)
    finally:
        OpenAIInstrumentor().uninstrument()
    assert reader.get_metrics_data() is not None
    assert logs.events() == []


def test_nothing_of_it_is_imported_while_it_is_off() -> None:
    program = """
    import sys
    from tollspan.instrumentation.openai import OpenAIInstrumentor
    OpenAIInstrumentor().instrument()
    import openai.resources.chat.completions
    loaded = [name for name in sys.modules if name.startswith("tollspan") and name.endswith((".content", ".cost"))]
    assert not loaded, loaded
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=True, timeout=60)


# -- what is said ------------------------------------------------------------------------------------------------------


def test_every_kind_of_message_and_part(capture: Any, wire: Any) -> None:
    telemetry = capture("span_only")
    calls = [{"id": "call_2", "type": "function", "function": {"name": "weather", "arguments": "not json"}}]
    message = {"role": "assistant", "content": "Wait.", "tool_calls": calls}
    choice = {"index": 0, "message": message, "finish_reason": "tool_calls"}
    wire.json(wire.completion(choices=[choice])).client().chat.completions.create(**TALK)
    assert said(telemetry) == {
        names.INPUT_MESSAGES: TALKED,
        names.OUTPUT_MESSAGES: [
            {
                "role": "assistant",
                "parts": [
                    {"type": "text", "content": "Wait."},
                    {"type": "tool_call", "id": "call_2", "name": "weather", "arguments": "not json"},
                ],
                "finish_reason": "tool_call",
            }
        ],
        names.TOOL_DEFINITIONS: [{"type": "function", **TOOL["function"]}],
    }


async def test_an_asynchronous_and_a_raw_call(capture: Any, wire: Any) -> None:
    telemetry = capture("span_only")
    async with wire.json(wire.completion()).async_client() as client:
        await client.chat.completions.create(**ASK)
    wire.client().chat.completions.with_raw_response.create(**ASK)
    for span in telemetry.spans():
        assert json.loads(span.attributes[names.OUTPUT_MESSAGES]) == answer()


def test_a_stream_is_put_together(capture: Any, wire: Any) -> None:
    telemetry = capture("span_only")
    messages = [{"role": "user", "content": "hello"}]
    stream = (
        wire.stream(wire.completion_chunks())
        .client()
        .chat.completions.create(model="gpt-5-mini", messages=messages, stream=True)
    )
    messages.append({"role": "user", "content": "said later"})
    list(stream)
    assert said(telemetry) == {names.INPUT_MESSAGES: HELLO, names.OUTPUT_MESSAGES: answer("w0 w1 w2 ")}


def test_tool_calls_of_a_stream_are_put_together(capture: Any, wire: Any) -> None:
    telemetry = capture("span_only")
    whole = {"id": "chatcmpl-7", "object": "chat.completion.chunk", "created": 1, "model": "gpt-5-mini"}
    pieces: list[dict[str, Any]] = [
        {"role": "assistant", "tool_calls": [{"index": 0, "id": "call_1", "function": {"name": "f", "arguments": ""}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": '{"a": '}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": "1}"}}]},
    ]
    chunks = [{**whole, "choices": [{"index": 0, "delta": piece, "finish_reason": None}]} for piece in pieces]
    chunks.append({**whole, "choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}]})
    list(wire.stream(chunks).client().chat.completions.create(**ASK, stream=True))
    assert said(telemetry)[names.OUTPUT_MESSAGES] == [
        {
            "role": "assistant",
            "parts": [{"type": "tool_call", "id": "call_1", "name": "f", "arguments": {"a": 1}}],
            "finish_reason": "tool_call",
        }
    ]


def test_a_stream_left_early_has_what_was_heard(capture: Any, wire: Any) -> None:
    telemetry = capture("span_only")
    with wire.stream(wire.completion_chunks()).client().chat.completions.create(**ASK, stream=True) as stream:
        next(iter(stream))
    assert said(telemetry)[names.OUTPUT_MESSAGES] == answer("w0 ", None)


def test_a_response_and_its_instructions(capture: Any, wire: Any) -> None:
    telemetry = capture("span_only")
    call = {"type": "function_call", "call_id": "call_1", "name": "f", "arguments": "{}", "id": "fc_1"}
    items = [
        {"role": "user", "content": [{"type": "input_text", "text": "hello"}]},
        call,
        {"type": "function_call_output", "call_id": "call_1", "output": "7"},
        {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "Hm."}]},
    ]
    wire.json(wire.response()).client().responses.create(model="gpt-5-mini", input=items, instructions="Be brief.")
    assert said(telemetry) == {
        names.SYSTEM_INSTRUCTIONS: [{"type": "text", "content": "Be brief."}],
        names.INPUT_MESSAGES: [
            *HELLO,
            {"role": "assistant", "parts": [{"type": "tool_call", "id": "call_1", "name": "f", "arguments": {}}]},
            {"role": "tool", "parts": [{"type": "tool_call_response", "id": "call_1", "response": "7"}]},
            {"role": "assistant", "parts": [{"type": "reasoning", "content": "Hm."}]},
        ],
        names.OUTPUT_MESSAGES: answer(reason="completed"),
    }


def test_a_streamed_response_whole_and_left_early(capture: Any, wire: Any) -> None:
    telemetry = capture("span_only")
    client = wire.stream(wire.response_events()).client()
    list(client.responses.create(model="gpt-5-mini", input="hello", stream=True))
    assert said(telemetry) == {names.INPUT_MESSAGES: HELLO, names.OUTPUT_MESSAGES: answer(reason="completed")}
    telemetry.exporter.clear()
    with client.responses.create(model="gpt-5-mini", input="hello", stream=True) as stream:
        for event in stream:
            if event.type == "response.output_text.delta":
                break
    assert said(telemetry)[names.OUTPUT_MESSAGES] == answer("Hel", None)


def test_a_call_that_fails_has_its_input(capture: Any, wire: Any) -> None:
    telemetry = capture("span_only")
    with pytest.raises(openai.BadRequestError):
        wire.error(400).client().chat.completions.create(**ASK)
    assert said(telemetry) == {names.INPUT_MESSAGES: HELLO}


def test_an_iterator_is_left_to_the_client(capture: Any, wire: Any) -> None:
    telemetry = capture("span_only")
    messages = ({"role": "user", "content": text} for text in ("a", "b"))
    wire.json(wire.completion()).client().chat.completions.create(model="gpt-5-mini", messages=messages)
    assert len(json.loads(wire.requests[0].content)["messages"]) == 2
    assert names.INPUT_MESSAGES not in said(telemetry)


@pytest.mark.parametrize(
    ("name", "site"),
    [
        ("__init__", "content.request"),
        ("read", "content.response"),
        ("chunk", "content.chunk"),
        ("output", "content.finish"),
    ],
)
def test_a_fault_of_a_reader_never_reaches_the_program_and_takes_no_usage(
    monkeypatch: pytest.MonkeyPatch, faulty_telemetry: Any, wire: Any, name: str, site: str
) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("ours")

    monkeypatch.setenv(VARIABLE, "span_and_event")
    monkeypatch.setattr(content.Chat, name, broken)
    counted = faults().get(site, 0)
    OpenAIInstrumentor().instrument(tracer_provider=faulty_telemetry.provider)
    try:
        client = wire.json(wire.completion()).stream(wire.completion_chunks()).client()
        assert client.chat.completions.create(**ASK).usage.prompt_tokens == 100
        assert len(list(client.chat.completions.create(**ASK, stream=True))) == 5
    finally:
        OpenAIInstrumentor().uninstrument()
    assert faults()[site] > counted
    assert [span.attributes[names.USAGE_INPUT_TOKENS] for span in faulty_telemetry.spans()] == [100, 100]
