"""Vector stores: a query is one span with what it asked for and what came back, whatever the client.

Every test drives the real client: Qdrant, Chroma and LanceDB on stores of their own, Qdrant's REST and Redis on servers
here that speak their wire formats. A client that is not installed is skipped.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socketserver
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from tollspan.instrumentation import feature_read
from tollspan.instrumentation.calls import CallInstrumentor
from tollspan.instrumentation.vectors.chroma import ChromaInstrumentor
from tollspan.instrumentation.vectors.lance import LanceDBInstrumentor
from tollspan.instrumentation.vectors.qdrant import QdrantInstrumentor
from tollspan.instrumentation.vectors.redisearch import RedisSearchInstrumentor
from tollspan.pricing import attributes as names

from .conftest import Telemetry

QUERIES = names.usage("vector.queries")
BYTES = names.usage("storage.read.bytes")
VECTORS = [[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]]


@pytest.fixture
def instrumented(telemetry: Telemetry) -> Iterator[Callable[[type[CallInstrumentor]], Telemetry]]:
    used: list[CallInstrumentor] = []

    def instrument(kind: type[CallInstrumentor]) -> Telemetry:
        instrumentor = kind()
        used.append(instrumentor)
        instrumentor.instrument(tracer_provider=telemetry.provider)
        return telemetry

    yield instrument
    for instrumentor in used:
        instrumentor.uninstrument()


def about(telemetry: Telemetry) -> tuple[Any, ...]:
    """Provider, collection, top-k, queries and records of the one span there is."""
    told = telemetry.attributes()
    assert told[names.OPERATION] == "vector_query"
    assert telemetry.only().name == f"vector_query {told[names.MODEL]}"
    keys = (names.PROVIDER, names.MODEL, names.VECTOR_TOP_K, QUERIES, names.VECTOR_RETURNED)
    return tuple(told.get(key) for key in keys)


# -- Qdrant ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def qdrant() -> Any:
    client = pytest.importorskip("qdrant_client")
    pytest.importorskip("qdrant_client.models")
    return client


def filled(qdrant: Any) -> Any:
    client, models = qdrant.QdrantClient(":memory:"), qdrant.models
    client.create_collection("answers", vectors_config=models.VectorParams(size=2, distance=models.Distance.COSINE))
    points = [models.PointStruct(id=n, vector=vector, payload={"kind": n % 2}) for n, vector in enumerate(VECTORS)]
    client.upsert("answers", points)
    return client


def test_a_query_of_qdrant(qdrant: Any, instrumented: Any) -> None:
    client, telemetry = filled(qdrant), instrumented(QdrantInstrumentor)
    found = client.query_points("answers", query=[1.0, 0.0], limit=2)
    assert [point.id for point in found.points] == [0, 1]
    assert about(telemetry) == ("qdrant", "answers", 2, 1, 2)
    assert BYTES not in telemetry.attributes()  # in the process, nothing is told


def test_a_batch_is_one_span_of_many_queries(qdrant: Any, instrumented: Any) -> None:
    client, telemetry = filled(qdrant), instrumented(QdrantInstrumentor)
    request = qdrant.models.QueryRequest(query=[1.0, 0.0], limit=2)
    client.query_batch_points("answers", [request, request])
    assert about(telemetry) == ("qdrant", "answers", 2, 2, 4)


def test_groups_are_counted_by_their_records(qdrant: Any, instrumented: Any) -> None:
    client, telemetry = filled(qdrant), instrumented(QdrantInstrumentor)
    client.query_points_groups("answers", group_by="kind", query=[1.0, 0.0], limit=5, group_size=2)
    assert about(telemetry) == ("qdrant", "answers", 5, 1, 3)


def test_a_listing_is_no_query(qdrant: Any, instrumented: Any) -> None:
    client, telemetry = filled(qdrant), instrumented(QdrantInstrumentor)
    assert len(client.query_points("answers").points) == 3
    assert telemetry.spans() == []


async def test_an_asynchronous_query_of_qdrant(qdrant: Any, instrumented: Any) -> None:
    client, models = qdrant.AsyncQdrantClient(":memory:"), qdrant.models
    await client.create_collection(
        "answers", vectors_config=models.VectorParams(size=2, distance=models.Distance.COSINE)
    )
    await client.upsert("answers", [models.PointStruct(id=n, vector=vector) for n, vector in enumerate(VECTORS)])
    telemetry = instrumented(QdrantInstrumentor)
    await client.query_points("answers", query=[1.0, 0.0])
    assert about(telemetry) == ("qdrant", "answers", 10, 1, 3)


def test_an_error_of_qdrant_is_its_own(qdrant: Any, instrumented: Any) -> None:
    client, telemetry = filled(qdrant), instrumented(QdrantInstrumentor)
    with pytest.raises(ValueError, match="no_such"):
        client.query_points("no_such", query=[1.0, 0.0])
    assert telemetry.attributes()[names.ERROR_TYPE] == "ValueError"
    assert QUERIES not in telemetry.attributes()


ANSWER = json.dumps(
    {"result": {"points": [{"id": 1, "version": 0, "score": 0.9, "payload": {}}]}, "status": "ok", "time": 0.001}
).encode()


class QdrantServer(BaseHTTPRequestHandler):
    """Answers every query with one point, as Qdrant's REST interface does."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("content-length", 0)))
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(ANSWER)))
        self.end_headers()
        self.wfile.write(ANSWER)

    do_GET = do_POST

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def qdrant_url() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), QdrantServer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.filterwarnings("ignore")  # newer clients ask the server for its version
@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_remote_qdrant_tells_its_bytes_and_its_server(
    qdrant: Any, instrumented: Any, qdrant_url: str, asynchronous: bool
) -> None:
    telemetry = instrumented(QdrantInstrumentor)
    if asynchronous:
        asyncio.run(qdrant.AsyncQdrantClient(qdrant_url).query_points("answers", query=[1.0, 0.0]))
    else:
        qdrant.QdrantClient(qdrant_url).query_points("answers", query=[1.0, 0.0])
    assert about(telemetry) == ("qdrant", "answers", 10, 1, 1)
    assert telemetry.attributes()[BYTES] == len(ANSWER)
    assert telemetry.attributes()[names.SERVER_ADDRESS] == "127.0.0.1"


