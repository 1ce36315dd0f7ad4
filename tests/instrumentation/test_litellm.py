"""LiteLLM, instrumented: one usage-bearing span for each request that a provider bills, whatever LiteLLM makes of it.

Against a local server that speaks OpenAI's, Anthropic's and Cohere's wire formats. Skipped where LiteLLM is not
installed: its newest version cannot be, beside this project's other dependencies.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pkgutil import resolve_name
from types import ModuleType
from typing import Any

import pytest

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
litellm = pytest.importorskip("litellm")

from opentelemetry.instrumentation.utils import suppress_instrumentation  # noqa: E402
from opentelemetry.sdk.trace import TracerProvider  # noqa: E402
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF  # noqa: E402
from opentelemetry.trace import StatusCode  # noqa: E402

from tests.instrumentation.conftest import completion, completion_chunks, response, response_events  # noqa: E402
from tests.instrumentation.openai_bill import bill, ledger  # noqa: E402
from tollspan.instrumentation.litellm import POINTS, LiteLLMInstrumentor, State  # noqa: E402
from tollspan.instrumentation.openai import OpenAIInstrumentor  # noqa: E402
from tollspan.pricing import attributes as names  # noqa: E402

MESSAGES = [{"role": "user", "content": "hello"}]
TOKENS = {
    names.USAGE_INPUT_TOKENS: 100,
    names.USAGE_OUTPUT_TOKENS: 20,
    names.USAGE_CACHE_READ_TOKENS: 80,
    names.USAGE_CACHE_WRITE_TOKENS: 10,
    names.USAGE_REASONING_TOKENS: 7,
}
ANTHROPIC_USAGE = {
    "input_tokens": 30,
    "cache_read_input_tokens": 80,
    "cache_creation_input_tokens": 7,
    "cache_creation": {"ephemeral_5m_input_tokens": 3, "ephemeral_1h_input_tokens": 4},
    "output_tokens": 20,
    "server_tool_use": {"web_search_requests": 2},
    "service_tier": "standard",
}


class Provider:
    """A server whose replies are told beforehand, in order, the last one again and again."""

    def __init__(self) -> None:
        self.replies: list[tuple[int, str, bytes]] = []
        self.requests: list[tuple[str, Any]] = []
        provider = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args: Any) -> None:
                pass

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                with suppress(ValueError):
                    body = json.loads(body)
                provider.requests.append((self.path, body))
                replies = provider.replies
                status, kind, content = replies.pop(0) if len(replies) > 1 else replies[0]
                broken = kind.endswith(" broken")
                self.send_response(status)
                self.send_header("content-type", kind.removesuffix(" broken"))
                self.send_header("content-length", str(len(content) + 100 * broken))
                self.end_headers()
                with suppress(OSError):
                    self.wfile.write(content)
                if broken:
                    self.close_connection = True

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        self.root = f"http://127.0.0.1:{self.server.server_port}"
        self.openai = {"api_base": f"{self.root}/v1", "api_key": "none"}

    def json(self, body: Any, status: int = 200) -> Provider:
        self.replies.append((status, "application/json", json.dumps(body).encode()))
        return self

    def error(self, status: int) -> Provider:
        return self.json({"error": {"message": f"no: {status}", "type": "server_error"}}, status)

    def stream(self, events: list[dict[str, Any]], broken: bool = False) -> Provider:
        lines = [
            (f"event: {event['type']}\n" if "type" in event else "") + f"data: {json.dumps(event)}\n\n"
            for event in events
        ]
        content = "".join(lines) + ("" if broken or "type" in events[0] else "data: [DONE]\n\n")
        self.replies.append((200, "text/event-stream" + " broken" * broken, content.encode()))
        return self


@pytest.fixture
def provider() -> Iterator[Provider]:
    provider = Provider()
    yield provider
    provider.server.shutdown()
    provider.server.server_close()


@pytest.fixture
def spans(telemetry: Any) -> Iterator[Any]:
    """LiteLLM instrumented, and the client that it uses for OpenAI's protocol too."""
    instrumentors = (OpenAIInstrumentor(), LiteLLMInstrumentor())
    for instrumentor in instrumentors:
        instrumentor.instrument(tracer_provider=telemetry.provider)
    yield telemetry
    for instrumentor in instrumentors:
        instrumentor.uninstrument()


def usage_of(span: Any) -> dict[str, Any]:
    return {
        name: value
        for name, value in (span.attributes or {}).items()
        if name.startswith(("gen_ai.usage.", names.USAGE_PREFIX)) and value
    }


