"""Chroma: nearest neighbours through a collection, in the process or over HTTP.

In: calls of ``Collection.query`` and ``Collection.search`` and of their asynchronous twins. Out: spans, see
`tollspan.instrumentation.vectors`. A call holds as many queries as it has embeddings or texts. Bytes are not told: the
client hands out what it decoded.
"""

from __future__ import annotations

from typing import Any, Final

from tollspan.instrumentation.calls import Call, CallInstrumentor, Opening, WrapPoint
from tollspan.instrumentation.vectors import LAYER, answered, apart, query

PROVIDER: Final = "chroma"

_DEFAULT: Final = 10
_COLLECTIONS: Final = (
    ("chromadb.api.models.Collection:Collection", False),
    ("chromadb.api.models.AsyncCollection:AsyncCollection", True),
)


def _query(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Opening:
    """``query(self, query_embeddings, query_texts, query_images, query_uris, ids, n_results=10, ...)``"""
    top_k = args[6] if len(args) > 6 else kwargs.get("n_results", _DEFAULT)
    return query(PROVIDER, args[0].name, top_k, queries=None)


def _search(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Opening:
    """``search(self, searches, ...)``: each search has a limit of its own."""
    return query(PROVIDER, args[0].name, queries=None)


def _answered(call: Call, result: Any) -> None:
    """A mapping of columns; each is a list with a list for each query."""
    found = result["ids"]
    call.state.queries = len(found)
    answered(call, sum(len(each) for each in found))


class ChromaInstrumentor(CallInstrumentor):
    """Spans for Chroma. Does not import it: it waits until the program does."""

    scope = __name__
    requires = ("chromadb >= 1.0",)
    points = tuple(
        WrapPoint(
            target=f"{collection}.{method}",
            request=request,
            response=_answered,
            asynchronous=asynchronous,
            apart=apart,
            layer=LAYER,
        )
        for collection, asynchronous in _COLLECTIONS
        for method, request in (("query", _query), ("search", _search))
    )
