"""The catalogue: what is made of genai-prices' data and of the names that spans give (see test_differential too)."""

from __future__ import annotations

import time
from collections.abc import Iterator
from decimal import Decimal
from functools import cache
from itertools import combinations, permutations

import pytest
from genai_prices.data import providers
from genai_prices.types import ModelInfo, ModelPrice, Provider

from tollspan.pricing import Charges, PriceBook, shipped_book
from tollspan.pricing.catalogue import PRICE_KEYS, UNMETERED, Catalogue, _metered, clean, compile_model
from tollspan.pricing.catalogue_names import find, unwrapped
from tollspan.pricing.meters import METERS
from tollspan.pricing.money import units_of
from tollspan.pricing.rows import Interval, PriceRow
from tollspan.pricing.schedule import DAY
from tollspan.pricing.selectors import PROVIDERS
from tollspan.pricing.yamlbook import parse_layer

from .books import INPUT, OUTPUT, price

BY_ID = {provider.id: provider for provider in providers}
CATALOGUE = PriceBook((Catalogue(),))


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
        yield from ((provider, model) for model in provider.models)


def prices(model: ModelInfo) -> Iterator[ModelPrice]:
    yield from (each.prices for each in model.prices) if isinstance(model.prices, list) else (model.prices,)
    yield from (variant.prices for variant in model.price_variants or ())


def known(provider: str, name: str) -> str | None:
    """The entry of genai-prices that a name stands for."""
    found = find(BY_ID[provider], name, providers)
    return None if found is None else f"{found[0].id}/{found[1].id}"


def ask(provider: str, model: str, **selectors: str) -> Charges:
    return price(CATALOGUE, {INPUT: 1_000_000}, provider=provider, model=model, **selectors)


# Data


def test_every_price_key_of_the_data_has_a_meter_or_is_listed() -> None:
    used = {key for _, model in models() for each in prices(model) for key, value in vars(each).items() if value}
    assert used <= PRICE_KEYS.keys() | UNMETERED
    assert used >= UNMETERED, "a key that upstream no longer uses can go"
    for meter, per, unit in PRICE_KEYS.values():
        assert meter in METERS
        assert per >= 1
        assert unit in units_of(meter)


def test_models_with_an_unmetered_price_price_no_tokens() -> None:
    """Nothing they could be charged for by tokens is left out of a total in silence."""
    found = [
        (provider, model)
        for provider, model in models()
        if any(key in UNMETERED for each in prices(model) for key, value in vars(each).items() if value is not None)
    ]
    assert len(found) == 3
    for provider, model in found:
        charges = price(CATALOGUE, {INPUT: 5, "audio.seconds": Decimal(1)}, provider=provider.id, model=model.id)
        assert (charges.status, charges.reasons) == ("partial", ("no_meter_price",)), model.id


def test_a_token_price_without_a_meter_takes_the_direction_with_it() -> None:
    one, two = Decimal(1), Decimal(2)
    assert set(_metered({"input_mtok": one, "cache_read_mtok": two, "output_mtok": two})) == {
        *(INPUT, "tokens.input.cache_read", OUTPUT)
    }
    assert set(_metered({"input_mtok": one, "input_tool_mtok": two, "output_mtok": two})) == {OUTPUT}
    assert set(_metered({"input_mtok": one, "output_text_reasoning_mtok": two, "output_mtok": two})) == {INPUT}


def test_two_prices_of_one_meter_are_none() -> None:
    same = {"audio_hours": Decimal(1), "input_audio_hours": Decimal(1)}
    assert set(_metered(same)) == {"audio.seconds"}
    assert set(_metered({**same, "output_audio_hours": Decimal(2)})) == set()


def test_the_whole_catalogue_compiles_in_less_than_a_second() -> None:
    started = time.process_time()
    count = sum(len(rows) for provider, model in models() for rows in compile_model(provider, model).rows.values())
    assert count > 7000
    assert time.process_time() - started < 1


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
    assert len(rows) > 7000
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
                    assert first.schedule is not None, first.id
                    assert second.schedule is not None, second.id
                    stretches = (first.schedule.stretches, second.schedule.stretches)
                    assert not any(a < d and c < b for a, b in stretches[0] for c, d in stretches[1]), first.id


