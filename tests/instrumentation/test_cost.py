"""Costs on spans: only where asked for, only whole, and to the last digit what the processor makes of the same span."""

from __future__ import annotations

import gc
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from tollspan.instrumentation.cost import COUNTS, PARTS, SELECTORS, LocalCost, quantities
from tollspan.instrumentation.openai import OpenAIInstrumentor
from tollspan.pricing import attributes as names
from tollspan.pricing.conventions import OTEL_INCLUSIVE
from tollspan.processor import dialects
from tollspan.processor.decode import decode
from tollspan.processor.normalize import normalize
from tollspan.processor.usage_dialects import USAGE

from . import openai_bill

ASK: Any = {"model": "gpt-5-mini", "messages": [{"role": "user", "content": "hello"}]}
COST_KEYS = (names.USAGE_COST_AMOUNT, names.USAGE_COST_CURRENCY, names.USAGE_COST_SOURCE, names.COST_LOCAL)


def row(spans: Any) -> dict[str, Any]:
    """The one ledger row of ``spans``."""
    rows: list[dict[str, Any]] = openai_bill.ledger(spans)
    assert len(rows) == 1
    return rows[0]


@pytest.fixture
def costed(monkeypatch: pytest.MonkeyPatch, telemetry: Any) -> Iterator[Any]:
    monkeypatch.setenv("TOLLSPAN_CLIENT_COST", "true")
    monkeypatch.delenv("TOLLSPAN_PRICES", raising=False)
    OpenAIInstrumentor().instrument(tracer_provider=telemetry.provider)
    yield telemetry
    OpenAIInstrumentor().uninstrument()


def test_a_call_says_what_it_cost_as_the_ledger_does(costed: Any, wire: Any) -> None:
    wire.json(wire.completion()).client().chat.completions.create(**ASK)
    attributes = costed.attributes()
    assert Decimal(attributes[names.COST_LOCAL]) == row(costed.spans())["cost"]
    assert attributes[names.USAGE_COST_AMOUNT] == float(attributes[names.COST_LOCAL])
    assert attributes[names.USAGE_COST_CURRENCY] == "USD"
    assert attributes[names.USAGE_COST_SOURCE] == "local"


def test_the_processor_does_not_take_it_for_what_the_provider_reported(costed: Any, wire: Any) -> None:
    wire.json(wire.completion()).client().chat.completions.create(**ASK)
    from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans

    table = normalize(decode([encode_spans(costed.spans()).SerializeToString()]), received_ns=2**62).table
    assert table["reported_cost"].to_pylist() == [None]
    assert not set(COST_KEYS) & set(dialects.COSTS)


def test_the_tier_and_the_searches_are_in_it(costed: Any, wire: Any) -> None:
    wire.json(wire.response()).client().responses.create(model="gpt-5-mini", input="hello")
    attributes, ledger = costed.attributes(), row(costed.spans())
    assert ledger["cost_status"] == "priced"
    assert Decimal(attributes[names.COST_LOCAL]) == ledger["cost"]


@pytest.mark.parametrize(
    "body",
    [
        {"model": "no-such-model-7"},
        {"usage": None},
        {"usage": {"prompt_tokens": 10, "prompt_tokens_details": {"cached_tokens": 80}, "completion_tokens": 1}},
        {"usage": {"prompt_tokens": 10}},
    ],
    ids=["unknown model", "no usage", "usage that cannot be right", "one side only"],
)
def test_a_call_that_is_not_priced_whole_has_no_cost(costed: Any, wire: Any, body: Any) -> None:
    model = body.get("model", "gpt-5-mini")
    wire.json(wire.completion(**body)).client().chat.completions.create(**{**ASK, "model": model})
    assert not set(COST_KEYS) & set(costed.attributes())
    assert row(costed.spans())["cost_status"] != "priced"


def test_a_stream_has_its_cost_at_its_end(costed: Any, wire: Any) -> None:
    list(
        wire.stream(wire.completion_chunks())
        .client()
        .chat.completions.create(**ASK, stream=True, stream_options={"include_usage": True})
    )
    assert Decimal(costed.attributes()[names.COST_LOCAL]) == row(costed.spans())["cost"]


