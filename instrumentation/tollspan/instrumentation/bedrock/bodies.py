"""Answers that outlive their call: bodies of ``InvokeModel``, and event streams.

In: an open `Call` and botocore's response, a dict. Out: the same dict, in which the body or the stream is a proxy that
is an instance of the same class. Nothing is read ahead, and nothing twice: what the program reads is looked at on its
way. The call ends with the last byte or event, with closing, with dropping, or at the interpreter's exit.

botocore's event streams are no iterators: each iteration is a generator of its own, and one goes on where another
stopped. So are those of the proxies.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from types import MethodType
from typing import Any, Final

from tollspan.instrumentation import exits
from tollspan.instrumentation.bedrock import readers
from tollspan.instrumentation.bedrock.requests import State
from tollspan.instrumentation.calls import Call
from tollspan.instrumentation.exits import drop
from tollspan.instrumentation.guard import guard
from tollspan.instrumentation.streams import ReadChunk, _closing, _ObjectProxy, _StreamProxy
from tollspan.pricing.attributes import STREAM_ABANDONED

_BODY: Final = guard("bedrock.body")
_HEADERS: Final = guard("bedrock.headers")
_DROPPED: Final = guard("bedrock.dropped")

_LIBRARIES: Final = frozenset({"botocore", "aiobotocore"})
LONGEST: Final = 32 * 2**20
"""Bytes of a body that are kept until its end. What is longer is told by its headers alone."""

STREAMS: Final[dict[str, tuple[str, ReadChunk]]] = {
    "ConverseStream": ("stream", readers.read_event),
    "InvokeModelWithResponseStream": ("body", readers.read_chunk),
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
        kind = AsyncEvents if hasattr(type(stream), "__aiter__") else SyncEvents
        result[field] = kind(stream, call, read)
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
    result["body"] = (AsyncBody if hasattr(type(body), "__aiter__") else SyncBody)(body, tap)
    return result


def _of_library(value: Any) -> bool:
    # By where its class comes from: aiobotocore 2 has classes that share no base with botocore's.
    return type(value).__module__.partition(".")[0] in _LIBRARIES


# -- event streams -----------------------------------------------------------------------------------------------------


class _Events:
    """The iteration that is being read: what `Reading` takes events from."""

    __slots__ = ("current",)

    current: Any

    def __next__(self) -> Any:
        return self.current.__next__()

    def __anext__(self) -> Any:
        return self.current.__anext__()


class _EventsProxy(_StreamProxy):
    _self_events: _Events

    def __init__(self, stream: Any, call: Call, read: ReadChunk) -> None:
        events = _Events()
        super().__init__(stream, call, events, read)
        self._self_events = events


class SyncEvents(_EventsProxy):
    """Proxy of botocore's ``EventStream``."""

    def __iter__(self) -> Iterator[Any]:
        reading, events, source = self._self_reading, self._self_events, iter(self.__wrapped__)
        while True:
            events.current = source
            try:
                event = reading.next()
            except StopIteration:
                return
            yield event


class AsyncEvents(_EventsProxy):
    """Proxy of aiobotocore's ``AioEventStream``, whose ``__anext__`` is the generator."""

    def __aiter__(self) -> AsyncIterator[Any]:
        return self.__anext__()

    async def __anext__(self) -> AsyncIterator[Any]:  # type: ignore[override, misc, unused-ignore]
        reading, events, source = self._self_reading, self._self_events, aiter(self.__wrapped__)
        while True:
            events.current = source
            try:
                event = await reading.anext()
            except StopAsyncIteration:
                return
            yield event


# -- bodies ------------------------------------------------------------------------------------------------------------


class Tap:
    """Looks at the bytes of one body as they go by, and ends the call with them.

    An object beside the proxy, because its going away, with the proxy or with a generator that reads for it, tells a
    dropped body.
    """

    __slots__ = ("__weakref__", "_call", "_counted", "_expected", "_pieces", "_size", "_whole")

    def __init__(self, call: Call, counted: dict[str, int], expected: int | None) -> None:
        self._call = call
        self._counted = counted
        self._expected = expected
        self._pieces: list[bytes] = []
        self._size = 0
        self._whole = False
        exits.remember(call, self)

    def took(self, data: Any, last: bool) -> None:
        """The program read ``data``; ``last`` when nothing is left."""
        if self._call.ended:
            return
        self._size += len(data)
        if self._size <= LONGEST:
            self._pieces.append(bytes(data))
        else:
            self._pieces.clear()
        if last or self._size == self._expected:
            self._whole = True
            self.abandon()

    def failed(self, error: BaseException) -> None:
        """Reading raised: the headers tell what there is to tell."""
        call = self._call
        if not call.ended:
            with _HEADERS:
                readers.put_counted(call, self._counted)
            call.note_error(error)
            call.end()

    def abandon(self) -> None:
        """Nobody will read on: end the call with what was read, unless it has ended."""
        call = self._call
        if call.ended:
            return
        told = False
        with _BODY:
            data = b"".join(self._pieces) if self._size <= LONGEST else b""
            self._pieces.clear()
            told = bool(data) and readers.read_body(call, data)
        if not told:
            with _HEADERS:
                readers.put_counted(call, self._counted)
                if not self._counted and not self._whole:
                    call.attributes[STREAM_ABANDONED] = True
        call.end()

    def __del__(self, _exiting: Callable[[], bool] = sys.is_finalizing) -> None:
        # While the interpreter shuts down there is nowhere to send a span; `exits` was there before.
        if not _exiting():
            with _DROPPED:
                drop(self)


