"""The openai client, instrumented: every kind of call gives one span with what the provider counted, and the program
sees what it would see without us."""

from __future__ import annotations

import asyncio
import gc
import importlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pydantic
import pytest
from openai import AsyncStream, Stream
from openai._legacy_response import LegacyAPIResponse
from openai._response import APIResponse, AsyncAPIResponse
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.responses import Response
from opentelemetry import context
from opentelemetry.trace import SpanKind, StatusCode

from tollspan.instrumentation import faults, tag
from tollspan.instrumentation.openai import POINTS, OpenAIInstrumentor, readers
from tollspan.pricing import attributes as names

from .http_library import httpx2

BROKEN_OFF: Any = httpx2.RemoteProtocolError if openai.__version__ < "3" else openai.APIConnectionError
"""What the client raises from a stream whose connection breaks: version 2 hands on the transport's own error."""

MODEL = "gpt-5-mini"
ASK: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}]}
RESPOND: dict[str, Any] = {"model": MODEL, "input": "hello"}

USAGE = {
    names.USAGE_INPUT_TOKENS: 100,
    names.USAGE_OUTPUT_TOKENS: 20,
    names.USAGE_CACHE_READ_TOKENS: 80,
    names.USAGE_CACHE_WRITE_TOKENS: 10,
    names.USAGE_REASONING_TOKENS: 7,
}
AUDIO = {names.USAGE_AUDIO_INPUT_TOKENS: 0, names.USAGE_AUDIO_OUTPUT_TOKENS: 0}
REQUEST = {
    names.OPERATION_NAME: "chat",
    names.PROVIDER_NAME: "openai",
    names.REQUEST_MODEL: MODEL,
    names.SERVER_ADDRESS: "api.openai.com",
    names.SERVER_PORT: 443,
    names.RETRIES: 0,
}
CHAT = {
    **REQUEST,
    **USAGE,
    **AUDIO,
    names.OPENAI_API_TYPE: "chat_completions",
    names.RESPONSE_ID: "chatcmpl-7",
    names.RESPONSE_MODEL: "gpt-5-mini-2025-08-07",
    names.RESPONSE_FINISH_REASONS: ("stop",),
    names.OPENAI_RESPONSE_SERVICE_TIER: "default",
}
CHAT_STREAM = {**CHAT, names.REQUEST_STREAM: True, names.OPENAI_RESPONSE_SERVICE_TIER: "flex"}
RESPONSES = {
    **REQUEST,
    **USAGE,
    names.OPENAI_API_TYPE: "responses",
    names.RESPONSE_ID: "resp_7",
    names.RESPONSE_MODEL: "gpt-5-mini-2025-08-07",
    names.RESPONSE_FINISH_REASONS: ("completed",),
    names.OPENAI_RESPONSE_SERVICE_TIER: "priority",
    names.usage("web_searches"): 2,
}
RESPONSES_STREAM = {**RESPONSES, names.REQUEST_STREAM: True}


def without_time(attributes: dict[str, Any]) -> dict[str, Any]:
    """Attributes of a streamed call, whose one measured time is checked here."""
    assert attributes.pop(names.RESPONSE_TIME_TO_FIRST_CHUNK) > 0
    return attributes


# -- every kind of call ----------------------------------------------------------------------------------------------


def test_chat(openai_spans: Any, wire: Any) -> None:
    result = wire.json(wire.completion()).client().chat.completions.create(**ASK)
    assert type(result) is ChatCompletion
    span = openai_spans.only()
    assert (span.name, span.kind, span.status.status_code) == ("chat gpt-5-mini", SpanKind.CLIENT, StatusCode.UNSET)
    assert openai_spans.attributes() == CHAT


async def test_chat_async(openai_spans: Any, wire: Any) -> None:
    result = await wire.json(wire.completion()).async_client().chat.completions.create(**ASK)
    assert type(result) is ChatCompletion
    assert openai_spans.attributes() == CHAT


