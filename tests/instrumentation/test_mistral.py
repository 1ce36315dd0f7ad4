"""The mistralai client, instrumented: what each kind of call counts and costs, and the client's own tracing."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator
from decimal import Decimal
from importlib.metadata import version
from typing import Any

import pydantic
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from tollspan.instrumentation.mistral import METHODS, MistralInstrumentor
from tollspan.pricing import attributes as names

from .openai_bill import bill, ledger
from .small_stubs import (
    HELLO,
    MISTRAL,
    MISTRAL_USAGE,
    SSE,
    SmallStub,
    mistral_chunks,
    mistral_client,
    mistral_completion,
    mistral_page,
    server_sent,
)

pytest.importorskip("mistralai")
OLD = version("mistralai").startswith("1.")

SMALL = "mistral-small-latest"
TEXT: dict[str, Any] = {"tokens.input.uncached": 1000, "tokens.output": 100}
SMALL_COST = Decimal("0.00021")  # 1000 at 0.15 and 100 at 0.60 for a million


@pytest.fixture
def stub() -> Iterator[SmallStub]:
    made = SmallStub()
    yield made
    made.close()


@pytest.fixture
def spans(telemetry: Any) -> Iterator[Any]:
    MistralInstrumentor().instrument(tracer_provider=telemetry.provider)
    yield telemetry
    MistralInstrumentor().uninstrument()


EMBEDDED = {
    "id": "emb-7",
    "object": "list",
    "model": "mistral-embed",
    "data": [{"object": "embedding", "embedding": [0.1], "index": 0}],
    "usage": {"prompt_tokens": 1000, "completion_tokens": 0, "total_tokens": 1000},
}
READ = {
    "pages": [mistral_page(0), mistral_page(1), mistral_page(2)],
    "model": "mistral-ocr-latest",
    "usage_info": {"pages_processed": 3, "doc_size_bytes": 4096},
}
DOCUMENT = {"type": "document_url", "document_url": "https://example.org/a.pdf"}
HEARD_USAGE = {"prompt_audio_seconds": 60, "prompt_tokens": 4, "completion_tokens": 100, "total_tokens": 479}
HEARD: dict[str, Any] = {
    "model": "voxtral-mini-latest",
    "text": "Hello.",
    "language": None,
    "segments": [],
    "usage": HEARD_USAGE,
}
JUDGED = {"id": "mod-7", "model": "mistral-moderation-latest", "results": []}
TALKED = {
    "object": "conversation.response",
    "conversation_id": "conv-7",
    "outputs": [],
    "usage": {**MISTRAL_USAGE, "connectors": {"web_search": 2}},
}

KINDS: dict[str, tuple[str, dict[str, Any], dict[str, Any], str, dict[str, Any]]] = {
    "chat": ("chat.complete", {"model": SMALL, "messages": HELLO}, mistral_completion(), "chat", TEXT),
    "fim": ("fim.complete", {"model": SMALL, "prompt": "def"}, mistral_completion(), "text_completion", TEXT),
    "agents": ("agents.complete", {"agent_id": "ag", "messages": HELLO}, mistral_completion(), "chat", TEXT),
    "embeddings": (
        "embeddings.create",
        {"model": "mistral-embed", "inputs": ["hello"]},
        EMBEDDED,
        "embeddings",
        {"tokens.input.uncached": 1000},
    ),
    "ocr": (
        "ocr.process",
        {"model": "mistral-ocr-latest", "document": DOCUMENT},
        READ,
        "generate_content",
        {"pages": 3},
    ),
    "annotated ocr": (
        "ocr.process",
        {
            "model": "mistral-ocr-latest",
            "document": DOCUMENT,
            "document_annotation_format": {"type": "json_object"},
        },
        READ,
        "generate_content",
        {"pages.annotated": 3},
    ),
    "transcription": (
        "audio.transcriptions.complete",
        {"model": "voxtral-mini-latest", "file_url": "https://example.org/a.mp3"},
        HEARD,
        "transcription",
        {"audio.seconds": 60, "tokens.input.uncached": 4, "tokens.output": 100},
    ),
    "conversation": (
        "beta.conversations.start",
        {"model": SMALL, "inputs": "hello", "completion_args": {"temperature": 0.5}},
        TALKED,
        "chat",
        {**TEXT, "web_searches": 2},
    ),
}


def call_of(client: Any, path: str, suffix: str = "") -> Any:
    found = client
    for part in (path + suffix).split("."):
        found = getattr(found, part)
    return found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("suffix", ["", "_async"])
async def test_every_kind_of_call_is_metered_as_its_usage_says(
    spans: Any, stub: SmallStub, kind: str, suffix: str
) -> None:
    path, asked, body, operation, meters = KINDS[kind]
    client = mistral_client(stub.json(body).url)
    result = call_of(client, path, suffix)(**asked)
    if suffix:
        result = await result
    assert result is not None
    attributes = spans.attributes()
    assert attributes[names.OPERATION_NAME] == operation
    (row,) = ledger(spans.spans())
    assert row["meters"] == meters


@pytest.mark.parametrize(
    ("kind", "cost"),
    [
        ("chat", SMALL_COST),
        ("embeddings", Decimal("0.0001")),  # 1000 at 0.10 for a million
        ("ocr", Decimal("0.012")),  # 3 at 4 for a thousand
        ("annotated ocr", Decimal("0.015")),  # 3 at 5 for a thousand
    ],
)
def test_calls_cost_what_the_list_says(spans: Any, stub: SmallStub, kind: str, cost: Decimal) -> None:
    path, asked, body, _, meters = KINDS[kind]
    call_of(mistral_client(stub.json(body).url), path)(**asked)
    assert bill(spans.spans()) == (meters, cost, "priced")


def test_moderation_and_classification_tell_no_usage_and_get_a_span(spans: Any, stub: SmallStub) -> None:
    client = mistral_client(stub.json(JUDGED).url)
    client.classifiers.moderate(model="mistral-moderation-latest", inputs=["a"])
    client.classifiers.moderate_chat(model="mistral-moderation-latest", inputs=HELLO)
    client.classifiers.classify(model="ft:m", inputs=["a"])
    assert [span.attributes[names.OPERATION_NAME] for span in spans.spans()] == [
        "moderation",
        "moderation",
        "classification",
    ]
    assert not [key for span in spans.spans() for key in span.attributes if "usage" in key]


STREAMS: dict[str, tuple[str, dict[str, Any], list[bytes], dict[str, Any]]] = {
    "chat": ("chat.stream", {"model": SMALL, "messages": HELLO}, server_sent(mistral_chunks()), TEXT),
    "fim": ("fim.stream", {"model": SMALL, "prompt": "def"}, server_sent(mistral_chunks()), TEXT),
    "agents": ("agents.stream", {"agent_id": "ag", "messages": HELLO}, server_sent(mistral_chunks()), TEXT),
    "transcription": (
        "audio.transcriptions.stream",
        {"model": "voxtral-mini-latest", "file_url": "https://example.org/a.mp3"},
        server_sent(
            [
                {"type": "transcription.text.delta", "text": "Hello."},
                {"type": "transcription.done", **HEARD},
            ],
            done=False,
            named="type",
        ),
        {"audio.seconds": 60, "tokens.input.uncached": 4, "tokens.output": 100},
    ),
    "conversation": (
        "beta.conversations.start_stream",
        {"model": SMALL, "inputs": "hello"},
        server_sent(
            [
                {"type": "conversation.response.started", "conversation_id": "conv-7"},
                {"type": "conversation.response.done", "usage": TALKED["usage"]},
            ],
            done=False,
            named="type",
        ),
        {**TEXT, "web_searches": 2},
    ),
}


@pytest.mark.parametrize("kind", STREAMS)
@pytest.mark.parametrize("suffix", ["", "_async"])
async def test_every_kind_of_stream_is_metered_as_its_usage_says(
    spans: Any, stub: SmallStub, kind: str, suffix: str
) -> None:
    path, asked, pieces, meters = STREAMS[kind]
    made = call_of(mistral_client(stub.stream(pieces, SSE).url), path, suffix)(**asked)
    if suffix:
        async with await made as stream:
            assert [event async for event in stream]
    else:
        with made as stream:
            assert list(stream)
    (row,) = ledger(spans.spans())
    assert row["meters"] == meters
    assert names.STREAM_ABANDONED not in spans.attributes()
    if kind == "conversation":
        assert spans.attributes()[names.CONVERSATION_ID] == "conv-7"


def test_a_stream_left_at_its_last_event_is_complete(spans: Any, stub: SmallStub) -> None:
    client = mistral_client(stub.stream(server_sent(mistral_chunks()), SSE).url)
    with client.chat.stream(model=SMALL, messages=HELLO) as stream:
        for event in stream:
            if event.data.usage is not None:
                break
    assert names.STREAM_ABANDONED not in spans.attributes()
    assert bill(spans.spans()) == (TEXT, SMALL_COST, "priced")


class Greeting(pydantic.BaseModel):
    word: str


def parsed_body(content: str = '{"word": "hello"}') -> dict[str, Any]:
    message = {"role": "assistant", "content": content}
    return mistral_completion(choices=[{"index": 0, "message": message, "finish_reason": "stop"}])


@pytest.mark.parametrize("suffix", ["", "_async"])
async def test_parsed_calls_give_one_span(spans: Any, stub: SmallStub, suffix: str) -> None:
    made = call_of(mistral_client(stub.json(parsed_body()).url), "chat.parse", suffix)(
        response_format=Greeting, model=SMALL, messages=HELLO
    )
    result = await made if suffix else made
    assert result.choices[0].message.parsed == Greeting(word="hello")
    assert bill(spans.spans()) == (TEXT, SMALL_COST, "priced")


def test_parsed_streams_give_one_span(spans: Any, stub: SmallStub) -> None:
    client = mistral_client(stub.stream(server_sent(mistral_chunks()), SSE).url)
    list(client.chat.parse_stream(response_format=Greeting, model=SMALL, messages=HELLO))
    assert bill(spans.spans()) == (TEXT, SMALL_COST, "priced")


def test_what_was_billed_is_counted_though_the_client_could_not_parse_it(spans: Any, stub: SmallStub) -> None:
    with pytest.raises(ValueError, match=r".+"):
        mistral_client(stub.json(parsed_body("no json")).url).chat.parse(
            response_format=Greeting, model=SMALL, messages=HELLO
        )
    assert bill(spans.spans()) == (TEXT, SMALL_COST, "priced")


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        # The client's model has 0 for a count that was not given.
        ({}, {}),
        ({"prompt_tokens": 5}, {names.USAGE_INPUT_TOKENS: 5}),
        (
            {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0},
            {names.USAGE_INPUT_TOKENS: 0, names.USAGE_OUTPUT_TOKENS: 0},
        ),
        (
            {**MISTRAL_USAGE, "prompt_tokens_details": {"cached_tokens": 300}},
            {
                names.USAGE_INPUT_TOKENS: 1000,
                names.USAGE_CACHE_READ_TOKENS: 300,
                names.USAGE_OUTPUT_TOKENS: 100,
            },
        ),
        (
            {**MISTRAL_USAGE, "prompt_audio_seconds": 7},
            {
                names.USAGE_INPUT_TOKENS: 1000,
                names.USAGE_OUTPUT_TOKENS: 100,
                names.usage("audio.seconds"): 7.0,
            },
        ),
    ],
)
def test_a_count_is_there_exactly_when_the_provider_gave_it(
    spans: Any, stub: SmallStub, usage: Any, expected: dict[str, Any]
) -> None:
    mistral_client(stub.json(mistral_completion(usage=usage)).url).chat.complete(model=SMALL, messages=HELLO)
    assert {key: value for key, value in spans.attributes().items() if ".usage." in key} == expected


def test_the_tier_that_served_it_stands_on_the_span(spans: Any, stub: SmallStub) -> None:
    if OLD:
        pytest.skip("version 1 has no tiers")
    body = mistral_completion(usage={**MISTRAL_USAGE, "service_tier": "priority"})
    mistral_client(stub.json(body).url).chat.complete(model=SMALL, messages=HELLO, service_tier="standard_only")
    assert spans.attributes()[names.OPENAI_REQUEST_SERVICE_TIER] == "standard_only"
    assert spans.attributes()[names.OPENAI_RESPONSE_SERVICE_TIER] == "priority"


def test_request_parameters(spans: Any, stub: SmallStub) -> None:
    client = mistral_client(stub.json(mistral_completion()).url)
    client.chat.complete(model=SMALL, messages=HELLO, temperature=0.5, top_p=1, max_tokens=7)
    attributes = spans.attributes()
    assert attributes[names.REQUEST_TEMPERATURE] == 0.5
    assert attributes[names.REQUEST_TOP_P] == 1.0
    assert attributes[names.REQUEST_MAX_TOKENS] == 7


def test_the_error_of_a_conversation_that_comes_in_its_stream(spans: Any, stub: SmallStub) -> None:
    events = [{"type": "conversation.response.error", "message": "no", "code": 500}]
    client = mistral_client(stub.stream(server_sent(events, done=False, named="type"), SSE).url)
    list(client.beta.conversations.start_stream(model=SMALL, inputs="hello"))
    assert spans.only().status.status_code is StatusCode.ERROR
    assert spans.attributes()[names.ERROR_TYPE] == "500"


def test_a_call_that_fails_before_anything_is_sent_says_so(spans: Any, stub: SmallStub) -> None:
    client = mistral_client(stub.json(mistral_completion()).url)
    with pytest.raises(Exception):
        client.chat.complete(model=SMALL, messages=3)
    assert stub.requests == []
    assert spans.attributes()[names.CALL_SENT] is False


def test_a_timeout_is_the_clients_own(spans: Any, stub: SmallStub) -> None:
    with pytest.raises(Exception) as caught:
        mistral_client(stub.stall().url).chat.complete(model=SMALL, messages=HELLO, timeout_ms=100)
    assert spans.attributes()[names.ERROR_TYPE].endswith(type(caught.value).__qualname__)
    assert names.CALL_SENT not in spans.attributes()


# -- the client's own tracing ------------------------------------------------------------------------------------------


def trace_itself(client: Any, provider: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Switch the client's own tracing on; version 1 has it on wherever there is a provider."""
    try:
        from mistralai.extra.observability import configure_telemetry
    except ImportError:
        monkeypatch.setattr("opentelemetry.trace._TRACER_PROVIDER", provider)
    else:
        configure_telemetry(client, provider=provider)


