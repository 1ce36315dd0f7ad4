"""HTTP as the clients send it: every request that a measured call makes, and how large its bodies are on the wire.

In: the functions of `TARGETS`, which httpx, httpx2, urllib3 (under requests and botocore) and aiohttp send each request
with. Out: on `Call.network` of the open call an `Exchange` for each; when the call has ended, `hops` tells the bytes.
They are the bodies' as they are sent: compressed where they are compressed, without headers and framing, which no
library tells. Nothing is wrapped round a body: the libraries count what they receive, and a request's length is read of
the request. What cannot be told is None: the length of a body that is made as it is sent, what a connection that broke
had taken.

The functions are replaced once, for all instrumentations, and only while one of them counts (`use`).
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any, Final, NamedTuple

from tollspan.instrumentation.calls import CALL_KEYS, awaited, get_current
from tollspan.instrumentation.guard import report
from tollspan.instrumentation.tables import server
from tollspan.instrumentation.wrapping import Shared
from tollspan.pricing.attributes import SERVER_ADDRESS

_NOTE: Final = "network.note"

UNSENT: Final = frozenset(
    {
        *("ConnectError", "ConnectTimeout", "PoolTimeout", "UnsupportedProtocol", "InvalidURL", "LocalProtocolError"),
        *("NewConnectionError", "ConnectTimeoutError", "NameResolutionError", "SSLError", "ProxyError"),
        *("ClientConnectorError", "ClientConnectorDNSError", "ClientConnectorCertificateError"),
        *("ClientConnectorSSLError", "ClientProxyConnectionError", "ConnectionTimeoutError"),
    }
)
"""Errors, by the names of their classes, after which nothing of the request has gone out."""

SENT: Final = frozenset(
    {"ReadTimeout", "ReadError", "RemoteProtocolError", "DecodingError"}  # httpx
    | {"ReadTimeoutError", "RemoteDisconnected"}  # urllib3
    | {"ServerDisconnectedError", "SocketTimeoutError"}  # aiohttp
)
"""Errors after which all of it has: it was the answer that did not come."""


class Hop(NamedTuple):
    """One request and its response.

    Attributes:
        host: whom it was sent to, in lower case; None where that is not known.
        sent, received: bytes of the bodies; None where that is not known.
    """

    host: str | None
    sent: int | None
    received: int | None


class Exchange:
    """A request of an open call, with what follows from it: redirects, authentication.

    Attributes:
        args, kwargs: what the library's function was called with.
        response: the library's; None when there was none.
        errors: names of the classes of what was raised instead, and of its reason. Not the exception: its traceback
            leads to us, and a circle is left to the garbage collector.
        redirected: it was raised by a request that followed from this one.
        chunked: bytes of a response in chunks, where the library does not count them itself.
        outer: the one that was on its way when this one was sent.
        several: the library sent it again by itself; this one is the first of them.
        carried: another library carried it out, whose exchange tells the same.
    """

    __slots__ = (
        "__weakref__",
        "args",
        "carried",
        "chunked",
        "errors",
        "kwargs",
        "outer",
        "redirected",
        "response",
        "several",
    )

    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any], outer: Exchange | None) -> None:
        self.args = args
        self.kwargs = kwargs
        self.outer = outer
        self.response: Any = None
        self.errors: frozenset[str] = frozenset()
        self.redirected = False
        self.chunked = 0
        self.several = False
        self.carried = False

    def answered(self, response: Any) -> None:
        """Keep of a response what is to be read when the call has ended. Guarded by nobody: must not raise."""
        self.response = response

    def host(self) -> str | None:
        """Whom it was sent to. May raise."""
        raise NotImplementedError

    def hops(self) -> Iterator[Hop]:
        """What went over the wire. May raise."""
        raise NotImplementedError

    def raised(self, error: BaseException) -> None:
        """Note what was raised. Never raises itself."""
        try:
            # urllib3 has what it was in an error of its own.
            within = (error, getattr(error, "reason", None), *error.args)
            self.errors = frozenset(
                base.__name__ for each in within if isinstance(each, BaseException) for base in type(each).__mro__
            )
            request = getattr(error, "_request", None)  # httpx
            self.redirected = request is not None and request not in self.args and request not in self.kwargs.values()
        except Exception as fault:  # noqa: BLE001
            report(_NOTE, fault)

    def failed(self, length: Callable[[], int | None]) -> Iterator[Hop]:
        """The hop of a request that raised."""
        if self.redirected or not self.errors & UNSENT:
            known = self.errors & SENT and not self.redirected
            yield Hop(self.host(), length() if known else None, None)


_chunked: Final[weakref.WeakValueDictionary[int, Exchange]] = weakref.WeakValueDictionary()
"""Identity of a response of urllib3's that comes in chunks → its exchange, which holds it."""


