"""What is asked of Bedrock, as tables: which operations are model calls, and what their parameters say.

In: the client, operation and parameters of a botocore call. Out: the `Opening` of its span, or None for every call that
is no model call. ``CountTokens``, which is free, has no span, nor has ``ApplyGuardrail``, whose text units no meter
counts.

The body of ``InvokeModel`` is the model's own and may be large: the `Opening` does not look at it, so what kind of call
it is follows from the model's id, and where that is an ARN of the account's own, from the response. Only where somebody
wants the whole request (`asked`) is it parsed.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from tollspan.instrumentation.calls import Opening
from tollspan.instrumentation.providers import address_attributes
from tollspan.pricing import attributes as names

PROVIDER: Final = "aws.bedrock"
AGENT: Final = "invoke_agent"


class Asked(NamedTuple):
    """An operation that calls a model.

    Attributes:
        service: botocore's name of the service that has it.
        streamed: the answer is a stream of events.
        operation: ``gen_ai.operation.name``; None where the model decides it (`operation_of`).
    """

    service: str = "bedrock-runtime"
    streamed: bool = False
    operation: str | None = None


ASKED: Final[dict[str, Asked]] = {
    "Converse": Asked(operation="chat"),
    "ConverseStream": Asked(operation="chat", streamed=True),
    "InvokeModel": Asked(),
    "InvokeModelWithResponseStream": Asked(streamed=True),
    "InvokeModelWithBidirectionalStream": Asked(streamed=True),
    "StartAsyncInvoke": Asked(),
    "Rerank": Asked("bedrock-agent-runtime", operation="rerank"),
    "InvokeAgent": Asked("bedrock-agent-runtime", operation=AGENT, streamed=True),
    "InvokeInlineAgent": Asked("bedrock-agent-runtime", operation=AGENT, streamed=True),
}
"""Operation → what it is."""

KINDS: Final = (
    (re.compile(r"embed", re.IGNORECASE), "embeddings"),
    (re.compile(r"rerank", re.IGNORECASE), "rerank"),
    (re.compile(r"titan-image|nova-canvas|stability\.|stable-", re.IGNORECASE), "image_generation"),
    (re.compile(r"nova-reel|luma\.|pegasus", re.IGNORECASE), "generate_content"),
)
"""What a model's id contains → ``gen_ai.operation.name``. Any other model chats."""

NUMBERS: Final = (("temperature", names.REQUEST_TEMPERATURE), ("topP", names.REQUEST_TOP_P))
"""Fields of ``inferenceConfig`` that are doubles."""

LONGEST: Final = 8 * 2**20
"""Bytes of a body that are parsed where somebody wants the whole request."""

_TRANSPORT: Final = frozenset({"body", "accept", "contentType"})
"""Parameters of ``InvokeModel`` that say how the body is sent and answered."""

_NOTHING: Final[Mapping[str, Any]] = {}


class State:
    """What a call has on `Call.state`.

    Attributes:
        client: the client that was asked.
        asked: name of the operation.
        operation: ``gen_ai.operation.name``.
        served: what Bedrock itself says of how it served the call (``serviceTier``, ``performanceConfig``).
        usage: usage told so far by the model's own events.
        attempts: requests that went out.
        answered: a response came.
        input: the model's own input, where the answer comes later.
        models: of an agent, models that were asked, by the id of the step.
    """

    __slots__ = ("answered", "asked", "attempts", "client", "input", "models", "operation", "served", "usage")

    def __init__(self, client: Any, asked: str, operation: str) -> None:
        self.client = client
        self.asked = asked
        self.operation = operation
        self.served: Mapping[str, Any] = _NOTHING
        self.usage: dict[str, Any] = {}
        self.attempts = 0
        self.answered = False
        self.input: Mapping[str, Any] = _NOTHING
        self.models: dict[str, Any] = {}


def fields(value: Any) -> Mapping[str, Any]:
    """A mapping as it is; anything else has no fields."""
    return value if isinstance(value, Mapping) else _NOTHING


