"""LanceDB: nearest neighbours, by vector, by text and by both.

In: queries of a table when they are run, ``to_arrow`` and ``to_batches`` of their builders, which everything else
(``to_list``, ``to_pandas`` ...) stands on. Out: spans, see `tollspan.instrumentation.vectors`. A scan without a vector
or text is none. Bytes are those of the table that came back; batches, which the program reads when it likes, tell
neither records nor bytes.
"""

from __future__ import annotations

from typing import Any, Final

from tollspan.instrumentation.calls import Call, CallInstrumentor, Opening, WrapPoint
from tollspan.instrumentation.vectors import LAYER, answered, apart, query

PROVIDER: Final = "lancedb"

_SYNCHRONOUS: Final = ("LanceVectorQueryBuilder", "LanceFtsQueryBuilder", "LanceHybridQueryBuilder")
_ASYNCHRONOUS: Final = frozenset({"AsyncVectorQuery", "AsyncFTSQuery", "AsyncHybridQuery"})


def _request(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Opening:
    """``to_arrow(self, *, timeout=None)`` of a builder."""
    builder = args[0]
    return query(PROVIDER, _table(builder), getattr(builder, "_limit", None))


def _async_request(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Opening | None:
    """``to_arrow(self, timeout=None)`` of any query."""
    asked = args[0]
    if type(asked).__name__ not in _ASYNCHRONOUS:
        return None
    return query(PROVIDER, _table(asked), asked.to_query_object().limit)


def _table(asked: Any) -> Any:
    return getattr(getattr(asked, "_table", None), "name", None)


def _answered(call: Call, result: Any) -> None:
    """An Arrow table, or a reader of batches."""
    call.state.bytes = getattr(result, "nbytes", None)
    answered(call, getattr(result, "num_rows", None))


def _point(target: str, request: Any, asynchronous: bool) -> WrapPoint:
    return WrapPoint(
        target=f"lancedb.query:{target}",
        request=request,
        response=_answered,
        asynchronous=asynchronous,
        apart=apart,
        layer=LAYER,
    )


class LanceDBInstrumentor(CallInstrumentor):
    """Spans for LanceDB. Does not import it: it waits until the program does."""

    scope = __name__
    requires = ("lancedb >= 0.34",)
    points = (
        *(_point(f"{name}.to_arrow", _request, False) for name in _SYNCHRONOUS),
        *(_point(f"{name}.to_batches", _request, False) for name in _SYNCHRONOUS),
        _point("AsyncQueryBase.to_arrow", _async_request, True),
        *(_point(f"{name}.to_batches", _async_request, True) for name in sorted(_ASYNCHRONOUS)),
    )
