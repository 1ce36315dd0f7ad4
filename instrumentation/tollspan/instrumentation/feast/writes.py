"""What is written to an online store: pushes, writes and materializations.

In: calls of ``FeatureStore.push``, ``write_to_online_store`` and ``materialize``, and inside them the batches that
reach the online store. Out: spans ``feature_write {view}`` with rows × features as ``feature.writes``. Where it stands:
beside `online`.

A call's batches are added up: each is rows of its own, of one feature view. What another machine writes (Spark, a
feature server) never passes here, and then rows and writes are absent.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterable
from typing import Any, Final

from tollspan.instrumentation.calls import Call, Opening, open_call
from tollspan.instrumentation.data_reads import LAYER
from tollspan.instrumentation.feast.online import about, argument, counted_elsewhere, named
from tollspan.instrumentation.guard import guard
from tollspan.instrumentation.wrapping import Patches
from tollspan.pricing import attributes as names

WRITES: Final = names.usage("feature.writes")

_BATCH: Final = guard("feast.write_batch")

_STORES: Final = "feast.infra.online_stores."

ONLINE_STORES: Final = tuple(
    _STORES + store
    for store in (
        "aerospike_online_store.aerospike:AerospikeOnlineStore",
        "sqlite:SqliteOnlineStore",
        "datastore:DatastoreOnlineStore",
        "redis:RedisOnlineStore",
        "dynamodb:DynamoDBOnlineStore",
        "snowflake:SnowflakeOnlineStore",
        "bigtable:BigtableOnlineStore",
        "postgres_online_store.postgres:PostgreSQLOnlineStore",
        "hbase_online_store.hbase:HbaseOnlineStore",
        "cassandra_online_store.cassandra_online_store:CassandraOnlineStore",
        "scylladb_online_store.scylladb:ScyllaDBOnlineStore",
        "mysql_online_store.mysql:MySQLOnlineStore",
        "hazelcast_online_store.hazelcast_online_store:HazelcastOnlineStore",
        "elasticsearch_online_store.elasticsearch:ElasticSearchOnlineStore",
        "remote:RemoteOnlineStore",
        "singlestore_online_store.singlestore:SingleStoreOnlineStore",
        "qdrant_online_store.qdrant:QdrantOnlineStore",
        "couchbase_online_store.couchbase:CouchbaseOnlineStore",
        "milvus_online_store.milvus:MilvusOnlineStore",
        "mongodb_online_store.mongodb:MongoDBOnlineStore",
        "chronon_online_store.chronon:ChrononOnlineStore",
        "ikv_online_store.ikv:IKVOnlineStore",  # in older versions
    )
)
"""Feast's online stores. Its hybrid one hands on to one of these."""

_METHODS: Final = (("online_write_batch", False), ("online_write_batch_async", True))


class Batches:
    """State of a write: what reached the store so far.

    Attributes:
        rows, values: of all batches.
        views: their feature views.
        counted: another process counts the write.
    """

    __slots__ = ("_lock", "counted", "rows", "values", "views")

    def __init__(self, counted: bool) -> None:
        self._lock = threading.Lock()
        self.counted = counted
        self.rows: int | None = None
        self.values = 0
        self.views: set[str] = set()

    def add(self, view: str, rows: int, features: int) -> None:
        """One batch; of several threads at once where views are materialized together."""
        with self._lock:
            self.rows = (self.rows or 0) + rows
            self.values += rows * features
            self.views.add(view)


def _opening(store: Any, access: str, views: Iterable[Any], name: Any) -> Opening:
    written = (view for view in views if isinstance(view, str))
    attributes = about(store, names.OPERATION_FEATURE_WRITE, access, "online_store", written)
    return named(attributes, name or store.project, Batches(counted_elsewhere(attributes)))


def push_request(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Opening:
    """``push(self, push_source_name, df, ...)``"""
    return _opening(args[0], "push", (), argument(args, kwargs, 1, "push_source_name"))


def write_request(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Opening:
    """``write_to_online_store(self, feature_view_name, df, ...)``"""
    view = argument(args, kwargs, 1, "feature_view_name")
    return _opening(args[0], "write", (view,), view)


def materialize_request(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Opening:
    """``materialize(self, start_date, end_date, feature_views=None, ...)``"""
    return _opening(args[0], "materialize", argument(args, kwargs, 3, "feature_views") or (), None)


def incremental_request(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Opening:
    """``materialize_incremental(self, end_date, feature_views=None, ...)``"""
    return _opening(args[0], "materialize", argument(args, kwargs, 2, "feature_views") or (), None)


def finish(call: Call) -> None:
    """What reached the store, also of a call that failed half way."""
    batches: Batches = call.state
    if batches.rows is None:
        return
    call.attributes[names.FEATURE_ROWS] = batches.rows
    call.attributes[names.FEATURE_VIEWS] = sorted(batches.views)
    if not batches.counted:
        call.attributes[WRITES] = batches.values


def patch(patches: Patches) -> None:
    """Look at the batches that reach online stores."""
    for store in ONLINE_STORES:
        for method, asynchronous in _METHODS:
            patches.add(f"{store}.{method}", functools.partial(_watched, patches, asynchronous))


def _watched(patches: Patches, asynchronous: bool, original: Callable[..., Any]) -> Callable[..., Any]:
    if asynchronous:

        @functools.wraps(original)
        async def write_async(*args: Any, **kwargs: Any) -> Any:
            result = await original(*args, **kwargs)
            if patches.active:
                _batch(args, kwargs)
            return result

        return write_async

    @functools.wraps(original)
    def write(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        if patches.active:
            _batch(args, kwargs)
        return result

    return write


def _batch(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """``online_write_batch(self, config, table, data, progress)``, which returned."""
    with _BATCH:
        call = open_call(LAYER)
        if call is None or type(call.state) is not Batches:
            return
        view, data = argument(args, kwargs, 2, "table"), argument(args, kwargs, 3, "data")
        call.state.add(str(view.name), len(data), len(data[0][1]) if data else 0)
