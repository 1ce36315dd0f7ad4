"""NVIDIA's and AMD's devices, as PyTorch gives them to us.

In: the index of a device. Out: its `EventClock`. Where it stands: the one place that touches ``torch.cuda``. **No GPU
has run this file yet**; what holds on real devices is for ``tests/gpu`` to show.
"""

from __future__ import annotations

import ctypes
import sys
import threading
from typing import Any, Final

from tollspan.instrumentation.guard import guard
from tollspan.instrumentation.torch_events import Event, EventClock
from tollspan.instrumentation.torch_resolver import Resolver

_THREAD_LOCAL: Final = 1
"""``CU_STREAM_CAPTURE_MODE_THREAD_LOCAL``"""
_LIBRARIES: Final = ("libcuda.so.1", "nvcuda.dll")
_MODE: Final = guard("device.capture_mode")

_lock: Final = threading.Lock()
_clocks: Final[dict[int, EventClock]] = {}


class CudaDriver:
    """`Driver` of one device of ``torch.cuda``, which is also what PyTorch calls AMD's."""

    __slots__ = ("_cuda", "_event", "_index", "source")

    def __init__(self, torch: Any, index: int) -> None:
        self._cuda = torch.cuda
        self._event = torch.cuda.Event
        self._index = index
        self.source = "hip_event" if getattr(torch.version, "hip", None) else "cuda_event"

    def event(self) -> Event:
        made: Event = self._event(enable_timing=True)
        return made

    def stream(self) -> Any:
        return self._cuda.current_stream(self._index)

    def key(self, stream: Any) -> object:
        return stream.cuda_stream

    def capturing(self) -> bool:
        return bool(self._cuda.is_current_stream_capturing())


class CudaResolver(Resolver):
    """Whose thread can ask while another thread captures, should a capture begin that we do not hear of."""

    def _loop(self) -> None:
        with _MODE:
            allow_queries_during_captures()
        super()._loop()


def allow_queries_during_captures() -> bool:
    """Has the driver hold only this thread's own captures against what this thread asks. Returns whether it agreed."""
    for name in _LIBRARIES:
        try:
            driver = ctypes.CDLL(name)
        except OSError:
            continue
        mode = ctypes.c_int(_THREAD_LOCAL)
        return int(driver.cuThreadExchangeStreamCaptureMode(ctypes.byref(mode))) == 0
    return False


RESOLVER: Final = CudaResolver()
"""The process's own."""


def cuda_clock(index: int | None) -> EventClock | None:
    """The clock of a device; None where there is no such device. Torch is imported by now.

    Args:
        index: which; None for the calling thread's current one.
    """
    torch = sys.modules["torch"]
    if not torch.cuda.is_available():
        return None
    if index is None:
        index = int(torch.cuda.current_device())
    with _lock:
        clock = _clocks.get(index)
        if clock is None:
            clock = _clocks[index] = EventClock(CudaDriver(torch, index), RESOLVER)
        return clock
