"""Promises of the Feast instrumentation, kept with a real store on sqlite: reads are counted, nothing else changes."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

os.environ.setdefault("FEAST_USAGE", "False")  # older versions report home

import pandas as pd
import pytest
from feast import Entity, FeatureService, FeatureStore, FeatureView, Field, FileSource, RepoConfig, ValueType
from feast.errors import FeatureViewNotFoundException
from feast.infra.online_stores.sqlite import SqliteOnlineStore, SqliteOnlineStoreConfig
from feast.online_response import OnlineResponse
from feast.types import Float32, Int64
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from tollspan.instrumentation.feast import FeastInstrumentor
from tollspan.instrumentation.feast.online import requested_features
from tollspan.instrumentation.tags import tag
from tollspan.pricing import attributes

READS = attributes.usage("feature.reads")
BYTES = attributes.usage("storage.read.bytes")
FEATURES = ["customer_stats:orders", "customer_stats:spend"]
ROWS = [{"customer_id": 1}, {"customer_id": 2}, {"customer_id": 99}]

Spans = Callable[[], Sequence[ReadableSpan]]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    return made(tmp_path_factory.mktemp("feast"))


def made(folder: Path) -> FeatureStore:
    """A store of two customers on sqlite."""
    now = datetime.now(UTC)
    rows = pd.DataFrame({"customer_id": [1, 2], "orders": [3, 5], "spend": [7.5, 9.25], "event_timestamp": [now, now]})
    rows.to_parquet(folder / "customers.parquet")
    customer = Entity(name="customer", join_keys=["customer_id"], value_type=ValueType.INT64)
    view = FeatureView(
        name="customer_stats",
        entities=[customer],
        ttl=timedelta(days=1),
        schema=[
            Field(name="customer_id", dtype=Int64),
            Field(name="orders", dtype=Int64),
            Field(name="spend", dtype=Float32),
        ],
        source=FileSource(path=str(folder / "customers.parquet"), timestamp_field="event_timestamp"),
    )
    store = FeatureStore(
        config=RepoConfig(
            project="shop",
            provider="local",
            registry=str(folder / "registry.db"),
            online_store=SqliteOnlineStoreConfig(path=str(folder / "online.db")),
            entity_key_serialization_version=3,
        )
    )
    store.apply([customer, view, FeatureService(name="support", features=[view])])
    store.write_to_online_store("customer_stats", rows)
    return store


@pytest.fixture
def spans() -> Iterator[Spans]:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    FeastInstrumentor().instrument(tracer_provider=provider)
    yield exporter.get_finished_spans
    if FeastInstrumentor().is_instrumented_by_opentelemetry:
        FeastInstrumentor().uninstrument()


AGES = {attributes.FEATURE_AGE_OLDEST, attributes.FEATURE_AGE_MEDIAN}


def values(span: ReadableSpan) -> dict[str, Any]:
    """Attributes of a span, without those that tell the time."""
    return {name: value for name, value in (span.attributes or {}).items() if name not in AGES}


def test_a_read_says_what_it_read(store: FeatureStore, spans: Spans) -> None:
    response = store.get_online_features(features=FEATURES, entity_rows=ROWS)

    assert type(response) is OnlineResponse
    assert response.to_dict() == {
        "customer_id": [1, 2, 99],
        "orders": [3, 5, None],
        "spend": [7.5, 9.25, None],
    }
    (span,) = spans()
    assert span.name == "feature_read shop"
    assert span.kind is SpanKind.CLIENT
    assert values(span) == {
        attributes.OPERATION: "feature_read",
        attributes.PROVIDER: "feast",
        attributes.MODEL: "shop",
        attributes.FEATURE_ACCESS: "online",
        attributes.FEATURE_STORE: "sqlite",
        attributes.FEATURE_VIEWS: ("customer_stats",),
        attributes.FEATURE_ENTITIES: ("customer_id",),
        attributes.FEATURE_ROWS: 3,
        attributes.FEATURE_COUNT: 2,
        attributes.FEATURE_HITS: 4,
        attributes.FEATURE_NULLS: 0,
        attributes.FEATURE_MISSES: 2,
        attributes.FEATURE_EXPIRED: 0,
        READS: 6,
        BYTES: len(response.proto.SerializeToString()),
    }


def test_entities_as_columns_are_the_same_read(store: FeatureStore, spans: Spans) -> None:
    store.get_online_features(FEATURES, ROWS)
    store.get_online_features(FEATURES, {"customer_id": [1, 2, 99]})
    by_rows, by_columns = map(values, spans())
    assert by_rows == by_columns


@pytest.mark.parametrize("full_feature_names", [False, True])
def test_a_feature_service_gives_its_name_and_its_number_of_features(
    store: FeatureStore, spans: Spans, full_feature_names: bool
) -> None:
    service = store.get_feature_service("support")
    store.get_online_features(service, ROWS[:1], full_feature_names)
    (span,) = spans()
    assert span.name == "feature_read support"
    about = values(span)
    assert about[attributes.MODEL] == "support"
    assert (about[attributes.FEATURE_ROWS], about[attributes.FEATURE_COUNT], about[READS]) == (1, 2, 2)


def test_a_service_of_references_is_counted_by_what_came_back(store: FeatureStore, spans: Spans) -> None:
    service = FeatureService(name="support", features=["customer_stats"])  # which Feast looks up in its registry
    assert requested_features(service) is None
    store.get_online_features(service, ROWS)
    assert values(spans()[0])[attributes.FEATURE_COUNT] == 2


async def test_the_asynchronous_twin_is_the_same_read(
    store: FeatureStore, spans: Spans, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def read(self: SqliteOnlineStore, *args: object, **kwargs: object) -> object:
        return self.online_read(*args, **kwargs)  # which sqlite has no asynchronous form of

    monkeypatch.setattr(SqliteOnlineStore, "online_read_async", read)
    response = await store.get_online_features_async(features=FEATURES, entity_rows=ROWS)
    assert type(response) is OnlineResponse
    store.get_online_features(features=FEATURES, entity_rows=ROWS)
    asynchronous, synchronous = spans()
    assert asynchronous.name == synchronous.name
    assert values(asynchronous) == values(synchronous)


def test_an_error_is_feasts_own_and_reads_are_not_guessed(store: FeatureStore, spans: Spans) -> None:
    with pytest.raises(FeatureViewNotFoundException) as caught:
        store.get_online_features(["no_such_view:orders"], ROWS)
    assert caught.value.__cause__ is None
    (span,) = spans()
    assert span.status.status_code is StatusCode.ERROR
    assert str(values(span)[attributes.ERROR_TYPE]).endswith("FeatureViewNotFoundException")
    assert not {READS, BYTES, attributes.FEATURE_ROWS} & set(values(span))


def test_tags_are_on_the_read(store: FeatureStore, spans: Spans) -> None:
    with tag(tenant="acme", variant="b"):
        store.get_online_features(FEATURES, ROWS)
    assert values(spans()[0])[attributes.TENANT] == "acme"
    assert values(spans()[0])[attributes.VARIANT] == "b"


def test_uninstrument_restores_the_identical_functions(spans: Spans) -> None:
    ours = FeatureStore.__dict__["get_online_features"]
    ours_async = FeatureStore.__dict__["get_online_features_async"]
    FeastInstrumentor().uninstrument()
    assert FeatureStore.__dict__["get_online_features"] is ours.__wrapped__
    assert FeatureStore.__dict__["get_online_features_async"] is ours_async.__wrapped__


def test_instrumenting_does_not_import_feast() -> None:
    program = """
        import sys
        from tollspan.instrumentation.feast import FeastInstrumentor
        FeastInstrumentor().instrument()
        assert not {"feast", "pandas", "pyarrow"} & set(sys.modules)
        print("clean")
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout.strip() == "clean", done.stderr
