"""Usage objects: every provider's counts become the same disjoint meters, and what cannot be right is said to be."""

from __future__ import annotations

import copy
import json
import math
import subprocess
import sys
from collections.abc import Mapping
from decimal import Decimal
from enum import Enum
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tollspan.pricing import PriceEngine, Selectors, shipped_book
from tollspan.pricing.conventions import CONVENTIONS, COUNTS, LARGEST_COUNT
from tollspan.pricing.meters import METERS
from tollspan.pricing.selectors import provider_of
from tollspan.pricing.usage_objects import UsageReading, _in_full, read_usage
from tollspan.pricing.usage_plans import MOST_FIELDS, MOST_LETTERS, MOST_PLANS, _plans
from tollspan.pricing.usage_shapes import (
    CONVENTIONS_OF,
    METER_PATHS,
    METERS_WITHOUT_TOKENS,
    SHAPES,
    TOTAL_COSTS,
    Shape,
)

from .usage_fixtures import EXAMPLES, OUTPUT, READ, REASONING, UNCACHED, Example

CHAT = {"prompt_tokens": 10, "completion_tokens": 5}

# -- what each provider says -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("example", EXAMPLES.values(), ids=EXAMPLES)
def test_a_provider_s_object_has_its_known_quantities(example: Example) -> None:
    reading = read_usage(example.provider, example.usage)
    assert reading.invalid is None
    assert reading.quantities == example.quantities
    assert reading.convention == example.convention
    assert reading.unknown == (), "every number of the example is either read or known to be no count"


@pytest.mark.parametrize("example", EXAMPLES.values(), ids=EXAMPLES)
def test_no_token_is_lost_or_counted_twice(example: Example) -> None:
    tokens = sum(
        steps for meter, steps in read_usage(example.provider, example.usage).quantities.items() if meter in _TOKENS
    )
    assert tokens == (example.total or tokens)
    stated = (
        example.usage.get("total_tokens") or example.usage.get("totalTokenCount") or example.usage.get("totalTokens")
    )
    assert stated in (None, example.total) or example.provider == "perplexity"


_TOKENS = {name for name in METERS if name.startswith("tokens.")}


@pytest.mark.parametrize("example", EXAMPLES.values(), ids=EXAMPLES)
def test_json_objects_of_an_sdk_and_exact_numbers_say_the_same(example: Example) -> None:
    expected = read_usage(example.provider, example.usage)
    written = json.dumps(example.usage)
    assert read_usage(example.provider, json.loads(written)) == expected
    assert read_usage(example.provider, json.loads(written, parse_float=Decimal)) == expected
    # Whole numbers that JSON wrote with a point, and attributes in place of keys.
    assert read_usage(example.provider, json.loads(written, parse_int=float)).quantities == expected.quantities
    assert read_usage(example.provider, json.loads(written, object_hook=lambda d: SimpleNamespace(**d))) == expected


def test_objects_of_an_installed_sdk_are_read() -> None:
    types = pytest.importorskip("openai.types")
    example = EXAMPLES["openai chat"]
    reading = read_usage("openai", types.CompletionUsage.model_validate(example.usage))
    assert (reading.quantities, reading.unknown) == (example.quantities, ())
    # Fields that the SDK does not know yet are kept beside those it does.
    more = types.CompletionUsage.model_validate({**example.usage, "holographic_tokens": 3})
    assert read_usage("openai", more).unknown == ("holographic_tokens",)


class _Modality(str, Enum):  # noqa: UP042  as google-genai has it: its str() is not its value
    AUDIO = "AUDIO"


def test_objects_that_have_only_a_dump_or_a_descriptor_are_read() -> None:
    class Dumped:
        __slots__ = ()

        def model_dump(self) -> dict[str, Any]:
            return {
                "prompt_token_count": 9,
                "candidates_token_count": 1,
                "prompt_tokens_details": [{"modality": _Modality.AUDIO, "token_count": 4}],
            }

    class Message:  # as protobuf makes them
        __slots__ = ("completion_tokens", "prompt_tokens", "reasoning_tokens")
        DESCRIPTOR = SimpleNamespace(fields=[SimpleNamespace(name=name) for name in __slots__])

    assert read_usage("google", Dumped()).quantities == {UNCACHED: 5, "tokens.input.audio": 4, OUTPUT: 1}
    message = Message()
    message.prompt_tokens, message.completion_tokens, message.reasoning_tokens = 32, 9, 94
    assert read_usage("x_ai", message).quantities == {UNCACHED: 32, OUTPUT: 9, REASONING: 94}