def bearing(telemetry: Any) -> list[Any]:
    """Spans that bear usage."""
    return [span for span in telemetry.spans() if usage_of(span)]


def anthropic_message() -> dict[str, Any]:
    return {
        "id": "msg_7",
        "type": "message",
        "role": "assistant",
        "model": "claude-sonnet-4-5-20250929",
        "content": [{"type": "text", "text": "Hello."}],
        "stop_reason": "end_turn",
        "usage": ANTHROPIC_USAGE,
    }


def anthropic_events() -> list[dict[str, Any]]:
    start = {
        **anthropic_message(),
        "content": [],
        "stop_reason": None,
        "usage": {**ANTHROPIC_USAGE, "output_tokens": 1},
    }
    return [
        {"type": "message_start", "message": start},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Hel"}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "lo."}},
        {"type": "content_block_stop", "index": 0},
        {
            "type": "message_delta",
            "delta": {"stop_reason": "end_turn", "stop_sequence": None},
            "usage": {"output_tokens": 20, "server_tool_use": {"web_search_requests": 2}},
        },
        {"type": "message_stop"},
    ]


# -- every kind of call ----------------------------------------------------------------------------------------------


def test_a_completion(spans: Any, provider: Provider) -> None:
    result = litellm.completion(model="openai/gpt-5-mini", messages=MESSAGES, **provider.json(completion()).openai)
    assert type(result) is litellm.ModelResponse
    attributes = spans.attributes()
    assert usage_of(spans.only()) == TOKENS
    assert spans.only().name == "chat gpt-5-mini"
    assert attributes[names.OPERATION_NAME] == "chat"
    assert attributes[names.PROVIDER_NAME] == "openai"
    assert attributes[names.REQUEST_MODEL] == "gpt-5-mini"
    assert attributes[names.RESPONSE_MODEL] == "gpt-5-mini-2025-08-07"
    assert attributes[names.RESPONSE_ID] == "chatcmpl-7"
    assert attributes[names.RESPONSE_FINISH_REASONS] == ("stop",)
    assert attributes[names.OPENAI_RESPONSE_SERVICE_TIER] == "default"
    assert attributes[names.SERVER_ADDRESS] == "127.0.0.1"
    assert names.COST_REPORTED not in attributes, "LiteLLM's estimate is not the provider's word"


async def test_a_completion_async(spans: Any, provider: Provider) -> None:
    provider.json(completion())
    result = await litellm.acompletion(model="openai/gpt-5-mini", messages=MESSAGES, **provider.openai)
    assert type(result) is litellm.ModelResponse
    assert usage_of(spans.only()) == TOKENS


STREAMED = {"stream": True, "stream_options": {"include_usage": True}}


def test_a_stream(spans: Any, provider: Provider) -> None:
    provider.stream(completion_chunks())
    stream = litellm.completion(model="openai/gpt-5-mini", messages=MESSAGES, **STREAMED, **provider.openai)
    assert isinstance(stream, litellm.CustomStreamWrapper)
    chunks = list(stream)
    assert chunks[-1].usage.prompt_tokens == 100
    assert usage_of(spans.only()) == TOKENS
    attributes = spans.attributes()
    assert attributes[names.REQUEST_STREAM] is True
    assert attributes[names.RESPONSE_TIME_TO_FIRST_CHUNK] > 0
    assert names.STREAM_ABANDONED not in attributes


async def test_a_stream_async(spans: Any, provider: Provider) -> None:
    provider.stream(completion_chunks())
    stream = await litellm.acompletion(model="openai/gpt-5-mini", messages=MESSAGES, **STREAMED, **provider.openai)
    assert isinstance(stream, litellm.CustomStreamWrapper)
    assert [chunk async for chunk in stream][-1].usage.prompt_tokens == 100
    assert usage_of(spans.only()) == TOKENS


def test_a_stream_whose_provider_sends_no_usage_has_none(spans: Any, provider: Provider) -> None:
    provider.stream(completion_chunks(usage=False))
    for options in ({}, {"stream_options": {"include_usage": True}}):
        list(
            litellm.completion(model="openai/gpt-5-mini", messages=MESSAGES, stream=True, **options, **provider.openai)
        )
    assert len(spans.spans()) == 2
    assert not bearing(spans), "LiteLLM estimates tokens that the provider has not told"


