"""What the google-genai client asks for in one call and is told in another: videos, interactions in the background,
batches. Each is billed once, whichever process finds it done and however often."""

from __future__ import annotations

import inspect
import io
import json
import sys
from collections.abc import Iterator
from decimal import Decimal
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from google.genai import files, types

from tollspan.instrumentation import batch_files, faults, once, sending, tag
from tollspan.instrumentation.google_genai import GoogleGenAIInstrumentor, batches, interactions, videos
from tollspan.pricing import attributes as names

from .openai_bill import ledger

sys.path.insert(0, str(Path(__file__).parent))

from google_stub import MODEL, GoogleStub, content, refusal

ONCE = once.of("google_genai")
DAY = 86_400 * 10**9


@pytest.fixture(autouse=True)
def another_process() -> None:
    """Nothing is known of what was asked for."""
    ONCE.forget()


@pytest.fixture
def google() -> Iterator[GoogleStub]:
    stub = GoogleStub()
    yield stub
    stub.close()


@pytest.fixture
def google_spans(telemetry: Any) -> Iterator[Any]:
    GoogleGenAIInstrumentor().instrument(tracer_provider=telemetry.provider)
    yield telemetry
    GoogleGenAIInstrumentor().uninstrument()


def billed(telemetry: Any) -> list[dict[str, Any]]:
    """Rows of the ledger that say what was used."""
    return [row for row in ledger(telemetry.spans()) if row["meters"]]


# -- videos ----------------------------------------------------------------------------------------------------------

VEO = "veo-3.0-generate-001"
NAME = f"projects/p/locations/us-central1/publishers/google/models/{VEO}/operations/1"


def operation(**changed: Any) -> dict[str, Any]:
    return {"name": NAME, **changed}


def made(count: int = 1) -> dict[str, Any]:
    response = {"videos": [{"gcsUri": f"gs://b/{number}.mp4", "mimeType": "video/mp4"} for number in range(count)]}
    return operation(done=True, response=response)


def make_videos(google: GoogleStub, **config: Any) -> Any:
    client = google.vertex()
    waiting = client.models.generate_videos(model=VEO, source={"prompt": "x"}, config=config)
    while not waiting.done:
        waiting = client.operations.get(waiting)
    return client.operations.get(waiting)


def test_videos_are_billed_once_when_they_are_made(google_spans: Any, google: GoogleStub) -> None:
    google.json(operation()).json(operation()).json(made(2))
    with tag(tenant="acme"):
        assert len(make_videos(google, duration_seconds=8, number_of_videos=2).response.generated_videos) == 2
    asked, result = google_spans.spans()
    assert asked.name == result.name == f"video_generation {VEO}"
    assert asked.attributes[names.USAGE_DEFERRED] is True
    assert [link.context for link in result.links] == [asked.get_span_context()]
    (row,) = billed(google_spans)
    assert (row["meters"], row["request_model"], row["tenant"]) == ({"video.seconds": 16}, VEO, "acme")


async def test_videos_async(google_spans: Any, google: GoogleStub) -> None:
    client = google.json(operation()).json(made()).vertex()
    waiting = await client.aio.models.generate_videos(model=VEO, source={"prompt": "x"}, config={"duration_seconds": 6})
    await client.aio.operations.get(waiting)
    await client.aio.aclose()
    assert [row["meters"] for row in billed(google_spans)] == [{"video.seconds": 6}]


def test_videos_of_another_process_are_billed_once_and_unpriced_for_want_of_a_length(
    google_spans: Any, google: GoogleStub
) -> None:
    client = google.json(made()).vertex()
    waiting = types.GenerateVideosOperation(name=NAME)
    for _ in range(2):
        ONCE.forget()
        client.operations.get(waiting)
    first, second = google_spans.spans()
    assert first.get_span_context() == second.get_span_context()
    assert first.start_time == second.start_time
    assert first.start_time % DAY == 0
    (row,) = ledger(google_spans.spans())
    assert (row["request_model"], row["cost_status"], row["cost"]) == (VEO, "unpriced", None)


def test_videos_that_failed_are_not_billed(google_spans: Any, google: GoogleStub) -> None:
    google.json(operation()).json(operation(done=True, error={"code": 3, "message": "unsafe"}))
    make_videos(google, duration_seconds=8)
    assert [span.name for span in google_spans.spans()] == [f"video_generation {VEO}"]
    assert billed(google_spans) == []


