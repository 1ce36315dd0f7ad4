"""Bedrock through botocore and aiobotocore, instrumented: every model call gives one span with what was counted, and
the program sees what it would see without us."""

from __future__ import annotations

import asyncio
import gc
import io
import json
import random
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import botocore.client
import botocore.endpoint
import botocore.exceptions
import botocore.session
import pytest
import urllib3
import urllib3.exceptions
from botocore.eventstream import EventStream
from botocore.response import StreamingBody
from opentelemetry import context
from opentelemetry.context import _SUPPRESS_INSTRUMENTATION_KEY
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import NoOpTracerProvider, SpanKind, StatusCode

from tollspan.instrumentation import faults, tag
from tollspan.instrumentation.bedrock import POINTS, BedrockInstrumentor, attempts, bodies, readers, requests, taps
from tollspan.pricing import attributes as names

from .bedrock_stub import CLAUDE, MODEL, REGION, Reply, Stub, chunks, converse, converse_events, metrics, serve

try:
    import aiobotocore.client
    import aiobotocore.endpoint
    import aiobotocore.response
    import aiohttp
except ImportError:
    aiobotocore = None
needs_async = pytest.mark.skipif(aiobotocore is None, reason="aiobotocore is not installed")
OWN_BODIES = hasattr(getattr(aiobotocore, "response", None), "AioStreamingBody")
"""aiobotocore has bodies of its own, and not proxies of aiohttp's responses."""

ASK: dict[str, Any] = {
    "modelId": MODEL,
    "messages": [{"role": "user", "content": [{"text": "hello"}]}],
    "inferenceConfig": {"maxTokens": 64, "temperature": 0.5, "topP": 1},
}
ASKED = {
    names.OPERATION_NAME: "chat",
    names.PROVIDER_NAME: "aws.bedrock",
    names.REQUEST_MODEL: MODEL,
    names.SERVER_ADDRESS: "127.0.0.1",
    names.CLOUD_REGION: REGION,
    names.RETRIES: 0,
}
LIMITS = {names.REQUEST_MAX_TOKENS: 64, names.REQUEST_TEMPERATURE: 0.5, names.REQUEST_TOP_P: 1.0}
USAGE = {
    names.USAGE_INPUT_TOKENS: 1107,
    names.USAGE_OUTPUT_TOKENS: 20,
    names.USAGE_CACHE_READ_TOKENS: 1000,
    names.USAGE_CACHE_WRITE_TOKENS: 7,
    names.usage("tokens.input.cache_write.5m"): 3,
    names.usage("tokens.input.cache_write.1h"): 4,
}
TIER = {names.OPENAI_RESPONSE_SERVICE_TIER: "default"}
# botocore gives what its service model knows: older ones have no cache writes by lifetime.
MODELED = botocore.session.Session().get_service_model("bedrock-runtime").shape_for("TokenUsage").members
CONVERSE_USAGE = {
    name: value for name, value in USAGE.items() if "cacheDetails" in MODELED or not name.startswith(names.USAGE_PREFIX)
}
CONVERSE = {**ASKED, **LIMITS, **CONVERSE_USAGE, **TIER, names.RESPONSE_FINISH_REASONS: ("end_turn",)}
CONVERSE_STREAM = {**CONVERSE, names.REQUEST_STREAM: True, names.RESPONSE_FINISH_REASONS: ("max_tokens",)}

INVOKE: dict[str, Any] = {"modelId": CLAUDE, "body": b"{}"}
MESSAGE: dict[str, Any] = {
    "model": "claude-sonnet-4-5-20250929",
    "id": "msg_bdrk_7",
    "type": "message",
    "role": "assistant",
    "content": [{"type": "text", "text": "Hello."}],
    "stop_reason": "end_turn",
    "stop_sequence": None,
    "usage": {
        "input_tokens": 100,
        "cache_creation_input_tokens": 7,
        "cache_read_input_tokens": 1000,
        "cache_creation": {"ephemeral_5m_input_tokens": 3, "ephemeral_1h_input_tokens": 4},
        "output_tokens": 20,
        "service_tier": "standard",
    },
}
HEADERS = {"input": 100, "output": 20, "cache_read": 1000, "cache_write": 7}
INVOKED = {
    **ASKED,
    **USAGE,
    names.REQUEST_MODEL: CLAUDE,
    names.RESPONSE_ID: "msg_bdrk_7",
    names.RESPONSE_FINISH_REASONS: ("end_turn",),
}
BY_HEADERS = {
    name: value
    for name, value in INVOKED.items()
    if name not in (names.RESPONSE_ID, names.RESPONSE_FINISH_REASONS) and not name.startswith(names.USAGE_PREFIX)
}
START = {
    "type": "message_start",
    "message": {**MESSAGE, "content": [], "stop_reason": None, "usage": {**MESSAGE["usage"], "output_tokens": 1}},
}
DELTA = {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Hello."}}
LAST_DELTA = {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 20}}
COUNTED = metrics(inputTokenCount=100, outputTokenCount=20, cacheReadInputTokenCount=1000, cacheWriteInputTokenCount=7)
MESSAGE_STREAM = chunks(START, DELTA, DELTA, LAST_DELTA, {"type": "message_stop", **COUNTED})
INVOKED_STREAM = {**INVOKED, names.REQUEST_STREAM: True}


