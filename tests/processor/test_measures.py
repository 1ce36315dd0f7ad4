"""The measures, by any dimension: in a world whose prices are on paper every figure is right to the last digit."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import typer
from typer.testing import CliRunner

from tollspan.processor.cli.query import query
from tollspan.processor.errors import ConfigError
from tollspan.processor.queries import DIMENSIONS, dimensions_of, find, named_queries, run
from tollspan.processor.store import Store, open_store

from .small_world import NOON, small_world

MEASURES = {
    "cost-per-inference",
    "cost-per-1000",
    "model-cost-per-inference",
    "compute-cost-per-inference",
    "network-cost-per-inference",
    "storage-cost-per-inference",
    "observability-cost-per-inference",
    "cold-start-rate",
    "retry-inflation",
    "cost-by-latency",
    "utilization",
    "attribution",
    "batch-efficiency",
}

app = typer.Typer()
app.command("query")(query)


@pytest.fixture(scope="module")
def world(store_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Store, int]]:
    with open_store(f"chdb://{store_directory}?database=measures") as opened:
        opened.migrate()
        sent = small_world(opened, tmp_path_factory.mktemp("world"))
        yield opened, sum(sent.values())
        opened.execute("DROP DATABASE measures")


def url(store: Store) -> str:
    return f"chdb://{store.directory}?database={store.database}"


def asked(world: tuple[Store, int], name: str, by: str | None = None, *where: str, **more: Any) -> list[dict[str, Any]]:
    return run(world[0], name, by=None if by is None else [by] if by else [], where=where, **more)


def columns(rows: list[dict[str, Any]], *names: str) -> list[tuple[Any, ...]]:
    """Columns of rows: money and ratios as they stand on paper, without trailing zeros."""

    def plain(value: Any) -> Any:
        return format(value.normalize(), "f") if isinstance(value, Decimal) else value

    return [tuple(plain(row[name]) for name in names) for row in rows]


# What each measure says of the world: by which dimension, under which filters, which columns, which rows.
ON_PAPER: list[tuple[str, str | None, tuple[str, ...], tuple[str, ...], list[tuple[Any, ...]]]] = [
    (
        "cost-per-inference",
        None,
        (),
        ("component", "cost", "priced_inferences", "unpriced_inferences", "cost_per_inference", "cost_per_1000"),
        [
            ("all", "0.14714", 12, 1, "0.012261666666666666", "12.261666666666666666"),
            ("model", "0.06224", 12, 1, "0.005186666666666666", "5.186666666666666666"),
            ("compute", "0.06", 12, 1, "0.005", "5"),
            ("storage", "0.011", 12, 1, "0.000916666666666666", "0.916666666666666666"),
            ("telemetry", "0.01", 12, 1, "0.000833333333333333", "0.833333333333333333"),
            ("network", "0.0039", 12, 1, "0.000325", "0.325"),
        ],
    ),
    (
        "cost-per-inference",
        "tenant",
        ("service=ranker",),
        ("tenant", "component", "cost", "cost_per_inference"),
        [
            ("acme", "all", "0.004", "0.002"),
            ("acme", "compute", "0.003", "0.0015"),
            ("acme", "storage", "0.001", "0.0005"),
            ("globex", "all", "0.003", "0.0015"),
            ("globex", "compute", "0.003", "0.0015"),
            (None, "all", "0.064", None),
            (None, "compute", "0.054", None),
            (None, "storage", "0.01", None),
        ],
    ),
    (
        "cost-per-1000",
        "agent,route",
        ("service=shop",),
        ("agent", "route", "cost_per_1000", "cost", "priced_inferences", "unpriced_inferences"),
        [
            # Telemetry of somebody's is in the last row: (0.0006 + 0.01) for one inference.
            (None, None, "10.6", "0.0106", 1, 0),
            ("planner", "/search", "9.546666666666666666", "0.02864", 3, 0),
            (None, "/chat", "9.225", "0.0369", 4, 1),
            ("planner", None, None, "0", 0, 0),
        ],
    ),
    (
        "model-cost-per-inference",
        "model",
        ("kind=inference", "provider=acme"),
        ("model", "cost_per_inference", "cost", "using_inferences", "unpriced_inferences"),
        [
            ("big", "0.016", "0.048", 3, 0),
            ("small", "0.002848", "0.01424", 5, 0),
            ("mystery", None, None, 1, 1),
        ],
    ),
    (
        "compute-cost-per-inference",
        "",
        (),
        ("cost_per_inference", "cost", "priced_inferences", "using_inferences", "open_rows"),
        [("0.005", "0.06", 12, 4, 0)],
    ),
    (
        "compute-cost-per-inference",
        "tenant",
        (),
        ("tenant", "cost_per_inference", "cost"),
        [(None, "0.054", "0.054"), ("acme", "0.0006", "0.003"), ("globex", "0.0005", "0.003")],
    ),
    (
        "network-cost-per-inference",
        "service",
        (),
        ("service", "cost_per_inference", "cost", "using_inferences"),
        [("shop", "0.0004875", "0.0039", 1), ("ranker", "0", "0", 0)],
    ),
    (
        "storage-cost-per-inference",
        "version",
        (),
        ("version", "cost_per_inference", "cost"),
        [("2", "0.00275", "0.011"), ("1.4.0", "0", "0")],
    ),
    (
        "cold-start-rate",
        "model",
        ("service=ranker",),
        ("model", "inferences", "cold_starts", "cold_start_rate", "cold_cost", "cold_mean_ns", "loads"),
        [("Ranker", 4, 1, "0.25", "0.002", 2_000_000_000, 1)],
    ),
    (
        "retry-inflation",
        "",
        (),
        (
            *("retry_inflation", "attempts_per_success", "calls", "failed_calls", "retries"),
            *("telling_calls", "cost", "failed_cost"),
        ),
        # 0.07214 / 0.06014, and (8 + 1) attempts for 7 successes.
        [("1.199534419", "1.285714285", 14, 2, 1, 8, "0.07214", "0.012")],
    ),
    (
        "retry-inflation",
        "tenant",
        ("tenant!=",),
        ("tenant", "retry_inflation", "attempts_per_success", "failed_cost"),
        [("globex", "1.430107526", "1.25", "0.012"), ("acme", "1", "1.333333333", "0")],
    ),
    (
        "cost-by-latency",
        "",
        (),
        ("latency", "from_ns", "to_ns", "inferences", "cost", "cost_per_inference", "cost_share"),
        # Of 13 calls by duration, numbers 0 to 5, 6 to 10, 11, none, 12.
        [
            ("below p50", 100_000_000, 400_000_000, 6, "0.04214", "0.007023333333333333", "0.584141946"),
            ("p50 to p90", 500_000_000, 1_100_000_000, 5, "0.026", "0.0065", "0.360410313"),
            ("p90 to p95", 2_000_000_000, 2_000_000_000, 1, "0.002", "0.002", "0.02772387"),
            ("p99 and above", 2_100_000_000, 2_100_000_000, 1, "0.002", "0.002", "0.02772387"),
        ],
    ),
    (
        "cost-by-latency",
        "service",
        ("service=ranker",),
        ("service", "latency", "inferences", "cost", "cost_share"),
        [
            ("ranker", "below p50", 2, "0.002", "0.333333333"),
            ("ranker", "p50 to p90", 1, "0.002", "0.333333333"),
            ("ranker", "p99 and above", 1, "0.002", "0.333333333"),
        ],
    ),
    (
        "utilization",
        "",
        (),
        (
            *("resource", "utilization", "idle_share", "busy_seconds", "idle_seconds", "allocated_seconds"),
            *("idle_cost", "allocated_cost"),
        ),
        [("gpu", "0.1", "0.9", "6", "54", "60", "0.054", "0.06")],
    ),
    (
        "utilization",
        "tenant",
        (),
        ("tenant", "utilization", "busy_seconds", "idle_seconds"),
        # Idle time has no tenant, and a tenant's own part of it nobody told.
        [(None, "0", "0", "54"), ("acme", None, "3", None), ("globex", None, "3", None)],
    ),
    (
        "attribution",
        "",
        (),
        ("tag", "attribution_accuracy", "attributed_cost", "unattributed_cost", "cost"),
        [
            ("tenant", "0.492999864", "0.07254", "0.0746", "0.14714"),
            ("team", "0", "0", "0.14714", "0.14714"),
            ("feature", "0.492999864", "0.07254", "0.0746", "0.14714"),
            ("workflow", "0", "0", "0.14714", "0.14714"),
            ("tenant and feature", "0.492999864", "0.07254", "0.0746", "0.14714"),
        ],
    ),
    (
        "batch-efficiency",
        None,
        (),
        ("model", "device", "batch_size", "calls", "items", "cost_per_item", "efficiency", "ns_per_item"),
        [
            ("Ranker", "T4", "1", 1, 1, "0.001", "0.375", 1_100_000_000),
            ("Ranker", "T4", "4", 2, 8, "0.000375", "1", 387_500_000),
        ],
    ),
    (
        "cost",
        "hour",
        (),
        ("hour", "cost", "inferences"),
        [(NOON, "0.14654", 12), (NOON + timedelta(hours=1), "0.0006", 1)],
    ),
]


@pytest.mark.parametrize(
    ("name", "by", "where", "names", "rows"),
    ON_PAPER,
    ids=[f"{each[0]}-by-{each[1] or 'nothing'}" for each in ON_PAPER],
)
def test_a_measure_says_what_is_on_paper(
    world: tuple[Store, int], name: str, by: str | None, where: tuple[str, ...], names: tuple[str, ...], rows: list[Any]
) -> None:
    assert columns(asked(world, name, by, *where), *names) == rows


def test_observability_is_what_came_in_and_what_spans_say_of_others(world: tuple[Store, int]) -> None:
    _, sent = world
    (row,) = asked(world, "observability-cost-per-inference", "")
    # 0.5 USD a GB for every byte that was sent here, and 0.01 of span 20; what is stored has no price.
    cost = sent * Decimal("0.5E-9") + Decimal("0.01")
    assert (row["received_bytes"], row["cost"]) == (sent, cost)
    assert row["cost_per_inference"] == (cost / 12).quantize(Decimal("1E-18"), "ROUND_DOWN")
    assert row["unpriced_bytes"] == row["stored_bytes"] > 0
    by_tenant = asked(world, "observability-cost-per-inference", "tenant,service")
    assert {(each["tenant"], each["service"]) for each in by_tenant} == {
        (tenant, service) for tenant in ("acme", "globex", None) for service in ("shop", "ranker")
    }
    assert sum(each["cost"] for each in by_tenant) == cost
    (shop,) = asked(world, "observability-cost-per-inference", "service", "service=shop")
    assert shop["priced_inferences"] == 8


def test_every_measure_is_listed_with_what_it_means() -> None:
    assert {name for name, each in named_queries().items() if each.measure} == MEASURES
    for name in MEASURES:
        said = find(name)
        assert all((said.definition, said.formula, said.unit, said.pitfalls)), name
        assert "<" not in said.definition + said.formula, name


NOTHING_HERE = {"anomalies", "anomalies-by-hour", "forecast", "repriced"}
"""Questions that the small world has no answer to; the store's own test has."""


