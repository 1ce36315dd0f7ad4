"""OTLP/HTTP in: ``POST /v1/traces`` in protobuf or JSON, made durable before it is answered. Beside `receive`.

In: requests of any OTLP/HTTP exporter, plain, gzip or zstd. Out: payloads in the journal in protobuf form, and answers
in the request's own encoding. ``/healthz``, ``/readyz`` and ``/metrics`` stand on the same port.

What a sender is told, with a ``google.rpc.Status`` as the body of every refusal:

    200   durable
    400   not an OTLP trace request, or not what its headers say; sending it again will not help
    401   no bearer token, or one that is not known
    404   another path: logs and metrics are not taken
    405   another method
    408   the body did not come in time
    413   larger than ``max_request_bytes``, as sent or decompressed
    415   a content type or encoding that is not known
    429   more than this sender may send a second, with Retry-After
    503   not stored (disk, journal full, shutting down, too much at once), with Retry-After: send it again

uvicorn speaks HTTP, on one thread of its own: slow senders hold a connection there and no thread. What a request costs
(decompression, JSON, the wait for the disk) is done by threads of a pool. A certificate that was replaced is taken by
a second server on the same socket, while the first finishes what it has.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import math
import socket
import ssl
import threading
import time
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, NamedTuple

import pyarrow as pa
import uvicorn
from google.protobuf import json_format
from google.rpc import status_pb2
from google.rpc.code_pb2 import (
    DEADLINE_EXCEEDED,
    INTERNAL,
    INVALID_ARGUMENT,
    RESOURCE_EXHAUSTED,
    UNAVAILABLE,
    UNIMPLEMENTED,
)
from uvicorn.protocols.http.h11_impl import H11Protocol

from tollspan.processor.intake import RETRY_S, Intake, Refusal
from tollspan.processor.otlp_json import to_protobuf
from tollspan.processor.receive import cannot_listen, parse_address, require_loopback, try_to_bind
from tollspan.processor.senders import Sender, Senders
from tollspan.processor.tls import Tls

log = logging.getLogger(__name__)

PROTOBUF: Final = "application/x-protobuf"
JSON: Final = "application/json"
TRACES: Final = "/v1/traces"
CODECS: Final = {"gzip": "gzip", "zstd": "zstd"}
"""Content-Encoding → pyarrow's codec."""

STALLED_S: Final = 15.0
"""Seconds without a byte of a request's head or body after which a connection is given up."""
BODY_S: Final = 60.0
"""Seconds that a whole body may take."""
IDLE_S: Final = 75
"""Seconds that a connection may be silent between requests."""
RELOAD_S: Final = 2.0
"""Seconds between looks at the certificate's files."""

_STATUS: Final = {INVALID_ARGUMENT: 400, RESOURCE_EXHAUSTED: 429, UNAVAILABLE: 503, INTERNAL: 500}

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class _Refused(Exception):
    """A request that is not taken.

    Attributes:
        status: HTTP status.
        refusal: what is counted and told.
        headers: beside the usual ones.
    """

    def __init__(self, status: int, refusal: Refusal, *headers: tuple[bytes, bytes]) -> None:
        super().__init__(refusal.message)
        self.status = status
        self.refusal = refusal
        self.headers = headers


class _Asked(NamedTuple):
    """What the head of a request says of its body."""

    json: bool
    encoding: str | None
    length: int | None


