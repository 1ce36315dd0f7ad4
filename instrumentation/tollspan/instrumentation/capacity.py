"""Capacity: a span for every minute of a device that the process holds, with what of it was idle.

In: the clocks of devices, from the first call on (`in_use`). Out: for each device and each minute of the wall clock,
and for the part of one when the process ends, a root span ``capacity {device}`` with the seconds that were allocated to
the process, those that its calls were given, and the difference as the usage ``gpu.idle_seconds``, which the processor
prices as a row of its own; and two counters. For CPUs the same, where it is asked for. Where it stands: above
`capacity_minutes.py`, which does the sums, and the clocks, which report to it.

| variable | values | |
|--|--|--|
| ``TOLLSPAN_CAPACITY`` | ``gpu`` (default), ``cpu``, ``all``, ``off`` | whose minutes are told |
| ``TOLLSPAN_CAPACITY_SHARE`` | a part of 1: ``1/4``, ``0.25`` | what of a shared device is this process's |

* A GPU counts from the first call on it to the end of the process. A slice of a partitioned one is a device here, whose
  price is a part of the whole one's: its seconds are not multiplied by that part once more.
* Seconds that no call was given are idle: also those of training steps and of calls that nothing sees. What NVML says
  stands beside it, to tell how much that may be.
* Nothing runs before a device is in use. Then one daemon thread wakes once a minute (every five seconds where NVML is
  asked). It holds up no exit: the last part of a minute is told by the provider's shutdown, or by `atexit` before it.
* A minute is told when every call that began in it has ended; the spans of minutes are sampled like any other root.

Evidence: order, conservation, flush, shutdown and fork by the tests with a fake device in virtual time and with real
CPUs. No GPU has run this.
"""

from __future__ import annotations

import atexit
import logging
import os
import sys
import threading
import weakref
from collections.abc import Callable, Collection, Mapping
from fractions import Fraction
from time import monotonic_ns, time_ns
from typing import Any, Final

from opentelemetry import metrics, trace
from opentelemetry.context import Context

# The module switches type checking off for itself, so checkers find no names in it.
from opentelemetry.instrumentation.instrumentor import BaseInstrumentor  # type: ignore[attr-defined]
from opentelemetry.sdk.trace import SpanProcessor
from opentelemetry.trace import SpanKind

from tollspan.instrumentation import capacity_nvml
from tollspan.instrumentation.capacity_cpus import CpuTime, cpus
from tollspan.instrumentation.capacity_minutes import Closed, Holding
from tollspan.instrumentation.cpu_clock import seconds
from tollspan.instrumentation.guard import guard
from tollspan.instrumentation.switches import is_off, text
from tollspan.instrumentation.torch_resolver import stand_first
from tollspan.pricing import attributes

CAPACITY: Final = "TOLLSPAN_CAPACITY"
SHARE: Final = "TOLLSPAN_CAPACITY_SHARE"
SCOPE: Final = "tollspan.instrumentation.capacity"

_log: Final = logging.getLogger(__name__)
_LAST_WAIT: Final = 1.0
"""Seconds that the end of the process waits for devices before the last minute is told."""
_GRACE: Final = 0.25
"""Seconds after a minute's end when it is looked at."""
_RETRY: Final = 0.5
"""Seconds between two looks at a minute in which a call has not ended, and for a tracer provider that is not set yet:
one that the program sets shuts down before our own exit."""
_SAMPLE: Final = 5.0
"""Seconds between two samples of NVML."""
_CPU: Final = ("cpu", 0)
_IN_USE: Final = guard("capacity.in_use")
_TICK: Final = guard("capacity.tick")
_TELL: Final = guard("capacity.tell")
_FINISH: Final = guard("capacity.finish")

Key = tuple[str, int]