def test_chat_stream(openai_spans: Any, wire: Any) -> None:
    stream = wire.stream(wire.completion_chunks()).client().chat.completions.create(**ASK, stream=True)
    assert isinstance(stream, Stream)
    assert stream.response.status_code == 200
    chunks = list(stream)
    assert [type(chunk) for chunk in chunks] == [ChatCompletionChunk] * 5
    assert without_time(openai_spans.attributes()) == CHAT_STREAM


async def test_chat_stream_async(openai_spans: Any, wire: Any) -> None:
    client = wire.stream(wire.completion_chunks()).async_client()
    async with await client.chat.completions.create(**ASK, stream=True) as stream:
        assert isinstance(stream, AsyncStream)
        assert len([chunk async for chunk in stream]) == 5
    assert without_time(openai_spans.attributes()) == CHAT_STREAM


def test_a_stream_whose_provider_sends_no_usage_has_none(openai_spans: Any, wire: Any) -> None:
    list(wire.stream(wire.completion_chunks(usage=False)).client().chat.completions.create(**ASK, stream=True))
    attributes = openai_spans.attributes()
    assert attributes[names.RESPONSE_FINISH_REASONS] == ("stop",)
    assert not [name for name in attributes if "usage" in name]
    assert names.STREAM_ABANDONED not in attributes


def test_responses(openai_spans: Any, wire: Any) -> None:
    result = wire.json(wire.response()).client().responses.create(**RESPOND)
    assert type(result) is Response
    assert openai_spans.attributes() == RESPONSES


async def test_responses_async(openai_spans: Any, wire: Any) -> None:
    assert (await wire.json(wire.response()).async_client().responses.create(**RESPOND)).output_text == "Hello."
    assert openai_spans.attributes() == RESPONSES


def test_responses_stream(openai_spans: Any, wire: Any) -> None:
    stream = wire.stream(wire.response_events()).client().responses.create(**RESPOND, stream=True)
    assert isinstance(stream, Stream)
    assert [event.type for event in stream][-1] == "response.completed"
    assert without_time(openai_spans.attributes()) == RESPONSES_STREAM


async def test_responses_stream_async(openai_spans: Any, wire: Any) -> None:
    client = wire.stream(wire.response_events()).async_client()
    async for _ in await client.responses.create(**RESPOND, stream=True):
        pass
    assert without_time(openai_spans.attributes()) == RESPONSES_STREAM


def test_a_responses_stream_left_at_its_last_event_is_complete(openai_spans: Any, wire: Any) -> None:
    with wire.stream(wire.response_events()).client().responses.create(**RESPOND, stream=True) as stream:
        for event in stream:
            if event.type == "response.completed":
                break
    assert without_time(openai_spans.attributes()) == RESPONSES_STREAM


# -- helpers that reach `create`, and those that do not --------------------------------------------------------------


def test_the_streaming_helper_of_chat_gives_one_span(openai_spans: Any, wire: Any) -> None:
    with wire.stream(wire.completion_chunks()).client().chat.completions.stream(**ASK) as stream:
        assert stream.get_final_completion().usage.prompt_tokens == 100
    assert without_time(openai_spans.attributes()) == CHAT_STREAM


async def test_the_streaming_helper_of_chat_gives_one_span_async(openai_spans: Any, wire: Any) -> None:
    async with wire.stream(wire.completion_chunks()).async_client().chat.completions.stream(**ASK) as stream:
        assert (await stream.get_final_completion()).usage.prompt_tokens == 100
    assert without_time(openai_spans.attributes()) == CHAT_STREAM


def test_the_streaming_helper_left_early_gives_one_abandoned_span(openai_spans: Any, wire: Any) -> None:
    def work() -> None:
        with wire.stream(wire.completion_chunks()).client().chat.completions.stream(**ASK) as stream:
            for _ in stream:
                break

    work()
    gc.collect()
    assert openai_spans.attributes()[names.STREAM_ABANDONED] is True


def test_the_streaming_helper_of_responses_gives_one_span(openai_spans: Any, wire: Any) -> None:
    with wire.stream(wire.response_events()).client().responses.stream(**RESPOND) as stream:
        assert stream.get_final_response().usage.input_tokens == 100
    assert without_time(openai_spans.attributes()) == RESPONSES_STREAM