def test_the_reported_example_costs_what_its_reporter_was_charged() -> None:
    # PostHog/posthog#71065: $0.0000577, and not the $0.0001102 of thoughts counted twice.
    example = EXAMPLES["gemini (PostHog/posthog#71065)"]
    quantities = read_usage("google", example.usage).quantities
    charges = PriceEngine(shipped_book()).price(
        quantities, at=1_782_000_000 * 10**9, selectors=Selectors(provider="google", model="gemini-2.5-flash")
    )
    assert charges.cost == Decimal("0.0000577")


# -- what cannot be right ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "outcome"),
    [
        (12, 12),
        (12.0, 12),
        (Decimal("12"), 12),
        (0, 0),
        (-0.0, 0),
        (LARGEST_COUNT, LARGEST_COUNT),
        (True, "usage_not_a_number"),
        ("12", "usage_not_a_number"),
        ("", "usage_not_a_number"),
        (math.nan, "usage_not_a_number"),
        (Decimal("sNaN"), "usage_not_a_number"),
        (12.5, "usage_fractional"),
        (Decimal("1e-999"), "usage_fractional"),
        (-1, "usage_negative"),
        (-0.5, "usage_negative"),
        (-math.inf, "usage_negative"),
        (LARGEST_COUNT + 1, "usage_too_large"),
        (2**70, "usage_too_large"),
        (1e300, "usage_too_large"),
        (math.inf, "usage_too_large"),
        (Decimal("1e999999"), "usage_too_large"),
    ],
)
@pytest.mark.parametrize("path", ["prompt_tokens", "num_search_queries"])
def test_a_count_is_a_whole_number_or_the_usage_is_invalid(path: str, value: Any, outcome: int | str) -> None:
    reading = read_usage("openai", {"completion_tokens": 3, path: value})
    if isinstance(outcome, str):
        assert (reading.invalid, reading.quantities) == (outcome, {})
    else:
        meter = {"prompt_tokens": UNCACHED, "num_search_queries": "web_searches"}[path]
        assert (reading.invalid, reading.quantities) == (None, {meter: outcome, OUTPUT: 3})


@pytest.mark.parametrize(
    ("provider", "usage"),
    [
        ("openai", {**CHAT, "prompt_tokens_details": {"cached_tokens": 11}}),
        ("openai", {**CHAT, "completion_tokens_details": {"reasoning_tokens": 6}}),
        ("google", {"promptTokenCount": 10, "cachedContentTokenCount": 11}),
        ("anthropic", {**EXAMPLES["anthropic"].usage, "cache_creation_input_tokens": 555}),
        ("aws", {**EXAMPLES["bedrock converse"].usage, "cacheWriteInputTokens": 699}),
    ],
)
def test_parts_larger_than_their_whole_are_inconsistent_and_not_clamped(provider: str, usage: dict[str, Any]) -> None:
    reading = read_usage(provider, usage)
    assert (reading.invalid, reading.quantities) == ("usage_inconsistent", {})


def test_one_wrong_item_of_a_list_is_not_hidden_by_another() -> None:
    details = [{"modality": "IMAGE", "tokenCount": -5}, {"modality": "IMAGE", "tokenCount": 10}]
    assert read_usage("google", {"promptTokenCount": 10, "promptTokensDetails": details}).invalid == "usage_negative"


@pytest.mark.parametrize(
    ("value", "steps"),
    [(9.02, 9_020_000_000), (0.1, 100_000_000), (Decimal("0.0000000015"), 2), (2.5e-9, 2), (7, 7_000_000_000)],
)
def test_seconds_are_exact_to_the_nanosecond(value: Any, steps: int) -> None:
    assert read_usage("openai", {"type": "duration", "seconds": value}).quantities == {"audio.seconds": steps}


