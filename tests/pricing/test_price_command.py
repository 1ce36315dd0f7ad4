"""``tollspan price``: answers for people and for programs, one line for what was typed wrong, codes for scripts."""

from __future__ import annotations

import json
from decimal import Decimal
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
    assert [item["price_id"] for item in explained["considered"] if item["verdict"] == "chosen"] == [
        "openai/gpt-5-mini/tokens.output"
    ]
    (level,) = explained["levels"]
    assert (level["level"], level["cost"], level["source"]["via"][:12]) == (
        "effective",
        "0.000200000000",
        "genai-prices",
    )


def test_an_unknown_model_has_no_cost_a_suggestion_and_its_own_exit_code() -> None:
    result = run("--provider", "openai", "--model", "gpt-5-mni", *USAGE, "--format", "json")
    body = json.loads(result.stdout)
    assert (result.exit_code, body["cost"], body["status"], body["reasons"]) == (3, None, "unpriced", ["unknown_model"])
    assert "gpt-5-mini" in body["suggestion"]
    shown = run("--provider", "openai", "--model", "gpt-5-mni", *USAGE).stdout
    assert "no cost: unpriced (unknown_model)" in shown


def test_a_lower_bound_is_called_one() -> None:
    result = run("--provider", "openai", "--model", "gpt-4", "--usage", "tokens.output=100", "--usage", "pages=5")
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
        (
            ["--usage", "tokens.output=1e999999999"],
            "error: --usage tokens.output=1e999999999: a number with more than 40 digits.",
        ),
        (["--usage", "gpu.seconds=1e-999999999"], "a number with more than 40 digits."),
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


def test_a_misspelt_model_of_no_provider_is_told_who_lists_it() -> None:
    body = answer("--model", "gpt-5-mini", *USAGE)
    assert (body["cost"], body["status"]) == (None, "unpriced")
    assert "openai" in body["suggestion"]


CONTRACT = """
price_book: {id: acme, version: 1}
prices:
  - {id: acme/out, provider: acme, sku: m, meter: tokens.output, amount: 10, per: 1000000}
factors:
  - {id: eu-uplift, match: {provider: acme}, when: {residency: eu}, percent: 10}
adjustments:
  - {id: ea, match: {provider: acme}, percent: -20}
"""


@pytest.fixture
def contract(tmp_path: Path) -> list[str]:
    book = tmp_path / "acme.yaml"
    book.write_text(CONTRACT)
    return ["--provider", "acme", "--model", "m", "--usage", "tokens.output=1000000", "--book", str(book)]


def test_a_contract_shows_what_it_saves(contract: list[str]) -> None:
    shown = run(*contract, "--residency", "eu").stdout
    assert "8.8 USD: priced" in shown
    assert "contracted 8.8 USD, list 11 USD" in shown
    body = answer(*contract, "--residency", "eu")
    assert [body[key] for key in ("cost", "contracted_cost", "list_cost")] == [
        "8.800000000000",
        "8.800000000000",
        "11.000000000000",
    ]


def test_the_explanation_multiplies_step_by_step(contract: list[str]) -> None:
    shown = run(*contract, "--residency", "eu", "--explain").stdout
    assert "effective: 1,000,000 token × 10 USD per 1000000 token × 1.1 (eu-uplift) × 0.8 (ea) = 8.8 USD" in shown
    assert "list: 1,000,000 token × 10 USD per 1000000 token × 1.1 (eu-uplift) = 11 USD" in shown


@pytest.mark.parametrize("form", ["csv", "markdown"])
def test_the_explanation_is_rows_where_rows_are_asked_for(contract: list[str], form: str) -> None:
    first, *rest = run(*contract, "--explain", "--format", form).stdout.splitlines()
    assert "verdict" in first
    assert any("acme/out" in line and "chosen" in line for line in rest)


def test_a_spot_machine_is_not_priced_on_demand() -> None:
    machine = ["--cloud-provider", "aws", "--device", "NVIDIA H100 80GB HBM3", "--host-type", "p5.48xlarge"]
    call = [*machine, "--region", "us-east-1", "--usage", "gpu.seconds=3600", "--at", "2026-11-20T12:00:00Z"]
    assert answer(*call)["cost"] == answer(*call, "--purchase", "on_demand")["cost"] == "6.880000000000"
    spot = answer(*call, "--purchase", "never-heard-of")
    assert (spot["cost"], spot["reasons"]) == (None, ["no_price_for_purchase"])
    assert "on_demand" in spot["suggestion"]


OPENAI = {
    "model": "gpt-5-mini",
    "service_tier": "default",
    "usage": {
        "prompt_tokens": 1200,
        "completion_tokens": 100,
        "total_tokens": 1300,
        "prompt_tokens_details": {"cached_tokens": 1000},
        "completion_tokens_details": {"reasoning_tokens": 60},
    },
}
AT = ["--at", "2026-11-20T12:00:00Z"]


def raw(tmp_path: Path, body: object) -> list[str]:
    file = tmp_path / "usage.json"
    file.write_text(body if isinstance(body, str) else json.dumps(body))
    return ["--raw", str(file), *AT]


