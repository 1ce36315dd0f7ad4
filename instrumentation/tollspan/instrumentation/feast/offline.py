"""Historical features: what a retrieval job reads, when it reads it.

In: jobs that ``FeatureStore.get_historical_features`` returned, and calls of those of their methods that run the query.
Out: a span for each of them: a job that is executed twice has read twice, and one that is never executed has read
nothing. Where it stands: beside `online`.

What is counted is the table that came back: rows × features and its bytes as Arrow holds them. A job that leaves its
result where it is (``persist`` in a database, an export) tells neither, and then they are absent.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

from tollspan.instrumentation.calls import Call, Opening, open_call
from tollspan.instrumentation.data_reads import LAYER, READ_BYTES, READS
from tollspan.instrumentation.feast.online import about, argument, named, requested_features, requested_views
from tollspan.instrumentation.guard import guard
from tollspan.instrumentation.instances import PerInstance
from tollspan.instrumentation.wrapping import Patches
from tollspan.pricing import attributes as names

_REMEMBER: Final = guard("feast.historical")
_TABLE: Final = guard("feast.table")

BASE: Final = "feast.infra.offline_stores.offline_store:RetrievalJob"
_EVERY: Final = ("to_df", "to_arrow")

JOBS: Final[Mapping[str, tuple[str, ...]]] = {
    BASE: _EVERY,
    "feast.infra.offline_stores.bigquery:BigQueryRetrievalJob": ("persist", "to_remote_storage", "to_bigquery"),
    "feast.infra.offline_stores.contrib.athena_offline_store.athena:AthenaRetrievalJob": ("persist",),
    "feast.infra.offline_stores.contrib.chronon_offline_store.chronon:ChrononRetrievalJob": ("persist",),
    "feast.infra.offline_stores.contrib.clickhouse_offline_store.clickhouse:ClickhouseRetrievalJob": ("persist",),
    "feast.infra.offline_stores.contrib.couchbase_offline_store.couchbase:CouchbaseColumnarRetrievalJob": ("persist",),
    "feast.infra.offline_stores.contrib.mongodb_offline_store.mongodb:MongoDBRetrievalJob": ("persist",),
    "feast.infra.offline_stores.contrib.postgres_offline_store.postgres:PostgreSQLRetrievalJob": ("persist",),
    "feast.infra.offline_stores.contrib.ray_offline_store.ray:RayRetrievalJob": (
        *_EVERY,
        *("persist", "to_remote_storage", "to_feast_df"),
    ),
    "feast.infra.offline_stores.contrib.spark_offline_store.spark:SparkRetrievalJob": (
        *("persist", "to_remote_storage", "to_feast_df"),
    ),
    "feast.infra.offline_stores.contrib.trino_offline_store.trino:TrinoRetrievalJob": ("persist",),
    "feast.infra.offline_stores.dask:DaskRetrievalJob": ("persist",),
    "feast.infra.offline_stores.ibis:IbisRetrievalJob": ("persist", "to_remote_storage"),
    "feast.infra.offline_stores.redshift:RedshiftRetrievalJob": (
        *("persist", "to_remote_storage", "to_s3", "to_redshift"),
    ),
    "feast.infra.offline_stores.remote:RemoteRetrievalJob": ("persist",),
    "feast.infra.offline_stores.snowflake:SnowflakeRetrievalJob": (*("persist", "to_remote_storage", "to_snowflake"),),
}
"""Class of jobs → its methods that run the query. What a class inherits stands where it was written."""

METHODS: Final = tuple(f"{job}.{method}" for job, methods in JOBS.items() for method in methods)


class _Job:
    """What is known of a job since it was made.

    Attributes:
        store: the store that made it; None for one that no user asked for, as those of a materialization.
        features: as they were asked for.
    """

    __slots__ = ("features", "store")

    def __init__(self, job: Any) -> None:
        self.store: Any = None
        self.features: Any = None


class Run(NamedTuple):
    """State of the span of an execution: how many features each row has, None where nobody tells."""

    features: int | None


_jobs: Final[PerInstance[_Job]] = PerInstance(_Job)


def patch(patches: Patches) -> None:
    """Remember the jobs that are made."""
    patches.add("feast.feature_store:FeatureStore.get_historical_features", functools.partial(_remembered, patches))


def _remembered(patches: Patches, original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def get_historical_features(*args: Any, **kwargs: Any) -> Any:
        job = original(*args, **kwargs)
        if patches.active:
            with _REMEMBER:
                note = _jobs.of(job)
                note.features = argument(args, kwargs, 2, "features")
                note.store = args[0]
        return job

    return get_historical_features


def request(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Opening | None:
    """Any method of `METHODS`; ``args[0]`` is the job."""
    note = _jobs.of(args[0])
    store, features = note.store, note.features
    if store is None:
        return None
    views = requested_views(features)
    attributes = about(store, names.OPERATION_FEATURE_READ, "historical", "offline_store", views)
    name = getattr(features, "name", None) or store.project
    return named(attributes, name, Run(requested_features(features)))


def looked_at(patches: Patches, original: Callable[..., Any]) -> Callable[..., Any]:
    """``RetrievalJob.to_arrow``, also where another method of the job runs it: the table tells what was read."""

    @functools.wraps(original)
    def to_arrow(*args: Any, **kwargs: Any) -> Any:
        table = original(*args, **kwargs)
        if patches.active:
            with _TABLE:
                call = open_call(LAYER)
                if call is not None and call.recording and type(call.state) is Run:
                    _counted(call, table)
        return table

    return to_arrow


def _counted(call: Call, result: Any) -> None:
    rows, size = getattr(result, "num_rows", None), getattr(result, "nbytes", None)
    if type(rows) is not int or type(size) is not int:
        return  # no table of Arrow's
    attributes = call.attributes
    attributes[names.FEATURE_ROWS] = rows
    attributes[READ_BYTES] = size
    features = call.state.features
    if features is not None:
        attributes[names.FEATURE_COUNT] = features
        attributes[READS] = rows * features