@pytest.mark.parametrize("usage", [None, {}, [], "usage", 7, object(), object, {"usage": None}, {1: 2}])
def test_what_says_nothing_gives_nothing(usage: Any) -> None:
    assert read_usage("openai", usage) == UsageReading()
    assert read_usage(None, usage) == UsageReading()


def test_what_was_not_given_is_absent_and_not_zero() -> None:
    assert read_usage("openai", {"completion_tokens": 0, "prompt_tokens": None}).quantities == {OUTPUT: 0}


_scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.decimals() | st.binary()
_names = st.sampled_from(
    sorted({part for shape in SHAPES for paths in shape.counts.values() for path in paths for part in path.split(".")})
) | st.sampled_from(["modality", "ttl", "type", "AUDIO", "5m", "cost", "output", "candidates", "data", "service_tier"])
_anything = st.recursive(
    _scalars, lambda below: st.lists(below, max_size=3) | st.dictionaries(_names, below, max_size=5), max_leaves=20
)


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(_names, _anything, max_size=8), st.dictionaries(_names, _anything, max_size=5))
def test_no_input_raises_and_nothing_is_invented(usage: dict[str, Any], response: dict[str, Any]) -> None:
    before = copy.deepcopy(repr(usage))
    reading = read_usage("openrouter", usage, model="m", response=response)
    assert repr(usage) == before
    assert all(type(steps) is int and steps >= 0 for steps in reading.quantities.values())
    assert reading.quantities.keys() <= METERS.keys()
    assert not (reading.invalid and reading.quantities)


# -- by plan -----------------------------------------------------------------------------------------------------------

_counts = st.integers(0, 2000) | st.sampled_from([0, 1, 100.0, 2**53, 2**53 + 1, -1, "5", True, 0.5, Decimal(7)])
_words = st.sampled_from(["priority", "ON_DEMAND_FLEX", "fast", "us", "AUDIO", "image", "5m", ""])


@st.composite
def _likely(draw: st.DrawFn) -> dict[str, Any]:
    """A usage object as a provider might send it, or nearly so: the fields of one shape, and others beside them."""
    usage: dict[str, Any] = {}
    shape = draw(st.sampled_from(SHAPES))
    paths = [path for paths in shape.counts.values() for path in paths] + list(shape.total)
    paths += [path for paths in (METER_PATHS | METERS_WITHOUT_TOKENS).values() for path in paths]
    for path in draw(st.lists(st.sampled_from(paths), max_size=8)):
        for name in path.split(" + "):
            _set_likely(usage, name, draw(_counts))
    for name in draw(st.lists(st.sampled_from(["service_tier", "speed", "inference_geo", "traffic_type"]), max_size=2)):
        usage[name] = draw(_words)
    for name in draw(st.lists(st.sampled_from(["cost", "cost_in_usd_ticks", "odd_tokens", "odd_list"]), max_size=2)):
        usage[name] = draw(_counts | st.lists(_counts, max_size=3))
    if draw(st.booleans()):
        items = st.fixed_dictionaries({"modality": _words, "tokenCount": _counts}) | _counts
        usage[draw(st.sampled_from(["promptTokensDetails", "cacheDetails"]))] = draw(st.lists(items, max_size=4))
    return usage


def _set_likely(usage: dict[str, Any], path: str, value: Any) -> None:
    *levels, last = path.split(".")
    for level in levels:
        below = usage.setdefault(level, {})
        if not isinstance(below, dict):
            return
        usage = below
    usage[last] = value


def _other_values(value: Any, draw: Any) -> Any:
    """An object of the same fields with other counts; what tells items of a list apart stays."""
    if isinstance(value, dict):
        return {name: _other_values(below, draw) for name, below in value.items()}
    if isinstance(value, list):
        return [_other_values(item, draw) for item in value]
    return value if isinstance(value, (str, bytes, bool)) or value is None else draw(_counts)


