"""What was said, where the user has asked for it: messages on the span, in an event, or both.

In: ``OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT`` (``span_only``, ``event_only``, ``span_and_event``) and what
a library's reader makes of its requests, responses and chunks: a `Transcript`. Out: ``gen_ai.input.messages``,
``gen_ai.output.messages``, ``gen_ai.system_instructions`` and ``gen_ai.tool.definitions`` in the conventions' form, as
JSON on the span, as structures in the event ``gen_ai.client.inference.operation.details``. With the switch off nothing
of this is imported.

The input is taken when the call begins: programs go on with their lists of messages while a stream is read. What is
said in a call whose span is not recorded, or will be sent without content (`slim`), is put nowhere.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from importlib import import_module
from typing import Any, Final

from opentelemetry._logs import LoggerProvider, get_logger
from opentelemetry.trace import set_span_in_context

from tollspan.instrumentation import slim
from tollspan.instrumentation.calls import Call, WrapPoint
from tollspan.instrumentation.guard import guard
from tollspan.pricing import attributes as names

_KEPT: Final = ("previous_response_id", "previous_interaction_id", "conversation", "cached_content", "prompt_id")
"""Arguments that name input which the provider has kept; so does a ``prompt`` that is not the text itself."""

EVENT: Final = "gen_ai.client.inference.operation.details"

_READ: Final = guard("content.response")

Part = dict[str, Any]
"""``{"type": "text", "content": ...}`` and its like."""
Message = dict[str, Any]
"""``{"role": ..., "parts": [...]}``; one of the output has a ``finish_reason`` too."""


class Transcript:
    """What was said in one call. A library's reader is a subclass, or a function that picks one or None.

    Args:
        args: positional arguments of the call.
        asked: what is asked for, by name: `WrapPoint.asked`, or else the keyword arguments.

    Attributes:
        messages: input messages.
        system: parts of system instructions that were given apart from the messages.
        tools: tool definitions, in the conventions' form.
        whole: False where the provider adds to the input what it has kept, of an earlier call or a cache by name.
    """

    def __init__(self, args: tuple[Any, ...], asked: Mapping[str, Any]) -> None:
        self.messages: list[Message] = []
        self.system: list[Part] = []
        self.tools: list[Any] = []
        self.whole = not any(asked.get(name) for name in _KEPT) and not isinstance(asked.get("prompt"), Mapping)

    def read(self, result: Any) -> None:
        """Take in a response, or the same as a plain dict."""

    def chunk(self, chunk: Any) -> None:
        """Take in a chunk of a stream."""

    def output(self) -> list[Message]:
        """Output messages as far as they are known."""
        return []


Reader = Callable[[tuple[Any, ...], Mapping[str, Any]], Transcript | None]

READERS: Final[dict[str, str]] = {
    "anthropic._base_client:": "tollspan.instrumentation.anthropic.content:reader",
    "aiobotocore.client:": "tollspan.instrumentation.bedrock.content:reader",
    "aws_sdk_bedrock_runtime.client:": "tollspan.instrumentation.bedrock.content:reader",
    "botocore.client:": "tollspan.instrumentation.bedrock.content:reader",
    "google.genai._gaos.interactions:": "tollspan.instrumentation.google_genai.content:Interactions",
    "google.genai._interactions.": "tollspan.instrumentation.google_genai.content:Interactions",
    "google.genai.live:": "tollspan.instrumentation.google_genai.content:Turn",
    "google.genai.models:*Models._generate_content": "tollspan.instrumentation.google_genai.content:Contents",
    "google.genai.models:*Models._generate_images": "tollspan.instrumentation.google_genai.content:Prompt",
    "google.genai.models:*Models._generate_videos": "tollspan.instrumentation.google_genai.content:Prompt",
    "google.genai.models:*Models._edit_image": "tollspan.instrumentation.google_genai.content:Prompt",
    "openai.resources.chat.completions.completions:": "tollspan.instrumentation.openai.content:Chat",
    "openai.resources.*responses.responses:": "tollspan.instrumentation.openai.content:Responses",
    "*.resources.chat.completions:": "tollspan.instrumentation.openai.content:Chat",
    "*.resources.completions:": "tollspan.instrumentation.openai.content:Completions",
    "*.resources.images:": "tollspan.instrumentation.openai.media_content:Prompt",
    "*.resources.videos:": "tollspan.instrumentation.openai.media_content:Prompt",
    "*.resources.audio.speech:": "tollspan.instrumentation.openai.media_content:Prompt",
    "*.resources.audio.trans": "tollspan.instrumentation.openai.media_content:Heard",
    "litellm*:completion": "tollspan.instrumentation.openai.content:Chat",
    "litellm*:acompletion": "tollspan.instrumentation.openai.content:Chat",
    "litellm*:*text_completion": "tollspan.instrumentation.openai.content:Completions",
    "litellm*:*responses": "tollspan.instrumentation.openai.content:Responses",
    "litellm:anthropic_messages": "tollspan.instrumentation.litellm_content:Messages",
    "litellm.anthropic_interface.messages:": "tollspan.instrumentation.litellm_content:Messages",
    "litellm.google_genai.main:": "tollspan.instrumentation.litellm_content:Contents",
    "litellm:*image_": "tollspan.instrumentation.openai.media_content:Prompt",
    "litellm:*speech": "tollspan.instrumentation.openai.media_content:Prompt",
    "litellm:*transcription": "tollspan.instrumentation.openai.media_content:Heard",
    "cohere.raw_base_client:": "tollspan.instrumentation.cohere_content:first",
    "cohere.v2.raw_client:": "tollspan.instrumentation.cohere_content:second",
    "huggingface_hub.inference.": "tollspan.instrumentation.huggingface_content:reader",
    "mistralai*.chat:": "tollspan.instrumentation.mistral_content:Chat",
    "mistralai*.agents:": "tollspan.instrumentation.mistral_content:Chat",
    "mistralai*.fim:": "tollspan.instrumentation.mistral_content:Fim",
    "mistralai*.conversations:": "tollspan.instrumentation.mistral_content:Conversation",
    "mistralai*.speech:Speech.": "tollspan.instrumentation.openai.media_content:Prompt",
    "mistralai*.transcriptions:": "tollspan.instrumentation.openai.media_content:Heard",
    "ollama._client:": "tollspan.instrumentation.ollama_content:reader",
}
"""Beginning of a target, in which ``*`` is anything, → its reader, for points that bring none; the first that fits.
Named and not imported: few programs need one."""


class Capture:
    """Content of one instrumentation.

    Args:
        scope, version: instrumentation scope.
        provider: None = the global one.
        modes: any of ``span`` and ``event``; none of them where what was said is only to be counted.
    """

    def __init__(self, scope: str, version: str | None, provider: LoggerProvider | None, modes: frozenset[str]) -> None:
        self._modes = modes
        self._logger = get_logger(scope, version or "", logger_provider=provider) if "event" in modes else None

    def reader(self, point: WrapPoint) -> Reader | None:
        """Reader of a point's content; None where there is none."""
        if point.content is not None:
            return point.content
        for beginning, where in READERS.items():
            if fnmatchcase(point.target, f"{beginning}*"):
                module, _, name = where.partition(":")
                return getattr(import_module(module), name)  # type: ignore[no-any-return]
        return None

    def opening(self, reader: Reader) -> Callable[[Call, tuple[Any, ...], dict[str, Any]], None]:
        """Hook for the beginning of a call."""

        def began(call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            asked = call.point.asked
            call.content = reader(args, kwargs if asked is None else asked(args, kwargs))

        return began

    def reading(self, own: Callable[[Call, Any], None] | None) -> Callable[[Call, Any], None]:
        """Reader of responses that reads their content too."""

        def response(call: Call, result: Any) -> None:
            if call.content is not None:
                with _READ:
                    call.content.read(result)
            if own is not None:
                own(call, result)

        return response

    def finish(self, call: Call) -> None:
        """Put what was said where it was asked for."""
        transcript, call.content = call.content, None
        if transcript is None or not self._modes or not call.span.is_recording() or slim.unseen(call.span):
            return
        said = {
            names.SYSTEM_INSTRUCTIONS: transcript.system,
            names.INPUT_MESSAGES: transcript.messages,
            names.OUTPUT_MESSAGES: transcript.output(),
            names.TOOL_DEFINITIONS: transcript.tools,
        }
        said = {name: value for name, value in said.items() if value}
        if self._logger is not None:
            self._logger.emit(
                event_name=EVENT,
                context=set_span_in_context(call.span),
                attributes={**call.opened, **call.attributes, **said},
            )
        if "span" in self._modes:
            for name, value in said.items():
                call.attributes[name] = json.dumps(value, ensure_ascii=False, default=str, separators=(",", ":"))
