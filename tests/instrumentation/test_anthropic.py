"""The anthropic client, instrumented: every kind of call gives one span with what the provider counted, and the program
sees what it would see without us."""

from __future__ import annotations

import asyncio
import gc
import json
import pickle
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import anthropic
import pydantic
import pytest
from anthropic import AsyncStream, Stream
from anthropic._response import BaseAPIResponse
from anthropic.types import Message
from opentelemetry import context
from opentelemetry.context import _SUPPRESS_INSTRUMENTATION_KEY
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import NoOpTracerProvider, SpanKind, StatusCode

from tollspan.instrumentation import faults, tag
from tollspan.instrumentation.anthropic import POINTS, AnthropicInstrumentor, batches, readers
from tollspan.instrumentation.anthropic.retries import RETRIES
from tollspan.pricing import attributes as names

from .anthropic_stub import MODEL, SERVED, Stub, batch_results, events, message, serve, tool_use

ASK: dict[str, Any] = {"model": MODEL, "max_tokens": 64, "messages": [{"role": "user", "content": "hello"}]}

USAGE = {
    names.USAGE_INPUT_TOKENS: 117,
    names.USAGE_OUTPUT_TOKENS: 20,
    names.USAGE_CACHE_READ_TOKENS: 100,
    names.USAGE_CACHE_WRITE_TOKENS: 7,
    names.USAGE_REASONING_TOKENS: 5,
    names.usage("tokens.input.cache_write.5m"): 3,
    names.usage("tokens.input.cache_write.1h"): 4,
    names.usage("web_searches"): 2,
    names.usage("web_fetches"): 1,
    names.ANTHROPIC_RESPONSE_SERVICE_TIER: "standard",
    names.RESIDENCY: "us",
}
ASKED = {
    names.OPERATION_NAME: "chat",
    names.PROVIDER_NAME: "anthropic",
    names.REQUEST_MODEL: MODEL,
    names.REQUEST_MAX_TOKENS: 64,
    names.SERVER_ADDRESS: "127.0.0.1",
    names.RETRIES: 0,
}
CHAT = {
    **ASKED,
    **USAGE,
    names.RESPONSE_ID: "msg_7",
    names.RESPONSE_MODEL: SERVED,
    names.RESPONSE_FINISH_REASONS: ("end_turn",),
}
STREAM = {**CHAT, names.REQUEST_STREAM: True}


@pytest.fixture
def stub() -> Iterator[Stub]:
    """A service that nobody has told what to say yet."""
    with serve() as stub:
        yield stub


@pytest.fixture
def spans(telemetry: Any) -> Iterator[Any]:
    """The anthropic client instrumented for this test."""
    AnthropicInstrumentor().instrument(tracer_provider=telemetry.provider)
    yield telemetry
    AnthropicInstrumentor().uninstrument()


def said(telemetry: Any) -> dict[str, Any]:
    """What the one span says, without the port, and without the one measured time of a stream."""
    attributes = telemetry.attributes()
    assert attributes.pop(names.SERVER_PORT) > 0
    if names.REQUEST_STREAM in attributes:
        assert attributes.pop(names.RESPONSE_TIME_TO_FIRST_CHUNK, 1) > 0
    return attributes


def usage_names(telemetry: Any) -> list[str]:
    return [name for name in telemetry.attributes() if "usage" in name]


# -- every kind of call ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("beta", [False, True])
def test_create(spans: Any, stub: Stub, beta: bool) -> None:
    client = stub.json(message()).client()
    result = (client.beta if beta else client).messages.create(**ASK)
    assert type(result).__name__ == ("BetaMessage" if beta else "Message")
    span = spans.only()
    assert (span.name, span.kind, span.status.status_code) == (f"chat {MODEL}", SpanKind.CLIENT, StatusCode.UNSET)
    assert said(spans) == CHAT


@pytest.mark.parametrize("beta", [False, True])
async def test_create_async(spans: Any, stub: Stub, beta: bool) -> None:
    async with stub.json(message()).async_client() as client:
        await (client.beta if beta else client).messages.create(**ASK)
    assert said(spans) == CHAT