@pytest.fixture(scope="module")
def server() -> Iterator[Stub]:
    with serve() as stub:
        yield stub


@pytest.fixture
def stub(server: Stub, monkeypatch: pytest.MonkeyPatch) -> Stub:
    server.replies, server.requests = [], []
    # Waits before further attempts are a random part of a second: none of it.
    monkeypatch.setattr(random, "random", lambda: 0.0)
    return server


@pytest.fixture
def spans(telemetry: Any) -> Iterator[Any]:
    BedrockInstrumentor().instrument(tracer_provider=telemetry.provider)
    yield telemetry
    BedrockInstrumentor().uninstrument()


def told(telemetry: Any) -> dict[str, Any]:
    """Attributes of the one span, without what differs from run to run."""
    attributes: dict[str, Any] = telemetry.attributes()
    assert attributes.pop(names.SERVER_PORT) > 0
    if names.RESPONSE_TIME_TO_FIRST_CHUNK in attributes:
        assert attributes.pop(names.RESPONSE_TIME_TO_FIRST_CHUNK) > 0
    return attributes


# -- every kind of call ----------------------------------------------------------------------------------------------


def test_converse(spans: Any, stub: Stub) -> None:
    result = stub.json(converse()).client().converse(**ASK)
    assert type(result) is dict
    assert result["usage"]["inputTokens"] == 100
    span = spans.only()
    assert (span.name, span.kind, span.status.status_code) == (f"chat {MODEL}", SpanKind.CLIENT, StatusCode.UNSET)
    assert told(spans) == CONVERSE


@needs_async
async def test_converse_async(spans: Any, stub: Stub) -> None:
    async with stub.json(converse()).async_client() as client:
        result = await client.converse(**ASK)
    assert type(result) is dict
    assert told(spans) == CONVERSE


def test_converse_stream(spans: Any, stub: Stub) -> None:
    stream = stub.events(converse_events()).client().converse_stream(**ASK)["stream"]
    assert isinstance(stream, EventStream)
    assert [next(iter(event)) for event in stream] == [kind for kind, _ in converse_events()]
    assert told(spans) == CONVERSE_STREAM


@needs_async
async def test_converse_stream_async(spans: Any, stub: Stub) -> None:
    async with stub.events(converse_events()).async_client() as client:
        stream = (await client.converse_stream(**ASK))["stream"]
        assert isinstance(stream, EventStream)
        assert [next(iter(event)) async for event in stream] == [kind for kind, _ in converse_events()]
    assert told(spans) == CONVERSE_STREAM


def test_invoke(spans: Any, stub: Stub) -> None:
    body = stub.invoked(MESSAGE, HEADERS).client().invoke_model(**INVOKE)["body"]
    assert isinstance(body, StreamingBody)
    assert not spans.spans()
    assert json.loads(body.read()) == MESSAGE
    assert told(spans) == INVOKED


@needs_async
async def test_invoke_async(spans: Any, stub: Stub) -> None:
    async with stub.invoked(MESSAGE, HEADERS).async_client() as client:
        body = (await client.invoke_model(**INVOKE))["body"]
        assert json.loads(await body.read()) == MESSAGE
    assert told(spans) == INVOKED


def test_invoke_stream(spans: Any, stub: Stub) -> None:
    stream = stub.events(MESSAGE_STREAM).client().invoke_model_with_response_stream(**INVOKE)["body"]
    assert isinstance(stream, EventStream)
    assert [json.loads(event["chunk"]["bytes"])["type"] for event in stream][-1] == "message_stop"
    assert told(spans) == INVOKED_STREAM


@needs_async
async def test_invoke_stream_async(spans: Any, stub: Stub) -> None:
    async with stub.events(MESSAGE_STREAM).async_client() as client:
        result = await client.invoke_model_with_response_stream(**INVOKE)
        assert len([event async for event in result["body"]]) == 5
    assert told(spans) == INVOKED_STREAM


def test_rerank_is_there_without_usage(spans: Any, stub: Stub) -> None:
    arn = "arn:aws:bedrock:us-west-2::foundation-model/cohere.rerank-v3-5:0"
    inline = {"type": "TEXT", "textDocument": {"text": "b"}}
    stub.json({"results": [{"index": 0, "relevanceScore": 0.5}]}).client("bedrock-agent-runtime").rerank(
        queries=[{"type": "TEXT", "textQuery": {"text": "a"}}],
        sources=[{"type": "INLINE", "inlineDocumentSource": inline}],
        rerankingConfiguration={
            "type": "BEDROCK_RERANKING_MODEL",
            "bedrockRerankingConfiguration": {"modelConfiguration": {"modelArn": arn}},
        },
    )
    assert spans.only().name == f"rerank {arn}"
    assert told(spans) == {**ASKED, names.OPERATION_NAME: "rerank", names.REQUEST_MODEL: arn}


