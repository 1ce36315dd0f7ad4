"""What is said where the other side of it is sound, a picture or a film, in the form of the GenAI conventions.

In: arguments and results of OpenAI's APIs of this kind, and of those made like them. Out: `Transcript`: `Prompt` for
what is to be drawn, filmed or spoken, `Heard` for what was transcribed or translated. Only text is told: the rest may
be a file that the program has open, or megabytes. Imported only where the user has switched content on.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from tollspan.instrumentation import content_parts as form
from tollspan.instrumentation.content import Message, Transcript
from tollspan.instrumentation.content_parts import field

_DELTAS: Final = frozenset({"transcript.text.delta", "transcription.text.delta"})
_WHOLE: Final = frozenset({"transcript.text.done", "transcription.done"})


class Prompt(Transcript):
    """Content of images, videos and speech."""

    def __init__(self, args: tuple[Any, ...], asked: Mapping[str, Any]) -> None:
        super().__init__(args, asked)
        prompt = asked.get("prompt") or asked.get("input")
        if isinstance(prompt, str):
            self.messages = [form.message("user", [form.text(prompt)])]
        if isinstance(instructions := asked.get("instructions"), str):
            self.system = [form.text(instructions)]


class Heard(Prompt):
    """Content of transcriptions and translations."""

    def __init__(self, args: tuple[Any, ...], asked: Mapping[str, Any]) -> None:
        super().__init__(args, asked)
        self._text: list[str] = []

    def read(self, result: Any) -> None:
        text = result if isinstance(result, str) else field(result, "text")
        self._text = [text] if isinstance(text, str) else []

    def chunk(self, chunk: Any) -> None:
        event = field(chunk, "data") or chunk  # Mistral's has the event inside
        kind = form.word(field(event, "type"))
        if kind in _WHOLE:
            self.read(event)
        elif kind in _DELTAS:
            piece = field(event, "delta") or field(event, "text")
            self._text += [piece] if isinstance(piece, str) else []

    def output(self) -> list[Message]:
        return [form.output([form.text("".join(self._text))], None)] if self._text else []
