"""Mistral: the ``mistralai`` client, also as Azure and Google Cloud serve it.

In: the wrap points below, made of one table of methods. Out: one CLIENT span a request, with the tokens, pages and
seconds of sound that the provider counted. ``chat.parse`` and ``parse_stream`` reach ``complete`` and ``stream`` and so
get their span there, as ``conversations.run_async`` gets one for each of its requests.

The client has tracing of its own, off by default since version 2. Where it is on and its spans go where ours go, the
calls that have a span of ours get none of its: each would carry the usage again. What it sends to a provider of its own
it goes on sending.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Final, NamedTuple

from tollspan.instrumentation import mistral_batches, mistral_realtime
from tollspan.instrumentation.calls import Call, Opening, WrapPoint, open_call
from tollspan.instrumentation.guard import guard
from tollspan.instrumentation.once import OnceInstrumentor
from tollspan.instrumentation.providers import address_attributes
from tollspan.instrumentation.tables import Attempts, given, opening, outliving, told, word
from tollspan.instrumentation.usage import put_usage
from tollspan.instrumentation.wrapping import Patches
from tollspan.pricing import attributes as names

__all__ = ["POINTS", "MistralInstrumentor"]

_log: Final = logging.getLogger(__name__)
_NOTHING: Final[Mapping[str, Any]] = {}
_NATIVE: Final = guard("mistral.native")

_PAGES: Final = names.usage("pages")
_ANNOTATED_PAGES: Final = names.usage("pages.annotated")


class Method(NamedTuple):
    """One method of the client, which has a twin that ends in ``_async``.

    Attributes:
        target: module, class and method, below the package.
        operation: ``gen_ai.operation.name``.
        streamed: it returns a stream.
    """

    target: str
    operation: str
    streamed: bool = False


_CHAT: Final = (Method("chat:Chat.complete", "chat"), Method("chat:Chat.stream", "chat", True))
_FIM: Final = (
    Method("fim:Fim.complete", "text_completion"),
    Method("fim:Fim.stream", "text_completion", True),
)
_OCR: Final = (Method("ocr:Ocr.process", "generate_content"),)

METHODS: Final = (
    *_CHAT,
    *_FIM,
    *_OCR,
    Method("agents:Agents.complete", "chat"),
    Method("agents:Agents.stream", "chat", True),
    *(
        Method(f"conversations:Conversations.{name}{suffix}", "chat", bool(suffix))
        for name in ("start", "append", "restart")
        for suffix in ("", "_stream")
    ),
    Method("embeddings:Embeddings.create", "embeddings"),
    Method("transcriptions:Transcriptions.complete", "transcription"),
    Method("transcriptions:Transcriptions.stream", "transcription", True),
    Method("speech:Speech.complete", "speech"),
    # These tell no usage, and what they ask is not always billed.
    Method("classifiers:Classifiers.moderate", "moderation"),
    Method("classifiers:Classifiers.moderate_chat", "moderation"),
    Method("classifiers:Classifiers.classify", "classification"),
    Method("classifiers:Classifiers.classify_chat", "classification"),
)
"""Every method that asks a model."""


class Package(NamedTuple):
    """A package that has these methods.

    Attributes:
        name: its name; a package that the program never imports costs nothing.
        provider: who bills the calls, unless the address says another.
        methods: those of `METHODS` that it has.
    """

    name: str
    provider: str
    methods: tuple[Method, ...]


PACKAGES: Final = (
    Package("mistralai.client", "mistral_ai", METHODS),
    Package("mistralai.azure.client", "azure.ai.inference", (*_CHAT, *_OCR)),
    Package("mistralai.gcp.client", "gcp.vertex_ai", (*_CHAT, *_FIM)),
    # Version 1
    Package("mistralai", "mistral_ai", METHODS),
    Package("mistralai_azure", "azure.ai.inference", (*_CHAT, *_OCR)),
    Package("mistralai_gcp", "gcp.vertex_ai", (*_CHAT, *_FIM)),
)

ATTEMPTS: Final = {
    package.name: Attempts(f"{package.name}._hooks.sdkhooks:SDKHooks.before_request") for package in PACKAGES
}
"""Package → its count of attempts: each passes the client's hooks before it is sent."""


class State:
    """What a call has on `Call.state`.

    Attributes:
        provider: who bills it.
        annotated: pages are asked to be annotated, which is another meter.
        reasons: finish reasons seen so far, by the index of their choice.
    """

    __slots__ = ("annotated", "provider", "reasons")

    def __init__(self, provider: str, annotated: bool) -> None:
        self.provider = provider
        self.annotated = annotated
        self.reasons: dict[int, str] = {}


def _is_given(value: Any) -> bool:
    # What the client puts in the place of an argument that was not given is false.
    return value is not None and bool(value)