def test_calls_that_are_no_model_calls_have_no_span(spans: Any, stub: Stub) -> None:
    client = stub.json({"inputTokens": 5}).client()
    assert client.count_tokens(modelId=MODEL, input={"converse": {"messages": ASK["messages"]}})["inputTokens"] == 5
    stub.client("bedrock-agent-runtime").retrieve(knowledgeBaseId="ABCDEFGHIJ", retrievalQuery={"text": "x"})
    assert not spans.spans()


def test_an_operation_of_the_same_name_elsewhere_is_no_model_call() -> None:
    class Elsewhere:
        class meta:
            class service_model:
                service_name = "something-else"

    assert requests.read_request((Elsewhere(), "Converse", {}), {}) is None
    assert requests.read_request((None, "PutObject", {}), {}) is None


@pytest.mark.parametrize(
    "arn",
    [
        "arn:aws:bedrock:us-west-2:123456789012:application-inference-profile/abc123",
        "arn:aws:bedrock:us-west-2:123456789012:inference-profile/us.amazon.nova-pro-v1:0",
    ],
)
def test_the_model_stays_as_it_was_given(spans: Any, stub: Stub, arn: str) -> None:
    stub.json(converse()).client().converse(**{**ASK, "modelId": arn})
    assert told(spans) == {**CONVERSE, names.REQUEST_MODEL: arn}


def test_a_router_says_which_model_it_chose(spans: Any, stub: Stub) -> None:
    chosen = "arn:aws:bedrock:us-west-2:123456789012:inference-profile/us.anthropic.claude-3-5-sonnet-20240620-v1:0"
    stub.json(converse(trace={"promptRouter": {"invokedModelId": chosen}})).client().converse(**ASK)
    assert told(spans) == {**CONVERSE, names.RESPONSE_MODEL: chosen}


@pytest.mark.parametrize(
    ("asked", "served", "expected"),
    [
        ({}, {}, (None, "default")),
        ({"serviceTier": {"type": "flex"}}, {"serviceTier": {"type": "flex"}}, ("flex", "flex")),
        ({"serviceTier": {"type": "priority"}}, {"serviceTier": None}, ("priority", None)),
        ({}, {"performanceConfig": {"latency": "optimized"}}, (None, "optimized")),
        ({}, {"performanceConfig": {"latency": "standard"}}, (None, "default")),
    ],
)
def test_the_tier_as_asked_and_as_served(spans: Any, stub: Stub, asked: Any, served: Any, expected: Any) -> None:
    body = {name: value for name, value in converse(**served).items() if value is not None}
    stub.json(body).client().converse(**ASK, **asked)
    attributes = told(spans)
    tiers = (names.OPENAI_REQUEST_SERVICE_TIER, names.OPENAI_RESPONSE_SERVICE_TIER)
    assert tuple(map(attributes.get, tiers)) == expected


def test_the_tier_of_an_invocation_is_in_its_headers(spans: Any, stub: Stub) -> None:
    client = stub.invoked(MESSAGE, HEADERS, {"X-Amzn-Bedrock-Service-Tier": "flex"}).client()
    client.invoke_model(**INVOKE)["body"].read()
    assert told(spans) == {**INVOKED, names.OPENAI_RESPONSE_SERVICE_TIER: "flex"}


# -- bodies ----------------------------------------------------------------------------------------------------------

TEXT = json.dumps(MESSAGE).encode()


def _json_load(body: Any) -> bytes:
    return json.dumps(json.load(body)).encode()


def _into(body: Any) -> bytes:
    read, buffer = b"", bytearray(64)
    while size := body.readinto(buffer):
        read += buffer[:size]
    return read


def _exactly(body: Any) -> bytes:
    return bytes(body.read(len(TEXT)))


def _next(body: Any) -> bytes:
    pieces = []
    try:
        while True:
            pieces.append(next(body))
    except StopIteration:
        return b"".join(pieces)


@pytest.mark.parametrize(
    "read",
    [
        lambda body: body.read(),
        lambda body: body.read(10) + body.read(None),
        lambda body: b"".join(body.iter_chunks(7)),
        lambda body: b"".join(body.iter_lines()),
        lambda body: b"".join(body),
        lambda body: b"".join(body.readlines()),
        lambda body: io.BufferedReader(body).read(),
        _json_load,
        _into,
        _exactly,
        _next,
    ],
)
def test_every_way_of_reading_a_body(spans: Any, stub: Stub, read: Any) -> None:
    result = stub.invoked(MESSAGE, HEADERS).client().invoke_model(**INVOKE)
    assert json.loads(read(result["body"])) == MESSAGE
    assert told(spans) == INVOKED


async def _chunks(body: Any) -> bytes:
    return b"".join([chunk async for chunk in body.iter_chunks(7)])


async def _lines(body: Any) -> bytes:
    return b"".join([line async for line in body.iter_lines()])


async def _for(body: Any) -> bytes:
    return b"".join([chunk async for chunk in body])


