"""The law of repricing: a row priced again under a book is the row that an arrival under that book would have made."""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[1] / "end_to_end"))
from service import BEGAN, chat, payload

from tollspan.pricing import PriceEngine, shipped_book
from tollspan.pricing.book import PriceBook
from tollspan.pricing.resolve import IMPLIED_MARK
from tollspan.pricing.yamlbook import parse_layer
from tollspan.processor.charge import charge
from tollspan.processor.decode import decode
from tollspan.processor.normalize import normalize
from tollspan.processor.recharge import recharge
from tollspan.processor.write import conform

PLAIN = """
price_book: {id: plain, version: 1, currency: USD}
prices:
  - {id: in, provider: openai, sku: gpt-5-mini, meter: tokens.input.uncached, amount: '0.3', per: 1000000}
  - {id: out, provider: openai, sku: gpt-5-mini, meter: tokens.output, amount: '2', per: 1000000}
  - {id: gpu, provider: aws, sku: H100, meter: gpu.seconds, amount: '3', per: 3600}
"""
RICH = """
price_book: {id: rich, version: 1, currency: USD}
prices:
  - {id: in, provider: openai, sku: gpt-5-mini, meter: tokens.input.uncached, amount: '0.3', per: 1000000}
  - {id: out, provider: openai, sku: gpt-5-mini, meter: tokens.output, amount: '2', per: 1000000}
  - {id: fee, provider: openai, sku: gpt-5-mini, meter: requests, amount: '0.01', per: 1}
  - {id: batch, provider: openai, sku: gpt-5-mini, meter: tokens.output, amount: '1', per: 1, when: {processing: batch}}
  - {id: house, provider: openai, sku: house-model, meter: tokens.output, amount: '0', per: 1}
  - {id: share, provider: openai, sku: house-model, meter: overhead.calls, amount: '0.002', per: 1}
  - {id: search, provider: openai, sku: gpt-5-mini, meter: web_searches, amount: '0.01', per: 1}
"""


@cache
def engines() -> tuple[PriceEngine, ...]:
    """Of a poor book, of one with fees, tiers and free models, and of the shipped one."""
    own = [PriceEngine(PriceBook((parse_layer(text.encode(), "book.yaml"),))) for text in (PLAIN, RICH)]
    return (*own, PriceEngine(shipped_book()))


FACTS = st.fixed_dictionaries(
    {},
    optional={
        "gen_ai.request.model": st.sampled_from(["gpt-5-mini", "house-model", "nobody-knows", "gpt-4.1"]),
        "gen_ai.usage.cache_read.input_tokens": st.integers(0, 6000),
        "gen_ai.usage.reasoning.output_tokens": st.integers(0, 200),
        "tollspan.usage.web_searches": st.integers(1, 3),
        "gen_ai.operation.name": st.sampled_from(["chat", "embeddings"]),
        "tollspan.usage.gpu.seconds": st.integers(0, 10**12).map(lambda ns: ns / 1e9),
        "tollspan.usage.network.egress.bytes": st.integers(0, 2**50),
        "tollspan.device": st.just("H100"),
        "cloud.provider": st.sampled_from(["aws", "gcp"]),
        "tollspan.processing": st.sampled_from(["batch", "online"]),
        "openai.response.service_tier": st.sampled_from(["default", "flex", "auto"]),
        "http.response.status_code": st.sampled_from([200, 429]),
    },
)
SPANS = st.lists(
    st.tuples(
        st.none() | st.tuples(st.integers(-1, 10**6), st.integers(0, 10**6)), st.booleans(), st.booleans(), FACTS
    ),
    min_size=1,
    max_size=12,
)


def arrived(spans: list[Any], engine: PriceEngine) -> pa.Table:
    """Ledger rows of spans as they arrive."""
    made = [chat(n, tokens=tokens, error=error, **facts) for n, (tokens, error, _, facts) in enumerate(spans, 1)]
    normalized = normalize(decode([payload(made)]), received_ns=BEGAN)
    rolled = np.array([rolled for _, _, rolled, _ in spans]) & np.asarray(normalized.table["token_bearing"])
    return conform(charge(normalized, rolled, engine).ledger, "ledger")


def facts_of(rows: pa.Table) -> list[dict[str, Any]]:
    history = ("revision", "revised", "arrival_cost", "book_version")
    return rows.drop_columns(list(history)).to_pylist()


@given(SPANS, st.sampled_from([(a, b) for a in range(3) for b in range(3)]))
@settings(max_examples=150, deadline=None)
def test_repriced_is_what_arrives_under_that_book(spans: list[Any], books: tuple[int, int]) -> None:
    old, new = (engines()[book] for book in books)
    before, expected = arrived(spans, old), arrived(spans, new)
    again = recharge(before, new)
    found = facts_of(before)
    for position, row in zip(again.at.tolist(), facts_of(again.again), strict=True):
        found[position] = row
    wanted, was = facts_of(expected), facts_of(before)
    for position, row in enumerate(was):
        if row["charges.meter"] and all(how.endswith(IMPLIED_MARK) for how in row["charges.matched_by"]):
            # Which of its quantities were 0 is not on record; what it costs does not depend on it.
            assert wanted[position]["cost"] in (None, found[position]["cost"])
            wanted[position] = found[position]
    assert found == wanted
    changes = np.flatnonzero(again.changed).tolist()
    assert all(was[position] != wanted[position] for position in changes), "what is as it was is not written again"
    revised = again.revised(7)
    assert facts_of(revised) == [wanted[position] for position in changes]
    assert revised["arrival_cost"].to_pylist() == [was[position]["cost"] for position in changes]
    # Priced once more, it still says what it cost on arrival.
    twice = recharge(conform(revised, "ledger"), old).revised(8)
    assert set(twice["arrival_cost"].to_pylist()) <= {was[position]["cost"] for position in changes}
    if books[0] == books[1]:
        assert not changes


