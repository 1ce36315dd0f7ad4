"""What a provider says a call used reaches the processor meter by meter, through the attributes of a span."""

from __future__ import annotations

import logging
import subprocess
import sys
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.context import Context
from opentelemetry.trace import INVALID_SPAN

from tollspan.instrumentation import usage as module
from tollspan.instrumentation.calls import Call, WrapPoint
from tollspan.instrumentation.usage import put_usage
from tollspan.instrumentation.usage_attributes import INCLUSIVE, OWN, usage_attributes
from tollspan.pricing import attributes as names
from tollspan.pricing.conventions import CONVENTIONS, disjoint
from tollspan.pricing.meters import METERS
from tollspan.pricing.usage_objects import UsageReading, read_usage

INCONSISTENT = "usage_inconsistent"
POINT = WrapPoint(target="anthropic:nothing", request=lambda args, kwargs: None)


def call() -> Call:
    return Call(POINT, "k", INVALID_SPAN, Context(), None)


def put(provider: str, usage: Any, **around: Any) -> dict[str, Any]:
    reading = call()
    put_usage(reading, provider, usage, **around)
    return reading.attributes


def through_the_processor(attributes: dict[str, Any]) -> tuple[dict[str, int], str | None]:
    """Quantities that the processor finds on a span with these attributes, and why they cannot be right."""
    from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
    from opentelemetry.sdk.trace import TracerProvider

    decode = pytest.importorskip("tollspan.processor.decode").decode
    normalize = pytest.importorskip("tollspan.processor.normalize").normalize
    span = TracerProvider().get_tracer("test").start_span("chat m", attributes={"gen_ai.operation.name": "chat"})
    span.set_attributes(attributes)
    span.end()
    made = normalize(decode([encode_spans([span]).SerializeToString()]), received_ns=span.end_time)
    quantities = {meter: column[0].as_py() for meter, column in made.quantities.items()}
    return {meter: steps for meter, steps in quantities.items() if steps is not None}, made.table["invalid"][0].as_py()


OBJECTS: dict[str, tuple[str, Any]] = {
    "anthropic": (
        "anthropic",
        {
            "input_tokens": 10,
            "cache_creation_input_tokens": 7,
            "cache_read_input_tokens": 100,
            "cache_creation": {"ephemeral_5m_input_tokens": 3, "ephemeral_1h_input_tokens": 4},
            "output_tokens": 20,
            "output_tokens_details": {"thinking_tokens": 5},
            "server_tool_use": {"web_search_requests": 2, "web_fetch_requests": 1},
        },
    ),
    "anthropic, lifetimes not told": (
        "anthropic",
        {"input_tokens": 10, "cache_creation_input_tokens": 7, "cache_read_input_tokens": 0, "output_tokens": 20},
    ),
    "bedrock": (
        "aws.bedrock",
        {
            "inputTokens": 10,
            "outputTokens": 5,
            "cacheReadInputTokens": 100,
            "cacheWriteInputTokens": 30,
            "cacheDetails": [{"ttl": "5m", "inputTokens": 10}, {"ttl": "1h", "inputTokens": 20}],
        },
    ),
    "gemini": (
        "gcp.gemini",
        {
            "promptTokenCount": 1000,
            "candidatesTokenCount": 200,
            "thoughtsTokenCount": 50,
            "toolUsePromptTokenCount": 30,
            "cachedContentTokenCount": 400,
            "totalTokenCount": 1280,
            "promptTokensDetails": [
                {"modality": "AUDIO", "tokenCount": 100},
                {"modality": "VIDEO", "tokenCount": 60},
                {"modality": "IMAGE", "tokenCount": 40},
            ],
            "cacheTokensDetails": [
                {"modality": "AUDIO", "tokenCount": 20},
                {"modality": "VIDEO", "tokenCount": 10},
                {"modality": "IMAGE", "tokenCount": 5},
            ],
            "candidatesTokensDetails": [{"modality": "IMAGE", "tokenCount": 70}],
        },
    ),
    "openai realtime": (
        "openai",
        {
            "input_tokens": 100,
            "output_tokens": 50,
            "total_tokens": 150,
            "input_token_details": {
                "audio_tokens": 60,
                "cached_tokens": 30,
                "cached_tokens_details": {"audio_tokens": 20},
            },
            "output_token_details": {"audio_tokens": 40},
        },
    ),
    "transcription by the second": ("openai", {"type": "duration", "seconds": 12.5}),
    "mistral ocr": ("mistral_ai", {"pages_processed": 3}),
    "cohere rerank": ("cohere", {"billed_units": {"search_units": 2}}),
    "xai": (
        "x_ai",
        {
            "prompt_tokens": 10,
            "completion_tokens": 5,
            "total_tokens": 22,
            "completion_tokens_details": {"reasoning_tokens": 7},
        },
    ),
}


