"""What of a span is needed for its price and for who pays it: attribute names, as data.

In: nothing. Out: which attributes a slim span keeps (`needed`), and by which a span that is about to start shows that
it will be billed (`billed`). Beside `slim` and `sampler`. The names are all that the processor reads of a span (a test
walks its tables); content is not among them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Final

from tollspan.instrumentation.later import LaterAttributes
from tollspan.pricing import attributes as names

_PREFIXES: Final = (
    names.USAGE_PREFIX,
    "gen_ai.usage.",
    "ai.usage.",
    "anthropic.usage.",
    "braintrust.metrics",
    "llm.token_count.",
    "llm.usage.",
)
_NAMES: Final = frozenset(
    {
        *names.TAGS.values(),
        *(names.OPERATION_NAME, names.OPERATION, names.PROVIDER_NAME, names.PROVIDER),
        *(names.REQUEST_MODEL, names.RESPONSE_MODEL, names.MODEL, names.RESPONSE_ID),
        *(names.OPENAI_REQUEST_SERVICE_TIER, names.OPENAI_RESPONSE_SERVICE_TIER, names.ANTHROPIC_RESPONSE_SERVICE_TIER),
        *(names.PROCESSING, names.DEVICE_NAME, names.HOST_TYPE, names.HOST_PURCHASE, names.RESIDENCY),
        *(names.CLOUD_PROVIDER, names.CLOUD_REGION, names.CLOUD_PLATFORM, names.SERVICE_NAME, names.ENVIRONMENT),
        *(names.AGENT_NAME, names.HTTP_ROUTE, names.SERVICE_VERSION),
        *(names.ERROR_TYPE, names.HTTP_STATUS, names.RETRIES, names.BATCH_SIZE, names.COLD_START, names.CALL_SENT),
        *(names.USAGE_DEFERRED, names.USAGE_ELSEWHERE, names.USAGE_ESTIMATED, names.USAGE_INVALID, names.COST_REPORTED),
        *(names.SAMPLING_KEEP, names.SAMPLING_NOTE),
        # Other dialects and older spellings.
        *("ai.model.id", "ai.model.provider", "ai.operationId", "ai.response.model", "ai.response.providerMetadata"),
        *("braintrust.metadata.model", "deployment.environment", "embedding.model_name", "gen_ai.cost.total_cost"),
        *("gen_ai.openai.request.service_tier", "gen_ai.openai.response.service_tier", "gen_ai.request.is_stream"),
        *("gen_ai.response.completion_tokens", "gen_ai.response.prompt_tokens", "gen_ai.response.service_tier"),
        *("gen_ai.system", "http.status_code"),
        *("k8s.node.label.eks.amazonaws.com/capacityType", "k8s.node.label.karpenter.sh/capacity-type"),
        *("langfuse.observation.cost_details", "langfuse.observation.metadata.ls_provider"),
        *("langfuse.observation.model.name", "langfuse.observation.type", "langfuse.observation.usage_details"),
        *("langsmith.metadata.ls_model_name", "langsmith.metadata.ls_provider", "langsmith.metadata.usage_metadata"),
        *("langsmith.span.kind", "litellm.provider.model", "llm.cost.total", "llm.model_name", "llm.provider"),
        *("llm.request.model_name", "llm.request.type", "llm.response.model_name", "llm.system"),
        *("logfire.span_type", "metadata.usage_object", "mlflow.chat.tokenUsage", "mlflow.llm.model"),
        *("mlflow.llm.provider", "mlflow.spanType", "openinference.span.kind", "operation.cost"),
        *("reranker.model_name", "traceloop.span.kind", "triton.model_name", "gen_ai.usage.cost"),
    }
)

_MODELS: Final = ("model", "model_name", "model.name", "model_id", "model.id")
_LONGEST_MODEL: Final = 256

_MODEL: Final = re.compile(r'"model"\s*:\s*"[^"\\]{1,256}"')
OBJECTS: Final[dict[str, str]] = {"request_data": "model", "braintrust.metadata": "model", "response_data": "usage"}
"""Attributes whose JSON holds what was said beside one thing that is needed → that member."""

_STARTS: Final = (
    *("gen_ai.", "llm.", "openinference.", "ai.", names.USAGE_PREFIX, "langfuse.observation.", "langsmith."),
    *("mlflow.", "braintrust.", "embedding.", "reranker.", "triton.", "request_data"),
)


_DROPPED, _KEPT, _NUMBER, _NAME, _OBJECT = range(5)
"""What becomes of an attribute: kept whatever it is, if it is a number, if it is a name, condensed."""
_MOST: Final = 4096
_known: Final[dict[str, int]] = {}


def needed(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """The attributes of a slim span: those that are read, and others that look like a count of tokens or a model's
    name, by which the processor finds dialects that it has not been taught."""
    kept = {}
    for key, value in attributes.items():
        fate = _known.get(key)
        if fate is None:
            fate = _fate(key)
        if fate == _DROPPED:
            continue
        if fate == _OBJECT:
            kept[key] = _condensed(value, OBJECTS[key])
        elif (
            fate == _KEPT
            or (fate == _NUMBER and isinstance(value, (int, float)))
            or (fate == _NAME and isinstance(value, str) and len(value) <= _LONGEST_MODEL)
        ):
            kept[key] = value
    return kept


def _fate(key: str) -> int:
    if key in OBJECTS:
        fate = _OBJECT
    elif key in _NAMES or key.startswith(_PREFIXES):
        fate = _KEPT
    elif ("token" in key or "usage" in key) and "max" not in key:
        fate = _NUMBER
    else:
        fate = _NAME if key.endswith(_MODELS) else _DROPPED
    if len(_known) < _MOST:  # programs that make up names are not to fill memory with them
        _known[key] = fate
    return fate


def _condensed(value: Any, member: str) -> str:
    """A JSON object with nothing left in it but its outermost member of a name."""
    if isinstance(value, str):
        if member == "model":
            found = _MODEL.search(value)
            return f"{{{found.group()}}}" if found else "{}"
        try:
            level = [json.loads(value)]
        except (ValueError, RecursionError):
            return "{}"
        while level:
            for each in level:
                if isinstance(each, dict) and member in each:
                    return json.dumps({member: each[member]})
            level = [
                inner
                for each in level
                if isinstance(each, (dict, list))
                for inner in (each.values() if isinstance(each, dict) else each)
            ]
    return "{}"


def billed(attributes: Mapping[str, Any] | None) -> bool:
    """Whether a span that begins with these will be billed, as far as can be seen.

    What our own instrumentations begin with shows it, and so does what others do that say at the start what they are.
    A lookup in a cache uses nothing.
    """
    if attributes is None:
        return False
    if type(attributes) is LaterAttributes:
        return True  # of a call of a model or a store, and not to be read for this
    for key in attributes:
        if not isinstance(key, str):
            continue  # the SDK warns of such names and leaves them out
        if key.startswith(_STARTS):
            return True
        if key == names.OPERATION:
            return bool(attributes[key] != names.OPERATION_CACHE_LOOKUP)
    return False
