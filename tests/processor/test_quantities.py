"""Normalize, its quantities: counts become disjoint meters exactly, or the usage is invalid with the reason."""

from __future__ import annotations

import math
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tollspan.pricing import attributes as names
from tollspan.pricing.conventions import CONVENTIONS, COUNTS, disjoint
from tollspan.pricing.meters import METERS, NANO
from tollspan.processor import usage_counts as module
from tollspan.processor.decode import decode
from tollspan.processor.normalize import Normalized, normalize
from tollspan.processor.usage_dialects import COUNTING, USAGE, Usage

from .otlp_factory import START, request, span

CHAT = {"gen_ai.operation.name": "chat"}
TOKENS = "gen_ai.usage.input_tokens"


def normalized(*spans: Any) -> Normalized:
    return normalize(decode([request(spans)]), received_ns=START + NANO)


def row(values: dict[str, object]) -> dict[str, Any]:
    """Canonical columns of one span, and its quantities under ``quantities``."""
    made = normalized(span(values))
    (only,) = made.table.to_pylist()
    only["quantities"] = {meter: column[0].as_py() for meter, column in made.quantities.items()}
    return only


(GENAI,) = (dialect for dialect in USAGE if dialect.name == "opentelemetry")


def plain(table: dict[str, tuple[Any, ...]]) -> dict[str, tuple[str, ...]]:
    """Counts that stand under keys of their own."""
    return {
        count: keys
        for count, places in table.items()
        if (keys := tuple(place for place in places if isinstance(place, str)))
    }


PARTS = plain(GENAI.parts)
KEYS = plain(GENAI.counts) | PARTS


def test_token_counts_become_disjoint_meters() -> None:
    made = row(
        {
            **CHAT,
            "gen_ai.usage.input_tokens": 1000,
            "gen_ai.usage.cache_read.input_tokens": 600,
            "gen_ai.usage.cache_write.input_tokens": 100,
            "gen_ai.usage.output_tokens": 50,
            "gen_ai.usage.reasoning.output_tokens": 20,
        }
    )
    assert made["quantities"] == {
        "tokens.input.uncached": 300,
        "tokens.input.cache_read": 600,
        "tokens.input.cache_write": 100,
        "tokens.output": 30,
        "tokens.output.reasoning": 20,
    }
    assert (made["convention"], made["invalid"]) == ("otel_inclusive", None)


@pytest.mark.parametrize(("count", "key"), [(count, key) for count, keys in KEYS.items() for key in keys])
def test_every_spelling_of_a_count_is_read(count: str, key: str) -> None:
    # Next to a whole that is large enough for any part.
    whole = {"gen_ai.usage.input_tokens": 1000, "gen_ai.usage.output_tokens": 1000}
    whole["gen_ai.usage.cache_read.input_tokens"] = whole["gen_ai.usage.audio.input_tokens"] = 300
    values = {k: v for k, v in whole.items() if k not in KEYS[count]}
    counts = {name: values[KEYS[name][0]] for name in KEYS if KEYS[name][0] in values}
    expected, reason = disjoint("otel_inclusive", {**counts, count: 200})
    made = row({**values, key: 200})
    assert (made["quantities"], made["invalid"]) == (expected, reason)


@pytest.mark.parametrize(
    ("operation", "counts", "incomplete"),
    [
        ("chat", {"input_tokens": 10, "output_tokens": 1}, False),
        ("chat", {"input_tokens": 0, "output_tokens": 0}, False),
        ("chat", {"prompt_tokens": 10, "completion_tokens": 1}, False),
        ("chat", {"input_tokens": 10}, True),
        ("chat", {"output_tokens": 1}, True),
        ("chat", {"cache_read.input_tokens": 10}, True),
        ("chat", {"cache_read.input_tokens": 10, "output_tokens": 1}, True),
        ("Chat", {"input_tokens": 10}, True),
        ("text_completion", {"input_tokens": 10}, True),
        ("generate_content", {"output_tokens": 1}, True),
        ("responses", {"output_tokens": 1}, True),
        ("embeddings", {"input_tokens": 10}, False),
        ("invoke_agent", {"input_tokens": 10}, False),
        (None, {"input_tokens": 10}, False),
        ("chat", {}, False),
        ("chat", {"input_tokens": -1}, False),
    ],
)
def test_usage_with_one_of_two_halves_is_incomplete(
    operation: str | None, counts: dict[str, int], incomplete: bool
) -> None:
    values: dict[str, object] = {f"gen_ai.usage.{name}": value for name, value in counts.items()}
    if operation is not None:
        values["gen_ai.operation.name"] = operation
    assert row(values)["incomplete"] is incomplete
    # Whatever its neighbours tell.
    whole = span({**CHAT, TOKENS: 5, "gen_ai.usage.output_tokens": 5}, number=2)
    assert normalized(span(values), whole).table["incomplete"].to_pylist() == [incomplete, False]


