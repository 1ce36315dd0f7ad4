"""Content of the smaller clients and of OpenAI's older API: what was asked and answered, in the conventions' form."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tollspan.instrumentation import faults
from tollspan.instrumentation.cohere import CohereInstrumentor
from tollspan.instrumentation.huggingface import HuggingFaceInstrumentor
from tollspan.instrumentation.litellm import LiteLLMInstrumentor
from tollspan.instrumentation.mistral import MistralInstrumentor
from tollspan.instrumentation.ollama import OllamaInstrumentor
from tollspan.instrumentation.openai import OpenAIInstrumentor
from tollspan.instrumentation.stainless import GroqInstrumentor, TogetherInstrumentor
from tollspan.pricing import attributes as names

from .content_form import check
from .small_stubs import (
    COHERE,
    GROQ,
    HELLO,
    MISTRAL,
    NDJSON,
    OLLAMA,
    OLLAMA_LAST,
    SSE,
    TOGETHER,
    TOGETHER_MODEL,
    Case,
    SmallStub,
    cohere_async,
    cohere_chat,
    cohere_client,
    lines,
    mistral_client,
    mistral_completion,
    ollama_async,
    ollama_client,
    ollama_part,
    openai_chunks,
    openai_completion,
    server_sent,
    stainless,
)

VARIABLE = "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"
INSTRUMENTORS: dict[str, Any] = {
    "mistralai": MistralInstrumentor,
    "cohere": CohereInstrumentor,
    "ollama": OllamaInstrumentor,
    "groq": GroqInstrumentor,
    "together": TogetherInstrumentor,
    "openai": OpenAIInstrumentor,
    "huggingface_hub": HuggingFaceInstrumentor,
    "litellm": LiteLLMInstrumentor,
}
CASES = [MISTRAL, COHERE, OLLAMA, GROQ, TOGETHER]

WEATHER = {"name": "weather", "description": "Tells it.", "parameters": {"type": "object", "properties": {}}}
TOOL = {"type": "function", "function": WEATHER}
TOLD_TOOL = {"type": "function", **WEATHER}
CALL = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Bern"}'}}


def text(content: str) -> dict[str, Any]:
    return {"type": "text", "content": content}


def thought(content: str) -> dict[str, Any]:
    return {"type": "reasoning", "content": content}


def user(*parts: Any) -> dict[str, Any]:
    return {"role": "user", "parts": [text(part) if isinstance(part, str) else part for part in parts]}


def answer(*parts: Any, reason: str | None = "stop") -> dict[str, Any]:
    message = {"role": "assistant", "parts": [text(part) if isinstance(part, str) else part for part in parts]}
    return message if reason is None else {**message, "finish_reason": reason}


def called(identifier: str | None = "call_1", **arguments: Any) -> dict[str, Any]:
    return {"type": "tool_call", "id": identifier, "name": "weather", "arguments": arguments}


def gave(response: Any, identifier: str | None = "call_1") -> dict[str, Any]:
    return {"role": "tool", "parts": [{"type": "tool_call_response", "id": identifier, "response": response}]}


BERN = called(city="Bern")
ASKED = user("hello")


@pytest.fixture
def stub() -> Iterator[SmallStub]:
    made = SmallStub()
    yield made
    made.close()


@pytest.fixture
def capture(monkeypatch: pytest.MonkeyPatch, telemetry: Any) -> Iterator[Callable[[str], Any]]:
    """Switch content on for a client."""
    on = []

    def switch(name: str) -> Any:
        pytest.importorskip(name)
        monkeypatch.setenv(VARIABLE, "span_only")
        made = INSTRUMENTORS[name]()
        made.instrument(tracer_provider=telemetry.provider)
        on.append(made)
        return telemetry

    yield switch
    for made in on:
        made.uninstrument()


def said(telemetry: Any) -> tuple[Any, Any]:
    """Input and output of the one span, as structures of the conventions' form."""
    found = check(telemetry.attributes())
    return found.get(names.INPUT_MESSAGES), found.get(names.OUTPUT_MESSAGES)


# -- what all of them have in common -----------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_call(capture: Any, stub: SmallStub, case: Case) -> None:
    telemetry = capture(case.name)
    case.ask(case.client(stub.json(case.body).url))
    assert said(telemetry) == ([ASKED], [answer("Hello.")])


@pytest.mark.parametrize("case", CASES, ids=str)
async def test_a_call_async(capture: Any, stub: SmallStub, case: Case) -> None:
    telemetry = capture(case.name)
    await case.ask_async(case.async_client(stub.json(case.body).url))
    assert said(telemetry) == ([ASKED], [answer("Hello.")])


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_stream(capture: Any, stub: SmallStub, case: Case) -> None:
    telemetry = capture(case.name)
    list(case.stream(case.client(stub.stream(case.pieces, case.kind).url)))
    assert said(telemetry) == ([ASKED], [answer("Hello.")])


