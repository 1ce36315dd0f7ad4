"""Pipelines of transformers and encoders of sentence-transformers: one span for all the model calls of one call.

In: calls of ``Pipeline.__call__``, ``SentenceTransformer.encode`` and ``CrossEncoder.predict``. Out: the span of an
outermost module call, which batches, modules and generations inside are part of, with the number of items, and the
token positions that these tell. Where it stands: beside `torch_generate.py`, over the engine of `calls.py`.

A pipeline that is given a generator or a dataset returns an iterator and works while that is read. Its span ends when
the iterator is exhausted or abandoned; CPU time is that of the steps, and the device's that of the batches, so the
program's own time between two steps is in neither. A pipeline whose model is no ``nn.Module`` (ONNX Runtime through
optimum) is left alone: what runs the model has spans of its own.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator, Mapping
from time import time_ns
from typing import Any, Final

from opentelemetry.trace import Span, SpanKind

from tollspan.instrumentation.calls import Call, Opening, WrapPoint, begin
from tollspan.instrumentation.capacity_minutes import untimed
from tollspan.instrumentation.cpu_clock import CPU, CpuMark, Source, seconds
from tollspan.instrumentation.device_clock import (
    GPU_SECONDS,
    HOST,
    STATUS_ERROR,
    STATUS_OK,
    STATUS_SKIPPED,
    DeviceClock,
)
from tollspan.instrumentation.guard import guard
from tollspan.instrumentation.process_start import mark_cold
from tollspan.instrumentation.streams import observe
from tollspan.instrumentation.torch_execution import INSIDE
from tollspan.instrumentation.torch_hardware import Hardware
from tollspan.instrumentation.torch_models import sequence_length
from tollspan.instrumentation.wrapping import Patches
from tollspan.pricing import attributes

_STEP: Final = guard("torch.pipeline.step")
_DEVICE: Final = guard("torch.pipeline.device")
_POSITIONS: Final = guard("torch.pipeline.positions")
_CPU_SECONDS: Final = attributes.usage("cpu.seconds")

PIPELINE: Final = "transformers.pipelines.base:Pipeline.__call__"
FORWARD: Final = "transformers.pipelines.base:Pipeline.forward"
ENCODERS: Final = (
    "sentence_transformers:SentenceTransformer.encode",
    "sentence_transformers:SparseEncoder.encode",
    "sentence_transformers:CrossEncoder.predict",
)


class Tally:
    """Token positions of several model calls; those of all of them, or none."""

    __slots__ = ("_calls", "_sums", "_told")

    def __init__(self) -> None:
        self._calls = 0
        self._sums: dict[str, int] = {}
        self._told: dict[str, int] = {}

    @property
    def calls(self) -> int:
        """Model calls that were added."""
        return self._calls

    def add(self, positions: Mapping[str, Any]) -> None:
        """Adds one call's, as attributes; what it does not tell, the sum does not tell either."""
        self._calls += 1
        for key, value in positions.items():
            self._sums[key] = self._sums.get(key, 0) + value
            self._told[key] = self._told.get(key, 0) + 1

    def attributes(self) -> dict[str, Any]:
        return {key: value for key, value in self._sums.items() if self._told[key] == self._calls}


class Lasting:
    """Stands for a span that ends when the device is done with each of its parts.

    Args:
        span: open. Ended, with the end time of the last `end`, when every part has been.
    """

    __slots__ = ("_about", "_end_time", "_lock", "_open", "_seconds_ns", "_span", "_span_processor", "_window")

    def __init__(self, span: Span) -> None:
        self._span = span
        self._span_processor = getattr(span, "_span_processor", None)
        self._lock = threading.Lock()
        self._open = 1
        self._end_time: int | None = None
        self._about: dict[str, Any] = {}
        self._seconds_ns = 0
        self._window = 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._span, name)

    def part(self) -> Part:
        """One more part, to be ended once."""
        with self._lock:
            self._open += 1
        return Part(self)

    def end(self, end_time: int | None = None) -> None:
        self._end_time = time_ns() if end_time is None else end_time
        self.done({})

    def done(self, about: Mapping[str, Any]) -> None:
        """A part is done, and this is what its device told."""
        with self._lock:
            if about:
                before = self._about.get(attributes.GPU_TIME_STATUS, STATUS_OK)
                self._about.update(about)
                if before != STATUS_OK:
                    self._about[attributes.GPU_TIME_STATUS] = before
                self._seconds_ns += round(about.get(GPU_SECONDS, 0.0) * 1e9)
                self._window += about.get(attributes.GPU_WINDOW, 0.0)
            self._open -= 1
            if self._open:
                return
        self._span.set_attributes(self._summed())
        self._span.end(self._end_time)

    def _summed(self) -> dict[str, Any]:
        # Where one part did not tell its time the sum of the others is not the call's.
        about = self._about
        if about and about.get(attributes.GPU_TIME_STATUS) != STATUS_OK:
            return {attributes.GPU_TIME_STATUS: about.get(attributes.GPU_TIME_STATUS, STATUS_ERROR)}
        if about:
            about = {**about, GPU_SECONDS: self._seconds_ns / 1e9, attributes.GPU_WINDOW: self._window}
        return about


