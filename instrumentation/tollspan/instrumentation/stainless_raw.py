"""Raw responses of the clients made by Stainless: ``with_raw_response`` and ``with_streaming_response``.

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
from tollspan.instrumentation.exits import drop
from tollspan.instrumentation.guard import guard
from tollspan.instrumentation.streams import abandon
from tollspan.instrumentation.wrapping import Patches

__all__ = ["RawResponses"]


class Held:
    """A call that waits for its raw response to be parsed, closed or dropped."""

    __slots__ = ("__weakref__", "_call", "_http", "_proxies", "_raw")

    def __init__(self, raw: RawResponses, call: Call, http_response: Any) -> None:
        self._raw = raw
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
        with self._raw.reading:
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
            self._raw.read_body(call, self._http)
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
            self._raw.read_body(call, self._http)
            call.end()

    def __del__(self, _exiting: Callable[[], bool] = sys.is_finalizing) -> None:
        # While the interpreter shuts down there is nowhere to send a span; `exits` was there before.
        if not _exiting():
            with self._raw.dropping:
                drop(self)


class RawResponses:
    """Raw responses of a client, or of several that are read alike.

    Args:
        library: the library whose readers they are; what faults are counted by.
        state: class of `Call.state` of its calls. No other call is told what a response of it says that could not be
            parsed.

    Attributes:
        reading: guard of what is read.
        dropping: guard of what happens when a response goes.
    """

    __slots__ = ("_held", "_salvaging", "_state", "dropping", "reading")

    def __init__(self, library: str, state: type) -> None:
        self.reading: Final = guard(f"{library}.raw.parsed")
        self.dropping: Final = guard(f"{library}.raw.dropped")
        self._salvaging: Final = guard(f"{library}.raw.salvage")
        self._state: Final = state
        # Responses whose call is still open. Not kept on the responses: they are the user's objects.
        self._held: Final[weakref.WeakKeyDictionary[Any, Held]] = weakref.WeakKeyDictionary()

    def patch(self, patches: Patches, package: str, *, legacy: bool = False) -> None:
        """Wrap ``parse`` and ``close`` of a client's response classes.

        Args:
            patches: where the wrappers are put.
            package: the client's package.
            legacy: it has, or has had, the older class too.
        """
        sync, asynchronous = f"{package}._response:APIResponse", f"{package}._response:AsyncAPIResponse"
        if legacy:
            patches.add(f"{package}._legacy_response:LegacyAPIResponse.parse", functools.partial(_parse, self))
        patches.add(f"{sync}.parse", functools.partial(_parse, self))
        patches.add(f"{asynchronous}.parse", functools.partial(_parse_async, self))
        patches.add(f"{sync}.close", functools.partial(_close, self))
        patches.add(f"{asynchronous}.close", functools.partial(_close_async, self))

    def read(self, call: Call, response: Any) -> Any:
        """End ``call`` with what the body of a raw response says, which is in memory. Returns the response."""
        self.read_body(call, response.http_response)
        call.end()
        return response

    def hold(self, call: Call, response: Any) -> Any:
        """Keep ``call`` open for a raw response whose body has not been read. Returns the response."""
        self._held[response] = Held(self, call, response.http_response)
        return response

    def keep(self, call: Call, response: Any) -> Any:
        """`read` where the body is in memory, else `hold`. Returns the response."""
        in_memory = not call.state.streamed and response.http_response.is_closed
        return self.read(call, response) if in_memory else self.hold(call, response)

    def given(self, response: Any, result: Any) -> Any:
        """What the user gets for what ``response`` was parsed to."""
        # Nearly always nothing is held: every ordinary call parses its response through here.
        held = self._held.get(response) if self._held else None
        return result if held is None else held.parsed(result)

    def failed(self, response: Any, error: BaseException) -> None:
        """Parsing ``response`` raised."""
        with self._salvaging:
            held = self._held.get(response) if self._held else None
            if held is not None:
                held.failed(error)
            else:
                call = open_call()
                if call is not None and call.recording and isinstance(call.state, self._state):
                    self.read_body(call, response.http_response)

    def closed(self, response: Any) -> None:
        """``response`` was closed."""
        with self.dropping:
            held = self._held.get(response) if self._held else None
            if held is not None:
                held.closed()

    def read_body(self, call: Call, http_response: Any) -> None:
        """Read the call's response from an HTTP body, if it is there and is what it should be."""
        try:
            body = http_response.json()
        except Exception:  # noqa: BLE001 (unread, streamed, or not JSON: there is nothing to read, and nothing wrong)
            return
        with self.reading:
            if isinstance(body, dict) and call.point.response is not None:
                call.point.response(call, body)


def _parse(raw: RawResponses, original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def parse(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            result = original(self, *args, **kwargs)
        except BaseException as error:
            raw.failed(self, error)
            raise
        return raw.given(self, result)

    return parse


def _parse_async(raw: RawResponses, original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    async def parse(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            result = await original(self, *args, **kwargs)
        except BaseException as error:
            raw.failed(self, error)
            raise
        return raw.given(self, result)

    return parse


def _close(raw: RawResponses, original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def close(self: Any) -> Any:
        try:
            return original(self)
        finally:
            raw.closed(self)

    return close


def _close_async(raw: RawResponses, original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    async def close(self: Any) -> Any:
        try:
            return await original(self)
        finally:
            raw.closed(self)

    return close
