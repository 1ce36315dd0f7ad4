"""The truth table: what Bedrock and the models on it say a call used, the meters that come of it, and a price worked
out by hand."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.context import Context
from opentelemetry.trace import INVALID_SPAN

from tollspan.instrumentation.bedrock import BedrockInstrumentor, readers
from tollspan.instrumentation.bedrock.requests import KINDS, State, operation_of
from tollspan.instrumentation.calls import Call, WrapPoint
from tollspan.pricing import attributes as names

from .bedrock_stub import CLAUDE, MODEL, USAGE, Stub, chunks, converse, converse_events, metrics, serve

normalize = pytest.importorskip("tollspan.processor.normalize").normalize

NOVA = MODEL
LLAMA = "meta.llama3-1-8b-instruct-v1:0"
MISTRAL = "mistral.mistral-large-2402-v1:0"
DEEPSEEK = "us.deepseek.r1-v1:0"
GPT_OSS = "openai.gpt-oss-20b-1:0"
TITAN = "amazon.titan-text-express-v1"
TITAN_EMBED = "amazon.titan-embed-text-v2:0"
OWN_ARN = "arn:aws:bedrock:us-west-2:123456789012:application-inference-profile/abc123"

PLAIN = {"tokens.input.uncached": 100, "tokens.output": 20}
CACHED = {
    **PLAIN,
    "tokens.input.cache_read": 1000,
    "tokens.input.cache_write": 0,
    "tokens.input.cache_write.5m": 3,
    "tokens.input.cache_write.1h": 4,
}
CACHED_IN_ALL = {**PLAIN, "tokens.input.cache_read": 1000, "tokens.input.cache_write": 7}

# USD a million tokens (aws.amazon.com/bedrock/pricing, on demand): (quantity, rate) pairs.
NOVA_CACHED = (100, "0.8"), (1000, "0.2"), (7, "0.8"), (20, "3.2")
CLAUDE_CACHED = (100, "3"), (1000, "0.3"), (3, "3.75"), (4, "6"), (20, "15")
REGIONAL_CACHED = (100, "3.3"), (1000, "0.33"), (3, "4.125"), (4, "6.6"), (20, "16.5")
CLAUDE_IN_ALL = (100, "3"), (1000, "0.3"), (7, "3.75"), (20, "15")


def usd(*lines: tuple[int, str]) -> Decimal:
    return sum((count * Decimal(rate) / 1_000_000 for count, rate in lines), Decimal(0))


@pytest.fixture(scope="module")
def server() -> Iterator[Stub]:
    with serve() as stub:
        yield stub


@pytest.fixture
def stub(server: Stub) -> Stub:
    server.replies, server.requests = [], []
    return server


@pytest.fixture
def spans(telemetry: Any) -> Iterator[Any]:
    BedrockInstrumentor().instrument(tracer_provider=telemetry.provider)
    yield telemetry
    BedrockInstrumentor().uninstrument()


@pytest.fixture(scope="module")
def engine() -> Any:
    from tollspan.pricing import PriceEngine, shipped_book

    return PriceEngine(shipped_book())


def row(telemetry: Any, engine: Any) -> dict[str, Any]:
    """The ledger's row of the one span there is; ``meters`` are its quantities, ``billed`` those above 0."""
    import numpy as np
    from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans

    from tollspan.processor.charge import charge
    from tollspan.processor.decode import decode

    payload = encode_spans([telemetry.only()]).SerializeToString()
    table = charge(normalize(decode([payload]), received_ns=time.time_ns()), np.zeros(1, np.bool_), engine).ledger
    [made] = table.drop_columns(["start_time"]).to_pylist()
    made["meters"] = {m: int(q) for m, q in zip(made["charges.meter"], made["charges.quantity"], strict=True)}
    return dict(made)


def check(made: dict[str, Any], meters: dict[str, int], lines: tuple[tuple[int, str], ...] | None) -> None:
    # What is nothing may be told or not; it is no part of the price.
    assert {m: q for m, q in made["meters"].items() if q} == {m: q for m, q in meters.items() if q}
    if lines is None:
        assert (made["cost"], made["cost_status"]) == (None, "unpriced")
    else:
        assert (made["cost"], made["cost_status"]) == (usd(*lines), "priced")
    assert (made["provider"], made["region"], made["convention"] or None) == (
        "aws.bedrock",
        "us-west-2",
        "otel_inclusive" if set(meters) - {"images"} else None,
    )