@pytest.mark.parametrize("beta", [False, True])
@pytest.mark.parametrize("deltas", [1, 4])
def test_a_stream_whose_counts_are_cumulative(spans: Any, stub: Stub, beta: bool, deltas: int) -> None:
    client = stub.stream(events(deltas=deltas)).client()
    stream = (client.beta if beta else client).messages.create(**ASK, stream=True)
    assert isinstance(stream, Stream)
    assert stream.response.status_code == 200
    assert [event.type for event in stream][-1] == "message_stop"
    assert said(spans) == STREAM


@pytest.mark.parametrize("beta", [False, True])
async def test_a_stream_async(spans: Any, stub: Stub, beta: bool) -> None:
    async with (
        stub.stream(events(deltas=3)).async_client() as client,
        await (client.beta if beta else client).messages.create(**ASK, stream=True) as stream,
    ):
        assert isinstance(stream, AsyncStream)
        assert [event.type async for event in stream][-1] == "message_stop"
    assert said(spans) == STREAM


@pytest.mark.parametrize("beta", [False, True])
def test_the_streaming_helper(spans: Any, stub: Stub, beta: bool) -> None:
    client = stub.stream(events()).client()
    manager = (client.beta if beta else client).messages.stream(**ASK)
    assert spans.spans() == []
    with manager as stream:
        assert "".join(stream.text_stream) == "Hello."
        assert stream.get_final_message().usage.output_tokens == 20
    assert said(spans) == STREAM


@pytest.mark.parametrize("beta", [False, True])
async def test_the_streaming_helper_async(spans: Any, stub: Stub, beta: bool) -> None:
    async with (
        stub.stream(events()).async_client() as client,
        (client.beta if beta else client).messages.stream(**ASK) as stream,
    ):
        assert await stream.get_final_text() == "Hello."
    assert said(spans) == STREAM


class Greeting(pydantic.BaseModel):
    word: str


@pytest.mark.parametrize("beta", [False, True])
def test_parsed_messages(spans: Any, stub: Stub, beta: bool) -> None:
    client = stub.json(message('{"word": "hello"}')).client()
    result = (client.beta if beta else client).messages.parse(**ASK, output_format=Greeting)
    assert result.parsed_output == Greeting(word="hello")
    assert said(spans) == CHAT


async def test_parsed_messages_async(spans: Any, stub: Stub) -> None:
    async with stub.json(message('{"word": "hello"}')).async_client() as client:
        assert (await client.messages.parse(**ASK, output_format=Greeting)).parsed_output == Greeting(word="hello")
    assert said(spans) == CHAT


def test_what_was_billed_is_counted_though_the_client_could_not_parse_it(spans: Any, stub: Stub) -> None:
    client = stub.json(message('{"word": "hel', stop_reason="max_tokens")).client()
    with pytest.raises(pydantic.ValidationError):
        client.messages.parse(**ASK, output_format=Greeting)
    attributes = said(spans)
    assert attributes.pop(names.ERROR_TYPE).endswith("ValidationError")
    assert attributes == {**CHAT, names.RESPONSE_FINISH_REASONS: ("max_tokens",)}


def add(a: int, b: int) -> str:
    """Add two numbers.

    Args:
        a: one.
        b: the other.
    """
    return str(a + b)


def test_every_turn_of_the_tool_runner_is_a_call_of_its_own(spans: Any, stub: Stub) -> None:
    client = stub.json(tool_use(id="msg_1")).json(message(id="msg_2")).client()
    runner = client.beta.messages.tool_runner(**ASK, tools=[anthropic.beta_tool(add)])
    assert runner.until_done().content[0].text == "Hello."
    assert [dict(span.attributes)[names.RESPONSE_ID] for span in spans.spans()] == ["msg_1", "msg_2"]
    assert all(dict(span.attributes)[names.USAGE_INPUT_TOKENS] == 117 for span in spans.spans())


async def test_every_turn_of_the_streaming_tool_runner_async(spans: Any, stub: Stub) -> None:
    asked = events()
    asked[0]["message"]["id"] = "msg_1"
    call = {"type": "tool_use", "id": "toolu_1", "name": "add", "input": {}}
    asked[1]["content_block"] = call
    asked[2:6] = [
        {
            "type": "content_block_delta",
            "index": 0,
            "delta": {"type": "input_json_delta", "partial_json": '{"a": 1, "b": 2}'},
        }
    ]
    next(event for event in asked if event["type"] == "message_delta")["delta"]["stop_reason"] = "tool_use"

    async def add_async(a: int, b: int) -> str:
        """Add two numbers."""
        return str(a + b)

    async with stub.stream(asked).stream(events()).async_client() as client:
        tools = [anthropic.beta_async_tool(add_async, name="add")]
        async for stream in client.beta.messages.tool_runner(**ASK, tools=tools, stream=True):
            async for _ in stream:
                pass
    assert [dict(span.attributes)[names.RESPONSE_ID] for span in spans.spans()] == ["msg_1", "msg_7"]
    assert all(dict(span.attributes)[names.USAGE_OUTPUT_TOKENS] == 20 for span in spans.spans())