@functools.lru_cache(maxsize=1024)
def operation_of(model: str) -> str:
    """``gen_ai.operation.name`` of a call of ``model``."""
    return next((operation for pattern, operation in KINDS if pattern.search(model)), "chat")


def client_attributes(url: str, region: str | None) -> dict[str, Any]:
    """Attributes of every span of a client; a new dict."""
    # A gateway of the user's own, or a server that poses as Bedrock: only the user can say so.
    attributes = address_attributes(url, PROVIDER)
    if region:
        # The region of the call, by which it is priced; the program itself may run elsewhere.
        attributes[names.CLOUD_REGION] = region
    return attributes


def read_request(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Opening | None:
    """Read a call of ``_make_api_call(operation_name, api_params)``, for `WrapPoint.request`."""
    name = args[1] if len(args) > 1 else kwargs.get("operation_name")
    asked = ASKED.get(name)  # type: ignore[arg-type]
    if asked is None:
        return None
    client = args[0]
    meta = client.meta
    if meta.service_model.service_name != asked.service:
        return None
    parameters = fields(args[2] if len(args) > 2 else kwargs.get("api_params"))
    return opened(client, name, parameters, client_attributes(str(meta.endpoint_url), meta.region_name))  # type: ignore[arg-type]


def opened(client: Any, name: str, parameters: Mapping[str, Any], shared: Mapping[str, Any]) -> Opening:
    """What the span of operation ``name`` begins with.

    Args:
        client: the client that is asked.
        name: operation, a key of `ASKED`.
        parameters: its parameters by the service's names.
        shared: attributes of the client.
    """
    asked, attributes = ASKED[name], dict(shared)
    model = _model(parameters)
    operation = asked.operation or operation_of(model or "")
    attributes[names.OPERATION_NAME] = operation
    if model:
        attributes[names.REQUEST_MODEL] = model
    if asked.streamed:
        attributes[names.REQUEST_STREAM] = True
    config = fields(parameters.get("inferenceConfig"))
    for field, attribute in NUMBERS:
        value = config.get(field)
        if isinstance(value, (int, float)):
            attributes[attribute] = float(value)
    limit = config.get("maxTokens")
    if isinstance(limit, int):
        attributes[names.REQUEST_MAX_TOKENS] = limit
    tier = parameters.get("serviceTier")
    if not isinstance(tier, str):
        tier = fields(tier).get("type")
    if isinstance(tier, str):
        attributes[names.OPENAI_REQUEST_SERVICE_TIER] = tier
    state = State(client, name, operation)
    state.input = fields(parameters.get("modelInput"))
    return Opening(f"{operation} {model}" if model else operation, attributes, state)


def asked(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Mapping[str, Any]:
    """Parameters of a call, for `WrapPoint.asked`."""
    return with_body(fields(args[2] if len(args) > 2 else kwargs.get("api_params")))


def with_body(parameters: Mapping[str, Any]) -> Mapping[str, Any]:
    """Parameters of a call; those of ``InvokeModel`` with the fields of its body among them.

    A body that is read from a file is not touched, and one that is too long, or no JSON object, stays one parameter.
    """
    body = parameters.get("body")
    if not isinstance(body, (bytes, bytearray, str)) or len(body) > LONGEST:
        return parameters
    try:
        parsed = json.loads(body)
    except ValueError:
        return parameters
    if not isinstance(parsed, dict):
        return parameters
    return {**parsed, **{name: value for name, value in parameters.items() if name not in _TRANSPORT}}


def _model(parameters: Mapping[str, Any]) -> str | None:
    """Id or ARN of the model as it was given."""
    model = parameters.get("modelId") or parameters.get("foundationModel")  # of an inline agent
    if model is None:  # Rerank
        configuration = fields(fields(parameters.get("rerankingConfiguration")).get("bedrockRerankingConfiguration"))
        model = fields(configuration.get("modelConfiguration")).get("modelArn")
    return model if isinstance(model, str) and model else None
