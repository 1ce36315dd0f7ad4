"""Explanations: the arithmetic shown is the arithmetic done, and what has no price comes with what may help."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tollspan.pricing import METERS, PriceEngine, Selectors, shipped_book
from tollspan.pricing.engine import instant_of
from tollspan.pricing.explain import Explanation, Level, explain
from tollspan.pricing.money import PICO, digits_of, units_of
from tollspan.pricing.rows import Interval
from tollspan.pricing.said import hours_text, interval_text
from tollspan.pricing.schedule import DAY, Schedule
from tollspan.processor.cli.explained import lines_of

from .books import INPUT, NOON, OUTPUT, at, book_of

SHA256 = "ab" * 32

ACME = """
price_book: {id: acme, version: 3}
calendars: {holidays: [2026-11-20]}
aliases:
  - {ref: slice, sku: "aws/whole", share: 1/7}
  - {ref: old-name, provider: acme, sku: acme/plain, to: 2026-01-01}
prices:
  - {id: plain/in, provider: acme, sku: plain, meter: tokens.input.uncached, amount: 3, per: 1000000,
     source: {url: "https://acme.example/prices", retrieved_at: 2026-11-01, sha256: "@@"}}
  - {id: plain/out, provider: acme, sku: plain, meter: tokens.output, amount: 15, per: 1000000}
  - {id: plain/flex, provider: acme, sku: plain, meter: tokens.output, amount: 7, per: 1000000,
     when: {service_tier: flex}}
  - {id: tiered, provider: acme, sku: tiered, meter: tokens.output, amount: 7, when: {service_tier: [standard, flex]}}
  - {id: long/in, provider: acme, sku: long, meter: tokens.input.uncached, amount: 2, per: 1000000,
     tiers: {basis: request_input_tokens, mode: cliff, steps: [{above: 200000, amount: 4}]}}
  - {id: pages, provider: acme, sku: reader, meter: pages, amount: "0.01",
     tiers: {basis: quantity, mode: graduated, steps: [{above: 10, amount: "0.007"}, {above: 20, amount: "0.003"}]}}
  - {id: audio, provider: acme, sku: hear, meter: audio.seconds, amount: "0.111", unit: hour, minimum: 10}
  - {id: whole, provider: aws, sku: whole, meter: gpu.seconds, amount: "6.88", unit: hour, when: {purchase: on_demand}}
  - {id: rented, provider: acme, sku: prepaid, meter: requests, kind: included}
  - {id: rented/list, provider: acme, sku: prepaid, meter: requests, amount: "0.5"}
  - {id: peak, provider: acme, sku: night, meter: tokens.output, amount: 1, effective: [2026-01-01, 2027-01-01],
     windows: [{days: [mon-fri], hours: ["01:00-04:00"], except: holidays}]}
  - {id: eu, provider: acme, sku: local, meter: tokens.output, amount: 1, when: {residency: eu}}
factors:
  - {id: eu-uplift, match: {provider: acme, sku: plain}, when: {residency: eu}, percent: 10}
adjustments:
  - {id: ea-2026, match: {provider: acme}, percent: -10}
""".replace("@@", SHA256)


@pytest.fixture(scope="module")
def engine() -> PriceEngine:
    return PriceEngine(book_of(ACME))


def ask(engine: PriceEngine, usage: dict[str, int | Decimal], **selectors: str | None) -> Explanation:
    selectors.setdefault("provider", "acme")
    return explain(engine, usage, at=NOON, selectors=Selectors(**selectors))


def worked_out(level: Level, meter: str) -> Fraction:
    """A level's cost from nothing but what its explanation shows, before it is rounded."""
    units = units_of(meter)[level.row.unit] * level.row.per
    total = sum((Fraction(part.quantity) * Fraction(part.amount) / units for part in level.parts), Fraction(0))
    for times in level.times:
        total *= times.factor
    return total