def test_counting_tokens_is_free_and_no_span(spans: Any, stub: Stub) -> None:
    client = stub.json({"input_tokens": 5}).client()
    assert client.messages.count_tokens(model=MODEL, messages=ASK["messages"]).input_tokens == 5
    assert spans.spans() == []


def test_where_it_is_to_be_processed_is_told_though_the_answer_does_not(spans: Any, stub: Stub) -> None:
    usage = {"input_tokens": 1, "output_tokens": 2}
    stub.json(message(usage=usage)).client().messages.create(**ASK, extra_body={"inference_geo": "us"})
    assert said(spans)[names.RESIDENCY] == "us"


# -- raw responses ---------------------------------------------------------------------------------------------------


def test_a_raw_response_is_untouched_and_counted_parsed_or_not(spans: Any, stub: Stub) -> None:
    raw = stub.json(message()).client().messages.with_raw_response.create(**ASK)
    assert not hasattr(raw, "__wrapped__")
    assert said(spans) == CHAT
    assert raw.parse() is raw.parse()
    assert type(raw.parse()) is Message
    assert len(spans.spans()) == 1


async def test_a_raw_response_async(spans: Any, stub: Stub) -> None:
    async with stub.json(message()).async_client() as client:
        raw = await client.beta.messages.with_raw_response.create(**ASK)
        parsed = raw.parse()
        assert (await parsed if asyncio.iscoroutine(parsed) else parsed).id == "msg_7"
    assert said(spans) == CHAT


def test_a_raw_stream_is_counted_when_it_is_parsed_and_read(spans: Any, stub: Stub) -> None:
    raw = stub.stream(events()).client().messages.with_raw_response.create(**ASK, stream=True)
    assert not hasattr(raw, "__wrapped__")
    stream = raw.parse()
    assert isinstance(stream, Stream)
    assert raw.parse() is stream
    assert spans.spans() == []
    assert [event.type for event in stream][-1] == "message_stop"
    assert said(spans) == STREAM


async def test_a_raw_stream_async(spans: Any, stub: Stub) -> None:
    async with stub.stream(events()).async_client() as client:
        raw = await client.messages.with_raw_response.create(**ASK, stream=True)
        parsed = raw.parse()
        stream = await parsed if asyncio.iscoroutine(parsed) else parsed
        assert [event.type async for event in stream][-1] == "message_stop"
    assert said(spans) == STREAM


def test_a_raw_stream_never_parsed_ends_its_span_when_it_goes(spans: Any, stub: Stub) -> None:
    raw = stub.stream(events()).client().messages.with_raw_response.create(**ASK, stream=True)
    assert spans.spans() == []
    del raw
    gc.collect()
    assert usage_names(spans) == []


@pytest.mark.parametrize("take", ["parse", "json", "read", "text"])
def test_a_streaming_response_is_counted_however_its_body_is_taken(spans: Any, stub: Stub, take: str) -> None:
    client = stub.json(message()).client()
    with client.messages.with_streaming_response.create(**ASK) as response:
        assert isinstance(response, BaseAPIResponse)
        assert spans.spans() == []
        getattr(response, take)()
    assert said(spans) == CHAT


async def test_a_streaming_response_async(spans: Any, stub: Stub) -> None:
    async with (
        stub.json(message()).async_client() as client,
        client.messages.with_streaming_response.create(**ASK) as response,
    ):
        assert (await response.parse()).id == "msg_7"
    assert said(spans) == CHAT


def test_a_streaming_response_closed_unread_ends_its_span_with_no_usage(spans: Any, stub: Stub) -> None:
    with stub.stream(events()).client().messages.with_streaming_response.create(**ASK, stream=True):
        pass
    assert usage_names(spans) == []


