"""Head sampling: what is sampled, what of the rest is sent, and that nothing of the bill depends on it."""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Iterator
from importlib.metadata import entry_points
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry import baggage, trace
from opentelemetry.context import Context
from opentelemetry.propagate import extract, inject
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import Decision, ParentBased
from opentelemetry.trace import (
    NonRecordingSpan,
    SpanContext,
    StatusCode,
    TraceFlags,
    TraceState,
    set_span_in_context,
)

from tollspan.instrumentation import TollspanSampler, drop_trace, keep_trace, tag
from tollspan.instrumentation.sampler import from_argument
from tollspan.instrumentation.slim_attributes import billed
from tollspan.instrumentation.tags import TagsInstrumentor
from tollspan.pricing import attributes as names
from tollspan.processor import tracestate
from tollspan.processor.sample import threshold

CALL = {names.OPERATION_NAME: "chat", names.PROVIDER_NAME: "openai", names.REQUEST_MODEL: "gpt-5-mini"}
USAGE = {names.USAGE_INPUT_TOKENS: 1000, names.USAGE_OUTPUT_TOKENS: 100}


class Program:
    """A tracer provider of a program with our sampler, and what it exported."""

    def __init__(self, rate: float, *processors: SpanProcessor) -> None:
        self.exporter = InMemorySpanExporter()
        self.provider = TracerProvider(sampler=TollspanSampler(rate), shutdown_on_exit=False)
        for processor in processors or (SimpleSpanProcessor(self.exporter),):
            self.provider.add_span_processor(processor)
        self.tracer = self.provider.get_tracer("program")

    @property
    def sent(self) -> list[ReadableSpan]:
        return list(self.exporter.get_finished_spans())

    def call(self, name: str = "chat gpt-5-mini", **attributes: Any) -> trace.Span:
        """A call of a model, ended."""
        span = self.tracer.start_span(name, attributes=CALL)
        span.set_attributes({**USAGE, **attributes})
        span.end()
        return span


@pytest.fixture
def off() -> Iterator[Program]:
    """Samples nothing."""
    program = Program(0.0)
    yield program
    program.provider.shutdown()


def parent(sampled: bool, *, remote: bool = True, state: str = "", trace_id: int = 7) -> Context:
    flags = TraceFlags(TraceFlags.SAMPLED if sampled else TraceFlags.DEFAULT)
    above = SpanContext(trace_id, 9, remote, flags, TraceState.from_header([state] if state else []))
    return set_span_in_context(NonRecordingSpan(above), Context())


# -- what is sampled ---------------------------------------------------------------------------------------------------


def test_the_launcher_finds_it_under_its_name() -> None:
    (point,) = entry_points(group="opentelemetry_traces_sampler", name="tollspan")
    sampler = point.load()("0.25")
    assert isinstance(sampler, TollspanSampler)
    assert sampler.rate == 0.25


@pytest.mark.parametrize("argument", ["much", "10%", "1.5", "-1", "nan"])
def test_an_argument_that_is_no_share_is_told_of_and_samples_everything(
    argument: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR):
        sampler = from_argument(argument)
    assert isinstance(sampler, TollspanSampler)
    assert sampler.rate == 1.0
    assert "OTEL_TRACES_SAMPLER_ARG" in caplog.text
    assert "0.1" in caplog.text


@pytest.mark.parametrize("argument", ["", None, " "])
def test_without_an_argument_everything_is_sampled(argument: str | None) -> None:
    assert from_argument(argument).rate == 1.0  # type: ignore[attr-defined]


@given(rate=st.floats(0, 1), low=st.integers(0, 2**56 - 1), high=st.integers(1, 2**72 - 1))
def test_a_root_is_sampled_as_the_tail_sampler_would_decide(rate: float, low: int, high: int) -> None:
    """The same threshold over the same randomness, so that both together keep what the stricter keeps."""
    result = TollspanSampler(rate).should_sample(Context(), high << 56 | low, "request")
    assert result.decision is (Decision.RECORD_AND_SAMPLE if low >= threshold(rate) else Decision.DROP)
    if result.decision is Decision.RECORD_AND_SAMPLE:
        assert result.trace_state is not None
        assert result.trace_state["ot"] == tracestate.stamp("", threshold(rate)).removeprefix("ot=")


