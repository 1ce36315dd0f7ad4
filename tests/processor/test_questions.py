"""The questions behind the measures: who spent it, on what, what was wasted, what changed, what comes."""

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
import typer
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from tollspan.pricing import attributes as names
from tollspan.processor.cli.query import query
from tollspan.processor.cli.trace import trace
from tollspan.processor.errors import ConfigError
from tollspan.processor.queries import named_queries, run
from tollspan.processor.sqlfront import SqlFront
from tollspan.processor.store import Store, open_store
from tollspan.processor.trace_tree import tree

from .small_world import BOOK, HOUR_NS, SHOP, asked, idle, made, ranked, request_of, send, small_world, tags
from .test_measures import columns

Make = Callable[[list[dict[str, Any]]], pa.Table]
ONE = f"{1:032x}"

app = typer.Typer()
app.command("query")(query)
app.command("trace")(trace)


@pytest.fixture(scope="module")
def world(store_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    with open_store(f"chdb://{store_directory}?database=questions") as opened:
        opened.migrate()
        small_world(opened, tmp_path_factory.mktemp("world"))
        yield opened
        opened.execute("DROP DATABASE questions")


@pytest.fixture(scope="module")
def shared(store_directory: Path) -> Iterator[Store]:
    with open_store(f"chdb://{store_directory}?database=questions_own") as opened:
        opened.migrate()
        yield opened
        opened.execute("DROP DATABASE questions_own")


@pytest.fixture
def store(shared: Store) -> Store:
    for table in ("ledger", "spans", "traces"):
        shared.execute(f"TRUNCATE TABLE {table}")
    return shared


@pytest.fixture
def fill(store: Store, ledger_rows: Make) -> Callable[[list[dict[str, Any]]], Store]:
    def filled(rows: list[dict[str, Any]]) -> Store:
        store.insert("ledger", ledger_rows(rows), uuid.uuid4().hex)
        return store

    return filled


def url(store: Store) -> str:
    return f"chdb://{store.directory}?database={store.database}"


@pytest.mark.parametrize("by", [None, "tenant", "service,hour"])
def test_the_read_only_port_answers_every_query_as_the_store_does(world: Store, by: str | None) -> None:
    values = {"trace": ONE, "owned_monthly": "100"}
    front = SqlFront(world, "127.0.0.1:0")
    try:
        with open_store(f"clickhouse://{front.start()}/{world.database}", create=False) as through:
            for name, asked_for in named_queries().items():
                if by and not asked_for.divisible:
                    continue
                more: dict[str, Any] = {
                    "by": by and [by],
                    "parameters": [f"{each}={values[each]}" for each in asked_for.needs],
                }
                if asked_for.filterable:
                    more["where"] = ["service=shop"]
                assert run(through, name, **more) == run(world, name, **more), name
    finally:
        front.stop()


# -- a task and its calls ----------------------------------------------------------------------------------------------


def test_the_dearest_traces_come_first(world: Store) -> None:
    assert columns(run(world, "traces", limit=4), "trace_id", "cost", "inferences", "unpriced_inferences") == [
        (f"{8:032x}", "0.034", 0, 0),
        (f"{2:032x}", "0.03", 4, 1),
        (ONE, "0.02864", 3, 0),
        (f"{9:032x}", "0.02", 0, 0),
    ]


def test_an_agents_task_is_a_tree_with_the_cost_of_each_branch(world: Store) -> None:
    rows = tree(run(world, "trace", parameters=[f"trace={ONE}"]))
    assert columns(rows, "span_id", "depth", "name", "cost", "branch_cost", "branch_inferences", "cost_status") == [
        (f"{3:016x}", 0, "chat big", "0.024", "0.024", 1, "priced"),
        (f"{10:016x}", 0, "invoke_agent small", None, "0.00464", 2, "rollup"),
        (f"{1:016x}", 1, "chat small", "0.003", "0.003", 1, "priced"),
        (f"{2:016x}", 1, "chat small", "0.00164", "0.00164", 1, "priced"),
    ]


def test_the_bodies_that_were_kept_stand_in_the_tree_with_the_calls(store: Store, tmp_path: Path) -> None:
    spans = [
        made(1, 1, {}, ms=900, name="POST /search"),
        made(2, 1, {"gen_ai.tool.name": "fetch"}, ms=300, name="execute_tool fetch", parent=1),
        made(3, 1, asked("small", (1000, 500)), ms=100, parent=2),
        made(4, 1, asked("mystery", (1, 1)), ms=100, parent=1),
    ]
    send(store, tmp_path, request_of((SHOP, spans)), keep=1.0)
    rows = tree(run(store, "trace", parameters=[f"trace={ONE}"]))
    assert columns(rows, "depth", "name", "cost", "branch_cost", "branch_unpriced") == [
        (0, "POST /search", None, "0.003", 1),
        (1, "execute_tool fetch", None, "0.003", 0),
        (2, "span 1", "0.003", "0.003", 0),
        (1, "span 1", None, None, 1),
    ]


@pytest.mark.parametrize("fmt", ["table", "markdown", "json", "csv"])
def test_a_trace_is_shown_as_a_tree(world: Store, fmt: str) -> None:
    done = CliRunner().invoke(app, ["trace", ONE.upper(), "--store", url(world), "--format", fmt])
    assert done.exit_code == 0, done.output
    if fmt in ("table", "markdown"):
        assert done.stdout.startswith("0.02864 USD for 3 inferences\n")
        assert "  chat small" in done.stdout.replace("\u2003", "  ")
    if fmt == "json":
        assert [row["branch_cost"] for row in json.loads(done.stdout)][:2] == ["0.024000000000", "0.004640000000"]


@pytest.mark.parametrize(
    ("arguments", "code", "said"), [(["xyz"], 2, "is no trace id"), (["f" * 32], 1, "no span of trace fff")]
)
def test_a_trace_that_is_not_there_says_so(world: Store, arguments: list[str], code: int, said: str) -> None:
    done = CliRunner().invoke(app, ["trace", *arguments, "--store", url(world)])
    assert (done.exit_code, said in done.stderr, done.stderr.count("\n")) == (code, True, 1)


nodes = st.integers(1, 7)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.dictionaries(nodes, st.tuples(nodes, st.sampled_from(["priced", "unpriced", "rollup"])), min_size=1))
def test_a_tree_has_every_span_once_and_loses_no_cost(parents: dict[int, tuple[int, str]]) -> None:
    rows = [
        {
            "span_id": str(number),
            "parent_span_id": str(parent),
            "start_time": number,
            "cost": Decimal(number) if status == "priced" else None,
            "cost_status": status,
            "inference": status != "rollup",
        }
        for number, (parent, status) in parents.items()
    ]
    found = tree(rows)
    assert sorted(row["span_id"] for row in found) == sorted(row["span_id"] for row in rows)
    roots = [row for row in found if row["depth"] == 0]
    assert sum(row["branch_cost"] or 0 for row in roots) == sum(row["cost"] or 0 for row in rows)
    assert sum(row["branch_unpriced"] for row in roots) == sum(row["cost_status"] == "unpriced" for row in rows)
    for row in roots:
        if row["branch_cost"] is None:
            assert row["branch_unpriced"]


