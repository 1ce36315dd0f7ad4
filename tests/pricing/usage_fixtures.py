"""Usage objects as providers put them on the wire, each with the disjoint quantities that are right.

Shapes and most numbers are those of the providers' documentation and SDKs (named in `tollspan.pricing.usage_shapes`);
where an example is somebody's reported fault, its number stands beside it.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple


class Example(NamedTuple):
    """One object: who sent it, what it is, what it says.

    Attributes:
        total: all tokens as the provider counts them, to check that none is lost or counted twice; None where the
            provider gives no such number, or leaves something out of it.
    """

    provider: str
    usage: dict[str, Any]
    quantities: dict[str, int]
    convention: str | None
    total: int | None = None


UNCACHED, READ, WRITE = "tokens.input.uncached", "tokens.input.cache_read", "tokens.input.cache_write"
OUTPUT, REASONING = "tokens.output", "tokens.output.reasoning"

EXAMPLES: Final[dict[str, Example]] = {
    "openai chat": Example(
        "openai",
        {
            "prompt_tokens": 2006,
            "completion_tokens": 300,
            "total_tokens": 2306,
            "prompt_tokens_details": {"cached_tokens": 1920, "audio_tokens": 0},
            "completion_tokens_details": {
                "reasoning_tokens": 128,
                "audio_tokens": 0,
                "accepted_prediction_tokens": 10,
                "rejected_prediction_tokens": 5,
            },
        },
        {
            UNCACHED: 86,
            READ: 1920,
            "tokens.input.audio": 0,
            OUTPUT: 172,
            REASONING: 128,
            "tokens.output.audio": 0,
        },
        "otel_inclusive",
        2306,
    ),
    "openai responses, cache writes by lifetime": Example(
        "openai",
        {
            "input_tokens": 1000,
            "input_tokens_details": {
                "cached_tokens": 300,
                "cache_write_tokens": 500,
                "cache_write_tokens_details": {"ttl_30m_tokens": 400, "ttl_12h_tokens": 100},
            },
            "output_tokens": 136,
            "output_tokens_details": {"reasoning_tokens": 31},  # theopenco/llmgateway#3435: 136 × rate, not 167
            "total_tokens": 1136,
        },
        {
            UNCACHED: 200,
            READ: 300,
            WRITE: 0,
            "tokens.input.cache_write.30m": 400,
            "tokens.input.cache_write.12h": 100,
            OUTPUT: 105,
            REASONING: 31,
        },
        "otel_inclusive",
        1136,
    ),
    "codex (langfuse/codex-observability-plugin#22)": Example(
        "openai",
        {"input_tokens": 117231, "input_tokens_details": {"cached_tokens": 115584}, "output_tokens": 225},
        {UNCACHED: 1647, READ: 115584, OUTPUT: 225},
        "otel_inclusive",
        117231 + 225,
    ),
    "openai realtime": Example(
        "openai",
        {
            "total_tokens": 253,
            "input_tokens": 132,
            "output_tokens": 121,
            "input_token_details": {
                "text_tokens": 119,
                "audio_tokens": 13,
                "image_tokens": 0,
                "cached_tokens": 64,
                "cached_tokens_details": {"text_tokens": 60, "audio_tokens": 4, "image_tokens": 0},
            },
            "output_token_details": {"text_tokens": 30, "audio_tokens": 91},
        },
        {
            UNCACHED: 59,
            READ: 60,
            "tokens.input.audio": 9,
            "tokens.input.audio.cache_read": 4,
            "tokens.input.image": 0,
            "tokens.input.image.cache_read": 0,
            OUTPUT: 30,
            "tokens.output.audio": 91,
        },
        "otel_inclusive",
        253,
    ),
    "openai images": Example(
        "openai",
        {
            "total_tokens": 100 + 4160,
            "input_tokens": 100,
            "output_tokens": 4160,
            "input_tokens_details": {"text_tokens": 10, "image_tokens": 90},
            "output_tokens_details": {"text_tokens": 0, "image_tokens": 4160},
        },
        {UNCACHED: 10, "tokens.input.image": 90, OUTPUT: 0, "tokens.output.image": 4160},
        "otel_inclusive",
        4260,
    ),
    "openai transcription by tokens": Example(
        "openai",
        {
            "type": "tokens",
            "input_tokens": 14,
            "input_token_details": {"text_tokens": 0, "audio_tokens": 14},
            "output_tokens": 45,
            "total_tokens": 59,
        },
        {UNCACHED: 0, "tokens.input.audio": 14, OUTPUT: 45},
        "otel_inclusive",
        59,
    ),
    "openai transcription by duration": Example(
        "openai", {"type": "duration", "seconds": 9.02}, {"audio.seconds": 9_020_000_000}, None
    ),
    "openrouter transcription: by tokens where they are told": Example(
        "openrouter",
        {"cost": 0.0005, "input_tokens": 83, "output_tokens": 30, "seconds": 9.2, "total_tokens": 113},
        {UNCACHED: 83, OUTPUT: 30},
        "otel_inclusive",
        113,
    ),
    "openai embeddings": Example("openai", {"prompt_tokens": 8, "total_tokens": 8}, {UNCACHED: 8}, "otel_inclusive", 8),
    "azure": Example(
        "azure.ai.openai",
        {
            "completion_tokens": 33,
            "completion_tokens_details": {"reasoning_tokens": 0},
            "prompt_tokens": 1086,
            "prompt_tokens_details": {"cached_tokens": 1024},
            "total_tokens": 1119,
        },
        {UNCACHED: 62, READ: 1024, OUTPUT: 33, REASONING: 0},
        "otel_inclusive",
        1119,
    ),
    "anthropic": Example(
        "anthropic",
        {
            "input_tokens": 21,
            "cache_creation_input_tokens": 556,
            "cache_read_input_tokens": 188086,
            "cache_creation": {"ephemeral_5m_input_tokens": 456, "ephemeral_1h_input_tokens": 100},
            "output_tokens": 393,
            "output_tokens_details": {"thinking_tokens": 200},
            "server_tool_use": {"web_search_requests": 2, "web_fetch_requests": 1},
            "service_tier": "standard",
            "inference_geo": "us",
        },
        {
            UNCACHED: 21,
            READ: 188086,
            WRITE: 0,
            "tokens.input.cache_write.5m": 456,
            "tokens.input.cache_write.1h": 100,
            OUTPUT: 193,
            REASONING: 200,
            "web_searches": 2,
            "web_fetches": 1,
        },
        "cache_exclusive",
        21 + 556 + 188086 + 393,
    ),
    "anthropic, barest": Example(
        "anthropic", {"input_tokens": 12, "output_tokens": 5}, {UNCACHED: 12, OUTPUT: 5}, "cache_exclusive", 17
    ),
    "anthropic, compaction": Example(
        "anthropic",
        {
            "input_tokens": 23000,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 0,
            "output_tokens": 1000,
            "iterations": [
                {"type": "compaction", "input_tokens": 180000, "output_tokens": 3500},
                {"type": "message", "input_tokens": 23000, "output_tokens": 1000},
            ],
        },
        {UNCACHED: 203000, READ: 0, WRITE: 0, OUTPUT: 4500},
        "cache_exclusive",
        207500,
    ),
    "bedrock converse": Example(
        "aws.bedrock",
        {
            "inputTokens": 12,
            "outputTokens": 100,
            "totalTokens": 12 + 1523 + 700 + 100,
            "cacheReadInputTokens": 1523,
            "cacheWriteInputTokens": 700,
            "cacheDetails": [{"ttl": "1h", "inputTokens": 200}, {"ttl": "5m", "inputTokens": 500}],
        },
        {
            UNCACHED: 12,
            READ: 1523,
            WRITE: 0,
            "tokens.input.cache_write.5m": 500,
            "tokens.input.cache_write.1h": 200,
            OUTPUT: 100,
        },
        "cache_exclusive",
        2335,
    ),
    "bedrock converse, barest": Example(
        "bedrock",
        {"inputTokens": 30, "outputTokens": 628, "totalTokens": 658},
        {UNCACHED: 30, OUTPUT: 628},
        "cache_exclusive",
        658,
    ),
    "gemini (PostHog/posthog#71065)": Example(
        "gemini",
        {
            "promptTokenCount": 9,
            "candidatesTokenCount": 1,
            "thoughtsTokenCount": 21,
            "totalTokenCount": 31,
            "promptTokensDetails": [{"modality": "TEXT", "tokenCount": 9}],
        },
        {UNCACHED: 9, OUTPUT: 1, REASONING: 21},
        "gemini",
        31,
    ),
    "gemini, thoughts inside": Example(
        "gemini",
        {"promptTokenCount": 9, "candidatesTokenCount": 22, "thoughtsTokenCount": 21, "totalTokenCount": 31},
        {UNCACHED: 9, OUTPUT: 1, REASONING: 21},
        "gemini_thoughts_inside",
        31,
    ),
    "gemini, every modality": Example(
        "gcp.gemini",
        {
            "promptTokenCount": 1000,
            "cachedContentTokenCount": 500,
            "candidatesTokenCount": 1400,
            "toolUsePromptTokenCount": 70,
            "thoughtsTokenCount": 30,
            "totalTokenCount": 2500,
            "promptTokensDetails": [
                {"modality": "TEXT", "tokenCount": 300},
                {"modality": "AUDIO", "tokenCount": 200},
                {"modality": "IMAGE", "tokenCount": 150},
                {"modality": "DOCUMENT", "tokenCount": 50},
                {"modality": "VIDEO", "tokenCount": 300},
            ],
            "cacheTokensDetails": [
                {"modality": "TEXT", "tokenCount": 240},
                {"modality": "AUDIO", "tokenCount": 100},
                {"modality": "DOCUMENT", "tokenCount": 50},
                {"modality": "VIDEO", "tokenCount": 110},
            ],
            "toolUsePromptTokensDetails": [
                {"modality": "TEXT", "tokenCount": 60},
                {"modality": "AUDIO", "tokenCount": 10},
            ],
            "candidatesTokensDetails": [
                {"modality": "TEXT", "tokenCount": 110},
                {"modality": "IMAGE", "tokenCount": 1290},
            ],
        },
        {
            UNCACHED: 120,  # text: 300 - 240 of the prompt, 60 of tools
            READ: 350,  # text 240, video 110
            "tokens.input.audio": 110,
            "tokens.input.audio.cache_read": 100,
            "tokens.input.image": 150,
            "tokens.input.image.cache_read": 50,
            "tokens.input.video": 190,
            OUTPUT: 110,
            REASONING: 30,
            "tokens.output.image": 1290,
        },
        "gemini",
        2500,
    ),
    "vertex": Example(
        "gcp.vertex_ai",
        {
            "promptTokenCount": 6,
            "candidatesTokenCount": 10,
            "totalTokenCount": 16,
            "trafficType": "ON_DEMAND_FLEX",
            "candidatesTokensDetails": [{"modality": "TEXT", "tokenCount": 10}],
        },
        {UNCACHED: 6, OUTPUT: 10},
        "gemini",
        16,
    ),
    "vertex, off-peak": Example(
        "gcp.vertex_ai",
        {
            "promptTokenCount": 6,
            "candidatesTokenCount": 10,
            "totalTokenCount": 16,
            "trafficType": "ON_DEMAND_OFFPEAK",
        },
        {UNCACHED: 6, OUTPUT: 10},
        "gemini",
        16,
    ),
    "gemini live": Example(
        "gemini",
        {
            "promptTokenCount": 40,
            "responseTokenCount": 25,
            "totalTokenCount": 65,
            "responseTokensDetails": [{"modality": "AUDIO", "tokenCount": 25}],
        },
        {UNCACHED: 40, OUTPUT: 0, "tokens.output.audio": 25},
        "gemini",
        65,
    ),
    "cohere chat: what is billed, not what was processed": Example(
        "cohere",
        {
            "billed_units": {"input_tokens": 5, "output_tokens": 418},
            "tokens": {"input_tokens": 71.0, "output_tokens": 418.0},
        },
        {UNCACHED: 5, OUTPUT: 418},
        "cohere_billed",
        423,
    ),
    "cohere chat without billed units": Example(
        "cohere",
        {"tokens": {"input_tokens": 71, "output_tokens": 418}, "cached_tokens": 64},
        {UNCACHED: 7, READ: 64, OUTPUT: 418},
        "otel_inclusive",
        489,
    ),
    "cohere embed (cohere-ai/cohere-python#711)": Example(
        "cohere",
        {"api_version": {"version": "2"}, "billed_units": {"input_tokens": 0.0, "image_tokens": 2716}},
        {UNCACHED: 0, "tokens.input.image": 2716},
        "cohere_billed",
        2716,
    ),
    "cohere embed of images that are billed each": Example(
        "cohere",
        {"billed_units": {"images": 3.0, "input_tokens": 0.0}},
        {UNCACHED: 0, "images": 3},
        "cohere_billed",
        0,
    ),
    "cohere embed of text and images": Example(
        "cohere",
        {"billed_units": {"text_tokens": 12.0, "image_tokens": 2716.0}},
        {UNCACHED: 12, "tokens.input.image": 2716},
        "cohere_billed",
        2728,
    ),
    "cohere rerank": Example("cohere", {"billed_units": {"search_units": 1}}, {"rerank.search_units": 1}, None),
    "mistral": Example(
        "mistral_ai",
        {"prompt_tokens": 5, "completion_tokens": 10, "total_tokens": 15, "prompt_audio_seconds": 203},
        {UNCACHED: 5, OUTPUT: 10, "audio.seconds": 203_000_000_000},
        "otel_inclusive",
        15,
    ),
    "mistral conversation: its connectors' tokens beside the prompt": Example(
        "mistral_ai",
        {
            "prompt_tokens": 196,
            "completion_tokens": 485,
            "total_tokens": 3846,
            "connector_tokens": 3165,
            "connectors": {"document_library": 1, "web_search": 2, "code_interpreter": 3, "image_generation": 4},
        },
        {
            UNCACHED: 196 + 3165,
            OUTPUT: 485,
            "file_searches": 1,
            "web_searches": 2,
            "code_interpreter.sessions": 3,
            "images": 4,
        },
        "tools_exclusive",
        3846,
    ),
    "mistral conversation without connectors": Example(
        "mistral_ai",
        {
            "prompt_tokens": 8,
            "completion_tokens": 370,
            "total_tokens": 378,
            "connector_tokens": None,
            "connectors": None,
        },
        {UNCACHED: 8, OUTPUT: 370},
        "otel_inclusive",
        378,
    ),
    "mistral ocr": Example("mistral", {"pages_processed": 29, "doc_size_bytes": 3002783}, {"pages": 29}, None),
    "deepseek": Example(
        "deepseek",
        {
            "prompt_tokens": 1000,
            "completion_tokens": 300,
            "total_tokens": 1300,
            "prompt_cache_hit_tokens": 896,
            "prompt_cache_miss_tokens": 104,
            "completion_tokens_details": {"reasoning_tokens": 250},
        },
        {UNCACHED: 104, READ: 896, OUTPUT: 50, REASONING: 250},
        "otel_inclusive",
        1300,
    ),
    "groq": Example(
        "groq",
        {
            "queue_time": 0.037493756,
            "prompt_tokens": 4641,
            "prompt_time": 0.02,
            "completion_tokens": 1817,
            "completion_time": 2.6,
            "total_tokens": 6458,
            "total_time": 2.62,
            "prompt_tokens_details": {"cached_tokens": 4608},
            "completion_tokens_details": {"reasoning_tokens": 17},
        },
        {UNCACHED: 33, READ: 4608, OUTPUT: 1800, REASONING: 17},
        "otel_inclusive",
        6458,
    ),
    "xai chat: reasoning beside": Example(
        "x_ai",
        {
            "prompt_tokens": 32,
            "completion_tokens": 9,
            "total_tokens": 135,
            "prompt_tokens_details": {"text_tokens": 32, "audio_tokens": 0, "image_tokens": 0, "cached_tokens": 6},
            "completion_tokens_details": {"reasoning_tokens": 94, "audio_tokens": 0},
            "num_sources_used": 0,
            "cost_in_usd_ticks": 37756000,
        },
        {
            UNCACHED: 26,
            READ: 6,
            "tokens.input.audio": 0,
            "tokens.input.image": 0,
            OUTPUT: 9,
            REASONING: 94,
            "tokens.output.audio": 0,
        },
        "reasoning_exclusive",
        135,
    ),
    "xai responses: reasoning inside": Example(
        "xai",
        {
            "input_tokens": 125,
            "output_tokens": 148,
            "total_tokens": 273,
            "input_tokens_details": {"cached_tokens": 98},
            "output_tokens_details": {"reasoning_tokens": 100},
            "num_server_side_tools_used": 6,
            "server_side_tool_usage_details": {
                "web_search_calls": 2,
                "x_search_calls": 3,
                "code_interpreter_calls": 1,
                "file_search_calls": 0,
                "mcp_calls": 4,
                "document_search_calls": 0,
            },
        },
        {
            UNCACHED: 27,
            READ: 98,
            OUTPUT: 48,
            REASONING: 100,
            "web_searches": 2,
            "x_searches": 3,
            "code_interpreter.sessions": 1,
            "file_searches": 0,
            "server_tools.calls": 0,
        },
        "otel_inclusive",
        273,
    ),
    "xai behind a proxy: its total tells": Example(
        "litellm",
        {
            "prompt_tokens": 32,
            "completion_tokens": 9,
            "total_tokens": 135,
            "completion_tokens_details": {"reasoning_tokens": 94},
        },
        {UNCACHED: 32, OUTPUT: 9, REASONING: 94},
        "reasoning_exclusive",
        135,
    ),
    "perplexity deep research": Example(
        "perplexity",
        {
            "prompt_tokens": 33,
            "completion_tokens": 7163,
            "total_tokens": 7196,
            "citation_tokens": 20016,
            "num_search_queries": 32,
            "reasoning_tokens": 74555,
            "cost": {"input_tokens_cost": 0.001, "total_cost": 0.477},
        },
        {UNCACHED: 33, OUTPUT: 7163, REASONING: 74555, "tokens.output.citation": 20016, "web_searches": 32},
        "reasoning_exclusive",
    ),
    "openrouter": Example(
        "openrouter",
        {
            "completion_tokens": 2,
            "completion_tokens_details": {"reasoning_tokens": 0},
            "cost": 0.95,
            "cost_details": {"upstream_inference_cost": 19},
            "is_byok": False,
            "prompt_tokens": 194,
            "prompt_tokens_details": {
                "cached_tokens": 0,
                "cache_write_tokens": 100,
                "audio_tokens": 0,
                "video_tokens": 50,
            },
            "server_tool_use_details": {"web_search_requests": 1, "tool_calls_requested": 1},
            "total_tokens": 196,
        },
        {
            UNCACHED: 44,
            READ: 0,
            WRITE: 100,
            "tokens.input.audio": 0,
            "tokens.input.video": 50,
            OUTPUT: 2,
            REASONING: 0,
            "web_searches": 1,
        },
        "otel_inclusive",
        196,
    ),
    "moonshot": Example(
        "moonshot",
        {"prompt_tokens": 19, "completion_tokens": 21, "total_tokens": 40, "cached_tokens": 10},
        {UNCACHED: 9, READ: 10, OUTPUT: 21},
        "otel_inclusive",
        40,
    ),
    "pinecone rerank": Example("pinecone", {"rerank_units": 1}, {"rerank.search_units": 1}, None),
    "speech by characters": Example("alibaba", {"characters": 15}, {"characters": 15}, None),
}