@pytest.mark.parametrize("name", sorted(each for each, made in named_queries().items() if made.divisible))
def test_what_can_be_broken_down_can_be_by_every_dimension(world: tuple[Store, int], name: str) -> None:
    parameters = [f"{each}=1" for each in find(name).needs]
    known = dimensions_of(find(name))
    for by in (",".join(known), "hour", "tenant,day", ""):
        rows = asked(world, name, by, parameters=parameters)
        assert bool(rows) == (name not in NOTHING_HERE), by
        if rows and by:
            assert list(rows[0])[: by.count(",") + 1] == by.split(",")


@pytest.mark.parametrize("dimension", sorted(DIMENSIONS))
def test_the_rows_of_every_dimension_add_up_to_the_total(world: tuple[Store, int], dimension: str) -> None:
    rows = asked(world, "cost", dimension)
    assert sum(row["cost"] for row in rows if row["cost"] is not None) == Decimal("0.14714")
    assert sum(row["inferences"] for row in rows) == 13
    parts = [row for row in asked(world, "cost-per-inference", dimension) if row["component"] != "all"]
    assert sum(row["cost"] for row in parts if row["cost"] is not None) == Decimal("0.14714")
    if not DIMENSIONS[dimension].time:
        for row in rows:
            (same,) = asked(world, "cost", "", f"{dimension}={row[dimension] or ''}")
            assert (same["cost"], same["inferences"]) == (row["cost"], row["inferences"])


