"""Models on servers of one's own: their native spans are understood, a request is billed once, and what an API would
have charged stands beside what the machine costs."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, Span

from tollspan.pricing import PriceEngine, Selectors, load_book
from tollspan.processor.counters import Counters
from tollspan.processor.decode import decode
from tollspan.processor.journal import Journal
from tollspan.processor.normalize import normalize
from tollspan.processor.pipeline import Pipeline, Settings
from tollspan.processor.store import Store
from tollspan.processor.write import Writer

from .otlp_factory import START, resource_spans, span

MODEL = "acme/tiny-llama"

VLLM: Mapping[str, object] = {
    "gen_ai.latency.time_to_first_token": 0.08253049850463867,
    "gen_ai.latency.e2e": 0.15109515190124512,
    "gen_ai.latency.time_in_queue": 0.0003813980001723394,
    "gen_ai.usage.prompt_tokens": 1000,
    "gen_ai.usage.completion_tokens": 100,
    "gen_ai.latency.time_in_model_prefill": 0.07659281200176338,
    "gen_ai.latency.time_in_model_decode": 0.06858694599941373,
    "gen_ai.latency.time_in_model_inference": 0.1451797580011771,
    "gen_ai.request.id": "chatcmpl-0",
    "gen_ai.request.top_p": 1.0,
    "gen_ai.request.max_tokens": 100,
    "gen_ai.request.temperature": 1.0,
    "gen_ai.request.n": 1,
}
"""As vLLM 0.32.0 sent it to a receiver, but for the counts of tokens."""

SGLANG: Mapping[str, object] = {
    "rid": "0f3a",
    "module": "sglang::request",
    "gen_ai.usage.completion_tokens": 100,
    "gen_ai.usage.prompt_tokens": 1000,
    "gen_ai.usage.cached_tokens": 640,
    "gen_ai.request.id": "0f3a",
    "gen_ai.request.max_tokens": 100,
    "gen_ai.request.n": 1,
    "gen_ai.response.model": MODEL,
    "gen_ai.response.finish_reasons": '["stop"]',
    "gen_ai.latency.time_to_first_token": 0.02,
    "gen_ai.latency.e2e": 0.3,
}
"""The attributes that SGLang 0.5.23 sets on the root span of a request."""

ON_H200 = {
    "service.name": "llm",
    "cloud.provider": "acme",
    "tollspan.device.name": "NVIDIA H200",
    "tollspan.model": MODEL,
}
"""A server's resource, as ``OTEL_RESOURCE_ATTRIBUTES`` makes it."""


def native(scope: str, *spans: Span, resource: Mapping[str, object] = ON_H200) -> ResourceSpans:
    return resource_spans(spans, resource, (scope, ""))


def vllm(number: int = 1, **more: Any) -> ResourceSpans:
    return native("vllm.tracing.otel", request_span(VLLM, number, name="llm_request", **more))


def request_span(values: Mapping[str, object], number: int, **fields: Any) -> Span:
    return span(values, number=number, **{"kind": Span.SPAN_KIND_SERVER, **fields})


def client(number: int, provider: str = "vllm") -> ResourceSpans:
    """Ours, of an OpenAI client that calls a server of the user's: ``TOLLSPAN_PROVIDERS`` says whose it is."""
    values = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": provider,
        "gen_ai.request.model": MODEL,
        "gen_ai.response.model": MODEL,
        "gen_ai.usage.input_tokens": 1000,
        "gen_ai.usage.output_tokens": 100,
        "server.address": "llm.internal",
        "server.port": 8000,
    }
    return resource_spans(
        [span(values, number=number, name=f"chat {MODEL}")],
        {"service.name": "support"},
        ("tollspan.instrumentation.openai", "1"),
    )


def payload(*resources: ResourceSpans) -> bytes:
    return ExportTraceServiceRequest(resource_spans=resources).SerializeToString()


def row(*resources: ResourceSpans) -> dict[str, Any]:
    """Columns and quantities of the first span."""
    normalized = normalize(decode([payload(*resources)]), received_ns=START)
    found: dict[str, Any] = normalized.table.slice(0, 1).to_pylist()[0]
    return found | {meter: values[0].as_py() for meter, values in normalized.quantities.items()}


