"""Embeddings and moderations of the openai client."""

from __future__ import annotations

import pickle
from decimal import Decimal
from typing import Any

import openai
import pytest
from openai.types import CreateEmbeddingResponse, ModerationCreateResponse
from opentelemetry import trace
from opentelemetry.instrumentation.utils import suppress_instrumentation
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF

from tollspan.instrumentation import faults, tag
from tollspan.instrumentation.openai import OpenAIInstrumentor, media
from tollspan.pricing import attributes as names

from .http_library import httpx2
from .openai_bill import bill, ledger

EMBED: dict[str, Any] = {"model": "text-embedding-3-small", "input": ["a", "b"]}
EMBEDDED = {
    "object": "list",
    "model": "text-embedding-3-small",
    "data": [{"object": "embedding", "index": number, "embedding": [0.5, 0.25]} for number in range(2)],
    "usage": {"prompt_tokens": 1500, "total_tokens": 1500},
}
MODERATED = {
    "id": "modr-1",
    "model": "omni-moderation-latest",
    "results": [{"flagged": False, "categories": {}, "category_scores": {}}],
}


def check(telemetry: Any) -> None:
    """The one span says what the reply above tells, and its row costs 1,500 × $0.02 / 1,000,000."""
    span = telemetry.only()
    assert span.name == "embeddings text-embedding-3-small"
    assert telemetry.attributes() == {
        names.OPERATION_NAME: "embeddings",
        names.PROVIDER_NAME: "openai",
        names.REQUEST_MODEL: "text-embedding-3-small",
        names.RESPONSE_MODEL: "text-embedding-3-small",
        names.SERVER_ADDRESS: "api.openai.com",
        names.SERVER_PORT: 443,
        names.RETRIES: 0,
        names.USAGE_INPUT_TOKENS: 1500,
    }
    assert bill(telemetry.spans()) == ({"tokens.input.uncached": 1500}, Decimal("0.00003"), "priced")


def test_embeddings(openai_spans: Any, wire: Any) -> None:
    result = wire.json(EMBEDDED).client().embeddings.create(**EMBED, encoding_format="float")
    assert type(result) is CreateEmbeddingResponse
    assert pickle.loads(pickle.dumps(result)).usage.prompt_tokens == 1500
    check(openai_spans)


async def test_embeddings_async(openai_spans: Any, wire: Any) -> None:
    result = await wire.json(EMBEDDED).async_client().embeddings.create(**EMBED, encoding_format="float")
    assert type(result) is CreateEmbeddingResponse
    check(openai_spans)


def test_embeddings_raw(openai_spans: Any, wire: Any) -> None:
    raw = wire.json(EMBEDDED).client().embeddings.with_raw_response.create(**EMBED, encoding_format="float")
    check(openai_spans)
    assert raw.parse().usage.total_tokens == 1500
    check(openai_spans)


async def test_embeddings_streaming_response(openai_spans: Any, wire: Any) -> None:
    client = wire.json(EMBEDDED).async_client()
    async with client.embeddings.with_streaming_response.create(**EMBED, encoding_format="float") as response:
        assert openai_spans.spans() == []
        assert (await response.parse()).usage.total_tokens == 1500
    check(openai_spans)


@pytest.mark.parametrize("status", [401, 429, 500])
def test_a_refusal_is_the_clients_own_and_costs_nothing(openai_spans: Any, wire: Any, status: int) -> None:
    with pytest.raises(openai.APIStatusError) as caught:
        wire.error(status).client(max_retries=1).embeddings.create(**EMBED)
    assert caught.value.status_code == status
    attributes = openai_spans.attributes()
    assert attributes[names.HTTP_STATUS] == status
    assert attributes[names.RETRIES] == (0 if status == 401 else 1)
    assert bill(openai_spans.spans()) == ({}, None, "not_billed")


def test_a_retry_is_one_span(openai_spans: Any, wire: Any) -> None:
    wire.error(500).json(EMBEDDED).client().embeddings.create(**EMBED, encoding_format="float")
    assert openai_spans.attributes()[names.RETRIES] == 1
    assert bill(openai_spans.spans())[0] == {"tokens.input.uncached": 1500}


def test_usage_that_cannot_be_right_is_invalid(openai_spans: Any, wire: Any) -> None:
    wire.json({**EMBEDDED, "usage": {"prompt_tokens": -1, "total_tokens": -1}})
    wire.client().embeddings.create(**EMBED, encoding_format="float")
    assert openai_spans.attributes()[names.USAGE_INVALID] == "usage_negative"
    assert bill(openai_spans.spans()) == ({}, None, "invalid")


