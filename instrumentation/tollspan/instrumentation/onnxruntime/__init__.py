"""ONNX Runtime: a span for each run of a session, and one for each load of a model.

In: calls of ``InferenceSession``'s methods. Out: spans ``inference {model}`` and ``model_load {model}``. The parts:

    __init__     which methods are replaced, by what
    runs         the span of a run, synchronous or called back
    loads        the span of a load
    sessions     what is known of a session between its runs; batch size
    devices      execution provider → device, its name, the clock of its time
    model_files  what a model consists of beside its own file

The model is known by the name of its graph, or by its file where that name is one that exporters give to every graph.
Each session's first run is a cold start, also of a model that another session has loaded: each allocates and chooses
for itself. Methods are replaced on their class, so sessions made earlier are covered; methods of the C object
(``session._sess.run``) and bound methods that the program took before us are not, nor is what was bound to an
``IOBinding`` before us (its batch size is not told).

A session that is run inside a module of PyTorch has a span of its own beneath the module's, and what it used is taken
off the module's (`cpu_clock`), as it is the other way round.
"""

from __future__ import annotations

from collections.abc import Collection
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final

from opentelemetry import trace

from tollspan.instrumentation.calls import CallInstrumentor
from tollspan.instrumentation.device_clock import clock_for
from tollspan.instrumentation.onnxruntime.devices import device_type
from tollspan.instrumentation.onnxruntime.loads import Loads, constructed, made_anew
from tollspan.instrumentation.onnxruntime.runs import Runs
from tollspan.instrumentation.onnxruntime.sessions import (
    PROVIDER,
    Bound,
    bound_array,
    bound_pointer,
    bound_value,
    given_as_ort_values,
    given_by_binding,
    given_by_vector,
    given_in_feed,
)
from tollspan.instrumentation.wrapping import Patches

__all__ = ["PROVIDER", "OnnxRuntimeInstrumentor", "device_type"]

DISTRIBUTIONS: Final = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-directml", "onnxruntime-openvino")
"""One library under several names on PyPI."""

_MODULE: Final = "onnxruntime.capi.onnxruntime_inference_collection:"

RUNS: Final = {
    "Session.run": (given_in_feed, 3),
    "Session.run_with_ort_values": (given_as_ort_values, 3),
    "Session.run_with_iobinding": (given_by_binding, 2),
    "Session.run_with_ortvaluevector": (given_by_vector, 1),
}
"""Method that runs a session → where its input is among the arguments, and at which place its run options."""

LOADS: Final = {
    "InferenceSession.__init__": constructed,
    "Session.set_providers": made_anew,
}
"""Method that loads a model → how it is asked."""

BINDINGS: Final[dict[str, Bound]] = {
    "IOBinding.bind_cpu_input": bound_array,
    "IOBinding.bind_ortvalue_input": bound_value,
    "IOBinding.bind_input": bound_pointer,
}
"""Method that binds an input → its name and shape."""


class OnnxRuntimeInstrumentor(CallInstrumentor):
    """Spans for ONNX Runtime. Does not import it: it waits until the program does.

    ``instrument()`` takes, beside OpenTelemetry's ``tracer_provider``:
        clock_for: (device type, device index) → `DeviceClock`, in place of `device_clock.clock_for`.
    """

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
        self._options = kwargs
        super()._instrument(**kwargs)

    def patch(self, patches: Patches) -> None:
        tracer = trace.get_tracer(self.scope, tracer_provider=self._options.get("tracer_provider"))
        clocks = self._options.get("clock_for") or clock_for
        runs, loads = Runs(tracer, patches, clocks), Loads(tracer, patches, clocks)
        for name, (given, options_at) in RUNS.items():
            patches.add(_MODULE + name, runs.sync(given, options_at))
        patches.add(_MODULE + "Session.run_async", runs.asynchronous(given_in_feed))
        for name, asked in LOADS.items():
            patches.add(_MODULE + name, loads.of(asked))
        for name, read in BINDINGS.items():
            patches.add(_MODULE + name, runs.binding(read))
        patches.add(_MODULE + "IOBinding.clear_binding_inputs", runs.clearing)
