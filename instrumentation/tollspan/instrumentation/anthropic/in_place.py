"""Streams of version 0, which no proxy can stand in for: their class takes nothing but its own objects for instances.

In: an open call and a stream. Out: the very same stream, whose iterator is watched; everything else about it, its type
before all, is as it was. Newer versions have plain classes, and proxies (`tollspan.instrumentation.streams`).
"""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

from tollspan.instrumentation.calls import Call
from tollspan.instrumentation.streams import ReadChunk, Reading


def needed(stream: type) -> bool:
    """Whether ``isinstance(proxy, stream)`` would not hold."""
    return type(stream).__instancecheck__ is not type.__instancecheck__


class _Watched:
    """Iterator in the place of a stream's own, synchronous or asynchronous as that is."""

    __slots__ = ("_tollspan_reading",)

    def __init__(self, reading: Reading) -> None:
        self._tollspan_reading = reading  # where `streams.abandon` looks for it

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        return self._tollspan_reading.next()

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    def __anext__(self) -> Any:
        return self._tollspan_reading.anext()


def watch(call: Call, stream: Any, read: ReadChunk) -> Any:
    """Watch ``stream``; ``call`` ends with it. Returns the stream."""
    reading = Reading(call, stream._iterator, read)
    stream._iterator = _Watched(reading)
    stream.close = _closing(stream.close, reading)
    return stream


def _closing(close: Callable[..., Any], reading: Reading) -> Callable[..., Any]:
    @functools.wraps(close)
    def closing() -> Any:
        try:
            result = close()
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