# -- what the spans say ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scope", ["vllm.tracing.otel", "vllm.llm_engine"])
def test_a_request_of_vllm(scope: str) -> None:
    said = row(native(scope, request_span(VLLM, 1, name="llm_request")))
    assert (said["provider"], said["model"], said["kind"]) == ("vllm", MODEL, "inference")
    assert (said["tokens.input.uncached"], said["tokens.output"]) == (1000, 100)
    assert (said["device"], said["cloud_provider"], said["invalid"]) == ("NVIDIA H200", "acme", None)


def test_a_request_of_an_older_vllm_says_its_model() -> None:
    said = row(native("vllm.llm_engine", request_span({**VLLM, "gen_ai.response.model": "its/own"}, 1)))
    assert said["model"] == "its/own"


def test_what_vllm_does_while_it_starts_is_not_billed() -> None:
    values = {"code.function": "DefaultModelLoader.load_weights", "code.lineno": "489"}
    said = row(native("vllm.model_executor.model_loader.default_loader", span(values, name="Load weights")))
    assert (said["provider"], said["billable"]) == ("vllm", False)


def test_a_request_of_sglang() -> None:
    said = row(native("sglang server", request_span(SGLANG, 1, name=" Req 0f3a", kind=Span.SPAN_KIND_INTERNAL)))
    assert (said["provider"], said["model"]) == ("sglang", MODEL)
    assert (said["tokens.input.uncached"], said["tokens.input.cache_read"], said["tokens.output"]) == (360, 640, 100)


def test_a_model_of_triton_is_named_and_billed_by_what_somebody_measured() -> None:
    values = {
        "triton.model_name": "ranker",
        "triton.model_version": 3,
        "triton.trace_id": 1,
        "triton.trace_parent_id": 0,
    }
    said = row(native("triton-server", request_span(values, 1, name="ranker"), resource={"service.name": "triton"}))
    assert (said["provider"], said["model"], said["billable"]) == ("triton", "ranker", False)
    values |= {"tollspan.usage.gpu.seconds": 0.25}
    said = row(native("triton-server", request_span(values, 1, name="ranker"), resource=ON_H200))
    assert (said["model"], said["billable"], said["gpu.seconds"]) == ("ranker", True, 250_000_000)


def test_a_request_of_text_generation_inference_tells_no_usage() -> None:
    values = {
        "parameters": "GenerateParameters { best_of: None }",
        "total_time": "1.2s",
        "validation_time": "312µs",
        "queue_time": "40µs",
        "inference_time": "1.1996s",
        "time_per_token": "23.9ms",
        "seed": "None",
        "code.namespace": "text_generation_router::server",
    }
    resource = {"service.name": "text-generation-inference.router"}
    said = row(native("opentelemetry-otlp", request_span(values, 1, name="generate"), resource=resource))
    assert (said["provider"], said["billable"]) == (None, False)


def test_what_a_span_says_itself_stands_before_its_scope() -> None:
    said = row(native("vllm.plugin", span({"gen_ai.provider.name": "openai", "gen_ai.usage.input_tokens": 1})))
    assert said["provider"] == "openai"
    said = row(resource_spans([span({"gen_ai.usage.input_tokens": 1})], {}, ("vllmish", "1")))
    assert said["provider"] is None


def test_servers_and_others_share_a_batch() -> None:
    normalized = normalize(decode([payload(client(9, "openai"), vllm(), client(20, "azure"))]), received_ns=START)
    assert normalized.table["provider"].to_pylist() == ["openai", "vllm", "azure"]


# -- what they cost ----------------------------------------------------------------------------------------------------

BOOK = f"""
aliases:                                # what an API would have charged: the model that stands for ours
  - {{ref: {MODEL}, provider: vllm, sku: openai/gpt-5-mini}}
prices:
  - {{provider: acme, sku: NVIDIA H200, meter: gpu.seconds, amount: "3.60", unit: hour}}
  # ... and that it is paid for by the machine:
  - {{provider: vllm, sku: {MODEL}, meter: tokens.input.uncached, kind: included}}
  - {{provider: vllm, sku: {MODEL}, meter: tokens.input.cache_read, kind: included}}
  - {{provider: vllm, sku: {MODEL}, meter: tokens.output, kind: included}}
"""
API = 1000 * Decimal("0.25") / 1_000_000 + 100 * Decimal(2) / 1_000_000
"""What the tokens cost at the model that stands for ours."""


