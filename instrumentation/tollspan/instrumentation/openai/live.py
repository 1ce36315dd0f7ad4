"""Live sessions: one span for each session, and one for each answer that it had others give.

In: events as a connection parses them, of whichever kind it is: the session's own, a sideband's beside a call that runs
elsewhere, a fork's. Out: when a session is closed, a span ``chat {model}`` with the seconds that it lasted, which is
what it is billed by; the service repeats them as they grow, and the last word counts. What the session delegates is
billed by the model that does it: a span for each response, and for each decision.

A session and a response are seen by all who are connected, so their spans have derived identity (`once`). A decision
has no id, and has a span where it is seen: two who listen to one session see it twice. A session tells no beginning:
its span begins with the day (UTC). One whose end is not told is billed by the last word before its connection was
closed; but not where a sideband leaves, because the session goes on without it.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Mapping
from typing import Any, Final

from tollspan.instrumentation import once
from tollspan.instrumentation.guard import guard
from tollspan.instrumentation.openai.background import reason
from tollspan.instrumentation.openai.media import DECISION, DECISIONS
from tollspan.instrumentation.openai.readers import _fields
from tollspan.instrumentation.openai.realtime import address_of
from tollspan.instrumentation.usage import put_usage
from tollspan.instrumentation.wrapping import Patches
from tollspan.pricing import attributes as names

ONCE: Final = once.of("openai")

CONNECTIONS: Final = (
    ("openai.resources.live.live:%sLiveConnection", True),
    ("openai.resources.live.sideband:%sSidebandConnection", False),
    ("openai.resources.live.forks:%sForksConnection", True),
)
"""Classes of connections, and whether the session ends with them."""

_EVENT: Final = guard("openai.live.event")
_CLOSED: Final = guard("openai.live.closed")
_SECONDS: Final = names.usage("audio.seconds")
_DONE: Final = frozenset({"response.completed", "response.incomplete", "response.failed"})


class _Session:
    """What is known of the session of one connection.

    Attributes:
        attributes: provider and server.
        told: its fields, as last told.
        seconds: how long it lasted, as last told; None before anything was told, and when it was billed.
    """

    __slots__ = ("attributes", "seconds", "told")

    def __init__(self, connection: Any) -> None:
        self.attributes, _ = address_of(connection)
        self.told: Mapping[str, Any] = {}
        self.seconds: float | None = None

    def bill(self, why: str | None = None) -> None:
        """Make the session's span, if it has told what it used."""
        seconds, self.seconds = self.seconds, None
        identity, model = self.told.get("id"), self.told.get("model")
        if seconds is None or not isinstance(identity, str):
            return
        attributes = {**self.attributes, names.OPERATION_NAME: "chat", names.RESPONSE_ID: identity}
        if isinstance(model, str):
            attributes[names.REQUEST_MODEL] = attributes[names.RESPONSE_MODEL] = model
        if why is not None:
            attributes[names.RESPONSE_FINISH_REASONS] = [why]
        ONCE.emit(
            identity,
            f"chat {model}" if isinstance(model, str) else "chat",
            attributes,
            lambda call: call.attributes.update({_SECONDS: seconds}),
            start_ns=None,
        )


_sessions: Final[weakref.WeakKeyDictionary[Any, _Session]] = weakref.WeakKeyDictionary()


def patch(patches: Patches) -> None:
    """Look at every event that a connection parses, and at the end of those that a session ends with."""
    for target, ends in CONNECTIONS:
        for prefix in ("", "Async"):
            patches.add(f"{target % prefix}.parse_event", functools.partial(_parsing, patches))
            if ends:
                ONCE.after(patches, f"{target % prefix}.close", _left, bool(prefix))


def _parsing(patches: Patches, original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def parse_event(self: Any, *args: Any, **kwargs: Any) -> Any:
        event = original(self, *args, **kwargs)
        if patches.active:
            with _EVENT:
                read = _READERS.get(getattr(event, "type", None))  # type: ignore[arg-type]
                if read is not None and not once.suppressed():
                    known = _sessions.get(self)
                    if known is None:
                        known = _sessions[self] = _Session(self)
                    read(known, _fields(event))
        return event

    return parse_event


def _left(instance: Any, kwargs: dict[str, Any], args: tuple[Any, ...], result: Any) -> None:
    known = _sessions.get(instance)
    if known is not None:
        known.bill()


def _told(known: _Session, event: Mapping[str, Any]) -> None:
    session = _fields(event.get("session"))
    if known.told.get("id") not in (None, session.get("id")):
        known.bill()  # connected anew, to another one
    known.told = session


def _used(known: _Session, event: Mapping[str, Any]) -> None:
    seconds: Any = _fields(event.get("usage")).get("seconds")
    if type(seconds) in (int, float) and seconds >= 0:
        known.seconds = float(seconds)


def _closed(known: _Session, event: Mapping[str, Any]) -> None:
    _told(known, event)
    _used(known, event)
    why = event.get("reason")
    known.bill(why if isinstance(why, str) else None)


def _answered(known: _Session, event: Mapping[str, Any]) -> None:
    nested = _fields(event.get("event"))
    fields = _fields(nested.get("response"))
    identity, usage, model = fields.get("id"), fields.get("usage"), fields.get("model")
    if nested.get("type") not in _DONE or usage is None or not isinstance(identity, str):
        return
    attributes = {
        **known.attributes,
        names.OPERATION_NAME: "chat",
        names.OPENAI_API_TYPE: "responses",
        names.RESPONSE_ID: identity,
        names.RESPONSE_FINISH_REASONS: [reason(fields)],
    }
    if isinstance(model, str):
        attributes[names.RESPONSE_MODEL] = model
    provider = attributes[names.PROVIDER_NAME]
    ONCE.emit(
        identity,
        f"chat {model}" if isinstance(model, str) else "chat",
        attributes,
        lambda call: put_usage(call, provider, usage, model=model, response=fields, form="openai"),
        start_ns=once.instant(fields.get("created_at")),
        end_ns=once.instant(fields.get("completed_at")),
    )


def _decided(known: _Session, event: Mapping[str, Any]) -> None:
    decision = _fields(_fields(event.get("event")).get("decision"))
    usage, model = decision.get("usage"), decision.get("model")
    if usage is None:
        return
    attributes = {**known.attributes, names.OPERATION_NAME: DECISION}
    if attributes[names.PROVIDER_NAME] == "openai":
        attributes[names.PROVIDER_NAME] = DECISIONS
    if isinstance(model, str):
        attributes[names.RESPONSE_MODEL] = model
    ONCE.record(
        f"{DECISION} {model}" if isinstance(model, str) else DECISION,
        attributes,
        lambda call: put_usage(call, attributes[names.PROVIDER_NAME], usage, model=model, form="openai"),
    )


_READERS: Final[Mapping[str, Callable[[_Session, Mapping[str, Any]], None]]] = {
    "session.started": _told,
    "session.updated": _told,
    "session.usage.updated": _used,
    "session.closed": _closed,
    "response.event": _answered,
    "decision.event": _decided,
}
"""Type of an event → its reader. All others, and there are many a second, are not looked at."""