def test_hours_become_a_schedule_of_every_day() -> None:
    deepseek = BY_ID["deepseek"]
    rows = compile_model(deepseek, next(m for m in deepseek.models if m.id == "deepseek-chat")).rows[INPUT]
    assert {row.amount for row in rows} == {Decimal("0.135"), Decimal("0.27")}
    assert all(row.effective == Interval() for row in rows)
    peak, night = sorted(rows, key=lambda row: row.amount, reverse=True)
    assert peak.schedule is not None
    assert night.schedule is not None
    assert peak.schedule.stretches == tuple((day * DAY + DAY // 48, day * DAY + DAY * 33 // 48) for day in range(7))
    assert len(night.schedule.stretches) == 8, "a night is one stretch, but for the one that the week cuts"


def test_a_price_that_only_continues_is_one_row() -> None:
    for name, meters in compiled():
        for rows in meters.values():
            for first, second in permutations(rows, 2):
                continues = first.effective.end is not None and first.effective.end == second.effective.start
                if continues and first.when == second.when and first.schedule == second.schedule:
                    assert (first.amount, first.steps) != (second.amount, second.steps), name


def test_models_without_prices_are_unpriced_unless_their_name_says_free() -> None:
    empty = [
        (provider, model)
        for provider, model in models()
        if provider.find_model(model.id) is model
        and not any(value is not None for each in prices(model) for value in vars(each).values())
    ]
    assert len(empty) > 100
    for provider, model in empty:
        charges = price(CATALOGUE, {INPUT: 5, OUTPUT: 5}, provider=provider.id, model=model.id)
        if model.id.endswith(":free"):
            assert (charges.cost, charges.status) == (0, "free"), model.id
        else:
            assert (charges.cost, charges.reasons) == (None, ("no_meter_price",)), model.id


# Tiers


@pytest.mark.parametrize("tier", ["scale", "flexx", "reserved"])
def test_a_tier_that_nobody_prices_is_unpriced(tier: str) -> None:
    for book in (CATALOGUE, shipped_book()):
        charges = price(book, {INPUT: 100}, provider="openai", model="gpt-5-mini", service_tier=tier)
        assert (charges.cost, charges.status, charges.reasons) == (None, "unpriced", ("tier_unknown",))


@pytest.mark.parametrize(("tier", "reasons"), [("default", ()), ("auto", ("tier_assumed",)), (None, ("tier_assumed",))])
def test_the_standard_price_says_when_the_tier_was_assumed(tier: str | None, reasons: tuple[str, ...]) -> None:
    charges = price(CATALOGUE, {INPUT: 1_000_000}, provider="openai", model="gpt-5-mini", service_tier=tier)
    assert (charges.cost, charges.status, charges.reasons) == (Decimal("0.25"), "priced", reasons)


def test_the_tiers_of_a_list_do_not_hold_at_another_provider() -> None:
    azure = ("azure.ai.openai", "gpt-5-mini-2025-08-07")
    assert ask(*azure).cost == Decimal("0.25")
    assert ask(*azure).reasons == ()
    assert ask(*azure, service_tier="flex").reasons == ("tier_unknown",)


# Names


@pytest.mark.parametrize(
    ("provider", "name", "entry"),
    [
        ("aws", "anthropic.claude-haiku-4-5-20251001-v1:0", "aws/regional.anthropic.claude-haiku-4-5-20251001-v1:0"),
        ("aws", "us.anthropic.claude-opus-4-6-v1", "aws/regional.anthropic.claude-opus-4-6-v1:0"),
        ("aws", "eu.anthropic.claude-opus-4-6-v1", "aws/regional.anthropic.claude-opus-4-6-v1:0"),
        ("aws", "jp.anthropic.claude-opus-4-8", "aws/regional.anthropic.claude-opus-4-8-v1:0"),
        ("aws", "au.anthropic.claude-opus-4-8", "aws/regional.anthropic.claude-opus-4-8-v1:0"),
        ("aws", "global.anthropic.claude-opus-4-6-v1", "aws/global.anthropic.claude-opus-4-6-v1:0"),
        ("aws", "apac.anthropic.claude-3-haiku-20240307-v1:0", "aws/regional.anthropic.claude-3-haiku-20240307-v1:0"),
        ("aws", "anthropic.claude-3-haiku-20240307-v1:0:48k", "aws/regional.anthropic.claude-3-haiku-20240307-v1:0"),
        (
            "aws",
            "arn:aws:bedrock:eu-west-1::foundation-model/anthropic.claude-haiku-4-5-20251001-v1:0",
            "aws/regional.anthropic.claude-haiku-4-5-20251001-v1:0",
        ),
        (
            "aws",
            "arn:aws:bedrock:us-east-1:123456789012:inference-profile/global.anthropic.claude-opus-4-6-v1",
            "aws/global.anthropic.claude-opus-4-6-v1:0",
        ),
        (
            "aws",
            "arn:aws:bedrock:us-east-1:123456789012:inference-profile/us.moonshotai.kimi-k3",
            "aws/regional.moonshotai.kimi-k3",
        ),
        ("aws", "bedrock/us-east-1/mistral.mistral-7b-instruct-v0:2", "aws/mistral.mistral-7b-instruct-v0:2"),
        ("google", "models/gemini-2.5-pro", "google/gemini-2.5-pro"),
        ("google", "publishers/google/models/gemini-2.5-pro-preview-05-06", "google/gemini-2.5-pro"),
        (
            "google",
            "projects/p/locations/l/publishers/anthropic/models/claude-opus-4-5@20251101",
            "google/claude-opus-4-5",
        ),
        ("google", "vertex_ai/claude-opus-4-6@default", "google/claude-opus-4-6"),
        ("google", "gemini-1.5-flash-002", "google/gemini-1.5-flash"),
        ("openai", "ft:gpt-4o-mini-2024-07-18:acme::9abc", "openai/ft:gpt-4o-mini"),
        ("openai", "ft:gpt-4o-2024-08-06:acme:support:9abc", "openai/ft:gpt-4o"),
        ("openai", "ft:gpt-3.5-turbo-0125:acme::9abc", "openai/ft:gpt-3.5-turbo-"),
        ("openai", "openai/gpt-5-mini", "openai/gpt-5-mini"),
        ("openai", "gpt-5.2-20251211", "openai/gpt-5.2"),
        ("openai", "gpt-5-nano-2025-08-07", "openai/gpt-5-nano"),
        ("anthropic", "claude-sonnet-4-5-20250929", "anthropic/claude-sonnet-4-5"),
        ("anthropic", "claude-3-opus-20240229", "anthropic/claude-3-opus-latest"),
        ("azure", "gpt-4o-mini-2024-07-18.ft-0e208cf33a6a466994aff31a08aba678", "openai/gpt-4o-mini-2024-07-18.ft-"),
        ("azure", "gpt-4o", "openai/gpt-4o"),
        ("openrouter", "anthropic/claude-opus-4.8", "openrouter/anthropic/claude-opus-4.8"),
        ("mistral", "mistral/mistral-large-2512", "mistral/mistral-large-2512"),
        ("deepseek", "deepseek-r1-0528", "deepseek/deepseek-reasoner"),
    ],
)
def test_names_of_one_model_lead_to_it(provider: str, name: str, entry: str) -> None:
    assert known(provider, name) == entry


@pytest.mark.parametrize(
    ("provider", "names"),
    [
        (
            "openai",
            ("gpt-7", "gpt-5-minix", "gpt-5-mini-turbo", "gpt-55", "gpt-5.6-solar", "o5", "o3-minix", "my-gpt-4o"),
        ),
        ("openai", ("ft:gpt-9:acme::1", "ft:gpt-4o-turbo:acme::1", "gpt-4o-realtime-pro", "computer-use-plus")),
        ("anthropic", ("claude-opus-9", "claude-opus-4-50", "claude-opus-4-5-mini", "claude-3-opus-lite", "claude")),
        (
            "google",
            ("gemini-9-pro", "gemini-3.7-flash-lite", "gemini-3.8-flash-cyber", "gemini-1.5-flash-8b", "gemini"),
        ),
        (
            "google",
            ("my-claude-opus-4-5", "claude-opus-4-55", "gemini-2.5-pro-max", "gemini-2.0-flash-exp-image-generation"),
        ),
        ("aws", ("us.anthropic.claude-opus-9-v1:0", "mars.anthropic.claude-opus-4-6-v1", "amazon.nova-lite-plus-v1:0")),
        ("azure", ("my-prod-chat", "gpt4o-prod", "team-o4-mini", "gpt-4o-prod")),
        ("deepseek", ("deepseek-r1-distill-llama-70b", "deepseek-chat-v9", "deepseek-v4-pro-max", "deepseek-v5")),
        ("openrouter", ("anthropic/claude-opus-9", "anthropic/claude-opus-4.8:nitro", "openai/gpt-7:free")),
        ("mistral", ("magistral-medium-pro", "mixtral-8x7bb", "mistral-huge")),
        ("moonshotai", ("kimi-k2.50905", "kimi-k2.5-pro", "kimi-k9")),
        ("x-ai", ("grok-9", "grok-4-turbo", "grok-voice")),
        ("groq", ("llama-9-70b", "whisper-large-v9")),
    ],
)
def test_names_of_no_model_stay_unknown(provider: str, names: tuple[str, ...]) -> None:
    for name in names:
        for book in (CATALOGUE, shipped_book()) if name != "gemini-1.5-flash-8b" else (CATALOGUE,):
            charges = price(book, {INPUT: 100, OUTPUT: 100}, provider=provider, model=name)
            assert (charges.cost, charges.reasons) == (None, ("unknown_model",)), name


@pytest.mark.parametrize("provider", ["openai", "anthropic", "gcp.gemini", "aws.bedrock", "nobody"])
@pytest.mark.parametrize("model", ["claude-opus-9", "gpt-7", "gemini-9-pro"])
def test_a_model_of_the_future_is_unknown_and_not_free(provider: str, model: str) -> None:
    usage = {INPUT: 100, OUTPUT: 100, "web_searches": 5, "file_searches": 1, "maps_searches": 1}
    charges = price(shipped_book(), usage, provider=provider, model=model)
    assert (charges.cost, charges.status, charges.reasons) == (None, "unpriced", ("unknown_model",))


@pytest.mark.parametrize(
    "resource",
    [
        "application-inference-profile/claude-opus-4-6",
        "provisioned-model/anthropic.claude-haiku-4-5-20251001-v1:0",
        "custom-model/amazon.nova-lite-v1:0/abc",
        "custom-model-deployment/abc",
        "imported-model/meta.llama3-8b-instruct-v1:0",
    ],
)
def test_a_resource_of_the_account_names_no_model(resource: str) -> None:
    """Its id is the account's own, even if it looks like a model's name."""
    arn = f"arn:aws:bedrock:us-east-1:123456789012:{resource}"
    assert unwrapped("aws", arn) is None
    assert ask("aws.bedrock", arn).reasons == ("unknown_model",)


def test_names_of_the_account_are_known_through_an_alias() -> None:
    arn = "arn:aws:bedrock:us-east-1:123456789012:application-inference-profile/4nqtdxw9ytrp"
    own = parse_layer(
        f"""
aliases:
  - {{ref: "{arn}", provider: aws, sku: aws/us.anthropic.claude-opus-4-6-v1}}
  - {{ref: my-prod-chat, provider: azure, sku: azure/gpt-4o}}
""".encode(),
        "own.yaml",
    )
    book = shipped_book().with_front(own)
    assert price(book, {INPUT: 1_000_000}, provider="aws.bedrock", model=arn).cost == Decimal("5.5")
    assert price(book, {INPUT: 1_000_000}, provider="az.ai.openai", model="my-prod-chat").cost == Decimal("2.5")
    # What the name stands for has all its prices, corrections included.
    assert price(book, {OUTPUT: 1_000_000}, provider="azure", model="my-prod-chat", processing="batch").cost == 5


@pytest.mark.parametrize("partition", ["aws-us-gov", "aws-cn"])
def test_other_partitions_of_aws_have_prices_of_their_own(partition: str) -> None:
    arn = f"arn:{partition}:bedrock:us-gov-west-1::foundation-model/amazon.nova-lite-v1:0"
    assert ask("aws", arn).reasons == ("unknown_model",)
    assert ask("aws", "us-gov-west-1/amazon.nova-lite-v1:0").reasons == ("unknown_model",)


def test_every_id_is_found_as_itself() -> None:
    """But for ids that upstream itself finds another entry for."""
    count = 0
    for provider, model in models():
        theirs = provider.find_model(model.id, all_providers=providers)
        found = find(provider, model.id.lower(), providers)
        assert (found is None) == (theirs is None), (provider.id, model.id)
        assert found is None or found[1] is theirs, (provider.id, model.id)
        count += found is not None
    assert count > 2200


def test_the_owners_of_a_name() -> None:
    catalogue = Catalogue()
    assert list(catalogue.owners("gpt-5-mini")) == ["github-copilot", "openai"]
    assert list(catalogue.owners("gpt-7")) == []
    unnamed = price(CATALOGUE, {INPUT: 100}, model="gpt-5-mini")
    assert (unnamed.cost, unnamed.charges[0].status) == (None, "ambiguous")


def test_providers_are_spelled_one_way() -> None:
    ids = {provider.id for provider in providers}
    assert set(PROVIDERS.values()) <= ids
    assert not set(PROVIDERS) & ids


def test_misses_are_remembered() -> None:
    catalogue = Catalogue()
    assert not catalogue.skus("model", "openai", "gpt-7")
    assert catalogue._found == {("openai", "gpt-7"): None}


def test_short_transcriptions_at_groq_cost_ten_seconds() -> None:
    costs = [
        price(CATALOGUE, {"audio.seconds": Decimal(s)}, provider="groq", model="whisper-large-v3").cost
        for s in ("1", "10", "3600")
    ]
    assert costs == [costs[1], costs[1], Decimal("0.111")]


def test_a_web_search_that_has_no_price_is_not_free() -> None:
    usage = {INPUT: 1_000_000, "web_searches": 5}
    charges = price(shipped_book(), usage, provider="mistral", model="mistral-large-2512")
    assert (charges.cost, charges.status, charges.reasons) == (Decimal("0.5"), "partial", ("no_meter_price",))
