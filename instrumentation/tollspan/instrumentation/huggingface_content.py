"""What is said through Hugging Face's clients, in the form of the GenAI conventions.

In: the request as it is sent, the body of its answer as bytes, or the lines of its stream. Out: `Transcript`, for chats
and generated text. Imported only where the user has switched content on.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from tollspan.instrumentation import content_parts as form
from tollspan.instrumentation.content import Message, Transcript
from tollspan.instrumentation.content_parts import field
from tollspan.instrumentation.huggingface import parsed
from tollspan.instrumentation.openai import content as openai
from tollspan.instrumentation.openai.content import prompted

_DATA: Final = "data:"


def reader(args: tuple[Any, ...], asked: Mapping[str, Any]) -> Transcript | None:
    """Transcript of a task; None for those in which nothing is said."""
    kind = {"conversational": Chat, "text-generation": Generation}.get(str(asked.get("task")))
    return None if kind is None else kind(args, asked)


def _line(line: Any) -> Any:
    """What a line of a stream holds; None for one that holds nothing."""
    line = line.decode() if isinstance(line, bytes) else line
    held = line[len(_DATA) :].strip() if isinstance(line, str) and line.startswith(_DATA) else ""
    return parsed(held) if held.startswith("{") else None


class Chat(openai.Chat):
    """Content of ``chat_completion``."""

    def read(self, result: Any) -> None:
        super().read(parsed(result))

    def chunk(self, chunk: Any) -> None:
        super().chunk(_line(chunk))


class Generation(openai.Completions):
    """Content of ``text_generation``, as Hugging Face's servers answer it or as OpenAI's older API does."""

    def __init__(self, args: tuple[Any, ...], asked: Mapping[str, Any]) -> None:
        super().__init__(args, asked)
        if isinstance(prompt := asked.get("inputs"), str):
            self.messages = [prompted(prompt)]
        self._text: list[str] = []
        self._reason: Any = None

    def read(self, result: Any) -> None:
        whole = parsed(result)
        for answer in whole if isinstance(whole, list) else [whole]:
            super().read(answer)
            if isinstance(text := field(answer, "generated_text"), str):
                self._text.append(text)
                self._reason = field(field(answer, "details"), "finish_reason")

    def chunk(self, chunk: Any) -> None:
        piece = _line(chunk)
        super().read(piece)
        token = field(piece, "token")
        if isinstance(text := field(token, "text"), str) and not field(token, "special"):
            self._text.append(text)
        self._reason = field(field(piece, "details"), "finish_reason") or self._reason

    def output(self) -> list[Message]:
        if self._text:
            return [form.output([form.text("".join(self._text))], self._reason)]
        return super().output()