class Greeting(pydantic.BaseModel):
    word: str


def test_parsed_calls_give_one_span(openai_spans: Any, wire: Any) -> None:
    message = {"role": "assistant", "content": '{"word": "hello"}'}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    client = wire.json(wire.completion(choices=[choice])).client()
    result = client.chat.completions.parse(**ASK, response_format=Greeting)
    assert result.choices[0].message.parsed == Greeting(word="hello")
    assert openai_spans.attributes() == CHAT


async def test_parsed_responses_give_one_span(openai_spans: Any, wire: Any) -> None:
    client = wire.json(wire.response()).async_client()
    assert (await client.responses.parse(**RESPOND)).output_text == "Hello."
    assert openai_spans.attributes() == RESPONSES


@pytest.mark.parametrize(
    ("finish_reason", "content", "error"),
    [
        ("length", '{"word": "hel', openai.LengthFinishReasonError),
        ("content_filter", "", openai.ContentFilterFinishReasonError),
        ("stop", "not json", pydantic.ValidationError),
    ],
)
def test_what_was_billed_is_counted_though_the_client_could_not_parse_it(
    openai_spans: Any, wire: Any, finish_reason: str, content: str, error: type[Exception]
) -> None:
    message = {"role": "assistant", "content": content}
    choice = {"index": 0, "message": message, "finish_reason": finish_reason}
    client = wire.json(wire.completion(choices=[choice])).client()
    with pytest.raises(error):
        client.chat.completions.parse(**ASK, response_format=Greeting)
    attributes = openai_spans.attributes()
    assert attributes.pop(names.ERROR_TYPE).endswith(error.__name__)
    assert attributes == {**CHAT, names.RESPONSE_FINISH_REASONS: (finish_reason,)}
    assert openai_spans.only().status.status_code is StatusCode.ERROR


# -- raw responses ---------------------------------------------------------------------------------------------------


def test_a_raw_response_is_untouched_and_counted_parsed_or_not(openai_spans: Any, wire: Any) -> None:
    client = wire.json(wire.completion()).client()
    raw = client.chat.completions.with_raw_response.create(**ASK)
    assert type(raw) is LegacyAPIResponse
    assert openai_spans.attributes() == CHAT
    assert raw.parse() is raw.parse()
    assert type(raw.parse()) is ChatCompletion
    assert len(openai_spans.spans()) == 1


async def test_a_raw_response_async(openai_spans: Any, wire: Any) -> None:
    raw = await wire.json(wire.response()).async_client().responses.with_raw_response.create(**RESPOND)
    assert raw.parse().output_text == "Hello."
    assert openai_spans.attributes() == RESPONSES


def test_a_raw_stream_is_counted_when_it_is_parsed_and_read(openai_spans: Any, wire: Any) -> None:
    client = wire.stream(wire.completion_chunks()).client()
    raw = client.chat.completions.with_raw_response.create(**ASK, stream=True)
    assert type(raw) is LegacyAPIResponse
    stream = raw.parse()
    assert isinstance(stream, Stream)
    assert raw.parse() is stream
    assert openai_spans.spans() == []
    assert len(list(stream)) == 5
    assert without_time(openai_spans.attributes()) == CHAT_STREAM


def test_a_parsed_stream_outlives_its_raw_response(openai_spans: Any, wire: Any) -> None:
    client = wire.stream(wire.completion_chunks()).client()
    stream = client.chat.completions.with_raw_response.create(**ASK, stream=True).parse()
    gc.collect()
    assert openai_spans.spans() == []
    assert len(list(stream)) == 5
    assert without_time(openai_spans.attributes()) == CHAT_STREAM


async def test_a_raw_stream_async(openai_spans: Any, wire: Any) -> None:
    client = wire.stream(wire.response_events()).async_client()
    raw = await client.responses.with_raw_response.create(**RESPOND, stream=True)
    assert [event.type async for event in raw.parse()][-1] == "response.completed"
    assert without_time(openai_spans.attributes()) == RESPONSES_STREAM


