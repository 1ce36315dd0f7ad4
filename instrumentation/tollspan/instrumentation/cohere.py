"""Cohere: both APIs of the ``cohere`` client, through the raw clients that everything else goes through.

In: the wrap points below. ``client.chat(...)`` and ``client.with_raw_response.chat(...)`` both end in a method of a raw
client, one for each request, and a client that was made before we came does so too. Out: one CLIENT span a request with
what the provider billed: tokens, search units, pages. ``embed`` of the first API splits long lists over threads: each
part is a request, and its span has the caller's for its parent.

A raw stream is a context manager that sends the request when it is entered. Its call begins with it and ends with the
stream inside it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextvars import copy_context
from functools import wraps
from types import MappingProxyType
from typing import Any, ClassVar, Final, NamedTuple

from tollspan.instrumentation import cohere_batches, exits
from tollspan.instrumentation.calls import Call, Opening, WrapPoint
from tollspan.instrumentation.exits import drop
from tollspan.instrumentation.guard import guard
from tollspan.instrumentation.once import OnceInstrumentor
from tollspan.instrumentation.providers import address_attributes
from tollspan.instrumentation.proxies import Proxy, stand_in
from tollspan.instrumentation.streams import ReadChunk, abandon, observe, observe_async
from tollspan.instrumentation.tables import Attempts, opening, told, word
from tollspan.instrumentation.usage import put_usage
from tollspan.instrumentation.wrapping import Patches
from tollspan.pricing import attributes as names

__all__ = ["POINTS", "CohereInstrumentor"]

_ENTERED: Final = guard("cohere.entered")
_DROPPED: Final = guard("cohere.dropped")
_SPREAD: Final = guard("cohere.spread")
_PROVIDER: Final = guard("cohere.provider")

DEFAULT_PROVIDER: Final = "cohere"
AWS: Final[dict[str, str]] = {"bedrock": "aws.bedrock", "sagemaker": "aws.sagemaker"}
"""Service that the client's AWS variants send to → provider."""


class Method(NamedTuple):
    """One method of a raw client, which has a twin whose class begins with ``Async``.

    Attributes:
        target: module and class with a place for the prefix, and method.
        operation: ``gen_ai.operation.name``.
        streamed: it returns the context manager of a stream.
    """

    target: str
    operation: str
    streamed: bool = False


_V2: Final = "cohere.v2.raw_client:%sRawV2Client."
_V1: Final = "cohere.raw_base_client:%sRawBaseCohere."

METHODS: Final = (
    *(
        Method(api + name, operation, name.endswith("_stream"))
        for api in (_V2, _V1)
        for name, operation in (
            ("chat", "chat"),
            ("chat_stream", "chat"),
            ("embed", "embeddings"),
            ("rerank", "rerank"),
        )
    ),
    Method(_V2 + "parse", "generate_content"),
    Method(_V1 + "generate", "text_completion"),
    Method(_V1 + "generate_stream", "text_completion", True),
    Method(_V1 + "summarize", "text_completion"),
    Method(_V1 + "classify", "inference"),
    Method("cohere.audio.transcriptions.raw_client:%sRawTranscriptionsClient.create", "transcription"),
)
"""Every method that asks a model."""

_HTTP: Final = "cohere.core.http_client:%sHttpClient.%s"
ATTEMPTS: Final = Attempts(*(_HTTP % (prefix, name) for prefix in ("", "Async") for name in ("request", "stream")))


class State:
    """What a call has on `Call.state`.

    Attributes:
        provider: who bills it.
    """

    __slots__ = ("provider",)

    def __init__(self, provider: str) -> None:
        self.provider = provider


def _provider(wrapper: Any) -> str:
    """Who serves the calls of a client: an AWS variant is told by the hook that sends its requests there."""
    with _PROVIDER:
        http = wrapper.httpx_client.httpx_client
        for hook in getattr(http, "event_hooks", {}).get("request", ()):
            if getattr(hook, "__module__", None) == "cohere.aws_client":
                closed = dict(zip(hook.__code__.co_freevars, hook.__closure__ or (), strict=True))
                return AWS[closed["service"].cell_contents]
    return DEFAULT_PROVIDER


