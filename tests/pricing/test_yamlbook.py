"""A user's book: what it means, and one line with file, line, field and reason when it means nothing."""

from __future__ import annotations

import textwrap
from decimal import Decimal
from pathlib import Path

import pytest

import tollspan.pricing.yamlbook as yamlbook
from tollspan.pricing import BookError, PriceEngine, Selectors, load_book
from tollspan.pricing.book import DAY, WEEK
from tollspan.pricing.overlaps import patterns_meet
from tollspan.pricing.yamlbook import parse_layer

from .books import INPUT, NOON, OUTPUT, book_of, price

GOOD = f"""\
    price_book: {{id: acme, version: 14, currency: USD}}
    prices:
      - {{provider: acme, sku: m, meter: {INPUT}, amount: 1.30, per: 1000000}}
"""


def parse(text: str) -> None:
    parse_layer(textwrap.dedent(text).encode(), "book.yaml")


def row(fields: str) -> str:
    return f"prices:\n  - {{{fields}}}\n"


def test_an_unquoted_amount_is_read_as_its_text() -> None:
    assert book_of(GOOD).layers[0].rows[0].amount == Decimal("1.30")


def test_the_format_in_the_documentation_loads() -> None:
    documented = (yamlbook.__doc__ or "").split("The format::\n")[1].split("Under ``when``")[0]
    layer = parse_layer(textwrap.dedent(documented).encode(), "documented.yaml")
    (price_row,) = layer.rows
    assert price_row.windows[0] == (DAY // 24, DAY // 6)
    assert price_row.when == {"service_tier": "standard", "processing": "online", "region": "us-east-1"}
    assert price_row.steps[0].amount == Decimal("2.64")


def test_the_version_follows_the_content() -> None:
    one, other = book_of(GOOD).version, book_of(GOOD.replace("1.30", "1.31")).version
    assert one.startswith("acme@14.")
    assert one != other


def test_a_book_stands_in_front_of_what_ships(tmp_path: Path) -> None:
    file = tmp_path / "own.yaml"
    file.write_text(f"prices:\n  - {{provider: openai, sku: gpt-5-mini, meter: {INPUT}, amount: 0.20, per: 1000000}}\n")
    selectors = Selectors(provider="openai", model="gpt-5-mini", service_tier="default")
    charges = PriceEngine(load_book(file)).price({INPUT: 1000, OUTPUT: 1000}, at=NOON, selectors=selectors)
    assert [charge.unit_price for charge in charges.charges] == [Decimal("0.20"), Decimal("2")]
    alone = PriceEngine(load_book(file, shipped=False)).price({OUTPUT: 1000}, at=NOON, selectors=selectors)
    assert (alone.status, alone.charges[0].reasons) == ("unpriced", ("no_meter_price",))


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        ("prices: {a: 1]", 1, "not valid YAML"),
        ("prices:\n  - {sku: *m, amount: 1}\n", 2, "not valid YAML"),
        ("- a\n", 1, "expected a mapping"),
        ("prices: []\n", 1, "no prices"),
        ("price_book: {currency: EUR}\nprices: []\n", 1, "price_book.currency: only USD"),
        ("prices:\n  - meter: nope\n    amount: 1\n", 2, "prices[0].meter: 'nope' is not a meter"),
        (
            "prices:\n  - meter: tokens.output\n    amount: 1,32\n",
            3,
            "prices[0].amount: '1,32' is not a decimal number",
        ),
        (row("meter: tokens.output, amount: -1"), 2, "is not an amount of 0 or more"),
        (row("meter: tokens.output, amount: NaN"), 2, "is not an amount of 0 or more"),
        (row("meter: tokens.output, amount: 0.0000000000000000001"), 2, "more digits"),
        (row("meter: tokens.output, amount: 100000"), 2, "more than any meter"),
        (row("meter: tokens.output, amount: 1, per: 0"), 2, "prices[0].per: '0' is not a whole number"),
        (row("meter: tokens.output, amount: 1, unit: hour"), 2, "'hour' is not a unit of tokens.output"),
        (row("meter: tokens.output"), 2, "prices[0]: 'amount' is missing"),
        (row("meter: tokens.output, amount: 1, amout: 2"), 2, "prices[0].amout: unknown field"),
        (row("meter: tokens.output, amount: 1, amount: 2"), 2, "prices[0].amount: given twice"),
        (row("meter: tokens.output, amount: 1, when: {tier: flex}"), 2, "prices[0].when.tier: unknown field"),
        (row("meter: tokens.output, amount: 1, effective: [2026-01-02T00:00:00, null]"), 2, "has no time zone"),
        (row("meter: tokens.output, amount: 1, effective: [2026-01-02, 2026-01-01]"), 2, "ends before it begins"),
        (row("meter: tokens.output, amount: 1, effective: [2026-01-02]"), 2, "expected [from, to]"),
        (row("meter: tokens.output, amount: 1, windows: [{days: [someday]}]"), 2, "'someday' is not a day"),
        (row("meter: tokens.output, amount: 1, windows: [{hours: ['25:00-26:00']}]"), 2, "is not a stretch of a day"),
        (row("meter: tokens.output, amount: 1, windows: [{tz: Asia/Shanghai}]"), 2, "only UTC"),
        (row("meter: network.egress.bytes, sku: x, amount: 1"), 2, "has no SKU"),
        (
            row("meter: tokens.output, amount: 1, tiers: {steps: [{above: 5, amount: 1}, {above: 5, amount: 2}]}"),
            2,
            "ascend",
        ),
        (row("meter: tokens.output, amount: 1, tiers: {mode: graduated, steps: []}"), 2, "is not one of cliff"),
        ("aliases:\n  - {ref: a, sku: no-slash}\n", 2, "aliases[0].sku: expected provider/sku"),
    ],
)
def test_a_broken_book_is_one_line_with_file_line_field_and_reason(text: str, line: int, reason: str) -> None:
    with pytest.raises(BookError) as raised:
        parse(text)
    assert raised.value.message.startswith(f"book.yaml:{line}: ")
    assert reason in raised.value.message
    assert "\n" not in str(raised.value)


