"""Which device a session runs on, and how its time there is known.

In: the execution providers of a session with their options. Out: device type, index and product name, and the clock of
its runs. Where it stands: below `sessions.py`.

Time of an accelerator, in order:

* The user passes a compute stream (``user_compute_stream`` among the provider's options) and torch is there to put
  events on it: the clock of `device_clock`, if it has one for the device.
* Else wall time, `WallClock`, labelled as such: ``run`` waits for the device before it returns, so its wall time bounds
  the device's from above; copies to and from it, and what the session runs on the CPU, are in it.
* A run that was told not to wait (``disable_synchronize_execution_providers``) has neither.
"""

from __future__ import annotations

import functools
import os
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from glob import glob
from time import perf_counter_ns
from typing import Any, Final

from opentelemetry.trace import Span

from tollspan.instrumentation.capacity_minutes import Holding
from tollspan.instrumentation.cpu_clock import seconds
from tollspan.instrumentation.device_clock import DeviceClock
from tollspan.pricing import attributes

DEVICE_OF_PROVIDER: Final[dict[str, str]] = {
    "CPUExecutionProvider": "cpu",
    "DnnlExecutionProvider": "cpu",
    "XnnpackExecutionProvider": "cpu",
    "CUDAExecutionProvider": "cuda",
    "TensorrtExecutionProvider": "cuda",
    "NvTensorRTRTXExecutionProvider": "cuda",
    "MIGraphXExecutionProvider": "rocm",
    "ROCMExecutionProvider": "rocm",
    "DmlExecutionProvider": "dml",
    "CoreMLExecutionProvider": "coreml",
    "QNNExecutionProvider": "npu",
    "WebGpuExecutionProvider": "webgpu",
}
"""Execution provider → device type. One that is not here runs on what its own options say, which is not told."""

ACCELERATORS: Final = frozenset(DEVICE_OF_PROVIDER.values()) - {"cpu"}
GPUS: Final = frozenset({"cuda", "rocm", "dml", "webgpu"})
"""Devices whose time is ``gpu.seconds``. Other accelerators have no meter."""

STATUS_INSIDE: Final = "inside"
"""`GPU_TIME_STATUS`: the wall time would be within the device time of the call around it, so it is not told."""
SOURCE_WALL: Final = "wall_sync"
"""`GPU_TIME_SOURCE`: wall time of a call that waits for the device, a share of it where several were in flight."""

_TORCH_TYPE: Final = {"rocm": "cuda"}
"""Device type → how torch calls it, where that differs."""
_GPU_SECONDS: Final = attributes.usage("gpu.seconds")
_MODELS: Final = "/proc/driver/nvidia/gpus/*/information"

ClockFor = Callable[[str, int | None], DeviceClock]


def device_type(providers: Sequence[str]) -> str | None:
    """Where a session runs: by the first of its execution providers, in their order of precedence."""
    return DEVICE_OF_PROVIDER.get(providers[0]) if providers else None


def device_index(options: Mapping[str, str]) -> int | None:
    """Number of the device, by the options of its execution provider; None where they do not say."""
    said = options.get("device_id")
    return int(said) if said is not None and said.isdigit() else None


def user_stream(options: Mapping[str, str]) -> int | None:
    """Address of the compute stream that the user passed; None where there is none (0, the default stream, is none)."""
    if options.get("has_user_compute_stream") == "0":
        return None
    try:
        return int(options.get("user_compute_stream") or "0", 0) or None
    except ValueError:
        return None


def torch_stream(address: int, index: int | None) -> object | None:
    """A stream of torch for one of the user's; None where the program does not use torch on this device."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():  # we do not make a device ready that the program left alone
        return None
    stream: object = torch.cuda.ExternalStream(address, device=index or 0)
    return stream


def device_name(kind: str, index: int | None) -> str | None:
    """Product name as the driver gives it; None where nobody can tell without touching the device."""
    if kind not in ("cuda", "rocm"):
        return None
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        return str(torch.cuda.get_device_name(index or 0))
    return _only_model() if kind == "cuda" else None


@functools.cache
def _only_model() -> str | None:
    """What all NVIDIA GPUs here are, by the driver's files; None where they differ: their order is not known then."""
    models: set[str] = set()
    for path in glob(_MODELS):
        with open(path) as file:
            models.update(line.partition(":")[2].strip() for line in file if line.startswith("Model:"))
    return models.pop() if len(models) == 1 else None


class WallClock:
    """Wall time of calls that wait for their device, shared out where several are in flight on it.

    At any instant each of the ``n`` calls in flight takes an ``n``-th of it: the shares sum to the time during which
    the device had any call, less what is below a nanosecond of each. A call's share is how far the device's progress,
    which advances by ``1/n``, came during it: one addition a call, however many others there are.
    """

    __slots__ = ("__weakref__", "_begun", "_in_flight", "_last", "_lock", "_now", "_progress", "holding")

    def __init__(self, now: Callable[[], int] = perf_counter_ns) -> None:
        self._now = now
        self.forget()

    def forget(self) -> None:
        """Nothing is in flight, whatever there was: the threads of a fork's parent are not here."""
        self._lock = threading.Lock()
        self._in_flight = 0
        self._progress = 0.0
        self._last = 0
        self.holding: Holding | None = None
        self._begun: dict[int, int] = {}  # by mark, on the holding's clock, until its time is told

    def capturing(self) -> bool:
        return False

    def begin(self, stream: object | None = None) -> list[float]:
        with self._lock:
            self._advance()
            self._in_flight += 1
            mark = [self._progress]
            holding = self.holding
            if holding is not None:
                self._begun[id(mark)] = holding.now()
            return mark

    def end(self, mark: Any) -> None:
        with self._lock:
            self._advance()
            self._in_flight -= 1
            mark[0] = self._progress - mark[0]
            if not self._in_flight:
                self._progress = 0.0  # starts anew, so that it keeps its precision

    def settle(self, mark: Any, span: Span, end_time: int) -> bool:
        share = int(mark[0])
        holding, begun = self.holding, self._begun.get(id(mark))
        about: dict[str, Any] = {_GPU_SECONDS: seconds(share), attributes.GPU_TIME_SOURCE: SOURCE_WALL}
        if holding is not None and holding.shared is not None:
            about[attributes.GPU_SHARED] = holding.shared
        span.set_attributes(about)
        if holding is not None and begun is not None:
            holding.spread(begun, holding.now(), share)
            self._begun.pop(id(mark), None)  # not before: its minutes are not to be closed without it
        return False

    def poll(self) -> int:
        return 0

    def oldest(self) -> int | None:
        """When the oldest call began whose time is not told to the holding yet, on the holding's clock."""
        with self._lock:
            return min(self._begun.values(), default=None)

    def drain(self, seconds: float) -> None:
        """Nothing comes later than the calls' own ends."""

    def _advance(self) -> None:
        now = self._now()
        if self._in_flight:
            self._progress += (now - self._last) / self._in_flight
        self._last = now


_wall_clocks: Final[dict[tuple[str, int | None], WallClock]] = {}


def wall_clock(kind: str, index: int | None) -> WallClock:
    """The one wall clock of a device in this process."""
    return _wall_clocks.setdefault((kind, index), WallClock())


def _forked() -> None:
    for clock in _wall_clocks.values():
        clock.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)


def torch_type(kind: str) -> str:
    """Device type as torch, and so `device_clock`, calls it."""
    return _TORCH_TYPE.get(kind, kind)
