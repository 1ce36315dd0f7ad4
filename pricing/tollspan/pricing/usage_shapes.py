"""Shapes of usage objects: where each provider puts its counts, as data.

In: nothing; these are tables. Out: for `usage_objects`, the shapes that usage objects come in, the paths of every count
and meter, which convention they are counted by, and which fields are no counts.

A path is the flat name of a field (`usage_objects` makes it): snake_case whatever the wire's case, levels joined by
dots, items of a list named by their modality, lifetime or type (``promptTokensDetails: [{modality: AUDIO, tokenCount:
3}]`` is ``prompt_tokens_details.audio.token_count``). ``a + b`` is the sum of those that are given.

Sources, all read on 2026-11-21 unless they say otherwise:
* OpenAI and Azure OpenAI: types of the SDK, openai 3.52.0 (chat, Responses, Realtime, images, transcription).
* Anthropic: types of the SDK, anthropic 2.11.0, whose docstrings say that a compaction is not part of the top level and
  that thinking is part of the output.
* Google: google-genai 3.4.0 and googleapis.github.io/js-genai: the prompt includes what is cached, and the total is the
  sum of prompt, candidates, tool use and thoughts. Vertex AI has the same object.
* Amazon Bedrock: the service model in botocore 1.44.5 (TokenUsage, CacheDetail) and the user guide's page on prompt
  caching as read in anomalyco/opencode#38427: ``inputTokens`` is what was neither read from nor written to a cache.
* Mistral's conversations: mistralai 3.7.0; that the total is the sum of prompt, completion and connectors, the examples
  of docs.mistral.ai, "Connectors" (95 + 209 + 95 = 399; 196 + 485 + 3165 = 3846).
* Cohere: cohere 7.3.1; vllm-project/vllm#46093, cohere-ai/cohere-python#711 for image tokens beside ``input_tokens``.
* Mistral: mistralai 3.7.0. Groq: groq 1.7.0. OpenRouter: openrouter 1.3.84 and openrouter.ai/docs, "Usage Accounting".
* xAI: xai-sdk 1.21.0; docs.x.ai, "Cost Tracking" (10**10 ticks are a dollar) and "Consumption and Rate Limits"; that
  chat completions count reasoning beside the output and Responses inside, the extractors in genai-prices 0.2.3.
* DeepSeek: prism-php/prism#1021 and docs.rs/deepseek-loop; the prompt is the sum of cache hits and misses.
* Perplexity, Moonshot, Databricks: the extractors in genai-prices 0.2.3.
* ``characters`` and ``image_count``: names that say what they count; checked against no provider's page.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from tollspan.pricing.conventions import (
    CACHE_EXCLUSIVE,
    COHERE_BILLED,
    GEMINI,
    GEMINI_THOUGHTS_INSIDE,
    OTEL_INCLUSIVE,
    REASONING_EXCLUSIVE,
    TOOLS_EXCLUSIVE,
)


@dataclass(frozen=True, slots=True, eq=False)
class Shape:
    """One layout of a usage object.

    Attributes:
        name: what it is called here.
        marks: paths, or first levels of paths, by which it is known.
        conventions: conventions it may be counted by. The first whose tokens add up to the object's total holds; where
            none does, or there is no total, the first.
        counts: count of `conventions.COUNTS` → paths in order of preference.
        total: paths of the number of all tokens.
        bare: providers whose barest objects, ``input_tokens`` and ``output_tokens`` alone, have this shape.
    """

    name: str
    marks: tuple[str, ...]
    conventions: tuple[str, ...]
    counts: dict[str, tuple[str, ...]]
    total: tuple[str, ...] = ()
    bare: frozenset[str] = frozenset()


def _modal(group: str, *modalities: str) -> str:
    """Path of the tokens of some modalities in a group of Gemini's details."""
    return " + ".join(f"{group}.{modality}.token_count" for modality in modalities)