class Line:
    """A pipeline with the book above, driven step by step."""

    def __init__(self, store: Any, folder: Path) -> None:
        book = folder / "book.yaml"
        book.write_text(BOOK, encoding="utf-8")
        self.store, counters = store, Counters()
        self.journal = Journal(folder / "journal", counters=counters)
        self.pipeline = Pipeline(
            self.journal,
            Writer(store, threading.Event(), counters, pause=lambda _: None),
            PriceEngine(load_book(book)),
            Settings(keep=1.0, decision_wait_s=0.0, linger_s=0.0),
            counters,
        )

    def send(self, *resources: ResourceSpans) -> None:
        self.journal.append(payload(*resources)).wait()
        while self.pipeline.step(0.0):
            pass

    def rows(self, sql: str) -> list[dict[str, Any]]:
        reader = self.store.reader()
        try:
            return list(reader.query(sql).to_pylist())
        finally:
            reader.close()


@pytest.fixture
def line(store: Store, tmp_path: Path) -> Iterator[Line]:
    line = Line(store, tmp_path)
    yield line
    line.journal.close()


@pytest.mark.parametrize("order", ["together", "client first", "server first"])
@pytest.mark.parametrize("server", ["vllm", "sglang"])
def test_a_client_above_a_server_s_own_span_is_billed_once(line: Line, server: str, order: str) -> None:
    asked = client(1, server)
    above = asked.scope_spans[0].spans[0]
    below = {"trace_id": above.trace_id, "parent_span_id": above.span_id, "name": "llm_request"}
    served = (
        native("vllm.tracing.otel", request_span(VLLM, 2, **below))
        if server == "vllm"
        else native("sglang server", request_span(SGLANG, 2, **below))
    )
    batches = {"together": [[asked, served]], "client first": [[asked], [served]], "server first": [[served], [asked]]}
    for batch in batches[order]:
        line.send(*batch)
    found = line.rows("SELECT service, cost_status, input_tokens FROM ledger FINAL ORDER BY service")
    assert [(r["service"], r["cost_status"]) for r in found][1] == ("support", "rollup")
    billed = [r for r in found if r["cost_status"] != "rollup"]
    assert [(r["service"], r["input_tokens"]) for r in billed] == [("llm", 1000)]


def test_tokens_of_one_s_own_server_cost_the_machine_and_beside_it_what_an_api_would_have_charged(line: Line) -> None:
    line.send(vllm())
    measured = {**VLLM, "gen_ai.provider.name": "vllm", "tollspan.usage.gpu.seconds": 0.5}
    line.send(native("tollspan.instrumentation.vllm", request_span(measured, 9)))
    rows = line.rows("SELECT cost_status, cost, list_cost FROM ledger FINAL ORDER BY start_time")
    assert [(r["cost_status"], r["cost"], r["list_cost"]) for r in rows] == [
        ("included", Decimal(0), API),
        ("priced", Decimal("0.0005"), API + Decimal("0.0005")),
    ]


def test_the_api_equivalent_is_a_query_and_in_no_total(line: Line) -> None:
    line.send(vllm(1), vllm(9), client(20, "openai"))
    (totals,) = line.rows("SELECT sum(cost) AS cost FROM ledger FINAL WHERE provider = 'vllm'")
    assert totals["cost"] == 0
    (beside,) = line.rows("""
        SELECT sum(charges.cost + charges.negotiated + charges.committed) AS api_equivalent
        FROM ledger FINAL ARRAY JOIN charges
        WHERE provider = 'vllm' AND charges.meter LIKE 'tokens.%'""")
    assert beside["api_equivalent"] == 2 * API


def test_one_line_of_a_book_makes_all_models_of_a_server_cost_the_machine_alone(tmp_path: Path) -> None:
    book = tmp_path / "book.yaml"
    book.write_text(
        f"""
aliases: [{{ref: {MODEL}, provider: vllm, sku: openai/gpt-5-mini}}]
adjustments: [{{id: own-machines, match: {{provider: vllm}}, percent: -100}}]
""",
        encoding="utf-8",
    )
    charges = PriceEngine(load_book(book)).price(
        {"tokens.input.uncached": 1000, "tokens.output": 100},
        at=datetime(2026, 9, 21, tzinfo=UTC),
        selectors=Selectors(provider="vllm", model=MODEL),
    )
    assert (charges.cost, charges.list_cost) == (0, API)


def test_tokens_without_a_price_are_unpriced_and_not_free(line: Line) -> None:
    line.send(native("vllm.tracing.otel", request_span(VLLM, 1), resource={"service.name": "llm"}))
    (found,) = line.rows("SELECT cost_status, cost FROM ledger FINAL")
    assert (found["cost_status"], found["cost"]) == ("unpriced", None)
