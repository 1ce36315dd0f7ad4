"""What NVIDIA's management library tells of a device as a whole: how much of the time it had any kernel, and whether
other processes are on it.

In: the identity of a device. Out: samples and flags, or nothing where ``nvidia-ml-py`` is not installed, the driver is
not there, or the device does not tell (slices of a partitioned one do not). Where it stands: beside `capacity.py`, off
every hot path. **No GPU has run this file yet**: the names are those of nvidia-ml-py 13, the figures of a fake.

NVML reads higher than the sum of kernels and counts every process, so its figure is an indicator of what no call was
given, and no part of a sum.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import Any, Final

from tollspan.instrumentation.guard import guard

_NVML: Final = guard("capacity.nvml")
_PREFIX: Final = {"GPU", "MIG"}


class Device:
    """A device as NVML knows it.

    Args:
        nvml: the module ``pynvml``, initialised.
        handle: of the device.
    """

    def __init__(self, nvml: Any, handle: Any) -> None:
        self._nvml = nvml
        self._handle = handle

    def utilization(self) -> int | None:
        """Percent of the last fraction of a second in which any kernel ran; None where the device does not tell."""
        try:
            return int(self._nvml.nvmlDeviceGetUtilizationRates(self._handle).gpu)
        except self._nvml.NVMLError:
            return None

    def shared(self) -> bool | None:
        """Whether more than one process computes on it; None where the device does not tell, as in most containers."""
        counts = []
        for name in ("nvmlDeviceGetComputeRunningProcesses", "nvmlDeviceGetMPSComputeRunningProcesses"):
            try:
                counts.append(len(getattr(self._nvml, name)(self._handle)))
            except (self._nvml.NVMLError, AttributeError):
                continue
        return sum(counts) > 1 if any(counts) else None  # we ourselves are one: an empty list is not the truth


def device(identity: str | None) -> Device | None:
    """The device of that identity, by NVML; None where there is none to be asked.

    Args:
        identity: UUID as the driver has it, with or without its prefix (torch leaves it out).
    """
    if not identity:
        return None
    try:
        nvml = import_module("pynvml")
        nvml.nvmlInit()
    except Exception:  # noqa: BLE001
        return None  # not installed, or no driver: nothing is wrong
    with _NVML:
        uuid = identity if identity.partition("-")[0] in _PREFIX else f"GPU-{identity}"
        try:
            return Device(nvml, nvml.nvmlDeviceGetHandleByUUID(uuid))
        except nvml.NVMLError:
            return None
    return None


def served_by_mps() -> bool:
    """Whether NVIDIA's multi-process service stands between this process and its devices."""
    pipe = os.path.join(os.environ.get("CUDA_MPS_PIPE_DIRECTORY") or "/tmp/nvidia-mps", "control")
    return "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE" in os.environ or os.path.exists(pipe)