def test_a_query_inside_a_read_of_features_is_apart(
    qdrant: Any, instrumented: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, telemetry = filled(qdrant), instrumented(QdrantInstrumentor)
    monkeypatch.setattr("opentelemetry.trace._TRACER_PROVIDER", telemetry.provider)
    with feature_read(store="qdrant", view="neighbours"):
        client.query_points("answers", query=[1.0, 0.0], limit=1)
    query, read = telemetry.spans()
    assert [query.name, read.name] == ["vector_query answers", "feature_read neighbours"]
    assert query.parent is not None
    assert query.parent.span_id == read.context.span_id


def test_uninstrument_restores_the_identical_functions(qdrant: Any, instrumented: Any) -> None:
    before = qdrant.QdrantClient.__dict__["query_points"]
    instrumented(QdrantInstrumentor)
    assert qdrant.QdrantClient.__dict__["query_points"] is not before
    QdrantInstrumentor().uninstrument()
    assert qdrant.QdrantClient.__dict__["query_points"] is before


# -- Chroma ------------------------------------------------------------------------------------------------------------


def test_queries_of_chroma(instrumented: Any, tmp_path: Path) -> None:
    chromadb = pytest.importorskip("chromadb")
    collection = chromadb.PersistentClient(str(tmp_path)).create_collection("answers", embedding_function=None)
    collection.add(ids=["a", "b", "c"], embeddings=VECTORS)
    telemetry = instrumented(ChromaInstrumentor)
    found = collection.query(query_embeddings=[[1.0, 0.0], [0.0, 1.0]], n_results=2)
    assert [len(ids) for ids in found["ids"]] == [2, 2]
    assert about(telemetry) == ("chroma", "answers", 2, 2, 4)


# -- LanceDB -----------------------------------------------------------------------------------------------------------

ROWS = [{"id": number, "vector": vector, "text": "answer"} for number, vector in enumerate(VECTORS)]


@pytest.mark.parametrize("method", ["to_arrow", "to_list", "to_pandas"])
def test_a_query_of_lancedb(instrumented: Any, tmp_path: Path, method: str) -> None:
    lancedb = pytest.importorskip("lancedb")
    table = lancedb.connect(tmp_path).create_table("answers", ROWS)
    telemetry = instrumented(LanceDBInstrumentor)
    found = getattr(table.search([1.0, 0.0]).limit(2), method)()
    assert len(found) == 2
    assert about(telemetry) == ("lancedb", "answers", 2, 1, 2)
    assert telemetry.attributes()[BYTES] > 0


def test_batches_of_lancedb_tell_no_records(instrumented: Any, tmp_path: Path) -> None:
    lancedb = pytest.importorskip("lancedb")
    table = lancedb.connect(tmp_path).create_table("answers", ROWS)
    telemetry = instrumented(LanceDBInstrumentor)
    assert sum(batch.num_rows for batch in table.search([1.0, 0.0]).limit(2).to_batches()) == 2
    assert about(telemetry) == ("lancedb", "answers", 2, 1, None)


def test_a_scan_of_lancedb_is_no_query(instrumented: Any, tmp_path: Path) -> None:
    lancedb = pytest.importorskip("lancedb")
    table = lancedb.connect(tmp_path).create_table("answers", ROWS)
    telemetry = instrumented(LanceDBInstrumentor)
    assert len(table.search().limit(2).to_list()) == 2
    assert telemetry.spans() == []


async def test_an_asynchronous_query_of_lancedb(instrumented: Any, tmp_path: Path) -> None:
    lancedb = pytest.importorskip("lancedb")
    connection = await lancedb.connect_async(tmp_path)
    table = await connection.create_table("answers", ROWS)
    telemetry = instrumented(LanceDBInstrumentor)
    assert len(await table.query().limit(3).to_list()) == 3
    found = await table.query().nearest_to([1.0, 0.0]).limit(2).to_list()
    assert len(found) == 2
    assert about(telemetry) == ("lancedb", "answers", 2, 1, 2)


# -- Redis -------------------------------------------------------------------------------------------------------------


class RedisServer(socketserver.StreamRequestHandler):
    """Answers every search with one document, in Redis' protocol of version 2, and everything else with OK."""

    def handle(self) -> None:
        while line := self.rfile.readline():
            words = []
            for _ in range(int(line[1:])):
                size = int(self.rfile.readline()[1:])
                words.append(self.rfile.read(size + 2)[:-2])
            command = words[0].upper()
            if command == b"FT.SEARCH":
                self.wfile.write(b"*3\r\n:1\r\n$5\r\ndoc:1\r\n*2\r\n$4\r\ntext\r\n$5\r\nhello\r\n")
            elif command == b"HELLO":
                self.wfile.write(b"-ERR unknown command\r\n")
            else:
                self.wfile.write(b"+OK\r\n")


@pytest.fixture
def redis_port() -> Iterator[int]:
    with redis_serving() as port:
        yield port


@contextlib.contextmanager
def redis_serving() -> Iterator[int]:
    """The port of a stub of Redis."""
    socketserver.ThreadingTCPServer.allow_reuse_address = True
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), RedisServer) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


