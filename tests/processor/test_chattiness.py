"""Chattiness: how often stores are asked for one inference, and how often for what is known already."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from tollspan.processor.queries import run
from tollspan.processor.schema import SPANS
from tollspan.processor.store import Store, open_store

Make = Callable[[list[dict[str, Any]]], pa.Table]

NOON = datetime(2026, 11, 1, 12, tzinfo=UTC)
ONE, TWO, THREE = (letter * 16 for letter in (b"a", b"b", b"c"))
READS = ("feature.reads", "storage", "0.5", "priced")
UNPRICED = ("feature.reads", "storage", None, "unpriced")
TOKENS = ("tokens.output", "model", "4", "priced")


@pytest.fixture(scope="module")
def shared(store_directory: Path) -> Iterator[Store]:
    with open_store(f"chdb://{store_directory}?database=chattiness") as opened:
        opened.migrate()
        yield opened
        opened.execute("DROP DATABASE chattiness")


@pytest.fixture
def fill(shared: Store, ledger_rows: Make) -> Callable[..., list[dict[str, Any]]]:
    shared.execute("TRUNCATE TABLE ledger")
    shared.execute("TRUNCATE TABLE spans")

    def filled(rows: list[dict[str, Any]], spans: list[dict[str, Any]] | None = None, **window: Any) -> Any:
        shared.insert("ledger", ledger_rows(rows), uuid.uuid4().hex)
        if spans:
            shared.insert("spans", pa.Table.from_pylist(spans, schema=SPANS), uuid.uuid4().hex)
        return run(shared, "chattiness", **window)

    return filled


def row(trace: bytes, operation: str, service: str = "ranker", *charges: Any, **columns: Any) -> dict[str, Any]:
    kind = "inference" if operation in ("inference", "chat") else "feature_read" if charges else "other"
    about = {"trace_id": trace, "operation": operation, "service": service, "kind": kind, "feature": "search"}
    return {**about, "charges": list(charges) or [TOKENS], **columns}


_numbers = iter(range(1, 10_000))


def kept(trace: bytes, *keys: str, weight: float = 1.0, service: str = "ranker", **attributes: str) -> dict[str, Any]:
    """A span that sampling kept, as `tollspan.processor.bodies` writes its attributes."""
    number = next(_numbers)
    about = {
        "tollspan.operation": "feature_read",
        "tollspan.feature": "search",
        "tollspan.provider": "feast",
        "tollspan.feature.views": '["profiles"]',
        **({"tollspan.read.keys": json.dumps(keys)} if keys else {}),
        **attributes,
    }
    plain = {field.name: "" for field in SPANS if field.type == pa.string()}
    lists = {field.name: [] for field in SPANS if pa.types.is_list(field.type)}
    return {
        **plain,
        **lists,
        "Timestamp": NOON + timedelta(milliseconds=number),
        "TraceId": trace.hex(),
        "SpanId": f"{number:016x}",
        "SpanName": "feature_read profiles",
        "ServiceName": service,
        "ResourceAttributes": [],
        "SpanAttributes": list(about.items()),
        "Duration": 1,
        "AdjustedCount": weight,
    }


def test_reads_for_each_inference(fill: Any) -> None:
    rows = [
        *(row(ONE, "feature_read", "ranker", READS) for _ in range(5)),
        row(ONE, "vector_query", "ranker", READS),
        row(ONE, "inference"),
        row(TWO, "feature_read", "ranker", READS),
        row(TWO, "inference"),
        row(TWO, "inference"),
        row(TWO, "chat", cost_status="rollup", cost=None),
        row(TWO, "chat", cost_status="not_billed", cost=None),
        row(THREE, "inference", "other"),
    ]
    (found,) = fill(rows)
    assert (found["service"], found["feature"]) == ("ranker", "search")
    assert (found["feature_reads"], found["vector_queries"], found["inferences"]) == (6, 1, 3)
    assert (found["reads_per_inference"], found["most_reads"]) == (2.333, 6)
    assert (found["cost"], found["currency"]) == (Decimal("3.5"), "USD")
    assert (found["rows_read"], found["rows_read_again"], found["again_share"]) == (None, None, None)


def test_inferences_of_a_trace_count_whichever_service_ran_them(fill: Any) -> None:
    rows = [
        row(ONE, "feature_read", "gateway", READS),
        row(ONE, "feature_read", "gateway", READS, feature=""),
        row(ONE, "inference", "ranker"),
        row(ONE, "inference", "ranker"),
    ]
    assert [(each["feature"], each["inferences"], each["reads_per_inference"]) for each in fill(rows)] == [
        ("search", 2, 0.5),
        (None, 2, 0.5),
    ]


def test_reads_for_no_inference_have_no_ratio_and_no_price_no_cost(fill: Any) -> None:
    (found,) = fill([row(ONE, "feature_read", "loader", UNPRICED)])
    assert (found["feature_reads"], found["inferences"], found["reads_per_inference"]) == (1, 0, None)
    assert found["cost"] is None


def test_rows_that_are_read_again_are_weighted_by_what_their_spans_stand_for(fill: Any) -> None:
    rows = [
        row(trace, operation, "ranker", READS) for trace in (ONE, TWO) for operation in ("feature_read", "inference")
    ]
    spans = [
        kept(ONE, "k1", "k2"),
        kept(ONE, "k2", "k3"),  # k2 again
        kept(ONE, "k2", **{"tollspan.feature.views": '["other"]'}),
        kept(ONE, "k2", **{"tollspan.provider": "redis"}),
        kept(ONE, "k2", **{"tollspan.operation": "cache_lookup"}),
        kept(ONE),  # tells no keys
        kept(TWO, "k1", weight=10.0),
        kept(TWO, "k1", weight=10.0),  # again, ten times
    ]
    (found,) = fill(rows, spans)
    assert (found["rows_read"], found["rows_read_again"], found["again_share"]) == (26.0, 11.0, 0.423)


def test_a_row_read_again_is_the_later_services(fill: Any) -> None:
    rows = [row(ONE, operation, service, READS) for service in ("a", "b") for operation in ("feature_read",)]
    found = fill(rows, [kept(ONE, "k", service="a"), kept(ONE, "k", service="b")])
    assert {each["service"]: each["rows_read_again"] for each in found} == {"a": 0.0, "b": 1.0}


def test_a_span_that_comes_twice_is_one(fill: Any) -> None:
    once = kept(ONE, "k")
    (found,) = fill([row(ONE, "feature_read", "ranker", READS)], [once, once])
    assert (found["rows_read"], found["rows_read_again"]) == (1.0, 0.0)


def test_the_window_bounds_ledger_and_spans(fill: Any) -> None:
    rows = [
        row(ONE, "feature_read", "ranker", READS, start_time=NOON),
        row(ONE, "feature_read", "ranker", READS, start_time=NOON + timedelta(hours=2)),
    ]
    late = {**kept(ONE, "k"), "Timestamp": NOON + timedelta(hours=2)}
    (found,) = fill(rows, [kept(ONE, "k"), late], until=NOON + timedelta(hours=1))
    assert (found["feature_reads"], found["rows_read"], found["rows_read_again"]) == (1, 1.0, 0.0)
