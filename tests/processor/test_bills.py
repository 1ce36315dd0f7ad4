"""Bills in: read whole or not at all, imported once, and held against what was metered to the last digit."""

from __future__ import annotations

import gzip
import json
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from tests.processor.test_focus import charge, row
from tollspan.processor.billing import Names, bills, import_bills, read_lines, read_names, remove
from tollspan.processor.cli.app import app
from tollspan.processor.errors import ConfigError, StoreError
from tollspan.processor.focus import Selection, export
from tollspan.processor.queries import run
from tollspan.processor.store import Store, open_store

Make = Callable[[list[dict[str, Any]]], pa.Table]
NOON = datetime(2026, 10, 1, 12, tzinfo=UTC)


def simple(path: Path, *lines: str, heading: str = "date,cost,provider,model,category,tenant") -> Path:
    path.write_text("\n".join((heading, *lines)) + "\n")
    return path


def call(day: int, cost: str | None, provider: str = "openai", model: str = "gpt", **more: Any) -> dict[str, Any]:
    charges = [charge("tokens.output", "1", cost, "1 token", cost)] if cost is not None else []
    return row(charges, start_time=NOON + timedelta(days=day - 1), provider=provider, model=model, **more)


@pytest.fixture(scope="module")
def shared(store_directory: Path) -> Iterator[Store]:
    with open_store(f"chdb://{store_directory}?database=bills") as opened:
        opened.migrate()
        yield opened
        opened.execute("DROP DATABASE bills")


@pytest.fixture
def store(shared: Store) -> Store:
    """Empty again for every test."""
    for table in ("ledger", "bills", "billed_lines"):
        shared.execute(f"TRUNCATE TABLE {table}")
    return shared


@pytest.fixture
def metered(store: Store, ledger_rows: Make) -> Callable[..., Store]:
    def filled(*rows: dict[str, Any]) -> Store:
        store.insert("ledger", ledger_rows(list(rows)), uuid.uuid4().hex)
        return store

    return filled


def compared(store: Store, name: str = "bills-reconcile", **window: Any) -> dict[tuple[Any, ...], dict[str, Any]]:
    """Rows by day of the month, provider and model."""
    return {(line["time"].day, line["provider"], line["model"]): line for line in run(store, name, **window)}


def test_a_simple_bill_is_read_with_its_places(tmp_path: Path) -> None:
    lines, kind = read_lines(
        simple(tmp_path / "b.csv", "2026-10-01,1.50,OpenAI,gpt,,acme", "2026-10-02T00:00:00Z,-2e-3,,,Tax,")
    )
    assert kind == "simple"
    first, second = lines.to_pylist()
    assert (first["cost"], first["step"], first["provider"], first["category"]) == (
        Decimal("1.5"),
        Decimal("0.01"),
        "openai",
        "Usage",
    )
    assert (second["cost"], second["step"], second["category"]) == (Decimal("-0.002"), Decimal("1e-12"), "Tax")
    assert (first["bill"], first["day"], first["tenant"]) == ("OpenAI/-/2026-10", date(2026, 10, 1), "acme")


@given(st.lists(st.decimals(min_value=-(10**12), max_value=10**12, places=12), min_size=1, max_size=20))
@settings(deadline=None)
def test_amounts_are_exact(tmp_path_factory: pytest.TempPathFactory, amounts: list[Decimal]) -> None:
    path = tmp_path_factory.getbasetemp() / "exact.csv"
    simple(path, *(f"2026-10-01,{amount:f}" for amount in amounts), heading="date,cost")
    assert read_lines(path)[0]["cost"].to_pylist() == amounts