class Capacity:
    """What this process holds.

    Args:
        tracer_provider, meter_provider: None = the global ones.
        gpu: whether the minutes of devices are told.
        cpu: whether those of the CPUs are.
        share: what part of a device is this process's; None = all of it.
        now, wall: the monotonic clock and the wall clock, ns.
        thread: whether it has a thread of its own; a test that asks by itself needs none.
    """

    def __init__(
        self,
        tracer_provider: Any = None,
        meter_provider: Any = None,
        *,
        gpu: bool = True,
        cpu: bool = False,
        share: Fraction | None = None,
        now: Callable[[], int] = monotonic_ns,
        wall: Callable[[], int] = time_ns,
        thread: bool = True,
    ) -> None:
        self._provider = tracer_provider
        self._tracer = trace.get_tracer(SCOPE, tracer_provider=tracer_provider)
        meter = metrics.get_meter(SCOPE, meter_provider=meter_provider)
        self._allocated = meter.create_counter(
            "tollspan.gpu.allocated_seconds", "s", "Time of devices that was allocated to the process."
        )
        self._attributed = meter.create_counter(
            "tollspan.gpu.attributed_seconds", "s", "Time of devices that was given to calls."
        )
        self._gpu = gpu
        self._cpu = cpu
        self._share = share
        self._now, self._wall = now, wall
        self._threaded = thread
        self._begin()

    def _begin(self) -> None:
        self._lock = threading.RLock()
        self._closing = threading.RLock()
        self._holdings: dict[Key, Holding] = {}
        self._clocks: list[weakref.ref[Any]] = []
        self._nvml: dict[Key, capacity_nvml.Device] = {}
        self._ask_nvml = False
        self._cpu_time: CpuTime | None = None
        self._attached: weakref.ref[Any] | None = None
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    # -- what is held --------------------------------------------------------------------------------------------------

    def hold_cpus(self) -> None:
        """The CPUs count from now on, where it was asked for."""
        if not self._cpu:
            return
        with self._lock:
            holding = Holding({attributes.DEVICE_TYPE: "cpu"}, cpus(), self._now, self._wall)
            self._holdings[_CPU] = holding
            self._cpu_time = CpuTime(holding)
            holding.reported_by(self._cpu_time)
        self._started()

    def hold(self, clock: Any, kind: str, index: int, about: Mapping[str, Any]) -> None:
        """A device is in use, and ``clock`` times calls on it.

        Args:
            clock: has ``holding``, and is a `capacity_minutes.Source`.
            kind: ``cuda``, also for AMD's; others are not held to account.
            index: which one.
            about: what is known of it.
        """
        if not self._gpu or kind != "cuda" or not (hasattr(clock, "holding") and hasattr(clock, "oldest")):
            return
        with self._lock:
            if self._over.is_set():
                return
            holding = self._holdings.get((kind, index))
            if holding is None:
                holding = Holding({attributes.DEVICE_TYPE: kind, **about}, self._share, self._now, self._wall)
                if capacity_nvml.served_by_mps():
                    holding.shared = True
                self._holdings[kind, index] = holding
                # Not by whoever calls a model: it may load a library and ask a driver.
                self._ask_nvml = True
            else:
                holding.about.update(about)
            if clock.holding is not holding:
                holding.reported_by(clock)
                clock.holding = holding
                self._clocks.append(weakref.ref(clock))
        self._started()

    def _started(self) -> None:
        """There is something to tell from now on, until the end."""
        with self._lock:
            self._attach()
            if self._thread is None and self._threaded:
                atexit.register(self.finish)
                self._thread = threading.Thread(target=self._loop, name="tollspan-capacity", daemon=True)
                self._thread.start()

    def _attach(self) -> None:
        """Has the tracer provider tell us of flush and shutdown, from when there is one."""
        provider = self._provider or trace.get_tracer_provider()
        processors = getattr(provider, "_active_span_processor", None)
        if processors is not None and (self._attached is None or self._attached() is not processors):
            stand_first(processors, _Hears(self))
            self._attached = weakref.ref(processors)

    # -- what is told --------------------------------------------------------------------------------------------------

    def tick(self) -> None:
        """Tells the minutes that are over and known."""
        with _TICK, self._closing:
            if self._over.is_set():
                return
            self._attach()
            if self._cpu_time is not None:
                self._cpu_time.report()
                with _TICK:
                    self._holdings[_CPU].share = cpus()
            for key, holding in tuple(self._holdings.items()):
                self._told(key, holding, holding.close())

    def sample(self) -> None:
        """Asks NVML what every device has to do."""
        with _TICK:
            if self._ask_nvml:
                self._ask_nvml = False
                for key, holding in tuple(self._holdings.items()):
                    if key != _CPU and key not in self._nvml:
                        device = capacity_nvml.device(holding.about.get(attributes.DEVICE_ID))
                        if device is not None:
                            self._nvml[key] = device
            for key, device in tuple(self._nvml.items()):
                holding = self._holdings[key]
                percent = device.utilization()
                if percent is not None:
                    holding.sampled(percent)
                shared = device.shared()
                if shared is not None and not holding.shared:
                    holding.shared = shared

    def finish(self) -> None:
        """Tells all that is left: the process, or we, are at an end. May be called any number of times."""
        with _FINISH, self._closing:
            if self._over.is_set():
                return
            self.sample()
            with self._lock:
                self._over.set()
            for key, holding in tuple(self._holdings.items()):
                with _FINISH:
                    self._told(key, holding, holding.finish(_LAST_WAIT))
            for reference in self._clocks:
                clock = reference()
                if clock is not None:
                    clock.holding = None
            atexit.unregister(self.finish)

    def _told(self, key: Key, holding: Holding, minutes: list[Closed]) -> None:
        for minute in minutes:
            with _TELL:
                self._tell(key, holding, minute)

    def _tell(self, key: Key, holding: Holding, minute: Closed) -> None:
        on_cpus = key == _CPU
        about: dict[str, Any] = {
            attributes.OPERATION: attributes.OPERATION_CAPACITY,
            **holding.about,
            attributes.CAPACITY_ALLOCATED: seconds(minute.allocated),
            attributes.CAPACITY_STATUS: minute.status,
        }
        if minute.busy is not None:
            about[attributes.CAPACITY_BUSY] = seconds(minute.busy)
        if minute.idle is not None:
            about[attributes.usage("cpu.idle_seconds" if on_cpus else "gpu.idle_seconds")] = seconds(minute.idle)
        if minute.utilized is not None:
            about[attributes.CAPACITY_UTILIZED] = seconds(minute.utilized)
        if on_cpus:
            about[attributes.CAPACITY_CPUS] = float(holding.share or 0)
        else:
            if holding.share is not None:
                about[attributes.CAPACITY_SHARE] = str(holding.share)
            if holding.shared is not None:
                about[attributes.GPU_SHARED] = holding.shared
            self._count(holding, minute)
        name = "CPU" if on_cpus else holding.about.get(attributes.DEVICE_NAME) or key[0]
        span = self._tracer.start_span(f"capacity {name}", Context(), SpanKind.INTERNAL, about, None, minute.wall)
        span.end(minute.wall + minute.length)

    def _count(self, holding: Holding, minute: Closed) -> None:
        which: dict[str, Any] = {
            name: holding.about[name]
            for name in (attributes.DEVICE_TYPE, attributes.DEVICE_NAME, attributes.DEVICE_ID)
            if name in holding.about
        }
        self._allocated.add(minute.allocated / 1e9, which)
        if minute.busy is not None:
            self._attributed.add(minute.busy / 1e9, which)

    # -- the thread, and forks -----------------------------------------------------------------------------------------

    def _loop(self) -> None:
        while not self._over.wait(self._pause()):
            self.sample()
            self.tick()

    def _pause(self) -> float:
        holdings = tuple(self._holdings.values())
        if not holdings:
            return 60.0
        pause = (min(holding.next_end for holding in holdings) - self._now()) / 1e9 + _GRACE
        if self._attached is None or any(holding.waits for holding in holdings):
            pause = min(pause, _RETRY)
        if self._nvml or self._ask_nvml:
            pause = min(pause, _SAMPLE)
        return max(pause, 0.05)

    def forked(self) -> None:
        """This is a child: what its parent holds of devices is the parent's, the CPUs are its own as well."""
        held_cpus = _CPU in self._holdings and not self._over.is_set()
        self._begin()
        if held_cpus:
            self.hold_cpus()


