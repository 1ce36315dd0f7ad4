"""A client of one OTLP endpoint: one attempt to hand it a request.

In: requests as bytes, of any of the three signals. Out: an `Answer` that says what became of one attempt; trying again
is `sender`'s. Over gRPC or HTTP, protobuf in both.

Which answer is which follows the OTLP specification ("Failures", read 2026-11-21). One thing is decided otherwise: a
login that is refused (UNAUTHENTICATED, PERMISSION_DENIED, 401, 403, 407) says nothing about the spans, which are
durable here and can wait until somebody has mended it.
"""

from __future__ import annotations

import email.utils
import enum
import re
import ssl
import time
import urllib.request
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol, cast

import grpc
import pyarrow as pa
import urllib3
from google.protobuf.message import DecodeError
from google.rpc import status_pb2
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest, ExportLogsServiceResponse
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

from tollspan.processor.errors import ConfigError
from tollspan.processor.forward.settings import Endpoint, Signal, address
from tollspan.processor.retry_info import retry_delay

_METHODS: Final[dict[Signal, str]] = {
    "traces": "/opentelemetry.proto.collector.trace.v1.TraceService/Export",
    "logs": "/opentelemetry.proto.collector.logs.v1.LogsService/Export",
    "metrics": "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export",
}
_RESPONSES: Final[dict[Signal, tuple[Any, str]]] = {
    "traces": (ExportTraceServiceResponse, "rejected_spans"),
    "logs": (ExportLogsServiceResponse, "rejected_log_records"),
    "metrics": (ExportMetricsServiceResponse, "rejected_data_points"),
}

REQUESTS: Final[dict[Signal, Any]] = {
    "traces": ExportTraceServiceRequest,
    "logs": ExportLogsServiceRequest,
    "metrics": ExportMetricsServiceRequest,
}

LONGEST_WAIT_S: Final = 300.0
"""The most that an endpoint's own word on when to come back is taken for."""
_ANSWER_BYTES: Final = 64 << 10
"""What is read of an answer's body at the most."""
_GZIP_LEVEL: Final = 1
"""Twice as fast as the usual 6, for a third more bytes."""


class Outcome(enum.Enum):
    """What became of an attempt."""

    TAKEN = "taken"
    LATER = "later"
    """It may be taken when it comes again."""
    LOGIN = "login"
    """We are not let in, or not with what we ask for; the request is not to blame."""
    TOO_LARGE = "too_large"
    REFUSED = "refused"
    """It will never be taken."""


class Answer(NamedTuple):
    """What an endpoint said.

    Attributes:
        outcome: see there.
        message: for people; with TAKEN a warning or why some were rejected, mostly empty.
        code: short word for counters: ``UNAVAILABLE``, ``503``.
        after_s: seconds after which it wants to be asked again, where it says so.
        rejected: spans, records or points of a request that was TAKEN which were not.
    """

    outcome: Outcome
    message: str = ""
    code: str = "OK"
    after_s: float | None = None
    rejected: int = 0


class Client(Protocol):
    """A way to an endpoint; used by one thread."""

    def send(self, signal: Signal, payload: bytes, timeout_s: float) -> Answer:
        """One attempt; raises nothing that the network can cause."""

    def close(self) -> None:
        """Let go of connections."""


def connect(endpoint: Endpoint) -> Client:
    """A client of an endpoint; nothing is sent yet.

    Raises:
        ConfigError: a certificate file cannot be used.
    """
    assert endpoint.endpoint is not None
    try:
        return GrpcClient(endpoint) if endpoint.protocol == "grpc" else HttpClient(endpoint)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(
            f"Certificates of the forwarding endpoint {endpoint.name} cannot be used: {error}.",
            "ca, cert and key are PEM files; check their paths and that the key belongs to the certificate.",
        ) from error


_LARGER: Final = re.compile(r"larger than|exceeds (the )?max", re.IGNORECASE)
"""How gRPC's implementations say that a message is larger than its reader takes."""


class GrpcClient:
    """OTLP/gRPC, bytes in and out."""

    _RETRYABLE: Final = frozenset({"CANCELLED", "DEADLINE_EXCEEDED", "ABORTED", "OUT_OF_RANGE", "UNAVAILABLE"}) | {
        "DATA_LOSS"
    }

    def __init__(self, endpoint: Endpoint) -> None:
        assert endpoint.endpoint is not None
        where = address(endpoint.endpoint)
        options = [
            ("grpc.max_reconnect_backoff_ms", 5000),
            ("grpc.initial_reconnect_backoff_ms", 200),
            ("grpc.min_reconnect_backoff_ms", 200),
            ("grpc.enable_retries", 0),  # retries are counted and bounded by `sender`
            ("grpc.max_send_message_length", -1),
            ("grpc.keepalive_time_ms", 60_000),
        ]
        if where.secure:
            _checked_context(endpoint)  # grpcio says nothing of a key that does not fit
            credentials = grpc.ssl_channel_credentials(*map(_read, (endpoint.ca, endpoint.key, endpoint.cert)))
            self._channel = grpc.secure_channel(where.netloc, credentials, options=options)
        else:
            self._channel = grpc.insecure_channel(where.netloc, options=options)
        compression = grpc.Compression.Gzip if endpoint.compression == "gzip" else grpc.Compression.NoCompression
        self._compression = compression
        self._metadata = tuple((name.lower(), value) for name, value in endpoint.headers.items())
        self._calls = {signal: self._channel.unary_unary(method) for signal, method in _METHODS.items()}

    def send(self, signal: Signal, payload: bytes, timeout_s: float) -> Answer:
        """One attempt."""
        try:
            said = self._calls[signal](
                payload, timeout=timeout_s, metadata=self._metadata, compression=self._compression
            )
        except grpc.RpcError as error:
            return self._failure(cast(grpc.Call, error))
        return _taken(signal, said)

    def _failure(self, call: Any) -> Answer:
        code, message, told = call.code().name, call.details() or "", retry_delay(call)
        if code in self._RETRYABLE or (code == "RESOURCE_EXHAUSTED" and told is not None):
            outcome = Outcome.LATER
        elif code in ("UNAUTHENTICATED", "PERMISSION_DENIED"):
            outcome = Outcome.LOGIN
        elif code == "RESOURCE_EXHAUSTED" and _LARGER.search(message):
            outcome = Outcome.TOO_LARGE
        else:
            outcome = Outcome.REFUSED
        return Answer(outcome, message, code, told)

    def close(self) -> None:
        """Close the channel."""
        self._channel.close()