ANTHROPIC = {
    names.USAGE_INPUT_TOKENS: 117,
    names.USAGE_OUTPUT_TOKENS: 20,
    names.USAGE_CACHE_READ_TOKENS: 80,
    names.USAGE_CACHE_WRITE_TOKENS: 7,
    names.usage("tokens.input.cache_write.5m"): 3,
    names.usage("tokens.input.cache_write.1h"): 4,
    names.usage("web_searches"): 2,
}


def ask_anthropic(provider: Provider, **more: Any) -> dict[str, Any]:
    return {
        "model": "anthropic/claude-sonnet-4-5",
        "messages": MESSAGES,
        "max_tokens": 50,
        "api_base": provider.root,
        "api_key": "none",
        **more,
    }


def test_anthropic_by_litellms_own_http(spans: Any, provider: Provider) -> None:
    litellm.completion(**ask_anthropic(provider.json(anthropic_message())))
    assert usage_of(spans.only()) == ANTHROPIC
    assert spans.attributes()[names.PROVIDER_NAME] == "anthropic"
    assert spans.attributes()[names.REQUEST_MAX_TOKENS] == 50


async def test_anthropic_streamed_async(spans: Any, provider: Provider) -> None:
    stream = await litellm.acompletion(**ask_anthropic(provider.stream(anthropic_events()), stream=True))
    async for _ in stream:
        pass
    assert usage_of(spans.only()) == ANTHROPIC


def test_anthropic_left_early_tells_no_output(spans: Any, provider: Provider) -> None:
    def work() -> None:
        for _ in litellm.completion(**ask_anthropic(provider.stream(anthropic_events()), stream=True)):
            break

    work()
    gc.collect()
    attributes = spans.attributes()
    assert attributes[names.STREAM_ABANDONED] is True
    assert names.USAGE_OUTPUT_TOKENS not in attributes


def test_responses(spans: Any, provider: Provider) -> None:
    provider.json(response())
    result = litellm.responses(model="openai/gpt-5-mini", input="hello", **provider.openai)
    assert result.id
    found = usage_of(spans.only())
    assert found[names.USAGE_INPUT_TOKENS] == 100
    assert found[names.USAGE_CACHE_READ_TOKENS] == 80
    assert found[names.USAGE_REASONING_TOKENS] == 7
    assert spans.attributes()[names.OPERATION_NAME] == "responses"


async def test_responses_streamed_async(spans: Any, provider: Provider) -> None:
    provider.stream(response_events())
    stream = await litellm.aresponses(model="openai/gpt-5-mini", input="hello", stream=True, **provider.openai)
    events = [event async for event in stream]
    assert events
    found = usage_of(spans.only())
    assert (found[names.USAGE_INPUT_TOKENS], found[names.USAGE_OUTPUT_TOKENS]) == (100, 20)


EMBEDDING = {
    "object": "list",
    "model": "text-embedding-3-small",
    "data": [{"object": "embedding", "index": 0, "embedding": [0.1, 0.2]}],
    "usage": {"prompt_tokens": 8, "total_tokens": 8},
}


def test_an_embedding(spans: Any, provider: Provider) -> None:
    litellm.embedding(model="openai/text-embedding-3-small", input=["hello"], **provider.json(EMBEDDING).openai)
    assert usage_of(spans.only()) == {names.USAGE_INPUT_TOKENS: 8}
    assert spans.only().name == "embeddings text-embedding-3-small"


async def test_an_embedding_async(spans: Any, provider: Provider) -> None:
    provider.json(EMBEDDING)
    await litellm.aembedding(model="openai/text-embedding-3-small", input=["hello"], **provider.openai)
    assert usage_of(spans.only()) == {names.USAGE_INPUT_TOKENS: 8}


TEXT = {
    "id": "cmpl-7",
    "object": "text_completion",
    "created": 1,
    "model": "gpt-3.5-turbo-instruct",
    "choices": [{"index": 0, "text": "Hello.", "finish_reason": "stop", "logprobs": None}],
    "usage": {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8},
}


def test_a_text_completion(spans: Any, provider: Provider) -> None:
    litellm.text_completion(model="gpt-3.5-turbo-instruct", prompt="hello", **provider.json(TEXT).openai)
    assert usage_of(spans.only()) == {names.USAGE_INPUT_TOKENS: 5, names.USAGE_OUTPUT_TOKENS: 3}
    assert spans.attributes()[names.OPERATION_NAME] == "text_completion"


