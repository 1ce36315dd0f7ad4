"""Spans of short calls are made after the call where spans are exported in batches, and nobody can tell."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import StatusCode
from torch import nn

from tollspan.instrumentation import later_spans
from tollspan.instrumentation.later_spans import PENDING, LaterSpan
from tollspan.instrumentation.tags import TagsInstrumentor, tag
from tollspan.instrumentation.torch import TorchInstrumentor
from tollspan.pricing import attributes

CPU = attributes.usage("cpu.seconds")


class Batches:
    """A provider that exports in batches, instrumented."""

    def __init__(self, **options: Any) -> None:
        self.exporter = InMemorySpanExporter()
        self.provider = TracerProvider(shutdown_on_exit=False, **options)
        # So long that only a flush exports.
        self.provider.add_span_processor(BatchSpanProcessor(self.exporter, schedule_delay_millis=3_600_000))
        TorchInstrumentor().instrument(tracer_provider=self.provider)

    def spans(self) -> tuple[ReadableSpan, ...]:
        assert self.provider.force_flush()
        found = self.exporter.get_finished_spans()
        self.exporter.clear()
        return found


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> Iterator[Batches]:
    monkeypatch.setattr(PENDING.resolver, "_threaded", False)  # so that nothing is made but by what a test does
    # An earlier test's thread takes what it finds until it has found nothing.
    while PENDING.resolver._work.is_set():
        time.sleep(0.01)
    time.sleep(0.05)
    made = Batches()
    yield made
    TorchInstrumentor().uninstrument()
    made.provider.shutdown()


class Asking(nn.Module):
    """A model that does something in the midst of its work."""

    def __init__(self, does: Any) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 2)
        self.does = does

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.does()
        return self.linear(x)  # type: ignore[no-any-return]


def asking(does: Any) -> nn.Module:
    return Asking(does).eval()


def test_the_span_is_made_after_the_call_and_says_the_same_as_one_made_at_once(batches: Batches) -> None:
    model, x = asking(lambda: None), torch.ones(3, 4)
    model(x)
    (cold,) = batches.spans()
    assert (cold.attributes or {})[attributes.COLD_START] is True
    with tag(tenant="acme"):
        model(x)
    model(x)
    assert PENDING.held == 2
    later = batches.spans()
    TorchInstrumentor().uninstrument()

    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    TorchInstrumentor().instrument(tracer_provider=provider)
    model(x)  # the first one is a cold start
    exporter.clear()
    with tag(tenant="acme"):
        model(x)
    model(x)
    at_once = exporter.get_finished_spans()

    for one, other in zip(later, at_once, strict=True):
        assert (one.name, one.kind, one.status.status_code) == (other.name, other.kind, other.status.status_code)
        said, told = dict(one.attributes or {}), dict(other.attributes or {})
        assert said.pop(CPU) > 0  # type: ignore[operator]
        assert told.pop(CPU) > 0  # type: ignore[operator]
        assert said == told


def test_the_spans_times_are_the_calls_own(batches: Batches) -> None:
    within: list[int] = []
    model = asking(lambda: within.append(time.time_ns()))
    before = time.time_ns()
    model(torch.ones(1, 4))
    after = time.time_ns()
    time.sleep(0.02)
    (span,) = batches.spans()
    assert span.start_time is not None
    assert span.end_time is not None
    assert before <= span.start_time <= within[0] <= span.end_time <= after


def test_what_runs_inside_is_beneath_it_and_what_it_is_told_is_on_it(batches: Batches) -> None:
    tracer = batches.provider.get_tracer("program")

    def does() -> None:
        with tracer.start_as_current_span("inside"):
            pass
        trace.get_current_span().set_attribute("told", 7)
        assert trace.get_current_span().is_recording()
        assert trace.get_current_span().attributes["told"] == 7  # type: ignore[attr-defined]

    with tracer.start_as_current_span("outside"):
        asking(does)(torch.ones(1, 4))
    by_name = {span.name: span for span in batches.spans()}
    model = by_name["inference Asking"]
    assert by_name["inside"].parent == model.context
    assert model.parent == by_name["outside"].context
    assert (model.attributes or {})["told"] == 7
    assert CPU in (model.attributes or {})


def test_the_context_is_what_it_was_when_the_call_is_over(batches: Batches) -> None:
    kept: list[trace.Span] = []
    before = trace.get_current_span()
    asking(lambda: kept.append(trace.get_current_span()))(torch.ones(1, 4))
    assert trace.get_current_span() is before
    assert isinstance(kept[0], LaterSpan)
    assert not kept[0].is_recording()
    ids = kept[0].get_span_context()
    (span,) = batches.spans()
    assert span.context == ids


def test_an_exception_is_on_the_span_and_passes(batches: Batches) -> None:
    error = ValueError("no " * 1000)

    def does() -> None:
        raise error

    with pytest.raises(ValueError, match="no") as caught:
        asking(does)(torch.ones(1, 4))
    assert caught.value is error
    (span,) = batches.spans()
    assert span.status.status_code is StatusCode.ERROR
    assert span.status.description == str(error)[:512]
    assert (span.attributes or {})[attributes.ERROR_TYPE] == "ValueError"
    assert "" not in (span.attributes or {})


def test_an_unsampled_call_makes_no_span_and_nor_does_what_is_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    batches = Batches(sampler=ALWAYS_OFF)
    try:
        seen: list[bool] = []
        asking(lambda: seen.append(trace.get_current_span().is_recording()))(torch.ones(1, 4))
        assert seen == [False]
        assert batches.spans() == ()
    finally:
        TorchInstrumentor().uninstrument()
        batches.provider.shutdown()


@pytest.mark.parametrize("processor", [SimpleSpanProcessor(InMemorySpanExporter()), SpanProcessor()])
def test_where_a_processor_could_tell_the_span_is_made_at_once(batches: Batches, processor: SpanProcessor) -> None:
    model = asking(lambda: None)
    model(torch.ones(1, 4))
    assert PENDING.held == 1
    batches.provider.add_span_processor(processor)
    model(torch.ones(1, 4))
    assert PENDING.held == 1
    assert len(batches.spans()) == 2


def test_tags_processor_of_ours_does_not_stand_in_the_way(batches: Batches) -> None:
    TagsInstrumentor().instrument(tracer_provider=batches.provider)
    try:
        with tag(team="ranking"):
            asking(lambda: None)(torch.ones(1, 4))
        assert PENDING.held == 1
        (span,) = batches.spans()
        assert (span.attributes or {})[attributes.TAGS["team"]] == "ranking"
    finally:
        TagsInstrumentor().uninstrument()


def test_no_span_is_lost_when_many_wait(batches: Batches) -> None:
    model, x, calls = nn.Identity().eval(), torch.ones(1, 1), 3 * later_spans.MOST_PENDING
    for _ in range(calls):
        model(x)
    assert PENDING.held < calls
    assert len(batches.spans()) == calls


def test_threads_lose_nothing_while_others_flush(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(later_spans, "MOST_PENDING", 16)
    batches = Batches()
    try:
        model, x, calls, threads = nn.Identity().eval(), torch.ones(1, 1), 100, 4

        def work() -> None:
            for _ in range(calls):
                model(x)

        workers = [threading.Thread(target=work) for _ in range(threads)]
        for worker in workers:
            worker.start()
        found = 0
        while any(worker.is_alive() for worker in workers):
            found += len(batches.spans())
        for worker in workers:
            worker.join()
        found += len(batches.spans())
        assert found == calls * threads
    finally:
        TorchInstrumentor().uninstrument()
        batches.provider.shutdown()


def test_runs_of_onnx_runtime_wait_too_beneath_the_module_that_makes_them(batches: Batches) -> None:
    onnx, onnxruntime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    from tollspan.instrumentation.onnxruntime import OnnxRuntimeInstrumentor

    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    x, y = (helper.make_tensor_value_info(name, kind, ["batch", 2]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "relu", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    OnnxRuntimeInstrumentor().instrument(tracer_provider=batches.provider)
    try:
        session = onnxruntime.InferenceSession(model.SerializeToString())
        batches.spans()
        feed = {"x": torch.ones(3, 2).numpy()}
        asking(lambda: session.run(None, feed))(torch.ones(1, 4))
        with pytest.raises(ValueError, match="Required inputs"):
            session.run(None, {})
        assert PENDING.held == 3
        inside, outside, failed = batches.spans()
        assert (inside.name, outside.name) == ("inference relu", "inference Asking")
        assert inside.parent == outside.context
        assert (inside.attributes or {})[attributes.BATCH_SIZE] == 3
        assert (inside.attributes or {})[CPU] > 0  # type: ignore[operator]
        assert (failed.attributes or {})[attributes.ERROR_TYPE] == "ValueError"
        assert failed.status.status_code is StatusCode.ERROR
        assert session.run(None, feed)[0].shape == (3, 2)
    finally:
        OnnxRuntimeInstrumentor().uninstrument()


def test_a_flush_does_not_wait_for_what_comes_meanwhile(batches: Batches) -> None:
    model, x, stop = nn.Identity().eval(), torch.ones(1, 1), threading.Event()

    def work() -> None:
        while not stop.is_set():
            model(x)

    worker = threading.Thread(target=work)
    worker.start()
    try:
        began = time.monotonic()
        assert batches.provider.force_flush()
        assert time.monotonic() - began < 10  # its deadline is half of thirty seconds
    finally:
        stop.set()
        worker.join()


PROGRAM = """
import os, sys, torch
from torch import nn
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter
from tollspan.instrumentation.torch import TorchInstrumentor