@pytest.mark.parametrize("case", CASES, ids=str)
async def test_a_stream_async(capture: Any, stub: SmallStub, case: Case) -> None:
    telemetry = capture(case.name)
    made = case.stream_async(case.async_client(stub.stream(case.pieces, case.kind).url))
    async for _ in await made if case.awaited else made:
        pass
    assert said(telemetry) == ([ASKED], [answer("Hello.")])


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_stream_left_early_has_what_was_said_so_far(capture: Any, stub: SmallStub, case: Case) -> None:
    telemetry = capture(case.name)
    stream = case.stream(case.client(stub.stream(case.pieces, case.kind).url))
    for _ in range(2 if case is COHERE else 1):  # Cohere's first event says nothing
        next(iter(stream))
    close = getattr(stream, "close", None) or (lambda: stream.__exit__(None, None, None))
    close()
    assert said(telemetry) == ([ASKED], [answer("Hello." if case is COHERE else "Hel", reason=None)])


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_call_that_fails_has_its_input(capture: Any, stub: SmallStub, case: Case) -> None:
    telemetry = capture(case.name)
    with pytest.raises(Exception):
        case.ask(case.client(stub.json({"message": "no", "error": "no"}, 400).url))
    assert said(telemetry) == ([ASKED], None)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_fault_of_a_reader_takes_nothing_else(
    monkeypatch: pytest.MonkeyPatch, faulty_telemetry: Any, stub: SmallStub, case: Case
) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("ours")

    pytest.importorskip(case.name)
    monkeypatch.setenv(VARIABLE, "span_only")
    monkeypatch.setattr("tollspan.instrumentation.content_parts.output", broken)
    counted = faults().get("content.finish", 0)
    made = INSTRUMENTORS[case.name]()
    made.instrument(tracer_provider=faulty_telemetry.provider)
    try:
        case.ask(case.client(stub.json(case.body).url))
        stub.replies.clear()
        assert len(list(case.stream(case.client(stub.stream(case.pieces, case.kind).url)))) == 3
    finally:
        made.uninstrument()
    assert faults()["content.finish"] == counted + 2
    assert [span.attributes[names.USAGE_OUTPUT_TOKENS] for span in faulty_telemetry.spans()] == [100, 100]


