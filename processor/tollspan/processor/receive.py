"""OTLP/gRPC in: requests are checked, made durable by the journal, and only then acknowledged.

In: ``TraceService/Export`` calls as raw bytes, gzip or plain. Out: payloads in the journal, and answers. First in the
line; no request is parsed into objects here. ``grpc.health.v1`` answers on the same port; other OTLP signals are
UNIMPLEMENTED.

What a sender is told:

    OK                  durable; it will be priced once even if this process dies now. Also for an empty request.
    INVALID_ARGUMENT    not an OTLP trace request; sending it again will not help
    UNAVAILABLE         not stored (disk, journal full, shutting down), with RetryInfo: send it again after that time
    RESOURCE_EXHAUSTED  larger than ``max_request_bytes`` when decompressed; refused by gRPC while it reads

A thread serves a request from its body to its ack, so the bodies in memory are bounded by the threads; all that wait
for the journal share one sync. (Measured beside grpc.aio on the same machine, this took 5 to 20 % less CPU for 512-span
requests and the same for 8-span ones; aio would keep slow senders from holding a thread.)
"""

from __future__ import annotations

import ipaddress
import logging
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Final, NamedTuple, TypeAlias

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tollspan.processor.counters import Counters
from tollspan.processor.errors import ConfigError, JournalFull
from tollspan.processor.journal import Journal, JournalError

log = logging.getLogger(__name__)

Validate: TypeAlias = Callable[[bytes], str | None]
"""None when bytes can be acknowledged as an OTLP trace request, else the reason why not."""

SERVICE: Final = "opentelemetry.proto.collector.trace.v1.TraceService"
EXPORT: Final = f"/{SERVICE}/Export"
_OK: Final = b""
"""An ``ExportTraceServiceResponse`` without partial success."""

RETRY_S: Final = 1.0
"""Delay asked of refused senders. Short, because the Python SDK tries again only within its deadline of 10 s."""
COMMIT_LIMIT_S: Final = 30.0
"""A disk that takes longer than this for a sync is treated as away."""
_DETAILS: Final = "grpc-status-details-bin"


class _Refusal(NamedTuple):
    """Why a request was not taken: counted under ``receive.refused.<reason>``."""

    reason: str
    code: Any
    message: str