# -- what was wasted ---------------------------------------------------------------------------------------------------


def test_a_trace_that_asks_ten_times_as_often_as_others_is_a_loop(fill: Any) -> None:
    quarter = ("tokens.output", "model", "0.25", "priced")
    noon = datetime(2026, 11, 1, 12, tzinfo=UTC)

    def calls(trace_number: int, count: int, **more: Any) -> list[dict[str, Any]]:
        return [
            {
                "trace_id": trace_number.to_bytes(16, "big"),
                "span_id": (trace_number * 1000 + n).to_bytes(8, "big"),
                "start_time": noon + timedelta(seconds=n),
                "agent": "planner",
                "service": "shop",
                "charges": [("tokens.input.uncached", "model", "0", "priced"), quarter],
                **more,
            }
            for n in range(count)
        ]

    store = fill(
        [
            *(row for number in (1, 2, 3, 4) for row in calls(number, 2)),
            *calls(5, 20, tenant="acme"),
            *calls(6, 12, agent="batcher"),
            *calls(7, 9),
        ]
    )
    (row,) = run(store, "runaway-loops")
    assert columns([row], "trace_id", "agent", "tenant", "inferences", "median_inferences", "group_traces", "cost") == [
        (f"{5:032x}", "planner", "acme", 20, 2, 6, "5")
    ]
    assert (row["factor"], row["seconds"]) == (10.0, 19)
    assert len(run(store, "runaway-loops", parameters=["at_least=9", "times=4"])) == 2
    with pytest.raises(ConfigError, match=r"--set at_least=x cannot be read. It is how many inferences"):
        run(store, "runaway-loops", parameters=["at_least=x"])
    with pytest.raises(ConfigError, match=r"names no parameter of runaway-loops. It has: at_least, times"):
        run(store, "runaway-loops", parameters=["atleast=1"])