def test_a_misspelt_meter_is_answered_with_the_nearest() -> None:
    with pytest.raises(BookError) as raised:
        parse(row("meter: tokens.inpt.uncached, amount: 1"))
    assert INPUT in raised.value.hint


def test_a_file_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(BookError, match="cannot read the price book: No such file"):
        load_book(tmp_path / "absent.yaml")


TIED = f"""\
prices:
  - {{provider: p, sku: "%s", meter: {INPUT}, amount: 1%s}}
  - {{provider: p, sku: "%s", meter: {INPUT}, amount: 2%s}}
"""


@pytest.mark.parametrize(
    ("first", "first_more", "second", "second_more"),
    [
        ("m", "", "m", ""),
        ("m", ", effective: [2026-01-01, 2026-03-01]", "m", ", effective: [2026-02-28, null]"),
        ("m", ", when: {region: a}", "m", ", when: {service_tier: flex}"),
        ("m", ", windows: [{hours: ['01:00-04:00']}]", "m", ", windows: [{days: [sun], hours: ['03:59-05:00']}]"),
        ("m*", "", "*m", ""),
        ("a-*", "", "?-b*", ""),
    ],
)
def test_rows_that_would_tie_are_an_error_at_load(first: str, first_more: str, second: str, second_more: str) -> None:
    with pytest.raises(BookError, match=r"book\.yaml:3: prices\[1\]: .*ties with .* \(line 2\)"):
        parse(TIED % (first, first_more, second, second_more))


@pytest.mark.parametrize(
    ("first", "first_more", "second", "second_more"),
    [
        ("m", "", "n", ""),
        ("m", ", effective: [2026-01-01, 2026-03-01]", "m", ", effective: [2026-03-01, null]"),
        ("m", ", when: {region: a}", "m", ", when: {region: b}"),
        ("m", "", "m", ", when: {region: b}"),
        ("m", "", "m", ", windows: [{hours: ['01:00-04:00']}]"),
        ("m*", "", "n*", ""),
        ("m*", "", "mm*", ""),
    ],
)
def test_rows_of_which_one_wins_are_not(first: str, first_more: str, second: str, second_more: str) -> None:
    parse(TIED % (first, first_more, second, second_more))


def test_a_row_for_both_conditions_settles_a_tie() -> None:
    rows = TIED % ("m", ", when: {region: a}", "m", ", when: {service_tier: flex}")
    book = book_of(
        rows + f"  - {{provider: p, sku: m, meter: {INPUT}, amount: 3, when: {{region: a, service_tier: flex}}}}\n"
    )
    assert price(book, {INPUT: 1}, provider="p", model="m", region="a", service_tier="flex").cost == 3


def test_two_spellings_of_a_provider_tie_like_one() -> None:
    fields = f"sku: m, meter: {INPUT}, amount: 1"
    with pytest.raises(BookError, match=r"book\.yaml:3: prices\[1\]: .*ties with .* \(line 2\)"):
        parse(f"prices:\n  - {{provider: azure, {fields}}}\n  - {{provider: azure.ai.openai, {fields}}}\n")
    with pytest.raises(BookError, match=r"book\.yaml:3: aliases\[1\]: 'x' already stands for 'a'"):
        parse(
            "aliases:\n  - {ref: x, provider: google, sku: p/a}\n  - {ref: x, provider: gcp.gemini, sku: p/b}\n"
            + row(fields)
        )


def test_an_alias_with_two_meanings_at_one_time_is_an_error() -> None:
    text = "aliases:\n  - {ref: latest, sku: p/a}\n  - {ref: latest, sku: p/b, from: 2026-01-01}\n"
    with pytest.raises(BookError, match=r"book\.yaml:3: aliases\[1\]: 'latest' already stands for 'a'"):
        parse(text)


def test_hours_past_midnight_and_days_past_sunday_wrap() -> None:
    layer = parse_layer(
        row("meter: tokens.output, amount: 1, windows: [{days: [sun], hours: ['22:00-06:00']}]").encode(), "book.yaml"
    )
    assert layer.rows[0].windows == ((0, 6 * DAY // 24), (6 * DAY + 22 * DAY // 24, WEEK))


@pytest.mark.parametrize(
    ("one", "other", "meet"),
    [
        ("a*", "*a", True),
        ("a*b", "ab", True),
        ("a?", "a", False),
        ("a*c", "b*", False),
        ("*", "", True),
        ("a*b*", "*b?", True),
    ],
)
def test_patterns_meet_when_a_name_matches_both(one: str, other: str, meet: bool) -> None:
    assert patterns_meet(one, other) is meet
    assert patterns_meet(other, one) is meet