def test_a_raw_stream_never_parsed_ends_its_span_when_it_goes(openai_spans: Any, wire: Any) -> None:
    client = wire.stream(wire.completion_chunks()).client()
    raw = client.chat.completions.with_raw_response.create(**ASK, stream=True)
    assert openai_spans.spans() == []
    del raw
    gc.collect()
    assert not [name for name in openai_spans.attributes() if "usage" in name]


@pytest.mark.parametrize("take", ["parse", "json", "read", "text"])
def test_a_streaming_response_is_counted_however_its_body_is_taken(openai_spans: Any, wire: Any, take: str) -> None:
    client = wire.json(wire.completion()).client()
    with client.chat.completions.with_streaming_response.create(**ASK) as response:
        assert type(response) is APIResponse
        assert openai_spans.spans() == []
        getattr(response, take)()
    assert openai_spans.attributes() == CHAT


async def test_a_streaming_response_async(openai_spans: Any, wire: Any) -> None:
    client = wire.json(wire.response()).async_client()
    async with client.responses.with_streaming_response.create(**RESPOND) as response:
        assert type(response) is AsyncAPIResponse
        assert (await response.parse()).output_text == "Hello."
    assert openai_spans.attributes() == RESPONSES


def test_a_streaming_response_closed_unread_ends_its_span_with_no_usage(openai_spans: Any, wire: Any) -> None:
    class Body(httpx2.SyncByteStream):
        def __iter__(self) -> Any:
            raise AssertionError("nobody reads")

    wire.replies.append(lambda: httpx2.Response(200, stream=Body()))
    with wire.client().chat.completions.with_streaming_response.create(**ASK):
        pass
    assert not [name for name in openai_spans.attributes() if "usage" in name]


async def test_a_parsed_stream_of_a_streaming_response(openai_spans: Any, wire: Any) -> None:
    client = wire.stream(wire.completion_chunks()).async_client()
    async with client.chat.completions.with_streaming_response.create(**ASK, stream=True) as response:
        stream = await response.parse()
        assert len([chunk async for chunk in stream]) == 5
    assert without_time(openai_spans.attributes()) == CHAT_STREAM


def test_a_parsed_stream_of_a_streaming_response_left_early_is_abandoned(openai_spans: Any, wire: Any) -> None:
    client = wire.stream(wire.completion_chunks()).client()
    with client.chat.completions.with_streaming_response.create(**ASK, stream=True) as response:
        next(response.parse())
    assert openai_spans.attributes()[names.STREAM_ABANDONED] is True


def test_a_streaming_response_that_cannot_be_parsed_ends_its_span_with_the_error(openai_spans: Any, wire: Any) -> None:
    client = wire.stream([], breaking=httpx2.ReadError("gone")).client()
    with (
        client.chat.completions.with_streaming_response.create(**ASK) as response,
        pytest.raises(httpx2.ReadError) as caught,
    ):
        response.parse()
    assert caught.value.args == ("gone",)
    assert openai_spans.only().status.status_code is StatusCode.ERROR


# -- failures and retries --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "error"),
    [(400, openai.BadRequestError), (401, openai.AuthenticationError), (404, openai.NotFoundError)],
)
def test_a_refusal_is_the_clients_own_exception_and_bills_nothing(
    openai_spans: Any, wire: Any, status: int, error: type[openai.APIStatusError]
) -> None:
    with pytest.raises(error) as caught:
        wire.error(status).client().chat.completions.create(**ASK)
    assert caught.value.__cause__ is None
    span = openai_spans.only()
    assert span.status.status_code is StatusCode.ERROR
    assert openai_spans.attributes() == {
        **REQUEST,
        names.OPENAI_API_TYPE: "chat_completions",
        names.ERROR_TYPE: f"openai.{error.__name__}",
        names.HTTP_STATUS: status,
    }


def test_attempts_that_the_client_made_again_are_counted(openai_spans: Any, wire: Any) -> None:
    client = wire.error(429).error(500).json(wire.completion()).client()
    client.chat.completions.create(**ASK)
    assert len(wire.requests) == 3
    assert openai_spans.attributes() == {**CHAT, names.RETRIES: 2}


