"""Raw responses of the OpenAI client: ``with_raw_response`` and ``with_streaming_response``.

In: a response object that the user parses later, or never. Out: the same object, and the call's usage all the same.
Where the body is in memory when the call returns, it is read there and then. Where it is not, the call stays open until
``parse()``, until the response is closed, until nobody holds it any more, or until the interpreter exits; a parsed
stream is watched as any other.

For that ``parse`` and ``close`` of the client's response classes are wrapped. The same place also saves the usage of a
call that the provider billed and the client then failed to parse (a structured output cut short, for instance).
"""

from __future__ import annotations

import functools
import sys
import weakref
from collections.abc import Callable
from typing import Any, Final

from tollspan.instrumentation import exits
from tollspan.instrumentation.calls import Call, open_call
from tollspan.instrumentation.guard import guard
from tollspan.instrumentation.openai.readers import State
from tollspan.instrumentation.streams import abandon
from tollspan.instrumentation.wrapping import Patches

_PARSED: Final = guard("openai.raw.parsed")
_SALVAGE: Final = guard("openai.raw.salvage")
_DROPPED: Final = guard("openai.raw.dropped")

_held: Final[weakref.WeakKeyDictionary[Any, Held]] = weakref.WeakKeyDictionary()
"""Responses whose call is still open. Not kept on the responses: they are the user's objects."""

_LEGACY: Final = "openai._legacy_response:LegacyAPIResponse"
_SYNC: Final = "openai._response:APIResponse"
_ASYNC: Final = "openai._response:AsyncAPIResponse"


class Held:
    """A call that waits for its raw response to be parsed, closed or dropped."""

    __slots__ = ("__weakref__", "_call", "_http", "_proxies")

    def __init__(self, call: Call, http_response: Any) -> None:
        self._call: Call | None = call
        self._http = http_response
        # `parse()` gives the same object each time, so the proxy of a stream has to be kept too.
        self._proxies: list[tuple[Any, Any]] = []
        exits.remember(call, self)

    def parsed(self, result: Any) -> Any:
        """What the user gets for the parsed ``result``."""
        for stream, proxy in self._proxies:
            if stream is result:
                return proxy
        call = self._call
        if call is None:
            return result
        self._call = None
        with _PARSED:
            substitute = call.point.outlives(call, result) if call.point.outlives is not None else None
            if substitute is not None:
                self._proxies.append((result, substitute))
                return substitute
            if call.point.response is not None:
                call.point.response(call, result)
        call.end()
        return result

    def failed(self, error: BaseException) -> None:
        """Parsing raised."""
        call, self._call = self._call, None
        if call is not None:
            _read_body(call, self._http)
            call.note_error(error)
            call.end()

    def closed(self) -> None:
        """The response was closed, and with it what was parsed of it."""
        for _, proxy in self._proxies:
            abandon(proxy)
        self.abandon()

    def abandon(self) -> None:
        """Nobody will parse the response: take what its body says, if it was read. A parsed stream may live on."""
        call, self._call = self._call, None
        if call is not None:
            _read_body(call, self._http)
            call.end()

    def __del__(self, _exiting: Callable[[], bool] = sys.is_finalizing) -> None:
        # While the interpreter shuts down there is nowhere to send a span; `exits` was there before.
        if not _exiting():
            with _DROPPED:
                self.abandon()


def read(call: Call, response: Any) -> Any:
    """End ``call`` with what the body of a raw response says, which is in memory. Returns the response."""
    _read_body(call, response.http_response)
    call.end()
    return response


def hold(call: Call, response: Any) -> Any:
    """Keep ``call`` open for a raw response whose body has not been read. Returns the response."""
    _held[response] = Held(call, response.http_response)
    return response


def patch(patches: Patches) -> None:
    """Wrap ``parse`` and ``close`` of the client's response classes."""
    patches.add(f"{_LEGACY}.parse", _parse)
    patches.add(f"{_SYNC}.parse", _parse)
    patches.add(f"{_ASYNC}.parse", _parse_async)
    patches.add(f"{_SYNC}.close", _close)
    patches.add(f"{_ASYNC}.close", _close_async)


def _parse(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def parse(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            result = original(self, *args, **kwargs)
        except BaseException as error:
            _failed(self, error)
            raise
        return _given(self, result)

    return parse


def _parse_async(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    async def parse(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            result = await original(self, *args, **kwargs)
        except BaseException as error:
            _failed(self, error)
            raise
        return _given(self, result)

    return parse


def _close(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def close(self: Any) -> Any:
        try:
            return original(self)
        finally:
            _closed(self)

    return close


def _close_async(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    async def close(self: Any) -> Any:
        try:
            return await original(self)
        finally:
            _closed(self)

    return close


def _given(response: Any, result: Any) -> Any:
    # Nearly always nothing is held: every ordinary call parses its response through here.
    held = _held.get(response) if _held else None
    return result if held is None else held.parsed(result)


def _failed(response: Any, error: BaseException) -> None:
    with _SALVAGE:
        held = _held.get(response) if _held else None
        if held is not None:
            held.failed(error)
        else:
            call = open_call()
            if call is not None and call.recording and isinstance(call.state, State):
                _read_body(call, response.http_response)


def _closed(response: Any) -> None:
    with _DROPPED:
        held = _held.get(response) if _held else None
        if held is not None:
            held.closed()


def _read_body(call: Call, http_response: Any) -> None:
    """Read the call's response from an HTTP body, if it is there and is what it should be."""
    try:
        body = http_response.json()
    except Exception:  # noqa: BLE001 (unread, streamed, or not JSON: there is nothing to read, and nothing wrong)
        return
    with _PARSED:
        if isinstance(body, dict) and call.point.response is not None:
            call.point.response(call, body)