def test_a_response_without_usage_is_unpriced(openai_spans: Any, wire: Any) -> None:
    wire.json({**EMBEDDED, "usage": None}).client().embeddings.create(**EMBED, encoding_format="float")
    assert bill(openai_spans.spans()) == ({}, None, "unpriced")


def test_azure_asks_by_deployment(openai_spans: Any, wire: Any) -> None:
    client = openai.AzureOpenAI(
        api_key="none",
        api_version="2025-01-01",
        azure_endpoint="https://mine.openai.azure.com",
        http_client=httpx2.Client(transport=httpx2.MockTransport(wire.json(EMBEDDED)._answer)),
    )
    client.embeddings.create(**EMBED, encoding_format="float")
    attributes = openai_spans.attributes()
    assert attributes[names.PROVIDER_NAME] == "azure.ai.openai"
    assert attributes[names.USAGE_INPUT_TOKENS] == 1500


def test_moderation_has_a_span_and_no_bill(openai_spans: Any, wire: Any) -> None:
    with tag(tenant="acme"):
        result = wire.json(MODERATED).client().moderations.create(input="hello")
    assert type(result) is ModerationCreateResponse
    span = openai_spans.only()
    assert span.name == "moderation omni-moderation-latest"
    assert span.attributes[names.TENANT] == "acme"
    assert not [name for name in span.attributes if "usage" in name]
    assert ledger(openai_spans.spans()) == []


async def test_moderation_async_of_a_provider_that_counts(openai_spans: Any, wire: Any) -> None:
    usage = {"prompt_tokens": 12, "completion_tokens": 0, "total_tokens": 12}
    client = wire.json({**MODERATED, "usage": usage}).async_client(base_url="https://api.mistral.ai/v1")
    await client.moderations.create(input="hello", model="mistral-moderation-latest")
    (row,) = ledger(openai_spans.spans())
    assert row["meters"] == {"tokens.input.uncached": 12}


def test_decisions_have_prices_of_their_own(openai_spans: Any, wire: Any) -> None:
    usage = {
        "input_tokens": 1000,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": 0,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 1000,
    }
    client = wire.json({"answers": [], "model": "gpt-6-luna", "usage": usage}).client()
    if not hasattr(client, "decisions"):
        pytest.skip("this version has no decisions")
    question = {"type": "predicate", "question": "is it?"}
    client.decisions.create(model="gpt-6-luna", input="hello", questions=[question])
    assert openai_spans.only().name == "decision gpt-6-luna"
    meters, cost, _ = bill(openai_spans.spans())
    # 1,000 × $0.10 / 1,000,000, the price of short inputs.
    assert (meters, cost) == ({"tokens.input.uncached": 1000}, Decimal("0.0001"))


def test_suppressed_calls_have_no_span(openai_spans: Any, wire: Any) -> None:
    with suppress_instrumentation():
        wire.json(EMBEDDED).client().embeddings.create(**EMBED, encoding_format="float")
    assert openai_spans.spans() == []


@pytest.mark.parametrize("provider", [trace.NoOpTracerProvider(), TracerProvider(sampler=ALWAYS_OFF)])
def test_without_anybody_to_see_it(wire: Any, provider: Any) -> None:
    OpenAIInstrumentor().instrument(tracer_provider=provider)
    try:
        result = wire.json(EMBEDDED).client().embeddings.create(**EMBED, encoding_format="float")
    finally:
        OpenAIInstrumentor().uninstrument()
    assert result.usage.total_tokens == 1500


@pytest.mark.parametrize("broken", ["put_usage", "_fields", "_strings", "client_attributes"])
def test_a_fault_of_ours_never_reaches_the_program(
    faulty_telemetry: Any, wire: Any, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    def fault(*_: Any, **__: Any) -> Any:
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr(media, broken, fault)
    counted = sum(faults().values())
    OpenAIInstrumentor().instrument(tracer_provider=faulty_telemetry.provider)
    try:
        client = wire.json(EMBEDDED).client()
        assert client.embeddings.create(**EMBED, encoding_format="float").usage.total_tokens == 1500
        assert client.embeddings.with_raw_response.create(**EMBED).parse().usage.total_tokens == 1500
    finally:
        OpenAIInstrumentor().uninstrument()
    assert sum(faults().values()) >= counted + 2