def test_filters_of_one_dimension_add_and_of_several_narrow(world: tuple[Store, int]) -> None:
    def inferences(*where: str) -> int:
        return sum(row["inferences"] for row in asked(world, "cost", "", *where))

    assert (inferences("tenant=acme"), inferences("tenant=globex"), inferences("tenant=")) == (5, 7, 1)
    assert inferences("tenant=acme", "tenant=globex") == 12
    assert inferences("tenant!=acme", "tenant!=globex") == 1
    assert inferences("tenant=acme", "service=ranker") == 2
    assert inferences("tenant=nobody") == 0


def test_what_a_user_types_is_a_value_and_never_sql(world: tuple[Store, int]) -> None:
    assert asked(world, "cost", "tenant", "tenant=x' OR 1 = 1 --") == []
    assert asked(world, "total", None, "tenant={x:String}\\'")[0]["ledger_rows"] == 0


def test_questions_that_cannot_be_broken_down_can_be_filtered(world: tuple[Store, int]) -> None:
    assert asked(world, "total", None, "tenant=acme")[0]["cost"] == Decimal("0.03264")
    assert {row["tenant"] for row in asked(world, "traces", None, "tenant=acme")} == {"acme"}
    with pytest.raises(ConfigError, match="cannot be broken down"):
        asked(world, "total", "tenant")
    with pytest.raises(ConfigError, match="takes no filters"):
        asked(world, "telemetry", None, "tenant=acme")


