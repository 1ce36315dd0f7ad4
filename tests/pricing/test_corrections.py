"""Corrections of the LLM catalogue: known answers, where each was read, and when upstream has caught up."""

from __future__ import annotations

from datetime import date, datetime
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pytest

from tollspan.pricing import Charges, PriceEngine, Selectors, shipped_book
from tollspan.pricing.book import TableLayer
from tollspan.pricing.catalogue import Catalogue
from tollspan.pricing.corrections import Corrections, caught_up, corrections
from tollspan.pricing.engine import instant_of
from tollspan.pricing.patterns import is_pattern
from tollspan.pricing.selectors import BATCH
from tollspan.pricing.yamlbook import parse_layer

from .books import INPUT, NOON, OUTPUT, at, price

BOOK = shipped_book()
CACHED = "tokens.input.cache_read"
MILLION = 1_000_000
READ_ON = date(2026, 11, 21)

NEW_NAMES = {
    *("ft:gpt-4.1-2025-04-14", "ft:gpt-4.1-mini-2025-04-14", "ft:gpt-4.1-nano-2025-04-14", "ft:o4-mini-2025-04-16"),
    *("gpt-4o-mini-search-preview", "gpt-4o-mini-search-preview-2025-03-11"),
}
"""Models that the catalogue does not list at all, or under another's id."""


def cost(
    usage: dict[str, int | Decimal], provider: str, model: str, when: datetime = NOON, **said: str
) -> Decimal | None:
    return price(BOOK, usage, when, provider=provider, model=model, **said).cost


def ask(provider: str, model: str, when: datetime = NOON, **said: str) -> Charges:
    return price(BOOK, {INPUT: MILLION, OUTPUT: MILLION}, when, provider=provider, model=model, **said)


# The file


def test_every_correction_says_where_and_when_it_was_read_and_what_is_wrong() -> None:
    table = corrections().table
    assert len(table.rows) > 500
    for entry in (*table.rows, *table.factors):
        source = entry.source
        assert source.url.startswith("https://"), entry.id
        assert date(2026, 5, 1) <= date.fromisoformat(source.retrieved_at) <= READ_ON, entry.id
        assert len(source.note) >= len("Not upstream."), entry.id


def test_corrections_stand_under_the_ids_of_the_catalogue() -> None:
    """Else they would be found by one name of a model and not by its others."""
    layer = corrections()
    for row in layer.table.rows:
        if is_pattern(row.sku) or row.sku in NEW_NAMES:
            continue
        assert row.provider is not None
        known = layer.catalogue.identify(row.provider, row.sku)
        ids = [name.lower() for name in layer.catalogue.names("model", row.provider)]
        assert row.sku in ids or (known is not None and known[1] == row.sku), row.id


def test_wildcards_of_corrections_match_something() -> None:
    layer = corrections()
    for row in layer.table.rows:
        if is_pattern(row.sku):
            names = [name.lower() for name in layer.catalogue.names("model", row.provider)]
            assert any(
                row in sku.rows.get(row.meter, ()) for n in names for _, sku in layer.skus("model", row.provider, n)
            )


def test_aliases_lead_somewhere() -> None:
    for alias in corrections().table._aliases.values():
        for each in alias:
            assert each.provider == each.target_provider
            assert any(layer.skus("model", each.provider, each.target_sku) for layer in BOOK.layers), each.ref


def test_token_prices_ask_for_a_tier() -> None:
    """A row without conditions would price every tier, unknown ones too, at the standard rate."""
    for row in corrections().table.rows:
        if row.status != "withdrawn" and (row.meter.startswith("tokens.") or row.meter == "requests"):
            assert row.when.keys() >= {"service_tier", "processing"} or row.when == {"processing": BATCH}, row.id


# DeepSeek

FLAT, OFF, PEAK = Decimal("1.305"), Decimal("2.64"), Decimal("5.28")


