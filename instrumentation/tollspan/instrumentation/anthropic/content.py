"""What is said in Anthropic's messages, in the form of the GenAI conventions.

In: the body of a request, messages and stream events of the client, or the same as plain dicts (raw responses; Amazon
Bedrock's bodies). Out: `Transcript`. Imported only where the user has switched content on.

A block of a stream is read when it begins, and its deltas as they come: the client's own stream goes on building its
message out of the very objects that it gave us.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from tollspan.instrumentation import content_parts as form
from tollspan.instrumentation.content import Message, Part, Transcript
from tollspan.instrumentation.content_parts import field, listed

DELTAS: Final[dict[str, str]] = {
    "text_delta": "text",
    "thinking_delta": "thinking",
    "input_json_delta": "partial_json",
    "compaction_delta": "content",
}
"""Type of a delta → its field that is a piece of what is said."""

_RESULT: Final = "_tool_result"


def reader(args: tuple[Any, ...], asked: Mapping[str, Any]) -> Transcript | None:
    """Transcript of a request of the client's; None for one that says nothing, as that for a batch's results."""
    if "messages" in asked:
        return Messages(args, asked)
    return Completion(args, asked) if "prompt" in asked else None


class Messages(Transcript):
    """Content of ``messages``, the beta's too."""

    def __init__(self, args: tuple[Any, ...], asked: Mapping[str, Any]) -> None:
        super().__init__(args, asked)
        self.messages = [
            form.message(field(message, "role"), parts_of(field(message, "content")))
            for message in listed(asked.get("messages"))
        ]
        self.system = parts_of(asked.get("system"))
        self.tools = [_tool(tool) for tool in listed(asked.get("tools"))]
        self._role: Any = None
        self._reason: Any = None
        self._blocks: dict[int, tuple[list[Part], list[str]]] = {}

    def read(self, result: Any) -> None:
        said = field(result, "content")
        if said is not None:  # else it is no message
            self._begin(result)
            self._blocks = {0: (parts_of(said), [])}

    def chunk(self, chunk: Any) -> None:
        kind = field(chunk, "type")
        if kind == "content_block_delta":
            delta = field(chunk, "delta")
            block = self._blocks.get(field(chunk, "index"))
            piece = field(delta, DELTAS.get(field(delta, "type"), ""))
            if block is not None and isinstance(piece, str):
                block[1].append(piece)
        elif kind == "content_block_start":
            self._blocks[field(chunk, "index")] = (list(_parts(field(chunk, "content_block"))), [])
        elif kind == "message_start":
            self._begin(field(chunk, "message"))
        elif kind == "message_delta":
            self._reason = field(field(chunk, "delta"), "stop_reason") or self._reason

    def output(self) -> list[Message]:
        if self._role is None:
            return []
        parts: list[Part] = []
        for begun, pieces in self._blocks.values():
            if begun and pieces:
                begun = [*begun[:-1], _grown(begun[-1], "".join(pieces))]
            parts += begun
        return [form.output(parts, self._reason, self._role)]

    def _begin(self, message: Any) -> None:
        self._role = field(message, "role") or "assistant"
        self._reason = field(message, "stop_reason")


class Completion(Transcript):
    """Content of ``completions``, which the client has up to version 0."""

    def __init__(self, args: tuple[Any, ...], asked: Mapping[str, Any]) -> None:
        super().__init__(args, asked)
        self.messages = [form.message("user", parts_of(asked.get("prompt")))]
        self._text: list[str] = []
        self._reason: Any = None

    def read(self, result: Any) -> None:
        self._text.clear()
        self.chunk(result)

    def chunk(self, chunk: Any) -> None:
        piece = field(chunk, "completion")
        if isinstance(piece, str):
            self._text.append(piece)
        self._reason = field(chunk, "stop_reason") or self._reason

    def output(self) -> list[Message]:
        return [form.output([form.text("".join(self._text))], self._reason)] if self._text else []


def parts_of(content: Any) -> list[Part]:
    """Parts of the content of a message: a string, or a list of blocks."""
    if isinstance(content, str):
        return [form.text(content)]
    return [part for block in listed(content) for part in _parts(block)]


def _grown(part: Part, said: str) -> Part:
    """A part of a block that began empty, with what its deltas said."""
    kind = part["type"]
    if kind == "tool_call":
        return {**part, "arguments": form.parsed(said)}
    if kind == "server_tool_call":
        return {**part, kind: {**part[kind], "input": form.parsed(said)}}
    return {**part, "content": (part.get("content") or "") + said}


def _media(block: Any) -> Iterator[Part]:
    modality = "image" if field(block, "type") == "image" else "document"
    source = field(block, "source")
    kind = field(source, "type")
    if kind == "base64":
        yield form.blob(modality, field(source, "media_type"), field(source, "data"))
    elif kind == "url":
        yield form.uri(modality, field(source, "url"))
    elif kind == "file":
        yield form.file(modality, field(source, "file_id"))
    elif kind == "text":
        yield form.text(field(source, "data"))
    else:
        yield from parts_of(field(source, "content"))


def _tool_result(block: Any) -> Iterator[Part]:
    content = field(block, "content")
    response = content if isinstance(content, str) or content is None else parts_of(content)
    yield form.tool_response(field(block, "tool_use_id"), response)


def _search_result(block: Any) -> Iterator[Part]:
    source, title = field(block, "source"), field(block, "title")
    yield form.generic("search_result", source=source, title=title, content=parts_of(field(block, "content")))


BLOCKS: Final[dict[str, Callable[[Any], Iterator[Part]]]] = {
    "text": lambda block: iter((form.text(field(block, "text")),)),
    "thinking": lambda block: iter((form.reasoning(field(block, "thinking")),)),
    "image": _media,
    "document": _media,
    "tool_use": lambda block: iter((form.tool_call(*(field(block, name) for name in ("id", "name", "input"))),)),
    "tool_result": _tool_result,
    "search_result": _search_result,
    "compaction": lambda block: iter(({"type": "compaction", "content": field(block, "content")},)),
    "container_upload": lambda block: iter((form.file("document", field(block, "file_id")),)),
}
"""Type of a block → its parts."""


def _parts(block: Any) -> Iterator[Part]:
    if isinstance(block, str):
        yield form.text(block)
        return
    kind = field(block, "type")
    known = BLOCKS.get(kind) if isinstance(kind, str) else None
    if known is not None:
        yield from known(block)
    elif kind in ("server_tool_use", "mcp_tool_use"):
        name = field(block, "name")
        server = {"server_name": field(block, "server_name")} if kind == "mcp_tool_use" else {}
        yield form.server_call(field(block, "id"), name, name, input=field(block, "input"), **server)
    elif isinstance(kind, str) and kind.endswith(_RESULT):
        yield form.server_response(
            field(block, "tool_use_id"), kind.removesuffix(_RESULT), content=field(block, "content")
        )
    else:
        yield form.generic(kind)


def _tool(tool: Any) -> dict[str, Any]:
    kind = field(tool, "type")
    if kind in (None, "custom"):
        return form.function(field(tool, "name"), field(tool, "description"), field(tool, "input_schema"))
    # A set of tools has the name of the server that has them, or none.
    return form.own_tool(tool, kind, field(tool, "name") or field(tool, "mcp_server_name"))
