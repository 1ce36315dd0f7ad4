"""Slim spans cost what whole ones cost, whoever made them, and hold nothing that was said."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter, SimpleLogRecordProcessor
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from tests.processor.dialect_bill import Bill, bills, cases
from tollspan.instrumentation import TollspanSampler, keep, keep_trace
from tollspan.instrumentation.slim_attributes import OBJECTS, billed, needed
from tollspan.instrumentation.switches import NETWORK
from tollspan.pricing import attributes as names
from tollspan.processor.normalize import WANTED
from tollspan.processor.store import open_store

from .every_client import CLIENTS, Client, Make
from .openai_bill import ledger
from .stub_server import StubServer
from .test_peers_of_clients import PEERS

CASES = cases()
SAID = "it was a dark and stormy night"


# -- names -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", sorted({*WANTED.to_pylist()} - {names.SENDER_TENANT, names.SLIM}))
def test_all_that_the_processor_reads_is_kept(key: str) -> None:
    assert key in needed({key: "1"})


@pytest.mark.parametrize(
    "key",
    [
        *(names.INPUT_MESSAGES, names.OUTPUT_MESSAGES, names.SYSTEM_INSTRUCTIONS, names.TOOL_DEFINITIONS),
        *("gen_ai.prompt", "gen_ai.completion", "gen_ai.prompt.0.content", "gen_ai.tool.call.arguments"),
        *("gen_ai.tool.call.result", "input.value", "output.value", "llm.input_messages.0.message.content"),
        *("llm.prompts", "llm.invocation_parameters", "retrieval.documents.0.document.content", "ai.prompt"),
        *("ai.response.text", "traceloop.entity.input", "traceloop.entity.output", "langfuse.observation.input"),
        *("langsmith.metadata.prompt", "mlflow.spanInputs", "mlflow.spanOutputs", "braintrust.input", "db.query.text"),
    ],
)
def test_nothing_that_was_said_is_kept(key: str) -> None:
    assert needed({key: SAID}) == {}


def test_what_nobody_has_taught_us_yet_is_still_found() -> None:
    told = {"new.vendor.usage.input": 7, "new.vendor.tokens": 8.0, "new.vendor.model": "m", "x.model_name": "n"}
    other = {"new.vendor.max_tokens": 100, "new.vendor.said": SAID, "a.model": SAID * 100, "usage.text": SAID}
    assert needed({**told, **other}) == told


@pytest.mark.parametrize(
    ("key", "value", "left"),
    [
        ("request_data", {"messages": [{"content": SAID}], "model": "gpt-5"}, {"model": "gpt-5"}),
        ("request_data", {"messages": SAID}, {}),
        ("response_data", {"message": {"content": SAID}, "usage": {"input_tokens": 3}}, {"usage": {"input_tokens": 3}}),
        ("response_data", {"combined": [SAID, {"usage": {"a": 1}}]}, {"usage": {"a": 1}}),
        ("response_data", [SAID], {}),
        ("braintrust.metadata", {"model": "gpt-5", "prompt": SAID}, {"model": "gpt-5"}),
    ],
)
def test_of_an_object_that_holds_both_only_what_is_needed_is_left(key: str, value: Any, left: Any) -> None:
    assert key in OBJECTS
    assert json.loads(needed({key: json.dumps(value)})[key]) == left


@pytest.mark.parametrize("value", ["{", "", 7, "[" * 10_000])
def test_an_object_that_is_none_does_no_harm(value: Any) -> None:
    for key in OBJECTS:
        assert needed({key: value})[key] == "{}"


# -- the spans of other libraries --------------------------------------------------------------------------------------


def slim(spans: list[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """A trace as it comes where it was not sampled: what is not billed is away, what is left hangs together."""
    sent = [place for place, span in enumerate(spans) if billed(span["attributes"])]

    def above(place: int | None) -> int | None:
        while place is not None and place not in sent:
            place = spans[place]["parent"]
        return None if place is None else sent.index(place)

    return [
        {
            **spans[place],
            "attributes": {**needed(spans[place]["attributes"]), names.SLIM: True},
            "parent": above(spans[place]["parent"]),
        }
        for place in sent
    ]


@pytest.fixture(scope="module")
def bill_of(store_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Bill]]:
    with open_store(f"chdb://{store_directory}?database=slim") as store:
        store.migrate()
        slimmed = {name: {**case, "spans": slim(case["spans"])} for name, case in CASES.items()}
        yield bills(slimmed, store, tmp_path_factory.mktemp("slim"))


@pytest.mark.parametrize("case", CASES)
def test_a_library_s_slim_spans_are_billed_as_its_whole_ones(case: str, bill_of: dict[str, Bill]) -> None:
    bill, said = bill_of[case], CASES[case]["billed"]
    assert dict(bill.tokens) == said["tokens"]
    assert (None if bill.cost is None else format(bill.cost.normalize(), "f")) == said["cost"]
    assert [(row["provider"], row["cost_status"], row["cost_reasons"]) for row in bill.rows] == [
        (row["provider"], row["status"], row["reasons"]) for row in said["rows"]
    ]


# -- our own -----------------------------------------------------------------------------------------------------------


def asked(client: Client, rate: float, stream: bool, stub: StubServer) -> list[ReadableSpan]:
    """What is exported of one request to a client, at a share of requests that are sampled."""
    stub.forget()
    exporter = InMemorySpanExporter()
    provider = TracerProvider(sampler=TollspanSampler(rate), shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    used = []
    for path in client.instrumentor.split():
        module, _, name = path.partition(":")
        used.append(getattr(importlib.import_module(f"tollspan.instrumentation.{module}"), name)())
        used[-1].instrument(tracer_provider=provider)
    try:
        made = client.make(Make(stub.url), False)
        with provider.get_tracer("program").start_as_current_span("GET /"):
            if stream:
                stub.stream(client.events((1000, 100)), client.kind)
                result = next(iter(client.streams.values())).of(False)(made)
                if hasattr(result, "__enter__"):
                    with result as opened:
                        list(opened)
                else:
                    list(result)
            else:
                stub.json(client.answer((1000, 100)))
                next(iter(client.asks.values())).of(False)(made)
    finally:
        for each in used:
            each.uninstrument()
    return list(exporter.get_finished_spans())


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("client", CLIENTS, ids=str)
def test_every_client_s_calls_cost_the_same_sampled_or_not(
    client: Client, stream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip(client.module)
    monkeypatch.setenv(NETWORK, "off")  # a request's bytes are not twice the same
    with StubServer() as stub:
        whole = [span for span in asked(client, 1.0, stream, stub) if span.name != "GET /"]
        slim = asked(client, 0.0, stream, stub)
    assert [span.name for span in slim] == [span.name for span in whole]
    assert [(span.attributes or {})[names.SLIM] for span in slim] == [True] * len(slim)
    drop = ("start_time", "trace_id", "span_id", "parent_span_id", "duration_ns", "revision")

    def told(spans: list[ReadableSpan]) -> list[dict[str, Any]]:
        return [{key: value for key, value in row.items() if key not in drop} for row in ledger(spans)]

    assert told(slim) == told(whole)
    assert told(slim)[0]["meters"].items() >= {"tokens.input.uncached": 1000, "tokens.output": 100}.items()
    assert any(row["cost"] is not None for row in told(slim)) or client.name in ("ollama", "huggingface")


@pytest.mark.parametrize("first", ["ours", "theirs"])
@pytest.mark.parametrize(("client", "peer"), [each for each in PEERS if each[0].startswith("openai")])
def test_beside_a_peer_each_call_is_billed_once_too(client: str, peer: str, first: str) -> None:
    module, _, name = peer.partition(":")
    try:
        getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError):
        pytest.skip(f"{module} is not installed")
    done = subprocess.run(
        [sys.executable, "-m", "tests.instrumentation.peer_program", client, peer, first, "0"],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    calls = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert len(calls) == 4
    for call in calls:
        assert [row["scope"].partition(".")[0] for row in call["billed"]] == ["tollspan"], call
        assert call["billed"][0]["tokens"] == {"tokens.input.uncached": 1000, "tokens.output": 100}, call


# -- content -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [200, 500])
@pytest.mark.parametrize("asked_for", [False, True])
def test_what_was_said_is_put_nowhere_but_where_the_span_is_sent_whole(
    status: int, asked_for: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tollspan.instrumentation.openai import OpenAIInstrumentor

    openai = pytest.importorskip("openai")
    monkeypatch.setenv("OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT", "span_and_event")
    client = next(client for client in CLIENTS if client.name == "openai")
    exporter, logs = InMemorySpanExporter(), InMemoryLogRecordExporter()
    provider, logger = TracerProvider(sampler=TollspanSampler(0.0), shutdown_on_exit=False), LoggerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    logger.add_log_record_processor(SimpleLogRecordProcessor(logs))
    OpenAIInstrumentor().instrument(tracer_provider=provider, logger_provider=logger)
    try:
        with StubServer() as stub, provider.get_tracer("x").start_as_current_span("GET /"):
            stub.json(client.answer((1000, 100)) if status == 200 else {"error": {}}, status)
            if asked_for:
                keep_trace()
            made = client.make(Make(stub.url), False)
            try:
                made.chat.completions.create(model="gpt-5-mini", messages=[{"role": "user", "content": SAID}])
            except openai.InternalServerError:
                assert status == 500
    finally:
        OpenAIInstrumentor().uninstrument()
        keep._marks.clear()
    (sent,) = [span for span in exporter.get_finished_spans() if span.name.startswith("chat")]
    whole = asked_for or status == 500
    assert (sent.attributes or {})[names.SLIM] is not whole
    assert (SAID in sent.to_json()) is whole
    assert (len(logs.get_finished_logs()) == 1) is whole
