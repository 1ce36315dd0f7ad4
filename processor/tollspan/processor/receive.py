"""OTLP/gRPC in: requests are checked, made durable by the journal, and only then acknowledged.

In: ``TraceService/Export`` calls as raw bytes, gzip or plain. Out: payloads in the journal, and answers. First in the
line; no request is parsed into objects here. ``grpc.health.v1`` answers on the same port; other OTLP signals are
UNIMPLEMENTED.

What a sender is told:

    OK                  durable; it will be priced once even if this process dies now. Also for an empty request.
    INVALID_ARGUMENT    not an OTLP trace request; sending it again will not help
    UNAUTHENTICATED     no bearer token, or one that is not known
    UNAVAILABLE         not stored (disk, journal full, shutting down), with RetryInfo: send it again after that time
    RESOURCE_EXHAUSTED  with RetryInfo: more than this sender may send a second; without: larger than
                        ``max_request_bytes`` when decompressed, refused by gRPC while it reads

A thread serves a request from its body to its ack, so the bodies in memory are bounded by the threads; all that wait
for the journal share one sync. (Measured beside grpc.aio on the same machine, this took 5 to 20 % less CPU for 512-span
requests and the same for 8-span ones; aio would keep slow senders from holding a thread.)
"""

from __future__ import annotations

import ipaddress
import socket
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from tollspan.processor.errors import ConfigError
from tollspan.processor.intake import Intake
from tollspan.processor.senders import Sender, Senders
from tollspan.processor.tls import Tls

SERVICE: Final = "opentelemetry.proto.collector.trace.v1.TraceService"
EXPORT: Final = f"/{SERVICE}/Export"
_OK: Final = b""
"""An ``ExportTraceServiceResponse`` without partial success."""

_DETAILS: Final = "grpc-status-details-bin"


_CODES: Final = {code.value[0]: code for code in grpc.StatusCode}


class Receiver:
    """The OTLP/gRPC server.

    Args:
        intake: the way into the journal; its counters also count ``receive.calls`` begun (more of them than of
            ``receive.requests``: the difference was too large or broken off).
        address: ``host:port``; port 0 takes a free one.
        tls: certificate, and whose certificates senders need; None for no encryption.
        senders: who may send, by bearer token; None: everybody who can connect.
        insecure_listen: allow addresses other than loopback although nothing is encrypted.
        max_request_bytes: size of a decompressed request at the most.
        threads: requests served at once.
        max_connection_age_s: connections are asked to reconnect after this time, so that balancers can spread them.

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
        max_request_bytes: int = 64 << 20,
        threads: int = 64,
        max_connection_age_s: float = 180.0,
    ) -> None:
        self._intake, self._senders = intake, senders
        self._address, self._tls, self._insecure_listen = address, tls, insecure_listen
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

    def start(self) -> str:
        """Listen and serve; returns the ``host:port`` in use.

        Raises:
            ConfigError: the address is malformed, taken, not of this machine, or open without ``insecure_listen``.
        """
        host, port = parse_address(self._address)
        if self._tls is None and not self._insecure_listen:
            require_loopback(self._address, host)
        try_to_bind(host, port)
        pool = ThreadPoolExecutor(self._threads, thread_name_prefix="tollspan-receive")
        server = grpc.server(pool, handlers=[_TraceService(self)], options=self._options)
        self._health = health.HealthServicer(experimental_non_blocking=True)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        shown = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        try:
            if self._tls is None:
                bound = server.add_insecure_port(shown)
            else:
                bound = server.add_secure_port(shown, self._tls.grpc_credentials())
        except RuntimeError as error:
            server.stop(None)
            raise cannot_listen(host, port, "the address cannot be bound") from error
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
        return self._intake.drain(grace_s)

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
        sender = self._sender(context) if self._senders is not None else None
        refusal = self._intake.take(payload, context.time_remaining(), sender)
        if refusal is None:
            return _OK
        if refusal.delay_s is not None:
            context.set_trailing_metadata(((_DETAILS, refusal.status()),))
        context.abort(_CODES[refusal.code], refusal.message)
        raise AssertionError("abort raises")

    def _sender(self, context: Any) -> Sender:
        """Who sends; ends the call where it is nobody who may."""
        assert self._senders is not None
        found = self._senders.who(dict(context.invocation_metadata()).get("authorization"))
        if isinstance(found, Sender):
            return found
        self._intake.refuse(found)
        context.abort(_CODES[found.code], found.message)
        raise AssertionError("abort raises")


class _TraceService(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Routes ``Export`` to the receiver without (de)serializers: bytes in, bytes out."""

    def __init__(self, receiver: Receiver) -> None:
        self._counters = receiver._intake.counters
        self._handler = grpc.unary_unary_rpc_method_handler(receiver.export)

    def service(self, handler_call_details: Any) -> Any:
        if handler_call_details.method != EXPORT:
            return None
        self._counters.add("receive.calls")
        return self._handler


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


def require_loopback(address: str, host: str) -> None:
    """Refuse an open address where nothing is encrypted.

    Raises:
        ConfigError: other machines can reach it.
    """
    if not is_loopback(host):
        raise ConfigError(
            f"{address} is open to other machines, and connections are not encrypted.",
            "Listen on 127.0.0.1, give --tls-cert and --tls-key, or pass --insecure-listen if the network around it is"
            " trusted.",
        )


def try_to_bind(host: str, port: int) -> None:
    """Find out why an address cannot be used: gRPC does not tell its caller, and writes lines of its own to stderr.

    Raises:
        ConfigError: it cannot.
    """
    family, kind, protocol, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    try:
        with socket.socket(family, kind, protocol) as probe:
            # As gRPC binds: connections of an earlier server that still linger do not count.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(where)
    except OSError as error:
        raise cannot_listen(host, port, (error.strerror or str(error)).lower()) from error


def cannot_listen(host: str, port: int, reason: str) -> ConfigError:
    """The error for an address that is taken, or not ours."""
    return ConfigError(
        f"Cannot listen on {host}:{port}: {reason}.",
        "Stop the program that has the port, or choose another with --listen or --http (port 0 is a free one).",
    )
