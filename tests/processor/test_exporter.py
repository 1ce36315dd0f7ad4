"""The drop-in exporter: durable when it says so, priced when the program ends, and never in the program's way."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import subprocess
import sys
import time
from decimal import Decimal
from pathlib import Path

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor, SpanExportResult

from tollspan.processor.errors import ConfigError
from tollspan.processor.exporter import TollspanSpanExporter
from tollspan.processor.journal import Journal
from tollspan.processor.pipeline import Settings
from tollspan.processor.runtime import RuntimeConfig
from tollspan.processor.store import open_store

USAGE = {
    "gen_ai.operation.name": "chat",
    "gen_ai.provider.name": "openai",
    "gen_ai.request.model": "gpt-5-mini",
    "gen_ai.usage.input_tokens": 1000,
    "gen_ai.usage.output_tokens": 100,
}
CALL = Decimal("0.00045")


def test_spans_of_the_sdk_become_ledger_rows(store_url: str, tmp_path: Path) -> None:
    exporter = TollspanSpanExporter(RuntimeConfig(store_url, journal=tmp_path / "j", settings=Settings(keep=1.0)))
    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(exporter))
    tracer = provider.get_tracer("test")
    for _ in range(20):
        with tracer.start_as_current_span("request"), tracer.start_as_current_span("chat", attributes=USAGE):
            pass
    provider.shutdown()
    with open_store(store_url, create=False) as store:
        (row,) = store.query("SELECT count() AS n, sum(cost) AS cost FROM ledger FINAL").to_pylist()
        (bodies,) = store.query("SELECT count() AS n FROM spans FINAL").to_pylist()
    assert (row["n"], row["cost"]) == (20, 20 * CALL)
    assert bodies["n"] == 40


def test_after_shutdown_exports_fail_and_nothing_raises(store_url: str, tmp_path: Path) -> None:
    exporter = TollspanSpanExporter(RuntimeConfig(store_url, journal=tmp_path / "j"))
    exporter.shutdown()
    assert exporter.export([]) is SpanExportResult.FAILURE
    exporter.shutdown()


def test_a_wrong_store_is_said_once_and_the_program_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    exporter = TollspanSpanExporter(RuntimeConfig("mysql://nowhere"))
    with caplog.at_level(logging.ERROR):
        assert exporter.export([]) is SpanExportResult.FAILURE
        assert exporter.export([]) is SpanExportResult.FAILURE
    assert len([r for r in caplog.records if "mysql" in r.getMessage()]) == 1


def test_a_fork_that_comes_later_exports_nothing_and_harms_nothing(store_url: str, tmp_path: Path) -> None:
    exporter = TollspanSpanExporter(RuntimeConfig(store_url, journal=tmp_path / "j"))
    assert exporter.export([]) is SpanExportResult.SUCCESS
    exporter._pid = os.getpid() - 1  # as a forked child sees it
    assert exporter.export([]) is SpanExportResult.FAILURE
    exporter._pid, exporter._broken = os.getpid(), False
    exporter.shutdown()


def test_settings_come_from_the_environment(tmp_path: Path) -> None:
    config = RuntimeConfig.from_environment(
        {"TOLLSPAN_STORE": "chdb:///x", "TOLLSPAN_PRICES": str(tmp_path / "p.yaml"), "TOLLSPAN_KEEP": "0.25"}
    )
    assert (config.store, config.prices, config.settings.keep) == ("chdb:///x", tmp_path / "p.yaml", 0.25)
    with pytest.raises(ConfigError, match="keep"):
        RuntimeConfig.from_environment({"TOLLSPAN_KEEP": "lots"})


def test_what_the_batch_processor_holds_at_exit_is_written_before_the_process_ends(tmp_path: Path) -> None:
    program = (
        "from opentelemetry import trace\n"
        f"usage = {USAGE!r}\n"
        "for _ in range(7):\n"
        "    trace.get_tracer('t').start_span('chat', attributes=usage).end()\n"
    )
    environment = os.environ | {
        "OTEL_TRACES_EXPORTER": "tollspan",
        "OTEL_METRICS_EXPORTER": "none",
        "OTEL_LOGS_EXPORTER": "none",
        "TOLLSPAN_STORE": f"chdb://{tmp_path}/store",
    }
    launcher = str(Path(sys.executable).parent / "opentelemetry-instrument")
    done = subprocess.run(
        [launcher, sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=90
    )
    assert done.returncode == 0, done.stderr
    total = subprocess.run(
        [sys.executable, "-m", "tollspan.processor.main", "query", "total", "--format", "json",
         "--store", f"chdb://{tmp_path}/store"],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert '"inferences": 7' in total.stdout, done.stderr + total.stderr


def test_a_store_that_is_away_or_silent_holds_up_neither_export_nor_exit(tmp_path: Path) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"clickhouse://127.0.0.1:{silent.getsockname()[1]}/db"
        exporter = TollspanSpanExporter(RuntimeConfig(url, journal=tmp_path / "j"))
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(exporter))
        began = time.monotonic()
        provider.get_tracer("test").start_span("chat", attributes=USAGE).end()
        assert time.monotonic() - began < 5, "accepted by the journal, whatever the store does"
        provider.shutdown()
        assert time.monotonic() - began < 30
    with contextlib.closing(Journal(tmp_path / "j")) as journal:
        batch = journal.next_batch(1 << 20, 1.0)
        assert batch is not None, "the span waits in the journal"
        assert len(batch.payloads) == 1
