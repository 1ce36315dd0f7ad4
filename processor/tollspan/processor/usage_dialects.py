"""Usage dialects: which attributes count tokens, and how those counts include each other, as data.

In: nothing; these are tables. Out: `USAGE`, the dialects in order; `COUNTING`, where one library counts some providers'
calls in another way; and `TOTALS`. `usage_counts` walks them; DIALECTS.md is generated from them and from the fixtures
in the tests, which are spans of the real libraries.

A span's counts are all read in the first dialect of which it carries any. So a dialect that tells more stands before
one that tells less beside it: the AI SDK's own names before the GenAI names that it writes too.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, TypeAlias

from tollspan.pricing import attributes as names
from tollspan.pricing.conventions import CACHE_EXCLUSIVE, DISJOINT, GEMINI, OTEL_INCLUSIVE


@dataclass(frozen=True, slots=True)
class Member:
    """A number inside an attribute whose value is a JSON object.

    Attributes:
        key: the attribute.
        path: names from outside in; the first may stand at any depth, each other one directly inside the one before.
        quote: what names stand in: ``"`` for JSON, ``'`` where a library writes Python's form of a dict.
        zero: whether 0 is a count. LangChain writes 0 for cache writes as a whole when it tells them by lifetime.
    """

    key: str
    path: tuple[str, ...]
    quote: str = '"'
    zero: bool = True


Place: TypeAlias = str | Member
"""Where a count stands: under a key of its own, or inside another's value."""


def key_of(place: Place) -> str:
    """The attribute in which a count stands."""
    return place if isinstance(place, str) else place.key


def _members(key: str, *names_: str, quote: str = '"') -> tuple[Member, ...]:
    """Members by dotted path, each an alternative to the one before."""
    return tuple(Member(key, tuple(name.split(".")), quote) for name in names_)


@dataclass(frozen=True, slots=True)
class Usage:
    """A dialect of token usage.

    Attributes:
        name: whose dialect it is.
        convention: how its counts include each other, a key of `tollspan.pricing.conventions.CONVENTIONS`.
        counts: count of that convention → where it stands, the preferred place first.
        parts: counts that are read only beside one of ``counts``, and by themselves say nothing in this dialect.
        scope: how the names of the instrumentation scopes begin that alone speak it, where its keys could be anybody's.
        nan: whether a number that is none means that the provider told nothing, and not that something is wrong.
        keys: the attributes by which a span speaks it, those of ``counts``.
    """

    name: str
    convention: str
    counts: dict[str, tuple[Place, ...]]
    parts: dict[str, tuple[Place, ...]] = field(default_factory=dict)
    scope: str = ""
    nan: bool = False
    keys: frozenset[str] = field(init=False)

    def __post_init__(self) -> None:
        places = (place for places in self.counts.values() for place in places)
        object.__setattr__(self, "keys", frozenset(key_of(place) for place in places))


@dataclass(frozen=True, slots=True)
class Counting:
    """Spans of a dialect that count in another way than the dialect does.

    Attributes:
        usage: names of the dialects.
        convention: how these spans count.
        scope: how the name of their instrumentation scope begins.
        providers: canonical names of the providers of their calls; empty: any.
        models: parts of the model's name by which a call is one of these whatever its provider.
        since, before: versions of the scope from (and with) and up to (and without); empty: any. A scope that tells no
            version is taken to be in every range.
        unless: keys that such a span does not have.
        seen: what was tried.
    """

    usage: tuple[str, ...]
    convention: str
    scope: str
    providers: frozenset[str] = frozenset()
    models: tuple[str, ...] = ()
    since: str = ""
    before: str = ""
    unless: tuple[str, ...] = ()
    seen: str = ""

    def sells(self, model: str) -> bool:
        """Whether a model's name is one that these count in this way."""
        return any(part in model.lower() for part in self.models)


_LIFETIMES: Final = ("5m", "30m", "1h", "12h")
_CLAUDE: Final = ("claude",)
_ANTHROPIC: Final = frozenset({"anthropic", "aws.bedrock", "aws"})
"""Providers whose own objects count the input beside its cache reads and writes."""
_GOOGLE: Final = frozenset({"gcp.gemini", "gcp.vertex_ai", "gcp.gen_ai", "google"})
"""Providers whose own objects count thoughts beside the output."""

_AI_METADATA: Final = "ai.response.providerMetadata"
_LANGFUSE: Final = "langfuse.observation.usage_details"
_LANGSMITH: Final = "langsmith.metadata.usage_metadata"
_LITELLM: Final = "metadata.usage_object"
_LOGFIRE: Final = "gen_ai.usage.raw"
_LOGFIRE_OLD: Final = "response_data"
_MLFLOW: Final = "mlflow.chat.tokenUsage"
_BRAINTRUST: Final = "braintrust.metrics"