class HttpReceiver:
    """The OTLP/HTTP server.

    Args:
        intake: the way into the journal; its counters also count ``receive.http.calls``.
        address: ``host:port``; port 0 takes a free one.
        tls: certificate, and whose certificates senders need; None for no encryption.
        senders: who may send, by bearer token; None: everybody who can connect.
        insecure_listen: allow addresses other than loopback although nothing is encrypted.
        max_request_bytes: size of a request at the most, as sent and decompressed.
        max_held_bytes: bodies in memory at the most, as sent, all requests together; what they unfold to is bounded by
            the threads.
        max_connections: connections at once; one more is hung up on.
        threads: requests decompressed and stored at once.
        metrics: text that ``/metrics`` answers with; None for no such page.

    Raises (from `start`):
        ConfigError: the address cannot be listened on.
    """

    def __init__(
        self,
        intake: Intake,
        *,
        address: str = "127.0.0.1:4318",
        tls: Tls | None = None,
        senders: Senders | None = None,
        insecure_listen: bool = False,
        max_request_bytes: int = 64 << 20,
        max_held_bytes: int = 512 << 20,
        max_connections: int = 4096,
        threads: int = 32,
        metrics: Callable[[], str] | None = None,
    ) -> None:
        self._intake, self._senders = intake, senders
        self._address, self._tls, self._insecure_listen = address, tls, insecure_listen
        self._max_bytes, self._max_held, self._held = max_request_bytes, max_held_bytes, 0
        self._max_connections = max_connections
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="tollspan-http")
        self._metrics = metrics
        self._socket: socket.socket | None = None
        self._serving: list[tuple[uvicorn.Server, threading.Thread]] = []
        self._stopping = threading.Event()
        self._watcher: threading.Thread | None = None

    def start(self) -> str:
        """Listen and serve; returns the ``host:port`` in use.

        Raises:
            ConfigError: the address is malformed, taken, not of this machine, or open without TLS and
                ``insecure_listen``.
        """
        host, port = parse_address(self._address)
        if self._tls is None and not self._insecure_listen:
            require_loopback(self._address, host)
        try_to_bind(host, port)
        family, kind, protocol, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        try:
            self._socket = socket.socket(family, kind, protocol)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._socket.bind(where)
            self._socket.listen(1024)
            self._serve()
        except OSError as error:
            self.stop()
            raise cannot_listen(host, port, (error.strerror or str(error)).lower()) from error
        if self._tls is not None:
            self._watcher = threading.Thread(target=self._watch, name="tollspan-http-tls", daemon=True)
            self._watcher.start()
        bound = self._socket.getsockname()[1]
        return f"[{host}]:{bound}" if ":" in host else f"{host}:{bound}"

    def stop(self, grace_s: float = 1.0) -> None:
        """Close the port, let requests in flight finish for ``grace_s`` seconds, then hang up. Idempotent."""
        listening, self._socket = self._socket, None
        self._stopping.set()
        if self._watcher is not None:
            self._watcher.join()
        if listening is not None:
            listening.close()
        self._finish(len(self._serving), grace_s)
        self._pool.shutdown(wait=False)

    def _serve(self) -> None:
        """Serve the socket by another server, with the certificate of now."""
        assert self._socket is not None
        limit = self._max_connections

        class Protocol(_Protocol):
            max_connections = limit

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
            timeout_keep_alive=IDLE_S,
            timeout_graceful_shutdown=30,
        )
        config.load()
        if self._tls is not None:
            config.ssl = self._tls.context()
        server = uvicorn.Server(config)
        listening = self._socket.dup()
        thread = threading.Thread(
            target=server.run, kwargs={"sockets": [listening]}, name="tollspan-http-loop", daemon=True
        )
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

    def _watch(self) -> None:
        """Serve with a certificate that was replaced, by whoever noticed it."""
        assert self._tls is not None
        served = self._tls.version
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

    async def _app(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """One request, as ASGI has it."""
        if scope["type"] != "http":
            return
        method, path = scope["method"], scope["path"]
        headers = {name: value.decode("latin-1").strip() for name, value in scope["headers"]}
        in_json = headers.get(b"content-type", "").partition(";")[0].strip().lower() == JSON
        try:
            if path != TRACES:
                await self._beside(method, path, send)
                return
            self._intake.counters.add("receive.http.calls")
            if method != "POST":
                refusal = Refusal("method", UNIMPLEMENTED, f"{method} is not understood here; POST is.")
                raise _Refused(405, refusal, (b"allow", b"POST"))
            sender = self._sender(headers)
            await self._export(_asked(headers), sender, receive)
        except _Refused as refused:
            self._intake.refuse(refused.refusal)
            await _answer_refusal(send, refused, in_json)
            return
        except _Gone:
            return
        except _Answered as answered:
            refusal = answered.refusal
            retry = (_retry_after(refusal.delay_s),) if refusal.delay_s is not None else ()
            await _answer_refusal(send, _Refused(_STATUS.get(refusal.code, 500), refusal, *retry), in_json)
            return
        except Exception:
            log.exception("a request met a fault of ours; it is not acknowledged")
            refusal = Refusal("fault", INTERNAL, "Internal error; the request was not stored.")
            self._intake.refuse(refusal)
            await _answer_refusal(send, _Refused(500, refusal), in_json)
            return
        await _answer(send, 200, JSON if in_json else PROTOBUF, b"{}" if in_json else b"")

    async def _beside(self, method: str, path: str, send: Send) -> None:
        """Answer anything but traces."""
        text = None
        status = 200
        if path in ("/healthz", "/livez"):
            text = "ok\n"
        elif path == "/readyz":
            status, text = (503, "draining\n") if self._intake.draining else (200, "ok\n")
        elif path == "/metrics" and self._metrics is not None:
            text = self._metrics()
        if text is None:
            kind = {"/v1/logs": "logs", "/v1/metrics": "metrics"}.get(path)
            said = (
                f"Tollspan takes traces and no {kind}: set OTEL_{kind.upper()}_EXPORTER=none, or send them elsewhere."
                if kind
                else f"There is nothing at {path}; traces go to {TRACES}."
            )
            raise _Refused(404, Refusal("path", UNIMPLEMENTED, said))
        if method not in ("GET", "HEAD"):
            refusal = Refusal("method", UNIMPLEMENTED, f"{method} is not understood here; GET is.")
            raise _Refused(405, refusal, (b"allow", b"GET, HEAD"))
        await _answer(send, status, "text/plain; charset=utf-8", text.encode())

    def _sender(self, headers: dict[bytes, str]) -> Sender | None:
        """Who sends, where senders log in.

        Raises:
            _Refused: nobody who may.
        """
        if self._senders is None:
            return None
        found = self._senders.who(headers.get(b"authorization"))
        if isinstance(found, Refusal):
            raise _Refused(401, found, (b"www-authenticate", b"Bearer"), (b"connection", b"close"))
        return found

    async def _export(self, asked: _Asked, sender: Sender | None, receive: Receive) -> None:
        """Take one request.

        Raises:
            _Refused, _Answered: it is not taken; the latter is counted already.
            _Gone: the sender hung up.
        """
        body, held = await self._body(asked, receive)
        try:
            refusal = await asyncio.get_running_loop().run_in_executor(self._pool, self._take, asked, sender, body)
        finally:
            self._held -= held
        if refusal is not None:
            raise _Answered(refusal)

    def _take(self, asked: _Asked, sender: Sender | None, body: bytes) -> Refusal | None:
        """Everything that takes time, on a thread of the pool."""
        if asked.encoding is not None:
            body = self._decompressed(body, asked.encoding)
        if asked.json and body:
            try:
                body = to_protobuf(body)
            except ValueError as error:
                raise _Refused(400, Refusal("malformed", INVALID_ARGUMENT, f"not OTLP/JSON: {error}")) from None
        return self._intake.take(body, sender=sender)

    def _decompressed(self, body: bytes, encoding: str) -> bytes:
        try:
            # One byte more than is allowed, never all that a small body may unfold to.
            plain = bytes(pa.CompressedInputStream(pa.BufferReader(body), CODECS[encoding]).read(self._max_bytes + 1))
        except (OSError, pa.ArrowInvalid):
            raise _Refused(400, Refusal("malformed", INVALID_ARGUMENT, f"The body is not {encoding}.")) from None
        if len(plain) > self._max_bytes:
            raise self._too_large()
        return plain

    async def _body(self, asked: _Asked, receive: Receive) -> tuple[bytes, int]:
        """The body as it was sent, and how much of `_held` it is: whoever gets it gives that back.

        Raises:
            _Refused: too large, too slow, or too much at once.
            _Gone: the sender hung up.
        """
        if asked.length is not None and asked.length > self._max_bytes:
            await self._pass_over(receive)
            raise self._too_large()
        parts: list[bytes] = []
        held = 0
        until = time.monotonic() + BODY_S
        try:
            while True:
                left = until - time.monotonic()
                try:
                    message = await asyncio.wait_for(receive(), max(0.0, min(STALLED_S, left)))
                except TimeoutError:
                    said = "The body did not come in time."
                    raise _Refused(408, Refusal("slow", DEADLINE_EXCEEDED, said), (b"connection", b"close")) from None
                if message["type"] == "http.disconnect":
                    raise _Gone
                part = message.get("body", b"")
                held += len(part)
                self._held += len(part)
                parts.append(part)
                if held > self._max_bytes:
                    raise self._too_large()
                if self._held > self._max_held:
                    said = "Too much comes in at once; send it again."
                    close = (b"connection", b"close")
                    raise _Refused(503, Refusal("memory", UNAVAILABLE, said), _retry_after(RETRY_S), close)
                if not message.get("more_body", False):
                    return b"".join(parts), held
        except BaseException:
            self._held -= held
            raise

    async def _pass_over(self, receive: Receive) -> None:
        """Read a body that is too large, up to twice what is allowed, and keep nothing of it.

        A sender that still sends does not read the answer, and loses it when the connection is closed.
        """
        left, until = 2 * self._max_bytes, time.monotonic() + STALLED_S
        with contextlib.suppress(TimeoutError):
            while left > 0:
                message = await asyncio.wait_for(receive(), max(0.0, until - time.monotonic()))
                left -= len(message.get("body", b""))
                if not message.get("more_body", False):
                    return

    def _too_large(self) -> _Refused:
        said = f"The request is larger than {self._max_bytes} bytes; send fewer spans at once."
        # What is left of the body is not read: the connection goes with it.
        return _Refused(413, Refusal("too_large", RESOURCE_EXHAUSTED, said), (b"connection", b"close"))


class _Gone(Exception):
    """The sender hung up before its request was whole."""


class _Answered(Exception):
    """The intake refused, and has counted it."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.message)
        self.refusal = refusal


class _Protocol(H11Protocol):
    """uvicorn's, which waits for the head of a request for ever and takes any number of connections."""

    max_connections: int
    _hurry: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.max_connections:
            transport.abort()
            return
        self._hurry = self.loop.call_later(STALLED_S, self._late)

    def data_received(self, data: bytes) -> None:
        before = self.cycle
        super().data_received(data)
        waiting = self.cycle is None or self.cycle.response_complete
        if self.cycle is not before or not waiting:
            self._calm()
        elif self._hurry is None:
            # The beginning of another request's head.
            self._hurry = self.loop.call_later(STALLED_S, self._late)

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


def _asked(headers: dict[bytes, str]) -> _Asked:
    """What the headers say of the body.

    Raises:
        _Refused: something that is not known.
    """
    content_type = headers.get(b"content-type", "").partition(";")[0].strip().lower()
    if content_type not in (PROTOBUF, JSON):
        said = f"Content-Type {content_type or '(none)'} is not known; {PROTOBUF} and {JSON} are."
        raise _Refused(415, Refusal("content_type", INVALID_ARGUMENT, said), (b"connection", b"close"))
    encoding = headers.get(b"content-encoding", "").strip().lower()
    if encoding in ("", "identity"):
        encoding = ""
    elif encoding not in CODECS:
        said = f"Content-Encoding {encoding} is not known; {', '.join(CODECS)} are."
        raise _Refused(415, Refusal("content_encoding", INVALID_ARGUMENT, said), (b"connection", b"close"))
    length = headers.get(b"content-length")
    return _Asked(content_type == JSON, encoding or None, int(length) if length and length.isdecimal() else None)


def _retry_after(delay_s: float) -> tuple[bytes, bytes]:
    return b"retry-after", str(math.ceil(delay_s)).encode()


async def _answer_refusal(send: Send, refused: _Refused, in_json: bool) -> None:
    """Tell why, as the OTLP specification has it: a ``google.rpc.Status`` in the request's encoding."""
    body = refused.refusal.status()
    if in_json:
        message = json_format.MessageToDict(status_pb2.Status.FromString(body))
        message.pop("details", None)
        body = json.dumps(message).encode()
    await _answer(send, refused.status, JSON if in_json else PROTOBUF, body, refused.headers)


async def _answer(
    send: Send, status: int, content_type: str, body: bytes, headers: Iterable[tuple[bytes, bytes]] = ()
) -> None:
    usual = ((b"content-type", content_type.encode()), (b"content-length", str(len(body)).encode()))
    await send({"type": "http.response.start", "status": status, "headers": [*usual, *headers]})
    await send({"type": "http.response.body", "body": body})
