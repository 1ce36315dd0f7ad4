"""The report: every section says what the queries say, whatever is missing is told, and names are never markup."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from tollspan.processor.cli.output import Format, print_rows
from tollspan.processor.cli.report import report as report_command
from tollspan.processor.errors import ConfigError, StoreError
from tollspan.processor.queries import find, run
from tollspan.processor.report import BRIEF, SECTIONS, build_report, chosen, html_page, print_report, summary
from tollspan.processor.report.cells import stretches, table
from tollspan.processor.report.gather import next_stretch
from tollspan.processor.store import Store, open_store

from .small_world import NOON, small_world

Make = Callable[[list[dict[str, Any]]], Store]

app = typer.Typer()
app.command("report")(report_command)

TOTAL = Decimal("0.14714")
DAY = datetime(2026, 11, 1, tzinfo=UTC)
HOSTILE = "<script>alert(1)</script>[/bold]\x1b[31m|{{ 7*7 }}'\"><img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def world(store_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    with open_store(f"chdb://{store_directory}?database=report_world") as opened:
        opened.migrate()
        small_world(opened, tmp_path_factory.mktemp("report"))
        yield opened
        opened.execute("DROP DATABASE report_world")


@pytest.fixture(scope="module")
def whole(world: Store) -> dict[str, Any]:
    """The report of everything."""
    return build_report(world)


@pytest.fixture(scope="module")
def gathered(world: Store) -> dict[str, Any]:
    """The whole report of the last hour of the small world, with the hour before beside it."""
    return build_report(world, NOON + timedelta(minutes=30), NOON + timedelta(minutes=90))


@pytest.fixture(scope="module")
def shared(store_directory: Path) -> Iterator[Store]:
    with open_store(f"chdb://{store_directory}?database=report_rows") as opened:
        opened.migrate()
        yield opened
        opened.execute("DROP DATABASE report_rows")


@pytest.fixture
def fill(shared: Store, ledger_rows: Any) -> Make:
    shared.execute("TRUNCATE TABLE ledger")

    def filled(rows: list[dict[str, Any]]) -> Store:
        if rows:
            shared.insert("ledger", ledger_rows(rows), uuid.uuid4().hex)
        return shared

    return filled


def url(store: Store) -> str:
    return f"chdb://{store.directory}?database={store.database}"


def call(cost: str | None, day: int = 0, **columns: Any) -> dict[str, Any]:
    """A call on a day of November, in the order in which they are made within it."""
    charges = [] if cost is None else [("tokens.output", "model", cost, "priced")]
    return {"start_time": DAY + timedelta(days=day, hours=12), "charges": charges, **columns}


def asked(*arguments: str) -> Any:
    return CliRunner().invoke(app, list(arguments))


# -- what changed ------------------------------------------------------------------------------------------------------


def test_a_change_is_parted_into_traffic_and_price_and_adds_up_to_the_last_digit(fill: Make) -> None:
    # Three calls a day at 0.25 for five days, then five a day at 0.30 and one dear one; one has no price.
    before = [
        call("0.25", day, tenant="ab"[n % 2], span_id=bytes([day, n, *bytes(6)])) for day in range(5) for n in range(3)
    ]
    after = [
        call("0.3", day, tenant="ab"[n % 2], span_id=bytes([day, n, *bytes(6)]))
        for day in range(5, 10)
        for n in range(5)
    ]
    more = [call("1", 7, tenant="new"), call(None, 7, tenant="odd", model="mystery")]
    store = fill(before + after + more)
    window = (DAY + timedelta(days=5), DAY + timedelta(days=10))
    (row,) = run(store, "drivers", *window, by=[])
    assert (row["cost"], row["cost_before"], row["change"]) == (Decimal("8.5"), Decimal("3.75"), Decimal("4.75"))
    # 26 priced calls where it was 15, at a quarter each: 11 × 0.25.
    assert (row["volume_effect"], row["rate_effect"], row["percent"]) == (Decimal("2.75"), Decimal(2), 126.667)
    assert (row["priced_inferences"], row["priced_before"], row["unpriced_inferences"]) == (26, 15, 1)
    rows = run(store, "drivers", *window, by=["tenant"])
    assert [each["tenant"] for each in rows] == ["a", "b", "new", "odd"]
    assert sum(each["change"] or 0 for each in rows) == row["change"]
    assert all(
        each["volume_effect"] is None or each["volume_effect"] + each["rate_effect"] == each["change"] for each in rows
    )
    new, odd = rows[2:]
    assert (new["cost_before"], new["percent"], new["volume_effect"]) == (0, None, None)
    assert (odd["cost"], odd["change"], odd["unpriced_inferences"]) == (None, None, 1)
    line = next(line for line in summary(build_report(store, *window)) if "window of the same length" in line)
    assert line == (
        "+4.75 USD (+126.7 %) beside the window of the same length before: +2.75 for 26 priced inferences where it was "
        "15, +2 for what one costs (1 and 0 without a price left out)"
    )


def test_the_window_before_an_open_end_ends_now_and_filters_hold_for_both(fill: Make) -> None:
    now = datetime.now(UTC)
    store = fill(
        [
            {"start_time": now - timedelta(hours=age), "tenant": tenant, "charges": [("t", "model", cost, "priced")]}
            for age, tenant, cost in ((1, "a", "1"), (30, "a", "0.5"), (30, "b", "7"), (60, "a", "9"))
        ]
    )
    (row,) = run(store, "drivers", since=now - timedelta(days=1), by=[], where=["tenant=a"])
    assert (row["cost"], row["cost_before"]) == (1, Decimal("0.5"))
    (everything,) = run(store, "drivers", by=[])
    assert (everything["cost"], everything["cost_before"]) == (Decimal("17.5"), 0)


# -- what it says ------------------------------------------------------------------------------------------------------


def test_every_section_has_the_rows_of_its_query(world: Store, whole: dict[str, Any]) -> None:
    report = whole
    assert report["errors"] == {}
    assert set(report["not_told"]) == {each.key for each in SECTIONS if each.before}
    assert report["total"]["cost"] == TOTAL
    for name in ("feature", "tenant", "model", "variant"):
        assert sum(row["cost"] or 0 for row in report[f"by_{name}"]) == TOTAL, name
    assert report["cost_per_inference"] == run(world, "cost-per-inference")
    assert [row["cost"] for row in report["trend"]] == [TOTAL - Decimal("0.0006"), Decimal("0.0006")]
    assert report["anomalies"] == run(world, "anomalies-by-hour", by=[], limit=20)
    assert (report["nothing"], report["moved"]) == (None, False)


def test_every_section_says_what_it_means_in_which_unit() -> None:
    for each in SECTIONS:
        query = find(each.query)
        assert each.means or query.definition, each.key
        assert each.unit or query.unit, each.key
        assert each.asks.endswith("?"), each.key
    assert len({each.key for each in SECTIONS}) == len(SECTIONS)


@pytest.mark.parametrize("fmt", [Format.table, Format.markdown])
def test_what_has_no_price_is_told_first_and_last(whole: dict[str, Any], fmt: Format, capsys: Any) -> None:
    print_report(whole, fmt)
    page = capsys.readouterr().out
    assert "0.14714 USD for 13 inferences" in page
    assert "1 inference without a price, in none of these sums" in page.split("What it costs")[0]
    assert "1 inference without a price, in none of these sums" in page.split("What these figures leave out")[1]
    assert "Not told: Beside the window before" in page
    assert "Unit: USD for each inference." in page


def test_the_object_has_all_rows_exactly_and_what_they_mean(whole: dict[str, Any], capsys: Any) -> None:
    print_report(whole, Format.json)
    body = json.loads(capsys.readouterr().out)
    assert body["total"]["cost"] == "0.147140000000"
    assert {each.key for each in SECTIONS} <= set(body) & set(body["about"])
    assert body["by_tenant"][0]["cost_per_inference"].startswith("0.")
    assert body["change"] is None
    assert body["about"]["forecast"]["formula"].startswith("forecast = ")
    assert not re.search(r'"(cost|cost_per_\w+|effect|saved|change)": -?\d', json.dumps(body)), "money that is a float"


def test_what_a_table_leaves_out_is_summed_up_to_the_last_digit(fill: Make) -> None:
    rows = [call(f"0.{n + 1:012}", tenant=f"t{n:02}") for n in range(30)]
    report = build_report(fill([*rows, call(None, tenant="odd")]), sections=chosen(["by_tenant"]))
    (section,) = report["sections"]
    shown, note = table(section, report)
    assert (len(shown), note) == (section.least + 1, "")
    assert shown[-1]["tenant"] == "(19 others)"
    assert (
        sum(row["cost"] for row in shown) == report["total"]["cost"] == sum(Decimal(n + 1) for n in range(30)) / 10**12
    )
    assert (shown[-1]["priced_inferences"], shown[-1]["unpriced_inferences"]) == (18, 1)
    assert shown[-1]["cost_per_inference"] is None


def test_sections_are_chosen_by_name_or_by_who_asks(world: Store) -> None:
    assert [each.key for each in chosen(["trend,by-tenant"])] == ["trend", "by_tenant"]
    assert {each.group for each in chosen(["sre", "finops"])} == {"sre", "finops"}
    own = {each.key: each for each in chosen([], ["team", "region"])}
    assert own["by"].by == own["drivers_by"].by == ("team", "region")
    assert not {"by_tenant", "drivers_by_feature"} & set(own)
    with pytest.raises(ConfigError, match="Did you mean forecast"):
        chosen(["forecst"])
    report = build_report(world, sections=chosen(["by"], ["team", "region"]))
    assert sum(row["cost"] or 0 for row in report["by"]) == TOTAL


def test_filters_hold_for_all_and_what_cannot_be_filtered_is_not_told(world: Store, capsys: Any) -> None:
    report = build_report(world, where=["tenant=acme", "feature=search"])
    assert report["total"]["cost"] == Decimal("0.02864") == sum(row["cost"] for row in report["trend"])
    assert report["telemetry"] is None
    assert {"telemetry", "observability"} <= set(report["not_told"])
    print_report(report, Format.table)
    page = capsys.readouterr().out
    assert "Only tenant=acme; feature=search." in page
    assert "telemetry" in page.split("What these figures leave out")[1]
    assert "globex" not in page + html_page(report)


def test_the_demos_report_is_short(world: Store, capsys: Any) -> None:
    print_report(build_report(world, sections=BRIEF), Format.table, brief=True)
    page = capsys.readouterr().out
    assert page.startswith("What inference cost\n  0.14714 USD for 13 inferences\n")
    assert "Unit:" not in page
    assert re.findall(r"^(\S[A-Z a-z]+?) *$", page, re.MULTILINE)[:3] == [
        "What inference cost",
        "Cost per inference",
        "By tenant",
    ]


# -- what is missing ---------------------------------------------------------------------------------------------------


class Broken:
    """A reader that gives up on one query."""

    def __init__(self, store: Store, word: str) -> None:
        self.store, self.word = store, word

    def rows(self, sql: str, parameters: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
        if self.word in sql:
            raise StoreError("Store: query failed: Timeout exceeded: elapsed 30 s.")
        return self.store.rows(sql, parameters)


def test_a_section_that_the_store_cannot_answer_says_so_and_the_others_come(
    world: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    broken = Broken(world, "seriesOutliersDetectTukey")

    @contextmanager
    def connect(_: str) -> Iterator[Broken]:
        yield broken

    monkeypatch.setattr("tollspan.processor.store.connect_for_query", connect)
    done = asked("--format", "markdown", "--section", "anomalies,traces")
    assert done.exit_code == 1
    assert "COULD NOT BE READ: Anomalies" in done.stdout
    assert "COULD NOT BE READ. Store: query failed: Timeout exceeded" in done.stdout
    assert "### Dearest traces" in done.stdout
    assert done.stderr == ("error: The report lacks anomalies. Store: query failed: Timeout exceeded: elapsed 30 s.\n")
    assert json.loads(asked("--format", "json", "--section", "anomalies").stdout)["errors"].keys() == {"anomalies"}
    assert asked("-o", str(tmp_path / "r.html"), "--section", "anomalies").exit_code == 1
    assert "Could not be read: Anomalies." in (tmp_path / "r.html").read_text()
    with pytest.raises(StoreError):
        build_report(broken)
    with pytest.raises(StoreError):
        build_report(Broken(world, "not_billed"), tolerant=True)  # without totals there is no report


def test_a_window_without_rows_says_so(world: Store, tmp_path: Path) -> None:
    for more in (["--until", "2020-01-01"], ["--where", "tenant=nobody"]):
        done = asked("--store", url(world), *more)
        assert done.exit_code == 0
        assert "0 USD for 0 inferences" in done.stdout
        assert "The ledger goes from 2026-10-01 12:00:00 UTC to 2026-10-01 13:00:00 UTC." in done.stdout
        assert "Cost per inference" not in done.stdout
    page = tmp_path / "empty.html"
    assert asked("--store", url(world), "--until", "2020-01-01", "-o", str(page)).exit_code == 0
    assert "The ledger goes from" in Tags(page.read_text()).text


def test_an_empty_ledger_says_what_to_do(fill: Make) -> None:
    report = build_report(fill([]))
    assert report["nothing"] == "No rows: the ledger is empty. `tollspan doctor` says whether spans arrive."
    assert report["nothing"] in Tags(html_page(report)).text


def test_rows_that_come_while_it_is_read_are_told(fill: Make, ledger_rows: Any) -> None:
    store = fill([call("1")])

    class Growing(Broken):
        def rows(self, sql: str, parameters: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
            if "cost_per_inference" in sql:
                store.insert("ledger", ledger_rows([call("1", 1)]), uuid.uuid4().hex)
            return self.store.rows(sql, parameters)

    report = build_report(Growing(store, ""), sections=chosen(["cost_per_inference"]))
    assert report["moved"]
    assert any(line.startswith("spans arrived while this was read") for line in summary(report))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--section", "forecst"], "There is no section 'forecst'. Did you mean forecast"),
        (["--by", "tenent"], "There is no dimension 'tenent'. Did you mean tenant"),
        (["--where", "modle=x"], "Did you mean model"),
        (["--since", "soon"], "is neither an instant nor an age"),
        (["--format", "csv"], "A report is several tables"),
        (["-o", "report.pdf"], "report.pdf: what is it to be? Name it .html"),
        (["-o", "/nowhere/report.html"], "there is no such folder"),
    ],
)
def test_what_cannot_be_meant_is_one_line_and_exit_code_2(arguments: list[str], said: str) -> None:
    done = asked(*arguments)
    assert done.exit_code == 2
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_file_is_written_whole_or_not_at_all(world: Store, tmp_path: Path) -> None:
    for name, begins in (
        ("r.md", "# What inference cost"),
        ("r.json", "{"),
        ("r.txt", "What inference"),
        ("r.html", "<!doctype html>"),
    ):
        done = asked("--store", url(world), "-o", str(tmp_path / name), "--section", "trend")
        assert (done.exit_code, done.stdout) == (0, "")
        assert (tmp_path / name).read_text(encoding="utf-8").startswith(begins)
    (tmp_path / "taken.html").mkdir()
    done = asked("--store", url(world), "-o", str(tmp_path / "taken.html"), "--section", "trend")
    assert isinstance(done.exception, ConfigError)
    assert "cannot be written" in str(done.exception)
    assert {each.name for each in tmp_path.iterdir()} == {"r.md", "r.json", "r.txt", "r.html", "taken.html"}


# -- as a page ---------------------------------------------------------------------------------------------------------

VOID = {"meta", "rect", "br", "link", "img"}


class Tags(HTMLParser):
    """A page taken apart: its tags with their attributes, and the text that is read."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text, self.open = "", list[str]()
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.text += data

    def values(self, name: str) -> list[str]:
        return [value for _, attributes in self.tags if (value := attributes.get(name)) is not None]