class Part:
    """What a device's clock takes for the span of one part."""

    __slots__ = ("_about", "_span_processor", "_whole")

    def __init__(self, whole: Lasting) -> None:
        self._whole = whole
        self._span_processor = whole._span_processor
        self._about: dict[str, Any] = {}

    def set_attribute(self, key: str, value: Any) -> None:
        self._about[key] = value

    def set_attributes(self, about: Mapping[str, Any]) -> None:
        self._about.update(about)

    def end(self, end_time: int | None = None) -> None:
        self._whole.done(self._about)

    def untold(self, status: str) -> None:
        """Ends it without a time; ``status`` is why, where the clock did not say."""
        self._about.setdefault(attributes.GPU_TIME_STATUS, status)
        self.end()


class Run:
    """One call of a pipeline: what its steps used, added up.

    Attributes:
        items: pieces of input, as far as they are known.
        tally: token positions of the model calls inside.
        timed: the device's time is that of the whole call, not of its batches.
    """

    __slots__ = ("_begun", "_clock", "_cpu", "_cpu_ns", "_source", "_whole", "items", "tally", "timed")

    def __init__(self, clock: DeviceClock, timed: bool) -> None:
        self.timed = timed
        self._clock = clock
        self._cpu: CpuMark | None = None
        self._cpu_ns = 0
        self._source: Source | None = None
        self._whole: Lasting | None = None
        self._begun: tuple[Any, Part] | None = None
        self.items: int | None = None
        self.tally = Tally()

    def add(self, positions: Mapping[str, Any]) -> None:
        """A model call inside told these token positions."""
        self.tally.add(positions)

    def opened(self, call: Call) -> None:
        """The call's span is open; it is this one's to end, if the device's time is to be waited for."""
        # What the process holds of a device is shared out among all calls, sampled or not.
        clock = self._clock
        if clock is not HOST and (call.recording or getattr(clock, "holding", None) is not None):
            self._whole = Lasting(call.span)
            call.span = self._whole  # type: ignore[assignment]

    def enter(self) -> None:
        """A step begins on this thread."""
        INSIDE.active, INSIDE.tally = True, self
        with _STEP:
            self._cpu = CPU.begin()

    def leave(self) -> None:
        """The step is over, on the same thread."""
        INSIDE.active, INSIDE.tally = False, None
        with _STEP:
            mark, self._cpu = self._cpu, None
            if mark is not None:
                used, source = CPU.end(mark)
                self._cpu_ns += used
                self._source = source if self._source in (None, source) else "thread"

    def started(self) -> tuple[Any, Part] | None:
        """Work for the device begins; what to give to `stopped`."""
        whole, clock = self._whole, self._clock
        if whole is None:
            return None
        part, status = whole.part(), STATUS_ERROR
        with _DEVICE:
            if not clock.capturing():
                return clock.begin(), part
            status = STATUS_SKIPPED
        untimed(clock, status)
        part.untold(status)
        return None

    def stopped(self, begun: tuple[Any, Part] | None) -> None:
        """The work that was begun has been handed to the device."""
        if begun is None:
            return
        mark, part = begun
        taken = False
        try:
            with _DEVICE:
                self._clock.end(mark)
                taken = self._clock.settle(mark, part, time_ns())  # type: ignore[arg-type]
        finally:
            if not taken:
                part.untold(STATUS_ERROR)

    def begin(self, call: Call) -> None:
        """The whole call begins, in one step."""
        self.opened(call)
        self.enter()
        self._begun = self.started() if self.timed else None

    def finish(self) -> None:
        """The whole call is over, on the same thread."""
        self.stopped(self._begun)
        self.leave()

    def attributes(self) -> dict[str, Any]:
        """What the steps used, for the span."""
        about = self.tally.attributes()
        if self.items is not None:
            about[attributes.BATCH_SIZE] = self.items
        if self._source is not None:
            about[_CPU_SECONDS] = seconds(self._cpu_ns)
            about[attributes.CPU_TIME_SOURCE] = self._source
        return about


class Steps:
    """Iterator over what a pipeline gives lazily; each step is the run's."""

    __slots__ = ("_call", "_results", "_run")

    def __init__(self, call: Call, results: Iterator[Any]) -> None:
        self._call = call
        self._run: Run = call.state
        self._results = results

    def __iter__(self) -> Steps:
        return self

    def __next__(self) -> Any:
        run = self._run
        if INSIDE.active or self._call.ended:  # part of something else, or begun anew
            return self._results.__next__()
        run.enter()
        try:
            value = self._results.__next__()
        finally:
            run.leave()
        run.items = (run.items or 0) + 1
        return value


def _finish(call: Call) -> None:
    about = call.attributes
    about.pop(attributes.RESPONSE_TIME_TO_FIRST_CHUNK, None)  # a model's stream has one
    about.update(call.state.attributes())


