"""The stock OpenTelemetry exporters, set up by environment variables as a user does, and `tollspan replay`, against
both receivers: TLS, mTLS, tokens, gzip; what they do when they are refused, wholly or in part."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import yaml
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as HttpExporter
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.trace import SpanContext, SpanKind
from typer.testing import CliRunner

from tollspan.processor.cli.app import app
from tollspan.processor.counters import Counters
from tollspan.processor.errors import JournalFull
from tollspan.processor.intake import Intake
from tollspan.processor.journal import Journal
from tollspan.processor.otlp_client import LoginRefused
from tollspan.processor.receive import GrpcSettings, Receiver
from tollspan.processor.receive_http import HttpReceiver, HttpSettings
from tollspan.processor.senders import Senders, new_token
from tollspan.processor.tls import Tls, TlsFiles

from .test_crowds import HEAD, HELLO, frame, literal
from .test_receive import refuse_first, request, span_names
from .test_replay import many_rows, write
from .test_tls import Certificates, certificates

__all__ = ["certificates"]

LIMIT = 1 << 20
TOKEN, DIGEST = new_token()


class Line:
    """Both receivers under mTLS, or plain, with or without senders."""

    def __init__(self, folder: Path, tls: TlsFiles | None = None, *, login: bool = False, rate: float = 0.0) -> None:
        self.counters = Counters()
        self.journal = Journal(folder / "journal", counters=self.counters)
        self.intake = Intake(self.journal, counters=self.counters)
        senders = None
        if login:
            row = {"id": "me", "sha256": DIGEST, "tenant": "acme", **({"max_requests_per_s": rate} if rate else {})}
            (folder / "senders.yaml").write_text(yaml.safe_dump({"senders": [row]}))
            senders = Senders(folder / "senders.yaml", self.counters)
        options: dict[str, Any] = {
            "address": "127.0.0.1:0",
            "tls": Tls(tls) if tls is not None else None,
            "senders": senders,
        }
        self.receivers = {
            "grpc": Receiver(self.intake, settings=GrpcSettings(max_request_bytes=LIMIT), **options),
            "http": HttpReceiver(self.intake, settings=HttpSettings(max_request_bytes=LIMIT), **options),
        }
        self.ports = {name: each.start().rpartition(":")[2] for name, each in self.receivers.items()}
        self.scheme = "https" if tls is not None else "http"

    def endpoint(self, protocol: str) -> str:
        return f"{self.scheme}://localhost:{self.ports[protocol]}"

    def names(self) -> list[str]:
        found: list[bytes] = []
        while (batch := self.journal.next_batch(1 << 30, timeout=0)) is not None:
            found += batch.payloads
        return span_names(found)

    def refuse(self, monkeypatch: pytest.MonkeyPatch, times: int) -> None:
        """The journal is full for so many requests."""
        refuse_first(self.journal, monkeypatch, *[JournalFull("No room.")] * times)

    def close(self) -> None:
        for each in self.receivers.values():
            each.stop()
        self.journal.close()


@pytest.fixture
def lines(tmp_path: Path) -> Iterator[Callable[..., Line]]:
    opened: list[Line] = []

    def make(*given: Any, **options: Any) -> Line:
        opened.append(Line(tmp_path, *given, **options))
        return opened[-1]

    yield make
    for each in opened:
        each.close()


def exporter(protocol: str, timeout: float = 10) -> SpanExporter:
    return GrpcExporter(timeout=timeout) if protocol == "grpc" else HttpExporter(timeout=timeout)


def span(name: str, size: int = 0) -> ReadableSpan:
    made = TracerProvider(shutdown_on_exit=False).get_tracer("t").start_span(name, attributes={"x": "y" * size})
    made.end()
    assert isinstance(made, ReadableSpan)
    return made


def broken(name: str) -> ReadableSpan:
    """One with an id that cannot be."""
    return ReadableSpan(name, SpanContext(trace_id=0, span_id=7, is_remote=False), kind=SpanKind.CLIENT)


both = pytest.mark.parametrize("protocol", ["grpc", "http"])


@both
@pytest.mark.parametrize("compression", [None, "gzip"])
def test_with_everything_on(
    lines: Callable[..., Line],
    certificates: Certificates,
    monkeypatch: pytest.MonkeyPatch,
    protocol: str,
    compression: str | None,
) -> None:
    """mTLS, a token and compression, all from the environment."""
    line = lines(TlsFiles(certificates.files.certificate, certificates.files.key, certificates.ca_file), login=True)
    for name, value in {
        "ENDPOINT": line.endpoint(protocol),
        "CERTIFICATE": certificates.ca_file,
        "CLIENT_CERTIFICATE": certificates.sender,
        "CLIENT_KEY": certificates.sender_key,
        "HEADERS": f"authorization=Bearer%20{TOKEN}",
        **({"COMPRESSION": compression} if compression else {}),
    }.items():
        monkeypatch.setenv(f"OTEL_EXPORTER_OTLP_{name}", str(value))
    out = exporter(protocol)
    assert out.export([span("one"), span("two")]) is SpanExportResult.SUCCESS
    out.shutdown()
    assert line.names() == ["one", "two"]


@both
def test_who_is_refused_for_a_while_delivers_in_the_end(
    lines: Callable[..., Line], monkeypatch: pytest.MonkeyPatch, protocol: str
) -> None:
    line = lines()
    line.refuse(monkeypatch, 2)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", line.endpoint(protocol))
    out = exporter(protocol)
    began = time.monotonic()
    assert out.export([span("patient")]) is SpanExportResult.SUCCESS
    assert time.monotonic() - began > 1.5, "it waits as long as it is asked to"
    out.shutdown()
    assert line.names() == ["patient"]
    assert line.counters.get("receive.refused.journal_full") == 2


@both
def test_who_sends_too_fast_is_slowed_down_and_loses_nothing(
    lines: Callable[..., Line], monkeypatch: pytest.MonkeyPatch, protocol: str
) -> None:
    line = lines(login=True, rate=1.0)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", line.endpoint(protocol))
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", f"authorization=Bearer%20{TOKEN}")
    out = exporter(protocol)
    for number in range(4):
        assert out.export([span(str(number))]) is SpanExportResult.SUCCESS
    out.shutdown()
    assert line.names() == ["0", "1", "2", "3"]
    assert line.counters.get("receive.refused.rate") > 0


@both
def test_a_partial_success_is_a_success_to_them(
    lines: Callable[..., Line], monkeypatch: pytest.MonkeyPatch, protocol: str
) -> None:
    """They do not look at what it says: that the spans are gone is in our counters, and in the quarantine."""
    line = lines()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", line.endpoint(protocol))
    out = exporter(protocol)
    assert out.export([span("good"), broken("bad"), span("good too")]) is SpanExportResult.SUCCESS
    assert line.names() == ["good", "good too"]
    assert line.counters.get("receive.rejected.bad_trace_id") == 1
    assert out.export([broken("bad")]) is SpanExportResult.FAILURE, "which it logs"
    out.shutdown()
    assert line.counters.get("receive.requests") == 2, "nothing is sent twice"


@both
def test_a_wrong_token_is_final(lines: Callable[..., Line], monkeypatch: pytest.MonkeyPatch, protocol: str) -> None:
    line = lines(login=True)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", line.endpoint(protocol))
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20wrong")
    out = exporter(protocol)
    began = time.monotonic()
    assert out.export([span("lost")]) is SpanExportResult.FAILURE
    assert time.monotonic() - began < 5
    out.shutdown()
    assert line.counters.get("receive.refused.unknown_token") == 1


def test_too_large_a_request_is_final_over_http(lines: Callable[..., Line], monkeypatch: pytest.MonkeyPatch) -> None:
    line = lines()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", line.endpoint("http"))
    out = exporter("http")
    began = time.monotonic()
    assert out.export([span("large", LIMIT)]) is SpanExportResult.FAILURE
    assert time.monotonic() - began < 5
    out.shutdown()
    assert line.counters.get("receive.refused.too_large") == 1


def test_too_large_a_request_is_tried_until_the_deadline_over_grpc(
    lines: Callable[..., Line], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What gRPC says of it, RESOURCE_EXHAUSTED without RetryInfo, is final to a Collector and not to this SDK."""
    line = lines()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", line.endpoint("grpc"))
    out = exporter("grpc", timeout=3)
    began = time.monotonic()
    assert out.export([span("large", LIMIT)]) is SpanExportResult.FAILURE
    assert time.monotonic() - began < 8
    assert out.export([span("small")]) is SpanExportResult.SUCCESS
    out.shutdown()
    assert line.names() == ["small"]
    assert line.counters.get("receive.broken") > 0


