"""``tollspan price``: answers for people and for programs, one line for what was typed wrong, codes for scripts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner, Result

from tollspan.pricing import BookError
from tollspan.processor.cli.price import price

app = typer.Typer()
app.command()(price)

CALL = ["--provider", "openai", "--model", "gpt-5-mini", "--at", "2026-11-20T12:00:00Z"]
USAGE = ["--usage", "tokens.input.uncached=1200", "--usage", "tokens.output=100"]


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def answer(*arguments: str) -> dict[str, Any]:
    result = run(*arguments, "--format", "json")
    body: dict[str, Any] = json.loads(result.stdout)
    return body


def test_the_call_of_the_readme_costs_what_the_price_list_says() -> None:
    body = answer(*CALL, *USAGE, "--service-tier", "default")
    assert {key: body[key] for key in ("cost", "currency", "status", "reasons")} == {
        "cost": "0.000500000000",
        "currency": "USD",
        "status": "priced",
        "reasons": [],
    }
    assert [(charge["meter"], charge["cost"]) for charge in body["charges"]] == [
        ("tokens.input.uncached", "0.000300000000"),
        ("tokens.output", "0.000200000000"),
    ]
    assert run(*CALL, *USAGE).exit_code == 0


def test_the_table_is_for_people() -> None:
    shown = run(*CALL, *USAGE).stdout
    assert "0.0005 USD: priced (tier_assumed)" in shown
    assert "tokens.output" in shown


def test_the_explanation_says_which_price_from_where_why_and_how() -> None:
    shown = run(*CALL, *USAGE, "--explain").stdout
    for part in (
        "1,200 token × 0.25 USD per 1000000 token = 0.0003 USD",
        "price openai/gpt-5-mini/tokens.input.uncached, found by: exact model",
        "source: https://",
        "genai-prices==",
        "@flex#2026-10-12, 0.125 USD per 1000000 token: asks for service_tier = flex",
        "openai/gpt-5-mini/tokens.input.uncached, 0.25 USD per 1000000 token: chosen",
    ):
        assert part in shown


def test_the_explanation_is_in_the_json_too() -> None:
    explained = answer(*CALL, *USAGE, "--explain")["explanation"]["tokens.output"]
    assert [item["verdict"] for item in explained if item["price_id"] == "openai/gpt-5-mini/tokens.output"] == [
        "chosen"
    ]


def test_an_unknown_model_has_no_cost_a_suggestion_and_its_own_exit_code() -> None:
    result = run("--provider", "openai", "--model", "gpt-5-mni", *USAGE, "--format", "json")
    body = json.loads(result.stdout)
    assert (result.exit_code, body["cost"], body["status"], body["reasons"]) == (3, None, "unpriced", ["unknown_model"])
    assert "gpt-5-mini" in body["suggestion"]
    shown = run("--provider", "openai", "--model", "gpt-5-mni", *USAGE).stdout
    assert "no cost: unpriced (unknown_model)" in shown


def test_a_lower_bound_is_called_one() -> None:
    result = run(
        "--provider", "openai", "--model", "gpt-4", "--usage", "tokens.output=100", "--usage", "web_searches=5"
    )
    assert result.exit_code == 3
    assert "at least 0.006 USD: partial (no_meter_price)" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (
            ["--usage", "tokens.inpt.uncached=1"],
            "error: --usage tokens.inpt.uncached=1: 'tokens.inpt.uncached' is not a meter.",
        ),
        (["--usage", "tokens.output"], "error: --usage tokens.output: expected METER=QUANTITY"),
        (["--usage", "tokens.output=many"], "error: --usage tokens.output=many: 'many' is not a number."),
        (
            ["--usage", "tokens.output=1.5"],
            "error: --usage tokens.output=1.5: 1.5 is finer than tokens.output is measured",
        ),
        (["--usage", "tokens.output=NaN"], "error: --usage tokens.output=NaN: NaN is not a quantity of tokens.output"),
        (["--usage", "tokens.output=-1"], "error: --usage tokens.output=-1: a quantity is 0 or more."),
        (["--usage", "tokens.output=1", "--usage", "tokens.output=2"], "is given twice"),
        (["--usage", "tokens.output=1", "--at", "noon"], "error: --at noon: not an instant."),
        (["--usage", "tokens.output=1", "--at", "2026-11-20T12:00:00"], "no time zone"),
    ],
)
def test_what_was_typed_wrong_is_one_line_and_exit_code_2(arguments: list[str], line: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert line in result.stderr
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""


def test_a_misspelt_meter_is_answered_with_the_nearest() -> None:
    assert "Did you mean tokens.input.uncached" in run("--usage", "tokens.inpt.uncached=1").stderr


def test_a_book_of_ones_own_stands_in_front(tmp_path: Path) -> None:
    book = tmp_path / "acme.yaml"
    book.write_text("prices:\n  - {provider: openai, sku: gpt-5-mini, meter: tokens.output, amount: 1, per: 1000000}\n")
    body = answer(*CALL, *USAGE, "--book", str(book))
    assert [charge["unit_price"] for charge in body["charges"]] == ["0.25", "1"]
    assert body["book_version"].startswith("acme@")


def test_a_broken_book_is_the_error_that_the_command_line_prints(tmp_path: Path) -> None:
    book = tmp_path / "acme.yaml"
    book.write_text("prices:\n  - {meter: tokens.output, amount: much}\n")
    error = run(*CALL, *USAGE, "--book", str(book)).exception
    assert isinstance(error, BookError)
    assert str(error).startswith(f"{book}:2: prices[0].amount: 'much' is not a decimal number.")