def _outlives(call: Call, result: Any) -> Any:
    """A stand-in for a result that is read later; None for one that is there."""
    if not hasattr(type(result), "__next__"):
        return None
    call.state.items = 0
    return observe(call, result, lambda call, item: None, source=Steps(call, result))


class Pipelines:
    """Makes what stands in the place of pipelines' functions.

    Args:
        hardware: makes the spans and knows the devices.
        patches: those that the replacements are part of.
    """

    def __init__(self, hardware: Hardware, patches: Patches) -> None:
        self._hardware = hardware
        self._patches = patches
        self._pipeline = self._point(PIPELINE, self._of_pipeline)
        self._encoder = self._point(ENCODERS[0], self._of_encoder)

    def apply(self) -> None:
        """Adds all of it to the patches."""
        self._patches.add(PIPELINE, functools.partial(self._call, self._pipeline))
        self._patches.add(FORWARD, self._forward)
        for target in ENCODERS:
            self._patches.add(target, functools.partial(self._call, self._encoder))

    def _point(self, target: str, request: Callable[[tuple[Any, ...], dict[str, Any]], Opening | None]) -> WrapPoint:
        return WrapPoint(
            target=target,
            request=request,
            outlives=_outlives,
            finish=_finish,
            layer="torch.pipeline",
            kind=SpanKind.INTERNAL,
        )

    def _call(self, point: WrapPoint, original: Callable[..., Any]) -> Callable[..., Any]:
        """The replacement of a function that runs models."""
        import torch

        is_compiling = torch.compiler.is_compiling
        tracer, patches = self._hardware.tracer, self._patches

        @functools.wraps(original)
        def call_models(self_: Any, *args: Any, **kwargs: Any) -> Any:
            if INSIDE.active or is_compiling() or not patches.active:
                return original(self_, *args, **kwargs)
            call = begin(point, tracer, self_, args, kwargs)
            if call is None:
                return original(self_, *args, **kwargs)
            run: Run = call.state
            run.begin(call)
            try:
                result = original(self_, *args, **kwargs)
            except BaseException as error:
                run.finish()
                call.raised(error)
                raise
            run.finish()
            return call.returned(result)

        return call_models

    def _forward(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """The replacement of what runs a pipeline's model on one batch."""
        import torch

        tensor_class = torch.Tensor

        @functools.wraps(original)
        def forward(self_: Any, model_inputs: Any, *args: Any, **kwargs: Any) -> Any:
            run: Run | None = INSIDE.tally
            if run is None:
                return original(self_, model_inputs, *args, **kwargs)
            before = run.tally.calls
            begun = None if run.timed else run.started()
            try:
                result = original(self_, model_inputs, *args, **kwargs)
            finally:
                run.stopped(begun)
            if run.tally.calls == before:  # no generation, which knows better
                with _POSITIONS:
                    run.add(_positions(tensor_class, model_inputs))
            return result

        return forward

    def _of_pipeline(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Opening | None:
        pipeline, given, named = args
        opening = self._of_model(pipeline.model, timed=False)
        if opening is not None:
            task = getattr(pipeline, "task", None)
            if isinstance(task, str) and task:
                opening.attributes[attributes.PIPELINE_TASK] = task
            opening.state.items = _items(given[0] if given else named.get("inputs"))
        return opening

    def _of_encoder(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Opening | None:
        model, given, named = args
        opening = self._of_model(model, timed=True)
        if opening is not None:
            first = (
                given[0] if given else next((named[name] for name in ("sentences", "inputs") if name in named), None)
            )
            opening.state.items = _items(first)
        return opening

    def _of_model(self, module: Any, *, timed: bool) -> Opening | None:
        import torch

        if not isinstance(module, torch.nn.Module):
            return None
        hardware = self._hardware
        model = hardware.models.of(module)
        devices = model.devices()
        if not model.is_placed(devices):
            model.placed(hardware.places.of(devices), devices)
        assert model.place is not None
        about = model.about.copy()
        if next(model.calls) == 0:
            mark_cold(about)
        return Opening(model.span_name, about, Run(model.place.clock, timed))


def _items(inputs: Any) -> int | None:
    """Pieces of input in what a pipeline or an encoder is given; None where that is not known before it is read."""
    if isinstance(inputs, (list, tuple)):
        first = inputs[0] if inputs else None
        if isinstance(first, Mapping) and "role" in first:
            return 1  # one conversation
        pair = type(inputs) is tuple and isinstance(first, str)  # what a cross-encoder takes
        return 1 if pair else len(inputs)
    if hasattr(type(inputs), "__next__"):
        return None
    # An array of texts, as columns of tables are given to encoders.
    shape: Any = getattr(inputs, "shape", ())
    return int(shape[0]) if len(shape) == 1 and getattr(inputs.dtype, "kind", "") in "OU" else 1


def _positions(tensor_class: type, model_inputs: Any) -> dict[str, Any]:
    """Token positions of a batch that a model reads once."""
    length = sequence_length(tensor_class, (model_inputs,), {})
    if length is None:
        return {}
    return {attributes.POSITIONS_IN: int(model_inputs["input_ids"].shape[0]) * length}
