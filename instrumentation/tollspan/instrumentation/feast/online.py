"""Reads of online features and searches of documents: what was asked for and what came back.

In: calls of ``FeatureStore.get_online_features``, ``retrieve_online_documents`` and their twins. Out: openings and
attributes. Where it stands: the readers of `tollspan.instrumentation.feast`.

``feature.reads`` is rows × features, as requested. ``storage.read.bytes`` is the size of the response as the protobuf
message that Feast itself serves: what came out of the store, in one form for every store; what the store's own protocol
moved is not told. Entity columns, which Feast hands back among the features, are not counted as features.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from time import time
from typing import Any, Final, NamedTuple

from tollspan.instrumentation.calls import Call, Opening
from tollspan.instrumentation.data_reads import READ_BYTES, READS, ages, hashes, put_keys
from tollspan.instrumentation.feast.remote import is_counted, left_to_server
from tollspan.pricing import attributes as names

PROVIDER: Final = "feast"

MOST_TIMES: Final = 256
"""Event times of one read that are looked at; of a larger one every n-th."""

QUERIES: Final = names.usage("vector.queries")

STATUSES: Final[Mapping[int, str]] = {
    1: names.FEATURE_HITS,
    2: names.FEATURE_NULLS,
    3: names.FEATURE_MISSES,
    4: names.FEATURE_EXPIRED,
}
"""``FieldStatus`` of Feast's serving protocol → attribute that counts it. Unset, 0, says nothing."""

_FOUND: Final = 1
_EMPTY: Final = b"\n\0"
"""How a value that is empty is written in a column; it may stand for something else too."""


class Asked(NamedTuple):
    """What an online read asked for.

    Attributes:
        features: references, or a feature service.
        entities: rows, or columns.
        counted: another process has counted this read.
    """

    features: Any
    entities: Any
    counted: bool


def argument(args: tuple[Any, ...], kwargs: Mapping[str, Any], position: int, name: str) -> Any:
    """An argument, wherever it was given; ``position`` counts the instance."""
    return args[position] if len(args) > position else kwargs.get(name)


def store_kind(store: Any, which: str) -> str | None:
    """Kind of the online or offline store of a `FeatureStore`, as its configuration names it."""
    kind = getattr(getattr(getattr(store, "config", None), which, None), "type", None)
    return kind if isinstance(kind, str) and kind else None


def about(store: Any, operation: str, access: str, which: str, views: Iterable[str]) -> dict[str, Any]:
    """Attributes that every span of Feast begins with."""
    attributes: dict[str, Any] = {
        names.OPERATION: operation,
        names.PROVIDER: PROVIDER,
        names.FEATURE_ACCESS: access,
    }
    if (kind := store_kind(store, which)) is not None:
        attributes[names.FEATURE_STORE] = kind
    if views := sorted(set(views)):
        attributes[names.FEATURE_VIEWS] = views
    return attributes


def counted_elsewhere(attributes: Mapping[str, Any]) -> bool:
    """Whether another process counts what a span that begins with these attributes will use."""
    return is_counted() or left_to_server(attributes.get(names.FEATURE_STORE))


def named(attributes: dict[str, Any], name: Any, state: Any) -> Opening:
    """An opening named by its model, where there is one."""
    operation = attributes[names.OPERATION]
    if not isinstance(name, str) or not name:
        return Opening(operation, attributes, state)
    attributes[names.MODEL] = name
    return Opening(f"{operation} {name}", attributes, state)


