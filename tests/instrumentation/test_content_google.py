"""What is said in Gemini's contents and interactions, in the conventions' form; and fingerprints of its requests."""

from __future__ import annotations

import asyncio
import base64
import gc
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pydantic
import pytest
from google.genai import types

from tollspan.instrumentation import faults
from tollspan.instrumentation.google_genai import GoogleGenAIInstrumentor
from tollspan.instrumentation.google_genai import content as readers
from tollspan.pricing import attributes as names

from .content_form import check, switching
from .google_stub import MODEL, GoogleStub, calling, chunks, content
from .test_google_genai_usage import DONE, INTERACT, SAYS, LiveStub, events, interaction, talk

VARIABLE = "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"
HELLO = [{"role": "user", "parts": [{"type": "text", "content": "hello"}]}]
ASK: dict[str, Any] = {"model": MODEL, "contents": "hello"}


def answer(text: str = "Hello.", reason: str | None = "stop") -> list[dict[str, Any]]:
    said: dict[str, Any] = {"role": "assistant", "parts": [{"type": "text", "content": text}]}
    return [said if reason is None else {**said, "finish_reason": reason}]


@pytest.fixture
def google() -> Iterator[GoogleStub]:
    stub = GoogleStub()
    yield stub
    stub.close()


@pytest.fixture
def switched(monkeypatch: pytest.MonkeyPatch, telemetry: Any) -> Iterator[Callable[..., Any]]:
    yield from switching(GoogleGenAIInstrumentor(), monkeypatch, telemetry)


def said(telemetry: Any) -> dict[str, Any]:
    return check(telemetry.attributes())


# -- contents ----------------------------------------------------------------------------------------------------------

