"""``tollspan prices``: books that people look at, check, compare, make and settle, in every format."""

from __future__ import annotations

import csv
import io
import json
import textwrap
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from tollspan.pricing import BookError, corrections
from tollspan.pricing.yamlbook import parse_layer
from tollspan.processor.cli.prices import prices

NOW = ["--at", "2026-11-20T12:00:00Z"]

BOOK = """
price_book: {id: acme, version: 1}
prices:
  - {id: in, provider: acme, sku: m, meter: tokens.input.uncached, amount: 1, per: 1000000}
  - {id: out, provider: acme, sku: m, meter: tokens.output, amount: 4, per: 1000000, effective: [null, 2026-12-01]}
  - {id: out-2, provider: acme, sku: m, meter: tokens.output, amount: 5, per: 1000000, effective: [2026-12-01, null]}
  - {id: gone, provider: acme, sku: m, meter: requests, amount: 1, status: cancelled}
"""


def run(*arguments: str) -> Result:
    return CliRunner().invoke(prices, list(arguments))


def rows(*arguments: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(run(*arguments, "--format", "json").stdout)
    return found


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, str], str]:
    def write(name: str, text: str) -> str:
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    return write


Write = Callable[[str, str], str]


# -- list -----------------------------------------------------------------------------------------------------------


def test_list_shows_what_is_in_force_at_an_instant(write: Write) -> None:
    book = ["--book", write("acme.yaml", BOOK), "--layer", "acme"]
    ids = [row["price_id"] for row in rows("list", *book, *NOW)]
    assert ids == ["in", "out"]
    assert [row["price_id"] for row in rows("list", *book, "--at", "2026-12-01")] == ["in", "out-2"]


def test_list_filters_by_provider_model_and_meter() -> None:
    found = rows("list", "--provider", "openai", "--model", "gpt-5-min*", "--meter", "tokens.output", *NOW)
    assert {(row["sku"], row["meter"]) for row in found} == {("gpt-5-mini", "tokens.output")}
    standard = [row for row in found if row["when"] == "service_tier=standard, processing=online"]
    assert [(row["amount"], row["per"], row["unit"]) for row in standard] == [("2", 1000000, "token")]


def test_list_knows_a_provider_by_every_spelling() -> None:
    arguments = ["--model", "gemini-2.5-flash", "--meter", "tokens.output", *NOW]
    assert rows("list", "--provider", "gcp.vertex_ai", *arguments) == rows("list", "--provider", "google", *arguments)


def test_list_prints_every_format(write: Write) -> None:
    arguments = ["list", "--book", write("acme.yaml", BOOK), "--layer", "acme", *NOW]
    table = run(*arguments).stdout
    assert "1 / 1000000 token" in table
    assert "until 2026-12-01" in table
    found = list(csv.DictReader(io.StringIO(run(*arguments, "--format", "csv").stdout)))
    assert [row["until"] for row in found] == ["", "2026-12-01"]
    assert run(*arguments, "--format", "markdown").stdout.startswith("| book | provider |")


def test_a_long_list_says_that_it_is_cut() -> None:
    result = run("list", "--provider", "openai", *NOW)
    assert "200 of " in result.stderr
    assert len(rows("list", "--provider", "openai", *NOW)) > 200
    assert len(rows("list", "--provider", "openai", "--limit", "3", *NOW)) == 3


@pytest.mark.parametrize(
    ("arguments", "code", "line"),
    [
        (["--provider", "opnai"], 0, "No price in force matches. Did you mean openai"),
        (["--meter", "tokens.outptu"], 2, "error: --meter tokens.outptu: no such meter. Did you mean tokens.output"),
        (["--layer", "infra"], 2, "error: --layer infra: no such book. Did you mean infrastructure?"),
        (["--at", "noon"], 2, "error: --at noon: not an instant. Write it like 2026-11-20T12:00:00Z."),
    ],
)
def test_list_says_what_was_typed_wrong(arguments: list[str], code: int, line: str) -> None:
    result = run("list", *arguments)
    assert (result.exit_code, result.stdout) == (code, "")
    assert result.stderr.startswith(line)


# -- show -----------------------------------------------------------------------------------------------------------