async def _all_lines(body: Any) -> bytes:
    return b"".join(await body.readlines())


async def _parts(body: Any) -> bytes:
    return bytes(await body.read(10) + await body.read())


@needs_async
@pytest.mark.parametrize("read", [_chunks, _lines, _for, _all_lines, _parts])
async def test_every_way_of_reading_a_body_async(spans: Any, stub: Stub, read: Any) -> None:
    async with stub.invoked(MESSAGE, HEADERS).async_client() as client:
        result = await client.invoke_model(**INVOKE)
        assert json.loads(await read(result["body"])) == MESSAGE
    assert told(spans) == INVOKED


async def _nowait(content: Any) -> bytes:
    await content.wait_eof()
    return bytes(content.read_nowait())


async def _readchunk(content: Any) -> bytes:
    pieces = []
    while piece := (await content.readchunk())[0]:
        pieces.append(piece)
    return b"".join(pieces)


async def _some(content: Any) -> bytes:
    return bytes(await content.readexactly(7) + await content.readany() + await content.read())


async def _joined(pieces: Any) -> bytes:
    return b"".join([piece[0] if isinstance(piece, tuple) else piece async for piece in pieces])


@needs_async
@pytest.mark.parametrize(
    "read",
    [
        lambda raw: raw.read(),
        lambda raw: raw.content.read(),
        lambda raw: raw.content.readline(),
        lambda raw: _nowait(raw.content),
        lambda raw: _readchunk(raw.content),
        lambda raw: _some(raw.content),
        lambda raw: _joined(raw.content),
        lambda raw: _joined(raw.content.iter_any()),
        lambda raw: _joined(raw.content.iter_chunks()),
        lambda raw: _joined(raw.content.iter_chunked(7)),
        lambda raw: raw.text(),
    ],
)
async def test_every_way_of_reading_what_a_body_reads_from(spans: Any, stub: Stub, read: Any) -> None:
    async with stub.invoked(MESSAGE, HEADERS).async_client() as client:
        body = (await client.invoke_model(**INVOKE))["body"]
        if hasattr(body, "raw_stream"):
            raw = body.raw_stream
        else:
            raw = await body.__aenter__()  # aiobotocore 2
        assert isinstance(raw, aiohttp.ClientResponse)
        assert isinstance(raw.content, aiohttp.StreamReader)
        assert json.loads(await read(raw)) == MESSAGE
    assert told(spans) == INVOKED


@needs_async
@pytest.mark.skipif(OWN_BODIES, reason="bodies of aiobotocore 3 have none of it")
@pytest.mark.parametrize("read", [lambda body: body.content.read(), lambda body: body.text()])
async def test_a_body_that_is_aiohttps_response(spans: Any, stub: Stub, read: Any) -> None:
    async with stub.invoked(MESSAGE, HEADERS).async_client() as client:
        body = (await client.invoke_model(**INVOKE))["body"]
        assert json.loads(await read(body)) == MESSAGE
    assert told(spans) == INVOKED


@needs_async
async def test_a_body_as_context_async(spans: Any, stub: Stub) -> None:
    async with (
        stub.invoked(MESSAGE, HEADERS).async_client() as client,
        (await client.invoke_model(**INVOKE))["body"] as body,
    ):
        assert json.loads(await body.read()) == MESSAGE
    attributes = told(spans)
    assert {name: attributes[name] for name in BY_HEADERS} == BY_HEADERS


@pytest.mark.parametrize(
    "read",
    [
        lambda raw: raw.read(),
        lambda raw: raw.read(10) + raw.read(),
        lambda raw: raw.data,
        lambda raw: json.dumps(raw.json()).encode(),
        lambda raw: b"".join(raw.stream(7)),
        lambda raw: b"".join(raw),
        lambda raw: b"".join(raw.readlines()),
        lambda raw: raw.readline(),
        lambda raw: next(raw),
        lambda raw: io.BufferedReader(raw).read(),
        lambda raw: io.TextIOWrapper(raw).read().encode(),
        _into,
        _json_load,
    ],
)
def test_a_body_as_context(spans: Any, stub: Stub, read: Any) -> None:
    body = stub.invoked(MESSAGE, HEADERS).client().invoke_model(**INVOKE)["body"]
    with body as raw:
        assert isinstance(raw, urllib3.HTTPResponse)
        assert not isinstance(raw, StreamingBody)
        assert not hasattr(raw, "aclose")
        assert raw.headers["content-type"]
        assert json.loads(read(raw)) == MESSAGE
    assert raw.closed
    # By lifetime is what only the body tells.
    assert told(spans) == INVOKED


@pytest.mark.parametrize("read", [lambda raw: raw.stream(7), lambda raw: raw.read_chunked(7)])
def test_a_body_in_chunks_as_context(spans: Any, stub: Stub, read: Any) -> None:
    chunked = {"Content-Type": "application/json", "Transfer-Encoding": "chunked"}
    stub.replies.append(Reply(200, chunked, [TEXT[:10], TEXT[10:]]))
    with stub.client().invoke_model(**INVOKE)["body"] as raw:
        assert b"".join(read(raw)) == TEXT
    assert told(spans) == INVOKED


