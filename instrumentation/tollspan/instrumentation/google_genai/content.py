"""What is said in Gemini's contents and interactions, in the form of the GenAI conventions.

In: a request as `asked` gives it, responses, chunks and messages of the client, or the same as plain dicts, in either
case. Out: `Transcript`. Imported only where the user has switched content on.

Of models that make images and videos the prompt is told, and not what they made.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final

from tollspan.instrumentation import content_parts as form
from tollspan.instrumentation.content import Message, Part, Transcript
from tollspan.instrumentation.content_parts import listed
from tollspan.instrumentation.google_genai.readers import snake


def _camel(name: str) -> str:
    first, *others = name.split("_")
    return first + "".join(map(str.capitalize, others))


def _field(model: Any, name: str) -> Any:
    """Field of a model, or of a dict that has it in snake case or in camel case; None where there is none."""
    if isinstance(model, Mapping):
        return model.get(name, model.get(_camel(name)))
    return getattr(model, name, None)


# -- contents ----------------------------------------------------------------------------------------------------------


class Contents(Transcript):
    """Content of ``generate_content`` and of its stream."""

    def __init__(self, args: tuple[Any, ...], asked: Mapping[str, Any]) -> None:
        super().__init__(args, asked)
        self.messages = _messages(asked.get("contents"))
        self.system = [part for said in _messages(asked.get("system_instruction")) for part in said["parts"]]
        self.tools = [definition for tool in listed(asked.get("tools")) for definition in _tools(tool)]
        self._candidates: dict[int, _Candidate] = {}

    def read(self, result: Any) -> None:
        body = _field(_field(result, "sdk_http_response"), "body")
        if isinstance(body, str) and not _field(result, "candidates"):
            result = json.loads(body)
        self._candidates.clear()
        self.chunk(result)

    def chunk(self, chunk: Any) -> None:
        for candidate in listed(_field(chunk, "candidates")):
            known = self._candidates.setdefault(_field(candidate, "index") or 0, _Candidate())
            for part in _given(_field(candidate, "content")):
                known.take(part)
            known.reason = _field(candidate, "finish_reason") or known.reason

    def output(self) -> list[Message]:
        said = (self._candidates[index] for index in sorted(self._candidates))
        told = ((candidate.parts.all(), candidate.reason) for candidate in said)
        return [form.output(parts, reason) for parts, reason in told if parts or reason is not None]


class _Candidate:
    """One answer, whole or as far as its chunks have come."""

    __slots__ = ("_arguments", "parts", "reason")

    def __init__(self) -> None:
        self.parts = form.Parts()
        self.reason: Any = None
        self._arguments: dict[str, Any] = {}

    def take(self, part: Any) -> None:
        """Take in a part."""
        call = _field(part, "function_call")
        if call is None or (_field(call, "name") and not _field(call, "will_continue")):
            for said in _parts((part,)):
                self.parts.add(said)
            return
        # Vertex AI may tell a call in pieces: its name first, and its arguments by their paths.
        if _field(call, "name"):
            self._arguments = {}
            self.parts.add(
                {**form.tool_call(_field(call, "id"), _field(call, "name"), None), "arguments": self._arguments}
            )
        for piece in listed(_field(call, "partial_args")):
            path = str(_field(piece, "json_path") or "").removeprefix("$.")
            values = (_field(piece, name) for name in ("string_value", "number_value", "bool_value"))
            value = next((value for value in values if value is not None), None)
            known = self._arguments.get(path)
            self._arguments[path] = known + value if isinstance(known, str) and isinstance(value, str) else value


class Prompt(Transcript):
    """Content of the methods that make images and videos."""

    def __init__(self, args: tuple[Any, ...], asked: Mapping[str, Any]) -> None:
        super().__init__(args, asked)
        prompt = asked.get("prompt") or _field(asked.get("source"), "prompt")
        if isinstance(prompt, str):
            self.messages = [form.message("user", [form.text(prompt)])]


def _messages(contents: Any) -> list[Message]:
    if isinstance(contents, str):
        return [form.message("user", [form.text(contents)])]
    contents = contents if isinstance(contents, (list, tuple)) else [contents] if contents is not None else ()
    return [form.message(_field(content, "role"), list(_parts(_given(content)))) for content in contents]


def _blob(part: Any, data: Any) -> Part:
    mime = _field(data, "mime_type")
    return form.blob(form.modality_of(mime), mime, _field(data, "data"))


def _uri(part: Any, data: Any) -> Part:
    mime = _field(data, "mime_type")
    return form.uri(form.modality_of(mime), _field(data, "file_uri"), mime)


def _response(part: Any, response: Any) -> Part:
    told: Any = form.plain(_field(response, "response"))
    if media := list(_parts(listed(_field(response, "parts")))):
        told = [form.generic("json", content=told), *media]
    said = form.tool_response(_field(response, "id"), told)
    # Not every response has an id: then the name is what tells which call it is for.
    return {**said, "name": name} if (name := _field(response, "name")) is not None else said


def _code(part: Any, code: Any) -> Part:
    details = {name: _field(code, name) for name in ("language", "code")}
    return form.server_call(_field(code, "id"), "code_execution", "code_execution", **details)


def _code_result(part: Any, result: Any) -> Part:
    details = {name: _field(result, name) for name in ("outcome", "output")}
    return form.server_response(_field(result, "id"), "code_execution", **details)


def _tool_call(part: Any, call: Any) -> Part:
    kind = form.word(_field(call, "tool_type")) or "tool"
    return form.server_call(_field(call, "id"), kind.lower(), kind.lower(), args=_field(call, "args"))


def _tool_response(part: Any, response: Any) -> Part:
    kind = form.word(_field(response, "tool_type")) or "tool"
    return form.server_response(_field(response, "id"), kind.lower(), response=_field(response, "response"))


PARTS: Final[tuple[tuple[str, Callable[[Any, Any], Part]], ...]] = (
    ("text", lambda part, said: form.reasoning(said) if _field(part, "thought") is True else form.text(said)),
    ("inline_data", _blob),
    ("file_data", _uri),
    ("function_call", lambda part, call: form.tool_call(*(_field(call, name) for name in ("id", "name", "args")))),
    ("function_response", _response),
    ("executable_code", _code),
    ("code_execution_result", _code_result),
    ("tool_call", _tool_call),
    ("tool_response", _tool_response),
)
"""Field of a part → what it is there. A part has one of them; one with none of them is a signature or the like."""


def _given(content: Any) -> Iterable[Any]:
    return listed(_field(content, "parts"))


def _parts(given: Iterable[Any]) -> Iterator[Part]:
    for part in given:
        for name, read in PARTS:
            if (said := _field(part, name)) is not None:
                yield read(part, said)
                break


def _tools(tool: Any) -> Iterator[dict[str, Any]]:
    for declared in listed(_field(tool, "function_declarations")):
        parameters = _field(declared, "parameters_json_schema") or _field(declared, "parameters")
        yield form.function(_field(declared, "name"), _field(declared, "description"), _schema(form.plain(parameters)))
    given = form.shown(tool)
    for name, settings in given.items() if isinstance(given, dict) else ():
        kind = snake(name)
        if settings is not None and kind != "function_declarations":
            yield form.own_tool(settings, kind, kind)


def _schema(schema: Any) -> Any:
    """A schema with its types in lower case, as JSON Schema has them."""
    if isinstance(schema, list):
        return [_schema(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        name: value.lower() if name == "type" and isinstance(value, str) else _schema(value)
        for name, value in schema.items()
    }


# -- interactions ------------------------------------------------------------------------------------------------------


class Interactions(Transcript):
    """Content of an interaction, whole or streamed."""

    def __init__(self, args: tuple[Any, ...], asked: Mapping[str, Any]) -> None:
        super().__init__(args, asked)
        given = asked.get("input")
        if isinstance(given, (str, Mapping)) or (given is not None and not isinstance(given, (list, tuple))):
            given = [given]
        for item in listed(given):
            said = _step(item)
            if self.messages and said["role"] == self.messages[-1]["role"] == "user":
                self.messages[-1]["parts"] += said["parts"]
            else:
                self.messages.append(said)
        instruction = asked.get("system_instruction")
        self.system = [form.text(instruction)] if isinstance(instruction, str) else []
        self.tools = [_named_tool(tool) for tool in listed(asked.get("tools"))]
        self._steps: dict[int, form.Parts] = {}
        self._arguments: dict[int, list[str]] = {}
        self._status: Any = None

    def read(self, result: Any) -> None:
        http = getattr(result, "http_response", None)
        if http is None:
            self._interaction(result)
        elif "json" in http.headers.get("content-type", ""):
            self._interaction(http.json())

    def chunk(self, chunk: Any) -> None:
        kind, index = _field(chunk, "event_type"), _field(chunk, "index")
        if kind == "step.start":
            self._steps[index] = form.Parts(_step(_field(chunk, "step"))["parts"])
        elif kind == "step.delta":
            delta = _field(chunk, "delta")
            if _field(delta, "type") == "arguments_delta":
                self._arguments.setdefault(index, []).append(_field(delta, "arguments") or "")
            else:
                for part in _delta(delta):
                    self._steps.setdefault(index, form.Parts()).add(part)
        elif (interaction := _field(chunk, "interaction")) is not None:
            self._interaction(interaction)

    def output(self) -> list[Message]:
        parts: list[Part] = []
        for index in sorted(self._steps):
            step = self._steps[index].all()
            if (pieces := self._arguments.get(index)) and step and step[-1]["type"] == "tool_call":
                step = [*step[:-1], {**step[-1], "arguments": form.parsed("".join(pieces))}]
            parts += step
        return [form.output(parts, self._status)] if parts else []

    def _interaction(self, interaction: Any) -> None:
        status = form.word(_field(interaction, "status"))
        self._status = _STATUSES.get(status or "", status)
        steps = [step for step in listed(_field(interaction, "steps")) if _field(step, "type") != "user_input"]
        if steps:
            self._arguments.clear()
            self._steps = {index: form.Parts(_step(step)["parts"]) for index, step in enumerate(steps)}


_STATUSES: Final[dict[str, str | None]] = {
    "completed": "stop",
    "requires_action": "tool_call",
    "queued": None,
    "in_progress": None,
}
"""Status of an interaction → why the model stopped; None where it has not. Any other says it itself."""


def _named_tool(tool: Any) -> dict[str, Any]:
    kind = form.word(_field(tool, "type"))
    if kind == "function":
        return form.function(*(_field(tool, name) for name in ("name", "description", "parameters")))
    return form.own_tool(tool, kind, _field(tool, "name"))


def _step(step: Any) -> Message:
    """An item of an interaction: a step of it, or a content by itself, which is the user's."""
    if isinstance(step, str):
        return form.message("user", [form.text(step)])
    kind = form.word(_field(step, "type")) or ""
    if kind in ("user_input", "model_output"):
        parts = [_content(item) for item in listed(_field(step, "content"))]
        return form.message("user" if kind == "user_input" else "assistant", parts)
    if kind == "thought":
        said = (_field(item, "text") for item in listed(_field(step, "summary")))
        return form.message("assistant", [form.reasoning(text) for text in said if isinstance(text, str)])
    if kind == "function_call":
        return form.message(
            "assistant", [form.tool_call(*(_field(step, name) for name in ("id", "name", "arguments")))]
        )
    if kind == "function_result":
        given = _field(step, "result")
        result = [_content(item) for item in given] if isinstance(given, list) else form.plain(given)
        return form.message("tool", [form.tool_response(_field(step, "call_id"), result)])
    if kind.endswith(("_call", "_result")):
        return form.message("assistant", [_server_step(kind, step)])
    return form.message("user", [_content(step)])


