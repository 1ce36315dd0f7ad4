"""Feast beyond the plain online read: what was found and how old, histories, writes, searches, a server and its client.

Every test drives a real store on sqlite and files, and the last ones a real feature server over HTTP.
"""

from __future__ import annotations

import ast
import os
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

os.environ.setdefault("FEAST_USAGE", "False")  # older versions report home

import feast
import pandas as pd
import pytest
import requests
import uvicorn
from feast import (
    Entity,
    FeatureService,
    FeatureStore,
    FeatureView,
    Field,
    FileSource,
    PushSource,
    RepoConfig,
    ValueType,
)
from feast.feature_server import get_app
from feast.infra.offline_stores.file_source import SavedDatasetFileStorage
from feast.infra.online_stores.remote import RemoteOnlineStoreConfig
from feast.infra.online_stores.sqlite import SqliteOnlineStore, SqliteOnlineStoreConfig
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import FloatList, Value
from feast.repo_config import ONLINE_STORE_CLASS_FOR_TYPE
from feast.types import Array, Float32, Int64, String
from opentelemetry import context, propagate
from opentelemetry.sdk.trace import ReadableSpan

from tollspan.instrumentation.data_reads import ages
from tollspan.instrumentation.feast import FeastInstrumentor
from tollspan.instrumentation.feast.offline import BASE, JOBS
from tollspan.instrumentation.feast.remote import REMOTE
from tollspan.instrumentation.feast.writes import ONLINE_STORES
from tollspan.pricing import attributes as names

from .conftest import Telemetry

READS = names.usage("feature.reads")
WRITES = names.usage("feature.writes")
QUERIES = names.usage("vector.queries")
BYTES = names.usage("storage.read.bytes")
FEATURES = ["customer_stats:orders", "customer_stats:spend"]


def frame(now: datetime) -> pd.DataFrame:
    """Two customers: one of an hour ago with a null, one of twenty hours ago."""
    return pd.DataFrame(
        {
            "customer_id": [1, 2],
            "orders": [3, 5],
            "spend": [None, 9.25],
            "event_timestamp": [now - timedelta(hours=1), now - timedelta(hours=20)],
        }
    )


def made(folder: Path, **online: Any) -> FeatureStore:
    """A store with a view of customers, one of documents, and a service."""
    now = datetime.now(UTC)
    frame(now).to_parquet(folder / "customers.parquet")
    customer = Entity(name="customer", join_keys=["customer_id"], value_type=ValueType.INT64)
    source = FileSource(path=str(folder / "customers.parquet"), timestamp_field="event_timestamp")
    stats = FeatureView(
        name="customer_stats",
        entities=[customer],
        ttl=timedelta(days=1),
        schema=[
            Field(name="customer_id", dtype=Int64),
            Field(name="orders", dtype=Int64),
            Field(name="spend", dtype=Float32),
        ],
        source=PushSource(name="customer_push", batch_source=source),
    )
    document = Entity(name="document", join_keys=["document_id"], value_type=ValueType.INT64)
    documents = FeatureView(
        name="documents",
        entities=[document],
        schema=[
            Field(name="document_id", dtype=Int64),
            Field(name="text", dtype=String),
            Field(name="embedding", dtype=Array(Float32), vector_index=True, vector_search_metric="L2"),
        ],
        source=FileSource(path=str(folder / "documents.parquet"), timestamp_field="event_timestamp"),
    )
    store = FeatureStore(
        config=RepoConfig(
            project="shop",
            provider="local",
            registry=str(folder / "registry.db"),
            offline_store="dask",
            online_store=SqliteOnlineStoreConfig(path=str(folder / "online.db"), **online),
            entity_key_serialization_version=3,
        )
    )
    pd.DataFrame({"document_id": [1], "text": ["a"], "embedding": [[0.1, 0.2]], "event_timestamp": [now]}).to_parquet(
        folder / "documents.parquet"
    )
    store.apply([customer, document, stats, documents, FeatureService(name="support", features=[stats])])
    return store


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    store = made(tmp_path_factory.mktemp("feast"))
    store.write_to_online_store("customer_stats", frame(datetime.now(UTC)))
    return store


@pytest.fixture
def feast_spans(telemetry: Telemetry) -> Iterator[Telemetry]:
    FeastInstrumentor().instrument(tracer_provider=telemetry.provider)
    yield telemetry
    FeastInstrumentor().uninstrument()


