"""What holds for every instrumented store alike, feature or vector: the program cannot tell that we are there.

Each store is the real one with its real client; Redis' server is a stub that speaks its protocol. One that is not
installed is skipped.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import gc
import importlib
import inspect
import pickle
import threading
import traceback
import weakref
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from opentelemetry import trace
from opentelemetry.instrumentation.utils import suppress_instrumentation
from opentelemetry.sdk.environment_variables import OTEL_SDK_DISABLED
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF

from tollspan.instrumentation import faults
from tollspan.instrumentation.calls import CallInstrumentor
from tollspan.instrumentation.feast import FeastInstrumentor
from tollspan.instrumentation.vectors.chroma import ChromaInstrumentor
from tollspan.instrumentation.vectors.lance import LanceDBInstrumentor
from tollspan.instrumentation.vectors.milvus import MilvusInstrumentor
from tollspan.instrumentation.vectors.pgvector import PgVectorInstrumentor
from tollspan.instrumentation.vectors.qdrant import QdrantInstrumentor
from tollspan.instrumentation.vectors.redisearch import RedisSearchInstrumentor

from .conftest import Telemetry
from .test_vector_stores import ROWS, VECTORS, filled, redis_serving

Ask = Callable[[], Any]
"""Asks the store: the answer, or an awaitable of it."""


class Asks(NamedTuple):
    """How a store is asked.

    Attributes:
        well: a question with an answer.
        badly: one that it refuses.
    """

    well: Ask
    badly: Ask


class Store(NamedTuple):
    """A store under test.

    Attributes:
        kind: its instrumentor.
        open: what makes one in a folder, and how it is asked.
    """

    kind: type[CallInstrumentor]
    open: Callable[[Path], contextlib.AbstractContextManager[Asks]]


@contextlib.contextmanager
def feast(folder: Path) -> Iterator[Asks]:
    pytest.importorskip("feast")
    from .test_feast import FEATURES
    from .test_feast import ROWS as ENTITIES
    from .test_feast import made as feature_store

    store = feature_store(folder)
    yield Asks(
        lambda: store.get_online_features(FEATURES, ENTITIES),
        lambda: store.get_online_features(["no_such:feature"], ENTITIES),
    )


@contextlib.contextmanager
def feast_asynchronous(folder: Path) -> Iterator[Asks]:
    pytest.importorskip("feast")
    from feast.infra.online_stores.sqlite import SqliteOnlineStore

    from .test_feast import FEATURES
    from .test_feast import ROWS as ENTITIES
    from .test_feast import made as feature_store

    async def read(self: SqliteOnlineStore, *args: object, **kwargs: object) -> object:
        return self.online_read(*args, **kwargs)  # which sqlite has no asynchronous form of

    store = feature_store(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SqliteOnlineStore, "online_read_async", read)
        yield Asks(
            lambda: store.get_online_features_async(FEATURES, ENTITIES),
            lambda: store.get_online_features_async(["no_such:feature"], ENTITIES),
        )


@contextlib.contextmanager
def qdrant(folder: Path) -> Iterator[Asks]:
    client = filled(pytest.importorskip("qdrant_client"))
    yield Asks(
        lambda: client.query_points("answers", query=[1.0, 0.0], limit=2),
        lambda: client.query_points("no_such", query=[1.0, 0.0]),
    )


@contextlib.contextmanager
def qdrant_asynchronous(folder: Path) -> Iterator[Asks]:
    module = pytest.importorskip("qdrant_client")
    client, models = module.AsyncQdrantClient(":memory:"), module.models

    async def fill() -> None:
        await client.create_collection(
            "answers", vectors_config=models.VectorParams(size=2, distance=models.Distance.COSINE)
        )
        await client.upsert("answers", [models.PointStruct(id=n, vector=vector) for n, vector in enumerate(VECTORS)])

    asyncio.run(fill())
    yield Asks(
        lambda: client.query_points("answers", query=[1.0, 0.0], limit=2),
        lambda: client.query_points("no_such", query=[1.0, 0.0]),
    )


@contextlib.contextmanager
def chroma(folder: Path) -> Iterator[Asks]:
    chromadb = pytest.importorskip("chromadb")
    collection = chromadb.PersistentClient(str(folder)).create_collection("answers", embedding_function=None)
    collection.add(ids=["a", "b", "c"], embeddings=VECTORS)
    yield Asks(
        lambda: collection.query(query_embeddings=[[1.0, 0.0]], n_results=2),
        lambda: collection.query(query_embeddings=[[1.0, 0.0, 0.0]], n_results=2),
    )


@contextlib.contextmanager
def lance(folder: Path) -> Iterator[Asks]:
    table = pytest.importorskip("lancedb").connect(folder).create_table("answers", ROWS)
    yield Asks(
        lambda: table.search([1.0, 0.0]).limit(2).to_list(),
        lambda: table.search([1.0, 0.0], vector_column_name="no_such").limit(2).to_list(),
    )


@contextlib.contextmanager
def redis(folder: Path) -> Iterator[Asks]:
    module = pytest.importorskip("redis")
    from redis.commands.search.query import Query

    query = Query("*=>[KNN 2 @v $vec]").dialect(2)
    with redis_serving() as port:
        index = module.Redis(host="127.0.0.1", port=port, protocol=2).ft("answers")
        yield Asks(
            lambda: [vars(each) for each in index.search(query, {"vec": b"\0" * 8}).docs],
            lambda: index.search(query, {"vec": object()}),
        )


@contextlib.contextmanager
def milvus(folder: Path) -> Iterator[Asks]:
    pymilvus = pytest.importorskip("pymilvus")
    pytest.importorskip("milvus_lite")
    client = pymilvus.MilvusClient(str(folder / "answers.db"))
    client.create_collection("answers", dimension=2)
    client.insert("answers", [{"id": number, "vector": vector} for number, vector in enumerate(VECTORS)])
    yield Asks(
        lambda: [list(hits) for hits in client.search("answers", data=[[1.0, 0.0]], limit=2)],
        lambda: client.search("no_such", data=[[1.0, 0.0]]),
    )
    client.close()


@contextlib.contextmanager
def pgvector(folder: Path) -> Iterator[Asks]:
    psycopg = pytest.importorskip("psycopg")
    from .test_pgvector import fill, serving

    fill(serving())
    nearest = "SELECT id FROM items ORDER BY embedding <-> '[1,0]' LIMIT 2"
    with psycopg.connect(serving(), autocommit=True) as connection:
        yield Asks(
            lambda: connection.execute(nearest).fetchall(),
            lambda: connection.execute(nearest.replace("items", "no_such")),
        )


STORES = {
    "feast": Store(FeastInstrumentor, feast),
    "feast, async": Store(FeastInstrumentor, feast_asynchronous),
    "qdrant": Store(QdrantInstrumentor, qdrant),
    "qdrant, async": Store(QdrantInstrumentor, qdrant_asynchronous),
    "chroma": Store(ChromaInstrumentor, chroma),
    "lancedb": Store(LanceDBInstrumentor, lance),
    "redis": Store(RedisSearchInstrumentor, redis),
    "milvus": Store(MilvusInstrumentor, milvus),
    "pgvector": Store(PgVectorInstrumentor, pgvector),
}
every_store = pytest.mark.parametrize("name", STORES)


@pytest.fixture
def store(name: str) -> Store:
    return STORES[name]


@pytest.fixture
def asks(store: Store, tmp_path: Path) -> Iterator[Asks]:
    with store.open(tmp_path) as asks:
        yield asks


@contextlib.contextmanager
def instrumented(kind: type[CallInstrumentor], provider: Any) -> Iterator[None]:
    instrumentor = kind()
    instrumentor.instrument(tracer_provider=provider)
    try:
        yield
    finally:
        instrumentor.uninstrument()


def done(ask: Ask) -> Any:
    async def wait(answer: Awaitable[Any]) -> Any:
        return await answer

    answer = ask()
    return asyncio.run(wait(answer)) if inspect.isawaitable(answer) else answer


def form(answer: Any) -> Any:
    """An answer as it can be compared."""
    return answer.to_dict() if hasattr(answer, "to_dict") else answer


def refusal(ask: Ask) -> tuple[type, str, list[str]]:
    """How a store refuses: type and words of the error, and where it came from, our own frames left out."""
    with pytest.raises(Exception) as raised:
        done(ask)
    frames = [
        frame.name for frame in traceback.extract_tb(raised.value.__traceback__) if "tollspan" not in frame.filename
    ]
    return type(raised.value), str(raised.value), frames


def wrapped(kind: type[CallInstrumentor]) -> dict[str, Any]:
    """The functions of a library that its table names, as they are now; those of other versions left out."""
    found = {}
    for point in kind.points:
        with contextlib.suppress(ImportError, AttributeError):
            module, _, path = point.target.partition(":")
            owner, _, attribute = path.rpartition(".")
            holder = functools.reduce(getattr, filter(None, owner.split(".")), importlib.import_module(module))
            found[point.target] = inspect.getattr_static(holder, attribute)
    return found


@every_store
def test_answers_and_errors_are_the_stores_own(store: Store, asks: Asks, telemetry: Telemetry) -> None:
    answer, error = done(asks.well), refusal(asks.badly)
    with instrumented(store.kind, telemetry.provider):
        ours, our_error = done(asks.well), refusal(asks.badly)
    assert type(ours) is type(answer)
    assert form(ours) == form(answer)
    assert our_error == error
    well, *badly = telemetry.spans()
    assert well.status.status_code is trace.StatusCode.UNSET
    # Some refuse before anything is asked that has a span.
    assert [span.status.status_code for span in badly] in ([], [trace.StatusCode.ERROR])


@every_store
def test_what_pickles_goes_on_pickling(store: Store, asks: Asks, telemetry: Telemetry) -> None:
    try:
        pickle.dumps(done(asks.well))
    except Exception:
        pytest.skip("its answers do not")
    with instrumented(store.kind, telemetry.provider):
        pickle.dumps(done(asks.well))


@every_store
def test_functions_look_as_they_do_and_come_back(store: Store, asks: Asks, telemetry: Telemetry) -> None:
    before = wrapped(store.kind)
    assert before
    with instrumented(store.kind, telemetry.provider):
        for target, function in wrapped(store.kind).items():
            original = before[target]
            assert function is not original
            assert function.__name__ == original.__name__
            assert inspect.signature(function) == inspect.signature(original)
            assert inspect.iscoroutinefunction(function) == inspect.iscoroutinefunction(original)
    after = wrapped(store.kind)
    assert all(after[target] is function for target, function in before.items())
    done(asks.well)
    assert telemetry.spans() == []


HOOKS = ("request", "response", "finish")


@every_store
@pytest.mark.parametrize("hook", [*HOOKS, "attributes"])
def test_a_fault_of_ours_never_reaches_the_program_and_is_counted(
    store: Store, asks: Asks, hook: str, faulty_telemetry: Telemetry, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: Any) -> Any:
        raise RuntimeError("a fault of ours")

    answer, error = done(asks.well), refusal(asks.badly)
    if hook in HOOKS:
        points = tuple(dataclasses.replace(point, **{hook: broken}) for point in store.kind.points)
        monkeypatch.setattr(store.kind, "points", points)
    counted = sum(faults().values())
    with instrumented(store.kind, faulty_telemetry.provider):
        if hook == "attributes":
            monkeypatch.setattr("opentelemetry.sdk.trace.Span.set_attributes", broken)
        assert form(done(asks.well)) == form(answer)
        assert refusal(asks.badly)[:2] == error[:2]
    assert sum(faults().values()) > counted


NOBODY: dict[str, Callable[[], Any]] = {
    "not sampled": lambda: TracerProvider(sampler=ALWAYS_OFF),
    "no-op": trace.NoOpTracerProvider,
    "no provider": lambda: None,
    "SDK disabled": TracerProvider,
    "suppressed": TracerProvider,
}


@every_store
@pytest.mark.parametrize("why", NOBODY)
def test_where_nobody_looks_nothing_is_read(
    store: Store, asks: Asks, why: str, telemetry: Telemetry, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(*args: Any) -> Any:
        pytest.fail("an answer was read that nobody asked about")

    answer = done(asks.well)
    points = tuple(dataclasses.replace(point, response=point.response and read) for point in store.kind.points)
    monkeypatch.setattr(store.kind, "points", points)
    if why == "SDK disabled":
        monkeypatch.setenv(OTEL_SDK_DISABLED, "true")
    with (
        instrumented(store.kind, NOBODY[why]()),
        suppress_instrumentation() if why == "suppressed" else contextlib.nullcontext(),
    ):
        assert form(done(asks.well)) == form(answer)


@every_store
def test_a_span_stands_under_the_span_of_its_thread(store: Store, asks: Asks, telemetry: Telemetry) -> None:
    if inspect.isawaitable(probe := asks.well()):
        probe.close()  # type: ignore[attr-defined]
        pytest.skip("asynchronous: see the tasks")
    tracer = telemetry.provider.get_tracer("the program's")
    together = threading.Barrier(4)

    def work(number: int) -> None:
        together.wait(20)
        with tracer.start_as_current_span(f"thread {number}"):
            for _ in range(5):
                asks.well()

    with instrumented(store.kind, telemetry.provider), ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    each_under_its_own(telemetry)


@every_store
def test_a_span_stands_under_the_span_of_its_task(store: Store, asks: Asks, telemetry: Telemetry) -> None:
    tracer = telemetry.provider.get_tracer("the program's")

    async def work(number: int) -> None:
        with tracer.start_as_current_span(f"task {number}"):
            for _ in range(5):
                await asks.well()

    async def all_of_them() -> None:
        await asyncio.gather(*map(work, range(4)))

    if not inspect.isawaitable(probe := asks.well()):
        pytest.skip("synchronous: see the threads")
    probe.close()  # type: ignore[attr-defined]
    with instrumented(store.kind, telemetry.provider):
        asyncio.run(all_of_them())
    each_under_its_own(telemetry)


def each_under_its_own(telemetry: Telemetry) -> None:
    spans = telemetry.spans()
    parents = {span.context.span_id: span for span in spans if span.instrumentation_scope.name == "the program's"}  # type: ignore[union-attr]
    children = [span for span in spans if span.context.span_id not in parents]
    assert len(parents) == 4
    under = [span.parent and span.parent.span_id for span in children]
    assert {parent: under.count(parent) for parent in parents} == dict.fromkeys(parents, 5)


@every_store
@pytest.mark.parametrize("count", [100, pytest.param(10_000, marks=[pytest.mark.soak, pytest.mark.timeout(1200)])])
def test_questions_leave_nothing_behind(store: Store, asks: Asks, count: int) -> None:
    def ours() -> int:
        kinds = ("tollspan.", "opentelemetry.sdk.trace")
        return sum(str(type(each).__module__).startswith(kinds) for each in gc.get_objects())

    def ask() -> None:
        done(asks.well)
        with contextlib.suppress(Exception):
            done(asks.badly)

    with instrumented(store.kind, TracerProvider()):
        for _ in range(20):  # what a client remembers
            ask()
        gc.collect()
        before = ours()
        for _ in range(count):
            ask()
        gc.collect()
        assert ours() - before < count / 2


@every_store
def test_an_answer_is_not_kept(store: Store, asks: Asks, telemetry: Telemetry) -> None:
    with instrumented(store.kind, telemetry.provider):
        answer = done(asks.well)
        try:
            reference = weakref.ref(answer)
        except TypeError:
            pytest.skip("nothing tells when it is gone")
        del answer
        gc.collect()
        assert reference() is None
