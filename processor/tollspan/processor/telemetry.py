"""Its own metrics over OTLP, to a backend of the user's choice; off unless asked for.

In: the families of `metrics`. Out: OTLP metric exports by OpenTelemetry's own exporters, every ``interval_s``. On when
``telemetry.endpoint`` is set, or when the environment says both ``OTEL_METRICS_EXPORTER=otlp`` and where to; an
endpoint for spans in an environment that is shared with other programs does not switch it on. It never feeds itself:
nothing that it sends is instrumented, and an endpoint that is one of our own ports is refused.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from typing import Annotated, Any, Final, Literal
from urllib.parse import urlsplit

from tollspan.processor.addresses import same_address
from tollspan.processor.counters import Counters, Observed
from tollspan.processor.errors import ConfigError
from tollspan.processor.metrics import PREFIX, Family, families
from tollspan.processor.values import Secret

log = logging.getLogger(__name__)

_ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS: Final = ("OTEL_EXPORTER_OTLP_METRICS_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class TelemetrySettings:
    """Where the service's own metrics go by OTLP; Prometheus can scrape them at any time.

    Attributes:
        endpoint: OTLP endpoint, http://host:4317 (gRPC) or http://host:4318 (HTTP, its path /v1/metrics is added).
        protocol: grpc or http/protobuf.
        headers: sent along, name=value,….
        interval_s: time between two exports.
        timeout_s: of one export.
    """

    endpoint: str | None = None
    protocol: Literal["grpc", "http/protobuf"] | None = None
    headers: Annotated[dict[str, str], Secret()] = field(default_factory=dict)
    interval_s: float = 60.0
    timeout_s: float = 10.0

    def __post_init__(self) -> None:
        if self.interval_s <= 0 or self.timeout_s <= 0:
            raise ValueError("interval and timeout have to be above zero")
        if self.endpoint is not None and urlsplit(self.endpoint).scheme not in ("http", "https"):
            raise ValueError("endpoint has to be a URL such as http://collector:4317")


class Telemetry:
    """Exports families of metrics on a thread of its own.

    Args:
        settings: see `TelemetrySettings`.
        counters: what is told; gets ``telemetry.exports`` and ``telemetry.failures``.
        own: addresses that this process listens on.
        environment: the process's when None.

    Raises (from `start`):
        ConfigError: the endpoint is our own.
    """

    def __init__(
        self,
        settings: TelemetrySettings,
        counters: Counters,
        own: Iterable[str] = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.settings, self.counters = settings, counters
        self._own = [address for address in own if address]
        env = os.environ if environment is None else environment
        self.endpoint, self.protocol = _asked(settings, env)
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._since = time.time_ns()
        self._resource: Any = None
        self._exporter: Any = None

    @property
    def on(self) -> bool:
        """Whether anybody asked for it."""
        return self.endpoint is not None

    def start(self) -> None:
        """Export from now on, where it is asked for."""
        if self.endpoint is None:
            return
        url = urlsplit(self.endpoint)
        host, port = url.hostname or "", url.port or _DEFAULT_PORTS.get(url.scheme, 4317)
        for address in self._own:
            if same_address(host, port, address):
                raise ConfigError(
                    f"telemetry.endpoint {self.endpoint} is this service itself ({address}).",
                    "Name the Collector or backend that takes metrics, or leave it out and scrape /metrics.",
                )
        self._exporter = self._make()
        self._thread = threading.Thread(target=self._run, name="tollspan-telemetry", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """A last export, then no more; idempotent."""
        thread, self._thread = self._thread, None
        if thread is not None:
            self._stopping.set()
            thread.join(self.settings.timeout_s + 1.0)

    def _make(self) -> Any:
        """OpenTelemetry's exporter; what is not set here it takes from the ``OTEL_EXPORTER_OTLP_*`` variables."""
        from opentelemetry.sdk.resources import Resource

        attributes = {"service.name": "tollspan", "service.version": metadata.version("tollspan")}
        # `OTEL_SERVICE_NAME` and `OTEL_RESOURCE_ATTRIBUTES` go before ours.
        self._resource = Resource(attributes).merge(Resource.create())
        if self._resource.attributes.get("service.name", "").startswith("unknown_service"):
            self._resource = self._resource.merge(Resource(attributes))
        headers = dict(self.settings.headers) or None
        timeout = self.settings.timeout_s
        if self.protocol == "grpc":
            from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter as Grpc

            return Grpc(endpoint=self.settings.endpoint, headers=headers, timeout=timeout)
        from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter as Http

        given = self.settings.endpoint
        endpoint = (
            given if given is None or urlsplit(given).path not in ("", "/") else f"{given.rstrip('/')}/v1/metrics"
        )
        return Http(endpoint=endpoint, headers=headers, timeout=timeout)

    def _run(self) -> None:
        from opentelemetry.context import Context, attach
        from opentelemetry.instrumentation.utils import suppress_instrumentation

        attach(Context())
        with suppress_instrumentation():
            while True:
                ending = self._stopping.wait(self.settings.interval_s)
                self._export()
                if ending:
                    self._exporter.shutdown()
                    return

    def _export(self) -> None:
        from opentelemetry.sdk.metrics.export import MetricExportResult

        try:
            done = self._exporter.export(self.data(), timeout_millis=self.settings.timeout_s * 1000)
        except Exception as error:  # noqa: BLE001  (a backend's trouble must not end the thread)
            log.warning("own metrics could not be exported to %s: %s", self.endpoint, error)
            done = MetricExportResult.FAILURE
        self.counters.add("telemetry.exports" if done is MetricExportResult.SUCCESS else "telemetry.failures")

    def data(self) -> Any:
        """All families as the SDK's ``MetricsData``."""
        from opentelemetry.sdk.metrics.export import MetricsData, ResourceMetrics, ScopeMetrics
        from opentelemetry.sdk.util.instrumentation import InstrumentationScope

        now = time.time_ns()
        scope = InstrumentationScope("tollspan.processor", metadata.version("tollspan"))
        made = [self._metric(each, now) for each in families(self.counters) if each.points]
        return MetricsData([ResourceMetrics(self._resource, [ScopeMetrics(scope, made, "")], "")])

    def _metric(self, family: Family, now: int) -> Any:
        from opentelemetry.sdk.metrics.export import (
            AggregationTemporality,
            Gauge,
            Histogram,
            HistogramDataPoint,
            Metric,
            NumberDataPoint,
            Sum,
        )

        label = family.described.label
        since = self._since
        points: list[Any] = []
        for part, value in family.points.items():
            attributes = {label: part} if label else {}
            if isinstance(value, Observed):
                points.append(
                    HistogramDataPoint(
                        attributes,
                        since,
                        now,
                        sum(value.counts),
                        value.total,
                        value.counts,
                        family.bounds,
                        value.least,
                        value.most,
                    )
                )
            else:
                points.append(NumberDataPoint(attributes, since, now, value))
        cumulative = AggregationTemporality.CUMULATIVE
        data: Any
        if family.kind == "histogram":
            data = Histogram(points, cumulative)
        elif family.kind == "counter":
            data = Sum(points, cumulative, is_monotonic=True)
        else:
            data = Gauge(points)
        name = PREFIX.replace("_", ".") + family.name
        return Metric(name, family.described.help, family.described.unit, data)


def _asked(settings: TelemetrySettings, env: Mapping[str, str]) -> tuple[str | None, str]:
    """Endpoint (None: off) and protocol."""
    told = next((env[name] for name in _PROTOCOLS if env.get(name)), "")
    protocol: str = settings.protocol or told
    endpoint = settings.endpoint
    if endpoint is None and "otlp" in env.get("OTEL_METRICS_EXPORTER", "").split(","):
        endpoint = next((env[name] for name in _ENDPOINTS if env.get(name)), None)
    if not protocol:
        # The port tells as a rule; where it does not, gRPC is what OTLP began with.
        protocol = "http/protobuf" if endpoint is not None and urlsplit(endpoint).port == 4318 else "grpc"
    return endpoint, protocol
