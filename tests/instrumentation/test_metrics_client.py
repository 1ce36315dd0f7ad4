"""Client metrics: what the conventions ask for, of calls sampled or not, and nothing where nobody reads them."""

from __future__ import annotations

import gc
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from opentelemetry.metrics import NoOpMeterProvider
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF

from tollspan.instrumentation import metrics
from tollspan.instrumentation.exits import drop
from tollspan.instrumentation.metrics import DIMENSIONS, INSTRUMENTS, TOKEN_MODALITY, TOKEN_TYPE, ClientMetrics
from tollspan.instrumentation.openai import OpenAIInstrumentor
from tollspan.pricing import attributes as names

ASK: Any = {"model": "gpt-5-mini", "messages": [{"role": "user", "content": "hello"}]}
STREAM: Any = {**ASK, "stream": True, "stream_options": {"include_usage": True}}

SHARED = {
    names.OPERATION_NAME: "chat",
    names.PROVIDER_NAME: "openai",
    names.REQUEST_MODEL: "gpt-5-mini",
    names.RESPONSE_MODEL: "gpt-5-mini-2025-08-07",
    names.SERVER_ADDRESS: "api.openai.com",
    names.SERVER_PORT: 443,
    names.OPENAI_RESPONSE_SERVICE_TIER: "default",
}


class Read:
    """A meter provider, and what it has."""

    def __init__(self) -> None:
        self.reader = InMemoryMetricReader()
        self.provider = MeterProvider([self.reader])

    def points(self) -> dict[str, list[tuple[dict[str, Any], float, int]]]:
        """Name of a metric → its points: attributes, sum, count (1 for a counter)."""
        data = self.reader.get_metrics_data()
        found: dict[str, list[tuple[dict[str, Any], float, int]]] = {}
        for resource in data.resource_metrics if data else ():
            for scope in resource.scope_metrics:
                for metric in scope.metrics:
                    for point in metric.data.data_points:
                        total: Any = point.sum if hasattr(point, "sum") else point.value  # type: ignore[union-attr]
                        row = (dict(point.attributes or {}), total, getattr(point, "count", 1))
                        found.setdefault(metric.name, []).append(row)
        return found


@pytest.fixture
def read() -> Read:
    return Read()


@pytest.fixture
def instrumented(read: Read, telemetry: Any) -> Iterator[Any]:
    OpenAIInstrumentor().instrument(tracer_provider=telemetry.provider, meter_provider=read.provider)
    yield telemetry
    OpenAIInstrumentor().uninstrument()


def test_a_call_is_measured(instrumented: Any, read: Read, wire: Any) -> None:
    wire.json(wire.completion()).client().chat.completions.create(**ASK)
    points = read.points()
    ((attributes, seconds, count),) = points.pop("gen_ai.client.operation.duration")
    assert attributes == SHARED
    assert (0 < seconds < 10, count) == (True, 1)
    assert sorted((each[TOKEN_TYPE], total) for each, total, _ in points.pop("gen_ai.client.token.usage")) == [
        ("input", 100),
        ("output", 20),
    ]
    assert points == {
        "gen_ai.client.inference.usage.input_tokens": [(SHARED, 100, 1)],
        "gen_ai.client.inference.usage.output_tokens": [(SHARED, 20, 1)],
        "gen_ai.client.inference.usage.cache_read.input_tokens": [(SHARED, 80, 1)],
        "gen_ai.client.inference.usage.cache_write.input_tokens": [(SHARED, 10, 1)],
        "gen_ai.client.inference.usage.reasoning.output_tokens": [(SHARED, 7, 1)],
    }


@pytest.mark.parametrize("asked", [False, True])
def test_a_stream_is_measured_and_chunk_by_chunk_where_that_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, read: Read, telemetry: Any, wire: Any, asked: bool
) -> None:
    if asked:
        monkeypatch.setenv("TOLLSPAN_CLIENT_METRICS", "chunks")
    OpenAIInstrumentor().instrument(tracer_provider=telemetry.provider, meter_provider=read.provider)
    try:
        chunks = list(wire.stream(wire.completion_chunks()).client().chat.completions.create(**STREAM))
    finally:
        OpenAIInstrumentor().uninstrument()
    points = read.points()
    flex = {**SHARED, names.OPENAI_RESPONSE_SERVICE_TIER: "flex"}
    ((attributes, first, count),) = points["gen_ai.client.operation.time_to_first_chunk"]
    assert (attributes, count) == (flex, 1)
    ((_, seconds, _),) = points["gen_ai.client.operation.duration"]
    assert first == telemetry.attributes()[names.RESPONSE_TIME_TO_FIRST_CHUNK]
    assert ("gen_ai.client.operation.time_per_output_chunk" in points) is asked
    if asked:
        ((attributes, rest, count),) = points["gen_ai.client.operation.time_per_output_chunk"]
        assert (attributes, count) == (flex, len(chunks) - 1)
        assert first + rest <= seconds


