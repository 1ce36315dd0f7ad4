"""One execution on own hardware, from its begin to its end: a span, the context inside it, and the clocks around it.

In: a name, attributes and a device's clock. Out: a span with the CPU time and, through `device_clock`, the device's
time. Where it stands: below everything of PyTorch that makes a span (`torch.py`, `torch_generate.py`,
`torch_graphs.py`, `torch_observe.py`), and above the SDK. Written by hand where other modules use a guard or a context
manager: a small model takes fifteen microseconds, and every one of ours is added to it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from time import time_ns
from typing import Any, Final

# The keys under which suppression travels have no public name; the SDK's own exporters take them from here too.
from opentelemetry.context import _SUPPRESS_INSTRUMENTATION_KEY, Context
from opentelemetry.trace import Link, SpanKind, Status, StatusCode, Tracer
from opentelemetry.trace.propagation import _SPAN_KEY

from tollspan.instrumentation.calls import attach, get_current
from tollspan.instrumentation.capacity_minutes import untimed
from tollspan.instrumentation.cpu_clock import CPU, CpuMark
from tollspan.instrumentation.device_clock import HOST, STATUS_ERROR, STATUS_SKIPPED, DeviceClock, unmeasured
from tollspan.instrumentation.guard import report
from tollspan.pricing import attributes

PROVIDER: Final = "pytorch"

_BEGIN: Final = "torch.begin"
_CLOCK: Final = "torch.clock"
_DEVICE: Final = "torch.device"
LONGEST_DESCRIPTION: Final = 512
"""Characters of an exception's message kept as the span's status description."""
_CPU_SECONDS: Final = attributes.usage("cpu.seconds")
_put: Final = dict.__setitem__
"""For a `Context` that nobody has seen yet."""


class Inside(threading.local):
    """Whether this thread is inside an execution. (A context variable cannot be traced by a compiler.)

    Attributes:
        active: it is.
        tally: what takes the token positions of the model calls inside (`torch_pipelines`); None: nobody does.
    """

    active = False
    tally: Any = None


INSIDE: Final = Inside()


def suppressed(context: Context) -> bool:
    """Whether the user wants no spans here."""
    return bool(context.get(_SUPPRESS_INSTRUMENTATION_KEY) or context.get("suppress_instrumentation"))


class Execution:
    """An execution in flight. `close` is to be called once, on the thread that made it.

    Attributes:
        span: what is told and ended in the end; may be replaced by something that stands for the span.

    Args:
        tracer: makes the span.
        name: the span's.
        about: the span's attributes; not changed afterwards.
        before: the context outside.
        clock: of the device that executes.
        links: of the span.
    """

    __slots__ = ("_before", "_clock", "_context", "_cpu", "_mark", "span")

    def __init__(
        self,
        tracer: Tracer,
        name: str,
        about: dict[str, Any],
        before: Context,
        clock: DeviceClock,
        links: Sequence[Link] = (),
    ) -> None:
        self.span = span = tracer.start_span(name, before, SpanKind.INTERNAL, about, links)
        self._before = before
        self._context = inside = Context(before)
        _put(inside, _SPAN_KEY, span)
        self._clock = HOST
        self._mark: object | None = None
        self._cpu: CpuMark | None = None
        attach(inside)
        recording = span.is_recording()
        # What the process holds of a device is shared out among all calls, sampled or not.
        if clock is not HOST and (recording or getattr(clock, "holding", None) is not None):
            # A fault of a clock costs its figure, never the span.
            try:
                if clock.capturing():
                    span.set_attribute(attributes.GPU_TIME_STATUS, STATUS_SKIPPED)
                    untimed(clock, STATUS_SKIPPED)
                else:
                    self._mark = clock.begin()
                    self._clock = clock
            except Exception as fault:  # noqa: BLE001
                report(_DEVICE, fault)
                untimed(clock, STATUS_ERROR)
        if recording:
            self._cpu = CPU.begin()

    def close(self, error: BaseException | None, about: Mapping[str, Any] | None = None) -> None:
        """Ends the span, or leaves it to the device's clock, and takes it out of the context.

        Args:
            error: what the execution raised.
            about: attributes that are known only now.
        """
        span, clock = self.span, self._clock
        if self._cpu is None:
            self._leave()
            if clock is HOST or not self._timed(clock):
                span.end()
            return
        cpu_ns, source = CPU.end(self._cpu)
        if clock is not HOST:
            try:
                clock.end(self._mark)
            except Exception as fault:  # noqa: BLE001
                report(_DEVICE, fault)
                clock = HOST
        end_time = time_ns()
        self._leave()
        taken = False
        try:
            known: dict[str, Any] = {_CPU_SECONDS: cpu_ns / 1e9, attributes.CPU_TIME_SOURCE: source}
            if about:
                known.update(about)
            if error is not None:
                known[attributes.ERROR_TYPE] = error_type(error)
            span.set_attributes(known)
            if error is not None:
                span.set_status(Status(StatusCode.ERROR, str(error)[:LONGEST_DESCRIPTION] or None))
            if clock is not HOST:
                taken = clock.settle(self._mark, span, end_time)
        finally:
            if not taken:
                span.end(end_time)

    def _timed(self, clock: DeviceClock) -> bool:
        """Lets the clock time an execution that has no span to tell it. Returns whether it ends what stands for one."""
        try:
            clock.end(self._mark)
            return clock.settle(self._mark, self.span, time_ns())
        except Exception as fault:  # noqa: BLE001
            report(_DEVICE, fault)
            return False

    def _leave(self) -> None:
        # Set rather than reset by a token: what the model leaves attached is not to make the user's call fail.
        current = get_current()
        if current is self._context or current.get(_SPAN_KEY) is self._context.get(_SPAN_KEY):
            attach(self._before)


def error_type(error: BaseException) -> str:
    """What ``error.type`` says of an exception."""
    kind = type(error)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


class Place:
    """Where a model is: what its spans say of that, and the clock that times them.

    Attributes:
        attributes: span attributes.
        clock: of its device, or of all its devices together.
    """

    __slots__ = ("attributes", "clock")

    def __init__(self, about: dict[str, Any], clock: DeviceClock) -> None:
        self.attributes = about
        self.clock = clock


ClocksFor = Callable[[Sequence[Any]], DeviceClock]
"""Devices, at least one → the clock for executions on all of them."""


class Places:
    """`Place` by devices, each made once.

    Args:
        describe: (device type, index) → span attributes of that device.
        clock: makes the clock of devices.
    """

    def __init__(self, describe: Callable[[str, int | None], Mapping[str, Any]], clock: ClocksFor) -> None:
        self._describe = describe
        self._clock = clock
        self._places: dict[tuple[Any, ...], Place] = {}

    def of(self, devices: tuple[Any, ...]) -> Place:
        """Args:
        devices: torch's, as the model's parameters name them; the first one is said on the span.
        """
        place = self._places.get(devices)
        if place is None:
            place = self._places[devices] = self._made(devices)
        return place

    def _made(self, devices: tuple[Any, ...]) -> Place:
        if not devices:
            return Place({}, HOST)
        # What is paid for by the second is the accelerator, also of a model that is partly on the host.
        working = tuple(device for device in devices if device.type not in ("cpu", "meta"))
        first = (working or devices)[0]
        about: dict[str, Any] = {attributes.DEVICE_TYPE: first.type}
        try:
            about.update(self._describe(first.type, first.index))
        except Exception as fault:  # noqa: BLE001
            report(_DEVICE, fault)
        clock = unmeasured() if working else HOST
        try:
            clock = self._clock(working or devices[:1])
        except Exception as fault:  # noqa: BLE001
            report(_CLOCK, fault)
        return Place(about, clock)
