"""ONNX Runtime: a span for each run of a session, and one for the construction that loaded its model.

In: calls of ``InferenceSession.run`` and of its constructor. Out: spans ``inference {model}`` and ``model_load
{model}``. Where it stands: a table over `calls.py`, with the CPU clock inside the engine's wrapper.

The model is known by the name of its graph, or by its file where that name is one that exporters give to every graph.
``run`` is patched on the class, so sessions made earlier are covered; ``session._sess.run``, a method of a C object,
and bound methods that the program took before us are not. A load's ``storage.read.bytes`` is the size of the model's
own file, without external data files beside it; a model that was handed over as bytes read nothing.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from itertools import count
from pathlib import Path
from typing import Any, Final

from opentelemetry import trace
from opentelemetry.trace import SpanKind

from tollspan.instrumentation.calls import Call, CallInstrumentor, Opening, WrapPoint, open_call, wrap
from tollspan.instrumentation.cpu_clock import CPU, seconds
from tollspan.instrumentation.device_clock import STATUS_UNMEASURED
from tollspan.instrumentation.guard import guard
from tollspan.instrumentation.instances import PerInstance
from tollspan.instrumentation.wrapping import Patches
from tollspan.pricing import attributes

PROVIDER: Final = "onnxruntime"

DISTRIBUTIONS: Final = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-directml", "onnxruntime-openvino")
"""One library under several names on PyPI."""

GENERIC_GRAPH_NAMES: Final = frozenset({"", "graph", "main", "main_graph", "torch_jit", "torch-jit-export", "tf2onnx"})
"""Graph names that exporters give to whatever they export: no identity of a model."""

DEVICE_OF_PROVIDER: Final[dict[str, str]] = {
    "CPUExecutionProvider": "cpu",
    "DnnlExecutionProvider": "cpu",
    "XnnpackExecutionProvider": "cpu",
    "CUDAExecutionProvider": "cuda",
    "TensorrtExecutionProvider": "cuda",
    "NvTensorRTRTXExecutionProvider": "cuda",
    "MIGraphXExecutionProvider": "rocm",
    "ROCMExecutionProvider": "rocm",
    "DmlExecutionProvider": "dml",
    "CoreMLExecutionProvider": "coreml",
    "QNNExecutionProvider": "npu",
    "WebGpuExecutionProvider": "webgpu",
}
"""Execution provider → device type. One that is not here runs on what its own options say, which is not told."""

_ACCELERATORS: Final = frozenset(DEVICE_OF_PROVIDER.values()) - {"cpu"}
_LAYER: Final = "onnxruntime"
_CPU_SECONDS: Final = attributes.usage("cpu.seconds")
_STORAGE_BYTES: Final = attributes.usage("storage.read.bytes")
_CPU_BEGIN: Final = guard("onnxruntime.cpu.begin")
_CPU_END: Final = guard("onnxruntime.cpu.end")


class SessionNote:
    """What is known of one session between its runs.

    Attributes:
        name: model identity; None where the session does not tell.
        device: device type; None where its execution providers do not tell.
        runs: counts them.
    """

    __slots__ = ("_batched", "_input", "device", "name", "providers", "runs")

    def __init__(self, session: Any) -> None:
        self.name = model_name(session)
        self.runs = count()
        self.providers: Sequence[str] | None = None
        self.device: str | None = None
        inputs = session.get_inputs()
        self._input: str | None = inputs[0].name if inputs else None
        declared: Sequence[int | str | None] = inputs[0].shape if inputs else []
        # One dimension is a batch only where the model itself calls it one.
        self._batched = bool(declared) and isinstance(declared[0], str) and "batch" in declared[0].lower()

    def refresh(self, session: Any) -> None:
        """Reads the device again if the session has changed its providers."""
        providers = session.get_providers()
        if providers != self.providers:
            self.providers = list(providers)
            self.device = device_type(providers)

    def batch_size(self, feed: Any) -> int | None:
        """First dimension of the model's first input; None where that is no batch, or not given."""
        if self._input is None or not isinstance(feed, Mapping):
            return None
        shape = getattr(feed.get(self._input), "shape", None)
        if callable(shape):  # OrtValue
            shape = shape()
        if shape is None or len(shape) == 0 or (len(shape) == 1 and not self._batched):
            return None
        return int(shape[0])


def model_name(session: Any) -> str | None:
    """Name of the model's graph, else the stem of its file; None where there is neither."""
    name = session.get_modelmeta().graph_name
    if name not in GENERIC_GRAPH_NAMES:
        return str(name)
    path = getattr(session, "_model_path", None)
    if path:
        return Path(os.fsdecode(path)).stem
    return name or None


def device_type(providers: Sequence[str]) -> str | None:
    """Where a session runs: by the first of its execution providers, in their order of precedence."""
    return DEVICE_OF_PROVIDER.get(providers[0]) if providers else None