def test_show_has_the_past_the_future_and_what_was_cancelled(write: Write) -> None:
    found = rows("show", "acme/m", "--book", write("acme.yaml", BOOK))
    assert [(row["price_id"], row["from"], row["until"], row["status"]) for row in found] == [
        ("in", None, None, "active"),
        ("out", None, "2026-12-01", "active"),
        ("out-2", "2026-12-01", None, "active"),
        ("gone", None, None, "cancelled"),
    ]


def test_show_finds_a_model_with_and_without_its_provider() -> None:
    with_prefix = rows("show", "openai/gpt-5-mini")
    assert {row["provider"] for row in with_prefix} == {"openai"}
    assert rows("show", "gpt-5-mini", "--provider", "azure.ai.openai")
    everywhere = {row["provider"] for row in rows("show", "gpt-5-mini")}
    assert "openai" in everywhere


def test_show_tells_hours_and_source_for_people() -> None:
    shown = run("show", "deepseek/deepseek-v4-pro").stdout
    assert "mon-fri 09:00-12:00 14:00-18:00 Asia/Shanghai" in shown
    assert "source: https://api-docs.deepseek.com" in shown


def test_show_finds_machines_and_devices() -> None:
    assert {row["meter"] for row in rows("show", "NVIDIA L4")} == {"gpu.seconds"}
    assert "cpu.seconds" in {row["meter"] for row in rows("show", "m5.xlarge")}


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("gpt-5-mni", "Did you mean gpt-5-mini"),
        ("opnai/gpt-5", "No book has prices of opnai. Did you mean openai"),
        ("H100", "Did you mean nvidia h100"),
    ],
)
def test_show_of_an_unknown_name_suggests_another_and_has_its_own_exit_code(name: str, hint: str) -> None:
    result = run("show", name)
    assert (result.exit_code, result.stdout) == (3, "")
    assert result.stderr.startswith(f"error: no price of {name} is known. ")
    assert hint in result.stderr


# -- check ----------------------------------------------------------------------------------------------------------


def test_a_good_book_is_called_good(write: Write) -> None:
    result = run("check", write("acme.yaml", BOOK), *NOW)
    assert result.exit_code == 0
    assert "Nothing to complain of." in result.stdout
    assert "4 prices" in result.stdout


def test_a_broken_book_is_an_error_with_file_line_field_and_reason(write: Write) -> None:
    book = write("acme.yaml", "prices:\n  - {meter: tokens.output, amount: much}\n")
    result = run("check", book)
    assert result.exit_code == 1
    assert f"error: {book}:2: prices[0].amount: 'much' is not a decimal number." in result.stdout
    (finding,) = rows("check", book)
    assert (finding["level"], finding["what"]) == ("error", book)


def one(provider: str, sku: str, meter: str, **more: str) -> str:
    fields = {"provider": provider, "sku": sku, "meter": meter, "amount": "1", "per": "1000", **more}
    return "  - {" + ", ".join(f"{key}: {value}" for key, value in fields.items()) + "}\n"


@pytest.mark.parametrize(
    ("entries", "finding"),
    [
        (one("openai", "gpt-5-mni", "requests"), "Is it meant to be gpt-5-mini"),
        (
            one("acme", "m", "tokens.input.uncached"),
            "it has a price for tokens.input.uncached and none for tokens.output: calls will be partial.",
        ),
        (
            one("acme", "m", "requests", id="r", status="announced", effective="[2026-11-01, null]"),
            "it was announced for 2026-11-01, which is past.",
        ),
        (
            one("acme", "m", "requests", source="{url: 'https://acme.example', retrieved_at: 2026-01-01}"),
            "read on 2026-01-01, more than 180 days ago. Look again at https://acme.example.",
        ),
        (
            one("acme", "m", "requests", effective="[null, 2026-10-01]"),
            "requests has no price since 2026-10-01.",
        ),
        (
            one("openai", "gpt-5-mini", "tokens.output") + one("openai", "gpt-5-mini", "tokens.input.uncached"),
            "the prices of tokens.input.cache_read",
        ),
    ],
)
def test_what_looks_like_a_mistake_is_warned_of_and_fails_only_if_asked_to(
    write: Write, entries: str, finding: str
) -> None:
    book = write("acme.yaml", "prices:\n" + entries)
    result = run("check", book, *NOW)
    assert result.exit_code == 0
    assert finding in result.stdout
    assert run("check", book, *NOW, "--strict").exit_code == 1


