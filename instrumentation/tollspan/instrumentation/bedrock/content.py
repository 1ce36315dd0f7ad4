"""What is said in Bedrock's calls, in the form of the GenAI conventions.

In: parameters of Converse, or those of InvokeModel with the fields of its body among them (`requests.asked`); answers,
bodies and events. Out: `Transcript`. Which family a body is of is told by the body itself, for a model's id may be an
ARN of the account's own. Of a family that is not known nothing is told. Imported only where the user has switched
content on.

Sources, read on 2026-11-21: the service model in botocore 1.43.117; the Bedrock user guide's pages on inference
parameters of each family.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import is_dataclass
from typing import Any, Final

from tollspan.instrumentation import content_parts as form
from tollspan.instrumentation.anthropic import content as anthropic
from tollspan.instrumentation.bedrock import sdk
from tollspan.instrumentation.bedrock.readers import REASONS
from tollspan.instrumentation.bedrock.requests import fields, operation_of
from tollspan.instrumentation.content import Message, Part, Transcript
from tollspan.instrumentation.content_parts import listed
from tollspan.instrumentation.openai import content as openai

DOCUMENTS: Final[dict[str, str]] = {
    "pdf": "application/pdf",
    "csv": "text/csv",
    "html": "text/html",
    "txt": "text/plain",
    "md": "text/markdown",
}
"""Format of a document → its MIME type, where it is not named after its program."""


def reader(args: tuple[Any, ...], asked: Mapping[str, Any]) -> Transcript | None:
    """Transcript of a call; None of one that says nothing, or says it in a way that is not known."""
    model = asked.get("modelId")
    if "body" in asked or not isinstance(model, str) or operation_of(model) != "chat":
        return None
    kind = next((kind for tells, kind in FAMILIES if tells(asked)), None)
    return None if kind is None else kind(args, asked)


# -- Converse, and Nova's bodies ---------------------------------------------------------------------------------------


class Converse(Transcript):
    """Content of Converse and ConverseStream. Bodies and events of Nova are the same."""

    def __init__(self, args: tuple[Any, ...], asked: Mapping[str, Any]) -> None:
        super().__init__(args, asked)
        self.messages = [
            form.message(fields(message).get("role"), parts_of(fields(message).get("content")))
            for message in listed(asked.get("messages"))
        ]
        self.system = parts_of(asked.get("system"))
        if "promptVariables" in asked:
            self.whole = False  # a prompt that is kept, of which only these are told
        tools = listed(fields(asked.get("toolConfig")).get("tools"))
        self.tools = [definition for tool in tools for definition in _tools(fields(tool))]
        self._role: str | None = None
        self._reason: Any = None
        self._blocks: dict[int, form.Parts] = {}
        self._inputs: dict[int, list[str]] = {}

    def read(self, result: Any) -> None:
        answer = _object(result)
        message = fields(fields(answer.get("output")).get("message"))
        if message:
            self._role = message.get("role") or "assistant"
            self._reason = answer.get("stopReason")
            self._blocks = {0: form.Parts(parts_of(message.get("content")))}

    def chunk(self, chunk: Any) -> None:
        event = _event(chunk)
        if (delta := event.get("contentBlockDelta")) is not None:
            self._grow(delta.get("contentBlockIndex") or 0, fields(delta.get("delta")))
        elif (start := event.get("contentBlockStart")) is not None:
            self._blocks[start.get("contentBlockIndex") or 0] = form.Parts(_parts(fields(start.get("start"))))
        elif (begun := event.get("messageStart")) is not None:
            self._role = begun.get("role") or "assistant"
        elif (stop := event.get("messageStop")) is not None:
            self._reason = stop.get("stopReason")

    def output(self) -> list[Message]:
        if self._role is None:
            return []
        parts: list[Part] = []
        for index, said in self._blocks.items():
            block = said.all()
            if (pieces := self._inputs.get(index)) and block:
                block = [*block[:-1], _with_input(block[-1], form.parsed("".join(pieces)))]
            parts += block
        return [form.output(parts, self._reason, self._role)]

    def _grow(self, index: int, delta: Mapping[str, Any]) -> None:
        block = self._blocks.setdefault(index, form.Parts())
        if isinstance(piece := fields(delta.get("toolUse")).get("input"), str):
            self._inputs.setdefault(index, []).append(piece)
        thought = delta.get("reasoningContent")
        if isinstance(thought, Mapping) and isinstance(thought.get("text"), str):
            block.add(form.reasoning(thought["text"]))
        if isinstance(delta.get("text"), str):
            block.add(form.text(delta["text"]))
        if isinstance(image := delta.get("image"), Mapping):
            block.add(_media("image", image))


def parts_of(content: Any) -> list[Part]:
    """Parts of a list of content blocks, of a message or of system instructions."""
    if isinstance(content, str):
        return [form.text(content)]
    return [part for block in listed(content) for part in _parts(fields(block))]


def _with_input(part: Part, given: Any) -> Part:
    if part["type"] == "server_tool_call":
        return {**part, "server_tool_call": {**part["server_tool_call"], "input": given}}
    return {**part, "arguments": given}


def _media(modality: str, block: Mapping[str, Any]) -> Part:
    source, kind = fields(block.get("source")), form.word(block.get("format")) or ""
    mime = DOCUMENTS.get(kind, f"application/{kind}") if modality == "document" else f"{modality}/{kind}"
    if (place := fields(source.get("s3Location")).get("uri")) is not None:
        return form.uri(modality, place, mime)
    if isinstance(source.get("text"), str):
        return form.text(source["text"])
    if isinstance(source.get("content"), list):
        return form.generic(modality, content=parts_of(source["content"]))
    return form.blob(modality, mime, source.get("bytes"))


def _tool_use(use: Mapping[str, Any]) -> Part:
    if use.get("type") == "server_tool_use":
        name = use.get("name")
        return form.server_call(use.get("toolUseId"), name, name, input=use.get("input"))
    return form.tool_call(use.get("toolUseId"), use.get("name"), use.get("input"))


def _tool_result(result: Mapping[str, Any]) -> Part:
    said = [_result_part(fields(item)) for item in listed(result.get("content"))]
    kind = result.get("type")
    if isinstance(kind, str):
        return form.server_response(result.get("toolUseId"), kind, content=said)
    return form.tool_response(result.get("toolUseId"), said)


def _result_part(item: Mapping[str, Any]) -> Any:
    if "json" in item:
        return form.generic("json", content=form.plain(item["json"]))
    return next(_parts(item), form.generic(next(iter(item), "unknown")))


def _reasoning(thought: Mapping[str, Any]) -> Part:
    said = fields(thought.get("reasoningText")).get("text")
    return form.reasoning(said) if isinstance(said, str) else form.generic("redacted_reasoning")


def _guarded(content: Mapping[str, Any]) -> Part:
    said = fields(content.get("text")).get("text")
    return form.text(said) if isinstance(said, str) else _media("image", fields(content.get("image")))


def _search_result(result: Mapping[str, Any]) -> Part:
    source, title = result.get("source"), result.get("title")
    return form.generic("search_result", source=source, title=title, content=parts_of(result.get("content")))


BLOCKS: Final[dict[str, Callable[[Any], Part]]] = {
    "text": form.text,
    "image": lambda block: _media("image", block),
    "document": lambda block: _media("document", block),
    "video": lambda block: _media("video", block),
    "audio": lambda block: _media("audio", block),
    "toolUse": _tool_use,
    "toolResult": _tool_result,
    "guardContent": _guarded,
    "reasoningContent": _reasoning,
    "searchResult": _search_result,
}
"""Field of a content block → what it is there."""

_UNSAID: Final = frozenset({"cachePoint", "citationsContent"})
"""Fields of a content block that say nothing themselves."""


def _parts(block: Mapping[str, Any]) -> Iterator[Part]:
    cited = fields(block.get("citationsContent"))
    yield from (form.text(fields(item).get("text")) for item in listed(cited.get("content")))
    for name, said in block.items():
        read = BLOCKS.get(name)
        if read is not None:
            yield read(said)
        elif name not in _UNSAID:
            yield form.generic(name)


def _tools(tool: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    if spec := fields(tool.get("toolSpec")):
        schema = fields(spec.get("inputSchema")).get("json")
        yield form.function(spec.get("name"), spec.get("description"), schema)
    if own := fields(tool.get("systemTool")):
        yield {"type": "system", "name": form.word(own.get("name")) or ""}


# -- bodies of the other families --------------------------------------------------------------------------------------


class _Of:
    """A family's transcript over the bodies and events of InvokeModel, which come as the bytes of JSON."""

    def read(self, result: Any) -> None:
        body = _object(result)
        if body:
            super().read(body)  # type: ignore[misc]

    def chunk(self, chunk: Any) -> None:
        event = _event(chunk)
        if event:
            super().chunk(event)  # type: ignore[misc]


