"""OTLP/gRPC in: requests are checked, made durable by the journal, and only then acknowledged.

In: ``TraceService/Export`` calls as raw bytes, gzip, deflate or plain. Out: payloads in the journal, and answers. First
in the line; no request is parsed into objects here. On the same port: ``LogsService`` and ``MetricsService`` (refused,
or handed on: `intake.Signals`), ``grpc.health.v1`` and server reflection (v1 and v1alpha).

What a sender is told:

    OK                  durable; it will be priced once even if this process dies now. Also for an empty request. With
                        ``partial_success`` where some of its spans can be nobody's: these are not to be sent again
    INVALID_ARGUMENT    not an OTLP trace request, or without any good span; sending it again will not help
    UNAUTHENTICATED     no bearer token, or one that is not known; said before the body is read
    UNAVAILABLE         not stored (disk, journal full, shutting down, too much at once), with RetryInfo: send it again
    RESOURCE_EXHAUSTED  with RetryInfo: more than this sender may send a second; without: larger than
                        ``max_request_bytes`` when decompressed
    CANCELLED           the body did not come in time (see `patience`); may be sent again
    UNIMPLEMENTED       logs and metrics where nobody takes them, and everything else

What is too large is refused by gRPC itself while it reads, with nothing to add to: the Collector takes that for final,
as it should, and the Python SDK tries in vain until its deadline. zstd is not among the compressions that grpcio knows:
it answers INTERNAL before we hear of it, and a Collector drops what it sent. Over OTLP/HTTP zstd is taken.

All that wait for the journal share one sync. A unary call is served as a stream of one message, so that its head is
there before its body: who may not send is refused before anything is read, and a call whose body does not come can be
ended. (On the same machine that took as much CPU as gRPC's own unary handler, and grpc.aio 5 to 20 % more for 512-span
requests.) No thread waits for a call (`direct`): gRPC's polling thread checks the body, and the journal's sends the
answer. Where grpcio is not as it was, and for requests that take long or may wait (large ones, bad spans, other
signals), a thread serves it.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial, wraps
from typing import Any, Final, TypeAlias

import grpc
from google.rpc.code_pb2 import UNAVAILABLE
from grpc_health.v1 import health, health_pb2
from grpc_reflection.v1alpha import reflection, reflection_pb2
from opentelemetry.proto.collector.logs.v1 import logs_service_pb2
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2

from tollspan.processor.addresses import (
    cannot_listen,
    is_loopback,
    parse_address,
    require_loopback,
    shown,
    try_to_bind,
)
from tollspan.processor.decode import fused
from tollspan.processor.direct import Call, Direct, Metadata, trouble
from tollspan.processor.intake import (
    FAULT,
    SHUTTING_DOWN,
    SOON_BYTES,
    TOO_MUCH,
    TRACES,
    Answer,
    Answered,
    Intake,
    Partial,
    Refusal,
)
from tollspan.processor.memory import give_back
from tollspan.processor.patience import Patience
from tollspan.processor.senders import Sender, Senders
from tollspan.processor.tls import Tls

log = logging.getLogger(__name__)

__all__ = ["EXPORT", "SERVICE", "GrpcSettings", "Receiver", "is_loopback", "parse_address"]

SERVICE: Final = "opentelemetry.proto.collector.trace.v1.TraceService"
EXPORT: Final = f"/{SERVICE}/Export"
_OK: Final = b""
"""An ``Export…ServiceResponse`` without partial success."""

_DETAILS: Final = "grpc-status-details-bin"
_CODES: Final = {code.value[0]: code for code in grpc.StatusCode}

_BROKEN: Final = Refusal("broken", grpc.StatusCode.CANCELLED.value[0], "The request did not come whole.")
"""Mostly nobody hears it, the call being over."""

_SIGNALS: Final = {
    str(module.DESCRIPTOR.services_by_name[name].full_name): signal
    for signal, name, module in (
        (TRACES, "TraceService", trace_service_pb2),
        ("logs", "LogsService", logs_service_pb2),
        ("metrics", "MetricsService", metrics_service_pb2),
    )
}
"""Service → signal."""

SLOW_SOON_BYTES: Final = SOON_BYTES // 16
"""What is looked at where it arrives while the compiled decoder is not at hand."""

MAX_WATCHERS: Final = 32
"""Streams of ``Health/Watch`` at once: each keeps a thread."""
WATCH_S: Final = 1.0
"""Seconds between two looks at whether a watcher is still there."""

_Waiting: TypeAlias = tuple[str, Call, Sender | None]
"""A call whose body is not asked for yet, with its signal and sender."""

_REFLECTION: Final = ("grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection")
"""Both have the same messages."""
_REFLECTION_S: Final = 60.0
"""Seconds that a reflection stream may stay open: each keeps a thread."""


@dataclass(frozen=True, slots=True)
class GrpcSettings:
    """How connections of the OTLP/gRPC port are treated.

    Attributes:
        max_request_bytes: size of a decompressed request at the most.
        threads: calls served at once; those that wait for their body are among them, and cost little.
        max_calls: calls that are served or wait for a thread; more of them are asked to come again.
        max_concurrent_streams: calls at once on one connection; gRPC refuses more with UNAVAILABLE.
        max_connection_age_s: connections are asked to reconnect after this time, so that balancers can spread them.
        max_connection_age_grace_s: seconds that calls get to end then.
        max_connection_idle_s: connections without a call for so long are closed.
        keepalive_time_s: seconds of silence after which a connection is asked whether it still lives.
        keepalive_timeout_s: seconds that it gets to answer.
        min_ping_interval_s: who pings more often than this while nothing is sent is hung up on.
        handshake_s: seconds for a connection's beginning, TLS and HTTP/2.
        stalled_s: seconds for a body to come; fewer, down to ``hurried_s``, while many calls wait (see `patience`).
        hurried_s: seconds that a body has at least.
        direct: calls are served without threads that wait for them, where the installed grpcio allows it.
    """

    max_request_bytes: int = 64 << 20
    threads: int = 1024
    max_calls: int = 8192
    max_concurrent_streams: int = 1000
    max_connection_age_s: float = 180.0
    max_connection_age_grace_s: float = 60.0
    max_connection_idle_s: float = 150.0
    keepalive_time_s: float = 60.0
    keepalive_timeout_s: float = 20.0
    min_ping_interval_s: float = 10.0
    handshake_s: float = 15.0
    stalled_s: float = 30.0
    hurried_s: float = 2.0
    direct: bool = True

    def __post_init__(self) -> None:
        if min(self.threads, self.max_calls, self.max_concurrent_streams, self.max_request_bytes) < 1:
            raise ValueError("threads, calls, streams and bytes are at least 1")
        if not 0 < self.hurried_s <= self.stalled_s:
            raise ValueError("hurried is above zero, and no longer than stalled")

    def options(self) -> tuple[tuple[str, int], ...]:
        """Channel arguments of gRPC's."""

        def ms(seconds: float) -> int:
            return int(seconds * 1000)

        return (
            # Without this a second server would share the port, and each would get some of the spans.
            ("grpc.so_reuseport", 0),
            ("grpc.max_receive_message_length", self.max_request_bytes),
            ("grpc.max_concurrent_streams", self.max_concurrent_streams),
            ("grpc.max_connection_age_ms", ms(self.max_connection_age_s)),
            ("grpc.max_connection_age_grace_ms", ms(self.max_connection_age_grace_s)),
            ("grpc.max_connection_idle_ms", ms(self.max_connection_idle_s)),
            ("grpc.keepalive_time_ms", ms(self.keepalive_time_s)),
            ("grpc.keepalive_timeout_ms", ms(self.keepalive_timeout_s)),
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.min_ping_interval_without_data_ms", ms(self.min_ping_interval_s)),
            ("grpc.server_handshake_timeout_ms", ms(self.handshake_s)),
        )