def test_a_parsed_stream_of_a_streaming_response(spans: Any, stub: Stub) -> None:
    with stub.stream(events()).client().messages.with_streaming_response.create(**ASK, stream=True) as response:
        assert [event.type for event in response.parse()][-1] == "message_stop"
    assert said(spans) == STREAM


# -- left early ------------------------------------------------------------------------------------------------------

EARLY = {
    names.USAGE_INPUT_TOKENS: 117,
    names.USAGE_CACHE_READ_TOKENS: 100,
    names.USAGE_CACHE_WRITE_TOKENS: 7,
    names.STREAM_ABANDONED: True,
}


def assert_left_early(telemetry: Any) -> None:
    """The input was told; of the output there was only a placeholder, which is not usage."""
    attributes = said(telemetry)
    assert attributes.items() >= EARLY.items()
    assert names.USAGE_OUTPUT_TOKENS not in attributes
    assert names.USAGE_REASONING_TOKENS not in attributes
    assert names.RESPONSE_FINISH_REASONS not in attributes


def test_a_stream_left_after_its_first_event_tells_its_input_alone(spans: Any, stub: Stub) -> None:
    with stub.stream(events()).client().messages.create(**ASK, stream=True) as stream:
        assert next(stream).type == "message_start"
    assert_left_early(spans)


def test_a_stream_dropped(spans: Any, stub: Stub) -> None:
    stream = stub.stream(events()).client().messages.create(**ASK, stream=True)
    for _ in stream:
        break
    del stream
    gc.collect()
    assert_left_early(spans)


async def test_a_stream_left_early_async(spans: Any, stub: Stub) -> None:
    async with (
        stub.stream(events()).async_client() as client,
        await client.messages.create(**ASK, stream=True) as stream,
    ):
        await anext(stream)
    assert_left_early(spans)


def test_the_streaming_helper_left_early(spans: Any, stub: Stub) -> None:
    with stub.stream(events()).client().messages.stream(**ASK) as stream:
        for _ in stream:
            break
    assert_left_early(spans)


async def test_the_streaming_helper_left_early_async(spans: Any, stub: Stub) -> None:
    async with (
        stub.stream(events()).async_client() as client,
        client.beta.messages.stream(**ASK) as stream,
    ):
        async for _ in stream:
            break
    assert_left_early(spans)


def test_a_stream_left_after_a_count_of_its_output_tells_that_count(spans: Any, stub: Stub) -> None:
    with stub.stream(events(deltas=4)).client().messages.create(**ASK, stream=True) as stream:
        for event in stream:
            if event.type == "message_delta":
                break
    attributes = said(spans)
    assert attributes[names.USAGE_OUTPUT_TOKENS] == 5
    assert attributes[names.STREAM_ABANDONED] is True


def test_a_stream_left_at_its_last_count_is_complete(spans: Any, stub: Stub) -> None:
    with stub.stream(events()).client().messages.create(**ASK, stream=True) as stream:
        for event in stream:
            if event.type == "message_delta":
                break
    assert said(spans) == STREAM


@pytest.mark.skipif(
    anthropic.__version__.startswith("0."),
    reason="the client itself, without us too, may wait for ever when the garbage collector closes its streams",
)
def test_streams_that_nobody_reads_leave_nothing_behind(spans: Any, stub: Stub) -> None:
    client = stub.stream(events()).client()
    for _ in range(20):
        next(client.messages.create(**ASK, stream=True))
    gc.collect()
    before = len(gc.get_objects())
    for _ in range(100):
        next(client.messages.create(**ASK, stream=True))
    spans.exporter.clear()
    gc.collect()
    assert len(gc.get_objects()) - before < 500


def test_the_program_runs_in_its_own_context_between_events(spans: Any, stub: Stub) -> None:
    outside = context.get_current()
    for _ in stub.stream(events()).client().messages.create(**ASK, stream=True):
        assert context.get_current() is outside


# -- failures --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, anthropic.BadRequestError),
        (401, anthropic.AuthenticationError),
        (404, anthropic.NotFoundError),
        (413, anthropic.APIStatusError),
    ],
)
def test_a_refusal_is_the_clients_own_exception_and_bills_nothing(
    spans: Any, stub: Stub, status: int, error: type[anthropic.APIStatusError]
) -> None:
    with pytest.raises(error) as caught:
        stub.error(status).client().messages.create(**ASK)
    attributes = said(spans)
    assert attributes.pop(names.ERROR_TYPE).endswith(type(caught.value).__name__)
    assert attributes == {**ASKED, names.HTTP_STATUS: status}
    assert spans.only().status.status_code is StatusCode.ERROR