TOLD = {
    "tollspan.usage.requests": st.integers(0, 2),
    "tollspan.usage.overhead.calls": st.integers(0, 2),
    "tollspan.usage.tokens.input.uncached": st.integers(0, 3),
    "tollspan.usage.tokens.output": st.integers(0, 3),
    "tollspan.usage.images": st.integers(0, 2),
    "tollspan.usage.gpu.seconds": st.integers(0, 10**10).map(lambda ns: ns / 1e9),
    "tollspan.device": st.just("H100"),
    "cloud.provider": st.just("aws"),
    "gen_ai.operation.name": st.sampled_from(["chat", "embeddings", "", "tool"]),
    "openai.response.service_tier": st.sampled_from(["default", "flex"]),
    "tollspan.usage_estimated": st.booleans(),
}
CALLS = st.lists(
    st.tuples(
        st.none() | st.tuples(st.integers(0, 3), st.integers(0, 3)),
        st.booleans(),
        st.booleans(),
        st.fixed_dictionaries({}, optional=TOLD),
    ),
    min_size=1,
    max_size=8,
)
CLIFF = "tiers: {steps: [{above: 1, amount: '7'}]}"
METERS_PRICED = ("tokens.input.uncached", "tokens.output", "requests", "overhead.calls", "images", "gpu.seconds")
PRICE = st.tuples(
    st.sampled_from(["0", "1", "0.003"]),
    st.sampled_from(["", CLIFF, "kind: estimate", "minimum: 2", "when: {service_tier: standard}"]),
    st.booleans(),
)
BOOKS = st.dictionaries(st.sampled_from(METERS_PRICED), PRICE, min_size=1)


def engine_of(prices: dict[str, tuple[str, str, bool]]) -> PriceEngine:
    """Of a book with a price for some meters of anything; some of them with another price for the flex tier."""
    rows = []
    for meter, (amount, more, flex) in prices.items():
        rows.append(f"  - {{meter: {meter}, amount: '{amount}', {more}}}")
        if flex:
            rows.append(f"  - {{meter: {meter}, amount: '5', when: {{service_tier: flex}}}}")
    text = "price_book: {id: random}\nprices:\n" + "\n".join(rows)
    return PriceEngine(PriceBook((parse_layer(text.replace(", }", "}").encode(), "book.yaml"),)))


@given(CALLS, BOOKS)
@settings(max_examples=300, deadline=None)
def test_repriced_with_the_same_book_is_unchanged(spans: list[Any], prices: dict[str, tuple[str, str, bool]]) -> None:
    engine = engine_of(prices)
    before = arrived(spans, engine)
    again = recharge(before, engine)
    was = facts_of(before)
    assert facts_of(again.again) == [was[position] for position in again.at.tolist()]
    assert not again.changed.any()


FEES = {"requests": ("1", "", False), "overhead.calls": ("2", "", False)}


@pytest.mark.parametrize(
    ("tokens", "facts", "cost"),
    [
        ((3, 2), {"tollspan.usage.requests": 0}, 2),
        (None, {"tollspan.usage.requests": 0, "tollspan.usage.images": 1}, 2),
        (None, {"tollspan.usage.requests": 0, "tollspan.usage.gpu.seconds": 9.5, "gen_ai.operation.name": ""}, 2),
    ],
)
def test_a_request_that_was_told_to_be_none_stays_without_a_fee(
    tokens: tuple[int, int] | None, facts: dict[str, Any], cost: int
) -> None:
    engine = engine_of(FEES)
    before = arrived([(tokens, False, False, facts)], engine)
    assert before["cost"].to_pylist() == [cost]
    assert not recharge(before, engine).changed.any()


@pytest.mark.parametrize("book", [0, 1])
def test_an_input_of_nothing_that_was_told_leaves_no_step_to_be_assumed(book: int) -> None:
    """Under any book: the count of a chat is whole, though its 0 is not on record."""
    cliff = engine_of({"tokens.output": ("1", CLIFF, False)})
    before = arrived([((0, 5), False, False, {})], (cliff, engines()[0])[book])
    again = recharge(before, cliff)
    assert again.again["cost_reasons"].to_pylist() == [""]


def test_rows_with_a_meter_of_another_version_are_left_alone() -> None:
    rows = arrived([((10, 5), False, False, {}), ((10, 5), False, False, {})], engines()[0])
    at = rows.column_names.index("charges.meter")
    strange = pa.array([["tokens.input.uncached", "tokens.of.tomorrow"], ["tokens.input.uncached", "tokens.output"]])
    again = recharge(rows.set_column(at, "charges.meter", strange), engines()[2])
    assert again.at.tolist() == [1]


def test_no_rows_are_no_trouble() -> None:
    rows = arrived([((10, 5), False, False, {})], engines()[0]).slice(0, 0)
    again = recharge(rows, engines()[1])
    assert (again.at.tolist(), again.changed.tolist(), again.revised(1).num_rows) == ([], [], 0)
