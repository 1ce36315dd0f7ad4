"""Metrics are text that Prometheus reads, each says what it means, and OTLP gets the same."""

from __future__ import annotations

import ast
import re
import threading
import time
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)

import tollspan.processor
from tollspan.processor.addresses import same_address
from tollspan.processor.counters import SECONDS, Counters, Histogram, Laps
from tollspan.processor.errors import ConfigError
from tollspan.processor.metrics import COUNTED, DESCRIBED, TIMED, exposition, families, table
from tollspan.processor.telemetry import Telemetry, TelemetrySettings

ROOM = Path(next(iter(tollspan.processor.__path__)))
METRICS_FILE = Path(__file__).parents[2] / "deploy" / "METRICS.md"
SAMPLE = re.compile(r'[a-zA-Z_:][a-zA-Z0-9_:]*(\{([a-zA-Z_]+="([^"\\]|\\.)*",?)+\})? [-+0-9.eInf]+')


def ours(counters: Counters) -> list[str]:
    return [line for line in exposition(counters).splitlines() if " process_" not in line and line[:8] != "process_"]


def counted(*names: str, **counts: int) -> Counters:
    counters = Counters()
    for name in names:
        counters.add(name, 3)
    return counters


def test_counters_have_help_and_type_and_several_reasons_are_one_metric_with_a_label() -> None:
    counters = counted("receive.refused.slow-disk", "receive.refused.journal_full", "ledger.rows", "priced.unpriced")
    assert ours(counters) == [
        "# HELP tollspan_ledger_rows_total Ledger rows: billable spans.",
        "# TYPE tollspan_ledger_rows_total counter",
        "tollspan_ledger_rows_total 3",
        "# HELP tollspan_priced_total Ledger rows by cost status; unpriced and partial ones leave money out.",
        "# TYPE tollspan_priced_total counter",
        'tollspan_priced_total{status="unpriced"} 3',
        "# HELP tollspan_receive_refused_total Requests refused, by reason.",
        "# TYPE tollspan_receive_refused_total counter",
        'tollspan_receive_refused_total{reason="journal_full"} 3',
        'tollspan_receive_refused_total{reason="slow-disk"} 3',
    ]


def test_a_count_is_exact_however_large() -> None:
    counters = Counters()
    counters.add("receive.bytes", 2**63 + 1)
    assert f"tollspan_receive_bytes_total {2**63 + 1}" in exposition(counters)


