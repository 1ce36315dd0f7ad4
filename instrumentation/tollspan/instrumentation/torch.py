"""PyTorch: one span for the outermost call of an ``nn.Module``.

In: every call of every module in the process, through ``nn.Module.__call__``. Out: for the outermost one a span
``inference {model}`` with the model's identity, its device, the batch size, the CPU time and, through `device_clock`,
the device's time. Where it stands: its own wrapper rather than a table over `calls.py`, because a module call is
thousands of times more frequent than a call of a client, and is traced by compilers that must not see it.

What keeps the user's program the same:

* The replacement is a plain function whose first test is ``torch.compiler.is_compiling()``: a tracer folds it to the
  original call, and nothing of ours enters a graph, an export or a script.
* TorchDynamo is told to skip the replacement's own frame, as it skips ``nn.Module.__call__``. Otherwise every compiled
  module of the process would be compiled under this one code object and share its recompile limit: the ninth module
  would silently run uncompiled, or fail with ``fullgraph=True``.
* A thread-local flag marks the inside of an outermost call. (A context variable cannot be traced.)
* Left alone as well: calls under ``jit.trace``, a checkpoint's recomputation during backward, the replicas of
  ``DataParallel``, and training steps (``module.training`` with gradients enabled) unless they are asked for.

It cannot see a compiled *function* that calls a model, nor ``module.forward(...)`` called directly.
"""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable
from contextvars import Token
from time import time_ns
from types import ModuleType
from typing import Any, Final

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.instrumentation.utils import is_instrumentation_enabled
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer

from tollspan.instrumentation.calls import CallInstrumentor
from tollspan.instrumentation.cpu_clock import CPU, CpuMark, seconds
from tollspan.instrumentation.device_clock import HOST, STATUS_SKIPPED, DeviceClock, clock_for
from tollspan.instrumentation.guard import guard
from tollspan.instrumentation.tags import current_tags
from tollspan.instrumentation.torch_models import Models, first_tensor
from tollspan.instrumentation.wrapping import Patches
from tollspan.pricing import attributes

PROVIDER: Final = "pytorch"
TRAINING_ENV: Final = "TOLLSPAN_TORCH_TRAINING"
"""``true`` gives training steps spans as well."""

ClockFor = Callable[[str, int | None], DeviceClock]
_BEGIN: Final = guard("torch.begin")
_DESCRIBE: Final = guard("torch.describe")
_DEVICE: Final = guard("torch.device")
_END: Final = guard("torch.end")
_LONGEST_DESCRIPTION: Final = 512
"""Characters of an exception's message kept as the span's status description."""
_CPU_SECONDS: Final = attributes.usage("cpu.seconds")


class _Inside(threading.local):
    """Whether this thread is inside an outermost module call."""

    active = False


_inside: Final = _Inside()


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
            training = os.environ.get(TRAINING_ENV, "").strip().lower() in {"1", "true", "yes", "on"}
        wrapper = ModuleCall(
            trace.get_tracer(self.scope, tracer_provider=self._options.get("tracer_provider")),
            patches,
            training=training,
            clock_for=self._options.get("clock_for") or clock_for,
        )
        patches.add("torch:nn.Module.__call__", wrapper.make)