_READING_ON: Final = frozenset({"iter_lines", "iter_chunks", "next", "anext"})
"""Methods of a body that read through its ``read``: they are given the proxy as their self."""


class _BodyProxy(_ObjectProxy):  # type: ignore[misc]
    _self_tap: Tap

    def __init__(self, body: Any, tap: Tap) -> None:
        super().__init__(body)
        self._self_tap = tap

    def __getattr__(self, name: str) -> Any:
        # Only names that are not found on the proxy come here.
        value = getattr(self.__wrapped__, name)
        if name in ("close", "aclose"):
            return _closing(value, self._self_tap)
        if name in _READING_ON:
            return MethodType(getattr(type(self.__wrapped__), name), self)
        return value


class SyncBody(_BodyProxy):
    """Proxy of botocore's ``StreamingBody``."""

    def read(self, *args: Any, **kwargs: Any) -> Any:
        tap = self._self_tap
        try:
            data = self.__wrapped__.read(*args, **kwargs)
        except BaseException as error:
            tap.failed(error)
            raise
        with _BODY:
            tap.took(data, _ends(data, args, kwargs))
        return data

    def readinto(self, buffer: Any) -> Any:
        tap = self._self_tap
        try:
            size = self.__wrapped__.readinto(buffer)
        except BaseException as error:
            tap.failed(error)
            raise
        with _BODY:
            tap.took(memoryview(buffer).cast("B")[:size], not size and len(buffer) > 0)
        return size

    def readlines(self) -> Any:
        tap = self._self_tap
        try:
            lines = self.__wrapped__.readlines()
        except BaseException as error:
            tap.failed(error)
            raise
        with _BODY:
            tap.took(b"".join(lines), True)
        return lines

    def __iter__(self) -> Iterator[Any]:
        return type(self.__wrapped__).__iter__(self)  # type: ignore[no-any-return]

    def __next__(self) -> Any:
        return type(self.__wrapped__).__next__(self)

    def __enter__(self) -> Any:
        # botocore gives what it reads from, not the body.
        entered = self.__wrapped__.__enter__()
        return self if entered is self.__wrapped__ else SyncRaw(entered, self._self_tap)

    def __exit__(self, *error: Any) -> Any:
        try:
            return self.__wrapped__.__exit__(*error)
        finally:
            self._self_tap.abandon()


class AsyncBody(_BodyProxy):
    """Proxy of aiobotocore's bodies."""

    async def read(self, *args: Any, **kwargs: Any) -> Any:
        tap = self._self_tap
        try:
            data = await self.__wrapped__.read(*args, **kwargs)
        except BaseException as error:
            tap.failed(error)
            raise
        with _BODY:
            tap.took(data, _ends(data, args, kwargs))
        return data

    async def readinto(self, buffer: Any) -> Any:
        tap = self._self_tap
        try:
            size = await self.__wrapped__.readinto(buffer)
        except BaseException as error:
            tap.failed(error)
            raise
        with _BODY:
            tap.took(memoryview(buffer).cast("B")[:size], not size and len(buffer) > 0)
        return size

    async def readlines(self) -> Any:
        return await type(self.__wrapped__).readlines(self)

    def __aiter__(self) -> AsyncIterator[Any]:
        return type(self.__wrapped__).__aiter__(self)  # type: ignore[no-any-return]

    def __anext__(self) -> Any:
        return type(self.__wrapped__).__anext__(self)

    async def __aenter__(self) -> Any:
        # aiobotocore 2 gives what it reads from.
        entered = await self.__wrapped__.__aenter__()
        return self if entered is self.__wrapped__ else AsyncRaw(entered, self._self_tap)

    async def __aexit__(self, *error: Any) -> Any:
        try:
            return await self.__wrapped__.__aexit__(*error)
        finally:
            self._self_tap.abandon()


