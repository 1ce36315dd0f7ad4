"""The page's port: HTTP around `api`, and nobody who should not be here.

In: GET and HEAD of browsers and scripts. Out: the files of ``static``, and JSON under ``/api``. Requests that need the
store wait for `source` without holding a thread; one whose client has gone is given up.

Strangers are kept out as at the SQL port: beyond loopback it takes TLS and a login (`senders.Readers`, HTTP Basic), or
the word of who runs it that the network is trusted; where there are readers they log in on loopback too. On loopback
the name in ``Host`` has to be this machine's, so that no name which was rebound to it gets an answer, and pages of
other sites may not ask ``/api``. Answers forbid everything that the page does not need (CSP), and data is kept in no
cache.

    400  a parameter cannot be read     404  there is no such thing
    401  no login                       429  too much at once, with Retry-After
    403  another host or site           503  the store is away, or a query took too long
"""

from __future__ import annotations

import asyncio
import json
import logging
from importlib import resources
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope

from tollspan.processor.addresses import host_name, is_loopback, parse_address, require_loopback
from tollspan.processor.errors import ConfigError, StoreError, StoreUnavailable, TollspanError
from tollspan.processor.http_server import HttpServer
from tollspan.processor.page.api import Api, plain
from tollspan.processor.page.asked import plainly
from tollspan.processor.page.details import Missing
from tollspan.processor.page.source import LONGEST_S, Answer, Busy, GivenUp, Question, Source
from tollspan.processor.senders import Readers, credentials
from tollspan.processor.store.faults import code_of
from tollspan.processor.tls import Tls

log = logging.getLogger(__name__)

DEFAULT_ADDRESS: Final = "127.0.0.1:8130"
MAX_CONNECTIONS: Final = 256
STALLED_S: Final = 15.0
IDLE_S: Final = 60.0

SAFE: Final = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "font-src 'self'; connect-src 'self'; manifest-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
}
"""Headers of every answer."""

_TOO_SLOW: Final = frozenset({159, 160})
_TOO_LARGE: Final = frozenset({241, 396})
"""Codes of ClickHouse: TIMEOUT_EXCEEDED, TOO_SLOW; MEMORY_LIMIT_EXCEEDED, TOO_MANY_ROWS_OR_BYTES."""

_NARROWER: Final = "Ask for a shorter window, or filter."


class Page:
    """The page of a store.

    Args:
        source: answers questions.
        api: the endpoints.
        address: ``host:port``; port 0 for any free one.
        tls: certificate; None for no encryption. Browsers are asked for none.
        readers: who may look; None: everybody who can connect.
        insecure_listen: allow an address beyond loopback, although there is no TLS or no login.

    Raises:
        ConfigError: the address cannot be read, or is not loopback without TLS and readers.
    """

    def __init__(
        self,
        source: Source,
        api: Api,
        *,
        address: str = DEFAULT_ADDRESS,
        tls: Tls | None = None,
        readers: Readers | None = None,
        insecure_listen: bool = False,
    ) -> None:
        host, _ = parse_address(address, DEFAULT_ADDRESS)
        loopback = is_loopback(host)
        if not insecure_listen and (tls is None or readers is None):
            require_loopback(
                address,
                host,
                lacks="connections are not encrypted" if tls is None else "everybody there may look",
                needs="give --tls-cert and --tls-key, and --readers" if tls is None else "give --readers",
            )
        self.secure = tls is not None and (readers is not None or not loopback)
        self._source, self._api = source, api
        own = f"[{host}]" if ":" in host else host.lower()
        hosts = frozenset({"localhost", "127.0.0.1", "[::1]", own}) if loopback else None
        self._server = HttpServer(
            _Door(_application(source, api), hosts, readers),
            address=address,
            name="tollspan-page",
            tls=tls if self.secure else None,
            ask_clients=False,
            max_connections=MAX_CONNECTIONS,
            stalled_s=STALLED_S,
            idle_s=IDLE_S,
        )
        self.address = ""

    def start(self) -> str:
        """Listen; returns the bound ``host:port``.

        Raises:
            ConfigError: the port is taken, or the address is not this machine's.
        """
        self.address = self._server.start()
        return self.address

    @property
    def url(self) -> str:
        """Where a browser finds it; '' before it is started."""
        return f"{'https' if self.secure else 'http'}://{self.address}/" if self.address else ""

    def stop(self) -> None:
        """Hang up, and stop what is asked; again is harmless."""
        self._source.stop()
        self._server.stop()