def test_a_tenth_is_a_tenth() -> None:
    rng, sampler = random.Random(3), TollspanSampler(0.1)
    drawn = [sampler.should_sample(Context(), rng.getrandbits(128), "r").decision for _ in range(20_000)]
    share = drawn.count(Decision.RECORD_AND_SAMPLE) / len(drawn)
    assert abs(share - 0.1) < 4 * math.sqrt(0.1 * 0.9 / len(drawn))


@pytest.mark.parametrize("remote", [True, False])
@pytest.mark.parametrize("rate", [0.0, 1.0])
def test_a_parent_decides_for_its_children(rate: float, remote: bool) -> None:
    sampler = TollspanSampler(rate)
    state = "other=1,ot=th:8;rv:0123456789abcd"
    sampled = sampler.should_sample(parent(True, remote=remote, state=state), 7, "r")
    assert sampled.decision is Decision.RECORD_AND_SAMPLE
    assert sampled.trace_state is not None
    assert sampled.trace_state.to_header() == state, "the threshold of whoever decided is handed on"
    assert sampler.should_sample(parent(False, remote=remote), 7, "r").decision is Decision.DROP


# -- what is sent of the rest ------------------------------------------------------------------------------------------


def test_a_request_that_is_not_sampled_still_tells_what_it_used(off: Program) -> None:
    TagsInstrumentor().instrument(tracer_provider=off.provider)
    try:
        with tag(tenant="acme"), off.tracer.start_as_current_span("GET /"):
            span = off.tracer.start_span(
                "chat gpt-5-mini", attributes=CALL, links=[trace.Link(SpanContext(1, 2, True))]
            )
            span.set_attributes({**USAGE, names.INPUT_MESSAGES: "secret", "server.address": "x", "my.own": 1})
            span.add_event("gen_ai.choice", {"content": "secret"})
            span.end()
    finally:
        TagsInstrumentor().uninstrument()
    (slim,) = off.sent
    assert slim.attributes == {**CALL, **USAGE, names.TENANT: "acme", names.SLIM: True}
    assert (slim.events, slim.links) == ((), ())
    assert (slim.name, slim.kind, slim.status.status_code) == ("chat gpt-5-mini", span.kind, StatusCode.UNSET)
    assert (slim.start_time, slim.end_time) == (span.start_time, span.end_time)
    assert slim.context.span_id == span.get_span_context().span_id
    assert slim.resource is span.resource
    assert slim.instrumentation_scope is span.instrumentation_scope


def test_nobody_outside_takes_it_for_sampled(off: Program) -> None:
    carrier: dict[str, str] = {}
    with off.tracer.start_as_current_span("chat", attributes=CALL) as span:
        assert span.is_recording()
        assert not span.get_span_context().trace_flags.sampled
        inject(carrier)
    assert carrier["traceparent"].endswith("-00") or carrier["traceparent"].endswith("-02")


def test_a_sampled_request_is_sent_as_ever() -> None:
    program = Program(1.0)
    with program.tracer.start_as_current_span("GET /"):
        program.call(**{names.INPUT_MESSAGES: "hello"})
    call, root = program.sent
    assert call.attributes == {**CALL, **USAGE, names.INPUT_MESSAGES: "hello"}
    assert root.context.trace_state["ot"] == "th:0"
    assert names.SLIM not in (call.attributes or {})
    assert len(program.provider._active_span_processor._span_processors) == 1, "nothing stands in a way it need not"


def test_what_ended_in_an_error_is_sent_whole(off: Program) -> None:
    span = off.tracer.start_span("chat", attributes=CALL)
    span.set_attribute(names.INPUT_MESSAGES, "hello")
    span.record_exception(ValueError("broken"))
    span.set_status(StatusCode.ERROR, "broken")
    span.end()
    (sent,) = off.sent
    assert sent.attributes == {**CALL, names.INPUT_MESSAGES: "hello", names.SLIM: False}
    assert sent.status.description == "broken"
    assert [event.name for event in sent.events] == ["exception"]


