"""Time on an accelerator: of events on the user's stream, else wall time that says so; never both, never a guess.

No accelerator takes part: real sessions say that they run on one, and a clock of the test stands in for its events.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any, ClassVar

import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.sdk.trace import Span

from tollspan.instrumentation.onnxruntime import OnnxRuntimeInstrumentor, devices
from tollspan.instrumentation.onnxruntime.devices import WallClock, user_stream
from tollspan.pricing import attributes

from .conftest import Telemetry
from .test_onnxruntime import batch, model_bytes

GPU_SECONDS = attributes.usage("gpu.seconds")
NO_SYNC = "disable_synchronize_execution_providers"


class Claimed(onnxruntime.InferenceSession):
    """A session on the CPU that says it runs elsewhere."""

    providers: ClassVar[list[str]] = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    options: ClassVar[dict[str, str]] = {"device_id": "1", "has_user_compute_stream": "0"}

    def get_providers(self) -> list[str]:
        return self.providers

    def get_provider_options(self) -> dict[str, dict[str, str]]:
        return {self.providers[0]: self.options}


class Streamed(Claimed):
    options: ClassVar[dict[str, str]] = {
        "device_id": "1",
        "has_user_compute_stream": "1",
        "user_compute_stream": "4711",
    }


class Unmetered(Claimed):
    providers: ClassVar[list[str]] = ["QNNExecutionProvider"]


class Events:
    """A clock that takes over spans and ends them when it is told."""

    def __init__(self) -> None:
        self.seen: list[Any] = []
        self.held: list[tuple[Span, int]] = []
        self.capture = False
        self.broken = False

    def capturing(self) -> bool:
        return self.capture

    def begin(self, stream: object | None = None) -> object | None:
        if self.broken:
            raise RuntimeError("no event")
        self.seen.append(("begin", stream))
        return self.seen

    def end(self, mark: object | None) -> None:
        self.seen.append("end")

    def settle(self, mark: object | None, span: Any, end_time: int) -> bool:
        self.held.append((span, end_time))
        return True

    def poll(self) -> int:
        for span, end_time in self.held:
            span.set_attribute(attributes.GPU_TIME_SOURCE, "events")
            span.end(end_time)
        return 0


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> Events:
    monkeypatch.setattr(devices, "torch_stream", lambda address, index: ("stream", address, index))
    return Events()


@pytest.fixture
def gpu_spans(telemetry: Telemetry, events: Events) -> Iterator[Telemetry]:
    OnnxRuntimeInstrumentor().instrument(
        tracer_provider=telemetry.provider, clock_for=lambda kind, index: events if (kind, index) == ("cuda", 1) else 1
    )
    yield telemetry
    OnnxRuntimeInstrumentor().uninstrument()


def run(kind: type[Claimed], options: Any = None) -> None:
    kind(model_bytes()).run(None, {"x": batch()}, options)


def about(telemetry: Telemetry) -> dict[str, Any]:
    return dict(telemetry.spans()[-1].attributes or {})


def test_without_a_stream_of_the_user_it_is_wall_time_and_says_so(gpu_spans: Telemetry, events: Events) -> None:
    run(Claimed)
    span = gpu_spans.spans()[-1]
    seconds = about(gpu_spans)[GPU_SECONDS]
    assert 0 < seconds <= (span.end_time - span.start_time) / 1e9
    assert about(gpu_spans)[attributes.GPU_TIME_SOURCE] == "wall_sync"
    assert about(gpu_spans)[attributes.DEVICE_TYPE] == "cuda"
    assert attributes.GPU_TIME_STATUS not in about(gpu_spans)
    assert events.seen == []


def test_on_the_users_stream_events_take_the_span_over(gpu_spans: Telemetry, events: Events) -> None:
    run(Streamed)
    assert events.seen == [("begin", ("stream", 4711, 1)), "end"]
    assert [span.name for span in gpu_spans.spans()] == ["model_load intent"]
    events.poll()
    span = gpu_spans.spans()[-1]
    assert span.name == "inference intent"
    assert span.end_time == events.held[0][1]
    assert about(gpu_spans)[attributes.GPU_TIME_SOURCE] == "events"
    assert GPU_SECONDS not in about(gpu_spans)


def test_while_a_graph_is_captured_nothing_is_recorded(gpu_spans: Telemetry, events: Events) -> None:
    events.capture = True
    run(Streamed)
    assert events.seen == []
    assert about(gpu_spans)[attributes.GPU_TIME_STATUS] == "skipped"
    assert GPU_SECONDS not in about(gpu_spans)


def test_a_stream_that_torch_does_not_know_leaves_wall_time(
    gpu_spans: Telemetry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "torch_stream", lambda address, index: None)
    run(Streamed)
    assert about(gpu_spans)[attributes.GPU_TIME_SOURCE] == "wall_sync"


def test_a_run_that_does_not_wait_for_its_device_has_no_time(gpu_spans: Telemetry) -> None:
    options = onnxruntime.RunOptions()
    options.add_run_config_entry(NO_SYNC, "1")
    run(Claimed, options)
    assert about(gpu_spans)[attributes.GPU_TIME_STATUS] == "unmeasured"
    assert GPU_SECONDS not in about(gpu_spans)


def test_an_accelerator_without_a_meter_says_that_it_was_not_measured(gpu_spans: Telemetry) -> None:
    run(Unmetered)
    assert about(gpu_spans)[attributes.DEVICE_TYPE] == "npu"
    assert about(gpu_spans)[attributes.GPU_TIME_STATUS] == "unmeasured"


def test_wall_time_within_a_call_on_the_same_device_is_that_calls(gpu_spans: Telemetry) -> None:
    outer = {attributes.OPERATION: "inference", attributes.DEVICE_TYPE: "cuda"}
    with gpu_spans.provider.get_tracer("torch").start_as_current_span("inference Model", attributes=outer):
        run(Claimed)
    inner = gpu_spans.spans()[1]
    assert (inner.attributes or {})[attributes.GPU_TIME_STATUS] == "inside"
    assert GPU_SECONDS not in (inner.attributes or {})


def test_an_asynchronous_run_has_wall_time_until_it_is_called_back(gpu_spans: Telemetry) -> None:
    done = threading.Event()
    session = Streamed(model_bytes())  # has to outlive its run: older versions wait for ever
    session.run_async(None, {"x": batch()}, lambda *_: done.set(), None)
    assert done.wait(10)
    assert about(gpu_spans)[attributes.GPU_TIME_SOURCE] == "wall_sync"


def test_a_fault_of_a_clock_costs_its_figure_and_not_the_span(faulty_telemetry: Telemetry, events: Events) -> None:
    events.broken = True
    OnnxRuntimeInstrumentor().instrument(
        tracer_provider=faulty_telemetry.provider, clock_for=lambda kind, index: events
    )
    try:
        run(Streamed)
    finally:
        OnnxRuntimeInstrumentor().uninstrument()
    assert faulty_telemetry.spans()[-1].name == "inference intent"
    assert GPU_SECONDS not in about(faulty_telemetry)


def test_a_driver_that_is_broken_costs_the_clock(faulty_telemetry: Telemetry, events: Events) -> None:
    def broken(kind: str, index: int | None) -> Any:
        raise RuntimeError("no driver")

    OnnxRuntimeInstrumentor().instrument(tracer_provider=faulty_telemetry.provider, clock_for=broken)
    try:
        run(Streamed)
    finally:
        OnnxRuntimeInstrumentor().uninstrument()
    assert about(faulty_telemetry)[attributes.GPU_TIME_SOURCE] == "wall_sync"


@pytest.mark.parametrize(
    ("options", "address"),
    [
        ({}, None),
        ({"user_compute_stream": "0"}, None),
        ({"user_compute_stream": "94123"}, 94123),
        ({"user_compute_stream": "0x10"}, 16),
        ({"user_compute_stream": "94123", "has_user_compute_stream": "0"}, None),
        ({"user_compute_stream": "nothing"}, None),
    ],
)
def test_the_users_stream(options: dict[str, str], address: int | None) -> None:
    assert user_stream(options) == address


# -- sharing wall time -------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(0, 10**9), st.integers(0, 10**9)), min_size=1, max_size=20))
def test_shares_of_calls_in_flight_sum_to_the_time_in_which_there_were_any(windows: list[tuple[int, int]]) -> None:
    windows = [(min(window), max(window)) for window in windows]
    now = 0
    clock = WallClock(lambda: now)
    happens = sorted(
        [(start, 0, n) for n, (start, _) in enumerate(windows)] + [(end, 1, n) for n, (_, end) in enumerate(windows)]
    )
    marks: dict[int, list[float]] = {}
    for now, ends, n in happens:  # noqa: B007 (the clock reads it)
        if ends:
            clock.end(marks[n])
        else:
            marks[n] = clock.begin()
    union, reached = 0, -1
    for start, end in sorted(windows):
        union += max(0, end - max(start, reached))
        reached = max(reached, end)
    assert sum(mark[0] for mark in marks.values()) == pytest.approx(union, abs=1)
    for n, (start, end) in enumerate(windows):
        assert 0 <= marks[n][0] <= end - start + 1