@pytest.mark.parametrize(
    ("book", "finding"),
    [
        (
            "aliases: [{ref: chat, provider: azure, sku: azure/gpt-4oo}]",
            "chat: it is an alias of azure/gpt-4oo, and no",
        ),
        ("adjustments: [{id: ea, match: {provider: opnai}, percent: -5}]", "ea: no book has prices of opnai. Did you"),
        ("adjustments: [{id: c, match: {provider: aws}, commitment: 5}]", "Nothing to complain of."),
        ("aliases: [{ref: chat, provider: azure, sku: azure.ai.openai/gpt-4o}]", "Nothing to complain of."),
    ],
)
def test_what_leads_nowhere_is_warned_of(write: Write, book: str, finding: str) -> None:
    assert finding in run("check", write("acme.yaml", book), *NOW).stdout


@pytest.mark.parametrize(
    "entries",
    [
        one("acme", "embed-m", "tokens.input.uncached"),
        one("openai", "gpt-5.9-mini", "requests"),
        one("acme", "m", "requests", status="announced", effective="[2027-01-01, null]"),
        one("acme", "m", "requests", source="{retrieved_at: 2026-11-01}"),
    ],
)
def test_what_is_only_unusual_is_not_warned_of(write: Write, entries: str) -> None:
    assert rows("check", write("acme.yaml", "prices:\n" + entries), *NOW) == []


def test_what_ships_can_be_used_and_its_corrections_are_needed() -> None:
    result = run("check", *NOW)
    assert result.exit_code == 0
    assert "error:" not in result.stdout
    assert "infrastructure" in result.stdout
    assert "corrections" in result.stdout


def test_a_correction_that_is_not_needed_any_more_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    needless = corrections.CaughtUp("fix/some-price", "openai", "m", "tokens.output", "was wrong")
    monkeypatch.setattr(corrections, "caught_up", lambda: [needless])
    assert ("warning", "fix/some-price") in [(row["level"], row["what"]) for row in rows("check", *NOW)]


# -- diff -----------------------------------------------------------------------------------------------------------

NEXT = """
prices:
  - {provider: acme, sku: m, meter: tokens.input.uncached, amount: 3, per: 1000000}
  - {provider: acme, sku: m, meter: tokens.output, amount: "0.003", per: 1000, effective: [null, 2026-12-01]}
  - {provider: acme, sku: m, meter: images, amount: "0.04"}
"""


def test_diff_tells_what_was_added_removed_and_changed_to_the_hundredth_of_a_percent(write: Write) -> None:
    found = rows("diff", write("old.yaml", BOOK), write("new.yaml", NEXT))
    assert [(row["change"], row["meter"], row["old"], row["new"], row["percent"]) for row in found] == [
        ("changed", "tokens.input.uncached", "1 / 1000000 token", "3 / 1000000 token", "+200.00"),
        ("changed", "tokens.output", "4 / 1000000 token", "0.003 / 1000 token", "-25.00"),
        ("added", "images", None, "0.04 / 1 image", None),
        ("removed", "tokens.output", "5 / 1000000 token", None, None),
        ("removed", "requests", "1 / 1 request", None, None),
    ]


def test_diff_at_an_instant_compares_what_is_in_force(write: Write) -> None:
    old, new = write("old.yaml", BOOK), write("new.yaml", NEXT.replace("effective: [null, 2026-12-01]", ""))
    found = rows("diff", old, new, "--at", "2026-12-24")
    output = [row for row in found if row["meter"] == "tokens.output"]
    assert [(row["old"], row["new"], row["percent"]) for row in output] == [
        ("5 / 1000000 token", "0.003 / 1000 token", "-40.00")
    ]
    assert not [row for row in found if row["meter"] == "requests"]