@pytest.mark.parametrize(
    "attributes",
    [
        {names.OPERATION: names.OPERATION_INFERENCE},
        {names.OPERATION: names.OPERATION_CAPACITY},
        {names.OPERATION: names.OPERATION_FEATURE_READ},
        {names.usage("gpu.seconds"): 1.5},
        {"my.own": 1, names.usage("requests"): 1},
        {"openinference.span.kind": "LLM"},
        {"llm.request.type": "chat"},
        {"gen_ai.system": "openai"},
    ],
)
def test_what_shows_at_its_start_that_it_will_be_billed_is_sent(off: Program, attributes: dict[str, Any]) -> None:
    assert billed(attributes)
    off.tracer.start_span("x", attributes=attributes).end()
    (sent,) = off.sent
    assert sent.attributes == {**{k: v for k, v in attributes.items() if not k.startswith("my.")}, names.SLIM: True}


@pytest.mark.parametrize(
    "attributes",
    [None, {}, {"http.request.method": "GET"}, {names.TENANT: "a"}, {names.OPERATION: names.OPERATION_CACHE_LOOKUP}],
)
def test_what_uses_nothing_is_dropped_as_by_any_sampler(off: Program, attributes: Any) -> None:
    span = off.tracer.start_span("x", attributes=attributes)
    assert not span.is_recording()
    span.end()
    assert off.sent == []


# -- what stands in what -----------------------------------------------------------------------------------------------


def test_a_span_that_is_sent_names_the_nearest_above_it_that_is_sent(off: Program) -> None:
    start = off.tracer.start_as_current_span
    with start("GET /"), start("agent", attributes=CALL) as agent, start("tool"), start("POST"):
        below = off.call()
        with start("inner", attributes=CALL) as inner:
            direct = off.call()
    beside = off.call()
    parents = {span.context.span_id: span.parent and span.parent.span_id for span in off.sent}

    def number(span: trace.Span) -> int:
        return span.get_span_context().span_id

    assert parents[number(below)] == number(agent)
    assert parents[number(inner)] == number(agent)
    assert parents[number(direct)] == number(inner)
    assert parents[number(beside)] is None


def test_so_it_does_in_the_services_that_are_called(off: Program) -> None:
    """A caller's call, its dropped HTTP span, the dropped server span of the service, and the call of that service."""
    service, hop = Program(1.0), Program(1.0)
    first: dict[str, str] = {}
    with off.tracer.start_as_current_span("agent", attributes=CALL) as agent, off.tracer.start_as_current_span("POST"):
        inject(first)
    second: dict[str, str] = {}
    with hop.tracer.start_as_current_span("proxy", extract(first)):
        inject(second)
    with service.tracer.start_as_current_span("POST /", extract(second)):
        service.call()
    (sent,) = service.sent
    assert sent.attributes is not None
    assert sent.attributes[names.SLIM] is True
    assert sent.context.trace_id == agent.get_span_context().trace_id
    assert sent.parent is not None
    assert sent.parent.span_id == agent.get_span_context().span_id
    assert hop.sent == []


def test_a_call_made_right_inside_a_recorded_one_by_another_service(off: Program) -> None:
    carrier: dict[str, str] = {}
    with (
        off.tracer.start_as_current_span("agent", attributes=CALL),
        off.tracer.start_as_current_span("tool"),
        off.tracer.start_as_current_span("inner", attributes=CALL) as inner,
    ):
        inject(carrier)
    service = Program(1.0)
    with service.tracer.start_as_current_span("POST /", extract(carrier)):
        service.call()
    (sent,) = service.sent
    assert sent.parent is not None
    assert sent.parent.span_id == inner.get_span_context().span_id


def test_other_members_of_the_trace_state_stay_as_they_are(off: Program) -> None:
    context = parent(False, state="vendor=a:b,ot=rv:0123456789abcd")
    with off.tracer.start_as_current_span("GET /", context) as dropped:
        state = dropped.get_span_context().trace_state
        assert state["tollspan"] == f"{9:016x}"
        assert (state["vendor"], state["ot"]) == ("a:b", "rv:0123456789abcd")
        with off.tracer.start_as_current_span("chat", attributes=CALL) as call:
            assert call.get_span_context().trace_state.to_header() == "vendor=a:b,ot=rv:0123456789abcd"
    (sent,) = off.sent
    assert sent.parent is not None
    assert sent.parent.span_id == 9