def test_meters_that_users_set_are_the_two_halves_as_well() -> None:
    half = {"tollspan.usage.tokens.input.uncached": 10}
    assert row({**CHAT, **half})["incomplete"] is True
    assert row({**CHAT, **half, "tollspan.usage.tokens.output": 0})["incomplete"] is False
    assert row({**CHAT, "tollspan.usage.cpu.seconds": 1.0})["incomplete"] is False


def test_older_cache_counts_are_parts_of_the_input() -> None:
    made = row(
        {
            **CHAT,
            TOKENS: 1000,
            "gen_ai.usage.output_tokens": 1,
            "gen_ai.usage.cache_read_input_tokens": 600,
            "gen_ai.usage.cache_creation_input_tokens": 100,
        }
    )
    parts = [made["quantities"][f"tokens.input.{part}"] for part in ("uncached", "cache_read", "cache_write")]
    assert parts == [300, 600, 100]


@pytest.mark.parametrize("dialect", USAGE)
def test_every_dialect_names_a_known_convention_and_known_counts(dialect: Any) -> None:
    assert dialect.convention in CONVENTIONS
    assert dialect.counts.keys() | dialect.parts.keys() <= set(COUNTS)
    assert all(rule.convention in CONVENTIONS and set(rule.usage) <= {d.name for d in USAGE} for rule in COUNTING)


def test_the_counts_of_a_span_are_all_of_one_dialect(monkeypatch: pytest.MonkeyPatch) -> None:
    first = Usage("first", "otel_inclusive", {"input_tokens": (TOKENS,)})
    second = Usage(
        "second",
        "otel_inclusive",
        {"input_tokens": ("gen_ai.usage.prompt_tokens",), "output_tokens": ("gen_ai.usage.completion_tokens",)},
    )
    monkeypatch.setattr(module, "USAGE", (first, second))
    theirs = {"gen_ai.usage.prompt_tokens": 7, "gen_ai.usage.completion_tokens": 3}
    made = normalized(span({TOKENS: 5, **theirs}, number=1), span(theirs, number=2))
    assert made.quantities["tokens.input.uncached"].to_pylist() == [5, 7]
    assert made.quantities["tokens.output"].to_pylist() == [None, 3]


def test_absent_counts_stay_absent() -> None:
    made = row({**CHAT, "gen_ai.usage.input_tokens": 5})
    assert made["quantities"] == {"tokens.input.uncached": 5}
    assert row({**CHAT, "gen_ai.usage.output_tokens": 0})["quantities"] == {"tokens.output": 0}


@pytest.mark.parametrize("meter", METERS)
def test_every_meter_can_be_given_directly_in_its_unit(meter: str) -> None:
    scale = METERS[meter].scale
    assert row({names.usage(meter): 7})["quantities"] == {meter: 7 * scale}
    assert row({names.usage(meter): 7.0})["quantities"] == {meter: 7 * scale}
    made = row({names.usage(meter): 7})
    assert made["billable"] is True
    assert made["token_bearing"] is meter.startswith("tokens.")


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**50))
def test_seconds_given_as_doubles_are_exact_to_the_nanosecond(nanoseconds: int) -> None:
    written = f"{nanoseconds // NANO}.{nanoseconds % NANO:09d}"
    made = row({"tollspan.usage.gpu.seconds": nanoseconds / 1e9, "tollspan.usage.cpu.seconds": written})
    assert made["quantities"]["gpu.seconds"] == nanoseconds
    assert made["quantities"]["cpu.seconds"] == nanoseconds


@pytest.mark.parametrize(
    ("value", "outcome"),
    [
        (12, 12),
        (12.0, 12),
        (-0.0, 0),
        ("12", 12),
        ("12.0", 12),
        (2**53, 2**53),
        (12.5, "usage_fractional"),
        ("12.5", "usage_fractional"),
        (-1, "usage_negative"),
        (-1.0, "usage_negative"),
        ("-1", "usage_negative"),
        (2**53 + 1, "usage_too_large"),
        (2**63 - 1, "usage_too_large"),
        (1e300, "usage_too_large"),
        ("9" * 40, "usage_too_large"),
        (math.inf, "usage_too_large"),
        (-math.inf, "usage_negative"),
        (math.nan, "usage_not_a_number"),
        ("many", "usage_not_a_number"),
        ("nan", "usage_not_a_number"),
        ("", "usage_not_a_number"),
        ("1e3", "usage_not_a_number"),
        (True, "usage_not_a_number"),
        ([12], "usage_not_a_number"),
        (b"12", "usage_not_a_number"),
    ],
)
def test_a_count_is_a_whole_number_or_the_usage_is_invalid(value: object, outcome: int | str) -> None:
    made = normalized(
        span({**CHAT, TOKENS: value, "gen_ai.usage.output_tokens": 3}, number=1),
        span({**CHAT, TOKENS: 8, "gen_ai.usage.output_tokens": 3}, number=2),
    )
    reason = outcome if isinstance(outcome, str) else None
    assert made.table["invalid"].to_pylist() == [reason, None]
    assert made.quantities["tokens.input.uncached"].to_pylist() == [None if reason else outcome, 8]
    assert made.quantities["tokens.output"].to_pylist() == [None if reason else 3, 3]
    assert made.table["billable"].to_pylist() == [True, True]
    assert made.table["token_bearing"].to_pylist() == [True, True]


