"""The in-process exporter takes a new price book like the service does: what comes after it has the new prices."""

from __future__ import annotations

import threading
import time
from pathlib import Path

from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor

from tollspan.processor.exporter import TollspanSpanExporter
from tollspan.processor.pipeline import Settings
from tollspan.processor.runtime import RuntimeConfig
from tollspan.processor.store import open_store

USAGE = {
    "gen_ai.operation.name": "chat",
    "gen_ai.provider.name": "openai",
    "gen_ai.request.model": "house-model",
    "gen_ai.usage.input_tokens": 0,
    "gen_ai.usage.output_tokens": 10,
}


def write(path: Path, amount: str) -> None:
    draft = path.with_suffix(".new")
    draft.write_text(
        "price_book: {id: mine, version: 1, currency: USD}\nprices:\n"
        f"  - {{id: o, provider: openai, sku: house-model, meter: tokens.output, amount: '{amount}', per: 1}}\n"
    )
    draft.replace(path)


def test_the_exporter_prices_with_the_book_as_it_is_when_a_span_comes(store_url: str, tmp_path: Path) -> None:
    book = tmp_path / "prices.yaml"
    write(book, "1")
    config = RuntimeConfig(store_url, prices=book, journal=tmp_path / "j", settings=Settings(linger_s=0.0))
    exporter = TollspanSpanExporter(config)
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracer = provider.get_tracer("test")

    def call() -> None:
        with tracer.start_as_current_span("chat", attributes=USAGE):
            pass

    def wait(name: str, count: int) -> None:
        deadline = time.monotonic() + 30
        while counters.get(name) < count:
            assert time.monotonic() < deadline, name
            threading.Event().wait(0.01)

    call()
    assert exporter._opener is not None
    exporter._opener.join(30)
    runtime = exporter._runtime
    assert runtime is not None
    counters = runtime.counters
    wait("ledger.rows", 1)
    write(book, "3")
    runtime.prices.reload()
    wait("prices.reloaded", 1)
    call()
    wait("ledger.rows", 2)
    book.write_text("prices: [")
    runtime.prices.reload()
    wait("prices.reload_failed", 1)
    call()
    provider.shutdown()
    with open_store(store_url, create=False) as store:
        rows = store.rows("SELECT cost FROM ledger FINAL ORDER BY start_time")
    assert [row["cost"] for row in rows] == [10, 30, 30]
