"""Device time by events, on a fake device: true, conserved, off the hot path, and never at a span's expense."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import INVALID_SPAN_CONTEXT, NonRecordingSpan

from tollspan.instrumentation.device_clock import GPU_SECONDS, Together
from tollspan.instrumentation.torch_events import EventClock, Mark
from tollspan.instrumentation.torch_resolver import Resolver
from tollspan.instrumentation.torch_sweep import sweep
from tollspan.pricing import attributes

from .conftest import Telemetry
from .fake_device import FakeDevice, FakeEvent

STATUS = attributes.GPU_TIME_STATUS
MS = 1_000_000


class Bench:
    """A device, its clock, and calls on it."""

    def __init__(self, telemetry: Telemetry, most_pending: int = 64) -> None:
        self.telemetry = telemetry
        self.tracer = telemetry.provider.get_tracer("test")
        self.device = FakeDevice()
        self.resolver = Resolver(thread=False)
        self.clock = EventClock(self.device, self.resolver, most_pending)
        self.calls = 0

    def begin(self, stream: object = "stream 0") -> object:
        self.device.hot = True
        mark = self.clock.begin(stream)
        self.device.hot = False
        return mark

    def end(self, mark: object, end_time: int = 0) -> bool:
        self.device.hot = True
        span = self.tracer.start_span(f"call {self.calls}", start_time=1)
        self.calls += 1
        self.clock.end(mark)
        taken = self.clock.settle(mark, span, end_time or self.calls)
        if not taken:
            span.end(end_time or self.calls)
        self.device.hot = False
        return taken

    def call(self, nanoseconds: int, stream: object = "stream 0") -> bool:
        mark = self.begin(stream)
        self.device.launch(nanoseconds, stream)
        return self.end(mark)

    def at(self, now: int) -> int:
        """Lets the device get to an instant, and asks it."""
        self.device.now = now
        return self.resolver.poll()

    def spans(self) -> list[ReadableSpan]:
        return sorted(self.telemetry.spans(), key=lambda span: span.name)

    def told(self, name: str) -> list[Any]:
        return [(span.attributes or {}).get(name) for span in self.spans()]


@pytest.fixture
def bench(telemetry: Telemetry) -> Bench:
    return Bench(telemetry)


def test_a_span_is_held_until_its_time_is_known_and_ends_when_its_call_did(bench: Bench) -> None:
    bench.call(5 * MS)
    bench.call(4 * MS)
    assert bench.at(4 * MS) == 2
    assert bench.spans() == []
    assert bench.at(5 * MS) == 1
    assert bench.at(20 * MS) == 0
    assert bench.told(attributes.GPU_WINDOW) == [0.005, 0.004]  # what was queued before it is not its own
    assert bench.told(GPU_SECONDS) == [0.005, 0.004]
    assert bench.told(STATUS) == ["ok", "ok"]
    assert bench.told(attributes.GPU_TIME_SOURCE) == ["cuda_event"] * 2
    assert [span.end_time for span in bench.spans()] == [1, 2]


def test_an_instant_in_which_two_streams_work_is_halved(bench: Bench) -> None:
    bench.call(4 * MS, "a")
    bench.device.now = 2 * MS
    bench.call(4 * MS, "b")
    assert bench.at(10 * MS) == 0
    assert bench.told(attributes.GPU_WINDOW) == [0.004, 0.004]
    assert bench.told(GPU_SECONDS) == [0.003, 0.003]
    assert bench.clock.busy_ns == 6 * MS


def test_a_call_that_goes_on_bears_its_part_of_those_that_end_meanwhile(bench: Bench) -> None:
    long = bench.begin("a")
    bench.device.launch(100 * MS, "a")
    bench.call(10 * MS, "b")
    assert bench.at(50 * MS) == 0
    assert bench.told(GPU_SECONDS) == [0.005]
    bench.end(long)
    bench.at(100 * MS)
    assert bench.told(GPU_SECONDS) == [0.005, 0.095]


def test_what_begins_or_ends_while_the_device_is_asked_is_not_missed(bench: Bench) -> None:
    bench.device.launch(MS, "b")
    bench.call(5 * MS, "b")  # from 1 to 6 ms
    bench.call(4 * MS, "a")  # from 0 to 4 ms
    bench.device.ticks = [0, 0, 10 * MS]  # b has not begun; a has begun; a has ended, and b too by now
    assert bench.resolver.poll() == 1  # what b was given after the end of a is not known yet
    assert bench.resolver.poll() == 0
    assert bench.told(GPU_SECONDS) == [0.0035, 0.0025]


def test_threads_that_share_a_stream_share_its_time(bench: Bench) -> None:
    one, other = bench.begin(), bench.begin()
    bench.device.launch(4 * MS)
    bench.end(other)
    bench.device.launch(2 * MS)
    bench.end(one)
    bench.at(10 * MS)
    assert bench.told(GPU_SECONDS) == [0.002, 0.004]


def test_a_full_backlog_drops_timings_and_not_spans(bench: Bench) -> None:
    taken = [bench.call(MS) for _ in range(200)]
    assert sum(taken) == 64
    assert bench.clock.dropped == 136
    assert bench.at(1000 * MS) == 0
    assert bench.told(STATUS).count("ok") == 64
    assert bench.told(STATUS).count("dropped") == 136
    assert bench.call(MS)


def test_nothing_is_recorded_nor_asked_while_a_graph_is_captured_anywhere(bench: Bench) -> None:
    bench.call(MS)
    with bench.resolver.capture():
        bench.device.capturing_now = True
        assert bench.clock.capturing()
        assert bench.at(2 * MS) == 1
        bench.device.capturing_now = False
    assert not bench.clock.capturing()
    assert bench.at(2 * MS) == 0


def test_after_an_error_of_the_device_no_span_waits_for_it(faulty_telemetry: Telemetry) -> None:
    bench = Bench(faulty_telemetry)
    bench.call(MS)
    open_still = bench.begin()
    bench.device.dead = True
    assert bench.at(2 * MS) == 0
    assert bench.told(STATUS) == ["error"]
    with pytest.raises(RuntimeError):
        bench.clock.end(open_still)
    assert not bench.call(MS)
    assert bench.told(STATUS) == ["error", "error"]
    assert bench.told(GPU_SECONDS) == [None, None]


def test_a_driver_that_cannot_tell_a_distance_loses_no_span(
    faulty_telemetry: Telemetry, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: FakeEvent, end: FakeEvent) -> float:
        raise RuntimeError("invalid resource handle")

    monkeypatch.setattr(FakeEvent, "elapsed_time", refuse)
    bench = Bench(faulty_telemetry)
    bench.call(MS, "a")
    bench.call(MS, "b")
    assert bench.at(2 * MS) == 0
    assert bench.told(STATUS) == ["error", "error"]


def test_events_are_used_again(bench: Bench) -> None:
    for n in range(1000):
        bench.call(MS)
        bench.at((n + 1) * MS)
    assert bench.device.made <= 6
    assert bench.told(GPU_SECONDS) == [0.001] * 1000


def test_after_hours_of_silence_a_microsecond_is_a_microsecond(bench: Bench) -> None:
    """The driver tells distances as 32-bit floats."""
    import struct

    exact = FakeEvent.elapsed_time

    def as_float32(self: FakeEvent, end: FakeEvent) -> float:
        value: float = struct.unpack("f", struct.pack("f", exact(self, end)))[0]
        return value

    FakeEvent.elapsed_time = as_float32  # type: ignore[method-assign]
    try:
        for hour in range(3):
            bench.device.now = hour * 3600 * 1000 * MS + 12_345
            bench.call(20_000, "a")
            bench.call(20_000, "b")
            bench.at(bench.device.now + MS)
    finally:
        FakeEvent.elapsed_time = exact  # type: ignore[method-assign]
    assert bench.told(attributes.GPU_WINDOW) == [2e-05] * 6
    assert sum(bench.told(GPU_SECONDS)) == pytest.approx(3 * 2e-05, rel=0.03)


def test_a_hundred_thousand_calls_leave_nothing_behind() -> None:
    bench = Bench(Telemetry())
    span = NonRecordingSpan(INVALID_SPAN_CONTEXT)
    for n in range(100_000):
        mark = bench.clock.begin(f"stream {n % 7}")
        bench.device.launch(MS, f"stream {n % 7}")
        bench.clock.end(mark)
        assert bench.clock.settle(mark, span, 1)
        bench.at((n + 1) * MS)
    assert bench.clock.held == 0
    assert bench.device.made < 50
    assert not bench.clock._waiting
    assert not bench.clock._open
    assert not bench.clock._known
    assert bench.clock.busy_ns == 100_000 * MS


# -- conservation ------------------------------------------------------------------------------------------------------


def union(windows: Iterable[tuple[int, int]]) -> int:
    """Length of what any of the windows covers."""
    covered, last = 0, -1
    for start, stop in sorted(windows):
        covered += max(0, stop - max(start, last))
        last = max(last, stop)
    return covered


Step = tuple[str, int, int]
steps = st.lists(
    st.tuples(st.sampled_from(["begin", "end", "work", "time", "poll"]), st.integers(0, 3), st.integers(1, 5 * MS)),
    max_size=80,
)


@given(steps)
def test_shares_add_up_to_the_time_in_which_anything_was_open(plan: list[Step]) -> None:
    bench = Bench(Telemetry())
    open_calls: list[tuple[object, int]] = []
    windows: list[tuple[int, int]] = []

    def finish(mark: object) -> None:
        assert isinstance(mark, Mark)
        bench.end(mark)
        windows.append((mark.start.at, mark.end.at))  # type: ignore[union-attr]

    for what, number, nanoseconds in plan:
        stream = f"stream {number}"
        if what == "begin" and len(open_calls) < 8:
            open_calls.append((bench.begin(stream), number))
        elif what == "end" and open_calls:
            finish(open_calls.pop(number % len(open_calls))[0])
        elif what == "work":
            bench.device.launch(nanoseconds, stream)
        elif what == "time":
            bench.device.now += nanoseconds
        else:
            bench.resolver.poll()
    for mark, _ in open_calls:
        finish(mark)
    assert bench.at(10**12) == 0

    shares = [round(share * 1e9) for share in bench.told(GPU_SECONDS)]
    assert sum(shares) == bench.clock.busy_ns == union(windows)
    assert len(shares) == len(windows)
    for share, window in zip(shares, bench.told(attributes.GPU_WINDOW), strict=True):
        assert 0 <= share <= round(window * 1e9)


class Span:
    def __init__(self, start_ns: int, stop_ns: int | None) -> None:
        self.start_ns, self.stop_ns, self.share_ns = start_ns, stop_ns, 0


@given(
    st.lists(st.tuples(st.integers(0, 1000), st.integers(0, 300)), max_size=25),
    st.lists(st.integers(0, 1300), max_size=5),
)
def test_in_however_many_steps_the_sweep_goes_it_splits_the_union(
    windows: list[tuple[int, int]], horizons: list[int]
) -> None:
    spans = [Span(start, start + length) for start, length in windows]
    union, since = 0, 0
    for until in sorted({*horizons, 1300}):
        union += sweep([span for span in spans if span.start_ns < until], since, until)
        since = until
    instants = {instant for start, length in windows for instant in range(start, start + length)}
    assert sum(span.share_ns for span in spans) == union == len(instants)


# -- flush, shutdown, threads ------------------------------------------------------------------------------------------


def test_a_flush_waits_for_the_device_and_then_for_the_exporter(bench: Bench) -> None:
    provider, exporter = bench.telemetry.provider, InMemorySpanExporter()
    provider.add_span_processor(BatchSpanProcessor(exporter))  # installed before us, flushed after us
    bench.call(MS)
    bench.device.now = 2 * MS
    assert provider.force_flush()
    (span,) = exporter.get_finished_spans()
    assert (span.attributes or {})[GPU_SECONDS] == 0.001


def test_a_flush_does_not_wait_for_a_call_that_goes_on(bench: Bench) -> None:
    bench.begin("a")
    bench.call(MS, "b")
    bench.device.now = 2 * MS
    assert bench.telemetry.provider.force_flush(1000)


def test_a_flush_gives_up_at_its_deadline_and_keeps_what_it_holds(bench: Bench) -> None:
    bench.call(MS)
    assert not bench.telemetry.provider.force_flush(20)
    assert bench.spans() == []
    assert bench.at(MS) == 0


def test_a_shutdown_ends_what_the_device_has_not_finished(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tollspan.instrumentation.torch_resolver.SHUTDOWN", 0.01)
    bench.call(MS)
    bench.telemetry.provider.shutdown()
    assert bench.told(STATUS) == ["timeout"]
    assert bench.clock.held == 0


def test_the_thread_asks_while_something_is_held_and_sleeps_otherwise(telemetry: Telemetry) -> None:
    bench = Bench(telemetry)
    bench.resolver = Resolver(interval=0.001)
    bench.clock = EventClock(bench.device, bench.resolver)
    ended = threading.Event()

    class Heard(SimpleSpanProcessor):
        def on_end(self, span: ReadableSpan) -> None:
            ended.set()

    telemetry.provider.add_span_processor(Heard(InMemorySpanExporter()))
    for n in range(3):
        bench.device.now = n * MS + MS
        mark = bench.clock.begin("a")
        bench.clock.end(mark)
        assert bench.clock.settle(mark, bench.tracer.start_span("call"), 1)
        assert ended.wait(10)
        ended.clear()


def test_several_threads_and_streams_conserve(telemetry: Telemetry) -> None:
    bench = Bench(telemetry, most_pending=10_000)
    bench.resolver = Resolver(interval=0.001)
    bench.clock = EventClock(bench.device, bench.resolver, 10_000)
    marks: list[Any] = []
    ticking = threading.Lock()

    def work(stream: str) -> None:
        for _ in range(200):
            mark = bench.clock.begin(stream)
            bench.device.launch(1_000, stream)
            bench.clock.end(mark)
            marks.append(mark)
            bench.clock.settle(mark, bench.tracer.start_span("call"), 1)
            with ticking:
                bench.device.now += 400

    threads = [threading.Thread(target=work, args=(f"stream {n}",)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    bench.device.now += 10**9
    assert telemetry.provider.force_flush()
    shares = [round(share * 1e9) for share in bench.told(GPU_SECONDS)]
    assert len(shares) == 800
    assert sum(shares) == bench.clock.busy_ns == union((mark.start_ns, mark.stop_ns) for mark in marks)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_holds_nothing(bench: Bench) -> None:
    bench.call(MS)
    child = os.fork()
    if child == 0:
        os._exit(bench.clock.held)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert bench.at(MS) == 0


# -- several devices ---------------------------------------------------------------------------------------------------


@pytest.fixture
def two(telemetry: Telemetry) -> tuple[Bench, Bench, Together]:
    one, other = Bench(telemetry), Bench(telemetry)
    return one, other, Together([one.clock, other.clock])


def on_both(two: tuple[Bench, Bench, Together], first: int, second: int) -> None:
    one, other, clock = two
    mark = clock.begin()
    one.device.launch(first)
    other.device.launch(second)
    clock.end(mark)
    span = one.tracer.start_span("call", start_time=1)
    assert clock.settle(mark, span, 7)


def test_a_call_on_two_devices_uses_the_seconds_of_both(two: tuple[Bench, Bench, Together]) -> None:
    on_both(two, 3 * MS, 5 * MS)
    two[0].at(10 * MS)
    assert two[0].spans() == []
    two[1].at(10 * MS)
    (span,) = two[0].spans()
    assert two[0].told(GPU_SECONDS) == [0.008]
    assert two[0].told(attributes.GPU_WINDOW) == [0.005]
    assert span.end_time == 7


def test_where_one_device_does_not_tell_nothing_is_said(two: tuple[Bench, Bench, Together]) -> None:
    for _ in range(64):
        two[1].call(MS)
    on_both(two, 3 * MS, 5 * MS)
    two[0].at(10 * MS)
    (span,) = [span for span in two[0].spans() if span.name == "call"]
    assert (span.attributes or {})[STATUS] == "dropped"
    assert GPU_SECONDS not in (span.attributes or {})
    two[1].at(1000 * MS)
