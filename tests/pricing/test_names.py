"""Whose price a name gets: a model has many names, and none of them may lead to another model's price."""

from __future__ import annotations

import time
from decimal import Decimal
from fnmatch import fnmatchcase

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tollspan.pricing import shipped_book
from tollspan.pricing.patterns import matches
from tollspan.pricing.yamlbook import parse_layer

from .books import INPUT, OUTPUT, book_of, price

MILLION: dict[str, int | Decimal] = {OUTPUT: 1_000_000}


def with_front(text: str):  # type: ignore[no-untyped-def]
    return shipped_book().with_front(parse_layer(text.encode(), "own.yaml"))


def contract(provider: str, sku: str) -> str:
    row = f"provider: {provider}, sku: {sku!r}, meter: {OUTPUT}, amount: 1, per: 1000000, kind: contract"
    return f"prices:\n  - {{{row}}}\n"


@pytest.mark.parametrize(
    ("provider", "sku", "model"),
    [
        ("anthropic", "claude-sonnet-4-5", "claude-sonnet-4-5-20250929"),
        ("aws", "anthropic.claude-sonnet-4-5-20250929-v1:0", "us.anthropic.claude-sonnet-4-5-20250929-v1:0"),
        (
            "aws",
            "anthropic.claude-sonnet-4-5-20250929-v1:0",
            "arn:aws:bedrock:us-east-1::foundation-model/anthropic.claude-sonnet-4-5-20250929-v1:0",
        ),
        ("openai", "gpt-5-mini", "gpt-5-mini-2025-08-07"),
        ("google", "gemini-2.5-pro", "models/gemini-2.5-pro"),
        ("azure", "gpt-4o", "gpt-4o-2024-11-20"),
    ],
)
def test_a_users_price_holds_for_every_name_of_the_model(provider: str, sku: str, model: str) -> None:
    charges = price(with_front(contract(provider, sku)), MILLION, provider=provider, model=model)
    assert (charges.cost, charges.charges[0].kind) == (1, "contract")


@pytest.mark.parametrize(
    ("provider", "sku", "model"),
    [
        # The price of one version says nothing about another, nor that of a region about the global profile.
        ("openai", "gpt-4o-2024-08-06", "gpt-4o"),
        ("openai", "gpt-4o-2024-08-06", "gpt-4o-2024-11-20"),
        ("openai", "gpt-5", "gpt-5-mini"),
        ("aws", "anthropic.claude-sonnet-4-5-20250929-v1:0", "global.anthropic.claude-sonnet-4-5-20250929-v1:0"),
    ],
)
def test_a_users_price_of_another_version_does_not(provider: str, sku: str, model: str) -> None:
    charge = price(with_front(contract(provider, sku)), MILLION, provider=provider, model=model).charges[0]
    assert charge.kind == "list"


@pytest.mark.parametrize("tier", ["priority", "flex"])
def test_a_known_served_model_is_never_billed_as_the_requested_one(tier: str) -> None:
    said = {"provider": "openai", "model": "gpt-5-pro", "request_model": "gpt-5-mini", "service_tier": tier}
    charges = price(shipped_book(), MILLION, **said)
    assert (charges.cost, charges.reasons) == (None, ("tier_unknown",))
    # Nor at a price that the user has for the requested one.
    own = with_front(contract("openai", "gpt-5-mini"))
    assert price(own, MILLION, provider="openai", model="gpt-5-pro", request_model="gpt-5-mini").cost == 120


def test_a_served_model_that_nobody_knows_is_priced_as_requested_and_says_so() -> None:
    said = {"provider": "openai", "model": "gpt-6-foo", "request_model": "gpt-5-mini", "service_tier": "default"}
    charges = price(shipped_book(), MILLION, **said)
    assert (charges.cost, charges.reasons) == (2, ("model_assumed",))
    assert charges.charges[0].matched_by == "exact request_model"


def test_a_deployment_is_a_name_of_the_users_own() -> None:
    # What is asked for at Azure is a deployment; prepaid ones are known by that name alone.
    prepaid = f"prices:\n  - {{provider: azure, sku: my-ptu-chat, meter: {OUTPUT}, kind: included}}\n"
    said = {"provider": "azure", "model": "gpt-4o-2024-11-20"}
    charges = price(with_front(prepaid), MILLION, request_model="my-ptu-chat", **said)
    assert (charges.cost, charges.status, charges.list_cost) == (0, "included", 10)
    assert price(with_front(prepaid), MILLION, request_model="my-other-chat", **said).cost == 10


@pytest.mark.parametrize(
    ("match", "said", "expected"),
    [
        ("provider: openai, sku: gpt-5-mini-2025-08-07", {"model": "gpt-5-mini-2025-08-07"}, "1"),
        ("provider: openai, sku: gpt-5-mini", {"model": "gpt-5-mini-2025-08-07"}, "1"),
        ("provider: openai, sku: gpt-5-mini-2025-08-07", {"model": "gpt-5-mini"}, "2"),
    ],
)
def test_a_percentage_is_about_the_model_by_any_of_its_names(match: str, said: dict[str, str], expected: str) -> None:
    own = f"adjustments:\n  - {{id: half, match: {{{match}}}, percent: -50}}\n"
    assert price(with_front(own), MILLION, provider="openai", **said).cost == Decimal(expected)


