"""Caches of answers: a span for each lookup, with whether it hit and what a hit saved.

In: lookups of `langchain` and `gptcache`. Out: spans ``cache_lookup {cache}``, as `data_reads.cache_lookup` makes them
for a cache of the program's own. Where it stands: what the two share. A lookup that stands on another one is part of
it; the queries of vectors and the embeddings that a semantic cache makes are spans of their own, below it. A hit has no
span of a model, because none was asked.
"""

from __future__ import annotations

from typing import Any

from tollspan.instrumentation.calls import Call, Opening
from tollspan.instrumentation.data_reads import CACHE_LAYER, CacheLookup
from tollspan.pricing import attributes as names

__all__ = ["CACHE_LAYER", "CacheLookup", "answered", "lookup"]


def lookup(cache: str, kind: str | None, store: str | None, state: CacheLookup) -> Opening:
    """What the span of a lookup begins with.

    Args:
        cache: its name.
        kind: ``exact`` or ``semantic``; None where that is not known.
        store: kind of store behind it; None where that is not known.
        state: of the lookup.
    """
    about: dict[str, Any] = {names.OPERATION: names.OPERATION_CACHE_LOOKUP, names.MODEL: cache}
    if kind is not None:
        about[names.CACHE_KIND] = kind
    if store is not None:
        about[names.PROVIDER] = store
    return Opening(f"{names.OPERATION_CACHE_LOOKUP} {cache}", about, state)


def answered(call: Call, result: Any) -> None:
    """Put what is known of a lookup on its span."""
    call.state.put(call.attributes)