class HttpClient:
    """OTLP/HTTP with protobuf bodies."""

    _LATER: Final = frozenset({429, 502, 503, 504})
    _LOGIN: Final = frozenset({401, 403, 407})

    def __init__(self, endpoint: Endpoint) -> None:
        assert endpoint.endpoint is not None
        where = address(endpoint.endpoint)
        scheme = "https" if where.secure else "http"
        self._pool: urllib3.PoolManager
        self._base = f"{scheme}://{where.netloc}{where.path}"
        options: dict[str, Any] = {"ssl_context": _checked_context(endpoint)} if where.secure else {}
        # The variables that gRPC goes by as well: http_proxy, https_proxy, no_proxy.
        proxy = urllib.request.getproxies().get(scheme)
        if proxy and not urllib.request.proxy_bypass(where.netloc):
            self._pool = urllib3.ProxyManager(proxy, num_pools=1, maxsize=1, retries=False, **options)
        else:
            self._pool = urllib3.PoolManager(num_pools=1, maxsize=1, retries=False, **options)
        self._headers = {"Content-Type": "application/x-protobuf", "User-Agent": "tollspan", **endpoint.headers}
        self._codec: Any = None
        if endpoint.compression != "none":
            level = _GZIP_LEVEL if endpoint.compression == "gzip" else None
            self._codec = pa.Codec(endpoint.compression, compression_level=level)
            self._headers["Content-Encoding"] = endpoint.compression

    def send(self, signal: Signal, payload: bytes, timeout_s: float) -> Answer:
        """One attempt."""
        body = payload if self._codec is None else self._codec.compress(payload, asbytes=True)
        deadline = urllib3.Timeout(total=timeout_s)
        try:
            response = self._pool.request(
                "POST",
                f"{self._base}/v1/{signal}",
                body=body,
                headers=self._headers,
                timeout=deadline,
                redirect=False,
                preload_content=False,
            )
        except (urllib3.exceptions.HTTPError, OSError) as error:
            return Answer(Outcome.LATER, str(error), type(error).__name__)
        try:
            said = response.read(_ANSWER_BYTES)
            response.drain_conn()
        except (urllib3.exceptions.HTTPError, OSError) as error:
            # The status is known; what the body would have added is not.
            said = b""
            if response.status // 100 == 2:
                return Answer(Outcome.LATER, str(error), type(error).__name__)
        finally:
            response.release_conn()
        if response.status // 100 == 2:
            return _taken(signal, said)
        return self._failure(response.status, said, response.headers)

    def _failure(self, status: int, said: bytes, headers: Any) -> Answer:
        if status in self._LATER:
            outcome = Outcome.LATER
        elif status in self._LOGIN:
            outcome = Outcome.LOGIN
        else:
            outcome = Outcome.TOO_LARGE if status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE else Outcome.REFUSED
        told = _retry_after(headers.get("Retry-After")) if outcome is Outcome.LATER else None
        return Answer(outcome, _words(said, headers.get("Content-Type", "")), str(status), told)

    def close(self) -> None:
        """Close the connections."""
        self._pool.clear()


def _taken(signal: Signal, said: bytes) -> Answer:
    """A success, with what its body says of spans that were rejected all the same."""
    kind, rejected = _RESPONSES[signal]
    try:
        partial = kind.FromString(said).partial_success
    except DecodeError:
        # A success it is all the same: gateways answer with words of their own.
        return Answer(Outcome.TAKEN)
    return Answer(Outcome.TAKEN, partial.error_message, rejected=max(getattr(partial, rejected), 0))


def _words(said: bytes, kind: str) -> str:
    """What a refusal's body says: a ``google.rpc.Status``, or text."""
    if kind.startswith("application/x-protobuf"):
        try:
            return str(status_pb2.Status.FromString(said).message)
        except DecodeError:
            return ""
    return " ".join(said[:500].decode("utf-8", "replace").split())


def _retry_after(value: str | None) -> float | None:
    """Seconds that a ``Retry-After`` header asks for: a number, or a date."""
    if not value:
        return None
    try:
        return max(float(value), 0.0)
    except ValueError:
        pass
    try:
        return max(email.utils.parsedate_to_datetime(value).timestamp() - time.time(), 0.0)
    except (TypeError, ValueError):
        return None


def _read(path: Path | None) -> bytes | None:
    return None if path is None else path.read_bytes()


def _checked_context(endpoint: Endpoint) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=endpoint.ca)
    if endpoint.cert is not None:
        context.load_cert_chain(endpoint.cert, endpoint.key)
    return context