@pytest.mark.parametrize("status", [429, 500, 529])
def test_attempts_that_the_client_made_again_are_counted(spans: Any, stub: Stub, status: int) -> None:
    stub.error(status).error(status).json(message()).client().messages.create(**ASK)
    assert len(stub.requests) == 3
    assert said(spans) == {**CHAT, names.RETRIES: 2}


async def test_attempts_that_the_client_made_again_are_counted_async(spans: Any, stub: Stub) -> None:
    async with (
        stub.error(529).stream(events()).async_client() as client,
        client.messages.stream(**ASK) as stream,
    ):
        await stream.until_done()
    assert said(spans) == {**STREAM, names.RETRIES: 1}


def test_attempts_are_counted_when_none_succeeds(spans: Any, stub: Stub) -> None:
    with pytest.raises(anthropic.InternalServerError):
        stub.error(503).client().messages.create(**ASK)
    attributes = said(spans)
    assert (attributes[names.RETRIES], attributes[names.HTTP_STATUS], len(stub.requests)) == (2, 503, 3)


def test_a_timeout(spans: Any, stub: Stub) -> None:
    stub.hang()
    with pytest.raises(anthropic.APITimeoutError):
        stub.client(max_retries=0, timeout=0.2).messages.create(**ASK)
    attributes = said(spans)
    assert attributes[names.ERROR_TYPE] == "anthropic.APITimeoutError"
    assert names.CALL_SENT not in attributes
    assert usage_names(spans) == []


async def test_a_cancelled_call_ends_its_span(spans: Any, stub: Stub) -> None:
    reached = stub.hang()
    async with stub.async_client() as client:
        task = asyncio.create_task(client.messages.create(**ASK))
        await asyncio.to_thread(reached.wait, 20)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert said(spans)[names.ERROR_TYPE] == "asyncio.exceptions.CancelledError"


async def test_a_stream_cancelled_while_it_waits_for_an_event(spans: Any, stub: Stub) -> None:
    gate = threading.Semaphore(1)
    async with stub.stream(events(), gate=gate).async_client() as client:
        first = asyncio.Event()

        async def read() -> None:
            async for _ in await client.messages.create(**ASK, stream=True):
                first.set()

        task = asyncio.create_task(read())
        await first.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        gate.release(100)
    attributes = said(spans)
    assert attributes[names.USAGE_INPUT_TOKENS] == 117
    assert names.USAGE_OUTPUT_TOKENS not in attributes


def test_a_connection_cut_in_the_middle_of_a_stream(spans: Any, stub: Stub) -> None:
    client = stub.stream(events()[:4], broken=True).client()
    with pytest.raises(Exception, match=r"incomplete chunked read|peer closed|disconnect"):
        list(client.messages.create(**ASK, stream=True))
    attributes = said(spans)
    assert attributes[names.USAGE_INPUT_TOKENS] == 117
    assert names.USAGE_OUTPUT_TOKENS not in attributes
    assert spans.only().status.status_code is StatusCode.ERROR


def test_an_error_event_in_the_middle_of_a_stream(spans: Any, stub: Stub) -> None:
    overloaded = {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}
    with pytest.raises(anthropic.APIStatusError):
        list(stub.stream([*events()[:3], overloaded]).client().messages.create(**ASK, stream=True))
    attributes = said(spans)
    assert attributes[names.USAGE_INPUT_TOKENS] == 117
    assert names.USAGE_OUTPUT_TOKENS not in attributes


def test_what_could_not_be_sent_was_not_sent(spans: Any, stub: Stub) -> None:
    with pytest.raises(TypeError):
        stub.client().messages.create(**{**ASK, "messages": [{"role": "user", "content": object()}]})
    assert stub.requests == []
    assert said(spans)[names.CALL_SENT] is False


def test_without_the_hook_nothing_is_said_about_retries(
    spans: Any, stub: Stub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RETRIES, "hooked", set())
    stub.json(message()).client().messages.create(**ASK)
    assert names.RETRIES not in spans.attributes()


# -- many at once, and none at all -----------------------------------------------------------------------------------