# -- Converse --------------------------------------------------------------------------------------------------------


IN_ALL = {name: value for name, value in USAGE.items() if name != "cacheDetails"}


@pytest.mark.parametrize(
    ("model", "usage", "meters", "lines"),
    [
        (NOVA, IN_ALL, CACHED_IN_ALL, NOVA_CACHED),
        (CLAUDE, IN_ALL, CACHED_IN_ALL, CLAUDE_IN_ALL),
        (CLAUDE, USAGE, CACHED, CLAUDE_CACHED),
        (CLAUDE.replace("global.", "us."), USAGE, CACHED, REGIONAL_CACHED),
        (f"arn:aws:bedrock:us-west-2:123456789012:inference-profile/{CLAUDE}", USAGE, CACHED, CLAUDE_CACHED),
        (OWN_ARN, USAGE, CACHED, None),
    ],
)
@pytest.mark.parametrize("streamed", [False, True])
def test_converse(
    spans: Any, stub: Stub, engine: Any, model: str, usage: Any, meters: Any, lines: Any, streamed: bool
) -> None:
    asked: dict[str, Any] = {"modelId": model, "messages": [{"role": "user", "content": [{"text": "x"}]}]}
    if streamed:
        list(stub.events(converse_events(usage=usage)).client().converse_stream(**asked)["stream"])
    else:
        stub.json(converse(usage=usage)).client().converse(**asked)
    check(row(spans, engine), meters, lines)


def test_a_tier_with_prices_of_its_own_is_not_priced_as_another(spans: Any, stub: Stub, engine: Any) -> None:
    asked: dict[str, Any] = {"modelId": NOVA, "messages": [{"role": "user", "content": [{"text": "x"}]}]}
    stub.json(converse(performanceConfig={"latency": "optimized"})).client().converse(**asked)
    made = row(spans, engine)
    assert (made["cost"], made["cost_status"], made["service_tier"]) == (None, "unpriced", "optimized")


def test_counts_that_cannot_be_right_are_invalid(spans: Any, stub: Stub, engine: Any) -> None:
    asked: dict[str, Any] = {"modelId": NOVA, "messages": [{"role": "user", "content": [{"text": "x"}]}]}
    stub.json(converse(usage={**USAGE, "outputTokens": -1})).client().converse(**asked)
    assert row(spans, engine)["cost_status"] == "invalid"


# -- InvokeModel: a body or what comes in its place, headers, meters, price ------------------------------------------

TOKENS = {"input": 100, "output": 20}
CACHED_TOKENS = {**TOKENS, "cache_read": 1000, "cache_write": 7}
CLAUDE_USAGE = {
    "input_tokens": 100,
    "cache_creation_input_tokens": 7,
    "cache_read_input_tokens": 1000,
    "cache_creation": {"ephemeral_5m_input_tokens": 3, "ephemeral_1h_input_tokens": 4},
    "output_tokens": 20,
    "service_tier": "standard",
}
NOVA_USAGE = {
    "inputTokens": 100,
    "outputTokens": 20,
    "totalTokens": 1127,
    "cacheReadInputTokenCount": 1000,
    "cacheWriteInputTokenCount": 7,
}
OPENAI_USAGE = {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120}