DECLARED = {
    "name": "weather",
    "description": "Tells it.",
    "parameters": {"type": "OBJECT", "properties": {"city": {"type": "STRING"}}},
}
TOOLS = [
    {
        "type": "function",
        "name": "weather",
        "description": "Tells it.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
    {"type": "google_search", "name": "google_search"},
]
TALK: list[Any] = [
    types.Content(
        role="user",
        parts=[
            types.Part(text="What is it?"),
            types.Part.from_bytes(data=b"\x00\x01", mime_type="image/png"),
            types.Part.from_uri(file_uri="gs://bucket/a.pdf", mime_type="application/pdf"),
        ],
    ),
    {
        "role": "model",
        "parts": [{"text": "Hm.", "thought": True}, {"functionCall": {"name": "weather", "args": {"city": "Bern"}}}],
    },
    types.Content(role="user", parts=[types.Part.from_function_response(name="weather", response={"result": "Rain."})]),
]
TALKED = [
    {
        "role": "user",
        "parts": [
            {"type": "text", "content": "What is it?"},
            {
                "type": "blob",
                "modality": "image",
                "mime_type": "image/png",
                "content": base64.b64encode(b"\x00\x01").decode(),
            },
            {"type": "uri", "modality": "document", "uri": "gs://bucket/a.pdf", "mime_type": "application/pdf"},
        ],
    },
    {
        "role": "assistant",
        "parts": [
            {"type": "reasoning", "content": "Hm."},
            {"type": "tool_call", "id": None, "name": "weather", "arguments": {"city": "Bern"}},
        ],
    },
    {
        "role": "tool",
        "parts": [{"type": "tool_call_response", "id": None, "name": "weather", "response": {"result": "Rain."}}],
    },
]


def test_every_kind_of_part(heard: Any, google: GoogleStub) -> None:
    parts = [
        {"executableCode": {"language": "PYTHON", "code": "1+1"}},
        {"codeExecutionResult": {"outcome": "OUTCOME_OK", "output": "2"}},
        {"text": "Two."},
        {"inlineData": {"mimeType": "image/png", "data": "AAAA"}},
    ]
    candidate = {"content": {"role": "model", "parts": parts}, "finishReason": "MAX_TOKENS", "index": 0}
    config = {
        "system_instruction": "Be brief.",
        "tools": [{"function_declarations": [DECLARED]}, {"google_search": {}}],
    }
    google.json(content(candidates=[candidate])).client().models.generate_content(
        model=MODEL, contents=TALK, config=config
    )
    code = {"type": "code_execution", "language": "PYTHON", "code": "1+1"}
    result = {"type": "code_execution", "outcome": "OUTCOME_OK", "output": "2"}
    assert said(heard) == {
        names.SYSTEM_INSTRUCTIONS: [{"type": "text", "content": "Be brief."}],
        names.INPUT_MESSAGES: TALKED,
        names.OUTPUT_MESSAGES: [
            {
                "role": "assistant",
                "parts": [
                    {"type": "server_tool_call", "id": None, "name": "code_execution", "server_tool_call": code},
                    {"type": "server_tool_call_response", "id": None, "server_tool_call_response": result},
                    {"type": "text", "content": "Two."},
                    {"type": "blob", "modality": "image", "mime_type": "image/png", "content": "AAAA"},
                ],
                "finish_reason": "length",
            }
        ],
        names.TOOL_DEFINITIONS: TOOLS,
    }


def test_a_tools_credentials_are_not_told(heard: Any, google: GoogleStub) -> None:
    api = {"endpoint": "e", "api_auth": {"api_key_config": {"api_key_string": "k-secret"}}}
    google.json(content()).vertex().models.generate_content(
        **ASK, config={"tools": [{"retrieval": {"external_api": api}}]}
    )
    (tool,) = said(heard)[names.TOOL_DEFINITIONS]
    assert tool["name"] == "retrieval"
    assert tool["external_api"]["endpoint"] == "e"
    assert "k-secret" not in str(tool)


def test_a_tools_credentials_are_not_told_in_camel_case_either(heard: Any, google: GoogleStub) -> None:
    api = {"endpoint": "e", "authConfig": {"oidcConfig": {"idToken": "k-secret"}}}
    google.json(content()).vertex().models.generate_content(
        **ASK, config={"tools": [{"retrieval": {"externalApi": api}}]}
    )
    assert "k-secret" not in str(said(heard)[names.TOOL_DEFINITIONS])


def test_a_picture_that_a_tool_gave_stands_beside_what_it_said(heard: Any, google: GoogleStub) -> None:
    picture = {"inline_data": {"mime_type": "image/png", "data": "AAAA"}}
    given = {"name": "look", "response": {"seen": "it"}, "parts": [picture]}
    asked = [{"role": "user", "parts": [{"function_response": given}]}]
    google.json(content()).client().models.generate_content(model=MODEL, contents=asked)
    (message,) = said(heard)[names.INPUT_MESSAGES]
    assert message["parts"][0]["response"] == [
        {"type": "json", "content": {"seen": "it"}},
        {"type": "blob", "modality": "image", "mime_type": "image/png", "content": "AAAA"},
    ]


@pytest.mark.parametrize(
    "contents",
    [
        "hello",
        ["hello"],
        types.Part(text="hello"),
        {"role": "user", "parts": [{"text": "hello"}]},
        [types.Content(role="user", parts=[types.Part(text="hello")])],
    ],
)
def test_every_form_of_contents(heard: Any, google: GoogleStub, contents: Any) -> None:
    google.json(content()).client().models.generate_content(model=MODEL, contents=contents)
    assert said(heard) == {names.INPUT_MESSAGES: HELLO, names.OUTPUT_MESSAGES: answer()}


async def test_an_asynchronous_and_a_raw_call(heard: Any, google: GoogleStub) -> None:
    client = google.json(content(reason="SAFETY")).client()
    await client.aio.models.generate_content(**ASK)
    client.models.generate_content(**ASK, config={"should_return_http_response": True})
    for span in heard.spans():
        assert check(span.attributes)[names.OUTPUT_MESSAGES] == answer(reason="content_filter")


def test_every_hop_of_automatic_function_calling_is_heard(heard: Any, google: GoogleStub) -> None:
    def weather(city: str) -> str:
        """Tells it."""
        return f"Rain in {city}."

    google.json(calling()).json(content()).client().models.generate_content(**ASK, config={"tools": [weather]})
    first, second = (check(span.attributes) for span in heard.spans())
    call = {"type": "tool_call", "id": None, "name": "weather", "arguments": {"city": "Berlin"}}
    asks = {"role": "assistant", "parts": [call]}
    assert first[names.OUTPUT_MESSAGES] == [{**asks, "finish_reason": "stop"}]
    assert first[names.TOOL_DEFINITIONS] == [{"type": "function", "name": "weather", "description": "Tells it."}]
    assert [message["role"] for message in second[names.INPUT_MESSAGES]] == ["user", "assistant", "tool"]
    assert second[names.INPUT_MESSAGES][1] == asks
    assert second[names.OUTPUT_MESSAGES] == answer()


def test_every_candidate_is_a_message(heard: Any, google: GoogleStub) -> None:
    one, other = content()["candidates"] + content(text="Hi.")["candidates"]
    google.json(content(candidates=[{**other, "index": 1}, one])).client().models.generate_content(**ASK)
    assert said(heard)[names.OUTPUT_MESSAGES] == answer() + answer("Hi.")


def test_a_stream_is_put_together(heard: Any, google: GoogleStub) -> None:
    thought = content(None, reason=None)
    thought["candidates"][0]["content"]["parts"][0]["thought"] = True
    contents: list[Any] = [types.Content(role="user", parts=[types.Part(text="hello")])]
    client = google.stream([thought, *chunks()]).client()
    stream = client.models.generate_content_stream(model=MODEL, contents=contents)
    next(stream)
    contents.append("said later")
    list(stream)
    parts = [{"type": "reasoning", "content": "Hello."}, {"type": "text", "content": "Hello."}]
    assert said(heard) == {
        names.INPUT_MESSAGES: HELLO,
        names.OUTPUT_MESSAGES: [{"role": "assistant", "parts": parts, "finish_reason": "stop"}],
    }


def test_a_call_that_is_told_in_pieces(heard: Any, google: GoogleStub) -> None:
    def chunk(**call: Any) -> dict[str, Any]:
        return {"candidates": [{"content": {"role": "model", "parts": [{"functionCall": call}]}, "index": 0}]}

    def piece(path: str, **value: Any) -> dict[str, Any]:
        return chunk(partialArgs=[{"jsonPath": path, **value}], willContinue=True)

    told = [
        chunk(name="weather", willContinue=True),
        piece("$.city", stringValue="Ro"),
        piece("$.city", stringValue="me"),
        piece("$.days", numberValue=7),
        chunk(),
    ]
    list(google.stream(told).vertex().models.generate_content_stream(**ASK))
    call = {"type": "tool_call", "id": None, "name": "weather", "arguments": {"city": "Rome", "days": 7}}
    assert said(heard)[names.OUTPUT_MESSAGES] == [{"role": "assistant", "parts": [call]}]


async def test_a_stream_left_early_has_what_was_heard(heard: Any, google: GoogleStub) -> None:
    stream = await google.stream(chunks()).client().aio.models.generate_content_stream(**ASK)
    async for _ in stream:
        break
    await stream.aclose()
    for _ in range(100):  # the client leaves the generator beneath its own to the event loop
        await asyncio.sleep(0)
    assert said(heard)[names.OUTPUT_MESSAGES] == answer("Hel", None)


def test_embeddings_say_nothing_and_pictures_only_what_was_asked(heard: Any, google: GoogleStub) -> None:
    client = google.json({"embeddings": [{"values": [0.1]}]}).client()
    client.models.embed_content(model="gemini-embedding-001", contents="hello")
    google.replies.clear()
    google.json({"predictions": [{"bytesBase64Encoded": "AAAA", "mimeType": "image/png"}]})
    with warnings.catch_warnings(action="ignore"):  # of one that is to go
        google.vertex().models.generate_images(model="imagen-4.0-generate-001", prompt="hello")
    assert [check(span.attributes) for span in heard.spans()] == [{}, {names.INPUT_MESSAGES: HELLO}]


def test_a_call_that_fails_has_its_input(heard: Any, google: GoogleStub) -> None:
    from google.genai import errors

    with pytest.raises(errors.ClientError):
        google.error(400).client().models.generate_content(**ASK)
    with pytest.raises(ValueError, match="contents are required"):
        google.client().models.generate_content(model=MODEL, contents=[])
    assert [check(span.attributes) for span in heard.spans()] == [{names.INPUT_MESSAGES: HELLO}, {}]


@pytest.mark.parametrize("name", ["__init__", "read", "chunk", "output"])
def test_a_fault_of_a_reader_takes_nothing_from_the_span(
    monkeypatch: pytest.MonkeyPatch, faulty_telemetry: Any, google: GoogleStub, name: str
) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("ours")

    monkeypatch.setenv(VARIABLE, "span_only")
    monkeypatch.setattr(readers.Contents, name, broken)
    counted = sum(faults().values())
    GoogleGenAIInstrumentor().instrument(tracer_provider=faulty_telemetry.provider)
    try:
        client = google.json(content()).stream(chunks()).client()
        assert client.models.generate_content(**ASK).text == "Hello."
        assert len(list(client.models.generate_content_stream(**ASK))) == 3
    finally:
        GoogleGenAIInstrumentor().uninstrument()
    assert sum(faults().values()) > counted
    assert [span.attributes[names.USAGE_INPUT_TOKENS] for span in faulty_telemetry.spans()] == [1030, 1030]


# -- interactions and live sessions ------------------------------------------------------------------------------------

STEPS: list[dict[str, Any]] = [
    {"type": "thought", "summary": [{"type": "text", "text": "Hm."}]},
    {"type": "google_search_call", "id": "c1", "arguments": {"queries": ["rain"]}},
    {"type": "google_search_result", "call_id": "c1", "result": [{"search_suggestions": "<p>"}]},
    {"type": "model_output", "content": [{"type": "text", "text": "Hello."}]},
    {"type": "function_call", "id": "f1", "name": "weather", "arguments": {"city": "Rome"}},
]
STEPPED = [
    {"type": "reasoning", "content": "Hm."},
    {
        "type": "server_tool_call",
        "id": "c1",
        "name": "google_search",
        "server_tool_call": {"type": "google_search_call", "arguments": {"queries": ["rain"]}},
    },
    {
        "type": "server_tool_call_response",
        "id": "c1",
        "server_tool_call_response": {"type": "google_search_result", "result": [{"search_suggestions": "<p>"}]},
    },
    {"type": "text", "content": "Hello."},
    {"type": "tool_call", "id": "f1", "name": "weather", "arguments": {"city": "Rome"}},
]


@pytest.mark.parametrize(
    ("result", "told"),
    [
        ({"seen": "it"}, {"seen": "it"}),
        (
            [{"type": "text", "text": "It."}, {"type": "image", "mime_type": "image/png", "data": "AAAA"}],
            [
                {"type": "text", "content": "It."},
                {"type": "blob", "modality": "image", "mime_type": "image/png", "content": "AAAA"},
            ],
        ),
    ],
)
def test_what_a_tool_gave_in_an_interaction(heard: Any, google: GoogleStub, result: Any, told: Any) -> None:
    given: Any = [{"type": "function_result", "call_id": "f0", "name": "look", "result": result}]
    google.json(interaction(steps=STEPS)).client().interactions.create(model=MODEL, input=given)
    (message,) = said(heard)[names.INPUT_MESSAGES]
    assert message["parts"][0]["response"] == told


def test_an_interaction(heard: Any, google: GoogleStub) -> None:
    given: list[Any] = [
        {"type": "user_input", "content": [{"type": "text", "text": "What is it?"}]},
        {"type": "function_call", "id": "f0", "name": "weather", "arguments": {"city": "Bern"}},
        {"type": "function_result", "call_id": "f0", "name": "weather", "result": "Rain."},
    ]
    tools: list[Any] = [{"type": "function", "name": "weather", "parameters": {"type": "object"}}]
    google.json(interaction(steps=STEPS, status="requires_action")).client().interactions.create(
        model=MODEL, input=given, system_instruction="Be brief.", tools=[*tools, {"type": "google_search"}]
    )
    call = {"type": "tool_call", "id": "f0", "name": "weather", "arguments": {"city": "Bern"}}
    assert said(heard) == {
        names.SYSTEM_INSTRUCTIONS: [{"type": "text", "content": "Be brief."}],
        names.INPUT_MESSAGES: [
            {"role": "user", "parts": [{"type": "text", "content": "What is it?"}]},
            {"role": "assistant", "parts": [call]},
            {"role": "tool", "parts": [{"type": "tool_call_response", "id": "f0", "response": "Rain."}]},
        ],
        names.OUTPUT_MESSAGES: [{"role": "assistant", "parts": STEPPED, "finish_reason": "tool_call"}],
        names.TOOL_DEFINITIONS: [
            {"type": "function", "name": "weather", "parameters": {"type": "object"}},
            {"type": "google_search", "name": "google_search"},
        ],
    }


def test_a_streamed_interaction(heard: Any, google: GoogleStub) -> None:
    first, *_, last, done = events()
    told = [
        first,
        {"event_type": "step.start", "index": 0, "step": {"type": "model_output", "content": []}},
        {"event_type": "step.delta", "index": 0, "delta": {"type": "text", "text": "Hel"}},
        {"event_type": "step.delta", "index": 0, "delta": {"type": "text", "text": "lo."}},
        {"event_type": "step.start", "index": 1, "step": {**STEPS[-1], "arguments": {}}},
        {"event_type": "step.delta", "index": 1, "delta": {"type": "arguments_delta", "arguments": '{"city": '}},
        {"event_type": "step.delta", "index": 1, "delta": {"type": "arguments_delta", "arguments": '"Rome"}'}},
        last,
        done,
    ]
    list(google.stream(told).client().interactions.create(**INTERACT, stream=True))
    assert said(heard) == {
        names.INPUT_MESSAGES: HELLO,
        names.OUTPUT_MESSAGES: [{"role": "assistant", "parts": STEPPED[3:], "finish_reason": "stop"}],
    }


@pytest.mark.parametrize("take", ["with_raw_response", "parsed", "dropped"])
def test_a_raw_interaction(heard: Any, google: GoogleStub, take: str) -> None:
    resource = google.json(interaction(steps=STEPS[3:4])).client().interactions
    if take == "with_raw_response":
        resource.with_raw_response.create(**INTERACT).parse()
    else:
        with resource.with_streaming_response.create(**INTERACT) as response:
            response.parse() if take == "parsed" else response.json()
        del response
        gc.collect()
    assert said(heard) == {names.INPUT_MESSAGES: HELLO, names.OUTPUT_MESSAGES: answer()}


async def test_a_turn_of_a_live_session(heard: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    transcribed = {
        "serverContent": {"inputTranscription": {"text": "hello"}, "outputTranscription": {"text": "Spoken."}}
    }
    stub = LiveStub([[SAYS, SAYS, transcribed, DONE]])
    try:
        await talk(stub, monkeypatch, 1)
    finally:
        await asyncio.to_thread(stub.close)
    parts = [{"type": "text", "content": "HelHel"}, {"type": "text", "content": "Spoken."}]
    assert said(heard) == {
        names.INPUT_MESSAGES: HELLO,
        names.OUTPUT_MESSAGES: [{"role": "assistant", "parts": parts, "finish_reason": "stop"}],
    }


# -- fingerprints ------------------------------------------------------------------------------------------------------


def fingerprints(telemetry: Any) -> list[Any]:
    return [span.attributes.get(names.REQUEST_FINGERPRINT) for span in telemetry.spans()]


class Recipe(pydantic.BaseModel):
    name: str


def now() -> str:
    """A tool."""
    return "12:00"


async def test_equal_requests_are_found_across_the_ways_of_asking(keyed: Any, google: GoogleStub) -> None:
    models = google.json(content()).client().models
    part, brief = types.Part(text="hello"), types.Content(role="user", parts=[types.Part(text="Be brief.")])
    schema: Any = {"response_schema": Recipe, "response_mime_type": "application/json"}
    config = types.GenerateContentConfig(system_instruction="Be brief.", temperature=0.5, **schema)
    models.generate_content(model=MODEL, contents="hello", config=config)
    models.generate_content(
        model=f"models/{MODEL}",
        contents=[{"role": "user", "parts": [{"text": "hello"}]}],
        config={"systemInstruction": brief, "temperature": 0.5, "http_options": {"timeout": 9000}, **schema},
    )
    config.labels = None
    await google.client().aio.models.generate_content(model=MODEL, contents=[part], config=config)
    google.replies.clear()
    list(google.stream(chunks()).client().models.generate_content_stream(model=MODEL, contents=[part], config=config))
    found = fingerprints(keyed)
    assert len(found) == 4
    assert len(set(found)) == 1
    assert found[0]


def test_other_requests_have_others(keyed: Any, google: GoogleStub) -> None:
    models = google.json(content()).client().models
    models.generate_content(**ASK)
    models.generate_content(model=MODEL, contents="hallo")
    models.generate_content(model=MODEL, contents=["hello", "hello"])
    models.generate_content(**ASK, config={"temperature": 0.1})
    models.generate_content(**ASK, config={"tools": [now]})
    models.generate_content(model=MODEL, contents=types.Part.from_bytes(data=b"hello", mime_type="image/png"))
    found = fingerprints(keyed)
    assert len(set(found)) == 6
    assert None not in found


def test_embeddings_of_the_same_have_the_same(keyed: Any, google: GoogleStub) -> None:
    models = google.json({"embeddings": [{"values": [0.1]}]}).client().models
    for contents in ("hello", ["hello"], "hallo"):
        models.embed_content(model="gemini-embedding-001", contents=contents)
    models.embed_content(model="gemini-embedding-001", contents="hallo", config={"output_dimensionality": 7})
    one, other, third, fourth = fingerprints(keyed)
    assert one == other
    assert len({one, third, fourth, None}) == 4


def test_interactions_that_ask_the_same_have_the_same(keyed: Any, google: GoogleStub) -> None:
    resource = google.json(interaction()).client().interactions
    resource.create(**INTERACT)
    resource.create(**INTERACT, extra_headers={"x-request": "7"}, timeout=9)
    resource.with_raw_response.create(**INTERACT)
    resource.create(**{**INTERACT, "input": "hallo"})
    found = fingerprints(keyed)
    assert len(set(found[:3])) == 1
    assert len({found[0], found[3], None}) == 3


async def test_a_turn_has_none(keyed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    stub = LiveStub([[SAYS, DONE]])
    try:
        await talk(stub, monkeypatch, 1)
    finally:
        await asyncio.to_thread(stub.close)
    assert fingerprints(keyed) == [None]