def test_context_that_grows_is_told_with_what_the_growth_costs(store: Store, tmp_path: Path) -> None:
    spans = [made(n, 1, asked("small", (1000 * n, 10)) | tags("acme"), ms=10) for n in (1, 2, 3)]
    spans += [made(9, 2, asked("small", (5000, 10)), ms=10)]
    send(store, tmp_path, request_of((SHOP, spans)))
    assert columns(
        run(store, "context-growth"),
        *("trace_id", "inferences", "first_input_tokens", "last_input_tokens", "growth", "input_tokens"),
        *("output_tokens", "input_cost", "regrown_cost"),
    ) == [(ONE, 3, 1000, 3000, "3", 6000, 30, "0.006", "0.003")]


def test_input_is_held_against_output_and_outcome(world: Store) -> None:
    rows = run(world, "context-cost", where=["provider=acme"])
    assert columns(
        rows,
        *("model", "calls", "unpriced_calls", "input_tokens", "output_tokens", "input_per_output"),
        *("input_cost", "output_cost", "input_share", "failed_input_cost"),
    ) == [
        ("big", 3, 0, 4000, 200, "20", "0.04", "0.008", "0.833333333", "0.01"),
        ("small", 5, 0, 5500, 2275, "2.417", "0.00514", "0.0091", "0.360955056", "0"),
        ("mystery", 1, 1, 100, 10, "10", None, None, None, "0"),
    ]


def test_what_a_prompt_cache_saved_is_the_price_that_was_not_paid(world: Store) -> None:
    # 400 tokens at 1 instead of 0.1 USD a million.
    assert columns(
        run(world, "cache-savings", where=["model=small"]),
        *("uncached_tokens", "cache_read_tokens", "cache_read_share", "saved", "uncompared_calls"),
    ) == [(5100, 400, "0.072727272", "0.00036", 0)]


def test_writing_to_a_cache_takes_off_what_it_saved(store: Store, tmp_path: Path) -> None:
    book = BOOK + '  - {provider: acme, sku: small, meter: tokens.input.cache_write, amount: "1.25", per: 1000000}\n'
    told = {names.USAGE_CACHE_READ_TOKENS: 0, "gen_ai.usage.cache_creation.input_tokens": 400}
    all_read = {names.USAGE_CACHE_READ_TOKENS: 1000}
    spans = [
        made(1, 1, asked("small", (1000, 10)) | told, ms=10),
        made(2, 1, asked("small", (1000, 10)) | all_read, ms=10),
    ]
    send(store, tmp_path, request_of((SHOP, spans)), book=book)
    (row,) = run(store, "cache-savings")
    assert (row["cache_write_tokens"], row["cache_read_tokens"]) == (400, 1000)
    # 400 tokens written at 1.25 instead of 1 USD a million; the other call says no price to compare with.
    assert (row["saved"], row["uncompared_calls"]) == (Decimal("-0.0001"), 1)