def test_doubles_are_the_decimals_that_they_stand_for(tmp_path: Path) -> None:
    path = tmp_path / "cur.parquet"
    columns = {
        "line_item_unblended_cost": pa.array([0.1, 2.5e-9, 123456.789]),
        "line_item_usage_start_date": pa.array([NOON] * 3, pa.timestamp("ms")),
        "bill_billing_period_start_date": pa.array([NOON.replace(day=1)] * 3, pa.timestamp("ms")),
        "line_item_line_item_type": pa.array(["Usage", "Tax", "SavingsPlanNegation"]),
        "line_item_product_code": pa.array(["AmazonBedrock", "AmazonEC2", "AmazonEC2"]).dictionary_encode(),
        "line_item_usage_type": pa.array(["USE1-Claude-input", "", "x"]),
        "bill_payer_account_id": pa.array(["123456789012"] * 3),
        "resource_tags": pa.array([[("user_tenant", "acme")], [], None], pa.map_(pa.string(), pa.string())),
    }
    pq.write_table(pa.table(columns), path)
    lines, kind = read_lines(path, names=Names(models={"*claude*": "claude-sonnet"}))
    found = lines.to_pylist()
    assert kind == "cur"
    assert [line["cost"] for line in found] == [Decimal("0.1"), Decimal("2.5e-9"), Decimal("123456.789")]
    assert [line["category"] for line in found] == ["Usage", "Tax", "Usage"]
    assert [line["provider"] for line in found] == ["aws.bedrock", "aws", "aws"]
    assert [line["model"] for line in found] == ["claude-sonnet", "", ""]
    assert [line["tenant"] for line in found] == ["acme", "", ""]
    assert {line["bill"] for line in found} == {"AWS/123456789012/2026-10"}