async def test_attempts_that_the_client_made_again_are_counted_async(openai_spans: Any, wire: Any) -> None:
    client = wire.error(429).stream(wire.response_events()).async_client()
    async for _ in await client.responses.create(**RESPOND, stream=True):
        pass
    assert without_time(openai_spans.attributes()) == {**RESPONSES_STREAM, names.RETRIES: 1}


def test_attempts_are_counted_when_none_succeeds(openai_spans: Any, wire: Any) -> None:
    with pytest.raises(openai.InternalServerError):
        wire.error(503).client(max_retries=2).chat.completions.create(**ASK)
    attributes = openai_spans.attributes()
    assert (attributes[names.RETRIES], attributes[names.HTTP_STATUS], len(wire.requests)) == (2, 503, 3)


@pytest.mark.parametrize(
    ("raised", "error"),
    [(httpx2.ReadTimeout("slow"), openai.APITimeoutError), (httpx2.ConnectError("gone"), openai.APIConnectionError)],
)
def test_timeouts_and_broken_connections(
    openai_spans: Any, wire: Any, raised: Exception, error: type[Exception]
) -> None:
    with pytest.raises(error) as caught:
        wire.raises(raised).client(max_retries=0).chat.completions.create(**ASK)
    assert caught.value.__cause__ is raised
    attributes = openai_spans.attributes()
    assert attributes[names.ERROR_TYPE] == f"openai.{error.__name__}"
    assert attributes[names.RETRIES] == 0
    assert names.HTTP_STATUS not in attributes


