"""Which row applies: front book before back, served model before requested, exact before alias before pattern."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal

import pytest

from tollspan.pricing import PriceBook, PriceEngine, Selectors, shipped_book
from tollspan.pricing.selectors import PROVIDERS

from .books import INPUT, NOON, OUTPUT, at, book_of, price


def rows(*lines: str) -> str:
    return "prices:\n" + "".join(f"  - {{meter: {INPUT}, {line}}}\n" for line in lines)


def test_an_exact_name_wins_over_an_alias_and_an_alias_over_a_pattern() -> None:
    book = book_of(
        rows(
            "provider: p, sku: m-1, amount: 1",
            "provider: p, sku: target, amount: 2",
            "provider: p, sku: m-*, amount: 3",
        )
        + "aliases:\n  - {ref: m-1, provider: p, sku: p/target}\n  - {ref: m-2, provider: p, sku: p/target}\n"
    )
    found = {m: price(book, {INPUT: 1}, provider="p", model=m).charges[0] for m in ("m-1", "m-2", "m-3")}
    assert [(c.cost, c.matched_by) for c in found.values()] == [
        (1, "exact model"),
        (2, "alias model"),
        (3, "pattern model"),
    ]


def test_the_longer_pattern_wins() -> None:
    book = book_of(rows("sku: '*', amount: 1", "sku: 'my-*', amount: 2", "sku: 'my-model-*', amount: 3"))
    costs = [price(book, {INPUT: 1}, provider="p", model=m).cost for m in ("other", "my-x", "my-model-x")]
    assert costs == [1, 2, 3]


def test_a_row_for_the_provider_wins_over_one_for_any() -> None:
    book = book_of(rows("sku: m, amount: 1", "provider: p, sku: m, amount: 2"))
    assert price(book, {INPUT: 1}, provider="p", model="m").cost == 2
    assert price(book, {INPUT: 1}, provider="q", model="m").cost == 1
    assert price(book, {INPUT: 1}, model="m").cost == 1


SPELLINGS = [
    ("azure", "azure.ai.openai"),
    ("azure", "azure.ai.inference"),
    ("azure", "az.ai.openai"),
    ("google", "gcp.gemini"),
    ("google", "gcp.vertex_ai"),
    ("google", "gcp.gen_ai"),
    ("aws", "aws.bedrock"),
    ("bedrock", "aws.bedrock"),
    ("mistral", "mistral_ai"),
    ("xai", "x_ai"),
    ("x-ai", "x_ai"),
    ("moonshotai", "moonshot_ai"),
    ("together", "together_ai"),
    ("fireworks", "fireworks_ai"),
    *((spelling, name) for spelling, name in PROVIDERS.items()),
]


@pytest.mark.parametrize(("one", "other"), SPELLINGS)
def test_a_provider_is_the_same_in_every_spelling_of_book_and_span(one: str, other: str) -> None:
    for in_book, on_span in ((one, other), (other, one), (one.title(), other.upper())):
        book = book_of(
            rows(f"provider: {in_book}, sku: m, amount: 3") + f"aliases: [{{ref: prod, sku: {in_book}/m}}]\n"
        )
        assert price(book, {INPUT: 1}, provider=on_span, model="m").cost == 3
        assert price(book, {INPUT: 1}, provider="elsewhere", model="prod").cost == 3
        named = book_of(
            f"aliases: [{{ref: prod, provider: {in_book}, sku: p/m}}]\n", rows("provider: p, sku: m, amount: 2")
        )
        assert price(named, {INPUT: 1}, provider=on_span, model="prod").cost == 2
        assert price(named, {INPUT: 1}, provider="elsewhere", model="prod").status == "unpriced"


def test_a_contract_with_a_provider_wins_over_its_list_in_any_spelling() -> None:
    contract = book_of(rows("provider: azure, sku: gpt-4o, amount: 7")).layers[0]
    charges = price(shipped_book().with_front(contract), {INPUT: 1}, provider="azure.ai.openai", model="gpt-4o")
    assert (charges.cost, charges.charges[0].matched_by) == (7, "exact model")


@pytest.mark.parametrize(
    ("in_book", "on_host"),
    [("aws.bedrock", "aws"), ("gcp.gemini", "gcp"), ("google", "gcp"), ("azure_openai", "azure")],
)
def test_a_cloud_provider_is_no_spelling_of_a_model_provider(in_book: str, on_host: str) -> None:
    def book(provider: str) -> PriceBook:
        return book_of(
            f"prices:\n  - {{provider: {provider}, sku: h100, meter: gpu.seconds, amount: 1}}\n"
            f"  - {{provider: {provider}, meter: network.egress.bytes, amount: 1}}\n"
            f"  - {{sku: m5.large, meter: cpu.seconds, amount: 1}}\n"
            f"aliases: [{{ref: mine, provider: {provider}, sku: '*/m5.large'}}]\n"
        )

    for usage, selectors in (
        ({"gpu.seconds": 10**9}, {"device": "h100"}),
        ({"network.egress.bytes": 1}, {}),
        ({"cpu.seconds": 10**9}, {"host_type": "mine"}),
    ):
        assert price(book(in_book), usage, cloud_provider=on_host, **selectors).status == "unpriced"
        assert price(book(on_host), usage, cloud_provider=on_host, **selectors).cost == 1
        assert price(book(in_book), usage, provider=in_book, cloud_provider=on_host, **selectors).status == "unpriced"


def test_a_pattern_in_front_wins_over_an_exact_name_behind() -> None:
    book = book_of(rows("sku: 'm*', amount: 1"), rows("provider: p, sku: m, amount: 2"))
    assert price(book, {INPUT: 1}, provider="p", model="m").cost == 1


def test_a_front_book_without_the_meter_leaves_it_to_the_one_behind() -> None:
    behind = f"prices:\n  - {{provider: p, sku: m, meter: {OUTPUT}, amount: 5}}\n"
    book = book_of(rows("provider: p, sku: m, amount: 1"), behind)
    assert price(book, {INPUT: 1, OUTPUT: 1}, provider="p", model="m").cost == 6


def test_the_served_model_is_looked_up_before_the_requested_one() -> None:
    book = book_of(rows("provider: p, sku: asked, amount: 1", "provider: p, sku: served, amount: 2"))
    both = price(book, {INPUT: 1}, provider="p", model="served", request_model="asked")
    assert (both.cost, both.charges[0].matched_by) == (2, "exact model")
    fallen_back = price(book, {INPUT: 1}, provider="p", model="unheard-of", request_model="asked")
    assert (fallen_back.cost, fallen_back.charges[0].matched_by) == (1, "exact request_model")


def test_an_alias_leads_to_a_book_behind_and_holds_for_its_time() -> None:
    front = "aliases:\n  - {ref: prod, sku: p/old, to: 2026-06-01}\n  - {ref: prod, sku: p/new, from: 2026-06-01}\n"
    book = book_of(front, rows("provider: p, sku: old, amount: 1", "provider: p, sku: new, amount: 2"))
    costs = [
        price(book, {INPUT: 1}, at=at(instant), provider="azure", model="prod").cost
        for instant in ("2026-05-31T23:59:59.999999Z", "2026-06-01T00:00:00Z")
    ]
    assert costs == [1, 2]


def test_more_conditions_win_over_fewer() -> None:
    book = book_of(
        rows(
            "sku: m, amount: 1",
            "sku: m, amount: 2, when: {region: eu}",
            "sku: m, amount: 3, when: {region: eu, service_tier: flex}",
        )
    )
    assert price(book, {INPUT: 1}, model="m").cost == 1
    assert price(book, {INPUT: 1}, model="m", region="eu").cost == 2
    assert price(book, {INPUT: 1}, model="m", region="eu", service_tier="flex").cost == 3
    assert price(book, {INPUT: 1}, model="m", region="us", service_tier="flex").cost == 1


def test_a_price_changes_exactly_at_its_instant() -> None:
    book = book_of(
        rows(
            "sku: m, amount: 1, effective: [null, 2026-11-20T12:00:00Z]",
            "sku: m, amount: 2, effective: [2026-11-20T12:00:00Z, null]",
        )
    )
    engine, selectors = PriceEngine(book), Selectors(model="m")
    instant = int(NOON.timestamp()) * 10**9
    assert engine.price({INPUT: 1}, at=instant - 1, selectors=selectors).cost == 1
    assert engine.price({INPUT: 1}, at=instant, selectors=selectors).cost == 2
    assert engine.price({INPUT: 1}, at=NOON - timedelta(microseconds=1), selectors=selectors).cost == 1


def test_windows_hold_on_their_days_and_hours() -> None:
    # DeepSeek's peak hours: Monday to Friday 01-04 and 06-10 UTC.
    book = book_of(
        rows(
            "sku: m, amount: 1",
            "sku: m, amount: 2, windows: [{days: [mon-fri], hours: ['01:00-04:00', '06:00-10:00']}]",
        )
    )
    expected = {
        "2026-11-20T00:59:59Z": 1,  # a Friday
        "2026-11-20T01:00:00Z": 2,
        "2026-11-20T04:00:00Z": 1,
        "2026-11-20T09:59:59.999999Z": 2,
        "2026-11-21T02:00:00Z": 1,  # Saturday
        "2026-11-23T02:00:00Z": 2,
    }
    assert {when: price(book, {INPUT: 1}, at=at(when), model="m").cost for when in expected} == expected


@pytest.mark.parametrize(
    ("selectors", "reason"),
    [
        ({"provider": "p", "model": "other"}, "unknown_model"),
        ({}, "unknown_model"),
        ({"provider": "p", "model": "m", "region": "us"}, "no_price_for_region"),
        ({"provider": "p", "model": "m", "region": "eu", "service_tier": "scale"}, "tier_unknown"),
    ],
)
def test_what_has_no_price_says_why(selectors: dict[str, str], reason: str) -> None:
    book = book_of(rows("provider: p, sku: m, amount: 1, when: {region: eu, service_tier: standard}"))
    charges = price(book, {INPUT: 1}, **selectors)
    assert (charges.cost, charges.status, charges.reasons) == (None, "unpriced", (reason,))


def test_a_known_model_says_which_part_of_its_price_is_missing() -> None:
    book = book_of(rows("provider: p, sku: m, amount: 1, effective: [2026-12-01, null]"))
    assert price(book, {INPUT: 1}, provider="p", model="m").reasons == ("no_price_at_time",)
    assert price(book, {"web_searches": 1}, provider="p", model="m").reasons == ("no_meter_price",)


def test_a_price_for_any_model_makes_no_model_known() -> None:
    book = book_of("prices:\n  - {sku: '*', meter: requests, amount: 1}\n")
    assert price(book, {INPUT: 1, "requests": 1}, model="m").reasons == ("unknown_model",)


@pytest.mark.parametrize(
    ("usage", "reason"),
    [
        ({"gpu.seconds": 1}, "unknown_device"),
        ({"cpu.seconds": 1}, "unknown_host"),
        ({"network.egress.bytes": 1}, "unknown_platform"),
    ],
)
def test_each_axis_has_its_own_unknown(usage: dict[str, int | Decimal], reason: str) -> None:
    assert price(book_of(rows("sku: m, amount: 1")), usage, model="m").reasons == (reason,)


def test_tokens_without_a_price_of_their_own_cost_what_includes_them() -> None:
    text = f"prices:\n  - {{sku: m, meter: {INPUT}, amount: 1}}\n  - {{sku: m, meter: {OUTPUT}, amount: 5}}\n"
    meters = {
        "tokens.input.cache_read": 1,
        "tokens.input.cache_write": 1,
        "tokens.input.cache_write.30m": 1,
        "tokens.input.audio.cache_read": 1,
        "tokens.output.reasoning": 5,
        "tokens.output.audio": 5,
    }
    charges = price(book_of(text), dict.fromkeys(meters, 1), model="m")
    assert {charge.meter: charge.cost for charge in charges.charges} == meters
    assert charges.charges[-1].matched_by.startswith("exact model as tokens.output")


def test_a_price_of_its_own_for_other_conditions_is_not_replaced_by_another_meters() -> None:
    text = (
        f"prices:\n  - {{sku: m, meter: {INPUT}, amount: 1}}\n"
        "  - {sku: m, meter: tokens.input.cache_read, amount: 0.1, when: {region: eu}}\n"
    )
    charges = price(book_of(text), {"tokens.input.cache_read": 1}, model="m", region="us")
    assert (charges.status, charges.reasons) == ("unpriced", ("no_price_for_region",))


def test_twelve_hour_cache_writes_are_not_guessed() -> None:
    text = rows("sku: m, amount: 1") + "  - {sku: m, meter: tokens.input.cache_write, amount: 2}\n"
    assert price(book_of(text), {"tokens.input.cache_write.12h": 1}, model="m").status == "unpriced"


@pytest.mark.parametrize("tier", [None, "auto"])
def test_a_tier_that_is_not_named_is_assumed_where_it_matters(tier: str | None) -> None:
    book = book_of(
        rows(
            "sku: m, amount: 1, when: {service_tier: standard}",
            "sku: m, amount: 2, when: {service_tier: flex}",
            "sku: n, amount: 1",
        )
    )
    assert price(book, {INPUT: 1}, model="m", service_tier=tier).reasons == ("tier_assumed",)
    assert price(book, {INPUT: 1}, model="m", service_tier=tier).status == "priced"
    assert price(book, {INPUT: 1}, model="n", service_tier=tier).reasons == ()
    assert price(book, {INPUT: 1}, model="m", service_tier="default").reasons == ()


def test_everything_that_was_looked_at_can_be_told() -> None:
    book = book_of(
        rows("provider: p, sku: m, amount: 1, when: {region: eu}", "provider: p, sku: 'm*', amount: 2"),
        rows("provider: p, sku: m, amount: 3"),
    )
    looked_at = PriceEngine(book).explain(INPUT, at=NOON, selectors=Selectors(provider="p", model="m"))
    assert [(item.matched_by, item.verdict) for item in looked_at] == [
        ("exact model", "asks for region = eu"),
        ("pattern model", "chosen"),
    ]
