"""Where spans are sent on to: the settings of an endpoint.

Light on purpose: the configuration imports this also where nothing is sent on.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Final, Literal, NamedTuple
from urllib.parse import urlsplit

from tollspan.processor.values import Secret

Signal = Literal["traces", "logs", "metrics"]
SIGNALS: Final[tuple[Signal, ...]] = ("traces", "logs", "metrics")
"""Their numbers in the spool are their places here."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where spans are sent on to.

    Attributes:
        endpoint: http://host:port or https://host:port of an OTLP receiver; off for none.
        name: folder of what waits for it, and its name in logs.
        protocol: grpc (port 4317 mostly) or http/protobuf (4318 mostly; /v1/traces is appended).
        signals: what is sent: traces, logs, metrics; the last two as they come.
        headers: sent with each request, such as authorization; their values are secret.
        compression: gzip, zstd (over HTTP) or none.
        timeout_s: for one attempt.
        ca: PEM file of the authorities that its certificate is checked against; by default the system's.
        cert: PEM file of the certificate that is shown to it (mTLS).
        key: PEM file of that certificate's key.
        max_bytes: cap on what waits for it on disk; at the cap kept spans are not sent on, and are counted.
        request_bytes: size of a request at the most, uncompressed, as far as one span allows.
    """

    endpoint: str | None = None
    name: str = "default"
    protocol: Literal["grpc", "http/protobuf"] = "grpc"
    signals: tuple[Signal, ...] = ("traces",)
    headers: Annotated[Mapping[str, str], Secret()] = field(default_factory=dict)
    compression: Literal["gzip", "zstd", "none"] = "gzip"
    timeout_s: float = 10.0
    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None
    max_bytes: int = 2 << 30
    request_bytes: int = 3 << 20

    def __post_init__(self) -> None:
        if self.endpoint is None:
            return
        parts = address(self.endpoint)
        if parts.secure is False and (self.ca or self.cert):
            raise ValueError("ca and cert are of no use with http://: write https:// before the endpoint")
        if (self.cert is None) != (self.key is None):
            raise ValueError("cert and key belong together")
        if self.protocol == "grpc" and parts.path:
            raise ValueError(f"an endpoint of gRPC has no path ({parts.path}): leave it out, or say http/protobuf")
        if self.protocol == "grpc" and self.compression == "zstd":
            raise ValueError("zstd is not to be had over gRPC: take gzip, or http/protobuf")
        if not self.name or not self.name.replace("-", "").replace("_", "").isalnum() or len(self.name) > 64:
            raise ValueError(f"name is that of a folder: letters, digits, - and _, not {self.name!r}")
        if not self.signals:
            raise ValueError("signals is empty: name traces, logs or metrics")
        if min(self.max_bytes, self.request_bytes) < 1 << 16 or self.timeout_s <= 0:
            raise ValueError("max_bytes and request_bytes are at least 64 KiB, and timeout is above zero")


class Address(NamedTuple):
    """An endpoint taken apart: ``host:port``, whether it is under TLS, and its path without a last slash."""

    netloc: str
    secure: bool
    path: str


def address(endpoint: str) -> Address:
    """Take an endpoint apart.

    Raises:
        ValueError: it is none.
    """
    whole = endpoint if "://" in endpoint else f"http://{endpoint}"
    parts = urlsplit(whole)
    try:
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if parts.scheme not in ("http", "https") or not host or not port or parts.query or parts.fragment or parts.username:
        raise ValueError(f"{endpoint!r} is no endpoint: write http://host:port or https://host:port")
    if "://" not in endpoint and not loopback(host):
        raise ValueError(f"say whether {endpoint} is under TLS: https://{endpoint} or http://{endpoint}")
    shown = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return Address(shown, parts.scheme == "https", parts.path.rstrip("/"))


def loopback(host: str) -> bool:
    """Whether a host is this machine alone."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


@dataclass(frozen=True, slots=True)
class Forwarding:
    """Further endpoints, and what is common to all.

    Attributes:
        endpoints: more endpoints, as a list of mappings with the settings of forward and names of their own; each gets
            everything.
        drain_s: what a stop gives them to take what is left; the rest goes after the next start.
    """

    endpoints: tuple[Endpoint, ...] = ()
    drain_s: float = 5.0