async def test_a_text_completion_async(spans: Any, provider: Provider) -> None:
    provider.json(TEXT)
    await litellm.atext_completion(model="gpt-3.5-turbo-instruct", prompt="hello", **provider.openai)
    assert usage_of(spans.only()) == {names.USAGE_INPUT_TOKENS: 5, names.USAGE_OUTPUT_TOKENS: 3}


def test_images(spans: Any, provider: Provider) -> None:
    provider.json({"created": 1, "data": [{"url": "https://a/1"}, {"url": "https://a/2"}]})
    litellm.image_generation(model="openai/dall-e-3", prompt="a", n=2, **provider.openai)
    assert usage_of(spans.only()) == {names.usage("images"): 2}


def test_images_counted_in_tokens(spans: Any, provider: Provider) -> None:
    usage = {
        "input_tokens": 50,
        "output_tokens": 1000,
        "total_tokens": 1050,
        "input_tokens_details": {"image_tokens": 40, "text_tokens": 10},
    }
    provider.json({"created": 1, "data": [{"b64_json": "AAAA"}], "usage": usage})
    litellm.image_generation(model="openai/gpt-image-1", prompt="a", **provider.openai)
    found = usage_of(spans.only())
    assert (found[names.USAGE_INPUT_TOKENS], found[names.USAGE_IMAGE_INPUT_TOKENS]) == (50, 40)
    assert found[names.USAGE_OUTPUT_TOKENS] == 1000


def test_a_transcription(spans: Any, provider: Provider) -> None:
    usage = {"type": "tokens", "input_tokens": 14, "output_tokens": 45, "total_tokens": 59}
    usage["input_token_details"] = {"text_tokens": 0, "audio_tokens": 14}
    provider.json({"text": "hello", "usage": usage})
    litellm.transcription(model="openai/gpt-4o-transcribe", file=("a.wav", b"RIFF"), **provider.openai)
    found = usage_of(spans.only())
    assert (found[names.USAGE_INPUT_TOKENS], found[names.USAGE_OUTPUT_TOKENS]) == (14, 45)


def test_speech_is_seen(spans: Any, provider: Provider) -> None:
    provider.replies.append((200, "audio/mpeg", b"mp3"))
    litellm.speech(model="openai/tts-1", voice="alloy", input="hello", **provider.openai)
    assert spans.only().name == "speech tts-1"


RERANKED = {
    "id": "r7",
    "results": [{"index": 0, "relevance_score": 0.9}],
    "meta": {"api_version": {"version": "2"}, "billed_units": {"search_units": 1}},
}


def test_a_reranking(spans: Any, provider: Provider) -> None:
    ask = {"model": "cohere/rerank-v3.5", "query": "a", "documents": ["b"], "api_key": "none"}
    litellm.rerank(**ask, api_base=provider.json(RERANKED).root)
    assert usage_of(spans.only()) == {names.usage("rerank.search_units"): 1}
    assert spans.attributes()[names.PROVIDER_NAME] == "cohere"


# -- one request, one bearing span -----------------------------------------------------------------------------------


def router(provider: Provider, *models: str, **options: Any) -> Any:
    entries = [
        {"model_name": name, "litellm_params": {"model": f"openai/{name}", "max_retries": 0, **provider.openai}}
        for name in models
    ]
    return litellm.Router(model_list=entries, **{"num_retries": 0, **options})


async def test_a_routers_fallback_is_two_attempts_and_one_bill(spans: Any, provider: Provider) -> None:
    provider.error(500).json(completion())
    routing = router(provider, "gpt-5-mini", "gpt-5-nano", fallbacks=[{"gpt-5-mini": ["gpt-5-nano"]}])
    await routing.acompletion(model="gpt-5-mini", messages=MESSAGES)
    failed, served = spans.spans()
    assert failed.status.status_code is StatusCode.ERROR
    assert (failed.attributes[names.REQUEST_MODEL], failed.attributes[names.HTTP_STATUS]) == ("gpt-5-mini", 500)
    assert served.attributes[names.REQUEST_MODEL] == "gpt-5-nano"
    assert [usage_of(span) for span in (failed, served)] == [{}, TOKENS]


def test_a_routers_retry_is_two_attempts_and_one_bill(spans: Any, provider: Provider) -> None:
    provider.error(500).json(completion())
    router(provider, "gpt-5-mini", num_retries=1, retry_after=0).completion(model="gpt-5-mini", messages=MESSAGES)
    assert len(provider.requests) == 2
    assert [usage_of(span) for span in spans.spans()] == [{}, TOKENS]