def test_a_contract_and_an_uplift_are_shown_level_by_level(engine: PriceEngine) -> None:
    explained = ask(engine, {INPUT: 1000, OUTPUT: 10}, model="plain", residency="eu").meters[0]
    effective, listed = explained.levels
    assert (effective.name, listed.name) == ("effective", "list")
    assert [(times.name, times.factor) for times in effective.times] == [
        ("eu-uplift", Fraction(11, 10)),
        ("ea-2026", Fraction(9, 10)),
    ]
    assert [times.name for times in listed.times] == ["eu-uplift"]
    assert (effective.cost, listed.cost) == (Decimal("0.002970000000"), Decimal("0.003300000000"))
    assert effective.cost == explained.charge.cost
    assert listed.cost == explained.charge.list_cost


def test_a_price_is_shown_with_its_source_its_book_and_when_it_holds(engine: PriceEngine) -> None:
    level = ask(engine, {INPUT: 1}, model="plain").meters[0].levels[0]
    assert (level.row.id, level.layer, level.matched_by) == ("plain/in", "acme", "exact model × ea-2026")
    assert (level.row.source.url, level.row.source.retrieved_at, level.row.source.sha256) == (
        "https://acme.example/prices",
        "2026-11-01",
        SHA256,
    )


def test_a_long_request_is_shown_at_the_step_it_reached(engine: PriceEngine) -> None:
    explained = ask(engine, {INPUT: 200_001}, model="long")
    (part,) = explained.meters[0].levels[0].parts
    assert (part.amount, part.above, explained.input_tokens) == (Decimal(4), Decimal(200_000), 200_001)
    (part,) = ask(engine, {INPUT: 200_000}, model="long").meters[0].levels[0].parts
    assert (part.amount, part.above) == (Decimal(2), None)


def test_a_graduated_price_is_shown_step_by_step(engine: PriceEngine) -> None:
    level = ask(engine, {"pages": 25}, model="reader").meters[0].levels[0]
    assert [(part.quantity, part.amount, part.above) for part in level.parts] == [
        (Decimal(10), Decimal("0.01"), None),
        (Decimal(10), Decimal("0.007"), Decimal(10)),
        (Decimal(5), Decimal("0.003"), Decimal(20)),
    ]
    assert level.cost == Decimal("0.166500000000")  # 0.185 less ten percent


def test_a_minimum_is_shown_as_what_was_billed(engine: PriceEngine) -> None:
    level = ask(engine, {"audio.seconds": Decimal(4)}, model="hear").meters[0].levels[0]
    assert (level.parts[0].quantity, level.raised) == (Decimal(10), True)
    assert not ask(engine, {"audio.seconds": Decimal(11)}, model="hear").meters[0].levels[0].raised


def test_a_slice_of_a_device_is_shown_as_its_share(engine: PriceEngine) -> None:
    explained = ask(engine, {"gpu.seconds": Decimal(7200)}, device="slice", cloud_provider="aws")
    level = explained.meters[0].levels[0]
    assert [(times.name, times.factor) for times in level.times] == [("share of the device", Fraction(1, 7))]
    assert level.cost == Decimal("1.965714285714")


def test_what_is_prepaid_shows_what_it_would_have_cost(engine: PriceEngine) -> None:
    explained = ask(engine, {"requests": 2}, model="prepaid").meters[0]
    assert [(level.name, level.row.id, level.cost) for level in explained.levels] == [
        ("effective", "rented", Decimal(0)),
        ("contracted", "rented/list", Decimal("0.900000000000")),
        ("list", "rented/list", Decimal("1.000000000000")),
    ]