@pytest.mark.parametrize("name", OBJECTS)
def test_the_processor_finds_the_meters_that_were_read(name: str) -> None:
    provider, usage = OBJECTS[name]
    quantities, invalid = through_the_processor(put(provider, usage))
    assert invalid is None
    assert quantities == read_usage(provider, usage).quantities != {}


COUNTS = st.integers(0, 1000)


@given(
    st.sampled_from(sorted(CONVENTIONS)),
    st.dictionaries(
        st.sampled_from(["cache_read", "cache_write", "cache_write_5m", "cache_write_1h", "reasoning", "audio_input"]),
        COUNTS,
    ),
    COUNTS,
    COUNTS,
)
def test_whatever_the_convention_the_span_says_the_same(
    convention: str, parts: dict[str, int], more_in: int, more_out: int
) -> None:
    counts = {**parts, "input_tokens": sum(parts.values()) + more_in, "output_tokens": sum(parts.values()) + more_out}
    if "cache_write" in parts:
        counts["cache_write"] += parts.get("cache_write_5m", 0) + parts.get("cache_write_1h", 0)
        counts["input_tokens"] += counts["cache_write"]
    quantities, invalid = disjoint(convention, counts)
    assert invalid is None
    attributes = usage_attributes(UsageReading(quantities), "openai")
    assert attributes[names.USAGE_INPUT_TOKENS] == sum(
        steps for meter, steps in quantities.items() if meter.startswith("tokens.input")
    )
    again, wrong = through_the_processor(attributes)
    assert wrong is None
    assert again == quantities


def test_every_meter_is_said_in_one_place_or_is_what_is_left_of_a_whole() -> None:
    parts = {meter for _, main, meters in INCLUSIVE if not main for meter in meters}
    rest = {main for _, main, _ in INCLUSIVE if main}
    assert set(METERS) == parts | rest | set(OWN)
    # The lifetimes of a cache write are parts of its total, and told beside it.
    assert set(OWN) & parts == {meter for meter in METERS if meter.startswith("tokens.input.cache_write.")}


@pytest.mark.parametrize("meter", [meter for meter in OWN if not meter.startswith("tokens.")])
def test_every_meter_of_our_own_arrives_to_the_step(meter: str) -> None:
    steps = 12_345_678_901
    quantities, invalid = through_the_processor(usage_attributes(UsageReading({meter: steps}), "openai"))
    assert (quantities, invalid) == ({meter: steps}, None)


def test_what_is_not_told_is_absent_and_what_is_told_as_nothing_is_nothing() -> None:
    assert put("anthropic", None) == {}
    assert put("anthropic", {}) == {}
    assert put("anthropic", {"output_tokens": 3}) == {names.USAGE_OUTPUT_TOKENS: 3}
    assert put("anthropic", {"input_tokens": 0, "output_tokens": 0}) == {
        names.USAGE_INPUT_TOKENS: 0,
        names.USAGE_OUTPUT_TOKENS: 0,
    }


def test_a_part_told_alone_makes_no_whole() -> None:
    attributes = put("anthropic", {"cache_read_input_tokens": 100})
    assert attributes == {names.USAGE_CACHE_READ_TOKENS: 100}
    assert through_the_processor(attributes)[0] == {"tokens.input.cache_read": 100}


