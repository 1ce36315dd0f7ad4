"""What Anthropic's requests, messages and stream events say, as tables.

In: the options of a request, messages and events of the client (or the same as plain dicts, from a raw body). Out:
attributes in `Call.attributes`, and the usage object in `State.usage`, which becomes attributes once, when the call
ends (`tollspan.instrumentation.usage`).

A stream tells its usage twice: ``message_start`` has the input, and a placeholder for the output; every
``message_delta`` has the counts so far. They are assigned over each other. The placeholder is never taken: of a stream
that was left before its first ``message_delta`` the output is not known.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from tollspan.instrumentation.anthropic.providers import ANTHROPIC, client_attributes
from tollspan.instrumentation.calls import Call, Opening
from tollspan.instrumentation.usage import put_usage
from tollspan.pricing import attributes as names

OPERATIONS: Final[dict[str, str]] = {
    "/v1/messages": "chat",
    "/v1/complete": "text_completion",  # up to version 0; it tells no usage
}
"""Path of a billed request → operation. Counting tokens is free, and everything else is paid for elsewhere."""

NUMBERS: Final = (("temperature", names.REQUEST_TEMPERATURE), ("top_p", names.REQUEST_TOP_P))
"""Request parameters that are doubles."""
LIMITS: Final = (("max_tokens", names.REQUEST_MAX_TOKENS), ("max_tokens_to_sample", names.REQUEST_MAX_TOKENS))
"""Request parameters that are integers."""
RESPONSE: Final = (("id", names.RESPONSE_ID), ("model", names.RESPONSE_MODEL))
"""Strings of a message."""

PLACEHOLDERS: Final = frozenset({"output_tokens", "output_tokens_details"})
"""What ``message_start`` tells before there is anything to tell."""

_NOTHING: Final[Mapping[str, Any]] = {}


class State:
    """What a call of the client has on `Call.state`.

    Attributes:
        client: the client that was asked.
        provider: who bills.
        streamed: the answer comes as a stream of events.
        usage: usage object as told so far, its first level; None before any was.
    """

    __slots__ = ("client", "provider", "streamed", "usage")

    def __init__(self, client: Any, provider: str, streamed: bool) -> None:
        self.client = client
        self.provider = provider
        self.streamed = streamed
        self.usage: dict[str, Any] | None = None


def options_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The options of ``client.request(cast_to, options, ...)``; None where there are none."""
    return args[2] if len(args) > 2 else kwargs.get("options")


def operation_of(options: Any) -> str | None:
    """Operation of a request that is billed by itself; None of every other."""
    if options.method.lower() != "post":
        return None
    return OPERATIONS.get(options.url.partition("?")[0])


def asked(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Mapping[str, Any]:
    """Body of a request that is billed by itself, for `WrapPoint.asked`; of every other nothing."""
    options = options_of(args, kwargs)
    return {} if operation_of(options) is None else _body(options)


def _body(options: Any) -> Mapping[str, Any]:
    body = options.json_data if isinstance(options.json_data, dict) else {}
    return {**body, **options.extra_json} if isinstance(options.extra_json, Mapping) else body


def read_request(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Opening | None:
    """Read the arguments of ``client.request``. None for what is not billed by itself."""
    options = options_of(args, kwargs)
    operation = operation_of(options)
    if operation is None:
        return None
    client = args[0]
    attributes = client_attributes(client).copy()
    attributes[names.OPERATION_NAME] = operation
    body = _body(options)
    name = operation
    # Parameters that were not given are sentinels of the library's, so every value is taken by its type.
    model = body.get("model")
    if isinstance(model, str) and model:
        attributes[names.REQUEST_MODEL] = model
        name = f"{operation} {model}"
    streamed = kwargs.get("stream") is True
    if streamed:
        attributes[names.REQUEST_STREAM] = True
    for field, attribute in NUMBERS:
        value = body.get(field)
        if isinstance(value, (int, float)):
            attributes[attribute] = float(value)
    for field, attribute in LIMITS:
        value = body.get(field)
        if type(value) is int:
            attributes[attribute] = value
    place = body.get("inference_geo")
    if isinstance(place, str) and place:
        attributes[names.RESIDENCY] = place
    return Opening(name, attributes, State(client, attributes[names.PROVIDER_NAME], streamed))


def read_message(call: Call, message: Any) -> None:
    """Read a ``Message`` or ``BetaMessage`` (or its dict)."""
    whole = fields(message)
    _read_message(call, whole)
    usage = fields(whole.get("usage"))
    if usage:
        call.state.usage = dict(usage)


def read_event(call: Call, event: Any) -> bool:
    """Read an event of a stream of messages. True when it is the last one that matters."""
    whole = fields(event)
    kind = whole.get("type")
    if kind == "message_start":
        message = fields(whole.get("message"))
        _read_message(call, message)
        usage = fields(message.get("usage"))
        call.state.usage = {field: value for field, value in usage.items() if field not in PLACEHOLDERS}
    elif kind == "message_delta":
        _assign(call.state, fields(whole.get("usage")))
        reason = fields(whole.get("delta")).get("stop_reason")
        if isinstance(reason, str):
            call.attributes[names.RESPONSE_FINISH_REASONS] = [reason]
            return True
    return False


def tell_usage(call: Call) -> None:
    """Put what the call has used on its span, when it ends."""
    state: State = call.state
    if state.usage:
        model = call.attributes.get(names.RESPONSE_MODEL)
        put_usage(call, state.provider, state.usage, model=model, form=ANTHROPIC)


def fields(model: Any) -> Mapping[str, Any]:
    """Fields of a model of the client library, declared or not; a dict is its own; anything else has none."""
    if isinstance(model, dict):
        return model
    # The instance dict is read directly: going through attributes costs an exception for each that is missing.
    own = getattr(model, "__dict__", _NOTHING)
    extra = getattr(model, "__pydantic_extra__", None)
    return {**own, **extra} if extra else own


def _assign(state: State, usage: Mapping[str, Any]) -> None:
    told = {field: value for field, value in usage.items() if value is not None}
    if state.usage is None:
        state.usage = told
    else:
        state.usage.update(told)


def _read_message(call: Call, message: Mapping[str, Any]) -> None:
    attributes = call.attributes
    for field, attribute in RESPONSE:
        value = message.get(field)
        if isinstance(value, str):
            attributes[attribute] = value
    reason = message.get("stop_reason")
    if isinstance(reason, str):
        attributes[names.RESPONSE_FINISH_REASONS] = [reason]