def test_calls_in_threads_do_not_mix(spans: Any, stub: Stub) -> None:
    client = stub.stream(events()).client()

    def work(number: int) -> None:
        with tag(tenant=f"t{number}"):
            for _ in client.messages.create(**{**ASK, "model": f"m{number}"}, stream=True):
                pass

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(40)))
    of = {dict(span.attributes)[names.REQUEST_MODEL]: dict(span.attributes) for span in spans.spans()}
    assert len(of) == len(spans.spans()) == 40
    assert all(of[f"m{n}"][names.TENANT] == f"t{n}" and of[f"m{n}"].items() >= USAGE.items() for n in range(40))


async def test_streams_read_in_turns_do_not_mix(spans: Any, stub: Stub) -> None:
    async with stub.stream(events()).async_client() as client:
        streams = [await client.messages.create(**{**ASK, "model": f"m{n}"}, stream=True) for n in range(5)]
        await asyncio.gather(*(asyncio.ensure_future(drain(stream)) for stream in streams))
    assert {dict(span.attributes)[names.REQUEST_MODEL] for span in spans.spans()} == {f"m{n}" for n in range(5)}


async def drain(stream: Any) -> None:
    async for _ in stream:
        await asyncio.sleep(0)


@pytest.mark.parametrize("provider", [NoOpTracerProvider(), TracerProvider(sampler=ALWAYS_OFF)])
def test_without_anybody_to_see_a_span_everything_works(stub: Stub, provider: Any) -> None:
    AnthropicInstrumentor().instrument(tracer_provider=provider)
    try:
        client = stub.json(message()).client()
        assert type(client.messages.create(**ASK)) is Message
        stub.replies.clear()
        stub.stream(events())
        assert type(client.messages.create(**ASK, stream=True)) is Stream
        with client.messages.stream(**ASK) as stream:
            assert stream.get_final_text() == "Hello."
    finally:
        AnthropicInstrumentor().uninstrument()


def test_suppression_is_respected(spans: Any, stub: Stub) -> None:
    token = context.attach(context.set_value(_SUPPRESS_INSTRUMENTATION_KEY, True))
    try:
        stub.json(message()).client(**quiet()).messages.create(**ASK)
    finally:
        context.detach(token)
    assert spans.spans() == []


def quiet() -> dict[str, Any]:
    """Options of a client that makes no spans of its own."""
    major = int(anthropic.__version__.partition(".")[0])
    return {"open_telemetry": False} if major > 1 or anthropic.__version__ >= "1.14" else {}


# -- as if we were not there -----------------------------------------------------------------------------------------


HOOKED = (
    "anthropic._base_client:SyncAPIClient.request",
    "anthropic._base_client:AsyncAPIClient.request",
    "anthropic._base_client:SyncAPIClient._sleep_for_retry",
    "anthropic._base_client:SyncAPIClient._build_request",
    "anthropic._base_client:start_api_call_span",
    "anthropic._response:APIResponse.parse",
    "anthropic._response:AsyncAPIResponse.close",
    "anthropic.resources.messages.batches:Batches.retrieve",
    "anthropic.resources.beta.messages.batches:AsyncBatches.create",
)


def found(target: str) -> Any:
    import importlib

    module, _, path = target.partition(":")
    owner: Any = importlib.import_module(module)
    *parts, name = path.split(".")
    for part in parts:
        owner = getattr(owner, part)
    return vars(owner).get(name)


def exists(target: str) -> bool:
    """Whether this version of the client has it, inherited or not."""
    return target != "anthropic._base_client:start_api_call_span" or found(target) is not None


def test_uninstrument_puts_back_the_identical_objects(telemetry: Any) -> None:
    before = {target: found(target) for target in HOOKED}
    AnthropicInstrumentor().instrument(tracer_provider=telemetry.provider)
    assert all(found(target) is not before[target] for target in HOOKED if exists(target))
    AnthropicInstrumentor().uninstrument()
    assert all(found(target) is before[target] for target in HOOKED)


def test_a_client_made_before_and_used_after_makes_no_span(telemetry: Any, stub: Stub) -> None:
    AnthropicInstrumentor().instrument(tracer_provider=telemetry.provider)
    client = stub.json(message()).client()
    create = client.messages.create
    AnthropicInstrumentor().uninstrument()
    create(**ASK)
    assert telemetry.spans() == []