def used(telemetry: Any) -> list[str]:
    return [span.name for span in telemetry.spans() if names.USAGE_OUTPUT_TOKENS in span.attributes]


@pytest.mark.parametrize("streamed", [False, True])
def test_where_the_client_traces_itself_to_the_same_place_one_span_bears_the_usage(
    spans: Any, stub: SmallStub, streamed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = mistral_client(stub.url)
    trace_itself(client, spans.provider, monkeypatch)
    if streamed:
        stub.stream(MISTRAL.pieces, SSE)
        list(MISTRAL.stream(client))
    else:
        stub.json(MISTRAL.body)
        MISTRAL.ask(client)
    assert used(spans) == [f"chat {SMALL}"]
    assert bill(spans.spans()) == (TEXT, SMALL_COST, "priced")


async def test_the_same_asynchronously(spans: Any, stub: SmallStub, monkeypatch: pytest.MonkeyPatch) -> None:
    client = mistral_client(stub.json(MISTRAL.body).url)
    trace_itself(client, spans.provider, monkeypatch)
    await MISTRAL.ask_async(client)
    assert used(spans) == [f"chat {SMALL}"]


def test_what_the_client_traces_to_another_place_stays(
    spans: Any, stub: SmallStub, monkeypatch: pytest.MonkeyPatch
) -> None:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    client = mistral_client(stub.json(MISTRAL.body).url)
    trace_itself(client, provider, monkeypatch)
    MISTRAL.ask(client)
    assert used(spans) == [f"chat {SMALL}"]
    assert len(exporter.get_finished_spans()) == 1


def test_uninstrumented_the_client_traces_itself_as_before(
    telemetry: Any, stub: SmallStub, monkeypatch: pytest.MonkeyPatch
) -> None:
    MistralInstrumentor().instrument(tracer_provider=telemetry.provider)
    MistralInstrumentor().uninstrument()
    client = mistral_client(stub.json(MISTRAL.body).url)
    trace_itself(client, telemetry.provider, monkeypatch)
    MISTRAL.ask(client)
    assert len(used(telemetry)) == 1


# -- the table ---------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(OLD, reason="version 1 has them elsewhere")
def test_every_method_is_there() -> None:
    for method in METHODS:
        module, _, path = method.target.partition(":")
        kind, name = path.split(".")
        found = getattr(importlib.import_module(f"mistralai.client.{module}"), kind)
        assert hasattr(found, name), method.target
        assert hasattr(found, name + "_async"), method.target


def test_azures_client_is_billed_by_azure(spans: Any, stub: SmallStub) -> None:
    azure = pytest.importorskip("mistralai.azure.client")
    client = azure.MistralAzure(api_key="none", server_url=stub.json(mistral_completion()).url)
    with contextlib.closing(client) if hasattr(client, "close") else contextlib.nullcontext():
        client.chat.complete(model=SMALL, messages=HELLO)
    assert spans.attributes()[names.PROVIDER_NAME] == "azure.ai.inference"
    assert spans.attributes()[names.USAGE_INPUT_TOKENS] == 1000