def test_the_page_needs_nothing_but_itself(gathered: dict[str, Any]) -> None:
    page = html_page(gathered)
    found = Tags(page)
    assert found.open == []
    assert not {tag for tag, _ in found.tags} & {"script", "link", "img", "iframe", "object", "form", "base"}
    assert not re.search(r"url\(|@import|https?:", page)
    assert not [name for _, attributes in found.tags for name in attributes if name.startswith("on")]
    assert {"default-src 'none'; style-src 'unsafe-inline'"} <= set(found.values("content"))
    ids = found.values("id")
    assert len(ids) == len(set(ids))
    assert {each.removeprefix("#") for each in found.values("href")} <= set(ids)
    assert "prefers-color-scheme: dark" in page
    assert "@page { size: A4" in page


def test_the_page_has_every_digit_and_every_section(whole: dict[str, Any]) -> None:
    report = whole
    found = Tags(html_page(report))
    text = " ".join(found.text.split())
    assert "0.14714 USD" in text
    assert "1 inference without a price, in none of these sums" in text
    for each in report["sections"]:
        if each.key not in report["not_told"] and report[each.key]:
            assert each.key in found.values("id"), each.key
            assert each.asks in text
    for row in report["by_tenant"]:
        assert format(row["cost"].normalize(), "f") in text