def test_without_the_hook_nothing_is_said_about_retries(
    openai_spans: Any, wire: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tollspan.instrumentation.openai.retries import RETRIES

    monkeypatch.setattr(RETRIES, "hooked", set())
    wire.json(wire.completion()).client().chat.completions.create(**ASK)
    assert names.RETRIES not in openai_spans.attributes()


async def test_a_cancelled_call_ends_its_span(openai_spans: Any, wire: Any) -> None:
    reached = asyncio.Event()

    async def hang(request: httpx2.Request) -> httpx2.Response:
        reached.set()
        await asyncio.Event().wait()
        raise AssertionError

    client = wire.async_client(http_client=httpx2.AsyncClient(transport=httpx2.MockTransport(hang)))
    task = asyncio.create_task(client.chat.completions.create(**ASK))
    await reached.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert openai_spans.attributes()[names.ERROR_TYPE] == "asyncio.exceptions.CancelledError"


# -- streams that do not end well ------------------------------------------------------------------------------------


def test_a_stream_that_breaks_off_raises_the_clients_exception_and_has_no_usage(openai_spans: Any, wire: Any) -> None:
    chunks = wire.completion_chunks(usage=False)[:2]
    client = wire.stream(chunks, breaking=httpx2.RemoteProtocolError("cut")).client()
    stream = client.chat.completions.create(**ASK, stream=True)
    with pytest.raises(BROKEN_OFF):
        list(stream)
    attributes = openai_spans.attributes()
    assert attributes[names.ERROR_TYPE] == f"{BROKEN_OFF.__module__}.{BROKEN_OFF.__qualname__}"
    assert not [name for name in attributes if "usage" in name]


def test_an_error_event_in_a_chat_stream(openai_spans: Any, wire: Any) -> None:
    events = [*wire.completion_chunks(usage=False)[:1], {"error": {"message": "overloaded"}}]
    with pytest.raises(openai.APIError, match="overloaded"):
        list(wire.stream(events).client().chat.completions.create(**ASK, stream=True))
    assert openai_spans.attributes()[names.ERROR_TYPE] == "openai.APIError"


@pytest.mark.parametrize("how", ["drop", "close", "with"])
def test_a_stream_left_early_ends_its_span_unpriced_and_marked(openai_spans: Any, wire: Any, how: str) -> None:
    stream = wire.stream(wire.completion_chunks()).client().chat.completions.create(**ASK, stream=True)
    if how == "with":
        with stream:
            next(stream)
    else:
        next(stream)
        if how == "close":
            stream.close()
    del stream
    attributes = openai_spans.attributes()
    assert attributes[names.STREAM_ABANDONED] is True
    assert not [name for name in attributes if "usage" in name]
    assert openai_spans.only().status.status_code is StatusCode.UNSET


@pytest.mark.parametrize("how", ["drop", "close", "aclose", "with"])
async def test_an_async_stream_left_early_ends_its_span_unpriced_and_marked(
    openai_spans: Any, wire: Any, how: str
) -> None:
    stream = await wire.stream(wire.completion_chunks()).async_client().chat.completions.create(**ASK, stream=True)
    if how == "with":
        async with stream:
            await anext(stream)
    else:
        await anext(stream)
        if how != "drop":
            if not hasattr(stream, how):
                pytest.skip(f"streams of this version have no {how}")
            await getattr(stream, how)()
    del stream
    assert openai_spans.attributes()[names.STREAM_ABANDONED] is True


def test_a_response_that_failed_after_it_began(openai_spans: Any, wire: Any) -> None:
    error = {"code": "rate_limit_exceeded", "message": "later"}
    events = wire.response_events("response.failed", error=error)
    assert len(list(wire.stream(events).client().responses.create(**RESPOND, stream=True))) == 6
    span = openai_spans.only()
    assert (span.status.status_code, span.status.description) == (StatusCode.ERROR, None)
    attributes = openai_spans.attributes()
    assert attributes[names.ERROR_TYPE] == "rate_limit_exceeded"
    assert attributes[names.USAGE_OUTPUT_TOKENS] == 20


def test_a_response_that_was_cut_short(openai_spans: Any, wire: Any) -> None:
    events = wire.response_events("response.incomplete", incomplete_details={"reason": "max_output_tokens"})
    list(wire.stream(events).client().responses.create(**RESPOND, stream=True))
    assert without_time(openai_spans.attributes()) == {
        **RESPONSES_STREAM,
        names.RESPONSE_FINISH_REASONS: ("max_output_tokens",),
    }


def test_an_error_event_in_a_responses_stream(openai_spans: Any, wire: Any) -> None:
    event = {"type": "error", "code": "server_error", "message": "oh", "sequence_number": 1}
    list(wire.stream([*wire.response_events()[:1], event]).client().responses.create(**RESPOND, stream=True))
    assert openai_spans.attributes()[names.ERROR_TYPE] == "server_error"


def test_a_background_response_has_no_usage_yet(openai_spans: Any, wire: Any) -> None:
    queued = wire.response(status="queued", usage=None, output=[], tool_usage=None)
    wire.json(queued).client().responses.create(**RESPOND, background=True)
    attributes = openai_spans.attributes()
    assert not [name for name in attributes if "usage" in name]
    assert names.RESPONSE_FINISH_REASONS not in attributes


# -- many at once ----------------------------------------------------------------------------------------------------


def test_threads_and_their_tags_keep_apart(openai_spans: Any, wire: Any) -> None:
    client = wire.json(wire.completion()).client()

    def work(number: int) -> None:
        with tag(tenant=f"t{number}"):
            client.chat.completions.create(**{**ASK, "model": f"m{number}"})

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(20)))
    seen = {(span.attributes[names.TENANT], span.name) for span in openai_spans.spans()}
    assert seen == {(f"t{number}", f"chat m{number}") for number in range(20)}


async def test_interleaved_streams_keep_apart(openai_spans: Any, wire: Any) -> None:
    client = wire.stream(wire.completion_chunks()).async_client()
    before = context.get_current()

    async def work(number: int) -> None:
        with tag(tenant=f"t{number}"):
            stream = await client.chat.completions.create(**ASK, stream=True)
        async for _ in stream:
            await asyncio.sleep(0)

    await asyncio.gather(*(asyncio.create_task(work(number)) for number in range(8)))
    assert context.get_current() is before
    spans = openai_spans.spans()
    assert {span.attributes[names.TENANT] for span in spans} == {f"t{number}" for number in range(8)}
    assert all(span.parent is None and span.attributes[names.USAGE_INPUT_TOKENS] == 100 for span in spans)


