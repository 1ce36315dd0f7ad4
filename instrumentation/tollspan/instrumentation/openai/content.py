"""What is said in OpenAI's APIs, and by all who speak its protocol, in the form of the GenAI conventions.

In: arguments, responses and stream events of a client, as its models or as plain dicts. Out: `Transcript`: `Chat` for
chat completions, `Completions` for the older completions of a prompt, `Responses` for responses. Imported only where
the user has switched content on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from tollspan.instrumentation import content_parts as form
from tollspan.instrumentation.content import Message, Part, Transcript
from tollspan.instrumentation.content_parts import field, listed

_LAST: Final = frozenset({"response.completed", "response.incomplete", "response.failed"})


class Chat(Transcript):
    """Content of chat completions."""

    def __init__(self, args: tuple[Any, ...], asked: Mapping[str, Any]) -> None:
        super().__init__(args, asked)
        self.messages = [chat_message(message) for message in listed(asked.get("messages"))]
        self.tools = tools(asked.get("tools"))
        self._choices: dict[int, Choice] = {}

    def read(self, result: Any) -> None:
        for choice in listed(field(result, "choices")):
            whole = self._choices[field(choice, "index") or 0] = Choice()
            whole.read(field(choice, "message"), field(choice, "finish_reason"))

    def chunk(self, chunk: Any) -> None:
        for piece in listed(field(chunk, "choices")):
            index = field(piece, "index") or 0
            choice = self._choices.get(index)
            if choice is None:
                choice = self._choices[index] = Choice()
            choice.add(field(piece, "delta"), field(piece, "finish_reason"))

    def output(self) -> list[Message]:
        return [choice.message() for _, choice in sorted(self._choices.items())]


class Choice:
    """One answer, whole or as far as its pieces have come."""

    __slots__ = ("_calls", "_executed", "_parts", "_reason", "_reasoning", "_role", "_text")

    def __init__(self) -> None:
        self._role: Any = None
        self._reason: Any = None
        self._parts: list[Part] = []
        self._reasoning: list[str] = []
        self._text: list[str] = []
        self._executed: dict[Any, list[Part]] = {}
        self._calls: dict[Any, _Call] = {}

    def read(self, message: Any, reason: Any) -> None:
        """Take in a whole message."""
        self._role = field(message, "role") or None
        self._reason = reason
        self._parts = chat_message(message)["parts"]

    def add(self, delta: Any, reason: Any) -> None:
        """Take in a piece."""
        self._reason = reason or self._reason
        self._role = field(delta, "role") or self._role
        for piece in parts(field(delta, "content")):
            into = {"text": self._text, "reasoning": self._reasoning}.get(piece["type"])
            if into is None:
                self._parts.append(piece)
            else:
                into.append(piece["content"])
        thought = _thought(delta)
        if thought:
            self._reasoning.append(thought)
        said = field(delta, "refusal") or field(field(delta, "audio"), "transcript")
        if isinstance(said, str):
            self._text.append(said)
        for tool in listed(field(delta, "executed_tools")):
            self._executed[field(tool, "index")] = _executed(tool)
        for call in listed(field(delta, "tool_calls")):
            self._add_call(call)

    def _add_call(self, call: Any) -> None:
        identifier = _identifier(call)
        key: Any = field(call, "index") or 0
        known = self._calls.get(key)
        if known is not None and identifier is not None and known.identifier not in (None, identifier):
            # Another call, of a provider that sends calls whole and does not number them.
            key, known = identifier, self._calls.get(identifier)
        if known is None:
            known = self._calls[key] = _Call()
        function = field(call, "function")
        known.identifier = known.identifier or identifier
        known.name = field(function, "name") or known.name
        arguments = field(function, "arguments")
        if isinstance(arguments, str):
            known.pieces.append(arguments)
        elif arguments:
            known.whole = form.plain(arguments)

    def message(self) -> Message:
        """The answer as far as it has come."""
        made = [form.reasoning("".join(self._reasoning))] if self._reasoning else []
        made += [part for executed in self._executed.values() for part in executed]
        made += [form.text(said)] if (said := "".join(self._text)) else []
        made += self._parts
        made += [call.part() for call in self._calls.values()]
        return form.output(made, self._reason, self._role)


class _Call:
    """A tool call as far as it has come."""

    __slots__ = ("identifier", "name", "pieces", "whole")

    def __init__(self) -> None:
        self.identifier: str | None = None
        self.name: Any = ""
        self.pieces: list[str] = []
        self.whole: Any = None

    def part(self) -> Part:
        arguments = "".join(self.pieces) if self.whole is None else self.whole
        return form.tool_call(self.identifier, self.name, arguments)


class Completions(Transcript):
    """Content of the older API, which completes a prompt. A prompt of tokens is no text."""

    def __init__(self, args: tuple[Any, ...], asked: Mapping[str, Any]) -> None:
        super().__init__(args, asked)
        prompt = asked.get("prompt")
        prompts = [prompt] if isinstance(prompt, str) else listed(prompt)
        self.messages = [prompted(text, asked.get("suffix")) for text in prompts if isinstance(text, str)]
        self._choices: dict[int, tuple[list[str], list[Any]]] = {}

    def read(self, result: Any) -> None:
        for choice in listed(field(result, "choices")):
            said, reasons = self._choices.setdefault(field(choice, "index") or 0, ([], []))
            if isinstance(text := field(choice, "text"), str):
                said.append(text)
            if reason := field(choice, "finish_reason"):
                reasons.append(reason)

    def chunk(self, chunk: Any) -> None:
        self.read(chunk)

    def output(self) -> list[Message]:
        return [
            form.output([form.text("".join(said))], reasons[-1] if reasons else None)
            for _, (said, reasons) in sorted(self._choices.items())
        ]


class Responses(Transcript):
    """Content of responses."""

    def __init__(self, args: tuple[Any, ...], asked: Mapping[str, Any]) -> None:
        super().__init__(args, asked)
        given = asked.get("input")
        if isinstance(given, str):
            self.messages = [form.message("user", [form.text(given)])]
        else:
            self.messages = [item_message(item) for item in listed(given)]
        instructions = asked.get("instructions")
        if isinstance(instructions, str):
            self.system = [form.text(instructions)]
        self.tools = tools(asked.get("tools"))
        self._response: Any = None
        self._text: list[str] = []

    def read(self, result: Any) -> None:
        if field(result, "output") is not None:
            self._response = result

    def chunk(self, chunk: Any) -> None:
        kind = form.word(field(chunk, "type"))
        if kind in _LAST:
            self._response = field(chunk, "response")
        elif kind == "response.output_text.delta":
            self._text.append(field(chunk, "delta") or "")

    def output(self) -> list[Message]:
        if self._response is None:
            return [form.output([form.text("".join(self._text))], None)] if self._text else []
        made = [part for item in listed(field(self._response, "output")) for part in item_message(item)["parts"]]
        details = field(self._response, "incomplete_details")
        return [form.output(made, field(details, "reason") or field(self._response, "status"))]


# -- messages ----------------------------------------------------------------------------------------------------------


def prompted(prompt: str, suffix: Any = None) -> Message:
    """A prompt that is to be completed, and what comes after the answer."""
    made = [form.text(prompt)]
    if isinstance(suffix, str) and suffix:
        made.append(form.generic("suffix", content=suffix))
    return form.message("user", made)


def chat_message(message: Any) -> Message:
    """A message of a chat, asked or answered."""
    role = form.word(field(message, "role")) or "user"
    content = field(message, "content")
    if role in ("tool", "function"):
        return form.message("tool", [form.tool_response(field(message, "tool_call_id"), response_of(content))])
    thought = _thought(message)
    made = [form.reasoning(thought)] if thought else []
    made += [part for tool in listed(field(message, "executed_tools")) for part in _executed(tool)]
    made += parts(content)
    if refusal := field(message, "refusal"):
        made.append(form.text(refusal))
    if audio := field(message, "audio"):
        made.append(_spoken(audio))
    for call in listed(field(message, "tool_calls")):
        function = field(call, "function") or field(call, "custom")
        arguments = field(function, "arguments")
        arguments = arguments if arguments is not None else field(function, "input")
        made.append(form.tool_call(_identifier(call), field(function, "name"), arguments))
    return form.message(role, made)


def _identifier(call: Any) -> str | None:
    identifier = form.word(field(call, "id"))
    return None if identifier == "null" else identifier  # so Mistral's client calls what was not given


def response_of(content: Any) -> Any:
    """What a tool gave: a text, or parts where it is more than that."""
    made = parts(content)
    if all(part["type"] == "text" for part in made):
        return "".join(part["content"] for part in made)
    return made


def _thought(message: Any) -> str | None:
    """What a model thought, by the names that OpenAI's protocol has for it elsewhere."""
    thought = field(message, "reasoning_content") or field(message, "reasoning")
    return thought if isinstance(thought, str) else None