BODIES: dict[str, tuple[str, Any, dict[str, int], dict[str, int], Any, str | None]] = {
    "Anthropic": (
        CLAUDE,
        {"stop_reason": "end_turn", "usage": CLAUDE_USAGE},
        CACHED_TOKENS,
        CACHED,
        CLAUDE_CACHED,
        "end_turn",
    ),
    "Anthropic, no headers": (CLAUDE, {"usage": CLAUDE_USAGE}, {}, CACHED, CLAUDE_CACHED, None),
    "Anthropic, headers alone": (CLAUDE, {}, CACHED_TOKENS, CACHED_IN_ALL, CLAUDE_IN_ALL, None),
    "Nova": (
        NOVA,
        {"stopReason": "end_turn", "usage": NOVA_USAGE},
        CACHED_TOKENS,
        CACHED_IN_ALL,
        NOVA_CACHED,
        "end_turn",
    ),
    "Titan": (
        TITAN,
        {"inputTextTokenCount": 100, "results": [{"tokenCount": 20, "outputText": "x", "completionReason": "FINISH"}]},
        {},
        PLAIN,
        ((100, "0.2"), (20, "0.6")),
        "FINISH",
    ),
    "Llama": (
        LLAMA,
        {"generation": "x", "prompt_token_count": 100, "generation_token_count": 20, "stop_reason": "stop"},
        {},
        PLAIN,
        ((120, "0.22"),),
        "stop",
    ),
    "Mistral": (
        MISTRAL,
        {"outputs": [{"text": "x", "stop_reason": "length"}]},
        TOKENS,
        PLAIN,
        ((100, "4"), (20, "12")),
        "length",
    ),
    "DeepSeek": (
        DEEPSEEK,
        {"choices": [{"text": "x", "stop_reason": "stop"}]},
        TOKENS,
        PLAIN,
        ((100, "1.35"), (20, "5.4")),
        "stop",
    ),
    "OpenAI": (
        GPT_OSS,
        {"id": "chatcmpl-7", "choices": [{"index": 0, "finish_reason": "stop"}], "usage": OPENAI_USAGE},
        TOKENS,
        PLAIN,
        ((100, "0.07"), (20, "0.3")),
        "stop",
    ),
    "AI21": (
        "ai21.jamba-1-5-mini-v1:0",
        {"choices": [{"finish_reason": "stop"}], "usage": OPENAI_USAGE},
        {},
        PLAIN,
        None,
        "stop",
    ),
    "AI21, older": (
        "ai21.j2-ultra-v1",
        {"completions": [{"data": {}, "finishReason": {"reason": "endoftext"}}]},
        TOKENS,
        PLAIN,
        None,
        "endoftext",
    ),
    "Cohere": ("cohere.command-r-v1:0", {"text": "x", "finish_reason": "COMPLETE"}, TOKENS, PLAIN, None, "COMPLETE"),
    "Cohere, billed": (
        "cohere.command-r-v1:0",
        {"text": "x", "meta": {"billed_units": {"input_tokens": 100, "output_tokens": 20}}},
        {},
        PLAIN,
        None,
        None,
    ),
    "Cohere, older": (
        "cohere.command-text-v14",
        {"generations": [{"finish_reason": "COMPLETE", "text": "x"}]},
        TOKENS,
        PLAIN,
        None,
        "COMPLETE",
    ),
    "Titan vectors": (
        TITAN_EMBED,
        {"embedding": [0.5], "inputTextTokenCount": 100},
        {},
        {"tokens.input.uncached": 100},
        ((100, "0.02"),),
        None,
    ),
    "Titan vectors, headers": (
        TITAN_EMBED,
        {"embedding": [0.5], "inputTextTokenCount": 100},
        {"input": 100},
        {"tokens.input.uncached": 100},
        ((100, "0.02"),),
        None,
    ),
    "Cohere vectors": (
        "cohere.embed-english-v3",
        {"id": "7", "embeddings": [[0.5]], "response_type": "embeddings_floats"},
        {"input": 100},
        {"tokens.input.uncached": 100},
        None,
        None,
    ),
    "Images": ("amazon.nova-canvas-v1:0", {"images": ["aGk=", "aGk="], "error": None}, {}, {"images": 2}, None, None),
    "Images, headers": (
        "stability.sd3-5-large-v1:0",
        {"seeds": [1], "finish_reasons": [None], "images": ["aGk="]},
        {"input": 5, "output": 0},
        {"images": 1},
        None,
        None,
    ),
}


@pytest.mark.parametrize("family", BODIES)
def test_a_body_of_every_family(spans: Any, stub: Stub, engine: Any, family: str) -> None:
    model, body, tokens, meters, lines, reason = BODIES[family]
    result = stub.invoked(body, tokens).client().invoke_model(modelId=model, body=b"{}")
    assert json.loads(result["body"].read()) == body
    check(row(spans, engine), meters, lines)
    assert spans.attributes().get(names.RESPONSE_FINISH_REASONS) == ((reason,) if reason else None)


