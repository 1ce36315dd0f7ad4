"""Parts of messages in the form of the GenAI conventions: what the readers of content have in common.

In: fields of a client's models, or of the same as plain dicts. Out: parts, messages and tool definitions as
`tollspan.instrumentation.content.Transcript` keeps them. Everything that the program could change later is copied;
strings and bytes, which nobody can change, are not. Imported only where the user has switched content on.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterable, Mapping
from enum import Enum
from typing import Any, Final

from tollspan.instrumentation.content import Message, Part
from tollspan.instrumentation.credentials import is_credential

REASONS: Final[dict[str, str]] = {
    **dict.fromkeys(
        ("stop", "end_turn", "stop_sequence", "complete", "finish", "finished", "eos", "eos_token"), "stop"
    ),
    **dict.fromkeys(("length", "max_tokens", "model_context_window_exceeded"), "length"),
    **dict.fromkeys(("tool_use", "tool_calls", "tool_call", "function_call"), "tool_call"),
    **dict.fromkeys(("content_filter", "content_filtered", "guardrail_intervened", "refusal"), "content_filter"),
    **dict.fromkeys(("safety", "recitation", "blocklist", "prohibited_content", "spii"), "content_filter"),
    **dict.fromkeys(("image_safety", "image_prohibited_content", "image_recitation"), "content_filter"),
    **dict.fromkeys(("malformed_function_call", "malformed_model_output", "malformed_tool_use"), "error"),
    **dict.fromkeys(("malformed_response", "error", "failed"), "error"),
}
"""Finish reason of a provider, in lower case → the conventions' word. One that they have no word for stays itself."""

MODALITIES: Final = frozenset({"image", "audio", "video"})
"""Modalities that a MIME type begins with; anything else is a document."""

OPAQUE: Final = frozenset({"encrypted_content", "encrypted_stdout", "encrypted_index", "signature"})
"""Fields that only the provider can read."""


def field(model: Any, name: str) -> Any:
    """Field of a model of the client's, or of a dict; None where there is none."""
    return model.get(name) if isinstance(model, Mapping) else getattr(model, name, None)


def listed(value: Any) -> Iterable[Any]:
    """Items of a list; nothing for anything else. An iterator is the program's to read, and only once."""
    return value if isinstance(value, (list, tuple)) else ()


def word(value: Any) -> str | None:
    """A string, or the value of an enumeration of strings."""
    value = value.value if isinstance(value, Enum) else value
    return value if isinstance(value, str) and value else None


def plain(value: Any, hidden: Callable[[str], bool] | None = None) -> Any:
    """A copy of ``value`` in JSON's types, without the fields, at any depth, whose names are ``hidden``."""
    if isinstance(value, Enum):
        return value.value
    if value is None or isinstance(value, (str, int, float)):
        return value
    if isinstance(value, Mapping):
        named = ((str(name), item) for name, item in value.items())
        return {name: plain(item, hidden) for name, item in named if hidden is None or not hidden(name)}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(item, hidden) for item in value]
    if isinstance(value, (bytes, bytearray, memoryview)):
        return encoded(value)
    dump = getattr(type(value), "model_dump", None)
    return str(value) if dump is None else plain(dump(value, exclude_none=True, warnings=False), hidden)


def shown(value: Any) -> Any:
    """A copy of what a provider's own tool is given or gives, without what only the provider can read or may know."""
    return plain(value, lambda name: name in OPAQUE or name == "headers" or is_credential(name))


def encoded(data: Any) -> str | None:
    """Base64 of bytes; what is a string is that already. None for anything else."""
    if isinstance(data, str):
        return data
    return base64.b64encode(data).decode() if isinstance(data, (bytes, bytearray, memoryview)) else None


def parsed(arguments: Any) -> Any:
    """Arguments of a tool that came as the text of a JSON document; as they are where a model wrote something else."""
    if not isinstance(arguments, str):
        return plain(arguments)
    try:
        return json.loads(arguments)
    except ValueError:
        return arguments


# -- parts -------------------------------------------------------------------------------------------------------------


def text(content: Any) -> Part:
    """Text."""
    return {"type": "text", "content": content if isinstance(content, str) else ""}


def reasoning(content: Any) -> Part:
    """What the model thought."""
    return {"type": "reasoning", "content": content if isinstance(content, str) else ""}