def test_a_page_of_some_sections_leads_nowhere_else_and_warns_all_the_same(fill: Make) -> None:
    part = {"charges": [("t", "model", "0.5", "priced")], "cost_status": "partial"}
    report = build_report(fill([part, call(None, tenant="odd")]), sections=chosen(["trend", "by_tenant"]))
    found = Tags(html_page(report))
    assert {each.removeprefix("#") for each in found.values("href")} == {"trend", "by_tenant"}
    for said in (
        "1 inference without a price, in none of these sums.",
        "1 inference priced in part: the sums are a lower",
    ):
        assert said in found.text


def test_names_of_spans_are_never_markup(fill: Make, capsys: Any) -> None:
    store = fill([call("0.5", tenant=HOSTILE, model=HOSTILE, feature=HOSTILE), call(None, model=f"b{HOSTILE}")])
    report = build_report(store, where=[f"tenant!={HOSTILE}x"])
    page = html_page(report)
    found = Tags(page)
    assert not {tag for tag, _ in found.tags} & {"script", "img"}
    assert HOSTILE.replace("\x1b", "\\x1b") in found.text
    for fmt in (Format.table, Format.markdown):
        print_report(report, fmt)
        shown = capsys.readouterr().out
        assert "\x1b" not in shown
        assert "[/bold]" in shown
    assert r"\<script>alert(1)\</script>\[/bold]" in shown