def test_nothing_of_it_is_imported_while_it_is_off() -> None:
    program = (
        "import sys\n"
        "from tollspan.instrumentation.cohere import CohereInstrumentor\n"
        "from tollspan.instrumentation.huggingface import HuggingFaceInstrumentor\n"
        "from tollspan.instrumentation.litellm import LiteLLMInstrumentor\n"
        "from tollspan.instrumentation.mistral import MistralInstrumentor\n"
        "from tollspan.instrumentation.ollama import OllamaInstrumentor\n"
        "from tollspan.instrumentation.stainless import GroqInstrumentor, TogetherInstrumentor\n"
        "for made in (CohereInstrumentor, HuggingFaceInstrumentor, LiteLLMInstrumentor, MistralInstrumentor,"
        " OllamaInstrumentor, GroqInstrumentor, TogetherInstrumentor):\n"
        "    made().instrument()\n"
        "loaded = [name for name in sys.modules if name.startswith('tollspan') and 'content' in name]\n"
        "assert not loaded, loaded\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


# -- OpenAI's protocol -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", [GROQ, TOGETHER], ids=str)
def test_reasoning_and_tools(capture: Any, stub: SmallStub, case: Case) -> None:
    telemetry = capture(case.name)
    message = {"role": "assistant", "content": None, "reasoning": "Hm.", "tool_calls": [CALL]}
    stub.json(openai_completion(case.model, choices=[{"index": 0, "message": message, "finish_reason": "tool_calls"}]))
    asked = [*HELLO, {"role": "assistant", "tool_calls": [CALL]}, {"role": "tool", "tool_call_id": "call_1", "content": "Rain."}]  # fmt: skip  # noqa: E501
    case.client(stub.url).chat.completions.create(model=case.model, messages=asked, tools=[TOOL])
    found = check(telemetry.attributes())
    assert found == {
        names.INPUT_MESSAGES: [ASKED, answer(BERN, reason=None), gave("Rain.")],
        names.OUTPUT_MESSAGES: [answer(thought("Hm."), BERN, reason="tool_call")],
        names.TOOL_DEFINITIONS: [TOLD_TOOL],
    }


def test_a_raw_response_of_groqs(capture: Any, stub: SmallStub) -> None:
    telemetry = capture("groq")
    client = GROQ.client(stub.json(GROQ.body).url)
    client.chat.completions.with_raw_response.create(model=GROQ.model, messages=HELLO)
    assert said(telemetry) == ([ASKED], [answer("Hello.")])


SEARCH = {"index": 0, "type": "search", "arguments": '{"query": "a"}'}


@pytest.mark.parametrize("streamed", [False, True])
def test_tools_that_groq_called_itself(capture: Any, stub: SmallStub, streamed: bool) -> None:
    telemetry = capture("groq")
    done = {**SEARCH, "output": "Found."}
    if streamed:
        whole = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m"}
        deltas = [{"executed_tools": [SEARCH]}, {"executed_tools": [done]}, {"content": "Hello."}]
        stub.stream(server_sent([{**whole, "choices": [{"index": 0, "delta": delta}]} for delta in deltas]), SSE)
    else:
        message = {"role": "assistant", "content": "Hello.", "executed_tools": [done]}
        stub.json(openai_completion("m", choices=[{"index": 0, "message": message, "finish_reason": None}]))
    made = GROQ.client(stub.url).chat.completions.create(model="groq/compound", messages=HELLO, stream=streamed)
    if streamed:
        list(made)
    call = {"type": "search", "arguments": {"query": "a"}}
    found = {"type": "search", "output": "Found."}
    parts = [
        {"type": "server_tool_call", "id": None, "name": "search", "server_tool_call": call},
        {"type": "server_tool_call_response", "id": None, "server_tool_call_response": found},
    ]
    assert said(telemetry) == ([ASKED], [answer(*parts, "Hello.", reason=None)])


TEXTS = {"id": "cmpl-7", "object": "text_completion", "created": 1, "model": "m", "usage": None}


def written(*texts: str, reason: str | None = "stop") -> dict[str, Any]:
    choices = [
        {"index": index, "text": text, "finish_reason": reason, "logprobs": None} for index, text in enumerate(texts)
    ]
    return {**TEXTS, "choices": choices}


def older(name: str, stub: SmallStub) -> Any:
    return stainless(name, {"openai": "OpenAI", "together": "Together"}[name])(stub.url).completions


@pytest.mark.parametrize("name", ["openai", "together"])
def test_the_older_completions(capture: Any, stub: SmallStub, name: str) -> None:
    telemetry = capture(name)
    older(name, stub.json(written("Hello.", "Hi."))).create(model=TOGETHER_MODEL, prompt="hello", n=2)
    assert said(telemetry) == ([ASKED], [answer("Hello."), answer("Hi.")])


@pytest.mark.parametrize("name", ["openai", "together"])
def test_the_older_completions_streamed(capture: Any, stub: SmallStub, name: str) -> None:
    telemetry = capture(name)
    stub.stream(server_sent([written("Hel", reason=None), written("lo."), {**TEXTS, "choices": []}]), SSE)
    list(older(name, stub).create(model=TOGETHER_MODEL, prompt="hello", stream=True))
    assert said(telemetry) == ([ASKED], [answer("Hello.")])


def test_several_prompts_a_suffix_and_prompts_of_tokens(capture: Any, stub: SmallStub) -> None:
    telemetry = capture("openai")
    client = older("openai", stub.json(written("Hello.")))
    client.create(model="m", prompt=["a", "b"], suffix="c")
    suffix = {"type": "suffix", "content": "c"}
    assert said(telemetry)[0] == [user("a", suffix), user("b", suffix)]
    telemetry.exporter.clear()
    client.create(model="m", prompt=[1, 2])
    assert said(telemetry)[0] is None


def test_what_a_remote_tool_is_trusted_with_is_not_told(capture: Any, wire: Any) -> None:
    telemetry = capture("openai")
    tool = {
        "type": "mcp",
        "server_label": "crm",
        "server_url": "https://crm.example",
        "authorization": "secret-1",
        "headers": {"X-Api-Key": "secret-2"},
    }
    wire.json(wire.response()).client().responses.create(model="gpt-5-mini", input="hello", tools=[tool])
    assert "secret" not in json.dumps(dict(telemetry.attributes()))
    (shown,) = check(telemetry.attributes())[names.TOOL_DEFINITIONS]
    assert shown == {"type": "mcp", "name": "crm", "server_label": "crm", "server_url": "https://crm.example"}


def test_sound_that_is_answered_and_referred_to(capture: Any, wire: Any) -> None:
    telemetry = capture("openai")
    message = {
        "role": "assistant",
        "content": None,
        "audio": {"id": "audio_2", "data": "AAAA", "expires_at": 1, "transcript": "Hello."},
    }
    wire.json(wire.completion(choices=[{"index": 0, "message": message, "finish_reason": "stop"}]))
    asked = [{"role": "assistant", "audio": {"id": "audio_1"}}, *HELLO]
    wire.client().chat.completions.create(model="gpt-audio", messages=asked)
    spoken = {"type": "blob", "modality": "audio", "mime_type": None, "content": "AAAA", "transcript": "Hello."}
    kept = {"type": "file", "modality": "audio", "file_id": "audio_1"}
    assert said(telemetry) == ([answer(kept, reason=None), ASKED], [answer(spoken)])


# -- sound and pictures ------------------------------------------------------------------------------------------------


def test_what_is_to_be_drawn_and_spoken(capture: Any, wire: Any) -> None:
    telemetry = capture("openai")
    client = wire.json({"created": 1, "data": [{"b64_json": "AAAA"}]}).client()
    client.images.generate(model="gpt-image-1", prompt="hello")
    client.audio.speech.create(model="gpt-4o-mini-tts", voice="alloy", input="hello", instructions="Be brief.")
    drawn, spoken = [check(span.attributes) for span in telemetry.spans()]
    assert drawn == {names.INPUT_MESSAGES: [ASKED]}
    assert spoken == {names.INPUT_MESSAGES: [ASKED], names.SYSTEM_INSTRUCTIONS: [text("Be brief.")]}


@pytest.mark.parametrize("answered", ["json", "text"])
def test_what_was_heard(capture: Any, stub: SmallStub, answered: str) -> None:
    telemetry = capture("openai")
    stub.stream([b"Hello."], "text/plain") if answered == "text" else stub.json({"text": "Hello."})
    client = stainless("openai", "OpenAI")(stub.url)
    client.audio.transcriptions.create(model="whisper-1", file=("a.wav", b"RIFF"), response_format=answered)
    assert said(telemetry) == (None, [answer("Hello.", reason=None)])


def test_what_was_heard_streamed(capture: Any, wire: Any) -> None:
    telemetry = capture("openai")
    events = [{"type": "transcript.text.delta", "delta": piece} for piece in ("Hel", "lo.")]
    client = wire.stream([*events, {"type": "transcript.text.done", "text": "Hello."}]).client()
    create = client.audio.transcriptions.create
    list(create(model="gpt-4o-transcribe", file=("a.wav", b"RIFF"), stream=True))
    assert said(telemetry) == (None, [answer("Hello.", reason=None)])


@pytest.mark.parametrize("whole", [True, False])
def test_what_mistral_heard_streamed(capture: Any, stub: SmallStub, whole: bool) -> None:
    telemetry = capture("mistralai")
    events = [{"type": "transcription.text.delta", "text": piece} for piece in ("Hel", "lo.")]
    usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
    done = {"type": "transcription.done", "model": "m", "text": "Hello.", "language": None, "usage": usage}
    stub.stream(server_sent([*events, done] if whole else events, done=False, named="type"), SSE)
    with mistral_client(stub.url).audio.transcriptions.stream(
        model="m", file_url="https://example.org/a.mp3"
    ) as stream:
        list(stream)
    assert said(telemetry) == (None, [answer("Hello.", reason=None)])


def test_tokens_are_estimated_only_of_what_is_billed_by_them(
    monkeypatch: pytest.MonkeyPatch, capture: Any, stub: SmallStub, wire: Any
) -> None:
    monkeypatch.setenv("TOLLSPAN_ESTIMATE_USAGE", "true")
    telemetry = capture("openai")
    client = stainless("openai", "OpenAI")(stub.json({"text": "Hello."}).json(wire.response()).json(written("Hi.")).url)
    client.audio.transcriptions.create(model="whisper-1", file=("a.wav", b"RIFF"))
    client.responses.retrieve("resp_7")
    client.completions.create(model="m", prompt="hello")
    estimated = [span.attributes.get(names.USAGE_ESTIMATED) for span in telemetry.spans()]
    assert estimated == [None, None, True]


# -- Mistral -----------------------------------------------------------------------------------------------------------

SMALL = "mistral-small-latest"


def test_mistrals_own_parts(capture: Any, stub: SmallStub) -> None:
    telemetry = capture("mistralai")
    content = [
        {"type": "text", "text": "What is it?"},
        {"type": "image_url", "image_url": "https://example.org/a.png"},
        {"type": "document_url", "document_url": "https://example.org/a.pdf"},
        {"type": "input_audio", "input_audio": "QUJD"},
        {"type": "file", "file_id": "file-7"},
    ]
    thinking = {"type": "thinking", "thinking": [{"type": "text", "text": "Hm."}]}
    message = {"role": "assistant", "content": [thinking, {"type": "text", "text": "A cat."}]}
    stub.json(mistral_completion(choices=[{"index": 0, "message": message, "finish_reason": "length"}]))
    mistral_client(stub.url).chat.complete(model=SMALL, messages=[{"role": "user", "content": content}], tools=[TOOL])
    assert check(telemetry.attributes()) == {
        names.INPUT_MESSAGES: [
            user(
                "What is it?",
                {"type": "uri", "modality": "image", "uri": "https://example.org/a.png"},
                {"type": "uri", "modality": "document", "uri": "https://example.org/a.pdf"},
                {"type": "blob", "modality": "audio", "mime_type": None, "content": "QUJD"},
                {"type": "file", "modality": "document", "file_id": "file-7"},
            )
        ],
        names.OUTPUT_MESSAGES: [answer(thought("Hm."), "A cat.", reason="length")],
        names.TOOL_DEFINITIONS: [TOLD_TOOL],
    }


def mistral_stream(*deltas: dict[str, Any]) -> list[bytes]:
    whole = {"id": "cmpl-7", "object": "chat.completion.chunk", "created": 1, "model": SMALL}
    return server_sent([{**whole, "choices": [{"index": 0, "delta": d, "finish_reason": None}]} for d in deltas])


def test_mistrals_thoughts_and_calls_streamed(capture: Any, stub: SmallStub) -> None:
    telemetry = capture("mistralai")
    thinking = [{"content": [{"type": "thinking", "thinking": [{"type": "text", "text": t}]}]} for t in ("H", "m.")]
    functions = [{"id": f"c{city}", "function": {"name": "weather", "arguments": {"city": city}}} for city in "AB"]
    deltas = [*thinking, {"content": "Wait."}, {"content": "", "tool_calls": functions}]
    client = mistral_client(stub.stream(mistral_stream(*deltas), SSE).url)
    list(client.chat.stream(model=SMALL, messages=HELLO))
    made = answer(thought("Hm."), "Wait.", called("cA", city="A"), called("cB", city="B"), reason=None)
    assert said(telemetry) == ([ASKED], [made])


def test_fill_in_the_middle(capture: Any, stub: SmallStub) -> None:
    telemetry = capture("mistralai")
    mistral_client(stub.json(mistral_completion()).url).fim.complete(model=SMALL, prompt="hello", suffix="end")
    assert said(telemetry) == ([user("hello", {"type": "suffix", "content": "end"})], [answer("Hello.")])


def test_an_agent(capture: Any, stub: SmallStub) -> None:
    telemetry = capture("mistralai")
    mistral_client(stub.json(mistral_completion()).url).agents.complete(agent_id="ag", messages=HELLO)
    assert said(telemetry) == ([ASKED], [answer("Hello.")])


def executed(arguments: Any) -> dict[str, Any]:
    call = {"type": "web_search", "arguments": arguments}
    return {"type": "server_tool_call", "id": "ex_1", "name": "web_search", "server_tool_call": call}


def test_a_conversation(capture: Any, stub: SmallStub) -> None:
    telemetry = capture("mistralai")
    usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
    outputs = [
        {"type": "tool.execution", "id": "ex_1", "name": "web_search", "arguments": '{"query": "a"}'},
        {"type": "message.output", "content": [{"type": "text", "text": "Hello."}], "role": "assistant"},
        {"type": "function.call", "tool_call_id": "call_1", "name": "weather", "arguments": '{"city": "Bern"}'},
    ]
    stub.json({"object": "conversation.response", "conversation_id": "c-7", "outputs": outputs, "usage": usage})
    entries = [
        {"type": "message.input", "role": "user", "content": "hello"},
        {"type": "function.result", "tool_call_id": "call_1", "result": "Rain."},
    ]
    mistral_client(stub.url).beta.conversations.start(
        model=SMALL, inputs=entries, instructions="Be brief.", tools=[TOOL, {"type": "web_search"}]
    )
    assert check(telemetry.attributes()) == {
        names.SYSTEM_INSTRUCTIONS: [text("Be brief.")],
        names.INPUT_MESSAGES: [ASKED, gave("Rain.")],
        names.OUTPUT_MESSAGES: [answer(executed({"query": "a"}), "Hello.", BERN, reason=None)],
        names.TOOL_DEFINITIONS: [TOLD_TOOL, {"type": "web_search", "name": "web_search"}],
    }


def test_a_conversation_streamed(capture: Any, stub: SmallStub) -> None:
    telemetry = capture("mistralai")
    message = {"type": "message.output.delta", "id": "m", "role": "assistant", "output_index": 1}
    function = {"type": "function.call.delta", "id": "f", "name": "weather", "tool_call_id": "call_1"}
    events = [
        {"type": "conversation.response.started", "conversation_id": "c-7"},
        {"type": "tool.execution.started", "id": "ex_1", "name": "web_search", "arguments": "", "output_index": 0},
        {"type": "tool.execution.delta", "id": "ex_1", "name": "web_search", "arguments": "{}", "output_index": 0},
        {**message, "content": "Hel"},
        {**message, "content": {"type": "text", "text": "lo."}},
        {**function, "output_index": 2, "arguments": '{"city": '},
        {**function, "output_index": 2, "arguments": '"Bern"}'},
    ]
    client = mistral_client(stub.stream(server_sent(events, done=False, named="type"), SSE).url)
    list(client.beta.conversations.start_stream(model=SMALL, inputs="hello"))
    assert said(telemetry) == ([ASKED], [answer(executed({}), "Hello.", BERN, reason=None)])


# -- Cohere ------------------------------------------------------------------------------------------------------------

COMMAND = "command-a-03-2025"


def test_the_second_api_of_cohere(capture: Any, stub: SmallStub) -> None:
    telemetry = capture("cohere")
    message = {"role": "assistant", "tool_plan": "I look.", "tool_calls": [CALL]}
    stub.json(cohere_chat(message=message, finish_reason="TOOL_CALL"))
    document = {"type": "document", "document": {"id": "d", "data": {"text": "Rain."}}}
    asked = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "hello"}]},
        {"role": "assistant", "tool_plan": "Hm.", "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "call_1", "content": [document]},
    ]
    cohere_client(stub.url).chat(model=COMMAND, messages=asked, tools=[TOOL], documents=["Known."])
    assert check(telemetry.attributes()) == {
        names.INPUT_MESSAGES: [
            {"role": "system", "parts": [text("Be brief.")]},
            ASKED,
            answer(thought("Hm."), BERN, reason=None),
            gave([{"type": "document", "document": document["document"]}]),
            user({"type": "document", "document": "Known."}),
        ],
        names.OUTPUT_MESSAGES: [answer(thought("I look."), BERN, reason="tool_call")],
        names.TOOL_DEFINITIONS: [TOLD_TOOL],
    }


