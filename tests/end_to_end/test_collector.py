"""The configurations of examples/collector with a real OpenTelemetry Collector on both sides of Tollspan.

Runs where ``otelcol`` or ``otelcol-contrib`` is on PATH, or TOLLSPAN_TEST_COLLECTOR names one.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from ..processor.otlp_backend import HttpBackend
from .service import Service

EXAMPLES = Path(__file__).parents[2] / "examples" / "collector"


def find_collector() -> str | None:
    named = os.environ.get("TOLLSPAN_TEST_COLLECTOR")
    return named or shutil.which("otelcol") or shutil.which("otelcol-contrib")


COLLECTOR = find_collector()
needs_collector = pytest.mark.skipif(
    COLLECTOR is None, reason="no Collector: put otelcol on PATH, or name it in TOLLSPAN_TEST_COLLECTOR"
)


def free_port() -> int:
    with socket.socket() as made:
        made.bind(("127.0.0.1", 0))
        return int(made.getsockname()[1])


@contextmanager
def collector(
    folder: Path, name: str, ready: int, *overrides: str, **environment: str
) -> Iterator[subprocess.Popen[bytes]]:
    """A Collector with a configuration of ours, until its port answers."""
    assert COLLECTOR is not None
    command = [COLLECTOR, "--config", str(EXAMPLES / name), "--config", "yaml:service::telemetry::metrics::level: none"]
    for override in overrides:
        command += ["--config", f"yaml:{override}"]
    with (folder / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, **environment})
        try:
            deadline = time.monotonic() + 30
            while time.monotonic() < deadline:
                assert process.poll() is None, (folder / f"{name}.log").read_text()
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", ready)) == 0:
                        break
                time.sleep(0.05)
            yield process
        finally:
            process.terminate()
            process.wait(20)


@pytest.mark.parametrize("name", sorted(path.name for path in EXAMPLES.glob("*.yaml")))
def test_every_configuration_is_yaml_and_uses_what_it_names(name: str) -> None:
    config = yaml.safe_load((EXAMPLES / name).read_text())
    if name in ("tollspan.yaml", "agent-durable.yaml"):
        return
    for pipeline in config["service"]["pipelines"].values():
        for kind in ("receivers", "processors", "exporters"):
            assert set(pipeline.get(kind, ())) <= set(config.get(kind, ()))


def test_the_configuration_of_tollspan_is_one() -> None:
    from tollspan.processor.config import load, service_config

    made = service_config(load(file=EXAMPLES / "tollspan.yaml", environment={}))
    assert made.runtime.forward.endpoint == "http://127.0.0.1:24317"
    assert made.runtime.forward.signals == ("traces", "logs", "metrics")


@needs_collector
@pytest.mark.parametrize("name", ["agent.yaml", "backend.yaml"])
def test_the_collector_takes_the_configuration(name: str) -> None:
    assert COLLECTOR is not None
    done = subprocess.run([COLLECTOR, "validate", "--config", str(EXAMPLES / name)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@needs_collector
@pytest.mark.parametrize("name", ["agent-durable.yaml", "load_balancer.yaml"])
def test_a_contrib_collector_takes_the_configuration(name: str) -> None:
    assert COLLECTOR is not None
    parts = subprocess.run([COLLECTOR, "components"], capture_output=True, text=True).stdout
    if not ("file_storage" in parts and "load_balancing" in parts):
        pytest.skip("this Collector has no file_storage or no load_balancing: it is not contrib")
    files = [str(EXAMPLES / "agent.yaml")] if name == "agent-durable.yaml" else []
    configs = [part for file in [*files, str(EXAMPLES / name)] for part in ("--config", file)]
    environment = {**os.environ, "TOLLSPAN_TOKEN": "t"}
    done = subprocess.run([COLLECTOR, "validate", *configs], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr


@needs_collector
def test_a_program_an_agent_tollspan_and_a_backend(tmp_path: Path) -> None:
    from opentelemetry._logs import SeverityNumber
    from opentelemetry.exporter.otlp.proto.grpc._log_exporter import OTLPLogExporter
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk._logs import LoggerProvider
    from opentelemetry.sdk._logs.export import SimpleLogRecordProcessor

    agent_port, backend_port = free_port(), free_port()
    config = yaml.safe_load((EXAMPLES / "tollspan.yaml").read_text())
    config["forward"]["endpoint"] = f"http://127.0.0.1:{backend_port}"
    config["sampling"] = {"keep": 1, "decision_wait": "200ms"}
    (tmp_path / "tollspan.yaml").write_text(yaml.safe_dump(config))
    with HttpBackend() as end:
        to_end = [f"exporters::otlp_http::endpoint: {end.url}"]
        to_end += [f"service::pipelines::{signal}::exporters: [otlp_http]" for signal in ("traces", "logs", "metrics")]
        with (
            collector(tmp_path, "backend.yaml", backend_port, *to_end, BACKEND_GRPC=f"127.0.0.1:{backend_port}"),
            Service(tmp_path / "store", ["--config", str(tmp_path / "tollspan.yaml")]) as tollspan,
            collector(
                tmp_path,
                "agent.yaml",
                agent_port,
                AGENT_GRPC=f"127.0.0.1:{agent_port}",
                AGENT_HTTP=f"127.0.0.1:{free_port()}",
                TOLLSPAN=tollspan.info["grpc"],
                TOLLSPAN_INSECURE="true",
            ),
        ):
            resource = Resource({"service.name": "shop"})
            provider = TracerProvider(resource=resource)
            exporter = OTLPSpanExporter(endpoint=f"http://127.0.0.1:{agent_port}", insecure=True)
            provider.add_span_processor(BatchSpanProcessor(exporter))
            tracer = provider.get_tracer("shop", "1.0", schema_url="https://opentelemetry.io/schemas/1.38.0")
            for number in range(50):
                with tracer.start_as_current_span("answer") as outer:
                    outer.add_event("asked", {"number": number})
                    call: dict[str, str | int] = {
                        "gen_ai.operation.name": "chat",
                        "gen_ai.provider.name": "openai",
                        "gen_ai.request.model": "gpt-5-mini",
                        "gen_ai.usage.input_tokens": 1000 + number,
                        "gen_ai.usage.output_tokens": 100,
                    }
                    tracer.start_span("chat gpt-5-mini", attributes=call).end()
            provider.shutdown()
            logs = LoggerProvider(resource=resource)
            log_exporter = OTLPLogExporter(endpoint=f"http://127.0.0.1:{agent_port}", insecure=True)
            logs.add_log_record_processor(SimpleLogRecordProcessor(log_exporter))
            logs.get_logger("shop").emit(body="sold", severity_number=SeverityNumber.INFO)
            logs.shutdown()
            end.wait(lambda b: len(b.spans()) >= 100 and any(signal == "logs" for signal, _ in b.taken), 40)
        assert len(end.spans()) == 100
        assert len({span.span_id for span in end.spans()}) == 100
        calls = [span for span in end.spans() if span.name.startswith("chat")]
        said = [{pair.key: pair.value for pair in span.attributes} for span in calls]
        assert {each["tollspan.cost.status"].string_value for each in said} == {"priced"}
        assert all(float(each["tollspan.cost.amount"].string_value) > 0 for each in said)
        assert {span.trace_state for span in end.spans()} == {"ot=th:0"}
        first: ExportTraceServiceRequest = end.requests()[0]
        assert first.resource_spans[0].scope_spans[0].schema_url == "https://opentelemetry.io/schemas/1.38.0"
        assert any(span.events and span.events[0].name == "asked" for span in end.spans())
        logged = next(payload for signal, payload in end.taken if signal == "logs")
        assert b"sold" in logged
