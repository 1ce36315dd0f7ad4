"""The groq and together clients, instrumented: what each kind of call counts and costs, and raw responses of both."""

from __future__ import annotations

import gc
import importlib
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import pytest

from tollspan.instrumentation import together_videos
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


# -- several models in one call ----------------------------------------------------------------------------------------

SMALL, LARGE = "llama-3.3-70b-versatile", "openai/gpt-oss-120b"
TOOLS = [
    {"index": 0, "type": "search", "arguments": "{}", "output": "found", "search_results": {"results": []}},
    {"index": 1, "type": "python", "arguments": "{}", "output": "2"},
]
BOTH = {"prompt_tokens": 3000, "completion_tokens": 300, "total_tokens": 3300}


def breakdown(*models: Any) -> dict[str, Any]:
    counts = {"prompt_tokens": 1000, "completion_tokens": 100, "total_tokens": 1100}
    doubled = {name: 2 * count for name, count in counts.items()}
    return {
        "models": [{"model": model, "usage": usage} for model, usage in zip(models, (counts, doubled), strict=True)]
    }


def compound(**changed: Any) -> dict[str, Any]:
    body = openai_completion("groq/compound", usage=BOTH, usage_breakdown=breakdown(SMALL, LARGE), **changed)
    body["choices"][0]["message"]["executed_tools"] = TOOLS
    return body


PARTS = {
    SMALL: Decimal("0.000669"),  # as above
    LARGE: Decimal("0.00042"),  # 2000 at 0.15 and 200 at 0.60 for a million
}


def check_compound(telemetry: Any) -> None:
    *parts, whole = telemetry.spans()
    assert all(part.parent.span_id == whole.context.span_id for part in parts)
    assert not [key for key in whole.attributes if key.startswith("gen_ai.usage.")]
    rows = {row["model"]: row for row in ledger(parts)}
    assert {model: row["cost"] for model, row in rows.items()} == PARTS
    assert {row["cost_status"] for row in rows.values()} == {"priced"}
    (row,) = ledger([whole])
    assert row["meters"] == {"web_searches": 1}, "what Groq's tools cost is no model's"


def test_each_model_of_a_compound_call_is_billed_at_its_own_price(spans: Any, stub: SmallStub) -> None:
    client = GROQ.client(stub.json(compound()).url)
    assert client.chat.completions.create(model="groq/compound", messages=HELLO).usage.total_tokens == 3300
    check_compound(spans)


async def test_each_model_of_a_compound_stream_async(spans: Any, stub: SmallStub) -> None:
    whole = {"id": "chatcmpl-7", "object": "chat.completion.chunk", "created": 1, "model": "groq/compound"}
    deltas = [{"executed_tools": TOOLS[:1]}, {"executed_tools": TOOLS}, {"content": "Hello."}]
    chunks = [{**whole, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]} for delta in deltas]
    chunks.append(
        {
            **whole,
            "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}],
            "x_groq": {"id": "req_7", "usage": BOTH, "usage_breakdown": breakdown(SMALL, LARGE)},
        }
    )
    client = GROQ.async_client(stub.stream(server_sent(chunks), SSE).url)
    stream = await client.chat.completions.create(model="groq/compound", messages=HELLO, stream=True)
    assert len([chunk async for chunk in stream]) == 4
    check_compound(spans)


def test_a_call_whose_tools_cost_nothing_is_its_models_alone(spans: Any, stub: SmallStub) -> None:
    body = compound()
    body["choices"][0]["message"]["executed_tools"] = TOOLS[1:]
    GROQ.ask(GROQ.client(stub.json(body).url))
    (row,) = ledger(spans.spans()[-1:])
    assert (row["cost_status"], row["cost_reasons"]) == ("not_billed", "usage_deferred")


def test_a_breakdown_that_does_not_name_its_models_is_not_taken(spans: Any, stub: SmallStub) -> None:
    GROQ.ask(GROQ.client(stub.json(compound() | {"usage_breakdown": breakdown(SMALL, None)}).url))
    (row,) = ledger(spans.spans())
    assert row["meters"]["tokens.output"] == 300


# -- videos ------------------------------------------------------------------------------------------------------------

JOB = {"id": "vid_7", "model": "minimax/video-01", "created_at": 1_790_000_000.0, "seconds": "6", "size": "1366x768"}


def job(status: str, **more: Any) -> dict[str, Any]:
    return {**JOB, "status": status, "object": "video", **more}


DONE = job("completed", completed_at=1_790_000_060.0, outputs={"cost": 28, "video_url": "https://example.com/v"})


def test_a_video_is_billed_when_it_is_made_however_often_it_is_asked_after(spans: Any, stub: SmallStub) -> None:
    stub.json(job("in_progress")).json(job("in_progress")).json(DONE)
    client = TOGETHER.client(stub.url)
    asked = client.videos.create(model=JOB["model"], prompt="a cat", seconds="6")
    while client.videos.retrieve(asked.id).status != "completed":
        pass
    client.videos.retrieve(asked.id)
    call, video = spans.spans()
    assert video.links[0].context.span_id == call.context.span_id
    assert ledger([call]) == []
    (row,) = ledger([video])
    assert (row["model"], row["meters"]) == (JOB["model"], {"video.seconds": 6})


async def test_a_video_has_one_identity_in_every_process(telemetry: Any, stub: SmallStub) -> None:
    stub.json(DONE)
    for client in (TOGETHER.client(stub.url), TOGETHER.async_client(stub.url)):
        TogetherInstrumentor().instrument(tracer_provider=telemetry.provider)
        seen = client.videos.retrieve("vid_7")
        if hasattr(seen, "__await__"):
            await seen
        TogetherInstrumentor().uninstrument()
        together_videos.ONCE.forget()
    one, other = (span.context for span in telemetry.spans())
    assert (one.trace_id, one.span_id) == (other.trace_id, other.span_id)


def test_a_video_that_failed_costs_nothing(spans: Any, stub: SmallStub) -> None:
    TOGETHER.client(stub.json(job("failed", error={"message": "no"})).url).videos.retrieve("vid_7")
    assert spans.spans() == []
