"""Mistral's batches: each result is billed once, at the price of batches, whoever has it and however often."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from tollspan.instrumentation import faults, mistral_batches, once, tag
from tollspan.instrumentation.mistral import MistralInstrumentor
from tollspan.pricing import attributes as names

from .openai_bill import ledger

sys.path.insert(0, str(Path(__file__).parent))

from small_stubs import SmallStub, mistral_client, mistral_completion

ONCE = once.of("mistral")
CREATED = 1_795_200_000
FILE = "application/octet-stream"
COST = Decimal("0.000105")
"""Half of 1,000 × $0.15 + 100 × $0.60, by the million."""


@pytest.fixture(autouse=True)
def another_process() -> None:
    """Nothing is known of any job."""
    ONCE.forget()


@pytest.fixture
def stub() -> Iterator[SmallStub]:
    stub = SmallStub()
    yield stub
    stub.close()


@pytest.fixture
def mistral_spans(telemetry: Any) -> Iterator[Any]:
    MistralInstrumentor().instrument(tracer_provider=telemetry.provider)
    yield telemetry
    MistralInstrumentor().uninstrument()


def job(status: str = "SUCCESS", endpoint: str = "/v1/chat/completions", **changed: Any) -> dict[str, Any]:
    return {
        "id": "job-7",
        "object": "batch",
        "input_files": ["file-in"],
        "endpoint": endpoint,
        "model": "mistral-small-latest",
        "errors": [],
        "status": status,
        "created_at": CREATED,
        "total_requests": 2,
        "completed_requests": 2,
        "succeeded_requests": 2,
        "failed_requests": 0,
        **changed,
    }


def line(number: int, body: Any = None, status: int = 200) -> dict[str, Any]:
    body = mistral_completion(id=f"cmpl-{number}", created=CREATED + number) if body is None else body
    return {
        "id": f"batch-job-7-{number}",
        "custom_id": str(number),
        "response": {"status_code": status, "body": body},
        "error": None,
    }


def output(*lines: dict[str, Any]) -> list[bytes]:
    return [json.dumps(one).encode() + b"\n" for one in lines]


def check(telemetry: Any) -> None:
    rows = ledger(telemetry.spans())
    assert [(row["cost"], row["processing"], row["model"]) for row in rows] == [
        (COST, "batch", "mistral-small-latest")
    ] * 2


READS = {
    "read": lambda response: response.read(),
    "bytes": lambda response: b"".join(response.iter_bytes()),
    "lines": lambda response: "\n".join([*response.iter_lines(), ""]).encode(),
    "sent": lambda response: b"".join(response.stream),
}


@pytest.mark.parametrize("how", READS)
def test_results_in_a_file(mistral_spans: Any, stub: SmallStub, how: str) -> None:
    body = output(line(1), line(2))
    client = mistral_client(stub.json(job(output_file="file-out")).stream(body, FILE).url)
    client.batch.jobs.get(job_id="job-7")
    assert READS[how](client.files.download(file_id="file-out")) == b"".join(body)
    check(mistral_spans)
    span = mistral_spans.spans()[0]
    assert (span.name, span.start_time) == ("chat mistral-small-latest", (CREATED + 1) * 10**9)


def test_results_without_any_name_are_billed_each(mistral_spans: Any, stub: SmallStub) -> None:
    lines = [{**line(number, mistral_completion(id=None, created=CREATED)), "id": None} for number in (1, 2)]
    body = output(*({**each, "custom_id": None} for each in lines))
    mistral_client(stub.stream(body, FILE).url).files.download(file_id="file-out").read()
    check(mistral_spans)


async def test_results_in_a_file_async(mistral_spans: Any, stub: SmallStub) -> None:
    client = mistral_client(stub.stream(output(line(1), line(2)), FILE).url)
    response = await client.files.download_async(file_id="file-out")
    assert (await response.aread()).count(b"\n") == 2
    check(mistral_spans)


async def test_results_sent_async(mistral_spans: Any, stub: SmallStub) -> None:
    client = mistral_client(stub.stream(output(line(1), line(2)), FILE).url)
    response = await client.files.download_async(file_id="file-out")
    assert b"".join([piece async for piece in response.stream]).count(b"\n") == 2
    check(mistral_spans)


def test_results_in_a_job_and_in_its_file_are_the_same(mistral_spans: Any, stub: SmallStub) -> None:
    lines = line(1), line(2)
    done = job(output_file="file-out", outputs=lines)
    client = mistral_client(stub.json(job("QUEUED")).json(done).stream(output(*lines), FILE).url)
    if "inline" not in client.batch.jobs.get.__wrapped__.__annotations__:
        pytest.skip("this version asks for no results inside a job")
    tracer = mistral_spans.provider.get_tracer("program")
    with tracer.start_as_current_span("submit") as submit, tag(tenant="acme"):
        client.batch.jobs.create(input_files=["file-in"], model="m", endpoint="/v1/chat/completions")
    client.batch.jobs.get(job_id="job-7", inline=True)
    client.files.download(file_id="file-out").read()
    results = mistral_spans.spans()[1:]
    assert len(results) == 4
    assert [span.links[0].context for span in results] == [submit.get_span_context()] * 4
    assert {span.attributes[names.TENANT] for span in results} == {"acme"}
    check(mistral_spans)


def test_every_process_makes_the_same_spans(mistral_spans: Any, stub: SmallStub) -> None:
    client = mistral_client(stub.stream(output(line(1), line(2)), FILE).url)
    for _ in range(2):
        ONCE.forget()
        client.files.download(file_id="file-out").read()
    assert len(mistral_spans.spans()) == 4
    check(mistral_spans)


def test_lines_of_every_kind(mistral_spans: Any, stub: SmallStub) -> None:
    embedded = {
        "id": "embd-1",
        "object": "list",
        "model": "mistral-embed",
        "data": [{"object": "embedding", "index": 0, "embedding": [0.5]}],
        "usage": {"prompt_tokens": 8, "completion_tokens": 0, "total_tokens": 8},
    }
    pages = {"index": 0, "markdown": "# One", "images": []}
    read = {"model": "mistral-ocr-latest", "pages": [pages], "usage_info": {"pages_processed": 1}}
    annotated = {**read, "document_annotation": "{}"}
    moderated = {"id": "mod-1", "model": "mistral-moderation-latest", "results": [{"categories": {}}]}
    failed = line(5, {"message": "no"}, 422)
    body = output(line(1, embedded), line(2, read), line(3, annotated), line(4, moderated), failed)
    mistral_client(stub.stream(body, FILE).url).files.download(file_id="file-out").read()
    rows = ledger(mistral_spans.spans())
    assert [(row["operation"], row["meters"]) for row in rows] == [
        ("embeddings", {"tokens.input.uncached": 8, **rows[0]["meters"]}),
        ("generate_content", {"pages": 1}),
        ("generate_content", {"pages.annotated": 1}),
    ]


@pytest.mark.parametrize("body", [b"", b"%PDF" * 9, b'{"custom_id": "0", "body": {}}\n', b'{"response": '])
def test_other_files_are_only_files(mistral_spans: Any, stub: SmallStub, body: bytes) -> None:
    client = mistral_client(stub.stream([body] if body else [], FILE).url)
    assert client.files.download(file_id="file-1").read() == body
    assert mistral_spans.spans() == []


@pytest.mark.parametrize("broken", ["put_usage", "address_attributes", "Fetch", "_is_annotated"])
def test_a_fault_of_ours_never_reaches_the_program(
    faulty_telemetry: Any, stub: SmallStub, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    def fault(*_: Any, **__: Any) -> Any:
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr(mistral_batches, broken, fault)
    counted = sum(faults().values())
    MistralInstrumentor().instrument(tracer_provider=faulty_telemetry.provider)
    try:
        read = {"model": "mistral-ocr-latest", "pages": [], "usage_info": {"pages_processed": 1}}
        client = mistral_client(stub.stream(output(line(1, read)), FILE).url)
        assert client.files.download(file_id="file-out").read()
    finally:
        MistralInstrumentor().uninstrument()
    assert sum(faults().values()) == counted + 1
