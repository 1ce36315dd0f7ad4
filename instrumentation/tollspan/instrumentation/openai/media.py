"""The rest of OpenAI's calls that answer at once: embeddings, legacy completions, images, audio, moderation and
decisions.

In: requests and results of each, as tables (`APIS`). Out: one span a call, ``{operation} {model}``, with what the
provider counted by `put_usage`: tokens where it tells tokens, else images, seconds or characters. Speech is the one
that tells nothing: its characters are those of the request, which is what it is billed by, and they count only once the
provider has answered. Moderation is free: its span has no usage and makes no row.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from tollspan.instrumentation import once
from tollspan.instrumentation.calls import Call, Opening
from tollspan.instrumentation.openai.providers import client_attributes
from tollspan.instrumentation.openai.readers import NUMBERS, State, _fields, _strings, read_chat, read_chat_chunk
from tollspan.instrumentation.openai.results import outliving
from tollspan.instrumentation.providers import OPENAI
from tollspan.instrumentation.streams import ReadChunk
from tollspan.instrumentation.usage import put_usage
from tollspan.pricing import attributes as names

_CHARACTERS: Final = names.usage("characters")

DEFAULT_MODELS: Final[dict[str, str]] = {"moderation": "omni-moderation-latest"}
"""Models that a request may leave out, and that the provider documents as its choice then. The one of images has
changed over time, so it is not known."""

DECISION: Final = "decision"
DECISIONS: Final = "openai-decisions"
"""Decisions of a model cost other than what it writes; prices know them by this name of a provider."""


class MediaState(State):
    """State of a call here.

    Attributes:
        model: model asked for; None where none was named.
        provider: ``gen_ai.provider.name``.
        characters: length of the text to speak; None for other calls.
        seconds: length of what is added to a video; None for other calls.
    """

    __slots__ = ("characters", "model", "provider", "seconds")

    def __init__(self, client: Any, streamed: bool, model: str | None, provider: str) -> None:
        super().__init__(client, streamed)
        self.model = model
        self.provider = provider
        self.characters: int | None = None
        self.seconds: float | None = None


class Api(NamedTuple):
    """One API.

    Attributes:
        target: wrap target, with ``%s`` for the prefix of the asynchronous class.
        request: reader of its requests.
        response: reader of its results.
        outlives: for results that outlive the call.
    """

    target: str
    request: Callable[[tuple[Any, ...], dict[str, Any]], Opening | None]
    response: Callable[[Call, Any], None]
    outlives: Callable[[Call, Any], Any]


def request_reader(operation: str) -> Callable[[tuple[Any, ...], dict[str, Any]], Opening]:
    """Reader of the requests of one operation, for `WrapPoint.request`."""

    def request(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Opening:
        client = args[0]._client
        attributes = client_attributes(client).copy()
        attributes[names.OPERATION_NAME] = operation
        if operation == DECISION and attributes[names.PROVIDER_NAME] == "openai":
            attributes[names.PROVIDER_NAME] = DECISIONS
        model = kwargs.get("model")
        model = model if isinstance(model, str) and model else DEFAULT_MODELS.get(operation)
        if model:
            attributes[names.REQUEST_MODEL] = model
        streamed = kwargs.get("stream") is True
        if streamed:
            attributes[names.REQUEST_STREAM] = True
        for field, attribute in NUMBERS:
            value = kwargs.get(field)
            if isinstance(value, (int, float)):
                attributes[attribute] = float(value)
        limit = kwargs.get("max_tokens")
        if isinstance(limit, int):
            attributes[names.REQUEST_MAX_TOKENS] = limit
        state = MediaState(client, streamed, model, attributes[names.PROVIDER_NAME])
        if operation == "speech" and isinstance(text := kwargs.get("input"), str):
            state.characters = len(text)
        return Opening(f"{operation} {model}" if model else operation, attributes, state)

    return request


def _put(call: Call, usage: Any, response: Any = None) -> None:
    state = call.state
    model = call.attributes.get(names.RESPONSE_MODEL) or state.model
    put_usage(call, state.provider, usage, model=model, response=response, form=OPENAI)


def read_result(call: Call, result: Any) -> None:
    """Read a result that has a ``usage``, or whose usage can be counted (images)."""
    fields = _fields(result)
    _strings(call.attributes, fields)
    _put(call, fields.get("usage"), fields)
    svg = fields.get("svg_usage")
    if svg is not None:
        _svg(call, svg)


def _svg(call: Call, usage: Any) -> None:
    """An SVG is written by a model of its own, billed beside the one that drew: a call of its own, beside this one."""
    fields = _fields(usage)
    model = fields.get("model")
    if not isinstance(model, str):
        return
    state = call.state
    once.of("openai").record(
        f"chat {model}",
        {**client_attributes(state.client), names.OPERATION_NAME: "chat", names.RESPONSE_MODEL: model},
        lambda span: put_usage(span, state.provider, fields, model=model, form=OPENAI),
    )


def read_transcription(call: Call, result: Any) -> None:
    """Read a transcription or translation; one in plain text tells nothing."""
    fields = _fields(result)
    usage = fields.get("usage")
    if usage is not None:
        _put(call, usage)
        return
    duration = fields.get("duration")  # the verbose form, which is older than usage
    if type(duration) is str:
        duration = float(duration)
    if type(duration) in (int, float):
        put_usage(call, call.state.provider, {"seconds": duration}, model=call.state.model, form=OPENAI)


def read_usage_event(call: Call, event: Any) -> bool:
    """Read an event of a stream that tells its usage with its last event: images, transcription."""
    usage = _fields(event).get("usage")
    if usage is None:
        return False
    _put(call, usage)
    return True


def read_speech(call: Call, result: Any) -> None:
    """Read a spoken text: bytes, or the events that a caller asked to have in their place."""
    response = getattr(result, "response", None)
    if response is not None and response.headers.get("content-type", "").startswith("text/event-stream"):
        for line in reversed(result.content.splitlines()):
            if line.startswith(b"data:") and b'"usage"' in line:
                usage = json.loads(line[5:]).get("usage")
                call.attributes.pop(_CHARACTERS, None)
                _put(call, _spoken(usage))
                return


def _spoken(usage: Any) -> Any:
    """Usage of speech with its output told as the audio that all of it is."""
    if isinstance(usage, dict) and "output_token_details" not in usage and type(usage.get("output_tokens")) is int:
        return {**usage, "output_token_details": {"audio_tokens": usage["output_tokens"]}}
    return usage


_outlives_speech: Final = outliving(read_usage_event)


def speech_outlives(call: Call, result: Any) -> Any:
    """The provider has answered: the text's characters count, whatever becomes of the sound."""
    characters = call.state.characters
    if characters is not None:
        call.attributes[_CHARACTERS] = characters
    return _outlives_speech(call, result)


