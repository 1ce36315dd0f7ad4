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
from typing import Any, Final

import wrapt

from tollspan.instrumentation import exits
from tollspan.instrumentation.calls import Call
from tollspan.instrumentation.exits import drop
from tollspan.instrumentation.guard import guard, report
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

    __slots__ = ("__weakref__", "_call", "_complete", "_last", "_read", "_source")

    def __init__(self, call: Call, source: Any, read: ReadChunk) -> None:
        self._call = call
        self._source = source
        self._read = read
        self._complete = False
        self._last = 0.0
        wanted = call.point.wanted
        if wanted is not None and wanted():
            call.gaps = []
        exits.remember(call, self)

    def next(self) -> Any:
        """Next chunk of a synchronous stream, as the stream gives it; raises what the stream raises."""
        call = self._call
        if call.ended:
            return self._source.__next__()
        before = call.enter()
        try:
            chunk = self._source.__next__()
        except BaseException as error:
            call.leave(before)
            self._stopped(error, StopIteration)
            raise
        call.leave(before)
        # A guard by hand: a context manager would be a tenth of what a chunk costs.
        try:
            self._seen(chunk)
        except Exception as error:  # noqa: BLE001
            report(_CHUNK, error)
        return chunk

    async def anext(self) -> Any:
        """Next chunk of an asynchronous stream."""
        call = self._call
        if call.ended:
            return await self._source.__anext__()
        before = call.enter()
        try:
            chunk = await self._source.__anext__()
        except BaseException as error:
            call.leave(before)
            self._stopped(error, StopAsyncIteration)
            raise
        call.leave(before)
        # A guard by hand: a context manager would be a tenth of what a chunk costs.
        try:
            self._seen(chunk)
        except Exception as error:  # noqa: BLE001
            report(_CHUNK, error)
        return chunk

    def _seen(self, chunk: Any) -> None:
        call = self._call
        if not self._last:
            self._last = now = perf_counter()
            call.attributes.setdefault(RESPONSE_TIME_TO_FIRST_CHUNK, now - call.started)
        elif call.gaps is not None:
            now = perf_counter()
            call.gaps.append(now - self._last)
            self._last = now
        if call.content is not None:
            with _CONTENT:
                call.content.chunk(chunk)
        if self._read(call, chunk):
            self._complete = True

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


class _StreamProxy(_ObjectProxy):  # type: ignore[misc]
    """What the two kinds of stream share: closing, by whichever name the stream has for it."""

    _self_reading: Reading

    def __init__(self, stream: Any, call: Call, source: Any, read: ReadChunk) -> None:
        super().__init__(stream)
        self._self_reading = Reading(call, source, read)

    def __getattr__(self, name: str) -> Any:
        # Only names that are not found on the proxy come here, so `close` and `aclose` exist where the stream's do.
        value = getattr(self.__wrapped__, name)
        if name in ("close", "aclose") and callable(value):
            return _closing(value, self._self_reading)
        return value


class SyncStream(_StreamProxy):
    """Proxy of a synchronous stream."""

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        return self._self_reading.next()

    def __enter__(self) -> Any:
        entered = self.__wrapped__.__enter__()
        return self if entered is self.__wrapped__ else entered

    def __exit__(self, *error: Any) -> Any:
        try:
            return self.__wrapped__.__exit__(*error)
        finally:
            self._self_reading.abandon()


class AsyncStream(_StreamProxy):
    """Proxy of an asynchronous stream."""

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    def __anext__(self) -> Any:
        return self._self_reading.anext()

    async def __aenter__(self) -> Any:
        entered = await self.__wrapped__.__aenter__()
        return self if entered is self.__wrapped__ else entered

    async def __aexit__(self, *error: Any) -> Any:
        try:
            return await self.__wrapped__.__aexit__(*error)
        finally:
            self._self_reading.abandon()


def observe(call: Call, stream: Any, read: ReadChunk) -> Any:
    """Stand in for a synchronous stream; ``call`` ends with it. The stream is an iterator, or an iterable."""
    return SyncStream(stream, call, stream if hasattr(stream, "__next__") else iter(stream), read)


def observe_async(call: Call, stream: Any, read: ReadChunk) -> Any:
    """Stand in for an asynchronous stream; ``call`` ends with it."""
    return AsyncStream(stream, call, stream if hasattr(stream, "__anext__") else aiter(stream), read)


def abandon(proxy: Any) -> None:
    """Nobody will read on from ``proxy``, made here: end its call, unless the stream has ended."""
    proxy._self_reading.abandon()


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
