"""Dialects: which attributes say what, as data.

In: nothing; these are tables. Out: for every canonical text, integer and flag column the keys it is read from, in order
of preference, and for every dialect of token usage the keys of its counts and the convention they are counted by.
`normalize` walks the tables; a new dialect is a new entry here and a fixture in the tests.

Sources: OpenTelemetry GenAI semantic conventions (current names in `tollspan.pricing.attributes`; older spellings from
semantic-conventions 1.27 to 1.40 and the renames in semantic-conventions-genai); OpenLLMetry's semantic conventions for
its older cache counts; the spans of Anthropic's own SDK (anthropic 2.11.0) for cache writes by lifetime and the tier;
the sources of vLLM 0.33.0, SGLang 0.5.23, Triton's server and Text Generation Inference for the spans that they make
themselves; labels of Karpenter and EKS, as the Collector's k8sattributes puts them on resources, for how a node is paid
for; and for costs OpenLIT 1.45.0 (``gen_ai.usage.cost``), OpenInference 0.1.42 (``llm.cost.total``), Logfire and
Pydantic AI (``operation.cost``) and Langfuse 5.0.4 (``cost_details``, JSON), read on 2026-11-21.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from tollspan.pricing import attributes as names
from tollspan.pricing.conventions import OTEL_INCLUSIVE


@dataclass(frozen=True, slots=True)
class Source:
    """Where a text column comes from.

    Attributes:
        keys: attribute keys, the preferred one first.
        resource: whether the span's resource is asked under the same keys when the span itself does not say.
        ignore: values that say nothing.
        rename: older spellings of values, in lower case.
        span: whether the span itself is asked.
        fold: whether values are names in any case, kept in lower case (and compared with ``rename`` in it).
    """

    keys: tuple[str, ...]
    resource: bool = False
    ignore: frozenset[str] = frozenset()
    rename: dict[str, str] = field(default_factory=dict)
    fold: bool = False
    span: bool = True


OLD_PROVIDERS: Final[dict[str, str]] = {
    "az.ai.inference": "azure.ai.inference",
    "az.ai.openai": "azure.ai.openai",
    "azure_openai": "azure.ai.openai",
    "bedrock": "aws.bedrock",
    "gemini": "gcp.gemini",
    "mistralai": "mistral_ai",
    "together_ai": "together",
    "togetherai": "together",
    "vertex_ai": "gcp.vertex_ai",
    "vertexai": "gcp.vertex_ai",
    "xai": "x_ai",
}
"""Values of ``gen_ai.system``, and names that SDKs use, in lower case → how ``gen_ai.provider.name`` spells them, so
that the ledger has one name a provider. Pricing knows more spellings (`tollspan.pricing.selectors.PROVIDERS`)."""

SENDER_TENANT: Final = Source((names.SENDER_TENANT,), resource=True, span=False)
"""Where the tenant stands that a sender logged in as: never on a span, which a sender writes."""

SERVERS: Final[dict[str, str]] = {"vllm.": "vllm", "sglang": "sglang", "triton-server": "triton"}
"""How the names of a model server's instrumentation scopes begin → the provider of its spans, which do not say it.
Triton's tell no usage, and are billed only where somebody has put some on them; nor do those of Text Generation
Inference, which have no scope of their own: there the client's span is the one that is billed."""

TOLD_INVALID: Final = Source((names.USAGE_INVALID,))
"""Where the reason stands for which an instrumentation found the usage wrong; it becomes part of ``invalid``."""

TEXT: Final[dict[str, Source]] = {
    "service": Source((names.SERVICE_NAME,), resource=True),
    "environment": Source((names.ENVIRONMENT, "deployment.environment"), resource=True),
    "region": Source((names.CLOUD_REGION,), resource=True),
    "tenant": Source((names.TENANT,), resource=True),
    "team": Source((names.TEAM,), resource=True),
    "feature": Source((names.FEATURE,), resource=True),
    "workflow": Source((names.WORKFLOW,), resource=True),
    "variant": Source((names.VARIANT,), resource=True),
    "provider": Source((names.PROVIDER_NAME, "gen_ai.system", names.PROVIDER), rename=OLD_PROVIDERS, fold=True),
    # A server of one model may say which it is once for all its spans, on its resource: vLLM's spans do not say it.
    "model": Source((names.RESPONSE_MODEL, names.MODEL, "triton.model_name"), resource=True),
    "request_model": Source((names.REQUEST_MODEL,)),
    "operation": Source((names.OPERATION_NAME, names.OPERATION)),
    "service_tier": Source(
        (
            names.OPENAI_RESPONSE_SERVICE_TIER,
            "gen_ai.openai.response.service_tier",
            "anthropic.response.service_tier",
            names.OPENAI_REQUEST_SERVICE_TIER,
            "gen_ai.openai.request.service_tier",
        ),
        # A request for "auto" leaves the choice to the provider; only the response can say what it was.
        ignore=frozenset({"auto"}),
    ),
    "processing": Source((names.PROCESSING,)),
    "cloud_provider": Source((names.CLOUD_PROVIDER,), resource=True),
    # A serverless platform has no host type; its name is what its seconds are priced by.
    "host_type": Source((names.HOST_TYPE, names.CLOUD_PLATFORM), resource=True),
    "device": Source((names.DEVICE_NAME,), resource=True),
    "purchase": Source(
        (
            names.HOST_PURCHASE,
            "k8s.node.label.karpenter.sh/capacity-type",
            "k8s.node.label.eks.amazonaws.com/capacityType",
        ),
        resource=True,
        fold=True,
        rename={"on-demand": "on_demand"},
    ),
    "residency": Source((names.RESIDENCY,), resource=True, fold=True),
    "error_type": Source((names.ERROR_TYPE,)),
}
"""Canonical text column → its source."""