@pytest.mark.parametrize(
    ("text", "top_k"),
    [("*=>[KNN 4 @v $vec]", 4), ("*=>[KNN $K @v $vec]", 7), ("@v:[VECTOR_RANGE 0.2 $vec]", None)],
)
@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_search_of_vectors_in_redis(
    instrumented: Any, redis_port: int, asynchronous: bool, text: str, top_k: int | None
) -> None:
    redis = pytest.importorskip("redis")
    from redis.commands.search.query import Query

    telemetry = instrumented(RedisSearchInstrumentor)
    options = {"host": "127.0.0.1", "port": redis_port, "protocol": 2}
    query, given = Query(text).dialect(2), {"vec": b"\0" * 8, "K": 7}

    async def search() -> Any:
        async with redis.asyncio.Redis(**options) as client:
            return await client.ft("answers").search(query, given)

    found = asyncio.run(search()) if asynchronous else redis.Redis(**options).ft("answers").search(query, given)
    assert [document.id for document in found.docs] == ["doc:1"]
    assert about(telemetry) == ("redis", "answers", top_k, 1, 1)


def test_a_search_without_vectors_is_none(instrumented: Any, redis_port: int) -> None:
    redis = pytest.importorskip("redis")
    telemetry = instrumented(RedisSearchInstrumentor)
    redis.Redis(host="127.0.0.1", port=redis_port, protocol=2).ft("answers").search("hello")
    assert telemetry.spans() == []
