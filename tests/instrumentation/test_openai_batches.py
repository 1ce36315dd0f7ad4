"""Batches: their results are billed when they arrive, once, at the price of batches."""

from __future__ import annotations

import gc
import gzip
import json
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import pytest
import wrapt
from openai._legacy_response import HttpxBinaryResponseContent
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

from tollspan.instrumentation import batch_files, faults, once, sending, tag
from tollspan.instrumentation.openai import OpenAIInstrumentor, batches
from tollspan.pricing import attributes as names

from .conftest import Body
from .http_library import httpx2
from .openai_bill import ledger, reply

ONCE = once.of("openai")
CREATED = 1_795_200_000
SENDER = batches.FILES.sender
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
    ONCE.forget()


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
    # Made again, because the first may have been lost on the way.
    assert len(openai_spans.spans()) == 4
    ONCE.forget()
    client.files.with_raw_response.content("file-out")
    assert len(openai_spans.spans()) == 6
    assert len(ledger(openai_spans.spans())) == 2


def test_what_has_no_time_is_made_again_at_the_same_time(openai_spans: Any, wire: Any) -> None:
    embedded = {"object": "list", "data": [], "usage": {"prompt_tokens": 8, "total_tokens": 8}}
    video = {"id": "video_8", "object": "video", "status": "completed", "seconds": "8", "created_at": CREATED}
    client = fetched(wire, [line(1, embedded), line(2, video)]).client()
    client.files.content("file-out")
    client.files.content("file-out")
    assert len(openai_spans.spans()) == 4
    assert len({(span.context.span_id, span.start_time) for span in openai_spans.spans()}) == 2


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


def test_lines_that_share_the_batchs_id_are_billed_each(openai_spans: Any, wire: Any) -> None:
    """As Zhipu writes them, whose answers have no ``object`` either."""
    lines = [{**chat(number, created=CREATED, object=None), "id": "batch_17"} for number in (1, 2)]
    fetched(wire, lines).client().files.content("file-out")
    rows = ledger(openai_spans.spans())
    assert [(row["operation"], row["cost"]) for row in rows] == [("chat", Decimal("0.000225"))] * 2


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


class Slow(SpanExporter):
    """A collector: what a flush gives it, and how long that takes."""

    def __init__(self, takes: Any = lambda: None) -> None:
        self.names: list[str] = []
        self.takes = takes

    def export(self, spans: Any) -> SpanExportResult:
        self.takes()
        self.names += [span.attributes[names.RESPONSE_ID] for span in spans]
        return SpanExportResult.SUCCESS


@pytest.fixture
def queued() -> Iterator[Any]:
    """The client instrumented, with a queue that is as long as it comes, and that nobody empties unasked."""
    exporter = Slow()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(exporter, max_export_batch_size=2048, schedule_delay_millis=1e9))
    OpenAIInstrumentor().instrument(tracer_provider=provider)
    yield exporter
    SENDER.join()
    OpenAIInstrumentor().uninstrument()
    provider.shutdown()


def test_many_results_are_read_by_a_thread_that_flushes(queued: Any, wire: Any) -> None:
    count = 5000
    fetched(wire, [chat(number) for number in range(count)]).client().files.content("file-out")
    SENDER.join()
    assert len(queued.names) == count


def test_a_slow_flush_does_not_end_the_flushing(
    queued: Any, wire: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sending, "_SLOW_S", 0.01)
    monkeypatch.setattr(sending, "_PAUSE_S", 0.001)
    queued.takes = lambda: time.sleep(0.02)
    fetched(wire, [chat(number) for number in range(5000)]).client().files.content("file-out")
    SENDER.join()
    assert len(queued.names) == 5000
    assert caplog.messages == []


def test_when_patience_is_out_a_warning_tells_what_is_missing_and_it_can_be_fetched(
    queued: Any, wire: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sending, "_SLOW_S", 0.01)
    monkeypatch.setattr(sending, "PATIENCE_S", 0.05)
    queued.takes = lambda: time.sleep(0.02)
    # What had gone out when a flush last said so; on a busy machine one that gave up may be exported all the same.
    known, flush = [0], SENDER._flush

    def flushing(timeout: int) -> bool | None:
        done = flush(timeout)
        if done is not False:
            known.append(len(queued.names))
        return done

    monkeypatch.setattr(SENDER, "_flush", flushing)
    client = fetched(wire, [chat(number) for number in range(5000)]).client()
    client.files.content("file-out")
    SENDER.join()
    assert sending.FEW <= len(queued.names) < 5000
    (message,) = caplog.messages
    assert f"up to {5000 - known[-1]} results" in message
    assert "files.content('file-out')" in message
    queued.takes = lambda: None
    client.files.content("file-out")
    SENDER.join()
    assert len(set(queued.names)) == 5000


