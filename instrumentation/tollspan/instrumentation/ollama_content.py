"""What is said in Ollama's chats and generations, in the form of the GenAI conventions.

In: the body that the client sends, and its responses, which are the parts of a stream too. Out: `Transcript`. Imported
only where the user has switched content on.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tollspan.instrumentation import content_parts as form
from tollspan.instrumentation.content import Message, Part, Transcript
from tollspan.instrumentation.content_parts import field, listed
from tollspan.instrumentation.openai.content import prompted, tools


def reader(args: tuple[Any, ...], asked: Mapping[str, Any]) -> Transcript | None:
    """Transcript of a request to a path of the server; None where nothing is said in words."""
    kind = {"/api/chat": Chat, "/api/generate": Generation}.get(args[3]) if len(args) > 3 else None
    return None if kind is None else kind(args, asked)


class _Spoken(Transcript):
    """What the answers of both have in common: they come in parts of the same form as the whole."""

    def __init__(self, args: tuple[Any, ...], asked: Mapping[str, Any]) -> None:
        super().__init__(args, asked)
        self._said = False
        self._thought: list[str] = []
        self._text: list[str] = []
        self._parts: list[Part] = []
        self._reason: Any = None

    def read(self, result: Any) -> None:
        self._said = True
        self._reason = field(result, "done_reason") or self._reason
        self._add(result)

    def chunk(self, chunk: Any) -> None:
        self.read(chunk)

    def _add(self, result: Any) -> None:
        raise NotImplementedError

    def _heard(self, thought: Any, text: Any) -> None:
        for piece, pieces in ((thought, self._thought), (text, self._text)):
            if isinstance(piece, str) and piece:
                pieces.append(piece)

    def output(self) -> list[Message]:
        if not self._said:
            return []
        made = [form.reasoning("".join(self._thought))] if self._thought else []
        made += [form.text("".join(self._text))] if self._text else []
        return [form.output(made + self._parts, self._reason)]


class Chat(_Spoken):
    """Content of ``chat``."""

    def __init__(self, args: tuple[Any, ...], asked: Mapping[str, Any]) -> None:
        super().__init__(args, asked)
        self.messages = [_message(message) for message in listed(asked.get("messages"))]
        self.tools = tools(asked.get("tools"))

    def _add(self, result: Any) -> None:
        message = field(result, "message")
        self._heard(field(message, "thinking"), field(message, "content"))
        self._parts += _calls(message)


class Generation(_Spoken):
    """Content of ``generate``."""

    def __init__(self, args: tuple[Any, ...], asked: Mapping[str, Any]) -> None:
        super().__init__(args, asked)
        self.whole = self.whole and not asked.get("context")
        if isinstance(prompt := asked.get("prompt"), str):
            message = prompted(prompt, asked.get("suffix"))
            message["parts"] += _images(asked)
            self.messages = [message]
        if isinstance(system := asked.get("system"), str):
            self.system = [form.text(system)]

    def _add(self, result: Any) -> None:
        self._heard(field(result, "thinking"), field(result, "response"))
        if image := field(result, "image"):
            self._parts.append(form.blob("image", None, image))


def _message(message: Any) -> Message:
    role, content = field(message, "role"), field(message, "content")
    if role == "tool":
        # Calls have no ids here: an answer names its tool, and that not always.
        return form.message(role, [form.tool_response(None, content)])
    thought = field(message, "thinking")
    made = [form.reasoning(thought)] if thought else []
    made += [form.text(content)] if content else []
    return form.message(role, made + _images(message) + _calls(message))


def _images(said: Any) -> list[Part]:
    return [form.blob("image", None, image) for image in listed(field(said, "images"))]


def _calls(message: Any) -> list[Part]:
    functions = [field(call, "function") for call in listed(field(message, "tool_calls"))]
    return [form.tool_call(None, field(function, "name"), field(function, "arguments")) for function in functions]
