"""Compilers, exporters, copies and parallel wrappers treat an instrumented model exactly as a plain one."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from opentelemetry.instrumentation.utils import suppress_instrumentation
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from torch import nn

from tollspan.instrumentation.torch import TorchInstrumentor
from tollspan.pricing import attributes

Spans = Callable[[], Sequence[ReadableSpan]]


class Ranker(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x)


@pytest.fixture
def provider() -> TracerProvider:
    return TracerProvider()


@pytest.fixture
def spans(provider: TracerProvider) -> Iterator[Spans]:
    exporter = InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    instrumentor = TorchInstrumentor()
    instrumentor.instrument(tracer_provider=provider)
    yield exporter.get_finished_spans
    if instrumentor.is_instrumented_by_opentelemetry:
        instrumentor.uninstrument()


def ranker() -> Ranker:
    return Ranker().eval()


def unseen(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """What the model answers, without a span."""
    with suppress_instrumentation():
        return model(x)


def attribute(span: ReadableSpan, name: str) -> object:
    return (span.attributes or {}).get(name)


def run_python(program: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def dynamo() -> Iterator[object]:
    import torch._dynamo

    torch._dynamo.reset()
    yield torch._dynamo
    torch._dynamo.reset()


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_compiled_model_is_one_graph_and_one_span_under_the_models_name(
    spans: Spans, dynamo: object, backend: str
) -> None:
    model = ranker()
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    expected = unseen(model, torch.ones(2, 4))
    assert torch.equal(compiled(torch.ones(2, 4)), expected)
    assert torch.equal(compiled(torch.ones(2, 4)), expected)

    assert [span.name for span in spans()] == ["inference Ranker"] * 2
    assert [attribute(span, attributes.COLD_START) for span in spans()] == [True, None]
    explained = torch._dynamo.explain(model)(torch.ones(2, 4))
    assert (explained.graph_count, explained.graph_break_count) == (1, 0)


def test_module_compile_in_place(spans: Spans, dynamo: object) -> None:
    model = ranker()
    model.compile(backend="eager", fullgraph=True)
    assert model(torch.ones(2, 4)).shape == (2, 1)
    assert [span.name for span in spans()] == ["inference Ranker"]


def compiled_frames(count: int) -> tuple[int, int]:
    """Frames compiled for ``count`` models of different classes, and for as many equal blocks inside one model."""
    from torch._dynamo.testing import CompileCounter

    different, equal = CompileCounter(), CompileCounter()
    for i in range(count):
        scale = float(i)
        model = type(f"Model{i}", (nn.Module,), {"forward": eval(f"lambda self, x: x * {scale} + x.sum()")})()
        torch.compile(model.eval(), backend=different, fullgraph=True)(torch.ones(2, 2))
    blocks = nn.Sequential(*(torch.compile(Ranker().body, backend=equal) for _ in range(count))).eval()
    with torch.no_grad():
        for block in blocks:
            block(torch.ones(2, 4))
    return different.frame_count, equal.frame_count


def test_compiled_models_do_not_share_one_recompile_limit(spans: Spans, dynamo: object) -> None:
    settings: Any = torch._dynamo.config  # before torch 2.7 by another name
    count = (settings.recompile_limit if hasattr(settings, "recompile_limit") else settings.cache_size_limit) + 4
    frames = compiled_frames(count)
    TorchInstrumentor().uninstrument()
    torch._dynamo.reset()
    assert frames == compiled_frames(count)
    assert frames[0] == count


class Breaking(Ranker):
    """A model that a tracer cannot take in whole, so that its call is made from within a compiled region."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.body(x)
        torch._dynamo.graph_break()
        return x.relu()


def test_a_model_called_within_a_compiled_region_is_compiled_as_without_us(spans: Spans, dynamo: object) -> None:
    from torch._dynamo.testing import CompileCounter

    model, x = Breaking().eval(), torch.ones(2, 4)

    def compile_and_run() -> int:
        counter = CompileCounter()
        torch._dynamo.reset()
        with torch.no_grad():
            assert torch.equal(torch.compile(lambda x: model(x) + 1, backend=counter)(x), unseen(model, x) + 1)
        return counter.frame_count

    frames = compile_and_run()
    assert spans() == ()  # what is called within a compiled region cannot be seen, and is left alone
    TorchInstrumentor().uninstrument()
    assert frames == compile_and_run()