def _gemini_input(*modalities: str) -> tuple[str, ...]:
    groups = ("prompt_tokens_details", "tool_use_prompt_tokens_details")
    return (" + ".join(_modal(group, *modalities) for group in groups),)


def _gemini_output(*modalities: str) -> tuple[str, ...]:
    return tuple(_modal(group, *modalities) for group in ("candidates_tokens_details", "response_tokens_details"))


_COMPACTION: Final = "iterations.compaction."
"""Tokens of the summary that a server-side compaction made: by the same model, and not in the counts above it."""

SHAPES: Final[tuple[Shape, ...]] = (
    Shape(
        "gemini",
        ("prompt_token_count", "candidates_token_count", "thoughts_token_count", "response_token_count"),
        (GEMINI, GEMINI_THOUGHTS_INSIDE),
        {
            "input_tokens": ("prompt_token_count",),
            "output_tokens": ("candidates_token_count", "response_token_count"),
            "cache_read": ("cached_content_token_count",),
            "reasoning": ("thoughts_token_count",),
            "tool_input": ("tool_use_prompt_token_count",),
            # A page of a document is read as an image.
            "audio_input": _gemini_input("audio"),
            "image_input": _gemini_input("image", "document"),
            "video_input": _gemini_input("video"),
            "audio_cache_read": (_modal("cache_tokens_details", "audio"),),
            "image_cache_read": (_modal("cache_tokens_details", "image", "document"),),
            "video_cache_read": (_modal("cache_tokens_details", "video"),),
            "audio_output": _gemini_output("audio"),
            "image_output": _gemini_output("image", "document"),
            "video_output": _gemini_output("video"),
        },
        total=("total_token_count",),
    ),
    Shape(
        "conversation",  # Mistral's, where a connector was used; else it is as any chat
        ("connector_tokens",),
        (TOOLS_EXCLUSIVE, OTEL_INCLUSIVE),
        {
            "input_tokens": ("prompt_tokens",),
            "output_tokens": ("completion_tokens",),
            "cache_read": ("prompt_tokens_details.cached_tokens",),
            "tool_input": ("connector_tokens",),
        },
        total=("total_tokens",),
    ),
    Shape(
        "chat",
        ("prompt_tokens", "completion_tokens"),
        (OTEL_INCLUSIVE, REASONING_EXCLUSIVE),
        {
            "input_tokens": ("prompt_tokens",),
            "output_tokens": ("completion_tokens",),
            "cache_read": (
                "prompt_tokens_details.cached_tokens",
                "prompt_cache_hit_tokens",  # DeepSeek
                "cached_prompt_text_tokens",  # xAI's SDK
                "cached_tokens",  # Moonshot
                "cache_read_input_tokens",  # Databricks, LiteLLM
            ),
            "cache_write": (
                "prompt_tokens_details.cache_write_tokens",
                "prompt_tokens_details.cache_creation_tokens",  # LiteLLM
                "cache_creation_input_tokens",  # LiteLLM
            ),
            "cache_write_5m": ("cache_creation.ephemeral_5m_input_tokens",),  # OpenRouter
            "cache_write_1h": ("cache_creation.ephemeral_1h_input_tokens",),
            "cache_write_30m": ("prompt_tokens_details.cache_write_tokens_details.ttl_30m_tokens",),
            "cache_write_12h": ("prompt_tokens_details.cache_write_tokens_details.ttl_12h_tokens",),
            "reasoning": ("completion_tokens_details.reasoning_tokens", "reasoning_tokens"),
            "citation": ("citation_tokens",),  # Perplexity
            "audio_input": ("prompt_tokens_details.audio_tokens",),
            "audio_output": ("completion_tokens_details.audio_tokens",),
            "image_input": ("prompt_tokens_details.image_tokens", "prompt_image_tokens"),
            "image_output": ("completion_tokens_details.image_tokens",),
            "video_input": ("prompt_tokens_details.video_tokens",),
        },
        total=("total_tokens",),
    ),
    Shape(
        "cohere_billed",
        tuple(f"billed_units.{count}_tokens" for count in ("input", "text", "output", "image")),
        (COHERE_BILLED,),
        {
            "input_tokens": ("billed_units.input_tokens", "billed_units.text_tokens"),
            "output_tokens": ("billed_units.output_tokens",),
            "image_input": ("billed_units.image_tokens",),
        },
    ),
    Shape(
        "cohere_tokens",
        ("tokens.input_tokens", "tokens.output_tokens"),
        (OTEL_INCLUSIVE,),
        {
            "input_tokens": ("tokens.input_tokens",),
            "output_tokens": ("tokens.output_tokens",),
            "cache_read": ("cached_tokens",),
        },
    ),
    Shape(
        "responses",  # OpenAI's Responses and images; Realtime and transcription write "token_details"
        ("input_tokens_details", "input_token_details", "output_token_details"),
        (OTEL_INCLUSIVE, REASONING_EXCLUSIVE),
        {
            "input_tokens": ("input_tokens",),
            "output_tokens": ("output_tokens",),
            "cache_read": (
                "input_tokens_details.cached_tokens",
                "input_token_details.cached_tokens",
                "input_tokens_details.cache_read_input_tokens",  # Perplexity
            ),
            "cache_write": ("input_tokens_details.cache_write_tokens",),
            "cache_write_30m": ("input_tokens_details.cache_write_tokens_details.ttl_30m_tokens",),
            "cache_write_12h": ("input_tokens_details.cache_write_tokens_details.ttl_12h_tokens",),
            "reasoning": ("output_tokens_details.reasoning_tokens",),
            **{
                f"{modality}_{direction}": tuple(
                    f"{direction}_{details}.{modality}_tokens" for details in ("tokens_details", "token_details")
                )
                for modality in ("audio", "image")
                for direction in ("input", "output")
            },
            "audio_cache_read": ("input_token_details.cached_tokens_details.audio_tokens",),
            "image_cache_read": ("input_token_details.cached_tokens_details.image_tokens",),
        },
        total=("total_tokens",),
    ),
    Shape(
        "messages",  # Anthropic's Messages, Bedrock's Converse
        (
            *("cache_creation_input_tokens", "cache_read_input_tokens", "cache_write_input_tokens"),
            *("cache_creation", "cache_details", "server_tool_use", "iterations", "inference_geo"),
        ),
        (CACHE_EXCLUSIVE,),
        {
            "input_tokens": (f"input_tokens + {_COMPACTION}input_tokens",),
            "output_tokens": (f"output_tokens + {_COMPACTION}output_tokens",),
            "cache_read": (f"cache_read_input_tokens + {_COMPACTION}cache_read_input_tokens",),
            "cache_write": (
                f"cache_creation_input_tokens + {_COMPACTION}cache_creation_input_tokens",
                "cache_write_input_tokens",
            ),
            **{
                f"cache_write_{lifetime}": (
                    f"cache_creation.ephemeral_{lifetime}_input_tokens"
                    f" + {_COMPACTION}cache_creation.ephemeral_{lifetime}_input_tokens",
                    f"cache_details.{lifetime}.input_tokens",
                )
                for lifetime in ("5m", "1h")
            },
            "reasoning": ("output_tokens_details.thinking_tokens",),
        },
        bare=frozenset({"anthropic", "aws"}),
    ),
)
"""Shapes in the order in which they are tried. A proxy hands on the objects of whoever is behind it, so that the fields
say more about the shape than the provider's name."""

