"""What is said in Mistral's APIs, in the form of the GenAI conventions.

In: keyword arguments, responses and stream events of the client. Its chats, those with agents too, are OpenAI's with
parts of their own; its conversations are lists of entries, as OpenAI's responses are of items. Out: `Transcript`.
Imported only where the user has switched content on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from tollspan.instrumentation import content_parts as form
from tollspan.instrumentation.content import Message, Part, Transcript
from tollspan.instrumentation.content_parts import field, listed
from tollspan.instrumentation.openai import content as openai
from tollspan.instrumentation.openai.content import parts, prompted, tools


class Chat(openai.Chat):
    """Content of ``chat`` and ``agents``."""

    def __init__(self, args: tuple[Any, ...], asked: Mapping[str, Any]) -> None:
        super().__init__(args, asked)
        self.whole = self.whole and not asked.get("agent_id")  # an agent has instructions of its own

    def chunk(self, chunk: Any) -> None:
        super().chunk(field(chunk, "data"))


class Fim(Chat):
    """Content of ``fim``."""

    def __init__(self, args: tuple[Any, ...], asked: Mapping[str, Any]) -> None:
        super().__init__(args, asked)
        if isinstance(prompt := asked.get("prompt"), str):
            self.messages = [prompted(prompt, asked.get("suffix"))]


class Conversation(Transcript):
    """Content of ``beta.conversations``."""

    def __init__(self, args: tuple[Any, ...], asked: Mapping[str, Any]) -> None:
        super().__init__(args, asked)
        self.whole = self.whole and not any(asked.get(name) for name in ("conversation_id", "agent_id"))
        given = asked.get("inputs")
        if isinstance(given, str):
            self.messages = [form.message("user", parts(given))]
        else:
            self.messages = [_entry(entry) for entry in listed(given)]
        if isinstance(instructions := asked.get("instructions"), str):
            self.system = [form.text(instructions)]
        self.tools = tools(asked.get("tools"))
        self._outputs: list[Part] = []
        self._grown: dict[Any, _Grown] = {}

    def read(self, result: Any) -> None:
        self._outputs = [part for entry in listed(field(result, "outputs")) for part in _entry(entry)["parts"]]

    def chunk(self, chunk: Any) -> None:
        event = field(chunk, "data")
        add = _EVENTS.get(form.word(field(event, "type")))
        if add is not None:
            key = (field(event, "output_index"), field(event, "id"))
            known = self._grown.get(key)
            if known is None:
                known = self._grown[key] = _Grown()
            add(known, event)

    def output(self) -> list[Message]:
        made = self._outputs + [part for grown in self._grown.values() for part in grown.parts()]
        return [form.output(made, None)] if made else []


class _Grown:
    """An output of a conversation as far as it has come."""

    __slots__ = ("_arguments", "_call", "_parts")

    def __init__(self) -> None:
        self._parts: list[Part] = []
        self._call: tuple[Any, Any, Callable[[Any, Any, Any], Part]] | None = None
        self._arguments: list[str] = []

    def say(self, event: Any) -> None:
        content = field(event, "content")
        for part in parts(content if isinstance(content, (str, list)) else [content]):
            last = self._parts[-1] if self._parts else None
            if last is not None and last["type"] == part["type"] and part["type"] in ("text", "reasoning"):
                last["content"] += part["content"]
            else:
                self._parts.append(part)

    def call(self, event: Any) -> None:
        self._call = (field(event, "tool_call_id"), field(event, "name"), form.tool_call)
        self._arguments.append(field(event, "arguments") or "")

    def execute(self, event: Any) -> None:
        self._call = (field(event, "id"), field(event, "name"), _executed)
        self._arguments.append(field(event, "arguments") or "")

    def parts(self) -> list[Part]:
        if self._call is None:
            return self._parts
        identifier, name, make = self._call
        return [*self._parts, make(identifier, name, "".join(self._arguments))]


_EVENTS: Final[Mapping[str | None, Callable[[_Grown, Any], None]]] = {
    "message.output.delta": _Grown.say,
    "function.call.delta": _Grown.call,
    "tool.execution.started": _Grown.execute,
    "tool.execution.delta": _Grown.execute,
}
"""Event of a stream → its reader."""


def _executed(identifier: Any, name: Any, arguments: Any) -> Part:
    return form.server_call(identifier, name, name, arguments=form.parsed(arguments))


def _entry(entry: Any) -> Message:
    """An entry of a conversation."""
    kind = form.word(field(entry, "type"))
    if kind == "function.call":
        call = form.tool_call(field(entry, "tool_call_id"), field(entry, "name"), field(entry, "arguments"))
        return form.message("assistant", [call])
    if kind == "function.result":
        return form.message("tool", [form.tool_response(field(entry, "tool_call_id"), field(entry, "result"))])
    if kind == "tool.execution":
        call = _executed(field(entry, "id"), field(entry, "name"), field(entry, "arguments"))
        return form.message("assistant", [call])
    if kind in (None, "message.input", "message.output"):
        role = field(entry, "role") or ("assistant" if kind == "message.output" else "user")
        return form.message(role, parts(field(entry, "content")))
    return form.message("assistant", [form.generic(kind)])