def _request(provider: str, method: Method) -> Callable[[tuple[Any, ...], dict[str, Any]], Opening]:
    def request(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Opening:
        url = kwargs.get("server_url")
        client = address_attributes(
            url if isinstance(url, str) else args[0].sdk_configuration.get_server_details()[0], provider
        )
        annotated = any(
            _is_given(kwargs.get(field)) for field in ("bbox_annotation_format", "document_annotation_format")
        )
        asked = kwargs
        if isinstance(arguments := kwargs.get("completion_args"), dict):  # a conversation's
            asked = {**kwargs, **arguments}
        made = opening(
            method.operation,
            kwargs.get("model"),
            asked,
            client,
            streamed=method.streamed or kwargs.get("stream") is True,
            state=State(client[names.PROVIDER_NAME], annotated),
        )
        tier = kwargs.get("service_tier")
        if isinstance(tier, str) and tier and tier != "auto":
            made.attributes[names.OPENAI_REQUEST_SERVICE_TIER] = tier
        return made

    return request


def read(call: Call, response: Any) -> bool:
    """Read a response, or what an event of a stream carries. True when it tells the usage."""
    # The instance dict is read directly: a field that a model lacks costs an exception to ask for.
    fields: Mapping[str, Any] = getattr(response, "__dict__", _NOTHING)
    told(call, fields, id=names.RESPONSE_ID, model=names.RESPONSE_MODEL, conversation_id=names.CONVERSATION_ID)
    for choice in fields.get("choices") or ():
        reason = word(getattr(choice, "finish_reason", None))
        if reason is not None:
            reasons = call.state.reasons
            reasons[getattr(choice, "index", None) or 0] = reason
            call.attributes[names.RESPONSE_FINISH_REASONS] = [reasons[index] for index in sorted(reasons)]
    usage = fields.get("usage") or fields.get("usage_info")  # OCR
    if usage is None or not (counts := given(usage)):
        return False
    put_usage(call, call.state.provider, counts)
    pages = call.attributes.pop(_PAGES, None) if call.state.annotated else None
    if pages is not None:
        call.attributes[_ANNOTATED_PAGES] = pages
    return True


def read_event(call: Call, event: Any) -> bool:
    """Read an event of a stream. True when nothing more is to come that matters."""
    data = getattr(event, "data", None)
    fields: Mapping[str, Any] = getattr(data, "__dict__", _NOTHING)
    if fields.get("type") == "conversation.response.error":
        code = fields.get("code")
        message = fields.get("message")
        call.note_failure("error" if code is None else str(code), message if isinstance(message, str) else None)
        return True
    has_usage = read(call, data)
    # Chat tells the usage with the reason why it finished; the other streams, in their last event.
    return has_usage and (bool(call.state.reasons) or "choices" not in fields)


def _response(call: Call, response: Any) -> None:
    read(call, response)


def _points() -> tuple[WrapPoint, ...]:
    outlives = outliving(read_event)
    return tuple(
        WrapPoint(
            target=f"{package.name}.{method.target}{suffix}",
            request=_request(package.provider, method),
            response=_response,
            outlives=outlives,
            finish=ATTEMPTS[package.name].known,
            asynchronous=bool(suffix),
        )
        for package in PACKAGES
        for method in package.methods
        for suffix in ("", "_async")
    )


POINTS: Final = (*_points(), *mistral_realtime.POINTS)
"""Every wrapped function: each method of each package, synchronous and asynchronous; and realtime connections."""

_TRACED: Final = "%s._hooks.tracing:get_traced_request_and_span"
_told: Final[list[bool]] = []


def _without_native(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def get_traced_request_and_span(*args: Any, **kwargs: Any) -> Any:
        with _NATIVE:
            call = open_call()
            if call is not None and kwargs.get("tracing_enabled") and _same_pipeline(call, kwargs.get("tracer")):
                if not _told:
                    _told.append(True)
                    _log.info(
                        "the mistralai client traces its calls itself: its spans are left out for calls that have one "
                        "of ours, so that each is counted once. To have them instead, switch this instrumentation off "
                        "(OTEL_PYTHON_DISABLED_INSTRUMENTATIONS=tollspan_mistral)."
                    )
                kwargs = {**kwargs, "tracing_enabled": False}
        return original(*args, **kwargs)

    return get_traced_request_and_span


def _same_pipeline(call: Call, tracer: Any) -> bool:
    """Whether a span of ``tracer`` would go where the call's span goes."""
    # Neither attribute is public. A span that is not recorded goes nowhere, and its children with it.
    ours = getattr(call.span, "_span_processor", None)
    return ours is not None and getattr(tracer, "span_processor", None) is ours


class MistralInstrumentor(OnceInstrumentor):
    """Spans for the ``mistralai`` client. See `CallInstrumentor`."""

    scope: ClassVar[str] = "tollspan.instrumentation.mistral"
    requires: ClassVar[tuple[str, ...]] = ("mistralai >= 1.12.2",)
    points: ClassVar[tuple[WrapPoint, ...]] = POINTS

    def patch(self, patches: Patches) -> None:
        for package, attempts in ATTEMPTS.items():
            attempts.patch(patches)
            patches.add(_TRACED % package, _without_native)
        mistral_batches.patch(patches)
        mistral_realtime.patch(patches)
