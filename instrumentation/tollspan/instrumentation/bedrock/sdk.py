"""Bedrock through ``aws_sdk_bedrock_runtime``, the client of AWS's newer SDK for Python, which alone speaks both ways.

In: the client's methods, whose requests, responses and events are dataclasses. Out: what botocore's calls give, read by
the same `readers`; and for a bidirectional stream (Nova Sonic) one span a session, with what its last ``usageEvent``
says: its totals count the whole session so far.

What comes as a stream is the library's object, in which the receiver of events is a proxy; a session is one itself, for
it has no receiver before the program asks for it. The client keeps no headers of a response, so that a body of
``InvokeModel`` that tells no usage leaves the call without any, and says nothing of attempts.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

from tollspan.instrumentation.bedrock import deferred, readers
from tollspan.instrumentation.bedrock.requests import PROVIDER, State, client_attributes, fields, opened, with_body
from tollspan.instrumentation.calls import Call, Opening, WrapPoint
from tollspan.instrumentation.streams import AsyncStream, ReadChunk, Reading, Stream, _standing
from tollspan.instrumentation.usage import put_usage
from tollspan.instrumentation.wrapping import Patches
from tollspan.pricing import attributes as names

_CLIENT: Final = "aws_sdk_bedrock_runtime.client:%s.%s"
_CLASSES: Final = ("AsyncBedrockRuntimeClient", "BedrockRuntimeClient")
"""Names that the client has had."""

METHODS: Final[dict[str, str]] = {
    "converse": "Converse",
    "converse_stream": "ConverseStream",
    "invoke_model": "InvokeModel",
    "invoke_model_with_response_stream": "InvokeModelWithResponseStream",
    "invoke_model_with_bidirectional_stream": "InvokeModelWithBidirectionalStream",
    "start_async_invoke": "StartAsyncInvoke",
}
"""Method of the client → operation."""

PARAMETERS: Final = ("model_id", "inference_config", "service_tier", "model_input")
"""Fields of a request that its span tells."""
ANSWERED: Final = ("usage", "stop_reason", "service_tier", "performance_config", "performance_config_latency")
"""Fields of a response that its span tells, beside the model that a router chose."""
INVOCATION: Final = ("invocation_arn", "model_arn", "status", "submit_time", "end_time")
"""Fields that tell of an invocation that is answered later."""

_TELLING: Final = re.compile(rb'"(usageEvent|completionStart|completionEnd)"')
_BEGINNING: Final = 64
"""Bytes of an event that say what it is. Most are sound, and are not looked at any further."""


def plain(shape: Any) -> Any:
    """A shape of the client by the names of the wire."""
    if dataclasses.is_dataclass(shape) and not isinstance(shape, type):
        own = {field.name: getattr(shape, field.name) for field in dataclasses.fields(shape)}
        if own.keys() == {"value"}:
            return {_variant(type(shape).__name__): plain(own["value"])}
        return {_wire_name(name): plain(value) for name, value in own.items() if value is not None}
    if isinstance(shape, (list, tuple)):
        return [plain(item) for item in shape]
    if isinstance(shape, dict):
        return {name: plain(value) for name, value in shape.items()}
    # JSON inside a shape, as a tool's input is, has a class of its own.
    return shape.as_value() if hasattr(shape, "as_value") else shape


VARIANTS: Final = (
    *("text", "image", "document", "video", "audio", "toolUse", "toolResult", "guardContent", "cachePoint"),
    *("reasoningContent", "reasoningText", "redactedContent", "signature", "citationsContent", "citation"),
    *("searchResult", "toolAddition", "toolRemoval", "json", "bytes", "s3Location", "content", "message"),
    *("tool", "any", "auto", "toolSpec", "systemTool", "jsonSchema", "s3OutputDataConfig", "chunk", "metadata"),
    *("messageStart", "messageStop", "contentBlockStart", "contentBlockDelta", "contentBlockStop"),
)
"""Variants of the unions in requests and responses. Their classes are named after the union and the variant."""


@functools.lru_cache(maxsize=512)
def _variant(kind: str) -> str:
    """Name of a variant on the wire, by the name of its class; that name itself where the variant is not known."""
    return max((name for name in VARIANTS if kind.endswith(name[0].upper() + name[1:])), key=len, default=kind)


@functools.lru_cache(maxsize=512)
def _wire_name(name: str) -> str:
    first, *others = name.rstrip("_").split("_")
    return first + "".join(part.capitalize() for part in others)


def _picked(shape: Any, wanted: tuple[str, ...]) -> dict[str, Any]:
    values = ((name, getattr(shape, name, None)) for name in wanted)
    return {_wire_name(name): plain(value) for name, value in values if value is not None}


def _answer(output: Any) -> dict[str, Any]:
    """A response, or the last event of a stream, as far as it is read."""
    answer = _picked(output, ANSWERED)
    router = getattr(getattr(output, "trace", None), "prompt_router", None)
    return answer if router is None else {**answer, "trace": {"promptRouter": plain(router)}}


# -- requests ----------------------------------------------------------------------------------------------------------


def _input(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    return args[1] if len(args) > 1 else kwargs.get("input")


def _request(operation: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Opening:
    client = args[0]
    return opened(client, operation, _picked(_input(args, kwargs), PARAMETERS), _client(client))


def _client(client: Any) -> dict[str, Any]:
    """Attributes of a client; one without a configuration finds it with its first call."""
    config = client._config
    region = getattr(config, "region", None)
    uri = getattr(config, "endpoint_uri", None)
    if uri is not None:
        build = getattr(uri, "build", None)
        return client_attributes(uri if build is None else build(), region)
    return client_attributes(f"https://bedrock-runtime.{region}.amazonaws.com" if region else "", region)


def _asked(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Mapping[str, Any]:
    """The whole request. A session is asked by the events that are sent to it: here it is only opened."""
    asked = with_body(fields(plain(_input(args, kwargs))))
    return asked if asked.keys() - {"modelId"} else {}


# -- responses ---------------------------------------------------------------------------------------------------------


def _response(call: Call, result: Any) -> None:
    state: State = call.state
    answer = _answer(result)
    if state.asked == "StartAsyncInvoke":
        answer["invocationArn"] = result.invocation_arn
    readers.read_response(call, answer)
    if state.asked == "InvokeModel":
        body = result.body
        if not readers.read_body(call, body if isinstance(body, bytes) else b""):
            readers.put_counted(call, {})
    _late(call)


def _late(call: Call) -> None:
    """What a client without a configuration did not know when the call began."""
    if names.SERVER_ADDRESS not in call.opened:
        call.attributes.update(_client(call.state.client))


def _error(call: Call, error: BaseException) -> None:
    status = getattr(getattr(error, "response_metadata", None), "http_status_code", None)
    if type(status) is int and status >= 400:
        call.attributes[names.HTTP_STATUS] = status
    _late(call)


def _outlives(call: Call, result: Any) -> Any:
    read = READERS.get(call.state.asked)
    if read is None:
        return None
    _late(call)
    if hasattr(result, "await_output"):
        return _standing(Session, result, Reading(call, _Source(), read))
    source = _Source()
    source.receiver = result.output_stream
    if (output := getattr(result, "output", None)) is not None:
        readers.answered(call, _answer(output))
    result.output_stream = _standing(Receiver, source.receiver, Reading(call, source, read))
    return result


def _read_event(call: Call, event: Any) -> bool:
    value, kind = getattr(event, "value", None), type(event).__name__
    if kind.endswith("Metadata"):
        return readers.read_event(call, {"metadata": _answer(value)})
    if kind.endswith("MessageStop"):
        return readers.read_event(call, {"messageStop": _picked(value, ("stop_reason",))})
    return False


def _read_chunk(call: Call, event: Any) -> bool:
    return readers.read_chunk(call, {"chunk": {"bytes": getattr(getattr(event, "value", None), "bytes_", None)}})


def read_session(call: Call, event: Any) -> bool:
    """Read an event of a bidirectional stream. True when what was asked so far is answered, and counted."""
    data = getattr(getattr(event, "value", None), "bytes_", None)
    if not data or not (telling := _TELLING.search(data[:_BEGINNING])):
        return False
    kind = telling[1].decode()
    event = fields(fields(json.loads(data)).get("event")).get(kind)
    event = fields(event)
    if isinstance(session := event.get("sessionId"), str):
        call.attributes[names.CONVERSATION_ID] = session
    if kind == "usageEvent":
        put_usage(call, PROVIDER, _session_usage(event))
    elif isinstance(reason := event.get("stopReason"), str):
        call.attributes[names.RESPONSE_FINISH_REASONS] = [reason.lower()]
    return kind == "completionEnd"


def _session_usage(event: Mapping[str, Any]) -> dict[str, Any]:
    """A ``usageEvent`` as a usage object: its totals hold both speech and text."""
    total = fields(fields(event.get("details")).get("total"))
    usage: dict[str, Any] = {}
    for side in ("input", "output"):
        whole, parts = event.get(f"total{side.capitalize()}Tokens"), fields(total.get(side))
        if whole is not None:
            usage[f"{side}_tokens"] = whole
        speech = parts.get("speechTokens")
        if speech is not None:
            usage[f"{side}_token_details"] = {"audio_tokens": speech, "text_tokens": parts.get("textTokens")}
    return usage


READERS: Final[dict[str, ReadChunk]] = {
    "ConverseStream": _read_event,
    "InvokeModelWithResponseStream": _read_chunk,
    "InvokeModelWithBidirectionalStream": read_session,
}
"""Operation whose answer is a stream → how its events are read."""


# -- streams -----------------------------------------------------------------------------------------------------------


class _Source:
    """What `Reading` takes events from: a receiver says by None that there are no more."""

    __slots__ = ("receiver",)

    receiver: Any

    async def __anext__(self) -> Any:
        event = await self.receiver.receive()
        if event is None:
            raise StopAsyncIteration
        return event


async def _next_event(self: Any) -> Any:
    # The library's own, which receives and closes through us.
    return await type(self._tollspan_subject).__anext__(self)


class Receiver(Stream):
    """Stands in for an ``EventReceiver``."""

    __slots__ = ()
    special = MappingProxyType({"__aiter__": lambda self: self, "__anext__": _next_event})

    async def receive(self) -> Any:
        try:
            return await self._tollspan_reading.anext()
        except StopAsyncIteration:
            return None


class Session(Stream):
    """Stands in for a ``DuplexEventStream``."""

    __slots__ = ()
    special = MappingProxyType({name: AsyncStream.special[name] for name in ("__aenter__", "__aexit__")})

    async def await_output(self) -> Any:
        stream, reading = self._tollspan_subject, self._tollspan_reading
        try:
            output, receiver = await stream.await_output()
        except BaseException as error:
            reading._stopped(error, StopAsyncIteration)
            raise
        reading._source.receiver = receiver
        # The stream keeps what it gave, and closes it.
        stream.output_stream = _standing(Receiver, receiver, reading)
        return output, stream.output_stream


POINTS: Final = tuple(
    WrapPoint(
        target=_CLIENT % (kind, method),
        request=functools.partial(_request, operation),
        response=_response,
        error=_error,
        outlives=_outlives,
        asked=_asked,
        asynchronous=True,
    )
    for kind in _CLASSES
    for method, operation in METHODS.items()
)
"""Every wrapped function."""


def _looked(instance: Any, kwargs: dict[str, Any], args: tuple[Any, ...], result: Any) -> None:
    deferred.bill(_client(instance), _picked(result, INVOCATION))


def patch(patches: Patches) -> None:
    """Look at the invocations that the program asks after."""
    for kind in _CLASSES:
        deferred.ONCE.after(patches, _CLIENT % (kind, "get_async_invoke"), _looked, True)
