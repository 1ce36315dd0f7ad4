"""Named queries say what is known, and never more."""

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
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from tollspan.processor.cli.output import Format
from tollspan.processor.cli.query import query
from tollspan.processor.cli.report import report
from tollspan.processor.errors import ConfigError
from tollspan.processor.queries import find, instant, named_queries, run
from tollspan.processor.report import BRIEF, SECTIONS, build_report, print_report
from tollspan.processor.report import summary as summary_lines
from tollspan.processor.schema import TRACES
from tollspan.processor.store import Store, open_store

Make = Callable[[list[dict[str, Any]]], pa.Table]

MODEL = ("tokens.output", "model", "0.25", "priced")
INPUT = ("tokens.input.uncached", "model", "0.5", "priced")
COMPUTE = ("cpu.seconds", "compute", "2", "priced")
NO_PRICE = ("gpu.seconds", "compute", None, "unpriced")

BREAKDOWNS = ("by-tenant", "by-feature", "by-model", "by-variant", "by-component")

app = typer.Typer()
app.command("query")(query)
app.command("report")(report)


@pytest.fixture(scope="module")
def shared(store_directory: Path) -> Iterator[Store]:
    with open_store(f"chdb://{store_directory}?database=queries") as opened:
        opened.migrate()
        yield opened
        opened.execute("DROP DATABASE queries")


@pytest.fixture
def store(shared: Store) -> Store:
    """Empty again for every test; a token is not: the tables remember it, so each insert here has its own."""
    shared.execute("TRUNCATE TABLE ledger")
    shared.execute("TRUNCATE TABLE traces")
    return shared


@pytest.fixture
def fill(store: Store, ledger_rows: Make) -> Callable[[list[dict[str, Any]]], Store]:
    def filled(rows: list[dict[str, Any]]) -> Store:
        store.insert("ledger", ledger_rows(rows), uuid.uuid4().hex)
        return store

    return filled


def total(store: Store, **window: Any) -> dict[str, Any]:
    return run(store, "total", **window)[0]


def test_an_empty_ledger_cost_nothing(store: Store) -> None:
    row = total(store)
    assert (row["inferences"], row["cost"], row["currency"]) == (0, Decimal(0), "USD")
    assert row["first_start"] is None
    assert all(run(store, name) == [] for name in BREAKDOWNS)


def test_every_query_runs_on_an_empty_store(store: Store) -> None:
    for name in (each.name for each in named_queries().values() if not each.needs):
        # An estimate beside the exact figure, for each of six.
        assert len(run(store, name)) == (1 if find(name).single else 6 if name == "sampling-estimates" else 0)


def test_a_total_of_unpriced_calls_is_unknown_and_not_zero(fill: Any) -> None:
    row = total(fill([{"charges": [NO_PRICE]}, {"charges": []}]))
    assert row["cost"] is None
    assert (row["inferences"], row["unpriced_inferences"]) == (2, 2)


def test_the_total_says_what_it_leaves_out(fill: Any) -> None:
    store = fill(
        [
            {"charges": [INPUT, MODEL]},
            {"charges": [INPUT, NO_PRICE], "cost_status": "partial"},
            {"charges": [], "cost_status": "unpriced"},
            {"charges": [], "cost_status": "invalid"},
            {"charges": [], "cost_status": "not_billed"},
            {"charges": [], "cost_status": "rollup"},
            {"charges": [COMPUTE], "kind": "model_load"},
        ]
    )
    row = total(store)
    assert row["cost"] == Decimal("3.25")
    assert row["inferences"] == 4
    assert row["unpriced_inferences"] == 2
    assert row["partial_inferences"] == 1
    assert row["not_billed"] == 1
    assert row["unpriced_rows"] == 2


ESTIMATED = {"cost_reasons": "usage_incomplete,usage_estimated"}


@pytest.mark.parametrize(
    ("rows", "calls", "cost"),
    [
        ([{"charges": [INPUT]}], 0, 0),
        ([{"charges": [INPUT]}, {"charges": [MODEL], **ESTIMATED}], 1, Decimal("0.25")),
        ([{"charges": [NO_PRICE], "cost_status": "unpriced", **ESTIMATED}], 1, None),
        ([{"charges": [INPUT], **ESTIMATED}, {"charges": [], "cost_status": "rollup", **ESTIMATED}], 1, Decimal("0.5")),
    ],
)
def test_the_total_says_how_much_of_it_is_estimated(
    fill: Any, rows: list[dict[str, Any]], calls: int, cost: Decimal | None
) -> None:
    row = total(fill(rows))
    assert (row["estimated_inferences"], row["estimated_cost"]) == (calls, cost)


