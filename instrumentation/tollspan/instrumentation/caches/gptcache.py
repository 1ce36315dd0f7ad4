"""GPTCache: a lookup is a span, whichever of its adapters asked.

In: ``adapt`` and ``aadapt``, through which every adapter and ``gptcache.adapter.api.get`` go. Out: spans, see
`tollspan.instrumentation.caches`; the cache is named by the class of its data manager, which is also what says whether
it is exact. The two ask the model themselves on a miss: the span ends before that. A call that skips the cache, because
it was told to or by the chance that a temperature gives it, has no result; ``put`` has no span. What a hit saved is not
told: GPTCache keeps the text of an answer, not its usage. The model is, where the call names it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any, Final

from opentelemetry import trace

from tollspan.instrumentation.caches import CACHE_LAYER, CacheLookup, answered, lookup
from tollspan.instrumentation.calls import Call, CallInstrumentor, Opening, WrapPoint, begin, open_call
from tollspan.instrumentation.guard import guard
from tollspan.instrumentation.wrapping import Patches

_NOTE: Final = guard("caches.gptcache.note")
_BEGIN: Final = guard("caches.gptcache.begin")

_ADAPTER: Final = "gptcache.adapter."
_HOME: Final = _ADAPTER + "adapter"
_TAKERS: Final = (
    *("api", "openai", "langchain_models", "llama_cpp", "dolly", "diffusers", "replicate", "stability_sdk"),
    "minigpt4",
)
"""Modules that take the functions by name when they are imported."""
_FUNCTIONS: Final = (("adapt", False), ("aadapt", True))

_KINDS: Final = {"MapDataManager": "exact", "SSDataManager": "semantic"}
"""Data managers, and what they look for."""


class Looked(CacheLookup):
    """State of a lookup.

    Attributes:
        model: that the call names.
        searched: the cache was asked.
    """

    __slots__ = ("model", "searched")

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model if isinstance(model, str) else None
        self.searched = False


def _opened(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Opening:
    """``adapt(..., cache_obj=cache, cache_skip=False, model=..., ...)``"""
    asked: dict[str, Any] = args[0]
    cache = asked.get("cache_obj")
    if cache is None:
        from gptcache import cache  # type: ignore[import-not-found, no-redef]
    kind = type(getattr(cache, "data_manager", None)).__name__
    return lookup(kind if kind in _KINDS else "GPTCache", _KINDS.get(kind), "gptcache", Looked(asked.get("model")))


POINT: Final = WrapPoint(target=_HOME + ":adapt", request=_opened, response=answered, layer=CACHE_LAYER)


class GPTCacheInstrumentor(CallInstrumentor):
    """Spans for GPTCache. Does not import it: it waits until the program does."""

    scope = __name__
    requires = ("gptcache >= 0.1.44",)
    points = ()

    def _instrument(self, **kwargs: Any) -> None:
        self._tracer = trace.get_tracer(self.scope, tracer_provider=kwargs.get("tracer_provider"))
        super()._instrument(**kwargs)

    def patch(self, patches: Patches) -> None:
        make = {
            name: functools.partial(_wrapped, patches, self._tracer, asynchronous) for name, asynchronous in _FUNCTIONS
        }
        for name in make:
            patches.add(f"{_HOME}:{name}", make[name])
        for module in _TAKERS:
            patches.when_imported(_ADAPTER + module, functools.partial(_taken, patches, make))
        for manager in _KINDS:
            patches.add(f"gptcache.manager.data_manager:{manager}.search", functools.partial(_searched, patches))


def _taken(patches: Patches, make: Mapping[str, Callable[..., Any]], module: ModuleType) -> None:
    """What a module has taken while we were there is ours: what is to be restored one day is what we stand for."""
    for name, wrapped in make.items():
        stands: Any = vars(module).get(name)
        if stands is None:
            continue
        if getattr(stands, "_tollspan_patches", None) is patches:
            setattr(module, name, stands.__wrapped__)
        patches.place(module, name, wrapped)


def _wrapped(patches: Patches, tracer: trace.Tracer, asynchronous: bool, original: Callable[..., Any]) -> Any:
    if asynchronous:

        @functools.wraps(original)
        async def aadapt(*args: Any, **kwargs: Any) -> Any:
            call = _begin(tracer, args, kwargs) if patches.active else None
            if call is None:
                return await original(*args, **kwargs)
            try:
                result = await original(_asking_async(call, args[0]), _converting(call, args[1]), *args[2:], **kwargs)
            except BaseException as error:
                _failed(call, error)
                raise
            return _returned(call, result)

        wrapper: Any = aadapt
    else:

        @functools.wraps(original)
        def adapt(*args: Any, **kwargs: Any) -> Any:
            call = _begin(tracer, args, kwargs) if patches.active else None
            if call is None:
                return original(*args, **kwargs)
            try:
                result = original(_asking(call, args[0]), _converting(call, args[1]), *args[2:], **kwargs)
            except BaseException as error:
                _failed(call, error)
                raise
            return _returned(call, result)

        wrapper = adapt
    wrapper._tollspan_patches = patches
    return wrapper


def _begin(tracer: trace.Tracer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call | None:
    if len(args) < 2 or kwargs.get("cache_skip") is True:
        return None
    with _BEGIN:
        return begin(POINT, tracer, kwargs)
    return None


def _asking(call: Call, handler: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(handler)
    def ask(*args: Any, **kwargs: Any) -> Any:
        _missed(call)
        return handler(*args, **kwargs)

    return ask


def _asking_async(call: Call, handler: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(handler)
    async def ask(*args: Any, **kwargs: Any) -> Any:
        _missed(call)
        return await handler(*args, **kwargs)

    return ask


def _converting(call: Call, convert: Callable[..., Any]) -> Callable[..., Any]:
    """What makes an answer of what was found, and is called for nothing else."""

    @functools.wraps(convert)
    def converted(*args: Any, **kwargs: Any) -> Any:
        with _NOTE:
            call.state.hit(model=call.state.model)
        return convert(*args, **kwargs)

    return converted


def _missed(call: Call) -> None:
    """The model is asked now: the lookup is over."""
    if not call.ended:
        with _NOTE:
            if call.state.searched and not call.state.told:
                call.state.miss()
        call.returned(None)


def _returned(call: Call, result: Any) -> Any:
    _missed(call)
    return result


def _failed(call: Call, error: BaseException) -> None:
    if not call.ended:  # else it was the model that failed
        call.raised(error)


def _searched(patches: Patches, original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def search(*args: Any, **kwargs: Any) -> Any:
        if patches.active:
            with _NOTE:
                call = open_call(CACHE_LAYER)
                if call is not None and type(call.state) is Looked:
                    call.state.searched = True
        return original(*args, **kwargs)

    return search