_OPENAI_PARTS: Final = {
    "cache_read": ("prompt_tokens_details.cached_tokens", "input_tokens_details.cached_tokens"),
    "cache_write": ("prompt_tokens_details.cache_write_tokens", "input_tokens_details.cache_write_tokens"),
    "reasoning": ("completion_tokens_details.reasoning_tokens", "output_tokens_details.reasoning_tokens"),
    "audio_input": ("prompt_tokens_details.audio_tokens",),
    "audio_output": ("completion_tokens_details.audio_tokens",),
}
_ANTHROPIC_PARTS: Final = {
    "cache_read": ("cache_read_input_tokens",),
    "cache_write": ("cache_creation_input_tokens",),
    "cache_write_5m": ("ephemeral_5m_input_tokens",),
    "cache_write_1h": ("ephemeral_1h_input_tokens",),
}


def _provider_object(key: str, quote: str = '"') -> dict[str, tuple[Place, ...]]:
    """Parts of the usage in a provider's own object, OpenAI's or Anthropic's form, as the value of ``key``."""
    return {
        count: _members(key, *_OPENAI_PARTS.get(count, ()), *_ANTHROPIC_PARTS.get(count, ()), quote=quote)
        for count in (*_OPENAI_PARTS, "cache_write_5m", "cache_write_1h")
    }


def _joined(*tables: dict[str, tuple[Place, ...]]) -> dict[str, tuple[Place, ...]]:
    """One table of several, earlier places preferred."""
    out: dict[str, tuple[Place, ...]] = {}
    for table in tables:
        for count, places in table.items():
            out[count] = (*out.get(count, ()), *places)
    return out