BARE: Final = next(shape for shape in SHAPES if shape.name == "responses")
"""Shape of an object with ``input_tokens`` or ``output_tokens`` and nothing else that tells it, from a provider that no
shape claims."""

CONVENTIONS_OF: Final[dict[tuple[str, str | None], tuple[str, ...]]] = {
    ("chat", "x-ai"): (REASONING_EXCLUSIVE, OTEL_INCLUSIVE),
    # Its total leaves out reasoning and citations, so it cannot tell.
    ("chat", "perplexity"): (REASONING_EXCLUSIVE,),
}
"""Shape and provider → conventions in place of the shape's own."""

METER_PATHS: Final[dict[str, tuple[str, ...]]] = {
    "web_searches": (
        "server_tool_use.web_search_requests",  # Anthropic
        "server_tool_use_details.web_search_requests",  # OpenRouter
        "server_side_tool_usage_details.web_search_calls",  # xAI
        "num_search_queries",  # Perplexity
        "tool_calls_details.search_web.invocation",  # Perplexity's Responses
        "connectors.web_search",  # Mistral's conversations; its premium search has a price of its own, and no meter
    ),
    "web_fetches": ("server_tool_use.web_fetch_requests",),
    "x_searches": ("server_side_tool_usage_details.x_search_calls",),
    "file_searches": ("server_side_tool_usage_details.file_search_calls", "connectors.document_library"),
    "code_interpreter.sessions": (
        "server_side_tool_usage_details.code_interpreter_calls",
        "connectors.code_interpreter",
    ),
    "images": ("connectors.image_generation", "billed_units.images"),  # made by Mistral's; embedded by Cohere's
    "server_tools.calls": ("server_side_tool_usage_details.document_search_calls",),
    "audio.seconds": ("prompt_audio_seconds", "billable_audio_seconds"),  # Mistral; xAI's Realtime
    "pages": ("pages_processed", "billed_units.pages"),  # Mistral's OCR; Cohere
    "rerank.search_units": ("billed_units.search_units", "rerank_units"),  # Cohere; Pinecone
}
"""Meter → paths of the quantity in its unit, whatever the shape."""