@pytest.mark.parametrize(
    ("when", "expected"),
    [
        ("2026-06-01T02:00:00Z", FLAT),  # upstream: the peak price of later
        ("2026-08-16T15:59:59.999999Z", FLAT),
        ("2026-08-16T16:00:00Z", OFF),
        ("2026-08-17T00:59:59Z", OFF),
        ("2026-08-17T01:00:00Z", PEAK),
        ("2026-08-17T03:59:59Z", PEAK),
        ("2026-08-17T04:00:00Z", OFF),
        ("2026-08-17T06:00:00Z", PEAK),
        ("2026-08-17T10:00:00Z", OFF),
        ("2026-08-22T02:00:00Z", PEAK),  # the one Saturday that had peak hours
        ("2026-08-23T02:00:00Z", OFF),  # Sunday
        ("2026-08-24T02:00:00Z", PEAK),
        ("2026-08-29T02:00:00Z", OFF),  # Saturday
        ("2026-09-20T02:00:00Z", OFF),  # a Sunday that was worked for a holiday
        ("2026-09-25T02:00:00Z", OFF),  # Mid-Autumn, a Friday
        ("2026-09-28T02:00:00Z", PEAK),
        ("2026-10-01T02:00:00Z", OFF),  # National Day
        ("2026-10-07T09:59:59Z", OFF),
        ("2026-10-08T02:00:00Z", PEAK),
        ("2026-11-20T02:00:00Z", PEAK),
        ("2026-11-20T12:00:00Z", OFF),
    ],
)
def test_deepseek_v4_pro_has_peak_hours_on_working_days_in_beijing(when: str, expected: Decimal) -> None:
    assert cost({INPUT: MILLION, OUTPUT: MILLION}, "deepseek", "deepseek-v4-pro", at(when)) == expected


def test_columns_keep_the_same_hours() -> None:
    first = instant_of(at("2026-08-14T00:00:00Z"))
    instants = np.arange(first, first + 60 * 86_400 * 10**9, 1800 * 10**9)
    selectors = Selectors(provider="deepseek", model="deepseek-v4-pro")
    engine = PriceEngine(BOOK)
    columns = engine.price_columns(
        instants,
        {name: pa.array([value] * len(instants)) for name, value in selectors._asdict().items() if value is not None},
        {INPUT: pa.array([MILLION] * len(instants), pa.int64())},
    )
    scalar = [engine.price({INPUT: MILLION}, at=int(each), selectors=selectors).cost for each in instants]
    assert columns["cost"].to_pylist() == scalar
    assert len(set(scalar)) == 3


@pytest.mark.parametrize(
    ("when", "cached", "uncached", "output"),
    [
        ("2026-08-16T15:00:00Z", "0.0028", "0.14", "0.28"),
        ("2026-08-18T00:00:00Z", "0.007", "0.22", "0.66"),
        ("2026-08-18T02:00:00Z", "0.014", "0.44", "1.32"),
        ("2026-09-10T00:00:00Z", "0.003", "0.15", "0.6"),
        ("2026-09-11T02:00:00Z", "0.006", "0.3", "1.2"),
        ("2026-09-12T02:00:00Z", "0.003", "0.15", "0.6"),
    ],
)
def test_deepseek_v4_flash_became_v41_flash(when: str, cached: str, uncached: str, output: str) -> None:
    for model in ("deepseek-v4-flash", "deepseek-v4-flash-vision-exp", "deepseek/deepseek-v4-flash"):
        for meter, expected in ((CACHED, cached), (INPUT, uncached), (OUTPUT, output)):
            assert cost({meter: MILLION}, "deepseek", model, at(when)) == Decimal(expected), (model, meter)


@pytest.mark.parametrize("model", ["deepseek-chat", "deepseek-reasoner"])
@pytest.mark.parametrize(
    ("when", "expected", "matched_by"),
    [
        ("2025-09-05T16:00:00Z", ("0.07", "0.56", "1.68"), "exact model"),
        ("2025-09-29T00:00:00Z", ("0.028", "0.28", "0.42"), "exact model"),
        ("2026-04-23T23:59:59Z", ("0.028", "0.28", "0.42"), "exact model"),
        ("2026-04-24T00:00:00Z", ("0.0028", "0.14", "0.28"), "alias model"),
        ("2026-07-24T15:58:00Z", ("0.0028", "0.14", "0.28"), "alias model"),
    ],
)
def test_deepseeks_old_names_through_time(model: str, when: str, expected: tuple[str, ...], matched_by: str) -> None:
    usage: dict[str, int | Decimal] = {CACHED: MILLION, INPUT: MILLION, OUTPUT: MILLION}
    charges = price(BOOK, usage, at(when), provider="deepseek", model=model)
    by_meter = {charge.meter: charge for charge in charges.charges}
    assert tuple(by_meter[meter].cost for meter in (CACHED, INPUT, OUTPUT)) == tuple(map(Decimal, expected))
    assert {charge.matched_by for charge in charges.charges} == {matched_by}


@pytest.mark.parametrize("model", ["deepseek-chat", "deepseek-reasoner"])
def test_deepseeks_old_names_have_no_price_since_they_ended(model: str) -> None:
    charges = price(shipped_book(), {OUTPUT: 1}, at=at("2026-11-20T12:00:00Z"), provider="deepseek", model=model)
    assert (charges.cost, charges.reasons) == (None, ("no_price_at_time",))