USAGE: Final[tuple[Usage, ...]] = (
    # AI SDK 6 tells the parts by name; both wholes include them for every provider.
    Usage(
        "vercel-details",
        OTEL_INCLUSIVE,
        {
            "cache_read": ("ai.usage.inputTokenDetails.cacheReadTokens",),
            "cache_write": ("ai.usage.inputTokenDetails.cacheWriteTokens",),
            "reasoning": ("ai.usage.outputTokenDetails.reasoningTokens",),
        },
        {
            "input_tokens": ("ai.usage.inputTokens",),
            "output_tokens": ("ai.usage.outputTokens",),
        },
    ),
    # AI SDK 4 and 5, and 6 where the provider tells no parts.
    Usage(
        "vercel",
        OTEL_INCLUSIVE,
        {
            "input_tokens": ("ai.usage.inputTokens", "ai.usage.promptTokens", "ai.usage.tokens"),
            "output_tokens": ("ai.usage.outputTokens", "ai.usage.completionTokens"),
            "cache_read": ("ai.usage.cachedInputTokens",),
            "reasoning": ("ai.usage.reasoningTokens",),
        },
        {
            "cache_read": _members(
                _AI_METADATA,
                *("cacheReadInputTokens", "cache_read_input_tokens", "cachedPromptTokens", "cachedContentTokenCount"),
            ),
            "cache_write": _members(
                _AI_METADATA, "cacheCreationInputTokens", "cacheWriteInputTokens", "cache_creation_input_tokens"
            ),
            "cache_write_5m": _members(_AI_METADATA, "ephemeral_5m_input_tokens"),
            "cache_write_1h": _members(_AI_METADATA, "ephemeral_1h_input_tokens"),
            "reasoning": _members(_AI_METADATA, "reasoningTokens", "thoughtsTokenCount"),
        },
        nan=True,
    ),
    Usage(
        "openinference",
        OTEL_INCLUSIVE,
        {
            "input_tokens": ("llm.token_count.prompt",),
            "output_tokens": ("llm.token_count.completion",),
            "cache_read": (
                "llm.token_count.prompt_details.cache_read",
                "llm.token_count.prompt_details.cache_input",
            ),
            "cache_write": ("llm.token_count.prompt_details.cache_write",),
            "reasoning": ("llm.token_count.completion_details.reasoning",),
            "audio_input": ("llm.token_count.prompt_details.audio",),
            "audio_output": ("llm.token_count.completion_details.audio",),
        },
    ),
    # Langfuse's own names are of things that stand beside each other; a provider's object is passed on as it is.
    Usage(
        "langfuse",
        DISJOINT,
        {
            "input_tokens": _members(_LANGFUSE, "input"),
            "output_tokens": _members(_LANGFUSE, "output"),
        },
        {
            "cache_read": _members(
                _LANGFUSE,
                *(
                    "input_cache_read",
                    "input_cached_tokens",
                    "cache_read_input_tokens",
                    "input_cached_content_token_count",
                ),
            ),
            "cache_write": _members(
                _LANGFUSE, "cache_creation_input_tokens", "input_cache_creation", "input_cache_write_tokens"
            ),
            "cache_write_5m": _members(_LANGFUSE, "cache_creation_ephemeral_5m_input_tokens"),
            "cache_write_1h": _members(_LANGFUSE, "cache_creation_ephemeral_1h_input_tokens"),
            "reasoning": _members(_LANGFUSE, "output_reasoning", "output_reasoning_tokens"),
            "audio_input": _members(_LANGFUSE, "input_audio", "input_audio_tokens"),
            "audio_output": _members(_LANGFUSE, "output_audio", "output_audio_tokens"),
        },
    ),
    Usage(
        "langfuse-object",
        OTEL_INCLUSIVE,
        {
            "input_tokens": _members(_LANGFUSE, "prompt_tokens", "input_tokens"),
            "output_tokens": _members(_LANGFUSE, "completion_tokens", "output_tokens"),
        },
        _provider_object(_LANGFUSE),
    ),
    Usage(
        "mlflow",
        OTEL_INCLUSIVE,
        {
            "input_tokens": _members(_MLFLOW, "input_tokens"),
            "output_tokens": _members(_MLFLOW, "output_tokens"),
        },
        {
            "cache_read": _members(_MLFLOW, "cache_read_input_tokens"),
            "cache_write": _members(_MLFLOW, "cache_creation_input_tokens"),
            "cache_write_1h": _members(_MLFLOW, "cache_creation_input_tokens_above_1hr"),
        },
    ),
    Usage(
        "braintrust",
        OTEL_INCLUSIVE,
        {
            "input_tokens": ("braintrust.metrics.prompt_tokens", *_members(_BRAINTRUST, "prompt_tokens")),
            "output_tokens": ("braintrust.metrics.completion_tokens", *_members(_BRAINTRUST, "completion_tokens")),
        },
        {
            "cache_read": ("braintrust.metrics.prompt_cached_tokens", *_members(_BRAINTRUST, "prompt_cached_tokens")),
            "cache_write": (
                "braintrust.metrics.prompt_cache_creation_tokens",
                *_members(_BRAINTRUST, "prompt_cache_creation_tokens"),
            ),
            "cache_write_5m": _members(_BRAINTRUST, "prompt_cache_creation_5m_tokens"),
            "cache_write_1h": _members(_BRAINTRUST, "prompt_cache_creation_1h_tokens"),
            "reasoning": (
                "braintrust.metrics.completion_reasoning_tokens",
                *_members(_BRAINTRUST, "completion_reasoning_tokens"),
            ),
        },
    ),
    # Logfire 4 and before: the answer's usage, as the provider wrote it.
    Usage(
        "logfire-4",
        OTEL_INCLUSIVE,
        {
            "input_tokens": _members(_LOGFIRE_OLD, "usage.prompt_tokens", "usage.input_tokens"),
            "output_tokens": _members(_LOGFIRE_OLD, "usage.completion_tokens", "usage.output_tokens"),
        },
        _provider_object(_LOGFIRE_OLD),
        scope="logfire.",
    ),
    Usage(
        "opentelemetry",
        OTEL_INCLUSIVE,
        {
            "input_tokens": (
                names.USAGE_INPUT_TOKENS,
                "gen_ai.usage.prompt_tokens",
                "llm.usage.prompt_tokens",
                "gen_ai.response.prompt_tokens",
            ),
            "output_tokens": (
                names.USAGE_OUTPUT_TOKENS,
                "gen_ai.usage.completion_tokens",
                "llm.usage.completion_tokens",
                "gen_ai.response.completion_tokens",
            ),
            "cache_read": (
                names.USAGE_CACHE_READ_TOKENS,
                "gen_ai.usage.cache_read_input_tokens",
                "gen_ai.usage.cached_tokens",
                "gen_ai.usage.input_tokens.cached",
                "gen_ai.usage.details.cache_read_tokens",
            ),
            "cache_write": (
                names.USAGE_CACHE_WRITE_TOKENS,
                "gen_ai.usage.cache_creation.input_tokens",
                "gen_ai.usage.cache_creation_input_tokens",
                "gen_ai.usage.cache_write_input_tokens",
                "gen_ai.usage.input_tokens.cache_write",
                "gen_ai.usage.details.cache_write_tokens",
            ),
            "reasoning": (
                names.USAGE_REASONING_TOKENS,
                "gen_ai.usage.reasoning_tokens",
                "gen_ai.usage.output_tokens.reasoning",
                "gen_ai.usage.details.reasoning_tokens",
                "llm.usage.reasoning_tokens",
            ),
            "audio_input": (names.USAGE_AUDIO_INPUT_TOKENS, "gen_ai.usage.details.input_audio_tokens"),
            "audio_output": (names.USAGE_AUDIO_OUTPUT_TOKENS, "gen_ai.usage.details.output_audio_tokens"),
            "image_input": (names.USAGE_IMAGE_INPUT_TOKENS,),
            "audio_cache_read": (names.USAGE_AUDIO_CACHE_READ_TOKENS,),
            "image_output": (names.USAGE_IMAGE_OUTPUT_TOKENS,),
            "image_cache_read": (names.USAGE_IMAGE_CACHE_READ_TOKENS,),
            "video_input": (names.USAGE_VIDEO_INPUT_TOKENS,),
            "video_output": (names.USAGE_VIDEO_OUTPUT_TOKENS,),
            "video_cache_read": (names.USAGE_VIDEO_CACHE_READ_TOKENS,),
        },
        _joined(
            {
                **{
                    f"cache_write_{lifetime}": (
                        f"anthropic.usage.cache_creation.ephemeral_{lifetime}_input_tokens",
                        names.usage(f"tokens.input.cache_write.{lifetime}"),
                        f"gen_ai.usage.details.ephemeral_{lifetime}_input_tokens",
                    )
                    for lifetime in _LIFETIMES
                },
                "citation": (names.usage("tokens.output.citation"),),
            },
            # The wholes of these three stand under the GenAI names; their parts only in an object beside them.
            _provider_object(_LOGFIRE),
            _provider_object(_LITELLM, "'"),
            {
                "cache_read": _members(_LANGSMITH, "input_token_details.cache_read"),
                "cache_write": (Member(_LANGSMITH, ("input_token_details", "cache_creation"), zero=False),),
                "cache_write_5m": _members(_LANGSMITH, "input_token_details.ephemeral_5m_input_tokens"),
                "cache_write_1h": _members(_LANGSMITH, "input_token_details.ephemeral_1h_input_tokens"),
                "reasoning": _members(_LANGSMITH, "output_token_details.reasoning"),
                "audio_input": _members(_LANGSMITH, "input_token_details.audio"),
                "audio_output": _members(_LANGSMITH, "output_token_details.audio"),
            },
        ),
    ),
)
"""Dialects in order; a span's counts are all read in the first one of which it carries any of ``counts``."""

