"""Generator functions of a library: their wrappers are generator functions, and pass on all that a generator can do."""

from __future__ import annotations

import gc
import inspect
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from opentelemetry.trace import StatusCode

from tollspan.instrumentation.calls import Opening, WrapPoint, wrap
from tollspan.instrumentation.streams import observe, observe_async
from tollspan.instrumentation.wrapping import Patches
from tollspan.pricing.attributes import STREAM_ABANDONED


class Left(Exception):
    """Thrown into a generator."""


def numbers(log: list[Any]) -> Iterator[Any]:
    try:
        sent = yield 1
        log.append(sent)
        try:
            yield 2
        except Left as error:
            log.append(error)
            yield 3
        return "done"
    finally:
        log.append("closed")


async def numbers_async(log: list[Any]) -> AsyncIterator[Any]:
    try:
        sent = yield 1
        log.append(sent)
        try:
            yield 2
        except Left as error:
            log.append(error)
            yield 3
    finally:
        log.append("closed")


def wrapped(telemetry: Any, original: Any) -> Any:
    outlives = observe if original is numbers else observe_async
    point = WrapPoint(
        target="library:numbers",
        request=lambda args, kwargs: Opening("call", {}),
        outlives=lambda call, result: outlives(call, result, lambda call, chunk: False),
    )
    patches = Patches()
    patches.active = True
    return wrap(point, telemetry.provider.get_tracer("t"), patches, original)


def test_a_wrapper_is_what_the_original_is(telemetry: Any) -> None:
    generates, generates_async = wrapped(telemetry, numbers), wrapped(telemetry, numbers_async)
    assert inspect.isgeneratorfunction(generates)
    assert inspect.isasyncgenfunction(generates_async)
    assert inspect.isgenerator(generates([]))
    assert inspect.isasyncgen(generates_async([]))
    # Nothing was asked for, and so there was no call.
    assert telemetry.spans() == []


def test_a_generator_is_read_to_its_end(telemetry: Any) -> None:
    log: list[Any] = []
    assert list(wrapped(telemetry, numbers)(log)) == [1, 2]
    assert log == [None, "closed"]
    assert telemetry.only().status.status_code is StatusCode.UNSET
    assert STREAM_ABANDONED not in telemetry.attributes()


async def test_an_asynchronous_generator_is_read_to_its_end(telemetry: Any) -> None:
    log: list[Any] = []
    assert [number async for number in wrapped(telemetry, numbers_async)(log)] == [1, 2]
    assert log == [None, "closed"]
    assert STREAM_ABANDONED not in telemetry.attributes()


def test_what_is_sent_and_thrown_reaches_the_generator(telemetry: Any) -> None:
    log: list[Any] = []
    left = Left()
    generator = wrapped(telemetry, numbers)(log)
    assert (next(generator), generator.send("x"), generator.throw(left)) == (1, 2, 3)
    with pytest.raises(StopIteration) as stopped:
        next(generator)
    assert stopped.value.value == "done"
    assert log == ["x", left, "closed"]
    assert len(telemetry.spans()) == 1


async def test_what_is_sent_and_thrown_reaches_the_asynchronous_generator(telemetry: Any) -> None:
    log: list[Any] = []
    left = Left()
    generator = wrapped(telemetry, numbers_async)(log)
    assert [await generator.__anext__(), await generator.asend("x"), await generator.athrow(left)] == [1, 2, 3]
    with pytest.raises(StopAsyncIteration):
        await generator.__anext__()
    assert log == ["x", left, "closed"]
    assert len(telemetry.spans()) == 1


@pytest.mark.parametrize("how", ["close", "drop"])
def test_a_generator_that_is_left_is_closed(telemetry: Any, how: str) -> None:
    log: list[Any] = []
    generator = wrapped(telemetry, numbers)(log)
    next(generator)
    if how == "close":
        generator.close()
    del generator
    gc.collect()
    assert log == ["closed"]
    assert telemetry.attributes()[STREAM_ABANDONED] is True


async def test_an_asynchronous_generator_that_is_left_is_closed(telemetry: Any) -> None:
    log: list[Any] = []
    generator = wrapped(telemetry, numbers_async)(log)
    await generator.__anext__()
    await generator.aclose()
    assert log == ["closed"]
    assert telemetry.attributes()[STREAM_ABANDONED] is True
