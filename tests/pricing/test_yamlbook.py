"""A user's book: what it means, and one line with file, line, field, reason and hint when it means nothing."""

from __future__ import annotations

import re
import textwrap
from datetime import date
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tollspan.pricing.yamlbook as yamlbook
from tollspan.pricing import BookError, PriceEngine, Selectors, load_book
from tollspan.pricing.book import TableLayer
from tollspan.pricing.rows import PriceRow
from tollspan.pricing.schedule import DAY, WEEK, Schedule
from tollspan.pricing.yamlbook import parse_layer

from .books import INPUT, NOON, OUTPUT, book_of, price

HOUR: Final = DAY // 24

GOOD = f"""\
    price_book: {{id: acme, version: 14, currency: USD}}
    prices:
      - {{provider: acme, sku: m, meter: {INPUT}, amount: 1.30, per: 1000000}}
"""

EUR = """\
exchange_rates:
  - {currency: EUR, usd: 1.1, effective: [2026-01-01, 2026-07-01]}
"""


def layer_of(text: str) -> TableLayer:
    return parse_layer(textwrap.dedent(text).encode(), "book.yaml")


def tokens(fields: str) -> str:
    """A book with one price of output tokens."""
    return f"prices:\n  - {{meter: tokens.output, {fields}}}\n"


def rows_of(fields: str, before: str = "") -> tuple[PriceRow, ...]:
    return layer_of(before + tokens(fields)).rows


P = "prices: [{meter: tokens.output, amount: 1}]\n"

SYNTAX: Final = "syntax"
"""What is not YAML, or not what other parsers of YAML read."""
SHAPE: Final = "shape"
"""What the schema refuses too."""
SENSE: Final = "sense"
"""What only the reader can know to be wrong."""

