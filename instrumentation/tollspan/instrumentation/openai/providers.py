"""Who bills a call made through the OpenAI client: told by where it is sent.

In: a client object. Out: the attributes that every span of that client begins with: provider, server address and port.
Many providers speak OpenAI's protocol, and the base URL is the one thing that tells them apart. Provider names are the
well-known values of the GenAI conventions where there is one, else the provider's id in genai-prices.
"""

from __future__ import annotations

import functools
import os
import weakref
from typing import Any, Final

from tollspan.pricing.attributes import PROVIDER_NAME, SERVER_ADDRESS, SERVER_PORT

DEFAULT_PROVIDER: Final = "openai"
"""Any other address: OpenAI itself, a proxy or a gateway in front of it, or a server that poses as it. A user who knows
better says so in `VARIABLE`."""

AZURE: Final = "azure.ai.openai"

VARIABLE: Final = "TOLLSPAN_OPENAI_PROVIDERS"
"""Environment variable with further rows, ``host=provider`` or ``host:port=provider``, separated by commas: who bills
behind an address that only its owner can know (``gateway.internal=azure.ai.openai, localhost:8000=vllm``)."""

PROVIDERS: Final[dict[str, str]] = {
    "openai.azure.com": AZURE,
    "azure-api.net": AZURE,
    "cognitiveservices.azure.com": AZURE,
    "services.ai.azure.com": AZURE,
    "api.anthropic.com": "anthropic",
    "api.arcee.ai": "arcee",
    "api.avian.io": "avian",
    "inference.baseten.co": "baseten",
    "api.cerebras.ai": "cerebras",
    "api.cohere.ai": "cohere",
    "api.cohere.com": "cohere",
    "cloud.databricks.com": "databricks",
    "azuredatabricks.net": "databricks",
    "gcp.databricks.com": "databricks",
    "api.deepinfra.com": "deepinfra",
    "api.deepseek.com": "deepseek",
    "api.doubleword.ai": "doubleword",
    "api.fireworks.ai": "fireworks",
    "generativelanguage.googleapis.com": "gcp.gemini",
    "aiplatform.googleapis.com": "gcp.vertex_ai",
    "api.githubcopilot.com": "github-copilot",
    "api.groq.com": "groq",
    "api.hyperbolic.xyz": "hyperbolic",
    "router.huggingface.co": "huggingface",
    "api.meta.ai": "meta",
    "api.minimax.com": "minimax",
    "api.minimax.io": "minimax",
    "api.minimaxi.com": "minimax",
    "api.mistral.ai": "mistral_ai",
    "api.moonshot.ai": "moonshot_ai",
    "api.moonshot.cn": "moonshot_ai",
    "api.studio.nebius.ai": "nebius",
    "api.studio.nebius.com": "nebius",
    "api.tokenfactory.nebius.com": "nebius",
    "api.novita.ai": "novita",
    "integrate.api.nvidia.com": "nvidia",
    "ollama.com": "ollama",
    "api.openai.com": DEFAULT_PROVIDER,
    "openrouter.ai": "openrouter",
    "oai.endpoints.kepler.ai.cloud.ovh.net": "ovhcloud",
    "api.perplexity.ai": "perplexity",
    "api.sambanova.ai": "sambanova",
    "api.together.ai": "together",
    "api.together.xyz": "together",
    "api.voyageai.com": "voyageai",
    "ai-gateway.vercel.sh": "vercel",
    "api.x.ai": "x_ai",
    "api.z.ai": "zai",
    "open.bigmodel.cn": "zhipuai",
}
"""Host, or the end of one after a dot → ``gen_ai.provider.name``."""

PORTS: Final[dict[int, str]] = {11434: "ollama"}
"""Port that one kind of server alone listens on, at an address that is nobody's in the table above → its name. Such a
server bills nobody: what its calls cost is the machine's, or in the user's own book."""

_AZURE_CLIENTS: Final = frozenset({"AzureOpenAI", "AsyncAzureOpenAI"})
_BEDROCK_HOST: Final = ("bedrock-runtime.", ".amazonaws.com")

_known: Final[weakref.WeakKeyDictionary[Any, tuple[Any, dict[str, Any]]]] = weakref.WeakKeyDictionary()
"""Client → its base URL and what was made of it. The URL can be changed on a client, so it is compared by identity."""


def provider_of(host: str, port: int | None = None) -> str:
    """``gen_ai.provider.name`` of a host name in lower case and a port; `DEFAULT_PROVIDER` where nothing tells."""
    own = _own(os.environ.get(VARIABLE, ""))
    if own and (said := own.get(f"{host}:{port}") or own.get(host)):
        return said
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
    return PORTS.get(port, DEFAULT_PROVIDER) if port is not None else DEFAULT_PROVIDER


@functools.lru_cache(maxsize=4)
def _own(text: str) -> dict[str, str]:
    """The rows of `VARIABLE`."""
    rows = (row.partition("=") for row in text.split(","))
    return {host.strip().lower(): name.strip() for host, _, name in rows if host.strip() and name.strip()}


def client_attributes(client: Any) -> dict[str, Any]:
    """Attributes of every span of ``client``, an ``OpenAI`` or one of its kin. Shared: copy before adding to it."""
    url = client._base_url
    known = _known.get(client)
    if known is not None and known[0] is url:
        return known[1]
    host = url.host.lower()
    port = url.port or (80 if url.scheme == "http" else 443)
    # Azure OpenAI may stand behind an address of the customer's own; the client's class tells.
    azure = any(kind.__name__ in _AZURE_CLIENTS for kind in type(client).__mro__)
    attributes = {
        PROVIDER_NAME: AZURE if azure else provider_of(host, port),
        SERVER_ADDRESS: host,
        SERVER_PORT: port,
    }
    _known[client] = (url, attributes)
    return attributes