@settings(max_examples=600, deadline=None)
@given(st.data())
def test_by_plan_is_what_it_is_in_full(data: st.DataObject) -> None:
    provider = data.draw(st.sampled_from(["openai", "anthropic", "gcp.gemini", "x_ai", "cohere", "perplexity", None]))
    form = data.draw(st.none() | st.just("anthropic"))
    response = data.draw(st.none() | st.just(RESPONSE) | st.dictionaries(_names, _anything, max_size=3))
    first = data.draw(_likely() | st.dictionaries(_names, _anything, max_size=6))
    _plans.clear()
    for usage in (first, first, _other_values(first, data.draw)):
        owner = provider_of(provider)
        expected = _in_full(owner, form or owner, usage, "gemini-3-flash", response or {})
        reading = read_usage(provider, usage, model="gemini-3-flash", response=response, form=form)
        assert repr(reading) == repr(expected) or reading == expected
        assert list(map(type, reading.quantities.values())) == [int] * len(reading.quantities)


@pytest.mark.parametrize("example", EXAMPLES.values(), ids=EXAMPLES)
def test_every_provider_s_object_has_a_plan(example: Example) -> None:
    _plans.clear()
    for _ in range(2):
        assert read_usage(example.provider, example.usage).quantities == example.quantities
        assert [plan is not None for plan in _plans.values()] == [True]


def test_a_plan_knows_the_items_of_a_list_by_their_tags() -> None:
    _plans.clear()
    for modality in ("AUDIO", "IMAGE", "audio"):
        usage = {"promptTokenCount": 10, "promptTokensDetails": [{"modality": modality, "tokenCount": 3}]}
        assert read_usage("google", usage).quantities == {UNCACHED: 7, f"tokens.input.{modality.lower()}": 3}


def test_structures_that_somebody_makes_up_are_not_kept() -> None:
    _plans.clear()
    for number in range(3 * MOST_PLANS):
        assert read_usage("openai", {**CHAT, f"odd{number}": 0}).quantities == {UNCACHED: 10, OUTPUT: 5}
        assert len(_plans) <= MOST_PLANS
    _plans.clear()
    wide = {**CHAT, **{f"odd{number}": 0 for number in range(MOST_FIELDS)}}
    long = {**CHAT, "o" * MOST_LETTERS: 0}
    for usage in (wide, long):
        assert read_usage("openai", usage).quantities == {UNCACHED: 10, OUTPUT: 5}
    assert not _plans


# -- beside the counts -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("provider", "more", "cost"),
    [
        ("openrouter", {"cost": 0.95}, "0.95"),
        ("openrouter", {"cost": 0.1}, "0.1"),
        ("openrouter", {"cost": 1.5e-07}, "1.5E-7"),
        ("openrouter", {"cost": Decimal("0.123456789012345678901234567890123")}, "0.123456789012345678901234567890123"),
        ("openrouter", {"cost": 0}, "0"),
        ("openrouter", {"cost": -1}, None),
        ("openrouter", {"cost": math.nan}, None),
        ("openrouter", {"cost": "0.95"}, None),
        ("openrouter", {"cost": True}, None),
        ("openrouter", {"cost": 1e18}, None),
        ("somebody", {"cost": 0.95}, None),  # in which currency?
        ("perplexity", {"cost": {"total_cost": 0.006}}, "0.006"),
        ("x_ai", {"cost_in_usd_ticks": 37756000}, "0.0037756"),
        ("litellm", {"cost_in_usd_ticks": 1}, "1E-10"),
        ("x_ai", {"cost_in_usd_ticks": 12_345_678_901_234_567}, "1234567.8901234567"),
        ("openai", {}, None),
    ],
)
def test_the_provider_s_own_figure_is_kept_exactly(provider: str, more: dict[str, Any], cost: str | None) -> None:
    reading = read_usage(provider, {**CHAT, **more})
    assert reading.reported_cost == (None if cost is None else Decimal(cost))
    assert reading.invalid is None, "a figure that cannot be a cost does not make the counts wrong"