async def test_the_second_api_of_cohere_streamed(capture: Any, stub: SmallStub) -> None:
    telemetry = capture("cohere")

    def part(kind: str, index: int, **message: Any) -> dict[str, Any]:
        return {"type": kind, "index": index, "delta": {"message": message}}

    start = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": ""}}
    events = [
        {"type": "message-start", "id": "co-7", "delta": {"message": {"role": "assistant"}}},
        {"type": "tool-plan-delta", "delta": {"message": {"tool_plan": "I look."}}},
        part("content-start", 0, content={"type": "thinking", "thinking": ""}),
        part("content-delta", 0, content={"thinking": "Hm."}),
        part("content-start", 1, content={"type": "text", "text": ""}),
        part("content-delta", 1, content={"text": "Wait."}),
        part("tool-call-start", 0, tool_calls=start),
        part("tool-call-delta", 0, tool_calls={"function": {"arguments": '{"city": '}}),
        part("tool-call-delta", 0, tool_calls={"function": {"arguments": '"Bern"}'}}),
        {"type": "message-end", "delta": {"finish_reason": "TOOL_CALL"}},
    ]
    client = cohere_async(stub.stream(server_sent(events, done=False, named="type"), SSE).url)
    async for _ in client.chat_stream(model=COMMAND, messages=HELLO):
        pass
    made = answer(thought("I look."), thought("Hm."), "Wait.", BERN, reason="tool_call")
    assert said(telemetry) == ([ASKED], [made])