UNPRICED_OF_EVERY_KIND = [
    {"charges": [INPUT]},
    {"charges": [], "cost_status": "unpriced"},
    *({"charges": [], "cost_status": "unpriced", "kind": kind} for kind in ("model_load", "feature_read", "other")),
    {"charges": [], "cost_status": "invalid", "kind": "other"},
    {"charges": [], "cost_status": "rollup", "kind": "other"},
    {"charges": [], "cost_status": "not_billed", "kind": "other"},
]


def test_what_has_no_price_counts_whatever_its_kind(fill: Any) -> None:
    store = fill(UNPRICED_OF_EVERY_KIND)
    assert (total(store)["unpriced_inferences"], total(store)["unpriced_rows"]) == (1, 5)
    listed = {(row["kind"], row["cost_status"]): (row["inferences"], row["rows"]) for row in run(store, "unpriced")}
    assert listed == {
        ("inference", "unpriced"): (1, 1),
        ("model_load", "unpriced"): (0, 1),
        ("feature_read", "unpriced"): (0, 1),
        ("other", "unpriced"): (0, 1),
        ("other", "invalid"): (0, 1),
    }


def test_the_report_says_what_beside_inferences_has_no_price(store: Store, ledger_rows: Make) -> None:
    store.insert("ledger", ledger_rows(UNPRICED_OF_EVERY_KIND[:2]), uuid.uuid4().hex)
    assert not any("no inference" in line for line in summary_lines(build_report(store, sections=BRIEF)))
    store.execute("TRUNCATE TABLE ledger")
    store.insert("ledger", ledger_rows(UNPRICED_OF_EVERY_KIND), uuid.uuid4().hex)
    lines = summary_lines(build_report(store, sections=BRIEF))
    assert any(line.startswith("1 inference without a price") for line in lines)
    assert any(line.startswith("4 spans that are no inference") for line in lines)


def test_money_is_summed_exactly(fill: Any) -> None:
    step = "0.000000000001"
    store = fill([{"charges": [("tokens.output", "model", cost, "priced")]} for cost in (step, "12345678901234", step)])
    assert total(store)["cost"] == Decimal("12345678901234.000000000002")


def test_a_corrected_row_counts_once_with_its_last_revision(store: Store, ledger_rows: Make) -> None:
    store.insert("ledger", ledger_rows([{"charges": [INPUT]}]), uuid.uuid4().hex)
    store.insert("ledger", ledger_rows([{"charges": [], "cost_status": "rollup", "revision": 2}]), uuid.uuid4().hex)
    row = total(store)
    assert (row["inferences"], row["ledger_rows"], row["cost"]) == (0, 1, Decimal(0))


def test_the_window_takes_its_start_and_leaves_its_end(fill: Any) -> None:
    noon = datetime(2026, 11, 1, 12, tzinfo=UTC)
    store = fill([{"start_time": noon + timedelta(hours=h), "charges": [MODEL]} for h in range(4)])
    assert total(store, since=noon + timedelta(hours=1), until=noon + timedelta(hours=3))["inferences"] == 2
    assert total(store, since=noon + timedelta(hours=4))["inferences"] == 0
    assert total(store, until=noon)["inferences"] == 0


def test_a_breakdown_names_the_unnamed_as_unknown(fill: Any) -> None:
    rows = run(fill([{"tenant": "acme", "charges": [INPUT]}, {"charges": [MODEL]}]), "by-tenant")
    assert [(row["tenant"], row["cost"]) for row in rows] == [("acme", Decimal("0.5")), (None, Decimal("0.25"))]


def test_a_model_that_the_answer_did_not_name_is_the_one_asked_for(fill: Any) -> None:
    rows = run(fill([{"model": "", "request_model": "gpt-x", "charges": []}]), "by-model")
    assert [(row["model"], row["cost"], row["unpriced_inferences"]) for row in rows] == [("gpt-x", None, 1)]