class _Httpx(Exchange):
    """``Client.send(self, request, ...)`` of httpx and httpx2."""

    __slots__ = ()

    def _request(self) -> Any:
        return self.args[1] if len(self.args) > 1 else self.kwargs["request"]

    def host(self) -> str | None:
        return self._request().url.host  # type: ignore[no-any-return]

    def hops(self) -> Iterator[Hop]:
        response = self.response
        if response is None:
            yield from self.failed(lambda: _length_of(self._request()))
            return
        for each in (*response.history, response):
            request = each.request
            yield Hop(request.url.host, _length_of(request), each.num_bytes_downloaded)


def _length_of(request: Any) -> int | None:
    content = getattr(request, "_content", None)  # not there on a request whose body is read as it is sent
    return len(content) if content is not None else _length(request.headers.get("content-length"))


class _Urllib3(Exchange):
    """``HTTPConnectionPool.urlopen(self, method, url, body, headers, ...)``, one attempt each."""

    __slots__ = ()

    def answered(self, response: Any) -> None:
        self.response = response
        if getattr(response, "chunked", False):
            _chunked[id(response)] = self

    def host(self) -> str | None:
        return self.args[0].host.lower().strip("[]")  # type: ignore[no-any-return]

    def hops(self) -> Iterator[Hop]:
        if self.several:
            # What became of this one the library keeps to itself.
            yield Hop(self.host(), None, None)
        elif self.response is None:
            yield from self.failed(self._length)
        else:
            # It counts what is read in one way, and not what is read chunk by chunk.
            yield Hop(self.host(), self._length(), self.response.tell() + self.chunked)

    def _length(self) -> int | None:
        args, kwargs = self.args, self.kwargs
        headers = kwargs.get("headers") if len(args) < 5 else args[4]
        told = _length((headers or {}).get("Content-Length"))
        if told is not None:
            return told
        body = kwargs.get("body") if len(args) < 4 else args[3]
        return 0 if body is None else len(body) if isinstance(body, (bytes, bytearray)) else None


class _Aiohttp(Exchange):
    """``ClientSession._request(self, method, url, ...)``."""

    __slots__ = ()

    def answered(self, response: Any) -> None:
        # Not the response: one that the program drops gives its connection back.
        try:
            self.response = [(each.request_info, each.headers, each.content) for each in (*response.history, response)]
        except Exception as error:  # noqa: BLE001
            report(_NOTE, error)

    def host(self) -> str | None:
        return server(str(self.args[2] if len(self.args) > 2 else self.kwargs["str_or_url"])).get(SERVER_ADDRESS)

    def hops(self) -> Iterator[Hop]:
        response = self.response
        if response is None:
            body = self.kwargs.get("data")
            yield from self.failed(lambda: len(body) if isinstance(body, (bytes, bytearray)) else None)
            return
        for asked, headers, content in response:
            sent = _length(asked.headers.get("Content-Length"))
            if sent is None and "Transfer-Encoding" not in asked.headers:
                sent = 0
            yield Hop(asked.url.host, sent, _received(headers, content))


