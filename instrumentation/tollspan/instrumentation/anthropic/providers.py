"""Who bills a call made through the Anthropic client: told by the client's class, and by where it sends.

In: a client object. Out: the attributes that every span of that client begins with. Bedrock, Vertex AI and Foundry have
clients of their own and bill what they serve. Anthropic's platform behind a cloud's marketplace (``AnthropicAWS``,
``AnthropicGoogleCloud``) has Anthropic's models, features and prices, and is ``anthropic``. Other providers speak the
protocol too, and the base URL tells them (`tollspan.instrumentation.providers`).
"""

from __future__ import annotations

from typing import Any, Final

from tollspan.instrumentation import providers

ANTHROPIC: Final = "anthropic"

CLIENTS: Final[dict[str, str]] = {
    "AnthropicBedrock": "aws.bedrock",
    "AsyncAnthropicBedrock": "aws.bedrock",
    "AnthropicBedrockMantle": "aws.bedrock",
    "AsyncAnthropicBedrockMantle": "aws.bedrock",
    "AnthropicVertex": "gcp.vertex_ai",
    "AsyncAnthropicVertex": "gcp.vertex_ai",
    "AnthropicFoundry": "azure.ai.inference",
    "AsyncAnthropicFoundry": "azure.ai.inference",
}
"""Class of a client, or of one of its bases → ``gen_ai.provider.name``."""


def client_attributes(client: Any) -> dict[str, Any]:
    """Attributes of every span of ``client``, an ``Anthropic`` or one of its kin. Shared: copy before adding to it."""
    return providers.client_attributes(client, client._base_url, _own)


def _own(kind: type) -> str:
    return next((CLIENTS[base.__name__] for base in kind.__mro__ if base.__name__ in CLIENTS), ANTHROPIC)
