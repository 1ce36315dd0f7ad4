"""Reads and lookups that a program marks itself: they are counted as it says, and the program stays as it was."""

from __future__ import annotations

import asyncio
import textwrap
import time
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import numpy as np
import pytest
from opentelemetry import context, trace
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF

import tollspan.instrumentation
from tollspan.instrumentation import cache_lookup, data_reads, feature_read, guard, tag, vectors
from tollspan.instrumentation.calls import WrapPoint, begin
from tollspan.pricing import PriceBook, PriceEngine
from tollspan.pricing import attributes as names
from tollspan.pricing.yamlbook import parse_layer
from tollspan.processor.bodies import bodies
from tollspan.processor.charge import charge
from tollspan.processor.decode import decode
from tollspan.processor.normalize import normalize
from tollspan.processor.store import Store

from .conftest import Telemetry

READS = names.usage("feature.reads")
BYTES = names.usage("storage.read.bytes")


@pytest.fixture
def spans(telemetry: Telemetry, monkeypatch: pytest.MonkeyPatch) -> Telemetry:
    monkeypatch.setattr("opentelemetry.trace._TRACER_PROVIDER", telemetry.provider)
    return telemetry


def test_a_block_says_what_it_read(spans: Telemetry) -> None:
    with feature_read(store="redis", view="profiles", features=3, entities=["user"]) as read:
        read.rows, read.bytes, read.hits, read.nulls, read.misses = 2, 640, 4, 1, 1
    assert spans.only().name == "feature_read profiles"
    assert spans.attributes() == {
        names.OPERATION: "feature_read",
        names.PROVIDER: "redis",
        names.MODEL: "profiles",
        names.FEATURE_STORE: "redis",
        names.FEATURE_ACCESS: "online",
        names.FEATURE_VIEWS: ("profiles",),
        names.FEATURE_ENTITIES: ("user",),
        names.FEATURE_ROWS: 2,
        names.FEATURE_COUNT: 3,
        READS: 6,
        BYTES: 640,
        names.FEATURE_HITS: 4,
        names.FEATURE_NULLS: 1,
        names.FEATURE_MISSES: 1,
    }


def test_what_is_not_said_is_absent(spans: Telemetry) -> None:
    with feature_read(store="redis") as read:
        read.rows = 5
    assert spans.only().name == "feature_read redis"
    assert READS not in spans.attributes()  # of how many features is not known
    assert BYTES not in spans.attributes()


@pytest.mark.parametrize("wrong", [-1, 2.5, "two", True])
def test_what_is_no_count_is_absent(spans: Telemetry, wrong: Any) -> None:
    with feature_read(store="redis", features=1) as read:
        read.rows = wrong
    assert not {READS, names.FEATURE_ROWS} & set(spans.attributes())


def test_counts_of_other_libraries_are_counts(spans: Telemetry) -> None:
    with feature_read(store="redis", features=2) as read:
        read.rows = np.int64(4)  # type: ignore[assignment]
    assert spans.attributes()[READS] == 8


def test_a_decorated_function_is_measured_by_what_it_returns(spans: Telemetry) -> None:
    def measure(read: Any, result: Any) -> None:
        read.rows = len(result)

    @feature_read(store="postgres", view="orders", features=4, measure=measure)
    def load(keys: list[int]) -> list[int]:
        return keys

    @feature_read(store="postgres", view="orders", features=4, measure=measure)
    async def load_later(keys: list[int]) -> list[int]:
        return keys

    async def both() -> None:
        await asyncio.gather(load_later([1]), load_later([1, 2]))

    assert load([1, 2, 3]) == [1, 2, 3]
    assert load.__name__ == "load"
    asyncio.run(both())
    assert [(span.attributes or {})[READS] for span in spans.spans()] == [12, 4, 8]


async def test_an_asynchronous_block(spans: Telemetry) -> None:
    async with feature_read(store="dynamodb", view="carts", features=1) as read:
        read.rows = 1
    assert spans.attributes()[READS] == 1


def test_an_error_is_the_programs_own(spans: Telemetry) -> None:
    error = KeyError("gone")

    def load() -> None:
        with feature_read(store="redis", features=1) as read:
            read.rows = 1
            raise error

    with pytest.raises(KeyError) as caught:
        load()
    assert caught.value is error
    assert spans.attributes()[names.ERROR_TYPE] == "KeyError"
    assert spans.attributes()[READS] == 1  # it was read before


def test_a_read_inside_a_read_is_part_of_it(spans: Telemetry) -> None:
    with feature_read(store="redis", view="outer"), feature_read(store="redis", view="inner"):
        pass
    assert spans.only().name == "feature_read outer"