class Claude(_Of, anthropic.Messages):
    """Claude's messages."""


class Chat(_Of, openai.Chat):
    """Families that speak OpenAI's chat completions: gpt-oss, DeepSeek, Qwen, Jamba, Mistral's newer models."""

    def read(self, result: Any) -> None:
        super().read(_chat_form(_object(result), "message"))

    def chunk(self, chunk: Any) -> None:
        super().chunk(_chat_form(_event(chunk), "delta"))


def _chat_form(body: Mapping[str, Any], field: str) -> Mapping[str, Any]:
    """A body or chunk with the names of OpenAI's, where the family has others."""
    choices = []
    for choice in listed(body.get("choices")):
        choice = fields(choice)
        said = choice.get(field) or choice.get("message")
        reason = choice.get("finish_reason") or choice.get("stop_reason")
        choices.append({**choice, field: said, "finish_reason": reason})
    return {**body, "choices": choices}


TEXTS: Final = ("generation", "completion", "outputText", "text")
"""Fields of a body or chunk that are the answer's text: Llama, older Claude, Titan, Cohere."""

TEXT_LISTS: Final = (
    *(("results", ("outputText",)), ("outputs", ("text",)), ("generations", ("text",))),
    *(("choices", ("text",)), ("completions", ("data", "text"))),
)
"""List of a body whose items have the text, and where: Titan, Mistral, Cohere, DeepSeek, AI21's older models."""

