"""Results of batches: each is billed once, at the price of batches, whoever reads them and however often."""

from __future__ import annotations

import gc
import hashlib
from collections.abc import Iterator
from typing import Any

import pytest

from tollspan.instrumentation import tag
from tollspan.instrumentation.anthropic import AnthropicInstrumentor
from tollspan.instrumentation.anthropic.batches import BATCH_ID, ONCE, batch_of, ended
from tollspan.pricing import attributes as names

from .anthropic_stub import MODEL, SERVED, Stub, batch_results, serve

PARAMS: dict[str, Any] = {"model": MODEL, "max_tokens": 64, "messages": [{"role": "user", "content": "hello"}]}


@pytest.fixture(autouse=True)
def another_process() -> None:
    """Nothing is known of any batch."""
    ONCE.forget()
    ended.clear()


@pytest.fixture
def stub() -> Iterator[Stub]:
    with serve() as stub:
        yield stub


@pytest.fixture
def spans(telemetry: Any) -> Iterator[Any]:
    AnthropicInstrumentor().instrument(tracer_provider=telemetry.provider)
    yield telemetry
    AnthropicInstrumentor().uninstrument()


def results(telemetry: Any) -> list[Any]:
    """Spans of results, without the fetch's."""
    return [span for span in telemetry.spans() if span.name != "fetch_response"]


def identity(span: Any) -> tuple[int, int, int, int]:
    context = span.get_span_context()
    return context.trace_id, context.span_id, span.start_time, span.end_time


def check(telemetry: Any) -> None:
    one, three = results(telemetry)
    assert one.name == three.name == f"chat {SERVED}"
    for span, response in ((one, "msg_1"), (three, "msg_3")):
        assert span.parent is None
        attributes = dict(span.attributes)
        assert attributes.pop(names.SERVER_PORT) > 0
        assert attributes == {
            names.OPERATION_NAME: "chat",
            names.PROVIDER_NAME: "anthropic",
            names.SERVER_ADDRESS: "127.0.0.1",
            names.PROCESSING: "batch",
            BATCH_ID: "msgbatch_1",
            names.RESPONSE_ID: response,
            names.RESPONSE_MODEL: SERVED,
            names.RESPONSE_FINISH_REASONS: ("end_turn",),
            names.USAGE_INPUT_TOKENS: 117,
            names.USAGE_OUTPUT_TOKENS: 20,
            names.USAGE_CACHE_READ_TOKENS: 100,
            names.USAGE_CACHE_WRITE_TOKENS: 7,
            names.USAGE_REASONING_TOKENS: 5,
            names.usage("tokens.input.cache_write.5m"): 3,
            names.usage("tokens.input.cache_write.1h"): 4,
            names.usage("web_searches"): 2,
            names.usage("web_fetches"): 1,
            names.ANTHROPIC_RESPONSE_SERVICE_TIER: "batch",
            names.RESIDENCY: "us",
        }


@pytest.mark.parametrize("beta", [False, True])
def test_results(spans: Any, stub: Stub, beta: bool) -> None:
    client = stub.batch().lines(batch_results()).client()
    decoder = (client.beta if beta else client).messages.batches.results("msgbatch_1")
    assert decoder.__class__.__name__ == "JSONLDecoder"
    assert [line.custom_id for line in decoder] == ["one", "two", "three"]
    check(spans)


@pytest.mark.parametrize("beta", [False, True])
async def test_results_async(spans: Any, stub: Stub, beta: bool) -> None:
    async with stub.batch().lines(batch_results()).async_client() as client:
        decoder = await (client.beta if beta else client).messages.batches.results("msgbatch_1")
        assert [line.custom_id async for line in decoder] == ["one", "two", "three"]
    check(spans)


def test_the_raw_results(spans: Any, stub: Stub) -> None:
    client = stub.batch().lines(batch_results()).client()
    raw_batches = client.messages.batches.with_raw_response
    if not hasattr(raw_batches, "results"):
        pytest.skip("this version has no raw results")
    raw = raw_batches.results("msgbatch_1")
    assert [line.custom_id for line in raw.parse()] == ["one", "two", "three"]
    check(spans)