class _Hears(SpanProcessor):
    """Hears of a provider's flush and shutdown, before its exporters do."""

    def __init__(self, capacity: Capacity) -> None:
        self._capacity = capacity

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        self._capacity.tick()
        return True

    def shutdown(self) -> None:
        self._capacity.finish()


# -- who uses devices, and whether that is told ------------------------------------------------------------------------

_used: Final[list[tuple[weakref.ref[Any], str, int, Mapping[str, Any]]]] = []
"""The clocks of devices that were in use before anybody asked, with their devices."""
_installed: Final[list[Capacity]] = []


def in_use(clock: Any, kind: str, index: int | None, describe: Callable[[], Mapping[str, Any]]) -> None:
    """A device is about to be used for the first time. Never raises.

    Args:
        clock: of the device.
        kind: as torch names it.
        index: which one of its kind; None: torch's current one.
        describe: what its spans say of it.
    """
    with _IN_USE:
        if kind != "cuda" or not hasattr(clock, "holding"):
            return
        if index is None:
            index = int(sys.modules["torch"].cuda.current_device())
        about: Mapping[str, Any] = {}
        with _IN_USE:
            about = describe()
        _used[:] = [each for each in _used if each[0]() is not None]
        _used.append((weakref.ref(clock), kind, index, about))
        for capacity in _installed:
            capacity.hold(clock, kind, index, about)