def first(stub: SmallStub) -> Any:
    import cohere

    return cohere.Client(api_key="none", base_url=stub.url)


FIRST_CALL = {"name": "weather", "parameters": {"city": "Bern"}}
TALK: dict[str, Any] = {
    "model": COMMAND,
    "message": "hello",
    "preamble": "Be brief.",
    "chat_history": [{"role": "USER", "message": "Before."}, {"role": "CHATBOT", "message": "Yes."}],
}
TALKED = {
    names.SYSTEM_INSTRUCTIONS: [text("Be brief.")],
    names.INPUT_MESSAGES: [user("Before."), answer("Yes.", reason=None), ASKED],
}
TALK_ANSWER = {"text": "Hello.", "generation_id": "g", "finish_reason": "COMPLETE"}


def test_the_first_api_of_cohere(capture: Any, stub: SmallStub) -> None:
    telemetry = capture("cohere")
    first(stub.json({**TALK_ANSWER, "tool_calls": [FIRST_CALL]})).chat(
        **TALK,
        tools=[{"name": "weather", "description": "Tells it."}],
        tool_results=[{"call": FIRST_CALL, "outputs": [{"rain": True}]}],
    )
    *before, last = TALKED[names.INPUT_MESSAGES]
    assert check(telemetry.attributes()) == {
        **TALKED,
        names.INPUT_MESSAGES: [*before, gave([{"rain": True}], None), last],
        names.OUTPUT_MESSAGES: [answer("Hello.", called(None, city="Bern"))],
        names.TOOL_DEFINITIONS: [{"type": "function", "name": "weather", "description": "Tells it."}],
    }


