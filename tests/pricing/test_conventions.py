"""Counts become disjoint meters once, by one table, the same for a call and for columns; nothing is clamped."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tollspan.pricing.conventions import (
    CONVENTIONS,
    COUNTS,
    INVALID_REASONS,
    LARGEST_COUNT,
    OTEL_INCLUSIVE,
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


@given(st.lists(st.fixed_dictionaries(dict.fromkeys(COUNTS, count)), min_size=1, max_size=20))
def test_columns_give_what_calls_give(rows: list[dict[str, int | None]]) -> None:
    columns = {
        name: (
            np.array([row[name] if row[name] is not None else 77 for row in rows], dtype=np.int64),
            np.array([row[name] is not None for row in rows]),
        )
        for name in COUNTS
    }
    meters, codes = disjoint_columns(OTEL_INCLUSIVE, columns)
    for position, row in enumerate(rows):
        got = {meter: int(values[position]) for meter, (values, valid) in meters.items() if valid[position]}
        assert (got, INVALID_REASONS[codes[position]]) == disjoint(OTEL_INCLUSIVE, row)


@given(st.fixed_dictionaries({name: st.integers(0, 50) for name in COUNTS}))
def test_disjoint_meters_add_up_to_what_was_reported(counts: dict[str, int]) -> None:
    quantities, reason = disjoint(OTEL_INCLUSIVE, counts)
    if reason is None:
        assert sum(quantities.values()) == counts["input_tokens"] + counts["output_tokens"]


def test_no_counts_have_no_length() -> None:
    with pytest.raises(ValueError, match="input_tokens"):
        disjoint_columns(OTEL_INCLUSIVE, {})
