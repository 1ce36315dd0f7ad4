"""Live sessions of the openai client: billed once by their seconds, and what they delegate by its tokens."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from typing import Any

import openai
import pytest

from tollspan.instrumentation import faults, once, tag
from tollspan.instrumentation.openai import OpenAIInstrumentor, live
from tollspan.pricing import attributes as names

from .openai_bill import ledger

server = pytest.importorskip("websockets.sync.server")
pytest.importorskip("openai.resources.live")

ONCE = once.of("openai")
CREATED = 1_795_200_000


@pytest.fixture(autouse=True)
def another_process() -> None:
    """Nothing is known of any session."""
    ONCE.forget()


def session(identity: str = "live_7") -> dict[str, Any]:
    return {"id": identity, "expires_at": CREATED + 3600, "model": "gpt-live-1", "status": "active"}


def started(identity: str = "live_7") -> dict[str, Any]:
    return {"type": "session.started", "event_id": "e1", "session": session(identity)}


def used(seconds: float) -> dict[str, Any]:
    return {"type": "session.usage.updated", "event_id": "e2", "usage": {"seconds": seconds}}


def closed(seconds: float) -> dict[str, Any]:
    return {
        "type": "session.closed",
        "event_id": "e3",
        "reason": "close_requested",
        "session": session(),
        "usage": {"seconds": seconds},
    }


def delegated(wire: Any) -> dict[str, Any]:
    """The last event of a response that the session had another model give."""
    response = wire.response(created_at=CREATED, service_tier="default", tool_usage=None)
    return {
        "type": "response.event",
        "event_id": "e4",
        "delegation_id": "d1",
        "event": {"type": "response.completed", "sequence_number": 9, "response": response},
    }


DECISION = {
    "answers": [{"type": "predicate", "probability": 0.9, "name": "done"}],
    "model": "gpt-5-mini",
    "usage": {
        "input_tokens": 50,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": 2,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 52,
    },
}
DECIDED = {
    "type": "decision.event",
    "event_id": "e5",
    "delegation_id": "d2",
    "event": {"type": "decision.completed", "decision": DECISION},
}


@pytest.fixture
def serving() -> Iterator[Callable[[list[dict[str, Any]]], str]]:
    """Starts services that send these events to whoever connects and then hang up; gives their base URL."""
    servers = []

    def serve(events: list[dict[str, Any]]) -> str:
        def handle(connection: Any) -> None:
            for event in events:
                connection.send(json.dumps(event))

        made = server.serve(handle, "127.0.0.1", 0)
        servers.append(made)
        threading.Thread(target=made.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{made.socket.getsockname()[1]}/v1"

    yield serve
    for made in servers:
        made.shutdown()


def listen(url: str, sideband: bool = False) -> int:
    """Events that came."""
    client = openai.OpenAI(api_key="none", base_url=url)
    connecting = client.live.sideband.connect(session_id="live_7") if sideband else client.live.connect()
    with connecting as connection:
        return len(list(connection))


def seconds(telemetry: Any) -> list[Any]:
    return [row["meters"] for row in ledger(telemetry.spans())]


def test_a_session_is_billed_by_its_last_word(openai_spans: Any, serving: Any) -> None:
    with tag(tenant="acme"):
        assert listen(serving([started(), used(10), used(20), closed(25.5)])) == 4
    (row,) = ledger(openai_spans.spans())
    assert (row["meters"], row["model"], row["tenant"]) == ({"audio.seconds": 25.5}, "gpt-live-1", "acme")
    assert row["cost_status"] == "priced"
    attributes = openai_spans.attributes()
    assert attributes[names.RESPONSE_FINISH_REASONS] == ("close_requested",)
    assert attributes[names.SERVER_ADDRESS] == "127.0.0.1"


def test_a_session_whose_end_nobody_told(openai_spans: Any, serving: Any) -> None:
    listen(serving([started(), used(10), used(20)]))
    assert seconds(openai_spans) == [{"audio.seconds": 20}]


def test_a_session_goes_on_when_a_sideband_leaves_it(openai_spans: Any, serving: Any) -> None:
    listen(serving([started(), used(10), used(20)]), sideband=True)
    assert openai_spans.spans() == []


def test_two_who_are_connected_see_one_session(openai_spans: Any, serving: Any) -> None:
    url = serving([started(), closed(25.5)])
    listen(url)
    ONCE.forget()
    listen(url, sideband=True)
    assert len(openai_spans.spans()) == 2
    assert seconds(openai_spans) == [{"audio.seconds": 25.5}]


async def test_an_asynchronous_connection(openai_spans: Any, serving: Any) -> None:
    client = openai.AsyncOpenAI(api_key="none", base_url=serving([started(), used(10)]))
    async with client.live.connect() as connection:
        for _ in range(2):
            await connection.recv()
    assert seconds(openai_spans) == [{"audio.seconds": 10}]


def test_what_is_delegated_is_billed_by_its_model(openai_spans: Any, serving: Any, wire: Any) -> None:
    event = delegated(wire)
    listen(serving([started(), event, event, DECIDED, closed(5)]))
    rows = {row["operation"]: row for row in ledger(openai_spans.spans()) if row["model"] != "gpt-live-1"}
    assert len(openai_spans.spans()) == 3
    assert rows["chat"]["meters"]["tokens.output.reasoning"] == 7
    assert rows["chat"]["model"] == "gpt-5-mini-2025-08-07"
    assert rows["decision"]["meters"]["tokens.input.uncached"] == 50
    assert rows["decision"]["provider"] == "openai-decisions"


@pytest.mark.parametrize("broken", ["_fields", "_Session"])
def test_a_fault_of_ours_never_reaches_the_program(
    faulty_telemetry: Any, serving: Any, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    def fault(*_: Any, **__: Any) -> Any:
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr(live, broken, fault)
    counted = sum(faults().values())
    OpenAIInstrumentor().instrument(tracer_provider=faulty_telemetry.provider)
    try:
        assert listen(serving([started(), used(10), closed(20)])) == 3
    finally:
        OpenAIInstrumentor().uninstrument()
    assert sum(faults().values()) > counted
