"""Vector stores: a span for each call that asks for nearest neighbours, with what it asked for and what came back.

In: calls of `qdrant`, `chroma`, `lance`, `redisearch`, `milvus` and `pgvector`, each a table over `calls.py` with
readers of its own. Out: spans ``vector_query {collection}`` with ``vector.queries``, top-k, how many records were
returned, and their bytes where the client knows them: as they came over the wire, or as the table of Arrow's that the
query made. Where it stands: what the tables share.

Feature stores are of the same layer: Feast's search of documents in one of these stores is counted once, there. Any
other read of features is apart from the query that somebody wrote it with.
"""

from __future__ import annotations

from typing import Any, Final

from tollspan.instrumentation.calls import Call, Opening
from tollspan.instrumentation.data_reads import LAYER, READ_BYTES, count
from tollspan.pricing import attributes as names

__all__ = ["LAYER", "Asked", "answered", "apart", "query"]

QUERIES: Final = names.usage("vector.queries")


class Asked:
    """State of a vector query.

    Attributes:
        queries: how many it holds; None where only the answer tells.
        bytes: of its answer; None where the client does not tell.
    """

    __slots__ = ("bytes", "queries")

    def __init__(self, queries: int | None = 1) -> None:
        self.queries = queries
        self.bytes: int | None = None


def query(provider: str, collection: Any, top_k: Any = None, *, queries: int | None = 1, server: Any = None) -> Opening:
    """What the span of a vector query begins with.

    Args:
        provider: whose store, ``qdrant`` ...
        collection: name of the collection, table or index.
        top_k: nearest neighbours asked for by each query.
        queries: how many queries the call holds; None where only the answer tells.
        server: host of the store; None for one in the process.
    """
    attributes: dict[str, Any] = {names.OPERATION: names.OPERATION_VECTOR_QUERY, names.PROVIDER: provider}
    if (number := count(top_k)) is not None:
        attributes[names.VECTOR_TOP_K] = number
    if isinstance(server, str) and server:
        attributes[names.SERVER_ADDRESS] = server
    name = names.OPERATION_VECTOR_QUERY
    if isinstance(collection, str) and collection:
        attributes[names.MODEL] = collection
        name = f"{name} {collection}"
    return Opening(name, attributes, Asked(queries))


def answered(call: Call, returned: Any) -> None:
    """Put what a query used on its span; ``returned`` is its number of records, None where that is not known."""
    asked: Asked = call.state
    known = {QUERIES: asked.queries, names.VECTOR_RETURNED: count(returned), READ_BYTES: count(asked.bytes)}
    call.attributes.update({name: value for name, value in known.items() if value is not None})


def apart(outer: Call, kwargs: dict[str, Any]) -> bool:
    """Whether a vector query inside another call of its layer is a query of its own."""
    return outer.opened.get(names.OPERATION) != names.OPERATION_VECTOR_QUERY
