"""Live sessions of the ``google-genai`` client: one span for each turn that is received.

In: ``AsyncSession.receive()``, which gives the messages of one turn. Out: a span ``generate_content {model}`` a turn,
from the call of ``receive()`` to the turn's end; so its duration includes what the session waited for.

The service sends usage once or several times in a turn, and bills each generation for its whole prompt. Messages with
the same prompt are of one generation and the last of them counts; another prompt, after a tool's answer for instance,
is another generation, and its tokens come on top.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final

from tollspan.instrumentation import network_sockets
from tollspan.instrumentation.calls import Call, Opening
from tollspan.instrumentation.google_genai.providers import client_attributes
from tollspan.instrumentation.google_genai.readers import GENERATE, State, fields, grounded, short_model, told
from tollspan.instrumentation.guard import guard
from tollspan.instrumentation.streams import observe_async
from tollspan.instrumentation.wrapping import Patches
from tollspan.pricing import attributes as names

_CONNECT: Final = guard("google_genai.live.connect")
_TARGET: Final = "google.genai.live:AsyncLive.connect"

_models: Final[weakref.WeakKeyDictionary[Any, str]] = weakref.WeakKeyDictionary()
"""Session → its model, which it does not keep."""


class _Turn(State):
    """State of a turn; ``generations`` holds the last usage object of each, ``socket`` is what it goes over."""

    __slots__ = ("generations", "socket")

    generations: list[Mapping[str, Any]]
    socket: Any


def patch(patches: Patches) -> None:
    """Wrap the opening of sessions, which alone knows the model."""
    network_sockets.watch(patches)
    patches.add(_TARGET, functools.partial(_connect, patches))


def request(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Opening:
    """Reader of ``receive``, for `WrapPoint.request`."""
    session = args[0]
    attributes = client_attributes(session._api_client)
    attributes[names.OPERATION_NAME] = GENERATE
    attributes[names.REQUEST_STREAM] = True
    model = _models.get(session)
    name = GENERATE
    if model is not None:
        attributes[names.REQUEST_MODEL] = model
        name = f"{GENERATE} {model}"
    state = _Turn(None, attributes[names.PROVIDER_NAME], model)
    state.generations = []
    state.socket = getattr(session, "_ws", None)
    return Opening(name, attributes, state)


def outlives(call: Call, messages: Any) -> Any:
    """The turn goes on while its messages are read."""
    return observe_async(call, messages, read_message)


def read_message(call: Call, message: Any) -> bool:
    """Read a ``LiveServerMessage``."""
    message = fields(message)
    state: _Turn = call.state
    usage = message.get("usage_metadata")
    if usage is not None:
        usage = fields(usage)
        generations = state.generations
        if generations and generations[-1].get("prompt_token_count") == usage.get("prompt_token_count"):
            generations[-1] = usage
        else:
            generations.append(usage)
    content = fields(message.get("server_content"))
    grounded(state, content.get("grounding_metadata"))
    if content.get("turn_complete") is True:
        state.reasons[0] = "interrupted" if content.get("interrupted") is True else "stop"
        state.complete = bool(state.generations)
    return state.complete


def finish(call: Call) -> None:
    """Put the turn's usage on the span."""
    state: _Turn = call.state
    network_sockets.tell(call, state.socket)
    if state.generations:
        state.usage = added(state.generations)
    elif names.RESPONSE_TIME_TO_FIRST_CHUNK not in call.attributes:
        call.attributes[names.CALL_SENT] = False  # a turn of which nothing came: a session that was closed
    told(call)


def added(generations: list[Mapping[str, Any]]) -> Mapping[str, Any]:
    """Usage of several generations: counts, and counts by modality, summed."""
    if len(generations) == 1:
        return generations[0]
    whole: dict[str, Any] = {}
    for usage in generations:
        for name, value in usage.items():
            if type(value) is int:
                whole[name] = whole.get(name, 0) + value
            elif isinstance(value, list):
                # Items of one modality are summed where they are read.
                whole[name] = [*whole.get(name, ()), *value]
            elif value is not None:
                whole[name] = value
    return whole


def _connect(patches: Patches, original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    @asynccontextmanager
    async def connect(*args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        async with original(*args, **kwargs) as session:
            if patches.active:
                with _CONNECT:
                    model = short_model(kwargs.get("model"))
                    if model is not None:
                        _models[session] = model
            yield session

    return connect
