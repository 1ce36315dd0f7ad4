"""What a device's clock may rely on, shown with a fake device in virtual time, and what a CPU second is.

The fake proves order, deferral and span times. It proves nothing about real events of a real device.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import Span
from torch import nn

from tollspan.instrumentation.cpu_clock import CPU, CpuClock, seconds
from tollspan.instrumentation.device_clock import STATUS_SKIPPED, STATUS_UNMEASURED, UnmeasuredClock, clock_for
from tollspan.instrumentation.torch import TorchInstrumentor
from tollspan.pricing import attributes

GPU_SECONDS = attributes.usage("gpu.seconds")


class FakeDevice:
    """A device with one stream, in virtual nanoseconds: work is queued at once and done when `now` gets there."""

    def __init__(self) -> None:
        self.now = 0
        self.queue_end = 0
        self.log: list[str] = []
        self.hot = False
        self.is_capturing = False
        self.broken = False
        self.pending: deque[tuple[list[int], Span, int]] = deque()

    def launch(self, nanoseconds: int) -> None:
        self.log.append("work")
        self.queue_end = max(self.queue_end, self.now) + nanoseconds

    # -- DeviceClock --

    def capturing(self) -> bool:
        self.hot = True
        return self.is_capturing

    def begin(self, stream: object | None = None) -> list[int]:
        if self.broken:
            raise RuntimeError("the driver is gone")
        self.log.append("begin")
        return [max(self.queue_end, self.now)]

    def end(self, mark: object | None) -> None:
        assert isinstance(mark, list)
        self.log.append("end")
        mark.append(max(self.queue_end, self.now))

    def settle(self, mark: object | None, span: Span, end_time: int) -> bool:
        self.hot = False
        if mark is None:
            return False
        assert isinstance(mark, list)
        self.log.append("settle")
        self.pending.append((mark, span, end_time))
        return True

    def poll(self) -> int:
        if self.hot:
            raise AssertionError("the device was asked on the hot path")
        while self.pending and self.pending[0][0][1] <= self.now:
            (start, end), span, end_time = self.pending.popleft()
            span.set_attribute(GPU_SECONDS, seconds(end - start))
            span.end(end_time)
        return len(self.pending)


class Model(nn.Module):
    def __init__(self, device: FakeDevice, nanoseconds: int = 1_000, error: Exception | None = None) -> None:
        super().__init__()
        self.fake = device
        self.nanoseconds = nanoseconds
        self.error = error
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.fake.launch(self.nanoseconds)
        if self.error is not None:
            raise self.error
        return x


@pytest.fixture
def device() -> FakeDevice:
    return FakeDevice()


@pytest.fixture
def exporter(device: FakeDevice) -> Iterator[InMemorySpanExporter]:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    TorchInstrumentor().instrument(tracer_provider=provider, clock_for=lambda device_type, index: device)
    yield exporter
    TorchInstrumentor().uninstrument()


def test_the_clock_stands_next_to_the_call_and_is_not_asked_on_the_hot_path(
    device: FakeDevice, exporter: InMemorySpanExporter
) -> None:
    model = Model(device).eval()
    model(torch.ones(1, 1))
    model(torch.ones(1, 1))

    assert device.log == ["begin", "work", "end", "settle"] * 2
    assert exporter.get_finished_spans() == ()  # both still held: the device has not got there


def test_a_held_span_keeps_the_calls_own_end_and_has_all_its_attributes(
    device: FakeDevice, exporter: InMemorySpanExporter
) -> None:
    Model(device, 2_000).eval()(torch.ones(3, 1))
    returned = time.time_ns()
    Model(device, 5_000).eval()(torch.ones(4, 1))

    assert device.poll() == 2
    device.now = 2_000
    assert device.poll() == 1
    device.now = 10_000
    assert device.poll() == 0
    first, second = exporter.get_finished_spans()
    assert (first.attributes or {})[GPU_SECONDS] == 2e-6
    assert (second.attributes or {})[GPU_SECONDS] == 5e-6  # waiting behind the first is not its own time
    assert first.end_time is not None
    assert first.end_time <= returned
    assert (first.attributes or {})[attributes.usage("cpu.seconds")]
    assert (first.attributes or {})[attributes.BATCH_SIZE] == 3


def test_a_failing_call_is_timed_too(device: FakeDevice, exporter: InMemorySpanExporter) -> None:
    with pytest.raises(ValueError, match="bad input"):
        Model(device, error=ValueError("bad input")).eval()(torch.ones(1, 1))
    device.now = 1_000
    device.poll()
    (span,) = exporter.get_finished_spans()
    assert device.log == ["begin", "work", "end", "settle"]
    assert (span.attributes or {})[attributes.ERROR_TYPE] == "ValueError"
    assert (span.attributes or {})[GPU_SECONDS] == 1e-6


def test_nothing_is_recorded_into_a_graph_that_is_being_captured(
    device: FakeDevice, exporter: InMemorySpanExporter
) -> None:
    device.is_capturing = True
    Model(device).eval()(torch.ones(1, 1))
    (span,) = exporter.get_finished_spans()
    assert device.log == ["work"]
    assert (span.attributes or {})[attributes.GPU_TIME_STATUS] == STATUS_SKIPPED
    assert GPU_SECONDS not in (span.attributes or {})


def test_a_broken_clock_costs_its_figure_and_neither_span_nor_call(
    device: FakeDevice, exporter: InMemorySpanExporter
) -> None:
    device.broken = True
    assert Model(device).eval()(torch.ones(1, 1)).shape == (1, 1)
    (span,) = exporter.get_finished_spans()
    assert GPU_SECONDS not in (span.attributes or {})
    assert (span.attributes or {})[attributes.usage("cpu.seconds")]


def test_an_unsampled_call_records_nothing_on_the_device(device: FakeDevice) -> None:
    TorchInstrumentor().instrument(
        tracer_provider=TracerProvider(sampler=ALWAYS_OFF), clock_for=lambda device_type, index: device
    )
    try:
        Model(device).eval()(torch.ones(1, 1))
    finally:
        TorchInstrumentor().uninstrument()
    assert device.log == ["work"]


@pytest.mark.parametrize("device_type", ["cuda", "mps", "xpu"])
def test_an_accelerator_without_a_clock_is_unmeasured_not_zero(device_type: str) -> None:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    clock = clock_for(device_type, 0)
    assert isinstance(clock, UnmeasuredClock)
    TorchInstrumentor().instrument(tracer_provider=provider, clock_for=lambda *_: clock)
    try:
        nn.Linear(2, 2).eval()(torch.ones(1, 2))
    finally:
        TorchInstrumentor().uninstrument()
    (span,) = exporter.get_finished_spans()
    assert (span.attributes or {})[attributes.GPU_TIME_STATUS] == STATUS_UNMEASURED
    assert GPU_SECONDS not in (span.attributes or {})


def test_the_cpu_has_no_device_time() -> None:
    clock = clock_for("cpu")
    assert clock.begin() is None
    assert clock.poll() == 0


# -- CPU time ----------------------------------------------------------------------------------------------------------


def burn(cpu_seconds: float) -> None:
    until = time.thread_time() + cpu_seconds
    while time.thread_time() < until:
        pass


def in_thread(function: object, *args: object) -> None:
    thread = threading.Thread(target=function, args=args)  # type: ignore[arg-type]
    thread.start()
    thread.join()


def test_alone_the_process_is_measured_with_its_worker_threads() -> None:
    clock = CpuClock()
    mark = clock.begin()
    in_thread(burn, 0.05)
    nanoseconds, source = clock.end(mark)
    assert source == "process"
    assert nanoseconds >= 50_000_000


def test_beside_another_call_only_the_own_thread_is_measured() -> None:
    clock = CpuClock()
    mark = clock.begin()

    def other_call() -> None:
        inner = clock.begin()
        burn(0.05)
        assert clock.end(inner)[1] == "thread"

    in_thread(other_call)
    nanoseconds, source = clock.end(mark)
    assert source == "thread"  # overlapped, though the other one is over by now
    assert nanoseconds < 50_000_000
    assert clock.in_flight == 0


def test_a_call_inside_a_call_is_part_of_it() -> None:
    clock = CpuClock()
    outer = clock.begin()
    inner = clock.begin()
    assert clock.in_flight == 1
    assert clock.end(inner)[1] == "process"
    assert clock.end(outer)[1] == "process"
    assert clock.in_flight == 0


def test_a_cancelled_call_is_not_in_flight() -> None:
    clock = CpuClock()
    clock.cancel(clock.begin())
    assert clock.in_flight == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_is_alone_again() -> None:
    mark = CPU.begin()
    child = os.fork()
    if child == 0:
        os._exit(0 if CPU.in_flight == 0 else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    CPU.end(mark)


@given(st.integers(min_value=0, max_value=2**50))  # thirteen days
def test_seconds_give_the_nanoseconds_back(nanoseconds: int) -> None:
    assert round(seconds(nanoseconds) * 1e9) == nanoseconds