def _received(headers: Any, content: Any) -> int | None:
    """Bytes of a response of aiohttp's, which counts them after it has decompressed them, and lately before."""
    raw = getattr(content, "total_raw_bytes", None)
    if raw is not None or "Content-Encoding" not in headers:
        return content.total_bytes if raw is None else raw  # type: ignore[no-any-return]
    return _length(headers.get("Content-Length"))


def _length(header: Any) -> int | None:
    if isinstance(header, bytes):
        header = header.decode("latin-1")
    return int(header) if header is not None and str(header).isdigit() else None


def hops(exchanges: list[Any], address: str | None) -> Iterator[Hop]:
    """What went over the wire of a call's exchanges.

    Args:
        address: host whose requests, with what followed from them, are the call's; None: all are.
    """
    for exchange in exchanges:
        outer = exchange.outer
        if outer is None:
            continue
        if type(outer) is type(exchange) is _Urllib3:
            outer.several = True  # it calls itself for every further attempt
        elif outer.host() == exchange.host():
            outer.carried = True  # httpx over aiohttp, say
    for exchange in exchanges:
        if not exchange.carried and (address is None or exchange.host() in (address, None)):
            yield from exchange.hops()


_sending: Final[ContextVar[Exchange | None]] = ContextVar("tollspan.network.sending", default=None)


def _noted(kind: type[Exchange], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Exchange | None:
    """An exchange of the calls that are open here and count; None where there is none."""
    exchange: Exchange | None = None
    try:
        current = get_current()
        for key in CALL_KEYS:
            call: Any = current.get(key)
            if call is not None and call.network is not None:
                if exchange is None:
                    exchange = kind(args, kwargs, _sending.get())
                    _sending.set(exchange)
                call.network.append(exchange)
    except Exception as error:  # noqa: BLE001
        report(_NOTE, error)
    return exchange


def _sync(kind: type[Exchange], original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def send(*args: Any, **kwargs: Any) -> Any:
        exchange = _noted(kind, args, kwargs)
        if exchange is None:
            return original(*args, **kwargs)
        try:
            response = original(*args, **kwargs)
        except BaseException as error:
            exchange.raised(error)
            raise
        finally:
            _sending.set(exchange.outer)
        exchange.answered(response)
        return response

    return send


def _async(kind: type[Exchange], original: Callable[..., Any]) -> Callable[..., Any]:
    async def send(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        exchange = _noted(kind, args, kwargs)
        if exchange is None:
            return await original(*args, **kwargs)
        try:
            response = await original(*args, **kwargs)
        except BaseException as error:
            exchange.raised(error)
            raise
        finally:
            # Not where a coroutine that was thrown away happens to be finished.
            if _sending.get() is exchange:
                _sending.set(exchange.outer)
        exchange.answered(response)
        return response

    return awaited(original, send)


def _handle_chunk(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def handle_chunk(self: Any, *args: Any, **kwargs: Any) -> Any:
        chunk = original(self, *args, **kwargs)
        exchange = _chunked.get(id(self))
        if exchange is not None:
            exchange.chunked += len(chunk)
        return chunk

    return handle_chunk


TARGETS: Final[dict[str, Callable[[Callable[..., Any]], Callable[..., Any]]]] = {
    "httpx2._client:Client.send": functools.partial(_sync, _Httpx),
    "httpx2._client:AsyncClient.send": functools.partial(_async, _Httpx),
    "httpx._client:Client.send": functools.partial(_sync, _Httpx),
    "httpx._client:AsyncClient.send": functools.partial(_async, _Httpx),
    "urllib3.connectionpool:HTTPConnectionPool.urlopen": functools.partial(_sync, _Urllib3),
    "urllib3.response:HTTPResponse._handle_chunk": _handle_chunk,
    "aiohttp.client:ClientSession._request": functools.partial(_async, _Aiohttp),
}
"""Function that every request of a library passes → what makes its stand-in."""

HOOKS: Final = Shared(TARGETS)
"""In place while an instrumentation's requests are counted."""