def test_a_member_that_is_not_ours_under_our_name_is_no_parent(off: Program) -> None:
    off.tracer.start_span("chat", parent(False, state="tollspan=hello"), attributes=CALL).end()
    (sent,) = off.sent
    assert sent.parent is not None
    assert sent.parent.span_id == 9


Tree = tuple[bool, bool, list[Any]]
"""Whether a span will be billed, whether it is of another service than the one above, and what is beneath it."""

TREES = st.recursive(
    st.tuples(st.booleans(), st.booleans(), st.just([])),
    lambda beneath: st.tuples(st.booleans(), st.booleans(), st.lists(beneath, max_size=3)),
    max_leaves=12,
)


@given(tree=TREES)
def test_in_any_trace_across_services_each_span_hangs_on_the_nearest_that_is_sent(tree: Tree) -> None:
    services = [Program(0.0), Program(0.0)]
    expected: dict[int, int | None] = {}

    def make(node: Tree, service: int, nearest: int | None, context: Context) -> None:
        is_billed, elsewhere, beneath = node
        if elsewhere:
            carrier: dict[str, str] = {}
            inject(carrier, context)
            service, context = 1 - service, extract(carrier, Context())
        span = services[service].tracer.start_span("x", context, attributes=CALL if is_billed else None)
        number = span.get_span_context().span_id
        if is_billed:
            expected[number] = nearest
        for each in beneath:
            make(each, service, number if is_billed else nearest, set_span_in_context(span, Context()))
        span.end()

    make(tree, 0, None, Context())
    sent = {span.context.span_id: span.parent.span_id if span.parent else None for one in services for span in one.sent}
    assert sent.keys() == expected.keys()
    for number, above in expected.items():
        if above is not None:
            assert sent[number] == above
        else:
            assert sent[number] not in expected, "beneath nothing that is sent"


# -- asked for ---------------------------------------------------------------------------------------------------------


def test_a_trace_that_is_asked_for_is_sent_whole_from_there_on(off: Program) -> None:
    with off.tracer.start_as_current_span("GET /"):
        off.call("before", **{names.INPUT_MESSAGES: "hello"})
        with off.tracer.start_as_current_span("chat", attributes=CALL):
            assert keep_trace("the customer complained")
        off.call("after", **{names.INPUT_MESSAGES: "hello"})
        off.tracer.start_span("SELECT").end()
    off.call("another trace")
    sent = {span.name: span.attributes or {} for span in off.sent}
    assert {name: attributes[names.SLIM] for name, attributes in sent.items()} == {
        "before": True,
        "chat": False,
        "after": False,
        "SELECT": False,
        "another trace": True,
    }
    assert sent["chat"][names.SAMPLING_KEEP] is True
    assert sent["chat"][names.SAMPLING_NOTE] == "the customer complained"
    assert sent["after"][names.INPUT_MESSAGES] == "hello"


def test_services_that_are_called_hear_of_it(off: Program) -> None:
    carrier: dict[str, str] = {}
    with off.tracer.start_as_current_span("GET /"):
        keep_trace()
        inject(carrier)
    assert "-00" in carrier["traceparent"] or "-02" in carrier["traceparent"]
    service = Program(0.0)
    # Another process does not have the mark of this one.
    from tollspan.instrumentation import keep

    keep._marks.clear()
    with service.tracer.start_as_current_span("POST /", extract(carrier)):
        service.call()
    assert [(span.attributes or {})[names.SLIM] for span in service.sent] == [False, False]
    elsewhere = Program(0.0)
    with elsewhere.tracer.start_as_current_span("own root", extract({"baggage": carrier["baggage"]})):
        elsewhere.call()
    assert [(span.attributes or {})[names.SLIM] for span in elsewhere.sent] == [True], "the mark is of one trace"


def test_a_trace_that_is_not_wanted_is_slim_even_where_it_failed(off: Program) -> None:
    with off.tracer.start_as_current_span("chat", attributes=CALL) as span:
        drop_trace("a probe")
        span.set_status(StatusCode.ERROR)
    (sent,) = off.sent
    assert sent.attributes is not None
    assert sent.attributes[names.SLIM] is True
    assert sent.attributes[names.SAMPLING_KEEP] is False


# -- the SDK's own paths -----------------------------------------------------------------------------------------------


