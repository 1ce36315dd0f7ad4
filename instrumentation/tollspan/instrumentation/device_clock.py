"""Time on the device that executed a call: the interface, and the clocks for devices without one.

In: the instants before and after a call has been enqueued on a device. Out: the device's time on the call's span. Where
it stands: between the wrapped call (`torch.py`) and the driver of one kind of device.

A device works behind the program's back: when a call returns its work may still be queued. A clock therefore only
*records* around the call, and learns the time later, elsewhere. The contract, enforced by a fake device in the tests:

* `begin` and `end` run on the hot path: they record, and never wait for the device nor ask it whether it is done.
* `settle` may take the span over. Then the clock ends it, with the end time it was handed, so that the span's duration
  stays the call's own; whoever made the span must not touch it again.
* `poll` is for the clock's own thread. It is the only place that asks the device.
* While a graph is captured on the stream (`capturing`) nothing is recorded: it would become part of the user's graph.

Clocks here: `HostClock` for devices that work on the caller's own time (the CPU), where there is nothing to add,
`UnmeasuredClock` for accelerators that nothing measures, where the span says so: unknown is never zero, and `Together`
for a call on several devices. The clock of NVIDIA's and AMD's devices is in `torch_events.py`; it needs torch, which
`clock_for` finds where the program has imported it.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Sequence
from typing import Any, Final, Protocol

from opentelemetry.trace import Span

from tollspan.pricing import attributes

STATUS_OK: Final = "ok"
"""`GPU_TIME_STATUS`: measured."""

STATUS_UNMEASURED: Final = "unmeasured"
"""`GPU_TIME_STATUS`: the call ran on an accelerator for which there is no clock."""
STATUS_SKIPPED: Final = "skipped"
"""`GPU_TIME_STATUS`: a graph was being captured, so nothing was recorded."""
STATUS_DROPPED: Final = "dropped"
"""`GPU_TIME_STATUS`: too many calls were waiting for their time already."""
STATUS_TIMEOUT: Final = "timeout"
"""`GPU_TIME_STATUS`: the program ended, or flushed, before the device was done."""
STATUS_ERROR: Final = "error"
"""`GPU_TIME_STATUS`: the driver refused; after an error of the device it does so for ever."""


class DeviceClock(Protocol):
    """Times calls on one device."""

    def capturing(self) -> bool:
        """True while a graph is captured on the calling thread's current stream."""
        ...

    def begin(self, stream: object | None = None) -> object | None:
        """Records the start of a call on ``stream``, by default the device's current one.

        Returns:
            The mark to hand to `end`; None where nothing is timed.
        """
        ...

    def end(self, mark: object | None) -> None:
        """Records the end of the call that ``mark`` began. Called right after it, whether it returned or raised."""
        ...

    def settle(self, mark: object | None, span: Span, end_time: int) -> bool:
        """Puts the call's time on its span, now or later.

        Args:
            mark: what `begin` returned, after `end`.
            span: the call's span, complete but for this and still open.
            end_time: when the call returned, in nanoseconds since the epoch.

        Returns:
            True if the clock has taken the span over and will end it at ``end_time``; False if the caller ends it.
        """
        ...

    def poll(self) -> int:
        """Completes what the device has finished. Off the hot path only.

        Returns:
            How many spans it still holds.
        """
        ...


class HostClock:
    """A device whose work is done when the call returns: its time is the CPU's, and metered there."""

    __slots__ = ()

    def capturing(self) -> bool:
        return False

    def begin(self, stream: object | None = None) -> None:
        return None

    def end(self, mark: object | None) -> None:
        return None

    def settle(self, mark: object | None, span: Span, end_time: int) -> bool:
        return False

    def poll(self) -> int:
        return 0


class UnmeasuredClock(HostClock):
    """An accelerator without a clock: its time is absent from the span, which says that it was not measured."""

    __slots__ = ()

    def settle(self, mark: object | None, span: Span, end_time: int) -> bool:
        span.set_attribute(attributes.GPU_TIME_STATUS, STATUS_UNMEASURED)
        return False