def test_a_later_object_takes_the_place_of_an_earlier_one() -> None:
    reading = call()
    put_usage(reading, "anthropic", {"input_tokens": 10, "output_tokens": 1})
    put_usage(reading, "anthropic", {"output_tokens": 5})
    put_usage(reading, "anthropic", {"output_tokens": 9})
    assert reading.attributes == {names.USAGE_INPUT_TOKENS: 10, names.USAGE_OUTPUT_TOKENS: 9}


@pytest.mark.parametrize(
    ("usage", "reason"),
    [
        ({"input_tokens": -1, "output_tokens": 2}, "usage_negative"),
        ({"input_tokens": 1.5, "output_tokens": 2}, "usage_fractional"),
        ({"input_tokens": "many", "output_tokens": 2}, "usage_not_a_number"),
        ({"input_tokens": 2**60, "output_tokens": 2}, "usage_too_large"),
        (
            {"input_tokens": 1, "output_tokens": 2, "output_tokens_details": {"thinking_tokens": 3}},
            "usage_inconsistent",
        ),
    ],
)
def test_usage_that_cannot_be_right_says_why_and_nothing_else(usage: Any, reason: str) -> None:
    attributes = put("anthropic", usage)
    assert attributes == {names.USAGE_INVALID: reason}
    assert through_the_processor(attributes) == ({}, reason)


def test_what_was_right_before_is_taken_back_when_it_turns_out_wrong_and_the_other_way_round() -> None:
    reading = call()
    reading.attributes["mine"] = 1
    put_usage(reading, "anthropic", {"input_tokens": 1, "output_tokens": 2})
    put_usage(reading, "anthropic", {"output_tokens": -2})
    assert reading.attributes == {"mine": 1, names.USAGE_INVALID: "usage_negative"}
    put_usage(reading, "anthropic", {"input_tokens": 1, "output_tokens": 2})
    assert reading.attributes == {"mine": 1, names.USAGE_INPUT_TOKENS: 1, names.USAGE_OUTPUT_TOKENS: 2}


def test_the_tier_as_served_its_place_and_its_cost() -> None:
    usage = {"input_tokens": 1, "output_tokens": 2, "service_tier": "priority", "inference_geo": "US"}
    attributes = put("anthropic", usage)
    assert attributes[names.ANTHROPIC_RESPONSE_SERVICE_TIER] == "priority"
    assert attributes[names.RESIDENCY] == "us"
    assert put("anthropic", {**usage, "speed": "fast"})[names.ANTHROPIC_RESPONSE_SERVICE_TIER] == "fast"
    assert (
        put("gcp.vertex_ai", {"promptTokenCount": 1, "trafficType": "ON_DEMAND_FLEX"})[
            names.OPENAI_RESPONSE_SERVICE_TIER
        ]
        == "flex"
    )
    openrouter = put("openrouter", {"prompt_tokens": 1, "completion_tokens": 2, "cost": 1e-7})
    assert openrouter[names.COST_REPORTED] == "0.0000001"
    assert Decimal(openrouter[names.COST_REPORTED]) == Decimal("1E-7")


def test_usage_that_no_meter_counts_is_named_once(caplog: pytest.LogCaptureFixture) -> None:
    module._named.clear()
    with caplog.at_level(logging.WARNING, "tollspan"):
        for _ in range(3):
            put("anthropic", {"input_tokens": 1, "output_tokens": 2, "cache_creation": {"ephemeral_9y_things": 3}})
    assert [record.getMessage().rpartition(": ")[2] for record in caplog.records] == [
        "cache_creation.ephemeral_9y_things"
    ]


def test_citations_are_part_of_the_output_and_billed_as_themselves() -> None:
    usage = {"prompt_tokens": 10, "completion_tokens": 20, "citation_tokens": 5, "total_tokens": 30}
    quantities, reason = through_the_processor(put("perplexity", usage))
    assert (quantities, reason) == (
        {"tokens.input.uncached": 10, "tokens.output": 20, "tokens.output.citation": 5},
        None,
    )


def test_a_client_that_is_only_imported_brings_no_tables_of_usage() -> None:
    code = (
        "import sys; import tollspan.instrumentation.openai, tollspan.instrumentation.anthropic; "
        "print([m for m in ('usage_objects', 'meters', 'conventions') if f'tollspan.pricing.{m}' in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
