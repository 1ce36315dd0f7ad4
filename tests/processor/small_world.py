"""A small world: twenty spans whose prices are on paper, sent down the real line into a real store.

Prices, USD: model ``small`` 1 for a million input tokens (0.1 from a cache), 4 for a million output tokens; ``big`` ten
times that; a second of a T4, busy or idle, 0.001; a GB to the internet 0.09, to another region 0.02, to another zone
0.01; a GB read from object storage 0.001; a feature read 0.00001; a GB of telemetry 0.5. ``mystery`` has no price.

    span  trace  who     what                                              USD
     1    1      acme    small, 1000 + 500 tokens                          0.003
     2    1      acme    small, 1000 (400 cached) + 250, one retry         0.00164
     3    1      acme    big, 2000 + 100                                   0.024
     4    2      globex  small, 2000 + 1000                                0.006
     5    2      globex  big, 1000 + 50, fails after the first tokens      0.012
     6    2      globex  the same again, succeeds                          0.012
     7    2      globex  mystery, 100 + 10                                 unpriced
     8    2      globex  small, refused with 429                           not billed
     9    3      nobody  small, 500 + 25                                   0.0006
    10    1      acme    agent over 1 and 2                                roll-up
    11    4      acme    Ranker, 2 s of a T4, batch of 1, cold             0.002
    12    5      acme    Ranker, 1 s, batch of 4                           0.001
    13    6      globex  Ranker, 2 s, batch of 4                           0.002
    14    7      globex  Ranker, 1 s, batch of 1                           0.001
    15    8      nobody  a minute of the T4, 34 s idle                     0.034
    16    9      nobody  the next, 20 s idle                               0.02
    17    10     nobody  load of Ranker, 10 GB read                        0.01
    18    4      acme    100 feature reads                                 0.001
    19    11     globex  small, 1000 + 500; 10 MB out to the internet,
                         100 MB to another zone and 100 to another region  0.0069
    20    12     nobody  20 MB of somebody's telemetry                     0.01
                                                                     all   0.14714
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from tollspan.pricing import PriceEngine, load_book
from tollspan.pricing import attributes as names
from tollspan.processor.counters import Counters
from tollspan.processor.journal import Journal
from tollspan.processor.pipeline import Pipeline, Settings
from tollspan.processor.store import Store
from tollspan.processor.write import Writer

from .otlp_factory import resource_spans, span

BOOK = """
price_book: {id: paper, version: "1", currency: USD}
prices:
  - {provider: acme, sku: small, meter: tokens.input.uncached, amount: 1, per: 1000000}
  - {provider: acme, sku: small, meter: tokens.input.cache_read, amount: "0.1", per: 1000000}
  - {provider: acme, sku: small, meter: tokens.output, amount: 4, per: 1000000}
  - {provider: acme, sku: big, meter: tokens.input.uncached, amount: 10, per: 1000000}
  - {provider: acme, sku: big, meter: tokens.input.cache_read, amount: 1, per: 1000000}
  - {provider: acme, sku: big, meter: tokens.output, amount: 40, per: 1000000}
  - {sku: T4, meter: gpu.seconds, amount: "0.001"}
  - {sku: T4, meter: gpu.idle_seconds, amount: "0.001"}
  - {meter: network.egress.internet.bytes, amount: "0.09", unit: GB}
  - {meter: network.egress.cross_region.bytes, amount: "0.02", unit: GB}
  - {meter: network.egress.cross_zone.bytes, amount: "0.01", unit: GB}
  - {meter: storage.read.bytes, amount: "0.001", unit: GB}
  - {meter: feature.reads, amount: "0.00001"}
  - {meter: telemetry.bytes, amount: "0.5", unit: GB}
"""
NOON = datetime(2026, 10, 1, 12, tzinfo=UTC)
NOON_NS = int(NOON.timestamp()) * 10**9
HOUR_NS = 3600 * 10**9

SHOP = {
    names.SERVICE_NAME: "shop",
    names.SERVICE_VERSION: "1.4.0",
    names.ENVIRONMENT: "prod",
    names.CLOUD_REGION: "eu-west-1",
}
RANKER = {names.SERVICE_NAME: "ranker", names.SERVICE_VERSION: "2", names.ENVIRONMENT: "prod"}


def made(
    number: int,
    trace: int,
    values: dict[str, Any],
    *,
    ms: int,
    parent: int = 0,
    error: bool = False,
    at: int = 0,
    **more: Any,
) -> Span:
    """A span that starts ``number`` ms after noon, or ``at`` ns after it."""
    start = NOON_NS + (at or number * 10**6)
    return span(
        values,
        trace_id=trace.to_bytes(16, "big"),
        span_id=number.to_bytes(8, "big"),
        parent_span_id=parent.to_bytes(8, "big") if parent else b"",
        start_time_unix_nano=start,
        end_time_unix_nano=start + ms * 10**6,
        status=Status(code=Status.STATUS_CODE_ERROR if error else Status.STATUS_CODE_UNSET),
        **more,
    )


def tags(tenant: str = "", feature: str = "", **more: str) -> dict[str, str]:
    given = {"tenant": tenant, "feature": feature, **more}
    return {names.TAGS[name]: value for name, value in given.items() if value}


def asked(model: str, tokens: tuple[int, int] | None, **more: Any) -> dict[str, Any]:
    """Attributes of a call of one of acme's models."""
    values: dict[str, Any] = {
        names.OPERATION_NAME: "chat",
        names.PROVIDER_NAME: "acme",
        names.REQUEST_MODEL: model,
    }
    if tokens:
        values |= {names.USAGE_INPUT_TOKENS: tokens[0], names.USAGE_OUTPUT_TOKENS: tokens[1]}
    return values | more


