"""Anthropic: messages, their streams and their batches of the ``anthropic`` client, version 0.100 and later.

In: ``request`` of the client, the one function that every request passes: ``messages.create``, ``stream`` and
``parse``, the beta's and its tool runner and threads (a request each turn), raw and streamed responses, and the clients
of Bedrock, Vertex AI, Foundry and the marketplaces. How requests and messages are read stands in `readers`, who bills
in `providers`, streams of version 0 in `in_place`, further attempts in `retries`, batches in `batches`, the client's
own spans in `native`. Out: one CLIENT span a request, ``chat {model}``, with what the provider counted.

Fallbacks that the client itself makes after a refusal (``BetaRefusalFallbackMiddleware``) are one call: the usage is
that of the message that is returned.
"""

from __future__ import annotations

import functools
from typing import Any, ClassVar, Final, NamedTuple

from tollspan.instrumentation.anthropic import batches, in_place, readers
from tollspan.instrumentation.anthropic.batches import Fetching
from tollspan.instrumentation.anthropic.native import NATIVE_SPANS, Native
from tollspan.instrumentation.anthropic.retries import RETRIES
from tollspan.instrumentation.calls import Call, Opening, WrapPoint
from tollspan.instrumentation.once import OnceInstrumentor
from tollspan.instrumentation.stainless_raw import RawResponses
from tollspan.instrumentation.streams import ReadChunk, observe, observe_async
from tollspan.instrumentation.wrapping import Patches

__all__ = ["NATIVE_SPANS", "POINTS", "AnthropicInstrumentor"]

_SCOPE: Final = "tollspan.instrumentation.anthropic"
_RAW: Final = RawResponses("anthropic", readers.State)


class _Kinds(NamedTuple):
    """Classes of the client's results that outlive their call."""

    sync: tuple[type, ...]
    asynchronous: tuple[type, ...]
    raw: tuple[type, ...]
    in_place: tuple[type, ...]


@functools.cache
def _kinds() -> _Kinds:
    # Imported when a call has been made, by which time the program has imported it.
    from anthropic import AsyncStream, Stream
    from anthropic._decoders.jsonl import AsyncJSONLDecoder, JSONLDecoder
    from anthropic._response import BaseAPIResponse

    responses: tuple[type, ...] = (BaseAPIResponse,)
    try:
        from anthropic._legacy_response import LegacyAPIResponse  # type: ignore[import-not-found, unused-ignore]

        responses = (BaseAPIResponse, LegacyAPIResponse)
    except ImportError:
        pass
    streams = (Stream, AsyncStream)
    return _Kinds(
        (Stream, JSONLDecoder),
        (AsyncStream, AsyncJSONLDecoder),
        responses,
        tuple(stream for stream in streams if in_place.needed(stream)),
    )


class _Parts:
    """What belongs to one time of being instrumented."""

    __slots__ = ("native",)

    def __init__(self, **options: Any) -> None:
        self.native = Native(options.get("native_spans"), options.get("tracer_provider"))


_parts: _Parts | None = None
"""Those of the last time; None before the first."""


def _request(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Opening | None:
    opening = readers.read_request(args, kwargs)
    if _parts is None:
        return opening
    if opening is None:
        return batches.request(args, kwargs)
    return None if _parts.native.stands_in_for_ours(args[0]) else opening


def _response(call: Call, result: Any) -> None:
    if not isinstance(call.state, Fetching):
        readers.read_message(call, result)


def _finish(call: Call) -> None:
    RETRIES.known(call)
    readers.tell_usage(call)


def _outlives(call: Call, result: Any) -> Any:
    kinds = _kinds()
    if isinstance(result, kinds.raw):
        return _RAW.keep(call, result)
    read: ReadChunk = readers.read_event
    if isinstance(call.state, Fetching):
        read = batches.line
    if type(result) in kinds.in_place:
        return in_place.watch(call, result, read)
    if isinstance(result, kinds.sync):
        return observe(call, result, read)
    if isinstance(result, kinds.asynchronous):
        return observe_async(call, result, read)
    return None


POINTS: Final = tuple(
    WrapPoint(
        target=f"anthropic._base_client:{client}.request",
        request=_request,
        response=_response,
        finish=_finish,
        outlives=_outlives,
        asked=readers.asked,
        asynchronous=client.startswith("Async"),
    )
    for client in ("SyncAPIClient", "AsyncAPIClient")
)
"""Every wrapped function: what both kinds of client send all their requests by."""


class AnthropicInstrumentor(OnceInstrumentor):
    """Spans for the ``anthropic`` client. See `CallInstrumentor`.

    ``instrument(native_spans=True)`` keeps the client's own spans in place of these; see `native`.
    """

    scope: ClassVar[str] = _SCOPE
    requires: ClassVar[tuple[str, ...]] = ("anthropic >= 0.100",)
    points: ClassVar[tuple[WrapPoint, ...]] = POINTS

    def _instrument(self, **kwargs: Any) -> None:
        global _parts
        _parts = _Parts(**kwargs)
        super()._instrument(**kwargs)

    def patch(self, patches: Patches) -> None:
        if _parts is not None:
            _parts.native.patch(patches)
        batches.patch(patches)
        _RAW.patch(patches, "anthropic", legacy=True)  # which it has up to version 0
        RETRIES.patch(patches)
