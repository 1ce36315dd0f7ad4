"""Capacity: every nanosecond that a process holds of a device is a call's or idle, minute by minute, and none is both.

Devices are fakes in virtual time: these prove sums, order and ends, and nothing about a real GPU. CPUs are real.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import threading
import types
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from time import monotonic_ns, sleep
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.context import get_current
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import INVALID_SPAN_CONTEXT, NonRecordingSpan, SpanKind

from tollspan.instrumentation import capacity as capacity_module
from tollspan.instrumentation import capacity_minutes, capacity_nvml, guard, launch
from tollspan.instrumentation.capacity import Capacity, CapacityInstrumentor, in_use
from tollspan.instrumentation.capacity_cpus import cpus
from tollspan.instrumentation.capacity_minutes import MINUTE_NS, OVER, Holding
from tollspan.instrumentation.device_clock import GPU_SECONDS, Together
from tollspan.instrumentation.onnxruntime.devices import WallClock
from tollspan.instrumentation.torch_events import EventClock
from tollspan.instrumentation.torch_execution import Execution
from tollspan.instrumentation.torch_resolver import Resolver
from tollspan.pricing import attributes

from .conftest import Telemetry
from .fake_device import FakeDevice

SECOND = 1_000_000_000
EPOCH = 1_763_600_000 * SECOND // MINUTE_NS * MINUTE_NS
"""A whole minute of the wall clock."""
IDLE = attributes.usage("gpu.idle_seconds")
CPU_IDLE = attributes.usage("cpu.idle_seconds")
H200 = {attributes.DEVICE_NAME: "NVIDIA H200", attributes.DEVICE_ID: "GPU-1"}


def ns(seconds: Any) -> int:
    return round(seconds * 1e9)


class Bench:
    """A process that holds a fake device since the wall clock said ``since`` into a minute."""

    def __init__(self, telemetry: Telemetry, since: int = 0, most: int = 64, **options: Any) -> None:
        self.telemetry = telemetry
        self.tracer = telemetry.provider.get_tracer("test")
        self.device = FakeDevice()
        self.resolver = Resolver(thread=False)
        self.clock = EventClock(self.device, self.resolver, most, now=self.now)
        self.capacity = Capacity(
            telemetry.provider, now=self.now, wall=lambda: EPOCH + since + self.now(), thread=False, **options
        )
        self.capacity.hold(self.clock, "cuda", 0, H200)

    def now(self) -> int:
        return self.device.now

    def at(self, seconds: float) -> Bench:
        """Lets the device and the host get to an instant."""
        self.device.now = ns(seconds)
        self.resolver.poll()
        return self

    def call(self, nanoseconds: int, stream: object = "stream 0", *, sampled: bool = True) -> None:
        mark = self.clock.begin(stream)
        self.device.launch(nanoseconds, stream)
        self.end(mark, sampled=sampled)

    def end(self, mark: object, *, sampled: bool = True) -> None:
        self.clock.end(mark)
        span = self.tracer.start_span("call") if sampled else NonRecordingSpan(INVALID_SPAN_CONTEXT)
        if not self.clock.settle(mark, span, 1):
            span.end(1)

    def minutes(self, tick: bool = True) -> list[ReadableSpan]:
        if tick:
            self.capacity.tick()
        spans = [span for span in self.telemetry.spans() if span.name.startswith("capacity")]
        return sorted(spans, key=lambda span: span.start_time or 0)

    def told(self, name: str, tick: bool = True) -> list[Any]:
        return [(span.attributes or {}).get(name) for span in self.minutes(tick)]

    def given(self) -> int:
        """What the spans of calls tell that they were given."""
        calls = (span for span in self.telemetry.spans() if span.name == "call")
        return sum(ns((span.attributes or {}).get(GPU_SECONDS, 0)) for span in calls)


@pytest.fixture
def bench(telemetry: Telemetry) -> Bench:
    return Bench(telemetry)


# -- the span of a minute ----------------------------------------------------------------------------------------------


def test_a_minute_is_a_root_span_of_its_own_scope_with_what_was_allocated_busy_and_idle(telemetry: Telemetry) -> None:
    bench = Bench(telemetry, since=15 * SECOND)
    with bench.tracer.start_as_current_span("outside"):
        bench.call(5 * SECOND)
        (minute,) = bench.at(46).minutes()
    assert (minute.name, minute.kind, minute.parent) == ("capacity NVIDIA H200", SpanKind.INTERNAL, None)
    assert minute.instrumentation_scope is not None
    assert minute.instrumentation_scope.name == "tollspan.instrumentation.capacity"
    # From the first use to where the wall clock's minute ends.
    assert (minute.start_time, minute.end_time) == (EPOCH + 15 * SECOND, EPOCH + MINUTE_NS)
    assert dict(minute.attributes or {}) == {
        attributes.OPERATION: "capacity",
        attributes.DEVICE_TYPE: "cuda",
        **H200,
        attributes.CAPACITY_ALLOCATED: 45.0,
        attributes.CAPACITY_BUSY: 5.0,
        attributes.CAPACITY_STATUS: "ok",
        IDLE: 40.0,
    }


def test_minutes_follow_each_other_and_the_last_one_goes_as_far_as_the_process(bench: Bench) -> None:
    bench.at(70).call(20 * SECOND)
    bench.at(150).capacity.finish()
    assert [(m.start_time, m.end_time) for m in bench.minutes()] == [
        (EPOCH, EPOCH + MINUTE_NS),
        (EPOCH + MINUTE_NS, EPOCH + 2 * MINUTE_NS),
        (EPOCH + 2 * MINUTE_NS, EPOCH + 150 * SECOND),
    ]
    assert bench.told(IDLE) == [60.0, 40.0, 30.0]


def test_a_call_over_the_end_of_a_minute_is_in_both(bench: Bench) -> None:
    bench.at(50).call(30 * SECOND)
    assert bench.at(70).minutes() == []  # what it was given of the first minute is not known yet
    bench.at(130)
    assert bench.told(IDLE) == [50.0, 40.0]
    assert bench.told(attributes.CAPACITY_BUSY) == [10.0, 20.0]


def test_a_call_that_goes_on_keeps_its_minute_open_and_those_after_it(bench: Bench) -> None:
    bench.at(59)
    mark = bench.clock.begin("a")
    bench.device.launch(100 * SECOND, "a")
    assert bench.at(125).minutes() == []
    bench.at(159).end(mark)
    bench.at(185)
    assert bench.told(IDLE) == [59.0, 0.0, 21.0]


def test_an_unsampled_call_is_no_idle_time(bench: Bench) -> None:
    bench.call(10 * SECOND, sampled=False)
    bench.call(5 * SECOND)
    assert bench.at(61).told(IDLE) == [45.0]
    assert bench.given() == 5 * SECOND


def test_the_wall_clock_may_be_set(telemetry: Telemetry) -> None:
    ahead = [0]
    device = FakeDevice()
    holding = Holding({}, now=lambda: device.now, wall=lambda: EPOCH + device.now + ahead[0])
    device.now = 61 * SECOND
    holding.close()
    ahead[0] = 3600 * SECOND  # the machine slept, or somebody set it
    device.now = 200 * SECOND
    first, second = holding.close()
    assert first.wall == EPOCH + MINUTE_NS
    assert second.wall == EPOCH + 2 * MINUTE_NS + 3600 * SECOND


# -- conservation ------------------------------------------------------------------------------------------------------


def durations(most: int) -> st.SearchStrategy[int]:
    """Nanoseconds, up to ``most`` seconds and one. (Of one large range hypothesis tries few large numbers.)"""
    return st.builds(lambda seconds, rest: seconds * SECOND + rest, st.integers(0, most), st.integers(0, SECOND))


Step = tuple[str, int, int]
steps = st.lists(
    st.tuples(
        st.sampled_from(["begin", "end", "work", "time", "poll", "tick"]),
        st.integers(0, 3),
        st.one_of(durations(5), durations(90)),
    ),
    max_size=60,
)


@settings(deadline=None)
@given(steps, durations(58))
def test_what_calls_were_given_and_what_is_idle_is_what_was_allocated(plan: list[Step], since: int) -> None:
    bench = Bench(Telemetry(), since)
    device, open_calls = bench.device, []
    for what, number, nanoseconds in plan:
        stream = f"stream {number}"
        if what == "begin" and len(open_calls) < 8:
            open_calls.append(bench.clock.begin(stream))
        elif what == "end" and open_calls:
            bench.end(open_calls.pop(number % len(open_calls)))
        elif what == "work":
            device.launch(nanoseconds, stream)
        elif what == "time":
            device.now += nanoseconds
        elif what == "poll":
            bench.resolver.poll()
        else:
            bench.capacity.tick()
    for mark in open_calls:
        bench.end(mark)
    device.now = max([device.now, *device.ends.values()]) + 1
    bench.resolver.poll()
    bench.capacity.finish()

    allocated = [ns(seconds) for seconds in bench.told(attributes.CAPACITY_ALLOCATED)]
    busy = [ns(seconds) for seconds in bench.told(attributes.CAPACITY_BUSY)]
    idle = [ns(seconds) for seconds in bench.told(IDLE)]
    assert set(bench.told(attributes.CAPACITY_STATUS)) <= {"ok"}
    assert sum(allocated) == device.now
    assert [b + i for b, i in zip(busy, idle, strict=True)] == allocated
    assert min(idle, default=0) >= 0
    assert bench.given() == sum(busy) == bench.clock.busy_ns
    assert bench.given() + sum(idle) == sum(allocated)
    assert [m.start_time for m in bench.minutes()][1:] == [m.end_time for m in bench.minutes()][:-1]


reports = st.lists(st.tuples(durations(100), durations(100), st.integers(0, 1000)), max_size=20)


@settings(deadline=None)
@given(reports, durations(58))
def test_however_busy_it_is_told_to_be_no_minute_is_idle_below_zero(
    told: list[tuple[int, int, int]], since: int
) -> None:
    now = [0]
    holding = Holding({}, now=lambda: now[0], wall=lambda: EPOCH + since + now[0])
    minutes, whole = [], 0
    for passed, before, permille in told:
        now[0] += passed
        busy = passed * permille // 900  # more than there is, now and then
        holding.spread(max(0, now[0] - before), now[0], busy)
        whole += busy
        minutes += holding.close()
    minutes += holding.finish(0)
    assert sum(m.allocated for m in minutes) == now[0]
    assert sum(m.busy or 0 for m in minutes) == (whole if now[0] else 0)
    assert all(m.idle is not None and m.idle >= 0 for m in minutes)
    assert all(m.status == OVER or (m.busy or 0) + (m.idle or 0) == m.allocated for m in minutes)
    assert all(m.status != OVER for m in minutes[:-1])


def test_wall_time_of_runs_that_overlap_is_shared_out_to_the_nanosecond(telemetry: Telemetry) -> None:
    now = [0]
    clock = WallClock(lambda: now[0])
    capacity = Capacity(
        telemetry.provider, now=lambda: now[0], wall=lambda: EPOCH + now[0], thread=False, share=Fraction(1)
    )
    capacity.hold(clock, "cuda", 0, {})
    tracer, given = telemetry.provider.get_tracer("test"), 0
    marks: list[Any] = []
    for step in range(200):
        now[0] += 777_777_777
        if step % 3 != 2:
            marks.append(clock.begin())
        elif marks:
            mark = marks.pop(0)
            clock.end(mark)
            span = tracer.start_span("call")
            clock.settle(mark, span, 1)
            span.end()
            given += ns((span.attributes or {})[GPU_SECONDS])  # type: ignore[attr-defined]
        capacity.tick()
    for mark in marks:
        clock.end(mark)
        span = tracer.start_span("call")
        clock.settle(mark, span, 1)
        span.end()
        given += ns((span.attributes or {})[GPU_SECONDS])  # type: ignore[attr-defined]
    now[0] += 90 * SECOND
    capacity.finish()
    minutes = [dict(s.attributes or {}) for s in telemetry.spans() if s.name.startswith("capacity")]
    assert sum(ns(m[attributes.CAPACITY_ALLOCATED]) for m in minutes) == now[0]
    assert given + sum(ns(m[IDLE]) for m in minutes) == now[0]


class Ongoing(FakeDevice):
    """A device in real time."""

    @property
    def now(self) -> int:
        return monotonic_ns()

    @now.setter
    def now(self, value: int) -> None:
        """Time goes by itself."""


def test_in_real_time_with_threads_nothing_is_lost_and_nobody_waits_for_ever(
    telemetry: Telemetry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The order of locks, and the laws, where calls, the resolver, flushes and minutes of 20 ms come at once."""
    monkeypatch.setattr(capacity_minutes, "MINUTE_NS", 20_000_000)
    monkeypatch.setattr(capacity_module, "_GRACE", 0.001)
    device, resolver = Ongoing(), Resolver(0.001)
    clock = EventClock(device, resolver, 10_000)
    capacity = Capacity(telemetry.provider)
    begun = monotonic_ns()
    capacity.hold(clock, "cuda", 0, H200)
    tracer, until = telemetry.provider.get_tracer("test"), begun + SECOND

    def serve(stream: str) -> None:
        while monotonic_ns() < until:
            mark = clock.begin(stream)
            device.launch(200_000, stream)
            clock.end(mark)
            span = tracer.start_span("call")
            if not clock.settle(mark, span, 1):
                span.end(1)
            sleep(0.0005)

    threads = [threading.Thread(target=serve, args=(f"stream {n}",)) for n in range(4)]
    for thread in threads:
        thread.start()
    while monotonic_ns() < until:
        assert telemetry.provider.force_flush(2000)
    for thread in threads:
        thread.join()
    telemetry.provider.shutdown()
    told = [dict(span.attributes or {}) for span in telemetry.spans()]
    minutes = [each for each in told if each.get(attributes.OPERATION) == "capacity"]
    given = sum(ns(each[GPU_SECONDS]) for each in told if GPU_SECONDS in each)
    assert {each[attributes.CAPACITY_STATUS] for each in minutes} == {"ok"}
    assert len(minutes) > 20
    assert given == clock.busy_ns == sum(ns(each[attributes.CAPACITY_BUSY]) for each in minutes) > 0
    assert given + sum(ns(each[IDLE]) for each in minutes) == sum(
        ns(each[attributes.CAPACITY_ALLOCATED]) for each in minutes
    )