BAD: Final = [
    (
        "prices: {a: 1]\n",
        "1: not valid YAML: did not find expected ',' or '}'.",
        SYNTAX,
    ),
    (
        "prices:\n  - {sku: *m, amount: 1}\n",
        "2: not valid YAML: found undefined alias. Quote a name that begins with '*'.",
        SYNTAX,
    ),
    (
        "- a\n",
        ("1: expected a mapping with price_book, calendars, exchange_rates, aliases, prices, factors, adjustments."),
        SHAPE,
    ),
    (
        "",
        ("1: expected a mapping with price_book, calendars, exchange_rates, aliases, prices, factors, adjustments."),
        SHAPE,
    ),
    (
        "prices: []\n",
        "1: the book holds no prices and no aliases. List rows under 'prices:'.",
        SHAPE,
    ),
    (
        "prices: [1]\n",
        (
            "1: prices[0]: expected a mapping with id, provider, sku, meter, amount, currency, per, unit, "
            "effective, windows, when, tiers, minimum, kind, status, source."
        ),
        SHAPE,
    ),
    (
        "prices: {}\n",
        "1: prices: expected a list.",
        SHAPE,
    ),
    (
        "price: []\n",
        "1: price: unknown field. Did you mean prices, price_book?",
        SHAPE,
    ),
    (
        "price_book: {id: ''}\n" + P,
        "1: price_book.id: expected a value.",
        SHAPE,
    ),
    (
        "price_book: {version: 13, supersedes: 13}\n" + P,
        "1: price_book.supersedes: version '13' supersedes itself. Raise 'version'.",
        SENSE,
    ),
    (
        "price_book: {known_at: yesterday}\n" + P,
        "1: price_book.known_at: 'yesterday' is not an instant. Write it like 2026-11-20T12:00:00Z.",
        SHAPE,
    ),
    (
        "price_book: {currency: EUR}\n" + P,
        "1: price_book.currency: no exchange rate for 'EUR'. List its rates under 'exchange_rates:'.",
        SENSE,
    ),
    (
        "price_book: {currency: EUR}\n" + EUR + P,
        (
            "4: prices[0].amount: no EUR exchange rate from the beginning until 2026-01-01. Add the rate, or "
            "bound 'effective'."
        ),
        SENSE,
    ),
    (
        "prices:\n  - meter: nope\n    amount: 1\n",
        "2: prices[0].meter: 'nope' is not a meter. The list of them is in tollspan.pricing.meters.",
        SHAPE,
    ),
    (
        "prices:\n  - {meter: tokens.inpt.uncached, amount: 1}\n",
        (
            "2: prices[0].meter: 'tokens.inpt.uncached' is not a meter. Did you mean tokens.input.uncached, "
            "tokens.input.cache_read, tokens.input.audio.cache_read?"
        ),
        SHAPE,
    ),
    (
        "prices:\n  - {amount: 1}\n",
        "2: prices[0]: 'meter' is missing.",
        SHAPE,
    ),
    (
        "prices:\n  - meter: tokens.output\n    amount: 1,32\n",
        "3: prices[0].amount: '1,32' is not a decimal number. Write it like 1.25.",
        SHAPE,
    ),
    (
        tokens("amount: -1"),
        "2: prices[0].amount: '-1' is not an amount of 0 or more.",
        SHAPE,
    ),
    (
        tokens("amount: NaN"),
        "2: prices[0].amount: 'NaN' is not an amount of 0 or more.",
        SHAPE,
    ),
    (
        tokens("amount: .inf"),
        "2: prices[0].amount: '.inf' is not an amount of 0 or more.",
        SYNTAX,
    ),
    (
        tokens("amount: [1]"),
        "2: prices[0].amount: expected a value.",
        SHAPE,
    ),
    (
        tokens("amount: 0.0000000000000000001"),
        ("2: prices[0].amount: '0.0000000000000000001' has more digits than a price can have. Use a larger 'per'."),
        SENSE,
    ),
    (
        tokens("amount: 100000"),
        (
            "2: prices[0].amount: 100000 USD per 1 token is more than any meter of tokens.output can cost. "
            "Check 'per' and 'unit'."
        ),
        SENSE,
    ),
    (
        tokens("amount: 1, per: 0"),
        "2: prices[0].per: '0' is not a whole number of at least 1.",
        SHAPE,
    ),
    (
        tokens("amount: 1, per: 1.5"),
        "2: prices[0].per: '1.5' is not a whole number of at least 1.",
        SHAPE,
    ),
    (
        tokens("amount: 1, per: 9999999999999999999"),
        "2: prices[0].per: '9999999999999999999' has more digits than a quantity can have.",
        SENSE,
    ),
    (
        tokens("amount: 1, unit: hour"),
        "2: prices[0].unit: 'hour' is not a unit of tokens.output. Use token.",
        SENSE,
    ),
    (
        tokens("amount: 1, unit: furlong"),
        "2: prices[0].unit: 'furlong' is not a unit of tokens.output. Use token.",
        SHAPE,
    ),
    (
        "prices:\n  - {meter: tokens.output}\n",
        ("2: prices[0]: 'amount' is missing. What costs nothing has amount 0; what is prepaid has kind included."),
        SHAPE,
    ),
    (
        tokens("amount: 1, amout: 2"),
        "2: prices[0].amout: unknown field. Did you mean amount?",
        SHAPE,
    ),
    (
        tokens("amount: 1, amount: 2"),
        "2: prices[0].amount: given twice.",
        SYNTAX,
    ),
    (
        tokens("amount: 1, when: {tier: flex}"),
        "2: prices[0].when.tier: unknown field. Did you mean service_tier?",
        SHAPE,
    ),
    (
        tokens("amount: 1, when: {region: []}"),
        "2: prices[0].when.region: expected a value, or a list of different ones.",
        SHAPE,
    ),
    (
        tokens("amount: 1, when: {region: [a, A]}"),
        "2: prices[0].when.region: expected a value, or a list of different ones.",
        SENSE,
    ),
    (
        tokens("amount: 1, when: {service_tier: batch}"),
        "2: prices[0].when.service_tier: no span has service_tier 'batch'. Write processing: batch.",
        SENSE,
    ),
    (
        tokens("amount: 1, when: {residency: global}"),
        (
            "2: prices[0].when.residency: no span has residency 'global'. A price that does not name a "
            "residency is the global one."
        ),
        SENSE,
    ),
    (
        tokens("amount: 1, when: {host_type: machines/n1}"),
        "2: prices[0].when.host_type: no span has host_type 'machines/n1'. Write n1.",
        SENSE,
    ),
    (
        tokens("amount: 1, effective: [2026-01-02T00:00:00, null]"),
        "2: prices[0].effective[0]: '2026-01-02T00:00:00' has no time zone. End it with Z or an offset.",
        SHAPE,
    ),
    (
        tokens("amount: 1, effective: [2026-02-30, null]"),
        "2: prices[0].effective[0]: there is no date 2026-02-30. Look at the calendar.",
        SENSE,
    ),
    (
        tokens("amount: 1, effective: [20260102, null]"),
        "2: prices[0].effective[0]: '20260102' is not an instant. Write it like 2026-11-20T12:00:00Z.",
        SHAPE,
    ),
    (
        tokens("amount: 1, effective: [0001-01-01, null]"),
        ("2: prices[0].effective[0]: '0001-01-01' is out of range. Leave a bound that is open out, or write null."),
        SENSE,
    ),
    (
        tokens("amount: 1, effective: [2026-01-02, 2026-01-01]"),
        (
            "2: prices[0].effective: ends before it begins. It lasts from the first instant until just "
            "before the second."
        ),
        SENSE,
    ),
    (
        tokens("amount: 1, effective: [2026-01-02]"),
        "2: prices[0].effective: expected [from, to], either may be null.",
        SHAPE,
    ),
    (
        tokens("amount: 1, windows: []"),
        "2: prices[0].windows: the list is empty. List at least one, or leave it out.",
        SHAPE,
    ),
    (
        tokens("amount: 1, windows: [{days: [someday]}]"),
        "2: prices[0].windows[0].days[0]: 'someday' is not a day. Use mon ... sun, or a range like mon-fri.",
        SHAPE,
    ),
    (
        tokens("amount: 1, windows: [{days: []}]"),
        "2: prices[0].windows[0].days: the list is empty. List at least one, or leave it out.",
        SHAPE,
    ),
    (
        tokens("amount: 1, windows: [{hours: ['25:00-26:00']}]"),
        ("2: prices[0].windows[0].hours[0]: '25:00-26:00' is not a stretch of a day. Write it like \"22:00-06:00\"."),
        SENSE,
    ),
    (
        tokens("amount: 1, windows: [{hours: ['09:00']}]"),
        "2: prices[0].windows[0].hours[0]: '09:00' is not a stretch of a day. Write it like \"22:00-06:00\".",
        SHAPE,
    ),
    (
        tokens("amount: 1, windows: [{hours: ['09:00-09:00']}]"),
        ("2: prices[0].windows[0].hours[0]: '09:00-09:00' is not a stretch of a day. Write it like \"22:00-06:00\"."),
        SENSE,
    ),
    (
        tokens("amount: 1, windows: [{tz: Europe/Berln}]"),
        (
            "2: prices[0].windows[0].tz: 'Europe/Berln' is not a time zone. Did you mean Europe/Berlin, "
            "Europe/Dublin, Europe/Helsinki?"
        ),
        SENSE,
    ),
    (
        tokens("amount: 1, windows: [{tz: UTC}, {tz: Asia/Shanghai}]"),
        ("2: prices[0].windows[1]: windows of one price have one 'tz' and one 'except'. Write a price for each."),
        SENSE,
    ),
    (
        tokens("amount: 1, windows: [{except: cn}]"),
        "2: prices[0].windows[0].except: no calendar 'cn'. List its dates under 'calendars:'.",
        SENSE,
    ),
    (
        "calendars: {cn-holidays: [2026-10-01]}\n" + tokens("amount: 1, windows: [{except: cn-holiday}]"),
        "3: prices[0].windows[0].except: no calendar 'cn-holiday'. Did you mean cn-holidays?",
        SENSE,
    ),
    (
        "calendars: {cn: [2026-02-29]}\n" + P,
        "1: calendars.cn[0]: there is no date 2026-02-29. Look at the calendar.",
        SENSE,
    ),
    (
        "calendars: {cn: [2026-10-08..2026-10-01]}\n" + P,
        "1: calendars.cn[0]: '2026-10-08..2026-10-01' ends before it begins.",
        SENSE,
    ),
    (
        "calendars: {cn: [2026-10-01..2126-10-01]}\n" + P,
        ("1: calendars.cn[0]: '2026-10-01..2126-10-01' is longer than ten years. List the dates that are meant."),
        SENSE,
    ),
    (
        "calendars: {cn: [1.10.2026]}\n" + P,
        "1: calendars.cn[0]: '1.10.2026' is not a date. Write it like 2026-10-01.",
        SHAPE,
    ),
    (
        "calendars: {cn: []}\n" + P,
        "1: calendars.cn: the list is empty. List at least one, or leave it out.",
        SHAPE,
    ),
    (
        "calendars: [2026-10-01]\n" + P,
        "1: calendars: expected a mapping of names.",
        SHAPE,
    ),
    (
        "prices:\n  - {meter: network.egress.bytes, sku: x, amount: 1}\n",
        ("2: prices[0].sku: network.egress.bytes has no SKU. Leave the field out; the provider names the price."),
        SENSE,
    ),
    (
        "prices:\n  - {meter: gpu.seconds, amount: 1, minimum: 0.0000000001}\n",
        "2: prices[0].minimum: 1E-10 is finer than gpu.seconds is measured, in steps of 1/1000000000 second.",
        SENSE,
    ),
    (
        tokens("amount: 1, tiers: {steps: [{above: 5, amount: 1}, {above: 5, amount: 2}]}"),
        "2: prices[0].tiers.steps[1].above: steps must ascend. Sort them by 'above'.",
        SENSE,
    ),
    (
        tokens("amount: 1, tiers: {steps: []}"),
        "2: prices[0].tiers.steps: the list is empty. List at least one, or leave it out.",
        SHAPE,
    ),
    (
        tokens("amount: 1, tiers: {steps: [{above: 5}]}"),
        "2: prices[0].tiers.steps[0]: 'amount' is missing.",
        SHAPE,
    ),
    (
        tokens("amount: 1, tiers: {mode: flat, steps: [{above: 5, amount: 1}]}"),
        "2: prices[0].tiers.mode: 'flat' is not one of cliff, graduated.",
        SHAPE,
    ),
    (
        tokens("amount: 1, tiers: {mode: graduated, basis: request_input_tokens, steps: [{above: 5, amount: 1}]}"),
        (
            "2: prices[0].tiers.basis: graduated tiers are not counted by request_input_tokens. graduated "
            "goes with basis: quantity."
        ),
        SHAPE,
    ),
    (
        tokens("amount: 1, tiers: {mode: cliff, basis: quantity, steps: [{above: 5, amount: 1}]}"),
        (
            "2: prices[0].tiers.basis: cliff tiers are not counted by quantity. cliff goes with basis: "
            "request_input_tokens."
        ),
        SHAPE,
    ),
    (
        tokens("amount: 1, kind: discount"),
        "2: prices[0].kind: 'discount' is not one of list, estimate, contract, amortised, included.",
        SHAPE,
    ),
    (
        tokens("amount: 1, status: planned"),
        "2: prices[0].status: 'planned' is not one of active, announced, cancelled, withdrawn.",
        SHAPE,
    ),
    (
        tokens("amount: 1, kind: included"),
        "2: prices[0].amount: what is included costs nothing. Leave the field out, or write another kind.",
        SHAPE,
    ),
    (
        tokens("kind: included, tiers: {steps: [{above: 5, amount: 1}]}"),
        "2: prices[0].tiers: what is included costs nothing. Leave the field out.",
        SHAPE,
    ),
    (
        tokens("amount: 1, source: {sha256: abc}"),
        "2: prices[0].source.sha256: is not a SHA-256. It has 64 hexadecimal digits.",
        SHAPE,
    ),
    (
        tokens("amount: 1, source: {retrieved_at: today}"),
        "2: prices[0].source.retrieved_at: 'today' is not an instant. Write it like 2026-11-20T12:00:00Z.",
        SHAPE,
    ),
    (
        tokens("amount: 1, currency: EUR"),
        "2: prices[0].currency: no exchange rate for 'EUR'. List its rates under 'exchange_rates:'.",
        SENSE,
    ),
    (
        EUR + tokens("amount: 1, currency: EUT"),
        "4: prices[0].currency: no exchange rate for 'EUT'. List its rates under 'exchange_rates:'.",
        SENSE,
    ),
    (
        EUR + tokens("amount: 1, currency: EUR, effective: [2026-01-01, null]"),
        "4: prices[0].amount: no EUR exchange rate from 2026-07-01. Add the rate, or bound 'effective'.",
        SENSE,
    ),
    (
        EUR + tokens("amount: 1, currency: EUR, effective: [null, 2026-07-01]"),
        (
            "4: prices[0].amount: no EUR exchange rate from the beginning until 2026-01-01. Add the rate, or "
            "bound 'effective'."
        ),
        SENSE,
    ),
    (
        EUR + tokens("amount: 1, currency: EUR"),
        (
            "4: prices[0].amount: no EUR exchange rate from the beginning until 2026-01-01. Add the rate, or "
            "bound 'effective'."
        ),
        SENSE,
    ),
    (
        EUR
        + "  - {currency: EUR, usd: 1.2, effective: [2026-08-01, null]}\n"
        + tokens("amount: 1, currency: EUR, effective: [2026-02-01, null]"),
        (
            "5: prices[0].amount: no EUR exchange rate from 2026-07-01 until 2026-08-01. Add the rate, or "
            "bound 'effective'."
        ),
        SENSE,
    ),
    (
        EUR + tokens("amount: 0.000000000000000001, currency: EUR, effective: [2026-02-01, 2026-03-01]"),
        (
            "4: prices[0].amount: 0.000000000000000001 EUR is 0.0000000000000000011 USD, which has more than "
            "18 decimals. Use a larger 'per', or a rate with fewer decimals."
        ),
        SENSE,
    ),
    (
        EUR + "  - {currency: EUR, usd: 1.2, effective: [2026-06-01, null]}\n" + P,
        "3: exchange_rates[1]: EUR has two rates at one time (line 2). Change one of the two.",
        SENSE,
    ),
    (
        "exchange_rates: [{currency: USD, usd: 1}]\n" + P,
        "1: exchange_rates[0].currency: USD is what prices are kept in. Leave the rate out.",
        SHAPE,
    ),
    (
        "exchange_rates: [{currency: euro, usd: 1}]\n" + P,
        "1: exchange_rates[0].currency: 'euro' is not a currency. Write its ISO 4217 code, like EUR.",
        SHAPE,
    ),
    (
        "exchange_rates: [{currency: EUR, usd: 0}]\n" + P,
        "1: exchange_rates[0].usd: '0' is not more than 0.",
        SENSE,
    ),
    (
        "exchange_rates: [{currency: EUR}]\n" + P,
        "1: exchange_rates[0]: 'usd' is missing.",
        SHAPE,
    ),
    (
        "aliases:\n  - {ref: a, sku: no-slash}\n",
        "2: aliases[0].sku: expected provider/sku. Write it like openai/gpt-5-mini.",
        SHAPE,
    ),
    (
        "aliases:\n  - {ref: a, sku: /b}\n",
        "2: aliases[0].sku: expected provider/sku. Write it like openai/gpt-5-mini.",
        SHAPE,
    ),
    (
        "aliases:\n  - {ref: a, sku: p/b, share: 1/0}\n",
        "2: aliases[0].share: '1/0' is not a share. Write it like 1/7.",
        SENSE,
    ),
    (
        "aliases:\n  - {ref: a, sku: p/b, share: 7/1}\n",
        "2: aliases[0].share: '7/1' is not a share. It is more than 0 and at most 1.",
        SENSE,
    ),
    (
        "aliases:\n  - {ref: a, sku: p/b, share: a seventh}\n",
        "2: aliases[0].share: 'a seventh' is not a share. Write it like 1/7.",
        SHAPE,
    ),
    (
        "aliases:\n  - {ref: a, sku: p/b, from: 2026-02-01, to: 2026-01-01}\n",
        "2: aliases[0]: ends before it begins. It lasts from the first instant until just before the second.",
        SENSE,
    ),
    (
        "factors:\n  - {percent: 10, factor: 1.1}\n",
        "2: factors[0]: expected one of percent, factor.",
        SHAPE,
    ),
    (
        "factors:\n  - {match: {sku: x}}\n",
        "2: factors[0]: expected one of percent, factor.",
        SHAPE,
    ),
    (
        "factors:\n  - {percent: -110}\n",
        "2: factors[0].percent: '-110' is out of range. percent: -10 takes a tenth off.",
        SENSE,
    ),
    (
        "factors:\n  - {percent: ten}\n",
        "2: factors[0].percent: 'ten' is not a decimal number. Write it like 1.25.",
        SHAPE,
    ),
    (
        "factors:\n  - {percent: 10, match: {meter: token}}\n",
        "2: factors[0].match.meter: no meter is called 'token'. Did you mean tokens.output?",
        SENSE,
    ),
    (
        "factors:\n  - {percent: 10, match: {model: x}}\n",
        "2: factors[0].match.model: unknown field. Known: provider, sku, meter.",
        SHAPE,
    ),
    (
        "adjustments:\n  - {id: ea}\n",
        "2: adjustments[0]: expected one of percent, factor, volume, commitment, allotment.",
        SHAPE,
    ),
    (
        "adjustments:\n  - {percent: -5, commitment: 10}\n",
        (
            "2: adjustments[0]: expected one of percent, factor, volume, commitment, allotment. Write an "
            "adjustment for each."
        ),
        SHAPE,
    ),
    (
        "adjustments:\n  - {percent: -5, unit: GB}\n",
        "2: adjustments[0].unit: a percentage has none. Leave the field out.",
        SHAPE,
    ),
    (
        "adjustments:\n  - {commitment: 0}\n",
        "2: adjustments[0].commitment: '0' is not more than 0.",
        SENSE,
    ),
    (
        "adjustments:\n  - {commitment: 5, unit: GB}\n",
        "2: adjustments[0].unit: a commitment is an amount of money. Leave the field out.",
        SHAPE,
    ),
    (
        "adjustments:\n  - {commitment: 5, when: {region: a}}\n",
        "2: adjustments[0].when: what is settled over a period has no conditions. Leave the field out.",
        SHAPE,
    ),
    (
        "adjustments:\n  - {commitment: 5, currency: EUR}\n",
        (
            "2: adjustments[0].currency: what is settled over a period is stated in USD, not in EUR. State "
            "the amount in USD and write currency: USD beside it."
        ),
        SENSE,
    ),
    (
        "price_book: {currency: EUR}\n" + EUR + "adjustments:\n  - {commitment: 5}\n",
        (
            "5: adjustments[0].commitment: what is settled over a period is stated in USD, not in EUR. State "
            "the amount in USD and write currency: USD beside it."
        ),
        SENSE,
    ),
    (
        "adjustments:\n  - {allotment: 5}\n",
        (
            "2: adjustments[0].allotment: the meters that match have different units: byte, byte-second, "
            "call, character, fetch, image, page, query, read, request, search, search unit, second, "
            "session, token, token-second, unit-second, write. Name one meter under 'match:'."
        ),
        SENSE,
    ),
    (
        "adjustments:\n  - {allotment: 5, match: {meter: tokens.output}, unit: GB}\n",
        "2: adjustments[0].unit: 'GB' is not a unit of tokens.output. Use token.",
        SENSE,
    ),
    (
        "adjustments:\n  - {allotment: 5, currency: USD}\n",
        "2: adjustments[0].currency: an allotment is a quantity. Leave the field out.",
        SHAPE,
    ),
    (
        "adjustments:\n  - {volume: {steps: [{above: 5, percent: -5}, {above: 5, percent: -7}]}}\n",
        "2: adjustments[0].volume.steps[1].above: steps must ascend. Sort them by 'above'.",
        SENSE,
    ),
    (
        "adjustments:\n  - {volume: {steps: []}}\n",
        "2: adjustments[0].volume.steps: the list is empty. List at least one, or leave it out.",
        SHAPE,
    ),
    (
        "adjustments:\n  - {volume: {basis: tokens, steps: [{above: 5, percent: -5}]}}\n",
        "2: adjustments[0].volume.basis: 'tokens' is not one of cost, quantity.",
        SHAPE,
    ),
    (
        "adjustments:\n  - {volume: {steps: [{above: 5}]}}\n",
        "2: adjustments[0].volume.steps[0]: expected one of percent, factor.",
        SHAPE,
    ),
]
"""Books that mean nothing, what is said about them behind the file's name, and how they are wrong."""


