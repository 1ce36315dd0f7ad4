"""Ollama: ``chat``, ``generate``, ``embed``, ``embeddings`` and ``systemone`` of the ``ollama`` client.

In: the one method through which every call of a client goes to the server. It is found when a call is made, and so the
module's functions are seen too: ``ollama.chat`` and its kin are methods of a client that were bound when the module was
imported, and a program may have taken them before we came. Out: one CLIENT span a request, with the tokens that the
server counted. The provider is ``ollama``, unless the address is known to be another's: its models run on the user's
own machines, so that no list has a price for their tokens and their cost is compute, unless the user's book has one.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any, ClassVar, Final

from tollspan.instrumentation.calls import Call, CallInstrumentor, Opening, WrapPoint
from tollspan.instrumentation.providers import address_attributes
from tollspan.instrumentation.streams import observe, observe_async
from tollspan.instrumentation.tables import given, opening, told
from tollspan.instrumentation.usage import put_usage
from tollspan.pricing import attributes as names

__all__ = ["POINTS", "OllamaInstrumentor"]

PROVIDER: Final = "ollama"

OPERATIONS: Final[dict[str, str]] = {
    "/api/chat": "chat",
    "/api/generate": "text_completion",
    "/api/embed": "embeddings",
    "/api/embeddings": "embeddings",
    "/v1/systemone": "chat",
}
"""Path → operation. Every other path (listing, pulling and pushing models, searches) is no model call."""

COUNTS: Final[dict[str, str]] = {"prompt_eval_count": "prompt_tokens", "eval_count": "completion_tokens"}
"""Ollama's name of a count → the name by which usage is read. The server counts the whole prompt or, where all of it
was cached and older servers leave the count out, tells none."""


class State:
    """What a call has on `Call.state`.

    Attributes:
        provider: who bills it.
        stream: the generator that the client made, which sends the request when it is first read.
    """

    __slots__ = ("provider", "stream")

    def __init__(self, provider: str) -> None:
        self.provider = provider
        self.stream: weakref.ref[Any] | None = None


def request(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Opening | None:
    """Read the arguments of ``_request(cls, method, path, *, json, stream)``."""
    operation = OPERATIONS.get(args[3]) if len(args) > 3 else None
    if operation is None:
        return None
    body = kwargs.get("json") or {}
    options = body.get("options")
    client = address_attributes(args[0]._client.base_url, PROVIDER)
    return opening(
        operation,
        body.get("model"),
        options if isinstance(options, Mapping) else {},
        client,
        streamed=kwargs.get("stream") is True,
        state=State(client[names.PROVIDER_NAME]),
    )


def asked(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Mapping[str, Any]:
    """What is asked for: the body, which the client has made of whatever it was given."""
    return kwargs.get("json") or {}


def read(call: Call, response: Any) -> None:
    """Read a response of any kind."""
    told(call, response, model=names.RESPONSE_MODEL)
    reason = getattr(response, "done_reason", None)
    if isinstance(reason, str) and reason:
        call.attributes[names.RESPONSE_FINISH_REASONS] = [reason]
    fields = given(response)
    usage = fields.get("usage")  # System One
    if usage is None:
        usage = {name: value for count, name in COUNTS.items() if (value := fields.get(count)) is not None}
    if usage:
        put_usage(call, call.state.provider, usage)


def read_chunk(call: Call, chunk: Any) -> bool:
    """Read a part of a stream. True when it is the last one, which has the counts."""
    if not chunk.done:
        return False
    read(call, chunk)
    return True


def outlives(call: Call, result: Any) -> Any:
    """Stand in for the generators of streamed calls."""
    asynchronous = hasattr(result, "__anext__")
    if not asynchronous and not hasattr(result, "__next__"):
        return None
    call.state.stream = weakref.ref(result)
    return observe_async(call, result, read_chunk) if asynchronous else observe(call, result, read_chunk)


_RUNNING: Final = ("gi_running", "ag_running")
"""Attributes by which the two kinds of generator tell that they are being read."""


def finish(call: Call) -> None:
    """Say what an ending call is known not to have done."""
    attributes = call.attributes
    # The client's own mark for an error that came in a stream.
    if attributes.get(names.HTTP_STATUS, 0) < 0:
        del attributes[names.HTTP_STATUS]
    if (
        call.state.stream is None
        or names.STREAM_ABANDONED not in attributes
        or names.RESPONSE_TIME_TO_FIRST_CHUNK in attributes
    ):
        return
    # A stream that was given up without a first part, and is not waiting for it now, was never read.
    stream = call.state.stream()
    if stream is None or not any(getattr(stream, name, False) for name in _RUNNING):
        attributes[names.CALL_SENT] = False


POINTS: Final = tuple(
    WrapPoint(
        target=f"ollama._client:{client}._request",
        request=request,
        response=read,
        outlives=outlives,
        finish=finish,
        asked=asked,
        asynchronous=client == "AsyncClient",
    )
    for client in ("Client", "AsyncClient")
)
"""Every wrapped function."""


class OllamaInstrumentor(CallInstrumentor):
    """Spans for the ``ollama`` client. See `CallInstrumentor`."""

    scope: ClassVar[str] = "tollspan.instrumentation.ollama"
    requires: ClassVar[tuple[str, ...]] = ("ollama >= 0.4",)
    points: ClassVar[tuple[WrapPoint, ...]] = POINTS