async def test_a_routers_stream(spans: Any, provider: Provider) -> None:
    provider.stream(completion_chunks())
    stream = await router(provider, "gpt-5-mini").acompletion(model="gpt-5-mini", messages=MESSAGES, **STREAMED)
    async for _ in stream:
        pass
    assert usage_of(spans.only()) == TOKENS


async def test_a_routers_embeddings(spans: Any, provider: Provider) -> None:
    provider.json(EMBEDDING)
    await router(provider, "text-embedding-3-small").aembedding(model="text-embedding-3-small", input=["a"])
    assert usage_of(spans.only()) == {names.USAGE_INPUT_TOKENS: 8}


async def test_a_fallback_inside_a_call_bears_it_itself(spans: Any, provider: Provider) -> None:
    provider.error(500).json(completion())
    ask = {"messages": MESSAGES, "max_retries": 0, **provider.openai}
    await litellm.acompletion(model="openai/gpt-5-mini", fallbacks=["openai/gpt-5-nano"], **ask)
    assert len(provider.requests) == 2
    (bill,) = bearing(spans)
    assert usage_of(bill) == TOKENS
    assert bill.attributes[names.REQUEST_MODEL] == "gpt-5-nano"
    outer = [span for span in spans.spans() if span.parent is None]
    assert [span.attributes[names.OPERATION_NAME] for span in outer] == ["invoke_workflow"]


def test_a_retry_inside_a_call_bears_it_itself(spans: Any, provider: Provider) -> None:
    provider.error(500).json(completion())
    ask = {"model": "openai/gpt-5-mini", "messages": MESSAGES, "max_retries": 0, **provider.openai}
    litellm.completion(num_retries=1, **ask)
    assert len(provider.requests) == 2
    assert [usage_of(span) for span in bearing(spans)] == [TOKENS]


def test_responses_over_another_api_are_one_bill(spans: Any, provider: Provider) -> None:
    ask = ask_anthropic(provider.json(anthropic_message()))
    litellm.responses(model=ask["model"], input="hello", api_base=ask["api_base"], api_key="none")
    assert len(provider.requests) == 1
    (bill,) = bearing(spans)
    assert usage_of(bill)[names.USAGE_INPUT_TOKENS] == 117


def test_the_clients_retries_are_counted_on_the_one_span(spans: Any, provider: Provider) -> None:
    provider.error(500).json(completion())
    litellm.completion(model="openai/gpt-5-mini", messages=MESSAGES, max_retries=1, **provider.openai)
    assert usage_of(spans.only()) == TOKENS
    assert spans.attributes()[names.RETRIES] == 1


def test_calls_in_threads_are_one_span_each(spans: Any, provider: Provider) -> None:
    provider.json(completion())
    ask = {"model": "openai/gpt-5-mini", "messages": MESSAGES, **provider.openai}
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: litellm.completion(**ask), range(8)))
    assert [usage_of(span) for span in spans.spans()] == [TOKENS] * 8


async def test_concurrent_calls_are_one_span_each(spans: Any, provider: Provider) -> None:
    provider.json(completion())
    ask = {"model": "openai/gpt-5-mini", "messages": MESSAGES, **provider.openai}
    await asyncio.gather(*(litellm.acompletion(**ask) for _ in range(8)))
    assert [usage_of(span) for span in spans.spans()] == [TOKENS] * 8


def test_many_prompts_are_one_span_each(spans: Any, provider: Provider) -> None:
    provider.json(completion())
    litellm.batch_completion(model="openai/gpt-5-mini", messages=[MESSAGES] * 3, **provider.openai)
    assert [usage_of(span) for span in spans.spans()] == [TOKENS] * 3


def test_an_answer_from_the_cache_is_no_request(spans: Any, provider: Provider) -> None:
    for needed in ("orjson", "soundfile"):  # LiteLLM's cache imports them and the distribution does not ask for them
        pytest.importorskip(needed)
    from litellm.caching.caching import Cache

    provider.json(completion())
    litellm.cache = Cache()
    try:
        for _ in range(2):
            litellm.completion(model="openai/gpt-5-mini", messages=MESSAGES, caching=True, **provider.openai)
    finally:
        litellm.cache = None
    assert len(provider.requests) == 1
    assert [usage_of(span) for span in spans.spans()] == [TOKENS, {}]
    assert spans.spans()[1].attributes[names.OPERATION_NAME] == "fetch_response"


def test_a_made_up_answer_has_no_span(spans: Any) -> None:
    litellm.completion(model="openai/gpt-5-mini", messages=MESSAGES, mock_response="hi")
    assert not spans.spans()