# -- what is not known -------------------------------------------------------------------------------------------------


def test_a_call_that_was_not_timed_leaves_the_idle_time_of_its_minute_unknown(telemetry: Telemetry) -> None:
    bench = Bench(telemetry, most=2)
    for _ in range(3):
        bench.call(SECOND)
    bench.at(30).at(61).call(SECOND)
    bench.at(121)
    assert bench.told(attributes.CAPACITY_STATUS) == ["dropped", "ok"]
    assert bench.told(IDLE) == [None, 59.0]
    assert bench.told(attributes.CAPACITY_BUSY) == [None, 1.0]
    assert bench.told(attributes.CAPACITY_ALLOCATED) == [60.0, 60.0]


@pytest.mark.parametrize(("own", "told"), [(True, "ok"), (False, "skipped")])
def test_what_is_captured_is_not_executed_and_what_is_skipped_beside_it_is(bench: Bench, own: bool, told: str) -> None:
    with bench.resolver.capture():
        bench.device.capturing_now = own
        Execution(bench.tracer, "call", {}, get_current(), bench.clock).close(None)
        bench.device.capturing_now = False
    assert bench.at(61).told(attributes.CAPACITY_STATUS) == [told]


def test_after_an_error_of_the_device_its_minutes_are_unknown(faulty_telemetry: Telemetry) -> None:
    bench = Bench(faulty_telemetry)
    bench.call(SECOND)
    bench.device.dead = True
    bench.at(30)
    assert bench.at(61).told(attributes.CAPACITY_STATUS) == ["error"]
    assert bench.told(IDLE) == [None]


