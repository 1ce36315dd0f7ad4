"""What is said in OpenAI's chat completions and responses, in the form of the GenAI conventions.

In: arguments, responses and stream events of the client. Out: `Transcript`. Imported only where the user has switched
content on.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, Final

from tollspan.instrumentation.content import Message, Part, Transcript

_LAST: Final = frozenset({"response.completed", "response.incomplete", "response.failed"})


class Chat(Transcript):
    """Content of ``chat.completions``."""

    def __init__(self, args: tuple[Any, ...], asked: Mapping[str, Any]) -> None:
        super().__init__(args, asked)
        self.messages = [_chat_message(message) for message in _listed(asked.get("messages"))]
        self.tools = _tools(asked.get("tools"))
        self._choices: dict[int, dict[str, Any]] = {}

    def read(self, result: Any) -> None:
        for choice in _listed(_field(result, "choices")):
            message = _field(choice, "message")
            parts = _chat_message(message)["parts"]
            self._choices[_field(choice, "index") or 0] = {
                "role": _field(message, "role") or "assistant",
                "parts": parts,
                "finish_reason": _field(choice, "finish_reason"),
            }

    def chunk(self, chunk: Any) -> None:
        for piece in _listed(_field(chunk, "choices")):
            choice = self._choices.setdefault(
                _field(piece, "index") or 0,
                {"role": "assistant", "text": [], "refusal": [], "calls": {}, "finish_reason": None},
            )
            choice["finish_reason"] = _field(piece, "finish_reason") or choice["finish_reason"]
            delta = _field(piece, "delta")
            choice["role"] = _field(delta, "role") or choice["role"]
            if text := _field(delta, "content"):
                choice["text"].append(text)
            if refusal := _field(delta, "refusal"):
                choice["refusal"].append(refusal)
            for call in _listed(_field(delta, "tool_calls")):
                function = _field(call, "function")
                known = choice["calls"].setdefault(
                    _field(call, "index") or 0, {"id": None, "name": "", "arguments": []}
                )
                known["id"] = _field(call, "id") or known["id"]
                known["name"] = _field(function, "name") or known["name"]
                known["arguments"].append(_field(function, "arguments") or "")

    def output(self) -> list[Message]:
        messages = []
        for _, choice in sorted(self._choices.items()):
            parts = choice.get("parts")
            if parts is None:
                parts = [_text("".join(choice[kind])) for kind in ("text", "refusal") if choice[kind]]
                parts += [
                    _call(call["id"], call["name"], "".join(call["arguments"])) for call in choice["calls"].values()
                ]
            messages.append(_output(choice["role"], parts, choice["finish_reason"]))
        return messages


class Responses(Transcript):
    """Content of ``responses``."""

    def __init__(self, args: tuple[Any, ...], asked: Mapping[str, Any]) -> None:
        super().__init__(args, asked)
        given = asked.get("input")
        if isinstance(given, str):
            self.messages = [{"role": "user", "parts": [_text(given)]}]
        else:
            self.messages = [_item(item) for item in _listed(given)]
        instructions = asked.get("instructions")
        if isinstance(instructions, str):
            self.system = [_text(instructions)]
        self.tools = _tools(asked.get("tools"))
        self._response: Any = None
        self._text: list[str] = []

    def read(self, result: Any) -> None:
        if _field(result, "output") is not None:
            self._response = result

    def chunk(self, chunk: Any) -> None:
        kind = _field(chunk, "type")
        if kind in _LAST:
            self._response = _field(chunk, "response")
        elif kind == "response.output_text.delta":
            self._text.append(_field(chunk, "delta") or "")

    def output(self) -> list[Message]:
        if self._response is None:
            return [_output("assistant", [_text("".join(self._text))], None)] if self._text else []
        parts = [part for item in _listed(_field(self._response, "output")) for part in _item(item)["parts"]]
        details = _field(self._response, "incomplete_details")
        return [_output("assistant", parts, _field(details, "reason") or _field(self._response, "status"))]


def _field(model: Any, name: str) -> Any:
    """Field of a model of the client's, or of a dict; None where there is none."""
    return model.get(name) if isinstance(model, Mapping) else getattr(model, name, None)


def _listed(value: Any) -> Iterable[Any]:
    # An iterator is the program's to read, and only once.
    return value if isinstance(value, (list, tuple)) else ()