def test_who_bills_is_told_by_the_address(spans: Any, provider: Provider) -> None:
    with suppress(Exception):
        litellm.completion(
            model="openai/x",
            messages=MESSAGES,
            max_retries=0,
            timeout=0.001,
            api_base="https://api.groq.com",
            api_key="x",
        )
    assert spans.attributes()[names.PROVIDER_NAME] == "groq"


# -- the program sees what it would see without us -------------------------------------------------------------------


def failing(provider: Provider) -> Any:
    with pytest.raises(litellm.exceptions.AuthenticationError) as raised:
        litellm.completion(model="openai/gpt-5-mini", messages=MESSAGES, max_retries=0, **provider.error(401).openai)
    return raised.value


def test_an_error_is_the_librarys_own(spans: Any, provider: Provider) -> None:
    error = failing(provider)
    assert error.status_code == 401
    span = spans.only()
    assert span.status.status_code is StatusCode.ERROR
    assert span.attributes[names.HTTP_STATUS] == 401
    assert span.attributes[names.ERROR_TYPE] == "litellm.exceptions.AuthenticationError"


def test_a_stream_that_breaks_off_raises_and_ends(spans: Any, provider: Provider) -> None:
    provider.stream(completion_chunks()[:2], broken=True)
    with pytest.raises(Exception):
        list(litellm.completion(model="openai/gpt-5-mini", messages=MESSAGES, **STREAMED, **provider.openai))
    assert spans.only().status.status_code is StatusCode.ERROR
    assert not bearing(spans)


async def test_a_cancelled_call_ends(spans: Any, provider: Provider) -> None:
    provider.json(completion())
    task = asyncio.ensure_future(litellm.acompletion(model="openai/gpt-5-mini", messages=MESSAGES, **provider.openai))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert spans.attributes()[names.ERROR_TYPE].endswith("CancelledError")


def test_suppressed_calls_have_no_span(spans: Any, provider: Provider) -> None:
    with suppress_instrumentation():
        litellm.completion(model="openai/gpt-5-mini", messages=MESSAGES, **provider.json(completion()).openai)
    assert not spans.spans()


def test_an_unsampled_call_works(telemetry: Any, provider: Provider) -> None:
    LiteLLMInstrumentor().instrument(tracer_provider=TracerProvider(sampler=ALWAYS_OFF))
    try:
        provider.json(completion())
        result = litellm.completion(model="openai/gpt-5-mini", messages=MESSAGES, **provider.openai)
    finally:
        LiteLLMInstrumentor().uninstrument()
    assert result.usage.prompt_tokens == 100