def test_requests_that_were_asked_again_word_for_word_are_counted(store: Store, tmp_path: Path) -> None:
    def call(number: int, fingerprint: str, model: str = "small") -> Any:
        said = {names.REQUEST_FINGERPRINT: fingerprint} if fingerprint else {}
        return made(number, number, asked(model, (1000, 500)) | tags("acme", "search") | said, ms=10)

    spans = [call(1, "a"), call(2, "b"), call(3, "a"), call(4, "a"), call(5, ""), call(6, "m", "mystery")]
    send(store, tmp_path, request_of((SHOP, [*spans, call(7, "m", "mystery")])), keep=1.0)
    assert columns(
        run(store, "duplicate-requests"),
        *("model", "feature", "fingerprinted_calls", "repeated_calls", "repeated_share", "repeated_cost", "most_often"),
    ) == [("small", "search", 4, 2, 0.5, "0.006", 3), ("mystery", "search", 2, 1, 0.5, None, 2)]


def test_the_network_is_told_by_how_far_bytes_went(world: Store) -> None:
    assert columns(run(world, "network-spend"), "direction", "scope", "bytes", "cost", "unpriced_bytes") == [
        ("egress", "cross_region", 10**8, "0.002", 0),
        ("egress", "cross_zone", 10**8, "0.001", 0),
        ("egress", "internet", 10**7, "0.0009", 0),
    ]
    assert {row["tenant"] for row in run(world, "network-spend", by=["tenant"])} == {"globex"}


def test_a_model_that_was_loaded_is_held_against_what_it_ran(world: Store) -> None:
    assert columns(
        run(world, "cold-models"),
        *("service", "model", "loads", "inferences", "cold_starts", "load_cost", "inferences_per_load"),
        *("load_cost_per_inference", "load_ns"),
    ) == [("ranker", "Ranker", 1, 4, 1, "0.01", "4", "0.0025", 9 * 10**9)]


def test_a_model_that_was_loaded_for_nothing_comes_first(fill: Any) -> None:
    read = ("storage.read.bytes", "storage", "0.5", "priced")
    rows = run(
        fill(
            [
                {"model": "used", "kind": "model_load", "charges": [read]},
                {"model": "used", "charges": [("cpu.seconds", "compute", "1", "priced")]},
                {"model": "idle", "kind": "model_load", "charges": [read]},
                {"model": "idle", "kind": "model_load", "charges": []},
            ]
        ),
        "cold-models",
    )
    assert columns(rows, "model", "loads", "inferences_per_load", "load_cost", "unpriced_loads") == [
        ("idle", 2, "0", "0.5", 1),
        ("used", 1, "1", "0.5", 0),
    ]


# -- what changed, and what comes --------------------------------------------------------------------------------------


def test_a_price_that_changed_is_told_with_what_it_did(store: Store, tmp_path: Path) -> None:
    since = "2026-10-01T13:00:00Z"
    price = "  - {{provider: acme, sku: small, meter: tokens.output, amount: {}, per: 1000000{}}}\n"
    before, after = f", effective: [null, {since}]", f", effective: [{since}, null]"
    book = BOOK.replace(price.format(4, ""), price.format(4, before) + price.format(6, after))
    assert book != BOOK
    spans = [
        made(n, n, asked("small", (1000, 500)), ms=10, at=at) for n, at in ((1, 10**6), (2, HOUR_NS), (3, HOUR_NS + 1))
    ]
    send(store, tmp_path, request_of((SHOP, spans)), book=book)
    (row,) = run(store, "price-changes")
    assert columns([row], "provider", "model", "meter", "old_price", "new_price", "per", "quantity_since") == [
        ("acme", "small", "tokens.output", "4", "6", "1000000 token", "1000")
    ]
    assert columns([row], "cost_since", "effect", "percent") == [("0.006", "0.002", 50.0)]
    assert row["changed_at"] == datetime(2026, 10, 1, 13, tzinfo=UTC)


