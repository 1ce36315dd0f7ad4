"""Batches: their results are billed when they arrive, once, at the price of batches."""

from __future__ import annotations

import json
import threading
from decimal import Decimal
from typing import Any

import httpx2
import pytest
from openai._legacy_response import HttpxBinaryResponseContent

from tollspan.instrumentation import faults, tag
from tollspan.instrumentation.openai import OpenAIInstrumentor, batches, once
from tollspan.pricing import attributes as names

from .conftest import Body
from .openai_bill import ledger, reply

CREATED = 1_795_200_000
BATCH = {
    "id": "batch_7",
    "object": "batch",
    "endpoint": "/v1/chat/completions",
    "input_file_id": "file-in",
    "completion_window": "24h",
    "status": "validating",
    "created_at": CREATED,
}


@pytest.fixture(autouse=True)
def another_process() -> None:
    """Nothing is known of any batch."""
    once.asked.clear()


def chat(number: int, **changed: Any) -> dict[str, Any]:
    """A line of an output file with a chat completion of 1,000 tokens in and 100 out."""
    body = {
        "id": f"chatcmpl-{number}",
        "object": "chat.completion",
        "created": CREATED + number,
        "model": "gpt-5-mini-2025-08-07",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "x"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 1000, "completion_tokens": 100, "total_tokens": 1100},
        **changed,
    }
    return line(number, body)


def line(number: int, body: Any, status: int = 200) -> dict[str, Any]:
    return {
        "id": f"batch_req_{number}",
        "custom_id": f"request-{number}",
        "response": {"status_code": status, "request_id": f"req_{number}", "body": body},
        "error": None,
    }


def output(lines: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(one) + "\n" for one in lines).encode()


def fetched(wire: Any, lines: list[dict[str, Any]]) -> Any:
    return reply(wire, output(lines), "application/octet-stream")


def test_results_are_billed_when_they_arrive(openai_spans: Any, wire: Any) -> None:
    client = fetched(wire, [chat(1), chat(2)]).client()
    content = client.files.content("file-out")
    assert type(content) is HttpxBinaryResponseContent
    assert content.text.count("\n") == 2
    rows = ledger(openai_spans.spans())
    # Half of 1,000 × $0.25 + 100 × $2, by the million.
    assert [row["cost"] for row in rows] == [Decimal("0.000225")] * 2
    assert {row["model"] for row in rows} == {"gpt-5-mini-2025-08-07"}
    span = openai_spans.spans()[0]
    assert span.name == "chat gpt-5-mini-2025-08-07"
    assert span.attributes[names.PROCESSING] == "batch"
    assert span.attributes[names.OPENAI_API_TYPE] == "chat_completions"
    assert span.start_time == (CREATED + 1) * 10**9


def test_fetching_again_here_or_elsewhere_bills_nothing_more(openai_spans: Any, wire: Any) -> None:
    client = fetched(wire, [chat(1), chat(2)]).client()
    client.files.content("file-out")
    client.files.content("file-out")
    assert len(openai_spans.spans()) == 2
    once._made.clear()
    client.files.with_raw_response.content("file-out")
    assert len(openai_spans.spans()) == 4
    assert len(ledger(openai_spans.spans())) == 2


async def test_the_submission_is_linked_and_its_tags_are_kept(openai_spans: Any, wire: Any) -> None:
    done = {**BATCH, "status": "completed", "output_file_id": "file-out"}
    client = fetched(wire.json(BATCH).json(done), [chat(1)]).async_client()
    tracer = openai_spans.provider.get_tracer("program")
    with tracer.start_as_current_span("submit") as submit, tag(tenant="acme"):
        await client.batches.create(completion_window="24h", endpoint="/v1/chat/completions", input_file_id="file-in")
    await client.batches.retrieve("batch_7")
    await client.files.content("file-out")
    result = openai_spans.spans()[-1]
    assert result.attributes[names.TENANT] == "acme"
    assert [link.context for link in result.links] == [submit.get_span_context()]


def test_a_batch_of_another_process_bears_the_tags_of_who_fetched_it(openai_spans: Any, wire: Any) -> None:
    done = {**BATCH, "status": "completed", "output_file_id": "file-out"}
    client = fetched(wire.json(done), [chat(1)]).client()
    client.batches.retrieve("batch_7")
    with tag(tenant="globex"):
        client.files.content("file-out")
    assert openai_spans.only().attributes[names.TENANT] == "globex"