def test_a_third_is_rounded_half_to_even_and_the_same_price_in_other_units_is_no_change(write: Write) -> None:
    old = write("old.yaml", "prices:\n" + one("acme", "m", "requests", amount="3", per="1"))
    new = write("new.yaml", "prices:\n" + one("acme", "m", "requests", amount="4", per="1"))
    same = write("same.yaml", "prices:\n" + one("acme", "m", "requests", amount="3000", per="1000"))
    assert [row["percent"] for row in rows("diff", old, new)] == ["+33.33"]
    assert rows("diff", old, same) == []
    assert "No price is different." in run("diff", old, same).stderr


def test_a_book_is_compared_with_what_ships_price_by_price(write: Write) -> None:
    entry = "  - {provider: openai, sku: gpt-5-mini, meter: tokens.output, amount: 1, per: 1000000}\n"
    book = write("acme.yaml", "prices:\n" + entry + one("acme", "m", "requests"))
    found = rows("diff", "shipped", book, *NOW)
    assert [(row["change"], row["sku"], row["old"], row["percent"]) for row in found] == [
        ("changed", "openai/gpt-5-mini", "2 / 1000000 token", "-50.00"),
        ("added", "acme/m", None, None),
    ]
    assert [row["percent"] for row in rows("diff", book, "shipped", *NOW)] == ["+100.00", None]
    assert run("diff", "shipped", "shipped").exit_code == 2


def test_changed_tiers_are_told(write: Write) -> None:
    def book(name: str, above: int) -> str:
        tiers = f"{{mode: cliff, basis: request_input_tokens, steps: [{{above: {above}, amount: 2}}]}}"
        return write(name, "prices:\n" + one("acme", "m", "tokens.output", tiers=tiers))

    (row,) = rows("diff", book("old.yaml", 1000), book("new.yaml", 2000))
    assert (row["percent"], row["details"]) == ("+0.00", "tiers: above 1,000 2 → above 2,000 2")


def test_what_changes_beside_prices_is_told_too(write: Write) -> None:
    def book(name: str, percent: int, commitment: int, target: str) -> str:
        terms = f"""
        adjustments:
          - {{id: ea, match: {{provider: acme}}, percent: {percent}}}
          - {{id: commit, match: {{provider: acme}}, commitment: {commitment}}}
        aliases:
          - {{ref: chat, provider: acme, sku: acme/{target}}}
        """
        return write(name, textwrap.dedent(terms))

    old, new = book("old.yaml", -10, 100, "m-1"), book("new.yaml", -19, 150, "m-2")
    assert [(row["old"], row["new"], row["percent"]) for row in rows("diff", old, new)] == [
        ("adjustment × 0.9", "adjustment × 0.81", "-10.00"),
        ("commitment 100", "commitment 150", "+50.00"),
        ("alias of acme/m-1", "alias of acme/m-2", None),
    ]
    assert [row["change"] for row in rows("diff", "shipped", new, *NOW)] == ["added"] * 3


# -- import, schema -------------------------------------------------------------------------------------------------

VMS = """InstanceType,AcceleratorName,AcceleratorCount,vCPUs,MemoryGiB,Price,Region,SpotPrice
p5.48xlarge,H100,8,192,2048,55.04,us-east-1,20.1
m5.large,,,2,8,0.096,us-east-1,
x.weird,QPU,1,1,1,1,us-east-1,
"""


def test_a_catalogue_of_machines_becomes_a_book_that_prices_them(write: Write, tmp_path: Path) -> None:
    book = tmp_path / "aws.yaml"
    arguments = ["--cloud", "aws", "--retrieved-at", "2026-11-20", "-o", str(book)]
    result = run("import", "skypilot", write("vms.csv", VMS), *arguments)
    assert result.exit_code == 0
    assert "1 lines left out" in result.stderr
    assert "vms.csv:4: no driver's name is known for 'QPU'" in result.stderr
    found = rows("show", "NVIDIA H100 80GB HBM3", "--provider", "aws", "--book", str(book))
    mine = {row["price_id"]: (row["amount"], row["per"]) for row in found if row["book"] == "skypilot-aws"}
    assert mine["skypilot/aws/p5.48xlarge/us-east-1/on_demand"] == ("55.04", 8)


def test_without_a_file_the_book_is_printed(write: Write) -> None:
    result = run("import", "skypilot", write("vms.csv", VMS), "--cloud", "aws", "--region", "us-east-1")
    assert len(parse_layer(result.stdout.encode(), "-").rows) >= 3