def _server_step(kind: str, step: Any) -> Part:
    name = _field(step, "name") or kind.removesuffix("_call").removesuffix("_result")
    if kind.endswith("_call"):
        return form.server_call(_field(step, "id"), name, kind, arguments=_field(step, "arguments"))
    return form.server_response(_field(step, "call_id"), kind, result=_field(step, "result"))


def _delta(delta: Any) -> Iterator[Part]:
    kind = form.word(_field(delta, "type")) or ""
    if kind == "thought_summary":
        yield form.reasoning(_field(_field(delta, "content"), "text"))
    elif kind in _CONTENTS:
        yield _content(delta)


_CONTENTS: Final = frozenset({"text", "image", "audio", "document", "video"})


def _content(content: Any) -> Part:
    kind = form.word(_field(content, "type"))
    if kind == "text":
        return form.text(_field(content, "text"))
    if kind not in _CONTENTS:
        return form.generic(kind)
    mime, data = form.word(_field(content, "mime_type")), _field(content, "data")
    return form.blob(kind, mime, data) if data is not None else form.uri(kind, _field(content, "uri"), mime)


# -- live --------------------------------------------------------------------------------------------------------------


class Turn(Transcript):
    """Content of one turn of a live session: what the model said, and what it understood of what it heard."""

    def __init__(self, args: tuple[Any, ...], asked: Mapping[str, Any]) -> None:
        super().__init__(args, asked)
        self.whole = False  # the session keeps all that was said before
        self._parts = form.Parts()
        self._spoken: list[str] = []
        self._heard: list[str] = []
        self._reason: str | None = None

    def chunk(self, chunk: Any) -> None:
        said = _field(chunk, "server_content")
        for part in _parts(_given(_field(said, "model_turn"))):
            if part["type"] != "blob":  # sound, piece by piece; its transcript tells what it says
                self._parts.add(part)
        for call in listed(_field(_field(chunk, "tool_call"), "function_calls")):
            self._parts.add(form.tool_call(*(_field(call, name) for name in ("id", "name", "args"))))
        if isinstance(spoken := _field(_field(said, "output_transcription"), "text"), str):
            self._spoken.append(spoken)
        if isinstance(heard := _field(_field(said, "input_transcription"), "text"), str):
            self._heard.append(heard)
            self.messages = [form.message("user", [form.text("".join(self._heard))])]
        if _field(said, "turn_complete") is True:
            self._reason = "interrupted" if _field(said, "interrupted") is True else "stop"

    def output(self) -> list[Message]:
        parts = [*self._parts.all(), *([form.text("".join(self._spoken))] if self._spoken else ())]
        return [form.output(parts, self._reason)] if parts else []
