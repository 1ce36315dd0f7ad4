"""What a request and an item of a batch cost: the parts are disjoint, nothing is lost, and unknown is never zero."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tollspan.processor.demo import conservation
from tollspan.processor.queries import run
from tollspan.processor.report import BRIEF, build_report, cost_by_part
from tollspan.processor.report import summary as summary_lines
from tollspan.processor.store import Store, open_store

Make = Callable[[list[dict[str, Any]]], pa.Table]

TOKENS = ("tokens.output", "model", "0.5", "priced")
CPU = ("cpu.seconds", "compute", "0.25", "priced")
IDLE = ("gpu.idle_seconds", "compute", "3", "priced")
READS = ("feature.reads", "storage", "0.1", "priced")
QUERY = ("vector.queries", "storage", "0.2", "priced")
BYTES = ("storage.read.bytes", "storage", "0.01", "priced")
EGRESS = ("network.egress.internet.bytes", "network", "0.03", "priced")
NO_PRICE = ("gpu.seconds", "compute", None, "unpriced")

REQUEST = b"r" * 16


@pytest.fixture(scope="module")
def shared(store_directory: Path) -> Iterator[Store]:
    with open_store(f"chdb://{store_directory}?database=request_queries") as opened:
        opened.migrate()
        yield opened
        opened.execute("DROP DATABASE request_queries")


@pytest.fixture
def fill(shared: Store, ledger_rows: Make) -> Callable[[list[dict[str, Any]]], Store]:
    shared.execute("TRUNCATE TABLE ledger")
    shared.execute("TRUNCATE TABLE traces")

    def filled(rows: list[dict[str, Any]]) -> Store:
        shared.insert("ledger", ledger_rows(rows), uuid.uuid4().hex)
        return shared

    return filled


def span(*charges: Any, trace: bytes = REQUEST, **columns: Any) -> dict[str, Any]:
    return {"charges": list(charges), "trace_id": trace, "workflow": "answer", **columns}


A_REQUEST = [
    span(TOKENS, tenant="acme"),
    span(CPU),
    span(READS, BYTES, operation="feature_read", kind="feature_read"),
    span(QUERY, BYTES, operation="vector_query", kind="other"),
    span(EGRESS, kind="other"),
]


def by_part(store: Store) -> dict[tuple[str | None, str], tuple[Decimal | None, Decimal | None]]:
    rows = run(store, "per-request")
    return {(row["workflow"], row["part"]): (row["cost"], row["cost_per_request"]) for row in rows}


def test_bytes_belong_to_the_store_that_they_are_read_from_and_else_to_storage(fill: Any) -> None:
    found = by_part(fill([*A_REQUEST, span(BYTES, trace=b"l" * 16, workflow="", kind="model_load")]))
    assert {name: cost for name, (cost, _) in found.items()} == {
        ("answer", "model"): Decimal("0.5"),
        ("answer", "compute"): Decimal("0.25"),
        ("answer", "vector"): Decimal("0.21"),
        ("answer", "feature"): Decimal("0.11"),
        ("answer", "network"): Decimal("0.03"),
        (None, "storage"): Decimal("0.01"),
    }


def test_the_mean_is_over_all_requests_of_a_workflow_also_those_without_the_part(fill: Any) -> None:
    found = by_part(fill([*A_REQUEST, span(TOKENS, trace=b"s" * 16)]))
    assert found["answer", "model"] == (1, Decimal("0.5"))
    assert found["answer", "compute"] == (Decimal("0.25"), Decimal("0.125"))


def test_what_is_no_request_is_in_the_cost_and_in_no_mean(fill: Any) -> None:
    loaded = span(CPU, BYTES, trace=b"l" * 16, kind="model_load")
    held = span(IDLE, trace=b"c" * 16, kind="capacity")
    found = by_part(fill([*A_REQUEST, loaded, held]))
    assert found["answer", "compute"] == (Decimal("0.5"), Decimal("0.25"))
    assert found["answer", "idle"] == (3, None)
    assert found["answer", "storage"] == (Decimal("0.01"), None)


def test_a_request_without_a_price_is_left_out_of_both_sides_of_the_mean(fill: Any) -> None:
    store = fill([*A_REQUEST, span(TOKENS, trace=b"s" * 16), span(NO_PRICE, trace=b"s" * 16)])
    found = by_part(store)
    assert found["answer", "model"] == (1, Decimal("0.5"))
    assert found["answer", "compute"] == (Decimal("0.25"), Decimal("0.25"))
    assert {(row["priced_requests"], row["unpriced_requests"]) for row in run(store, "per-request")} == {(1, 1)}


def test_a_part_without_any_price_is_unknown_and_not_zero(fill: Any) -> None:
    store = fill([span(NO_PRICE), span(cost_status="unpriced", trace=b"s" * 16)])
    assert by_part(store) == {("answer", "compute"): (None, None), ("answer", "unpriced"): (None, None)}
    assert [row["cost"] for row in run(store, "requests")] == [None, None]
    assert {row["compute_cost"] for row in run(store, "requests")} == {None, Decimal(0)}


def test_each_request_is_listed_with_its_parts(fill: Any) -> None:
    (row,) = run(fill(A_REQUEST), "requests")
    assert (row["trace_id"], row["workflow"], row["tenant"]) == (REQUEST.hex(), "answer", "acme")
    parts = [row[f"{part}_cost"] for part in ("model", "compute", "feature", "vector", "network", "other")]
    assert parts == [Decimal(cost) for cost in ("0.5", "0.25", "0.11", "0.21", "0.03", "0")]
    assert sum(parts) == row["cost"]


CHARGES = st.sampled_from([TOKENS, CPU, IDLE, READS, QUERY, BYTES, EGRESS, NO_PRICE])


@st.composite
def spans(draw: st.DrawFn) -> dict[str, Any]:
    charges = draw(st.lists(CHARGES, max_size=3))
    priced = {charge[2] is not None for charge in charges}
    status = "partial" if len(priced) == 2 else "priced" if priced == {True} else "unpriced"
    return {
        "charges": charges,
        "cost_status": status if charges else draw(st.sampled_from(["unpriced", "not_billed"])),
        "trace_id": draw(st.sampled_from([b"a" * 16, b"b" * 16, b"c" * 16])),
        "workflow": draw(st.sampled_from(["", "x", "y"])),
        "operation": draw(st.sampled_from(["", "feature_read", "vector_query", "model_load"])),
    }


@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(spans(), min_size=1, max_size=12))
def test_parts_and_requests_add_up_to_the_total(fill: Any, shared: Store, rows: list[Any]) -> None:
    shared.execute("TRUNCATE TABLE ledger")
    report = build_report(fill(rows), sections=BRIEF)
    whole, _ = conservation(report)
    assert whole
    assert sum(cost or 0 for cost in cost_by_part(report).values()) == (report["total"]["cost"] or 0)
    requests = run(shared, "requests")
    assert sum(row["cost"] or 0 for row in requests) == (report["total"]["cost"] or 0)
    for row in requests:
        assert sum(row[f"{part}_cost"] or 0 for part in REQUEST_PARTS) == (row["cost"] or 0)


REQUEST_PARTS = ("model", "compute", "feature", "vector", "network", "other")


def test_parts_that_do_not_add_up_are_said(fill: Any) -> None:
    report = build_report(fill(A_REQUEST), sections=BRIEF)
    assert conservation(report) == (
        True,
        "model 0.500000000000 + compute 0.250000000000 + vector 0.210000000000 + feature 0.110000000000 + network "
        "0.030000000000 = 1.100000000000 USD: the parts add up to the total, to the last digit.",
    )
    report["total"]["cost"] += Decimal("1E-12")
    whole, sentence = conservation(report)
    assert not whole
    assert sentence.startswith("The parts do NOT add up to the total of 1.100000000001 USD: model 0.5")


@pytest.mark.parametrize(
    ("rows", "line"),
    [
        ([span(TOKENS)], None),
        ([span(CPU)], "idle time of machines: not measured"),
        (
            [span(CPU), span(IDLE, kind="other")],
            "idle time of machines: 3 USD, beside 0.25 USD for the time that spans tell",
        ),
        ([span(IDLE, kind="other")], "idle time of machines: 3 USD"),
        ([span(("cpu.idle_seconds", "compute", None, "unpriced"))], "idle time of machines: measured, without a price"),
    ],
)
def test_the_report_says_how_much_is_idle_and_where_nobody_measured_it(fill: Any, rows: Any, line: str | None) -> None:
    said = [each for each in summary_lines(build_report(fill(rows), sections=BRIEF)) if each.startswith("idle")]
    assert said == ([] if line is None else [line])


def batch(size: int | None, cost: str | None, **columns: Any) -> dict[str, Any]:
    return span(("cpu.seconds", "compute", cost, "priced" if cost else "unpriced"), batch_size=size, **columns)


def test_items_of_larger_batches_are_compared_with_those_of_smaller_ones(fill: Any) -> None:
    store = fill(
        [
            batch(1, "0.4"),
            batch(7, "0.7", duration_ns=8_000_000),
            batch(8, "0.8", duration_ns=7_000_000),
            batch(9, "9"),
            batch(1, "77", cold_start=True),
            batch(None, "5"),
            batch(8, "8", cost_status="rollup"),
            batch(1, "6", model="other"),
        ]
    )
    rows = [row for row in run(store, "batches") if row["model"] == "gpt-5-mini"]
    found = [(r["batch_size"], r["calls"], r["items"], r["cost_per_item"], r["efficiency"]) for r in rows]
    assert found == [
        ("1", 1, 1, Decimal("0.4"), Decimal("0.25")),
        ("7-8", 2, 15, Decimal("0.1"), Decimal(1)),
        ("9", 1, 9, Decimal(1), Decimal("0.1")),
    ]
    assert rows[1]["ns_per_item"] == 1_000_000


def test_a_batch_without_a_price_is_left_out_of_the_mean_cost_of_an_item(fill: Any) -> None:
    (row,) = run(fill([batch(4, "0.4"), batch(4, None)]), "batches")
    assert (row["calls"], row["items"], row["cost"], row["cost_per_item"]) == (2, 8, Decimal("0.4"), Decimal("0.1"))
    (row,) = run(fill([batch(4, None, model="dear")]), "batches")[:1]
    assert (row["cost"], row["cost_per_item"], row["efficiency"]) == (None, None, None)
