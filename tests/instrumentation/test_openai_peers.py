"""Another vendor's instrumentation of the same client beside ours: our span has everything all the same.

Whichever of the two wrapped first, and so whichever gets the other's stream.
"""

from __future__ import annotations

import importlib
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from typing import Any

import openai
import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider

from tollspan.instrumentation.openai import OpenAIInstrumentor
from tollspan.pricing import attributes as names

PEERS = ("opentelemetry.instrumentation.openai", "openinference.instrumentation.openai")
ASK: Any = {"model": "gpt-5-mini", "messages": [{"role": "user", "content": "hello"}]}
STREAM: Any = {**ASK, "stream": True, "stream_options": {"include_usage": True}}


@pytest.fixture
def put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client's own functions are put back after the test: a peer's uninstrumenting leaves its own there."""
    for point in OpenAIInstrumentor.points:
        home, _, path = point.target.partition(":")
        kind, _, name = path.partition(".")
        with suppress(ImportError):
            owner = getattr(importlib.import_module(home), kind, None)
            if owner is not None and name in vars(owner):
                monkeypatch.setattr(owner, name, vars(owner)[name])


@pytest.fixture(params=[(peer, first) for peer in PEERS for first in ("ours", "theirs")], ids=lambda it: "-".join(it))
def beside(request: pytest.FixtureRequest, put_back: None, telemetry: Any) -> Iterator[Any]:
    """Ours and a peer's instrumentation on the same client; the one named first is the inner."""
    module, first = request.param
    ours, theirs = OpenAIInstrumentor(), pytest.importorskip(module).OpenAIInstrumentor()
    order = [(ours, telemetry.provider), (theirs, TracerProvider())]
    if first == "theirs":
        order.reverse()
    for instrumentor, provider in order:
        instrumentor.instrument(tracer_provider=provider)
    yield telemetry
    for instrumentor, _ in reversed(order):
        instrumentor.uninstrument()


def whole(span: ReadableSpan, tier: str) -> None:
    """Check that the span says what a ledger needs."""
    attributes = dict(span.attributes or {})
    assert attributes[names.USAGE_INPUT_TOKENS] == 100
    assert attributes[names.USAGE_OUTPUT_TOKENS] == 20
    assert attributes[names.USAGE_CACHE_READ_TOKENS] == 80
    assert attributes[names.USAGE_REASONING_TOKENS] == 7
    assert attributes[names.RESPONSE_MODEL] == "gpt-5-mini-2025-08-07"
    assert attributes[names.OPENAI_RESPONSE_SERVICE_TIER] == tier
    assert names.STREAM_ABANDONED not in attributes


def chat(client: Any) -> None:
    client.chat.completions.create(**ASK)


def chat_raw(client: Any) -> None:
    client.chat.completions.with_raw_response.create(**ASK).parse()


def chat_stream(client: Any) -> None:
    list(client.chat.completions.create(**STREAM))


def chat_stream_raw(client: Any) -> None:
    list(client.chat.completions.with_raw_response.create(**STREAM).parse())


def chat_manager(client: Any) -> None:
    with client.chat.completions.stream(**ASK, stream_options={"include_usage": True}) as stream:
        stream.get_final_completion()


def responses(client: Any) -> None:
    client.responses.create(model="gpt-5-mini", input="hello")


def responses_stream(client: Any) -> None:
    list(client.responses.create(model="gpt-5-mini", input="hello", stream=True))


@pytest.mark.parametrize("use", [chat, chat_raw])
def test_a_chat_beside_a_peer(beside: Any, wire: Any, use: Callable[[Any], None]) -> None:
    use(wire.json(wire.completion()).client())
    whole(beside.only(), "default")


@pytest.mark.parametrize("use", [chat_stream, chat_stream_raw, chat_manager])
def test_a_streamed_chat_beside_a_peer(beside: Any, wire: Any, use: Callable[[Any], None]) -> None:
    use(wire.stream(wire.completion_chunks()).client())
    whole(beside.only(), "flex")


def test_a_response_beside_a_peer(beside: Any, wire: Any) -> None:
    responses(wire.json(wire.response()).client())
    whole(beside.only(), "priority")


def test_a_streamed_response_beside_a_peer(beside: Any, wire: Any) -> None:
    responses_stream(wire.stream(wire.response_events()).client())
    whole(beside.only(), "priority")


async def test_an_asynchronous_stream_beside_a_peer(beside: Any, wire: Any) -> None:
    async with wire.stream(wire.completion_chunks()).async_client() as client:
        async for _ in await client.chat.completions.create(**STREAM):
            pass
    whole(beside.only(), "flex")


def test_that_nothing_was_sent_is_told_beside_a_peer(beside: Any, wire: Any) -> None:
    with pytest.raises(TypeError):
        wire.client().chat.completions.create(messages=[])
    assert beside.attributes()[names.CALL_SENT] is False


async def test_that_nothing_was_sent_asynchronously_is_told_beside_a_peer(beside: Any, wire: Any) -> None:
    async with wire.async_client() as client:
        with pytest.raises(TypeError):
            await client.chat.completions.create(messages=[])
    assert beside.attributes()[names.CALL_SENT] is False


# -- a wrapper beneath ours that gives an iterator of its own in the stream's place ------------------------------------


@pytest.fixture
def generators(monkeypatch: pytest.MonkeyPatch, telemetry: Any) -> Iterator[Any]:
    """Ours over a wrapper that hides the client's streams behind generators."""
    completions = importlib.import_module("openai.resources.chat.completions.completions")
    create, create_async = completions.Completions.create, completions.AsyncCompletions.create

    def hidden(self: Any, **kwargs: Any) -> Iterator[Any]:
        yield from create(self, **kwargs)

    async def hidden_async(self: Any, **kwargs: Any) -> AsyncIterator[Any]:
        stream = await create_async(self, **kwargs)

        async def chunks() -> AsyncIterator[Any]:
            async for chunk in stream:
                yield chunk

        return chunks()

    monkeypatch.setattr(completions.Completions, "create", hidden)
    monkeypatch.setattr(completions.AsyncCompletions, "create", hidden_async)
    OpenAIInstrumentor().instrument(tracer_provider=telemetry.provider)
    yield telemetry
    OpenAIInstrumentor().uninstrument()


def test_a_generator_in_the_streams_place_is_read_all_the_same(generators: Any, wire: Any) -> None:
    chunks = list(wire.stream(wire.completion_chunks()).client().chat.completions.create(**STREAM))
    assert all(isinstance(chunk, openai.types.chat.ChatCompletionChunk) for chunk in chunks)
    whole(generators.only(), "flex")


async def test_an_asynchronous_generator_is_too(generators: Any, wire: Any) -> None:
    async with wire.stream(wire.completion_chunks()).async_client() as client:
        async for _ in await client.chat.completions.create(**STREAM):
            pass
    whole(generators.only(), "flex")
