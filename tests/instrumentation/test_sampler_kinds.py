"""Every kind of span that our own instrumentations make tells its usage in a request that is not sampled."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from tollspan.instrumentation import TollspanSampler, cache_lookup, faults, feature_read, observe, once
from tollspan.instrumentation.capacity import CapacityInstrumentor
from tollspan.instrumentation.onnxruntime import OnnxRuntimeInstrumentor
from tollspan.instrumentation.torch import TorchInstrumentor
from tollspan.pricing import attributes as names

from .test_onnxruntime import model_bytes

Told = Mapping[str, Any]


class Unsampled:
    """A global provider that exports in batches and samples nothing."""

    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()
        self.provider = TracerProvider(sampler=TollspanSampler(0.0), shutdown_on_exit=False)
        self.provider.add_span_processor(BatchSpanProcessor(self.exporter, schedule_delay_millis=3_600_000))

    def told(self, request: Callable[[], object]) -> list[Told]:
        """Attributes of what is sent of a request, in the order in which it began: some spans are made afterwards."""
        with self.provider.get_tracer("program").start_as_current_span("GET /"):
            request()
        assert self.provider.force_flush()
        spans = sorted(self.exporter.get_finished_spans(), key=lambda span: span.start_time or 0)
        sent = [dict(span.attributes or {}) for span in spans]
        self.exporter.clear()
        assert all(each.pop(names.SLIM) is True for each in sent)
        return sent


@pytest.fixture
def unsampled(monkeypatch: pytest.MonkeyPatch) -> Iterator[Unsampled]:
    made, before = Unsampled(), faults()
    monkeypatch.setattr("opentelemetry.trace._TRACER_PROVIDER", made.provider)
    yield made
    made.provider.shutdown()
    assert faults() == before


def test_a_model_of_torch_and_a_block_that_observes(unsampled: Unsampled) -> None:
    torch = pytest.importorskip("torch")
    TorchInstrumentor().instrument(tracer_provider=unsampled.provider)
    try:
        model = torch.nn.Linear(4, 2).eval()

        def request() -> None:
            with torch.no_grad():
                model(torch.ones(3, 4))
            with observe("ranker"), torch.no_grad():
                model(torch.ones(1, 4))

        first, second = unsampled.told(request)
    finally:
        TorchInstrumentor().uninstrument()
    for told in (first, second):
        assert told[names.OPERATION] == names.OPERATION_INFERENCE
        assert told[names.usage("cpu.seconds")] > 0
        assert names.MODEL_DTYPE not in told, "nobody needs it for the price"
    assert first[names.BATCH_SIZE] == 3


def test_what_a_model_asks_for_stands_beneath_it(unsampled: Unsampled) -> None:
    """Its own span is made after the call, and the program's between them is dropped."""
    torch = pytest.importorskip("torch")

    class Asking(torch.nn.Module):
        def forward(self, x: Any) -> Any:
            with trace.get_tracer("program").start_as_current_span("fetch"), feature_read(store="redis", features=1):
                return x

    TorchInstrumentor().instrument(tracer_provider=unsampled.provider)
    try:
        Asking().eval()(torch.ones(1))
        assert unsampled.provider.force_flush()
    finally:
        TorchInstrumentor().uninstrument()
    sent = {(span.attributes or {})[names.OPERATION]: span for span in unsampled.exporter.get_finished_spans()}
    read, model = sent[names.OPERATION_FEATURE_READ], sent[names.OPERATION_INFERENCE]
    assert read.parent is not None
    assert read.parent.span_id == model.context.span_id


