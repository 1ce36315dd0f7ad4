"""Feast: a span for each read, search and write of features, with what it read or wrote.

In: calls of `FeatureStore` and of the jobs that it makes. Out: spans ``feature_read {feature service or project}``,
``vector_query {view}`` and ``feature_write {view, push source or project}``. Where it stands: a table over `calls.py`;
`online`, `offline` and `writes` read what was asked for and what came of it, `remote` keeps a feature server and its
client from counting one read twice.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Final

from opentelemetry import trace

from tollspan.instrumentation.calls import CallInstrumentor, WrapPoint, wrap
from tollspan.instrumentation.data_reads import LAYER
from tollspan.instrumentation.feast import offline, online, remote, writes
from tollspan.instrumentation.wrapping import Patches

_STORE: Final = "feast.feature_store:FeatureStore."


def _write(method: str, request: Any, asynchronous: bool = False) -> WrapPoint:
    return WrapPoint(
        target=_STORE + method, request=request, finish=writes.finish, asynchronous=asynchronous, layer=LAYER
    )


POINTS: Final = (
    WrapPoint(
        target=_STORE + "get_online_features",
        request=online.request,
        response=online.response,
        layer=LAYER,
    ),
    WrapPoint(
        target=_STORE + "get_online_features_async",
        request=online.request,
        response=online.response,
        asynchronous=True,
        layer=LAYER,
    ),
    WrapPoint(
        target=_STORE + "retrieve_online_documents",
        request=online.documents_request,
        response=online.documents_response,
        layer=LAYER,
    ),
    WrapPoint(
        target=_STORE + "retrieve_online_documents_v2",
        request=online.documents_v2_request,
        response=online.documents_response,
        layer=LAYER,
    ),
    _write("push", writes.push_request),
    _write("push_async", writes.push_request, asynchronous=True),
    _write("write_to_online_store", writes.write_request),
    _write("write_to_online_store_async", writes.write_request, asynchronous=True),
    _write("materialize", writes.materialize_request),
    _write("materialize_incremental", writes.incremental_request),
)

JOBS: Final = tuple(WrapPoint(target=target, request=offline.request, layer=LAYER) for target in offline.METHODS)


class FeastInstrumentor(CallInstrumentor):
    """Spans for Feast. Does not import it: it waits until the program does."""

    scope = __name__
    requires = ("feast >= 0.60",)
    points = POINTS

    def _instrument(self, **kwargs: Any) -> None:
        self._tracer = trace.get_tracer(self.scope, tracer_provider=kwargs.get("tracer_provider"))
        super()._instrument(**kwargs)

    def patch(self, patches: Patches) -> None:
        def make(point: WrapPoint, original: Callable[..., Any]) -> Callable[..., Any]:
            if point.target.endswith(".to_arrow"):
                original = offline.looked_at(patches, original)
            return wrap(point, self._tracer, patches, original)

        for point in JOBS:
            patches.add(point.target, functools.partial(make, point))
        offline.patch(patches)
        writes.patch(patches)
        remote.patch(patches)
