"""Images of the openai client: tokens where the model is billed by them, else the images made."""

from __future__ import annotations

import asyncio
import gc
from decimal import Decimal
from typing import Any

import openai
import pytest
from openai import AsyncStream, Stream
from openai.types import ImagesResponse

from tollspan.instrumentation import tag
from tollspan.instrumentation.calls import Call
from tollspan.pricing import attributes as names

from .http_library import httpx2
from .openai_bill import bill, ledger

ASK: dict[str, Any] = {"model": "gpt-image-1", "prompt": "a cat"}
USAGE = {
    "input_tokens": 1100,
    "input_tokens_details": {"text_tokens": 100, "image_tokens": 1000},
    "output_tokens": 4000,
    "output_tokens_details": {"image_tokens": 4000, "text_tokens": 0},
    "total_tokens": 5100,
}
MADE = {"created": 1, "data": [{"b64_json": "aGVsbG8="}], "usage": USAGE}
METERS = {"tokens.input.uncached": 100, "tokens.input.image": 1000, "tokens.output.image": 4000}
COST = Decimal("0.1705")
"""100 × $5 + 1,000 × $10 + 4,000 × $40, by the million."""

PNG = ("cat.png", b"\x89PNG", "image/png")


def events(kind: str = "image_generation") -> list[dict[str, Any]]:
    told = {"b64_json": "aGVsbG8=", "background": "opaque", "created_at": 1, "output_format": "png"}
    told |= {"quality": "high", "size": "1024x1024"}
    partial = [{"type": f"{kind}.partial_image", "partial_image_index": number, **told} for number in range(2)]
    return [*partial, {"type": f"{kind}.completed", **told, "usage": USAGE}]


@pytest.mark.parametrize("method", ["generate", "edit"])
def test_images_by_tokens(openai_spans: Any, wire: Any, method: str) -> None:
    more = {"image": PNG} if method == "edit" else {}
    result = getattr(wire.json(MADE).client().images, method)(**ASK, **more)
    assert type(result) is ImagesResponse
    assert openai_spans.only().name == "image_generation gpt-image-1"
    assert openai_spans.attributes()[names.USAGE_IMAGE_OUTPUT_TOKENS] == 4000
    assert bill(openai_spans.spans()) == (METERS, COST, "priced")


async def test_images_async_raw(openai_spans: Any, wire: Any) -> None:
    raw = await wire.json(MADE).async_client().images.with_raw_response.generate(**ASK)
    assert raw.parse().usage.total_tokens == 5100
    assert bill(openai_spans.spans()) == (METERS, COST, "priced")


@pytest.mark.parametrize("count", [1, 3])
def test_images_by_number(openai_spans: Any, wire: Any, count: int) -> None:
    made = {"created": 1, "data": [{"url": f"https://x/{number}"} for number in range(count)]}
    result = wire.json(made).client().images.create_variation(model="dall-e-2", image=PNG, n=count)
    assert len(result.data) == count
    assert bill(openai_spans.spans()) == ({"images": count}, None, "unpriced")


@pytest.mark.parametrize("kind", ["image_generation", "image_edit"])
def test_streamed_images(openai_spans: Any, wire: Any, kind: str) -> None:
    images = wire.stream(events(kind)).client().images
    ask = {**ASK, "stream": True, "partial_images": 2}
    stream = images.generate(**ask) if kind == "image_generation" else images.edit(image=PNG, **ask)
    assert isinstance(stream, Stream)
    assert [event.type for event in stream][-1] == f"{kind}.completed"
    assert openai_spans.attributes()[names.REQUEST_STREAM] is True
    assert bill(openai_spans.spans()) == (
        {"tokens.input.uncached": 100, "tokens.input.image": 1000, "tokens.output.image": 4000},
        COST,
        "priced",
    )


async def test_streamed_images_async_left_early(openai_spans: Any, wire: Any) -> None:
    stream = await wire.stream(events()).async_client().images.generate(**ASK, stream=True)
    assert isinstance(stream, AsyncStream)
    async with stream:
        async for _ in stream:
            break
    assert openai_spans.attributes()[names.STREAM_ABANDONED] is True
    assert bill(openai_spans.spans()) == ({}, None, "unpriced")


def test_an_svg_is_written_by_another_model(openai_spans: Any, wire: Any) -> None:
    svg = {"model": "gpt-5-mini", "input_tokens": 1000, "output_tokens": 500, "reasoning_tokens": 100}
    wire.json({**MADE, "svg_usage": {**svg, "total_tokens": 1500}}).client().images.generate(**ASK)
    rows = {row["model"] or row["request_model"]: row for row in ledger(openai_spans.spans())}
    assert rows["gpt-image-1"]["cost"] == COST
    # 1,000 × $0.25 + 500 × $2, by the million.
    assert rows["gpt-5-mini"]["cost"] == Decimal("0.00125")
    assert len(openai_spans.spans()) == 2


def test_a_broken_connection_is_the_clients_own(openai_spans: Any, wire: Any) -> None:
    with pytest.raises(openai.APIConnectionError):
        wire.raises(httpx2.ConnectError("gone")).client(max_retries=0).images.generate(**ASK)
    assert openai_spans.attributes()[names.ERROR_TYPE] == "openai.APIConnectionError"


def test_a_timeout_is_the_clients_own(openai_spans: Any, wire: Any) -> None:
    with pytest.raises(openai.APITimeoutError):
        wire.raises(httpx2.ReadTimeout("slow")).client(max_retries=0).images.generate(**ASK)
    (row,) = ledger(openai_spans.spans())
    assert (row["cost_status"], row["cost_reasons"]) == ("unpriced", "usage_missing")


# -- many at once, and none left behind --------------------------------------------------------------------------------


def test_abandoned_streams_leave_nothing_behind(openai_spans: Any, wire: Any) -> None:
    client = wire.stream(events()).client()
    count = 200
    for _ in range(count):
        next(client.images.generate(**ASK, stream=True))
    gc.collect()
    spans = openai_spans.spans()
    assert len(spans) == count
    assert all(span.attributes[names.STREAM_ABANDONED] for span in spans)
    assert not [thing for thing in gc.get_objects() if type(thing) is Call and not thing.ended]


async def test_a_call_that_is_cancelled_ends_its_span(openai_spans: Any, wire: Any) -> None:
    started = asyncio.Event()

    async def never(request: httpx2.Request) -> httpx2.Response:
        started.set()
        await asyncio.Event().wait()
        raise AssertionError

    http = httpx2.AsyncClient(transport=httpx2.MockTransport(never))
    client = openai.AsyncOpenAI(api_key="none", http_client=http)
    task = asyncio.create_task(client.images.generate(**ASK))
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert openai_spans.attributes()[names.ERROR_TYPE] == "asyncio.exceptions.CancelledError"


async def test_concurrent_calls_keep_apart(openai_spans: Any, wire: Any) -> None:
    client = wire.json(MADE).async_client()

    async def work(number: int) -> None:
        with tag(tenant=f"t{number}"):
            await client.images.generate(**{**ASK, "model": f"m{number}"})

    await asyncio.gather(*(work(number) for number in range(20)))
    seen = {(span.attributes[names.TENANT], span.name) for span in openai_spans.spans()}
    assert seen == {(f"t{number}", f"image_generation m{number}") for number in range(20)}
    assert {span.attributes[names.USAGE_INPUT_TOKENS] for span in openai_spans.spans()} == {1100}
