"""`keep_trace` and `drop_trace`: the mark is on the trace, wherever they are called."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
from opentelemetry import context, trace
from opentelemetry.instrumentation.threading import ThreadingInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF

from tollspan.instrumentation import TollspanSampler, drop_trace, guard, keep, keep_trace, tag
from tollspan.pricing.attributes import SAMPLING_KEEP, SAMPLING_NOTE

from .conftest import Telemetry


@pytest.fixture
def marked(telemetry: Telemetry, monkeypatch: pytest.MonkeyPatch) -> Telemetry:
    """Spans of the global provider as well, which marks of their own go to."""
    monkeypatch.setattr(trace, "get_tracer", lambda scope, *_: telemetry.provider.get_tracer(scope))
    return telemetry


def test_the_current_span_bears_the_mark(telemetry: Telemetry) -> None:
    tracer = telemetry.provider.get_tracer("x")
    with tracer.start_as_current_span("outer"), tracer.start_as_current_span("inner"):
        assert keep_trace("because " + "x" * 1000) is True
    inner, outer = (dict(span.attributes or {}) for span in telemetry.spans())
    assert inner[SAMPLING_KEEP] is True
    assert len(inner[SAMPLING_NOTE]) == keep.LONGEST_NOTE
    assert outer == {}


def test_a_mark_without_a_reason_has_no_note(telemetry: Telemetry) -> None:
    with telemetry.provider.get_tracer("x").start_as_current_span("s"):
        drop_trace()
    assert telemetry.attributes() == {SAMPLING_KEEP: False}


def test_to_keep_outweighs_to_drop(telemetry: Telemetry) -> None:
    tracer = telemetry.provider.get_tracer("x")
    for order in ((keep_trace, drop_trace), (drop_trace, keep_trace)):
        with tracer.start_as_current_span("s"):
            for mark in order:
                mark()
    assert [dict(span.attributes or {}) for span in telemetry.spans()] == [{SAMPLING_KEEP: True}] * 2


def test_outside_of_every_trace_nothing_happens(telemetry: Telemetry) -> None:
    assert keep_trace("why") is False
    assert drop_trace() is False
    assert telemetry.spans() == []


def test_threads_and_tasks_mark_the_trace_that_they_work_for(telemetry: Telemetry) -> None:
    ThreadingInstrumentor().instrument()
    try:
        with telemetry.provider.get_tracer("x").start_as_current_span("s"), tag(tenant="acme"):
            thread = threading.Thread(target=keep_trace, args=("in a thread",))
            thread.start()
            thread.join()

        async def work() -> None:
            await asyncio.gather(asyncio.to_thread(keep_trace, "in a task"))

        with telemetry.provider.get_tracer("x").start_as_current_span("s"):
            asyncio.run(work())
    finally:
        ThreadingInstrumentor().uninstrument()
    assert [(span.attributes or {})[SAMPLING_NOTE] for span in telemetry.spans()] == ["in a thread", "in a task"]


def test_after_the_span_has_ended_a_span_of_its_own_bears_the_mark(marked: Telemetry) -> None:
    """A task that outlives the request it was started in."""
    with marked.provider.get_tracer("x").start_as_current_span("GET /") as root:
        inside = context.get_current()
    token = context.attach(inside)
    try:
        assert keep_trace("the task failed")
    finally:
        context.detach(token)
    _, mark = marked.spans()
    assert mark.name == "keep_trace"
    assert mark.attributes == {SAMPLING_KEEP: True, SAMPLING_NOTE: "the task failed"}
    assert mark.parent is not None
    assert mark.parent.span_id == root.get_span_context().span_id


def test_a_request_that_is_not_sampled_leaves_at_least_the_mark(monkeypatch: pytest.MonkeyPatch) -> None:
    exporter = InMemorySpanExporter()
    provider = TracerProvider(sampler=TollspanSampler(0.0), shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "get_tracer", lambda scope, *_: provider.get_tracer(scope))
    before = context.get_current()
    with provider.get_tracer("x").start_as_current_span("GET /") as dropped:
        assert not dropped.is_recording()
        assert keep_trace("slow")
    assert context.get_current() == before, "nothing stays attached"
    (mark,) = exporter.get_finished_spans()
    assert mark.name == "keep_trace"
    assert mark.attributes is not None
    assert mark.attributes[SAMPLING_NOTE] == "slow"
    assert mark.context.trace_id == dropped.get_span_context().trace_id


def test_where_another_sampler_drops_the_trace_there_is_nothing_to_keep(monkeypatch: pytest.MonkeyPatch) -> None:
    provider = TracerProvider(sampler=ALWAYS_OFF, shutdown_on_exit=False)
    monkeypatch.setattr(trace, "get_tracer", lambda scope, *_: provider.get_tracer(scope))
    with provider.get_tracer("x").start_as_current_span("GET /"):
        assert keep_trace()
        assert drop_trace()


def test_marks_are_bounded() -> None:
    keep._marks.clear()
    for number in range(keep.MOST + 10):
        keep.remember(number + 1, number % 2 == 0)
    assert len(keep._marks) == keep.MOST
    assert keep.asked_for(keep.MOST + 9, None)
    assert not keep.asked_for(1, None), "the oldest is forgotten first"
    keep._marks.clear()


def test_a_fault_of_ours_is_none_of_the_program_s(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(trace.NonRecordingSpan):
        def is_recording(self) -> bool:
            raise RuntimeError("broken")

    span: Any = Broken(trace.SpanContext(1, 2, False, trace.TraceFlags(1)))
    before = guard.faults().get("keep.mark", 0)
    with trace.use_span(span):
        assert keep_trace() is False
    assert guard.faults()["keep.mark"] == before + 1
