"""What is said in Cohere's APIs, in the form of the GenAI conventions.

In: keyword arguments, raw responses and stream events of the client, of its second API (messages) and its first (one
message, and a history beside it). Out: `Transcript`. Imported only where the user has switched content on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from tollspan.instrumentation import content_parts as form
from tollspan.instrumentation.content import Message, Part, Transcript
from tollspan.instrumentation.content_parts import field, listed
from tollspan.instrumentation.openai.content import chat_message, prompted, tools

_ROLES: Final[dict[str, str]] = {"USER": "user", "CHATBOT": "assistant", "SYSTEM": "system", "TOOL": "tool"}
"""Roles of the first API → the conventions'."""


def second(args: tuple[Any, ...], asked: Mapping[str, Any]) -> Transcript | None:
    """Transcript of a request of the second API; None where nothing is said."""
    return Chat(args, asked) if "messages" in asked else None


def first(args: tuple[Any, ...], asked: Mapping[str, Any]) -> Transcript | None:
    """Transcript of a request of the first API; None where nothing is said."""
    for name, kind in _FIRST.items():
        if isinstance(asked.get(name), str):
            return kind(args, asked)
    return None


class Chat(Transcript):
    """Content of the second API's ``chat`` and ``chat_stream``."""

    def __init__(self, args: tuple[Any, ...], asked: Mapping[str, Any]) -> None:
        super().__init__(args, asked)
        self.messages = [_message(message) for message in listed(asked.get("messages"))]
        if documents := _documents(asked):
            self.messages.append(form.message("user", documents))
        self.tools = tools(asked.get("tools"))
        self._said: Message | None = None
        self._reason: Any = None
        self._plan: list[str] = []
        self._blocks: dict[int, tuple[str, list[str]]] = {}
        self._calls: dict[int, tuple[Any, Any, list[str]]] = {}

    def read(self, result: Any) -> None:
        data = field(result, "_data")
        self._said = _message(field(data, "message"))
        self._reason = field(data, "finish_reason")

    def chunk(self, chunk: Any) -> None:
        read = _EVENTS.get(form.word(field(chunk, "type")))
        if read is not None:
            read(self, field(chunk, "index") or 0, field(chunk, "delta"))

    def _content(self, index: int, delta: Any) -> None:
        content = field(field(delta, "message"), "content")
        for name in ("text", "thinking"):
            if isinstance(piece := field(content, name), str):
                self._blocks.setdefault(index, (name, []))[1].append(piece)

    def _planned(self, index: int, delta: Any) -> None:
        if isinstance(piece := field(field(delta, "message"), "tool_plan"), str):
            self._plan.append(piece)

    def _called(self, index: int, delta: Any) -> None:
        call = field(field(delta, "message"), "tool_calls")
        function = field(call, "function")
        known = self._calls.setdefault(index, (field(call, "id"), field(function, "name"), []))
        known[2].append(field(function, "arguments") or "")

    def _ended(self, index: int, delta: Any) -> None:
        self._reason = field(delta, "finish_reason")

    def output(self) -> list[Message]:
        if self._said is not None:
            return [form.output(self._said["parts"], self._reason)]
        made = [form.reasoning("".join(self._plan))] if self._plan else []
        for kind, pieces in self._blocks.values():
            said = "".join(pieces)
            made.append(form.reasoning(said) if kind == "thinking" else form.text(said))
        made += [form.tool_call(identifier, name, "".join(said)) for identifier, name, said in self._calls.values()]
        return [form.output(made, self._reason)] if made or self._reason is not None else []


_EVENTS: Final[Mapping[str | None, Callable[[Chat, int, Any], None]]] = {
    **dict.fromkeys(("content-start", "content-delta"), Chat._content),
    "tool-plan-delta": Chat._planned,
    **dict.fromkeys(("tool-call-start", "tool-call-delta"), Chat._called),
    "message-end": Chat._ended,
}
"""Event of a stream → its reader."""


