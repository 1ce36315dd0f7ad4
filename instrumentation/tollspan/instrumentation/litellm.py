"""LiteLLM: its calling functions, synchronous and asynchronous, streamed or not, also beneath its ``Router``.

In: the wrap points below. Out: one CLIENT span for each request that LiteLLM makes of a provider, with what the
provider counted. The client that LiteLLM uses beneath is part of the call and gets no span.

LiteLLM calls itself: for fallbacks, for retries of its own, for tools that it runs, to serve one API by another. Each
of these inner calls is a request of its own and bears its usage; the call around them, which then only handed on what
came of the last, says that it was a workflow and bears none. A router's attempts are such requests too.

Its functions stand in several modules, because ``litellm`` takes them over by ``import *``; a program may hold any of
them, so all are replaced, once the whole library is imported.

What is not taken over from LiteLLM: its own estimates of tokens (providers that do not count, streams without usage),
and ``response_cost``, which is its estimate and not the provider's word. An answer from its cache is no request.
"""

from __future__ import annotations

import functools
import sys
import weakref
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any, ClassVar, Final, NamedTuple

from tollspan.instrumentation import stream_usage
from tollspan.instrumentation.calls import Call, Opening, WrapPoint
from tollspan.instrumentation.guard import guard
from tollspan.instrumentation.litellm_asked import asking, named
from tollspan.instrumentation.litellm_native import CONTENT, MESSAGES, PAGES, Native, read_chunk
from tollspan.instrumentation.litellm_providers import (
    ASKED,
    ESTIMATED,
    ESTIMATED_REASONING,
    NOT_ASKED,
    billed_by,
    own_of,
)
from tollspan.instrumentation.streams import observe, observe_async
from tollspan.instrumentation.tables import given, opening, server, told
from tollspan.instrumentation.usage import put_usage
from tollspan.instrumentation.wrapping import Patches
from tollspan.pricing import attributes as names

__all__ = ["POINTS", "LiteLLMInstrumentor"]

_SPREAD: Final = guard("litellm.spread")

_FLAGS: Final = (
    *("acompletion", "aembedding", "aimg_generation", "amoderation", "atext_completion", "atranscription"),
    *("aspeech", "arerank", "aresponses", "aocr", "async_call", "text_completion", "is_async"),
    *("agenerate_content", "agenerate_content_stream"),
)
"""Arguments by which LiteLLM's functions call each other for one and the same request."""

_ANNOTATIONS: Final = ("bbox_annotation_format", "document_annotation_format")
"""Arguments by which pages are asked to be annotated."""

_MOCKS: Final = ("mock_response", "mock_tool_calls", "mock_timeout")
_CACHED: Final = "cached_response"
_WORKFLOW: Final = "invoke_workflow"
_FETCHED: Final = "fetch_response"
_LAST_EVENTS: Final = frozenset({"response.completed", "response.incomplete", "response.failed"})


class Function(NamedTuple):
    """One function, which has an asynchronous twin whose name begins with ``a``.

    Attributes:
        name: its name in ``litellm``; empty where there is only an asynchronous one.
        operation: ``gen_ai.operation.name``.
        modules: modules where another function of the name stands, that the one in ``litellm`` leads to.
        native: how its answers are read, where they are not in OpenAI's form.
        home: module that has it, where that is not ``litellm``.
        twin: name of the asynchronous twin, where it has another.
    """

    name: str
    operation: str
    modules: tuple[str, ...] = ()
    native: Native | None = None
    home: str = "litellm"
    twin: str | None = None


_MESSAGES: Final = "litellm.anthropic_interface.messages"
_GOOGLE: Final = "litellm.google_genai.main"

