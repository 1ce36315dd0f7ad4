"""OTLP/HTTP in: ``POST /v1/traces`` in protobuf or JSON, made durable before it is answered. Beside `receive`.

In: requests of any OTLP/HTTP exporter, plain, gzip or zstd. Out: payloads in the journal in protobuf form, and answers
in the request's own encoding. ``/healthz``, ``/readyz`` and ``/metrics`` stand on the same port; ``/v1/logs`` and
``/v1/metrics`` where somebody takes them (`intake.Signals`).

What a sender is told, with a ``google.rpc.Status`` as the body of every refusal:

    200   durable; with ``partialSuccess`` where some spans can be nobody's: these are not to be sent again
    400   not an OTLP trace request, not what its headers say, or without any good span; sending it again will not help
    401   no bearer token, or one that is not known
    404   another path, also that of logs and metrics where nobody takes them (the Python SDK would try a 501 again)
    405   another method
    408   the body did not come in time, with Retry-After
    413   larger than ``max_request_bytes``, as sent or decompressed
    415   a content type or encoding that is not known
    429   more than this sender may send a second, with Retry-After
    503   not stored (disk, journal full, shutting down, too much at once), with Retry-After: send it again

`http_server` speaks HTTP, on one thread of its own: slow senders hold a connection there and no thread. What a request
costs (decompression, JSON, the wait for the disk) is done by threads of a pool.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import pyarrow as pa
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
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from tollspan.processor.addresses import parse_address, require_loopback
from tollspan.processor.http_server import HttpServer, Receive, Send
from tollspan.processor.intake import RETRY_S, SHUTTING_DOWN, TOO_MUCH, TRACES, Answer, Intake, Partial, Refusal
from tollspan.processor.otlp_json import other_to_protobuf, to_protobuf
from tollspan.processor.senders import Sender, Senders
from tollspan.processor.tls import Tls

log = logging.getLogger(__name__)

PROTOBUF: Final = "application/x-protobuf"
JSON: Final = "application/json"
PATHS: Final = {"/v1/traces": TRACES, "/v1/logs": "logs", "/v1/metrics": "metrics"}
CODECS: Final = {"gzip": "gzip", "zstd": "zstd"}
"""Content-Encoding → pyarrow's codec."""

PIECE_BYTES: Final = 1 << 20
"""A body is decompressed by so much at a time, and each piece counted before the next is made."""
JSON_WEIGHT: Final = 8
"""Objects of Python's take so many times the room of the JSON that they were read from, about."""
CLOSE: Final = (b"connection", b"close")
"""What is left of the body is not read: the connection goes with it."""

_STATUS: Final = {INVALID_ARGUMENT: 400, RESOURCE_EXHAUSTED: 429, UNAVAILABLE: 503, INTERNAL: 500}


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


@dataclass(frozen=True, slots=True)
class HttpSettings:
    """How connections of the OTLP/HTTP port are treated.

    Attributes:
        max_request_bytes: size of a request at the most, as sent and decompressed.
        max_connections: connections at once; one more is hung up on.
        threads: requests decompressed and stored at once.
        stalled_s: seconds for a request's head, and without a byte of its body, after which a connection is given up.
        body_s: seconds that a whole body may take.
        idle_s: seconds that a connection may be silent between requests.
    """

    max_request_bytes: int = 64 << 20
    max_connections: int = 4096
    threads: int = 32
    stalled_s: float = 15.0
    body_s: float = 60.0
    idle_s: float = 75.0

    def __post_init__(self) -> None:
        if min(self.threads, self.max_connections, self.max_request_bytes) < 1:
            raise ValueError("threads, connections and bytes are at least 1")
        if min(self.stalled_s, self.body_s, self.idle_s) <= 0:
            raise ValueError("stalled, body and idle are above zero")


