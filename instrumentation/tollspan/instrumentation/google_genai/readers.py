"""What requests and responses of the ``google-genai`` client say: generation, its streams, embeddings, images.

In: keyword arguments of a call, response objects of the client. Out: attributes in `Call.attributes`. A stream repeats
its usage on every chunk, cumulatively, so that the last one is kept and put on the span when the call ends. Where the
end of a stream was not seen, its output is not told: what came so far is less than what was made.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, Final

from tollspan.instrumentation.calls import Call, Opening
from tollspan.instrumentation.google_genai import attempts
from tollspan.instrumentation.google_genai.providers import client_attributes
from tollspan.instrumentation.guard import guard
from tollspan.instrumentation.usage import put_usage
from tollspan.pricing import attributes as names

GENERATE: Final = "generate_content"
EMBED: Final = "embeddings"
IMAGES: Final = "image_generation"

NUMBERS: Final = (("temperature", names.REQUEST_TEMPERATURE), ("top_p", names.REQUEST_TOP_P))
"""Fields of a request's configuration that are doubles → attribute."""

STRINGS: Final = (("response_id", names.RESPONSE_ID), ("model_version", names.RESPONSE_MODEL))
"""Fields of a response that are strings → attribute."""

OUTPUT_FIELDS: Final = frozenset(
    {
        *("candidates_token_count", "candidates_tokens_details", "response_token_count", "response_tokens_details"),
        *("thoughts_token_count", "total_token_count"),
    }
)
"""Fields of a usage object that say what was made, which is not known before the end."""

_INPUT_FIELDS: Final = ("prompt_token_count", "tool_use_prompt_token_count", "thoughts_token_count")
_SHORT: Final = ("models/", "publishers/google/models/")
_TIER: Final = "x-gemini-service-tier"
_TIER_FENCE: Final = guard("google_genai.tier")
_USAGE: Final = guard("google_genai.usage")
_UNSAID: Final = frozenset({"", "unspecified", "service_tier_unspecified"})
_NOTHING: Final[Mapping[str, Any]] = {}
_PLACE: Final[tuple[Mapping[str, Any], ...]] = ({"maps": {}},)
"""Sources of an answer that tell of a search of Maps, and nothing else."""
_FIRST: Final = 0


class State:
    """What a call of the client has on `Call.state`.

    Attributes:
        client: the API client that sends it.
        provider: who bills it.
        model: the model that was asked for.
        wanted: candidates that were asked for; 0 where the call generates no content.
        reasons: finish reasons seen so far, by the index of their candidate.
        queries: searches of the web that the answer is grounded in.
        places: a place on Google Maps is among its sources.
        usage: the last usage object.
        headers: headers of the response.
        complete: the answer was seen to its end.
    """

    __slots__ = (
        "client",
        "complete",
        "headers",
        "model",
        "places",
        "provider",
        "queries",
        "reasons",
        "usage",
        "wanted",
    )

    def __init__(self, client: Any, provider: str, model: str | None, wanted: int = 1) -> None:
        self.client = client
        self.provider = provider
        self.model = model
        self.wanted = wanted
        self.reasons: dict[int, str] = {}
        self.queries: list[str] = []
        self.places = False
        self.usage: Any = None
        self.headers: Any = None
        self.complete = False


