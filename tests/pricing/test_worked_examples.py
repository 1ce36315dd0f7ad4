"""Prices whose answers are known from elsewhere, to the last digit: from what FinOps documents, pages of providers, bug
reports and manuals of other engines."""

from __future__ import annotations

from decimal import Decimal

import pytest

from tollspan.pricing import shipped_book
from tollspan.pricing.onprem import split_node

from .books import INPUT, OUTPUT, at, book_of, price

READ, WRITE, REASONING = "tokens.input.cache_read", "tokens.input.cache_write", "tokens.output.reasoning"
MILLION: dict[str, int | Decimal] = {INPUT: 10**6, OUTPUT: 10**6}
NOW = "2026-11-20T12:00:00Z"
SONNET = "anthropic.claude-sonnet-4-5-20250929-v1:0"


def test_focus_cache_storage_is_billed_by_the_token_hour() -> None:
    # FOCUS, appendix on prompt caching, example B: 7.5 + 2.4 + 22.5 + 6.0.
    book = book_of(
        f"""\
        prices:
          - {{sku: m, meter: {INPUT}, amount: 3, per: 1000000}}
          - {{sku: m, meter: {READ}, amount: 0.30, per: 1000000}}
          - {{sku: m, meter: {OUTPUT}, amount: 15, per: 1000000}}
          - {{sku: m, meter: cache.token_seconds, amount: 1, per: 1000000, unit: token-hour}}
        """
    )
    usage: dict[str, int | Decimal] = {INPUT: 2_500_000, READ: 8_000_000, OUTPUT: 1_500_000}
    usage["cache.token_seconds"] = 6_000_000 * 3600
    charges = price(book, usage, model="m")
    assert [charge.cost for charge in charges.charges] == [Decimal(c) for c in ("7.5", "2.4", "22.5", "6.0")]
    assert charges.cost == Decimal("38.4")


@pytest.mark.parametrize(
    ("provider", "model", "usage", "said", "instant", "expected"),
    [
        # Perplexity, Agent API, web search: Fast Search is 1 USD a thousand, the standard one 2.50.
        ("perplexity", "perplexity/sonar", {"web_searches": 2}, {"service_tier": "fast_search"}, NOW, "0.0020"),
        ("perplexity", "perplexity/sonar", {"web_searches": 2}, {}, NOW, "0.0050"),
        # DeepSeek V4 Pro: one flat price until 2026-08-16 16:00 UTC.
        ("deepseek", "deepseek-v4-pro", MILLION, {}, "2026-06-01T02:00:00Z", "1.305"),
        ("deepseek", "deepseek-v4-pro", MILLION, {}, "2026-08-16T15:59:59.999999Z", "1.305"),
        ("deepseek", "deepseek-v4-pro", MILLION, {}, "2026-08-16T16:00:00Z", "2.64"),
        # From then on twice as much in the peak hours of working days in China ...
        ("deepseek", "deepseek-v4-pro", MILLION, {}, "2026-11-20T00:59:59.999999Z", "2.64"),
        ("deepseek", "deepseek-v4-pro", MILLION, {}, "2026-11-20T01:00:00Z", "5.28"),
        ("deepseek", "deepseek-v4-pro", MILLION, {}, "2026-11-20T03:59:59.999999Z", "5.28"),
        ("deepseek", "deepseek-v4-pro", MILLION, {}, "2026-11-20T04:00:00Z", "2.64"),
        ("deepseek", "deepseek-v4-pro", MILLION, {}, "2026-11-20T09:59:59.999999Z", "5.28"),
        ("deepseek", "deepseek-v4-pro", MILLION, {}, "2026-11-20T10:00:00Z", "2.64"),
        # ... but not on a Saturday, nor on National Day.
        ("deepseek", "deepseek-v4-pro", MILLION, {}, "2026-11-21T02:00:00Z", "2.64"),
        ("deepseek", "deepseek-v4-pro", MILLION, {}, "2026-10-01T02:00:00Z", "2.64"),
        # Claude on Bedrock: regional profiles cost 1.10 times the global one, on all four meters (AWS Price List).
        ("aws.bedrock", f"global.{SONNET}", {INPUT: 10**5}, {}, NOW, "0.3"),
        ("aws.bedrock", f"us.{SONNET}", {INPUT: 10**5}, {}, NOW, "0.33"),
        ("aws.bedrock", f"global.{SONNET}", {WRITE: 10**5}, {}, NOW, "0.375"),
        ("aws.bedrock", f"us.{SONNET}", {WRITE: 10**5}, {}, NOW, "0.4125"),
        ("aws.bedrock", f"global.{SONNET}", {READ: 10**5}, {}, NOW, "0.03"),
        ("aws.bedrock", f"us.{SONNET}", {READ: 10**5}, {}, NOW, "0.033"),
        ("aws.bedrock", f"global.{SONNET}", {OUTPUT: 10**5}, {}, NOW, "1.5"),
        ("aws.bedrock", f"us.{SONNET}", {OUTPUT: 10**5}, {}, NOW, "1.65"),
        # Gemini 2.5 Pro: above 200,000 input tokens all of the request costs the higher price, the output too.
        ("google", "gemini-2.5-pro", {INPUT: 200_000, OUTPUT: 1000}, {}, NOW, "0.26"),
        ("google", "gemini-2.5-pro", {INPUT: 200_001, OUTPUT: 1000}, {}, NOW, "0.5150025"),
        ("google", "gemini-2.5-pro", {INPUT: 150_000, READ: 50_001, REASONING: 1000}, {}, NOW, "0.40250025"),
        # Tiers and batch, at the instant.
        ("openai", "gpt-5", MILLION, {}, NOW, "11.25"),
        ("openai", "gpt-5", MILLION, {"service_tier": "priority"}, NOW, "22.5"),
        ("openai", "gpt-5", MILLION, {"service_tier": "flex"}, NOW, "5.625"),
        ("openai", "gpt-5", MILLION, {"processing": "batch"}, NOW, "5.625"),
        ("anthropic", "claude-haiku-4-5", {INPUT: 10**5, OUTPUT: 10**5}, {"service_tier": "batch"}, NOW, "0.3"),
        # Anthropic: inference kept in the US costs 1.1 times as much.
        ("anthropic", "claude-opus-4-6", {INPUT: 10**5, OUTPUT: 10**5}, {"residency": "us"}, NOW, "3.3"),
    ],
)
def test_shipped_prices(
    provider: str, model: str, usage: dict[str, int | Decimal], said: dict[str, str], instant: str, expected: str
) -> None:
    charges = price(shipped_book(), usage, at=at(instant), provider=provider, model=model, **said)
    assert (charges.status, charges.cost) == ("priced", Decimal(expected))


@pytest.mark.parametrize("tier", ["misspelt", "ultrafast"])
def test_a_tier_that_no_page_states_is_not_the_standard_one(tier: str) -> None:
    charges = price(shipped_book(), MILLION, provider="openai", model="gpt-5", service_tier=tier)
    assert (charges.cost, charges.reasons) == (None, ("tier_unknown",))


def test_opencost_divides_a_node_by_its_base_prices() -> None:
    # OpenCost specification, appendix A: a node of 35 USD with base prices 30, 30 and 10.
    parts = split_node(Decimal(35), {"gpu": Decimal(30), "cpu": Decimal(30), "memory": Decimal(10)})
    assert parts == {"gpu": 15, "cpu": 15, "memory": 5}