def _text(text: str) -> Part:
    return {"type": "text", "content": text}


def _call(identifier: Any, name: Any, arguments: Any) -> Part:
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except ValueError:
            pass  # a model may write what is no JSON: kept as it is
    return {"type": "tool_call", "id": identifier, "name": name, "arguments": arguments}


def _output(role: str, parts: list[Part], reason: Any) -> Message:
    message: Message = {"role": role, "parts": parts}
    if reason is not None:
        # The conventions have a word of their own for this one.
        message["finish_reason"] = "tool_call" if reason == "tool_calls" else reason
    return message


def _tools(tools: Any) -> list[Any]:
    return [_plain(tool) for tool in _listed(tools)]


def _plain(value: Any) -> Any:
    dump = getattr(value, "model_dump", None)
    if dump is not None:
        return dump(mode="json", exclude_unset=True)
    # A copy, for the program may change its own while the call lasts.
    return json.loads(json.dumps(value, default=str))


def _chat_message(message: Any) -> Message:
    role = _field(message, "role") or "user"
    if role == "tool":
        said = [part.get("content") for part in _parts(_field(message, "content"))]
        response = {
            "type": "tool_call_response",
            "id": _field(message, "tool_call_id"),
            "response": "".join(map(str, said)),
        }
        return {"role": role, "parts": [response]}
    parts = _parts(_field(message, "content"))
    if refusal := _field(message, "refusal"):
        parts.append(_text(refusal))
    for call in _listed(_field(message, "tool_calls")):
        function = _field(call, "function") or _field(call, "custom")
        arguments = _field(function, "arguments")
        parts.append(
            _call(
                _field(call, "id"),
                _field(function, "name"),
                arguments if arguments is not None else _field(function, "input"),
            )
        )
    return {"role": role, "parts": parts}


def _parts(content: Any) -> list[Part]:
    if isinstance(content, str):
        return [_text(content)]
    return [_part(part) for part in _listed(content)]


def _part(part: Any) -> Part:
    kind = _field(part, "type")
    if kind in ("text", "input_text", "output_text", "refusal", "summary_text", "reasoning_text"):
        return _text(_field(part, "text") or _field(part, "refusal") or "")
    if kind in ("image_url", "input_image"):
        url = _field(part, "image_url")
        return _media("image", url if isinstance(url, str) else _field(url, "url"), _field(part, "file_id"))
    if kind == "input_audio":
        audio = _field(part, "input_audio")
        return {
            "type": "blob",
            "modality": "audio",
            "mime_type": f"audio/{_field(audio, 'format')}",
            "content": _field(audio, "data"),
        }
    if kind in ("file", "input_file"):
        file = _field(part, "file") or part
        return _media("document", _field(file, "file_url") or _field(file, "file_data"), _field(file, "file_id"))
    return {"type": str(kind)}


def _media(modality: str, url: Any, file: Any) -> Part:
    if file is not None:
        return {"type": "file", "modality": modality, "file_id": file}
    if isinstance(url, str) and url.startswith("data:"):
        mime, _, data = url.removeprefix("data:").partition(";base64,")
        return {"type": "blob", "modality": modality, "mime_type": mime, "content": data}
    return {"type": "uri", "modality": modality, "uri": url}


def _item(item: Any) -> Message:
    """An input or output item of the Responses API."""
    kind = _field(item, "type")
    if kind in ("function_call", "custom_tool_call"):
        arguments = _field(item, "arguments")
        call = _call(
            _field(item, "call_id"), _field(item, "name"), arguments if arguments is not None else _field(item, "input")
        )
        return {"role": "assistant", "parts": [call]}
    if kind in ("function_call_output", "custom_tool_call_output"):
        output = _field(item, "output")
        if not isinstance(output, str):
            output = _parts(output)
        response = {"type": "tool_call_response", "id": _field(item, "call_id"), "response": output}
        return {"role": "tool", "parts": [response]}
    if kind == "reasoning":
        said = [*_parts(_field(item, "summary")), *_parts(_field(item, "content"))]
        return {"role": "assistant", "parts": [{"type": "reasoning", "content": part["content"]} for part in said]}
    if kind in (None, "message"):
        return {"role": _field(item, "role") or "user", "parts": _parts(_field(item, "content"))}
    return {"role": "assistant", "parts": [{"type": str(kind)}]}
