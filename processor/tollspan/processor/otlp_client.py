"""An OTLP client that says what became of every span; over gRPC or HTTP, with TLS, a token, a certificate.

In: export requests. Out: how many of their spans the receiver refused. The SDK's exporters answer only success or
failure and drop the partial-success part of the reply, which a replay has to count. One attempt is `forward.client`'s;
here is how long it is tried again: what the OTLP specification lists as retryable, with exponential backoff and jitter
or after the time that the receiver names.
"""

from __future__ import annotations

import random
import socket
import ssl
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal
from urllib.parse import urlsplit

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tollspan.processor.errors import ConfigError, TollspanError
from tollspan.processor.forward.client import Client, Outcome, connect
from tollspan.processor.forward.settings import Endpoint, address, loopback

HTTP_PORT: Final = 4318
"""OTLP/HTTP's; where it is asked for by number alone, HTTP is meant."""

_FIRST_DELAY_S: Final = 0.1
_MIN_DELAY_S: Final = 0.01
_MAX_DELAY_S: Final = 5.0


class ReceiverUnreachable(TollspanError):
    """The receiver did not answer for as long as we were willing to wait."""


class LoginRefused(TollspanError):
    """The receiver does not know our token, or our certificate."""


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


@dataclass(frozen=True, slots=True)
class Access:
    """How a receiver is spoken to.

    Attributes:
        protocol: None: HTTP where the address has OTLP/HTTP's port or a path, else gRPC.
        token: bearer token.
        ca: PEM file of authorities in place of the system's.
        cert, key: PEM files of our own certificate (mTLS).
        insecure: nothing is encrypted, also to another machine; otherwise that is only so to this one.
        compression: of requests.
    """

    protocol: Literal["grpc", "http/protobuf"] | None = None
    token: str = ""
    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None
    insecure: bool = False
    compression: Literal["gzip", "zstd", "none"] = "none"


def find(target: str, access: Access | None = None) -> Endpoint:
    """The endpoint that an address means.

    Args:
        target: ``host:port``, or with ``http://`` (plaintext) or ``https://`` (TLS) in front. Without either it is
            plaintext on this machine, or where ``access.insecure`` says so, and TLS elsewhere.

    Raises:
        ConfigError: it is no address, would not be encrypted without ``access.insecure``, or does not go with the rest.
    """
    access = access or Access()
    wrong = ConfigError(f"{target!r} is not an address.", "Give host:port, for example 127.0.0.1:4317.")
    scheme, separator, rest = target.rpartition("://")
    try:
        host = urlsplit(f"//{rest}").hostname or ""
    except ValueError:
        raise wrong from None
    if not separator:
        scheme = "http" if access.insecure or loopback(host) else "https"
    if access.insecure and scheme == "https":
        raise ConfigError("--insecure is without encryption, and https:// is with it.", "Leave one of them out.")
    if scheme == "http" and not access.insecure and not loopback(host):
        raise ConfigError(
            f"{target} is another machine, and spans would go there unencrypted.",
            "Write https://, or pass --insecure if the network on the way is trusted.",
        )
    try:
        where = address(f"{scheme}://{rest}")
        over_http = where.path or where.netloc.endswith(f":{HTTP_PORT}")
        return Endpoint(
            f"{scheme}://{where.netloc}{where.path.removesuffix('/v1/traces')}",
            name="replay",
            protocol=access.protocol or ("http/protobuf" if over_http else "grpc"),
            headers={"authorization": f"Bearer {access.token}"} if access.token else {},
            compression=access.compression,
            ca=access.ca,
            cert=access.cert,
            key=access.key,
        )
    except ValueError as error:
        if "is no endpoint" in str(error):
            raise wrong from None
        raise ConfigError(f"{target}: {error}.") from None