def test_the_fetch_is_a_span_without_usage_that_the_results_link_to(spans: Any, stub: Stub) -> None:
    list(stub.batch().lines(batch_results()).client().messages.batches.results("msgbatch_1"))
    (fetch,) = [span for span in spans.spans() if span.name == "fetch_response"]
    assert fetch.attributes[names.OPERATION_NAME] == "fetch_response"
    assert not [name for name in fetch.attributes if "usage" in name]
    for span in results(spans):
        assert [link.context.span_id for link in span.links] == [fetch.get_span_context().span_id]


def test_read_again_in_another_process_they_are_the_same_spans(telemetry: Any, stub: Stub) -> None:
    stub.batch().lines(batch_results()).batch().lines(batch_results())
    seen = []
    for _ in range(2):
        ONCE.forget()
        ended.clear()
        AnthropicInstrumentor().instrument(tracer_provider=telemetry.provider)
        list(stub.client().messages.batches.results("msgbatch_1"))
        seen.append([identity(span) for span in results(telemetry)])
        telemetry.exporter.clear()
        AnthropicInstrumentor().uninstrument()
    assert seen[0] == seen[1]
    assert len({(trace, span) for trace, span, _, _ in seen[0]}) == 2
    # What later versions have to find as well.
    assert f"{seen[0][0][0]:032x}" == hashlib.sha256(b"anthropic\0msgbatch_1\0one").hexdigest()[:32]
    start, end = seen[0][0][2:]
    assert start == end == 1_793_529_000_123_456_000  # 2026-11-01T10:30:00.123456Z


def test_results_of_another_batch_are_other_spans(spans: Any, stub: Stub) -> None:
    lines = batch_results()
    for name in ("msgbatch_1", "msgbatch_2"):
        stub.replies.clear()
        url = f"{stub.url}/v1/messages/batches/{name}/results"
        list(stub.batch(id=name, results_url=url).lines(lines).client().messages.batches.results(name))
    assert len({identity(span) for span in results(spans)}) == 4


def test_results_know_their_submission_and_have_its_tags(spans: Any, stub: Stub) -> None:
    client = stub.batch(ended_at=None, processing_status="in_progress").batch().lines(batch_results()).client()
    tracer = spans.provider.get_tracer("program")
    with tracer.start_as_current_span("submit") as submit, tag(tenant="who asked"):
        client.messages.batches.create(requests=[{"custom_id": "one", "params": PARAMS}])
    with tag(tenant="who looks"):
        list(client.messages.batches.results("msgbatch_1"))
    made = [span for span in results(spans) if span.name != "submit"]
    assert len(made) == 2
    for span in made:
        assert span.attributes[names.TENANT] == "who asked"
        assert submit.get_span_context().span_id in [link.context.span_id for link in span.links]


def test_results_of_an_unknown_submission_have_the_readers_tags(spans: Any, stub: Stub) -> None:
    client = stub.batch().lines(batch_results()).client()
    with tag(tenant="who looks"):
        list(client.messages.batches.results("msgbatch_1"))
    assert [span.attributes[names.TENANT] for span in results(spans)] == ["who looks"] * 2


def test_results_left_early_are_those_that_were_read(spans: Any, stub: Stub) -> None:
    decoder = stub.batch().lines(batch_results()).client().messages.batches.results("msgbatch_1")
    assert next(decoder).custom_id == "one"
    del decoder
    gc.collect()
    assert [span.attributes[names.RESPONSE_ID] for span in results(spans)] == ["msg_1"]
    assert len(spans.spans()) == 2


def test_submitting_and_asking_how_it_goes_are_no_spans(spans: Any, stub: Stub) -> None:
    client = stub.batch().client()
    client.messages.batches.create(requests=[{"custom_id": "one", "params": PARAMS}])
    client.messages.batches.retrieve("msgbatch_1")
    client.messages.batches.with_raw_response.retrieve("msgbatch_1")
    client.messages.batches.list()
    assert spans.spans() == []


@pytest.mark.parametrize(
    ("url", "batch"),
    [
        ("https://api.anthropic.com/v1/messages/batches/msgbatch_1/results", "msgbatch_1"),
        ("/v1/messages/batches/msgbatch_1/results?beta=true", "msgbatch_1"),
        ("/v1/messages/batches/msgbatch_1", None),
        ("/v1/messages/batches//results", None),
        ("/v1/messages", None),
    ],
)
def test_the_batch_of_an_address(url: str, batch: str | None) -> None:
    assert batch_of(url) == batch
