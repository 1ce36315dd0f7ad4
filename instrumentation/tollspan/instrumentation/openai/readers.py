"""What OpenAI's requests, responses and stream events say, as tables.

In: keyword arguments of a call, response objects (or the same as plain dicts, from a raw body). Out: attributes in
`Call.attributes`, only those that were given: a count that the provider left out is absent, and one that it gave as 0
is 0. Counts are assigned, never added: providers that repeat usage on every chunk repeat it cumulatively.

OpenAI's own counts already have the meaning of the GenAI conventions: input includes what was cached, output includes
reasoning. One provider's do not, see `_whole_output`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from tollspan.instrumentation.calls import Call, Opening
from tollspan.instrumentation.later import LaterAttributes
from tollspan.instrumentation.openai import background
from tollspan.instrumentation.openai.providers import own
from tollspan.instrumentation.providers import client_attributes
from tollspan.instrumentation.usage import put_usage
from tollspan.pricing import attributes as names

Table = tuple[tuple[str, str], ...]
"""Field → attribute."""

Groups = tuple[tuple[str | None, Table], ...]
"""Sub-object (None = the object itself) → its fields."""

NUMBERS: Final[Table] = (
    ("temperature", names.REQUEST_TEMPERATURE),
    ("top_p", names.REQUEST_TOP_P),
)
"""Request parameters that are doubles."""

CHAT_LIMITS: Final[Table] = (
    ("max_completion_tokens", names.REQUEST_MAX_TOKENS),
    ("max_tokens", names.REQUEST_MAX_TOKENS),  # the older name
)
RESPONSES_LIMITS: Final[Table] = (("max_output_tokens", names.REQUEST_MAX_TOKENS),)
"""Request parameters that are integers."""

RESPONSE: Final[Table] = (
    ("id", names.RESPONSE_ID),
    ("model", names.RESPONSE_MODEL),
    ("service_tier", names.OPENAI_RESPONSE_SERVICE_TIER),
)
"""Strings of a response of either API, and of a chat stream's chunks."""

CHAT_USAGE: Final[Groups] = (
    (None, (("prompt_tokens", names.USAGE_INPUT_TOKENS), ("completion_tokens", names.USAGE_OUTPUT_TOKENS))),
    (
        "prompt_tokens_details",
        (
            ("cached_tokens", names.USAGE_CACHE_READ_TOKENS),
            ("cache_write_tokens", names.USAGE_CACHE_WRITE_TOKENS),
            ("audio_tokens", names.USAGE_AUDIO_INPUT_TOKENS),
            ("image_tokens", names.USAGE_IMAGE_INPUT_TOKENS),
        ),
    ),
    (
        "completion_tokens_details",
        (("reasoning_tokens", names.USAGE_REASONING_TOKENS), ("audio_tokens", names.USAGE_AUDIO_OUTPUT_TOKENS)),
    ),
)

RESPONSES_USAGE: Final[Groups] = (
    (None, (("input_tokens", names.USAGE_INPUT_TOKENS), ("output_tokens", names.USAGE_OUTPUT_TOKENS))),
    (
        "input_tokens_details",
        (("cached_tokens", names.USAGE_CACHE_READ_TOKENS), ("cache_write_tokens", names.USAGE_CACHE_WRITE_TOKENS)),
    ),
    ("output_tokens_details", (("reasoning_tokens", names.USAGE_REASONING_TOKENS),)),
)

LIFETIMES: Final[Table] = (
    ("ttl_30m_tokens", names.usage("tokens.input.cache_write.30m")),
    ("ttl_12h_tokens", names.usage("tokens.input.cache_write.12h")),
)
"""Fields of ``cache_write_tokens_details``: a lifetime has its own price."""

OWN_TERMS: Final = frozenset({"openai", "azure.ai.openai"})
"""Providers whose usage objects are OpenAI's own, which the tables above know whole. The others who speak as OpenAI
does count more, in places of their own."""