def test_a_day_that_is_none_is_refused(write: Write) -> None:
    result = run("import", "skypilot", write("vms.csv", VMS), "--cloud", "aws", "--retrieved-at", "today")
    assert (result.exit_code, result.stderr) == (
        2,
        "error: --retrieved-at today: not a day. Write it like 2026-11-21.\n",
    )


def test_the_schema_is_printed_as_it_ships() -> None:
    schema = json.loads(run("schema").stdout)
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"


# -- breakeven ------------------------------------------------------------------------------------------------------

TCO = """
tco: {id: hall-2, device: NVIDIA H100 80GB HBM3, gpus: 8, capex: 280000, infrastructure: 0, residual: 0, months: 40,
  kw_per_gpu: 1, pue: 1, tariff: "0.1", staff: 0, space: 0, maintenance: 0, utilisation: "0.5"}
"""


def test_breakeven_answers_in_hours_and_months(write: Write) -> None:
    # 875 USD a month for each GPU whether it works or not; a cloud's hour saves 2.60 - 0.10 = 2.50: 350 hours.
    arguments = ["breakeven", write("tco.yaml", TCO), "--cloud-price", "2.6"]
    answer = json.loads(run(*arguments, "--format", "json").stdout)
    assert (answer["breakeven_hours"], answer["breakeven_utilisation_percent"]) == ("350.00", "47.95")
    assert answer["payback_months"] == "38.36"  # 280000 / (8 × 365 × 2.50)
    assert "break-even: 350 busy hours a month of one GPU, 47.9 % of them\n" in run(*arguments).stdout


def test_breakeven_takes_the_clouds_price_from_the_books(write: Write) -> None:
    tco = write("tco.yaml", TCO)
    machine = ["--cloud-provider", "aws", "--host-type", "p5.48xlarge", "--region", "us-east-1", *NOW]
    arguments = ["breakeven", tco, "--device", "NVIDIA H100 80GB HBM3", *machine]
    answer = json.loads(run(*arguments, "--format", "json").stdout)
    assert answer["cloud_hour"] == "6.880000"
    assert answer["cloud_price_id"].startswith("aws/p5.48xlarge/h100")
    unknown = run("breakeven", tco, "--device", "NVIDIA H101", *machine)
    assert unknown.exit_code == 3
    assert "error: NVIDIA H101: no price (unknown_device)." in unknown.stderr


def test_breakeven_that_never_comes_says_so(write: Write) -> None:
    shown = run("breakeven", write("tco.yaml", TCO), "--cloud-price", "0.05").stdout
    assert "break-even: never" in shown
    assert "payback: never" in shown


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ([], "Give the cloud's price"),
        (["--cloud-price", "2", "--device", "x"], "Give the cloud's price"),
        (["--cloud-price", "much"], "--cloud-price much: not a number."),
        (["--cloud-price", "-1"], "--cloud-price -1: an amount above 0 is needed."),
        (["--cloud-price", "2", "--hours", "800"], "--hours 800: 800 hours a month are not between 0 and 730."),
    ],
)
def test_breakeven_says_what_was_typed_wrong(write: Write, arguments: list[str], line: str) -> None:
    result = run("breakeven", write("tco.yaml", TCO), *arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"error: {line}")


def test_owned_machines_become_a_book(write: Write) -> None:
    result = run("import", "tco", write("tco.yaml", TCO))
    (row,) = parse_layer(result.stdout.encode(), "-").rows
    assert (row.kind, row.amount, row.unit) == ("amortised", Decimal("1.298630136986"), "hour")


def test_a_broken_file_is_the_error_that_the_command_line_prints(write: Write) -> None:
    error = run("breakeven", write("tco.yaml", "tco: {id: x}\n"), "--cloud-price", "2").exception
    assert isinstance(error, BookError)
    assert "tco: 'device' is missing" in str(error)


# -- settle ---------------------------------------------------------------------------------------------------------

