"""Promises of the ONNX Runtime instrumentation, kept with real models: loads and runs are spans, the rest untouched."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper
from onnxruntime.capi.onnxruntime_inference_collection import Session
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import SpanKind, StatusCode

from tollspan.instrumentation.cpu_clock import CPU
from tollspan.instrumentation.onnxruntime import OnnxRuntimeInstrumentor, device_type
from tollspan.instrumentation.tags import tag
from tollspan.pricing import attributes

ORIGINALS = (Session.__dict__["run"], onnxruntime.InferenceSession.__dict__["__init__"])
CPU_SECONDS = attributes.usage("cpu.seconds")
STORAGE_BYTES = attributes.usage("storage.read.bytes")

Spans = Callable[[], Sequence[ReadableSpan]]


def model_bytes(graph: str = "intent", shape: Sequence[int | str | None] = ("batch", 4)) -> bytes:
    """A model of one Relu over ``x`` of ``shape``."""
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in "xy")
    model = helper.make_model(
        helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], graph, [x], [y]),
        opset_imports=[helper.make_opsetid("", 17)],
    )
    model.ir_version = 10
    onnx.checker.check_model(model)
    return model.SerializeToString()


@pytest.fixture
def model_file(tmp_path: Path) -> Path:
    path = tmp_path / "classifier.onnx"
    path.write_bytes(model_bytes())
    return path


@pytest.fixture
def spans() -> Iterator[Spans]:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    OnnxRuntimeInstrumentor().instrument(tracer_provider=provider)
    yield exporter.get_finished_spans
    if OnnxRuntimeInstrumentor().is_instrumented_by_opentelemetry:
        OnnxRuntimeInstrumentor().uninstrument()
    assert CPU.in_flight == 0


def values(span: ReadableSpan) -> dict[str, object]:
    return dict(span.attributes or {})


def batch(size: int = 3) -> np.ndarray:
    return np.full((size, 4), -1.0, np.float32)


# -- loads -------------------------------------------------------------------------------------------------------------


def test_a_load_from_a_file_says_what_it_read(spans: Spans, model_file: Path) -> None:
    onnxruntime.InferenceSession(model_file, providers=["CPUExecutionProvider"])

    (span,) = spans()
    assert span.name == "model_load intent"
    assert span.kind is SpanKind.INTERNAL
    about = values(span)
    assert about.pop(CPU_SECONDS)
    assert about.pop(attributes.CPU_TIME_SOURCE) == "process"
    assert about == {
        attributes.OPERATION: "model_load",
        attributes.PROVIDER: "onnxruntime",
        attributes.MODEL: "intent",
        attributes.MODEL_DTYPE: "float32",
        attributes.MODEL_SOURCE: "file",
        attributes.MODEL_FORMAT: "onnx",
        attributes.MODEL_SIZE: model_file.stat().st_size,
        STORAGE_BYTES: model_file.stat().st_size,
        attributes.EXECUTION_PROVIDERS_ASKED: ("CPUExecutionProvider",),
        attributes.EXECUTION_PROVIDERS: ("CPUExecutionProvider",),
        attributes.DEVICE_TYPE: "cpu",
    }


def test_a_load_from_bytes_has_a_size_and_read_nothing(spans: Spans) -> None:
    onnxruntime.InferenceSession(path_or_bytes=model_bytes())
    (span,) = spans()
    assert span.name == "model_load intent"
    assert values(span)[attributes.MODEL_SOURCE] == "buffer"
    assert values(span)[attributes.MODEL_SIZE] == len(model_bytes())
    assert STORAGE_BYTES not in values(span)


def test_a_graph_name_that_exporters_give_gives_way_to_the_files(spans: Spans, tmp_path: Path) -> None:
    path = tmp_path / "sentiment.onnx"
    path.write_bytes(model_bytes(graph="main_graph"))
    session = onnxruntime.InferenceSession(str(path))
    session.run(None, {"x": batch()})
    assert [span.name for span in spans()] == ["model_load sentiment", "inference sentiment"]


def test_a_subclass_is_one_load(spans: Spans, model_file: Path) -> None:
    class Classifier(onnxruntime.InferenceSession):
        def __init__(self, path: Path, label: str) -> None:
            super().__init__(path)
            self.label = label

    classifier = Classifier(model_file, "greeting")
    assert isinstance(classifier, onnxruntime.InferenceSession)
    classifier.run(["y"], {"x": batch()})
    assert [span.name for span in spans()] == ["model_load intent", "inference intent"]


@pytest.mark.parametrize("source", ["no-such-file.onnx", b"not a model", 42])
def test_a_failing_load_raises_what_it_raises_and_reads_are_not_guessed(spans: Spans, source: object) -> None:
    OnnxRuntimeInstrumentor().uninstrument()
    with pytest.raises(Exception) as plain:
        onnxruntime.InferenceSession(source)
    OnnxRuntimeInstrumentor().instrument()
    try:
        with pytest.raises(Exception) as seen:
            onnxruntime.InferenceSession(source)
    finally:
        OnnxRuntimeInstrumentor().uninstrument()
    assert type(seen.value) is type(plain.value)
    assert str(seen.value) == str(plain.value)


def test_a_failing_load_is_an_error_without_figures_that_nobody_knows(spans: Spans) -> None:
    with pytest.raises(Exception, match=r"no-such\.onnx"):
        onnxruntime.InferenceSession("no-such.onnx")
    (span,) = spans()
    assert span.name == "model_load no-such"
    assert span.status.status_code is StatusCode.ERROR
    assert attributes.ERROR_TYPE in values(span)
    assert STORAGE_BYTES not in values(span)


# -- runs --------------------------------------------------------------------------------------------------------------


def test_a_run_is_an_inference_with_all_that_is_known(spans: Spans, model_file: Path) -> None:
    session = onnxruntime.InferenceSession(model_file)
    (result,) = session.run(None, {"x": batch(3)})

    assert result.shape == (3, 4)
    assert not result.any()
    span = spans()[-1]
    assert span.name == "inference intent"
    assert span.kind is SpanKind.INTERNAL
    about = values(span)
    cpu_seconds = about.pop(CPU_SECONDS)
    assert isinstance(cpu_seconds, float)
    assert round(cpu_seconds * 1e9) / 1e9 == cpu_seconds
    about.pop(attributes.COLD_START_SECONDS, None)  # where no other test of this process came before
    assert about == {
        attributes.OPERATION: "inference",
        attributes.PROVIDER: "onnxruntime",
        attributes.MODEL: "intent",
        attributes.MODEL_DTYPE: "float32",
        attributes.DEVICE_TYPE: "cpu",
        attributes.BATCH_SIZE: 3,
        attributes.COLD_START: True,
        attributes.CPU_TIME_SOURCE: "process",
    }


def test_only_the_first_run_of_a_session_is_cold(spans: Spans, model_file: Path) -> None:
    first, second = (onnxruntime.InferenceSession(model_file) for _ in range(2))
    for session in (first, first, second):
        session.run(output_names=["y"], input_feed={"x": batch()})
    runs = [span for span in spans() if span.name.startswith("inference")]
    assert [values(span).get(attributes.COLD_START) for span in runs] == [True, None, True]


def test_a_session_made_before_us_is_seen(model_file: Path) -> None:
    session = onnxruntime.InferenceSession(model_file)
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    OnnxRuntimeInstrumentor().instrument(tracer_provider=provider)
    try:
        session.run(None, {"x": batch()})
    finally:
        OnnxRuntimeInstrumentor().uninstrument()
    session.run(None, {"x": batch()})
    assert [span.name for span in exporter.get_finished_spans()] == ["inference intent"]


@pytest.mark.parametrize(
    ("declared", "given", "size"),
    [
        (("batch", 4), (5, 4), 5),
        ((None, 4), (6, 4), 6),
        ((2, 4), (2, 4), 2),
        (("batch_size",), (7,), 7),
        (("length",), (7,), None),  # one item of seven, or seven items?
        ((4,), (4,), None),
        ((), (), None),
    ],
)
def test_batch_size_is_the_first_inputs_and_absent_when_unclear(
    spans: Spans, declared: tuple[int | str | None, ...], given: tuple[int, ...], size: int | None
) -> None:
    session = onnxruntime.InferenceSession(model_bytes(shape=declared))
    session.run(None, {"x": np.zeros(given, np.float32)})
    assert values(spans()[-1]).get(attributes.BATCH_SIZE) == size


def test_a_failing_run_raises_what_it_raises(spans: Spans, model_file: Path) -> None:
    session = onnxruntime.InferenceSession(model_file)
    with pytest.raises(ValueError, match="Required inputs"):
        session.run(None, {})
    span = spans()[-1]
    assert span.status.status_code is StatusCode.ERROR
    assert values(span)[attributes.ERROR_TYPE] == "ValueError"
    assert values(span)[CPU_SECONDS] is not None
    assert attributes.BATCH_SIZE not in values(span)


def test_concurrent_runs_report_their_own_threads_time(spans: Spans, model_file: Path) -> None:
    session = onnxruntime.InferenceSession(model_file)
    beside = CPU.begin()  # a measured call on this thread
    thread = threading.Thread(target=session.run, args=(None, {"x": batch()}))
    thread.start()
    thread.join()
    CPU.end(beside)
    session.run(None, {"x": batch()})
    assert [values(span)[attributes.CPU_TIME_SOURCE] for span in spans()[1:]] == ["thread", "process"]


def test_tags_are_on_loads_and_runs(spans: Spans, model_file: Path) -> None:
    with tag(tenant="acme"):
        onnxruntime.InferenceSession(model_file).run(None, {"x": batch()})
    assert [values(span)[attributes.TENANT] for span in spans()] == ["acme", "acme"]


def test_an_unsampled_run_leaves_no_call_in_flight(model_file: Path) -> None:
    OnnxRuntimeInstrumentor().instrument(tracer_provider=TracerProvider(sampler=ALWAYS_OFF))
    try:
        onnxruntime.InferenceSession(model_file).run(None, {"x": batch()})
    finally:
        OnnxRuntimeInstrumentor().uninstrument()
    assert CPU.in_flight == 0


def test_uninstrument_restores_the_identical_functions(spans: Spans) -> None:
    assert Session.__dict__["run"] is not ORIGINALS[0]
    OnnxRuntimeInstrumentor().uninstrument()
    assert (Session.__dict__["run"], onnxruntime.InferenceSession.__dict__["__init__"]) == ORIGINALS


@pytest.mark.parametrize(
    ("providers", "device"),
    [
        (["CUDAExecutionProvider", "CPUExecutionProvider"], "cuda"),
        (["CPUExecutionProvider"], "cpu"),
        (["OpenVINOExecutionProvider", "CPUExecutionProvider"], None),  # its options say which device
        ([], None),
    ],
)
def test_the_device_is_the_first_providers(providers: list[str], device: str | None) -> None:
    assert device_type(providers) == device


def test_instrumenting_does_not_import_onnxruntime() -> None:
    program = """
        import sys
        from tollspan.instrumentation.onnxruntime import OnnxRuntimeInstrumentor
        OnnxRuntimeInstrumentor().instrument()
        assert not {"onnxruntime", "numpy"} & set(sys.modules)
        import onnxruntime
        print(hasattr(onnxruntime.InferenceSession.run, "__wrapped__"))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout.strip() == "True", done.stderr
