"""Who bills a call made through the OpenAI client: told by where it is sent, see `tollspan.instrumentation.providers`.

In: a client object. Out: the attributes that every span of that client begins with.
"""

from __future__ import annotations

from typing import Any, Final

from tollspan.instrumentation import providers

_AZURE_CLIENTS: Final = frozenset({"AzureOpenAI", "AsyncAzureOpenAI"})
"""Azure OpenAI may stand behind an address of the customer's own; the client's class tells."""


def client_attributes(client: Any) -> dict[str, Any]:
    """Attributes of every span of ``client``, an ``OpenAI`` or one of its kin. Shared: copy before adding to it."""
    return providers.client_attributes(client, client._base_url, own)


def own(kind: type) -> str:
    """Provider that a class of clients is made for."""
    azure = any(base.__name__ in _AZURE_CLIENTS for base in kind.__mro__)
    return providers.AZURE if azure else providers.OPENAI
