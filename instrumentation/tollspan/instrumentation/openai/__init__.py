"""OpenAI: ``chat.completions`` and ``responses`` of the ``openai`` client, version 2 and later.

In: the wrap points below; how requests and responses are read stands in `readers`, who is billed in `providers`, raw
responses in `raw`, further attempts in `retries`. Out: one CLIENT span a request, ``chat {model}``, with the tokens,
the service tier and the searches that the provider counted. ``stream()`` of either API reaches ``create``, and so gets
its span there.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ClassVar, Final, NamedTuple

from tollspan.instrumentation.calls import Call, CallInstrumentor, WrapPoint
from tollspan.instrumentation.openai import raw, readers, retries
from tollspan.instrumentation.streams import ReadChunk, observe, observe_async
from tollspan.instrumentation.wrapping import Patches

__all__ = ["POINTS", "OpenAIInstrumentor"]

_CHAT: Final = "openai.resources.chat.completions.completions:"
_RESPONSES: Final = "openai.resources.responses.responses:"


class _Kinds(NamedTuple):
    """Classes of the client's results that outlive their call."""

    sync_stream: type
    async_stream: type
    raw: type
    streaming: type


@functools.cache
def _kinds() -> _Kinds:
    # Imported when a call has been made, by which time the program has imported it.
    from openai import AsyncStream, Stream
    from openai._legacy_response import LegacyAPIResponse
    from openai._response import BaseAPIResponse

    return _Kinds(Stream, AsyncStream, LegacyAPIResponse, BaseAPIResponse)


def _outliving(read_chunk: ReadChunk) -> Callable[[Call, Any], Any]:
    def outlives(call: Call, result: Any) -> Any:
        kinds = _kinds()
        if isinstance(result, kinds.sync_stream):
            return observe(call, result, read_chunk)
        if isinstance(result, kinds.async_stream):
            return observe_async(call, result, read_chunk)
        if isinstance(result, kinds.raw):
            return raw.hold(call, result) if call.state.streamed else raw.read(call, result)
        if isinstance(result, kinds.streaming):
            return raw.hold(call, result)
        if call.state.streamed:
            # Somebody else's instrumentation beneath ours may have put an iterator of its own in the stream's place.
            if hasattr(result, "__next__"):
                return observe(call, result, read_chunk)
            if hasattr(result, "__anext__"):
                return observe_async(call, result, read_chunk)
        return None

    return outlives


def _points() -> tuple[WrapPoint, ...]:
    apis = (
        (
            f"{_CHAT}%sCompletions.%s",
            readers.request_reader("chat_completions", readers.CHAT_LIMITS),
            readers.read_chat,
            _outliving(readers.read_chat_chunk),
        ),
        (
            f"{_RESPONSES}%sResponses.%s",
            readers.request_reader("responses", readers.RESPONSES_LIMITS),
            readers.read_response,
            _outliving(readers.read_response_event),
        ),
    )
    return tuple(
        WrapPoint(
            target=target % (prefix, method),
            request=request,
            response=response,
            finish=retries.known,
            outlives=outlives,
            asynchronous=bool(prefix),
        )
        for target, request, response, outlives in apis
        for prefix in ("", "Async")
        for method in ("create", "parse")
    )


POINTS: Final = _points()
"""Every wrapped function: each API, synchronous and asynchronous, plain and parsed."""


class OpenAIInstrumentor(CallInstrumentor):
    """Spans for the ``openai`` client. See `CallInstrumentor`."""

    scope: ClassVar[str] = "tollspan.instrumentation.openai"
    requires: ClassVar[tuple[str, ...]] = ("openai >= 2",)
    points: ClassVar[tuple[WrapPoint, ...]] = POINTS

    def patch(self, patches: Patches) -> None:
        raw.patch(patches)
        retries.patch(patches)