COUNTED = {"inputTokenCount": 100, "outputTokenCount": 20}
CACHED_COUNTED = {**COUNTED, "cacheReadInputTokenCount": 1000, "cacheWriteInputTokenCount": 7}
CLAUDE_START = {"type": "message_start", "message": {"id": "msg_7", "usage": {**CLAUDE_USAGE, "output_tokens": 1}}}
CLAUDE_DELTA = {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "what reason"}}
CLAUDE_LAST = {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 20}}

STREAMS: dict[str, tuple[str, list[dict[str, Any]], dict[str, int], Any, str | None]] = {
    "Anthropic": (
        CLAUDE,
        [CLAUDE_START, CLAUDE_DELTA, CLAUDE_LAST, {"type": "message_stop", **metrics(**CACHED_COUNTED)}],
        CACHED,
        CLAUDE_CACHED,
        "end_turn",
    ),
    "Anthropic, cumulative": (
        CLAUDE,
        [CLAUDE_START, {**CLAUDE_LAST, "usage": {**CLAUDE_USAGE, "output_tokens": 20}}, {"type": "message_stop"}],
        CACHED,
        CLAUDE_CACHED,
        "end_turn",
    ),
    "Nova": (
        NOVA,
        [
            {"messageStart": {"role": "assistant"}},
            {"contentBlockDelta": {"delta": {"text": "x"}, "contentBlockIndex": 0}},
            {"messageStop": {"stopReason": "end_turn"}},
            {"metadata": {"usage": NOVA_USAGE, "metrics": {}, "trace": {}}, **metrics(**CACHED_COUNTED)},
        ],
        CACHED_IN_ALL,
        NOVA_CACHED,
        "end_turn",
    ),
    "Titan": (
        TITAN,
        [
            {
                "outputText": "x",
                "index": 0,
                "totalOutputTextTokenCount": 9,
                "completionReason": None,
                "inputTextTokenCount": 100,
            },
            {
                "outputText": "y",
                "index": 0,
                "totalOutputTextTokenCount": 20,
                "completionReason": "FINISH",
                "inputTextTokenCount": 100,
                **metrics(**COUNTED),
            },
        ],
        PLAIN,
        ((100, "0.2"), (20, "0.6")),
        "FINISH",
    ),
    "Llama": (
        LLAMA,
        [
            {"generation": "x", "prompt_token_count": 100, "generation_token_count": 1, "stop_reason": None},
            {"generation": "y", "prompt_token_count": None, "generation_token_count": 9, "stop_reason": None},
            {
                "generation": "",
                "prompt_token_count": None,
                "generation_token_count": 20,
                "stop_reason": "stop",
                **metrics(**COUNTED),
            },
        ],
        PLAIN,
        ((120, "0.22"),),
        "stop",
    ),
    "Mistral": (
        MISTRAL,
        [
            {"outputs": [{"text": "x", "stop_reason": None}]},
            {"outputs": [{"text": "", "stop_reason": "stop"}], **metrics(**COUNTED)},
        ],
        PLAIN,
        ((100, "4"), (20, "12")),
        "stop",
    ),
    "DeepSeek": (
        DEEPSEEK,
        [
            {"choices": [{"text": "x", "stop_reason": None}]},
            {"choices": [{"text": "", "stop_reason": "stop"}], **metrics(**COUNTED)},
        ],
        PLAIN,
        ((100, "1.35"), (20, "5.4")),
        "stop",
    ),
    "OpenAI": (
        GPT_OSS,
        [
            {"choices": [{"index": 0, "delta": {"content": "x"}, "finish_reason": None}]},
            {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]},
            {"choices": [], "usage": OPENAI_USAGE, **metrics(**COUNTED)},
        ],
        PLAIN,
        ((100, "0.07"), (20, "0.3")),
        "stop",
    ),
    "Cohere": (
        "cohere.command-r-v1:0",
        [
            {"event_type": "text-generation", "text": "x"},
            {"event_type": "stream-end", "finish_reason": "COMPLETE", **metrics(**COUNTED)},
        ],
        PLAIN,
        None,
        "COMPLETE",
    ),
    "AI21": (
        "ai21.jamba-1-5-mini-v1:0",
        [
            {"choices": [{"delta": {"content": "x"}}]},
            {"choices": [{"delta": {}, "finish_reason": "stop"}], "usage": OPENAI_USAGE},
        ],
        PLAIN,
        None,
        "stop",
    ),
}


