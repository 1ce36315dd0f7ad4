"""Tollspan in the middle, as processes: what is kept reaches what is behind it, over kills and outages."""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import sys
import time
import urllib.request
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import trustme
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from ..processor.otlp_backend import GrpcBackend, HttpBackend, Reply
from .service import Service, chat


def payload(*numbers: int, **more: object) -> bytes:
    request = ExportTraceServiceRequest()
    resource = request.resource_spans.add()
    resource.scope_spans.add().spans.extend(chat(number, **more) for number in numbers)  # type: ignore[arg-type]
    return request.SerializeToString()


DEARER = """
price_book: {id: dearer, version: 1, currency: USD}
prices:
- {id: in, provider: openai, sku: gpt-5-mini, meter: tokens.input.uncached, amount: "1000", per: 1000000}
- {id: out, provider: openai, sku: gpt-5-mini, meter: tokens.output, amount: "2000", per: 1000000}
"""
"""A thousand tokens in and a hundred out are 1.20 USD."""


def options(url: str, *more: str) -> list[str]:
    return ["--forward-endpoint", url, "--keep", "1", "--decision-wait", "0.2", *more]


def amounts(backend: GrpcBackend | HttpBackend) -> dict[int, Decimal]:
    return {
        int.from_bytes(span.span_id, "big"): Decimal(pair.value.string_value)
        for span in backend.spans()
        for pair in span.attributes
        if pair.key == "tollspan.cost.amount"
    }


def page(service: Service, name: str) -> str:
    with urllib.request.urlopen(f"http://{service.info['http']}/{name}") as answer:
        assert answer.status == 200
        return str(answer.read().decode())


def test_kept_spans_reach_the_endpoint_at_least_once_over_kill_9(tmp_path: Path) -> None:
    rng = random.Random(7)
    sent: list[int] = []
    with GrpcBackend() as backend:
        # Every third answer is lost on its way.
        backend.decide = lambda _: Reply("UNAVAILABLE") if rng.random() < 0.3 else Reply()
        service = Service(tmp_path, options(backend.url))
        for life in range(3):
            with service:
                deadline = time.monotonic() + 0.5 + rng.random()
                while time.monotonic() < deadline:
                    numbers = range(len(sent) + 1, len(sent) + 20)
                    service.export(payload(*numbers))
                    sent.extend(numbers)
                if life < 2:
                    service.kill()
                else:
                    backend.wait(lambda b: set(sent) <= set(b.ids()), 40)
        assert set(backend.ids()) == set(sent)
        ledger = amounts(backend)
        assert set(ledger) == set(sent)
        assert set(ledger.values()) == {Decimal("0.00045")}


def test_an_endpoint_that_is_away_is_said_and_stops_no_pricing(tmp_path: Path) -> None:
    with HttpBackend() as backend:
        port = backend.port
        backend.stop()
        with Service(tmp_path, options(backend.url, "--forward-protocol", "http/protobuf")) as service:
            for number in range(1, 21):
                service.export(payload(number))
            ready, scraped = "", ""
            deadline = time.monotonic() + 20
            while time.monotonic() < deadline and not (
                "forwarding to default fails" in ready and "tollspan_ledger_rows_total 20" in scraped
            ):
                ready, scraped = page(service, "readyz"), page(service, "metrics")
                time.sleep(0.1)
            assert "forwarding to default fails" in ready
            assert "tollspan_ledger_rows_total 20" in scraped
            assert 'tollspan_forward_up{endpoint="default"} 0' in scraped
            backend.start(port)
            backend.wait(lambda b: len(set(b.ids())) == 20, 40)
            stats = service.stop()
        assert stats["forward.spans"] == 20


def test_a_stop_leaves_the_rest_for_the_next_start(tmp_path: Path) -> None:
    with Service(tmp_path, options("http://127.0.0.1:9", "--forward-drain", "200ms")) as service:
        service.export(payload(*range(1, 11)))
        stats = service.stop()
    assert (stats.get("forward.spans"), stats["forward.spooled_spans"]) == (0, 10)
    with GrpcBackend() as backend, Service(tmp_path, options(backend.url)):
        backend.wait(lambda b: sorted(b.ids()) == list(range(1, 11)), 20)