@pytest.mark.parametrize("tier", ["flex", "priority", "scale"])
def test_deepseek_has_no_tiers(tier: str) -> None:
    assert ask("deepseek", "deepseek-v4-pro", service_tier=tier).reasons == ("tier_unknown",)
    assert ask("deepseek", "deepseek-v4-pro", processing="batch").reasons == ("tier_unknown",)


# Names


def test_mistral_large_latest_is_what_it_was_at_the_time() -> None:
    before, after = at("2025-12-01T23:59:59Z"), at("2025-12-02T00:00:00Z")
    for name in ("mistral-large-latest", "mistral/mistral-large-latest"):
        assert ask("mistral", name, before).cost == Decimal(8)
        assert ask("mistral", name, after).cost == Decimal(2)
    assert ask("mistral", "mistral-large-2411", after).cost == Decimal(8)


def test_codestral_latest_reads_its_cache_for_less() -> None:
    assert cost({CACHED: MILLION}, "mistral", "codestral-latest") == Decimal("0.03")


def test_the_8b_is_not_the_flash() -> None:
    assert cost({INPUT: 100_000}, "google", "gemini-1.5-flash-002") == Decimal("0.0075")
    assert cost({INPUT: 100_000}, "google", "gemini-1.5-flash-8b-001") == Decimal("0.00375")
    assert cost({INPUT: 100_000}, "google", "models/gemini-1.5-flash-8b") == Decimal("0.00375")


def test_a_variant_at_another_price_is_not_its_base_model() -> None:
    """It costs 1.50 and 7.50 USD; upstream takes it for Gemini 3.8 Flash at half of that."""
    assert ask("google", "gemini-3.8-flash-cyber").reasons == ("unknown_model",)


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("ft:gpt-4.1-2025-04-14:acme::9abc", "15"),
        ("ft:gpt-4.1-mini-2025-04-14:acme:support:9abc", "4"),
        ("ft:gpt-4.1-nano-2025-04-14:acme::9abc", "1"),
        ("ft:o4-mini-2025-04-16:acme::9abc", "20"),
    ],
)
def test_fine_tuned_models_upstream_does_not_know(model: str, expected: str) -> None:
    assert ask("openai", model).cost == Decimal(expected)
    assert ask("openai", model, processing="batch").cost == Decimal(expected) / 2
    assert ask("openai", model, service_tier="flex").reasons == ("tier_unknown",)


def test_cached_input_of_fine_tuned_models() -> None:
    assert cost({CACHED: MILLION}, "openai", "ft:gpt-4o-2024-08-06:acme::9abc") == Decimal("1.875")


def test_moderation_is_free() -> None:
    charges = price(BOOK, {INPUT: 100}, provider="openai", model="omni-moderation-latest")
    assert (charges.cost, charges.status) == (0, "free")


def test_gemini_36_flash_before_its_introductory_price() -> None:
    assert ask("google", "gemini-3.6-flash", at("2026-08-05T12:00:00Z")).cost == Decimal(9)
    assert ask("google", "gemini-3.6-flash").cost == Decimal("4.5")


# Fees and tools


@pytest.mark.parametrize(("model", "fee"), [("sonar", "0.005"), ("sonar-pro", "0.006")])
def test_perplexitys_fee_is_that_of_the_default_and_an_estimate(model: str, fee: str) -> None:
    charges = price(BOOK, {INPUT: 1_000}, provider="perplexity", model=model)
    request = next(charge for charge in charges.charges if charge.meter == "requests")
    assert (request.cost, request.kind) == (Decimal(fee), "estimate")
    assert request.matched_by.endswith(", implied")


def test_a_model_of_perplexitys_agents_has_no_fee() -> None:
    """Its id is ``perplexity/sonar``, and is not Sonar behind its provider's name."""
    charges = price(BOOK, {INPUT: 1_000}, provider="perplexity", model="perplexity/sonar")
    assert [charge.meter for charge in charges.charges] == [INPUT]


