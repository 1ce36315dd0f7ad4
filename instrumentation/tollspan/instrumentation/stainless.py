"""Groq and Together: clients of their own that are made as OpenAI's is, and speak its protocol.

In: a table of methods for each client; requests, finish reasons and raw responses are read as `openai` reads them. Out:
one CLIENT span a request with the usage that the provider counted. Groq tells a stream's usage in a field of its own,
``x_groq``, without being asked. Several models in one call are `groq_models`, videos are `together_videos`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, ClassVar, Final, NamedTuple

from tollspan.instrumentation import groq_models, stream_usage, together_videos
from tollspan.instrumentation.calls import Call, Opening, WrapPoint
from tollspan.instrumentation.once import OnceInstrumentor
from tollspan.instrumentation.openai.readers import State
from tollspan.instrumentation.openai.results import RAW
from tollspan.instrumentation.providers import client_attributes
from tollspan.instrumentation.streams import observe, observe_async
from tollspan.instrumentation.tables import Attempts, given, opening, told
from tollspan.instrumentation.usage import put_usage
from tollspan.instrumentation.wrapping import Patches
from tollspan.pricing import attributes as names

__all__ = ["CLIENTS", "GroqInstrumentor", "TogetherInstrumentor"]

_CHARACTERS: Final = names.usage("characters")


class Method(NamedTuple):
    """One method of a client, synchronous and asynchronous.

    Attributes:
        target: module below ``resources``, class with a place for the prefix ``Async``, and method.
        operation: ``gen_ai.operation.name``.
        read: reads its result in a way of its own.
    """

    target: str
    operation: str
    read: Callable[[Call, Any], None] | None = None


class Client(NamedTuple):
    """A client.

    Attributes:
        package: its package.
        provider: ``gen_ai.provider.name``, unless the address is another's.
        methods: its methods that ask a model.
    """

    package: str
    provider: str
    methods: tuple[Method, ...]


def _methods(suffix: str, *extra: Method) -> tuple[Method, ...]:
    return (
        Method(f"chat.completions:%sCompletions{suffix}.create", "chat"),
        Method(f"embeddings:%sEmbeddings{suffix}.create", "embeddings"),
        Method(f"audio.transcriptions:%sTranscriptions{suffix}.create", "transcription"),
        Method(f"audio.translations:%sTranslations{suffix}.create", "translation"),
        Method(f"audio.speech:%sSpeech{suffix}.create", "speech"),
        *extra,
    )


GROQ: Final = Client("groq", "groq", _methods(""))
TOGETHER: Final = Client(
    "together",
    "together",
    _methods(
        "Resource",
        Method("completions:%sCompletionsResource.create", "text_completion"),
        Method("images:%sImagesResource.generate", "image_generation"),
        Method("rerank:%sRerankResource.create", "rerank"),
        Method("videos:%sVideosResource.create", together_videos.OPERATION, together_videos.read_asked),
    ),
)
CLIENTS: Final = (GROQ, TOGETHER)


class Asked(State):
    """What a call has on `Call.state`.

    Attributes:
        provider: who bills it.
        characters: length of the text to speak; None for other calls.
        models: models that answered and what each used, where several did.
        searches: numbers of the provider's own tools that searched the web.
    """

    __slots__ = ("characters", "models", "provider", "searches")

    def __init__(self, client: Any, streamed: bool, provider: str, characters: int | None) -> None:
        super().__init__(client, streamed)
        self.provider = provider
        self.characters = characters
        self.models: list[tuple[str, Any]] = []
        self.searches: set[int] = set()


def _attributes_of(client: Client) -> Callable[[Any], dict[str, Any]]:
    """Reader of what is known of a client that asks. Its result is shared: copy before adding to it."""

    def own(kind: type) -> str:
        return client.provider

    return lambda asks: client_attributes(asks, asks._base_url, own)


def _request(client: Client, method: Method) -> Callable[[tuple[Any, ...], dict[str, Any]], Opening]:
    speaks = method.operation == "speech"
    attributes_of = _attributes_of(client)

    def request(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Opening:
        asked = args[0]._client
        streamed = kwargs.get("stream") is True
        text = kwargs.get("input") if speaks else None
        attributes = attributes_of(asked)
        state = Asked(asked, streamed, attributes[names.PROVIDER_NAME], len(text) if isinstance(text, str) else None)
        made = opening(method.operation, kwargs.get("model"), kwargs, attributes, streamed=streamed, state=state)
        tier = kwargs.get("service_tier")
        if isinstance(tier, str) and tier != "auto":
            made.attributes[names.OPENAI_REQUEST_SERVICE_TIER] = tier
        return made

    return request


def read(call: Call, response: Any) -> bool:
    """Read a response, a part of a stream, or the body of either. True when it told the usage."""
    fields = given(response)
    attributes = call.attributes
    state = call.state
    if names.RESPONSE_ID not in attributes:
        told(call, fields, id=names.RESPONSE_ID, model=names.RESPONSE_MODEL)
    told(call, fields, service_tier=names.OPENAI_RESPONSE_SERVICE_TIER)
    for choice in fields.get("choices") or ():
        choice = given(choice)
        reason = choice.get("finish_reason")
        if isinstance(reason, str) and reason:
            state.reasons[choice.get("index") or 0] = reason
            attributes[names.RESPONSE_FINISH_REASONS] = [state.reasons[index] for index in sorted(state.reasons)]
        state.searches |= groq_models.searches_of(given(choice.get("delta" if state.streamed else "message")))
    usage = fields.get("usage")
    around = given(fields.get("x_groq")) if state.streamed else fields
    if usage is None and state.streamed:
        usage = around.get("usage")
    state.models = groq_models.models_of(around) or state.models
    if usage is not None:
        put_usage(call, state.provider, usage)
    elif "data" in fields:  # images that are not billed by tokens; embeddings have no URL
        put_usage(call, state.provider, None, response=response)
    return usage is not None


def _response(call: Call, response: Any) -> None:
    read(call, response)


def _finish(attempts: Attempts) -> Callable[[Call], None]:
    def finish(call: Call) -> None:
        attempts.known(call)
        # The sound tells nothing. The text's characters count once the provider has answered.
        characters = call.state.characters
        if characters is not None and names.ERROR_TYPE not in call.attributes:
            call.attributes[_CHARACTERS] = characters
        groq_models.tell_searches(call, call.state.searches)
        if call.state.models:
            groq_models.split(call, call.state.provider, call.state.models)

    return finish


def read_chunk(call: Call, chunk: Any) -> bool:
    """Read a part of a stream. True when it told the usage and the reason why the answer ended."""
    return read(call, chunk) and bool(call.state.reasons)


def _outliving(package: str) -> Callable[[Call, Any], Any]:
    def outlives(call: Call, result: Any) -> Any:
        if hasattr(result, "__next__"):
            return (stream_usage.observe if call.state.hides else observe)(call, result, read_chunk)
        if hasattr(result, "__anext__"):
            return (stream_usage.observe_async if call.state.hides else observe_async)(call, result, read_chunk)
        # Loaded, or the call could not have been made.
        if isinstance(result, sys.modules[f"{package}._response"].BaseAPIResponse):
            return RAW.keep(call, result)
        return None

    return outlives


def _points(client: Client, attempts: Attempts) -> tuple[WrapPoint, ...]:
    outlives, finish = _outliving(client.package), _finish(attempts)
    return tuple(
        WrapPoint(
            target=f"{client.package}.resources.{method.target % prefix}",
            request=_request(client, method),
            response=method.read or _response,
            finish=finish,
            outlives=outlives,
            asynchronous=bool(prefix),
        )
        for method in client.methods
        for prefix in ("", "Async")
    )


def _ask(call: Call, kwargs: dict[str, Any]) -> None:
    """Ask for the usage of a stream. For `WrapPoint.prepare`."""
    call.state.hides = stream_usage.ask_in_body(kwargs)


class _StainlessInstrumentor(OnceInstrumentor):
    """What the clients share: raw responses and attempts.

    Attributes:
        client: the client's table.
        attempts: the client's count of attempts: each has its request built.
    """

    client: ClassVar[Client]
    attempts: ClassVar[Attempts]

    def patch(self, patches: Patches) -> None:
        self.attempts.patch(patches)
        RAW.patch(patches, self.client.package)


_GROQ_ATTEMPTS: Final = Attempts("groq._base_client:BaseClient._build_request")
_TOGETHER_ATTEMPTS: Final = Attempts("together._base_client:BaseClient._build_request")


class GroqInstrumentor(_StainlessInstrumentor):
    """Spans for the ``groq`` client. See `CallInstrumentor`."""

    scope: ClassVar[str] = "tollspan.instrumentation.groq"
    requires: ClassVar[tuple[str, ...]] = ("groq >= 0.37",)
    client: ClassVar[Client] = GROQ
    attempts: ClassVar[Attempts] = _GROQ_ATTEMPTS
    points: ClassVar[tuple[WrapPoint, ...]] = _points(GROQ, _GROQ_ATTEMPTS)


class TogetherInstrumentor(stream_usage.AskingInstrumentor, _StainlessInstrumentor):
    """Spans for the ``together`` client. See `CallInstrumentor`."""

    scope: ClassVar[str] = "tollspan.instrumentation.together"
    requires: ClassVar[tuple[str, ...]] = ("together >= 2.42",)
    client: ClassVar[Client] = TOGETHER
    attempts: ClassVar[Attempts] = _TOGETHER_ATTEMPTS
    points: ClassVar[tuple[WrapPoint, ...]] = _points(TOGETHER, _TOGETHER_ATTEMPTS)
    streams: ClassVar[tuple[str, ...]] = ("CompletionsResource.create",)
    prepare = staticmethod(_ask)

    def patch(self, patches: Patches) -> None:
        super().patch(patches)
        together_videos.patch(patches, _attributes_of(TOGETHER))
