"""The Interactions API of the ``google-genai`` client: what its requests, responses and events say.

In: the generated ``create``, which sends one request; the public one above it sends several where an answer has to be
continued, and each is billed. Out: attributes in `Call.attributes`. A stream is not replaced: its ``generator`` is, as
the client does it too, so that every request of a continued stream is watched by itself.

An interaction in the background is asked for by ``create``, which says that its usage comes later. When it has ended,
its usage stands on a span of derived identity (`once`), whoever finds it so. A ``get`` does not tell whether what it
gives was made in the background; what was not had its usage on the span of its ``create``. So it is billed where this
process asked for it or has seen it under way, or where an agent made it, as those work in the background alone. What
another process asked a model for, and this one finds ended at the first look, is not billed here.

The client of this API is one of its own, with other errors, other usage objects and no word of further attempts. Of a
raw response whose body has not come, the call stays open until it is parsed or dropped.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Mapping
from typing import Any, Final

from tollspan.instrumentation import exits, once
from tollspan.instrumentation.calls import Call, Opening
from tollspan.instrumentation.exits import drop
from tollspan.instrumentation.google_genai.providers import GEMINI, VERTEX, address, billed
from tollspan.instrumentation.google_genai.readers import GENERATE, State, fields, short_model, tier_of
from tollspan.instrumentation.guard import guard
from tollspan.instrumentation.streams import observe, observe_async
from tollspan.instrumentation.usage import put_usage
from tollspan.pricing import attributes as names

COUNTS: Final[tuple[tuple[str, str], ...]] = (
    ("total_input_tokens", "prompt_token_count"),
    ("total_cached_tokens", "cached_content_token_count"),
    ("total_output_tokens", "candidates_token_count"),
    ("total_thought_tokens", "thoughts_token_count"),
    ("total_tool_use_tokens", "tool_use_prompt_token_count"),
    ("total_tokens", "total_token_count"),
)
"""Count of an interaction's usage → the same in the usage of the older API, which is what the tables know."""

MODALITIES: Final[tuple[tuple[str, str], ...]] = (
    ("input_tokens_by_modality", "prompt_tokens_details"),
    ("cached_tokens_by_modality", "cache_tokens_details"),
    ("output_tokens_by_modality", "candidates_tokens_details"),
    ("tool_use_tokens_by_modality", "tool_use_prompt_tokens_details"),
)
"""The same for counts by modality."""

TOOLS: Final[dict[str, str]] = {
    "google_search": names.usage("web_searches"),
    "google_maps": names.usage("maps_searches"),
    "retrieval": names.usage("file_searches"),
}
"""Grounding tool → attribute of how often it was used."""

FETCH: Final = "fetch_response"
"""The conventions' operation of asking for what was made before; it uses nothing itself."""

ONCE: Final = once.of("google_genai")

_OF_INTERACTION: Final = (
    names.RESPONSE_MODEL,
    names.OPENAI_RESPONSE_SERVICE_TIER,
    names.RESPONSE_FINISH_REASONS,
)
"""Attributes that are an interaction's, and not its call's."""

_TOLD: Final = ("id", "status", "agent", "created", "updated")
_HELD: Final = guard("google_genai.interactions.held")
_UNFINISHED: Final = frozenset({"queued", "in_progress"})
_LAST: Final = "interaction.completed"
_ADDRESS: Final = "aiplatform.googleapis.com"


class Asked(State):
    """State of a call.

    Attributes:
        streamed: the answer comes as a stream of events.
        background: it only asks.
        fetching: it only fetches.
        told: those of the interaction's fields that `_TOLD` names, as they were last told.
    """

    __slots__ = ("background", "fetching", "streamed", "told")

    def __init__(self, provider: str, model: str | None, streamed: bool, *, background: bool, fetching: bool) -> None:
        super().__init__(None, provider, model)
        self.streamed = streamed
        self.background = background
        self.fetching = fetching
        self.told: dict[str, Any] = {}