async def test_a_body_whose_context_is_aiohttps_response(spans: Any, stub: Stub) -> None:
    class Response:
        async def read(self) -> bytes:
            return json.dumps(MESSAGE).encode()

        async def text(self) -> str:
            return (await self.read()).decode()

    taken = []

    class Seen:
        def took(self, data: bytes, last: bool) -> None:
            taken.append((data, last))

        def abandon(self) -> None: ...

    class Body:
        async def __aenter__(self) -> Any:
            return Response()

        async def __aexit__(self, *error: Any) -> None: ...

    async with taps.tapped(bodies.AsyncBody, Body(), Seen()) as raw:  # type: ignore[arg-type]
        assert isinstance(raw, Response)
        assert json.loads(await raw.text()) == MESSAGE
    assert taken == [(json.dumps(MESSAGE).encode(), True)]


@pytest.mark.parametrize("how", ["close", "drop", "with"])
def test_a_body_that_is_not_read_is_told_by_its_headers(spans: Any, stub: Stub, how: str) -> None:
    result = stub.invoked(MESSAGE, HEADERS).client().invoke_model(**INVOKE)
    if how == "close":
        result["body"].close()
    elif how == "with":
        with result["body"] as raw:
            assert not isinstance(raw, StreamingBody)
    del result
    gc.collect()
    assert told(spans) == BY_HEADERS


def test_a_body_cut_off_raises_as_ever(spans: Any, stub: Stub) -> None:
    stub.raw(TEXT, headers={"Content-Length": str(len(TEXT) + 1)})
    stub.replies[0].cut = True
    body = stub.client().invoke_model(**INVOKE)["body"]
    with pytest.raises((botocore.exceptions.ResponseStreamingError, botocore.exceptions.IncompleteReadError)):
        body.read()
    span = spans.only()
    assert span.status.status_code is StatusCode.ERROR
    assert names.HTTP_STATUS not in told(spans)
    assert names.CALL_SENT not in told(spans)


def test_a_body_that_is_no_json(spans: Any, stub: Stub) -> None:
    assert stub.raw(b"audio", headers={"Content-Type": "audio/mpeg"}).client().invoke_model(**INVOKE)["body"].read()
    assert told(spans) == {**ASKED, names.REQUEST_MODEL: CLAUDE}


def test_a_body_that_is_not_read_and_has_no_headers(spans: Any, stub: Stub) -> None:
    stub.invoked(MESSAGE).client().invoke_model(**INVOKE)["body"].read(10)
    gc.collect()
    assert told(spans) == {**ASKED, names.REQUEST_MODEL: CLAUDE, names.STREAM_ABANDONED: True}


def test_a_body_is_in_all_else_as_it_was(spans: Any, stub: Stub) -> None:
    body = stub.invoked(MESSAGE, HEADERS).client().invoke_model(**INVOKE)["body"]
    assert body.__class__ is StreamingBody
    assert isinstance(body, io.IOBase)
    assert body.readable()
    assert body.closed is False
    # A client that is given it to send on asks for its length if it has one.
    assert not [name for name in ("aclose", "__len__", "__getitem__", "__await__") if hasattr(body, name)]
    assert body.tell() == 0
    body.close()