@pytest.mark.parametrize("point", POINTS, ids=lambda point: point.target)
def test_the_wrappers_look_like_what_they_wrap(telemetry: Any, point: Any) -> None:
    import inspect

    before = found(point.target)
    AnthropicInstrumentor().instrument(tracer_provider=telemetry.provider)
    now = found(point.target)
    try:
        assert now.__wrapped__ is before
        assert (now.__name__, now.__qualname__, inspect.signature(now)) == (
            before.__name__,
            before.__qualname__,
            inspect.signature(before),
        )
        assert inspect.iscoroutinefunction(now) == inspect.iscoroutinefunction(before)
    finally:
        AnthropicInstrumentor().uninstrument()


def test_results_pickle_and_print_as_before(spans: Any, stub: Stub) -> None:
    client = stub.json(message()).client()
    with_us = client.messages.create(**ASK)
    AnthropicInstrumentor().uninstrument()
    without = client.messages.create(**ASK)
    assert with_us == without
    assert repr(with_us) == repr(without)
    assert pickle.loads(pickle.dumps(with_us)) == without
    AnthropicInstrumentor().instrument(tracer_provider=spans.provider)


def test_a_stream_prints_and_behaves_as_before(spans: Any, stub: Stub) -> None:
    stream = stub.stream(events()).client().messages.create(**ASK, stream=True)
    assert stream.__class__ is Stream
    assert "Stream" in repr(stream)
    assert iter(stream) is not None
    stream.close()
    assert stream.response.is_closed


@pytest.mark.parametrize("hook", ["read_request", "read_message", "read_event", "tell_usage"])
def test_a_fault_of_ours_never_reaches_the_program(
    stub: Stub, faulty_telemetry: Any, hook: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("ours")

    monkeypatch.setattr(readers, hook, broken)
    AnthropicInstrumentor().instrument(tracer_provider=faulty_telemetry.provider)
    before = sum(faults().values())
    try:
        client = stub.json(message()).client(**quiet())
        assert client.messages.create(**ASK) == client.messages.with_raw_response.create(**ASK).parse()
        stub.replies.clear()
        stub.stream(events())
        assert [event.type for event in client.messages.create(**ASK, stream=True)][-1] == "message_stop"
        with client.messages.stream(**ASK) as stream:
            assert stream.get_final_text() == "Hello."
    finally:
        AnthropicInstrumentor().uninstrument()
    assert sum(faults().values()) > before
    if hook != "read_request":
        assert len(faulty_telemetry.spans()) == 4


def test_a_fault_at_a_batch_never_reaches_the_program(
    stub: Stub, faulty_telemetry: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("ours")

    monkeypatch.setattr(batches, "fields", broken)
    AnthropicInstrumentor().instrument(tracer_provider=faulty_telemetry.provider)
    try:
        client = stub.batch().lines(batch_results()).client()
        assert len(list(client.messages.batches.results("msgbatch_1"))) == 3
    finally:
        AnthropicInstrumentor().uninstrument()
    assert faults()["anthropic.batch.result"] >= 3
    assert faults()["anthropic.after"] >= 1


def test_being_instrumented_imports_nothing_of_the_client() -> None:
    code = (
        "import sys; from tollspan.instrumentation.anthropic import AnthropicInstrumentor as A; A().instrument();"
        "assert not [name for name in sys.modules if name.partition('.')[0] in ('anthropic', 'httpx', 'httpx2')];"
        "import anthropic; assert hasattr(anthropic.Anthropic.request, '__wrapped__')"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_stream_still_open_at_exit_is_told() -> None:
    code = """
import sys
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor
from tollspan.instrumentation.anthropic import AnthropicInstrumentor
import anthropic
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(ConsoleSpanExporter()))
AnthropicInstrumentor().instrument(tracer_provider=provider)
client = anthropic.Anthropic(api_key="none", base_url=sys.argv[1])
stream = client.messages.create(model="m", max_tokens=1, messages=[{"role": "user", "content": "x"}], stream=True)
next(stream)
"""
    with serve() as stub:
        stub.stream(events())
        done = subprocess.run(
            [sys.executable, "-c", code, stub.url], check=True, timeout=60, capture_output=True, text=True
        )
    span = json.loads(done.stdout)
    assert span["attributes"][names.USAGE_INPUT_TOKENS] == 117
    assert span["attributes"][names.STREAM_ABANDONED] is True