def request(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Opening:
    """``get_online_features(self, features, entity_rows, full_feature_names=False, ...)``"""
    store = args[0]
    features = argument(args, kwargs, 1, "features")
    entities = argument(args, kwargs, 2, "entity_rows")
    attributes = about(store, names.OPERATION_FEATURE_READ, "online", "online_store", requested_views(features))
    if asked_by := entity_names(entities):
        attributes[names.FEATURE_ENTITIES] = sorted(asked_by)
    name = getattr(features, "name", None) or store.project
    return named(attributes, name, Asked(features, entities, counted_elsewhere(attributes)))


def response(call: Call, response: Any) -> None:
    """What an `OnlineResponse` holds."""
    asked: Asked = call.state
    message = response.proto
    columns = message.results
    rows = len(columns[0].values) if len(columns) else 0
    entities = entity_names(asked.entities)
    number = requested_features(asked.features)
    if number is None:
        number = len(set(message.metadata.feature_names.val) - entities)
    attributes = call.attributes
    attributes[names.FEATURE_ROWS] = rows
    attributes[names.FEATURE_COUNT] = number
    if not asked.counted:
        attributes[READ_BYTES] = message.ByteSize()
        attributes[READS] = rows * number
    found(attributes, message, entities)
    if hashes() is not None:
        put_keys(attributes, entity_keys(asked.entities))


def found(attributes: dict[str, Any], message: Any, entities: frozenset[str]) -> None:
    """Put how many values of a response were found, were null, were missing and were too old, and how old they are."""
    columns = [
        (column, list(column.statuses))
        for name, column in zip(message.metadata.feature_names.val, message.results, strict=False)
        if name not in entities
    ]
    told = sum(len(statuses) for _, statuses in columns)
    if not told:
        return
    every = -(-told // MOST_TIMES)
    empty = 0
    times: list[float] = []
    for column, statuses in columns:
        if _FOUND not in statuses:
            continue
        empty += _empty(column, statuses)
        sample = zip(column.event_timestamps[::every], statuses[::every], strict=False)
        times += [when.seconds + when.nanos / 1e9 for when, status in sample if status == _FOUND]
    for status, attribute in STATUSES.items():
        attributes[attribute] = sum(statuses.count(status) for _, statuses in columns)
    attributes[names.FEATURE_HITS] -= empty
    attributes[names.FEATURE_NULLS] += empty
    attributes.update(ages(times, time()))


def _empty(column: Any, statuses: list[int]) -> int:
    """How many values of a column are said to be there and are empty, as most stores hand out a null."""
    # Asking each value takes several times as long as writing the column, where what was not found is empty too.
    if column.SerializeToString().count(_EMPTY) <= len(statuses) - statuses.count(_FOUND):
        return 0
    return sum(
        status == _FOUND and value.WhichOneof("val") is None
        for value, status in zip(column.values, statuses, strict=False)
    )


def requested_features(features: Any) -> int | None:
    """How many features a request names: a list of references, or a feature service that knows its views. None for a
    service made of references, which Feast looks up in its registry."""
    if isinstance(features, list):
        return len(set(features))
    views = getattr(features, "feature_view_projections", None)
    if not views or getattr(features, "_pending_feature_refs", None):
        return None
    return sum(len(view.features) for view in views)


def requested_views(features: Any) -> frozenset[str]:
    """Names of the feature views of a request, without versions; empty where only Feast's registry knows them."""
    if isinstance(features, list):
        views = [reference.partition(":")[0] for reference in features if isinstance(reference, str)]
        return frozenset(view.partition("@")[0] for view in views)
    if getattr(features, "_pending_feature_refs", None):
        return frozenset()
    return frozenset(view.name for view in getattr(features, "feature_view_projections", None) or ())


def entity_names(entities: Any) -> frozenset[str]:
    """Names of the entity columns of a request: a list of dicts, or a dict of columns."""
    if isinstance(entities, Mapping):
        return frozenset(entities)
    if isinstance(entities, list) and entities and isinstance(entities[0], Mapping):
        return frozenset(entities[0])
    return frozenset()


def entity_keys(entities: Any) -> Iterable[Mapping[str, Any]]:
    """Rows of a request, however they were given."""
    if isinstance(entities, list):
        return entities
    columns = {name: getattr(values, "val", values) for name, values in entities.items()}
    return ({name: _plain(value) for name, value in zip(columns, row, strict=True)} for row in _rows(columns))


def _rows(columns: Mapping[str, Any]) -> Iterable[tuple[Any, ...]]:
    return zip(*columns.values(), strict=False)


def _plain(value: Any) -> Any:
    """A value out of Feast's own message for one."""
    kind = getattr(value, "WhichOneof", None)
    return getattr(value, kind("val")) if callable(kind) and kind("val") else value


def documents_request(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Opening:
    """``retrieve_online_documents(self, query, top_k, features, distance_metric="L2")``"""
    return _search(args[0], argument(args, kwargs, 3, "features"), argument(args, kwargs, 2, "top_k"))


def documents_v2_request(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Opening:
    """``retrieve_online_documents_v2(self, features, top_k, query=None, ...)``"""
    return _search(args[0], argument(args, kwargs, 1, "features"), argument(args, kwargs, 2, "top_k"))


def _search(store: Any, features: Any, top_k: Any) -> Opening:
    views = requested_views(features)
    attributes = about(store, names.OPERATION_VECTOR_QUERY, "online", "online_store", views)
    if type(top_k) is int:
        attributes[names.VECTOR_TOP_K] = top_k
    name = next(iter(views)) if len(views) == 1 else store.project
    return named(attributes, name, Asked(features, None, counted_elsewhere(attributes)))


def documents_response(call: Call, response: Any) -> None:
    """One query, and as many documents as its columns are long."""
    message = response.proto
    columns = message.results
    attributes = call.attributes
    attributes[names.VECTOR_RETURNED] = len(columns[0].values) if len(columns) else 0
    if not call.state.counted:
        attributes[QUERIES] = 1
        attributes[READ_BYTES] = message.ByteSize()
