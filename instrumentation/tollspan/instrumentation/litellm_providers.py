"""LiteLLM's providers: who bills, who tells the usage of a stream, and whose counts are not their own.

In: LiteLLM's name of a provider, and the address where it is asked. Out: ``gen_ai.provider.name``
(`tollspan.instrumentation.providers`), and the sets by which `litellm` decides what of an answer is the provider's
word.
"""

from __future__ import annotations

from typing import Final

from tollspan.instrumentation.providers import OPENAI, address_attributes
from tollspan.pricing.attributes import PROVIDER_NAME

PROVIDERS: Final[dict[str, str]] = {
    "azure": "azure.ai.openai",
    "azure_text": "azure.ai.openai",
    "azure_ai": "azure.ai.inference",
    "bedrock": "aws.bedrock",
    "bedrock_converse": "aws.bedrock",
    "sagemaker": "aws.sagemaker",
    "sagemaker_chat": "aws.sagemaker",
    "gemini": "gcp.gemini",
    "vertex_ai": "gcp.vertex_ai",
    "vertex_ai_beta": "gcp.vertex_ai",
    "mistral": "mistral_ai",
    "codestral": "mistral_ai",
    "text-completion-codestral": "mistral_ai",
    "cohere_chat": "cohere",
    "anthropic_text": "anthropic",
    "text-completion-openai": "openai",
    "fireworks_ai": "fireworks",
    "moonshot": "moonshot_ai",
    "ollama_chat": "ollama",
    "together_ai": "together",
    "xai": "x_ai",
}
"""LiteLLM's name of a provider → ``gen_ai.provider.name``, where the two differ."""

BY_ADDRESS: Final = frozenset({OPENAI, "custom_openai", "openai_like", "text-completion-openai"})
"""Providers that only name a protocol when an address is given: who bills is told by that."""

ASKED: Final = frozenset({*BY_ADDRESS, "azure", "azure_text"})
"""Providers of OpenAI's protocol that LiteLLM does not list among those compatible with it."""

NOT_ASKED: Final = frozenset({"azure_ai", "codestral", "perplexity", "chatgpt"})
"""Providers that it lists, but which have more than that protocol, or always tell the usage of a stream."""

ESTIMATED: Final = frozenset({"a2a", "langflow", "langgraph", "predibase", "replicate", "sagemaker"})
"""Providers that do not count: what LiteLLM says they did, it has counted itself."""

ESTIMATED_REASONING: Final = frozenset({"anthropic", "aws.bedrock", "azure.ai.inference", "gcp.vertex_ai"})
"""Providers whose reasoning LiteLLM counts by itself where they do not; it is part of the output in any case."""


def own_of(name: str) -> str:
    """``gen_ai.provider.name`` of a provider of LiteLLM's, wherever it is asked."""
    return PROVIDERS["vertex_ai"] if name.startswith("vertex_ai") else PROVIDERS.get(name, name)


def billed_by(name: str, address: str | None) -> str:
    """``gen_ai.provider.name`` of who bills what a provider of LiteLLM's is asked at an address."""
    if not address:
        return own_of(name)
    provider: str = address_attributes(address, OPENAI if name in BY_ADDRESS else own_of(name))[PROVIDER_NAME]
    return provider
