"""Who bills a call made through the ``google-genai`` client, and where it is sent.

In: the API client that all resources of a ``Client`` share. Out: the attributes that every span of it begins with. The
Gemini API and Vertex AI speak through the same client; a flag on it tells which one it is, also behind a proxy's
address. Where the address is another's, or the user has said whose it is, that one bills.
"""

from __future__ import annotations

import weakref
from typing import Any, Final
from urllib.parse import urlsplit

from tollspan.instrumentation.providers import provider_of
from tollspan.pricing.attributes import CLOUD_REGION, PROVIDER_NAME, SERVER_ADDRESS, SERVER_PORT

GEMINI: Final = "gcp.gemini"
VERTEX: Final = "gcp.vertex_ai"

_PORTS: Final = {"http": 80, "https": 443, "ws": 80, "wss": 443}

_known: Final[weakref.WeakKeyDictionary[Any, tuple[Any, dict[str, Any]]]] = weakref.WeakKeyDictionary()
"""API client → what its address and service were, and what was made of them."""


def client_attributes(client: Any, options: Any = None) -> dict[str, Any]:
    """Attributes of a span of ``client``, a ``BaseApiClient``; a dict of the caller's own.

    Args:
        options: HTTP options of this one request, whose address takes the place of the client's.
    """
    url = client._http_options.base_url
    own = options.get("base_url") if isinstance(options, dict) else getattr(options, "base_url", None)
    location = getattr(client, "location", None)
    made_of = (own or url, bool(client.vertexai), location)
    known = _known.get(client)
    if known is not None and known[0] == made_of:
        return known[1].copy()
    attributes = billed(made_of[0], VERTEX if client.vertexai else GEMINI)
    if client.vertexai and isinstance(location, str) and location:
        attributes[CLOUD_REGION] = location
    _known[client] = (made_of, attributes)
    return attributes.copy()


def billed(url: Any, own: str) -> dict[str, Any]:
    """Provider, host and port of calls to a URL by the service ``own``; the service alone where it is none."""
    attributes = address(url)
    host, port = attributes.get(SERVER_ADDRESS), attributes.get(SERVER_PORT)
    attributes[PROVIDER_NAME] = provider_of(host, port, own) if host else own
    return attributes


def address(url: Any) -> dict[str, Any]:
    """Host and port of a URL; nothing where it is none."""
    if not isinstance(url, str):
        return {}
    parts = urlsplit(url)
    host, port = parts.hostname, parts.port or _PORTS.get(parts.scheme)
    if not host or port is None:
        return {}
    return {SERVER_ADDRESS: host, SERVER_PORT: port}