@pytest.mark.parametrize(("text", "message", "wrong"), BAD)
def test_a_broken_book_is_one_line_with_file_line_field_reason_and_hint(text: str, message: str, wrong: str) -> None:
    with pytest.raises(BookError) as raised:
        parse_layer(text.encode(), "book.yaml")
    assert str(raised.value) == f"book.yaml:{message}"
    assert "\n" not in str(raised.value)


ODD: Final = (
    *("null", "[]", "{}", "''", "-1", "0", "1e400", "1e-400", "NaN", "'*'", "2026-13-01", "9" * 30, "[1]", "{a: b}"),
    *("'\u0663'", "x/y", "1/0", "+", "1.2.3", "mon", "00:00", "true", "[null]", "0x10", "2026-01-01T00:00:00+99:00"),
    *("9999-12-31", "1677-01-01", "/etc/passwd", "'?'", "2026-01-01..", "..", "&a *a"),
)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_whatever_stands_in_a_book_it_loads_or_is_refused_in_one_line(data: st.DataObject) -> None:
    text = documented()
    values = [found.span() for found in re.finditer(r"(?<=[:,\[{] )[^\s,:\[\]{}#][^,:\[\]{}#\n]*(?=[,\]}\n])", text)]
    start, end = data.draw(st.sampled_from(values))
    text = text[:start] + data.draw(st.sampled_from(ODD)) + text[end:]
    refused = ""
    try:
        layer_of(text)
    except BookError as error:
        refused = str(error)
    assert not refused or re.fullmatch(r"book\.yaml:\d+: .+", refused)