def tool_call(identifier: Any, name: Any, arguments: Any) -> Part:
    """A tool that the model asks the program to call."""
    return {"type": "tool_call", "id": word(identifier), "name": word(name) or "", "arguments": parsed(arguments)}


def tool_response(identifier: Any, response: Any) -> Part:
    """What the program's tool gave."""
    return {"type": "tool_call_response", "id": word(identifier), "response": response}


def server_call(identifier: Any, name: Any, kind: Any, **details: Any) -> Part:
    """A tool that the provider called itself."""
    call = {"type": word(kind) or "", **shown(details)}
    return {"type": "server_tool_call", "id": word(identifier), "name": word(name) or "", "server_tool_call": call}


def server_response(identifier: Any, kind: Any, **details: Any) -> Part:
    """What the provider's own tool gave."""
    response = {"type": word(kind) or "", **shown(details)}
    return {"type": "server_tool_call_response", "id": word(identifier), "server_tool_call_response": response}


def generic(kind: Any, **details: Any) -> Part:
    """A part that the conventions have no form for: its type, and of its fields what can be told."""
    return {"type": word(kind) or "unknown", **{name: value for name, value in details.items() if value is not None}}


def modality_of(mime: Any) -> str:
    """Modality of a MIME type."""
    kind = mime.partition("/")[0] if isinstance(mime, str) else ""
    return kind if kind in MODALITIES else "document"


def blob(modality: str, mime: Any, data: Any) -> Part:
    """Data that came along; a generic part where they cannot be told without being read."""
    content = encoded(data)
    if content is None:
        return generic(modality, mime_type=word(mime))
    return {"type": "blob", "modality": modality, "mime_type": word(mime), "content": content}


def uri(modality: str, address: Any, mime: Any = None) -> Part:
    """Data that stand elsewhere."""
    if not isinstance(address, str):
        return generic(modality)
    if address.startswith("data:"):
        mime, _, data = address.removeprefix("data:").partition(";base64,")
        return blob(modality, mime, data)
    part: Part = {"type": "uri", "modality": modality, "uri": address}
    return part if mime is None else {**part, "mime_type": word(mime)}


def file(modality: str, identifier: Any) -> Part:
    """Data that the provider has."""
    return {"type": "file", "modality": modality, "file_id": str(identifier)}


class Parts:
    """Parts that come piece by piece: a text or a thought that goes on is one part."""

    __slots__ = ("_parts", "_pieces")

    def __init__(self, parts: Iterable[Part] = ()) -> None:
        self._parts = list(parts)
        self._pieces: list[str] = []

    def add(self, part: Part) -> None:
        """Take in the next part, or the next piece of the last."""
        if self._parts and part["type"] in ("text", "reasoning") and part["type"] == self._parts[-1]["type"]:
            self._pieces.append(part["content"])
        else:
            self._parts = self.all()
            self._parts.append(part)
            self._pieces = []

    def all(self) -> list[Part]:
        """All parts as far as they have come."""
        if not self._pieces:
            return self._parts[:]
        *parts, last = self._parts
        return [*parts, {**last, "content": "".join((last["content"], *self._pieces))}]


# -- messages ----------------------------------------------------------------------------------------------------------


def message(role: Any, parts: list[Part]) -> Message:
    """A message. One of tools' responses alone is the tools', whoever the provider says it is from."""
    if parts and all(part["type"] == "tool_call_response" for part in parts):
        role = "tool"
    elif role == "model":
        role = "assistant"
    return {"role": word(role) or "user", "parts": parts}


def output(parts: list[Part], reason: Any, role: Any = None) -> Message:
    """A message of the model's."""
    answer: Message = {"role": "assistant" if role in (None, "model") else role, "parts": parts}
    if (reason := word(reason)) is not None:
        answer["finish_reason"] = REASONS.get(reason.lower(), reason.lower())
    return answer


def function(name: Any, description: Any, parameters: Any) -> dict[str, Any]:
    """Definition of a function that the model may ask for."""
    tool: dict[str, Any] = {"type": "function", "name": word(name) or ""}
    if isinstance(description, str):
        tool["description"] = description
    if parameters is not None:
        tool["parameters"] = plain(parameters)
    return tool


def own_tool(tool: Any, kind: Any, name: Any) -> dict[str, Any]:
    """Definition of a tool of the provider's own, with its settings."""
    settings = shown(tool)
    kind = word(kind) or "unknown"
    return {**(settings if isinstance(settings, dict) else {}), "type": kind, "name": word(name) or kind}