def test_batches_are_flushed_and_shut_down_with_everything_in_them() -> None:
    exporter = InMemorySpanExporter()
    program = Program(0.0, BatchSpanProcessor(exporter, schedule_delay_millis=3_600_000))
    for _ in range(40):
        program.call()
    assert program.provider.force_flush()
    assert len(exporter.get_finished_spans()) == 40
    program.call()
    program.provider.shutdown()
    assert len(exporter.get_finished_spans()) == 41


class Counting(SpanProcessor):
    """A processor of the program's own, which sees what the SDK hands to each."""

    def __init__(self) -> None:
        self.ended: list[ReadableSpan] = []

    def on_end(self, span: ReadableSpan) -> None:
        self.ended.append(span)


class Uploading(BatchSpanProcessor):
    """A vendor's, which looks at spans before it batches them."""

    def on_end(self, span: ReadableSpan) -> None:
        super().on_end(span)


def test_only_the_sdk_s_own_processors_are_handed_copies() -> None:
    counting, exporter, uploaded = Counting(), InMemorySpanExporter(), InMemorySpanExporter()
    program = Program(0.0, Uploading(uploaded), counting, SimpleSpanProcessor(exporter))
    program.call()
    program.provider.force_flush()
    assert len(exporter.get_finished_spans()) == 1
    assert uploaded.get_finished_spans() == ()
    assert [names.SLIM in (span.attributes or {}) for span in counting.ended] == [False]


def test_an_exporter_that_is_added_later_gets_its_copies_too(off: Program) -> None:
    off.call()
    late = InMemorySpanExporter()
    off.provider.add_span_processor(SimpleSpanProcessor(late))
    off.call()
    assert len(late.get_finished_spans()) == 1
    assert len(off.sent) == 2


def test_who_has_no_processor_to_hand_copies_to_is_told(caplog: pytest.LogCaptureFixture) -> None:
    program = Program(0.0, Counting())
    with caplog.at_level(logging.WARNING):
        program.call()
        program.call()
    assert caplog.text.count("BatchSpanProcessor or SimpleSpanProcessor") == 1


def test_it_may_stand_inside_another_sampler() -> None:
    ours = TollspanSampler(0.0)
    exporter = InMemorySpanExporter()
    provider = TracerProvider(
        sampler=ParentBased(ours, local_parent_not_sampled=ours, remote_parent_not_sampled=ours),
        shutdown_on_exit=False,
    )
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracer = provider.get_tracer("x")
    with tracer.start_as_current_span("GET /"):
        tracer.start_span("chat", attributes=CALL).end()
    assert len(exporter.get_finished_spans()) == 1


def test_several_providers_have_several_samplers(off: Program) -> None:
    other = Program(0.0)
    off.call()
    other.call()
    other.call()
    assert (len(off.sent), len(other.sent)) == (1, 2)


def test_a_name_of_an_attribute_that_is_no_text_is_left_to_the_sdk(
    off: Program, caplog: pytest.LogCaptureFixture
) -> None:
    wrong: Any = {1: "a", "user.id": "ada"}
    off.tracer.start_span("answer", attributes=wrong).end()
    assert off.sent == []
    assert "Traceback" not in caplog.text


def test_with_other_samplers_nothing_changes() -> None:
    program = Program(0.0)
    program.call()
    exporter = InMemorySpanExporter()
    from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, AlwaysRecordSampler

    for sampler in (ALWAYS_OFF, AlwaysRecordSampler(ALWAYS_OFF)):
        provider = TracerProvider(sampler=sampler, shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(exporter))
        with provider.get_tracer("x").start_as_current_span("chat", attributes=CALL):
            keep_trace()
        assert exporter.get_finished_spans() == ()
        assert len(provider._active_span_processor._span_processors) == 1


def test_baggage_of_others_is_not_touched(off: Program) -> None:
    from opentelemetry.context import attach, detach

    token = attach(baggage.set_baggage("theirs", "1"))
    try:
        with off.tracer.start_as_current_span("GET /"):
            keep_trace()
            assert baggage.get_baggage("theirs") == "1"
        assert baggage.get_baggage(names.SAMPLING_KEEP) is None, "the mark leaves with the span"
    finally:
        detach(token)