@pytest.mark.parametrize("order", ["before", "after"])
def test_compile_and_strict_export_whether_dynamo_comes_before_or_after_us(order: str) -> None:
    """The tracer captures ``nn.Module.__call__`` at its own import, so both orders need a process of their own."""
    program = f"""
        import torch
        from torch import nn
        if {order!r} == "before":
            import torch._dynamo
        from tollspan.instrumentation.torch import TorchInstrumentor
        TorchInstrumentor().instrument()
        from torch._dynamo.testing import CompileCounter
        counter = CompileCounter()
        model = nn.Sequential(nn.Linear(2, 2), nn.ReLU()).eval()
        torch.compile(model, backend=counter, fullgraph=True)(torch.ones(1, 2))
        block = torch.compile(nn.Sequential(nn.Linear(2, 2)).eval(), backend=counter)
        block(torch.ones(1, 2)), nn.Sequential(block).eval()(torch.ones(1, 2))
        assert counter.frame_count == 2, counter.frame_count
        # A compiled function that is called both inside and outside an outermost call is still one graph.
        answers = CompileCounter()
        answer = torch.compile(lambda x: model(x) + 1, backend=answers, fullgraph=True)
        answer(torch.ones(1, 2))
        outer = type("Outer", (nn.Module,), {{"forward": lambda self, x: answer(x)}})
        outer().eval()(torch.ones(1, 2))
        assert answers.frame_count == 1, answers.frame_count
        exported = torch.export.export(model, (torch.ones(1, 2),), strict=True)
        assert not any("tollspan" in str(node.target) for node in exported.graph.nodes)
        print("done")
    """
    assert run_python(program).strip() == "done"


@pytest.mark.parametrize("strict", [True, False])
def test_export_sees_only_the_model(spans: Spans, dynamo: object, strict: bool) -> None:
    model = ranker()
    exported = torch.export.export(model, (torch.ones(2, 4),), strict=strict)
    assert spans() == ()
    TorchInstrumentor().uninstrument()
    plain = torch.export.export(model, (torch.ones(2, 4),), strict=strict)
    assert [node.name for node in exported.graph.nodes] == [node.name for node in plain.graph.nodes]


def test_tracing_scripting_and_symbolic_tracing_make_no_span_and_their_models_do(spans: Spans) -> None:
    model, x = ranker(), torch.ones(2, 4)
    traced = torch.jit.trace(model, x, check_trace=False)  # the check runs the model in earnest
    scripted, symbolic = torch.jit.script(model), torch.fx.symbolic_trace(model)
    assert spans() == ()
    for made in (traced, scripted, symbolic):
        assert torch.equal(made(x), unseen(model, x))
    assert [span.name for span in spans()] == ["inference Ranker"] * 3
    assert {attribute(span, attributes.DEVICE_TYPE) for span in spans()} == {"cpu"}


def test_pickle_and_deepcopy_carry_nothing_of_ours(spans: Spans) -> None:
    model = ranker()
    before = set(model.__dict__)
    model(torch.ones(1, 4))
    assert set(model.__dict__) == before
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(torch.ones(1, 4)), unseen(model, torch.ones(1, 4)))
    assert len(spans()) == 3


def test_functional_call_and_vmap(spans: Spans) -> None:
    model, x = ranker(), torch.ones(5, 4)
    weights = dict(model.named_parameters())
    out = torch.vmap(lambda row: torch.func.functional_call(model, weights, (row,)))(x)
    assert torch.allclose(out, unseen(model, x))
    assert len(spans()) == 1


def test_a_checkpoints_recomputation_is_not_a_second_inference(provider: TracerProvider) -> None:
    from torch.utils.checkpoint import checkpoint

    exporter = InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    TorchInstrumentor().instrument(tracer_provider=provider, training=True)
    try:
        calls: list[int] = []
        model = Ranker()
        model.register_forward_pre_hook(lambda *_: calls.append(1))
        checkpoint(model, torch.ones(2, 4, requires_grad=True), use_reentrant=False).sum().backward()
    finally:
        TorchInstrumentor().uninstrument()
    assert len(calls) == 2  # it was computed twice
    assert len(exporter.get_finished_spans()) == 1


def test_a_replica_of_data_parallel_is_not_an_inference_of_its_own(spans: Spans) -> None:
    replica = nn.Identity().eval()._replicate_for_data_parallel()
    thread = threading.Thread(target=replica, args=(torch.ones(1, 4),))  # where it looks outermost
    thread.start()
    thread.join()
    assert spans() == ()
    nn.DataParallel(ranker()).eval()(torch.ones(2, 4))
    assert [span.name for span in spans()] == ["inference Ranker"]


def test_distributed_data_parallel_is_named_after_its_model(spans: Spans, tmp_path: os.PathLike[str]) -> None:
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        nn.parallel.DistributedDataParallel(Ranker()).eval()(torch.ones(2, 4))
    finally:
        dist.destroy_process_group()
    (span,) = spans()
    assert span.name == "inference Ranker"
    assert attribute(span, attributes.DEVICE_TYPE) == "cpu"
