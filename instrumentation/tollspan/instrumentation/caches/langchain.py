"""LangChain's caches: lookups of every class of them, LangChain's, its partners' and the program's own.

In: ``lookup`` and ``alookup`` of the subclasses of ``BaseCache``, those that are there and those that come later. Out:
spans, see `tollspan.instrumentation.caches`; the cache is named by its class. What a hit saved is read from the stored
generation: its model, and its tokens where it keeps them (chat models' do). The generations of one answer carry the
usage of the whole of it, so the first tells. The text that was asked for leaves the process as a keyed hash only.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any, Final

from opentelemetry import trace

from tollspan.instrumentation.caches import CACHE_LAYER, CacheLookup, answered, lookup
from tollspan.instrumentation.calls import Call, CallInstrumentor, Opening, WrapPoint, wrap
from tollspan.instrumentation.data_reads import hashes
from tollspan.instrumentation.guard import guard
from tollspan.instrumentation.wrapping import Patches

_CREATED: Final = guard("caches.langchain.created")

_BASE: Final = "langchain_core.caches"
_STORES: Final = (
    *(("inmemory", "memory"), ("redis", "redis"), ("cassandra", "cassandra"), ("astradb", "astradb")),
    *(("mongodb", "mongodb"), ("opensearch", "opensearch"), ("elasticsearch", "elasticsearch")),
    *(("singlestore", "singlestore"), ("momento", "momento"), ("memcached", "memcached")),
    *(("cosmosdb", "cosmosdb"), ("couchbase", "couchbase"), ("gptcache", "gptcache"), ("langcache", "redis")),
)
"""Part of a class's name → the store behind it."""


def _request(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Opening:
    """``lookup(self, prompt, llm_string)``"""
    cache = args[0]
    state = CacheLookup()
    if hashes() is not None:
        asked = (*args[1:], *(kwargs[name] for name in ("prompt", "llm_string") if name in kwargs))
        state.keys = ("\n".join(map(str, asked)),)
    kind = type(cache)
    return lookup(kind.__name__, _kind(kind), _store(cache), state)


def _kind(kind: type) -> str | None:
    """A program's own class may be of either kind, and so may what stands on another library's cache."""
    name = kind.__name__.lower()
    if "semantic" in name or "langcache" in name:
        return "semantic"
    return "exact" if kind.__module__.startswith("langchain") and "gptcache" not in name else None


def _store(cache: Any) -> str | None:
    dialect = getattr(getattr(getattr(cache, "engine", None), "dialect", None), "name", None)
    if isinstance(dialect, str):  # of SQLAlchemy
        return dialect
    name = type(cache).__name__.lower()
    return next((store for part, store in _STORES if part in name), None)


def _response(call: Call, result: Any) -> None:
    """Generations, or None."""
    told: CacheLookup = call.state
    if result is None:
        told.miss()
    else:
        told.hit(**_saved(result))
    answered(call, result)


def _saved(generations: Any) -> dict[str, Any]:
    for generation in generations:
        message = getattr(generation, "message", None)
        usage = getattr(message, "usage_metadata", None)
        about = getattr(message, "response_metadata", None) or getattr(generation, "generation_info", None) or {}
        model = about.get("model_name") or about.get("model")
        if usage or model:
            usage = usage or {}
            return {
                "saved_input_tokens": usage.get("input_tokens"),
                "saved_output_tokens": usage.get("output_tokens"),
                "model": model,
            }
    return {}


def _point(asynchronous: bool) -> WrapPoint:
    return WrapPoint(
        target=f"{_BASE}:BaseCache.{'alookup' if asynchronous else 'lookup'}",
        request=_request,
        response=_response,
        asynchronous=asynchronous,
        layer=CACHE_LAYER,
    )


POINTS: Final = {"lookup": _point(False), "alookup": _point(True)}
"""Method → how it is read, in whichever class it stands."""


class LangChainCacheInstrumentor(CallInstrumentor):
    """Spans for LangChain's caches. Does not import it: it waits until the program does."""

    scope = __name__
    requires = ("langchain-core >= 0.3",)
    points = ()

    def _instrument(self, **kwargs: Any) -> None:
        self._tracer = trace.get_tracer(self.scope, tracer_provider=kwargs.get("tracer_provider"))
        super()._instrument(**kwargs)

    def patch(self, patches: Patches) -> None:
        patches.active = True
        patches.when_imported(_BASE, functools.partial(_imported, patches, self._tracer))


def _imported(patches: Patches, tracer: trace.Tracer, module: ModuleType) -> None:
    base: type = module.BaseCache
    for kind in _below(base):
        _place(patches, tracer, kind)
    patches.place(base, "__init_subclass__", functools.partial(_watched, patches, tracer, base))


def _below(base: type[Any]) -> Iterator[type[Any]]:
    for kind in base.__subclasses__():
        yield kind
        yield from _below(kind)


def _place(patches: Patches, tracer: trace.Tracer, kind: type) -> None:
    for name, point in POINTS.items():
        own = vars(kind).get(name)
        if callable(own) and not getattr(own, "__isabstractmethod__", False):
            patches.place(kind, name, functools.partial(wrap, point, tracer, patches))


def _watched(patches: Patches, tracer: trace.Tracer, base: Any, original: Callable[..., Any]) -> Any:
    """Hear of classes that are made later."""
    own: Any = vars(base).get("__init_subclass__")

    def created(cls: type[Any], /, **kwargs: Any) -> None:
        if own is None:
            super(base, cls).__init_subclass__(**kwargs)
        else:
            own.__get__(None, cls)(**kwargs)
        if patches.active:
            with _CREATED:
                _place(patches, tracer, cls)

    return classmethod(created)
