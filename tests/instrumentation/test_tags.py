"""Tags reach every span inside, wherever the work goes, and nothing outside."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import inspect
import logging
import string
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry import baggage, context, propagate
from opentelemetry.instrumentation.threading import ThreadingInstrumentor
from opentelemetry.sdk.trace import TracerProvider

from tollspan.instrumentation import TagsInstrumentor, current_tags, tag
from tollspan.pricing.attributes import TAGS

NAMES = st.sampled_from(sorted(TAGS))
VALUES = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=40).map(str.strip)
TAG_SETS = st.dictionaries(NAMES, VALUES, max_size=len(TAGS))


@pytest.fixture
def instrumented(telemetry: Any) -> Iterator[Any]:
    TagsInstrumentor().instrument(tracer_provider=telemetry.provider)
    yield telemetry
    TagsInstrumentor().uninstrument()


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    yield
    assert not baggage.get_all()


# -- what a tag is ---------------------------------------------------------------------------------------------------


@given(st.lists(TAG_SETS, max_size=4))
def test_nested_tags_merge_and_the_inner_one_wins(levels: list[dict[str, str]]) -> None:
    expected: dict[str, str] = {}

    def go(depth: int) -> None:
        assert current_tags() == {TAGS[name]: value for name, value in expected.items() if value}
        if depth == len(levels):
            return
        outer = dict(expected)
        expected.update(levels[depth])
        with tag(**levels[depth]):
            go(depth + 1)
        expected.clear()
        expected.update(outer)
        assert current_tags() == {TAGS[name]: value for name, value in expected.items() if value}

    go(0)


def test_an_unknown_tag_is_refused_with_the_valid_ones_listed() -> None:
    with pytest.raises(TypeError, match=r"'customer'.*tenant, team, feature, workflow, variant"):
        tag(customer="acme")


@pytest.mark.parametrize("value", [None, 7, b"acme", ["acme"]])
def test_a_value_that_is_not_a_string_is_refused(value: Any) -> None:
    with pytest.raises(TypeError, match="'tenant' must be a str"):
        tag(tenant=value)


def test_an_empty_string_takes_a_tag_away_inside() -> None:
    with tag(tenant="acme", team="search"):
        with tag(tenant=""):
            assert current_tags() == {TAGS["team"]: "search"}
        assert current_tags() == {TAGS["tenant"]: "acme", TAGS["team"]: "search"}


def test_an_exception_passes_through_and_the_tags_end() -> None:
    error = ValueError("the user's")
    with pytest.raises(ValueError) as caught, tag(tenant="acme"):
        raise error
    assert caught.value is error
    assert current_tags() == {}


def test_foreign_baggage_is_left_alone_and_is_no_tag() -> None:
    ctx = baggage.set_baggage("color", "blue", baggage.set_baggage(TAGS["team"], 7))
    token = context.attach(ctx)
    try:
        with tag(tenant="acme"):
            assert current_tags() == {TAGS["tenant"]: "acme"}
            assert baggage.get_baggage("color") == "blue"
        assert context.get_current() is ctx
    finally:
        context.detach(token)


# -- as a decorator --------------------------------------------------------------------------------------------------


def test_decorated_functions_of_every_kind_keep_their_kind_and_run_inside() -> None:
    @tag(feature="plain")
    def plain(value: int) -> tuple[int, dict[str, str]]:
        """Docs."""
        return value, dict(current_tags())

    @tag(feature="coroutine")
    async def coroutine(value: int) -> tuple[int, dict[str, str]]:
        await asyncio.sleep(0)
        return value, dict(current_tags())

    assert plain.__name__ == "plain"
    assert plain.__doc__ == "Docs."
    assert list(inspect.signature(plain).parameters) == ["value"]
    assert plain(1) == (1, {TAGS["feature"]: "plain"})
    assert inspect.iscoroutinefunction(coroutine)
    assert asyncio.run(coroutine(2)) == (2, {TAGS["feature"]: "coroutine"})
    assert current_tags() == {}


def test_a_decorated_generator_has_its_tags_at_each_step_and_lends_them_to_nobody() -> None:
    @tag(feature="generator")
    def numbers() -> Iterator[Any]:
        try:
            sent = yield dict(current_tags())
            try:
                yield sent
            except KeyError as error:
                yield error
        finally:
            seen.append(dict(current_tags()))

    seen: list[dict[str, str]] = []
    steps: Any = numbers()
    assert inspect.isgeneratorfunction(numbers)
    assert next(steps) == {TAGS["feature"]: "generator"}
    assert current_tags() == {}
    assert steps.send("hello") == "hello"
    error = KeyError("thrown")
    assert steps.throw(error) is error
    steps.close()
    assert seen == [{TAGS["feature"]: "generator"}]
    assert current_tags() == {}


async def test_a_decorated_async_generator_has_its_tags_at_each_step_and_lends_them_to_nobody() -> None:
    @tag(feature="generator")
    async def numbers() -> AsyncIterator[Any]:
        try:
            sent = yield dict(current_tags())
            try:
                yield sent
            except KeyError as error:
                yield error
            yield "last"
        finally:
            seen.append(dict(current_tags()))

    seen: list[dict[str, str]] = []
    steps: Any = numbers()
    assert inspect.isasyncgenfunction(numbers)
    assert await anext(steps) == {TAGS["feature"]: "generator"}
    assert current_tags() == {}
    assert await steps.asend("hello") == "hello"
    error = KeyError("thrown")
    assert await steps.athrow(error) is error
    await steps.aclose()
    assert seen == [{TAGS["feature"]: "generator"}]

    assert [item async for item in numbers()][-1] == "last"
    assert current_tags() == {}


def test_one_instance_serves_many_threads_and_itself_inside_itself() -> None:
    acme = tag(tenant="acme")
    meet = threading.Barrier(4)

    def work() -> list[dict[str, str]]:
        seen = []
        with acme:
            meet.wait(10)
            with acme:
                seen.append(dict(current_tags()))
            meet.wait(10)
            seen.append(dict(current_tags()))
        seen.append(dict(current_tags()))
        return seen

    with ThreadPoolExecutor(4) as pool:
        results = [future.result() for future in [pool.submit(work) for _ in range(4)]]
    assert results == [[{TAGS["tenant"]: "acme"}, {TAGS["tenant"]: "acme"}, {}]] * 4


# -- generators that hold a tag across a yield -----------------------------------------------------------------------


def test_a_generator_closed_in_another_context_neither_logs_nor_leaks(caplog: pytest.LogCaptureFixture) -> None:
    def answer() -> Iterator[int]:
        with tag(tenant="acme"):
            yield 1
            yield 2

    steps = answer()
    other = contextvars.copy_context()
    other.run(next, steps)
    with caplog.at_level(logging.WARNING):
        with tag(team="mine"):
            steps.close()  # type: ignore[attr-defined]
            assert current_tags() == {TAGS["team"]: "mine"}
        other.run(lambda: None)
    assert not caplog.records


def test_tags_left_out_of_order_take_only_their_own_away() -> None:
    def answer() -> Iterator[int]:
        with tag(tenant="acme", team="a"):
            yield 1

    with tag(variant="x"):
        steps = answer()
        next(steps)  # the generator's tags are now in effect here: Python's generators have no context of their own
        with tag(team="mine"):
            assert next(steps, None) is None  # ... and end here, while `team` is open
            assert current_tags() == {TAGS["team"]: "mine", TAGS["variant"]: "x"}
        assert current_tags() == {TAGS["variant"]: "x"}


def test_leaving_out_of_order_for_ever_keeps_nothing() -> None:
    def answer() -> Iterator[int]:
        with tag(tenant="acme"):
            yield 1

    def once() -> None:
        steps = answer()
        next(steps)
        with tag(team="mine"):
            next(steps, None)

    once()
    gc.collect()
    before = sum(type(thing) is context.Context for thing in gc.get_objects())
    for _ in range(50):
        once()
    gc.collect()
    assert sum(type(thing) is context.Context for thing in gc.get_objects()) <= before


async def test_an_abandoned_task_leaves_no_trace(caplog: pytest.LogCaptureFixture) -> None:
    async def work(started: asyncio.Event) -> None:
        with tag(tenant="acme"):
            started.set()
            await asyncio.Event().wait()

    started = asyncio.Event()
    task = asyncio.create_task(work(started))
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    gc.collect()
    assert current_tags() == {}
    assert not caplog.records


# -- where tags go ---------------------------------------------------------------------------------------------------


async def test_tasks_inherit_tags_and_keep_their_own_apart() -> None:
    async def work(tenant: str) -> dict[str, str]:
        with tag(tenant=tenant):
            await asyncio.sleep(0)
            return dict(current_tags())

    with tag(feature="search"):
        results = await asyncio.gather(*(asyncio.create_task(work(name)) for name in "abc"))
    assert results == [{TAGS["tenant"]: name, TAGS["feature"]: "search"} for name in "abc"]


def test_threads_and_pools_inherit_tags(instrumented: Any) -> None:
    seen: list[dict[str, str]] = []
    with tag(tenant="acme"), ThreadPoolExecutor(1) as pool:
        pool.submit(lambda: seen.append(dict(current_tags()))).result()
        thread = threading.Thread(target=lambda: seen.append(dict(current_tags())))
        thread.start()
        thread.join()
    assert seen == [{TAGS["tenant"]: "acme"}] * 2


@given(st.text(string.printable + "äöü€🙂", min_size=1, max_size=60))
def test_tags_travel_to_another_process_in_baggage_unchanged(value: str) -> None:
    carrier: dict[str, str] = {}
    with tag(tenant=value):
        propagate.inject(carrier)
    arrived = propagate.extract(carrier, context.Context())
    assert current_tags(arrived) == ({TAGS["tenant"]: value.strip()} if value.strip() else {})


# -- on spans --------------------------------------------------------------------------------------------------------


def test_every_span_inside_carries_the_tags_of_its_start(instrumented: Any) -> None:
    tracer = instrumented.provider.get_tracer("anybody's")
    with tag(tenant="acme", variant="b"):
        span = tracer.start_span("inside")
    span.end()
    tracer.start_span("outside").end()
    inside, outside = instrumented.spans()
    assert inside.attributes == {TAGS["tenant"]: "acme", TAGS["variant"]: "b"}
    assert outside.attributes == {}


def test_the_tags_of_the_parent_context_count_not_those_around_the_call(instrumented: Any) -> None:
    tracer = instrumented.provider.get_tracer("anybody's")
    with tag(tenant="parent"):
        parent = context.get_current()
    with tag(tenant="around"):
        tracer.start_span("child", context=parent).end()
    assert instrumented.attributes() == {TAGS["tenant"]: "parent"}


def test_what_a_span_says_itself_stands(instrumented: Any) -> None:
    tracer = instrumented.provider.get_tracer("anybody's")
    with tag(tenant="acme", team="t"):
        tracer.start_span("own", attributes={TAGS["tenant"]: "explicit"}).end()
    assert instrumented.attributes() == {TAGS["tenant"]: "explicit", TAGS["team"]: "t"}


def test_agent_and_route_are_handed_down_to_the_spans_inside(instrumented: Any) -> None:
    tracer = instrumented.provider.get_tracer("anybody's")
    with (
        tracer.start_as_current_span("GET /ask", attributes={"http.route": "/ask"}),
        tracer.start_as_current_span("agent", attributes={"gen_ai.agent.name": "planner"}),
        tracer.start_as_current_span("tool"),
    ):
        tracer.start_span("chat").end()
        with tag(agent="critic"):
            tracer.start_span("tagged").end()
        tracer.start_span("inner agent", attributes={"gen_ai.agent.name": "writer"}).end()
    by_name = {span.name: span.attributes for span in instrumented.spans()}
    assert by_name["chat"] == {TAGS["agent"]: "planner", TAGS["route"]: "/ask"}
    assert by_name["tagged"] == {TAGS["agent"]: "critic", TAGS["route"]: "/ask"}
    assert by_name["inner agent"] == {"gen_ai.agent.name": "writer", TAGS["route"]: "/ask"}
    assert by_name["agent"] == {"gen_ai.agent.name": "planner", TAGS["route"]: "/ask"}
    assert by_name["GET /ask"] == {"http.route": "/ask"}


def test_uninstrument_silences_and_instrument_again_does_not_double(telemetry: Any) -> None:
    instrumentor = TagsInstrumentor()
    tracer = telemetry.provider.get_tracer("anybody's")
    start, submit = threading.Thread.start, ThreadPoolExecutor.submit
    for _ in range(2):
        instrumentor.instrument(tracer_provider=telemetry.provider)
        instrumentor.uninstrument()
    assert threading.Thread.start is start
    assert ThreadPoolExecutor.submit is submit
    with tag(tenant="acme"):
        tracer.start_span("silent").end()
    assert telemetry.attributes() == {}
    assert len(telemetry.provider._active_span_processor._span_processors) == 2


def test_a_threading_instrumentation_that_was_on_before_stays_on() -> None:
    ThreadingInstrumentor().instrument()
    try:
        TagsInstrumentor().instrument(tracer_provider=TracerProvider())
        TagsInstrumentor().uninstrument()
        assert ThreadingInstrumentor().is_instrumented_by_opentelemetry
    finally:
        ThreadingInstrumentor().uninstrument()


def test_instrumenting_before_there_is_a_tracer_provider_is_no_error() -> None:
    TagsInstrumentor().instrument(tracer_provider=object())
    TagsInstrumentor().uninstrument()