FUNCTIONS: Final = (
    Function("completion", "chat", ("litellm.main",)),
    Function("text_completion", "text_completion"),
    Function("responses", "responses", ("litellm.responses.main",)),
    Function("embedding", "embeddings", ("litellm.main",)),
    Function("image_generation", "image_generation"),
    Function("image_edit", "image_generation"),
    Function("image_variation", "image_generation"),
    Function("transcription", "transcription"),
    Function("speech", "speech"),
    Function("rerank", "rerank"),
    Function("moderation", "moderation"),
    Function("ocr", "generate_content", native=PAGES),
    Function("create", "chat", native=MESSAGES, home=_MESSAGES),
    Function("", "chat", native=MESSAGES, twin="anthropic_messages"),
    Function("generate_content", "generate_content", native=CONTENT, home=_GOOGLE),
    Function("generate_content_stream", "generate_content", native=CONTENT, home=_GOOGLE),
)
"""Every function that asks a model."""


class State:
    """What a call has on `Call.state`.

    Attributes:
        annotated: pages are asked to be annotated.
        operation: ``gen_ai.operation.name``.
        litellm_provider: who was asked, in LiteLLM's words; None where it is not known yet.
        address: where, as far as the program said.
        hides: usage was asked for that the program did not ask for, and has to be hidden from it.
        inner: requests were made inside it that have spans of their own.
        cached: the answer came from LiteLLM's cache.
        stream: weak reference to LiteLLM's stream: what holds the call must not hold the stream.
        read: chunks of it that have been looked at.
        usage: what they said.
        finished: a chunk said that the answer is complete.
        pending: bytes of a stream that have not made an event yet.
    """

    __slots__ = (
        *("address", "annotated", "cached", "finished", "hides", "inner", "litellm_provider", "operation"),
        *("pending", "read", "stream", "usage"),
    )

    def __init__(self, operation: str, provider: str | None, address: str | None) -> None:
        self.operation = operation
        self.litellm_provider = provider
        self.address = address
        self.inner = False
        self.hides = False
        self.cached = False
        self.stream: Callable[[], Any] | None = None
        self.read = 0
        self.usage: dict[str, Any] = {}
        self.finished = False
        self.pending = b""
        self.annotated = False

    def provider(self) -> str | None:
        """``gen_ai.provider.name``."""
        name = self.litellm_provider
        return None if name is None else billed_by(name, self.address)


# -- before the call -------------------------------------------------------------------------------------------------