class FirstChat(Transcript):
    """Content of the first API's ``chat`` and ``chat_stream``."""

    def __init__(self, args: tuple[Any, ...], asked: Mapping[str, Any]) -> None:
        super().__init__(args, asked)
        self.whole = self.whole and not asked.get("conversation_id") and not asked.get("connectors")
        self.messages = [_first_message(message) for message in listed(asked.get("chat_history"))]
        answers = [_result(result) for result in listed(asked.get("tool_results"))]
        if answers:
            self.messages.append(form.message("tool", answers))
        said = [form.text(asked["message"])] if asked["message"] else []
        if said := [*said, *_documents(asked)]:
            self.messages.append(form.message("user", said))
        if isinstance(preamble := asked.get("preamble"), str):
            self.system = [form.text(preamble)]
        # Their parameters are described in a form of their own, which is not JSON's schema.
        self.tools = [
            form.function(field(tool, "name"), field(tool, "description"), None) for tool in listed(asked.get("tools"))
        ]
        self._text: list[str] = []
        self._calls: list[Part] = []
        self._reason: Any = None

    def read(self, result: Any) -> None:
        self._whole(field(result, "_data"))

    def _whole(self, data: Any) -> None:
        text = field(data, "text")
        self._text = [text] if isinstance(text, str) and text else []
        self._calls = [_first_call(call) for call in listed(field(data, "tool_calls"))]
        self._reason = field(data, "finish_reason")

    def chunk(self, chunk: Any) -> None:
        kind = form.word(field(chunk, "event_type"))
        if kind == "text-generation":
            self._text.append(field(chunk, "text") or "")
        elif kind == "tool-calls-generation":
            self._calls = [_first_call(call) for call in listed(field(chunk, "tool_calls"))]
        elif kind == "stream-end":
            if field(chunk, "response") is not None:
                self._whole(field(chunk, "response"))
            self._reason = field(chunk, "finish_reason") or self._reason

    def output(self) -> list[Message]:
        made = [form.text(said)] if (said := "".join(self._text)) else []
        made += self._calls
        return [form.output(made, self._reason)] if made or self._reason is not None else []


class Generation(Transcript):
    """Content of ``generate``, ``generate_stream`` and ``summarize``."""

    def __init__(self, args: tuple[Any, ...], asked: Mapping[str, Any]) -> None:
        super().__init__(args, asked)
        self.messages = [prompted(asked["prompt"] if isinstance(asked.get("prompt"), str) else asked["text"])]
        self._answers: dict[int, tuple[list[str], list[Any]]] = {}

    def read(self, result: Any) -> None:
        self._whole(field(result, "_data"))

    def _whole(self, data: Any) -> None:
        self._answers = {
            index: ([field(answer, "text") or ""], [field(answer, "finish_reason")])
            for index, answer in enumerate(listed(field(data, "generations")))
        }
        if isinstance(summary := field(data, "summary"), str):
            self._answers = {0: ([summary], [None])}

    def chunk(self, chunk: Any) -> None:
        kind = form.word(field(chunk, "event_type"))
        if kind == "text-generation":
            said = self._answers.setdefault(field(chunk, "index") or 0, ([], [None]))
            said[0].append(field(chunk, "text") or "")
        elif kind == "stream-end" and listed(field(field(chunk, "response"), "generations")):
            self._whole(field(chunk, "response"))

    def output(self) -> list[Message]:
        return [
            form.output([form.text("".join(said))], reasons[-1]) for _, (said, reasons) in sorted(self._answers.items())
        ]


_FIRST: Final[Mapping[str, Callable[[tuple[Any, ...], Mapping[str, Any]], Transcript]]] = {
    "message": FirstChat,
    "prompt": Generation,
    "text": Generation,
}
"""Argument of the first API that is said → the transcript of such a call."""


def _message(message: Any) -> Message:
    """A message of the second API."""
    made = chat_message(message)
    if isinstance(plan := field(message, "tool_plan"), str) and plan:
        made["parts"].insert(0, form.reasoning(plan))
    return made


def _documents(asked: Mapping[str, Any]) -> list[Part]:
    return [form.generic("document", document=form.plain(document)) for document in listed(asked.get("documents"))]


def _first_message(message: Any) -> Message:
    role = _ROLES.get(str(form.word(field(message, "role"))), "user")
    text = field(message, "message")
    made = [form.text(text)] if isinstance(text, str) and text else []
    made += [_first_call(call) for call in listed(field(message, "tool_calls"))]
    made += [_result(result) for result in listed(field(message, "tool_results"))]
    return form.message(role, made)


def _first_call(call: Any) -> Part:
    return form.tool_call(None, field(call, "name"), field(call, "parameters"))


def _result(result: Any) -> Part:
    return form.tool_response(None, form.plain(field(result, "outputs")))
