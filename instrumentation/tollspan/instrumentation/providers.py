"""Who bills a call: told by the client that makes it, and by where it is sent.

In: the provider that a client is made for, and the address that it sends to. Out: ``gen_ai.provider.name``, and the
attributes of the server. A client speaks one provider's protocol, and others serve it too; the address tells them
apart. What a provider counted is still read in the form of the protocol (`tollspan.instrumentation.usage.put_usage`,
``form``): who bills and how usage is written are two things. Names are the well-known values of the GenAI conventions
where there is one, else the provider's id in genai-prices.

The first that tells is taken:

1. The user's word, in the environment variable `VARIABLE`.
2. `HOSTS` and `PATTERNS`: an address that is known to be somebody's. Where it is the client's own provider under
   another of its names (Azure OpenAI and Azure's inference, Gemini and Vertex AI), the client's name stays.
3. `PORTS` and `LOCAL_PORTS`: a port that only one kind of server listens on.
4. The client's own provider, for every client alike: an address that nobody knows may be a proxy or a gateway in front
   of it, and most are; or a server that poses as it, and then the user has to say so. What a client is made for is not
   always its package's name: it is told by the class (``openai`` and ``anthropic`` for a cloud), by a variant (Cohere
   for AWS), the package (Mistral for Azure and Google Cloud), a flag (Google's Vertex AI), or by the provider that the
   program named (Hugging Face, LiteLLM).
"""

from __future__ import annotations

import functools
import logging
import os
import re
import weakref
from collections.abc import Callable
from typing import Any, Final

from tollspan.instrumentation.tables import server
from tollspan.pricing.attributes import PROVIDER_NAME, SERVER_ADDRESS, SERVER_PORT

_log: Final = logging.getLogger(__name__)

VARIABLE: Final = "TOLLSPAN_PROVIDERS"
"""Environment variable with rows of the user's, ``host=provider`` or ``host:port=provider``, separated by commas: who
bills behind an address that only its owner can know (``gateway.internal=azure.ai.openai, localhost:8000=vllm``)."""

OLD_VARIABLE: Final = "TOLLSPAN_OPENAI_PROVIDERS"
"""What it was called when only one client looked at it; rows of `VARIABLE` go before its rows."""

OPENAI: Final = "openai"
AZURE: Final = "azure.ai.openai"
AZURE_INFERENCE: Final = "azure.ai.inference"

HOSTS: Final[dict[str, str]] = {
    "openai.azure.com": AZURE,
    "azure-api.net": AZURE,
    "cognitiveservices.azure.com": AZURE,
    "services.ai.azure.com": AZURE,
    "models.ai.azure.com": AZURE_INFERENCE,
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
    "codestral.mistral.ai": "mistral_ai",
    "api.moonshot.ai": "moonshot_ai",
    "api.moonshot.cn": "moonshot_ai",
    "api.studio.nebius.ai": "nebius",
    "api.studio.nebius.com": "nebius",
    "api.tokenfactory.nebius.com": "nebius",
    "api.novita.ai": "novita",
    "integrate.api.nvidia.com": "nvidia",
    "ollama.com": "ollama",
    "api.openai.com": OPENAI,
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

PATTERNS: Final[tuple[tuple[str, str, str], ...]] = (
    ("bedrock-runtime.", ".amazonaws.com", "aws.bedrock"),
    ("bedrock-runtime-fips.", ".amazonaws.com", "aws.bedrock"),
    ("bedrock-mantle.", ".api.aws", "aws.bedrock"),
    # Regional hosts carry the region in the same label, multi-regional ones in the next.
    ("", "-aiplatform.googleapis.com", "gcp.vertex_ai"),
    ("aiplatform.", ".rep.googleapis.com", "gcp.vertex_ai"),
)
"""How a host begins and ends that has a region in the middle → ``gen_ai.provider.name``."""

PORTS: Final[dict[int, str]] = {11434: "ollama"}
"""Port that one kind of server alone listens on, at an address that is nobody's in the tables above → its name. Such a
server bills nobody: what its calls cost is the machine's, or in the user's own book."""

LOCAL_PORTS: Final[dict[int, str]] = {1234: "lm_studio"}
"""The same for ports that mean this only on the machine itself."""

_LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "::1"})
_ROW: Final = re.compile(r"\s*(?:\[([0-9a-f:.]+)\]|([a-z0-9_.-]+))(?::(\d{1,5}))?\s*=\s*([^\s=]+)\s*", re.IGNORECASE)