@both
def test_a_service_that_ends_while_they_send_loses_nothing_that_it_took(
    lines: Callable[..., Line], monkeypatch: pytest.MonkeyPatch, protocol: str
) -> None:
    line = lines()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", line.endpoint(protocol))
    results: dict[str, SpanExportResult] = {}

    def send() -> None:
        out = exporter(protocol, timeout=2)
        number = 0
        while not stopped.is_set() and number < 10_000:
            name = f"{threading.get_ident()}/{number}"
            results[name] = out.export([span(name)])
            number += 1
        out.shutdown()

    stopped = threading.Event()
    threads = [threading.Thread(target=send) for _ in range(4)]
    for thread in threads:
        thread.start()
    while len(results) < 40:
        time.sleep(0.01)
    assert line.intake.drain(10)
    for each in line.receivers.values():
        each.stop()
    stopped.set()
    for thread in threads:
        thread.join(30)
    taken = {name for name, result in results.items() if result is SpanExportResult.SUCCESS}
    assert taken <= set(line.names())


@both
def test_an_exporter_of_another_signal_is_told_once_and_stops(
    lines: Callable[..., Line], monkeypatch: pytest.MonkeyPatch, protocol: str
) -> None:
    from opentelemetry._logs import LogRecord
    from opentelemetry.exporter.otlp.proto.grpc._log_exporter import OTLPLogExporter as GrpcLogs
    from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter as HttpLogs
    from opentelemetry.sdk._logs import LoggerProvider
    from opentelemetry.sdk._logs.export import SimpleLogRecordProcessor

    line = lines()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", line.endpoint(protocol))
    provider = LoggerProvider(shutdown_on_exit=False)
    provider.add_log_record_processor(SimpleLogRecordProcessor(GrpcLogs() if protocol == "grpc" else HttpLogs()))
    began = time.monotonic()
    provider.get_logger("t").emit(LogRecord(timestamp=1, body="hello"))
    assert time.monotonic() - began < 5, "it is final: not tried again"
    provider.shutdown()
    assert line.counters.get("receive.refused.logs") == 1