_sessions: Final[PerInstance[SessionNote]] = PerInstance(SessionNote)


def _named(operation: str, model: str | None) -> str:
    return f"{operation} {model}" if model else operation


def _device(device: str | None) -> dict[str, Any]:
    if device is None:
        return {}
    about: dict[str, Any] = {attributes.DEVICE_TYPE: device}
    if device in _ACCELERATORS:
        about[attributes.GPU_TIME_STATUS] = STATUS_UNMEASURED
    return about


def _run_request(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Opening:
    """``run(self, output_names, input_feed, run_options=None)``"""
    session = args[0]
    note = _sessions.of(session)
    note.refresh(session)
    about: dict[str, Any] = {
        attributes.OPERATION: attributes.OPERATION_INFERENCE,
        attributes.PROVIDER: PROVIDER,
        **_device(note.device),
    }
    if note.name is not None:
        about[attributes.MODEL] = note.name
    batch = note.batch_size(args[2] if len(args) > 2 else kwargs.get("input_feed"))
    if batch is not None:
        about[attributes.BATCH_SIZE] = batch
    if next(note.runs) == 0:
        about[attributes.COLD_START] = True
    return Opening(_named(attributes.OPERATION_INFERENCE, note.name), about)


def _load_request(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Opening:
    """``InferenceSession(path_or_bytes, sess_options=None, providers=None, ...)``"""
    source = args[1] if len(args) > 1 else kwargs.get("path_or_bytes")
    about: dict[str, Any] = {
        attributes.OPERATION: attributes.OPERATION_MODEL_LOAD,
        attributes.PROVIDER: PROVIDER,
    }
    model = None
    if isinstance(source, bytes):
        about[attributes.MODEL_SIZE] = len(source)
    elif isinstance(source, (str, os.PathLike)):
        model = about[attributes.MODEL] = Path(os.fsdecode(source)).stem
    return Opening(_named(attributes.OPERATION_MODEL_LOAD, model), about, (args[0], source))


def _loaded(call: Call, result: Any) -> None:
    session, source = call.state
    note = _sessions.of(session)
    note.refresh(session)
    if note.name is not None:
        call.attributes[attributes.MODEL] = note.name
        call.span.update_name(_named(attributes.OPERATION_MODEL_LOAD, note.name))
    call.attributes[attributes.EXECUTION_PROVIDERS] = list(session.get_providers())
    call.attributes.update(_device(note.device))
    if not isinstance(source, bytes):
        # After the load and only then: a load that failed may have read any part of it.
        size = os.stat(source).st_size
        call.attributes[attributes.MODEL_SIZE] = size
        call.attributes[_STORAGE_BYTES] = size


_CLASSES: Final = "onnxruntime.capi.onnxruntime_inference_collection:"

POINTS: Final = (
    WrapPoint(
        target=_CLASSES + "Session.run",
        request=_run_request,
        layer=_LAYER,
        kind=SpanKind.INTERNAL,
    ),
    WrapPoint(
        target=_CLASSES + "InferenceSession.__init__",
        request=_load_request,
        response=_loaded,
        layer=_LAYER,
        kind=SpanKind.INTERNAL,
    ),
)


def with_cpu_time(original: Callable[..., Any]) -> Callable[..., Any]:
    """``original``, whose CPU time goes to the call that the engine opened around it, however it ends."""

    @functools.wraps(original)
    def measured(*args: Any, **kwargs: Any) -> Any:
        call = mark = None
        with _CPU_BEGIN:
            call = open_call(_LAYER)
            if call is not None and call.recording:
                mark = CPU.begin()
        if call is None or mark is None:
            return original(*args, **kwargs)
        try:
            return original(*args, **kwargs)
        finally:
            with _CPU_END:
                nanoseconds, source = CPU.end(mark)
                call.attributes[_CPU_SECONDS] = seconds(nanoseconds)
                call.attributes[attributes.CPU_TIME_SOURCE] = source

    return measured


class OnnxRuntimeInstrumentor(CallInstrumentor):
    """Spans for ONNX Runtime. Does not import it: it waits until the program does."""

    scope = __name__
    points = ()

    def instrumentation_dependencies(self) -> Collection[str]:
        for name in DISTRIBUTIONS:
            try:
                version(name)
            except PackageNotFoundError:
                continue
            return (f"{name} >= 1.23",)
        return (f"{DISTRIBUTIONS[0]} >= 1.23",)

    def _instrument(self, **kwargs: Any) -> None:
        self._tracer = trace.get_tracer(self.scope, tracer_provider=kwargs.get("tracer_provider"))
        super()._instrument(**kwargs)

    def patch(self, patches: Patches) -> None:
        def make(point: WrapPoint, original: Callable[..., Any]) -> Callable[..., Any]:
            return wrap(point, self._tracer, patches, with_cpu_time(original))

        for point in POINTS:
            patches.add(point.target, functools.partial(make, point))