# -- faults of ours, and going away ----------------------------------------------------------------------------------


@pytest.mark.parametrize("reader", ["_strings", "_usage", "_fields"])
async def test_a_fault_in_our_readers_never_reaches_the_program(
    faulty_telemetry: Any, wire: Any, monkeypatch: pytest.MonkeyPatch, reader: str
) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr(readers, reader, broken)
    counted = sum(faults().values())
    OpenAIInstrumentor().instrument(tracer_provider=faulty_telemetry.provider)
    try:
        client = wire.json(wire.completion()).client()
        assert client.chat.completions.create(**ASK).usage.prompt_tokens == 100
        assert client.chat.completions.with_raw_response.create(**ASK).parse().usage.prompt_tokens == 100
        wire.replies.clear()
        stream = await wire.stream(wire.response_events()).async_client().responses.create(**RESPOND, stream=True)
        assert len([event async for event in stream]) == 6
    finally:
        OpenAIInstrumentor().uninstrument()
    assert len(faulty_telemetry.spans()) == 3
    assert sum(faults().values()) > counted


def test_a_client_of_an_unknown_shape_is_left_alone(
    faulty_telemetry: Any, wire: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    OpenAIInstrumentor().instrument(tracer_provider=faulty_telemetry.provider)
    try:
        client = wire.json(wire.completion()).client()
        completions = client.chat.completions
        monkeypatch.setattr("tollspan.instrumentation.openai.readers.client_attributes", lambda client: client.nothing)
        assert completions.create(**ASK).id == "chatcmpl-7"
    finally:
        OpenAIInstrumentor().uninstrument()


def patched() -> dict[str, Any]:
    """Every object that we put a wrapper in the place of, by target; those that this version of the client lacks are
    left out."""
    others = (
        *("openai._response:APIResponse.parse", "openai._response:AsyncAPIResponse.parse"),
        *("openai._response:APIResponse.close", "openai._response:AsyncAPIResponse.close"),
        "openai._legacy_response:LegacyAPIResponse.parse",
        *(f"openai._base_client:{prefix}APIClient._sleep_for_retry" for prefix in ("Sync", "Async")),
        *(f"openai.resources.videos:{prefix}Videos.retrieve" for prefix in ("", "Async")),
        *(f"openai.resources.batches:{prefix}Batches.{name}" for prefix in ("", "Async") for name in ("create",)),
        *(f"openai.resources.files:{prefix}Files.content" for prefix in ("", "Async")),
        *(f"openai.resources.realtime.realtime:{prefix}RealtimeConnection.parse_event" for prefix in ("", "Async")),
    )
    found = {}
    for target in (*(point.target for point in POINTS), *others):
        module, _, path = target.partition(":")
        kind, _, name = path.partition(".")
        try:
            owner = getattr(importlib.import_module(module), kind, None)
        except ImportError:
            continue
        if owner is not None and name in vars(owner):
            found[target] = vars(owner)[name]
    return found


def test_uninstrument_puts_back_the_very_objects(telemetry: Any, wire: Any) -> None:
    before = patched()
    OpenAIInstrumentor().instrument(tracer_provider=telemetry.provider)
    during = patched()
    assert all(during[target] is not before[target] for target in before)
    assert len(before) >= (49 if openai.__version__.startswith("2.0.") else 51)
    client = wire.json(wire.completion()).client()
    taken = client.chat.completions.create, client.chat.completions.with_raw_response.create
    OpenAIInstrumentor().uninstrument()
    after = patched()
    assert all(after[target] is before[target] for target in before)
    for create in taken:
        create(**ASK)
    assert telemetry.spans() == []


def test_a_stream_that_is_open_when_we_go_is_finished(telemetry: Any, wire: Any) -> None:
    OpenAIInstrumentor().instrument(tracer_provider=telemetry.provider)
    stream = wire.stream(wire.completion_chunks()).client().chat.completions.create(**ASK, stream=True)
    next(stream)
    OpenAIInstrumentor().uninstrument()
    assert len(list(stream)) == 4
    assert without_time(telemetry.attributes()) == CHAT_STREAM
