"""A span for each run of a session: what stands in the place of ``Session.run`` and of its sisters.

In: runs. Out: a span ``inference {model}`` each, with CPU time and, on an accelerator, the device's. Where it stands: a
path of its own rather than a table over `calls.py`, because a run may take five microseconds, and every microsecond
that is added counts.

A run inside another run of the same context is part of it. ``run_async`` returns when the run has been queued; its span
ends when ONNX Runtime calls back, on a thread of its own, and the program's callback runs after that in the context in
which the program asked. Its CPU time is known only where nothing else was in flight.
"""

from __future__ import annotations

import functools
import re
import threading
from collections.abc import Callable
from time import time_ns
from typing import Any, ClassVar, Final, cast

from opentelemetry.context import _SUPPRESS_INSTRUMENTATION_KEY, Context
from opentelemetry.trace import NoOpTracer, Span, SpanKind, Status, StatusCode, Tracer, get_current_span
from opentelemetry.trace.propagation import _SPAN_KEY

from tollspan.instrumentation import exits
from tollspan.instrumentation.calls import Call, attach, get_current
from tollspan.instrumentation.capacity_minutes import untimed
from tollspan.instrumentation.cpu_clock import CPU, seconds
from tollspan.instrumentation.device_clock import HOST, STATUS_SKIPPED, STATUS_UNMEASURED, DeviceClock
from tollspan.instrumentation.guard import guard, report
from tollspan.instrumentation.later_spans import PENDING, Batched, LaterSpan, whole
from tollspan.instrumentation.onnxruntime import devices
from tollspan.instrumentation.onnxruntime.sessions import Bound, SessionNote, bound, sessions, waits
from tollspan.instrumentation.process_start import mark_cold
from tollspan.instrumentation.wrapping import Patches
from tollspan.pricing import attributes

Given = Callable[[str, tuple[Any, ...], dict[str, Any]], Any]
"""(name of the model's first input, args, kwargs) → what the run was given for it."""
Wrapper = Callable[..., Any]

_SUPPRESS_PLAIN: Final = "suppress_instrumentation"
_KEY: Final = "tollspan.call.onnxruntime"
_CPU_SECONDS: Final = attributes.usage("cpu.seconds")
_CPU_SOURCE: Final = attributes.CPU_TIME_SOURCE
_INTERNAL: Final = SpanKind.INTERNAL
_LONGEST_DESCRIPTION: Final = 512
"""Characters of an exception's message kept as the span's status description."""
_CODE: Final = re.compile(r"\[ONNXRuntimeError\] : \d+ : ([A-Z_]+)")
_OTHER: Final = "_OTHER"
"""What the conventions call an error that says nothing of its kind."""

_put: Final = dict.__setitem__
"""For a `Context` that nobody has seen yet."""
_NO_CONTEXT: Final = Context()
_OPEN: Final = "onnxruntime.open"
_CLOSE: Final = "onnxruntime.close"
_DESCRIBE: Final = "onnxruntime.describe"
_DEVICE: Final = guard("onnxruntime.device")
_BOUND: Final = guard("onnxruntime.bound")
_CALLBACK: Final = guard("onnxruntime.callback")


class Execution:
    """A run or a load in flight: its span, current for what happens inside, and the CPU's clock around it.

    Attributes:
        span: its span.
        ended: it is over, and a context that outlives it is no inside of it.
        on_device: there is an accelerator's clock to be asked.
    """

    __slots__ = ("_before", "_context", "_cpu", "ended", "span")

    on_device: ClassVar = False

    def __init__(self, span: Span, before: Context) -> None:
        self.span = span
        self.ended = False
        self._before = before
        self._context = inside = Context(before)
        _put(inside, _SPAN_KEY, span)
        _put(inside, _KEY, self)
        self._cpu = CPU.begin() if span.is_recording() else None
        attach(inside)

    def close(self, error: BaseException | None = None, more: Callable[[], dict[str, Any]] | None = None) -> None:
        """Put back the context that was current before, and end the span as of now.

        Args:
            error: what was raised.
            more: what to put on it that takes time to find out.
        """
        self.ended = True
        span, cpu = self.span, self._cpu
        if cpu is not None:
            cpu_ns, source = CPU.end(cpu)
        if self.on_device:
            self._device_done()
        end_time = time_ns()
        if get_current() is self._context:
            attach(self._before)
        # The context holds this: let go of it, so that nothing is left to the garbage collector.
        self._context = self._before = _NO_CONTEXT
        if cpu is None:
            if not self._settled(end_time):
                span.end()
            return
        taken = False
        try:
            span.set_attributes({_CPU_SECONDS: cpu_ns / 1e9, _CPU_SOURCE: source})
            if more is not None:
                span.set_attributes(more())
            if error is not None:
                note_error(span, error)
            taken = self.on_device and self._settled(end_time)
        finally:
            if not taken:
                span.end(end_time)

    def _device_done(self) -> None:
        return None

    def _settled(self, end_time: int) -> bool:
        return False


