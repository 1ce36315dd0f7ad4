"""Realtime: one span for each response that a connection gives, and for each transcription of what was said to it.

In: events as the connection parses them, whether they came through ``recv``, by iterating or by hand. Out: when a
response is done, a span ``chat {model}`` from the event that created it to the one that ended it, with the usage of the
latter; when the input's transcription is done, which another model does and bills, a span ``transcription {model}``.
The Responses API over a WebSocket has the same shape, with events of its own. Events repeat nothing, so a connection
remembers the ids it has seen, and one parsed twice counts once.

Which model answers is told by the session's events, who bills by where the socket is connected. What is said is told by
events too, and read only where the user has switched content on (`realtime_content`).
"""

from __future__ import annotations

import functools
import time
import weakref
from collections.abc import Callable, Mapping
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

from tollspan.instrumentation import extras, network_sockets, once
from tollspan.instrumentation.calls import Call
from tollspan.instrumentation.guard import guard
from tollspan.instrumentation.openai import background
from tollspan.instrumentation.openai.readers import _fields
from tollspan.instrumentation.providers import provider_of
from tollspan.instrumentation.usage import put_usage
from tollspan.instrumentation.wrapping import Patches
from tollspan.pricing import attributes as names

ONCE: Final = once.of("openai")

_EVENT: Final = guard("openai.realtime.event")
_CONTENT: Final = guard("content.response")
_SESSION: Final = frozenset({"session.created", "session.updated"})
_TRANSCRIBED: Final = "conversation.item.input_audio_transcription.completed"
_DONE: Final = frozenset({"response.done", "response.completed", "response.incomplete", "response.failed"})
_ITEM: Final = frozenset({"conversation.item.created", "conversation.item.added", "conversation.item.done"})
_MOST_SEEN: Final = 256

CONNECTIONS: Final[tuple[tuple[str, str], ...]] = (
    ("openai.resources.realtime.realtime:%sRealtimeConnection", "realtime"),
    ("openai.resources.beta.realtime.realtime:%sRealtimeConnection", "realtime"),
    ("openai.resources.responses.responses:%sResponsesConnection", "responses"),
    ("openai.resources.beta.responses.responses:%sResponsesConnection", "responses"),
)
"""Classes of connections, and the API that they speak."""


class _Connection:
    """What is known of one connection.

    Attributes:
        attributes: provider and server.
        model: model that answers.
        transcriber: model that transcribes what is said.
        whole: the connection itself, while it lives.
        started: response id → when it was created, ns since the epoch.
        seen: ids that were billed, the oldest first.
        heard: what is being said, where the user has asked for content.
    """

    __slots__ = ("attributes", "heard", "model", "seen", "started", "transcriber", "whole")

    def __init__(self, connection: Any) -> None:
        self.attributes, self.model = address_of(connection)
        self.whole = weakref.ref(connection)
        self.transcriber: str | None = None
        self.started: dict[str, int] = {}
        self.seen: dict[str, None] = {}
        self.heard: Any = None
        if extras.of(ONCE.scope).capture is not None:
            from tollspan.instrumentation.openai.realtime_content import Heard

            self.heard = Heard()

    @property
    def socket(self) -> Any:
        """What it goes over now: it may have been connected anew."""
        return getattr(self.whole(), "_connection", None)

    def new(self, identifier: str) -> bool:
        if identifier in self.seen:
            return False
        if len(self.seen) >= _MOST_SEEN:
            del self.seen[next(iter(self.seen))]
        self.seen[identifier] = None
        return True


_connections: Final[weakref.WeakKeyDictionary[Any, _Connection]] = weakref.WeakKeyDictionary()


def patch(patches: Patches) -> None:
    """Look at every event that a connection parses."""
    network_sockets.watch(patches)
    for target, api in CONNECTIONS:
        for prefix in ("", "Async"):
            patches.add(f"{target % prefix}.parse_event", functools.partial(_parsing, patches, api))