class State:
    """What a call of the client has on `Call.state`.

    Attributes:
        client: the client that was asked.
        streamed: the answer comes as a stream of events.
        hides: usage was asked for that the program did not ask for, and has to be hidden from it.
        reasons: finish reasons seen so far, by the index of their choice.
    """

    __slots__ = ("client", "hides", "reasons", "streamed")

    def __init__(self, client: Any, streamed: bool) -> None:
        self.client = client
        self.streamed = streamed
        self.hides = False
        self.reasons: dict[int, str] = {}


_NOTHING: Final[Mapping[str, Any]] = {}
_UNFINISHED: Final = frozenset({"queued", "in_progress"})
_LAST_EVENTS: Final = frozenset({"response.completed", "response.incomplete", "response.failed"})


def request_reader(api_type: str, limits: Table) -> Callable[[tuple[Any, ...], dict[str, Any]], Opening]:
    """Reader of the requests of one API (``chat_completions`` or ``responses``), for `WrapPoint.request`."""

    doubles, integers = dict(NUMBERS), dict(limits)

    def read(client: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        attributes = client_attributes(client, client._base_url, own).copy()
        attributes[names.OPERATION_NAME] = "chat"
        attributes[names.OPENAI_API_TYPE] = api_type
        # Over what was given, which is little, and not over all that could be. Parameters may also be given as
        # sentinels of the library's, so every value is taken by its type.
        for field, value in kwargs.items():
            if field in doubles:
                if isinstance(value, (int, float)):
                    attributes[doubles[field]] = float(value)
            elif field in integers:
                if isinstance(value, int):
                    attributes[integers[field]] = value
            elif field == "model":
                if isinstance(value, str) and value:
                    attributes[names.REQUEST_MODEL] = value
            elif field == "stream":
                if value is True:
                    attributes[names.REQUEST_STREAM] = True
            elif field == "service_tier":
                if isinstance(value, str) and value != "auto":
                    attributes[names.OPENAI_REQUEST_SERVICE_TIER] = value
            elif field == "conversation":
                conversation = value.get("id") if isinstance(value, dict) else value
                if isinstance(conversation, str):
                    attributes[names.CONVERSATION_ID] = conversation
        return attributes

    def request(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Opening:
        client = args[0]._client
        model = kwargs.get("model")
        name = f"chat {model}" if isinstance(model, str) and model else "chat"
        return Opening(name, LaterAttributes(read, client, kwargs), State(client, kwargs.get("stream") is True))

    return request


def read_chat(call: Call, completion: Any) -> None:
    """Read a ``ChatCompletion`` (or its dict)."""
    fields = _fields(completion)
    attributes = call.attributes
    _strings(attributes, fields)
    reasons = [reason for choice in fields.get("choices") or () if (reason := _fields(choice).get("finish_reason"))]
    if reasons:
        attributes[names.RESPONSE_FINISH_REASONS] = reasons
    _usage(call, fields.get("usage"), CHAT_USAGE)


def read_chat_chunk(call: Call, chunk: Any) -> bool:
    """Read a ``ChatCompletionChunk``. True when it is the one that carries the usage and nothing else."""
    fields = _fields(chunk)
    attributes = call.attributes
    if names.RESPONSE_ID not in attributes:
        _strings(attributes, fields)
    choices = fields.get("choices")
    for choice in choices or ():
        choice = _fields(choice)
        reason = choice.get("finish_reason")
        if reason:
            # Choices may finish in any order; the attribute lists them in theirs.
            reasons: dict[int, str] = call.state.reasons
            reasons[choice.get("index") or 0] = reason
            attributes[names.RESPONSE_FINISH_REASONS] = [reasons[index] for index in sorted(reasons)]
    usage = fields.get("usage")
    if usage is None:
        return False
    _strings(attributes, fields)  # the tier that served it may be told only now
    _usage(call, usage, CHAT_USAGE)
    return not choices


def read_response(call: Call, response: Any) -> None:
    """Read a ``Response`` of the Responses API (or its dict)."""
    fields = _fields(response)
    attributes = call.attributes
    _strings(attributes, fields)
    status = fields.get("status")
    if isinstance(status, str) and status not in _UNFINISHED:
        reason = _fields(fields.get("incomplete_details")).get("reason")
        attributes[names.RESPONSE_FINISH_REASONS] = [reason if isinstance(reason, str) else status]
    if status == "failed":
        error = _fields(fields.get("error"))
        call.note_failure(error.get("code") or "failed", error.get("message"))
    conversation = _fields(fields.get("conversation")).get("id")
    if isinstance(conversation, str):
        attributes[names.CONVERSATION_ID] = conversation
    if fields.get("background") is True:
        background.defer(call, fields)
        return
    from tollspan.pricing.usage_objects import response_tools  # importing the client is not to pay for it

    for meter, quantity in response_tools(fields):
        if type(quantity) is int:
            attributes[names.usage(meter)] = quantity
    _usage(call, fields.get("usage"), RESPONSES_USAGE)


def read_response_event(call: Call, event: Any) -> bool:
    """Read an event of a Responses stream. True when it is the last one that matters."""
    fields = _fields(event)
    kind = fields.get("type")
    if kind in _LAST_EVENTS:
        read_response(call, fields.get("response"))
        return True
    if kind == "response.created":
        read_response(call, fields.get("response"))
    elif kind == "error":
        call.note_failure(fields.get("code") or "error", fields.get("message"))
    return False


def _fields(model: Any) -> Mapping[str, Any]:
    """Fields of a model of the client library, declared or not; a dict is its own; anything else has none."""
    if isinstance(model, dict):
        return model
    # The instance dict is read directly: going through attributes costs an exception for each that is missing.
    own = getattr(model, "__dict__", _NOTHING)
    extra = getattr(model, "__pydantic_extra__", None)
    return {**own, **extra} if extra else own


def _strings(attributes: dict[str, Any], fields: Mapping[str, Any]) -> None:
    for field, attribute in RESPONSE:
        value = fields.get(field)
        if isinstance(value, str):
            attributes[attribute] = value


def _usage(call: Call, usage: Any, groups: Groups) -> None:
    if usage is None:
        return
    attributes = call.attributes
    provider = call.opened.get(names.PROVIDER_NAME)
    if provider is not None and provider not in OWN_TERMS:
        put_usage(call, provider, usage, model=attributes.get(names.RESPONSE_MODEL), form="openai")
        return
    whole = _fields(usage)
    for group, table in groups:
        fields = whole if group is None else _fields(whole.get(group))
        for field, attribute in table:
            value = fields.get(field)
            if type(value) is int:
                attributes[attribute] = value
        lifetimes = fields.get("cache_write_tokens_details")
        if lifetimes is not None:
            lifetimes = _fields(lifetimes)
            for field, attribute in LIFETIMES:
                if type(lifetimes.get(field)) is int:
                    attributes[attribute] = lifetimes[field]
    _whole_output(attributes, whole.get("total_tokens"))


def _whole_output(attributes: dict[str, Any], total: Any) -> None:
    """Include reasoning in the output where the provider counted it beside the output.

    xAI's chat completions do (docs.x.ai, "Consumption and Rate Limits"), and its total says so: it is the sum of all
    three. Told by the total and not by the provider, because proxies in front of xAI pass its counts through.
    """
    reasoning = attributes.get(names.USAGE_REASONING_TOKENS)
    if not reasoning or type(total) is not int:
        return
    input_tokens = attributes.get(names.USAGE_INPUT_TOKENS)
    output_tokens = attributes.get(names.USAGE_OUTPUT_TOKENS)
    if input_tokens is None or output_tokens is None:
        return
    if total == input_tokens + output_tokens + reasoning:
        attributes[names.USAGE_OUTPUT_TOKENS] = output_tokens + reasoning
