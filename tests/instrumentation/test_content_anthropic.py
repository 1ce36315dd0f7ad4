"""What is said in Anthropic's messages, in the conventions' form; and fingerprints of its requests."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from typing import Any

import anthropic
import pytest

from tollspan.instrumentation import faults
from tollspan.instrumentation.anthropic import AnthropicInstrumentor, content
from tollspan.pricing import attributes as names

from .anthropic_stub import MODEL, Stub, batch_results, events, message, serve
from .content_form import check, switching

VARIABLE = "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"
ASK: dict[str, Any] = {"model": MODEL, "max_tokens": 64, "messages": [{"role": "user", "content": "hello"}]}
HELLO = [{"role": "user", "parts": [{"type": "text", "content": "hello"}]}]


def answer(text: str = "Hello.", reason: str | None = "stop") -> list[dict[str, Any]]:
    said: dict[str, Any] = {"role": "assistant", "parts": [{"type": "text", "content": text}]}
    return [said if reason is None else {**said, "finish_reason": reason}]


@pytest.fixture
def stub() -> Iterator[Stub]:
    with serve() as stub:
        yield stub


@pytest.fixture
def switched(monkeypatch: pytest.MonkeyPatch, telemetry: Any) -> Iterator[Callable[..., Any]]:
    yield from switching(AnthropicInstrumentor(), monkeypatch, telemetry)


def said(telemetry: Any) -> dict[str, Any]:
    return check(telemetry.attributes())


# -- requests and answers ----------------------------------------------------------------------------------------------

BLOCKS: list[Any] = [
    {"type": "text", "text": "What is it?", "cache_control": {"type": "ephemeral"}},
    {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}},
    {"type": "image", "source": {"type": "url", "url": "https://example.org/a.png"}},
    {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": "BBBB"}},
    {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "once"}},
    {"type": "document", "source": {"type": "content", "content": [{"type": "text", "text": "upon"}]}},
    {"type": "document", "source": {"type": "file", "file_id": "file_7"}},
    {"type": "search_result", "source": "s", "title": "t", "content": [{"type": "text", "text": "found"}]},
    {"type": "container_upload", "file_id": "file_8"},
]
TALK: dict[str, Any] = {
    **ASK,
    "system": [{"type": "text", "text": "Be brief."}],
    "messages": [
        {"role": "user", "content": BLOCKS},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "Hm.", "signature": "c2lnbmVk"},
                {"type": "redacted_thinking", "data": "b3BhcXVl"},
                {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"city": "Bern"}},
            ],
        },
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "toolu_1", "content": "Rain."}]},
    ],
    "tools": [
        {"name": "weather", "description": "Tells it.", "input_schema": {"type": "object", "properties": {}}},
        {"type": "web_search_20250305", "name": "web_search", "max_uses": 2},
    ],
}
TALKED = [
    {
        "role": "user",
        "parts": [
            {"type": "text", "content": "What is it?"},
            {"type": "blob", "modality": "image", "mime_type": "image/png", "content": "AAAA"},
            {"type": "uri", "modality": "image", "uri": "https://example.org/a.png"},
            {"type": "blob", "modality": "document", "mime_type": "application/pdf", "content": "BBBB"},
            {"type": "text", "content": "once"},
            {"type": "text", "content": "upon"},
            {"type": "file", "modality": "document", "file_id": "file_7"},
            {
                "type": "search_result",
                "source": "s",
                "title": "t",
                "content": [{"type": "text", "content": "found"}],
            },
            {"type": "file", "modality": "document", "file_id": "file_8"},
        ],
    },
    {
        "role": "assistant",
        "parts": [
            {"type": "reasoning", "content": "Hm."},
            {"type": "redacted_thinking"},
            {"type": "tool_call", "id": "toolu_1", "name": "weather", "arguments": {"city": "Bern"}},
        ],
    },
    {"role": "tool", "parts": [{"type": "tool_call_response", "id": "toolu_1", "response": "Rain."}]},
]
TOOLS = [
    {
        "type": "function",
        "name": "weather",
        "description": "Tells it.",
        "parameters": {"type": "object", "properties": {}},
    },
    {"type": "web_search_20250305", "name": "web_search", "max_uses": 2},
]
SEARCH: list[dict[str, Any]] = [
    {"type": "server_tool_use", "id": "srvtoolu_1", "name": "web_search", "input": {"query": "rain"}},
    {
        "type": "web_search_tool_result",
        "tool_use_id": "srvtoolu_1",
        "content": [
            {"type": "web_search_result", "url": "https://example.org", "title": "R", "encrypted_content": "b3BhcXVl"}
        ],
    },
]
SEARCHED = [
    {
        "type": "server_tool_call",
        "id": "srvtoolu_1",
        "name": "web_search",
        "server_tool_call": {"type": "web_search", "input": {"query": "rain"}},
    },
    {
        "type": "server_tool_call_response",
        "id": "srvtoolu_1",
        "server_tool_call_response": {
            "type": "web_search",
            "content": [{"type": "web_search_result", "url": "https://example.org", "title": "R"}],
        },
    },
]


def test_every_kind_of_block(heard: Any, stub: Stub) -> None:
    calls = [{"type": "tool_use", "id": "toolu_2", "name": "weather", "input": {"city": "Rome"}}]
    stub.json(message(content=[*SEARCH, *calls], stop_reason="tool_use")).client().messages.create(**TALK)
    called = {"type": "tool_call", "id": "toolu_2", "name": "weather", "arguments": {"city": "Rome"}}
    assert said(heard) == {
        names.SYSTEM_INSTRUCTIONS: [{"type": "text", "content": "Be brief."}],
        names.INPUT_MESSAGES: TALKED,
        names.OUTPUT_MESSAGES: [{"role": "assistant", "parts": [*SEARCHED, called], "finish_reason": "tool_call"}],
        names.TOOL_DEFINITIONS: TOOLS,
    }


@pytest.mark.parametrize(
    ("reason", "word"),
    [("end_turn", "stop"), ("max_tokens", "length"), ("refusal", "content_filter"), ("pause_turn", "pause_turn")],
)
def test_reasons_have_the_conventions_words(heard: Any, stub: Stub, reason: str, word: str) -> None:
    stub.json(message(stop_reason=reason)).client().messages.create(**ASK, system="Be brief.")
    assert said(heard) == {
        names.SYSTEM_INSTRUCTIONS: [{"type": "text", "content": "Be brief."}],
        names.INPUT_MESSAGES: HELLO,
        names.OUTPUT_MESSAGES: answer(reason=word),
    }


@pytest.mark.parametrize("take", ["create", "parse", "beta", "with_raw_response", "with_streaming_response"])
def test_every_way_of_asking(heard: Any, stub: Stub, take: str) -> None:
    messages = stub.json(message()).client().messages
    if take in ("create", "parse"):
        getattr(messages, take)(**ASK)
    elif take == "beta":
        stub.client().beta.messages.create(**ASK)
    elif take == "with_raw_response":
        messages.with_raw_response.create(**ASK).parse()
    else:
        with messages.with_streaming_response.create(**ASK) as response:
            response.parse()
    assert said(heard) == {names.INPUT_MESSAGES: HELLO, names.OUTPUT_MESSAGES: answer()}


async def test_an_asynchronous_call(heard: Any, stub: Stub) -> None:
    await stub.json(message()).async_client().messages.create(**ASK)
    assert said(heard) == {names.INPUT_MESSAGES: HELLO, names.OUTPUT_MESSAGES: answer()}


def test_the_clients_own_models_are_read_as_dicts_are(heard: Any, stub: Stub) -> None:
    client = stub.json(message(content=[*SEARCH, {"type": "text", "text": "Rain."}])).client()
    asked = client.messages.create(**ASK)
    heard.exporter.clear()
    client.messages.create(**{**ASK, "messages": [{"role": "assistant", "content": asked.content}]})
    parts = [*SEARCHED, {"type": "text", "content": "Rain."}]
    assert said(heard)[names.INPUT_MESSAGES] == [{"role": "assistant", "parts": parts}]


@pytest.mark.skipif(anthropic.__version__.startswith("0."), reason="it makes lists of them before it sends anything")
def test_an_iterator_is_left_to_the_client(switched: Any, stub: Stub) -> None:
    messages = ({"role": "user", "content": text} for text in ("a", "b"))
    spans = switched(**{VARIABLE: "span_only", "TOLLSPAN_FINGERPRINT_KEY": "k"})
    stub.json(message()).client().messages.create(**{**ASK, "messages": messages})
    assert len(stub.requests[0][3]["messages"]) == 2
    assert names.INPUT_MESSAGES not in said(spans)
    assert names.REQUEST_FINGERPRINT not in spans.attributes()


def test_a_call_that_fails_has_its_input(heard: Any, stub: Stub) -> None:
    with pytest.raises(anthropic.BadRequestError):
        stub.error(400).client().messages.create(**ASK)
    assert said(heard) == {names.INPUT_MESSAGES: HELLO}


def test_the_results_of_a_batch_say_nothing(heard: Any, stub: Stub) -> None:
    list(stub.batch().lines(batch_results()).client().messages.batches.results("msgbatch_1"))
    assert [check(span.attributes) for span in heard.spans()] == [{}] * len(heard.spans())


def test_credentials_are_neither_told_nor_hashed(switched: Any, stub: Stub) -> None:
    spans = switched(**{VARIABLE: "span_only", "TOLLSPAN_FINGERPRINT_KEY": "k"})
    client = stub.json(message()).client()
    for secret in ("one-secret", "other-secret"):
        server = {"type": "url", "url": "https://example.org", "name": "s", "authorization_token": secret}
        tools: Any = [{"type": "mcp_toolset", "mcp_server_name": "s", "authorization_token": secret}]
        client.beta.messages.create(**ASK, mcp_servers=[server], tools=tools, betas=["mcp-client-2025-11-20"])
    one, other = (span.attributes for span in spans.spans())
    assert one[names.REQUEST_FINGERPRINT] == other[names.REQUEST_FINGERPRINT]
    assert check(one)[names.TOOL_DEFINITIONS] == [{"type": "mcp_toolset", "name": "s", "mcp_server_name": "s"}]
    assert "secret" not in str(dict(one))


# -- streams -----------------------------------------------------------------------------------------------------------


def streamed(blocks: list[tuple[dict[str, Any], list[dict[str, Any]]]], reason: str) -> list[dict[str, Any]]:
    """Events of a message of these blocks: how each begins, and its deltas."""
    first, *_, last = events()
    told: list[dict[str, Any]] = [first]
    for index, (begun, deltas) in enumerate(blocks):
        told.append({"type": "content_block_start", "index": index, "content_block": begun})
        told += [{"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas]
        told.append({"type": "content_block_stop", "index": index})
    end = {"stop_reason": reason, "stop_sequence": None}
    return [*told, {"type": "message_delta", "delta": end, "usage": {"output_tokens": 20}}, last]


MIXED = streamed(
    [
        (
            {"type": "thinking", "thinking": "", "signature": ""},
            [
                {"type": "thinking_delta", "thinking": "H"},
                {"type": "thinking_delta", "thinking": "m."},
                {"type": "signature_delta", "signature": "c2lnbmVk"},
            ],
        ),
        ({**SEARCH[0], "input": {}}, [{"type": "input_json_delta", "partial_json": '{"query": "rain"}'}]),
        (SEARCH[1], []),
        ({"type": "text", "text": ""}, [{"type": "text_delta", "text": text} for text in ("Wa", "it.")]),
        (
            {"type": "tool_use", "id": "toolu_2", "name": "weather", "input": {}},
            [{"type": "input_json_delta", "partial_json": text} for text in ("", '{"city": ', '"Rome"}')],
        ),
        ({"type": "tool_use", "id": "toolu_3", "name": "now", "input": {}}, []),
    ],
    "tool_use",
)
MIXED_SAID = [
    {
        "role": "assistant",
        "parts": [
            {"type": "reasoning", "content": "Hm."},
            *SEARCHED,
            {"type": "text", "content": "Wait."},
            {"type": "tool_call", "id": "toolu_2", "name": "weather", "arguments": {"city": "Rome"}},
            {"type": "tool_call", "id": "toolu_3", "name": "now", "arguments": {}},
        ],
        "finish_reason": "tool_call",
    }
]


@pytest.mark.parametrize("take", ["create", "stream", "beta", "with_raw_response"])
def test_a_stream_is_put_together(heard: Any, stub: Stub, take: str) -> None:
    client = stub.stream(MIXED).client()
    asked = {**ASK, "messages": [*ASK["messages"]]}
    if take == "stream":
        with client.messages.stream(**asked) as stream:
            asked["messages"].append({"role": "user", "content": "said later"})
            assert len(stream.get_final_message().content) == 6
    else:
        messages = (client.beta if take == "beta" else client).messages
        create = messages.with_raw_response.create if take == "with_raw_response" else messages.create
        made = create(**asked, stream=True)
        asked["messages"].append({"role": "user", "content": "said later"})
        list(made.parse() if take == "with_raw_response" else made)
    assert said(heard) == {names.INPUT_MESSAGES: HELLO, names.OUTPUT_MESSAGES: MIXED_SAID}


async def test_an_asynchronous_stream(heard: Any, stub: Stub) -> None:
    async with stub.stream(MIXED).async_client().messages.stream(**ASK) as stream:
        await stream.get_final_message()
    assert said(heard)[names.OUTPUT_MESSAGES] == MIXED_SAID


@pytest.mark.skipif(not hasattr(anthropic.Anthropic, "completions"), reason="this version has no completions")
@pytest.mark.parametrize("streamed", [False, True])
def test_a_completion(heard: Any, stub: Stub, streamed: bool) -> None:
    whole = {"type": "completion", "id": "compl_1", "model": MODEL}
    pieces = [
        {**whole, "completion": "Hel", "stop_reason": None},
        {**whole, "completion": "lo.", "stop_reason": "stop"},
    ]
    stub.stream(pieces) if streamed else stub.json({**pieces[1], "completion": "Hello."})
    made = stub.client().completions.create(model=MODEL, max_tokens_to_sample=9, prompt="hello", stream=streamed)
    if streamed:
        list(made)
    assert said(heard) == {names.INPUT_MESSAGES: HELLO, names.OUTPUT_MESSAGES: answer()}


def test_a_stream_left_early_has_what_was_heard(heard: Any, stub: Stub) -> None:
    with stub.stream(events()).client().messages.create(**ASK, stream=True) as stream:
        for event in stream:
            if event.type == "content_block_delta":
                break
    assert said(heard)[names.OUTPUT_MESSAGES] == answer("He", None)


# -- nothing for nothing -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("library", "name"),
    [
        ("anthropic", "anthropic:AnthropicInstrumentor"),
        ("botocore.client", "bedrock:BedrockInstrumentor"),
        ("google.genai", "google_genai:GoogleGenAIInstrumentor"),
    ],
)
def test_nothing_of_it_is_imported_while_it_is_off(library: str, name: str) -> None:
    pytest.importorskip(library)
    module, _, kind = name.partition(":")
    program = f"""
    import sys
    from tollspan.instrumentation.{module} import {kind}
    {kind}().instrument()
    import {library}
    loaded = [name for name in sys.modules if name.startswith("tollspan") and "content" in name]
    assert not loaded, loaded
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=True, timeout=60)


