"""PyTorch: one span for the outermost call of an ``nn.Module``.

In: every call of every module in the process, through ``nn.Module.__call__``. Out: for the outermost one a span
``inference {model}`` with the model's identity, its device, the batch size, the CPU time and, through `device_clock`,
the device's time. Where it stands: its own wrapper rather than a table over `calls.py`, because a module call is
thousands of times more frequent than a call of a client, and is traced by compilers that must not see it.

What keeps the user's program the same:

* The replacement is a plain function whose first test is ``is_dynamo_compiling()``: a tracer folds it to the
  original call, and nothing of ours enters a graph, an export or a script.
* TorchDynamo is told to skip the replacement's own frame, as it skips ``nn.Module.__call__``. Otherwise every compiled
  module of the process would be compiled under this one code object and share its recompile limit: the ninth module
  would silently run uncompiled, or fail with ``fullgraph=True``.
* A thread-local flag marks the inside of an outermost call. (A context variable cannot be traced.)
* Left alone as well: calls under ``jit.trace``, a checkpoint's recomputation during backward, the replicas of
  ``DataParallel``, and training steps (``module.training`` with gradients enabled) unless they are asked for.

It cannot see a compiled *function* that calls a model, nor ``module.forward(...)`` called directly: `torch_observe` is
for these. ``generate`` of transformers (`torch_generate`), its pipelines and the encoders of sentence-transformers
(`torch_pipelines`), and the replay of a CUDA graph (`torch_graphs`) are outermost calls too.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from types import ModuleType
from typing import Any, Final

from opentelemetry import trace

# The key under which suppression travels has no public name; the SDK's own exporters take it from here too.
from opentelemetry.context import _SUPPRESS_INSTRUMENTATION_KEY

from tollspan.instrumentation.calls import CallInstrumentor, get_current
from tollspan.instrumentation.device_clock import HOST, clock_for
from tollspan.instrumentation.guard import report
from tollspan.instrumentation.later_spans import PENDING, Batched, LaterSpan, whole
from tollspan.instrumentation.process_start import mark_cold
from tollspan.instrumentation.switches import is_on
from tollspan.instrumentation.torch_cuda import RESOLVER
from tollspan.instrumentation.torch_execution import INSIDE, Execution
from tollspan.instrumentation.torch_generate import Generate
from tollspan.instrumentation.torch_graphs import CAPTURE, graph_points
from tollspan.instrumentation.torch_hardware import Hardware, install, uninstall
from tollspan.instrumentation.torch_models import first_tensor, sequence_length
from tollspan.instrumentation.torch_pipelines import Pipelines
from tollspan.instrumentation.wrapping import Patches

TRAINING_ENV: Final = "TOLLSPAN_TORCH_TRAINING"
"""``true`` gives training steps spans as well."""

_BEGIN: Final = "torch.begin"
_DESCRIBE: Final = "torch.describe"
_END: Final = "torch.end"


class TorchInstrumentor(CallInstrumentor):
    """Spans for PyTorch inference. Does not import torch: it waits until the program does.

    ``instrument()`` takes, beside OpenTelemetry's ``tracer_provider``:
        training: give training steps spans too; default: the environment's ``TOLLSPAN_TORCH_TRAINING``, else False.
        clock_for: (device type, device index) → `DeviceClock`, in place of `device_clock.clock_for`.
    """

    scope = __name__
    requires = ("torch >= 2.6",)
    points = ()

    def _instrument(self, **kwargs: Any) -> None:
        self._options = kwargs
        super()._instrument(**kwargs)

    def patch(self, patches: Patches) -> None:
        training = self._options.get("training")
        if training is None:
            training = is_on(TRAINING_ENV)
        tracer = trace.get_tracer(self.scope, tracer_provider=self._options.get("tracer_provider"))
        hardware = Hardware(tracer, self._options.get("clock_for") or clock_for)
        wrapper = ModuleCall(hardware, patches, training=training)
        patches.add("torch:nn.Module.__call__", wrapper.make)
        patches.add("transformers.generation.utils:GenerationMixin.generate", Generate(hardware, patches).make)
        Pipelines(hardware, patches).apply()
        for target, make in graph_points(hardware, patches, RESOLVER).items():
            patches.add(target, make)
        install(hardware)

    def _uninstrument(self, **kwargs: Any) -> None:
        uninstall()
        super()._uninstrument(**kwargs)


class ModuleCall:
    """Makes what stands in the place of ``nn.Module.__call__``.

    Args:
        hardware: makes the spans and knows the devices.
        patches: those that the replacement is part of; once they are removed it only calls the original.
        training: whether training steps have spans.
    """

    def __init__(self, hardware: Hardware, patches: Patches, *, training: bool) -> None:
        self._hardware = hardware
        self._patches = patches
        self._training = training

    def make(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """The replacement of ``original``. Torch is imported by now."""
        import torch

        traced = torch.compiler.is_dynamo_compiling  # of what tells it the cheapest: every inner module asks
        is_compiling = torch.compiler.is_compiling
        compiling_frames = _frame_callback(torch)
        inside = INSIDE
        open_call = self._opener(torch)

        direct = _only_dispatches(original)

        # Read from the top: under a tracer the first two lines are all there is of this function.
        @functools.wraps(original)
        def module_call(self: Any, *args: Any, **kwargs: Any) -> Any:
            if traced():
                return original(self, *args, **kwargs)
            if inside.active:
                if direct:  # what the original would do: one call less for every inner module
                    compiled = self._compiled_call_impl
                    return self._call_impl(*args, **kwargs) if compiled is None else compiled(*args, **kwargs)
                return original(self, *args, **kwargs)
            # An export that traces otherwise; or within a compiled region: what we called next would be compiled too.
            if is_compiling() or compiling_frames() is not None:
                return original(self, *args, **kwargs)
            inside.active = True
            try:
                return outermost_call(self, args, kwargs)
            finally:
                inside.active = False

        def outermost_call(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            call = None
            try:
                call = open_call(module, args, kwargs)
            except Exception as fault:  # noqa: BLE001
                report(_BEGIN, fault)
            if call is None:
                return original(module, *args, **kwargs)
            try:
                result = original(module, *args, **kwargs)
            except BaseException as error:
                close(call, error)
                raise
            close(call, None)
            return result

        def close(call: Execution | LaterSpan, error: BaseException | None) -> None:
            try:
                call.close(error)
            except Exception as fault:  # noqa: BLE001
                report(_END, fault)

        _skip_frame(torch, module_call)
        return module_call

    def _opener(
        self, torch: ModuleType
    ) -> Callable[[Any, tuple[Any, ...], dict[str, Any]], Execution | LaterSpan | None]:
        tensor_class = torch.Tensor
        tracing_state = torch._C._get_tracing_state
        current_graph_task = torch._C._current_graph_task_id
        is_grad_enabled = torch.is_grad_enabled
        hardware, patches, training = self._hardware, self._patches, self._training
        tracer, of, places = hardware.tracer, hardware.models.of, hardware.places
        may_wait = Batched(tracer, PENDING.resolver)
        exports_unsaid = not hasattr(torch.compiler, "is_exporting")  # torch 2.6: a strict export is no compiling yet

        def open_call(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Execution | LaterSpan | None:
            context = get_current()
            if (
                (not training and module.training and is_grad_enabled())
                or tracing_state() is not None
                or current_graph_task() != -1
                or "_is_replica" in module.__dict__
                or not patches.active
                or context.get(_SUPPRESS_INSTRUMENTATION_KEY)
                or context.get("suppress_instrumentation")
                or (exports_unsaid and getattr(module.__dict__.get("dynamo_ctx"), "export", False))
            ):
                return None
            model = of(module)
            about, clock = model.about, HOST
            batch = length = None
            # What a model unlike all others makes impossible to tell costs that attribute, not the span.
            try:
                devices = model.devices()
                if not model.is_placed(devices):
                    model.placed(places.of(devices), devices)
                place, about = model.place, model.about
                if next(model.calls) == 0:
                    about = about.copy()
                    mark_cold(about)
                tensor = first_tensor(tensor_class, args, kwargs)
                if tensor is not None:
                    # One dimension may be one unbatched item as well as a batch: then nothing is said.
                    if tensor.dim() > 1 and type(size := tensor.shape[0]) is int:
                        batch = size
                        if not args or args[0] is not tensor:  # else it is not called ``input_ids``
                            length = sequence_length(tensor_class, args, kwargs)
                    if not devices:
                        place = places.of((tensor.device,))
                        about = {**about, **place.attributes}
                if place is not None:
                    clock = place.clock
            except Exception as fault:  # noqa: BLE001
                report(_DESCRIBE, fault)
            if clock is HOST and CAPTURE.note is None and may_wait():
                return LaterSpan(tracer, PENDING, model.span_name, about, batch, length, context)
            about = whole(about, batch, length, context)
            if CAPTURE.note is not None:
                CAPTURE.note.holds(model.span_name, about, clock)
            return Execution(tracer, model.span_name, about, context, clock)

        return open_call


def _frame_callback(torch: ModuleType) -> Callable[[], Any]:
    """What tells whether frames are being compiled right now on this thread (not None); torch keeps it private."""
    frames: Any = getattr(torch._C._dynamo, "eval_frame", None)
    callback: Callable[[], Any] | None = getattr(frames, "get_eval_frame_callback", None)
    if callback is None:
        return lambda: None
    if _release(torch) >= (2, 8):
        return callback
    # Before, it hands out an object without a reference of ours to it: each call takes one away, of None where nothing
    # is compiled, and Python without an immortal None aborts when the last one is gone.
    told, hold = callback, ctypes.pythonapi["Py_IncRef"]  # by item: one of our own
    hold.argtypes, hold.restype = (ctypes.py_object,), None

    def held() -> Any:
        found = told()
        hold(found)
        return found

    _skip_frame(torch, held)
    return held


def _release(torch: ModuleType) -> tuple[int, int]:
    """Major and minor version of torch."""
    major, minor = str(torch.__version__).split(".")[:2]
    return int(major), int(minor)


def _only_dispatches(original: Callable[..., Any]) -> bool:
    """Whether ``nn.Module.__call__`` is torch's own, and does nothing but choose between a module's two implementations
    of a call. These have no public name, so that is read from its code."""
    code = getattr(original, "__code__", None)
    return code is not None and (code.co_names, code.co_consts) == (("_compiled_call_impl", "_call_impl"), (None,))


def _skip_frame(torch: ModuleType, function: Callable[..., Any]) -> None:
    """Has TorchDynamo run ``function``'s own frame as it is and go on with the frames that it calls."""
    frames: Any = getattr(torch._C._dynamo, "eval_frame", None)
    code = function.__code__
    if hasattr(frames, "set_code_exec_strategy"):
        action = frames._FrameAction
        frames.set_code_exec_strategy(code, frames._FrameExecStrategy(action.SKIP, action.DEFAULT))
    elif hasattr(frames, "skip_code"):  # torch 2.6
        frames.skip_code(code)
