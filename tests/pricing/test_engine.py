"""One call to exact charges: worked examples to the last digit, and statuses that never turn unknown into zero."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tollspan.pricing import PriceEngine, Selectors, shipped_book
from tollspan.pricing.conventions import OTEL_INCLUSIVE, disjoint

from .books import INPUT, NOON, OUTPUT, at, book_of, price

READ, WRITE = "tokens.input.cache_read", "tokens.input.cache_write"


def rates(**amounts: str) -> str:
    """A book for model ``m`` with USD a million tokens by meter (``__`` for the dots)."""
    lines = [
        f"  - {{sku: m, meter: {meter.replace('__', '.')}, amount: {amount}, per: 1000000}}"
        for meter, amount in amounts.items()
    ]
    return "prices:\n" + "\n".join(lines) + "\n"


FOCUS = rates(
    tokens__input__uncached="3",
    tokens__input__cache_write="3.75",
    tokens__input__cache_read="0.30",
    tokens__output="15",
)
MARKETPLACE = rates(tokens__input__cache_read="0.20", tokens__input__cache_write="2.50")
SONNET = "anthropic.claude-sonnet-4-5-20250929-v1:0"
GEMINI = rates(tokens__input__uncached="0.30", tokens__output="2.50")


@pytest.mark.parametrize(
    ("book", "usage", "expected"),
    [
        # FOCUS, appendix on prompt caching, example A.
        (
            FOCUS,
            {INPUT: 500_000, WRITE: 2_000_000, READ: 8_000_000, OUTPUT: 1_500_000},
            ["1.50", "2.40", "7.50", "22.50"],
        ),
        # FOCUS, AI model identity, example A.
        (FOCUS, {INPUT: 5_000_000, OUTPUT: 1_500_000}, ["15.00", "22.50"]),
        # FOCUS, cached tokens through a marketplace.
        (MARKETPLACE, {READ: 50_000_000, WRITE: 15_000_000}, ["10.00", "37.50"]),
        # PostHog/posthog#71065: 22 output tokens include 21 of thinking; the wrong answer was 0.0001102.
        (GEMINI, {INPUT: 9, OUTPUT: 1, "tokens.output.reasoning": 21}, ["0.0000027", "0.0000025", "0.0000525"]),
    ],
)
def test_worked_examples(book: str, usage: dict[str, int | Decimal], expected: list[str]) -> None:
    charges = price(book_of(book), usage, model="m")
    assert [charge.cost for charge in charges.charges] == [Decimal(cost) for cost in expected]
    assert charges.cost == sum(map(Decimal, expected))


def test_the_saving_of_the_cache_example() -> None:
    # The same 10.5 million input tokens without a cache: 31.50, so 20.10 less is paid.
    usage = {INPUT: 500_000, WRITE: 2_000_000, READ: 8_000_000}
    cached = price(book_of(FOCUS), usage, model="m").cost
    assert price(book_of(FOCUS), {INPUT: 10_500_000}, model="m").cost == Decimal("31.50")
    assert cached is not None
    assert Decimal("31.50") - cached == Decimal("20.10")


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ({"input_tokens": 9, "output_tokens": 22, "reasoning": 21}, Decimal("0.0000577")),
        ({"output_tokens": 136, "reasoning": 31}, Decimal(136) * Decimal("0.0000025")),  # theopenco/llmgateway#3435
    ],
)
def test_worked_examples_from_reported_counts(counts: dict[str, int], expected: Decimal) -> None:
    quantities, _ = disjoint(OTEL_INCLUSIVE, counts)
    assert price(book_of(GEMINI), dict(quantities), model="m").cost == expected


@pytest.mark.parametrize(
    ("provider", "model", "usage", "selectors", "instant", "expected"),
    [
        # genai-prices 0.2.3, README.
        ("openai", "o3", {INPUT: 10**6, OUTPUT: 10**6}, {"service_tier": "flex"}, "2026-10-12T00:00:00Z", "5"),
        ("openai", "o3", {INPUT: 10**6, OUTPUT: 10**6}, {"processing": "batch"}, "2026-10-14T00:00:00Z", "5"),
        (
            "anthropic",
            "claude-fable-5-2",
            {INPUT: 10**6, OUTPUT: 10**6},
            {"service_tier": "fast"},
            "2026-11-10T00:00:00Z",
            "96",
        ),
        (
            "google",
            "gemini-2.5-flash",
            {INPUT: 9, OUTPUT: 1, "tokens.output.reasoning": 21},
            {},
            "2026-11-20T12:00:00Z",
            "0.0000577",
        ),
        # The regional profiles of Claude on Bedrock cost 1.10 times the global one (AWS Price List).
        ("aws.bedrock", f"global.{SONNET}", {INPUT: 10**5, OUTPUT: 10**5}, {}, "2026-11-20T12:00:00Z", "1.8"),
        ("aws.bedrock", f"us.{SONNET}", {INPUT: 10**5, OUTPUT: 10**5}, {}, "2026-11-20T12:00:00Z", "1.98"),
    ],
)
def test_worked_examples_from_the_shipped_book(
    provider: str, model: str, usage: dict[str, int | Decimal], selectors: dict[str, str], instant: str, expected: str
) -> None:
    charges = price(shipped_book(), usage, at=at(instant), provider=provider, model=model, **selectors)
    assert charges.cost == Decimal(expected)


STEPS = f"""\
prices:
  - {{sku: m, meter: {INPUT}, amount: 1, tiers: {{steps: [{{above: 100, amount: 2}}, {{above: 200, amount: 3}}]}}}}
  - {{sku: m, meter: {READ}, amount: 0.1}}
  - {{sku: m, meter: {OUTPUT}, amount: 10, tiers: {{steps: [{{above: 100, amount: 20}}]}}}}