def test_a_whole_response_is_priced_as_it_is(tmp_path: Path) -> None:
    body = answer("--provider", "openai", *raw(tmp_path, OPENAI))
    assert {charge["meter"]: charge["quantity"] for charge in body["charges"]} == {
        "tokens.input.uncached": 200,
        "tokens.input.cache_read": 1000,
        "tokens.output": 40,
        "tokens.output.reasoning": 60,
    }
    assert (body["cost"], body["convention"], body["reasons"]) == ("0.000275000000", "otel_inclusive", [])


def test_a_usage_object_alone_comes_from_stdin() -> None:
    usage = json.dumps(OPENAI["usage"])
    arguments = ["--provider", "openai", "--model", "gpt-5-mini", "--raw", "-", *AT]
    result = CliRunner().invoke(app, arguments, input=usage)
    assert result.exit_code == 0
    assert "0.000275 USD: priced" in result.stdout
    assert "counted as: otel_inclusive" in result.stdout


def test_the_providers_own_figure_stands_beside_ours_and_never_in_its_place(tmp_path: Path) -> None:
    usage = '{"prompt_tokens": 1000, "completion_tokens": 0, "cost": 0.0002}'
    arguments = ["--provider", "openrouter", "--model", "openai/gpt-5-mini", *raw(tmp_path, usage)]
    body = answer(*arguments)
    assert (body["reported_cost"], body["cost"]) == ("0.0002", "0.000250000000")
    assert "reported by the provider: 0.0002 USD; ours is 25 % away" in run(*arguments).stdout


def test_usage_that_cannot_be_right_is_not_priced(tmp_path: Path) -> None:
    usage = {"prompt_tokens": 10, "prompt_tokens_details": {"cached_tokens": 11}}
    arguments = ["--provider", "openai", "--model", "gpt-5-mini", *raw(tmp_path, usage)]
    result = run(*arguments)
    assert result.exit_code == 3
    assert "no cost: invalid (usage_inconsistent)" in result.stdout


def test_counts_that_nobody_reads_are_named(tmp_path: Path) -> None:
    usage = {"prompt_tokens": 10, "completion_tokens": 1, "hologram_tokens": 7}
    arguments = ["--provider", "openai", "--model", "gpt-5-mini", *raw(tmp_path, usage)]
    assert "not read, and may be billed: hologram_tokens" in run(*arguments).stdout


@pytest.mark.parametrize(("content", "why"), [("{", "not JSON"), ("[1]", "expected a JSON object"), (None, "No such")])
def test_a_usage_file_that_cannot_be_read_is_one_line(tmp_path: Path, content: str | None, why: str) -> None:
    file = tmp_path / "usage.json"
    if content is not None:
        file.write_text(content)
    result = run("--provider", "openai", "--raw", str(file))
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert result.stderr.startswith(f"error: --raw {file}: ")
    assert why in result.stderr


def test_usage_is_needed_and_only_once(tmp_path: Path) -> None:
    for arguments in ([], [*USAGE, *raw(tmp_path, OPENAI)]):
        result = run("--provider", "openai", *arguments)
        assert result.exit_code == 2
        assert "Give what was used" in result.stderr


@pytest.mark.parametrize("at", ["9999-12-31T23:59:59Z", "0001-01-01T00:00:00+14:00"])
def test_an_instant_beyond_all_prices_is_one_line(at: str) -> None:
    result = run("--provider", "deepseek", "--model", "deepseek-v4-pro", "--usage", "tokens.output=1", "--at", at)
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert f"--at {at}: out of range. Prices are known from 1678 to 2261." in result.stderr


@pytest.mark.parametrize("number", ["١٠", "1_000", "１", "+-1", "1 0"])
def test_a_quantity_is_written_in_plain_digits(number: str) -> None:
    result = run("--provider", "openai", "--model", "gpt-5-mini", "--usage", f"tokens.output={number}")
    assert result.exit_code == 2
    assert "is not a number." in result.stderr


def test_a_figure_far_from_ours_is_told_to_the_hundredth(tmp_path: Path) -> None:
    usage = '{"prompt_tokens": 1000, "completion_tokens": 0, "cost": 1e-30}'
    arguments = ["--provider", "openrouter", "--model", "openai/gpt-5-mini", *raw(tmp_path, usage)]
    result = run(*arguments)
    assert result.exit_code == 0
    assert "; ours is 24999999999999999999999999900 % away" in result.stdout


def test_images_are_counted_where_the_response_has_no_usage(tmp_path: Path) -> None:
    body = {"created": 1713833628, "data": [{"url": "https://example.test/1"}, {"url": "https://example.test/2"}]}
    found = answer("--provider", "openai", "--model", "dall-e-3", *raw(tmp_path, body))
    assert {charge["meter"]: charge["quantity"] for charge in found["charges"]} == {"images": 2}
    assert found["unknown_counts"] == []


@pytest.mark.parametrize("model", ["sonar", "sonar-pro", "sonar-reasoning", "sonar-reasoning-pro"])
def test_what_perplexity_s_request_fee_covers_is_not_missing(tmp_path: Path, model: str) -> None:
    usage = {"prompt_tokens": 10, "completion_tokens": 20, "total_tokens": 30, "num_search_queries": 3}
    found = answer("--provider", "perplexity", "--model", model, *raw(tmp_path, usage))
    charges = {charge["meter"]: charge for charge in found["charges"]}
    assert (found["status"], found["reasons"], charges["web_searches"]["status"]) == ("priced", [], "included")
    assert found["cost"] == found["list_cost"]
    assert Decimal(found["cost"]) > Decimal(charges["requests"]["cost"]) > 0