def test_a_failed_call_has_its_error_on_its_duration_and_no_tokens(instrumented: Any, read: Read, wire: Any) -> None:
    with pytest.raises(Exception, match="no: 400"):
        wire.error(400).client().chat.completions.create(**ASK)
    points = read.points()
    assert list(points) == ["gen_ai.client.operation.duration"]
    assert points["gen_ai.client.operation.duration"][0][0][names.ERROR_TYPE] == "openai.BadRequestError"


def test_usage_that_was_not_told_is_not_measured_as_zero(instrumented: Any, read: Read, wire: Any) -> None:
    list(wire.stream(wire.completion_chunks(usage=False)).client().chat.completions.create(**ASK, stream=True))
    assert not [name for name in read.points() if "token" in name and "chunk" not in name]


def test_calls_that_nobody_samples_are_measured_all_the_same(read: Read, telemetry: Any, wire: Any) -> None:
    provider = TracerProvider(sampler=ALWAYS_OFF)
    OpenAIInstrumentor().instrument(tracer_provider=provider, meter_provider=read.provider)
    try:
        client = wire.json(wire.completion()).stream(wire.completion_chunks()).client()
        client.chat.completions.create(**ASK)
        list(client.chat.completions.create(**STREAM))
    finally:
        OpenAIInstrumentor().uninstrument()
    points = read.points()["gen_ai.client.inference.usage.input_tokens"]
    assert [total for _, total, _ in points] == [100, 100]  # one at each tier


def test_what_metrics_are_broken_down_by_has_few_values(instrumented: Any, read: Read, wire: Any) -> None:
    from tollspan.instrumentation import tag

    for number in range(5):
        with tag(tenant=f"t{number}"):
            wire.json(wire.completion(id=f"chatcmpl-{number}")).client().chat.completions.create(**ASK)
    allowed = {*DIMENSIONS, TOKEN_TYPE, TOKEN_MODALITY, names.ERROR_TYPE}
    for points in read.points().values():
        assert len(points) <= 2
        assert all(set(attributes) <= allowed for attributes, _, _ in points)


def test_modalities_are_told_apart_and_add_up(read: Read) -> None:
    ours = ClientMetrics("tests", "1", read.provider)
    assert ours.active()
    ours.record(
        {
            names.OPERATION_NAME: "chat",
            names.USAGE_INPUT_TOKENS: 100,
            names.USAGE_AUDIO_INPUT_TOKENS: 30,
            names.USAGE_IMAGE_INPUT_TOKENS: 20,
            names.USAGE_OUTPUT_TOKENS: 0,
        }
    )
    points = read.points()
    by_modality = {
        attributes.get(TOKEN_MODALITY): total
        for attributes, total, _ in points["gen_ai.client.inference.usage.input_tokens"]
    }
    assert by_modality == {"audio": 30, "image": 20, None: 50}
    assert [total for _, total, _ in points["gen_ai.client.inference.usage.output_tokens"]] == [0]


def test_usage_that_cannot_be_right_and_embeddings(read: Read) -> None:
    ours = ClientMetrics("tests", "1", read.provider)
    assert ours.active()
    ours.record({names.USAGE_INVALID: "usage_inconsistent", names.USAGE_INPUT_TOKENS: 5}, 1.0)
    ours.record({names.OPERATION_NAME: "embeddings", names.USAGE_INPUT_TOKENS: 7})
    points = read.points()
    assert sorted(points) == ["gen_ai.client.operation.duration", "gen_ai.client.token.usage"]
    assert [total for _, total, _ in points["gen_ai.client.token.usage"]] == [7]


