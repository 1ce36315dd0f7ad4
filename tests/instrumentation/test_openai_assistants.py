"""Runs of assistants: billed once, when they have ended, whoever polls or listens and however often."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import pytest
from openai.types.beta.threads import Run

from tollspan.instrumentation import faults, once, tag
from tollspan.instrumentation.openai import OpenAIInstrumentor, assistants
from tollspan.pricing import attributes as names

from .conftest import Body
from .http_library import httpx2
from .openai_bill import ledger

pytestmark = pytest.mark.filterwarnings("ignore:The Assistants API:DeprecationWarning")

ONCE = once.of("openai")
CREATED = 1_795_200_000
ASK: dict[str, Any] = {"thread_id": "thread_7", "assistant_id": "asst_7", "model": "gpt-5-mini"}
METERS = {"tokens.input.uncached": 200, "tokens.input.cache_read": 800, "tokens.output": 100}
COST = Decimal("0.00027")
"""200 × $0.25 + 800 × $0.025 + 100 × $2, by the million."""


@pytest.fixture(autouse=True)
def another_process() -> None:
    """Nothing is known of any run."""
    ONCE.forget()


def run(status: str = "completed", **changed: Any) -> dict[str, Any]:
    used = {
        "prompt_tokens": 1000,
        "completion_tokens": 100,
        "total_tokens": 1100,
        "prompt_token_details": {"cached_tokens": 800},
    }
    ended = status in ("completed", "failed", "incomplete")
    return {
        "id": "run_7",
        "object": "thread.run",
        "created_at": CREATED,
        f"{status}_at": CREATED + 9,
        "assistant_id": "asst_7",
        "thread_id": "thread_7",
        "status": status,
        "model": "gpt-5-mini",
        "instructions": "",
        "tools": [],
        "parallel_tool_calls": True,
        "usage": used if ended else None,
        **changed,
    }


def events(last: str = "completed") -> list[dict[str, Any]]:
    steps = (("created", run("queued")), ("in_progress", run("in_progress")), (last, run(last)))
    return [{"event": f"thread.run.{name}", "data": data} for name, data in steps]


def streaming(wire: Any, told: list[dict[str, Any]]) -> Any:
    """This API names its events outside of their data."""
    frames = [f"event: {one['event']}\ndata: {json.dumps(one['data'])}\n\n" for one in told]
    body = "".join([*frames, "event: done\ndata: [DONE]\n\n"]).encode()
    headers = {"content-type": "text/event-stream"}
    wire.replies.append(lambda: httpx2.Response(200, headers=headers, stream=Body(body)))
    return wire


def check(telemetry: Any) -> None:
    rows = [row for row in ledger(telemetry.spans()) if row["meters"]]
    assert [(row["meters"], row["cost"], row["model"]) for row in rows] == [(METERS, COST, "gpt-5-mini")]


def test_create_and_poll(openai_spans: Any, wire: Any) -> None:
    client = wire.json(run("queued")).json(run("in_progress"), **{"openai-poll-after-ms": "1"}).json(run()).client()
    with tag(tenant="acme"):
        done = client.beta.threads.runs.create_and_poll(**ASK)
    assert type(done) is Run
    for _ in range(3):
        client.beta.threads.runs.retrieve("run_7", thread_id="thread_7")
    asked, result = openai_spans.spans()
    assert asked.attributes[names.USAGE_DEFERRED] is True
    assert asked.attributes[names.CONVERSATION_ID] == "thread_7"
    assert [link.context for link in result.links] == [asked.get_span_context()]
    assert result.attributes[names.TENANT] == "acme"
    assert (result.start_time, result.end_time) == (CREATED * 10**9, (CREATED + 9) * 10**9)
    check(openai_spans)


async def test_create_and_poll_async(openai_spans: Any, wire: Any) -> None:
    client = wire.json(run("queued")).json(run()).async_client()
    await client.beta.threads.runs.create_and_poll(**ASK)
    check(openai_spans)


def test_every_process_makes_the_same_span(openai_spans: Any, wire: Any) -> None:
    client = wire.json(run()).client()
    for _ in range(2):
        ONCE.forget()
        client.beta.threads.runs.retrieve("run_7", thread_id="thread_7")
    assert len(openai_spans.spans()) == 2
    check(openai_spans)


def test_a_stream_and_a_later_poll_bill_once(openai_spans: Any, wire: Any) -> None:
    client = streaming(wire, events()).json(run()).client()
    told = [event.event for event in client.beta.threads.runs.create(**ASK, stream=True)]
    assert told == ["thread.run.created", "thread.run.in_progress", "thread.run.completed"]
    client.beta.threads.runs.retrieve("run_7", thread_id="thread_7")
    assert len(openai_spans.spans()) == 2
    check(openai_spans)


def test_a_helper_that_streams(openai_spans: Any, wire: Any) -> None:
    client = streaming(wire, events()).client()
    tracer = openai_spans.provider.get_tracer("program")
    with (
        tracer.start_as_current_span("listen") as listening,
        client.beta.threads.runs.stream(**ASK) as stream,
    ):
        stream.until_done()
    result = openai_spans.spans()[0]
    assert [link.context for link in result.links] == [listening.get_span_context()]
    check(openai_spans)


async def test_a_helper_that_streams_async(openai_spans: Any, wire: Any) -> None:
    client = streaming(wire, events()).async_client()
    thread = {"messages": [{"role": "user", "content": "hello"}]}
    async with client.beta.threads.create_and_run_stream(assistant_id="asst_7", thread=thread) as stream:
        await stream.until_done()
    check(openai_spans)


def test_a_run_that_waits_for_tools_is_one_run(openai_spans: Any, wire: Any) -> None:
    client = wire.json(run("queued")).json(run("requires_action")).json(run("queued")).json(run()).client()
    runs = client.beta.threads.runs
    runs.create(**ASK)
    runs.retrieve("run_7", thread_id="thread_7")
    runs.submit_tool_outputs("run_7", thread_id="thread_7", tool_outputs=[])
    runs.retrieve("run_7", thread_id="thread_7")
    assert [span.attributes.get(names.USAGE_DEFERRED) for span in openai_spans.spans()] == [True, True, None]
    check(openai_spans)


@pytest.mark.parametrize("status", ["failed", "incomplete"])
def test_a_run_that_ends_badly_is_billed_by_what_it_used(openai_spans: Any, wire: Any, status: str) -> None:
    wire.json(run(status)).client().beta.threads.runs.cancel("run_7", thread_id="thread_7")
    check(openai_spans)


@pytest.mark.parametrize("broken", ["_fields", "put_usage", "client_attributes", "bill"])
def test_a_fault_of_ours_never_reaches_the_program(
    faulty_telemetry: Any, wire: Any, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    def fault(*_: Any, **__: Any) -> Any:
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr(assistants, broken, fault)
    counted = sum(faults().values())
    OpenAIInstrumentor().instrument(tracer_provider=faulty_telemetry.provider)
    try:
        client = wire.json(run("queued")).json(run()).client()
        assert client.beta.threads.runs.create(**ASK).status == "queued"
        assert client.beta.threads.runs.retrieve("run_7", thread_id="thread_7").status == "completed"
        wire.replies.clear()
        with streaming(wire, events()).client().beta.threads.runs.stream(**ASK) as stream:
            stream.until_done()
    finally:
        OpenAIInstrumentor().uninstrument()
    assert sum(faults().values()) > counted