class Receiver:
    """The OTLP/gRPC server.

    Args:
        intake: the way into the journal; its counters also count ``receive.calls`` begun, and ``receive.broken`` ones
            that had no whole body: too large, broken off, or ``receive.stalled``.
        address: ``host:port``; port 0 takes a free one.
        tls: certificate, and whose certificates senders need; None for no encryption.
        senders: who may send, by bearer token; None: everybody who can connect.
        insecure_listen: allow addresses other than loopback although nothing is encrypted.
        settings: see `GrpcSettings`.

    Raises (from `start`):
        ConfigError: the address cannot be listened on.
    """

    def __init__(
        self,
        intake: Intake,
        *,
        address: str = "127.0.0.1:4317",
        tls: Tls | None = None,
        senders: Senders | None = None,
        insecure_listen: bool = False,
        settings: GrpcSettings | None = None,
    ) -> None:
        self._intake, self._senders = intake, senders
        self._counters = intake.counters
        self._address, self._tls, self._insecure_listen = address, tls, insecure_listen
        self._settings = settings or GrpcSettings()
        self._patience = Patience(
            self._settings.stalled_s,
            self._settings.hurried_s,
            64,
            self._counters,
            lambda: self._calls - self._served,
            intake.give_up_late,
        )
        self._reflecting = Patience(_REFLECTION_S, _REFLECTION_S, 1, self._counters)
        self._lock, self._calls, self._served = threading.Lock(), 0, 0
        self._behind: deque[_Waiting] = deque()
        self._threads = _Threads(self._settings.threads, "tollspan-receive")
        self._server: Any = None
        self._statuses: dict[str, Any] = {}
        self._changed, self._watchers, self._ended = threading.Condition(), 0, False
        self._reflection = reflection.ReflectionServicer([*_SIGNALS, health.SERVICE_NAME, *_REFLECTION])
        self._pools: tuple[_Threads, ...] = ()

    def start(self) -> str:
        """Listen and serve; returns the ``host:port`` in use.

        Raises:
            ConfigError: the address is malformed, taken, not of this machine, or open without ``insecure_listen``.
        """
        host, port = parse_address(self._address)
        if self._tls is None and not self._insecure_listen:
            require_loopback(self._address, host)
        try_to_bind(host, port)
        self._direct = self._settings.direct
        if self._direct and (why := trouble()):
            log.warning("grpcio %s: %s; each call takes a thread, and more CPU time", grpc.__version__, why)
            self._direct = False
        server = grpc.server(
            self._threads,
            handlers=[_Router(self, self._handlers())],
            options=self._settings.options(),
        )
        try:
            if self._tls is None:
                bound = server.add_insecure_port(shown(host, port))
            else:
                bound = server.add_secure_port(shown(host, port), self._tls.grpc_credentials())
        except RuntimeError as error:
            server.stop(None)
            raise cannot_listen(host, port, "the address cannot be bound") from error
        self._intake.tell(self._well)
        self._patience.start()
        self._reflecting.start()
        server.start()
        self._server = server
        return shown(host, bound)

    def drain(self, grace_s: float) -> bool:
        """Refuse new requests with UNAVAILABLE, report NOT_SERVING, and let those in flight finish.

        Args:
            grace_s: seconds that they get.

        Returns:
            True if none is in flight any more.
        """
        return self._intake.drain(grace_s)

    def stop(self, grace_s: float = 1.0) -> None:
        """Close the port and all connections; what is still in flight after ``grace_s`` is cut off. Idempotent."""
        server, self._server = self._server, None
        if server is not None:
            self._ended = True
            with self._changed:
                self._changed.notify_all()
            server.stop(grace_s).wait()
            self._patience.stop()
            self._reflecting.stop()
            for pool in (self._threads, *self._pools):
                pool.shutdown(wait=False, cancel_futures=True)

    def report(self, service: str, good: bool) -> None:
        """Answer health checks of a part of the processor, from `start` on; the whole one's health is not touched."""
        status = health_pb2.HealthCheckResponse.SERVING if good else health_pb2.HealthCheckResponse.NOT_SERVING
        with self._changed:
            self._statuses[service] = status
            self._changed.notify_all()

    def _well(self, trouble: str) -> None:
        for service in ("", SERVICE):
            self.report(service, not trouble)

    # -- calls ---------------------------------------------------------------------------------------------------------

    def _export(self, signal: str, requests: Iterator[bytes], context: Any) -> bytes:
        """Serve one request; called by gRPC on a thread of its pool, when the head is there."""
        with self._lock:
            self._served += 1
        try:
            answer = self._answer(signal, requests, context)
        finally:
            with self._lock:
                self._served -= 1
                self._calls -= 1
        return _abort(context, answer) if isinstance(answer, Refusal) else _response(answer)

    def _answer(self, signal: str, requests: Iterator[bytes], context: Any) -> Answer:
        sender = self._sender(signal, context.invocation_metadata())
        if isinstance(sender, Refusal):
            self._intake.refuse(sender)
            return sender
        try:
            with self._patience.watch(context):
                payload = next(requests, None)
        except grpc.RpcError:
            payload = None
        if payload is None:
            self._counters.add("receive.broken")
            give_back()  # it may have been too large when decompressed
            return _BROKEN
        if not self._intake.bodies.hold(len(payload)):
            self._intake.refuse(TOO_MUCH)
            return TOO_MUCH
        try:
            return self._take(signal, payload, context, sender)
        finally:
            self._intake.bodies.free(len(payload))

    def _sender(self, signal: str, metadata: Any) -> Sender | Refusal | None:
        """Who sends, None where nobody logs in; or why nothing is taken, as far as a call's head shows."""
        refusal = self._intake.refusal_of(signal) or (SHUTTING_DOWN if self._intake.draining else None)
        if refusal is not None or self._senders is None:
            return refusal
        return self._senders.who(dict(metadata).get("authorization"))

    def _take(self, signal: str, payload: bytes, call: Any, sender: Sender | None) -> Answer:
        """Take a request, on a thread that may wait."""
        if signal != TRACES:
            return self._intake.take_other(signal, payload, sender)
        return self._intake.take(payload, call.time_remaining(), sender)

    # -- calls that no thread waits for: each step is taken by the thread that makes it possible -----------------------

    def _behaviour(self, signal: str) -> Any:
        """What gRPC is to do with exports of a signal."""
        return Direct(partial(self._begin, signal)).behaviour if self._direct else partial(self._export, signal)

    def _begin(self, signal: str, call: Call) -> None:
        """The head is there: gRPC's polling thread."""
        try:
            sender = self._sender(signal, call.metadata)
        except Exception:
            log.exception("a call met a fault of ours")
            sender = FAULT
        if isinstance(sender, Refusal):
            self._intake.refuse(sender)
            with self._lock:
                self._calls -= 1
            _refuse(call, sender)
            return
        with self._lock:
            if self._served >= self._settings.threads:
                self._behind.append((signal, call, sender))
                return
            self._served += 1
        self._receive((signal, call, sender))

    def _receive(self, following: _Waiting | None) -> None:
        """Ask for the body of a call, and of the next one where that call is over."""
        while following is not None:
            signal, call, sender = following
            self._patience.begin(call)
            if call.receive(partial(self._came, signal, call, sender)):
                return
            self._patience.end(call)
            self._counters.add("receive.broken")
            following = self._next()

    def _next(self) -> _Waiting | None:
        """A call is over: the one that takes its place."""
        with self._lock:
            self._calls -= 1
            following = self._behind.popleft() if self._behind else None
            self._served -= following is None
            return following

    def _came(self, signal: str, call: Call, sender: Sender | None, payload: bytes | None) -> None:
        """The body is there, or will not be: gRPC's polling thread."""
        self._patience.end(call)
        if payload is None:
            self._counters.add("receive.broken")
            give_back()
            self._end(call, 0, _BROKEN)
            return
        size = len(payload)
        if not self._intake.bodies.hold(size):
            self._intake.refuse(TOO_MUCH)
            self._end(call, 0, TOO_MUCH)
            return
        end = partial(self._end, call, size)
        rest: Callable[[], object] | None = partial(self._take_all, signal, payload, call, sender, end)
        if signal == TRACES and size <= (SOON_BYTES if fused.ready() else SLOW_SOON_BYTES):
            try:
                rest = self._intake.take_soon(payload, end, call.time_remaining(), sender)
            except Exception:
                log.exception("a request met a fault of ours; it is not acknowledged")
                self._intake.refuse(FAULT)
                end(FAULT)
                return
        if rest is None:
            return
        try:
            self._threads.submit(rest)
        except RuntimeError:
            # Not one thread is to be had.
            rest()

    def _take_all(self, signal: str, payload: bytes, call: Call, sender: Sender | None, end: Answered) -> None:
        end(self._take(signal, payload, call, sender))

    def _end(self, call: Call, held: int, answer: Answer) -> None:
        """Answer a call: mostly the journal's thread."""
        self._intake.bodies.free(held)
        following = self._next()
        try:
            if isinstance(answer, Refusal):
                _refuse(call, answer)
            else:
                call.answer(_response(answer))
        except Exception:
            log.exception("a call could not be answered")
        self._receive(following)

    # -- overload and what else is on the port -------------------------------------------------------------------------

    def _one_too_many(self) -> bool:
        """Count a call as begun, unless there are too many already."""
        self._counters.add("receive.calls")
        with self._lock:
            if self._calls >= self._settings.max_calls:
                return True
            self._calls += 1
            return False

    def _overload(self, _: Iterator[bytes], context: Any) -> bytes:
        self._intake.refuse(TOO_MUCH)
        return _abort(context, TOO_MUCH)

    def _handlers(self) -> dict[str, Any]:
        """What is answered beside exports: method → handler.

        They have threads of their own, so that health checks are answered while every other thread waits, watchers'
        among them.
        """
        checking, watching, reflecting = (_Threads(n, "tollspan-health") for n in (4, MAX_WATCHERS + 1, 4))
        self._pools = (*self._pools, checking, watching, reflecting)
        check = grpc.stream_unary_rpc_method_handler(
            _on(checking, self._check),
            health_pb2.HealthCheckRequest.FromString,
            health_pb2.HealthCheckResponse.SerializeToString,
        )
        watch = grpc.stream_stream_rpc_method_handler(
            _on(watching, self._watch),
            health_pb2.HealthCheckRequest.FromString,
            health_pb2.HealthCheckResponse.SerializeToString,
        )
        reflect = grpc.stream_stream_rpc_method_handler(
            _on(reflecting, self._reflect),
            reflection_pb2.ServerReflectionRequest.FromString,
            reflection_pb2.ServerReflectionResponse.SerializeToString,
        )
        return {
            f"/{health.SERVICE_NAME}/Check": check,
            f"/{health.SERVICE_NAME}/Watch": watch,
            **{f"/{service}/ServerReflectionInfo": reflect for service in _REFLECTION},
        }

    def _check(self, requests: Iterator[Any], context: Any) -> Any:
        with self._patience.watch(context):
            request = next(requests, None)
        status = self._statuses.get(request.service if request is not None else "")
        if status is None:
            context.abort(grpc.StatusCode.NOT_FOUND, f"Known are {', '.join(sorted(filter(None, self._statuses)))}.")
        return health_pb2.HealthCheckResponse(status=status)

    def _watch(self, requests: Iterator[Any], context: Any) -> Iterator[Any]:
        """Tell a service's health now and whenever it changes.

        Not the library's: that one sends with a lock held which gRPC's polling thread takes when a watcher leaves, so
        that one who reads nothing brings all of the server to a stop (grpcio-health-checking 1.85).
        """
        with self._lock:
            too_many = self._watchers >= MAX_WATCHERS
            self._watchers += not too_many
        if too_many:
            _abort(context, Refusal("watchers", UNAVAILABLE, "Too many watch already; ask Check instead."))
        try:
            with self._patience.watch(context):
                request = next(requests, None)
            service, told = request.service if request is not None else "", None
            while context.is_active() and not self._ended:
                status = self._statuses.get(service, health_pb2.HealthCheckResponse.SERVICE_UNKNOWN)
                if status != told:
                    told = status
                    yield health_pb2.HealthCheckResponse(status=status)
                else:
                    with self._changed:
                        self._changed.wait(WATCH_S)
        finally:
            with self._lock:
                self._watchers -= 1

    def _reflect(self, requests: Iterator[Any], context: Any) -> Iterator[Any]:
        with self._reflecting.watch(context):
            yield from self._reflection.ServerReflectionInfo(requests, context)