@pytest.mark.parametrize(
    ("name", "by", "where", "said"),
    [
        ("cost", "tenent", (), "There is no dimension 'tenent'. Did you mean tenant"),
        ("cost", "zzz", (), "There is no dimension 'zzz'. One of: tenant, team"),
        ("cost", "tenant,tenant", (), "--by names tenant twice"),
        ("cost", "", ("modle=x",), "Did you mean model"),
        ("cost", "", ("tenant",), "is no filter. Write it like tenant=acme"),
        ("cost", "", ("day=2026-10-01",), "Use --since and --until"),
        ("observability-cost-per-inference", "model", (), "This is not told by model. Only by tenant, service"),
        ("cost-per-inferense", "tenant", (), "Did you mean"),
    ],
)
def test_what_there_is_not_names_the_nearest(
    world: tuple[Store, int], name: str, by: str, where: tuple[str, ...], said: str
) -> None:
    with pytest.raises(ConfigError) as raised:
        asked(world, name, by, *where)
    assert said in str(raised.value)
    arguments = [name, *(["--by", by] if by else []), *(part for each in where for part in ("--where", each))]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 2
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("fmt", ["table", "json", "csv", "markdown"])
def test_a_measure_comes_in_every_format(world: tuple[Store, int], fmt: str) -> None:
    store, _ = world
    done = CliRunner().invoke(
        app,
        [
            *("cost-per-1000", "--by", "tenant", "--by", "day", "--where", "service=shop"),
            *("--store", url(store), "--format", fmt),
        ],
    )
    assert done.exit_code == 0, done.output
    for expected in ("acme", "globex", "2026-10-01", "9.54666"):
        assert expected in done.stdout
    if fmt == "json":
        assert {row["tenant"]: row["cost_per_1000"] for row in json.loads(done.stdout)} == {
            None: "10.600000000000000000",
            "acme": "9.546666666666666666",
            "globex": "9.225000000000000000",
        }


def test_a_window_without_data_says_so(world: tuple[Store, int], tmp_path: Path) -> None:
    store, _ = world
    for fmt in ("table", "json"):
        done = CliRunner().invoke(
            app, ["cost-per-inference", "--until", "2026-09-01", "--store", url(store), "--format", fmt]
        )
        assert done.exit_code == 0
        assert "No rows: nothing in this window answers cost-per-inference." in done.stderr
        assert "The ledger goes from 2026-10-01 12:00:00 UTC to 2026-10-01 13:00:00 UTC." in done.stderr
        assert done.stdout.strip() == ("" if fmt == "table" else "[]")
    assert run(store, "cost", until=NOON) == []