def test_lines_of_every_kind(openai_spans: Any, wire: Any) -> None:
    response = wire.response(created_at=CREATED, service_tier="default")
    embedded = {
        "object": "list",
        "model": "text-embedding-3-small",
        "data": [{"object": "embedding", "index": 0, "embedding": [0.5]}],
        "usage": {"prompt_tokens": 8, "total_tokens": 8},
    }
    image = {"created": CREATED, "data": [{"b64_json": "aGVsbG8="}], "usage": {"input_tokens": 5, "output_tokens": 7}}
    video = {"id": "video_7", "object": "video", "status": "completed", "seconds": "8", "created_at": CREATED}
    failed = line(6, {"error": {"message": "no"}}, 400)
    gone = {"id": "batch_req_7", "custom_id": "x", "response": None, "error": {"code": "batch_expired", "message": "x"}}
    fetched(wire, [chat(1), line(2, response), line(3, embedded), line(4, image), line(5, video), failed, gone])
    wire.client().files.content("file-out")
    rows = {
        row["operation"]: row["meters"] for row in ledger(openai_spans.spans()) if row["model"] != response["model"]
    }
    assert len(openai_spans.spans()) == 5
    assert rows["embeddings"] == {"tokens.input.uncached": 8}
    assert rows["image_generation"] == {"tokens.input.uncached": 5, "tokens.output": 7}
    assert rows["video_generation"] == {"video.seconds": 8}


def test_the_time_in_an_id_serves_where_no_other_is_told(openai_spans: Any, wire: Any) -> None:
    embedded = {"object": "list", "data": [], "usage": {"prompt_tokens": 8, "total_tokens": 8}}
    told = {**line(1, embedded), "id": f"batch_req_{CREATED:08x}{'0' * 24}"}
    fetched(wire, [told]).client().files.content("file-out")
    assert openai_spans.only().start_time == CREATED * 10**9


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\x89PNG" * 100,
        b'{"custom_id": "request-1", "method": "POST", "url": "/v1/responses", "body": {}}\n',
        b'{"messages": [{"role": "user", "content": "\\"response\\""}]}\n',
        b'{"response": ',
        b"[1]\n",
    ],
)
def test_other_files_are_only_files(openai_spans: Any, wire: Any, body: bytes) -> None:
    assert reply(wire, body, "application/octet-stream").client().files.content("file-1").content == body
    assert openai_spans.spans() == []


def test_a_broken_line_costs_only_itself(openai_spans: Any, wire: Any) -> None:
    body = output([chat(1)]) + b'{"half\n' + output([chat(2)])
    reply(wire, body, "application/octet-stream").client().files.content("file-out")
    assert len(openai_spans.spans()) == 2


def test_many_results_are_read_by_a_thread_that_flushes(
    openai_spans: Any, wire: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushes = []
    monkeypatch.setattr(openai_spans.provider, "force_flush", lambda timeout: flushes.append(timeout) or True)
    count = batches.FEW * 2 + 1
    client = fetched(wire, [chat(number) for number in range(count)]).client()
    client.files.content("file-out")
    for thread in threading.enumerate():
        if thread.name == "tollspan-batch-results":
            assert not thread.daemon
            thread.join()
    assert len(openai_spans.spans()) == count
    assert len(flushes) == 2


async def test_results_streamed_by_the_program_are_left_alone(openai_spans: Any, wire: Any) -> None:
    stream = {"stream": Body(output([chat(1)]))}
    wire.replies.append(lambda: httpx2.Response(200, headers={"content-type": "application/octet-stream"}, **stream))
    client = wire.async_client()
    async with client.files.with_streaming_response.content("file-out") as response:
        assert [piece async for piece in response.iter_lines()]
    assert openai_spans.spans() == []


@pytest.mark.parametrize("broken", ["_are_results", "put_usage", "client_attributes"])
def test_a_fault_of_ours_never_reaches_the_program(
    faulty_telemetry: Any, wire: Any, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    def fault(*_: Any, **__: Any) -> Any:
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr(batches, broken, fault)
    counted = sum(faults().values())
    OpenAIInstrumentor().instrument(tracer_provider=faulty_telemetry.provider)
    try:
        assert fetched(wire, [chat(1)]).client().files.content("file-out").text
    finally:
        OpenAIInstrumentor().uninstrument()
    assert sum(faults().values()) == counted + 1
