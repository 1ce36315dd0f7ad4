"""Dialects: which attributes say what, as data.

In: nothing; these are tables. Out: for every canonical text, integer and flag column the keys it is read from, in order
of preference, and how values of other dialects are called here. `normalize` walks the tables; token counts stand in
`usage_dialects`, providers in `providers`. A new dialect is new entries here and there, and a fixture in the tests.

Sources: spans of the libraries themselves, in ``tests/processor/dialects`` with their versions; OpenTelemetry GenAI
semantic conventions (current names in `tollspan.pricing.attributes`; older spellings from semantic-conventions 1.27 to
1.40 and the renames in semantic-conventions-genai); the sources of vLLM 0.33.0, SGLang 0.5.23, Triton's server and Text
Generation Inference for the spans that they make themselves; labels of Karpenter and EKS, as the Collector's
k8sattributes puts them on resources, for how a node is paid for.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from tollspan.pricing import attributes as names


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
        quoted: whether some dialect writes values as JSON, a text in quotes.
    """

    keys: tuple[str, ...]
    resource: bool = False
    ignore: frozenset[str] = frozenset()
    rename: dict[str, str] = field(default_factory=dict)
    fold: bool = False
    span: bool = True
    quoted: bool = False


OLD_PROVIDERS: Final[dict[str, str]] = {
    "az.ai.inference": "azure.ai.inference",
    "az.ai.openai": "azure.ai.openai",
    "azure-openai": "azure.ai.openai",
    "amazon-bedrock": "aws.bedrock",
    "amazon_bedrock": "aws.bedrock",
    "bedrock_converse": "aws.bedrock",
    "azure_openai": "azure.ai.openai",
    "bedrock": "aws.bedrock",
    "gemini": "gcp.gemini",
    "google.generative-ai": "gcp.gemini",
    "google_genai": "gcp.gemini",
    "google.vertex": "gcp.vertex_ai",
    "google_vertexai": "gcp.vertex_ai",
    "mistralai": "mistral_ai",
    "together_ai": "together",
    "togetherai": "together",
    "vertex.anthropic": "gcp.vertex_ai",
    "vertex_ai": "gcp.vertex_ai",
    "vertexai": "gcp.vertex_ai",
    "xai": "x_ai",
}
"""Values of ``gen_ai.system``, and names that SDKs use, in lower case → how ``gen_ai.provider.name`` spells them, so
that the ledger has one name a provider. Pricing knows more spellings (`tollspan.pricing.selectors.PROVIDERS`)."""

SENDER_TENANT: Final = Source((names.SENDER_TENANT,), resource=True, span=False)
"""Where the tenant stands that a sender logged in as: never on a span, which a sender writes."""

NO_PROVIDERS: Final = frozenset(
    {
        *("strands-agents", "langchain", "langgraph", "llama_index", "llamaindex", "crewai", "haystack", "autogen"),
        *("microsoft.agent_framework", "semantic_kernel", "spring_ai", "gcp.vertex.agent", "pydantic_ai", "agno"),
        *(
            "openai-compatible",
            "gateway",
            "litellm",
            "litellm_proxy",
            "portkey",
            "helicone",
            "unknown",
            "none",
            "_other",
        ),
    }
)
"""What frameworks and proxies write where a provider belongs, in lower case: nobody of these bills for a model."""