def _executed(tool: Any) -> list[Part]:
    """A tool that Groq called itself, and what it gave."""
    kind, output = field(tool, "type"), field(tool, "output")
    call = form.server_call(None, kind, kind, arguments=form.parsed(field(tool, "arguments")))
    return [call] if output is None else [call, form.server_response(None, kind, output=output)]


def _spoken(audio: Any) -> Part:
    data, identifier = field(audio, "data"), field(audio, "id")
    if not isinstance(data, str):
        return form.file("audio", identifier)
    part = form.blob("audio", None, data)
    if isinstance(transcript := field(audio, "transcript"), str):
        part["transcript"] = transcript
    return part


def tools(given: Any) -> list[Any]:
    """Tool definitions: functions, and those that the provider has, without what they are trusted with."""
    return [_tool(tool) for tool in listed(given)]


def _tool(tool: Any) -> Any:
    kind = form.word(field(tool, "type")) or "function"
    function = field(tool, "function") or tool
    if kind == "function":
        return form.function(field(function, "name"), field(function, "description"), field(function, "parameters"))
    name = field(tool, "name") or field(field(tool, kind), "name") or field(tool, "server_label")
    return form.own_tool(tool, kind, name)


# -- parts -------------------------------------------------------------------------------------------------------------


def parts(content: Any) -> list[Part]:
    """Parts of a message's content, which may be one text."""
    if isinstance(content, str):
        return [form.text(content)]
    return [_part(part) for part in listed(content)]