Rows = dict[tuple[str, int | None], str]
"""Host and port (None: every port) → provider."""

_known: Final[dict[int, tuple[weakref.ref[Any], Any, dict[str, Any]]]] = {}
"""A client's identity → the client, its base URL and what was made of it. The URL can be changed on a client, so it is
compared by identity. No `weakref.WeakKeyDictionary`: every call asks here, and that hashes and compares clients."""

_addresses: Final[dict[tuple[Any, str], tuple[Rows, Any, dict[str, Any]]]] = {}
"""URL, or its identity where it is an object, and a client's own provider → the user's rows at the time, the URL (held,
so that its identity is nobody else's), and what was made of them."""
_MOST_ADDRESSES: Final = 1024


def client_attributes(client: Any, url: Any, own: Callable[[type], str]) -> dict[str, Any]:
    """Attributes of every span of ``client``: provider, server. Shared: copy before adding to it.

    Args:
        client: what they are remembered by.
        url: its base URL, the object that it holds.
        own: provider that a class of clients is made for.
    """
    key = id(client)
    known = _known.get(key)
    if known is not None and known[1] is url and known[0]() is client:
        return known[2]
    attributes = address_attributes(url, own(type(client)))
    _known[key] = (weakref.ref(client, lambda _, forget=_known.pop: forget(key, None)), url, attributes)  # type: ignore[misc]
    return attributes


def address_attributes(url: Any, own: str) -> dict[str, Any]:
    """Provider and server of a call that a client of ``own`` sends to ``url``, a string or an httpx URL; a new dict."""
    said = _said()
    place = (url if isinstance(url, str) else id(url), own)
    known = _addresses.get(place)
    if known is not None and known[0] is said:
        return known[2].copy()
    attributes: dict[str, Any] = {PROVIDER_NAME: own, **server(url)}
    host = attributes.get(SERVER_ADDRESS)
    if host is not None:
        attributes[PROVIDER_NAME] = provider_of(host, attributes[SERVER_PORT], own)
    if len(_addresses) >= _MOST_ADDRESSES:
        _addresses.clear()
    _addresses[place] = said, url, attributes
    return attributes.copy()


def provider_of(host: str, port: int | None = None, own: str = OPENAI) -> str:
    """``gen_ai.provider.name`` of calls to a host, in lower case, and port by a client that is made for ``own``."""
    said = said_of(host, port)
    if said is not None:
        return said
    found = owner_of(host, port)
    if found is None or found == own:
        return own
    from tollspan.pricing.selectors import provider_of as one_name  # importing a client is not to pay for it

    if one_name(found) == one_name(own):
        return own
    # Azure OpenAI speaks OpenAI's protocol alone; what another client asks at the same address is Azure's own.
    return AZURE_INFERENCE if found == AZURE and own != OPENAI else found


def said_of(host: str, port: int | None = None) -> str | None:
    """Who bills at an address by the user's own word; None where there is none."""
    rows = _said()
    return (rows.get((host, port)) or rows.get((host, None))) if rows else None


def _said() -> Rows:
    """The user's rows; the same object for as long as the variables are the same."""
    return _rows(os.environ.get(VARIABLE, ""), os.environ.get(OLD_VARIABLE, ""))


def owner_of(host: str, port: int | None = None) -> str | None:
    """Whose an address is by the tables here; None where none tells."""
    name = host
    while name:
        if name in HOSTS:
            return HOSTS[name]
        name = name.partition(".")[2]
    for start, end, provider in PATTERNS:
        if host.startswith(start) and host.endswith(end):
            return provider
    if port is None:
        return None
    return PORTS.get(port) or (LOCAL_PORTS.get(port) if host in _LOOPBACK else None)


@functools.lru_cache(maxsize=4)
def _rows(text: str, old: str) -> Rows:
    """The rows of both variables; says once what is wrong with them."""
    if old.strip():
        _log.warning("tollspan: %s is called %s now; the old name is still read", OLD_VARIABLE, VARIABLE)
    rows: Rows = {}
    wrong: list[str] = []
    for row in (*old.split(","), *text.split(",")):
        match = _ROW.fullmatch(row)
        if match is not None:
            port = match[3]
            rows[((match[1] or match[2]).lower(), int(port) if port else None)] = match[4]
        elif row.strip():
            wrong.append(row.strip())
    if wrong:
        _log.warning("tollspan: %s has rows that are not host[:port]=provider, left out: %r", VARIABLE, wrong)
    return rows
