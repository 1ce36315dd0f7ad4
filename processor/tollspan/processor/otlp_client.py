"""A small OTLP/gRPC client that says what became of every span.

In: export requests. Out: how many of their spans the receiver refused. The SDK's exporter answers only success or
failure and drops the partial-success part of the reply, which a replay has to count.

Retries follow the OTLP specification ("OTLP/gRPC Response"): the codes listed there are tried again with exponential
backoff and jitter, ``RESOURCE_EXHAUSTED`` only where the receiver says when (RetryInfo), every other code is final.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, cast

import grpc
from google.rpc import error_details_pb2, status_pb2
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

from tollspan.processor.errors import ConfigError, TollspanError

_METHOD: Final = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
_STATUS_DETAILS: Final = "grpc-status-details-bin"
_RETRYABLE: Final = frozenset(
    {
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.OUT_OF_RANGE,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DATA_LOSS,
    }
)
_FIRST_DELAY_S: Final = 0.1
_MIN_DELAY_S: Final = 0.01
_MAX_DELAY_S: Final = 5.0


class ReceiverUnreachable(TollspanError):
    """The receiver did not answer for as long as we were willing to wait."""


@dataclass(frozen=True, slots=True)
class Delivery:
    """A request that was answered.

    Attributes:
        refused: spans of it that the receiver did not take.
        reason: why, or a warning that came with full success; empty when there is nothing to say.
    """

    refused: int = 0
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a client keeps trying.

    Attributes:
        connect_s: seconds for the first connection.
        outage_s: seconds without any success after which a receiver that had answered is given up on.
        request_s: deadline of one attempt.
    """

    connect_s: float = 5.0
    outage_s: float = 60.0
    request_s: float = 10.0


class OtlpClient:
    """A connection to one OTLP/gRPC receiver; `export` may be called from several threads at once.

    Args:
        target: ``host:port``, or with ``http://`` (the same, plaintext) or ``https://`` (TLS) in front.
        patience: see `Patience`.

    Raises:
        ConfigError: ``target`` is no address.
    """

    def __init__(self, target: str, patience: Patience | None = None) -> None:
        self.patience = patience or Patience()
        self.address, secure = parse_target(target)
        options = [
            ("grpc.max_reconnect_backoff_ms", 1000),
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.min_reconnect_backoff_ms", 100),
            ("grpc.enable_retries", 0),  # retries are counted and bounded here
        ]
        self._channel = (
            grpc.secure_channel(self.address, grpc.ssl_channel_credentials(), options=options)
            if secure
            else grpc.insecure_channel(self.address, options=options)
        )
        self._export: Callable[..., ExportTraceServiceResponse] = self._channel.unary_unary(
            _METHOD,
            request_serializer=ExportTraceServiceRequest.SerializeToString,
            response_deserializer=ExportTraceServiceResponse.FromString,
        )
        self._last_success = time.monotonic()

    def connect(self) -> None:
        """Wait for the first connection.

        Raises:
            ReceiverUnreachable: nobody answers at the address within `Patience.connect_s`.
        """
        try:
            grpc.channel_ready_future(self._channel).result(timeout=self.patience.connect_s)
        except grpc.FutureTimeoutError:
            raise ReceiverUnreachable(
                f"Nobody answers at {self.address} (OTLP/gRPC).",
                "Start `tollspan serve` first, or give the receiver's address with --to.",
            ) from None
        self._last_success = time.monotonic()

    def export(self, request: ExportTraceServiceRequest, stop: threading.Event) -> Delivery:
        """Deliver one request, trying again as long as that may help.

        Args:
            request: its spans.
            stop: set from elsewhere to end the waiting between attempts.

        Returns:
            How many spans were refused: those of a partial success, or all when the request was.

        Raises:
            ReceiverUnreachable: no request had any success for `Patience.outage_s`, or ``stop`` was set in a wait.
        """
        delay = _FIRST_DELAY_S
        while True:
            try:
                response = self._export(request, timeout=self.patience.request_s)
            except grpc.RpcError as error:
                call = cast(grpc.Call, error)
                told = retry_delay(call)
                code = call.code()
                if code not in _RETRYABLE and not (code is grpc.StatusCode.RESOURCE_EXHAUSTED and told is not None):
                    return Delivery(span_count(request), f"{code.name}: {call.details()}")
                if time.monotonic() - self._last_success > self.patience.outage_s:
                    raise ReceiverUnreachable(
                        f"{self.address} did not take spans for {self.patience.outage_s:g} s "
                        f"({code.name}: {call.details()}).",
                        "Run the same command again when it is back: spans already taken are not counted twice.",
                    ) from None
                pause = delay * random.uniform(0.5, 1.0) if told is None else max(told, _MIN_DELAY_S)
                if stop.wait(pause):
                    raise ReceiverUnreachable(f"{self.address}: stopped while waiting to try again.") from None
                delay = min(delay * 2, _MAX_DELAY_S)
            else:
                self._last_success = time.monotonic()
                partial = response.partial_success
                return Delivery(partial.rejected_spans, partial.error_message)

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()

    def __enter__(self) -> OtlpClient:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def span_count(request: ExportTraceServiceRequest) -> int:
    """Spans of a request."""
    return sum(len(scope.spans) for resource in request.resource_spans for scope in resource.scope_spans)


def parse_target(target: str) -> tuple[str, bool]:
    """``host:port`` and whether to use TLS.

    Raises:
        ConfigError: no host, or no port from 1 to 65535.
    """
    scheme, separator, rest = target.rpartition("://")
    address = rest.rstrip("/")
    host, _, port = address.rpartition(":")
    known = not separator or scheme.lower() in ("http", "https")
    if not known or not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ConfigError(f"{target!r} is not an address.", "Give host:port, for example 127.0.0.1:4317.")
    return address, scheme.lower() == "https"


def retry_delay(call: Any) -> float | None:
    """Seconds that the receiver asks us to wait (google.rpc.RetryInfo in the status details), if it does."""
    for key, value in call.trailing_metadata() or ():
        if key != _STATUS_DETAILS:
            continue
        for detail in status_pb2.Status.FromString(value).details:
            info = error_details_pb2.RetryInfo()
            if detail.Is(info.DESCRIPTOR) and detail.Unpack(info):
                return float(info.retry_delay.seconds + info.retry_delay.nanos / 1e9)
    return None
