"""LLM prices: those of genai-prices over its whole catalogue, but unpriced where it silently gives another price."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from decimal import Decimal
from functools import cache
from itertools import combinations, permutations

import pytest
from genai_prices import Usage
from genai_prices.data import providers
from genai_prices.types import ModelInfo, Provider

from tollspan.pricing import PriceEngine, Selectors, shipped_book
from tollspan.pricing.book import DAY, Interval, PriceRow
from tollspan.pricing.catalogue import CONDITIONS, PRICE_KEYS, Catalogue, clean, compile_model
from tollspan.pricing.meters import METERS
from tollspan.pricing.money import units_of
from tollspan.pricing.selectors import PROVIDERS

from .books import INPUT, NOON, OUTPUT, at, price

ENGINE = PriceEngine(shipped_book())
INSTANTS = [NOON, at("2026-09-15T02:30:00Z"), at("2025-06-01T00:00:00Z")]

COUNTED = {
    "input_mtok": (INPUT, "input_tokens", 1_017),
    "cache_read_mtok": ("tokens.input.cache_read", "cache_read_tokens", 203),
    "cache_write_mtok": ("tokens.input.cache_write", "cache_write_tokens", 31),
    "output_mtok": (OUTPUT, "output_tokens", 507),
    "output_reasoning_mtok": ("tokens.output.reasoning", "output_reasoning_tokens", 77),
}
"""Price key → our meter, genai-prices' usage key, and a quantity of it. The last is charged as output by most."""


@cache
def compiled() -> list[tuple[str, dict[str, tuple[PriceRow, ...]]]]:
    """Every model with its rows by meter."""
    return [
        (f"{provider.id}/{model.id}", dict(compile_model(provider, model).rows))
        for provider in providers
        for model in provider.models
    ]


def models() -> Iterator[tuple[Provider, ModelInfo]]:
    for provider in providers:
        yield from ((provider, model) for model in provider.models if provider.find_model(model.id) is model)


def usage_for(model: ModelInfo, instant: datetime, factor: int) -> tuple[dict[str, int], Usage]:
    """A usage of everything that the model has a price for, as disjoint meters and as genai-prices counts it."""
    keys = {key for key, value in vars(model.get_prices(instant)).items() if value is not None}
    parts = {
        key: COUNTED[key] for key in COUNTED if key in keys or (key.startswith("output_r") and "output_mtok" in keys)
    }
    meters = {meter: count * factor for meter, _, count in parts.values()}
    reported = {usage_key: count * factor for _, usage_key, count in parts.values()}
    if "input_tokens" in reported:
        reported["input_tokens"] = sum(count for meter, count in meters.items() if meter.startswith("tokens.input"))
    if "output_tokens" in reported:
        reported["output_tokens"] = sum(count for meter, count in meters.items() if meter.startswith("tokens.output"))
    return meters, Usage(**reported)


def close(ours: Decimal | None, theirs: Decimal, noisy: bool) -> bool:
    """Equal but for our rounding to 10⁻¹², and for prices whose float noise we take away."""
    return ours is not None and abs(ours - theirs) <= Decimal("5E-12") + (theirs * Decimal("1E-11") if noisy else 0)


def is_noisy(model: ModelInfo, instant: datetime) -> bool:
    return any(
        isinstance(value, Decimal) and clean(value) != value for value in vars(model.get_prices(instant)).values()
    )


@pytest.mark.parametrize("factor", [1, 500])
@pytest.mark.parametrize("instant", INSTANTS, ids=str)
def test_the_whole_catalogue_costs_what_genai_prices_says(instant: datetime, factor: int) -> None:
    compared = 0
    for provider, model in models():
        meters, usage = usage_for(model, instant, factor)
        if not meters:
            continue
        selectors = Selectors(provider=provider.id, model=model.id, service_tier="default")
        charges = ENGINE.price(meters, at=instant, selectors=selectors)
        assert charges.status in ("priced", "free"), (provider.id, model.id, charges.reasons)
        theirs = model.calc_price(usage, provider, genai_request_timestamp=instant).total_price
        assert close(charges.cost, theirs, is_noisy(model, instant)), (provider.id, model.id, charges.cost, theirs)
        compared += 1
    assert compared > 2000


