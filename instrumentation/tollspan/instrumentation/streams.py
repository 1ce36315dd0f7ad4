"""Streams that outlive their call: a transparent proxy that watches the chunks go by and ends the span once.

In: an open `Call`, the library's stream object, and how to read one of its chunks. Out: what the user gets in the
stream's place. It is an instance of the stream's class, has its attributes, is iterated, entered, closed and dropped as
the stream is. The span is current while a chunk is being read and at no other time; the user's own code between two
chunks runs in the user's own context.

The span ends once: when the stream is exhausted, when reading it raises, when it is closed, when nobody holds it any
more, or when the interpreter exits. In the last three cases the end was not seen, so the usage may be missing; the span
then says that the stream was abandoned, and nothing is guessed.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Callable, Iterator
from time import perf_counter
from types import MappingProxyType
from typing import Any, Final

import wrapt

from tollspan.instrumentation import exits
from tollspan.instrumentation.calls import Call, attach, get_current
from tollspan.instrumentation.exits import drop
from tollspan.instrumentation.guard import guard, report
from tollspan.instrumentation.proxies import Proxy, stand_in
from tollspan.pricing.attributes import RESPONSE_TIME_TO_FIRST_CHUNK, STREAM_ABANDONED

_CHUNK: Final = "streams.chunk"
_ABANDON: Final = guard("streams.abandon")
_CONTENT: Final = guard("content.chunk")

ReadChunk = Callable[[Call, Any], bool | None]
"""``(call, chunk)``: puts what the chunk tells in ``call.attributes``. True when nothing more is to come that matters,
so that closing the stream now loses nothing. Guarded; must not keep or change the chunk."""


class Reading:
    """The reading of one stream: the state that a proxy has beside the stream it stands for.

    A separate object because a proxy forwards everything it is asked, and because it is this object's going away, with
    the proxy or with the coroutine that reads for it, that tells an abandoned stream.
    """

    __slots__ = ("__weakref__", "_call", "_complete", "_last", "_quiet", "_read", "_source")

    def __init__(self, call: Call, source: Any, read: ReadChunk) -> None:
        self._call = call
        self._source = source
        self._read = read
        self._complete = False
        self._last = 0.0
        self._quiet = False
        wanted = call.point.wanted
        if wanted is not None and wanted():
            call.gaps = []
        exits.remember(call, self)

    def next(self) -> Any:
        """Next chunk of a synchronous stream, as the stream gives it; raises what the stream raises."""
        call = self._call
        if call.ended:
            return self._source.__next__()
        # `Call.enter` and `Call.leave`, without calls where nothing happened to the context meanwhile.
        before, inside = get_current(), call._context
        attach(inside)
        try:
            chunk = self._source.__next__()
        except BaseException as error:
            call.leave(before)
            self._stopped(error, StopIteration)
            raise
        if get_current() is inside:
            attach(before)
        else:
            call.leave(before)
        # A guard by hand: a context manager would be a tenth of what a chunk costs.
        try:
            if not self._quiet:
                self._seen(chunk)
            if self._read(call, chunk):
                self._complete = True
        except Exception as error:  # noqa: BLE001
            report(_CHUNK, error)
        return chunk

    async def anext(self) -> Any:
        """Next chunk of an asynchronous stream."""
        call = self._call
        if call.ended:
            return await self._source.__anext__()
        # `Call.enter` and `Call.leave`, without calls where nothing happened to the context meanwhile.
        before, inside = get_current(), call._context
        attach(inside)
        try:
            chunk = await self._source.__anext__()
        except BaseException as error:
            call.leave(before)
            self._stopped(error, StopAsyncIteration)
            raise
        if get_current() is inside:
            attach(before)
        else:
            call.leave(before)
        # A guard by hand: a context manager would be a tenth of what a chunk costs.
        try:
            if not self._quiet:
                self._seen(chunk)
            if self._read(call, chunk):
                self._complete = True
        except Exception as error:  # noqa: BLE001
            report(_CHUNK, error)
        return chunk

    def _seen(self, chunk: Any) -> None:
        """What there is to a chunk beside what it says."""
        call = self._call
        if not self._last:
            self._last = now = perf_counter()
            call.attributes.setdefault(RESPONSE_TIME_TO_FIRST_CHUNK, now - call.started)
            self._quiet = call.gaps is None and call.content is None
        elif call.gaps is not None:
            now = perf_counter()
            call.gaps.append(now - self._last)
            self._last = now
        if call.content is not None:
            with _CONTENT:
                call.content.chunk(chunk)

    def _stopped(self, error: BaseException, exhausted: type[Exception]) -> None:
        if not isinstance(error, exhausted):
            self._call.note_error(error)
        self._call.end()

    def abandon(self) -> None:
        """Nobody will read on: end the span, unless it has ended. Marks it when the end was not seen."""
        call = self._call
        if not call.ended:
            if not self._complete:
                call.attributes[STREAM_ABANDONED] = True
            call.end()

    def __del__(self, _exiting: Callable[[], bool] = sys.is_finalizing) -> None:
        # While the interpreter shuts down there is nowhere to send a span, and half of what would end it is gone: what
        # was open then has been ended by `exits`.
        if not _exiting():
            with _ABANDON:
                drop(self)


# wrapt 1 is untyped and wrapt 2 generic; neither form of a typed base suits both.
_ObjectProxy: Any = wrapt.ObjectProxy


class Stream(Proxy):
    """What the two kinds of stream share: closing, by whichever name the stream has for it."""

    __slots__ = ("_tollspan_reading",)

    def __getattr__(self, name: str) -> Any:
        # Only names that are not found on the proxy come here, so `close` and `aclose` exist where the stream's do.
        value = getattr(self._tollspan_subject, name)
        if name in ("close", "aclose") and callable(value):
            return _closing(value, self._tollspan_reading)
        return value


def _iter(self: Any) -> Iterator[Any]:
    subject = self._tollspan_subject
    itself = hasattr(type(subject), "__next__") and subject.__iter__() is subject
    return self if itself else _each(self)


def _each(stream: Any) -> Iterator[Any]:
    # The stream is held, as its own iterator would hold it.
    while True:
        try:
            chunk = stream._tollspan_reading.next()
        except StopIteration:
            return
        yield chunk


def _next(self: Any) -> Any:
    return self._tollspan_reading.next()


def _enter(self: Any) -> Any:
    subject = self._tollspan_subject
    entered = subject.__enter__()
    return self if entered is subject else entered


def _exit(self: Any, *error: Any) -> Any:
    try:
        return self._tollspan_subject.__exit__(*error)
    finally:
        self._tollspan_reading.abandon()


class SyncStream(Stream):
    """Proxy of a synchronous stream."""

    __slots__ = ()
    special = MappingProxyType({"__iter__": _iter, "__next__": _next, "__enter__": _enter, "__exit__": _exit})


def _aiter(self: Any) -> AsyncIterator[Any]:
    subject = self._tollspan_subject
    itself = hasattr(type(subject), "__anext__") and subject.__aiter__() is subject
    return self if itself else _aeach(self)


async def _aeach(stream: Any) -> AsyncIterator[Any]:
    while True:
        try:
            chunk = await stream._tollspan_reading.anext()
        except StopAsyncIteration:
            return
        yield chunk


def _anext(self: Any) -> Any:
    return self._tollspan_reading.anext()


async def _aenter(self: Any) -> Any:
    subject = self._tollspan_subject
    entered = await subject.__aenter__()
    return self if entered is subject else entered


async def _aexit(self: Any, *error: Any) -> Any:
    try:
        return await self._tollspan_subject.__aexit__(*error)
    finally:
        self._tollspan_reading.abandon()


class AsyncStream(Stream):
    """Proxy of an asynchronous stream."""

    __slots__ = ()
    special = MappingProxyType({"__aiter__": _aiter, "__anext__": _anext, "__aenter__": _aenter, "__aexit__": _aexit})


def observe(call: Call, stream: Any, read: ReadChunk, source: Any = None) -> Any:
    """Stand in for a synchronous stream; ``call`` ends with it. The stream is an iterator, or an iterable; ``source``
    is an iterator that is read in its place."""
    if source is None:
        source = stream if hasattr(stream, "__next__") else iter(stream)
    return _standing(SyncStream, stream, Reading(call, source, read))


def observe_async(call: Call, stream: Any, read: ReadChunk, source: Any = None) -> Any:
    """Stand in for an asynchronous stream; ``call`` ends with it."""
    if source is None:
        source = stream if hasattr(stream, "__anext__") else aiter(stream)
    return _standing(AsyncStream, stream, Reading(call, source, read))


def _standing(kind: type[Stream], stream: Any, reading: Reading) -> Any:
    proxy = stand_in(kind, stream)
    object.__setattr__(proxy, "_tollspan_reading", reading)
    return proxy


def abandon(proxy: Any) -> None:
    """Nobody will read on from ``proxy``, made here: end its call, unless the stream has ended."""
    # A stream that is watched in place has it on its iterator: what it has itself, the program sees.
    (proxy if issubclass(type(proxy), Stream) else proxy._iterator)._tollspan_reading.abandon()


def _closing(close: Callable[..., Any], reading: exits.Open) -> Callable[..., Any]:
    def closing(*args: Any, **kwargs: Any) -> Any:
        try:
            result = close(*args, **kwargs)
        except BaseException:
            reading.abandon()
            raise
        if not hasattr(result, "__await__"):
            reading.abandon()
            return result
        return closed(result)

    async def closed(result: Any) -> Any:
        try:
            return await result
        finally:
            reading.abandon()

    return closing