def attributes_of(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


ROWS = [{"customer_id": 1}, {"customer_id": 2}, {"customer_id": 99}]


def test_values_found_null_and_missing_add_up(store: FeatureStore, feast_spans: Telemetry) -> None:
    store.get_online_features(FEATURES, ROWS)
    about = feast_spans.attributes()
    found = [
        about[name] for name in (names.FEATURE_HITS, names.FEATURE_NULLS, names.FEATURE_MISSES, names.FEATURE_EXPIRED)
    ]
    assert found == [3, 1, 2, 0]
    assert sum(found) == about[READS]


def test_freshness_is_the_age_of_what_was_found(store: FeatureStore, feast_spans: Telemetry) -> None:
    store.get_online_features(FEATURES, ROWS)
    about = feast_spans.attributes()
    oldest, median = about[names.FEATURE_AGE_OLDEST], about[names.FEATURE_AGE_MEDIAN]
    assert oldest == pytest.approx(20 * 3600, abs=600)
    assert median == pytest.approx(10.5 * 3600, abs=600)  # two features of each row


def test_the_median_of_an_even_number_lies_between_its_middle_ones() -> None:
    assert ages([90.0, 80.0, 0.0], now=100.0) == {names.FEATURE_AGE_OLDEST: 20.0, names.FEATURE_AGE_MEDIAN: 15.0}


def test_nothing_found_has_no_age(store: FeatureStore, feast_spans: Telemetry) -> None:
    store.get_online_features(FEATURES, ROWS[2:])
    assert names.FEATURE_AGE_OLDEST not in feast_spans.attributes()


def test_keys_are_hashed_where_there_is_a_key(
    store: FeatureStore, feast_spans: Telemetry, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.get_online_features(FEATURES, ROWS)
    monkeypatch.setenv("TOLLSPAN_FINGERPRINT_KEY", "secret")
    store.get_online_features(FEATURES, ROWS)
    store.get_online_features(FEATURES, {"customer_id": [2, 1]})
    without, rows, columns = (attributes_of(span).get(names.READ_KEYS) for span in feast_spans.spans())
    assert without is None
    assert isinstance(rows, tuple)
    assert columns == (rows[1], rows[0])


# -- history -----------------------------------------------------------------------------------------------------------


def history(store: FeatureStore) -> Any:
    asked = pd.DataFrame({"customer_id": [1, 2], "event_timestamp": [datetime.now(UTC)] * 2})
    return store.get_historical_features(entity_df=asked, features=FEATURES)


def test_a_job_that_is_not_executed_reads_nothing(store: FeatureStore, feast_spans: Telemetry) -> None:
    history(store)
    assert feast_spans.spans() == []


@pytest.mark.parametrize("method", ["to_df", "to_arrow", "to_feast_df"])
def test_an_execution_is_a_read(store: FeatureStore, feast_spans: Telemetry, method: str) -> None:
    result = getattr(history(store), method)()
    assert len(result if method != "to_feast_df" else result.data) == 2
    about = feast_spans.attributes()
    assert feast_spans.only().name == "feature_read shop"
    assert about[names.FEATURE_ACCESS] == "historical"
    assert about[names.FEATURE_STORE] == "dask"
    assert about[names.FEATURE_VIEWS] == ("customer_stats",)
    assert (about[names.FEATURE_ROWS], about[names.FEATURE_COUNT], about[READS]) == (2, 2, 4)
    assert about[BYTES] > 0


def test_two_executions_are_two_reads(store: FeatureStore, feast_spans: Telemetry) -> None:
    job = history(store)
    job.to_df()
    job.to_df()
    assert [attributes_of(span)[READS] for span in feast_spans.spans()] == [4, 4]


def test_persisting_is_one_read(store: FeatureStore, feast_spans: Telemetry, tmp_path: Path) -> None:
    history(store).persist(SavedDatasetFileStorage(path=str(tmp_path / "saved.parquet")))
    assert feast_spans.attributes()[READS] == 4


def test_an_execution_that_fails_raises_its_own_error(
    store: FeatureStore, feast_spans: Telemetry, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, error = history(store), RuntimeError("no disk")

    def failing(*args: Any, **kwargs: Any) -> Any:
        raise error

    monkeypatch.setattr(job, "_to_arrow_internal", failing)
    with pytest.raises(RuntimeError) as caught:
        job.to_df()
    assert caught.value is error
    assert READS not in feast_spans.attributes()


def test_the_table_of_jobs_has_every_class_of_feasts_that_runs_a_query() -> None:
    running = {"to_df", "to_arrow", "to_feast_df", "persist", "to_remote_storage"}
    root = Path(feast.__file__).parent
    theirs: dict[str, set[str]] = {}
    for path in (root / "infra" / "offline_stores").rglob("*.py"):
        module = ".".join(path.relative_to(root.parent).with_suffix("").parts)
        for kind in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(kind, ast.ClassDef) and kind.name.endswith("RetrievalJob") and kind.name != "RetrievalJob":
                methods = {each.name for each in kind.body if isinstance(each, ast.FunctionDef)}
                theirs[f"{module}:{kind.name}"] = methods & running
    ours = {job: set(methods) & running for job, methods in JOBS.items() if job != BASE}
    assert ours == theirs


# -- writes ------------------------------------------------------------------------------------------------------------


def written(about: dict[str, Any]) -> tuple[Any, ...]:
    return about[names.FEATURE_ACCESS], about[names.FEATURE_VIEWS], about[names.FEATURE_ROWS], about[WRITES]


def test_a_write_is_counted(store: FeatureStore, feast_spans: Telemetry) -> None:
    store.write_to_online_store("customer_stats", frame(datetime.now(UTC)))
    assert feast_spans.only().name == "feature_write customer_stats"
    assert written(feast_spans.attributes()) == ("write", ("customer_stats",), 2, 4)


def test_a_push_is_one_write(store: FeatureStore, feast_spans: Telemetry) -> None:
    store.push("customer_push", frame(datetime.now(UTC)))
    assert feast_spans.only().name == "feature_write customer_push"
    assert written(feast_spans.attributes()) == ("push", ("customer_stats",), 2, 4)


async def test_an_asynchronous_push_is_one_write(
    store: FeatureStore, feast_spans: Telemetry, monkeypatch: pytest.MonkeyPatch
) -> None:
    # sqlite has no asynchronous form, so the provider's is stood in for by its synchronous one.
    provider = type(store.provider)

    async def ingest(self: Any, view: Any, df: Any) -> None:
        self.ingest_df(view, df)

    monkeypatch.setattr(provider, "ingest_df_async", ingest)
    await store.push_async("customer_push", frame(datetime.now(UTC)))
    assert written(feast_spans.attributes()) == ("push", ("customer_stats",), 2, 4)


@pytest.mark.parametrize("incremental", [False, True])
def test_a_materialization_is_one_write_of_all_its_views(
    tmp_path: Path, feast_spans: Telemetry, incremental: bool
) -> None:
    store, now = made(tmp_path), datetime.now(UTC)
    if incremental:
        store.materialize_incremental(now)
    else:
        store.materialize(now - timedelta(days=5), now)
    about = feast_spans.attributes()
    assert feast_spans.only().name == "feature_write shop"
    assert written(about) == ("materialize", ("customer_stats", "documents"), 3, 6)


def test_a_write_that_reaches_no_store_counts_nothing(store: FeatureStore, feast_spans: Telemetry) -> None:
    with pytest.raises(Exception, match="no_such_view"):
        store.write_to_online_store("no_such_view", frame(datetime.now(UTC)))
    assert not {WRITES, names.FEATURE_ROWS} & set(feast_spans.attributes())


def test_the_table_of_stores_is_feasts_own() -> None:
    ours = {store.rpartition(":")[2] for store in ONLINE_STORES}
    theirs = {path.rpartition(".")[2] for path in ONLINE_STORE_CLASS_FOR_TYPE.values()}
    assert ours == (theirs | {"IKVOnlineStore"}) - {"HybridOnlineStore"}


# -- documents ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def searching(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nearest neighbours in sqlite, which it has with an extension alone: two rows, as Feast wants them of a store."""
    key = EntityKey(join_keys=["document_id"], entity_values=[Value(int64_val=1)])
    row = {"text": Value(string_val="answer"), "distance": Value(float_val=0.5)}
    vector = Value(float_list_val=FloatList(val=[0.1, 0.2]))

    def retrieve(*args: Any, **kwargs: Any) -> Any:
        return [(datetime.now(UTC), key, vector, vector, Value(float_val=0.5))] * 2

    def retrieve_v2(*args: Any, **kwargs: Any) -> Any:
        return [(datetime.now(UTC), key, row)] * 2

    monkeypatch.setattr(SqliteOnlineStore, "retrieve_online_documents", retrieve)
    monkeypatch.setattr(SqliteOnlineStore, "retrieve_online_documents_v2", retrieve_v2)


@pytest.mark.parametrize(
    "search",
    [
        lambda store: store.retrieve_online_documents([0.1, 0.2], 2, ["documents:embedding"]),
        lambda store: store.retrieve_online_documents_v2(["documents:text"], 2, [0.1, 0.2]),
        lambda store: store.retrieve_online_documents_v2(features=["documents:text"], top_k=2, query=[0.1, 0.2]),
    ],
)
def test_a_search_of_documents_is_a_vector_query(
    store: FeatureStore, feast_spans: Telemetry, searching: None, search: Callable[[FeatureStore], Any]
) -> None:
    response = search(store)
    about = feast_spans.attributes()
    assert feast_spans.only().name == "vector_query documents"
    assert (about[names.VECTOR_TOP_K], about[QUERIES], about[names.VECTOR_RETURNED]) == (2, 1, 2)
    assert about[BYTES] == len(response.proto.SerializeToString())
    assert READS not in about


# -- a server and its client -------------------------------------------------------------------------------------------


class Propagating:
    """What an HTTP instrumentation does in a server: the context of the request is that of its caller."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        headers = {name.decode(): value.decode() for name, value in scope.get("headers", [])}
        token = context.attach(propagate.extract(headers))
        try:
            await self.app(scope, receive, send)
        finally:
            context.detach(token)


@pytest.fixture(scope="module")
def server(store: FeatureStore) -> Iterator[str]:
    config = uvicorn.Config(Propagating(get_app(store)), port=0, log_level="error", lifespan="off")
    server = uvicorn.Server(config)
    ready = threading.Event()
    started = server.startup

    async def startup(*args: Any, **kwargs: Any) -> None:
        await started(*args, **kwargs)
        ready.set()

    server.startup = startup  # type: ignore[method-assign]
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    assert ready.wait(30)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join(10)


@pytest.fixture
def client(store: FeatureStore, server: str) -> FeatureStore:
    return FeatureStore(
        config=RepoConfig(
            project="shop",
            provider="local",
            registry=store.config.registry,
            online_store=RemoteOnlineStoreConfig(path=server),
            entity_key_serialization_version=3,
        )
    )


@pytest.fixture
def propagating(monkeypatch: pytest.MonkeyPatch) -> None:
    """What an HTTP instrumentation does in a client."""
    send: Callable[..., Any] = requests.Session.send

    def sending(self: Any, request: Any, **kwargs: Any) -> Any:
        propagate.inject(request.headers)
        return send(self, request, **kwargs)

    monkeypatch.setattr(requests.Session, "send", sending)


def test_a_server_and_its_client_count_a_read_once(
    client: FeatureStore, feast_spans: Telemetry, propagating: None
) -> None:
    before = context.get_current()
    assert client.get_online_features(FEATURES, ROWS[:1]).to_dict()["orders"] == [3]
    assert context.get_current() is before
    by_kind = {attributes_of(span)[names.FEATURE_STORE]: span for span in feast_spans.spans()}
    remote, served = attributes_of(by_kind["remote"]), attributes_of(by_kind["sqlite"])
    assert remote[READS] == 2
    assert not {READS, BYTES} & set(served)
    assert served[names.FEATURE_ROWS] == 1
    assert by_kind["sqlite"].parent is not None
    assert by_kind["sqlite"].parent.span_id == by_kind["remote"].context.span_id


def test_the_server_counts_where_it_is_told_to(
    client: FeatureStore, feast_spans: Telemetry, propagating: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(REMOTE, "server")
    client.get_online_features(FEATURES, ROWS[:1])
    counted = {about[names.FEATURE_STORE]: READS in about for about in map(attributes_of, feast_spans.spans())}
    assert counted == {"remote": False, "sqlite": True}


def test_a_write_through_a_server_is_counted_once(
    client: FeatureStore, feast_spans: Telemetry, propagating: None
) -> None:
    client.write_to_online_store("customer_stats", frame(datetime.now(UTC)))
    assert [attributes_of(span).get(WRITES) for span in feast_spans.spans()] == [None, 4]
