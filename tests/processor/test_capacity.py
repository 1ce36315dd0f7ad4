"""What was held and not used: rows of their own, priced as what was used, no inferences, shared out to the digit."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterator
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tollspan.pricing import PriceEngine, Selectors, shipped_book
from tollspan.pricing import attributes as names
from tollspan.processor.counters import Counters
from tollspan.processor.journal import Journal
from tollspan.processor.pipeline import Pipeline, Settings
from tollspan.processor.queries import named_queries, run
from tollspan.processor.store import Store, open_store
from tollspan.processor.write import Writer

BEGAN = 1_795_000_000_000_000_000
H200 = Decimal("63.296") / 8 / 3600
RESOURCE = {
    "service.name": "ranker",
    names.CLOUD_PROVIDER: "aws",
    names.CLOUD_REGION: "us-east-1",
    names.HOST_TYPE: "p5en.48xlarge",
}
GPU = {names.DEVICE_NAME: "NVIDIA H200"}
Make = Callable[[list[dict[str, Any]]], pa.Table]


def span(number: int, facts: dict[str, Any], seconds: int = 60) -> Span:
    made = Span(
        trace_id=number.to_bytes(16, "big"),
        span_id=number.to_bytes(8, "big"),
        name="span",
        start_time_unix_nano=BEGAN + number,
        end_time_unix_nano=BEGAN + number + seconds * 10**9,
    )
    put(made.attributes, facts)
    return made


def put(attributes: Any, facts: dict[str, Any]) -> None:
    for key, value in facts.items():
        target = attributes.add(key=key).value
        if isinstance(value, float):
            target.double_value = value
        else:
            target.string_value = value


def minute(number: int, idle: float | None, **more: Any) -> Span:
    facts: dict[str, Any] = {names.OPERATION: names.OPERATION_CAPACITY, **GPU, **more}
    if idle is not None:
        facts[names.usage("gpu.idle_seconds")] = idle
    return span(number, facts)


def call(number: int, busy: float, tenant: str) -> Span:
    return span(
        number,
        {
            names.OPERATION: names.OPERATION_INFERENCE,
            names.PROVIDER: "pytorch",
            names.MODEL: "Ranker",
            names.TENANT: tenant,
            names.usage("gpu.seconds"): busy,
            **GPU,
        },
    )


@pytest.fixture
def ledger(store: Store, tmp_path: Path) -> Iterator[Callable[..., Store]]:
    """Sends spans down the line, and gives the store they came to."""
    journal = Journal(tmp_path / "journal", counters=Counters())

    def sent(*spans: Span, resource: dict[str, str] = RESOURCE) -> Store:
        request = ExportTraceServiceRequest()
        of = request.resource_spans.add()
        put(of.resource.attributes, resource)
        of.scope_spans.add().spans.extend(spans)
        journal.append(request.SerializeToString()).wait()
        counters, stop = Counters(), threading.Event()
        writer = Writer(store, threading.Event(), counters, pause=lambda _: None)
        line = Pipeline(
            journal,
            writer,
            PriceEngine(shipped_book()),
            Settings(keep=1.0, decision_wait_s=0.0, linger_s=0.0),
            counters,
        )
        stop.set()
        line.run(stop)
        return store

    yield sent
    journal.close()


def test_an_idle_second_costs_what_a_busy_one_does_and_is_no_inference(ledger: Any) -> None:
    store = ledger(call(1, 20.0, "acme"), minute(2, 40.0))
    kinds = {row["kind"]: row for row in store.rows("SELECT * FROM ledger FINAL")}
    assert set(kinds) == {"inference", "capacity"}
    assert kinds["capacity"]["operation"] == "capacity"
    assert kinds["capacity"]["cost_status"] == "priced"
    assert kinds["inference"]["cost"] == (20 * H200).quantize(Decimal("1e-12"))
    assert kinds["capacity"]["cost"] == (40 * H200).quantize(Decimal("1e-12"))
    (total,) = run(store, "total")
    assert (total["inferences"], total["ledger_rows"]) == (1, 2)
    assert total["cost"] == kinds["inference"]["cost"] + kinds["capacity"]["cost"]


def test_no_query_counts_a_minute_as_an_inference(ledger: Any) -> None:
    store = ledger(call(1, 20.0, "acme"), minute(2, 40.0), minute(3, None))
    for name in (each.name for each in named_queries().values() if not each.needs):
        for column in (
            "inferences",
            "calls",
            "unpriced_inferences",
            "partial_inferences",
            "failed_calls",
            "not_billed",
        ):
            counts = [row[column] or 0 for row in run(store, name) if column in row]
            if counts:
                assert sum(counts) <= 1, (name, column)
    (all_of_it, *_) = run(store, "cost-per-inference")
    assert (all_of_it["priced_inferences"], all_of_it["unpriced_inferences"]) == (1, 0)


def test_a_minute_of_which_nothing_is_known_is_unpriced_and_not_free(ledger: Any) -> None:
    store = ledger(call(1, 20.0, "acme"), minute(2, None))
    (row,) = store.rows("SELECT * FROM ledger FINAL WHERE kind = 'capacity'")
    assert (row["cost"], row["cost_status"], row["cost_reasons"]) == (None, "unpriced", "usage_missing")
    (total,) = run(store, "total")
    assert (total["unpriced_inferences"], total["unpriced_rows"]) == (0, 1)
    (idle,) = run(store, "idle")
    assert (idle["idle_cost"], idle["allocated_cost"], idle["busy_share"]) == (None, None, None)
    assert (idle["busy_seconds"], idle["idle_seconds"], idle["unknown_seconds"]) == (20, None, 60)
    assert [row["loaded_cost"] for row in run(store, "loaded")] == [None]


def test_busy_and_idle_are_what_was_allocated(ledger: Any) -> None:
    store = ledger(call(1, 20.0, "acme"), call(2, 10.000000001, "beta"), minute(3, 29.999999999), minute(4, None))
    (row,) = run(store, "idle")
    assert (row["resource"], row["device"], row["service"]) == ("gpu", "NVIDIA H200", "ranker")
    assert row["allocated_seconds"] == 60
    assert (row["busy_share"], row["unknown_seconds"]) == (0.5, 60)
    costs = store.rows("SELECT sum(cost) AS c FROM ledger FINAL")[0]["c"]
    assert row["allocated_cost"] == costs == sum(r["loaded_cost"] for r in run(store, "loaded"))
    assert row["idle_cost"] == store.rows("SELECT sum(cost) AS c FROM ledger FINAL WHERE kind = 'capacity'")[0]["c"]


def test_each_tenant_bears_its_part_of_the_idle_time(ledger: Any) -> None:
    store = ledger(call(1, 20.0, "acme"), call(2, 10.0, "beta"), minute(3, 30.0))
    acme, beta = run(store, "loaded")
    assert (acme["tenant"], beta["tenant"]) == ("acme", "beta")
    assert acme["loaded_cost"] == (40 * H200).quantize(Decimal("1e-12"))
    assert beta["loaded_cost"] == (20 * H200).quantize(Decimal("1e-12"))
    assert acme["busy_cost"] == (20 * H200).quantize(Decimal("1e-12"))


def test_a_device_that_nobody_used_is_borne_by_nobody_in_particular(ledger: Any) -> None:
    store = ledger(minute(1, 60.0))
    (row,) = run(store, "loaded")
    assert (row["tenant"], row["busy_seconds"]) == (None, 0)
    assert row["loaded_cost"] == (60 * H200).quantize(Decimal("1e-12"))


def test_cpus_of_a_machine_that_is_sold_by_its_gpus_are_included(ledger: Any) -> None:
    idle = span(1, {names.OPERATION: names.OPERATION_CAPACITY, names.usage("cpu.idle_seconds"): 100.0})
    store = ledger(idle)
    (row,) = store.rows("SELECT cost, cost_status, kind, device FROM ledger FINAL")
    assert (row["cost"], row["cost_status"], row["kind"], row["device"]) == (Decimal(0), "included", "capacity", "")
    (row,) = run(store, "idle")
    assert (row["resource"], row["device"], row["idle_cost"]) == ("cpu", "p5en.48xlarge", 0)


def test_an_idle_cpu_second_costs_what_a_busy_one_does() -> None:
    selectors = Selectors(cloud_provider="aws", region="us-east-1", host_type="m7i.large", purchase=None)
    engine = PriceEngine(shipped_book())
    busy = engine.price({"cpu.seconds": 3600 * 10**9}, at=BEGAN, selectors=selectors)
    idle = engine.price({"cpu.idle_seconds": 3600 * 10**9}, at=BEGAN, selectors=selectors)
    assert busy.cost == idle.cost == Decimal("0.0504")


def large(most: int) -> st.SearchStrategy[int]:
    """Integers up to ``most`` × 10⁹. (Of one large range hypothesis tries few large numbers.)"""
    return st.builds(lambda whole, rest: whole * 10**9 + rest, st.integers(0, most), st.integers(0, 10**9))


pool = st.sampled_from([("gpu", "A100", "a"), ("gpu", "A100", "b"), ("cpu", "m7i", "a")])
piece = st.tuples(pool, st.sampled_from(["", "x", "y", "z"]), st.booleans(), large(10**6), large(10**8))


@pytest.fixture(scope="module")
def shared(store_directory: Path) -> Iterator[Store]:
    with open_store(f"chdb://{store_directory}?database=capacity") as opened:
        opened.migrate()
        yield opened
        opened.execute("DROP DATABASE capacity")


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pieces=st.lists(piece, max_size=20))
def test_loaded_costs_add_up_to_what_was_allocated_to_the_last_digit(
    shared: Store, ledger_rows: Make, pieces: list[Any]
) -> None:
    shared.execute("TRUNCATE TABLE ledger")
    rows, quantities = [], []
    for (resource, place, service), tenant, is_idle, nanoseconds, pico in pieces:
        meter = f"{resource}.{'idle_' if is_idle else ''}seconds"
        cost = str(Decimal(pico).scaleb(-12))
        rows.append(
            {
                "kind": "capacity" if is_idle else "inference",
                "tenant": "" if is_idle else tenant,
                "service": service,
                "device" if resource == "gpu" else "host_type": place,
                "charges": [(meter, "compute", cost, "priced")],
            }
        )
        quantities.append([Decimal(nanoseconds).scaleb(-9)])
    if rows:
        table = ledger_rows(rows)
        place = table.schema.get_field_index("charges.quantity")
        table = table.set_column(place, table.schema.field(place), pa.array(quantities, table.schema.field(place).type))
        shared.insert("ledger", table, uuid.uuid4().hex)

    loaded, idle = run(shared, "loaded"), run(shared, "idle")
    for resource, place, service in {each[0] for each in pieces}:
        mine = [each for each in pieces if each[0] == (resource, place, service)]
        here = [row for row in loaded if (row["resource"], row["device"], row["service"]) == (resource, place, service)]
        of_pool = next(
            (r for r in idle if (r["resource"], r["device"], r["service"]) == (resource, place, service)), None
        )
        idle_pico = sum(each[4] for each in mine if each[2])
        if not any(each[2] for each in mine):
            assert (of_pool is None) is (not here) is (resource == "cpu"), "nobody asked for the minutes of CPUs"
            assert of_pool is None or of_pool["allocated_cost"] is None
            assert all(row["loaded_cost"] is None for row in here)
            continue
        assert of_pool is not None
        allocated = Decimal(sum(each[4] for each in mine)).scaleb(-12)
        assert of_pool["allocated_cost"] == allocated == sum(row["loaded_cost"] for row in here)
        assert of_pool["idle_cost"] == Decimal(idle_pico).scaleb(-12)
        whole = sum(each[3] for each in mine if not each[2])
        for row in here:
            busy = sum(each[3] for each in mine if not each[2] and each[1] == (row["tenant"] or ""))
            due = Fraction(idle_pico * busy, whole) if whole else (idle_pico if row["tenant"] is None else 0)
            assert abs(Fraction((row["loaded_cost"] - row["busy_cost"]).scaleb(12)) - due) < 1


def test_the_selectors_of_a_minute_price_it() -> None:
    engine = PriceEngine(shipped_book())
    selectors = Selectors(
        cloud_provider="aws", region="us-east-1", host_type="p5en.48xlarge", device="NVIDIA H200", purchase=None
    )
    busy = engine.price({"gpu.seconds": 10**9}, at=BEGAN, selectors=selectors)
    idle = engine.price({"gpu.idle_seconds": 10**9}, at=BEGAN, selectors=selectors)
    assert busy.cost == idle.cost
    assert [charge.matched_by for charge in idle.charges] == ["exact device as gpu.seconds"]