COUNTING: Final[tuple[Counting, ...]] = (
    Counting(
        ("opentelemetry",),
        CACHE_EXCLUSIVE,
        "openlit.",
        _ANTHROPIC,
        _CLAUDE,
        seen="OpenLIT 1.34 to 1.45",
    ),
    Counting(
        ("opentelemetry",),
        CACHE_EXCLUSIVE,
        "opentelemetry.instrumentation.bedrock",
        seen="OpenLLMetry 0.40 to 0.62",
    ),
    Counting(
        ("opentelemetry",),
        CACHE_EXCLUSIVE,
        "opentelemetry.instrumentation.botocore",
        seen="OpenTelemetry's botocore 0.66b2",
    ),
    Counting(
        ("opentelemetry",),
        CACHE_EXCLUSIVE,
        "strands.telemetry.tracer",
        _ANTHROPIC,
        _CLAUDE,
        # From 1.62 on Strands writes these names too, and counts inclusively.
        unless=(names.USAGE_CACHE_READ_TOKENS, "gen_ai.usage.cache_creation.input_tokens"),
        seen="Strands Agents 1.0 to 1.40; 1.62 counts inclusively",
    ),
    Counting(
        ("opentelemetry",),
        CACHE_EXCLUSIVE,
        "org.springframework",
        _ANTHROPIC,
        _CLAUDE,
        seen="Spring AI 2.0.1 (sources)",
    ),
    Counting(("vercel",), CACHE_EXCLUSIVE, "ai", _ANTHROPIC, _CLAUDE, seen="AI SDK 4.3 and 5.0"),
    Counting(("vercel",), GEMINI, "ai", _GOOGLE, seen="AI SDK 4.3 and 5.0"),
    Counting(("langfuse-object",), CACHE_EXCLUSIVE, "langfuse-sdk", _ANTHROPIC, _CLAUDE, seen="Langfuse 5.0"),
    Counting(("logfire-4",), CACHE_EXCLUSIVE, "logfire.anthropic", seen="Logfire 4.0 to 4.20"),
)
"""Exceptions, the first that fits; what none fits counts as its dialect does."""

TOTALS: Final = (
    "gen_ai.usage.total_tokens",
    "llm.usage.total_tokens",
    "llm.token_count.total",
    "ai.usage.totalTokens",
    "braintrust.metrics.tokens",
)
"""Keys of a call's total. No quantity: where it is more than input and output told together, a part is missing
(thoughts, mostly), and the call's cost is a lower bound."""