def test_a_legacy_cur_is_read_too(tmp_path: Path) -> None:
    path = tmp_path / "cur.csv.gz"
    heading = (
        "lineItem/UnblendedCost,lineItem/UsageStartDate,lineItem/LineItemType,bill/PayerAccountId,lineItem/CurrencyCode"
    )
    path.write_bytes(gzip.compress(f"{heading}\n0.0000000001,2026-10-01T00:00:00Z,Usage,1,eur\n".encode()))
    (line,) = read_lines(path)[0].to_pylist()
    assert (line["cost"], line["currency"], line["step"]) == (Decimal("1e-10"), "EUR", Decimal("1e-10"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("date,cost\n2026-10-01,12\n2026-10-02,1.2.3\n", "line 2 below the heading: '1.2.3' is no amount"),
        ("date,cost\n2026-10-01,\n", "'' is no amount"),
        ("date,cost\n2026-10-01,$5\n2026-10-01,x\n", r"'\$5' is no amount \(and 1 more\)"),
        ("date,cost\n1.10.2026,5\n", "'1.10.2026' is no day"),
        ("date,cost\n2026-13-01,5\n", "2026-13-01"),
        ("date,cost,category\n2026-10-01,5,gift\n", "'gift' is no kind of line"),
        ("date,cost\n", "has no lines"),
        ("when,howmuch\n1,2\n", "those of no known bill"),
        ("", "has no heading|cannot be read"),
        ("date,cost\n2026-10-01,1,2,3\n", "cannot be read"),
    ],
)
def test_a_file_that_cannot_be_taken_is_refused_whole(store: Store, tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "b.csv"
    path.write_text(text)
    with pytest.raises(ConfigError, match=said):
        import_bills(store, [path])
    assert bills(store) == []


def test_names_are_checked(tmp_path: Path) -> None:
    path = tmp_path / "names.yaml"
    path.write_text("providers: {Open AI Inc: openai}\nmodels: {'GPT-5 *': gpt}\ntenant_tags: [org]\n")
    names = read_names(path)
    assert (names.providers, names.tenant_tags, names.feature_tags[0]) == (
        {"open ai inc": "openai"},
        ("org",),
        "feature",
    )
    for bad in ("models: [a]", "model: {a: b}", "tenant_tags: {a: b}", "providers: {a: 1}", "[", "- a"):
        path.write_text(bad)
        with pytest.raises(ConfigError, match=r"names\.yaml"):
            read_names(path)


def test_an_import_again_changes_nothing_and_another_replaces_the_bill(store: Store, tmp_path: Path) -> None:
    first = simple(
        tmp_path / "a.csv", "2026-10-01,1,openai,gpt,,", "2026-10-02,2,openai,gpt,,", "2026-11-01,4,openai,gpt,,"
    )
    assert [(each.bill, each.state, each.billed) for each in import_bills(store, [first])] == [
        ("openai/-/2026-10", "new", Decimal(3)),
        ("openai/-/2026-11", "new", Decimal(4)),
    ]
    assert {each.state for each in import_bills(store, [first])} == {"unchanged"}
    assert store.rows("SELECT sum(cost) AS c, count() AS n FROM billed") == [{"c": Decimal(7), "n": 3}]
    # October comes again, with a line less.
    later = simple(tmp_path / "b.csv", "2026-10-01,1.5,openai,gpt,,")
    assert [each.state for each in import_bills(store, [later])] == ["replaced"]
    assert store.rows("SELECT sum(cost) AS c, count() AS n FROM billed") == [{"c": Decimal("5.5"), "n": 2}]
    # And back again.
    assert [each.state for each in import_bills(store, [first])] == ["replaced", "unchanged"]
    assert store.rows("SELECT sum(cost) AS c, count() AS n FROM billed") == [{"c": Decimal(7), "n": 3}]
    remove(store, "openai/-/2026-10")
    assert [each["bill"] for each in bills(store)] == ["openai/-/2026-11"]
    with pytest.raises(ConfigError, match="no bill"):
        remove(store, "openai/-/2026-10")
    import_bills(store, [first])
    assert store.rows("SELECT sum(cost) AS c FROM billed") == [{"c": Decimal(7)}]


def test_an_import_that_breaks_off_leaves_the_bill_as_it_was(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import_bills(store, [simple(tmp_path / "a.csv", "2026-10-01,1,openai,gpt,,")])
    insert = Store.insert

    def broken(self: Store, table: str, rows: pa.Table, token: str) -> None:
        if table == "bills":
            raise StoreError("away")
        insert(self, table, rows, token)

    later = simple(tmp_path / "b.csv", "2026-10-01,9,openai,gpt,,", "2026-10-02,9,openai,gpt,,")
    with monkeypatch.context() as patched:
        patched.setattr(Store, "insert", broken)
        with pytest.raises(StoreError):
            import_bills(store, [later])
    assert store.rows("SELECT sum(cost) AS c FROM billed") == [{"c": Decimal(1)}]
    import_bills(store, [later])
    assert store.rows("SELECT sum(cost) AS c, count() AS n FROM billed") == [{"c": Decimal(18), "n": 2}]


def test_files_of_one_export_are_one_bill(store: Store, tmp_path: Path) -> None:
    parts = [simple(tmp_path / f"{n}.csv", f"2026-10-01,{n},openai,gpt,,") for n in (1, 2)]
    (done,) = import_bills(store, parts, bill="october")
    assert (done.bill, done.lines, done.billed) == ("october", 2, Decimal(3))


def test_what_is_exported_as_focus_and_imported_as_a_bill_is_equal(metered: Any, tmp_path: Path) -> None:
    store = metered(
        call(1, "0.000000000001", tenant="acme"),
        call(1, "12345.678901234567"),
        call(2, "3", "anthropic", "claude"),
        row([charge("gpu.seconds", "7", "36", "1 hour", "0.07")], start_time=NOON, cloud_provider="aws", device="H100"),
    )
    formats: tuple[Literal["csv", "parquet"], ...] = ("csv", "parquet")
    for fmt in formats:
        path = tmp_path / f"x.{fmt}"
        export(store, Selection(), path, fmt)
        import_bills(store, [path], bill="own")
        found = run(store, "bills-reconcile")
        assert len(found) == 3
        assert {(line["state"], line["difference"]) for line in found} == {("equal", Decimal(0))}
        assert sum(line["billed"] for line in found) == run(store, "total")[0]["cost"]


def test_every_difference_has_a_name(metered: Any, tmp_path: Path) -> None:
    store = metered(
        call(1, "10"),
        call(2, "10.004"),
        call(3, "5"),
        call(4, "7"),
        call(5, "2"),
        call(5, None),
        call(6, "1", "anthropic", "claude"),
        call(9, "3"),
        call(1, "4", "mistral", "small"),
        call(7, None),
    )
    path = simple(
        tmp_path / "b.csv",
        "2026-10-01,10.00,OpenAI,gpt,,",
        "2026-10-01,1.90,OpenAI,,Tax,",
        "2026-10-01,-2.00,OpenAI,,Credit,",
        "2026-10-01,20.00,OpenAI,,Fee,",
        "2026-10-01,-0.5,OpenAI,,Rounding,",
        "2026-10-02,10.00,OpenAI,gpt,,",
        "2026-10-03,6.00,OpenAI,gpt,,",
        "2026-10-05,2.60,OpenAI,gpt,,",
        "2026-10-06,1.00,OpenAI,other,,",
        "2026-10-07,0.25,OpenAI,gpt,,",
        "2026-10-08,1.00,OpenAI,gpt,,",
    )
    import_bills(store, [path])
    found = compared(store)
    states = {key: (line["state"], line["difference"], line["unexplained"]) for key, line in found.items()}
    money = Decimal
    assert states == {
        (1, "openai", "gpt"): ("equal", 0, 0),
        (1, "openai", None): ("explained", money("19.4"), 0),
        (2, "openai", "gpt"): ("rounding", money("-0.004"), 0),
        (3, "openai", "gpt"): ("unexplained", 1, 1),
        (4, "openai", "gpt"): ("unbilled", -7, -7),
        (5, "openai", "gpt"): ("unpriced", money("0.6"), None),
        (6, "openai", "other"): ("unmetered", 1, 1),
        (6, "anthropic", "claude"): ("outside", None, None),
        (7, "openai", "gpt"): ("unpriced", None, None),
        (8, "openai", "gpt"): ("unmetered", 1, 1),
        (9, "openai", "gpt"): ("outside", None, None),
        (1, "mistral", "small"): ("outside", None, None),
    }
    extra = found[1, "openai", None]
    assert (extra["taxes"], extra["credits"], extra["purchases"], extra["adjustments"]) == (
        money("1.9"),
        -2,
        20,
        money("-0.5"),
    )
    assert found[2, "openai", "gpt"]["rounding"] == money("-0.004")
    assert found[7, "openai", "gpt"]["metered"] is None
    assert found[9, "openai", "gpt"]["billed"] is None
    # Every row's parts add up to its difference.
    for line in found.values():
        if line["difference"] is not None and line["unexplained"] is not None and line["bill_lines"]:
            parts = (line[name] for name in ("taxes", "credits", "purchases", "adjustments", "rounding", "unexplained"))
            assert sum(parts) == line["difference"]


def test_a_bill_without_models_is_compared_by_provider(metered: Any, tmp_path: Path) -> None:
    store = metered(call(1, "1"), call(1, "2", model="mini"), call(2, "4"))
    import_bills(store, [simple(tmp_path / "b.csv", "2026-10-01,3.00,openai,,,", "2026-10-02,4.00,openai,gpt,,")])
    assert {key: line["state"] for key, line in compared(store).items()} == {
        (1, "openai", None): "equal",
        (2, "openai", "gpt"): "equal",
    }


def test_a_bill_for_whole_months_is_compared_by_month(metered: Any, tmp_path: Path) -> None:
    store = metered(call(1, "1"), call(20, "2"))
    import_bills(store, [simple(tmp_path / "b.csv", "2026-10-01,3.00,openai,gpt,,")])
    assert {line["state"] for line in compared(store).values()} == {"unexplained", "outside"}
    assert [line["state"] for line in run(store, "bills-reconcile-by-month")] == ["equal"]


def test_another_currency_is_compared_with_nothing(metered: Any, tmp_path: Path) -> None:
    store = metered(call(1, "1"))
    import_bills(
        store, [simple(tmp_path / "b.csv", "2026-10-01,1,openai,gpt,EUR", heading="date,cost,provider,model,currency")]
    )
    found = run(store, "bills-reconcile")
    assert [(line["state"], line["currency"], line["difference"]) for line in found if line["state"] == "currency"] == [
        ("currency", "EUR", None)
    ]
    assert run(store, "bills-attribution") == []


def test_a_simple_bill_is_in_usd_and_any_other_says_its_currency(metered: Any, tmp_path: Path) -> None:
    store = metered(call(1, "1"))
    path = simple(tmp_path / "b.csv", "2026-10-01,1,openai,gpt,", heading="date,cost,provider,model,currency")
    assert read_lines(path)[0]["currency"].to_pylist() == ["USD"]
    heading = "BilledCost,ChargePeriodStart,ChargeCategory,ProviderName,x_Model"
    import_bills(store, [simple(path, "1,2026-10-01T00:00:00Z,Usage,openai,gpt", heading=heading)])
    assert {line["state"] for line in run(store, "bills-reconcile") if line["bill_lines"]} == {"currency"}


def test_a_window_takes_both_sides(metered: Any, tmp_path: Path) -> None:
    store = metered(call(1, "1"), call(2, "2"))
    import_bills(store, [simple(tmp_path / "b.csv", "2026-10-01,1,openai,gpt,,", "2026-10-02,2,openai,gpt,,")])
    midnight = datetime(2026, 10, 2, tzinfo=UTC)
    assert list(compared(store, since=midnight)) == [(2, "openai", "gpt")]
    assert list(compared(store, until=midnight)) == [(1, "openai", "gpt")]
    # Bills have days, so days are taken whole.
    inside = compared(store, since=midnight + timedelta(hours=20), until=midnight + timedelta(hours=21))
    assert {key: line["state"] for key, line in inside.items()} == {(2, "openai", "gpt"): "equal"}


def test_attribution_accuracy_is_what_can_be_told_to_somebody(metered: Any, tmp_path: Path) -> None:
    store = metered(
        call(1, "6", tenant="acme", feature="search"),
        call(1, "2"),
        call(2, "3", tenant="acme"),
        call(1, "5", "anthropic", "claude", tenant="acme"),
    )
    path = simple(
        tmp_path / "b.csv",
        "2026-10-01,10,openai,gpt,,",  # 8 of it were metered, 6 of these with a tenant
        "2026-10-02,2,openai,gpt,,",  # 3 were metered, all with a tenant
        "2026-10-03,4,openai,gpt,,acme",  # the bill itself says whose
        "2026-10-04,4,openai,gpt,,",  # nobody knows
        "2026-10-04,100,openai,gpt,Tax,",
    )
    import_bills(store, [path])
    (found,) = run(store, "bills-attribution")
    assert (found["provider"], found["billed"]) == ("openai", 20)
    assert (found["attributed_to_tenant"], found["tenant_accuracy"]) == (12, Decimal("0.6"))
    assert (found["attributed_to_feature"], found["feature_accuracy"]) == (6, Decimal("0.3"))


def test_the_commands(metered: Any, tmp_path: Path) -> None:
    store = metered(call(1, "10", tenant="acme"))
    path = simple(tmp_path / "b.csv", "2026-10-01,10.00,openai,gpt,,", "2026-10-01,1,openai,,Tax,")

    def tollspan(*arguments: str) -> Any:
        return CliRunner().invoke(app, ["bills", *arguments, "--store", store.url, "--format", "json"])

    # The store is this process's; importing opens it again, as another part of the process may.
    import_bills(store, [path])
    (listed,) = json.loads(tollspan("list").stdout)
    assert (listed["bill"], listed["billed"]) == ("openai/-/2026-10", "11.000000000000")
    done = tollspan("reconcile", "--since", "2026-10-01", "--until", "2026-11-01")
    assert done.exit_code == 0, done.output
    assert {line["state"] for line in json.loads(done.stdout)} == {"equal", "explained"}
    (told,) = json.loads(tollspan("attribution").stdout)
    assert told["tenant_accuracy"] == "1.000000"
    import_bills(store, [simple(tmp_path / "b.csv", "2026-10-01,12.00,openai,gpt,,")])
    assert tollspan("reconcile").exit_code == 3
    assert tollspan("reconcile", "--since", "nonsense").exit_code == 2