def test_a_flush_that_fails_is_tried_again(queued: Any, wire: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sending, "_PAUSE_S", 0.001)
    answers, flush = iter([False] * 4), SENDER._flush
    monkeypatch.setattr(SENDER, "_flush", lambda timeout: next(answers, True) and flush(timeout))
    fetched(wire, [chat(number) for number in range(3000)]).client().files.content("file-out")
    SENDER.join()
    assert len(queued.names) == 3000


def test_where_no_thread_is_to_be_had_the_next_file_finds_one(
    queued: Any, wire: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(self: Any) -> None:
        raise RuntimeError("can't start new thread")

    client = fetched(wire, [chat(number) for number in range(300)]).client()
    with monkeypatch.context() as patched:
        patched.setattr(sending.threading.Thread, "start", refused)
        client.files.content("file-out")
    client.files.content("file-out")
    SENDER.join()
    assert len(queued.names) == 600


def test_many_small_files_are_flushed_too(queued: Any, wire: Any) -> None:
    client, all_fetched = wire.client(), threading.Event()
    queued.takes = lambda: all_fetched.wait(30)
    for file in range(12):
        wire.replies.clear()
        fetched(wire, [chat(file * 250 + number) for number in range(250)])
        client.files.content(f"file-{file}")
    all_fetched.set()
    SENDER.join()
    assert len(queued.names) == 3000


PROGRAM = """
import json, sys, time, threading
import openai
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from tollspan.instrumentation import sending
from tollspan.instrumentation.openai import OpenAIInstrumentor, batches

slow = sys.argv[1] == "slow"
sending.EXIT_S = 0.2 if slow else 20
ended = threading.Event()

class Away(SpanExporter):
    def export(self, spans):
        if slow and not ended.is_set():
            ended.wait(30)
        print("exported", len(spans), flush=True)
        return SpanExportResult.SUCCESS
    def shutdown(self):
        ended.set()

provider = TracerProvider(shutdown_on_exit=False)
provider.add_span_processor(BatchSpanProcessor(Away(), schedule_delay_millis=1e9))
OpenAIInstrumentor().instrument(tracer_provider=provider)
body = sys.stdin.buffer.read()
http = vars(openai._base_client).get("httpx2") or openai._base_client.httpx
transport = http.MockTransport(lambda request: http.Response(200, content=body))
client = openai.OpenAI(api_key="none", http_client=http.Client(transport=transport))
client.files.content("file-out")
import atexit
finish = batches.FILES.sender.finish
def timed():
    began = time.monotonic()
    finish()
    print("finished", time.monotonic() - began < 5, flush=True)
    ended.set()
atexit.unregister(finish)
atexit.register(timed)
"""


@pytest.mark.parametrize("collector", ["slow", "quick"])
def test_the_end_of_a_program_waits_a_little(collector: str) -> None:
    body = output([chat(number) for number in range(1000)])
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, collector], input=body, capture_output=True, timeout=60, check=True
    )
    printed = done.stdout.decode().splitlines()
    assert "finished True" in printed
    if collector == "slow":
        assert b"results of batches may not have been sent" in done.stderr
    else:
        assert sum(int(one.split()[1]) for one in printed if one.startswith("exported")) == 1000
        assert done.stderr == b""


LEFT_OPEN = """
import gc, sys, threading
from http.server import BaseHTTPRequestHandler, HTTPServer
import openai
from opentelemetry.sdk.trace import TracerProvider
from tollspan.instrumentation.openai import OpenAIInstrumentor

class Service(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_):
        pass

body = sys.argv[1].encode()
server = HTTPServer(("127.0.0.1", 0), Service)
threading.Thread(target=server.serve_forever, daemon=True).start()
OpenAIInstrumentor().instrument(tracer_provider=TracerProvider())
client = openai.OpenAI(api_key="none", base_url=f"http://127.0.0.1:{server.server_port}")

def half():
    lines = client.files.with_streaming_response.content("file-out").__enter__().iter_lines()
    assert "chatcmpl-0" in next(lines)
    kept = [lines]
    kept.append(kept)  # as an error's traceback keeps what it met

gc.disable()
half()
"""


