"""Promises of the PyTorch instrumentation: one true span for the outermost module call, and an untouched program."""

from __future__ import annotations

import gc
import subprocess
import sys
import textwrap
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence

import pytest
import torch
from opentelemetry import trace
from opentelemetry.instrumentation.utils import suppress_instrumentation
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import SpanKind, StatusCode
from torch import nn

from tollspan.instrumentation.device_clock import DeviceClock, unmeasured
from tollspan.instrumentation.tags import tag
from tollspan.instrumentation.torch import TRAINING_ENV, TorchInstrumentor
from tollspan.instrumentation.torch_execution import Places
from tollspan.instrumentation.torch_models import Models
from tollspan.pricing import attributes

ORIGINAL_CALL = nn.Module.__dict__["__call__"]


class Ranker(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x)


class Failing(nn.Module):
    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error = error

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise self.error


class Calling(nn.Module):
    """Runs a function of the test's inside ``forward``."""

    def __init__(self, function: Callable[[], object]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: object, **kwargs: object) -> object:
        return self.function()


Spans = Callable[[], Sequence[ReadableSpan]]


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


def attribute(span: ReadableSpan, name: str) -> object:
    return (span.attributes or {}).get(name)


# -- what the span says ------------------------------------------------------------------------------------------------


def test_the_outermost_call_is_one_span_with_all_that_is_known(spans: Spans) -> None:
    result = ranker()(torch.ones(3, 4))

    assert result.shape == (3, 1)
    (span,) = spans()
    assert span.name == "inference Ranker"
    assert span.kind is SpanKind.INTERNAL
    assert span.status.status_code is StatusCode.UNSET
    values = dict(span.attributes or {})
    cpu_seconds = values.pop("tollspan.usage.cpu.seconds")
    assert isinstance(cpu_seconds, float)
    assert cpu_seconds > 0
    assert round(cpu_seconds * 1e9) / 1e9 == cpu_seconds  # whole nanoseconds
    values.pop(attributes.COLD_START_SECONDS, None)  # where no other test of this process came before
    assert values == {
        attributes.OPERATION: "inference",
        attributes.PROVIDER: "pytorch",
        attributes.MODEL: "Ranker",
        attributes.MODEL_DTYPE: "float32",
        attributes.DEVICE_TYPE: "cpu",
        attributes.BATCH_SIZE: 3,
        attributes.COLD_START: True,
        attributes.CPU_TIME_SOURCE: "process",
    }


def test_the_span_is_current_inside_the_call_and_not_after_it(spans: Spans, provider: TracerProvider) -> None:
    seen: list[trace.Span] = []
    before = trace.get_current_span()
    Calling(lambda: seen.append(trace.get_current_span())).eval()(torch.ones(1, 1))

    (span,) = spans()
    assert seen[0].get_span_context() == span.context
    assert trace.get_current_span() is before


def test_only_the_first_call_of_an_instance_is_cold(spans: Spans) -> None:
    model = ranker()
    for _ in range(3):
        model(torch.ones(2, 4))
    ranker()(torch.ones(2, 4))

    assert [attribute(span, attributes.COLD_START) for span in spans()] == [True, None, None, True]


@pytest.mark.parametrize(
    ("args", "kwargs", "batch"),
    [
        ((torch.ones(5, 2),), {}, 5),
        ((), {"pixels": torch.ones(6, 2, 2)}, 6),
        (("text", torch.ones(7, 1), torch.ones(9, 1)), {}, 7),
        (({"input_ids": torch.ones(8, 3)},), {}, 8),
        ((torch.ones(4),), {}, None),  # one item, or four?
        ((torch.tensor(1.0),), {}, None),
        (([torch.ones(2, 2), torch.ones(3, 2)],), {}, None),
        ((), {}, None),
    ],
)
def test_batch_size_is_the_first_tensors_and_absent_when_unclear(
    spans: Spans, args: tuple[object, ...], kwargs: dict[str, object], batch: int | None
) -> None:
    Calling(lambda: None).eval()(*args, **kwargs)
    (span,) = spans()
    assert attribute(span, attributes.BATCH_SIZE) == batch


