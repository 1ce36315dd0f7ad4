"""Cohere's batches and embed jobs: each is billed once, when it has ended, whoever asks after it and however often."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cohere
import pytest

from tollspan.instrumentation import cohere_batches, faults, once, tag
from tollspan.instrumentation.cohere import CohereInstrumentor
from tollspan.pricing import attributes as names

from .openai_bill import ledger

sys.path.insert(0, str(Path(__file__).parent))

from small_stubs import SmallStub, cohere_async, cohere_client

ONCE = once.of("cohere")
CREATED = "2026-11-20T10:00:00.123456Z"
BEGAN = 1_795_168_800_123_456_000


@pytest.fixture(autouse=True)
def another_process() -> None:
    """Nothing is known of any batch."""
    ONCE.forget()


@pytest.fixture
def stub() -> Iterator[SmallStub]:
    stub = SmallStub()
    yield stub
    stub.close()


@pytest.fixture
def cohere_spans(telemetry: Any) -> Iterator[Any]:
    CohereInstrumentor().instrument(tracer_provider=telemetry.provider)
    yield telemetry
    CohereInstrumentor().uninstrument()


def batch(status: str = "COMPLETED", **changed: Any) -> dict[str, Any]:
    return {
        "id": "batch-7",
        "name": "nightly",
        "status": f"BATCH_STATUS_{status}",
        "created_at": CREATED,
        "input_dataset_id": "dataset-in",
        "model": "command-a-03-2025",
        "num_records": 3,
        "num_successful_records": 2,
        # As text, which is how JSON writes an int64.
        "input_tokens": "2000",
        "output_tokens": "200",
        **changed,
    }


def embed_job(status: str = "complete", **changed: Any) -> dict[str, Any]:
    return {
        "job_id": "job-7",
        "status": status,
        "created_at": CREATED,
        "input_dataset_id": "dataset-in",
        "model": "embed-v4.0",
        "truncate": "END",
        "meta": {"api_version": {"version": "1"}, "billed_units": {"input_tokens": 5000}},
        **changed,
    }


NEW = {"name": "nightly", "input_dataset_id": "dataset-in", "model": "command-a-03-2025"}
batching = pytest.mark.skipif(not hasattr(cohere.ClientV2, "batches"), reason="this version has no batches")


@batching
def test_a_batch_is_billed_once_when_it_has_ended(cohere_spans: Any, stub: SmallStub) -> None:
    waiting = batch("IN_PROGRESS", input_tokens="900", output_tokens="80")
    client = cohere_client(stub.json({"batch": waiting}).json({"batch": waiting}).json({"batch": batch()}).url)
    tracer = cohere_spans.provider.get_tracer("program")
    with tracer.start_as_current_span("submit") as submit, tag(tenant="acme"):
        client.batches.create(request=cohere.batches.Batch(**NEW))
    for _ in range(3):
        client.batches.retrieve("batch-7")
    submitted, result = cohere_spans.spans()
    assert submitted.name == "submit"
    assert (result.name, result.start_time) == ("chat command-a-03-2025", BEGAN)
    assert [link.context for link in result.links] == [submit.get_span_context()]
    assert (result.attributes[names.PROCESSING], result.attributes[names.BATCH_SIZE]) == ("batch", 2)
    (row,) = [row for row in ledger(cohere_spans.spans()) if row["meters"]]
    assert (row["meters"], row["tenant"]) == ({"tokens.input.uncached": 2000, "tokens.output": 200}, "acme")
    # Its price as a batch is nowhere published: it is unknown, and not that of other calls.
    assert (row["cost"], row["cost_status"]) == (None, "unpriced")


@batching
async def test_every_process_makes_the_same_span(cohere_spans: Any, stub: SmallStub) -> None:
    stub.json({"batch": batch()}).json({"batches": [batch(), batch("IN_PROGRESS", id="batch-8")]})
    cohere_client(stub.url).batches.retrieve("batch-7")
    ONCE.forget()
    await cohere_async(stub.url).batches.list()
    assert len(cohere_spans.spans()) == 2
    assert len(ledger(cohere_spans.spans())) == 1


def test_an_embed_job_costs_what_embedding_does(cohere_spans: Any, stub: SmallStub) -> None:
    client = cohere_client(stub.json(embed_job("processing", meta=None)).json(embed_job()).url)
    for _ in range(3):
        client.embed_jobs.get("job-7")
    (row,) = ledger(cohere_spans.spans())
    assert (row["operation"], row["meters"], row["cost_status"]) == (
        "embeddings",
        {"tokens.input.uncached": 5000},
        "priced",
    )
    assert cohere_spans.only().start_time == BEGAN


async def test_an_embed_job_that_is_listed(cohere_spans: Any, stub: SmallStub) -> None:
    client = cohere_async(stub.json({"embed_jobs": [embed_job(), embed_job("processing", job_id="job-8")]}).url)
    await client.embed_jobs.list()
    assert [row["meters"] for row in ledger(cohere_spans.spans())] == [{"tokens.input.uncached": 5000}]


@pytest.mark.parametrize("broken", ["_fields", "put_usage", "address_attributes"])
def test_a_fault_of_ours_never_reaches_the_program(
    faulty_telemetry: Any, stub: SmallStub, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    def fault(*_: Any, **__: Any) -> Any:
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr(cohere_batches, broken, fault)
    counted = sum(faults().values())
    CohereInstrumentor().instrument(tracer_provider=faulty_telemetry.provider)
    try:
        assert cohere_client(stub.json(embed_job()).url).embed_jobs.get("job-7").status == "complete"
    finally:
        CohereInstrumentor().uninstrument()
    assert sum(faults().values()) == counted + 1