def test_every_variant_costs_what_genai_prices_says_or_is_unpriced() -> None:
    """Where genai-prices would fall back to the standard price, ours says that the tier has none."""
    compared, refused = 0, 0
    for instant in INSTANTS:
        for provider, model in models():
            known = [dict(variant.when) for variant in model.price_variants or ()]
            for (key, value), when in CONDITIONS.items():
                if not known or (key == "speed") != (provider.id == "anthropic" and value == "fast"):
                    continue
                meters, usage = usage_for(model, instant, 1)
                if not meters:
                    continue
                selectors = Selectors(
                    provider=provider.id,
                    model=model.id,
                    service_tier=when["service_tier"],
                    processing=when["processing"],
                )
                charges = ENGINE.price(meters, at=instant, selectors=selectors)
                context = {key: value}
                active = any(
                    variant.when == context and (variant.constraint is None or variant.constraint.active(instant))
                    for variant in model.price_variants or ()
                )
                if not active:
                    assert charges.cost is None, (provider.id, model.id, context)
                    assert charges.reasons == ("tier_unknown",)
                    refused += 1
                    continue
                theirs = model.calc_price(usage, provider, genai_request_timestamp=instant, price_context=context)
                assert close(charges.cost, theirs.total_price, False), (provider.id, model.id, context)
                compared += 1
    assert compared > 150
    assert refused > 150


@pytest.mark.parametrize("tier", ["scale", "flexx", "reserved"])
def test_a_tier_that_nobody_prices_is_unpriced(tier: str) -> None:
    charges = price(shipped_book(), {INPUT: 100}, provider="openai", model="gpt-5-mini", service_tier=tier)
    assert (charges.cost, charges.status, charges.reasons) == (None, "unpriced", ("tier_unknown",))


@pytest.mark.parametrize(("tier", "reasons"), [("default", ()), ("auto", ("tier_assumed",)), (None, ("tier_assumed",))])
def test_the_standard_price_says_when_the_tier_was_assumed(tier: str | None, reasons: tuple[str, ...]) -> None:
    charges = price(shipped_book(), {INPUT: 1_000_000}, provider="openai", model="gpt-5-mini", service_tier=tier)
    assert (charges.cost, charges.status, charges.reasons) == (Decimal("0.25"), "priced", reasons)


def test_the_tiers_of_a_list_do_not_hold_at_another_provider() -> None:
    azure = {"provider": "azure.ai.openai", "model": "gpt-5-mini-2025-08-07"}
    assert price(shipped_book(), {INPUT: 1_000_000}, **azure).cost == Decimal("0.25")
    assert price(shipped_book(), {INPUT: 1_000_000}, **azure).reasons == ()
    assert price(shipped_book(), {INPUT: 1_000_000}, **azure, service_tier="flex").reasons == ("tier_unknown",)


@pytest.mark.parametrize("model", ["claude-opus-9", "gpt-7", "gemini-9-pro"])
def test_a_model_of_the_future_is_unknown_and_not_free(model: str) -> None:
    for provider in ("openai", "anthropic", "gcp.gemini", "aws.bedrock", "nobody"):
        charges = price(shipped_book(), {INPUT: 100, OUTPUT: 100}, provider=provider, model=model)
        assert (charges.cost, charges.status, charges.reasons) == (None, "unpriced", ("unknown_model",))