def _request(method: Method) -> Callable[[tuple[Any, ...], dict[str, Any]], Opening]:
    def request(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Opening:
        wrapper = args[0]._client_wrapper
        provider = _provider(wrapper)
        # The address of the others is made later, request by request.
        url = wrapper.get_base_url() if provider == DEFAULT_PROVIDER else None
        client = address_attributes(url, provider)
        state = State(client[names.PROVIDER_NAME])
        return opening(method.operation, kwargs.get("model"), kwargs, client, streamed=method.streamed, state=state)

    return request


def asked(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Mapping[str, Any]:
    """What is asked for: what the client puts into the body."""
    options = kwargs.get("request_options")
    more = options.get("additional_body_parameters") if isinstance(options, Mapping) else None
    return {**kwargs, **more} if isinstance(more, Mapping) else kwargs


def read(call: Call, result: Any) -> None:
    """Read a raw response of any kind."""
    read_data(call, getattr(result, "_data", None))


def read_data(call: Call, data: Any) -> None:
    """Read what a response says, or the last event of a stream."""
    told(call, data, generation_id=names.RESPONSE_ID, response_id=names.RESPONSE_ID, id=names.RESPONSE_ID)
    _reasons(call, getattr(data, "generations", None) if hasattr(data, "generations") else (data,))
    # The second API's chat has its usage under a name of its own.
    usage = getattr(data, "usage", None) or getattr(data, "meta", None)
    if usage is not None:
        put_usage(call, call.state.provider, usage)


def read_event(call: Call, event: Any) -> bool:
    """Read an event of a stream of either API. True when it is the last one."""
    kind = getattr(event, "type", None) or getattr(event, "event_type", None)
    if kind in ("message-start", "stream-start"):
        told(call, event, generation_id=names.RESPONSE_ID, id=names.RESPONSE_ID)
        return False
    if kind == "message-end":
        end = event.delta
        if (error := getattr(end, "error", None)) is not None:
            call.note_failure(word(end.finish_reason) or "error", error)
    elif kind == "stream-end":
        end = event.response
        _reasons(call, (event,))
    else:
        return False
    if end is not None:
        read_data(call, end)
    return True


def _reasons(call: Call, choices: Iterable[Any] | None) -> None:
    reasons = [reason for choice in choices or () if (reason := word(getattr(choice, "finish_reason", None)))]
    if reasons:
        call.attributes[names.RESPONSE_FINISH_REASONS] = reasons


# -- streams -----------------------------------------------------------------------------------------------------------


class Held:
    """A call whose raw stream has not been opened, or is open."""

    __slots__ = ("__weakref__", "_call", "_entered", "_stream")

    def __init__(self, call: Call) -> None:
        self._call = call
        self._entered = False
        self._stream: Any = None
        exits.remember(call, self)

    def entering(self) -> Any:
        """The request is about to be sent; returns what `Call.leave` wants back."""
        self._entered = True
        return self._call.enter()

    def entered(self, before: Any, response: Any, watch: Callable[[Call, Any, ReadChunk], Any]) -> None:
        """The request was answered: watch the stream inside the response."""
        call = self._call
        call.leave(before)
        with _ENTERED:
            self._stream = response._data = watch(call, response._data, read_event)
            return
        call.end()

    def failed(self, before: Any, error: BaseException) -> None:
        """The request was refused, or never got through."""
        self._call.leave(before)
        self._call.note_error(error)
        self._call.end()

    def abandon(self) -> None:
        """Nobody will read on."""
        with _DROPPED:
            if self._stream is not None:
                abandon(self._stream)
            elif not self._entered:
                self._call.attributes[names.CALL_SENT] = False
        self._call.end()

    def __del__(self, _exiting: Callable[[], bool] = sys.is_finalizing) -> None:
        # A stream may live on without the context manager that it came from; it ends its call itself.
        if not _exiting() and self._stream is None:
            drop(self)


def _enter(self: Any) -> Any:
    held = self._tollspan_held
    before = held.entering()
    try:
        response = self._tollspan_subject.__enter__()
    except BaseException as error:
        held.failed(before, error)
        raise
    held.entered(before, response, observe)
    return response


def _exit(self: Any, *error: Any) -> Any:
    try:
        return self._tollspan_subject.__exit__(*error)
    finally:
        self._tollspan_held.abandon()


async def _aenter(self: Any) -> Any:
    held = self._tollspan_held
    before = held.entering()
    try:
        response = await self._tollspan_subject.__aenter__()
    except BaseException as error:
        held.failed(before, error)
        raise
    held.entered(before, response, observe_async)
    return response


async def _aexit(self: Any, *error: Any) -> Any:
    try:
        return await self._tollspan_subject.__aexit__(*error)
    finally:
        self._tollspan_held.abandon()


class Opened(Proxy):
    """Stands in for the context manager of a raw stream, of either kind."""

    __slots__ = ("_tollspan_held",)
    special = MappingProxyType({"__enter__": _enter, "__exit__": _exit, "__aenter__": _aenter, "__aexit__": _aexit})


def _hold(call: Call, manager: Any) -> Any:
    proxy = stand_in(Opened, manager)
    object.__setattr__(proxy, "_tollspan_held", Held(call))
    return proxy


# -- requests that go out from other threads ---------------------------------------------------------------------------


class _Spreading(Proxy):
    """A client whose threads have the caller's context, as far as one call of it goes."""

    __slots__ = ()

    @property
    def _executor(self) -> _Executor:
        return _Executor(self._tollspan_subject._executor)


class _Executor:
    """A client's pool of threads, seen by one call."""

    def __init__(self, executor: Any) -> None:
        self._pool = executor

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pool, name)

    def map(self, function: Callable[..., Any], *iterables: Iterable[Any], **options: Any) -> Iterator[Any]:
        # A context can be run by one thread at a time, so every part has a copy.
        parts = list(zip(*iterables, strict=False))
        contexts = [copy_context() for _ in parts]

        def run(context: Any, part: tuple[Any, ...]) -> Any:
            return context.run(function, *part)

        found: Iterator[Any] = self._pool.map(run, contexts, parts, **options)
        return found


_EMBED: Final = "cohere.client:Client.embed"


def _spread(patches: Patches) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def make(original: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(original)
        def embed(self: Any, *args: Any, **kwargs: Any) -> Any:
            if patches.active:
                with _SPREAD:
                    self = stand_in(_Spreading, self)
            return original(self, *args, **kwargs)

        return embed

    return make


# -- the table ---------------------------------------------------------------------------------------------------------


def _points() -> tuple[WrapPoint, ...]:
    return tuple(
        WrapPoint(
            target=method.target % prefix,
            request=_request(method),
            response=read,
            outlives=_hold if method.streamed else None,
            finish=ATTEMPTS.known,
            asked=asked,
            # The context manager of an asynchronous stream is made by an ordinary call.
            asynchronous=bool(prefix) and not method.streamed,
        )
        for method in METHODS
        for prefix in ("", "Async")
    )


POINTS: Final = _points()
"""Every wrapped function: each method, synchronous and asynchronous."""


class CohereInstrumentor(OnceInstrumentor):
    """Spans for the ``cohere`` client. See `CallInstrumentor`."""

    scope: ClassVar[str] = "tollspan.instrumentation.cohere"
    requires: ClassVar[tuple[str, ...]] = ("cohere >= 5.21",)
    points: ClassVar[tuple[WrapPoint, ...]] = POINTS

    def patch(self, patches: Patches) -> None:
        ATTEMPTS.patch(patches)
        patches.add(_EMBED, _spread(patches))
        cohere_batches.patch(patches)
