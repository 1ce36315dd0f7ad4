"""The cohere client, instrumented: both APIs, plain and raw; what each kind of call counts and costs."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import pytest
from opentelemetry import trace

from tollspan.instrumentation import tag
from tollspan.instrumentation.cohere import CohereInstrumentor, Held
from tollspan.pricing import attributes as names

from .openai_bill import bill, ledger
from .small_stubs import COHERE_USAGE, HELLO, SSE, SmallStub, cohere_async, cohere_chat, cohere_client, cohere_events
from .small_stubs import server_sent as sse

cohere = pytest.importorskip("cohere")

MODEL = "command-a-03-2025"
TEXT: dict[str, Any] = {"tokens.input.uncached": 1000, "tokens.output": 100}
COST = Decimal("0.0035")  # 1000 at 2.50 and 100 at 10 for a million


@pytest.fixture
def stub() -> Iterator[SmallStub]:
    made = SmallStub()
    yield made
    made.close()


@pytest.fixture
def spans(telemetry: Any) -> Iterator[Any]:
    CohereInstrumentor().instrument(tracer_provider=telemetry.provider)
    yield telemetry
    CohereInstrumentor().uninstrument()


def first(url: str, **options: Any) -> Any:
    return cohere.Client(api_key="none", base_url=url, **options)


def first_async(url: str) -> Any:
    return cohere.AsyncClient(api_key="none", base_url=url)


def meta(**billed: float) -> dict[str, Any]:
    return {"api_version": {"version": "1"}, "billed_units": billed}


def embedded(count: int = 1, tokens: float = 1000.0) -> dict[str, Any]:
    return {
        "id": "emb-7",
        "response_type": "embeddings_floats",
        "embeddings": [[0.1]] * count,
        "texts": ["a"] * count,
        "meta": meta(input_tokens=tokens),
    }


RANKED = {"id": "r-7", "results": [{"index": 0, "relevance_score": 0.9}], "meta": meta(search_units=2.0)}
TALKED = {
    "text": "Hello.",
    "generation_id": "gen-7",
    "finish_reason": "COMPLETE",
    "meta": {**meta(input_tokens=1000.0, output_tokens=100.0), "tokens": COHERE_USAGE["tokens"]},
}
TALK_EVENTS = [
    {"event_type": "stream-start", "generation_id": "gen-7", "is_finished": False},
    {"event_type": "text-generation", "text": "Hello.", "is_finished": False},
    {"event_type": "stream-end", "finish_reason": "COMPLETE", "response": TALKED, "is_finished": True},
]
EMBEDDED_V2 = {"id": "emb-7", "embeddings": {"float": [[0.1]]}, "texts": ["a"], "meta": meta(input_tokens=1000.0)}
PARSED = {"id": "p-7", "pages": [], "meta": meta(pages=3.0)}

SECOND: dict[str, tuple[str, dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "chat": ("chat", {"model": MODEL, "messages": HELLO}, cohere_chat(), TEXT),
    "embed": (
        "embed",
        {"model": "embed-v4.0", "input_type": "search_query", "texts": ["a"], "embedding_types": ["float"]},
        EMBEDDED_V2,
        {"tokens.input.uncached": 1000},
    ),
    "rerank": (
        "rerank",
        {"model": "rerank-v3.5", "query": "q", "documents": ["a"]},
        RANKED,
        {"rerank.search_units": 2},
    ),
}
FIRST: dict[str, tuple[str, dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "chat": ("chat", {"model": MODEL, "message": "hello"}, TALKED, TEXT),
    "embed": ("embed", {"model": "embed-english-v3.0", "texts": ["a"]}, embedded(), {"tokens.input.uncached": 1000}),
    "rerank": (
        "rerank",
        {"model": "rerank-v3.5", "query": "q", "documents": ["a"]},
        RANKED,
        {"rerank.search_units": 2},
    ),
    "generate": (
        "generate",
        {"model": "command", "prompt": "hello"},
        {
            "id": "g-7",
            "prompt": "hello",
            "generations": [{"id": "g", "text": "Hello.", "finish_reason": "COMPLETE"}],
            "meta": meta(input_tokens=1000.0, output_tokens=100.0),
        },
        TEXT,
    ),
    "summarize": (
        "summarize",
        {"model": "command", "text": "hello"},
        {"id": "s-7", "summary": "h", "meta": meta(input_tokens=1000.0, output_tokens=100.0)},
        TEXT,
    ),
}


@pytest.mark.parametrize("kind", SECOND)
def test_the_second_api(spans: Any, stub: SmallStub, kind: str) -> None:
    method, asked, body, meters = SECOND[kind]
    getattr(cohere_client(stub.json(body).url), method)(**asked)
    (row,) = ledger(spans.spans())
    assert row["meters"] == meters


@pytest.mark.parametrize("kind", SECOND)
async def test_the_second_api_async(spans: Any, stub: SmallStub, kind: str) -> None:
    method, asked, body, meters = SECOND[kind]
    await getattr(cohere_async(stub.json(body).url), method)(**asked)
    (row,) = ledger(spans.spans())
    assert row["meters"] == meters


@pytest.mark.parametrize("kind", FIRST)
def test_the_first_api(spans: Any, stub: SmallStub, kind: str) -> None:
    method, asked, body, meters = FIRST[kind]
    getattr(first(stub.json(body).url), method)(**asked)
    (row,) = ledger(spans.spans())
    assert row["meters"] == meters


@pytest.mark.parametrize("kind", FIRST)
async def test_the_first_api_async(spans: Any, stub: SmallStub, kind: str) -> None:
    method, asked, body, meters = FIRST[kind]
    await getattr(first_async(stub.json(body).url), method)(**asked)
    (row,) = ledger(spans.spans())
    assert row["meters"] == meters


def test_pages_that_are_parsed(spans: Any, stub: SmallStub) -> None:
    client = cohere_client(stub.json(PARSED).url)
    if not hasattr(client, "parse"):
        pytest.skip("this version of the client does not parse")
    client.parse(model="parse-v5.0", document={"type": "image_url", "image_url": "data:"})
    (row,) = ledger(spans.spans())
    assert row["meters"] == {"pages": 3}


def test_the_second_api_of_a_client_of_the_first(spans: Any, stub: SmallStub) -> None:
    first(stub.json(cohere_chat()).url).v2.chat(model=MODEL, messages=HELLO)
    assert bill(spans.spans()) == (TEXT, COST, "priced")


@pytest.mark.parametrize("kind", ["chat", "embed"])
def test_calls_cost_what_the_list_says(spans: Any, stub: SmallStub, kind: str) -> None:
    method, asked, body, meters = SECOND[kind]
    getattr(cohere_client(stub.json(body).url), method)(**asked)
    cost = {"chat": COST, "embed": Decimal("0.00012")}[kind]  # 1000 at 0.12 for a million
    assert bill(spans.spans()) == (meters, cost, "priced")


def test_billed_units_count_and_not_what_was_processed(spans: Any, stub: SmallStub) -> None:
    cohere_client(stub.json(cohere_chat()).url).chat(model=MODEL, messages=HELLO)
    attributes = spans.attributes()
    assert (attributes[names.USAGE_INPUT_TOKENS], attributes[names.USAGE_OUTPUT_TOKENS]) == (1000, 100)
    assert attributes[names.RESPONSE_ID] == "co-7"
    assert attributes[names.RESPONSE_FINISH_REASONS] == ("COMPLETE",)


def test_no_usage_is_absent(spans: Any, stub: SmallStub) -> None:
    cohere_client(stub.json(cohere_chat(usage=None)).url).chat(model=MODEL, messages=HELLO)
    assert not [key for key in spans.attributes() if "usage" in key]
    assert bill(spans.spans()) == ({}, None, "unpriced")


def test_request_parameters(spans: Any, stub: SmallStub) -> None:
    client = cohere_client(stub.json(cohere_chat()).url)
    client.chat(model=MODEL, messages=HELLO, temperature=0.5, p=0.9, max_tokens=7)
    attributes = spans.attributes()
    assert attributes[names.REQUEST_TEMPERATURE] == 0.5
    assert attributes[names.REQUEST_TOP_P] == 0.9
    assert attributes[names.REQUEST_MAX_TOKENS] == 7


def test_a_client_made_before_we_came_is_seen(telemetry: Any, stub: SmallStub) -> None:
    client = first(stub.json(TALKED).url)
    chat = client.chat
    CohereInstrumentor().instrument(tracer_provider=telemetry.provider)
    try:
        chat(model=MODEL, message="hello")
    finally:
        CohereInstrumentor().uninstrument()
    chat(model=MODEL, message="hello")
    assert bill(telemetry.spans()) == (TEXT, COST, "priced")


# -- streams -----------------------------------------------------------------------------------------------------------


def test_a_stream_of_the_first_api(spans: Any, stub: SmallStub) -> None:
    lines = [f"{piece}\n".encode() for piece in map(_json, TALK_EVENTS)]
    events = list(first(stub.stream(lines, "application/stream+json").url).chat_stream(model=MODEL, message="hello"))
    assert len(events) == 3
    assert bill(spans.spans()) == (TEXT, COST, "priced")
    assert spans.attributes()[names.RESPONSE_FINISH_REASONS] == ("COMPLETE",)


async def test_a_stream_of_the_first_api_async(spans: Any, stub: SmallStub) -> None:
    lines = [f"{piece}\n".encode() for piece in map(_json, TALK_EVENTS)]
    client = first_async(stub.stream(lines, "application/stream+json").url)
    assert len([event async for event in client.chat_stream(model=MODEL, message="hello")]) == 3
    assert bill(spans.spans()) == (TEXT, COST, "priced")


def _json(event: Any) -> str:
    import json

    return json.dumps(event)


def pieces(usage: Any = COHERE_USAGE) -> list[bytes]:
    return sse(cohere_events(usage), done=False, named="type")


def test_a_stream_that_says_it_failed(spans: Any, stub: SmallStub) -> None:
    events = cohere_events()
    events[-1]["delta"] = {"finish_reason": "ERROR", "error": "no"}
    list(
        cohere_client(stub.stream(sse(events, done=False, named="type"), SSE).url).chat_stream(
            model=MODEL, messages=HELLO
        )
    )
    assert spans.attributes()[names.ERROR_TYPE] == "ERROR"
    assert spans.only().status.status_code is trace.StatusCode.ERROR


def test_a_stream_left_at_its_last_event_is_complete(spans: Any, stub: SmallStub) -> None:
    client = cohere_client(stub.stream(pieces(), SSE).url)
    stream = client.chat_stream(model=MODEL, messages=HELLO)
    for event in stream:
        if event.type == "message-end":
            break
    stream.close()
    assert names.STREAM_ABANDONED not in spans.attributes()
    assert bill(spans.spans()) == (TEXT, COST, "priced")


# -- raw responses -----------------------------------------------------------------------------------------------------


def test_a_raw_response_is_counted(spans: Any, stub: SmallStub) -> None:
    from cohere.core.http_response import HttpResponse

    raw = cohere_client(stub.json(cohere_chat()).url).with_raw_response.chat(model=MODEL, messages=HELLO)
    assert type(raw) is HttpResponse
    assert raw.data.id == "co-7"
    assert bill(spans.spans()) == (TEXT, COST, "priced")


def test_a_raw_stream_is_counted(spans: Any, stub: SmallStub) -> None:
    from cohere.core.http_response import HttpResponse

    client = cohere_client(stub.stream(pieces(), SSE).url)
    manager = client.with_raw_response.chat_stream(model=MODEL, messages=HELLO)
    assert isinstance(manager, contextlib.AbstractContextManager)
    assert not isinstance(manager, contextlib.AbstractAsyncContextManager)
    assert stub.requests == []
    with manager as raw:
        assert type(raw) is HttpResponse
        assert spans.spans() == []
        assert len(list(raw.data)) == 3
    assert bill(spans.spans()) == (TEXT, COST, "priced")


async def test_a_raw_stream_is_counted_async(spans: Any, stub: SmallStub) -> None:
    client = cohere_async(stub.stream(pieces(), SSE).url)
    async with client.with_raw_response.chat_stream(model=MODEL, messages=HELLO) as raw:
        assert len([event async for event in raw.data]) == 3
    assert bill(spans.spans()) == (TEXT, COST, "priced")


def test_a_raw_stream_left_early_is_abandoned(spans: Any, stub: SmallStub) -> None:
    client = cohere_client(stub.stream(pieces(), SSE).url)
    with client.with_raw_response.chat_stream(model=MODEL, messages=HELLO) as raw:
        next(raw.data)
    assert spans.attributes()[names.STREAM_ABANDONED] is True


def test_a_raw_stream_that_is_not_read_is_abandoned(spans: Any, stub: SmallStub) -> None:
    client = cohere_client(stub.stream(pieces(), SSE).url)
    with client.with_raw_response.chat_stream(model=MODEL, messages=HELLO):
        pass
    assert spans.attributes()[names.STREAM_ABANDONED] is True
    assert names.CALL_SENT not in spans.attributes()


def test_a_raw_stream_that_is_never_entered_was_not_sent(spans: Any, stub: SmallStub) -> None:
    manager = cohere_client(stub.stream(pieces(), SSE).url).with_raw_response.chat_stream(model=MODEL, messages=HELLO)
    del manager
    gc.collect()
    assert stub.requests == []
    assert spans.attributes()[names.CALL_SENT] is False


def test_a_refused_raw_stream(spans: Any, stub: SmallStub) -> None:
    client = cohere_client(stub.json({"message": "no"}, 400).url)
    with (
        pytest.raises(cohere.BadRequestError) as caught,
        client.with_raw_response.chat_stream(model=MODEL, messages=HELLO),
    ):
        pass
    assert caught.value.status_code == 400
    assert spans.attributes()[names.HTTP_STATUS] == 400


def test_a_fault_where_a_raw_stream_is_opened_never_reaches_the_program(
    faulty_telemetry: Any, stub: SmallStub, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tollspan.instrumentation import cohere as ours

    def fault(*_: Any) -> Any:
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr(ours, "observe", fault)
    CohereInstrumentor().instrument(tracer_provider=faulty_telemetry.provider)
    try:
        stream = cohere_client(stub.stream(pieces(), SSE).url).chat_stream(model=MODEL, messages=HELLO)
        assert len(list(stream)) == 3
    finally:
        CohereInstrumentor().uninstrument()
    assert len(faulty_telemetry.spans()) == 1


def test_calls_leave_no_cycle(spans: Any, stub: SmallStub) -> None:
    client = cohere_client(stub.stream(pieces(), SSE).url)
    gc.collect()
    gc.disable()
    try:
        for _ in range(5):
            list(client.chat_stream(model=MODEL, messages=HELLO))
        assert [held for held in gc.get_objects() if isinstance(held, Held)] == []
    finally:
        gc.enable()


# -- what the client spreads over threads ------------------------------------------------------------------------------


def test_each_part_of_a_long_list_is_a_request_under_the_callers_span(spans: Any, stub: SmallStub) -> None:
    client = first(stub.json(embedded(96)).url)
    tracer = spans.provider.get_tracer("test")
    with tag(tenant="acme"), tracer.start_as_current_span("caller") as caller:
        made = client.embed(model="embed-english-v3.0", texts=["a"] * 200)
    assert len(made.embeddings) == 3 * 96
    found = [span for span in spans.spans() if span.name.startswith("embeddings")]
    assert len(found) == len(stub.requests) == 3
    assert {span.parent.span_id for span in found} == {caller.get_span_context().span_id}
    assert {span.attributes[names.TENANT] for span in found} == {"acme"}
    assert sum(row["meters"]["tokens.input.uncached"] for row in ledger(found)) == 3000


async def test_the_same_asynchronously(spans: Any, stub: SmallStub) -> None:
    client = first_async(stub.json(embedded(96)).url)
    await client.embed(model="embed-english-v3.0", texts=["a"] * 200)
    assert len(spans.spans()) == len(stub.requests) == 3


# -- who bills ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("service", "provider"), [("bedrock", "aws.bedrock"), ("sagemaker", "aws.sagemaker")])
def test_amazons_variants_are_billed_by_amazon(spans: Any, stub: SmallStub, service: str, provider: str) -> None:
    pytest.importorskip("boto3")
    kind = cohere.BedrockClientV2 if service == "bedrock" else cohere.SagemakerClientV2
    client = kind(aws_access_key="a", aws_secret_key="b", aws_session_token="c", aws_region="us-east-1")
    hooks = client._client_wrapper.httpx_client.httpx_client.event_hooks["request"]

    def elsewhere(request: Any) -> None:
        raise ConnectionError("not sent")

    hooks_of = client._client_wrapper.httpx_client.httpx_client
    hooks_of.event_hooks = {"request": [*hooks, elsewhere], "response": []}
    with pytest.raises(ConnectionError):
        client.chat(model="cohere.command-a-03-2025-v1:0", messages=HELLO)
    assert spans.attributes()[names.PROVIDER_NAME] == provider