def _parsing(patches: Patches, api: str, original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def parse_event(self: Any, *args: Any, **kwargs: Any) -> Any:
        event = original(self, *args, **kwargs)
        if patches.active:
            with _EVENT:
                kind = getattr(event, "type", None)
                read = _READERS.get(kind)  # type: ignore[arg-type]
                if read is not None and not once.suppressed():
                    known = _connections.get(self)
                    if known is None:
                        known = _connections[self] = _Connection(self)
                    read(known, api, event)
        return event

    return parse_event


def _session(known: _Connection, api: str, event: Any) -> None:
    session = _fields(_fields(event).get("session"))
    model = session.get("model")
    if isinstance(model, str):
        known.model = model
    transcription = _fields(_fields(_fields(session.get("audio")).get("input")).get("transcription"))
    model = (transcription or _fields(session.get("input_audio_transcription"))).get("model")
    if isinstance(model, str):
        known.transcriber = model
    if known.heard is not None:
        with _CONTENT:
            known.heard.session(session)


def _created(known: _Connection, api: str, event: Any) -> None:
    response_id = _fields(_fields(event).get("response")).get("id")
    if isinstance(response_id, str):
        if len(known.started) >= _MOST_SEEN:
            known.started.clear()
        known.started[response_id] = time.time_ns()


def _done(known: _Connection, api: str, event: Any) -> None:
    fields = _fields(_fields(event).get("response"))
    response_id, usage = fields.get("id"), fields.get("usage")
    if not isinstance(response_id, str) or not known.new(response_id):
        return
    began = known.started.pop(response_id, None)
    model = fields.get("model")
    model = model if isinstance(model, str) else known.model
    attributes = {
        **known.attributes,
        names.OPERATION_NAME: "chat",
        names.OPENAI_API_TYPE: api,
        names.RESPONSE_ID: response_id,
        names.REQUEST_STREAM: True,
    }
    if model:
        attributes[names.REQUEST_MODEL] = attributes[names.RESPONSE_MODEL] = model
    status = fields.get("status")
    if isinstance(status, str):
        attributes[names.RESPONSE_FINISH_REASONS] = [background.reason(fields)]
    conversation = fields.get("conversation_id") or _fields(fields.get("conversation")).get("id")
    if isinstance(conversation, str):
        attributes[names.CONVERSATION_ID] = conversation
    said = None
    if known.heard is not None:
        with _CONTENT:
            said = known.heard.turn(fields)

    def fill(call: Call) -> None:
        call.content = said
        provider = known.attributes[names.PROVIDER_NAME]
        if usage is not None:
            put_usage(call, provider, usage, model=model, response=fields, form="openai")
        if status == "failed":
            error = _fields(fields.get("error")) or _fields(_fields(fields.get("status_details")).get("error"))
            call.note_failure(error.get("code") or error.get("type") or "failed", error.get("message"))

    ONCE.record(f"chat {model}" if model else "chat", attributes, fill, start_ns=began, socket=known.socket)


def _added(known: _Connection, api: str, event: Any) -> None:
    if known.heard is not None:
        with _CONTENT:
            known.heard.item(_fields(event).get("item"))


def _transcribed(known: _Connection, api: str, event: Any) -> None:
    fields = _fields(event)
    if known.heard is not None:
        with _CONTENT:
            known.heard.transcribed(fields.get("item_id"), fields.get("content_index"), fields.get("transcript"))
    item, usage = fields.get("item_id"), fields.get("usage")
    if usage is None or not known.new(f"{item}:{fields.get('content_index')}"):
        return
    model = known.transcriber
    attributes = {**known.attributes, names.OPERATION_NAME: "transcription", names.OPENAI_API_TYPE: api}
    if model:
        attributes[names.REQUEST_MODEL] = model
    provider = known.attributes[names.PROVIDER_NAME]
    name = f"transcription {model}" if model else "transcription"
    ONCE.record(
        name,
        attributes,
        lambda call: put_usage(call, provider, usage, model=model, form="openai"),
        socket=known.socket,
    )


_READERS: Final[Mapping[str, Callable[[_Connection, str, Any], None]]] = {
    **dict.fromkeys(_SESSION, _session),
    "response.created": _created,
    **dict.fromkeys(_DONE, _done),
    _TRANSCRIBED: _transcribed,
    **dict.fromkeys(_ITEM, _added),
}
"""Type of an event → its reader. All others, and there are a hundred a second, are not looked at."""


def address_of(connection: Any) -> tuple[dict[str, Any], str | None]:
    """Provider and server of a connection, as attributes, and the model in its address."""
    host, port, model = _address(connection)
    attributes: dict[str, Any] = {names.PROVIDER_NAME: provider_of(host, port) if host else "openai"}
    if host:
        attributes[names.SERVER_ADDRESS] = host
    if port:
        attributes[names.SERVER_PORT] = port
    return attributes, model


def _address(connection: Any) -> tuple[str | None, int | None, str | None]:
    """Host, port and the model in the address that the socket is connected to; None for what it does not tell."""
    request = getattr(getattr(connection, "_connection", None), "request", None)
    headers, path = getattr(request, "headers", None), getattr(request, "path", None)
    host = headers.get("Host") if headers is not None else None
    if not isinstance(host, str):
        return None, None, None
    parts = urlsplit(f"//{host}")
    models = parse_qs(urlsplit(path).query) if isinstance(path, str) else {}
    model = next((models[key][0] for key in ("model", "deployment") if key in models), None)
    return parts.hostname, parts.port or 443, model