def test_a_program_ends_that_left_a_file_half_read() -> None:
    body = output([chat(number) for number in range(3)]).decode()
    done = subprocess.run([sys.executable, "-c", LEFT_OPEN, body], capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stderr) == (0, "")


def streaming(wire: Any, body: bytes, packed: bool = False) -> Any:
    headers = {"content-type": "application/octet-stream", **({"content-encoding": "gzip"} if packed else {})}
    sent = gzip.compress(body) if packed else body
    wire.replies.append(lambda: httpx2.Response(200, headers=headers, stream=Body(sent)))
    return wire


READS = {
    "file": lambda response, path: response.stream_to_file(path),
    "lines": lambda response, path: path.write_text("\n".join(response.iter_lines()) + "\n"),
    "bytes": lambda response, path: path.write_bytes(b"".join(response.iter_bytes(7))),
    "sent": lambda response, path: path.write_bytes(b"".join(response.http_response.iter_raw())),
    "read": lambda response, path: path.write_bytes(response.read()),
    "parse": lambda response, path: path.write_bytes(response.parse()),
}


@pytest.mark.parametrize("how", READS)
def test_results_that_the_program_reads_as_they_come(openai_spans: Any, wire: Any, tmp_path: Any, how: str) -> None:
    body = output([chat(1), chat(2), chat(3)])
    client = streaming(wire, body).client()
    with client.files.with_streaming_response.content("file-out") as response:
        READS[how](response, tmp_path / "out")
        assert not isinstance(response.http_response.stream, wrapt.ObjectProxy)
    assert (tmp_path / "out").read_bytes() == body
    assert [row["cost"] for row in ledger(openai_spans.spans())] == [Decimal("0.000225")] * 3


@pytest.mark.parametrize("how", [how for how in READS if how != "sent"])
def test_results_that_come_compressed(openai_spans: Any, wire: Any, tmp_path: Any, how: str) -> None:
    body = output([chat(1), chat(2), chat(3)])
    with streaming(wire, body, packed=True).client().files.with_streaming_response.content("file-out") as response:
        READS[how](response, tmp_path / "out")
        assert "iter_bytes" not in vars(response.http_response)
    assert (tmp_path / "out").read_bytes() == body
    assert len(ledger(openai_spans.spans())) == 3


async def test_results_that_the_program_reads_as_they_come_async(openai_spans: Any, wire: Any, tmp_path: Any) -> None:
    body = output([chat(1), chat(2)])
    client = streaming(wire, body + body[:-40]).async_client()
    async with client.files.with_streaming_response.content("file-out") as response:
        await response.stream_to_file(tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == body + body[:-40]
    assert len(openai_spans.spans()) == 3
    async with client.files.with_streaming_response.content("file-out") as response:
        assert [piece async for piece in response.iter_lines()]
    assert len(ledger(openai_spans.spans())) == 2


def test_a_large_file_is_read_by_the_megabyte_and_too_long_a_line_is_passed_over(
    queued: Any, wire: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_files, "LITTLE", 2000)
    monkeypatch.setattr(batch_files, "LONGEST_LINE", 6000)
    long = chat(9999, choices=[{"message": {"content": "x" * 20_000}}])
    body = output([*map(chat, range(100)), long, *map(chat, range(100, 600))])
    client = streaming(wire, body, packed=True).client()
    with client.files.with_streaming_response.content("file-out") as response:
        for _ in response.iter_bytes(1000):
            pass
    SENDER.join()
    assert len(set(queued.names)) == 600


def test_a_response_that_nobody_reads_is_not_kept(openai_spans: Any, wire: Any) -> None:
    with streaming(wire, output([chat(1)])).client().files.with_streaming_response.content("file-out") as response:
        gone = weakref.ref(response.http_response)
        gc.disable()
        try:
            del response.http_response
            assert gone() is None
        finally:
            gc.enable()
            response.http_response = httpx2.Response(200)


@pytest.mark.parametrize("body", [b"", b"\x89PNG" * 100, b'{"messages": []}\n' * 9, b'{"response": '])
def test_other_files_that_are_read_as_they_come(openai_spans: Any, wire: Any, body: bytes) -> None:
    with streaming(wire, body).client().files.with_streaming_response.content("file-1") as response:
        assert response.read() == body
    assert openai_spans.spans() == []


@pytest.mark.parametrize("broken", ["Fetch", "put_usage", "client_attributes"])
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