@pytest.mark.parametrize("name", ["__init__", "read", "chunk", "output"])
def test_a_fault_of_a_reader_takes_nothing_from_the_span(
    monkeypatch: pytest.MonkeyPatch, faulty_telemetry: Any, stub: Stub, name: str
) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("ours")

    monkeypatch.setenv(VARIABLE, "span_only")
    monkeypatch.setattr(content.Messages, name, broken)
    counted = sum(faults().values())
    AnthropicInstrumentor().instrument(tracer_provider=faulty_telemetry.provider)
    try:
        client = stub.json(message()).stream(events()).client()
        assert client.messages.create(**ASK).content[0].text == "Hello."
        assert len(list(client.messages.create(**ASK, stream=True))) == len(events()) - 1  # a ping is not passed on
    finally:
        AnthropicInstrumentor().uninstrument()
    assert sum(faults().values()) > counted
    assert [span.attributes[names.USAGE_INPUT_TOKENS] for span in faulty_telemetry.spans()] == [117, 117]


# -- fingerprints ------------------------------------------------------------------------------------------------------


def fingerprints(telemetry: Any) -> list[Any]:
    return [span.attributes.get(names.REQUEST_FINGERPRINT) for span in telemetry.spans()]


async def test_equal_requests_are_found_across_the_ways_of_asking(keyed: Any, stub: Stub) -> None:
    client = stub.json(message()).client()
    client.messages.create(**ASK)
    client.messages.create(**ASK, metadata={"user_id": "u"}, extra_headers={"x-trace": "7"}, timeout=9)
    client.messages.with_raw_response.create(**ASK)
    client.beta.messages.create(**ASK, betas=["files-api-2025-04-14"])
    client.messages.create(model=MODEL, max_tokens=64, messages=[], extra_body={"messages": ASK["messages"]})
    await stub.async_client().messages.create(**ASK)
    stub.replies.clear()
    list(stub.stream(events()).client().messages.create(**ASK, stream=True))
    with stub.client().messages.stream(**ASK) as stream:
        stream.until_done()
    found = fingerprints(keyed)
    assert len(found) == 8
    assert len(set(found)) == 1
    assert found[0]


def test_other_requests_have_others(keyed: Any, stub: Stub) -> None:
    client = stub.json(message()).client()
    client.messages.create(**ASK)
    client.messages.create(**{**ASK, "messages": [{"role": "user", "content": "hallo"}]})
    client.messages.create(**{**ASK, "model": "claude-opus-4-6"})
    client.messages.create(**{**ASK, "system": "Be brief."})
    found = fingerprints(keyed)
    assert len(set(found)) == 4
    assert None not in found


def test_models_and_dicts_of_the_same_request_are_equal(keyed: Any, stub: Stub) -> None:
    client = stub.json(message()).client()
    result = client.messages.create(**ASK)
    for given in (result.content, [{"type": "text", "text": "Hello."}]):
        client.messages.create(**{**ASK, "messages": [{"role": "assistant", "content": given}]})
    _, one, other = fingerprints(keyed)
    assert one == other


def test_what_asks_nothing_has_none(keyed: Any, stub: Stub) -> None:
    list(stub.batch().lines(batch_results()).client().messages.batches.results("msgbatch_1"))
    assert set(fingerprints(keyed)) == {None}
