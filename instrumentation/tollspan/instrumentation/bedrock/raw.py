"""What bodies read from, where the program reaches for it: urllib3's and aiohttp's responses, and aiohttp's reader.

In: such an object and the `Tap` of its body. Out: a proxy of it whose reads the tap sees. It has the methods that the
object has, and no others; what reads through other methods is given the proxy as its self.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from types import MappingProxyType, MethodType
from typing import Any, Final

from tollspan.instrumentation.bedrock.taps import BODY, Tap, Tapped, ends, filling, own, reading, reading_async, tapped
from tollspan.instrumentation.streams import _closing

_ENDING: Final[dict[str, Callable[[Any, tuple[Any, ...], dict[str, Any]], bool]]] = {
    "read": lambda data, args, kwargs: ends(data, args, kwargs),
    "read1": lambda data, args, kwargs: not data and args != (0,),
    "readline": lambda data, args, kwargs: not data and args != (0,),
    "readlines": lambda data, args, kwargs: not args or args[0] in (None, -1),
}
"""Methods of a raw stream that give bytes → whether ``method(*args, **kwargs)``, which gave ``data``, was the last."""


def _iter(self: Any) -> Iterator[Any]:
    subject = self._tollspan_subject
    if hasattr(subject, "stream"):
        return type(subject).__iter__(self)  # type: ignore[no-any-return]
    return iter(self.readline, b"")


def _next(self: Any) -> Any:
    line = self.readline()
    if not line:
        raise StopIteration
    return line


def _enter(self: Any) -> Any:
    subject = self._tollspan_subject
    entered = subject.__enter__()
    return self if entered is subject else entered


def leave(self: Any, *error: Any) -> Any:
    """``__exit__`` of what is tapped."""
    try:
        return self._tollspan_subject.__exit__(*error)
    finally:
        self._tollspan_tap.abandon()


class SyncRaw(Tapped):
    """Stands in for what a ``StreamingBody`` reads from (urllib3's ``HTTPResponse``), which ``with body as raw``
    gives."""

    __slots__ = ()
    special = MappingProxyType({"__iter__": _iter, "__next__": _next, "__enter__": _enter, "__exit__": leave})

    def __getattr__(self, name: str) -> Any:
        raw, tap = self._tollspan_subject, self._tollspan_tap
        # These read through the others: they are given the proxy as their self.
        if name == "data" and hasattr(type(raw), name):
            return type(raw).data.__get__(self)
        if name in ("stream", "json") and hasattr(type(raw), name):
            return MethodType(getattr(type(raw), name), self)
        value = getattr(raw, name)
        if name in _ENDING:
            return reading(value, tap, _ENDING[name])
        if name == "readinto":
            return filling(value, tap)
        if name == "read_chunked":
            return _giving(value, tap)
        return _closing(value, tap) if name == "close" else value


class AsyncRaw(Tapped):
    """Stands in for what an asynchronous body reads from: aiohttp's ``ClientResponse``, whose ``read`` gives all."""

    __slots__ = ()

    def __getattr__(self, name: str) -> Any:
        raw, tap = self._tollspan_subject, self._tollspan_tap
        if name in ("text", "json") and hasattr(type(raw), name):
            return MethodType(getattr(type(raw), name), self)
        value = getattr(raw, name)
        if name == "content" and hasattr(value, "readany"):
            return tapped(AsyncContent, value, tap)
        if name == "read":
            return reading_async(value, tap, lambda *_: True)
        return _closing(value, tap) if name == "close" else value


_PIECES: Final = frozenset({"read", "readany", "readchunk", "readexactly", "readline", "readuntil"})
"""Methods of aiohttp's reader that wait for bytes."""
_ITERATORS: Final = frozenset({"iter_any", "iter_chunked", "iter_chunks"})
"""Those that read on through them."""


class AsyncContent(Tapped):
    """Stands in for aiohttp's ``StreamReader``."""

    __slots__ = ()
    special = MappingProxyType({"__aiter__": own("__aiter__")})

    def __getattr__(self, name: str) -> Any:
        content, tap = self._tollspan_subject, self._tollspan_tap
        value = getattr(content, name)
        if name in _PIECES:
            return reading_async(value, tap, lambda *_: content.at_eof())
        if name in _ITERATORS:
            return MethodType(getattr(type(content), name), self)
        if name == "read_nowait":
            return reading(value, tap, lambda *_: content.at_eof())
        return value


def _giving(chunks: Callable[..., Any], tap: Tap) -> Callable[..., Any]:
    @functools.wraps(chunks)
    def giving(*args: Any, **kwargs: Any) -> Iterator[Any]:
        try:
            for chunk in chunks(*args, **kwargs):
                with BODY:
                    tap.took(chunk, False)
                yield chunk
        except GeneratorExit:
            raise
        except BaseException as error:
            tap.failed(error)
            raise
        with BODY:
            tap.took(b"", True)

    return giving