class _Part:
    """One device's part of a call on several: what the device's clock takes for the call's span."""

    __slots__ = ("_span_processor", "about", "whole")

    def __init__(self, whole: _Whole, span: Span) -> None:
        self.whole = whole
        self._span_processor = getattr(span, "_span_processor", None)
        self.about: dict[str, Any] = {}

    def set_attribute(self, key: str, value: Any) -> None:
        self.about[key] = value

    def set_attributes(self, about: dict[str, Any]) -> None:
        self.about.update(about)

    def end(self, end_time: int | None = None) -> None:
        self.whole.one_done()


class _Whole:
    """A call on several devices: its span ends when each device has told its time."""

    __slots__ = ("_end_time", "_lock", "_open", "_span", "parts")

    def __init__(self, span: Span, end_time: int, devices: int) -> None:
        self.parts = [_Part(self, span) for _ in range(devices)]
        self._span = span
        self._end_time = end_time
        self._open = devices
        self._lock = threading.Lock()

    def one_done(self) -> None:
        with self._lock:
            self._open -= 1
            if self._open:
                return
        self._span.set_attributes(_summed([part.about for part in self.parts]))
        self._span.end(self._end_time)


def _summed(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Seconds of all devices together, the longest window, and the first status that is not ``ok``. Where one device
    did not tell its time the sum of the others is not the call's, and nothing is said."""
    states = [str(part.get(attributes.GPU_TIME_STATUS)) for part in parts]
    not_ok = [state for state in states if state != STATUS_OK]
    if not_ok:
        return {attributes.GPU_TIME_STATUS: not_ok[0]}
    nanoseconds = sum(round(part[GPU_SECONDS] * 1e9) for part in parts)
    shared = [part[attributes.GPU_SHARED] for part in parts if attributes.GPU_SHARED in part]
    return {
        **parts[0],
        **({attributes.GPU_SHARED: any(shared)} if shared else {}),
        GPU_SECONDS: nanoseconds / 1e9,
        attributes.GPU_WINDOW: max(part[attributes.GPU_WINDOW] for part in parts),
    }


GPU_SECONDS: Final = attributes.usage("gpu.seconds")


class Together:
    """The clock of a call that works on several devices: its seconds are the sum of theirs.

    Args:
        clocks: of the devices, two or more.
    """

    __slots__ = ("clocks",)

    def __init__(self, clocks: Sequence[DeviceClock]) -> None:
        self.clocks = tuple(clocks)

    @property
    def holding(self) -> object | None:
        """Of any of the devices, where what the process holds is accounted for."""
        return next((held for each in self.clocks if (held := getattr(each, "holding", None)) is not None), None)

    def capturing(self) -> bool:
        return any(clock.capturing() for clock in self.clocks)

    def begin(self, stream: object | None = None) -> object:
        return tuple(clock.begin(stream) for clock in self.clocks)

    def end(self, mark: object | None) -> None:
        for clock, part in zip(self.clocks, mark or (), strict=False):  # type: ignore[call-overload]
            clock.end(part)

    def settle(self, mark: object | None, span: Span, end_time: int) -> bool:
        whole = _Whole(span, end_time, len(self.clocks))
        for clock, part, told in zip(self.clocks, mark, whole.parts, strict=True):  # type: ignore[call-overload]
            if not clock.settle(part, told, end_time):
                told.end()
        return True

    def poll(self) -> int:
        return sum(clock.poll() for clock in self.clocks)


HOST: Final[DeviceClock] = HostClock()
_UNMEASURED: Final[DeviceClock] = UnmeasuredClock()
_ON_HOST: Final = frozenset({"cpu", "meta"})


def unmeasured() -> DeviceClock:
    """The clock of an accelerator that has none."""
    return _UNMEASURED


def clock_for(device_type: str, index: int | None = None) -> DeviceClock:
    """The clock of a device.

    Args:
        device_type: as torch names it: ``cpu``, ``cuda`` (AMD's as well), ``mps``, ``xpu`` ...
        index: which one of its kind; None for the current one.
    """
    if device_type in _ON_HOST:
        return HOST
    if device_type == "cuda" and "torch" in sys.modules:
        # Imported here: it stands on this module.
        from tollspan.instrumentation.torch_cuda import cuda_clock

        return cuda_clock(index) or _UNMEASURED
    return _UNMEASURED