@pytest.mark.parametrize(
    ("usage", "response", "tier"),
    [
        ({**CHAT, "service_tier": "Priority"}, None, "priority"),
        (CHAT, {"service_tier": "flex"}, "flex"),
        (CHAT, {"serviceTier": {"type": "reserved"}}, "reserved"),
        ({"promptTokenCount": 1, "trafficType": "ON_DEMAND_PRIORITY"}, None, "priority"),
        ({"promptTokenCount": 1, "trafficType": "PROVISIONED_THROUGHPUT"}, None, "provisioned_throughput"),
        ({"promptTokenCount": 1, "trafficType": "ON_DEMAND_OFFPEAK"}, None, "offpeak"),
        ({"promptTokenCount": 1, "trafficType": "TRAFFIC_TYPE_UNSPECIFIED"}, None, None),
        ({"input_tokens": 1, "speed": "fast", "service_tier": "standard"}, None, "fast"),
        ({"input_tokens": 1, "speed": "standard", "service_tier": "batch"}, None, "batch"),
        (CHAT, None, None),
        ({**CHAT, "service_tier": 3}, {"service_tier": ["x"]}, None),
    ],
)
def test_the_tier_is_the_served_one(usage: dict[str, Any], response: Any, tier: str | None) -> None:
    assert read_usage("openai", usage, response=response).service_tier == tier


def test_a_provider_may_say_where_it_processed() -> None:
    assert read_usage("anthropic", EXAMPLES["anthropic"].usage).residency == "us"
    assert read_usage("openai", CHAT).residency is None


def test_numbers_that_nobody_reads_are_named() -> None:
    usage = {
        **CHAT,
        "holographic_tokens": 4,
        "prompt_tokens_details": {"smell_tokens": 2, "taste_tokens": 0, "text_tokens": 8},
        "note": "fine",
        "ratio": True,
    }
    assert read_usage("openai", usage).unknown == ("holographic_tokens", "prompt_tokens_details.smell_tokens")
    # Another model's tokens inside one object cannot be priced with this one's.
    advised = {
        **EXAMPLES["anthropic, compaction"].usage,
        "iterations": [{"type": "advisor_message", "model": "m", "input_tokens": 823, "output_tokens": 1612}],
    }
    # What no meter counts is named: Cohere's classifications, a search of Mistral's at another price.
    units = {"billed_units": {"classifications": 3.0}}
    assert read_usage("cohere", units).unknown == ("billed_units.classifications",)
    premium = {**CHAT, "connectors": {"web_search_premium": 1}}
    assert read_usage("mistral_ai", premium).unknown == ("connectors.web_search_premium",)
    reading = read_usage("anthropic", advised)
    assert reading.unknown == ("iterations.advisor_message.input_tokens", "iterations.advisor_message.output_tokens")
    assert reading.quantities[UNCACHED] == 23000


RESPONSE: dict[str, Any] = {
    "object": "response",
    "output": [
        {"type": "web_search_call", "action": {"type": "search"}},
        {"type": "file_search_call", "queries": ["a"]},
        {"type": "file_search_call", "queries": ["b"]},
        {"type": "code_interpreter_call", "container_id": "cntr_1"},
        {"type": "code_interpreter_call", "container_id": "cntr_1"},
        {"type": "code_interpreter_call", "container_id": "cntr_2"},
        {"type": "message", "content": []},
    ],
    "tool_usage": {
        "image_gen": {"input_tokens": 50, "input_tokens_details": {"text_tokens": 50}, "output_tokens": 4160},
        "web_search": {"num_requests": 3},
    },
}


def test_tools_that_only_the_response_tells_are_counted() -> None:
    reading = read_usage("openai", {"input_tokens": 10, "output_tokens": 5}, response=RESPONSE)
    assert reading.quantities == {
        UNCACHED: 10,
        OUTPUT: 5,
        "web_searches": 3,
        "file_searches": 2,
        "code_interpreter.sessions": 2,
    }
    assert reading.unknown == ("tool_usage.image_gen.input_tokens", "tool_usage.image_gen.output_tokens")


