"""Milvus: nearest neighbours and records by key or filter, of a server, Zilliz Cloud or Milvus Lite.

In: calls of `MilvusClient` and `AsyncMilvusClient`, of the older `Collection` and of both clients' iterators: all of
them end in the handlers that are wrapped here. Out: ``vector_query {collection}`` for searches, see
`tollspan.instrumentation.vectors`, and ``feature_read {collection}`` for ``get`` and ``query``, which look for no
neighbours; their keys are told where the program names them. Each page of an iterator is a call. A hybrid search is one
query for each of its answers. Bytes are those of the answer's protobuf message.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, Final

from tollspan.instrumentation.calls import Call, CallInstrumentor, Opening, WrapPoint, open_call
from tollspan.instrumentation.data_reads import FeatureRead
from tollspan.instrumentation.guard import guard
from tollspan.instrumentation.vectors import LAYER, Asked, answered, apart, query
from tollspan.instrumentation.wrapping import Patches
from tollspan.pricing import attributes as names

PROVIDER: Final = "milvus"

_BYTES: Final = guard("milvus.bytes")

_HANDLERS: Final = (
    ("pymilvus.client.grpc_handler:GrpcHandler", False),
    ("pymilvus.client.async_grpc_handler:AsyncGrpcHandler", True),
)
_CLIENTS: Final = (
    ("pymilvus.milvus_client.milvus_client:MilvusClient", False),
    ("pymilvus.milvus_client.async_milvus_client:AsyncMilvusClient", True),
)
_ANSWERS: Final = (
    ("pymilvus.client.search_result:SearchResult.__init__", 1, "res"),
    ("pymilvus.client.entity_helper:extract_dynamic_field_from_result", 0, "raw"),
)
"""What every answer of a search, and of a query, passes through; where the message stands among its arguments."""


class Records(FeatureRead):
    """State of a read of records."""

    __slots__ = ()


def _argument(args: tuple[Any, ...], kwargs: Mapping[str, Any], position: int, name: str) -> Any:
    return args[position] if len(args) > position else kwargs.get(name)


def _server(handler: Any) -> str | None:
    address = getattr(handler, "server_address", None)
    host = address.rpartition(":")[0] if isinstance(address, str) else ""
    return None if host in ("", "unix") else host


def _search(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Opening:
    """``search(self, collection_name, anns_field, param, limit, data=None, ids=None, ...)``

    Before 2.6 ``data`` stood behind the collection's name; nobody gives it by its place since.
    """
    asked = kwargs.get("data", args[2] if len(args) > 2 else None)
    asked = kwargs.get("ids") if asked is None else asked
    return _query(args, kwargs, 5, asked)


def _hybrid(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Opening:
    """``hybrid_search(self, collection_name, reqs, rerank, limit, ...)``"""
    requests = _argument(args, kwargs, 2, "reqs")
    return _query(args, kwargs, 4, getattr(requests[0], "data", None) if requests else None)


def _query(args: tuple[Any, ...], kwargs: dict[str, Any], limit: int, asked: Any) -> Opening:
    collection, top_k = (_argument(args, kwargs, n, name) for n, name in ((1, "collection_name"), (limit, "limit")))
    return query(PROVIDER, collection, top_k, queries=_number(asked), server=_server(args[0]))


def _number(asked: Any) -> int | None:
    """How many queries a list, an array or a sparse matrix of vectors holds."""
    shape = getattr(asked, "shape", None)
    if shape:
        return int(shape[0])
    return len(asked) if isinstance(asked, list) else None


def _answered(call: Call, result: Any) -> None:
    """A list of hits for each query; a future, where the program asked for one, tells nothing yet."""
    if not isinstance(result, list):
        answered(call, None)
        return
    call.state.queries = len(result)
    answered(call, sum(len(hits) for hits in result))


def _records(handler: Any, collection: Any, fields: Any, keys: Any) -> Opening:
    features = len(fields) if isinstance(fields, list) and fields and "*" not in fields else None
    read = Records(features)
    if keys is not None:
        read.keys = keys if isinstance(keys, list) else [keys]
    about: dict[str, Any] = {
        names.OPERATION: names.OPERATION_FEATURE_READ,
        names.PROVIDER: PROVIDER,
        names.FEATURE_STORE: PROVIDER,
        names.FEATURE_ACCESS: "online",
    }
    if (server := _server(handler)) is not None:
        about[names.SERVER_ADDRESS] = server
    name = names.OPERATION_FEATURE_READ
    if isinstance(collection, str) and collection:
        about[names.MODEL] = collection
        about[names.FEATURE_VIEWS] = [collection]
        name = f"{name} {collection}"
    return Opening(name, about, read)


def _by_key(position: int, fields: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Opening:
    """``get(self, collection_name, ids, output_fields=None, ...)``,
    ``query(self, collection_name, filter="", output_fields=None, timeout=None, ids=None, ...)``"""
    client = args[0]
    return _records(
        getattr(client, "_handler", None),
        _argument(args, kwargs, 1, "collection_name"),
        _argument(args, kwargs, fields, "output_fields"),
        _argument(args, kwargs, position, "ids"),
    )


def _by_filter(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Opening:
    """``query(self, collection_name, expr, output_fields=None, ...)`` of a handler."""
    collection, fields = (
        _argument(args, kwargs, n, name) for n, name in ((1, "collection_name"), (3, "output_fields"))
    )
    return _records(args[0], collection, fields, None)


def _read(call: Call, result: Any) -> None:
    """A list of records."""
    read: Records = call.state
    keys: Any = read.keys
    read.rows = len(result) if keys is None else len(keys)
    if read.features is not None:
        read.hits = len(result) * read.features
        read.misses = max(0, read.rows - len(result)) * read.features
    read.put(call.attributes)


def _query_point(target: str, request: Any, asynchronous: bool) -> WrapPoint:
    return WrapPoint(
        target=target, request=request, response=_answered, asynchronous=asynchronous, apart=apart, layer=LAYER
    )


def _read_point(target: str, request: Any, asynchronous: bool) -> WrapPoint:
    return WrapPoint(target=target, request=request, response=_read, asynchronous=asynchronous, layer=LAYER)


class MilvusInstrumentor(CallInstrumentor):
    """Spans for Milvus. Does not import it: it waits until the program does."""

    scope = __name__
    requires = ("pymilvus >= 2.5",)
    points = (
        *(
            _query_point(f"{handler}.{method}", request, asynchronous)
            for handler, asynchronous in _HANDLERS
            for method, request in (("search", _search), ("hybrid_search", _hybrid))
        ),
        *(_read_point(f"{handler}.query", _by_filter, asynchronous) for handler, asynchronous in _HANDLERS),
        *(
            _read_point(f"{client}.{method}", functools.partial(_by_key, *places), asynchronous)
            for client, asynchronous in _CLIENTS
            for method, places in (("get", (2, 3)), ("query", (5, 3)))
        ),
    )

    def patch(self, patches: Patches) -> None:
        for target, position, name in _ANSWERS:
            patches.add(target, functools.partial(_weighed, patches, position, name))


def _weighed(patches: Patches, position: int, name: str, original: Callable[..., Any]) -> Callable[..., Any]:
    """Note how large the message of an answer is."""

    @functools.wraps(original)
    def made(*args: Any, **kwargs: Any) -> Any:
        if patches.active:
            with _BYTES:
                call = open_call(LAYER)
                if call is not None and call.recording and type(call.state) in (Asked, Records):
                    call.state.bytes = _argument(args, kwargs, position, name).ByteSize()
        return original(*args, **kwargs)

    return made