"""


@pytest.mark.parametrize(
    ("uncached", "cached", "rate"), [(100, 0, 1), (101, 0, 2), (60, 40, 1), (60, 41, 2), (200, 0, 2), (201, 0, 3)]
)
def test_cliff_tiers_count_all_input_tokens_of_the_request(uncached: int, cached: int, rate: int) -> None:
    charges = price(book_of(STEPS), {INPUT: uncached, READ: cached, OUTPUT: 1}, model="m")
    assert charges.charges[0].cost == uncached * rate
    assert charges.charges[-1].cost == (20 if rate > 1 else 10)


def test_a_tier_by_input_tokens_that_are_not_given_is_assumed() -> None:
    charges = price(book_of(STEPS), {OUTPUT: 1}, model="m")
    assert (charges.cost, charges.status, charges.reasons) == (10, "priced", ("tier_assumed",))


def test_a_sum_that_leaves_something_out_says_so() -> None:
    charges = price(book_of(GEMINI), {INPUT: 1_000_000, "web_searches": 5}, model="m")
    assert (charges.cost, charges.status, charges.reasons) == (Decimal("0.30"), "partial", ("no_meter_price",))
    searches = charges.charges[-1]
    assert (searches.cost, searches.unit_price, searches.status) == (None, None, "unpriced")


def test_free_is_an_explicit_price() -> None:
    charges = price(book_of(rates(tokens__output="0")), {OUTPUT: 1000}, model="m")
    assert (charges.cost, charges.status) == (0, "free")
    mixed = price(book_of(rates(tokens__output="0", tokens__input__uncached="1")), {INPUT: 1, OUTPUT: 1}, model="m")
    assert (mixed.status, mixed.charges[1].status) == ("priced", "free")


def test_a_call_without_usage_is_unpriced_and_not_zero() -> None:
    charges = price(book_of(GEMINI), {}, model="m")
    assert (charges.cost, charges.status, charges.reasons) == (None, "unpriced", ("usage_missing",))


def test_zero_quantities_are_charged_only_where_nothing_else_is_given() -> None:
    some = price(book_of(GEMINI), {INPUT: 10, READ: 0, "web_searches": 0}, model="m")
    assert [charge.meter for charge in some.charges] == [INPUT]
    assert some.status == "priced"
    none = price(book_of(GEMINI), {INPUT: 0, OUTPUT: 0}, model="m")
    assert (none.cost, none.status, len(none.charges)) == (0, "priced", 2)
    unknown = price(book_of(GEMINI), {INPUT: 0}, model="other")
    assert (unknown.cost, unknown.status) == (None, "unpriced")


@pytest.mark.parametrize(
    ("usage", "reason"), [({INPUT: -1, OUTPUT: 5}, "usage_negative"), ({INPUT: 2**63}, "usage_too_large")]
)
def test_usage_that_cannot_be_right_is_not_priced(usage: dict[str, int | Decimal], reason: str) -> None:
    charges = price(book_of(GEMINI), usage, model="m")
    assert (charges.cost, charges.status, charges.reasons) == (None, "invalid", (reason,))
    assert {charge.status for charge in charges.charges} == {"invalid"}


def test_usage_known_to_be_wrong_keeps_its_reason() -> None:
    engine = PriceEngine(book_of(GEMINI))
    charges = engine.price({INPUT: 5}, at=NOON, selectors=Selectors(model="m"), invalid="usage_inconsistent")
    assert (charges.cost, charges.status, charges.reasons) == (None, "invalid", ("usage_inconsistent",))


FEE = rates(tokens__output="1") + "  - {sku: m, meter: requests, amount: 12, per: 1000}\n"


def test_a_call_is_one_request_where_the_price_list_has_a_fee() -> None:
    assert price(book_of(FEE), {OUTPUT: 1_000_000}, model="m").cost == Decimal("1.012")
    assert price(book_of(FEE), {OUTPUT: 1_000_000, "requests": 2}, model="m").cost == Decimal("1.024")
    assert price(book_of(GEMINI), {OUTPUT: 1_000_000}, model="m").cost == Decimal("2.50")
    assert price(book_of(FEE), {"cpu.seconds": 1}, model="m").status == "unpriced"


def test_a_least_quantity_is_charged_when_any_was_used() -> None:
    text = "prices:\n  - {sku: m, meter: audio.seconds, amount: 0.36, unit: hour, minimum: 10}\n"
    costs = [price(book_of(text), {"audio.seconds": Decimal(s)}, model="m").cost for s in ("0", "0.5", "10", "11")]
    assert costs == [0, Decimal("0.001"), Decimal("0.001"), Decimal("0.0011")]


def test_seconds_are_exact_to_the_nanosecond() -> None:
    text = "prices:\n  - {provider: aws, sku: g, meter: gpu.seconds, amount: 55.04, per: 8, unit: hour}\n"
    charges = price(book_of(text), {"gpu.seconds": Decimal("0.123456789")}, cloud_provider="aws", device="G")
    # 0.123456789 s × 55.04 USD / (8 × 3600 s), rounded to 10⁻¹² half to even.
    assert charges.cost == (Decimal("0.123456789") * Decimal("55.04") / 28800).quantize(Decimal("1E-12"))
    assert charges.charges[0].per == "8 hour"
    idle = price(book_of(text), {"gpu.idle_seconds": 10**9}, cloud_provider="aws", device="g")
    assert idle.charges[0].matched_by == "exact device as gpu.seconds"


def test_a_number_that_says_not_exactly_how_much_is_refused() -> None:
    engine, selectors = PriceEngine(book_of(GEMINI)), Selectors(model="m")
    with pytest.raises(TypeError, match="quantities are int"):
        engine.price({INPUT: 1.5}, at=NOON, selectors=selectors)  # type: ignore[dict-item]
    with pytest.raises(ValueError, match="Did you mean tokens"):
        engine.price({"tokens.outputs": 1}, at=NOON, selectors=selectors)
    with pytest.raises(ValueError, match="no time zone"):
        engine.price({INPUT: 1}, at=datetime(2026, 11, 20), selectors=selectors)


usages = st.dictionaries(
    st.sampled_from([INPUT, READ, WRITE, OUTPUT, "tokens.output.reasoning"]), st.integers(0, 10**12), min_size=1
)
ENGINE = PriceEngine(book_of(FOCUS))


@given(usages)
def test_charges_add_up_to_the_cost(usage: dict[str, int]) -> None:
    charges = ENGINE.price(usage, at=NOON, selectors=Selectors(model="m"))
    assert charges.cost == sum(charge.cost or 0 for charge in charges.charges)


@given(usages, usages)
def test_disjoint_usages_cost_what_they_cost_together(one: dict[str, int], other: dict[str, int]) -> None:
    both = {meter: one.get(meter, 0) + other.get(meter, 0) for meter in one | other}
    costs = [ENGINE.price(usage, at=NOON, selectors=Selectors(model="m")).cost for usage in (one, other, both)]
    assert costs[0] is not None
    assert costs[1] is not None
    assert costs[0] + costs[1] == costs[2]


@given(usages, st.randoms())
def test_the_order_of_meters_does_not_matter(usage: dict[str, int], random: object) -> None:
    shuffled = list(usage.items())
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    selectors = Selectors(model="m")
    assert ENGINE.price(dict(shuffled), at=NOON, selectors=selectors) == ENGINE.price(
        usage, at=NOON, selectors=selectors
    )


@given(usages, st.text(max_size=20))
def test_an_unknown_model_never_costs_nothing(usage: dict[str, int], name: str) -> None:
    charges = ENGINE.price(usage, at=NOON, selectors=Selectors(provider="p", model="unknown-" + name))
    assert charges.cost is None
    assert charges.status == "unpriced"
    assert all(charge.cost is None for charge in charges.charges)