@pytest.mark.parametrize("name", ["fields", "client_attributes", "_submit"])
def test_a_fault_in_reading_videos_never_reaches_the_program(
    faulty_telemetry: Any, google: GoogleStub, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("a fault of ours")

    GoogleGenAIInstrumentor().instrument(tracer_provider=faulty_telemetry.provider)
    monkeypatch.setattr(videos, name, broken)
    try:
        google.json(operation()).json(made())
        assert make_videos(google, duration_seconds=8).done is True
    finally:
        GoogleGenAIInstrumentor().uninstrument()


# -- interactions in the background ------------------------------------------------------------------------------------

ASK: dict[str, Any] = {"model": MODEL, "input": "hello", "background": True}
CREATED = "2026-11-20T10:00:00Z"
BEGAN = 1_795_168_800 * 10**9
WAITING: dict[str, Any] = {"status": "in_progress", "usage": None}
METERS = {"tokens.input.uncached": 1000, "tokens.output": 200}


def interaction(**changed: Any) -> dict[str, Any]:
    return {
        "id": "int-7",
        "object": "interaction",
        "status": "completed",
        "model": MODEL,
        "created": CREATED,
        "updated": "2026-11-20T10:00:30Z",
        "steps": [],
        "usage": {"total_input_tokens": 1000, "total_output_tokens": 200, "total_tokens": 1200},
        **changed,
    }


def test_an_interaction_in_the_background_is_billed_once_when_it_has_ended(
    google_spans: Any, google: GoogleStub
) -> None:
    google.json(interaction(**WAITING)).json(interaction(**WAITING)).json(interaction())
    resource = google.client().interactions
    with tag(tenant="acme"):
        asked = resource.create(**ASK)
    while resource.get(asked.id).status != "completed":
        pass
    resource.get(asked.id)
    spans = google_spans.spans()
    assert [span.name for span in spans] == [
        f"generate_content {MODEL}",
        "fetch_response",
        f"generate_content {MODEL}",
        "fetch_response",
        "fetch_response",
    ]
    created, result = spans[0], spans[2]
    assert created.attributes[names.USAGE_DEFERRED] is True
    assert [link.context for link in result.links] == [created.get_span_context()]
    assert (result.start_time, result.end_time) == (BEGAN, BEGAN + 30 * 10**9)
    (row,) = billed(google_spans)
    assert (row["meters"], row["tenant"]) == (METERS, "acme")


async def test_a_process_that_saw_it_under_way_makes_the_same_span(google_spans: Any, google: GoogleStub) -> None:
    client = google.json(interaction(**WAITING)).json(interaction()).client()
    await client.aio.interactions.create(**ASK)
    await client.aio.interactions.get("int-7")
    ONCE.forget()
    google.replies.clear()
    google.json(interaction(**WAITING)).json(interaction())
    await client.aio.interactions.get("int-7")
    await client.aio.interactions.get("int-7")
    first, second = (span for span in google_spans.spans() if span.parent is None and span.start_time == BEGAN)
    assert first.get_span_context() == second.get_span_context()
    assert [row["meters"] for row in billed(google_spans)] == [METERS]


def test_an_agents_interaction_is_billed_by_whoever_finds_it_ended(google_spans: Any, google: GoogleStub) -> None:
    google.json(interaction(model=None, agent="deep-research-pro-preview-12-2025"))
    google.client().interactions.get("int-of-another")
    (row,) = billed(google_spans)
    assert (row["meters"], row["request_model"]) == (METERS, "deep-research-pro-preview-12-2025")


def test_an_ordinary_interaction_that_is_fetched_again_was_billed_before(google_spans: Any, google: GoogleStub) -> None:
    client = google.json(interaction()).client()
    client.interactions.create(model=MODEL, input="hello")
    client.interactions.get("int-7")
    assert [row["meters"] for row in billed(google_spans)] == [METERS]
    assert [span.name for span in google_spans.spans()] == [f"generate_content {MODEL}", "fetch_response"]


async def test_a_background_stream_that_is_taken_up_again(google_spans: Any, google: GoogleStub) -> None:
    events: list[Any] = [
        {"event_type": "interaction.created", "interaction": interaction(**WAITING)},
        {"event_type": "step.delta", "index": 0, "delta": {"type": "text", "text": "Hello."}},
        {"event_type": "interaction.completed", "interaction": interaction()},
        "[DONE]",
    ]
    client = google.stream(events[:1], breaking=True).stream(events).client()
    stream = await client.aio.interactions.create(**ASK, stream=True)
    with pytest.raises(Exception, match=r"peer closed|incomplete|[Cc]onnection"):
        _ = [event async for event in stream]
    stream = await client.aio.interactions.get("int-7", stream=True)
    assert len([event async for event in stream]) == 3
    assert [row["meters"] for row in billed(google_spans)] == [METERS]


def test_a_background_interaction_that_was_refused(google_spans: Any, google: GoogleStub) -> None:
    with pytest.raises(Exception, match="no: 400"):
        google.error(400).client().interactions.create(**ASK)
    assert google_spans.attributes()[names.HTTP_STATUS] == 400


# -- batches ---------------------------------------------------------------------------------------------------------

USAGE = {"promptTokenCount": 1000, "candidatesTokenCount": 100, "totalTokenCount": 1100}
ANSWERED = {"tokens.input.uncached": 1000, "tokens.output": 100}
COST = Decimal("0.000275")
"""Half of 1,000 × $0.30 + 100 × $2.50, by the million."""

SRC: Any = [{"contents": [{"parts": [{"text": "hello"}], "role": "user"}]}]


def job(state: str = "BATCH_STATE_SUCCEEDED", model: str = MODEL, **output: Any) -> dict[str, Any]:
    """A job of the Gemini API, as the operation that it is."""
    metadata = {"model": f"models/{model}", "state": state, "createTime": CREATED, "output": output}
    return {"name": "batches/b7", "metadata": metadata, "done": state == "BATCH_STATE_SUCCEEDED"}


def inlined(*items: dict[str, Any]) -> dict[str, Any]:
    return job(inlinedResponses={"inlinedResponses": list(items)})


TWO = (
    {"response": content(USAGE)},
    {"error": {"code": 3, "message": "no"}},
    {"response": content(USAGE, responseId="resp-8")},
)


def in_file(google: GoogleStub, *lines: dict[str, Any]) -> GoogleStub:
    """The service answers with a file of these lines."""
    body = "".join(json.dumps(line) + "\n" for line in lines).encode()

    def reply(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("content-type", "application/jsonl")
        handler.send_header("content-length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    google.replies.append(reply)
    return google


def check(telemetry: Any, operation: str = "generate_content") -> None:
    rows = billed(telemetry)
    assert [(row["meters"], row["cost"]) for row in rows] == [(ANSWERED, COST)] * 2
    assert {(row["operation"], row["model"], row["processing"]) for row in rows} == {(operation, MODEL, "batch")}


def test_answers_in_a_job_are_billed_when_it_is_done(google_spans: Any, google: GoogleStub) -> None:
    client = google.json(job("BATCH_STATE_PENDING")).json(job("BATCH_STATE_RUNNING")).json(inlined(*TWO)).client()
    tracer = google_spans.provider.get_tracer("program")
    with tracer.start_as_current_span("submit") as submit, tag(tenant="acme"):
        client.batches.create(model=MODEL, src=SRC)
    while not (done := client.batches.get(name="batches/b7")).done:
        pass
    assert len(done.dest.inlined_responses) == 3
    check(google_spans)
    results = google_spans.spans()[1:]
    assert [span.name for span in results] == [f"generate_content {MODEL}"] * 2
    for span in results:
        assert span.start_time == BEGAN
        assert span.attributes[names.TENANT] == "acme"
        assert [link.context for link in span.links] == [submit.get_span_context()]


async def test_every_process_makes_the_same_spans(google_spans: Any, google: GoogleStub) -> None:
    client = google.json(inlined(*TWO)).client()
    client.batches.get(name="batches/b7")
    ONCE.forget()
    with tag(tenant="who looks"):
        await client.aio.batches.get(name="batches/b7")
    spans = google_spans.spans()
    assert len(spans) == 4
    assert len({(span.context.trace_id, span.context.span_id, span.start_time) for span in spans}) == 2
    assert spans[-1].attributes[names.TENANT] == "who looks"
    check(google_spans)


def test_jobs_that_are_listed(google_spans: Any, google: GoogleStub) -> None:
    client = google.json({"operations": [inlined(*TWO)]}).client()
    assert [one.name for one in client.batches.list()] == ["batches/b7"]
    list(client.batches.list())
    assert len(google_spans.spans()) == 2
    check(google_spans)


KEYED = tuple({"key": f"request-{number}", **item} for number, item in enumerate(TWO))


@pytest.mark.parametrize("named", ["files/out7", "out7", "https://host/v1beta/files/out7:download?alt=media"])
def test_answers_in_a_file(google_spans: Any, google: GoogleStub, named: str) -> None:
    client = in_file(google.json(job(responsesFile="files/out7")), *KEYED).client()
    client.batches.get(name="batches/b7")
    assert client.files.download(file=named).count(b"\n") == 3
    check(google_spans)
    assert {span.start_time for span in google_spans.spans()} == {BEGAN}


async def test_answers_in_a_file_async_of_a_job_that_nobody_asked_after(google_spans: Any, google: GoogleStub) -> None:
    client = in_file(google, *KEYED).client()
    assert await client.aio.files.download(file="files/out7")
    ONCE.forget()
    assert await client.aio.files.download(file="files/out7")
    check(google_spans)
    assert {span.start_time % DAY for span in google_spans.spans()} == {0}


@pytest.mark.parametrize("in_memory", [False, True])
def test_answers_that_are_written_at_once(
    google_spans: Any, google: GoogleStub, tmp_path: Any, in_memory: bool
) -> None:
    if "destination" not in inspect.signature(files.Files.download).parameters:
        pytest.skip("this version writes no files")
    client = in_file(google, *KEYED).client()
    destination = io.BytesIO() if in_memory else tmp_path / "out"
    client.files.download(file="files/out7", destination=destination)
    assert (destination.getvalue() if in_memory else destination.read_bytes()).count(b"\n") == 3
    check(google_spans)


@pytest.mark.parametrize("little", [2, 300])
def test_a_large_file_is_read_by_another_thread_even_if_it_is_gone_by_then(
    google_spans: Any, google: GoogleStub, tmp_path: Any, monkeypatch: pytest.MonkeyPatch, little: int
) -> None:
    if "destination" not in inspect.signature(files.Files.download).parameters:
        pytest.skip("this version writes no files")
    monkeypatch.setattr(batch_files, "LITTLE", little)
    monkeypatch.setattr(sending, "MOST_BYTES", 1)
    client = in_file(google, *KEYED).client()
    with batches.FILES.sender._lock:
        client.files.download(file="files/out7", destination=tmp_path / "out")
        assert google_spans.spans() == []
        (tmp_path / "out").unlink()
    batches.FILES.sender.join()
    check(google_spans)


def test_embeddings(google_spans: Any, google: GoogleStub) -> None:
    items = [{"response": {"embedding": {"values": [0.5]}, "tokenCount": count}} for count in (5, 7)]
    done = job(model="gemini-embedding-001", inlinedEmbedContentResponses={"inlinedResponses": items})
    google.json(done).client().batches.get(name="batches/b7")
    rows = billed(google_spans)
    assert [row["meters"] for row in rows] == [{"tokens.input.uncached": 5}, {"tokens.input.uncached": 7}]
    assert {(row["operation"], row["request_model"]) for row in rows} == {("embeddings", "gemini-embedding-001")}


def test_a_job_on_vertex_has_its_answers_elsewhere(google_spans: Any, google: GoogleStub) -> None:
    done = {
        "name": "projects/p/locations/us-central1/batchPredictionJobs/7",
        "state": "JOB_STATE_SUCCEEDED",
        "createTime": CREATED,
        "model": f"publishers/google/models/{MODEL}",
        "outputConfig": {"predictionsFormat": "jsonl", "gcsDestination": {"outputUriPrefix": "gs://b/out"}},
    }
    assert google.json(done).vertex().batches.get(name="7").done
    assert google_spans.spans() == []


@pytest.mark.parametrize("body", [{"candidate": 1}, {"key": "x", "request": {"contents": []}}, refusal(400)])
def test_other_files_are_only_files(google_spans: Any, google: GoogleStub, body: dict[str, Any]) -> None:
    assert in_file(google, body).client().files.download(file="files/x")
    assert google_spans.spans() == []


def test_a_file_that_begins_with_an_error(google_spans: Any, google: GoogleStub) -> None:
    in_file(google, KEYED[1], KEYED[0], KEYED[2]).client().files.download(file="files/out7")
    check(google_spans)


@pytest.mark.parametrize(
    ("module", "name"), [(batches, "fields"), (batches, "client_attributes"), (batches, "_answer"), (batches, "Fetch")]
)
def test_a_fault_in_reading_batches_never_reaches_the_program(
    faulty_telemetry: Any, google: GoogleStub, monkeypatch: pytest.MonkeyPatch, module: Any, name: str
) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("a fault of ours")

    GoogleGenAIInstrumentor().instrument(tracer_provider=faulty_telemetry.provider)
    monkeypatch.setattr(module, name, broken)
    counted = sum(faults().values())
    try:
        client = in_file(google.json(inlined(*TWO)), *KEYED).client()
        assert client.batches.get(name="batches/b7").done
        assert client.files.download(file="files/out7")
    finally:
        GoogleGenAIInstrumentor().uninstrument()
    assert sum(faults().values()) > counted


@pytest.mark.parametrize("name", ["_defer", "_bill", "_put"])
def test_a_fault_in_reading_the_background_never_reaches_the_program(
    faulty_telemetry: Any, google: GoogleStub, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("a fault of ours")

    GoogleGenAIInstrumentor().instrument(tracer_provider=faulty_telemetry.provider)
    monkeypatch.setattr(interactions, name, broken)
    try:
        client = google.json(interaction(**WAITING)).json(interaction()).client()
        assert client.interactions.create(**ASK).id == client.interactions.get("int-7").id == "int-7"
    finally:
        GoogleGenAIInstrumentor().uninstrument()
