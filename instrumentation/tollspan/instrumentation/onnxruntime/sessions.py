"""What is known of a session of ONNX Runtime between its runs, and what a run was given.

In: sessions, bindings, the arguments of runs. Out: attributes that all runs of a session have, its device's clock, and
the batch size of one run. Where it stands: beside `runs.py`, which asks at every run, so that what can be worked out
once is.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path
from typing import Any, Final

from tollspan.instrumentation.capacity import in_use
from tollspan.instrumentation.device_clock import HOST, STATUS_UNMEASURED, DeviceClock
from tollspan.instrumentation.guard import guard
from tollspan.instrumentation.instances import PerInstance
from tollspan.instrumentation.onnxruntime import devices
from tollspan.pricing import attributes

PROVIDER: Final = "onnxruntime"

GENERIC_GRAPH_NAMES: Final = frozenset({"", "graph", "main", "main_graph", "torch_jit", "torch-jit-export", "tf2onnx"})
"""Graph names that exporters give to whatever they export: no identity of a model."""

_NUMPY_NAMES: Final = {"float": "float32", "double": "float64"}
"""ONNX Runtime's name of an element type → NumPy's, where they differ."""
_CLOCK: Final = guard("onnxruntime.clock")
_NO_SYNC: Final = "disable_synchronize_execution_providers"


class SessionNote:
    """What is known of one session between its runs.

    Attributes:
        name: model identity; None where the session does not tell.
        span_name: of its runs.
        about: attributes of every run. Not to be changed.
        providers: the session's list of execution providers when `refresh` looked.
        runs: counts those since the session was made, until one was the first; None from then on.
        device: device type; None where the execution providers do not tell.
        clock: of the device; `HOST` where there is nothing to add to CPU time.
        wall: of the device, where ``clock`` cannot time a run; None where there is no meter.
        stream: the user's compute stream, as ``clock`` takes it.
    """

    __slots__ = (
        "_batched",
        "_dtype",
        "about",
        "clock",
        "device",
        "first",
        "name",
        "providers",
        "runs",
        "span_name",
        "stream",
        "wall",
    )

    def __init__(self, session: Any) -> None:
        self.name = model_name(session)
        self.span_name = named(attributes.OPERATION_INFERENCE, self.name)
        self.providers: Sequence[str] | None = None
        self.runs: count[int] | None = None
        self.about: dict[str, Any] = {}
        self.device: str | None = None
        self.clock: DeviceClock = HOST
        self.wall: DeviceClock | None = None
        self.stream: object | None = None
        inputs = session.get_inputs()
        self.first: str | None = inputs[0].name if inputs else None
        declared: Sequence[int | str | None] = inputs[0].shape if inputs else []
        # One dimension is a batch only where the model itself calls it one.
        self._batched = bool(declared) and isinstance(declared[0], str) and "batch" in declared[0].lower()
        self._dtype = dtype([*inputs, *session.get_outputs()])

    def refresh(self, session: Any, clock_for: devices.ClockFor) -> None:
        """Reads what goes with the session's execution providers, which it makes anew when they are changed."""
        self.providers = providers = session.get_providers()
        self.runs = count()
        self.device = kind = devices.device_type(providers)
        self.clock, self.wall, self.stream = HOST, None, None
        about: dict[str, Any] = {
            attributes.OPERATION: attributes.OPERATION_INFERENCE,
            attributes.PROVIDER: PROVIDER,
        }
        if self.name is not None:
            about[attributes.MODEL] = self.name
        if self._dtype is not None:
            about[attributes.MODEL_DTYPE] = self._dtype
        if kind is not None:
            about[attributes.DEVICE_TYPE] = kind
        if kind in devices.GPUS:
            self._gpu(kind, (session.get_provider_options() or {}).get(providers[0], {}), about, clock_for)
        elif kind in devices.ACCELERATORS:
            about[attributes.GPU_TIME_STATUS] = STATUS_UNMEASURED
        self.about = about

    def _gpu(self, kind: str, options: dict[str, str], about: dict[str, Any], clock_for: devices.ClockFor) -> None:
        index = devices.device_index(options)
        name = devices.device_name(kind, index)
        if name is not None:
            about[attributes.DEVICE_NAME] = name
        self.clock = self.wall = devices.wall_clock(kind, index)
        address = devices.user_stream(options)
        if address is not None:
            with _CLOCK:  # a fault of a clock costs its figure, never the span
                self.stream = devices.torch_stream(address, index)
                if self.stream is not None:
                    self.clock = clock_for(devices.torch_type(kind), index)
        for clock in {self.wall, self.clock}:
            in_use(clock, devices.torch_type(kind), index or 0, lambda: {attributes.DEVICE_NAME: name} if name else {})

    def batch_size(self, value: Any) -> int | None:
        """First dimension of the model's first input; None where that is no batch, or not given.

        Args:
            value: what was given for it: an array, an `OrtValue`, or a shape.
        """
        shape = value if type(value) is tuple else getattr(value, "shape", None)
        if type(shape) is not tuple:
            if callable(shape):  # OrtValue
                shape = shape()
            if shape is None:
                return None
        dimensions = len(shape)
        if dimensions > 1 or (dimensions == 1 and self._batched):
            return int(shape[0])
        return None