def test_components_split_a_call_and_show_what_has_no_charge(fill: Any) -> None:
    store = fill(
        [
            {"charges": [INPUT, MODEL, COMPUTE]},
            {"charges": [MODEL, NO_PRICE], "cost_status": "partial"},
            {"charges": [], "cost_status": "unpriced"},
            {"charges": [], "cost_status": "not_billed"},
        ]
    )
    rows = {row["component"]: row for row in run(store, "by-component")}
    assert set(rows) == {"model", "compute", "unpriced"}
    assert (rows["model"]["cost"], rows["model"]["inferences"], rows["model"]["unpriced_inferences"]) == (1, 2, 0)
    assert (rows["compute"]["cost"], rows["compute"]["inferences"], rows["compute"]["unpriced_inferences"]) == (2, 2, 1)
    assert (rows["unpriced"]["cost"], rows["unpriced"]["inferences"]) == (None, 1)


def test_cost_per_inference_leaves_unpriced_calls_out_of_both_sides(fill: Any) -> None:
    store = fill(
        [
            {"charges": [("tokens.output", "model", "1", "priced")]},
            {"charges": [("tokens.output", "model", "1", "priced")]},
            {"charges": [("tokens.output", "model", "0", "free")], "cost_status": "free"},
            {"charges": []},
            {"charges": [COMPUTE], "kind": "model_load"},
        ]
    )
    rows = {row["component"]: row for row in run(store, "cost-per-inference")}
    assert set(rows) == {"all", "model", "compute"}
    assert rows["all"]["priced_inferences"] == 3
    assert rows["all"]["unpriced_inferences"] == 1
    assert rows["all"]["cost_per_inference"] == Decimal("1.333333333333333333")
    assert rows["all"]["cost_per_1000"] == Decimal("1333.333333333333333333")
    assert rows["model"]["cost_per_inference"] == Decimal("0.666666666666666666")


def test_prepaid_calls_are_inferences_that_cost_nothing(fill: Any) -> None:
    store = fill(
        [
            {"charges": [("tokens.output", "model", "3", "priced")]},
            {"charges": [("tokens.output", "model", "0", "included")], "cost_status": "included"},
        ]
    )
    rows = {row["component"]: row for row in run(store, "cost-per-inference")}
    assert (rows["all"]["priced_inferences"], rows["all"]["cost_per_inference"]) == (2, Decimal("1.5"))


def test_a_charge_that_could_be_several_providers_is_unknown_and_not_zero(fill: Any) -> None:
    ambiguous = ("tokens.output", "model", None, "ambiguous")
    store = fill([{"charges": [ambiguous], "cost_status": "unpriced"}, {"charges": [ambiguous, COMPUTE]}])
    rows = {row["component"]: row for row in run(store, "by-component")}
    assert (rows["model"]["cost"], rows["model"]["unpriced_inferences"]) == (None, 2)
    assert rows["compute"]["cost"] == 2


def test_cost_per_inference_of_nothing_is_unknown(store: Store, fill: Any) -> None:
    assert run(store, "cost-per-inference") == []
    rows = run(fill([{"charges": [COMPUTE], "kind": "model_load"}]), "cost-per-inference")
    assert [(row["cost"], row["cost_per_inference"]) for row in rows] == [(2, None)] * 2


def test_the_unpriced_are_listed_with_their_reasons(fill: Any) -> None:
    store = fill(
        [{"model": "mystery", "charges": [], "cost_reasons": "no_price"}] * 2
        + [{"charges": [MODEL, NO_PRICE], "cost_status": "partial", "cost_reasons": "no_price"}, {"charges": [INPUT]}]
    )
    rows = run(store, "unpriced")
    assert [(row["model"], row["cost_status"], row["rows"], row["known_cost"]) for row in rows] == [
        ("mystery", "unpriced", 2, None),
        ("gpt-5-mini", "partial", 1, Decimal("0.25")),
    ]


