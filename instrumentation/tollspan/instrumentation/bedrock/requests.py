"""What is asked of Bedrock, as tables: which operations are model calls, and what their parameters say.

In: the client, operation and parameters of a botocore call. Out: the `Opening` of its span, or None for every call that
is no model call. ``CountTokens``, which is free, has no span, nor has ``ApplyGuardrail``, whose text units no meter
counts.

The body of ``InvokeModel`` is the model's own and may be large: it is not looked at, so what kind of call it is follows
from the model's id, and where that is an ARN of the account's own, from the response.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

from tollspan.instrumentation.calls import Opening
from tollspan.pricing import attributes as names

PROVIDER: Final = "aws.bedrock"


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
    "StartAsyncInvoke": Asked(),
    "Rerank": Asked("bedrock-agent-runtime", operation="rerank"),
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
    """

    __slots__ = ("answered", "asked", "attempts", "client", "operation", "served", "usage")

    def __init__(self, client: Any, asked: str, operation: str) -> None:
        self.client = client
        self.asked = asked
        self.operation = operation
        self.served: Mapping[str, Any] = _NOTHING
        self.usage: dict[str, Any] = {}
        self.attempts = 0
        self.answered = False


def fields(value: Any) -> Mapping[str, Any]:
    """A mapping as it is; anything else has no fields."""
    return value if isinstance(value, Mapping) else _NOTHING


@functools.lru_cache(maxsize=1024)
def operation_of(model: str) -> str:
    """``gen_ai.operation.name`` of a call of ``model``."""
    return next((operation for pattern, operation in KINDS if pattern.search(model)), "chat")


@functools.lru_cache(maxsize=256)
def client_attributes(url: str, region: str | None) -> dict[str, Any]:
    """Attributes of every span of a client. Shared: copy before adding to it."""
    attributes: dict[str, Any] = {names.PROVIDER_NAME: PROVIDER}
    parts = urlsplit(url)
    if parts.hostname:
        attributes[names.SERVER_ADDRESS] = parts.hostname
        attributes[names.SERVER_PORT] = parts.port or (80 if parts.scheme == "http" else 443)
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
    attributes = client_attributes(str(meta.endpoint_url), meta.region_name).copy()
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
    return Opening(f"{operation} {model}" if model else operation, attributes, State(client, name, operation))  # type: ignore[arg-type]


def _model(parameters: Mapping[str, Any]) -> str | None:
    """Id or ARN of the model as it was given."""
    model = parameters.get("modelId")
    if model is None:  # Rerank
        configuration = fields(fields(parameters.get("rerankingConfiguration")).get("bedrockRerankingConfiguration"))
        model = fields(configuration.get("modelConfiguration")).get("modelArn")
    return model if isinstance(model, str) and model else None