def request_reader(operation: str, streamed: bool = False) -> Callable[[tuple[Any, ...], dict[str, Any]], Opening]:
    """Reader of the requests of one method of ``Models`` or ``AsyncModels``, for `WrapPoint.request`."""

    def request(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Opening:
        client = args[0]._api_client
        config = fields(kwargs.get("config"))
        attributes = client_attributes(client, config.get("http_options"))
        attributes[names.OPERATION_NAME] = operation
        name = operation
        model = short_model(kwargs.get("model"))
        if model is not None:
            attributes[names.REQUEST_MODEL] = model
            name = f"{operation} {model}"
        if streamed:
            attributes[names.REQUEST_STREAM] = True
        for field, attribute in NUMBERS:
            value = config.get(field)
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                attributes[attribute] = float(value)
        limit = config.get("max_output_tokens")
        if type(limit) is int:
            attributes[names.REQUEST_MAX_TOKENS] = limit
        tier = tier_of(config.get("service_tier"))
        if tier is not None:
            attributes[names.OPENAI_REQUEST_SERVICE_TIER] = tier
        wanted = config.get("candidate_count")
        if operation != GENERATE:
            wanted = 0
        state = State(client, attributes[names.PROVIDER_NAME], model, wanted if type(wanted) is int else 1)
        return Opening(name, attributes, state)

    return request


def read_content(call: Call, response: Any) -> None:
    """Read a ``GenerateContentResponse``, whole."""
    state: State = call.state
    answer = fields(response)
    http = fields(answer.get("sdk_http_response"))
    body = http.get("body")
    if isinstance(body, str) and answer.get("usage_metadata") is None:
        # The user asked for the raw response; the body is all there is.
        answer = _snaked(json.loads(body))
    _note(call, state, answer)
    state.headers = http.get("headers")
    state.complete = True


def read_chunk(call: Call, chunk: Any) -> bool:
    """Read one ``GenerateContentResponse`` of a stream. True when what matters has been told."""
    state: State = call.state
    answer = fields(chunk)
    _note(call, state, answer)
    if state.headers is None:
        state.headers = fields(answer.get("sdk_http_response")).get("headers") or _NOTHING
    if state.usage is not None and len(state.reasons) >= state.wanted:
        state.complete = True
    return state.complete


def read_embeddings(call: Call, response: Any) -> None:
    """Read an ``EmbedContentResponse``: its usage, or on Vertex AI's older models that of each embedding."""
    state: State = call.state
    answer = fields(response)
    state.headers = fields(answer.get("sdk_http_response")).get("headers")
    state.complete = True
    usage = answer.get("usage_metadata")
    if usage is None:
        counts = [fields(fields(item).get("statistics")).get("token_count") for item in answer.get("embeddings") or ()]
        if counts and all(isinstance(count, (int, float)) for count in counts):
            usage = {"prompt_token_count": sum(counts)}
        else:
            characters = fields(answer.get("metadata")).get("billable_character_count")
            usage = {"characters": characters} if characters is not None else None
    state.usage = usage


def read_images(call: Call, response: Any) -> None:
    """Read the response of a model that makes images: those that came, without those that a filter held back."""
    answer = fields(response)
    call.state.headers = fields(answer.get("sdk_http_response")).get("headers")
    made = answer.get("generated_images") or answer.get("generated_masks") or ()
    call.attributes[names.usage("images")] = sum(1 for item in made if _is_there(fields(item)))


def finish(call: Call) -> None:
    """Put on the span what is known only when the call has ended."""
    told(call)
    attempts.known(call)


def told(call: Call) -> None:
    """The same, without how often the call was tried: what the answer told."""
    state: State = call.state
    attributes = call.attributes
    if state.reasons:
        attributes[names.RESPONSE_FINISH_REASONS] = [state.reasons[index] for index in sorted(state.reasons)]
    with _TIER_FENCE:
        tier = _served_tier(state.headers)
        if tier is not None:
            attributes[names.OPENAI_RESPONSE_SERVICE_TIER] = tier
    if state.usage is None and not state.queries and not state.places:
        return
    with _USAGE:
        cut = not state.complete and (names.STREAM_ABANDONED in attributes or names.ERROR_TYPE in attributes)
        response = None
        if state.queries or state.places:
            grounding = {"web_search_queries": state.queries, "grounding_chunks": _PLACE if state.places else ()}
            response = {"candidates": ({"grounding_metadata": grounding},)}
        usage = whole_usage(state.usage, cut=cut, made=state.wanted > 0)
        model = attributes.get(names.RESPONSE_MODEL) or state.model
        put_usage(call, state.provider, usage, model=model, response=response)


def whole_usage(usage: Any, *, cut: bool = False, made: bool = True) -> Mapping[str, Any] | None:
    """Fields of a usage object, with what it leaves out because it is nothing.

    The service omits counts of 0, so an answer of thoughts alone has no ``candidates_token_count``. It is 0 where the
    total says so.

    Args:
        usage: usage object of the client, or a mapping.
        cut: the end was not seen, so what was made is not known.
        made: the call makes tokens at all; embeddings do not.
    """
    if usage is None:
        return None
    counts = {name: value for name, value in fields(usage).items() if value is not None}
    if cut:
        return {name: value for name, value in counts.items() if name not in OUTPUT_FIELDS}
    total = counts.get("total_token_count")
    if made and type(total) is int and counts.keys().isdisjoint(("candidates_token_count", "response_token_count")):
        parts = [counts.get(name) or 0 for name in _INPUT_FIELDS]
        if all(type(part) is int for part in parts) and sum(parts) == total:
            counts["candidates_token_count"] = 0
    return counts


def short_model(model: Any) -> str | None:
    """A model's id without the path of the resource that it is: ``models/gemini-3.8-flash`` → ``gemini-3.8-flash``.

    Tuned models and endpoints keep theirs: the last part alone would name nothing.
    """
    if not isinstance(model, str) or not model:
        return None
    for prefix in _SHORT:
        before, found, name = model.partition(prefix)
        if found and name and "/" not in name and (not before or before.startswith("projects/")):
            return name
    return model


def tier_of(value: Any) -> str | None:
    """Service tier as the client or the wire writes it, in lower case; None where it says nothing."""
    if not isinstance(value, str):
        return None
    tier = str(getattr(value, "value", value)).strip().lower()
    return None if tier in _UNSAID else tier.removeprefix("service_tier_")


def fields(model: Any) -> Mapping[str, Any]:
    """Fields of a model of the client library; a dict is its own; anything else has none."""
    if model is None:
        return _NOTHING  # most fields of most responses
    if isinstance(model, dict):
        return model
    # The instance dict is read directly: it is what the models keep their fields in.
    own = getattr(model, "__dict__", _NOTHING)
    extra = getattr(model, "__pydantic_extra__", None)
    return {**own, **extra} if extra else own


def _note(call: Call, state: State, answer: Mapping[str, Any]) -> None:
    """Take from a response, or a part of one, what it tells."""
    attributes = call.attributes
    for field, attribute in STRINGS:
        if attribute in attributes:
            continue  # every chunk repeats them
        value = answer.get(field)
        if isinstance(value, str) and value:
            attributes[attribute] = short_model(value) if attribute == names.RESPONSE_MODEL else value
    usage = answer.get("usage_metadata")
    if usage is not None:
        state.usage = usage
    for candidate in answer.get("candidates") or ():
        candidate = fields(candidate)
        reason = candidate.get("finish_reason")
        if isinstance(reason, str) and reason:
            reason = str(getattr(reason, "value", reason))
            if reason != "FINISH_REASON_UNSPECIFIED":
                state.reasons[candidate.get("index") or _FIRST] = reason.lower()
        grounded(state, candidate.get("grounding_metadata"))
    feedback = answer.get("prompt_feedback")
    if feedback is None:
        return
    blocked = fields(feedback).get("block_reason")
    if isinstance(blocked, str) and blocked:
        state.reasons.setdefault(_FIRST, str(getattr(blocked, "value", blocked)).lower())
        state.complete = True


def _is_there(item: Mapping[str, Any]) -> bool:
    """Whether a generated image came: one that a filter held back is an image without content."""
    image = fields(item.get("image") or item.get("mask"))
    return bool(image.get("image_bytes") or image.get("gcs_uri"))


def grounded(state: State, grounding: Any) -> None:
    """Note what an answer is grounded in: searches, and places on Google Maps."""
    if grounding is None:
        return
    grounding, queries = fields(grounding), state.queries
    said = grounding.get("web_search_queries") or ()
    queries.extend(query for query in said if isinstance(query, str) and query not in queries)
    sources = grounding.get("grounding_chunks") or ()
    state.places = state.places or any(fields(source).get("maps") is not None for source in sources)


def _served_tier(headers: Any) -> str | None:
    """The tier that the Gemini API says it served, in a header (ai.google.dev, "Priority inference")."""
    if not isinstance(headers, Mapping):
        return None
    tier = headers.get(_TIER)
    if tier is None:  # aiohttp keeps the case of the wire
        tier = next((value for name, value in headers.items() if name.lower() == _TIER), None)
    return tier_of(tier)


def _snaked(body: Any) -> Mapping[str, Any]:
    """The parts of a raw response that are read here, under the client's names for them."""
    if not isinstance(body, dict):
        return _NOTHING
    usage = body.get("usageMetadata")
    candidates = [_snake_keys(item) for item in body.get("candidates") or ()]
    for item in candidates:
        grounding = item.get("grounding_metadata")
        if isinstance(grounding, dict):
            item["grounding_metadata"] = _snake_keys(grounding)
    return {
        "response_id": body.get("responseId"),
        "model_version": body.get("modelVersion"),
        "usage_metadata": _snake_keys(usage) if isinstance(usage, dict) else None,
        "prompt_feedback": _snake_keys(body.get("promptFeedback") or {}),
        "candidates": candidates,
    }


def _snake_keys(item: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON object with its keys in snake case, one level deep: what is below is read in either case."""
    return {snake(name): value for name, value in item.items()}


def snake(name: str) -> str:
    """A name in snake case."""
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name)