class DeviceExecution(Execution):
    """A run on an accelerator in flight, with the device's clock around it."""

    __slots__ = ("_clock", "_mark")

    on_device = True

    def __init__(self, span: Span, before: Context, note: SessionNote, options: Any) -> None:
        self._clock: DeviceClock | None = None
        self._mark: object | None = None
        # What the process holds of a device is shared out among all calls, sampled or not.
        if span.is_recording() or getattr(note.wall, "holding", None) is not None:
            with _DEVICE:  # a fault of a clock costs its figure, never the span
                self._begin_device(span, before, note, options)
        super().__init__(span, before)

    def _begin_device(self, span: Span, before: Context, note: SessionNote, options: Any) -> None:
        if note.clock is not note.wall:
            if note.clock.capturing():
                span.set_attribute(attributes.GPU_TIME_STATUS, STATUS_SKIPPED)
                untimed(note.wall, STATUS_SKIPPED)
                return
            self._mark = note.clock.begin(note.stream)
            if self._mark is not None:
                self._clock = note.clock
                return
        clock, status = wall_or_why_not(note, before, options)
        if clock is None:
            span.set_attribute(attributes.GPU_TIME_STATUS, status)
            return
        self._mark = clock.begin()
        self._clock = clock

    def _device_done(self) -> None:
        clock, self._clock = self._clock, None
        if clock is not None:
            with _DEVICE:
                clock.end(self._mark)
                self._clock = clock

    def _settled(self, end_time: int) -> bool:
        return self._clock is not None and self._clock.settle(self._mark, self.span, end_time)


def wall_or_why_not(note: SessionNote, around: Context, options: Any) -> tuple[DeviceClock | None, str]:
    """The wall clock of a run's device, or the status of one whose wall time says nothing, or nothing new."""
    if note.wall is None or not waits(options):
        untimed(note.wall, STATUS_UNMEASURED)
        return None, STATUS_UNMEASURED
    said = getattr(get_current_span(around), "attributes", None) or {}
    if said.get(attributes.OPERATION) == attributes.OPERATION_INFERENCE and said.get(
        attributes.DEVICE_TYPE
    ) == devices.torch_type(note.device or ""):
        return None, devices.STATUS_INSIDE
    return note.wall, ""


def note_error(span: Span, error: BaseException) -> None:
    """Put an exception on a span."""
    kind = type(error)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    span.set_attribute(attributes.ERROR_TYPE, name)
    span.set_status(Status(StatusCode.ERROR, str(error)[:_LONGEST_DESCRIPTION] or None))


