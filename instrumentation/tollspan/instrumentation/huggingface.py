"""Hugging Face: every task of ``InferenceClient`` and ``AsyncInferenceClient``, through the one method that all of them
send with.

In: the wrap points below. What the client returns to the program often leaves the usage out (a plain string, an array,
chunks without details); the body that it makes that of still has it, so it is read there. Out: one CLIENT span a
request, with what the provider counted. What the program gets is made by the client alone.

Who bills: with a Hugging Face token requests go through its router and are billed by Hugging Face, at prices of its own
for each provider behind it (``huggingface_groq``); with a provider's own key they go to the provider. The address that
the request is sent to tells the two apart.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from typing import Any, ClassVar, Final
from urllib.parse import urlsplit

from tollspan.instrumentation import stream_usage
from tollspan.instrumentation.calls import Call, Opening, WrapPoint
from tollspan.instrumentation.guard import guard
from tollspan.instrumentation.providers import provider_of, said_of
from tollspan.instrumentation.streams import observe, observe_async
from tollspan.instrumentation.tables import opening, server, told
from tollspan.instrumentation.usage import put_usage
from tollspan.instrumentation.wrapping import Patches
from tollspan.pricing import attributes as names

__all__ = ["POINTS", "HuggingFaceInstrumentor"]

_PREPARED: Final = guard("huggingface.prepared")

PROVIDER: Final = "huggingface"
"""Hugging Face itself: its own inference, its endpoints, its router when it does not say whom it asked."""

ROUTER: Final = "router.huggingface.co"
AUTOMATIC: Final = "v1"
"""First part of the router's path where the router chooses the provider; otherwise it names the provider."""
POLICIES: Final = frozenset({"fastest", "cheapest", "preferred"})
"""What may follow a model's name in place of a provider."""

DIRECT: Final[dict[str, str]] = {"fireworks-ai": "fireworks", "zai-org": "zai"}
"""Provider as the client calls it → ``gen_ai.provider.name``, where the two differ."""

OPERATIONS: Final[dict[str, str]] = {
    "conversational": "chat",
    "text-generation": "text_completion",
    "feature-extraction": "embeddings",
    "text-to-image": "image_generation",
    "image-to-image": "image_generation",
    "automatic-speech-recognition": "transcription",
    "text-to-speech": "speech",
}
"""Task → ``gen_ai.operation.name``; every other one is `OPERATION_INFERENCE`."""

_PICTURES: Final = "image_generation"
_SPOKEN: Final = frozenset({"chat", "text_completion"})
_TEXT: Final = re.compile(r'"(?:usage|details)"\s*:\s*\{|"finish_reason"\s*:\s*"')
"""A line of a stream that says more than text. In text, quotation marks are escaped."""
_USAGE: Final = re.compile(rb'"usage"\s*:\s*(?=\{)')
_PICTURE: Final = re.compile(rb'"(?:b64_json|url)"\s*:\s*"')
_LAST: Final = "data: [DONE]"

_prepared: Final[ContextVar[tuple[int, str] | None]] = ContextVar("tollspan.huggingface.prepared", default=None)
"""The request prepared last, by its identity, and the model as Hugging Face knows it."""


class State:
    """What a call has on `Call.state`.

    Attributes:
        provider: who bills it.
        operation: ``gen_ai.operation.name``.
        streamed: the answer comes line by line.
        begun: a line of its stream has been read.
        body: what is about to be sent, of a chat's stream; the client's own dict.
        hides: usage was asked for that the program did not ask for, and has to be hidden from it.
    """

    __slots__ = ("begun", "body", "hides", "operation", "provider", "streamed")

    def __init__(self, provider: str, operation: str, streamed: bool, body: dict[str, Any] | None) -> None:
        self.provider = provider
        self.operation = operation
        self.streamed = streamed
        self.begun = False
        self.body = body
        self.hides = False


