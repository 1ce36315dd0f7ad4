"""Ambiguity is found when a book loads: what would tie for some span is an error, and what would not is none."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tollspan.pricing import BookError, overlaps
from tollspan.pricing.overlaps import patterns_meet, schedules_meet, uncovered
from tollspan.pricing.patterns import compile_pattern
from tollspan.pricing.rows import ALWAYS, Interval
from tollspan.pricing.schedule import DAY, Schedule
from tollspan.pricing.yamlbook import parse_layer

from .books import INPUT, book_of, price

HOUR = DAY // 24
TIED = f"""\
prices:
  - {{provider: p, sku: "%s", meter: {INPUT}, amount: 1%s}}
  - {{provider: p, sku: "%s", meter: {INPUT}, amount: 2%s}}
"""


def parse(text: str) -> None:
    parse_layer(text.encode(), "book.yaml")


@pytest.mark.parametrize(
    ("first", "first_more", "second", "second_more"),
    [
        ("m", "", "m", ""),
        ("m", ", effective: [2026-01-01, 2026-03-01]", "m", ", effective: [2026-02-28, null]"),
        ("m", ", when: {region: a}", "m", ", when: {service_tier: flex}"),
        ("m", ", when: {region: a, purchase: spot}", "m", ", when: {region: a, service_tier: flex}"),
        ("m", ", when: {purchase: on-demand}", "m", ", when: {purchase: on_demand}"),
        ("m", ", kind: list", "m", ", kind: estimate"),
        ("m", ", kind: amortised", "m", ", kind: included"),
        ("m", ", status: announced", "m", ""),
        ("m", ", windows: [{hours: ['01:00-04:00']}]", "m", ", windows: [{days: [sun], hours: ['03:59-05:00']}]"),
        # 09:00 in Shanghai is 01:00 in UTC
        (
            "m",
            ", windows: [{hours: ['01:00-02:00']}]",
            "m",
            ", windows: [{tz: Asia/Shanghai, hours: ['09:59-12:00']}]",
        ),
        # Berlin is an hour before London, but for no hour of any year two
        (
            "m",
            ", windows: [{tz: Europe/London, hours: ['08:00-09:00']}]",
            "m",
            ", windows: [{tz: Europe/Berlin, hours: ['09:59-10:00']}]",
        ),
        # from one Sunday in March to another, New York is four hours before London, and else five
        (
            "m",
            ", windows: [{tz: Europe/London, hours: ['16:00-17:00']}]",
            "m",
            ", windows: [{tz: America/New_York, hours: ['12:00-13:00']}]",
        ),
        ("m*", "", "*m", ""),
        ("a-*", "", "?-b*", ""),
        ("m*", ", kind: contract", "*m", ""),
        ("m*", ", when: {region: a}", "*m", ""),
    ],
)
def test_rows_that_would_tie_are_an_error_at_load(first: str, first_more: str, second: str, second_more: str) -> None:
    text = (TIED % (first, first_more, second, second_more)).replace("amount: 2, kind: included", "kind: included")
    with pytest.raises(BookError, match=r"book\.yaml:3: prices\[1\]: .*ties with .* \(line 2\)"):
        parse(text)


@pytest.mark.parametrize(
    ("first", "first_more", "second", "second_more"),
    [
        ("m", "", "n", ""),
        ("m", ", effective: [2026-01-01, 2026-03-01]", "m", ", effective: [2026-03-01, null]"),
        ("m", ", when: {region: a}", "m", ", when: {region: b}"),
        ("m", ", when: {region: a, purchase: spot}", "m", ", when: {region: b, service_tier: flex}"),
        ("m", "", "m", ", when: {region: b}"),
        ("m", "", "m", ", windows: [{hours: ['01:00-04:00']}]"),
        ("m", ", when: {region: a}", "m", ", windows: [{hours: ['01:00-04:00']}]"),
        ("m", "", "m", ", kind: contract"),
        ("m", ", kind: amortised", "m", ", kind: contract"),
        ("m", ", status: cancelled", "m", ""),
        (
            "m",
            ", windows: [{hours: ['01:00-02:00']}]",
            "m",
            ", windows: [{tz: Asia/Shanghai, hours: ['10:00-12:00']}]",
        ),
        (
            "m",
            ", windows: [{tz: Europe/London, hours: ['08:00-09:00']}]",
            "m",
            ", windows: [{tz: Europe/Berlin, hours: ['10:00-11:00']}]",
        ),
        # in July there are five hours between them
        (
            "m",
            ", effective: [2026-07-01, 2026-08-01], windows: [{tz: Europe/London, hours: ['16:00-17:00']}]",
            "m",
            ", windows: [{tz: America/New_York, hours: ['12:00-13:00']}]",
        ),
        ("m*", "", "n*", ""),
        ("m*", "", "mm*", ""),
    ],
)
def test_rows_of_which_one_wins_are_not(first: str, first_more: str, second: str, second_more: str) -> None:
    parse(TIED % (first, first_more, second, second_more))


def test_a_row_for_both_conditions_settles_a_tie() -> None:
    rows = TIED % ("m", ", when: {region: a}", "m", ", when: {service_tier: flex}")
    both = f"  - {{provider: p, sku: m, meter: {INPUT}, amount: 3, when: {{region: a, service_tier: flex}}%s}}\n"
    book = book_of(rows + both % "")
    assert price(book, {INPUT: 1}, provider="p", model="m", region="a", service_tier="flex").cost == 3
    successive = both % ", effective: [null, 2026-01-01]" + both % ", effective: [2026-01-01, null]"
    assert price(book_of(rows + successive), {INPUT: 1}, provider="p", model="m", region="a").cost == 1


@pytest.mark.parametrize(
    "more",
    [
        ", effective: [2026-01-01, null]",  # not before
        ", windows: [{hours: ['01:00-02:00']}]",  # not at noon
        ", kind: contract, status: cancelled",  # never
        ", status: cancelled",
    ],
)
def test_a_row_that_settles_a_tie_only_at_times_does_not(more: str) -> None:
    rows = TIED % ("m", ", when: {region: a}", "m", ", when: {service_tier: flex}")
    both = f"  - {{provider: p, sku: m, meter: {INPUT}, amount: 3, when: {{region: a, service_tier: flex}}{more}}}\n"
    with pytest.raises(BookError, match="for a span with region: a, service_tier: flex"):
        parse(rows + both)


def test_the_earlier_line_is_named_first() -> None:
    text = (
        f"prices:\n  - {{id: x, sku: m, meter: {INPUT}, amount: 1, when: {{region: a}}}}\n"
        f"  - {{id: y, sku: m, meter: {INPUT}, amount: 1, when: {{purchase: spot}}}}\n"
        f"  - {{id: z, sku: m, meter: {INPUT}, amount: 1, when: {{region: b}}}}\n"
    )
    with pytest.raises(BookError) as raised:
        parse(text)
    assert str(raised.value) == (
        "book.yaml:3: prices[1]: it ties with 'x' for a span with purchase: spot, region: a (line 2). "
        "Change one of the two."
    )


ADJUSTED = "adjustments:\n  - {id: a, match: {%s}, percent: -1%s}\n  - {id: b, match: {%s}, percent: -2%s}\n"


@pytest.mark.parametrize(
    ("first", "first_more", "second", "second_more"),
    [
        ("", "", "", ""),
        ("provider: p", "", "provider: p", ""),
        ("provider: azure", "", "provider: azure_openai", ""),
        ("sku: gpt-*", "", "sku: '*mini'", ""),
        ("meter: tokens.*", "", "meter: '*.output'", ""),
        ("provider: p", ", when: {region: a}", "provider: p", ", when: {purchase: spot}"),
        ("provider: p", ", effective: [null, 2026-01-02]", "provider: p", ", effective: [2026-01-01, null]"),
    ],
)
def test_adjustments_of_which_neither_is_more_specific_are_an_error(
    first: str, first_more: str, second: str, second_more: str
) -> None:
    with pytest.raises(BookError) as raised:
        parse(ADJUSTED % (first, first_more, second, second_more))
    assert str(raised.value) == (
        "book.yaml:3: adjustments[1]: it ties with 'a': neither is more specific where both apply (line 2). "
        "Change one of the two."
    )


@pytest.mark.parametrize(
    ("first", "first_more", "second", "second_more"),
    [
        ("", "", "provider: p", ""),
        ("provider: p", "", "provider: q", ""),
        ("sku: gpt-*", "", "sku: gpt-5*", ""),
        ("meter: tokens.input.*", "", "meter: tokens.output*", ""),
        ("provider: p", ", when: {region: a}", "provider: p", ", when: {region: b}"),
        ("provider: p", ", effective: [null, 2026-01-01]", "provider: p", ", effective: [2026-01-01, null]"),
    ],
)
def test_adjustments_of_which_one_applies_are_not(first: str, first_more: str, second: str, second_more: str) -> None:
    parse(ADJUSTED % (first, first_more, second, second_more))


def test_two_volume_discounts_on_one_cost_are_an_error_and_two_commitments_are_none() -> None:
    volume = "volume: {steps: [{above: 10, percent: -1}]}"
    with pytest.raises(BookError, match=r"adjustments\[2\]: it ties with 'a'"):
        parse(f"adjustments:\n  - {{id: a, {volume}}}\n  - {{id: c, commitment: 5}}\n  - {{id: b, {volume}}}\n")
    parse("adjustments:\n  - {commitment: 5}\n  - {commitment: 5}\n")


def test_an_alias_with_two_meanings_at_one_time_is_an_error() -> None:
    text = "aliases:\n  - {ref: latest, sku: p/a%s}\n  - {ref: latest, sku: p/b, from: 2026-01-01}\n"
    with pytest.raises(BookError, match=r"book\.yaml:3: aliases\[1\]: 'latest' already stands for 'a' at that time"):
        parse(text % "")
    parse(text % ", to: 2026-01-01")


def test_hours_are_compared_in_the_time_in_which_both_prices_hold() -> None:
    march = int(datetime(2026, 3, 8, tzinfo=UTC).timestamp()) * 10**9
    daily = Schedule(tuple((day * DAY + 16 * HOUR, day * DAY + 17 * HOUR) for day in range(7)), "Europe/London")
    other = Schedule(tuple((day * DAY + 12 * HOUR, day * DAY + 13 * HOUR) for day in range(7)), "America/New_York")
    assert schedules_meet(daily, other, Interval(march, march + 21 * DAY)) is True
    assert schedules_meet(daily, other, Interval(march + 30 * DAY, march + 60 * DAY)) is False
    assert schedules_meet(daily, other, Interval(None, march)) is True
    assert schedules_meet(daily, other, ALWAYS) is True
    noon = march + 12 * HOUR
    assert schedules_meet(daily, other, Interval(noon + 5 * HOUR, noon + 23 * HOUR)) is False
    assert schedules_meet(daily, other, Interval(noon + 5 * HOUR, noon + 29 * HOUR)) is True


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


@given(st.text("ab*?", max_size=5), st.text("ab*?", max_size=5), st.text("ab", max_size=6))
def test_no_name_matches_two_patterns_that_do_not_meet(one: str, other: str, name: str) -> None:
    if compile_pattern(one).fullmatch(name) and compile_pattern(other).fullmatch(name):
        assert patterns_meet(one, other)


bounds = st.one_of(st.none(), st.integers(0, 12))
intervals = st.tuples(bounds, bounds).filter(lambda b: b[0] is None or b[1] is None or b[0] < b[1])


@given(intervals, st.lists(intervals, max_size=4))
def test_gaps_are_what_no_part_holds(
    whole: tuple[int | None, int | None], parts: list[tuple[int | None, int | None]]
) -> None:
    gaps = list(uncovered(Interval(*whole), [Interval(*part) for part in parts]))
    for at in range(-1, 14):
        inside = Interval(*whole).holds(at) and not any(Interval(*part).holds(at) for part in parts)
        assert sum(gap.holds(at) for gap in gaps) == inside


def test_patterns_of_thousands_of_characters_are_compared() -> None:
    one, other = "ab" * 1000 + "*" + "?" * 200, "a*" + "?" * 300 + "b"
    assert patterns_meet(one, other)
    assert not patterns_meet("a" * 2000 + "*b*c", "a" * 2000 + "*b*d")


def test_a_name_longer_than_any_is_refused() -> None:
    with pytest.raises(BookError, match="sku: a name of 3000 characters"):
        parse(f"prices: [{{sku: '{'a' * 2999}*', meter: requests, amount: 1}}]")


def test_thousands_of_adjustments_are_compared_by_what_they_have_in_common(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = []
    monkeypatch.setattr(overlaps, "_agree", lambda one, other: compared.append(one) or True)
    text = "".join(f"  - {{match: {{provider: acme, sku: m{n:04}}}, percent: -1}}\n" for n in range(3000))
    regions = "".join(f"  - {{when: {{region: r{n}}}, percent: -1}}\n" for n in range(3000))
    parse("adjustments:\n" + text + regions)
    assert not compared