@pytest.mark.parametrize(
    ("model", "searches"), [("gemini-2.5-flash", 1), ("models/gemini-2.0-flash", 1), ("gemini-3-flash", 2), (None, 2)]
)
@pytest.mark.parametrize(
    "names", [("groundingMetadata", "webSearchQueries"), ("grounding_metadata", "web_search_queries")]
)
def test_google_bills_a_search_by_the_prompt_or_by_the_query(
    model: str | None, searches: int, names: tuple[str, str]
) -> None:
    queries = ["", "equity crowdfunding", "", "Wefunder", "Wefunder"]
    response = {"candidates": [{names[0]: {names[1]: queries}}, {"content": {}}]}
    reading = read_usage("google", {"promptTokenCount": 4}, model=model, response=response)
    assert reading.quantities == {UNCACHED: 4, "web_searches": searches}
    none = {"candidates": [{names[0]: {names[1]: [""]}}]}
    assert "web_searches" not in read_usage("google", {"promptTokenCount": 4}, model=model, response=none).quantities


def test_images_are_counted_where_no_tokens_are() -> None:
    response = {"data": [{"url": "https://example.test/1"}, {"b64_json": "AA=="}, {"revised_prompt": "x"}]}
    assert read_usage("openai", None, response=response).quantities == {"images": 2}
    by_tokens = read_usage("openai", EXAMPLES["openai images"].usage, response=response)
    assert "images" not in by_tokens.quantities


# -- the tables --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES, ids=[shape.name for shape in SHAPES])
def test_a_shape_names_known_counts_and_conventions(shape: Shape) -> None:
    assert shape.counts.keys() <= set(COUNTS)
    assert shape.conventions
    assert set(shape.conventions) <= CONVENTIONS.keys()
    assert len(shape.conventions) == 1 or shape.total, "only a total can decide between conventions"


def test_the_other_tables_name_known_meters_and_conventions() -> None:
    assert METER_PATHS.keys() | METERS_WITHOUT_TOKENS.keys() <= METERS.keys()
    assert {name for name, _ in CONVENTIONS_OF} <= {shape.name for shape in SHAPES}
    assert {convention for of in CONVENTIONS_OF.values() for convention in of} <= CONVENTIONS.keys()
    assert all(per_dollar > 0 for _, per_dollar, _ in TOTAL_COSTS)


@pytest.mark.parametrize("shape", SHAPES, ids=[shape.name for shape in SHAPES])
def test_every_path_of_a_shape_is_read(shape: Shape) -> None:
    """Alone beside large wholes, each path changes what is read."""
    wholes = {"input_tokens": 1000, "output_tokens": 1000, "cache_read": 500, "cache_write": 500}
    base: dict[str, Any] = {}
    for count, value in wholes.items():
        if count in shape.counts:
            _set(base, shape.counts[count][0].split(" + ")[0], value)
    for count, paths in shape.counts.items():
        for path in [name for summands in paths for name in summands.split(" + ")]:
            usage = copy.deepcopy(base)
            if count in wholes:
                _set(usage, shape.counts[count][0].split(" + ")[0], None)
            _set(usage, path, 77)
            without = copy.deepcopy(usage)
            _set(without, path, None)
            owner = next(iter(shape.bare), "somebody")
            assert read_usage(owner, usage).quantities != read_usage(owner, without).quantities, path


def _set(usage: dict[str, Any], path: str, value: int | None) -> None:
    *levels, last = path.split(".")
    for level in levels:
        usage = usage.setdefault(level, {})
    usage[last] = value


