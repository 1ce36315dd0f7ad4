"""The groq and together clients, instrumented: what each kind of call counts and costs, and raw responses of both."""

from __future__ import annotations

import gc
import importlib
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import pytest

from tollspan.instrumentation.stainless import CLIENTS, GroqInstrumentor, TogetherInstrumentor

from .openai_bill import bill, ledger
from .small_stubs import (
    GROQ,
    GROQ_MODEL,
    HELLO,
    SSE,
    TOGETHER,
    TOGETHER_MODEL,
    Case,
    SmallStub,
    openai_chunks,
    openai_completion,
    server_sent,
)

pytest.importorskip("groq")
pytest.importorskip("together")

TEXT: dict[str, Any] = {"tokens.input.uncached": 1000, "tokens.output": 100}
COSTS = {
    "groq": Decimal("0.000669"),  # 1000 at 0.59 and 100 at 0.79 for a million
    "together": Decimal("0.000968"),  # 1100 at 0.88 for a million
}


@pytest.fixture
def stub() -> Iterator[SmallStub]:
    made = SmallStub()
    yield made
    made.close()


@pytest.fixture
def spans(telemetry: Any) -> Iterator[Any]:
    made = (GroqInstrumentor(), TogetherInstrumentor())
    for one in made:
        one.instrument(tracer_provider=telemetry.provider)
    yield telemetry
    for one in made:
        one.uninstrument()


CASES = pytest.mark.parametrize("case", [GROQ, TOGETHER], ids=str)


@CASES
def test_a_call_costs_what_the_list_says(spans: Any, stub: SmallStub, case: Case) -> None:
    case.ask(case.client(stub.json(case.body).url))
    assert bill(spans.spans()) == (TEXT, COSTS[case.name], "priced")


@CASES
def test_a_stream_costs_what_the_list_says(spans: Any, stub: SmallStub, case: Case) -> None:
    list(case.stream(case.client(stub.stream(case.pieces, SSE).url)))
    assert bill(spans.spans()) == (TEXT, COSTS[case.name], "priced")


@CASES
def test_a_stream_without_usage_has_none(spans: Any, stub: SmallStub, case: Case) -> None:
    list(case.stream(case.client(stub.stream(server_sent(openai_chunks(case.model)), SSE).url)))
    assert not [key for key in spans.attributes() if "usage" in key]


@CASES
def test_raw_responses_are_untouched_and_counted(spans: Any, stub: SmallStub, case: Case) -> None:
    client = case.client(stub.json(case.body).url)
    kind = importlib.import_module(f"{case.name}._response").APIResponse
    raw = client.chat.completions.with_raw_response.create(model=case.model, messages=HELLO)
    assert type(raw) is kind
    assert bill(spans.spans()) == (TEXT, COSTS[case.name], "priced")
    assert raw.parse().id == "chatcmpl-7"
    assert len(spans.spans()) == 1


@CASES
async def test_raw_responses_async(spans: Any, stub: SmallStub, case: Case) -> None:
    client = case.async_client(stub.json(case.body).url)
    raw = await client.chat.completions.with_raw_response.create(model=case.model, messages=HELLO)
    assert (await raw.parse()).id == "chatcmpl-7"
    assert bill(spans.spans()) == (TEXT, COSTS[case.name], "priced")


@CASES
def test_raw_streams_are_counted_when_they_are_read(spans: Any, stub: SmallStub, case: Case) -> None:
    client = case.client(stub.stream(case.pieces, SSE).url)
    raw = client.chat.completions.with_raw_response.create(model=case.model, messages=HELLO, stream=True)
    stream = raw.parse()
    assert isinstance(stream, importlib.import_module(f"{case.name}._streaming").Stream)
    assert spans.spans() == []
    assert len(list(stream)) == 3
    assert bill(spans.spans()) == (TEXT, COSTS[case.name], "priced")


@CASES
def test_a_raw_stream_never_parsed_ends_its_span_when_it_goes(spans: Any, stub: SmallStub, case: Case) -> None:
    client = case.client(stub.stream(case.pieces, SSE).url)
    raw = client.chat.completions.with_raw_response.create(model=case.model, messages=HELLO, stream=True)
    assert spans.spans() == []
    del raw
    gc.collect()
    assert len(spans.spans()) == 1


@CASES
@pytest.mark.parametrize("take", ["parse", "json", "read"])
def test_streaming_responses_are_counted_however_they_are_taken(
    spans: Any, stub: SmallStub, case: Case, take: str
) -> None:
    client = case.client(stub.json(case.body).url)
    with client.chat.completions.with_streaming_response.create(model=case.model, messages=HELLO) as response:
        assert spans.spans() == []
        getattr(response, take)()
    assert bill(spans.spans()) == (TEXT, COSTS[case.name], "priced")


@CASES
async def test_streaming_responses_async(spans: Any, stub: SmallStub, case: Case) -> None:
    client = case.async_client(stub.json(case.body).url)
    async with client.chat.completions.with_streaming_response.create(model=case.model, messages=HELLO) as response:
        await response.parse()
    assert bill(spans.spans()) == (TEXT, COSTS[case.name], "priced")