def test_prices_that_alternate_or_do_not_change_are_no_change(world: Store, fill: Any) -> None:
    assert run(world, "price-changes") == []
    at = datetime(2026, 11, 1, 12, tzinfo=UTC)
    rows = [
        {"start_time": at + timedelta(hours=n), "charges": [("tokens.output", "model", price, "priced")]}
        for n, price in enumerate(("1", "2", "1"))
    ]
    assert run(fill(rows), "price-changes") == []


def test_variants_are_compared_with_their_intervals(fill: Any) -> None:
    def calls(variant: str, costs: list[str | None], ns: int) -> list[dict[str, Any]]:
        return [
            {
                "variant": variant,
                "duration_ns": ns,
                "charges": [("tokens.output", "model", cost, "priced")] if cost else [],
            }
            for cost in costs
        ]

    rows = run(
        fill(
            [
                *calls("A", ["1", "3", "1", "3", None], 10),
                *calls("B", ["10", "12", "10", "12"], 10),
                *calls("C", ["2"], 30),
            ]
        ),
        "compare",
    )
    # s = √(4 ÷ 3), so that a standard error is √(1 ÷ 3) = 0.57735; a difference has √(2 ÷ 3) = 0.81650.
    assert columns(rows, "variant", "calls", "priced_calls", "mean_cost", "cost_difference", "cost_differs") == [
        ("A", 5, 4, "2", None, None),
        ("B", 4, 4, "11", "9", True),
        ("C", 1, 1, "2", "0", None),
    ]
    assert [round(rows[0][name], 6) for name in ("cost_from", "cost_to")] == [Decimal("0.868393"), Decimal("3.131607")]
    assert [round(rows[1][name], 6) for name in ("difference_from", "difference_to")] == [
        Decimal("7.399667"),
        Decimal("10.600333"),
    ]
    assert rows[2]["cost_from"] is None
    assert rows[1]["duration_differs"] is False


@pytest.fixture
def days(fill: Any) -> Store:
    """25 days from a Monday: 1 USD on weekdays, 0.5 at weekends, but 9 on Sunday, the 11th of October."""
    first = datetime(2026, 9, 21, 12, tzinfo=UTC)
    return fill(
        [
            {
                "start_time": first + timedelta(days=n),
                "tenant": "acme",
                "charges": [("tokens.output", "model", "9" if n == 20 else "1" if n % 7 < 5 else "0.5", "priced")],
            }
            for n in range(25)
        ]
    )


def test_the_months_forecast_is_what_was_spent_and_the_weekdays_that_are_left(days: Store) -> None:
    (row,) = run(days, "forecast", until=datetime(2026, 10, 16, tzinfo=UTC))
    # Spent: 11 weekdays, 2 Saturdays, a Sunday and the 11th. Left: 11 weekdays, 3 Saturdays, 2 Sundays at 10 ÷ 3.
    assert columns([row], "spent", "expected_rest", "forecast", "history_days", "days_left") == [
        ("21.5", "19.166666666666", "40.666666666666", 25, 16)
    ]
    # Only Sundays spread: s² = (2 × 2.8333² + 5.6667²) ÷ 18; √(16 + 9/3 + 9/3 + 4/3 + 4 × 4/4) = 5.22813.
    assert [round(row[name], 3) for name in ("forecast_from", "forecast_to")] == [Decimal("23.904"), Decimal("57.429")]
    (half,) = run(days, "forecast", until=datetime(2026, 10, 15, 13, tzinfo=UTC))
    # 11 hours of a Thursday at 1 are left beside the rest.
    assert half["expected_rest"] - row["expected_rest"] == Decimal("0.458333333333")
    assert run(days, "forecast", by=["tenant"], until=datetime(2026, 10, 16, tzinfo=UTC))[0]["tenant"] == "acme"