@settings(max_examples=200, deadline=None)
@given(
    tokens=st.integers(1, 400_000),
    pages=st.integers(1, 60),
    seconds=st.decimals("0.001", 20, places=3, allow_nan=False),
    model=st.sampled_from(["plain", "long", "reader", "hear", "prepaid"]),
    residency=st.sampled_from([None, "eu"]),
    device=st.sampled_from(["whole", "slice"]),
)
def test_every_cost_follows_from_the_arithmetic_that_is_shown(
    engine: PriceEngine,
    tokens: int,
    pages: int,
    seconds: Decimal,
    model: str,
    residency: str | None,
    device: str,
) -> None:
    usage: dict[str, int | Decimal] = {INPUT: tokens, OUTPUT: tokens // 7, "pages": pages, "audio.seconds": seconds}
    usage |= {"gpu.seconds": seconds, "requests": 1}
    explained = ask(engine, usage, model=model, residency=residency, device=device, cloud_provider="aws")
    levels = [(meter.charge, level) for meter in explained.meters for level in meter.levels]
    assert levels
    for charge, level in levels:
        expected = Fraction(0) if level.row.kind == "included" else worked_out(level, charge.meter)
        assert digits_of(level.cost, PICO) == round(expected * 10**PICO)
    assert sum((m.levels[0].cost for m in explained.meters if m.levels), Decimal(0)) == (explained.charges.cost or 0)


@pytest.mark.parametrize(
    ("usage", "selectors", "reason", "text", "values"),
    [
        ({OUTPUT: 1}, {"model": "plian"}, "unknown_model", "Did you mean plain", ("plain",)),
        ({OUTPUT: 1}, {"model": "plain", "provider": None}, "provider_missing", "plain is listed by acme", ("acme",)),
        ({OUTPUT: 1}, {"model": "plain", "provider": "acmee"}, "unknown_model", "acme does", ("acme",)),
        ({OUTPUT: 1}, {"model": "x9", "provider": "acmee"}, "unknown_model", "Did you mean acme", ("acme",)),
        ({OUTPUT: 1}, {"model": None}, "unknown_model", "Give the model", ()),
        (
            {OUTPUT: 1},
            {"model": "tiered", "service_tier": "turbo"},
            "tier_unknown",
            "Tiers with a price: flex, standard.",
            ("flex", "standard"),
        ),
        (
            {"web_searches": 1},
            {"model": "plain"},
            "no_meter_price",
            "What has a price here: tokens.input.uncached, tokens.output.",
            (INPUT, OUTPUT),
        ),
        (
            {OUTPUT: 1},
            {"model": "night"},
            "no_price_at_time",
            "from 2026-01-01 until 2027-01-01, mon-fri 01:00-04:00 UTC, except 1 day",
            ("from 2026-01-01 until 2027-01-01, mon-fri 01:00-04:00 UTC, except 1 day",),
        ),
        (
            {OUTPUT: 1},
            {"model": "old-name"},
            "no_price_at_time",
            "There is a price until 2026-01-01.",
            ("until 2026-01-01",),
        ),
        (
            {OUTPUT: 1},
            {"model": "local"},
            "no_price_for_residency",
            "There is a price for residency eu, none for a call that does not say.",
            ("eu",),
        ),
        (
            {"gpu.seconds": 1},
            {"device": "whole", "cloud_provider": "aws", "purchase": "spot"},
            "no_price_for_purchase",
            "There is a price for purchase on_demand, not for spot.",
            ("on_demand",),
        ),
        (
            {"gpu.seconds": 1},
            {"device": "whole", "cloud_provider": None},
            "unknown_device",
            "Give the cloud provider; there are prices for aws.",
            ("aws",),
        ),
        (
            {"gpu.seconds": 1},
            {"device": "whol", "cloud_provider": "aws"},
            "unknown_device",
            "Devices with a price: whole.",
            ("whole",),
        ),
    ],
)
def test_what_has_no_price_is_told_what_may_help(
    engine: PriceEngine,
    usage: dict[str, int | Decimal],
    selectors: dict[str, str | None],
    reason: str,
    text: str,
    values: tuple[str, ...],
) -> None:
    explained = ask(engine, usage, **selectors)
    (suggestion,) = explained.suggestions
    assert suggestion.reason == reason
    assert text in suggestion.text
    assert suggestion.values == values
    assert explained.charges.cost is None
    assert explained.meters[0].levels == ()


@settings(max_examples=150, deadline=None)
@given(
    meters=st.lists(st.sampled_from(list(METERS)), min_size=1, max_size=4, unique=True),
    selectors=st.builds(
        Selectors,
        provider=st.sampled_from([None, "openai", "azure.ai.openai", "deepseek", "nobody", "hall-2"]),
        model=st.sampled_from([None, "gpt-5-mini", "gpt-5-mni", "deepseek-v4-pro", "claude", "*", "?"])
        | st.text(max_size=8),
        service_tier=st.sampled_from([None, "flex", "turbo", "auto"]),
        processing=st.sampled_from([None, "batch"]),
        region=st.sampled_from([None, "us-east-1", "nowhere"]),
        cloud_provider=st.sampled_from([None, "aws", "gcp", "nobody"]),
        host_type=st.sampled_from([None, "m5.large", "p5.48xlarge"]),
        device=st.sampled_from([None, "NVIDIA L4", "H100"]) | st.text(max_size=8),
        purchase=st.sampled_from([None, "spot"]),
        residency=st.sampled_from([None, "eu"]),
    ),
    instant=st.integers(0, 2 * 10**18),
)
def test_whatever_is_asked_of_what_ships_is_explained(meters: list[str], selectors: Selectors, instant: int) -> None:
    engine = PriceEngine(shipped_book())
    explained = explain(engine, dict.fromkeys(meters, 7), at=instant, selectors=selectors)
    assert explained.charges == engine.price(dict.fromkeys(meters, 7), at=instant, selectors=selectors)
    for meter in explained.meters:
        assert bool(meter.levels) == (meter.charge.cost is not None)
        assert not (meter.suggestions and meter.charge.cost is not None)
        assert all(suggestion.text.endswith((".", "?")) for suggestion in meter.suggestions)
        assert list(lines_of(meter, explained))


def test_several_providers_that_list_a_model_are_all_named() -> None:
    book = book_of(
        """
        prices:
          - {provider: one, sku: m, meter: tokens.output, amount: 1}
          - {provider: two, sku: m, meter: tokens.output, amount: 2}
        """
    )
    explained = ask(PriceEngine(book), {OUTPUT: 1}, provider=None, model="m")
    assert explained.charges.charges[0].status == "ambiguous"
    assert explained.suggestions[0].values == ("one", "two")


def test_what_is_priced_has_no_suggestions_and_says_what_was_looked_at(engine: PriceEngine) -> None:
    explained = ask(engine, {OUTPUT: 5}, model="plain")
    assert explained.suggestions == ()
    assert [(item.row.id, item.verdict) for item in explained.meters[0].considered if item.row] == [
        ("plain/flex", "asks for service_tier = flex"),
        ("plain/out", "chosen"),
    ]


@pytest.mark.parametrize("reason", ["usage_negative", "usage_too_large", "usage_inconsistent"])
def test_usage_that_cannot_be_right_is_not_explained_away(engine: PriceEngine, reason: str) -> None:
    explained = explain(engine, {OUTPUT: 5}, at=NOON, selectors=Selectors("acme", "plain"), invalid=reason)
    assert explained.charges.status == "invalid"
    assert explained.meters[0].levels == ()


def test_times_are_said_as_people_say_them() -> None:
    hour = DAY // 24
    week = tuple((day * DAY + 9 * hour, day * DAY + 17 * hour + hour // 2) for day in range(5))
    assert hours_text(Schedule(week, "Asia/Shanghai")) == "mon-fri 09:00-17:30 Asia/Shanghai"
    assert hours_text(Schedule(((0, hour), (2 * DAY, 3 * DAY)))) == "mon 00:00-01:00; wed 00:00-24:00 UTC"
    bounds = instant_of(at("2026-08-16T16:00:00Z")), instant_of(at("2027-01-01T00:00:00Z"))
    assert interval_text(Interval(*bounds)) == "from 2026-08-16T16:00:00Z until 2027-01-01"
    assert interval_text(Interval()) == "at any time"


def test_usage_that_is_too_large_to_be_read_at_all_is_invalid(engine: PriceEngine) -> None:
    explained = explain(engine, {}, at=NOON, selectors=Selectors("acme", "plain"), invalid="usage_too_large")
    assert (explained.charges.status, explained.charges.cost) == ("invalid", None)
