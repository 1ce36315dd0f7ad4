"""Streams: the program sees exactly what it would see without us, and the span ends once, however the stream ends."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry import context, trace
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.trace import SpanKind, StatusCode

from tollspan.instrumentation import faults, tag
from tollspan.instrumentation.calls import Call, WrapPoint
from tollspan.instrumentation.streams import observe, observe_async
from tollspan.pricing.attributes import ERROR_TYPE, RESPONSE_TIME_TO_FIRST_CHUNK, STREAM_ABANDONED

POINT = WrapPoint(target="library:Client.stream", request=lambda args, kwargs: None, kind=SpanKind.CLIENT)


class Stream:
    """A stream as client libraries make them. Chunks are given; an exception among them is raised."""

    def __init__(self, chunks: list[Any]) -> None:
        self.chunks = iter(chunks)
        self.closed = 0
        self.response = object()
        self.spans: list[trace.Span] = []

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        self.spans.append(trace.get_current_span())
        chunk = next(self.chunks)
        if isinstance(chunk, BaseException):
            raise chunk
        return chunk

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def close(self) -> str:
        self.closed += 1
        return "closed"


class AsyncStream:
    def __init__(self, chunks: list[Any], wait: asyncio.Event | None = None) -> None:
        self.chunks = iter(chunks)
        self.wait = wait
        self.closed = 0
        self.response = object()

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        if self.wait is not None:
            await self.wait.wait()
        try:
            chunk = next(self.chunks)
        except StopIteration:
            raise StopAsyncIteration from None
        if isinstance(chunk, BaseException):
            raise chunk
        return chunk

    async def __aenter__(self) -> AsyncStream:
        return self

    async def __aexit__(self, *_: Any) -> None:
        await self.close()

    async def close(self) -> str:
        self.closed += 1
        return "closed"


def read(call: Call, chunk: Any) -> bool:
    call.attributes["last"] = chunk
    return bool(chunk == "usage")


def open_stream(telemetry: Any, stream: Any, read_chunk: Any = read) -> Any:
    provider: TracerProvider = telemetry.provider
    span = provider.get_tracer("tests").start_span("chat m")
    call = Call(POINT, "tollspan.call.gen_ai", span, context.get_current(), None)
    return (observe_async if hasattr(stream, "__anext__") else observe)(call, stream, read_chunk)


# -- transparency ----------------------------------------------------------------------------------------------------


def test_the_proxy_is_the_stream_in_all_but_name(telemetry: Any) -> None:
    stream = Stream([1, 2])
    proxy = open_stream(telemetry, stream)
    assert isinstance(proxy, Stream)
    assert proxy.__class__ is Stream
    assert proxy.response is stream.response
    assert repr(stream.response) in repr(proxy.response)
    proxy.label = "mine"
    assert stream.label == "mine"  # type: ignore[attr-defined]
    with proxy as entered:
        assert entered is proxy
        assert list(entered) == [1, 2]
    assert stream.closed == 1


@pytest.mark.parametrize(("names", "present"), [(("close",), True), (("aclose", "nonsense"), False)])
def test_a_name_is_there_exactly_where_the_stream_has_it(telemetry: Any, names: tuple[str, ...], present: bool) -> None:
    proxy = open_stream(telemetry, Stream([]))
    for name in names:
        assert hasattr(proxy, name) is present
    proxy.close()


CHUNKS = st.lists(st.integers() | st.just("usage") | st.builds(ValueError), max_size=6)
STEPS = st.lists(st.sampled_from(["next", "close", "for"]), max_size=10)


@given(CHUNKS, STEPS)
def test_whatever_the_program_does_it_sees_what_it_would_see_without_us(chunks: list[Any], steps: list[str]) -> None:
    class Untracked:
        provider = TracerProvider()

    def run(stream: Any) -> list[Any]:
        seen: list[Any] = []
        for step in steps:
            try:
                if step == "next":
                    seen.append(next(stream))
                elif step == "close":
                    seen.append(stream.close())
                else:
                    seen.extend(stream)
            except (StopIteration, ValueError) as error:
                seen.append(error if isinstance(error, ValueError) else "exhausted")
        return seen

    assert run(open_stream(Untracked, Stream(chunks))) == run(Stream(chunks))


@given(CHUNKS, STEPS)
def test_whatever_the_program_does_the_span_ends_exactly_once(chunks: list[Any], steps: list[str]) -> None:
    ended: list[str] = []

    class Ended(SpanProcessor):
        def on_end(self, span: ReadableSpan) -> None:
            ended.append(span.name)

    class Tracked:
        provider = TracerProvider()

    Tracked.provider.add_span_processor(Ended())
    stream = open_stream(Tracked, Stream(chunks))
    for step in steps:
        with contextlib.suppress(StopIteration, ValueError):
            if step == "next":
                next(stream)
            elif step == "close":
                stream.close()
            else:
                list(stream)
    del stream
    assert ended == ["chat m"]


# -- endings ---------------------------------------------------------------------------------------------------------


def test_exhaustion_ends_the_span_with_what_was_read(telemetry: Any) -> None:
    proxy = open_stream(telemetry, Stream([1, 2, "usage"]))
    for expected in (1, 2, "usage"):
        assert next(proxy) == expected
        assert telemetry.spans() == []
    assert next(proxy, "end") == "end"
    assert next(proxy, "end") == "end"
    attributes = telemetry.attributes()
    assert attributes["last"] == "usage"
    assert attributes[RESPONSE_TIME_TO_FIRST_CHUNK] > 0
    assert STREAM_ABANDONED not in attributes
    proxy.close()
    assert len(telemetry.spans()) == 1


def test_an_error_from_the_stream_is_the_very_object_and_ends_the_span(telemetry: Any) -> None:
    error = ConnectionError("broken")
    proxy = open_stream(telemetry, Stream([1, error]))
    next(proxy)
    with pytest.raises(ConnectionError) as caught:
        next(proxy)
    assert caught.value is error
    assert caught.traceback[-1].name == "__next__"
    span = telemetry.only()
    assert span.attributes[ERROR_TYPE] == "ConnectionError"
    assert span.status.status_code is StatusCode.ERROR
    assert STREAM_ABANDONED not in span.attributes


def test_a_stream_that_was_empty_has_no_time_to_first_chunk(telemetry: Any) -> None:
    assert list(open_stream(telemetry, Stream([]))) == []
    assert RESPONSE_TIME_TO_FIRST_CHUNK not in telemetry.attributes()


def test_closing_early_ends_and_marks_the_span(telemetry: Any) -> None:
    stream = Stream([1, 2])
    proxy = open_stream(telemetry, stream)
    next(proxy)
    assert proxy.close() == "closed"
    assert stream.closed == 1
    assert telemetry.attributes()[STREAM_ABANDONED] is True
    assert next(proxy) == 2  # this stream of the library's goes on after close, so it does under us
    assert len(telemetry.spans()) == 1


def test_leaving_the_with_block_early_ends_and_marks_the_span(telemetry: Any) -> None:
    with open_stream(telemetry, Stream([1, 2])) as proxy:
        next(proxy)
    assert telemetry.attributes()[STREAM_ABANDONED] is True


def test_an_exception_of_the_consumers_is_not_the_calls(telemetry: Any) -> None:
    error = RuntimeError("the consumer's")

    def consume() -> None:
        with open_stream(telemetry, Stream([1, 2])) as proxy:
            for _ in proxy:
                raise error

    with pytest.raises(RuntimeError) as caught:
        consume()
    assert caught.value is error
    span = telemetry.only()
    assert span.status.status_code is StatusCode.UNSET
    assert ERROR_TYPE not in span.attributes
    assert span.attributes[STREAM_ABANDONED] is True


def test_a_stream_that_nobody_holds_any_more_ends_and_marks_the_span(telemetry: Any) -> None:
    proxy = open_stream(telemetry, Stream([1, 2]))
    for _ in proxy:
        break
    assert telemetry.spans() == []
    gc.disable()  # its going is told by its last reference, not by the collector
    try:
        del proxy
        assert telemetry.attributes()[STREAM_ABANDONED] is True
    finally:
        gc.enable()


def test_a_stream_never_read_ends_its_span_too(telemetry: Any) -> None:
    open_stream(telemetry, Stream([1]))
    assert telemetry.attributes()[STREAM_ABANDONED] is True


def test_a_stream_left_after_all_that_matters_is_not_marked(telemetry: Any) -> None:
    with open_stream(telemetry, Stream([1, "usage", "done"])) as proxy:
        assert [next(proxy), next(proxy)] == [1, "usage"]
    assert STREAM_ABANDONED not in telemetry.attributes()


def test_closing_from_another_thread_while_reading_ends_the_span_once(telemetry: Any) -> None:
    class Waiting(Stream):
        def __next__(self) -> Any:
            reading.set()
            closed.wait(10)
            return super().__next__()

    reading, closed = threading.Event(), threading.Event()
    proxy = open_stream(telemetry, Waiting([1]))
    seen: list[Any] = []
    thread = threading.Thread(target=lambda: seen.extend(proxy))
    thread.start()
    reading.wait(10)
    proxy.close()
    closed.set()
    thread.join(10)
    assert seen == [1]
    assert len(telemetry.spans()) == 1


# -- context ---------------------------------------------------------------------------------------------------------


def test_the_span_is_current_while_a_chunk_is_read_and_at_no_other_time(telemetry: Any) -> None:
    stream = Stream([1, 2])
    proxy = open_stream(telemetry, stream)
    before = context.get_current()
    for _ in proxy:
        assert context.get_current() is before
    assert context.get_current() is before
    span_id = telemetry.only().context.span_id
    assert [span.get_span_context().span_id for span in stream.spans] == [span_id] * 3


def test_tags_and_spans_of_the_consumer_between_chunks_are_its_own(telemetry: Any) -> None:
    def consumer(proxy: Any) -> Iterator[Any]:
        for chunk in proxy:
            with tag(tenant=f"t{chunk}"):
                telemetry.provider.get_tracer("user").start_span(f"chunk {chunk}").end()
            yield chunk

    with telemetry.provider.get_tracer("user").start_as_current_span("request") as request:
        assert list(consumer(open_stream(telemetry, Stream([1, 2])))) == [1, 2]
    by_name = {span.name: span for span in telemetry.spans()}
    for name in ("chunk 1", "chunk 2", "chat m"):
        assert by_name[name].parent.span_id == request.get_span_context().span_id


# -- faults of ours --------------------------------------------------------------------------------------------------


def test_a_reader_that_raises_never_reaches_the_consumer(faulty_telemetry: Any) -> None:
    def broken(call: Call, chunk: Any) -> bool:
        raise RuntimeError("a fault of ours")

    counted = faults().get("streams.chunk", 0)
    assert list(open_stream(faulty_telemetry, Stream([1, 2]), broken)) == [1, 2]
    assert faults()["streams.chunk"] == counted + 2
    assert len(faulty_telemetry.spans()) == 1


# -- asynchronous ----------------------------------------------------------------------------------------------------


async def test_an_asynchronous_stream_is_transparent_and_ends_its_span(telemetry: Any) -> None:
    stream = AsyncStream([1, "usage"])
    proxy = open_stream(telemetry, stream)
    assert isinstance(proxy, AsyncStream)
    assert proxy.response is stream.response
    before = context.get_current()
    async with proxy as entered:
        assert entered is proxy
        async for _ in entered:
            assert context.get_current() is before
    assert stream.closed == 1
    attributes = telemetry.attributes()
    assert attributes["last"] == "usage"
    assert STREAM_ABANDONED not in attributes


async def test_an_asynchronous_error_is_the_very_object(telemetry: Any) -> None:
    error = ConnectionError("broken")
    proxy = open_stream(telemetry, AsyncStream([error]))
    with pytest.raises(ConnectionError) as caught:
        await anext(proxy)
    assert caught.value is error
    assert telemetry.attributes()[ERROR_TYPE] == "ConnectionError"


async def test_an_asynchronous_stream_closed_or_dropped_early_is_marked(telemetry: Any) -> None:
    proxy = open_stream(telemetry, AsyncStream([1, 2]))
    await anext(proxy)
    assert await proxy.close() == "closed"
    dropped = open_stream(telemetry, AsyncStream([1, 2]))
    await anext(dropped)
    del dropped
    assert [span.attributes[STREAM_ABANDONED] for span in telemetry.spans()] == [True, True]


async def test_a_generator_is_a_stream_too(telemetry: Any) -> None:
    async def numbers() -> AsyncIterator[int]:
        yield 1
        yield 2

    proxy = open_stream(telemetry, numbers())
    assert [chunk async for chunk in proxy] == [1, 2]
    closed = open_stream(telemetry, numbers())
    await anext(closed)
    await closed.aclose()
    assert [STREAM_ABANDONED in span.attributes for span in telemetry.spans()] == [False, True]


async def test_a_reader_that_is_cancelled_ends_the_span_and_leaves_the_context(telemetry: Any) -> None:
    proxy = open_stream(telemetry, AsyncStream([1], wait=asyncio.Event()))

    async def consume() -> None:
        async for _ in proxy:
            raise AssertionError("nothing comes")

    task = asyncio.create_task(consume())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert telemetry.attributes()[ERROR_TYPE] == "asyncio.exceptions.CancelledError"


async def test_a_stream_begun_in_one_task_can_be_read_in_others(telemetry: Any) -> None:
    proxy = open_stream(telemetry, AsyncStream([1, 2]))

    async def one() -> Any:
        with tag(tenant="reader"):
            return await anext(proxy, "end")

    assert [await asyncio.create_task(one()) for _ in range(3)] == [1, 2, "end"]
    assert len(telemetry.spans()) == 1
