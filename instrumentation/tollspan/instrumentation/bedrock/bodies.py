"""Answers that outlive their call: bodies of ``InvokeModel``, and event streams.

In: an open `Call` and botocore's response, a dict. Out: the same dict, in which the body or the stream is a proxy that
is an instance of the same class. Nothing is read ahead, and nothing twice: what the program reads is looked at on its
way. The call ends with the last byte or event, with closing, with dropping, or at the interpreter's exit.

botocore's event streams are no iterators: each iteration is a generator of its own, and one goes on where another
stopped. So are those of the proxies.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from types import MappingProxyType, MethodType
from typing import Any, Final

from tollspan.instrumentation.bedrock import agents, readers
from tollspan.instrumentation.bedrock.raw import AsyncRaw, SyncRaw, leave
from tollspan.instrumentation.bedrock.requests import State
from tollspan.instrumentation.bedrock.taps import (
    Tap,
    Tapped,
    ends,
    filling,
    filling_async,
    own,
    reading,
    reading_async,
    tapped,
)
from tollspan.instrumentation.calls import Call
from tollspan.instrumentation.streams import ReadChunk, Reading, Stream, _closing, _standing

_LIBRARIES: Final = frozenset({"botocore", "aiobotocore"})

STREAMS: Final[dict[str, tuple[str, ReadChunk]]] = {
    "ConverseStream": ("stream", readers.read_event),
    "InvokeModelWithResponseStream": ("body", readers.read_chunk),
    "InvokeAgent": ("completion", agents.read_event),
    "InvokeInlineAgent": ("completion", agents.read_event),
}
"""Operation → field of the response that is a stream, and how its events are read."""


def outlives(call: Call, result: Any) -> Any:
    """Put a proxy in the place of what the program reads later, for `WrapPoint.outlives`."""
    state: State = call.state
    if state.asked in STREAMS:
        readers.answered(call, result)
        field, read = STREAMS[state.asked]
        stream = result.get(field)
        if not _of_library(stream):
            return None
        kind = AsyncEvents if hasattr(stream.__class__, "__aiter__") else SyncEvents
        result[field] = _standing(kind, stream, Reading(call, _Events(), read))
        return result
    if state.asked != "InvokeModel":
        return None
    readers.answered(call, result)
    counted = readers.counted_by_headers(call, result)
    body = result.get("body")
    # Vectors are long, and say nothing more than the header did.
    if not _of_library(body) or (state.operation == "embeddings" and "inputTokens" in counted):
        readers.put_counted(call, counted)
        return None
    length = result["ResponseMetadata"].get("HTTPHeaders", {}).get("content-length", "")
    tap = Tap(call, counted, int(length) if length.isdecimal() else None)
    result["body"] = tapped(AsyncBody if hasattr(type(body), "__aiter__") else SyncBody, body, tap)
    return result


def _of_library(value: Any) -> bool:
    # By where its class comes from: aiobotocore 2 has classes that share no base with botocore's. And by the class that
    # it says it has, for a peer's proxy may stand there; by its own too, for a body of aiobotocore 2 is itself a proxy.
    return any(kind.__module__.partition(".")[0] in _LIBRARIES for kind in (type(value), value.__class__))


# -- event streams -----------------------------------------------------------------------------------------------------


class _Events:
    """The iteration that is being read: what `Reading` takes events from."""

    __slots__ = ("current",)

    current: Any

    def __next__(self) -> Any:
        return self.current.__next__()

    def __anext__(self) -> Any:
        return self.current.__anext__()


def _iter(self: Any) -> Iterator[Any]:
    reading, source = self._tollspan_reading, iter(self._tollspan_subject)
    events: _Events = reading._source
    while True:
        events.current = source
        try:
            event = reading.next()
        except StopIteration:
            return
        yield event


class SyncEvents(Stream):
    """Proxy of botocore's ``EventStream``."""

    __slots__ = ()
    special = MappingProxyType({"__iter__": _iter})


async def _aiter(self: Any) -> AsyncIterator[Any]:
    reading, source = self._tollspan_reading, aiter(self._tollspan_subject)
    events: _Events = reading._source
    while True:
        events.current = source
        try:
            event = await reading.anext()
        except StopAsyncIteration:
            return
        yield event


class AsyncEvents(Stream):
    """Proxy of aiobotocore's ``AioEventStream``, whose ``__anext__`` is the generator."""

    __slots__ = ()
    special = MappingProxyType({"__aiter__": _aiter, "__anext__": _aiter})


# -- bodies ------------------------------------------------------------------------------------------------------------


_READING_ON: Final = frozenset({"iter_lines", "iter_chunks", "next", "anext"})
"""Methods of a body that read through its ``read``: they are given the proxy as their self."""

_RAW: Final = frozenset({"content", "json", "text"})
"""What a body of aiobotocore 2, itself a proxy, has from the response of aiohttp that it reads from."""


def _enter(self: Any) -> Any:
    # botocore gives what it reads from, not the body.
    subject = self._tollspan_subject
    entered = subject.__enter__()
    return self if entered is subject else tapped(SyncRaw, entered, self._tollspan_tap)


class SyncBody(Tapped):
    """Stands in for botocore's ``StreamingBody``."""

    __slots__ = ()
    special = MappingProxyType(
        {"__iter__": own("__iter__"), "__next__": own("__next__"), "__enter__": _enter, "__exit__": leave}
    )

    def __getattr__(self, name: str) -> Any:
        body, tap = self._tollspan_subject, self._tollspan_tap
        value = getattr(body, name)
        if name == "read":
            return reading(value, tap, ends)
        if name == "readinto":
            return filling(value, tap)
        if name == "readlines":
            return reading(value, tap, lambda *_: True)
        if name in _READING_ON:
            return MethodType(getattr(type(body), name), self)
        return _closing(value, tap) if name == "close" else value


async def _aenter(self: Any) -> Any:
    # aiobotocore 2 gives what it reads from.
    subject = self._tollspan_subject
    entered = await subject.__aenter__()
    return self if entered is subject else tapped(AsyncRaw, entered, self._tollspan_tap)


async def _aexit(self: Any, *error: Any) -> Any:
    try:
        return await self._tollspan_subject.__aexit__(*error)
    finally:
        self._tollspan_tap.abandon()


class AsyncBody(Tapped):
    """Stands in for aiobotocore's bodies."""

    __slots__ = ()
    special = MappingProxyType(
        {"__aiter__": own("__aiter__"), "__anext__": own("__anext__"), "__aenter__": _aenter, "__aexit__": _aexit}
    )

    def __getattr__(self, name: str) -> Any:
        body, tap = self._tollspan_subject, self._tollspan_tap
        if name in _RAW and hasattr(body, "__wrapped__"):
            return getattr(tapped(AsyncRaw, body.__wrapped__, tap), name)
        value = getattr(body, name)
        if name == "raw_stream":
            return tapped(AsyncRaw, value, tap) if type(value).__module__.startswith("aiohttp.") else value
        if name == "read":
            return reading_async(value, tap, ends)
        if name == "readinto":
            return filling_async(value, tap)
        if name in _READING_ON or name == "readlines":
            return MethodType(getattr(type(body), name), self)
        return _closing(value, tap) if name in ("close", "aclose") else value