def test_a_body_too_long_to_keep_is_told_by_its_headers(
    spans: Any, stub: Stub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(taps, "LONGEST", 20)
    body = stub.invoked(MESSAGE, HEADERS).client().invoke_model(**INVOKE)["body"]
    assert b"".join(body.iter_chunks(7)) == TEXT
    assert told(spans) == BY_HEADERS


# -- event streams ---------------------------------------------------------------------------------------------------


def test_a_stream_left_and_taken_up_again_goes_on(spans: Any, stub: Stub) -> None:
    stream = stub.events(converse_events()).client().converse_stream(**ASK)["stream"]
    assert next(iter(stream)) == {"messageStart": {"role": "assistant"}}
    for event in stream:
        assert "contentBlockDelta" in event
        break
    assert len(list(stream)) == len(converse_events()) - 2
    assert list(stream) == []
    assert told(spans) == CONVERSE_STREAM


@pytest.mark.parametrize("how", ["drop", "close"])
@pytest.mark.parametrize("whole", [False, True])
def test_a_stream_left_early(spans: Any, stub: Stub, how: str, whole: bool) -> None:
    result = stub.events(converse_events()).client().converse_stream(**ASK)
    for event in result["stream"]:
        if not whole or "metadata" in event:
            break
    assert not spans.spans()
    if how == "close":
        result["stream"].close()
    del result
    gc.collect()
    if whole:
        assert told(spans) == CONVERSE_STREAM
    else:
        assert told(spans) == {**ASKED, **LIMITS, names.REQUEST_STREAM: True, names.STREAM_ABANDONED: True}


@needs_async
async def test_a_stream_left_early_async(spans: Any, stub: Stub) -> None:
    async with stub.events(converse_events()).async_client() as client:

        async def work() -> None:
            async for _ in (await client.converse_stream(**ASK))["stream"]:
                break

        await asyncio.create_task(work())
        gc.collect()
        await asyncio.sleep(0)
    assert told(spans) == {**ASKED, **LIMITS, names.REQUEST_STREAM: True, names.STREAM_ABANDONED: True}


def test_an_invocation_left_early_tells_what_was_known(spans: Any, stub: Stub) -> None:
    for _ in stub.events(MESSAGE_STREAM).client().invoke_model_with_response_stream(**INVOKE)["body"]:
        break
    gc.collect()
    attributes = told(spans)
    assert attributes[names.STREAM_ABANDONED] is True
    assert attributes[names.USAGE_INPUT_TOKENS] == 1107
    # The first event's count of the output is a placeholder.
    assert names.USAGE_OUTPUT_TOKENS not in attributes


def test_an_error_inside_a_stream(spans: Any, stub: Stub) -> None:
    events = [*converse_events()[:2], ("throttlingException", {"message": "slow down"})]
    stream = stub.events(events).client().converse_stream(**ASK)["stream"]
    iteration = iter(stream)
    assert [next(iter(event)) for event in (next(iteration), next(iteration))] == ["messageStart", "contentBlockDelta"]
    with pytest.raises(botocore.exceptions.EventStreamError, match="slow down"):
        next(iteration)
    assert list(stream) == []
    assert spans.only().status.status_code is StatusCode.ERROR
    attributes = told(spans)
    assert attributes[names.ERROR_TYPE] == "botocore.exceptions.EventStreamError"
    # It came with a 200, and may be billed.
    assert names.HTTP_STATUS not in attributes
    assert names.CALL_SENT not in attributes


@needs_async
async def test_an_error_inside_a_stream_async(spans: Any, stub: Stub) -> None:
    events = [*converse_events()[:2], ("modelStreamErrorException", {"message": "broken"})]
    async with stub.events(events).async_client() as client:
        stream = (await client.converse_stream(**ASK))["stream"]
        with pytest.raises(botocore.exceptions.EventStreamError, match="broken"):
            async for _ in stream:
                pass
    assert spans.only().status.status_code is StatusCode.ERROR


def test_a_stream_cut_off(spans: Any, stub: Stub) -> None:
    stream = stub.events(converse_events()[:3], cut=True).client().converse_stream(**ASK)["stream"]
    with pytest.raises(urllib3.exceptions.ProtocolError):
        list(stream)
    assert spans.only().status.status_code is StatusCode.ERROR
    assert names.USAGE_OUTPUT_TOKENS not in told(spans)


@needs_async
async def test_a_stream_cancelled(spans: Any, stub: Stub) -> None:
    stub.events(converse_events())
    stub.replies[0].gate = gate = threading.Event()
    async with stub.async_client() as client:
        reading = asyncio.Event()

        async def work() -> None:
            async for event in (await client.converse_stream(**ASK))["stream"]:
                if "messageStop" in event:
                    reading.set()

        task = asyncio.create_task(work())
        await reading.wait()
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        gate.set()
    assert told(spans)[names.ERROR_TYPE] == "asyncio.exceptions.CancelledError"


def test_the_proxy_is_the_stream_in_all_but_name(spans: Any, stub: Stub) -> None:
    stream = stub.events(converse_events()).client().converse_stream(**ASK)["stream"]
    assert stream.__class__ is EventStream
    assert iter(stream) is not iter(stream)
    assert type(iter(stream)).__name__ == "generator"
    assert hasattr(stream, "close")
    assert not hasattr(stream, "aclose")
    list(stream)


def test_streams_that_are_dropped_leave_nothing(spans: Any, stub: Stub) -> None:
    client = stub.events(converse_events()).client()
    gc.collect()
    gc.disable()
    try:
        gone = []
        for _ in range(20):
            result = client.converse_stream(**ASK)
            for _ in result["stream"]:
                break
            gone.append(weakref.ref(result["stream"]._tollspan_reading))
            del result
        # No cycle keeps them: what the stream itself holds is the library's.
        assert not [reference for reference in gone if reference() is not None]
    finally:
        gc.enable()
    assert len(spans.spans()) == 20


# -- failures --------------------------------------------------------------------------------------------------------


def test_a_refused_call(spans: Any, stub: Stub) -> None:
    client = stub.error(400, "ValidationException").client()
    with pytest.raises(client.exceptions.ValidationException) as raised:
        client.converse(**ASK)
    assert raised.value.response["ResponseMetadata"]["HTTPStatusCode"] == 400
    span = spans.only()
    assert span.status.status_code is StatusCode.ERROR
    assert told(spans) == {
        **ASKED,
        **LIMITS,
        names.HTTP_STATUS: 400,
        names.ERROR_TYPE: "botocore.errorfactory.ValidationException",
    }


@pytest.mark.parametrize("mode", ["legacy", "standard"])
@pytest.mark.parametrize("status", [429, 503])
def test_attempts_are_counted(spans: Any, stub: Stub, mode: str, status: int) -> None:
    kind = "ThrottlingException" if status == 429 else "ServiceUnavailableException"
    stub.error(status, kind).error(status, kind).json(converse())
    stub.client(retries={"mode": mode, "total_max_attempts": 3}).converse(**ASK)
    assert len(stub.requests) == 3
    assert told(spans) == {**CONVERSE, names.RETRIES: 2}


@needs_async
async def test_attempts_are_counted_async(spans: Any, stub: Stub) -> None:
    stub.error(429).json(converse())
    async with stub.async_client() as client:
        await client.converse(**ASK)
    assert told(spans) == {**CONVERSE, names.RETRIES: 1}


def test_attempts_without_any_answer_are_counted(spans: Any, stub: Stub) -> None:
    client = stub.drop().client(retries={"mode": "standard", "total_max_attempts": 2})
    with pytest.raises(botocore.exceptions.ConnectionClosedError):
        client.converse(**ASK)
    attributes = told(spans)
    assert attributes[names.RETRIES] == len(stub.requests) - 1 == 1
    assert names.CALL_SENT not in attributes


def test_a_timeout(spans: Any, stub: Stub) -> None:
    stub.json(converse())
    stub.replies[0].gate = gate = threading.Event()
    client = stub.client(read_timeout=0.05, retries={"total_max_attempts": 1})
    with pytest.raises(botocore.exceptions.ReadTimeoutError):
        client.converse(**ASK)
    gate.set()
    assert told(spans)[names.ERROR_TYPE] == "botocore.exceptions.ReadTimeoutError"
    assert names.CALL_SENT not in told(spans)


def test_a_call_that_was_never_sent(spans: Any, stub: Stub) -> None:
    with pytest.raises(botocore.exceptions.ParamValidationError):
        stub.client().converse(modelId=MODEL, messages="x")
    assert told(spans)[names.CALL_SENT] is False
    assert names.RETRIES not in told(spans)
    assert not stub.requests


@needs_async
async def test_a_call_that_was_never_sent_async(spans: Any, stub: Stub) -> None:
    async with stub.async_client() as client:
        with pytest.raises(botocore.exceptions.ParamValidationError):
            await client.converse(modelId=MODEL, messages="x")
    assert told(spans)[names.CALL_SENT] is False


def test_an_endpoint_of_somebody_elses_may_send_as_it_likes(spans: Any, stub: Stub) -> None:
    client = stub.client()

    class Endpoint(botocore.endpoint.Endpoint):  # type: ignore[misc]
        def make_request(self, *args: Any) -> Any:
            raise ConnectionError

    client._endpoint.__class__ = Endpoint
    with pytest.raises(ConnectionError):
        client.converse(**ASK)
    assert names.CALL_SENT not in told(spans)


def test_answers_of_botocores_own_stubber(spans: Any, stub: Stub) -> None:
    from botocore.stub import Stubber

    client = stub.client()
    with Stubber(client) as stubber:
        usage = {name: value for name, value in converse()["usage"].items() if name in MODELED}
        stubber.add_response("converse", converse(usage=usage), None)
        stubber.add_client_error("converse", "ThrottlingException", http_status_code=429)
        client.converse(**ASK)
        with pytest.raises(client.exceptions.ThrottlingException):
            client.converse(**ASK)
    answered, refused = (dict(span.attributes or {}) for span in spans.spans())
    assert answered[names.USAGE_INPUT_TOKENS] == 1107
    assert refused[names.HTTP_STATUS] == 429
    assert names.CALL_SENT not in refused


# -- the program is left alone ---------------------------------------------------------------------------------------


def test_many_at_once(spans: Any, stub: Stub) -> None:
    client = stub.json(converse()).client()

    def work(number: int) -> None:
        with tag(tenant=f"t{number}"):
            client.converse(**ASK)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(24)))
    tenants = sorted(str((span.attributes or {})[names.TENANT]) for span in spans.spans())
    assert tenants == sorted(f"t{number}" for number in range(24))