_EVENTS: Final = frozenset({None, "text-generation"})
"""Types of Cohere's events whose text is the answer's; other families' have no type."""


class Completion(Transcript):
    """Models that go on with a prompt, or answer one message."""

    def __init__(self, args: tuple[Any, ...], asked: Mapping[str, Any]) -> None:
        super().__init__(args, asked)
        for item in listed(asked.get("chat_history")):
            role = str(fields(item).get("role") or "user").lower()
            said = form.text(fields(item).get("message"))
            self.messages.append(form.message("assistant" if role == "chatbot" else role, [said]))
        prompt = next((asked[name] for name in PROMPTS if isinstance(asked.get(name), str)), "")
        self.messages.append(form.message("user", [form.text(prompt)]))
        if isinstance(asked.get("preamble"), str):
            self.system = [form.text(asked["preamble"])]
        self._answers: dict[int, tuple[list[str], Any]] = {}

    def read(self, result: Any) -> None:
        self._answers.clear()
        self._take(_object(result))

    def chunk(self, chunk: Any) -> None:
        self._take(_event(chunk))

    def output(self) -> list[Message]:
        return [
            form.output([form.text("".join(said))] if said else [], reason) for said, reason in self._answers.values()
        ]

    def _take(self, body: Mapping[str, Any]) -> None:
        for index, text, reason in _answers(body):
            said, known = self._answers.get(index, ([], None))
            if isinstance(text, str) and text:
                said.append(text)
            self._answers[index] = (said, reason or known)


def _answers(body: Mapping[str, Any]) -> Iterator[tuple[int, Any, Any]]:
    for name, path in TEXT_LISTS:
        items = body.get(name)
        if isinstance(items, list):
            for index, item in enumerate(map(fields, items)):
                said: Any = item
                for step in path:
                    said = fields(said).get(step)
                yield index, said, _reason(item)
            return
    text: Any = next((body[name] for name in TEXTS if isinstance(body.get(name), str)), None)
    if body.get("event_type") not in _EVENTS:
        text = None
    if text is not None or _reason(body) is not None:
        yield 0, text, _reason(body)


def _reason(item: Mapping[str, Any]) -> str | None:
    for name in REASONS:
        reason = item.get(name)
        reason = reason.get("reason") if isinstance(reason, dict) else reason
        if isinstance(reason, str):
            return reason
    return None


# -- which -------------------------------------------------------------------------------------------------------------

PROMPTS: Final = ("prompt", "inputText", "message")
"""Fields of a body that are the prompt."""


def _is_claude(asked: Mapping[str, Any]) -> bool:
    return "anthropic_version" in asked and "messages" in asked


def _in_blocks(asked: Mapping[str, Any]) -> bool:
    """Whether the messages are lists of blocks without a type, as only Converse and Nova have them."""
    for message in listed(asked.get("messages")):
        content = fields(message).get("content")
        return isinstance(content, (list, tuple)) and all("type" not in fields(block) for block in content)
    return False


def _in_messages(asked: Mapping[str, Any]) -> bool:
    return any("content" in fields(message) for message in listed(asked.get("messages")))


def _has_prompt(asked: Mapping[str, Any]) -> bool:
    return any(isinstance(asked.get(name), str) for name in PROMPTS)


FAMILIES: Final[tuple[tuple[Callable[[Mapping[str, Any]], bool], Callable[..., Transcript]], ...]] = (
    (_is_claude, Claude),
    (_in_blocks, Converse),
    (_in_messages, Chat),
    (_has_prompt, Completion),
)
"""What tells a family → its transcript; the first that holds."""


def _object(result: Any) -> Mapping[str, Any]:
    """A body as it was read, or an answer that is parsed already; of the newer SDK's answer the same."""
    if isinstance(result, (bytes, bytearray, str)):
        try:
            result = json.loads(result)
        except ValueError:
            return {}  # cut off, or no JSON
    answer = fields(_by_wire(result))
    return _object(answer["body"]) if isinstance(answer.get("body"), bytes) else answer


def _event(event: Any) -> Mapping[str, Any]:
    """An event of Converse as it is; of InvokeModel's stream the model's own."""
    event = fields(_by_wire(event))
    data = fields(event.get("chunk")).get("bytes")
    return event if data is None else _object(data)


def _by_wire(shape: Any) -> Any:
    """What the newer SDK gives, by the names of the wire."""
    return sdk.plain(shape) if is_dataclass(shape) else shape
