"""What is said on a realtime connection, in the form of the GenAI conventions.

In: events of a connection that tell of its session, of items of its conversation, of what was heard, and of responses
that are done. Out: a `Transcript` for each response: what was said since the one before, and the answer. What was said
before that the service has kept. Sound is told by its transcript. Imported only where the user has switched content on.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from tollspan.instrumentation import content_parts as form
from tollspan.instrumentation.content import Message, Part
from tollspan.instrumentation.content_parts import field, listed
from tollspan.instrumentation.openai.content import Responses, item_message, tools

_MOST: Final = 256
"""Items that are kept of a conversation that gets no answer."""


class Heard:
    """What has been said on one connection since its last response."""

    def __init__(self) -> None:
        self._system: list[Part] = []
        self._tools: list[Any] = []
        self._items: dict[str, Message] = {}
        self._spoken: dict[str, dict[Any, str]] = {}

    def session(self, session: Mapping[str, Any]) -> None:
        """The session is, or has become, this."""
        if isinstance(instructions := session.get("instructions"), str):
            self._system = [form.text(instructions)] if instructions else []
        if session.get("tools") is not None:
            self._tools = tools(session.get("tools"))

    def item(self, item: Any) -> None:
        """An item was added to the conversation, or is complete."""
        identifier = field(item, "id")
        if isinstance(identifier, str) and (identifier in self._items or len(self._items) < _MOST):
            self._items[identifier] = item_message(item)

    def transcribed(self, identifier: Any, index: Any, transcript: Any) -> None:
        """What an item's sound says."""
        if identifier in self._items and isinstance(transcript, str):
            self._spoken.setdefault(identifier, {})[index or 0] = transcript

    def turn(self, response: Any) -> Responses:
        """A response is done: the transcript of what was said since the last one."""
        turn = Responses((), {})
        turn.whole = False
        turn.system, turn.tools = self._system, self._tools
        for item in listed(field(response, "output")):
            self._items.pop(str(field(item, "id")), None)
        for identifier, message in self._items.items():
            for index, transcript in self._spoken.get(identifier, {}).items():
                if index < len(message["parts"]):
                    message["parts"][index] = form.text(transcript)
            turn.messages.append(message)
        self._items, self._spoken = {}, {}
        turn.read(response)
        return turn