def test_a_cost_on_the_span_is_measured(read: Read) -> None:
    ours = ClientMetrics("tests", "1", read.provider)
    assert ours.active()
    ours.record({names.USAGE_COST_AMOUNT: 0.25, names.USAGE_COST_CURRENCY: "USD", names.USAGE_COST_SOURCE: "local"})
    ((attributes, total, _),) = read.points()["gen_ai.client.operation.cost"]
    assert (attributes, total) == ({names.USAGE_COST_CURRENCY: "USD", names.USAGE_COST_SOURCE: "local"}, 0.25)


def test_every_instrument_has_a_name_of_its_own_and_buckets_in_order() -> None:
    assert len({each.name for each in INSTRUMENTS.values()}) == len(INSTRUMENTS)
    for each in INSTRUMENTS.values():
        assert (each.kind == "histogram") == bool(each.bounds)
        assert list(each.bounds) == sorted(set(each.bounds))


@pytest.mark.parametrize("provider", [None, NoOpMeterProvider(), MeterProvider([])])
def test_where_nobody_reads_them_nothing_is_recorded(provider: Any) -> None:
    ours = ClientMetrics("tests", "1", provider)
    assert not ours.active()
    ours.record({names.USAGE_INPUT_TOKENS: 5}, 1.0)


def test_switched_off_there_are_none(monkeypatch: pytest.MonkeyPatch, read: Read, telemetry: Any, wire: Any) -> None:
    monkeypatch.setenv("TOLLSPAN_CLIENT_METRICS", "false")
    OpenAIInstrumentor().instrument(tracer_provider=telemetry.provider, meter_provider=read.provider)
    try:
        wire.json(wire.completion()).client().chat.completions.create(**ASK)
    finally:
        OpenAIInstrumentor().uninstrument()
    assert read.points() == {}
    assert telemetry.attributes()[names.USAGE_INPUT_TOKENS] == 100


def test_a_fault_in_the_metrics_takes_nothing_from_the_span(
    monkeypatch: pytest.MonkeyPatch, read: Read, faulty_telemetry: Any, wire: Any
) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("ours")

    monkeypatch.setattr(metrics, "_record_tokens", broken)
    OpenAIInstrumentor().instrument(tracer_provider=faulty_telemetry.provider, meter_provider=read.provider)
    try:
        assert wire.json(wire.completion()).client().chat.completions.create(**ASK).usage.prompt_tokens == 100
    finally:
        OpenAIInstrumentor().uninstrument()
    assert faulty_telemetry.attributes()[names.USAGE_INPUT_TOKENS] == 100


def test_a_global_provider_that_comes_later_is_taken() -> None:
    program = """
    from opentelemetry import metrics
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader
    from tollspan.instrumentation.metrics import ClientMetrics
    ours = ClientMetrics("tests", "1")
    assert not ours.active()
    reader = InMemoryMetricReader()
    metrics.set_meter_provider(MeterProvider([reader]))
    assert ours.active()
    ours.record({"gen_ai.usage.input_tokens": 7})
    assert reader.get_metrics_data().resource_metrics[0].scope_metrics[0].scope.name == "tests"
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=True, timeout=60)


def test_measured_streams_leave_nothing_behind(instrumented: Any, wire: Any) -> None:
    client = wire.stream(wire.completion_chunks()).client()

    def streams() -> int:
        gc.collect()
        return len(gc.get_objects())

    for _ in range(3):
        list(client.chat.completions.create(**STREAM))
    instrumented.exporter.clear()
    before = streams()
    for _ in range(20):
        list(client.chat.completions.create(**STREAM))
    instrumented.exporter.clear()
    wire.requests.clear()
    assert streams() - before < 200


def test_a_call_that_the_garbage_collector_ends_is_recorded_later_and_takes_no_lock_there(read: Read) -> None:
    meters = ClientMetrics("tests", None, read.provider)

    class Dropped:
        """What holds a call open, and is dropped while this thread is inside the SDK."""

        def abandon(self) -> None:
            meters.finish(call)

    call: Any = SimpleNamespace(opened=SHARED, attributes={}, started=0.0, gaps=None)
    drop(Dropped())
    assert read.points() == {}
    metrics.record_waiting()
    assert [count for _, _, count in read.points()["gen_ai.client.operation.duration"]] == [1]