@pytest.mark.parametrize(
    ("value", "outcome"),
    [
        (2, 2 * NANO),
        (0.25, NANO // 4),
        ("0.25", NANO // 4),
        (2**63 // NANO, 2**63 // NANO * NANO),
        (2**63 // NANO + 1, "usage_too_large"),
        (9.3e9, "usage_too_large"),
        (math.nan, "usage_not_a_number"),
        (-0.5, "usage_negative"),
    ],
)
def test_seconds_are_nanoseconds_or_invalid(value: object, outcome: int | str) -> None:
    made = row({"tollspan.usage.gpu.seconds": value})
    if isinstance(outcome, str):
        assert (made["invalid"], made["quantities"], made["billable"]) == (outcome, {}, True)
    else:
        assert (made["invalid"], made["quantities"]) == (None, {"gpu.seconds": outcome})


def test_parts_larger_than_their_whole_are_inconsistent() -> None:
    made = row({**CHAT, TOKENS: 10, "gen_ai.usage.cache_read.input_tokens": 11})
    assert (made["invalid"], made["quantities"]) == ("usage_inconsistent", {})


def test_an_unknown_meter_is_not_lost_silently() -> None:
    made = normalized(
        span({"tollspan.usage.gpu.minutes": 3, "tollspan.usage.gpu.seconds": 1}), span({"tollspan.usage.": 1}, number=2)
    )
    assert made.table["invalid"].to_pylist() == ["usage_unknown_meter"] * 2
    assert made.table["billable"].to_pylist() == [True, True]


def test_usage_that_the_instrumentation_found_wrong_is_invalid_for_its_reason() -> None:
    made = normalized(
        span({"tollspan.usage_invalid": "usage_negative", "gen_ai.usage.output_tokens": 5}),
        span({"tollspan.usage_invalid": "of no known kind"}, number=2),
        span({"gen_ai.usage.output_tokens": 5}, number=3),
    )
    assert made.table["invalid"].to_pylist() == ["usage_negative", "usage_inconsistent", None]
    assert made.table["billable"].to_pylist() == [True, True, True]
    assert "usage_invalid" not in made.table.column_names


@pytest.mark.parametrize(
    ("meter", "value", "reason"),
    [
        ("tokens.input.uncached", 10, None),
        ("tokens.input.uncached", 11, "usage_conflict"),
        ("tokens.output", 3, "usage_conflict"),
        ("requests", 1, None),
    ],
)
def test_tokens_said_twice_must_agree(meter: str, value: int, reason: str | None) -> None:
    assert row({**CHAT, TOKENS: 10, names.usage(meter): value})["invalid"] == reason


def cache_writes(total: int | None, **lifetimes: object) -> dict[str, Any]:
    """A span of 100 input tokens with cache writes told in total by the conventions, and by lifetime beside them."""
    values: dict[str, object] = {**CHAT, TOKENS: 100, "gen_ai.usage.output_tokens": 1}
    if total is not None:
        values["gen_ai.usage.cache_write.input_tokens"] = total
    made = row(values | lifetimes)
    made["quantities"] = {k: v for k, v in made["quantities"].items() if k.startswith("tokens.input")}
    return made


ONE_HOUR, FIVE_MINUTES = (names.usage(f"tokens.input.cache_write.{lifetime}") for lifetime in ("1h", "5m"))


def test_lifetimes_beside_a_total_of_cache_writes_are_its_parts_and_the_rest_stays() -> None:
    made = cache_writes(60, **{ONE_HOUR: 20, FIVE_MINUTES: 30})
    assert (made["invalid"], made["convention"]) == (None, "otel_inclusive")
    assert made["quantities"] == {
        "tokens.input.uncached": 40,
        "tokens.input.cache_write": 10,
        "tokens.input.cache_write.1h": 20,
        "tokens.input.cache_write.5m": 30,
    }


def test_lifetimes_without_a_total_are_still_taken_out_of_the_input() -> None:
    made = cache_writes(None, **{ONE_HOUR: 20})
    assert made["invalid"] is None
    assert made["quantities"]["tokens.input.uncached"] == 80
    assert sum(made["quantities"].values()) == 100


def test_lifetimes_that_exceed_their_total_are_inconsistent() -> None:
    assert cache_writes(10, **{ONE_HOUR: 20})["invalid"] == "usage_inconsistent"
    assert cache_writes(60, **{ONE_HOUR: True})["invalid"] == "usage_not_a_number"


def test_lifetimes_as_the_provider_s_own_spans_tell_them() -> None:
    # Spans of Anthropic's SDK: the input is the sum of all three.
    made = row(
        {
            **CHAT,
            "gen_ai.provider.name": "anthropic",
            "anthropic.response.service_tier": "priority",
            TOKENS: 12 + 600 + 300,
            "gen_ai.usage.cache_read.input_tokens": 600,
            "gen_ai.usage.cache_write.input_tokens": 300,
            "anthropic.usage.cache_creation.ephemeral_5m_input_tokens": 100,
            "anthropic.usage.cache_creation.ephemeral_1h_input_tokens": 200,
            "gen_ai.usage.output_tokens": 50,
        }
    )
    assert made["service_tier"] == "priority"
    assert made["quantities"] == {
        "tokens.input.uncached": 12,
        "tokens.input.cache_read": 600,
        "tokens.input.cache_write": 0,
        "tokens.input.cache_write.5m": 100,
        "tokens.input.cache_write.1h": 200,
        "tokens.output": 50,
    }


def test_a_provider_s_lifetime_alone_is_no_usage() -> None:
    made = row({"anthropic.usage.cache_creation.ephemeral_1h_input_tokens": 5})
    assert (made["quantities"], made["token_bearing"], made["billable"]) == ({}, False, False)


def test_images_and_video_are_taken_out_of_their_wholes() -> None:
    made = row(
        {
            **CHAT,
            TOKENS: 1000,
            "gen_ai.usage.cache_read.input_tokens": 300,
            "gen_ai.usage.image.input_tokens": 200,
            "gen_ai.usage.image.cache_read.input_tokens": 150,
            "gen_ai.usage.video.input_tokens": 100,
            "gen_ai.usage.video.cache_read.input_tokens": 40,
            "gen_ai.usage.output_tokens": 90,
            "gen_ai.usage.image.output_tokens": 30,
            "gen_ai.usage.video.output_tokens": 20,
        }
    )
    assert made["quantities"] == {
        "tokens.input.uncached": 590,
        "tokens.input.cache_read": 150,  # the video's, which has no meter of its own, and the text's
        "tokens.input.image": 50,
        "tokens.input.image.cache_read": 150,
        "tokens.input.video": 60,
        "tokens.output": 40,
        "tokens.output.image": 30,
        "tokens.output.video": 20,
    }


def test_tokens_given_directly_need_no_convention() -> None:
    made = row({names.usage("tokens.input.cache_write.1h"): 5})
    assert (made["quantities"], made["convention"], made["token_bearing"]) == (
        {"tokens.input.cache_write.1h": 5},
        None,
        True,
    )


# Without citations: their only key is the meter's own, which says something alone.
counts_given = st.dictionaries(
    st.sampled_from(sorted(KEYS.keys() - {"citation"})),
    st.integers(-2, 40) | st.integers(2**53 - 1, 2**53 + 1),
    max_size=6,
)


@settings(max_examples=150, deadline=None)
@given(st.lists(counts_given, min_size=1, max_size=8), st.randoms(use_true_random=False))
def test_columns_agree_with_one_call_at_a_time(rows: list[dict[str, int]], rng: Any) -> None:
    spans = []
    for number, counts in enumerate(rows, start=1):
        spelled = {
            KEYS[name][0] if name in PARTS else rng.choice(KEYS[name]): rng.choice((value, float(value), str(value)))
            for name, value in counts.items()
        }
        spans.append(span(spelled, number=number))
    made = normalized(*spans)
    for number, told in enumerate(rows):
        counts = {} if told.keys() <= PARTS.keys() else told
        # A double cannot hold 2**53 + 1: as far as anybody can tell, it is 2**53.
        quantities, reason = disjoint("otel_inclusive", counts)
        if any(abs(value) > 2**53 for value in counts.values()):
            continue
        assert made.table["invalid"][number].as_py() == reason
        got = {meter: column[number].as_py() for meter, column in made.quantities.items()}
        assert {meter: value for meter, value in got.items() if value is not None} == quantities
        assert made.table["token_bearing"][number].as_py() == bool(counts)


def test_no_float_comes_near_a_quantity() -> None:
    made = normalized(span({"tollspan.usage.gpu.seconds": 0.1 + 0.2}))
    assert made.quantities["gpu.seconds"].type == pa.int64()
    assert made.quantities["gpu.seconds"][0].as_py() == int(Decimal("0.3") * NANO)
    assert np.asarray(made.table["start_ns"]).dtype == np.int64