class Runs:
    """Makes what stands in the place of a session's methods.

    Args:
        tracer: makes the spans.
        patches: those that the replacements are part of; once they are removed these only call the originals.
        clock_for: clock of a device, by its type and index.
    """

    def __init__(self, tracer: Tracer, patches: Patches, clock_for: devices.ClockFor) -> None:
        self._tracer = tracer
        self._patches = patches
        self._clock_for = clock_for
        self._tracing = False
        self._may_wait = Batched(tracer, PENDING.resolver)

    def sync(self, given: Given, options_at: int) -> Callable[[Wrapper], Wrapper]:
        """The replacement of a method that returns when the run is over; its run options are ``args[options_at]``."""

        def make(original: Wrapper) -> Wrapper:
            patches, opening = self._patches, self._opening
            open_run = functools.partial(opening, given, options_at)
            traces = self._traces

            @functools.wraps(original)
            def run(*args: Any, **kwargs: Any) -> Any:
                if not patches.active:
                    return original(*args, **kwargs)
                context = get_current()
                outer = context.get(_KEY)
                if (
                    (outer is not None and not outer.ended)  # type: ignore[attr-defined]
                    or context.get(_SUPPRESS_INSTRUMENTATION_KEY)
                    or context.get(_SUPPRESS_PLAIN)
                ):
                    return original(*args, **kwargs)
                execution = None
                try:
                    if traces():
                        execution = open_run(context, args, kwargs)
                except Exception as error:  # noqa: BLE001
                    report(_OPEN, error)
                if execution is None:
                    return original(*args, **kwargs)
                try:
                    result = original(*args, **kwargs)
                except BaseException as error:
                    closed(execution, error)
                    raise
                try:
                    execution.close()
                except Exception as error:  # noqa: BLE001
                    report(_CLOSE, error)
                return result

            return run

        return make

    def _traces(self) -> bool:
        """Whether anybody traces. A tracer taken before the program set its provider stands for one that came later."""
        if not self._tracing:
            tracer = self._tracer
            self._tracing = type(getattr(tracer, "_tracer", tracer)) is not NoOpTracer
        return self._tracing

    def _opening(
        self, given: Given, options_at: int, context: Context, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Execution | LaterSpan:
        note = self._note(args[0])
        about, batch = _about(note, given, args, kwargs)
        if note.clock is HOST and self._may_wait():
            return LaterSpan(self._tracer, PENDING, note.span_name, about, batch, None, context, _KEY)
        span = self._tracer.start_span(note.span_name, context, _INTERNAL, whole(about, batch, None, context))
        if note.clock is HOST:
            return Execution(span, context)
        options = args[options_at] if len(args) > options_at else kwargs.get("run_options")
        return DeviceExecution(span, context, note, options)

    def _note(self, session: Any) -> SessionNote:
        note = sessions.of(session)
        if session.get_providers() is not note.providers:
            note.refresh(session, self._clock_for)
        return note

    def asynchronous(self, given: Given) -> Callable[[Wrapper], Wrapper]:
        """The replacement of ``run_async(self, output_names, input_feed, callback, user_data, run_options=None)``."""

        def make(original: Wrapper) -> Wrapper:
            @functools.wraps(original)
            def run_async(*args: Any, **kwargs: Any) -> Any:
                queued = None
                if self._patches.active:
                    try:
                        queued = self._queued(given, args, kwargs)
                    except Exception as error:  # noqa: BLE001
                        report(_OPEN, error)
                if queued is None:
                    return original(*args, **kwargs)
                args, kwargs = queued.placed(args, kwargs)
                try:
                    result = original(*args, **kwargs)
                except BaseException as error:
                    with _CALLBACK:
                        queued.failed(error)
                    raise
                return result

            return run_async

        return make

    def _queued(self, given: Given, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Queued | None:
        context = get_current()
        if context.get(_SUPPRESS_INSTRUMENTATION_KEY) or context.get(_SUPPRESS_PLAIN):
            return None
        callback = args[3] if len(args) > 3 else kwargs.get("callback")
        if not callable(callback):
            return None
        note = self._note(args[0])
        about = whole(*_about(note, given, args, kwargs), None, context)
        span = self._tracer.start_span(note.span_name, context, _INTERNAL, about)
        if not span.is_recording():
            untimed(note.wall, STATUS_UNMEASURED)
            return None
        return Queued(span, context, callback, note, args[5] if len(args) > 5 else kwargs.get("run_options"))

    def binding(self, read: Bound) -> Callable[[Wrapper], Wrapper]:
        """The replacement of a method of ``IOBinding`` that binds an input."""

        def make(original: Wrapper) -> Wrapper:
            @functools.wraps(original)
            def bind(*args: Any, **kwargs: Any) -> Any:
                result = original(*args, **kwargs)
                if self._patches.active:
                    with _BOUND:
                        name, shape = read(*args[1:], **kwargs)
                        bound.of(args[0])[name] = tuple(shape)
                return result

            return bind

        return make

    def clearing(self, original: Wrapper) -> Wrapper:
        """The replacement of ``IOBinding.clear_binding_inputs``."""

        @functools.wraps(original)
        def clear_binding_inputs(*args: Any, **kwargs: Any) -> Any:
            result = original(*args, **kwargs)
            with _BOUND:
                bound.of(args[0]).clear()
            return result

        return clear_binding_inputs


def _about(
    note: SessionNote, given: Given, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[dict[str, Any], int | None]:
    """What the span of a run begins with, not to be changed, and the batch size."""
    about, batch = note.about, None
    try:
        if note.first is not None and (value := given(note.first, args, kwargs)) is not None:
            batch = note.batch_size(value)
    except Exception as error:  # noqa: BLE001
        # What a feed unlike all others makes impossible to tell costs that attribute, not the span.
        report(_DESCRIBE, error)
    runs = note.runs
    if runs is not None:
        if next(runs) == 0:
            about = about.copy()
            mark_cold(about)
        note.runs = None
    return about, batch


def closed(execution: Execution | LaterSpan, error: BaseException) -> None:
    """`Execution.close` in a guard, for what was raised."""
    try:
        execution.close(error)
    except Exception as fault:  # noqa: BLE001
        report(_CLOSE, fault)


class Queued:
    """An asynchronous run: stands in for the program's callback.

    Its span ends once: when it is called back, when the call raised, or when the program ends before either.
    """

    __slots__ = ("__weakref__", "_callback", "_clock", "_context", "_cpu", "_mark", "_once", "span")

    def __init__(self, span: Span, context: Context, callback: Wrapper, note: SessionNote, options: Any) -> None:
        self.span = span
        self._context = context
        self._callback = callback
        self._once = threading.Lock()
        self._clock: DeviceClock | None = None
        self._mark: object | None = None
        exits.remember(cast(Call, self), self)
        with _DEVICE:
            # On the wall: an event that was recorded on another thread than this may be in front of others' work.
            if note.clock is not HOST:
                self._clock, status = wall_or_why_not(note, context, options)
                if self._clock is None:
                    span.set_attribute(attributes.GPU_TIME_STATUS, status)
                else:
                    self._mark = self._clock.begin()
        self._cpu = CPU.begin_apart()

    def placed(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments of the call, with this in the callback's place."""
        if len(args) > 3:
            return (*args[:3], self, *args[4:]), kwargs
        return args, {**kwargs, "callback": self}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """``callback(results, user_data, error)``, where an empty error is none."""
        with _CALLBACK:
            said = args[2] if len(args) > 2 else None
            self._end(str(said) if said else None, None)
        before = get_current()
        attach(self._context)
        try:
            return self._callback(*args, **kwargs)
        finally:
            attach(before)

    def failed(self, error: BaseException) -> None:
        """The call raised, and nothing was queued."""
        self._end(None, error)

    def abandon(self) -> None:
        """The program ends before the run: what it used is not known."""
        if self._once.acquire(blocking=False):
            CPU.end_apart(self._cpu)
            self.span.end()

    def _end(self, said: str | None, error: BaseException | None) -> None:
        if not self._once.acquire(blocking=False):
            return
        cpu_ns = CPU.end_apart(self._cpu)
        end_time = time_ns()
        span = self.span
        try:
            if cpu_ns is not None:
                span.set_attributes({_CPU_SECONDS: seconds(cpu_ns), _CPU_SOURCE: "process"})
            if self._clock is not None:
                self._clock.end(self._mark)
                self._clock.settle(self._mark, span, end_time)
            if error is not None:
                note_error(span, error)
            elif said is not None:
                code = _CODE.search(said)
                span.set_attribute(attributes.ERROR_TYPE, code[1] if code else _OTHER)
                span.set_status(Status(StatusCode.ERROR, said[:_LONGEST_DESCRIPTION]))
        finally:
            span.end(end_time)