def test_a_percentage_is_about_the_meter_that_was_used() -> None:
    own = "adjustments:\n  - {id: half, match: {provider: acme, meter: tokens.output.reasoning}, percent: -50}\n"
    rows = f"prices:\n  - {{provider: acme, sku: m, meter: {OUTPUT}, amount: 2, per: 1000000}}\n"
    usage: dict[str, int | Decimal] = {OUTPUT: 1_000_000, "tokens.output.reasoning": 1_000_000}
    charges = price(book_of(own, rows), usage, provider="acme", model="m")
    assert [charge.cost for charge in charges.charges] == [2, 1]


def test_an_uplift_that_ships_multiplies_a_list_price_of_the_users_own() -> None:
    own = f"prices:\n  - {{provider: openai, sku: '*', meter: {OUTPUT}, amount: 4, per: 1000000}}\n"
    said = {"provider": "openai", "model": "gpt-5.4-mini", "residency": "eu"}
    assert price(with_front(own), MILLION, **said).cost == Decimal("4.4")


@pytest.mark.parametrize("sku", ["sku: 'nvidia h100*', ", ""])
def test_a_slice_of_a_device_costs_its_share_whatever_the_row_for_the_device_is(sku: str) -> None:
    own = f"prices:\n  - {{provider: aws, {sku}meter: gpu.seconds, amount: 7, unit: hour}}\n"
    hour: dict[str, int | Decimal] = {"gpu.seconds": Decimal(3600)}
    slice_of = {"cloud_provider": "aws", "device": "NVIDIA H100 80GB HBM3 MIG 1g.10gb"}
    assert price(with_front(own), hour, **slice_of).cost == 1
    assert price(with_front(own), hour, cloud_provider="aws", device="NVIDIA H100 80GB HBM3").cost == 7


def test_cache_writes_for_an_hour_have_a_price_of_their_own_or_none() -> None:
    rows = f"""\
        prices:
          - {{sku: m, meter: {INPUT}, amount: 1}}
          - {{sku: m, meter: tokens.input.cache_write, amount: 2}}
    """
    usage: dict[str, int | Decimal] = {"tokens.input.cache_write.5m": 1, "tokens.input.cache_write.1h": 1}
    charges = price(book_of(rows), usage, model="m")
    assert [charge.cost for charge in charges.charges] == [2, None]
    assert charges.status == "partial"


def test_a_cache_without_a_price_is_charged_as_input_and_says_so() -> None:
    rows = f"prices:\n  - {{sku: m, meter: {INPUT}, amount: 1}}\n"
    charges = price(book_of(rows), {"tokens.input.cache_read": 3}, model="m", service_tier="default")
    assert (charges.cost, charges.reasons) == (3, ("meter_assumed",))


def test_a_contract_for_some_calls_leaves_the_list_price_to_the_others() -> None:
    row = "provider: openai, sku: gpt-5, meter: tokens.output.reasoning, kind: included, when: {service_tier: seat}"
    own = f"prices:\n  - {{{row}}}\n"
    reasoning: dict[str, int | Decimal] = {"tokens.output.reasoning": 1_000_000}
    said = {"provider": "openai", "model": "gpt-5"}
    assert price(with_front(own), reasoning, service_tier="default", **said).cost == 10
    assert price(with_front(own), reasoning, service_tier="seat", **said).cost == 0


def test_a_withdrawn_model_has_no_price_of_a_layer_behind() -> None:
    front = (
        f"prices:\n  - {{provider: p, sku: m, meter: {OUTPUT}, amount: 0, status: withdrawn, "
        "effective: [2026-07-24T16:00:00Z, null]}\n"
    )
    behind = f"prices:\n  - {{provider: p, sku: m, meter: {OUTPUT}, amount: 5}}\n"
    charges = price(book_of(front, behind), {OUTPUT: 1, "tokens.output.reasoning": 1}, provider="p", model="m")
    assert (charges.cost, charges.reasons) == (None, ("no_price_at_time",))


@given(st.text("ab*?", max_size=8), st.text("ab", max_size=12))
def test_patterns_match_as_file_names_do(pattern: str, name: str) -> None:
    expected = fnmatchcase(name, pattern) if set("*?") & set(pattern) else name == pattern
    assert matches(pattern, name) == expected


def test_no_name_takes_long_to_match() -> None:
    began = time.process_time()
    assert not matches("*llama*-*-instruct*", "llama-" * 2000)
    assert not matches("*-*-*-*-*-prod", "-" * 20_000)
    assert time.process_time() - began < 0.5