def test_tables_of_every_command_show_markup_as_text(capsys: Any) -> None:
    rows = [{"tenant": "[/]", "cost": Decimal("1.50")}, {"tenant": "[red]x[/red] :smile:\x9b1m\u202e", "cost": None}]
    print_rows(rows, Format.table)
    shown = capsys.readouterr().out
    assert "[/]" in shown
    assert "[red]x[/red] :smile:\\x9b1m\\u202e" in shown


def test_a_trend_has_no_gaps(fill: Make) -> None:
    store = fill([call("1", 0), call(None, 3), call("2", 6)])
    report = build_report(store, DAY, DAY + timedelta(days=7), sections=chosen(["trend"]))
    found = stretches(report, report["sections"][0])
    assert [at for at, _ in found] == [date(2026, 11, 1) + timedelta(days=n) for n in range(7)]
    assert [row and row["cost"] for _, row in found] == [1, None, None, None, None, None, 2]
    page = html_page(report)
    assert "2026-11-04: no price known, 1 inferences" in page
    assert "2026-11-02: 0 USD, 0 inferences" in page
    assert next_stretch(date(2026, 12, 1), "month") == date(2027, 1, 1)
    assert next_stretch(datetime(2026, 11, 1, 23, tzinfo=UTC), "hour") == datetime(2026, 11, 2, tzinfo=UTC)