class OtlpClient:
    """A way to one OTLP receiver; `export` may be called from several threads at once.

    Args:
        target: see `find`.
        patience: see `Patience`.
        access: see `Access`.

    Raises:
        ConfigError: ``target`` is no address, or a file of ``access`` cannot be used.
    """

    def __init__(self, target: str, patience: Patience | None = None, access: Access | None = None) -> None:
        self.patience = patience or Patience()
        self.endpoint = find(target, access)
        assert self.endpoint.endpoint is not None
        self._where = address(self.endpoint.endpoint)
        self.address = self._where.netloc
        self._mine = threading.local()
        self._lock, self._clients = threading.Lock(), [connect(self.endpoint)]
        self._mine.client = self._clients[0]
        self._last_success = time.monotonic()

    def connect(self) -> None:
        """Wait for the first connection.

        Raises:
            ReceiverUnreachable: nobody answers at the address within `Patience.connect_s`.
            ConfigError: the receiver's certificate is not to be trusted, or it speaks no TLS.
        """
        until = time.monotonic() + self.patience.connect_s
        while True:
            try:
                self._shake_hands()
                break
            except ssl.SSLError as error:
                raise ConfigError(
                    f"{self.address} is not trusted: {error.reason or error}.",
                    "Give the authority of its certificate with --ca, or http:// if it has none.",
                ) from error
            except OSError:
                if time.monotonic() >= until:
                    raise ReceiverUnreachable(
                        f"Nobody answers at {self.address} (OTLP).",
                        "Start `tollspan serve` first, or give the receiver's address with --to.",
                    ) from None
                time.sleep(0.05)
        self._last_success = time.monotonic()

    def _shake_hands(self) -> None:
        host, _, port = self._where.netloc.rpartition(":")
        host = host.strip("[]")
        with socket.create_connection((host, int(port)), timeout=self.patience.connect_s) as plain:
            if self._where.secure:
                context = ssl.create_default_context(cafile=self.endpoint.ca)
                if self.endpoint.cert is not None:
                    context.load_cert_chain(self.endpoint.cert, self.endpoint.key)
                context.set_alpn_protocols(["h2"] if self.endpoint.protocol == "grpc" else ["http/1.1"])
                context.wrap_socket(plain, server_hostname=host).close()

    def export(self, request: ExportTraceServiceRequest, stop: threading.Event) -> Delivery:
        """Deliver one request, trying again as long as that may help.

        Args:
            request: its spans.
            stop: set from elsewhere to end the waiting between attempts.

        Returns:
            How many spans were refused: those of a partial success, or all when the request was.

        Raises:
            ReceiverUnreachable: no request had any success for `Patience.outage_s`, or ``stop`` was set in a wait.
            LoginRefused: without another token or certificate nothing will be taken.
        """
        payload = request.SerializeToString()
        delay = _FIRST_DELAY_S
        while True:
            answer = self._client().send("traces", payload, self.patience.request_s)
            said = f"{answer.code}: {answer.message}" if answer.message else answer.code
            if answer.outcome is Outcome.TAKEN:
                self._last_success = time.monotonic()
                return Delivery(answer.rejected, answer.message)
            if answer.outcome is Outcome.LOGIN:
                raise LoginRefused(f"{self.address} lets nobody in ({said}).", "Give a token with --token, or --cert.")
            if answer.outcome is not Outcome.LATER:
                return Delivery(span_count(request), said)
            if time.monotonic() - self._last_success > self.patience.outage_s:
                raise ReceiverUnreachable(
                    f"{self.address} did not take spans for {self.patience.outage_s:g} s ({said}).",
                    "Run the same command again when it is back: spans already taken are not counted twice.",
                )
            told = answer.after_s
            pause = delay * random.uniform(0.5, 1.0) if told is None else max(told, _MIN_DELAY_S)
            if stop.wait(pause):
                raise ReceiverUnreachable(f"{self.address}: stopped while waiting to try again.")
            delay = min(delay * 2, _MAX_DELAY_S)

    def _client(self) -> Client:
        """This thread's own."""
        client: Client | None = getattr(self._mine, "client", None)
        if client is None:
            client = self._mine.client = connect(self.endpoint)
            with self._lock:
                self._clients.append(client)
        return client

    def close(self) -> None:
        """Close the connections."""
        with self._lock:
            for client in self._clients:
                client.close()

    def __enter__(self) -> OtlpClient:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def span_count(request: ExportTraceServiceRequest) -> int:
    """Spans of a request."""
    return sum(len(scope.spans) for resource in request.resource_spans for scope in resource.scope_spans)