def test_reading_usage_imports_nothing_heavy() -> None:
    code = (
        "import sys; import tollspan.pricing.usage_objects; "
        "print([m for m in ('numpy', 'pyarrow', 'yaml', 'genai_prices') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_the_cheapest_word_of_a_cache_is_not_taken_twice() -> None:
    # DeepSeek tells its cache hits in two places.
    usage = {**CHAT, "prompt_cache_hit_tokens": 6, "prompt_tokens_details": {"cached_tokens": 6}}
    assert read_usage("deepseek", usage).quantities == {UNCACHED: 4, READ: 6, OUTPUT: 5}
    # A key in two spellings is one key, the first.
    assert read_usage("openai", {**CHAT, "promptTokens": 12}).quantities == {UNCACHED: 10, OUTPUT: 5}


# -- what was dropped in silence ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "usage",
    [
        {"prompt_tokens": [1000000], "completion_tokens": 5},
        {"prompt_tokens": {"x": 5}},
        {"prompt_tokens": [], "completion_tokens": 5},
        {**CHAT, "prompt_tokens_details": [{"cached_tokens": 4}]},
        {**CHAT, "prompt_tokens_details": {"cached_tokens": [4]}},
        {**CHAT, "prompt_tokens_details": {"cached_tokens": {"audio": 4}}},
        {**CHAT, "num_search_queries": [3]},
        {"input_tokens": (5,), "output_tokens": 1},
        {"seconds": {"s": 4}},
    ],
)
def test_a_count_of_another_type_is_invalid_and_not_left_out(usage: dict[str, Any]) -> None:
    reading = read_usage("openai", usage)
    assert (reading.invalid, reading.quantities) == ("usage_not_a_number", {})


def test_numbers_of_a_list_that_nobody_reads_are_named() -> None:
    assert read_usage("openai", {**CHAT, "odd_tokens": [5], "odd": [{"few_tokens": 4}]}).unknown == (
        "odd.few_tokens",
        "odd_tokens",
    )


class _Broken:
    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(name)


class _Unreadable(Mapping[str, Any]):
    def __getitem__(self, key: str) -> Any:
        raise RuntimeError(key)

    def __iter__(self) -> Any:
        return iter(["prompt_tokens"])

    def __len__(self) -> int:
        return 1


@pytest.mark.parametrize("kind", [_Broken, _Unreadable])
def test_an_object_that_raises_says_nothing(kind: type) -> None:
    broken = kind()
    assert read_usage("openai", broken, response=broken).quantities == {}
    assert read_usage("openai", {**CHAT, "prompt_tokens_details": broken}).quantities == {UNCACHED: 10, OUTPUT: 5}


def test_a_cost_finer_than_any_is_none() -> None:
    assert read_usage("openrouter", {**CHAT, "cost": Decimal("1e-999999")}).reported_cost is None
    assert read_usage("openrouter", {**CHAT, "cost": Decimal("1e-30")}).reported_cost == Decimal("1e-30")


def test_searches_of_a_response_that_does_not_sum_them_up_are_counted_once() -> None:
    usage = {"input_tokens": 10, "output_tokens": 5}
    call = {"type": "web_search_call", "status": "completed"}
    opened = [{**call, "action": {"type": kind}} for kind in ("open_page", "find_in_page")]
    output = [call, {**call, "action": {"type": "search"}}, *opened]
    reading = read_usage("openai", usage, response={"output": output})
    assert reading.quantities == {UNCACHED: 10, OUTPUT: 5, "web_searches": 2}
    summed = {"output": output, "tool_usage": {"web_search": {"num_requests": 1}}}
    assert read_usage("openai", usage, response=summed).quantities["web_searches"] == 1
    assert "web_searches" not in read_usage("openai", usage, response={"output": opened}).quantities
    billed = {**usage, "server_side_tool_usage_details": {"web_search_calls": 3}}
    assert read_usage("x-ai", billed, response={"output": output}).quantities["web_searches"] == 3


@pytest.mark.parametrize(
    "names", [("groundingMetadata", "groundingChunks"), ("grounding_metadata", "grounding_chunks")]
)
def test_a_place_on_a_map_among_the_sources_is_a_search_of_maps(names: tuple[str, str]) -> None:
    maps, web = {"maps": {"uri": "u", "placeId": "p"}}, {"web": {"uri": "u"}}
    response = {"candidates": [{names[0]: {names[1]: [maps, maps, web], "webSearchQueries": ["a"]}}]}
    reading = read_usage("google", {"promptTokenCount": 4}, model="gemini-3-flash", response=response)
    assert reading.quantities == {UNCACHED: 4, "maps_searches": 1, "web_searches": 1}
    none = {"candidates": [{names[0]: {names[1]: [web]}}]}
    assert "maps_searches" not in read_usage("google", {"promptTokenCount": 4}, response=none).quantities
