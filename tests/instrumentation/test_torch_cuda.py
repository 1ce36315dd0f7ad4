"""How ``torch.cuda`` is asked, with a fake one in its place. What real devices answer is for ``tests/gpu``."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tollspan.instrumentation import torch_cuda
from tollspan.instrumentation.device_clock import GPU_SECONDS, UnmeasuredClock, clock_for
from tollspan.instrumentation.torch_hardware import Hardware, device_attributes
from tollspan.instrumentation.torch_observe import observe
from tollspan.instrumentation.torch_resolver import Resolver
from tollspan.pricing import attributes

from .conftest import Telemetry
from .fake_device import FakeDevice, FakeEvent

MS = 1_000_000


class FakeStream:
    cuda_stream = 140_000


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> FakeDevice:
    """A device that ``torch.cuda`` tells of, the second of the machine and the current one."""
    device, stream = FakeDevice(), FakeStream()

    class Event(FakeEvent):
        def __init__(self, enable_timing: bool = False) -> None:
            assert enable_timing
            super().__init__(device)

        def record(self, on: Any = None) -> None:
            assert on is stream
            super().record("stream 0")

    properties = SimpleNamespace(name="NVIDIA H200 MIG 1g.18gb", uuid="MIG-1234")
    for name, value in {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "current_device": lambda: 1,
        "current_stream": {1: stream}.__getitem__,
        "is_current_stream_capturing": device.capturing,
        "get_device_properties": {1: properties}.__getitem__,
        "Event": Event,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(torch_cuda, "RESOLVER", Resolver(thread=False))
    monkeypatch.setattr(torch_cuda, "_clocks", {})
    return device


def test_a_device_has_one_clock_which_is_also_the_current_ones(device: FakeDevice) -> None:
    clock = clock_for("cuda", 1)
    assert not isinstance(clock, UnmeasuredClock)
    assert clock_for("cuda", None) is clock
    assert clock_for("cuda", 0) is not clock


def test_what_runs_on_it_is_told_with_its_name_its_slice_and_its_time(
    telemetry: Telemetry, device: FakeDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    hardware = Hardware(telemetry.provider.get_tracer("test"))
    monkeypatch.setattr("tollspan.instrumentation.torch_observe.hardware", lambda: hardware)
    with observe("kernel"):
        device.launch(3 * MS)
    device.now = 3 * MS
    assert telemetry.provider.force_flush()
    told = telemetry.attributes()
    assert told[attributes.DEVICE_TYPE] == "cuda"
    assert told[attributes.DEVICE_NAME] == "NVIDIA H200 MIG 1g.18gb"
    assert told[attributes.DEVICE_ID] == "MIG-1234"
    assert told[attributes.DEVICE_SLICE] == "1g.18gb"
    assert told[attributes.GPU_TIME_SOURCE] == "cuda_event"
    assert told[GPU_SECONDS] == 0.003


def test_amds_devices_are_said_to_be_so(device: FakeDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "hip", "7.0")
    assert torch_cuda.CudaDriver(torch, 1).source == "hip_event"


def test_without_a_driver_nothing_is_allowed_and_nothing_fails() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one here")
    assert torch_cuda.allow_queries_during_captures() is False


def test_the_host_has_no_driver_to_ask() -> None:
    assert device_attributes("cpu", None) == {}
