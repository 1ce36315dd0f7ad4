"""Realtime connections of the ``mistralai`` client: one span for each session whose events are read.

In: ``events()`` of a connection, by which the program and the client's own ``transcribe_stream`` and ``speak_stream``
read it. Out: a span ``transcription {model}`` or ``speech {model}``, from the first event that is asked for to the one
that says what was used; so its duration includes what the session waited for. A session that is left before has used
what nobody was told: its span says that it was abandoned, and is unpriced.

The connection keeps the session and its model. It bears no request as a whole, and so has no fingerprint.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, Final

from tollspan.instrumentation import network_sockets
from tollspan.instrumentation.calls import Call, Opening, WrapPoint
from tollspan.instrumentation.providers import address_attributes
from tollspan.instrumentation.streams import observe_async
from tollspan.instrumentation.tables import given, opening, told
from tollspan.instrumentation.usage import put_usage
from tollspan.instrumentation.wrapping import Patches
from tollspan.pricing import attributes as names

_NOTHING: Final[Mapping[str, Any]] = {}

CONNECTIONS: Final[dict[str, str]] = {
    "mistralai.extra.realtime.connection:RealtimeConnection": "transcription",
    "mistralai.extra.realtime.speech:RealtimeSpeechConnection": "speech",
}
"""Class of a connection → ``gen_ai.operation.name``."""

DONE: Final = frozenset({"transcription.done", "speech.audio.done"})
"""Events that tell the usage: of the whole session, once."""


def _request(operation: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Opening:
    connection = args[0]
    socket = connection._websocket
    # What was asked for when the socket was opened; it keeps no address of its own.
    host = socket.request.headers["Host"]
    scheme = "http" if socket.transport.get_extra_info("ssl_object") is None else "https"
    client = address_attributes(f"{scheme}://{host}", "mistral_ai")
    session = connection.session
    return opening(operation, session.model, {}, client, streamed=True, state=(session.request_id, socket))


def read_event(call: Call, event: Any) -> bool:
    """Read an event. True when nothing more is to come that matters."""
    fields: Mapping[str, Any] = getattr(event, "__dict__", _NOTHING)
    if isinstance(content := fields.get("content"), Mapping) and fields.get("error") is not None:
        fields = content  # an event that this version of the client cannot parse
    kind = fields.get("type") or fields.get("TYPE")  # as some of version 1 call it
    if kind == "error":
        failure = given(fields.get("error"))
        message = failure.get("message")
        call.note_failure(str(failure.get("code") or "error"), message if isinstance(message, str) else None)
        return True
    if kind not in DONE:
        return False
    told(call, fields, model=names.RESPONSE_MODEL)
    put_usage(call, call.opened[names.PROVIDER_NAME], given(fields.get("usage")) or None)
    return True


def _outlives(call: Call, events: Any) -> Any:
    return observe_async(call, events, read_event)


def _finish(call: Call) -> None:
    identity, socket = call.state
    if isinstance(identity, str):
        call.attributes[names.RESPONSE_ID] = identity
    network_sockets.tell(call, socket)
    # The first event says that the session is there, and came before anybody asked anything.
    call.attributes.pop(names.RESPONSE_TIME_TO_FIRST_CHUNK, None)


POINTS: Final = tuple(
    WrapPoint(
        # Not asynchronous: it returns an asynchronous generator at once.
        target=f"{connection}.events",
        request=functools.partial(_request, operation),
        asked=lambda args, kwargs: _NOTHING,
        outlives=_outlives,
        finish=_finish,
    )
    for connection, operation in CONNECTIONS.items()
)
"""Every wrapped function."""


def patch(patches: Patches) -> None:
    """Count the bytes of connections."""
    network_sockets.watch(patches)