sessions: Final[PerInstance[SessionNote]] = PerInstance(SessionNote)


def model_name(session: Any) -> str | None:
    """Name of the model's graph, else the stem of its file; None where there is neither."""
    name = session.get_modelmeta().graph_name
    if name not in GENERIC_GRAPH_NAMES:
        return str(name)
    path = getattr(session, "_model_path", None)
    if path:
        return Path(os.fsdecode(path)).stem
    return name or None


def dtype(declared: Sequence[Any]) -> str | None:
    """Element type of the first floating point tensor among inputs and outputs; None where there is none."""
    for each in declared:
        kind, _, element = each.type.rstrip(")").partition("(")
        if kind == "tensor" and (element in _NUMPY_NAMES or element.startswith(("float", "bfloat"))):
            return _NUMPY_NAMES.get(element, str(element))
    return None


def named(operation: str, model: str | None) -> str:
    """Name of a span."""
    return f"{operation} {model}" if model else operation


# -- what a run was given for the model's first input ------------------------------------------------------------------


def given_in_feed(first: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """``run(self, output_names, input_feed, ...)``, and whatever has its feed in the same place."""
    return (args[2] if len(args) > 2 else kwargs["input_feed"]).get(first)


def given_as_ort_values(first: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """``run_with_ort_values(self, output_names, input_dict_ort_values, ...)``"""
    return (args[2] if len(args) > 2 else kwargs["input_dict_ort_values"]).get(first)


def given_by_vector(first: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """``run_with_ortvaluevector(self, run_options, feed_names, feeds, ...)``"""
    names = args[2] if len(args) > 2 else kwargs["feed_names"]
    feeds = args[3] if len(args) > 3 else kwargs["feeds"]
    return feeds[names.index(first)] if first in names else None


def given_by_binding(first: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """``run_with_iobinding(self, iobinding, ...)``"""
    return bound.of(args[1] if len(args) > 1 else kwargs["iobinding"]).get(first)


bound: Final[PerInstance[dict[str, tuple[int, ...]]]] = PerInstance(lambda binding: {})
"""Binding → shape of what was bound to each input, since we are there."""


def bound_array(name: str, arr_on_cpu: Any) -> tuple[str, Any]:
    """``IOBinding.bind_cpu_input``"""
    return name, arr_on_cpu.shape


def bound_value(name: str, ortvalue: Any) -> tuple[str, Any]:
    """``IOBinding.bind_ortvalue_input``"""
    return name, ortvalue.shape()


def bound_pointer(
    name: str, device_type: Any, device_id: Any, element_type: Any, shape: Any, buffer_ptr: Any
) -> tuple[str, Any]:
    """``IOBinding.bind_input``"""
    return name, shape


Bound = Callable[..., tuple[str, Any]]


# -- whether a run waits for its device --------------------------------------------------------------------------------


def _says_no_sync(run_options: Any) -> bool:
    try:
        return bool(run_options.get_run_config_entry(_NO_SYNC) == "1")
    except RuntimeError:  # has no such entry; telling so takes it 70 microseconds, hence once an object
        return False


_no_sync: Final = PerInstance(_says_no_sync)


def waits(run_options: Any) -> bool:
    """Whether a run with these options (or None) returns only when the device is done."""
    return run_options is None or not _no_sync.of(run_options)