def test_tags_and_freshness(spans: Telemetry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tollspan.instrumentation.data_reads.time", lambda: 1000.0)
    with tag(tenant="acme"), feature_read(store="redis") as read:
        read.times = [990.0, 900.0, 0.0, 980.0]
    about = spans.attributes()
    assert about[names.TENANT] == "acme"
    assert (about[names.FEATURE_AGE_OLDEST], about[names.FEATURE_AGE_MEDIAN]) == (100.0, 20.0)


def test_keys_leave_the_process_only_as_keyed_hashes(spans: Telemetry, monkeypatch: pytest.MonkeyPatch) -> None:
    def read(secret: str, *keys: Any) -> Any:
        monkeypatch.setenv("TOLLSPAN_FINGERPRINT_KEY", secret)
        with feature_read(store="redis") as reading:
            reading.keys = keys
        return (spans.spans()[-1].attributes or {}).get(names.READ_KEYS)

    assert read("", "ann") is None
    first = read("one", "ann", "bob", "ann")
    assert len(first) == 2
    assert read("one", "bob") == (first[1],)
    assert read("other", "ann") != (first[0],)
    assert read("one", {"user": 7}) == read("one", {"user": np.int64(7)})
    assert len(read("one", *range(1000))) == 256
    assert not any("ann" in str(value) for span in spans.spans() for value in (span.attributes or {}).values())


def test_a_fault_in_measuring_is_ours_alone(faulty_telemetry: Telemetry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("opentelemetry.trace._TRACER_PROVIDER", faulty_telemetry.provider)
    before = guard.faults().get("data_reads.measure", 0)

    def measure(read: Any, result: Any) -> None:
        raise RuntimeError("no")

    assert feature_read(store="redis", measure=measure)(lambda: 7)() == 7
    assert guard.faults()["data_reads.measure"] == before + 1
    assert len(faulty_telemetry.spans()) == 1


def test_without_a_recording_span_nothing_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("opentelemetry.trace._TRACER_PROVIDER", TracerProvider(sampler=ALWAYS_OFF))
    before = context.get_current()

    def never() -> Iterator[float]:
        raise AssertionError("read")
        yield 0.0

    with feature_read(store="redis") as read:
        read.times = never()
    assert context.get_current() is before


def test_generators_are_refused() -> None:
    with pytest.raises(TypeError, match="generators"):

        @feature_read(store="redis")
        def rows() -> Iterator[int]:
            yield 1


# -- in the processor --------------------------------------------------------------------------------------------------

BOOK = b"""
price_book: {id: reads, version: 1, currency: USD}
prices:
  - {id: redis/reads, provider: redis, meter: feature.reads, amount: "0.25", per: 1000000}
  - {id: qdrant/queries, provider: qdrant, meter: vector.queries, amount: "4", per: 1000000}
"""


def ledger(spans: Telemetry) -> list[dict[str, Any]]:
    """Ledger rows of the spans at the prices of `BOOK`."""
    decoded = decode([encode_spans(spans.spans()).SerializeToString()])
    engine = PriceEngine(PriceBook([parse_layer(BOOK, "book.yaml")]))
    table = charge(normalize(decoded, received_ns=time.time_ns()), np.zeros(len(decoded), np.bool_), engine).ledger
    return table.drop_columns("start_time").to_pylist()


def test_a_read_is_priced_and_a_lookup_is_no_row(spans: Telemetry) -> None:
    with cache_lookup(cache="answers") as lookup:
        lookup.hit(saved_cost="5", saved_input_tokens=100)
        with feature_read(store="redis", view="profiles", features=4) as read:
            read.rows = 500
    (row,) = ledger(spans)
    assert (row["kind"], row["provider"], row["charges.meter"]) == ("feature_read", "redis", ["feature.reads"])
    assert (row["cost"], row["cost_status"]) == (Decimal("0.0005"), "priced")


def test_a_vector_query_is_priced(spans: Telemetry) -> None:
    point = WrapPoint(
        target="tollspan:query",
        request=lambda args, _: vectors.query("qdrant", "answers", 5, queries=3),
        response=lambda call, result: vectors.answered(call, 12),
        layer=vectors.LAYER,
    )
    call = begin(point, spans.provider.get_tracer("test"))
    assert call is not None
    call.returned(None)
    (row,) = ledger(spans)
    assert (row["operation"], row["model"], row["cost"]) == ("vector_query", "answers", Decimal("0.000012"))


def test_repeated_reads_of_a_trace_are_found_by_the_query_that_is_documented(
    spans: Telemetry, monkeypatch: pytest.MonkeyPatch, store: Store
) -> None:
    monkeypatch.setenv("TOLLSPAN_FINGERPRINT_KEY", "secret")
    with feature_read(store="redis", view="other"):
        pass
    with spans.provider.get_tracer("test").start_as_current_span("answer"):
        for keys in (["ann", "bob"], ["bob"]):
            with feature_read(store="redis", view="profiles") as read:
                read.keys = keys
        with feature_read(store="redis", view="other") as read:
            read.keys = ["ann"]
    decoded = decode([encode_spans(spans.spans()).SerializeToString()])
    store.insert("spans", bodies(decoded, {}), "token")
    sql = textwrap.dedent((data_reads.__doc__ or "").partition("tables::\n\n")[2].partition("\n\n")[0])
    (repeated,) = store.query(sql).to_pylist()
    assert (repeated["store"], repeated["views"], repeated["reads"]) == ("redis", '["profiles"]', 2)


# -- caches ------------------------------------------------------------------------------------------------------------


def test_a_hit_says_what_it_saved(spans: Telemetry) -> None:
    with cache_lookup(cache="answers", kind="semantic", store="redis") as lookup:
        lookup.hit(
            saved_cost=Decimal("0.0000031"),
            saved_input_tokens=1200,
            saved_output_tokens=80,
            model="gpt-5-mini",
            similarity=0.97,
        )
    assert spans.only().name == "cache_lookup answers"
    assert spans.attributes() == {
        names.OPERATION: "cache_lookup",
        names.MODEL: "answers",
        names.PROVIDER: "redis",
        names.CACHE_KIND: "semantic",
        names.CACHE_RESULT: "hit",
        names.CACHE_SAVED_COST: "0.0000031",
        names.CACHE_SAVED_INPUT_TOKENS: 1200,
        names.CACHE_SAVED_OUTPUT_TOKENS: 80,
        names.CACHE_SAVED_MODEL: "gpt-5-mini",
        names.CACHE_SIMILARITY: 0.97,
    }


def test_what_was_saved_is_no_usage(spans: Telemetry) -> None:
    with cache_lookup(cache="answers") as lookup:
        lookup.hit(saved_input_tokens=1200, saved_cost="1")
    assert not [name for name in spans.attributes() if name.startswith((names.USAGE_PREFIX, "gen_ai."))]


@pytest.mark.parametrize("wrong", [0.1, "much", Decimal("-1"), Decimal("NaN")])
def test_money_is_never_a_float_nor_a_guess(spans: Telemetry, wrong: Any) -> None:
    with cache_lookup(cache="answers") as lookup:
        lookup.hit(saved_cost=wrong)
    assert spans.attributes()[names.CACHE_RESULT] == "hit"
    assert names.CACHE_SAVED_COST not in spans.attributes()


def test_a_miss(spans: Telemetry) -> None:
    with cache_lookup(cache="answers", kind="semantic") as lookup:
        lookup.miss(similarity=0.4)
    assert spans.attributes()[names.CACHE_RESULT] == "miss"
    assert spans.attributes()[names.CACHE_SIMILARITY] == 0.4


def test_a_lookup_that_says_nothing_is_neither(spans: Telemetry) -> None:
    with cache_lookup(cache="answers"):
        pass
    assert names.CACHE_RESULT not in spans.attributes()


def test_a_decorated_lookup_that_returns_none_missed(spans: Telemetry) -> None:
    kept = {"a": "1"}
    lookup = cache_lookup(cache="answers")(kept.get)
    assert (lookup("a"), lookup("b")) == ("1", None)
    assert [(span.attributes or {})[names.CACHE_RESULT] for span in spans.spans()] == ["hit", "miss"]


def test_a_read_inside_a_lookup_is_apart(spans: Telemetry) -> None:
    with cache_lookup(cache="answers"), feature_read(store="redis"):
        pass
    assert [span.name for span in spans.spans()] == ["feature_read redis", "cache_lookup answers"]


def test_a_kind_of_cache_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="semantic"):
        cache_lookup(cache="answers", kind="fuzzy")  # type: ignore[arg-type]


def test_the_names_of_the_package_are_there() -> None:
    assert all(hasattr(tollspan.instrumentation, name) for name in tollspan.instrumentation.__all__)
    with pytest.raises(AttributeError):
        _ = tollspan.instrumentation.no_such_name  # type: ignore[attr-defined]


def test_a_provider_that_has_no_hash_is_no_error(monkeypatch: pytest.MonkeyPatch, telemetry: Any) -> None:
    monkeypatch.setattr(type(telemetry.provider), "__hash__", None)
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: telemetry.provider)
    with feature_read(store="redis", view="users", features=2) as read:
        read.rows = 3
    assert telemetry.attributes()["tollspan.usage.feature.reads"] == 6