def test_the_device_follows_the_model_and_is_absent_where_nothing_tells(spans: Spans) -> None:
    model = ranker()
    model(torch.ones(2, 4))
    model.to("meta")(torch.ones(2, 4, device="meta"))
    Calling(lambda: None).eval()(torch.ones(2, 2))  # no parameters: the input's
    Calling(lambda: None).eval()()

    assert [attribute(span, attributes.DEVICE_TYPE) for span in spans()] == ["cpu", "meta", "cpu", None]


def test_token_ids_have_a_length_and_nothing_else_has(spans: Spans) -> None:
    ids = torch.ones(2, 7, dtype=torch.long)
    Calling(lambda: None).eval()(input_ids=ids)
    Calling(lambda: None).eval()({"input_ids": ids})
    Calling(lambda: None).eval()(ids)
    assert [attribute(span, attributes.SEQUENCE_LENGTH) for span in spans()] == [7, 7, None]


def test_the_type_of_the_numbers_follows_the_model(spans: Spans) -> None:
    model = ranker()
    model(torch.ones(2, 4))
    model.to(torch.bfloat16)(torch.ones(2, 4, dtype=torch.bfloat16))
    assert [attribute(span, attributes.MODEL_DTYPE) for span in spans()] == ["float32", "bfloat16"]


@pytest.mark.parametrize(
    ("loaded", "name"),
    [
        ("acme/ranker-7b", "acme/ranker-7b"),
        ("/models/secret/ranker", "ranker"),
        ("./ranker/", "ranker"),
        ("", "Ranker"),
    ],
)
def test_a_model_of_transformers_has_the_name_it_was_loaded_by(spans: Spans, loaded: str, name: str) -> None:
    model = ranker()
    model.config = type("Config", (), {"_name_or_path": loaded})()
    model(torch.ones(1, 4))
    assert attribute(spans()[0], attributes.MODEL) == name


def test_a_model_on_several_devices_is_where_the_accelerators_are() -> None:
    asked = []

    def clock(devices: Sequence[torch.device]) -> DeviceClock:
        asked.append([str(device) for device in devices])
        return unmeasured()

    places = Places(lambda device_type, index: {attributes.DEVICE_NAME: f"{device_type} {index}"}, clock)
    devices = tuple(torch.device(name) for name in ("cpu", "cuda:1", "cuda:0", "meta"))
    place = places.of(devices)
    assert places.of(devices) is place
    assert place.attributes == {attributes.DEVICE_TYPE: "cuda", attributes.DEVICE_NAME: "cuda 1"}
    assert asked == [["cuda:1", "cuda:0"]]


def test_a_model_that_is_moved_in_parts_is_found_on_all_its_devices() -> None:
    model = ranker()
    note = Models().of(model)
    before = note.devices()
    assert note.devices() is before
    model.body[0].to("meta")
    assert [str(device) for device in note.devices()] == ["meta", "cpu"]


def test_tags_are_on_the_span(spans: Spans) -> None:
    with tag(tenant="acme", feature="search"):
        ranker()(torch.ones(1, 4))
    (span,) = spans()
    assert attribute(span, attributes.TENANT) == "acme"
    assert attribute(span, attributes.FEATURE) == "search"