INTEGERS: Final[dict[str, tuple[str, ...]]] = {
    "http_status": (names.HTTP_STATUS, "http.status_code"),
    "retries": (names.RETRIES,),
    "batch_size": (names.BATCH_SIZE,),
}
"""Canonical integer column that takes no part in a price → keys. A value that is no count is as good as none."""

FLAGS: Final[dict[str, tuple[str, ...]]] = {
    "cold_start": (names.COLD_START,),
    "sent": (names.CALL_SENT,),
    "deferred": (names.USAGE_DEFERRED,),
    "estimated": (names.USAGE_ESTIMATED,),
    "elsewhere": (names.USAGE_ELSEWHERE,),
}
"""Canonical boolean column → keys."""

COSTS: Final = (
    names.COST_REPORTED,
    "gen_ai.usage.cost",
    "llm.cost.total",
    "operation.cost",
    "langfuse.observation.cost_details",
)
"""Keys of what somebody else says a call cost, USD, the provider's own word first: a number, its text, or JSON with a
``total``."""

BATCH_TIER: Final = "batch"
"""The service tier by which providers report that a call was processed as a batch: it is a way of processing, at any
tier, and goes to the column ``processing``."""

OPERATION_KINDS: Final[dict[str, str]] = {
    **dict.fromkeys(
        (
            "chat",
            "text_completion",
            "generate_content",
            "embeddings",
            "responses",
            "rerank",
            "image_generation",
            "transcription",
            "translation",
            "speech",
            names.OPERATION_INFERENCE,
        ),
        "inference",
    ),
    names.OPERATION_MODEL_LOAD: "model_load",
    names.OPERATION_FEATURE_READ: "feature_read",
    names.OPERATION_CAPACITY: "capacity",
}
"""Operation, in lower case → kind. Every other operation is ``other`` and billable only by what it says it used; if
that is tokens, it is a model call after all, unless it is one of `NO_MODEL_CALLS`. Inferences and capacity are billable
also without usage, as ``unpriced``."""

NO_MODEL_CALLS: Final = frozenset(
    {
        "invoke_agent",
        "invoke_workflow",
        "create_agent",
        "execute_tool",
        "fetch_response",
        "handoff",
        "plan",
        "retrieval",
        "create_memory",
        "create_memory_store",
        "delete_memory",
        "delete_memory_store",
        "search_memory",
        "update_memory",
        "upsert_memory",
    }
)
"""Operations, in lower case, that call no model themselves: the tokens they report were spent by calls below them."""

TWO_SIDED: Final = frozenset({"chat", "text_completion", "generate_content", "responses"})
"""Operations, in lower case, that take tokens in and give tokens out: usage with only one of the two is incomplete."""


@dataclass(frozen=True, slots=True)
class Usage:
    """A dialect of token usage.

    Attributes:
        name: whose dialect it is.
        convention: how its counts include each other, a key of `tollspan.pricing.conventions.CONVENTIONS`.
        counts: count of that convention → attribute keys, the preferred one first.
        parts: counts that are read only beside one of ``counts``, and by themselves say nothing in this dialect.
    """

    name: str
    convention: str
    counts: dict[str, tuple[str, ...]]
    parts: dict[str, tuple[str, ...]] = field(default_factory=dict)


USAGE: Final[tuple[Usage, ...]] = (
    Usage(
        "opentelemetry",
        OTEL_INCLUSIVE,
        {
            "input_tokens": (names.USAGE_INPUT_TOKENS, "gen_ai.usage.prompt_tokens"),
            "output_tokens": (names.USAGE_OUTPUT_TOKENS, "gen_ai.usage.completion_tokens"),
            "cache_read": (
                names.USAGE_CACHE_READ_TOKENS,
                "gen_ai.usage.cache_read_input_tokens",
                "gen_ai.usage.cached_tokens",
            ),
            "cache_write": (
                names.USAGE_CACHE_WRITE_TOKENS,
                "gen_ai.usage.cache_creation.input_tokens",
                "gen_ai.usage.cache_creation_input_tokens",
            ),
            "reasoning": (names.USAGE_REASONING_TOKENS,),
            "audio_input": (names.USAGE_AUDIO_INPUT_TOKENS,),
            "audio_output": (names.USAGE_AUDIO_OUTPUT_TOKENS,),
            "image_input": (names.USAGE_IMAGE_INPUT_TOKENS,),
            "audio_cache_read": (names.USAGE_AUDIO_CACHE_READ_TOKENS,),
            "image_output": (names.USAGE_IMAGE_OUTPUT_TOKENS,),
            "image_cache_read": (names.USAGE_IMAGE_CACHE_READ_TOKENS,),
            "video_input": (names.USAGE_VIDEO_INPUT_TOKENS,),
            "video_output": (names.USAGE_VIDEO_OUTPUT_TOKENS,),
            "video_cache_read": (names.USAGE_VIDEO_CACHE_READ_TOKENS,),
        },
        {
            **{
                f"cache_write_{lifetime}": (
                    f"anthropic.usage.cache_creation.ephemeral_{lifetime}_input_tokens",
                    names.usage(f"tokens.input.cache_write.{lifetime}"),
                )
                for lifetime in ("5m", "30m", "1h", "12h")
            },
            "citation": (names.usage("tokens.output.citation"),),
        },
    ),
)
"""Dialects in order; a span's counts are all read in the first one of which it carries any."""
