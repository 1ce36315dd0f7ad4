"""Who bills a call made through the OpenAI client: told by where it is sent.

In: a client object. Out: the attributes that every span of that client begins with: provider, server address and port.
Many providers speak OpenAI's protocol, and the base URL is the one thing that tells them apart. Provider names are the
well-known values of the GenAI conventions where there is one, else the provider's id in genai-prices.
"""

from __future__ import annotations

import weakref
from typing import Any, Final

from tollspan.pricing.attributes import PROVIDER_NAME, SERVER_ADDRESS, SERVER_PORT

DEFAULT_PROVIDER: Final = "openai"
"""Any other address: OpenAI itself, a proxy or a gateway in front of it, or a server that poses as it."""

AZURE: Final = "azure.ai.openai"

PROVIDERS: Final[dict[str, str]] = {
    "openai.azure.com": AZURE,
    "cognitiveservices.azure.com": AZURE,
    "services.ai.azure.com": AZURE,
    "api.anthropic.com": "anthropic",
    "api.cerebras.ai": "cerebras",
    "api.cohere.ai": "cohere",
    "api.cohere.com": "cohere",
    "api.deepseek.com": "deepseek",
    "api.fireworks.ai": "fireworks",
    "generativelanguage.googleapis.com": "gcp.gemini",
    "aiplatform.googleapis.com": "gcp.vertex_ai",
    "api.groq.com": "groq",
    "api.mistral.ai": "mistral_ai",
    "api.moonshot.ai": "moonshot_ai",
    "api.moonshot.cn": "moonshot_ai",
    "api.novita.ai": "novita",
    "openrouter.ai": "openrouter",
    "api.perplexity.ai": "perplexity",
    "api.together.ai": "together",
    "api.together.xyz": "together",
    "api.x.ai": "x_ai",
    "api.z.ai": "zai",
}
"""Host, or the end of one after a dot → ``gen_ai.provider.name``."""

_AZURE_CLIENTS: Final = frozenset({"AzureOpenAI", "AsyncAzureOpenAI"})
_BEDROCK_HOST: Final = ("bedrock-runtime.", ".amazonaws.com")

_known: Final[weakref.WeakKeyDictionary[Any, tuple[Any, dict[str, Any]]]] = weakref.WeakKeyDictionary()
"""Client → its base URL and what was made of it. The URL can be changed on a client, so it is compared by identity."""


def provider_of(host: str) -> str:
    """``gen_ai.provider.name`` of a host name; `DEFAULT_PROVIDER` when it is not in the table."""
    if host.startswith(_BEDROCK_HOST[0]) and host.endswith(_BEDROCK_HOST[1]):
        return "aws.bedrock"
    name = host
    while name:
        if name in PROVIDERS:
            return PROVIDERS[name]
        name = name.partition(".")[2]
    # Vertex AI's regional hosts carry the region in the same label: us-central1-aiplatform.googleapis.com.
    if host.endswith("-aiplatform.googleapis.com"):
        return "gcp.vertex_ai"
    return DEFAULT_PROVIDER


def client_attributes(client: Any) -> dict[str, Any]:
    """Attributes of every span of ``client``, an ``OpenAI`` or one of its kin. Shared: copy before adding to it."""
    url = client._base_url
    known = _known.get(client)
    if known is not None and known[0] is url:
        return known[1]
    host = url.host.lower()
    # Azure OpenAI may stand behind an address of the customer's own; the client's class tells.
    azure = any(kind.__name__ in _AZURE_CLIENTS for kind in type(client).__mro__)
    attributes = {
        PROVIDER_NAME: AZURE if azure else provider_of(host),
        SERVER_ADDRESS: host,
        SERVER_PORT: url.port or (80 if url.scheme == "http" else 443),
    }
    _known[client] = (url, attributes)
    return attributes
