"""What is said where LiteLLM speaks a provider's own protocol, in the form of the GenAI conventions.

In: arguments, answers and streams of its functions for Anthropic's messages and Google's content; the streams are
server-sent events as bytes, cut anywhere. Out: `Transcript`, as the readers of those providers make it. Imported only
where the user has switched content on.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, Final

from tollspan.instrumentation.anthropic import content as anthropic
from tollspan.instrumentation.google_genai import content as google

_DATA: Final = b"data:"


class _Events:
    """Events of a stream that comes as bytes."""

    def __init__(self) -> None:
        self._pending = b""

    def of(self, chunk: Any) -> Iterator[Any]:
        """Events that a chunk completes; a chunk that is no bytes is an event."""
        if isinstance(chunk, str):
            chunk = chunk.encode()
        if not isinstance(chunk, bytes):
            yield chunk
            return
        *lines, self._pending = (self._pending + chunk).split(b"\n")
        for line in lines:
            if line.startswith(_DATA) and line.strip().endswith(b"}"):
                yield json.loads(line[len(_DATA) :])


class Messages(anthropic.Messages):
    """Content of ``anthropic_messages`` and its like."""

    def __init__(self, args: tuple[Any, ...], asked: Mapping[str, Any]) -> None:
        super().__init__(args, asked)
        self._events = _Events()

    def chunk(self, chunk: Any) -> None:
        for event in self._events.of(chunk):
            super().chunk(event)


class Contents(google.Contents):
    """Content of ``generate_content`` and its stream."""

    def __init__(self, args: tuple[Any, ...], asked: Mapping[str, Any]) -> None:
        config = asked.get("config")
        config = config if isinstance(config, Mapping) else {}
        system = config.get("system_instruction") or config.get("systemInstruction")
        given = {"system_instruction": system, "tools": config.get("tools")}
        super().__init__(args, {**given, **{name: value for name, value in asked.items() if value is not None}})
        self._events = _Events()

    def chunk(self, chunk: Any) -> None:
        for event in self._events.of(chunk):
            super().chunk(event)