@needs_async
async def test_many_at_once_async(spans: Any, stub: Stub) -> None:
    async with stub.json(converse()).async_client() as client:
        await asyncio.gather(*(client.converse(**ASK) for _ in range(10)))
    assert [dict(span.attributes or {})[names.USAGE_INPUT_TOKENS] for span in spans.spans()] == [1107] * 10


def test_suppression(spans: Any, stub: Stub) -> None:
    before = context.get_current()
    context.attach(context.set_value(_SUPPRESS_INSTRUMENTATION_KEY, True))
    try:
        stub.json(converse()).client().converse(**ASK)
    finally:
        context.attach(before)
    assert not spans.spans()


@pytest.mark.parametrize("provider", [TracerProvider(sampler=ALWAYS_OFF), NoOpTracerProvider()])
def test_nobody_who_sees_the_span(stub: Stub, provider: Any) -> None:
    BedrockInstrumentor().instrument(tracer_provider=provider)
    try:
        client = stub.invoked(MESSAGE, HEADERS).client()
        body = client.invoke_model(**INVOKE)["body"]
        assert type(body) is StreamingBody
        assert body.read() == TEXT
        stub.replies.clear()
        stream = stub.events(converse_events()).client().converse_stream(**ASK)["stream"]
        assert type(stream) is EventStream
        assert len(list(stream)) == len(converse_events())
    finally:
        BedrockInstrumentor().uninstrument()


