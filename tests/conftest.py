"""Fixtures for all rooms: stores to write into.

chdb opens one directory in a process, so a run has one, and every test a database of its own in it.
"""

from __future__ import annotations

import gc
import itertools
import os
import re
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pytest

if TYPE_CHECKING:
    from tollspan.processor.store import Store

_numbers = itertools.count(1)
_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-")


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Names of tests have to be the same in every process that runs some of them."""
    made_at_random = (isinstance(val, bytes) and len(val) > 8) or (isinstance(val, str) and _UUID.search(val))
    return argname if made_at_random else None


SLOW = (
    "faults/",
    "end_to_end/",
    "browser/",
    "test_exporter",
    "test_reconcile",
    "test_quarantine",
    "test_doctor",
    "test_forward",
)
"""Files, by a part of their path, that go first: two processes that share the rest end together."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: not any(part in item.path.as_posix() for part in SLOW))


@pytest.fixture(autouse=True, scope="module")
def settled_heap() -> None:
    """What earlier files of tests left alive is no work for this one's garbage collections, of which there are many."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def store_directory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The one directory for embedded stores of this process; a store opened elsewhere beside it is refused."""
    yield tmp_path_factory.mktemp("store")
    while _engine:
        _engine.pop().close()


@pytest.fixture
def store_url(store_directory: Path) -> str:
    """URL of an embedded store that no other test uses; nothing is made there yet."""
    return f"chdb://{store_directory}?database=t_{next(_numbers)}"


@pytest.fixture(scope="session")
def migrated(store_directory: Path) -> Callable[[Store], None]:
    """Brings an empty store to where its migrations lead: the first by all of them, the others by the tables that the
    first has then, in a third of the time."""
    made: list[tuple[str, list[str]]] = []

    def bring(store: Store) -> None:
        if not made:
            store.migrate()
            # Views come after what they read.
            tables = store.rows(
                "SELECT create_table_query AS text FROM system.tables"
                " WHERE database = currentDatabase() ORDER BY endsWith(engine, 'View'), name = 'focus'"
            )
            steps = "SELECT version, name, checksum FROM schema_migrations FINAL ORDER BY version"
            values = ", ".join(f"({row['version']}, '{row['name']}', '{row['checksum']}')" for row in store.rows(steps))
            written = f"INSERT INTO schema_migrations (version, name, checksum) VALUES {values}"
            made.append((store.database, [row["text"] for row in tables] + [written]))
            return
        ((before, statements),) = made
        for statement in statements:
            store.execute(re.sub(rf"\b{before}\b", store.database, statement))
        assert store.migrate() == []

    return bring


_engine: list[Store] = []
"""Keeps the embedded engine of this process open from one test with a `store` to the next: to end it and start it again
takes longer than most tests."""


def pytest_runtest_setup(item: pytest.Item) -> None:
    """A test without a `store` finds no engine in its process."""
    if _engine and "store" not in getattr(item, "fixturenames", ()):
        _engine.pop().close()


@pytest.fixture
def store(store_directory: Path, store_url: str, migrated: Callable[[Store], None]) -> Iterator[Store]:
    """An open, migrated, empty embedded store."""
    from tollspan.processor.store import open_store

    if not _engine:
        _engine.append(open_store(f"chdb://{store_directory}?database=nobody"))
    with open_store(store_url) as opened:
        migrated(opened)
        yield opened
        if opened.ping():
            opened.execute(f"DROP DATABASE IF EXISTS {opened.database}")


@pytest.fixture
def clickhouse_url() -> str:
    """URL of a real ClickHouse server, from ``TOLLSPAN_TEST_CLICKHOUSE_URL``; skips where there is none."""
    url = os.environ.get("TOLLSPAN_TEST_CLICKHOUSE_URL")
    if not url:
        pytest.skip("TOLLSPAN_TEST_CLICKHOUSE_URL names no ClickHouse server")
    return url


@pytest.fixture
def ledger_rows() -> Callable[[Iterable[dict[str, Any]]], pa.Table]:
    """Makes rows for the ``ledger`` table from what matters to a test; everything else gets a plain value.

    A row's ``charges`` is a list of ``(meter, component, cost or None, status)``. ``cost`` is the sum of its charges
    unless it is given, ``cost_status`` is ``priced`` where that is not None. Ids count up from 1.
    """
    return _ledger_rows


def _ledger_rows(rows: Iterable[dict[str, Any]]) -> pa.Table:
    from tollspan.processor.schema import LEDGER

    start = datetime(2026, 11, 1, 12, tzinfo=UTC)
    texts = {field.name: "" for field in LEDGER if field.type == pa.string()}
    complete = []
    for number, row in enumerate(rows, 1):
        row = dict(row)
        charges = row.pop("charges", [])
        known = [Decimal(cost) for _, _, cost, _ in charges if cost is not None]
        cost = sum(known, Decimal(0)) if known else None
        complete.append(
            {
                **texts,
                "start_time": start,
                "trace_id": number.to_bytes(16, "big"),
                "span_id": number.to_bytes(8, "big"),
                "parent_span_id": bytes(8),
                "duration_ns": 1_000_000,
                "provider": "openai",
                "model": "gpt-5-mini",
                "kind": "inference",
                "span_status": "ok",
                "retries": None,
                "cold_start": None,
                "batch_size": None,
                "cost": cost,
                "reported_cost": None,
                "cost_status": "unpriced" if row.get("cost", cost) is None else "priced",
                "charges.meter": [meter for meter, _, _, _ in charges],
                "charges.component": [component for _, component, _, _ in charges],
                "charges.quantity": [Decimal(1) for _ in charges],
                "charges.unit": ["token" for _ in charges],
                "charges.unit_price": [None if price is None else Decimal(price) for _, _, price, _ in charges],
                "charges.per": ["1 token" for _ in charges],
                "charges.cost": [None if price is None else Decimal(price) for _, _, price, _ in charges],
                "charges.negotiated": [None if price is None else Decimal(0) for _, _, price, _ in charges],
                "charges.committed": [None if price is None else Decimal(0) for _, _, price, _ in charges],
                "charges.price_id": ["test" for _ in charges],
                "charges.matched_by": ["model" for _ in charges],
                "charges.status": [status for _, _, _, status in charges],
                "book_version": "test",
                "revision": 1,
                "revised": False,
                "arrival_cost": None,
                "batch": 0,
                **row,
            }
        )
    return pa.Table.from_pylist(complete, schema=LEDGER)