@pytest.mark.parametrize("hook", ["_hidden", "_put", "_error", "_collect", "_asked"])
def test_a_fault_of_ours_is_not_the_programs(
    faulty_telemetry: Any, provider: Provider, hook: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tollspan.instrumentation import litellm as ours

    def fault(*args: Any) -> Any:
        raise RuntimeError("ours")

    monkeypatch.setattr(ours, hook, fault)
    LiteLLMInstrumentor().instrument(tracer_provider=faulty_telemetry.provider)
    try:
        provider.json(completion()).stream(completion_chunks()).error(401)
        ask = {"model": "openai/gpt-5-mini", "messages": MESSAGES, "max_retries": 0, **provider.openai}
        assert litellm.completion(**ask).usage.prompt_tokens == 100
        assert list(litellm.completion(**ask, **STREAMED))[-1].usage.prompt_tokens == 100
        with pytest.raises(litellm.exceptions.AuthenticationError):
            litellm.completion(**ask)
    finally:
        LiteLLMInstrumentor().uninstrument()


def held() -> dict[str, Any]:
    """Every function of ours wherever the library holds it."""
    wanted = {point.target.partition(":")[2] for point in POINTS}
    return {
        f"{home}:{name}": vars(module)[name]
        for home, module in sorted(sys.modules.items())
        if home == "litellm" or home.startswith("litellm.")
        for name in wanted & vars(module).keys()
    }


def test_uninstrument_restores_the_identical_objects_everywhere(telemetry: Any) -> None:
    before = held()
    LiteLLMInstrumentor().instrument(tracer_provider=telemetry.provider)
    during = held()
    assert during["litellm:completion"] is not before["litellm:completion"]
    assert during["litellm:text_completion"] is during["litellm.main:text_completion"]
    LiteLLMInstrumentor().uninstrument()
    after = held()
    assert all(after[name] is before[name] for name in before)


def test_every_point_is_there() -> None:
    for point in POINTS:
        home, _, name = point.target.partition(":")
        assert hasattr(sys.modules[home], name), point.target


def test_streams_that_are_dropped_leave_nothing(spans: Any, provider: Provider) -> None:
    provider.stream(completion_chunks())
    ask = {"model": "openai/gpt-5-mini", "messages": MESSAGES, **STREAMED, **provider.openai}

    def work() -> None:
        for _ in litellm.completion(**ask):
            break

    # LiteLLM's streams are in cycles of its own. The collector closes them wherever it runs, which inside the HTTP
    # client's lock is a deadlock, with us or without; so it runs only between the calls here.
    def alive() -> int:
        gc.collect()
        return sum(type(thing) is State for thing in gc.get_objects())

    gc.disable()
    try:
        before = alive()
        for _ in range(20):
            work()
            gc.collect()
        grown = alive() - before
    finally:
        gc.enable()
    assert len(spans.spans()) == 20
    assert all(span.attributes[names.STREAM_ABANDONED] for span in spans.spans())
    assert grown < 5


# -- usage in, meters out, money -------------------------------------------------------------------------------------


def test_a_call_costs_what_it_costs_by_hand(spans: Any, provider: Provider) -> None:
    litellm.completion(**ask_anthropic(provider.json(anthropic_message())))
    meters, cost, status = bill(spans.spans())
    assert {meter: int(count) for meter, count in meters.items() if count} == {
        "tokens.input.uncached": 30,
        "tokens.input.cache_read": 80,
        "tokens.input.cache_write.5m": 3,
        "tokens.input.cache_write.1h": 4,
        "tokens.output": 20,
        "web_searches": 2,
    }
    # USD for a million: 3 in, 0.30 read, 3.75 and 6 written for 5 minutes and an hour, 15 out; 10 for 1000 searches.
    by_hand = (30 * 3 + Decimal("0.3") * 80 + Decimal("3.75") * 3 + 4 * 6 + 20 * 15) / 1_000_000 + Decimal("0.02")
    assert (cost, status) == (by_hand, "priced")


async def test_attempts_that_failed_are_not_billed(spans: Any, provider: Provider) -> None:
    provider.error(500).json(completion())
    ask = {"messages": MESSAGES, "max_retries": 0, **provider.openai}
    await litellm.acompletion(model="openai/gpt-5-mini", fallbacks=["openai/gpt-5-nano"], **ask)
    rows = ledger(spans.spans())
    assert [row["cost_status"] for row in rows if row["cost"]] == ["priced"]
    # Served by gpt-5-mini, USD for a million: 0.25 in (writes too: they have no price of their own), 0.025 read, 2 out.
    assert [row["cost"] for row in rows if row["cost"]] == [Decimal("0.000047")]


# -- functions that speak a provider's own protocol --------------------------------------------------------------------

CONTENT = {
    "candidates": [{"content": {"parts": [{"text": "hi"}], "role": "model"}, "finishReason": "STOP", "index": 0}],
    "usageMetadata": {
        "promptTokenCount": 100,
        "candidatesTokenCount": 13,
        "thoughtsTokenCount": 7,
        "totalTokenCount": 120,
        "cachedContentTokenCount": 80,
    },
    "modelVersion": "gemini-2.5-flash",
    "responseId": "r-7",
}
GOOGLE = {
    names.USAGE_INPUT_TOKENS: 100,
    names.USAGE_OUTPUT_TOKENS: 20,
    names.USAGE_CACHE_READ_TOKENS: 80,
    names.USAGE_REASONING_TOKENS: 7,
}


def ask_google(provider: Provider) -> dict[str, Any]:
    contents = [{"role": "user", "parts": [{"text": "hello"}]}]
    return {"model": "gemini/gemini-2.5-flash", "contents": contents, "api_base": provider.root, "api_key": "none"}


@pytest.mark.parametrize("function", ["litellm.anthropic.messages.acreate", "litellm.anthropic_messages"])
async def test_anthropics_messages(spans: Any, provider: Provider, function: str) -> None:
    provider.json(anthropic_message())
    await resolve_name(function)(**ask_anthropic(provider))
    assert usage_of(spans.only()) == ANTHROPIC
    attributes = spans.attributes()
    assert (attributes[names.PROVIDER_NAME], attributes[names.RESPONSE_ID]) == ("anthropic", "msg_7")


async def test_anthropics_messages_streamed(spans: Any, provider: Provider) -> None:
    pytest.importorskip("fastapi", reason="LiteLLM streams these with its proxy's extra alone")
    provider.stream(anthropic_events())
    try:
        stream = await litellm.anthropic.messages.acreate(**ask_anthropic(provider), stream=True)
    except ImportError:
        pytest.skip("LiteLLM streams these with its proxy's extra alone")
    assert b"message_stop" in b"".join([chunk async for chunk in stream])
    assert usage_of(spans.only()) == ANTHROPIC
    assert names.STREAM_ABANDONED not in spans.attributes()


async def test_messages_of_a_model_that_speaks_another_protocol_are_one_bill(spans: Any, provider: Provider) -> None:
    provider.json(completion())
    await litellm.anthropic.messages.acreate(
        model="groq/llama-3.3-70b-versatile", messages=MESSAGES, max_tokens=5, **provider.openai
    )
    (span,) = bearing(spans)
    assert usage_of(span) == TOKENS


def test_googles_content(spans: Any, provider: Provider) -> None:
    from litellm.google_genai import generate_content

    generate_content(**ask_google(provider.json(CONTENT)))
    assert usage_of(spans.only()) == GOOGLE
    assert spans.attributes()[names.PROVIDER_NAME] == "gcp.gemini"
    assert spans.attributes()[names.RESPONSE_ID] == "r-7"


async def test_googles_content_async(spans: Any, provider: Provider) -> None:
    await litellm.google_genai.agenerate_content(**ask_google(provider.json(CONTENT)))
    assert usage_of(spans.only()) == GOOGLE


async def test_googles_content_streamed(spans: Any, provider: Provider) -> None:
    provider.stream([{**CONTENT, "usageMetadata": {"promptTokenCount": 100}, "candidates": []}, CONTENT])
    stream = await litellm.google_genai.agenerate_content_stream(**ask_google(provider))
    assert [chunk async for chunk in stream]
    assert usage_of(spans.only()) == GOOGLE
    assert spans.attributes()[names.REQUEST_STREAM] is True


@pytest.mark.parametrize(
    ("more", "meter"), [({}, "pages"), ({"document_annotation_format": {"type": "text"}}, "pages.annotated")]
)
async def test_pages_are_counted(spans: Any, provider: Provider, more: dict[str, Any], meter: str) -> None:
    page = {"index": 0, "markdown": "# One"}
    provider.json({"pages": [page], "model": "mistral-ocr-latest", "usage_info": {"pages_processed": 2}})
    document = {"type": "document_url", "document_url": "https://example.com/a.pdf"}
    await litellm.aocr(
        model="mistral/mistral-ocr-latest", document=document, api_base=provider.root, api_key="none", **more
    )
    assert usage_of(spans.only()) == {names.usage(meter): 2}


async def test_a_moderation_is_seen(spans: Any, provider: Provider) -> None:
    provider.json({"id": "modr-7", "model": "omni-moderation-latest", "results": []})
    await litellm.amoderation(input="hello", model="omni-moderation-latest", **provider.openai)
    assert spans.attributes()[names.OPERATION_NAME] == "moderation"


# -- beside others ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_peer_that_was_there_first_is_above_all_the_same(
    telemetry: Any, provider: Provider, monkeypatch: pytest.MonkeyPatch, streamed: bool
) -> None:
    peer = "openinference.instrumentation.litellm"
    original, tracer = litellm.acompletion, telemetry.provider.get_tracer(peer)

    async def theirs(*args: Any, **kwargs: Any) -> Any:
        with tracer.start_as_current_span("completion"):
            return await original(*args, **kwargs)

    monkeypatch.setattr(litellm, "acompletion", theirs)
    monkeypatch.setitem(sys.modules, peer, ModuleType(peer))
    LiteLLMInstrumentor().instrument(tracer_provider=telemetry.provider)
    try:
        (provider.stream(completion_chunks()) if streamed else provider.json(completion()))
        usage: Any = {"stream": True, "stream_options": {"include_usage": True}} if streamed else {}
        result = await litellm.acompletion(model="openai/gpt-5-mini", messages=MESSAGES, **usage, **provider.openai)
        if streamed:
            async for _ in result:
                pass
    finally:
        LiteLLMInstrumentor().uninstrument()
    (ours,) = bearing(telemetry)
    (above,) = [span for span in telemetry.spans() if span.name == "completion"]
    assert ours.parent.span_id == above.context.span_id