def test_groqs_cached_and_reasoned_tokens(spans: Any, stub: SmallStub) -> None:
    usage = {
        "prompt_tokens": 1000,
        "completion_tokens": 100,
        "total_tokens": 1100,
        "prompt_time": 0.1,
        "total_time": 0.2,
        "prompt_tokens_details": {"cached_tokens": 300},
        "completion_tokens_details": {"reasoning_tokens": 40},
    }
    body = openai_completion(GROQ_MODEL, usage=usage, service_tier="flex", usage_breakdown=None)
    GROQ.ask(GROQ.client(stub.json(body).url))
    (row,) = ledger(spans.spans())
    assert row["meters"] == {
        "tokens.input.uncached": 700,
        "tokens.input.cache_read": 300,
        "tokens.output": 60,
        "tokens.output.reasoning": 40,
    }
    assert row["service_tier"] == "flex"


def test_groqs_ordinary_tier_has_the_list_price(spans: Any, stub: SmallStub) -> None:
    GROQ.ask(GROQ.client(stub.json(openai_completion(GROQ_MODEL, service_tier="on_demand")).url))
    assert bill(spans.spans())[1:] == (COSTS["groq"], "priced")


def test_groqs_hardware_statistics_are_no_usage(spans: Any, stub: SmallStub) -> None:
    body = openai_completion(GROQ_MODEL, usage=None, x_groq={"id": "req_7", "usage": {"dram_cached_tokens": 5}})
    GROQ.ask(GROQ.client(stub.json(body).url))
    assert not [key for key in spans.attributes() if "usage" in key]


def test_groqs_embeddings(spans: Any, stub: SmallStub) -> None:
    body = {
        "object": "list",
        "model": "nomic-embed-text-v1_5",
        "data": [{"object": "embedding", "index": 0, "embedding": [0.1]}],
        "usage": {"prompt_tokens": 1000, "total_tokens": 1000},
    }
    GROQ.client(stub.json(body).url).embeddings.create(model="nomic-embed-text-v1_5", input="a")
    (row,) = ledger(spans.spans())
    assert (row["operation"], row["meters"]) == ("embeddings", {"tokens.input.uncached": 1000})


def test_groqs_transcription_tells_no_usage(spans: Any, stub: SmallStub) -> None:
    client = GROQ.client(stub.json({"text": "Hello.", "x_groq": {"id": "req_7"}}).url)
    assert client.audio.transcriptions.create(model="whisper-large-v3", file=b"sound").text == "Hello."
    (row,) = ledger(spans.spans())
    assert (row["operation"], row["meters"], row["cost_status"]) == ("transcription", {}, "unpriced")


@CASES
def test_speech_counts_the_characters_of_its_text(spans: Any, stub: SmallStub, case: Case) -> None:
    stub.stream([b"RIFF", b"sound"], "audio/wav")
    sound = case.client(stub.url).audio.speech.create(model="m", voice="v", input="Hello.")
    assert sound.read() == b"RIFFsound"
    (row,) = ledger(spans.spans())
    assert (row["operation"], row["meters"]) == ("speech", {"characters": 6})


def test_togethers_other_calls(spans: Any, stub: SmallStub) -> None:
    usage = {"prompt_tokens": 1000, "completion_tokens": 100, "total_tokens": 1100}
    completion = {
        "id": "c-7",
        "object": "text_completion",
        "created": 1,
        "model": TOGETHER_MODEL,
        "choices": [{"text": "Hello.", "finish_reason": "stop"}],
        "usage": usage,
    }
    ranked = {"object": "rerank", "id": "r", "model": "r-m", "results": [], "usage": {**usage, "completion_tokens": 0}}
    drawn = {
        "id": "i",
        "model": "black-forest-labs/FLUX.1-schnell",
        "object": "list",
        "data": [{"index": 0, "type": "url", "url": "https://example.org/1"}, {"index": 1, "type": "url", "url": "u"}],
    }
    client = TOGETHER.client(stub.json(completion).json(ranked).json(drawn).url)
    client.completions.create(model=TOGETHER_MODEL, prompt="hello")
    client.rerank.create(model="r-m", query="q", documents=["a"])
    client.images.generate(model="black-forest-labs/FLUX.1-schnell", prompt="a cat", n=2)
    assert [(row["operation"], row["meters"]) for row in ledger(spans.spans())] == [
        ("text_completion", TEXT),
        ("rerank", {"tokens.input.uncached": 1000}),
        ("image_generation", {"images": 2}),
    ]


def test_every_method_is_there() -> None:
    for client in CLIENTS:
        for method in client.methods:
            module, _, path = method.target.partition(":")
            for prefix in ("", "Async"):
                kind, name = (path % prefix).split(".")
                found = importlib.import_module(f"{client.package}.resources.{module}")
                assert callable(getattr(getattr(found, kind), name))