METERS_WITHOUT_TOKENS: Final[dict[str, tuple[str, ...]]] = {
    "audio.seconds": ("seconds",),  # OpenAI's transcription, "duration"
    "characters": ("characters",),
    "images": ("image_count",),
}
"""The same, read only where no tokens are told: where they are, they are what is billed."""

TOTAL_COSTS: Final[tuple[tuple[str, int, frozenset[str] | None], ...]] = (
    ("cost_in_usd_ticks", 10**10, None),
    ("cost", 1, frozenset({"openrouter", "perplexity"})),
    ("cost.total_cost", 1, frozenset({"perplexity"})),
)
"""Path of what the provider says the call cost; how many of it make a US dollar; which providers say it in dollars
(None: the name itself says so)."""

TIERS: Final[dict[str, str | None]] = {
    "on_demand_priority": "priority",
    "on_demand_flex": "flex",
    "on_demand_offpeak": "offpeak",
    "unspecified": None,
    "traffic_type_unspecified": None,
}
"""Service tiers by other names, in lower case; None says nothing. Google's ``provisioned_throughput`` keeps its name:
such tokens are paid for by the units that were ordered, and a book says so (``included``, when the tier is that)."""

SEARCHES_BILLED_BY_PROMPT: Final = r"(^|/)gemini-[12]\b"
"""Regular expression: models whose searches Google bills by the grounded prompt; later ones, by the query
(ai.google.dev/gemini-api/docs/pricing, as summed up in iyulab/TokenMeter 0.13.0, read 2026-11-21)."""

NO_COUNTS: Final = (
    r"total|cost|latency|_time$|size_bytes$"
    # Text is what is left when everything with a meter of its own is taken out.
    r"|text(_|\.)token|\.modality_unspecified\."
    r"|prediction_tokens$|prompt_cache_miss_tokens$"  # parts of the output; of the prompt
    r"|^tokens\.|^iterations\.(message|fallback_message)\."  # told again in another way
    r"|tool_calls_(requested|executed)$|num_server_side_tools_used$|mcp_calls$"  # sums, and what is free
)
"""Regular expression: numbers that are looked at by nobody because they measure nothing of their own."""