def test_a_name_of_two_lines_is_still_one_line() -> None:
    with pytest.raises(BookError) as raised:
        layer_of('prices:\n  - {"a\\nb": 1}\n')
    assert str(raised.value).startswith("book.yaml:2: prices[0].a b: unknown field.")


def test_a_book_nested_deep_enough_to_break_the_parser_is_refused() -> None:
    with pytest.raises(BookError, match="nested more than 100 deep"):
        parse_layer(b"[" * 100_000 + b"]" * 100_000, "book.yaml")


def test_an_unquoted_amount_is_read_as_its_text() -> None:
    assert layer_of(GOOD).rows[0].amount.as_tuple() == Decimal("1.30").as_tuple()


def documented() -> str:
    """The book in the documentation of the format."""
    text = (yamlbook.__doc__ or "").split("The format::\n")[1].split("A window that")[0]
    return textwrap.dedent(text)


def test_the_format_in_the_documentation_loads_and_means_what_it_says() -> None:
    layer = layer_of(documented())
    peak, graduated, prepaid, spot, spot_later, *reserved = layer.rows
    assert peak.schedule is not None
    assert (peak.schedule.tz, peak.schedule.stretches[:2]) == (
        "Asia/Shanghai",
        ((9 * HOUR, 12 * HOUR), (14 * HOUR, 18 * HOUR)),
    )
    assert peak.schedule.exceptions == {date(2026, 10, day) for day in range(1, 9)} | {date(2027, 1, 1)}
    assert peak.when == {
        "service_tier": "standard",
        "processing": "online",
        "region": "us-east-1",
        "residency": "us",
    }
    assert (peak.steps[0].amount, peak.graduated, peak.source.retrieved_at) == (Decimal("2.64"), False, "2026-11-20")
    assert (graduated.graduated, graduated.status, graduated.steps[0].above) == (True, "announced", 9)
    assert (prepaid.kind, prepaid.amount) == ("included", 0)
    assert (spot.amount, spot_later.amount) == (Decimal("2.27472"), Decimal("2.29131"))
    assert {row.when["purchase"] for row in reserved} == {"reserved_1y"}
    assert {row.stated for row in layer.rows} == {"", "2.10 EUR"}
    assert [factor.factor for factor in (*layer.factors, *layer.adjustments)] == [
        Fraction(11, 10),
        Fraction(9, 10),
        Fraction(17, 20),
    ]
    volume, commitment, egress = layer.terms
    assert volume.steps == ((Decimal(1000), Fraction(19, 20)), (Decimal(9000), Fraction(9, 10)))
    assert (commitment.amount, egress.amount) == (Decimal(50000), Decimal(100 * 10**9))
    assert layer.known_at == "2026-11-20T09:00:00Z"
    (part,) = layer.aliases("device", "aws", "nvidia h100 80gb hbm3 mig 1g.10gb")
    assert part.share == Fraction(1, 7)


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