def test_overlapping_calls_report_their_own_threads_time(spans: Spans) -> None:
    both_inside = threading.Barrier(2, timeout=30)
    threads = [
        threading.Thread(target=Calling(both_inside.wait).eval(), args=(torch.ones(1, 1),), name=f"call-{i}")
        for i in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ranker()(torch.ones(1, 4))

    assert [attribute(span, attributes.CPU_TIME_SOURCE) for span in spans()] == ["thread", "thread", "process"]


def test_threads_have_an_outermost_call_each(spans: Spans) -> None:
    model = ranker()
    threads = [threading.Thread(target=model, args=(torch.ones(2, 4),)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [span.name for span in spans()] == ["inference Ranker"] * 8
    assert sum(attribute(span, attributes.COLD_START) is True for span in spans()) == 1


# -- what is left alone ------------------------------------------------------------------------------------------------


def test_training_steps_are_left_alone_and_inference_with_a_training_module_is_not(spans: Spans) -> None:
    model = Ranker()
    model(torch.ones(2, 4)).sum().backward()
    assert spans() == ()
    with torch.no_grad():
        model(torch.ones(2, 4))
    assert len(spans()) == 1


@pytest.mark.parametrize("by", ["option", "environment"])
def test_training_steps_are_seen_when_asked_for(
    by: str, provider: TracerProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    exporter = InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    if by == "environment":
        monkeypatch.setenv(TRAINING_ENV, "true")
    TorchInstrumentor().instrument(tracer_provider=provider, **({"training": True} if by == "option" else {}))
    try:
        Ranker()(torch.ones(2, 4)).sum().backward()
    finally:
        TorchInstrumentor().uninstrument()
    assert len(exporter.get_finished_spans()) == 1


def test_suppressed_instrumentation_makes_no_span(spans: Spans) -> None:
    with suppress_instrumentation():
        ranker()(torch.ones(1, 4))
    assert spans() == ()


def test_an_unsampled_call_is_not_measured_but_keeps_its_inner_spans_unsampled() -> None:
    provider = TracerProvider(sampler=ALWAYS_OFF)
    seen: list[trace.Span] = []
    TorchInstrumentor().instrument(tracer_provider=provider)
    try:
        Calling(lambda: seen.append(trace.get_current_span())).eval()(torch.ones(1, 1))
    finally:
        TorchInstrumentor().uninstrument()
    assert seen[0].get_span_context().is_valid
    assert not seen[0].get_span_context().trace_flags.sampled


# -- the user's program comes first ------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [ValueError("no such item"), KeyboardInterrupt()])
def test_an_exception_passes_untouched(spans: Spans, error: BaseException) -> None:
    with pytest.raises(type(error)) as caught:
        Failing(error).eval()(torch.ones(1, 1))

    assert caught.value is error
    assert error.__cause__ is None
    assert error.__context__ is None
    assert traceback.extract_tb(error.__traceback__)[-1].name == "forward"
    (span,) = spans()
    assert span.status.status_code is StatusCode.ERROR
    assert attribute(span, attributes.ERROR_TYPE) == type(error).__qualname__
    assert attribute(span, attributes.usage("cpu.seconds")) is not None
    ranker()(torch.ones(1, 4))  # and the next call is an outermost one again
    assert len(spans()) == 2


def test_a_fault_of_ours_costs_an_attribute_and_reaches_nobody(provider: TracerProvider) -> None:
    def broken_clock(device_type: str, index: int | None) -> object:
        raise RuntimeError("a fault of ours")

    exporter = InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    TorchInstrumentor().instrument(tracer_provider=provider, clock_for=broken_clock)
    try:
        assert ranker()(torch.ones(2, 4)).shape == (2, 1)
    finally:
        TorchInstrumentor().uninstrument()
    assert [span.name for span in exporter.get_finished_spans()] == ["inference Ranker"]


def test_hooks_fire_once_and_in_order(spans: Spans) -> None:
    model, order = ranker(), []
    model.register_forward_pre_hook(lambda module, args: order.append("pre"))
    model.register_forward_hook(lambda module, args, output: order.append("post"))
    model.body.register_forward_hook(lambda module, args, output: order.append("inner"))
    model(torch.ones(1, 4))
    assert order == ["pre", "inner", "post"]
    assert len(spans()) == 1


def test_uninstrument_restores_the_identical_function(spans: Spans) -> None:
    assert nn.Module.__dict__["__call__"] is not ORIGINAL_CALL
    TorchInstrumentor().uninstrument()
    assert nn.Module.__dict__["__call__"] is ORIGINAL_CALL


def test_uninstrument_leaves_a_later_wrapper_in_place_and_falls_silent(spans: Spans) -> None:
    ours = nn.Module.__call__
    calls = []

    def theirs(self: nn.Module, *args: object, **kwargs: object) -> object:
        calls.append(self)
        return ours(self, *args, **kwargs)

    nn.Module.__call__ = theirs
    try:
        TorchInstrumentor().uninstrument()
        assert nn.Module.__call__ is theirs
        Calling(lambda: None).eval()(torch.ones(1, 1))
        assert len(calls) == 1
        assert spans() == ()
    finally:
        nn.Module.__call__ = ORIGINAL_CALL


def test_a_wrapper_that_was_there_before_us_sees_every_inner_module(provider: TracerProvider) -> None:
    seen = []

    def theirs(self: nn.Module, *args: object, **kwargs: object) -> object:
        seen.append(type(self).__name__)
        return ORIGINAL_CALL(self, *args, **kwargs)

    nn.Module.__call__ = theirs
    try:
        TorchInstrumentor().instrument(tracer_provider=provider)
        ranker()(torch.ones(1, 4))
        TorchInstrumentor().uninstrument()
        assert nn.Module.__call__ is theirs
    finally:
        nn.Module.__call__ = ORIGINAL_CALL
    assert seen == ["Ranker", "Sequential", "Linear", "ReLU", "Linear"]


def test_a_hundred_thousand_calls_leave_nothing_behind() -> None:
    provider, model, x = TracerProvider(), nn.Identity().eval(), torch.ones(1, 1)
    TorchInstrumentor().instrument(tracer_provider=provider)
    try:
        for _ in range(1_000):
            model(x)
        gc.collect()
        objects = len(gc.get_objects())
        for _ in range(100_000):
            model(x)
        gc.collect()
        assert len(gc.get_objects()) - objects < 100
    finally:
        TorchInstrumentor().uninstrument()


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="None has no references to lose")
def test_calls_take_no_references_from_none() -> None:
    # torch before 2.8 hands out the compiler's callback, which is mostly None, without a reference to it.
    provider, model, x = TracerProvider(), nn.Identity().eval(), torch.ones(1, 1)
    TorchInstrumentor().instrument(tracer_provider=provider)
    try:
        model(x)
        before = sys.getrefcount(None)
        for _ in range(1_000):
            model(x)
        assert sys.getrefcount(None) - before > -500
    finally:
        TorchInstrumentor().uninstrument()


def test_a_dropped_model_is_forgotten() -> None:
    models, model = Models(), ranker()
    models.of(model)
    assert len(models) == 1
    del model
    assert len(models) == 0


# -- imports -----------------------------------------------------------------------------------------------------------


def run_python(program: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_uninstrumented_before_its_import_torch_stays_as_it_is() -> None:
    program = """
        from tollspan.instrumentation.torch import TorchInstrumentor
        TorchInstrumentor().instrument()
        TorchInstrumentor().uninstrument()
        import torch
        print(torch.nn.Module.__call__ is torch.nn.Module._wrapped_call_impl)
    """
    assert run_python(program).strip() == "True"


def test_instrumenting_does_not_import_torch_and_works_once_it_is_imported() -> None:
    program = """
        import sys
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import SimpleSpanProcessor
        from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
        from tollspan.instrumentation.torch import TorchInstrumentor
        exporter, provider = InMemorySpanExporter(), TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(exporter))
        TorchInstrumentor().instrument(tracer_provider=provider)
        assert "torch" not in sys.modules
        import torch
        torch.nn.Linear(2, 2).eval()(torch.ones(3, 2))
        print([span.name for span in exporter.get_finished_spans()])
    """
    assert run_python(program).strip() == "['inference Linear']"
