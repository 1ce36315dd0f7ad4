"""HTTP servers: uvicorn on a thread of its own, for what takes spans (`receive_http`) and for the page (`page`).

In: an ASGI application and an address. Out: a port that slow or silent clients cannot use up: a head that stalls, a TLS
handshake that stalls and connections beyond a number are hung up on. A certificate that was replaced is taken by a
second server on the same socket, while the first finishes what it has.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
import threading
import time
from collections.abc import Awaitable, Callable, MutableMapping
from functools import partial
from typing import Any, Final

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from tollspan.processor.addresses import cannot_listen, parse_address, shown, try_to_bind
from tollspan.processor.tls import Tls

log = logging.getLogger(__name__)

RELOAD_S: Final = 2.0
"""Seconds between looks at the certificate's files."""

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]


class HttpServer:
    """One port.

    Args:
        app: ASGI 3; sees requests only (no lifespan, no WebSockets).
        address: ``host:port``; port 0 takes a free one.
        name: of its threads.
        tls: certificate; None for no encryption.
        ask_clients: clients need certificates where ``tls`` names an authority for them.
        max_connections: at once; one more is hung up on.
        stalled_s: seconds for a request's head, and for a TLS handshake.
        idle_s: seconds that a connection may be silent between requests.
    """

    def __init__(
        self,
        app: App,
        *,
        address: str,
        name: str,
        tls: Tls | None = None,
        ask_clients: bool = True,
        max_connections: int = 4096,
        stalled_s: float = 15.0,
        idle_s: float = 75.0,
    ) -> None:
        self._app, self._address, self._name = app, address, name
        self._tls, self._ask_clients = tls, ask_clients
        self._max_connections, self._stalled_s, self._idle_s = max_connections, stalled_s, idle_s
        self._socket: socket.socket | None = None
        self._serving: list[tuple[uvicorn.Server, threading.Thread]] = []
        self._stopping = threading.Event()
        self._watcher: threading.Thread | None = None

    def start(self) -> str:
        """Listen and serve; returns the ``host:port`` in use.

        Raises:
            ConfigError: the address is malformed, taken, or not of this machine.
        """
        host, port = parse_address(self._address)
        try_to_bind(host, port)
        family, kind, protocol, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        try:
            self._socket = socket.socket(family, kind, protocol)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            # Now, for `dup` passes it on, and what one copy is all of them are: a server that serves would block.
            self._socket.setblocking(False)
            self._socket.bind(where)
            self._socket.listen(1024)
            self._serve()
        except OSError as error:
            self.stop()
            raise cannot_listen(host, port, (error.strerror or str(error)).lower()) from error
        if self._tls is not None:
            watch = partial(self._watch, self._tls.version)
            self._watcher = threading.Thread(target=watch, name=f"{self._name}-tls", daemon=True)
            self._watcher.start()
        bound = self._socket.getsockname()[1]
        return shown(host, bound)

    def stop(self, grace_s: float = 1.0) -> None:
        """Close the port, let requests in flight finish for ``grace_s`` seconds, then hang up. Idempotent."""
        self._stopping.set()
        if self._watcher is not None:
            self._watcher.join()
        listening, self._socket = self._socket, None
        if listening is not None:
            listening.close()
        self._finish(len(self._serving), grace_s)

    def _serve(self) -> None:
        """Serve the socket by another server, with the certificate of now."""
        assert self._socket is not None
        limits = self

        class Protocol(_Protocol):
            max_connections, stalled_s = limits._max_connections, limits._stalled_s

        config = uvicorn.Config(
            self._app,
            interface="asgi3",
            http=Protocol,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            # Seconds for `call_later`, which takes parts of them too.
            timeout_keep_alive=self._idle_s,  # type: ignore[arg-type]
            timeout_graceful_shutdown=30,
        )
        config.load()
        if self._tls is not None:
            config.ssl = self._tls.context(ask_clients=self._ask_clients)
        server = uvicorn.Server(config)
        listening = self._socket.dup()

        def run() -> None:
            # uvicorn's own `run` has no way to say how long a handshake may take.
            with asyncio.Runner(loop_factory=partial(_Loop, self._stalled_s)) as runner:
                runner.run(server.serve(sockets=[listening]))

        thread = threading.Thread(target=run, name=f"{self._name}-loop", daemon=True)
        thread.start()
        while not server.started:
            if not thread.is_alive():
                listening.close()
                raise OSError("the HTTP server did not start")
            time.sleep(0.005)
        self._serving.append((server, thread))

    def _finish(self, number: int, grace_s: float) -> None:
        """End the oldest servers."""
        ending = [self._serving.pop(0) for _ in range(number)]
        for server, _ in ending:
            server.should_exit = True
        until = time.monotonic() + grace_s
        for server, thread in ending:
            thread.join(max(0.0, until - time.monotonic()))
            if thread.is_alive():
                server.force_exit = True
                thread.join(5.0)

    def _watch(self, served: int) -> None:
        """Serve with a certificate that was replaced, by whoever noticed it.

        Args:
            served: version of the certificate that is served.
        """
        assert self._tls is not None
        while not self._stopping.wait(RELOAD_S):
            self._tls.reload()
            if self._tls.version != served:
                served = self._tls.version
                try:
                    self._serve()
                except (OSError, ssl.SSLError):
                    log.exception("the new certificate is not served over HTTP; the old one still is")
                else:
                    self._finish(1, grace_s=30.0)


class _Loop(asyncio.SelectorEventLoop):
    """An event loop that gives up on TLS handshakes that stall."""

    def __init__(self, handshake_s: float) -> None:
        super().__init__()
        self._handshake_s = handshake_s

    async def create_server(self, *args: Any, **options: Any) -> Any:
        """As the base class."""
        if options.get("ssl") is not None:
            options.setdefault("ssl_handshake_timeout", self._handshake_s)
        return await super().create_server(*args, **options)


class _Protocol(H11Protocol):
    """uvicorn's, which waits for the head of a request for ever and takes any number of connections."""

    max_connections: int
    stalled_s: float
    _hurry: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.max_connections:
            transport.abort()
            return
        self._hurry = self.loop.call_later(self.stalled_s, self._late)

    def data_received(self, data: bytes) -> None:
        before = self.cycle
        super().data_received(data)
        waiting = self.cycle is None or self.cycle.response_complete
        if self.cycle is not before or not waiting:
            self._calm()
        elif self._hurry is None:
            # The beginning of another request's head.
            self._hurry = self.loop.call_later(self.stalled_s, self._late)

    def connection_lost(self, exc: Exception | None) -> None:
        self._calm()
        super().connection_lost(exc)

    def _calm(self) -> None:
        if self._hurry is not None:
            self._hurry.cancel()
            self._hurry = None

    def _late(self) -> None:
        self._hurry = None
        self.transport.close()
