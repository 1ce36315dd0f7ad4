"""Providers: who bills for a call, where no attribute says it in the conventions' way.

In: the provider column as attributes tell it, the model columns and the scopes of a batch. Out: the provider under its
canonical name, and which of them were taken from the name of the model alone. Used by `normalize`.

Many dialects do not tell the provider, or tell the framework that made the call; then a model's name does, where its
maker sells it under that name. Such a row of the ledger says ``provider_assumed``: the same model may have been asked
for at another provider, at another price.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tollspan.processor.decode.arrow_bytes import Mask, Rows
from tollspan.processor.dialects import NO_PROVIDERS, OLD_PROVIDERS, OWN_SCOPES
from tollspan.processor.pivot import TEXT_TYPE, codes_of

SERVERS: Final[dict[str, str]] = {
    "vllm.": "vllm",
    "sglang": "sglang",
    "triton-server": "triton",
    "logfire.anthropic": "anthropic",
    "openinference.instrumentation.anthropic": "anthropic",
}
"""How the names of instrumentation scopes begin → the provider of their spans, which do not say it: model servers, and
libraries that have a scope for each client. Triton's spans tell no usage, and are billed only where somebody has put
some on them; nor do those of Text Generation Inference, which have no scope of their own: there the client's span is
the one that is billed."""

CLOUDS: Final[dict[str, str]] = {
    "opentelemetry.instrumentation.bedrock": "aws.bedrock",
    "openinference.instrumentation.bedrock": "aws.bedrock",
    "opentelemetry.instrumentation.botocore.bedrock": "aws.bedrock",
}
"""The same for scopes whose spans tell the maker of the model as the provider: it is the cloud that bills."""

PARTS: Final = frozenset(
    {
        *("chat", "responses", "completion", "completions", "messages", "embedding", "text-embedding", "embeddings"),
        *("image", "speech", "transcription", "reranking", "video"),
    }
)
"""What the AI SDK puts behind a provider's name, after a point: the part of its interface that was called."""

MODELS: Final[tuple[tuple[str, str], ...]] = (
    (r"arn:aws[a-z-]*:bedrock:", "aws.bedrock"),
    (
        r"(?:(?:us|eu|apac|jp|au|ca|sa|us-gov|global)\.)?(?:anthropic|amazon|meta|mistral|cohere|ai21)\.[a-z]",
        "aws.bedrock",
    ),
    (r"claude-", "anthropic"),
    (
        r"gpt-(?!oss)|chatgpt-|o[134](?:-|$)|text-embedding-(?:3|ada)|davinci|whisper-1|tts-1|dall-e-|codex-|sora-|"
        r"omni-moderation|computer-use-preview",
        "openai",
    ),
    (r"(?:models/)?(?:gemini-|imagen-|veo-)", "gcp.gemini"),
    (r"(?:mistral|ministral|codestral|magistral|devstral|pixtral|voxtral)-|open-mi[sx]tral", "mistral_ai"),
    (r"command-|embed-(?:english|multilingual|v4)", "cohere"),
    (r"grok-", "x_ai"),
    (r"deepseek-(?:chat|reasoner)$", "deepseek"),
    (r"sonar(?:-|$)", "perplexity"),
)
"""How a model's name begins, in lower case → the provider that sells it under that name, the first that fits. Models
whose makers give them away are not here: anybody may serve those."""

_MODELS: Final = tuple((re.compile(pattern), provider) for pattern, provider in MODELS)


def provided(
    provider: Any, own: Any, model: Any, request_model: Any, scopes: list[str], scope: Rows
) -> tuple[Any, Mask]:
    """The providers of n spans, or of n shapes of spans.

    Args:
        provider, own, model, request_model: dictionary columns; providers in lower case and their current spelling.
            ``own`` is what our own spans tell, which is taken as it is.
        scopes: names of their scopes.
        scope: place of each one's scope there.

    Returns:
        Dictionary column of canonical names, null where nothing tells; and for which spans the model's name told.
    """
    words: dict[str, int] = {}

    def codes(names: Iterable[str | None]) -> npt.NDArray[np.int32]:
        """Places of names among the words, the last one that of no name."""
        return np.array(
            [-1 if name is None else words.setdefault(name, len(words)) for name in [*names, None]], np.int32
        )

    told = _at(codes(map(canonical, provider.dictionary.to_pylist())), provider)
    ours: Mask = np.array([name.startswith(OWN_SCOPES) for name in scopes], np.bool_)[scope]
    if ours.any():
        told = np.where(ours, _at(codes(own.dictionary.to_pylist()), own), told)
    clouds = codes(_by_scope(CLOUDS, scopes))
    if (clouds >= 0).any():
        cloud = clouds[scope]
        told = np.where(cloud >= 0, cloud, told)
    silent = np.flatnonzero(told < 0)
    assumed = np.zeros(len(told), np.bool_)
    if len(silent):
        told[silent] = codes(_by_scope(SERVERS, scopes))[scope[silent]]
        for column in (model, request_model):
            sellers = codes(map(seller, column.dictionary.to_pylist()))
            silent = silent[told[silent] < 0]
            if (sellers >= 0).any() and len(silent):
                told[silent] = _at(sellers, column, silent)
                assumed[silent] = told[silent] >= 0
    if not words:
        return pa.nulls(len(told), TEXT_TYPE), assumed
    return pa.DictionaryArray.from_arrays(pa.array(told, mask=told < 0), pa.array(words, pa.string())), assumed


def _at(codes: npt.NDArray[np.int32], column: Any, rows: Rows | None = None) -> npt.NDArray[np.int32]:
    """Codes of a dictionary column's rows (or some of them), by those of its values; the last code is for null."""
    at, said = codes_of(column)
    if said is not None:
        at = np.where(said, at, len(codes) - 1)
    return codes[at if rows is None else at[rows]]


def _by_scope(table: dict[str, str], scopes: list[str]) -> list[str | None]:
    """For each scope the provider that its name tells."""
    return [next((name for start, name in table.items() if scope.startswith(start)), None) for scope in scopes]


@lru_cache(maxsize=4096)
def canonical(name: str) -> str | None:
    """A provider's name, in lower case, as the conventions have it; None for what is no provider.

    ``openai.responses`` of the AI SDK and ``openai/gpt-4o`` of LiteLLM are both ``openai``.
    """
    name = name.partition("/")[0]
    whole, point, part = name.rpartition(".")
    if point and part in PARTS:
        name = whole
    name = OLD_PROVIDERS.get(name, name)
    return None if not name or name in NO_PROVIDERS else name


@lru_cache(maxsize=4096)
def seller(model: str) -> str | None:
    """The provider that a model's name tells; None where it tells none."""
    low = model.lower()
    return next((provider for pattern, provider in _MODELS if pattern.match(low)), None)