TERMS = """
price_book: {id: acme, version: 1}
adjustments:
  - {id: commit, match: {provider: openai}, commitment: "100", effective: [2026-11-01, 2026-12-01]}
  - {id: volume, match: {provider: openai},
     volume: {basis: cost, mode: graduated, steps: [{above: 40, percent: -50}]}}
"""


@pytest.fixture
def ledger(store: Any, store_url: str, ledger_rows: Callable[..., Any]) -> str:
    output, fees = ("tokens.output", "model", "30", "priced"), ("requests", "model", "20", "priced")
    unknown = ("images", "model", None, "unpriced")
    rows = [
        {"charges": [output, fees, unknown]},
        {"charges": [output], "provider": "anthropic"},
        {"charges": [output], "start_time": datetime(2026, 12, 1, tzinfo=UTC)},
        {"charges": [output], "cost_status": "rollup"},
        {"charges": [], "cost_status": "unpriced"},
    ]
    store.insert("ledger", ledger_rows(rows), "t")
    store.close()
    return store_url


def test_settle_counts_a_month_of_the_ledger_once(write: Write, ledger: str) -> None:
    book = write("acme.yaml", TERMS)
    found = {row["term"]: row for row in rows("settle", book, "--month", "2026-11", "--store", ledger)}
    # 30 + 20 USD at OpenAI in November; a half off the 10 above 40; 45 of the 100 committed are used.
    assert found["volume"]["worth"] == "-5.000000000000"
    assert found["commit"]["worth"] == "55.000000000000"
    assert found["commit"]["ineligible"] == "30.000000000000"
    assert found["commit"]["utilisation"] == "9/20"
    assert sum(Decimal(share["worth"]) for share in found["volume"]["shares"]) == Decimal(-5)
    assert found["volume"]["unpriced"] == 1


def test_settle_says_how_it_came_about(write: Write, ledger: str) -> None:
    shown = run("settle", write("acme.yaml", TERMS), "--month", "2026-11", "--store", ledger).stdout
    assert "45 of 45 USD eligible cost are covered" in shown
    assert "Contracted cost of the period 80 USD, terms 50 USD: 130 USD.\n" in shown
    assert "Not in it: 1 totals without a price, and 1 calls that told no usage.\n" in shown


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--month", "November"], "--month November: 'November' is no month."),
        ([], "Give the period"),
        (["--month", "2026-11", "--since", "2026-11-01"], "Give the period"),
        (["--since", "2026-11-02", "--until", "2026-11-01"], "--until 2026-11-01: it is not after"),
    ],
)
def test_settle_says_what_was_typed_wrong(write: Write, arguments: list[str], line: str) -> None:
    result = run("settle", write("acme.yaml", TERMS), *arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"error: {line}")


YEAR = """
adjustments:
  - {id: year, match: {provider: openai}, commitment: "120000", effective: [2026-01-01, 2027-01-01]}
  - {id: free, match: {provider: aws, meter: network.egress.bytes}, allotment: 5, unit: GB}
"""


@pytest.mark.parametrize("period", [["--month", "2026-11"], ["--since", "2026-06-01", "--until", "2027-01-01"]])
def test_a_commitment_for_a_year_is_not_owed_for_a_part_of_it(write: Write, ledger: str, period: list[str]) -> None:
    book = write("acme.yaml", YEAR + "  - {id: volume, volume: {steps: [{above: 1, percent: -1}]}}\n")
    result = run("settle", book, *period, "--store", ledger)
    assert "year: " in " ".join((result.stdout + result.stderr).split())
    assert "it is for 2026-01-01 until 2027-01-01, as a whole" in " ".join((result.stdout + result.stderr).split())
    assert "owed" not in result.stdout


def test_a_term_is_settled_over_what_it_is_for_and_the_others_are_named(write: Write, ledger: str) -> None:
    book = write("acme.yaml", YEAR)
    found = {row["term"]: row for row in rows("settle", book, "--month", "2026-11", "--store", ledger)}
    assert (found["free"]["worth"], found["year"]["worth"], found["year"]["cost"]) == ("0.000000000000", None, None)
    assert found["year"]["reason"] == (
        "not settled for this period; it is for 2026-01-01 until 2027-01-01, as a whole: "
        "settle it with --since 2026-01-01 --until 2027-01-01"
    )
    whole = ("--since", "2026-01-01", "--until", "2027-01-01", "--store", ledger)
    found = {row["term"]: row for row in rows("settle", book, *whole)}
    # 50 USD in November and 30 in December.
    assert (found["year"]["worth"], found["free"]["worth"]) == ("119920.000000000000", None)
    assert found["free"]["reason"].endswith("it is for a calendar month: settle it with --month")