def test_a_file_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(BookError, match="cannot read the price book: No such file"):
        load_book(tmp_path / "absent.yaml")


def test_a_row_for_each_value_of_a_condition() -> None:
    rows = rows_of("id: x, amount: 1, when: {region: [a, b], purchase: [spot, on-demand], residency: '*'}")
    assert [(row.id, row.when) for row in rows] == [
        ("x@a@spot", {"region": "a", "purchase": "spot"}),
        ("x@a@on_demand", {"region": "a", "purchase": "on_demand"}),
        ("x@b@spot", {"region": "b", "purchase": "spot"}),
        ("x@b@on_demand", {"region": "b", "purchase": "on_demand"}),
    ]


@pytest.mark.parametrize(
    ("tiers", "graduated"),
    [
        ("steps", False),
        ("mode: cliff, steps", False),
        ("basis: request_input_tokens, steps", False),
        ("mode: graduated, steps", True),
        ("basis: quantity, steps", True),
        ("basis: quantity, mode: graduated, steps", True),
    ],
)
def test_basis_and_mode_of_tiers_each_tell_the_other(tiers: str, graduated: bool) -> None:
    (row,) = rows_of(f"amount: 2, tiers: {{{tiers}: [{{above: 5, amount: 1}}]}}")
    assert row.graduated is graduated