@pytest.mark.parametrize(
    ("provider", "model", "meter", "expected"),
    [
        ("openai", "gpt-5.3", "web_searches", "0.01"),
        ("openai", "gpt-5.3", "file_searches", "0.0025"),
        ("openai", "gpt-4o-search-preview-2025-03-11", "web_searches", "0.025"),
        ("openai", "gpt-4o-mini-search-preview", "web_searches", "0.025"),
        ("openai", "gpt-4o-mini", "web_searches", "0.01"),
        ("openai", "gpt-5-mini", "code_interpreter.sessions", "0.03"),
        ("anthropic", "claude-3-opus-latest", "web_searches", "0.01"),
        ("anthropic", "claude-opus-5-5", "web_fetches", "0"),
        ("x-ai", "grok-4.7", "x_searches", "0.005"),
        ("x-ai", "grok-4.7", "web_searches", "0.005"),
        ("x-ai", "grok-4.7", "code_interpreter.sessions", "0.005"),
        ("google", "gemini-2.5-flash", "maps_searches", "0.025"),
        ("google", "gemini-3.8-flash", "maps_searches", "0.014"),
    ],
)
def test_tools_that_upstream_does_not_price(provider: str, model: str, meter: str, expected: str) -> None:
    assert cost({meter: 1}, provider, model) == Decimal(expected)


def test_code_execution_is_billed_for_five_minutes_at_least() -> None:
    second, hour = Decimal(1), Decimal(3600)
    assert cost({"code_interpreter.seconds": second}, "anthropic", "claude-opus-5") == Decimal("0.004166666667")
    assert cost({"code_interpreter.seconds": hour}, "anthropic", "claude-opus-5") == Decimal("0.05")


# Tiers


@pytest.mark.parametrize(
    ("provider", "model", "when", "said", "expected"),
    [
        ("openai", "gpt-5", "2026-10-11T23:59:59Z", {"service_tier": "flex"}, "5.625"),
        ("openai", "gpt-5", "2026-10-12T00:00:00Z", {"service_tier": "flex"}, "5.625"),
        ("openai", "gpt-5", "2026-08-01T00:00:00Z", {"service_tier": "priority"}, "22.5"),
        ("openai", "gpt-5", "2026-08-01T00:00:00Z", {"service_tier": "fast"}, "22.5"),
        ("openai", "gpt-5.6-sol", "2026-08-21T00:00:00Z", {"service_tier": "priority"}, "76"),
        ("openai", "gpt-4.1", "2026-10-13T00:00:00Z", {"processing": "batch"}, "5"),
        ("anthropic", "claude-opus-4-1", "2026-01-01T00:00:00Z", {"processing": "batch"}, "45"),
        ("anthropic", "claude-haiku-4-5", "2026-10-13T23:59:59Z", {"service_tier": "batch"}, "3"),
        ("google", "gemini-3.7-flash", "2026-11-20T12:00:00Z", {"processing": "batch"}, "2.25"),
        ("google", "gemini-3.7-flash", "2026-11-20T12:00:00Z", {"service_tier": "priority"}, "8.1"),
        ("google", "gemini-2.5-flash", "2026-11-20T12:00:00Z", {"service_tier": "flex"}, "1.4"),
        ("google", "claude-haiku-4-5", "2026-11-20T12:00:00Z", {"processing": "batch"}, "3"),
        ("azure.ai.openai", "gpt-4o-2024-08-06", "2026-11-20T12:00:00Z", {"processing": "batch"}, "6.25"),
        ("mistral", "mistral-large-latest", "2026-11-20T12:00:00Z", {"service_tier": "priority"}, "3.5"),
        ("mistral", "mistral-large-latest", "2026-09-01T00:00:00Z", {"processing": "batch"}, "1"),
        ("aws.bedrock", "us.amazon.nova-pro-v1:0", "2026-11-20T12:00:00Z", {"processing": "batch"}, "2"),
    ],
)
def test_tiers_that_upstream_lacks(provider: str, model: str, when: str, said: dict[str, str], expected: str) -> None:
    usage: dict[str, int | Decimal] = {INPUT: MILLION if "sol" not in model else 2 * MILLION, OUTPUT: MILLION}
    assert cost(usage, provider, model, at(when), **said) == Decimal(expected) + (16 if "sol" in model else 0)


def test_a_price_that_is_only_announced_says_so() -> None:
    charges = ask("google", "gemini-3.7-flash", at("2027-01-01T00:00:00Z"), service_tier="priority")
    assert (charges.cost, charges.reasons) == (Decimal("16.2"), ("price_announced",))


def test_no_tier_before_the_day_it_was_read() -> None:
    assert ask("openai", "gpt-5", at("2026-07-29T23:59:59Z"), service_tier="flex").reasons == ("tier_unknown",)


# Residency