OWN_PROVIDER: Final = Source((names.PROVIDER_NAME, names.PROVIDER), fold=True, rename=OLD_PROVIDERS)
"""The provider of our own instrumentation's spans: there it is always the one who bills, whatever the user calls it."""
OWN_SCOPES: Final = "tollspan."
"""How the names of its scopes begin."""

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
    "agent": Source((names.AGENT, names.AGENT_NAME), resource=True),
    "route": Source((names.ROUTE, names.HTTP_ROUTE)),
    "version": Source((names.SERVICE_VERSION,), resource=True),
    "provider": Source(
        (
            names.PROVIDER_NAME,
            "gen_ai.system",
            names.PROVIDER,
            "llm.provider",
            "llm.system",
            "ai.model.provider",
            "mlflow.llm.provider",
            "langsmith.metadata.ls_provider",
            "langfuse.observation.metadata.ls_provider",
            "litellm.provider.model",
        ),
        ignore=NO_PROVIDERS,
        fold=True,
        quoted=True,
    ),
    # A server of one model may say which it is once for all its spans, on its resource: vLLM's spans do not say it.
    "model": Source(
        (
            names.RESPONSE_MODEL,
            names.MODEL,
            "triton.model_name",
            "llm.response.model_name",
            "llm.model_name",
            "embedding.model_name",
            "reranker.model_name",
            "ai.response.model",
            "langfuse.observation.model.name",
            "mlflow.llm.model",
            "braintrust.metadata.model",
        ),
        resource=True,
        quoted=True,
    ),
    "request_model": Source(
        (names.REQUEST_MODEL, "llm.request.model_name", "ai.model.id", "langsmith.metadata.ls_model_name"), quoted=True
    ),
    "operation": Source(
        (
            # LangSmith's exporter calls every run but a chain ``chat``; its own attribute knows better.
            "langsmith.span.kind",
            names.OPERATION_NAME,
            names.OPERATION,
            "openinference.span.kind",
            "ai.operationId",
            "langfuse.observation.type",
            "mlflow.spanType",
            "llm.request.type",
            "traceloop.span.kind",
        ),
        ignore=frozenset({"span", "event", "UNKNOWN", '"UNKNOWN"', "unknown"}),
        quoted=True,
    ),
    "service_tier": Source(
        (
            names.OPENAI_RESPONSE_SERVICE_TIER,
            "gen_ai.openai.response.service_tier",
            "gen_ai.response.service_tier",
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

MODEL_OBJECTS: Final = ("request_data", "braintrust.metadata")
"""Keys of JSON objects with a ``model``, read where no attribute of its own tells one: the
request as Logfire 4 and before put it on spans of Anthropic's client, and Braintrust's metadata."""

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
    "slim": (names.SLIM,),
}
"""Canonical boolean column → keys."""

COSTS: Final = (
    names.COST_REPORTED,
    "gen_ai.usage.cost",
    "gen_ai.cost.total_cost",
    "llm.cost.total",
    "operation.cost",
    "langfuse.observation.cost_details",
)
"""Keys of what somebody else says a call cost, USD, the provider's own word first: a number, its text, or JSON with a
``total``."""

ESTIMATES: Final[tuple[tuple[str, str, frozenset[str]], ...]] = (
    ("openlit.otel.tracing", "gen_ai.request.is_stream", frozenset({"openai", "azure.ai.openai"})),
)
"""Scopes, flags and providers of spans whose counts the library made up by counting words: OpenLIT 1.34 to 1.38 does so
for streams of OpenAI's client, also where the service told the usage."""


@dataclass(frozen=True, slots=True)
class Later:
    """Spans of calls whose usage stands on another span that is not beneath them.

    Attributes:
        scope: how the name of their instrumentation scope begins.
        key, value: an attribute that they have, and its value.
        unless: keys of which they have none: what a call that was answered at once tells.
    """

    scope: str
    key: str
    value: str
    unless: tuple[str, ...]


LATER: Final = (Later("logfire.", "logfire.span_type", "span", ("gen_ai.response.id", "response_data")),)
"""Logfire's span of a streamed call ends when the stream begins; its usage is on a log that is made at the end. Only
calls that give text, tell no usage and did not fail are taken for such."""

BATCH_TIER: Final = "batch"
"""The service tier by which providers report that a call was processed as a batch: it is a way of processing, at any
tier, and goes to the column ``processing``."""

OPERATION_NAMES: Final[dict[str, str]] = {
    **dict.fromkeys(
        (
            *("llm", "chat_model", "generation", "chat.completions", "completion", "acompletion", "aresponses"),
            *("ai.generatetext.dogenerate", "ai.streamtext.dostream"),
            *("ai.generateobject.dogenerate", "ai.streamobject.dostream"),
        ),
        "chat",
    ),
    "text.completions": "text_completion",
    "atext_completion": "text_completion",
    **dict.fromkeys(
        ("embedding", "aembedding", "ai.embed", "ai.embed.doembed", "ai.embedmany", "ai.embedmany.doembed"),
        "embeddings",
    ),
    **dict.fromkeys(("reranker", "arerank", "ai.rerank", "ai.rerank.dorerank"), "rerank"),
    **dict.fromkeys(("image", "aimage_generation"), "image_generation"),
    "atranscription": "transcription",
    "aspeech": "speech",
    **dict.fromkeys(
        (
            *("agent", "agent_step", "execute_event_loop_cycle"),
            *("ai.generatetext", "ai.streamtext", "ai.generateobject", "ai.streamobject"),
        ),
        "invoke_agent",
    ),
    **dict.fromkeys(("chain", "workflow", "framework", "task", "execute_task"), "invoke_workflow"),
    **dict.fromkeys(("tool", "ai.toolcall"), "execute_tool"),
    **dict.fromkeys(("retriever", "vectordb"), "retrieval"),
}
"""Names of operations in other dialects, in lower case → the name of the GenAI conventions."""

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
        "prompt",
        "parser",
        "guardrail",
        "evaluator",
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