def test_a_destructor_does_not_wait_for_prices(costed: Any, wire: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = threading.Event()
    monkeypatch.setattr(LocalCost, "_load", lambda self: loaded.wait())
    try:
        stream = wire.stream(wire.completion_chunks()).client().chat.completions.create(**ASK, stream=True)
        while next(stream).usage is None:
            pass
        began = time.perf_counter()
        del stream
        gc.collect()
        assert time.perf_counter() - began < 3
    finally:
        loaded.set()
    assert costed.attributes()[names.USAGE_INPUT_TOKENS] == 100
    assert names.COST_LOCAL not in costed.attributes()


def test_off_by_default(openai_spans: Any, wire: Any) -> None:
    wire.json(wire.completion()).client().chat.completions.create(**ASK)
    assert not set(COST_KEYS) & set(openai_spans.attributes())


def test_the_users_own_book_comes_first(
    monkeypatch: pytest.MonkeyPatch, telemetry: Any, wire: Any, tmp_path: Path
) -> None:
    book = tmp_path / "prices.yaml"
    book.write_text(
        textwrap.dedent("""
        price_book: {id: mine, version: 1, currency: USD}
        prices:
          - {provider: openai, sku: my-model, meter: tokens.input.uncached, amount: "1", per: 1000000}
          - {provider: openai, sku: my-model, meter: tokens.input.cache_read, amount: "2", per: 1000000}
          - {provider: openai, sku: my-model, meter: tokens.input.cache_write, amount: "3", per: 1000000}
          - {provider: openai, sku: my-model, meter: tokens.output, amount: "4", per: 1000000}
          - {provider: openai, sku: my-model, meter: tokens.output.reasoning, amount: "5", per: 1000000}
        """)
    )
    monkeypatch.setenv("TOLLSPAN_CLIENT_COST", "true")
    monkeypatch.setenv("TOLLSPAN_PRICES", str(book))
    OpenAIInstrumentor().instrument(tracer_provider=telemetry.provider)
    try:
        wire.json(wire.completion(model="my-model")).client().chat.completions.create(**{**ASK, "model": "my-model"})
    finally:
        OpenAIInstrumentor().uninstrument()
    # 10 uncached, 80 read, 10 written, 13 out and 7 of reasoning
    assert telemetry.attributes()[names.COST_LOCAL] == format(
        Decimal(10 * 1 + 80 * 2 + 10 * 3 + 13 * 4 + 7 * 5) / 10**6, ".12f"
    )


def test_a_book_that_cannot_be_read_costs_the_program_nothing(
    monkeypatch: pytest.MonkeyPatch, telemetry: Any, wire: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("TOLLSPAN_CLIENT_COST", "true")
    monkeypatch.setenv("TOLLSPAN_PRICES", str(tmp_path / "not there.yaml"))
    OpenAIInstrumentor().instrument(tracer_provider=telemetry.provider)
    try:
        for _ in range(3):
            wire.json(wire.completion()).client().chat.completions.create(**ASK)
    finally:
        OpenAIInstrumentor().uninstrument()
    assert len(telemetry.spans()) == 3
    assert not [span for span in telemetry.spans() if set(COST_KEYS) & set(span.attributes)]
    assert sum("no prices" in record.message for record in caplog.records) == 1


def test_a_region_of_the_resource_is_in_the_price() -> None:
    exporter = InMemorySpanExporter()
    provider = TracerProvider(resource=Resource({names.RESIDENCY: "eu"}))
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    from tollspan.instrumentation.calls import Call, WrapPoint

    span = provider.get_tracer("t").start_span("chat")
    opened = {names.OPERATION_NAME: "chat", names.PROVIDER_NAME: "openai", names.REQUEST_MODEL: "gpt-5-mini"}
    used = {names.USAGE_INPUT_TOKENS: 100, names.USAGE_OUTPUT_TOKENS: 20, names.RESPONSE_MODEL: "gpt-5-mini"}
    from opentelemetry.context import Context

    call = Call(WrapPoint(target="l:f", request=lambda args, kwargs: None), "k", span, Context(), None)
    call.opened, call.attributes = opened, used
    cost = LocalCost()
    cost.began(call, (), {})
    cost.finish(call)
    span.set_attributes({**opened, **call.attributes})
    span.end()
    ledger = row(exporter.get_finished_spans())
    assert ledger["cost_status"] == "priced"
    assert Decimal(str(call.attributes[names.COST_LOCAL])) == ledger["cost"]


# -- the same meters as the processor ----------------------------------------------------------------------------------


def test_the_tables_are_those_of_the_processor() -> None:
    (dialect,) = (each for each in USAGE if each.name == "opentelemetry")
    assert dialect.convention == OTEL_INCLUSIVE
    assert COUNTS.items() <= {count: places[0] for count, places in dialect.counts.items()}.items()
    assert all(key in dialect.parts[count] for count, key in PARTS.items())
    ours = {*COUNTS.values(), *PARTS.values()}
    assert not any(ours & each.keys for each in USAGE if each is not dialect)
    for selector, keys in SELECTORS.items():
        assert set(keys) <= set(dialects.TEXT[selector].keys)


KEYS = st.sampled_from([*COUNTS.values(), *PARTS.values(), names.usage("web_searches"), names.usage("requests")])


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(KEYS, st.integers(0, 50), max_size=6), st.sampled_from(["chat", "embeddings"]))
def test_whatever_a_span_of_ours_says_both_read_the_same(used: dict[str, int], operation: str) -> None:
    from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans

    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    attributes = {**used, names.OPERATION_NAME: operation}
    provider.get_tracer("t").start_span("chat", attributes=attributes).end()
    payload = encode_spans(exporter.get_finished_spans()).SerializeToString()
    normalized = normalize(decode([payload]), received_ns=2**62)
    columns = normalized.table
    if columns["invalid"][0].as_py() is not None or columns["incomplete"][0].as_py():
        assert quantities(attributes) == {}
    else:
        theirs = {meter: values[0].as_py() for meter, values in normalized.quantities.items()}
        assert quantities(attributes) == {meter: steps for meter, steps in theirs.items() if steps is not None}


def test_nothing_of_pricing_is_loaded_before_a_call_is_made() -> None:
    program = """
    import os, sys
    os.environ["TOLLSPAN_CLIENT_COST"] = "true"
    from tollspan.instrumentation.openai import OpenAIInstrumentor
    OpenAIInstrumentor().instrument()
    loaded = {"tollspan.pricing.engine", "tollspan.pricing.books", "genai_prices", "openai"} & set(sys.modules)
    assert not loaded, loaded
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=True, timeout=60)