def read_free(call: Call, result: Any) -> None:
    """Read a moderation. A provider that bills it says so by telling usage."""
    fields = _fields(result)
    _strings(call.attributes, fields)
    if fields.get("usage") is not None:
        _put(call, fields["usage"])


def _api(target: str, operation: str, read: Callable[[Call, Any], None], read_chunk: ReadChunk) -> Api:
    return Api(f"openai.resources.{target}", request_reader(operation), read, outliving(read_chunk))


APIS: Final[tuple[Api, ...]] = (
    _api("embeddings:%sEmbeddings.create", "embeddings", read_result, read_usage_event),
    _api("completions:%sCompletions.create", "text_completion", read_chat, read_chat_chunk),
    _api("images:%sImages.generate", "image_generation", read_result, read_usage_event),
    _api("images:%sImages.edit", "image_generation", read_result, read_usage_event),
    _api("images:%sImages.create_variation", "image_generation", read_result, read_usage_event),
    _api("audio.transcriptions:%sTranscriptions.create", "transcription", read_transcription, read_usage_event),
    _api("audio.translations:%sTranslations.create", "translation", read_transcription, read_usage_event),
    Api("openai.resources.audio.speech:%sSpeech.create", request_reader("speech"), read_speech, speech_outlives),
    _api("moderations:%sModerations.create", "moderation", read_free, read_usage_event),
    _api("decisions:%sDecisions.create", DECISION, read_result, read_usage_event),
)
"""Each API here, synchronous and asynchronous alike."""