def test_retries_and_cold_starts_are_found(fill: Any) -> None:
    store = fill(
        [
            {"charges": [INPUT], "retries": 2, "cold_start": True, "duration_ns": 10},
            {"charges": [INPUT], "retries": None, "duration_ns": 2},
            {"charges": [], "cost_status": "not_billed", "span_status": "error"},
            {"model": "calm", "charges": [INPUT]},
        ]
    )
    assert (total(store)["retries"], total(store)["cold_starts"]) == (2, 1)
    (row,) = run(store, "retries")
    assert (row["calls"], row["retried_calls"], row["retries"], row["failed_calls"]) == (3, 1, 2, 1)
    (row,) = run(store, "cold-starts")
    assert (row["cold_starts"], row["cold_cost"], row["cold_mean_ns"]) == (1, Decimal("0.5"), 10)


def test_retries_that_nobody_tells_are_unknown(fill: Any) -> None:
    assert total(fill([{"charges": [INPUT]}]))["retries"] is None


def test_traces_are_priced_from_the_ledger_and_described_by_their_summaries(fill: Any) -> None:
    store = fill(
        [
            {"trace_id": b"a" * 16, "charges": [INPUT]},
            {"trace_id": b"a" * 16, "charges": [INPUT]},
            {"trace_id": b"b" * 16, "charges": []},
        ]
    )
    store.insert("traces", pa.Table.from_pylist([summary(b"a" * 16)], schema=TRACES), uuid.uuid4().hex)
    dear, unknown = run(store, "traces")
    assert (dear["trace_id"], dear["cost"], dear["inferences"], dear["root"]) == ("61" * 16, Decimal(1), 2, "ask")
    assert (dear["spans"], dear["kept"], dear["duration_ms"]) == (9, True, 1500)
    assert (unknown["cost"], unknown["unpriced_inferences"]) == (None, 1)
    assert (unknown["spans"], unknown["kept"], unknown["root"], unknown["failed"]) == (None, None, None, None)
    assert len(run(store, "traces", limit=1)) == 1


def test_the_view_of_trace_costs_agrees_with_the_ledger(fill: Any) -> None:
    store = fill(
        [
            {"trace_id": b"a" * 16, "charges": [INPUT, COMPUTE], "retries": 3, "cold_start": True},
            {"trace_id": b"a" * 16, "charges": [MODEL, NO_PRICE], "cost_status": "partial"},
            {"trace_id": b"b" * 16, "charges": []},
        ]
    )
    first, second = store.rows("SELECT * FROM trace_costs ORDER BY trace_id")
    assert (first["total_cost"], first["model_cost"], first["compute_cost"]) == (Decimal("2.75"), Decimal("0.75"), 2)
    assert (first["network_cost"], first["retried_attempts"], first["cold_starts"]) == (None, 3, 1)
    assert (second["total_cost"], second["unpriced_inferences"]) == (None, 1)


costs = st.none() | st.integers(0, 10**15).map(lambda pico: str(Decimal(pico).scaleb(-12)))
charge = st.builds(
    lambda component, cost: ("tokens.output", component, cost, "unpriced" if cost is None else "priced"),
    st.sampled_from(["model", "compute", "network", "storage"]),
    costs,
)


@st.composite
def calls(draw: st.DrawFn) -> dict[str, Any]:
    charges = draw(st.lists(charge, max_size=4))
    known = [c for c in charges if c[2] is not None]
    status = "unpriced" if not known else "priced" if len(known) == len(charges) else "partial"
    return {
        "charges": charges,
        "cost_status": draw(st.sampled_from([status, "not_billed"])) if not charges else status,
        "kind": draw(st.sampled_from(["inference", "model_load"])),
        **{name: draw(st.sampled_from(["", "a", "b"])) for name in ("tenant", "feature", "variant", "model")},
    }


@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(calls(), min_size=1, max_size=12))
def test_the_rows_of_every_breakdown_add_up_to_the_total(store: Store, ledger_rows: Make, rows: list[Any]) -> None:
    store.execute("TRUNCATE TABLE ledger")
    store.insert("ledger", ledger_rows(rows), uuid.uuid4().hex)
    whole = total(store)
    for name in BREAKDOWNS:
        parts = run(store, name)
        assert sum((p["cost"] for p in parts if p["cost"] is not None), Decimal(0)) == (whole["cost"] or 0)
        if name != "by-component":
            assert sum(p["inferences"] for p in parts) == whole["inferences"]
            assert sum(p["unpriced_inferences"] for p in parts) == whole["unpriced_inferences"]
    priced = [Decimal(c[2]) for row in rows for c in row["charges"] if c[2] is not None]
    assert (whole["cost"] or 0) == sum(priced, Decimal(0))


