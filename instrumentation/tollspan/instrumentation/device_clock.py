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

Clocks here: `HostClock` for devices that work on the caller's own time (the CPU), where there is nothing to add, and
`UnmeasuredClock` for accelerators that nothing measures, where the span says so: unknown is never zero.
"""

from __future__ import annotations

from typing import Final, Protocol

from opentelemetry.trace import Span

from tollspan.pricing import attributes

STATUS_UNMEASURED: Final = "unmeasured"
"""`GPU_TIME_STATUS`: the call ran on an accelerator for which there is no clock."""
STATUS_SKIPPED: Final = "skipped"
"""`GPU_TIME_STATUS`: a graph was being captured, so nothing was recorded."""


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
            How many calls are still pending.
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


HOST: Final[DeviceClock] = HostClock()
_UNMEASURED: Final[DeviceClock] = UnmeasuredClock()
_ON_HOST: Final = frozenset({"cpu", "meta"})


def clock_for(device_type: str, index: int | None = None) -> DeviceClock:
    """The clock of a device.

    Args:
        device_type: as torch names it: ``cpu``, ``cuda``, ``mps``, ``xpu`` ...
        index: which one of its kind; None for the current one.
    """
    return HOST if device_type in _ON_HOST else _UNMEASURED