def test_a_session_of_onnx_runtime(unsampled: Unsampled, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    (tmp_path / "intent.onnx").write_bytes(model_bytes())
    OnnxRuntimeInstrumentor().instrument(tracer_provider=unsampled.provider)
    try:

        def request() -> None:
            session = onnxruntime.InferenceSession(tmp_path / "intent.onnx", providers=["CPUExecutionProvider"])
            session.run(None, {"x": np.ones((2, 4), np.float32)})

        load, run = unsampled.told(request)
    finally:
        OnnxRuntimeInstrumentor().uninstrument()
    assert load[names.OPERATION] == names.OPERATION_MODEL_LOAD
    assert load[names.usage("storage.read.bytes")] > 0
    assert run[names.usage("cpu.seconds")] > 0
    assert run[names.COLD_START] is True


def test_reads_of_features_and_no_lookups_in_caches(unsampled: Unsampled) -> None:
    def request() -> None:
        with feature_read(store="redis", view="profiles", features=3) as read:
            read.rows = 2
        with cache_lookup(cache="answers"):
            pass

    (told,) = unsampled.told(request)
    assert told[names.usage("feature.reads")] == 6
    assert told[names.MODEL] == "profiles"


def test_what_is_told_later_than_it_was_asked_for(unsampled: Unsampled) -> None:
    results = once.of("openai")
    results.start(unsampled.provider)
    try:
        about = {names.OPERATION_NAME: "chat", names.PROVIDER_NAME: "openai", names.REQUEST_MODEL: "gpt-5-mini"}

        def fill(call: Any) -> None:
            call.attributes[names.USAGE_INPUT_TOKENS] = 1000

        (told,) = unsampled.told(lambda: results.emit("batch_1/2", "chat", about, fill, start_ns=10**18))
    finally:
        results.stop()
        results.forget()
    assert told == {**about, names.USAGE_INPUT_TOKENS: 1000}


def test_minutes_of_capacity(unsampled: Unsampled, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOLLSPAN_CAPACITY", "cpu")
    CapacityInstrumentor().instrument(tracer_provider=unsampled.provider)
    try:
        sum(range(200_000))
    finally:
        CapacityInstrumentor().uninstrument()
    told = unsampled.told(lambda: None)
    assert told
    assert {each[names.OPERATION] for each in told} == {names.OPERATION_CAPACITY}
    assert all(names.usage("cpu.idle_seconds") in each for each in told)


def test_usage_that_a_program_puts_on_a_span_of_its_own_at_its_start(unsampled: Unsampled) -> None:
    tracer = trace.get_tracer("program")
    about = {names.usage("web_searches"): 2, "my.own": "x"}
    assert unsampled.told(lambda: tracer.start_span("search", attributes=about).end()) == [
        {names.usage("web_searches"): 2}
    ]


PROGRAMS = {
    "a proxy's tracer, taken before there is a provider": """
        early = trace.get_tracer("early")
        trace.set_tracer_provider(provider)
        early.start_span("chat", attributes=CALL).end()
        sys.exit(3)
    """,
    "a forked child that ends by itself, and its parent": """
        trace.set_tracer_provider(provider)
        tracer = trace.get_tracer("x")
        pid = os.fork()
        tracer.start_span("chat", attributes=CALL).end()
        if pid == 0:
            sys.exit(3)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 3
        sys.exit(3)
    """,
    "a thread that still works when the program ends": """
        trace.set_tracer_provider(provider)
        def work():
            time.sleep(0.3)
            trace.get_tracer("x").start_span("chat", attributes=CALL).end()
        threading.Thread(target=work).start()
        sys.exit(3)
    """,
    "spawned processes": """
        def work():
            trace.set_tracer_provider(made())
            trace.get_tracer("x").start_span("chat", attributes=CALL).end()
            trace.get_tracer_provider().force_flush()
        import multiprocessing
        context = multiprocessing.get_context("fork")
        children = [context.Process(target=work) for _ in range(2)]
        for child in children:
            child.start()
        for child in children:
            child.join()
        sys.exit(3)
    """,
}
COUNTS = dict(zip(PROGRAMS, (1, 2, 1, 2), strict=True))

BEGINNING = """
    import os, sys, threading, time
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter
    from tollspan.instrumentation import TollspanSampler

    CALL = {"gen_ai.operation.name": "chat", "gen_ai.request.model": "gpt-5-mini"}

    def made():
        provider = TracerProvider(sampler=TollspanSampler(0.0))
        provider.add_span_processor(BatchSpanProcessor(ConsoleSpanExporter()))
        return provider

    provider = made()
"""


@pytest.mark.parametrize("program", PROGRAMS)
def test_nothing_is_lost_at_the_end_of(program: str, tmp_path: Path) -> None:
    script = tmp_path / "program.py"
    script.write_text(textwrap.dedent(BEGINNING) + textwrap.dedent(PROGRAMS[program]))
    environment = {key: value for key, value in os.environ.items() if not key.startswith("OTEL_")}
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=100, check=False, env=environment
    )
    assert done.returncode == 3, done.stderr
    assert done.stderr == ""
    assert done.stdout.count('"tollspan.slim": true') == COUNTS[program]