class ModuleCall:
    """Makes what stands in the place of ``nn.Module.__call__``.

    Args:
        tracer: makes the spans.
        patches: those that the replacement is part of; once they are removed it only calls the original.
        training: whether training steps have spans.
        clock_for: clock of a device, by its type and index.
    """

    def __init__(self, tracer: Tracer, patches: Patches, *, training: bool, clock_for: ClockFor) -> None:
        self._tracer = tracer
        self._patches = patches
        self._training = training
        self._clock_for = clock_for
        self._models = Models()

    def make(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """The replacement of ``original``. Torch is imported by now."""
        import torch

        is_compiling = torch.compiler.is_compiling
        compiling_frames = _frame_callback(torch)
        inside = _inside
        open_call = self._opener(torch)

        # Read from the top: under a tracer the first line is all there is of this function.
        @functools.wraps(original)
        def module_call(self: Any, *args: Any, **kwargs: Any) -> Any:
            if is_compiling() or inside.active:
                return original(self, *args, **kwargs)
            if compiling_frames() is not None:  # within a compiled region: what we called next would be compiled too
                return original(self, *args, **kwargs)
            inside.active = True
            try:
                return outermost_call(self, args, kwargs)
            finally:
                inside.active = False

        def outermost_call(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            call = None
            with _BEGIN:
                call = open_call(module, args, kwargs)
            if call is None:
                return original(module, *args, **kwargs)
            try:
                result = original(module, *args, **kwargs)
            except BaseException as error:
                with _END:
                    call.close(error)
                raise
            with _END:
                call.close(None)
            return result

        _skip_frame(torch, module_call)
        return module_call

    def _opener(self, torch: ModuleType) -> Callable[[Any, tuple[Any, ...], dict[str, Any]], _Call | None]:
        tensor_class = torch.Tensor
        tracing_state = torch._C._get_tracing_state
        current_graph_task = torch._C._current_graph_task_id
        is_grad_enabled = torch.is_grad_enabled
        device_name = functools.lru_cache(maxsize=None)(functools.partial(_device_name, torch))
        tracer, models, patches = self._tracer, self._models, self._patches
        device_clock, training = self._clock_for, self._training

        def open_call(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Call | None:
            if (
                (not training and module.training and is_grad_enabled())
                or tracing_state() is not None
                or current_graph_task() != -1
                or "_is_replica" in module.__dict__
                or not patches.active
                or not is_instrumentation_enabled()
            ):
                return None
            model = models.of(module)
            about: dict[str, Any] = {
                attributes.OPERATION: attributes.OPERATION_INFERENCE,
                attributes.PROVIDER: PROVIDER,
                attributes.MODEL: model.name,
            }
            clock = HOST
            # What a model unlike all others makes impossible to tell costs that attribute, not the span.
            with _DESCRIBE:
                if next(model.calls) == 0:
                    about[attributes.COLD_START] = True
                about.update(current_tags())
                tensor = first_tensor(tensor_class, args, kwargs)
                # One dimension may be one unbatched item as well as a batch: then nothing is said.
                if tensor is not None and tensor.dim() > 1 and type(size := tensor.shape[0]) is int:
                    about[attributes.BATCH_SIZE] = size
                device = model.device()
                if device is None and tensor is not None:
                    device = tensor.device
                if device is not None:
                    about[attributes.DEVICE_TYPE] = device.type
                    clock = device_clock(device.type, device.index)
                    name = device_name(device.type, device.index)
                    if name is not None:
                        about[attributes.DEVICE_NAME] = name
            return _Call(tracer.start_span(model.span_name, kind=SpanKind.INTERNAL, attributes=about), clock)

        return open_call


class _Call:
    """An outermost call in flight: its span, current for what the model itself may trace, and the clocks around it."""

    __slots__ = ("clock", "cpu", "mark", "span", "token")

    def __init__(self, span: Span, clock: DeviceClock) -> None:
        self.span = span
        self.clock = HOST
        self.mark: object | None = None
        self.cpu: CpuMark | None = None
        self.token: Token[Any] = otel_context.attach(trace.set_span_in_context(span))
        if span.is_recording():
            # A fault of a clock costs its figure, never the span.
            with _DEVICE:
                if clock.capturing():
                    span.set_attribute(attributes.GPU_TIME_STATUS, STATUS_SKIPPED)
                else:
                    self.mark = clock.begin()
                    self.clock = clock
            self.cpu = CPU.begin()

    def close(self, error: BaseException | None) -> None:
        """Ends the span, or leaves it to the device's clock, and takes it out of the context."""
        span, mark = self.span, self.mark
        if self.cpu is None:
            otel_context.detach(self.token)
            span.end()
            return
        cpu_ns, source = CPU.end(self.cpu)
        clock = HOST
        with _DEVICE:
            self.clock.end(mark)
            clock = self.clock
        end_time = time_ns()
        otel_context.detach(self.token)
        taken = False
        try:
            about: dict[str, Any] = {_CPU_SECONDS: seconds(cpu_ns), attributes.CPU_TIME_SOURCE: source}
            if error is not None:
                kind = type(error)
                builtin = kind.__module__ == "builtins"
                about[attributes.ERROR_TYPE] = (
                    kind.__qualname__ if builtin else f"{kind.__module__}.{kind.__qualname__}"
                )
            span.set_attributes(about)
            if error is not None:
                span.set_status(Status(StatusCode.ERROR, str(error)[:_LONGEST_DESCRIPTION] or None))
            taken = clock.settle(mark, span, end_time)
        finally:
            if not taken:
                span.end(end_time)


def _device_name(torch: ModuleType, device_type: str, index: int | None) -> str | None:
    """Product name as the driver gives it; None for a device that has none."""
    if device_type != "cuda":
        return None
    return str(torch.cuda.get_device_name(index))


def _frame_callback(torch: ModuleType) -> Callable[[], Any]:
    """What tells whether frames are being compiled right now on this thread (not None); torch keeps it private."""
    frames: Any = getattr(torch._C._dynamo, "eval_frame", None)
    callback: Callable[[], Any] | None = getattr(frames, "get_eval_frame_callback", None)
    return callback if callback is not None else lambda: None


def _skip_frame(torch: ModuleType, function: Callable[..., Any]) -> None:
    """Has TorchDynamo run ``function``'s own frame as it is and go on with the frames that it calls."""
    frames: Any = getattr(torch._C._dynamo, "eval_frame", None)
    code = function.__code__
    if hasattr(frames, "set_code_exec_strategy"):
        action = frames._FrameAction
        frames.set_code_exec_strategy(code, frames._FrameExecStrategy(action.SKIP, action.DEFAULT))
    elif hasattr(frames, "skip_code"):  # torch 2.6
        frames.skip_code(code)
