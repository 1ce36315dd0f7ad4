"""Milvus: a search is one span and a read of records another, whichever of its clients asked.

Every test drives the real clients on a Milvus Lite of its own, which speaks gRPC as a server does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from opentelemetry.instrumentation.utils import suppress_instrumentation

from tollspan.instrumentation import feature_read
from tollspan.instrumentation.vectors.milvus import MilvusInstrumentor
from tollspan.pricing import attributes as names

from .conftest import Telemetry
from .test_vector_stores import BYTES, QUERIES, VECTORS, about

pymilvus = pytest.importorskip("pymilvus")
pytest.importorskip("milvus_lite")

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::PendingDeprecationWarning")


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = str(tmp_path_factory.mktemp("milvus") / "answers.db")
    client = pymilvus.MilvusClient(path)
    client.create_collection("answers", dimension=2)
    client.insert("answers", [{"id": n, "vector": vector, "kind": "x"} for n, vector in enumerate(VECTORS)])
    client.close()
    return path


@pytest.fixture
def milvus(telemetry: Telemetry) -> Iterator[Telemetry]:
    MilvusInstrumentor().instrument(tracer_provider=telemetry.provider)
    yield telemetry
    MilvusInstrumentor().uninstrument()


def test_a_search(milvus: Telemetry, uri: str) -> None:
    found = pymilvus.MilvusClient(uri).search("answers", data=[[1.0, 0.0]], limit=2)
    assert [hit["id"] for hit in found[0]] == [0, 1]
    assert about(milvus) == ("milvus", "answers", 2, 1, 2)
    assert milvus.attributes()[BYTES] > 0


def test_many_vectors_are_one_span_of_many_queries(milvus: Telemetry, uri: str) -> None:
    pymilvus.MilvusClient(uri).search("answers", data=[[1.0, 0.0], [0.0, 1.0]], limit=2)
    assert about(milvus) == ("milvus", "answers", 2, 2, 4)


def test_a_hybrid_search_is_one_query(milvus: Telemetry, uri: str) -> None:
    request = pymilvus.AnnSearchRequest(data=[[1.0, 0.0]], anns_field="vector", param={}, limit=3)
    client = pymilvus.MilvusClient(uri)
    client.hybrid_search("answers", [request, request], pymilvus.RRFRanker(), limit=2)
    assert about(milvus) == ("milvus", "answers", 2, 1, 2)


def served(uri: str) -> str:
    """Where Milvus Lite, whose file a synchronous client has opened, listens."""
    handler = getattr(pymilvus.MilvusClient(uri), "_handler", None)
    if handler is None:
        pytest.skip("Milvus Lite listens on a port since 3")
    return str(handler.server_address)


def test_an_asynchronous_client(milvus: Telemetry, uri: str) -> None:
    address = served(uri)

    async def search() -> Any:
        client = pymilvus.AsyncMilvusClient(f"http://{address}")
        found = await client.search("answers", data=[[1.0, 0.0]], limit=2)
        await client.close()
        return found

    assert [hit["id"] for hit in asyncio.run(search())[0]] == [0, 1]
    assert about(milvus) == ("milvus", "answers", 2, 1, 2)
    assert milvus.attributes()[names.SERVER_ADDRESS] == "127.0.0.1"
    assert milvus.attributes()[BYTES] > 0


def test_asynchronous_reads(milvus: Telemetry, uri: str) -> None:
    address = served(uri)

    async def read() -> None:
        client = pymilvus.AsyncMilvusClient(f"http://{address}")
        await asyncio.gather(client.get("answers", [1]), client.query("answers", filter="id > 0"))
        await client.close()

    asyncio.run(read())
    assert sorted(span.attributes[names.FEATURE_ROWS] for span in milvus.spans()) == [1, 2]


def collection(uri: str) -> Any:
    pymilvus.connections.connect("default", uri=uri)
    return pymilvus.Collection("answers")


def test_a_collection_of_the_older_interface(milvus: Telemetry, uri: str) -> None:
    answers = collection(uri)
    found = answers.search([[1.0, 0.0]], "vector", {"metric_type": "COSINE"}, 2)
    assert list(found[0].ids) == [0, 1]
    assert about(milvus) == ("milvus", "answers", 2, 1, 2)


def test_a_future_tells_its_query_and_no_records(milvus: Telemetry, uri: str) -> None:
    future = collection(uri).search([[1.0, 0.0]], "vector", {"metric_type": "COSINE"}, 2, _async=True)
    assert about(milvus) == ("milvus", "answers", 2, 1, None)
    assert len(future.result()[0]) == 2


def test_the_pages_of_an_iterator_are_calls(milvus: Telemetry, uri: str) -> None:
    pages = pymilvus.MilvusClient(uri).query_iterator("answers", batch_size=2, filter="id >= 0")
    records = []
    while page := pages.next():
        records += page
    assert len(records) == 3
    assert len(milvus.spans()) >= 2
    assert {span.name for span in milvus.spans()} == {"feature_read answers"}


@pytest.mark.parametrize("fields", [None, ["kind"]])
def test_records_by_key(milvus: Telemetry, uri: str, monkeypatch: pytest.MonkeyPatch, fields: Any) -> None:
    monkeypatch.setenv("TOLLSPAN_FINGERPRINT_KEY", "a secret of the test")
    client = pymilvus.MilvusClient(uri)
    assert len(client.get("answers", ids=[1, 2, 77], output_fields=fields)) == 2
    client.query("answers", ids=[1], output_fields=fields)
    first, second = (dict(span.attributes or {}) for span in milvus.spans())
    assert {span.name for span in milvus.spans()} == {"feature_read answers"}
    assert (first[names.FEATURE_ROWS], first[names.FEATURE_STORE]) == (3, "milvus")
    assert first[BYTES] > 0
    assert QUERIES not in first
    assert second[names.READ_KEYS][0] in first[names.READ_KEYS]
    known = (first.get(names.usage("feature.reads")), first.get(names.FEATURE_HITS), first.get(names.FEATURE_MISSES))
    assert known == ((3, 2, 1) if fields else (None, None, None))


def test_records_by_filter(milvus: Telemetry, uri: str) -> None:
    assert len(pymilvus.MilvusClient(uri).query("answers", filter="id > 0", output_fields=["kind"])) == 2
    told = milvus.attributes()
    assert (told[names.FEATURE_ROWS], told[names.FEATURE_COUNT], told[names.usage("feature.reads")]) == (2, 1, 2)
    assert names.READ_KEYS not in told


def test_a_search_inside_a_read_of_features_is_apart(
    milvus: Telemetry, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("opentelemetry.trace._TRACER_PROVIDER", milvus.provider)
    client = pymilvus.MilvusClient(uri)
    with feature_read(store="milvus", view="neighbours"):
        client.search("answers", data=[[1.0, 0.0]], limit=1)
        client.get("answers", [1])  # part of the read
    query, read = milvus.spans()
    assert [query.name, read.name] == ["vector_query answers", "feature_read neighbours"]
    assert BYTES not in (read.attributes or {})


def test_an_error_is_the_clients_own(milvus: Telemetry, uri: str) -> None:
    client = pymilvus.MilvusClient(uri)
    with pytest.raises(pymilvus.MilvusException):
        client.search("no_such", data=[[1.0, 0.0]])
    told = milvus.attributes()
    assert told[names.ERROR_TYPE].startswith("pymilvus.exceptions.")
    assert QUERIES not in told


def test_suppressed_and_concurrent_searches(milvus: Telemetry, uri: str) -> None:
    client = pymilvus.MilvusClient(uri)
    with suppress_instrumentation():
        client.search("answers", data=[[1.0, 0.0]])
    assert milvus.spans() == []
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda n: client.search("answers", data=[[1.0, 0.0]] * n, limit=1), range(1, 9)))
    assert sorted(span.attributes[QUERIES] for span in milvus.spans()) == list(range(1, 9))


def test_results_are_the_same_and_uninstrument_restores_the_identical_functions(telemetry: Telemetry, uri: str) -> None:
    from pymilvus.client import entity_helper, search_result

    owners = [
        *(
            (point.target, WHERE[point.target.partition(":")[2].partition(".")[0]])
            for point in MilvusInstrumentor.points
        ),
        ("x:x.__init__", search_result.SearchResult),
        ("x:extract_dynamic_field_from_result", entity_helper),
    ]
    before = [vars(owner)[target.rpartition(".")[2].rpartition(":")[2]] for target, owner in owners]
    client = pymilvus.MilvusClient(uri)
    plain = client.search("answers", data=[[1.0, 0.0]], limit=2)
    MilvusInstrumentor().instrument(tracer_provider=telemetry.provider)
    ours = client.search("answers", data=[[1.0, 0.0]], limit=2)
    MilvusInstrumentor().uninstrument()
    assert (type(ours), str(ours)) == (type(plain), str(plain))
    after = [vars(owner)[target.rpartition(".")[2].rpartition(":")[2]] for target, owner in owners]
    assert all(one is other for one, other in zip(before, after, strict=True))
    client.search("answers", data=[[1.0, 0.0]], limit=2)
    assert len(telemetry.spans()) == 1


def _where() -> dict[str, Any]:
    from pymilvus.client.async_grpc_handler import AsyncGrpcHandler
    from pymilvus.client.grpc_handler import GrpcHandler

    kinds = (GrpcHandler, AsyncGrpcHandler, pymilvus.MilvusClient, pymilvus.AsyncMilvusClient)
    return {kind.__name__: kind for kind in kinds}


WHERE = _where()
