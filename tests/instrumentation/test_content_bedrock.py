"""What is said in Bedrock's calls, in the conventions' form, whichever family's body says it; and fingerprints."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tollspan.instrumentation import faults
from tollspan.instrumentation.bedrock import BedrockInstrumentor
from tollspan.instrumentation.bedrock import content as readers
from tollspan.pricing import attributes as names

from . import anthropic_stub
from .bedrock_stub import CLAUDE, MODEL, Stub, chunks, converse, converse_events, metrics, serve
from .content_form import check, switching

VARIABLE = "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"
HELLO = [{"role": "user", "parts": [{"type": "text", "content": "hello"}]}]
ASK: dict[str, Any] = {"modelId": MODEL, "messages": [{"role": "user", "content": [{"text": "hello"}]}]}


def answer(text: str = "Hello.", reason: str | None = "stop") -> list[dict[str, Any]]:
    said: dict[str, Any] = {"role": "assistant", "parts": [{"type": "text", "content": text}]}
    return [said if reason is None else {**said, "finish_reason": reason}]


@pytest.fixture
def stub() -> Iterator[Stub]:
    with serve() as stub:
        yield stub


@pytest.fixture
def switched(monkeypatch: pytest.MonkeyPatch, telemetry: Any) -> Iterator[Callable[..., Any]]:
    yield from switching(BedrockInstrumentor(), monkeypatch, telemetry)


def said(telemetry: Any) -> dict[str, Any]:
    return check(telemetry.attributes())


# -- Converse ----------------------------------------------------------------------------------------------------------

PICTURE = base64.b64encode(b"\x00\x01").decode()
TALK: dict[str, Any] = {
    "modelId": MODEL,
    "system": [{"text": "Be brief."}, {"cachePoint": {"type": "default"}}],
    "messages": [
        {
            "role": "user",
            "content": [
                {"text": "What is it?"},
                {"image": {"format": "png", "source": {"bytes": b"\x00\x01"}}},
                {"video": {"format": "mp4", "source": {"s3Location": {"uri": "s3://bucket/a.mp4"}}}},
                {"document": {"format": "pdf", "name": "d", "source": {"bytes": b"\x00\x01"}}},
                {"document": {"format": "txt", "name": "d", "source": {"text": "once"}}},
                {"guardContent": {"text": {"text": "upon"}}},
                {"cachePoint": {"type": "default"}},
            ],
        },
        {
            "role": "assistant",
            "content": [
                {"reasoningContent": {"reasoningText": {"text": "Hm.", "signature": "c2lnbmVk"}}},
                {"toolUse": {"toolUseId": "t1", "name": "weather", "input": {"city": "Bern"}}},
            ],
        },
        {
            "role": "user",
            "content": [{"toolResult": {"toolUseId": "t1", "content": [{"text": "Rain."}, {"json": {"mm": 7}}]}}],
        },
    ],
    "toolConfig": {
        "tools": [
            {
                "toolSpec": {
                    "name": "weather",
                    "description": "Tells it.",
                    "inputSchema": {"json": {"type": "object", "properties": {}}},
                }
            }
        ]
    },
}
TALKED = [
    {
        "role": "user",
        "parts": [
            {"type": "text", "content": "What is it?"},
            {"type": "blob", "modality": "image", "mime_type": "image/png", "content": PICTURE},
            {"type": "uri", "modality": "video", "uri": "s3://bucket/a.mp4", "mime_type": "video/mp4"},
            {"type": "blob", "modality": "document", "mime_type": "application/pdf", "content": PICTURE},
            {"type": "text", "content": "once"},
            {"type": "text", "content": "upon"},
        ],
    },
    {
        "role": "assistant",
        "parts": [
            {"type": "reasoning", "content": "Hm."},
            {"type": "tool_call", "id": "t1", "name": "weather", "arguments": {"city": "Bern"}},
        ],
    },
    {
        "role": "tool",
        "parts": [
            {
                "type": "tool_call_response",
                "id": "t1",
                "response": [{"type": "text", "content": "Rain."}, {"type": "json", "content": {"mm": 7}}],
            }
        ],
    },
]
TOOLS = [
    {
        "type": "function",
        "name": "weather",
        "description": "Tells it.",
        "parameters": {"type": "object", "properties": {}},
    }
]
CALLED = {"type": "tool_call", "id": "t2", "name": "weather", "arguments": {"city": "Rome"}}


def test_every_kind_of_block(heard: Any, stub: Stub) -> None:
    content = [
        {"citationsContent": {"content": [{"text": "Wait."}], "citations": []}},
        {"toolUse": {"toolUseId": "t2", "name": "weather", "input": {"city": "Rome"}}},
    ]
    stub.json(converse(output={"message": {"role": "assistant", "content": content}}, stopReason="tool_use"))
    stub.client().converse(**TALK)
    parts = [{"type": "text", "content": "Wait."}, CALLED]
    assert said(heard) == {
        names.SYSTEM_INSTRUCTIONS: [{"type": "text", "content": "Be brief."}],
        names.INPUT_MESSAGES: TALKED,
        names.OUTPUT_MESSAGES: [{"role": "assistant", "parts": parts, "finish_reason": "tool_call"}],
        names.TOOL_DEFINITIONS: TOOLS,
    }


async def test_an_asynchronous_call(heard: Any, stub: Stub) -> None:
    async with stub.json(converse(stopReason="guardrail_intervened")).async_client() as client:
        await client.converse(**ASK)
    assert said(heard) == {names.INPUT_MESSAGES: HELLO, names.OUTPUT_MESSAGES: answer(reason="content_filter")}


def delta(index: int, **said: Any) -> tuple[str, dict[str, Any]]:
    return ("contentBlockDelta", {"contentBlockIndex": index, "delta": said})


MIXED = [
    ("messageStart", {"role": "assistant"}),
    delta(0, reasoningContent={"text": "H"}),
    delta(0, reasoningContent={"text": "m."}),
    delta(0, reasoningContent={"signature": "c2lnbmVk"}),
    ("contentBlockStop", {"contentBlockIndex": 0}),
    delta(1, text="Wa"),
    delta(1, text="it."),
    ("contentBlockStart", {"contentBlockIndex": 2, "start": {"toolUse": {"toolUseId": "t2", "name": "weather"}}}),
    delta(2, toolUse={"input": '{"city": '}),
    delta(2, toolUse={"input": '"Rome"}'}),
    ("contentBlockStop", {"contentBlockIndex": 2}),
    ("messageStop", {"stopReason": "tool_use"}),
    converse_events()[-1],
]
MIXED_SAID = [
    {
        "role": "assistant",
        "parts": [{"type": "reasoning", "content": "Hm."}, {"type": "text", "content": "Wait."}, CALLED],
        "finish_reason": "tool_call",
    }
]


def test_a_stream_is_put_together(heard: Any, stub: Stub) -> None:
    messages = [*ASK["messages"]]
    stream = stub.events(MIXED).client().converse_stream(modelId=MODEL, messages=messages)["stream"]
    messages.append({"role": "user", "content": [{"text": "said later"}]})
    list(stream)
    assert said(heard) == {names.INPUT_MESSAGES: HELLO, names.OUTPUT_MESSAGES: MIXED_SAID}


async def test_an_asynchronous_stream(heard: Any, stub: Stub) -> None:
    async with stub.events(MIXED).async_client() as client:
        async for _ in (await client.converse_stream(**ASK))["stream"]:
            pass
    assert said(heard) == {names.INPUT_MESSAGES: HELLO, names.OUTPUT_MESSAGES: MIXED_SAID}


def test_a_stream_left_early_has_what_was_heard(heard: Any, stub: Stub) -> None:
    stream = stub.events(converse_events()).client().converse_stream(**ASK)["stream"]
    for event in stream:
        if "contentBlockDelta" in event:
            break
    stream.close()
    assert said(heard)[names.OUTPUT_MESSAGES] == answer("w0 ", None)


# -- InvokeModel -------------------------------------------------------------------------------------------------------

PROMPT = {"prompt": "hello"}
CHAT = {"messages": [{"role": "user", "content": "hello"}]}
CLAUDES = {"anthropic_version": "bedrock-2023-05-31", "max_tokens": 9, **CHAT}
COHERE = {
    "message": "hello",
    "chat_history": [{"role": "USER", "message": "hi"}, {"role": "CHATBOT", "message": "Yes?"}],
    "preamble": "Be brief.",
}
HISTORY = [
    {"role": "user", "parts": [{"type": "text", "content": "hi"}]},
    {"role": "assistant", "parts": [{"type": "text", "content": "Yes?"}]},
]

FAMILIES: dict[str, tuple[str, dict[str, Any], dict[str, Any], list[dict[str, Any]]]] = {
    "claude": (CLAUDE, CLAUDES, anthropic_stub.message(), anthropic_stub.events()),
    "claude 2": (
        "anthropic.claude-v2:1",
        {"max_tokens_to_sample": 9, **PROMPT},
        {"completion": "Hello.", "stop_reason": "stop_sequence"},
        [{"completion": "Hel", "stop_reason": None}, {"completion": "lo.", "stop_reason": "stop_sequence"}],
    ),
    "nova": (
        MODEL,
        {"schemaVersion": "messages-v1", "messages": ASK["messages"]},
        converse(),
        [
            {"messageStart": {"role": "assistant"}},
            {"contentBlockDelta": {"delta": {"text": "Hel"}, "contentBlockIndex": 0}},
            {"contentBlockDelta": {"delta": {"text": "lo."}, "contentBlockIndex": 0}},
            {"messageStop": {"stopReason": "end_turn"}},
        ],
    ),
    "llama": (
        "meta.llama3-3-70b-instruct-v1:0",
        PROMPT,
        {"generation": "Hello.", "stop_reason": "stop"},
        [{"generation": "Hel", "stop_reason": None}, {"generation": "lo.", "stop_reason": "stop"}],
    ),
    "mistral": (
        "mistral.mistral-7b-instruct-v0:2",
        PROMPT,
        {"outputs": [{"text": "Hello.", "stop_reason": "stop"}]},
        [{"outputs": [{"text": "Hel", "stop_reason": None}]}, {"outputs": [{"text": "lo.", "stop_reason": "stop"}]}],
    ),
    "mistral chat": (
        "mistral.pixtral-large-2502-v1:0",
        CHAT,
        {"choices": [{"index": 0, "message": {"role": "assistant", "content": "Hello."}, "stop_reason": "stop"}]},
        [
            {"choices": [{"index": 0, "message": {"role": "assistant", "content": "Hel"}, "stop_reason": None}]},
            {"choices": [{"index": 0, "message": {"role": "assistant", "content": "lo."}, "stop_reason": "stop"}]},
        ],
    ),
    "gpt-oss": (
        "openai.gpt-oss-120b-1:0",
        CHAT,
        {"choices": [{"index": 0, "message": {"role": "assistant", "content": "Hello."}, "finish_reason": "stop"}]},
        [
            {"choices": [{"index": 0, "delta": {"role": "assistant", "content": "Hel"}, "finish_reason": None}]},
            {"choices": [{"index": 0, "delta": {"content": "lo."}, "finish_reason": "stop"}]},
        ],
    ),
    "deepseek": (
        "us.deepseek.r1-v1:0",
        PROMPT,
        {"choices": [{"text": "Hello.", "stop_reason": "stop"}]},
        [{"choices": [{"text": "Hel", "stop_reason": None}]}, {"choices": [{"text": "lo.", "stop_reason": "stop"}]}],
    ),
    "titan": (
        "amazon.titan-text-premier-v1:0",
        {"inputText": "hello"},
        {
            "inputTextTokenCount": 1,
            "results": [{"tokenCount": 2, "outputText": "Hello.", "completionReason": "FINISH"}],
        },
        [
            {"index": 0, "outputText": "Hel", "completionReason": None},
            {"index": 0, "outputText": "lo.", "completionReason": "FINISH"},
        ],
    ),
    "command": (
        "cohere.command-text-v14",
        PROMPT,
        {"generations": [{"id": "g", "text": "Hello.", "finish_reason": "COMPLETE"}], "prompt": "hello"},
        [
            {"is_finished": False, "text": "Hel"},
            {"is_finished": False, "text": "lo."},
            {"is_finished": True, "finish_reason": "COMPLETE"},
        ],
    ),
    "command r": (
        "cohere.command-r-plus-v1:0",
        COHERE,
        {"text": "Hello.", "finish_reason": "COMPLETE", "chat_history": []},
        [
            {"event_type": "text-generation", "text": "Hel"},
            {"event_type": "text-generation", "text": "lo."},
            {"event_type": "stream-end", "finish_reason": "COMPLETE", "response": {"text": "Hello."}},
        ],
    ),
}
"""Family → a model, a body that asks, a body that answers, and the same in the chunks of a stream."""


def expected(family: str) -> dict[str, Any]:
    asked = {names.INPUT_MESSAGES: HELLO, names.OUTPUT_MESSAGES: answer()}
    if family == "command r":
        asked[names.INPUT_MESSAGES] = [*HISTORY, *HELLO]
        asked[names.SYSTEM_INSTRUCTIONS] = [{"type": "text", "content": "Be brief."}]
    return asked


@pytest.mark.parametrize("family", FAMILIES)
def test_the_body_of_every_family(heard: Any, stub: Stub, family: str) -> None:
    model, asks, answers, _ = FAMILIES[family]
    result = stub.invoked(answers).client().invoke_model(modelId=model, body=json.dumps(asks))
    assert json.loads(result["body"].read()) == answers
    assert said(heard) == expected(family)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_stream_of_every_family(heard: Any, stub: Stub, family: str) -> None:
    model, asks, _, pieces = FAMILIES[family]
    told = chunks(*pieces[:-1], {**pieces[-1], **metrics(inputTokenCount=1, outputTokenCount=2)})
    body = json.dumps(asks).encode()
    list(stub.events(told).client().invoke_model_with_response_stream(modelId=model, body=body)["body"])
    assert said(heard) == expected(family)


async def test_an_asynchronous_body(heard: Any, stub: Stub) -> None:
    async with stub.invoked(anthropic_stub.message()).async_client() as client:
        result = await client.invoke_model(modelId=CLAUDE, body=json.dumps(CLAUDES))
        await result["body"].read()
    assert said(heard) == {names.INPUT_MESSAGES: HELLO, names.OUTPUT_MESSAGES: answer()}


@pytest.mark.parametrize(
    ("model", "body"),
    [
        ("amazon.titan-embed-text-v2:0", b'{"inputText": "hello"}'),
        ("stability.sd3-5-large-v1:0", b'{"prompt": "hello"}'),
        ("somebody.unknown-v1:0", b'{"question": "hello"}'),
        ("somebody.unknown-v1:0", b"no JSON"),
        ("somebody.unknown-v1:0", b"[1]"),
    ],
)
def test_of_what_is_not_known_nothing_is_told(heard: Any, stub: Stub, model: str, body: bytes) -> None:
    stub.invoked({"answer": "Hello.", "text": "Hello."}).client().invoke_model(modelId=model, body=body)["body"].read()
    assert said(heard) == {}


def test_a_body_in_a_file_is_left_to_the_client(switched: Any, stub: Stub) -> None:
    spans = switched(**{VARIABLE: "span_only", "TOLLSPAN_FINGERPRINT_KEY": "k"})
    body = io.BytesIO(json.dumps(CLAUDES).encode())
    stub.invoked(anthropic_stub.message()).client().invoke_model(modelId=CLAUDE, body=body)["body"].read()
    assert json.loads(stub.requests[0][1]) == CLAUDES
    assert said(spans) == {}
    assert names.REQUEST_FINGERPRINT not in spans.attributes()


@pytest.mark.parametrize("end", ["cut", "no JSON"])
def test_a_body_that_ends_early_has_its_question(heard: Any, stub: Stub, end: str) -> None:
    body = stub.raw(b"{" * 99).client().invoke_model(modelId=CLAUDE, body=json.dumps(CLAUDES))["body"]
    body.read(9) if end == "cut" else body.read()
    body.close()
    assert said(heard) == {names.INPUT_MESSAGES: HELLO}


@pytest.mark.parametrize("name", ["__init__", "read", "chunk", "output"])
def test_a_fault_of_a_reader_takes_nothing_from_the_span(
    monkeypatch: pytest.MonkeyPatch, faulty_telemetry: Any, stub: Stub, name: str
) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("ours")

    monkeypatch.setenv(VARIABLE, "span_only")
    monkeypatch.setattr(readers.Converse, name, broken)
    counted = sum(faults().values())
    BedrockInstrumentor().instrument(tracer_provider=faulty_telemetry.provider)
    _, asks, answers, _ = FAMILIES["nova"]
    try:
        client = stub.json(converse()).events(MIXED).invoked(answers).client()
        client.converse(**ASK)
        assert len(list(client.converse_stream(**ASK)["stream"])) == len(MIXED)
        assert json.loads(client.invoke_model(modelId=MODEL, body=json.dumps(asks))["body"].read()) == answers
    finally:
        BedrockInstrumentor().uninstrument()
    assert sum(faults().values()) > counted
    assert [span.attributes[names.USAGE_OUTPUT_TOKENS] for span in faulty_telemetry.spans()] == [20, 20, 20]


# -- fingerprints ------------------------------------------------------------------------------------------------------


def fingerprints(telemetry: Any) -> list[Any]:
    return [span.attributes.get(names.REQUEST_FINGERPRINT) for span in telemetry.spans()]


async def test_equal_requests_are_found_across_the_ways_of_asking(keyed: Any, stub: Stub) -> None:
    stub.json(converse()).client().converse(**ASK)
    stub.client().converse(**ASK, requestMetadata={"request": "7"})
    stub.client()._make_api_call("Converse", ASK)
    stub.client()._make_api_call(operation_name="Converse", api_params=ASK)
    async with stub.async_client() as client:
        await client.converse(**ASK)
    stub.replies.clear()
    list(stub.events(MIXED).client().converse_stream(**ASK)["stream"])
    found = fingerprints(keyed)
    assert len(found) == 6
    assert len(set(found)) == 1
    assert found[0]


def test_equal_bodies_are_found_however_they_are_written(keyed: Any, stub: Stub) -> None:
    client = stub.invoked(anthropic_stub.message()).client()
    backwards = dict(reversed(CLAUDES.items()))
    for body in (json.dumps(CLAUDES), json.dumps({**backwards, "metadata": {"user_id": "u"}}, indent=4).encode()):
        client.invoke_model(modelId=CLAUDE, body=body)["body"].read()
    stub.replies.clear()
    stub.events(chunks(*anthropic_stub.events()))
    list(client.invoke_model_with_response_stream(modelId=CLAUDE, body=json.dumps(CLAUDES))["body"])
    found = fingerprints(keyed)
    assert len(set(found)) == 1
    assert found[0]


def test_other_requests_have_others(keyed: Any, stub: Stub) -> None:
    client = stub.json(converse()).client()
    client.converse(**ASK)
    client.converse(**{**ASK, "modelId": CLAUDE})
    client.converse(**{**ASK, "messages": [{"role": "user", "content": [{"text": "hallo"}]}]})
    client.converse(**{**ASK, "messages": [{"role": "user", "content": [TALK["messages"][0]["content"][1]]}]})
    client.invoke_model(modelId=MODEL, body=b"no JSON")["body"].read()
    client.invoke_model(modelId=MODEL, body=b"nor this")["body"].read()
    found = fingerprints(keyed)
    assert len(set(found)) == 6
    assert None not in found