@pytest.mark.parametrize("whole", [True, False])
def test_the_first_api_of_cohere_streamed(capture: Any, stub: SmallStub, whole: bool) -> None:
    telemetry = capture("cohere")
    pieces = [{"event_type": "text-generation", "text": piece, "is_finished": False} for piece in ("Hel", "lo.")]
    end = {"event_type": "stream-end", "finish_reason": "COMPLETE", "response": TALK_ANSWER, "is_finished": True}
    stub.stream(lines([*pieces, end] if whole else pieces), "application/stream+json")
    list(first(stub).chat_stream(**TALK))
    assert check(telemetry.attributes()) == {
        **TALKED,
        names.OUTPUT_MESSAGES: [answer("Hello.", reason="stop" if whole else None)],
    }


def test_generations_and_summaries_of_cohere(capture: Any, stub: SmallStub) -> None:
    telemetry = capture("cohere")
    texts = [{"id": str(n), "text": text, "finish_reason": "MAX_TOKENS"} for n, text in enumerate(("Hello.", "Hi."))]
    stub.json({"id": "g-7", "prompt": "hello", "generations": texts}).json({"id": "s-7", "summary": "Hello."})
    client = first(stub)
    client.generate(prompt="hello")
    assert said(telemetry) == ([ASKED], [answer("Hello.", reason="length"), answer("Hi.", reason="length")])
    telemetry.exporter.clear()
    client.summarize(text="hello")
    assert said(telemetry) == ([ASKED], [answer("Hello.", reason=None)])


def test_what_is_not_said_has_no_content(capture: Any, stub: SmallStub) -> None:
    telemetry = capture("cohere")
    stub.json({"id": "r-7", "results": [{"index": 0, "relevance_score": 0.9}]})
    cohere_client(stub.url).rerank(model="rerank-v3.5", query="q", documents=["a"])
    assert check(telemetry.attributes()) == {}


# -- Ollama ------------------------------------------------------------------------------------------------------------

LLAMA = "llama3.2"
OLLAMA_CALL = {"function": {"name": "weather", "arguments": {"city": "Bern"}}}


def thoughts() -> list[dict[str, Any]]:
    """What an answer of the stub has thought, where this version of the client tells it."""
    import ollama

    return [thought("Hm.")] if "thinking" in ollama.Message.model_fields else []


def weather(city: str) -> str:
    """Tells it."""
    return city


def test_a_chat_with_tools_and_pictures(capture: Any, stub: SmallStub) -> None:
    telemetry = capture("ollama")
    part = ollama_part("", True, **OLLAMA_LAST)
    part["message"] |= {"thinking": "Hm.", "tool_calls": [OLLAMA_CALL]}
    asked = [
        {"role": "user", "content": "hello", "images": [b"ABC"]},
        {"role": "assistant", "content": "", "tool_calls": [OLLAMA_CALL]},
        {"role": "tool", "content": "Rain.", "tool_name": "weather"},
    ]
    ollama_client(stub.json(part).url).chat(LLAMA, asked, tools=[weather])
    found = check(telemetry.attributes())
    assert found[names.INPUT_MESSAGES] == [
        user("hello", {"type": "blob", "modality": "image", "mime_type": None, "content": "QUJD"}),
        answer(called(None, city="Bern"), reason=None),
        gave("Rain.", None),
    ]
    assert found[names.OUTPUT_MESSAGES] == [answer(*thoughts(), called(None, city="Bern"))]
    (tool,) = found[names.TOOL_DEFINITIONS]
    assert (tool["name"], tool["description"], tool["parameters"]["required"]) == ("weather", "Tells it.", ["city"])


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_generation(capture: Any, stub: SmallStub, streamed: bool) -> None:
    telemetry = capture("ollama")
    last = {"model": LLAMA, "response": "Hello.", "thinking": "Hm.", "done": True, **OLLAMA_LAST}
    if streamed:
        stub.stream(lines([{"model": LLAMA, "response": "", "thinking": "Hm."}, {**last, "thinking": None}]), NDJSON)
    else:
        stub.json(last)
    client = ollama_async(stub.url)
    made = await client.generate(model=LLAMA, prompt="hello", system="Be brief.", images=["QUJD"], stream=streamed)
    if streamed:
        async for _ in made:
            pass
    assert check(telemetry.attributes()) == {
        names.SYSTEM_INSTRUCTIONS: [text("Be brief.")],
        names.INPUT_MESSAGES: [
            user("hello", {"type": "blob", "modality": "image", "mime_type": None, "content": "QUJD"})
        ],
        names.OUTPUT_MESSAGES: [answer(*thoughts(), "Hello.")],
    }


def test_embeddings_of_ollama_say_nothing(capture: Any, stub: SmallStub) -> None:
    telemetry = capture("ollama")
    ollama_client(stub.json({"model": LLAMA, "embeddings": [[0.1]]}).url).embed(LLAMA, "hello")
    assert check(telemetry.attributes()) == {}


# -- Hugging Face ------------------------------------------------------------------------------------------------------

LLAMA_3 = "meta-llama/Llama-3.3-70B-Instruct"


def hub(stub: SmallStub, name: str = "InferenceClient") -> Any:
    import huggingface_hub

    return getattr(huggingface_hub, name)(base_url=stub.url, token="none")