def _forked() -> None:
    _used.clear()
    for capacity in _installed:
        with _IN_USE:
            capacity.forked()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)


class CapacityInstrumentor(BaseInstrumentor):  # type: ignore[misc]
    """Minutes of what the process holds.

    ``instrument()`` takes OpenTelemetry's ``tracer_provider`` and ``meter_provider``; ``uninstrument()`` tells the last
    minutes and stops.
    """

    def instrumentation_dependencies(self) -> Collection[str]:
        return ()

    def _instrument(self, **kwargs: Any) -> None:
        if is_off(CAPACITY):
            return
        modes = _modes()
        capacity = Capacity(
            kwargs.get("tracer_provider"),
            kwargs.get("meter_provider"),
            gpu="gpu" in modes,
            cpu="cpu" in modes,
            share=_part(),
        )
        _installed.append(capacity)
        with _IN_USE:
            capacity.hold_cpus()
        for reference, kind, index, about in tuple(_used):
            clock = reference()
            if clock is not None:
                with _IN_USE:
                    capacity.hold(clock, kind, index, about)

    def _uninstrument(self, **kwargs: Any) -> None:
        while _installed:
            _installed.pop().finish()


def _modes() -> frozenset[str]:
    said = text(CAPACITY).lower()
    if said in ("cpu", "gpu"):
        return frozenset({said})
    if said == "all":
        return frozenset({"cpu", "gpu"})
    if said:
        _log.warning("%s=%s is none of gpu, cpu, all, off: gpu is taken", CAPACITY, said)
    return frozenset({"gpu"})


def _part() -> Fraction | None:
    said = text(SHARE)
    if not said:
        return None
    try:
        part = Fraction(said)
    except (ValueError, ZeroDivisionError):
        part = Fraction(0)
    if not 0 < part <= 1:
        _log.warning("%s=%s is no part of 1, such as 1/4: not taken", SHARE, said)
        return None
    return part
