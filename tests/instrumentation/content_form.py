"""The form of content in the GenAI conventions, as a table, and a check of what a span says against it.

In: attributes of a span. Out: what it says, as structures; an `AssertionError` names what is not of the form.

Source, read on 2026-11-21: the JSON schemas of input messages, output messages, system instructions and tool
definitions in open-telemetry/semantic-conventions-genai (``model/gen-ai/gen-ai-*.json``). A part of a type that is not
in the table is a generic one, which needs a type and nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest

from tollspan.pricing import attributes as names

KEYS = (names.INPUT_MESSAGES, names.OUTPUT_MESSAGES, names.SYSTEM_INSTRUCTIONS, names.TOOL_DEFINITIONS)

TEXT = (str,)
MAYBE = (str, type(None))
ANY = (str, int, float, bool, dict, list, type(None))

PARTS: dict[str, tuple[dict[str, tuple[type, ...]], dict[str, tuple[type, ...]]]] = {
    "text": ({"content": TEXT}, {}),
    "reasoning": ({"content": TEXT}, {}),
    "compaction": ({}, {"id": MAYBE, "content": MAYBE}),
    "tool_call": ({"name": TEXT}, {"id": MAYBE, "arguments": ANY}),
    "tool_call_response": ({"response": ANY}, {"id": MAYBE, "name": TEXT}),
    "server_tool_call": ({"name": TEXT, "server_tool_call": (dict,)}, {"id": MAYBE}),
    "server_tool_call_response": ({"server_tool_call_response": (dict,)}, {"id": MAYBE}),
    "blob": ({"modality": TEXT, "content": TEXT}, {"mime_type": MAYBE, "transcript": MAYBE}),
    "file": ({"modality": TEXT, "file_id": TEXT}, {"mime_type": MAYBE, "transcript": MAYBE}),
    "uri": ({"modality": TEXT, "uri": TEXT}, {"mime_type": MAYBE, "transcript": MAYBE}),
}
"""Type of a part → fields that it must have and fields that it may have, with the types of their values."""

DETAILS = ("server_tool_call", "server_tool_call_response")
"""Fields that are objects with a type of their own."""

ROLES = ("system", "user", "assistant", "tool")


def check(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """What is said, by attribute; everything in it has the conventions' form."""
    said = {key: json.loads(attributes[key]) for key in KEYS if key in attributes}
    for key in (names.INPUT_MESSAGES, names.OUTPUT_MESSAGES):
        for message in said.get(key, []):
            check_message(message, key == names.OUTPUT_MESSAGES)
    for part in said.get(names.SYSTEM_INSTRUCTIONS, []):
        check_part(part)
    for tool in said.get(names.TOOL_DEFINITIONS, []):
        check_tool(tool)
    return said


def check_message(message: Any, output: bool) -> None:
    optional = {"name", "finish_reason"} if output else {"name"}
    assert {"role", "parts"} <= message.keys() <= {"role", "parts", *optional}, message
    assert message["role"] in ROLES, message
    assert isinstance(message.get("finish_reason", ""), str), message
    for part in message["parts"]:
        check_part(part)


def check_part(part: Any) -> None:
    assert isinstance(part["type"], str), part
    assert part["type"] not in ("", "None"), part
    if part["type"] not in PARTS:
        return
    required, optional = PARTS[part["type"]]
    assert required.keys() <= part.keys() - {"type"} <= required.keys() | optional.keys(), part
    for field, kinds in (required | optional).items():
        assert field not in part or isinstance(part[field], kinds), (field, part)
    for field in DETAILS:
        assert field not in part or isinstance(part[field]["type"], str), part
    assert not part.get("uri", "").startswith("data:"), part


def check_tool(tool: Any) -> None:
    assert isinstance(tool["type"], str), tool
    assert isinstance(tool["name"], str), tool
    if tool["type"] == "function":
        assert tool.keys() <= {"type", "name", "description", "parameters"}, tool
        assert isinstance(tool.get("parameters"), (dict, type(None))), tool


def switching(instrumentor: Any, monkeypatch: pytest.MonkeyPatch, telemetry: Any) -> Iterator[Callable[..., Any]]:
    """For a fixture ``switched``: instruments a client with variables of the environment set."""

    def on(**variables: str) -> Any:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        instrumentor.instrument(tracer_provider=telemetry.provider)
        return telemetry

    yield on
    instrumentor.uninstrument()