def test_a_chat_through_the_hub(capture: Any, stub: SmallStub) -> None:
    telemetry = capture("huggingface_hub")
    message = {"role": "assistant", "content": None, "tool_calls": [CALL]}
    stub.json(openai_completion(LLAMA_3, choices=[{"index": 0, "message": message, "finish_reason": "tool_calls"}]))
    hub(stub).chat_completion(HELLO, tools=[TOOL])
    assert check(telemetry.attributes()) == {
        names.INPUT_MESSAGES: [ASKED],
        names.OUTPUT_MESSAGES: [answer(BERN, reason="tool_call")],
        names.TOOL_DEFINITIONS: [TOLD_TOOL],
    }


def test_a_stream_through_the_hub(capture: Any, stub: SmallStub) -> None:
    telemetry = capture("huggingface_hub")
    client = hub(stub.stream(server_sent(openai_chunks(LLAMA_3)), SSE))
    list(client.chat_completion(HELLO, stream=True))
    assert said(telemetry) == ([ASKED], [answer("Hello.")])


async def test_a_stream_through_the_hub_left_early(capture: Any, stub: SmallStub) -> None:
    telemetry = capture("huggingface_hub")
    client = hub(stub.stream(server_sent(openai_chunks(LLAMA_3)), SSE), "AsyncInferenceClient")
    stream = await client.chat_completion(HELLO, stream=True)
    await anext(stream)
    await stream.aclose()
    assert said(telemetry) == ([ASKED], [answer("Hel", reason=None)])


def generator(stub: SmallStub) -> Any:
    import huggingface_hub

    return huggingface_hub.InferenceClient(model=stub.url, token="none")


def test_generated_text(capture: Any, stub: SmallStub) -> None:
    telemetry = capture("huggingface_hub")
    details = {"finish_reason": "length", "generated_tokens": 2, "tokens": []}
    generator(stub.json([{"generated_text": "Hello.", "details": details}])).text_generation("hello")
    assert said(telemetry) == ([ASKED], [answer("Hello.", reason="length")])


def test_generated_text_streamed(capture: Any, stub: SmallStub) -> None:
    telemetry = capture("huggingface_hub")

    def piece(text: str, special: bool = False, **more: Any) -> dict[str, Any]:
        return {"index": 1, "token": {"id": 1, "text": text, "logprob": -1.0, "special": special}, **more}

    end = {"finish_reason": "eos_token", "generated_tokens": 2, "input_length": 1, "seed": None}
    pieces = [piece("Hel"), piece("lo."), piece("</s>", True, generated_text="Hello.", details=end)]
    client = generator(stub.stream(server_sent(pieces, done=False), SSE))
    list(client.text_generation("hello", stream=True))
    assert said(telemetry) == ([ASKED], [answer("Hello.", reason="stop")])


def test_other_tasks_say_nothing(capture: Any, stub: SmallStub) -> None:
    telemetry = capture("huggingface_hub")
    generator(stub.json([{"label": "good", "score": 0.9}])).text_classification("hello")
    assert check(telemetry.attributes()) == {}


# -- LiteLLM -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def lite(monkeypatch: pytest.MonkeyPatch, stub: SmallStub) -> Any:
    """LiteLLM, and what makes it ask the stub."""
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    litellm = pytest.importorskip("litellm")
    return litellm, {"api_base": stub.url, "api_key": "none"}


def test_a_completion_of_litellms(capture: Any, stub: SmallStub, lite: Any) -> None:
    telemetry, (litellm, there) = capture("litellm"), lite
    message = {"role": "assistant", "content": "Wait.", "reasoning_content": "Hm.", "tool_calls": [CALL]}
    stub.json(openai_completion("m", choices=[{"index": 0, "message": message, "finish_reason": "tool_calls"}]))
    litellm.completion("openai/gpt-5-mini", HELLO, tools=[TOOL], **there)
    assert check(telemetry.attributes()) == {
        names.INPUT_MESSAGES: [ASKED],
        names.OUTPUT_MESSAGES: [answer(thought("Hm."), "Wait.", BERN, reason="tool_call")],
        names.TOOL_DEFINITIONS: [TOLD_TOOL],
    }


async def test_a_stream_of_litellms(capture: Any, stub: SmallStub, lite: Any) -> None:
    telemetry, (litellm, there) = capture("litellm"), lite
    stub.stream(server_sent(openai_chunks("m")), SSE)
    stream = await litellm.acompletion(model="openai/gpt-5-mini", messages=HELLO, stream=True, **there)
    async for _ in stream:
        pass
    assert said(telemetry) == ([ASKED], [answer("Hello.")])


def test_a_text_completion_of_litellms(capture: Any, stub: SmallStub, lite: Any) -> None:
    telemetry, (litellm, there) = capture("litellm"), lite
    stub.json(written("Hello."))
    litellm.text_completion("hello", "gpt-3.5-turbo-instruct", **there)
    assert said(telemetry) == ([ASKED], [answer("Hello.")])


def test_a_response_of_litellms(capture: Any, stub: SmallStub, lite: Any, wire: Any) -> None:
    telemetry, (litellm, there) = capture("litellm"), lite
    stub.json(wire.response())
    litellm.responses("hello", "openai/gpt-5-mini", **there)
    assert said(telemetry) == ([ASKED], [answer("Hello.", reason="completed")])


def test_a_streamed_response_of_litellms(capture: Any, stub: SmallStub, lite: Any, wire: Any) -> None:
    telemetry, (litellm, there) = capture("litellm"), lite
    stub.stream(server_sent(wire.response_events(), done=False, named="type"), SSE)
    list(litellm.responses("hello", "openai/gpt-5-mini", stream=True, **there))
    assert said(telemetry) == ([ASKED], [answer("Hello.", reason="completed")])


