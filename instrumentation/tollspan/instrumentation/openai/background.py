"""Responses that run in the background: asked for by one call, told by another, billed once.

In: ``Response`` objects with ``background`` set, from whichever call gave them: ``create``, its stream, ``retrieve``,
``cancel``. Out: the usage, when the response has ended, on a span of derived identity (`once`), and never on the one of
the call that saw it. The call that asked says that its usage comes later. An ordinary response that is retrieved again
has had its usage on the span of its ``create``; it is told by not having been made in the background.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from tollspan.instrumentation import once
from tollspan.instrumentation.calls import Call, Opening
from tollspan.instrumentation.openai.providers import client_attributes
from tollspan.instrumentation.usage import put_usage
from tollspan.pricing import attributes as names

ONCE: Final = once.of("openai")

FETCH: Final = "fetch_response"
"""The conventions' operation of asking for a response that was made before; it uses nothing itself."""

_ENDED: Final = frozenset({"completed", "incomplete", "failed", "cancelled"})
_LAST_EVENTS: Final = frozenset({"response.completed", "response.incomplete", "response.failed", "response.cancelled"})


def request(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Opening:
    """Reader of requests of ``responses.retrieve`` and ``responses.cancel``."""
    from tollspan.instrumentation.openai.readers import State

    client = args[0]._client
    attributes = client_attributes(client).copy()
    attributes[names.OPERATION_NAME] = FETCH
    attributes[names.OPENAI_API_TYPE] = "responses"
    response_id = args[1] if len(args) > 1 else kwargs.get("response_id")
    if isinstance(response_id, str):
        attributes[names.RESPONSE_ID] = response_id
    streamed = kwargs.get("stream") is True
    if streamed:
        attributes[names.REQUEST_STREAM] = True
    return Opening(FETCH, attributes, State(client, streamed))


def read_fetched(call: Call, response: Any) -> None:
    """Read a ``Response`` that was fetched."""
    fields = _fields(response)
    model = fields.get("model")
    if isinstance(model, str):
        call.attributes[names.RESPONSE_MODEL] = model
    status = fields.get("status")
    if status in _ENDED:
        call.attributes[names.RESPONSE_FINISH_REASONS] = [reason(fields)]
    if fields.get("background") is True:
        _bill(call, fields)


def read_fetched_event(call: Call, event: Any) -> bool:
    """Read an event of a stream that was fetched. True when it is the last one that matters."""
    fields = _fields(event)
    if fields.get("type") not in _LAST_EVENTS:
        return False
    read_fetched(call, fields.get("response"))
    return True


def defer(call: Call, fields: Mapping[str, Any]) -> None:
    """Read what the call that asks for a background response tells of it."""
    call.attributes[names.USAGE_DEFERRED] = True
    response_id = fields.get("id")
    if isinstance(response_id, str):
        ONCE.asked.add(response_id, once.here(span=call.span))
    _bill(call, fields)


def _bill(call: Call, fields: Mapping[str, Any]) -> None:
    response_id, usage = fields.get("id"), fields.get("usage")
    if fields.get("status") not in _ENDED or usage is None or not isinstance(response_id, str):
        return
    origin = ONCE.asked.get(response_id)
    attributes = client_attributes(call.state.client).copy()
    provider = attributes[names.PROVIDER_NAME]
    attributes[names.OPERATION_NAME] = "chat"
    attributes[names.OPENAI_API_TYPE] = "responses"
    attributes[names.RESPONSE_ID] = response_id
    attributes[names.RESPONSE_FINISH_REASONS] = [reason(fields)]
    model = fields.get("model")
    if isinstance(model, str):
        attributes[names.RESPONSE_MODEL] = model
    conversation = _fields(fields.get("conversation")).get("id")
    if isinstance(conversation, str):
        attributes[names.CONVERSATION_ID] = conversation
    ONCE.emit(
        response_id,
        f"chat {model}" if isinstance(model, str) else "chat",
        attributes,
        lambda span: put_usage(span, provider, usage, model=model, response=fields, form="openai"),
        start_ns=once.instant(fields.get("created_at")),
        end_ns=once.instant(fields.get("completed_at")),
        origin=origin,
    )


def reason(fields: Mapping[str, Any]) -> str:
    reason = _fields(fields.get("incomplete_details")).get("reason")
    return reason if isinstance(reason, str) else str(fields.get("status"))


def _fields(model: Any) -> Mapping[str, Any]:
    from tollspan.instrumentation.openai.readers import _fields as fields_of

    return fields_of(model)