def _request(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Opening:
    client = args[0]
    asked = args[1] if len(args) > 1 else kwargs["request_parameters"]
    body = asked.json if isinstance(asked.json, dict) else {}
    # Text generation has its parameters one level down.
    inner = body.get("parameters")
    streamed = kwargs.get("stream") is True
    provider, model = _billed_by(client, asked)
    operation = OPERATIONS.get(asked.task, names.OPERATION_INFERENCE)
    state = State(provider, operation, streamed, body if streamed and operation == "chat" and asked.json else None)
    known = {names.PROVIDER_NAME: provider, **server(asked.url)}
    parameters = {**inner, **body} if isinstance(inner, dict) else body
    return opening(operation, model, parameters, known, streamed=streamed, state=state)


def _everything(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Mapping[str, Any]:
    """What is asked for: the task and the body, not the address and the headers, of which one is the token."""
    asked = args[1] if len(args) > 1 else kwargs["request_parameters"]
    body = asked.json if isinstance(asked.json, dict) else {"inputs": asked.json}
    return {**body, "data": asked.data, "task": asked.task, "model": _billed_by(args[0], asked)[1]}


def _billed_by(client: Any, asked: Any) -> tuple[str, str | None]:
    """Provider, and the model as the provider's prices call it."""
    url = urlsplit(asked.url)
    host = url.hostname or ""
    port = url.port or (80 if url.scheme == "http" else 443)
    model = asked.model if isinstance(asked.model, str) and "://" not in asked.model else None
    if host == ROUTER:
        prepared = _prepared.get()
        if prepared is not None and prepared[0] == id(asked):
            model = prepared[1]
        route = url.path.strip("/").partition("/")[0]
        if route == AUTOMATIC and model is not None:
            model, _, route = model.partition(":")
        if (said := said_of(host, port)) is not None:
            return said, model
        if not route or route in POLICIES or route in (AUTOMATIC, "hf-inference"):
            return PROVIDER, model
        return f"{PROVIDER}_{route}", model
    if model is None:
        given = asked.json.get("model") if isinstance(asked.json, dict) else None
        model = given if isinstance(given, str) and "://" not in given else None
    name = client.provider
    # A URL in the model's place is an endpoint of its own, whatever provider the client names.
    if not isinstance(name, str) or name in ("auto", "hf-inference") or "://" in str(asked.model):
        name = PROVIDER
    return provider_of(host, port, DIRECT.get(name, name)), model


def _read(call: Call, body: Any) -> None:
    """Read the body of an answer, bytes."""
    operation = call.state.operation
    if operation in _SPOKEN:
        whole = parsed(body)
        if isinstance(whole, list):
            whole = whole[0] if whole else None
        if isinstance(whole, dict):
            _tell(call, whole)
        return
    if operation == _PICTURES:
        # Bytes that are not JSON are one picture.
        made = len(_PICTURE.findall(body)) if body[:1] in b"{[" else 1
        if made:
            call.attributes[names.usage("images")] = made
        return
    # Vectors are long: only what stands under "usage" is parsed.
    found = [match.end() for match in _USAGE.finditer(body)] if body[:1] == b"{" else []
    if found:
        usage, _ = json.JSONDecoder().raw_decode(body[found[-1] :].decode())
        put_usage(call, call.state.provider, usage)


def _read_line(call: Call, line: Any) -> bool | None:
    """Read a line of a stream."""
    if not isinstance(line, str) or not line.startswith("data:"):
        return None
    if line.strip() == _LAST:
        call.end()  # the client reads no further
        return True
    state = call.state
    if state.begun and not _TEXT.search(line):
        return None
    state.begun = True
    whole = parsed(line[len("data:") :])
    return _tell(call, whole) if isinstance(whole, dict) else None


def parsed(text: bytes | str) -> Any:
    """Value of a text of JSON; None where it is none, which the client will complain of."""
    try:
        return json.loads(text)
    except ValueError:
        return None


def _tell(call: Call, whole: Mapping[str, Any]) -> bool:
    """Put what an answer or a chunk of one says on the span. True when that was the usage."""
    told(call, whole, id=names.RESPONSE_ID, model=names.RESPONSE_MODEL)
    reasons = [choice.get("finish_reason") for choice in whole.get("choices") or () if isinstance(choice, dict)]
    details = whole.get("details")
    usage = whole.get("usage") or _under(whole, "x_groq").get("usage")
    if isinstance(details, dict):
        reasons.append(details.get("finish_reason"))
        usage = _of_details(details)
    reasons = [reason for reason in reasons if isinstance(reason, str)]
    if reasons:
        call.attributes[names.RESPONSE_FINISH_REASONS] = tuple(reasons)
    if not isinstance(usage, dict):
        return False
    put_usage(call, call.state.provider, usage, model=call.attributes.get(names.RESPONSE_MODEL), response=whole)
    return True


def _under(whole: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = whole.get(key)
    return value if isinstance(value, dict) else {}


def _of_details(details: Mapping[str, Any]) -> dict[str, Any]:
    """Usage as Text Generation Inference tells it."""
    usage = {"completion_tokens": details.get("generated_tokens"), "prompt_tokens": details.get("input_length")}
    prefill = details.get("prefill")
    if usage["prompt_tokens"] is None and isinstance(prefill, list) and prefill:
        usage["prompt_tokens"] = len(prefill)  # the tokens of the prompt, given where they were asked for
    return {name: count for name, count in usage.items() if count is not None}


def _outlives(call: Call, result: Any) -> Any:
    if not call.state.streamed:
        return None
    if call.state.hides:
        hiding = stream_usage.observe_async if call.point.asynchronous else stream_usage.observe
        return hiding(call, result, _read_line, _only_usage)
    return (observe_async if call.point.asynchronous else observe)(call, result, _read_line)


def _ask(call: Call, kwargs: dict[str, Any]) -> None:
    """Ask for the usage of a chat's stream, unless the program has a word in it. For `WrapPoint.prepare`."""
    body, call.state.body = call.state.body, None
    if body is None:
        return
    options = body.get(stream_usage.OPTIONS)
    if options is None or (isinstance(options, dict) and stream_usage.says_nothing(options)):
        body[stream_usage.OPTIONS] = {**(options or {}), stream_usage.INCLUDE: True}
        call.state.hides = True


def _only_usage(line: Any) -> bool:
    """Whether a line of a stream carries the usage and nothing else."""
    if not isinstance(line, str) or not line.startswith("data:") or '"usage"' not in line or line.strip() == _LAST:
        return False
    whole = json.loads(line[len("data:") :])
    return isinstance(whole, dict) and whole.get("choices") == [] and isinstance(whole.get("usage"), dict)


def _error(call: Call, error: BaseException) -> None:
    status = getattr(getattr(error, "response", None), "status_code", None)
    if type(status) is int:
        call.attributes[names.HTTP_STATUS] = status


_SYNC: Final = "huggingface_hub.inference._client:InferenceClient._inner_post"
_ASYNC: Final = "huggingface_hub.inference._generated._async_client:AsyncInferenceClient._inner_post"
_PREPARE: Final = "huggingface_hub.inference._providers._common:TaskProviderHelper.prepare_request"

POINTS: Final = tuple(
    WrapPoint(
        target=target,
        request=_request,
        response=_read,
        error=_error,
        outlives=_outlives,
        asked=_everything,
        asynchronous=target == _ASYNC,
    )
    for target in (_SYNC, _ASYNC)
)
"""Every wrapped function."""


def _remember(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def prepare_request(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        with _PREPARED:
            model = kwargs.get("model")
            _prepared.set((id(result), model) if isinstance(model, str) else None)
        return result

    return prepare_request


class HuggingFaceInstrumentor(stream_usage.AskingInstrumentor):
    """Spans for the inference clients of ``huggingface_hub``. See `CallInstrumentor`."""

    scope: ClassVar[str] = "tollspan.instrumentation.huggingface"
    requires: ClassVar[tuple[str, ...]] = ("huggingface_hub >= 1.33",)
    points: ClassVar[tuple[WrapPoint, ...]] = POINTS
    streams: ClassVar[tuple[str, ...]] = ("._inner_post",)
    prepare = staticmethod(_ask)

    def patch(self, patches: Patches) -> None:
        patches.add(_PREPARE, _remember)