def _request(operation: str, target: str) -> Callable[[tuple[Any, ...], dict[str, Any]], Opening | None]:
    def request(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Opening | None:
        if not _is_request(kwargs):
            return None
        model = named(target, args, kwargs).get("model")
        address = kwargs.get("api_base") or kwargs.get("base_url")
        provider = kwargs.get("custom_llm_provider")
        provider, model = _asked(model, provider if isinstance(provider, str) else None)
        state = State(operation, provider, address if isinstance(address, str) else None)
        state.annotated = any(kwargs.get(field) is not None for field in _ANNOTATIONS)
        known: dict[str, Any] = server(state.address) if state.address else {}
        name = state.provider()
        if name is not None:
            known[names.PROVIDER_NAME] = name
        asked = kwargs
        if "max_output_tokens" in kwargs:
            asked = {**kwargs, "max_tokens": kwargs["max_output_tokens"]}
        streamed = kwargs.get("stream") is True or target.endswith("_stream")
        return opening(operation, model, asked, known, streamed=streamed, state=state)

    return request


def _is_request(kwargs: Mapping[str, Any]) -> bool:
    """Whether a call asks somebody, and is not the second half of one that has its span already."""
    flagged = any(kwargs.get(flag) is True for flag in _FLAGS if flag in kwargs)
    return not flagged and all(kwargs.get(mock) is None for mock in _MOCKS)


def _apart(outer: Call, kwargs: dict[str, Any]) -> bool:
    """A call of LiteLLM's inside another is a request of its own, unless it is the same one passed on."""
    state = outer.state
    if not isinstance(state, State) or not _is_request(kwargs):
        return False
    state.inner = True
    return True


def _asked(model: Any, provider: str | None) -> tuple[str | None, Any]:
    """LiteLLM's provider, where it can be told, and the model as that provider knows it."""
    if not isinstance(model, str):
        return provider, model
    library = sys.modules["litellm"]
    prefix, slash, rest = model.partition("/")
    if slash and (prefix == provider or (provider is None and prefix in library.provider_list)):
        return prefix, rest
    if provider is None:
        known = library.model_cost.get(model)
        found = known.get("litellm_provider") if isinstance(known, dict) else None
        provider = found if isinstance(found, str) else None
    return provider, model


def _ask(call: Call, kwargs: dict[str, Any]) -> None:
    """Ask for the usage of a stream, of providers that speak OpenAI's protocol. For `WrapPoint.prepare`.

    Not by LiteLLM's own argument, by which it hands a chunk with usage on: what comes unasked it keeps to itself, since
    the version that keeps it at all.
    """
    provider = call.state.litellm_provider
    if provider in ASKED or (
        provider not in NOT_ASKED and provider in sys.modules["litellm"].openai_compatible_providers
    ):
        if hasattr(sys.modules["litellm"].CustomStreamWrapper, "_record_usage_only_chunk"):
            stream_usage.ask_in_body(kwargs)
        else:
            stream_usage.ask(call, kwargs)


# -- after it --------------------------------------------------------------------------------------------------------


def _response(call: Call, result: Any) -> None:
    hidden = _hidden(call, result)
    told(call, result, id=names.RESPONSE_ID, model=names.RESPONSE_MODEL)
    told(call, hidden, provider_response_model=names.RESPONSE_MODEL)
    choices = getattr(result, "choices", None) or ()
    reasons = tuple(reason for choice in choices if isinstance(reason := getattr(choice, "finish_reason", None), str))
    if reasons:
        call.attributes[names.RESPONSE_FINISH_REASONS] = reasons
    elif isinstance(status := getattr(result, "status", None), str):
        call.attributes[names.RESPONSE_FINISH_REASONS] = (status,)
    usage = getattr(result, "usage", None)
    if usage is None and call.state.operation == "rerank":
        usage = getattr(result, "meta", None)
    _put(call, _plain(usage), result)


def _hidden(call: Call, result: Any) -> Mapping[str, Any]:
    """What LiteLLM says beside a result: who was asked, where, whether it came from the cache."""
    hidden = getattr(result, "_hidden_params", None)
    if not isinstance(hidden, dict):
        return {}
    state = call.state
    provider = hidden.get("custom_llm_provider")
    if isinstance(provider, str) and provider != _CACHED:
        state.litellm_provider = provider
    if provider == _CACHED or hidden.get("cache_hit") is True:
        state.cached = True
    address = hidden.get("api_base")
    if isinstance(address, str) and "://" in address:
        state.address = address
        call.attributes.update(server(address))
    return hidden


def _put(call: Call, usage: dict[str, Any], response: Any) -> None:
    state = call.state
    provider = state.provider()
    if provider is None:
        provider = ""
    # Where a provider says nothing LiteLLM says 0, and there is no call of 0 tokens.
    counts = [value for value in usage.values() if type(value) is int]
    if state.litellm_provider in ESTIMATED or (counts and not any(counts)):
        usage = {}
    details = usage.get("prompt_tokens_details")
    if isinstance(details, dict):
        lifetimes = details.pop("cache_creation_token_details", None)
        if isinstance(lifetimes, dict):
            usage["cache_creation"] = lifetimes
        details.pop("initial_prompt_tokens", None)
    own = own_of(state.litellm_provider or "")
    if own in ESTIMATED_REASONING and isinstance(usage.get("completion_tokens_details"), dict):
        usage["completion_tokens_details"].pop("reasoning_tokens", None)
    put_usage(call, provider, usage or None, model=call.attributes.get(names.RESPONSE_MODEL), response=response)


def _plain(usage: Any) -> dict[str, Any]:
    """A usage object as a dict of what it tells, to be changed at will."""
    if usage is None:
        return {}
    dump = getattr(usage, "model_dump", None)
    fields = dump(warnings=False) if callable(dump) else dict(usage) if isinstance(usage, Mapping) else {}
    return _given(fields)


def _given(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: _given(value) if isinstance(value, Mapping) else value
        for name, value in fields.items()
        if value is not None
    }


def _outlives(call: Call, result: Any) -> Any:
    # Told by the class: a response may find anything among its attributes.
    kind = type(result)
    state = call.state
    stand_in: Callable[..., Any]
    if call.point.asynchronous and hasattr(kind, "__anext__"):
        stand_in = stream_usage.observe_async if state.hides else observe_async
    elif not call.point.asynchronous and hasattr(kind, "__next__"):
        stand_in = stream_usage.observe if state.hides else observe
    else:
        return None
    kept = _with_chunks(result)
    state.stream = None if kept is None else weakref.ref(kept)
    provider = getattr(result, "custom_llm_provider", None)
    if provider == _CACHED:
        state.cached = True
    elif isinstance(provider, str) and provider:
        state.litellm_provider = provider
    _hidden(call, result)
    if state.hides:
        return stand_in(call, result, _read_chunk, _has_usage)
    return stand_in(call, result, _read_event if state.operation == "responses" else _read_chunk)


def _has_usage(chunk: Any) -> bool:
    """Whether a chunk tells the usage: LiteLLM takes it off all but one that it makes for it."""
    return getattr(chunk, "usage", None) is not None


def _with_chunks(stream: Any) -> Any:
    """The stream that keeps what came from the provider: another may have been put around it."""
    for _ in range(3):
        if stream is None or isinstance(getattr(stream, "chunks", None), list):
            return stream
        stream = getattr(stream, "completion_stream", None)
    return None


def _read_chunk(call: Call, chunk: Any) -> bool:
    """Read a chunk of a chat or text stream.

    Usage is read where LiteLLM keeps the provider's chunks: it takes it off the chunks that it hands on, and puts
    estimates in its place where there is none.
    """
    told(call, chunk, id=names.RESPONSE_ID, model=names.RESPONSE_MODEL)
    state = call.state
    _collect(state)
    for choice in getattr(chunk, "choices", None) or ():
        reason = getattr(choice, "finish_reason", None)
        if isinstance(reason, str):
            state.finished = True
            call.attributes[names.RESPONSE_FINISH_REASONS] = (reason,)
    tier = getattr(chunk, "service_tier", None)
    if isinstance(tier, str):
        call.attributes[names.OPENAI_RESPONSE_SERVICE_TIER] = tier
    return state.finished and bool(state.usage)


def _collect(state: State) -> None:
    chunks = getattr(state.stream() if state.stream is not None else None, "chunks", ())
    for chunk in chunks[state.read :]:
        usage = getattr(chunk, "usage", None)
        if usage is not None:
            _merge(state.usage, _plain(usage))
        tier = getattr(chunk, "service_tier", None)
        if isinstance(tier, str):
            state.usage["service_tier"] = tier
    state.read = len(chunks)


def _merge(into: dict[str, Any], later: Mapping[str, Any]) -> None:
    """Take over what a later usage says. Counts grow, and a 0 stands for what it does not repeat."""
    for name, value in later.items():
        if isinstance(value, dict):
            _merge(into.setdefault(name, {}), value)
        elif value or name not in into:
            into[name] = value


def _read_event(call: Call, event: Any) -> bool:
    """Read an event of a streamed response."""
    kind = getattr(event, "type", None)
    if getattr(kind, "value", kind) not in _LAST_EVENTS:
        return False
    response = getattr(event, "response", None)
    if response is not None:
        _response(call, response)
    return True


def _error(call: Call, error: BaseException) -> None:
    provider = getattr(error, "llm_provider", None)
    state = call.state
    if state.litellm_provider is None and isinstance(provider, str) and provider:
        state.litellm_provider = provider


def _reads(native: Native) -> dict[str, Any]:
    """What a point needs to read answers in a provider's own form."""
    read = functools.partial(read_chunk, native)

    def response(call: Call, result: Any) -> None:
        _hidden(call, result)
        native.whole(call, given(result))

    def outlives(call: Call, result: Any) -> Any:
        kind = type(result)  # that of a synchronous stream may have the asynchronous methods too
        if call.point.asynchronous:
            streamed = hasattr(kind, "__anext__") or hasattr(kind, "__aiter__")
            return observe_async(call, result, read) if streamed else None
        return observe(call, result, read) if hasattr(kind, "__next__") else None

    return {"response": response, "outlives": outlives, "finish": _settle}


def _finish(call: Call) -> None:
    state = call.state
    if state.stream is not None and state.operation != "responses":
        _collect(state)
        usage = state.usage
        if not state.finished:
            # What was to come out is not known: the first chunk may say 1 for it.
            for name in ("completion_tokens", "completion_tokens_details", "total_tokens"):
                usage.pop(name, None)
        if usage:
            _put(call, usage, None)
    _settle(call)


def _settle(call: Call) -> None:
    """Say who billed, and take the usage off a call that did not ask itself."""
    state, attributes = call.state, call.attributes
    provider = state.provider()
    if provider is not None:
        attributes[names.PROVIDER_NAME] = provider
    if state.inner or state.cached:
        for name in [name for name in attributes if name.startswith(("gen_ai.usage.", names.USAGE_PREFIX))]:
            del attributes[name]
        attributes.pop(names.COST_REPORTED, None)
        attributes.pop(names.REQUEST_FINGERPRINT, None)  # its attempts have it, or nobody was asked
        attributes[names.OPERATION_NAME] = operation = _WORKFLOW if state.inner else _FETCHED
        model = call.opened.get(names.REQUEST_MODEL)
        call.span.update_name(f"{operation} {model}" if model else operation)


# -- where -----------------------------------------------------------------------------------------------------------


_OPENAI: Final[dict[str, Any]] = {"response": _response, "outlives": _outlives, "finish": _finish}


def _points() -> tuple[WrapPoint, ...]:
    return tuple(
        WrapPoint(
            target=target,
            request=_request(function.operation, target),
            error=_error,
            apart=_apart,
            asked=asking(target, _asked),
            asynchronous=asynchronous,
            **(_OPENAI if function.native is None else _reads(function.native)),
        )
        for function in FUNCTIONS
        for module in (function.home, *function.modules)
        for asynchronous, name in ((False, function.name), (True, function.twin or f"a{function.name}"))
        if name
        for target in (f"{module}:{name}",)
    )


POINTS: Final = _points()
"""Every wrapped function."""


class LiteLLMInstrumentor(stream_usage.AskingInstrumentor):
    """Spans for ``litellm``. See `CallInstrumentor`."""

    scope: ClassVar[str] = "tollspan.instrumentation.litellm"
    requires: ClassVar[tuple[str, ...]] = ("litellm >= 1.90, != 1.82.7, != 1.82.8",)
    points: ClassVar[tuple[WrapPoint, ...]] = POINTS
    after: ClassVar[str | None] = "litellm"
    streams: ClassVar[tuple[str, ...]] = ("completion",)
    prepare = staticmethod(_ask)

    def patch(self, patches: Patches) -> None:
        def imported(module: ModuleType) -> None:
            with _SPREAD:
                _spread(patches)

        # Called after those of the points, which were registered before.
        patches.when_imported("litellm", imported)


def _spread(patches: Patches) -> None:
    """Put each wrapper wherever else in the library its original stands."""
    if not patches.active:
        return
    wrappers: dict[int, Any] = {}
    for point in POINTS:
        home, _, name = point.target.partition(":")
        wrapper = vars(sys.modules[home]).get(name) if home in sys.modules else None
        original = getattr(wrapper, "__wrapped__", None)
        if original is not None:
            wrappers[id(original)] = wrapper
    wanted = {point.target.partition(":")[2] for point in POINTS}
    for home, module in list(sys.modules.items()):
        if home != "litellm" and not home.startswith("litellm."):
            continue
        for name in wanted & vars(module).keys():
            wrapper = wrappers.get(id(vars(module)[name]))
            if wrapper is not None:
                patches.add(f"{home}:{name}", functools.partial(_same, wrapper))


def _same(wrapper: Any, original: Any) -> Any:
    return wrapper