_ENDING: Final[dict[str, Callable[[Any, tuple[Any, ...], dict[str, Any]], bool]]] = {
    "read": lambda data, args, kwargs: _ends(data, args, kwargs),
    "read1": lambda data, args, kwargs: not data and args != (0,),
    "readline": lambda data, args, kwargs: not data and args != (0,),
    "readlines": lambda data, args, kwargs: not args or args[0] in (None, -1),
}
"""Methods of a raw stream that give bytes → whether ``method(*args, **kwargs)``, which gave ``data``, was the last."""


class SyncRaw(_ObjectProxy):  # type: ignore[misc]
    """Proxy of what a ``StreamingBody`` reads from (urllib3's ``HTTPResponse``), which ``with body as raw`` gives.

    It has the methods that the stream has, and no others.
    """

    _self_tap: Tap

    def __init__(self, raw: Any, tap: Tap) -> None:
        super().__init__(raw)
        self._self_tap = tap

    def __getattr__(self, name: str) -> Any:
        raw = self.__wrapped__
        value = getattr(raw, name)
        if name in _ENDING:
            return _reading(value, self._self_tap, _ENDING[name])
        if name == "readinto":
            return _filling(value, self._self_tap)
        if name == "read_chunked":
            return _giving(value, self._self_tap)
        if name == "close":
            return _closing(value, self._self_tap)
        # These read through the others: they are given the proxy as their self.
        if name in ("stream", "json") and hasattr(type(raw), name):
            return MethodType(getattr(type(raw), name), self)
        return value

    @property
    def data(self) -> Any:
        return type(self.__wrapped__).data.__get__(self)

    def __iter__(self) -> Iterator[Any]:
        if hasattr(self.__wrapped__, "stream"):
            return type(self.__wrapped__).__iter__(self)  # type: ignore[no-any-return]
        return iter(self.readline, b"")

    def __next__(self) -> Any:
        line = self.readline()
        if not line:
            raise StopIteration
        return line

    def __enter__(self) -> Any:
        entered = self.__wrapped__.__enter__()
        return self if entered is self.__wrapped__ else entered

    def __exit__(self, *error: Any) -> Any:
        try:
            return self.__wrapped__.__exit__(*error)
        finally:
            self._self_tap.abandon()


class AsyncRaw(_ObjectProxy):  # type: ignore[misc]
    """Proxy of what a body of aiobotocore 2 reads from (aiohttp's ``ClientResponse``), whose ``read`` gives all."""

    _self_tap: Tap

    def __init__(self, raw: Any, tap: Tap) -> None:
        super().__init__(raw)
        self._self_tap = tap

    def __getattr__(self, name: str) -> Any:
        value = getattr(self.__wrapped__, name)
        if name in ("text", "json"):
            return MethodType(getattr(type(self.__wrapped__), name), self)
        return _closing(value, self._self_tap) if name == "close" else value

    async def read(self, *args: Any, **kwargs: Any) -> Any:
        tap = self._self_tap
        try:
            data = await self.__wrapped__.read(*args, **kwargs)
        except BaseException as error:
            tap.failed(error)
            raise
        with _BODY:
            tap.took(data, True)
        return data


def _reading(
    read: Callable[..., Any], tap: Tap, ends: Callable[[Any, tuple[Any, ...], dict[str, Any]], bool]
) -> Callable[..., Any]:
    @functools.wraps(read)
    def reading(*args: Any, **kwargs: Any) -> Any:
        try:
            data = read(*args, **kwargs)
        except BaseException as error:
            tap.failed(error)
            raise
        with _BODY:
            tap.took(b"".join(data) if isinstance(data, list) else data, ends(data, args, kwargs))
        return data

    return reading


def _filling(readinto: Callable[..., Any], tap: Tap) -> Callable[..., Any]:
    @functools.wraps(readinto)
    def filling(buffer: Any) -> Any:
        try:
            size = readinto(buffer)
        except BaseException as error:
            tap.failed(error)
            raise
        with _BODY:
            tap.took(memoryview(buffer).cast("B")[:size], not size and len(buffer) > 0)
        return size

    return filling


def _giving(chunks: Callable[..., Any], tap: Tap) -> Callable[..., Any]:
    @functools.wraps(chunks)
    def giving(*args: Any, **kwargs: Any) -> Iterator[Any]:
        try:
            for chunk in chunks(*args, **kwargs):
                with _BODY:
                    tap.took(chunk, False)
                yield chunk
        except GeneratorExit:
            raise
        except BaseException as error:
            tap.failed(error)
            raise
        with _BODY:
            tap.took(b"", True)

    return giving


def _ends(data: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether ``read(*args, **kwargs)``, which gave ``data``, was the last."""
    amount = args[0] if args else kwargs.get("amt")
    return amount is None or amount < 0 or (amount > 0 and not data)