def test_every_query_can_be_explained_without_a_store() -> None:
    for name, made in named_queries().items():
        done = CliRunner().invoke(app, [name, "--explain"])
        assert done.exit_code == 0, name
        assert done.stdout.startswith(f"{name}: {made.title}")
        assert "SELECT" in done.stdout
        assert "$" not in done.stdout.split("SELECT", 1)[1], name


def test_an_explanation_has_definition_formula_unit_pitfalls_and_the_sql_that_would_run() -> None:
    done = CliRunner().invoke(
        app,
        ["compute-cost-per-inference", "--by", "tenant", "--where", "model=x", "--explain", "--format", "json"],
    )
    said = json.loads(done.stdout)
    assert said["formula"] == "Σ cost of charges of compute ÷ priced inferences"
    assert said["unit"] == "USD for each inference"
    assert len(said["pitfalls"]) == 3
    assert said["parameters"] == {"component": "compute", "where_0": "x"}
    assert "nullIf(ledger.tenant, '') AS tenant" in said["sql"]
    assert "{where_0:String}" in said["sql"]
    assert set(said["dimensions"]) == set(DIMENSIONS)


def test_old_names_are_measures_with_something_chosen(world: tuple[Store, int]) -> None:
    assert columns(asked(world, "by-model"), "provider", "model", "cost", "inferences") == [
        (None, None, "0.064", 0),
        ("acme", "big", "0.048", 3),
        ("acme", "small", "0.01814", 5),
        ("pytorch", "Ranker", "0.016", 4),
        ("feast", "profiles", "0.001", 0),
        ("acme", "mystery", None, 1),
    ]
    assert asked(world, "by-tenant") == asked(world, "cost", "tenant")
    assert asked(world, "batches") == asked(world, "batch-efficiency")


def test_bands_of_latency_hold_what_stands_between_percentiles(
    store: Store, ledger_rows: Callable[[Iterable[dict[str, Any]]], pa.Table]
) -> None:
    """From a nanosecond to years, in groups that the engine counts in each of its three ways; durations of a class are
    one, and the value at a percentile is the one with the index ⌊p × n⌋."""
    chance = random.Random(5)
    calls = {
        "many": [int(2 ** chance.uniform(0, 55)) for _ in range(9_000)],
        "hundreds": [int(2 ** chance.uniform(20, 40)) for _ in range(700)],
        "alike": [1_000_000_000 + chance.randrange(40_000_000) for _ in range(9_000)],
        "few": [int(2 ** chance.uniform(20, 40)) for _ in range(20)],
        "one": [3],
    }
    services = [service for service, durations in calls.items() for _ in durations]
    rows = ledger_rows([{}]).take([0] * len(services))
    for name, values in (
        ("service", services),
        ("duration_ns", [each for durations in calls.values() for each in durations]),
        ("span_id", [number.to_bytes(8, "big") for number in range(len(services))]),
    ):
        at = rows.schema.get_field_index(name)
        rows = rows.set_column(at, rows.schema.field(at), pa.array(values, rows.schema.field(at).type))
    store.insert("ledger", rows, "one")

    def counted(number: int) -> int:
        rounded = int(struct.unpack("<f", struct.pack("<f", number))[0])  # as a Float32 has it
        places = max(0, rounded.bit_length() - 7)
        begins = rounded >> places << places
        return 0 if begins <= 1024 else min(begins, 81 << 48)

    names = ("below p50", "p50 to p90", "p90 to p95", "p95 to p99", "p99 and above")
    expected = {}
    for service, durations in calls.items():
        ascending = sorted(durations)
        edges = [counted(ascending[len(ascending) * share // 100]) for share in (50, 90, 95, 99)]
        for each in ascending:
            key = service, names[sum(counted(each) >= edge for edge in edges)]
            first, _, many = expected.get(key, (each, each, 0))
            expected[key] = first, each, many + 1
    found = {
        (row["service"], row["latency"]): (row["from_ns"], row["to_ns"], row["inferences"])
        for row in run(store, "cost-by-latency", by=["service"])
    }
    assert found == expected