def test_hours_past_midnight_and_days_past_sunday_wrap() -> None:
    (row,) = rows_of("amount: 1, windows: [{days: [sun], hours: ['22:00-06:00']}]")
    assert row.schedule == Schedule(((0, 6 * HOUR), (6 * DAY + 22 * HOUR, WEEK)))


def test_windows_that_touch_or_overlap_are_one_stretch() -> None:
    (row,) = rows_of("amount: 1, windows: [{days: [mon], hours: ['09:00-12:00', '12:00-13:00']}, {days: [mon-tue]}]")
    assert row.schedule == Schedule(((0, 2 * DAY),))


def test_dates_may_stand_where_a_calendar_is_named() -> None:
    (row,) = rows_of("amount: 1, windows: [{tz: Z, except: [2026-12-25..2026-12-26]}]")
    assert row.schedule == Schedule(((0, WEEK),), "UTC", frozenset({date(2026, 12, 25), date(2026, 12, 26)}))


def test_a_price_says_its_own_currency_or_has_the_book_s() -> None:
    header = "price_book: {currency: EUR}\n" + EUR
    bounds = "effective: [2026-01-01, 2026-07-01]"
    (own,) = rows_of(f"amount: 2, currency: USD, {bounds}", header)
    (book,) = rows_of(f"amount: 2, {bounds}", header)
    assert (own.amount, own.stated) == (2, "")
    assert (book.amount, book.stated) == (Decimal("2.2"), "2 EUR")