say = lambda span: f"{os.getpid()} {span.name} {span.context.span_id} {span.parent and span.parent.span_id}\\n"
provider = TracerProvider()
provider.add_span_processor(BatchSpanProcessor(ConsoleSpanExporter(formatter=say)))
TorchInstrumentor().instrument(tracer_provider=provider)
"""


def lines(program: str) -> list[list[str]]:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM + textwrap.dedent(program)],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [line.rsplit(" ", 4) for line in done.stdout.splitlines()]


def test_spans_of_a_program_that_ends_are_exported() -> None:
    found = lines("""
        for _ in range(5):
            nn.Identity().eval()(torch.ones(1, 1))
    """)
    assert len(found) == 5


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_exports_its_own_and_those_beneath_the_parents() -> None:
    found = lines("""
        class Forking(nn.Module):
            def forward(self, x):
                if os.fork() == 0:
                    with provider.get_tracer("program").start_as_current_span("child"):
                        pass
                    provider.force_flush()
                    os._exit(0)
                os.wait()
                return x

        nn.Identity().eval()(torch.ones(1, 1))
        Forking().eval()(torch.ones(1, 1))
    """)
    names = sorted(" ".join(line[1:-2]) for line in found)
    assert names == ["child", "inference Forking", "inference Identity"]
    by_name = {" ".join(line[1:-2]): line for line in found}
    assert by_name["child"][0] != by_name["inference Forking"][0] == by_name["inference Identity"][0]
    assert by_name["child"][-1] == by_name["inference Forking"][-2]
