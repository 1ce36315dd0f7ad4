"""What executions of PyTorch share: the tracer, what is known of models, and of the devices that they run on.

In: a tracer and the clocks of devices. Out: `Hardware`, one for each time that PyTorch is instrumented. Where it
stands: between `torch.py` and its sisters, which see executions, and the device's clocks.
"""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from opentelemetry import trace
from opentelemetry.trace import Tracer

from tollspan.instrumentation.capacity import in_use
from tollspan.instrumentation.device_clock import DeviceClock, Together, clock_for
from tollspan.instrumentation.torch_execution import Places
from tollspan.instrumentation.torch_models import Models
from tollspan.pricing import attributes

ClockFor = Callable[[str, int | None], DeviceClock]
_SLICE: Final = re.compile(r"\bMIG (\S+)")
"""In the driver's name of a device: which slice of a partitioned one it is, e.g. ``1g.10gb``."""


class Hardware:
    """Attributes:
    tracer: makes the spans.
    models: what is known of module instances.
    places: what is known of devices.
    """

    def __init__(self, tracer: Tracer, clock_for: ClockFor = clock_for) -> None:
        self.tracer = tracer
        self.models = Models()

        def clocks(devices: Sequence[Any]) -> DeviceClock:
            those = [clock_for(device.type, device.index) for device in devices]
            for device, clock in zip(devices, those, strict=True):
                in_use(clock, device.type, device.index, functools.partial(_described, device))
            return those[0] if len(those) == 1 else Together(those)

        self.places = Places(device_attributes, clocks)


def device_attributes(device_type: str, index: int | None) -> Mapping[str, Any]:
    """What the driver tells of a device: name, identity, slice. Empty for a device without a driver that is asked."""
    if device_type != "cuda":
        return {}
    cuda = sys.modules["torch"].cuda
    properties = cuda.get_device_properties(index)
    about: dict[str, Any] = {attributes.DEVICE_NAME: str(properties.name)}
    uuid = getattr(properties, "uuid", None)
    if uuid is not None:
        about[attributes.DEVICE_ID] = str(uuid)
    part = _SLICE.search(about[attributes.DEVICE_NAME])
    if part is not None:
        about[attributes.DEVICE_SLICE] = part.group(1)
    return about


def _described(device: Any) -> Mapping[str, Any]:
    return device_attributes(device.type, device.index)


SCOPE: Final = "tollspan.instrumentation.torch"
_installed: list[Hardware] = []


def install(hardware: Hardware) -> None:
    """PyTorch is instrumented with these from now on."""
    _installed[:] = [hardware]


def uninstall() -> None:
    """PyTorch is not instrumented any more."""
    _installed.clear()


def hardware() -> Hardware:
    """Those that PyTorch is instrumented with; where it is not, some of the global tracer provider's."""
    if not _installed:
        return Hardware(trace.get_tracer(SCOPE))
    return _installed[0]