# -- tollspan replay ---------------------------------------------------------------------------------------------------


def replay(line: Line, protocol: str, folder: Path, *arguments: str, rows: int = 700) -> Any:
    path = write(folder, many_rows(rows))
    over = {"grpc": "grpc", "http": "http/protobuf"}[protocol]
    known = ["--to", line.endpoint(protocol), "--protocol", over, "--provider", "openai", "--model", "gpt-5-mini"]
    return CliRunner().invoke(app, ["replay", str(path), *known, *arguments])


@both
def test_a_replay_goes_through_mtls_with_a_token(
    lines: Callable[..., Line], certificates: Certificates, tmp_path: Path, protocol: str
) -> None:
    line = lines(TlsFiles(certificates.files.certificate, certificates.files.key, certificates.ca_file), login=True)
    paths = {"--ca": certificates.ca_file, "--cert": certificates.sender, "--key": certificates.sender_key}
    mine = [str(part) for pair in paths.items() for part in pair]
    result = replay(line, protocol, tmp_path, "--token", TOKEN, "--compression", "gzip", *mine)
    assert result.exit_code == 0, result.exception
    assert "accepted 700, refused 0" in result.output
    assert len(line.names()) == 700


@both
def test_a_replay_without_its_token_says_what_is_missing(
    lines: Callable[..., Line], tmp_path: Path, protocol: str
) -> None:
    result = replay(lines(login=True), protocol, tmp_path)
    assert isinstance(result.exception, LoginRefused)
    assert "--token" in str(result.exception)


@both
def test_a_replay_to_whom_it_does_not_trust_says_so_at_once(
    lines: Callable[..., Line], certificates: Certificates, tmp_path: Path, protocol: str
) -> None:
    result = replay(lines(certificates.files), protocol, tmp_path)
    assert result.exit_code == 1
    assert "--ca" in str(result.exception)


@both
def test_a_replay_is_refused_for_a_while_and_delivers(
    lines: Callable[..., Line], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, protocol: str
) -> None:
    line = lines()
    line.refuse(monkeypatch, 2)
    result = replay(line, protocol, tmp_path)
    assert "accepted 700, refused 0" in result.output
    assert len(line.names()) == 700


def test_a_replay_reads_its_token_from_the_environment(
    lines: Callable[..., Line], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOLLSPAN_TOKEN", TOKEN)
    assert replay(lines(login=True), "http", tmp_path, "--compression", "zstd", rows=3).exit_code == 0


def test_grpc_takes_no_zstd(lines: Callable[..., Line]) -> None:
    """No exporter of Python's sends it; a Collector may, and what grpcio answers is final to it."""
    line = lines()
    payload = pa.Codec("zstd").compress(request(), asbytes=True)
    head = frame(1, 4, 1, HEAD + literal(b"grpc-encoding", b"zstd"))
    body = frame(0, 1, 1, b"\1" + len(payload).to_bytes(4, "big") + payload)
    said = b""
    with socket.create_connection(("127.0.0.1", int(line.ports["grpc"])), timeout=10) as client:
        client.sendall(HELLO + head + body)
        while b"grpc-message" not in said:
            said += client.recv(4096)
    assert b"grpc-status\x0213" in said  # INTERNAL
    assert b"grpc-encoding" in said
    assert line.names() == []