@pytest.mark.parametrize("family", STREAMS)
def test_a_stream_of_every_family(spans: Any, stub: Stub, engine: Any, family: str) -> None:
    model, bodies, meters, lines, reason = STREAMS[family]
    client = stub.events(chunks(*bodies)).client()
    stream = client.invoke_model_with_response_stream(modelId=model, body=b"{}")["body"]
    assert [json.loads(event["chunk"]["bytes"]) for event in stream] == bodies
    check(row(spans, engine), meters, lines)
    assert spans.attributes().get(names.RESPONSE_FINISH_REASONS) == ((reason,) if reason else None)


@pytest.mark.parametrize("family", STREAMS)
def test_a_stream_of_every_family_left_early_tells_no_output(spans: Any, stub: Stub, engine: Any, family: str) -> None:
    model, bodies, _, _, _ = STREAMS[family]
    for _ in stub.events(chunks(*bodies)).client().invoke_model_with_response_stream(modelId=model, body=b"{}")["body"]:
        break
    assert names.USAGE_OUTPUT_TOKENS not in spans.attributes()
    assert row(spans, engine)["cost_status"] in ("partial", "unpriced")


def test_vectors_from_a_model_of_the_accounts_own(spans: Any, stub: Stub) -> None:
    client = stub.invoked({"embedding": [0.5], "inputTextTokenCount": 100}).client()
    client.invoke_model(modelId=OWN_ARN, body=b"{}")["body"].read()
    assert spans.attributes()[names.OPERATION_NAME] == "embeddings"


# -- readers ---------------------------------------------------------------------------------------------------------


def call(asked: str = "InvokeModel", operation: str = "chat") -> Call:
    point = WrapPoint(target="botocore:nothing", request=lambda args, kwargs: None)
    return Call(point, "k", INVALID_SPAN, Context(), State(None, asked, operation))


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, {}),
        ({"x-amzn-bedrock-input-token-count": "0"}, {names.USAGE_INPUT_TOKENS: 0}),
        ({"x-amzn-bedrock-input-token-count": "-1"}, {}),
        ({"x-amzn-bedrock-output-token-count": "many"}, {}),
        ({"x-amzn-bedrock-output-token-count": "5"}, {names.USAGE_OUTPUT_TOKENS: 5}),
    ],
)
def test_a_header_counts_exactly_when_it_is_a_count(headers: dict[str, str], expected: dict[str, int]) -> None:
    reading = call()
    readers.put_counted(reading, readers.counted_by_headers(reading, {"ResponseMetadata": {"HTTPHeaders": headers}}))
    assert reading.attributes == expected


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["usage", "message", "choices", "results", "meta", "id", "stop_reason", "tokenCount", "images"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(JSON)
def test_no_body_breaks_a_reader(body: Any) -> None:
    data = json.dumps(body).encode()
    readers.read_body(call(), data)
    readers.read_chunk(call("InvokeModelWithResponseStream"), {"chunk": {"bytes": data}})


@given(st.lists(st.sampled_from([CLAUDE_START, CLAUDE_DELTA, CLAUDE_LAST, metrics(**CACHED_COUNTED)]), max_size=8))
def test_counts_are_assigned_and_never_added(bodies: list[dict[str, Any]]) -> None:
    reading = call("InvokeModelWithResponseStream")
    for body in bodies:
        readers.read_chunk(reading, {"chunk": {"bytes": json.dumps(body).encode()}})
    assert reading.attributes.get(names.USAGE_INPUT_TOKENS, 1107) in (1107, 0)
    assert reading.attributes.get(names.USAGE_OUTPUT_TOKENS, 20) == 20


@pytest.mark.parametrize(
    ("model", "operation"),
    [
        ("amazon.nova-2-multimodal-embeddings-v1:0", "embeddings"),
        ("amazon.rerank-v1:0", "rerank"),
        ("stability.stable-image-core-v1:1", "image_generation"),
        ("luma.ray-v2:0", "generate_content"),
        (NOVA, "chat"),
        ("", "chat"),
    ],
)
def test_what_kind_of_call_a_model_makes(model: str, operation: str) -> None:
    assert operation_of(model) == operation
    assert len(KINDS) == len({kind for _, kind in KINDS})
