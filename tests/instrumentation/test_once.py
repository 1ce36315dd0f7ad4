"""Derived spans: what stands beside a call's span stands beside theirs, and counts once."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import Tracer, TracerProvider
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF

from tollspan.instrumentation import faults, once
from tollspan.instrumentation.calls import Call
from tollspan.instrumentation.openai import OpenAIInstrumentor
from tollspan.instrumentation.switches import COST
from tollspan.pricing import attributes as names

ONCE = once.of("openai")
START = 1_795_200_000 * 10**9
ATTRIBUTES = {names.PROVIDER_NAME: "openai", names.OPERATION_NAME: "chat", names.RESPONSE_MODEL: "gpt-5-mini"}


def fill(call: Call) -> None:
    call.attributes |= {names.USAGE_INPUT_TOKENS: 1000, names.USAGE_OUTPUT_TOKENS: 100}


def emit(key: str = "a", start: int | None = START, **options: Any) -> bool:
    return ONCE.emit(key, "chat gpt-5-mini", {**ATTRIBUTES, **options.pop("more", {})}, fill, start_ns=start, **options)


@pytest.fixture
def metrics() -> InMemoryMetricReader:
    return InMemoryMetricReader()


@pytest.fixture
def instrumented(telemetry: Any, metrics: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setenv(COST, "true")
    ONCE.forget()
    OpenAIInstrumentor().instrument(
        tracer_provider=telemetry.provider, meter_provider=MeterProvider([metrics], shutdown_on_exit=False)
    )
    yield telemetry
    OpenAIInstrumentor().uninstrument()


def recorded(metrics: InMemoryMetricReader) -> dict[str, Any]:
    """Sums, by the name of the metric."""
    data = metrics.get_metrics_data()
    if data is None:
        return {}
    found = (metric for each in data.resource_metrics for scope in each.scope_metrics for metric in scope.metrics)
    return {
        metric.name: sum(getattr(point, "value", None) or getattr(point, "sum", 0) for point in metric.data.data_points)
        for metric in found
    }


def test_a_derived_span_has_its_cost(instrumented: Any) -> None:
    emit(more={names.PROCESSING: "batch"})
    # Half of 1,000 × $0.25 + 100 × $2, by the million.
    assert Decimal(instrumented.attributes()[names.COST_LOCAL]) == Decimal("0.000225")
    assert instrumented.attributes()[names.USAGE_COST_SOURCE] == "local"


def test_a_derived_span_counts_once_in_the_metrics_and_has_no_duration(instrumented: Any, metrics: Any) -> None:
    for _ in range(3):
        emit(repeat=True)
    assert len(instrumented.spans()) == 3
    found = recorded(metrics)
    assert found["gen_ai.client.token.usage"] == 1100
    assert found["gen_ai.client.operation.cost"] == pytest.approx(0.00045)
    assert "gen_ai.client.operation.duration" not in found


def test_metrics_are_recorded_of_spans_that_are_not_sampled(metrics: Any) -> None:
    ONCE.forget()
    OpenAIInstrumentor().instrument(
        tracer_provider=TracerProvider(sampler=ALWAYS_OFF, shutdown_on_exit=False),
        meter_provider=MeterProvider([metrics], shutdown_on_exit=False),
    )
    try:
        emit()
    finally:
        OpenAIInstrumentor().uninstrument()
    assert recorded(metrics)["gen_ai.client.token.usage"] == 1100


def test_a_call_of_which_the_end_was_seen_has_a_duration(instrumented: Any, metrics: Any) -> None:
    ONCE.record("chat gpt-5-mini", ATTRIBUTES, fill, start_ns=time.time_ns() - 10**9)
    assert recorded(metrics)["gen_ai.client.operation.duration"] >= 1
    assert names.COST_LOCAL in instrumented.attributes()


def test_nothing_is_made_while_the_library_is_not_instrumented() -> None:
    assert emit() is False
    assert ONCE.record("chat", ATTRIBUTES, fill) is None


def test_what_has_no_time_begins_with_the_day(instrumented: Any) -> None:
    emit(start=None)
    ONCE.forget()
    emit(start=None)
    first, second = instrumented.spans()
    assert first.start_time % once.DAY == 0
    assert (first.get_span_context(), first.start_time) == (second.get_span_context(), second.start_time)


OTHER_PROCESS = """
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from tollspan.instrumentation import once
exporter, provider = InMemorySpanExporter(), TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(exporter))
once.of("mistral").start(provider)
once.of("mistral").emit("a", "chat", {}, lambda call: None, start_ns=%d)
(span,) = exporter.get_finished_spans()
print(span.context.trace_id, span.context.span_id, span.start_time)
"""


def test_another_process_makes_the_same_span(instrumented: Any) -> None:
    emit()
    span = instrumented.only()
    other = subprocess.run(
        [sys.executable, "-c", OTHER_PROCESS % START], capture_output=True, text=True, timeout=60, check=True
    )
    assert other.stdout.split() == [str(each) for each in (span.context.trace_id, span.context.span_id, START)]


def test_a_fault_in_a_reader_leaves_a_span_that_says_less(faulty_telemetry: Any) -> None:
    def fault(call: Call) -> None:
        raise ValueError

    made, before = once.Once("faulty"), faults().get("once.fill", 0)
    made.start(faulty_telemetry.provider)
    assert made.emit("a", "chat", ATTRIBUTES, fault, start_ns=START)
    assert made.record("chat", ATTRIBUTES, fault) is not None
    assert len(faulty_telemetry.spans()) == 2
    assert faults()["once.fill"] == before + 2


def test_ids_are_derived_also_when_two_threads_come_first_together(
    instrumented: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    start_span = Tracer.start_span

    def overtaken(self: Any, *args: Any, **options: Any) -> Any:
        self.id_generator = once._Derived(RandomIdGenerator())  # the other thread's
        return start_span(self, *args, **options)

    monkeypatch.setattr(Tracer, "start_span", overtaken)
    emit()
    span = instrumented.only()
    assert (span.context.trace_id, span.context.span_id) == once.identity_of("a")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="nothing forks here")
def test_a_child_waits_for_no_thread_of_its_parent() -> None:
    known = once.Remembered()
    with known._lock:
        child = os.fork()
        if child == 0:
            thread = threading.Thread(target=known.add, args=("a",), daemon=True)
            thread.start()
            thread.join(5)
            os._exit(thread.is_alive())
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_what_a_destructor_remembers_meanwhile_does_no_harm() -> None:
    known = once.Remembered(1)

    class Key(str):
        """A string while whose looking up something is dropped."""

        def __hash__(self) -> int:
            known.add("b")
            return super().__hash__()

    adding = threading.Thread(target=known.add, args=(Key("a"),), daemon=True)
    adding.start()
    adding.join(5)
    assert not adding.is_alive()


def test_a_warning_of_the_programs_that_was_shown_is_not_shown_again(instrumented: Any) -> None:
    def warned() -> None:
        warnings.warn("the program's own", UserWarning, stacklevel=1)

    emit()  # the tracer is there
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("default")
        for key in "bcd":
            warned()
            emit(key)
    assert len(shown) == 1


def test_derived_spans_leave_no_cycle(instrumented: Any) -> None:
    gc.collect()
    gc.disable()
    before = sum(type(held) is Call for held in gc.get_objects())
    try:
        emit()
        assert sum(type(held) is Call for held in gc.get_objects()) == before
    finally:
        gc.enable()


def test_ids_are_a_namespaces_own() -> None:
    assert once.identity_of("a", "anthropic") != once.identity_of("a", "openai") != once.identity_of("a")


@pytest.mark.parametrize(
    ("written", "ns"),
    [
        ("2026-11-20T10:00:00Z", 1_795_168_800 * 10**9),
        ("2026-11-20T10:00:00.123456789Z", 1_795_168_800_123_456_000),
        ("2026-11-20T11:00:00.5+01:00", 1_795_168_800_500_000_000),
        ("2026-11-20T10:00:00", None),
        ("soon", None),
    ],
)
def test_a_time_that_is_written(written: str, ns: int | None) -> None:
    assert once.instant(written) == ns