def test_uninstrument_restores_the_identical_functions(telemetry: Any) -> None:
    owners = [(botocore.client.BaseClient, "_make_api_call"), (botocore.endpoint.Endpoint, "_send")]
    if aiobotocore is not None:
        owners += [
            (aiobotocore.client.AioBaseClient, "_make_api_call"),
            (aiobotocore.endpoint.AioEndpoint, "_send"),
        ]
    before = [vars(owner)[name] for owner, name in owners]
    BedrockInstrumentor().instrument(tracer_provider=telemetry.provider)
    assert [vars(owner)[name] for owner, name in owners] != before
    BedrockInstrumentor().uninstrument()
    assert all(vars(owner)[name] is was for (owner, name), was in zip(owners, before, strict=True))


def test_a_stream_outlives_the_instrumentation(telemetry: Any, stub: Stub) -> None:
    BedrockInstrumentor().instrument(tracer_provider=telemetry.provider)
    stream = stub.events(converse_events()).client().converse_stream(**ASK)["stream"]
    BedrockInstrumentor().uninstrument()
    assert len(list(stream)) == len(converse_events())
    assert told(telemetry) == CONVERSE_STREAM


@needs_async
def test_wrappers_look_like_what_they_wrap() -> None:
    import inspect

    kinds = (botocore.client.BaseClient, aiobotocore.client.AioBaseClient)
    before = [inspect.iscoroutinefunction(kind._make_api_call) for kind in kinds]
    BedrockInstrumentor().instrument()
    try:
        assert [inspect.iscoroutinefunction(kind._make_api_call) for kind in kinds] == before
    finally:
        BedrockInstrumentor().uninstrument()


def test_instrumenting_imports_nothing_of_the_client() -> None:
    program = (
        "import sys\n"
        "from tollspan.instrumentation.bedrock import BedrockInstrumentor\n"
        "BedrockInstrumentor().instrument()\n"
        "assert not [name for name in sys.modules if 'botocore' in name]\n"
        "import botocore.client\n"
        "assert hasattr(botocore.client.BaseClient._make_api_call, '__wrapped__')\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_pickles_as_before(spans: Any, stub: Stub) -> None:
    import pickle

    result = stub.json(converse()).client().converse(**ASK)
    assert pickle.loads(pickle.dumps(result)) == result


def _broken(*_: Any) -> Any:
    raise RuntimeError("a fault of ours")


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (requests, "client_attributes"),
        (requests, "operation_of"),
        (readers, "answered"),
        (readers, "counted_by_headers"),
        (readers, "put_counted"),
        (readers, "read_body"),
        (readers, "put_usage"),
        (readers, "_usage_in"),
        (readers, "_read_identity"),
        (readers, "_read_whole"),
        (attempts, "fields"),
        (bodies, "SyncEvents"),
        (bodies, "SyncBody"),
        (bodies, "Tap"),
        (taps.Tap, "took"),
    ],
)
def test_a_fault_of_ours_never_reaches_the_program(
    faulty_telemetry: Any, stub: Stub, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str
) -> None:
    before = sum(faults().values())
    monkeypatch.setattr(owner, name, _broken)
    BedrockInstrumentor().instrument(tracer_provider=faulty_telemetry.provider)
    try:
        client = stub.json(converse()).client()
        assert client.converse(**ASK)["usage"]["inputTokens"] == 100
        stub.replies.clear()
        client = stub.invoked(MESSAGE, HEADERS).client()
        assert client.invoke_model(**INVOKE)["body"].read() == TEXT
        client.invoke_model(**INVOKE)["body"].close()
        stub.replies.clear()
        client = stub.events(converse_events()).client()
        assert len(list(client.converse_stream(**ASK)["stream"])) == len(converse_events())
        stub.replies.clear()
        client = stub.events(MESSAGE_STREAM).client()
        assert len(list(client.invoke_model_with_response_stream(**INVOKE)["body"])) == 5
        stub.replies.clear()
        client = stub.error(400, "ValidationException").client()
        with pytest.raises(client.exceptions.ValidationException):
            client.converse(**ASK)
    finally:
        BedrockInstrumentor().uninstrument()
    assert sum(faults().values()) > before


def test_every_wrap_point_is_there() -> None:
    import importlib

    for point in POINTS:
        module, _, path = point.target.partition(":")
        if (module.startswith("aio") and aiobotocore is None) or module.startswith("aws_sdk"):
            continue  # not installed, or in `test_bedrock_sdk`
        owner: Any = importlib.import_module(module)
        for part in path.split("."):
            owner = getattr(owner, part)
        assert callable(owner)
