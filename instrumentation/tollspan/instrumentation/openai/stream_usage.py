"""Asking for the usage of a stream that the program did not ask for, and hiding that it came.

Off unless ``TOLLSPAN_OPENAI_STREAM_USAGE`` is ``true`` when the client is instrumented. In: the arguments of a streamed
call of ``chat.completions`` or ``completions``. Out: the same with ``stream_options.include_usage``, and a stream
without the one chunk that is there because of it. A program that says anything about it itself is left alone, and so
are raw responses, whose lines nobody could hide.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Final

from tollspan.instrumentation import streams
from tollspan.instrumentation.calls import Call
from tollspan.instrumentation.guard import guard

VARIABLE: Final = "TOLLSPAN_OPENAI_STREAM_USAGE"

_HIDDEN: Final = guard("openai.stream_usage")
_RAW: Final = "x-stainless-raw-response"
_OPTIONS: Final = "stream_options"


def wanted() -> bool:
    """Whether the environment asks for it."""
    return os.environ.get(VARIABLE, "").strip().lower() in ("1", "true")


def ask(call: Call, kwargs: dict[str, Any]) -> None:
    """Ask for the usage of a stream, unless the program has a word in it. For `WrapPoint.prepare`."""
    if kwargs.get("stream") is not True:
        return
    given = kwargs.get(_OPTIONS)
    if given is None and _OPTIONS in kwargs:
        return
    body = kwargs.get("extra_body")
    if (isinstance(given, dict) and "include_usage" in given) or (isinstance(body, dict) and _OPTIONS in body):
        return
    if any(str(header).lower() == _RAW for header in kwargs.get("extra_headers") or ()):
        return
    # What was not given may be a sentinel of the library's.
    options = dict(given) if isinstance(given, dict) else {}
    options["include_usage"] = True
    call.state.hides = True
    kwargs[_OPTIONS] = options


def observe(call: Call, stream: Any, read: streams.ReadChunk) -> Any:
    """As `streams.observe`, without the chunk that was asked for here."""
    return streams.SyncStream(stream, call, _Hiding(call, stream, read), read)


def observe_async(call: Call, stream: Any, read: streams.ReadChunk) -> Any:
    """As `streams.observe_async`, without the chunk that was asked for here."""
    return streams.AsyncStream(stream, call, _HidingAsync(call, stream, read), read)


def _only_usage(chunk: Any) -> bool:
    return getattr(chunk, "usage", None) is not None and not getattr(chunk, "choices", True)


class _Hiding:
    """Iterator over a stream's chunks that reads the one with nothing but usage itself."""

    __slots__ = ("_call", "_read", "_stream")

    def __init__(self, call: Call, stream: Any, read: Callable[[Call, Any], Any]) -> None:
        self._call, self._stream, self._read = call, stream, read

    def __next__(self) -> Any:
        while True:
            chunk = self._stream.__next__()
            with _HIDDEN:
                if _only_usage(chunk):
                    self._read(self._call, chunk)
                    continue
            return chunk


class _HidingAsync(_Hiding):
    """The same for an asynchronous stream."""

    __slots__ = ()

    async def __anext__(self) -> Any:
        while True:
            chunk = await self._stream.__anext__()
            with _HIDDEN:
                if _only_usage(chunk):
                    self._read(self._call, chunk)
                    continue
            return chunk