class _Door:
    """Who may come in, and what every answer says.

    Args:
        app: what is behind it.
        hosts: names in ``Host``; None: any.
        readers: who may come in; None: everybody.
    """

    def __init__(self, app: ASGIApp, hosts: frozenset[str] | None, readers: Readers | None) -> None:
        self._app, self._hosts, self._readers = app, hosts, readers

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return

        async def sealed(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in SAFE.items():
                    headers[name] = value
                if "cache-control" not in headers:
                    headers["cache-control"] = "no-store"
            await send(message)

        refused = self._refused(scope)
        await (refused or self._app)(scope, receive, sealed)

    def _refused(self, scope: Scope) -> Response | None:
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if self._hosts is not None and host and host_name(host) not in self._hosts:
            return _error(403, f"Host {host[:200]} is not this page's name.", "Use 127.0.0.1 or localhost.")
        origin = headers.get("origin")
        foreign = origin is not None and urlsplit(origin).netloc.lower() != host.lower()
        if foreign or (
            scope["path"].startswith("/api") and headers.get("sec-fetch-site", "none") not in ("none", "same-origin")
        ):
            return _error(403, "Another site's page asks for this.", "Open the page itself.")
        if self._readers is not None:
            user, secret = credentials(headers.get("authorization", "")) or ("", "")
            if not secret or not self._readers.admits(user, secret):
                return _error(
                    401,
                    "A login is needed: a reader's id as the user, and its token as the password."
                    if not secret
                    else f"{user[:100]}: the token is wrong, or there is no such reader.",
                    "`tollspan token ID --reader` makes one.",
                    {"www-authenticate": 'Basic realm="tollspan", charset="UTF-8"'},
                )
        if scope["method"] not in ("GET", "HEAD"):
            return _error(405, f"{scope['method'][:20]} is not understood here.", "GET is.", {"allow": "GET, HEAD"})
        return None


def _application(source: Source, api: Api) -> ASGIApp:
    static = Path(str(resources.files(__package__))) / "static"

    async def answer(request: Request) -> Response:
        return await _answered(request, source, api)

    routes = [
        Route("/api/{name}", answer),
        Route("/api/{name}/{rest:path}", answer),
        Mount("/", _Static(directory=static, html=True, check_dir=False)),
    ]
    return Starlette(
        routes=routes,
        middleware=[Middleware(GZipMiddleware, minimum_size=2048, compresslevel=4)],
        exception_handlers={HTTPException: _plain_error},
    )


class _Static(StaticFiles):
    """Files that a browser keeps and asks about."""

    def file_response(self, *args: Any, **options: Any) -> Response:
        """As the base class."""
        response = super().file_response(*args, **options)
        response.headers["cache-control"] = "no-cache"
        return response


async def _answered(request: Request, source: Source, api: Api) -> Response:
    """What ``/api`` says."""
    rest = tuple(part for part in request.path_params.get("rest", "").split("/") if part)
    try:
        prepared = api.prepare(request.path_params["name"], rest, request.query_params.multi_items())
        if isinstance(prepared, dict):
            return _json(200, prepared)
        found = source.ask((request.url.path, request.url.query), prepared)
        if isinstance(found, Answer):
            return _json(200, _told(found, reused=True))
        try:
            answer = await _awaited(found, request)
        finally:
            source.leave(found)
        return _json(200, _told(answer, reused=False))
    except Missing as error:
        return _error(404, plainly(error.message), plainly(error.hint))
    except ConfigError as error:
        return _error(400, plainly(error.message), plainly(error.hint))
    except Busy as error:
        return _error(429, error.message, error.hint, {"retry-after": "2"})
    except GivenUp:
        return _error(
            503, "The service is shutting down, or nobody waits for this.", "Try again.", {"retry-after": "5"}
        )
    except TollspanError as error:
        return _trouble(error)
    except Exception:
        # Not left to Starlette, which raises it once more when it has answered, and the connection is lost.
        log.exception("the page met a fault of ours at %s", request.url.path)
        return _error(500, "The page met a fault of its own.", "The log says more; nothing else is affected.")


async def _awaited(question: Question, request: Request) -> Answer:
    """The answer to a question, unless its client goes away.

    Raises:
        GivenUp: it has.
        What makes the answer raises.
    """
    answered = asyncio.ensure_future(asyncio.wrap_future(question.future))
    answered.add_done_callback(lambda future: future.cancelled() or future.exception())
    gone = asyncio.ensure_future(_gone(request.receive))
    try:
        # `asyncio.wait` cancels nothing: others may wait for the same answer.
        await asyncio.wait((answered, gone), return_when=asyncio.FIRST_COMPLETED)
        if not answered.done():
            raise GivenUp("The client has gone.")
        answer: Answer = answered.result()
        return answer
    finally:
        gone.cancel()


async def _gone(receive: Receive) -> None:
    """Return when the client has hung up."""
    while (await receive())["type"] != "http.disconnect":
        pass


def _told(answer: Answer, reused: bool) -> dict[str, Any]:
    return {**answer.content, "computed_at": answer.at, "took_ms": answer.took_ms, "reused": reused}


def _trouble(error: TollspanError) -> Response:
    """The store cannot answer."""
    code = code_of(error.__cause__) if error.__cause__ is not None else None
    if code in _TOO_SLOW:
        return _error(503, f"A query took longer than {LONGEST_S} s and was stopped.", _NARROWER)
    if code in _TOO_LARGE:
        return _error(503, "A query would need too much memory, or has too many rows.", _NARROWER)
    if isinstance(error, StoreUnavailable):
        hint = error.hint or "Spans that come meanwhile are kept. The page is there again when the store is."
        return _error(503, error.message, hint, {"retry-after": "5"})
    if isinstance(error, StoreError):
        return _error(500, error.message, error.hint or "`tollspan doctor` says more.")
    return _error(500, error.message, error.hint)


async def _plain_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _error(error.status_code, f"There is nothing at {request.url.path[:200]}.", "The page is at /.")


def _error(status: int, message: str, hint: str = "", headers: dict[str, str] | None = None) -> Response:
    return _json(status, {"error": message, "hint": hint}, headers)


def _json(status: int, content: dict[str, Any], headers: dict[str, str] | None = None) -> Response:
    body = json.dumps(plain(content), ensure_ascii=False, separators=(",", ":"))
    return Response(body, status, headers, media_type="application/json")