def _part(part: Any) -> Part:
    if isinstance(part, str):
        return form.text(part)
    kind = form.word(field(part, "type")) or ("text" if field(part, "text") is not None else None)
    read = _PARTS.get(kind)
    return form.generic(kind) if read is None else read(part)


def _text(part: Any) -> Part:
    return form.text(field(part, "text") or field(part, "refusal"))


def _thinking(part: Any) -> Part:
    thought = field(part, "thinking")
    if not isinstance(thought, str):  # Mistral's is a list
        thought = "".join(piece["content"] for piece in parts(thought) if piece["type"] == "text")
    return form.reasoning(thought)


def _media(modality: str, name: str) -> Callable[[Any], Part]:
    """Reader of a part whose field ``name`` is an address, or has one."""

    def read(part: Any) -> Part:
        identifier = field(part, "file_id")
        if identifier:
            return form.file(modality, identifier)
        address = field(part, name)
        return form.uri(modality, address if isinstance(address, str) else field(address, "url"))

    return read


def _voice(part: Any) -> Part:
    data, transcript = field(part, "audio"), field(part, "transcript")
    if isinstance(data, str):
        return _spoken({"data": data, "transcript": transcript})
    return form.text(transcript) if isinstance(transcript, str) else form.generic("audio")


def _audio(part: Any) -> Part:
    audio = field(part, "input_audio")
    if audio is None:  # of a realtime connection
        return _voice(part)
    if isinstance(audio, str):  # Mistral's, an address or the sound itself
        return (
            form.uri("audio", audio)
            if "://" in audio[:8] or audio.startswith("data:")
            else form.blob("audio", None, audio)
        )
    kind = form.word(field(audio, "format"))
    return form.blob("audio", f"audio/{kind}" if kind else None, field(audio, "data"))


def _file(part: Any) -> Part:
    inner = field(part, "file") or part
    if identifier := field(inner, "file_id"):
        return form.file("document", identifier)
    return form.uri("document", field(inner, "file_url") or field(inner, "file_data"))


def _shown(*fields: str) -> Callable[[Any], Part]:
    """Reader of a part that the conventions have no form for."""

    def read(part: Any) -> Part:
        return form.generic(field(part, "type"), **{name: form.plain(field(part, name)) for name in fields})

    return read


_PARTS: Final[Mapping[str | None, Callable[[Any], Part]]] = {
    **dict.fromkeys(("text", "input_text", "output_text", "refusal", "summary_text", "reasoning_text"), _text),
    "thinking": _thinking,
    **dict.fromkeys(("image_url", "input_image"), _media("image", "image_url")),
    "video_url": _media("video", "video_url"),
    "audio_url": _media("audio", "audio_url"),
    "document_url": _media("document", "document_url"),
    "input_audio": _audio,
    **dict.fromkeys(("audio", "output_audio"), _voice),
    **dict.fromkeys(("file", "input_file", "tool_file"), _file),
    "document": _shown("document"),
    "reference": _shown("reference_ids"),
    "tool_reference": _shown("title", "url"),
}
"""Type of a part → its reader: OpenAI's, and what others have added to its protocol."""


def item_message(item: Any) -> Message:
    """An input or output item of the Responses API."""
    kind = form.word(field(item, "type"))
    if kind in ("function_call", "custom_tool_call"):
        arguments = field(item, "arguments")
        arguments = arguments if arguments is not None else field(item, "input")
        return form.message("assistant", [form.tool_call(field(item, "call_id"), field(item, "name"), arguments)])
    if kind in ("function_call_output", "custom_tool_call_output"):
        output = field(item, "output")
        response = output if isinstance(output, str) else parts(output)
        return form.message("tool", [form.tool_response(field(item, "call_id"), response)])
    if kind == "reasoning":
        said = [*parts(field(item, "summary")), *parts(field(item, "content"))]
        return form.message("assistant", [form.reasoning(part["content"]) for part in said])
    if kind in (None, "message"):
        return form.message(field(item, "role"), parts(field(item, "content")))
    return form.message("assistant", [form.generic(kind)])