def test_two_spellings_of_a_provider_tie_like_one() -> None:
    fields = f"sku: m, meter: {INPUT}, amount: 1"
    with pytest.raises(BookError, match=r"book\.yaml:3: prices\[1\]: .*ties with .* \(line 2\)"):
        layer_of(f"prices:\n  - {{provider: azure, {fields}}}\n  - {{provider: azure.ai.openai, {fields}}}\n")
    with pytest.raises(BookError, match=r"book\.yaml:3: aliases\[1\]: 'x' already stands for 'a'"):
        layer_of("aliases:\n  - {ref: x, provider: google, sku: p/a}\n  - {ref: x, provider: gcp.gemini, sku: p/b}\n")


def test_an_id_stands_for_one_thing() -> None:
    with pytest.raises(BookError) as raised:
        layer_of(tokens("id: x, amount: 1") + "factors:\n  - {id: x, percent: 10}\n")
    assert str(raised.value) == "book.yaml:4: factors[0]: the id 'x' is used twice (line 2). Change one of the two."


def test_an_alias_s_share_is_exact_and_multiplies_the_price() -> None:
    book = book_of(
        "aliases:\n  - {ref: slice, sku: '*/whole', share: 1/7}\n"
        "prices:\n  - {sku: whole, meter: gpu.seconds, amount: 7, unit: hour}\n"
    )
    assert price(book, {"gpu.seconds": 3600 * 10**9}, device="slice").cost == 1