class HttpReceiver:
    """The OTLP/HTTP server.

    Args:
        intake: the way into the journal; its counters also count ``receive.http.calls``.
        address: ``host:port``; port 0 takes a free one.
        tls: certificate, and whose certificates senders need; None for no encryption.
        senders: who may send, by bearer token; None: everybody who can connect.
        insecure_listen: allow addresses other than loopback although nothing is encrypted.
        settings: see `HttpSettings`.
        metrics: text that ``/metrics`` answers with; None for no such page.
        pages: path → status and text, in the place of what ``/healthz``, ``/livez`` and ``/readyz`` say by themselves.

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
        settings: HttpSettings | None = None,
        metrics: Callable[[], str] | None = None,
        pages: Mapping[str, Callable[[], tuple[int, str]]] | None = None,
    ) -> None:
        self._intake, self._senders = intake, senders
        self._address, self._tls, self._insecure_listen = address, tls, insecure_listen
        self._settings = settings or HttpSettings()
        self._max_bytes, self._bodies = self._settings.max_request_bytes, intake.bodies
        self._pool = ThreadPoolExecutor(self._settings.threads, thread_name_prefix="tollspan-http")
        self._metrics = metrics
        self._pages = dict(pages or {})
        self._server = HttpServer(
            self._app,
            address=address,
            name="tollspan-http",
            tls=tls,
            max_connections=self._settings.max_connections,
            stalled_s=self._settings.stalled_s,
            idle_s=self._settings.idle_s,
        )

    def start(self) -> str:
        """Listen and serve; returns the ``host:port`` in use.

        Raises:
            ConfigError: the address is malformed, taken, not of this machine, or open without TLS and
                ``insecure_listen``.
        """
        host, _ = parse_address(self._address)
        if self._tls is None and not self._insecure_listen:
            require_loopback(self._address, host)
        return self._server.start()

    def stop(self, grace_s: float = 1.0) -> None:
        """Close the port, let requests in flight finish for ``grace_s`` seconds, then hang up. Idempotent."""
        self._server.stop(grace_s)
        self._pool.shutdown(wait=False)

    async def _app(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """One request, as ASGI has it."""
        if scope["type"] != "http":
            return
        method, path = scope["method"], scope["path"]
        headers = {name: value.decode("latin-1").strip() for name, value in scope["headers"]}
        in_json = headers.get(b"content-type", "").partition(";")[0].strip().lower() == JSON
        try:
            signal = PATHS.get(path)
            if signal is None:
                await self._beside(method, path, send)
                return
            self._intake.counters.add("receive.http.calls")
            refusal = self._intake.refusal_of(signal)
            if refusal is not None:
                raise _Refused(404, refusal, CLOSE)
            if method != "POST":
                refusal = Refusal("method", UNIMPLEMENTED, f"{method} is not understood here; POST is.")
                raise _Refused(405, refusal, (b"allow", b"POST"))
            sender = self._sender(headers)
            answer = await self._export(signal, _asked(headers), sender, receive)
        except _Refused as refused:
            self._intake.refuse(refused.refusal)
            await _answer_refusal(send, refused, in_json)
        except _Gone:
            pass
        except asyncio.CancelledError:
            # The time of a stop is up, and it may not be stored. uvicorn would say 500, which senders take for final.
            self._intake.refuse(SHUTTING_DOWN)
            await _answer_refusal(send, _Refused(503, SHUTTING_DOWN, CLOSE), in_json)
            raise
        except Exception:
            log.exception("a request met a fault of ours; it is not acknowledged")
            refusal = Refusal("fault", INTERNAL, "Internal error; the request was not stored.")
            self._intake.refuse(refusal)
            await _answer_refusal(send, _Refused(500, refusal), in_json)
        else:
            if isinstance(answer, Refusal):
                await _answer_refusal(send, _Refused(_STATUS.get(answer.code, 500), answer), in_json)
            else:
                await _answer(send, 200, JSON if in_json else PROTOBUF, _success(answer, in_json))

    async def _beside(self, method: str, path: str, send: Send) -> None:
        """Answer anything but traces."""
        text = None
        status = 200
        if path in self._pages:
            status, text = self._pages[path]()
        elif path in ("/healthz", "/livez"):
            text = "ok\n"
        elif path == "/readyz":
            status, text = (503, f"{self._intake.trouble}\n") if self._intake.trouble else (200, "ok\n")
        elif path == "/metrics" and self._metrics is not None:
            text = self._metrics()
        if text is None:
            said = f"There is nothing at {path}; traces go to /v1/traces."
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
            raise _Refused(401, found, (b"www-authenticate", b"Bearer"), CLOSE)
        return found

    async def _export(self, signal: str, asked: _Asked, sender: Sender | None, receive: Receive) -> Answer:
        """Take one request.

        Raises:
            _Refused: it is not taken, and that is not counted yet.
            _Gone: the sender hung up.
        """
        body = await self._body(asked, receive)
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, self._take, signal, asked, sender, body)
        finally:
            self._bodies.free(len(body))

    def _take(self, signal: str, asked: _Asked, sender: Sender | None, body: bytes) -> Answer:
        """Everything that takes time, on a thread of the pool."""
        more = 0
        try:
            if asked.encoding is not None:
                body = self._decompressed(body, asked.encoding)
                more = len(body)
            if not asked.json or not body:
                if signal != TRACES:
                    return self._intake.take_other(signal, body, sender)
                return self._intake.take(body, sender=sender)
            if 2 * JSON_WEIGHT * len(body) > self._bodies.most:
                raise self._too_large(self._bodies.most // (2 * JSON_WEIGHT))
            if not self._bodies.hold(JSON_WEIGHT * len(body)):
                raise _too_much()
            more += JSON_WEIGHT * len(body)
            try:
                if signal != TRACES:
                    return self._intake.take_other(signal, other_to_protobuf(signal, body), sender)
                found = to_protobuf(body)
            except ValueError as error:
                raise _Refused(400, Refusal("malformed", INVALID_ARGUMENT, f"not OTLP/JSON: {error}")) from None
            return self._intake.take(found.payload, sender=sender, left_out=found.left_out, why=found.why)
        finally:
            self._bodies.free(more)

    def _decompressed(self, body: bytes, encoding: str) -> bytes:
        """The body as it was, held in `Intake.bodies` by its length; never more of it than may be."""
        parts: list[pa.Buffer] = []
        size = 0
        try:
            stream = pa.CompressedInputStream(pa.BufferReader(body), CODECS[encoding])
            # Buffers of Arrow's pool, which go back to the kernel; a thread's heap would keep what a bomb left.
            while len(part := stream.read_buffer(min(PIECE_BYTES, self._max_bytes + 1 - size))):
                if not self._bodies.hold(len(part)):
                    raise _too_much()
                size += len(part)
                if size > self._max_bytes:
                    raise self._too_large()
                parts.append(part)
            return b"".join(parts)
        except BaseException as error:
            self._bodies.free(size)
            if isinstance(error, OSError | pa.ArrowInvalid):
                said = f"The body is not {encoding}."
                raise _Refused(400, Refusal("malformed", INVALID_ARGUMENT, said)) from None
            raise

    async def _body(self, asked: _Asked, receive: Receive) -> bytes:
        """The body as it was sent, held in `Intake.bodies`: whoever gets it frees that.

        Raises:
            _Refused: too large, too slow, or too much at once.
            _Gone: the sender hung up.
        """
        if asked.length is not None and asked.length > self._max_bytes:
            await self._pass_over(receive)
            raise self._too_large()
        parts: list[bytes] = []
        held = 0
        until = time.monotonic() + self._settings.body_s
        try:
            while True:
                left = until - time.monotonic()
                try:
                    message = await asyncio.wait_for(receive(), max(0.0, min(self._settings.stalled_s, left)))
                except TimeoutError:
                    refusal = Refusal("slow", DEADLINE_EXCEEDED, "The body did not come in time.", RETRY_S)
                    raise _Refused(408, refusal, CLOSE) from None
                if message["type"] == "http.disconnect":
                    raise _Gone
                part = message.get("body", b"")
                if not self._bodies.hold(len(part)):
                    raise _too_much()
                held += len(part)
                parts.append(part)
                if held > self._max_bytes:
                    raise self._too_large()
                if not message.get("more_body", False):
                    return b"".join(parts)
        except BaseException:
            self._bodies.free(held)
            raise

    async def _pass_over(self, receive: Receive) -> None:
        """Read a body that is too large, up to twice what is allowed, and keep nothing of it.

        A sender that still sends does not read the answer, and loses it when the connection is closed.
        """
        left, until = 2 * self._max_bytes, time.monotonic() + self._settings.stalled_s
        with contextlib.suppress(TimeoutError):
            while left > 0:
                message = await asyncio.wait_for(receive(), max(0.0, until - time.monotonic()))
                left -= len(message.get("body", b""))
                if not message.get("more_body", False):
                    return

    def _too_large(self, most: int | None = None) -> _Refused:
        said = f"The request is larger than {most or self._max_bytes} bytes; send fewer spans at once."
        return _Refused(413, Refusal("too_large", RESOURCE_EXHAUSTED, said), CLOSE)


class _Gone(Exception):
    """The sender hung up before its request was whole."""


def _asked(headers: dict[bytes, str]) -> _Asked:
    """What the headers say of the body.

    Raises:
        _Refused: something that is not known.
    """
    content_type = headers.get(b"content-type", "").partition(";")[0].strip().lower()
    if content_type not in (PROTOBUF, JSON):
        said = f"Content-Type {content_type or '(none)'} is not known; {PROTOBUF} and {JSON} are."
        raise _Refused(415, Refusal("content_type", INVALID_ARGUMENT, said), CLOSE)
    encoding = headers.get(b"content-encoding", "").strip().lower()
    if encoding in ("", "identity"):
        encoding = ""
    elif encoding not in CODECS:
        said = f"Content-Encoding {encoding} is not known; {', '.join(CODECS)} are."
        raise _Refused(415, Refusal("content_encoding", INVALID_ARGUMENT, said), CLOSE)
    length = headers.get(b"content-length")
    return _Asked(content_type == JSON, encoding or None, int(length) if length and length.isdecimal() else None)


def _too_much() -> _Refused:
    return _Refused(503, TOO_MUCH, CLOSE)


def _success(partial: Partial | None, in_json: bool) -> bytes:
    """The body of a 200: an ``ExportTraceServiceResponse``."""
    response = ExportTraceServiceResponse()
    if partial is not None:
        response.partial_success.rejected_spans = partial.rejected
        response.partial_success.error_message = partial.message
    return json_format.MessageToJson(response, indent=None).encode() if in_json else response.SerializeToString()


async def _answer_refusal(send: Send, refused: _Refused, in_json: bool) -> None:
    """Tell why, as the OTLP specification has it: a ``google.rpc.Status`` in the request's encoding."""
    body = refused.refusal.status()
    if in_json:
        message = json_format.MessageToDict(status_pb2.Status.FromString(body))
        message.pop("details", None)
        body = json.dumps(message).encode()
    headers = refused.headers
    if (delay_s := refused.refusal.delay_s) is not None:
        headers = (*headers, (b"retry-after", str(math.ceil(delay_s)).encode()))
    await _answer(send, refused.status, JSON if in_json else PROTOBUF, body, headers)


async def _answer(
    send: Send, status: int, content_type: str, body: bytes, headers: Iterable[tuple[bytes, bytes]] = ()
) -> None:
    usual = ((b"content-type", content_type.encode()), (b"content-length", str(len(body)).encode()))
    await send({"type": "http.response.start", "status": status, "headers": [*usual, *headers]})
    await send({"type": "http.response.body", "body": body})