def test_a_forecast_from_few_days_has_no_interval_and_never_less_than_was_spent(days: Store) -> None:
    (one,) = run(days, "forecast", since=datetime(2026, 10, 14, tzinfo=UTC), until=datetime(2026, 10, 15, tzinfo=UTC))
    assert columns([one], "spent", "forecast", "forecast_from", "forecast_to") == [("1", "18", None, None)]
    (wide,) = run(days, "forecast", until=datetime(2026, 10, 30, 23, tzinfo=UTC), parameters=["z=99"])
    assert wide["forecast_from"] == wide["spent"]


def test_a_day_that_stands_out_is_an_anomaly(days: Store) -> None:
    (row,) = run(days, "anomalies", by=[])
    assert (row["start_time"], row["cost"], row["score"] > 1) == (datetime(2026, 10, 11, tzinfo=UTC), 9, True)
    (by_tenant,) = run(days, "anomalies", by=["tenant"])
    assert by_tenant["tenant"] == "acme"
    assert run(days, "anomalies", until=datetime(2026, 10, 10, tzinfo=UTC)) == []
    assert (
        run(days, "anomalies", since=datetime(2026, 10, 11, tzinfo=UTC), until=datetime(2026, 10, 13, tzinfo=UTC)) == []
    )


def test_an_hour_that_stands_out_is_an_anomaly_also_in_a_rhythm(fill: Any) -> None:
    first = datetime(2026, 10, 1, tzinfo=UTC)
    rows = [
        {
            "start_time": first + timedelta(hours=n),
            "charges": [("tokens.output", "model", "40" if n == 60 else str(1 + n % 24), "priced")],
        }
        for n in range(24 * 5)
    ]
    found = run(fill(rows), "anomalies-by-hour")
    assert found[0]["start_time"] == first + timedelta(hours=60)
    assert found[0]["score"] > 0


def test_break_even_says_at_which_load_owning_costs_the_same(fill: Any) -> None:
    first = datetime(2026, 10, 1, tzinfo=UTC)
    rows = [
        {"start_time": first + timedelta(days=n), "charges": [("tokens.output", "model", "2", "priced")]}
        for n in (0, 0, 1, 2, 3)
    ]
    store = fill([*rows, {"start_time": first, "charges": []}])
    # 10 USD for 5 priced calls in 3 days: 100 a month, 2 each.
    (row,) = run(store, "break-even", parameters=["owned_monthly=150"])
    assert columns(
        [row],
        *("observed_days", "inferences", "unpriced_inferences", "cost_per_inference", "rented_monthly", "machines"),
        *("owned_monthly", "break_even_inferences", "monthly_inferences", "cheaper", "saved_monthly"),
    ) == [(3.0, 6, 1, "2", "100", 1, "150", 75, 60, "rent", "-50")]
    (row,) = run(store, "break-even", parameters=["owned_monthly=40"])
    assert (row["cheaper"], row["saved_monthly"]) == ("own", 60)
    # Three calls in the busiest minute are more than one machine does at 0.02 a second.
    (row,) = run(store, "break-even", parameters=["owned_monthly=40", "owned_per_second=0.02"])
    assert (row["machines"], row["owned_monthly"], row["cheaper"]) == (3, 120, "rent")
    done = CliRunner().invoke(app, ["query", "break-even"])
    assert (done.exit_code, "needs --set owned_monthly=…" in done.stderr) == (2, True)


def test_capacity_and_batches_take_no_part_in_questions_of_models(store: Store, tmp_path: Path) -> None:
    spans = [made(1, 1, idle(10.0), ms=60_000), made(2, 2, ranked(1.0, 4), ms=1000)]
    send(store, tmp_path, request_of((SHOP, spans)))
    assert [row["calls"] for row in run(store, "compare")] == [1]
    assert run(store, "cache-savings") == []
    assert run(store, "context-growth") == []
