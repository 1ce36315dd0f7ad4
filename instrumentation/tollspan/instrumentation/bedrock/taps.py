"""Looking at the bytes of a body as they go by.

In: what the program reads of the body of ``InvokeModel``, in whichever way. Out: the call ends with the last byte, with
what the body told; where that was not read to its end, with what the headers count.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any, Final

from tollspan.instrumentation import exits
from tollspan.instrumentation.bedrock import readers
from tollspan.instrumentation.calls import Call
from tollspan.instrumentation.exits import drop
from tollspan.instrumentation.guard import guard
from tollspan.instrumentation.proxies import Proxy, stand_in
from tollspan.pricing.attributes import STREAM_ABANDONED

BODY: Final = guard("bedrock.body")
_CONTENT: Final = guard("content.response")
_HEADERS: Final = guard("bedrock.headers")
_DROPPED: Final = guard("bedrock.dropped")

Last = Callable[[Any, tuple[Any, ...], dict[str, Any]], bool]
"""``(data, args, kwargs)``: whether a read with these arguments, which gave ``data``, was the last."""

LONGEST: Final = 32 * 2**20
"""Bytes of a body that are kept until its end. What is longer is told by its headers alone."""


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

    def filled(self, buffer: Any, size: int) -> None:
        """The program had ``size`` bytes written to ``buffer``."""
        self.took(memoryview(buffer).cast("B")[:size], not size and len(buffer) > 0)

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
        with BODY:
            data = b"".join(self._pieces) if self._size <= LONGEST else b""
            self._pieces.clear()
            if data and call.content is not None:
                with _CONTENT:
                    call.content.read(data)
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


def ends(data: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether ``read(*args, **kwargs)``, which gave ``data``, was the last."""
    amount = args[0] if args else kwargs.get("amt")
    return amount is None or amount < 0 or (amount > 0 and not data)


# -- proxies of what is read -------------------------------------------------------------------------------------------


class Tapped(Proxy):
    """Base of stand-ins whose reads a tap sees. Made by `tapped`."""

    __slots__ = ("_tollspan_tap",)


def tapped(kind: type[Tapped], subject: Any, tap: Tap) -> Any:
    """A stand-in of ``kind`` for ``subject``."""
    proxy = stand_in(kind, subject)
    object.__setattr__(proxy, "_tollspan_tap", tap)
    return proxy


def own(name: str) -> Callable[..., Any]:
    """The object's own special method, which reads through us."""

    def method(self: Any, *args: Any) -> Any:
        return getattr(type(self._tollspan_subject), name)(self, *args)

    return method


def reading(read: Callable[..., Any], tap: Tap, last: Last) -> Callable[..., Any]:
    """``read``, which gives bytes or lines of them."""

    @functools.wraps(read)
    def read_on(*args: Any, **kwargs: Any) -> Any:
        try:
            data = read(*args, **kwargs)
        except BaseException as error:
            tap.failed(error)
            raise
        with BODY:
            tap.took(b"".join(data) if isinstance(data, list) else data, last(data, args, kwargs))
        return data

    return read_on


def reading_async(read: Callable[..., Any], tap: Tap, last: Last) -> Callable[..., Any]:
    """``read``, which is to be awaited; bytes may come in a tuple, with word of whether they are a whole chunk."""

    @functools.wraps(read)
    async def read_on(*args: Any, **kwargs: Any) -> Any:
        try:
            data = await read(*args, **kwargs)
        except BaseException as error:
            tap.failed(error)
            raise
        with BODY:
            tap.took(data[0] if isinstance(data, tuple) else data, last(data, args, kwargs))
        return data

    return read_on


def filling(readinto: Callable[..., Any], tap: Tap) -> Callable[..., Any]:
    """``readinto``, which gives how many bytes it wrote."""

    @functools.wraps(readinto)
    def fill(buffer: Any) -> Any:
        try:
            size = readinto(buffer)
        except BaseException as error:
            tap.failed(error)
            raise
        with BODY:
            tap.filled(buffer, size)
        return size

    return fill


def filling_async(readinto: Callable[..., Any], tap: Tap) -> Callable[..., Any]:
    """``readinto``, which is to be awaited."""

    @functools.wraps(readinto)
    async def fill(buffer: Any) -> Any:
        try:
            size = await readinto(buffer)
        except BaseException as error:
            tap.failed(error)
            raise
        with BODY:
            tap.filled(buffer, size)
        return size

    return fill