class Receiver:
    """The OTLP/gRPC server.

    Args:
        journal: where payloads are made durable.
        address: ``host:port``; port 0 takes a free one.
        validate: check before the journal; a full parse by protobuf when None.
        counters: counts ``receive.*``: ``calls`` begun, ``requests`` whose body arrived (the difference was too large
            or broken off), ``accepted`` and ``bytes`` made durable, ``empty``, and ``refused.<reason>``.
        insecure_listen: allow addresses other than loopback although nothing is encrypted.
        max_request_bytes: size of a decompressed request at the most.
        threads: requests served at once.
        max_connection_age_s: connections are asked to reconnect after this time, so that balancers can spread them.

    Raises (from `start`):
        ConfigError: the address cannot be listened on.
    """

    def __init__(
        self,
        journal: Journal,
        *,
        address: str = "127.0.0.1:4317",
        validate: Validate | None = None,
        counters: Counters | None = None,
        insecure_listen: bool = False,
        max_request_bytes: int = 64 << 20,
        threads: int = 64,
        max_connection_age_s: float = 180.0,
    ) -> None:
        self.journal = journal
        self.counters = counters or Counters()
        self._address, self._insecure_listen = address, insecure_listen
        self._validate = validate or parses
        self._threads = threads
        self._options = (
            # Without this a second server would share the port, and each would get some of the spans.
            ("grpc.so_reuseport", 0),
            ("grpc.max_receive_message_length", max_request_bytes),
            ("grpc.max_connection_age_ms", int(max_connection_age_s * 1000)),
            ("grpc.max_connection_age_grace_ms", 60_000),
            ("grpc.keepalive_time_ms", 60_000),
            ("grpc.keepalive_timeout_ms", 20_000),
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
        )
        self._server: Any = None
        self._health: Any = None
        self._state = threading.Condition()
        self._draining = False
        self._in_flight = 0

    def start(self) -> str:
        """Listen and serve; returns the ``host:port`` in use.

        Raises:
            ConfigError: the address is malformed, taken, not of this machine, or open without ``insecure_listen``.
        """
        host, port = parse_address(self._address)
        if not self._insecure_listen and not is_loopback(host):
            raise ConfigError(
                f"{self._address} is open to other machines, and connections are not encrypted.",
                "Listen on 127.0.0.1, or pass --insecure-listen if the network around it is trusted.",
            )
        _try_to_bind(host, port)
        pool = ThreadPoolExecutor(self._threads, thread_name_prefix="tollspan-receive")
        server = grpc.server(pool, handlers=[_TraceService(self)], options=self._options)
        self._health = health.HealthServicer(experimental_non_blocking=True)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        try:
            bound = server.add_insecure_port(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
        except RuntimeError as error:
            server.stop(None)
            raise _cannot_listen(host, port, "the address cannot be bound") from error
        self._serving(True)
        server.start()
        self._server = server
        return f"[{host}]:{bound}" if ":" in host else f"{host}:{bound}"

    def drain(self, grace_s: float) -> bool:
        """Refuse new requests with UNAVAILABLE, report NOT_SERVING, and let those in flight finish.

        Args:
            grace_s: seconds that they get.

        Returns:
            True if none is in flight any more.
        """
        self._serving(False)
        with self._state:
            self._draining = True
            return self._state.wait_for(lambda: self._in_flight == 0, timeout=grace_s)

    def stop(self, grace_s: float = 1.0) -> None:
        """Close the port and all connections; what is still in flight after ``grace_s`` is cut off. Idempotent."""
        server, self._server = self._server, None
        if server is not None:
            server.stop(grace_s).wait()

    def report(self, service: str, good: bool) -> None:
        """Answer health checks of a part of the processor, from `start` on; the whole one's health is not touched."""
        if self._health is not None:
            status = health_pb2.HealthCheckResponse.SERVING if good else health_pb2.HealthCheckResponse.NOT_SERVING
            self._health.set(service, status)

    def _serving(self, yes: bool) -> None:
        for service in ("", SERVICE):
            self.report(service, yes)

    def export(self, payload: bytes, context: Any) -> bytes:
        """Serve one request; called by gRPC on a thread of its pool."""
        with self._flight() as open_for_requests:
            refusal = self._take(payload, context) if open_for_requests else _SHUTTING_DOWN
        if refusal is None:
            return _OK
        self.counters.add(f"receive.refused.{refusal.reason}")
        if refusal.code is grpc.StatusCode.UNAVAILABLE:
            context.set_trailing_metadata(((_DETAILS, retry_details(refusal.message)),))
        context.abort(refusal.code, refusal.message)
        raise AssertionError("abort raises")

    def _take(self, payload: bytes, context: Any) -> _Refusal | None:
        """Make ``payload`` durable; None when it is."""
        self.counters.add("receive.requests")
        if not payload:
            self.counters.add("receive.empty")
            return None
        try:
            reason = self._validate(payload)
            if reason is not None:
                log.debug("refused a request of %d bytes: %s", len(payload), reason)
                return _Refusal("malformed", grpc.StatusCode.INVALID_ARGUMENT, reason)
            remaining = context.time_remaining()
            self.journal.append(payload).wait(COMMIT_LIMIT_S if remaining is None else min(remaining, COMMIT_LIMIT_S))
        except JournalError as error:
            reason = "journal_full" if isinstance(error, JournalFull) else "journal_error"
            return _Refusal(reason, grpc.StatusCode.UNAVAILABLE, error.message)
        except TimeoutError:
            # It may become durable yet: the sender sends again, and the rows land on themselves.
            return _Refusal("slow_disk", grpc.StatusCode.UNAVAILABLE, "The disk did not finish in time.")
        except Exception:
            log.exception("a request of %d bytes met a fault of ours; it is not acknowledged", len(payload))
            return _Refusal("fault", grpc.StatusCode.INTERNAL, "Internal error; the request was not stored.")
        self.counters.add_all({"receive.accepted": 1, "receive.bytes": len(payload)})
        return None

    @contextmanager
    def _flight(self) -> Iterator[bool]:
        """Count a request as in flight; yields False, and counts nothing, when no new ones are taken."""
        with self._state:
            taken = not self._draining
            self._in_flight += taken
        try:
            yield taken
        finally:
            with self._state:
                self._in_flight -= taken
                if self._draining and not self._in_flight:
                    self._state.notify_all()


_SHUTTING_DOWN: Final = _Refusal("draining", grpc.StatusCode.UNAVAILABLE, "The service is shutting down.")


class _TraceService(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Routes ``Export`` to the receiver without (de)serializers: bytes in, bytes out."""

    def __init__(self, receiver: Receiver) -> None:
        self._counters = receiver.counters
        self._handler = grpc.unary_unary_rpc_method_handler(receiver.export)

    def service(self, handler_call_details: Any) -> Any:
        if handler_call_details.method != EXPORT:
            return None
        self._counters.add("receive.calls")
        return self._handler


def parses(payload: bytes) -> str | None:
    """The check of a receiver that is given none: protobuf's own parser."""
    try:
        ExportTraceServiceRequest.FromString(payload)
    except DecodeError as error:
        return f"not an OTLP ExportTraceServiceRequest: {error}"
    return None


def retry_details(message: str) -> bytes:
    """A serialized ``google.rpc.Status`` for UNAVAILABLE that asks to try again after `RETRY_S`."""
    detail = AnyMessage()
    delay = Duration(seconds=int(RETRY_S), nanos=int(RETRY_S % 1 * 1e9))
    detail.Pack(error_details_pb2.RetryInfo(retry_delay=delay))
    return bytes(status_pb2.Status(code=14, message=message, details=[detail]).SerializeToString())


def parse_address(address: str) -> tuple[str, int]:
    """``host:port`` or ``[v6]:port`` as host (without brackets) and port.

    Raises:
        ConfigError: it is neither.
    """
    host, colon, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not (port.isascii() and port.isdigit()) or int(port) > 65535:
        raise ConfigError(f"{address!r} is no address to listen on.", "Give host:port, e.g. 127.0.0.1:4317.")
    return host, int(port)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach ``host``: every address that it resolves to is a loopback address.

    Raises:
        ConfigError: the name does not resolve.
    """
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError as error:
        raise ConfigError(
            f"{host!r} does not resolve: {error.strerror}.", "Listen on 127.0.0.1, or fix the name."
        ) from error
    return all(ipaddress.ip_address(str(where[0]).partition("%")[0]).is_loopback for *_, where in found)


def _try_to_bind(host: str, port: int) -> None:
    """Find out why an address cannot be used: gRPC does not tell its caller, and writes lines of its own to stderr."""
    family, kind, protocol, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    try:
        with socket.socket(family, kind, protocol) as probe:
            # As gRPC binds: connections of an earlier server that still linger do not count.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(where)
    except OSError as error:
        raise _cannot_listen(host, port, (error.strerror or str(error)).lower()) from error


def _cannot_listen(host: str, port: int, reason: str) -> ConfigError:
    return ConfigError(
        f"Cannot listen on {host}:{port}: {reason}.",
        "Stop the program that has the port, or choose another with --listen (port 0 takes a free one).",
    )
