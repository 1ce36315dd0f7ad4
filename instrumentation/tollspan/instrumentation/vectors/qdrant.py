"""Qdrant: nearest neighbours through its client, local, over REST or over gRPC.

In: calls of ``QdrantClient`` and ``AsyncQdrantClient``. Out: spans, see `tollspan.instrumentation.vectors`. A call
that only lists records, without a query, is none. Bytes are those of the REST answer; of a local store and over gRPC
they are not told.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Final

from tollspan.instrumentation.calls import Call, CallInstrumentor, Opening, WrapPoint, open_call
from tollspan.instrumentation.guard import guard
from tollspan.instrumentation.vectors import LAYER, Asked, answered, apart, query
from tollspan.instrumentation.wrapping import Patches

PROVIDER: Final = "qdrant"

_BYTES: Final = guard("qdrant.bytes")

_CLIENTS: Final = (
    ("qdrant_client.qdrant_client:QdrantClient", False),
    ("qdrant_client.async_qdrant_client:AsyncQdrantClient", True),
)
_SENDERS: Final = (
    ("qdrant_client.http.api_client:ApiClient.send_inner", False),
    ("qdrant_client.http.api_client:AsyncApiClient.send_inner", True),
)

_BY_SIZE: Final = ("search", "search_groups", "recommend", "recommend_groups", "discover")
"""Of clients before 1.16."""
_BATCHES: Final = ("query_batch_points", "search_batch", "recommend_batch", "discover_batch")


def _argument(args: tuple[Any, ...], kwargs: dict[str, Any], position: int, name: str, default: Any = None) -> Any:
    return args[position] if len(args) > position else kwargs.get(name, default)


def _server(client: Any) -> Any:
    return getattr(getattr(client, "_client", None), "_host", None)


def _query(position: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Opening | None:
    """``query_points(self, collection_name, query=None, ...)``; ``position`` is the query's."""
    if _argument(args, kwargs, position, "query") is None and kwargs.get("prefetch") is None:
        return None
    return _asked(args, kwargs)


def _asked(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Opening:
    collection = _argument(args, kwargs, 1, "collection_name")
    # Its place differs between the methods and their versions; nobody gives it by that.
    top_k = kwargs.get("limit", 10) if len(args) < 8 else None
    return query(PROVIDER, collection, top_k, server=_server(args[0]))


def _batch(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Opening:
    """``query_batch_points(self, collection_name, requests, ...)``"""
    requests = _argument(args, kwargs, 2, "requests")
    limits = {getattr(request, "limit", None) for request in requests}
    collection = _argument(args, kwargs, 1, "collection_name")
    top_k = limits.pop() if len(limits) == 1 else None
    return query(PROVIDER, collection, top_k, queries=len(requests), server=_server(args[0]))


def _answered(call: Call, result: Any) -> None:
    answered(call, _records(result))


def _records(result: Any) -> int | None:
    """How many points an answer has, whichever method gave it."""
    if isinstance(result, list):  # of answers, or of points
        return sum(1 if (number := _records(each)) is None else number for each in result)
    if (points := getattr(result, "points", None)) is not None:
        return len(points)
    if (groups := getattr(result, "groups", None)) is not None:
        return sum(len(group.hits) for group in groups)
    return None


def _point(target: str, request: Any, asynchronous: bool) -> WrapPoint:
    return WrapPoint(
        target=target, request=request, response=_answered, asynchronous=asynchronous, apart=apart, layer=LAYER
    )


REQUESTS: Final = {
    "query_points": functools.partial(_query, 2),
    "query_points_groups": functools.partial(_query, 3),
    **dict.fromkeys(_BY_SIZE, _asked),
    **dict.fromkeys(_BATCHES, _batch),
}
"""Method of the client → reader of its request."""


class QdrantInstrumentor(CallInstrumentor):
    """Spans for Qdrant. Does not import it: it waits until the program does."""

    scope = __name__
    requires = ("qdrant-client >= 1.12",)
    points = tuple(
        _point(f"{client}.{method}", request, asynchronous)
        for client, asynchronous in _CLIENTS
        for method, request in REQUESTS.items()
    )

    def patch(self, patches: Patches) -> None:
        for target, asynchronous in _SENDERS:
            patches.add(target, functools.partial(_weighed, patches, asynchronous))


def _weighed(patches: Patches, asynchronous: bool, original: Callable[..., Any]) -> Callable[..., Any]:
    """Note how large an answer was that came over REST."""
    if asynchronous:

        @functools.wraps(original)
        async def send_async(*args: Any, **kwargs: Any) -> Any:
            response = await original(*args, **kwargs)
            if patches.active:
                _weigh(response)
            return response

        return send_async

    @functools.wraps(original)
    def send(*args: Any, **kwargs: Any) -> Any:
        response = original(*args, **kwargs)
        if patches.active:
            _weigh(response)
        return response

    return send


def _weigh(response: Any) -> None:
    with _BYTES:
        call = open_call(LAYER)
        if call is not None and type(call.state) is Asked:
            call.state.bytes = len(response.content)