def test_units_of_an_allotment_are_exact() -> None:
    layer = layer_of(
        "adjustments:\n"
        "  - {allotment: 12345678901234567890.123456789, match: {meter: network.egress.bytes}, unit: TiB}\n"
    )
    assert Fraction(layer.terms[0].amount) == Fraction("12345678901234567890.123456789") * 2**40


def test_conditions_that_multiply_without_end_are_refused_before_they_do() -> None:
    keys = ("region", "cloud_provider", "host_type", "device", "residency")
    when = ", ".join(f"{key}: [{', '.join(f'{key}{n}' for n in range(40))}]" for key in keys)
    for entry in (
        f"prices: [{{meter: requests, amount: 1, when: {{{when}}}}}]",
        f"factors: [{{percent: 1, when: {{{when}}}}}]",
    ):
        with pytest.raises(BookError, match=r"when: the conditions stand for 102400000 rows, more than 10000\."):
            layer_of(entry)


@pytest.mark.parametrize("amount", ["1e99999999999999999999999", "1e-99999999999999999999999", "-1e99999999999999999"])
def test_an_exponent_that_no_number_has_is_an_amount_that_no_price_has(amount: str) -> None:
    with pytest.raises(BookError, match="has more digits than a price can have"):
        layer_of(f"prices: [{{meter: requests, amount: {amount}}}]")


def test_nothing_is_nothing_at_any_exponent() -> None:
    (row,) = layer_of("prices: [{meter: requests, amount: 0e999999999}]").rows
    assert (row.amount, row.rates[0][1].num) == (0, 0)