def request(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Opening:
    """Reader of ``create``, for `WrapPoint.request`."""
    attributes = _client_attributes(args[0])
    attributes[names.OPERATION_NAME] = GENERATE
    body = fields(fields(kwargs.get("request")).get("body")) or kwargs
    name = GENERATE
    model = short_model(body.get("model")) or short_model(body.get("agent"))
    if model is not None:
        attributes[names.REQUEST_MODEL] = model
        name = f"{GENERATE} {model}"
    streamed = body.get("stream") is True
    if streamed:
        attributes[names.REQUEST_STREAM] = True
    generation = fields(body.get("generation_config"))
    for field, attribute in (("temperature", names.REQUEST_TEMPERATURE), ("top_p", names.REQUEST_TOP_P)):
        value = generation.get(field)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            attributes[attribute] = float(value)
    limit = generation.get("max_output_tokens")
    if type(limit) is int:
        attributes[names.REQUEST_MAX_TOKENS] = limit
    tier = tier_of(body.get("service_tier"))
    if tier is not None:
        attributes[names.OPENAI_REQUEST_SERVICE_TIER] = tier
    background = body.get("background") is True
    state = Asked(attributes[names.PROVIDER_NAME], model, streamed, background=background, fetching=False)
    return Opening(name, attributes, state)


def fetch_request(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Opening:
    """Reader of ``get``."""
    interaction = args[1] if len(args) > 1 else kwargs.get("id")
    attributes = _client_attributes(args[0])
    attributes[names.OPERATION_NAME] = FETCH
    if isinstance(interaction, str):
        attributes[names.RESPONSE_ID] = interaction
    streamed = kwargs.get("stream") is True
    if streamed:
        attributes[names.REQUEST_STREAM] = True
    state = Asked(attributes[names.PROVIDER_NAME], None, streamed, background=False, fetching=True)
    return Opening(FETCH, attributes, state)


class _Held:
    """A call that waits for its raw response to be parsed or dropped."""

    __slots__ = ("__weakref__", "_call", "_http")

    def __init__(self, call: Call, http: Any) -> None:
        self._call: Call | None = call
        self._http = http
        exits.remember(call, self)

    def parse(self, parser: Callable[[Any], Any], http: Any) -> Any:
        """In the place of the response's parser."""
        try:
            result = parser(http)
        except BaseException as error:
            self._failed(error)
            raise
        if inspect.iscoroutine(result):
            return self._parse_async(result)
        self._parsed(result)
        return result

    async def _parse_async(self, parsing: Any) -> Any:
        try:
            result = await parsing
        except BaseException as error:
            self._failed(error)
            raise
        self._parsed(result)
        return result

    def _parsed(self, result: Any) -> None:
        call, self._call = self._call, None
        if call is not None:
            with _HELD:
                if outlives(call, result) is not None:
                    return
                _answered(call, result)
            call.end()

    def _failed(self, error: BaseException) -> None:
        call, self._call = self._call, None
        if call is not None:
            call.note_error(error)
            call.end()

    def abandon(self) -> None:
        """Nobody will parse it: take what its body says, if it was read."""
        call, self._call = self._call, None
        if call is not None:
            with _HELD:
                if self._http.is_stream_consumed and "json" in self._http.headers.get("content-type", ""):
                    _answered(call, self._http.json())
                else:
                    call.attributes[names.STREAM_ABANDONED] = True
            call.end()

    def __del__(self, _exiting: Callable[[], bool] = sys.is_finalizing) -> None:
        # While the interpreter shuts down there is nowhere to send a span; `exits` was there before.
        if not _exiting():
            with _HELD:
                drop(self)


def outlives(call: Call, result: Any) -> Any:
    """Watch a stream in its place. None for an interaction, which is read at once."""
    from google.genai._gaos.utils.eventstreaming import AsyncStream, Stream

    if isinstance(result, Stream):
        result.generator = observe(call, result.generator, read_event)
        return result
    if isinstance(result, AsyncStream):
        result.generator = observe_async(call, result.generator, read_event)
        return result
    http = getattr(result, "http_response", None)
    if http is not None and not http.is_stream_consumed:
        result._parser = functools.partial(_Held(call, http).parse, result._parser)
        return result
    return None


def _answered(call: Call, interaction: Any) -> None:
    # By the point's own reader, which may read more than this one does.
    if call.point.response is not None:
        call.point.response(call, interaction)


def read(call: Call, interaction: Any) -> None:
    """Read an ``Interaction``, or the body of a raw response where it is in memory."""
    http = getattr(interaction, "http_response", None)
    if http is not None:
        interaction = http.json() if "json" in http.headers.get("content-type", "") else None
    _note(call, fields(interaction))


def read_event(call: Call, event: Any) -> bool:
    """Read an event of a stream. True when it is the last one that matters."""
    event = fields(event)
    kind = event.get("event_type")
    if kind == "error":
        error = fields(event.get("error"))
        code = error.get("code")
        call.note_failure(str(code) if code else "error", error.get("message"))
        return False
    interaction = event.get("interaction")
    if interaction is None:
        return False
    _note(call, fields(interaction))
    call.state.complete = kind == _LAST
    return bool(call.state.complete)


def finish(call: Call) -> None:
    """Put the usage on the span, or on one of its own, when the call has ended."""
    state: Asked = call.state
    if state.background or state.fetching:
        _defer(call, state)
    elif state.usage is not None:
        _put(call, state.provider, state.usage, call.attributes.get(names.RESPONSE_MODEL) or state.model)


def _defer(call: Call, state: Asked) -> None:
    """Remember an interaction in the background, and make its span when it has ended."""
    interaction, status = state.told.get("id"), state.told.get("status")
    if not isinstance(interaction, str) or not isinstance(status, str):
        return
    if state.background:
        call.attributes[names.USAGE_DEFERRED] = True
        ONCE.asked.add(interaction, once.here(state.model, call.span))
    elif status in _UNFINISHED:
        ONCE.asked.add(interaction, once.Origin(None, {}))
    origin: once.Origin | None = ONCE.asked.get(interaction)
    known = origin is not None or isinstance(state.told.get("agent"), str)
    if known and status not in _UNFINISHED and state.usage is not None:
        _bill(call, state, interaction, origin)


def _bill(call: Call, state: Asked, interaction: str, origin: once.Origin | None) -> None:
    model = call.attributes.get(names.RESPONSE_MODEL) or short_model(state.told.get("agent"))
    model = model or (origin.told if origin is not None else None)
    shared = (names.PROVIDER_NAME, names.SERVER_ADDRESS, names.SERVER_PORT)
    opened = {**call.opened, **call.attributes}
    attributes = {key: opened[key] for key in (*shared, *_OF_INTERACTION) if key in opened}
    attributes |= {names.OPERATION_NAME: GENERATE, names.RESPONSE_ID: interaction}
    if model is not None:
        attributes[names.REQUEST_MODEL] = model
    usage, provider = state.usage, state.provider
    ONCE.emit(
        interaction,
        GENERATE if model is None else f"{GENERATE} {model}",
        attributes,
        lambda span: _put(span, provider, usage, model),
        start_ns=once.instant(state.told.get("created")),
        end_ns=once.instant(state.told.get("updated")),
        origin=origin,
        namespace=provider,
    )


def _put(call: Call, provider: str, usage: Mapping[str, Any], model: str | None) -> None:
    put_usage(call, provider, older_usage(usage), model=model)
    for item in usage.get("grounding_tool_count") or ():
        item = fields(item)
        attribute, count = TOOLS.get(str(item.get("type"))), item.get("count")
        if attribute is not None and type(count) is int and names.USAGE_INVALID not in call.attributes:
            call.attributes[attribute] = count


def older_usage(usage: Mapping[str, Any]) -> dict[str, Any]:
    """An interaction's usage object in the shape of the older API's."""
    older = {new: usage[old] for old, new in COUNTS if usage.get(old) is not None}
    for old, new in MODALITIES:
        items = [fields(item) for item in usage.get(old) or ()]
        if items:
            older[new] = [{"modality": item.get("modality"), "token_count": item.get("tokens")} for item in items]
    return older


def _note(call: Call, interaction: Mapping[str, Any]) -> None:
    attributes = call.attributes
    for field, attribute in (("id", names.RESPONSE_ID), ("model", names.RESPONSE_MODEL)):
        value = interaction.get(field)
        if isinstance(value, str) and value:
            attributes[attribute] = short_model(value) if field == "model" else value
    tier = tier_of(interaction.get("service_tier"))
    if tier is not None:
        attributes[names.OPENAI_RESPONSE_SERVICE_TIER] = tier
    call.state.told.update((field, value) for field in _TOLD if (value := interaction.get(field)) is not None)
    status = interaction.get("status")
    if isinstance(status, str) and status not in _UNFINISHED:
        attributes[names.RESPONSE_FINISH_REASONS] = [status]
        if status == "failed":
            call.note_failure(status)
    usage = interaction.get("usage")
    if usage is not None:
        call.state.usage = fields(usage)


def _client_attributes(resource: Any) -> dict[str, Any]:
    client = getattr(resource, "_client", None)
    if client is not None:  # of the client that `early_interactions` wraps
        adapter = client.client_adapter
        return billed(str(client.base_url), VERTEX if adapter and adapter.is_vertex_ai() else GEMINI)
    url = resource._get_url(None, None)
    return billed(url, _provider(address(url).get(names.SERVER_ADDRESS, ""), resource.sdk_configuration))


def _provider(host: str, configuration: Any) -> str:
    """Vertex AI has a project in its paths, whatever the address."""
    version = getattr(getattr(configuration, "globals", None), "api_version", None)
    vertex = host.endswith(_ADDRESS) or (host.startswith("aiplatform.") and host.endswith(".rep.googleapis.com"))
    return VERTEX if vertex or (isinstance(version, str) and "/projects/" in version) else GEMINI
