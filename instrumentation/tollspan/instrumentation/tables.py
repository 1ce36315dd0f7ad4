"""What the tables of plain clients share: request parameters, models as fields, streams, attempts.

In: keyword arguments, response objects and streams of clients whose methods say all in their arguments (`mistral`,
`cohere`, `ollama`, `stainless`). Out: what a `WrapPoint` wants: openings, stand-ins for streams, and the number of
attempts. A client's module then is a table of methods and a reader or two.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, Final

from tollspan.instrumentation.calls import Call, Opening, open_call
from tollspan.instrumentation.guard import guard
from tollspan.instrumentation.streams import ReadChunk, observe, observe_async
from tollspan.instrumentation.wrapping import Patches
from tollspan.pricing import attributes as names

_ATTEMPT: Final = guard("tables.attempt")

DOUBLES: Final[tuple[tuple[str, str], ...]] = (
    ("temperature", names.REQUEST_TEMPERATURE),
    ("top_p", names.REQUEST_TOP_P),
    ("p", names.REQUEST_TOP_P),  # Cohere
)
"""Request parameters that are doubles → attribute."""

INTEGERS: Final[tuple[tuple[str, str], ...]] = (
    ("max_completion_tokens", names.REQUEST_MAX_TOKENS),
    ("max_tokens", names.REQUEST_MAX_TOKENS),
    ("num_predict", names.REQUEST_MAX_TOKENS),  # Ollama
)
"""Request parameters that are integers → attribute."""


def opening(
    operation: str,
    model: Any,
    asked: Mapping[str, Any],
    client: Mapping[str, Any],
    *,
    streamed: bool = False,
    state: Any = None,
) -> Opening:
    """What the span of a call begins with.

    Args:
        operation: ``gen_ai.operation.name``.
        model: model as asked for; what is not a string, as a library's mark for "not given", names none.
        asked: parameters by name.
        client: attributes of the client: provider, server.
        streamed: the answer is asked for as a stream.
        state: what the readers want to find again on the call.
    """
    attributes = dict(client)
    attributes[names.OPERATION_NAME] = operation
    name = operation
    if isinstance(model, str) and model:
        attributes[names.REQUEST_MODEL] = model
        name = f"{operation} {model}"
    if streamed:
        attributes[names.REQUEST_STREAM] = True
    for field, attribute in DOUBLES:
        value = asked.get(field)
        if isinstance(value, (int, float)):
            attributes[attribute] = float(value)
    for field, attribute in INTEGERS:
        value = asked.get(field)
        if type(value) is int and attribute not in attributes:
            attributes[attribute] = value
    return Opening(name, attributes, state)


def server(url: Any) -> dict[str, Any]:
    """``server.address`` and ``server.port`` of a URL, a string or an httpx one; nothing where it has no host."""
    if isinstance(url, str):
        from urllib.parse import urlsplit

        url = urlsplit(url)
        host: Any = url.hostname
    else:
        host = getattr(url, "host", None)
    if not isinstance(host, str) or not host:
        return {}
    return {names.SERVER_ADDRESS: host.lower(), names.SERVER_PORT: url.port or (80 if url.scheme == "http" else 443)}


def given(model: Any) -> Mapping[str, Any]:
    """Fields that a response really had: a pydantic model's without its defaults, which may be 0; a dict's own."""
    if isinstance(model, Mapping):
        return model
    own = getattr(model, "__dict__", None)
    if not isinstance(own, dict):
        return {}
    told = getattr(model, "__pydantic_fields_set__", None)
    if told is not None:
        own = {field: own[field] for field in told if field in own}
    extra = getattr(model, "__pydantic_extra__", None)
    return {**own, **extra} if isinstance(extra, dict) and extra else own


def told(call: Call, response: Any, **fields: str) -> None:
    """Put strings of a response on the span: ``told(call, response, id=RESPONSE_ID)``."""
    own = response if isinstance(response, Mapping) else getattr(response, "__dict__", {})
    for field, attribute in fields.items():
        value = own.get(field)
        if isinstance(value, str) and value:
            call.attributes[attribute] = value


def word(value: Any) -> str | None:
    """A string, or the value of an enumeration of strings; None for anything else."""
    value = getattr(value, "value", value)
    return value if isinstance(value, str) and value else None


def outliving(read_chunk: ReadChunk) -> Callable[[Call, Any], Any]:
    """For `WrapPoint.outlives`: whatever is an iterator is a stream, of a class of the client's or a generator."""

    def outlives(call: Call, result: Any) -> Any:
        if hasattr(result, "__next__"):
            return observe(call, result, read_chunk)
        if hasattr(result, "__anext__"):
            return observe_async(call, result, read_chunk)
        return None

    return outlives


class Attempts:
    """Counts the attempts that a client makes inside one call.

    In: functions of the client that every attempt passes through once. Out: `Call.retries`, and `CALL_SENT` False on a
    call that failed before there was an attempt. In a version of the client that lacks one of them nothing is said.

    Args:
        targets: the functions, as `Patches.add` takes them.
        needed: how many of them have to be there for their silence to mean something; all, when it is not given.
    """

    def __init__(self, *targets: str, needed: int | None = None) -> None:
        self.targets = targets
        self._needed = len(targets) if needed is None else needed
        self._hooked: set[str] = set()

    def patch(self, patches: Patches) -> None:
        """Hook the functions."""
        for target in self.targets:
            patches.add(target, functools.partial(self._hook, target))

    def known(self, call: Call) -> None:
        """For `WrapPoint.finish`: say that no request went out, where there would have been word of one."""
        attributes = call.attributes
        if (
            not call.sent
            and names.ERROR_TYPE in attributes
            and names.HTTP_STATUS not in attributes
            and len(self._hooked) >= self._needed
        ):
            attributes[names.CALL_SENT] = False

    def _hook(self, target: str, original: Callable[..., Any]) -> Callable[..., Any]:
        self._hooked.add(target)

        # One for functions of every kind: what it returns, an awaitable or a context manager, is the caller's.
        @functools.wraps(original)
        def attempt(*args: Any, **kwargs: Any) -> Any:
            with _ATTEMPT:
                call = open_call()
                if call is not None:
                    call.sent = True
                    call.retries = 0 if call.retries is None else call.retries + 1
            return original(*args, **kwargs)

        return attempt