def test_a_call_that_the_device_has_not_finished_at_the_end_leaves_the_last_minute_unknown(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(capacity_module, "_LAST_WAIT", 0.01)
    bench.at(61).call(100 * SECOND)
    bench.at(70).capacity.finish()
    assert bench.told(attributes.CAPACITY_STATUS) == ["ok", "pending"]
    assert bench.told(IDLE) == [60.0, None]


def test_a_call_that_never_ends_does_not_keep_minutes_back_for_ever(bench: Bench) -> None:
    bench.clock.begin()
    for minute in range(1, 120):
        bench.at(60 * minute + 1)
    told = bench.told(attributes.CAPACITY_STATUS)
    assert len(told) == 119 - 90 + 1
    assert set(told) == {"pending"}


def test_two_clocks_that_were_given_the_same_time_show(telemetry: Telemetry) -> None:
    bench = Bench(telemetry)
    bench.call(20 * SECOND)
    bench.at(20)
    holding = bench.clock.holding
    assert holding is not None
    holding.spread(0, 20 * SECOND, 20 * SECOND)
    bench.at(30).capacity.finish()
    assert bench.told(attributes.CAPACITY_STATUS) == ["over"]
    assert (bench.told(attributes.CAPACITY_BUSY), bench.told(IDLE)) == ([40.0], [0.0])


def test_what_processes_share_is_divided_only_as_the_user_says(telemetry: Telemetry) -> None:
    bench = Bench(telemetry)
    assert bench.clock.holding is not None
    bench.clock.holding.shared = True
    bench.call(5 * SECOND)
    bench.at(61)
    assert bench.told(attributes.GPU_SHARED) == [True]
    (call,) = (span for span in telemetry.spans() if span.name == "call")
    assert (call.attributes or {})[attributes.GPU_SHARED] is True
    assert bench.told(attributes.CAPACITY_STATUS) == ["shared"]
    assert (bench.told(attributes.CAPACITY_BUSY), bench.told(IDLE)) == ([5.0], [None])


def test_a_share_is_what_is_allocated_of_a_device(telemetry: Telemetry) -> None:
    bench = Bench(telemetry, share=Fraction(1, 4))
    assert bench.clock.holding is not None
    bench.clock.holding.shared = True
    bench.call(5 * SECOND)
    bench.at(61)
    assert bench.told(attributes.CAPACITY_SHARE) == ["1/4"]
    assert bench.told(attributes.CAPACITY_ALLOCATED) == [15.0]
    assert bench.told(IDLE) == [10.0]


# -- flush, shutdown, end ----------------------------------------------------------------------------------------------


def batched(bench: Bench) -> InMemorySpanExporter:
    exporter = InMemorySpanExporter()
    bench.telemetry.provider.add_span_processor(BatchSpanProcessor(exporter))
    return exporter


def names(exporter: InMemorySpanExporter) -> list[str]:
    return sorted(span.name for span in exporter.get_finished_spans())


def test_a_flush_exports_the_minutes_that_are_over(bench: Bench) -> None:
    exporter = batched(bench)
    bench.call(SECOND)
    bench.at(61)
    assert bench.telemetry.provider.force_flush()
    assert names(exporter) == ["call", "capacity NVIDIA H200"]


def test_a_shutdown_exports_the_part_of_a_minute_that_there_is(bench: Bench) -> None:
    exporter = batched(bench)
    bench.call(SECOND)
    bench.at(30)
    bench.telemetry.provider.shutdown()
    assert names(exporter) == ["call", "capacity NVIDIA H200"]
    assert bench.told(IDLE) == [29.0]
    assert bench.clock.holding is None


def test_at_the_end_what_the_device_has_done_meanwhile_is_known(bench: Bench) -> None:
    bench.call(SECOND)
    bench.device.now = 30 * SECOND  # and nobody has asked it
    bench.telemetry.provider.shutdown()
    assert bench.told(IDLE) == [29.0]


def test_a_program_that_ends_tells_its_last_part_and_is_not_held_up() -> None:
    program = """
    import json, os, time
    os.environ["TOLLSPAN_CAPACITY"] = "all"
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter
    from tollspan.instrumentation.capacity import CapacityInstrumentor
    CapacityInstrumentor().instrument()
    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(ConsoleSpanExporter(
        formatter=lambda s: json.dumps({"pid": os.getpid(), "name": s.name, **s.attributes}) + "\\n")))
    trace.set_tracer_provider(provider)  # after us: its exit comes before ours
    from tollspan.instrumentation import capacity
    while capacity._installed[0]._attached is None: pass
    deadline = time.process_time() + 0.2  # what was used before that is not told
    while time.process_time() < deadline: pass
    child = os.fork()
    if child:
        os.waitpid(child, 0)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=60, check=True
    )
    assert "fault" not in done.stderr
    told = [json.loads(line) for line in done.stdout.splitlines()]
    assert {each["name"] for each in told} == {"capacity CPU"}
    assert len({each["pid"] for each in told}) == 2, "the parent's, and the child's own"
    for each in told:
        allocated, busy, idle = each[attributes.CAPACITY_ALLOCATED], each[attributes.CAPACITY_BUSY], each[CPU_IDLE]
        assert ns(busy) + ns(idle) == ns(allocated)
    assert max(each[attributes.CAPACITY_BUSY] for each in told) >= 0.2


def test_a_child_holds_none_of_its_parents_devices(telemetry: Telemetry) -> None:
    bench = Bench(telemetry)
    CapacityInstrumentor().instrument(tracer_provider=telemetry.provider)
    capacity_module._installed.append(bench.capacity)
    try:
        read, write = os.pipe()
        child = os.fork()
        if not child:
            bench.device.now = 100 * SECOND
            bench.capacity.finish()
            os.write(write, b"held" if bench.clock.holding is not None or bench.minutes() else b"free")
            os._exit(0)
        os.waitpid(child, 0)
        assert os.read(read, 4) == b"free"
        assert bench.clock.holding is not None
    finally:
        CapacityInstrumentor().uninstrument()


# -- switches ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def instrumented(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    def instrument(said: str = "", provider: TracerProvider | None = None) -> None:
        monkeypatch.setenv("TOLLSPAN_CAPACITY", said)
        CapacityInstrumentor().instrument(tracer_provider=provider or Telemetry().provider)

    monkeypatch.setattr(capacity_module, "_used", [])
    yield instrument
    CapacityInstrumentor().uninstrument()
    assert not capacity_module._installed


def ours() -> set[str]:
    return {thread.name for thread in threading.enumerate() if thread.name == "tollspan-capacity"}


def test_there_is_no_thread_before_a_device_is_in_use_and_none_afterwards(instrumented: Any) -> None:
    instrumented()
    assert not ours()
    clock = EventClock(FakeDevice(), Resolver(thread=False))
    in_use(clock, "cuda", 0, lambda: H200)
    assert ours()
    (thread,) = [thread for thread in threading.enumerate() if thread.name == "tollspan-capacity"]
    assert thread.daemon
    CapacityInstrumentor().uninstrument()
    thread.join(5)
    assert not thread.is_alive()
    assert clock.holding is None


def test_a_device_that_was_in_use_before_is_held_from_then_on(instrumented: Any, telemetry: Telemetry) -> None:
    clock = EventClock(FakeDevice(), Resolver(thread=False))
    in_use(clock, "cuda", 1, lambda: H200)
    assert clock.holding is None
    instrumented(provider=telemetry.provider)
    assert clock.holding is not None
    CapacityInstrumentor().uninstrument()
    assert {span.name for span in telemetry.spans()} == {"capacity NVIDIA H200"}


def test_two_clocks_of_one_device_report_to_one_holding(instrumented: Any) -> None:
    instrumented()
    events, wall = EventClock(FakeDevice(), Resolver(thread=False)), WallClock()
    in_use(wall, "cuda", 0, dict)
    in_use(events, "cuda", 0, lambda: H200)
    assert events.holding is wall.holding is not None
    assert events.holding.about[attributes.DEVICE_NAME] == "NVIDIA H200"
    assert Together([events]).holding is events.holding


@pytest.mark.parametrize(("kind", "said"), [("mps", ""), ("xpu", ""), ("cuda", "off"), ("cuda", "cpu")])
def test_what_is_not_asked_for_or_not_of_a_known_kind_is_not_held(instrumented: Any, kind: str, said: str) -> None:
    instrumented(said)
    clock = EventClock(FakeDevice(), Resolver(thread=False))
    in_use(clock, kind, 0, dict)
    assert clock.holding is None
    assert bool(ours()) is (said == "cpu")


def test_a_device_that_cannot_be_described_is_held_all_the_same(instrumented: Any) -> None:
    instrumented()
    clock = EventClock(FakeDevice(), Resolver(thread=False))
    before = guard.faults().get("capacity.in_use", 0)
    in_use(clock, "cuda", 0, lambda: {}["no driver"])  # type: ignore[no-any-return]
    assert clock.holding is not None
    assert guard.faults()["capacity.in_use"] == before + 1


@pytest.mark.parametrize(
    ("said", "part"), [("", None), ("1/4", Fraction(1, 4)), ("0.25", Fraction(1, 4)), ("2", None), ("a", None)]
)
def test_a_share_is_a_part_of_one(monkeypatch: pytest.MonkeyPatch, said: str, part: Fraction | None) -> None:
    monkeypatch.setenv("TOLLSPAN_CAPACITY_SHARE", said)
    assert capacity_module._part() == part


def test_the_launcher_waits_for_a_library_that_uses_devices_unless_cpus_are_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    program = """
    import sys
    from tollspan.instrumentation.launch import CapacityInstrumentor
    CapacityInstrumentor().instrument()
    assert ("tollspan.instrumentation.capacity" in sys.modules) is (sys.argv[1] == "cpu")
    """
    for said in ("", "cpu"):
        subprocess.run(
            [sys.executable, "-c", textwrap.dedent(program), said],
            env={**os.environ, "TOLLSPAN_CAPACITY": said},
            check=True,
            timeout=60,
        )
    assert issubclass(launch.CapacityInstrumentor, launch.OnImport)


# -- PyTorch -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampled", [True, False])
def test_models_are_timed_for_the_capacity_sampled_or_not(telemetry: Telemetry, sampled: bool) -> None:
    torch = pytest.importorskip("torch")
    from tollspan.instrumentation.torch import TorchInstrumentor

    bench = Bench(telemetry)

    class Model(torch.nn.Module):  # type: ignore[misc, name-defined]
        def forward(self, x: Any) -> Any:
            bench.device.launch(5 * SECOND)
            return x

    provider = telemetry.provider if sampled else TracerProvider(sampler=ALWAYS_OFF)
    model = Model().eval()
    model.weight = torch.nn.Parameter(torch.ones(1))
    TorchInstrumentor().instrument(tracer_provider=provider, clock_for=lambda *_: bench.clock)
    try:
        model(torch.ones(2, 2))
        model(torch.ones(2, 2))
    finally:
        TorchInstrumentor().uninstrument()
    assert bench.at(61).told(IDLE) == [50.0]
    assert bench.clock.held == 0


def test_the_first_call_on_a_device_takes_hold_of_it(instrumented: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    from tollspan.instrumentation import torch_hardware

    monkeypatch.setattr(torch_hardware, "device_attributes", lambda *_: H200)
    instrumented()
    clock = EventClock(FakeDevice(), Resolver(thread=False))
    hardware = torch_hardware.Hardware(TracerProvider().get_tracer("test"), lambda *_: clock)
    hardware.places.of((torch.device("cpu"),))
    assert clock.holding is None
    hardware.places.of((torch.device("cuda", 3),))
    assert clock.holding is not None
    assert clock.holding.about[attributes.DEVICE_ID] == "GPU-1"


# -- ONNX Runtime ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampled", [True, False])
def test_sessions_are_timed_for_the_capacity_sampled_or_not(
    instrumented: Any, telemetry: Telemetry, sampled: bool
) -> None:
    pytest.importorskip("onnxruntime")
    from tollspan.instrumentation.onnxruntime import OnnxRuntimeInstrumentor

    from .test_onnxruntime import batch, model_bytes
    from .test_onnxruntime_devices import Claimed

    instrumented(provider=telemetry.provider)
    provider = telemetry.provider if sampled else TracerProvider(sampler=ALWAYS_OFF)
    OnnxRuntimeInstrumentor().instrument(tracer_provider=provider)
    try:
        session = Claimed(model_bytes())
        for _ in range(20):
            session.run(None, {"x": batch()})
    finally:
        OnnxRuntimeInstrumentor().uninstrument()
        CapacityInstrumentor().uninstrument()
    told = [dict(span.attributes or {}) for span in telemetry.spans()]
    minutes = [each for each in told if each.get(attributes.OPERATION) == "capacity"]
    busy = sum(ns(each[attributes.CAPACITY_BUSY]) for each in minutes)
    idle = sum(ns(each[IDLE]) for each in minutes)
    assert busy > 0
    assert busy + idle == sum(ns(each[attributes.CAPACITY_ALLOCATED]) for each in minutes)
    given = [ns(each[GPU_SECONDS]) for each in told if GPU_SECONDS in each]
    assert (len(given), sum(given)) == ((20, busy) if sampled else (0, 0))


def test_a_run_that_does_not_wait_for_its_device_leaves_the_idle_time_unknown(
    instrumented: Any, telemetry: Telemetry
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    from tollspan.instrumentation.onnxruntime import OnnxRuntimeInstrumentor

    from .test_onnxruntime import batch, model_bytes
    from .test_onnxruntime_devices import NO_SYNC, Claimed

    options = onnxruntime.RunOptions()
    options.add_run_config_entry(NO_SYNC, "1")
    instrumented(provider=telemetry.provider)
    OnnxRuntimeInstrumentor().instrument(tracer_provider=telemetry.provider)
    try:
        Claimed(model_bytes()).run(None, {"x": batch()}, options)
    finally:
        OnnxRuntimeInstrumentor().uninstrument()
        CapacityInstrumentor().uninstrument()
    told = [dict(span.attributes or {}) for span in telemetry.spans() if span.name.startswith("capacity")]
    (unknown,) = [each for each in told if each[attributes.CAPACITY_STATUS] != "ok"]
    assert unknown[attributes.CAPACITY_STATUS] == "unmeasured"
    assert IDLE not in unknown


# -- metrics -----------------------------------------------------------------------------------------------------------


def test_counters_by_device(telemetry: Telemetry) -> None:
    reader = InMemoryMetricReader()
    bench = Bench(telemetry, meter_provider=MeterProvider([reader]))
    bench.call(5 * SECOND)
    bench.at(121).capacity.tick()
    data = reader.get_metrics_data()
    assert data is not None
    found = {}
    for metric in data.resource_metrics[0].scope_metrics[0].metrics:
        (point,) = metric.data.data_points
        found[metric.name] = point.value  # type: ignore[union-attr]
        assert metric.unit == "s"
        assert metric.data.is_monotonic  # type: ignore[union-attr]
        assert dict(point.attributes or {}) == {attributes.DEVICE_TYPE: "cuda", **H200}
    assert found == {"tollspan.gpu.allocated_seconds": 120.0, "tollspan.gpu.attributed_seconds": 5.0}


# -- CPUs --------------------------------------------------------------------------------------------------------------


def test_the_cpus_of_this_process_are_busy_or_idle(telemetry: Telemetry) -> None:
    capacity = Capacity(telemetry.provider, gpu=False, cpu=True, thread=False, wall=lambda: EPOCH)
    capacity.hold_cpus()
    sum(range(3_000_000))
    capacity.finish()
    told = telemetry.attributes()
    assert telemetry.only().name == "capacity CPU"
    assert ns(told[attributes.CAPACITY_BUSY]) + ns(told[CPU_IDLE]) == ns(told[attributes.CAPACITY_ALLOCATED])
    assert told[attributes.CAPACITY_BUSY] > 0
    assert told[attributes.CAPACITY_CPUS] <= len(os.sched_getaffinity(0))
    assert attributes.DEVICE_NAME not in told  # the host's type is what prices it


def files(folder: Path, contents: dict[str, str]) -> Path:
    for name, text in contents.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


V1 = "3:cpuset:/\n2:cpu,cpuacct:/pod/app\n0::/\n"


@pytest.mark.parametrize(
    ("own", "cgroups", "expected"),
    [
        ("0::/\n", {"cpu.max": "50000 100000\n"}, Fraction(1, 2)),
        ("0::/\n", {"cpu.max": "max 100000\n"}, None),
        ("0::/pod/app\n", {"pod/app/cpu.max": "max 100000", "pod/cpu.max": "25000 100000"}, Fraction(1, 4)),
        ("0::/pod/app\n", {"cpu.max": "10000"}, Fraction(1, 10)),  # a container that sees its own cgroup as the root
        ("0::/../other\n", {"cpu.max": "garbage"}, None),
        (V1, {"cpu,cpuacct/pod/app/cpu.cfs_quota_us": "30000", "cpu,cpuacct/pod/app/cpu.cfs_period_us": "100000"}, 0.3),
        (V1, {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
        ("", {}, None),
    ],
)
def test_a_quota_is_what_is_allotted(tmp_path: Path, own: str, cgroups: dict[str, str], expected: Any) -> None:
    folder = files(tmp_path, {"own": own, **{f"fs/{name}": text for name, text in cgroups.items()}})
    everything = Fraction(len(os.sched_getaffinity(0)))
    assert cpus(folder / "fs", folder / "own") == (everything if expected is None else Fraction(str(expected)))


def test_affinity_is_what_is_allotted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5, 8})
    assert cpus(tmp_path, tmp_path / "none") == 3


# -- NVML --------------------------------------------------------------------------------------------------------------


class Nvml(types.ModuleType):
    """``pynvml`` with one device."""

    class NVMLError(Exception):
        pass

    def __init__(self) -> None:
        super().__init__("pynvml")
        self.percents = [100, 50]
        self.processes: list[object] = [1]
        self.asked: list[str] = []

    def nvmlInit(self) -> None:
        return None

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        self.asked.append(uuid)
        if uuid != "GPU-1":
            raise self.NVMLError
        return uuid

    def nvmlDeviceGetUtilizationRates(self, handle: str) -> Any:
        if not self.percents:
            raise self.NVMLError
        return types.SimpleNamespace(gpu=self.percents.pop(0))

    def nvmlDeviceGetComputeRunningProcesses(self, handle: str) -> list[object]:
        return self.processes


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> Nvml:
    nvml = Nvml()
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    return nvml


def test_utilization_of_the_whole_device_stands_beside_and_changes_nothing(bench: Bench, nvml: Nvml) -> None:
    for _ in range(3):
        bench.capacity.sample()
    bench.call(SECOND)
    bench.at(61)
    assert bench.told(attributes.CAPACITY_UTILIZED) == [45.0]
    assert bench.told(attributes.GPU_SHARED) == [False]
    assert bench.told(IDLE) == [59.0]


def test_several_processes_are_seen(bench: Bench, nvml: Nvml) -> None:
    nvml.processes = [1, 2]
    bench.capacity.sample()
    nvml.processes = [1]
    bench.capacity.sample()
    bench.at(61)
    assert bench.told(attributes.CAPACITY_STATUS) == ["shared"]


def test_where_nvml_tells_nothing_nothing_is_said(bench: Bench, nvml: Nvml) -> None:
    nvml.percents, nvml.processes = [], []
    bench.capacity.sample()
    bench.at(61)
    assert bench.told(attributes.CAPACITY_UTILIZED) == bench.told(attributes.GPU_SHARED) == [None]


def test_a_device_is_found_with_or_without_the_prefix_of_its_identity(nvml: Nvml) -> None:
    assert capacity_nvml.device("1") is not None
    assert capacity_nvml.device("GPU-1") is not None
    assert capacity_nvml.device("MIG-7") is None
    assert capacity_nvml.device(None) is None
    assert nvml.asked == ["GPU-1", "GPU-1", "MIG-7"]


def test_without_nvml_there_is_no_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert capacity_nvml.device("GPU-1") is None


def test_mps_is_seen_without_nvml(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CUDA_MPS_PIPE_DIRECTORY", str(tmp_path))
    monkeypatch.delenv("CUDA_MPS_ACTIVE_THREAD_PERCENTAGE", raising=False)
    assert not capacity_nvml.served_by_mps()
    (tmp_path / "control").touch()
    assert capacity_nvml.served_by_mps()
