"""Feast: a span for each read of online features, with what it read.

In: calls of ``FeatureStore.get_online_features`` and its asynchronous twin. Out: spans ``feature_read {feature service
or project}``. Where it stands: a table over `calls.py`.

``feature.reads`` is rows × features, as requested. ``storage.read.bytes`` is the size of the response as the protobuf
message that Feast itself serves: what came out of the store, in one form for every store; what the store's own protocol
moved is not told. Entity columns, which Feast hands back among the features, are not counted as features.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from tollspan.instrumentation.calls import Call, CallInstrumentor, Opening, WrapPoint
from tollspan.pricing import attributes

PROVIDER: Final = "feast"

_READS: Final = attributes.usage("feature.reads")
_BYTES: Final = attributes.usage("storage.read.bytes")


def _request(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Opening:
    """``get_online_features(self, features, entity_rows, full_feature_names=False, ...)``"""
    features = args[1] if len(args) > 1 else kwargs.get("features")
    entities = args[2] if len(args) > 2 else kwargs.get("entity_rows")
    about: dict[str, Any] = {
        attributes.OPERATION: attributes.OPERATION_FEATURE_READ,
        attributes.PROVIDER: PROVIDER,
    }
    name = getattr(features, "name", None) or args[0].project
    if not name:
        return Opening(attributes.OPERATION_FEATURE_READ, about, (features, entities))
    about[attributes.MODEL] = name
    return Opening(f"{attributes.OPERATION_FEATURE_READ} {name}", about, (features, entities))


def _response(call: Call, response: Any) -> None:
    features, entities = call.state
    message = response.proto
    call.attributes[_BYTES] = message.ByteSize()
    columns = message.results
    rows = len(columns[0].values) if len(columns) else 0
    number = requested_features(features)
    if number is None:
        number = len(set(message.metadata.feature_names.val) - entity_names(entities))
    call.attributes[attributes.FEATURE_ROWS] = rows
    call.attributes[attributes.FEATURE_COUNT] = number
    call.attributes[_READS] = rows * number


def requested_features(features: Any) -> int | None:
    """How many features a request names: a list of references, or a feature service that knows its views. None for a
    service made of references, which Feast looks up in its registry."""
    if isinstance(features, list):
        return len(set(features))
    views = getattr(features, "feature_view_projections", None)
    if not views or getattr(features, "_pending_feature_refs", None):
        return None
    return sum(len(view.features) for view in views)


def entity_names(entities: Any) -> frozenset[str]:
    """Names of the entity columns of a request: a list of dicts, or a dict of columns."""
    if isinstance(entities, Mapping):
        return frozenset(entities)
    if isinstance(entities, list) and entities and isinstance(entities[0], Mapping):
        return frozenset(entities[0])
    return frozenset()


_STORE: Final = "feast.feature_store:FeatureStore."


class FeastInstrumentor(CallInstrumentor):
    """Spans for Feast. Does not import it: it waits until the program does."""

    scope = __name__
    requires = ("feast >= 0.60",)
    points = (
        WrapPoint(
            target=_STORE + "get_online_features",
            request=_request,
            response=_response,
            layer="feast",
        ),
        WrapPoint(
            target=_STORE + "get_online_features_async",
            request=_request,
            response=_response,
            asynchronous=True,
            layer="feast",
        ),
    )
