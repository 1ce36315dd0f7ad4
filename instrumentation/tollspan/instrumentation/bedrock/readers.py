"""What Bedrock's responses, bodies and events say, as tables.

In: parsed responses of botocore, bodies of ``InvokeModel`` as the program read them, events of both kinds of stream.
Out: attributes in `Call.attributes`. A model's own body may say more than Bedrock's headers (cache writes by lifetime,
searches), so it takes their place; where it says nothing of usage, or is not read, the headers stand.

Counts of Bedrock itself (Converse, headers, invocation metrics) leave out of the input what was read from a cache or
written to one; `tollspan.pricing.usage_objects` knows that, and how each family counts in its own bodies.

Sources, read on 2026-11-21: the service models in botocore 1.43.117 and 1.44.5; the Bedrock user guide's pages on
inference parameters of each family; headers and metrics by their names in those pages and in public clients of them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from tollspan.instrumentation.bedrock import attempts, deferred
from tollspan.instrumentation.bedrock.requests import PROVIDER, State, fields
from tollspan.instrumentation.calls import Call
from tollspan.instrumentation.usage import put_usage
from tollspan.pricing import attributes as names

Table = tuple[tuple[str, str], ...]
"""Field → field of Converse's usage object."""

HEADERS: Final[Table] = (
    ("x-amzn-bedrock-input-token-count", "inputTokens"),
    ("x-amzn-bedrock-output-token-count", "outputTokens"),
    ("x-amzn-bedrock-cache-read-input-token-count", "cacheReadInputTokens"),
    ("x-amzn-bedrock-cache-write-input-token-count", "cacheWriteInputTokens"),
)
"""Headers of ``InvokeModel``."""

METRICS_FIELD: Final = "amazon-bedrock-invocationMetrics"
METRICS: Final[Table] = (
    ("inputTokenCount", "inputTokens"),
    ("outputTokenCount", "outputTokens"),
    ("cacheReadInputTokenCount", "cacheReadInputTokens"),
    ("cacheWriteInputTokenCount", "cacheWriteInputTokens"),
)
"""Invocation metrics, in the last chunk of ``InvokeModelWithResponseStream``."""

COUNTS: Final[Table] = (
    ("prompt_token_count", "inputTokens"),  # Llama
    ("generation_token_count", "outputTokens"),
    ("inputTextTokenCount", "inputTokens"),  # Titan
    ("totalOutputTextTokenCount", "outputTokens"),
)
"""Counts that stand in a body itself."""

NOVA: Final[Table] = (
    ("cacheReadInputTokenCount", "cacheReadInputTokens"),
    ("cacheWriteInputTokenCount", "cacheWriteInputTokens"),
)
"""Nova's own names in its usage object, beside those of Converse."""

REASONS: Final = ("stop_reason", "stopReason", "completionReason", "finish_reason", "finishReason")
"""Names of the finish reason."""
REASON_OBJECTS: Final = ("delta", "messageStop")
REASON_LISTS: Final = ("choices", "outputs", "results", "generations", "completions")
"""Where it stands, if not in the body itself."""

IMAGES: Final = ("images", "artifacts")
"""Lists of images made."""
VECTORS: Final = ("embedding", "embeddings", "embeddingsByType")

_TELLING: Final = re.compile(rb"sage|etrics|eason|oken_?[cC]ount")
"""What a chunk of JSON that says anything of interest has in it. Chunks of text are not parsed."""


def read_response(call: Call, result: Any) -> None:
    """Read the response of an operation whose answer is whole, or told by its headers alone."""
    answered(call, result)
    state: State = call.state
    if state.asked == "Converse":
        _read_whole(call, result)
    elif state.asked == "StartAsyncInvoke":
        deferred.started(call, result)


def answered(call: Call, result: Any) -> None:
    """Note what every response says."""
    state: State = call.state
    state.answered = True
    attempts.told(call, result)
    served = {name: value for name in ("serviceTier", "performanceConfig") if (value := result.get(name)) is not None}
    if (latency := result.get("performanceConfigLatency")) is not None:
        served["performanceConfig"] = {"latency": latency}
    state.served = served


def _read_whole(call: Call, answer: Any) -> None:
    """Read what ``Converse`` says of a whole answer, or the last event of ``ConverseStream``."""
    if isinstance(reason := answer.get("stopReason"), str):
        call.attributes[names.RESPONSE_FINISH_REASONS] = [reason]
    # Only a router chooses a model by itself, and says which.
    router = fields(fields(answer.get("trace")).get("promptRouter"))
    if isinstance(model := router.get("invokedModelId"), str):
        call.attributes[names.RESPONSE_MODEL] = model
    _put(call, answer.get("usage"))


def read_event(call: Call, event: Any) -> bool:
    """Read an event of ``ConverseStream``. True when it is the last one that matters."""
    last = event.get("metadata")
    if last is not None:
        answered(call, last)
        _read_whole(call, last)
        return True
    stop = event.get("messageStop")
    if stop is not None and isinstance(reason := stop.get("stopReason"), str):
        call.attributes[names.RESPONSE_FINISH_REASONS] = [reason]
    return False


# -- InvokeModel -------------------------------------------------------------------------------------------------------


