"""Asking for the usage of a stream that the program did not ask for, and hiding that it came.

Off unless ``TOLLSPAN_STREAM_USAGE`` is ``true`` when the client is instrumented. In: the arguments of a streamed call
of a client whose wire has ``stream_options.include_usage``: OpenAI's chat and completions (Azure's and every compatible
server's too), Together, Hugging Face's chat, LiteLLM over any of these. Out: the same with the option, and a stream
without the one chunk that is there because of it. A program that says anything about it itself is left alone, and so
are raw responses, whose lines nobody could hide. A server that refuses the option refuses the call: that is why it is
off by default.

Anthropic, Google, Bedrock, Mistral, Cohere, Ollama and OpenAI's Responses always tell the usage of a stream; Groq does
in a field of its own (``x_groq``).
"""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Callable
from typing import Any, ClassVar, Final

from tollspan.instrumentation import streams
from tollspan.instrumentation.calls import Call, CallInstrumentor
from tollspan.instrumentation.guard import guard
from tollspan.instrumentation.switches import is_on, text

_log: Final = logging.getLogger(__name__)

VARIABLE: Final = "TOLLSPAN_STREAM_USAGE"
OLD_VARIABLE: Final = "TOLLSPAN_OPENAI_STREAM_USAGE"
"""What it was called when only one client looked at it; read where `VARIABLE` is not set."""

OPTIONS: Final = "stream_options"
INCLUDE: Final = "include_usage"

_HIDDEN: Final = guard("stream_usage.hidden")
_RAW: Final = "x-stainless-raw-response"

Only = Callable[[Any], bool]
"""Whether a chunk carries the usage and nothing else."""


def wanted() -> bool:
    """Whether the environment asks for it."""
    if text(VARIABLE):
        return is_on(VARIABLE)
    if text(OLD_VARIABLE):
        _say_new_name()
    return is_on(OLD_VARIABLE)


@functools.cache
def _say_new_name() -> None:
    _log.warning("tollspan: %s is called %s now; the old name is still read", OLD_VARIABLE, VARIABLE)


def ask(call: Call, kwargs: dict[str, Any]) -> None:
    """Ask for the usage of a stream, unless the program has a word in it. For `WrapPoint.prepare`."""
    if _is_open(kwargs):
        kwargs[OPTIONS] = _with_usage(kwargs.get(OPTIONS))
        call.state.hides = True


def ask_in_body(kwargs: dict[str, Any]) -> bool:
    """The same for a client that has no such parameter, but takes what it does not know as ``extra_body``. Returns
    whether it was asked for."""
    if not _is_open(kwargs):
        return False
    body = kwargs.get("extra_body")
    kwargs["extra_body"] = {**(body if isinstance(body, dict) else {}), OPTIONS: _with_usage(kwargs.get(OPTIONS))}
    return True


def says_nothing(options: Any) -> bool:
    """Whether stream options, or what a library has in the place of none, leave it open if usage is told."""
    return INCLUDE not in options if isinstance(options, dict) else not hasattr(options, INCLUDE)


def _is_open(kwargs: dict[str, Any]) -> bool:
    """Whether a call streams, and leaves it open if usage is told."""
    if kwargs.get("stream") is not True or (OPTIONS in kwargs and kwargs[OPTIONS] is None):
        return False
    body = kwargs.get("extra_body")
    if not says_nothing(kwargs.get(OPTIONS)) or (isinstance(body, dict) and OPTIONS in body):
        return False
    return not any(str(header).lower() == _RAW for header in kwargs.get("extra_headers") or ())


def _with_usage(options: Any) -> dict[str, Any]:
    # What was not given may be a sentinel of the library's.
    return {**(options if isinstance(options, dict) else {}), INCLUDE: True}


def only_usage(chunk: Any) -> bool:
    """Whether a chunk of OpenAI's protocol carries the usage and nothing else."""
    return getattr(chunk, "usage", None) is not None and not getattr(chunk, "choices", True)


def observe(call: Call, stream: Any, read: streams.ReadChunk, only: Only = only_usage) -> Any:
    """As `streams.observe`, without the chunk that was asked for here."""
    return streams.observe(call, stream, read, _Hiding(call, stream, read, only))


def observe_async(call: Call, stream: Any, read: streams.ReadChunk, only: Only = only_usage) -> Any:
    """As `streams.observe_async`, without the chunk that was asked for here."""
    return streams.observe_async(call, stream, read, _HidingAsync(call, stream, read, only))


class AskingInstrumentor(CallInstrumentor):
    """Instrumentor of a client whose streams tell their usage when they are asked to.

    Attributes:
        streams: ends of the targets of the calls that give them.
        prepare: asks, as `WrapPoint.prepare` does.
    """

    streams: ClassVar[tuple[str, ...]]
    prepare: Callable[[Call, dict[str, Any]], None] = staticmethod(ask)

    def _instrument(self, **kwargs: Any) -> None:
        if wanted():
            self.points = tuple(  # type: ignore[misc]
                dataclasses.replace(point, prepare=self.prepare) if point.target.endswith(self.streams) else point
                for point in type(self).points
            )
        super()._instrument(**kwargs)

    def _uninstrument(self, **kwargs: Any) -> None:
        super()._uninstrument(**kwargs)
        self.__dict__.pop("points", None)


class _Hiding:
    """Iterator over a stream's chunks that reads the one with nothing but usage itself."""

    __slots__ = ("_call", "_only", "_read", "_stream")

    def __init__(self, call: Call, stream: Any, read: streams.ReadChunk, only: Only) -> None:
        self._call, self._stream, self._read, self._only = call, stream, read, only

    def _hides(self, chunk: Any) -> bool:
        """Whether a chunk is there because of us; it is hidden too where it cannot be read."""
        hidden = False
        with _HIDDEN:
            hidden = self._only(chunk)
            if hidden:
                self._read(self._call, chunk)
        return hidden

    def __next__(self) -> Any:
        while True:
            chunk = self._stream.__next__()
            if not self._hides(chunk):
                return chunk


class _HidingAsync(_Hiding):
    """The same for an asynchronous stream."""

    __slots__ = ()

    async def __anext__(self) -> Any:
        while True:
            chunk = await self._stream.__anext__()
            if not self._hides(chunk):
                return chunk