def test_a_second_tollspan_behind_the_first_keeps_a_bill_of_its_own(tmp_path: Path) -> None:
    """It prices what reaches it by its own book, from usage alone, and its figures take the place of the first's."""
    book = tmp_path / "dearer.yaml"
    book.write_text(DEARER)
    with GrpcBackend() as backend:
        second = Service(tmp_path / "second", options(backend.url, "--prices", str(book)))
        with second, Service(tmp_path / "first", options(f"http://{second.info['grpc']}")) as first:
            # A roll-up and its call: billed once by each.
            request = ExportTraceServiceRequest()
            scope = request.resource_spans.add().scope_spans.add()
            scope.spans.append(chat(1))
            scope.spans.append(chat(2, trace=1, parent=1))
            scope.spans.append(chat(3, tokens=None))
            first.export(request.SerializeToString())
            backend.wait(lambda b: len(b.ids()) == 3, 40)
            first_stats, second_stats = first.stop(), second.stop()
        for stats in (first_stats, second_stats):
            assert stats["ledger.rows"] == 3
            assert (stats["priced.priced"], stats["priced.rollup"], stats["priced.unpriced"]) == (1, 1, 1)
        statuses = {
            int.from_bytes(span.span_id, "big"): [
                pair.value.string_value for pair in span.attributes if pair.key == "tollspan.cost.status"
            ]
            for span in backend.spans()
        }
        # Each name once on each span.
        assert statuses == {1: ["rollup"], 2: ["priced"], 3: ["unpriced"]}
        assert amounts(backend) == {2: Decimal("1.2")}


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_stock_exporters_send_logs_and_metrics_through(tmp_path: Path, protocol: str) -> None:
    from opentelemetry.sdk._logs import LoggerProvider
    from opentelemetry.sdk._logs.export import SimpleLogRecordProcessor
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader

    if protocol == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc._log_exporter import OTLPLogExporter
        from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter
    else:
        from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter  # type: ignore[assignment]
        from opentelemetry.exporter.otlp.proto.http.metric_exporter import (  # type: ignore[assignment]
            OTLPMetricExporter,
        )
    with (
        HttpBackend() as backend,
        Service(
            tmp_path,
            options(backend.url, "--forward-protocol", "http/protobuf", "--forward-signals", "traces,logs,metrics"),
        ) as service,
    ):
        if protocol == "grpc":
            where: dict[str, Any] = {"endpoint": f"http://{service.info['grpc']}", "insecure": True}
            log_exporter, metric_exporter = OTLPLogExporter(**where), OTLPMetricExporter(**where)
        else:
            base = f"http://{service.info['http']}/v1"
            log_exporter = OTLPLogExporter(endpoint=f"{base}/logs")
            metric_exporter = OTLPMetricExporter(endpoint=f"{base}/metrics")
        logs = LoggerProvider()
        logs.add_log_record_processor(SimpleLogRecordProcessor(log_exporter))
        logs.get_logger("shop").emit(body="sold")
        metrics = MeterProvider([PeriodicExportingMetricReader(metric_exporter)])
        metrics.get_meter("shop").create_counter("sales").add(3)
        assert metrics.force_flush()
        metrics.shutdown()
        logs.shutdown()
        backend.wait(lambda b: {"logs", "metrics"} <= {signal for signal, _ in b.taken}, 20)
        stats = service.stop()
    assert stats["forward.passed.logs"] == 1
    assert stats["forward.passed.metrics"] >= 1
    assert b"sold" in next(body for signal, body in backend.taken if signal == "logs")
    assert b"sales" in next(body for signal, body in backend.taken if signal == "metrics")


def test_a_service_does_not_send_to_itself(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="is this service itself"):
        Service(tmp_path, ["--listen", "127.0.0.1:14999", *options("http://localhost:14999")]).start()


PROGRAM = """
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from tollspan.processor.exporter import TollspanSpanExporter

provider = TracerProvider()
provider.add_span_processor(BatchSpanProcessor(TollspanSpanExporter()))
usage = {
    "gen_ai.operation.name": "chat", "gen_ai.provider.name": "openai", "gen_ai.request.model": "gpt-5-mini",
    "gen_ai.usage.input_tokens": 1000, "gen_ai.usage.output_tokens": 100,
}
for number in range(5):
    provider.get_tracer("program").start_span("chat", attributes=usage).end()
provider.shutdown()
"""


def test_the_drop_in_exporter_sends_on_too(tmp_path: Path) -> None:
    with HttpBackend() as backend:
        environment = {
            **os.environ,
            "TOLLSPAN_STORE": f"chdb://{tmp_path / 'store'}",
            "TOLLSPAN_KEEP": "1",
            "TOLLSPAN_FORWARD_ENDPOINT": backend.url,
            "TOLLSPAN_FORWARD_PROTOCOL": "http/protobuf",
            "TOLLSPAN_FORWARD_HEADERS": "authorization=Bearer abc",
        }
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, timeout=90
        )
        assert done.returncode == 0, done.stderr
        assert len(backend.ids()) == 5
        assert set(amounts(backend).values()) == {Decimal("0.00045")}
        assert backend.heads[0]["authorization"] == "Bearer abc"


def test_under_tls_with_a_token_that_says_who_pays(tmp_path: Path) -> None:
    ca = trustme.CA()
    issued = ca.issue_cert("127.0.0.1")
    files = {name: tmp_path / f"{name}.pem" for name in ("ca", "cert", "key")}
    ca.cert_pem.write_to_path(files["ca"])
    issued.private_key_pem.write_to_path(files["key"])
    files["cert"].write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    digest = hashlib.sha256(b"tsp_first").hexdigest()
    senders = tmp_path / "senders.yaml"
    senders.write_text(f'senders:\n- {{id: first, sha256: "{digest}", tenant: edge}}\n')
    under_tls = ["--tls-cert", str(files["cert"]), "--tls-key", str(files["key"]), "--senders", str(senders)]
    with (
        GrpcBackend() as backend,
        Service(tmp_path / "second", options(backend.url, *under_tls)) as second,
        Service(
            tmp_path / "first",
            options(
                f"https://{second.info['grpc']}",
                *("--forward-ca", str(files["ca"]), "--forward-headers", "authorization=Bearer tsp_first"),
            ),
        ) as first,
    ):
        first.export(payload(*range(1, 9)))
        backend.wait(lambda b: len(b.ids()) == 8, 40)
        assert {
            pair.value.string_value
            for request in backend.requests()
            for resource in request.resource_spans
            for pair in resource.resource.attributes
            if pair.key == "tollspan.sender.tenant"
        } == {"edge"}
        assert first.stop()["forward.spans"] == 8