def test_models_without_prices_are_unpriced_unless_their_name_says_free() -> None:
    empty = [
        (provider, model)
        for provider, model in models()
        if not isinstance(model.prices, list) and not any(value is not None for value in vars(model.prices).values())
    ]
    assert len(empty) > 100
    for provider, model in empty:
        charges = price(shipped_book(), {INPUT: 5, OUTPUT: 5}, provider=provider.id, model=model.id)
        if model.id.endswith(":free"):
            assert (charges.cost, charges.status) == (0, "free"), model.id
        else:
            assert (charges.cost, charges.reasons) == (None, ("no_meter_price",)), model.id


@pytest.mark.parametrize(
    ("noisy", "cleaned"),
    [
        ("0.18000000000000002", "0.18"),
        ("0.13999999999999999", "0.14"),
        ("1.0399999999999998", "1.04"),
        ("0.003625", "0.003625"),
        ("0.08333333333333334", "0.0833333333333"),
    ],
)
def test_float_noise_is_taken_from_prices(noisy: str, cleaned: str) -> None:
    assert str(clean(Decimal(noisy))) == cleaned


def test_no_compiled_price_carries_float_noise() -> None:
    rows = [row for _, meters in compiled() for found in meters.values() for row in found]
    assert len(rows) > 5000
    for row in rows:
        assert all(len(amount.as_tuple().digits) <= 12 for amount, _ in row.rates), row.id


def test_rows_of_a_model_never_overlap() -> None:
    """As in a user's book (`overlaps`): of rows under the same conditions one is in force at a time."""
    for name, meters in compiled():
        ids = [row.id for rows in meters.values() for row in rows]
        assert len(set(ids)) == len(ids), name
        for rows in meters.values():
            for first, second in combinations(rows, 2):
                if first.when == second.when and first.effective.meets(second.effective):
                    assert first.windows, first.id
                    assert second.windows, second.id
                    assert not any(a < d and c < b for a, b in first.windows for c, d in second.windows), first.id


def test_hours_become_windows_of_every_day() -> None:
    deepseek = next(provider for provider in providers if provider.id == "deepseek")
    model = next(model for model in deepseek.models if model.id == "deepseek-chat")
    rows = compile_model(deepseek, model).rows[INPUT]
    assert {row.amount for row in rows} == {Decimal("0.135"), Decimal("0.27")}
    assert all(row.effective == Interval() for row in rows)
    peak = next(row for row in rows if row.amount == Decimal("0.27"))
    assert peak.windows == tuple((day * DAY + DAY // 48, day * DAY + DAY * 33 // 48) for day in range(7))


def test_a_price_that_only_continues_is_one_row() -> None:
    for name, meters in compiled():
        for rows in meters.values():
            for first, second in permutations(rows, 2):
                continues = first.effective.end is not None and first.effective.end == second.effective.start
                if continues and first.when == second.when and first.windows == second.windows:
                    assert (first.amount, first.steps) != (second.amount, second.steps), name


def test_short_transcriptions_at_groq_cost_ten_seconds() -> None:
    costs = [
        price(shipped_book(), {"audio.seconds": Decimal(s)}, provider="groq", model="whisper-large-v3").cost
        for s in ("1", "10", "3600")
    ]
    assert costs == [costs[1], costs[1], Decimal("0.111")]


def test_a_web_search_that_has_no_price_is_not_free() -> None:
    charges = price(shipped_book(), {INPUT: 1_000_000, "web_searches": 5}, provider="openai", model="gpt-4")
    assert (charges.cost, charges.status, charges.reasons) == (Decimal(30), "partial", ("no_meter_price",))


def test_tables_name_meters_and_their_units() -> None:
    for meter, per, unit in PRICE_KEYS.values():
        assert meter in METERS
        assert per >= 1
        assert unit in units_of(meter)
    ids = {provider.id for provider in providers}
    assert set(PROVIDERS.values()) <= ids
    assert not set(PROVIDERS) & ids


def test_misses_are_remembered() -> None:
    catalogue = Catalogue()
    assert not catalogue.skus("model", "openai", "gpt-7")
    assert catalogue._found == {("openai", "gpt-7"): None}
