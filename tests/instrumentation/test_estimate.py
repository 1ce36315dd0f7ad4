"""Estimated tokens: only where the user asked and the provider told nothing, marked, and never of what is no text."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tollspan.instrumentation import faults
from tollspan.instrumentation.content import Transcript
from tollspan.instrumentation.estimate import tokens
from tollspan.instrumentation.openai import OpenAIInstrumentor
from tollspan.pricing import attributes as names

VARIABLE = "TOLLSPAN_ESTIMATE_USAGE"
ASK: Any = {"model": "gpt-5-mini", "messages": [{"role": "user", "content": "Where is my order?"}]}
IMAGE = {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}
COUNTS = (names.USAGE_INPUT_TOKENS, names.USAGE_OUTPUT_TOKENS, names.USAGE_ESTIMATED)
NOTHING = (None, None, None)


@pytest.fixture
def estimate(monkeypatch: pytest.MonkeyPatch, telemetry: Any) -> Iterator[Callable[[str], Any]]:
    def switch(value: str) -> Any:
        monkeypatch.setenv(VARIABLE, value)
        OpenAIInstrumentor().instrument(tracer_provider=telemetry.provider)
        return telemetry

    yield switch
    OpenAIInstrumentor().uninstrument()


def counts(telemetry: Any) -> tuple[Any, ...]:
    attributes = telemetry.attributes()
    return tuple(attributes.get(name) for name in COUNTS)


def silent(wire: Any) -> Any:
    return wire.stream(wire.completion_chunks(usage=False)).client()


@pytest.fixture(autouse=True)
def counting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module of the user's own, with counters."""
    (tmp_path / "counting.py").write_text(
        "def words(text, model): return len(text.split()) * (100 if model == 'gpt-5-mini-2025-08-07' else 1)\n"
        "def wrong(text, model): return -1\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "counting", raising=False)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        *((off, NOTHING) for off in ("", "false", "0")),
        ("true", (5 + 4, 6, True)),
        ("counting:words", (400 + 4, 300, True)),
    ],
)
def test_a_stream_without_usage(estimate: Any, wire: Any, value: str, expected: tuple[Any, ...]) -> None:
    telemetry = estimate(value)
    assert len(list(silent(wire).chat.completions.create(**ASK, stream=True))) == 4
    assert counts(telemetry) == expected


def test_what_the_provider_counted_is_left_alone(estimate: Any, wire: Any) -> None:
    telemetry = estimate("true")
    wire.json(wire.completion()).client().chat.completions.create(**ASK)
    assert counts(telemetry) == (100, 20, None)


def test_a_stream_that_was_left_early_has_what_was_read(estimate: Any, wire: Any) -> None:
    telemetry = estimate("true")
    with silent(wire).chat.completions.create(**ASK, stream=True) as stream:
        next(stream)
    assert counts(telemetry) == (9, 2, True)


@pytest.mark.parametrize("status", [400, 500])
def test_a_call_that_failed_has_no_estimate(estimate: Any, wire: Any, status: int) -> None:
    telemetry = estimate("true")
    with pytest.raises(Exception, match=str(status)):
        wire.error(status).client(max_retries=0).chat.completions.create(**ASK)
    assert counts(telemetry) == NOTHING


@pytest.mark.parametrize("image", [IMAGE, {"type": "input_audio", "input_audio": {"data": "BBBB", "format": "wav"}}])
def test_what_is_no_text_has_no_estimate(estimate: Any, wire: Any, image: Any) -> None:
    telemetry = estimate("true")
    messages = [{"role": "user", "content": [{"type": "text", "text": "What is it?"}, image]}]
    list(silent(wire).chat.completions.create(model="gpt-5-mini", messages=messages, stream=True))
    assert counts(telemetry) == (None, 6, True)


@pytest.mark.parametrize(("told", "expected"), [([IMAGE], None), ([{"type": "text", "text": "Rain."}], 12)])
def test_a_picture_that_a_tool_gave_is_no_text(estimate: Any, wire: Any, told: Any, expected: int | None) -> None:
    telemetry = estimate("true")
    call = {"id": "c", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    asked = {"role": "assistant", "tool_calls": [call]}
    given = {"role": "tool", "tool_call_id": "c", "content": told}
    list(silent(wire).chat.completions.create(model="gpt-5-mini", messages=[asked, given], stream=True))
    assert counts(telemetry) == (expected, 6, True)


def test_input_that_the_provider_kept_has_no_estimate(estimate: Any, wire: Any) -> None:
    telemetry = estimate("true")
    wire.json(wire.response(usage=None)).client().responses.create(
        model="gpt-5-mini", input="And now?", previous_response_id="resp_6"
    )
    assert counts(telemetry) == (None, 2, True)


@pytest.mark.parametrize("kept", ["previous_response_id", "conversation", "cached_content", "prompt_id"])
def test_what_names_input_that_the_provider_has_is_not_the_whole_of_it(kept: str) -> None:
    assert Transcript((), {"messages": []}).whole
    assert not Transcript((), {"messages": [], kept: "x"}).whole


def test_tools_and_calls_are_text_too(estimate: Any, wire: Any) -> None:
    telemetry = estimate("true")
    function = {"name": "weather", "parameters": {"type": "object", "properties": {}}}
    tool, told = {"type": "function", "function": function}, {"type": "function", **function}
    call = {"id": "c", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Bern"}'}}
    choice = {"index": 0, "message": {"role": "assistant", "tool_calls": [call]}, "finish_reason": "tool_calls"}
    wire.json(wire.completion(choices=[choice], usage=None)).client().chat.completions.create(**ASK, tools=[tool])
    assert counts(telemetry) == (9 + tokens(json.dumps(told)), tokens("weather") + tokens('{"city": "Bern"}'), True)


@pytest.mark.parametrize("value", ["counting:absent", "no.such.module:count", "counting:wrong"])
def test_a_counter_that_does_not_work_takes_nothing_else(
    monkeypatch: pytest.MonkeyPatch, faulty_telemetry: Any, wire: Any, value: str
) -> None:
    monkeypatch.setenv(VARIABLE, value)
    OpenAIInstrumentor().instrument(tracer_provider=faulty_telemetry.provider)
    before = faults().get("extras.estimate", 0)
    try:
        list(silent(wire).chat.completions.create(**ASK, stream=True))
    finally:
        OpenAIInstrumentor().uninstrument()
    assert counts(faulty_telemetry) == NOTHING
    assert faulty_telemetry.attributes()[names.RESPONSE_ID] == "chatcmpl-7"
    assert faults().get("extras.estimate", 0) == before + 1


@pytest.mark.parametrize(
    ("text", "low", "high"),
    [
        ("", 0, 0),
        ("Hello, world!", 4, 4),
        ("You will get an e-mail with the new tracking link in a few minutes.", 15, 19),
        ("for each in range(10):\n    print(each * 3.14159)\n", 17, 26),
        ('{"city": "Bern", "days": [1, 2, 3]}', 13, 20),
        ("Die Rechnung kommt monatlich im Voraus.", 7, 12),
        ("我上周二下了订单", 5, 10),
        ("Здравствуйте! Где мой заказ?", 8, 14),
    ],
)
def test_the_estimate_is_near_what_tokenizers_count(text: str, low: int, high: int) -> None:
    assert low <= tokens(text) <= high
