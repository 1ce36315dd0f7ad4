"""Counts become disjoint meters once, by one table, the same for a call and for columns; nothing is clamped."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tollspan.pricing.conventions import (
    BESIDE,
    CACHE_EXCLUSIVE,
    CONVENTIONS,
    COUNTS,
    GEMINI,
    INVALID_REASONS,
    LARGEST_COUNT,
    OTEL_INCLUSIVE,
    REASONING_EXCLUSIVE,
    WHOLES,
    disjoint,
    disjoint_columns,
)
from tollspan.pricing.meters import METERS


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_tables_name_meters_and_counts(convention: str) -> None:
    for meter, terms in CONVENTIONS[convention].items():
        assert METERS[meter].unit == "token"
        assert terms[0][0] == 1, "a meter is named after what it adds"
        assert {name for _, name in terms} <= set(COUNTS)


def test_every_token_meter_is_reached_by_every_convention() -> None:
    tokens = {name for name in METERS if name.startswith("tokens.")}
    assert all(set(meters) == tokens for meters in CONVENTIONS.values())


def test_cached_tokens_are_not_counted_twice() -> None:
    # langfuse/codex-observability-plugin#22: input includes the cached tokens.
    quantities, reason = disjoint(OTEL_INCLUSIVE, {"input_tokens": 117231, "cache_read": 115584, "output_tokens": 225})
    assert reason is None
    assert quantities == {
        "tokens.input.uncached": 1647,
        "tokens.input.cache_read": 115584,
        "tokens.output": 225,
    }


def test_reasoning_is_inside_the_output() -> None:
    # theopenco/llmgateway#3435: 136 output tokens of which 31 are reasoning.
    quantities, _ = disjoint(OTEL_INCLUSIVE, {"output_tokens": 136, "reasoning": 31})
    assert quantities == {"tokens.output": 105, "tokens.output.reasoning": 31}


def test_a_cache_beside_the_input_is_not_taken_out_of_it() -> None:
    counts = {"input_tokens": 12, "cache_read": 600, "cache_write": 300, "cache_write_1h": 200, "output_tokens": 50}
    quantities, reason = disjoint(CACHE_EXCLUSIVE, counts)
    assert (quantities, reason) == (
        {
            "tokens.input.uncached": 12,
            "tokens.input.cache_read": 600,
            "tokens.input.cache_write": 100,
            "tokens.input.cache_write.1h": 200,
            "tokens.output": 50,
        },
        None,
    )


def test_reasoning_beside_the_output_is_not_taken_out_of_it() -> None:
    for convention in (REASONING_EXCLUSIVE, GEMINI):
        assert disjoint(convention, {"output_tokens": 10, "reasoning": 31})[0] == {
            "tokens.output": 10,
            "tokens.output.reasoning": 31,
        }


def test_results_of_tools_are_input_where_they_stand_beside_it() -> None:
    counts = {"input_tokens": 10, "tool_input": 7, "cache_read": 4}
    assert disjoint(GEMINI, counts)[0] == {"tokens.input.uncached": 13, "tokens.input.cache_read": 4}
    assert disjoint(OTEL_INCLUSIVE, counts)[0] == {"tokens.input.uncached": 6, "tokens.input.cache_read": 4}


def test_lifetimes_are_parts_of_what_was_written_to_a_cache() -> None:
    counts = {"input_tokens": 100, "cache_write_5m": 30, "cache_write_1h": 20}
    alone, _ = disjoint(OTEL_INCLUSIVE, counts)
    assert alone == {
        "tokens.input.uncached": 50,
        "tokens.input.cache_write": 0,
        "tokens.input.cache_write.5m": 30,
        "tokens.input.cache_write.1h": 20,
    }
    beside, _ = disjoint(OTEL_INCLUSIVE, {**counts, "cache_write": 60})
    assert beside == {**alone, "tokens.input.uncached": 40, "tokens.input.cache_write": 10}
    assert disjoint(OTEL_INCLUSIVE, {**counts, "cache_write": 49}) == ({}, "usage_inconsistent")


def test_cached_audio_is_taken_out_of_both_and_out_of_the_input_once() -> None:
    quantities, _ = disjoint(
        OTEL_INCLUSIVE,
        {"input_tokens": 100, "cache_read": 40, "audio_input": 30, "audio_cache_read": 10},
    )
    assert quantities["tokens.input.uncached"] == 40
    assert quantities["tokens.input.cache_read"] == 30
    assert quantities["tokens.input.audio"] == 20
    assert quantities["tokens.input.audio.cache_read"] == 10
    assert sum(quantities.values()) == 100


def test_what_is_not_given_stays_absent() -> None:
    assert disjoint(OTEL_INCLUSIVE, {}) == ({}, None)
    assert disjoint(OTEL_INCLUSIVE, {"output_tokens": 0, "input_tokens": None}) == ({"tokens.output": 0}, None)


@pytest.mark.parametrize(
    ("counts", "reason"),
    [
        ({"input_tokens": 10, "cache_read": 11}, "usage_inconsistent"),
        ({"output_tokens": 10, "reasoning": 11}, "usage_inconsistent"),
        ({"input_tokens": -1}, "usage_negative"),
        ({"input_tokens": LARGEST_COUNT + 1}, "usage_too_large"),
        ({"input_tokens": -1, "output_tokens": LARGEST_COUNT + 1}, "usage_negative"),
    ],
)
def test_counts_that_cannot_be_right_are_invalid_and_not_clamped(counts: dict[str, int], reason: str) -> None:
    assert disjoint(OTEL_INCLUSIVE, counts) == ({}, reason)


count = st.none() | st.integers(-5, 50) | st.sampled_from([LARGEST_COUNT, LARGEST_COUNT + 1, 2**63 - 1, -(2**63)])


@pytest.mark.parametrize("convention", CONVENTIONS)
@given(rows=st.lists(st.fixed_dictionaries({}, optional=dict.fromkeys(COUNTS, count)), min_size=1, max_size=20))
def test_columns_give_what_calls_give(convention: str, rows: list[dict[str, int | None]]) -> None:
    columns = {
        name: (
            np.array([77 if (value := row.get(name)) is None else value for row in rows], dtype=np.int64),
            np.array([row.get(name) is not None for row in rows]),
        )
        for name in COUNTS
        if any(name in row for row in rows) or name == "input_tokens"
    }
    meters, codes = disjoint_columns(convention, columns)
    for position, row in enumerate(rows):
        got = {meter: int(values[position]) for meter, (values, valid) in meters.items() if valid[position]}
        assert (got, INVALID_REASONS[codes[position]]) == disjoint(convention, row)


parts = st.dictionaries(st.sampled_from(COUNTS), st.integers(0, 9), max_size=8)


@pytest.mark.parametrize("convention", CONVENTIONS)
@given(counts=parts, more=st.integers(0, 100))
def test_disjoint_meters_add_up_to_what_was_reported(convention: str, counts: dict[str, int], more: int) -> None:
    # Wholes large enough for their parts, so that most examples are consistent.
    counts = {**counts, "input_tokens": 60 + more, "output_tokens": 60 + more}
    for whole, of in WHOLES.items():
        if whole in counts:
            counts[whole] += sum(counts.get(part, 0) for part in of)
    quantities, reason = disjoint(convention, counts)
    assume(reason is None)
    beside = 0
    for count in BESIDE[convention]:
        of = WHOLES.get(count, ())
        beside += counts.get(count, sum(counts.get(part, 0) for part in of))
    assert sum(quantities.values()) == counts["input_tokens"] + counts["output_tokens"] + beside


def test_no_counts_have_no_length() -> None:
    with pytest.raises(ValueError, match="input_tokens"):
        disjoint_columns(OTEL_INCLUSIVE, {})
