"""Redis: nearest neighbours through its search module, also by libraries that stand on redis-py.

In: calls of ``client.ft(index).search``. Out: spans, see `tollspan.instrumentation.vectors`. A search without a vector
in it is none. Bytes are not told: the client hands out what it decoded.
"""

from __future__ import annotations

import re
from typing import Any, Final

from tollspan.instrumentation.calls import Call, CallInstrumentor, Opening, WrapPoint
from tollspan.instrumentation.vectors import LAYER, answered, apart, query

PROVIDER: Final = "redis"

_NEAREST: Final = re.compile(r"\[\s*KNN\s+(\$?\w+)", re.IGNORECASE)
_IN_RANGE: Final = "VECTOR_RANGE"


def _request(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Opening | None:
    """``search(self, query, query_params=None)``"""
    asked: Any = args[1] if len(args) > 1 else kwargs["query"]
    text = asked if isinstance(asked, str) else asked.query_string()
    nearest = _NEAREST.search(text)
    if nearest is None and _IN_RANGE not in text.upper():
        return None
    given = (args[2] if len(args) > 2 else kwargs.get("query_params")) or {}
    search = args[0]
    return query(PROVIDER, search.index_name, _top_k(nearest, given), server=_server(search))


def _top_k(nearest: re.Match[str] | None, given: Any) -> int | None:
    """A number in the query, or the parameter that it names."""
    if nearest is None:
        return None
    number = nearest[1]
    if number.startswith("$"):
        number = given.get(number[1:])
    return int(number) if str(number).isdigit() else None


def _server(search: Any) -> Any:
    pool = getattr(getattr(search, "client", None), "connection_pool", None)
    return getattr(pool, "connection_kwargs", {}).get("host")


def _answered(call: Call, result: Any) -> None:
    """A `Result`; in a pipeline the pipeline, which tells nothing yet."""
    found = getattr(result, "docs", None)
    answered(call, len(found) if isinstance(found, list) else None)


class RedisSearchInstrumentor(CallInstrumentor):
    """Spans for searches of vectors in Redis. Does not import its client: it waits until the program does."""

    scope = __name__
    requires = ("redis >= 5",)
    points = tuple(
        WrapPoint(
            target=f"redis.commands.search.commands:{commands}.search",
            request=_request,
            response=_answered,
            asynchronous=asynchronous,
            apart=apart,
            layer=LAYER,
        )
        for commands, asynchronous in (("SearchCommands", False), ("AsyncSearchCommands", True))
    )