@pytest.mark.parametrize(
    ("provider", "model", "residency", "expected"),
    [
        ("anthropic", "claude-opus-4-6", "us", "33"),
        ("anthropic", "claude-opus-4-6", "global", "30"),
        ("anthropic", "claude-opus-4-6", "not_available", "30"),
        ("anthropic", "claude-opus-4-5-20251101", "us", "30"),  # released before
        ("anthropic", "claude-sonnet-4-6", "us", "19.8"),
        ("anthropic", "claude-opus-5-5", "us", "26.4"),
        ("openai", "gpt-5.4-mini", "eu", "5.775"),
        ("openai", "gpt-5.2", "eu", "15.75"),  # released before
        ("google", "claude-opus-4-8", "eu", "33"),
        ("google", "gemini-3.5-flash", "eu", "11.55"),
        ("google", "gemini-2.5-flash", "eu", "2.8"),  # no uplift known
        ("mistral", "mistral-large-2512", "eu", "2.2"),
    ],
)
def test_residency_multiplies_token_prices(provider: str, model: str, residency: str, expected: str) -> None:
    charges = ask(provider, model, residency=residency)
    assert charges.cost == charges.list_cost == Decimal(expected)


def test_residency_leaves_fees_alone() -> None:
    assert cost({"web_searches": 1000}, "anthropic", "claude-opus-4-6", residency="us") == 10


def test_no_model_has_two_factors_for_one_residency() -> None:
    layer = corrections()
    for provider in {factor.provider for factor in layer.factors}:
        for model in layer.catalogue.names("model", provider):
            said = ask(provider or "", model, residency="us")
            for charge in said.charges:
                assert charge.matched_by.count("×") <= 1, (provider, model)


# Catching up


def behind(rows: str) -> Corrections:
    """Corrections of a made-up file in front of the catalogue."""
    text = f"price_book: {{id: test}}\n{rows}"
    return Corrections(parse_layer(text.encode(), "test.yaml"), Catalogue())


def test_nothing_that_ships_is_needless() -> None:
    assert caught_up() == []


def test_a_row_that_upstream_has_too_is_needless() -> None:
    found = caught_up(
        behind(
            """
prices:
  - {id: same, provider: openai, sku: gpt-5-mini, meter: tokens.output, amount: 2, per: 1000000,
     when: {service_tier: standard, processing: online}, source: {note: caught up}}
  - {id: dearer, provider: openai, sku: gpt-5-mini, meter: tokens.input.uncached, amount: 2, per: 1000000,
     when: {service_tier: standard, processing: online}}
  - {id: since, provider: openai, sku: gpt-5-mini, meter: tokens.output, amount: 1, per: 1000000,
     when: {service_tier: flex, processing: online}, effective: [2026-10-12, null]}
  - {id: sooner, provider: openai, sku: gpt-5-nano, meter: tokens.output, amount: "0.2", per: 1000000,
     when: {service_tier: flex, processing: online}, effective: [2026-10-11, null]}
  - {id: all, provider: openai, sku: "gpt-5-m*", meter: file_searches, amount: "2.5", per: 1000}
  - {id: some, provider: openai, sku: "gpt-3*", meter: file_searches, amount: "2.5", per: 1000}
"""
        )
    )
    assert [each.id for each in found] == ["same", "since", "all"]
    assert (found[0].provider, found[0].sku, found[0].meter) == ("openai", "gpt-5-mini", "tokens.output")
    assert found[0].note == "caught up"


def test_rows_of_one_meter_stand_or_fall_together() -> None:
    """Upstream has the peak price at all those hours; without it, the off-peak row would hold at peak too."""
    found = caught_up(
        behind(
            """
prices:
  - {id: peak, provider: deepseek, sku: deepseek-flash, meter: tokens.output, amount: "1.2", per: 1000000,
     windows: [{days: [mon-fri], hours: ["01:00-04:00", "06:00-10:00"]}]}
  - {id: off, provider: deepseek, sku: deepseek-flash, meter: tokens.output, amount: "0.6", per: 1000000}
"""
        )
    )
    assert found == []


def test_an_alias_that_upstream_has_too_is_needless() -> None:
    found = caught_up(
        behind(
            """
aliases:
  - {ref: gpt-5-mini-2025-08-07, provider: openai, sku: openai/gpt-5-mini}
  - {ref: mistral-large-latest, provider: mistral, sku: mistral/mistral-large-2512}
"""
        )
    )
    assert [each.id for each in found] == ["alias gpt-5-mini-2025-08-07"]


def test_the_layer_is_a_layer_like_others() -> None:
    layer = corrections()
    assert isinstance(layer.table, TableLayer)
    assert list(BOOK.layers)[-2:] == [layer, layer.catalogue]
    assert "tollspan-corrections@" in BOOK.version


def test_suggestions_are_names_and_no_wildcards() -> None:
    names = list(corrections().names("model", "openai"))
    assert "ft:gpt-4.1-2025-04-14" in names
    assert not any(is_pattern(name) for name in names)