def test_instants_are_read_as_people_write_them() -> None:
    now = datetime(2026, 11, 20, 12, tzinfo=UTC)
    assert instant("2026-11-01") == datetime(2026, 11, 1, tzinfo=UTC)
    assert instant("2026-11-01T02:00:00+02:00") == datetime(2026, 11, 1, tzinfo=UTC)
    assert instant("24h", now=now) == now - timedelta(days=1)
    assert instant("2w", now=now) == now - timedelta(days=14)
    assert instant(None) is None
    with pytest.raises(ConfigError, match="neither an instant nor an age"):
        instant("yesterday")


def test_total_as_json_is_one_object_with_exact_money(fill: Any) -> None:
    store = fill([{"charges": [INPUT]}, {"charges": []}])
    result = CliRunner().invoke(app, ["query", "total", "--store", url(store), "--format", "json"])
    assert result.exit_code == 0, result.output
    body = json.loads(result.stdout)
    assert body["inferences"] == 2
    assert body["unpriced_inferences"] == 1
    assert body["currency"] == "USD"
    assert isinstance(body["cost"], str)
    assert Decimal(body["cost"]) == Decimal("0.5")


def test_an_unknown_query_names_the_nearest_and_exits_2() -> None:
    result = CliRunner().invoke(app, ["query", "by-tenent"])
    assert result.exit_code == 2
    assert result.stderr.startswith("error: There is no query 'by-tenent'. Did you mean by-tenant")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("arguments", [["--since", "soon"], ["--since", "2026-02-01", "--until", "2026-01-01"]])
def test_a_window_that_is_none_exits_2(arguments: list[str]) -> None:
    result = CliRunner().invoke(app, ["query", "total", *arguments])
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ")


def test_the_list_of_queries_says_what_each_answers() -> None:
    result = CliRunner().invoke(app, ["query", "--list", "--format", "json"])
    listed = {row["query"]: row["answers"] for row in json.loads(result.stdout)}
    assert {"total", "cost-per-inference", "by-component", "unpriced", "traces", *BREAKDOWNS} <= set(listed)
    assert all(listed.values())


@pytest.mark.parametrize("fmt", [Format.table, Format.markdown])
def test_the_report_shows_totals_breakdowns_and_what_is_missing(fill: Any, fmt: Format, capsys: Any) -> None:
    store = fill(
        [
            {"tenant": "acme", "feature": "search", "charges": [INPUT], "cold_start": True},
            {"model": "odd", "charges": []},
        ]
    )
    store.insert("traces", pa.Table.from_pylist([summary(b"a" * 16)], schema=TRACES), uuid.uuid4().hex)
    print_report(build_report(store), fmt)
    page = capsys.readouterr().out
    for expected in ("0.5 USD for 2 inferences", "1 inference without a price", "acme", "search", "odd", "9 spans"):
        assert expected in page


def test_the_report_as_json_has_every_section(fill: Any, capsys: Any) -> None:
    print_report(build_report(fill([{"charges": [INPUT]}])), Format.json)
    body = json.loads(capsys.readouterr().out)
    assert {"total", "telemetry", "since", "until", *(each.key for each in SECTIONS)} <= set(body)
    assert body["total"]["cost"] == "0.500000000000"


def test_a_report_in_csv_is_refused() -> None:
    result = CliRunner().invoke(app, ["report", "--format", "csv"])
    assert result.exit_code == 2


def summary(trace_id: bytes) -> dict[str, Any]:
    start = datetime(2026, 11, 1, 12, tzinfo=UTC)
    return {
        "trace_id": trace_id,
        "day": start.date(),
        "start_time": start,
        "end_time": start + timedelta(milliseconds=1500),
        "root_name": "ask",
        "root_service": "shop",
        "tenant": "acme",
        "error": 0,
        "spans": 9,
        "telemetry_bytes": 4000,
        "telemetry_cost": None,
        "kept": 1,
        "kept_spans": 9,
        "keep_reason": "probability",
        "threshold": "e666",
        "keep_rule": "probability",
        "content": "full",
        "stored_bytes": 9000,
    }


def url(store: Store) -> str:
    return f"chdb://{store.directory}?database={store.database}"