class _Router(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Routes exports to the receiver without (de)serializers: bytes in, bytes out."""

    def __init__(self, receiver: Receiver, beside: dict[str, Any]) -> None:
        self._one_too_many = receiver._one_too_many
        self._beside = beside
        few = _Threads(2, "tollspan-overload")
        receiver._pools = (*receiver._pools, few)
        self._overload = grpc.stream_unary_rpc_method_handler(_on(few, receiver._overload))
        self._exports = {
            f"/{service}/Export": grpc.stream_unary_rpc_method_handler(receiver._behaviour(signal))
            for service, signal in _SIGNALS.items()
        }

    def service(self, handler_call_details: Any) -> Any:
        export = self._exports.get(handler_call_details.method)
        if export is None:
            return self._beside.get(handler_call_details.method)
        return self._overload if self._one_too_many() else export


class _Threads(ThreadPoolExecutor):
    """A pool that does with fewer threads where the system gives no more: gRPC's one polling thread submits here, and
    an exception would end it."""

    def __init__(self, most: int, name: str) -> None:
        super().__init__(most, thread_name_prefix=name)

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """As the base class; work that got no thread of its own is done by the next that is free."""
        try:
            return super().submit(fn, *args, **kwargs)
        except RuntimeError:
            if not self._threads:
                raise
            done: Future[Any] = Future()
            done.set_result(None)
            return done


def _on(pool: ThreadPoolExecutor, behaviour: Callable[..., Any], **attributes: object) -> Callable[..., Any]:
    """The same, run by these threads: gRPC looks at attributes of the function."""

    @wraps(behaviour)
    def run(*args: Any) -> Any:
        return behaviour(*args)

    vars(run).update(attributes, experimental_thread_pool=pool)
    return run


def _response(answer: Partial | None) -> bytes:
    """An ``Export…ServiceResponse``."""
    if answer is None:
        return _OK
    response = trace_service_pb2.ExportTraceServiceResponse()
    response.partial_success.rejected_spans = answer.rejected
    response.partial_success.error_message = answer.message
    return bytes(response.SerializeToString())


def _refuse(call: Call, refusal: Refusal) -> None:
    """End a call that no thread serves with a refusal."""
    call.refuse(_CODES[refusal.code], refusal.message, _details(refusal))


def _details(refusal: Refusal) -> Metadata | None:
    return ((_DETAILS, refusal.status()),) if refusal.delay_s is not None else None


def _abort(context: Any, refusal: Refusal) -> bytes:
    """End the call with a refusal; raises, as gRPC has it."""
    if (details := _details(refusal)) is not None:
        context.set_trailing_metadata(details)
    context.abort(_CODES[refusal.code], refusal.message)
    raise AssertionError("abort raises")
