"""Who bills a call made through the Anthropic client: told by the client's class, and by where it sends.

In: a client object. Out: the attributes that every span of that client begins with. Bedrock, Vertex AI and Foundry have
clients of their own and bill what they serve. Anthropic's platform behind a cloud's marketplace (``AnthropicAWS``,
``AnthropicGoogleCloud``) has Anthropic's models, features and prices, and is ``anthropic``. Other providers speak the
protocol too, and the base URL tells them.
"""

from __future__ import annotations

import weakref
from typing import Any, Final

from tollspan.instrumentation.openai.providers import PROVIDERS
from tollspan.pricing.attributes import PROVIDER_NAME, SERVER_ADDRESS, SERVER_PORT

DEFAULT_PROVIDER: Final = "anthropic"
"""Any other address: Anthropic itself, a gateway in front of it, or a server that poses as it."""

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

HOSTS: Final[dict[str, str]] = {
    **{host: name for host, name in PROVIDERS.items() if not name.startswith(("azure", "gcp"))},
    "services.ai.azure.com": "azure.ai.inference",
}
"""Host, or the end of one after a dot → ``gen_ai.provider.name``."""

_known: Final[weakref.WeakKeyDictionary[Any, tuple[Any, dict[str, Any]]]] = weakref.WeakKeyDictionary()
"""Client → its base URL and what was made of it. The URL can be changed on a client, so it is compared by identity."""


def provider_of(host: str) -> str:
    """``gen_ai.provider.name`` of a host name; `DEFAULT_PROVIDER` when it is not in the table."""
    name = host
    while name:
        if name in HOSTS:
            return HOSTS[name]
        name = name.partition(".")[2]
    return DEFAULT_PROVIDER


def client_attributes(client: Any) -> dict[str, Any]:
    """Attributes of every span of ``client``, an ``Anthropic`` or one of its kin. Shared: copy before adding to it."""
    url = client._base_url
    known = _known.get(client)
    if known is not None and known[0] is url:
        return known[1]
    host = url.host.lower()
    named = (CLIENTS[kind.__name__] for kind in type(client).__mro__ if kind.__name__ in CLIENTS)
    attributes = {
        PROVIDER_NAME: next(named, None) or provider_of(host),
        SERVER_ADDRESS: host,
        SERVER_PORT: url.port or (80 if url.scheme == "http" else 443),
    }
    _known[client] = (url, attributes)
    return attributes