def test_gauges_are_asked_when_somebody_looks_and_a_broken_one_harms_nobody() -> None:
    counters = Counters()
    counters.gauge("journal.disk_bytes", lambda: 7)
    counters.gauge("lag.spans", lambda: None)
    counters.gauge("sampling.forced", lambda: 1 // 0)
    text = "\n".join(ours(counters))
    assert "tollspan_journal_disk_bytes 7" in text
    assert "lag" not in text
    assert "forced" not in text
    assert counters.get("metrics.unread_gauges") == 1


def test_a_name_that_nobody_described_appears_all_the_same() -> None:
    assert "tollspan_new_thing_total 3" in exposition(counted("new.thing"))


@pytest.mark.parametrize("reason", ['a"b', "a\\b", "a\nb", "ä, {}"])
def test_any_reason_is_text_that_prometheus_takes(reason: str) -> None:
    for line in exposition(counted(f"receive.refused.{reason}")).splitlines():
        assert line.startswith("# ") or SAMPLE.fullmatch(line), line


def test_buckets_of_a_histogram_count_all_below_and_the_sum_is_right() -> None:
    counters = Counters()
    histogram = counters.histogram("pipeline.stage.seconds", "decode")
    for seconds in (0.0001, 0.0005, 0.003, 60.0):
        histogram.observe(seconds)
    lines = [line for line in ours(counters) if not line.startswith("#")]
    assert lines[0] == 'tollspan_pipeline_stage_seconds_bucket{stage="decode",le="0.0005"} 2'
    assert lines[3] == 'tollspan_pipeline_stage_seconds_bucket{stage="decode",le="0.005"} 3'
    assert lines[len(SECONDS)] == 'tollspan_pipeline_stage_seconds_bucket{stage="decode",le="+Inf"} 4'
    assert float(lines[-2].split()[-1]) == pytest.approx(60.0036)
    assert lines[-1] == 'tollspan_pipeline_stage_seconds_count{stage="decode"} 4'


def test_prometheus_own_reader_takes_it() -> None:
    parser = pytest.importorskip("prometheus_client.parser")
    counters = counted("receive.refused.a", "receive.accepted", "write.rows.ledger")
    counters.gauge("ready", lambda: 1)
    counters.histogram("receive.seconds").observe(0.01)
    found = {family.name: family for family in parser.text_string_to_metric_families(exposition(counters))}
    assert found["tollspan_receive_seconds"].type == "histogram"
    assert found["tollspan_write_rows"].samples[0].labels == {"table": "ledger"}
    assert found["process_resident_memory_bytes"].samples[0].value > 10 << 20
    assert abs(found["process_start_time_seconds"].samples[0].value - time.time()) < 86400
    assert all(family.documentation for family in found.values())


def test_a_histogram_loses_nothing_between_threads() -> None:
    histogram = Histogram()
    threads = [threading.Thread(target=lambda: [histogram.observe(0.01) for _ in range(5000)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(histogram.observed().counts) == 20_000


def test_a_lap_costs_less_than_two_microseconds() -> None:
    laps = Laps(Counters(), "pipeline.stage.seconds")
    laps.lap("decode")

    def timed() -> float:
        began = time.process_time()
        for _ in range(20_000):
            laps.lap("decode")
        return (time.process_time() - began) / 20_000

    assert min(timed() for _ in range(7)) < 2e-6


# -- what is described -------------------------------------------------------------------------------------------------


def names_in_the_source() -> dict[str, str]:
    """Counter's name, or what stands before the part that is made at run time → where."""
    found: dict[str, str] = {}
    for path in ROOM.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute | ast.Name):
                continue
            called = node.func.attr if isinstance(node.func, ast.Attribute) else node.func.id
            about = ast.unparse(node.func)
            if called not in ("add", "add_all", "_count", "gauge", "histogram") or not node.args:
                continue
            if called in ("add", "add_all") and "counters" not in about:
                continue
            first = node.args[0]
            keys = first.keys if isinstance(first, ast.Dict) else [first]
            for key in keys:
                if isinstance(key, ast.Constant) and isinstance(key.value, str):
                    found[key.value] = f"{path.name}:{node.lineno}"
                elif isinstance(key, ast.JoinedStr) and isinstance(key.values[0], ast.Constant):
                    text = "".join(part.value if isinstance(part, ast.Constant) else "{}" for part in key.values)
                    found[text] = f"{path.name}:{node.lineno}"
    return found


def test_everything_that_is_counted_is_described() -> None:
    """A new counter needs its line in `tollspan.processor.metrics`: COUNTED, GAUGES or TIMED."""
    found = names_in_the_source()
    assert len(found) > 40, "the search still finds them"
    lacking = {}
    for name, where in found.items():
        base = name.partition("{")[0].rstrip(".")
        if "{" in name and any(each.startswith(f"{base}.") for each in DESCRIBED):
            continue  # a few names that are put together, each with its line
        while base and not (base in DESCRIBED and (base == name or DESCRIBED[base].label)):
            base = base.rpartition(".")[0]
        if not base:
            lacking[name] = where
    assert not lacking


def test_labels_and_helps_are_fit() -> None:
    for name, described in DESCRIBED.items():
        assert re.fullmatch(r"[a-z][a-z0-9_]*(\.[a-z0-9_]+)*", name)
        assert described.help[0].isupper() or described.help[0].isdigit()
        assert not described.help.endswith(".")
        assert described.label == "" or described.label.isidentifier()
    assert not set(COUNTED) & set(TIMED)


def test_the_document_of_metrics_is_what_the_code_says() -> None:
    """Written anew by TOLLSPAN_WRITE_DOCS=1."""
    import os

    rows = table()
    said = (
        "# Metrics\n\n"
        "At `/metrics` of the OTLP/HTTP port and of the SQL port, as Prometheus text; over OTLP with\n"
        "`telemetry.endpoint`, as `tollspan.<name>` with dots. Counters count from the start of the process. Made by\n"
        "`tests/processor/test_metrics.py` with `TOLLSPAN_WRITE_DOCS=1`.\n\n"
        "| metric | kind | label | what |\n|--|--|--|--|\n"
        + "".join(f"| `{row['metric']}` | {row['kind']} | {row['label'] or ''} | {row['what']} |\n" for row in rows)
    )
    if os.environ.get("TOLLSPAN_WRITE_DOCS"):
        METRICS_FILE.write_text(said)
    assert METRICS_FILE.read_text() == said


# -- OTLP --------------------------------------------------------------------------------------------------------------


class Backend:
    """An OTLP/gRPC receiver of metrics."""

    def __init__(self) -> None:
        self.requests: list[ExportMetricsServiceRequest] = []
        self.headers: list[dict[str, str]] = []
        self.came = threading.Event()
        self.server = grpc.server(futures.ThreadPoolExecutor(2))
        handler = grpc.unary_unary_rpc_method_handler(
            self.export,
            request_deserializer=ExportMetricsServiceRequest.FromString,
            response_serializer=ExportMetricsServiceResponse.SerializeToString,
        )
        name = "opentelemetry.proto.collector.metrics.v1.MetricsService"
        self.server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(name, {"Export": handler}),))
        self.port = self.server.add_insecure_port("127.0.0.1:0")
        self.server.start()

    def export(self, request: ExportMetricsServiceRequest, context: Any) -> ExportMetricsServiceResponse:
        self.requests.append(request)
        self.headers.append(dict(context.invocation_metadata()))
        self.came.set()
        return ExportMetricsServiceResponse()


@pytest.fixture
def backend() -> Any:
    backend = Backend()
    yield backend
    backend.server.stop(None)


def test_a_backend_gets_the_same_as_prometheus(backend: Backend) -> None:
    counters = counted("receive.refused.rate", "ledger.rows")
    counters.gauge("ready", lambda: 1)
    counters.histogram("pipeline.stage.seconds", "decode").observe(0.003)
    settings = TelemetrySettings(f"http://127.0.0.1:{backend.port}", headers={"x-key": "hush"}, interval_s=0.05)
    telemetry = Telemetry(settings, counters, ["127.0.0.1:4317"], {})
    telemetry.start()
    try:
        assert backend.came.wait(30)
    finally:
        telemetry.stop()
    resource = {a.key: a.value.string_value for a in backend.requests[0].resource_metrics[0].resource.attributes}
    assert resource["service.name"] == "tollspan"
    metrics = {m.name: m for m in backend.requests[0].resource_metrics[0].scope_metrics[0].metrics}
    refused = metrics["tollspan.receive.refused"].sum
    assert refused.is_monotonic
    assert [(p.as_int, p.attributes[0].key, p.attributes[0].value.string_value) for p in refused.data_points] == [
        (3, "reason", "rate")
    ]
    assert metrics["tollspan.ready"].gauge.data_points[0].as_int == 1
    point = metrics["tollspan.pipeline.stage.seconds"].histogram.data_points[0]
    assert (point.count, point.sum, point.min, point.max) == (1, 0.003, 0.003, 0.003)
    assert list(point.explicit_bounds) == list(SECONDS)
    assert backend.headers[0]["x-key"] == "hush"
    assert counters.get("telemetry.exports") >= 1


def test_a_backend_that_is_away_is_counted_and_harms_nothing(caplog: pytest.LogCaptureFixture) -> None:
    counters = counted("ledger.rows")
    settings = TelemetrySettings("http://127.0.0.1:9", interval_s=0.01, timeout_s=0.3)
    telemetry = Telemetry(settings, counters, (), {})
    telemetry.start()
    deadline = time.monotonic() + 30
    while not counters.get("telemetry.failures") and time.monotonic() < deadline:
        time.sleep(0.02)
    telemetry.stop()
    assert counters.get("telemetry.failures") >= 1


@pytest.mark.parametrize(
    ("environment", "settings", "on", "protocol"),
    [
        ({}, {}, False, "grpc"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4317"}, {}, False, "grpc"),
        ({"OTEL_METRICS_EXPORTER": "otlp"}, {}, False, "grpc"),
        ({"OTEL_METRICS_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, {}, True, "http/protobuf"),
        (
            {
                "OTEL_METRICS_EXPORTER": "console,otlp",
                "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "http://c:9",
                "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
            },
            {},
            True,
            "http/protobuf",
        ),
        ({}, {"endpoint": "http://c:4317"}, True, "grpc"),
        ({}, {"endpoint": "http://c:4318", "protocol": "grpc"}, True, "grpc"),
    ],
)
def test_it_is_off_until_somebody_asks(environment: Any, settings: Any, on: bool, protocol: str) -> None:
    telemetry = Telemetry(TelemetrySettings(**settings), Counters(), (), environment)
    assert (telemetry.on, telemetry.protocol) == (on, protocol)
    if not on:
        telemetry.start()
        assert telemetry._thread is None


@pytest.mark.parametrize("own", ["127.0.0.1:4317", "0.0.0.0:4317", "[::1]:4317", "localhost:4317"])
def test_it_never_feeds_itself(own: str) -> None:
    host = "[::1]" if "::1" in own else "127.0.0.1"
    telemetry = Telemetry(TelemetrySettings(f"http://{host}:4317"), Counters(), ["", own], {})
    with pytest.raises(ConfigError, match="is this service itself"):
        telemetry.start()


def test_another_port_or_machine_is_not_itself() -> None:
    assert not same_address("127.0.0.1", 4319, "127.0.0.1:4317")
    assert not same_address("192.0.2.1", 4317, "127.0.0.1:4317")
    assert not same_address("192.0.2.1", 4317, "0.0.0.0:4317")


def test_families_are_sorted_and_have_points() -> None:
    names = [family.name for family in families(counted("b", "a.x", "a.b"))]
    assert names == ["a.b", "a.x", "b"]