def test_terms_for_ten_days_and_for_the_month_do_not_keep_each_other_from_being_settled(
    write: Write, ledger: str
) -> None:
    days = '  - {id: days, match: {provider: openai}, commitment: "60", effective: [2026-11-01, 2026-11-11]}\n'
    book = write("acme.yaml", YEAR + days)
    month = {row["term"]: row["worth"] for row in rows("settle", book, "--month", "2026-11", "--store", ledger)}
    assert month == {"free": "0.000000000000", "days": None, "year": None}
    ten = ("--since", "2026-11-01", "--until", "2026-11-11", "--store", ledger)
    assert {row["term"]: row["worth"] for row in rows("settle", book, *ten)} == {
        "days": "10.000000000000",
        "free": None,
        "year": None,
    }


def test_a_commitment_for_a_year_counts_what_the_months_terms_leave(write: Write, ledger: str) -> None:
    book = write("acme.yaml", YEAR + "  - {id: half, volume: {mode: cliff, steps: [{above: 40, percent: -50}]}}\n")
    whole = ("--since", "2026-01-01", "--until", "2027-01-01", "--store", ledger)
    found = {row["term"]: row for row in rows("settle", book, *whole)}
    # November's 50 USD at OpenAI and 30 at Anthropic are halved; December's 30 USD reach no step.
    assert (found["year"]["cost"], found["half"]["worth"]) == ("55.000000000000", None)
    part = YEAR + "  - {id: half, volume: {steps: [{above: 40, percent: -50}]}, effective: [2026-10-10, null]}\n"
    result = run("settle", write("part.yaml", part), *whole)
    assert result.exit_code == 2, "what half of October is worth is not known"
    assert "year: it comes after half, whose credits in this period are not known." in result.stderr
    days = '  - {id: days, match: {provider: openai}, commitment: "60", effective: [2026-11-01, 2026-11-11]}\n'
    mixed = write("mixed.yaml", "adjustments:\n  - {id: half, volume: {steps: [{above: 40, percent: -50}]}}\n" + days)
    result = run("settle", mixed, "--since", "2026-11-01", "--until", "2026-11-11", "--store", ledger)
    assert result.exit_code == 2
    assert "days: it comes after half, whose credits in this period are not known." in result.stderr


def test_what_is_free_by_the_month_is_settled_by_the_month(write: Write, ledger: str) -> None:
    free = "adjustments: [{id: free, match: {provider: aws, meter: network.egress.bytes}, allotment: 5, unit: GB}]"
    result = run("settle", write("a.yaml", free), "--since", "2026-11-01", "--until", "2026-11-15")
    assert result.exit_code == 2
    assert "free: it is for a calendar month: settle it with --month." in result.stderr
    month = ("--since", "2026-11-01", "--until", "2026-12-01", "--store", ledger)
    assert [row["worth"] for row in rows("settle", write("a.yaml", free), *month)] == ["0.000000000000"]
    late = free.replace("unit: GB", "unit: GB, effective: [2026-11-10, null]")
    result = run("settle", write("late.yaml", late), "--month", "2026-11")
    assert "holds in a part of this one: let it begin and end with a month." in result.stderr


def test_a_book_without_terms_has_nothing_to_settle(write: Write) -> None:
    result = run("settle", write("acme.yaml", BOOK), "--month", "2026-11")
    assert result.exit_code == 2
    assert "no volume, commitment or allotment is in force" in result.stderr


def test_every_command_has_help_with_an_example() -> None:
    for command in ("list", "show", "check", "diff", "breakeven", "settle", "schema"):
        assert f"Example: tollspan prices {command}" in " ".join(run(command, "--help").stdout.split())


def test_check_takes_any_age(write: Write) -> None:
    result = run("check", write("acme.yaml", BOOK), "--older-than", "99999999999999")
    assert result.exception is None