def counted_by_headers(call: Call, result: Any) -> dict[str, int]:
    """What the headers of ``InvokeModel`` count."""
    if call.state.operation == "image_generation":
        return {}  # billed by the image, whatever the prompt counts
    headers = fields(fields(result.get("ResponseMetadata")).get("HTTPHeaders"))
    return {
        field: int(value)
        for header, field in HEADERS
        if isinstance(value := headers.get(header), str) and value.isascii() and value.isdecimal()
    }


def put_counted(call: Call, counted: dict[str, int]) -> None:
    """Put what the headers count on the span, where no body says more."""
    _put(call, counted or None)


def read_body(call: Call, data: bytes) -> bool:
    """Read a body of ``InvokeModel``. True when it told the usage; False also for one cut off, or that is no JSON."""
    try:
        body = json.loads(data)
    except ValueError:
        return False
    if not isinstance(body, dict):
        return False
    _read_identity(call, body)
    state: State = call.state
    if state.operation == "chat" and any(name in body for name in VECTORS):
        # Told by the answer, where the model's id is one of the account's own.
        state.operation = call.attributes[names.OPERATION_NAME] = "embeddings"
    usage = _usage_in(body)
    if usage is None and state.operation == "image_generation":
        made = [image for name in IMAGES for image in _items(body.get(name), (dict, str)) if image]
        usage = {"image_count": len(made)} if made else None
    if usage is None:
        return False
    _put(call, usage)
    return True


def read_chunk(call: Call, event: Any) -> bool:
    """Read an event of ``InvokeModelWithResponseStream``. True when it is the last one that matters."""
    data = fields(event.get("chunk")).get("bytes")
    if not data or not _TELLING.search(data):
        return False
    chunk = json.loads(data)
    if not isinstance(chunk, dict):
        return False
    reason = _read_identity(call, chunk)
    usage: dict[str, Any] = call.state.usage
    found = _usage_in(chunk)
    if found is not None:
        # What is counted of the output before its end is a placeholder, or only what there was until then.
        whole = reason or "metadata" in chunk or chunk.get("choices") == [] or METRICS_FIELD in chunk
        usage.update((name, value) for name, value in found.items() if whole or name not in _OUTPUTS)
    metrics = _renamed(fields(chunk.get(METRICS_FIELD)), METRICS)
    if metrics and not _OUTPUTS.intersection(usage):
        usage.clear()
        usage.update(metrics)
    if found is not None or metrics:
        _put(call, usage)
    return METRICS_FIELD in chunk


_OUTPUTS: Final = frozenset({"output_tokens", "outputTokens", "completion_tokens"})


def _put(call: Call, usage: Any) -> None:
    served = call.state.served
    put_usage(call, PROVIDER, usage, response=served)
    tier = call.attributes.get(names.OPENAI_RESPONSE_SERVICE_TIER, "default")
    if tier == "default" and fields(served.get("performanceConfig")).get("latency") == "optimized":
        # It has prices of its own, and no other place to say so.
        call.attributes[names.OPENAI_RESPONSE_SERVICE_TIER] = "optimized"


def _renamed(counts: Mapping[str, Any], table: Table) -> dict[str, Any]:
    return {field: value for name, field in table if (value := counts.get(name)) is not None}


def _usage_in(body: Mapping[str, Any]) -> dict[str, Any] | None:
    """Usage in a body or chunk of whichever family; None where it has none."""
    for holder in (body, fields(body.get("message")), fields(body.get("metadata"))):
        usage = holder.get("usage")
        if isinstance(usage, dict):
            # The tier that counts is Bedrock's, not the one that the model's maker would have served.
            own = {name: value for name, value in usage.items() if value is not None and name != "service_tier"}
            return own | _renamed(usage, NOVA)
    counts = _renamed(body, COUNTS)
    if "outputTokens" not in counts:
        parts = [count for item in _items(body.get("results")) if type(count := item.get("tokenCount")) is int]
        if parts:  # Titan
            counts["outputTokens"] = sum(parts)
    if counts:
        return counts
    billed = fields(body.get("meta")).get("billed_units")
    return {"billed_units": billed} if billed else None  # Cohere


def _read_identity(call: Call, body: Mapping[str, Any]) -> bool:
    """Read id and finish reasons of a body or chunk; returns whether there was a reason."""
    message = fields(body.get("message"))
    for identity in (body.get("id"), message.get("id")):
        if isinstance(identity, str):
            call.attributes[names.RESPONSE_ID] = identity
    reasons = list(_reasons(body))
    if reasons:
        call.attributes[names.RESPONSE_FINISH_REASONS] = reasons
    return bool(reasons)


def _reasons(body: Mapping[str, Any]) -> Iterator[str]:
    objects = (body, *(fields(body.get(name)) for name in REASON_OBJECTS))
    items = (item for name in REASON_LISTS for item in _items(body.get(name)))
    for holder in (*objects, *items):
        for name in REASONS:
            reason = holder.get(name)
            if isinstance(reason, dict):  # AI21's older models
                reason = reason.get("reason")
            if isinstance(reason, str):
                yield reason
                break


def _items(value: Any, kinds: type | tuple[type, ...] = dict) -> list[Any]:
    """Items of a list that are of these types."""
    return [item for item in value if isinstance(item, kinds)] if isinstance(value, list) else []