def ranked(seconds: float, batch: int, **more: Any) -> dict[str, Any]:
    """Attributes of a call of the model on the T4."""
    return {
        names.OPERATION: names.OPERATION_INFERENCE,
        names.PROVIDER: "pytorch",
        names.MODEL: "Ranker",
        names.DEVICE_NAME: "T4",
        names.BATCH_SIZE: batch,
        names.usage("gpu.seconds"): seconds,
        **more,
    }


def idle(seconds: float) -> dict[str, Any]:
    return {
        names.OPERATION: names.OPERATION_CAPACITY,
        names.DEVICE_NAME: "T4",
        names.usage("gpu.idle_seconds"): seconds,
    }


def shop() -> list[Span]:
    """Spans 1 to 10, 19 and 20."""
    acme = tags("acme", "search", agent="planner", route="/search", variant="A")
    globex = tags("globex", "chat", route="/chat", variant="B")
    retried = {names.RETRIES: 1}
    told = {names.RETRIES: 0}
    return [
        made(1, 1, asked("small", (1000, 500)) | acme | told, ms=100, parent=10),
        made(
            2,
            1,
            asked("small", (1000, 250)) | acme | retried | {"gen_ai.usage.cache_read.input_tokens": 400},
            ms=200,
            parent=10,
        ),
        made(3, 1, asked("big", (2000, 100)) | acme | told, ms=400),
        made(4, 2, asked("small", (2000, 1000)) | globex | told, ms=300),
        made(5, 2, asked("big", (1000, 50)) | globex | told, ms=800, error=True),
        made(6, 2, asked("big", (1000, 50)) | globex | told, ms=500),
        made(7, 2, asked("mystery", (100, 10)) | globex | told, ms=600),
        made(8, 2, asked("small", None) | globex | {names.HTTP_STATUS: 429}, ms=50, error=True),
        made(9, 3, asked("small", (500, 25)), ms=150, at=HOUR_NS),
        made(
            10,
            1,
            {
                names.OPERATION_NAME: "invoke_agent",
                names.AGENT_NAME: "planner",
                names.PROVIDER_NAME: "acme",
                names.REQUEST_MODEL: "small",
                names.USAGE_INPUT_TOKENS: 2000,
                names.USAGE_OUTPUT_TOKENS: 750,
                **tags("acme", "search"),
            },
            ms=700,
        ),
        made(
            19,
            11,
            asked("small", (1000, 500))
            | globex
            | told
            | {
                names.usage("network.egress.internet.bytes"): 10**7,
                names.usage("network.egress.cross_zone.bytes"): 10**8,
                names.usage("network.egress.cross_region.bytes"): 10**8,
            },
            ms=250,
        ),
        made(20, 12, {names.OPERATION: "ship", names.usage("telemetry.bytes"): 2 * 10**7}, ms=5),
    ]


def ranker() -> list[Span]:
    """Spans 11 to 18."""
    acme, globex = tags("acme", "rank"), tags("globex", "rank")
    return [
        made(11, 4, ranked(2.0, 1, **{names.COLD_START: True}) | acme, ms=2000),
        made(12, 5, ranked(1.0, 4) | acme, ms=1000),
        made(13, 6, ranked(2.0, 4) | globex, ms=2100),
        made(14, 7, ranked(1.0, 1) | globex, ms=1100),
        made(15, 8, idle(34.0), ms=60_000),
        made(16, 9, idle(20.0), ms=60_000),
        made(
            17,
            10,
            {
                names.OPERATION: names.OPERATION_MODEL_LOAD,
                names.PROVIDER: "pytorch",
                names.MODEL: "Ranker",
                names.usage("storage.read.bytes"): 10**10,
            },
            ms=9000,
        ),
        made(
            18,
            4,
            {
                names.OPERATION: names.OPERATION_FEATURE_READ,
                names.PROVIDER: "feast",
                names.MODEL: "profiles",
                names.usage("feature.reads"): 100,
                **acme,
            },
            ms=10,
        ),
    ]


def request_of(*parts: tuple[dict[str, str], Sequence[Span]]) -> bytes:
    """One export request of several resources."""
    asked_for = ExportTraceServiceRequest()
    for resource, spans in parts:
        asked_for.resource_spans.append(resource_spans(spans, resource))
    return asked_for.SerializeToString()


def send(store: Store, folder: Path, *payloads: bytes, book: str = BOOK, keep: float = 0.0) -> Counters:
    """Requests through journal and pipeline into the store."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "prices.yaml").write_text(book, encoding="utf-8")
    counters, stop = Counters(), threading.Event()
    journal = Journal(folder / "journal", counters=counters)
    try:
        for payload in payloads:
            journal.append(payload).wait()
        line = Pipeline(
            journal,
            Writer(store, threading.Event(), counters, pause=lambda _: None),
            PriceEngine(load_book(folder / "prices.yaml", shipped=False)),
            Settings(keep=keep, decision_wait_s=0.0, linger_s=0.0),
            counters,
        )
        stop.set()
        line.run(stop)
    finally:
        journal.close()
    return counters


def small_world(store: Store, folder: Path) -> dict[str, int]:
    """Send it; bytes on the wire by service."""
    payloads = {"shop": request_of((SHOP, shop())), "ranker": request_of((RANKER, ranker()))}
    send(store, folder, *payloads.values())
    return {service: len(payload) for service, payload in payloads.items()}