@pytest.mark.parametrize("streamed", [False, True])
async def test_anthropics_messages_through_litellm(capture: Any, stub: SmallStub, lite: Any, streamed: bool) -> None:
    telemetry, (litellm, there) = capture("litellm"), lite
    whole = {"id": "m", "type": "message", "role": "assistant", "model": "m", "usage": {"input_tokens": 1}}
    if streamed:
        for needed in ("apscheduler", "backoff", "fastapi", "redis"):  # LiteLLM streams these with its proxy's extra
            pytest.importorskip(needed)
        begun = {**whole, "content": [], "stop_reason": None}
        pieces = [{"type": "text_delta", "text": piece} for piece in ("Hel", "lo.")]
        events: list[dict[str, Any]] = [
            {"type": "message_start", "message": begun},
            {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
            *({"type": "content_block_delta", "index": 0, "delta": piece} for piece in pieces),
            {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 2}},
            {"type": "message_stop"},
        ]
        body = b"".join(server_sent(events, done=False, named="type"))
        stub.stream([body[:100], body[100:]], SSE)
    else:
        stub.json({**whole, "content": [{"type": "text", "text": "Hello."}], "stop_reason": "end_turn"})
    ask: dict[str, Any] = {"model": "anthropic/m", "messages": HELLO, "max_tokens": 9, "stream": streamed}
    made = await litellm.anthropic_messages(**ask, **there)
    if streamed:
        async for _ in made:
            pass
    assert said(telemetry) == ([ASKED], [answer("Hello.")])


@pytest.mark.parametrize("streamed", [False, True])
def test_googles_content_through_litellm(capture: Any, stub: SmallStub, lite: Any, streamed: bool) -> None:
    telemetry, (_, there) = capture("litellm"), lite
    content = {"role": "model", "parts": [{"text": "Hello."}]}
    body = {"candidates": [{"content": content, "finishReason": "STOP"}], "modelVersion": "m"}
    ask: dict[str, Any] = {
        "model": "gemini/m",
        "contents": [{"role": "user", "parts": [{"text": "hello"}]}],
        "config": {"systemInstruction": {"parts": [{"text": "Be brief."}]}},
    }
    module = sys.modules["litellm.google_genai.main"]
    if streamed:
        stub.stream(server_sent([body], done=False), SSE)
        list(module.generate_content_stream(**ask, **there))
    else:
        stub.json(body)
        module.generate_content(**ask, **there)
    assert check(telemetry.attributes()) == {
        names.SYSTEM_INSTRUCTIONS: [text("Be brief.")],
        names.INPUT_MESSAGES: [ASKED],
        names.OUTPUT_MESSAGES: [answer("Hello.")],
    }


# -- OpenAI's realtime connections -------------------------------------------------------------------------------------


@pytest.fixture
def connected() -> Iterator[Callable[[list[dict[str, Any]]], str]]:
    """Starts services that send these events to whoever connects and then hang up; gives their base URL."""
    server = pytest.importorskip("websockets.sync.server")
    servers = []

    def serve(events: list[dict[str, Any]]) -> str:
        made = server.serve(lambda connection: [connection.send(json.dumps(event)) for event in events], "127.0.0.1", 0)
        servers.append(made)
        threading.Thread(target=made.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{made.socket.getsockname()[1]}/v1"

    yield serve
    for made in servers:
        made.shutdown()


def test_turns_of_a_realtime_connection(capture: Any, connected: Any) -> None:
    telemetry = capture("openai")
    session = {"id": "s", "type": "realtime", "model": "gpt-realtime", "instructions": "Be brief."}
    tool = {"type": "function", **WEATHER}
    heard = {"id": "i1", "type": "message", "role": "user", "content": [{"type": "input_audio", "transcript": None}]}
    typed = {"id": "i2", "type": "message", "role": "user", "content": [{"type": "input_text", "text": "hello"}]}
    gives = {"id": "i4", "type": "function_call_output", "call_id": "call_1", "output": "Rain."}
    asks = {
        "id": "i3",
        "type": "function_call",
        "call_id": "call_1",
        "name": "weather",
        "arguments": '{"city": "Bern"}',
    }
    spoken = {"type": "output_audio", "transcript": "Hello."}
    speaks = {"id": "i5", "type": "message", "role": "assistant", "content": [spoken]}
    transcribed = {"item_id": "i1", "content_index": 0, "transcript": "Well."}

    def done(identifier: str, *items: Any) -> dict[str, Any]:
        return {"type": "response.done", "response": {"id": identifier, "status": "completed", "output": list(items)}}

    events = [
        {"type": "session.created", "session": {**session, "tools": [tool]}},
        {"type": "conversation.item.added", "item": heard},
        {"type": "conversation.item.input_audio_transcription.completed", **transcribed},
        {"type": "conversation.item.added", "item": typed},
        {"type": "conversation.item.added", "item": asks},
        done("r1", asks),
        {"type": "conversation.item.created", "item": gives},
        {"type": "conversation.item.added", "item": {**speaks, "content": []}},
        done("r2", speaks),
    ]
    import openai

    client = openai.OpenAI(api_key="none", base_url=connected([{**event, "event_id": "e"} for event in events]))
    with client.realtime.connect(model="gpt-realtime") as connection:
        assert len(list(connection)) == len(events)
    first, second = [check(span.attributes) for span in telemetry.spans()]
    begun = {names.SYSTEM_INSTRUCTIONS: [text("Be brief.")], names.TOOL_DEFINITIONS: [TOLD_TOOL]}
    assert first == {
        **begun,
        names.INPUT_MESSAGES: [user("Well."), ASKED],
        names.OUTPUT_MESSAGES: [answer(BERN, reason="completed")],
    }
    assert second == {
        **begun,
        names.INPUT_MESSAGES: [gave("Rain.")],
        names.OUTPUT_MESSAGES: [answer("Hello.", reason="completed")],
    }
